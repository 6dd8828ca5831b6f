"""Training over HTTP: the bits of the same training here, each call once, in order; what fails changes nothing."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_stand_in import StandIn
from remote_models import ADAM, LOSS, NETWORK, Remote, Response, batch, body_of, local, same_state, trained
from service.conftest import Served

from exodus_client.wire import Form, Message, Tensor, compress, encode
from exodus_core import losses
from exodus_core.training import graphs

STEP = "/v1/models/m/step"


@pytest.fixture
def service(serve: Callable[..., Served], tmp_path: Path) -> Served:
    return serve(state_dir=tmp_path / "state")


@pytest.fixture
def remote(service: Served, connect: Callable[..., Remote]) -> Remote:
    remote = connect(service.port)
    remote.create()
    return remote


def test_steps_are_those_of_the_same_loop_here_to_the_bit(remote: Remote) -> None:
    trainer, loss = local(), losses.parse(LOSS)
    for number in range(1, 31):
        answer = remote.step(number, clip_norm=1.0, lr=0.02)
        here = trainer.step(*batch(number), loss, clip_norm=1.0, lr=0.02)
        assert answer.params["metrics"] == here.metrics
        assert answer.params["grad_norms"] == here.grad_norms
        assert (answer.params["sequence"], answer.params["device"]) == (number, "cpu")
    assert same_state(remote.state(), trainer.state())


def test_steps_replayed_from_a_graph_are_those_of_the_same_loop_here_and_its_memory_counts(
    service: Served, connect: Callable[..., Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[StandIn] = []

    def recorder(compute: Callable[[], Any], device: torch.device) -> StandIn:
        made.append(StandIn(compute, device))
        return made[-1]

    monkeypatch.setitem(graphs.RECORDERS, "cpu", recorder)
    description = {**NETWORK, "layers": [layer for layer in NETWORK["layers"] if layer["kind"] != "dropout"]}
    remote, trainer = connect(service.port), local(description=description)
    trainer.graphs = False
    remote.create(network=description)
    cache = service.engine.store._cache
    before = next(iter(cache)).trainer.graph_nbytes
    for number in range(1, 11):
        answer = remote.step(number)
        here = trainer.step(*batch(number), losses.parse(LOSS))
        assert (answer.params["metrics"], answer.params["grad_norms"]) == (here.metrics, here.grad_norms)
    assert same_state(remote.state(), trainer.state())
    assert len(made) == 1
    assert before == 0
    assert next(iter(cache)).trainer.graph_nbytes > made[0].nbytes


@pytest.mark.parametrize("form", ["stream", "inline", "json"])
def test_every_form_of_a_body_trains_alike(remote: Remote, form: Form) -> None:
    spikes, targets = batch(1)
    answer = remote.post(STEP, {"sequence": 1, "loss": LOSS}, form=form, input=spikes, targets=targets)
    assert answer.message.params["sequence"] == 1
    assert same_state(remote.state(), trained(1).state())


def test_a_compressed_body_is_the_same_call(remote: Remote) -> None:
    spikes, targets = batch(1)
    encoded = encode(
        Message.of({"sequence": 1, "loss": LOSS}, [Tensor.of("input", spikes, "bits"), Tensor.of("targets", targets)])
    )
    headers = {"Content-Type": encoded.content_type, "Content-Encoding": "zstd"}
    packed = b"".join(compress(encoded).chunks)
    assert remote.call("POST", STEP, packed, headers).params["sequence"] == 1
    again = remote.step(1)  # not compressed
    assert again.replayed
    assert same_state(remote.state(), trained(1).state())


def test_the_parts_of_a_step_may_be_called_one_by_one(remote: Remote) -> None:
    trainer, loss = local(), losses.parse(LOSS)
    spikes, targets = batch(1)
    for number in (1, 2):
        answer = remote.post(
            "/v1/models/m/forward_backward",
            {"sequence": number, "loss": {"kind": LOSS, "label_smoothing": 0.1}, "gradients": True},
            input=spikes,
            targets=targets,
        )
        trainer.forward_backward(spikes, targets, losses.parse({"kind": LOSS, "label_smoothing": 0.1}))
        assert torch.equal(answer.tensor("gradients"), trainer.gradients())
    answer = remote.post("/v1/models/m/optim_step", {"sequence": 3, "weight_decay": 0.1, "gradients": True})
    assert torch.equal(answer.tensor("gradients"), trainer.gradients())
    assert answer.params["grad_norms"] == trainer.optim_step(weight_decay=0.1)
    assert same_state(remote.state(), trainer.state())
    trainer.step(*batch(4), loss)
    remote.step(4)
    assert same_state(remote.state(), trainer.state())


def test_a_step_that_returns_gradients_is_the_same_step(remote: Remote) -> None:
    trainer = local()
    trainer.forward_backward(*batch(1), losses.parse(LOSS))
    answer = remote.step(1, gradients=True, clip_value=0.01)
    assert torch.equal(answer.tensor("gradients"), trainer.gradients())  # before they are clipped
    trainer.optim_step(clip_value=0.01)
    assert same_state(remote.state(), trainer.state())


def test_gradients_of_the_clients_own_are_applied(remote: Remote) -> None:
    trainer = local()
    flat = torch.randn(trainer.weights().shape, generator=torch.Generator().manual_seed(0))
    trainer.forward_backward(*batch(1), losses.parse(LOSS))
    spikes, targets = batch(1)
    remote.post("/v1/models/m/forward_backward", {"sequence": 1, "loss": LOSS}, input=spikes, targets=targets)
    answer = remote.post("/v1/models/m/optim_step", {"sequence": 2}, gradients=flat)
    assert answer.params["grad_norms"] == trainer.optim_step(gradients=flat)
    assert same_state(remote.state(), trainer.state())


@pytest.mark.parametrize("call", ["forward_backward", "step"])
@pytest.mark.parametrize("again", [False, True], ids=["context", "inputs"])
def test_any_loss_may_be_computed_by_the_client(remote: Remote, call: str, again: bool) -> None:
    trainer = local()
    spikes, _ = batch(1)
    forward = trainer.begin(spikes)
    answer = remote.post("/v1/models/m/forward", {"mode": "train", "context": True}, input=spikes)
    assert answer.params["expires_in_s"] == 300
    assert torch.equal(answer.tensor("outputs"), forward.outputs)
    grad = torch.cos(forward.outputs.detach())
    norms = trainer.backward(forward, grad)
    if call == "step":
        trainer.optim_step()
    params: dict[str, Any] = {"sequence": 1} if again else {"sequence": 1, "context": answer.params["context"]}
    tensors: dict[str, Any] = {"input": spikes, "grad_output": grad} if again else {"grad_output": grad}
    answer = remote.post(f"/v1/models/m/{call}", params, **tensors)
    assert answer.params["grad_norms"] == norms
    assert answer.params["metrics"] == {"samples:sum": 4.0}
    assert same_state(remote.state(), trainer.state())


def test_a_context_serves_once_and_only_for_the_weights_that_it_is_of(remote: Remote) -> None:
    spikes, _ = batch(1)
    grad = torch.ones(4, 10, 3)

    def context() -> Any:
        answer = remote.post("/v1/models/m/forward", {"context": True, "return": []}, input=spikes)
        assert not answer.message.tensors
        return answer.params["context"]

    used, stale = context(), context()
    assert remote.post(STEP, {"sequence": 1, "context": used}, grad_output=grad).status == 200
    for handle, status, code in [
        (used, 410, "context_expired"),
        (stale, 409, "context_stale"),
        ("unknown", 410, "context_expired"),
    ]:
        answer = remote.post(STEP, {"sequence": 2, "context": handle}, grad_output=grad)
        assert (answer.status, answer.json["code"]) == (status, code)
        assert answer.json["errors"][0]["pointer"] == "/params/context"
    assert remote.step(2).status == 200


def test_forward_changes_nothing_and_may_wait_for_a_call(
    remote: Remote, service: Served, connect: Callable[..., Remote]
) -> None:
    before = remote.state()
    spikes, targets = batch(1)
    answer = remote.post("/v1/models/m/forward", {"loss": LOSS}, input=spikes, targets=targets)
    outputs = local().forward(spikes)
    assert torch.equal(answer.tensor("outputs"), outputs)
    value = losses.parse(LOSS)(outputs, targets)
    assert answer.params["metrics"] == {name: float(v) for name, v in value.metrics.items()}
    remote.post("/v1/models/m/forward", {"mode": "train"}, input=spikes)
    assert same_state(remote.state(), before)

    answers: list[Response] = []
    waiting = connect(service.port)
    thread = threading.Thread(
        target=lambda: answers.append(waiting.post("/v1/models/m/forward", {"after": 1}, input=spikes))
    )
    thread.start()
    time.sleep(0.05)
    assert not answers
    remote.step(1)
    thread.join()
    assert answers[0].params["sequence"] == 1
    assert torch.equal(answers[0].tensor("outputs"), trained(1).forward(spikes))


def test_a_call_that_is_sent_again_is_answered_again(remote: Remote) -> None:
    first = remote.step(1, gradients=True)
    state = remote.state()
    again = remote.step(1, gradients=True)
    assert not first.replayed
    assert again.replayed
    assert again.body == first.body
    assert again.headers["content-type"] == first.headers["content-type"]
    assert same_state(remote.state(), state)


def test_calls_out_of_order_are_done_in_order(remote: Remote, service: Served, connect: Callable[..., Remote]) -> None:
    numbers = list(range(1, 9))
    answers: dict[int, Response] = {}

    def call(number: int) -> None:
        answers[number] = connect(service.port).step(number)

    order = [8, 3, 5, 1, 7, 2, 6, 4]
    threads = [threading.Thread(target=call, args=(number,)) for number in order]
    for thread in threads:
        thread.start()
        time.sleep(0.005)
    for thread in threads:
        thread.join()
    assert {number: answer.params["sequence"] for number, answer in answers.items()} == {n: n for n in numbers}
    assert same_state(remote.state(), trained(8).state())


def test_a_duplicate_in_flight_shares_the_answer(
    remote: Remote, service: Served, connect: Callable[..., Remote]
) -> None:
    answers: list[Response] = []
    with service.busy():
        threads = [threading.Thread(target=lambda: answers.append(connect(service.port).step(1))) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert sorted(answer.replayed for answer in answers) == [False, True, True]
    assert len({answer.body for answer in answers}) == 1
    assert same_state(remote.state(), trained(1).state())


def test_a_second_writer_is_told_so(remote: Remote, service: Served, connect: Callable[..., Remote]) -> None:
    assert remote.step(1, writer="anna").status == 200
    answer = connect(service.port).step(1, writer="ben")
    problem = answer.json
    assert (answer.status, problem["code"], problem["retryable"]) == (409, "sequence_conflict", False)
    assert "another client trains this model" in problem["detail"]
    assert "'anna'" in problem["detail"]
    assert problem["errors"] == [{"pointer": "/params/sequence", "expected": "2", "got": "1"}]
    assert remote.info()["writer"] == "anna"


def test_the_same_bytes_for_another_operation_are_another_call(remote: Remote) -> None:
    spikes, targets = batch(1)
    assert remote.step(1).status == 200
    answer = remote.post("/v1/models/m/forward_backward", {"sequence": 1, "loss": LOSS}, input=spikes, targets=targets)
    assert (answer.status, answer.json["code"]) == (409, "sequence_conflict")


def test_a_gap_is_named_after_a_while(serve: Callable[..., Served], connect: Callable[..., Remote]) -> None:
    remote = connect(serve(sequence_wait_s=0.2).port)
    remote.create()
    remote.step(1)
    began = time.monotonic()
    answer = remote.step(4)
    assert 0.2 <= time.monotonic() - began < 2
    problem = answer.json
    assert (answer.status, problem["code"], problem["retryable"]) == (409, "sequence_gap", False)
    assert problem["errors"] == [{"pointer": "/params/sequence", "expected": "2", "got": "4"}]
    assert remote.step(2).status == 200


def test_a_deadline_ends_the_wait_in_a_gap(remote: Remote) -> None:
    began = time.monotonic()
    answer = remote.step(3, headers={"X-Deadline-Ms": "100"})
    assert (answer.status, answer.json["code"]) == (409, "sequence_gap")
    assert time.monotonic() - began < 3
    assert remote.step(1).status == 200


def test_a_deadline_in_the_queue_consumes_nothing_and_one_in_mid_step_loses_nothing(
    remote: Remote, service: Served, slow_step: Callable[[], AbstractContextManager[threading.Event]]
) -> None:
    with service.busy():
        assert remote.step(1, headers={"X-Deadline-Ms": "50"}).json["code"] == "deadline"
    assert remote.info()["sequence"] == 0
    with slow_step():
        assert remote.step(1, headers={"X-Deadline-Ms": "100"}).json["code"] == "deadline"
    again = remote.step(1)
    assert again.replayed
    assert same_state(remote.state(), trained(1).state())


@pytest.fixture
def slow_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[threading.Event]]:
    """Steps take half a second while the context is; `started` is set when one begins."""
    from contextlib import contextmanager

    from exodus_core.training import Trainer

    step = Trainer.step

    @contextmanager
    def slowly() -> Iterator[threading.Event]:
        started = threading.Event()

        def slow(*args: Any, **more: Any) -> Any:
            started.set()
            time.sleep(0.5)
            return step(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", slow)
            yield started

    return slowly


def raw_step(number: int) -> bytes:
    spikes, targets = batch(number)
    body, content_type = body_of({"sequence": number, "loss": LOSS}, input=spikes, targets=targets)
    head = f"POST {STEP} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_a_client_that_leaves_in_mid_step_loses_nothing(
    remote: Remote,
    service: Served,
    slow_step: Callable[[], AbstractContextManager[threading.Event]],
    until: Callable[..., None],
) -> None:
    with slow_step() as started, service.raw() as leaving:
        leaving.sendall(raw_step(1))
        assert started.wait(10)
    until(lambda: service.engine.scheduler.requests == 0)
    again = remote.step(1)
    assert (again.status, again.replayed) == (200, True)
    assert same_state(remote.state(), trained(1).state())


def test_a_client_that_leaves_before_its_turn_leaves_nothing(
    remote: Remote, service: Served, until: Callable[..., None]
) -> None:
    with service.busy():
        with service.raw() as leaving:
            leaving.sendall(raw_step(1))
            until(lambda: service.engine.scheduler.waiting == 1)
        until(lambda: service.engine.scheduler.requests == 0)
    assert remote.info()["sequence"] == 0
    assert not remote.step(1).replayed


def test_a_client_that_leaves_in_a_gap_leaves_nothing(
    remote: Remote, service: Served, until: Callable[..., None]
) -> None:
    with service.raw() as leaving:
        leaving.sendall(raw_step(3))
        until(lambda: service.engine.scheduler.requests == 1)
    until(lambda: service.engine.scheduler.requests == 0)
    for number in (1, 2):
        assert not remote.step(number).replayed
    time.sleep(0.2)  # in which the third would be done, if it still waited
    assert remote.info()["sequence"] == 2


def test_deleting_in_mid_step_answers_the_step_and_refuses_the_next(
    remote: Remote,
    service: Served,
    slow_step: Callable[[], AbstractContextManager[threading.Event]],
    connect: Callable[..., Remote],
) -> None:
    answers: dict[int, Response] = {}

    def call(number: int) -> None:
        answers[number] = connect(service.port).step(number)

    with slow_step() as started:
        threads = [threading.Thread(target=call, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        assert started.wait(10)
        assert remote.call("DELETE", "/v1/models/m").status == 204
        for thread in threads:
            thread.join()
    assert answers[1].status == 200
    assert (answers[2].status, answers[2].json["code"]) == (404, "not_found")
    assert remote.call("GET", "/v1/models/m").status == 404


FORWARD_BACKWARD, OPTIM_STEP, FORWARD = (
    f"/v1/models/m/{name}" for name in ("forward_backward", "optim_step", "forward")
)
SPIKES, TARGETS = batch(1)
GRAD = torch.ones(4, 10, 3)
WRONG = [
    (STEP, {"loss": LOSS}, {"input": SPIKES, "targets": TARGETS}, "/params/sequence"),
    (STEP, {"sequence": 0, "loss": LOSS}, {"input": SPIKES, "targets": TARGETS}, "/params/sequence"),
    (STEP, {"sequence": 1.0, "loss": LOSS}, {"input": SPIKES, "targets": TARGETS}, "/params/sequence"),
    (STEP, {"sequence": 1}, {"input": SPIKES, "targets": TARGETS}, "/params/loss"),
    (STEP, {"sequence": 1, "loss": "mse"}, {"input": SPIKES, "targets": TARGETS}, "/params/loss/kind"),
    (STEP, {"sequence": 1, "loss": 3}, {"input": SPIKES, "targets": TARGETS}, "/params/loss"),
    (STEP, {"sequence": 1, "loss": LOSS}, {"input": SPIKES}, "/tensors"),
    (STEP, {"sequence": 1, "loss": LOSS}, {"targets": TARGETS}, "/tensors"),
    (STEP, {"sequence": 1, "loss": LOSS}, {"input": SPIKES[:, :, :5], "targets": TARGETS}, "/tensors/0/shape"),
    (STEP, {"sequence": 1, "loss": LOSS}, {"input": SPIKES[0], "targets": TARGETS}, "/tensors/0/shape"),
    (STEP, {"sequence": 1, "loss": LOSS}, {"input": SPIKES[:0], "targets": TARGETS[:0]}, "/tensors/0/shape"),
    (STEP, {"sequence": 1, "loss": LOSS}, {"input": SPIKES, "targets": TARGETS[:3]}, "/tensors/1"),
    (STEP, {"sequence": 1, "loss": LOSS}, {"input": SPIKES, "targets": TARGETS + 3}, "/tensors/1"),
    (STEP, {"sequence": 1, "loss": LOSS}, {"input": SPIKES, "targets": TARGETS.float()}, "/tensors/1"),
    (STEP, {"sequence": 1, "loss": LOSS}, {"input": SPIKES, "targets": TARGETS, "more": TARGETS}, "/tensors/2"),
    (STEP, {"sequence": 1, "loss": LOSS}, {"input": SPIKES, "grad_output": GRAD}, "/params/loss"),
    (STEP, {"sequence": 1, "loss": LOSS, "lr": -1.0}, {"input": SPIKES, "targets": TARGETS}, "/params/lr"),
    (STEP, {"sequence": 1, "loss": LOSS, "clip_norm": 0.0}, {"input": SPIKES, "targets": TARGETS}, "/params/clip_norm"),
    (STEP, {"sequence": 1, "loss": LOSS, "writer": "w" * 65}, {"input": SPIKES, "targets": TARGETS}, "/params/writer"),
    (FORWARD_BACKWARD, {"sequence": 1, "loss": LOSS, "lr": 1.0}, {"input": SPIKES, "targets": TARGETS}, "/params/lr"),
    (FORWARD_BACKWARD, {"sequence": 1}, {"input": SPIKES, "grad_output": GRAD[:, :, :2]}, "/tensors/1/shape"),
    (FORWARD_BACKWARD, {"sequence": 1}, {"input": SPIKES, "grad_output": GRAD.int()}, "/tensors/1/dtype"),
    (FORWARD_BACKWARD, {"sequence": 1}, {"grad_output": GRAD}, "/tensors"),
    (OPTIM_STEP, {"sequence": 1}, {"gradients": torch.zeros(3)}, "/tensors/0/shape"),
    (OPTIM_STEP, {"sequence": 1}, {"gradients": torch.zeros(83, dtype=torch.float64)}, "/tensors/0/dtype"),
    (OPTIM_STEP, {"sequence": 1}, {"input": SPIKES}, "/tensors/0"),
    (OPTIM_STEP, {"sequence": 1, "loss": LOSS}, {}, "/params/loss"),
    (FORWARD, {"mode": "eval", "context": True}, {"input": SPIKES}, "/params/mode"),
    (FORWARD, {"sequence": 1}, {"input": SPIKES}, "/params/sequence"),
    (FORWARD, {"return": ["spikes"]}, {"input": SPIKES}, "/params/return/0"),
    (FORWARD, {"loss": LOSS}, {"input": SPIKES}, "/tensors"),
    (FORWARD, {}, {"input": SPIKES, "targets": TARGETS}, "/tensors/1"),
]


@pytest.mark.parametrize(("path", "params", "tensors", "pointer"), WRONG)
def test_what_does_not_fit_is_pointed_at_and_consumes_nothing(
    remote: Remote, path: str, params: dict[str, Any], tensors: dict[str, Any], pointer: str
) -> None:
    before = remote.state()
    answer = remote.post(path, params, **tensors)
    assert (answer.status, answer.json["code"]) == (422, "invalid"), answer.body
    error = answer.json["errors"][0]
    assert error["pointer"] == pointer, error
    assert error["expected"]
    assert error["got"]
    assert same_state(remote.state(), before)
    assert not remote.step(1).replayed


def test_what_is_not_finite_is_refused_or_applied_as_asked(remote: Remote) -> None:
    spikes, targets = batch(1)
    spoilt = spikes.float()
    spoilt[0, 0, 0] = float("inf")
    before = remote.state()
    params = {"sequence": 1, "loss": LOSS}
    answer = remote.post(STEP, params, input=spoilt, targets=targets)
    assert (answer.status, answer.json["code"], answer.json["retryable"]) == (422, "non_finite", False)
    assert answer.json["errors"][0]["got"] == "nan as the norm of 0.weight"
    assert same_state(remote.state(), before)
    assert remote.step(1).status == 200
    answer = remote.post(STEP, {**params, "sequence": 2, "non_finite": "apply"}, input=spoilt, targets=targets)
    assert answer.status == 200


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ({"kind": "adam"}, {"lr": 1e300}),
        ({"kind": "adam"}, {"lr": 2e38}),
        ({"kind": "adamw"}, {"lr": 1e300}),
        ({"kind": "sgd", "momentum": 0.9}, {"lr": 1e300}),
        ({"kind": "adam"}, {"weight_decay": 1e300}),
        ({"kind": "sgd"}, {"clip_value": 1e300}),
    ],
)
def test_a_number_that_the_weights_dtype_has_no_room_for_is_refused_and_the_model_lives(
    serve: Callable[..., Served], connect: Callable[..., Remote], optimizer: dict[str, Any], options: dict[str, Any]
) -> None:
    remote = connect(serve().port)  # in memory alone: a call that failed half-way would be the end of the model
    remote.post("/v1/models", {"id": "m", "network": NETWORK, "optimizer": optimizer})
    assert remote.step(1).status == 200
    before = remote.state()
    answer = remote.step(2, **options)
    assert (answer.status, answer.json["code"]) == (422, "invalid")
    assert answer.json["errors"][0]["pointer"] == f"/params/{next(iter(options))}"
    assert same_state(remote.state(), before)
    assert remote.step(2).status == 200


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_the_largest_numbers_that_are_taken_fail_no_step(
    serve: Callable[..., Served], connect: Callable[..., Remote], kind: str
) -> None:
    remote = connect(serve().port)
    remote.post("/v1/models", {"id": "m", "network": NETWORK, "optimizer": {"kind": kind}})
    assert remote.step(1, lr=1e20, weight_decay=1e20, clip_value=3e38, clip_norm=1e300).status == 200


def test_activations_beyond_the_limit_are_refused_before_anything_is_unpacked(
    serve: Callable[..., Served], connect: Callable[..., Remote]
) -> None:
    remote = connect(serve(max_activation_bytes=1_000_000).port)
    remote.create()
    spikes = Tensor.of("input", torch.zeros(64, 1000, 6, dtype=torch.bool), "bits")
    for path, params in ((STEP, {"sequence": 1, "loss": LOSS}), (FORWARD, {})):
        encoded = encode(Message.of(params, [spikes]))
        answer = remote.call("POST", path, b"".join(encoded.chunks), {"Content-Type": encoded.content_type})
        assert (answer.status, answer.json["code"]) == (413, "too_large")
        error = answer.json["errors"][0]
        assert error["pointer"] == "/tensors/0/shape"
        assert "EXODUS_MAX_ACTIVATION_BYTES" in error["expected"]
        assert "64, 1000, 6" in error["got"]
    assert remote.step(1).status == 200


LARGE_KERNEL = {"kind": "conv2d", "out_channels": 1, "kernel_size": 60}
NARROW: dict[str, Any] = {"kind": "lif", "alpha": 0.9, "trainable": ["alpha"], "recurrent": {}}
MORE_THAN_IT_SEEMS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "windows": ({"input_shape": [1, 200, 200], "dtype": "float64", "layers": [LARGE_KERNEL]}, (1, 2, 1, 200, 200)),
    "steps": ({"input_shape": [1], "layers": [NARROW | {"method": "bptt"}]}, (1, 100_000, 1)),
    "neurons": ({"input_shape": [1000], "layers": [NARROW]}, (1, 10_000, 1000)),
}


@pytest.mark.parametrize("case", MORE_THAN_IT_SEEMS)
def test_work_memory_and_steps_count_as_activations(
    serve: Callable[..., Served], connect: Callable[..., Remote], case: str
) -> None:
    network, shape = MORE_THAN_IT_SEEMS[case]
    remote = connect(serve(max_activation_bytes=64 * 2**20).port)
    assert remote.post("/v1/models", {"id": "m", "network": network, "optimizer": ADAM}).status == 201
    spikes = Tensor.of("input", torch.zeros(shape, dtype=torch.bool), "bits")
    for path, params in ((STEP, {"sequence": 1, "loss": LOSS}), (FORWARD, {}), (FORWARD, {"context": True})):
        encoded = encode(Message.of(params, [spikes]))
        answer = remote.call("POST", path, b"".join(encoded.chunks), {"Content-Type": encoded.content_type})
        assert (answer.status, answer.json["code"]) == (413, "too_large"), answer.json
        assert "EXODUS_MAX_ACTIVATION_BYTES" in answer.json["errors"][0]["expected"]


def test_gradients_that_json_has_no_room_for_are_refused_before_the_step(remote: Remote) -> None:
    network = {"input_shape": [1024], "layers": [{"kind": "linear", "out_features": 1024}]}
    remote.post("/v1/models", {"id": "big", "network": network, "optimizer": {"kind": "sgd"}})
    answer = remote.post("/v1/models/big/optim_step", {"sequence": 1, "gradients": True}, form="json")
    assert (answer.status, answer.json["code"]) == (413, "too_large")
    assert answer.json["errors"][0]["pointer"] == "/params/gradients"
    assert remote.info("big")["sequence"] == 0
    assert remote.post("/v1/models/big/optim_step", {"sequence": 1, "gradients": True}).status == 200


def test_an_optimiser_that_fails_half_way_brings_the_durable_state_back(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        remote.step(number)
    remote.call("POST", "/v1/models/m/save")
    remote.step(4)

    def half_way(self: torch.optim.Adam, *_args: Any) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.data.add_(1.0)
            parameter.add_(0.0)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", half_way)
        answer = remote.step(5)
        assert (answer.status, answer.json["code"]) == (507, "out_of_memory")
    answer = remote.step(5, headers={"X-Deadline-Ms": "300"})
    assert answer.json["errors"] == [{"pointer": "/params/sequence", "expected": "4", "got": "5"}]
    assert remote.step(4).status == 200
    assert remote.step(5).status == 200
    assert same_state(remote.state(), trained(5).state())


def test_a_forward_pass_right_behind_a_call_that_failed_half_way_is_asked_to_come_again(
    remote: Remote,
    service: Served,
    connect: Callable[..., Remote],
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:
    remote.step(1)
    remote.call("POST", "/v1/models/m/save")
    answers: dict[str, Response] = {}

    def half_way(self: torch.optim.Adam, *_args: Any) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(1.0)
        raise MemoryError

    def step() -> None:
        answers["step"] = connect(service.port).step(2)

    def forward() -> None:
        answers["forward"] = connect(service.port).post(FORWARD, {}, input=batch(1)[0])

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", half_way)
        with service.busy():
            threads = []
            for waiting, call in enumerate((step, forward), 1):
                threads.append(threading.Thread(target=call))
                threads[-1].start()
                until(lambda waiting=waiting: service.engine.scheduler.waiting == waiting)
        for thread in threads:
            thread.join()
    assert answers["step"].json["code"] == "out_of_memory"
    answer = answers["forward"]
    assert (answer.status, answer.json["code"], answer.json["retryable"]) == (503, "not_ready", True)
    again = remote.post(FORWARD, {}, input=batch(1)[0])
    assert torch.equal(again.tensor("outputs"), trained(1).forward(batch(1)[0]))


def test_random_bodies_are_never_a_bug(remote: Remote, service: Served) -> None:
    rng = random.Random(0)
    spikes, targets = batch(1)
    valid, content_type = body_of({"sequence": 1, "loss": LOSS}, input=spikes, targets=targets)
    made, _ = body_of({"id": "n", "network": NETWORK, "optimizer": ADAM})
    paths = ["/v1/models", STEP, FORWARD_BACKWARD, OPTIM_STEP, FORWARD, "/v1/layers/forward", "/v1/layers/backward"]
    for _ in range(200):
        body = bytearray(rng.choice([valid, made]))
        for _ in range(rng.randint(1, 6)):
            body[rng.randrange(min(len(body), 260))] = rng.randrange(256)
        if rng.random() < 0.2:
            del body[rng.randrange(len(body)) :]
        answer = remote.call("POST", rng.choice(paths), bytes(body), {"Content-Type": content_type})
        assert answer.status < 500, answer.body
        if answer.status >= 400 and answer.status not in (404, 409):
            assert answer.json["errors"][0].keys() == {"pointer", "expected", "got"}
    assert service.engine.scheduler.requests == 0
    assert service.engine.scheduler.bytes == 0


def test_the_accounts_are_even_after_all_of_it(remote: Remote, service: Served, until: Callable[..., None]) -> None:
    for number in range(1, 6):
        remote.step(number, gradients=True)
    remote.step(9, headers={"X-Deadline-Ms": "20"})
    remote.state()
    until(lambda: service.engine.scheduler.requests == 0)
    assert service.engine.scheduler.bytes == 0
