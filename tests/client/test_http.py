"""Requests and responses of the client: headers, keys, bodies of all sizes, health, real sockets."""

import copy
import http.server
import json
import logging
import pickle
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from exodus_client import (
    LIF,
    APIConnectionError,
    Client,
    ClientClosedError,
    ExodusError,
    InvalidResponseError,
    Limits,
    PermissionDeniedError,
)

U = np.ones((1, 2, 3), np.float32)
KEY = "secret-key-of-a-user"


def ask(client: Client) -> Any:
    return client.gradients(neuron=LIF(0.9), membrane=U, grad_output=U)


class TestHeaders:
    def test_the_key_travels_as_a_bearer_token_and_is_shown_nowhere(
        self, service: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "exodus_client")
        client = service.client(api_key=KEY)
        service.answers = [httpx.ConnectError("refused"), httpx.Response(403)]
        with pytest.raises(ExodusError) as caught:
            ask(client)
        assert service.requests[0].headers["Authorization"] == f"Bearer {KEY}"
        assert KEY not in f"{client!r} {client} {caught.value!r} {caught.value} {caplog.text}"
        assert "next attempt in" in caplog.text
        assert repr(client) == "Client('http://node:8000')"

    def test_the_key_may_come_from_the_environment(self, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        ask(service.client())
        monkeypatch.setenv("EXODUS_API_KEY", KEY)
        ask(service.client())
        ask(service.client(api_key="another"))
        keys = [request.headers.get("Authorization") for request in service.requests]
        assert keys == [None, f"Bearer {KEY}", "Bearer another"]

    @pytest.mark.parametrize("key", ["", "a\nb", " a", "schlüssel"])
    def test_a_key_that_is_no_header_is_refused_without_showing_it(self, service: Any, key: str) -> None:
        with pytest.raises(
            ValueError, match=r"^api_key must be printable ASCII characters without spaces around them$"
        ):
            service.client(api_key=key)

    def test_an_empty_key_in_the_environment_is_none(self, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EXODUS_API_KEY", "")
        ask(service.client())
        assert "Authorization" not in service.requests[0].headers

    def test_a_key_of_the_environment_that_is_no_header_is_refused_by_the_name_of_the_variable(
        self, service: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EXODUS_API_KEY", "a\nb")
        with pytest.raises(ValueError, match=r"^the environment variable EXODUS_API_KEY must be printable"):
            service.client()

    def test_address_and_key_are_strings(self, service: Any) -> None:
        with pytest.raises(TypeError, match=r"^base_url must be http://HOST:PORT, .*, got None$"):
            Client(None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^api_key must be a string, got bytes$"):
            service.client(api_key=b"secret")

    @pytest.mark.parametrize(
        "use",
        [
            ask,
            lambda client: client.gradients(neuron=LIF(0.9), membrane=U, grad_output=U, wait=False),
            Client.ping,
            Client.models,
            Client.capabilities,
        ],
    )
    def test_a_client_that_is_closed_says_so(self, service: Any, use: Any) -> None:
        client = service.client()
        client.close()
        with pytest.raises(ClientClosedError, match=r"^the client is closed$"):
            use(client)
        assert not service.requests

    def test_a_client_cannot_be_pickled(self, service: Any) -> None:
        with pytest.raises(TypeError, match="cannot be pickled; make one in each process"):
            pickle.dumps(service.client(api_key=KEY))

    @pytest.mark.parametrize("wait", [True, False])
    def test_a_client_does_not_outlive_a_fork(self, service: Any, monkeypatch: pytest.MonkeyPatch, wait: bool) -> None:
        client = service.client()
        ask(client)
        monkeypatch.setattr("os.getpid", lambda: -1)
        with pytest.raises(RuntimeError, match="made before the fork; make one in each process"):
            client.gradients(neuron=LIF(0.9), membrane=U, grad_output=U, wait=wait)
        assert len(service.requests) == 1

    def test_a_copy_of_a_client_shares_its_connections(self, service: Any) -> None:
        client = service.client()
        assert copy.copy(client) is copy.deepcopy([client])[0] is client

    @pytest.mark.parametrize(
        "url",
        [
            "node:8000",
            "ftp://node",
            "http://",
            "http:///path",
            "",
            "unix:",
            "http://node:99999",
            "http://node:0",
            "http://node?a=1",
            "http://node#a",
            " http://node",
        ],
    )
    def test_a_url_that_is_none_is_refused(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"^base_url must be http://HOST:PORT, .*, got "):
            Client(url)

    def test_a_url_with_a_password_is_refused_without_showing_it(self) -> None:
        with pytest.raises(ValueError, match="base_url must be without user and password") as caught:
            Client(f"http://user:{KEY}@node")
        assert KEY not in str(caught.value)

    def test_the_request_says_who_asks_and_that_the_answer_is_not_to_be_compressed(self, service: Any) -> None:
        ask(service.client())
        headers = service.requests[0].headers
        assert headers["User-Agent"].startswith("exodus-client/")
        assert headers["Accept-Encoding"] == "identity"
        assert headers["Content-Type"] == "application/vnd.msgpack"
        assert "Transfer-Encoding" not in headers

    def test_a_base_path_is_kept(self, service: Any) -> None:
        with Client("http://proxy/exodus/", transport=httpx.MockTransport(service)) as client:
            ask(client)
        assert service.requests[0].url == "http://proxy/exodus/v1/gradients/exodus"


class Pieces(httpx.SyncByteStream):
    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces


class TestBodies:
    @pytest.mark.parametrize("length", [{}, {"Content-Length": "11"}, {"Content-Length": "eleven"}])
    def test_an_answer_is_put_together_with_and_without_its_length(self, service: Any, length: dict[str, str]) -> None:
        service.handler = lambda request: httpx.Response(200, stream=Pieces(b'{"a"', b": ", b'"bc"}'), headers=length)
        assert service.client().capabilities() == {"a": "bc"}

    @pytest.mark.parametrize("length", [{}, {"Content-Length": "11"}])
    def test_an_answer_that_is_too_large_is_not_taken(self, service: Any, length: dict[str, str]) -> None:
        service.handler = lambda request: httpx.Response(200, stream=Pieces(b"12345", b"678901"), headers=length)
        with pytest.raises(InvalidResponseError, match=r"Limits.max_response_bytes is 10"):
            service.client(limits=Limits(max_response_bytes=10)).capabilities()

    def test_an_answer_that_ends_early_is_tried_again(self, service: Any) -> None:
        service.answers = [httpx.Response(200, stream=Pieces(b"{"), headers={"Content-Length": "2"})]
        service.handler = lambda request: httpx.Response(200, json={})
        assert service.client().capabilities() == {}

    def test_an_answer_that_goes_on_is_refused(self, service: Any) -> None:
        service.handler = lambda request: httpx.Response(
            200, stream=Pieces(b"{}", b"x"), headers={"Content-Length": "2"}
        )
        with pytest.raises(InvalidResponseError, match="longer than its Content-Length of 2"):
            service.client().capabilities()

    def test_compression_is_for_requests_of_16_kib_and_more(self, service: Any) -> None:
        client = service.client(compress=True)
        ask(client)
        spikes, weight = np.zeros((8, 100, 400), bool), np.ones((1, 400), np.float32)
        spikes[0, 0, 0] = True
        grad = np.ones((8, 100, 1), np.float32)
        result = client.gradients(neuron=LIF(0.9), spikes=spikes, weight=weight, grad_output=grad)
        assert result.grad_weight.shape == weight.shape
        small, large = service.requests
        assert "Content-Encoding" not in small.headers
        assert large.headers["Content-Encoding"] == "zstd"
        assert int(large.headers["Content-Length"]) == len(large.content) < spikes.size // 8

    def test_compression_without_its_package_is_refused_at_once(
        self, service: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "zstandard", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'exodus-client\[zstd\]'"):
            service.client(compress=True)


class TestPing:
    def test_a_server_that_is_ready(self, service: Any) -> None:
        service.handler = lambda request: httpx.Response(200, json={})
        ping = service.client().ping()
        assert (ping.ready, ping.reason) == (True, "")
        assert ping.round_trip > 0
        assert [request.url.path for request in service.requests] == [
            "/readyz",
            "/livez",
            "/v1/capabilities",
        ]

    def test_a_server_that_is_ready_and_does_not_take_the_key(self, service: Any) -> None:
        service.answers = [httpx.Response(200), httpx.Response(200), httpx.Response(403)]
        with pytest.raises(PermissionDeniedError):
            service.client(api_key="wrong").ping()

    def test_a_server_that_is_alive_and_not_ready(self, service: Any) -> None:
        service.answers = [httpx.Response(503, json={"detail": "warming up"})]
        service.handler = lambda request: httpx.Response(200)
        ping = service.client().ping()
        assert (ping.ready, ping.reason) == (False, "warming up")
        assert not service.waits

    def test_no_server(self, service: Any) -> None:
        service.answers = [httpx.ConnectError("refused")]
        with pytest.raises(APIConnectionError, match="GET /readyz: no answer from http://node:8000"):
            service.client().ping()


@pytest.mark.parametrize("body", [b"[]", b"{", b"[" * 100_000])
def test_capabilities_are_a_json_object(service: Any, body: bytes) -> None:
    service.handler = lambda request: httpx.Response(200, content=body)
    with pytest.raises(InvalidResponseError):
        service.client().capabilities()


class Echo(http.server.BaseHTTPRequestHandler):
    """Sends back the tensors that came, as they came, over real sockets."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        answer = echoed(body)
        self.send_response(200)
        self.send_header("Content-Type", self.headers["Content-Type"])
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self) -> None:
        answer = json.dumps({"path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def address_string(self) -> str:
        return "client"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def echoed(body: bytes) -> bytes:
    """The request as an answer: its grad_output comes back as grad_input."""
    from exodus_client.wire import Message, Tensor, decode, encode

    tensor = decode(body, "application/vnd.msgpack").tensors["grad_output"]
    params = {"device": "cpu", "method": "exodus", "grad_norms": {}}
    return b"".join(encode(Message.of(params, [Tensor.of("grad_input", tensor.numpy())])).chunks)


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def running(server: socketserver.BaseServer) -> Iterator[socketserver.BaseServer]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def tcp_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    for _ in running(server):
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def unix_server(tmp_path: Path) -> Iterator[str]:
    for _ in running(UnixServer(str(tmp_path / "socket"), Echo)):
        yield f"unix:{tmp_path / 'socket'}"


class TestSockets:
    def test_large_arrays_go_and_come_whole(self, tcp_server: str) -> None:
        large = np.random.default_rng(0).random((4, 500, 301), np.float32)  # 2.4 MB: no multiple of 256 KiB
        with Client(tcp_server) as client:
            for _ in range(2):
                result = client.gradients(neuron=LIF(0.9), membrane=large, grad_output=large)
                np.testing.assert_array_equal(result.grad_input, large)

    def test_a_unix_socket_serves_as_well(self, unix_server: str) -> None:
        with Client(unix_server) as client:
            assert client.capabilities() == {"path": "/v1/capabilities"}
            assert repr(client) == f"Client({unix_server!r})"
            np.testing.assert_array_equal(ask(client).grad_input, U)

    def test_a_port_that_nobody_listens_on_is_a_connection_error(self) -> None:
        server = socketserver.TCPServer(("127.0.0.1", 0), Echo)
        port = server.server_address[1]
        server.server_close()
        with (
            Client(f"http://127.0.0.1:{port}", retries=0) as client,
            pytest.raises(APIConnectionError, match="ConnectError"),
        ):
            ask(client)
