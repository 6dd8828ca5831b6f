"""Sequential models of one step, run over all steps layer by layer instead of step by step with all layers.

The value of a layer in a step depends on its inputs up to that step and on nothing else, so both orders give the same.
A layer without state gets all steps as one batch, unless what it computes depends on the batch, or it draws random
numbers: it is then called step by step, in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exodus_core import nn as layers
from exodus_core.accelerate.fused import expanded, once_if_constant
from exodus_core.accelerate.refusal import NotMappedError, of_layer
from exodus_core.errors import ArgumentError

nn = torch.nn
_FOLDED = (
    *(layers.Linear, layers.Conv1d, layers.Conv2d, layers.MaxPool2d, layers.AvgPool2d),
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d, nn.LPPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.Identity, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.LayerNorm, nn.GroupNorm),
)
_FOLDED_IN_EVAL = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout),
)


def folds(module: torch.nn.Module) -> bool:
    """True for a module that computes each sample of a batch by itself, so that steps may be samples."""
    if type(module) in _FOLDED_IN_EVAL:
        return not module.training and bool(getattr(module, "track_running_stats", True))
    if type(module) is nn.Flatten:
        return bool(module.start_dim >= 1)
    if type(module) is nn.Unflatten:
        return isinstance(module.dim, int) and module.dim >= 1
    return type(module) in _FOLDED


def is_hooked(module: Any) -> bool:
    """True for a module with hooks, which would see all steps as one batch."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def folded(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The outputs of a module for x, time first, with all steps as one batch."""
    found = module(x.flatten(0, 1))
    return found.reshape(*x.shape[:2], *found.shape[1:])


def each_step(module: torch.nn.Module, x: Tensor) -> Tensor:
    """A module without state on all steps, time first."""
    if folds(module) and not is_hooked(module):
        return once_if_constant(x, 0, lambda steps: folded(module, steps))
    return torch.stack([module(step) for step in x.unbind()])


Layer = Callable[[Any, Tensor], Any]


def _through(model: torch.nn.Sequential, x: Tensor, neurons: Callable[[Any], Layer | None]) -> Any:
    value: Any = x
    for module in model:
        if not isinstance(value, Tensor):
            raise NotMappedError("hands on a tuple within a Sequential")
        layer = neurons(module)
        if layer is not None:
            value = layer(module, value)
        elif isinstance(module, nn.Sequential):
            value = _through(module, value, neurons)
        else:
            value = each_step(module, value)
    return value


def run_snntorch(model: torch.nn.Sequential, x: Tensor) -> Any:
    """The outputs of a Sequential of snnTorch's neurons for x, time first: what its loop would stack."""
    from exodus_core.accelerate import snntorch

    known = tuple(snntorch.classes())

    def neurons(module: Any) -> Layer | None:
        if not isinstance(module, known):
            return None

        def layer(neuron: Any, value: Tensor) -> Any:
            with of_layer(neuron):
                found = snntorch.over_time(neuron, value)
            return found[0] if len(found) == 1 else found

        return layer

    return _through(model, x, neurons)


def run_norse(model: Any, x: Tensor, state: list[Any] | None) -> tuple[Tensor, list[Any]]:
    """The outputs of a SequentialState of cells for x, time first, and the states that its loop would end with."""
    from exodus_core.accelerate import norse

    cells: Any = tuple(norse.classes())
    states = [None] * len(model) if state is None else list(state)
    for index, module in enumerate(model):
        if isinstance(module, cells):
            with of_layer(module):
                x, states[index] = norse.over_time(module, x, states[index])
        elif model.stateful_layers[index]:
            x, states[index] = run_norse(module, x, states[index])
        else:
            x = each_step(module, x)
    return x, states


def repeated(model: torch.nn.Sequential, x: Tensor, steps: int) -> tuple[Tensor, int]:
    """A constant input, time first for so many steps, behind the layers that see no difference between them.

    Returns the input and the number of layers that it has passed.
    """
    passed = 0
    for module in model:
        if not folds(module) or is_hooked(module):
            break
        x = module(x)
        passed += 1
    return expanded(x.unsqueeze(0), 0, steps), passed


def time_first(x: Tensor, time_dim: int) -> Tensor:
    """x with time first."""
    if x.dim() < 2:
        raise ArgumentError("x", "of shape (time, batch, ...) or (batch, time, ...)", tuple(x.shape))
    return x.movedim(time_dim, 0)


def moved_back(value: Any, time_dim: int) -> Any:
    """Outputs, time first, with the axis of time where it was in the input."""
    if isinstance(value, Tensor):
        return value.movedim(0, time_dim)
    return tuple(part.movedim(0, time_dim) for part in value)
