"""Times layers and training steps from the spikes against dense ones.

    python -m benchmarks.sparse [--quick]

Writes benchmarks/results/sparse.md and sparse.png; --quick, for a part and few repeats, only prints. The folder
EXODUS_DATA has nmnist_small.npz for the step of N-MNIST, which is left out without it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.speed import machine
from benchmarks.speed.measure import Timing
from benchmarks.speed.report import duration, requirement_table, table
from benchmarks.speed.requirements import Requirement

from . import plot, steps
from .layers import ALONE, DENSE, DENSITIES, FIRST, HIDDEN, LAYERS, SPARSE, Layer, measured

RESULTS = Path(__file__).parents[1] / "results"
COMMAND = "`python -m benchmarks.sparse`"
QUICK = (FIRST, LAYERS[4])

ByDensity = dict[float, dict[str, Timing]]


def layer_table(figures: ByDensity) -> str:
    rows = []
    for density, timings in figures.items():
        mine, dense, alone = (timings[name].median for name in (SPARSE, DENSE, ALONE))
        rows.append(
            [
                f"{density:.1%}",
                duration(mine),
                duration(dense),
                duration(alone),
                f"{mine / dense:.3f}x",
                f"{mine / alone:.3f}x",
            ]
        )
    return table(["ones", SPARSE, DENSE, ALONE, "of dense", "of the product alone"], rows)


def step_table(figures: dict[str, dict[str, Timing]]) -> str:
    names = list(dict.fromkeys(name for timings in figures.values() for name in timings))
    rows = []
    for what, timings in figures.items():
        mine = timings[SPARSE].median
        cells = [
            f"{duration(timings[name].median)} ({timings[name].median / mine:.3g}x)" if name in timings else ""
            for name in names
        ]
        rows.append([what, *cells])
    return table(["training step", *names], rows)


def requirements(layers: dict[str, ByDensity], figures: dict[str, dict[str, Timing]]) -> list[Requirement]:
    def layer(what: Layer, density: float, name: str) -> float | None:
        timings = layers.get(what.name, {}).get(density)
        return None if timings is None else timings[SPARSE].median / timings[name].median

    def step(what: str, name: str = DENSE) -> float | None:
        timings = figures.get(what, {})
        return timings[SPARSE].median / timings[name].median if name in timings else None

    def faster(what: str, name: str) -> float | None:
        ratio = step(what, name)
        return None if ratio is None else 1 / ratio

    dense = [r for what in LAYERS for d in (0.3, 1.0) if (r := layer(what, d, DENSE)) is not None]
    lines = [
        Requirement("first layer, 5 % ones, against the dense Linear alone", 1 / 4, layer(FIRST, 0.05, ALONE)),
        Requirement("first layer, 1 % ones, against the dense Linear alone", 1 / 12, layer(FIRST, 0.01, ALONE)),
        Requirement("hidden layer, 5 % ones, against the dense Linear alone", 0.55, layer(HIDDEN, 0.05, ALONE)),
        Requirement("step of bench-remote, against dense", 0.7, step(LARGE)),
        Requirement("step of SHD's size, against dense", 0.4, step(DIGITS)),
        Requirement("step of SHD's size, SpikingJelly's against ours", 4, faster(DIGITS, "SpikingJelly"), True),
        Requirement("step of SHD's size, snnTorch's against ours", 5, faster(DIGITS, "snnTorch"), True),
        Requirement("N-MNIST example, against dense", 0.7, step(NMNIST)),
        Requirement("30 % ones and more, against dense", 1.03, max(dense, default=None)),
    ]
    return [Requirement(r.what, r.bound, r.reached, r.at_least, command=COMMAND) for r in lines]


LARGE = "B 128, T 250, 100-128-128-128-20, 5 %"
DIGITS = "B 64, T 250, 700-256-256-20, 2 %"
NMNIST = "N-MNIST, the example's network, 3.9 %"


def measured_steps(quick: bool) -> dict[str, dict[str, Timing]]:
    listed: dict[str, Callable[[], dict[str, Timing]]] = {
        LARGE: lambda: steps.large_task(quick),
        DIGITS: lambda: steps.digits(quick),
    }
    folder = os.environ.get("EXODUS_DATA", "")
    if folder and (Path(folder) / "nmnist_small.npz").exists():
        listed[NMNIST] = lambda: steps.nmnist(folder, quick)
    found = {}
    for what, run in listed.items():
        print(f"training: {what}", flush=True)
        found[what] = run()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a part, few repeats, nothing is written")
    quick: bool = parser.parse_args().quick
    others = machine.Others()
    layers: dict[str, ByDensity] = {}
    for layer in QUICK if quick else LAYERS:
        print(f"layer: {layer.name}", flush=True)
        layers[layer.name] = {d: measured(layer, d, quick) for d in ((0.05, 1.0) if quick else DENSITIES)}
    figures = measured_steps(quick)
    here = machine.describe() | {"others": others.share()}
    sections = [
        "# Spikes and dense products",
        f"Written by `make bench` on: {machine.sentence(here)}",
        'Forward + backward, medians; checked against float64 before it is timed. "Dense" is the same layer or network '
        "with exact=True.",
        "## Requirements",
        requirement_table(requirements(layers, figures)),
        "## Training steps",
        step_table(figures),
    ]
    for name, by_density in layers.items():
        sections += [f"## {name}", layer_table(by_density)]
    text = "\n\n".join(sections) + "\n"
    print(f"\n{text}")
    if not quick:
        (RESULTS / "sparse.md").write_text(text)
        plot.draw(layers, RESULTS / "sparse.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
