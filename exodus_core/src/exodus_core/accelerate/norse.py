"""Neurons of norse 1.1: modules over time, (time, batch, ...) -> (output, state), and cells of one step.

Equations, from its `functional`: i = i + x, v = v + dt tau_mem_inv (v_leak - v + i), i = i - dt tau_syn_inv i, spikes
where v > v_th, v_reset where there was a spike. LSNN's threshold adapts, and it sees the current before x. The kernels
see v - v_reset and a reset to zero, or v - v_leak without a hard reset.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from exodus_core.accelerate.fused import Neuron, run
from exodus_core.accelerate.over_time import each_step
from exodus_core.accelerate.refusal import NotMappedError, holds_of_any, of_layer
from exodus_core.accelerate.trace_adjoint import elementwise_derivative
from exodus_core.surrogate import FastSigmoid, Gaussian, Surrogate, Tanh, Triangle

TESTED = ("1.1.0",)
OVER_TIME = ("LIF", "LI", "IAF", "LSNN", "LIFRecurrent")
CELLS = ("LIFCell", "LIFBoxCell", "LICell", "LIBoxCell", "IAFCell", "LSNNCell", "LIFRecurrentCell")
NEURONS = (*OVER_TIME, *CELLS)
_BASES = ("SNN", "SNNCell", "SNNRecurrent", "SNNRecurrentCell")
REFUSED = dict.fromkeys(_BASES, f"is not one of the neurons that are known: {', '.join(NEURONS)}")


def classes() -> dict[type, str]:
    """The classes of neurons, and their names here."""
    module = import_module("norse.torch")
    base = import_module("norse.torch.module.snn")
    return {
        **{getattr(module, name): name for name in NEURONS},
        **{getattr(base, name): name for name in _BASES},
    }


def _surrogate(method: str, alpha: float | Tensor) -> Surrogate | Callable[[Tensor, Tensor], Tensor]:
    slope = float(alpha)
    if method == "super":
        return FastSigmoid(slope=1.0)
    if method == "triangle":
        return Triangle(slope=1.0, scale=slope)
    if method == "tanh":
        return Tanh(slope=slope)
    if method == "heavi_erfc":
        return Gaussian(slope=slope * math.sqrt(2), scale=2 / slope)
    if method == "circ":
        threshold = import_module("norse.torch.functional.threshold").threshold
        return elementwise_derivative(lambda x: threshold(x, method, alpha))
    raise NotMappedError(f"has the method {method!r}; known are super, triangle, tanh, heavi_erfc and circ")


def _factor(module: Any, rate: Tensor, name: str) -> Tensor:
    factor: Tensor = module.dt * torch.as_tensor(rate)
    if holds_of_any((factor < 0) | (factor > 1)):
        raise NotMappedError(f"has dt {name} outside [0, 1], so that it does not decay")
    return factor


def _kept(factor: Tensor) -> Tensor:
    """1 - factor, not rounded to the factor's float32: the library subtracts from the state, factor times the state."""
    return 1 - factor.double()


def neuron(module: Any) -> Neuron:
    """The neurons that a layer, or a cell in each step, has now.

    Raises:
        NotMappedError: the kernels cannot compute the same.
    """
    p = module.p
    if hasattr(p, "v_leak"):
        rate = _factor(module, p.tau_mem_inv, "tau_mem_inv")
        rest = torch.as_tensor(p.v_leak)
        leak: dict[str, Any] = {"alpha": _kept(rate), "gain": rate}
    else:  # integrate and fire
        rest = torch.as_tensor(p.v_reset)
        leak = {"alpha": 1.0}
    synapse: dict[str, Any] = {}
    if hasattr(p, "tau_syn_inv"):
        synapse = {"synapse_alpha": _kept(_factor(module, p.tau_syn_inv, "tau_syn_inv"))}
    if not hasattr(p, "v_th"):
        return Neuron(shift=rest, **leak, **synapse)
    reset = "zero"
    functions = import_module("norse.torch.functional.reset")
    method = getattr(p, "reset_method", functions.reset_value)
    if method is functions.reset_subtract:
        reset = "subtract"
    elif method is not functions.reset_value:
        raise NotMappedError("has a reset_method that is not known; known are reset_value and reset_subtract")
    offset = None
    back = torch.as_tensor(p.v_reset)
    if reset == "zero" and bool((back != rest).any()):
        rest, offset = back, rest - back
    if "adjoint" in module.activation.__name__:
        raise NotMappedError("has adjoint=True, a gradient of its own; adjoint=False can be computed")
    if hasattr(p, "beta"):
        kept = _kept(_factor(module, p.tau_adapt_inv, "tau_adapt_inv"))
        synapse |= {"adapt_alpha": kept, "adapt_by": kept * p.beta, "adapt_threshold": 1.0, "synapse_delayed": True}
    if hasattr(module, "recurrent_weights"):
        if offset is not None:
            raise NotMappedError("has recurrent connections and a v_reset that differs from v_leak")
        # norse lets no gradient through the spikes of this reset alone.
        synapse |= {"recurrent_weight": module.recurrent_weights, "detach_reset": True}
    return Neuron(
        threshold=torch.as_tensor(p.v_th).double() - rest,
        reset=reset,
        # The amount that is subtracted is the threshold itself, whatever rest is.
        reset_by=torch.as_tensor(p.v_th) if reset == "subtract" else None,
        decay_reset=True,
        strict=True,
        surrogate=_surrogate(p.method, p.alpha),
        offset=offset,
        shift=rest,
        **leak,
        **synapse,
    )


described = neuron


def traces(module: Any) -> bool:
    """True for a layer that gives its state over time."""
    return bool(getattr(module, "record_states", False))


def over_time(module: Any, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """(time, batch, ...) -> (spikes or membranes, state after the last step); with record_states the states of all."""
    found = neuron(module)
    from_rest = state is None
    if found.recurrent_weight is not None:
        return _recurrent(module, found, x, state)
    state = module.state_fallback(x if is_over_time(module) else x[0]) if from_rest else state
    membrane = (state.v - found.shift).to(x.dtype).expand_as(x[0])
    records = traces(module)
    current = adaptation = None
    if found.adapt_alpha is not None:
        current = state.i.to(x.dtype).expand_as(x[0])
        adaptation = (state.b - module.p.v_th).to(x.dtype).expand_as(x[0])
    elif found.synapse_alpha is not None and not from_rest:
        x = _with_current(x, state)
    ran = run(found, x, 0, membrane=membrane, current=current, adaptation=adaptation, trace=records)

    def after(membranes: Tensor, spikes: Tensor | None) -> Tensor:
        return (membranes if spikes is None else found.after_reset(membranes, spikes)) + found.shift

    if records:
        assert ran.membrane is not None
        values: dict[str, Any] = {"v": after(ran.membrane, ran.spikes)}
        currents = ran.current
    else:
        values = {"v": after(ran.last_membrane, ran.last_spikes)}
        currents = ran.last_current
    if found.adapt_alpha is not None:
        assert ran.last_adaptation is not None
        values["i"] = currents
        values["b"] = ran.last_adaptation + module.p.beta * ran.last_spikes + module.p.v_th
    elif currents is not None:
        assert found.synapse_alpha is not None
        values["i"] = currents * torch.as_tensor(found.synapse_alpha).to(currents.dtype)
    if ran.spikes is not None:
        return ran.spikes, type(state)(**values)
    assert ran.membrane is not None
    return ran.membrane + found.shift, type(state)(**values)


def _with_current(x: Tensor, state: Any) -> Tensor:
    """x with the current before it: a state holds the current after its decay, and the first step adds it to x."""
    return torch.cat([(x[0] + state.i.to(x.dtype)).unsqueeze(0), x[1:]])


def _recurrent(module: Any, found: Neuron, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    x = torch.nn.functional.linear(x, module.input_weights)
    before: dict[str, Any] = {}
    if state is not None:
        shape = x.shape[1:]
        before = {
            "membrane": (state.v - found.shift).to(x.dtype).expand(shape),
            "spikes": state.z.to(x.dtype).expand(shape),
        }
        x = _with_current(x, state)
    ran = run(found, x, 0, trace=traces(module), **before)
    assert ran.spikes is not None
    assert ran.last_spikes is not None
    assert ran.last_current is not None
    assert found.synapse_alpha is not None
    v = found.after_reset(ran.last_membrane, ran.last_spikes) + found.shift
    cls = import_module("norse.torch").LIFState
    return ran.spikes, cls(
        z=ran.last_spikes, v=v, i=ran.last_current * torch.as_tensor(found.synapse_alpha).to(x.dtype)
    )


def is_over_time(module: Any) -> bool:
    """True for a module that takes all steps, False for a cell."""
    snn = import_module("norse.torch.module.snn")
    return isinstance(module, snn.SNN | snn.SNNRecurrent)


def forward(self: Any, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """The forward pass of a module over time on the kernels."""
    return over_time(self, input_tensor, state)


def forward_of_lift(self: Any, x: Tensor | tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """A lifted cell, over all steps on the kernels."""
    x, state = x if isinstance(x, tuple) else (x, None)
    with of_layer(self.lifted_module):
        return over_time(self.lifted_module, x, state)


def forward_of_folded_lift(self: Any, x: Tensor | tuple[Tensor, Any]) -> Tensor:
    """A lifted module without state, with all steps as one batch."""
    return each_step(self.lifted_module, x[0] if isinstance(x, tuple) else x)
