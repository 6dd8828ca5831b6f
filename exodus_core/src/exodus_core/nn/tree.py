"""The neurons of a whole module at once: their states, their trained parameters and the ranges of those."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from exodus_core import ranges
from exodus_core.errors import ArgumentError, ArgumentTypeError

Module = TypeVar("Module", bound=torch.nn.Module)


def reset(module: torch.nn.Module) -> None:
    """Drops the states of all layers in a module: the next call starts from rest.

    Calls `reset_state` of every part that has it, layers of one's own too.

    Raises:
        ArgumentTypeError: module is no torch.nn.Module.
    """
    _call_each(module, "reset_state")


def detach(module: torch.nn.Module) -> None:
    """Keeps the states of all layers in a module and cuts their gradients: truncated backpropagation through time.

    Calls `detach_state` of every part that has it, layers of one's own too.

    Raises:
        ArgumentTypeError: module is no torch.nn.Module.
    """
    _call_each(module, "detach_state")


def constrain(module: torch.nn.Module) -> None:
    """Projects the trained parameters of all neurons in a module to their ranges: alpha to [0, 1], thresholds above 0.

    Every step of an optimiser of torch.optim does so. To be called after other changes: an optimiser of another
    library, an average of weights, noise.

    Raises:
        ArgumentTypeError: module is no torch.nn.Module.
    """
    for part in _parts(module):
        if isinstance(part, ranges.Bounded):
            part.constrain()


def bounded(module: Module) -> Module:
    """Gives trained alphas and thresholds in a module a form that cannot leave their ranges; returns the module.

    alpha = sigmoid(a), threshold = 0.001 + softplus(b), and a and b are trained instead, by any optimiser. The
    parameters are then `parametrizations.alpha.original` and so on of torch.nn.utils.parametrize, in the state_dict
    too; such modules can be copied, and saved by their state_dict, not pickled.

    Raises:
        ArgumentTypeError: module is no torch.nn.Module.
        ArgumentError: an alpha is at an end of its range, or a threshold is, where the gradient would be zero.
    """
    for part in list(_parts(module)):
        if not isinstance(part, ranges.Bounded):
            continue
        for name, limits in ranges.RANGES.items():
            parameter = part._parameters.get(name)
            if parameter is not None:
                form = _Sigmoid() if limits[1] is not None else _Softplus(limits[0])
                if not parameter.is_meta:
                    form.check(name, parameter.detach())
                ranges.release(parameter)
                parametrize.register_parametrization(part, name, form)
    return module


def neuron_parameters(module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """The trained parameters of the neurons in a module: alpha, threshold, reset_by, min_membrane, taps, delays.

    They are constants of a model, which weight decay would pull to 0: give them to an optimiser in a group of their own
    with `weight_decay=0`. Networks of `exodus_core.network.build` in the module count too, and what `bounded` made.
    """
    for part in module.modules():
        if isinstance(part, ranges.Bounded):
            yield from part.constants()
            if parametrize.is_parametrized(part):
                yield from part.parametrizations.parameters()  # type: ignore[union-attr]


def _parts(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    if not isinstance(module, torch.nn.Module):
        raise ArgumentTypeError("module", "a torch.nn.Module", type(module).__name__)
    return module.modules()


def _call_each(module: torch.nn.Module, method: str) -> None:
    for part in _parts(module):
        call = getattr(part, method, None)
        if callable(call):
            call()


class _Sigmoid(torch.nn.Module):
    """(0, 1) of any number."""

    def check(self, name: str, value: Tensor) -> None:
        low, high = value.min().item(), value.max().item()
        if not 0 < low <= high < 1:
            raise ArgumentError(name, "inside of [0, 1], to be bounded", low if not low > 0 else high)

    def forward(self, number: Tensor) -> Tensor:
        return torch.sigmoid(number)

    def right_inverse(self, value: Tensor) -> Tensor:
        return torch.logit(value)


class _Softplus(torch.nn.Module):
    """Numbers above `low` of any number."""

    def __init__(self, low: float) -> None:
        super().__init__()
        self.low = low

    def check(self, name: str, value: Tensor) -> None:
        if not bool((value > self.low).all()):
            raise ArgumentError(name, f"above {self.low}, to be bounded", value.min().item())

    def forward(self, number: Tensor) -> Tensor:
        return self.low + torch.nn.functional.softplus(number)

    def right_inverse(self, value: Tensor) -> Tensor:
        above = value - self.low
        return above + torch.log(-torch.expm1(-above))
