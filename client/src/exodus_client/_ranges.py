"""Keeps parameters that are trained where neurons are defined: alpha in [0, 1], the threshold positive.

An optimiser knows no bounds. torch calls a hook after each step of any optimiser of torch.optim; the one here projects
those of the optimiser's parameters that belong to a remote layer, as local layers and models on the server are.
"""

from __future__ import annotations

import functools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

# At a threshold of zero a neuron would fire without input.
RANGES: dict[str, tuple[float, float | None]] = {"alpha": (0.0, 1.0), "threshold": (1e-3, None)}

_watched: WeakValueDictionary[int, torch.nn.Module] = WeakValueDictionary()


def constrain(module: torch.nn.Module, only: set[int] | None = None) -> None:
    """Project a layer's own trained parameters to their ranges; `only`: those with these ids."""
    with torch.no_grad():
        for name, (low, high) in RANGES.items():
            parameter = module._parameters.get(name)
            if parameter is not None and (only is None or (id(parameter) in only and parameter.grad is not None)):
                parameter.clamp_(low, high)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    # Not values(): another thread may make a layer meanwhile.
    for layer in [found for reference in _watched.valuerefs() if (found := reference()) is not None]:
        constrain(layer, stepped)


@functools.cache
def _install() -> None:
    register_optimizer_step_post_hook(_after_step)


def watch(module: torch.nn.Module) -> None:
    """Constrain a layer after each step of an optimiser that has its parameters."""
    if any(module._parameters.get(name) is not None for name in RANGES):
        _watched[id(module)] = module
        _install()
