"""The network and its training loop: weights here, spiking layers wherever their maker puts them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import exodus_client
import exodus_core
from examples.rasters import Task
from exodus_client.torch import RemoteLIF

#: Of the membranes and of the filter in the loss, in steps.
TIME_CONSTANT = 10.0
ALPHA = math.exp(-1 / TIME_CONSTANT)
LEARNING_RATE = 0.01

#: Makes a layer of LIF neurons from the slope of their surrogate derivative.
LayerMaker = Callable[[float], torch.nn.Module]


class Epoch(NamedTuple):
    """Where training stands: the loss, and the output of shape (1, steps, outputs) that it was computed from."""

    loss: float
    output: Tensor


def local_layer(slope: float) -> torch.nn.Module:
    """LIF neurons computed in this program."""
    return exodus_core.nn.LIF(ALPHA, surrogate=exodus_core.surrogate.Exponential(slope))


def remote_layers(client: exodus_client.Client) -> LayerMaker:
    """A maker of the same LIF neurons, computed by the service: one request forward, one backward."""
    return lambda slope: RemoteLIF(client, ALPHA, surrogate=exodus_client.Exponential(slope))


def build_network(task: Task, make_layer: LayerMaker, seed: int) -> torch.nn.Sequential:
    """Two linear layers, each followed by spiking neurons; the seed alone decides the weights."""
    torch.manual_seed(seed)
    sizes = (task.inputs.shape[2], task.hidden, task.target.shape[2])
    network = torch.nn.Sequential()
    for inputs, outputs, std in zip(sizes[:-1], sizes[1:], task.weight_std, strict=True):
        linear = torch.nn.Linear(inputs, outputs)
        torch.nn.init.normal_(linear.weight, std=std)
        network.extend((linear, make_layer(task.slope)))
    return network


def distance(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of two rasters after an exponential filter in time (the distance of van Rossum)."""
    kernel = exodus_core.ExponentialKernel(ALPHA)
    return torch.nn.functional.mse_loss(exodus_core.filter(output, kernel), exodus_core.filter(target, kernel))


def train(network: torch.nn.Module, task: Task, epochs: int) -> Iterator[Epoch]:
    """Fits the network to the task by Adam, with a rate that falls to zero along a cosine.

    Yields:
        epochs + 1 times: entry k is what the network does after k updates.
    """
    # Squared gradients are averaged over 100 updates, not 1000: there are only about as many updates as that.
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs, 1))
    for epoch in range(epochs + 1):
        output = network(task.inputs)
        loss = distance(output, task.target)
        yield Epoch(loss.item(), output.detach())
        if epoch < epochs:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
