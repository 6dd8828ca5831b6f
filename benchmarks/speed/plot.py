"""The comparison as a picture: how many times as long as exodus everybody takes."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .comparison import TRIADS, Comparison
from .requirements import speed_up

# Okabe and Ito's colours, which colour-blind readers tell apart; the markers say the same again.
STYLES = [("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v")]


def _span(low: float, high: float) -> str:
    ends = [f"{value:.2g}" if value < 10 else f"{value:,.0f}" for value in (low, high)]
    return " to ".join(dict.fromkeys(ends))


def draw(comparison: Comparison, path: Path) -> None:
    """Writes a PNG: a row for each contender, a mark for each workload."""
    by_workload = comparison.neuron
    names = list(dict.fromkeys(name for timings in by_workload.values() for name in timings))
    names = [name for name in names if name not in ("exodus",) and (not name.startswith("memory") or name == TRIADS)]
    fastest = min(speed_up(t, name) for t in by_workload.values() for name in names if name in t)
    worst = {name: max(speed_up(t, name) for t in by_workload.values() if name in t) for name in names}
    order = sorted(names, key=worst.__getitem__)
    figure, axes = plt.subplots(figsize=(9, 4.2), dpi=160, layout="constrained")
    for row, name in enumerate(order):
        values = [speed_up(t, name) for t in by_workload.values() if name in t]
        axes.plot(
            [min(values), max(values)], [row, row], color="#cccccc", linewidth=5, solid_capstyle="round", zorder=1
        )
        left = max(values) < 1  # of exodus, so that the label does not cross its line
        axes.annotate(
            _span(min(values), max(values)),
            (min(values) if left else max(values), row),
            xytext=(-10 if left else 10, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=9,
            color="#333333",
        )
    for (workload, timings), (color, marker) in zip(by_workload.items(), STYLES, strict=False):
        rows = [row for row, name in enumerate(order) if name in timings]
        axes.scatter(
            [speed_up(timings, order[row]) for row in rows],
            rows,
            s=46,
            color=color,
            marker=marker,
            edgecolor="white",
            linewidth=0.6,
            zorder=3,
            label=workload.replace("x", " × "),
        )
    axes.axvline(1, color="#D55E00", linewidth=2, zorder=2)
    axes.annotate(
        "exodus", (1, len(order) - 0.35), xytext=(5, 0), textcoords="offset points", color="#D55E00", weight="bold"
    )
    axes.set_xscale("log")
    axes.set_xlim(fastest / 8, max(worst.values()) * 6)
    axes.set_ylim(-0.6, len(order) - 0.05)
    axes.set_yticks(
        range(len(order)), [name.replace("memory limit: 2 triads", "limit of the memory") for name in order]
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}×")
    axes.set_xlabel("time of forward + backward, in times of exodus (log scale; right is slower)")
    axes.legend(title="batch × time × neurons", fontsize=8, title_fontsize=8, loc="upper left", frameon=True)
    axes.grid(axis="x", color="#e5e5e5", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    plt.close(figure)
