"""Encodings of recordings as spikes in the examples, on synthetic recordings and, if present, on real ones."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from examples import train_classifier as classifier

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recordings() -> Path:
    """EXODUS_DATA, or ../shared/data next to the checkout."""
    return Path(os.environ.get("EXODUS_DATA", ROOT.parent / "shared" / "data"))


def train_of(values: list[float], quantum: float) -> tuple[list[int], list[int]]:
    """Upward and downward spikes of one channel."""
    spikes = classifier.changes(torch.tensor(values)[None, :, None], quantum)
    up, down = spikes[0].int().T.tolist()
    return up, down


def test_readings_are_joined_by_straight_lines() -> None:
    readings = torch.tensor([[[0.0, 8.0], [3.0, 8.0], [0.0, 2.0]]])
    joined = classifier.interpolate(readings, 3)
    assert joined[0].T.tolist() == [[0, 1, 2, 3, 2, 1, 0], [8, 8, 8, 8, 6, 4, 2]]


def test_a_change_by_a_quantum_is_a_spike() -> None:
    assert train_of([5, 6, 7, 7, 5, 5], 2) == ([0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0])


def test_a_change_of_less_than_a_quantum_is_none() -> None:
    assert train_of([5, 6.9, 5, 3.1, 5], 2) == ([0] * 5, [0] * 5)


def test_a_channel_catches_up_after_a_large_change() -> None:
    assert train_of([0, 6, 6, 6, 6], 2) == ([0, 1, 1, 1, 0], [0] * 5)


def test_spikes_tell_the_signal_to_within_a_quantum() -> None:
    generator = torch.Generator().manual_seed(3)
    steps = torch.rand(4, 200, 3, generator=generator) * 2 - 1  # less than a quantum each: no channel is late
    signal = steps.cumsum(1)
    up, down = classifier.changes(signal, 1.0).float().unflatten(2, (2, 3)).unbind(2)
    told = signal[:, :1] + (up - down).cumsum(1)
    assert (told - signal).abs().max() < 1
    assert up.sum() > 100


def test_each_quantum_has_its_channels() -> None:
    readings = torch.zeros(1, 3, 12)
    readings[0, 1:, 7] = 4.5
    spikes = classifier.encode_touch(readings)
    assert spikes.shape == (1, 2 * classifier.STEPS_PER_READING + 1, 24 * len(classifier.QUANTA))
    assert spikes.dtype == torch.bool
    fired = spikes[0].sum(0)
    assert {int(channel): int(fired[channel]) for channel in fired.nonzero()} == {7: 2, 24 + 7: 1}
    down = classifier.encode_touch(-readings)[0].sum(0)
    assert {int(channel): int(down[channel]) for channel in down.nonzero()} == {12 + 7: 2, 24 + 12 + 7: 1}


def braille_file(folder: Path, *, repetitions: int = 50, letters: int = 2) -> Path:
    """Recordings of 9 and 10 readings; taxel `letter` rises by 40 in the middle."""
    taxels, lengths, labels, repetition = [], [], [], []
    for letter in range(letters):
        for number in range(repetitions):
            readings = np.full((9 + number % 2, 12), 100, np.uint8)
            readings[4:, letter] += 40
            taxels.append(readings)
            lengths.append(len(readings))
            labels.append(letter)
            repetition.append(number)
    np.savez(
        folder / "braille_letters.npz",
        taxels=np.concatenate(taxels),
        offsets=np.cumsum([0, *lengths]),
        labels=np.array(labels),
        repetition=np.array(repetition),
        letters=np.array(["A", "Space"][:letters]),
    )
    return folder


def test_braille_is_split_by_repetition(tmp_path: Path) -> None:
    task = classifier.braille(braille_file(tmp_path))
    assert task.classes == ("A", "Space")
    assert [len(part.labels) for part in (task.train, task.validation, task.test)] == [70, 10, 20]
    for part in (task.train, task.validation, task.test):
        assert part.labels.bincount().tolist() == [len(part.labels) // 2] * 2
        assert part.spikes.shape[1:] == (9 * classifier.STEPS_PER_READING + 1, 24 * len(classifier.QUANTA))
    # The taxel of the letter is the first to fire, in each of its recordings.
    assert (task.test.spikes[:, :, :12].any(1).nonzero()[:, 1] == task.test.labels).all()


def event_arrays(events: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Arrays of events (microseconds, x, y, polarity), in the types of the file."""
    t, x, y, p = (np.array(values) for values in zip(*events, strict=True))
    return t.astype(np.uint32), x.astype(np.uint8), y.astype(np.uint8), p.astype(np.uint8)


def test_events_fall_into_bins_of_ten_milliseconds() -> None:
    events = event_arrays(
        [(0, 1, 2, 0), (9_999, 1, 2, 0), (10_000, 1, 2, 1), (299_999, 33, 0, 0), (300_000, 5, 5, 0), (20_000, 3, 4, 1)]
    )
    spikes = classifier.bin_events(*events, np.array([0, 5, 6]))
    assert spikes.shape == (2, 30, 2, 34, 34)
    assert spikes.dtype == torch.bool
    # recording, step, polarity, row, column; the event at 300 ms is beyond the last bin
    assert spikes.nonzero().tolist() == [[0, 0, 0, 2, 1], [0, 1, 1, 2, 1], [0, 29, 0, 0, 33], [1, 2, 1, 4, 3]]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ((0, 34, 0, 0), "x of events must be below 34, got 34"),
        ((0, 0, 40, 0), "y of events must be below 34, got 40"),
        ((0, 0, 0, 2), "polarity of events must be below 2, got 2"),
    ],
    ids=["x", "y", "polarity"],
)
def test_events_outside_the_image_are_refused(event: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier.bin_events(*event_arrays([event]), np.array([0, 1]))


def test_digits_are_split_and_the_last_ones_validate(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for part, samples in (("train", 105), ("test", 3)):
        t, x, y, p = event_arrays([(1_000, number % 34, 0, 1) for number in range(samples)])
        arrays |= {f"{part}_t": t, f"{part}_x": x, f"{part}_y": y, f"{part}_p": p}
        arrays |= {f"{part}_offsets": np.arange(samples + 1), f"{part}_labels": np.arange(samples, dtype=np.uint8) % 10}
    np.savez(tmp_path / "nmnist_small.npz", **arrays)
    task = classifier.nmnist(tmp_path)
    assert task.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert task.validation.labels.tolist() == [number % 10 for number in range(5, 105)]
    assert task.test.labels.tolist() == [0, 1, 2]
    assert task.validation.spikes.nonzero()[:3].tolist() == [[i, 0, 1, 0, 5 + i] for i in range(3)]


def time_shifts(spikes: Tensor) -> list[Tensor]:
    """The spikes moved by every shift that is allowed; what leaves is gone."""
    largest, steps = classifier.LARGEST_DELAY, spikes.shape[1]
    padded = torch.nn.functional.pad(spikes, (0, 0, largest, largest))
    return [padded[:, start : start + steps] for start in range(2 * largest + 1)]


def space_shifts(spikes: Tensor) -> list[Tensor]:
    largest, pixels = classifier.LARGEST_SHIFT, classifier.PIXELS
    padded = torch.nn.functional.pad(spikes, (largest,) * 4)
    corners = [(row, column) for row in range(2 * largest + 1) for column in range(2 * largest + 1)]
    return [padded[..., row : row + pixels, column : column + pixels] for row, column in corners]


@pytest.mark.parametrize(
    ("vary", "shape", "shifts", "lost"),
    [
        (classifier.vary_touch, (60, 50, 24), time_shifts, 0.05),
        (classifier.vary_digits, (60, 2, 2, 34, 34), space_shifts, 0.1),
    ],
    ids=["braille", "nmnist"],
)
def test_variations_move_samples_and_lose_spikes(
    vary: Callable[[Tensor, torch.Generator], Tensor],
    shape: tuple[int, ...],
    shifts: Callable[[Tensor], list[Tensor]],
    lost: float,
) -> None:
    spikes = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3
    varied, again = (vary(spikes, torch.Generator().manual_seed(2)) for _ in range(2))
    assert varied.equal(again)
    assert varied.dtype == torch.bool
    used = set()
    for sample in range(shape[0]):
        candidates = [moved[sample] for moved in shifts(spikes)]
        (found,) = (i for i, moved in enumerate(candidates) if not (varied[sample] & ~moved).any())
        share = 1 - varied[sample].sum() / candidates[found].sum()
        assert float(share) == pytest.approx(lost, abs=0.07)
        used.add(found)
    assert len(used) > 5


def test_the_real_letters_are_as_they_are_described(recordings: Path) -> None:
    if not (recordings / "braille_letters.npz").is_file():
        pytest.skip(f"braille_letters.npz is not in {recordings}; EXODUS_DATA names the folder that has it")
    task = classifier.braille(recordings)
    assert [len(part.labels) for part in (task.train, task.validation, task.test)] == [945, 135, 270]
    assert task.test.labels.bincount().tolist() == [10] * 27
    assert 0.005 < task.train.spikes.float().mean() < 0.05


def test_the_real_digits_are_as_they_are_described(recordings: Path) -> None:
    if not (recordings / "nmnist_small.npz").is_file():
        pytest.skip(f"nmnist_small.npz is not in {recordings}; EXODUS_DATA names the folder that has it")
    task = classifier.nmnist(recordings)
    assert [len(part.labels) for part in (task.train, task.validation, task.test)] == [900, 100, 100]
    assert set(task.test.labels.tolist()) == set(range(10))
    assert 0.01 < task.train.spikes.float().mean() < 0.1
