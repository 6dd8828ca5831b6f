"""How fast the neurons are on this machine's CPU: forward + backward through the public function.

    python benchmarks/neurons.py [--quick]

Contenders take turns, best of the repeats; a contender whose gradient is not that of the reference is listed as wrong
and not timed. Ratios are against the plain PyTorch loop in the same run.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import exodus_core
from exodus_core import reference

WORKLOADS = [(32, 100, 1024), (128, 250, 128), (8, 1000, 1024), (16, 500, 4096), (1, 4000, 512)]
QUICK_WORKLOADS = [(32, 100, 1024), (128, 250, 128)]
ALPHA = 0.9
AGREEMENT = 1e-5

Contender = Callable[[Tensor], tuple[Tensor, Tensor]]

CONTENDERS: dict[str, Contender] = {
    "exodus": lambda x: exodus_core.lif(x, ALPHA, decay_reset=True),
    "slayer": lambda x: exodus_core.lif(x, ALPHA, decay_reset=True, method="slayer"),
    "bptt, plain loop": lambda x: reference.lif(x, ALPHA, decay_reset=True),
}
REFERENCES = {"slayer": "slayer"}  # every other contender computes the exact gradient


def gradient(contender: Contender, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    spikes, membrane = contender(leaf)
    spikes.backward(g)
    assert leaf.grad is not None
    return membrane.detach(), leaf.grad


def is_right(name: str, shape: tuple[int, int, int]) -> bool:
    """Whether the contender's gradient is the reference's, on a small piece of the workload."""
    x, g = torch.randn(2, min(shape[0], 2), min(shape[1], 100), min(shape[2], 64))
    membrane, found = gradient(CONTENDERS[name], x, g)
    leaf, spikes, _ = reference.lif_on_trace(
        membrane.double(), ALPHA, decay_reset=True, method=REFERENCES.get(name, "bptt")
    )
    (expected,) = torch.autograd.grad(spikes, leaf, g.double())
    return bool((found - expected).abs().max() <= AGREEMENT * expected.abs().max())


def best_times(names: list[str], shape: tuple[int, int, int], repeats: int) -> dict[str, float]:
    """The shortest time of each contender in seconds; they take turns, after one warm-up each."""
    x, g = torch.randn(2, *shape)
    best = dict.fromkeys(names, float("inf"))
    for repeat in range(repeats + 1):
        for name in names:
            if name not in ("exodus", "slayer") and repeat > 2:
                continue  # the loops take seconds, and vary little
            start = time.perf_counter()
            gradient(CONTENDERS[name], x, g)
            if repeat > 0:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two workloads, few repeats")
    quick = parser.parse_args().quick
    told = exodus_core.capabilities()
    print(f"{platform.machine()}, {told['instruction_set']}, {told['threads']} threads, torch {told['torch']}")
    print("\n| (outer, time, inner) | contender | forward + backward | against the plain loop |\n|---|---|---|---|")
    wrong = False
    for shape in QUICK_WORKLOADS if quick else WORKLOADS:
        right = [name for name in CONTENDERS if is_right(name, shape)]
        times = best_times(right, shape, repeats=3 if quick else 10)
        for name in CONTENDERS:
            if name not in times:
                wrong = True
                print(f"| {shape} | {name} | wrong gradient, not timed | |")
                continue
            ratio = times["bptt, plain loop"] / times[name] if "bptt, plain loop" in times else float("nan")
            print(f"| {shape} | {name} | {times[name] * 1e3:.2f} ms | {ratio:.1f}x |", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
