"""snnTorch: `>`, reset a step late and not decayed, no gradient through the reset; the membrane it returns is before
the reset. A detached subtraction is what SLAYER does to a LIF, so that is what most of these compare with."""

import pytest
import torch

import exodus_core
from exodus_core.surrogate import Arctan, Boxcar, FastSigmoid, Sigmoid

pytestmark = pytest.mark.peers

# Function in snntorch.surrogate, its arguments, and ours. Straight-through is 1 everywhere: a boxcar wide enough.
SURROGATES = [
    ("ATan", (2.0,), Arctan(slope=2.0)),
    ("FastSigmoid", (5.0,), FastSigmoid(slope=5.0)),
    ("Sigmoid", (6.0,), Sigmoid(slope=6.0)),
    ("StraightThroughEstimator", (), Boxcar(slope=0.01, scale=100.0)),
]
DEFAULT = Arctan(slope=2.0)


@pytest.fixture
def leaky(snntorch, widened):
    """Builds a Leaky and runs it over time, dimension 0: spikes, and membranes as it returns them."""

    def run(x, beta, mem, *, threshold=1.0, spike=("ATan", (2.0,)), as_it_comes=False, **options):
        function = getattr(snntorch.surrogate, spike[0])
        function = function if as_it_comes else widened(function)
        neuron = snntorch.Leaky(beta, threshold, spike_grad=lambda x: function.apply(x, *spike[1]), **options)
        steps = []
        for current in x:
            spikes, mem = neuron(current, mem)
            steps.append((spikes, mem))
        return tuple(torch.stack(output) for output in zip(*steps, strict=True))

    return run


@pytest.fixture
def inputs(draw, shape):
    """x with time first, a decay per neuron, and an initial membrane below the threshold."""
    batch, steps, neurons = shape
    return {
        "x": draw(steps, batch, neurons),
        "beta": torch.linspace(0.7, 0.98, neurons, dtype=torch.float64),
        "mem": draw(batch, neurons).clamp(max=0.9),
    }


@pytest.mark.parametrize(("name", "arguments", "surrogate"), SURROGATES, ids=[name for name, *_ in SURROGATES])
def test_detached_subtraction_of_snntorch_is_slayer(leaky, lif, assert_agree, inputs, name, arguments, surrogate):
    assert_agree(
        lambda x, beta, mem: leaky(x, beta, mem, spike=(name, arguments)),
        lambda x, beta, mem: lif(x, beta, surrogate=surrogate, method="slayer", initial_membrane=mem, time_dim=0),
        **inputs,
    )


@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
def test_without_a_reset_all_methods_agree_with_snntorch(leaky, lif, assert_agree, inputs, method):
    inputs["x"] = inputs["x"] - 0.2
    options = {"reset": "none", "surrogate": DEFAULT, "method": method, "time_dim": 0}
    assert_agree(
        lambda x, beta, mem: leaky(x, beta, mem, reset_mechanism="none"),
        lambda x, beta, mem: lif(x, beta, initial_membrane=mem, **options),
        **inputs,
    )


@pytest.mark.parametrize(("reset", "method"), [("subtract", "slayer"), ("none", "exodus"), ("none", "bptt")])
def test_learnt_threshold_agrees_with_snntorch(leaky, lif, assert_agree, inputs, reset, method):
    """The subtracted amount is the threshold, and is learnt with it, in both."""
    inputs["x"] = inputs["x"] - (0.2 if reset == "none" else 0.0)
    options = {"reset": reset, "surrogate": DEFAULT, "method": method, "time_dim": 0}
    assert_agree(
        lambda x, beta, mem, threshold: leaky(x, beta, mem, threshold=threshold, reset_mechanism=reset),
        lambda x, beta, mem, threshold: lif(x, beta, threshold=threshold, initial_membrane=mem, **options),
        **inputs,
        threshold=torch.linspace(0.9, 1.3, len(inputs["beta"]), dtype=torch.float64),
    )


@pytest.mark.parametrize("method", ["exodus", "bptt"])
def test_immediate_reset_of_snntorch_is_exact_while_one_spike_is_enough(leaky, lif, assert_agree, inputs, method):
    """`reset_delay=False` subtracts within the step, before the next decay, and lets the gradient through: the decayed
    reset of exodus_core. A membrane above 2 theta would be reset twice, which exodus_core has no counterpart for."""
    inputs["x"] = inputs["x"].clamp(max=0.9)

    def ours(x, beta, mem):
        spikes, membrane = lif(
            x, beta, decay_reset=True, surrogate=DEFAULT, method=method, initial_membrane=mem, time_dim=0
        )
        assert membrane.max() < 2
        return spikes, membrane - spikes

    assert_agree(lambda x, beta, mem: leaky(x, beta, mem, reset_delay=False), ours, **inputs)


def test_hard_reset_of_snntorch_is_detached_and_agrees_in_all_that_does_not_pass_a_spike(
    leaky, lif, assert_agree, inputs
):
    """lam's factor is beta (1 - s), neither EXODUS nor SLAYER. Spikes and membranes are equal; so are gradients with an
    f' that is 0 wherever the membrane was."""
    nowhere = Boxcar(slope=1e8)
    assert_agree(
        lambda x, beta, mem: detached_spikes(*leaky(x, beta, mem, reset_mechanism="zero")),
        lambda x, beta, mem: lif(x, beta, reset="zero", surrogate=nowhere, initial_membrane=mem, time_dim=0),
        **inputs,
    )


def detached_spikes(spikes, membrane):
    return spikes.detach(), membrane


def test_an_initial_membrane_above_the_threshold_is_an_initial_spike(leaky, lif, draw, assert_agree, inputs):
    inputs["mem"] = inputs["mem"] + 0.5
    assert (inputs["mem"] > 1).any()

    def ours(x, beta, mem):
        fired = (mem > 1).to(mem.dtype).detach()
        return lif(
            x,
            beta,
            surrogate=DEFAULT,
            method="slayer",
            initial_membrane=mem,
            initial_spikes=fired,
            time_dim=0,
        )

    assert_agree(leaky, ours, **inputs)


def test_snntorch_as_it_comes_agrees_in_float32(leaky, lif, assert_agree, inputs):
    assert_agree(
        lambda x, beta, mem: leaky(x, beta, mem, as_it_comes=True),
        lambda x, beta, mem: lif(x, beta, surrogate=DEFAULT, method="slayer", initial_membrane=mem, time_dim=0),
        tolerance=1e-5,
        **{name: leaf.float() for name, leaf in inputs.items()},
    )


def test_a_membrane_at_the_threshold_fires_here_and_not_in_snntorch(leaky):
    x, rest = torch.ones(1, 1, 1), torch.zeros(1, 1)
    assert exodus_core.lif(x, 1.0, time_dim=0)[0] == 1
    assert leaky(x, 1.0, rest)[0] == 0
