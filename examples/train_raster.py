"""Trains a spiking network to answer one spike raster with another, its spiking layers on a remote service.

    python -m examples.train_raster --url http://gpu-node:8000 --data DIR

With --local in place of --url the same training runs without a service.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from examples.endings import connected
from examples.pictures import draw_fit
from examples.rasters import Task, oxford, poisson, share_met
from examples.training import LayerMaker, build_network, distance, local_layer, remote_layers, train

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder with input.bs1 and output.bs1; without it, Poisson spike trains.")
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Updates of the weights; the default depends on the data.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the weights, and of the Poisson spike trains.")]
OutputOption = Annotated[Path, typer.Option("--output", help="Folder for the picture and the loss curve.")]


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
