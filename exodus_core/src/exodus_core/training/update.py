"""One step of the optimiser, with what a call may set for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exodus_core.schema import Place, number
from exodus_core.training.optimizer import Optimizer, OptimizerError
from exodus_core.training.parameter_groups import DECAYS, FACTOR
from exodus_core.training.parameter_options import ParameterOptions, names, rates, resolved

_LIMITS = {
    "lr": number(0),
    "weight_decay": number(0),
    "clip_norm": number(0, above=True),
    "clip_value": number(0, above=True),
    "frozen": names,
    "lr_scale": rates,
    "lr_of": rates,
}
# Added to the norm before the division, as by torch.nn.utils.clip_grad_norm_.
_CLIP_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class Update:
    """The options of one step, checked; None: as the optimiser has it, or no clipping.

    Raises:
        OptimizerError: one is not a number in its range, or no names or numbers by name.
    """

    lr: float | None = None
    weight_decay: float | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    frozen: Sequence[str] | None = None
    lr_scale: Mapping[str, float] | None = None
    lr_of: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name, check in _LIMITS.items():
            value = getattr(self, name)
            if value is not None:
                check.read(value, Place("", OptimizerError).at(name))

    def of_parameters(self, kind: Optimizer, parameters: Sequence[str]) -> ParameterOptions | None:
        """The options of single parameters; None: all as the optimiser has them.

        Factors and rates replace those of the optimiser together.

        Raises:
            OptimizerError: the network has no such layer or parameter.
        """
        if self.frozen is None and self.lr_scale is None and self.lr_of is None:
            return None
        own = self if self.lr_scale is not None or self.lr_of is not None else kind
        frozen = kind.frozen if self.frozen is None else self.frozen
        place = Place("", OptimizerError)
        return resolved(parameters, place, frozen=frozen, lr_scale=own.lr_scale, lr_of=own.lr_of)

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
        gradients: Sequence[Tensor | None],
        total: float,
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        """Changes the parameters by the gradients, whose norm is `total`, and clears what was accumulated.

        A gradient of None leaves its parameter and the optimiser's state of it as they are. `groups`: in place of the
        optimiser's.
        """
        own = optimizer.param_groups
        if groups is not None:
            optimizer.param_groups = groups
        kept = [(group, name, group[name]) for group in optimizer.param_groups for name in ("lr", "weight_decay")]
        accumulated = [p.grad for p in parameters]
        try:
            clipped = iter(self._clipped([g for g in gradients if g is not None], total))
            for group in optimizer.param_groups:
                if self.lr is not None and group[FACTOR] is not None:
                    group["lr"] = self.lr * group[FACTOR]
                if self.weight_decay is not None and group[DECAYS]:
                    group["weight_decay"] = self.weight_decay
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = None if gradient is None else next(clipped)
            optimizer.step()
        except BaseException:
            for parameter, before in zip(parameters, accumulated, strict=True):
                parameter.grad = before
            raise
        finally:
            for group, name, value in kept:
                group[name] = value
            optimizer.param_groups = own
        for parameter in parameters:
            parameter.grad = None
