"""Surrogate derivatives f'(u) of the spike function, as functions of x = u - threshold.

Each class is the definition that the kernels are tested against: `derivative` is plain PyTorch, `code` is the number by
which the kernels (csrc/core/surrogate.h) know it. A docstring names the papers and libraries that use the function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from exodus_core.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "KINDS",
    "Arctan",
    "Boxcar",
    "Exponential",
    "FastSigmoid",
    "Gaussian",
    "Sigmoid",
    "Surrogate",
    "Tanh",
    "Triangle",
]


@dataclass(frozen=True)
class Surrogate:
    """Base class of the surrogates.

    Args:
        slope: k > 0, the steepness; in units of 1 / membrane.
        scale: multiplies the derivative (the "gradient scale" of figure 2 of arXiv 2205.10242).

    Raises:
        TypeError: slope or scale is not a number.
        ValueError: slope is not positive and finite, or scale is not finite.
    """

    slope: float = 1.0
    scale: float = 1.0

    code: ClassVar[int]
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for name in ("slope", "scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ArgumentTypeError(name, "a number", type(value).__name__)
            if not math.isfinite(value):
                raise ArgumentError(name, "finite", value)
            object.__setattr__(self, name, float(value))
        if self.slope <= 0:
            raise ArgumentError("slope", "positive", self.slope)

    def derivative(self, x: Tensor) -> Tensor:
        """f'(u) at x = u - threshold, elementwise, in the dtype of x."""
        return self.scale * self._unscaled(x)

    def _unscaled(self, x: Tensor) -> Tensor:
        raise TypeError("Surrogate is abstract; use one of " + ", ".join(sorted(KINDS)))


@dataclass(frozen=True)
class Exponential(Surrogate):
    """exp(-k |x|): SLAYER; sinabs SingleExponential(w, c) has k = 1/(w theta), scale = c/(w theta)."""

    code = 0
    kind = "exponential"

    def _unscaled(self, x: Tensor) -> Tensor:
        return torch.exp(-self.slope * x.abs())


@dataclass(frozen=True)
class Boxcar(Surrogate):
    """k where |x| <= 1/(2k), else 0: Esser, Bohte (piecewise linear activation)."""

    code = 1
    kind = "boxcar"

    def _unscaled(self, x: Tensor) -> Tensor:
        a = self.slope * x.abs()
        return torch.where(a > 0.5, 0.0, torch.where(a <= 0.5, self.slope, a))  # NaN is neither


@dataclass(frozen=True)
class Triangle(Surrogate):
    """max(0, 1 - k |x|): Bellec; Esser 2016."""

    code = 2
    kind = "triangle"

    def _unscaled(self, x: Tensor) -> Tensor:
        return (1 - self.slope * x.abs()).clamp(min=0)


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """1 / (1 + k |x|)^2: SuperSpike; the default slope is snnTorch's."""

    slope: float = 25.0
    code = 3
    kind = "fast_sigmoid"

    def _unscaled(self, x: Tensor) -> Tensor:
        return 1 / (1 + self.slope * x.abs()) ** 2


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """k q (1 - q) with q = 1 / (1 + exp(-k x)): SpikingJelly, with its default slope."""

    slope: float = 4.0
    code = 4
    kind = "sigmoid"

    def _unscaled(self, x: Tensor) -> Tensor:
        q = torch.sigmoid(self.slope * x)
        return self.slope * q * (1 - q)


@dataclass(frozen=True)
class Arctan(Surrogate):
    """(k/2) / (1 + (pi k x / 2)^2): snnTorch and SpikingJelly, with their default slope."""

    slope: float = 2.0
    code = 5
    kind = "arctan"

    def _unscaled(self, x: Tensor) -> Tensor:
        return self.slope / 2 / (1 + (math.pi / 2 * self.slope * x) ** 2)


@dataclass(frozen=True)
class Tanh(Surrogate):
    """1 - tanh^2(k x): Wozniak."""

    code = 6
    kind = "tanh"

    def _unscaled(self, x: Tensor) -> Tensor:
        return 1 - torch.tanh(self.slope * x) ** 2


@dataclass(frozen=True)
class Gaussian(Surrogate):
    """k / sqrt(2 pi) exp(-(k x)^2 / 2): sinabs Gaussian(sigma) has k = 1/sigma; the default slope is its."""

    slope: float = 2.0
    code = 7
    kind = "gaussian"

    def _unscaled(self, x: Tensor) -> Tensor:
        return self.slope / math.sqrt(2 * math.pi) * torch.exp(-((self.slope * x) ** 2) / 2)


KINDS: dict[str, type[Surrogate]] = {
    cls.kind: cls for cls in (Exponential, Boxcar, Triangle, FastSigmoid, Sigmoid, Arctan, Tanh, Gaussian)
}
DEFAULT_SURROGATE = Exponential()
