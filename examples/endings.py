"""How a command of these examples ends where a service cannot be used: one line and a status, as `exodus` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from exodus_client import APIConnectionError, Client, ExodusError

REFUSED, NO_SERVER = 1, 3


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
