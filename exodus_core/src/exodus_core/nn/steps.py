"""Modules of single steps on whole sequences: convolutions, pooling, norms and all else that knows no time."""

from __future__ import annotations

import torch
from torch import Tensor

from exodus_core import arguments, ranges
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.network.build import Network
from exodus_core.pieces.time_checkpoint import TimeCheckpoint


class Steps(torch.nn.Module):
    """A module of single steps, (batch, ...) to (batch, ...), on every step of a sequence, (batch, time, ...), at once.

    Time is folded into the batch, so that a layer sees batch times time samples: the statistics of a batch norm are
    those over batch and time, and `torch.nn.Dropout` draws a mask for every step.

    Args:
        module: any module without neurons, with one tensor in and out; several as a torch.nn.Sequential.
        time_dim: axis of time of the input and of the output; the batch is the first of the others.

    In a `TimeCheckpoint` it runs as its module does there: a batch norm in training is refused, as its statistics are
    those of all steps together.

    Raises:
        ArgumentTypeError, ArgumentError: the module has a part that takes time itself: neurons, torch.nn.RNN and its
            like, a network as data, a time checkpoint, other `Steps`. In the call: x has no batch and time; the module
            returns no tensor, or one of another batch.
    """

    def __init__(self, module: torch.nn.Module, *, time_dim: int = 1) -> None:
        super().__init__()
        check_single_steps("module", module)
        self.module = module
        self.time_dim = arguments.integer("time_dim", time_dim)

    def extra_repr(self) -> str:
        """The axis of time, for repr()."""
        return "" if self.time_dim == 1 else f"time_dim={self.time_dim}"

    def forward(self, x: Tensor) -> Tensor:
        """The module's output for each step of x, a tensor of any dtype."""
        if not isinstance(x, Tensor):
            raise ArgumentTypeError("x", "a torch.Tensor", type(x).__name__)
        if x.dim() < 2:
            raise ArgumentError("x", "of shape (batch, time, ...)", tuple(x.shape))
        if not -x.dim() <= self.time_dim < x.dim():
            raise ArgumentError("time_dim", f"an axis of x with shape {tuple(x.shape)}", self.time_dim)
        # Time behind the batch, or before it if it is there: no copy then.
        axis = 0 if self.time_dim % x.dim() == 0 else 1
        steps = x.movedim(self.time_dim, axis)
        lead = steps.shape[:2]
        y = self.module(steps.flatten(0, 1))
        if not isinstance(y, Tensor):
            raise ArgumentTypeError("module", "one that returns a tensor", f"one that returns {type(y).__name__}")
        if y.dim() == 0 or y.shape[0] != lead.numel():
            expected = f"one whose output has the {lead.numel()} samples of its input on axis 0"
            raise ArgumentError("module", expected, f"one with an output of shape {tuple(y.shape)}")
        outputs = y.reshape(*lead, *y.shape[1:])
        return outputs if axis == self.time_dim else outputs.movedim(axis, self.time_dim)


def check_single_steps(name: str, module: torch.nn.Module) -> None:
    """Raises an error if a module has a part that takes time itself."""
    if not isinstance(module, torch.nn.Module):
        raise ArgumentTypeError(name, "a torch.nn.Module", type(module).__name__)
    for place, part in module.named_modules():
        if isinstance(part, ranges.Bounded | Network | TimeCheckpoint | Steps | torch.nn.RNNBase):
            got = f"{type(part).__name__} {place!r}" if place else type(part).__name__
            raise ArgumentError(
                name, "made of layers that take single steps", got, "it takes whole sequences itself: leave it outside"
            )
