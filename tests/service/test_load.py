"""How the service behaves with many clients, slow clients and clients that leave."""

import gc
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from service.conftest import Caller, Served

import exodus_core
from exodus_client.wire import MSGPACK_TYPE, Message, encode
from exodus_service.compute.scheduler import DeadlineError, QueueFullError, Scheduler

LIF = {"model": "lif", "alpha": 0.9}


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler("test", max_requests=3, max_bytes=100)
    yield scheduler
    scheduler.close()


@pytest.fixture
def hold(scheduler: Scheduler) -> Iterator[threading.Event]:
    """Occupies the thread of the scheduler until the event is set."""
    release = threading.Event()
    scheduler.execute(release.wait)
    yield release
    release.set()


def head(body: bytes, **headers: object) -> bytes:
    lines = [
        "POST /v1/gradients/exodus HTTP/1.1",
        "Host: test",
        f"Content-Type: {MSGPACK_TYPE}",
        f"Content-Length: {len(body)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def body_of(message: Message) -> bytes:
    return b"".join(encode(message).chunks)


def status_of(connection: socket.socket) -> int:
    return int(connection.makefile("rb").readline().split()[1])


def test_the_scheduler_admits_within_both_of_its_bounds(scheduler: Scheduler) -> None:
    with scheduler.admit(500), pytest.raises(QueueFullError, match="500 bytes are admitted"):
        scheduler.admit(1)
    with (
        scheduler.admit(60),
        scheduler.admit(40),
        scheduler.admit(0),
        pytest.raises(QueueFullError, match="3 requests"),
    ):
        scheduler.admit(0)
    assert (scheduler.requests, scheduler.bytes) == (0, 0)


def test_what_a_request_grows_to_is_admitted_as_a_request_is(scheduler: Scheduler) -> None:
    with scheduler.admit(10) as alone:
        alone.reserve(500)  # whatever it is
        alone.reserve(40)
        with scheduler.admit(20) as other:
            with pytest.raises(QueueFullError, match="60 bytes are admitted, 41 more would exceed the limit of 100"):
                other.reserve(61)
            assert scheduler.bytes == 60
            other.reserve(60)
            alone.reserve(5)
            assert scheduler.bytes == 65
    assert (scheduler.requests, scheduler.bytes) == (0, 0)
    other.reserve(1000)  # by a thread that goes on after its request was left
    assert (scheduler.requests, scheduler.bytes) == (0, 0)


def test_results_that_have_left_their_places_are_within_the_bound_too(scheduler: Scheduler) -> None:
    with scheduler.admit(10) as kept:
        kept.resize(150)
        kept.give_up_place()
        with pytest.raises(QueueFullError):
            scheduler.admit(1)
        kept.resize(90)
        with scheduler.admit(500):  # it is the only request
            assert scheduler.bytes == 590


def test_work_is_done_in_the_order_of_submission_on_one_thread(scheduler: Scheduler) -> None:
    done: list[tuple[str, str]] = []
    with scheduler.admit(0) as first, scheduler.admit(0) as second:
        futures = [
            slot.submit(partial(lambda name: done.append((name, threading.current_thread().name)), name))
            for name, slot in (("first", first), ("second", second))
        ]
        for future in futures:
            future.result(timeout=5)
    assert [name for name, _ in done] == ["first", "second"]
    assert {thread for _, thread in done} == {"test_0"}


def test_work_past_its_deadline_is_not_done(scheduler: Scheduler, hold: threading.Event) -> None:
    done: list[int] = []
    with scheduler.admit(0) as slot:
        future = slot.submit(lambda: done.append(1), time.monotonic() + 0.01)
        time.sleep(0.02)
        hold.set()
        with pytest.raises(DeadlineError):
            future.result(timeout=5)
    assert not done


def test_withdrawn_work_frees_what_it_holds_while_other_work_runs(scheduler: Scheduler, hold: threading.Event) -> None:
    class Body:
        pass

    body = Body()
    freed = weakref.ref(body)
    with scheduler.admit(50) as slot:
        future = slot.submit(partial(lambda body: body, body))
        del body
        assert freed() is not None
    assert future.cancelled()
    gc.collect()
    assert freed() is None
    assert (scheduler.requests, scheduler.bytes) == (0, 0)


def test_work_that_runs_stays_in_the_accounts_until_it_ends(scheduler: Scheduler, until: Callable[..., None]) -> None:
    started, release = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        release.wait()

    with scheduler.admit(50) as slot:
        slot.submit(work)
        started.wait()
    assert (scheduler.requests, scheduler.bytes) == (1, 50)
    release.set()
    until(lambda: (scheduler.requests, scheduler.bytes) == (0, 0))


def test_many_clients_at_once_each_get_their_own_result(running: Served, ask: Callable[..., Message]) -> None:
    def one(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (1 + seed % 3, 20 + seed, 7)
        membrane, grad_output = torch.rand((2, *shape), generator=generator).unbind()
        caller = running.new_caller()
        for method in ("exodus", "slayer"):
            expected = exodus_core.lif_gradient(membrane, grad_output, 0.9, method=method).input
            for _ in range(5):
                answer = caller.gradients(ask(LIF, membrane=membrane, grad_output=grad_output), method)
                assert torch.equal(answer.tensor("grad_input"), expected)
        caller.connection.close()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(32)))
    assert running.engine.scheduler.requests == 0


def test_probes_are_answered_while_a_long_gradient_is_computed(running: Served, caller: Caller, slow: Message) -> None:
    waits = []
    with ThreadPoolExecutor(1) as pool:
        prober = running.new_caller()
        computed = pool.submit(caller.gradients, slow)
        while not computed.done():
            began = time.monotonic()
            assert prober.call("GET", "/livez").status == 200
            waits.append(time.monotonic() - began)
            time.sleep(0.005)
        prober.connection.close()
    assert computed.result().status == 200
    kernel = dict(part.split(";dur=") for part in computed.result().headers["server-timing"].split(", "))["kernel"]
    assert float(kernel) > 100
    assert sorted(waits)[len(waits) // 2] < 0.05


def test_the_body_bytes_of_all_requests_are_bounded(
    serve: Callable[..., Served], good: Message, until: Callable[..., None]
) -> None:
    body = body_of(good)
    service = serve(max_queue_bytes=len(body) + 10)
    with service.busy(), service.raw() as waiting:
        waiting.sendall(head(body) + body)
        until(lambda: service.engine.scheduler.bytes == len(body))
        answer = service.caller.gradients(good)
        assert answer.problem["code"] == "queue_full"
        assert f"{len(body)} bytes are admitted" in answer.problem["detail"]
    until(lambda: service.engine.scheduler.requests == 0)
    assert service.caller.gradients(good).status == 200


def test_work_of_a_client_that_left_is_never_computed(
    running: Served,
    caller: Caller,
    good: Message,
    until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "exodus_service.http.auth")
    computed: list[int] = []
    body = body_of(good)
    with running.busy(), monkeypatch.context() as patch:
        patch.setattr("exodus_service.gradients.request.prepare", lambda *_args, **_more: computed.append(1))
        with running.raw() as leaving:
            leaving.sendall(head(body) + body)
            until(lambda: running.engine.scheduler.requests == 1)
        until(lambda: running.engine.scheduler.requests == 0)
    running.engine.scheduler.execute(lambda: None).result()
    assert not computed
    assert [vars(record)["fields"]["status"] for record in caplog.records] == [499]
    assert caller.gradients(good).status == 200


def test_a_client_that_leaves_while_it_uploads_gives_its_place_back(
    running: Served, good: Message, until: Callable[..., None]
) -> None:
    body = body_of(good)
    with running.raw() as leaving:
        leaving.sendall(head(body) + body[:100])
        until(lambda: running.engine.scheduler.bytes == len(body))
    until(lambda: running.engine.scheduler.requests == 0)


def test_408_for_a_body_that_stalls(serve: Callable[..., Served], good: Message, until: Callable[..., None]) -> None:
    service = serve(stall_timeout_s=0.1)
    body = body_of(good)
    with service.raw() as stalling:
        stalling.sendall(head(body) + body[:100])
        answer = stalling.makefile("rb").read()  # to the end: the connection is closed
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"body_timeout"' in answer
    assert service.engine.scheduler.requests == 0
    assert service.caller.gradients(good).status == 200


def test_408_for_a_body_that_drips(serve: Callable[..., Served], good: Message) -> None:
    body = body_of(good)
    service = serve(stall_timeout_s=0.2, min_upload_rate=len(body) * 5)
    with service.raw() as dripping:
        dripping.sendall(head(body))
        began = time.monotonic()
        dripping.settimeout(0.05)
        for place in range(len(body)):
            dripping.sendall(body[place : place + 1])
            try:
                answer = dripping.recv(100)
                break
            except TimeoutError:
                pass
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 2


def test_the_deadline_holds_while_the_body_is_read(running: Served, good: Message) -> None:
    body = body_of(good)
    with running.raw() as slow:
        slow.sendall(head(body, X_Deadline_Ms=50) + body[:100])
        assert status_of(slow) == 504


def test_a_client_that_does_not_take_its_result_gives_its_place_back(
    serve: Callable[..., Served],
    ask: Callable[..., Message],
    good: Message,
    until: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = serve(stall_timeout_s=0.2, min_download_rate=10**9)
    body = body_of(ask(LIF, membrane=torch.rand(64, 64, 1024), grad_output=torch.rand(64, 64, 1024)))
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", service.port))
        lazy.sendall(head(body) + body)
        until(lambda: service.engine.scheduler.requests == 1)
        until(lambda: service.engine.scheduler.requests == 0)
        until(lambda: "the client received" in caplog.text)
    assert service.caller.gradients(good).status == 200


def test_requests_sent_ahead_on_one_connection_are_answered_in_order(
    running: Served, good: Message, ask: Callable[..., Message]
) -> None:
    bad = body_of(ask(LIF, membrane=torch.rand(2, 5, 3)))
    body = body_of(good)
    with running.raw() as eager:
        eager.sendall(head(body) + body + head(bad) + bad + head(body, Connection="close") + body)
        answers = eager.makefile("rb").read()
    statuses = [part.split()[0] for part in answers.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"422", b"200"]


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_the_number_of_requests(caller: Caller, ask: Callable[..., Message]) -> None:
    request = ask(LIF, membrane=torch.rand(8, 32, 1024), grad_output=torch.rand(8, 32, 1024))
    broken = ask(LIF, membrane=torch.rand(8, 32, 1024))

    def round_trips(count: int) -> None:
        for _ in range(count):
            assert caller.gradients(request).status == 200
            assert caller.gradients(broken).status == 422
        gc.collect()

    round_trips(30)
    before = resident_bytes()
    round_trips(150)
    assert resident_bytes() - before < 32 * 2**20


def test_results_that_nobody_takes_fill_the_queue(
    serve: Callable[..., Served], ask: Callable[..., Message], good: Message, until: Callable[..., None]
) -> None:
    body = body_of(ask(LIF, spikes=torch.zeros(1, 4000, 1), weight=torch.zeros(500, 1), return_=["membrane"]))
    service = serve(max_queue_bytes=len(body) + 1_000_000)
    scheduler = service.engine.scheduler
    with socket.socket() as lazy, service.raw() as behind:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", service.port))
        with service.busy():
            lazy.sendall(head(body) + body)
            until(lambda: scheduler.requests == 1)
            small = body_of(good)
            behind.sendall(head(small) + small)
            until(lambda: scheduler.requests == 2)
        assert status_of(behind) == 429  # was admitted, and computed nothing
        assert scheduler.bytes > 8_000_000  # a result of 8 MB for a request of 18 kB
        answer = service.caller.gradients(good)
        assert answer.problem["code"] == "queue_full"
    until(lambda: (scheduler.requests, scheduler.bytes) == (0, 0))
    assert service.caller.gradients(good).status == 200


def test_a_large_result_is_served_to_who_is_alone(serve: Callable[..., Served], ask: Callable[..., Message]) -> None:
    request = ask(LIF, spikes=torch.zeros(1, 4000, 1), weight=torch.zeros(500, 1), return_=["membrane"])
    service = serve(max_queue_bytes=20_000)
    for _ in range(3):
        assert service.caller.gradients(request).status == 200
    assert service.engine.scheduler.bytes == 0
