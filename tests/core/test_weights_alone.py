"""Weights alone are loaded, all or some, by name: the optimiser starts anew, and what does not fit changes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor

from exodus_core import network
from exodus_core.training import StateError, Trainer

DATA: list[dict[str, Any]] = [
    {"kind": "linear", "in_features": 6, "out_features": 8, "name": "in"},
    {"kind": "batch_norm"},
    {"kind": "lif", "alpha": 0.9, "trainable": ["alpha"], "name": "hidden"},
    {"kind": "dropout", "p": 0.2},
    {"kind": "linear", "out_features": 4, "name": "weights"},
]
LOSS = "sum_over_time_ce"


def trainer(seed: int = 1) -> Trainer:
    return Trainer(network.build(DATA, seed=seed), {"kind": "adam", "lr": 0.01})


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.rand(4, 9, 6, generator=generator, device="cpu") < 0.4
    return x, torch.randint(0, 4, (4,), generator=generator, device="cpu")


def trained(seed: int = 1) -> Trainer:
    made = trainer(seed)
    for number in range(3):
        made.step(*batch(number), LOSS)
    made.forward_backward(*batch(4), LOSS)
    return made


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.net.state_dict().items()}


@pytest.mark.parametrize("whole", [False, True], ids=["weights alone", "of a whole state"])
def test_weights_alone_are_loaded_and_the_optimizer_starts_anew(whole: bool) -> None:
    ours, theirs = trained(), trained(seed=2)
    random = ours.state()["random"]
    given = theirs.state() if whole else weights(theirs)
    result = ours.load_weights(given)
    assert result == ([*ours.net.state_dict()], [], [])
    assert equal(weights(ours), weights(theirs))
    state = ours.state()
    assert {name.partition(".")[0] for name in state} == {"weights", "random"}
    assert torch.equal(state["random"], random)
    fresh = trainer()
    fresh.load_state(state)
    assert fresh.step(*batch(5), LOSS) == ours.step(*batch(5), LOSS)
    assert equal(fresh.state(), ours.state())


def test_layers_and_weights_are_chosen_by_name() -> None:
    ours, theirs = trained(), trained(seed=2)
    before = weights(ours)
    wanted = ["in.weight", "in.bias", "1.running_mean", "weights.bias"]
    assert ours.load_weights(theirs.state(), names=["in", "1.running_mean", "weights.bias"]) == (wanted, [], [])
    for name, value in weights(ours).items():
        assert torch.equal(value, (weights(theirs) if name in wanted else before)[name])


def test_a_partial_load_lists_what_was_loaded_missing_and_unexpected() -> None:
    ours = trained()
    given = {"in.weight": torch.ones(8, 6), "out.weight": torch.ones(4, 8), "hidden.alpha": torch.tensor(0.5)}
    result = ours.load_weights(given, partial=True)
    assert result.loaded == ["in.weight", "hidden.alpha"]
    assert result.unexpected == ["out.weight"]
    assert {*result.loaded, *result.missing} == set(ours.net.state_dict())
    assert ours.load_weights(given, names=["in"], partial=True) == (["in.weight"], ["in.bias"], [])


def test_floats_are_rounded_and_neurons_brought_into_their_range() -> None:
    ours, theirs = trained(), trained(seed=2)
    given = {name: value.double() + 1e-12 for name, value in weights(theirs).items()}
    given["hidden.alpha"] = torch.tensor(1.5, dtype=torch.float16)
    ours.load_weights(given)
    assert torch.equal(ours.net.state_dict()["in.weight"], given["in.weight"].float())
    assert float(ours.net.state_dict()["hidden.alpha"]) == 1.0


def without(name: str) -> Any:
    return lambda given: given.pop(name)


def put(name: Any, value: Any) -> Any:
    return lambda given: given.update({name: value})


@pytest.mark.parametrize(
    ("damage", "options", "error", "message"),
    [
        (without("in.bias"), {}, StateError, r"all that are wanted, and no others, got no in\.bias; partial"),
        (put("out.bias", torch.ones(4)), {}, StateError, r"no others, got out\.bias"),
        (without("in.bias"), {"names": ["in"]}, StateError, r"got no in\.bias"),
        (put("in.bias", torch.ones(7)), {"partial": True}, StateError, r"in\.bias must be of shape \(8,\), got \(7,\)"),
        (put("in.bias", torch.ones(8).long()), {}, StateError, r"in\.bias must be torch\.float32, or another float"),
        (put("in.bias", torch.full((8,), torch.nan)), {}, StateError, r"in\.bias must be finite"),
        (
            put("in.bias", torch.full((8,), 1e300, dtype=torch.float64)),
            {},
            StateError,
            r"in\.bias must be finite in torch\.float32",
        ),
        (put("random.x", torch.ones(1)), {}, StateError, r"no others, got random\.x"),
        (put("optimizer.in.bias.step", torch.ones(1)), {}, StateError, r"no others, got optimizer\.in\.bias\.step"),
        (put("gradients.in.bias", torch.ones(8)), {}, StateError, r"no others, got gradients\.in\.bias"),
        (put("more", torch.ones(1)), {"names": "in"}, TypeError, "names must be a list of names .*, got str"),
        (put("more", torch.ones(1)), {"names": 5}, TypeError, "names must be a list of names .*, got int"),
        (put("more", torch.ones(1)), {"names": ["in", 5]}, TypeError, "names must be a list of str, got one with int"),
        (
            put(5, torch.ones(1)),
            {"partial": True},
            TypeError,
            "weights must be a mapping of .*, got one with a key of int",
        ),
        (put("in.bias", [0.0] * 8), {}, StateError, r"in\.bias must be a dense tensor, got list"),
        (lambda given: given.clear(), {"partial": True}, StateError, r"one or more of in\.weight, .*, got none"),
        (put("more", torch.ones(1)), {"names": ["first"]}, ValueError, r"names must be .*, got 'first'"),
        (put("more", torch.ones(1)), {"names": []}, ValueError, r"names must be one or more"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(damage: Any, options: Any, error: Any, message: str) -> None:
    ours, given = trained(), weights(trained(seed=2))
    before = ours.state()
    damage(given)
    with pytest.raises(error, match=message):
        ours.load_weights(given, **options)
    assert equal(ours.state(), before)


def test_what_is_no_mapping_by_names_is_refused() -> None:
    ours = trained()
    before: Any = ours.state()
    for load, name in ((ours.load_weights, "weights"), (ours.load_state, "state")):
        for given in (5, [*before], {**before, 5: torch.ones(1)}):
            with pytest.raises(TypeError, match=f"{name} must be a mapping of names to tensors, got "):
                load(given)
    assert equal(ours.state(), before)
