"""DVS128 Gesture: eleven gestures of hand and arm before an event camera of 128 x 128 pixels.

The folder has trials_to_train.txt and trials_to_test.txt, which name its files; userNN_LIGHT.aedat, AEDAT 3.1; and
userNN_LIGHT_labels.csv with the lines class,startTime_usec,endTime_usec, classes from 1.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from experiments.datasets import aedat
from experiments.datasets.events import DataError, Events, checked, within

PIXELS = 128
CLASSES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter clockwise",
    "left arm clockwise",
    "left arm counter clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)
_COLUMNS = ("class", "startTime_usec", "endTime_usec")


class _Gesture(NamedTuple):
    """Place of a gesture: its file, its class number from 0, start and end in the time of the file."""

    path: Path
    label: int
    start: int
    end: int


class Gestures:
    """Gestures of one part of the data set; a file is read when one of its gestures is asked for.

    The events of the last file are kept: asked for in order, every file is read once. For any other order
    `Binned(..., keep=True)` reads them in order and keeps what is needed.

    Args:
        folder: where the files lie.
        part: "train" or "test".
        pixels: edge of the image that the 128 x 128 pixels are joined to; it divides 128.

    Raises:
        OSError: the list of files, or a file of labels, cannot be read.
        DataError: a file of labels does not hold what it should, or there is no gesture.
    """

    classes = CLASSES

    def __init__(self, folder: Path, part: str, pixels: int = PIXELS) -> None:
        if pixels < 1 or PIXELS % pixels:
            raise ValueError(f"pixels must be a divisor of {PIXELS}, got {pixels}")
        self._pixels = pixels
        trials = folder / f"trials_to_{part}.txt"
        names = trials.read_text().split()
        self._gestures = [gesture for name in names for gesture in _labels(folder / name)]
        if not self._gestures:
            raise DataError(f"{trials}: files must have at least 1 gesture, got 0 in {len(names)} files")
        self._file = lru_cache(maxsize=1)(aedat.read)

    @property
    def shape(self) -> tuple[int, ...]:
        """(polarities, rows, columns)"""
        return 2, self._pixels, self._pixels

    def __len__(self) -> int:
        return len(self._gestures)

    def recording(self, index: int) -> tuple[Events, int]:
        """Events of a gesture, times from its start, and its class number.

        Raises:
            OSError: its file cannot be read.
            DataError: its file is not such a recording.
        """
        path, label, start, end = self._gestures[index]
        events = self._file(path).between(start, end)
        for name, values in (("x of events", events.x), ("y of events", events.y)):
            within(name, values, PIXELS - 1, str(path))
        joined = PIXELS // self._pixels
        row = events.polarity * self._pixels + events.y // joined
        return checked(events.times - start, row * self._pixels + events.x // joined, self.shape, str(path)), label


def _labels(recording: Path) -> list[_Gesture]:
    path = recording.with_name(f"{recording.stem}_labels.csv")
    with path.open(newline="") as file:
        lines = csv.DictReader(file)
        if tuple(lines.fieldnames or ()) != _COLUMNS:
            raise DataError(f"{path}: columns must be {', '.join(_COLUMNS)}, got {', '.join(lines.fieldnames or ())}")
        return [_gesture(path, recording, number, line) for number, line in enumerate(lines, 2)]


def _gesture(path: Path, recording: Path, number: int, line: dict[str, str | None]) -> _Gesture:
    try:
        label, start, end = (int(line[name] or "") for name in _COLUMNS)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: columns must be integers, got {list(line.values())}") from error
    if not 1 <= label <= len(CLASSES):
        raise DataError(f"{path}, line {number}: class must be in [1, {len(CLASSES)}], got {label}")
    if end < start:
        raise DataError(f"{path}, line {number}: endTime_usec must be at least {start}, got {end}")
    return _Gesture(recording, label - 1, start, end)
