"""The picture of a fit: target, output before and after training, and the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor


def draw_fit(
    path: Path, title: str, target: Tensor, before: Tensor, after: Tensor, losses: Mapping[str, Sequence[float]]
) -> None:
    """Writes a PNG file of four panels.

    Args:
        path: of the file.
        title: of the whole picture.
        target, before, after: rasters, shape (1, steps, neurons), ones and zeros.
        losses: curves by what they are called in the legend, one value an epoch.

    Raises:
        OSError: the file cannot be written.
    """
    # Without pyplot there is neither a display nor state that others share.
    figure = Figure(figsize=(12, 9), layout="constrained")
    figure.suptitle(title)
    ((top_left, top_right), (bottom_left, bottom_right)) = figure.subplots(2, 2)
    _draw_raster(top_left, "target", target)
    _draw_raster(top_right, "output before training", before)
    _draw_raster(bottom_left, "output after training", after)
    _draw_losses(bottom_right, losses)
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})


def _draw_raster(axes: Axes, title: str, raster: Tensor) -> None:
    _, steps, neurons = raster.shape
    _, times, indices = raster.nonzero().T.tolist()
    if neurons == 1:
        axes.eventplot(times, lineoffsets=0, linelengths=0.8, colors="black")
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
    else:
        axes.scatter(times, indices, s=1.5, c="black", linewidths=0)
        axes.set_ylim(-1, neurons)
        axes.set_ylabel("neuron")
    axes.set_xlim(0, steps)
    axes.set_xlabel("time (ms)")
    axes.set_title(f"{title} ({len(times)} spikes)")


def _draw_losses(axes: Axes, losses: Mapping[str, Sequence[float]]) -> None:
    # The curves usually lie on each other: the later ones are dashed so that both are seen.
    for line, (name, curve) in zip(("-", "--", ":"), losses.items(), strict=False):
        axes.plot(curve, line, label=name)
    values = [loss for curve in losses.values() for loss in curve]
    if min(values) > 0:
        axes.set_yscale("log")
    else:  # a perfect fit has loss 0: linear from there to the smallest other loss
        axes.set_yscale("symlog", linthresh=min((loss for loss in values if loss > 0), default=1.0))
        axes.set_ylim(bottom=0)
    axes.set_xlabel("updates")
    axes.set_title("loss: squared difference of the filtered spike trains")
    axes.legend()
