"""A network as plain data: checked as a whole, with all shapes and sizes known before anything is allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as dataclass_replace
from typing import Any

from exodus_core.errors import DescriptionError
from exodus_core.network import delays, neurons
from exodus_core.network import layers as plain_layers
from exodus_core.network.layers import COUNT, MAX_DIMENSIONS, SHAPE, Layer, Parameters, Shape, text
from exodus_core.network.memory import graph_bytes, peak_bytes
from exodus_core.schema import LARGEST, Place, choice, optional, plain, read_record, shown

KINDS: dict[str, type[Layer]] = {
    cls.kind: cls
    for cls in (
        plain_layers.Linear,
        plain_layers.Conv1d,
        plain_layers.Conv2d,
        plain_layers.SumPool,
        plain_layers.AvgPool,
        plain_layers.MaxPool,
        plain_layers.AdaptiveAvgPool,
        plain_layers.AdaptiveMaxPool,
        plain_layers.Flatten,
        plain_layers.Reshape,
        plain_layers.Dropout,
        plain_layers.BatchNorm,
        plain_layers.Add,
        plain_layers.Concat,
        neurons.Lif,
        neurons.If,
        neurons.CubaLif,
        neurons.Alif,
        neurons.Srm,
        neurons.ExpLeak,
        delays.Delay,
        delays.DelayedLinear,
    )
}
ITEMSIZES = {"float32": 4, "float64": 8}
INPUT = "input"
MAX_LAYERS = 4096

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_NAMED = "a name of 1 to 32 letters, digits, - and _, other than input"
_DTYPE = choice(*ITEMSIZES)
_FIELDS = ("input_shape", "dtype", "layers", "checkpoint_steps")
_CHECKPOINT_STEPS = optional(COUNT)


class NetworkError(DescriptionError):
    """A network description that does not fit; see `pointer`, `expected` and `got`."""


@dataclass(frozen=True)
class Description:
    """A checked network.

    Args:
        input_shape: shape of one sample in one step.
        dtype: "float32" or "float64".
        layers: the layers, in order, with every field filled in.
        shapes: the shape that each layer gives.
        checkpoint_steps: how many steps are computed at a time, to take less memory in training; None: all.
    """

    input_shape: Shape
    dtype: str
    layers: tuple[Layer, ...]
    shapes: tuple[Shape, ...] = field(compare=False)
    checkpoint_steps: int | None = None

    @property
    def data(self) -> dict[str, Any]:
        """The description as plain data, with all defaults but a checkpoint_steps of null: `parse(d.data) == d`."""
        listed = [plain(layer) for layer in self.layers]
        found = {"input_shape": list(self.input_shape), "dtype": self.dtype, "layers": listed}
        # Not where it is null: descriptions from before it was there stay what they are, to digests of them too.
        return found if self.checkpoint_steps is None else found | {"checkpoint_steps": self.checkpoint_steps}

    @property
    def output_shape(self) -> Shape:
        """Shape of one sample's output in one step."""
        return self.shapes[-1]

    def shape_of(self, name: str) -> Shape:
        """The shape that a layer, or "input", gives."""
        by_name = {layer.name: shape for layer, shape in zip(self.layers, self.shapes, strict=True)}
        return self.input_shape if name == INPUT else by_name[name]

    @property
    def parameters(self) -> tuple[tuple[str, Shape], ...]:
        """(name, shape) of every parameter, in the order of `Network.named_parameters()`."""
        return self._tensors(lambda layer, shape: layer.parameters(shape))

    @property
    def statistics(self) -> tuple[tuple[str, Shape], ...]:
        """(name, shape) of every running statistic, which forward passes in training change."""
        return self._tensors(lambda layer, shape: layer.statistics(shape))

    def _tensors(self, of: Callable[[Layer, Shape], Parameters]) -> tuple[tuple[str, Shape], ...]:
        by_name = {INPUT: self.input_shape}
        found = []
        for layer, shape in zip(self.layers, self.shapes, strict=True):
            found += [(f"{layer.name}.{own}", size) for own, size in of(layer, by_name[layer.inputs[0]])]
            by_name[layer.name] = shape
        return tuple(found)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters."""
        return self._nbytes(self.parameters)

    @property
    def statistics_nbytes(self) -> int:
        """Bytes of all running statistics."""
        return self._nbytes(self.statistics)

    def _nbytes(self, tensors: tuple[tuple[str, Shape], ...]) -> int:
        return sum(math.prod(shape) for _, shape in tensors) * self.itemsize

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return ITEMSIZES[self.dtype]

    def memory(self, batch: int, time: int, *, training: bool) -> int:
        """An upper bound of the bytes that a pass takes at one time, without the weights and the input.

        Args:
            batch, time: of the input.
            training: a forward and a backward pass with a loss, and the step of an optimiser; else a forward pass
                without a graph.
        """
        return peak_bytes(self, batch, time, training=training)

    def graph(self, time: int) -> int:
        """An upper bound of the bytes of a graph that a forward pass leaves, without the tensors that it saves."""
        return graph_bytes(self, time)

    @property
    def activations(self) -> int:
        """Elements that all layers give for one sample in one step."""
        return sum(math.prod(shape) for shape in self.shapes)


def _input_shape(data: Mapping[str, Any], place: Place) -> Shape:
    given, there = data.get("input_shape"), place.at("input_shape")
    if isinstance(given, list | tuple) and len(given) > MAX_DIMENSIONS:
        raise there.refuse_as(f"a list of at most {MAX_DIMENSIONS} sizes", f"one of {len(given)}")
    shape: Shape | None = SHAPE.read(given, there)
    if shape is not None:
        _check_elements(shape, there)
        return shape
    first, here = data["layers"][0], place.at("layers").at(0)
    features = first.get("in_features") if _kind(first, here) == "linear" else None
    if features is None:
        raise place.at("input_shape").refuse(
            "a list of sizes, or null if the first layer is linear with in_features", None
        )
    return (COUNT.read(features, here.at("in_features")),)


def _check_elements(shape: Shape, place: Place) -> None:
    """Refuses more elements of a sample in one step than the integers of descriptions count."""
    if math.prod(shape) > LARGEST:
        raise place.refuse_as(f"a shape of at most {LARGEST} elements", text(shape))


def _kind(value: object, place: Place) -> str:
    """The kind of a layer."""
    if not isinstance(value, Mapping):
        raise place.refuse("an object", value)
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        got = shown(kind) if "kind" in value else "nothing"
        raise place.at("kind").refuse_as("one of " + ", ".join(KINDS), got)
    return kind


def _read_layer(value: Any, index: int, shapes: Mapping[str, Shape], before: str, place: Place) -> Layer:
    """One layer with its name and inputs; `shapes` has those of the layers before, the last of which is `before`."""
    kind = _kind(value, place)
    name = value.get("name", str(index))
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == INPUT:
        raise place.at("name").refuse(_NAMED, name)
    if name in shapes:
        raise place.at("name").refuse("a name that no layer before has", name)
    layer = read_record(KINDS[kind], value, place, ("kind", "name", "inputs"))
    inputs = value.get("inputs", [before])
    wanted = "a list of two names or more" if layer.several else "a list of one name"
    fits = isinstance(inputs, list | tuple) and (len(inputs) >= 2 if layer.several else len(inputs) == 1)
    if not fits:
        raise place.at("inputs").refuse(wanted, inputs)
    for i, source in enumerate(inputs):
        if not isinstance(source, str) or source not in shapes:
            raise place.at("inputs").at(i).refuse("input, or the name of a layer before this one", source)
    return dataclass_replace(layer, name=name, inputs=tuple(inputs))


def parse(data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Description:
    """Checks a network description and infers every shape.

    Args:
        data: {"input_shape", "dtype", "layers", "checkpoint_steps"}, or the layers alone, the first one linear with
            in_features; docs/networks.md has all kinds and fields.

    Sizes are bounded: MAX_LAYERS layers, MAX_DIMENSIONS dimensions and 2**31 - 1 elements of a sample in one step.

    Raises:
        NetworkError: it does not fit; the error has a JSON pointer to the value, what was expected and what is there.
    """
    place = Place("", NetworkError)
    if isinstance(data, list | tuple):
        data = {"layers": data}
    if not isinstance(data, Mapping):
        raise place.refuse("an object or a list of layers", data)
    for key in data:
        if key not in _FIELDS:
            raise place.at(key).refuse(f"absent (the fields are {', '.join(_FIELDS)})", data[key])
    listed = data.get("layers")
    if not isinstance(listed, list | tuple) or not listed:
        raise place.at("layers").refuse("a list of one layer or more", listed)
    if len(listed) > MAX_LAYERS:
        raise place.at("layers").refuse_as(
            f"a list of at most {MAX_LAYERS} layers (MAX_LAYERS)", f"one of {len(listed)}"
        )
    dtype = _DTYPE.read(data.get("dtype", "float32"), place.at("dtype"))
    shapes: dict[str, Shape] = {INPUT: _input_shape(data, place)}
    found: list[Layer] = []
    before = INPUT
    for index, value in enumerate(listed):
        here = place.at("layers").at(index)
        layer = _read_layer(value, index, shapes, before, here)
        inputs = tuple(shapes[name] for name in layer.inputs)
        shape = layer.output_shape(inputs, here)
        _check_elements(shape, here)
        found.append(layer.filled(inputs[0]))
        shapes[layer.name] = shape
        before = layer.name
    _check_used(found, place)
    steps = _checkpoint_steps(data.get("checkpoint_steps"), found, place.at("checkpoint_steps"))
    input_shape, *given = shapes.values()
    return Description(input_shape, dtype, tuple(found), tuple(given), steps)


def _checkpoint_steps(given: object, layers: list[Layer], place: Place) -> int | None:
    steps: int | None = _CHECKPOINT_STEPS.read(given, place)
    for layer in layers if steps is not None else ():
        if layer.needs_all_steps is not None:
            raise place.refuse(f"null with a layer of kind {layer.kind}: {layer.needs_all_steps}", steps)
    return steps


def _check_used(found: list[Layer], place: Place) -> None:
    """Every layer must lead to the last: one that does not would be computed, and never learn."""
    used = {found[-1].name}
    for index in reversed(range(len(found))):
        if found[index].name not in used:
            raise (
                place.at("layers")
                .at(index)
                .refuse_as("a layer that leads to the last one", f"{found[index].name}, which no layer takes as input")
            )
        used.update(found[index].inputs)
