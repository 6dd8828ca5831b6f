"""The thinnest client there is, for measuring servers: one socket, a head written by hand, buffers that are reused."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from .servers import KEY, Running


class Caller:
    """One connection to a server. The answer is in `answer[:n]` until the next call."""

    def __init__(self, server: Running, largest_answer: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX if server.uds else socket.AF_INET)
        self._socket.connect(server.uds or ("127.0.0.1", server.port))
        if not server.uds:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer = memoryview(cast(Any, np.zeros(largest_answer + 65536, np.uint8)))
        self.head = b""

    def post(self, path: str, content_type: str, chunks: Iterable[bytes | memoryview]) -> memoryview:
        """Send a body, and return that of the answer."""
        parts = list(chunks)
        nbytes = sum(map(len, parts))
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {nbytes}\r\n\r\n"
        ).encode()
        if nbytes <= 65536:
            self._socket.sendall(b"".join([head, *parts]))
        else:
            self._socket.sendall(head)
            for part in parts:
                self._socket.sendall(part)
        return self._read()

    def get(self, path: str) -> memoryview:
        """Ask for a page."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
        return self._read()

    def _read(self) -> memoryview:
        came = bytearray()
        while b"\r\n\r\n" not in came:
            piece = self._socket.recv(65536)
            if not piece:
                raise RuntimeError("the server closed the connection")
            came += piece
        head, _, rest = bytes(came).partition(b"\r\n\r\n")
        self.head = head
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        nbytes = int(fields[b"content-length"])
        self.answer[: len(rest)] = rest
        filled = len(rest)
        while filled < nbytes:
            filled += self._socket.recv_into(self.answer[filled:nbytes])
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{head.decode()}\n{bytes(self.answer[:nbytes])!r:.300}")
        return self.answer[:nbytes]

    def timing(self) -> dict[str, float]:
        """Milliseconds of the Server-Timing header of the last answer."""
        from exodus_client._gradients.result import read_timing

        lines = [line for line in self.head.decode().split("\r\n") if line.lower().startswith("server-timing:")]
        return read_timing(lines[0].partition(":")[2]) if lines else {}

    def close(self) -> None:
        self._socket.close()
