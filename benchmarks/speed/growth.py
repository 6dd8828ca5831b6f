"""Growth of forward + backward with time, neurons, batch and threads.

One size is doubled while the others stay. "time, in the cache" has so few lanes that all arrays stay there; "time,
beyond the cache" so many that no array ever does. Between the two, what grows is the distance of the memory, not the
work of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .measure import Timing, forward_backward, interleaved
from .workloads import WORKLOADS, Workload

TIMES = [250, 500, 1000, 2000, 4000, 8000]
CURVES: dict[str, dict[int, Workload]] = {
    "time, in the cache": {t: Workload(1, t, 128) for t in TIMES},
    "time, beyond the cache": {t: Workload(8, t, 1024) for t in TIMES},
    "neurons": {n: Workload(8, 250, n) for n in (64, 128, 256, 512, 1024, 2048, 4096)},
    "batch": {b: Workload(b, 250, 256) for b in (1, 2, 4, 8, 16, 32, 64, 128)},
}
QUICK = {"time, in the cache"}


def curves(spikes_of: Callable[[Tensor], Tensor], quick: bool, most: int) -> dict[str, dict[int, Timing]]:
    """The timings along each curve, and of the first workload by the number of threads."""
    found = {
        name: interleaved(
            {str(size): forward_backward(spikes_of, *w.inputs()) for size, w in curve.items()}, most, share=1.0
        )
        for name, curve in CURVES.items()
        if not quick or name in QUICK
    }
    by_size = {name: {int(size): timing for size, timing in curve.items()} for name, curve in found.items()}
    return by_size | {"threads": _threads(spikes_of, most)}


def _threads(spikes_of: Callable[[Tensor], Tensor], most: int) -> dict[int, Timing]:
    x, g = WORKLOADS[0].inputs()
    threads = torch.get_num_threads()

    def with_threads(count: int) -> Callable[[], tuple[float, ...]]:
        turn = forward_backward(spikes_of, x, g)

        def run() -> tuple[float, ...]:
            torch.set_num_threads(count)
            try:
                return turn()
            finally:
                torch.set_num_threads(threads)

        return run

    counts = range(1, threads + 1)
    found = interleaved({str(count): with_threads(count) for count in counts}, most, share=1.0)
    return {count: found[str(count)] for count in counts}


def exponent(curve: dict[int, float]) -> float:
    """p of the least-squares fit seconds ~ size^p; 1 is linear."""
    x, y = [math.log(size) for size in curve], [math.log(seconds) for seconds in curve.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mean_x) ** 2 for a in x)


def deviation(curve: dict[int, float], start: int) -> float:
    """Cost of a step at the worst size beyond `start`, relative to its cost at `start`; 1 is linear."""
    return max(seconds / size for size, seconds in curve.items() if size > start) / (curve[start] / start)


def best_times(curve: dict[Any, Timing]) -> dict[int, float]:
    return {int(size): timing.best for size, timing in curve.items()}
