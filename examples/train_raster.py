"""Trains a spiking network to answer one spike raster with another, its spiking layers on a remote service.

    python -m examples.train_raster --url http://gpu-node:8000 [--data DIR]
    python -m examples.train_raster --local [--data DIR]

The weights and the optimiser stay in this program. With --local instead of --url the same training runs without a
service. DIR has input.bs1 and output.bs1; without it the network trains on Poisson spike trains.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

import exodus_core
from exodus_client import APIConnectionError, Client, ExodusError, Exponential
from exodus_client.torch import RemoteLIF

EVENT_BYTES = 5
#: Of the membranes and of the filter in the loss, in steps.
TIME_CONSTANT = 10.0
ALPHA = math.exp(-1 / TIME_CONSTANT)
LEARNING_RATE = 0.01
#: Exit statuses, those of the command `exodus`.
REFUSED, NO_SERVER = 1, 3

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder with input.bs1 and output.bs1; without it, Poisson spike trains.")
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Updates of the weights; the default depends on the data.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the weights, and of the Poisson spike trains.")]
OutputOption = Annotated[Path, typer.Option("--output", help="Folder for the picture and the loss curve.")]


@dataclass(frozen=True)
class Task:
    """One input raster, the raster that a network of two layers shall answer with, and settings that get it there.

    Attributes:
        name: for titles and file names.
        inputs: spikes, shape (1, steps, inputs), float32; a step is 1 ms.
        target: spikes wanted, shape (1, steps, outputs), float32.
        hidden: neurons of the hidden layer.
        weight_std: standard deviations of the initial weights of the two layers. They make the hidden layer fire at a
            few per cent of the steps, and the output layer at fewer: a silent neuron far below threshold learns
            nothing, and one that fires all the time learns slowly.
        slope: of the surrogate derivative exp(-slope abs(u - threshold)).
        epochs: updates of the weights.
    """

    name: str
    inputs: Tensor
    target: Tensor
    hidden: int
    weight_std: tuple[float, float]
    slope: float
    epochs: int


class Events(NamedTuple):
    """The events of a .bs1 file, one entry an event: neuron, polarity (0 or 1), time in microseconds."""

    neuron: NDArray[np.int64]
    polarity: NDArray[np.int64]
    microseconds: NDArray[np.int64]


def poisson(seed: int) -> Task:
    """250 Poisson spike trains of 200 ms, from which one neuron shall fire four times (section 6.5 of the paper).

    Args:
        seed: of the spike trains; every input fires at 2 % of the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = (torch.rand(1, 200, 250, generator=generator) < 0.02).float()
    target = torch.zeros(1, 200, 1)
    target[0, [37, 84, 121, 166], 0] = 1
    return Task("Poisson spike trains", inputs, target, hidden=25, weight_std=(0.2, 0.1), slope=1.0, epochs=300)


def oxford(folder: Path) -> Task:
    """Noise of 200 neurons that shall become a picture drawn by 200 others: input.bs1 and output.bs1 of a folder.

    The files lie in the folder itself or in its folder `oxford`.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file does not hold such events.
    """
    if (folder / "oxford").is_dir():
        folder = folder / "oxford"
    inputs, target = (
        raster(read_events(folder / name), steps=1900, neurons=200) for name in ("input.bs1", "output.bs1")
    )
    return Task("Oxford raster", inputs, target, hidden=256, weight_std=(0.5, 0.05), slope=2.0, epochs=1000)


def read_events(path: Path) -> Events:
    """Events of a .bs1 file: 5 bytes each, big endian: neuron (16 bit), polarity (1 bit), microseconds (23 bit).

    Raises:
        OSError: the file cannot be read.
        ValueError: its size is not a multiple of 5.
    """
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if content.size % EVENT_BYTES:
        raise ValueError(f"{path} must be a multiple of {EVENT_BYTES} bytes, got {content.size}")
    first, second, third, fourth, fifth = content.reshape(-1, EVENT_BYTES).astype(np.int64).T
    return Events(first << 8 | second, third >> 7, (third & 0x7F) << 16 | fourth << 8 | fifth)


def raster(events: Events, *, steps: int, neurons: int) -> Tensor:
    """Events in steps of 1 ms, whatever their polarity: shape (1, steps, neurons), float32, ones and zeros.

    Raises:
        ValueError: an event is of a neuron or a time beyond the raster.
    """
    step = events.microseconds // 1000
    for name, index, size in (("neuron", events.neuron, neurons), ("millisecond", step, steps)):
        if index.size and index.max() >= size:
            raise ValueError(f"{name} of events must be below {size}, got {index.max()}")
    spikes = torch.zeros(1, steps, neurons)
    spikes[0, torch.from_numpy(step), torch.from_numpy(events.neuron)] = 1
    return spikes


def share_met(spikes: Tensor, others: Tensor, *, within: int) -> float:
    """Share of spikes for which the same neuron fires in others at most `within` steps before or after.

    Args:
        spikes, others: shape (1, steps, neurons), ones and zeros; spikes has at least one spike.
    """
    nearby = torch.nn.functional.max_pool1d(others.mT, 2 * within + 1, stride=1, padding=within).mT
    return float((spikes * nearby).sum() / spikes.sum())


#: Makes a layer of LIF neurons from the slope of their surrogate derivative.
LayerMaker = Callable[[float], torch.nn.Module]


class Epoch(NamedTuple):
    """State of the training: the loss, and the output of shape (1, steps, outputs) that it was computed from."""

    loss: float
    output: Tensor


def local_layer(slope: float) -> torch.nn.Module:
    """LIF neurons computed in this program."""
    return exodus_core.nn.LIF(ALPHA, surrogate=exodus_core.surrogate.Exponential(slope))


def remote_layers(client: Client) -> LayerMaker:
    """A maker of the same LIF neurons, computed by the service: one request forward, one backward."""
    return lambda slope: RemoteLIF(client, ALPHA, surrogate=Exponential(slope))


def build_network(task: Task, make_layer: LayerMaker, seed: int) -> torch.nn.Sequential:
    """Two linear layers, each followed by spiking neurons; the seed alone decides the weights."""
    torch.manual_seed(seed)
    sizes = (task.inputs.shape[2], task.hidden, task.target.shape[2])
    network = torch.nn.Sequential()
    for inputs, outputs, std in zip(sizes[:-1], sizes[1:], task.weight_std, strict=True):
        linear = torch.nn.Linear(inputs, outputs)
        torch.nn.init.normal_(linear.weight, std=std)
        network.extend((linear, make_layer(task.slope)))
    return network


def distance(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of two rasters after an exponential filter in time (the distance of van Rossum)."""
    kernel = exodus_core.ExponentialKernel(ALPHA)
    return torch.nn.functional.mse_loss(exodus_core.filter(output, kernel), exodus_core.filter(target, kernel))


def train(network: torch.nn.Module, task: Task, epochs: int) -> Iterator[Epoch]:
    """Fits the network to the task by Adam, with a rate that falls to zero along a cosine.

    Yields:
        epochs + 1 times: entry k is what the network does after k updates.
    """
    # Squared gradients are averaged over 100 updates, not 1000: there are only about as many updates as that.
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs, 1))
    for epoch in range(epochs + 1):
        output = network(task.inputs)
        loss = distance(output, task.target)
        yield Epoch(loss.item(), output.detach())
        if epoch < epochs:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@dataclass(frozen=True)
class Fit:
    """A finished training run.

    Attributes:
        where: where the spiking layers were computed.
        seconds: how long training took.
        losses: entry k is the loss after k updates.
        before, after: output at the start and at the end, shape (1, steps, outputs).
    """

    where: str
    seconds: float
    losses: list[float]
    before: Tensor
    after: Tensor


def choose_task(folder: Path | None, seed: int) -> Task:
    """The Oxford raster of a folder, or Poisson spike trains without one.

    Raises:
        typer.BadParameter: the folder does not hold such rasters.
    """
    if folder is None:
        return poisson(seed)
    try:
        return oxford(folder)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error


def fit(task: Task, make_layer: LayerMaker, where: str, *, seed: int, epochs: int | None = None) -> Fit:
    """Trains a network with the layers of a maker, under a progress bar."""
    epochs = task.epochs if epochs is None else epochs
    run = train(build_network(task, make_layer, seed), task, epochs)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.5f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    with Progress(*columns) as progress:
        first = last = next(run)
        losses = [first.loss]
        bar = progress.add_task(f"{task.name}, {where}", total=epochs, loss=first.loss)
        for last in run:
            losses.append(last.loss)
            progress.update(bar, advance=1, loss=last.loss)
    return Fit(where, time.perf_counter() - started, losses, first.output, last.output)


def report(task: Task, fit: Fit) -> None:
    """Prints how good a fit is, and what the loss of a silent output would be, for comparison with the start."""
    silent = distance(torch.zeros_like(task.target), task.target).item()
    first, last = fit.losses[0], fit.losses[-1]
    fold = f"{first / last:.1f}-fold" if last else "to zero"
    typer.echo(f"{fit.where}: loss {first:.5f} -> {last:.5f}, down {fold} in {fit.seconds:.1f} s")
    typer.echo(f"an output without any spike would have loss {silent:.5f}")
    if fit.after.any():
        met, right = (share_met(*pair, within=2) for pair in ((task.target, fit.after), (fit.after, task.target)))
        typer.echo(
            f"{met:.1%} of {int(task.target.sum())} target spikes are met within 2 ms; "
            f"{right:.1%} of {int(fit.after.sum())} output spikes are within 2 ms of a target spike"
        )
    if task.target.shape[2] == 1:
        times = (raster[0, :, 0].nonzero().ravel().tolist() for raster in (task.target, fit.after))
        typer.echo("target spikes at {} ms, output spikes at {} ms".format(*times))


def save(folder: Path, task: Task, seed: int, fits: list[Fit]) -> None:
    """Writes the picture of the first fit, with the loss curves of all, and the curves as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / task.name.lower().replace(" ", "-")
    curves = {fit.where: fit.losses for fit in fits}
    picture, numbers = stem.with_suffix(".png"), stem.with_suffix(".json")
    draw_fit(picture, f"{task.name}, seed {seed}", task.target, fits[0].before, fits[0].after, curves)
    numbers.write_text(json.dumps({"task": task.name, "seed": seed, "losses": curves}, indent=1) + "\n")
    typer.echo(f"saved {picture} and {numbers}")


def draw_fit(
    path: Path, title: str, target: Tensor, before: Tensor, after: Tensor, losses: Mapping[str, Sequence[float]]
) -> None:
    """Writes a PNG file of four panels.

    Args:
        path: of the file.
        title: of the whole picture.
        target, before, after: rasters, shape (1, steps, neurons), ones and zeros.
        losses: curves by what they are called in the legend, one value an epoch.

    Raises:
        OSError: the file cannot be written.
    """
    # Without pyplot there is neither a display nor state that others share.
    figure = Figure(figsize=(12, 9), layout="constrained")
    figure.suptitle(title)
    ((top_left, top_right), (bottom_left, bottom_right)) = figure.subplots(2, 2)
    _draw_raster(top_left, "target", target)
    _draw_raster(top_right, "output before training", before)
    _draw_raster(bottom_left, "output after training", after)
    _draw_losses(bottom_right, losses)
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})


def _draw_raster(axes: Axes, title: str, raster: Tensor) -> None:
    _, steps, neurons = raster.shape
    _, times, indices = raster.nonzero().T.tolist()
    if neurons == 1:
        axes.eventplot(times, lineoffsets=0, linelengths=0.8, colors="black")
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
    else:
        axes.scatter(times, indices, s=1.5, c="black", linewidths=0)
        axes.set_ylim(-1, neurons)
        axes.set_ylabel("neuron")
    axes.set_xlim(0, steps)
    axes.set_xlabel("time (ms)")
    axes.set_title(f"{title} ({len(times)} spikes)")


def _draw_losses(axes: Axes, losses: Mapping[str, Sequence[float]]) -> None:
    # The curves usually lie on each other: the later ones are dashed so that both are seen.
    for line, (name, curve) in zip(("-", "--", ":"), losses.items(), strict=False):
        axes.plot(curve, line, label=name)
    values = [loss for curve in losses.values() for loss in curve]
    if min(values) > 0:
        axes.set_yscale("log")
    else:  # a perfect fit has loss 0: linear from there to the smallest other loss
        axes.set_yscale("symlog", linthresh=min((loss for loss in values if loss > 0), default=1.0))
        axes.set_ylim(bottom=0)
    axes.set_xlabel("updates")
    axes.set_title("loss: squared difference of the filtered spike trains")
    axes.legend()


@contextmanager
def connected(url: str) -> Iterator[Client]:
    """A client of a service; what the service fails to do in the block ends the program.

    Raises:
        typer.BadParameter: the URL is none, or the key of the environment.
        typer.Exit: the service refused or failed, or there is none.
    """
    try:
        client = Client(url)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--url") from error
    try:
        with client:
            yield client
    except ExodusError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(NO_SERVER if isinstance(error, APIConnectionError) else REFUSED) from error


def main(
    url: Annotated[str | None, typer.Option(help="Service that computes the spiking layers.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Compute the spiking layers in this program.")] = False,
    folder: DataOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    output: OutputOption = Path("demo-output"),
) -> None:
    """Train a spiking network to answer one spike raster with another."""
    if local == (url is not None):
        raise typer.BadParameter("give one of --url and --local")
    task = choose_task(folder, seed)
    if url is None:
        result = fit(task, local_layer, "local", seed=seed, epochs=epochs)
    else:
        with connected(url) as client:
            result = fit(task, remote_layers(client), url, seed=seed, epochs=epochs)
    report(task, result)
    save(output, task, seed, [result])


if __name__ == "__main__":
    typer.run(main)
