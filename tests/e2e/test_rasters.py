"""The rasters that the examples train on, read from bytes that are written here."""

from pathlib import Path

import pytest
import torch

from examples.train_raster import oxford, poisson, raster, read_events, share_met


def event(neuron: int, polarity: int, microseconds: int) -> bytes:
    return (neuron << 24 | polarity << 23 | microseconds).to_bytes(5, "big")


def test_bs1_events_are_read_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "events.bs1"
    path.write_bytes(event(0, 0, 0) + event(258, 1, 1_000) + event(65_535, 1, 2**23 - 1) + bytes([1, 2, 0x83, 4, 5]))
    events = read_events(path)
    assert events.neuron.tolist() == [0, 258, 65_535, 258]
    assert events.polarity.tolist() == [0, 1, 1, 1]
    assert events.microseconds.tolist() == [0, 1_000, 8_388_607, 3 << 16 | 4 << 8 | 5]


def test_events_fall_into_steps_of_a_millisecond(tmp_path: Path) -> None:
    path = tmp_path / "events.bs1"
    path.write_bytes(event(0, 1, 999) + event(1, 0, 1_000) + event(1, 1, 1_999) + event(2, 1, 3_000))
    spikes = raster(read_events(path), steps=4, neurons=3)
    assert spikes.shape == (1, 4, 3)
    assert spikes.dtype == torch.float32
    assert spikes[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_an_empty_bs1_file_is_a_raster_without_spikes(tmp_path: Path) -> None:
    path = tmp_path / "empty.bs1"
    path.touch()
    assert raster(read_events(path), steps=2, neurons=2).tolist() == [[[0, 0], [0, 0]]]


def test_a_cut_bs1_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.bs1"
    path.write_bytes(event(0, 0, 0)[:4])
    with pytest.raises(ValueError, match=r"cut\.bs1 must be a multiple of 5 bytes, got 4"):
        read_events(path)


@pytest.mark.parametrize(
    ("outside", "message"),
    [
        (event(3, 1, 0), "neuron of events must be below 3, got 3"),
        (event(0, 1, 4_000), "millisecond of events must be below 4, got 4"),
    ],
    ids=["neuron", "time"],
)
def test_an_event_beyond_the_raster_is_refused(tmp_path: Path, outside: bytes, message: str) -> None:
    path = tmp_path / "events.bs1"
    path.write_bytes(outside)
    with pytest.raises(ValueError, match=message):
        raster(read_events(path), steps=4, neurons=3)


def test_spikes_are_met_by_the_same_neuron_nearby() -> None:
    spikes, others = torch.zeros(2, 1, 10, 2).unbind()
    spikes[0, [2, 5, 8], 0] = 1
    others[0, 4, 0] = others[0, 5, 1] = others[0, 9, 0] = 1
    assert share_met(spikes, others, within=0) == 0
    assert share_met(spikes, others, within=1) == pytest.approx(2 / 3)
    assert share_met(spikes, others, within=2) == 1


def test_the_seed_decides_the_poisson_spike_trains() -> None:
    assert torch.equal(poisson(1).inputs, poisson(1).inputs)
    assert not torch.equal(poisson(1).inputs, poisson(2).inputs)
    assert poisson(1).inputs.mean().item() == pytest.approx(0.02, abs=0.003)  # standard error 0.0006


def test_the_oxford_files_have_the_spikes_of_their_description(oxford_folder: Path) -> None:
    assert [read_events(oxford_folder / name).neuron.size for name in ("input.bs1", "output.bs1")] == [1889, 10361]
    task = oxford(oxford_folder)
    assert task.inputs.shape == task.target.shape == (1, 1900, 200)
    assert task.target.sum() == 10361
    assert task.inputs.sum() == 1879  # ten events share neuron and millisecond with another
