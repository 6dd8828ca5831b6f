"""Counts the bytes on the wire: a relay between client and server that reads nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass
class Counted:
    """Bytes in each direction since the start, heads of HTTP included."""

    url: str = ""
    up: int = 0
    down: int = 0


@contextmanager
def relay(port: int) -> Iterator[Counted]:
    """A port that passes everything on to `port` of this machine."""
    counted = Counted()
    listener = socket.create_server(("127.0.0.1", 0))
    counted.url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def pump(source: socket.socket, target: socket.socket, direction: str) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 18):
                setattr(counted, direction, getattr(counted, direction) + len(piece))
                target.sendall(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for pair in ((client, server, "up"), (server, client, "down")):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield counted
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
