"""Causal kernels: spike response kernels (eps) and reset kernels (nu) of SRM neurons (equations 3 and 5 to 8).

A kernel is a 1-d tensor of taps (FIR: any shape, costs O(T K)), or one of the classes here, which are linear
recurrences of order one or two and cost O(T) whatever their length: sums of modes (constant + linear k) decay^k. The
kernels of SLAYER (arXiv 1810.08646) are `SlayerResponse` for `filter` and `SlayerRefractory` for `srm`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from exodus_core.errors import ArgumentError, ArgumentTypeError

__all__ = ["MODAL_KERNELS", "AlphaKernel", "ExponentialKernel", "Kernel", "SlayerRefractory", "SlayerResponse"]

_MOST = sys.float_info.max


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
        """The first `length` values of the kernel, shape (length,): the FIR kernel equal to it up to T = length."""
        k = torch.arange(length, dtype=torch.float64)
        total = torch.zeros(length, dtype=torch.float64)
        for decay, constant, linear in zip(self.modes.decay, self.modes.constant, self.modes.linear, strict=True):
            total += (constant + linear * k) * decay**k
        return total.to(dtype)

    def cut(self, below: float, dtype: torch.dtype = torch.float64) -> Tensor:
        """The taps up to the last one whose absolute value is at least `below`, shape (K,), K >= 1; in O(T K).

        slayerPytorch cuts its kernels so, at 0.01: `SlayerResponse(tau).cut(0.01)`.

        Raises:
            TypeError: below is not a number.
            ValueError: below is not positive and finite, or more than 2^20 taps are not below it.
        """
        below, most = _number("below", below), 2**20
        if below <= 0:
            raise ArgumentError("below", "positive", below)
        # Past the time constant of its slowest mode the bound of a kernel falls, whatever the kernel itself does.
        length = max((-1 / math.log(decay) for decay in self.modes.decay if 0 < decay < 1), default=0.0)
        length = max(64, math.ceil(length))
        while length <= 2 * most and self._bound(length) >= below:
            length *= 2
        if length <= 2 * most:
            taps = self.taps(length)
            felt = (taps.abs() >= below).nonzero()
            kept = int(felt.max()) + 1 if len(felt) else 1
            if kept <= most:
                return taps[:kept].to(dtype)
        raise ArgumentError("below", f"a value that leaves at most {most} taps", below)

    def _bound(self, k: int) -> float:
        """A bound of the value at k: the sum of the modes' absolute values."""
        modes = zip(self.modes.decay, self.modes.constant, self.modes.linear, strict=True)
        return sum((abs(constant) + abs(linear) * k) * decay**k for decay, constant, linear in modes)


def _number(name: str, value: Any, wanted: str = "a number") -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(name, wanted, type(value).__name__)
    number: Any = value
    if not -_MOST <= number <= _MOST:  # not math.isfinite, which torch.compile cannot trace where numbers are dynamic
        raise ArgumentError(name, "finite", number)
    return float(number)


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
            raise ArgumentError("alpha", "in [0, 1]", self.alpha)
        if len(alpha) != len(amplitude) or not alpha:
            raise ArgumentError("amplitude", f"of the length of alpha, {len(alpha)}, and not empty", len(amplitude))
        object.__setattr__(self, "modes", Modes(alpha, amplitude, (0.0,) * len(alpha)))


def _check_tau(tau: float) -> float:
    tau = _number("tau", tau)
    if tau <= 0:
        raise ArgumentError("tau", "positive", tau)
    return tau


@dataclass(frozen=True)
class AlphaKernel(_ModalKernel):
    """amplitude (k/tau) exp(1 - k/tau), k = 0, 1, ...: zero at k = 0, `amplitude` at k = tau.

    As a reset kernel it acts one step later than SLAYER's, which is `SlayerRefractory`: `srm` adds the k-th value to
    the membrane k + 1 steps after the spike.

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
        tau, amplitude = _check_tau(self.tau), _number("amplitude", self.amplitude)
        slope = _number("amplitude / tau", amplitude * math.e / tau)
        object.__setattr__(self, "modes", Modes((math.exp(-1 / tau),), (0.0,), (slope,)))


@dataclass(frozen=True)
class SlayerResponse(AlphaKernel):
    """SLAYER's spike response kernel, eps[k] = amplitude (k/tau) exp(1 - k/tau): `AlphaKernel` by its name there.

    tau is SLAYER's tauSr in steps, tauSr / Ts. slayerPytorch cuts the kernel once it has fallen below 0.01; for its
    spikes bit by bit, filter with the taps `SlayerResponse(tau).cut(0.01)`.
    """


@dataclass(frozen=True)
class SlayerRefractory(_ModalKernel):
    """SLAYER's refractory kernel as `srm` takes it: amplitude ((k+1)/tau) exp(1 - (k+1)/tau), k = 0, 1, ...

    SLAYER's nu[k] = amplitude (k/tau) exp(1 - k/tau) acts k steps after the spike, and nu[0] = 0 is not felt; `srm`
    counts from the step after the spike. So this is nu[1], nu[2], ...

    Args:
        tau: tauRef in steps, tauRef / Ts, positive.
        amplitude: the largest value, negative: -scaleRef theta.

    Raises:
        TypeError: an argument is not a number.
        ValueError: tau is not positive, or a value is not finite.
    """

    tau: float
    amplitude: float

    def __post_init__(self) -> None:
        tau, amplitude = _check_tau(self.tau), _number("amplitude", self.amplitude)
        first = _number("amplitude / tau", amplitude / tau * math.exp(1 - 1 / tau))
        object.__setattr__(self, "modes", Modes((math.exp(-1 / tau),), (first,), (first,)))


MODAL_KERNELS: tuple[type, ...] = (ExponentialKernel, AlphaKernel, SlayerRefractory)
Kernel = Tensor | ExponentialKernel | AlphaKernel | SlayerRefractory
