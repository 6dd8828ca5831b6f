"""The neuron models of the service as values. Numbers travel as numbers; arrays, one value a neuron, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np

from exodus_client._checks import (
    ANY,
    DECAY,
    POSITIVE,
    check_parameter,
    elements_of,
    flag,
    integer,
    is_real,
    one_of,
    real,
    shown,
    unfit,
)
from exodus_client.wire import FLOATS, Tensor

#: A numpy array, a torch tensor, or nested lists of numbers.
Array: TypeAlias = Any
Reset: TypeAlias = Literal["subtract", "zero", "none", "value"]

RESETS: tuple[Reset, ...] = get_args(Reset)

#: The rows of the state of neurons after a step.
STATES = ("membrane", "spikes", "current", "adaptation", "refractory")

_LARGEST_REFRACTORY = 2**24

_TRAINABLE = ("alpha", "threshold", "reset_by", "reset_to")
_VALUES = ("threshold", "reset_by", "min_membrane", "reset_to")
_OPTIONAL = ("reset_by", "min_membrane", "reset_to")
_SYNAPSE = ("synapse_alpha", "synapse_gain")
_ADAPTATION = ("adapt_alpha", "adapt_by", "adapt_membrane", "adapt_threshold", "adapt_current")
#: Settings, and what they are where they do not travel: a server may be from before they were.
_LATER: dict[str, Any] = {"detach_reset": False, "refractory": 0}
_LATER_WITH_BOUND: dict[str, Any] = {**_LATER, "bound_after_reset": False}
_LATER_WITH_SYNAPSE: dict[str, Any] = {**_LATER, "synapse_delayed": False}


class Operands:
    """Collects the tensors of a request, and gives every value the shape in which parameters refer to it."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """File a tensor under its name."""
        self.tensors[tensor.name] = tensor
        return tensor

    def value(self, name: str, given: Array) -> Any:
        """A number as it is, an array as a reference to the tensor of floats that it becomes."""
        if is_real(given):
            return real(name, given)
        tensor = Tensor.of(name, given)
        if tensor.dtype not in FLOATS:  # neurons compute with floats
            tensor = Tensor.of(name, tensor.stored().astype(np.float64))
        return {"tensor": self.add(tensor).name}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaky:
    """Attributes shared by all neurons but SRM.

    Class attributes: `trainable`, the parameters that have gradients, and `states`, the parts of the state.
    """

    threshold: float | Array = 1.0
    reset: Reset = "subtract"
    reset_by: float | Array | None = None
    decay_reset: bool = False
    min_membrane: float | Array | None = None
    max_spikes: int = 1
    reset_to: float | Array | None = None
    detach_reset: bool = False
    refractory: int = 0

    model: ClassVar[str]
    trainable: ClassVar[tuple[str, ...]] = _TRAINABLE
    states: ClassVar[tuple[str, ...]] = ("membrane", "spikes", "refractory")
    _values: ClassVar[tuple[str, ...]] = _VALUES
    _optional: ClassVar[tuple[str, ...]] = _OPTIONAL
    _later: ClassVar[dict[str, Any]] = _LATER

    def __post_init__(self) -> None:
        kind = type(self).__name__
        max_spikes = integer(f"{kind}.max_spikes", self.max_spikes, 1)
        # Spikes are counted by the threshold where there may be several.
        ranges = dict.fromkeys(("alpha", "synapse_alpha", "adapt_alpha"), DECAY)
        ranges["threshold"] = POSITIVE if max_spikes > 1 else ANY
        for name in self._values:
            value = getattr(self, name)
            if value is not None or name not in self._optional:
                check_parameter(f"{kind}.{name}", value, ranges.get(name, ANY))
        one_of(f"{kind}.reset", self.reset, RESETS)
        for name, default in {"decay_reset": False, **self._later}.items():
            if isinstance(default, bool):
                flag(f"{kind}.{name}", getattr(self, name))
        integer(f"{kind}.refractory", self.refractory, 0, _LARGEST_REFRACTORY)
        if self.reset in ("zero", "value") and max_spikes > 1:
            raise ValueError(f"{kind}.max_spikes must be 1 with reset {self.reset!r}, got {max_spikes}")
        if (self.reset == "value") != (self.reset_to is not None):
            expected = "a value with reset 'value', and None with others"
            raise unfit(ValueError, f"{kind}.reset_to", expected, f"{shown(self.reset_to)} with {self.reset!r}")

    def params(self, operands: Operands) -> dict[str, Any]:
        """As it travels in the parameters of a request, whose tensors it adds to the operands."""
        params: dict[str, Any] = {"model": self.model, "reset": self.reset, "decay_reset": bool(self.decay_reset)}
        params["max_spikes"] = int(self.max_spikes)
        for name, default in self._later.items():
            given = type(default)(getattr(self, name))
            if given != default:
                params[name] = given
        for name in self._values:
            given = getattr(self, name)
            if given is not None:
                params[name] = operands.value(name, given)
        return params


def _check_bound(neuron: LIF | IF) -> None:
    """Refuses a bound after the reset where the server has none. A detached reset to zero depends on the method."""
    if neuron.bound_after_reset and (neuron.reset == "value" or neuron.refractory):
        name = f"{type(neuron).__name__}.bound_after_reset"
        raise unfit(ValueError, name, "False with reset 'value' or refractory steps", neuron.bound_after_reset)


@dataclass(frozen=True, slots=True)
class LIF(_Leaky):
    """Leaky integrate-and-fire: u[t] = alpha u[t-1] + x[t] - reset.

    Attributes:
        alpha: decay of the membrane in one step, exp(-dt/tau), in [0, 1].
        threshold: membrane potential from which the neuron fires; above 0 where max_spikes > 1.
        reset: "subtract", "zero", "value" or "none": what a spike does to the membrane.
        reset_by: what a spike subtracts; None for the threshold.
        decay_reset: whether the reset is applied before the decay.
        min_membrane: lower bound of the membrane; None for none.
        bound_after_reset: whether it bounds what the reset leaves to the next step, as in sinabs; not with reset
            "value", refractory steps, or a detached reset to zero.
        max_spikes: most spikes of a neuron in one step; 1 with reset "zero" and "value".
        reset_to: what a spike sets the membrane to with reset "value"; None with others.
        detach_reset: whether no gradient passes through the spikes to the reset.
        refractory: steps after a spike in which the membrane keeps its value and no spike is fired.

    alpha, threshold, reset_by, min_membrane and reset_to are finite numbers, or arrays of numbers that broadcast over
    the neurons: of numpy, dense tensors of torch, or nested lists. Integers become floats.

    Raises:
        TypeError: an attribute is neither a number nor such an array, or of another type.
        ValueError: a number, or an element of an array, is NaN or out of range; one does not go with another.
    """

    alpha: float | Array
    bound_after_reset: bool = field(default=False, kw_only=True)

    model: ClassVar[str] = "lif"
    _values: ClassVar[tuple[str, ...]] = ("alpha", *_VALUES)
    _later: ClassVar[dict[str, Any]] = _LATER_WITH_BOUND

    def __post_init__(self) -> None:
        _Leaky.__post_init__(self)  # no super(): dataclasses with slots are made anew
        _check_bound(self)


@dataclass(frozen=True, slots=True)
class IF(_Leaky):
    """Integrate-and-fire: LIF without decay. Attributes as of `LIF`, without alpha."""

    bound_after_reset: bool = field(default=False, kw_only=True)

    model: ClassVar[str] = "if"
    _later: ClassVar[dict[str, Any]] = _LATER_WITH_BOUND

    def __post_init__(self) -> None:
        _Leaky.__post_init__(self)
        _check_bound(self)


@dataclass(frozen=True, slots=True)
class CubaLIF(_Leaky):
    """Second-order LIF: the input drives a synaptic current, the current the membrane.

    i[t] = synapse_alpha i[t-1] + x[t] and u[t] = alpha u[t-1] + synapse_gain i[t] - reset.

    Attributes:
        alpha: decay of the membrane in one step, exp(-dt/tau_mem), in [0, 1].
        synapse_alpha: decay of the current in one step, exp(-dt/tau_syn), in [0, 1].
        synapse_gain: factor of the current in the membrane.
        synapse_delayed: whether the membrane sees the current of the step before.

    The others are those of `LIF`; synapse_alpha and synapse_gain may be arrays too.

    Raises:
        TypeError, ValueError: as of `LIF`.
    """

    alpha: float | Array
    synapse_alpha: float | Array
    synapse_gain: float | Array = field(default=1.0, kw_only=True)
    synapse_delayed: bool = field(default=False, kw_only=True)

    model: ClassVar[str] = "cuba_lif"
    trainable: ClassVar[tuple[str, ...]] = (*_TRAINABLE, *_SYNAPSE)
    states: ClassVar[tuple[str, ...]] = ("membrane", "spikes", "current", "refractory")
    _values: ClassVar[tuple[str, ...]] = ("alpha", *_SYNAPSE, *_VALUES)
    _later: ClassVar[dict[str, Any]] = _LATER_WITH_SYNAPSE


@dataclass(frozen=True, slots=True)
class ALIF(_Leaky):
    """Adaptive LIF: spikes, and the membrane, drive a variable w that raises the threshold or inhibits.

    w[t] = adapt_alpha w[t-1] + adapt_membrane u[t-1] + adapt_by s[t-1], u[t] = alpha u[t-1] + x[t] - adapt_current w[t]
    - reset, and a spike where u[t] >= threshold + adapt_threshold w[t]. With a synapse_alpha, x[t] is replaced by the
    current of `CubaLIF`.

    Attributes:
        alpha: decay of the membrane in one step, exp(-dt/tau_mem), in [0, 1].
        adapt_alpha: decay of w in one step, exp(-dt/tau_adapt), in [0, 1].
        adapt_by: what a spike adds to w.
        adapt_membrane: what the membrane adds to w.
        adapt_threshold: how far w raises the threshold; max_spikes is then 1.
        adapt_current: how far w is subtracted from the input.
        synapse_alpha, synapse_gain, synapse_delayed: those of `CubaLIF`; synapse_alpha None for no current.

    The others are those of `LIF`; all of these but synapse_delayed may be arrays too.

    Raises:
        TypeError, ValueError: as of `LIF`.
    """

    alpha: float | Array
    adapt_alpha: float | Array
    adapt_by: float | Array = field(default=1.0, kw_only=True)
    adapt_membrane: float | Array = field(default=0.0, kw_only=True)
    adapt_threshold: float | Array = field(default=0.0, kw_only=True)
    adapt_current: float | Array = field(default=0.0, kw_only=True)
    synapse_alpha: float | Array | None = field(default=None, kw_only=True)
    synapse_gain: float | Array = field(default=1.0, kw_only=True)
    synapse_delayed: bool = field(default=False, kw_only=True)

    model: ClassVar[str] = "alif"
    trainable: ClassVar[tuple[str, ...]] = (*_TRAINABLE, *_ADAPTATION, *_SYNAPSE)
    states: ClassVar[tuple[str, ...]] = STATES
    _values: ClassVar[tuple[str, ...]] = ("alpha", *_ADAPTATION, *_SYNAPSE, *_VALUES)
    _optional: ClassVar[tuple[str, ...]] = ("synapse_alpha", *_OPTIONAL)
    _later: ClassVar[dict[str, Any]] = _LATER_WITH_SYNAPSE

    def __post_init__(self) -> None:
        _Leaky.__post_init__(self)  # no super(): dataclasses with slots are made anew
        if self.max_spikes > 1 and not _is_number(self.adapt_threshold, 0):
            raise unfit(ValueError, "ALIF.max_spikes", "1 with adapt_threshold", self.max_spikes)
        if self.synapse_alpha is None and not _is_number(self.synapse_gain, 1):
            raise unfit(ValueError, "ALIF.synapse_gain", "1 without a synapse_alpha", shown(self.synapse_gain))
        if self.synapse_alpha is None and self.synapse_delayed:
            raise unfit(ValueError, "ALIF.synapse_delayed", "False without a synapse_alpha", self.synapse_delayed)


def _is_number(given: Any, number: float) -> bool:
    return is_real(given) and bool(given == number)


@dataclass(frozen=True, slots=True)
class ExponentialKernel:
    """amplitude * alpha**k for k = 0, 1, ...; a reset that inhibits has a negative amplitude.

    Raises:
        TypeError: an attribute is not a number.
        ValueError: alpha is not in [0, 1], or the amplitude is not finite.
    """

    alpha: float
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        real("ExponentialKernel.alpha", self.alpha, DECAY)
        real("ExponentialKernel.amplitude", self.amplitude)

    def params(self) -> dict[str, Any]:
        """As it travels in the parameters of a request."""
        return {"kind": "exponential", "alpha": float(self.alpha), "amplitude": float(self.amplitude)}


@dataclass(frozen=True, slots=True)
class AlphaKernel:
    """amplitude * (k/tau) * exp(1 - k/tau) for k = 0, 1, ..., with tau in steps.

    Raises:
        TypeError: an attribute is not a number.
        ValueError: tau is not above 0, or one is not finite.
    """

    tau: float
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        real("AlphaKernel.tau", self.tau, POSITIVE)
        real("AlphaKernel.amplitude", self.amplitude)

    def params(self) -> dict[str, Any]:
        """As it travels in the parameters of a request."""
        return {"kind": "alpha", "tau": float(self.tau), "amplitude": float(self.amplitude)}


@dataclass(frozen=True, slots=True)
class SlayerRefractory:
    """SLAYER's refractory kernel: amplitude * ((k+1)/tau) * exp(1 - (k+1)/tau) for k = 0, 1, ..., with tau in steps.

    The amplitude is SLAYER's -scaleRef theta, so negative. SLAYER's response kernel is `AlphaKernel`, which as a reset
    kernel would act one step too late.

    Raises:
        TypeError: an attribute is not a number.
        ValueError: tau is not above 0, or one is not finite.
    """

    tau: float
    amplitude: float

    def __post_init__(self) -> None:
        real("SlayerRefractory.tau", self.tau, POSITIVE)
        real("SlayerRefractory.amplitude", self.amplitude)

    def params(self) -> dict[str, Any]:
        """As it travels in the parameters of a request."""
        return {"kind": "slayer_refractory", "tau": float(self.tau), "amplitude": float(self.amplitude)}


Kernel: TypeAlias = ExponentialKernel | AlphaKernel | SlayerRefractory


@dataclass(frozen=True, slots=True)
class SRM:
    """Spike response model: u[n] = z[n] + sum over j >= 0 of reset_kernel[j] s[n-1-j].

    Attributes:
        reset_kernel: taps as a 1-d array, or an `ExponentialKernel`, `AlphaKernel` or `SlayerRefractory`; None if
            the request brings the taps as its own `reset_kernel`.
        threshold: membrane potential from which the neuron fires, a number or an array.

    Raises:
        TypeError: an attribute is of another type.
        ValueError: taps have another shape or none in them, or something is NaN.
    """

    reset_kernel: Kernel | Array | None = None
    threshold: float | Array = 1.0

    model: ClassVar[str] = "srm"
    states: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_parameter("SRM.threshold", self.threshold)
        kernel = self.reset_kernel
        if kernel is None or isinstance(kernel, Kernel):
            return
        if isinstance(kernel, Real | str | bytes):
            raise TypeError(f"SRM.reset_kernel must be taps or a kernel, got {shown(kernel)}")
        check_parameter("SRM.reset_kernel", kernel)
        shape = elements_of("SRM.reset_kernel", kernel).shape
        if len(shape) != 1 or not shape[0]:
            raise ValueError(f"SRM.reset_kernel must be taps of shape (K,), got shape {shape}")

    def params(self, operands: Operands) -> dict[str, Any]:
        """As it travels in the parameters of a request, whose tensors it adds to the operands."""
        params = {"model": self.model, "threshold": operands.value("threshold", self.threshold)}
        kernel = self.reset_kernel
        if isinstance(kernel, Kernel):
            params["reset_kernel"] = kernel.params()
        elif kernel is not None:
            params["reset_kernel"] = operands.value("reset_kernel", kernel)
        return params


Neuron: TypeAlias = LIF | IF | CubaLIF | ALIF | SRM

#: Wire name of a neuron -> its class.
MODELS: dict[str, type[Neuron]] = {"lif": LIF, "if": IF, "cuba_lif": CubaLIF, "alif": ALIF, "srm": SRM}
