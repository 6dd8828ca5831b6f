"""SpikingJelly: `>=`, hard reset or reset before the decay, gradients through the reset unless detached; time first."""

import math

import pytest
import torch
from torch.func import functional_call

import exodus_core
from exodus_core.surrogate import Arctan, Boxcar, Exponential, FastSigmoid, Gaussian, Sigmoid, Triangle

pytestmark = pytest.mark.peers

TAU = 4.0
ALPHA = 1 - 1 / TAU
RESETS = {"soft": (None, {"reset": "subtract", "decay_reset": True}), "hard": (0.0, {"reset": "zero"})}
SURROGATES = [
    ("Sigmoid", 4.0, Sigmoid(slope=4.0)),
    ("ATan", 2.0, Arctan(slope=2.0)),
    ("PiecewiseQuadratic", 0.8, Triangle(slope=0.8, scale=0.8)),
    ("PiecewiseExp", 1.5, Exponential(slope=1.5, scale=0.75)),
    ("SoftSign", 2.0, FastSigmoid(slope=2.0, scale=1.0)),
    ("SuperSpike", 1.5, FastSigmoid(slope=1.0, scale=1.5)),
    ("Erf", 2.0, Gaussian(slope=2.0 * math.sqrt(2))),
    ("Rect", 0.7, Boxcar(slope=0.7)),
]


def node(neurons, cls, reset, **options):
    """A multi-step neuron that keeps its membrane."""
    return getattr(neurons, cls)(v_reset=RESETS[reset][0], step_mode="m", store_v_seq=True, **options)


def run(node, x, v, **parameters):
    """Spikes, and the membrane after the reset."""
    node.v = v
    return functional_call(node, parameters, (x,)), node.v_seq


def after(reset, spikes, membrane):
    return spikes, membrane - spikes if reset == "soft" else membrane * (1 - spikes)


@pytest.fixture
def time_first(shape):
    batch, steps, neurons = shape
    return steps, batch, neurons


@pytest.mark.parametrize("method", ["exodus", "bptt"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(("name", "width", "surrogate"), SURROGATES, ids=[name for name, *_ in SURROGATES])
def test_lif_agrees_with_spikingjelly(
    spikingjelly, lif, draw, assert_agree, time_first, name, width, surrogate, reset, method
):
    function = getattr(spikingjelly.surrogate, name)(alpha=width)
    peer = node(spikingjelly.neuron, "LIFNode", reset, tau=TAU, decay_input=False, surrogate_function=function)
    options = {"surrogate": surrogate, "method": method, "time_dim": 0, **RESETS[reset][1]}
    assert_agree(
        lambda x, v: run(peer, x, v),
        lambda x, v: after(reset, *lif(x, ALPHA, initial_membrane=v, **options)),
        x=draw(*time_first, mean=0.3),
        v=draw(*time_first[1:]),
    )


@pytest.mark.parametrize("reset", RESETS)
def test_float32_kernels_of_spikingjelly_agree(spikingjelly, lif, draw, assert_agree, time_first, reset):
    peer = node(spikingjelly.neuron, "LIFNode", reset, tau=TAU, decay_input=False)
    options = {"surrogate": Sigmoid(slope=4.0), "time_dim": 0, **RESETS[reset][1]}
    assert_agree(
        lambda x, v: run(peer, x, v),
        lambda x, v: after(reset, *lif(x, ALPHA, initial_membrane=v, **options)),
        tolerance=1e-5,
        x=draw(*time_first, mean=0.3).float(),
        v=draw(*time_first[1:]).float(),
    )


@pytest.mark.parametrize("reset", RESETS)
def test_decayed_input_is_divided_by_tau(spikingjelly, lif, draw, assert_agree, time_first, reset):
    peer = node(spikingjelly.neuron, "LIFNode", reset, tau=TAU, decay_input=True)
    options = {"surrogate": Sigmoid(slope=4.0), "time_dim": 0, **RESETS[reset][1]}
    assert_agree(
        lambda x, v: run(peer, x, v),
        lambda x, v: after(reset, *lif(x / TAU, ALPHA, initial_membrane=v, **options)),
        x=draw(*time_first, mean=1.0, std=2.0),
        v=draw(*time_first[1:]),
    )


@pytest.mark.parametrize("reset", RESETS)
def test_if_agrees_with_spikingjelly(spikingjelly, lif, draw, assert_agree, time_first, reset):
    peer = node(spikingjelly.neuron, "IFNode", reset)
    options = {"surrogate": Sigmoid(slope=4.0), "time_dim": 0, **RESETS[reset][1]}
    assert_agree(
        lambda x, v: run(peer, x, v),
        lambda x, v: after(reset, *lif(x, 1.0, initial_membrane=v, **options)),
        x=draw(*time_first),
        v=draw(*time_first[1:]),
    )


def test_detached_soft_reset_of_spikingjelly_is_slayer(spikingjelly, lif, draw, assert_agree, time_first):
    peer = node(spikingjelly.neuron, "LIFNode", "soft", tau=TAU, decay_input=False, detach_reset=True)

    def ours(x, v):
        spikes, membrane = lif(
            x,
            ALPHA,
            decay_reset=True,
            surrogate=Sigmoid(slope=4.0),
            method="slayer",
            initial_membrane=v,
            time_dim=0,
        )
        return spikes, membrane - spikes.detach()

    assert_agree(lambda x, v: run(peer, x, v), ours, x=draw(*time_first, mean=0.3), v=draw(*time_first[1:]))


@pytest.mark.parametrize("reset", RESETS)
def test_learnt_decay_of_a_parametric_lif_agrees(spikingjelly, lif, draw, assert_agree, time_first, reset):
    peer = node(spikingjelly.neuron, "ParametricLIFNode", reset, init_tau=TAU, decay_input=False).double()
    options = {"surrogate": Sigmoid(slope=4.0), "time_dim": 0, **RESETS[reset][1]}
    assert_agree(
        lambda x, w, v: run(peer, x, v, w=w),
        lambda x, w, v: after(reset, *lif(x, 1 - torch.sigmoid(w), initial_membrane=v, **options)),
        x=draw(*time_first, mean=0.3),
        w=torch.tensor(-1.2, dtype=torch.float64),
        v=draw(*time_first[1:]),
    )


@pytest.mark.parametrize("time_dim", [0, 1, 2])
def test_time_may_lie_in_any_dimension(spikingjelly, lif, draw, assert_agree, time_first, time_dim):
    peer = node(spikingjelly.neuron, "LIFNode", "soft", tau=TAU, decay_input=False)

    def ours(x, v):
        moved = x.movedim(0, time_dim).contiguous()
        outputs = lif(
            moved, ALPHA, decay_reset=True, surrogate=Sigmoid(slope=4.0), initial_membrane=v, time_dim=time_dim
        )
        spikes, membrane = (output.movedim(time_dim, 0) for output in outputs)
        return after("soft", spikes, membrane)

    assert_agree(lambda x, v: run(peer, x, v), ours, x=draw(*time_first, mean=0.3), v=draw(*time_first[1:]))


def test_a_membrane_at_the_threshold_fires_in_spikingjelly_too(spikingjelly):
    x = torch.ones(1, 1, 1)
    assert spikingjelly.neuron.IFNode(step_mode="m")(x) == exodus_core.lif(x, 1.0)[0] == 1
