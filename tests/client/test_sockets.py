"""HTTP over plain sockets: servers that answer early, late, in pieces, or not at all."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from exodus_client import (
    LIF,
    APIConnectionError,
    APITimeoutError,
    Client,
    InvalidResponseError,
    Limits,
    PayloadTooLargeError,
    Timeout,
)
from exodus_client._transport.session import Session
from exodus_client._transport.sockets import SocketTransport, tcp, unix

Script = Callable[[socket.socket], None]
LARGE = np.ones((4, 500, 300), np.float32)


@pytest.fixture
def scripted() -> Iterator[Callable[..., str]]:
    """`scripted(script, ...)`: a server that runs one script a connection, the last for all that follow; its URL."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(*scripts: Script) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            for number in range(100):
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    scripts[min(number, len(scripts) - 1)](connection)

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(timeout=10)


def head(connection: socket.socket) -> bytes:
    """Read a head without a body."""
    came = b""
    while b"\r\n\r\n" not in came:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError
        came += piece
    return came


def answering(*answers: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        for answer in answers:
            head(connection)
            connection.sendall(answer)

    return script


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def asked(url: str, **arguments: Any) -> dict[str, Any]:
    with Client(url, **({"retries": 0} | arguments)) as client:
        return client.capabilities()


def test_a_connection_is_used_again(scripted: Any) -> None:
    with Client(scripted(answering(OK, OK, OK), answering()), retries=0) as client:
        assert [client.capabilities() for _ in range(3)] == [{}] * 3


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\n\r\n{}",
    ],
)
def test_answers_of_every_shape_are_read(scripted: Any, answer: bytes) -> None:
    def script(connection: socket.socket) -> None:
        answering(answer)(connection)
        if b"chunked" in answer or b"100" in answer:
            answering(OK)(connection)

    with Client(scripted(script, answering(OK)), retries=0) as client:
        assert client.capabilities() == {}
        assert client.capabilities() == {}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "ReadError"),
        (b"nonsense\r\n\r\n", "RemoteProtocolError: BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}", "ended after 2 of 20 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{}", "IncompleteRead"),
    ],
)
def test_answers_that_are_none_are_connection_errors(scripted: Any, answer: bytes, reason: str) -> None:
    with pytest.raises(APIConnectionError, match=reason):
        asked(scripted(answering(answer)))


def test_a_server_that_closed_an_idle_connection_is_noticed(scripted: Any) -> None:
    url = scripted(answering(OK), answering(OK))
    with Client(url, retries=0) as client:
        assert client.capabilities() == {}
        time.sleep(0.05)
        assert client.capabilities() == {}


def test_a_connection_that_idled_too_long_is_not_used(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exodus_client._constants.KEEP_IDLE", 0.0)
    second = []

    def script(connection: socket.socket) -> None:
        second.append(1)
        answering(OK, OK)(connection)

    with Client(scripted(script), retries=0) as client:
        assert [client.capabilities() for _ in range(2)] == [{}] * 2
    assert len(second) == 2


def test_a_refusal_before_the_end_of_the_upload_is_read(scripted: Any) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.05)
        while connection.recv(1 << 20):
            pass

    with Client(scripted(refuse), retries=0) as client, pytest.raises(PayloadTooLargeError):
        client.gradients(neuron=LIF(0.9), membrane=LARGE, grad_output=LARGE)


def test_an_upload_that_is_cut_off_leaves_the_answer_to_be_read() -> None:
    """An answer before all of the request was sent, as from a proxy that refuses and closes."""
    ours, theirs = socket.socketpair()
    theirs.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
    theirs.shutdown(socket.SHUT_RD)  # whoever writes now gets EPIPE
    transport = SocketTransport(lambda timeout: ours, 1)
    with httpx.Client(transport=transport) as client:
        assert client.post("http://x/", content=b"x" * 2_000_000).status_code == 413
    assert ours.fileno() == -1  # not to be used again
    theirs.close()


def test_a_server_that_takes_nothing_is_a_write_timeout(scripted: Any) -> None:
    release = threading.Event()
    url = scripted(lambda connection: release.wait(10) and None)
    large = np.ones((32, 500, 1000), np.float32)
    with (
        Client(url, retries=0, timeout=Timeout(write=0.2)) as client,
        pytest.raises(APITimeoutError, match="WriteTimeout"),
    ):
        client.gradients(neuron=LIF(0.9), membrane=large, grad_output=large)
    release.set()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}"])
def test_a_server_that_says_nothing_more_is_a_read_timeout(scripted: Any, answer: bytes) -> None:
    release = threading.Event()

    def silent(connection: socket.socket) -> None:
        answering(answer)(connection)
        release.wait(10)

    with pytest.raises(APITimeoutError, match="ReadTimeout"):
        asked(scripted(silent), timeout=Timeout(read=0.2))
    release.set()


def test_the_total_time_holds_while_an_answer_drips(scripted: Any) -> None:
    def drip(connection: socket.socket) -> None:
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n")(connection)
        for _ in range(100):
            connection.sendall(b" " * 20_000)
            time.sleep(0.01)

    with pytest.raises(APITimeoutError, match=r"no answer within Timeout.total of 0.3 s"):
        asked(scripted(drip), timeout=Timeout(total=0.3))


def test_a_body_over_the_limit_is_refused_and_costs_the_connection(scripted: Any) -> None:
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n" + bytes(200)
    with Client(scripted(answering(big), answering(OK)), retries=0, limits=Limits(max_response_bytes=100)) as client:
        with pytest.raises(InvalidResponseError, match=r"Limits.max_response_bytes is 100"):
            client.capabilities()
        assert client.capabilities() == {}


def test_cookies_keep_a_client_at_the_server_that_a_proxy_chose() -> None:
    cookies: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        cookies.append(request.headers.get("Cookie"))
        return httpx.Response(200, json={}, headers={"Set-Cookie": "node=a; Path=/"})

    with Client("http://n/", transport=httpx.MockTransport(answer), retries=0) as client:
        client.capabilities()
        client.capabilities()
    assert cookies == [None, "node=a"]


def test_no_more_connections_than_allowed(scripted: Any) -> None:
    transport = SocketTransport(tcp("127.0.0.1", int(scripted(answering(OK, OK)).rpartition(":")[2])), 1)
    with httpx.Client(transport=transport, timeout=httpx.Timeout(5, pool=0.05)) as client:
        with client.stream("GET", "http://x/") as first:
            with pytest.raises(httpx.PoolTimeout, match="all connections are in use"):
                client.get("http://x/")
            assert first.read() == b"{}"
        assert client.get("http://x/").content == b"{}"


def test_a_failed_connection_frees_its_place() -> None:
    transport = SocketTransport(unix("/nowhere/at-all"), 1)
    with httpx.Client(transport=transport) as client:
        for _ in range(3):
            with pytest.raises(httpx.ConnectError):
                client.get("http://x/")


@pytest.mark.parametrize(
    ("environment", "plain"), [({}, True), ({"http_proxy": "http://proxy:1"}, False), ({"no_proxy": "node"}, True)]
)
def test_proxies_of_the_environment_are_left_to_httpx(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], plain: bool
) -> None:
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    if "no_proxy" in environment:
        environment = environment | {"all_proxy": "http://proxy:1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with Client("http://node:8000") as client:
        session: Session = client.connection.session
        assert isinstance(session.transport, SocketTransport) == plain
