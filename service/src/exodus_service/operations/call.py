"""What a request becomes once it was received, and what is made of it before it is sent. Knows nothing of HTTP."""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Self, TypeVar

import numpy as np
import torch

from exodus_client.wire import JSON_TYPE, Encoded
from exodus_service.compute.queue import Entry
from exodus_service.compute.scheduler import DeadlineError, Ticket
from exodus_service.context import Timings
from exodus_service.errors import ServiceError
from exodus_service.shared_memory import Shared

T = TypeVar("T")

_HELPERS = ThreadPoolExecutor(thread_name_prefix="exodus-helper")


@dataclass
class Received:
    """A request whose body is here, and its place in the queue.

    Attributes:
        owner: who calls.
        body, content_type, content_encoding: as they came.
        deadline: a time.monotonic() value; may be infinite.
        ticket: the place, which takes one piece of work.
        timings: filled in while the request is served.
        queued_at: a time.perf_counter() value.
        shared: where the body is shared memory.
    """

    owner: str
    body: memoryview
    content_type: str
    content_encoding: str | None
    deadline: float
    ticket: Ticket
    timings: Timings
    queued_at: float
    shared: Shared | None = None

    @property
    def due(self) -> float | None:
        """The deadline, None where there is none."""
        return None if math.isinf(self.deadline) else self.deadline

    async def within(self, work: Awaitable[T]) -> T:
        """What comes of the work, unless the deadline passes before. Raises ServiceError: deadline."""
        limit = None if self.due is None else max(0.0, self.due - time.monotonic())
        try:
            async with asyncio.timeout(limit) as timeout:
                return await work
        except TimeoutError:
            if not timeout.expired():
                raise
        except DeadlineError:
            pass
        raise ServiceError("deadline", "the deadline passed before the result was there")

    async def aside(self, work: Callable[[], T], threads: Executor = _HELPERS) -> T:
        """`within` for work on a helper thread, which is not done where it has not begun.

        Once it has begun, the place is kept until it has ended, also where the client leaves before.
        """
        entry = Entry(partial(copy_context().run, work), self.due, None)
        entry.future.add_done_callback(lambda _: entry.release())  # also of what is cancelled and still in line
        threads.submit(_run, entry)
        self.ticket.attach(entry.future)
        return await self.within(asyncio.wrap_future(entry.future))

    async def computed(self, future: "Future[T]") -> T:
        """`within` for work on another thread, which is withdrawn where it has not begun."""
        return await self.within(asyncio.wrap_future(future))


@dataclass(frozen=True)
class Reply:
    """A response that is not sent yet."""

    encoded: Encoded
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})) -> Self:
        """A plain value."""
        body = json.dumps(value).encode()
        return cls(Encoded(JSON_TYPE, len(body), [body]), status, headers)


def _run(entry: Entry) -> None:
    if entry.begin():
        entry.finish(lambda: None)


def owned(tensor: torch.Tensor, body: bytes | bytearray | memoryview) -> torch.Tensor:
    """The tensor, or a copy where it is a view of the body: that is not to be kept, and others may write to it."""
    start = np.frombuffer(body, np.uint8).ctypes.data if len(body) else 0
    return tensor.clone() if start <= tensor.data_ptr() < start + len(body) else tensor
