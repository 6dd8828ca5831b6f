"""Options of training calls over HTTP give the bits of the same options here; what does not fit is pointed at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from remote_models import LOSS, NETWORK, Remote, batch, local, same_state
from service.conftest import Served

from exodus_core import losses

STEP, FORWARD_BACKWARD, FORWARD = (f"/v1/models/m/{name}" for name in ("step", "forward_backward", "forward"))


@pytest.fixture
def service(serve: Callable[..., Served], tmp_path: Path) -> Served:
    return serve(state_dir=tmp_path / "state")


@pytest.fixture
def remote(service: Served, connect: Callable[..., Remote]) -> Remote:
    remote = connect(service.port)
    remote.create()
    return remote


LENGTHS = torch.tensor([10, 3, 7, 1])
MASK = torch.arange(10) < LENGTHS[:, None]
SUM = [LOSS, {"kind": "spike_rate_bounds", "upper": 0.1, "weight": 0.5, "name": "few"}]
LOSSES: list[Any] = [
    SUM,
    {"kind": "per_step_ce", "class_weights": [1.0, 2.0, 0.5], "label_smoothing": 0.1},
    {"kind": "spike_rate_mse", "rate": 0.2},
]


@pytest.mark.parametrize("counted", [{}, {"lengths": LENGTHS}, {"mask": MASK}], ids=["all", "lengths", "mask"])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_losses_and_lengths_give_the_bits_of_the_same_here(
    remote: Remote, loss: Any, counted: dict[str, torch.Tensor]
) -> None:
    trainer, function = local(), losses.parse(loss)
    for number in range(1, 6):
        spikes, targets = batch(number)
        wanted = {"targets": targets} if function.takes_targets else {}
        path = FORWARD_BACKWARD if number == 2 else STEP
        answer = remote.post(path, {"sequence": number, "loss": loss}, input=spikes, **wanted, **counted)
        call = trainer.forward_backward if number == 2 else trainer.step
        here = call(spikes, wanted.get("targets"), function, **counted)
        assert (answer.params["metrics"], answer.params["grad_norms"]) == (here.metrics, here.grad_norms)
    assert same_state(remote.state(), trainer.state())
    answer = remote.post(FORWARD, {"loss": loss}, input=spikes, **wanted, **counted)
    value = function(trainer.forward(spikes), wanted.get("targets"), **counted)
    assert answer.params["metrics"] == {name: float(metric) for name, metric in value.metrics.items()}


SPIKES, TARGETS = batch(1)
BOTH = {"input": SPIKES, "targets": TARGETS}
WRONG: list[tuple[dict[str, Any], dict[str, torch.Tensor], str]] = [
    ({"loss": LOSS}, {**BOTH, "lengths": LENGTHS + 1}, "/tensors/2"),
    ({"loss": LOSS}, {**BOTH, "lengths": LENGTHS.float()}, "/tensors/2"),
    ({"loss": LOSS}, {**BOTH, "mask": MASK[:, 1:]}, "/tensors/2"),
    ({"loss": LOSS}, {**BOTH, "mask": MASK, "lengths": LENGTHS}, "/tensors/3"),
    ({"loss": [LOSS, "mse"]}, BOTH, "/params/loss/1/kind"),
    ({"loss": []}, BOTH, "/params/loss"),
    ({"loss": [{"kind": LOSS, "weight": -1}]}, BOTH, "/params/loss/0/weight"),
    ({"loss": {"kind": LOSS, "class_weights": [1, 2]}}, BOTH, "/params/loss"),
    ({"loss": {"kind": "spike_rate_mse", "rate": 0.1}}, BOTH, "/tensors/1"),
    ({"loss": SUM}, {"input": SPIKES}, "/tensors"),
    ({}, {"input": SPIKES, "grad_output": torch.ones(4, 10, 3), "lengths": LENGTHS}, "/tensors/2"),
]


@pytest.mark.parametrize(("params", "tensors", "pointer"), WRONG)
def test_what_does_not_fit_is_pointed_at_and_consumes_nothing(
    remote: Remote, params: dict[str, Any], tensors: dict[str, torch.Tensor], pointer: str
) -> None:
    before = remote.state()
    answer = remote.post(STEP, {"sequence": 1, **params}, **tensors)
    assert (answer.status, answer.json["code"]) == (422, "invalid"), answer.body
    assert answer.json["errors"][0]["pointer"] == pointer, answer.json
    assert same_state(remote.state(), before)


def test_lengths_for_a_network_with_batch_norm_are_refused(service: Served, connect: Callable[..., Remote]) -> None:
    remote = connect(service.port)
    layers = [NETWORK["layers"][0], {"kind": "batch_norm"}, *NETWORK["layers"][1:]]
    remote.create(network={**NETWORK, "layers": layers})
    answer = remote.post(STEP, {"sequence": 1, "loss": LOSS}, **BOTH, lengths=LENGTHS)
    assert (answer.status, answer.json["code"]) == (422, "invalid"), answer.body
    assert "batch norm" in answer.json["detail"]


def test_the_same_number_with_other_lengths_or_weights_is_another_call(remote: Remote) -> None:
    params = {"sequence": 1, "loss": SUM}
    assert remote.post(STEP, params, **BOTH, lengths=LENGTHS).status == 200
    assert remote.post(STEP, params, **BOTH, lengths=LENGTHS).replayed
    other = [LOSS, {**SUM[1], "weight": 0.25}]  # type: ignore[dict-item]
    for changed, tensors in ((params, {"lengths": LENGTHS.flip(0)}), ({**params, "loss": other}, {"lengths": LENGTHS})):
        answer = remote.post(STEP, changed, **BOTH, **tensors)
        assert (answer.status, answer.json["code"]) == (409, "sequence_conflict")
