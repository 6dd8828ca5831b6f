"""Recordings and statistics over HTTP: the bits of the same pass here, each call once, and no more than fits."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import network_cases as cases
import pytest
import torch
from remote_models import LOSS, NETWORK, Remote, Response, batch, local, same_state
from service.conftest import Served

from exodus_client.wire import Message, Tensor, encode
from exodus_core import losses, network
from exodus_core.network import LayerStatistics, observe
from exodus_core.network.statistics import dense_operations
from exodus_service.errors import ServiceError
from exodus_service.operations.recording import Observation, ObservedParams

STEP, FORWARD = "/v1/models/m/step", "/v1/models/m/forward"
FORWARD_BACKWARD = "/v1/models/m/forward_backward"
# Names of layers are their indices: 1 is lif, 4 is exp_leak.
RECORD = ["1.membrane", "1.spikes", "4.output", "4.membrane", "0.output"]
OBSERVED: dict[str, Any] = {"record": RECORD, "statistics": True}


@pytest.fixture
def service(serve: Callable[..., Served], tmp_path: Path) -> Served:
    return serve(state_dir=tmp_path / "state")


@pytest.fixture
def remote(service: Served, connect: Callable[..., Remote]) -> Remote:
    remote = connect(service.port)
    remote.create()
    return remote


def traces(answer: Response) -> dict[str, torch.Tensor]:
    """The recordings of an answer, in which single spikes are bool."""
    found = {name: tensor.torch() for name, tensor in answer.message.tensors.items() if "." in name}
    assert all(tensor.dtype == torch.bool for name, tensor in found.items() if name.endswith(".spikes"))
    return {name: tensor.float() if tensor.dtype == torch.bool else tensor for name, tensor in found.items()}


def plain(statistics: dict[str, LayerStatistics]) -> dict[str, Any]:
    """Statistics as they travel."""
    return {
        name: {field: value for field, value in asdict(numbers).items() if value is not None}
        for name, numbers in statistics.items()
    }


@pytest.mark.parametrize("form", ["stream", "inline", "json"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_forward_pass_shows_what_the_same_pass_shows_here(remote: Remote, mode: str, form: Any) -> None:
    spikes, _ = batch(1)
    if form == "json":
        spikes = spikes.float()
    answer = remote.post(FORWARD, {"mode": mode, **OBSERVED}, form=form, input=spikes)
    trainer = local()
    with observe(trainer.net, RECORD, statistics=True) as seen:
        outputs = trainer.forward(spikes, train=mode == "train")
    assert list(answer.message.tensors) == ["outputs", *RECORD]
    assert torch.equal(answer.tensor("outputs"), outputs)
    for name, trace in seen.recordings.items():
        assert torch.equal(traces(answer)[name], trace)
    assert answer.params["statistics"] == plain(seen.statistics)
    assert answer.params["statistics"]["1"]["firing_rate"] > 0
    alone = remote.post(FORWARD, {"mode": mode, "return": [], "record": ["1.spikes"]}, input=spikes)
    assert list(alone.message.tensors) == ["1.spikes"]
    assert "statistics" not in alone.params


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("gradients", [False, True])
def test_training_calls_show_what_the_same_calls_show_here_and_train_the_same(
    service: Served, connect: Callable[..., Remote], gradients: bool, steps: int | None
) -> None:
    description = {**NETWORK, "checkpoint_steps": steps}
    remote, trainer, loss = connect(service.port), local(description=description), losses.parse(LOSS)
    remote.create(network=description)
    for number in range(1, 4):
        spikes, targets = batch(number)
        params = {"sequence": number, "loss": LOSS, "gradients": gradients, **OBSERVED}
        path = FORWARD_BACKWARD if number == 2 else STEP
        answer = remote.post(path, params, input=spikes, targets=targets)
        again = remote.post(path, params, input=spikes, targets=targets)
        with observe(trainer.net, RECORD, statistics=True) as seen:
            call = trainer.forward_backward if number == 2 else trainer.step
            here = call(spikes, targets, loss)
        for name, trace in seen.recordings.items():
            assert torch.equal(traces(answer)[name], trace)
        assert answer.params["statistics"] == plain(seen.statistics_of_step(here.grad_norms))
        assert answer.params["statistics"]["0"]["grad_norm"] > 0
        assert list(answer.message.tensors) == (["gradients"] if gradients else []) + RECORD
        assert again.replayed
        assert again.body == answer.body
    assert same_state(remote.state(), trainer.state())


def test_the_forward_pass_of_a_context_is_recorded_and_its_step_has_the_norms(remote: Remote) -> None:
    spikes, _ = batch(1)
    grad = torch.ones(4, 10, 3)
    answer = remote.post(FORWARD, {"context": True, **OBSERVED}, input=spikes)
    trainer = local()
    with observe(trainer.net, RECORD, statistics=True) as seen:
        forward = trainer.begin(spikes)
    assert all(torch.equal(traces(answer)[name], trace) for name, trace in seen.recordings.items())
    handle = answer.params["context"]
    refused = remote.post(STEP, {"sequence": 1, "context": handle, "record": RECORD}, grad_output=grad)
    assert refused.status == 422
    assert refused.json["errors"][0]["pointer"] == "/params/record"
    assert "empty with a context" in refused.json["detail"]
    step = remote.post(STEP, {"sequence": 1, "context": handle, "statistics": True}, grad_output=grad)
    norms = trainer.backward(forward, grad)
    assert step.params["statistics"] == {
        name: {"grad_norm": numbers["grad_norm"]}
        for name, numbers in plain(seen.statistics_of_step(norms)).items()
        if "grad_norm" in numbers
    }
    with_inputs = {"sequence": 2, "statistics": True, "record": ["1.spikes"]}
    whole = remote.post(STEP, with_inputs, input=spikes, grad_output=grad)
    assert whole.params["statistics"]["1"]["firing_rate"] > 0
    assert list(whole.message.tensors) == ["1.spikes"]


def test_several_spikes_in_a_step_travel_as_numbers(remote: Remote) -> None:
    layers = [{"kind": "linear", "out_features": 8, "gain": 5.0}, {"kind": "lif", "alpha": 0.9, "max_spikes": 4}]
    assert remote.create("graded", network={"input_shape": [6], "layers": layers}).status == 201
    answer = remote.post("/v1/models/graded/forward", {"record": ["1.spikes"]}, input=batch(1)[0])
    assert answer.tensor("1.spikes").max() > 1
    assert torch.equal(answer.tensor("1.spikes"), answer.tensor("outputs"))


SHORT = repr(["1.spikes"] * 33)[:80] + "..."
TRACES = "LAYER.TRACE, a trace being one of output, spikes, membrane"
REFUSED = [
    (["5.output"], "/params/record/0", "of a layer of the network (0, 1, 2, 3, 4)", "'5.output'"),
    (["1.spikes", "0.spikes"], "/params/record/1", "one of output of layer 0, of kind linear", "'0.spikes'"),
    (["hidden"], "/params/record/0", TRACES, "'hidden'"),
    (["1.spikes", "1.spikes"], "/params/record/1", "a name that comes once", "'1.spikes'"),
    ([1], "/params/record/0", "a text", "1"),
    ("1.spikes", "/params/record", "a list", "'1.spikes'"),
    (["1.spikes"] * 33, "/params/record", "of at most 32 elements", SHORT),
]


@pytest.mark.parametrize("path", [FORWARD, STEP])
@pytest.mark.parametrize(("record", "pointer", "expected", "got"), REFUSED)
def test_a_record_that_does_not_fit_is_pointed_at_and_consumes_nothing(
    remote: Remote, path: str, record: Any, pointer: str, expected: str, got: str
) -> None:
    spikes, targets = batch(1)
    params = {"record": record, "loss": LOSS} | ({"sequence": 1} if path == STEP else {})
    answer = remote.post(path, params, input=spikes, targets=targets)
    assert (answer.status, answer.json["code"]) == (422, "invalid")
    assert answer.json["errors"] == [{"pointer": pointer, "expected": expected, "got": got}]
    assert answer.json["detail"] == f"{pointer} must be {expected}, got {got}"
    assert remote.info()["sequence"] == 0


def test_recordings_count_as_activations(serve: Callable[..., Served], connect: Callable[..., Remote]) -> None:
    shape, trace = (16, 50, 6), 16 * 50 * 8 * 4
    bounds = {training: network.parse(NETWORK).memory(16, 50, training=training) for training in (False, True)}
    spikes = Tensor.of("input", torch.zeros(shape, dtype=torch.bool), "bits")
    targets = Tensor.of("targets", torch.zeros(16, dtype=torch.int64))
    calls: list[tuple[str, dict[str, Any], list[Tensor]]] = [
        (FORWARD, {}, [spikes]),
        (FORWARD, {"context": True}, [spikes]),
        (STEP, {"sequence": 1, "loss": LOSS}, [spikes, targets]),
    ]
    for path, params, tensors in calls:
        training = path == STEP or "context" in params
        remote = connect(serve(max_activation_bytes=bounds[training] + trace).port)
        remote.create()
        for record, status in ((["1.spikes"], 200), (["1.spikes", "1.membrane"], 413)):
            encoded = encode(Message.of(params | {"record": record}, tensors))
            headers = {"Content-Type": encoded.content_type}
            answer = remote.call("POST", path, b"".join(encoded.chunks), headers)
            assert answer.status == status, answer.body
            params = params | ({"sequence": 2} if path == STEP else {})
        assert "EXODUS_MAX_ACTIVATION_BYTES" in answer.json["errors"][0]["expected"]
        statistics = encode(Message.of(params | {"statistics": True}, tensors))
        answer = remote.call("POST", path, b"".join(statistics.chunks), {"Content-Type": statistics.content_type})
        assert answer.status == 413
        if path == STEP:
            assert remote.info()["sequence"] == 1


@pytest.mark.parametrize(
    ("record", "nbytes"), [(["1.membrane"], 128_000), (["1.spikes", "0.output"], 132_000), (["1.spikes"], 4_000)]
)
def test_a_response_that_cannot_be_sent_is_refused_before_the_step(
    serve: Callable[..., Served], connect: Callable[..., Remote], record: list[str], nbytes: int
) -> None:
    spikes, targets = torch.zeros(8, 500, 6, dtype=torch.bool), torch.zeros(8, dtype=torch.int64)
    params = {"sequence": 1, "loss": LOSS, "record": record}
    limit = max(nbytes - 1, 30_000)
    remote = connect(serve(max_body_bytes=limit).port)
    remote.create()
    answer = remote.post(STEP, params, input=spikes, targets=targets)
    if nbytes < limit:  # single spikes are bits
        assert answer.status == 200
        assert answer.message.tensors["1.spikes"].shape == (8, 500, 8)
        return
    assert (answer.status, answer.json["code"]) == (413, "too_large")
    assert answer.json["errors"] == [
        {"pointer": "/params/record", "expected": f"recordings of at most {limit} bytes", "got": f"{nbytes} bytes"}
    ]
    assert remote.info()["sequence"] == 0
    assert remote.post(STEP, params | {"record": []}, input=spikes, targets=targets).status == 200


def test_recordings_that_json_has_no_room_for_are_refused_before_the_step(remote: Remote) -> None:
    description = {"input_shape": [1], "layers": [{"kind": "linear", "out_features": 400}, {"kind": "if"}]}
    remote.create("wide", network=description)
    params: dict[str, Any] = {"sequence": 1, "record": ["0.output", "1.spikes"], "gradients": True}
    params |= {"loss": "spike_count_mse"}
    inputs, targets = torch.zeros(2, 328, 1), torch.zeros(2, 400)
    answer = remote.post("/v1/models/wide/step", params, form="json", input=inputs, targets=targets)
    assert (answer.status, answer.json["code"]) == (413, "too_large"), answer.body[:200]
    assert answer.json["errors"][0]["pointer"] == "/params/record"
    assert answer.json["errors"][0]["got"] == str(2 * 2 * 328 * 400 + 800)
    assert remote.info("wide")["sequence"] == 0


@pytest.mark.parametrize("case", cases.CASES)
def test_numbers_of_layers_take_less_room_than_the_description_that_fits(case: str) -> None:
    description = network.parse(cases.describe(case))
    dense = dense_operations(description, 2**10, 2**10)
    trained = [name for name, _ in description.parameters]
    with_parameters = {name.partition(".")[0] for name in trained}
    numbers = {}
    for layer in description.layers:
        rate, norm = 0.1 if layer.fires else None, 0.1 if layer.name in with_parameters else None
        operations = dense.get(layer.name)
        numbers[layer.name] = LayerStatistics(rate, rate, operations and 2**62, operations and 2**62, norm)
    answer = {"grad_norms": dict.fromkeys(trained, 0.1), "statistics": plain(numbers)}
    parameters = [{"name": name, "shape": list(shape)} for name, shape in description.parameters]
    assert len(msgpack.packb(answer)) < len(msgpack.packb([description.data, parameters]))


def test_one_observation_may_be_of_several_passes() -> None:
    trainer = local()
    observation = Observation.of(ObservedParams(record=["1.spikes"]), trainer.net.description)
    with observation.observing(trainer) as first:
        trainer.forward(batch(1)[0])
    with observation.observing(trainer) as second:
        trainer.forward(batch(2)[0])
    traces = [observation.seen(observer).tensors["1.spikes"] for observer in (first, second, first)]
    assert not torch.equal(traces[0], traces[1])
    assert torch.equal(traces[0], traces[2])
    assert observation.seen(None).tensors == {}


def test_counts_that_no_message_holds_are_refused() -> None:
    wide = {"input_shape": [2**30], "layers": [{"kind": "linear", "out_features": 2**30}]}
    observation = Observation.of(ObservedParams(statistics=True), network.parse(wide))
    call: Any = None  # which is asked for the room for tensors alone
    observation.require_room(call, (1, 7))
    with pytest.raises(ServiceError) as caught:
        observation.require_room(call, (2, 4))
    assert caught.value.code == "too_large"
    assert caught.value.faults[0].got == str(2**63)
