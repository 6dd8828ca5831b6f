"""Requests that are computed together: which are alike, and their one computation.

Neurons do not know of each other: every lane, which is one (outer, inner) index, is computed from its own inputs in its
own order. So requests may be laid behind each other along their outermost axis, and each finds in its part of the
result the bits that it would get alone. What sums over lanes, or multiplies matrices, stays with each request: norms,
and the products with weights.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from exodus_client.wire import DTYPES, Message, Tensor
from exodus_service.compute.queue import Likeness
from exodus_service.gradients.computation import Computation, Loss, Results
from exodus_service.gradients.params import Method

_TRACES = ("membrane", "input", "psp", "spikes")
_LOSSES = ("grad_output", "grad_membrane")

#: From so many steps on a GPU may choose another kernel for more lanes, with another rounding: kMinStepsForChunks in
#: exodus_core/csrc/cuda/dispatch.cuh.
LONG_TIME = 512


def likeness(method: Method, message: Message, device: torch.device) -> Likeness | None:
    """What requests have to have in common to be computed together; None for one that is computed alone.

    Alike are requests whose parameters are spelled alike, and whose tensors agree in name, dtype and shape up to the
    outermost axis. Alone are those where that axis is time; with parameters that are tensors, or whose gradients are
    wanted, since those are sums over the batch; and all of BPTT, whose loop is PyTorch's own. Nothing is checked here:
    each request is, by itself, before it is computed.
    """
    params, tensors = message.params, message.tensors
    traces = [tensors[name] for name in _TRACES if name in tensors]
    if method == "bptt" or params.get("wrt") or len(traces) != 1 or _has_tensor_parameters(params):
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
    return Likeness((method, repr(params), described), _joined_bytes(traces[0], tensors))


def compute_together(computations: Sequence[Computation]) -> list[Results]:
    """What the neurons of each compute, by one call for all; the computations are alike.

    Every result has memory of its own, as it has alone: it neither keeps that of the others, nor is it summed in
    another order for where it lies.
    """
    first = computations[0]
    traces = [computation.source.trace() for computation in computations]
    sizes = [trace.shape[0] for trace in traces]
    together = first.sweep(torch.cat(traces), _joined_loss([computation.loss for computation in computations]))
    separate = {name: [part.clone() for part in tensor.split(sizes)] for name, tensor in together.items()}
    return [{name: parts[index] for name, parts in separate.items()} for index in range(len(computations))]


def _joined_loss(losses: Sequence[Loss]) -> Loss:
    def joined(gradients: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        given = [gradient for gradient in gradients if gradient is not None]
        return torch.cat(given) if given else None

    first = losses[0]
    output, membrane = joined([loss.output for loss in losses]), joined([loss.membrane for loss in losses])
    return Loss(output, membrane, first.filter_alpha, first.time_dim)


def _has_tensor_parameters(params: Mapping[str, Any]) -> bool:
    neuron = params.get("neuron")
    return not isinstance(neuron, dict) or any(
        isinstance(value, dict) and "tensor" in value for value in neuron.values()
    )


def _inner(name: str, tensor: Tensor) -> tuple[int, ...]:
    return tensor.shape if name == "weight" else tensor.shape[1:]


def _joined_bytes(trace: Tensor, tensors: Mapping[str, Tensor]) -> int:
    """Size of what is laid behind each other: the trace, which may be a product yet to be made, and the losses."""
    weight = tensors.get("weight")
    if weight is None:
        count, itemsize = trace.size, DTYPES[trace.dtype].itemsize
    else:
        count, itemsize = math.prod((*trace.shape[:-1], *weight.shape[:1])), DTYPES[weight.dtype].itemsize
    return count * itemsize * (1 + sum(name in tensors for name in _LOSSES))
