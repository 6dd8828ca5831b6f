"""Trains a spiking convolutional network to tell digits seen by an event camera apart.

    python -m examples.train_nmnist --data DIR [--url http://gpu-node:8000 | --local]

Without --url and --local it starts a service of its own. DIR has nmnist_small.npz.
"""

from __future__ import annotations

from pathlib import Path

import typer

from examples.classifier_command import (
    CompareOption,
    DataOption,
    EpochsOption,
    LocalOption,
    OutputOption,
    SeedOption,
    UrlOption,
    execute,
)
from examples.nmnist import nmnist


def main(
    folder: DataOption,
    url: UrlOption = None,
    local: LocalOption = False,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    output: OutputOption = Path("demo-output"),
    compare: CompareOption = False,
) -> None:
    """Train a spiking convolutional network to tell digits seen by an event camera apart."""
    try:
        task = nmnist(folder)
    except (OSError, KeyError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error
    execute(task, url=url, local=local, compare=compare, epochs=epochs, seed=seed, output=output)


if __name__ == "__main__":
    typer.run(main)
