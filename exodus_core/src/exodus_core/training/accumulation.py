"""The count of what was accumulated: as many calls, or as many samples, as gradients were added up over."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exodus_core.errors import ArgumentError

#: What a call counts as, and its gradients are multiplied by: 1, or the number of its samples.
CALLS, SAMPLES = "calls", "samples"


@dataclass(frozen=True)
class Count:
    """The sum of what the accumulated calls count as.

    Attributes:
        total: the sum; None if it is not known, as of a state that has none.
        by: what a call counts as.
    """

    total: int | None = 0
    by: str = CALLS

    def weight(self, accumulate: str, samples: int) -> int:
        """The count of a further call of so many samples.

        Raises:
            ArgumentError: `accumulate` is neither "calls" nor "samples", or not that of the calls before.
        """
        if accumulate not in (CALLS, SAMPLES):
            raise ArgumentError("accumulate", f"{CALLS!r} or {SAMPLES!r}", repr(accumulate))
        if self.total != 0 and accumulate != self.by:
            raise ArgumentError("accumulate", f"{self.by!r}, as in the calls before", repr(accumulate))
        return samples if accumulate == SAMPLES else 1

    def added(self, accumulate: str, weight: int) -> Count:
        """The count with a further call."""
        return replace(self, by=accumulate, total=None if self.total is None else self.total + weight)

    def divisor(self, average: bool) -> int:
        """The number that gradients are divided by; 1 if they are not.

        Raises:
            ArgumentError: they are to be averaged, and the count is not known.
        """
        if not isinstance(average, bool):
            raise ArgumentError("average", "true or false", repr(average))
        if not average:
            return 1
        if not self.total:
            raise ArgumentError(
                "average", "false for gradients that were not counted, as those of an older state", True
            )
        return self.total

    def tensor(self) -> Tensor | None:
        """The count as a tensor of a state, int64, (total, 1 if by samples); None if it is not known."""
        if self.total is None:
            return None
        return torch.tensor([self.total, int(self.by == SAMPLES)], dtype=torch.int64, device="cpu")

    @classmethod
    def of(cls, tensor: Tensor | None) -> Count:
        """The count that `tensor` was made of."""
        if tensor is None:
            return cls(None)
        total, by_samples = tensor.tolist()
        return cls(total, SAMPLES if by_samples else CALLS)
