"""The axes of a batch: (batch, time, ...) on the wire, and in the order of a model's handle where callers see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from exodus_client._checks import integer, unfit
from exodus_client.neuron import Array
from exodus_client.wire import is_torch

#: Names of the axes, by `time_dim`.
_ORDERS = {0: "(time, batch, ...)", 1: "(batch, time, ...)", -1: "(batch, ..., time)"}

#: Losses whose targets have an axis of time, and those with one target for each sample.
_PER_STEP = frozenset({"spike_train_mse", "van_rossum"})
_PER_SAMPLE = frozenset({"sum_over_time_ce", "max_over_time_ce", "spike_count_mse"})
#: Losses whose targets have an axis of time, or are one for each sample; and those without targets.
_EITHER = frozenset({"per_step_ce"})
_NO_TARGETS = frozenset({"spike_rate_mse", "spike_rate_bounds"})

Loss = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | Callable[..., Any] | None


def check_time_dim(given: Any) -> int:
    """The axis of time: 0, 1 or -1. Raises TypeError, ValueError."""
    return integer("time_dim", given, -1, 1)


def dense(name: str, given: Array) -> Array:
    """An array of numpy or torch that has its elements. Raises TypeError, ValueError: something is none."""
    wanted = f"{name} must be a dense array of numbers"
    if is_torch(given):
        layout = "nested" if given.is_nested else str(given.layout).removeprefix("torch.")
        if layout != "strided" or given.is_meta:
            raise TypeError(f"{wanted}, got a tensor {'on meta' if layout == 'strided' else f'that is {layout}'}")
        return given
    if given is None:
        raise TypeError(f"{wanted}, got None")
    try:
        return np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{wanted}, got lists of several lengths") from error


def batch_first(array: Array, time_dim: int) -> Array:
    """An array of a caller as (batch, time, ...), a view; one without both axes as it is."""
    if time_dim == 1 or array is None:
        return array
    given: Any = array if is_torch(array) else np.asarray(array)
    if given.ndim < 2:
        return given
    return given.movedim(time_dim, 1) if is_torch(given) else np.moveaxis(given, time_dim, 1)


def as_given(array: Array, time_dim: int) -> Array:
    """An array (batch, time, ...) in the order of a caller, a view."""
    if time_dim == 1 or array is None:
        return array
    return array.movedim(1, time_dim) if is_torch(array) else np.moveaxis(array, 1, time_dim)


def targets_first(targets: Array | None, loss: Loss, time_dim: int) -> Array | None:
    """Targets of a loss as (batch, time, ...) or (batch, ...); those of a function are for it to understand."""
    return batch_first(targets, time_dim) if _kinds(loss) & (_PER_STEP | _EITHER) else targets


def takes_targets(loss: Loss) -> bool:
    """False for a loss of the outputs alone."""
    kinds = _kinds(loss)
    return not kinds or not kinds <= _NO_TARGETS


def steps_given(lengths: Array | None, mask: Array | None, time_dim: int) -> dict[str, Array]:
    """Lengths, or a mask as (batch, time), of a call, by name.

    Raises:
        TypeError, ValueError: both, no arrays, or a mask that is not bool.
    """
    if lengths is not None and mask is not None:
        raise unfit(TypeError, "lengths", "None with a mask", "both")
    if lengths is not None:
        return {"lengths": dense("lengths", lengths)}
    if mask is None:
        return {}
    steps = dense("mask", mask)
    if str(steps.dtype).removeprefix("torch.") != "bool":
        raise unfit(TypeError, "mask", "of bools", f"an array of {steps.dtype}")
    return {"mask": batch_first(steps, time_dim)}


def check_steps(spikes: Sequence[int], given: Mapping[str, Array], loss: Loss, time_dim: int) -> None:
    """Refuse lengths or a mask that cannot belong to spikes (batch, time, ...). Raises TypeError, ValueError."""
    for name, array in given.items():
        if callable(loss):
            raise unfit(
                TypeError, name, "None with a loss that is a function", "an array", "count steps in the function"
            )
        wanted = list(spikes[:1] if name == "lengths" else spikes[:2])
        shape = list(np.shape(array))
        if shape != wanted:
            what = "(batch,)" if name == "lengths" else _ORDERS[time_dim].replace(", ...", "")
            shown = shape if len(shape) != 2 else _shown(shape, time_dim)
            as_wanted = wanted if len(wanted) != 2 else _shown(wanted, time_dim)
            raise unfit(ValueError, name, f"of shape {as_wanted}, {what}", shown)


def check_shapes(
    spikes: Sequence[int], targets: Sequence[int] | None, loss: Loss, input_shape: Any, time_dim: int
) -> None:
    """Refuse shapes, (batch, time, ...), that cannot belong together. Raises ValueError, which says how axes are told.

    Args:
        spikes, targets: their shapes.
        input_shape: of a sample in a step, if it is known.
    """
    if len(spikes) < 2 or (isinstance(input_shape, Sequence) and list(spikes[2:]) != list(input_shape)):
        sample = "..." if input_shape is None else ", ".join(map(str, input_shape))
        wanted = _ORDERS[time_dim].replace("...", sample).replace(", )", ")")
        raise ValueError(f"spikes must have shape {wanted}, got {_shown(spikes, time_dim)}{_hint(time_dim)}")
    kinds = _kinds(loss)
    if targets is None or not kinds & (_PER_STEP | _PER_SAMPLE | _EITHER):
        return
    common = 2 if kinds & _PER_STEP or (not kinds & _PER_SAMPLE and len(targets) > 1) else 1
    if tuple(targets[:common]) != tuple(spikes[:common]):
        what = "sample and step" if common == 2 else "sample"
        got = _shown(targets, time_dim) if common == 2 else list(targets)
        raise ValueError(
            f"targets must have one value for each {what} of the spikes, which are {_ORDERS[time_dim]} of shape "
            f"{_shown(spikes, time_dim)}, got shape {got}{_hint(time_dim)}"
        )


def _kinds(loss: Loss) -> frozenset[str]:
    """The kinds of a loss, or of those of a sum; what is no name is for the server to refuse."""
    entries = loss if isinstance(loss, list | tuple) else [loss]
    kinds = [entry.get("kind") if isinstance(entry, Mapping) else entry for entry in entries]
    return frozenset(kind for kind in kinds if isinstance(kind, str))


def _shown(shape: Sequence[int], time_dim: int) -> list[int]:
    """A shape (batch, time, ...) in the order of the caller."""
    if len(shape) < 2:
        return list(shape)
    batch, *rest = shape
    time = rest.pop(0)
    return [[time, batch, *rest], [batch, time, *rest], [batch, *rest, time]][time_dim]


def _hint(time_dim: int) -> str:
    other = "; for time first pass time_dim=0" if time_dim == 1 else f"; time_dim is {time_dim}, for batch first pass 1"
    return f"{other} where the model's handle is made"
