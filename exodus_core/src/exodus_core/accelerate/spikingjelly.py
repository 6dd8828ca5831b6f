"""Neurons of SpikingJelly 2.0 in step mode "m": (time, batch, ...), with the state v between calls.

Equations, from its `_ops/lif`: v + (x - (v - v_reset)) / tau, or v - (v - v_reset) / tau + x without decay_input;
spikes where v >= v_threshold; v - v_threshold s, or v_reset where there was a spike. All of it is about v_reset, so
that the kernels see v - v_reset and a reset to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from exodus_core.accelerate.fused import Neuron, run
from exodus_core.accelerate.refusal import NotMappedError
from exodus_core.accelerate.trace_adjoint import elementwise_derivative
from exodus_core.surrogate import Arctan, Boxcar, Exponential, FastSigmoid, Gaussian, Sigmoid, Surrogate, Triangle

TESTED = ("2.0.0",)
NEURONS = ("IFNode", "LIFNode", "ParametricLIFNode")
_COUNTERPARTS: dict[str, Callable[[float], Surrogate]] = {
    "Sigmoid": lambda a: Sigmoid(slope=a),
    "ATan": lambda a: Arctan(slope=a),
    "PiecewiseQuadratic": lambda a: Triangle(slope=a, scale=a),
    "PiecewiseExp": lambda a: Exponential(slope=a, scale=a / 2),
    "SoftSign": lambda a: FastSigmoid(slope=a, scale=a / 2),
    "SuperSpike": lambda a: FastSigmoid(slope=1, scale=a),
    "Erf": lambda a: Gaussian(slope=a * math.sqrt(2)),
    "Rect": lambda a: Boxcar(slope=a),
}
# They fire where x >= 0, and their derivative is a function of x.
_ELEMENTWISE = (
    "NonzeroSignLogAbs",
    "PiecewiseLeakyReLU",
    "SquarewaveFourierSeries",
    "S2NN",
    "QPseudoSpike",
    "LeakyKReLU",
    "FakeNumericalGradient",
    "LogTailedReLU",
)


def classes() -> dict[type, str]:
    """The classes of neurons, and their names here."""
    module = import_module("spikingjelly.activation_based.neuron")
    base = import_module("spikingjelly.activation_based.neuron.base_node")
    found: dict[type, str] = {getattr(module, name): name for name in NEURONS}
    for name in ("BaseNode", "SimpleBaseNode"):
        found[getattr(base, name)] = name
    return found


REFUSED = dict.fromkeys(
    ("BaseNode", "SimpleBaseNode"), f"is not one of the neurons that are known: {', '.join(NEURONS)}"
)


def _surrogate(module: Any) -> Surrogate | Callable[[Tensor, Tensor], Tensor]:
    function = module.surrogate_function
    surrogates = import_module("spikingjelly.activation_based.surrogate")
    name = type(function).__name__
    if type(function) is not getattr(surrogates, name, None):
        raise NotMappedError(f"has the surrogate {name}, of which it is not known that it is elementwise")
    if not function.spiking:
        raise NotMappedError("has a surrogate with spiking=False, so that its outputs are no spikes")
    if name in _COUNTERPARTS:
        return _COUNTERPARTS[name](float(function.alpha))
    if name in _ELEMENTWISE:
        return elementwise_derivative(function)
    raise NotMappedError(f"has the surrogate {name}, which is no step of the membrane alone")


def neuron(module: Any) -> Neuron:
    """The neurons that a layer has now.

    Raises:
        NotMappedError: the kernels cannot compute the same.
    """
    if module.step_mode != "m":
        raise NotMappedError(
            "has step_mode 's', and the loop over time is yours; before: "
            "`torch.stack([model(x[t]) for t in range(T)])`; after: "
            "`functional.set_step_mode(model, 'm')` and `model(x)`, x of shape (time, batch, ...)"
        )
    if module._neuron_precision is not None:
        raise NotMappedError("has a precision of its own; neurons compute in float32, or in the dtype of the input")
    alpha: float | Tensor = 1.0
    gain: float | Tensor | None = None
    if hasattr(module, "w"):
        rate = module.w.sigmoid()
        alpha, gain = 1 - rate, rate if module.decay_input else None
    elif hasattr(module, "tau"):
        alpha, gain = 1 - 1 / module.tau, 1 / module.tau if module.decay_input else None
    shift = 0.0 if module.v_reset is None else module.v_reset
    return Neuron(
        alpha=alpha,
        threshold=module.v_threshold - shift,
        reset="subtract" if module.v_reset is None else "zero",
        decay_reset=True,
        detach_reset=module.detach_reset,
        surrogate=_surrogate(module),
        gain=gain,
        shift=shift,
    )


described = neuron


def traces(module: Any) -> bool:
    """True for a layer that gives its membrane over time."""
    return bool(module.store_v_seq)


def forward(self: Any, x_seq: Tensor) -> Tensor:
    """The layer's forward pass on the kernels, x_seq of shape (time, batch, ...)."""
    found = neuron(self)
    (v,) = self.materialize_states((x_seq,), tuple(self._memories.values()), "m")
    ran = run(found, x_seq, 0, membrane=v - found.shift if found.shift else v, trace=traces(self))
    assert ran.spikes is not None
    assert ran.last_spikes is not None
    after = found.after_reset(ran.last_membrane, ran.last_spikes)
    self._memories["v"] = after + found.shift if found.shift else after
    self.v_seq = None
    if self.store_v_seq:
        assert ran.membrane is not None
        self.v_seq = found.after_reset(ran.membrane, ran.spikes) + found.shift
    return ran.spikes
