"""Table of the requirements: bound, measured figure and verdict of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .comparison import TRIADS, Comparison
from .contenders import CONTENDERS, INDEXED
from .growth import best_times, deviation
from .machine import last_level_cache
from .measure import Timing
from .workloads import WORKLOADS, Workload

BENCH = "`make bench`"
KERNELS = "`python -m benchmarks.speed --kernels`"
LOOPS = [c.name for c in CONTENDERS if c.name not in ("exodus", "slayer", "SpikingJelly") and not c.compiles]
MICRO = 1e6


@dataclass(frozen=True)
class Requirement:
    """`reached` is None where the run did not measure it; `possible` is what the memory's limit would have reached."""

    what: str
    bound: float
    reached: float | None
    at_least: bool = False
    unit: str = "x"
    command: str = BENCH
    possible: float | None = None

    @property
    def holds(self) -> bool | None:
        if self.reached is None:
            return None
        return self.reached >= self.bound if self.at_least else self.reached <= self.bound

    def row(self) -> list[str]:
        sign = ">=" if self.at_least else "<="
        reached = "not measured" if self.reached is None else f"{self.reached:.3g}{self.unit}"
        verdict = {None: "", True: "yes", False: "**no**"}[self.holds]
        possible = "" if self.possible is None else f"{self.possible:.3g}{self.unit}"
        return [self.what, f"{sign} {self.bound:g}{self.unit}", reached, verdict, possible, self.command]


def beyond_the_cache(workload: Workload) -> bool:
    """True if the three arrays of a kernel exceed twice the last-level cache."""
    return 3 * workload.nbytes > 2 * last_level_cache()


def speed_up(timings: dict[str, Timing], name: str, of: str = "exodus") -> float:
    """Time of the contender in times of exodus, best against best."""
    return timings[name].best / timings[of].best


def _against(
    what: str, bound: float, comparison: Comparison, workloads: list[Workload], names: list[str]
) -> Requirement:
    """The smallest speed-up over the named contenders and the workloads."""
    timed = [comparison.neuron[w.name] for w in workloads if "exodus" in comparison.neuron.get(w.name, {})]
    pairs = [(timings, name) for timings in timed for name in names if name in timings]
    reached = min((speed_up(*pair) for pair in pairs), default=None)
    possible = min((speed_up(*pair, of=TRIADS) for pair in pairs), default=None)
    return Requirement(what, bound, reached, at_least=True, possible=possible)


def _largest(values: Iterable[float]) -> float | None:
    return max(values, default=None)


def requirements(comparison: Comparison, kernels: dict[str, dict[str, Any]]) -> list[Requirement]:
    """Of the kernels on the CPU; each figure is the worst of the workloads that the requirement is about."""
    large = WORKLOADS[3]
    short = [w for w in WORKLOADS if w.time < 500]
    long = [w for w in WORKLOADS if w.time >= 500]
    others = [w for w in WORKLOADS if w != large]
    reused = kernels["reused"]
    memory, variants = reused["memory"], reused["variants"]
    beyond = [memory[w.name] for w in WORKLOADS if w.name in memory and beyond_the_cache(w)]
    curves = reused["growth"]
    overhead: Timing = reused["overhead"]
    jelly = ["SpikingJelly"]
    indexing = ["sinabs", INDEXED]
    rows = [
        _against("against SpikingJelly", 12, comparison, others, jelly),
        _against(f"against SpikingJelly at {large.name}", 7, comparison, [large], jelly),
        _against("against all loops, T < 500", 40, comparison, short, LOOPS),
        _against("against all loops, T >= 500", 300, comparison, long, LOOPS),
        _against("against the loops that index x[:, t], T < 500", 40, comparison, short, indexing),
        _against("against the loops that index x[:, t], T >= 500", 300, comparison, long, indexing),
    ]
    for kernel in ("forward", "backward"):
        ratio = _largest(of[kernel].best / of["triad"].best for of in beyond)
        rows.append(Requirement(f"{kernel} kernel against a triad, beyond the cache", 1.25, ratio, command=KERNELS))
    for name, curve in curves.items():
        if name.startswith("time"):
            ratio = deviation(best_times(curve), 1000)
            rows.append(Requirement(f"growth with {name}: a step, against T = 1000", 1.1, ratio, command=KERNELS))
    last = _largest(of["time last"].best / of["canonical"].best for of in variants.values())
    wanted = _largest(of["parameters"].best_of(1) / of["canonical"].best_of(1) for of in variants.values())
    return [
        *rows,
        Requirement("time axis last against the canonical layout", 2, last, command=KERNELS),
        Requirement("backward with gradients of alpha, threshold, reset_by", 1.3, wanted, command=KERNELS),
        Requirement("kept for the backward pass, in membranes", 1, comparison.kept.get("exodus"), unit=""),
        Requirement("one forward call at 4x8x4", 25, MICRO * overhead.best_of(0), unit=" us", command=KERNELS),
        Requirement("one backward call at 4x8x4", 25, MICRO * overhead.best_of(1), unit=" us", command=KERNELS),
    ]
