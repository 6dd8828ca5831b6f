"""The Spiking Heidelberg Digits (SHD; the paper's HSD) and Spiking Speech Commands (SSC), as HDF5 files of Zenke's lab.

A file has spikes/times (seconds, float16 or float32) and spikes/units (the channel), one array of any length for each
recording, and labels. The files are shd_train.h5, shd_test.h5, ssc_train.h5, ssc_valid.h5 and ssc_test.h5, unpacked.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from experiments.datasets.events import DataError, Events, checked, within

#: Channels of the artificial cochlea.
CHANNELS = 700
#: Datasets of a file, and the kinds of numbers that numpy has for what they hold.
_ARRAYS = {"spikes/times": "iuf", "spikes/units": "iu", "labels": "iu"}
#: Latest time of an event in seconds: float64 counts microseconds exactly up to here.
LATEST = 2**53 // 1_000_000
_SPOKEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_GESPROCHEN = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")
#: Of SHD: digits in English, then in German. SSC has 35 commands, whose names are not in its files.
DIGITS = _SPOKEN + _GESPROCHEN
COMMANDS = tuple(f"command {number}" for number in range(35))


class Heidelberg:
    """Recordings of one HDF5 file, read from it one at a time.

    Args:
        path: the file.
        classes: names of its class numbers.
        inputs: number of inputs that the 700 channels are joined to, as many neighbours to each as will fit: channel c
            becomes input floor(c inputs / 700).

    Raises:
        OSError: the file cannot be opened.
        DataError: it is no HDF5 file, or does not have the arrays of such recordings, of one at least.
    """

    def __init__(self, path: Path, classes: tuple[str, ...], inputs: int = CHANNELS) -> None:
        if not 1 <= inputs <= CHANNELS:
            raise ValueError(f"inputs must be in [1, {CHANNELS}], got {inputs}")
        self.classes, self._path, self._inputs = classes, path, inputs
        self._file = _opened(path)
        self._times, self._units, labels = (_dataset(self._file, name, str(path)) for name in _ARRAYS)
        lengths = {name: len(self._file[name]) for name in _ARRAYS}
        if len(set(lengths.values())) != 1:
            raise DataError(f"{path}: datasets must be of one length, got {lengths}")
        if len(labels) == 0:
            raise DataError(f"{path}: must hold at least 1 recording, got 0")
        within("labels", labels[:], len(classes) - 1, str(path))
        self._labels = labels[:].astype(np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """(inputs,)"""
        return (self._inputs,)

    def __len__(self) -> int:
        return len(self._labels)

    def recording(self, index: int) -> tuple[Events, int]:
        """Events of a recording, and its class number.

        Raises:
            DataError: it has times before 0 or after LATEST, or channels that the cochlea has not.
        """
        where = f"{self._path}, recording {index}"
        seconds, units = self._times[index].astype(np.float64), self._units[index]
        finite = np.isfinite(seconds)
        if not finite.all():
            raise DataError(f"{where}: seconds of events must be finite, got {seconds[~finite][0]}")
        within("seconds of events", seconds, LATEST, where)
        within("units of events", units, CHANNELS - 1, where)
        times, inputs = np.round(seconds * 1e6), units.astype(np.int64) * self._inputs // CHANNELS
        return checked(times.astype(np.int64), inputs, self.shape, where), int(self._labels[index])


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if error.errno is not None:  # of the operating system: no such file, no permission
            raise
        raise DataError(f"{path}: must be a whole HDF5 file, got {error}") from error


def _dataset(file: h5py.File, name: str, where: str) -> h5py.Dataset:
    """One of _ARRAYS, if it has one row for each recording, and the numbers that it should."""
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{where}: dataset {name} is missing")
    if dataset.ndim != 1:
        raise DataError(f"{where}: dataset {name} must have shape (recordings,), got {dataset.shape}")
    numbers, nested = "numbers" if "f" in _ARRAYS[name] else "integers", name != "labels"
    row = h5py.check_vlen_dtype(dataset.dtype)
    held = np.dtype(row) if nested and row is not None else dataset.dtype
    if (row is not None) != nested or held.kind not in _ARRAYS[name]:
        raise DataError(f"{where}: dataset {name} must hold {'arrays of ' * nested}{numbers}, got {held}")
    return dataset


def digits(folder: Path, part: str, inputs: int = CHANNELS) -> Heidelberg:
    """SHD: "train" or "test" of a folder."""
    return Heidelberg(folder / f"shd_{part}.h5", DIGITS, inputs)


def commands(folder: Path, part: str, inputs: int = CHANNELS) -> Heidelberg:
    """SSC: "train", "valid" or "test" of a folder."""
    return Heidelberg(folder / f"ssc_{part}.h5", COMMANDS, inputs)
