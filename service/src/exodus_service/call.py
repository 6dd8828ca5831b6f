"""A received call: decodes its body, runs its work on the right thread, and maps failures to errors of the service."""

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Self, TypeVar

import numpy as np
import torch

from exodus_client.wire import (
    DTYPES,
    JSON_TYPE,
    MSGPACK_TYPE,
    Encoded,
    Limits,
    Message,
    Tensor,
    WireError,
    decode,
    decompress,
)
from exodus_service.compute.scheduler import DeadlineError, QueueFullError, Slot
from exodus_service.context import Timings
from exodus_service.errors import Code, Fault, ServiceError
from exodus_service.shared_memory import Shared

T = TypeVar("T")

#: Content types of messages. The two msgpack forms are told apart by their content.
CONTENT_TYPES = (MSGPACK_TYPE, "application/msgpack", "application/x-msgpack", JSON_TYPE)
CONTENT_ENCODINGS = ("identity", "zstd")

#: Bytes of memory that one byte of JSON may become while it is parsed: `[[]],` is two lists and their slots.
JSON_GROWTH = 32

#: A body of at most so many bytes, and of as many once it is unpacked, is decoded on the event loop: that takes less
#: time than to pass it to another thread.
SMALL_BYTES = 1 << 14

_HELPERS = ThreadPoolExecutor(thread_name_prefix="exodus-helper")

_CODES: Mapping[str, Code] = {
    "malformed": "malformed",
    "too_large": "too_large",
    "unsupported": "unsupported",
    "mismatch": "invalid",
}
#: PyTorch's wording on the CPU. The last is an allocation inside a kernel: the stable ABI passes on that it failed, not
#: why, and a lack of memory is the only reason there is.
_OUT_OF_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|\"aten::(new_)?(empty|zeros)\w*\".*API call failed", re.DOTALL
)
_ATTEMPT = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


@dataclass(frozen=True)
class Result:
    """A successful response that has not been sent yet."""

    encoded: Encoded
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def json(cls, value: Any) -> Self:
        """A plain value."""
        body = json.dumps(value).encode()
        return cls(Encoded(JSON_TYPE, len(body), [body]))


@dataclass(eq=False)
class Call:
    """A request whose headers, and then whose body, have been read.

    Attributes:
        owner: the caller.
        content_type, content_encoding: of the body.
        deadline: a time.monotonic() value; may be infinite.
        slot: in the queue of the computing thread; takes one piece of work.
        timings: filled in while the call is served.
        device: computes it.
        limits: of its body and of the response.
        body: as it was sent; may be read once `receive` is over.
        shared: where the body lies, if that is shared memory.
    """

    owner: str
    content_type: str
    content_encoding: str | None
    deadline: float
    slot: Slot
    timings: Timings
    device: torch.device
    limits: Limits
    body: memoryview = field(default_factory=lambda: memoryview(b""))
    shared: Shared | None = None
    _decoded: "tuple[bytes | bytearray | memoryview, Message] | None" = field(default=None, init=False)

    @property
    def due(self) -> float | None:
        """The deadline; None if there is none."""
        return None if math.isinf(self.deadline) else self.deadline

    def decode(self) -> tuple[bytes | bytearray | memoryview, Message]:
        """The body after decompression, and its message, whose tensors are views of it if they can be.

        The slot counts what the request takes in all before more memory is taken, and in the end with the tensors
        unpacked.

        Raises:
            WireError: the body is not a message.
            QueueFullError: there is no room for it once it is unpacked.
        """
        if self._decoded is None:
            with self.timings.phase("decode"):
                self._decoded = self._decode()
        return self._decoded

    def has(self, name: str) -> bool:
        """True if the body is a message with such a tensor."""
        try:
            return name in self.decode()[1].tensors
        except (WireError, QueueFullError):
            return False

    def forget(self) -> None:
        """Drop the decoded message; the body as it was sent remains, and is what is counted."""
        self._decoded = None
        self.slot.resize(len(self.body))

    def drop_body(self) -> None:
        """Refer to nothing of the body any more."""
        self.body, self.shared, self._decoded = memoryview(b""), None, None

    async def prepare(self, work: Callable[[], T]) -> T:
        """Run work that decodes and checks the call: at once if it is small, else on a helper thread.

        Raises:
            ServiceError: as the work does; out_of_memory; deadline.
        """
        return self.translated(work) if self._is_small() else await self.aside(work)

    async def aside(self, work: Callable[[], T], threads: Executor = _HELPERS) -> T:
        """Run on another thread, unless the caller has left or the deadline has passed before it begins.

        The slot stays occupied until the work has ended, even if the caller leaves before.
        """
        waiting, context, due = [partial(self.translated, work)], copy_context(), self.due

        def run() -> T:
            if due is not None and time.monotonic() >= due:
                raise DeadlineError
            return context.run(waiting.pop())

        future = threads.submit(run)
        # Cancelled while it is in line: the executor keeps `run` until its turn, and must not keep the work.
        future.add_done_callback(lambda _: waiting.clear())
        self.slot.attach(future)
        return await asyncio.wrap_future(future)

    async def compute(
        self, work: Callable[[], Encoded], member: object = None, *, brief: Callable[[], bool] | None = None
    ) -> Result:
        """Run on the computing thread, in the order of the queue; `member` tells what it may be batched by.

        Brief work of a small call runs on the event loop instead, if nothing else is there; `brief` is asked then.

        Raises:
            ServiceError: as the work does; out_of_memory, queue_full, deadline.
        """

        def run() -> Encoded:
            self.timings.begin()
            try:
                encoded = self.translated(work)
            finally:
                self._decoded = None
            self.slot.resize(encoded.nbytes)
            return encoded

        if brief is not None and self.device.type == "cpu" and self._is_small() and brief():
            await asyncio.sleep(0)  # requests that came at the same time are admitted, and may run together
            if self.slot.is_alone:
                return Result(self.slot.at_once(run, self.due))
        return Result(await asyncio.wrap_future(self.slot.submit(run, self.due, member)))

    def translated(self, work: Callable[[], T]) -> T:
        """The result of the work.

        Raises:
            ServiceError: as the work does; for a body that is not a message; out_of_memory.
        """
        try:
            return work()
        except ServiceError as error:
            problem = error.with_traceback(None)
            problem.__cause__ = problem.__context__ = None
        except WireError as error:
            problem = wire_problem(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            attempt = _ATTEMPT.search(str(error))
            wanted = f"could not allocate {attempt[1]}" if attempt else "an allocation failed"
            free = _free_memory(self.device)
            problem = ServiceError("out_of_memory", f"{wanted} on {self.device}{free}; send a smaller batch")
        # Raised anew: a traceback refers to the tensors of its frames, and would be kept with the error, by its future.
        del work
        raise problem

    def _decode(self) -> tuple[bytes | bytearray | memoryview, Message]:
        body, limits, reserve = self.body, self.limits, self.slot.reserve
        packed = limits
        if self.content_type == JSON_TYPE:
            packed = replace(limits, max_bytes=min(limits.max_bytes, limits.max_json_bytes))
        plain = decompress(
            body, self.content_encoding, limits=packed, reserve=lambda nbytes: reserve(len(body) + nbytes)
        )
        taken = len(body) if plain is body else len(body) + len(plain)
        if self.content_type == JSON_TYPE:
            reserve(taken + JSON_GROWTH * len(plain))
        message = decode(plain, self.content_type, limits=limits)
        reserve(taken + sum(_unpacked_bytes(tensor, message) for tensor in message.tensors.values()))
        return plain, message

    def _is_small(self) -> bool:
        if len(self.body) > SMALL_BYTES or self.content_type == JSON_TYPE:
            return False
        if self.content_encoding not in (None, "identity"):
            return False
        try:
            _, message = self.decode()
        except (WireError, QueueFullError):
            return True  # for the work to say so
        return sum(tensor.size * DTYPES[tensor.dtype].itemsize for tensor in message.tensors.values()) <= SMALL_BYTES


def owned(tensor: torch.Tensor, body: bytes | bytearray | memoryview) -> torch.Tensor:
    """The tensor; a copy if it is a view of the body, which is not kept, and which others may write to."""
    start = np.frombuffer(body, np.uint8).ctypes.data if len(body) else 0
    return tensor.clone() if start <= tensor.data_ptr() < start + len(body) else tensor


def wire_problem(error: WireError) -> ServiceError:
    """The error of a body that the wire format refuses."""
    expected, got = error.expected, error.got
    if not got:  # the sentence alone says it
        expected, got = expected or "what docs/wire-format.md describes", str(error)
    return ServiceError(_CODES[error.code], str(error), (Fault(error.pointer, expected, got),))


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """True if the error says that memory is exhausted."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def _unpacked_bytes(tensor: Tensor, message: Message) -> int:
    """Bytes of a tensor that is no view of the body: JSON is text, and inline payloads may start anywhere."""
    if tensor.encoding != "raw":
        return tensor.size
    return 0 if message.form == "stream" else tensor.nbytes


def _free_memory(device: torch.device) -> str:
    """The free memory of a GPU, after PyTorch's cache is given back; nothing for the CPU."""
    if device.type != "cuda":
        return ""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return f", which has {free} of {total} bytes free"
