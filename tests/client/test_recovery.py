"""Training through a network and a server that fail has the same results as without failures.

A history is a list of calls, and a list of fates: the n-th request meets the n-th fate, then all is well. Each history
is run twice, undisturbed and one call at a time, and with its fates and as far ahead as the client goes.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from client.faults import FATES, Road, patient_client
from client.in_process_service import InProcessService, State
from hypothesis import given, settings
from hypothesis import strategies as st

from exodus_client import (
    APIConnectionError,
    Client,
    ConflictError,
    ExodusError,
    GoneError,
    InvalidResponseError,
    Limits,
    Model,
    ModelClosedError,
    NotFoundError,
    PayloadTooLargeError,
    Retries,
    StateLostError,
    UnprocessableError,
    _constants,
)
from exodus_client._models.replay_log import Call, ReplayLog

#: Without spikes: each call has gradients of its own, and with Adam each leaves another state.
LAYERS = [{"kind": "linear", "in_features": 3, "out_features": 2}, {"kind": "exp_leak", "alpha": 0.5}]
ADAM = {"kind": "adam", "lr": 0.1}
#: Seconds after which something is taken to wait for ever.
STUCK = 30.0

CALLS = ("step", "step_gradients", "forward_backward", "optim_step", "given_gradients", "custom", "custom_backward")
REFUSED = ("unknown_loss", "not_finite", "broken_loss")
ASIDE = ("forward", "make_durable", "state_dict", "wait")

histories = st.lists(st.sampled_from(CALLS * 2 + REFUSED + ASIDE), min_size=1, max_size=16)
fates = st.lists(st.sampled_from((*FATES, "ok", "ok")), max_size=16)


class BrokenLossError(Exception):
    """Raised by a loss of the caller."""


def spikes(number: int) -> Any:
    """The input of a call, unlike that of any other: (2, 2, 3)."""
    return np.random.default_rng(number).random((2, 2, 3), np.float32)


def custom(outputs: Any) -> Any:
    return (outputs * torch.arange(1.0, 3.0)).sum()


def broken(outputs: Any) -> Any:
    raise BrokenLossError


def submit(model: Any, what: str, number: int) -> Any:
    """Make a call; its future, or what it returned."""
    x, y = spikes(number), np.array([0, 1])
    given = np.full(8, float(number), np.float32)
    calls: dict[str, Callable[[], Any]] = {
        "step": lambda: model.step(x, y, loss="max_over_time_ce", lr=0.1 * number),
        "step_gradients": lambda: model.step(x, y, loss={"kind": "sum_over_time_ce"}, gradients=True),
        "forward_backward": lambda: model.forward_backward(x, y, loss="max_over_time_ce"),
        "optim_step": lambda: model.optim_step(clip_norm=1.0),
        "given_gradients": lambda: model.optim_step(gradients=given),
        "custom": lambda: model.step(x, loss=custom),
        "custom_backward": lambda: model.forward_backward(x, loss=custom, gradients=True),
        "unknown_loss": lambda: model.step(x, y, loss="no_such_loss"),
        "not_finite": lambda: model.step(x * np.float32(np.nan), y, loss="max_over_time_ce"),
        "broken_loss": lambda: model.step(x, loss=broken),
        "forward": lambda: model.forward(x),
        "make_durable": lambda: model.make_durable(),
        "state_dict": lambda: model.state_dict(),
    }
    made = calls[what]()
    if "gradients" not in what and what in CALLS:  # they may be written to as soon as the call returns
        x[:] = np.nan
        y[:] = 7
    given[:] = np.nan
    return made


def outcome(what: str, made: Any) -> Any:
    """The result or the error of a call, in a form that can be compared."""
    try:
        result = made.result(STUCK) if hasattr(made, "result") else made
    except (ExodusError, BrokenLossError) as error:
        return type(error).__name__, getattr(error, "code", "")
    if what == "state_dict":
        return {name: array.tolist() for name, array in result.items()}
    if what == "forward":
        return result.sequence, result.outputs.tolist()
    if what in CALLS:
        gradients = result.gradients and {name: array.tolist() for name, array in result.gradients.items()}
        return result.sequence, dict(result.metrics), dict(result.grad_norms), gradients
    return None


@dataclass
class Run:
    """Outcome of a history: of each call, the final state, and the callbacks."""

    outcomes: list[Any]
    state: State
    reported: list[int]


def run(history: Sequence[str], road: Road, *, one_at_a_time: bool, every: int = 10, ahead: int = 8) -> Run:
    """Run a history on a new model."""
    reported: list[int] = []
    server = road.server
    fates, road.fates = road.fates, []
    with patient_client(road) as client:
        model = client.create_model(LAYERS, optimizer=ADAM, seed=3, durable_every=every, id="m", ahead=ahead)
        model.callbacks.append(lambda result: reported.append(result.sequence))
        road.fates = fates
        made: list[Callable[[], Any]] = []
        for number, what in enumerate(history, 1):
            if what == "wait":
                outcomes = [answered() for answered in made]
                continue
            answered = functools.cache(functools.partial(outcome, what, submit(model, what, number)))
            made.append(answered)
            if one_at_a_time or what == "forward":  # which sees what was done when its turn came, perhaps more
                answered()
        outcomes = [answered() for answered in made]
        road.fates = []
        road.down = 0
        model.forward(spikes(1), outputs=False).result(STUCK)  # all is done, also the empty calls
        road.settle()
        model.forward(spikes(1), outputs=False).result(STUCK)
        model.close()
    return Run(outcomes, server.state(), reported)


def in_time(work: Callable[[], Any]) -> Any:
    """The result of work, which must not wait for ever."""
    results: list[Any] = []

    def guarded() -> None:
        try:
            results.append((work(), None))
        except BaseException as error:  # noqa: BLE001 - raised again below
            results.append((None, error))

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(2 * STUCK)
    assert results, "deadlock"
    result, error = results[0]
    if error is not None:
        raise error
    return result


Undisturbed = Callable[..., Run]


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[Undisturbed]:
    """Runs a history, given call by call, without failures and one call at a time; the same history once."""
    with contextlib.closing(InProcessService()) as server:

        @functools.cache
        def run_alone(*history: str) -> Run:
            try:
                return run(history, Road(server), one_at_a_time=True)
            finally:
                server(httpx.Request("DELETE", "http://node/v1/models/m"))

        yield run_alone


def compare(undisturbed: Undisturbed, history: Sequence[str], road: Road, **arguments: Any) -> None:
    """Run a history undisturbed and on a road, and compare."""
    wanted = undisturbed(*history)
    got: Run = in_time(lambda: run(history, road, one_at_a_time=False, **arguments))
    assert got.outcomes == wanted.outcomes
    assert got.state == wanted.state
    assert got.reported == wanted.reported


class TestAnyHistory:
    @settings(max_examples=200, deadline=None)
    @given(
        history=histories,
        fates=fates,
        every=st.integers(1, 6),
        ahead=st.integers(1, 8),
        pending=st.sampled_from([None, None, 0, 2]),
    )
    def test_ends_as_without_failures(
        self,
        undisturbed: Undisturbed,
        history: list[str],
        fates: list[str],
        every: int,
        ahead: int,
        pending: int | None,
    ) -> None:
        with contextlib.closing(InProcessService(sequence_wait_s=0.002)) as server:
            server.pending = pending
            compare(undisturbed, history, Road(server, fates), every=every, ahead=ahead)


@pytest.fixture
def server() -> InProcessService:
    return InProcessService(sequence_wait_s=0.002)


@pytest.fixture
def road(server: InProcessService) -> Road:
    return Road(server)


@pytest.fixture
def client(road: Road) -> Iterator[Client]:
    with patient_client(road) as made:
        yield made


def until(holds: Callable[[], bool]) -> None:
    """Wait until something is so."""
    ends = time.monotonic() + STUCK
    while not holds():
        assert time.monotonic() < ends, "it did not come to that"
        time.sleep(0.002)


def create(client: Client, **options: Any) -> Model:
    return client.create_model(LAYERS, **({"optimizer": ADAM, "id": "m"} | options))


def steps(model: Model, count: int) -> list[Any]:
    """Results of so many steps, each awaited."""
    return [submit(model, "step", number).result(STUCK) for number in range(count)]


class TestEveryFate:
    """Each failure alone, at each of the first requests, and all the time."""

    @pytest.mark.parametrize("place", [0, 1, 3])
    @pytest.mark.parametrize("fate", FATES)
    def test_once(self, undisturbed: Undisturbed, server: InProcessService, fate: str, place: int) -> None:
        history = ["step", "custom", "step_gradients", "not_finite", "optim_step", "state_dict"]
        compare(undisturbed, history, Road(server, ["ok"] * place + [fate]), every=2)

    @pytest.mark.parametrize("fate", sorted(set(FATES) - {"down"}))
    def test_every_other_time(self, undisturbed: Undisturbed, server: InProcessService, fate: str) -> None:
        compare(
            undisturbed,
            ["step", "custom", "forward_backward", "optim_step"] * 2,
            Road(server, ["ok", fate] * 20),
            every=1,
        )

    @pytest.mark.parametrize("every", [1, 3, 100])
    def test_in_a_long_training(self, undisturbed: Undisturbed, server: InProcessService, every: int) -> None:
        fates = [fate for fate in FATES for _ in range(2)] * 2
        compare(undisturbed, ["step", "step_gradients", "custom"] * 20, Road(server, fates), every=every)


class TestWhatIsKept:
    def test_is_forgotten_when_two_saves_have_it(self, client: Client, server: InProcessService) -> None:
        model = create(client, durable_every=4)
        kept = []
        for _ in range(41):
            steps(model, 1)
            server.wait_for_saves()
            kept.append(len(model._calls._calls))
        assert kept == [1, 2, 3, 4, *[5, 6, 7, 8] * 9, 5]
        assert model.durable == 40

    def test_is_bounded_in_bytes_by_asking_for_saves(
        self, client: Client, server: InProcessService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = create(client, durable_every=10_000)
        steps(model, 1)
        size = model._calls.nbytes
        monkeypatch.setattr(_constants, "MAX_KEPT_BYTES", 10 * size)
        most = 0
        for _ in range(100):
            steps(model, 1)
            most = max(most, model._calls.nbytes)
        assert 5 <= server.requests.count(("POST", "/v1/models/m/save")) <= 80
        assert most <= 20 * size  # the last save and the one before it, and as many calls as may be under way

    def test_is_known_to_be_durable_from_the_save(
        self, client: Client, server: InProcessService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = create(client, durable_every=10_000)
        steps(model, 1)
        monkeypatch.setattr(_constants, "MAX_KEPT_BYTES", model._calls.nbytes)
        steps(model, 2)
        until(lambda: model.durable == 3)

    def test_goes_on_where_the_server_cannot_save(
        self,
        client: Client,
        server: InProcessService,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(_constants, "MAX_KEPT_BYTES", 0)
        model = create(client, durable_every=1)
        server.full = True
        steps(model, 3)
        server.wait_for_saves()
        (result,) = steps(model, 1)
        assert result.durable == 0
        assert result.durable_error.endswith("No space left on device")
        model.close()
        assert "are kept until the server saves" in caplog.text
        server.crash()
        again = client.model("m")
        assert again.sequence == 0

    def test_is_sent_again_after_the_state_before_the_last(self, client: Client, server: InProcessService) -> None:
        model = create(client, durable_every=5)
        wanted = steps(model, 23)[-1]
        server.wait_for_saves()
        assert model.info().durable == 20
        state = server.state()
        server.crash(damaged=True)
        assert server.state().sequence == 15
        assert model.forward(spikes(0)).result(STUCK).sequence == 23
        assert server.state() == state
        assert submit(model, "step", 1).result(STUCK).sequence == wanted.sequence + 1

    def test_does_not_shrink_by_an_old_answer(self) -> None:
        log = ReplayLog(0, 0, ahead=99, width=99)
        for number in range(1, 40):
            log.append(lambda sequence: Call(sequence, ""))
            call = log.next()
            assert call is not None
            log.done(call, number // 10 * 10, None)
        assert log.kept_after == 20
        log.kept(10)  # said long ago, and heard just now
        log.kept(30)
        assert log.kept_after == 20

    def test_what_was_done_since_the_server_was_asked_is_not_lost(self) -> None:
        log = ReplayLog(0, 0, ahead=9, width=9)
        before = log.kept_after
        for number in (1, 2, 3):
            log.append(lambda sequence: Call(sequence, ""))
            call = log.next()
            assert call is not None
            log.done(call, number, None)
        assert log.rewind(0, before) == 1  # the one that is kept; the answer is older than what is known
        with pytest.raises(StateLostError):
            log.rewind(0, log.kept_after)


class TestLostForGood:
    def test_a_server_that_lost_too_much_ends_the_training(self, client: Client, server: InProcessService) -> None:
        model = create(client, durable_every=2)
        before = server.backup()
        for done in (2, 4, 6, 8):
            steps(model, 2)
            until = time.monotonic() + STUCK
            while model.info().durable != done:  # which the answer to the next call tells
                assert time.monotonic() < until
                time.sleep(0.01)
        steps(model, 1)
        server.crash(back_to=before)
        with pytest.raises(StateLostError, match=r"has done 0 calls, and this handle keeps those from 7 on") as caught:
            submit(model, "step", 9).result(STUCK)
        with pytest.raises(StateLostError) as again:
            submit(model, "step", 9)
        assert again.value.__cause__ is not None
        assert str(again.value) == str(caught.value)
        with pytest.raises(StateLostError):
            model.state_dict()
        model.resync()
        assert [result.sequence for result in steps(model, 2)] == [1, 2]

    @pytest.mark.parametrize("ask", ["forward", "make_durable", "state_dict"])
    def test_it_is_found_out_by_any_question(self, client: Client, server: InProcessService, ask: str) -> None:
        model = create(client, durable_every=2)
        before = server.backup()
        steps(model, 9)
        server.crash(back_to=before)
        with pytest.raises(StateLostError):
            getattr(submit(model, ask, 1), "result", lambda seconds: None)(STUCK)

    def test_a_handle_does_not_wait_for_what_another_has_done(self, client: Client, server: InProcessService) -> None:
        steps(create(client), 15)
        model = client.model("m")
        server.crash()  # back to 10
        with pytest.raises(StateLostError, match=r"keeps those from 16 on"):
            submit(model, "step", 1).result(STUCK)

    def test_without_a_disk_a_crash_loses_the_model(self, client: Client, server: InProcessService) -> None:
        server.memory_only = True
        model = create(client)
        steps(model, 3)
        server.crash()
        lost = r"there is no model 'm'.*\n.*in memory only.*EXODUS_STATE_DIR=FOLDER"
        with pytest.raises(NotFoundError, match=lost) as caught:
            submit(model, "step", 1).result(STUCK)
        assert caught.value.code == "not_found"
        with pytest.raises(NotFoundError, match=lost):
            submit(model, "step", 1)
        with pytest.raises(NotFoundError, match=lost):
            model.info()

    def test_with_a_disk_a_model_that_is_gone_was_deleted(self, client: Client) -> None:
        model = create(client)
        client.delete_model("m")
        with pytest.raises(NotFoundError) as caught:
            submit(model, "step", 1).result(STUCK)
        assert "in memory only" not in str(caught.value)

    def test_a_call_that_was_done_and_is_refused_later_ends_the_training(self, server: InProcessService) -> None:
        refuse = False

        def change(request: httpx.Request) -> httpx.Response:
            if refuse and request.url.path.endswith("/step"):
                return httpx.Response(413, json={"code": "too_large", "retryable": False})
            return server(request)

        with patient_client(httpx.MockTransport(change)) as client:
            model = create(client)
            steps(model, 2)
            server.crash()
            refuse = True
            with pytest.raises(PayloadTooLargeError):
                model.forward(spikes(0)).result(STUCK)
            assert ("m", 1, "skip") not in server.done


class TestQuestions:
    """Reads between calls see all of them, even if the server has lost some meanwhile."""

    @pytest.mark.parametrize("ask", ["forward", "make_durable", "state_dict", "save"])
    def test_sends_again_what_was_lost(
        self, client: Client, server: InProcessService, tmp_path: Path, ask: str
    ) -> None:
        model = create(client)
        steps(model, 5)
        wanted = server.state()
        server.crash()
        assert server.state().sequence == 0
        if ask == "save":
            model.save(tmp_path / "state")
        else:
            made = submit(model, ask, 1)
            result = made.result(STUCK) if hasattr(made, "result") else made
            if ask == "make_durable":
                assert result == 5
        assert server.state() == wanted
        assert (server.models["m"]["durable"] == 5) == (ask == "make_durable")

    def test_are_asked_again_while_there_is_patience(self, road: Road) -> None:
        with patient_client(road, retries=Retries(count=0, first_delay=0.0)) as client:
            model = create(client)
            road.fates = ["refused"] * 5
            assert model.forward(spikes(0)).result(STUCK).sequence == 0
            model.close()
            impatient = client.model("m", patience=0)
            road.fates = ["refused"] * 10_000
            with pytest.raises(APIConnectionError):
                impatient.forward(spikes(0)).result(STUCK)
            road.fates = []


class TestOrder:
    def test_after_a_crash_nothing_is_sent_only_to_wait(self, road: Road, client: Client) -> None:
        model = create(client)
        steps(model, 5)
        road.server.settings["sequence_wait_s"] = STUCK  # the server would wait for calls that it has lost
        before = len(road.server.requests)
        road.fates = ["crash"]
        assert submit(model, "step", 9).result(STUCK).sequence == 6
        assert [path for _, path in road.server.requests[before:]] == ["/v1/models/m"] + ["/v1/models/m/step"] * 6

    def test_a_call_that_came_too_early_is_sent_in_turn(self) -> None:
        log = ReplayLog(0, 0, ahead=9, width=9)
        first, second, third = (log.append(lambda sequence: Call(sequence, "")) for _ in range(3))
        assert [log.next(), log.next(), log.next(), log.next()] == [first, second, third, None]
        log.requeue(second, in_turn=True)
        assert log.next() is None
        log.requeue(third)
        assert log.next() is None  # it would only wait for the second
        log.done(first, 0, None)
        assert [log.next(), log.next()] == [second, None]
        log.requeue(second)
        log.requeue(first)
        assert [log.next(), log.next()] == [first, None]
        log.done(first, 0, None)
        log.done(second, 0, None)
        assert log.next() is third

    def test_a_report_is_made_once_and_forgotten(self) -> None:
        log = ReplayLog(0, 0, ahead=9, width=9)
        call = log.append(lambda sequence: Call(sequence, ""))
        log.next()
        for _ in range(2):
            log.done(call, 0, None)
            assert list(log.reports()) == []
            assert not log.to_report
        assert log._reports == {}

    @pytest.mark.parametrize("ask", ["forward", "make_durable", "state_dict", "load_state_dict"])
    def test_are_given_up_when_patience_ends(self, road: Road, ask: str) -> None:
        retries = Retries(first_delay=60.0, max_delay=60.0)  # beyond what is left of patience
        with patient_client(road, retries=retries) as client:
            model = create(client, patience=0.2)
            weights = model.state_dict()
            calls: dict[str, Callable[[], Any]] = {
                "forward": lambda: model.forward(spikes(0)).result(STUCK),
                "make_durable": lambda: model.make_durable().result(STUCK),
                "state_dict": model.state_dict,
                "load_state_dict": lambda: model.load_state_dict(weights),
            }
            road.down = 10**9
            ended = r"^a read after call 0 was given up after patience=0\.2 seconds of failures\. The last failure: "
            began = time.monotonic()
            with pytest.raises(APIConnectionError, match=ended):
                calls[ask]()
            assert time.monotonic() - began < 30
            assert 10**9 - road.down == 2  # one attempt, and one when patience ends
            road.down = 0

    def test_that_are_refused_say_nothing_of_patience(self, server: InProcessService) -> None:
        def change(request: httpx.Request) -> httpx.Response:
            return httpx.Response(403) if request.url.path.endswith("/forward") else server(request)

        with patient_client(httpx.MockTransport(change)) as client:
            with pytest.raises(ExodusError) as caught:
                create(client).forward(spikes(0)).result(STUCK)
            assert "patience" not in str(caught.value)


class TestPatience:
    def test_a_wait_is_no_longer_than_what_is_left_of_it(self, road: Road) -> None:
        with patient_client(road, retries=Retries(first_delay=60.0, max_delay=60.0)) as client:
            model = create(client, patience=0.2)
            road.down = 10**9
            with pytest.raises(APIConnectionError, match=r"training ended after patience=0\.2 seconds"):
                submit(model, "step", 1).result(30)
            road.down = 0

    def test_it_ends(self, road: Road) -> None:
        with patient_client(road, retries=Retries(first_delay=0.01, max_delay=0.01)) as client:
            model = create(client, patience=0.3)
            steps(model, 1)
            road.down = 10**9
            futures = [submit(model, "step", number) for number in range(6)]
            ended = r"training ended after patience=0\.3 seconds.*resync\(\) goes on.*no answer from http://node:8000"
            for future in futures:
                with pytest.raises(APIConnectionError, match=ended):
                    future.result(STUCK)
            with pytest.raises(APIConnectionError, match=ended):
                submit(model, "step", 1)
            road.down = 0
            model.resync()
            assert submit(model, "step", 1).result(STUCK).sequence == 2

    def test_a_server_may_ask_for_more_time_than_a_request_would_give_it(self, server: InProcessService) -> None:
        busy = [httpx.Response(503, headers={"Retry-After": "1"})]

        def change(request: httpx.Request) -> httpx.Response:
            return busy.pop() if busy and request.url.path.endswith("/step") else server(request)

        retries = Retries(first_delay=0.0, max_retry_after=0.5)
        with patient_client(httpx.MockTransport(change), retries=retries) as client:
            assert submit(create(client), "step", 1).result(STUCK).sequence == 1

    def test_closing_does_not_wait_for_it(self, road: Road) -> None:
        with patient_client(road, retries=Retries(first_delay=60.0, max_delay=60.0)) as client:
            model = create(client)
            road.down = 10**9
            futures = [submit(model, "step", number) for number in range(3)]
            until(lambda: road.down < 10**9)
            in_time(model.close)
            for future in futures:
                with pytest.raises(ModelClosedError):
                    future.result(0)

    def test_a_model_that_cannot_be_asked_about_is_asked_again(self, server: InProcessService) -> None:
        failures = [httpx.ReadError("reset")]
        answers = [httpx.Response(503), httpx.Response(200, json={"sequence": 0})]

        def change(request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/step") and failures:
                raise failures.pop()
            if request.method == "GET" and answers:
                return answers.pop(0)
            return server(request)

        with patient_client(httpx.MockTransport(change)) as client:
            model = create(client)
            assert submit(model, "step", 1).result(STUCK).sequence == 1
            assert not answers

    def test_an_answer_about_the_model_that_is_none_ends_the_training(self, server: InProcessService) -> None:
        def change(request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/step"):
                raise httpx.ReadError("reset")
            return httpx.Response(200, json=[]) if request.method == "GET" else server(request)

        with patient_client(httpx.MockTransport(change)) as client, pytest.raises(InvalidResponseError):
            submit(create(client), "step", 1).result(STUCK)


class TestOneCall:
    def test_whose_answer_is_not_kept_fails_and_counts(self, server: InProcessService) -> None:
        server.settings["answer_bytes"] = 0
        lose = True

        def change(request: httpx.Request) -> httpx.Response:
            nonlocal lose
            answer = server(request)
            if lose and request.url.path.endswith("/step"):
                lose = False
                raise httpx.ReadError("reset")
            return answer

        with patient_client(httpx.MockTransport(change)) as client:
            model = create(client)
            with pytest.raises(GoneError) as caught:
                submit(model, "step", 1).result(STUCK)
            assert caught.value.code == "answer_expired"
            assert model.forward(spikes(0)).result(STUCK).sequence == 1
            assert submit(model, "step", 1).result(STUCK).sequence == 2

    def test_an_empty_call_that_is_refused_ends_the_training(self, server: InProcessService) -> None:
        def change(request: httpx.Request) -> httpx.Response:
            if b"skip" in request.read():
                return httpx.Response(422, json={"code": "invalid", "detail": "skip: not known here"})
            return server(request)

        with patient_client(httpx.MockTransport(change)) as client:
            model = create(client)
            with pytest.raises(UnprocessableError, match="no_such_loss"):
                submit(model, "unknown_loss", 1).result(STUCK)
            with pytest.raises(UnprocessableError, match="skip: not known here"):
                model.forward(spikes(0)).result(STUCK)
            assert len(server.requests) < 10

    def test_that_fails_in_the_library_ends_alone(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        model = create(client)
        real = model._sender._exchange
        monkeypatch.setattr(model._sender, "_exchange", lambda path, body: 1 / 0)
        future = submit(model, "step", 1)
        with pytest.raises(ZeroDivisionError):
            future.result(STUCK)
        with pytest.raises(ExodusError, match="ZeroDivisionError"):  # so does the empty call in its place
            model.forward(spikes(0)).result(STUCK)
        monkeypatch.setattr(model._sender, "_exchange", real)

    def test_that_was_to_be_sent_while_the_model_is_closed_fails(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = create(client)

        def submit_late(*arguments: Any) -> None:
            model.close()
            raise RuntimeError("cannot schedule new futures after shutdown")

        monkeypatch.setattr(model._sender._pool, "submit", submit_late)
        with pytest.raises(ModelClosedError):
            submit(model, "step", 1).result(1)

    def test_made_when_no_thread_can_be_started_fails(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        model = create(client)

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            with pytest.raises(ExodusError, match="can't start new thread"):
                submit(model, "step", 1).result(STUCK)
        model.resync()
        assert submit(model, "step", 1).result(STUCK).sequence == 1

    def test_gap_that_names_no_number_is_an_error(self, server: InProcessService) -> None:
        gap = {"code": "sequence_gap", "retryable": False, "errors": [{"pointer": "", "expected": "more", "got": ""}]}
        answers = [httpx.Response(409, json=gap)]

        def change(request: httpx.Request) -> httpx.Response:
            return answers.pop() if answers and request.url.path.endswith("/step") else server(request)

        with patient_client(httpx.MockTransport(change)) as client:
            model = create(client)
            with pytest.raises(ConflictError):
                submit(model, "step", 1).result(STUCK)
            assert submit(model, "step", 1).result(STUCK).sequence == 2


class TestThreads:
    def test_one_connection_is_enough(self, server: InProcessService) -> None:
        at_once, most = 0, 0
        lock = threading.Lock()

        def count(request: httpx.Request) -> httpx.Response:
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            try:
                time.sleep(0.002)
                return server(request)
            finally:
                with lock:
                    at_once -= 1

        with patient_client(httpx.MockTransport(count), limits=Limits(max_in_flight=1)) as client:
            model = create(client)
            assert [future.result(STUCK).sequence for future in [submit(model, "step", 1) for _ in range(8)]] == [
                *range(1, 9)
            ]
        assert most == 1

    def test_many_threads_submit(self, client: Client, server: InProcessService) -> None:
        model = create(client, ahead=3)
        numbers: list[int] = []

        def train() -> None:
            numbers.extend(submit(model, "step", 1).result(STUCK).sequence for _ in range(20))

        threads = [threading.Thread(target=train) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(STUCK)
        assert sorted(numbers) == list(range(1, 121))

    @pytest.mark.parametrize("what", ["close", "resync"])
    def test_a_callback_may_end_the_training(self, client: Client, what: str) -> None:
        model = create(client)
        ended: list[int] = []

        def end(result: Any) -> None:
            if result.sequence == 2:
                getattr(model, what)()
                ended.append(result.sequence)

        model.callbacks.append(end)
        futures = [submit(model, "step", number) for number in range(2)]
        assert [future.result(STUCK).sequence for future in futures] == [1, 2]
        until(lambda: bool(ended))
        if what == "resync":
            assert submit(model, "step", 1).result(STUCK).sequence == 3
