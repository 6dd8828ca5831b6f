"""Labelled spike tensors in batches: what a training needs of a data set, wherever it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from examples import train_classifier


class Samples(Protocol):
    """Labelled samples of one shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (steps, *inputs)."""

    def __len__(self) -> int:
        """Number of samples."""

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples in batches, the last one smaller if they do not divide.

        Args:
            size: samples in a batch.
            order: indices of the samples to give, int64; default: all, as they are stored.

        Yields:
            spikes, shape (samples, steps, *inputs), bool or uint8, and labels, shape (samples,), int64.
        """


class Split(NamedTuple):
    """Samples to learn from, to evaluate after each epoch, and to evaluate once at the end."""

    train: Samples
    validation: Samples
    test: Samples


class Held:
    """Samples that lie in the memory.

    Args:
        spikes: shape (samples, steps, *inputs).
        labels: shape (samples,), int64.
    """

    def __init__(self, spikes: Tensor, labels: Tensor) -> None:
        if len(spikes) != len(labels):
            raise ValueError(f"labels must be one for each of {len(spikes)} samples, got {len(labels)}")
        self._spikes, self._labels = spikes, labels

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (steps, *inputs)."""
        return tuple(self._spikes.shape[1:])

    def __len__(self) -> int:
        return len(self._labels)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples in batches, see `Samples`."""
        sequence = torch.arange(len(self)) if order is None else order
        for chosen in sequence.split(size):
            yield self._spikes[chosen], self._labels[chosen]


def braille(folder: Path) -> tuple[Split, tuple[str, ...]]:
    """Braille letters of braille_letters.npz as the example train_classifier encodes them, and the letters.

    Raises:
        OSError, KeyError, ValueError: the file cannot be read, or does not hold such recordings.
    """
    return _split(train_classifier.braille(folder))


def nmnist(folder: Path) -> tuple[Split, tuple[str, ...]]:
    """Digits of nmnist_small.npz as the example train_classifier bins them, and their names.

    Raises:
        OSError, KeyError, ValueError: the file cannot be read, or does not hold such recordings.
    """
    return _split(train_classifier.nmnist(folder))


def _split(task: train_classifier.Task) -> tuple[Split, tuple[str, ...]]:
    return Split(*(Held(*part) for part in (task.train, task.validation, task.test))), task.classes
