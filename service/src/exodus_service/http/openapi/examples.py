"""Gradient requests in the JSON form, for the documentation; every one of them can be sent as it is."""

from typing import Any

_MEMBRANE = [[[0.2, 0.9], [1.1, 1.6], [0.4, 1.2]]]
_GRAD = [[[0.5, -1.0], [1.0, 0.25], [-0.5, 1.0]]]


def floats(name: str, shape: list[int], data: Any) -> dict[str, Any]:
    """A float32 tensor."""
    return {"name": name, "dtype": "float32", "shape": shape, "data": data}


def example(summary: str, params: dict[str, Any], *tensors: dict[str, Any]) -> dict[str, Any]:
    """An example of a body, with a summary."""
    return {"summary": summary, "value": {"v": 1, "params": params, "tensors": list(tensors)}}


EXAMPLES: dict[str, Any] = {
    "membrane": example(
        "Gradient on a given membrane trace of LIF neurons",
        {
            "neuron": {"model": "lif", "alpha": 0.95, "threshold": 1.0, "reset": "subtract"},
            "surrogate": {"kind": "exponential", "slope": 2.0},
        },
        floats("membrane", [1, 3, 2], _MEMBRANE),
        floats("grad_output", [1, 3, 2], _GRAD),
    ),
    "input": example(
        "Forward and gradient from an input current, with the gradient of a decay per neuron and the traces",
        {
            "neuron": {"model": "lif", "alpha": {"tensor": "decays"}},
            "wrt": ["alpha"],
            "return": ["spikes", "membrane"],
        },
        floats("input", [1, 3, 2], [[[0.7, 0.2], [0.6, 0.9], [0.1, 0.4]]]),
        floats("decays", [2], [0.9, 0.8]),
        floats("grad_output", [1, 3, 2], _GRAD),
    ),
    "spikes_and_weight": example(
        "A layer: gradients of weights and input spikes, with a filter between the spikes and the loss",
        {"neuron": {"model": "if"}, "output_filter": {"alpha": 0.9}},
        {
            "name": "spikes",
            "dtype": "bool",
            "shape": [1, 3, 3],
            "encoding": "events",
            "data": [[0, 0, 1], [0, 1, 0], [0, 1, 2], [0, 2, 1]],
        },
        floats("weight", [2, 3], [[0.5, 1.2, 0.3], [0.9, 0.1, 0.8]]),
        floats("grad_output", [1, 3, 2], _GRAD),
    ),
    "srm": example(
        "Spike response model with any reset kernel",
        {"neuron": {"model": "srm", "threshold": 1.0}},
        floats("psp", [1, 3, 2], [[[0.7, 1.3], [1.6, 0.9], [0.4, 1.7]]]),
        floats("reset_kernel", [3], [-1.0, -0.5, -0.25]),
        floats("grad_output", [1, 3, 2], _GRAD),
    ),
    "forward": example(
        "Only the forward pass",
        {
            "neuron": {"model": "srm", "reset_kernel": {"kind": "alpha", "tau": 2.0, "amplitude": -1.0}},
            "return": ["spikes"],
        },
        floats("psp", [1, 3, 2], [[[0.7, 1.3], [1.6, 0.9], [0.4, 1.7]]]),
    ),
}
