"""Gradients from a membrane trace: which of them are wanted, and those by autograd through the loop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from exodus_core import arguments, ops
from exodus_core.errors import ArgumentError, ArgumentTypeError

#: Arguments whose gradients are asked for, by name.
Values = Mapping[str, float | Tensor | None]


def check_trace(membrane: Tensor, grad_spikes: Tensor, grad_membrane: Tensor | None, time_dim: int) -> int:
    """Checks a trace and the gradients of the loss; returns time_dim counted from the front."""
    time_dim = arguments.check_signal("membrane", membrane, time_dim)
    arguments.check_like("grad_spikes", grad_spikes, "membrane", membrane)
    if grad_membrane is not None:
        arguments.check_like("grad_membrane", grad_membrane, "membrane", membrane)
    return time_dim


def wanted_names(wrt: Collection[str] | None, fields: Sequence[str], values: Values) -> list[str]:
    """The names in `wrt`, without that of the input, in the order of `fields`; of None those of tensors.

    Raises:
        ArgumentTypeError: wrt is no collection.
        ArgumentError: a name is unknown, or that of an argument which is None and no state.
    """
    if wrt is None:
        return [name for name in fields if isinstance(values.get(name), Tensor)]
    expected = f"names of {', '.join(fields)}"
    if not isinstance(wrt, Iterable):
        raise ArgumentTypeError("wrt", expected, wrt)
    wanted = [wrt] if isinstance(wrt, str) else list(wrt)
    unknown = {str(name) for name in wanted if name not in fields}
    if unknown:
        raise ArgumentError("wrt", expected, ", ".join(sorted(unknown)))
    found = [name for name in fields if name in wanted and name != "input"]
    for name in found:
        if values[name] is None and not name.startswith("initial_"):
            hint = "its gradient is part of the threshold's" if name == "reset_by" else ""
            raise ArgumentError("wrt", "names of parameters that are not None", name, hint)
    return found


def recordable(value: Any) -> Any:
    """A value that autograd may save: a copy of a tensor made in inference mode, anything else as it is."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _autograd(outputs: Sequence[Tensor], sources: Sequence[Tensor], grads: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients by sources; 0 where no output depends on one, as on the input of a step that is not seen yet."""
    pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
    if not pairs:
        return [torch.zeros_like(source) for source in sources]
    reached, received = zip(*pairs, strict=True)
    return torch.autograd.grad(reached, sources, received, allow_unused=True, materialize_grads=True)


def bptt_gradients(
    loop: Callable[..., tuple[Tensor, Tensor, Tensor]],
    membrane: Tensor,
    grad_spikes: Tensor,
    grad_membrane: Tensor | None,
    values: Values,
    wanted: Collection[str],
    options: Mapping[str, Any],
) -> dict[str, Tensor]:
    """The gradients by autograd through a loop, pinned to the trace (section 6 of docs/equations.md), by name."""
    dtype = ops.compute_dtype(membrane.dtype)
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {
            name: torch.as_tensor(0.0 if value is None else value, dtype=dtype, device=membrane.device)
            .detach()
            .clone()
            .requires_grad_()
            for name, value in values.items()
            if name in wanted
        }
        given = {"alpha": values["alpha"], **options, "method": "bptt", **leaves}
        x, spikes, looped = loop(membrane, **{name: recordable(value) for name, value in given.items()})
        outputs, grads = [spikes], [grad_spikes.to(dtype)]
        if grad_membrane is not None:
            outputs.append(looped)
            grads.append(grad_membrane.to(dtype))
        found = _autograd(outputs, [x, *leaves.values()], grads)
    by_name = {"input": found[0].to(membrane.dtype)}
    for name, gradient in zip(leaves, found[1:], strict=True):
        value = values[name]
        by_name[name] = gradient.to(value.dtype) if isinstance(value, Tensor) else gradient
    return by_name
