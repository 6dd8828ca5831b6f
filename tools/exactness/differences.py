"""Gradients of a function of tensors by name, and their differences from the exact ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def leaves(given: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Copies of the tensors, of this dtype, that want a gradient; all else as it is."""
    return {
        name: value.detach().to(dtype or value.dtype).clone().requires_grad_() if isinstance(value, Tensor) else value
        for name, value in given.items()
    }


def gradients(outputs: Sequence[Tensor], weights: Sequence[Tensor], given: dict[str, Any]) -> dict[str, Tensor]:
    """Of the sum of the weighted outputs, with respect to every tensor that is given; of x or z it is "input"."""
    names = [name for name, value in given.items() if isinstance(value, Tensor)]
    found = torch.autograd.grad(
        outputs,
        [given[name] for name in names],
        [w.to(output.dtype) for w, output in zip(weights, outputs, strict=True)],
        allow_unused=True,
        materialize_grads=True,
    )
    return {"input" if name in ("x", "z") else name: gradient for name, gradient in zip(names, found, strict=True)}


def relative_errors(actual: Tensor, expected: Tensor) -> list[float]:
    """The largest difference of each draw (the first axis), relative to the largest value of all of them.

    Relative to the smallest normal number where all are below it. Values beyond the range of the dtype must have
    become infinite, and is left out otherwise.
    """
    limits = torch.finfo(actual.dtype)
    within = expected.abs() <= limits.max
    if not actual[~within].isinf().all():
        return [float("inf")]
    scale = max(expected[within].abs().max().item(), limits.tiny)
    difference = torch.where(within, actual.double() - expected, 0.0)
    errors: list[float] = (difference.abs().flatten(1).amax(1) / scale).tolist()
    return errors
