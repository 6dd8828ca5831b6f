"""Shared parts of the commands of `exodus`: options, the client, reports of errors, exit codes.

Exit codes: 0 done, 1 the server refused or failed, a question was answered with no, or the output cannot be written,
2 the arguments do not fit, 3 no server, or one that is not ready.
"""

# No `from __future__ import annotations`: typer reads the annotations.
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from exodus_client import _constants as defaults
from exodus_client._client import Client
from exodus_client._config import Timeout
from exodus_client._errors import APIConnectionError, ExodusError

REFUSED, BAD_ARGUMENTS, NO_SERVER = 1, 2, 3

Url = Annotated[str, typer.Argument(metavar="URL", help="http://HOST:PORT, https://HOST or unix:/PATH.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar=defaults.API_KEY_VARIABLE, help="Better given in the environment.", show_default=False),
]
Seconds = Annotated[
    float | None, typer.Option(metavar="SECONDS", min=0.001, help="Longest time for a request with its retries.")
]


@contextmanager
def reported() -> Iterator[None]:
    """Turn what a person can act on into one message and an exit code."""
    try:
        yield
    except APIConnectionError as error:
        code, message = NO_SERVER, str(error)
    except ExodusError as error:
        code, message = REFUSED, str(error)
    except (TypeError, ValueError, OSError, ModuleNotFoundError) as error:
        code, message = BAD_ARGUMENTS, str(error)
    else:
        return
    typer.echo(f"exodus: {message}", err=True)
    raise typer.Exit(code)


@contextmanager
def printed(deed: str = "") -> Iterator[None]:
    """Printing within; where the output cannot be written, `deed` says on stderr what is done nevertheless.

    A reader that has gone, as in `exodus ... | head`, is no news otherwise.
    """
    try:
        yield
    except OSError as error:
        with suppress(OSError):  # it would be flushed at the end of the process, and fail once more
            sys.stdout.close()
        if deed or error.errno != errno.EPIPE:
            did = f"{deed}, but " if deed else ""
            typer.echo(f"exodus: {did}the output cannot be written: {error.strerror or error}", err=True)
        raise SystemExit(REFUSED) from error


def client_of(url: str, api_key: str | None, timeout: float | None, *, shared_memory: bool = False) -> Client:
    """A client of the server that a command names. Raises ValueError."""
    if api_key == os.environ.get(defaults.API_KEY_VARIABLE):
        api_key = None  # the client reads it there, and its errors say where it was
    return Client(url, api_key=api_key, timeout=Timeout(total=timeout), shared_memory=shared_memory)
