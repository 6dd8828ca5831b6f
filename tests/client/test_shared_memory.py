"""Shared memory from the client's side: a service whose HTTP is faked and whose segments are real."""

import contextlib
import logging
import mmap
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from client.conftest import Handler

from exodus_client import LIF, APIConnectionError, Client, GoneError, InvalidResponseError, Limits, Retries, Timeout
from exodus_client.wire import (
    MSGPACK_TYPE,
    SEGMENT_GREETING,
    SEGMENT_TYPE,
    Reference,
    Span,
    WireError,
    read_reference,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shared memory is for Linux")

RNG = np.random.default_rng(0)
U, G = RNG.standard_normal((2, 2, 50, 200), np.float32)
SMALL = np.ones((1, 2, 3), np.float32)


class SegmentServer:
    """Takes segments on an abstract socket. `refusal` is said in place of a token; "" hangs up."""

    def __init__(self) -> None:
        self.name = f"exodus-{secrets.token_hex(16)}"
        self.refusal: str | None = None
        self.segments: dict[str, mmap.mmap] = {}
        self.gone = 0
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(f"\0{self.name}")
        self._listener.listen()
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._talk, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            greeting, descriptors, _, _ = socket.recv_fds(connection, 64, 1)
            for descriptor in descriptors:
                token = secrets.token_hex(16)
                if self.refusal is None and greeting == SEGMENT_GREETING:
                    self.segments[token] = mmap.mmap(descriptor, 0)
                    connection.send(f"ok {token}".encode())
                elif self.refusal:
                    connection.send(self.refusal.encode())
                os.close(descriptor)
            if self.refusal is None:
                connection.recv(1)
                self.gone += 1

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)


@pytest.fixture
def segments() -> Iterator[SegmentServer]:
    server = SegmentServer()
    yield server
    server.close()


@pytest.fixture
def shared(service: Any, segments: SegmentServer) -> Any:
    """The fake service, which finds bodies and places answers in segments; `shared.references` are what came."""
    compute: Handler = service.handler
    service.references, service.named = [], httpx.Response(200, json={"socket": segments.name})
    service.place = lambda reference, body: Span(reference.answer.offset, len(body))

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/shared-memory":
            return httpx.Response(service.named.status_code, content=service.named.content)
        if request.headers["Content-Type"] != SEGMENT_TYPE:
            service.references.append(None)
            return compute(request)
        reference = read_reference(request.content)
        service.references.append(reference)
        memory = segments.segments.get(reference.segment)
        if memory is None:
            return httpx.Response(410, json={"code": "segment_gone", "detail": "there is no such segment"})
        body = memory[reference.body.offset : reference.body.end]
        answer = compute(httpx.Request("POST", request.url, content=body, headers={"Content-Type": MSGPACK_TYPE}))
        where = service.place(reference, answer.content)
        if where is None:
            return answer
        memory[where.offset : where.offset + len(answer.content)] = answer.content
        content = Reference(reference.segment, where).encode()
        timing = {"Server-Timing": answer.headers["Server-Timing"], "Content-Type": SEGMENT_TYPE}
        return httpx.Response(200, content=content, headers=timing)

    service.handler = handler
    return service


def ask(client: Client, scale: float = 1.0, **more: Any) -> Any:
    return client.gradients(neuron=LIF(0.9), membrane=U, grad_output=G * np.float32(scale), **more)


def paths(service: Any) -> list[str]:
    return [request.url.path for request in service.requests]


def test_a_large_request_goes_through_memory_and_a_small_one_does_not(shared: Any, service: Any) -> None:
    client, plain = shared.client(shared_memory=True), shared.client()
    np.testing.assert_array_equal(ask(client).grad_input, ask(plain).grad_input)
    client.gradients(neuron=LIF(0.9), membrane=SMALL, grad_output=SMALL)
    client.gradients(neuron=LIF(0.9), membrane=U[:1, :, :60], grad_output=G[:1, :, :60], form="inline")
    kinds = [request.headers.get("Content-Type") for request in service.requests[1:]]
    assert kinds == [SEGMENT_TYPE, MSGPACK_TYPE, MSGPACK_TYPE, MSGPACK_TYPE]


def test_a_segment_is_used_again_once_its_result_is_gone(shared: Any, segments: SegmentServer) -> None:
    client = shared.client(shared_memory=True)
    for scale in (1, 2, 3):
        assert np.isfinite(ask(client, scale).grad_input).all()
    assert len(segments.segments) == 1
    first, second = ask(client, 1.0), ask(client, 2.0)
    np.testing.assert_allclose(second.grad_input, 2 * first.grad_input, rtol=1e-5, atol=1e-6)
    assert len(segments.segments) == 2
    assert paths(shared).count("/v1/shared-memory") == 1


def test_close_drops_all_segments_those_in_use_with_their_last_array(shared: Any, segments: SegmentServer) -> None:
    client = shared.client(shared_memory=True)
    kept, dropped = ask(client), ask(client)
    del dropped
    client.close()
    wait_for(lambda: segments.gone == 1)
    assert kept.grad_input.shape == U.shape
    del kept
    wait_for(lambda: segments.gone == 2)


def test_no_more_segments_are_kept_than_requests_may_be_under_way(shared: Any, segments: SegmentServer) -> None:
    client = shared.client(shared_memory=True, limits=Limits(max_in_flight=2))
    results = [ask(client) for _ in range(5)]
    del results
    ask(client)
    wait_for(lambda: segments.gone == 3)


def test_a_segment_that_is_too_small_gives_way(shared: Any, segments: SegmentServer) -> None:
    client = shared.client(shared_memory=True)
    ask(client)
    large = np.ones((8, 100, 200), np.float32)
    client.gradients(neuron=LIF(0.9), membrane=large, grad_output=large)
    wait_for(lambda: segments.gone == 1)
    assert [len(memory) for memory in segments.segments.values()] == [1 << 20, 1 << 22]


def test_room_for_an_answer_is_made_after_one_that_did_not_fit(shared: Any, segments: SegmentServer) -> None:
    client = shared.client(shared_memory=True)
    spikes, weight = np.ones((8, 100, 64), np.uint8), np.ones((512, 64), np.float32)
    shared.place = lambda reference, body: (
        Span(reference.answer.offset, len(body)) if len(body) <= reference.answer.nbytes else None
    )
    for _ in range(2):
        client.gradients(neuron=LIF(0.9), spikes=spikes, weight=weight, return_=("membrane",))
    assert [len(memory) for memory in segments.segments.values()] == [1 << 20, 1 << 21]


def test_another_attempt_takes_another_segment(shared: Any, segments: SegmentServer) -> None:
    client = shared.client(shared_memory=True)
    ask(client)
    shared.answers = [httpx.ReadTimeout("slow"), httpx.ReadError("reset")]
    ask(client)
    assert len({reference.segment for reference in shared.references}) == 2  # two attempts never got as far
    wait_for(lambda: segments.gone == 2)
    assert len(shared.waits) == 2


def test_a_failure_costs_the_segment(shared: Any, segments: SegmentServer) -> None:
    client = shared.client(shared_memory=True, retries=0)
    shared.answers = [shared.named, httpx.ReadTimeout("slow")]
    with pytest.raises(APIConnectionError):
        ask(client)
    wait_for(lambda: segments.gone == 1)


def test_a_service_that_was_replaced_gets_new_segments(shared: Any, segments: SegmentServer) -> None:
    client = shared.client(shared_memory=True)
    kept, idle = ask(client), ask(client)
    del idle
    other = SegmentServer()
    try:
        segments.segments = other.segments  # what the new service knows
        shared.named = httpx.Response(200, json={"socket": other.name})
        np.testing.assert_array_equal(ask(client).grad_input, kept.grad_input)
        assert len(other.segments) == 1
        wait_for(lambda: segments.gone == 1)
        del kept
        ask(client)  # in the segment of before; that of `kept` is unknown, and dropped
        assert len(other.segments) == 1
        wait_for(lambda: segments.gone == 2)
        client.close()
    finally:
        other.close()


@pytest.mark.parametrize("total", [None, 2.0, 60.0])
def test_a_service_that_does_not_take_a_segment_is_waited_for_within_the_total_time(
    shared: Any, monkeypatch: pytest.MonkeyPatch, total: float | None
) -> None:
    given: list[float] = []

    def silent(socket_name: str, memory: int, timeout: float) -> Any:
        given.append(timeout)
        raise TimeoutError("silent")

    monkeypatch.setattr("exodus_client._transport.shared_memory._hand_over", silent)
    client = shared.client(shared_memory=True, timeout=Timeout(total=total))
    assert ask(client).grad_input.shape == U.shape  # bytes were sent
    assert 0 < given[0] <= (2.0 if total == 2.0 else 5.0)


def test_what_else_is_gone_is_an_error(shared: Any) -> None:
    shared.answers = [shared.named, httpx.Response(410, json={"code": "expired"})]
    with pytest.raises(GoneError):
        ask(shared.client(shared_memory=True))


class TestFallback:
    """Bytes are sent, the result is the same, and the log says why, once."""

    @pytest.fixture(autouse=True)
    def _log(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, "exodus_client")
        self.log = caplog

    def falls_back(self, service: Any, reason: str, times_asked: int) -> None:
        client = service.client(shared_memory=True)
        for _ in range(3):
            assert ask(client).grad_input.shape == U.shape
        assert service.references == [None] * 3
        assert self.log.text.count("shared memory is not used, bytes are sent") == 1
        assert reason in self.log.text
        assert paths(service).count("/v1/shared-memory") == times_asked

    def test_where_the_service_has_it_off(self, shared: Any) -> None:
        shared.named = httpx.Response(404, json={"detail": "it is off"})
        self.falls_back(shared, "it is off", 1)

    def test_where_the_service_names_a_socket_that_is_not_its_own(self, shared: Any) -> None:
        shared.named = httpx.Response(200, json={"socket": "/run/dbus/socket"})
        self.falls_back(shared, "names the socket '/run/dbus/socket'", 1)

    @pytest.mark.parametrize("content", [b"[]", b"{}", b"{"])
    def test_where_the_answer_is_no_name(self, shared: Any, content: bytes) -> None:
        shared.named = httpx.Response(200, content=content)
        self.falls_back(shared, "Error: ", 1)

    def test_where_the_service_is_on_another_machine(self, shared: Any) -> None:
        shared.named = httpx.Response(200, json={"socket": f"exodus-{'0' * 32}"})
        self.falls_back(shared, "ConnectionRefusedError", 1)

    def test_where_the_socket_is_another_users(self, shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("exodus_client._transport.shared_memory.os.geteuid", lambda: 12345)
        self.falls_back(shared, "the client to 12345", 1)

    @pytest.mark.parametrize(("words", "reason"), [("no room", "bytes are sent: room"), ("", "the service hung up")])
    def test_where_the_service_does_not_take_it(
        self, shared: Any, segments: SegmentServer, words: str, reason: str
    ) -> None:
        segments.refusal = words
        self.falls_back(shared, reason, 1)

    def test_where_the_system_has_no_memfd(self, shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr("exodus_client._transport.shared_memory.os.memfd_create")
        self.falls_back(shared, "AttributeError", 1)

    def test_and_compressed_where_that_is_wanted(self, shared: Any) -> None:
        shared.named = httpx.Response(404, json={"detail": "it is off"})
        assert ask(shared.client(shared_memory=True, compress=True)).grad_input.shape == U.shape
        assert shared.requests[-1].headers["Content-Encoding"] == "zstd"

    def test_in_the_middle_of_retries(self, shared: Any, segments: SegmentServer) -> None:
        def refuse(seconds: float) -> None:
            segments.refusal = "no more"

        client = shared.client(shared_memory=True, retries=Retries(sleep=refuse))
        shared.answers = [shared.named, httpx.ReadError("reset")]
        assert ask(client).grad_input.shape == U.shape
        assert shared.references == [None]


@pytest.mark.parametrize("end", [0, 1 << 30])
def test_an_answer_outside_of_the_segment_is_refused(shared: Any, end: int) -> None:
    shared.place = lambda reference, body: Span(reference.answer.offset, (reference.answer.nbytes + 1) or end)
    with pytest.raises(InvalidResponseError, match="of a segment of 1048576"):
        ask(shared.client(shared_memory=True))


def test_an_answer_over_the_limit_is_refused(shared: Any) -> None:
    with pytest.raises(InvalidResponseError, match=r"Limits.max_response_bytes is 1000"):
        ask(shared.client(shared_memory=True, limits=Limits(max_response_bytes=1000)))


def test_an_answer_that_is_no_reference_is_refused(shared: Any) -> None:
    shared.answers = [shared.named, httpx.Response(200, content=b"{}", headers={"Content-Type": SEGMENT_TYPE})]
    with pytest.raises(InvalidResponseError, match="members of the reference must be v, segment"):
        ask(shared.client(shared_memory=True))


def test_a_forked_process_is_refused(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = shared.client(shared_memory=True)
    result = ask(client)
    process = os.getpid()
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="made before the fork"):
        ask(client)
    monkeypatch.setattr("os.getpid", lambda: process)
    assert result.grad_input.shape == U.shape


class TestReference:
    def test_it_is_read_as_it_was_written(self) -> None:
        for reference in (Reference("a" * 32, Span(0, 7), Span(64, 100)), Reference("0" * 32, Span(128, 0))):
            assert read_reference(reference.encode()) == reference

    @pytest.mark.parametrize(
        ("changes", "code", "pointer"),
        [
            ({"v": 2}, "unsupported", "/v"),
            ({"segment": "../etc/passwd"}, "malformed", "/segment"),
            ({"segment": 5}, "malformed", "/segment"),
            ({"extra": 1}, "malformed", ""),
            ({"body": 5}, "malformed", "/body"),
            ({"body": {"offset": 0}}, "malformed", "/body"),
            ({"body": {"offset": 0, "nbytes": -1}}, "malformed", "/body/nbytes"),
            ({"body": {"offset": 0, "nbytes": True}}, "malformed", "/body/nbytes"),
            ({"body": {"offset": 0, "nbytes": 1.5}}, "malformed", "/body/nbytes"),
            ({"body": {"offset": 32, "nbytes": 1}}, "malformed", "/body/offset"),
            ({"answer": {"offset": 0, "nbytes": 64}}, "mismatch", "/answer"),
        ],
    )
    def test_what_does_not_fit_is_refused_with_its_place(
        self, changes: dict[str, Any], code: str, pointer: str
    ) -> None:
        import json

        document = json.loads(Reference("a" * 32, Span(0, 64), Span(64, 64)).encode()) | changes
        with pytest.raises(WireError) as caught:
            read_reference(json.dumps(document).encode())
        assert (caught.value.code, caught.value.pointer) == (code, pointer)

    @pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"[" * 1000, b" " * 1025])
    def test_what_is_none_is_refused(self, body: bytes) -> None:
        with pytest.raises(WireError):
            read_reference(body)


def wait_for(condition: Any) -> None:
    done = threading.Event()
    for _ in range(1000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("the condition did not come true in time")
