"""Numbers about the layers of a network in a pass: firing rates, silent neurons, synaptic operations.

They are counted while the pass runs, a few steps at a time, in integers: no trace is kept, and the numbers do not
depend on how the sequence is cut into pieces.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from exodus_core.network.description import Description
from exodus_core.network.layers import Layer, Shape, per_dimension
from exodus_core.sparse import packing
from exodus_core.sparse.spikes import PackedSpikes

# Elements that are counted at a time, unless a step has more; bytes that this takes for each: the element unpacked, a
# mask and its integers; those of the counts that are kept of a neuron; and those of a place of an input, of which is
# found out once how many outputs it reaches.
_BLOCK, _BLOCK_BYTES, _NEURON_BYTES, _PLACE_BYTES = 2**18, 24, 24, 64


@dataclass(frozen=True)
class LayerStatistics:
    """Numbers about one layer in one pass; None where the layer has no such number.

    Attributes:
        firing_rate: spikes for each neuron and step, of layers that fire.
        silent: share of the neurons that fire at no step of no sample, of layers that fire.
        synaptic_operations: elements of the input that are not 0, times the outputs that each reaches: what hardware
            that computes by events does. Of linear and convolution layers, and of recurrent connections; at the border
            of an image a place reaches fewer outputs.
        dense_operations: the same if no element of the input were 0.
        grad_norm: L2 norm of the gradient of all parameters of the layer together, of training calls.
    """

    firing_rate: float | None = None
    silent: float | None = None
    synaptic_operations: int | None = None
    dense_operations: int | None = None
    grad_norm: float | None = None


def counter_bytes(description: Description, batch: int) -> int:
    """An upper bound of the bytes that counting takes."""
    sizes = [math.prod(shape) for shape in (description.input_shape, *description.shapes)]
    places = max(math.prod(shape[1:]) for shape in (description.input_shape, *description.shapes))
    return _BLOCK_BYTES * max(_BLOCK, batch * max(sizes)) + _NEURON_BYTES * sum(sizes) + _PLACE_BYTES * places


def dense_operations(description: Description, batch: int, time: int) -> dict[str, int]:
    """`LayerStatistics.dense_operations` of a pass, by layer."""
    return {
        layer.name: operations
        for layer, shape in zip(description.layers, description.shapes, strict=True)
        if (operations := _dense(layer, description.shape_of(layer.inputs[0]), shape, batch, time)) is not None
    }


def with_gradient_norms(
    statistics: Mapping[str, LayerStatistics], grad_norms: Mapping[str, float], description: Description
) -> dict[str, LayerStatistics]:
    """Statistics with the norm of each layer's gradient, in the order of the layers.

    `grad_norms`: those of parameters, by name; a parameter without one does not count.
    """
    norms: dict[str, float] = {}
    for name, _ in description.parameters:
        if name in grad_norms:
            layer = name.partition(".")[0]
            norms[layer] = math.hypot(norms.get(layer, 0.0), grad_norms[name])
    return {
        layer.name: replace(statistics.get(layer.name, _NONE), grad_norm=norms.get(layer.name))
        for layer in description.layers
        if layer.name in statistics or layer.name in norms
    }


_NONE = LayerStatistics()


class Counter:
    """Counts spikes and synaptic operations of a pass, in pieces of time or at once."""

    def __init__(self, description: Description) -> None:
        self._description = description
        self._shapes = {layer.name: description.shape_of(layer.name) for layer in description.layers}
        self._shapes["input"] = description.input_shape
        self._fan_outs: dict[str, Tensor] = {}
        self.begin(0, 0)

    def begin(self, batch: int, time: int) -> None:
        """Forgets the pass before."""
        self._size = (batch, time)
        self._fired: dict[str, Tensor] = {}
        self._spikes: dict[str, Tensor] = {}
        self._operations: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    def count(self, layer: Layer, inputs: Sequence[Tensor | PackedSpikes], output: Tensor | PackedSpikes) -> None:
        """Adds what a layer has computed for some steps."""
        if layer.fires:
            fired = _nonzero(output)
            self._add(self._fired, layer.name, fired)
            graded = getattr(layer, "max_spikes", 1) > 1
            self._add(self._spikes, layer.name, _total(output) if graded else fired.sum())
            if getattr(layer, "recurrent", None) is not None:
                assert isinstance(output, Tensor)  # which is not packed
                self._add(self._operations, layer.name, self._fed_back(layer, fired, output) * fired.numel())
        elif layer.kind in ("linear", "conv1d", "conv2d"):
            self._add(self._operations, layer.name, (_nonzero(inputs[0]) * self._reached(layer, inputs[0])).sum())

    def statistics(self) -> dict[str, LayerStatistics]:
        """The numbers by layer."""
        batch, time = self._size
        dense = dense_operations(self._description, batch, time)
        found = {}
        for layer in self._description.layers:
            name = layer.name
            rate = silent = None
            if name in self._fired:
                neurons = self._fired[name].numel()
                rate = int(self._spikes[name]) / (batch * time * neurons)
                silent = int((self._fired[name] == 0).sum()) / neurons
            operations = int(self._operations[name]) if name in self._operations else None
            if rate is not None or operations is not None:
                found[name] = LayerStatistics(rate, silent, operations, dense.get(name))
        return found

    def _reached(self, layer: Layer, value: Tensor | PackedSpikes) -> Tensor:
        """`_fan_out` of a layer, on the device of its input."""
        if layer.name not in self._fan_outs:
            shape, output = self._shapes[layer.inputs[0]], self._shapes[layer.name]
            self._fan_outs[layer.name] = _fan_out(layer, shape, output).to(value.device)
        return self._fan_outs[layer.name]

    def _fed_back(self, layer: Layer, fired: Tensor, output: Tensor) -> Tensor:
        """Spikes that recurrent connections carry to a next step: those of the last step of all go nowhere."""
        self._steps[layer.name] = self._steps.get(layer.name, 0) + output.shape[1]
        total = fired.sum()
        is_last = self._steps[layer.name] == self._size[1]
        return total - torch.count_nonzero(output[:, -1]) if is_last else total

    @staticmethod
    def _add(sums: dict[str, Tensor], name: str, number: Tensor) -> None:
        sums[name] = sums[name] + number if name in sums else number


def _dense(layer: Any, shape: Shape, output: Shape, batch: int, time: int) -> int | None:
    if layer.kind in ("linear", "conv1d", "conv2d"):
        reached = _fan_out(layer, shape, output)
        # Of a convolution, that of a place, for all channels.
        return batch * time * int(reached.sum()) * (math.prod(shape) // reached.numel())
    if getattr(layer, "recurrent", None) is not None:
        return batch * (time - 1) * math.prod(output) ** 2
    return None


def _fan_out(layer: Any, shape: Shape, output: Shape) -> Tensor:
    """Outputs that an element of the input reaches, int64, broadcasting to the shape of a sample."""
    if layer.kind == "linear":
        return torch.full((1,) * len(shape), output[0], dtype=torch.int64, device="cpu")
    n = layer.dimensions
    options = (per_dimension(v, n) for v in (layer.kernel_size, layer.stride, layer.padding, layer.dilation))
    reached = torch.full((1,) * len(shape), layer.out_channels // layer.groups, dtype=torch.int64, device="cpu")
    for d, (size, windows, *option) in enumerate(zip(shape[1:], output[1:], *options, strict=True)):
        places = _windows_of_places(size, windows, *option)
        reached = reached * places.view([-1 if axis == d + 1 else 1 for axis in range(n + 1)])
    return reached


def _windows_of_places(size: int, windows: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """How many windows see each place along one dimension.

    Window w sees place p by tap k if stride w + dilation k = p + padding. Such w are an interval, in which they are
    `period` apart: memory and time are those of the places, however large the kernel is.
    """
    if kernel == 1:
        dilation = 1  # of no effect, and a bound of the period
    common = math.gcd(stride, dilation)
    period = dilation // common
    places = torch.arange(padding, padding + size, device="cpu")
    last = places.div(stride, rounding_mode="floor").clamp_(max=windows - 1)
    first = (places + (stride - 1 - (kernel - 1) * dilation)).div_(stride, rounding_mode="floor").clamp_(min=0)
    fits = places.remainder(common) == 0
    start = places.div_(common, rounding_mode="floor").remainder_(period)
    start = start.mul_(pow(stride // common, -1, period)).remainder_(period)
    before = (first - 1).sub_(start).div_(period, rounding_mode="floor")
    return last.sub_(start).div_(period, rounding_mode="floor").sub_(before).clamp_(min=0).mul_(fits)


def _nonzero(value: Tensor | PackedSpikes) -> Tensor:
    """For each element of a sample, at how many steps of all samples it is not 0; int64."""
    return functools.reduce(torch.add, (torch.count_nonzero(block, 0) for block in _blocks(value)))


def _total(spikes: Tensor | PackedSpikes) -> Tensor:
    """The sum of spikes that may be several in a step; int64."""
    return functools.reduce(torch.add, (block.to(torch.int64).sum() for block in _blocks(spikes)))


def _blocks(value: Tensor | PackedSpikes) -> Iterator[Tensor]:
    """A value in blocks of some rows, shape (rows, *sample)."""
    if isinstance(value, PackedSpikes):
        shape = value.shape[2:]
        rows = max(1, _BLOCK // max(1, math.prod(shape)))
        for bits in value.bits.split(rows):
            yield packing.unpack(bits, value.columns, torch.float32).view(-1, *shape)
        return
    value = value.detach()
    steps = max(1, _BLOCK // max(1, value.shape[0] * math.prod(value.shape[2:])))
    for block in value.split(steps, 1):
        yield block.flatten(0, 1)
