"""What a computation may fail of, as an answer to its caller. Knows nothing of HTTP."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from exodus_client.wire import WireError
from exodus_service.errors import Code, Fault, ServiceError

T = TypeVar("T")

_CODES: Mapping[str, Code] = {
    "malformed": "malformed",
    "too_large": "too_large",
    "unsupported": "unsupported",
    "mismatch": "invalid",
}
#: How PyTorch words it on the CPU. The last is an allocation inside a kernel: the stable ABI passes on that it failed,
#: not why, and a lack of memory is the only reason there is.
_OUT_OF_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|\"aten::(new_)?(empty|zeros)\w*\".*API call failed", re.DOTALL
)
_ATTEMPT = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


def translated(work: Callable[[], T], device: torch.device) -> T:
    """What the work returns.

    Raises:
        ServiceError: the body is wrong, or the memory does not suffice.
    """
    try:
        return work()
    except WireError as error:
        problem = problem_of(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        attempt = _ATTEMPT.search(str(error))
        wanted = f"could not allocate {attempt[1]}" if attempt else "an allocation failed"
        free = _free_memory(device)
        problem = ServiceError("out_of_memory", f"{wanted} on {device}{free}; send a smaller batch")
    # Raised here, and not where the error is at hand: its traceback holds on to all that was computed.
    raise problem


def problem_of(error: WireError) -> ServiceError:
    """The answer to a body that the wire format refuses."""
    expected, got = error.expected, error.got
    if not got:  # the sentence alone says it
        expected, got = expected or "what docs/wire-format.md describes", str(error)
    return ServiceError(_CODES[error.code], str(error), (Fault(error.pointer, expected, got),))


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether the error says that the memory does not suffice."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def pointed(problem: ServiceError, pointer: str, expected: str, got: str) -> ServiceError:
    """The problem with the place in the request that it is about, where it does not say one itself."""
    problem.faults = problem.faults or (Fault(pointer, expected, got),)
    return problem


def _free_memory(device: torch.device) -> str:
    """What a GPU has left, once the cache that PyTorch keeps is given back; nothing to say of the CPU."""
    if device.type != "cuda":
        return ""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return f", which has {free} of {total} bytes free"
