"""A running service on a free port, and a caller that keeps one connection open."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from remote_models import Remote

from exodus_client.wire import Form, Message, Tensor, decode, encode
from exodus_service.engine import Engine
from exodus_service.http.app import create_app
from exodus_service.http.server import Server
from exodus_service.settings import Settings
from exodus_service.shared_memory import Segments


@dataclass
class Answer:
    """A response that has been read whole."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def message(self) -> Message:
        assert self.status == 200, self.body
        return decode(bytearray(self.body), self.headers["content-type"])

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json", self.body
        document: dict[str, Any] = json.loads(self.body)
        return document

    def tensor(self, name: str) -> torch.Tensor:
        return self.message.tensors[name].torch()


class Caller:
    """Talks to the service on one kept-alive connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def call(self, verb: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        self.connection.request(verb, path, body, headers or {})
        response = self.connection.getresponse()
        return Answer(response.status, response.headers, response.read())

    def gradients(
        self, message: Message, method: str = "exodus", form: Form = "stream", headers: Mapping[str, str] | None = None
    ) -> Answer:
        encoded = encode(message, form)
        return self.post(b"".join(encoded.chunks), encoded.content_type, method, headers)

    def post(
        self, body: bytes, content_type: str, method: str = "exodus", headers: Mapping[str, str] | None = None
    ) -> Answer:
        return self.call("POST", f"/v1/gradients/{method}", body, {"Content-Type": content_type, **(headers or {})})


@dataclass
class Served:
    """A running service."""

    port: int
    engine: Engine
    caller: Caller
    segments: Segments | None = None

    def new_caller(self) -> Caller:
        return Caller(self.port)

    def raw(self) -> socket.socket:
        """A connection for requests that no HTTP library would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """The thread of the device is occupied while the block is."""
        started, finish = threading.Event(), threading.Event()

        def occupy() -> None:
            started.set()
            finish.wait()

        self.engine.scheduler.execute(occupy)
        started.wait()
        try:
            yield
        finally:
            finish.set()


@contextmanager
def served(**settings: Any) -> Iterator[Served]:
    """Serve in a thread of this process until the block is left."""
    app = create_app(Settings(port=0, **settings))
    uds = app.state.engine.settings.uds
    server = Server(app, app.state.engine.settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    port = 0 if uds else server.servers[0].sockets[0].getsockname()[1]
    caller = Caller(port)
    try:
        yield Served(port, app.state.engine, caller, app.state.segments)
    finally:
        caller.connection.close()
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return as soon as the condition holds; fail where it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)


@pytest.fixture(scope="session")
def running() -> Iterator[Served]:
    """A service with default settings, shared by all tests that leave it as it is."""
    with served() as service:
        yield service


@pytest.fixture
def caller(running: Served) -> Iterator[Caller]:
    """A connection of the test's own to the shared service."""
    caller = running.new_caller()
    yield caller
    caller.connection.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts services with settings of the test's own."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(served(**settings))


@pytest.fixture
def connect() -> Iterator[Callable[..., Remote]]:
    """Makes connections to a port, to make calls on models; they are closed after the test."""
    made: list[Remote] = []

    def to(port: int, key: str = "") -> Remote:
        made.append(Remote(port, key))
        return made[-1]

    yield to
    for remote in made:
        remote.connection.close()


@pytest.fixture
def until() -> Callable[..., None]:
    return wait_until


def request_of(neuron: Mapping[str, Any] | None = None, /, **parts: Any) -> Message:
    """A gradient request: arrays and tensors become tensors of the message, all else its params."""
    tensors = {name: value for name, value in parts.items() if isinstance(value, np.ndarray | torch.Tensor)}
    params = {name.rstrip("_"): value for name, value in parts.items() if name not in tensors}
    params["neuron"] = {"model": "lif", "alpha": 0.9} if neuron is None else dict(neuron)
    return Message.of(params, (Tensor.of(name, value) for name, value in tensors.items()))


@pytest.fixture
def ask() -> Callable[..., Message]:
    return request_of


@pytest.fixture
def good() -> Message:
    """A request that is answered with 200."""
    return request_of(membrane=torch.rand(2, 5, 3), grad_output=torch.rand(2, 5, 3))


@pytest.fixture
def slow() -> Message:
    """A request that takes about a second to compute: a reset kernel as long as the trace, O(T^2)."""
    trace, taps = torch.rand(16, 4000, 64), torch.full((4000,), -1e-3)
    return request_of({"model": "srm"}, membrane=trace, grad_output=trace, reset_kernel=taps)
