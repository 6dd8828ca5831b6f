"""The kernels under compute-sanitizer, on chosen edges: all four tools side by side, a minute each."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

from benchmarks.gpu.device import Device
from benchmarks.gpu.parts.tests import EDGES, pytest_command
from benchmarks.gpu.rows import Emit

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
    running = {}
    for name in TOOLS:
        prefix = (tool, "--tool", name, "--error-exitcode", "9")
        command, environment = pytest_command(device, EDGES, "-x", "-k", CHOSEN, prefix=prefix)
        running[name] = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    ends = time.monotonic() + SECONDS
    for name, process in running.items():
        try:
            output, _ = process.communicate(timeout=max(0.1, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            emit({"case": name, "ok": False, "detail": f"not ended within {SECONDS} s"})
            continue
        lines = [line for line in output.splitlines() if line.strip()]
        summary = next((line for line in reversed(lines) if "ERROR SUMMARY" in line or "passed" in line), "no output")
        emit({"case": name, "ok": process.returncode == 0, "detail": summary.strip("= ")})
