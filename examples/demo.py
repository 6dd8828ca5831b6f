"""Starts a service of its own on a free port, trains with spiking layers that it computes, and saves a picture.

    python -m examples.demo [--data FOLDER] [--epochs N] [--seed N] [--output FOLDER]

Without a folder of .bs1 files it trains on Poisson spike trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from examples.local_service import own_service
from examples.train_raster import (
    DataOption,
    EpochsOption,
    OutputOption,
    SeedOption,
    choose_task,
    connected,
    fit,
    local_layer,
    remote_layers,
    report,
    save,
)


def main(
    folder: DataOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    output: OutputOption = Path("demo-output"),
    compare: Annotated[
        bool, typer.Option(help="Train once more with the layers in this program: the curves are the same.")
    ] = True,
) -> None:
    """Train a spiking network whose spiking layers run on a service that is started for it."""
    task = choose_task(folder, seed)
    output.mkdir(parents=True, exist_ok=True)
    with own_service(output / "service.log") as url, connected(url) as client:
        typer.echo(f"service ready at {url}")
        fits = [fit(task, remote_layers(client), "remote", seed=seed, epochs=epochs)]
    report(task, fits[0])
    if compare:
        fits.append(fit(task, local_layer, "local", seed=seed, epochs=epochs))
        difference = largest_difference(fits[0].losses, fits[1].losses)
        typer.echo(f"largest relative difference of the two loss curves: {difference:.1e}")
    save(output, task, seed, fits)


def largest_difference(curve: list[float], reference: list[float]) -> float:
    """Largest relative difference of two loss curves of one length; NaN if either has a NaN."""
    a, b = torch.tensor(curve, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)
    scale = torch.maximum(a.abs(), b.abs()).clamp(min=torch.finfo(a.dtype).tiny)
    return ((a - b).abs() / scale).max().item()


if __name__ == "__main__":
    typer.run(main)
