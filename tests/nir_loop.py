"""NIR graphs as a plain loop over steps and nodes, in float64 and in the variables of the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

Array = np.ndarray[Any, Any]


def run(
    graph: Any,
    x: Array,
    *,
    dt: float,
    discretisation: str = "euler",
    input_gain: str = "equation",
    reset: str = "zero",
    reset_delayed: bool = False,
    synapse: str = "current",
    start: str = "zero",
    feedback: tuple[str, ...] = (),
) -> Array:
    """The output of a graph without graphs in it, shape (time, *output), for an input of shape (time, *input).

    Args:
        feedback: nodes that read what their sources gave in the step before.

    The others are the conventions of `exodus_core.nir`.
    """
    sources = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    output = next(name for name, node in graph.nodes.items() if type(node).__name__ == "Output")
    states: dict[str, dict[str, Array]] = {}
    before: dict[str, Array] = {}

    def decays(tau: Array) -> tuple[Array, Array, Array]:
        """Decay, gain of the leak, gain of the input."""
        a = 1 - dt / tau if discretisation == "euler" else np.exp(-dt / tau)
        return a, 1 - a, {"equation": 1 - a, "step": dt / tau, "unit": np.ones_like(tau)}[input_gain]

    def spiking(node: Any, state: dict[str, Array], v: Array) -> Array:
        s = (v > node.v_threshold).astype(float)
        if reset == "zero":
            v = np.where(s > 0, node.v_reset, v)
        elif not reset_delayed:
            v = v - s * node.v_threshold
        state["v"], state["s"] = v, s
        return np.asarray(s)

    def late(node: Any, state: dict[str, Array]) -> Array:
        return state["s"] * node.v_threshold if reset == "subtract" and reset_delayed else np.zeros(())

    def neuron(name: str, node: Any, value: Array) -> Array:
        kind = type(node).__name__
        rest = {"zero": 0.0, "leak": getattr(node, "v_leak", 0.0), "reset": getattr(node, "v_reset", 0.0)}[start]
        zero = np.zeros(value.shape)
        state = states.setdefault(name, {"v": zero + rest, "i": zero, "s": zero})
        v = state["v"]
        if kind in ("I", "IF"):
            v = v + (1.0 if input_gain == "unit" else dt) * node.r * value
        else:
            if kind.startswith("Cuba"):
                b, _, g = decays(node.tau_syn)
                old = state["i"]
                state["i"] = b * old + g * node.w_in * value
                value = old if synapse == "delayed" else state["i"]
            a, leak, g = decays(node.tau_mem if kind.startswith("Cuba") else node.tau)
            v = a * v + leak * node.v_leak + g * node.r * value
        if not kind.endswith("F"):
            state["v"] = v
            return np.array(v)
        return spiking(node, state, v - late(node, state))

    def value_of(name: str, node: Any, value: Array) -> Array:
        kind = type(node).__name__
        if kind == "Output":
            return value
        if kind in ("Linear", "Affine"):
            return np.asarray(node.weight @ value + getattr(node, "bias", 0.0))
        if kind == "Scale":
            return np.array(node.scale * value)
        if kind == "Delay":
            past = states.setdefault(name, {})
            past[str(len(past))] = value
            steps = len(past) - 1 - np.round(node.delay / dt).astype(int)
            return np.array([past[str(t)][i] if t >= 0 else 0.0 for i, t in enumerate(steps)])
        if kind == "Threshold":
            return np.asarray(value > node.threshold, dtype=float)
        if kind == "Flatten":
            return value.reshape(-1)
        if kind.startswith("Conv"):
            function: Any = F.conv1d if kind == "Conv1d" else F.conv2d
            padding = node.padding if isinstance(node.padding, str) else tuple(np.atleast_1d(node.padding).tolist())
            stride, dilation = (tuple(np.atleast_1d(v).tolist()) for v in (node.stride, node.dilation))
            tensors = [torch.from_numpy(np.asarray(v, dtype=float)) for v in (value, node.weight, node.bias)]
            y = function(tensors[0][None], *tensors[1:], stride, padding, dilation, int(node.groups))
            return np.asarray(y[0])
        if kind.endswith("Pool2d"):
            divisor = 1 if kind == "SumPool2d" else None
            image = torch.from_numpy(value)[None]
            kernel, stride = tuple(node.kernel_size), tuple(node.stride)
            return np.asarray(F.avg_pool2d(image, kernel, stride, divisor_override=divisor)[0])
        return neuron(name, node, value)

    def at(name: str, now: dict[str, Array]) -> Array:
        if name not in now:
            node = graph.nodes[name]
            if name in feedback:
                parts = [before.get(source, np.zeros(node.weight.shape[1])) for source in sources[name]]
            else:
                parts = [at(source, now) for source in sources[name]]
            now[name] = value_of(name, node, np.array(sum(parts)))
        return now[name]

    given = next(name for name, node in graph.nodes.items() if type(node).__name__ == "Input")
    outputs = []
    with torch.device("cpu"):
        for step in x:
            now: dict[str, Array] = {given: np.asarray(step, dtype=float)}
            outputs.append(at(output, now))
            before = now
    return np.stack(outputs)
