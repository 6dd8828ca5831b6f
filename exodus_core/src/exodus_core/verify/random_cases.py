"""Random runs of every neuron, method, reset, surrogate and dtype, in small odd sizes.

One case is one sequence of one neuron with parameters of its own. Inputs are normal numbers, numbers on a grid of
eighths, and numbers of sizes from 2^-10 to 2^10; in a third of the runs they are aimed, so that a few membranes are at
the threshold, the edge of a boxcar or the lower bound, but for rounding.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import cycle, product
from typing import Any

import torch
from torch import Tensor

import exodus_core
from exodus_core.arguments import METHODS
from exodus_core.coupled import neurons
from exodus_core.kernels import AlphaKernel, ExponentialKernel, Kernel, SlayerRefractory
from exodus_core.ops import COUPLED_STATES
from exodus_core.surrogate import KINDS, Surrogate
from exodus_core.verify.certificate import AnyRun
from exodus_core.verify.coupled import CoupledRun, run_coupled
from exodus_core.verify.runs import RESETS, LifRun, SrmRun, run_lif, run_srm

#: LIF+ is LIF or IF with a refractory period, a reset to a value or a detached reset.
NEURONS = ("LIF", "IF", "SRM", "LIF+", "CubaLIF", "ALIF")
_COUPLED = ("LIF+", "CubaLIF", "ALIF")
_COUPLED_RESETS = (*RESETS, "value")
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


def random_runs(cases: int, seed: int) -> Iterator[tuple[str, AnyRun]]:
    """Runs with their neuron, of at least so many cases in all.

    Neurons and methods take turns, and each goes through all its combinations before any comes again.
    """
    draws = _Draws(seed)
    turns = [(neuron, method, _combinations(draws, neuron)) for neuron, method in product(NEURONS, METHODS)]
    done = 0
    for neuron, method, combinations in cycle(turns):
        if done >= cases:
            return
        what, kind, dtype = next(combinations)
        case = _Case(draws, dtype)
        options, outputs = case.options(kind) | {"method": method}, case.outputs()
        if neuron == "SRM":
            run: AnyRun = _srm(case, what, options, outputs)
        elif neuron in _COUPLED:
            run = _coupled(case, neuron, what, options, outputs)
        else:
            run = _lif(case, neuron, what, options, outputs)
        done += run.spikes.shape[1]
        yield neuron, run


def _combinations(draws: _Draws, neuron: str) -> Iterator[tuple[str, str, torch.dtype]]:
    """Reset, or kind of the reset kernel, surrogate and dtype; all of them in random order, again and again."""
    resets = _SRM_KERNELS if neuron == "SRM" else _COUPLED_RESETS if neuron in _COUPLED else tuple(RESETS)
    combinations = list(product(resets, KINDS, _DTYPES))
    while True:
        draws.random.shuffle(combinations)
        yield from combinations


class _Case:
    """Sizes and dtype of a run, and arguments of such sizes."""

    def __init__(self, draws: _Draws, dtype: torch.dtype) -> None:
        outer, inner = draws.random.choice((1, 1, 2, 3)), draws.random.choice((1, 3, 7, 17, 33, 65))
        self.draws = draws
        self.dtype = dtype
        self.steps, self.time_dim = draws.random.randint(1, _MOST_STEPS), draws.random.randrange(3)
        self.shape = [outer, inner]
        self.shape.insert(self.time_dim, self.steps)

    def signal(self) -> Tensor:
        return self.draws.signal(*self.shape).to(self.dtype)

    @property
    def _lanes(self) -> list[int]:
        return [size for axis, size in enumerate(self.shape) if axis != self.time_dim]

    def state(self) -> Tensor:
        return self.draws.signal(*self._lanes).to(self.dtype)

    def counts(self, most: float) -> Tensor:
        """Whole numbers up to about so many."""
        return torch.round(self.draws.uniform(0, most, *self._lanes)).to(self.dtype)

    def parameter(self, low: float, high: float, *special: float) -> Tensor:
        neurons = self.shape[self.time_dim + 1 :]
        drawn = self.draws.parameter(math.prod(neurons), low, high, *special).to(self.dtype)
        return drawn.reshape(neurons) if drawn.dim() else drawn

    def options(self, kind: str) -> dict[str, Any]:
        """Arguments of all neurons."""
        return {
            "threshold": self.parameter(0.4, 1.5, 0.0, -0.5, 1.0),
            "surrogate": self.draws.surrogate(kind),
            "time_dim": self.time_dim,
        }

    def lif_options(self, reset: str) -> dict[str, Any]:
        """Arguments of all but SRM neurons."""
        one_in = self.draws.one_in
        options: dict[str, Any] = {"reset": reset.removesuffix("_decayed"), "decay_reset": RESETS.get(reset, False)}
        if one_in(2):
            options["initial_membrane"], options["initial_spikes"] = self.state(), self.counts(1.4)
        if one_in(2):
            options["reset_by"] = self.parameter(0.2, 1.5, 0.0)
        if one_in(3):
            options["min_membrane"] = self.parameter(-1.5, 0.2, 0.0)
        return options

    def counting_spikes(self, one_in: int) -> dict[str, Any]:
        """Arguments of neurons that may fire more than once a step, of so many one; else none."""
        if not self.draws.one_in(one_in):
            return {}
        return {"max_spikes": self.draws.random.choice((2, 3, 100)), "threshold": self.parameter(0.4, 1.5, 0.5)}

    def outputs(self) -> dict[str, Any]:
        """Gradients of the outputs."""
        return {"grad_spikes": self.signal(), "grad_membrane": self.signal() if self.draws.one_in(2) else None}

    def aimed(
        self,
        reached: Callable[[Tensor], tuple[Tensor, Tensor]],
        options: dict[str, Any],
        gain: float | Tensor = 1.0,
        lag: int = 0,
    ) -> Tensor:
        """An input, in one case of three changed at a few steps, so that membranes come to the threshold, an edge of
        the boxcar or the lower bound, but for rounding.

        Args:
            reached: membrane and threshold of the last step of an input.
            options: the arguments of the neurons.
            gain, lag: what the membrane gets of the input, and how many steps later.
        """
        x, random = self.signal(), self.draws.random
        if not self.draws.one_in(3):
            return x
        edge = 0.5 / options["surrogate"].slope
        for step in sorted(random.sample(range(lag, self.steps), min(3, self.steps - lag))):
            membrane, threshold = reached(x.narrow(self.time_dim, 0, step + 1))
            target = threshold + random.choice((0.0, 0.0, edge, -edge))
            if "min_membrane" in options and self.draws.one_in(3):
                target = options["min_membrane"]
            x.select(self.time_dim, step - lag).add_((target - membrane) / gain)
        return x


def _srm(case: _Case, kind: str, options: dict[str, Any], outputs: dict[str, Any]) -> SrmRun:
    kernel = case.draws.srm_kernel(kind)
    kernel = kernel.to(case.dtype) if isinstance(kernel, Tensor) else kernel

    def reached(z: Tensor) -> tuple[Tensor, Tensor]:
        return exodus_core.srm(z, kernel, **options)[1].select(case.time_dim, -1), options["threshold"]

    return run_srm(case.aimed(reached, options), kernel, **outputs, **options)


def _lif(case: _Case, neuron: str, reset: str, options: dict[str, Any], outputs: dict[str, Any]) -> LifRun:
    options |= case.lif_options(reset)
    if reset != "zero":
        options |= case.counting_spikes(one_in=4)
    alpha = 1.0 if neuron == "IF" else case.parameter(0.0, 1.0, 0.0, 0.5)

    def reached(x: Tensor) -> tuple[Tensor, Tensor]:
        return exodus_core.lif(x, alpha, **options)[1].select(case.time_dim, -1), options["threshold"]

    return run_lif(case.aimed(reached, options), alpha, **outputs, **options)


def _coupled(case: _Case, neuron: str, reset: str, options: dict[str, Any], outputs: dict[str, Any]) -> CoupledRun:
    draws = case.draws
    options |= case.lif_options(reset)
    if reset == "value":
        options["reset_to"] = case.parameter(-0.6, 0.6, 0.0)
    options["detach_reset"] = draws.one_in(3)
    plain = neuron == "LIF+" and reset != "value" and not options["detach_reset"]
    if plain or draws.one_in(3):
        options["refractory"] = draws.random.choice((1, 2, 5))
        if draws.one_in(2):
            options["initial_refractory"] = case.counts(2.4)
    if neuron == "CubaLIF" or (neuron == "ALIF" and draws.one_in(3)):
        options |= {"synapse_alpha": case.parameter(0.0, 1.0, 0.0, 0.5), "synapse_delayed": draws.one_in(3)}
        if draws.one_in(2):
            options["synapse_gain"] = case.parameter(0.2, 1.5, 0.0)
        if draws.one_in(2):
            options["initial_current"] = case.state()
    if neuron == "ALIF":
        options |= {"adapt_alpha": case.parameter(0.0, 1.0, 0.0, 0.5), "adapt_by": case.parameter(0.1, 1.0, 0.0)}
        for name, low, high in (("threshold", 0.1, 0.8), ("membrane", -0.2, 0.3), ("current", 0.1, 0.5)):
            if draws.one_in(2):
                options[f"adapt_{name}"] = case.parameter(low, high, 0.0)
        if draws.one_in(2):
            options["initial_adaptation"] = case.state()
    if reset not in ("zero", "value") and "adapt_threshold" not in options:
        options |= case.counting_spikes(one_in=6)
    alpha = 1.0 if neuron == "LIF+" and draws.one_in(4) else case.parameter(0.0, 1.0, 0.0, 0.5)

    def reached(x: Tensor) -> tuple[Tensor, Tensor]:
        _, membrane, last = neurons(x, alpha, **options)
        reached = membrane.select(case.time_dim, -1)
        adaptation = last[COUPLED_STATES.index("adaptation")].reshape(reached.shape).to(reached.dtype)
        return reached, options["threshold"] + options.get("adapt_threshold", 0.0) * adaptation

    gain = options.get("synapse_gain", torch.ones(()))
    gain = torch.where(gain == 0, 1.0, gain)  # nothing reaches the membrane
    x = case.aimed(reached, options, gain, lag=int(options.get("synapse_delayed", False)))
    return run_coupled(x, alpha, **outputs, **options)
