"""norse: `>`, Euler steps of dt / tau, hard or soft reset before the decay, gradients through the reset."""

import math

import pytest
import torch

import exodus_core
from exodus_core.surrogate import FastSigmoid, Gaussian, Tanh, Triangle

pytestmark = pytest.mark.peers

DT = 1e-3
SUPER = FastSigmoid(slope=1.0)
# norse evaluates sqrt(pi) in float32
ROOT_PI = math.sqrt(math.pi) / float(torch.tensor(math.pi).sqrt())
# Method of norse's threshold function, its alpha, and ours. norse's SuperSpike leaves its alpha out.
SURROGATES = [
    ("super", 100.0, SUPER),
    ("triangle", 0.3, Triangle(slope=1.0, scale=0.3)),
    ("tanh", 1.5, Tanh(slope=1.5)),
    ("heavi_erfc", 1.5, Gaussian(slope=1.5 * math.sqrt(2), scale=2 / 1.5 * ROOT_PI)),
]
RESETS = {"reset_value": {"reset": "zero"}, "reset_subtract": {"reset": "subtract", "decay_reset": True}}


def over_time(step, x, state):
    """Spikes and membranes after the reset, time first."""
    steps = []
    for current in x:
        spikes, state = step(current, state)
        steps.append((spikes, state.v))
    return tuple(torch.stack(output) for output in zip(*steps, strict=True))


def after(reset, spikes, membrane, threshold=1.0):
    return spikes, membrane * (1 - spikes) if reset == "reset_value" else membrane - threshold * spikes


@pytest.fixture
def inputs(draw, shape):
    """x with time first, an inverse time constant and a threshold per neuron, and an initial membrane."""
    batch, steps, neurons = shape
    return {
        "x": draw(steps, batch, neurons, mean=1.5, std=5.0),
        "tau_inv": torch.linspace(50.0, 250.0, neurons, dtype=torch.float64),
        "v_th": torch.linspace(0.8, 1.2, neurons, dtype=torch.float64),
        "v": draw(batch, neurons),
    }


@pytest.mark.parametrize("method", ["exodus", "bptt"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(("name", "width", "surrogate"), SURROGATES, ids=[name for name, *_ in SURROGATES])
def test_lif_box_agrees_with_norse_in_input_decay_threshold_and_state(
    norse, lif, assert_agree, inputs, name, width, surrogate, reset, method
):
    def peer(x, tau_inv, v_th, v):
        parameters = norse.lif_box.LIFBoxParameters(
            tau_mem_inv=tau_inv, v_th=v_th, method=name, alpha=width, reset_method=getattr(norse.reset, reset)
        )
        return over_time(
            lambda current, state: norse.lif_box.lif_box_feed_forward_step(current, state, parameters, DT),
            x,
            norse.lif_box.LIFBoxFeedForwardState(v=v),
        )

    def ours(x, tau_inv, v_th, v):
        rate = DT * tau_inv
        options = {"surrogate": surrogate, "method": method, "time_dim": 0, **RESETS[reset]}
        return after(reset, *lif(rate * x, 1 - rate, threshold=v_th, initial_membrane=v, **options), v_th)

    assert_agree(peer, ours, **inputs)


def test_lif_with_a_synapse_is_a_filter_before_a_hard_reset(norse, lif, assert_agree, inputs):
    synapse_inv = 300.0
    inputs["x"] = inputs["x"] / 2

    def peer(x, tau_inv, v_th, v):
        parameters = norse.lif.LIFParameters(tau_syn_inv=synapse_inv, tau_mem_inv=tau_inv, v_th=v_th)
        return over_time(
            lambda current, state: norse.lif.lif_feed_forward_step(current, state, parameters, DT),
            x,
            norse.lif.LIFFeedForwardState(v=v, i=torch.zeros_like(v)),
        )

    def ours(x, tau_inv, v_th, v):
        rate = DT * tau_inv
        current = exodus_core.filter(x, exodus_core.ExponentialKernel(1 - DT * synapse_inv), time_dim=0)
        options = {"reset": "zero", "surrogate": SUPER, "time_dim": 0}
        return after("reset_value", *lif(rate * current, 1 - rate, threshold=v_th, initial_membrane=v, **options))

    assert_agree(peer, ours, **inputs)


def test_if_agrees_with_norse(norse, lif, assert_agree, inputs):
    def peer(x, v_th, v):
        return over_time(
            lambda current, state: norse.iaf.iaf_feed_forward_step(current, state, norse.iaf.IAFParameters(v_th=v_th)),
            x,
            norse.iaf.IAFFeedForwardState(v=v),
        )

    def ours(x, v_th, v):
        options = {"reset": "zero", "surrogate": SUPER, "time_dim": 0}
        return after("reset_value", *lif(x, 1.0, threshold=v_th, initial_membrane=v, **options))

    assert_agree(peer, ours, x=inputs["x"] / 10, v_th=inputs["v_th"], v=inputs["v"])


def test_a_membrane_at_the_threshold_fires_here_and_not_in_norse(norse):
    x, rest = torch.ones(1, 1, 1), norse.iaf.IAFFeedForwardState(v=torch.zeros(1, 1))
    assert exodus_core.lif(x, 1.0, time_dim=0)[0] == 1
    assert norse.iaf.iaf_feed_forward_step(x[0], rest)[0] == 0
