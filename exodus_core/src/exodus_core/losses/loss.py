"""A loss: what all losses check, and how they are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from exodus_core.losses.errors import LossError
from exodus_core.losses.metrics import SAMPLES
from exodus_core.losses.steps import cleared, counted_steps
from exodus_core.ops import compute_dtype
from exodus_core.schema import Place, plain


class LossValue(NamedTuple):
    """A loss, a scalar with its graph, and metrics as scalars without."""

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss; `parse` makes it.

    Calling it with outputs (batch, time, *shape) and targets gives a `LossValue`, or raises LossError if they do not
    fit. Losses of float16 and bfloat16 outputs are computed in float32, and are float32.

    With `lengths`, integers, shape (batch,), or a `mask`, bool, shape (batch, time), the value is the mean over samples
    of the loss of each alone, of its steps that count; outputs and targets of other steps may be anything.

    Attributes:
        takes_targets: false for a loss of the outputs alone, whose targets are None.
    """

    kind: ClassVar[str]
    takes_targets: ClassVar[bool] = True

    @property
    def data(self) -> Any:
        """The loss as plain data, with all defaults: `parse(loss.data) == loss`."""
        return plain(self)

    @property
    def waits_for_no_device(self) -> bool:
        """True if `of_checked` does not, as a CUDA graph demands."""
        return True

    @property
    def further_copies(self) -> int:
        """Copies of the outputs that it takes with its gradient, beyond those that `Description.memory` has for one."""
        return 0

    def __call__(
        self,
        outputs: Tensor,
        targets: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> LossValue:
        fitting = self._fitting(outputs, targets)
        steps = counted_steps(outputs.shape[:2], lengths, mask)
        self.check_values(targets, fitting.shape, steps)
        return self._value_of(fitting, targets, steps)

    def check_values(self, targets: Tensor | None, shape: Sequence[int], steps: Tensor | None = None) -> None:
        """Checks the elements of targets that fit outputs of this shape otherwise; waits for the device they are on.

        Raises:
            LossError: they do not fit.
        """

    def of_checked(self, outputs: Tensor, targets: Tensor | None, steps: Tensor | None = None) -> LossValue:
        """The value of a call, for targets and steps whose elements are checked.

        Args:
            steps: those that count, as `counted_steps` gives them.
        """
        return self._value_of(self._fitting(outputs, targets), targets, steps)

    def _value_of(self, outputs: Tensor, targets: Tensor | None, steps: Tensor | None) -> LossValue:
        counted = None if steps is None else steps.to(outputs.device)
        return self._value(cleared(outputs, counted), targets, counted)

    def _fitting(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """The outputs in the dtype that they are computed in, once both are found to fit but for their elements."""
        raise NotImplementedError

    def _value(self, outputs: Tensor, targets: Any, steps: Tensor | None) -> LossValue:
        """The value for outputs that are 0 at steps that do not count."""
        raise NotImplementedError


def check_outputs(outputs: Tensor, dimensions: int | None) -> Tensor:
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


def check_targets(targets: object, what: str, *shapes: tuple[int, ...]) -> Tensor:
    """The targets, if they are a dense real tensor of one of some shapes."""
    place = Place("/targets", LossError)
    if not isinstance(targets, Tensor) or targets.is_complex():
        got = str(targets.dtype) if isinstance(targets, Tensor) else type(targets).__name__
        raise place.refuse_as("a real tensor", got)
    _check_dense(targets, place)
    if targets.shape not in shapes:
        expected = " or ".join(str(tuple(shape)) for shape in shapes)
        raise place.refuse_as(f"of shape {expected}, {what}", str(tuple(targets.shape)))
    return targets


def check_no_targets(targets: object) -> None:
    """Refuse targets of a loss that takes none."""
    if targets is not None:
        raise Place("/targets", LossError).refuse_as("absent for a loss of the outputs alone", type(targets).__name__)


def metrics_of(loss: Tensor, outputs: Tensor) -> dict[str, Tensor]:
    """The metrics that every loss has."""
    return {"loss:mean": loss.detach(), SAMPLES: torch.tensor(float(outputs.shape[0]), device="cpu")}


def _check_dense(tensor: Tensor, place: Place) -> None:
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise place.refuse_as("a dense tensor", "a nested tensor" if tensor.is_nested else str(tensor.layout))
