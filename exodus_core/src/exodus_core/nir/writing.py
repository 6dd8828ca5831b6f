"""Networks as data to NIR: each layer as one node, or as edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exodus_core.errors import ArgumentError
from exodus_core.network import Description, parse
from exodus_core.network.layers import per_dimension
from exodus_core.nir import files
from exodus_core.nir.conventions import OF_THE_EQUATIONS, Conventions, read_conventions
from exodus_core.nir.discretisation import Array, input_gain, integrator_gain, time_constant
from exodus_core.nir.files import nir
from exodus_core.nir.reading import DTYPES, recurrent_name
from exodus_core.nir.refusals import GraphError, RefusedNodeError
from exodus_core.refusals import Refusal

_IMAGE = 3


def export_graph(
    description: Mapping[str, Any] | Sequence[Mapping[str, Any]] | Description,
    weights: Mapping[str, Tensor],
    *,
    dt: float,
    discretisation: str = "euler",
) -> Any:
    """The NIR graph of a network, with its weights as they are.

    Time constants and resistances are those whose decay in one step of dt is alpha, and whose gain is 1. The metadata
    has the conventions, the reset of each neuron, and the description; `import_graph` gives back the same network, to
    the bit. docs/nir.md says what other readers make of it.

    Args:
        description: of the network, as plain data or as `parse` returns it.
        weights: its parameters by name, as `Network.state_dict()` has them.
        dt: time step, in seconds.
        discretisation: "euler" or "exponential".

    Returns:
        a `nir.NIRGraph`; `nir.write(path, graph)` writes it.

    Raises:
        GraphError: there are layers that NIR does not express, every one with its reason.
        ValueError: weights are missing, too many or of other shapes, or an argument is wrong.
    """
    found = description if isinstance(description, Description) else parse(description)
    conventions = read_conventions({"dt": dt, "discretisation": discretisation, "start": "zero"}).over(OF_THE_EQUATIONS)
    if conventions.dt is None or conventions.discretisation is None:
        raise ArgumentError("dt, discretisation", "given", "None")
    return _Writing(found, _checked(found, weights), conventions).graph()


def _checked(description: Description, weights: Mapping[str, Tensor]) -> dict[str, Array]:
    wanted = dict(description.parameters)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    statistics = dict(description.statistics)
    for name in [*wanted, *shapes]:
        if shapes.get(name) != wanted.get(name) and name not in statistics:
            expected = f"of shape {list(wanted[name])}" if name in wanted else "absent"
            got = f"shape {list(shapes[name])}" if name in shapes else "nothing"
            raise ArgumentError(f"weights[{name!r}]", expected, got)
    dtype = getattr(torch, description.dtype)
    return {name: weights[name].detach().to("cpu", dtype).double().numpy() for name in wanted}


@dataclass(frozen=True)
class _Node:
    """A node of a layer with its recurrent weights, or none where the layer is edges alone."""

    node: Any = None
    recurrent: Any = None


class _Writing:
    def __init__(self, description: Description, weights: Mapping[str, Array], conventions: Conventions) -> None:
        self.description = description
        self.weights = weights
        self.conventions = conventions
        self.refusals: list[Refusal] = []

    def graph(self) -> Any:
        """The graph of all layers."""
        shape = np.array(self.description.input_shape)
        nodes: dict[str, Any] = {"input": nir.Input(input_type={"input": shape})}
        edges: list[tuple[str, str]] = []
        given: dict[str, list[str]] = {"input": ["input"]}
        for layer in self.description.layers:
            sources = [node for name in layer.inputs for node in given.get(name, [])]
            if len(set(sources)) < len(sources):
                self.refusals.append(Refusal(layer.name, layer.kind, f"it adds {sources[0]} twice, in NIR two edges"))
            made = self._made(layer)
            if made is None:
                given[layer.name] = [layer.name]
                continue
            if made.node is None:
                given[layer.name] = sources
                continue
            nodes[layer.name] = made.node
            edges += [(source, layer.name) for source in sources]
            given[layer.name] = [layer.name]
            if made.recurrent is not None:
                name = recurrent_name(layer.name)
                nodes[name] = made.recurrent
                edges += [(layer.name, name), (name, layer.name)]
        if self.refusals:
            raise GraphError("the network", "one of layers that NIR expresses", self.refusals)
        output = next(name for name in ("output", "network.output") if name not in nodes)
        nodes[output] = nir.Output(output_type={"output": np.array(self.description.output_shape)})
        edges += [(source, output) for source in given[self.description.layers[-1].name]]
        graph = nir.NIRGraph(nodes=nodes, edges=edges, type_check=False)
        described = self._with_values()
        graph.metadata = files.metadata(
            {
                "conventions": self.conventions.known,
                "dtype": self.description.dtype,
                "description": described.data,
                "digest": files.digest(graph),
            }
        )
        return graph

    def _made(self, layer: Any) -> _Node | None:
        writer = _WRITERS.get(layer.kind)
        try:
            if writer is None:
                raise RefusedNodeError(_REASONS.get(layer.kind, "NIR has no such node"))
            return writer(self, layer, self.description.shape_of(layer.inputs[0]))
        except RefusedNodeError as refused:
            self.refusals.append(Refusal(layer.name, layer.kind, str(refused)))
            return None

    def _with_values(self) -> Description:
        """The description with the values that trained parameters of neurons have now."""
        layers = []
        for layer in self.description.layers:
            learned = {key: self._listed(f"{layer.name}.{key}") for key in getattr(layer, "trainable", ())}
            layers.append(dataclass_replace(layer, **learned) if learned else layer)
        return dataclass_replace(self.description, layers=tuple(layers))

    def _listed(self, name: str) -> Any:
        def tuples(value: Any) -> Any:
            return tuple(tuples(v) for v in value) if isinstance(value, list) else value

        return tuples(self.weights[name].tolist())

    def values(self, layer: Any, name: str, shape: tuple[int, ...]) -> Array:
        """A parameter of neurons for each neuron, as the network's dtype has it."""
        value = self.weights[f"{layer.name}.{name}"] if name in layer.trainable else getattr(layer, name)
        array = np.asarray(value, dtype=np.float64)
        return np.array(np.broadcast_to(array, shape))

    def rounded(self, values: Array) -> Array:
        """Values as the network's dtype has them."""
        return np.asarray(values.astype(DTYPES[self.description.dtype]).astype(np.float64))

    def weight(self, name: str) -> Any:
        """A weight in the network's dtype."""
        return self.weights[name].astype(DTYPES[self.description.dtype])

    def resistance(self, tau: Array | None, gain: Array) -> Array:
        """R or w_in with which the input of a neuron is multiplied by `gain` in one step."""
        factor = integrator_gain(self.conventions) if tau is None else input_gain(tau, self.conventions)
        return np.asarray(gain / factor)


def _product(writing: _Writing, layer: Any, shape: tuple[int, ...]) -> _Node:
    weight = writing.weight(f"{layer.name}.weight")
    if not layer.bias:
        return _Node(nir.Linear(weight=weight))
    return _Node(nir.Affine(weight=weight, bias=writing.weight(f"{layer.name}.bias")))


def _convolution(writing: _Writing, layer: Any, shape: tuple[int, ...]) -> _Node:
    weight = writing.weight(f"{layer.name}.weight")
    bias = writing.weight(f"{layer.name}.bias") if layer.bias else np.zeros(weight.shape[0], weight.dtype)
    values = [per_dimension(v, layer.dimensions) for v in (layer.stride, layer.padding, layer.dilation)]
    if layer.kind == "conv1d":
        stride, padding, dilation = (int(v[0]) for v in values)
        return _Node(nir.Conv1d(shape[1], weight, stride, padding, dilation, layer.groups, bias))
    return _Node(nir.Conv2d(tuple(shape[1:]), weight, *(tuple(v) for v in values), layer.groups, bias))


def _pool(writing: _Writing, layer: Any, shape: tuple[int, ...]) -> _Node:
    if len(shape) != _IMAGE:
        raise RefusedNodeError("NIR pools over images, and its input has one dimension of space")
    kernel, stride = (np.array(values) for values in layer.windows(shape)[:2])
    make = nir.SumPool2d if layer.kind == "sum_pool" else nir.AvgPool2d
    return _Node(make(kernel_size=kernel, stride=stride, padding=np.array([0, 0])))


def _flatten(writing: _Writing, layer: Any, shape: tuple[int, ...]) -> _Node:
    return _Node(nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1))


def _edges(writing: _Writing, layer: Any, shape: tuple[int, ...]) -> _Node:
    return _Node()


def _delay(writing: _Writing, layer: Any, shape: tuple[int, ...]) -> _Node:
    assert writing.conventions.dt is not None
    return _Node(nir.Delay(delay=writing.values(layer, "delays", shape) * writing.conventions.dt))


def _exp_leak(writing: _Writing, layer: Any, shape: tuple[int, ...]) -> _Node:
    alpha = writing.values(layer, "alpha", shape)
    if (alpha == 1).all():
        return _Node(nir.I(r=writing.resistance(None, np.ones(shape))))
    tau = time_constant("alpha", alpha, writing.conventions)
    return _Node(nir.LI(tau=tau, r=writing.resistance(tau, np.ones(shape)), v_leak=np.zeros(shape)))


def _check_spiking(layer: Any) -> None:
    """Refuses what no neuron of NIR has."""
    for name, wanted in (("max_spikes", 1), ("min_membrane", None), ("refractory", 0)):
        if getattr(layer, name, wanted) != wanted:
            raise RefusedNodeError(f"its {name} is {getattr(layer, name)}; NIR has none")


def _spiking(writing: _Writing, layer: Any, shape: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """The fields of threshold and reset, and the metadata that says what NIR's equations do not, and `more`."""
    _check_spiking(layer)
    threshold = writing.rounded(writing.values(layer, "threshold", shape))
    own: dict[str, Any] = {"reset": "zero", "firing": "at", **more}
    reset = np.zeros(shape)
    if layer.reset == "none":
        raise RefusedNodeError("its reset is none; in NIR a spike resets")
    if layer.reset == "value":
        reset = writing.rounded(np.array(np.broadcast_to(np.asarray(layer.reset_to, dtype=np.float64), shape)))
    elif layer.reset == "subtract":
        own |= {"reset": "subtract", "reset_delayed": not layer.decay_reset}
        by = threshold if layer.reset_by is None else writing.rounded(writing.values(layer, "reset_by", shape))
        dtype = DTYPES[writing.description.dtype]
        if (by != threshold).any():
            if (np.nextafter(by.astype(dtype), dtype(math.inf)).astype(np.float64) != threshold).any():
                raise RefusedNodeError("its reset_by is other than its threshold; NIR has no size of a reset")
            threshold, own["firing"] = by, "above"
    return {"v_threshold": threshold, "v_reset": reset, "metadata": files.metadata(own)}


def _lif(writing: _Writing, layer: Any, shape: tuple[int, ...]) -> _Node:
    _check_spiking(layer)
    alpha = np.ones(shape) if layer.kind == "if" else writing.values(layer, "alpha", shape)
    if layer.reset == "none" and (alpha == 0).all() and layer.recurrent is None:
        threshold = writing.rounded(writing.values(layer, "threshold", shape))
        own = files.metadata({"firing": "at"})
        return _Node(nir.Threshold(threshold=threshold, metadata=own))
    fields = _spiking(writing, layer, shape)
    recurrent = _recurrent(writing, layer, shape)
    if (alpha == 1).all():
        return _Node(nir.IF(r=writing.resistance(None, np.ones(shape)), **fields), recurrent)
    tau = time_constant("alpha", alpha, writing.conventions)
    r = writing.resistance(tau, np.ones(shape))
    return _Node(nir.LIF(tau=tau, r=r, v_leak=np.zeros(shape), **fields), recurrent)


def _cuba_lif(writing: _Writing, layer: Any, shape: tuple[int, ...]) -> _Node:
    fields = _spiking(writing, layer, shape, synapse="delayed" if layer.synapse_delayed else "current")
    tau = time_constant("alpha", writing.values(layer, "alpha", shape), writing.conventions)
    tau_syn = time_constant("synapse_alpha", writing.values(layer, "synapse_alpha", shape), writing.conventions)
    gain = writing.values(layer, "synapse_gain", shape)
    node = nir.CubaLIF(
        tau_syn=tau_syn,
        tau_mem=tau,
        r=writing.resistance(tau, gain),
        w_in=writing.resistance(tau_syn, np.ones(shape)),
        v_leak=np.zeros(shape),
        **fields,
    )
    return _Node(node, _recurrent(writing, layer, shape))


def _recurrent(writing: _Writing, layer: Any, shape: tuple[int, ...]) -> Any:
    if layer.recurrent is None:
        return None
    if len(shape) != 1:
        raise RefusedNodeError("it has recurrent connections, and an input of several dimensions")
    weight = writing.weight(f"{layer.name}.recurrent.weight")
    if not layer.recurrent.bias:
        return nir.Linear(weight=weight)
    return nir.Affine(weight=weight, bias=writing.weight(f"{layer.name}.recurrent.bias"))


_WRITERS: dict[str, Callable[[_Writing, Any, tuple[int, ...]], _Node]] = {
    "linear": _product,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "sum_pool": _pool,
    "avg_pool": _pool,
    "adaptive_avg_pool": _pool,
    "flatten": _flatten,
    "add": _edges,
    "dropout": _edges,
    "exp_leak": _exp_leak,
    "delay": _delay,
    "if": _lif,
    "lif": _lif,
    "cuba_lif": _cuba_lif,
}
_REASONS = {
    "batch_norm": "NIR has no normalisation; take it into the weights before",
    "srm": "NIR has no spike-response neuron",
    "alif": "NIR has no adaptive neuron",
    "delayed_linear": "NIR has no delays of synapses",
}
