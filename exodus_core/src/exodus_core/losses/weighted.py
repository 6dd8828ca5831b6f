"""A weighted sum of losses of the same outputs and targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from exodus_core.losses.errors import LossError
from exodus_core.losses.loss import Loss, LossValue, check_no_targets, metrics_of

#: Upper bound of the copies of the outputs that any further loss keeps until all are differentiated.
_COPIES = 2


@dataclass(frozen=True)
class Term:
    """A loss of a sum, with its weight, and its name in the metrics."""

    loss: Loss
    weight: float
    name: str


@dataclass(frozen=True)
class WeightedSum(Loss):
    """The sum of losses, each times its weight; those that take targets take the same.

    Metrics are `loss:mean` of the sum, NAME.loss:mean of each term without its weight, and the others of the terms:
    under their own names those of the first term that has them, as NAME.METRIC those of later ones.
    """

    kind: ClassVar[str] = "weighted_sum"

    terms: tuple[Term, ...]

    @property
    def takes_targets(self) -> bool:  # type: ignore[override]
        return any(term.loss.takes_targets for term in self.terms)

    @property
    def waits_for_no_device(self) -> bool:
        return all(term.loss.waits_for_no_device for term in self.terms)

    @property
    def further_copies(self) -> int:
        return _COPIES * (len(self.terms) - 1) + sum(term.loss.further_copies for term in self.terms)

    @property
    def data(self) -> Any:
        return [{**term.loss.data, "weight": term.weight, "name": term.name} for term in self.terms]

    def check_values(self, targets: Tensor | None, shape: Sequence[int], steps: Tensor | None = None) -> None:
        for index, term in enumerate(self.terms):
            with _pointing_at(index):
                term.loss.check_values(_own(term.loss, targets), shape, steps)

    def _fitting(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        if not self.takes_targets:
            check_no_targets(targets)
        fitting = outputs
        for index, term in enumerate(self.terms):
            with _pointing_at(index):
                fitting = term.loss._fitting(outputs, _own(term.loss, targets))
        return fitting

    def _value(self, outputs: Tensor, targets: Any, steps: Tensor | None) -> LossValue:
        found = [term.loss._value(outputs, _own(term.loss, targets), steps) for term in self.terms]
        total = found[0].loss * self.terms[0].weight
        for term, value in zip(self.terms[1:], found[1:], strict=True):
            total = total + value.loss * term.weight
        metrics = metrics_of(total, outputs)
        for term, value in zip(self.terms, found, strict=True):
            for name, metric in value.metrics.items():
                if name == "loss:mean" or (name in metrics and name != "samples:sum"):
                    metrics[f"{term.name}.{name}"] = metric
                else:
                    metrics[name] = metric
        return LossValue(total, metrics)


@contextmanager
def _pointing_at(index: int) -> Iterator[None]:
    """Errors about a term itself point at it; those about outputs and targets, which all share, stay as they are."""
    try:
        yield
    except LossError as error:
        if error.pointer in ("/outputs", "/targets"):
            raise
        raise LossError(f"/{index}{error.pointer}", error.expected, error.got) from None


def _own(loss: Loss, targets: Tensor | None) -> Tensor | None:
    return targets if loss.takes_targets else None
