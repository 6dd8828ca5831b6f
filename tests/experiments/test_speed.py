"""The speed experiment times nobody who is wrong, and says plainly what holds."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.speed.measure import Timing
from exodus_core import nn as exodus_nn
from exodus_core.surrogate import Exponential
from experiments import speed
from experiments.architectures import ARCHITECTURES
from experiments.contenders import CONTENDERS, DENSE, EXODUS, LOOP, SINABS, SLAYER, Contender, Fresh
from experiments.speed import Device, Measured, claims, fault, measure, page_of, times

OURS = [contender for contender in CONTENDERS if contender.neuron is None]
PEERS = [contender for contender in CONTENDERS if contender.neuron is not None]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "CHECKED_STEPS", 20)
    monkeypatch.setattr(speed, "DENSITY", 0.3)


@pytest.mark.parametrize("contender", OURS, ids=lambda contender: contender.name)
@pytest.mark.parametrize("name", ["dvs", "shd"])
def test_our_own_methods_are_right(name: str, contender: Contender) -> None:
    assert fault(contender, ARCHITECTURES[name], Device.CPU) is None


@pytest.mark.peers
@pytest.mark.parametrize("contender", PEERS, ids=lambda contender: contender.name)
@pytest.mark.filterwarnings("ignore")
def test_other_libraries_compute_the_same_network(contender: Contender) -> None:
    pytest.importorskip(contender.name.split()[-1].lower(), reason="not installed: run `make peers`")
    assert fault(contender, ARCHITECTURES["dvs"], Device.CPU) is None


def _translated(**options: Any) -> Any:
    """An IF layer of exodus_core.nn as if it were a peer's."""

    def make(layer: Mapping[str, Any]) -> nn.Module:
        surrogate = Exponential(layer["surrogate"]["slope"], layer["surrogate"]["scale"])
        given = {"threshold": layer["threshold"], "decay_reset": True, "surrogate": surrogate, **options}
        return Fresh(exodus_nn.IF(**given), lambda module: None)

    return make


@pytest.mark.parametrize(
    ("options", "found"),
    [({}, None), ({"threshold": 0.9}, "the loss differs"), ({"method": "slayer"}, "the gradient of weights")],
    ids=["right", "another threshold", "another method"],
)
def test_the_gate_says_what_is_wrong(options: dict[str, Any], found: str | None) -> None:
    said = fault(Contender("peer", neuron=_translated(**options)), ARCHITECTURES["shd"], Device.CPU)
    assert said is None if found is None else found in (said or "")


def test_a_contender_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Contender("wrong", neuron=_translated(threshold=0.9))
    monkeypatch.setattr(speed, "CONTENDERS", (*OURS, wrong))
    for name, value in {"QUICK_STEPS": 20, "QUICK_REPEATS": 1, "QUICK_SHARE": 0.01}.items():
        monkeypatch.setattr(speed, name, value)
    measured = measure("shd", Device.CPU, quick=True)
    assert set(measured.step) == {contender.name for contender in OURS}
    assert set(measured.neurons) == set(measured.step) - {DENSE}
    assert "the loss differs" in measured.wrong["wrong"]
    assert all(len(repeat) == 3 for timing in measured.step.values() for repeat in timing.repeats)
    assert len(measured.rates) == 3
    assert "wrong: not timed, the loss differs" in page_of("shd", measured)


def measured(**steps: float) -> Measured:
    names = {"exodus": EXODUS, "slayer": SLAYER, "loop": LOOP, "sinabs": SINABS}
    return Measured(1, 1, {names[name]: Timing([(seconds,)]) for name, seconds in steps.items()})


def test_claims_are_against_both_loops_and_slayer() -> None:
    rows = claims({"shd": measured(exodus=1.0, slayer=0.9, loop=2.0, sinabs=3.0)})
    assert [(round(found, 3), bound, holds) for _, _, found, bound, holds in rows] == [
        (3.0, 2.57, True),
        (2.0, 2.57, False),
        (1.111, 1.05, False),
    ]


def test_a_claim_about_what_was_not_timed_does_not_hold() -> None:
    rows = claims({"dvs": measured(exodus=1.0)})
    assert not any(holds for *_, holds in rows)
    assert all(math.isnan(found) for _, _, found, _, _ in rows)


def test_times_are_best_against_best() -> None:
    timings = {EXODUS: Timing([(1.0, 1.0), (3.0, 3.0)]), SLAYER: Timing([(5.0, 0.0), (3.0, 0.0)])}
    assert times(timings, SLAYER) == 1.5


def test_networks_of_all_contenders_have_the_same_weights() -> None:
    description = ARCHITECTURES["dvs"].description
    ours = OURS[0].build(description, "cpu")
    peer = replace(PEERS[0], neuron=_translated()).build(description, "cpu")
    for own, given in zip(ours.parameters(), peer.parameters(), strict=True):
        assert torch.equal(own, given)
