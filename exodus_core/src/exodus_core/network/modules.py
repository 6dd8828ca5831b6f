"""The layers as modules: (batch, time, *shape) in, (batch, time, *shape) out; parameters drawn from one generator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from exodus_core.errors import ArgumentError
from exodus_core.network import layers
from exodus_core.network.layers import Layer, Shape, per_dimension
from exodus_core.pieces import carried
from exodus_core.pooling import avg_pool2d, max_pool2d
from exodus_core.recomputation import refuse_recomputation
from exodus_core.sparse.convolution import conv1d, conv2d
from exodus_core.sparse.product import linear
from exodus_core.sparse.spikes import PackedSpikes


class Drawing:
    """Makes the initial values of parameters, in order, from one generator on the CPU: equal seeds, equal bits."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype) -> None:
        self.generator = generator
        self.dtype = dtype

    def uniform(self, shape: Shape, fan_in: int, gain: float = 1.0) -> torch.nn.Parameter:
        """gain U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what torch.nn.Linear and Conv start from, times gain."""
        bound = 1 / math.sqrt(fan_in)
        values = torch.empty(shape, dtype=self.dtype, device="cpu").uniform_(-bound, bound, generator=self.generator)
        return torch.nn.Parameter(values.mul_(gain))

    def constant(self, values: Any) -> Tensor:
        """Numbers of the description as a tensor."""
        return torch.tensor(values, dtype=self.dtype, device="cpu")


class Weights(torch.nn.Module):
    """A weight and perhaps a bias: the base of linear, convolution and recurrent connections."""

    weight: torch.nn.Parameter
    bias: torch.nn.Parameter | None

    def __init__(self, shape: Shape, bias: bool, gain: float, draw: Drawing) -> None:
        super().__init__()
        fan_in = math.prod(shape[1:])
        self.weight = draw.uniform(shape, fan_in, gain)
        self.bias = draw.uniform(shape[:1], fan_in) if bias else None


class Linear(Weights):
    """As torch.nn.Linear; in time proportional to few spikes, unless exact."""

    exact = False

    def __init__(self, layer: layers.Linear, shape: Shape, draw: Drawing) -> None:
        super().__init__((layer.out_features, *shape), layer.bias, layer.gain, draw)

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        return linear(x, self.weight, self.bias, exact=self.exact)


class Conv(Weights):
    """As torch.nn.Conv1d and Conv2d, on every step; in time proportional to few spikes, unless exact."""

    exact = False

    def __init__(self, layer: layers.Conv1d | layers.Conv2d, shape: Shape, draw: Drawing) -> None:
        super().__init__(dict(layer.parameters(shape))["weight"], layer.bias, layer.gain, draw)
        n = layer.dimensions
        self.options = [per_dimension(v, n) for v in (layer.stride, layer.padding, layer.dilation)]
        self.groups = layer.groups
        self.function: Callable[..., Tensor] = conv1d if n == 1 else conv2d

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        return self.function(x, self.weight, self.bias, *self.options, self.groups, exact=self.exact)


class Pool(torch.nn.Module):
    """Sums, means or largest values of windows; sums have no division, so that they are exact."""

    def __init__(self, layer: layers.PoolLayer, shape: Shape, draw: Drawing) -> None:
        super().__init__()
        # One dimension is two of which the first has length 1.
        lead = 3 - len(shape)
        kernel, stride, padding = layer.windows(shape)
        windows: dict[str, Any] = {
            "kernel_size": (1,) * lead + kernel,
            "stride": (1,) * lead + stride,
            "padding": (0,) * lead + padding,
        }
        if isinstance(layer, layers.MaxPool | layers.AdaptiveMaxPool):
            self.function: Callable[[Tensor], Tensor] = partial(max_pool2d, **windows)
        else:
            divisor = 1 if isinstance(layer, layers.SumPool) else None
            self.function = partial(avg_pool2d, **windows, divisor_override=divisor)

    def forward(self, x: Tensor) -> Tensor:
        image = x.flatten(0, 1)
        image = image.unsqueeze(2) if x.dim() == 4 else image
        y = self.function(image)
        y = y.squeeze(2) if x.dim() == 4 else y
        return y.view(*x.shape[:2], *y.shape[1:])


class Flatten(torch.nn.Module):
    """All dimensions but batch and time in one."""

    def __init__(self, layer: Layer, shape: Shape, draw: Drawing) -> None:
        super().__init__()

    def forward(self, x: Tensor | PackedSpikes) -> Tensor | PackedSpikes:
        return x.flatten() if isinstance(x, PackedSpikes) else x.flatten(2)


class Reshape(torch.nn.Module):
    """The same elements in another shape."""

    def __init__(self, layer: layers.Reshape, shape: Shape, draw: Drawing) -> None:
        super().__init__()
        self.shape = layer.shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], *self.shape)


class Dropout(torch.nn.Module):
    """One mask for all steps of a sample, drawn from the network's generator."""

    generator: torch.Generator  # given by the network

    def __init__(self, layer: layers.Dropout, shape: Shape, draw: Drawing) -> None:
        super().__init__()
        self.p = layer.p
        self._enter()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies and pickles have a number of their own, as they have a generator."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._enter()

    def _enter(self) -> None:
        self.number = next(_numbers)
        _DROPOUTS[self.number] = self

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        piece = carried.current()
        if piece is not None:
            return x * piece.share(self, lambda: self.mask(x))
        return x * (_mask(x.detach(), self.number) if torch.compiler.is_compiling() else self.mask(x))

    def mask(self, x: Tensor) -> Tensor:
        """A mask for x, shape (batch, 1, *shape), drawn on the device of the generator."""
        refuse_recomputation("dropout that draws from a network's generator", "build the network without dropout")
        kept = 1 - self.p
        mask = torch.empty((x.shape[0], 1, *x.shape[2:]), dtype=x.dtype, device=self.generator.device)
        mask.bernoulli_(kept, generator=self.generator)
        return (mask.div_(kept) if kept else mask).to(x.device)


# torch.compile has no place for a generator in a graph: there a mask is an operator, which finds its layer by number.
_DROPOUTS: WeakValueDictionary[int, Dropout] = WeakValueDictionary()
_numbers = itertools.count()


@torch.library.custom_op("exodus::dropout_mask", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _mask(x: Tensor, number: int) -> Tensor:
    return _DROPOUTS[number].mask(x)


@_mask.register_fake
def _(x: Tensor, number: int) -> Tensor:
    return x.new_empty((x.shape[0], 1, *x.shape[2:]))


class BatchNorm(torch.nn.Module):
    """Normalises over batch, time and space."""

    running_mean: Tensor
    running_var: Tensor
    weight: torch.nn.Parameter | None
    bias: torch.nn.Parameter | None

    def __init__(self, layer: layers.BatchNorm, shape: Shape, draw: Drawing) -> None:
        super().__init__()
        self.momentum, self.eps = layer.momentum, layer.eps
        ones = torch.ones(shape[0], dtype=draw.dtype, device="cpu")
        self.weight = torch.nn.Parameter(ones.clone()) if layer.affine else None
        self.bias = torch.nn.Parameter(torch.zeros_like(ones)) if layer.affine else None
        self.register_buffer("running_mean", torch.zeros_like(ones))
        self.register_buffer("running_var", ones)

    @property
    def not_in_pieces(self) -> str | None:
        """Why it cannot run in pieces of a sequence now, or None."""
        return carried.STATISTICS_IN_PIECES if self.training else None

    def forward(self, x: Tensor) -> Tensor:
        merged = x.flatten(0, 1)
        if self.training and merged.numel() == merged.shape[1]:
            expected = "more than one sample, step or place in space, for batch_norm in training"
            raise ArgumentError("x", expected, f"shape {tuple(x.shape)}")
        y = F.batch_norm(
            merged,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        return y.view(*x.shape[:2], *y.shape[1:])


class Add(torch.nn.Module):
    """The sum of its inputs."""

    def __init__(self, layer: Layer, shape: Shape, draw: Drawing) -> None:
        super().__init__()

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = first + other
        return first


class Concat(torch.nn.Module):
    """Its inputs one after the other along an axis of a sample."""

    def __init__(self, layer: layers.Concat, shape: Shape, draw: Drawing) -> None:
        super().__init__()
        self.axis = 2 + layer.axis  # behind batch and time

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.axis)
