"""Trains a spiking classifier, on a service or in this program: Braille letters by touch, or digits of an event camera.

    python -m examples.train_classifier braille --data DIR [--url http://gpu-node:8000 | --local] [--recurrent]
    python -m examples.train_classifier nmnist --data DIR [--url http://gpu-node:8000 | --local]

DIR has braille_letters.npz (a fingertip of 12 taxels slides over letters; changes become spikes) or nmnist_small.npz
(events of N-MNIST, in bins of 10 ms). Without --url and --local a service is started for the training.

In order: the training, which is the same for every data set; the two data sets with their networks; the command.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, cast

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from exodus_client import APIConnectionError, Client, ExodusError
from exodus_core import losses, network
from exodus_core.training import Trainer

#: Cross-entropy of the outputs summed over time; the prediction is the class of the largest sum.
LOSS = "sum_over_time_ce"
OPTIMIZER = {"kind": "adam"}
#: Largest norm of the gradient of one update. Recurrent layers now and then have one that is far larger.
CLIP_NORM = 1.0
#: Samples in one forward pass when nothing is learned from them.
EVALUATION_BATCH = 100
#: Exit statuses, those of the command `exodus`.
REFUSED, NO_SERVER = 1, 3


class Part(NamedTuple):
    """Samples: spikes, shape (samples, time, *shape), bool, and their class numbers, shape (samples,), int64."""

    spikes: Tensor
    labels: Tensor

    def split(self, chosen: Tensor) -> tuple[Part, Part]:
        """The samples that are not chosen, and those that are; `chosen` has shape (samples,), bool."""
        others, these = (Part(self.spikes[mask], self.labels[mask]) for mask in (~chosen, chosen))
        return others, these


@dataclass(frozen=True)
class Task:
    """A classification task, with the settings to learn it.

    Attributes:
        name: for titles and file names.
        classes: names of the class numbers.
        train: samples to learn from.
        validation: samples of the training part of the data set, evaluated after each epoch.
        test: samples that are evaluated once, after the last epoch.
        network: its description (docs/networks.md).
        vary: changes the spikes of a batch each time they are shown; all randomness comes from the generator.
        epochs: how often every sample is shown.
        batch: samples in one update.
        rate: learning rate of Adam at the start; it falls to zero along a cosine.
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    validation: Part
    test: Part
    network: Mapping[str, Any]
    vary: Callable[[Tensor, torch.Generator], Tensor]
    epochs: int
    batch: int
    rate: float


class Learner(Protocol):
    """A network in training, wherever it is."""

    def learn(self, batches: Iterable[Part], rate: float) -> list[Mapping[str, float]]:
        """One update a batch, in order; returns the metrics of each."""

    def outputs(self, spikes: Tensor) -> Tensor:
        """Outputs in evaluation mode, shape (samples, time, classes)."""


class RemoteLearner:
    """Network, weights and optimiser on a service: an update is one request, sent while the last is computed."""

    def __init__(self, client: Client, task: Task, seed: int) -> None:
        self.model = client.create_model(task.network, optimizer=OPTIMIZER, seed=seed, name=task.name)

    def learn(self, batches: Iterable[Part], rate: float) -> list[Mapping[str, float]]:
        steps = [self.model.step(part.spikes, part.labels, loss=LOSS, lr=rate, clip_norm=CLIP_NORM) for part in batches]
        return [step.result().metrics for step in steps]

    def outputs(self, spikes: Tensor) -> Tensor:
        return cast(Tensor, self.model.forward(spikes).result().outputs)


class LocalLearner:
    """The same network in this program."""

    def __init__(self, task: Task, seed: int) -> None:
        self.trainer = Trainer(network.build(task.network, seed), OPTIMIZER)
        self.loss = losses.parse(LOSS)

    def learn(self, batches: Iterable[Part], rate: float) -> list[Mapping[str, float]]:
        return [
            self.trainer.step(part.spikes, part.labels, self.loss, lr=rate, clip_norm=CLIP_NORM).metrics
            for part in batches
        ]

    def outputs(self, spikes: Tensor) -> Tensor:
        return self.trainer.forward(spikes)


class Epoch(NamedTuple):
    """Loss and accuracy while learning, and those of the validation samples after the epoch."""

    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float


def train(learner: Learner, task: Task, seed: int, epochs: int) -> Iterator[Epoch]:
    """Shows the training samples again and again; the seed alone decides their order and variations.

    Yields:
        once an epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        rate = task.rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
        learned = losses.combine(learner.learn(_batches(task, generator), rate))
        loss, accuracy = score(outputs(learner, task.validation.spikes), task.validation.labels)
        yield Epoch(learned["loss:mean"], learned["accuracy:mean"], loss, accuracy)


def _batches(task: Task, generator: torch.Generator) -> Iterator[Part]:
    order = torch.randperm(len(task.train.labels), generator=generator)
    for chosen in order.split(task.batch):
        yield Part(task.vary(task.train.spikes[chosen], generator), task.train.labels[chosen])


def lose(spikes: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The spikes without a random share of them; any shape, bool."""
    return spikes & (torch.rand(spikes.shape, generator=generator) >= share)


def outputs(learner: Learner, spikes: Tensor) -> Tensor:
    """Outputs for any number of samples, shape (samples, time, classes)."""
    return torch.cat([learner.outputs(some) for some in spikes.split(EVALUATION_BATCH)])


def score(outputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Loss and accuracy of outputs, shape (samples, time, classes)."""
    loss, metrics = losses.parse(LOSS)(outputs, labels)
    return loss.item(), metrics["accuracy:mean"].item()


def confusion(outputs: Tensor, labels: Tensor) -> Tensor:
    """Confusion matrix: entry [i, j] counts samples of class i taken for class j; int64."""
    classes = outputs.shape[2]
    predicted = outputs.sum(1).argmax(1)
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


# Braille letters

#: Steps from one reading of the taxels to the next, on a straight line between them.
STEPS_PER_READING = 3
#: A spike stands for a change by so much; every taxel has an upward and a downward channel of each.
QUANTA = (2.0, 4.0, 8.0, 16.0)
#: Of the 50 repetitions of each letter: the last ten are the test, five of those before are the validation.
TEST_FROM, VALIDATION_FROM = 40, 35
#: Of the fastest and of the slowest hidden neuron, in steps.
TIME_CONSTANTS = (5.0, 100.0)
LARGEST_DELAY = 3


class Settings(NamedTuple):
    """A network of one hidden layer, and how it is trained.

    Attributes:
        hidden: neurons of the hidden layer.
        recurrent: of its recurrent connections (docs/networks.md), or None.
        scale: of the surrogate derivative. Through recurrent connections a gradient passes once a step: with the full
            derivative it can grow until it overflows.
        epochs, rate: as of `Task`.
        synapse: fields of the neurons' synaptic current, which make them second-order; or None.
    """

    hidden: int
    recurrent: dict[str, Any] | None
    scale: float
    epochs: int
    rate: float
    synapse: dict[str, Any] | None = None

    def network(self, inputs: int, classes: int) -> dict[str, Any]:
        """LIF neurons with many time constants, and a readout that weighs their spikes.

        The loss sums the readout over time: it sees how often each neuron fired. What happened when is for the neurons
        to tell apart, so each remembers for another time.
        """
        shortest, longest = TIME_CONSTANTS
        shares = [neuron / (self.hidden - 1) for neuron in range(self.hidden)]
        neurons = {
            "kind": "lif" if self.synapse is None else "cuba_lif",
            "alpha": [math.exp(-1 / (shortest * (longest / shortest) ** share)) for share in shares],
            "surrogate": {"kind": "exponential", "slope": 2.0, "scale": self.scale},
            "recurrent": self.recurrent,
            **(self.synapse or {}),
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
SECOND_ORDER = RECURRENT._replace(synapse={"synapse_alpha": 0.8, "synapse_gain": 0.5, "trainable": ["synapse_alpha"]})


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


def encode_touch(readings: Tensor) -> Tensor:
    """Spikes of recordings, shape (samples, readings, 12): shape (samples, time, 24 quanta), bool."""
    signal = interpolate(readings, STEPS_PER_READING)
    return torch.cat([changes(signal, quantum) for quantum in QUANTA], 2)


def braille(folder: Path, *, recurrent: bool = False, second_order: bool = False) -> Task:
    """The letters of a folder's braille_letters.npz.

    Args:
        folder: where the file lies.
        recurrent: the hidden neurons have connections to each other.
        second_order: they have connections, and a synaptic current that these and the input drive.

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
    everything = Part(encode_touch(readings), arrays["labels"])
    repetition = arrays["repetition"]
    rest, test = everything.split(repetition >= TEST_FROM)
    train, validation = rest.split(repetition[repetition < TEST_FROM] >= VALIDATION_FROM)
    settings = SECOND_ORDER if second_order else RECURRENT if recurrent else FEED_FORWARD
    net = settings.network(everything.spikes.shape[2], len(letters))
    return Task(
        "Braille letters",
        letters,
        train,
        validation,
        test,
        net,
        vary_touch,
        epochs=settings.epochs,
        batch=64,
        rate=settings.rate,
    )


def vary_touch(spikes: Tensor, generator: torch.Generator) -> Tensor:
    """Moves every sample by up to LARGEST_DELAY steps in time, and loses a twentieth of its spikes."""
    samples, steps, _ = spikes.shape
    shift = torch.randint(-LARGEST_DELAY, LARGEST_DELAY + 1, (samples, 1), generator=generator)
    source = torch.arange(steps) - shift
    inside = (source >= 0) & (source < steps)
    moved = spikes[torch.arange(samples)[:, None], source.clamp(0, steps - 1)] & inside[:, :, None]
    return lose(moved, 0.05, generator)


# N-MNIST

#: Pixels along an edge; how long a recording is; how many steps of 10 ms that is.
PIXELS = 34
MICROSECONDS = 300_000
STEPS = 30
#: Of the training recordings, the last so many are the validation.
VALIDATION = 100
LARGEST_SHIFT = 2


def bin_events(
    microseconds: NDArray[Any], x: NDArray[Any], y: NDArray[Any], polarity: NDArray[Any], offsets: NDArray[Any]
) -> Tensor:
    """Spikes of recordings: one where a pixel has at least one event of a polarity in a step.

    Args:
        microseconds, x, y, polarity: of all events, one recording after the other. Later ones than the last step
            are left out.
        offsets: recording i is [offsets[i]:offsets[i + 1]].

    Returns:
        shape (recordings, STEPS, 2, PIXELS, PIXELS), bool.

    Raises:
        ValueError: an event lies outside the image, or has another polarity.
    """
    for name, values, size in (("x", x, PIXELS), ("y", y, PIXELS), ("polarity", polarity, 2)):
        if values.size and values.max() >= size:
            raise ValueError(f"{name} of events must be below {size}, got {values.max()}")
    recording = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    step = microseconds.astype(np.int64) * STEPS // MICROSECONDS
    inside = step < STEPS
    where = tuple(index[inside].astype(np.int64) for index in (recording, step, polarity, y, x))
    spikes = torch.zeros(len(offsets) - 1, STEPS, 2, PIXELS, PIXELS, dtype=torch.bool)
    spikes[tuple(map(torch.from_numpy, where))] = True
    return spikes


def nmnist(folder: Path) -> Task:
    """The digits of a folder's nmnist_small.npz.

    Raises:
        OSError: the file cannot be read.
        ValueError, KeyError: it does not hold such recordings.
    """
    with np.load(folder / "nmnist_small.npz") as file:
        train, test = (
            Part(
                bin_events(*(file[f"{part}_{name}"] for name in ("t", "x", "y", "p", "offsets"))),
                torch.from_numpy(file[f"{part}_labels"]).long(),
            )
            for part in ("train", "test")
        )
    samples = len(train.labels)
    train, validation = train.split(torch.arange(samples) >= samples - VALIDATION)
    digits = tuple(str(digit) for digit in range(10))
    return Task(
        "N-MNIST", digits, train, validation, test, convolutional(), vary_digits, epochs=30, batch=32, rate=2e-3
    )


def convolutional() -> dict[str, Any]:
    """Two convolutions and a readout of spike counts; every layer but the last has LIF neurons."""
    lif = {"kind": "lif", "alpha": math.exp(-1 / 5), "surrogate": {"kind": "exponential", "slope": 2.0}}
    return {
        "input_shape": [2, PIXELS, PIXELS],
        "layers": [
            {"kind": "conv2d", "out_channels": 16, "kernel_size": 5, "stride": 2, "bias": False, "gain": 2.0},
            lif,
            {"kind": "conv2d", "out_channels": 32, "kernel_size": 3, "stride": 2, "bias": False, "gain": 3.0},
            lif,
            {"kind": "flatten"},
            {"kind": "dropout", "p": 0.5},
            {"kind": "linear", "out_features": 10, "bias": False, "gain": 0.5},
        ],
    }


def vary_digits(spikes: Tensor, generator: torch.Generator) -> Tensor:
    """Moves every sample by up to LARGEST_SHIFT pixels in each direction, and loses a tenth of its spikes."""
    padded = torch.nn.functional.pad(spikes, (LARGEST_SHIFT,) * 4)
    corners = torch.randint(0, 2 * LARGEST_SHIFT + 1, (len(spikes), 2), generator=generator).tolist()
    moved = [
        sample[..., row : row + PIXELS, column : column + PIXELS]
        for sample, (row, column) in zip(padded, corners, strict=True)
    ]
    return lose(torch.stack(moved), 0.1, generator)


# The command

DataOption = Annotated[Path, typer.Option("--data", envvar="EXODUS_DATA", help="Folder with the recordings.")]
UrlOption = Annotated[
    str | None, typer.Option(help="Service to train on; without it and --local, one is started for this training.")
]
LocalOption = Annotated[bool, typer.Option("--local", help="Train in this program.")]
CompareOption = Annotated[
    bool, typer.Option("--compare", help="Train once more, in this program: the results are the same to the bit.")
]
RecurrentOption = Annotated[
    bool, typer.Option("--recurrent", help="Connect the hidden neurons of braille to each other.")
]
SecondOrderOption = Annotated[
    bool, typer.Option("--second-order", help="Connect them, and give them a synaptic current.")
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", min=1, help="How often every sample is shown; the default is the task's.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of the weights, the order and the variations.")]
OutputOption = Annotated[
    Path, typer.Option("--output", "--out", help="Folder for the picture and the figures as JSON.")
]


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        where: "remote" or "local".
        seconds: of the training, with the validation after each epoch.
        epochs: one entry an epoch.
        loss, accuracy: of the test samples after the last epoch.
        outputs: for the test samples, shape (samples, time, classes).
    """

    where: str
    seconds: float
    epochs: list[Epoch]
    loss: float
    accuracy: float
    outputs: Tensor


def execute(
    task: Task, *, url: str | None, local: bool, compare: bool, epochs: int | None, seed: int, output: Path
) -> None:
    """Trains on a service or in this program, prints the accuracy, and writes the files.

    Raises:
        typer.BadParameter: the options contradict each other.
        typer.Exit: the two trainings of a comparison differ, or the service cannot be used.
    """
    if local and (url is not None or compare):
        raise typer.BadParameter("--local goes neither with --url nor with --compare")
    output.mkdir(parents=True, exist_ok=True)
    epochs = task.epochs if epochs is None else epochs
    if local:
        run = fit(LocalLearner(task, seed), task, "local", seed, epochs)
    else:
        with connected(url, output) as (client, address):
            learner = RemoteLearner(client, task, seed)
            typer.echo(f"model {learner.model.id} on {address}")
            run = fit(learner, task, "remote", seed, epochs)
    report(task, run)
    save(output, task, seed, run)
    if compare:
        again = fit(LocalLearner(task, seed), task, "local", seed, epochs)
        report(task, again)
        same = again.epochs == run.epochs and again.outputs.equal(run.outputs)
        typer.echo(f"both trainings are {'the same to the bit' if same else 'different'}")
        if not same:
            raise typer.Exit(1)


@contextmanager
def connected(url: str | None, output: Path) -> Iterator[tuple[Client, str]]:
    """A client of a service and the URL of the service; without a URL, of one that runs during the block.

    Raises:
        typer.BadParameter: the URL or the API key of the environment is invalid.
        typer.Exit: the service refused or failed, or there is none.
    """
    with ExitStack() as stack:
        if url is None:
            from examples.local_service import own_service  # the one import that a copy of this file does not have

            url = stack.enter_context(own_service(output / "service.log"))
        try:
            client = stack.enter_context(Client(url))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--url") from error
        try:
            yield client, url
        except ExodusError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(NO_SERVER if isinstance(error, APIConnectionError) else REFUSED) from error


def fit(learner: Learner, task: Task, where: str, seed: int, epochs: int) -> Run:
    """Trains under a progress bar and evaluates the test samples once, after the last epoch."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    done = []
    with Progress(*columns) as progress:
        bar = progress.add_task(f"{task.name}, {where}", total=epochs, state="")
        for epoch in train(learner, task, seed, epochs):
            done.append(epoch)
            state = f"loss {epoch.loss:.3f}, validation accuracy {epoch.validation_accuracy:.1%}"
            progress.update(bar, advance=1, state=state)
    seconds = time.perf_counter() - started
    found = outputs(learner, task.test.spikes)
    return Run(where, seconds, done, *score(found, task.test.labels), found)


def report(task: Task, run: Run) -> None:
    """Prints losses and accuracies."""
    last, samples = run.epochs[-1], len(task.test.labels)
    typer.echo(
        f"{run.where}: {len(run.epochs)} epochs in {run.seconds:.1f} s; loss {last.loss:.4f}; "
        f"accuracy while learning {last.accuracy:.1%}, validation {last.validation_accuracy:.1%}"
    )
    right = int(confusion(run.outputs, task.test.labels).diagonal().sum())
    typer.echo(f"test accuracy after the last epoch: {run.accuracy:.1%} ({right} of {samples})")


def save(folder: Path, task: Task, seed: int, run: Run) -> None:
    """Writes the learning curves and the confusion matrix, as a picture and as JSON."""
    matrix = confusion(run.outputs, task.test.labels)
    stem = folder / task.name.lower().replace(" ", "-")
    picture, numbers = stem.with_suffix(".png"), stem.with_suffix(".json")
    draw(picture, f"{task.name}, seed {seed}", run.epochs, matrix, task.classes)
    content = {
        "task": task.name,
        "seed": seed,
        "where": run.where,
        "seconds": round(run.seconds, 1),
        "samples": {name: len(getattr(task, name).labels) for name in ("train", "validation", "test")},
        "test": {"loss": run.loss, "accuracy": run.accuracy},
        "curves": {name: [getattr(epoch, name) for epoch in run.epochs] for name in Epoch._fields},
        "classes": task.classes,
        "confusion": matrix.tolist(),
    }
    numbers.write_text(json.dumps(content, indent=1) + "\n")
    typer.echo(f"saved {picture} and {numbers}")


def draw(path: Path, title: str, epochs: Sequence[Epoch], confusion: Tensor, classes: Sequence[str]) -> None:
    """Writes a PNG file of three panels: loss, accuracy, confusion matrix."""
    # Without pyplot there is neither a display nor state that others share.
    figure = Figure(figsize=(12, 6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplot_mosaic([["loss", "confusion"], ["accuracy", "confusion"]], width_ratios=(1, 1.2))
    top, bottom, matrix = axes["loss"], axes["accuracy"], axes["confusion"]
    bottom.sharex(top)
    numbers = range(1, len(epochs) + 1)
    top.plot(numbers, [epoch.loss for epoch in epochs], label="while learning")
    top.plot(numbers, [epoch.validation_loss for epoch in epochs], label="validation")
    top.set_yscale("log")
    top.set_title("loss")
    top.legend()
    bottom.plot(numbers, [epoch.accuracy for epoch in epochs])
    bottom.plot(numbers, [epoch.validation_accuracy for epoch in epochs])
    bottom.yaxis.set_major_formatter(PercentFormatter(1))
    bottom.set_title("accuracy")
    bottom.set_xlabel("epoch")
    matrix.imshow(confusion.tolist(), cmap="Blues")
    half = int(confusion.max()) / 2
    for row, column in confusion.nonzero().tolist():
        count = int(confusion[row, column])
        color = "white" if count > half else "black"
        matrix.text(column, row, str(count), ha="center", va="center", color=color, fontsize="x-small")
    matrix.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 1 else 0)
    matrix.set_yticks(range(len(classes)), classes)
    matrix.tick_params(labelsize="small")
    matrix.set_xlabel("taken for")
    matrix.set_ylabel("class")
    right, samples = int(confusion.diagonal().sum()), int(confusion.sum())
    matrix.set_title(f"test samples: {right} of {samples} right")
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})


class DataSet(StrEnum):
    BRAILLE = "braille"
    NMNIST = "nmnist"


def choose_task(data_set: DataSet, folder: Path, recurrent: bool, second_order: bool) -> Task:
    """The task of a data set.

    Raises:
        typer.BadParameter: the folder does not hold it, or the network has no such form.
    """
    if (recurrent or second_order) and data_set != DataSet.BRAILLE:
        raise typer.BadParameter(f"{'--recurrent' if recurrent else '--second-order'} goes with braille alone")
    try:
        if data_set == DataSet.BRAILLE:
            return braille(folder, recurrent=recurrent, second_order=second_order)
        return nmnist(folder)
    except (OSError, KeyError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error


def main(
    data_set: Annotated[DataSet, typer.Argument(help="What to learn.")],
    folder: DataOption,
    url: UrlOption = None,
    local: LocalOption = False,
    recurrent: RecurrentOption = False,
    second_order: SecondOrderOption = False,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    output: OutputOption = Path("demo-output"),
    compare: CompareOption = False,
) -> None:
    """Train a spiking network to name Braille letters by touch, or digits seen by an event camera."""
    task = choose_task(data_set, folder, recurrent, second_order)
    execute(task, url=url, local=local, compare=compare, epochs=epochs, seed=seed, output=output)


if __name__ == "__main__":
    typer.run(main)
