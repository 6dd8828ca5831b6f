"""One gradient request from body to body: decode, compute, encode. Runs on the thread of the device.

What the neurons of several requests do may be computed ahead for all of them, by `compute_ahead`; each goes on from
there.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from exodus_client.wire import (
    JSON_TYPE,
    MSGPACK_TYPE,
    Encoded,
    Limits,
    Message,
    Tensor,
    WireError,
    encode,
)
from exodus_service.compute.error_mapping import is_out_of_memory, translated
from exodus_service.compute.queue import Likeness
from exodus_service.compute.scheduler import QueueFullError
from exodus_service.context import Timings
from exodus_service.decoding import open_body
from exodus_service.errors import ServiceError
from exodus_service.gradients.batching import compute_together, likeness
from exodus_service.gradients.computation import Computation, Results, prepare
from exodus_service.gradients.params import Method

logger = logging.getLogger(__name__)

#: What a body may be sent as. The msgpack forms are told apart by their content.
CONTENT_TYPES = (MSGPACK_TYPE, "application/msgpack", "application/x-msgpack", JSON_TYPE)
CONTENT_ENCODINGS = ("identity", "zstd")

#: Longest description, in bytes, of a request that may be computed with others: it waits as objects of Python, which
#: take 60 times as much.
LONGEST_DESCRIPTION = 4096


@dataclass
class Exchange:
    """A request whose body has been read.

    Attributes:
        method: how gradients are computed.
        body, content_type, content_encoding: as they came.
        device: computes it.
        limits: of its body and of the answer.
        timings: filled in while it runs.
        queued_at: a time.perf_counter() value.
        reserve: told how many bytes the request takes before they are taken; may raise QueueFullError.
    """

    method: Method
    body: memoryview
    content_type: str
    content_encoding: str | None
    device: torch.device
    limits: Limits
    timings: Timings
    queued_at: float
    reserve: Callable[[int], object] = lambda nbytes: None
    _message: Message | None = field(default=None, init=False)
    _computation: Computation | None = field(default=None, init=False)
    _swept: Results | None = field(default=None, init=False)

    @property
    def nbytes(self) -> int:
        """Bytes of tensors in the body, at least: what is left without the longest header."""
        return len(self.body) - self.limits.max_header_bytes

    @cached_property
    def likeness(self) -> Likeness | None:
        """What it has in common with requests that it may be computed with.

        None where only unpacking or parsing the whole body would tell: it is compressed, or JSON. None, too, where the
        body is wrong or there is no room for it, which is said when its turn comes; and for a description that is
        longer than any that is needed.
        """
        if self.content_type == JSON_TYPE or self.content_encoding not in (None, "identity"):
            return None
        try:
            message = self._decode()
        except (WireError, QueueFullError):
            return None
        if len(self.body) - sum(tensor.nbytes for tensor in message.tensors.values()) > LONGEST_DESCRIPTION:
            self._message = None
            return None
        return likeness(self.method, message, self.device)

    def run(self) -> Encoded:
        """The body of the response, in the form of the request.

        Raises:
            ServiceError: whatever is wrong with the request, or `out_of_memory`.
            QueueFullError: there is no room for it once it is unpacked.
        """
        try:
            return translated(self._run, self.device)
        finally:
            self._message = self._computation = self._swept = None

    def _run(self) -> Encoded:
        clock, spent = time.perf_counter, self.timings
        computation, message = self._prepare(), self._decode()
        prepared = clock()
        with torch.no_grad():
            results = computation.run() if self._swept is None else computation.finish(self._swept)
            norms = {name: norm(result) for name, result in results.items() if name.startswith("grad_")}
        computed = clock()
        spent.kernel += computed - prepared
        dtype = computation.params.result_dtype
        converted = results if dtype is None else {name: t.to(getattr(torch, dtype)) for name, t in results.items()}
        params = {"method": self.method, "device": str(self.device), "grad_norms": norms}
        answer = Message.of(params, (Tensor.of(name, tensor.cpu()) for name, tensor in converted.items()))
        encoded = encode(answer, message.form, limits=self.limits)
        spent.encode = clock() - computed
        return encoded

    def _decode(self) -> Message:
        if self._message is None:
            started = time.perf_counter()
            _, self._message = open_body(
                self.body, self.content_type, self.content_encoding, limits=self.limits, reserve=self.reserve
            )
            self.timings.decode += time.perf_counter() - started
        return self._message

    def _prepare(self) -> Computation:
        if self._computation is None:
            spent = self.timings
            started = time.perf_counter()
            before = spent.decode
            spent.queue = started - self.queued_at - before
            message = self._decode()
            self._computation = prepare(self.method, message, device=self.device, max_bytes=self.limits.max_bytes)
            spent.decode = before + time.perf_counter() - started
        return self._computation


def compute_ahead(exchanges: Sequence[Exchange]) -> None:
    """Compute at once what the neurons of all of them do; the exchanges are alike. `run` of each does the rest.

    A request that is refused is left out, and where the memory does not suffice for all every request is: `run` then
    computes it alone, or says what is wrong with it.
    """
    ready: list[tuple[Exchange, Computation]] = []
    for exchange in exchanges:
        try:
            ready.append((exchange, exchange._prepare()))
        except (ServiceError, WireError, QueueFullError):
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
    if len(ready) < 2:
        return
    started = time.perf_counter()
    try:
        with torch.no_grad():
            swept = compute_together([computation for _, computation in ready])
    except ServiceError:  # about parameters that all of them have
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("no memory for %d requests at once: %s; they are computed one by one", len(ready), error)
        return
    kernel = time.perf_counter() - started
    for (exchange, _), results in zip(ready, swept, strict=True):
        exchange._swept = results
        spent = exchange.timings
        # The decoding of the others was waiting, too.
        spent.batch, spent.kernel, spent.queue = len(ready), kernel, started - exchange.queued_at - spent.decode


def norm(tensor: torch.Tensor) -> float:
    """The L2 norm, accumulated in float32 or better."""
    dtype = tensor.dtype if tensor.dtype in (torch.float32, torch.float64) else torch.float32
    return float(torch.linalg.vector_norm(tensor, dtype=dtype))
