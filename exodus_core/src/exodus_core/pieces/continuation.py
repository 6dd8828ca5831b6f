"""LIF neurons that go on from the state in which an earlier call ended: its last membrane and spikes, and more."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from exodus_core import coupled, functional
from exodus_core.arguments import LifOptions, NeuronOptions, is_coupled
from exodus_core.coupled import CoupledOptions
from exodus_core.ops import COUPLED_STATES, compute_dtype
from exodus_core.pieces.carried import State
from exodus_core.recomputation import refuse_recomputation

INSTEAD = "pass the state on as tensors, to and from exodus_core.lif"


def continued_lif(
    x: Tensor, alpha: float | Tensor, state: State | None, time_dim: int, options: NeuronOptions | CoupledOptions
) -> tuple[tuple[Tensor, Tensor], State | None]:
    """Spikes and membrane from a state on, or from rest, and the state that they end in; the same if there is no step.

    The options are those of `exodus_core.lif`, or of `exodus_core.coupled.neurons`, whose state has more parts.

    The state is a copy, since the caller may change the trace; gradients reach back. That of a half type must not be
    rounded between calls: the whole call is in the precision of the state.
    """
    if is_coupled(**options):
        return _continued_coupled(x, alpha, state, time_dim, options)  # type: ignore[arg-type]
    membrane, spikes = (None, None) if state is None else state
    given = cast("LifOptions", options | {"initial_membrane": membrane, "initial_spikes": spikes, "time_dim": time_dim})
    current = x.to(compute_dtype(x.dtype))
    if x.shape[time_dim] == 0:
        fired, trace = functional.lif(current, alpha, **given)
    elif torch.compiler.is_compiling():
        fired, trace = functional.lif(current, alpha, **given)
        state = _compiled_copy(trace.select(time_dim, -1)), _compiled_copy(fired.select(time_dim, -1))
    else:
        fired, trace, *last = functional.lif_with_last(current, alpha, **given)
        state = last[0], last[1]
    return (fired.to(x.dtype), trace.to(x.dtype)), state


def _continued_coupled(
    x: Tensor, alpha: float | Tensor, state: State | None, time_dim: int, options: CoupledOptions
) -> tuple[tuple[Tensor, Tensor], State | None]:
    """As `continued_lif`, of neurons whose state has the parts of COUPLED_STATES."""
    given: CoupledOptions = {**options, "time_dim": time_dim}
    if state is not None:
        given |= {f"initial_{name}": part for name, part in zip(COUPLED_STATES, state, strict=True)}  # type: ignore[typeddict-item]
    spikes, membrane, last = coupled.neurons(x.to(compute_dtype(x.dtype)), alpha, **given)
    if x.shape[time_dim]:
        parts = last.view(len(COUPLED_STATES), *x.shape[:time_dim], *x.shape[time_dim + 1 :]).unbind()
        state = tuple(_compiled_copy(part) for part in parts) if torch.compiler.is_compiling() else parts
    return (spikes.to(x.dtype), membrane.to(x.dtype)), state


def kept(part: Tensor) -> Tensor:
    """A copy, which in a compiled graph is never computed again."""
    return _compiled_copy(part) if torch.compiler.is_compiling() else part.clone()


@torch.library.custom_op("exodus::kept_state", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _compiled_copy(part: Tensor) -> Tensor:
    refuse_recomputation("a stateful layer", INSTEAD)
    return part.clone(memory_format=torch.contiguous_format)


@_compiled_copy.register_fake
def _(part: Tensor) -> Tensor:
    return torch.empty_like(part, memory_format=torch.contiguous_format)


_compiled_copy.register_autograd(lambda ctx, grad: grad)
