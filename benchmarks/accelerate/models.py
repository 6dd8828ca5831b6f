"""Twelve models in the style of the libraries' tutorials: for each library an MLP, a convolutional network and one with
second-order or recurrent neurons.

A model is called as its library's users do: by a loop over time, or with all steps. What comes out is brought to
(time, batch, outputs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

Module = torch.nn.Module


@dataclass(frozen=True)
class Size:
    """Steps, batch, and the number by which the width of the layers and images is divided."""

    steps: int
    batch: int
    divided_by: int = 1


@dataclass(frozen=True)
class PeerModel:
    """A model of a library.

    Args:
        library, name: what it is.
        build: makes it, for a size, with the weights of torch's present seed.
        input: makes an input for a size.
        call: the outputs of the unmodified model, as its users get them, shape (time, batch, outputs).
        accelerated: the same of the accelerated one.
        size: the one that is timed.
        options: arguments of `accelerate`.
    """

    library: str
    name: str
    build: Callable[[Size], Module]
    input: Callable[[Size], Tensor]
    call: Callable[[Module, Tensor, Size], Tensor]
    accelerated: Callable[[Module, Tensor, Size], Tensor]
    size: Size
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.library}: {self.name}"


def _events(*shape: int) -> Callable[[Size], Tensor]:
    """Sparse spikes, time first; sizes of a thousand and more are divided as the layers are."""
    return lambda size: (torch.rand(size.steps, size.batch, *_smaller(shape, size)) < 0.1).float()


def _samples_of_events(*shape: int) -> Callable[[Size], Tensor]:
    """The same, batch first."""
    return lambda size: (torch.rand(size.batch, size.steps, *_smaller(shape, size)) < 0.1).float()


def _images(*shape: int) -> Callable[[Size], Tensor]:
    return lambda size: torch.rand(size.batch, *_smaller(shape, size))


def _smaller(shape: tuple[int, ...], size: Size) -> tuple[int, ...]:
    if len(shape) == 1:
        return (max(4, shape[0] // size.divided_by),)
    return shape


def _width(features: int, size: Size) -> int:
    return max(4, features // size.divided_by)


def _sequential(layers: list[Module], gain: float = 1.0) -> nn.Sequential:
    """The layers, with weights large enough for the last ones to fire."""
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.mul_(gain)
    return model


# snnTorch: a loop over time, states within the layers


def _snntorch_loop(model: Module, x: Tensor, size: Size) -> Tensor:
    import_module("snntorch.utils").reset(model)
    steps = x.unbind() if x.shape[0] == size.steps and x.dim() > 2 else [x] * size.steps
    return torch.stack([model(step)[0] for step in steps])


def _snntorch_images_loop(model: Module, x: Tensor, size: Size) -> Tensor:
    import_module("snntorch.utils").reset(model)
    return torch.stack([model(x)[0] for _ in range(size.steps)])


def _snntorch_mlp(size: Size) -> Module:
    snn = import_module("snntorch")
    hidden = _width(1000, size)
    return _sequential(
        [
            nn.Linear(_width(784, size), hidden),
            snn.Leaky(beta=0.95, init_hidden=True),
            nn.Linear(hidden, 10),
            snn.Leaky(beta=0.95, init_hidden=True, output=True),
        ]
    )


def _snntorch_conv(size: Size) -> Module:
    snn = import_module("snntorch")
    spike_grad = import_module("snntorch.surrogate").fast_sigmoid(slope=25)

    def leaky(**options: Any) -> Module:
        made: Module = snn.Leaky(beta=0.5, spike_grad=spike_grad, init_hidden=True, **options)
        return made

    first, second = _width(12, size), _width(64, size)
    return _sequential(
        [
            *(nn.Conv2d(1, first, 5), nn.MaxPool2d(2), leaky()),
            *(nn.Conv2d(first, second, 5), nn.MaxPool2d(2), leaky()),
            *(nn.Flatten(), nn.Linear(second * 16, 10), leaky(output=True)),
        ],
        gain=4.0,
    )


def _snntorch_second_order(size: Size) -> Module:
    snn = import_module("snntorch")
    hidden = _width(256, size)
    return _sequential(
        [
            nn.Linear(_width(700, size), hidden),
            snn.Synaptic(alpha=0.8, beta=0.9, init_hidden=True, learn_alpha=True, learn_beta=True),
            nn.Linear(hidden, hidden),
            snn.Leaky(beta=0.9, reset_mechanism="zero", init_hidden=True, learn_beta=True, learn_threshold=True),
            nn.Linear(hidden, 20),
            snn.Synaptic(alpha=0.8, beta=0.9, init_hidden=True, output=True),
        ]
    )


# sinabs: (batch, time, ...), or batch and time as one


def _sinabs_call(model: Module, x: Tensor, size: Size) -> Tensor:
    import_module("sinabs").reset_states(model)
    found: Tensor = model(x)
    return found.movedim(1, 0)


def _sinabs_squeezed(model: Module, x: Tensor, size: Size) -> Tensor:
    import_module("sinabs").reset_states(model)
    found: Tensor = model(x.flatten(0, 1))
    return found.view(size.batch, size.steps, -1).movedim(1, 0)


def _sinabs_mlp(size: Size) -> Module:
    layers = import_module("sinabs.layers")
    activation = import_module("sinabs.activation")
    hidden = _width(512, size)
    return _sequential(
        [
            *(nn.Linear(_width(784, size), hidden), layers.LIF(tau_mem=20.0, norm_input=False)),
            *(nn.Linear(hidden, hidden), layers.LIF(tau_mem=20.0, norm_input=False, spike_fn=activation.SingleSpike)),
            *(nn.Linear(hidden, 10), layers.ExpLeak(tau_mem=20.0)),
        ]
    )


def _sinabs_conv(size: Size) -> Module:
    layers = import_module("sinabs.layers")

    def iaf() -> Module:
        made: Module = layers.IAFSqueeze(batch_size=size.batch, min_v_mem=-1.0)
        return made

    first, second = _width(8, size), _width(16, size)
    return _sequential(
        [
            *(nn.Conv2d(2, first, 3, bias=False), iaf(), nn.AvgPool2d(2)),
            *(nn.Conv2d(first, second, 3, bias=False), iaf(), nn.AvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(second * 36, 10, bias=False), iaf()),
        ],
        gain=4.0,
    )


def _sinabs_second_order(size: Size) -> Module:
    layers = import_module("sinabs.layers")
    hidden = _width(256, size)
    return _sequential(
        [
            *(nn.Linear(_width(700, size), hidden), layers.LIF(tau_mem=20.0, tau_syn=10.0, train_alphas=True)),
            *(nn.Linear(hidden, hidden), layers.LIF(tau_mem=20.0, tau_syn=10.0, norm_input=False)),
            *(nn.Linear(hidden, 20), layers.ExpLeak(tau_mem=20.0, norm_input=True)),
        ],
        gain=4.0,
    )


# SpikingJelly: (time, batch, ...), step mode "m"


def _spikingjelly_call(model: Module, x: Tensor, size: Size) -> Tensor:
    import_module("spikingjelly.activation_based.functional").reset_net(model)
    found: Tensor = model(x if x.shape[0] == size.steps and x.dim() > 2 else x.expand(size.steps, *x.shape))
    return found


def _spikingjelly_images(model: Module, x: Tensor, size: Size) -> Tensor:
    import_module("spikingjelly.activation_based.functional").reset_net(model)
    found: Tensor = model(x.expand(size.steps, *x.shape))
    return found


def _spikingjelly(*names: str) -> list[Any]:
    return [import_module(f"spikingjelly.activation_based.{name}") for name in names]


def _spikingjelly_mlp(size: Size) -> Module:
    neuron, surrogate = _spikingjelly("neuron", "surrogate")
    hidden = _width(512, size)
    lif = {"tau": 2.0, "surrogate_function": surrogate.ATan(), "step_mode": "m"}
    layers = [nn.Linear(_width(784, size), hidden, bias=False), neuron.LIFNode(**lif)]
    layers += [nn.Linear(hidden, 10, bias=False), neuron.LIFNode(**lif)]
    return _sequential(layers, gain=16.0)


def _spikingjelly_conv(size: Size) -> Module:
    neuron, surrogate, layer = _spikingjelly("neuron", "surrogate", "layer")
    channels = _width(16, size)

    def node() -> Module:
        made: Module = neuron.IFNode(surrogate_function=surrogate.ATan(), step_mode="m")
        return made

    return _sequential(
        [
            layer.Conv2d(1, channels, 3, padding=1, bias=False, step_mode="m"),
            *(layer.BatchNorm2d(channels, step_mode="m"), node(), layer.MaxPool2d(2, step_mode="m")),
            layer.Conv2d(channels, channels, 3, padding=1, bias=False, step_mode="m"),
            *(layer.BatchNorm2d(channels, step_mode="m"), node(), layer.MaxPool2d(2, step_mode="m")),
            layer.Flatten(step_mode="m"),
            *(layer.Linear(channels * 49, 10, bias=False, step_mode="m"), node()),
        ],
        gain=2.0,
    )


def _spikingjelly_learnt(size: Size) -> Module:
    neuron, surrogate = _spikingjelly("neuron", "surrogate")
    hidden = _width(256, size)

    def node(**options: Any) -> Module:
        made: Module = neuron.ParametricLIFNode(
            detach_reset=True, surrogate_function=surrogate.ATan(), step_mode="m", **options
        )
        return made

    layers = [nn.Linear(_width(700, size), hidden), node()]
    layers += [nn.Linear(hidden, hidden), node(v_reset=None)]
    layers += [nn.Linear(hidden, 20), node(decay_input=False)]
    return _sequential(layers, gain=12.0)


# norse: (time, batch, ...) -> (output, state)


def _norse_call(model: Module, x: Tensor, size: Size) -> Tensor:
    found: Tensor = model(x)[0]
    return found


def _norse_loop(model: Module, x: Tensor, size: Size) -> Tensor:
    state, outputs = None, []
    for step in x:
        output, state = model(step, state)
        outputs.append(output)
    return torch.stack(outputs)


def _norse_sequential(layers: list[Module], gain: float) -> Module:
    norse = import_module("norse.torch")
    made: Module = norse.SequentialState(*_sequential(layers, gain))
    return made


def _norse_mlp(size: Size) -> Module:
    norse = import_module("norse.torch")
    hidden = _width(512, size)
    layers = [nn.Linear(_width(784, size), hidden), norse.LIF(), nn.Linear(hidden, 10), norse.LI()]
    return _norse_sequential(layers, gain=4.0)


def _norse_conv(size: Size) -> Module:
    norse = import_module("norse.torch")
    first, second = _width(8, size), _width(16, size)
    p = norse.LIFParameters(method="super", alpha=torch.tensor(100.0), v_th=torch.tensor(0.5))
    layers = [
        *(norse.Lift(nn.Conv2d(1, first, 5)), norse.LIF(p=p), norse.Lift(nn.MaxPool2d(2))),
        *(norse.Lift(nn.Conv2d(first, second, 5)), norse.LIF(p=p), norse.Lift(nn.MaxPool2d(2))),
        *(nn.Flatten(2), nn.Linear(second * 16, 10), norse.LI()),
    ]
    return _norse_sequential(layers, gain=4.0)


def _norse_cells(size: Size) -> Module:
    norse = import_module("norse.torch")
    hidden = _width(256, size)
    p = norse.LIFParameters(method="tanh", alpha=torch.tensor(2.0))
    layers = [nn.Linear(_width(700, size), hidden), norse.LIFCell(p=p)]
    layers += [nn.Linear(hidden, hidden), norse.LIFBoxCell(p=norse.LIFBoxParameters(v_th=torch.tensor(0.5)))]
    layers += [nn.Linear(hidden, 20), norse.LICell()]
    return _norse_sequential(layers, gain=4.0)


def _over_time(model: Any, x: Tensor, size: Size) -> Tensor:
    found: Tensor = model(x)[0]
    return found


def _repeated(model: Any, x: Tensor, size: Size) -> Tensor:
    found: Tensor = model(x, steps=size.steps)[0]
    return found


_FIRST: dict[str, Any] = {"time_dim": 0}
#: Events come in 250 steps, as those of SHD in bins of 4 ms, in batches of 16; images as often as tutorials show them.
MODELS = (
    PeerModel(
        *("snntorch", "MLP 784-1000-10, Leaky, an image for 25 steps", _snntorch_mlp, _images(784)),
        *(_snntorch_images_loop, _repeated, Size(25, 128), _FIRST),
    ),
    PeerModel(
        *("snntorch", "12C5-MP2-64C5-MP2-10, Leaky, an image for 50 steps", _snntorch_conv, _images(1, 28, 28)),
        *(_snntorch_images_loop, _repeated, Size(50, 32), _FIRST),
    ),
    PeerModel(
        *("snntorch", "700-256-256-20, Synaptic and Leaky, learnt, events", _snntorch_second_order, _events(700)),
        *(_snntorch_loop, _over_time, Size(250, 16), _FIRST),
    ),
    PeerModel(
        *("sinabs", "MLP 784-512-512-10, LIF", _sinabs_mlp, _samples_of_events(784)),
        *(_sinabs_call, _sinabs_call, Size(250, 16), {}),
    ),
    PeerModel(
        *("sinabs", "8C3-AP2-16C3-AP2-10, IAFSqueeze with min_v_mem", _sinabs_conv, _samples_of_events(2, 30, 30)),
        *(_sinabs_squeezed, _sinabs_squeezed, Size(100, 4), {}),
    ),
    PeerModel(
        *("sinabs", "700-256-256-20, LIF with tau_syn, learnt", _sinabs_second_order, _samples_of_events(700)),
        *(_sinabs_call, _sinabs_call, Size(250, 16), {}),
    ),
    PeerModel(
        *("spikingjelly", "MLP 784-512-10, LIFNode", _spikingjelly_mlp, _events(784)),
        *(_spikingjelly_call, _spikingjelly_call, Size(250, 16), {}),
    ),
    PeerModel(
        *("spikingjelly", "two 16C3-BN-IFNode-MP2, an image for 8 steps", _spikingjelly_conv, _images(1, 28, 28)),
        *(_spikingjelly_images, _spikingjelly_images, Size(8, 64), {}),
    ),
    PeerModel(
        *("spikingjelly", "700-256-256-20, ParametricLIFNode, detached", _spikingjelly_learnt, _events(700)),
        *(_spikingjelly_call, _spikingjelly_call, Size(250, 16), {}),
    ),
    PeerModel(
        *("norse", "MLP 784-512-10, LIF and LI", _norse_mlp, _events(784)),
        *(_norse_call, _norse_call, Size(250, 16), {}),
    ),
    PeerModel(
        *("norse", "8C5-MP2-16C5-MP2-10, LIF, lifted", _norse_conv, _events(1, 28, 28)),
        *(_norse_call, _norse_call, Size(50, 8), {}),
    ),
    PeerModel(
        *("norse", "700-256-256-20, LIFCell, LIFBoxCell and LICell in a loop", _norse_cells, _events(700)),
        *(_norse_loop, _over_time, Size(250, 16), _FIRST),
    ),
)
