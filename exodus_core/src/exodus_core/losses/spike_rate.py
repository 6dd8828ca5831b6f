"""Regularisation of the output's spike rate: towards a target, or into bounds. These losses take no targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from exodus_core.losses.loss import Loss, LossValue, check_no_targets, check_outputs, metrics_of
from exodus_core.losses.steps import mean_over_time
from exodus_core.schema import choice, number, optional


@dataclass(frozen=True)
class _SpikeRate(Loss):
    takes_targets: ClassVar[bool] = False

    def _fitting(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        check_no_targets(targets)
        return check_outputs(outputs, None)

    def _distance(self, rates: Tensor) -> Tensor:
        """The distance of rates from what they should be."""
        raise NotImplementedError

    def _value_for(self, outputs: Tensor, steps: Tensor | None, of: str) -> LossValue:
        rates = mean_over_time(outputs, steps)
        rates = rates.flatten(1) if rates.dim() > 1 else rates[:, None]
        if of == "sample":
            rates = rates.mean(1)
        loss = self._distance(rates).square().mean()
        with torch.no_grad():
            rate = rates.mean()
        return LossValue(loss, {**metrics_of(loss, outputs), "rate:mean": rate})


_OF = choice("neuron", "sample")
_MEANING = "whose rate: that of each neuron, or that of all neurons of a sample together"


@dataclass(frozen=True)
class SpikeRateMSE(_SpikeRate):
    """Mean squared difference of the outputs' mean over time and a target rate; takes no targets."""

    kind: ClassVar[str] = "spike_rate_mse"

    rate: Annotated[float, number(), "target, in spikes a step"]
    of: Annotated[str, _OF, _MEANING] = "neuron"

    def _value(self, outputs: Tensor, targets: None, steps: Tensor | None) -> LossValue:
        return self._value_for(outputs, steps, self.of)

    def _distance(self, rates: Tensor) -> Tensor:
        return rates - self.rate


@dataclass(frozen=True)
class SpikeRateBounds(_SpikeRate):
    """Mean square of how far the outputs' mean over time is below or above bounds; takes no targets."""

    kind: ClassVar[str] = "spike_rate_bounds"

    lower: Annotated[float | None, optional(number()), "lower bound, in spikes a step; null: none"] = None
    upper: Annotated[float | None, optional(number()), "upper bound, in spikes a step; null: none"] = None
    of: Annotated[str, _OF, _MEANING] = "neuron"

    def _value(self, outputs: Tensor, targets: None, steps: Tensor | None) -> LossValue:
        return self._value_for(outputs, steps, self.of)

    def _distance(self, rates: Tensor) -> Tensor:
        return rates - rates.detach().clamp(self.lower, self.upper)
