"""Measures what a time checkpoint saves and costs: bytes kept for the backward pass, and the time of a training step.

    python -m benchmarks.checkpoint [--quick]

Three layers of 512 LIF neurons, batch 8: 4,000 steps with the checkpoint and without, by turns, after outputs and
gradients have been found to agree; then 100,000 steps with it, each in a process of its own, for its largest resident
memory. Writes benchmarks/results/checkpoint.md; --quick, for fewer steps, only prints. Linux only.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from exodus_core import network, nn
from exodus_core.training import Trainer

from .speed import machine
from .speed.measure import Phases, interleaved
from .speed.report import duration, table, wrapped

ROOT = Path(__file__).parents[1]
BATCH, NEURONS, LAYERS, CLASSES, DENSITY = 8, 512, 3, 10, 0.1
WITHOUT = "without"
PIECES = (64, 128, 250)
#: Of the largest value of a gradient: float32 sums of as many terms as there are steps, in two orders.
AGREES = 1e-4
LONG = {
    "a network as data with a readout, `Trainer.step`, bool input": "data",
    "`nn.TimeCheckpoint`, all 512 outputs, bool input": "module",
}
GIB = 2**30


def stack(exact: bool) -> torch.nn.Sequential:
    """The layers; weights large enough for the last one to fire."""
    torch.manual_seed(0)
    layers = [part for _ in range(LAYERS) for part in (nn.Linear(NEURONS, NEURONS, exact=exact), nn.LIF(0.9))]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(3)
    return torch.nn.Sequential(*layers)


def spikes(steps: int) -> Tensor:
    """Bool, shape (batch, steps, neurons)."""
    torch.manual_seed(1)
    x = torch.empty(BATCH, steps, NEURONS, dtype=torch.bool)
    for part in x.split(1000, 1):
        part.copy_(torch.rand(part.shape) < DENSITY)
    return x


def kept_bytes(call: Callable[[Tensor], Tensor], x: Tensor, weights: list[torch.nn.Parameter]) -> int:
    """Bytes of all storages that autograd holds for the backward pass, without the weights."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = call(x)
    del y
    return sum(sizes.values())


def check(whole: torch.nn.Module, pieces: torch.nn.Module, x: Tensor, g: Tensor) -> None:
    """Raises ArithmeticError if outputs or gradients differ by more than rounding."""
    results = []
    for call in (whole, pieces):
        y = call(x)
        results.append([y, *torch.autograd.grad(y, list(whole.parameters()), g)])
    for expected, found in zip(*results, strict=True):
        error = (found - expected).abs().max().item() / expected.abs().max().item()
        if not error <= AGREES:
            raise ArithmeticError(f"the largest difference is {error:g} of the largest value, more than {AGREES:g}")


def compared(exact: bool, steps: int, repeats: int) -> list[list[str]]:
    """Lines of the table: kept bytes and times, against those without a checkpoint."""
    module = stack(exact)
    x = spikes(steps).float()
    g = torch.randn(x.shape)
    calls: dict[str, torch.nn.Module] = {WITHOUT: module}
    calls |= {f"{steps_of} steps a piece": nn.TimeCheckpoint(module, steps_of) for steps_of in PIECES}
    for call in calls.values():
        check(module, call, x, g)
    weights = list(module.parameters())
    kept = {name: kept_bytes(call, x, weights) for name, call in calls.items()}
    timings = interleaved({name: _turn(call, x, g) for name, call in calls.items()}, repeats, share=20.0)
    rows = []
    for name in calls:
        of, best = timings[name], timings[WITHOUT]
        rows.append(
            [
                f"{'dense' if exact else 'from the spikes'}, {name}",
                f"{kept[name] / 2**20:.1f} MiB",
                f"1/{kept[WITHOUT] / kept[name]:.0f}",
                duration(of.median),
                f"{of.median / best.median:.2f}x",
                f"{of.best / best.best:.2f}x",
            ]
        )
    return rows


def _turn(call: torch.nn.Module, x: Tensor, g: Tensor) -> Phases:
    """A turn of two phases: a call, whose input needs no gradient, and its backward pass."""

    def turn() -> tuple[float, ...]:
        call.zero_grad()
        start = time.perf_counter()
        y = call(x)
        middle = time.perf_counter()
        y.backward(g)
        end = time.perf_counter()
        return middle - start, end - middle

    return turn


def long_step(kind: str, steps: int) -> float:
    """Seconds of the second training step of a long sequence."""
    x = spikes(steps)
    if kind == "data":
        layers = [{"kind": "linear", "out_features": NEURONS, "gain": 3.0}, {"kind": "lif", "alpha": 0.9}] * LAYERS
        layers += [{"kind": "linear", "out_features": CLASSES}, {"kind": "exp_leak", "alpha": 0.95}]
        data = {"input_shape": [NEURONS], "layers": layers, "checkpoint_steps": PIECES[-1]}
        trainer = Trainer(network.build(data), "adam")
        classes = torch.arange(BATCH) % CLASSES

        def step() -> None:
            trainer.step(x, classes, "max_over_time_ce")
    else:
        module = nn.TimeCheckpoint(stack(exact=False), PIECES[-1])
        optimizer = torch.optim.Adam(module.parameters())

        def step() -> None:
            module(x).mean(1).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    step()
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def largest_resident() -> int:
    """Most bytes of memory that this process has had."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise LookupError("/proc/self/status has no VmHWM")
    return int(found[1]) * 1024


def long_row(what: str, kind: str, steps: int) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--long", kind, str(steps)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, resident = run.stdout.split()
    return [what, f"{int(resident) / GIB:.2f} GiB", duration(float(seconds))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps and repeats, nothing is written")
    parser.add_argument("--long", nargs=2, metavar=("KIND", "STEPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.long:
        kind, steps = arguments.long
        print(long_step(kind, int(steps)), largest_resident())
        return 0
    quick: bool = arguments.quick
    short, long, repeats = (1000, 4000, 2) if quick else (4000, 100_000, 9)
    others = machine.Others()
    rows = [row for exact in (True, False) for row in compared(exact, short, repeats)]
    long_rows = [long_row(what, kind, long) for what, kind in LONG.items()]
    here = machine.describe() | {"others": others.share()}
    head = [
        "products, checkpoint",
        "kept for backward",
        "of without",
        "median",
        "of without",
        "best, of without",
    ]
    text = "\n\n".join(
        [
            "# Time checkpoints",
            wrapped(f"Written by `make bench-checkpoint` on: {machine.sentence(here)}"),
            wrapped(
                f"{LAYERS} layers of {NEURONS} LIF neurons, batch {BATCH}, {DENSITY:.0%} of the input ones, float32; "
                "outputs and gradients are checked before they are timed."
            ),
            f"## Forward + backward, {short:,} steps",
            table(head, rows),
            f"## A training step of {long:,} steps, {PIECES[-1]} a piece",
            table(["", "largest resident memory of the process", "time"], long_rows),
        ]
    )
    print(f"\n{text}")
    if not quick:
        (ROOT / "benchmarks" / "results" / "checkpoint.md").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
