"""Recurrent connections around a neuron layer: its spikes go back into its input one step later."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exodus_core import arguments, ops
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.network.recurrent import continued_recurrent_lif
from exodus_core.nn.coupled import CoupledNeuron
from exodus_core.nn.lif import LIF
from exodus_core.nn.stateful import StatefulNeuron
from exodus_core.nn.steps import check_single_steps
from exodus_core.nn.synapses import Linear
from exodus_core.pieces.carried import State


class Recurrent(torch.nn.Module):
    """A neuron layer whose spikes are fed back: its input is x[t] + synapse(s[t-1]) instead of x[t].

    LIF, IF, CubaLIF and ALIF neurons, (batch, time, n), with a torch.nn.Linear or `Linear` run in one loop forward and
    one backward, with products of the weight between; all else runs in a plain loop that autograd differentiates, with
    equal results. method "slayer" drops the reset, not the synapse, from the gradient. float16 and bfloat16 are
    computed in float32, also under autocast; a synapse that is no Linear computes in the dtype of its parameters.

    Hooks on the neuron are not called; hook this layer instead.

    The state is the neuron's: `Recurrent(LIF(0.9, stateful=True), ...)` goes on where the last call ended, and
    `exodus_core.nn.reset` and `detach` find it there. In a `TimeCheckpoint` it is carried from piece to piece.

    Args:
        neuron: LIF, IF, CubaLIF, ALIF or another stateful layer with spikes, with its time_dim, stateful and
            return_membrane. The plain loop is taken with return_membrane.
        synapse: takes the spikes of a step, (batch, neurons...), and returns a current of the same shape: a Linear, a
            convolution, any module of single steps. At rest it sees zeros, so that its bias counts from the first step.

    Raises:
        ArgumentTypeError, ArgumentError: the neuron is SRM, whose state is all its past, ExpLeak, which has no spikes,
            or no neuron; the synapse has neurons or another part that takes time itself. In the call: the synapse does
            not return the shape of a step; x has no batch, time and neurons; what the neuron raises.
    """

    def __init__(self, neuron: torch.nn.Module, synapse: torch.nn.Module) -> None:
        super().__init__()
        if not isinstance(neuron, StatefulNeuron) or not neuron.fires:
            got = type(neuron).__name__
            raise ArgumentTypeError("neuron", "a stateful layer of exodus_core.nn with spikes, such as LIF or IF", got)
        check_single_steps("synapse", synapse)
        self.neuron = neuron
        self.synapse = synapse

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Results of the neuron for the input current x and its own spikes."""
        neuron = self.neuron
        neuron._check_steps(x)
        time_dim = arguments.check_signal("x", x, neuron.time_dim)
        if x.dim() < 3:
            raise ArgumentError("x", "of shape (batch, time, neurons...)", tuple(x.shape))
        results: tuple[Tensor, ...]
        if neuron._carries():
            results = neuron._carried(x, lambda state, time_dim: self._continued(x, state, time_dim))
        else:
            results, _ = self._continued(x, None, time_dim)
        return results if getattr(neuron, "return_membrane", False) else results[0]

    def _continued(self, x: Tensor, state: State | None, time_dim: int) -> tuple[tuple[Tensor, ...], State | None]:
        """The results for x from a state on, and the state after it."""
        if x.shape[time_dim] == 0:
            return self.neuron._continued(x, state, time_dim)
        steps = x.movedim(time_dim, 1)
        dense = _is_dense(self.neuron, self.synapse, steps)
        results, after = self._dense(steps, state) if dense else self._loop(steps, state)
        return tuple(result.movedim(1, time_dim) for result in results), after

    def _dense(self, x: Tensor, state: State | None) -> tuple[tuple[Tensor, ...], State | None]:
        """The spikes for x, shape (batch, time, n), and the state after it."""
        neuron: Any = self.neuron
        synapse: Any = self.synapse
        dtype = ops.compute_dtype(x.dtype)
        current = x if synapse.bias is None else x.to(dtype) + synapse.bias.to(dtype)
        spikes, after = continued_recurrent_lif(current, synapse.weight, neuron.alpha, state, **neuron._options())
        return (spikes.to(x.dtype),), after

    def _loop(self, x: Tensor, state: State | None) -> tuple[tuple[Tensor, ...], State | None]:
        """The definition: one step after the other, x of shape (batch, time, neurons...)."""
        dtype = ops.compute_dtype(x.dtype)
        weight = next((p for p in self.synapse.parameters() if p.is_floating_point()), None)
        narrow = dtype if weight is None else weight.dtype
        outputs: list[tuple[Tensor, ...]] = []
        if isinstance(self.synapse, torch.nn.Linear) and self.synapse.in_features != x.shape[-1]:
            expected = f"one that takes the spikes of a step, {(x.shape[0], *x.shape[2:])}"
            raise ArgumentError("synapse", expected, f"one of {self.synapse.in_features} features")
        with torch.autocast(x.device.type, enabled=False):
            first = x[:, 0].to(dtype)
            spikes = torch.zeros_like(first) if state is None else state[self.neuron.state_names.index("spikes")]
            for x_t in x.to(dtype).unbind(1):
                current = self.synapse(spikes.to(narrow))
                if not isinstance(current, Tensor) or current.shape != x_t.shape:
                    got = tuple(current.shape) if isinstance(current, Tensor) else type(current).__name__
                    raise ArgumentError("synapse", f"one that returns the shape of a step, {tuple(x_t.shape)}", got)
                step, state = self.neuron._continued((x_t + current.to(dtype)).unsqueeze(1), state, 1)
                outputs.append(step)
                spikes = step[0].squeeze(1)
        return tuple(torch.cat(parts, 1).to(x.dtype) for parts in zip(*outputs, strict=True)), state


def _is_dense(neuron: StatefulNeuron, synapse: torch.nn.Module, x: Tensor) -> bool:
    """True for what `continued_recurrent_lif` computes: LIF and its kin, a matrix, and spikes alone wanted."""
    return (
        isinstance(neuron, LIF | CoupledNeuron)
        and type(neuron).forward in (LIF.forward, CoupledNeuron.forward)
        and not neuron.return_membrane
        and type(synapse) in (torch.nn.Linear, Linear)
        and not (
            synapse._forward_hooks
            or synapse._forward_pre_hooks
            or synapse._backward_hooks
            or synapse._backward_pre_hooks
        )
        and x.dim() == 3
        and synapse.weight.shape == (x.shape[2], x.shape[2])
        and (torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active())
    )
