"""The service on the device: gradients equal to local ones, training steps, real recordings, no memory, the end.

The recordings are braille_letters.npz and nmnist_small.npz in the folder EXODUS_DATA; left out if they are not there.
"""

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
from functools import partial
from itertools import islice
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
#: Steps that are sent before the first is answered, so that the next is uploaded while one is computed.
AHEAD = 8
#: Times that all training samples of the recordings are shown.
EPOCHS = 3
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
        for check in (_gradients, _training, _letters, _digits, _memory):
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
    """Steps against those of a trainer here on the same device: equal losses, and times with and without a graph."""
    batch, steps = (128, 250) if device.is_gpu else (4, 20)
    generator = np.random.default_rng(0)
    x = generator.random((batch, steps, 100)) < 0.05
    y = generator.integers(0, 20, batch)
    model = client.create_model(LAYERS, optimizer={"kind": "adam"}, seed=1)
    replaying, eager = (
        training.Trainer(network.build(LAYERS, 1, device.type), "adam", graphs=graphs) for graphs in (None, False)
    )
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    there = inputs.to(device.type)
    losses: list[tuple[float, ...]] = []
    for _ in range(5):
        here = (trainer.step(there, targets, LOSS).metrics["loss:mean"] for trainer in (replaying, eager))
        losses.append((model.step(x, y, loss=LOSS).result().loss, *here))

    def ahead() -> None:
        for step in [model.step(x, y, loss=LOSS) for _ in range(AHEAD)]:
            step.result()

    times = {
        "remote": _best(lambda: model.step(x, y, loss=LOSS).result()),
        f"remote, {AHEAD} sent ahead": _best(ahead) / AHEAD,
    }
    for name, trainer in (("by graph", replaying), ("without", eager)):
        times[f"here {name}"] = _best(partial(trainer.step, there, targets, LOSS))
        times[f"here {name}, uploaded"] = _best(partial(trainer.step, inputs, targets, LOSS))
    model.close()
    same = all(len(set(found)) == 1 for found in losses)
    replayed = replaying.graph_nbytes > 0
    detail = (
        f"losses {'equal' if same else f'differ: {losses}'}; {'replayed' if replayed else 'not replayed'}; a step of "
        f"{batch} x {steps} in ms: {', '.join(f'{name} {spent:.2f}' for name, spent in times.items())}"
    )
    return {"case": "training", "ok": same and replayed == device.is_gpu, "detail": detail}


def _letters(device: Device, client: Client) -> dict[str, Any]:
    """Braille letters, trained through the service."""
    return _recordings(device, client, "braille", "braille_letters.npz")


def _digits(device: Device, client: Client) -> dict[str, Any]:
    """N-MNIST, trained through the service."""
    return _recordings(device, client, "nmnist", "nmnist_small.npz")


def _recordings(device: Device, client: Client, name: str, file: str) -> dict[str, Any]:
    """Updates on recordings in EXODUS_DATA, as of `examples.train_classifier`, through the service and here."""
    folder = os.environ.get("EXODUS_DATA", "")
    if not folder or not Path(folder, file).is_file():
        return {"case": name, "ok": True, "detail": f"left out: no {file} in EXODUS_DATA ({folder or 'not set'})"}
    try:
        from examples import train_classifier as example
    except ImportError as error:
        return {"case": name, "ok": True, "detail": f"left out: {error}"}
    task = (example.braille if name == "braille" else example.nmnist)(Path(folder))
    with torch.device(device.type):
        here = example.LocalLearner(task, 0)
    learners: dict[str, example.Learner] = {"remote": example.RemoteLearner(client, task, 0), "here": here}
    epochs, updates = (EPOCHS, None) if device.is_gpu else (1, 2)
    losses: dict[str, list[float]] = {where: [] for where in learners}
    seconds = dict.fromkeys(learners, 0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        batches = list(islice(example._batches(task, generator), updates))
        for where, learner in learners.items():
            began = time.perf_counter()
            losses[where] += [metrics["loss:mean"] for metrics in learner.learn(batches, task.rate)]
            seconds[where] += time.perf_counter() - began
    remote, own = losses["remote"], losses["here"]
    furthest = max(abs(ours - theirs) for ours, theirs in zip(own, remote, strict=True))
    outputs = example.outputs(learners["remote"], task.validation.spikes[: None if device.is_gpu else 4])
    _, accuracy = example.score(outputs, task.validation.labels[: len(outputs)])
    spent = ", ".join(f"{1e3 * taken / len(remote):.2f} ms {where}" for where, taken in seconds.items())
    detail = (
        f"{len(remote)} updates, {spent}; loss {remote[0]:.3f} to {remote[-1]:.3f}, validation {accuracy:.1%}; losses "
        f"{'equal' if furthest == 0 else f'differ by up to {furthest:.2g}'}; graphs {here.trainer.graph_nbytes} bytes"
    )
    # The first loss is that of equal weights; convolutions of cuDNN may add in another order from run to run.
    ok = abs(own[0] - remote[0]) <= 1e-5 * abs(own[0]) and (not device.is_gpu or remote[-1] < remote[0])
    return {"case": task.name, "ok": ok, "detail": detail}


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
