"""Rules of torch.vmap for the operators: the mapped axis becomes one of the batch, or of the neurons.

Samples of a batch share the parameters of a neuron, and neurons have their own: parameters that are mapped make the
axis one of neurons. Kernels given by taps are shared by all neurons; mapped taps, and gradients of taps, are computed
one after the other, and so are mapped parameters of neurons with coupled variables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from exodus_core import _library  # noqa: F401  (registers the operators)
from exodus_core.ops import COUPLED_STATES

# Arguments and results of operators by what the mapped axis is in them. The last argument of each is time_dim.
_SIGNAL, _STATE, _STATES, _PARAMETER, _TAPS, _LANES, _OTHER = range(7)
_LIF = [*[_OTHER] * 5, *[_PARAMETER] * 4, _STATE, _STATE]
_KERNEL = [_TAPS, *[_OTHER] * 4, _PARAMETER]  # with the threshold, and thresholds
_KINDS: dict[str, tuple[list[int], list[int]]] = {
    "lif_forward": ([_SIGNAL, *_LIF], [_SIGNAL, _SIGNAL]),
    "lif_backward": ([*[_SIGNAL] * 3, *_LIF], [_SIGNAL, _LANES]),
    "srm_forward": ([_SIGNAL, *_KERNEL], [_SIGNAL, _SIGNAL]),
    "srm_backward": ([*[_SIGNAL] * 3, *_KERNEL], [_SIGNAL, _LANES]),
    "filter": ([_SIGNAL, _TAPS], [_SIGNAL]),
    "coupled_forward": ([_SIGNAL, _OTHER, _TAPS, _STATES], [*[_SIGNAL] * 5, _LANES]),
    "coupled_traces": ([_SIGNAL, _OTHER, _TAPS, _STATES], [_SIGNAL] * 3),
    "coupled_backward": ([*[_SIGNAL] * 6, _STATES, _OTHER, _TAPS, _STATES], [_SIGNAL, _LANES]),
}


def _folded(name: str, size: int, dims: Sequence[Any], arguments: Sequence[Any]) -> Any:
    """The results of an operator whose arguments have a mapped axis of `size`, and where that is in the results."""
    operator = getattr(torch.ops.exodus, name).default
    kinds, results = _KINDS[name]
    kinds = [*kinds, *[_OTHER] * (len(arguments) - len(kinds))]
    time_dim = arguments[-1]
    first, first_dim = arguments[0], dims[0]
    shape = list(first.shape if first_dim is None else first.movedim(first_dim, 0).shape[1:])
    inner = torch.Size(shape[time_dim + 1 :]).numel()
    of_neurons = any(kind == _PARAMETER and dim is not None for kind, dim in zip(kinds, dims, strict=True))
    place = {_SIGNAL: time_dim + 1 if of_neurons else 0, _STATE: time_dim if of_neurons else 0}

    def with_axis(tensor: Tensor, dim: int | None, at: int) -> Tensor:
        front = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return front.movedim(0, at)

    folded: list[Any] = []
    for kind, dim, value in zip(kinds, dims, arguments, strict=True):
        if value is None or kind in (_OTHER, _TAPS):
            folded.append(value)
        elif kind == _STATES:  # (variables, lanes)
            folded.append(with_axis(value, dim, 1).reshape(len(COUPLED_STATES), -1).contiguous())
        elif kind in place:
            folded.append(with_axis(value, dim, place[kind]).contiguous())
        elif of_neurons and (dim is not None or value.numel() > 1):
            lanes = with_axis(value, dim, 0).reshape(size, -1)
            folded.append(lanes.expand(size, inner).reshape(-1).contiguous())
        else:
            folded.append(value)
    folded[-1] = time_dim if of_neurons else time_dim + 1
    found = operator(*folded)
    outputs, out_dims = [], []
    for kind, output in zip(results, [found] if isinstance(found, Tensor) else found, strict=True):
        if kind == _SIGNAL:
            traced = output.dim() > 1 or output.numel() > 0
            outputs.append(output if traced else output.new_empty((size, 0)))
            out_dims.append(place[kind] if traced else 0)
            continue
        *rows, outer = output.shape[:-1]
        split = (outer, size, inner) if of_neurons else (size, outer // size, inner)
        outputs.append(output.reshape(*rows, *split))
        out_dims.append(len(rows) + (1 if of_neurons else 0))
    return (outputs[0], out_dims[0]) if isinstance(found, Tensor) else (tuple(outputs), tuple(out_dims))


def _one_by_one(name: str, size: int, dims: Sequence[Any], arguments: Sequence[Any]) -> Any:
    """The results of an operator, computed for each index of the mapped axis by itself."""
    operator = getattr(torch.ops.exodus, name).default
    found = [
        operator(
            *(
                value.select(dim, i).contiguous() if isinstance(value, Tensor) and dim is not None else value
                for dim, value in zip(dims, arguments, strict=True)
            )
        )
        for i in range(size)
    ]
    if isinstance(found[0], Tensor):
        return torch.stack(found), 0
    return tuple(torch.stack(part) for part in zip(*found, strict=True)), (0,) * len(found[0])


def _rule(name: str) -> Callable[..., Any]:
    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
        kinds = _KINDS[name][0] if name in _KINDS else []
        mapped_taps = any(kind == _TAPS and dim is not None for kind, dim in zip(kinds, in_dims, strict=False))
        how = _folded if name in _KINDS and not mapped_taps else _one_by_one
        return how(name, info.batch_size, in_dims, arguments)

    return rule


for _name in (*_KINDS, "taps_gradient"):
    torch.library.register_vmap(f"exodus::{_name}", _rule(_name))
