"""The training: a network with every kind of state, deterministic calls, and the undisturbed result."""

from __future__ import annotations

import json
import struct
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch

from exodus_client import Client
from exodus_core import losses, network, training

LOSS = "max_over_time_ce"
OPTIMIZER = {"kind": "adam", "lr": 2e-3, "weight_decay": 1e-4}
#: Weights, running statistics, the optimiser's moments, the generator of dropout; and gradients, by the calls below.
NETWORK: dict[str, Any] = {
    "input_shape": [20],
    "layers": [
        {"kind": "linear", "out_features": 64, "gain": 2.0},
        {"kind": "batch_norm"},
        {"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"]},
        {"kind": "dropout", "p": 0.2},
        {"kind": "linear", "out_features": 32, "gain": 2.0},
        {"kind": "lif", "alpha": 0.85, "trainable": ["alpha"]},
        {"kind": "linear", "out_features": 5},
        {"kind": "exp_leak", "alpha": 0.9, "trainable": ["alpha"]},
    ],
}
BATCH, TIME, INPUTS, CLASSES = 16, 60, 20, 5


@dataclass(frozen=True)
class Call:
    """One training call: what it is called, and its arguments."""

    method: str
    options: dict[str, Any]
    spikes: Any = None
    targets: Any = None


def calls(steps: int, seed: int) -> Iterator[Call]:
    """The calls of so many steps of the optimiser: most are one call, some accumulate gradients of two first."""
    for step in range(steps):
        options = {"lr": 2e-3 * 0.99**step, "clip_norm": 1.0}
        if step % 7 == 3:
            for part in (0, 1):
                yield Call("forward_backward", {}, *_batch(seed, step, part))
            yield Call("optim_step", options)
        else:
            yield Call("step", options, *_batch(seed, step, 0))


def _batch(seed: int, step: int, part: int) -> tuple[Any, Any]:
    random = np.random.default_rng((seed, step, part))
    targets = random.integers(0, CLASSES, BATCH)
    rates = 0.05 + 0.1 * (np.arange(INPUTS) % CLASSES == targets[:, None])
    return random.random((BATCH, TIME, INPUTS)) < rates[:, None], targets


@dataclass(frozen=True)
class Outcome:
    """Metrics and gradient norms of each call, and the state after the last."""

    answers: list[tuple[dict[str, float], dict[str, float]]]
    state: dict[str, torch.Tensor]


def in_process(steps: int, seed: int) -> Outcome:
    """The training without a server."""
    trainer = training.Trainer(network.build(NETWORK, seed=seed), OPTIMIZER)
    loss = losses.parse(LOSS)
    answers: list[tuple[dict[str, float], dict[str, float]]] = []
    for call in calls(steps, seed):
        if call.method == "optim_step":
            answers.append(({}, trainer.optim_step(**call.options)))
            continue
        spikes, targets = torch.from_numpy(call.spikes), torch.from_numpy(call.targets)
        metrics, norms = getattr(trainer, call.method)(spikes, targets, loss, **call.options)
        answers.append((metrics, norms))
    return Outcome(answers, trainer.state())


def create(client: Client, seed: int, durable_every: int, id: str | None = None) -> Any:
    return client.create_model(NETWORK, optimizer=OPTIMIZER, seed=seed, durable_every=durable_every, id=id)


def submit(model: Any, call: Call) -> Any:
    """Have a call done; its future."""
    method = getattr(model, call.method)
    if call.method == "optim_step":
        return method(**call.options)
    return method(call.spikes, call.targets, loss=LOSS, **call.options)


def train(model: Any, steps: int, seed: int, first: int = 0, last: int | None = None) -> list[Any]:
    """Submit calls number `first` to `last`, as far ahead as the client lets, and return all answers."""
    chosen = list(calls(steps, seed))[first:last]
    futures = [submit(model, call) for call in chosen]
    return [future.result(timeout=300) for future in futures]


def saved_state(url: str, id: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of a model, asked of the server itself, and what the file says of it."""
    with urllib.request.urlopen(f"{url}/v1/models/{id}/state", timeout=60) as answer:
        content = answer.read()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    return safetensors.torch.load(content), json.loads(header["__metadata__"]["exodus"])


def differences(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> list[str]:
    """Tensors of two states that are not the same to the bit."""
    found = [f"{name} is missing" for name in wanted.keys() - got.keys()]
    found += [f"{name} is too many" for name in got.keys() - wanted.keys()]
    for name in sorted(wanted.keys() & got.keys()):
        one, other = got[name], wanted[name]
        same = one.shape == other.shape and one.dtype == other.dtype
        if not same or one.numpy().tobytes() != other.numpy().tobytes():
            found.append(f"{name} differs")
    return found


def answer_differences(got: list[Any], wanted: Outcome, first: int = 0) -> list[str]:
    """Answers that are not those of their calls."""
    found = []
    for place, (result, (metrics, norms)) in enumerate(zip(got, wanted.answers[first:], strict=False), first + 1):
        if result.sequence != place:
            found.append(f"the answer of call {place} has the sequence number {result.sequence}")
        if dict(result.metrics) != metrics or dict(result.grad_norms) != norms:
            found.append(f"call {place}: got {dict(result.metrics)}, want {metrics}")
    return found
