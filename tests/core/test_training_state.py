"""The state of a training: everything that the next call depends on, and nothing that does not fit is loaded."""

from collections.abc import Callable, Mapping
from typing import Any

import network_cases as cases
import pytest
import torch
from torch import Tensor

from exodus_core import losses, network
from exodus_core.training import StateError, Trainer

LOSS = losses.parse("sum_over_time_ce")
OPTIMIZERS = [
    {"kind": "sgd", "lr": 0.05},
    {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
    {"kind": "adam", "lr": 0.01, "amsgrad": True},
    {"kind": "adamw", "lr": 0.01},
]


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.rand(4, 9, 2, 6, 7, generator=generator, device="cpu") < 0.4
    return x, torch.randint(0, 5, (4,), generator=generator, device="cpu")


def trainer(optimizer: Any, seed: int = 1) -> Trainer:
    return Trainer(network.build(cases.MIXED, seed=seed), optimizer)


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("accumulated", [False, True])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_training_goes_on_from_its_state_to_the_bit(optimizer: Any, steps: int, accumulated: bool) -> None:
    whole, other = trainer(optimizer), trainer(optimizer, seed=2)
    for i in range(steps):
        whole.step(*batch(i), LOSS)
    for i in range(2):
        other.step(*batch(10 + i), LOSS)
    other.forward_backward(*batch(12), LOSS)
    if accumulated:
        whole.forward_backward(*batch(5), LOSS)
    state = whole.state()
    # As it comes back from a file: other memory, contiguous, in any order.
    read = {name: value.clone(memory_format=torch.contiguous_format) for name, value in reversed(state.items())}
    other.load_state(read)
    assert equal(other.state(), state)
    for value in read.values():
        value.zero_()
    for i in range(3):
        assert whole.step(*batch(20 + i), LOSS, clip_norm=0.3) == other.step(*batch(20 + i), LOSS, clip_norm=0.3)
        assert equal(whole.state(), other.state())


def test_a_state_is_a_copy() -> None:
    ours = trainer(OPTIMIZERS[2])
    ours.step(*batch(0), LOSS)
    ours.forward_backward(*batch(1), LOSS)
    state = ours.state()
    kept = {name: value.clone() for name, value in state.items()}
    ours.step(*batch(2), LOSS)
    assert equal(state, kept)
    assert not any(value.requires_grad for value in state.values())
    assert not equal(ours.state(), kept)


def test_names_say_what_a_tensor_is() -> None:
    ours = trainer({"kind": "adam"})
    fresh = set(ours.state())
    named = [name for name, _ in ours.net.named_parameters()]
    buffers = [f"{norm}.running_{kind}" for norm in ("1", "10") for kind in ("mean", "var")]
    weights = {f"weights.{name}" for name in [*named, *buffers]}
    assert fresh == weights | {"random"}
    ours.step(*batch(0), LOSS)
    ours.forward_backward(*batch(0), LOSS)
    slots = {f"optimizer.{name}.{slot}" for name in named for slot in ("step", "exp_avg", "exp_avg_sq")}
    gradients = {f"gradients.{name}" for name in [*named, "count"]}
    assert set(ours.state()) == weights | {"random"} | slots | gradients
    assert ours.nbytes == sum(value.nbytes for name, value in ours.state().items() if name != "random")


def without(name: str) -> Any:
    return lambda state: state.pop(name)


def put(name: str, value: Any) -> Any:
    return lambda state: state.update({name: value(state.get(name))})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("weights.0.weight"), r"weights\.0\.weight must be in the state, got none"),
        (without("weights.1.running_var"), r"weights\.1\.running_var must be in the state"),
        (without("optimizer.8.bias.exp_avg"), r"optimizer\.8\.bias\.exp_avg must be in the state"),
        (without("gradients.first.alpha"), r"gradients\.first\.alpha must be in the state"),
        (without("random"), "random must be in the state"),
        (put("weights.99.weight", lambda _: torch.ones(1)), r"weights\.99\.weight must be absent from a state of this"),
        (put("extra", lambda _: torch.ones(1)), "extra must be absent from a state of this network and optimiser"),
        (
            put("optimizer.8.bias.momentum_buffer", lambda _: torch.ones(8)),
            r"momentum_buffer must be absent from a state",
        ),
        (put("weights.8.bias", lambda v: v[1:]), r"weights\.8\.bias must be of shape \(8,\), got \(7,\)"),
        (put("weights.8.bias", lambda v: v.double()), r"weights\.8\.bias must be torch\.float32, got torch\.float64"),
        (put("weights.8.bias", lambda v: v.tolist()), r"weights\.8\.bias must be a tensor, got list"),
        (put("optimizer.8.bias.step", lambda v: v.long()), r"step must be torch\.float32, got torch\.int64"),
        (put("gradients.8.bias", lambda v: v[None]), r"gradients\.8\.bias must be of shape \(8,\), got \(1, 8\)"),
        (
            put("gradients.count", lambda v: v * 0),
            r"gradients\.count must be a number from 1 to 2\*\*53, and 0 or 1, got",
        ),
        (put("gradients.count", lambda v: v + 2), r"gradients\.count must be .*, got \[3, 2\]"),
        (put("random", lambda v: v[1:]), r"random must be of shape"),
        (put("random", lambda v: v.float()), r"random must be torch\.uint8, got torch\.float32"),
        (put("random", lambda v: v * 0 + 255), "random must be the state of a generator"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    damage: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    ours = trainer({"kind": "adam"})
    ours.step(*batch(0), LOSS)
    ours.forward_backward(*batch(1), LOSS)
    before, state = ours.state(), ours.state()
    state["weights.0.bias"] += 1
    damage(state)
    with pytest.raises(StateError, match=message):
        ours.load_state(state)
    assert equal(ours.state(), before)


def test_a_forward_pass_before_a_state_was_loaded_is_stale() -> None:
    ours = trainer({"kind": "adam"})
    version = ours.weights_version
    ours.load_state(ours.state())
    assert ours.weights_version > version
