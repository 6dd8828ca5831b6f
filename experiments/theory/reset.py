"""Contribution of the reset to a gradient: EXODUS, a reset detached from the graph, and SLAYER on one trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import exodus_core
from exodus_core.surrogate import Exponential

ALPHA, SHAPE = 0.95, (4, 200, 50)
SURROGATE = Exponential(slope=1.0)
#: Names of the resets of docs/equations.md, section 2, with `reset` and `decay_reset`.
RESETS: dict[str, tuple[Literal["subtract", "zero"], bool]] = {
    "subtract": ("subtract", False),
    "subtract, decayed": ("subtract", True),
    "to zero": ("zero", False),
}


@dataclass(frozen=True)
class Compared:
    """A gradient against EXODUS's: its norm as a multiple, and the cosine of the angle between both."""

    norm: float
    cosine: float

    @classmethod
    def of(cls, gradient: Tensor, exodus: Tensor) -> Compared:
        product = (gradient * exodus).sum() / (gradient.norm() * exodus.norm())
        return cls((gradient.norm() / exodus.norm()).item(), product.item())


@dataclass(frozen=True)
class Contribution:
    """dL/dx with the reset detached and by SLAYER, each against EXODUS's, and the largest difference of the two.

    The difference is relative to the largest value.
    """

    detached: Compared
    slayer: Compared
    difference: float


def detached_reset(x: Tensor, g: Tensor, reset: Literal["subtract", "zero"], decayed: bool) -> Tensor:
    """dL/dx by autograd through the loop over time, in which the spikes that reset the membrane are constants."""
    x = x.clone().requires_grad_()
    u = s = torch.zeros_like(x[:, 0])
    membranes = []
    for current in x.unbind(1):
        match reset, decayed:
            case "zero", _:
                u = ALPHA * u * (1 - s) + current
            case "subtract", True:
                u = ALPHA * (u - s) + current
            case _:
                u = ALPHA * u - s + current
        s = (u >= 1).to(x.dtype).detach()
        membranes.append(u)
    u = torch.stack(membranes, 1)
    (gradient,) = torch.autograd.grad(u, x, g * SURROGATE.derivative(u - 1).detach())
    return gradient


def contribution(name: str, seed: int) -> Contribution:
    """Of a reset of RESETS, for random input and a random gradient that comes in."""
    reset, decayed = RESETS[name]
    generator = torch.Generator().manual_seed(seed)
    x, g = 0.5 * torch.randn(2, *SHAPE, dtype=torch.float64, generator=generator)
    _, membrane = exodus_core.lif(x, ALPHA, reset=reset, decay_reset=decayed, surrogate=SURROGATE)
    exodus, slayer = (
        exodus_core.lif_gradient(
            membrane, g, ALPHA, reset=reset, decay_reset=decayed, surrogate=SURROGATE, method=method
        ).input
        for method in ("exodus", "slayer")
    )
    detached = detached_reset(x, g, reset, decayed)
    difference = ((detached - slayer).abs().max() / slayer.abs().max()).item()
    return Contribution(Compared.of(detached, exodus), Compared.of(slayer, exodus), difference)
