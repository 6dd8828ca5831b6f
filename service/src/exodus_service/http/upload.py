"""Reads the body of a request from the socket straight into the buffer where it is decoded.

The way through HTTP messages copies every byte five times: out of the transport, out of the parser, into the server's
buffer, out of it, into ours. Here the kernel's copy is the only one. The server offers it in the ASGI scope, under
EXTENSION: `place(buffer)` says where the body goes, and `receive()` then returns when all of it is there.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

#: Key in the extensions of an ASGI scope, of a map whose member `place` is a `Place`.
EXTENSION = "exodus.place"

#: Bodies up to this size mostly come with their head, and gain nothing.
SMALLEST = 1 << 16

#: What takes the rest of a body that nobody wants any more.
_SCRATCH = 1 << 18


class Filling:
    """A buffer on its way to be full.

    Attributes:
        filled: bytes that are there.
        on_progress: called whenever more of them are, but not all.
    """

    def __init__(self, buffer: memoryview) -> None:
        self.filled = 0
        self.on_progress: Callable[[], None] = _ignore
        self._buffer = buffer
        self._nbytes = len(buffer)

    @property
    def remaining(self) -> int:
        """Bytes of the body that are still to come."""
        return self._nbytes - self.filled

    def put(self, piece: bytes | bytearray) -> None:
        """Copy the next bytes from elsewhere."""
        if piece:
            self._buffer[self.filled : self.filled + len(piece)] = piece
            self.advance(len(piece))

    def vacancy(self) -> memoryview:
        """Where the next bytes go; never more than belong to the body."""
        if not self._buffer:
            return memoryview(bytearray(min(self.remaining, _SCRATCH)))
        return self._buffer[self.filled :]

    def advance(self, nbytes: int) -> None:
        """Count bytes that were written to the vacancy."""
        self.filled += nbytes
        if self.remaining:
            self.on_progress()

    def abandon(self) -> None:
        """Let go of the buffer. What still comes is read and forgotten."""
        self._buffer = memoryview(b"")
        self.on_progress = _ignore


def _ignore() -> None:
    """Nobody asks any more."""


#: Registers a buffer of the length of the body; None where its bytes have to be taken from the messages.
Place = Callable[[memoryview], Filling | None]


def place(scope: Mapping[str, Any], buffer: memoryview) -> Filling | None:
    """Have the server fill the buffer with the body of this request, if it can."""
    offered: Place | None = scope.get("extensions", {}).get(EXTENSION, {}).get("place")
    return None if offered is None or len(buffer) <= SMALLEST else offered(buffer)


class Upload(asyncio.BufferedProtocol):
    """Takes the place of a connection's protocol until the body is whole, and calls `done` then."""

    def __init__(self, connection: asyncio.Protocol, filling: Filling, done: Callable[[], None]) -> None:
        self._connection = connection
        self._filling = filling
        self._done = done

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._filling.vacancy()

    def buffer_updated(self, nbytes: int) -> None:
        self._filling.advance(nbytes)
        if not self._filling.remaining:
            self._done()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
