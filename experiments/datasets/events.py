"""A recording as events: when which input fired."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class DataError(ValueError):
    """A file or an array does not hold the recordings that it should; the message says where and why."""


@dataclass(frozen=True)
class Events:
    """The spikes of one recording.

    Attributes:
        times: shape (events,), int64, microseconds from the start of the recording, in any order.
        inputs: shape (events,), int64, index of the input in the flattened shape of a sample.
    """

    times: NDArray[np.int64]
    inputs: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.times)


class Recordings(Protocol):
    """A data set of labelled recordings, read one at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the inputs of a sample in one step."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class numbers."""

    def __len__(self) -> int:
        """Number of recordings."""

    def recording(self, index: int) -> tuple[Events, int]:
        """Events of a recording, and its class number.

        Raises:
            DataError: the file does not hold it.
        """


def checked(times: NDArray[Any], inputs: NDArray[Any], shape: tuple[int, ...], where: str) -> Events:
    """Events, if they have as many times as inputs, none before the start, and no input outside the shape.

    Args:
        times: shape (events,), microseconds.
        inputs: shape (events,), indices in the flattened shape.
        where: the recording, for the message of an error.

    Raises:
        DataError: they have not.
    """
    if times.ndim != 1 or times.shape != inputs.shape:
        raise DataError(f"{where}: times and inputs must be of one length, got {times.shape} and {inputs.shape}")
    within("times of events", times, np.iinfo(np.int64).max, where)
    within("inputs of events", inputs, math.prod(shape) - 1, where)
    return Events(times.astype(np.int64), inputs.astype(np.int64))


def within(name: str, values: NDArray[Any], most: int, where: str) -> None:
    """Checks that values lie in [0, most].

    Raises:
        DataError: one does not.
    """
    if values.size and (values.min() < 0 or values.max() > most):
        outlier = values.min() if values.min() < 0 else values.max()
        raise DataError(f"{where}: {name} must be in [0, {most}], got {outlier}")
