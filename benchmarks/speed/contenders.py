"""Who is compared: every way to compute a LIF with a soft reset, each in its library's own layout and at its fastest.

docs/peers.md translates the neurons. A peer gets its input in the layout that it wants, prepared before the clock
starts, and resets its state within it, as a training loop has to.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import exodus_core
from exodus_core.surrogate import Exponential, FastSigmoid

from .workloads import ALPHA, SURROGATE, Neuron

Spikes = Callable[[Tensor], Tensor]
INDEXED = "the plain loop over x[:, t]"


@dataclass(frozen=True)
class Contender:
    """`build` imports the library and gives the function from the input current to the spikes."""

    name: str
    build: Callable[[], Spikes]
    neuron: Neuron = field(default_factory=Neuron)
    time_dim: int = 1
    gain: float = 1.0  # what the input is multiplied by, before the clock starts, to be the same current
    package: str | None = None  # the peer's distribution
    compiles: bool = False  # so that starting takes some ten seconds

    @property
    def is_ours(self) -> bool:
        return self.package is None and not self.compiles

    def arrange(self, signal: Tensor) -> Tensor:
        """(batch, time, neurons) in the contender's layout, contiguous."""
        return signal.movedim(1, self.time_dim).contiguous()

    def restore(self, signal: Tensor) -> Tensor:
        return signal.movedim(self.time_dim, 1)


def _ours(method: str) -> Callable[[], Spikes]:
    return lambda: lambda x: exodus_core.lif(x, ALPHA, decay_reset=True, surrogate=SURROGATE, method=method)[0]


class _Spike(torch.autograd.Function):
    """s = [u >= 1] with the derivative of `SURROGATE`, in a form that torch.compile traces."""

    @staticmethod
    def forward(ctx: Any, membrane: Tensor) -> Tensor:
        ctx.save_for_backward(membrane)
        return (membrane >= 1.0).to(membrane.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (membrane,) = ctx.saved_tensors
        return grad * SURROGATE.derivative(membrane - 1.0)


def _indexed_loop() -> Spikes:
    """The loop that most tutorials show: x[:, t]. In the backward pass each index makes a gradient of the size of x."""

    def run(x: Tensor) -> Tensor:
        membrane = spikes = torch.zeros_like(x[:, 0])
        steps = []
        for t in range(x.shape[1]):
            membrane = ALPHA * (membrane - spikes) + x[:, t]
            spikes = _Spike.apply(membrane)  # type: ignore[no-untyped-call]
            steps.append(spikes)
        return torch.stack(steps, dim=1)

    return run


def _compiled_loop() -> Spikes:
    """One step is compiled, and called in a loop: a graph of all steps takes minutes to compile, anew for each T."""

    def step(membrane: Tensor, spikes: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        membrane = ALPHA * (membrane - spikes) + x
        return membrane, _Spike.apply(membrane)  # type: ignore[no-untyped-call]

    compiled = torch.compile(step, fullgraph=True, dynamic=True)

    def run(x: Tensor) -> Tensor:
        membrane = spikes = torch.zeros_like(x[0])
        steps = []
        for current in x:
            membrane, spikes = compiled(membrane, spikes, current)
            steps.append(spikes)
        return torch.stack(steps)

    return run


def _spikingjelly() -> Spikes:
    """Multi-step mode, which calls one registered operator a sequence."""
    neuron = importlib.import_module("spikingjelly.activation_based.neuron")
    surrogate = importlib.import_module("spikingjelly.activation_based.surrogate")
    functional = importlib.import_module("spikingjelly.activation_based.functional")
    layer = neuron.LIFNode(
        tau=1 / (1 - ALPHA),
        decay_input=False,
        v_reset=None,
        surrogate_function=surrogate.Sigmoid(SURROGATE.slope),
        step_mode="m",
    )

    def run(x: Tensor) -> Tensor:
        functional.reset_net(layer)
        spikes: Tensor = layer(x)
        return spikes

    return run


def _sinabs() -> Spikes:
    layers = importlib.import_module("sinabs.layers")
    activation = importlib.import_module("sinabs.activation")
    layer = layers.LIF(tau_mem=-1 / math.log(ALPHA), norm_input=False, spike_fn=activation.SingleSpike)

    def run(x: Tensor) -> Tensor:
        layer.reset_states()
        spikes: Tensor = layer(x)
        return spikes

    return run


def _snntorch() -> Spikes:
    snntorch = importlib.import_module("snntorch")
    surrogate = importlib.import_module("snntorch.surrogate")
    layer = snntorch.Leaky(beta=ALPHA, spike_grad=surrogate.sigmoid(slope=SURROGATE.slope))

    def run(x: Tensor) -> Tensor:
        membrane = torch.zeros_like(x[0])
        steps = []
        for current in x:
            spikes, membrane = layer(current, membrane)
            steps.append(spikes)
        return torch.stack(steps)

    return run


_NORSE_DT = 1e-3


def _norse() -> Spikes:
    box = importlib.import_module("norse.torch.functional.lif_box")
    reset = importlib.import_module("norse.torch.functional.reset")
    parameters = box.LIFBoxParameters(
        tau_mem_inv=torch.tensor((1 - ALPHA) / _NORSE_DT), reset_method=reset.reset_subtract
    )

    def run(x: Tensor) -> Tensor:
        state = box.LIFBoxFeedForwardState(v=torch.zeros_like(x[0]))
        steps = []
        for current in x:
            spikes, state = box.lif_box_feed_forward_step(current, state, parameters, _NORSE_DT)
            steps.append(spikes)
        return torch.stack(steps)

    return run


CONTENDERS = [
    Contender("exodus", _ours("exodus")),
    Contender("slayer", _ours("slayer"), Neuron(method="slayer")),
    Contender("bptt, the plain PyTorch loop", _ours("bptt")),
    Contender(INDEXED, _indexed_loop),
    Contender("the plain loop, torch.compile", _compiled_loop, time_dim=0, compiles=True),
    Contender("SpikingJelly", _spikingjelly, time_dim=0, package="spikingjelly"),
    Contender("sinabs", _sinabs, Neuron(surrogate=Exponential(slope=2.0, scale=2.0)), package="sinabs"),
    # Leaky subtracts a step late, and detaches what it subtracts: the gradient is SLAYER's.
    Contender("snnTorch", _snntorch, Neuron(decay_reset=False, method="slayer"), time_dim=0, package="snntorch"),
    Contender(
        "norse", _norse, Neuron(surrogate=FastSigmoid(slope=1.0)), time_dim=0, gain=1 / (1 - ALPHA), package="norse"
    ),
]

# Libraries that cannot run next to the others, with the reason.
ABSENT = {
    "lava-dl": "0.6.0, its newest release, asks for Python older than 3.11",
    "sinabs-exodus": "its kernels are for CUDA alone",
    "slayerPytorch": "its kernels are for CUDA alone",
}


def build_all(contenders: list[Contender]) -> tuple[dict[str, Spikes], dict[str, str]]:
    """The contenders that can be built, by name, and the reason for each that cannot."""
    built: dict[str, Spikes] = {}
    missing = {}
    for contender in contenders:
        try:
            built[contender.name] = contender.build()
        except ImportError as error:
            missing[contender.name] = f"not installed (`make peers` installs it): {error}"
    return built, missing
