"""Trains a network of spiking neurons to read Braille letters by touch.

    python -m examples.train_braille --data DIR [--url http://gpu-node:8000 | --local] [--recurrent]

Without --url and --local it starts a service of its own. DIR has braille_letters.npz.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from examples.braille import braille
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


def main(
    folder: DataOption,
    url: UrlOption = None,
    local: LocalOption = False,
    recurrent: Annotated[bool, typer.Option("--recurrent", help="Connect the hidden neurons to each other.")] = False,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    output: OutputOption = Path("demo-output"),
    compare: CompareOption = False,
) -> None:
    """Train a network of spiking neurons to read Braille letters by touch."""
    try:
        task = braille(folder, recurrent=recurrent)
    except (OSError, KeyError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error
    execute(task, url=url, local=local, compare=compare, epochs=epochs, seed=seed, output=output)


if __name__ == "__main__":
    typer.run(main)
