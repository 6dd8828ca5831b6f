"""Recordings as spike tensors: events counted in bins of a time step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.datasets.events import DataError, Events, Recordings

#: Largest count of a bin, that of uint8.
MOST = 255


@dataclass(frozen=True)
class Binning:
    """How events become a tensor: `steps` bins of `dt` microseconds from the start; later events are left out.

    Attributes:
        dt: length of a step in microseconds.
        steps: number of steps.
        counts: whether a bin counts its events (uint8), or only says if there are any (bool).
    """

    dt: int
    steps: int
    counts: bool = False

    def __post_init__(self) -> None:
        for name in ("dt", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def cells(self, events: Events, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Indices of the events in the flattened (steps, *shape), one for each event before the end."""
        step = events.times // self.dt
        inside = step < self.steps
        return step[inside] * math.prod(shape) + events.inputs[inside]

    def spikes(self, events: Events, shape: tuple[int, ...]) -> Tensor:
        """Spikes of one recording, shape (steps, *shape), uint8 or bool.

        Raises:
            DataError: a bin has more than 255 events.
        """
        return self._filled(self.cells(events, shape), shape)

    def _filled(self, cells: NDArray[np.int64], shape: tuple[int, ...]) -> Tensor:
        size = self.steps * math.prod(shape)
        if not self.counts:
            spikes = torch.zeros(size, dtype=torch.bool)
            spikes[torch.from_numpy(cells)] = True
            return spikes.view(self.steps, *shape)
        counts = np.bincount(cells, minlength=size)
        if counts.max(initial=0) > MOST:
            raise DataError(f"events of an input in one step must be at most {MOST}, got {counts.max()}")
        return torch.from_numpy(counts.astype(np.uint8)).view(self.steps, *shape)


class Binned:
    """Recordings as batches of spikes.

    Args:
        recordings: the data set.
        binning: how events are binned.
        keep: whether to read every recording once and keep the indices of its filled bins, which take a few bytes an
            event; otherwise each is read from its file when its turn comes.

    Raises:
        DataError: a recording that is to be kept cannot be read.
    """

    def __init__(self, recordings: Recordings, binning: Binning, *, keep: bool = False) -> None:
        self.recordings, self.binning = recordings, binning
        self._kept = [self._read(index) for index in range(len(recordings))] if keep else None

    def __len__(self) -> int:
        return len(self.recordings)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (steps, *inputs)."""
        return self.binning.steps, *self.recordings.shape

    def batch(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Some samples: spikes, shape (samples, steps, *inputs), uint8 or bool; labels, shape (samples,), int64."""
        read = [self._kept[index] if self._kept is not None else self._read(index) for index in chosen]
        spikes = [self.binning._filled(cells, self.recordings.shape) for cells, _ in read]
        return torch.stack(spikes), torch.tensor([label for _, label in read])

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples in batches, see `Samples`; each is made when its turn comes.

        Raises:
            OSError, DataError: a recording cannot be read.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        sequence = torch.arange(len(self)) if order is None else order
        for chosen in sequence.split(size):
            yield self.batch(chosen.tolist())

    def _read(self, index: int) -> tuple[NDArray[np.int64], int]:
        events, label = self.recordings.recording(index)
        return self.binning.cells(events, self.recordings.shape), label
