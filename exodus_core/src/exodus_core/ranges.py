"""Keeps trained parameters in the range for which neurons are defined: decays in [0, 1], the threshold positive.

An optimiser knows no bounds. torch calls a hook after each step of any optimiser of torch.optim; the hook here projects
the parameters of neurons that the step has changed. Forward passes change nothing, so that they can be compiled,
recomputed, run twice before a backward pass and given other parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

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

# The attribute of a parameter that holds its range: the hook sees parameters, not their modules.
_RANGE = "_exodus_range"


class Bounded(torch.nn.Module):
    """A module whose own parameters stay in range, by their names, when an optimiser of torch.optim steps.

    Attributes:
        weights: names of own parameters that are weights, which the others, constants of a model, are not.
    """

    weights: ClassVar[tuple[str, ...]] = ()

    @property
    def limits(self) -> dict[str, tuple[float, float | None]]:
        """The ranges, by the names of parameters."""
        return RANGES

    def constants(self) -> Iterator[torch.nn.Parameter]:
        """The own parameters that are not weights."""
        for name, parameter in self.named_parameters(recurse=False):
            if name not in self.weights:
                yield parameter

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
        for name, limits in self.limits.items():
            parameter = self._parameters.get(name)
            if parameter is not None:
                setattr(parameter, _RANGE, limits)
                _install()

    def constrain(self) -> None:
        """Projects trained parameters to their range: decays in [0, 1], the threshold at least 0.001, delays.

        Every step of an optimiser of torch.optim does so; to be called after other changes of the parameters.
        """
        with torch.no_grad():
            for name, limits in self.limits.items():
                parameter = self._parameters.get(name)
                if parameter is not None:
                    parameter.clamp_(*limits)


def release(parameter: torch.nn.Parameter) -> None:
    """Lets a parameter leave its range from here on."""
    if hasattr(parameter, _RANGE):
        delattr(parameter, _RANGE)


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
