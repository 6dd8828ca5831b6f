"""Networks for the tests of network and training, and the plain loops that say what they compute."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from exodus_core import AlphaKernel, ExponentialKernel, SlayerRefractory, network, reference
from exodus_core.surrogate import KINDS as SURROGATES

EVERY_LIF = {
    "alpha": [0.9, 0.8, 0.7],
    "threshold": [0.5, 0.6, 0.7],
    "reset_by": [0.4, 0.7, 0.5],
    "min_membrane": -0.6,
    "trainable": ["reset_by", "alpha", "threshold"],
}
# Each kind in each of its forms: what is between the input and the output, and the shape of a sample.
CASES: dict[str, tuple[tuple[int, ...], list[dict[str, Any]]]] = {
    "linear": ((5,), [{"kind": "linear", "out_features": 3}]),
    "linear without bias": ((5,), [{"kind": "linear", "out_features": 3, "bias": False, "gain": 2.5}]),
    "conv1d": ((2, 7), [{"kind": "conv1d", "out_channels": 3, "kernel_size": 2, "padding": 1}]),
    "conv1d options": (
        (4, 9),
        [
            {
                "kind": "conv1d",
                "out_channels": 6,
                "kernel_size": [3],
                "stride": [2],
                "padding": [2],
                "dilation": 2,
                "groups": 2,
                "bias": False,
            }
        ],
    ),
    "conv2d": ((2, 5, 7), [{"kind": "conv2d", "out_channels": 3, "kernel_size": 3}]),
    "conv2d options": (
        (4, 7, 9),
        [
            {
                "kind": "conv2d",
                "out_channels": 2,
                "kernel_size": [3, 2],
                "stride": [2, 1],
                "padding": [1, 0],
                "dilation": [1, 2],
                "groups": 2,
                "gain": 0.5,
            }
        ],
    ),
    "sum_pool 1d": ((2, 7), [{"kind": "sum_pool", "kernel_size": 2}]),
    "sum_pool": ((2, 5, 7), [{"kind": "sum_pool", "kernel_size": [2, 3], "stride": 1}]),
    "avg_pool 1d": ((2, 7), [{"kind": "avg_pool", "kernel_size": 3, "stride": [2]}]),
    "avg_pool": ((2, 5, 7), [{"kind": "avg_pool", "kernel_size": 2}]),
    "max_pool 1d": ((2, 7), [{"kind": "max_pool", "kernel_size": [3], "stride": 2, "padding": 1}]),
    "max_pool": ((2, 5, 7), [{"kind": "max_pool", "kernel_size": [2, 3], "stride": [1, 2], "padding": [1, 0]}]),
    "max_pool of default stride": ((2, 6, 5), [{"kind": "max_pool", "kernel_size": 2}]),
    "adaptive_avg_pool 1d": ((2, 6), [{"kind": "adaptive_avg_pool", "output_size": 3}]),
    "adaptive_avg_pool": ((2, 4, 6), [{"kind": "adaptive_avg_pool", "output_size": [2, 1]}]),
    "adaptive_max_pool 1d": ((2, 6), [{"kind": "adaptive_max_pool", "output_size": [2]}]),
    "adaptive_max_pool": ((2, 4, 6), [{"kind": "adaptive_max_pool", "output_size": 2}]),
    "flatten": ((2, 3, 2), [{"kind": "flatten"}]),
    "reshape": ((2, 3, 2), [{"kind": "reshape", "shape": [4, 3]}]),
    "dropout": ((5,), [{"kind": "dropout", "p": 0.4}]),
    "batch_norm": ((3,), [{"kind": "batch_norm"}]),
    "batch_norm of images": ((3, 2, 5), [{"kind": "batch_norm", "momentum": 0.3, "eps": 1e-3}]),
    "batch_norm not affine": ((2, 5), [{"kind": "batch_norm", "affine": False}]),
    "add": (
        (3,),
        [
            {"kind": "linear", "out_features": 3, "name": "half"},
            {"kind": "add", "inputs": ["half", "input", "half"]},
        ],
    ),
    "concat": (
        (3,),
        [
            {"kind": "linear", "out_features": 2, "name": "more"},
            {"kind": "concat", "inputs": ["more", "input", "more"]},
        ],
    ),
    "concat of an axis of space": (
        (2, 3, 4),
        [
            {"kind": "avg_pool", "kernel_size": [1, 2], "name": "half"},
            {"kind": "concat", "axis": 2, "inputs": ["input", "half"]},
        ],
    ),
    "lif": ((3,), [{"kind": "lif", "alpha": 0.9}]),
    "lif every parameter": ((2, 3), [{"kind": "lif", **EVERY_LIF}]),
    "lif bound after reset": ((2, 3), [{"kind": "lif", **EVERY_LIF, "bound_after_reset": True, "max_spikes": 2}]),
    "lif zero": ((3,), [{"kind": "lif", "alpha": 0.9, "reset": "zero", "trainable": ["alpha", "threshold"]}]),
    "lif decayed": (
        (3,),
        [{"kind": "lif", "alpha": 0.8, "decay_reset": True, "max_spikes": 3, "trainable": ["alpha", "threshold"]}],
    ),
    "lif per channel": ((2, 3), [{"kind": "lif", "alpha": [[0.9], [0.7]], "trainable": ["alpha"]}]),
    "lif none": ((3,), [{"kind": "lif", "alpha": 0.9, "reset": "none", "surrogate": {"kind": "arctan"}}]),
    "lif slayer": ((3,), [{"kind": "lif", "alpha": 0.9, "method": "slayer", "trainable": ["alpha"]}]),
    "lif bptt": ((3,), [{"kind": "lif", "alpha": 0.9, "method": "bptt", "trainable": ["alpha"]}]),
    "if": ((3,), [{"kind": "if", "threshold": 0.8, "trainable": ["threshold"]}]),
    "recurrent lif": ((5,), [{"kind": "lif", "alpha": 0.9, "recurrent": {"gain": 2.0}}]),
    "recurrent lif every parameter": ((2, 3), [{"kind": "lif", **EVERY_LIF, "recurrent": {"bias": True}}]),
    "recurrent lif bound after reset": (
        (2, 3),
        [{"kind": "lif", **EVERY_LIF, "recurrent": {}, "bound_after_reset": True, "decay_reset": True}],
    ),
    "recurrent if": ((4,), [{"kind": "if", "recurrent": {}, "surrogate": {"kind": "sigmoid", "slope": 2.0}}]),
    "recurrent lif slayer": (
        (4,),
        [{"kind": "lif", "alpha": 0.9, "recurrent": {}, "method": "slayer", "trainable": ["alpha", "threshold"]}],
    ),
    "recurrent lif bptt": (
        (2, 2),
        [{"kind": "lif", "alpha": 0.9, "recurrent": {"bias": True}, "method": "bptt", "trainable": ["alpha"]}],
    ),
    "recurrent lif zero": (
        (5,),
        [{"kind": "lif", "alpha": 0.9, "reset": "zero", "recurrent": {}, "trainable": ["alpha", "threshold"]}],
    ),
    "recurrent lif decayed": (
        (5,),
        [
            {
                "kind": "lif",
                "alpha": 0.8,
                "decay_reset": True,
                "max_spikes": 3,
                "recurrent": {"gain": 0.5},
                "trainable": ["alpha", "threshold"],
            }
        ],
    ),
    "srm": ((3,), [{"kind": "srm", "reset_kernel": {"kind": "exponential", "alpha": 0.8, "amplitude": -1.0}}]),
    "srm filtered": (
        (2, 3),
        [
            {
                "kind": "srm",
                "reset_kernel": [-0.9, 0.3, -0.2],
                "response_kernel": {"kind": "alpha", "tau": 3.0},
                "threshold": [0.3, 0.5, 0.7],
                "surrogate": {"kind": "gaussian", "scale": 0.7},
            }
        ],
    ),
    "srm slayer": (
        (3,),
        [
            {
                "kind": "srm",
                "reset_kernel": {"kind": "slayer_refractory", "tau": 2, "amplitude": -1.5},
                "response_kernel": {"kind": "alpha", "tau": 3},
                "method": "slayer",
            }
        ],
    ),
    "exp_leak": ((3,), [{"kind": "exp_leak", "alpha": 0.9}]),
    "exp_leak trained": ((2, 3), [{"kind": "exp_leak", "alpha": [0.9, 0.8, 0.7], "trainable": ["alpha"]}]),
    "delay": ((3,), [{"kind": "delay", "delays": 2.25}]),
    "delay of lists": ((2, 3), [{"kind": "delay", "delays": [[0, 1.5, 3], [2.25, 0.5, 2]], "max_delay": 3}]),
    "delay trained": ((2, 3), [{"kind": "delay", "max_delay": 4, "trainable": ["delays"]}]),
    "delay of a list trained": (
        (2, 3),
        [{"kind": "delay", "delays": [0.3, 1.6, 2.4], "max_delay": 3, "trainable": ["delays"]}],
    ),
    "delayed_linear": ((4,), [{"kind": "delayed_linear", "out_features": 3, "max_delay": 4}]),
    "delayed_linear fixed": (
        (2,),
        [
            {
                "kind": "delayed_linear",
                "out_features": 3,
                "max_delay": 2,
                "delays": [[0, 1.5], [2, 0.25], [1, 1]],
                "trainable": [],
                "bias": False,
                "gain": 2.0,
            }
        ],
    ),
    "delayed_linear of a density": (
        (4,),
        [{"kind": "delayed_linear", "out_features": 3, "max_delay": 5, "width": 1.25}],
    ),
}

# A network with everything that a training step can change.
MIXED: dict[str, Any] = {
    "input_shape": [2, 6, 7],
    "layers": [
        {"kind": "conv2d", "out_channels": 3, "kernel_size": 3, "padding": 1, "gain": 2.0},
        {"kind": "batch_norm"},
        {"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"], "name": "first"},
        {"kind": "conv2d", "out_channels": 3, "kernel_size": 3, "padding": 1},
        {"kind": "add", "inputs": ["first", "3"]},
        {"kind": "sum_pool", "kernel_size": 2},
        {"kind": "dropout", "p": 0.25},
        {"kind": "flatten"},
        {"kind": "linear", "out_features": 8},
        {"kind": "lif", "alpha": 0.8, "recurrent": {"bias": True}},
        {"kind": "batch_norm"},
        {"kind": "dropout", "p": 0.1},
        {"kind": "linear", "out_features": 5},
        {"kind": "exp_leak", "alpha": 0.9, "trainable": ["alpha"]},
    ],
}


def describe(case: str, dtype: str = "float64") -> dict[str, Any]:
    """The network of a case."""
    shape, layers = CASES[case]
    return {"input_shape": list(shape), "dtype": dtype, "layers": layers}


def _kernel(data: Any, like: Tensor) -> Any:
    if isinstance(data, list):
        return torch.tensor(data, dtype=like.dtype)
    data = dict(data)
    kinds = {"exponential": ExponentialKernel, "alpha": AlphaKernel, "slayer_refractory": SlayerRefractory}
    return kinds[data.pop("kind")](**data)


def _steps(x: Tensor, function: Any) -> Tensor:
    return torch.stack([function(x_t) for x_t in x.unbind(1)], 1)


def _tensor(value: Any, like: Tensor) -> Any:
    return torch.tensor(value, dtype=like.dtype) if isinstance(value, list) else value


def _neurons(data: dict[str, Any], p: dict[str, Tensor], x: Tensor) -> Tensor:
    surrogate = dict(data["surrogate"])
    made = SURROGATES[surrogate.pop("kind")](**surrogate)
    if data["kind"] == "srm":
        if data["response_kernel"] is not None:
            x = reference.filter(x, _kernel(data["response_kernel"], x))
        options = {"threshold": _tensor(data["threshold"], x), "surrogate": made, "method": data["method"]}
        return reference.srm(x, _kernel(data["reset_kernel"], x), **options)[0]
    values = {name: p.get(name, _tensor(data[name], x)) for name in ("threshold", "reset_by", "min_membrane")}
    alpha = p.get("alpha", _tensor(data.get("alpha", 1.0), x))
    options = {name: data[name] for name in ("reset", "decay_reset", "max_spikes", "method")}
    options["bound_after_reset"] = data.get("bound_after_reset", False)
    options |= {"surrogate": made, **values}
    if data["recurrent"] is None:
        return reference.lif(x, alpha, **options)[0]
    u = s = torch.zeros_like(x[:, 0])
    spikes = []
    for x_t in x.unbind(1):
        back = torch.einsum("ij,bj->bi", p["recurrent.weight"], s.flatten(1)) + p.get("recurrent.bias", 0.0)
        found, membrane = reference.lif(
            (x_t + back.view_as(x_t))[:, None], alpha, initial_membrane=u, initial_spikes=s, **options
        )
        s, u = found[:, 0], membrane[:, 0]
        spikes.append(s)
    return torch.stack(spikes, 1)


def _each(values: Tensor) -> list[tuple[Any, Tensor]]:
    """The indices and the elements of a tensor."""
    return [(tuple(index), values[tuple(index)]) for index in torch.ones(values.shape).nonzero().tolist()]


def _delays(data: dict[str, Any], p: dict[str, Tensor], like: Tensor) -> Tensor:
    return p["delays"] if data["trainable"] else torch.tensor(data["delays"], dtype=like.dtype)


def _interpolated(x: Tensor, delay: Tensor) -> Tensor:
    """A signal of shape (batch, time), delayed; zero before its first step."""
    whole = math.floor(delay.detach())
    padded = torch.nn.functional.pad(x, (whole + 1, 0))
    later, earlier = padded[:, 1 : 1 + x.shape[1]], padded[:, : x.shape[1]]
    return later + (delay - whole) * (earlier - later)


def _delayed_product(data: dict[str, Any], p: dict[str, Tensor], x: Tensor) -> Tensor:
    weight, most = p["weight"], data["max_delay"]
    delays = _delays(data, p, x)
    sums = [x.new_zeros(x.shape[:2]) for _ in weight]
    for (j, i), d in _each(delays.expand(weight.shape)):
        if data["width"] is None:
            delayed = _interpolated(x[:, :, i], d)
        else:
            shares = [torch.exp(-(((k - d) / data["width"]) ** 2) / 2) for k in range(most + 1)]
            steps = torch.arange(most + 1, dtype=x.dtype)
            seen = [share * _interpolated(x[:, :, i], k) for k, share in zip(steps, shares, strict=True)]
            delayed = torch.stack(seen).sum(0) / torch.stack(shares).sum()
        sums[j] = sums[j] + weight[j, i] * delayed
    return torch.stack(sums, 2) + p.get("bias", 0.0)


def _layer(data: dict[str, Any], p: dict[str, Tensor], inputs: list[Tensor]) -> Tensor:
    kind, (x, *others) = data["kind"], inputs
    space = x.dim() - 3
    if kind == "linear":
        return _steps(x, lambda x_t: torch.einsum("oi,bi->bo", p["weight"], x_t) + p.get("bias", 0.0))
    if kind in ("conv1d", "conv2d"):
        function = getattr(torch.nn.functional, kind)
        options = {name: data[name] for name in ("stride", "padding", "dilation", "groups")}
        return _steps(x, lambda x_t: function(x_t, p["weight"], p.get("bias"), **options))
    if kind in ("sum_pool", "avg_pool"):
        pool = (torch.nn.AvgPool1d if space == 1 else torch.nn.AvgPool2d)(data["kernel_size"], data["stride"])
        size = data["kernel_size"]
        window = math.prod(size) if isinstance(size, list) else size**space
        return _steps(x, pool) * (window if kind == "sum_pool" else 1)
    if kind == "max_pool":
        largest = (torch.nn.MaxPool1d if space == 1 else torch.nn.MaxPool2d)(
            data["kernel_size"], data["stride"], data["padding"]
        )
        return _steps(x, largest)
    if kind in ("adaptive_avg_pool", "adaptive_max_pool"):
        name = "".join(part.capitalize() for part in kind.split("_"))
        size = data["output_size"]
        size = size[0] if space == 1 and isinstance(size, list) else size
        return _steps(x, getattr(torch.nn, f"{name}{space}d")(size))
    if kind == "reshape":
        return _steps(x, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Unflatten(1, data["shape"])))
    if kind == "flatten":
        return _steps(x, torch.nn.Flatten())
    if kind == "batch_norm":
        axes = [d for d in range(x.dim()) if d != 2]
        mean, var = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
        y = (x - mean) / torch.sqrt(var + data["eps"])
        wide = (-1, *[1] * space)
        return y * p["weight"].view(wide) + p["bias"].view(wide) if data["affine"] else y
    if kind == "dropout":  # outside of training
        return x
    if kind == "add":
        return sum(others, x)
    if kind == "concat":
        pairs = zip(*(given.unbind(1) for given in inputs), strict=True)
        return torch.stack([torch.cat(steps, 1 + data["axis"]) for steps in pairs], 1)
    if kind == "delay":
        delays = _delays(data, p, x).expand(x.shape[2:])
        return torch.stack([_interpolated(x[(..., *i)], d) for i, d in _each(delays)], 2).view(x.shape)
    if kind == "delayed_linear":
        return _delayed_product(data, p, x)
    if kind == "exp_leak":
        u, steps = torch.zeros_like(x[:, 0]), []
        for x_t in x.unbind(1):
            u = p.get("alpha", _tensor(data["alpha"], x)) * u + x_t
            steps.append(u)
        return torch.stack(steps, 1)
    assert kind in ("lif", "if", "srm")
    return _neurons(data, p, x)


def plain_forward(description: network.Description, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network as loops over time, in training, beside dropout."""
    values = {"input": x}
    for data in description.data["layers"]:
        start = data["name"] + "."
        own = {name.removeprefix(start): p for name, p in parameters.items() if name.startswith(start)}
        values[data["name"]] = result = _layer(data, own, [values[name] for name in data["inputs"]])
    return result
