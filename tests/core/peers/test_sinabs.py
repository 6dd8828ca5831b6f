"""sinabs: reset before the decay, `>=`, clipping after the reset, gradients through the reset."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import exodus_core
from exodus_core.surrogate import Boxcar, Exponential, Gaussian

pytestmark = pytest.mark.peers

THETA = 0.75
# sinabs evaluates sqrt(2 pi) in float32
ROOT_TWO_PI = math.sqrt(2 * math.pi) / float(torch.sqrt(2 * torch.tensor(math.pi)))
SURROGATES = [
    pytest.param(
        ("SingleExponential", {"grad_width": 0.4, "grad_scale": 1.5}),
        Exponential(slope=1 / (0.4 * THETA), scale=1.5 / (0.4 * THETA)),
        id="SingleExponential",
    ),
    pytest.param(
        ("Gaussian", {"sigma": 0.5, "grad_scale": 0.7}), Gaussian(slope=2.0, scale=0.7 * ROOT_TWO_PI), id="Gaussian"
    ),
]
DEFAULT = Exponential(slope=1 / (0.5 * THETA), scale=1 / (0.5 * THETA))


@pytest.fixture
def single_spike(sinabs, widened):
    return widened(sinabs.activation.SingleSpike)


def layer(cls, *, threshold=THETA, **options):
    """A sinabs layer in float64 that records its membrane."""
    return cls(spike_threshold=torch.tensor(threshold), record_states=True, **options).double()


def run(layer, x, **state):
    """Spikes, and the membrane after the reset, with parameters and state of the layer replaced."""
    return functional_call(layer, state, (x,)), layer.recordings["v_mem"]


def after_subtraction(spikes: Tensor, membrane: Tensor, by: float = THETA) -> tuple[Tensor, Tensor]:
    return spikes, membrane - by * spikes


@pytest.mark.parametrize("method", ["exodus", "bptt"])
@pytest.mark.parametrize(("theirs", "surrogate"), SURROGATES)
def test_lif_agrees_with_sinabs_in_input_alpha_and_state(
    sinabs, single_spike, lif, draw, assert_agree, shape, theirs, surrogate, method
):
    name, arguments = theirs
    peer = layer(
        sinabs.layers.LIF,
        tau_mem=torch.full(shape[2:], 10.0),
        spike_fn=single_spike,
        surrogate_grad_fn=getattr(sinabs.activation, name)(**arguments),
        norm_input=False,
        train_alphas=True,
    )
    assert_agree(
        lambda x, alpha, v: run(peer, x, alpha_mem=alpha, v_mem=v),
        lambda x, alpha, v: after_subtraction(
            *lif(x, alpha, threshold=THETA, decay_reset=True, surrogate=surrogate, method=method, initial_membrane=v)
        ),
        x=draw(*shape),
        alpha=torch.linspace(0.7, 0.98, shape[2], dtype=torch.float64),
        v=draw(shape[0], shape[2]),
    )


def test_lif_over_images_agrees_with_sinabs(sinabs, single_spike, lif, draw, assert_agree):
    peer = layer(sinabs.layers.LIF, tau_mem=5.0, spike_fn=single_spike, norm_input=False, train_alphas=True)
    assert_agree(
        lambda x, alpha, v: run(peer, x, alpha_mem=alpha, v_mem=v),
        lambda x, alpha, v: after_subtraction(
            *lif(x, alpha, threshold=THETA, decay_reset=True, surrogate=DEFAULT, initial_membrane=v)
        ),
        x=draw(2, 30, 3, 4, 5),
        alpha=torch.tensor(0.8, dtype=torch.float64),
        v=draw(2, 3, 4, 5),
    )


def test_time_constant_of_a_normalised_input_agrees_with_sinabs(sinabs, single_spike, lif, draw, assert_agree, shape):
    peer = layer(sinabs.layers.LIF, tau_mem=torch.full(shape[2:], 10.0), spike_fn=single_spike)

    def ours(x, tau, v):
        alpha = torch.exp(-1 / tau)
        return after_subtraction(
            *lif((1 - alpha) * x, alpha, threshold=THETA, decay_reset=True, surrogate=DEFAULT, initial_membrane=v)
        )

    assert_agree(
        lambda x, tau, v: run(peer, x, tau_mem=tau, v_mem=v),
        ours,
        x=draw(*shape, mean=1.5, std=5.0),
        tau=torch.linspace(4.0, 20.0, shape[2], dtype=torch.float64),
        v=draw(shape[0], shape[2]),
    )


def test_if_agrees_with_sinabs(sinabs, single_spike, lif, draw, assert_agree, shape):
    peer = layer(sinabs.layers.IAF, spike_fn=single_spike)
    assert_agree(
        lambda x, v: run(peer, x, v_mem=v),
        lambda x, v: after_subtraction(*lif(x, 1.0, threshold=THETA, surrogate=DEFAULT, initial_membrane=v)),
        x=draw(*shape, mean=0.1),
        v=draw(shape[0], shape[2]),
    )


def test_subtract_value_is_reset_by(sinabs, single_spike, lif, draw, assert_agree, shape):
    subtract = sinabs.activation.MembraneSubtract(subtract_value=0.5)
    peer = layer(sinabs.layers.IAF, spike_fn=single_spike, reset_fn=subtract)
    assert_agree(
        lambda x, v: run(peer, x, v_mem=v),
        lambda x, v: after_subtraction(
            *lif(x, 1.0, threshold=THETA, reset_by=0.5, surrogate=DEFAULT, initial_membrane=v), by=0.5
        ),
        x=draw(*shape, mean=0.1),
        v=draw(shape[0], shape[2]),
    )


def test_several_spikes_a_step_agree_with_sinabs(sinabs, widened, lif, draw, assert_agree, shape):
    peer = layer(
        sinabs.layers.LIF,
        tau_mem=5.0,
        spike_fn=widened(sinabs.activation.MultiSpike),
        norm_input=False,
        train_alphas=True,
    )
    most = []

    def ours(x, alpha, v):
        spikes, membrane = lif(
            x, alpha, threshold=THETA, decay_reset=True, surrogate=DEFAULT, initial_membrane=v, max_spikes=100
        )
        most.append(spikes.max())
        return after_subtraction(spikes, membrane)

    assert_agree(
        lambda x, alpha, v: run(peer, x, alpha_mem=alpha, v_mem=v),
        ours,
        x=draw(*shape, std=1.5),
        alpha=torch.tensor(0.8, dtype=torch.float64),
        v=draw(shape[0], shape[2]),
    )
    assert 2 < most[0] < 100


@pytest.mark.parametrize(("name", "max_spikes"), [("SingleSpike", 1), ("MultiSpike", 100), ("MaxSpike", 2)])
def test_sinabs_as_it_comes_agrees_in_float32(sinabs, lif, draw, assert_agree, shape, name, max_spikes):
    spike_fn = getattr(sinabs.activation, name)
    spike_fn = spike_fn(max_spikes) if name == "MaxSpike" else spike_fn
    peer = layer(sinabs.layers.LIF, tau_mem=5.0, spike_fn=spike_fn, norm_input=False, train_alphas=True)
    assert_agree(
        lambda x, alpha, v: run(peer.float(), x, alpha_mem=alpha, v_mem=v),
        lambda x, alpha, v: after_subtraction(
            *lif(
                x,
                alpha,
                threshold=THETA,
                decay_reset=True,
                surrogate=DEFAULT,
                initial_membrane=v,
                max_spikes=max_spikes,
            )
        ),
        tolerance=1e-5,
        x=draw(*shape, std=1.0).float(),
        alpha=torch.tensor(0.8),
        v=draw(shape[0], shape[2]).float(),
    )


def test_heaviside_is_a_boxcar_below_the_end_of_its_window(sinabs, single_spike, lif, draw, assert_agree, shape):
    """sinabs' Heaviside has no upper end: the two are one where the membrane stays below theta + window."""
    heaviside = sinabs.activation.Heaviside(window=0.5)
    peer = layer(sinabs.layers.IAF, threshold=0.5, spike_fn=single_spike, surrogate_grad_fn=heaviside)

    def ours(x, v):
        spikes, membrane = lif(x, 1.0, threshold=0.5, surrogate=Boxcar(slope=1.0, scale=2.0), initial_membrane=v)
        assert membrane.max() < 0.5 + 0.5
        return after_subtraction(spikes, membrane, by=0.5)

    assert_agree(
        lambda x, v: run(peer, x, v_mem=v),
        ours,
        x=draw(*shape).clamp(max=0.45),
        v=draw(shape[0], shape[2]).clamp(max=0.5),
    )


def test_a_lower_bound_agrees_with_sinabs_where_the_surrogate_ends_above_it(
    sinabs, single_spike, lif, draw, assert_agree, shape
):
    """sinabs clips after the reset, exodus_core before the spike. A neuron that fires lands at theta - reset_by or
    above, so with a bound below that both clip the same steps. At a clipped step sinabs still lets pass what comes by
    the spike, which is nothing with a surrogate that has ended there: Heaviside with theta - window > bound."""
    peer = layer(
        sinabs.layers.LIF,
        threshold=0.5,
        tau_mem=5.0,
        spike_fn=single_spike,
        surrogate_grad_fn=sinabs.activation.Heaviside(window=0.5),
        norm_input=False,
        train_alphas=True,
        min_v_mem=-0.25,
    )

    def ours(x, alpha, v, bound):
        spikes, membrane = lif(
            x,
            alpha,
            threshold=0.5,
            decay_reset=True,
            surrogate=Boxcar(slope=1.0, scale=2.0),
            min_membrane=bound,
            initial_membrane=v,
        )
        assert (membrane == -0.25).double().mean() > 0.1
        assert membrane.max() < 0.5 + 0.5
        return after_subtraction(spikes, membrane, by=0.5)

    assert_agree(
        lambda x, alpha, v, bound: run(peer, x, alpha_mem=alpha, v_mem=v, min_v_mem=bound),
        ours,
        x=draw(*shape).clamp(max=0.5),
        alpha=torch.tensor(0.8, dtype=torch.float64),
        v=draw(shape[0], shape[2]).clamp(-0.2, 0.5),
        bound=torch.tensor(-0.25, dtype=torch.float64),
    )


@pytest.mark.parametrize("method", ["exodus", "bptt"])
def test_lower_bound_after_the_reset_agrees_with_sinabs(sinabs, single_spike, lif, draw, assert_agree, shape, method):
    """Also where a spike leaves less than the bound, and the surrogate is felt below it."""
    subtract = sinabs.activation.MembraneSubtract(subtract_value=0.9)
    peer = layer(
        sinabs.layers.LIF,
        tau_mem=5.0,
        spike_fn=single_spike,
        reset_fn=subtract,
        norm_input=False,
        train_alphas=True,
        min_v_mem=-0.05,
    )

    def ours(x, alpha, v, bound):
        spikes, membrane = lif(
            x,
            alpha,
            threshold=THETA,
            reset_by=0.9,
            decay_reset=True,
            surrogate=DEFAULT,
            method=method,
            min_membrane=bound,
            bound_after_reset=True,
            initial_membrane=v,
        )
        left = membrane - 0.9 * spikes
        assert (left <= bound).double().mean() > 0.1
        assert ((left <= bound) & (spikes > 0)).any()
        return spikes, torch.relu(left - bound) + bound

    assert_agree(
        lambda x, alpha, v, bound: run(peer, x, alpha_mem=alpha, v_mem=v, min_v_mem=bound),
        ours,
        x=draw(*shape),
        alpha=torch.tensor(0.8, dtype=torch.float64),
        v=draw(shape[0], shape[2]).clamp(min=0.0),
        bound=torch.tensor(-0.05, dtype=torch.float64),
    )


def test_hard_reset_of_sinabs_is_detached_and_agrees_in_all_that_does_not_pass_a_spike(
    sinabs, single_spike, lif, draw, assert_agree, shape
):
    """MembraneReset multiplies by (s == 0), which has no gradient: lam's factor is alpha (1 - s), neither EXODUS nor
    SLAYER. Spikes and membranes are equal; so are gradients with an f' that is 0 wherever the membrane was."""
    peer = layer(
        sinabs.layers.LIF,
        tau_mem=5.0,
        spike_fn=single_spike,
        reset_fn=sinabs.activation.MembraneReset(),
        surrogate_grad_fn=sinabs.activation.Heaviside(window=-1e3),
        norm_input=False,
        train_alphas=True,
    )

    def ours(x, alpha, v):
        nowhere = Boxcar(slope=1e8)
        spikes, membrane = lif(x, alpha, threshold=THETA, reset="zero", surrogate=nowhere, initial_membrane=v)
        return spikes, membrane * (1 - spikes)

    assert_agree(
        lambda x, alpha, v: run(peer, x, alpha_mem=alpha, v_mem=v),
        ours,
        x=draw(*shape),
        alpha=torch.tensor(0.9, dtype=torch.float64),
        v=draw(shape[0], shape[2]),
    )


def test_synaptic_time_constant_is_a_filter_before_the_neuron(sinabs, single_spike, lif, draw, assert_agree, shape):
    peer = layer(
        sinabs.layers.LIF, tau_mem=5.0, tau_syn=3.0, spike_fn=single_spike, norm_input=False, train_alphas=True
    )
    synapse = float(torch.exp(torch.tensor(-1 / 3.0)))
    rest = torch.zeros(shape[0], shape[2], dtype=torch.float64)

    def ours(x, alpha, v):
        current = exodus_core.filter(x, exodus_core.ExponentialKernel(synapse, amplitude=synapse))
        return after_subtraction(
            *lif(current, alpha, threshold=THETA, decay_reset=True, surrogate=DEFAULT, initial_membrane=v)
        )

    assert_agree(
        lambda x, alpha, v: run(peer, x, alpha_mem=alpha, v_mem=v, i_syn=rest),
        ours,
        x=draw(*shape, mean=0.1),
        alpha=torch.tensor(0.8, dtype=torch.float64),
        v=draw(shape[0], shape[2]),
    )


def test_exponential_filter_agrees_with_exp_leak(sinabs, draw, assert_agree, shape):
    peer = sinabs.layers.ExpLeak(tau_mem=5.0, train_alphas=True).double()
    alpha = float(peer.alpha_mem.detach())
    rest = torch.zeros(shape[0], shape[2], dtype=torch.float64)
    assert_agree(
        lambda x: (functional_call(peer, {"v_mem": rest}, (x,)),),
        lambda x: (exodus_core.filter(x, exodus_core.ExponentialKernel(alpha)),),
        spiking=False,
        x=draw(*shape),
    )


def test_a_membrane_at_the_threshold_fires_in_sinabs_too(sinabs):
    x = torch.ones(1, 1, 1)
    peer = sinabs.layers.IAF(spike_fn=sinabs.activation.SingleSpike)
    assert peer(x) == exodus_core.lif(x, 1.0)[0] == 1
