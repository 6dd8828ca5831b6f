"""Workloads: the sizes, the inputs, and the neuron that every contender implements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exodus_core.surrogate import Sigmoid, Surrogate

ALPHA = 0.9
SURROGATE = Sigmoid(4.0)  # the default of SpikingJelly, the fastest of the others; snnTorch has it too
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Workload:
    """One call: x and dL/ds of shape (batch, time, neurons), float32."""

    batch: int
    time: int
    neurons: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.batch, self.time, self.neurons

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def nbytes(self) -> int:
        """Of one array, the membrane say."""
        return self.batch * self.time * self.neurons * FLOAT

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """x and dL/ds, normally distributed."""
        x, g = torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(seed))
        return x, g

    def slice(self) -> Workload:
        """A piece small enough to check in float64."""
        return Workload(min(self.batch, 2), min(self.time, 100), min(self.neurons, 64))


WORKLOADS = [
    Workload(32, 100, 1024),
    Workload(128, 250, 128),
    Workload(8, 1000, 1024),
    Workload(16, 500, 4096),
    Workload(1, 4000, 512),
]
QUICK = WORKLOADS[:2]


@dataclass(frozen=True)
class Neuron:
    """The LIF that a contender computes, in the words of `exodus_core.lif`."""

    decay_reset: bool = True
    surrogate: Surrogate = SURROGATE
    method: str = "bptt"
