"""The surrogate derivatives that the service knows, by name; it computes them, the client only names them.

With x = u - threshold, slope k and a scale that multiplies the derivative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from exodus_client._checks import POSITIVE, real


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Base of the eight kinds.

    Attributes:
        slope: steepness k, above 0; None for the service's default of the kind.
        scale: factor on the derivative.

    Raises:
        TypeError: slope or scale is not a number.
        ValueError: slope is not above 0, or one is not finite.
    """

    kind: ClassVar[str]

    slope: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if self.slope is not None:
            real(f"{kind}.slope", self.slope, POSITIVE)
        real(f"{kind}.scale", self.scale)

    def params(self) -> dict[str, Any]:
        """As it travels in the parameters of a request."""
        slope = {} if self.slope is None else {"slope": float(self.slope)}
        return {"kind": self.kind, "scale": float(self.scale)} | slope


class Exponential(Surrogate):
    """exp(-k abs(x)): SLAYER's."""

    kind = "exponential"


class Boxcar(Surrogate):
    """k where abs(x) <= 1/(2k), else 0."""

    kind = "boxcar"


class Triangle(Surrogate):
    """max(0, 1 - k abs(x))."""

    kind = "triangle"


class FastSigmoid(Surrogate):
    """1 / (1 + k abs(x))^2: SuperSpike's."""

    kind = "fast_sigmoid"


class Sigmoid(Surrogate):
    """k q (1 - q) with q = 1 / (1 + exp(-k x))."""

    kind = "sigmoid"


class Arctan(Surrogate):
    """(k/2) / (1 + (pi k x / 2)^2)."""

    kind = "arctan"


class Tanh(Surrogate):
    """1 - tanh(k x)^2."""

    kind = "tanh"


class Gaussian(Surrogate):
    """k / sqrt(2 pi) exp(-(k x)^2 / 2)."""

    kind = "gaussian"


#: Wire name of a kind -> its class.
KINDS: dict[str, type[Surrogate]] = {
    kind.kind: kind for kind in (Exponential, Boxcar, Triangle, FastSigmoid, Sigmoid, Arctan, Tanh, Gaussian)
}
