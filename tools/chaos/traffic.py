"""HTTP/1.1 messages as the proxy passes them: whole, or as much of one as came before the connection ended."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgpack  # type: ignore[import-untyped]

PIECE = 1 << 16


class BrokenError(Exception):
    """The connection ended in the middle of a message, or before it. `partial` is what came."""

    def __init__(self, partial: bytes) -> None:
        super().__init__(f"{len(partial)} bytes came")
        self.partial = partial


@dataclass(frozen=True)
class Message:
    """One request or answer."""

    head: bytes
    body: bytes = field(repr=False)

    @cached_property
    def first_line(self) -> list[str]:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)

    @cached_property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        fields = (line.partition(":") for line in lines if line)
        return {name.strip().lower(): value.strip() for name, _, value in fields}

    @property
    def method(self) -> str:
        return self.first_line[0]

    @property
    def path(self) -> str:
        return self.first_line[1]

    @property
    def status(self) -> int:
        return int(self.first_line[1])

    @property
    def replayed(self) -> bool:
        return self.headers.get("x-exodus-replayed") == "1"

    @property
    def whole(self) -> bytes:
        return self.head + self.body

    @cached_property
    def sequence(self) -> int | None:
        """The sequence number of a training call, None if it is something else."""
        if not self.headers.get("content-type", "").endswith("msgpack") or "content-encoding" in self.headers:
            return None
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        unpacker.feed(self.body)
        try:
            header: Any = unpacker.unpack()
        except (msgpack.OutOfData, ValueError):
            return None
        number = header.get("params", {}).get("sequence") if isinstance(header, dict) else None
        return number if isinstance(number, int) else None


def read_message(connection: socket.socket, *, of_answer_to: str = "") -> Message:
    """The next message on a connection, whose length has to be declared.

    Raises:
        BrokenError: the other side has closed or reset it.
    """
    came = bytearray()
    try:
        while b"\r\n\r\n" not in came:
            _more(connection, came)
        head, _, rest = bytes(came).partition(b"\r\n\r\n")
        message = Message(head + b"\r\n\r\n", b"")
        length = int(message.headers.get("content-length", 0))
        if of_answer_to and (of_answer_to == "HEAD" or message.status in (204, 304)):
            length = 0
        body = bytearray(rest)
        while len(body) < length:
            _more(connection, body, came)
    except OSError as error:
        raise BrokenError(bytes(came)) from error
    return Message(message.head, bytes(body))


def _more(connection: socket.socket, *buffers: bytearray) -> None:
    piece = connection.recv(PIECE)
    if not piece:
        raise BrokenError(bytes(buffers[-1]))
    for buffer in buffers:
        buffer += piece


def reset(connection: socket.socket | None) -> None:
    """Close a connection so that the other side sees an error, not an orderly end."""
    if connection is None:
        return
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
