"""Random runs of every neuron, method, reset, surrogate and dtype, in small odd sizes.

One case is one sequence of one neuron with parameters of its own. Inputs are normal numbers, numbers on a grid of
eighths, and numbers of sizes from 2^-10 to 2^10; in a third of the runs they are aimed, so that a few membranes are at
the threshold, the edge of a boxcar or the lower bound, but for rounding.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

import exodus_core
from exodus_core.arguments import METHODS
from exodus_core.kernels import AlphaKernel, ExponentialKernel, Kernel, SlayerRefractory
from exodus_core.surrogate import KINDS, Surrogate
from exodus_core.verify.runs import RESETS, LifRun, SrmRun, run_lif, run_srm

NEURONS = ("LIF", "IF", "SRM")
_DTYPES = (torch.float32, torch.float64)
_SRM_KERNELS = ("taps", "exponential", "alpha", "refractory")
_MOST_STEPS = 30


class _Draws:
    """Random arguments; the same ones of the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def one_in(self, n: int) -> bool:
        return self.random.randrange(n) == 0

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def signal(self, *shape: int) -> Tensor:
        kind = self.random.choice(("normal", "normal", "grid", "wide"))
        if kind == "grid":
            return torch.round(8 * self.normal(*shape)) / 8
        values = 0.2 + 0.7 * self.normal(*shape)
        return values * torch.exp2(self.uniform(-10, 10, *shape)) if kind == "wide" else values

    def surrogate(self, kind: str) -> Surrogate:
        if self.one_in(3):
            return KINDS[kind]()
        slope = self.random.choice((0.5, 1.0, 4.0, self.random.uniform(0.3, 5)))
        return KINDS[kind](slope, self.random.choice((1.0, 1.0, self.random.uniform(-1, 2))))

    def parameter(self, inner: int, low: float, high: float, *special: float) -> Tensor:
        """One value, or one a neuron."""
        if self.one_in(5):
            return torch.tensor(self.random.choice((*special, 1.0)), dtype=torch.float64)
        return self.uniform(low, high, *(() if self.one_in(4) else (inner,)))

    def srm_kernel(self, kind: str) -> Kernel:
        if kind == "taps":
            return 0.7 * self.normal(self.random.randint(1, 7)) - 0.3
        tau, amplitude = self.random.uniform(1, 8), -self.random.uniform(0.3, 1.5)
        if kind == "exponential":
            two = self.one_in(2)
            return (
                ExponentialKernel((0.9, self.random.random()), (amplitude, 0.3))
                if two
                else ExponentialKernel(self.random.random(), amplitude)
            )
        return AlphaKernel(tau, amplitude) if kind == "alpha" else SlayerRefractory(tau, amplitude)


def random_runs(cases: int, seed: int) -> Iterator[tuple[str, LifRun | SrmRun]]:
    """Runs with their neuron, of at least so many cases in all; every combination before any comes again."""
    draws = _Draws(seed)
    combinations = list(product(("LIF", "IF"), METHODS, RESETS, KINDS, _DTYPES))
    combinations += list(product(("SRM",), METHODS, _SRM_KERNELS, KINDS, _DTYPES))
    done = 0
    while True:
        draws.random.shuffle(combinations)
        for neuron, method, what, kind, dtype in combinations:
            if done >= cases:
                return
            run = _run(draws, neuron, method, what, kind, dtype)
            done += run.spikes.shape[1]
            yield neuron, run


def _aimed(draws: _Draws, forward: Callable[[Tensor], Tensor], x: Tensor, options: dict[str, Any]) -> Tensor:
    """The input changed at a few steps, so that membranes come to the threshold, an edge of the boxcar or the lower
    bound, but for rounding; `forward` gives the membranes of an input."""
    time_dim, steps = options["time_dim"], x.shape[options["time_dim"]]
    x, edge = x.clone(), 0.5 / options["surrogate"].slope
    for step in sorted(draws.random.sample(range(steps), min(3, steps))):
        target = options["threshold"] + draws.random.choice((0.0, 0.0, edge, -edge))
        if "min_membrane" in options and draws.one_in(3):
            target = options["min_membrane"]
        x.select(time_dim, step).add_(target - forward(x).select(time_dim, step))
    return x


def _run(draws: _Draws, neuron: str, method: str, what: str, kind: str, dtype: torch.dtype) -> LifRun | SrmRun:
    outer, inner = draws.random.choice((1, 1, 2, 3)), draws.random.choice((1, 3, 7, 17, 33, 65))
    steps, time_dim = draws.random.randint(1, _MOST_STEPS), draws.random.randrange(3)
    shape = [outer, inner]
    shape.insert(time_dim, steps)
    neurons = shape[time_dim + 1 :]

    def signal(*sizes: int) -> Tensor:
        return draws.signal(*sizes).to(dtype)

    def parameter(low: float, high: float, *special: float) -> Tensor:
        drawn = draws.parameter(math.prod(neurons), low, high, *special).to(dtype)
        return drawn.reshape(neurons) if drawn.dim() else drawn

    options: dict[str, Any] = {
        "threshold": parameter(0.4, 1.5, 0.0, -0.5, 1.0),
        "surrogate": draws.surrogate(kind),
        "time_dim": time_dim,
    }
    outputs: dict[str, Any] = {
        "grad_spikes": signal(*shape),
        "grad_membrane": signal(*shape) if draws.one_in(2) else None,
    }
    x = signal(*shape)
    if neuron == "SRM":
        kernel = draws.srm_kernel(what)
        kernel = kernel.to(dtype) if isinstance(kernel, Tensor) else kernel
        if draws.one_in(3):
            x = _aimed(draws, lambda psp: exodus_core.srm(psp, kernel, **options)[1], x, options)
        return run_srm(x, kernel, **outputs, method=method, **options)
    options |= {"reset": what.removesuffix("_decayed"), "decay_reset": RESETS[what]}
    if draws.one_in(2):
        state = [size for axis, size in enumerate(shape) if axis != time_dim]
        options["initial_membrane"] = signal(*state)
        options["initial_spikes"] = torch.round(draws.uniform(0, 1.4, *state)).to(dtype)
    if draws.one_in(2):
        options["reset_by"] = parameter(0.2, 1.5, 0.0)
    if draws.one_in(3):
        options["min_membrane"] = parameter(-1.5, 0.2, 0.0)
    if what != "zero" and draws.one_in(4):
        options["max_spikes"] = draws.random.choice((2, 3, 100))
        options["threshold"] = parameter(0.4, 1.5, 0.5)
    alpha = 1.0 if neuron == "IF" else parameter(0.0, 1.0, 0.0, 0.5)
    if draws.one_in(3):
        x = _aimed(draws, lambda current: exodus_core.lif(current, alpha, **options)[1], x, options)
    return run_lif(x, alpha, **outputs, method=method, **options)
