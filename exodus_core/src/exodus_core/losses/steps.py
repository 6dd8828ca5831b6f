"""Steps that count: those within the length of each sample, or those that a mask names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exodus_core.losses.errors import LossError
from exodus_core.schema import Place


def counted_steps(shape: Sequence[int], lengths: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """The steps of each sample that count, bool, shape (batch, time), on the device of what is given; None: all.

    Args:
        shape: (batch, time).
        lengths: how many steps of each sample count, from the first on: integers, shape (batch,), from 1 to time.
        mask: true where a step counts, bool, shape (batch, time); at least one of each sample.

    Raises:
        LossError: both are given, or one does not fit.
    """
    if lengths is None and mask is None:
        return None
    if lengths is None:
        assert mask is not None
        return _of_mask(shape, mask, Place("/mask", LossError))
    place = Place("/lengths", LossError)
    if mask is not None:
        raise place.refuse_as("absent with a mask", "both")
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.is_complex():
        raise place.refuse_as("an integer tensor", _kind(lengths))
    if lengths.dtype == torch.bool or lengths.layout is not torch.strided:
        raise place.refuse_as("an integer tensor", f"{lengths.dtype}, {lengths.layout}")
    batch, time = shape
    if tuple(lengths.shape) != (batch,):
        raise place.refuse_as(f"of shape ({batch},), one length for each sample", str(tuple(lengths.shape)))
    if batch == 0:
        return None  # what takes the batch refuses it
    lengths = lengths.to(torch.int64)
    low, high = (int(v) for v in torch.aminmax(lengths))
    if low < 1 or high > time:
        raise place.refuse_as(f"lengths from 1 to {time}", str(low if low < 1 else high))
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def _of_mask(shape: Sequence[int], mask: Tensor, place: Place) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.layout is not torch.strided:
        raise place.refuse_as("a bool tensor", _kind(mask))
    if tuple(mask.shape) != tuple(shape):
        raise place.refuse_as(f"of shape {tuple(shape)}, (batch, time)", str(tuple(mask.shape)))
    some = mask.any(1)
    if not bool(some.all()):
        sample = int((~some).nonzero()[0])
        raise place.refuse_as("true at one step or more of each sample", f"none of sample {sample}")
    return mask.detach()


def _kind(given: object) -> str:
    return str(given.dtype) if isinstance(given, Tensor) else type(given).__name__


def cleared(values: Tensor, steps: Tensor | None, fill: float = 0.0) -> Tensor:
    """Values, shape (batch, time, ...), with another in place of those of steps that do not count.

    Those steps get a gradient of exactly 0, whatever is there.
    """
    if steps is None:
        return values
    return values.masked_fill(~steps.reshape(*steps.shape, *[1] * (values.dim() - 2)), fill)


def mean_over_time(values: Tensor, steps: Tensor | None) -> Tensor:
    """Means of values, shape (batch, time, ...), over the steps of each sample that count, shape (batch, ...)."""
    if steps is None:
        return values.mean(1)
    counts = steps.sum(1).reshape(-1, *[1] * (values.dim() - 2))
    return cleared(values, steps).sum(1) / counts


def mean_of_samples(values: Tensor, steps: Tensor | None) -> Tensor:
    """The mean over samples of the mean of each over its steps that count and over all else; a scalar."""
    if steps is None:
        return values.mean()
    each = values.flatten(2).mean(2) if values.dim() > 2 else values
    return mean_over_time(each, steps).mean()
