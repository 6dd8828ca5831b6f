"""sinabs: its layers take all steps and keep their state; lower bounds, resets, counts and all its surrogates."""

import itertools
from importlib import import_module, metadata

import pytest
import torch
from accelerated import assert_close, assert_same, runs_unless_refused, seeded, widen
from torch import nn

import exodus_core

pytestmark = pytest.mark.peers


@pytest.fixture
def double(sinabs, monkeypatch):
    activation = sinabs.activation
    inner = import_module("sinabs.activation.spike_generation").MaxSpikeInner
    widen(monkeypatch, activation.SingleSpike, activation.MultiSpike, inner)


@pytest.fixture
def x(double):
    torch.manual_seed(0)
    return torch.randn(4, 30, 12, dtype=torch.float64) * 1.5 + 0.3


def whole(model, x):
    return model(x)


def check(x, layer, **options):
    """Twice in a row, so that the second call starts from the state of the first, and gradients reach back into it."""
    options = {"gain": 3.0, "calls": 2, **options}
    return assert_same(
        lambda: nn.Sequential(nn.Linear(12, 16), layer(16), nn.Linear(16, 5), layer(5)), x, whole, **options
    )


@pytest.mark.parametrize("spike_fn", ["SingleSpike", "MultiSpike", "MaxSpike"])
@pytest.mark.parametrize("reset", ["subtract", "subtract_value", "reset"])
@pytest.mark.parametrize("layer", ["IAF", "LIF"])
def test_every_reset_and_count_has_sinabs_spikes_and_gradients(sinabs, x, layer, reset, spike_fn):
    activation = sinabs.activation
    resets = {
        "subtract": activation.MembraneSubtract(),
        "subtract_value": activation.MembraneSubtract(subtract_value=0.6),
        "reset": activation.MembraneReset(),
    }
    spikes = activation.MaxSpike(2) if spike_fn == "MaxSpike" else getattr(activation, spike_fn)
    options = {"spike_fn": spikes, "reset_fn": resets[reset]}
    if layer == "LIF":
        options |= {"tau_mem": 10.0, "norm_input": False}
    check(x, lambda n: getattr(sinabs.layers, layer)(**options), gain=1.5)


@pytest.mark.parametrize("name", ["SingleExponential", "Gaussian", "Heaviside", "MultiGaussian", "PeriodicExponential"])
def test_every_surrogate_is_sinabs(sinabs, x, name):
    surrogate = getattr(sinabs.activation, name)()
    tolerance = 1e-7 if name == "Gaussian" else 1e-10  # sinabs evaluates a constant in float32

    def layer(n):
        return sinabs.layers.LIF(tau_mem=10.0, norm_input=False, surrogate_grad_fn=surrogate)

    check(x, layer, gain=1.5, tolerance=tolerance)


@pytest.mark.parametrize("bound", [-1.0, -0.2, 0.0])
@pytest.mark.parametrize("spike_fn", ["SingleSpike", "MultiSpike"])
def test_a_lower_bound_lets_the_gradient_of_the_spikes_pass_as_in_sinabs(sinabs, x, bound, spike_fn):
    spikes = getattr(sinabs.activation, spike_fn)
    unmodified, accelerated = check(x, lambda n: sinabs.layers.IAF(min_v_mem=bound, spike_fn=spikes))
    assert (unmodified[1].v_mem == unmodified[1].min_v_mem).any()
    assert_close("the membrane", unmodified[1].v_mem, accelerated[1].v_mem)


@pytest.mark.parametrize("train_alphas", [False, True])
@pytest.mark.parametrize("norm_input", [False, True])
@pytest.mark.parametrize("tau_syn", [None, 5.0])
def test_time_constants_have_sinabs_gradients(sinabs, x, tau_syn, norm_input, train_alphas):
    def layer(n):
        return sinabs.layers.LIF(
            tau_mem=torch.linspace(5.0, 15.0, n), tau_syn=tau_syn, norm_input=norm_input, train_alphas=train_alphas
        )

    check(x, layer, gain=8.0 if norm_input else 2.0)


def test_recurrent_layers_have_sinabs_gradients(sinabs, x):
    check(x, lambda n: sinabs.layers.LIFRecurrent(tau_mem=8.0, rec_connect=nn.Linear(n, n), norm_input=False), gain=1.2)
    check(x, lambda n: sinabs.layers.IAFRecurrent(rec_connect=nn.Linear(n, n)), gain=1.2)
    check(x, lambda n: sinabs.layers.LIFRecurrent(tau_mem=8.0, tau_syn=4.0, rec_connect=nn.Linear(n, n)), gain=6.0)


@pytest.mark.parametrize("reset", ["MembraneSubtract", "MembraneReset"])
@pytest.mark.parametrize("spike_fn", ["SingleSpike", "MultiSpike"])
def test_recordings_and_a_leaky_readout_are_sinabs(sinabs, x, spike_fn, reset):
    def build():
        layers = sinabs.layers
        reset_fn, spikes = getattr(sinabs.activation, reset)(), getattr(sinabs.activation, spike_fn)
        hidden = layers.LIF(
            tau_mem=5.0, tau_syn=4.0, norm_input=False, record_states=True, reset_fn=reset_fn, spike_fn=spikes
        )
        return nn.Sequential(nn.Linear(12, 16), hidden, nn.Linear(16, 5), layers.ExpLeak(tau_mem=20.0, norm_input=True))

    unmodified, accelerated = assert_same(build, x, whole, calls=2)
    for name, trace in unmodified[1].recordings.items():
        assert_close(name, trace, accelerated[1].recordings[name])
    assert torch.allclose(unmodified[1].firing_rate, accelerated[1].firing_rate)


def test_images_with_batch_and_time_as_one_axis_are_taken(sinabs, double):
    torch.manual_seed(0)
    frames = (torch.rand(3 * 20, 2, 10, 10) < 0.3).double()

    def build():
        layers = sinabs.layers
        return nn.Sequential(
            *(nn.Conv2d(2, 4, 3), layers.IAFSqueeze(batch_size=3, min_v_mem=-1.0), layers.SumPool2d(2)),
            *(nn.Flatten(), nn.Linear(64, 5), layers.LIFSqueeze(num_timesteps=20, tau_mem=20.0)),
        )

    assert_same(build, frames, whole, gain=3.0)
    _, accelerated = assert_same(build, frames, whole, gain=3.0, exact=False)
    assert isinstance(accelerated[2], sinabs.layers.SumPool2d)
    assert type(accelerated[2]) is not sinabs.layers.SumPool2d
    kinds = [layer["kind"] for layer in exodus_core.to_network(accelerated, [2, 10, 10])[0]["layers"]]
    assert kinds == ["conv2d", "lif", "sum_pool", "flatten", "linear", "cuba_lif"]


@pytest.mark.parametrize("size", [2, (2, 1), [1, 2]], ids=str)
def test_sums_of_windows_of_every_form(sinabs, size):
    model = exodus_core.accelerate(nn.Sequential(sinabs.layers.SumPool2d(size), sinabs.layers.IAF()))
    x = torch.rand(6, 2, 8, 8)
    assert torch.equal(model[0](x), sinabs.layers.SumPool2d(size)(x))


def test_states_are_reset_copied_and_detached_by_sinabs(sinabs, x):
    x = x.float()
    model = exodus_core.accelerate(
        seeded(lambda: nn.Sequential(nn.Linear(12, 16), sinabs.layers.LIF(tau_mem=9.0)), 9.0)
    )
    first = model(x)
    assert not torch.equal(model(x), first)
    sinabs.reset_states(model)
    assert torch.equal(model(x), first)
    sinabs.zero_grad(model)
    assert model[1].v_mem.grad_fn is None
    assert isinstance(model[1], sinabs.layers.LIF)


def recurrent(sinabs, **options):
    return sinabs.layers.LIFRecurrent(tau_mem=5.0, rec_connect=nn.Linear(16, 16), **options)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda s: s.layers.ALIF(tau_mem=5.0, tau_adapt=10.0), "threshold that adapts"),
        (
            lambda s: s.layers.LIF(5.0, reset_fn=s.activation.MembraneReset(reset_value=0.5)),
            "every neuron in every step",
        ),
        (lambda s: s.layers.IAF(min_v_mem=0.5), "above the membrane that a spike leaves"),
        (lambda s: s.layers.IAF(surrogate_grad_fn=lambda v, threshold: v), "not known that it is elementwise"),
        (lambda s: s.layers.ExpLeak(5.0, min_v_mem=-1.0), "leaky integrator with min_v_mem"),
        (lambda s: s.layers.LIFRecurrent(5.0, rec_connect=nn.Sequential(nn.Linear(16, 16), nn.ReLU())), "Linear"),
        (lambda s: recurrent(s, min_v_mem=-1.0), "recurrent connections and a surrogate, a reset or a bound"),
        (lambda s: recurrent(s, reset_fn=s.activation.MembraneReset()), "a reset or a bound"),
        (lambda s: recurrent(s, surrogate_grad_fn=s.activation.PeriodicExponential()), "a surrogate, a reset"),
        (lambda s: recurrent(s, record_states=True), "membrane over time and has recurrent connections"),
    ],
)
def test_what_is_not_the_same_is_refused_by_layer_and_nothing_changes(sinabs, layer, reason):
    model = nn.Sequential(nn.Linear(12, 16), layer(sinabs), nn.Linear(16, 5), sinabs.layers.IAF())
    with pytest.raises(exodus_core.AccelerationError, match=reason) as caught:
        exodus_core.accelerate(model)
    assert [refusal.name for refusal in caught.value.refusals] == ["1"]
    assert type(model[3]) is sinabs.layers.IAF


@pytest.mark.parametrize("kind", ["LIF", "LIFRecurrent"])
def test_what_is_not_refused_runs(sinabs, kind):
    activation = sinabs.activation
    options = {
        "tau_syn": (None, 5.0),
        "reset_fn": (activation.MembraneSubtract(), activation.MembraneReset()),
        "spike_fn": (activation.SingleSpike, activation.MultiSpike),
        "surrogate_grad_fn": (activation.SingleExponential(), activation.PeriodicExponential()),
        "min_v_mem": (None, -1.0),
        "record_states": (False, True),
    }
    connected = {"rec_connect": nn.Linear(4, 4)} if kind == "LIFRecurrent" else {}
    layer, x = getattr(sinabs.layers, kind), torch.zeros(1, 2, 4)
    found = [
        runs_unless_refused(layer(tau_mem=9.0, **dict(zip(options, values, strict=True)), **connected), x)
        for values in itertools.product(*options.values())
    ]
    assert found.count(True) == (64 if kind == "LIF" else 6)


def test_what_is_changed_after_the_call_is_refused_with_the_name_of_the_layer(sinabs, x):
    net = exodus_core.accelerate(nn.Sequential(nn.Linear(12, 16), nn.Sequential(recurrent(sinabs)))).double()
    net(x)
    net[1][0].record_states = True
    with pytest.raises(exodus_core.AccelerationError, match="membrane over time") as caught:
        net(x)
    (refusal,) = caught.value.refusals
    assert (refusal.name, refusal.kind) == ("1.0", "sinabs.LIFRecurrent")


def test_an_unknown_version_is_warned_of_with_the_tested_ones(sinabs, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "9.9")
    with pytest.warns(UserWarning, match=r"sinabs 9\.9 .*tested: 3\.1\.3"):
        exodus_core.accelerate(nn.Sequential(sinabs.layers.IAF()))


def test_a_model_without_neurons_is_refused():
    with pytest.raises(exodus_core.AccelerationError, match="has no neurons"):
        exodus_core.accelerate(nn.Sequential(nn.Linear(2, 2)))
