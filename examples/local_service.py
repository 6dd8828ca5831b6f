"""Starts a service on a free port of this machine for the time of a block, with a state folder of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from exodus_client import APIConnectionError, Client

#: Exit status of a command that has no service, as of the command `exodus`.
NO_SERVER = 3
START_SECONDS = 60
STOP_SECONDS = 15

#: Settings of the environment that belong to another service.
FOREIGN_SETTINGS = ("EXODUS_UDS", "EXODUS_API_KEYS", "EXODUS_API_KEYS_FILE", "EXODUS_DATA")


class StartError(RuntimeError):
    """The service has ended or is not ready; the message has the end of its log."""


@contextmanager
def own_service(log: Path) -> Iterator[str]:
    """`running_service` for a command: SIGTERM and SIGHUP stop the service too.

    Raises:
        typer.Exit: the service does not start; the reason was printed.
    """
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _exit_on_signal)
    try:
        with running_service(log) as url:
            yield url
    except StartError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(NO_SERVER) from error


@contextmanager
def running_service(log: Path) -> Iterator[str]:
    """Runs a service on a free port of this machine and stops it, however the block ends.

    Its models are kept in a temporary folder.

    Args:
        log: file for the output of the service.

    Yields:
        its URL; it is ready.

    Raises:
        OSError: the service or its log cannot be opened.
        StartError: it ended, or was not ready within START_SECONDS.
    """
    with tempfile.TemporaryDirectory(prefix="exodus-") as folder, _started(log, Path(folder)) as url:
        yield url


@contextmanager
def _started(log: Path, folder: Path) -> Iterator[str]:
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    program = str(Path(sys.executable).with_name("exodus-service"))
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN_SETTINGS}
    environment["EXODUS_STATE_DIR"] = str(folder)
    with log.open("wb") as out:
        # In a group of its own Ctrl-C reaches only this program, which stops the service when it is done with it.
        service = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    try:
        _wait_until_ready(service, url, log)
        yield url
    finally:
        service.terminate()
        try:
            service.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(service: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with Client(url) as client:
        while service.poll() is None and time.monotonic() < deadline:
            try:
                if client.ping().ready:
                    return
            except APIConnectionError:
                pass  # it does not listen yet
            time.sleep(0.1)
    state = "is not ready" if service.returncode is None else f"ended with status {service.returncode}"
    raise StartError(f"the service {state}; the end of {log}:\n{log.read_text()[-2000:]}")


def _exit_on_signal(number: int, frame: object) -> NoReturn:
    """Leaves by an exception, so that `running_service` stops the service."""
    sys.exit(128 + number)
