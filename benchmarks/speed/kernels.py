"""The kernels by themselves: against the memory's speed, in every layout, dtype and surrogate, and how they grow.

    python -m benchmarks.speed.kernels [--quick]     prints JSON

The operators allocate what they return, and keep the memory of what was freed. glibc gives memory of 32 MiB or more
back at once, so that the next call pays for its page faults again. `measured` therefore runs this module twice, each
time in a process of its own: "fresh", where nothing is kept, and "reused", where glibc is told to keep what is freed
too, so that outputs lie in memory that has been written before, as the arrays of the triad do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exodus_core
from exodus_core import ops
from exodus_core.arguments import FLOATS
from exodus_core.surrogate import KINDS, Surrogate

from . import growth
from .measure import Timing, forward_backward, interleaved, seconds
from .workloads import ALPHA, QUICK, SURROGATE, WORKLOADS, Workload

ROOT = Path(__file__).parents[2]
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
MODES = {"fresh": {"EXODUS_KEEP_MEMORY": "0"}, "reused": KEEP_MEMORY}
NEURON = (ALPHA, 1.0, 1.0, -float("inf"), 1.0)  # alpha, threshold, reset_by, min_membrane, max_spikes
NO_TENSORS = (None,) * 6
DECAYED = 1  # the reset's code
EXODUS = 0  # the method's code
SMALL = Workload(4, 8, 4)
CALLS = 200  # a repeat of the small call


def forward_kernel(x: Tensor) -> Callable[[], object]:
    return lambda: ops.lif_forward(x, *NEURON, *NO_TENSORS, DECAYED, False, 1)


def backward_kernel(membrane: Tensor, g: Tensor, surrogate: Surrogate = SURROGATE) -> Callable[[], object]:
    shape = (surrogate.code, surrogate.slope, surrogate.scale)
    return lambda: ops.lif_backward(membrane, g, None, *NEURON, *NO_TENSORS, DECAYED, False, *shape, EXODUS, False, 1)


def triad(workload: Workload) -> Callable[[], object]:
    """STREAM's: two arrays read, one written, into memory that exists."""
    a, b, c = (torch.randn(workload.shape) for _ in range(3))
    return lambda: torch.add(a, b, alpha=0.5, out=c)


def copy(workload: Workload) -> Callable[[], object]:
    """One array read, one written."""
    a, b = (torch.randn(workload.shape) for _ in range(2))
    return lambda: b.copy_(a)


def _lif(time_dim: int = 1, alpha: float | Tensor = ALPHA, **parameters: Any) -> Callable[[Tensor], Tensor]:
    options: dict[str, Any] = {"decay_reset": True, "surrogate": SURROGATE, "time_dim": time_dim, **parameters}
    return lambda x: exodus_core.lif(x, alpha, **options)[0]


def against_the_memory(workload: Workload, most: int) -> dict[str, Timing]:
    x, g = workload.inputs()
    membrane = exodus_core.lif(x, ALPHA, decay_reset=True)[1]
    turns = {
        "forward": forward_kernel(x),
        "backward": backward_kernel(membrane, g),
        "triad": triad(workload),
        "copy": copy(workload),
    }
    return interleaved({name: seconds(turn) for name, turn in turns.items()}, most, share=3.0)


def variants(workload: Workload, most: int) -> dict[str, Timing]:
    """Forward + backward of the public function: canonical, time axis last, and with gradients of the parameters."""
    x, g = workload.inputs()
    last = x.movedim(1, -1).contiguous(), g.movedim(1, -1).contiguous()
    values = {"alpha": ALPHA, "threshold": 1.0, "reset_by": 1.0}
    wanted: dict[str, Any] = {
        name: torch.full((workload.neurons,), value, requires_grad=True) for name, value in values.items()
    }
    turns = {
        "canonical": forward_backward(_lif(), x, g),
        "time last": forward_backward(_lif(time_dim=-1), *last),
        "parameters": forward_backward(_lif(**wanted), x, g),
    }
    return interleaved(turns, most, share=3.0)


def surrogates(workload: Workload, most: int) -> dict[str, Timing]:
    """The backward kernel with each."""
    x, g = workload.inputs()
    membrane = exodus_core.lif(x, ALPHA, decay_reset=True)[1]
    turns = {kind: seconds(backward_kernel(membrane, g, cls())) for kind, cls in KINDS.items()}
    return interleaved(turns, most, share=1.0)


def dtypes(workload: Workload, most: int) -> dict[str, Timing]:
    x, g = workload.inputs()
    turns = {str(dtype).removeprefix("torch."): forward_backward(_lif(), x.to(dtype), g.to(dtype)) for dtype in FLOATS}
    return interleaved(turns, most, share=1.0)


def overhead(most: int) -> Timing:
    """Seconds of one forward and one backward call that have next to nothing to compute."""
    x, g = SMALL.inputs()
    spikes_of = _lif()

    def turn() -> tuple[float, ...]:
        leaves = [x.clone().requires_grad_() for _ in range(CALLS)]
        start = time.perf_counter()
        outputs = [spikes_of(leaf) for leaf in leaves]
        middle = time.perf_counter()
        for spikes in outputs:
            spikes.backward(g)
        end = time.perf_counter()
        return (middle - start) / CALLS, (end - middle) / CALLS

    return interleaved({"call": turn}, most, share=1.0)["call"]


def everything(quick: bool) -> dict[str, Any]:
    """All figures, as data: the seconds of every repeat, phase by phase."""
    workloads, most = (QUICK, 5) if quick else (WORKLOADS, 20)
    found: dict[str, Any] = {
        "memory": {w.name: against_the_memory(w, most) for w in workloads},
        "variants": {w.name: variants(w, most) for w in workloads},
        "surrogates": surrogates(WORKLOADS[0], most),
        "dtypes": dtypes(WORKLOADS[0], most),
        "overhead": overhead(max(most, 20)),
        "growth": growth.curves(_lif(), quick, most),
    }
    return found


def _as_timings(data: Any) -> Any:
    """The result of `everything`, read from JSON."""
    if isinstance(data, dict) and set(data) == {"repeats"}:
        return Timing([tuple(repeat) for repeat in data["repeats"]])
    return {name: _as_timings(value) for name, value in data.items()} if isinstance(data, dict) else data


def measured(mode: str, quick: bool) -> dict[str, Any]:
    """`everything` in a process whose allocator is "fresh" or "reused"."""
    command = [sys.executable, "-m", "benchmarks.speed.kernels", *(["--quick"] if quick else [])]
    environment = {**os.environ, **MODES[mode]}
    result = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = _as_timings(json.loads(result.stdout))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two workloads, few repeats")
    json.dump(everything(parser.parse_args().quick), sys.stdout, default=vars)
