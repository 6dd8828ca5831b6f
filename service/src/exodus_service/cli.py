"""The command `exodus-service`."""

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from exodus_service.app import create_app
from exodus_service.engine import Engine
from exodus_service.heap import keep_memory
from exodus_service.logs import configure_logging
from exodus_service.params import wanted
from exodus_service.selftest import SelfTestError
from exodus_service.server import Server
from exodus_service.settings import Settings, settings_table, unknown_variables
from exodus_service.uds import SocketPathError

logger = logging.getLogger(__name__)

#: Exit status after Ctrl-C, as of shells.
_INTERRUPTED = 130

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

app = typer.Typer(add_completion=False, no_args_is_help=True, help="HTTP server for gradients of spiking networks.")


def main() -> None:
    """Entry point of the command."""
    app()


def _help(name: str) -> str | None:
    return Settings.model_fields[name].description


def _flag(name: str) -> Any:
    return typer.Option(help=_help(name), show_default=False)


@app.command()
def serve(
    host: Annotated[str | None, _flag("host")] = None,
    port: Annotated[int | None, _flag("port")] = None,
    uds: Annotated[Path | None, _flag("uds")] = None,
    shared_memory: Annotated[bool | None, typer.Option("--shared-memory", help=_help("shared_memory"))] = None,
    device: Annotated[str | None, _flag("device")] = None,
    threads: Annotated[int | None, _flag("threads")] = None,
    max_body_bytes: Annotated[int | None, _flag("max_body_bytes")] = None,
    max_queue: Annotated[int | None, _flag("max_queue")] = None,
    max_queue_bytes: Annotated[int | None, _flag("max_queue_bytes")] = None,
    state_dir: Annotated[Path | None, _flag("state_dir")] = None,
    drain_delay_s: Annotated[float | None, _flag("drain_delay_s")] = None,
    api_keys_file: Annotated[Path | None, _flag("api_keys_file")] = None,
    log_format: Annotated[str | None, _flag("log_format")] = None,
    log_level: Annotated[str | None, _flag("log_level")] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. A flag overrides its environment variable; see `exodus-service settings`."""
    flags = {
        "host": host,
        "port": port,
        "uds": uds,
        "shared_memory": shared_memory,
        "device": device,
        "threads": threads,
        "max_body_bytes": max_body_bytes,
        "max_queue": max_queue,
        "max_queue_bytes": max_queue_bytes,
        "state_dir": state_dir,
        "drain_delay_s": drain_delay_s,
        "api_keys_file": api_keys_file,
        "log_format": log_format,
        "log_level": log_level,
    }
    settings = _settings({name: value for name, value in flags.items() if value is not None})
    keep_memory(settings.keep_memory)
    try:
        service = create_app(settings)
    except ValueError as error:
        _stop(str(error))
    configure_logging(settings.log_format, settings.log_level)
    for name, nearest in unknown_variables(os.environ).items():
        logger.warning("%s is no setting and is ignored%s", name, f"; is {nearest} meant?" if nearest else "")
    open_to_all = settings.uds is None and settings.host not in _LOOPBACK
    if not settings.api_keys and settings.api_keys_file is None and open_to_all:
        logger.warning("no API keys: everyone who reaches %s may use the service", settings.host)
    status = 0
    try:
        Server(service, settings).run()
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except SocketPathError as error:
        _stop(str(error))
    except SystemExit:  # of the server that cannot start
        if service.state.start_error is None:
            raise
    if service.state.start_error is not None:
        _stop(service.state.start_error, code=1)
    if service.state.engine.scheduler.requests:
        # A computation cannot be stopped, and the interpreter would wait for its thread.
        logger.warning("stopping in the middle of a computation")
        logging.shutdown()
        os._exit(status)
    raise typer.Exit(status)


@app.command()
def check(device: Annotated[str | None, _flag("device")] = None) -> None:
    """Run the self-test that `serve` runs before it is ready, and say whether it passed."""
    settings = _settings({} if device is None else {"device": device})
    try:
        engine = Engine(settings)
        asyncio.run(engine.start())
    except (SelfTestError, ValueError) as error:
        _stop(str(error), code=1)
    engine.close()
    typer.echo(f"exodus-service: every method agrees with its reference on {engine.device}")


@app.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    typer.echo(json.dumps(create_app(_settings({})).openapi(), indent=2))


@app.command()
def settings() -> None:
    """Print all settings as a Markdown table."""
    typer.echo(settings_table())


def _settings(flags: dict[str, Any]) -> Settings:
    try:
        return Settings(**flags)
    except ValidationError as error:
        _stop("; ".join(_complaint(entry, flags) for entry in error.errors()))


def _complaint(entry: ErrorDetails, flags: dict[str, Any]) -> str:
    name = str(entry["loc"][0])
    source = f"--{name.replace('_', '-')}" if name in flags else f"EXODUS_{name.upper()}"
    got = "something else" if name == "api_keys" else repr(entry["input"])
    return f"{source}: expected {wanted(entry['msg'])}, got {got}"


def _stop(message: str, code: int = 2) -> NoReturn:
    typer.echo(f"exodus-service: {message}", err=True)
    raise typer.Exit(code)
