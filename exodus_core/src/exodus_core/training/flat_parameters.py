"""Parameters and gradients as one flat tensor, all in order, and scalars read together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from exodus_core.arguments import check_dense
from exodus_core.errors import ArgumentError, ArgumentTypeError


def check(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Checks that a tensor is of floats and has a shape."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ArgumentTypeError(name, "a float tensor", got)
    check_dense(name, tensor)
    if tensor.shape != tuple(shape):
        raise ArgumentError(name, f"of shape {tuple(shape)}", tuple(tensor.shape))


def join(tensors: Sequence[Tensor]) -> Tensor:
    """A flat copy of tensors."""
    with torch.no_grad():
        return torch.cat([t.reshape(-1) for t in tensors])


def split(name: str, tensor: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Parts of a flat tensor with the shapes of others, in their dtype and on their device; views if possible.

    Raises:
        TypeError: it is not of their dtype.
        ValueError: it has another shape.
    """
    check(name, tensor, (sum(t.numel() for t in like),))
    if tensor.dtype != like[0].dtype:
        raise ArgumentTypeError(name, str(like[0].dtype), tensor.dtype)
    parts = tensor.detach().to(like[0].device).split([t.numel() for t in like])
    return [part.view_as(t) for part, t in zip(parts, like, strict=True)]


@dataclass(frozen=True)
class Scalars:
    """Scalars of several devices, stacked by device in float64; `indices` says which are in each stack."""

    indices: list[list[int]]
    stacks: list[Tensor]

    @classmethod
    def of(cls, scalars: Sequence[Tensor]) -> Self:
        """Stacks them, and waits for no device."""
        groups: dict[torch.device, list[int]] = {}
        for i, scalar in enumerate(scalars):
            groups.setdefault(scalar.device, []).append(i)
        stacks = [torch.stack([scalars[i].detach().to(torch.float64) for i in some]) for some in groups.values()]
        return cls(list(groups.values()), stacks)

    def read(self) -> list[float]:
        """Their values in order, with one wait for each device that they are on."""
        found = [0.0] * sum(map(len, self.indices))
        for indices, stack in zip(self.indices, self.stacks, strict=True):
            for i, value in zip(indices, stack.tolist(), strict=True):
                found[i] = value
        return found
