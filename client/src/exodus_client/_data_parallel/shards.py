"""Arithmetic of data parallel training: splits a batch, and combines the results of its parts.

Everything is combined in the order of the shards and in float64, whatever order the answers came in: equal batches on
equally many shards give equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from exodus_client._checks import unfit
from exodus_client.neuron import Array
from exodus_client.wire import is_torch


@dataclass(frozen=True)
class Part:
    """Part of a batch for one shard, copied: the caller may write to the arrays at once.

    Attributes:
        inputs, targets: contiguous parts of the batch; no targets if the batch has none.
        weight: its share of the samples.
        steps: lengths or a mask of its samples, by name.
    """

    inputs: Array
    targets: Array | None
    weight: float
    steps: Mapping[str, Array] = field(default_factory=dict)


def parts_of(
    spikes: Array, targets: Array | None, shards: int, steps: Mapping[str, Array] = MappingProxyType({})
) -> list[Part]:
    """Contiguous parts of a batch, one for each shard while there are samples; the first ones are larger by one.

    Raises:
        ValueError: there are no samples, or not as many targets.
    """
    inputs, wanted = _array(spikes), None if targets is None else _array(targets)
    samples = len(inputs) if inputs.ndim else 0
    if not samples:
        raise unfit(ValueError, "spikes", "an array with samples along its first axis", f"shape {list(inputs.shape)}")
    if wanted is not None and (not wanted.ndim or len(wanted) != samples):
        raise unfit(ValueError, "targets", f"one for each of {samples} samples", f"shape {list(wanted.shape)}")
    parts, begin = [], 0
    for shard in range(min(shards, samples)):
        end = begin + samples // shards + (shard < samples % shards)
        own = None if wanted is None else _copied(wanted[begin:end])
        counted = {name: _copied(_array(array)[begin:end]) for name, array in steps.items()}
        parts.append(Part(_copied(inputs[begin:end]), own, (end - begin) / samples, counted))
        begin = end
    return parts


def combined_metrics(metrics: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """Metrics of a whole batch from those of its parts, by the end of their names.

    A `:mean` is weighted by samples, a `:sum` added; of `:max` and `:min` one is taken. Metrics of other names are left
    out.
    """
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for part in metrics for name in part):
        values = [(part[name], weight) for part, weight in zip(metrics, weights, strict=True) if name in part]
        reduction = _REDUCTIONS.get(name.rpartition(":")[2])
        if reduction is not None:
            found[name] = reduction(values)
    return found


def combined_gradients(
    gradients: Sequence[Mapping[str, Array]], weights: Sequence[float], order: Sequence[str], dtype: str
) -> npt.NDArray[Any]:
    """The flat gradient of the loss averaged over a batch, from those averaged over its parts.

    Summed up in float64 in the order of the parts, and rounded once.
    """
    total: npt.NDArray[Any] | None = None
    for part, weight in zip(gradients, weights, strict=True):
        flat = np.concatenate([as_numpy(part[name]).reshape(-1) for name in order]).astype(np.float64)
        flat *= weight
        total = flat if total is None else np.add(total, flat, out=total)
    assert total is not None, "there is no batch without a part"
    return total.astype(dtype)


def joined(outputs: Sequence[Array]) -> Array:
    """Outputs of the parts, one after the other."""
    if is_torch(outputs[0]):
        import torch

        return torch.cat(list(outputs))
    return np.concatenate(outputs)


def as_numpy(array: Array) -> npt.NDArray[Any]:
    """An array in main memory."""
    return array.numpy(force=True) if is_torch(array) else np.asarray(array)


def _mean(values: Sequence[tuple[float, float]]) -> float:
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total


_REDUCTIONS: dict[str, Callable[[Sequence[tuple[float, float]]], float]] = {
    "mean": _mean,
    "sum": lambda values: math.fsum(value for value, _ in values),
    "max": lambda values: max(value for value, _ in values),
    "min": lambda values: min(value for value, _ in values),
}


def _array(given: Array) -> Any:
    return given if is_torch(given) else np.asarray(given)


def _copied(array: Any) -> Any:
    return array.detach().clone() if is_torch(array) else array.copy()
