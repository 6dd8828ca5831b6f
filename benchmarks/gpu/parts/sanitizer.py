"""The kernels under compute-sanitizer, on chosen edges: all four tools side by side, a minute each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.device import Device
from benchmarks.gpu.parts.tests import EDGES, pytest_command
from benchmarks.gpu.rows import Emit, Row

SECONDS = 60
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: A row with a remainder, time last, and times at and behind the ends of a chunk; a test takes some seconds there.
CHOSEN = "1x5x33 or 65x5x1 or 2x65x1 or 2x1025x1"


def run(device: Device, emit: Emit) -> None:
    """One row a tool. EXODUS_SANITIZER names the program, compute-sanitizer if it is not set."""
    tool = shutil.which(os.environ.get("EXODUS_SANITIZER", "compute-sanitizer"))
    if tool is None:
        emit({"case": "compute-sanitizer", "ok": True, "detail": "left out: it is not installed"})
        return
    with tempfile.TemporaryDirectory() as folder:
        running = {name: _start(device, tool, name, Path(folder, name)) for name in TOOLS}
        ends = time.monotonic() + SECONDS
        try:
            for name, process in running.items():
                emit(_row(name, process, Path(folder, name), ends))
        finally:
            for process in running.values():
                _kill(process)


def _start(device: Device, tool: str, name: str, output: Path) -> subprocess.Popen[bytes]:
    prefix = (tool, "--tool", name, "--error-exitcode", "9")
    command, environment = pytest_command(device, EDGES, "-x", "-k", CHOSEN, prefix=prefix)
    with output.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def _row(name: str, process: subprocess.Popen[bytes], output: Path, ends: float) -> Row:
    try:
        status = process.wait(max(0.1, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        return {"case": name, "ok": False, "detail": f"not ended within {SECONDS} s"}
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    summary = next((line for line in reversed(lines) if "ERROR SUMMARY" in line or "passed" in line), "no output")
    return {"case": name, "ok": status == 0, "detail": summary.strip("= ")}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a tool and the tests that it has started."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
