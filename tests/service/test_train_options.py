"""Options of training calls over HTTP give the bits of the same options here; what does not fit is pointed at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from remote_models import LOSS, NETWORK, Remote, batch, local, same_state
from service.conftest import Served

from exodus_core import losses, network
from exodus_core.training import Trainer

STEP, FORWARD_BACKWARD, FORWARD = (f"/v1/models/m/{name}" for name in ("step", "forward_backward", "forward"))


@pytest.fixture
def service(serve: Callable[..., Served], tmp_path: Path) -> Served:
    return serve(state_dir=tmp_path / "state")


@pytest.fixture
def remote(service: Served, connect: Callable[..., Remote]) -> Remote:
    remote = connect(service.port)
    remote.create()
    return remote


def here(optimizer: dict[str, Any]) -> Trainer:
    """The same model in this process."""
    return Trainer(network.build(NETWORK, 0), optimizer)


LENGTHS = torch.tensor([10, 3, 7, 1])
MASK = torch.arange(10) < LENGTHS[:, None]
SUM: list[Any] = [LOSS, {"kind": "spike_rate_bounds", "upper": 0.1, "weight": 0.5, "name": "few"}]
LOSSES: list[Any] = [
    SUM,
    {"kind": "per_step_ce", "class_weights": [1.0, 2.0, 0.5], "label_smoothing": 0.1},
    {"kind": "spike_rate_mse", "rate": 0.2},
]


@pytest.mark.parametrize("counted", [{}, {"lengths": LENGTHS}, {"mask": MASK}], ids=["all", "lengths", "mask"])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_losses_and_lengths_give_the_bits_of_the_same_here(remote: Remote, loss: Any, counted: dict[str, Any]) -> None:
    trainer, function = local(), losses.parse(loss)
    for number in range(1, 6):
        spikes, targets = batch(number)
        wanted: dict[str, Any] = {"targets": targets} if function.takes_targets else {}
        path = FORWARD_BACKWARD if number == 2 else STEP
        answer = remote.post(path, {"sequence": number, "loss": loss}, input=spikes, **wanted, **counted)
        call = trainer.forward_backward if number == 2 else trainer.step
        result = call(spikes, wanted.get("targets"), function, **counted)
        assert (answer.params["metrics"], answer.params["grad_norms"]) == (result.metrics, result.grad_norms)
    assert same_state(remote.state(), trainer.state())
    answer = remote.post(FORWARD, {"loss": loss}, input=spikes, **wanted, **counted)
    value = function(trainer.forward(spikes), wanted.get("targets"), **counted)
    assert answer.params["metrics"] == {name: float(metric) for name, metric in value.metrics.items()}


SPIKES, TARGETS = batch(1)
BOTH: dict[str, Any] = {"input": SPIKES, "targets": TARGETS}
WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"loss": LOSS}, {**BOTH, "lengths": LENGTHS + 1}, "/tensors/2"),
    ({"loss": LOSS}, {**BOTH, "lengths": LENGTHS.float()}, "/tensors/2"),
    ({"loss": LOSS}, {**BOTH, "mask": MASK[:, 1:]}, "/tensors/2"),
    ({"loss": LOSS}, {**BOTH, "mask": MASK, "lengths": LENGTHS}, "/tensors/3"),
    ({"loss": [LOSS, "mse"]}, BOTH, "/params/loss/1/kind"),
    ({"loss": []}, BOTH, "/params/loss"),
    ({"loss": [{"kind": LOSS, "weight": -1}]}, BOTH, "/params/loss/0/weight"),
    ({"loss": {"kind": LOSS, "class_weights": [1, 2]}}, BOTH, "/params/loss/class_weights"),
    ({"loss": [{"kind": LOSS, "class_weights": [1, 2]}]}, BOTH, "/params/loss/0/class_weights"),
    ({"loss": {"kind": "spike_count_mse"}}, {**BOTH, "targets": torch.zeros(4, 2)}, "/tensors/1"),
    ({"loss": {"kind": "spike_rate_mse", "rate": 0.1}}, BOTH, "/tensors/1"),
    ({"loss": SUM}, {"input": SPIKES}, "/tensors"),
    ({}, {"input": SPIKES, "grad_output": torch.ones(4, 10, 3), "lengths": LENGTHS}, "/tensors/2"),
]


@pytest.mark.parametrize(("params", "tensors", "pointer"), WRONG)
def test_what_does_not_fit_is_pointed_at_and_consumes_nothing(
    remote: Remote, params: dict[str, Any], tensors: dict[str, Any], pointer: str
) -> None:
    before = remote.state()
    answer = remote.post(STEP, {"sequence": 1, **params}, **tensors)
    assert (answer.status, answer.json["code"]) == (422, "invalid"), answer.body
    assert answer.json["errors"][0]["pointer"] == pointer, answer.json
    assert same_state(remote.state(), before)


def test_each_loss_of_a_sum_counts_as_activations(serve: Callable[..., Served], connect: Callable[..., Remote]) -> None:
    terms = [{"kind": "per_step_ce", "name": f"n{index}"} for index in range(16)]
    description = network.parse(NETWORK)
    limit = description.memory(4, 10, training=True) + 29 * 4 * 10 * 3 * description.itemsize
    remote = connect(serve(max_activation_bytes=limit).port)
    remote.create()
    answer = remote.post(STEP, {"sequence": 1, "loss": terms}, **BOTH)
    assert (answer.status, answer.json["errors"][0]["pointer"]) == (413, "/tensors/0/shape")
    assert remote.post(STEP, {"sequence": 1, "loss": terms[:15]}, **BOTH).status == 200


@pytest.mark.parametrize(("name", "steps"), [("lengths", LENGTHS), ("mask", MASK)])
@pytest.mark.parametrize(
    ("path", "params"),
    [(STEP, {"sequence": 1}), (FORWARD, {"mode": "train"}), (FORWARD, {"context": True})],
    ids=["step", "forward", "context"],
)
def test_steps_that_count_are_refused_for_a_network_with_batch_norm_in_training(
    service: Served,
    connect: Callable[..., Remote],
    path: str,
    params: dict[str, Any],
    name: str,
    steps: torch.Tensor,
) -> None:
    remote = connect(service.port)
    layers = [NETWORK["layers"][0], {"kind": "batch_norm"}, *NETWORK["layers"][1:]]
    remote.create(network={**NETWORK, "layers": layers})
    tensors: dict[str, Any] = {**BOTH, name: steps}
    answer = remote.post(path, {"loss": LOSS, **params}, **tensors)
    assert (answer.status, answer.json["code"]) == (422, "invalid"), answer.body
    expected = "absent for a network with batch norm in training, whose statistics are of all steps"
    assert answer.json["detail"] == f"tensor {name!r} must be {expected}, got a tensor"
    assert answer.json["errors"] == [{"pointer": "/tensors/2", "expected": expected, "got": "a tensor"}]
    assert remote.post(FORWARD, {"loss": LOSS}, **tensors).status == 200


def test_the_same_number_with_other_lengths_or_weights_is_another_call(remote: Remote) -> None:
    params = {"sequence": 1, "loss": SUM}
    assert remote.post(STEP, params, **BOTH, lengths=LENGTHS).status == 200
    assert remote.post(STEP, params, **BOTH, lengths=LENGTHS).replayed
    other = [LOSS, {**SUM[1], "weight": 0.25}]
    for changed, lengths in ((params, LENGTHS.flip(0)), ({**params, "loss": other}, LENGTHS)):
        answer = remote.post(STEP, changed, **BOTH, lengths=lengths)
        assert (answer.status, answer.json["code"]) == (409, "sequence_conflict")


OPTIMIZER: dict[str, Any] = {"kind": "adam", "lr": 0.01, "frozen": ["0"], "lr_scale": {"3.bias": 0.5}}
CALLS: list[dict[str, Any]] = [
    {},
    {"frozen": []},
    {"frozen": ["3"], "lr": 0.02},
    {"lr_scale": {"0": 2.0}, "lr_of": {"3": 0.001}, "frozen": []},
    {"accumulate": "samples", "average": True},
]


@pytest.mark.parametrize("gradients", [False, True])
def test_options_of_layers_give_the_bits_of_the_same_here(
    service: Served, connect: Callable[..., Remote], gradients: bool
) -> None:
    remote, trainer = connect(service.port), here(OPTIMIZER)
    assert remote.create(optimizer=OPTIMIZER).params["optimizer"].items() >= OPTIMIZER.items()
    for number, options in enumerate([*CALLS, *CALLS], 1):
        spikes, targets = batch(number)
        params = {"sequence": number, "loss": LOSS, "gradients": gradients, **options}
        answer = remote.post(STEP, params, input=spikes, targets=targets)
        assert answer.status == 200, answer.body
        result = trainer.step(spikes, targets, LOSS, **options)
        assert (answer.params["metrics"], answer.params["grad_norms"]) == (result.metrics, result.grad_norms)
    state = remote.state()
    assert same_state(state, trainer.state())


def test_averaged_gradients_are_those_of_the_same_calls_here(remote: Remote) -> None:
    trainer = local()
    for number, samples in ((1, 4), (2, 1), (3, 3)):
        spikes, targets = batch(number, samples)
        params = {"sequence": number, "loss": LOSS, "accumulate": "samples"}
        assert remote.post(FORWARD_BACKWARD, params, input=spikes, targets=targets).status == 200
        trainer.forward_backward(spikes, targets, LOSS, accumulate="samples")
    assert same_state(remote.state(), trainer.state())
    answer = remote.post("/v1/models/m/optim_step", {"sequence": 4, "average": True, "gradients": True})
    assert torch.equal(answer.tensor("gradients"), trainer.gradients(average=True))
    assert answer.params["grad_norms"] == trainer.optim_step(average=True)
    assert same_state(remote.state(), trainer.state())


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({"frozen": ["x"]}, "/params/frozen/0"),
        ({"frozen": ["0", "3"]}, "/params/frozen"),
        ({"frozen": "0"}, "/params/frozen"),
        ({"lr_of": {"x": 1.0}}, "/params/lr_of/x"),
        ({"lr_scale": {"0": -1.0}}, "/params/lr_scale/0"),
        ({"lr": 1e15, "lr_scale": {"0": 1e15}}, "/params/lr_scale"),
        ({"accumulate": "all"}, "/params/accumulate"),
        ({"average": 1}, "/params/average"),
    ],
)
@pytest.mark.parametrize("gradients", [False, True])
def test_options_that_do_not_fit_are_pointed_at_and_consume_nothing(
    remote: Remote, params: dict[str, Any], pointer: str, gradients: bool
) -> None:
    before = remote.state()
    answer = remote.post(STEP, {"sequence": 1, "loss": LOSS, "gradients": gradients, **params}, **BOTH)
    assert (answer.status, answer.json["code"]) == (422, "invalid"), answer.body
    assert answer.json["errors"][0]["pointer"] == pointer
    assert same_state(remote.state(), before)
    assert not remote.step(1).replayed


def test_calls_that_count_otherwise_than_those_before_are_refused(remote: Remote) -> None:
    assert remote.post(FORWARD_BACKWARD, {"sequence": 1, "loss": LOSS, "accumulate": "samples"}, **BOTH).status == 200
    before = remote.state()
    for gradients in (False, True):
        answer = remote.post(STEP, {"sequence": 2, "loss": LOSS, "gradients": gradients}, **BOTH)
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/params/accumulate"), answer.body
    flat = torch.zeros(83)
    answer = remote.post("/v1/models/m/optim_step", {"sequence": 2, "average": True}, gradients=flat)
    assert answer.json["errors"][0]["pointer"] == "/params/average"
    assert same_state(remote.state(), before)


@pytest.mark.parametrize(
    ("optimizer", "pointer"),
    [
        ({"kind": "adam", "frozen": ["x"]}, "/params/optimizer/frozen/0"),
        ({"kind": "adam", "lr": 1e15, "lr_scale": {"0": 1e15}}, "/params/optimizer/lr_scale/0"),
        ({"kind": "adam", "lr_of": {"0": 1e30}}, "/params/optimizer/lr_of/0"),
    ],
)
def test_optimisers_that_do_not_fit_the_network_make_no_model(
    service: Served, connect: Callable[..., Remote], optimizer: dict[str, Any], pointer: str
) -> None:
    answer = connect(service.port).create(optimizer=optimizer)
    assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, pointer)


def test_a_state_with_frozen_layers_and_counted_gradients_goes_on_elsewhere(
    service: Served, connect: Callable[..., Remote]
) -> None:
    remote, trainer = connect(service.port), here(OPTIMIZER)
    remote.create(optimizer=OPTIMIZER)
    spikes, targets = batch(2)
    remote.step(1)
    params = {"sequence": 2, "loss": LOSS, "accumulate": "samples"}
    assert remote.post(FORWARD_BACKWARD, params, input=spikes, targets=targets).status == 200
    body = remote.call("GET", "/v1/models/m/state").body
    remote.create("other", optimizer=OPTIMIZER)
    headers = {"Content-Type": "application/vnd.safetensors"}
    assert remote.call("PUT", "/v1/models/other/state", body, headers).status == 200
    trainer.step(*batch(1), LOSS)
    trainer.forward_backward(spikes, targets, LOSS, accumulate="samples")
    answer = remote.post("/v1/models/other/optim_step", {"sequence": 3, "average": True})
    assert answer.params["grad_norms"] == trainer.optim_step(average=True)
    assert same_state(remote.state("other"), trainer.state())


def test_a_state_file_of_before_gradients_were_counted_still_loads(remote: Remote) -> None:
    spikes, targets = batch(1)
    assert remote.post(FORWARD_BACKWARD, {"sequence": 1, "loss": LOSS}, input=spikes, targets=targets).status == 200
    file = remote.call("GET", "/v1/models/m/state").body
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])["__metadata__"]
    tensors = {name: value for name, value in safetensors.torch.load(file).items() if name != "gradients.count"}
    old = safetensors.torch.save(tensors, header)
    headers = {"Content-Type": "application/vnd.safetensors"}
    answer = remote.call("PUT", "/v1/models/m/state", old, headers)
    assert (answer.status, answer.json["sequence"]) == (200, 1), answer.body
    assert same_state(remote.state(), tensors)
    refused = remote.post("/v1/models/m/optim_step", {"sequence": 2, "average": True})
    assert refused.json["errors"][0]["pointer"] == "/params/average"
    trainer = local()
    trainer.load_state(tensors)
    trainer.optim_step()
    assert remote.post("/v1/models/m/optim_step", {"sequence": 2}).status == 200
    assert same_state(remote.state(), trainer.state())


@pytest.mark.parametrize("case", ["samples", "second call", "named loss"])
def test_a_step_whose_sum_of_gradients_is_not_finite_is_refused_and_the_model_stays(
    serve: Callable[..., Served], connect: Callable[..., Remote], case: str
) -> None:
    remote = connect(serve().port)  # in memory only: a model that is thrown away is gone
    remote.create()
    trainer, number = local(), 1
    forward = trainer.begin(SPIKES)
    norm = trainer.backward(forward, torch.ones(4, 10, 3))["total"]
    huge: dict[str, Any] = {"input": SPIKES, "grad_output": torch.full((4, 10, 3), 1e19 / norm)}
    params: dict[str, Any] = {"accumulate": "samples"}
    if case == "second call":
        params, number = {}, 2
        assert remote.post(FORWARD_BACKWARD, {"sequence": 1}, **huge).status == 200
    if case == "named loss":
        norm = local().forward_backward(SPIKES, TARGETS, LOSS).grad_norms["total"]
        params |= {"gradients": True, "loss": [{"kind": LOSS, "weight": 1e19 / norm}]}
        huge = BOTH
    before = remote.state()
    answer = remote.post(STEP, {"sequence": number, **params}, **huge)
    assert (answer.status, answer.json["code"]) == (422, "non_finite"), answer.body
    assert remote.call("GET", "/v1/models/m").status == 200
    assert same_state(remote.state(), before)


@pytest.mark.parametrize("path", [STEP, FORWARD_BACKWARD])
def test_names_that_do_not_fit_are_refused_where_a_call_is_decoded(remote: Remote, path: str) -> None:
    assert remote.post(STEP, {"sequence": 1, "loss": LOSS}, **BOTH).status == 200
    answer = remote.post(path, {"sequence": 1, "loss": LOSS, "frozen": ["first"]}, **BOTH)
    assert (answer.status, answer.json["code"]) == (422, "invalid"), answer.body
    assert answer.json["errors"][0]["pointer"] == "/params/frozen/0"
