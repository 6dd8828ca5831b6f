"""Ways to train one described network: this project's methods, and the same network of other libraries' neurons.

docs/peers.md translates the neurons. A peer gets the layout that it wants, and its own loop over time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exodus_core import network
from experiments.training import Method, with_method

#: An IF layer as data to a module of its library.
MakeNeuron = Callable[[Mapping[str, Any]], nn.Module]


@dataclass(frozen=True)
class Contender:
    """A way to compute a network of linear layers, convolutions, pools and IF neurons.

    Attributes:
        name: for tables.
        method: of this project's neurons; of a peer, whose gradient its own is.
        neuron: makes a peer's neuron; None: this project's network.
        exact: this project's products are dense where the input is spikes, as all others' are.
        time_dim: where a peer wants time: 0 or 1.
        surrogate: that a peer has instead of the description's.
    """

    name: str
    method: Method = "bptt"
    neuron: MakeNeuron | None = None
    exact: bool = False
    time_dim: int = 1
    surrogate: Mapping[str, Any] | None = None

    def described(self, description: Mapping[str, Any]) -> dict[str, Any]:
        """The description with this contender's method and surrogate."""
        changed = with_method(description, self.method)
        if self.surrogate is None:
            return dict(changed)
        own = {"surrogate": dict(self.surrogate)}
        layers = [{**layer, **own} if layer["kind"] == "if" else layer for layer in changed["layers"]]
        return {**changed, "layers": layers}

    def build(self, description: Mapping[str, Any], device: str) -> nn.Module:
        """The network, whose weights are those of seed 0.

        Raises:
            ImportError: the library is not installed.
        """
        ours = network.build(self.described(description), 0, device, exact=self.exact)
        if self.neuron is None:
            return ours
        return Translated(ours, self.neuron, self.time_dim).to(device)

    def arrange(self, spikes: Tensor) -> Tensor:
        """Spikes, (batch, time, ...), as the contender wants them, contiguous."""
        return spikes.movedim(1, self.time_dim).contiguous()


class Translated(nn.Module):
    """A network of this project with the neurons of another library, and the same weights.

    Its input has time at `time_dim`, 0 or 1, its output too.
    """

    def __init__(self, ours: network.Network, neuron: MakeNeuron, time_dim: int) -> None:
        super().__init__()
        self.time_dim = time_dim
        weights = dict(ours.named_parameters())
        layers = ours.description.data["layers"]
        self.layers = nn.ModuleList(
            neuron(layer) if layer["kind"] == "if" else _plain(layer, weights.get(f"{index}.weight"))
            for index, layer in enumerate(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class _EachStep(nn.Module):
    """A layer without time on every step: the first two dimensions are one for it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(0, 1))
        return y.reshape(*x.shape[:2], *y.shape[1:])


def _plain(layer: Mapping[str, Any], weight: Tensor | None) -> nn.Module:
    kind = layer["kind"]
    if kind == "flatten":
        return nn.Flatten(2)
    if kind == "avg_pool":
        return _EachStep(nn.AvgPool2d(layer["kernel_size"]))
    if kind == "linear" and weight is not None:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight = nn.Parameter(weight.detach().clone())
        return linear
    if kind == "conv2d" and weight is not None:
        after, before, *kernel = weight.shape
        convolution = nn.Conv2d(before, after, (kernel[0], kernel[1]), padding=layer["padding"], bias=False)
        convolution.weight = nn.Parameter(weight.detach().clone())
        return _EachStep(convolution)
    raise ValueError(f"kind of a layer must be flatten, avg_pool, linear or conv2d without bias, got {kind}")


class Fresh(nn.Module):
    """A stateful neuron of a peer that starts each call from rest, as a training loop has it do."""

    def __init__(self, layer: nn.Module, reset: Callable[[Any], object]) -> None:
        super().__init__()
        self.layer, self._reset = layer, reset

    def forward(self, x: Tensor) -> Tensor:
        self._reset(self.layer)
        y: Tensor = self.layer(x)
        return y.to(x.dtype)  # sinabs writes float32 whatever comes in


def _sinabs(layer: Mapping[str, Any]) -> nn.Module:
    layers, activation = (importlib.import_module(f"sinabs.{name}") for name in ("layers", "activation"))
    threshold, surrogate = layer["threshold"], layer["surrogate"]
    width = 1 / (surrogate["slope"] * threshold)
    neuron = layers.IAF(
        spike_threshold=torch.tensor(threshold),
        spike_fn=activation.SingleSpike,
        surrogate_grad_fn=activation.SingleExponential(
            grad_width=width, grad_scale=surrogate["scale"] * width * threshold
        ),
    )
    return Fresh(neuron, lambda module: module.reset_states())


#: SpikingJelly has no exponential surrogate.
_SIGMOID = {"kind": "sigmoid", "slope": 4.0}


def _spikingjelly(layer: Mapping[str, Any]) -> nn.Module:
    neuron, surrogate, functional = (
        importlib.import_module(f"spikingjelly.activation_based.{name}")
        for name in ("neuron", "surrogate", "functional")
    )
    own = neuron.IFNode(
        v_threshold=layer["threshold"],
        v_reset=None,
        surrogate_function=surrogate.Sigmoid(layer["surrogate"]["slope"]),
        step_mode="m",
    )
    return Fresh(own, functional.reset_net)


EXODUS, SLAYER, DENSE = "EXODUS", "SLAYER", "EXODUS, dense products"
LOOP, SINABS = "BPTT, the plain loop", "BPTT, sinabs"
CONTENDERS = (
    Contender(EXODUS, "exodus"),
    Contender(SLAYER, "slayer"),
    Contender(DENSE, "exodus", exact=True),
    Contender(LOOP),
    Contender(SINABS, neuron=_sinabs),
    Contender("SpikingJelly", neuron=_spikingjelly, time_dim=0, surrogate=_SIGMOID),
)
