"""Upper bounds of the memory that passes through a network take, known before anything is allocated.

For each kind of layer: what lies between its forward and its backward pass, and what either takes while it runs. The
numbers are those of PyTorch's kernels on the CPU, measured (tests/core/test_network_memory.py holds them to it). Memory
of the weights is not in them, nor some MiB that libraries take once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from exodus_core.network.delays import Delay, DelayedLinear
from exodus_core.network.layers import Layer, Shape, per_dimension
from exodus_core.network.neurons import Alif, If
from exodus_core.ops import COUPLED_STATES
from exodus_core.sparse import convolution, product

if TYPE_CHECKING:
    from exodus_core.network.description import Description

# Channels that oneDNN's kernels take at a time; it copies images to layouts in which they are padded to so many.
_CHANNEL_BLOCK = 16
# Below, PyTorch computes the convolution of a single image by itself, in float32 too.
_SMALL_IMAGE_ELEMENTS = 20480
# Bytes of Python objects and nodes of autograd's graph, measured: of a layer (4 to 13 KiB); of one step of a loop over
# time, without a graph (2 KiB), with one (9 KiB), and with recurrent connections (23 KiB).
_LAYER_BYTES = 16 * 1024
_STEP_BYTES, _STEP_GRAPH_BYTES, _STEP_RECURRENT_BYTES = 3 * 1024, 14 * 1024, 28 * 1024
# The backward pass of each step of an SRM loop copies the past that the step saw: so many copies at a time. Copies that
# are small enough for the heap leave holes there that later ones may not fit: about one for each step.
_PAST_COPIES, _HEAP_BLOCK_BYTES = 4, 64 * 1024
# Of sparse products (csrc/cpu/sparse_product.cpp, sparse_convolution.cpp): of a place in a list; of the rows of dL/dx
# in a panel; rows of sums; blocks of images in dL/dW.
_INDEX_BYTES, _PANEL_CACHE_BYTES, _MOST_BLOCK_ROWS, _SCRATCH_ROWS, _CONVOLUTION_BLOCKS = 4, 256 * 1024, 512, 65, 16
# Of table_convolution.h: patterns of a row of the kernel, and images at once. Rows there are of a cache line.
_TABLE_ENTRIES, _TABLE_IMAGES, _LINE_BYTES = 32, 8, 64
# Of a tap of a product with delays: nodes of autograd's graph.
_TAP_BYTES = 12 * 1024
# Gradients of a neuron's parameters are summed for each lane (sample and neuron): so many sums, in float64.
_LANE_BYTES = 8 * 8
_COUPLED_STATES = len(COUPLED_STATES)


@dataclass(frozen=True)
class _Layer:
    """One layer in a pass: its description, the sizes that it meets, if something before it learns, and if it does."""

    data: Any
    input: Shape
    output: Shape
    batch: int
    time: int
    itemsize: int
    learns: bool
    training: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of the input, the weights and the output."""
        return torch.float64 if self.itemsize == 8 else torch.float32

    @property
    def bits(self) -> int:
        """Bytes of the input as bits, of which each row is whole bytes."""
        return self.batch * self.time * -(-math.prod(self.input) // 8)

    @property
    def x(self) -> int:
        """Bytes of the input."""
        return self.batch * self.time * math.prod(self.input) * self.itemsize

    @property
    def grad(self) -> int:
        """Bytes of the gradient of the input."""
        return self.x if self.learns else 0

    @property
    def y(self) -> int:
        """Bytes of the output."""
        return self.batch * self.time * math.prod(self.output) * self.itemsize

    @property
    def step(self) -> int:
        """Bytes of one step of the output."""
        return self.batch * math.prod(self.output) * self.itemsize

    @property
    def spread(self) -> int:
        """Bytes of the parameters of neurons, spread to all of them."""
        return 4 * math.prod(self.output) * self.itemsize

    @property
    def lanes(self) -> int:
        """Bytes of the gradients of trained parameters of neurons before they are summed."""
        return self.batch * math.prod(self.output) * _LANE_BYTES if self.data.trainable else 0


@dataclass(frozen=True)
class _Need:
    """Bytes that a layer takes in addition to its inputs and its output.

    Attributes:
        kept: from its forward to its backward pass.
        forward: while its forward pass runs, with what is kept then.
        backward: while its backward pass runs, with the gradient of its input, without that of its output.
        reads_input, reads_output: the backward pass does.
        view: the output is a view of the input.
    """

    kept: int = 0
    forward: int = 0
    backward: int = 0
    reads_input: bool = False
    reads_output: bool = False
    view: bool = False


def _panels(outputs: int, itemsize: int, halves: bool = False) -> tuple[int, int]:
    """Panels of outputs in sparse products, and the bytes of a row of one: kPanelBytes of csrc/cpu/kernels.h.

    Args:
        outputs: of a group.
        itemsize: bytes of one.
        halves: rows may be as short as kHalfPanelBytes.
    """
    row = next((size for size in (32, 64, 128, 256)[not halves :] if outputs * itemsize <= size), 512)
    return -(-outputs * itemsize // row), row


def _linear(layer: _Layer) -> _Need:
    columns, outputs, rows = math.prod(layer.input), math.prod(layer.output), layer.batch * layer.time
    weight = outputs * columns * layer.itemsize
    dense = _Need(forward=weight, backward=layer.grad + weight, reads_input=True)
    if not product.enough(rows * outputs * columns, rows):
        return dense
    # Threads have panels, and rows of sums. Of several panels, lists of the spikes have a place for each, and perhaps a
    # value.
    threads, (panels, row) = torch.get_num_threads(), _panels(outputs, layer.itemsize)
    forward = threads * (columns + _SCRATCH_ROWS) * row
    sums = 2 if panels == 1 else min(threads, panels)
    backward = threads * _PANEL_CACHE_BYTES + sums * columns * row
    if panels > 1:
        lists = int(product.max_density(outputs, layer.dtype) * rows * columns) * (_INDEX_BYTES + layer.itemsize)
        blocks = -(-rows // min(_MOST_BLOCK_ROWS, _PANEL_CACHE_BYTES // row))
        forward += lists + rows * _INDEX_BYTES
        backward += lists + blocks * columns * _INDEX_BYTES
    return _Need(
        kept=layer.bits,
        forward=max(dense.forward, forward),
        backward=max(dense.backward, layer.grad + backward),
        reads_input=True,
    )


def _convolution(layer: _Layer) -> _Need:
    data, images = layer.data, layer.batch * layer.time
    kernel = per_dimension(data.kernel_size, data.dimensions)
    dilated = any(step > 1 for step in per_dimension(data.dilation, data.dimensions))
    windows = math.prod(kernel) * math.prod(layer.output[1:]) * layer.itemsize

    def padded(shape: Shape) -> int:
        channels = -(-shape[0] // _CHANNEL_BLOCK) * _CHANNEL_BLOCK
        return images * channels * math.prod(shape[1:]) * layer.itemsize

    channels = [-(-n // _CHANNEL_BLOCK) * _CHANNEL_BLOCK for n in (layer.input[0], layer.output[0])]
    weights = math.prod((*channels, *kernel)) // data.groups * layer.itemsize * (1 + torch.get_num_threads())
    blocked = padded(layer.input) + padded(layer.output) + weights
    # Unfolded: every window as a column, of one group at a time; of all images at once if it is not dilated.
    columns = (1 if dilated else images) * layer.input[0] // data.groups * windows
    unfolded = columns + layer.x // data.groups + layer.y
    single = images == 1 and math.prod(layer.input) <= _SMALL_IMAGE_ELEMENTS
    if layer.itemsize == 4 and torch.backends.mkldnn.is_available():
        forward = max(blocked, unfolded) if single else blocked
        backward = forward + layer.grad
    else:
        forward = unfolded
        backward = unfolded + layer.x + (columns + layer.x if layer.learns else 0)
    dense = _Need(forward=forward, backward=backward, reads_input=True)
    inputs, outputs, taps = layer.input[0] // data.groups, layer.output[0] // data.groups, math.prod(kernel)
    stride = per_dimension(data.stride, data.dimensions)
    limit = convolution.max_density(
        (layer.output[0], inputs, *kernel), stride, data.groups, layer.dtype, by_tables=True
    )
    columns = inputs * taps
    products = images * math.prod(layer.input[1:]) * layer.output[0] * columns
    if limit == 0 or not product.enough(products):
        return dense
    # The weight in panels, for each thread or, backward, block of images; those of one image, with and without the
    # margins between its rows; and its spikes, in a list that doubles as it grows.
    threads, (panels, row) = torch.get_num_threads(), _panels(outputs, layer.itemsize, halves=True)
    turned = data.groups * panels * columns * row
    dilation, padding = (per_dimension(each, data.dimensions)[-1] for each in (data.dilation, data.padding))
    margin = max(0, dilation * (kernel[-1] - 1) - padding)
    places = 2 * math.prod(layer.output[1:]) + margin * (math.prod(layer.output[1:-1]) + 1)
    image = places * row + math.prod(layer.input[:-1]) * _INDEX_BYTES
    image += 3 * math.prod(layer.input) * (_INDEX_BYTES + layer.itemsize)
    sums = min(images, _CONVOLUTION_BLOCKS) * turned + threads * (turned + columns * row + image)
    # Of images of many spikes, the sums of all patterns of a row of the kernel, and some images at once.
    lines = -(-outputs * layer.itemsize // _LINE_BYTES)
    tables = data.groups * lines * columns // kernel[-1] * _TABLE_ENTRIES * _LINE_BYTES
    tables += threads * min(_TABLE_IMAGES, images) * (places * _LINE_BYTES + math.prod(layer.input) * _INDEX_BYTES)
    # Of a gradient that is mostly zero, its bits, the weight in rows of whole lines, and for each thread an image with
    # its padding and lists with room for all places.
    size, pads = layer.input[1:], per_dimension(data.padding, data.dimensions)
    widened = inputs * math.prod(n + 2 * pad for n, pad in zip(size, pads, strict=True)) * layer.itemsize
    rows = layer.output[0] * (columns * layer.itemsize + columns // kernel[-1] * _LINE_BYTES)
    lists = math.prod(layer.output) * (_INDEX_BYTES + layer.itemsize) + 3 * math.prod(layer.output[1:]) * _INDEX_BYTES
    gradient = images * math.prod(layer.output) // 8 + rows + threads * (widened + rows + lists)
    return _Need(
        kept=layer.bits,
        forward=max(dense.forward, threads * (turned + image) + tables),
        backward=max(dense.backward, layer.grad + sums, layer.grad + gradient),
        reads_input=True,
    )


def _pool(layer: _Layer) -> _Need:
    return _Need(backward=layer.x, reads_input=True)


def _max_pool(layer: _Layer) -> _Need:
    # PyTorch keeps the place of each maximum, an int64, and makes it without a graph too: on a GPU, and of windows of
    # more than 255 places. The kernels of the CPU keep a byte.
    places = layer.y // layer.itemsize * 8
    return _Need(kept=places, forward=places, backward=layer.x, reads_input=True)


def _flatten(layer: _Layer) -> _Need:
    return _Need(view=True)


def _dropout(layer: _Layer) -> _Need:
    return _Need(kept=layer.step, forward=layer.step, backward=layer.x)


def _batch_norm(layer: _Layer) -> _Need:
    return _Need(kept=4 * layer.input[0] * layer.itemsize, forward=layer.x, backward=2 * layer.x, reads_input=True)


def _add(layer: _Layer) -> _Need:
    inputs = len(layer.data.inputs)
    return _Need(forward=layer.y if inputs > 2 else 0, backward=layer.y)


def _concat(layer: _Layer) -> _Need:
    # The gradients of the inputs are views of that of the output, which stays until the last of them is read; who reads
    # one copies it first.
    return _Need(backward=layer.y)


def _loops(data: Any) -> bool:
    """True if autograd differentiates a loop over time."""
    return getattr(data, "method", None) == "bptt"


def _step_graph(data: Any) -> int:
    """Bytes of the graph of one step of a loop over time."""
    return _STEP_GRAPH_BYTES if getattr(data, "recurrent", None) is None else _STEP_RECURRENT_BYTES


def _loop(layer: _Layer, arrays: int) -> _Need:
    """A loop over time, which keeps so many arrays for autograd, and two without it."""
    if layer.training:
        kept = arrays * layer.y + layer.time * _step_graph(layer.data)
    else:
        kept = 2 * layer.y + layer.time * _STEP_BYTES
    return _Need(kept=kept, forward=kept + 2 * layer.y, backward=4 * layer.y, reads_input=True)


def _lif(layer: _Layer) -> _Need:
    data = layer.data
    if data.is_coupled:
        return _coupled(layer)
    if _loops(data):
        return _loop(layer, 10 if data.recurrent is None else 16)
    if data.recurrent is None:
        return _Need(kept=layer.y, forward=layer.y + layer.spread, backward=2 * layer.x + layer.spread + layer.lanes)
    weights = math.prod(layer.output) ** 2 * layer.itemsize
    return _Need(
        kept=2 * layer.y,
        forward=3 * layer.y + 8 * layer.step + weights,
        backward=3 * layer.x + 20 * layer.step + layer.lanes + weights,
    )


def _coupled(layer: _Layer) -> _Need:
    """Neurons whose state has more parts than a membrane and spikes: as those of LIF, and a trace of each."""
    data = layer.data
    if _loops(data):
        return _loop(layer, 24 if data.recurrent is None else 30)
    traces = (data.refractory > 0) + isinstance(data, Alif)
    traces += getattr(data, "synapse_alpha", None) is not None and bool(data.trainable)
    parameters = 11 * layer.spread + _COUPLED_STATES * layer.step
    if data.recurrent is None:
        return _Need(
            kept=(1 + traces) * layer.y + parameters,
            forward=(1 + traces) * layer.y + 2 * parameters,
            backward=2 * layer.x + 2 * parameters + 3 * layer.lanes,
        )
    weights = math.prod(layer.output) ** 2 * layer.itemsize
    states = _COUPLED_STATES * (layer.y + layer.step)
    return _Need(
        kept=states + parameters,
        forward=states + 3 * layer.y + 12 * layer.step + weights + 2 * parameters,
        backward=2 * layer.y + 3 * layer.x + 40 * layer.step + 3 * layer.lanes + weights + 2 * parameters,
    )


def _exp_leak(layer: _Layer) -> _Need:
    forward = layer.y + layer.spread
    return _Need(forward=forward, backward=2 * layer.x + layer.spread + layer.lanes, reads_output=True)


def _srm(layer: _Layer) -> _Need:
    data = layer.data
    if not _loops(data):
        return _Need(kept=layer.y, forward=2 * layer.y, backward=3 * layer.x)
    loop = _loop(layer, 10)
    # State of a step: a response for each tap that is still to come, or p and q in float64.
    taps = len(data.reset_kernel) if isinstance(data.reset_kernel, tuple) else 0
    past = min(taps, layer.time) * layer.step if taps else 16 * layer.step // layer.itemsize
    return _Need(
        kept=loop.kept,
        forward=loop.forward + 5 * layer.y + 12 * past,
        backward=loop.backward + _PAST_COPIES * past + layer.time * min(past, _HEAP_BLOCK_BYTES),
        reads_input=True,
    )


def _delay(layer: _Layer) -> _Need:
    # An index for each step and element; the shifted signal, the step before it, and a product with each.
    index = layer.time * math.prod(layer.input) * 8
    kept = 2 * layer.y if layer.data.trainable else 0
    return _Need(kept=kept, forward=4 * layer.y + index, backward=5 * layer.x + index)


def _delayed_linear(layer: _Layer) -> _Need:
    taps, weights = layer.data.max_delay + 1, math.prod(layer.input) * layer.data.out_features * layer.itemsize
    product = _linear(layer)
    # The taps, and what their interpolation reads; a density has values for every tap.
    of_taps = taps * weights + (4 * weights + 4 * weights * 8 // layer.itemsize)
    if layer.data.width is not None:
        of_taps += 4 * taps * weights
    return _Need(
        kept=of_taps + taps * (product.kept + _TAP_BYTES),
        forward=of_taps + taps * weights + 3 * layer.y + product.forward,
        backward=2 * of_taps + 3 * layer.y + 2 * layer.x + product.backward,
        reads_input=True,
    )


_NEEDS: dict[str, Callable[[_Layer], _Need]] = {
    "linear": _linear,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "sum_pool": _pool,
    "avg_pool": _pool,
    "max_pool": _max_pool,
    "adaptive_avg_pool": _pool,
    "adaptive_max_pool": _max_pool,
    "flatten": _flatten,
    "reshape": _flatten,
    "dropout": _dropout,
    "batch_norm": _batch_norm,
    "add": _add,
    "concat": _concat,
    "lif": _lif,
    "if": _lif,
    "cuba_lif": _coupled,
    "alif": _coupled,
    "srm": _srm,
    "exp_leak": _exp_leak,
    "delay": _delay,
    "delayed_linear": _delayed_linear,
}


def graph_bytes(description: Description, time: int) -> int:
    """Bytes of the objects of autograd's graph that a forward pass leaves, without the tensors that it saves."""
    pieces = _pieces(description, time)
    if pieces > 1:
        return _LAYER_BYTES + pieces * _PIECE_BYTES + pieces * _states(description) * _SAVED_BYTES
    loops = sum(time * _step_graph(layer) for layer in description.layers if _loops(layer))
    taps = sum((layer.max_delay + 1) * _TAP_BYTES for layer in description.layers if isinstance(layer, DelayedLinear))
    return len(description.layers) * _LAYER_BYTES + loops + taps


# Bytes of the objects of one piece of a sequence, and of a tensor that is saved for it, beside its values; measured.
_PIECE_BYTES, _SAVED_BYTES = 4 * 1024, 2560


def _pieces(description: Description, time: int) -> int:
    """The number of pieces in which a sequence is computed."""
    return 1 if description.checkpoint_steps is None else -(-time // description.checkpoint_steps)


def _state_tensors(data: Any) -> int:
    """The number of tensors that are the state of a layer between two steps."""
    if data.kind == "exp_leak":
        return 2
    if isinstance(data, Delay | DelayedLinear):
        return 1
    if not isinstance(data, If):
        return 0
    return _COUPLED_STATES if data.is_coupled else 2


def _states(description: Description) -> int:
    """The number of tensors that are the state of a network between two steps."""
    return sum(_state_tensors(layer) for layer in description.layers)


def _state_elements(layer: Layer, shape: Shape) -> int:
    """Elements that are the state of a layer, which gives this shape, between two steps of one sample."""
    if isinstance(layer, Delay):
        return (layer.max_delay or 0) * math.prod(shape)  # it is filled in
    if isinstance(layer, DelayedLinear):
        return layer.max_delay * (layer.in_features or 0)
    return _state_tensors(layer) * math.prod(shape)


def _bytes_in_pieces(description: Description, batch: int, time: int, training: bool) -> int:
    """`peak_bytes` of more than one piece: that of one, and what is kept of all."""
    steps = description.checkpoint_steps
    assert steps is not None
    itemsize, pieces = description.itemsize, _pieces(description, time)
    outputs = batch * time * math.prod(description.output_shape) * itemsize
    piece = peak_bytes(replace(description, checkpoint_steps=None), batch, steps, training=training)
    # A piece of the input as it comes, and what finds out if it is bits.
    x = _INPUT_COPIES * batch * steps * math.prod(description.input_shape) * itemsize
    shapes = zip(description.layers, description.shapes, strict=True)
    states = [(layer, batch * _state_elements(layer, shape) * itemsize) for layer, shape in shapes]
    state = sum(size for _, size in states)
    # Layers with delays compute the steps of their state again, in front of the piece.
    again = sum(size for layer, size in states if isinstance(layer, Delay | DelayedLinear))
    # While a piece is computed, a state before and after it and its gradients.
    alive = outputs + piece + x + _STATE_COPIES * state + _AGAIN_COPIES * again
    if not training:
        return alive
    *rows, last = description.input_shape or (1,)
    bits = batch * time * math.prod(rows) * -(-last // 8)
    masks = sum(
        batch * math.prod(shape) * itemsize
        for layer, shape in zip(description.layers, description.shapes, strict=True)
        if layer.kind == "dropout"
    )
    kept = bits + pieces * state + masks + graph_bytes(description, time)
    return alive + kept + _LOSS_COPIES * outputs + _SUM_COPIES * description.nbytes


# Of the outputs: what a loss and its gradient take, and what of them stays during the backward pass.
_LOSS_COPIES, _LOSS_KEPT_COPIES = 5, 2
# Of the weights: their gradients, and what clipping, sums and the optimiser's step make of them.
_GRADIENT_COPIES, _UPDATE_COPIES = 2, 5
# Of the inputs that layers with delays see again.
_AGAIN_COPIES = 6
# Of a piece of a sequence: of its input; of the states of neurons before and after it; of the weights, the sum of their
# gradients over pieces.
_INPUT_COPIES, _STATE_COPIES, _SUM_COPIES = 4, 4, 2


def peak_bytes(description: Description, batch: int, time: int, *, training: bool) -> int:
    """An upper bound of the bytes that a pass takes at one time, without the weights and the input.

    Args:
        batch, time: of the input.
        training: a forward and a backward pass with a loss, and the step of an optimiser; else a forward pass without a
            graph.
    """
    if _pieces(description, time) > 1:
        return _bytes_in_pieces(description, batch, time, training)
    itemsize = description.itemsize
    shapes = {"input": description.input_shape}
    learning: set[str] = set()  # values that have a gradient
    roots, uses = {"input": "input"}, Counter[str]()  # roots: the value in whose memory another one lies
    for layer in description.layers:
        uses.update(layer.inputs)
    left = Counter(uses)
    size = {"input": batch * time * math.prod(description.input_shape) * itemsize}
    names: Counter[str] = Counter(["input"])  # how many values that are still read lie in this memory
    kept: set[str] = set()
    alive = peak = size["input"]
    backward = 0
    for layer, shape in zip(description.layers, description.shapes, strict=True):
        learns = not learning.isdisjoint(layer.inputs)
        met = _Layer(layer, shapes[layer.inputs[0]], shape, batch, time, itemsize, learns, training)
        if learns or layer.parameters(met.input):
            learning.add(layer.name)
        need = _NEEDS[layer.kind](met)
        name, source = layer.name, roots[layer.inputs[0]]
        shapes[name] = shape
        roots[name] = root = source if need.view else name
        names[root] += 1
        size[name] = 0 if need.view else met.y
        peak = max(peak, alive + size[name] + need.forward + _LAYER_BYTES)
        alive += size[name]
        if training:
            alive += need.kept + _LAYER_BYTES
            backward = max(backward, met.y + need.backward)
            kept.update([source] if need.reads_input else [], [root] if need.reads_output else [])
        for given in set(layer.inputs):
            left[given] -= layer.inputs.count(given)
            if not left[given]:
                names[roots[given]] -= 1
                if not names[roots[given]] and roots[given] not in kept:
                    alive -= size[roots[given]]
    if not training:
        return peak
    outputs = batch * time * math.prod(description.output_shape) * itemsize
    # Gradients of values that several layers take wait for each other, and those of joined values in one tensor.
    waiting = sum(size[name] for name, count in uses.items() if count > 1)
    waiting += sum(2 * size[layer.name] for layer in description.layers if layer.kind == "concat")
    loss = alive + _LOSS_COPIES * outputs
    after = alive + _LOSS_KEPT_COPIES * outputs + waiting + backward + _GRADIENT_COPIES * description.nbytes
    return max(peak, loss, after, _UPDATE_COPIES * description.nbytes)
