"""Servers without sockets for the tests of the client, and the hand-made bodies of `make_golden.py`."""

from __future__ import annotations

import functools
import logging
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from client.faults import Road, patient_client
from client.in_process_service import InProcessService, closing_services

import exodus_service.engine
from exodus_client import Client, Retries
from exodus_client.wire import Encoded, Message, Tensor, decode, decompress, encode
from exodus_service.gradients.selftest import self_test

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def _no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXODUS_API_KEY", raising=False)


@pytest.fixture(scope="session")
def by_hand() -> SimpleNamespace:
    """`stream`, `entry` and the rest of make_golden.py, which writes bodies without the code under test."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("make_golden.py"))))


class FakeService:
    """Answers in the place of a server, and remembers what it was asked.

    Attributes:
        answers: what comes back, one a request; an exception is raised in the transport. Then the handler takes over.
        requests: what came, bodies read.
        waits: seconds that the client slept between attempts.
        contexts: what forward passes of layers left behind, by handle.
    """

    def __init__(self) -> None:
        self.answers: list[httpx.Response | Exception] = []
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []
        self.handler: Handler = self.compute
        self.contexts: dict[str, httpx.Request] = {}
        self.clients: list[Client] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        if not self.answers:
            return self.handler(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **arguments: Any) -> Client:
        """A client of this server that sleeps only on paper."""
        usual: dict[str, Any] = {"retries": Retries(sleep=self.waits.append), "transport": httpx.MockTransport(self)}
        client = Client("http://node:8000", **(usual | arguments))
        self.clients.append(client)
        return client

    def compute(self, request: httpx.Request) -> httpx.Response:
        """Gradients in one request, and layers in two."""
        return layers(request, self.contexts) if request.url.path.startswith("/v1/layers/") else gradients(request)

    @property
    def messages(self) -> list[Message]:
        """The requests as messages."""
        return [message_of(request) for request in self.requests]


@pytest.fixture
def service() -> Iterator[FakeService]:
    """A server that computes LIF gradients (`gradients` below), until it is told to answer otherwise."""
    fake = FakeService()
    yield fake
    for client in fake.clients:
        client.close()


@pytest.fixture(autouse=True)
def _services_end() -> Iterator[None]:
    with closing_services():
        yield


@pytest.fixture(autouse=True, scope="package")
def _the_service_is_quiet_and_tests_itself_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        log = logging.getLogger("exodus_service")
        level = log.level
        log.setLevel(logging.CRITICAL + 1)
        patched.setattr(exodus_service.engine, "self_test", functools.cache(self_test))
        yield
        log.setLevel(level)


@pytest.fixture
def server() -> InProcessService:
    """The service within the process."""
    return InProcessService()


@pytest.fixture
def client(server: InProcessService) -> Iterator[Client]:
    """A client of that server, without faults on the way."""
    with patient_client(Road(server)) as made:
        yield made


def message_of(request: httpx.Request) -> Message:
    body = decompress(request.content, request.headers.get("Content-Encoding"))
    return decode(body, request.headers["Content-Type"])


def response(encoded: Encoded, **headers: str) -> httpx.Response:
    return httpx.Response(
        200, content=b"".join(encoded.chunks), headers={"Content-Type": encoded.content_type} | headers
    )


def gradients(request: httpx.Request) -> httpx.Response:
    """`POST /v1/gradients/exodus` for LIF with reset "subtract", reset not decayed, exponential surrogate: math in
    float64, one loop over time; axes (B, T, N). Answers in the form and dtype of the request.
    """
    message = message_of(request)
    params, arrays = message.params, {name: tensor.torch().double().numpy() for name, tensor in message.tensors.items()}
    neuron = {"alpha": 1.0} | {
        name: arrays[value["tensor"]] if isinstance(value, dict) else value for name, value in params["neuron"].items()
    }
    results: dict[str, np.ndarray[Any, Any]] = {}
    if "spikes" in arrays:
        arrays["input"] = arrays["spikes"] @ arrays["weight"].T
    if "membrane" not in arrays:
        arrays["membrane"] = forward(arrays["input"], neuron)
    fired = (arrays["membrane"] >= neuron["threshold"]).astype(float)
    if "grad_output" in arrays or "grad_membrane" in arrays:
        nothing = np.zeros_like(arrays["membrane"])
        g, h = arrays.get("grad_output", nothing), arrays.get("grad_membrane", nothing)
        found = backward(arrays["membrane"], fired, g, h, neuron)
        results = {f"grad_{name}": found[name] for name in ("input", *params["wrt"])}
        if "weight" in arrays:
            results["grad_weight"] = np.einsum("btn,btm->nm", found["input"], arrays["spikes"])
            results["grad_spikes"] = found["input"] @ arrays["weight"]
    results |= {name: {"spikes": fired, "membrane": arrays["membrane"]}[name] for name in params["return"]}

    import torch

    source = message.tensors.get("weight", next(iter(message.tensors.values())))
    dtype = getattr(torch, params.get("result_dtype", source.dtype))
    tensors = [Tensor.of(name, torch.from_numpy(np.asarray(array)).to(dtype)) for name, array in results.items()]
    norms = {name: float(np.linalg.norm(array)) for name, array in results.items() if name.startswith("grad_")}
    method = params.get("method") or request.url.path.rpartition("/")[2] or "exodus"
    answer = Message.of({"device": "fake", "method": method, "grad_norms": norms}, tensors)
    timing = {"Server-Timing": 'queue;dur=0.5, decode;dur=1, kernel;desc="a, b";dur=2.25, encode;dur=0'}
    return response(encode(answer, message.form), **timing)


def layers(request: httpx.Request, contexts: dict[str, httpx.Request]) -> httpx.Response:
    """`POST /v1/layers/forward` and `backward`, as one gradient request each; the context is the forward request."""
    message = message_of(request)
    if request.url.path.endswith("forward"):
        handle = f"context-{len(contexts)}"
        contexts[handle] = request
        shared = {name: message.params[name] for name in ("neuron", "surrogate", "time_dim", "return")}
        found = message_of_answer(gradients(as_request(shared | {"wrt": []}, message)))
        return response(encode(Message({"context": handle, "expires_in_s": 300.0, "nbytes": 1}, found.tensors)))
    kept = contexts.pop(message.params["context"], None)
    if kept is None:
        return httpx.Response(410, json={"code": "context_expired", "detail": "the context is not kept"})
    first = message_of(kept)
    params = first.params | {"wrt": message.params["wrt"], "return": []}
    return gradients(as_request(params, Message({}, first.tensors | message.tensors)))


def as_request(params: dict[str, Any], message: Message) -> httpx.Request:
    encoded = encode(Message(params, message.tensors))
    headers = {"Content-Type": encoded.content_type}
    return httpx.Request("POST", "http://node", content=b"".join(encoded.chunks), headers=headers)


def message_of_answer(answer: httpx.Response) -> Message:
    return decode(answer.content, answer.headers["Content-Type"])


def forward(x: Any, neuron: dict[str, Any]) -> Any:
    membrane = np.empty_like(x)
    rho = neuron.get("reset_by", neuron["threshold"])
    u, s = neuron.get("initial_membrane", 0.0), neuron.get("initial_spikes", 0.0)
    for t in range(x.shape[1]):
        u = neuron["alpha"] * u + x[:, t] - rho * s
        s = u >= neuron["threshold"]
        membrane[:, t] = u
    return membrane


def backward(u: Any, s: Any, g: Any, h: Any, neuron: dict[str, Any]) -> dict[str, Any]:
    alpha, threshold = neuron["alpha"], neuron["threshold"]
    rho = neuron.get("reset_by", threshold)
    slope = np.exp(-np.abs(u - threshold))
    lam = np.zeros((u.shape[0], u.shape[1] + 1, *u.shape[2:]))  # one step more, in which it is zero
    for t in reversed(range(u.shape[1])):
        lam[:, t] = slope[:, t] * g[:, t] + h[:, t] + (alpha - rho * slope[:, t]) * lam[:, t + 1]
    u_before, s_before = (
        np.concatenate([(np.zeros_like(u[:, 0]) + neuron.get(name, 0.0))[:, None], trace[:, :-1]], 1)
        for name, trace in (("initial_membrane", u), ("initial_spikes", s))
    )
    by_reset = -lam[:, :-1] * s_before
    by_threshold = -slope * (g - rho * lam[:, 1:]) + (0 if "reset_by" in neuron else by_reset)
    return {
        "input": lam[:, :-1],
        "alpha": summed(lam[:, :-1] * u_before, alpha),
        "threshold": summed(by_threshold, threshold),
        "reset_by": summed(by_reset, rho),
        "initial_membrane": alpha * lam[:, 0],
    }


def summed(each: Any, parameter: Any) -> Any:
    return each.sum() if np.ndim(parameter) == 0 else each.sum(axis=(0, 1))
