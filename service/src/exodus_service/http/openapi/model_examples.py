"""Calls on models and layers in the JSON form, for the documentation; sent in this order, every one is answered."""

from typing import Any

from exodus_service.http.openapi.examples import example, floats

_SPIKES = {
    "name": "input",
    "dtype": "bool",
    "shape": [2, 4, 3],
    "encoding": "events",
    "data": [[0, 0, 1], [0, 1, 0], [0, 2, 2], [0, 3, 1], [1, 0, 0], [1, 1, 2], [1, 2, 1], [1, 3, 0]],
}
_TARGETS = {"name": "targets", "dtype": "int64", "shape": [2], "data": [0, 1]}
_GRAD = [[[0.5, -1.0], [1.0, 0.25], [-0.5, 1.0], [0.0, 0.5]]] * 2

CREATE: dict[str, Any] = {
    "model": example(
        "A network of two layers, to be trained with Adam",
        {
            "id": "demo",
            "network": {
                "input_shape": [3],
                "layers": [
                    {"kind": "linear", "out_features": 8},
                    {"kind": "lif", "alpha": 0.95},
                    {"kind": "linear", "out_features": 2},
                    {"kind": "exp_leak", "alpha": 0.9},
                ],
            },
            "optimizer": {"kind": "adam", "lr": 0.01},
            "seed": 1,
        },
    )
}
FORWARD: dict[str, Any] = {
    "evaluate": example("Outputs and accuracy, without training", {"loss": "max_over_time_ce"}, _SPIKES, _TARGETS)
}
STEP: dict[str, Any] = {
    "first": example(
        "The first call on a new model: gradients and a step of the optimiser",
        {"sequence": 1, "loss": "max_over_time_ce", "clip_norm": 1.0},
        _SPIKES,
        _TARGETS,
    )
}
FORWARD_BACKWARD: dict[str, Any] = {
    "second": example(
        "The second call: add to the accumulated gradients, by the gradient of any loss, and return them",
        {"sequence": 2, "gradients": True},
        _SPIKES,
        floats("grad_output", [2, 4, 2], _GRAD),
    )
}
OPTIM_STEP: dict[str, Any] = {
    "third": example("The third call: change the weights by what was accumulated", {"sequence": 3, "lr": 0.005})
}
LAYER_FORWARD: dict[str, Any] = {
    "input": example(
        "Spikes of a layer of LIF neurons, and a context",
        {"neuron": {"model": "lif", "alpha": 0.95}},
        floats("input", [1, 3, 2], [[[0.7, 1.2], [0.6, 0.9], [0.1, 0.4]]]),
    )
}
LAYER_BACKWARD: dict[str, Any] = {
    "gradient": example(
        "Gradients from a context",
        {"context": "CONTEXT", "wrt": ["alpha"]},
        floats("grad_output", [1, 3, 2], [[[0.5, -1.0], [1.0, 0.25], [-0.5, 1.0]]]),
    )
}
