"""Times of contenders that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Times:
    """Seconds of many runs of one thing."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.seconds)

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.seconds, q))

    @property
    def p50(self) -> float:
        return self.percentile(50)


def take_turns(contenders: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 3) -> dict[str, Times]:
    """Run every contender `repeats` times, one after the other in each round, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(-warm_up, repeats):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: Times(tuple(taken)) for name, taken in seconds.items()}
