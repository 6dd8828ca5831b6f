"""Clients that take their answers slowly, or not at all: results, lists, documents and problems alike."""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from service.conftest import Served

from exodus_client.wire import MSGPACK_TYPE, Message, encode
from exodus_service.http.outgoing import Outgoing, Pace

PACE = Pace(stall_timeout=10.0, min_upload_rate=1, min_download_rate=1000, max_unwanted=1)


class Clockwork(asyncio.SelectorEventLoop):
    """An event loop whose time passes only by waiting, and at once."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Peer:
    """A transport whose peer takes some bytes at some times; `pairs` of moment and number."""

    def __init__(self, pairs: Sequence[tuple[float, int]]) -> None:
        self.waiting = 0
        self.aborted_at: float | None = None
        self.closing = False
        self._loop = asyncio.get_running_loop()
        for moment, nbytes in pairs:
            self._loop.call_at(moment, self._take, nbytes)

    def _take(self, nbytes: int) -> None:
        self.waiting = max(0, self.waiting - nbytes)

    def write(self, data: Any) -> None:
        self.waiting += len(data)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing, self.aborted_at, self.waiting = True, self._loop.time(), 0


def cut_off(
    monkeypatch: pytest.MonkeyPatch, pairs: Sequence[tuple[float, int]], nbytes: int = 100_000, close: bool = False
) -> float | None:
    """Time at which a connection is cut off whose peer takes bytes so; None where it is not."""
    monkeypatch.setattr(Outgoing, "_in_kernel", lambda _self: 0)

    async def test() -> float | None:
        peer = Peer(pairs)
        outgoing = Outgoing(cast(asyncio.Transport, peer), PACE)
        outgoing.write(bytes(nbytes))
        if close:
            outgoing.close()
        while peer.waiting:
            await asyncio.sleep(0.5)
        return peer.aborted_at

    with asyncio.Runner(loop_factory=Clockwork) as runner:
        return runner.run(test())


def every(seconds: float, nbytes: int, until: float = 1000) -> list[tuple[float, int]]:
    return [(seconds * number, nbytes) for number in range(1, int(until / seconds))]


class Recorder(Peer):
    """A peer that takes everything at once, and keeps each write by itself."""

    def __init__(self) -> None:
        super().__init__([])
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def write_eof(self) -> None:
        self.written.append(b"EOF")


def written(use: Callable[[Outgoing], object]) -> tuple[list[bytes], list[bytes]]:
    """The bytes that a peer gets: at once, and after a turn of the event loop."""

    async def test() -> tuple[list[bytes], list[bytes]]:
        peer = Recorder()
        outgoing = Outgoing(cast(asyncio.Transport, peer), PACE)
        use(outgoing)
        at_once = list(peer.written)
        await asyncio.sleep(0)
        return at_once, peer.written

    return asyncio.run(test())


def test_small_writes_leave_together() -> None:
    def head_and_body(outgoing: Outgoing) -> None:
        outgoing.write(b"head")
        outgoing.write(memoryview(b"body"))

    assert written(head_and_body) == ([], [b"headbody"])
    for end, then in ((Outgoing.flush, []), (Outgoing.close, []), (Outgoing.write_eof, [b"EOF"])):

        def ended(outgoing: Outgoing, end: Callable[[Outgoing], object] = end) -> None:
            head_and_body(outgoing)
            assert outgoing.get_write_buffer_size() == 8
            end(outgoing)

        assert written(ended)[0] == [b"headbody", *then]

    def aborted(outgoing: Outgoing) -> None:
        head_and_body(outgoing)
        outgoing.abort()

    assert written(aborted) == ([], [])


def test_a_large_write_leaves_at_once_behind_what_was_held() -> None:
    large = bytes(100_000)

    def mixed(outgoing: Outgoing) -> None:
        outgoing.write(b"head")
        outgoing.write(large)
        outgoing.write(b"end")

    assert written(mixed) == ([b"head", large], [b"head", large, b"end"])

    def many(outgoing: Outgoing) -> None:
        for _ in range(5):
            outgoing.write(bytes(10_000))

    at_once, later = written(many)
    assert list(map(len, at_once)) == [20_000, 20_000]
    assert list(map(len, later)) == [20_000, 20_000, 10_000]


@pytest.mark.parametrize("close", [False, True], ids=["open", "closing"])
def test_a_client_that_takes_nothing_is_cut_off_after_the_stall_timeout(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, close: bool
) -> None:
    assert cut_off(monkeypatch, [], close=close) == pytest.approx(10, abs=1)
    assert "the client received nothing of the response for 10.0 s" in caplog.text


@pytest.mark.parametrize("close", [False, True], ids=["open", "closing"])
def test_a_client_that_stops_is_cut_off_when_it_can_have_read_what_its_kernel_took(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, close: bool
) -> None:
    long = 10_000_000
    stopped = cut_off(monkeypatch, [(8, long - 10_000)], long, close=close)
    assert stopped == pytest.approx(8 + 10 + 512 * 1024 / 1000, abs=2)
    assert "the client received nothing of the response for 534.3 s" in caplog.text
    assert cut_off(monkeypatch, [(8, 90_000)], close=close) == pytest.approx(10 + 90, abs=2)


def test_a_steady_reader_whose_kernel_tells_of_it_in_great_pieces_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """At twice the slowest rate a large buffer has room again after 200 s of 400 000 bytes."""
    pairs = [(1, 3_000_000), *((1 + 200 * number, 400_000) for number in range(1, 20))]
    assert cut_off(monkeypatch, pairs, 8_000_000) is None


def test_a_client_that_takes_a_little_steadily_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cut_off(monkeypatch, every(0.9, 1000)) is None  # a little over the slowest rate
    assert cut_off(monkeypatch, every(9, 10_000)) is None  # in pieces, almost as far apart as may be


def test_a_client_that_takes_less_than_the_slowest_rate_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert cut_off(monkeypatch, every(1, 100)) == pytest.approx(11, abs=1)
    assert cut_off(monkeypatch, [(1, 50_000), *every(2, 100)]) == pytest.approx(65, abs=8)
    assert "the client received less than 1000 bytes a second of the response" in caplog.text


def test_only_the_time_counts_in_which_there_is_something_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outgoing, "_in_kernel", lambda _self: 0)

    async def test() -> Any:
        peer = Peer([(5, 100), (1005, 100)])
        outgoing = Outgoing(cast(asyncio.Transport, peer), PACE)
        outgoing.write(bytes(100))
        await asyncio.sleep(1000)
        outgoing.write(bytes(100))
        await asyncio.sleep(1000)
        return peer.aborted_at

    with asyncio.Runner(loop_factory=Clockwork) as runner:
        assert runner.run(test()) is None


def lazy(port: int, request: bytes) -> Any:
    """A client that sends something and does not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(request)
    return client


def test_lists_that_nobody_takes_are_bounded_and_dropped(
    serve: Callable[..., Served],
    until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = serve(max_queue_bytes=25_000_000, stall_timeout_s=1, min_download_rate=1_000_000)

    async def long_list(_owner: str) -> Any:
        return [{"id": "m", "name": "x" * 9_000_000}]

    monkeypatch.setattr(service.engine.store, "list", long_list)
    get = b"GET /v1/models HTTP/1.1\r\n\r\n"
    clients = [lazy(service.port, get) for _ in range(2)]
    until(lambda: service.engine.scheduler.bytes > 18_000_000)
    answer = service.caller.call("GET", "/v1/models")
    assert (answer.status, answer.problem["code"]) == (429, "queue_full")
    assert service.caller.call("GET", "/v1/capabilities").status == 200
    until(lambda: service.engine.scheduler.bytes == 0)
    assert len(service.caller.call("GET", "/v1/models").body) > 9_000_000
    until(lambda: service.engine.scheduler.bytes == 0)
    assert "the client received less than 1000000 bytes a second of the response" in caplog.text
    for client in clients:
        client.close()


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/v1/capabilities", "/" + "x" * 4000])
def test_a_client_that_asks_on_and_takes_nothing_loses_its_connection(serve: Callable[..., Served], path: str) -> None:
    service = serve(stall_timeout_s=0.5)
    request = b"GET %s HTTP/1.1\r\n\r\n" % path.encode()
    with lazy(service.port, request) as client, pytest.raises(ConnectionError):
        ask_on(client, request * 10)


def ask_on(client: Any, requests: Any, seconds: float = 30) -> None:
    """Send the requests over and over, as far as the kernel takes them."""
    deadline = time.monotonic() + seconds
    client.setblocking(False)
    while time.monotonic() < deadline:
        try:
            client.send(requests)
        except BlockingIOError:
            time.sleep(0.01)


def test_a_result_that_is_being_sent_counts_after_it_is_forgotten(
    serve: Callable[..., Served], until: Callable[..., None], ask: Callable[..., Message]
) -> None:
    service = serve(result_ttl_s=0.5, stall_timeout_s=2)
    message = ask(spikes=torch.zeros(1, 4000, 1), weight=torch.zeros(500, 1), return_=["membrane"])
    body = b"".join(encode(message).chunks)
    with service.busy():
        headers = {"Content-Type": MSGPACK_TYPE, "Prefer": "wait=0"}
        location = service.caller.call("POST", "/v1/layers/forward", body, headers).headers["location"]
    client = lazy(service.port, b"GET %s HTTP/1.1\r\nPrefer: wait=9\r\n\r\n" % location.encode())
    until(lambda: service.engine.scheduler.bytes > 8_000_000)
    until(lambda: service.caller.call("GET", location).status == 404)
    assert service.engine.scheduler.bytes > 8_000_000
    until(lambda: service.engine.scheduler.bytes == 0)
    client.close()


def test_a_client_that_reads_slowly_and_steadily_gets_all_of_it(
    serve: Callable[..., Served], ask: Callable[..., Message]
) -> None:
    """Slower than a mebibyte a stall timeout, of which the kernel's buffers alone hold several."""
    service = serve(stall_timeout_s=2)
    message = ask(spikes=torch.zeros(1, 4000, 1), weight=torch.zeros(500, 1), return_=["membrane"])
    body = b"".join(encode(message).chunks)
    head = f"POST /v1/gradients/exodus HTTP/1.1\r\nContent-Type: {MSGPACK_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        reader.settimeout(30)
        reader.connect(("127.0.0.1", service.port))
        reader.sendall(head.encode() + body)
        started, taken = time.monotonic(), 0
        while time.monotonic() - started < 6:
            taken += len(reader.recv(65536))
            time.sleep(0.3)
        assert taken < 3_000_000
        while piece := reader.recv(1 << 20):
            taken += len(piece)
            if taken > 8_000_000:
                break
    assert taken > 8_000_000
