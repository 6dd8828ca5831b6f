"""One step of the optimiser, with what a call may set for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exodus_core.schema import Place, number
from exodus_core.training.optimizer import OptimizerError

_LIMITS = {
    "lr": number(0),
    "weight_decay": number(0),
    "clip_norm": number(0, above=True),
    "clip_value": number(0, above=True),
}
# Added to the norm before the division, as by torch.nn.utils.clip_grad_norm_.
_CLIP_EPSILON = 1e-6


@dataclass(frozen=True)
class Update:
    """The options of one step, checked; None: as the optimiser has it, or no clipping.

    Raises:
        OptimizerError: one is not a number in its range.
    """

    lr: float | None
    weight_decay: float | None
    clip_norm: float | None
    clip_value: float | None

    def __post_init__(self) -> None:
        for name, check in _LIMITS.items():
            value = getattr(self, name)
            if value is not None:
                check.read(value, Place("", OptimizerError).at(name))

    def _clipped(self, gradients: Sequence[Tensor], total: float) -> Sequence[Tensor]:
        if self.clip_norm is not None:
            # In the gradients' dtype, as torch.nn.utils.clip_grad_norm_ computes it, to the bit.
            norm = gradients[0].new_tensor(total)
            factor = (self.clip_norm / (norm + _CLIP_EPSILON)).clamp(max=1.0)
            gradients = torch._foreach_mul(list(gradients), factor)
        if self.clip_value is not None:
            gradients = [g.clamp(-self.clip_value, self.clip_value) for g in gradients]
        return gradients

    @torch.no_grad()
    def apply(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[torch.nn.Parameter],
        gradients: Sequence[Tensor],
        total: float,
    ) -> None:
        """Changes the parameters by the gradients, whose norm is `total`, and clears what was accumulated."""
        decaying, neurons = optimizer.param_groups
        own = [(group, name, group[name]) for group in (decaying, neurons) for name in ("lr", "weight_decay")]
        accumulated = [p.grad for p in parameters]
        try:
            clipped = self._clipped(gradients, total)
            if self.lr is not None:
                decaying["lr"] = neurons["lr"] = self.lr
            if self.weight_decay is not None:
                decaying["weight_decay"] = self.weight_decay
            for parameter, gradient in zip(parameters, clipped, strict=True):
                parameter.grad = gradient
            optimizer.step()
        except BaseException:
            for parameter, kept in zip(parameters, accumulated, strict=True):
                parameter.grad = kept
            raise
        finally:
            for group, name, value in own:
                group[name] = value
        for parameter in parameters:
            parameter.grad = None
