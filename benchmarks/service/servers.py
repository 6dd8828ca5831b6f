"""The servers that are measured, each a process of its own: the service, a bare FastAPI echo, and a sink."""

# No `from __future__ import annotations`: FastAPI reads them.
import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

KEY = "a-key-that-is-checked"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Running:
    """A server that answers; `uds` is "" if it listens on TCP."""

    pid: int
    port: int
    uds: str = ""

    @property
    def url(self) -> str:
        return f"unix:{self.uds}" if self.uds else f"http://127.0.0.1:{self.port}"


@contextmanager
def service(**settings: object) -> Iterator[Running]:
    """The service, everything on: an API key, limits, request ids."""
    environment = {f"EXODUS_{name.upper()}": str(value) for name, value in settings.items()}
    command = [str(Path(sys.executable).with_name("exodus-service")), "serve", "--port", "0"]
    with _process(command, {"EXODUS_API_KEYS": KEY} | environment, str(settings.get("uds", ""))) as running:
        yield running


@contextmanager
def other(kind: str) -> Iterator[Running]:
    """`echo` or `sink`."""
    with _process([sys.executable, "-m", "benchmarks.service.servers", kind], {}, "") as running:
        yield running


@contextmanager
def _process(command: list[str], environment: dict[str, str], uds: str) -> Iterator[Running]:
    with tempfile.TemporaryFile("w+") as log:
        started = subprocess.Popen(command, stderr=log, cwd=ROOT, env=os.environ | environment)
        try:
            yield Running(started.pid, _port(started, log, uds), uds)
        finally:
            started.terminate()
            started.wait(timeout=30)


def _port(started: "subprocess.Popen[bytes]", log: Any, uds: str) -> int:
    """Wait until the server says where it listens."""
    deadline = time.monotonic() + 60
    while started.poll() is None and time.monotonic() < deadline:
        log.seek(0)
        text = log.read()
        if uds and f"running on unix socket {uds}" in text:
            return 0
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", text)
        if found:
            return int(found[1])
        time.sleep(0.02)
    log.seek(0)
    raise RuntimeError(f"{' '.join(command_of(started))} did not start:\n{log.read()}")


def command_of(started: "subprocess.Popen[bytes]") -> list[str]:
    return [str(part) for part in started.args] if isinstance(started.args, list) else [str(started.args)]


def _echo() -> Any:
    """Bare FastAPI application as the baseline: reads a body whole and sends back its first bytes."""
    from fastapi import FastAPI, Request
    from starlette.responses import Response

    app = FastAPI()

    @app.post("/echo/{nbytes}")
    async def echo(nbytes: int, request: Request) -> Response:
        body = await request.body()
        return Response(memoryview(body)[:nbytes], media_type="application/octet-stream")

    @app.get("/livez")
    async def live() -> Response:
        return Response(b"")

    return app


def _sink() -> Any:
    """Takes and gives bytes as fast as Python can, so that what is measured is the client."""
    from exodus_service.http.body import empty_buffer, read_body

    given = empty_buffer(1 << 25)
    given[:] = bytes(len(given))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        answer = memoryview(b"{}")
        if scope["method"] == "POST":
            length = int(dict(scope["headers"])[b"content-length"])
            await read_body(receive, length, stall_timeout=30, min_rate=1, seconds_left=float("inf"), scope=scope)
        else:
            answer = given[: int(scope["path"].rpartition("/")[2])]
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def main() -> None:
    import logging

    import uvicorn

    from exodus_service.http.outgoing import Pace
    from exodus_service.http.protocol import Protocol

    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("echo", "sink"))
    kind = parser.parse_args().kind
    logging.basicConfig(level="INFO")
    same: dict[str, Any] = {"port": 0, "ws": "none", "log_config": None, "access_log": False, "server_header": False}
    if kind == "echo":
        uvicorn.run(_echo(), http="httptools", **same)
    else:
        pace = Pace(stall_timeout=30, min_upload_rate=1, min_download_rate=1, max_unwanted=1 << 30)
        uvicorn.run(_sink(), lifespan="off", **same | {"http": partial(Protocol, pace=pace)})


if __name__ == "__main__":
    main()
