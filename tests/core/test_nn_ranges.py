"""Trained parameters of neurons: they stay in their ranges, and can be found."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from assertions import relative_error
from exodus_core import AlphaKernel, network, nn, surrogate

X = torch.linspace(-1, 2, 2 * 20 * 3).view(2, 20, 3)


OPTIMISERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 1.0),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.3),
    "fused adam": lambda parameters: torch.optim.Adam(parameters, 0.3, fused=True),
}


LEARNT = {
    "lif": (lambda: nn.LIF(0.95, trainable=("alpha", "threshold")), {"alpha": (0, 1), "threshold": (1e-3, math.inf)}),
    "per neuron": (lambda: nn.LIF(torch.full((3,), 0.95), trainable="alpha"), {"alpha": (0, 1)}),
    "many spikes": (lambda: nn.LIF(0.9, max_spikes=9, trainable="threshold"), {"threshold": (1e-3, math.inf)}),
    "exp_leak": (lambda: nn.ExpLeak(0.999, trainable="alpha"), {"alpha": (0, 1)}),
    "srm": (lambda: nn.SRM(AlphaKernel(3.0, -1.0), trainable="threshold"), {"threshold": (1e-3, math.inf)}),
}


@pytest.mark.parametrize(
    "copied", [lambda layer: layer, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize(("make", "ranges"), LEARNT.values(), ids=LEARNT)
def test_learnt_parameters_stay_in_their_ranges(
    make: Callable[..., Any], ranges: Any, optimiser: Any, copied: Callable[[Any], Any]
) -> None:
    for sign in (-1, 1):
        layer = copied(make())
        steps = optimiser(layer.parameters())
        moved = False

        def loss(layer: Any = layer, steps: Any = steps, sign: float = sign) -> Any:
            steps.zero_grad()
            # The second term pulls with all its might, whatever the neurons do.
            value = layer(X).sum() + sign * 100 * sum(parameter.sum() for parameter in layer.parameters())
            value.backward()
            return value

        for _ in range(5):
            before = {name: getattr(layer, name).detach().clone() for name in ranges}
            steps.step(loss)
            for name, (low, high) in ranges.items():
                value = getattr(layer, name).detach()
                assert ((value >= low) & (value <= high)).all()
                moved |= not torch.equal(value, before[name])
        assert moved


def test_a_learnt_decay_comes_back_from_the_end_of_its_range() -> None:
    layer = nn.ExpLeak(1.0, trainable="alpha")
    layer(X).square().sum().backward()
    assert layer.alpha.grad > 0
    torch.optim.SGD(layer.parameters(), 0.1 / layer.alpha.grad.item()).step()
    assert layer.alpha.item() == pytest.approx(0.9)


def test_an_optimiser_changes_no_parameter_of_another() -> None:
    ours, others = nn.LIF(0.9, trainable="alpha"), nn.LIF(0.9, trainable="alpha")
    with torch.no_grad():
        others.alpha.fill_(1.5)
    spikes = others(X)  # keeps the parameter for the backward pass
    ours(X).sum().backward()
    torch.optim.SGD(ours.parameters(), 1.0).step()
    spikes.sum().backward()
    assert others.alpha == 1.5
    others.constrain()
    assert others.alpha == 1.0


def test_a_threshold_to_be_trained_must_be_positive() -> None:
    for threshold in (0.0, torch.tensor([1.0, -1.0])):
        with pytest.raises(ValueError, match="threshold must be positive, got"):
            nn.LIF(0.9, threshold=threshold, trainable="threshold")


@pytest.mark.parametrize("step", ["adam", "sgd"])
def test_the_readme_network_trains_at_a_high_rate(step: Any) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(10, 32, bias=False),
        nn.LIF(0.95, surrogate=surrogate.Arctan(), trainable="alpha"),
        torch.nn.Linear(32, 4, bias=False),
        nn.ExpLeak(0.9, trainable="alpha"),
    )
    x = torch.randn(4, 100, 10)
    optimiser = (
        torch.optim.Adam(network.parameters(), 5e-2) if step == "adam" else torch.optim.SGD(network.parameters(), 5e-2)
    )
    for _ in range(30):
        optimiser.zero_grad()
        readout = network(x)
        (-readout.max(dim=1).values.sum()).backward()
        optimiser.step()
        assert all(0 <= network[i].alpha <= 1 for i in (1, 3))
    assert readout.isfinite().all()


def test_the_parameters_of_neurons_can_be_kept_from_weight_decay() -> None:
    hidden = nn.LIF(0.9, threshold=2.0, trainable=("alpha", "threshold"))
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 3), hidden, torch.nn.Sequential(hidden, nn.ExpLeak(0.5, trainable="alpha"))
    )
    neurons = list(nn.neuron_parameters(net))
    assert [id(p) for p in neurons] == [id(p) for p in (hidden.alpha, hidden.threshold, net[2][1].alpha)]
    weights = [p for p in net.parameters() if all(p is not neuron for neuron in neurons)]
    optimizer = torch.optim.AdamW(
        [{"params": weights}, {"params": neurons, "weight_decay": 0.0}], lr=0.1, weight_decay=0.5
    )
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    before = net[0].weight.clone()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)
    assert [round(p.item(), 6) for p in neurons] == [0.9, 2.0, 0.5]


def overshoot(module: Any, parameter: Tensor, optimizer: Any = None) -> None:
    optimizer = optimizer or torch.optim.SGD(module.parameters(), lr=0.1)
    parameter.grad = torch.full_like(parameter, -10.0)
    optimizer.step()


@pytest.mark.parametrize("copied", [False, True])
def test_parameters_that_are_set_later_stay_in_range_too(copied: bool) -> None:
    layer = nn.LIF(0.9)
    layer.alpha = torch.nn.Parameter(torch.tensor(0.999))
    layer = copy.deepcopy(layer) if copied else layer
    overshoot(layer, layer.alpha)
    assert layer.alpha.item() == 1


@pytest.mark.parametrize("copied", [False, True])
def test_networks_from_descriptions_stay_in_range_in_a_loop_of_ones_own(copied: bool) -> None:
    lif = {"kind": "lif", "alpha": 0.999, "trainable": ["alpha"]}
    net = network.build([{"kind": "linear", "in_features": 3, "out_features": 3}, lif])
    net = copy.deepcopy(net) if copied else net
    overshoot(net, net.get_parameter("1.alpha"))
    assert net.get_parameter("1.alpha").item() == 1
    assert [id(p) for p in nn.neuron_parameters(torch.nn.Sequential(net))] == [id(net.get_parameter("1.alpha"))]


def test_an_optimiser_does_not_write_to_a_parameter_that_it_left_alone() -> None:
    layer, other = nn.LIF(0.9, trainable=["alpha"]), torch.nn.Linear(3, 3)
    optimizer = torch.optim.SGD([*layer.parameters(), *other.parameters()], 0.1)
    loss = layer(torch.rand(2, 4, 3)).sum()
    overshoot(other, other.bias, optimizer)
    loss.backward()
    assert layer.alpha.grad is not None


def test_a_threshold_to_be_trained_starts_within_its_range() -> None:
    with pytest.raises(ValueError, match=r"threshold must be at least 0.001 if it is trained, got 0.0005"):
        nn.LIF(0.9, threshold=torch.tensor([1.0, 5e-4]), trainable=["threshold"])


def test_constrain_brings_every_neuron_of_a_tree_into_its_range() -> None:
    lif = {"kind": "lif", "alpha": 0.9, "trainable": ["alpha"]}
    net = torch.nn.Sequential(
        nn.LIF(0.9, trainable=("alpha", "threshold")),
        nn.Recurrent(nn.LIF(torch.full((3,), 0.9), trainable="alpha"), torch.nn.Linear(3, 3)),
        network.build({"input_shape": [3], "layers": [lif]}),
    )
    with torch.no_grad():
        for parameter in nn.neuron_parameters(net):
            parameter.fill_(-4.0)
    nn.constrain(net)
    assert {name: p.min().item() for name, p in net.named_parameters() if not name.startswith("1.syn")} == {
        "0.alpha": 0.0,
        "0.threshold": pytest.approx(1e-3),
        "1.neuron.alpha": 0.0,
        "2.0.alpha": 0.0,
    }


def bounded_net() -> Any:
    layers = nn.LIF(torch.full((3,), 0.9), threshold=0.5, trainable=("alpha", "threshold")), nn.IF()
    return nn.bounded(torch.nn.Sequential(torch.nn.Linear(3, 3), *layers))


def test_bounded_parameters_start_where_they_were_and_never_reach_an_end() -> None:
    net = bounded_net()
    assert relative_error(net[1].alpha.detach(), torch.full((3,), 0.9)) < 1e-6
    assert net[1].threshold.item() == pytest.approx(0.5)
    assert "alpha=(3,) (trainable, bounded), threshold=0.5 (trainable, bounded)" in repr(net[1])
    (alpha, threshold) = nn.neuron_parameters(net)
    for sign in (-1, 1):
        for parameter in (alpha, threshold):
            before = parameter.detach().clone()
            overshoot(net, parameter, torch.optim.SGD([parameter], 0.5, maximize=sign < 0))
            torch.testing.assert_close(parameter.detach(), before + 5 * sign)  # not projected: it is no decay
            assert ((net[1].alpha >= 0) & (net[1].alpha <= 1)).all()
            assert net[1].threshold >= 1e-3


def test_bounded_layers_train_copy_and_are_saved() -> None:
    net, other = bounded_net(), bounded_net()
    x = X + 0.5
    before = copy.deepcopy(net)(x)
    assert torch.equal(before, net(x))
    net(x).sum().backward()
    gradient = net[1].parametrizations.alpha.original.grad
    plain = nn.LIF(torch.full((3,), 0.9), threshold=0.5, trainable="alpha")
    net[2](plain(net[0](x))).sum().backward()
    assert relative_error(gradient, plain.alpha.grad * 0.9 * 0.1) < 1e-5
    torch.optim.Adam(net.parameters(), 0.1).step()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    pieces = nn.TimeCheckpoint(net, 6)
    assert torch.equal(pieces(x), net(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LIF(1.0, trainable="alpha"), r"alpha must be inside of \[0, 1\], to be bounded, got 1.0"),
        (lambda: nn.ExpLeak(0.0, trainable="alpha"), r"alpha must be inside of \[0, 1\], to be bounded, got 0.0"),
        (lambda: nn.IF(threshold=0.001, trainable="threshold"), "threshold must be above 0.001, to be bounded"),
    ],
)
def test_a_parameter_at_the_end_of_its_range_has_no_bounded_form(make: Callable[..., Any], message: str) -> None:
    layer = make()
    with pytest.raises(ValueError, match=message):
        nn.bounded(layer)
