"""Training steps of whole networks: from the spikes, dense, and by other libraries."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.remote import tasks
from benchmarks.speed.contenders import CONTENDERS, Contender
from benchmarks.speed.measure import Phases, Timing, interleaved, seconds
from benchmarks.speed.workloads import ALPHA, SURROGATE
from examples import train_classifier
from exodus_core import losses, network
from exodus_core.training import Trainer

from .layers import DENSE, SPARSE

#: As the Spiking Heidelberg Digits: batch, time, neurons of each layer, share of ones.
BATCH, TIME, SIZES, DENSITY = 64, 250, (700, 256, 256, 20), 0.02
#: Gain of the weights, so that hidden layers fire.
GAIN = 4.0
PEERS = ("SpikingJelly", "snnTorch")
#: Largest difference of the loss of one step from that of another way to compute it.
AGREEMENT = 1e-4


def _took(step: Callable[[], object]) -> Phases:
    return seconds(step)


def _agree(name: str, losses_of: dict[str, float]) -> None:
    wanted = losses_of[DENSE]
    for way, found in losses_of.items():
        if abs(found - wanted) > AGREEMENT * abs(wanted):
            raise SystemExit(f"{name}, {way}: loss {found:.6f} instead of {wanted:.6f}; nothing is timed")


def large_task(quick: bool) -> dict[str, Timing]:
    """The task of `make bench-remote` in this process."""
    task, loss = tasks.LARGE, losses.parse(tasks.LOSS)
    trainers = {
        name: Trainer(network.build(task.description, seed=0, exact=exact), tasks.OPTIMIZER)
        for name, exact in ((SPARSE, False), (DENSE, True))
    }

    def step(trainer: Trainer) -> Callable[[], Any]:
        return lambda: trainer.step(task.spikes, task.targets, loss)

    turns = {name: step(trainer) for name, trainer in trainers.items()}
    _agree(task.name, {name: turn().metrics["loss:mean"] for name, turn in turns.items()})
    return interleaved({name: _took(turn) for name, turn in turns.items()}, *_repeats(quick))


def _repeats(quick: bool) -> tuple[int, float]:
    return (2, 1.0) if quick else (15, 6.0)


class _OfPeer(torch.nn.Module):
    """Linear layers with the neurons of a library between them; time is the axis that it wants."""

    def __init__(self, contender: Contender) -> None:
        super().__init__()
        self.time_dim = contender.time_dim
        self.products = torch.nn.ModuleList(
            torch.nn.Linear(before, after) for before, after in itertools.pairwise(SIZES)
        )
        self.neurons = [contender.build() for _ in SIZES[2:]]

    def forward(self, x: Tensor) -> Tensor:
        for product, neuron in zip(self.products, self.neurons, strict=False):
            x = neuron(product(x))
        return self.products[-1](x).mean(self.time_dim)  # type: ignore[no-any-return]


class _Ours(torch.nn.Module):
    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.net = network.build(description(), seed=0, exact=exact)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean(1)  # type: ignore[no-any-return]


def description() -> dict[str, Any]:
    """The network as data; its surrogate is the fastest of SpikingJelly."""
    neuron = {"kind": "lif", "alpha": ALPHA, "decay_reset": True}
    neuron["surrogate"] = {"kind": SURROGATE.kind, "slope": SURROGATE.slope}
    layers: list[dict[str, Any]] = []
    for size in SIZES[1:-1]:
        layers += [{"kind": "linear", "out_features": size, "gain": GAIN}, neuron]
    return {"input_shape": SIZES[:1], "layers": [*layers, {"kind": "linear", "out_features": SIZES[-1]}]}


def digits(quick: bool) -> dict[str, Timing]:
    """A step of Adam with cross-entropy of the mean output; all from the same weights."""
    chance = torch.Generator().manual_seed(0)
    x = (torch.rand(BATCH, TIME, SIZES[0], generator=chance) < DENSITY).float()
    targets = torch.randint(0, SIZES[-1], (BATCH,), generator=chance)
    nets: dict[str, torch.nn.Module] = {SPARSE: _Ours(False), DENSE: _Ours(True)}
    inputs = dict.fromkeys(nets, x)
    weights = [parameter.detach().clone() for parameter in nets[DENSE].parameters()]
    for contender in (c for c in CONTENDERS if c.name in PEERS):
        try:
            nets[contender.name] = _OfPeer(contender)
        except ImportError as error:
            print(f"{contender.name} is not installed (`make peers` installs it): {error}")
            continue
        inputs[contender.name] = contender.arrange(x)
        for own, given in zip(nets[contender.name].parameters(), weights, strict=True):
            own.data.copy_(given)

    def step(net: torch.nn.Module, x: Tensor) -> Callable[[], Tensor]:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

        def run() -> Tensor:
            loss = torch.nn.functional.cross_entropy(net(x), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return run

    turns = {name: step(net, inputs[name]) for name, net in nets.items()}
    # snnTorch subtracts a step late, from a membrane that has decayed: another neuron, whose spikes are not compared.
    first = {name: float(turn()) for name, turn in turns.items()}
    _agree("digits", {name: loss for name, loss in first.items() if name != "snnTorch"})
    return interleaved({name: _took(turn) for name, turn in turns.items()}, *_repeats(quick))


def nmnist(folder: str, quick: bool) -> dict[str, Timing]:
    """Some updates of the example train_classifier, network and data as there."""
    task = train_classifier.nmnist(Path(folder))
    batches = list(train_classifier._batches(task, torch.Generator().manual_seed(0)))[: 2 if quick else 10]
    learners = {SPARSE: train_classifier.LocalLearner(task, 0), DENSE: train_classifier.LocalLearner(task, 0)}
    learners[DENSE].trainer = Trainer(network.build(task.network, 0, exact=True), train_classifier.OPTIMIZER)

    def run(learner: train_classifier.LocalLearner) -> Callable[[], Any]:
        return lambda: learner.learn(batches, task.rate)

    turns = {name: run(learner) for name, learner in learners.items()}
    first = {name: float(turn()[0]["loss:mean"]) for name, turn in turns.items()}
    _agree("N-MNIST", first)
    return interleaved({name: _took(turn) for name, turn in turns.items()}, *((1, 1.0) if quick else (10, 8.0)))
