"""Losses of target spike trains and target counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from torch import Tensor

from exodus_core import functional
from exodus_core.kernels import ExponentialKernel
from exodus_core.losses.loss import Loss, LossValue, check_outputs, check_targets, metrics_of
from exodus_core.losses.steps import cleared, mean_of_samples
from exodus_core.schema import number


@dataclass(frozen=True)
class _SpikeTrains(Loss):
    def _fitting(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Targets: shape of the outputs, any real dtype."""
        outputs = check_outputs(outputs, None)
        check_targets(targets, "that of the outputs", tuple(outputs.shape))
        return outputs

    def _trains(self, outputs: Tensor, targets: Tensor, steps: Tensor | None) -> Tensor:
        """The targets in the dtype of the outputs, 0 at steps that do not count."""
        return cleared(targets.to(outputs.device).to(outputs.dtype), steps)


@dataclass(frozen=True)
class SpikeTrainMSE(_SpikeTrains):
    """Mean squared difference of outputs and target spike trains, over batch, time and neurons."""

    kind: ClassVar[str] = "spike_train_mse"

    @property
    def further_copies(self) -> int:
        return 1

    def _value(self, outputs: Tensor, targets: Tensor, steps: Tensor | None) -> LossValue:
        trains = self._trains(outputs, targets, steps)
        loss = F.mse_loss(outputs, trains) if steps is None else mean_of_samples((outputs - trains).square(), steps)
        return LossValue(loss, metrics_of(loss, outputs))


@dataclass(frozen=True)
class VanRossum(_SpikeTrains):
    """Mean squared difference of outputs and targets that are both filtered by alpha^k, k = 0, 1, ..."""

    kind: ClassVar[str] = "van_rossum"

    alpha: Annotated[float, number(0, 1), "decay of the filter in one step, exp(-dt/tau)"]

    @property
    def further_copies(self) -> int:
        return 4  # differences and their filtered ones, each with its gradient

    def _value(self, outputs: Tensor, targets: Tensor, steps: Tensor | None) -> LossValue:
        trains = self._trains(outputs, targets, steps)
        # The filter is linear: once through it is enough.
        difference = functional.filter(outputs - trains, ExponentialKernel(self.alpha))
        loss = mean_of_samples(difference.square(), steps)
        return LossValue(loss, metrics_of(loss, outputs))


@dataclass(frozen=True)
class SpikeCountMSE(Loss):
    """Mean squared difference of the outputs' sums over time and target counts, over batch and neurons."""

    kind: ClassVar[str] = "spike_count_mse"

    def _fitting(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Targets: shape of the outputs without time, any real dtype."""
        outputs = check_outputs(outputs, None)
        shape = (*outputs.shape[:1], *outputs.shape[2:])
        check_targets(targets, "that of the outputs without time", shape)
        return outputs

    def _value(self, outputs: Tensor, targets: Tensor, steps: Tensor | None) -> LossValue:
        loss = F.mse_loss(outputs.sum(1), targets.to(outputs.device).to(outputs.dtype))
        return LossValue(loss, metrics_of(loss, outputs))
