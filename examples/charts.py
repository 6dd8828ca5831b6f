"""The picture of a trained classifier: how loss and accuracy went, and which class was taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from examples.classifying import Epoch


def draw_classifier(path: Path, title: str, epochs: Sequence[Epoch], confusion: Tensor, classes: Sequence[str]) -> None:
    """Writes a PNG file of three panels.

    Args:
        path: of the file.
        title: of the whole picture.
        epochs: at least one.
        confusion: [i, j]: how many test samples of class i were taken for class j; shape (classes, classes).
        classes: what they are called.

    Raises:
        OSError: the file cannot be written.
    """
    # Without pyplot there is neither a display nor state that others share.
    figure = Figure(figsize=(12, 6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplot_mosaic([["loss", "confusion"], ["accuracy", "confusion"]], width_ratios=(1, 1.2))
    top, bottom = axes["loss"], axes["accuracy"]
    bottom.sharex(top)
    numbers = range(1, len(epochs) + 1)
    top.plot(numbers, [epoch.loss for epoch in epochs], label="while learning")
    top.plot(numbers, [epoch.validation_loss for epoch in epochs], label="validation")
    top.set_yscale("log")
    top.set_title("loss")
    top.legend()
    bottom.plot(numbers, [epoch.accuracy for epoch in epochs])
    bottom.plot(numbers, [epoch.validation_accuracy for epoch in epochs])
    bottom.yaxis.set_major_formatter(PercentFormatter(1))
    bottom.set_title("accuracy")
    bottom.set_xlabel("epoch")
    _draw_confusion(axes["confusion"], confusion, classes)
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})


def _draw_confusion(axes: Axes, confusion: Tensor, classes: Sequence[str]) -> None:
    axes.imshow(confusion.tolist(), cmap="Blues")
    half = int(confusion.max()) / 2
    for row, column in confusion.nonzero().tolist():
        count = int(confusion[row, column])
        color = "white" if count > half else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize="x-small")
    axes.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 1 else 0)
    axes.set_yticks(range(len(classes)), classes)
    axes.tick_params(labelsize="small")
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    right, samples = int(confusion.diagonal().sum()), int(confusion.sum())
    axes.set_title(f"test samples: {right} of {samples} right")
