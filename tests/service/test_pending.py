"""Calls that are answered later: 202, found again, cancelled; and bodies in shared memory."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from remote_models import LOSS, NETWORK, Remote, Response, batch, same_state, trained
from service.conftest import Served

from exodus_client.wire import Message
from exodus_service.operations.train import TrainingCall

LATER = {"Prefer": "wait=0"}


@pytest.fixture
def service(serve: Callable[..., Served], tmp_path: Path) -> Served:
    return serve(state_dir=tmp_path / "state")


@pytest.fixture
def remote(service: Served, connect: Callable[..., Remote]) -> Remote:
    remote = connect(service.port)
    remote.create()
    return remote


def test_a_call_that_is_done_in_time_is_answered_as_ever(remote: Remote) -> None:
    answer = remote.step(1, headers={"Prefer": "wait=30"})
    assert (answer.status, answer.params["sequence"]) == (200, 1)


def test_a_call_that_takes_longer_is_found_again(remote: Remote, service: Served) -> None:
    with service.busy():
        began = time.monotonic()
        answer = remote.step(1, gradients=True, headers={"Prefer": "respond-async, wait=1; x=y"})
        assert 0.9 < time.monotonic() - began < 5
        assert answer.status == 202
        location = answer.headers["location"]
        assert answer.json == {"id": location.rpartition("/")[2], "status": "running"}
        assert answer.headers["retry-after"] == "1"
        preferences: tuple[dict[str, str], ...] = ({}, LATER)
        for headers in preferences:
            again = remote.call("GET", location, headers=headers)
            assert (again.status, again.headers["location"]) == (202, location)
    found = remote.call("GET", location, headers={"Prefer": "wait=30"})
    assert (found.status, found.params["sequence"]) == (200, 1)
    assert "kernel" in found.headers["server-timing"]
    assert remote.step(1, gradients=True).body == found.body
    assert remote.call("GET", location).body == found.body  # it is kept
    assert same_state(remote.state(), trained(1).state())


def test_the_problem_of_a_call_is_found_too(remote: Remote, service: Served) -> None:
    spikes, targets = batch(1)
    with service.busy():
        gap = remote.step(1, headers=LATER)
        answer = remote.post(
            "/v1/models/m/forward",
            {"loss": LOSS},
            headers={**LATER, "X-Request-ID": "mine"},
            input=spikes,
            targets=targets + 7,
        )
        assert answer.status == 202
    found = remote.call("GET", answer.headers["location"], headers={"Prefer": "wait=30"})
    assert (found.status, found.json["code"]) == (422, "invalid")
    assert found.json["instance"] == "/v1/models/m/forward"
    assert found.json["request_id"] == "mine"
    assert remote.call("GET", gap.headers["location"], headers={"Prefer": "wait=30"}).status == 200


def test_what_waits_can_be_cancelled(remote: Remote, service: Served, until: Callable[..., None]) -> None:
    with service.busy():
        queued, gap = remote.step(1, headers=LATER), remote.step(5, headers=LATER)
        for answer in (queued, gap):
            assert remote.call("DELETE", answer.headers["location"]).status == 204
            assert remote.call("GET", answer.headers["location"]).status == 404
        until(lambda: service.engine.scheduler.requests == 0)
    assert remote.info()["sequence"] == 0
    assert not remote.step(1).replayed


def test_who_waits_for_a_call_that_is_cancelled_is_told_that_it_is_gone(
    remote: Remote, service: Served, connect: Callable[..., Remote], until: Callable[..., None]
) -> None:
    import threading

    answers: list[Response] = []
    with service.busy():
        location = remote.step(1, headers=LATER).headers["location"]
        waiting = connect(service.port)
        looking = threading.Thread(
            target=lambda: answers.append(waiting.call("GET", location, headers={"Prefer": "wait=30"}))
        )
        looking.start()
        time.sleep(0.2)
        assert remote.call("DELETE", location).status == 204
        looking.join(10)
    assert (answers[0].status, answers[0].json["code"]) == (404, "not_found")
    assert answers[0].json["instance"] == location


def test_what_runs_cannot_and_what_has_ended_is_let_go(
    remote: Remote, service: Served, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    import threading

    from exodus_core.training import Trainer

    started, go, step = threading.Event(), threading.Event(), Trainer.step

    def slow(*args: Any, **more: Any) -> Any:
        started.set()
        go.wait(10)
        return step(*args, **more)

    monkeypatch.setattr(Trainer, "step", slow)
    location = remote.step(1, headers=LATER).headers["location"]
    assert started.wait(10)
    answer = remote.call("DELETE", location)
    assert (answer.status, answer.json["code"], answer.json["retryable"]) == (409, "running", False)
    go.set()
    assert remote.call("GET", location, headers={"Prefer": "wait=30"}).status == 200
    assert service.engine.scheduler.bytes > 0
    assert remote.call("DELETE", location).status == 204
    assert remote.call("GET", location).status == 404
    until(lambda: service.engine.scheduler.bytes == 0)


def test_results_are_kept_for_a_time_and_counted_while_they_are(
    serve: Callable[..., Served], connect: Callable[..., Remote], until: Callable[..., None]
) -> None:
    service = serve(result_ttl_s=0.5)
    remote = connect(service.port)
    remote.create()
    location = remote.step(1, gradients=True, headers=LATER).headers["location"]
    assert remote.call("GET", location, headers={"Prefer": "wait=30"}).status == 200
    assert service.engine.scheduler.requests == 0
    assert service.engine.scheduler.bytes >= 4096
    until(lambda: remote.call("GET", location).status == 404, 5)
    until(lambda: service.engine.scheduler.bytes == 0)


def test_of_a_call_that_has_ended_only_the_outcome_is_kept(
    remote: Remote, service: Served, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    spikes, targets = batch(1)
    calls: list[tuple[weakref.ref[Any], weakref.ref[Any]]] = []
    run = TrainingCall.run

    def watched(self: TrainingCall, model: Any, step: Any) -> Any:
        calls.append((weakref.ref(self), weakref.ref(self.decoded)))
        return run(self, model, step)

    monkeypatch.setattr(TrainingCall, "run", watched)
    answers: list[Response] = []
    for targets_of in (targets + 7, targets):  # the first are refused by the loss, when the call is computed
        with service.busy():
            path, params = "/v1/models/m/step", {"sequence": 1, "loss": LOSS}
            answers.append(remote.post(path, params, headers=LATER, input=spikes, targets=targets_of))
        until(lambda: remote.call("GET", answers[-1].headers["location"]).status != 202)
    assert [remote.call("GET", answer.headers["location"]).status for answer in answers] == [422, 200]
    gc.collect()
    assert [ref() for pair in calls for ref in pair] == [None] * 4


def test_results_that_are_kept_are_bounded_though_they_have_left_their_places(
    serve: Callable[..., Served], connect: Callable[..., Remote], until: Callable[..., None]
) -> None:
    service = serve(max_queue_bytes=300_000)
    remote = connect(service.port)
    remote.create(network={**NETWORK, "layers": [{"kind": "linear", "out_features": 6000}, *NETWORK["layers"][1:]]})
    statuses = []
    for number in range(1, 5):  # one at a time, each alone
        statuses.append(remote.step(number, gradients=True, headers=LATER).status)
        until(lambda: service.engine.scheduler.requests == 0)
    assert statuses == [202, 202, 429, 429]


def test_a_call_that_the_results_of_others_leave_no_room_for_is_found_as_refused(
    serve: Callable[..., Served],
    connect: Callable[..., Remote],
    until: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = serve(max_queue_bytes=110_000)
    remote = connect(service.port)
    remote.create()
    spikes, _ = batch(1, 100, 50)
    with service.busy():
        places = []
        for number in (1, 2, 3):
            answer = remote.post("/v1/models/m/forward", {}, headers=LATER, input=spikes)
            places.append(answer.headers["location"])
            until(lambda number=number: service.engine.scheduler.waiting == number)
    first, second = (remote.call("GET", place, headers={"Prefer": "wait=30"}) for place in places[:2])
    assert first.status == 200
    assert (second.status, second.json["code"], second.json["retryable"]) == (429, "queue_full", True)
    assert second.headers["retry-after"] == "1"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_deadline_holds_for_a_call_that_is_answered_later(remote: Remote, service: Served) -> None:
    with service.busy():
        answer = remote.step(1, headers={**LATER, "X-Deadline-Ms": "100"})
        found = remote.call("GET", answer.headers["location"], headers={"Prefer": "wait=10"})
    assert (found.status, found.json["code"]) == (504, "deadline")
    assert remote.info()["sequence"] == 0


def test_a_client_that_leaves_after_202_has_its_call_done(
    remote: Remote, service: Served, connect: Callable[..., Remote], until: Callable[..., None]
) -> None:
    leaving = connect(service.port)
    with service.busy():
        assert leaving.step(1, headers=LATER).status == 202
        leaving.connection.close()
    until(lambda: remote.info()["sequence"] == 1)


def test_every_post_takes_the_preference(remote: Remote, service: Served) -> None:
    layer = {"neuron": {"model": "lif", "alpha": 0.9}}
    x = torch.rand(1, 3, 2)
    context = remote.post("/v1/layers/forward", layer, input=x).params["context"]
    spikes, targets = batch(1)
    with service.busy():
        answers = [
            remote.create("other"),
            remote.post("/v1/models/m/forward", {}, headers=LATER, input=spikes),
            remote.post(
                "/v1/models/m/forward_backward",
                {"sequence": 1, "loss": LOSS},
                headers=LATER,
                input=spikes,
                targets=targets,
            ),
            remote.post("/v1/models/m/optim_step", {"sequence": 2}, headers=LATER),
            remote.call("POST", "/v1/models/m/save", headers=LATER),
            remote.post("/v1/layers/forward", layer, headers=LATER, input=x),
            remote.post("/v1/layers/backward", {"context": context}, headers=LATER, grad_output=x),
        ]
    assert [answer.status for answer in answers] == [201, 202, 202, 202, 202, 202, 202]
    for answer in answers[1:]:
        found = remote.call("GET", answer.headers["location"], headers={"Prefer": "wait=30"})
        assert found.status == 200, found.body
    assert remote.info()["sequence"] == 2


def test_a_gradient_is_answered_at_once_whatever_is_preferred(service: Served, good: Message) -> None:
    assert service.caller.gradients(good, headers=LATER).status == 200


@pytest.mark.parametrize("prefer", ["wait", "wait=x", "wait=-1", "return=minimal", "await=0"])
def test_preferences_that_are_not_understood_are_ignored(remote: Remote, prefer: str) -> None:
    assert remote.step(1, headers={"Prefer": prefer}).status == 200


def test_unknown_requests_are_not_found(remote: Remote) -> None:
    for verb in ("GET", "DELETE"):
        answer = remote.call(verb, "/v1/requests/unknown")
        assert (answer.status, answer.json["code"]) == (404, "not_found")


@pytest.fixture
def shared(serve: Callable[..., Served], tmp_path: Path, connect: Callable[..., Remote]) -> Iterator[Any]:
    """Posts messages through shared memory, and returns status, headers and the decoded body, wherever that is."""
    import fcntl
    import mmap
    import os
    import socket

    from exodus_client.wire import SEGMENT_GREETING, SEGMENT_TYPE, Reference, Span, Tensor, decode, encode
    from exodus_client.wire import read_reference as read

    service = serve(state_dir=tmp_path / "shared", shared_memory=True)
    remote = connect(service.port)
    remote.create()
    assert service.segments is not None
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(descriptor, 1 << 20)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    memory = mmap.mmap(descriptor, 1 << 20)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(f"\0{service.segments.socket_name}")
        socket.send_fds(connection, [SEGMENT_GREETING], [descriptor])
        token = connection.recv(256).decode().partition(" ")[2]
        os.close(descriptor)

        def post(
            path: str, params: Mapping[str, Any], headers: Mapping[str, str] | None = None, /, **tensors: torch.Tensor
        ) -> tuple[Response, Message | None]:
            body = b"".join(encode(Message.of(params, [Tensor.of(n, t) for n, t in tensors.items()])).chunks)
            memory[: len(body)] = body
            reference = Reference(token, Span(0, len(body)), Span(1 << 19, 1 << 19))
            answer = remote.call("POST", path, reference.encode(), {"Content-Type": SEGMENT_TYPE, **(headers or {})})
            if answer.status != 200:
                return answer, None
            assert answer.headers["content-type"] == SEGMENT_TYPE
            span = read(answer.body).body
            return answer, decode(bytearray(memory[span.offset : span.end]), "application/vnd.msgpack")

        yield remote, post, memory, service


def test_bodies_come_through_shared_memory(shared: Any) -> None:
    remote, post, *_ = shared
    spikes, targets = batch(1)
    answer, message = post("/v1/models/m/step", {"sequence": 1, "loss": LOSS}, input=spikes, targets=targets)
    assert message.params["sequence"] == 1
    answer, again = post("/v1/models/m/step", {"sequence": 1, "loss": LOSS}, input=spikes, targets=targets)
    assert answer.headers["x-exodus-replayed"] == "1"
    assert again.params == message.params
    assert same_state(remote.state(), trained(1).state())


def test_contexts_do_not_change_when_the_segment_is_used_again(shared: Any) -> None:
    remote, post, memory, _ = shared
    spikes = batch(1)[0].float()
    trainer = trained(0)
    forward = trainer.begin(spikes)
    grad = torch.sin(forward.outputs.detach())
    trainer.backward(forward, grad)
    _, message = post("/v1/models/m/forward", {"context": True}, input=spikes)
    memory[:] = np.random.default_rng(0).bytes(len(memory))
    answer = remote.post(
        "/v1/models/m/forward_backward",
        {"sequence": 1, "context": message.params["context"], "gradients": True},
        grad_output=grad,
    )
    assert torch.equal(answer.tensor("gradients"), trainer.gradients())


def test_a_call_that_is_answered_later_does_not_need_the_segment(shared: Any) -> None:
    remote, post, memory, service = shared
    spikes, targets = batch(1)
    params = {"sequence": 1, "loss": LOSS}
    with service.busy():
        answer, _ = post("/v1/models/m/step", params, LATER, input=spikes.float(), targets=targets)
        assert answer.status == 202
        memory[:] = bytes(len(memory))
    found = remote.call("GET", answer.headers["location"], headers={"Prefer": "wait=30"})
    assert found.params["sequence"] == 1
    assert same_state(remote.state(), trained(1).state())
