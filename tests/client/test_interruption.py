"""Nothing waits for ever: programs that are interrupted, models that are closed, servers that do not save."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import httpx
import numpy as np
import pytest
from client.faults import Road, patient_client
from client.in_process_service import InProcessService

from exodus_client import (
    APIConnectionError,
    Client,
    InvalidResponseError,
    Limits,
    Model,
    ModelClosedError,
    StateLostError,
    _constants,
)
from exodus_client._gradients.result import Kind
from exodus_client._threads import DaemonThreadPool
from exodus_client._transport.sockets import SocketTransport, tcp

LAYERS = [{"kind": "linear", "in_features": 3, "out_features": 2}, {"kind": "lif", "alpha": 0.5}]
X = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
Y = np.array([0, 1])
LOSS = "max_over_time_ce"
SAVE = "POST", "/v1/models/m/save"


class InterruptedLoopError(Exception):
    """Ends a training loop."""


@pytest.fixture
def gate(server: InProcessService) -> Iterator[threading.Event]:
    """Until it is set, work on the server lasts."""
    gate = threading.Event()
    server.on_work = lambda id, sequence: wait(gate)
    yield gate
    gate.set()


def wait(event: threading.Event) -> None:
    assert event.wait(30), "waited in vain"


def create(client: Client, **options: Any) -> Model:
    return client.create_model(LAYERS, **({"optimizer": "sgd", "id": "m"} | options))


class TestLeavingByAnException:
    def test_fails_what_is_under_way_and_does_not_wait(self, server: InProcessService, gate: threading.Event) -> None:
        begun = threading.Event()
        server.on_work = lambda id, sequence: (begun.set(), wait(gate))  # type: ignore[func-returns-value]
        futures: list[Any] = []

        def loop() -> None:
            with patient_client(Road(server)) as client:
                model = create(client)
                futures.extend(model.step(X, Y, loss=LOSS) for _ in range(8))
                wait(begun)
                raise InterruptedLoopError

        with pytest.raises(InterruptedLoopError):
            loop()
        assert not gate.is_set()
        for future in futures:
            with pytest.raises(ModelClosedError):
                future.result(0)

    def test_ends_requests_on_sockets(self) -> None:
        reached = threading.Event()
        with contextlib.closing(silent(reached)) as listener:
            transport = SocketTransport(tcp("127.0.0.1", listener.getsockname()[1]), 2)
            raised: Future[Exception] = Future()

            def ask() -> None:
                try:
                    transport.handle_request(httpx.Request("GET", "http://node/"))
                except httpx.TransportError as error:
                    raised.set_result(error)

            threading.Thread(target=ask, daemon=True).start()
            wait(reached)
            transport.close()
            assert isinstance(raised.result(30), httpx.ReadError | httpx.RemoteProtocolError)

    def test_a_program_does_not_stay_for_a_server_that_is_down(self, client: Client, server: InProcessService) -> None:
        create(client)
        program = f"""
import httpx
from exodus_client import Client

down = []

def answer(request):
    if down:
        raise httpx.ConnectError("refused")
    return httpx.Response(201, json={{"v": 1, "params": {server.models["m"]!r}, "tensors": []}})

client = Client("http://node:8000", transport=httpx.MockTransport(answer))
model = client.create_model({LAYERS!r}, optimizer="sgd", id="m", patience=3600)
down.append(True)
model.optim_step()
raise SystemExit(7)
"""
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
        assert ended.returncode == 7, ended.stderr.decode()

    @pytest.mark.parametrize("interrupted", [True, False], ids=["Ctrl-C", "the end of the program"])
    @pytest.mark.parametrize("inside", [True, False], ids=["in a with", "without"])
    def test_a_program_does_not_stay_for_one_of_several_servers_that_never_answers(
        self, client: Client, server: InProcessService, interrupted: bool, inside: bool
    ) -> None:
        create(client)
        state = server(httpx.Request("GET", "http://node/v1/models/m/state")).content
        program = f"""
import contextlib, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
import httpx
from exodus_client import Client, ShardedClient

asked = threading.Event()

def answer(request):
    made = {server.models["m"]!r} | dict(id="m-0" if request.url.host == "a" else "m-1")
    if request.method == "GET":
        return httpx.Response(200, content={state!r})
    if request.url.path == "/v1/models":
        return httpx.Response(201, json={{"v": 1, "params": made, "tensors": []}})
    if request.url.host == "b":
        asked.set()
        threading.Event().wait()
    return httpx.Response(503)

client = ShardedClient(["http://a", "http://b"], transport=httpx.MockTransport(answer))
with client if {inside} else contextlib.nullcontext():
    model = client.create_model({LAYERS!r}, optimizer="sgd", id="m")
    future = model.step({X.tolist()!r}, {Y.tolist()!r}, loss={LOSS!r})
    asked.wait()
    print("waiting", flush=True)
    if {interrupted}:
        future.result()
    raise SystemExit(7)
"""
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as started:
            try:
                assert started.stdout is not None
                assert started.stdout.readline() == "waiting\n"
                if interrupted:
                    started.send_signal(signal.SIGINT)
                _, errors = started.communicate(timeout=10)
            finally:
                started.kill()
        assert errors.strip().endswith("KeyboardInterrupt") if interrupted else started.returncode == 7, errors


class TestForkedProcesses:
    def test_leave_a_client_without_waiting_for_threads_that_they_do_not_have(self, server: InProcessService) -> None:
        with patient_client(Road(server)) as client:
            model = create(client)
            model.step(X, Y, loss=LOSS).result(30)  # its thread is there for a while
            model.forward(X).result(30)
            child = os.fork()
            if not child:
                signal.alarm(30)
                refused = 0
                for ask in (model.state_dict, model.resync, lambda: model.step(X, Y, loss=LOSS)):
                    try:
                        ask()
                    except RuntimeError as error:
                        refused += "made before the fork" in str(error)
                model.close()
                client.close()
                os._exit(refused)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
            assert model.step(X, Y, loss=LOSS).result(30).sequence == 2

    def test_leave_the_connections_of_the_first_alone(self) -> None:
        reached = threading.Event()
        with contextlib.closing(silent(reached)) as listener:
            client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", retries=0)
            future = client.connection.submit(client.capabilities)
            wait(reached)
            child = os.fork()
            if not child:
                client.close()
                os._exit(0)
            os.waitpid(child, 0)
            with pytest.raises(TimeoutError):
                future.result(0.1)
            client.close(wait=False)
            with pytest.raises(APIConnectionError):
                future.result(30)


class TestClosing:
    def test_does_not_ask_on_for_a_call_that_lasts(self, client: Client, server: InProcessService) -> None:
        server.pending = 10**9
        model = create(client)
        with server.busy():
            future = model.step(X, Y, loss=LOSS)
            server.wait_for_requests(lambda: server.requests[-1][1].startswith("/v1/requests/"))
            closing = threading.Thread(target=model.close)
            closing.start()
            closing.join(30)
            assert not closing.is_alive()
            with pytest.raises(ModelClosedError):
                future.result(0)

    def test_fails_a_call_that_no_thread_has_taken(self, client: Client) -> None:
        model = create(client)
        gate, busy = threading.Event(), threading.Barrier(_constants.CALLS_UNDER_WAY + 1)
        for _ in range(_constants.CALLS_UNDER_WAY):
            model._sender._pool.submit(lambda: (busy.wait(30), wait(gate)))  # type: ignore[func-returns-value]
        busy.wait(30)
        future = model.step(X, Y, loss=LOSS)
        closing = threading.Thread(target=model.close)
        closing.start()
        with pytest.raises(ModelClosedError):
            future.result(30)
        gate.set()
        closing.join(30)


class TestAnswersThatCannotBeTaken:
    def test_what_reading_raises_is_raised_and_the_call_counts(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = create(client)
        with monkeypatch.context() as patched:
            patched.setattr(Kind, "array", lambda kind, tensor: 1 / 0)  # as a device that is full does
            with pytest.raises(ZeroDivisionError):
                model.step(X, Y, loss=LOSS, gradients=True).result(30)
        model.forward(X).result(30)  # all is done
        assert model.step(X, Y, loss=LOSS).result(30).sequence == 2

    def test_outputs_that_are_too_large_fail_that_call_alone(self, server: InProcessService) -> None:
        with patient_client(Road(server), limits=Limits(max_response_bytes=4000)) as client:
            model = create(client)
            future = model.step(np.ones((2, 1000, 3), np.float32), loss=lambda outputs: outputs.sum())
            after = model.step(X, Y, loss=LOSS)
            with pytest.raises(InvalidResponseError, match="max_response_bytes"):
                future.result(30)
            assert after.result(30).sequence == 2
            assert len(server.done) == 2  # of which the first is empty


class TestAServerThatDoesNotSave:
    def test_fills_no_memory(
        self,
        client: Client,
        server: InProcessService,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        model = create(client)
        server.full = True
        model.step(X, Y, loss=LOSS).result(30)
        size = model._calls.nbytes
        most = 5 * size
        monkeypatch.setattr(_constants, "MAX_KEPT_BYTES", most)
        for _ in range(50):
            model.step(X, Y, loss=LOSS).result(30)
            assert model._calls.nbytes <= 2 * most + size
        model.close()
        assert server.requests.count(SAVE) == 1
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
        assert "calls from 1 on would be lost" in caplog.text

    def test_is_asked_again_after_a_while(
        self, client: Client, server: InProcessService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_constants, "MAX_KEPT_BYTES", 0)
        monkeypatch.setattr(_constants, "SAVE_AGAIN", 0.0)
        model = create(client)
        server.full = True
        for _ in range(30):
            model.step(X, Y, loss=LOSS).result(30)
        model.close()
        assert server.requests.count(SAVE) > 3

    def test_and_then_loses_its_state_cannot_be_helped(
        self, client: Client, server: InProcessService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_constants, "MAX_KEPT_BYTES", 0)
        model = create(client)
        server.full = True
        for _ in range(3):
            model.step(X, Y, loss=LOSS).result(30)
        server.crash()
        with pytest.raises(StateLostError, match="the server has done 0 calls, and this handle keeps those from"):
            model.step(X, Y, loss=LOSS).result(30)


class TestLanes:
    @pytest.fixture
    def pool(self) -> Iterator[DaemonThreadPool]:
        pool = DaemonThreadPool(2, "test")
        yield pool
        pool.close()

    def test_run_what_is_submitted(self, pool: DaemonThreadPool) -> None:
        assert [pool.submit(lambda n=n: n).result(30) for n in range(5)] == list(range(5))  # type: ignore[misc]

    def test_run_as_much_at_a_time_as_there_are(self, pool: DaemonThreadPool) -> None:
        together = threading.Barrier(2)
        futures = [pool.submit(lambda: together.wait(30)) for _ in range(2)]
        assert {future.result(30) for future in futures} == {0, 1}
        gate = threading.Event()
        blocked = [pool.submit(lambda: wait(gate)) for _ in range(2)]
        third = pool.submit(lambda: 3)
        with pytest.raises(TimeoutError):
            third.result(0.05)
        gate.set()
        assert third.result(30) == 3
        assert [future.result(30) for future in blocked] == [None, None]

    @pytest.mark.parametrize("error", [ValueError, SystemExit])
    def test_pass_errors_on_and_stay(self, pool: DaemonThreadPool, error: type[BaseException]) -> None:
        def fail() -> None:
            raise error("no")

        for _ in range(3):
            with pytest.raises(error, match="no"):
                pool.submit(fail).result(30)

    def test_do_not_run_what_was_cancelled(self, pool: DaemonThreadPool) -> None:
        gate, ran = threading.Event(), threading.Event()
        blocked = [pool.submit(lambda: wait(gate)) for _ in range(2)]
        future = pool.submit(ran.set)
        assert future.cancel()
        gate.set()
        for each in blocked:
            each.result(30)
        pool.submit(lambda: None).result(30)
        assert not ran.is_set()

    def test_end_when_they_are_idle_and_start_again(
        self, pool: DaemonThreadPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_constants, "KEEP_IDLE", 0.0)
        first = pool.submit(threading.current_thread).result(30)
        first.join(30)
        assert not first.is_alive()
        assert pool.submit(lambda: 1).result(30) == 1

    def test_drop_what_was_not_begun(self, pool: DaemonThreadPool) -> None:
        gate = threading.Event()
        blocked = [pool.submit(lambda: wait(gate)) for _ in range(2)]
        dropped = pool.submit(lambda: None)
        pool.close(wait=False)
        with pytest.raises(CancelledError):
            dropped.result(0)
        gate.set()
        pool.close()
        assert all(future.done() for future in blocked)
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(lambda: None)

    @pytest.mark.parametrize("are_there", [True, False])
    def test_do_without_threads_that_cannot_be_started(
        self, pool: DaemonThreadPool, monkeypatch: pytest.MonkeyPatch, are_there: bool
    ) -> None:
        gate, begun = threading.Event(), threading.Event()
        if are_there:
            pool.submit(lambda: (begun.set(), wait(gate)))  # type: ignore[func-returns-value]
            wait(begun)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", fail_to_start)
            if are_there:
                late = pool.submit(lambda: 1)
                gate.set()
                assert late.result(30) == 1
            else:
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    pool.submit(lambda: 1)
        assert pool.submit(lambda: 2).result(30) == 2
        closing = threading.Thread(target=pool.close, daemon=True)
        closing.start()
        closing.join(30)
        assert not closing.is_alive()

    def test_of_the_process_before_a_fork_are_not_waited_for(
        self, pool: DaemonThreadPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate = threading.Event()
        there = pool.submit(lambda: wait(gate))
        with monkeypatch.context() as forked:
            forked.setattr("os.getpid", lambda: -1)
            pool.close()
        assert not there.done()
        gate.set()
        there.result(30)

    def test_can_be_closed_from_within(self, pool: DaemonThreadPool) -> None:
        assert pool.submit(pool.close).result(30) is None


def fail_to_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def silent(reached: threading.Event) -> socket.socket:
    """A server that takes a connection, reads, and says nothing."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            reached.set()
            connection.recv(65536)  # until the client hangs up

    threading.Thread(target=serve, daemon=True).start()
    return listener
