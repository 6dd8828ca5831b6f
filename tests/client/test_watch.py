"""Messages while training waits for a server that is gone: in the log, and of a result that is not there in time."""

import itertools
import logging
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from client.in_process_service import InProcessService

from exodus_client import APIConnectionError, Client, Future, Model, Retries, ShardedClient, _constants
from exodus_client._transport.retry import Watch

LAYERS = [{"kind": "linear", "in_features": 3, "out_features": 2}, {"kind": "lif", "alpha": 0.5}]
X = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
Y = np.array([0, 1])
REFUSED = APIConnectionError("no answer from http://node (refused)")
STUCK = 60.0


class Gone(httpx.BaseTransport):
    """A way to a training server that may be gone, or hang."""

    def __init__(self) -> None:
        self.server = InProcessService()
        self.gone = False
        self.back = threading.Event()
        self.back.set()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.back.wait(STUCK)
        if self.gone:
            raise httpx.ConnectError("refused")
        return self.server(request)


@pytest.fixture
def gone() -> Gone:
    return Gone()


@pytest.fixture
def client(gone: Gone) -> Iterator[Client]:
    retries = Retries(first_delay=0.02, max_delay=0.05)
    with Client("http://node:8000", transport=gone, retries=retries) as made:
        yield made
        gone.gone = False
        gone.back.set()


def step(model: Model) -> Future[Any]:
    return model.step(X, Y, loss="max_over_time_ce")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def until(holds: Any) -> None:
    ends = time.monotonic() + STUCK
    while not holds():
        assert time.monotonic() < ends, "it did not come to that"
        time.sleep(0.005)


def test_the_log_says_that_the_server_is_gone_until_when_it_is_waited_for_and_that_it_is_back(
    gone: Gone, client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_constants, "SAY_AFTER", 0.1)
    monkeypatch.setattr(_constants, "LOOK_EVERY", 0.02)
    model = client.create_model(LAYERS, id="m")
    gone.gone = True
    future = step(model)
    until(lambda: len(warnings(caplog)) >= 2)
    gone.gone = False
    assert future.result(STUCK).sequence == 1
    first, *_, last = warnings(caplog)
    assert re.fullmatch(
        r"/v1/models/m: no answer for \d+ s to training call 1; trying again until \d\d:\d\d:\d\d \(patience=300 s\)\. "
        r"The last failure: .*no answer from http://node:8000 \(ConnectError: refused\)",
        first,
    )
    assert re.fullmatch(r"/v1/models/m: the server is back, after \d+ s", last)


def test_a_question_about_a_model_says_so_too(
    gone: Gone, client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_constants, "SAY_AFTER", 0.1)
    monkeypatch.setattr(_constants, "LOOK_EVERY", 0.02)
    model = client.create_model(LAYERS, id="m")
    gone.gone = True
    future = model.forward(X)
    until(lambda: warnings(caplog))
    assert "no answer for 0 s to a read after call 0; trying again until" in warnings(caplog)[0]
    with pytest.raises(TimeoutError, match=r"no result within 0\.01 s of a read after call 0; .*ConnectError: re"):
        future.result(0.01)
    gone.gone = False
    assert future.result(STUCK).sequence == 0


class TestTimes:
    """Times at which a line is due. The thread of a watch calls `look` from time to time."""

    @pytest.fixture
    def watch(self, monkeypatch: pytest.MonkeyPatch) -> Watch:
        closing = threading.Event()
        closing.set()  # its thread ends at once: the tests do the looking
        return Watch("m", 300.0, closing)

    def lines(self, watch: Watch, caplog: pytest.LogCaptureFixture, seconds: int) -> list[int]:
        """Seconds at which there was a line."""
        began, due = time.monotonic(), []
        for second in range(seconds):
            watch.look(began + second)
            if warnings(caplog):
                due.append(second)
                caplog.clear()
        return due

    def test_failures_are_said_after_seconds_and_at_intervals_that_double(
        self, watch: Watch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with watch.waits("call 1"):
            watch.failed(REFUSED)
            due = self.lines(watch, caplog, 300)
        assert len(due) == 6
        assert 5 <= due[0] <= 6
        assert all(1.9 < later / sooner < 2.3 for sooner, later in itertools.pairwise(due))

    def test_silence_without_a_failure_is_said_when_a_server_would_have_answered(
        self, watch: Watch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with watch.waits("call 1"):
            assert 40 <= self.lines(watch, caplog, 60)[0] <= 41
            watch.look(time.monotonic() + 100)
        assert warnings(caplog) == ["m: no answer for 100 s to call 1, and no failure; still waiting"]

    def test_the_silence_begins_with_the_watch(self, watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
        assert float(str(watch).removesuffix(" s").rpartition(" ")[2]) < 60
        watch.failed(REFUSED)  # of somebody who does not wait any more
        with watch.waits("call 1"):
            assert 5 <= self.lines(watch, caplog, 60)[0] <= 6

    def test_nothing_is_said_where_nobody_waits(self, watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
        with watch.waits("call 1"):
            watch.failed(REFUSED)
        assert self.lines(watch, caplog, 300) == []
        watch.answered()
        assert not warnings(caplog)

    def test_a_server_that_answers_is_not_silent(self, watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
        with watch.waits("call 1"):
            watch.failed(REFUSED)
            watch.answered()
            assert 40 <= self.lines(watch, caplog, 60)[0] <= 41

    def test_who_waits_again_goes_on_with_the_same_silence(
        self, watch: Watch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with watch.waits("call 1"):
            watch.failed(REFUSED)
        silent = watch._silent_since
        with watch.waits("call 1"):
            assert watch._silent_since == silent
        watch.gave_up()
        with watch.waits("call 2"):
            assert self.lines(watch, caplog, 30) == []

    def test_patience_may_have_no_end(self, caplog: pytest.LogCaptureFixture) -> None:
        closing = threading.Event()
        closing.set()
        watch = Watch("m", float("inf"), closing)
        with watch.waits("call 1"):
            watch.failed(REFUSED)
            watch.look(time.monotonic() + 10)
        assert "trying again until it answers (patience=inf s)" in caplog.text

    def test_its_thread_ends_when_nobody_has_waited_for_a_while(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_constants, "LOOK_EVERY", 0.001)
        monkeypatch.setattr(_constants, "KEEP_IDLE", 0.01)
        watch = Watch("m", 300.0, threading.Event())
        for _ in range(2):
            with watch.waits("call 1"):
                assert watch._thread is not None
            until(lambda: watch._thread is None)


class TestTimeouts:
    """`result(timeout)` says what is waited for, and what failed last."""

    def test_of_a_training_call(self, gone: Gone, client: Client) -> None:
        model = client.create_model(LAYERS, id="m")
        gone.gone = True
        future = step(model)
        until(lambda: model._sender.watch._failure)
        wanted = (
            r"^no result within 0\.05 s of training call 1; /v1/models/m: trying again until .* \(patience=300 s\); "
            r"the last failure: .*ConnectError: refused"
        )
        with pytest.raises(TimeoutError, match=wanted):
            future.result(0.05)
        gone.gone = False
        assert future.result(STUCK).sequence == 1

    def test_of_a_server_that_hangs(self, gone: Gone, client: Client) -> None:
        model = client.create_model(LAYERS, id="m")
        gone.back.clear()
        future = step(model)
        with pytest.raises(
            TimeoutError, match=r"training call 1; /v1/models/m: nothing has failed, and nothing has co"
        ):
            future.result(0.05)
        gone.back.set()
        assert future.result(STUCK).sequence == 1

    def test_of_gradients(self, service: Any) -> None:
        from exodus_client import LIF

        real, release, refuse = service.handler, threading.Event(), [True]

        def handler(request: httpx.Request) -> httpx.Response:
            if refuse:
                refuse.clear()
                raise httpx.ConnectError("refused")
            release.wait(STUCK)
            answer: httpx.Response = real(request)
            return answer

        service.handler = handler
        future = service.client().gradients(neuron=LIF(0.9), membrane=X, grad_output=X, wait=False)
        until(lambda: len(service.requests) == 2)
        with pytest.raises(TimeoutError, match=r"within 0\.05 s of /v1/gradients/exodus; the last failure: .*refused"):
            future.result(0.05)
        release.set()
        assert future.result(STUCK).grad_input.shape == X.shape
        refuse.clear()
        release.clear()
        again = service.clients[0].gradients(neuron=LIF(0.9), membrane=X, grad_output=X, wait=False)
        with pytest.raises(TimeoutError, match=r"of /v1/gradients/exodus; nothing has failed"):
            again.result(0.05)
        release.set()

    def test_of_several_servers(self, gone: Gone, client: Client) -> None:
        with ShardedClient([client]) as servers:
            model = servers.create_model(LAYERS, id="m")
            gone.back.clear()
            with pytest.raises(
                TimeoutError, match=r"of the sharded model m; shard 0: /v1/models/m\S*: nothing has fail"
            ):
                model.step(X, Y, loss="max_over_time_ce").result(0.05)
            gone.back.set()

    def test_one_that_was_raised_by_the_work_is_that(self, client: Client) -> None:
        def late(outputs: Any) -> Any:
            raise TimeoutError("my own")

        model = client.create_model(LAYERS, id="m")
        with pytest.raises(TimeoutError, match=r"^my own$"):
            model.step(X, loss=late).result(STUCK)
