"""The networks that are trained, and the ways of training them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from exodus_core import losses, network, training

LOSS = "max_over_time_ce"
OPTIMIZER = {"kind": "adam", "lr": 1e-3}


@dataclass(frozen=True)
class Task:
    """A network, and one batch of spikes (batch, time, inputs) with class numbers."""

    name: str
    description: dict[str, Any]
    spikes: Tensor
    targets: Tensor

    @classmethod
    def of(cls, name: str, batch: int, time: int, sizes: list[int]) -> Task:
        """A feed-forward network of LIF layers with a leaky integrator at the end; one spike in twenty."""
        layers: list[dict[str, Any]] = []
        for size in sizes[1:-1]:
            layers += [{"kind": "linear", "out_features": size, "gain": 3.0}, {"kind": "lif", "alpha": 0.95}]
        layers += [{"kind": "linear", "out_features": sizes[-1]}, {"kind": "exp_leak", "alpha": 0.95}]
        chance = torch.Generator().manual_seed(0)
        spikes = torch.rand(batch, time, sizes[0], generator=chance) < 0.05
        targets = torch.randint(0, sizes[-1], (batch,), generator=chance)
        return cls(name, {"input_shape": sizes[:1], "layers": layers}, spikes, targets)

    def unpackable(self) -> Task:
        """The same, but for one spike that is not 1: then spikes cannot travel as bits."""
        spikes = self.spikes.float()
        spikes.view(-1)[spikes.view(-1).argmax()] = 0.5
        return replace(self, spikes=spikes)

    def trainer(self) -> training.Trainer:
        return training.Trainer(network.build(self.description, seed=0), OPTIMIZER)

    def local(self) -> tuple[training.Trainer, Callable[[], object]]:
        """Training in this process, and one step of it."""
        trainer, loss = self.trainer(), losses.parse(LOSS)
        return trainer, lambda: trainer.step(self.spikes, self.targets, loss)

    def local_custom(self) -> tuple[training.Trainer, Callable[[], object]]:
        """The same with a loss that is any function."""
        trainer = self.trainer()

        def step() -> None:
            forward = trainer.begin(self.spikes)
            loss = custom_loss(forward.outputs, self.targets)
            (gradient,) = torch.autograd.grad(loss, forward.outputs)
            trainer.backward(forward, gradient)
            trainer.optim_step()

        return trainer, step


def custom_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of one's own: of the mean over time, with a weight on the activity."""
    return torch.nn.functional.cross_entropy(outputs.mean(1), targets) + 1e-3 * outputs.square().mean()


#: The size that the design names, and one where the way is nearly all there is.
LARGE = Task.of("B 128, T 250, 100-128-128-128-20", 128, 250, [100, 128, 128, 128, 20])
SMALL = Task.of("B 1, T 8, 8-8-4", 1, 8, [8, 8, 4])
