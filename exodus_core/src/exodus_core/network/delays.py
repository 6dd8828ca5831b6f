"""The kinds of layers with delays, delay and delayed_linear: their fields, and their modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from exodus_core import ranges
from exodus_core.delays import continued, delay, delayed_linear
from exodus_core.network.layers import COUNT, Layer, Parameters, Shape, text
from exodus_core.network.modules import Drawing, Weights
from exodus_core.pieces import carried
from exodus_core.schema import Place, boolean, extent, integer, nested, number, optional, some_of

_DELAYS = optional(nested(number(0)))
#: Two rows of a signal are the least that there is an interpolation between.
_MAX_DELAY = integer(1, 2**20)


def _largest(values: Any) -> float:
    """The largest of what `nested` reads."""
    return max(map(_largest, values)) if isinstance(values, tuple) else values


@dataclass(frozen=True, kw_only=True)
class _Delayed(Layer):
    delays: Any
    max_delay: int | None
    trainable: tuple[str, ...]

    def _check_delays(self, wide: Shape, of: str, place: Place) -> None:
        """Checks delays that broadcast to a shape."""
        if self.max_delay is None and self.trainable:
            raise place.at("max_delay").refuse(f"{_MAX_DELAY.wanted} if delays are trained", None)
        if self.delays is None:
            if not self.trainable:
                raise place.at("delays").refuse("a number of at least 0, or a list of such, if not trained", None)
            return
        values = extent(self.delays)
        tail = wide[len(wide) - len(values) :]
        if len(values) > len(wide) or any(v not in (1, s) for v, s in zip(values, tail, strict=True)):
            expected = f"values that broadcast to the {of}, {text(wide)}"
            raise place.at("delays").refuse_as(expected, f"values of shape {text(values)}")
        largest, most = _largest(self.delays), _MAX_DELAY.read(self._most, place.at("max_delay"))
        if largest > most:
            raise place.at("delays").refuse(f"at most {most}, the max_delay", largest)

    @property
    def _most(self) -> int:
        """max_delay, filled in."""
        return max(1, math.ceil(_largest(self.delays))) if self.max_delay is None else self.max_delay

    def _own(self, wide: Shape) -> Parameters:
        return (("delays", wide if self.delays is None else extent(self.delays)),) if self.trainable else ()


@dataclass(frozen=True, kw_only=True)
class Delay(_Delayed):
    """A delay for each element of its input, y[t] = x[t - d], as `exodus_core.delay`."""

    kind: ClassVar[str] = "delay"

    delays: Annotated[Any, _DELAYS, "delays in steps; null: drawn from [0, max_delay], if they are trained"] = None
    max_delay: Annotated[
        int | None, optional(_MAX_DELAY), "upper bound of the delays; null, if not trained: the largest, rounded up"
    ] = None
    trainable: Annotated[tuple[str, ...], some_of("delays"), '["delays"] if they are learned'] = ()

    def filled(self, shape: Shape) -> Layer:
        return replace(self, max_delay=self._most)

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        self._check_delays(shapes[0], "input", place)
        return shapes[0]

    def parameters(self, shape: Shape) -> Parameters:
        return self._own(shape)


@dataclass(frozen=True, kw_only=True)
class DelayedLinear(_Delayed):
    """A product with a delay for each synapse, y_j[t] = b_j + sum over i of W_ji x_i[t - d_ji]."""

    kind: ClassVar[str] = "delayed_linear"

    out_features: Annotated[int, COUNT, "number of outputs"]
    max_delay: Annotated[int, _MAX_DELAY, "upper bound of the delays, in steps"]
    in_features: Annotated[int | None, optional(COUNT), "number of inputs; null: as the input has"] = None
    delays: Annotated[Any, _DELAYS, "delays in steps; null: drawn from [0, max_delay], if they are trained"] = None
    width: Annotated[
        float | None,
        optional(number(0, above=True)),
        "standard deviation of a normal density around each delay; null: linear interpolation",
    ] = None
    bias: Annotated[bool, boolean, "add b"] = True
    gain: Annotated[float, number(), "factor on the initial weights"] = 1.0
    trainable: Annotated[tuple[str, ...], some_of("delays"), '["delays"] if they are learned'] = ("delays",)

    def filled(self, shape: Shape) -> Layer:
        return replace(self, in_features=shape[0])

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        (shape,) = shapes
        if len(shape) != 1:
            raise place.at("inputs").refuse_as("an input of shape [features] (kind flatten makes one)", text(shape))
        if self.in_features not in (None, shape[0]):
            raise place.at("in_features").refuse(f"{shape[0]}, as its input has, or null", self.in_features)
        self._check_delays((self.out_features, shape[0]), "weights", place)
        return (self.out_features,)

    def parameters(self, shape: Shape) -> Parameters:
        wide = (self.out_features, *shape)
        bias = (("bias", (self.out_features,)),) if self.bias else ()
        return (("weight", wide), *bias, *self._own(wide))


class _DelayedModule(ranges.Bounded):
    """Keeps delays: trained ones as Parameter, lists as tensors, else a number."""

    delays: float | Tensor
    max_delay: int

    @property
    def limits(self) -> dict[str, tuple[float, float | None]]:
        """The ranges, by the names of parameters."""
        return {"delays": (0.0, float(self.max_delay))}

    def _keep_delays(self, layer: Delay | DelayedLinear, wide: Shape, draw: Drawing) -> None:
        assert layer.max_delay is not None  # it is filled in
        self.max_delay = layer.max_delay
        if layer.delays is None:
            drawn = torch.empty(wide, dtype=draw.dtype, device="cpu")
            self.delays = torch.nn.Parameter(drawn.uniform_(0, self.max_delay, generator=draw.generator))
        elif layer.trainable:
            self.delays = torch.nn.Parameter(draw.constant(layer.delays))
        elif isinstance(layer.delays, tuple):
            # Not persistent: they are part of the description and never change.
            self.register_buffer("delays", draw.constant(layer.delays), persistent=False)
        else:
            self.delays = layer.delays

    def _delayed(self, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        piece = carried.current()
        if piece is None:
            return compute(x)
        return piece.carry(self, x.shape[1], lambda state: continued(x, state, self.max_delay, 1, compute))


class DelayModule(_DelayedModule):
    """A delay for each element."""

    def __init__(self, layer: Delay, shape: Shape, draw: Drawing) -> None:
        super().__init__()
        self._keep_delays(layer, shape, draw)

    def forward(self, x: Tensor) -> Tensor:
        return self._delayed(x, lambda whole: delay(whole, self.delays, max_delay=self.max_delay))


class DelayedLinearModule(_DelayedModule, Weights):
    """A product with a delay for each synapse; in time proportional to few spikes, unless exact."""

    weights: ClassVar[tuple[str, ...]] = ("weight", "bias")
    exact = False

    def __init__(self, layer: DelayedLinear, shape: Shape, draw: Drawing) -> None:
        wide = (layer.out_features, *shape)
        self.max_delay = layer.max_delay  # before there are parameters, whose range it is
        Weights.__init__(self, wide, layer.bias, layer.gain, draw)
        self._keep_delays(layer, wide, draw)
        self.width = layer.width

    def forward(self, x: Tensor) -> Tensor:
        return self._delayed(
            x,
            lambda whole: delayed_linear(
                whole,
                self.weight.to(whole.dtype),
                self.delays,
                None if self.bias is None else self.bias.to(whole.dtype),
                max_delay=self.max_delay,
                width=self.width,
                exact=self.exact,
            ),
        )
