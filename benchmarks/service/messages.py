"""The requests that are sent, and the gradients that have to come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import exodus_core
from exodus_client.wire import Encoded, Message, Tensor, encode
from exodus_core.surrogate import Exponential

ALPHA = 0.95
KIB, MIB = 1 << 10, 1 << 20

#: (batch, time, neurons) of a membrane, by the size of the request that it makes with its gradient.
SHAPES = {KIB: (1, 10, 10), MIB: (4, 64, 512), 32 * MIB: (32, 128, 1024), 64 * MIB: (32, 256, 1024)}


@dataclass(frozen=True)
class Request:
    """A membrane and a gradient, encoded, with the result that this machine computes itself."""

    membrane: Any
    grad_output: Any
    expected: Any
    encoded: Encoded

    @classmethod
    def of(cls, nbytes: int) -> Request:
        """A request of about so many bytes: one of the keys of SHAPES."""
        rng = np.random.default_rng(0)
        membrane, grad_output = (rng.standard_normal(SHAPES[nbytes], np.float32) for _ in range(2))
        expected = exodus_core.lif_gradient(
            torch.from_numpy(membrane), torch.from_numpy(grad_output), ALPHA, surrogate=Exponential()
        ).input
        params = {"neuron": {"model": "lif", "alpha": ALPHA}}
        tensors = [Tensor.of("membrane", membrane), Tensor.of("grad_output", grad_output)]
        return cls(membrane, grad_output, expected.numpy(), encode(Message.of(params, tensors)))

    def check(self, grad_input: Any, path: str) -> None:
        """Raise unless the gradient is the one computed here."""
        worst = float(np.abs(grad_input - self.expected).max())
        if worst > 1e-5 * float(np.abs(self.expected).max()):
            raise SystemExit(f"{path}: the gradient is off by {worst}; nothing is timed")
