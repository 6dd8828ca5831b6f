"""Readers of spike data sets read files of their formats, lazily, and say what is wrong with others."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from experiments.datasets import (
    Binned,
    Binning,
    DataError,
    Events,
    Gestures,
    Heidelberg,
    Held,
    Manifolds,
    Structured,
    aedat,
)
from experiments.datasets.heidelberg import commands, digits
from experiments.datasets.samples import braille, nmnist
from recordings import HEADER, packet, polarity, write_gestures, write_heidelberg

# Heidelberg


RECORDINGS = [([0.0, 0.004, 0.0078125, 0.5], [0, 699, 7, 350], 3), ([0.25], [6], 19), ([], [], 0)]


def test_heidelberg_digits_are_read_one_recording_at_a_time(tmp_path: Path) -> None:
    write_heidelberg(tmp_path / "shd_train.h5", RECORDINGS)
    spoken = digits(tmp_path, "train")
    assert (len(spoken), spoken.shape, spoken.classes[19]) == (3, (700,), "neun")
    events, label = spoken.recording(0)
    assert label == 3
    # float16 has eleven bits: 0.004 s is 4.0016 ms.
    assert events.times.tolist() == [0, 4002, 7812, 500_000]
    assert events.inputs.tolist() == [0, 699, 7, 350]
    assert len(spoken.recording(2)[0]) == 0


def test_channels_are_joined_to_fewer_inputs_and_events_to_steps(tmp_path: Path) -> None:
    write_heidelberg(tmp_path / "ssc_valid.h5", RECORDINGS)
    binned = Binned(commands(tmp_path, "valid", 100), Binning(dt=4000, steps=2, counts=True))
    spikes, labels = binned.batch([0, 1])
    assert spikes.shape == (2, *binned.shape) == (2, 2, 100)
    assert (spikes.dtype, labels.tolist()) == (torch.uint8, [3, 19])
    assert spikes[0].nonzero().tolist() == [[0, 0], [1, 1], [1, 99]]  # the event at 0.5 s is after the last step
    assert spikes[1].sum() == 0


def test_events_of_one_bin_are_counted_or_are_one_spike(tmp_path: Path) -> None:
    path = write_heidelberg(tmp_path / "file.h5", [([0.001, 0.002, 0.003], [5, 6, 5], 0)])
    recordings = Heidelberg(path, ("one",), 100)
    events, _ = recordings.recording(0)
    assert Binning(4000, 1, counts=True).spikes(events, recordings.shape)[0, 0] == 3
    spikes = Binning(4000, 1).spikes(events, recordings.shape)
    assert (spikes.dtype, int(spikes.sum())) == (torch.bool, 1)


@pytest.mark.parametrize("missing", ["spikes/times", "spikes/units", "labels"])
def test_a_heidelberg_file_without_an_array_is_refused(tmp_path: Path, missing: str) -> None:
    path = write_heidelberg(tmp_path / "file.h5", RECORDINGS, skip=missing)
    with pytest.raises(DataError, match=f"file.h5: dataset {missing} is missing"):
        Heidelberg(path, ("one",))


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        (([0.1], [700], 0), r"recording 0: units of events must be in \[0, 699\], got 700"),
        (([-0.1], [1], 0), r"recording 0: seconds of events must be in \[0, 9007199254\], got -0\.09997"),
        (([float("nan")], [1], 0), "recording 0: seconds of events must be finite, got nan"),
        (([0.1, float("inf")], [1, 1], 0), "recording 0: seconds of events must be finite, got inf"),
        (([0.1, 0.2], [1], 0), "recording 0: times and inputs must be of one length"),
        (([0.1], [1], 2), r"labels must be in \[0, 1\], got 2"),
    ],
)
def test_a_wrong_heidelberg_recording_is_refused(tmp_path: Path, recording: Any, message: str) -> None:
    path = write_heidelberg(tmp_path / "file.h5", [recording])
    with pytest.raises(DataError, match=message):
        Heidelberg(path, ("one", "two")).recording(0)


def test_what_is_no_hdf5_file_or_is_cut_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shd_train.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"shd_train\.h5: must be a whole HDF5 file, got .*signature"):
        digits(tmp_path, "train")
    whole = write_heidelberg(tmp_path / "shd_test.h5", RECORDINGS)
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"shd_test\.h5: must be a whole HDF5 file, got .*truncated"):
        digits(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match=r"ssc_test\.h5"):
        commands(tmp_path, "test")


FRACTIONS_OF_UNITS = np.array([np.full(length, 1.5, np.float32) for length in (4, 1, 0)], object)


@pytest.mark.parametrize(
    ("name", "array", "dtype", "message"),
    [
        ("spikes/times", 0.5, None, r"spikes/times must have shape \(recordings,\), got \(\)"),
        ("labels", np.uint16(1), None, r"labels must have shape \(recordings,\), got \(\)"),
        ("labels", np.zeros((3, 2), np.uint16), None, r"labels must have shape \(recordings,\), got \(3, 2\)"),
        ("labels", [0.0, 1.7, 0.0], None, "labels must hold integers, got float64"),
        ("labels", ["null", "eins", "zwei"], h5py.string_dtype(), "labels must hold integers, got object"),
        ("labels", np.array([0, 2**64 - 1, 0], np.uint64), None, rf"labels must be in \[0, 1\], got {2**64 - 1}"),
        ("spikes/units", FRACTIONS_OF_UNITS, h5py.vlen_dtype(np.float32), "spikes/units must hold arrays of integers"),
        ("spikes/units", [1, 2, 3], None, "spikes/units must hold arrays of integers, got int64"),
        ("spikes/times", ["a", "b", "c"], h5py.string_dtype(), "spikes/times must hold arrays of numbers, got <U0"),
    ],
)
def test_a_heidelberg_array_of_another_shape_or_type_is_refused(
    tmp_path: Path, name: str, array: Any, dtype: Any, message: str
) -> None:
    path = write_heidelberg(tmp_path / "file.h5", RECORDINGS)
    with h5py.File(path, "a") as file:
        del file[name]
        file.create_dataset(name, data=array, dtype=dtype)
    with pytest.raises(DataError, match=f"file.h5: (dataset )?{message}"):
        Heidelberg(path, ("one", "two"))


def test_a_heidelberg_file_without_recordings_is_refused(tmp_path: Path) -> None:
    path = write_heidelberg(tmp_path / "file.h5", [])
    with pytest.raises(DataError, match=r"file\.h5: must hold at least 1 recording, got 0"):
        Heidelberg(path, ("one",))


def test_a_heidelberg_time_that_microseconds_cannot_count_is_refused(tmp_path: Path) -> None:
    path = write_heidelberg(tmp_path / "file.h5", [([], [5], 0)])
    with h5py.File(path, "a") as file:
        del file["spikes/times"]
        file.create_dataset("spikes/times", (1,), h5py.vlen_dtype(np.float32))[0] = np.array([1e30], np.float32)
    with pytest.raises(DataError, match=r"seconds of events must be in \[0, 9007199254\], got 1\.0+.*e\+30"):
        Heidelberg(path, ("one",)).recording(0)


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    path = write_heidelberg(tmp_path / "file.h5", RECORDINGS)
    with h5py.File(path, "a") as file:
        del file["labels"]
        file["labels"] = np.zeros(2, np.uint16)
    with pytest.raises(DataError, match="of one length, got"):
        Heidelberg(path, ("one",))


# AEDAT 3.1 and DVS128 Gesture


def test_polarity_events_are_read_and_packets_of_other_kinds_skipped(tmp_path: Path) -> None:
    path = tmp_path / "file.aedat"
    path.write_bytes(
        HEADER
        + packet(0, 8, bytes(16))  # special events
        + packet(1, 8, polarity((5, 127, 3, 1), (9, 0, 64, 0)))
        + packet(2, 40, bytes(80))  # frames
        + packet(1, 8, polarity((7, 1, 1, 1), valid=0) + polarity((1, 2, 4, 1)) + bytes(8), number=2, overflows=2)
    )
    events = aedat.read(path)
    assert events.times.tolist() == [5, 9, 2 * 2**31 + 1]
    assert (events.x.tolist(), events.y.tolist(), events.polarity.tolist()) == ([127, 0, 2], [3, 64, 4], [1, 0, 1])


def test_a_recording_without_events_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "file.aedat"
    path.write_bytes(HEADER)
    assert aedat.read(path).times.size == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#!AER-DAT2.0\r\n#!END-HEADER\r\n", "the first line must be #!AER-DAT3.1, got b'#!AER-DAT2.0"),
        (HEADER[:-4], "the header has no end"),
        (HEADER + packet(1, 8, polarity((1, 2, 3, 0)))[:20], "ends within the header of a packet"),
        (HEADER + packet(1, 8, polarity((1, 2, 3, 0)))[:-1], "ends within a packet of 1 events"),
        (
            HEADER + packet(0, 8, bytes(8), number=-1),
            "at most as many events as fit, got -1 events of 8 bytes where 1 fit",
        ),
        (
            HEADER + packet(0, 8, bytes(8), number=2),
            "at most as many events as fit, got 2 events of 8 bytes where 1 fit",
        ),
        (HEADER + packet(1, 16, bytes(16)), "polarity events must have 8 bytes"),
    ],
)
def test_a_malformed_event_camera_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.aedat"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        aedat.read(path)


def test_gestures_are_the_events_between_start_and_end(tmp_path: Path) -> None:
    events = polarity((99, 1, 1, 1), (100, 127, 2, 1), (5200, 0, 127, 0), (5300, 5, 5, 1), (7000, 9, 9, 0))
    write_gestures(tmp_path, events, [(1, 100, 5300), (11, 5300, 9000)])
    gestures = Gestures(tmp_path, "train")
    assert (len(gestures), gestures.shape, gestures.classes[10]) == (2, (2, 128, 128), "other gestures")
    first, label = gestures.recording(0)
    assert (label, first.times.tolist()) == (0, [0, 5100])
    assert first.inputs.tolist() == [(128 + 2) * 128 + 127, 127 * 128]
    assert gestures.recording(1)[1] == 10
    half = Binned(Gestures(tmp_path, "train", 64), Binning(dt=5000, steps=2), keep=True)
    spikes, labels = half.batch([0, 1])
    assert spikes.shape == (2, 2, 2, 64, 64)
    assert spikes[0].nonzero().tolist() == [[0, 1, 1, 63], [1, 0, 63, 0]]
    assert labels.tolist() == [0, 10]


@pytest.mark.parametrize(
    ("line", "header", "message"),
    [
        ((12, 0, 1), "", r"labels.csv, line 2: class must be in \[1, 11\], got 12"),
        ((1, 5, 4), "", "line 2: endTime_usec must be at least 5, got 4"),
        ((1, "x", 4), "", r"line 2: columns must be integers, got \['1', 'x', '4'\]"),
        ((1, 5), "", r"line 2: columns must be integers, got \['1', '5', None\]"),
        ((1, 0, 1), "label,start,end\n", "columns must be class, startTime_usec, endTime_usec, got label, start, end"),
    ],
)
def test_a_malformed_file_of_labels_is_refused(tmp_path: Path, line: Any, header: str, message: str) -> None:
    write_gestures(tmp_path, b"", [line], header)
    with pytest.raises(DataError, match=message):
        Gestures(tmp_path, "train")


def test_a_part_without_gestures_is_refused(tmp_path: Path) -> None:
    write_gestures(tmp_path, b"", [])
    with pytest.raises(DataError, match=r"trials_to_train\.txt: .* at least 1 gesture, got 0 in 1 files"):
        Gestures(tmp_path, "train")
    (tmp_path / "trials_to_train.txt").write_text("\n")
    with pytest.raises(DataError, match=r"trials_to_train\.txt: .* at least 1 gesture, got 0 in 0 files"):
        Gestures(tmp_path, "train")


def test_a_pixel_outside_the_sensor_is_refused(tmp_path: Path) -> None:
    write_gestures(tmp_path, polarity((1, 128, 0, 1)), [(1, 0, 9)])
    with pytest.raises(DataError, match=r"x of events must be in \[0, 127\], got 128"):
        Gestures(tmp_path, "train").recording(0)


def test_a_missing_recording_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    write_gestures(tmp_path, b"", [(1, 0, 9)])
    (tmp_path / "user01_led.aedat").unlink()
    gestures = Gestures(tmp_path, "train")
    with pytest.raises(FileNotFoundError):
        gestures.recording(0)


# Structured arrays

CAMERA = np.dtype([("t", np.int64), ("x", np.int16), ("y", np.int16), ("p", bool)])
FRACTIONS = np.dtype([("t", np.int64), ("x", float), ("y", np.int64), ("p", bool)])
COCHLEA = np.dtype([("t", np.int64), ("x", np.int64), ("p", np.int64)])


def test_structured_arrays_of_a_camera_and_of_a_cochlea_are_read() -> None:
    seen = Structured([(np.array([(3, 1, 2, True), (4, 0, 0, False)], CAMERA), 1)], (4, 3, 2), ("a", "b"))
    events, label = seen.recording(0)
    assert (seen.shape, label) == ((2, 3, 4), 1)
    assert events.inputs.tolist() == [(3 + 2) * 4 + 1, 0]
    heard = Structured([(np.array([(3, 5, 1)], COCHLEA), 0)], (700, 1, 1), ("a",))
    assert (heard.shape, heard.recording(0)[0].inputs.tolist()) == ((700,), [5])


@pytest.mark.parametrize(
    ("array", "label", "message"),
    [
        (np.zeros(1, [("t", int), ("x", int)]), 0, "sample 0: events must have the field y"),
        (np.array([(0, 4, 0, 0)], CAMERA), 0, r"sample 0: x of events must be in \[0, 3\], got 4"),
        (np.array([(0, 0, -1, 0)], CAMERA), 0, r"sample 0: y of events must be in \[0, 2\], got -1"),
        (np.array([(-1, 0, 0, 0)], CAMERA), 0, "sample 0: times of events must be in .*, got -1"),
        (np.zeros(1, CAMERA), 2, r"sample 0: its class must be in \[0, 1\], got 2"),
        (np.zeros(1, CAMERA), 0.7, "sample 0: its class must be an integer, got 0.7"),
        (np.array([(0, 1.5, 0, 0)], FRACTIONS), 0, "sample 0: field x of events must hold integers, got float64"),
    ],
)
def test_a_wrong_structured_array_is_refused(array: Any, label: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Structured([(array, label)], (4, 3, 2), ("a", "b")).recording(0)


def test_no_structured_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        Structured([], (4, 3, 2), ("a",))


# Random manifolds


def test_manifolds_have_one_spike_of_each_input_whatever_the_class() -> None:
    manifolds = Manifolds(40, inputs=7, classes=4, duration=100)
    spikes, labels = Binned(manifolds, Binning(dt=1, steps=100)).batch(range(40))
    assert (spikes.sum(1) == 1).all()
    assert labels.bincount().tolist() == [10] * 4


def test_manifolds_are_those_of_their_seed() -> None:
    def times(**options: int) -> Any:
        manifolds = Manifolds(12, **options)
        return np.stack([manifolds.recording(index)[0].times for index in range(12)])

    assert (times() == times()).all()
    assert (times() != times(seed=1)).any()
    assert (times() != times(part=1)).any()


def test_samples_of_a_manifold_lie_closer_together_than_those_of_others() -> None:
    """The times tell the classes apart: the nearest sample of another part is mostly of the same class."""
    train, test = (Manifolds(samples, classes=5, part=part) for part, samples in ((0, 500), (1, 50)))
    points = [np.stack([part.recording(index)[0].times for index in range(len(part))]) for part in (train, test)]
    nearest = np.abs(points[1][:, None] - points[0]).sum(-1).argmin(1)
    right = [train.recording(near)[1] == test.recording(index)[1] for index, near in enumerate(nearest)]
    assert np.mean(right) > 0.9


def test_smoother_manifolds_have_less_of_the_short_waves() -> None:
    """A step along the manifold moves the spikes less: the nearest samples of a class are closer."""

    def apart(smoothness: float) -> float:
        manifold = Manifolds(400, classes=1, smoothness=smoothness)
        points = np.stack([manifold.recording(index)[0].times for index in range(400)])
        gaps = np.abs(points[:, None] - points).sum(-1) + np.diag(np.full(400, np.inf))
        return float(np.median(gaps.min(1)))

    assert apart(2.0) < 0.7 * apart(0.5)


@pytest.mark.parametrize("name", ["samples", "inputs", "classes", "dimensions", "duration"])
def test_manifolds_of_no_size_are_refused(name: str) -> None:
    options: dict[str, Any] = {"samples": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Manifolds(**options)


# Batches


class Counted(Manifolds):
    """Manifolds that note which recordings were read."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples, duration=10)
        self.read: list[int] = []

    def recording(self, index: int) -> tuple[Events, int]:
        self.read.append(index)
        return super().recording(index)


def test_batches_are_read_when_their_turn_comes() -> None:
    counted = Counted(5)
    batches = Binned(counted, Binning(1, 10)).batches(2, torch.tensor([4, 0, 2]))
    assert counted.read == []
    assert (len(next(batches)[1]), counted.read) == (2, [4, 0])
    assert (len(next(batches)[1]), counted.read) == (1, [4, 0, 2])


def test_kept_recordings_are_read_once_and_are_the_same() -> None:
    counted = Counted(5)
    kept = Binned(counted, Binning(1, 10), keep=True)
    for (spikes, labels), (again, same) in zip(
        kept.batches(2), Binned(counted, Binning(1, 10)).batches(2), strict=True
    ):
        assert torch.equal(spikes, again)
        assert torch.equal(labels, same)
    assert counted.read[:5] == [0, 1, 2, 3, 4]
    assert len(counted.read) == 10


def test_held_samples_come_in_the_order_that_is_asked_for() -> None:
    held = Held(torch.arange(6).view(3, 2, 1), torch.arange(3))
    assert (len(held), held.shape) == (3, (2, 1))
    assert [labels.tolist() for _, labels in held.batches(2, torch.tensor([2, 0, 1]))] == [[2, 0], [1]]
    with pytest.raises(ValueError, match="labels must be one for each of 3 samples, got 2"):
        Held(torch.zeros(3, 1), torch.zeros(2))


def test_a_bin_with_more_events_than_its_type_can_count_is_refused() -> None:
    events = Events(np.zeros(256, np.int64), np.zeros(256, np.int64))
    with pytest.raises(DataError, match="events of an input in one step must be at most 255, got 256"):
        Binning(1, 1, counts=True).spikes(events, (1,))


@pytest.mark.parametrize("name", ["dt", "steps"])
def test_a_binning_without_length_is_refused(name: str) -> None:
    sizes: dict[str, Any] = {"dt": 1, "steps": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Binning(**sizes)


# Files of the examples


def folder_with(name: str) -> Path:
    folder = Path(os.environ.get("EXODUS_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / name).exists():
        pytest.skip(f"{name} is not in {folder}; EXODUS_DATA names the folder that has it")
    return folder


def test_braille_letters_and_digits_are_those_of_the_example() -> None:
    split, letters = braille(folder_with("braille_letters.npz"))
    assert ([len(part) for part in split], len(letters)) == ([945, 135, 270], 27)
    spikes, labels = next(split.train.batches(4))
    assert (spikes.shape[1:], spikes.dtype, labels.dtype) == (split.train.shape, torch.bool, torch.int64)
    assert [len(part) for part in nmnist(folder_with("nmnist_small.npz"))[0]] == [900, 100, 100]
