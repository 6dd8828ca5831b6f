"""Reads a request body, of a length known beforehand, into one writable buffer.

Through ASGI messages every byte is copied five times: out of the transport, out of the parser, into the server's
buffer, out of it, into ours. For large bodies the kernel's copy is the only one: the server offers in the ASGI scope,
under EXTENSION, to read from the socket into a buffer. `place(buffer)` says where the body goes, and `receive()` then
returns when all of it is there. A small body mostly arrives with its head, and `take(buffer)` copies it without a wait.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from exodus_service.errors import Fault, ServiceError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

ALIGNMENT = 64

#: Key in the extensions of an ASGI scope, of a map whose member `place` is a `Place`, and `take` a `Take`.
EXTENSION = "exodus.place"

#: Bodies up to this size gain nothing from being read into place.
SMALLEST = 1 << 16

#: Size of the buffer for the rest of a body that is not wanted any more.
_SCRATCH = 1 << 18


class Filling:
    """A buffer that is being filled.

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
        """The part of the buffer for the next bytes; never more than belong to the body."""
        if not self._buffer:
            return memoryview(bytearray(min(self.remaining, _SCRATCH)))
        return self._buffer[self.filled :]

    def advance(self, nbytes: int) -> None:
        """Count bytes that were written to the vacancy."""
        self.filled += nbytes
        if self.remaining:
            self.on_progress()

    def abandon(self) -> None:
        """Release the buffer. The rest of the body is read and dropped."""
        self._buffer = memoryview(b"")
        self.on_progress = _ignore


def _ignore() -> None:
    """Progress that nobody waits for."""


#: Registers a buffer of the length of the body; None if its bytes have to be taken from the messages.
Place = Callable[[memoryview], Filling | None]


#: Copies a body that is complete into a buffer of its length; false if there is no such body.
Take = Callable[[memoryview], bool]


def take(scope: Mapping[str, Any], buffer: memoryview) -> bool:
    """True if the body of this request was there already, and is in the buffer now."""
    if len(buffer) > SMALLEST:
        return False
    offered: Take | None = scope.get("extensions", {}).get(EXTENSION, {}).get("take")
    return offered is not None and offered(buffer)


def place(scope: Mapping[str, Any], buffer: memoryview) -> Filling | None:
    """Have the server fill the buffer with the body of this request, if it can."""
    if len(buffer) <= SMALLEST:
        return None
    offered: Place | None = scope.get("extensions", {}).get(EXTENSION, {}).get("place")
    return None if offered is None else offered(buffer)


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


def empty_buffer(nbytes: int, *, pinned: bool = False) -> memoryview:
    """An uninitialised writable buffer that starts at a multiple of 64 bytes, as tensor payloads do within a body.

    NumPy's allocator neither clears it nor, for large ones, pays a page fault for every 4 KiB.
    Pinned memory, from PyTorch's pool of it, is what a GPU copies from by itself.
    """
    size = nbytes + ALIGNMENT
    whole = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy() if pinned else np.empty(size, dtype=np.uint8)
    address: int = whole.__array_interface__["data"][0]
    start = -address % ALIGNMENT
    return whole[start : start + nbytes].data


async def read_body(
    receive: Receive,
    nbytes: int,
    *,
    stall_timeout: float,
    min_rate: int,
    seconds_left: float,
    scope: Mapping[str, Any] = MappingProxyType({}),
    pinned: bool = False,
) -> memoryview:
    """Read a body of exactly `nbytes` bytes.

    Args:
        receive: the ASGI channel of the request; not called before, so that `Expect: 100-continue` is answered now.
        stall_timeout: seconds that the next piece may take.
        min_rate: bytes a second on average: `n` bytes in, the next piece has to be there `stall_timeout + n / min_rate`
            seconds after the beginning.
        seconds_left: until the deadline of the request; may be infinite.
        scope: of the request, in which the server may offer to read into place.
        pinned: read into memory that a GPU copies from by itself.

    Raises:
        ServiceError: body_timeout, deadline, malformed (another length than announced), client_disconnected,
            out_of_memory.
    """
    try:
        body = empty_buffer(nbytes, pinned=pinned)
    except (MemoryError, torch.OutOfMemoryError):
        raise ServiceError("out_of_memory", f"no room for a body of {nbytes} bytes") from None
    if seconds_left > 0 and take(scope, body):
        return body
    clock = asyncio.get_running_loop().time
    began = clock()
    deadline = began + seconds_left
    filling = place(scope, body) or Filling(body)

    def latest() -> float:
        """Time by which the next piece has to be there."""
        return min(clock() + stall_timeout, began + stall_timeout + filling.filled / min_rate, deadline)

    try:
        async with asyncio.timeout_at(latest()) as timeout:

            def extend() -> None:
                if not timeout.expired():
                    timeout.reschedule(latest())

            filling.on_progress = extend
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ServiceError(
                        "client_disconnected", f"{filling.filled} of {nbytes} bytes of the body had arrived"
                    )
                piece = message.get("body", b"")
                if len(piece) > filling.remaining:
                    raise _wrong_length(nbytes, f"at least {filling.filled + len(piece)} bytes")
                filling.put(piece)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        if timeout.when() == deadline:  # the clock itself may stand a little before it: timers are rounded
            raise ServiceError("deadline", "the deadline passed while the body was read") from None
        raise ServiceError(
            "body_timeout",
            f"{filling.filled} of {nbytes} bytes of the body had arrived",
        ) from None
    finally:
        filling.abandon()
    if filling.remaining:
        raise _wrong_length(nbytes, f"{filling.filled} bytes")
    return body


def _wrong_length(nbytes: int, got: str) -> ServiceError:
    expected = f"{nbytes} bytes, as Content-Length says"
    return ServiceError("malformed", f"the body must be {expected}, got {got}", (Fault("", expected, got),))
