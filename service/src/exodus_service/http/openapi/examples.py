"""Examples of requests in the JSON form. Each can be sent as it is; those on models in the order they have here."""

from typing import Any

Example = dict[str, Any]


def _tensor(name: str, data: Any, dtype: str = "float32") -> dict[str, Any]:
    shape, inner = [], data
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0]
    return {"name": name, "dtype": dtype, "shape": shape, "data": data}


def _events(name: str, shape: list[int], events: list[list[int]]) -> dict[str, Any]:
    return {"name": name, "dtype": "bool", "shape": shape, "encoding": "events", "data": events}


def _example(summary: str, params: dict[str, Any], *tensors: dict[str, Any]) -> Example:
    return {"summary": summary, "value": {"v": 1, "params": params, "tensors": list(tensors)}}


_GRAD_OUTPUT = _tensor("grad_output", [[[0.5, -1.0], [1.0, 0.25], [-0.5, 1.0]]])
_INPUT = _tensor("input", [[[0.7, 1.2], [0.6, 0.9], [0.1, 0.4]]])
_PSP = _tensor("psp", [[[0.7, 1.3], [1.6, 0.9], [0.4, 1.7]]])

GRADIENTS = {
    "membrane": _example(
        "Gradient of LIF neurons for a given membrane trace",
        {
            "neuron": {"model": "lif", "alpha": 0.95, "threshold": 1.0, "reset": "subtract"},
            "surrogate": {"kind": "exponential", "slope": 2.0},
        },
        _tensor("membrane", [[[0.2, 0.9], [1.1, 1.6], [0.4, 1.2]]]),
        _GRAD_OUTPUT,
    ),
    "input": _example(
        "Forward pass and gradient for an input current, with the gradient of each neuron's decay and the traces",
        {
            "neuron": {"model": "lif", "alpha": {"tensor": "decays"}},
            "wrt": ["alpha"],
            "return": ["spikes", "membrane"],
        },
        _tensor("input", [[[0.7, 0.2], [0.6, 0.9], [0.1, 0.4]]]),
        _tensor("decays", [0.9, 0.8]),
        _GRAD_OUTPUT,
    ),
    "spikes_and_weight": _example(
        "A layer: gradients of weights and input spikes, with a filter between the output spikes and the loss",
        {"neuron": {"model": "if"}, "output_filter": {"alpha": 0.9}},
        _events("spikes", [1, 3, 3], [[0, 0, 1], [0, 1, 0], [0, 1, 2], [0, 2, 1]]),
        _tensor("weight", [[0.5, 1.2, 0.3], [0.9, 0.1, 0.8]]),
        _GRAD_OUTPUT,
    ),
    "cuba_lif": _example(
        "Second-order LIF neurons with a refractory period: the gradient of the current's decay, and the last state",
        {
            "neuron": {"model": "cuba_lif", "alpha": 0.9, "synapse_alpha": 0.8, "synapse_gain": 0.5, "refractory": 1},
            "wrt": ["synapse_alpha"],
            "return": ["spikes", "state"],
        },
        _INPUT,
        _GRAD_OUTPUT,
    ),
    "alif": _example(
        "Adaptive LIF neurons for a given membrane trace: spikes raise the threshold",
        {
            "neuron": {"model": "alif", "alpha": 0.9, "adapt_alpha": 0.95, "adapt_threshold": 0.3},
            "wrt": ["adapt_alpha", "adapt_threshold"],
        },
        _tensor("membrane", [[[0.2, 0.9], [1.1, 1.6], [0.4, 1.2]]]),
        _GRAD_OUTPUT,
    ),
    "srm": _example(
        "Spike response model with a reset kernel given by its taps",
        {"neuron": {"model": "srm", "threshold": 1.0}},
        _PSP,
        _tensor("reset_kernel", [-1.0, -0.5, -0.25]),
        _GRAD_OUTPUT,
    ),
    "forward": _example(
        "Forward pass alone",
        {
            "neuron": {"model": "srm", "reset_kernel": {"kind": "alpha", "tau": 2.0, "amplitude": -1.0}},
            "return": ["spikes"],
        },
        _PSP,
    ),
}

_SPIKES = _events(
    "input",
    [2, 4, 3],
    [[0, 0, 1], [0, 1, 0], [0, 2, 2], [0, 3, 1], [1, 0, 0], [1, 1, 2], [1, 2, 1], [1, 3, 0]],
)
_TARGETS = _tensor("targets", [0, 1], "int64")

CREATE = {
    "model": _example(
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
FORWARD = {
    "evaluate": _example("Outputs and accuracy, without training", {"loss": "max_over_time_ce"}, _SPIKES, _TARGETS),
    "lengths": _example(
        "Metrics of samples of which one ends a step earlier: `lengths` says how many steps of each count",
        {"loss": "per_step_ce", "return": []},
        _SPIKES,
        _TARGETS,
        _tensor("lengths", [4, 3], "int64"),
    ),
    "mask": _example(
        "Metrics of the steps that a mask names",
        {"loss": "per_step_ce", "return": []},
        _SPIKES,
        _TARGETS,
        _tensor("mask", [[True, True, True, True], [False, True, True, False]], "bool"),
    ),
    "record": _example(
        "Membrane and spikes of the hidden layer, called 1, and numbers of all layers, without the outputs",
        {"record": ["1.membrane", "1.spikes"], "statistics": True, "return": []},
        _SPIKES,
    ),
}
STEP = {
    "first": _example(
        "First call on a new model: gradients and a step of the optimiser",
        {"sequence": 1, "loss": "max_over_time_ce", "clip_norm": 1.0},
        _SPIKES,
        _TARGETS,
    )
}
FORWARD_BACKWARD = {
    "second": _example(
        "Second call: accumulate the gradients of any loss, given by grad_output, and return them",
        {"sequence": 2, "gradients": True},
        _SPIKES,
        _tensor("grad_output", [[[0.5, -1.0], [1.0, 0.25], [-0.5, 1.0], [0.0, 0.5]]] * 2),
    )
}
OPTIM_STEP = {"third": _example("Third call: apply the accumulated gradients", {"sequence": 3, "lr": 0.005})}
LAYER_FORWARD = {
    "input": _example(
        "Spikes of a layer of LIF neurons, and a context",
        {"neuron": {"model": "lif", "alpha": 0.95}},
        _INPUT,
    ),
    "alif": _example(
        "Spikes of a layer of adaptive LIF neurons that see a synaptic current, and a context",
        {
            "neuron": {
                "model": "alif",
                "alpha": 0.9,
                "adapt_alpha": 0.95,
                "adapt_threshold": 0.3,
                "synapse_alpha": 0.8,
            }
        },
        _INPUT,
    ),
}
LAYER_BACKWARD = {
    "gradient": _example("Gradients from a context", {"context": "CONTEXT", "wrt": ["alpha"]}, _GRAD_OUTPUT)
}
