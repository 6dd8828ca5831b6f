"""Time of a layer over the share of ones in its input, as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.speed.measure import Timing

from .layers import ALONE, DENSE, SPARSE

_STYLES = {SPARSE: ("#0072B2", "o"), DENSE: ("#E69F00", "s"), ALONE: ("#999999", "")}


def draw(layers: dict[str, dict[float, dict[str, Timing]]], path: Path) -> None:
    """Writes a PNG: a panel for each layer, a line for each way to compute it."""
    columns = 3
    figure, grid = plt.subplots(
        -(-len(layers) // columns), columns, figsize=(11, 6.2), dpi=140, layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(layers) :]:
        axes.set_visible(False)
    for axes, (name, by_density) in zip(grid.flat, layers.items(), strict=False):
        for way, (color, marker) in _STYLES.items():
            values = [timings[way].median * 1e3 for timings in by_density.values()]
            shares = [density * 100 for density in by_density]
            axes.plot(shares, values, color=color, marker=marker, linestyle="-" if marker else ":", label=way)
        axes.set(xscale="log", yscale="log", title=name)
        axes.title.set_fontsize(9)
        axes.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("ones in the input, %")
    for axes in grid[:, 0]:
        axes.set_ylabel("forward + backward, ms")
    grid[0, 0].legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)
