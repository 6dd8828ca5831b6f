"""Reads a request body, of a length known beforehand, into one writable buffer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from exodus_service.errors import Fault, ServiceError
from exodus_service.http.upload import Filling, place

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

ALIGNMENT = 64


def empty_buffer(nbytes: int, *, pinned: bool = False) -> memoryview:
    """An uninitialised writable buffer that starts at a multiple of 64 bytes, as tensor payloads do within a body.

    NumPy's allocator neither clears it nor, for large ones, pays a page fault for every 4 KiB.
    Pinned memory, from PyTorch's pool of it, is what a GPU copies from by itself.
    """
    size = nbytes + ALIGNMENT
    whole = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy() if pinned else np.empty(size, dtype=np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
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
        scope: of the request; where the server offers it there, the body comes without the detour through messages.
        pinned: read into memory that a GPU copies from by itself.

    Raises:
        ServiceError: body_timeout, deadline, malformed (another length than announced), client_disconnected,
            out_of_memory.
    """
    try:
        body = empty_buffer(nbytes, pinned=pinned)
    except (MemoryError, torch.OutOfMemoryError):
        raise ServiceError("out_of_memory", f"no room for a body of {nbytes} bytes") from None
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds_left
    began = clock()
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
