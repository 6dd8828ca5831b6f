"""`Timeout.total` bounds a call, whatever the server does with the time: raw servers, ours and httpx's transports."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from exodus_client import LIF, APITimeoutError, Client, ClientClosedError, ServiceUnavailableError, Timeout
from exodus_client._threads import within
from exodus_client._transport.sockets import SocketTransport, tcp

TOTAL = 0.4
#: Seconds by which a loaded machine may be late; without a bound these servers take a minute, or never end.
LATE = 10.0

Script = Callable[[socket.socket, threading.Event], None]


def asked(connection: socket.socket) -> None:
    """Read a request without a body."""
    came = b""
    while b"\r\n\r\n" not in came:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError
        came += piece


def drip(connection: socket.socket, stop: threading.Event, piece: bytes, *, every: float = 0.02) -> None:
    while not stop.wait(every):
        connection.sendall(piece)


def slow_head(connection: socket.socket, stop: threading.Event) -> None:
    asked(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    drip(connection, stop, b"a")


def many_lines(connection: socket.socket, stop: threading.Event) -> None:
    asked(connection)
    for letter in b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 90:
        if stop.wait(0.02):
            return
        connection.sendall(bytes([letter]))


def endless_continue(connection: socket.socket, stop: threading.Event) -> None:
    asked(connection)
    drip(connection, stop, b"HTTP/1.1 100 Continue\r\n\r\n", every=0.001)


def endless_early_hints(connection: socket.socket, stop: threading.Event) -> None:
    asked(connection)
    drip(connection, stop, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", every=0.001)


def slow_body(connection: socket.socket, stop: threading.Event) -> None:
    asked(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n")
    drip(connection, stop, bytes(600))


def slow_chunks(connection: socket.socket, stop: threading.Event) -> None:
    asked(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    drip(connection, stop, b"1\r\na\r\n")


def slow_until_the_end(connection: socket.socket, stop: threading.Event) -> None:
    asked(connection)
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    drip(connection, stop, b"a")


def silent(connection: socket.socket, stop: threading.Event) -> None:
    stop.wait(60)


SCRIPTS: list[Script] = [
    slow_head, many_lines, endless_continue, endless_early_hints, slow_body, slow_chunks, slow_until_the_end, silent,
]  # fmt: skip


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """`serve(script)`: a server that runs the script in each connection; its URL."""
    stop = threading.Event()
    opened: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def run(work: Callable[..., None], *arguments: Any) -> None:
        threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        threads[-1].start()

    def start(script: Script) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        opened.append(listener)

        def talk(connection: socket.socket) -> None:
            with contextlib.suppress(OSError), connection:
                script(connection, stop)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    run(talk, connection)

        run(accept)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    stop.set()
    for listener in opened:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)


def ends_in_time(ask: Callable[[], Any], match: str = r"no answer within Timeout.total of 0.4 s") -> None:
    began = time.monotonic()
    with pytest.raises(APITimeoutError, match=match):
        ask()
    assert TOTAL / 2 <= time.monotonic() - began < LATE


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
class TestAnyAnswer:
    def test_over_plain_sockets(self, serve: Any, script: Script) -> None:
        with Client(serve(script), timeout=TOTAL) as client:
            ends_in_time(client.capabilities)

    def test_over_a_transport_of_httpx(self, serve: Any, script: Script) -> None:
        with Client(serve(script), timeout=TOTAL, transport=httpx.HTTPTransport()) as client:
            ends_in_time(client.capabilities)


@pytest.mark.parametrize("script", [slow_head, endless_continue], ids=lambda script: script.__name__)
def test_a_head_ends_within_the_time_for_reading_too(serve: Any, script: Script) -> None:
    with Client(serve(script), timeout=Timeout(read=TOTAL), retries=0) as client:
        ends_in_time(client.capabilities, "ReadTimeout")


def test_an_interim_answer_is_not_the_answer(serve: Any) -> None:
    def script(connection: socket.socket, stop: threading.Event) -> None:
        for _ in range(2):
            asked(connection)
            hints = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
            connection.sendall(hints + b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n" + b'{"a": 1}')

    with Client(serve(script), retries=0) as client:
        assert [client.capabilities() for _ in range(2)] == [{"a": 1}] * 2


@pytest.mark.parametrize("transport", [lambda: None, httpx.HTTPTransport], ids=["ours", "httpx"])
def test_an_upload_that_nobody_takes(serve: Any, transport: Any) -> None:
    large = np.ones((32, 500, 1000), np.float32)  # more than the buffers of the system take
    with Client(serve(silent), timeout=TOTAL, transport=transport()) as client:
        ends_in_time(lambda: client.gradients(neuron=LIF(0.9), membrane=large, grad_output=large))


def test_an_upload_that_is_taken_slowly(serve: Any) -> None:
    def sip(connection: socket.socket, stop: threading.Event) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        while not stop.wait(0.01) and connection.recv(2000):
            pass

    large = np.ones((32, 500, 1000), np.float32)
    with Client(serve(sip), timeout=TOTAL) as client:
        ends_in_time(lambda: client.gradients(neuron=LIF(0.9), membrane=large, grad_output=large))


def test_waits_between_attempts_end_with_it() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": "30"})

    began = time.monotonic()
    with (
        Client("http://node", timeout=TOTAL, transport=httpx.MockTransport(refuse)) as client,
        pytest.raises(ServiceUnavailableError),
    ):
        client.capabilities()
    assert time.monotonic() - began < LATE


def test_a_name_that_is_looked_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: stop.wait(60) and [])
    with Client("http://node.example", timeout=TOTAL) as client:
        ends_in_time(client.capabilities)
    with Client("http://node.example", timeout=Timeout(connect=TOTAL), retries=0) as client:
        ends_in_time(client.capabilities, r"ConnectTimeout: timed out after 0.4 s")
    stop.set()


def test_addresses_share_the_time_for_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two are full and say nothing; the third is reached all the same."""
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        found = [*(address_of(full_server(stack)) for _ in range(2)), address_of(there)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        began = time.monotonic()
        tcp("node.example", 80)(1.2).close()
        assert time.monotonic() - began < LATE
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found[:2])
        with pytest.raises(TimeoutError):
            tcp("node.example", 80)(0.3)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
        with pytest.raises(OSError, match=r"node.example has no address"):
            tcp("node.example", 80)(None)


def address_of(listener: socket.socket) -> tuple[Any, ...]:
    return socket.AF_INET, socket.SOCK_STREAM, 0, "", listener.getsockname()


def full_server(stack: contextlib.ExitStack) -> socket.socket:
    """A listener whose backlog is full: the system drops what wants to connect."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(3):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            waiting.connect(listener.getsockname())
    return listener


def test_all_requests_of_a_call_share_it() -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        time.sleep(0.3)
        return httpx.Response(503 if request.url.path == "/readyz" else 200, json={})

    with Client("http://node", timeout=TOTAL, transport=httpx.MockTransport(slow)) as client:
        ends_in_time(client.ping)


def test_nothing_begins_after_the_end() -> None:
    with contextlib.closing(SocketTransport(tcp("127.0.0.1", 9), 1)) as transport, pytest.raises(httpx.ConnectTimeout):
        transport.exchange("GET", b"/", [], (), {}, time.monotonic() - 1)


def test_a_transport_that_hangs_is_left() -> None:
    release = threading.Event()

    def hang(request: httpx.Request) -> httpx.Response:
        release.wait(60)
        return httpx.Response(200, json={})

    with Client("http://node", timeout=TOTAL, transport=httpx.MockTransport(hang)) as client:
        ends_in_time(client.capabilities)
        release.set()


def test_a_client_that_is_closed_meanwhile_ends_it(serve: Any) -> None:
    with Client(serve(silent), timeout=30) as client:
        threading.Timer(0.1, client.connection.session.close).start()
        with pytest.raises(ClientClosedError, match=r"^the client is closed$"):
            client.capabilities()


class TestWithin:
    def test_it_gives_what_comes_in_time(self) -> None:
        assert within(None, threading.current_thread) is threading.current_thread()
        assert within(30.0, threading.current_thread) is not threading.current_thread()

    def test_it_raises_what_is_raised(self) -> None:
        def fail() -> None:
            raise TimeoutError("its own")

        with pytest.raises(TimeoutError, match=r"^its own$"):
            within(30.0, fail)


def test_our_transport_is_bounded_without_a_thread(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exodus_client._transport.session.within", None)
    with Client(serve(silent), timeout=TOTAL) as client:
        ends_in_time(client.capabilities)
