"""Starts a service of its own on a free port, trains with spiking layers that it computes, and saves a picture.

    python -m examples.demo [--data FOLDER] [--epochs N] [--seed N] [--output FOLDER]

Without a folder of .bs1 files it trains on Poisson spike trains.
"""

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
from typing import Annotated, NoReturn

import torch
import typer

from examples.endings import NO_SERVER, connected
from examples.train_raster import (
    DataOption,
    EpochsOption,
    OutputOption,
    SeedOption,
    choose_task,
    fit,
    report,
    save,
)
from examples.training import local_layer, remote_layers
from exodus_client import APIConnectionError, Client

START_SECONDS = 60
STOP_SECONDS = 15

#: What the environment may say of another service, and is not for the one that is started here.
_OF_OTHERS = ("EXODUS_UDS", "EXODUS_API_KEYS", "EXODUS_API_KEYS_FILE", "EXODUS_DATA")


class StartError(RuntimeError):
    """A service that was started here has ended, or is not ready; with the end of its log."""


@contextmanager
def own_service(log: Path) -> Iterator[str]:
    """`running_service` for the time of a command: where the command is told to end, the service is stopped too.

    Raises:
        typer.Exit: there is no service; the reason was printed.
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
    """A service on a free port of this machine, which is stopped however the block ends.

    It keeps models in a folder of its own, which goes with it.

    Args:
        log: file for what the service prints.

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
    environment = {name: value for name, value in os.environ.items() if name not in _OF_OTHERS}
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
