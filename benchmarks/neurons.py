"""Measures second-order and adaptive LIF neurons, refractory periods and resets against LIF neurons, in one run.

    python -m benchmarks.neurons [--quick]

Forward and backward of 32 x 100 x 1024 neuron-steps, float32, by turns, after each neuron's gradients have been found
to agree with autograd through the plain loop in float64. Writes benchmarks/results/neurons.md; --quick, with few
repeats, only prints. Exits with 1 if gradients do not agree.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exodus_core import coupled, functional, reference

from .speed import machine
from .speed.measure import Phases, Timing, interleaved
from .speed.report import duration, table, wrapped

ROOT = Path(__file__).parents[1]
SHAPE, CHECKED_SHAPE = (32, 100, 1024), (2, 30, 33)
Neurons = Callable[..., tuple[Tensor, ...]]
#: The options of each, and the most times LIF's time that it may take; None: no limit.
NEURONS: dict[str, tuple[dict[str, Any], float | None]] = {
    "LIF": ({}, None),
    "second-order LIF": ({"synapse_alpha": 0.8}, 1.5),
    "second-order LIF, late synapse": ({"synapse_alpha": 0.8, "synapse_delayed": True}, 1.5),
    "ALIF": ({"adapt_alpha": 0.95, "adapt_threshold": 0.2}, 1.6),
    "adLIF": ({"adapt_alpha": 0.95, "adapt_current": 0.2, "adapt_membrane": 0.1}, 1.6),
    "refractory, 3 steps": ({"refractory": 3}, None),
    "reset to a value": ({"reset": "value", "reset_to": 0.1}, None),
}
#: Parameters that are trained, one for each neuron, in the second table.
TRAINED = ("alpha", "threshold", "synapse_alpha", "adapt_alpha")


def function(name: str) -> Neurons:
    """The function that computes some neurons of NEURONS, of input and alpha."""
    return partial(functional.lif if name == "LIF" else coupled.neurons, **NEURONS[name][0])


def error(name: str) -> float:
    """The largest difference of a gradient from that of the plain loop, relative to its largest value, float64."""
    torch.manual_seed(0)
    options = NEURONS[name][0]
    drawn = torch.randn(CHECKED_SHAPE, dtype=torch.float64), 0.5 + 0.5 * torch.rand(33, dtype=torch.float64)
    weights = torch.randn(CHECKED_SHAPE, dtype=torch.float64)
    found = []
    for run in (function(name), partial(reference.coupled_lif, **options)):
        x, alpha = (tensor.clone().requires_grad_() for tensor in drawn)
        found.append(torch.autograd.grad(run(x, alpha)[0], [x, alpha], weights))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True))


def turn(name: str, trained: bool) -> Phases:
    """A forward and a backward pass of some neurons."""
    torch.manual_seed(0)
    x, weights = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE)
    options: dict[str, Any] = {"alpha": 0.9, "threshold": 1.0, **NEURONS[name][0]}
    if trained:
        for parameter in TRAINED:
            if parameter in options:
                options[parameter] = torch.full(SHAPE[2:], options[parameter], requires_grad=True)
    alpha = options.pop("alpha")
    run: Neurons = functional.lif if name == "LIF" else coupled.neurons
    leaves = [x, *(value for value in (alpha, *options.values()) if isinstance(value, Tensor))]

    def phases() -> tuple[float, ...]:
        began = time.perf_counter()
        spikes = run(x, alpha, **options)[0]
        between = time.perf_counter()
        torch.autograd.grad(spikes, leaves, weights)
        return between - began, time.perf_counter() - between

    return phases


def rows(timings: dict[str, Timing]) -> list[list[str]]:
    lif = timings["LIF"]
    found = []
    for name, timing in timings.items():
        limit = NEURONS[name][1]
        ratio = timing.median / lif.median
        reached = "" if limit is None else f"{limit:g}, {'yes' if ratio <= limit else 'no'}"
        parts = [duration(timing.best_of(phase)) for phase in (0, 1)]
        found.append([name, *parts, duration(timing.median), f"{ratio:.2f}x", reached])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats, nothing is written")
    quick: bool = parser.parse_args().quick
    wrong = {name: found for name in NEURONS if not (found := error(name)) <= 1e-12}
    if wrong:
        print(f"Gradients are wrong, nothing is timed: {wrong}")
        return 1
    others = machine.Others()
    head = ["neurons", "forward, best", "backward, best", "both, median", "of LIF", "at most, reached"]
    tables = []
    for trained in (False, True):
        timings = interleaved(
            {name: turn(name, trained) for name in NEURONS}, 3 if quick else 41, 1.0 if quick else 8.0
        )
        tables.append(table(head, rows(timings)))
    here = machine.describe() | {"others": others.share()}
    shape = " x ".join(map(str, SHAPE))
    text = "\n\n".join(
        [
            "# Neurons with more variables than LIF",
            wrapped(f"Written by `python -m benchmarks.neurons` on: {machine.sentence(here)}"),
            wrapped(
                f"{shape} (batch, time, neurons), float32; gradients are checked in float64 before anything is timed. "
                "A pass over LIF neurons reads and writes 24 bytes of a neuron-step; a synaptic current whose "
                "parameters are trained is a trace of 8 more. An adaptation and a refractory period are computed "
                "again from the membrane: arithmetic instead of memory."
            ),
            "## Gradient of the input",
            tables[0],
            f"## Trained parameters too, one for each neuron: {', '.join(TRAINED)}, where there are such",
            tables[1],
        ]
    )
    print(f"\n{text}")
    if not quick:
        (ROOT / "benchmarks" / "results" / "neurons.md").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
