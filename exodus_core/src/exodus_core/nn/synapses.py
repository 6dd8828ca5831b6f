"""Synapses that save work where their input is mostly zeros: Linear, Conv1d and Conv2d."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exodus_core.sparse.convolution import conv1d, conv2d
from exodus_core.sparse.product import linear
from exodus_core.sparse.spikes import PackedSpikes


def _is_transformed() -> bool:
    """True within a transform of torch.func, which cannot look at values to see where they are zeros."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


class Linear(torch.nn.Linear):
    """torch.nn.Linear, in time proportional to the spikes where its input is mostly zeros: see `exodus_core.linear`.

    Args:
        in_features, out_features, bias, device, dtype: as of torch.nn.Linear, whose state_dict it has.
        exact: compute the dense product, whose bits are torch's.

    Raises:
        ArgumentTypeError, ArgumentError: the input does not fit the weight.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        exact: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.exact = exact

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        """x W^T + b, shape (..., out_features), of x with shape (..., in_features)."""
        return linear(x, self.weight, self.bias, exact=self.exact or _is_transformed())

    def extra_repr(self) -> str:
        """The sizes, for repr()."""
        return super().extra_repr() + (", exact=True" if self.exact else "")


class Conv1d(torch.nn.Conv1d):
    """torch.nn.Conv1d, in time proportional to the spikes where its input is mostly zeros: see `exodus_core.conv1d`.

    Args:
        arguments, options: as of torch.nn.Conv1d, whose state_dict it has.
        exact: compute the dense convolution, whose bits are torch's. So are those of a padding_mode other than "zeros"
            or a padding that is named.
    """

    def __init__(self, *arguments: Any, exact: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.exact = exact

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        """The convolution of x, shape (..., in_channels, length)."""
        return _convolved(self, conv1d, x)


class Conv2d(torch.nn.Conv2d):
    """torch.nn.Conv2d, in time proportional to the spikes where its input is mostly zeros: see `exodus_core.conv2d`.

    Args:
        arguments, options, exact: as of `Conv1d`.
    """

    def __init__(self, *arguments: Any, exact: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.exact = exact

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        """The convolution of x, shape (..., in_channels, height, width)."""
        return _convolved(self, conv2d, x)


def _convolved(layer: Conv1d | Conv2d, function: Callable[..., Tensor], x: Tensor | PackedSpikes) -> Tensor:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        dense = x.unpack(layer.weight.dtype) if isinstance(x, PackedSpikes) else x
        padded: Tensor = layer._conv_forward(dense, layer.weight, layer.bias)
        return padded
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return function(x, layer.weight, layer.bias, *options, exact=layer.exact or _is_transformed())
