"""The command `exodus-service`."""

import asyncio
import json
import logging
import os
import signal
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from exodus_service.compute.allocator import keep_memory
from exodus_service.engine import Engine
from exodus_service.errors import must_be
from exodus_service.gradients.params import expected
from exodus_service.gradients.selftest import SelfTestError
from exodus_service.http.app import create_app
from exodus_service.http.logs import configure_logging
from exodus_service.http.server import AddressError, Server
from exodus_service.http.unix_socket import SocketPathError
from exodus_service.settings import Settings, settings_table, unknown_variables

logger = logging.getLogger(__name__)

#: Exit statuses: the service cannot start here and now; a setting is wrong; Ctrl-C, as in shells.
_FAILED, _WRONG, _INTERRUPTED = 1, 2, 130

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

app = typer.Typer(add_completion=False, no_args_is_help=True, help="HTTP server for gradients of spiking networks.")


def main() -> None:
    """Entry point of the command."""
    app()


def _help(name: str) -> str | None:
    return Settings.model_fields[name].description


def _flag(name: str, metavar: str | None = None) -> Any:
    return typer.Option(help=_help(name), show_default=False, metavar=metavar)


def _path(name: str) -> Any:
    """A path as text: `Path` would turn an empty one into the current folder."""
    return _flag(name, "PATH")


@app.command()
def serve(
    host: Annotated[str | None, _flag("host")] = None,
    port: Annotated[int | None, _flag("port")] = None,
    uds: Annotated[str | None, _path("uds")] = None,
    shared_memory: Annotated[bool | None, typer.Option("--shared-memory", help=_help("shared_memory"))] = None,
    device: Annotated[str | None, _flag("device")] = None,
    threads: Annotated[int | None, _flag("threads")] = None,
    max_body_bytes: Annotated[int | None, _flag("max_body_bytes")] = None,
    max_queue: Annotated[int | None, _flag("max_queue")] = None,
    max_queue_bytes: Annotated[int | None, _flag("max_queue_bytes")] = None,
    state_dir: Annotated[str | None, _path("state_dir")] = None,
    drain_delay_s: Annotated[float | None, _flag("drain_delay_s")] = None,
    api_keys_file: Annotated[str | None, _path("api_keys_file")] = None,
    log_format: Annotated[str | None, _flag("log_format")] = None,
    log_level: Annotated[str | None, _flag("log_level")] = None,
) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C. A flag overrides its environment variable; see `exodus-service settings`.

    Exits with 0 after SIGTERM or SIGHUP, 130 after Ctrl-C, 1 if it cannot start (address, state folder, self-test), and
    2 if a setting is wrong.
    """
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
        logger.warning("unknown setting %s ignored%s", name, f"; did you mean {nearest}?" if nearest else "")
    open_to_all = settings.uds is None and settings.host not in _LOOPBACK
    if not settings.api_keys and settings.api_keys_file is None and open_to_all:
        logger.warning("no API keys: everyone who can reach %s may use the service", settings.host)
    server = Server(service, settings)
    status = 0
    try:
        server.run()
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except (AddressError, SocketPathError) as error:
        _stop(str(error), _FAILED)
    except SystemExit:  # the server cannot start
        if service.state.start_error is not None:
            _stop(service.state.start_error, _FAILED)
        status = _FAILED
    if server.ended_by == signal.SIGINT:
        status = _INTERRUPTED
    if service.state.engine.scheduler.requests:
        # A computation cannot be stopped, and the interpreter would wait for its thread.
        logger.warning("stopping during a computation")
        logging.shutdown()
        os._exit(status)
    raise typer.Exit(status)


@app.command()
def check(device: Annotated[str | None, _flag("device")] = None) -> None:
    """Run the self-test of `serve`, and print the result."""
    settings = _settings({} if device is None else {"device": device})
    try:
        engine = Engine(settings)
        asyncio.run(engine.start())
    except ValueError as error:
        _stop(str(error))
    except SelfTestError as error:
        _stop(str(error), _FAILED)
    engine.close()
    typer.echo(f"exodus-service: every method agrees with its reference on {engine.device}")


@app.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    try:
        service = create_app(_settings({}))
    except ValueError as error:
        _stop(str(error))
    typer.echo(json.dumps(service.openapi(), indent=2))


@app.command()
def settings() -> None:
    """Print all settings as a Markdown table."""
    typer.echo(settings_table())


def _settings(flags: dict[str, Any]) -> Settings:
    try:
        return Settings(**flags)
    except ValidationError as error:
        _stop("; ".join(_sentence(entry, flags) for entry in error.errors()))


def _sentence(entry: ErrorDetails, flags: dict[str, Any]) -> str:
    name = str(entry["loc"][0])
    source = f"--{name.replace('_', '-')}" if name in flags else f"EXODUS_{name.upper()}"
    got = repr(entry["input"])
    if name == "api_keys":  # never print keys
        got = "none" if entry["type"] == "empty" else "something else"
    return must_be(source, expected(entry), got)


def _stop(message: str, code: int = _WRONG) -> NoReturn:
    typer.echo(f"exodus-service: {message}", err=True)
    raise typer.Exit(code)
