"""Measures the training step of other libraries' models, as they are and accelerated, by turns in one run.

    python -m benchmarks.accelerate [--quick]

Outputs and gradients are checked first, at a small size. A training step is the forward pass, a cross entropy of the
mean output over time, the backward pass and a step of Adam. Writes benchmarks/results/accelerate.md; --quick, for
small models, only prints. Exits with 1 if a model is wrong.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed import machine
from benchmarks.speed.measure import Timing, interleaved, seconds
from benchmarks.speed.report import duration, table, times, wrapped

from .gate import AGREEMENT, both, fault
from .models import MODELS, Module, PeerModel, Size

ROOT = Path(__file__).parents[2]
#: What a training step is to gain.
WANTED = {"snntorch": 10.0, "sinabs": 10.0, "norse": 10.0, "spikingjelly": 3.0}


def _step(model: PeerModel, module: Module, call: Callable[[Module, Tensor, Size], Tensor]) -> Callable[[], object]:
    torch.manual_seed(1)
    x = model.input(model.size)
    classes = torch.arange(model.size.batch) % 10
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-4)

    def step() -> object:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(call(module, x, model.size).mean(0), classes)
        loss.backward()
        optimizer.step()
        return loss

    return step


def measure(model: PeerModel, repeats: int) -> dict[str, Timing]:
    """Training steps of the unmodified and the accelerated model."""
    unmodified, accelerated = both(model, model.size, seed=0)
    turns = {
        "unmodified": seconds(_step(model, unmodified, model.call)),
        "accelerated": seconds(_step(model, accelerated, model.accelerated)),
    }
    return interleaved(turns, repeats, share=4.0)


def row(model: PeerModel, timings: dict[str, Timing]) -> list[str]:
    before, after = timings["unmodified"], timings["accelerated"]
    gained = before.best / after.best
    size = f"{model.size.steps} x {model.size.batch}"
    wanted = WANTED[model.library]
    return [
        *(model.library, model.name, size, duration(before.best), duration(after.best), f"**{times(gained)}**"),
        f"{times(before.median / after.median)}",
        f"{wanted:g}x, {'reached' if gained >= wanted else 'missed'}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models, few repeats, nothing is written")
    quick: bool = parser.parse_args().quick
    warnings.simplefilter("ignore")  # the libraries' own
    others = machine.Others()
    rows, wrong = [], []
    for model in MODELS:
        found = fault(model)
        if found is not None:
            wrong.append(f"{model}: {found}")
            continue
        if quick:
            small = Size(min(model.size.steps, 20), min(model.size.batch, 8), divided_by=4)
            model = replace(model, size=small)
        rows.append(row(model, measure(model, 3 if quick else 9)))
        print(" | ".join(rows[-1]), flush=True)
    here = machine.describe() | {"others": others.share()}
    head = ["library", "model", "steps x batch", "unmodified", "accelerated", "gain", "of medians", "to reach"]
    text = "\n\n".join(
        [
            "# Models of other libraries, accelerated",
            wrapped(f"Written by `make bench-accelerate` on: {machine.sentence(here)}"),
            wrapped(
                "A training step of the unmodified model and of what `exodus_core.accelerate` makes of it, by turns, "
                f"best of the repeats, float32. Outputs and all gradients agree to {AGREEMENT:g} of the largest value "
                "before they are timed."
            ),
            table(head, rows),
        ]
    )
    print(f"\n{text}")
    for line in wrong:
        print(f"wrong: {line}")
    if wrong:
        return 1
    if not quick:
        (ROOT / "benchmarks" / "results" / "accelerate.md").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
