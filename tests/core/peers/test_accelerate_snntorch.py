"""snnTorch: a Sequential of one step, run over all steps; detached resets, strict comparison, learnt constants."""

from importlib import import_module

import pytest
import torch
from accelerated import assert_same, seeded, widen
from torch import nn

import exodus_core

pytestmark = pytest.mark.peers

STEPS, BATCH = 30, 4


def loop(model, x):
    import_module("snntorch.utils").reset(model)
    steps = [model(step) for step in x]
    if isinstance(steps[0], tuple):
        return tuple(torch.stack(part) for part in zip(*steps, strict=True))
    return torch.stack(steps)


def over_time(model, x):
    return model(x)


@pytest.fixture(autouse=True)
def double(snntorch, monkeypatch):
    surrogate = import_module("snntorch.surrogate")
    names = ("ATan", "FastSigmoid", "Sigmoid", "StraightThroughEstimator", "Triangular", "SpikeRateEscape")
    widen(monkeypatch, *(getattr(surrogate, name) for name in (*names, "SparseFastSigmoid")))


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(STEPS, BATCH, 12, dtype=torch.float64) * 1.5 + 0.3


def check(x, neuron, *, gain=3.0, **options):
    def build():
        return nn.Sequential(nn.Linear(12, 16), neuron(), nn.Linear(16, 5), neuron(output=True))

    return assert_same(build, x, loop, over_time, gain=gain, time_dim=0, **options)


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("kind", ["Leaky", "Synaptic", "Lapicque"])
def test_every_reset_has_snntorchs_spikes_states_and_gradients(snntorch, x, kind, reset):
    constants = {"Leaky": {"beta": 0.9}, "Synaptic": {"alpha": 0.7, "beta": 0.8}, "Lapicque": {"beta": 0.9}}[kind]

    def neuron(**options):
        return getattr(snntorch, kind)(**constants, reset_mechanism=reset, init_hidden=True, **options)

    unmodified, accelerated = check(x, neuron, gain=12.0 if kind == "Lapicque" else 3.0)
    assert torch.allclose(unmodified[1].mem, accelerated[1].mem, atol=1e-12)


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("kind", ["RLeaky", "RSynaptic"])
def test_recurrent_neurons_have_snntorchs_gradients(snntorch, x, kind, reset):
    constants = {"beta": 0.8} if kind == "RLeaky" else {"alpha": 0.6, "beta": 0.7}

    def build():
        recurrent = getattr(snntorch, kind)(
            **constants, linear_features=16, reset_mechanism=reset, init_hidden=True, learn_beta=True
        )
        return nn.Sequential(nn.Linear(12, 16), recurrent, nn.Linear(16, 5), snntorch.Leaky(0.9, init_hidden=True))

    assert_same(build, x, loop, over_time, gain=2.0, time_dim=0)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_learnt_constants_have_snntorchs_gradients(snntorch, x, reset):
    def neuron(**options):
        return snntorch.Leaky(
            0.8,
            threshold=0.7,
            learn_beta=True,
            learn_threshold=True,
            reset_mechanism=reset,
            init_hidden=True,
            **options,
        )

    check(x, neuron)


@pytest.mark.parametrize(
    "name", ["atan", "fast_sigmoid", "sigmoid", "straight_through_estimator", "triangular", "spike_rate_escape", "SFS"]
)
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_every_surrogate_is_snntorchs(snntorch, x, name, reset):
    surrogate = getattr(import_module("snntorch.surrogate"), name)
    slope = {"slope": 5} if name in ("fast_sigmoid", "sigmoid", "spike_rate_escape", "SFS") else {}
    check(
        x,
        lambda **options: snntorch.Leaky(
            0.8, spike_grad=surrogate(**slope), reset_mechanism=reset, init_hidden=True, **options
        ),
    )


def test_a_zero_reset_without_delay_lets_the_gradient_through(snntorch, x):
    check(
        x,
        lambda **options: snntorch.Leaky(0.8, reset_delay=False, reset_mechanism="zero", init_hidden=True, **options),
    )


def test_graded_spikes_are_learnt(snntorch, x):
    check(
        x,
        lambda **options: snntorch.Leaky(
            0.8, graded_spikes_factor=0.7, learn_graded_spikes_factor=True, init_hidden=True, **options
        ),
    )


def test_a_membrane_at_the_threshold_does_not_fire(snntorch):
    net = nn.Sequential(nn.Identity(), snntorch.Leaky(1.0, init_hidden=True))
    x = torch.tensor([[[1.0, 0.5, 1.5]], [[0.25, 0.5, 0.5]]])
    wanted = loop(net, x)
    assert wanted[0].tolist() == [[0.0, 0.0, 1.0]]
    assert torch.equal(exodus_core.accelerate(net, time_dim=0)(x), wanted)


def test_batch_norm_and_pooling_are_run_as_the_loop_runs_them(snntorch):
    torch.manual_seed(0)
    x = torch.rand(10, 3, 1, 8, 8, dtype=torch.float64)

    def build():
        return nn.Sequential(
            *(
                nn.Conv2d(1, 4, 3, bias=False),
                nn.BatchNorm2d(4),
                snntorch.Leaky(0.8, init_hidden=True),
                nn.MaxPool2d(2),
            ),
            *(nn.Flatten(), nn.Linear(36, 5), snntorch.Leaky(0.8, init_hidden=True)),
        )

    unmodified, accelerated = assert_same(build, x, loop, over_time, gain=3.0, time_dim=0)
    assert torch.allclose(unmodified[1].running_mean, accelerated[1].running_mean)
    assert accelerated[1].num_batches_tracked == 10
    _, accelerated = assert_same(build, x, loop, over_time, gain=3.0, exact=False, time_dim=0)
    assert type(accelerated[3]) is exodus_core.nn.MaxPool2d


def test_time_may_be_the_second_axis_and_an_input_may_be_repeated(snntorch, x):
    def build():
        return nn.Sequential(nn.Linear(12, 16), snntorch.Leaky(0.9, init_hidden=True))

    x = x.float()
    wanted = loop(seeded(build, 3.0), x)
    second = exodus_core.accelerate(seeded(build, 3.0), time_dim=1)
    assert torch.equal(second(x.movedim(0, 1)), wanted.movedim(0, 1))
    constant = loop(seeded(build, 3.0), x[:1].expand(20, -1, -1))
    first = exodus_core.accelerate(seeded(build, 3.0), time_dim=0)
    assert torch.equal(first(x[0], steps=20), constant)


def test_parameters_and_their_names_stay(snntorch):
    net = nn.Sequential(nn.Linear(12, 16), snntorch.Leaky(0.9, init_hidden=True, learn_beta=True))
    before = dict(net.named_parameters())
    exodus_core.accelerate(net, time_dim=0)
    assert all(before[name] is parameter for name, parameter in net.named_parameters())
    assert exodus_core.accelerate(net, time_dim=0) is net


def build_loop_of_its_own(snntorch):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(12, 16), snntorch.Leaky(0.9)

        def forward(self, x):
            mem = self.lif.reset_mem()
            return torch.stack([self.lif(self.fc(step), mem)[0] for step in x])

    return Net()


def own_surrogate():
    return import_module("snntorch.surrogate").custom_surrogate(lambda x, grad, spikes: grad)


def triangular():
    return import_module("snntorch.surrogate").triangular()


def recurrent(snntorch, **options):
    return snntorch.RLeaky(0.9, linear_features=16, init_hidden=True, **options)


@pytest.mark.parametrize(
    ("neuron", "reason"),
    [
        (lambda snn: snn.Leaky(0.9, inhibition=True, init_hidden=True), "inhibition"),
        (lambda snn: snn.Leaky(0.9, state_quant=lambda mem: mem, init_hidden=True), "state_quant"),
        (lambda snn: snn.Leaky(0.9, reset_delay=False, init_hidden=True), "twice the threshold"),
        (lambda snn: snn.Leaky(0.9), "init_hidden=False"),
        (lambda snn: snn.Leaky(0.9, output=True, init_hidden=True), "is not the last layer"),
        (
            lambda snn: snn.Leaky(0.9, spike_grad=own_surrogate(), init_hidden=True),
            "has the surrogate .custom_surrogate",
        ),
        (lambda snn: snn.Alpha(0.9, 0.8, init_hidden=True), "two currents"),
        (lambda snn: snn.RLeaky(0.9, all_to_all=False, init_hidden=True), "one weight per neuron"),
        (lambda snn: recurrent(snn, spike_grad=triangular()), "recurrent connections and a surrogate"),
        (
            lambda snn: snn.Synaptic(0.9, 0.8, reset_mechanism="zero", spike_grad=triangular(), init_hidden=True),
            "a surrogate or a bound",
        ),
        (lambda snn: type("Own", (snn.Leaky,), {})(0.9, init_hidden=True), "derived"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_what_is_not_the_same_is_refused_by_layer_and_nothing_changes(snntorch, neuron, reason):
    net = nn.Sequential(nn.Linear(12, 16), neuron(snntorch), nn.Linear(16, 4), snntorch.Leaky(0.9, init_hidden=True))
    with pytest.raises(exodus_core.AccelerationError, match=reason) as caught:
        exodus_core.accelerate(net, time_dim=0)
    assert [refusal.name for refusal in caught.value.refusals] == ["1"]
    assert type(net) is nn.Sequential
    assert type(net[0]) is nn.Linear


def test_a_loop_of_its_own_is_refused_with_what_to_write_instead(snntorch):
    for options in ({}, {"time_dim": 0}):
        with pytest.raises(exodus_core.AccelerationError, match=r"before: .* after: .*init_hidden=True"):
            exodus_core.accelerate(build_loop_of_its_own(snntorch), **options)


def test_a_sequential_needs_the_axis_of_time(snntorch):
    net = nn.Sequential(nn.Linear(12, 16), snntorch.Leaky(0.9, init_hidden=True))
    with pytest.raises(exodus_core.AccelerationError, match="time_dim=0"):
        exodus_core.accelerate(net)


def test_a_membrane_of_recurrent_neurons_that_is_not_linear_in_their_spikes_is_refused(snntorch):
    layers = (
        recurrent(snntorch, reset_mechanism="zero", output=True),
        snntorch.RSynaptic(0.9, 0.8, linear_features=16, init_hidden=True, output=True),
    )
    for layer in layers:
        with pytest.raises(exodus_core.AccelerationError, match="membrane over time and has recurrent connections"):
            exodus_core.accelerate(nn.Sequential(nn.Linear(12, 16), layer), time_dim=0)


@pytest.mark.parametrize("time_dim", [0, 1])
def test_another_time_dim_is_refused_in_a_second_call(snntorch, time_dim):
    net = nn.Sequential(nn.Linear(12, 16), snntorch.Leaky(0.9, init_hidden=True))
    exodus_core.accelerate(net, time_dim=time_dim)
    assert exodus_core.accelerate(exodus_core.accelerate(net), time_dim=time_dim) is net
    with pytest.raises(exodus_core.AccelerationError, match=f"not for time_dim={1 - time_dim}"):
        exodus_core.accelerate(net, time_dim=1 - time_dim)


def test_what_a_loop_would_call_by_turns_is_refused(snntorch):
    lif = snntorch.Leaky(0.9, init_hidden=True)
    twice = nn.Sequential(nn.Linear(4, 4), lif, nn.Linear(4, 4), nn.Sequential(lif))
    with pytest.raises(exodus_core.AccelerationError, match="is there twice") as caught:
        exodus_core.accelerate(twice, time_dim=0)
    assert [refusal.name for refusal in caught.value.refusals] == ["3.0"]
    hooked = nn.Sequential(nn.Linear(4, 4), lif)
    lif.register_forward_hook(lambda *arguments: None)
    with pytest.raises(exodus_core.AccelerationError, match="has hooks"):
        exodus_core.accelerate(hooked, time_dim=0)
