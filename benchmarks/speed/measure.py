"""Timing: contenders take turns, after a warm-up; best and median of their repeats.

A turn is some calls to settle, and one that is timed: nobody inherits caches, or pages that the allocator kept, from
whom came before, and everybody from himself, as in training. Calls that take seconds do without the former. A contender
whose call takes SLOW seconds or more is not repeated: its warm-up is what is reported. The others repeat as often as
fits into their share of time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

SLOW = 5.0
Phases = Callable[[], tuple[float, ...]]


@dataclass
class Timing:
    """The seconds of every repeat; a repeat may have phases, forward and backward say."""

    repeats: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(map(sum, self.repeats))

    @property
    def median(self) -> float:
        return statistics.median(map(sum, self.repeats))

    def best_of(self, phase: int) -> float:
        return min(repeat[phase] for repeat in self.repeats)


def _settling(seconds: float) -> int:
    """Number of untimed calls before a timed one: five of a few milliseconds, one of up to a second."""
    return 0 if seconds >= 1.0 else max(1, min(5, int(0.05 / max(seconds, 1e-9))))


def interleaved(turns: Mapping[str, Phases], most: int, share: float) -> dict[str, Timing]:
    """Each call to warm up, then turns in rounds: `most` repeats each, or fewer that take `share` seconds."""
    timings = {name: Timing() for name in turns}
    left = {}
    settles = {}
    for name, turn in turns.items():
        first = turn()
        if sum(first) < SLOW:
            first = turn()  # memory that was never written to is no measure of how long a call takes
        seconds = sum(first)
        settles[name] = _settling(seconds)
        if seconds >= SLOW:
            for _ in range(settles[name]):
                turns[name]()
            timings[name].repeats.append(first)
            left[name] = 0
        else:
            left[name] = max(1, min(most, int(share / max(seconds * (1 + settles[name]), 1e-9))))
    while any(left.values()):
        for name in (name for name, count in left.items() if count):
            for _ in range(settles[name]):
                turns[name]()
            timings[name].repeats.append(turns[name]())
            left[name] -= 1
    return timings


def seconds(step: Callable[[], object]) -> Phases:
    """A turn of one phase. Results of the step are freed after the clock has stopped."""

    def turn() -> tuple[float, ...]:
        start = time.perf_counter()
        result = step()
        elapsed = time.perf_counter() - start
        del result
        return (elapsed,)

    return turn


def forward_backward(spikes_of: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Phases:
    """A turn of two phases: a call on a fresh leaf, and its backward pass. Outputs and gradients are allocated."""

    def turn() -> tuple[float, ...]:
        leaf = x.detach().requires_grad_()
        start = time.perf_counter()
        spikes = spikes_of(leaf)
        middle = time.perf_counter()
        spikes.backward(g)
        end = time.perf_counter()
        del spikes, leaf
        return middle - start, end - middle

    return turn
