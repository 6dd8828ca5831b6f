"""Options that every experiment has."""

from __future__ import annotations

from typing import Annotated

import typer

QuickOption = Annotated[
    bool, typer.Option("--quick", help="A small part in seconds, to see that it works; prints, and writes no file.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of everything that is random.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="Service to train on; without it and --local, one is started.")
]
LocalOption = Annotated[bool, typer.Option("--local", help="Train in this program: the same results to the bit.")]
