"""The neuron models of the service as values. Numbers travel as numbers; arrays, one value a neuron, as tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias

from .wire import Tensor

#: A numpy array, a torch tensor, or nested lists of numbers.
Array: TypeAlias = Any
Reset: TypeAlias = Literal["subtract", "zero", "none"]

RESETS: tuple[Reset, ...] = ("subtract", "zero", "none")


class Operands:
    """Collects the tensors of a request, and gives every value the shape in which parameters refer to it."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """File a tensor under its name."""
        self.tensors[tensor.name] = tensor
        return tensor

    def value(self, name: str, given: Array) -> Any:
        """A number as it is, an array as a reference to the tensor that it becomes."""
        if isinstance(given, Real):
            return float(given)
        return {"tensor": self.add(Tensor.of(name, given)).name}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaky:
    """What LIF and IF share."""

    threshold: float | Array = 1.0
    reset: Reset = "subtract"
    reset_by: float | Array | None = None
    decay_reset: bool = False
    min_membrane: float | Array | None = None
    max_spikes: int = 1

    model: ClassVar[str]
    _values: ClassVar[tuple[str, ...]] = ("threshold", "reset_by", "min_membrane")

    def __post_init__(self) -> None:
        _check_values(self, self._values)
        if self.reset not in RESETS:
            raise ValueError(f"reset: got {self.reset!r}, want one of {', '.join(RESETS)}")
        if type(self.decay_reset) is not bool:
            raise TypeError(f"decay_reset: got {self.decay_reset!r}, want True or False")
        if type(self.max_spikes) is not int or self.max_spikes < 1:
            raise ValueError(f"max_spikes: got {self.max_spikes!r}, want an integer >= 1")

    def params(self, operands: Operands) -> dict[str, Any]:
        """As it travels in the parameters of a request, whose tensors it adds to the operands."""
        params: dict[str, Any] = {"model": self.model, "reset": self.reset, "decay_reset": self.decay_reset}
        params["max_spikes"] = self.max_spikes
        for name in self._values:
            given = getattr(self, name)
            if given is not None:
                params[name] = operands.value(name, given)
        return params


@dataclass(frozen=True, slots=True)
class LIF(_Leaky):
    """Leaky integrate-and-fire: u[t] = alpha u[t-1] + x[t] - reset.

    Attributes:
        alpha: decay of the membrane in one step, exp(-dt/tau).
        threshold: membrane potential from which the neuron fires.
        reset: "subtract", "zero" or "none": what a spike does to the membrane.
        reset_by: what a spike subtracts; None for the threshold.
        decay_reset: whether the reset is applied before the decay.
        min_membrane: lower bound of the membrane; None for none.
        max_spikes: most spikes of a neuron in one step.

    alpha, threshold, reset_by and min_membrane are numbers, or arrays that broadcast over the neurons.
    """

    alpha: float | Array

    model: ClassVar[str] = "lif"
    _values: ClassVar[tuple[str, ...]] = ("alpha", *_Leaky._values)


@dataclass(frozen=True, slots=True)
class IF(_Leaky):
    """Integrate-and-fire: LIF without decay. Attributes as of `LIF`, without alpha."""

    model: ClassVar[str] = "if"


@dataclass(frozen=True, slots=True)
class ExponentialKernel:
    """amplitude * alpha**k for k = 0, 1, ...; a reset that inhibits has a negative amplitude."""

    alpha: float
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        _check_numbers(self, ("alpha", "amplitude"))

    def params(self) -> dict[str, Any]:
        """As it travels in the parameters of a request."""
        return {"kind": "exponential", "alpha": float(self.alpha), "amplitude": float(self.amplitude)}


@dataclass(frozen=True, slots=True)
class AlphaKernel:
    """amplitude * (k/tau) * exp(1 - k/tau) for k = 0, 1, ..., with tau in steps."""

    tau: float
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        _check_numbers(self, ("tau", "amplitude"))
        if self.tau <= 0:
            raise ValueError(f"AlphaKernel.tau: got {self.tau!r}, want a number above 0")

    def params(self) -> dict[str, Any]:
        """As it travels in the parameters of a request."""
        return {"kind": "alpha", "tau": float(self.tau), "amplitude": float(self.amplitude)}


@dataclass(frozen=True, slots=True)
class SRM:
    """Spike response model: u[n] = z[n] + sum over j >= 0 of reset_kernel[j] s[n-1-j].

    Attributes:
        reset_kernel: taps as a 1-d array, or an `ExponentialKernel` or `AlphaKernel`; None where the request brings
            the taps as its own `reset_kernel`.
        threshold: membrane potential from which the neuron fires, a number or an array.
    """

    reset_kernel: ExponentialKernel | AlphaKernel | Array | None = None
    threshold: float | Array = 1.0

    model: ClassVar[str] = "srm"

    def __post_init__(self) -> None:
        _check_values(self, ("threshold",))
        if isinstance(self.reset_kernel, Real):
            raise TypeError(f"SRM.reset_kernel: got the number {self.reset_kernel!r}, want taps or a kernel")

    def params(self, operands: Operands) -> dict[str, Any]:
        """As it travels in the parameters of a request, whose tensors it adds to the operands."""
        params = {"model": self.model, "threshold": operands.value("threshold", self.threshold)}
        kernel = self.reset_kernel
        if isinstance(kernel, ExponentialKernel | AlphaKernel):
            params["reset_kernel"] = kernel.params()
        elif kernel is not None:
            params["reset_kernel"] = operands.value("reset_kernel", kernel)
        return params


Neuron: TypeAlias = LIF | IF | SRM


def _check_values(neuron: object, names: tuple[str, ...]) -> None:
    """Numbers have to be finite, and text is no array; what else cannot travel is found when it is encoded."""
    for name in names:
        value = getattr(neuron, name)
        if isinstance(value, bool | str | bytes):
            raise TypeError(f"{type(neuron).__name__}.{name}: got {value!r}, want a number or an array")
        if isinstance(value, Real) and not math.isfinite(value):
            raise ValueError(f"{type(neuron).__name__}.{name}: got {value!r}, want a finite number")


def _check_numbers(kernel: object, names: tuple[str, ...]) -> None:
    _check_values(kernel, names)
    for name in names:
        value = getattr(kernel, name)
        if not isinstance(value, Real):
            raise TypeError(f"{type(kernel).__name__}.{name}: got {type(value).__name__}, want a number")
