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
_ARRAYS = ("spikes/times", "spikes/units", "labels")
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
        OSError: the file cannot be opened, or is no HDF5 file.
        DataError: it does not have the arrays of such recordings.
    """

    def __init__(self, path: Path, classes: tuple[str, ...], inputs: int = CHANNELS) -> None:
        if not 1 <= inputs <= CHANNELS:
            raise ValueError(f"inputs must be in [1, {CHANNELS}], got {inputs}")
        self.classes, self._path, self._inputs = classes, path, inputs
        self._file = h5py.File(path, "r")
        for name in _ARRAYS:
            if not isinstance(self._file.get(name), h5py.Dataset):
                raise DataError(f"{path}: dataset {name} is missing")
        self._times, self._units, labels = (self._file[name] for name in _ARRAYS)
        lengths = {name: len(self._file[name]) for name in _ARRAYS}
        if len(set(lengths.values())) != 1:
            raise DataError(f"{path}: datasets must be of one length, got {lengths}")
        self._labels = labels[:].astype(np.int64)
        within("labels", self._labels, len(classes) - 1, str(path))

    @property
    def shape(self) -> tuple[int, ...]:
        """(inputs,)"""
        return (self._inputs,)

    def __len__(self) -> int:
        return len(self._labels)

    def recording(self, index: int) -> tuple[Events, int]:
        """Events of a recording, and its class number.

        Raises:
            DataError: it has times before 0, or channels that the cochlea has not.
        """
        where = f"{self._path}, recording {index}"
        seconds, units = np.asarray(self._times[index], np.float64), np.asarray(self._units[index], np.int64)
        if not np.isfinite(seconds).all():
            raise DataError(f"{where}: times of events must be finite")
        within("units of events", units, CHANNELS - 1, where)
        times = np.round(seconds * 1e6).astype(np.int64)
        return checked(times, units * self._inputs // CHANNELS, self.shape, where), int(self._labels[index])


def digits(folder: Path, part: str, inputs: int = CHANNELS) -> Heidelberg:
    """SHD: "train" or "test" of a folder."""
    return Heidelberg(folder / f"shd_{part}.h5", DIGITS, inputs)


def commands(folder: Path, part: str, inputs: int = CHANNELS) -> Heidelberg:
    """SSC: "train", "valid" or "test" of a folder."""
    return Heidelberg(folder / f"ssc_{part}.h5", COMMANDS, inputs)
