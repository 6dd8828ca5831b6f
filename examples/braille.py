"""Braille letters that a fingertip of 12 taxels slid over: changes as spikes, and a network that names the letter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from examples.classifying import Part, Task, lose

#: Steps from one reading of the taxels to the next, on a straight line between them.
STEPS_PER_READING = 3
#: A spike stands for a change by so much; every taxel has an upward and a downward channel of each.
QUANTA = (2.0, 4.0, 8.0, 16.0)
#: Of the 50 repetitions of each letter: the last ten are the test, five of those before are the validation.
TEST_FROM, VALIDATION_FROM = 40, 35
#: Of the fastest and of the slowest hidden neuron, in steps.
TIME_CONSTANTS = (5.0, 100.0)
LARGEST_SHIFT = 3


class Settings(NamedTuple):
    """A network of one hidden layer, and how it is trained.

    Attributes:
        hidden: neurons of the hidden layer.
        recurrent: of its recurrent connections (docs/networks.md), or None.
        scale: of the surrogate derivative. Through recurrent connections a gradient passes once a step: with the full
            derivative it can grow until it overflows.
        epochs, rate: as of `Task`.
    """

    hidden: int
    recurrent: dict[str, Any] | None
    scale: float
    epochs: int
    rate: float

    def network(self, inputs: int, classes: int) -> dict[str, Any]:
        """LIF neurons with many time constants, and a readout that weighs their spikes.

        The loss sums the readout over time: it sees how often each neuron fired. What happened when is for the neurons
        to tell apart, so each remembers for another time.
        """
        shortest, longest = TIME_CONSTANTS
        shares = [neuron / (self.hidden - 1) for neuron in range(self.hidden)]
        neurons = {
            "kind": "lif",
            "alpha": [math.exp(-1 / (shortest * (longest / shortest) ** share)) for share in shares],
            "surrogate": {"kind": "exponential", "slope": 2.0, "scale": self.scale},
            "recurrent": self.recurrent,
        }
        # The gain makes the neurons fire at two per cent of the steps before anything is learned.
        return {
            "input_shape": [inputs],
            "layers": [
                {"kind": "linear", "out_features": self.hidden, "bias": False, "gain": 3.0},
                neurons,
                {"kind": "linear", "out_features": classes, "bias": False, "gain": 0.3},
            ],
        }


FEED_FORWARD = Settings(hidden=256, recurrent=None, scale=1.0, epochs=40, rate=3e-3)
RECURRENT = Settings(hidden=128, recurrent={"gain": 0.3}, scale=0.3, epochs=20, rate=2e-3)


def interpolate(readings: Tensor, times: int) -> Tensor:
    """Straight lines between readings.

    Args:
        readings: shape (samples, readings, taxels).
        times: steps from one reading to the next.

    Returns:
        shape (samples, (readings - 1) times + 1, taxels).
    """
    fraction = torch.arange(times, dtype=readings.dtype)[:, None] / times
    before, after = readings[:, :-1, None], readings[:, 1:, None]
    between = (before + fraction * (after - before)).flatten(1, 2)
    return torch.cat([between, readings[:, -1:]], 1)


def changes(signal: Tensor, quantum: float) -> Tensor:
    """Spikes of channels that each follow a signal: where it has left the last value by a quantum, one spike.

    A channel fires at most once a step; after a larger change it catches up in the steps that follow.

    Args:
        signal: shape (samples, time, channels); what it is at the start is the first value.
        quantum: what a spike stands for.

    Returns:
        shape (samples, time, 2 channels), bool: the upward channels, then the downward ones.
    """
    value = signal[:, 0].clone()
    spikes = torch.zeros(*signal.shape[:2], 2, signal.shape[2], dtype=torch.bool)
    for step, now in enumerate(signal.unbind(1)):
        up, down = now >= value + quantum, now <= value - quantum
        value += quantum * (up.to(value.dtype) - down.to(value.dtype))
        spikes[:, step, 0], spikes[:, step, 1] = up, down
    return spikes.flatten(2)


def encode(readings: Tensor) -> Tensor:
    """Spikes of recordings, shape (samples, readings, 12): shape (samples, time, 24 quanta), bool."""
    signal = interpolate(readings, STEPS_PER_READING)
    return torch.cat([changes(signal, quantum) for quantum in QUANTA], 2)


def braille(folder: Path, *, recurrent: bool = False) -> Task:
    """The letters of a folder's braille_letters.npz.

    Args:
        folder: where the file lies.
        recurrent: whether the hidden neurons have connections to each other.

    Raises:
        OSError: the file cannot be read.
        ValueError, KeyError: it does not hold such recordings.
    """
    with np.load(folder / "braille_letters.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in ("taxels", "offsets", "labels", "repetition")}
        letters = tuple(str(letter) for letter in file["letters"])
    recordings = arrays["taxels"].float().tensor_split(arrays["offsets"][1:-1])
    # 76 or 77 readings each: the last one is repeated where one is missing, which is no change and no spike.
    longest = max(len(recording) for recording in recordings)
    readings = torch.stack([torch.cat([r, r[-1:].expand(longest - len(r), -1)]) for r in recordings])
    everything = Part(encode(readings), arrays["labels"])
    repetition = arrays["repetition"]
    rest, test = everything.split(repetition >= TEST_FROM)
    train, validation = rest.split(repetition[repetition < TEST_FROM] >= VALIDATION_FROM)
    settings = RECURRENT if recurrent else FEED_FORWARD
    net = settings.network(everything.spikes.shape[2], len(letters))
    return Task(
        "Braille letters",
        letters,
        train,
        validation,
        test,
        net,
        vary,
        epochs=settings.epochs,
        batch=64,
        rate=settings.rate,
    )


def vary(spikes: Tensor, generator: torch.Generator) -> Tensor:
    """Moves every sample by up to LARGEST_SHIFT steps in time, and loses a twentieth of its spikes."""
    samples, steps, _ = spikes.shape
    shift = torch.randint(-LARGEST_SHIFT, LARGEST_SHIFT + 1, (samples, 1), generator=generator)
    source = torch.arange(steps) - shift
    inside = (source >= 0) & (source < steps)
    moved = spikes[torch.arange(samples)[:, None], source.clamp(0, steps - 1)] & inside[:, :, None]
    return lose(moved, 0.05, generator)
