"""Frozen layers and learning rates of single layers or parameters: the bits of torch's groups, in one step."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from exodus_core import losses, network
from exodus_core.training import OptimizerError, Trainer, parse_optimizer

DATA: list[dict[str, Any]] = [
    {"kind": "linear", "in_features": 6, "out_features": 8, "name": "in"},
    {"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"], "name": "hidden", "recurrent": {}},
    {"kind": "linear", "out_features": 4, "name": "out"},
    {"kind": "exp_leak", "alpha": 0.9},
]
NAMES = [name for name, _ in network.parse(DATA).parameters]
LOSS = losses.parse("sum_over_time_ce")
OPTIMIZERS: list[dict[str, Any]] = [
    {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01},
    {"kind": "adam", "lr": 0.01, "weight_decay": 0.01},
    {"kind": "adamw", "lr": 0.01, "amsgrad": True},
]


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.rand(4, 9, 6, generator=generator, device="cpu") < 0.4
    return x, torch.randint(0, 4, (4,), generator=generator, device="cpu")


def trainer(optimizer: Any, **options: Any) -> Trainer:
    return Trainer(network.build(DATA, seed=1), {**optimizer, **options})


def torchs(optimizer: Mapping[str, Any], rates: Mapping[str, float], frozen: tuple[str, ...]) -> Any:
    """A network, and torch's optimiser with a group for each parameter, as one writes it by hand."""
    net = network.build(DATA, seed=1)
    options = {name: value for name, value in optimizer.items() if name != "kind"}
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer["kind"]]
    neurons = {id(p) for p in net.neuron_parameters()}
    groups: list[dict[str, Any]] = []
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)
        own = {"lr": rates[name]} if name in rates else {}
        groups.append({"params": [parameter], **own, **({"weight_decay": 0.0} if id(parameter) in neurons else {})})
    return net, kind(groups, **options)


def weights(net: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def agree(ours: Trainer, rates: Mapping[str, float], frozen: tuple[str, ...], call: Mapping[str, Any]) -> None:
    """Steps have the bits of the plain loop, and the norms are those of what is trained."""
    optimizer = {k: v for k, v in ours.optimizer_data.items() if k not in ("frozen", "lr_scale", "lr_of")}
    net, theirs = torchs(optimizer, rates, frozen)
    before = weights(net)
    for seed in range(4):
        x, y = batch(seed)
        norms = ours.step(x, y, LOSS, clip_norm=0.5, **call).grad_norms
        theirs.zero_grad()
        LOSS(net(x), y).loss.backward()
        total = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        theirs.step()
        assert equal(weights(ours.net), weights(net))
        assert norms["total"] == pytest.approx(float(total), rel=1e-5)
        assert {name for name, norm in norms.items() if norm == 0} >= set(frozen)
    after = weights(net)
    assert {name for name in NAMES if torch.equal(before[name], after[name])} == set(frozen)


CASES: list[dict[str, Any]] = [
    {"lr_scale": {"in": 0.1}},
    {"lr_of": {"hidden": 0.002}},
    {"lr_scale": {"in": 2.0, "in.bias": 0.5}, "lr_of": {"out.weight": 0.001, "hidden": 0.003}},
    {"lr_scale": {"in.weight": 0.5, "out": 0.25}, "lr_of": {"in": 0.02, "out.bias": 0.004}},
    {"frozen": ["in", "hidden.alpha"]},
    {"frozen": ["hidden"], "lr_scale": {"hidden": 3.0, "out": 0.25}},
]


def rates_of(options: Mapping[str, Any], lr: float) -> dict[str, float]:
    """The learning rate of each parameter that has another, by hand."""
    found: dict[str, float] = {}
    for name in NAMES:
        for given in (name.partition(".")[0], name):
            if given in options.get("lr_scale", {}):
                found[name] = lr * options["lr_scale"][given]
            if given in options.get("lr_of", {}):
                found[name] = options["lr_of"][given]
    return found


@pytest.mark.parametrize("where", ["description", "call"])
@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_steps_have_the_bits_of_torchs_groups(optimizer: Any, options: Any, where: str) -> None:
    ours = trainer(optimizer, **(options if where == "description" else {}))
    frozen = [name for name in NAMES if {name, name.partition(".")[0]} & set(options.get("frozen", ()))]
    agree(ours, rates_of(options, optimizer["lr"]), tuple(frozen), options if where == "call" else {})


def test_the_lr_of_a_call_is_scaled_and_rates_of_their_own_stay() -> None:
    ours = trainer({"kind": "sgd"}, lr_scale={"in": 0.5}, lr_of={"out": 0.25})
    before = weights(ours.net)
    ours.forward_backward(*batch(0), LOSS)
    gradients = dict(zip(NAMES, (p.grad for p in ours.net.parameters()), strict=True))
    ours.optim_step(lr=1.0)
    for name, rate in {"in.weight": 0.5, "out.weight": 0.25, "hidden.recurrent.weight": 1.0}.items():
        assert torch.allclose(before[name] - weights(ours.net)[name], rate * gradients[name], atol=1e-6)


@pytest.mark.parametrize(
    ("description", "call"),
    [
        ({}, {"lr_scale": {"in": 0.5}}),
        ({}, {"lr_of": {"in": 0.5}}),
        ({"lr_of": {"in": 0.5}}, {"frozen": ["out"]}),
        ({"lr_scale": {"in": 0.5}}, {"frozen": ["out"], "lr_scale": {"hidden": 2.0}}),
    ],
    ids=str,
)
def test_options_of_a_call_follow_the_rate_that_a_scheduler_has_set(description: Any, call: Any) -> None:
    ours = trainer({"kind": "sgd", "lr": 0.01}, **description)
    schedule = torch.optim.lr_scheduler.StepLR(ours.optimizer, 1, gamma=0.25)
    ours.step(*batch(0), LOSS)
    schedule.step()
    before = weights(ours.net)
    ours.forward_backward(*batch(1), LOSS)
    gradients = dict(zip(NAMES, (p.grad for p in ours.net.parameters()), strict=True))
    ours.optim_step(**call)
    rates = dict.fromkeys(NAMES, 0.01 * 0.25)
    scheduled = {} if {"lr_scale", "lr_of"} & call.keys() else rates_of(description, 0.01)
    rates |= {name: rate * 0.25 for name, rate in scheduled.items()} | rates_of(call, 0.01 * 0.25)
    for name, rate in rates.items():
        rate = 0.0 if name.partition(".")[0] in call.get("frozen", ()) else rate
        assert torch.allclose(before[name] - weights(ours.net)[name], rate * gradients[name], atol=1e-6), name


def test_thousands_of_names_are_read_and_one_that_is_there_twice_is_refused() -> None:
    names = [f"unknown.{index}" for index in range(4096)]
    assert len(parse_optimizer({"kind": "sgd", "frozen": names}).frozen) == 4096
    with pytest.raises(OptimizerError, match=r"/frozen/4095 must be a name, each once, got 'unknown\.7'"):
        parse_optimizer({"kind": "sgd", "frozen": [*names[:-1], names[7]]})
    with pytest.raises(OptimizerError, match="/frozen must be of at most 4096 names, got 4097"):
        parse_optimizer({"kind": "sgd", "frozen": [*names, "another"]})


def test_options_of_a_call_hold_for_that_call() -> None:
    ours, plain = trainer(OPTIMIZERS[1]), trainer(OPTIMIZERS[1])
    groups = ours.optimizer.param_groups
    before = weights(ours.net)
    ours.step(*batch(0), LOSS, lr_of={"in": 0.0}, lr=0.5, weight_decay=0.3, frozen=["out"])
    assert ours.optimizer.param_groups is groups
    assert [g["lr"] for g in groups] == [g["lr"] for g in plain.optimizer.param_groups]
    assert torch.equal(weights(ours.net)["out.weight"], before["out.weight"])
    frozen = trainer(OPTIMIZERS[1], frozen=["out"])
    frozen.step(*batch(0), LOSS, frozen=[])
    plain.step(*batch(0), LOSS)
    assert equal(weights(frozen.net), weights(plain.net))


def test_frozen_parameters_keep_their_part_of_the_optimizers_state() -> None:
    ours = trainer(OPTIMIZERS[1])
    ours.step(*batch(0), LOSS)
    before = ours.state()
    ours.step(*batch(1), LOSS, frozen=["in"])
    after = ours.state()
    assert [name for name in before if ".in." in name and not torch.equal(before[name], after[name])] == []
    assert not torch.equal(before["optimizer.out.weight.exp_avg"], after["optimizer.out.weight.exp_avg"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_training_with_frozen_layers_goes_on_from_its_state(optimizer: Any) -> None:
    whole, other = (trainer(optimizer, frozen=["in"], lr_scale={"out": 0.5}) for _ in range(2))
    whole.step(*batch(0), LOSS)
    whole.forward_backward(*batch(1), LOSS)
    state = whole.state()
    assert not any(name.startswith("optimizer.in.") for name in state)
    assert not state["gradients.in.weight"].any()
    other.load_state(state)
    calls: list[dict[str, Any]] = [{}, {"frozen": []}, {}]
    for seed, call in enumerate(calls):
        assert whole.step(*batch(seed), LOSS, **call) == other.step(*batch(seed), LOSS, **call)
        assert equal(whole.state(), other.state())


def test_gradients_given_or_accumulated_for_frozen_parameters_count_as_zero() -> None:
    ours, given = trainer(OPTIMIZERS[1]), trainer(OPTIMIZERS[1])
    ours.forward_backward(*batch(0), LOSS)
    flat = ours.gradients()
    norms = ours.optim_step(frozen=["in", "hidden"], clip_norm=0.1)
    assert norms["in.weight"] == norms["hidden.alpha"] == 0
    assert norms["total"] == pytest.approx((norms["out.weight"] ** 2 + norms["out.bias"] ** 2) ** 0.5, rel=1e-6)
    assert given.optim_step(gradients=flat, frozen=["in", "hidden"], clip_norm=0.1) == norms
    assert equal(weights(ours.net), weights(given.net))


def test_a_backward_pass_may_freeze() -> None:
    ours = trainer(OPTIMIZERS[1])
    forward = ours.begin(batch(0)[0])
    norms = ours.backward(forward, torch.ones_like(forward.outputs), frozen=["in"])
    assert norms["in.weight"] == 0
    assert norms["out.weight"] > 0


def test_descriptions_leave_out_what_is_empty() -> None:
    assert not {"frozen", "lr_scale", "lr_of"} & parse_optimizer("adam").data.keys()
    data = {"kind": "sgd", "frozen": ["in"], "lr_scale": {"out": 0.5}, "lr_of": {"hidden": 0.1}}
    assert parse_optimizer(data).data.items() >= data.items()
    assert parse_optimizer(parse_optimizer(data).data) == parse_optimizer(data)


@pytest.mark.parametrize(
    ("options", "pointer", "expected", "got"),
    [
        ({"frozen": "in"}, "/frozen", "a list of names of layers or parameters", "'in'"),
        ({"frozen": ["in", "in"]}, "/frozen/1", "a name, each once", "'in'"),
        ({"frozen": ["first"]}, "/frozen/0", "a layer with parameters (in, hidden, out)", "'first'"),
        ({"frozen": ["3"]}, "/frozen/0", "a layer with parameters (in, hidden, out)", "'3'"),
        ({"frozen": ["in", "hidden", "out"]}, "/frozen", "names that leave a parameter to train", "all of them"),
        ({"lr_scale": {"in": -1}}, "/lr_scale/in", "a number of at least 0", "-1"),
        ({"lr_scale": ["in"]}, "/lr_scale", "an object of numbers of at least 0", "['in']"),
        ({"lr_of": {"in.alpha": 1}}, "/lr_of/in.alpha", "a parameter, or a layer with parameters", "'in.alpha'"),
        ({"lr_of": {"in": 1}, "lr_scale": {"in": 1}}, "/lr_of/in", "absent, as lr_scale has it", "both"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: Any, pointer: str, expected: str, got: str) -> None:
    ours, x = trainer(OPTIMIZERS[1]), batch(0)
    before = ours.state()
    for call in (
        lambda: trainer(OPTIMIZERS[1], **options),
        lambda: ours.optim_step(**options),
        lambda: ours.step(*x, LOSS, **options),
    ):
        with pytest.raises(OptimizerError) as caught:
            call()
        assert caught.value.pointer == pointer
        assert expected in caught.value.expected
        assert got in caught.value.got
    assert equal(before, ours.state())
