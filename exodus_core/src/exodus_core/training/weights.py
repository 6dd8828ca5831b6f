"""Weights alone, from a file or from elsewhere: all of a network's, or those that names choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from exodus_core.errors import ArgumentError, ArgumentTypeError, must_be
from exodus_core.network import Network
from exodus_core.training.errors import StateError
from exodus_core.training.meanings import meanings
from exodus_core.training.states import GRADIENTS, OPTIMIZER, RANDOM, WEIGHTS, check_mapping


class LoadedWeights(NamedTuple):
    """Names of weights: parameters and running statistics.

    Attributes:
        loaded: those that were replaced.
        missing: those wanted that were not given.
        unexpected: those given that the network does not have.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]


def chosen(net: Network, names: Sequence[str] | None) -> list[str]:
    """The weights that names of layers or weights mean; None: all.

    Raises:
        ArgumentError: the network has no such layer or weight.
        ArgumentTypeError: names are no list or tuple of str.
    """
    own = list(net.state_dict())
    if names is None:
        return own
    if not isinstance(names, list | tuple):
        raise ArgumentTypeError("names", "a list of names of layers or weights, or None", type(names).__name__)
    meaning, wanted = meanings(own), set[str]()
    for name in names:
        if not isinstance(name, str):
            raise ArgumentTypeError("names", "a list of str", f"one with {type(name).__name__}")
        if name not in meaning:
            raise ArgumentError("names", "names of layers with weights, or of weights", repr(name))
        wanted.update(meaning[name])
    if not wanted:
        raise ArgumentError("names", "one or more names of layers or weights", "none")
    return [key for key in own if key in wanted]


def fitting(
    given: Mapping[str, Tensor], net: Network, names: Sequence[str] | None, partial: bool
) -> tuple[dict[str, Tensor], LoadedWeights]:
    """The weights to load, by the names of the network, in its dtypes and on its device, checked; and what they are.

    Raises:
        StateError: one is missing or unknown unless `partial`, none is there, or one has another shape or dtype, or
            elements that are not finite in the dtype of the network.
        ArgumentError: the network has no such layer or weight.
        ArgumentTypeError: the weights are no mapping by names, or names no list or tuple of str.
    """
    check_mapping("weights", given)
    own, wanted = net.state_dict(), chosen(net, names)
    by_name = _named(given, own)
    loaded = [name for name in wanted if name in by_name]
    missing = [name for name in wanted if name not in by_name]
    unexpected = [] if names is not None else [name for name in by_name if name not in own]
    if not partial and (missing or unexpected):
        what = f"{', '.join(unexpected[:4])}" if unexpected else f"no {', '.join(missing[:4])}"
        raise StateError(
            must_be("weights", "all that are wanted, and no others", what, "partial takes those there are")
        )
    if not loaded:
        raise StateError(
            must_be("weights", f"one or more of {', '.join(wanted[:4])}", ", ".join(list(by_name)[:4]) or "none")
        )
    taken = {name: _converted(name, by_name[name], own[name]) for name in loaded}
    return taken, LoadedWeights(loaded, missing, unexpected)


def _named(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of the network: those of a whole state have a prefix there, and others beside them."""
    whole = any(name.startswith(f"{WEIGHTS}.") and name not in own for name in given)
    found = {}
    for name, value in given.items():
        part, _, rest = name.partition(".")
        if not whole or name in own or part not in (WEIGHTS, OPTIMIZER, GRADIENTS, RANDOM):
            found[name] = value
        elif part == WEIGHTS:
            found[rest] = value
    return found


def _converted(name: str, value: object, like: Tensor) -> Tensor:
    """A weight with dtype and device of another, checked."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        raise StateError(must_be(name, "a dense tensor", type(value).__name__))
    if value.dtype != like.dtype and not (value.is_floating_point() and like.is_floating_point()):
        raise StateError(must_be(name, f"{like.dtype}, or another float", value.dtype))
    if value.shape != like.shape:
        raise StateError(must_be(name, f"of shape {tuple(like.shape)}", tuple(value.shape)))
    converted = value.detach().to(like.device, like.dtype)
    if not bool(torch.isfinite(converted).all()):
        raise StateError(must_be(name, f"finite in {like.dtype}", "an element that is not"))
    return converted
