"""The kinds of layers without neurons: their fields, output shapes and parameters.

Shapes here are those of one sample in one step: without batch and time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from exodus_core.pieces.carried import STATISTICS_IN_PIECES
from exodus_core.schema import Place, array, boolean, either, integer, number, optional

Shape = tuple[int, ...]
Parameters = tuple[tuple[str, Shape], ...]

COUNT = integer(1)
_GAIN = number()


def text(shape: Shape) -> str:
    """A shape for an error message, as JSON."""
    return str(list(shape))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Base class of the kinds of layers.

    Args:
        name: the layer's name, by which others take it as input and which its parameters begin with.
        inputs: names of earlier layers, or "input", the network's.
    """

    kind: ClassVar[str]
    several: ClassVar[bool] = False
    #: Why it cannot be computed for some steps at a time, or None.
    needs_all_steps: ClassVar[str | None] = None

    name: str = ""
    inputs: tuple[str, ...] = ()

    def filled(self, shape: Shape) -> Layer:
        """The layer with the fields filled in that follow from the shape of its input."""
        return self

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        """The shape of its output; raises if it does not accept those of its inputs."""
        return shapes[0]

    def parameters(self, shape: Shape) -> Parameters:
        """Names and shapes of its parameters, given the shape of its input."""
        return ()

    def statistics(self, shape: Shape) -> Parameters:
        """Names and shapes of its running statistics, given the shape of its input."""
        return ()


def _check_channels(given: int | None, found: int, place: Place) -> None:
    if given is not None and given != found:
        raise place.refuse(f"{found}, as its input has, or null", given)


@dataclass(frozen=True, kw_only=True)
class Linear(Layer):
    """x W^T + b."""

    kind: ClassVar[str] = "linear"

    out_features: Annotated[int, COUNT, "number of outputs"]
    in_features: Annotated[int | None, optional(COUNT), "number of inputs; null: as the input has"] = None
    bias: Annotated[bool, boolean, "add b"] = True
    gain: Annotated[float, _GAIN, "factor on the initial weights"] = 1.0

    def filled(self, shape: Shape) -> Layer:
        return replace(self, in_features=shape[0])

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        (shape,) = shapes
        if len(shape) != 1:
            raise place.at("inputs").refuse_as("an input of shape [features] (kind flatten makes one)", text(shape))
        _check_channels(self.in_features, shape[0], place.at("in_features"))
        return (self.out_features,)

    def parameters(self, shape: Shape) -> Parameters:
        weight = ("weight", (self.out_features, *shape))
        return (weight, ("bias", (self.out_features,))) if self.bias else (weight,)


def per_dimension(value: Any, dimensions: int) -> Shape:
    """A number or a list of them as one number for each dimension."""
    return value if isinstance(value, tuple) else (value,) * dimensions


def _image(shape: Shape, dimensions: int | None, place: Place) -> int:
    """Checks that an input is of channels and space; returns the dimensions of space."""
    wanted = {1: "[channels, length]", 2: "[channels, height, width]"}
    fits = wanted if dimensions is None else {dimensions: wanted[dimensions]}
    if len(shape) - 1 not in fits:
        raise place.at("inputs").refuse_as("an input of shape " + " or ".join(fits.values()), text(shape))
    return len(shape) - 1


def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _check_windows(sizes: Shape, shape: Shape, place: Place) -> None:
    if any(size < 1 for size in sizes):
        raise place.at("kernel_size").refuse_as(
            f"a kernel that fits in an input of shape {text(shape)}", "a larger one"
        )


@dataclass(frozen=True, kw_only=True)
class _Conv(Layer):
    dimensions: ClassVar[int]

    out_channels: int
    kernel_size: Any
    in_channels: int | None
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    bias: bool
    gain: float

    def filled(self, shape: Shape) -> Layer:
        return replace(self, in_channels=shape[0])

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        (shape,) = shapes
        n = _image(shape, self.dimensions, place)
        _check_channels(self.in_channels, shape[0], place.at("in_channels"))
        for name, channels in (("input", shape[0]), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise place.at("groups").refuse(f"a divisor of the {channels} channels of {name}", self.groups)
        options = zip(
            *(per_dimension(v, n) for v in (self.kernel_size, self.stride, self.padding, self.dilation)), strict=True
        )
        sizes = tuple(_windows(size, *option) for size, option in zip(shape[1:], options, strict=True))
        _check_windows(sizes, shape, place)
        return (self.out_channels, *sizes)

    def parameters(self, shape: Shape) -> Parameters:
        kernel = per_dimension(self.kernel_size, self.dimensions)
        weight = ("weight", (self.out_channels, shape[0] // self.groups, *kernel))
        return (weight, ("bias", (self.out_channels,))) if self.bias else (weight,)


@dataclass(frozen=True, kw_only=True)
class Conv1d(_Conv):
    """Convolution over (channels, length), as torch.nn.Conv1d."""

    kind: ClassVar[str] = "conv1d"
    dimensions: ClassVar[int] = 1

    out_channels: Annotated[int, COUNT, "number of output channels"]
    kernel_size: Annotated[Any, either(COUNT, 1), "size of the kernel"]
    in_channels: Annotated[int | None, optional(COUNT), "number of input channels; null: as the input has"] = None
    stride: Annotated[Any, either(COUNT, 1), "step between windows"] = 1
    padding: Annotated[Any, either(integer(0), 1), "zeros put at each side"] = 0
    dilation: Annotated[Any, either(COUNT, 1), "distance between the kernel's elements"] = 1
    groups: Annotated[int, COUNT, "groups of channels that do not see each other"] = 1
    bias: Annotated[bool, boolean, "add b"] = True
    gain: Annotated[float, _GAIN, "factor on the initial weights"] = 1.0


@dataclass(frozen=True, kw_only=True)
class Conv2d(_Conv):
    """Convolution over (channels, height, width), as torch.nn.Conv2d."""

    kind: ClassVar[str] = "conv2d"
    dimensions: ClassVar[int] = 2

    out_channels: Annotated[int, COUNT, "number of output channels"]
    kernel_size: Annotated[Any, either(COUNT, 2), "size of the kernel"]
    in_channels: Annotated[int | None, optional(COUNT), "number of input channels; null: as the input has"] = None
    stride: Annotated[Any, either(COUNT, 2), "step between windows"] = 1
    padding: Annotated[Any, either(integer(0), 2), "zeros put at each side"] = 0
    dilation: Annotated[Any, either(COUNT, 2), "distance between the kernel's elements"] = 1
    groups: Annotated[int, COUNT, "groups of channels that do not see each other"] = 1
    bias: Annotated[bool, boolean, "add b"] = True
    gain: Annotated[float, _GAIN, "factor on the initial weights"] = 1.0


@dataclass(frozen=True, kw_only=True)
class _Pool(Layer):
    kernel_size: Annotated[Any, either(COUNT, None), "size of a window"]
    stride: Annotated[Any, optional(either(COUNT, None)), "step between windows; null: kernel_size"] = None

    def filled(self, shape: Shape) -> Layer:
        return self if self.stride is not None else replace(self, stride=self.kernel_size)

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        (shape,) = shapes
        n = _image(shape, None, place)
        kernel, stride = (per_dimension(v, n) for v in (self.kernel_size, self.stride or self.kernel_size))
        for name, value in (("kernel_size", kernel), ("stride", stride)):
            if len(value) != n:
                raise place.at(name).refuse(f"a number, or a list of {n}", list(value))
        sizes = tuple(_windows(size, k, s, 0, 1) for size, k, s in zip(shape[1:], kernel, stride, strict=True))
        _check_windows(sizes, shape, place)
        return (shape[0], *sizes)


@dataclass(frozen=True, kw_only=True)
class SumPool(_Pool):
    """Sums over windows of (channels, length) or (channels, height, width)."""

    kind: ClassVar[str] = "sum_pool"


@dataclass(frozen=True, kw_only=True)
class AvgPool(_Pool):
    """Means over windows of (channels, length) or (channels, height, width)."""

    kind: ClassVar[str] = "avg_pool"


@dataclass(frozen=True, kw_only=True)
class Flatten(Layer):
    """All dimensions but batch and time in one."""

    kind: ClassVar[str] = "flatten"

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        return (math.prod(shapes[0]),)


@dataclass(frozen=True, kw_only=True)
class Dropout(Layer):
    """In training, elements are zero with probability p, one mask for all steps of a sample; others times 1/(1-p)."""

    kind: ClassVar[str] = "dropout"

    p: Annotated[float, number(0, 1), "probability of a zero"] = 0.5


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Layer):
    """Normalises each feature or channel over batch, time and space, as torch.nn.BatchNorm."""

    kind: ClassVar[str] = "batch_norm"
    needs_all_steps: ClassVar[str | None] = STATISTICS_IN_PIECES

    momentum: Annotated[float, number(0, 1), "weight of the batch in the running statistics"] = 0.1
    eps: Annotated[float, number(0, above=True), "added to the variance"] = 1e-5
    affine: Annotated[bool, boolean, "learn a factor (weight) and an offset (bias)"] = True

    def parameters(self, shape: Shape) -> Parameters:
        return (("weight", shape[:1]), ("bias", shape[:1])) if self.affine else ()

    def statistics(self, shape: Shape) -> Parameters:
        return (("running_mean", shape[:1]), ("running_var", shape[:1]))


@dataclass(frozen=True, kw_only=True)
class Add(Layer):
    """The sum of two or more inputs of one shape."""

    kind: ClassVar[str] = "add"
    several: ClassVar[bool] = True

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        for i, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise place.at("inputs").at(i).refuse_as(f"an input of shape {text(shapes[0])}", text(shape))
        return shapes[0]


SHAPE = optional(array(COUNT))
