"""The service on the device: gradients equal to local ones, training steps, memory that runs out, the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import exodus_core
from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import Emit, failed
from exodus_client import IF, LIF, APIStatusError, Client, ExodusError
from exodus_core import network, training

METHODS: tuple[Literal["exodus", "slayer", "bptt"], ...] = ("exodus", "slayer", "bptt")
LAYERS: list[dict[str, Any]] = [
    {"kind": "linear", "in_features": 100, "out_features": 128},
    {"kind": "if"},
    {"kind": "linear", "out_features": 128},
    {"kind": "if"},
    {"kind": "linear", "out_features": 20},
    {"kind": "if"},
]
LOSS = "max_over_time_ce"
#: Room for a request that the memory of the device has no room for.
SETTINGS = {"EXODUS_MAX_BODY_BYTES": str(2**31), "EXODUS_MAX_QUEUE_BYTES": str(2**32)}


@dataclass(frozen=True)
class Running:
    """A service that answers."""

    process: subprocess.Popen[bytes]
    url: str


def run(device: Device, emit: Emit) -> None:
    """One row a check."""
    with _service(device) as running, Client(running.url) as client:
        for check in (_gradients, _training, _memory):
            try:
                emit(check(device, client))
            except Exception as error:  # noqa: BLE001 (the other checks go on)
                emit(failed(check.__name__.strip("_"), error))
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        status = running.process.wait(30)
        detail = f"status {status} after {time.monotonic() - began:.2f} s"
        emit({"case": "SIGTERM", "ok": status == 0, "detail": detail})


@contextmanager
def _service(device: Device) -> Iterator[Running]:
    """The service on the device, on a Unix socket in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        command = [sys.executable, "-c", "from exodus_service.cli import main; main()", "serve", "--uds", path]
        log = Path(folder, "log")
        with log.open("w") as output:
            process = subprocess.Popen(
                command, env={**os.environ, **SETTINGS, "EXODUS_DEVICE": device.type}, stderr=output
            )
        try:
            url = f"unix:{path}"
            _wait(process, url)
            yield Running(process, url)
        except BaseException:
            print(log.read_text()[-2000:], flush=True)
            raise
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    """Until the service takes requests. Raises RuntimeError: it does not."""
    ends = time.monotonic() + 30
    with Client(url) as client:
        while True:
            try:
                if client.ping().ready:
                    return
            except ExodusError as error:
                if process.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError(f"the service did not start: {error}") from error
            time.sleep(0.1)


def _gradients(device: Device, client: Client) -> dict[str, Any]:
    """Gradients of every method, the bits of those that are computed here on the same device."""
    generator = np.random.default_rng(0)
    membrane, grad = (generator.standard_normal((4, 100, 64)).astype(np.float32) for _ in range(2))
    equal = []
    for method in METHODS:
        theirs = client.gradients(method=method, neuron=LIF(alpha=0.9), membrane=membrane, grad_output=grad)
        u, g = (torch.from_numpy(array).to(device.type) for array in (membrane, grad))
        ours = exodus_core.lif_gradient(u, g, 0.9, method=method)
        equal.append(np.array_equal(theirs.grad_input, ours.input.cpu().numpy()))
    told = zip(METHODS, equal, strict=True)
    detail = ", ".join(f"{method} {'equal' if same else 'differs'}" for method, same in told)
    return {"case": f"gradients on {theirs.device}", "ok": all(equal), "detail": detail}


def _training(device: Device, client: Client) -> dict[str, Any]:
    """Steps against those of a trainer here on the same device: equal losses, and times."""
    batch, steps = (128, 250) if device.is_gpu else (4, 20)
    generator = np.random.default_rng(0)
    x = generator.random((batch, steps, 100)) < 0.05
    y = generator.integers(0, 20, batch)
    model = client.create_model(LAYERS, optimizer={"kind": "adam"}, seed=1)
    trainer = training.Trainer(network.build(LAYERS, 1, device.type), "adam")
    inputs, targets = torch.from_numpy(x).to(device.type), torch.from_numpy(y).to(device.type)
    losses: list[tuple[float, float]] = []
    for _ in range(5):
        theirs = model.step(x, y, loss=LOSS).result().loss
        losses.append((theirs, trainer.step(inputs, targets, LOSS).metrics["loss:mean"]))
    remote = _best(lambda: model.step(x, y, loss=LOSS).result())
    here = _best(lambda: trainer.step(inputs, targets, LOSS))
    uploaded = _best(lambda: trainer.step(torch.from_numpy(x).to(device.type), targets, LOSS))
    model.close()
    same = all(ours == theirs for ours, theirs in losses)
    detail = (
        f"losses {'equal' if same else f'differ: {losses}'}; a step of {batch} x {steps}: {remote:.2f} ms remote, "
        f"{here:.2f} ms here, {uploaded:.2f} ms here with the upload"
    )
    return {"case": "training", "ok": same, "detail": detail}


def _memory(device: Device, client: Client) -> dict[str, Any]:
    """A request that needs more memory than is free is answered with 507, and the next one as ever."""
    small = np.zeros((1, 2, 3), np.float32)
    if not device.is_gpu:
        return {"case": "memory", "ok": True, "detail": "not on the stand-in, whose memory is the machine's"}
    held = torch.empty(max(0, device.free_bytes - 2**28), dtype=torch.uint8, device=device.type)
    large = np.zeros((64, 1000, 2048), np.float32)
    try:
        client.gradients(neuron=IF(), membrane=large, grad_output=large)
        status = "computed"
    except APIStatusError as error:
        status = f"{error.status_code}: {str(error)[:120]}"
    del held
    torch.cuda.empty_cache()
    after = client.gradients(neuron=IF(), membrane=small, grad_output=small)
    client.gradients(neuron=IF(), membrane=large, grad_output=large)
    return {"case": "memory", "ok": status.startswith("507"), "detail": f"{status}; then computed on {after.device}"}


def _best(step: Any) -> float:
    """Milliseconds."""
    found = []
    for _ in range(10):
        began = time.perf_counter()
        step()
        found.append((time.perf_counter() - began) * 1e3)
    return min(found)
