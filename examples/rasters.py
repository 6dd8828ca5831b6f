"""Spike rasters to train on: Poisson noise that is made here, and the Oxford raster that is read from .bs1 files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EVENT_BYTES = 5


@dataclass(frozen=True)
class Task:
    """One input raster, the raster that a network of two layers shall answer with, and settings that get it there.

    Attributes:
        name: for titles and file names.
        inputs: spikes, shape (1, steps, inputs), float32; a step is 1 ms.
        target: spikes wanted, shape (1, steps, outputs), float32.
        hidden: neurons of the hidden layer.
        weight_std: standard deviations of the initial weights of the two layers. They make the hidden layer fire at a
            few per cent of the steps, and the output layer at fewer: a silent neuron far below threshold learns
            nothing, and one that fires all the time learns slowly.
        slope: of the surrogate derivative exp(-slope abs(u - threshold)).
        epochs: updates of the weights.
    """

    name: str
    inputs: Tensor
    target: Tensor
    hidden: int
    weight_std: tuple[float, float]
    slope: float
    epochs: int


class Events(NamedTuple):
    """The events of a .bs1 file, one entry an event: neuron, polarity (0 or 1), time in microseconds."""

    neuron: NDArray[np.int64]
    polarity: NDArray[np.int64]
    microseconds: NDArray[np.int64]


def poisson(seed: int) -> Task:
    """250 Poisson spike trains of 200 ms, from which one neuron shall fire four times (section 6.5 of the paper).

    Args:
        seed: of the spike trains; every input fires at 2 % of the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = (torch.rand(1, 200, 250, generator=generator) < 0.02).float()
    target = torch.zeros(1, 200, 1)
    target[0, [37, 84, 121, 166], 0] = 1
    return Task("Poisson spike trains", inputs, target, hidden=25, weight_std=(0.2, 0.1), slope=1.0, epochs=300)


def oxford(folder: Path) -> Task:
    """Noise of 200 neurons that shall become a picture drawn by 200 others: input.bs1 and output.bs1 of a folder.

    The files lie in the folder itself or in its folder `oxford`.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file does not hold such events.
    """
    if (folder / "oxford").is_dir():
        folder = folder / "oxford"
    inputs, target = (
        raster(read_events(folder / name), steps=1900, neurons=200) for name in ("input.bs1", "output.bs1")
    )
    return Task("Oxford raster", inputs, target, hidden=256, weight_std=(0.5, 0.05), slope=2.0, epochs=1000)


def read_events(path: Path) -> Events:
    """Events of a .bs1 file: 5 bytes each, big endian: neuron (16 bit), polarity (1 bit), microseconds (23 bit).

    Raises:
        OSError: the file cannot be read.
        ValueError: its size is not a multiple of 5.
    """
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if content.size % EVENT_BYTES:
        raise ValueError(f"{path}: got {content.size} bytes, want a multiple of {EVENT_BYTES}")
    first, second, third, fourth, fifth = content.reshape(-1, EVENT_BYTES).astype(np.int64).T
    return Events(first << 8 | second, third >> 7, (third & 0x7F) << 16 | fourth << 8 | fifth)


def raster(events: Events, *, steps: int, neurons: int) -> Tensor:
    """Events in steps of 1 ms, whatever their polarity: shape (1, steps, neurons), float32, ones and zeros.

    Raises:
        ValueError: an event is of a neuron or a time beyond the raster.
    """
    step = events.microseconds // 1000
    for name, index, size in (("neuron", events.neuron, neurons), ("millisecond", step, steps)):
        if index.size and index.max() >= size:
            raise ValueError(f"events: got {name} {index.max()}, want it below {size}")
    spikes = torch.zeros(1, steps, neurons)
    spikes[0, torch.from_numpy(step), torch.from_numpy(events.neuron)] = 1
    return spikes


def share_met(spikes: Tensor, others: Tensor, *, within: int) -> float:
    """Share of spikes for which the same neuron fires in others at most `within` steps before or after.

    Args:
        spikes, others: shape (1, steps, neurons), ones and zeros; spikes has at least one spike.
    """
    nearby = torch.nn.functional.max_pool1d(others.mT, 2 * within + 1, stride=1, padding=within).mT
    return float((spikes * nearby).sum() / spikes.sum())
