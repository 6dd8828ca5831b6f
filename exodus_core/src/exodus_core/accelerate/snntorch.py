"""Neurons of snnTorch 1.0: one step a call, so that layers run over time only where the loop is known (`over_time`).

Equations, from its `_neurons`: mem = beta mem + x - reset threshold, the reset being that of the membrane before, mem >
threshold, without a gradient. Reset "zero" multiplies the membrane before by 1 - reset in `Leaky`; in the others it
drops the input of the step too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from exodus_core.accelerate.fused import Neuron, Ran, run
from exodus_core.accelerate.refusal import NotMappedError, holds_of_any
from exodus_core.accelerate.trace_adjoint import elementwise_derivative
from exodus_core.surrogate import Arctan, Boxcar, FastSigmoid, Sigmoid, Surrogate

TESTED = ("1.0.0",)
NEURONS = ("Leaky", "Synaptic", "Lapicque", "RLeaky", "RSynaptic")
REFUSED = {
    "Alpha": "has two currents whose difference is the membrane, which no kernel computes; use snntorch.Synaptic",
    "SpikingNeuron": f"is not one of the neurons that are known: {', '.join(NEURONS)}",
    "SConv2dLSTM": "is no leaky integrate-and-fire neuron",
    "SLSTM": "is no leaky integrate-and-fire neuron",
}
_NO_GRADIENT = Boxcar(scale=0.0)
_STRAIGHT_THROUGH = Boxcar(slope=2.0**-60, scale=2.0**60)
_COUNTERPARTS: dict[str, Callable[..., Surrogate]] = {
    "atan": lambda alpha: Arctan(slope=alpha),
    "fast_sigmoid": lambda slope: FastSigmoid(slope=slope),
    "sigmoid": lambda slope: Sigmoid(slope=slope),
    "straight_through_estimator": lambda: _STRAIGHT_THROUGH,
}
_ELEMENTWISE = ("triangular", "spike_rate_escape", "SFS")


def classes() -> dict[type, str]:
    """The classes of neurons, and their names here."""
    module = import_module("snntorch")
    return {getattr(module, name): name for name in (*NEURONS, *REFUSED)}


def _surrogate(module: Any) -> Surrogate | Callable[[Tensor, Tensor], Tensor]:
    if module.surrogate_disable:
        return _NO_GRADIENT
    function = module.spike_grad
    made_by = getattr(function, "__qualname__", "").removesuffix(".<locals>.inner")
    if getattr(function, "__module__", "") == "snntorch.surrogate":
        if made_by in _COUNTERPARTS:
            return _COUNTERPARTS[made_by](**inspect.getclosurevars(function).nonlocals)
        if made_by in _ELEMENTWISE:
            return elementwise_derivative(function)
    raise NotMappedError(
        f"has the surrogate {made_by or function!r}; known are those of snntorch.surrogate that are functions of the "
        f"membrane alone: {', '.join((*_COUNTERPARTS, *_ELEMENTWISE))}"
    )


def neuron(module: Any) -> Neuron:
    """The neurons that a layer has in each step.

    Raises:
        NotMappedError: the kernels cannot compute the same.
    """
    kind = _kind(module)
    if module.inhibition:
        raise NotMappedError("has inhibition: in each step only the neuron with the largest membrane fires")
    if module.state_quant:
        raise NotMappedError("has state_quant: its states are rounded in each step")
    reset = module.reset_mechanism
    delayed = getattr(module, "reset_delay", True)
    common: dict[str, Any] = {}
    if kind == "Lapicque":
        common["alpha"] = 1 - module.time_step / (module.R * module.C)
        common["gain"] = module.R * (1 / (module.R * module.C)) * module.time_step
    else:
        common["alpha"] = module.beta.clamp(0, 1)
    if reset == "zero" and kind != "Leaky":
        if module.threshold.requires_grad:
            raise NotMappedError(
                "learns a threshold with reset_mechanism 'zero', whose gradient counts the steps without input too"
            )
        # The membrane is zero in the step after a spike, whatever its input.
        common["refractory"] = 1
    if not delayed and reset == "subtract":
        raise NotMappedError(
            "has reset_delay=False with reset_mechanism 'subtract', which treats a membrane above twice the threshold "
            "in a way of its own; reset_delay=True can be computed"
        )
    if not delayed and kind != "Leaky":
        raise NotMappedError("has reset_delay=False; reset_delay=True can be computed")
    if reset == "zero" and holds_of_any(module.threshold < 0):
        raise NotMappedError("has reset_mechanism 'zero' and a negative threshold, so that it fires at rest")
    if kind in ("Synaptic", "RSynaptic"):
        common["synapse_alpha"] = module.alpha.clamp(0, 1)
    if kind in ("RLeaky", "RSynaptic"):
        common |= _recurrent(module)
    return Neuron(
        threshold=module.threshold,
        reset=reset,
        decay_reset=reset == "zero",
        strict=True,
        detach_reset=delayed,
        surrogate=_surrogate(module),
        **common,
    )


described = neuron


def traces(module: Any) -> bool:
    """True for a layer that gives its membrane over time."""
    return bool(module.output)


def _kind(module: Any) -> str:
    known = classes()
    return next(known[cls] for cls in type(module).__mro__ if cls in known)


def _recurrent(module: Any) -> dict[str, Any]:
    connect = module.recurrent
    if not module.all_to_all:
        raise NotMappedError(
            "has one weight per neuron (all_to_all=False); all_to_all=True with linear_features can be"
        )
    if type(connect) is not torch.nn.Linear:
        raise NotMappedError(
            f"has recurrent connections by {type(connect).__name__}; a torch.nn.Linear can be computed"
        )
    if holds_of_any(module.graded_spikes_factor != 1):
        raise NotMappedError("has recurrent connections and a graded_spikes_factor")
    return {"recurrent_weight": connect.weight, "recurrent_bias": connect.bias}


def over_time(module: Any, x: Tensor) -> tuple[Tensor, ...]:
    """The outputs of a layer with init_hidden=True, time first, from rest, as the loop over its steps stacks them."""
    found = neuron(module)
    ran: Ran = run(found, x, 0, trace=traces(module))
    assert ran.spikes is not None
    assert ran.last_spikes is not None
    spikes = ran.spikes
    factor = module.graded_spikes_factor
    if factor.requires_grad or not factor.is_cpu or bool((factor != 1).any()):
        spikes = spikes * factor
    immediate = not getattr(module, "reset_delay", True)

    def kept(membrane: Tensor, fired: Tensor) -> Tensor:
        return found.after_reset(membrane, fired) if immediate else membrane

    module.mem = kept(ran.last_membrane, ran.last_spikes)
    if hasattr(module, "syn"):
        module.syn = ran.last_current
    if hasattr(module, "spk"):
        module.spk = spikes[-1].clone()
    if not module.output:
        return (spikes,)
    assert ran.membrane is not None
    membranes = kept(ran.membrane, ran.spikes)
    if found.synapse_alpha is None:
        return spikes, membranes
    assert ran.current is not None
    return spikes, ran.current, membranes
