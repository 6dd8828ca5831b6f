"""Gradients of other libraries against the exact ones, each library with a neuron and a setting of its own.

`exodus_core` needs none of them; docs/peers.md has the versions and how their neurons map to the equations here. Their
spikes are taken as they are, as those of the kernels are. Parameters are the numbers that the library documents, such
as 1 - 1/tau, as rationals: rounding them is part of its error.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import import_module, metadata
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from exodus_core.errors import ArgumentError
from exodus_core.surrogate import Arctan, Exponential, FastSigmoid, Sigmoid, Surrogate
from exodus_core.verify import bounds
from exodus_core.verify.arithmetic import Arithmetic, check_radii, exact_derivative, with_narrow_balls
from exodus_core.verify.bounds import LifTerms, Rounding
from exodus_core.verify.exact import LifLane, lif_gradients, lif_membranes
from exodus_core.verify.runs import check_finite

Gradient = tuple[Tensor, Tensor]  # spikes and dL/dx, (time, lanes)


@dataclass(frozen=True)
class PeerNeuron:
    """A neuron of a peer, by the equations here.

    Args:
        setting: what was built, for people.
        alpha: decay of the membrane.
        gain: what the input is multiplied by.
        reset: as in runs.RESETS.
        surrogate: f'.
        method: what the peer differentiates: "exodus" the reset too, "slayer" not.
        run: spikes and gradient of sum(grad_spikes * spikes) of an input, float32.
    """

    setting: str
    alpha: Fraction
    gain: Fraction
    reset: str
    surrogate: Surrogate
    method: str
    run: Callable[[Tensor, Tensor], Gradient]


@dataclass(frozen=True)
class PeerErrors:
    """Errors of a peer's dL/dx against the exact gradient of a method, (time, lanes), float64.

    Args:
        ulps: in units in the last place of the exact gradient.
        units: in units of u times the sum of the absolute terms.
        zero: where the exact gradient is 0, which has no units in the last place.
        relative: largest error relative to the largest exact value.
    """

    method: str
    ulps: Tensor
    units: Tensor
    zero: Tensor
    relative: float


@dataclass(frozen=True)
class Comparison:
    """A peer against the exact gradients: first of the method that it differentiates by, then the true one."""

    setting: str
    arithmetic: str
    errors: list[PeerErrors]
    spikes: int
    steps: int


def _imported(name: str, *modules: str) -> ModuleType:
    """The first module of a peer, all imported.

    Raises:
        ModuleNotFoundError: it is not installed, or something that it needs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peers warn of their own dependencies
        try:
            first, *_ = [import_module(module) for module in modules]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"--against must be a library that is installed, got {name}: {error}; `make peers` installs it",
                name=error.name,
            ) from error
    return first


def _differentiated(x: Tensor, grad: Tensor, forward: Callable[[Tensor], Tensor]) -> Gradient:
    """Spikes of an input, and the gradient of that."""
    leaf = x.detach().clone().requires_grad_()
    spikes = forward(leaf)
    (found,) = torch.autograd.grad(spikes, leaf, grad.to(spikes.dtype))
    return spikes.detach(), found


def _version(name: str) -> str:
    return f"{name} {metadata.version(name)}"


def _sinabs() -> PeerNeuron:
    sinabs = _imported("sinabs", "sinabs", "sinabs.layers", "sinabs.activation")
    layer = sinabs.layers.LIF(
        tau_mem=20.0,
        norm_input=False,
        spike_fn=sinabs.activation.SingleSpike,
        surrogate_grad_fn=sinabs.activation.SingleExponential(),
    )

    def forward(x: Tensor) -> Tensor:
        layer.reset_states()
        spikes: Tensor = layer(x.t().unsqueeze(-1))  # (lanes, time, 1)
        return spikes.squeeze(-1).t()

    alpha = Fraction(float(layer.alpha_mem_calculated.detach().reshape(-1)[0]))  # exp(-1 / tau), rounded by it
    setting = f"{_version('sinabs')}, LIF(tau_mem=20, norm_input=False, SingleSpike, SingleExponential())"
    surrogate = Exponential(slope=2.0, scale=2.0)  # its width and height at a threshold of 1
    run = _run_with(forward)
    return PeerNeuron(setting, alpha, Fraction(1), "subtract_decayed", surrogate, "exodus", run)


def _run_with(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Gradient]:
    return lambda x, grad: _differentiated(x, grad, forward)


def _snntorch() -> PeerNeuron:
    snntorch = _imported("snntorch", "snntorch", "snntorch.surrogate")
    beta = 0.9
    neuron = snntorch.Leaky(beta, spike_grad=snntorch.surrogate.atan(alpha=2.0))

    def forward(x: Tensor) -> Tensor:
        membrane = torch.zeros_like(x[0])
        spikes = []
        for current in x:
            fired, membrane = neuron(current, membrane)
            spikes.append(fired)
        return torch.stack(spikes)

    alpha = Fraction(float(neuron.beta))  # a float32
    setting = f"{_version('snntorch')}, Leaky(beta={beta}), reset by subtraction, atan"
    return PeerNeuron(setting, alpha, Fraction(1), "subtract", Arctan(2.0), "slayer", _run_with(forward))


def _spikingjelly() -> PeerNeuron:
    base = "spikingjelly.activation_based"
    jelly = _imported("spikingjelly", base, f"{base}.neuron", f"{base}.functional")
    node = jelly.neuron.LIFNode(tau=4.0, decay_input=False, v_reset=None, step_mode="m")

    def forward(x: Tensor) -> Tensor:
        jelly.functional.reset_net(node)
        spikes: Tensor = node(x)
        return spikes

    setting = f"{_version('spikingjelly')}, LIFNode(tau=4, decay_input=False, v_reset=None), Sigmoid(4)"
    alpha = 1 - Fraction(1, 4)
    return PeerNeuron(setting, alpha, Fraction(1), "subtract_decayed", Sigmoid(4.0), "exodus", _run_with(forward))


def _norse() -> PeerNeuron:
    base = "norse.torch.functional"
    norse = _imported("norse", base, f"{base}.lif_box")
    rate = Fraction(0.001) * 100  # dt * tau_mem_inv, its defaults
    parameters = norse.lif_box.LIFBoxParameters(tau_mem_inv=torch.tensor(100.0), method="super")

    def forward(x: Tensor) -> Tensor:
        state = norse.lif_box.LIFBoxFeedForwardState(v=torch.zeros_like(x[0]))
        spikes = []
        for current in x:
            fired, state = norse.lif_box.lif_box_feed_forward_step(current, state, parameters, 0.001)
            spikes.append(fired)
        return torch.stack(spikes)

    setting = f"{_version('norse')}, lif_box_feed_forward_step, tau_mem_inv=100, dt=0.001, super"
    return PeerNeuron(setting, 1 - rate, rate, "zero", FastSigmoid(1.0), "exodus", _run_with(forward))


PEERS: dict[str, Callable[[], PeerNeuron]] = {
    "sinabs": _sinabs,
    "snntorch": _snntorch,
    "spikingjelly": _spikingjelly,
    "norse": _norse,
}


def peer_neuron(name: str) -> PeerNeuron:
    """The neuron of a peer.

    Raises:
        ValueError: there is no such peer.
        ModuleNotFoundError: it is not installed.
    """
    if name not in PEERS:
        raise ArgumentError("--against", f"one of {', '.join(PEERS)}", name)
    return PEERS[name]()


def compare(peer: PeerNeuron, x: Tensor, grad_spikes: Tensor) -> Comparison:
    """Compares the gradient of a peer with the exact ones, at its own spikes.

    Args:
        x, grad_spikes: (time, lanes), float32; a peer computes in nothing else.

    Raises:
        ValueError: the spikes or the gradient of the peer are not finite.
    """
    spikes, computed = peer.run(x, grad_spikes)
    check_finite("the spikes of the library", spikes)
    check_finite("the gradient of the library", computed)
    return with_narrow_balls(
        peer.surrogate, len(x), lambda arithmetic: _compared(peer, x, grad_spikes, spikes, computed, arithmetic)
    )


def _compared(
    peer: PeerNeuron, x: Tensor, grad_spikes: Tensor, spikes: Tensor, computed: Tensor, arithmetic: Arithmetic
) -> Comparison:
    rational, working = arithmetic.rational, arithmetic.working
    zero, one, alpha, gain = map(rational, (Fraction(0), Fraction(1), peer.alpha, peer.gain))
    lane = LifLane(alpha, one, one, None, zero, zero, peer.reset)
    working_lane = replace(
        lane,
        **{
            name: working(getattr(lane, name))
            for name in ("alpha", "threshold", "reset_by", "initial_membrane", "initial_spikes")
        },
    )
    derivative = exact_derivative(peer.surrogate, arithmetic)
    rounding = Rounding(torch.float32, loop=True)
    methods = list(dict.fromkeys((peer.method, "exodus")))
    true: dict[str, list[list[float]]] = {method: [] for method in methods}
    errors: dict[str, list[list[float]]] = {method: [] for method in methods}
    radii: dict[str, list[list[float]]] = {method: [] for method in methods}
    membranes: list[list[float]] = []
    disagreements = 0
    unclipped = [False] * len(x)
    columns = zip(*(each.t().tolist() for each in (x, grad_spikes, spikes, computed)), strict=True)
    for currents, grads, counts, found in columns:
        fired = [int(count) for count in counts]
        u = lif_membranes(lane, [gain * rational(value) for value in currents], fired, unclipped).clipped
        membranes.append([arithmetic.nearest(working(value)) for value in u])
        disagreements += sum((value >= one) != bool(count) for value, count in zip(u, fired, strict=True))
        f = [derivative(value - one) for value in u]
        at = [working(value) for value in u]
        g, h = [working(rational(value)) for value in grads], [working(zero)] * len(x)
        for method in methods:
            exact = [
                gain * value
                for value in lif_gradients(working_lane, at, fired, unclipped, f, g, h, method == "slayer").input
            ]
            true[method].append([arithmetic.nearest(value) for value in exact])
            radii[method].append([arithmetic.radius(value) for value in exact])
            errors[method].append(
                [arithmetic.magnitude(rational(value) - of) for value, of in zip(found, exact, strict=True)]
            )

    def each_step(values: list[list[float]]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).t()

    membrane = each_step(membranes)
    none = torch.zeros_like(membrane)
    ones = torch.ones(membrane.shape[1], dtype=torch.float64)
    bounded = bounds.surrogate_bounds(peer.surrogate, membrane, ones, rounding, none).as_terms()
    fixed: dict[str, Any] = {
        "x": float(peer.gain) * x.double(),
        "spikes": spikes.double(),
        "membrane": membrane,
        "grad_spikes": grad_spikes.double(),
        "grad_membrane": none,
        "clipped": none.bool(),
        "alpha": float(peer.alpha) * ones,
        "threshold": ones,
        "reset_by": ones,
        "initial_membrane": 0 * ones,
        "initial_spikes": 0 * ones,
        "reset": peer.reset,
    }
    found_errors = []
    for method in methods:
        of, error = each_step(true[method]), each_step(errors[method])
        check_radii(of, each_step(radii[method]), rounding.ulp(of))
        run = LifTerms(**fixed, slayer=method == "slayer")
        terms = float(peer.gain) * bounds.lif_gradient_bounds(run, bounded, rounding, none)["input"].terms
        found_errors.append(
            PeerErrors(
                method,
                error / rounding.ulp(of),
                error / (rounding.unit * terms + rounding.least),
                of == 0,
                float(error.max() / of.abs().max()) if of.abs().max() > 0 else math.nan,
            )
        )
    return Comparison(peer.setting, arithmetic.name, found_errors, disagreements, x.numel())
