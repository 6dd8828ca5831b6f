"""NIR to networks as data: each node as one layer, or as several."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exodus_core.errors import ArgumentError
from exodus_core.network import KINDS, Description, NetworkError, parse
from exodus_core.nir import files
from exodus_core.nir.conventions import (
    OF_THE_EQUATIONS,
    Conventions,
    check_known,
    of_library,
    read_conventions,
)
from exodus_core.nir.discretisation import Array, decay, input_gain, integrator_gain, leak_gain
from exodus_core.nir.refusals import GraphError, RefusedNodeError
from exodus_core.nir.topology import Topology, sorted_graph, type_of
from exodus_core.refusals import Refusal
from exodus_core.schema import Place, read_record

DTYPES: dict[str, Any] = {"float32": np.float32, "float64": np.float64}

#: Conventions that each type of node needs beside those that NIR's equations settle.
_NEEDED = {
    "LIF": ("dt", "discretisation", "reset"),
    "LI": ("dt", "discretisation"),
    "CubaLIF": ("dt", "discretisation", "reset", "synapse"),
    "CubaLI": ("dt", "discretisation", "synapse"),
    "IF": ("reset",),
    "I": (),
    "Delay": ("dt",),
}
_INTEGRATORS = ("IF", "I")
#: How far, relatively, a delay is from a whole number of steps at most.
_WHOLE = 1e-6


@dataclass(frozen=True)
class Imported:
    """A network read from NIR.

    Attributes:
        description: the checked description; `description.data` is plain data, as services take it.
        weights: every parameter of the network by name, as `build(description).load_state_dict` takes them.
        layers: the name of the layer that a node became, for each but recurrent weights. It gives what the node gives,
            unless it is a linear layer or a convolution whose weights have the gain and the leak of the node behind
            it, or a neuron whose membrane is counted from where it starts: a layer's membrane is that much lower.
        conventions: those of the whole graph; nodes that exodus wrote may have others.
    """

    description: Description
    weights: dict[str, Tensor]
    layers: dict[str, str]
    conventions: Conventions


def import_graph(
    graph: Any,
    *,
    dt: float | None = None,
    discretisation: str | None = None,
    input_gain: str | None = None,
    reset: str | None = None,
    reset_delayed: bool | None = None,
    synapse: str | None = None,
    firing: str | None = None,
    start: str | None = None,
    max_spikes: int | None = None,
    min_membrane: str | None = None,
    written_by: str | None = None,
    dtype: str | None = None,
) -> Imported:
    """Reads a NIR graph as a network as data and its weights.

    Each convention is what the argument says; else what the file says, if exodus wrote it; else what the library that
    wrote it does; else what NIR's equations say. Without any of them it is an error that names the argument, if a node
    needs it. docs/nir.md has what each node becomes.

    Args:
        graph: a `nir.NIRGraph`, or the path of a file.
        dt, discretisation, input_gain, reset, reset_delayed, synapse, firing, start, max_spikes, min_membrane: see
            `Conventions`.
        written_by: the library that wrote the file: one of LIBRARIES, or None.
        dtype: of the network, "float32" or "float64"; None: as the network was that exodus wrote, else float32.
            Parameters are computed in float64 and rounded at the end.

    Raises:
        GraphError: there are nodes that networks do not compute, every one with its reason.
        ValueError: a convention is missing or wrong, or the file is no NIR file.
        FileNotFoundError: there is no such file.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ArgumentError("dtype", f"one of {', '.join(DTYPES)}, or None", dtype)
    given = read_conventions(
        {
            "dt": dt,
            "discretisation": discretisation,
            "input_gain": input_gain,
            "reset": reset,
            "reset_delayed": reset_delayed,
            "synapse": synapse,
            "firing": firing,
            "start": start,
            "max_spikes": max_spikes,
            "min_membrane": min_membrane,
        }
    )
    found = files.read_graph(graph)
    own = files.read_metadata(found, "the graph")
    told = read_conventions(own.get("conventions", {}), "metadata of the graph: ")
    general = given.over(told).over(of_library(written_by)).over(OF_THE_EQUATIONS)
    own_dtype = own.get("dtype", "float32")
    if own_dtype not in DTYPES:
        raise ArgumentError("metadata of the graph: dtype", f"one of {', '.join(DTYPES)}", own_dtype)
    dtype = dtype or own_dtype
    asked = {name: value for name, value in given.known.items() if value != getattr(told, name)}
    if "description" in own and dtype == own_dtype and not asked and own.get("digest") == files.digest(found):
        return _written(found, own, general)
    topology = sorted_graph(found)
    by_node = {name: _of_node(node, name, given, general) for name, node in topology.nodes.items()}
    if not topology.refusals:
        unknown = [(name, type_of(node)) for name, node in topology.nodes.items() if type_of(node) not in _READERS]
        if not unknown:
            check_known(_missing(topology, by_node))
    reading = _Reading(topology, by_node, dtype)
    reading.run()
    return reading.imported(general)


def _of_node(node: Any, name: str, given: Conventions, general: Conventions) -> Conventions:
    own = read_conventions(files.read_metadata(node, name), f"metadata of {name}: ")
    return given.over(own).over(general)


def _missing(topology: Topology, by_node: Mapping[str, Conventions]) -> list[tuple[str, str]]:
    missing = []
    for name, node in topology.nodes.items():
        kind, known = type_of(node), by_node[name]
        needed = list(_NEEDED.get(kind, ()))
        if kind in _INTEGRATORS and known.input_gain != "unit":
            needed.insert(0, "dt")
        if any(np.any(np.asarray(getattr(node, key, 0.0)) != 0) for key in ("v_leak", "v_reset")):
            needed.append("start")
        missing += [(key, name) for key in needed if getattr(known, key) is None]
    return missing


def _written(graph: Any, own: Mapping[str, Any], conventions: Conventions) -> Imported:
    """The network of an unchanged graph that exodus wrote: to the bit, with what NIR has no place for."""
    description = parse(own["description"])
    weights: dict[str, Tensor] = {}
    for layer in description.layers:
        for key in getattr(layer, "trainable", ()):
            weights[f"{layer.name}.{key}"] = _tensor(getattr(layer, key), description.dtype)
    for name, shape in description.parameters:
        if name not in weights:
            layer_name, _, key = name.partition(".")
            inner = key.removeprefix("recurrent.")
            node = graph.nodes.get(layer_name if inner == key else recurrent_name(layer_name))
            weights[name] = _tensor(getattr(node, inner, ()), description.dtype)
        if weights[name].shape != shape:
            expected = f"a description of its nodes, with {name} of shape {list(shape)}"
            raise ArgumentError("metadata of the graph", expected, f"a node with {list(weights[name].shape)}")
    ordered = {name: weights[name] for name, _ in description.parameters}
    layers = {layer.name: layer.name for layer in description.layers if layer.name in graph.nodes}
    return Imported(description, ordered, layers, conventions)


def recurrent_name(layer: str) -> str:
    """The name of the node with the recurrent weights of a layer."""
    return f"{layer}.w_rec"


def _tensor(values: Any, dtype: str) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=getattr(torch, dtype), device="cpu")


def _array(node: Any, key: str, shape: tuple[int, ...]) -> Array:
    """A parameter of a node for each neuron."""
    values = np.asarray(getattr(node, key), dtype=np.float64)
    try:
        return np.broadcast_to(values, shape)
    except ValueError as error:
        raise RefusedNodeError(f"{key} of shape {list(values.shape)} does not fit its input, {list(shape)}") from error


def _same_over_space(values: Array) -> bool:
    return bool((values == values[(slice(None), *(slice(0, 1),) * (values.ndim - 1))]).all())


def _field(values: Array) -> Any:
    """Values for each neuron as a description has them: a number if all are equal, one a channel if those are."""
    if (values == values.flat[0]).all():
        return float(values.flat[0])
    if values.ndim > 1 and _same_over_space(values):
        return values[(slice(None), *(slice(0, 1),) * (values.ndim - 1))].tolist()
    return values.tolist()


def _integers(value: Any) -> Any:
    """A number of a node, or one for each dimension."""
    array = np.asarray(value)
    return int(array) if array.ndim == 0 else [int(v) for v in array]


class _Reading:
    """A network under construction: layers by name, with their shapes and weights in float64."""

    def __init__(self, topology: Topology, by_node: Mapping[str, Conventions], dtype: str) -> None:
        self.topology = topology
        self.by_node = by_node
        self.dtype = dtype
        self.refusals = list(topology.refusals)
        self.layers: dict[str, dict[str, Any]] = {}
        self.weights: dict[str, dict[str, Array]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"input": topology.input_shape}
        #: The layer that gives what a node gives.
        self.given: dict[str, str] = {topology.input: "input"}
        #: Layers that one node alone reads, so that its gain may be taken into their weights.
        self.own: set[str] = set()

    def run(self) -> None:
        """Reads all nodes, and collects those that are refused."""
        for name, node in self.topology.nodes.items():
            kind = type_of(node)
            reader = _READERS.get(kind)
            if reader is None:
                self.refusals.append(Refusal(name, kind, "networks have no such layer"))
            elif self.topology.sources[name] and all(source in self.given for source in self.topology.sources[name]):
                self._read(reader, name, node)
        if self.refusals:
            raise GraphError("graph", "one of nodes that networks compute", self.refusals)

    def _read(self, reader: Callable[[_Reading, str, Any, str], str], name: str, node: Any) -> None:
        before = set(self.layers)
        try:
            given = reader(self, name, node, self.summed(name))
        except RefusedNodeError as refused:
            self.refusals.append(Refusal(name, type_of(node), str(refused)))
            return
        self.given[name] = given
        if self.topology.targets[name] == 1 and given not in before:
            self.own.add(given)

    def imported(self, conventions: Conventions) -> Imported:
        """The network, checked as a whole."""
        last = self.summed(self.topology.output)
        if last == "input":
            raise GraphError("graph", "one with a node", [Refusal(self.topology.output, "Output", "it is the input")])
        listed, found = self.topology.output_shape, self.shapes[last]
        if listed and [n for n in listed if n != 1] != [n for n in found if n != 1]:
            reason = f"its shape is {list(listed)}, and {list(found)} comes"
            raise GraphError("graph", "consistent", [Refusal(self.topology.output, "Output", reason)])
        data = {
            "input_shape": list(self.topology.input_shape),
            "dtype": self.dtype,
            "layers": list(self.layers.values()),
        }
        description = parse(data)
        weights = {
            name: _tensor(self.weights[name.partition(".")[0]][name.partition(".")[2]], self.dtype)
            for name, _ in description.parameters
        }
        layers = {name: layer for name, layer in self.given.items() if layer != "input"}
        return Imported(description, weights, layers, conventions)

    def summed(self, name: str) -> str:
        """The layer that gives what a node reads; several sources are added."""
        sources = [self.given[source] for source in self.topology.sources[name]]
        return sources[0] if len(sources) == 1 else self.add(f"{name}_sum", {"kind": "add"}, sources)

    def add(
        self, name: str, data: Mapping[str, Any], inputs: list[str], weights: Mapping[str, Array] | None = None
    ) -> str:
        """Adds a layer; returns its name."""
        name = self._unused(name)
        kind = KINDS[data["kind"]]
        place = Place(f"layer {name}", NetworkError)
        try:
            layer = read_record(kind, data, place, ("kind",))
            shape = layer.output_shape(tuple(self.shapes[source] for source in inputs), place)
        except NetworkError as error:
            raise RefusedNodeError(f"as a layer of kind {data['kind']}: {error}") from error
        self.layers[name] = {**data, "name": name, "inputs": inputs}
        self.weights[name] = dict(weights or {})
        self.shapes[name] = shape
        return name

    def _unused(self, node: str) -> str:
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", node)[:28] or "layer"
        names = [stem, *(f"{stem}_{i}" for i in range(1, len(self.layers) + 2))]
        return next(name for name in names if name not in self.layers and name != "input")

    def affine(self, name: str, source: str, scale: Array, offset: Array) -> str:
        """A layer that gives scale x + offset, elementwise: the layer before with other weights, or one more."""
        if (scale == 1).all() and (offset == 0).all():
            return source
        if source in self.own and self._taken_in(source, scale, offset):
            return source
        shape = self.shapes[source]
        bias = {"bias": offset} if (offset != 0).any() else {}
        if len(shape) == 1:
            data: dict[str, Any] = {"kind": "linear", "out_features": shape[0], "bias": bool(bias)}
            return self.add(name, data, [source], {"weight": np.diag(scale), **bias})
        if len(shape) > 3 or not (_same_over_space(scale) and _same_over_space(offset)):
            raise RefusedNodeError("its gain or current differs over space, and no layer multiplies by that")
        kernel = (1,) * (len(shape) - 1)
        data = {
            "kind": f"conv{len(kernel)}d",
            "out_channels": shape[0],
            "kernel_size": 1,
            "groups": shape[0],
            "bias": bool(bias),
        }
        first: Any = (slice(None), *(0,) * len(kernel))
        bias = {"bias": offset[first]} if bias else {}
        return self.add(name, data, [source], {"weight": scale[first].reshape(shape[0], 1, *kernel), **bias})

    def _taken_in(self, source: str, scale: Array, offset: Array) -> bool:
        """True if the weights of a linear layer or convolution before have been changed to give scale y + offset."""
        layer, weights = self.layers[source], self.weights[source]
        if layer["kind"] not in ("linear", "conv1d", "conv2d"):
            return False
        if not (_same_over_space(scale) and _same_over_space(offset)):
            return False
        first: Any = (slice(None), *(0,) * (scale.ndim - 1))
        scale, offset = scale[first], offset[first]
        weight = weights["weight"]
        weights["weight"] = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
        if "bias" in weights or (offset != 0).any():
            weights["bias"] = weights.get("bias", np.zeros_like(scale)) * scale + offset
            layer["bias"] = True
        return True

    def rounded(self, values: Array) -> Array:
        """Values as the network's dtype has them."""
        return np.asarray(values.astype(DTYPES[self.dtype]).astype(np.float64))

    def threshold(self, name: str, values: Array) -> Array:
        """From which membrane on neurons fire whose threshold is `values`, in the network's dtype."""
        if self.by_node[name].firing == "at":
            return self.rounded(values)
        dtype = DTYPES[self.dtype]
        return np.asarray(np.nextafter(values.astype(dtype), dtype(np.inf)).astype(np.float64))


def _weighted(node: Any, *keys: str) -> dict[str, Array]:
    return {key: np.asarray(getattr(node, key), dtype=np.float64) for key in keys}


def _product(reading: _Reading, name: str, node: Any, source: str) -> str:
    bias = type_of(node) == "Affine"
    weights = _weighted(node, "weight", *(["bias"] if bias else []))
    weight = weights["weight"]
    if weight.ndim != 2:
        raise RefusedNodeError(f"its weight has shape {list(weight.shape)}; a matrix is computed")
    if bias and weights["bias"].shape != weight.shape[:1]:
        raise RefusedNodeError(f"its bias has shape {list(weights['bias'].shape)}, want [{weight.shape[0]}]")
    data = {"kind": "linear", "in_features": weight.shape[1], "out_features": weight.shape[0], "bias": bias}
    return reading.add(name, data, [source], weights)


def _convolution(reading: _Reading, name: str, node: Any, source: str) -> str:
    weights = _weighted(node, "weight")
    weight = weights["weight"]
    dimensions = int(type_of(node)[4])
    if weight.ndim != 2 + dimensions:
        raise RefusedNodeError(f"its weight has shape {list(weight.shape)}, want {2 + dimensions} dimensions")
    bias = None if node.bias is None else np.asarray(node.bias, dtype=np.float64)
    has_bias = bias is not None and bool((bias != 0).any())  # writers put zeros for none
    if has_bias:
        assert bias is not None
        weights["bias"] = np.broadcast_to(bias, weight.shape[:1])
    stride, dilation = _integers(node.stride), _integers(node.dilation)
    data = {
        "kind": type_of(node).lower(),
        "in_channels": weight.shape[1] * int(node.groups),
        "out_channels": weight.shape[0],
        "kernel_size": list(weight.shape[2:]),
        "stride": stride,
        "padding": _padding(node.padding, weight.shape[2:], stride, dilation),
        "dilation": dilation,
        "groups": int(node.groups),
        "bias": has_bias,
    }
    return reading.add(name, data, [source], weights)


def _padding(padding: Any, kernel: tuple[int, ...], stride: Any, dilation: Any) -> Any:
    if not isinstance(padding, str):
        return _integers(padding)
    if padding == "valid":
        return 0
    dilations = np.broadcast_to(dilation, len(kernel))
    both = [int(d) * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    if (np.asarray(stride) != 1).any() or any(size % 2 for size in both):
        raise RefusedNodeError("padding same of an even kernel, or with a stride, is not the same at both sides")
    return [size // 2 for size in both]


def _pool(reading: _Reading, name: str, node: Any, source: str) -> str:
    if (np.asarray(node.padding) != 0).any():
        raise RefusedNodeError(f"its padding is {_integers(node.padding)}; pools of networks have none")
    kind = "sum_pool" if type_of(node) == "SumPool2d" else "avg_pool"
    data = {"kind": kind, "kernel_size": _integers(node.kernel_size), "stride": _integers(node.stride)}
    if len(reading.shapes[source]) != 3:
        raise RefusedNodeError(f"its input has shape {list(reading.shapes[source])}, want channels, height and width")
    return reading.add(name, data, [source])


def _flatten(reading: _Reading, name: str, node: Any, source: str) -> str:
    shape = reading.shapes[source]
    start, end = (int(v) + (len(shape) if int(v) < 0 else 0) for v in (node.start_dim, node.end_dim))
    if not 0 <= start <= end < len(shape):
        raise RefusedNodeError(f"start_dim {node.start_dim} and end_dim {node.end_dim} are not of {list(shape)}")
    if (start, end) != (0, len(shape) - 1):
        kept = [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]]
        return reading.add(name, {"kind": "reshape", "shape": kept}, [source])
    return reading.add(name, {"kind": "flatten"}, [source])


def _scale(reading: _Reading, name: str, node: Any, source: str) -> str:
    shape = reading.shapes[source]
    scale = _array(node, "scale", shape)
    # A layer of its own even where it could be taken into the one before: then both can be exported again.
    reading.own.discard(source)
    return reading.affine(name, source, scale, np.zeros(shape))


def _delay(reading: _Reading, name: str, node: Any, source: str) -> str:
    dt = reading.by_node[name].dt
    assert dt is not None
    exact = _array(node, "delay", reading.shapes[source]) / dt
    steps = np.round(exact)
    # Time constants and delays of files are float32 as a rule.
    if not (np.abs(exact - steps) <= _WHOLE * np.maximum(steps, 1)).all():
        raise RefusedNodeError(f"a delay is no whole number of steps of {dt:g}")
    return reading.add(name, {"kind": "delay", "delays": _field(steps)}, [source])


def _threshold(reading: _Reading, name: str, node: Any, source: str) -> str:
    values = reading.threshold(name, _array(node, "threshold", reading.shapes[source]))
    if (values <= 0).any():
        raise RefusedNodeError("a threshold is negative; layers fire above a positive one")
    return reading.add(name, {"kind": "lif", "alpha": 0.0, "reset": "none", "threshold": _field(values)}, [source])


def _start(conventions: Conventions, leak: Array, reset: Array) -> Array:
    return {"leak": leak, "reset": reset}.get(conventions.start or "zero", np.zeros_like(leak))


def _integrator(reading: _Reading, name: str, node: Any, source: str) -> str:
    shape, conventions = reading.shapes[source], reading.by_node[name]
    gain = integrator_gain(conventions) * _array(node, "r", shape)
    if type_of(node) == "I":
        driven = reading.affine(f"{name}_in", source, gain, np.zeros(shape))
        return reading.add(name, {"kind": "exp_leak", "alpha": 1.0}, [driven])
    reset = _array(node, "v_reset", shape)
    start = _start(conventions, np.zeros(shape), reset)
    fields = _spiking(reading, name, node, start, reset)
    if conventions.min_membrane == "threshold":
        fields["min_membrane"] = _field(-_array(node, "v_threshold", shape) - start)
    return _neuron(reading, name, "if", fields, source, gain, np.zeros(shape))


def _leaky(reading: _Reading, name: str, node: Any, source: str) -> str:
    shape, conventions = reading.shapes[source], reading.by_node[name]
    tau = _array(node, "tau", shape)
    alpha = decay("tau", tau, conventions)
    gain = input_gain(tau, conventions) * _array(node, "r", shape)
    leak = _array(node, "v_leak", shape)
    if type_of(node) == "LI":
        return _readout(reading, name, source, alpha, gain, leak_gain(tau, conventions), leak)
    reset = _array(node, "v_reset", shape)
    start = _start(conventions, leak, reset)
    fields = {"alpha": _field(alpha), **_spiking(reading, name, node, start, reset)}
    return _neuron(reading, name, "lif", fields, source, gain, leak_gain(tau, conventions) * (leak - start))


def _cuba(reading: _Reading, name: str, node: Any, source: str) -> str:
    shape, conventions = reading.shapes[source], reading.by_node[name]
    tau, tau_syn = _array(node, "tau_mem", shape), _array(node, "tau_syn", shape)
    alpha, synapse_alpha = decay("tau_mem", tau, conventions), decay("tau_syn", tau_syn, conventions)
    gain = input_gain(tau, conventions) * _array(node, "r", shape)
    synapse_gain = input_gain(tau_syn, conventions) * _array(node, "w_in", shape)
    leak = _array(node, "v_leak", shape)
    if type_of(node) == "CubaLI":
        if conventions.synapse == "delayed":
            raise RefusedNodeError("synapse delayed is computed for CubaLIF only")
        driven = reading.affine(f"{name}_in", source, synapse_gain, np.zeros(shape))
        current = reading.add(f"{name}_synapse", {"kind": "exp_leak", "alpha": _field(synapse_alpha)}, [driven])
        return _readout(reading, name, current, alpha, gain, leak_gain(tau, conventions), leak)
    reset = _array(node, "v_reset", shape)
    start = _start(conventions, leak, reset)
    if ((leak - start) != 0).any():
        raise RefusedNodeError(
            "v_leak is other than the membrane that it starts from: a current past its synapse; start leak has none"
        )
    fields = {
        "alpha": _field(alpha),
        "synapse_alpha": _field(synapse_alpha),
        "synapse_gain": _field(gain),
        "synapse_delayed": conventions.synapse == "delayed",
        **_spiking(reading, name, node, start, reset),
    }
    return _neuron(reading, name, "cuba_lif", fields, source, synapse_gain, np.zeros(shape))


def _readout(reading: _Reading, name: str, source: str, alpha: Array, gain: Array, leak_by: Array, leak: Array) -> str:
    conventions = reading.by_node[name]
    start = _start(conventions, leak, np.zeros_like(leak))
    driven = reading.affine(f"{name}_in", source, gain, leak_by * (leak - start))
    membrane = reading.add(name, {"kind": "exp_leak", "alpha": _field(alpha)}, [driven])
    return reading.affine(f"{name}_out", membrane, np.ones_like(start), start)


def _spiking(reading: _Reading, name: str, node: Any, start: Array, reset: Array) -> dict[str, Any]:
    """The fields of threshold and reset, of a membrane that is counted from where it starts."""
    conventions, values = reading.by_node[name], _array(node, "v_threshold", start.shape)
    threshold = reading.threshold(name, values - start)
    if (threshold <= 0).any():
        raise RefusedNodeError(
            f"v_threshold is not above the membrane that it starts from ({conventions.start}) everywhere"
        )
    assert conventions.max_spikes is not None
    fields: dict[str, Any] = {"threshold": _field(threshold)}
    if conventions.reset == "subtract":
        if (reset != 0).any():
            raise RefusedNodeError("v_reset is other than 0, and reset subtract subtracts v_threshold")
        fields |= {"reset": "subtract", "decay_reset": not conventions.reset_delayed}
        by = reading.rounded(values)
        if (by != threshold).any():
            fields["reset_by"] = _field(by)
        if conventions.max_spikes > 1:
            fields["max_spikes"] = conventions.max_spikes
        return fields
    if conventions.reset_delayed:
        raise RefusedNodeError("reset zero is computed at once only, without reset_delayed")
    if conventions.max_spikes > 1:
        raise RefusedNodeError("several spikes in a step are computed with reset subtract only")
    if (reset == start).all():
        return {**fields, "reset": "zero"}
    return {**fields, "reset": "value", "reset_to": _field(reset - start)}


def _neuron(
    reading: _Reading, name: str, kind: str, fields: Mapping[str, Any], source: str, gain: Array, current: Array
) -> str:
    """A layer of spiking neurons whose input is gain x + current, with its recurrent connections."""
    data, weights = {"kind": kind, **fields}, {}
    if name in reading.topology.recurrent:
        if gain.ndim != 1:
            raise RefusedNodeError("it has recurrent connections, and an input of several dimensions")
        product = reading.topology.recurrent[name]
        weight = np.eye(len(gain)) if product is None else np.asarray(product.weight, dtype=np.float64)
        if weight.shape != (len(gain), len(gain)):
            raise RefusedNodeError(f"its recurrent weights have shape {list(weight.shape)}, want {[len(gain)] * 2}")
        bias = product is not None and type_of(product) == "Affine"
        data["recurrent"] = {"bias": bias}
        weights["recurrent.weight"] = gain[:, None] * weight
        if bias:
            weights["recurrent.bias"] = gain * np.asarray(product.bias, dtype=np.float64)
    driven = reading.affine(f"{name}_in", source, gain, current)
    return reading.add(name, data, [driven], weights)


_READERS: dict[str, Callable[[_Reading, str, Any, str], str]] = {
    "Affine": _product,
    "Linear": _product,
    "Conv1d": _convolution,
    "Conv2d": _convolution,
    "SumPool2d": _pool,
    "AvgPool2d": _pool,
    "Flatten": _flatten,
    "Scale": _scale,
    "Delay": _delay,
    "Threshold": _threshold,
    "I": _integrator,
    "IF": _integrator,
    "LI": _leaky,
    "LIF": _leaky,
    "CubaLI": _cuba,
    "CubaLIF": _cuba,
}
