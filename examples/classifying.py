"""Training a spiking classifier: network, weights and optimiser in this program, or all of them on a service."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

import exodus_client
from exodus_core import losses, network
from exodus_core.training import Trainer

#: Cross-entropy of the outputs summed over time; the prediction is the class of the largest sum.
LOSS = "sum_over_time_ce"
OPTIMIZER = {"kind": "adam"}
#: Largest norm of the gradient of one update. Recurrent layers now and then have one that is far larger.
CLIP_NORM = 1.0
#: Samples in one forward pass when nothing is learned from them.
EVALUATION_BATCH = 100


class Part(NamedTuple):
    """Samples: spikes, shape (samples, time, *shape), bool, and their class numbers, shape (samples,), int64."""

    spikes: Tensor
    labels: Tensor

    def split(self, chosen: Tensor) -> tuple[Part, Part]:
        """The samples that are not chosen, and those that are; `chosen` has shape (samples,), bool."""
        others, these = (Part(self.spikes[mask], self.labels[mask]) for mask in (~chosen, chosen))
        return others, these


#: Spikes as they are shown in training, from those of a batch; what is random comes from the generator alone.
Variation = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Task:
    """What is to be learned, and the settings that get there.

    Attributes:
        name: for titles and file names.
        classes: what the class numbers stand for.
        train: what the network learns from.
        validation: what it is watched on, epoch by epoch; taken from the training part of the data set.
        test: read once, after the last epoch.
        network: its description (docs/networks.md).
        vary: changes the spikes each time they are shown.
        epochs: how often every sample is shown.
        batch: samples in one update.
        rate: learning rate of Adam at the start; it falls to zero along a cosine.
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    validation: Part
    test: Part
    network: Mapping[str, Any]
    vary: Variation
    epochs: int
    batch: int
    rate: float


class Learner(Protocol):
    """A network in training, wherever it is."""

    def learn(self, batches: Iterable[Part], rate: float) -> list[Mapping[str, float]]:
        """One update a batch, in order; returns the metrics of each."""

    def outputs(self, spikes: Tensor) -> Tensor:
        """Outputs as they are when nothing is learned, shape (samples, time, classes)."""


class LocalLearner:
    """A network in this program."""

    def __init__(self, task: Task, seed: int) -> None:
        self.trainer = Trainer(network.build(task.network, seed), OPTIMIZER)
        self.loss = losses.parse(LOSS)

    def learn(self, batches: Iterable[Part], rate: float) -> list[Mapping[str, float]]:
        return [
            self.trainer.step(part.spikes, part.labels, self.loss, lr=rate, clip_norm=CLIP_NORM).metrics
            for part in batches
        ]

    def outputs(self, spikes: Tensor) -> Tensor:
        return self.trainer.forward(spikes)


class RemoteLearner:
    """The same network on a service: an update is one request, and the next is sent while the last is computed."""

    def __init__(self, client: exodus_client.Client, task: Task, seed: int) -> None:
        self.model = client.create_model(task.network, optimizer=OPTIMIZER, seed=seed, name=task.name)

    def learn(self, batches: Iterable[Part], rate: float) -> list[Mapping[str, float]]:
        steps = [self.model.step(part.spikes, part.labels, loss=LOSS, lr=rate, clip_norm=CLIP_NORM) for part in batches]
        return [step.result().metrics for step in steps]

    def outputs(self, spikes: Tensor) -> Tensor:
        return cast(Tensor, self.model.forward(spikes).result().outputs)


class Epoch(NamedTuple):
    """How an epoch went: loss and accuracy while learning, and those of the validation samples after it."""

    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float


def train(learner: Learner, task: Task, seed: int, epochs: int) -> Iterator[Epoch]:
    """Shows the training samples again and again, in an order and with variations that the seed alone decides.

    Yields:
        once an epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        rate = task.rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
        learned = losses.combine(learner.learn(_batches(task, generator), rate))
        loss, accuracy = score(outputs(learner, task.validation.spikes), task.validation.labels)
        yield Epoch(learned["loss:mean"], learned["accuracy:mean"], loss, accuracy)


def _batches(task: Task, generator: torch.Generator) -> Iterator[Part]:
    order = torch.randperm(len(task.train.labels), generator=generator)
    for chosen in order.split(task.batch):
        yield Part(task.vary(task.train.spikes[chosen], generator), task.train.labels[chosen])


def outputs(learner: Learner, spikes: Tensor) -> Tensor:
    """Outputs for any number of samples, shape (samples, time, classes)."""
    return torch.cat([learner.outputs(some) for some in spikes.split(EVALUATION_BATCH)])


def score(outputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Loss and accuracy of outputs, shape (samples, time, classes)."""
    loss, metrics = losses.parse(LOSS)(outputs, labels)
    return loss.item(), metrics["accuracy:mean"].item()


def confusion(outputs: Tensor, labels: Tensor) -> Tensor:
    """How many samples of class i were taken for class j: entry [i, j], shape (classes, classes), int64."""
    classes = outputs.shape[2]
    predicted = outputs.sum(1).argmax(1)
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def lose(spikes: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The spikes without a random share of them; any shape, bool."""
    return spikes & (torch.rand(spikes.shape, generator=generator) >= share)
