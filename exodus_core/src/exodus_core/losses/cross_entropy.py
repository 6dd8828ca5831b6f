"""Cross-entropies of class numbers: of the outputs' sum or largest value over time, or of each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from exodus_core.losses.errors import LossError
from exodus_core.losses.loss import Loss, LossValue, check_outputs, check_targets, metrics_of
from exodus_core.losses.steps import cleared, mean_of_samples
from exodus_core.schema import Place, array, number, optional


@dataclass(frozen=True)
class _CrossEntropy(Loss):
    label_smoothing: Annotated[float, number(0, 1), "weight of the uniform distribution in the target"] = 0.0
    class_weights: Annotated[
        tuple[float, ...] | None, optional(array(number(0))), "factor on the loss of each class; null: 1"
    ] = None

    @property
    def waits_for_no_device(self) -> bool:
        return self.class_weights is None  # they are uploaded

    def check_values(self, targets: Tensor | None, shape: Sequence[int], steps: Tensor | None = None) -> None:
        assert targets is not None
        classes = shape[2]
        # Read on the device that has them: targets on the CPU need not wait for another device.
        if steps is not None and targets.dim() == 2:
            targets = targets.to(torch.int64).masked_fill(~steps.to(targets.device), 0)
        low, high = (int(v) for v in torch.aminmax(targets.to(torch.int64)))
        if low < 0 or high >= classes:
            place = Place("/targets", LossError)
            raise place.refuse_as(f"class numbers from 0 to {classes - 1}", str(low if low < 0 else high))

    def _fitting(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        outputs = check_outputs(outputs, 3)
        checked = self._check_shape(targets, outputs)
        if checked.is_floating_point() or checked.dtype == torch.bool:
            raise Place("/targets", LossError).refuse_as("class numbers, integers", str(checked.dtype))
        count = outputs.shape[2]
        if self.class_weights is not None and len(self.class_weights) != count:
            expected, got = f"a list of {count}, one for each class", f"a list of {len(self.class_weights)}"
            raise Place("/class_weights", LossError).refuse_as(expected, got)
        return outputs

    def _check_shape(self, targets: Tensor | None, outputs: Tensor) -> Tensor:
        return check_targets(targets, "one class for each sample", tuple(outputs.shape[:1]))

    def _entropies(self, logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Cross-entropies of logits (n, classes) and targets (n,)."""
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction=reduction)
        # torch's mean divides by the sum of the targets' weights, so that parts of a batch would not combine.
        weights = logits.new_tensor(self.class_weights)
        smoothing = self.label_smoothing
        found = F.cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="none")
        return found.mean() if reduction == "mean" else found


@dataclass(frozen=True)
class _OverTimeCE(_CrossEntropy):
    def _over_time(self, outputs: Tensor, steps: Tensor | None) -> Tensor:
        """Logits (batch, classes) of outputs (batch, time, classes)."""
        raise NotImplementedError

    def _value(self, outputs: Tensor, targets: Tensor, steps: Tensor | None) -> LossValue:
        targets = targets.to(outputs.device, torch.int64)
        logits = self._over_time(outputs, steps)
        loss = self._entropies(logits, targets, "mean")
        with torch.no_grad():
            accuracy = (logits.argmax(1) == targets).to(loss.dtype).mean()
        return LossValue(loss, {**metrics_of(loss, outputs), "accuracy:mean": accuracy})


@dataclass(frozen=True)
class SumOverTimeCE(_OverTimeCE):
    """Cross-entropy of the outputs summed over time; the targets are class numbers."""

    kind: ClassVar[str] = "sum_over_time_ce"

    def _over_time(self, outputs: Tensor, steps: Tensor | None) -> Tensor:
        return outputs.sum(1)


@dataclass(frozen=True)
class MaxOverTimeCE(_OverTimeCE):
    """Cross-entropy of the largest output of each class over time, the paper's; the targets are class numbers."""

    kind: ClassVar[str] = "max_over_time_ce"

    def _over_time(self, outputs: Tensor, steps: Tensor | None) -> Tensor:
        # `max(1)` wakes the threads of a parallel region however small its input; values and gradients are the same.
        largest = cleared(outputs.detach(), steps, -torch.inf).argmax(1, keepdim=True)
        return outputs.gather(1, largest).squeeze(1)


@dataclass(frozen=True)
class PerStepCE(_CrossEntropy):
    """Mean over time of the cross-entropy of each step; the targets are class numbers, of samples or of steps."""

    kind: ClassVar[str] = "per_step_ce"

    def _check_shape(self, targets: Tensor | None, outputs: Tensor) -> Tensor:
        shapes = tuple(outputs.shape[:1]), tuple(outputs.shape[:2])
        return check_targets(targets, "one class for each sample or step", *shapes)

    def _value(self, outputs: Tensor, targets: Tensor, steps: Tensor | None) -> LossValue:
        batch, time, classes = outputs.shape
        targets = targets.to(outputs.device, torch.int64)
        wanted = targets[:, None].expand(batch, time) if targets.dim() == 1 else cleared(targets, steps)
        entropies = self._entropies(outputs.reshape(-1, classes), wanted.reshape(-1), "none")
        loss = mean_of_samples(entropies.reshape(batch, time, 1), steps)
        with torch.no_grad():
            right = (outputs.argmax(2) == wanted).to(loss.dtype)
            accuracy = mean_of_samples(right[..., None], steps)
        return LossValue(loss, {**metrics_of(loss, outputs), "accuracy:mean": accuracy})
