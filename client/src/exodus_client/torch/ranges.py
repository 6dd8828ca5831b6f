"""Keeps parameters that are trained where neurons are defined: decays in [0, 1], the threshold positive.

The remote layer's copy of `exodus_core.ranges`, which the client does not need.

An optimiser knows no bounds. torch calls a hook after each step of any optimiser of torch.optim; the one here projects
those of the parameters that it has changed which belong to a neuron. Forward passes change nothing, so that they can be
compiled, recomputed, run twice before a backward pass and given other parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

# At zero a neuron would fire without input.
MIN_THRESHOLD = 1e-3
_DECAY = (0.0, 1.0)
RANGES: dict[str, tuple[float, float | None]] = {
    "alpha": _DECAY,
    "synapse_alpha": _DECAY,
    "adapt_alpha": _DECAY,
    "threshold": (MIN_THRESHOLD, None),
}

# The attribute of a parameter that has its range: the hook sees parameters, and not whose they are.
_RANGE = "_exodus_range"


class Bounded(torch.nn.Module):
    """A module whose own parameters, by their names in RANGES, stay in range when an optimiser of torch.optim steps."""

    def register_parameter(self, name: str, param: torch.nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        self._mark()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._mark()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._mark()  # a conversion may make other parameters
        return self

    def _mark(self) -> None:
        for name, limits in RANGES.items():
            parameter = self._parameters.get(name)
            if parameter is not None:
                setattr(parameter, _RANGE, limits)
                _install()

    def constrain(self) -> None:
        """Bring trained parameters back to where the neuron is defined: decays in [0, 1], the threshold at least 0.001.

        Every optimiser of torch.optim does so after its step; to be called where parameters are changed otherwise.
        """
        with torch.no_grad():
            for name, limits in RANGES.items():
                parameter = self._parameters.get(name)
                if parameter is not None:
                    parameter.clamp_(*limits)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                limits = getattr(parameter, _RANGE, None)
                if limits is not None and parameter.grad is not None:
                    parameter.clamp_(*limits)


@functools.cache
def _install() -> None:
    register_optimizer_step_post_hook(_after_step)
