"""Descriptions, options and numbers as plain data, which can travel; everything else is refused by its place."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exodus_client._checks import integer, real, shown, unfit, values_of
from exodus_client.neuron import Kernel
from exodus_client.surrogate import Surrogate
from exodus_client.wire import Tensor, is_torch

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

#: Examples of what is wanted in places where people try something else.
_EXAMPLES = {
    "surrogate": "a dict such as {'kind': 'arctan'}",
    "optimizer": "'sgd', 'adam', 'adamw', or a dict such as {'kind': 'adam', 'lr': 1e-3}",
    "loss": "a name such as 'max_over_time_ce', a dict with its kind, a list of such, or a function of the outputs",
}
_ANYTHING = "a number, a string, a list or a dict"


def plain(place: str, given: Any) -> Any:
    """The same as numbers, strings, lists and dicts.

    Scalars and one-dimensional arrays of numpy and torch become numbers and lists, and this package's own surrogates
    and kernels the dicts that describe them.

    Args:
        place: what errors call it, such as "layers[1].alpha".

    Raises:
        TypeError: there is something else in it.
        ValueError: an integer is beyond 64 bits.
    """
    if given is None or isinstance(given, bool | int | float | str):
        found = given.item() if isinstance(given, np.generic) else given
        if isinstance(found, int) and not -(2**63) <= found < 2**64:
            raise ValueError(f"{place} must be an integer of at most 64 bits, got {shown(found)}")
        return found
    if isinstance(given, Surrogate | Kernel):
        return given.params()
    if isinstance(given, Mapping):
        return {name: plain(f"{place}.{name}", value) for name, value in given.items()}
    if isinstance(given, list | tuple):
        return [plain(f"{place}[{index}]", value) for index, value in enumerate(given)]
    if is_torch(given) or isinstance(given, np.ndarray | np.generic):
        return _from_array(place, given)
    raise refused(place, given)


def network_of(layers: Any, input_shape: Any, dtype: str, checkpoint_steps: Any = None) -> dict[str, Any]:
    """The description of a network from its layers, or from the whole description. Raises TypeError, ValueError."""
    steps = plain("checkpoint_steps", checkpoint_steps)
    # Absent where it is None: servers from before it was there take all other descriptions.
    more = {} if steps is None else {"checkpoint_steps": integer("checkpoint_steps", steps, 1)}
    if isinstance(layers, Mapping):
        return {name: plain(name, value) for name, value in layers.items()} | more
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise unfit(TypeError, "layers", "a list of dicts, one a layer, or the whole description", _named(layers))
    for index, layer in enumerate(layers):
        if not isinstance(layer, Mapping):
            example = "a dict such as {'kind': 'lif', 'alpha': 0.95}"
            raise unfit(TypeError, f"layers[{index}]", example, _named(layer))
    if not isinstance(dtype, str) or dtype not in ("float32", "float64"):
        raise TypeError(f"dtype must be 'float32' or 'float64', got {shown(dtype)}")
    described = plain("layers", list(layers))
    return {"input_shape": plain("input_shape", input_shape), "dtype": dtype, "layers": described} | more


def kind_of(name: str, given: Any) -> Any:
    """A choice by name, or by a dict with its options; None as it is. Raises TypeError."""
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, Mapping):
        raise refused(name, given)
    return plain(name, given)


def loss_of(given: Any) -> Any:
    """A loss by name, by a dict with its options, or by a list of such; None as it is. Raises TypeError."""
    return plain("loss", list(given)) if isinstance(given, list | tuple) else kind_of("loss", given)


def names_of(name: str, given: Any) -> list[str] | None:
    """A list of names, or None. Raises TypeError."""
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(entry, str) for entry in given):
        raise unfit(TypeError, name, "a list of names of layers or parameters", _named(given))
    return list(given)


def rates_of(name: str, given: Any) -> dict[str, float] | None:
    """Numbers by the names of layers or parameters, or None. Raises TypeError, ValueError."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise unfit(TypeError, name, "a dict of numbers by the names of layers or parameters", _named(given))
    return {str(key): real(f"{name}[{key!r}]", plain(name, rate)) for key, rate in given.items()}


def check_loss(loss: object) -> None:
    """Raises TypeError if something is no loss of a training call."""
    if loss is None:
        raise refused("loss", loss)
    if not callable(loss):
        loss_of(loss)


def by_name(name: str, given: object) -> None:
    """Raises TypeError if something is no mapping of names to arrays."""
    if not isinstance(given, Mapping):
        advice = "load(path) reads a file" if isinstance(given, str | os.PathLike) else ""
        raise unfit(TypeError, name, "a dict of arrays by name", _named(given), advice)


def number(name: str, given: Any) -> float | None:
    """A finite number, or None. Raises TypeError, ValueError."""
    found = plain(name, given)
    return None if found is None else real(name, found)


def model_id(given: Any) -> str:
    """The id of a model. Raises TypeError, ValueError."""
    if not isinstance(given, str):
        raise unfit(TypeError, "id", "a string", _named(given), "its `id` is one" if hasattr(given, "id") else "")
    if not _ID.fullmatch(given):
        raise unfit(ValueError, "id", "1 to 64 letters, digits, - and _", shown(given))
    return given


def refused(place: str, given: Any) -> TypeError:
    """The error for something that cannot travel."""
    wanted = _EXAMPLES.get(place.rpartition(".")[2], _ANYTHING)
    return unfit(TypeError, place, wanted, _named(given))


def _from_array(place: str, given: Any) -> Any:
    array = values_of(Tensor.of(place, given)) if is_torch(given) else np.asarray(given)
    if array.ndim > 1 or array.dtype.kind not in "biuf":
        got = f"an array of shape {list(array.shape)} and {array.dtype}"
        raise unfit(TypeError, place, "a number or a list", got)
    return (array.astype(np.float64) if array.dtype.kind == "f" else array).tolist()


def _named(given: Any) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__}"
    return repr(given) if isinstance(given, bool | int | float) else type(given).__name__
