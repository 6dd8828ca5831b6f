"""Proxies and TLS of the environment: a client, or an error that names the variable."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from exodus_client import APIConnectionError, Client
from exodus_client._cli.commands import app
from exodus_client._transport.address import advice
from exodus_client._transport.sockets import SocketTransport

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir", "sslkeylogfile")
PROXY = "http://user:secret@127.0.0.1:9"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`environment(NAME=VALUE)`: the variables that there are."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def has_proxy(url: str) -> bool:
    with Client(url) as client:
        transport = client.connection.session.transport
        if isinstance(transport, SocketTransport):
            return False
        assert isinstance(transport, httpx.HTTPTransport)
        return type(transport._pool).__name__ == "HTTPProxy"


EXCEPTIONS = [
    ("fe80::/10", "[fe80::1]", "[2001::1]"),
    ("[::1]", "[::1]", "[::2]"),
    ("::1", "[::1]", "[::2]"),
    ("10.0.0.0/8, 192.168.1.1", "10.1.2.3", "11.1.2.3"),
    ("192.168.1.1", "192.168.1.1", "192.168.1.2"),
    ("node,.example.org", "a.example.org", "node.org"),
    ("a, *", "anything", None),
    ("*", "anything", None),
    ("node:8000", "node", "other"),
    ("LocalHost:8000", "localhost", "node"),
    ("127.0.0.1:8000", "127.0.0.1", "127.0.0.2"),
    ("[::1]:8000", "[::1]", "[::2]"),
    ("all://localhost", "localhost", "node"),
    ("all://.example.org", "a.example.org", "node"),
    ("http://127.0.0.1, https://127.0.0.1", "127.0.0.1", "127.0.0.2"),
    ("http://node:8000/, https://node:8000", "node", "other"),
    ("http://[::1]:8000,https://[::1]:8000", "[::1]", "[::2]"),
    ("[nonsense, ://, 1.2.3.4/99, fe80::/x, node", "node", "1.2.3.4"),
]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("excepted", "direct", "through"), EXCEPTIONS)
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_hosts_and_networks_without_a_proxy(
    environment: Any, scheme: str, name: str, excepted: str, direct: str, through: str | None
) -> None:
    environment(all_proxy=PROXY, **{name: excepted})
    assert not has_proxy(f"{scheme}://{direct}:8000")
    assert through is None or has_proxy(f"{scheme}://{through}:8000")


def test_an_exception_with_a_scheme_is_for_that_scheme(environment: Any) -> None:
    environment(all_proxy=PROXY, no_proxy="https://node")
    assert not has_proxy("https://node")
    assert has_proxy("http://node")


@pytest.mark.parametrize(
    ("url", "port"), [("http://node", 80), ("https://node", 443), ("http://node:81", 81), ("https://node:80", 80)]
)
def test_an_exception_with_a_port_is_for_that_port(environment: Any, url: str, port: int) -> None:
    environment(all_proxy=PROXY, no_proxy=f"node:{port}")
    assert not has_proxy(url)
    environment(no_proxy=f"node:{port + 1}")
    assert has_proxy(url)


def test_what_is_excepted_matters_where_there_is_no_proxy_neither(environment: Any) -> None:
    environment(no_proxy="fe80::/10")
    assert not has_proxy("https://node")


@pytest.mark.parametrize(
    ("variables", "url", "wanted"),
    [
        ({"http_proxy": PROXY}, "http://node", True),
        ({"http_proxy": PROXY}, "https://node", False),
        ({"https_proxy": PROXY}, "https://node", True),
        ({"HTTPS_PROXY": "127.0.0.1:9"}, "https://node", True),
        ({"http_proxy": "", "all_proxy": PROXY}, "http://node", True),
        ({"https_proxy": PROXY}, "http://node", False),
    ],
)
def test_a_proxy_is_for_its_scheme(environment: Any, variables: dict[str, str], url: str, wanted: bool) -> None:
    environment(**variables)
    assert has_proxy(url) == wanted


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "https_proxy"])
def test_a_socks_proxy_names_the_variable_and_the_package(
    environment: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    environment(**{name: "socks5://127.0.0.1:1080"})
    wanted = (
        rf"^the environment variable {name} asks for a SOCKS proxy, which needs socksio: pip install 'httpx\[socks\]"
    )
    with pytest.raises(ModuleNotFoundError, match=wanted):
        Client("https://node")
    found = CliRunner().invoke(app, ["ping", "https://node"])
    assert found.exit_code == 2
    assert found.stderr.startswith(f"exodus: the environment variable {name} asks for a SOCKS proxy")
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("proxy", ["ftp://user:secret@node", "http://user:secret@[::1", "http://user:secret@node:port"])
def test_a_proxy_that_is_none_names_the_variable_and_shows_no_password(environment: Any, proxy: str) -> None:
    environment(HTTP_PROXY=proxy)
    with pytest.raises(
        ValueError, match=r"^the environment variable HTTP_PROXY must be the URL of a proxy, such as .*, got '"
    ) as caught:
        Client("http://node")
    assert "secret" not in str(caught.value)
    found = CliRunner().invoke(app, ["capabilities", "http://node"])
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)


def test_a_proxy_of_the_system_has_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"http": "ftp://x"})
    with pytest.raises(ValueError, match=r"^the proxy of this system must be the URL of a proxy, .*, got 'ftp://x'"):
        Client("http://node")


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_certificates_that_cannot_be_read_name_the_variable(environment: Any, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "certificates.pem"
    if kind == "empty":
        file.touch()
    environment(SSL_CERT_FILE=str(file))
    with pytest.raises(
        ValueError, match=r"^the environment variables for TLS must name .*, got SSL_CERT_FILE='.*certificates.pem': "
    ):
        Client("https://node")
    assert CliRunner().invoke(app, ["ping", "https://node"]).exit_code == 2
    Client("http://node").close()


def test_a_transport_of_ones_own_asks_no_environment(environment: Any) -> None:
    environment(ALL_PROXY="socks5://x", SSL_CERT_FILE="/nowhere")
    Client("https://node", transport=httpx.MockTransport(lambda request: httpx.Response(200))).close()


@pytest.mark.parametrize("url", ["http://a..b", f"http://{'a' * 70}", "http://[::1", "http://\ud800", "https://x\x00y"])
def test_a_host_that_cannot_be_looked_up_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"^base_url must be http://HOST:PORT, https://HOST or unix:/PATH, got "):
        Client(url)
    with pytest.raises(ValueError, match=r"^base_url must be ") as caught:
        Client(url.replace("://", "://user:secret@"))
    assert "secret" not in str(caught.value)


class TestAdvice:
    """Advice on a server that cannot be talked to."""

    @pytest.fixture
    def listener(self) -> Iterator[socket.socket]:
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as made:
            yield made

    def serve(self, listener: socket.socket, talk: Callable[[socket.socket], None]) -> int:
        def run() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with contextlib.suppress(OSError), connection:
                    talk(connection)

        threading.Thread(target=run, daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    def advised(self, url: str, advice: str) -> None:
        with Client(url, retries=0, timeout=30) as client, pytest.raises(APIConnectionError, match=advice):
            client.capabilities()

    @pytest.mark.parametrize("transport", [lambda: None, httpx.HTTPTransport], ids=["ours", "httpx"])
    def test_nobody_listens(self, listener: socket.socket, transport: Any) -> None:
        port = listener.getsockname()[1]
        listener.close()
        with Client(f"http://127.0.0.1:{port}", retries=0, transport=transport()) as client:
            with pytest.raises(APIConnectionError, match=r"refused\); nothing listens there: is the service running"):
                client.capabilities()
            client.connection.session.ever_answered = True
            with pytest.raises(APIConnectionError, match=r"nothing listens there any more: was the service stopped"):
                client.capabilities()

    def test_no_such_socket(self, tmp_path: Path) -> None:
        self.advised(f"unix:{tmp_path}/none", r"there is no such socket: is the service running.*EXODUS_UDS")

    @pytest.mark.parametrize("proxy", ["127.0.0.1", "proxy.invalid"])
    def test_a_proxy_that_is_not_there(self, environment: Any, listener: socket.socket, proxy: str) -> None:
        port = listener.getsockname()[1]
        listener.close()
        environment(HTTP_PROXY=f"http://user:secret@{proxy}:{port}")
        with (
            Client("http://node:8000", retries=0, timeout=30) as client,
            pytest.raises(
                APIConnectionError, match=r"the environment variable HTTP_PROXY names a proxy, .*NO_PROXY"
            ) as caught,
        ):
            client.capabilities()
        assert "secret" not in str(caught.value)

    def test_a_socket_of_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Any, address: Any) -> None:
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patched:
            patched.setattr("exodus_client._transport.sockets.socket.socket.connect", refuse)
            self.advised("unix:/there", "this user may not connect to it")

    def test_no_such_host(self) -> None:
        self.advised("http://node.invalid", "the host is not known here: is base_url right")

    def test_https_to_a_server_without_tls(self, listener: socket.socket) -> None:
        def talk(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        port = self.serve(listener, talk)
        self.advised(f"https://127.0.0.1:{port}", r"does not speak TLS on this port: is it http:// instead of https://")

    @pytest.mark.parametrize("answer", [b"\x15\x03\x03\x00\x02\x02\x46\r\n", b""])
    def test_http_to_a_server_with_tls(self, listener: socket.socket, answer: bytes) -> None:
        def talk(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(answer)

        port = self.serve(listener, talk)
        self.advised(f"http://127.0.0.1:{port}", r"does not speak plain HTTP on this port: is it https:// instead of")

    def test_a_certificate_that_is_not_trusted(self) -> None:
        failure = httpx.ConnectError("x")
        failure.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")
        assert "SSL_CERT_FILE" in advice(failure, ever_answered=False)

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
    def test_a_certificate_that_nobody_vouches_for(self, listener: socket.socket, tmp_path: Path) -> None:
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "2"]
        subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)

        def talk(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True):
                pass

        port = self.serve(listener, talk)
        self.advised(f"https://127.0.0.1:{port}", r"the certificate is not trusted here: name that of its authority")

    def test_an_odd_failure_is_left_to_itself(self, service: Any) -> None:
        service.answers = [httpx.ReadError("reset")]
        with pytest.raises(APIConnectionError, match=r"\(ReadError: reset\)$"):
            service.client(retries=0).capabilities()
