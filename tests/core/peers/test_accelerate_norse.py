"""norse: modules over time and cells in a SequentialState; second order, recurrent, adaptive, and every threshold."""

import itertools
from importlib import import_module

import pytest
import torch
from accelerated import assert_close, assert_same, runs_unless_refused, seeded
from torch import nn

import exodus_core

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]


@pytest.fixture
def package(norse):
    return import_module("norse.torch")


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(30, 4, 12, dtype=torch.float64) * 1.5 + 0.3


def outputs(model, x):
    return model(x)[0]


def loop(model, x):
    state, found = None, []
    for step in x:
        output, state = model(step, state)
        found.append(output)
    return torch.stack(found)


def values(**options):
    return {name: torch.tensor(value) if isinstance(value, float) else value for name, value in options.items()}


@pytest.mark.parametrize("method", ["super", "triangle", "tanh", "heavi_erfc", "circ"])
@pytest.mark.parametrize("v_reset", [0.0, -0.3])
def test_second_order_neurons_have_norses_spikes_and_gradients(package, x, method, v_reset):
    if method == "circ" and v_reset:
        v_reset = 0.1
    p = package.LIFParameters(**values(v_th=0.4, v_reset=v_reset, method=method, alpha=2.0))

    def build():
        readout = package.LI(p=package.LIParameters(**values(v_leak=0.1)))
        return package.SequentialState(nn.Linear(12, 16), package.LIF(p=p), nn.Linear(16, 5), package.LIF(), readout)

    # norse evaluates a constant of this one in float32
    assert_same(build, x, outputs, gain=6.0, tolerance=1e-6 if method == "heavi_erfc" else 1e-10)


def test_neurons_at_rest_elsewhere_have_norses_gradients(package, x):
    p = package.LIFParameters(**values(v_leak=-0.2, v_reset=-0.2, v_th=0.3))
    assert_same(lambda: package.SequentialState(nn.Linear(12, 16), package.LIF(p=p)), x, outputs, gain=6.0)


def test_learnt_constants_have_norses_gradients(package, x):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(12, 16)
            self.rate, self.threshold = nn.Parameter(torch.tensor(120.0)), nn.Parameter(torch.tensor(0.4))
            self.lif = package.LIF(p=package.LIFParameters(tau_mem_inv=self.rate, v_th=self.threshold))

        def forward(self, x):
            return self.lif(self.linear(x))

    assert_same(Model, x.float(), outputs, gain=6.0, tolerance=2e-5)


@pytest.mark.parametrize("kind", ["LIFRecurrent", "LSNN"])
def test_recurrent_and_adaptive_neurons_have_norses_gradients_and_states(package, x, kind):
    if kind == "LSNN":
        p = package.LSNNParameters(**values(v_th=0.3, beta=0.3, tau_adapt_inv=30.0))
    else:
        p = package.LIFParameters(**values(v_th=0.5))

    def layer():
        return package.LSNN(p=p) if kind == "LSNN" else package.LIFRecurrent(16, 16, p=p)

    def build():
        return package.SequentialState(nn.Linear(12, 16), layer(), nn.Linear(16, 5), package.LI())

    assert_same(build, x, outputs, gain=4.0)
    unmodified, accelerated = (
        seeded(build, 4.0).double(),
        exodus_core.accelerate(seeded(build, 4.0).double(), exact=True),
    )
    for first, second in ((unmodified, accelerated), (accelerated, unmodified)):
        _, state = first(x)
        _, other = second(x)
        for name, value in state[1]._asdict().items():
            assert_close(name, value, getattr(other[1], name))
        assert_close("the output from a state", first(x, list(state))[0], second(x, list(other))[0])


def test_a_current_that_is_gone_after_a_step_is_continued_as_in_norse(package, x):
    def build():
        return package.SequentialState(nn.Linear(12, 16), package.LIFRecurrent(16, 16, dt=0.005))

    def twice(model, x):
        first, state = model(x[:15])
        return torch.cat([first, model(x[15:], state)[0]])

    _, accelerated = assert_same(build, x, twice, gain=6.0)
    _, state = accelerated(x)
    assert not state[1].i.any()


@pytest.mark.parametrize("cells", ["LIFCell", "LIFBoxCell", "LSNNCell", "LIFRecurrentCell", "IAFCell"])
@pytest.mark.parametrize("time_dim", [0, 1])
def test_a_sequence_of_cells_gives_what_its_loop_gives(package, x, cells, time_dim):
    def build():
        cell = package.LIFRecurrentCell(16, 16) if cells == "LIFRecurrentCell" else getattr(package, cells)()
        return package.SequentialState(nn.Linear(12, 16), cell, nn.Linear(16, 5), package.LICell(), package.LIBoxCell())

    def over_time(model, x):
        return model(x.movedim(0, time_dim))[0].movedim(time_dim, 0)

    if cells == "LSNNCell":  # whose state has the dtype of its input, and whose v_leak is given to torch.full
        x = x.float()
    tolerance = 1e-5 if x.dtype == torch.float32 else 1e-10
    assert_same(
        build, x, loop, over_time, gain=1.0 if cells == "IAFCell" else 6.0, tolerance=tolerance, time_dim=time_dim
    )


def test_lifted_layers_take_all_steps_as_one_batch(package):
    torch.manual_seed(0)
    frames = (torch.rand(20, 3, 1, 10, 10) < 0.3).double()

    def build():
        lift = package.Lift
        return package.SequentialState(
            *(lift(nn.Conv2d(1, 4, 3)), package.LIF(), lift(nn.MaxPool2d(2)), nn.Flatten(2)),
            *(nn.Linear(64, 5), package.LI()),
        )

    assert_same(build, frames, outputs, gain=6.0)
    _, accelerated = assert_same(build, frames, outputs, gain=6.0, exact=False)
    assert type(accelerated[2].lifted_module) is exodus_core.nn.MaxPool2d


def test_a_lifted_cell_is_run_over_time(package, x):
    p = package.LIFBoxParameters(reset_method=import_module("norse.torch.functional.reset").reset_subtract)
    assert_same(lambda: package.Lift(package.LIFBoxCell(p=p)), x * 4, outputs)


def test_recorded_states_are_norses(package, x):
    unmodified = package.LIF(record_states=True)
    accelerated = exodus_core.accelerate(package.LIF(record_states=True))
    wanted, states = unmodified(4 * x)
    found, recorded = accelerated(4 * x)
    assert torch.equal(wanted, found)
    for name, value in states._asdict().items():
        assert_close(name, value, getattr(recorded, name))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda n: n.LIF(p=n.LIFParameters(method="logistic")), "has the method 'logistic'"),
        (lambda n: n.LIF(p=n.LIFParameters(method="adjoint")), "adjoint"),
        (lambda n: n.LIF(p=n.LIFParameters(tau_mem_inv=torch.tensor(2000.0))), r"outside \[0, 1\]"),
        (lambda n: n.LIFAdEx(), "not one of the neurons that are known"),
        (lambda n: n.LSNN(p=n.LSNNParameters(**values(v_reset=-0.2))), "rests elsewhere than a spike resets it to"),
        (lambda n: n.LSNN(p=n.LSNNParameters(method="circ")), "a surrogate or a bound"),
        (lambda n: n.LSNN(record_states=True), "state over time, and has an adaptation"),
        (lambda n: n.LIFRecurrent(16, 16, record_states=True), "membrane over time and has recurrent connections"),
        (lambda n: n.LIFRecurrent(16, 16, p=n.LIFParameters(method="circ")), "recurrent connections and a surrogate"),
    ],
)
def test_what_is_not_the_same_is_refused_by_layer_and_nothing_changes(package, layer, reason):
    model = package.SequentialState(nn.Linear(12, 16), layer(package), nn.Linear(16, 5), package.LI())
    with pytest.raises(exodus_core.AccelerationError, match=reason) as caught:
        exodus_core.accelerate(model)
    assert [refusal.name for refusal in caught.value.refusals] == ["1"]
    assert type(model[3]) is package.LI


@pytest.mark.parametrize("time_dim", [0, 1])
def test_another_time_dim_is_refused_in_a_second_call(package, time_dim):
    model = package.SequentialState(nn.Linear(12, 16), package.LIFCell())
    exodus_core.accelerate(model, time_dim=time_dim)
    assert exodus_core.accelerate(exodus_core.accelerate(model), time_dim=time_dim) is model
    with pytest.raises(exodus_core.AccelerationError, match=f"not for time_dim={1 - time_dim}"):
        exodus_core.accelerate(model, time_dim=1 - time_dim)


def test_a_second_call_of_what_takes_all_steps_changes_nothing(package, x):
    model = nn.Sequential(package.Lift(nn.Linear(12, 16)), package.Lift(package.LIFBoxCell()))
    first = exodus_core.accelerate(model).double()(4 * x)[0]
    assert torch.equal(exodus_core.accelerate(model)(4 * x)[0], first)
    with pytest.raises(exodus_core.AccelerationError, match="leave out time_dim"):
        exodus_core.accelerate(model, time_dim=0)


def test_a_refusal_of_the_call_names_the_layer(package, x):
    lifted = nn.Sequential(package.Lift(nn.Linear(12, 16)), package.Lift(package.LIFBoxCell()))
    over_time = package.SequentialState(nn.Linear(12, 16), package.LIF())
    cells = package.SequentialState(nn.Linear(12, 16), package.SequentialState(package.LIFBoxCell()))
    for model, layer, options in (
        (lifted, "1.lifted_module (norse.LIFBoxCell)", {}),
        (over_time, "1 (norse.LIF)", {}),
        (cells, "1.0 (norse.LIFBoxCell)", {"time_dim": 0}),
    ):
        exodus_core.accelerate(model, **options).bfloat16()
        with pytest.raises(exodus_core.AccelerationError, match="bfloat16") as caught:
            model(x.bfloat16())
        assert str(caught.value.refusals[0]).startswith(layer)


@pytest.mark.parametrize(("kind", "count"), [("LIF", 16), ("LSNN", 2), ("LIFRecurrent", 2)])
def test_what_is_not_refused_runs(package, kind, count):
    parameters = getattr(package, "LSNNParameters" if kind == "LSNN" else "LIFParameters")
    sizes = (4, 4) if kind == "LIFRecurrent" else ()
    options = itertools.product(["super", "circ"], [0.0, -0.2], [0.001, 0.005], [False, True])
    found = []
    for method, v_reset, dt, record_states in options:
        p = parameters(**values(method=method, v_reset=v_reset))
        layer = getattr(package, kind)(*sizes, p=p, dt=dt, record_states=record_states)
        found.append(runs_unless_refused(layer, torch.zeros(2, 1, 4)))
    assert found.count(True) == count


def test_cells_in_a_loop_of_their_own_are_refused_with_what_to_write_instead(package):
    model = package.SequentialState(nn.Linear(12, 16), package.LIFCell())
    with pytest.raises(exodus_core.AccelerationError, match=r"before: .* after: .*time_dim=0"):
        exodus_core.accelerate(model)
