"""Event camera files of version 3.1 (AEDAT 3.1): their polarity events.

A header of text, lines that begin with # and end in CR LF, the last one #!END-HEADER; then packets of little-endian
numbers. A packet has 28 bytes that say what follows: kind and source of its events (int16 each), bytes of an event,
where in it the time is, how often the time has overflown, how many events fit, how many there are, how many are valid
(int32 each). A polarity event, kind 1, has 8 bytes: a word, and the time in microseconds (31 bits). Bits of the word,
from the lowest: valid (1), polarity (1), y (15), x (15). Packets of other kinds are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.datasets.events import DataError

VERSION = b"#!AER-DAT3.1"
END_OF_HEADER = b"#!END-HEADER\r\n"
POLARITY = 1
_PACKET = np.dtype(
    [("kind", "<i2"), ("source", "<i2")]
    + [(name, "<i4") for name in ("size", "time_offset", "overflows", "capacity", "number", "valid")]
)
_EVENT = np.dtype([("word", "<u4"), ("time", "<i4")])
_OVERFLOW_BITS = 31


@dataclass(frozen=True)
class PolarityEvents:
    """Valid polarity events of a file, in its order, all of shape (events,).

    Attributes:
        times: microseconds, int64.
        x, y: column and row of the pixel, int64.
        polarity: 1 where it became brighter, else 0, int64.
    """

    times: NDArray[np.int64]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    polarity: NDArray[np.int64]

    def between(self, start: int, end: int) -> PolarityEvents:
        """Those with start <= time < end."""
        chosen = (self.times >= start) & (self.times < end)
        return PolarityEvents(self.times[chosen], self.x[chosen], self.y[chosen], self.polarity[chosen])


def read(path: Path) -> PolarityEvents:
    """The valid polarity events of a file.

    Raises:
        OSError: the file cannot be read.
        DataError: it is no AEDAT 3.1 file, ends within a packet, or a packet contradicts itself.
    """
    content = path.read_bytes()
    if not content.startswith(VERSION):
        raise DataError(f"{path}: the first line must be {VERSION.decode()}, got {content[:16]!r}")
    end = content.find(END_OF_HEADER)
    if end < 0:
        raise DataError(f"{path}: the header has no end")
    packets, place = [], end + len(END_OF_HEADER)
    while place < len(content):
        if len(content) - place < _PACKET.itemsize:
            raise DataError(f"{path}: ends within the header of a packet, at byte {place}")
        header = np.frombuffer(content, _PACKET, 1, place)[0]
        place += _PACKET.itemsize
        size, number, capacity = (int(header[name]) for name in ("size", "number", "capacity"))
        if size < 0 or not 0 <= number <= capacity:
            found = f"{number} events of {size} bytes where {capacity} fit"
            raise DataError(f"{path}: a packet must have at most as many events as fit, got {found}")
        if place + size * capacity > len(content):
            raise DataError(f"{path}: ends within a packet of {number} events, at byte {place}")
        if header["kind"] == POLARITY:
            packets.append(_polarity(path, content, place, header))
        place += size * capacity
    word, times = (np.concatenate(parts) for parts in zip((np.empty(0, np.int64),) * 2, *packets, strict=True))
    return PolarityEvents(times, word >> 17, (word >> 2) & 0x7FFF, (word >> 1) & 1)


def _polarity(path: Path, content: bytes, place: int, header: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Words and times of the valid events of a packet."""
    if header["size"] != _EVENT.itemsize or header["time_offset"] != _EVENT.fields["time"][1]:  # type: ignore[index]
        found = f"{header['size']} with the time at {header['time_offset']}"
        raise DataError(f"{path}: polarity events must have 8 bytes with the time at 4, got {found}")
    events = np.frombuffer(content, _EVENT, int(header["number"]), place)
    events = events[events["word"] & 1 == 1]
    overflown = int(header["overflows"]) << _OVERFLOW_BITS
    return events["word"].astype(np.int64), events["time"].astype(np.int64) + overflown
