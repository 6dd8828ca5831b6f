"""Spikes for the tests of sparse products, and the bound of a sum's rounding error."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

import exodus_core
from exodus_core import ops

#: The kernels of sparse products are the CPU's own.
on_cpu = pytest.mark.skipif(
    exodus_core.capabilities()["instruction_set"] == "emulated CUDA"
    or os.environ.get("EXODUS_TEST_DEVICE", "cpu") != "cpu",
    reason="no kernel of the CPU is in this build or used on this device",
)

#: What elements that are not zero may be.
KINDS = ("ones", "counts", "values")


def spikes(shape: tuple[int, ...], density: float, kind: str, dtype: torch.dtype) -> Tensor:
    """Zeros of both signs but for this share: ones, counts from 1 to 7, or values of both signs."""
    x = (torch.rand(shape) < density).double()
    if kind == "counts":
        x *= torch.randint(1, 8, shape)
    if kind == "values":
        x *= torch.randn(shape, dtype=torch.float64)  # zeros of both signs
    return x.to(dtype)


def bits_of(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The bits of a matrix, and its values if they are not all one."""
    bits, kind = ops.pack_spikes(x, 1.0)
    return bits, x if kind == 2 else None


def assert_rounded(name: str, actual: Tensor, expected: Tensor, magnitude: Tensor, terms: Tensor | float) -> None:
    """Differs from the sums in float64 by no more than sums in any order do.

    Args:
        actual, expected: the sums, and the same in float64.
        magnitude: the sum of the terms' absolute values, in float64.
        terms: how many there are, for each sum or at most.
    """
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    stored, computed = torch.finfo(actual.dtype), torch.finfo(ops.compute_dtype(actual.dtype))
    # Each term is rounded as a product, and with each sum that it is part of; the reference too, if it has this dtype.
    bound = (terms + 2) * computed.eps * magnitude + stored.eps * expected.abs() + stored.smallest_normal * stored.eps
    excess = ((actual.double() - expected).abs() - bound).max().item() if actual.numel() else 0.0
    assert excess <= 0, f"{name}: {excess:.3g} beyond what rounding explains"


def calls_of(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """A list that grows by one element with each call of this operator of `ops`."""
    called: list[int] = []
    operator = getattr(ops, name)

    def counted(*given: Any) -> Any:
        called.append(1)
        return operator(*given)

    monkeypatch.setattr(ops, name, counted)
    return called
