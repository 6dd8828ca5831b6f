"""Losses by name: cross-entropies, spike trains, filtered spike trains and spike counts.

docs/networks.md has the equations. A loss gives its value, the mean over the batch, and metrics whose names carry how
those of several calls combine: ":mean" weighted by samples, ":sum" added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from exodus_core import functional
from exodus_core.errors import ArgumentError, DescriptionError
from exodus_core.kernels import ExponentialKernel
from exodus_core.ops import compute_dtype
from exodus_core.schema import Place, choice, number, plain, read_record

__all__ = ["KINDS", "Loss", "LossError", "LossValue", "combine", "parse"]

SAMPLES = "samples:sum"


class LossError(DescriptionError):
    """A loss description, outputs or targets that do not fit; the pointers of tensors are /outputs and /targets."""


class LossValue(NamedTuple):
    """A loss, a scalar with its graph, and metrics as scalars without."""

    loss: Tensor
    metrics: dict[str, Tensor]


def _check_dense(tensor: Tensor, place: Place) -> None:
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise place.refuse_as("a dense tensor", "a nested tensor" if tensor.is_nested else str(tensor.layout))


def _check_outputs(outputs: Tensor, dimensions: int | None) -> Tensor:
    """The outputs in the dtype that they are computed in: bfloat16 cannot count to 257."""
    place = Place("/outputs", LossError)
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        raise place.refuse_as("a float tensor", str(getattr(outputs, "dtype", type(outputs).__name__)))
    _check_dense(outputs, place)
    if dimensions is not None and outputs.dim() != dimensions:
        raise place.refuse_as("of shape (batch, time, classes)", str(tuple(outputs.shape)))
    if outputs.dim() < 2 or outputs.numel() == 0:
        raise place.refuse_as("of shape (batch, time, ...), not empty", str(tuple(outputs.shape)))
    return outputs.to(compute_dtype(outputs.dtype))


def _check_targets(targets: object, shape: tuple[int, ...], what: str) -> Tensor:
    place = Place("/targets", LossError)
    if not isinstance(targets, Tensor) or targets.is_complex():
        got = str(targets.dtype) if isinstance(targets, Tensor) else type(targets).__name__
        raise place.refuse_as("a real tensor", got)
    _check_dense(targets, place)
    if targets.shape != shape:
        raise place.refuse_as(f"of shape {tuple(shape)}, {what}", str(tuple(targets.shape)))
    return targets


@dataclass(frozen=True)
class Loss:
    """A loss; `parse` makes it.

    Calling it with outputs (batch, time, *shape) and targets gives a `LossValue`, or raises LossError if they do not
    fit. Losses of float16 and bfloat16 outputs are computed in float32, and are float32.
    """

    kind: ClassVar[str]

    @property
    def data(self) -> dict[str, Any]:
        """The loss as plain data, with all defaults: `parse(loss.data) == loss`."""
        found: dict[str, Any] = plain(self)
        return found

    def __call__(self, outputs: Tensor, targets: Tensor) -> LossValue:
        raise NotImplementedError

    def check_values(self, targets: Tensor, shape: Sequence[int]) -> None:
        """Checks the elements of targets that fit outputs of this shape otherwise; waits for the device they are on.

        Raises:
            LossError: they do not fit.
        """

    def of_checked(self, outputs: Tensor, targets: Tensor) -> LossValue:
        """The value of a call, for targets whose elements are checked; waits for no device, as a CUDA graph demands."""
        return self(outputs, targets)


@dataclass(frozen=True)
class _CrossEntropy(Loss):
    label_smoothing: Annotated[float, number(0, 1), "weight of the uniform distribution in the target"] = 0.0

    def _over_time(self, outputs: Tensor) -> Tensor:
        """Logits (batch, classes) of outputs (batch, time, classes)."""
        raise NotImplementedError

    def __call__(self, outputs: Tensor, targets: Tensor) -> LossValue:
        """Targets: class numbers, integers, shape (batch,)."""
        outputs = self._fitting(outputs, targets)
        self.check_values(targets, outputs.shape)
        return self._value(outputs, targets)

    def check_values(self, targets: Tensor, shape: Sequence[int]) -> None:
        classes = shape[2]
        # Read on the device that has them: targets on the CPU need not wait for another device.
        low, high = (int(v) for v in torch.aminmax(targets))
        if low < 0 or high >= classes:
            place = Place("/targets", LossError)
            raise place.refuse_as(f"class numbers from 0 to {classes - 1}", str(low if low < 0 else high))

    def of_checked(self, outputs: Tensor, targets: Tensor) -> LossValue:
        return self._value(self._fitting(outputs, targets), targets)

    def _fitting(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The outputs in the dtype that they are computed in, once both are found to fit but for their elements."""
        outputs = _check_outputs(outputs, 3)
        _check_targets(targets, outputs.shape[:1], "one class for each sample")
        if targets.is_floating_point() or targets.dtype == torch.bool:
            raise Place("/targets", LossError).refuse_as("class numbers, integers", str(targets.dtype))
        return outputs

    def _value(self, outputs: Tensor, targets: Tensor) -> LossValue:
        targets = targets.to(outputs.device, torch.int64)
        logits = self._over_time(outputs)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            accuracy = (logits.argmax(1) == targets).to(loss.dtype).mean()
        return LossValue(loss, {**_metrics(loss, outputs), "accuracy:mean": accuracy})


@dataclass(frozen=True)
class SumOverTimeCE(_CrossEntropy):
    """Cross-entropy of the outputs summed over time; the targets are class numbers."""

    kind: ClassVar[str] = "sum_over_time_ce"

    def _over_time(self, outputs: Tensor) -> Tensor:
        return outputs.sum(1)


@dataclass(frozen=True)
class MaxOverTimeCE(_CrossEntropy):
    """Cross-entropy of the largest output of each class over time, the paper's; the targets are class numbers."""

    kind: ClassVar[str] = "max_over_time_ce"

    def _over_time(self, outputs: Tensor) -> Tensor:
        # `max(1)` wakes the threads of a parallel region however small its input; values and gradients are the same.
        largest = outputs.detach().argmax(1, keepdim=True)
        return outputs.gather(1, largest).squeeze(1)


@dataclass(frozen=True)
class SpikeTrainMSE(Loss):
    """Mean squared difference of outputs and target spike trains, over batch, time and neurons."""

    kind: ClassVar[str] = "spike_train_mse"

    def __call__(self, outputs: Tensor, targets: Tensor) -> LossValue:
        """Targets: shape of the outputs, any real dtype."""
        outputs = _check_outputs(outputs, None)
        trains = _check_targets(targets, outputs.shape, "that of the outputs").to(outputs.device).to(outputs.dtype)
        loss = F.mse_loss(outputs, trains)
        return LossValue(loss, _metrics(loss, outputs))


@dataclass(frozen=True)
class VanRossum(Loss):
    """Mean squared difference of outputs and targets that are both filtered by alpha^k, k = 0, 1, ..."""

    kind: ClassVar[str] = "van_rossum"

    alpha: Annotated[float, number(0, 1), "decay of the filter in one step, exp(-dt/tau)"]

    def __call__(self, outputs: Tensor, targets: Tensor) -> LossValue:
        """Targets: shape of the outputs, any real dtype."""
        outputs = _check_outputs(outputs, None)
        trains = _check_targets(targets, outputs.shape, "that of the outputs").to(outputs.device).to(outputs.dtype)
        # The filter is linear: once through it is enough.
        difference = functional.filter(outputs - trains, ExponentialKernel(self.alpha))
        loss = difference.square().mean()
        return LossValue(loss, _metrics(loss, outputs))


@dataclass(frozen=True)
class SpikeCountMSE(Loss):
    """Mean squared difference of the outputs' sums over time and target counts, over batch and neurons."""

    kind: ClassVar[str] = "spike_count_mse"

    def __call__(self, outputs: Tensor, targets: Tensor) -> LossValue:
        """Targets: shape of the outputs without time, any real dtype."""
        outputs = _check_outputs(outputs, None)
        shape = (*outputs.shape[:1], *outputs.shape[2:])
        counts = _check_targets(targets, shape, "that of the outputs without time")
        loss = F.mse_loss(outputs.sum(1), counts.to(outputs.device).to(outputs.dtype))
        return LossValue(loss, _metrics(loss, outputs))


def _metrics(loss: Tensor, outputs: Tensor) -> dict[str, Tensor]:
    return {"loss:mean": loss.detach(), SAMPLES: torch.tensor(float(outputs.shape[0]), device="cpu")}


KINDS: dict[str, type[Loss]] = {
    cls.kind: cls for cls in (SumOverTimeCE, MaxOverTimeCE, SpikeTrainMSE, VanRossum, SpikeCountMSE)
}
_KIND = choice(*KINDS)


def parse(data: str | Mapping[str, Any]) -> Loss:
    """The loss that a name, or an object with a kind and its options, describes.

    Raises:
        LossError: it does not fit; with a JSON pointer to the value, what was expected and what is there.
    """
    place = Place("", LossError)
    if isinstance(data, str):
        data = {"kind": data}
    if not isinstance(data, Mapping):
        raise place.refuse("a name or an object", data)
    kind = _KIND.read(data.get("kind"), place.at("kind"))
    return read_record(KINDS[kind], data, place, ("kind",))


def combine(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of several calls as those of one: ":mean" weighted by "samples:sum", ":sum" added.

    Raises:
        ValueError: nothing to combine, names that differ, a name without its reduction, or means without samples.
    """
    if not metrics:
        raise ArgumentError("metrics", "a list of at least one entry", "none")
    names = metrics[0].keys()
    combined = {}
    for entry in metrics:
        if entry.keys() != names:
            raise ArgumentError("metrics", "entries of the same names", f"{sorted(names)} and {sorted(entry.keys())}")
    for name in names:
        reduction = name.rpartition(":")[2]
        if reduction == "sum":
            combined[name] = sum(entry[name] for entry in metrics)
        elif reduction == "mean" and SAMPLES in names:
            samples = sum(entry[SAMPLES] for entry in metrics)
            combined[name] = sum(entry[name] * entry[SAMPLES] for entry in metrics) / samples
        else:
            raise ArgumentError("metrics", f"named NAME:sum, or NAME:mean along with {SAMPLES}", name)
    return combined
