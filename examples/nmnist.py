"""Digits seen by an event camera (N-MNIST): events in bins of time, and a spiking convolutional network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples.classifying import Part, Task, lose

#: Pixels along an edge; how long a recording is; how many steps of 10 ms that is.
PIXELS = 34
MICROSECONDS = 300_000
STEPS = 30
#: Of the training recordings, the last so many are the validation.
VALIDATION = 100
LARGEST_SHIFT = 2


def bin_events(
    microseconds: NDArray[Any], x: NDArray[Any], y: NDArray[Any], polarity: NDArray[Any], offsets: NDArray[Any]
) -> Tensor:
    """Spikes of recordings: one where a pixel has at least one event of a polarity in a step.

    Args:
        microseconds, x, y, polarity: of all events, one recording after the other. Later ones than the last step
            are left out.
        offsets: recording i is [offsets[i]:offsets[i + 1]].

    Returns:
        shape (recordings, STEPS, 2, PIXELS, PIXELS), bool.

    Raises:
        ValueError: an event lies outside the image, or has another polarity.
    """
    for name, values, size in (("x", x, PIXELS), ("y", y, PIXELS), ("polarity", polarity, 2)):
        if values.size and values.max() >= size:
            raise ValueError(f"events: got {name} {values.max()}, want it below {size}")
    recording = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    step = microseconds.astype(np.int64) * STEPS // MICROSECONDS
    inside = step < STEPS
    where = tuple(index[inside].astype(np.int64) for index in (recording, step, polarity, y, x))
    spikes = torch.zeros(len(offsets) - 1, STEPS, 2, PIXELS, PIXELS, dtype=torch.bool)
    spikes[tuple(map(torch.from_numpy, where))] = True
    return spikes


def nmnist(folder: Path) -> Task:
    """The digits of a folder's nmnist_small.npz.

    Raises:
        OSError: the file cannot be read.
        ValueError, KeyError: it does not hold such recordings.
    """
    with np.load(folder / "nmnist_small.npz") as file:
        train, test = (
            Part(
                bin_events(*(file[f"{part}_{name}"] for name in ("t", "x", "y", "p", "offsets"))),
                torch.from_numpy(file[f"{part}_labels"]).long(),
            )
            for part in ("train", "test")
        )
    samples = len(train.labels)
    train, validation = train.split(torch.arange(samples) >= samples - VALIDATION)
    digits = tuple(str(digit) for digit in range(10))
    return Task("N-MNIST", digits, train, validation, test, description(), vary, epochs=30, batch=32, rate=2e-3)


def description() -> dict[str, Any]:
    """Two convolutions and a readout of spike counts; every layer but the last has LIF neurons."""
    lif = {"kind": "lif", "alpha": math.exp(-1 / 5), "surrogate": {"kind": "exponential", "slope": 2.0}}
    return {
        "input_shape": [2, PIXELS, PIXELS],
        "layers": [
            {"kind": "conv2d", "out_channels": 16, "kernel_size": 5, "stride": 2, "bias": False, "gain": 2.0},
            lif,
            {"kind": "conv2d", "out_channels": 32, "kernel_size": 3, "stride": 2, "bias": False, "gain": 3.0},
            lif,
            {"kind": "flatten"},
            {"kind": "dropout", "p": 0.5},
            {"kind": "linear", "out_features": 10, "bias": False, "gain": 0.5},
        ],
    }


def vary(spikes: Tensor, generator: torch.Generator) -> Tensor:
    """Moves every sample by up to LARGEST_SHIFT pixels in each direction, and loses a tenth of its spikes."""
    padded = torch.nn.functional.pad(spikes, (LARGEST_SHIFT,) * 4)
    corners = torch.randint(0, 2 * LARGEST_SHIFT + 1, (len(spikes), 2), generator=generator).tolist()
    moved = [
        sample[..., row : row + PIXELS, column : column + PIXELS]
        for sample, (row, column) in zip(padded, corners, strict=True)
    ]
    return lose(torch.stack(moved), 0.1, generator)
