"""The rounding errors of lines, which forward and backward pass of a neuron are: sums of products (docs/verify.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exodus_core.verify.bounds import Bounded, Rounding


@dataclass(frozen=True)
class Lines:
    """The errors of a line: those of what it is computed of, and of its own operations.

    Args:
        step: relative error of one operation.
        least: error of one that underflows.
        fused: a product is added to others without being rounded itself.
    """

    step: float
    least: float
    fused: bool

    @classmethod
    def forward(cls, rounding: Rounding) -> Lines:
        """Those of the forward pass, in which kernels and loop do the same."""
        return cls(rounding.gamma(1), rounding.least, fused=False)

    @classmethod
    def backward(cls, rounding: Rounding) -> Lines:
        """Those of the backward pass."""
        return cls(rounding.step, rounding.least, fused=True)

    def __call__(self, *terms: tuple[Bounded, ...]) -> Bounded:
        """A line of terms, each of which is a product of factors, in any order."""
        lines = [self._product(factors) for factors in terms]
        total, error, underflow = (sum(part[1:], start=part[0]) for part in zip(*lines, strict=True))
        rounded = self._rounded([len(factors) for factors in terms])
        return Bounded(total, error + rounded * (total + error) + self.least * underflow)

    def _product(self, factors: tuple[Bounded, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Terms and error of a product without its rounding, and what a partial product's underflow may grow by."""
        first = factors[0]
        terms, error, grown = first.terms, first.error, (first.terms + first.error).clamp(min=1.0)
        for factor in factors[1:]:
            largest = factor.terms + factor.error
            terms, error = terms * factor.terms, error * largest + terms * factor.error
            grown = grown * largest.clamp(min=1.0)
        return terms, error, len(factors) * grown

    def _rounded(self, factors: list[int]) -> float:
        """Relative error of a term of a line whose terms have so many factors."""
        longest = max(factors)
        if self.fused:
            products = sum(count > 1 for count in factors)
            operations = max(len(factors) - 1, products) + max(longest - 2, 0)
        else:
            operations = len(factors) - 1 + longest - 1
        return operations * self.step / (1 - operations * self.step)


def exactly(values: Tensor) -> Bounded:
    """Numbers that the program has as they are."""
    return Bounded(values.abs(), torch.zeros_like(values))


def about(values: Tensor, error: Tensor) -> Bounded:
    """Numbers that the program has with an error."""
    return Bounded(values.abs() + error, error)


def where(condition: Tensor, bounded: Bounded, other: Bounded) -> Bounded:
    """Elements of one or of the other."""
    return Bounded(
        torch.where(condition, bounded.terms, other.terms), torch.where(condition, bounded.error, other.error)
    )


def at(bounded: Bounded, step: int) -> Bounded:
    """One step of (..., time, lanes)."""
    return Bounded(bounded.terms[..., step, :], bounded.error[..., step, :])
