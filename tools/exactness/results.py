"""One line of the tables: a neuron and its settings, the errors of its gradients, and their limits."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

DRAWS = 16  # random inputs a shape
SHAPES = [(1, 1, 1), (3, 7, 5), (2, 63, 100), (1, 1000, 3)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
EXACT = 1e-12
#: What is kept in a half type; parameters stay float32.
SIGNALS = (
    "input",
    "initial_membrane",
    "initial_spikes",
    "initial_current",
    "initial_adaptation",
    "initial_refractory",
)


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    neuron: str
    method: str
    reset: str
    surrogate: str
    dtype: torch.dtype


@dataclass
class Result:
    """The relative errors of each gradient, one a draw and shape, and those of the plain loop in float32."""

    case: Case
    errors: dict[str, list[float]]
    plain: dict[str, list[float]]

    def is_rounded(self, name: str) -> bool:
        """True if a gradient is kept in a half type: computed in float32, and rounded once."""
        return self.case.dtype in (torch.float16, torch.bfloat16) and name in SIGNALS

    def judged(self, name: str) -> float:
        """The error that has the limit: the largest; in float32 the mean, the largest being a matter of luck there."""
        errors = self.errors[name]
        return max(errors) if self.case.dtype == torch.float64 or self.is_rounded(name) else statistics.mean(errors)

    def limit(self, name: str) -> float:
        if self.case.dtype == torch.float64:
            return EXACT
        if self.is_rounded(name):
            return torch.finfo(self.case.dtype).eps
        return max(2 * statistics.mean(self.plain[name]), torch.finfo(torch.float32).eps)

    @property
    def passed(self) -> bool:
        return all(self.judged(name) <= self.limit(name) for name in self.errors)
