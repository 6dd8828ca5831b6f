"""A layer of neurons over the whole time axis, from the constants that a library's module has now."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exodus_core import functional
from exodus_core.accelerate.gains import times, widens
from exodus_core.accelerate.refusal import NotMappedError
from exodus_core.accelerate.trace_adjoint import Derivative, TraceLif, TraceRule, surrogate_derivative
from exodus_core.coupled import neurons
from exodus_core.network.recurrent import continued_recurrent_lif
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate

Value = float | Tensor


@dataclass(frozen=True)
class Neuron:
    """Neurons of a layer, in the terms of `exodus_core.lif`.

    Args:
        alpha, reset, reset_by, decay_reset, max_spikes: as in `exodus_core.lif`.
        threshold: None for a leaky integrator, whose output is the membrane.
        strict: spikes where u > threshold, not u >= threshold.
        detach_reset: no gradient through the spikes of the reset.
        surrogate: f', one of `exodus_core.surrogate`, or an elementwise function of the membrane and the threshold.
        floor: lower bound of the membrane after the reset.
        gain: factor on what drives the membrane, or None.
        offset: added to what drives the membrane, before the gain, or None.
        synapse_alpha: decay of the synaptic current, or None: i[t] = synapse_alpha i[t-1] + synapse_gain x[t], which
            drives the membrane in the same step.
        synapse_gain: factor on the input of the synapse, or None.
        recurrent_weight, recurrent_bias: of x[t] + W s[t-1] + b instead of x[t].
        bias_at_rest: b is added in the first step too.
        refractory: steps after a spike in which the membrane stays where the reset has put it.
        synapse_delayed: the membrane sees the current of the step before.
        adapt_alpha, adapt_by, adapt_threshold: an adaptation variable, as in `exodus_core.alif`, or None.
        shift: the membrane that rest and the hard reset are at: the library's membrane is u + shift.
    """

    alpha: Value
    threshold: Value | None = None
    reset: str = "none"
    reset_by: Value | None = None
    decay_reset: bool = True
    strict: bool = False
    detach_reset: bool = False
    surrogate: Surrogate | Derivative = DEFAULT_SURROGATE
    max_spikes: int = 1
    floor: Tensor | None = None
    gain: Value | None = None
    offset: Value | None = None
    synapse_alpha: Value | None = None
    synapse_gain: Value | None = None
    recurrent_weight: Tensor | None = None
    recurrent_bias: Tensor | None = None
    bias_at_rest: bool = True
    refractory: int = 0
    synapse_delayed: bool = False
    adapt_alpha: Value | None = None
    adapt_by: Value = 1.0
    adapt_threshold: Value = 0.0
    shift: Value = 0.0

    @property
    def subtracted(self) -> Value:
        """The amount that a spike subtracts."""
        amount = self.threshold if self.reset_by is None else self.reset_by
        assert amount is not None
        return amount

    def after_reset(self, membrane: Tensor, spikes: Tensor) -> Tensor:
        """The membrane after the reset and the lower bound; gradients pass as the library lets them."""
        fired = spikes.detach() if self.detach_reset else spikes
        if self.reset == "subtract":
            held = membrane - self.subtracted * fired
        elif self.reset == "zero":
            held = membrane * (1 - fired.clamp(max=1))
        else:
            held = membrane
        return held if self.floor is None else torch.relu(held - self.floor) + self.floor


class Ran(NamedTuple):
    """Results of a layer: over time the spikes (None for an integrator), the membrane before the reset (None if it
    was not asked for) and the current (None without a synapse); and of the last step the same three."""

    spikes: Tensor | None
    membrane: Tensor | None
    current: Tensor | None
    last_membrane: Tensor
    last_spikes: Tensor | None
    last_current: Tensor | None
    last_adaptation: Tensor | None = None


def run(
    neuron: Neuron,
    x: Tensor,
    time_dim: int,
    *,
    membrane: Tensor | None = None,
    spikes: Tensor | None = None,
    current: Tensor | None = None,
    adaptation: Tensor | None = None,
    trace: bool = False,
) -> Ran:
    """Runs a layer over all steps of x.

    Args:
        x: input, shape (outer..., time, inner...).
        membrane, spikes, current, adaptation: the state before the first step, of the shape of x without time; None: at
            rest.
        trace: give the membrane over time.

    Raises:
        NotMappedError: as `check`; or the kernels do not take the dtype of x, or constants of its shape.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise NotMappedError(f"gets {x.dtype}, in which the library rounds in each step; float32 and float64 can be")
    if x.shape[time_dim] == 0:
        raise ValueError("the input must have at least one step, got none")
    check(neuron, trace)
    scale = _current_scale(neuron, x, time_dim, trace)
    if scale is not None:
        gain = scale if neuron.gain is None else neuron.gain * scale
        scaled = None if current is None else current / scale
        state: dict[str, Any] = {"membrane": membrane, "spikes": spikes, "current": scaled, "adaptation": adaptation}
        ran = run(replace(neuron, synapse_gain=None, gain=gain), x, time_dim, **state)
        assert ran.last_current is not None
        return ran._replace(last_current=ran.last_current * scale)
    currents = last_current = None
    if neuron.recurrent_weight is not None:
        return _recurrent(neuron, x, time_dim, membrane, spikes, current, trace)
    if _is_coupled(neuron, trace):
        return _coupled(neuron, x, time_dim, membrane, spikes, current, adaptation, trace)
    if neuron.synapse_alpha is not None:
        driven = _times(x, neuron.synapse_gain, time_dim)
        x, last_current = _integrated(driven, neuron.synapse_alpha, current, time_dim)
        currents = x
    x = _plus(x, neuron.offset, time_dim)
    if neuron.threshold is None:
        driven = _times(x, neuron.gain, time_dim)
        membranes, last = _integrated(driven, neuron.alpha, membrane, time_dim)
        return Ran(None, membranes, currents, last, None, last_current)
    x = _times(x, neuron.gain, time_dim)
    fired, membranes, last, last_spikes = _fired(neuron, x, time_dim, membrane, spikes)
    return Ran(fired, membranes, currents, last, last_spikes, last_current)


def _current_scale(neuron: Neuron, x: Tensor, time_dim: int, trace: bool) -> Value | None:
    """The synapse_gain, where the kernels can multiply by it instead of a product over all steps, or None.

    With i = synapse_gain j, j[t] = synapse_alpha j[t-1] + x[t] drives the membrane by gain synapse_gain j. The state is
    divided by the gain, which must be known not to be zero; and the kernels see j alone, not i over time.
    """
    scale = neuron.synapse_gain
    in_kernel = neuron.recurrent_weight is not None or _is_coupled(neuron, trace)
    if scale is None or trace or not in_kernel:
        return None
    if not isinstance(scale, Tensor):
        return scale if abs(scale) >= torch.finfo(x.dtype).tiny else None
    _across(scale, x, time_dim)
    # Not where reading it waits for a device, or a transform hides its values.
    if not scale.is_cpu or torch._C._are_functorch_transforms_active() or widens(x, scale):
        return None
    return None if bool((scale.detach().abs() < torch.finfo(x.dtype).tiny).any()) else scale


def _times(x: Tensor, factor: Value | None, time_dim: int) -> Tensor:
    if factor is None:
        return x
    factor = _across(factor, x, time_dim)
    return once_if_constant(x, time_dim, lambda step: times(step, factor))


def _plus(x: Tensor, offset: Value | None, time_dim: int) -> Tensor:
    if offset is None:
        return x
    offset = _across(offset, x, time_dim)
    return once_if_constant(x, time_dim, lambda step: step + offset)


def expanded(step: Tensor, time_dim: int, steps: int) -> Tensor:
    """A tensor with one step, expanded to so many, of which `once_if_constant` knows that it is."""
    found = step.expand(*(steps if d == time_dim else size for d, size in enumerate(step.shape)))
    found.one_step = step  # type: ignore[attr-defined]
    return found


def once_if_constant(x: Tensor, time_dim: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """function(x), for one that computes each step by itself; of one step alone where x is expanded over them.

    Not where the gradient of x itself is wanted, which differs from step to step; that of what `expanded` has made goes
    to its one step.
    """
    if not is_constant(x, time_dim):
        return function(x)
    one: Tensor = getattr(x, "one_step", x.narrow(time_dim, 0, 1))
    return expanded(function(one), time_dim, x.shape[time_dim])


def is_constant(x: Tensor, time_dim: int = 0) -> bool:
    """True for an input of which `once_if_constant` computes one step."""
    if torch.compiler.is_compiling():
        return False
    return hasattr(x, "one_step") or (x.shape[time_dim] > 1 and x.stride(time_dim) == 0 and not x.requires_grad)


def _one_step(x: Tensor) -> Tensor | None:
    """The step that `expanded` has made x of, to take its gradient; None if somebody waits for that of x itself."""
    if torch.compiler.is_compiling() or x.retains_grad or x._backward_hooks:
        return None
    return getattr(x, "one_step", None)


def _across(value: Value, x: Tensor, time_dim: int) -> Value:
    """A constant per neuron that multiplies x; it broadcasts over the dimensions behind time."""
    if isinstance(value, Tensor) and value.dim() > x.dim() - time_dim - 1:
        raise NotMappedError(f"has constants of shape {tuple(value.shape)}, which do not belong to single neurons")
    return value


def _integrated(x: Tensor, alpha: Value, initial: Tensor | None, time_dim: int) -> tuple[Tensor, Tensor]:
    """u[t] = alpha u[t-1] + x[t] over time, and its last step."""
    _, membrane, last, _ = functional.lif_with_last(
        x,
        alpha,
        one_step=_one_step(x),
        threshold=math.inf,
        reset="none",
        initial_membrane=initial,
        time_dim=time_dim,
    )
    return membrane, last


def strictly_above(threshold: Value, dtype: torch.dtype) -> Value:
    """The least number above a threshold: u >= it where u > threshold. Gradients pass to the threshold."""
    exact = torch.as_tensor(threshold, dtype=dtype)
    up = torch.nextafter(exact.detach(), torch.full_like(exact, math.inf))
    if not isinstance(threshold, Tensor):
        return float(up)
    return up if not threshold.requires_grad else exact + (up - exact).detach()


def _options(neuron: Neuron, dtype: torch.dtype) -> dict[str, Any]:
    threshold = neuron.threshold
    assert threshold is not None
    options: dict[str, Any] = {"threshold": threshold, "reset": neuron.reset, "max_spikes": neuron.max_spikes}
    if neuron.strict:
        options["threshold"] = strictly_above(threshold, dtype)
    if neuron.reset == "subtract":
        options["decay_reset"] = neuron.decay_reset
        tied = neuron.reset_by is None and not neuron.strict
        options["reset_by"] = None if tied else threshold if neuron.reset_by is None else neuron.reset_by
        # SLAYER lets no gradient through the reset; of a subtraction, nothing else goes through it.
        options["method"] = "slayer" if neuron.detach_reset else "exodus"
    if neuron.floor is not None:
        options |= {"min_membrane": neuron.floor, "bound_after_reset": True}
    return options


def has_kernel(neuron: Neuron) -> bool:
    """True if a kernel has the backward rule of these neurons; others take `TraceLif`."""
    hard = neuron.reset == "zero" and (neuron.max_spikes > 1 or (neuron.floor is not None and neuron.detach_reset))
    return isinstance(neuron.surrogate, Surrogate) and not hard


def _is_coupled(neuron: Neuron, trace: bool = False) -> bool:
    """True for neurons that the operators of coupled variables compute, in one pass."""
    return has_kernel(neuron) and neuron.floor is None and _needs_coupled(neuron, trace)


def _needs_coupled(neuron: Neuron, trace: bool = False) -> bool:
    """True for neurons that the operators of one variable do not compute, or not in one pass."""
    if neuron.threshold is None:
        return False
    if neuron.refractory or neuron.synapse_delayed or neuron.adapt_alpha is not None:
        return True
    if neuron.reset == "zero" and neuron.detach_reset:  # the operators of one variable have no such rule
        return True
    # They do not give the current over time, and see it as it is.
    return neuron.synapse_alpha is not None and not trace and neuron.offset is None


def check(neuron: Neuron, trace: bool = False) -> None:
    """Refuses a layer that `run` does not compute, with or without its membrane over time.

    Raises:
        NotMappedError: the reason.
    """
    synapse = neuron.synapse_alpha is not None
    if neuron.recurrent_weight is not None:
        if not has_kernel(neuron) or neuron.floor is not None or neuron.offset is not None:
            raise NotMappedError(
                "has recurrent connections and a surrogate, a reset or a bound that their kernels do not have"
            )
        if trace and (synapse or neuron.reset == "zero" or (neuron.reset == "subtract" and neuron.decay_reset)):
            raise NotMappedError(
                "gives its membrane over time and has recurrent connections with a synapse or a reset before the decay"
            )
    elif _is_coupled(neuron, trace):
        if synapse and neuron.offset is not None:
            raise NotMappedError("has a synapse and a membrane that rests elsewhere than a spike resets it to")
        if trace and neuron.adapt_alpha is not None:
            raise NotMappedError("gives its state over time, and has an adaptation, which the kernels give at the end")
    elif neuron.refractory or neuron.synapse_delayed or neuron.adapt_alpha is not None:
        raise NotMappedError("has a surrogate or a bound that the kernels of its neurons do not have")


def _coupled(
    neuron: Neuron,
    x: Tensor,
    time_dim: int,
    membrane: Tensor | None,
    spikes: Tensor | None,
    current: Tensor | None,
    adaptation: Tensor | None,
    trace: bool,
) -> Ran:
    options = _options(neuron, x.dtype)
    currents: Tensor | None = None
    options |= {"refractory": neuron.refractory, "surrogate": neuron.surrogate, "time_dim": time_dim}
    options["detach_reset"] = neuron.detach_reset
    options["method"] = "exodus"
    if neuron.synapse_alpha is None:
        x = _times(_plus(x, neuron.offset, time_dim), neuron.gain, time_dim)
    else:
        x = _times(x, neuron.synapse_gain, time_dim)
        options |= {"synapse_alpha": neuron.synapse_alpha, "synapse_delayed": neuron.synapse_delayed}
        options["synapse_gain"] = 1.0 if neuron.gain is None else neuron.gain
        if trace:  # the operators give it at the last step alone
            currents, _ = _integrated(x, neuron.synapse_alpha, current, time_dim)
    if neuron.adapt_alpha is not None:
        options |= {name: getattr(neuron, name) for name in ("adapt_alpha", "adapt_by", "adapt_threshold")}
    fired, membranes, last = neurons(
        x,
        neuron.alpha,
        initial_membrane=membrane,
        initial_spikes=spikes,
        initial_current=current,
        initial_adaptation=adaptation,
        **options,
    )
    lanes = x.select(time_dim, 0).shape
    # No views: libraries reset and detach their states in place.
    u, s, i, w = (last[row].view(lanes).to(x.dtype, copy=True) for row in range(4))
    synapse = neuron.synapse_alpha is not None
    adapted = w if neuron.adapt_alpha is not None else None
    return Ran(fired, membranes, currents, u, s, i if synapse else None, adapted)


def _fired(
    neuron: Neuron, x: Tensor, time_dim: int, membrane: Tensor | None, spikes: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spikes and membranes over time, and those of the last step."""
    if has_kernel(neuron):
        assert isinstance(neuron.surrogate, Surrogate)
        fired, membranes, last, last_spikes = functional.lif_with_last(
            x,
            neuron.alpha,
            one_step=_one_step(x),
            surrogate=neuron.surrogate,
            initial_membrane=membrane,
            initial_spikes=spikes,
            time_dim=time_dim,
            **_options(neuron, x.dtype),
        )
        return fired, membranes, last, last_spikes

    def tensor(value: Value | None) -> Tensor:
        return torch.as_tensor(0.0 if value is None else value, dtype=x.dtype, device=x.device)

    threshold = tensor(neuron.threshold)
    rule = TraceRule(
        neuron.reset,
        neuron.decay_reset,
        neuron.detach_reset,
        derivative_of(neuron.surrogate),
        neuron.max_spikes,
        strictly_above(threshold.detach(), x.dtype) if neuron.strict else None,
        None if neuron.floor is None else neuron.floor.detach().to(x.dtype),
        time_dim,
    )
    # One value per neuron and sample, for the rule that is written out.
    lanes = x.select(time_dim, 0)
    fired, membranes = TraceLif.apply(  # type: ignore[no-untyped-call]
        x.contiguous(),
        tensor(neuron.alpha),
        threshold,
        threshold if neuron.reset_by is None else tensor(neuron.reset_by),
        tensor(membrane).expand_as(lanes),
        tensor(spikes).expand_as(lanes),
        rule,
    )
    return fired, membranes, membranes.select(time_dim, -1).clone(), fired.select(time_dim, -1).clone()


def derivative_of(surrogate: Surrogate | Derivative) -> Derivative:
    """f' as a function of the membrane and the threshold."""
    if isinstance(surrogate, Surrogate):
        return surrogate_derivative(surrogate)
    return surrogate


def _recurrent(
    neuron: Neuron,
    x: Tensor,
    time_dim: int,
    membrane: Tensor | None,
    spikes: Tensor | None,
    current: Tensor | None,
    trace: bool,
) -> Ran:
    """Neurons with recurrent connections, whose spikes come back with the input of the next step."""
    weight, bias = neuron.recurrent_weight, neuron.recurrent_bias
    assert weight is not None
    x = x.movedim(time_dim, 1)
    if bias is not None:
        bias = bias.view(x.shape[2:])
        if neuron.bias_at_rest:
            x = x + bias
        else:
            later = torch.arange(x.shape[1], device=x.device) > 0
            x = x + bias * later.to(x.dtype).view(-1, *[1] * (x.dim() - 2))
    options: dict[str, Any] = {**_options(neuron, x.dtype), "surrogate": neuron.surrogate}
    synapse = neuron.synapse_alpha is not None
    into = neuron.synapse_gain if synapse else neuron.gain
    if into is not None:
        x = times(x, _across(into, x, 1))
        gain = torch.as_tensor(into, dtype=weight.dtype, device=weight.device)
        weight = weight * (gain.expand(x.shape[2:]).reshape(-1, 1) if gain.numel() > 1 else gain)
    coupled = _needs_coupled(neuron)
    if coupled:
        options |= {"detach_reset": neuron.detach_reset, "method": "exodus", "refractory": neuron.refractory}
    if synapse:
        options |= {"synapse_alpha": neuron.synapse_alpha, "synapse_delayed": neuron.synapse_delayed}
        options["synapse_gain"] = 1.0 if neuron.gain is None else neuron.gain
    state = None
    if membrane is not None or spikes is not None or current is not None:
        rest = torch.zeros_like(x[:, 0])
        parts = (membrane, spikes, current, None, None) if coupled else (membrane, spikes)
        state = tuple(rest if part is None else part.to(rest.dtype) for part in parts)
    fired, after = continued_recurrent_lif(x, weight, neuron.alpha, state, **options)
    membranes = None
    if trace:  # which is linear in the spikes, once they are known
        membranes = _recurrent_membrane(neuron, x, weight, fired, state).movedim(1, time_dim)
    # No views: libraries reset and detach their states in place.
    u, s, *others = (part.clone() for part in after)
    return Ran(fired.movedim(1, time_dim), membranes, None, u, s, others[0] if synapse else None)


def _recurrent_membrane(
    neuron: Neuron, x: Tensor, weight: Tensor, fired: Tensor, state: Sequence[Tensor] | None
) -> Tensor:
    first = torch.zeros_like(fired[:, :1]) if state is None else state[1].unsqueeze(1)
    earlier = torch.cat([first, fired[:, :-1]], 1)
    driven = x + (earlier.flatten(2) @ weight.t()).view_as(x)
    if neuron.reset == "subtract":
        driven = driven - (earlier.detach() if neuron.detach_reset else earlier) * neuron.subtracted
    return _integrated(driven, neuron.alpha, None if state is None else state[0], 1)[0]
