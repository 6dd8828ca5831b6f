"""The neuron models of the service as values. Numbers travel as numbers; arrays, one value a neuron, as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np

from exodus_client._checks import (
    ANY,
    DECAY,
    POSITIVE,
    check_parameter,
    elements_of,
    integer,
    is_real,
    one_of,
    real,
    shown,
)
from exodus_client.wire import FLOATS, Tensor

#: A numpy array, a torch tensor, or nested lists of numbers.
Array: TypeAlias = Any
Reset: TypeAlias = Literal["subtract", "zero", "none"]

RESETS: tuple[Reset, ...] = get_args(Reset)


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
    """Attributes shared by LIF and IF."""

    threshold: float | Array = 1.0
    reset: Reset = "subtract"
    reset_by: float | Array | None = None
    decay_reset: bool = False
    min_membrane: float | Array | None = None
    max_spikes: int = 1

    model: ClassVar[str]
    _values: ClassVar[tuple[str, ...]] = ("threshold", "reset_by", "min_membrane")
    _optional: ClassVar[tuple[str, ...]] = ("reset_by", "min_membrane")

    def __post_init__(self) -> None:
        kind = type(self).__name__
        max_spikes = integer(f"{kind}.max_spikes", self.max_spikes, 1)
        # Spikes are counted by the threshold where there may be several.
        ranges = {"alpha": DECAY, "threshold": POSITIVE if max_spikes > 1 else ANY}
        for name in self._values:
            value = getattr(self, name)
            if value is not None or name not in self._optional:
                check_parameter(f"{kind}.{name}", value, ranges.get(name, ANY))
        one_of(f"{kind}.reset", self.reset, RESETS)
        if not isinstance(self.decay_reset, bool | np.bool_):
            raise TypeError(f"{kind}.decay_reset must be True or False, got {shown(self.decay_reset)}")
        if self.reset == "zero" and max_spikes > 1:
            raise ValueError(f"{kind}.max_spikes must be 1 with reset 'zero', got {max_spikes}")

    def params(self, operands: Operands) -> dict[str, Any]:
        """As it travels in the parameters of a request, whose tensors it adds to the operands."""
        params: dict[str, Any] = {"model": self.model, "reset": self.reset, "decay_reset": bool(self.decay_reset)}
        params["max_spikes"] = int(self.max_spikes)
        for name in self._values:
            given = getattr(self, name)
            if given is not None:
                params[name] = operands.value(name, given)
        return params


@dataclass(frozen=True, slots=True)
class LIF(_Leaky):
    """Leaky integrate-and-fire: u[t] = alpha u[t-1] + x[t] - reset.

    Attributes:
        alpha: decay of the membrane in one step, exp(-dt/tau), in [0, 1].
        threshold: membrane potential from which the neuron fires; above 0 where max_spikes > 1.
        reset: "subtract", "zero" or "none": what a spike does to the membrane.
        reset_by: what a spike subtracts; None for the threshold.
        decay_reset: whether the reset is applied before the decay.
        min_membrane: lower bound of the membrane; None for none.
        max_spikes: most spikes of a neuron in one step; 1 with reset "zero".

    alpha, threshold, reset_by and min_membrane are finite numbers, or arrays of numbers that broadcast over the
    neurons: of numpy, dense tensors of torch, or nested lists. Integers become floats.

    Raises:
        TypeError: an attribute is neither a number nor such an array, or of another type.
        ValueError: a number, or an element of an array, is NaN or out of range.
    """

    alpha: float | Array

    model: ClassVar[str] = "lif"
    _values: ClassVar[tuple[str, ...]] = ("alpha", "threshold", "reset_by", "min_membrane")


@dataclass(frozen=True, slots=True)
class IF(_Leaky):
    """Integrate-and-fire: LIF without decay. Attributes as of `LIF`, without alpha."""

    model: ClassVar[str] = "if"


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


Neuron: TypeAlias = LIF | IF | SRM

#: Wire name of a neuron -> its class.
MODELS: dict[str, type[Neuron]] = {"lif": LIF, "if": IF, "srm": SRM}
