"""Dynamic batching: which gradient requests are compatible, and their one computation.

Neurons do not know of each other: every lane, which is one (outer, inner) index, is computed from its own inputs in its
own order. So requests can be concatenated along the outermost axis, and each finds in its part of the result the bits
that it would get alone. Sums over lanes and products of matrices stay with each request: norms, and the products
with weights.

The head of the queue is batched with compatible requests behind it, which overtake what stands between. This is
bounded: nothing is overtaken by more than one batch's worth of others, and whatever is first is taken next.
"""

import logging
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from exodus_client.wire import DTYPES, Message, Tensor, WireError
from exodus_service.call import is_out_of_memory
from exodus_service.compute.scheduler import Slot
from exodus_service.context import Timings
from exodus_service.errors import ServiceError
from exodus_service.gradients.computation import Computation, LossGradients, Results
from exodus_service.gradients.params import Method

logger = logging.getLogger(__name__)

_TRACES = ("membrane", "input", "psp", "spikes")
_LOSSES = ("grad_output", "grad_membrane")

#: From so many steps on a GPU may choose another kernel for more lanes, with another rounding: the fewest steps that go
#: by chunks in exodus_core/csrc/cuda/choice.cuh.
LONG_TIME = 320


class BatchKey(NamedTuple):
    """Compatible requests have equal keys; `nbytes` is what a request adds to a batch."""

    key: Hashable
    nbytes: int


class Batchable(Protocol):
    """A request that may run with others. `batch_key` and `prepare` are for the computing thread."""

    neurons: Results | None

    @property
    def nbytes(self) -> int:
        """Least size of its tensors, known before they are decoded."""

    @property
    def batch_key(self) -> BatchKey | None:
        """None for a request that runs alone."""

    @property
    def timings(self) -> Timings: ...

    def prepare(self) -> Computation:
        """Decode and check the request."""


@dataclass(frozen=True)
class Batcher:
    """Puts batches together, and computes them.

    Attributes:
        max_requests: in a batch; 1 combines nothing.
        max_bytes: bound on the sum of the sizes of a batch's requests.
        delay: seconds that a request waits for compatible ones, from its submission on, while nothing else waits.
    """

    max_requests: int
    max_bytes: int
    delay: float = 0.0

    def has_room(self, batch: Sequence[Slot]) -> bool:
        """True if more requests may join the batch."""
        if len(batch) >= self.max_requests:
            return False
        head = self._key(batch[0])
        return head is not None and self._room(batch) > 0

    def join(self, batch: Sequence[Slot], queued: Sequence[Slot]) -> list[Slot]:
        """The queued requests that are compatible with the batch and fit into it."""
        head = self._key(batch[0])
        if head is None:  # it was withdrawn meanwhile
            return []
        room, places = self._room(batch), self.max_requests - len(batch)
        joining: list[Slot] = []
        passed: list[tuple[Slot, int]] = []  # with the number of those that had joined before
        for slot in queued:
            if places <= 0:
                break
            key = self._key(slot)
            if key is not None and key.key == head.key and key.nbytes <= room:
                joining.append(slot)
                room -= key.nbytes
                places -= 1
            else:
                passed.append((slot, len(joining)))
                places = min(places, self.max_requests - slot.overtaken)
        for slot, before in passed:
            slot.overtaken += len(joining) - before
        return joining

    def run(self, batch: Sequence[Slot]) -> None:
        """Compute the neurons of all requests at once."""
        compute_ahead([slot.member for slot in batch])

    def _room(self, batch: Sequence[Slot]) -> int:
        return self.max_bytes - sum(key.nbytes for key in map(self._key, batch) if key is not None)

    def _key(self, slot: Slot) -> BatchKey | None:
        member: Batchable | None = slot.member
        return None if member is None or member.nbytes > self.max_bytes else member.batch_key


def batch_key(method: Method, message: Message, device: torch.device) -> BatchKey | None:
    """Key that compatible requests have in common; None for a request that is computed alone.

    Compatible are requests whose parameters are spelled alike, and whose tensors agree in name, dtype and shape up to
    the outermost axis. Computed alone are those with that axis as time; with parameters that are tensors, or whose
    gradients are wanted, since those are sums over the batch; with a state that is wanted, whose first axis is that of
    its variables; and all of BPTT, whose loop is PyTorch's own. Nothing is checked here: each request is, by itself,
    before it is computed.
    """
    params, tensors = message.params, message.tensors
    traces = [tensors[name] for name in _TRACES if name in tensors]
    if method == "bptt" or params.get("wrt") or len(traces) != 1 or _has_tensor_parameters(params):
        return None
    if "state" in _listed(params.get("return")):
        return None
    if not tensors.keys() <= {*_TRACES, *_LOSSES, "weight"} or ("weight" in tensors) != ("spikes" in tensors):
        return None
    shape, time_dim = traces[0].shape, params.get("time_dim", 1)
    if type(time_dim) is not int or time_dim not in range(-len(shape), len(shape)) or time_dim % len(shape) == 0:
        return None
    if device.type == "cuda" and shape[time_dim] >= LONG_TIME:
        return None
    described = tuple((name, tensor.dtype, _inner(name, tensor)) for name, tensor in sorted(tensors.items()))
    # As text, in which 1, 1.0 and True differ, and 0.0 and -0.0.
    return BatchKey((method, repr(params), described), _joined_bytes(traces[0], tensors))


def compute_ahead(requests: Sequence[Batchable]) -> None:
    """Compute at once what the neurons of compatible requests do; `run` of each does the rest.

    A request that is refused is left out, and if memory does not suffice for all, every request is: `run` then computes
    it alone, or says what is wrong with it.
    """
    ready: list[tuple[Batchable, Computation]] = []
    for request in requests:
        try:
            ready.append((request, request.prepare()))
        except (ServiceError, WireError):
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
    if len(ready) < 2:
        return
    for request, _ in ready:  # until now each waited for the decoding of the others, too
        request.timings.begin()
    began = time.monotonic()
    try:
        with torch.no_grad():
            computed = compute_together([computation for _, computation in ready])
    except ServiceError:  # about parameters that all of them have
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("no memory for %d requests at once: %s; they are computed one by one", len(ready), error)
        return
    seconds = time.monotonic() - began
    for (request, _), neurons in zip(ready, computed, strict=True):
        request.neurons = neurons
        request.timings.computed_together(len(ready) - 1, seconds)


def compute_together(computations: Sequence[Computation]) -> list[Results]:
    """Compute the neurons of compatible computations by one call.

    Every result has memory of its own, as it has alone: it does not keep that of the others alive, and it is not summed
    in another order because of its address.
    """
    first = computations[0]
    traces = [computation.source.trace() for computation in computations]
    sizes = [trace.shape[0] for trace in traces]
    together = first.neuron_results(torch.cat(traces), _joined_loss([computation.loss for computation in computations]))
    separate = {name: [part.clone() for part in tensor.split(sizes)] for name, tensor in together.items()}
    return [{name: parts[index] for name, parts in separate.items()} for index in range(len(computations))]


def _joined_loss(losses: Sequence[LossGradients]) -> LossGradients:
    def joined(gradients: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        given = [gradient for gradient in gradients if gradient is not None]
        return torch.cat(given) if given else None

    first = losses[0]
    output, membrane = joined([loss.output for loss in losses]), joined([loss.membrane for loss in losses])
    return LossGradients(output, membrane, first.filter_alpha, first.time_dim)


def _listed(value: Any) -> Sequence[Any]:
    """The elements of a list; nothing of what is none."""
    return value if isinstance(value, list) else ()


def _has_tensor_parameters(params: Mapping[str, Any]) -> bool:
    neuron = params.get("neuron")
    return not isinstance(neuron, dict) or any(
        isinstance(value, dict) and "tensor" in value for value in neuron.values()
    )


def _inner(name: str, tensor: Tensor) -> tuple[int, ...]:
    return tensor.shape if name == "weight" else tensor.shape[1:]


def _joined_bytes(trace: Tensor, tensors: Mapping[str, Tensor]) -> int:
    """Size of what is concatenated: the trace, which may be a product yet to be made, and the losses."""
    weight = tensors.get("weight")
    if weight is None:
        count, itemsize = trace.size, DTYPES[trace.dtype].itemsize
    else:
        count, itemsize = math.prod((*trace.shape[:-1], *weight.shape[:1])), DTYPES[weight.dtype].itemsize
    return count * itemsize * (1 + sum(name in tensors for name in _LOSSES))
