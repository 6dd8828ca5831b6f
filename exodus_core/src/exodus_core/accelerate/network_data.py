"""`to_network`: a model of another library as a network description and weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exodus_core import network
from exodus_core.accelerate.conversion import LIBRARIES, kind_of, refusal_of
from exodus_core.accelerate.fused import Neuron, Value, has_kernel, strictly_above
from exodus_core.accelerate.refusal import AccelerationError, NotMappedError, converting
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.refusals import Refusal
from exodus_core.surrogate import Surrogate

nn = torch.nn
_EXPECTED = "a sequence of layers that a network as data can have"
#: Layers that hand on what they get.
_CONTAINERS = ("Sequential", "SequentialState", "Lift")


class NetworkData(NamedTuple):
    """A network as data.

    Args:
        description: as `network.build` and the client's `create_model` take it.
        weights: the parameters by the names that they have in that network.
    """

    description: dict[str, Any]
    weights: dict[str, Tensor]


class _Found:
    """The layers and weights so far."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Any]] = []
        self.weights: dict[str, Tensor] = {}

    def add(self, name: str, kind: str, **fields: Any) -> None:
        self.layers.append({"name": name, "kind": kind, **fields})

    def keep(self, name: str, **tensors: Tensor | None) -> None:
        for own, tensor in tensors.items():
            if tensor is not None:
                self.weights[f"{name}.{own}"] = tensor.detach().clone()


def _plain(value: Any) -> Any:
    """A constant as plain data: a number, or nested lists."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    return value


def _pairs(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _linear(module: Any, name: str, found: _Found) -> None:
    found.add(
        name, "linear", out_features=module.out_features, in_features=module.in_features, bias=module.bias is not None
    )
    found.keep(name, weight=module.weight, bias=module.bias)


def _convolution(kind: str) -> Callable[[Any, str, _Found], None]:
    def convolution(module: Any, name: str, found: _Found) -> None:
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise NotMappedError("has a padding other than zeros in a number")
        fields = {own: _pairs(getattr(module, own)) for own in ("kernel_size", "stride", "padding", "dilation")}
        found.add(
            name,
            kind,
            out_channels=module.out_channels,
            in_channels=module.in_channels,
            groups=module.groups,
            bias=module.bias is not None,
            **fields,
        )
        found.keep(name, weight=module.weight, bias=module.bias)

    return convolution


def _pool(module: Any, name: str, found: _Found) -> None:
    if any(size != 0 for size in _several(module.padding)) or module.ceil_mode:
        raise NotMappedError("has padding or ceil_mode, which the pooling of a network as data does not")
    kind = "avg_pool"
    if getattr(module, "divisor_override", None) is not None:
        if module.divisor_override != 1:
            raise NotMappedError("has a divisor_override other than 1")
        kind = "sum_pool"
    found.add(name, kind, kernel_size=_pairs(module.kernel_size), stride=_pairs(module.stride))


def _sum_pool(module: Any, name: str, found: _Found) -> None:
    if module.norm_type != 1 or module.ceil_mode:
        raise NotMappedError("is no sum over windows")
    found.add(name, "sum_pool", kernel_size=_pairs(module.kernel_size), stride=_pairs(module.stride))


def _max_pool(module: Any, name: str, found: _Found) -> None:
    if module.ceil_mode or module.return_indices or any(size != 1 for size in _several(module.dilation)):
        raise NotMappedError("has ceil_mode, return_indices or a dilation, which a network as data does not")
    sizes = {own: _pairs(getattr(module, own)) for own in ("kernel_size", "stride", "padding")}
    found.add(name, "max_pool", **sizes)


def _adaptive_pool(kind: str) -> Callable[[Any, str, _Found], None]:
    def pool(module: Any, name: str, found: _Found) -> None:
        if any(size is None for size in _several(module.output_size)) or getattr(module, "return_indices", False):
            raise NotMappedError("keeps a size of its input or returns indices, which a network as data does not")
        found.add(name, kind, output_size=_pairs(module.output_size))

    return pool


def _several(value: Any) -> Sequence[int]:
    return value if isinstance(value, Sequence) else (value,)


def _flatten(module: Any, name: str, found: _Found) -> None:
    if module.start_dim not in (1, 2) or module.end_dim != -1:
        raise NotMappedError("flattens other dimensions than all of a sample")
    found.add(name, "flatten")


def _batch_norm(module: Any, name: str, found: _Found) -> None:
    if not module.track_running_stats or module.momentum is None:
        raise NotMappedError("has no running statistics with a momentum")
    if int(module.num_batches_tracked) > 0:
        raise NotMappedError("has running statistics already, which weights of a network as data do not carry")
    found.add(name, "batch_norm", momentum=module.momentum, eps=module.eps, affine=module.affine)
    found.keep(name, weight=module.weight, bias=module.bias)


_LAYERS: dict[type, Callable[[Any, str, _Found], None]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution("conv1d"),
    nn.Conv2d: _convolution("conv2d"),
    nn.AvgPool1d: _pool,
    nn.AvgPool2d: _pool,
    nn.LPPool2d: _sum_pool,
    nn.MaxPool1d: _max_pool,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool1d: _adaptive_pool("adaptive_avg_pool"),
    nn.AdaptiveAvgPool2d: _adaptive_pool("adaptive_avg_pool"),
    nn.AdaptiveMaxPool1d: _adaptive_pool("adaptive_max_pool"),
    nn.AdaptiveMaxPool2d: _adaptive_pool("adaptive_max_pool"),
    nn.Flatten: _flatten,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Identity: lambda module, name, found: None,
}
_NO_STEPS = (nn.BatchNorm1d, nn.BatchNorm2d)


def _learnt(module: Any, name: str) -> bool:
    parameter = getattr(module, name, None)
    return isinstance(parameter, nn.Parameter) and parameter.requires_grad


def _trainable(library: str, module: Any, neuron: Neuron) -> list[str]:
    """The constants that the library learns as they are here, and not as a function of another parameter."""
    found = []
    if library == "snntorch":
        found += ["alpha"] if _learnt(module, "beta") else []
        found += ["threshold"] if _learnt(module, "threshold") else []
        found += ["synapse_alpha"] if neuron.synapse_alpha is not None and _learnt(module, "alpha") else []
    if library == "sinabs" and getattr(module, "train_alphas", False):
        found += ["alpha"] if neuron.gain is None and _learnt(module, "alpha_mem") else []
    return found


def _readout(neuron: Neuron, name: str, found: _Found) -> None:
    """A leaky integrator; what scales its input scales the layer before."""
    if bool(torch.as_tensor(neuron.shift != 0).any()):
        raise NotMappedError("rests at another membrane than 0")
    factor = 1.0
    for gain in (neuron.gain, neuron.synapse_gain):
        if gain is not None:
            if isinstance(gain, Tensor) and gain.numel() != 1:
                raise NotMappedError("scales its input by a factor for each neuron")
            factor *= float(gain)
    if factor != 1.0:
        before = found.layers[-1] if found.layers else {}
        if before.get("kind") not in ("linear", "conv1d", "conv2d"):
            raise NotMappedError("scales its input, and follows no linear or convolutional layer that could do it")
        for own in ("weight", "bias"):
            key = f"{before['name']}.{own}"
            if key in found.weights:
                found.weights[key] = found.weights[key] * factor
    if neuron.synapse_alpha is not None:
        found.add(f"{name}-syn", "exp_leak", alpha=_plain(neuron.synapse_alpha))
    found.add(name, "exp_leak", alpha=_plain(neuron.alpha))


def _neurons(library: str, module: Any, neuron: Neuron, name: str, found: _Found) -> None:
    if hasattr(module, "input_weights"):
        weight = module.input_weights
        found.add(f"{name}-in", "linear", out_features=weight.shape[0], in_features=weight.shape[1], bias=False)
        found.keep(f"{name}-in", weight=weight)
    if neuron.threshold is None:
        _readout(neuron, name, found)
        return
    _check_fits(module, neuron)
    assert isinstance(neuron.surrogate, Surrogate)
    trainable = _trainable(library, module, neuron)
    threshold: Value = neuron.threshold
    if neuron.strict:
        threshold = strictly_above(threshold, torch.float32)
    reset_by = neuron.reset_by
    if neuron.reset == "subtract" and reset_by is None and neuron.strict and "threshold" not in trainable:
        reset_by = neuron.threshold
    fields: dict[str, Any] = {
        "alpha": neuron.alpha,
        "threshold": threshold,
        "reset": neuron.reset,
        "max_spikes": neuron.max_spikes,
        "surrogate": {"kind": neuron.surrogate.kind, "slope": neuron.surrogate.slope, "scale": neuron.surrogate.scale},
        "detach_reset": neuron.detach_reset,
        "refractory": neuron.refractory,
        "min_membrane": neuron.floor,
    }
    if neuron.reset == "subtract":
        fields |= {"reset_by": reset_by, "decay_reset": neuron.decay_reset}
    kind = "lif"
    gain = neuron.gain
    if neuron.synapse_alpha is not None:
        kind = "cuba_lif"
        # The current is linear in its input: what scales that scales the current.
        both = [value for value in (gain, neuron.synapse_gain) if value is not None]
        fields |= {"synapse_alpha": neuron.synapse_alpha, "synapse_gain": math.prod(both) if both else 1.0}
        fields["synapse_delayed"] = neuron.synapse_delayed
    elif gain is not None:  # a synapse without memory scales its input
        kind = "cuba_lif"
        fields |= {"synapse_alpha": 0.0, "synapse_gain": gain}
    if neuron.adapt_alpha is not None:
        kind = "alif"
        fields |= {own: getattr(neuron, own) for own in ("adapt_alpha", "adapt_by", "adapt_threshold")}
    if neuron.floor is not None and kind == "lif" and has_kernel(neuron):
        fields["bound_after_reset"] = True
    if neuron.recurrent_weight is not None:
        bias = neuron.recurrent_bias
        if bias is not None and not neuron.bias_at_rest:
            raise NotMappedError("has recurrent connections whose bias is not added in the first step")
        fields["recurrent"] = {"bias": bias is not None}
        found.weights[f"{name}.recurrent.weight"] = neuron.recurrent_weight.detach().clone()
        if bias is not None:
            found.weights[f"{name}.recurrent.bias"] = bias.detach().clone()
    for own in trainable:
        value = torch.as_tensor(fields[own])
        found.weights[f"{name}.{own}"] = value.detach().clone()
    plain = {own: _plain(value) for own, value in fields.items()}
    found.add(name, kind, trainable=trainable, **plain)


def _check_fits(module: Any, neuron: Neuron) -> None:
    if not isinstance(neuron.surrogate, Surrogate):
        raise NotMappedError("has a surrogate without a counterpart in exodus_core.surrogate")
    if neuron.reset == "zero" and neuron.max_spikes > 1:
        raise NotMappedError("fires several spikes in one step, and is reset to zero")
    if neuron.offset is not None:
        raise NotMappedError("is reset to another membrane than it rests at")
    if not has_kernel(neuron) and neuron.floor is None:
        raise NotMappedError("has a backward rule that a network as data does not have")
    factor = getattr(module, "graded_spikes_factor", None)
    if factor is not None and (factor.requires_grad or bool((factor != 1).any())):
        raise NotMappedError("has a graded_spikes_factor")


def _layer_of(module: torch.nn.Module) -> Callable[[Any, str, _Found], None] | None:
    """The function that describes a module without state: of torch, of exodus_core.nn, or of SpikingJelly or sinabs."""
    cls: type = getattr(type(module), "fused_from", type(module))
    if cls in _LAYERS:
        return _LAYERS[cls]
    if cls.__module__.startswith(("spikingjelly.activation_based.layer", "sinabs.layers.pool2d", "exodus_core.nn")):
        for base in cls.__mro__:
            if base in _LAYERS:
                return _LAYERS[base]
    return None


def _walk(module: torch.nn.Module, path: str, found: _Found, refusals: list[Refusal]) -> None:
    shown = type(module).__name__
    kind = kind_of(module)
    name = path.replace(".", "-").replace("_", "-") or "layer"
    try:
        if kind is not None:
            refusal = refusal_of(path, module, kind, runs=False)
            if refusal is not None:
                refusals.append(refusal)
            else:
                _neurons(kind[0], module, LIBRARIES[kind[0]].described(module), name, found)
            return
        describe = _layer_of(module)
        if describe is not None:
            # torch's own sees what its caller gives it: one step, in a loop.
            if type(module) in _NO_STEPS:
                raise NotMappedError(
                    "may normalise each step by itself; a network as data normalises all steps together"
                )
            describe(module, name, found)
            return
        original: Any = getattr(type(module), "fused_from", type(module))
        if original.__name__ in _CONTAINERS:
            for own, child in module.named_children():
                _walk(child, f"{path}.{own}" if path else own, found, refusals)
            return
        raise NotMappedError("is no layer of a network as data, nor a sequence of such")
    except NotMappedError as reason:
        refusals.append(Refusal(path, shown, str(reason)))


def to_network(model: torch.nn.Module, input_shape: Sequence[int]) -> NetworkData:
    """A model of snnTorch, sinabs, SpikingJelly or norse as a network description and weights, with the same spikes.

    The model is a sequence of layers: torch.nn.Sequential, norse's SequentialState and Lift, of linear and
    convolutional layers, pooling, flatten, batch norms of SpikingJelly, and neurons. It may be one
    that `accelerate` has changed. What is learned as it is (snnTorch's beta, alpha and threshold, sinabs' alpha_mem)
    is trainable; what is a function of another parameter (tau, w) is a constant. So::

        description, weights = exodus_core.to_network(model, input_shape=[784])
        remote = client.create_model(description, weights=weights)

    Args:
        input_shape: of a sample in one step, without batch and time.

    Returns:
        NetworkData(description, weights).

    Raises:
        ArgumentTypeError, ArgumentError: an argument has the wrong type or value.
        AccelerationError: layers that have no counterpart, with the reasons, in `refusals`.
        NetworkError: the layers do not fit the input.
    """
    if not isinstance(model, torch.nn.Module):
        raise ArgumentTypeError("model", "a torch.nn.Module", type(model).__name__)
    if isinstance(input_shape, int | str) or not all(isinstance(size, int) and size > 0 for size in input_shape):
        raise ArgumentError("input_shape", "a list of positive integers", input_shape)
    found = _Found()
    refusals: list[Refusal] = []
    with converting():
        _walk(model, "", found, refusals)
    if not refusals and not found.layers:
        refusals.append(Refusal("", type(model).__name__, "has no layers"))
    if refusals:
        raise AccelerationError(refusals, _EXPECTED)
    description = {"input_shape": list(input_shape), "layers": found.layers}
    network.parse(description)
    return NetworkData(description, found.weights)
