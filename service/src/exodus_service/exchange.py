"""One gradient request from body to body: decode, compute, encode. Runs on the thread of the device."""

import re
import time
from dataclasses import dataclass

import torch

from exodus_client.wire import (
    JSON_TYPE,
    MSGPACK_TYPE,
    Encoded,
    Limits,
    Message,
    Tensor,
    WireError,
    decode,
    decompress,
    encode,
)
from exodus_service.context import Timings
from exodus_service.gradients import prepare
from exodus_service.params import Method
from exodus_service.problems import Fault, Problem

#: What a body may be sent as. The msgpack forms are told apart by their content.
CONTENT_TYPES = (MSGPACK_TYPE, "application/msgpack", "application/x-msgpack", JSON_TYPE)
CONTENT_ENCODINGS = ("identity", "zstd")

_CODES = {"malformed": "malformed", "too_large": "too_large", "unsupported": "unsupported", "mismatch": "invalid"}
#: How PyTorch words it on the CPU. The last is an allocation inside a kernel: the stable ABI passes on that it failed,
#: not why, and a lack of memory is the only reason there is.
_OUT_OF_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|\"aten::(new_)?(empty|zeros)\w*\".*API call failed", re.DOTALL
)
_ATTEMPT = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


@dataclass(frozen=True)
class Exchange:
    """A request whose body has been read.

    Attributes:
        method: how gradients are computed.
        body, content_type, content_encoding: as they came.
        timings: filled in while it runs.
        queued_at: a time.perf_counter() value.
    """

    method: Method
    body: memoryview
    content_type: str
    content_encoding: str | None
    timings: Timings
    queued_at: float

    def run(self, device: torch.device, limits: Limits) -> Encoded:
        """The body of the response, in the form of the request.

        Raises:
            Problem: whatever is wrong with the request, or `out_of_memory`.
        """
        try:
            return self._run(device, limits)
        except WireError as error:
            problem = problem_of(error)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            attempt = _ATTEMPT.search(str(error))
            wanted = f"could not allocate {attempt[1]}" if attempt else "an allocation failed"
            problem = Problem("out_of_memory", f"{wanted} on {device}{_free_memory(device)}; send a smaller batch")
        # Raised here, and not where the error is at hand: its traceback holds on to all that was computed.
        raise problem

    def _run(self, device: torch.device, limits: Limits) -> Encoded:
        clock, spent = time.perf_counter, self.timings
        started = clock()
        spent.queue = started - self.queued_at
        plain = decompress(self.body, self.content_encoding, limits=limits)
        message = decode(plain, self.content_type, limits=limits)
        computation = prepare(self.method, message, device=device, max_bytes=limits.max_bytes)
        decoded = clock()
        spent.decode = decoded - started
        with torch.no_grad():
            results = computation.run()
            norms = {name: norm(result) for name, result in results.items() if name.startswith("grad_")}
        computed = clock()
        spent.kernel = computed - decoded
        dtype = computation.params.result_dtype
        converted = results if dtype is None else {name: t.to(getattr(torch, dtype)) for name, t in results.items()}
        params = {"method": self.method, "device": str(device), "grad_norms": norms}
        answer = Message.of(params, (Tensor.of(name, tensor.cpu()) for name, tensor in converted.items()))
        encoded = encode(answer, message.form, limits=limits)
        spent.encode = clock() - computed
        return encoded


def norm(tensor: torch.Tensor) -> float:
    """The L2 norm, accumulated in float32 or better."""
    dtype = tensor.dtype if tensor.dtype in (torch.float32, torch.float64) else torch.float32
    return float(torch.linalg.vector_norm(tensor, dtype=dtype))


def _free_memory(device: torch.device) -> str:
    """What a GPU has left, once the cache that PyTorch keeps is given back; nothing to say of the CPU."""
    if device.type != "cuda":
        return ""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return f", which has {free} of {total} bytes free"


def problem_of(error: WireError) -> Problem:
    """The answer to a body that the wire format refuses."""
    return Problem(_CODES[error.code], str(error), (Fault(error.pointer, error.expected, error.got),))


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))
