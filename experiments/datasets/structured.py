"""Structured arrays of events with fields t, x and, where the sensor has them, y and p: what tonic's data sets give.

tonic is not imported: any sequence of (events, class number) will do, in tonic's order of the sensor's size,
(columns, rows, polarities), and its unit of time, microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index as index_of
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.datasets.events import DataError, Events, checked, within


class Structured:
    """A sequence of (events, class number), as tonic's data sets without a transform.

    Args:
        samples: the sequence; a sample is asked for when its turn comes.
        sensor: the sensor's size (columns, rows, polarities), tonic's sensor_size.
        classes: names of the class numbers.

    Raises:
        ValueError: there are no samples, or the sensor has no pixels.
    """

    def __init__(
        self, samples: Sequence[tuple[NDArray[Any], int]], sensor: tuple[int, int, int], classes: tuple[str, ...]
    ) -> None:
        if min(sensor) < 1:
            raise ValueError(f"sensor must be three sizes of at least 1, got {sensor}")
        if len(samples) == 0:
            raise ValueError("samples must be at least 1, got 0")
        self._samples, self._sensor, self.classes = samples, sensor, classes

    @property
    def shape(self) -> tuple[int, ...]:
        """(polarities, rows, columns); (columns,) of a sensor with one row and one polarity, as a cochlea."""
        columns, rows, polarities = self._sensor
        return (columns,) if rows == polarities == 1 else (polarities, rows, columns)

    def __len__(self) -> int:
        return len(self._samples)

    def recording(self, index: int) -> tuple[Events, int]:
        """Events of a sample, and its class number.

        Raises:
            DataError: the array has no field t or x, a field or the class number is not of integers, or an event lies
                outside the sensor.
        """
        array, label = self._samples[index]
        where, (columns, rows, polarities) = f"sample {index}", self._sensor
        try:
            label = index_of(label)
        except TypeError as error:
            raise DataError(f"{where}: its class must be an integer, got {label}") from error
        if not 0 <= label < len(self.classes):
            raise DataError(f"{where}: its class must be in [0, {len(self.classes) - 1}], got {label}")
        times, x = _field(array, "t", where), _field(array, "x", where)
        y = _field(array, "y", where) if rows > 1 else np.zeros_like(x)
        p = _field(array, "p", where) if polarities > 1 else np.zeros_like(x)
        for name, values, size in (("x", x, columns), ("y", y, rows), ("p", p, polarities)):
            within(f"{name} of events", values, size - 1, where)
        return checked(times, (p * rows + y) * columns + x, self.shape, where), label


def _field(array: NDArray[Any], name: str, where: str) -> NDArray[np.int64]:
    if name not in (array.dtype.names or ()):
        raise DataError(f"{where}: events must have the field {name}, got {array.dtype}")
    if array[name].dtype.kind not in "iub":
        raise DataError(f"{where}: field {name} of events must hold integers, got {array[name].dtype}")
    values: NDArray[np.int64] = array[name].astype(np.int64)
    return values
