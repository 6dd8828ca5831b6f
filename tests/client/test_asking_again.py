"""A server that always answers the same is asked again with growing waits between, and not for ever."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from client.in_process_service import InProcessService

from exodus_client import (
    LIF,
    Client,
    ExodusError,
    GoneError,
    Model,
    ModelClosedError,
    Retries,
    _constants,
)
from exodus_client._transport.retry import Polling
from exodus_client.torch import remote_lif

LAYERS = [{"kind": "linear", "in_features": 3, "out_features": 2}, {"kind": "lif", "alpha": 0.5}]
X = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
Y = np.array([0, 1])
LOSS = "max_over_time_ce"

#: Waits of 0.1 s and more, for one second: some ten requests each, where there were thousands a second.
RETRIES = Retries(first_delay=0.1, max_delay=0.2, jitter=0.0)
PATIENCE = 1.0
MOST = 60
STUCK = 60.0

Change = Callable[[httpx.Request], httpx.Response | None]


def problem(
    status: int, code: str, *, expected: str = "", retryable: bool = False, retry_after: str | None = None
) -> httpx.Response:
    errors = [{"pointer": "/params/sequence", "expected": expected, "got": "?"}] if expected else []
    document = {"code": code, "detail": "as always", "errors": errors, "retryable": retryable}
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return httpx.Response(status, json=document, headers=headers)


def later(**headers: str) -> httpx.Response:
    return httpx.Response(202, json={}, headers={"Location": "/v1/requests/r", **headers})


class Stubborn(httpx.BaseTransport):
    """A training server, but for the requests that `change` answers; counts those."""

    def __init__(self) -> None:
        self.server = InProcessService(sequence_wait_s=0.0)
        self.change: Change = lambda request: None
        self.stubborn = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        answer = self.change(request)
        if answer is None:
            return self.server(request)
        self.stubborn += 1
        return answer


@pytest.fixture
def stubborn() -> Stubborn:
    return Stubborn()


@pytest.fixture
def client(stubborn: Stubborn) -> Iterator[Client]:
    with Client("http://node:8000", transport=stubborn, retries=RETRIES) as made:
        yield made
        stubborn.change = lambda request: None


def to(path: str, answer: Callable[[], httpx.Response], method: str = "POST") -> Change:
    return lambda request: answer() if request.method == method and request.url.path.endswith(path) else None


def refused() -> httpx.Response:
    raise httpx.ConnectError("refused")


def own_loss(outputs: Any) -> Any:
    return outputs.sum()


def step(model: Model) -> Any:
    return model.step(X, Y, loss=LOSS).result(STUCK)


def custom(model: Model) -> Any:
    return model.step(X, loss=own_loss).result(STUCK)


def forward(model: Model) -> Any:
    return model.forward(X).result(STUCK)


def save(model: Model) -> Any:
    return model.make_durable().result(STUCK)


def first_forgotten(request: httpx.Request) -> httpx.Response | None:
    """Call 1 is done whenever it is asked for, and call 2 never because 1 were missing."""
    if not request.url.path.endswith("/step") or b"\xa8sequence\x01" in request.content:
        return None
    return problem(409, "sequence_gap", expected="1")


def stale_outputs(request: httpx.Request) -> httpx.Response | None:
    if not request.url.path.endswith("/forward"):
        return None
    zeros = np.zeros((2, 2, 2)).tolist()
    tensors = [{"name": "outputs", "dtype": "float32", "shape": [2, 2, 2], "data": zeros}]
    return httpx.Response(200, json={"v": 1, "params": {"sequence": 0}, "tensors": tensors})


def gap(expected: str) -> Callable[[], httpx.Response]:
    return lambda: problem(409, "sequence_gap", expected=expected)


ALWAYS: dict[str, tuple[Change, Callable[[Model], Any]]] = {
    "a gap before itself": (to("/step", gap("2")), step),
    "a gap before the first": (to("/step", gap("1")), step),
    "a gap after the first": (first_forgotten, step),
    "a gap for a forward pass": (to("/forward", gap("2")), forward),
    "a gap for a forward pass to be differentiated": (to("/forward", gap("2")), custom),
    "stale outputs": (stale_outputs, forward),
    "a stale save": (to("/save", lambda: httpx.Response(200, json={"sequence": 0, "durable": 0})), save),
    "later": (to("", later, "POST"), step),
    "later, and later": (lambda request: later(retry_after="0"), step),
    "later, and never heard of it": (
        lambda request: (
            problem(404, "not_found")
            if "requests" in request.url.path
            else later()
            if request.method == "POST"
            else None
        ),
        step,
    ),
    "running": (to("/step", lambda: problem(409, "running", retryable=True)), step),
    "busy": (to("/step", lambda: problem(503, "draining", retry_after="0")), step),
    "busy for a forward pass": (to("/forward", lambda: problem(503, "draining", retry_after="0")), forward),
    "a full queue": (to("/step", lambda: problem(429, "queue_full", retry_after="0")), step),
    "an error": (to("/step", lambda: problem(500, "internal_error", retryable=True)), step),
    "no answer": (to("/step", refused), step),
    "no answer to anything": (lambda request: refused(), step),
    "a lost context": (to("/step", lambda: problem(410, "context_expired")), custom),
    "a stale context": (to("/step", lambda: problem(409, "context_stale")), custom),
    "a lost answer": (to("/step", lambda: problem(410, "answer_expired")), step),
    "another client": (to("/step", lambda: problem(409, "sequence_conflict")), step),
    "elsewhere": (lambda request: httpx.Response(307, headers={"Location": "http://elsewhere/"}), step),
    "itself": (lambda request: httpx.Response(308, headers={"Location": str(request.url)}), step),
}


@pytest.mark.parametrize("name", ALWAYS)
def test_a_server_that_always_answers(stubborn: Stubborn, client: Client, name: str) -> None:
    change, ask = ALWAYS[name]
    model = client.create_model(LAYERS, optimizer="sgd", id="m", patience=PATIENCE)
    step(model)
    seen = threading.Lock()

    def counted(request: httpx.Request) -> httpx.Response | None:
        try:
            return change(request)
        except httpx.ConnectError:
            with seen:
                stubborn.stubborn += 1
            raise

    stubborn.change = counted
    began = time.monotonic()
    with pytest.raises(ExodusError):
        ask(model)
    assert 1 <= stubborn.stubborn <= MOST
    assert time.monotonic() - began < STUCK


@pytest.mark.parametrize("ask", [Model.state_dict, lambda model: model.load_state_dict({})])
def test_a_state_that_is_always_stale(stubborn: Stubborn, client: Client, ask: Callable[[Model], Any]) -> None:
    model = client.create_model(LAYERS, optimizer="sgd", id="m", patience=PATIENCE)
    stale = stubborn.server(httpx.Request("GET", "http://node/v1/models/m/state"))
    step(model)
    stubborn.change = to("/state", lambda: httpx.Response(200, content=stale.content), "GET")
    with pytest.raises(ExodusError, match="keeps asking for calls that it has done"):
        ask(model)
    assert 2 <= stubborn.stubborn <= MOST


def test_the_error_says_what_the_server_kept_asking_for(stubborn: Stubborn, client: Client) -> None:
    model = client.create_model(LAYERS, optimizer="sgd", id="m", patience=PATIENCE)
    stubborn.change = to("/step", gap("1"))
    with pytest.raises(ExodusError, match=r"ended after patience=1 seconds of waits: the server keeps asking"):
        step(model)
    model.resync()
    stubborn.change = lambda request: later() if request.url.path.endswith(("/step", "/requests/r")) else None
    with pytest.raises(ExodusError, match=r"ended after patience=1 seconds of waits for /v1/requests/r"):
        step(model)
    stubborn.change = lambda request: None
    model.resync()
    assert step(model).sequence == 1


def test_a_server_that_lost_calls_once_gets_them_at_once(stubborn: Stubborn) -> None:
    slow = Retries(first_delay=STUCK, max_delay=STUCK, jitter=0.0)
    with Client("http://node:8000", transport=stubborn, retries=slow) as client:
        model = client.create_model(LAYERS, optimizer="sgd", id="m", durable_every=100)
        for _ in range(5):
            step(model)
        stubborn.server.crash()
        began = time.monotonic()
        assert step(model).sequence == 6
        assert time.monotonic() - began < STUCK / 2


def test_a_call_that_lasts_is_asked_for_as_often_as_the_server_wants(stubborn: Stubborn, client: Client) -> None:
    asked: list[float] = []

    def note(request: httpx.Request) -> None:
        if "requests" in request.url.path:
            asked.append(time.monotonic())

    stubborn.server.pending = 10**9  # answers are not held back
    stubborn.change = note
    model = client.create_model(LAYERS, optimizer="sgd", id="m")
    with stubborn.server.busy():
        future = model.step(X, Y, loss=LOSS)
        stubborn.server.wait_for_requests(lambda: len(asked) >= 2)
    assert future.result(STUCK).sequence == 1
    assert asked[1] - asked[0] >= 0.09


class TestSpacing:
    def waits(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 10.0) -> tuple[Polling, list[float]]:
        waited: list[float] = []
        closing = threading.Event()
        monkeypatch.setattr(closing, "wait", lambda seconds: waited.append(round(seconds, 3)))
        return Polling(Retries(first_delay=1.0, max_delay=4.0, jitter=0.0), seconds, closing), waited

    def test_the_first_is_at_once_and_the_others_wait_longer_each(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spacing, waited = self.waits(monkeypatch)
        assert [spacing.left() for _ in range(6)] == [True] * 4 + [False] * 2
        assert waited == [0.0, 1.0, 2.0, 4.0]

    def test_an_answer_that_was_held_back_is_asked_for_at_once_and_costs_no_patience(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spacing, waited = self.waits(monkeypatch)
        assert all(spacing.left(took=30.0, at_least=1.0) for _ in range(1000))
        assert set(waited) == {0.0}

    def test_the_server_may_ask_for_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spacing, waited = self.waits(monkeypatch)
        assert spacing.left(at_least=3.0, took=0.5)
        assert not spacing.left(at_least=1e300)
        assert waited == [2.5]

    def test_nobody_asks_faster_than_that(self) -> None:
        spacing = Polling(Retries(first_delay=0.0), 10 * _constants.SOONEST, threading.Event())
        assert sum(spacing.left() for _ in range(100)) == 11

    def test_it_ends_where_the_model_is_closed(self) -> None:
        closing = threading.Event()
        closing.set()
        assert not Polling(Retries(), 10.0, closing).left()


def test_closing_ends_a_wait_for_a_call_that_lasts(stubborn: Stubborn) -> None:
    with Client("http://node:8000", transport=stubborn, retries=Retries(first_delay=STUCK, max_delay=STUCK)) as client:
        model = client.create_model(LAYERS, optimizer="sgd", id="m")
        stubborn.change = lambda request: later()
        future = model.step(X, Y, loss=LOSS)
        while stubborn.stubborn < 2:  # the second question is asked at once, the third in a minute
            time.sleep(0.001)
        model.close()
        with pytest.raises(ModelClosedError):
            future.result(STUCK)


def test_a_backward_pass_whose_context_is_always_lost(service: Any) -> None:
    import torch

    real = service.handler
    gone = httpx.Response(410, json={"code": "context_expired"})
    service.handler = lambda request: gone if request.url.path.endswith("backward") else real(request)
    x = torch.ones(1, 2, 3, requires_grad=True)
    remote_lif(service.client(), x, 0.9)[0].sum().backward()
    assert [request.url.path.rpartition("/")[2] for request in service.requests] == ["forward", "backward", "exodus"]


def test_an_answer_that_is_gone_is_raised(service: Any) -> None:
    service.handler = lambda request: problem(410, "segment_gone")
    with pytest.raises(GoneError):
        service.client().gradients(neuron=LIF(0.9), membrane=X, grad_output=X)
    assert len(service.requests) == 1


def test_a_redirect_says_where_to(service: Any) -> None:
    service.handler = lambda request: httpx.Response(301, headers={"Location": "https://node:8443/"})
    with pytest.raises(ExodusError, match=r"301: the server has moved to https://node:8443/; give the client that"):
        service.client().capabilities()
    assert len(service.requests) == 1


def test_a_wait_that_lasts_is_said_at_the_level_that_python_shows(
    service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    service.answers = [httpx.Response(503, headers={"Retry-After": "30"}), httpx.Response(503)]
    service.handler = lambda request: httpx.Response(200, json={})
    service.client().capabilities()
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "next attempt in 30.00 s: 503" in line
