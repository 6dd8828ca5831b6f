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
MAX_DIMENSIONS = 8
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
    #: Its output is spikes; it has a membrane, which can be recorded.
    fires: ClassVar[bool] = False
    has_membrane: ClassVar[bool] = False

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


class PoolLayer(Layer):
    """Base class of layers that make one number of each window of (channels, length) or (channels, height, width)."""

    def windows(self, shape: Shape) -> tuple[Shape, Shape, Shape]:
        """Size of a window, step between windows and padding of each dimension of space, given the input's shape."""
        raise NotImplementedError


def _each(value: Any, dimensions: int, place: Place) -> Shape:
    """A number for each dimension of space; refuses a list of another length."""
    found = per_dimension(value, dimensions)
    if len(found) != dimensions:
        raise place.refuse(f"a number, or a list of {dimensions}", list(found))
    return found


@dataclass(frozen=True, kw_only=True)
class _Pool(PoolLayer):
    kernel_size: Annotated[Any, either(COUNT, None), "size of a window"]
    stride: Annotated[Any, optional(either(COUNT, None)), "step between windows; null: kernel_size"] = None

    def filled(self, shape: Shape) -> Layer:
        return self if self.stride is not None else replace(self, stride=self.kernel_size)

    def windows(self, shape: Shape) -> tuple[Shape, Shape, Shape]:
        n = len(shape) - 1
        return per_dimension(self.kernel_size, n), per_dimension(self.stride or self.kernel_size, n), (0,) * n

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        (shape,) = shapes
        n = _image(shape, None, place)
        _each(self.kernel_size, n, place.at("kernel_size"))
        _each(self.stride or self.kernel_size, n, place.at("stride"))
        options = zip(shape[1:], *self.windows(shape), strict=True)
        sizes = tuple(_windows(size, kernel, stride, padding, 1) for size, kernel, stride, padding in options)
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
class MaxPool(_Pool):
    """Largest values of windows of (channels, length) or (channels, height, width), as torch.nn.MaxPool1d and 2d."""

    kind: ClassVar[str] = "max_pool"

    padding: Annotated[Any, either(integer(0), None), "places put at each side, which are never the largest"] = 0

    def windows(self, shape: Shape) -> tuple[Shape, Shape, Shape]:
        kernel, stride, _ = super().windows(shape)
        return kernel, stride, per_dimension(self.padding, len(shape) - 1)

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        n = _image(shapes[0], None, place)
        kernel, there = per_dimension(self.kernel_size, n), place.at("padding")
        for padding, size in zip(_each(self.padding, n, there), kernel, strict=False):
            if 2 * padding > size:
                raise there.refuse_as(f"at most half of kernel_size, {size}", str(padding))
        return super().output_shape(shapes, place)


@dataclass(frozen=True, kw_only=True)
class _AdaptivePool(PoolLayer):
    output_size: Annotated[Any, either(COUNT, None), "windows along each dimension; a divisor of the input's size"]

    def windows(self, shape: Shape) -> tuple[Shape, Shape, Shape]:
        n = len(shape) - 1
        kernel = tuple(
            size // wanted for size, wanted in zip(shape[1:], per_dimension(self.output_size, n), strict=True)
        )
        return kernel, kernel, (0,) * n

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        (shape,) = shapes
        n, there = _image(shape, None, place), place.at("output_size")
        sizes = _each(self.output_size, n, there)
        for size, wanted in zip(shape[1:], sizes, strict=True):
            if size % wanted:
                raise there.refuse(f"a divisor of {size}, so that all windows are of one size", wanted)
        return (shape[0], *sizes)


@dataclass(frozen=True, kw_only=True)
class AdaptiveAvgPool(_AdaptivePool):
    """Means over as many equal windows as are wanted, as torch.nn.AdaptiveAvgPool2d; 1: over all of space."""

    kind: ClassVar[str] = "adaptive_avg_pool"


@dataclass(frozen=True, kw_only=True)
class AdaptiveMaxPool(_AdaptivePool):
    """Largest values of as many equal windows as are wanted, as torch.nn.AdaptiveMaxPool2d; 1: of all of space."""

    kind: ClassVar[str] = "adaptive_max_pool"


@dataclass(frozen=True, kw_only=True)
class Flatten(Layer):
    """All dimensions but batch and time in one."""

    kind: ClassVar[str] = "flatten"

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        return (math.prod(shapes[0]),)


@dataclass(frozen=True, kw_only=True)
class Reshape(Layer):
    """The same elements in another shape, in their order; batch and time stay."""

    kind: ClassVar[str] = "reshape"

    shape: Annotated[tuple[int, ...], array(COUNT), "of a sample in one step, of as many elements as the input"]

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        elements, there = math.prod(shapes[0]), place.at("shape")
        if len(self.shape) > MAX_DIMENSIONS:
            raise there.refuse_as(f"a list of at most {MAX_DIMENSIONS} sizes", f"one of {len(self.shape)}")
        if math.prod(self.shape) != elements:
            raise there.refuse_as(f"a shape of {elements} elements, as the input {text(shapes[0])}", text(self.shape))
        return self.shape


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


@dataclass(frozen=True, kw_only=True)
class Concat(Layer):
    """Two or more inputs one after the other along an axis; their other sizes are equal."""

    kind: ClassVar[str] = "concat"
    several: ClassVar[bool] = True

    axis: Annotated[int, integer(0), "of a sample in one step; 0: features or channels"] = 0

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        first, axis = shapes[0], self.axis
        if axis >= len(first):
            raise place.at("axis").refuse(f"an axis of the first input, {text(first)}: at most {len(first) - 1}", axis)
        others = (first[:axis], first[axis + 1 :])
        for i, shape in enumerate(shapes):
            if (shape[:axis], shape[axis + 1 :]) != others or len(shape) != len(first):
                expected = f"an input of shape {text(first)} but for axis {axis}"
                raise place.at("inputs").at(i).refuse_as(expected, text(shape))
        return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


SHAPE = optional(array(COUNT))
