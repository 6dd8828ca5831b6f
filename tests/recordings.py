"""Small files of the formats of spike data sets, for tests that read them."""

import csv
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def write_heidelberg(path: Path, recordings: Sequence[tuple[list[float], list[int], int]], skip: str = "") -> Path:
    """A file as those of the data set: seconds and channels of each recording, and its label."""
    arrays: dict[str, tuple[list[Any], Any]] = {
        "spikes/times": ([np.array(times, np.float16) for times, _, _ in recordings], h5py.vlen_dtype(np.float16)),
        "spikes/units": ([np.array(units, np.uint16) for _, units, _ in recordings], h5py.vlen_dtype(np.uint16)),
        "labels": ([label for _, _, label in recordings], np.uint16),
    }
    with h5py.File(path, "w") as file:
        for name, (rows, dtype) in arrays.items():
            if name != skip:
                dataset = file.create_dataset(name, (len(rows),), dtype)
                for index, row in enumerate(rows):
                    dataset[index] = row
    return path


#: Of an AEDAT 3.1 file.
HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def packet(kind: int, size: int, payload: bytes, *, number: int | None = None, overflows: int = 0) -> bytes:
    """A packet with room for its payload, which may be more than its number of events."""
    capacity = len(payload) // size
    count = capacity if number is None else number
    return struct.pack("<hhiiiiii", kind, 1, size, 4, overflows, capacity, count, count) + payload


def polarity(*events: tuple[int, int, int, int], valid: int = 1) -> bytes:
    """Events (time, x, y, polarity)."""
    return b"".join(struct.pack("<Ii", valid | p << 1 | y << 2 | x << 17, t) for t, x, y, p in events)


def write_gestures(folder: Path, events: bytes, lines: Sequence[Sequence[object]], header: str = "") -> None:
    (folder / "trials_to_train.txt").write_text("user01_led.aedat\n")
    (folder / "user01_led.aedat").write_bytes(HEADER + packet(1, 8, events))
    with (folder / "user01_led_labels.csv").open("w", newline="") as file:
        file.write(header or "class,startTime_usec,endTime_usec\n")
        csv.writer(file).writerows(lines)
