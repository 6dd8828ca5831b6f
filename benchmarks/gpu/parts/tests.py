"""The tests of the core, on the device."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import exodus_core
from benchmarks.gpu.device import Device
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.rows import Emit

ROOT = Path(__file__).absolute().parents[3]
EDGES = "tests/core/test_edges.py"
#: Packages that tests/conftest.py imports.
NEEDED = ("pytest", "httpx", "msgpack", "fastapi", "uvicorn", "pydantic")


def run(device: Device, emit: Emit) -> None:
    """One row for the suite, one for each test that fails, and one for the files of the package."""
    before = digest()
    workers = ["-n", "10"] if device.is_gpu and importlib.util.find_spec("xdist") else []
    command, environment = pytest_command(device, "tests/core" if device.is_gpu else EDGES, *workers)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            process.wait(PARTS["tests"] - 15)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest ends with a summary of the tests so far
            process.wait()
        output.seek(0)
        told = output.read()
    for name in re.findall(r"^(?:FAILED|ERROR) (\S+)", told, re.MULTILINE):
        emit({"case": name, "ok": False, "detail": "failed"})
    lines = [line for line in told.splitlines() if line.strip()]
    detail = lines[-1].strip("= ") if lines else ""
    emit({"case": "tests of the core", "ok": process.returncode == 0, "detail": detail})
    same = digest() == before
    detail = "unchanged" if same else "a test has written into the installed package"
    emit({"case": "files of the package", "ok": same, "detail": detail})


def pytest_command(device: Device, *arguments: str, prefix: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
    """Command and environment of tests of the core with tensors on the device. Raises ModuleNotFoundError."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}")
    options = ["-q", "-p", "no:cacheprovider", "-m", "not peers and not slow", "--rootdir", str(ROOT)]
    if importlib.util.find_spec("pytest_benchmark"):
        options += ["-p", "no:benchmark"]
    paths = [str(ROOT / argument) if argument.startswith("tests/") else argument for argument in arguments]
    command = [*prefix, sys.executable, "-m", "pytest", *options, *paths]
    # The tests ask for deterministic algorithms, for which cuBLAS wants a workspace of a fixed size.
    return command, {**os.environ, "EXODUS_TEST_DEVICE": device.type, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def digest() -> str:
    """Of all files of the installed package."""
    whole = hashlib.sha256()
    folder = Path(exodus_core.__file__).parent
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            whole.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return whole.hexdigest()
