"""Causal kernels: spike response kernels (eps) and reset kernels (nu) of SRM neurons (equations 3 and 5 to 8).

A kernel is a 1-d tensor of taps (FIR: any shape, costs O(T K)), or one of the two classes here, which are linear
recurrences of order one or two and cost O(T) whatever their length: sums of modes (constant + linear k) decay^k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["AlphaKernel", "ExponentialKernel", "Kernel"]


@dataclass(frozen=True)
class Modes:
    """The kernel sum_m (constant_m + linear_m k) decay_m^k, k = 0, 1, ..."""

    decay: tuple[float, ...]
    constant: tuple[float, ...]
    linear: tuple[float, ...]


@dataclass(frozen=True)
class _ModalKernel:
    modes: Modes = field(init=False, repr=False, compare=False)

    def taps(self, length: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """The first `length` values of the kernel, shape (length,): the FIR kernel equal to it where T <= length."""
        k = torch.arange(length, dtype=torch.float64)
        total = torch.zeros(length, dtype=torch.float64)
        for decay, constant, linear in zip(self.modes.decay, self.modes.constant, self.modes.linear, strict=True):
            total += (constant + linear * k) * decay**k
        return total.to(dtype)


def _number(name: str, value: float, wanted: str = "a number") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def _numbers(name: str, value: float | tuple[float, ...]) -> tuple[float, ...]:
    values = value if isinstance(value, tuple) else (value,)
    return tuple(_number(name, v, "a number or a tuple of numbers") for v in values)


@dataclass(frozen=True)
class ExponentialKernel(_ModalKernel):
    """amplitude alpha^k, k = 0, 1, ...; with tuples of one length, a sum of exponentials.

    Args:
        alpha: decay per step, exp(-dt/tau), in [0, 1].
        amplitude: the value at k = 0; negative for a reset kernel.

    Raises:
        TypeError: an argument is not a number or a tuple of numbers.
        ValueError: alpha outside [0, 1], a value that is not finite, or tuples of different lengths.
    """

    alpha: float | tuple[float, ...]
    amplitude: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        alpha, amplitude = _numbers("alpha", self.alpha), _numbers("amplitude", self.amplitude)
        if not all(0 <= a <= 1 for a in alpha):
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        if len(alpha) != len(amplitude) or not alpha:
            raise ValueError(f"alpha and amplitude must have one length, got {len(alpha)} and {len(amplitude)}")
        object.__setattr__(self, "modes", Modes(alpha, amplitude, (0.0,) * len(alpha)))


@dataclass(frozen=True)
class AlphaKernel(_ModalKernel):
    """amplitude (k/tau) exp(1 - k/tau), k = 0, 1, ...: zero at k = 0, `amplitude` at k = tau (the kernels of SLAYER).

    Args:
        tau: time constant in steps, positive.
        amplitude: the largest value; negative for a reset kernel.

    Raises:
        TypeError: an argument is not a number.
        ValueError: tau is not positive, or a value is not finite.
    """

    tau: float
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        tau, amplitude = _number("tau", self.tau), _number("amplitude", self.amplitude)
        if tau <= 0:
            raise ValueError(f"tau must be positive, got {self.tau}")
        object.__setattr__(self, "modes", Modes((math.exp(-1 / tau),), (0.0,), (amplitude * math.e / tau,)))


Kernel = Tensor | ExponentialKernel | AlphaKernel
