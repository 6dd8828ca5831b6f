"""Neurons of sinabs 3.1: a layer gets all steps, (batch, time, ...), and keeps its state between calls.

Equations, from its `layers/functional/lif.py`: i = a_syn (i + x), v = a v + (1 - a) i, s from v, reset, then
max(v, min_v_mem). sinabs-exodus has the same layers on its CUDA kernels, with the option not to decay an input in the
step it comes in (decay_early).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from exodus_core.accelerate.fused import Neuron, run
from exodus_core.accelerate.refusal import NotMappedError, holds_of_any
from exodus_core.arguments import LARGEST
from exodus_core.surrogate import Exponential, Gaussian, Surrogate

TESTED = ("3.1.3",)
_ELEMENTWISE = ("Heaviside", "MultiGaussian", "PeriodicExponential", "SingleExponential", "Gaussian")
_RECURRENT = ("LIFRecurrent", "IAFRecurrent")
_PLAIN = ("LIF", "LIFSqueeze", "IAF", "IAFSqueeze", "ExpLeak", "ExpLeakSqueeze")
NEURONS = (*_PLAIN, *_RECURRENT)
REFUSED = dict.fromkeys(
    ("ALIF", "ALIFRecurrent"),
    "gives no gradient through the threshold that adapts, and its surrogate's width follows that threshold, which no "
    "kernel computes; use sinabs.layers.LIF, or exodus_core.nn.ALIF",
)


def classes() -> dict[type, str]:
    """The classes of neurons, and their names here."""
    layers = import_module("sinabs.layers")
    return {getattr(layers, name): name for name in (*NEURONS, *REFUSED)}


def _number(value: Tensor, name: str) -> float:
    if value.numel() != 1 and bool((value != value.flatten()[0]).any()):
        raise NotMappedError(f"has a surrogate whose width follows {name}, which differs between neurons")
    return float(value.detach().flatten()[0])


def _surrogate(module: Any, threshold: Tensor) -> Surrogate | Callable[[Tensor, Tensor], Tensor]:
    function = module.surrogate_grad_fn
    activation = import_module("sinabs.activation")
    if type(function) is activation.SingleExponential and threshold.numel() == 1:
        width = function.grad_width * _number(threshold, "spike_threshold")
        if width > 0:
            return Exponential(slope=1 / width, scale=function.grad_scale / width)
    if type(function) is activation.Gaussian and function.mu == 0:
        return Gaussian(slope=1 / function.sigma, scale=function.grad_scale)
    if type(function) in [getattr(activation, name) for name in _ELEMENTWISE]:
        chosen: Callable[[Tensor, Tensor], Tensor] = function
        return chosen
    raise NotMappedError(
        f"has the surrogate {type(function).__name__}, of which it is not known that it is elementwise; "
        f"known are {', '.join(_ELEMENTWISE)}"
    )


def _spikes(spike_fn: Any) -> int:
    activation = import_module("sinabs.activation")
    if spike_fn is activation.SingleSpike:
        return 1
    if spike_fn is activation.MultiSpike:
        return LARGEST
    if type(spike_fn) is activation.MaxSpike:
        return LARGEST if spike_fn.max_num_spikes_per_bin is None else int(spike_fn.max_num_spikes_per_bin)
    raise NotMappedError(f"has the spike_fn {spike_fn!r}; known are SingleSpike, MultiSpike and MaxSpike")


def neuron(module: Any) -> Neuron:
    """The neurons that a layer has now.

    Raises:
        NotMappedError: the kernels cannot compute the same.
    """
    alpha = module.alpha_mem_calculated
    exodus = type(module).__module__.startswith("sinabs.exodus")
    decays_input = bool(getattr(module, "decay_early", True))
    synapse = module.alpha_syn_calculated
    common: dict[str, Any] = {
        "alpha": alpha,
        "synapse_alpha": synapse,
        "synapse_gain": synapse if decays_input else None,
        "gain": 1 - alpha if module.norm_input else None,
    }
    floor = module.min_v_mem
    if exodus and floor is not None:
        raise NotMappedError("has min_v_mem, whose gradient in sinabs-exodus is another one than in sinabs")
    if module.spike_fn is None:
        if floor is not None:
            raise NotMappedError("is a leaky integrator with min_v_mem, which no kernel computes; leave out min_v_mem")
        if exodus and decays_input:
            common["gain"] = alpha if common["gain"] is None else alpha * common["gain"]
        return Neuron(**common)
    activation = import_module("sinabs.activation")
    threshold = module.spike_threshold
    reset = module.reset_fn
    if holds_of_any(threshold <= 0):
        raise NotMappedError("has a spike_threshold that is not positive")
    if type(reset) is activation.MembraneSubtract:
        common |= {"reset": "subtract", "reset_by": reset.subtract_value}
        lowest = threshold - (threshold if reset.subtract_value is None else reset.subtract_value)
    elif type(reset) is activation.MembraneReset:
        if reset.reset_value != 0:
            raise NotMappedError(
                "has MembraneReset with a reset_value, which sinabs adds to every neuron in every step"
            )
        common |= {"reset": "zero", "detach_reset": True}
        lowest = torch.zeros_like(threshold)
    else:
        raise NotMappedError(f"has the reset_fn {reset!r}; known are MembraneSubtract and MembraneReset")
    spikes = _spikes(module.spike_fn)
    if floor is not None and spikes > 1 and type(reset) is activation.MembraneSubtract and reset.subtract_value:
        raise NotMappedError(
            "has min_v_mem, a subtract_value and several spikes in one step, which could pass the bound"
        )
    if floor is not None and holds_of_any(floor > lowest):
        raise NotMappedError("has a min_v_mem above the membrane that a spike leaves")
    return Neuron(
        threshold=threshold.detach(),
        decay_reset=True,
        surrogate=_surrogate(module, threshold),
        max_spikes=spikes,
        floor=floor,
        **common,
    )


def _recurrent(module: Any) -> Neuron:
    """The neurons that a layer with rec_connect has now."""
    found = neuron(module)
    connect = module.rec_connect
    if type(connect) is torch.nn.Sequential:
        connect = [part for part in connect if not isinstance(part, torch.nn.Flatten | torch.nn.Unflatten)]
        connect = connect[0] if len(connect) == 1 else module.rec_connect
    if type(connect) is not torch.nn.Linear:
        raise NotMappedError(
            f"has the recurrent connections {type(module.rec_connect).__name__}; a torch.nn.Linear can be computed"
        )
    # The first step of a call gets nothing from before, not even the bias.
    return replace(found, recurrent_weight=connect.weight, recurrent_bias=connect.bias, bias_at_rest=False)


def described(module: Any) -> Neuron:
    """`neuron` of a module with or without recurrent connections."""
    return _recurrent(module) if hasattr(module, "rec_connect") else neuron(module)


def traces(module: Any) -> bool:
    """True for a layer that gives its state over time."""
    return bool(module.record_states)


def _prepare(module: Any, x: Tensor) -> None:
    """The state's shape as the library's forward makes it."""
    shape = (x.shape[0], *x.shape[2:])
    if not module.is_state_initialised():
        module.init_state_with_shape(shape)
    if not module.state_has_shape(shape):
        plain = not hasattr(module, "rec_connect") and not type(module).__module__.startswith("sinabs.exodus")
        if plain and module.has_trailing_dimension(list(shape[1:])):
            module.handle_state_batch_size_mismatch(x.shape[0])
        else:
            module.init_state_with_shape(shape)


def _run(module: Any, x: Tensor) -> Tensor:
    _prepare(module, x)
    found = described(module)
    current = module.i_syn if found.synapse_alpha is not None else None
    ran = run(found, x, 1, membrane=module.v_mem, current=current, trace=traces(module))
    if ran.spikes is None:
        assert ran.membrane is not None
        output = ran.membrane
        module.v_mem = ran.last_membrane
    else:
        assert ran.last_spikes is not None
        output = ran.spikes
        module.v_mem = found.after_reset(ran.last_membrane, ran.last_spikes)
    module.i_syn = ran.last_current
    module.recordings = {}
    if module.record_states:
        assert ran.membrane is not None
        after = ran.membrane if ran.spikes is None else found.after_reset(ran.membrane, ran.spikes)
        module.recordings = {"v_mem": after}
        if current is not None:
            module.recordings["i_syn"] = ran.current
    module.firing_rate = output.mean()
    return output


def forward(self: Any, input_data: Tensor) -> Tensor:
    """The layer's forward pass on the kernels; shapes and state are those of the library's."""
    if hasattr(self, "squeeze_forward"):
        squeezed: Tensor = self.squeeze_forward(input_data, lambda x: _run(self, x))
        return squeezed
    return _run(self, input_data)
