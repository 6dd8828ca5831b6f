"""Whatever a server answers, a call returns what was asked for, or raises an ExodusError.

Valid answers are changed: any member of any document, any header, the status, the bytes. `EXODUS_ANSWERS=N` tries N of
them for each call.
"""

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from client.conftest import FakeService
from client.in_process_service import InProcessService
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exodus_client import LIF, SRM, Client, ExodusError, InvalidResponseError, Limits, Retries
from exodus_client._transport.sockets import SocketTransport
from exodus_client.torch import remote_lif
from exodus_client.wire import JSON_TYPE, decode, encode

EXAMPLES = int(os.environ.get("EXODUS_ANSWERS", "40"))
any_answer = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)

LAYERS = [{"kind": "linear", "in_features": 3, "out_features": 2}, {"kind": "lif", "alpha": 0.5}]
X = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
Y = np.array([0, 1])
LOSS = "max_over_time_ce"

#: Stands in a document for a number of so many digits that Python refuses to read it.
DIGITS = "@5000 digits@"

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 2, 3, -1, 2**31, 2**63 - 1, 2**63, 2**64, 1e308, float("inf"), float("nan"), 0.5, DIGITS]),
    st.sampled_from(
        ["", "x", "NaN", "1", "float32", "float64", "bfloat16", "int64", "bool", "\ud800", "é", "m", "a/b"]
    ),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
header_bytes = st.binary(max_size=12).map(lambda raw: bytes(byte for byte in raw if byte not in b"\r\n\0"))
headers = st.dictionaries(
    st.sampled_from(
        [
            "Content-Type",
            "Content-Encoding",
            "Content-Length",
            "Transfer-Encoding",
            "Server-Timing",
            "X-Request-ID",
            "Retry-After",
            "Location",
            "Set-Cookie",
        ]
    ),
    st.one_of(
        header_bytes,
        st.sampled_from([b"9" * 5000, b"application/json", b"application/vnd.msgpack", b"zstd", b"gzip", b"\xff\xfe"]),
        st.sampled_from([b"/v1/requests/\xe9", b"/v1/requests/x", b"http://[::1", b"//x/v1/requests/x", b"-1", b"1e9"]),
        st.sampled_from(
            [b"Mon, 01 Jan 99999 00:00:00 GMT", b"Mon, 01 Jan 2000 00:00:00 +99999999", b"kernel;dur=" * 9]
        ),
    ),
    max_size=2,
)
STATUSES = [200] * 12 + [201, 202, 204, 206, 301, 307, 400, 404, 409, 410, 422, 429, 500, 503, 507, 999]


class Changes:
    """Decisions that were drawn before, for threads that may not draw: which change is made, and to what."""

    def __init__(self, decisions: list[int], values: list[Any], raw: bytes, more: dict[str, bytes]) -> None:
        self.decisions = decisions
        self.values = values
        self.raw = raw
        self.more = more
        self.made = 0

    def of(self, choices: Any) -> Any:
        """One of the choices."""
        self.made += 1
        return choices[self.decisions[self.made % len(self.decisions)] % len(choices)]

    def document(self, document: Any) -> Any:
        """A document in which one member, anywhere, is something else, missing, or new."""
        inner = document
        while inner:
            key = self.of(list(inner) if isinstance(inner, dict) else range(len(inner)))
            if isinstance(inner[key], dict | list) and inner[key] and self.of((True, True, True, False)):
                inner = inner[key]
                continue
            if self.of((True, True, True, True, False)):
                inner[key] = self.of(self.values)
            else:
                del inner[key]
            break
        if isinstance(inner, dict) and self.of((False,) * 6 + (True,)):
            inner[self.of(("v", "params", "tensors", "name", "code", "errors", "x"))] = self.of(self.values)
        return document

    def state(self, body: bytes) -> bytes:
        """A file of safetensors with another header."""
        size = int.from_bytes(body[:8], "little")
        header = json.loads(body[8 : 8 + size])
        if self.of((True, False)):
            about = json.loads(header["__metadata__"]["exodus"])
            header["__metadata__"]["exodus"] = written(self.document(about)).decode()
        else:
            self.document(header)
        raw = written(header)
        return len(raw).to_bytes(8, "little") + raw + body[8 + size :]

    def answer(self, answer: httpx.Response) -> httpx.Response:
        """Another answer in the place of a valid one."""
        kind = self.of(["document"] * 8 + ["headers", "problem", "bytes", "cut", "any"])
        found = {name: answer.headers[name] for name in ("Content-Type",) if name in answer.headers}
        status, body, sent = answer.status_code, answer.content, found.get("Content-Type", "")
        if kind == "document" and body and "safetensors" in sent:
            body = self.state(body)
        elif kind == "document" and body and "msgpack" in sent:
            as_json = encode(decode(body, sent), "json")
            body, found = written(self.document(json.loads(b"".join(as_json.chunks)))), {"Content-Type": JSON_TYPE}
        elif kind == "document" and body:
            body = written(self.document(json.loads(body)))
        elif kind == "problem":
            faults = [{"pointer": "/a", "expected": "1", "got": "2"}]
            problem = {"code": "sequence_gap", "detail": "no", "retryable": True, "errors": faults, "category": "user"}
            status, body = self.of(STATUSES), written(self.document(problem))
        elif kind == "bytes":
            body = self.raw
        elif kind == "cut":
            body = body[: self.of(range(len(body) + 1))]
        elif kind == "any":
            status, body = self.of(STATUSES), written(self.of(self.values))
        more = self.more if kind in ("headers", "any") or self.of((False,) * 9 + (True,)) else {}
        raw = [(name.encode(), value.encode()) for name, value in found.items() if name not in more]
        raw += [(name.encode(), value) for name, value in more.items()]
        return httpx.Response(status, headers=raw, stream=httpx.ByteStream(body))


changes = st.builds(
    Changes,
    st.lists(st.integers(0, 2**16), min_size=1, max_size=80),
    st.lists(values, min_size=1, max_size=5),
    st.binary(max_size=60),
    headers,
)


def written(document: Any) -> bytes:
    return json.dumps(document).replace(json.dumps(DIGITS), "9" * 5000).encode()


class Changing(httpx.BaseTransport):
    """A sound server, of which the next answer is another where there are changes; or all are."""

    def __init__(self, training: InProcessService) -> None:
        self.training = training
        self.computing = FakeService()
        self.changes: Changes | None = None
        self.always = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.sound(request)
        changes, self.changes = self.changes, self.changes if self.always else None
        return answer if changes is None else changes.answer(answer)

    def sound(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.startswith(("/v1/models", "/v1/requests")):
            return self.training(request)
        if path == "/v1/capabilities":
            return httpx.Response(200, json={"methods": ["exodus"], "limits": {"max": 1}})
        return httpx.Response(200, json={}) if request.method == "GET" else self.computing(request)


def shown(error: ExodusError) -> None:
    """Raises UnicodeEncodeError where a terminal could not show it."""
    str(error).encode()


def check_gradients(client: Client) -> None:
    found = client.gradients(neuron=LIF(0.9), input=X, grad_output=X, wrt=["alpha"], return_=["spikes"])
    assert found.arrays.keys() == {"grad_input", "grad_alpha", "spikes"}
    assert found.grad_input.shape == found.spikes.shape == X.shape
    assert found.grad_input.dtype == found.spikes.dtype == np.float32
    assert found.grad_alpha.shape == ()
    assert all(isinstance(norm, float) for norm in found.grad_norms.values())
    assert (found.method, isinstance(found.device, str)) == ("exodus", True)


def check_weights(client: Client) -> None:
    weight = torch.ones(5, 3, dtype=torch.float64)
    grad = torch.ones(2, 2, 5, dtype=torch.float64)
    future = client.gradients(neuron=LIF(0.9), spikes=X > 5, weight=weight, grad_output=grad, wait=False)
    found = future.result(30)
    assert (found.grad_weight.shape, found.grad_spikes.shape) == (weight.shape, X.shape)
    assert found.grad_weight.dtype == found.grad_spikes.dtype == found.grad_input.dtype == torch.float64


def check_layer(client: Client) -> None:
    x = torch.from_numpy(X).requires_grad_()
    alpha = torch.full((3,), 0.9, requires_grad=True)
    spikes, membrane = remote_lif(client, x, alpha)
    assert spikes.shape == membrane.shape == x.shape
    (spikes.sum() + membrane.sum()).backward()
    assert x.grad is not None
    assert alpha.grad is not None
    assert (x.grad.shape, alpha.grad.shape) == (x.shape, alpha.shape)


def check_ping(client: Client) -> None:
    ping = client.ping()
    assert isinstance(ping.reason, str)
    assert ping.ready == (ping.reason == "")


def check_capabilities(client: Client) -> None:
    assert isinstance(client.capabilities(), dict)


#: Calls without a model, by name.
PLAIN: dict[str, Callable[[Client], Any]] = {
    "gradients": check_gradients,
    "gradients of weights": check_weights,
    "layer": check_layer,
    "ping": check_ping,
    "capabilities": check_capabilities,
    "delete": lambda client: client.delete_model("gone"),
}


def check_info(info: Any, id: str | None = "m") -> None:
    assert id in (None, info.id)
    assert type(info.sequence) is int
    assert 0 <= info.sequence < 2**63
    assert info.durable is None or type(info.durable) is int
    assert all(isinstance(name, str) and all(size >= 0 for size in shape) for name, shape in info.parameters)
    assert info.dtype in ("float32", "float64")
    assert isinstance(json.dumps(dict(info.network)), str)


def check_models(client: Client, model: Any) -> None:
    for info in client.models():
        check_info(info, None)
        print(info.name, info.created, info.durable_error)  # what a terminal can show


def check_step(client: Client, model: Any, **options: Any) -> None:
    futures = [model.step(X, Y, loss=LOSS, **options) for _ in range(3)]
    for number, future in enumerate(futures, 1):
        try:
            result = future.result(30)
        except ExodusError as error:
            shown(error)
            continue
        assert result.sequence == number
        assert all(isinstance(value, float) for value in (*result.metrics.values(), *result.grad_norms.values()))
        assert result.durable is None or type(result.durable) is int
        if options:
            assert {name: grad.shape for name, grad in result.gradients.items()} == dict(model.description.parameters)
            assert all(grad.dtype == np.float32 for grad in result.gradients.values())
        else:
            assert result.gradients is None


def check_custom(client: Client, model: Any) -> None:
    result = model.step(X, loss=lambda outputs: outputs.sum(), gradients=True).result(30)
    assert result.sequence == 1
    assert isinstance(result.loss, float)


def check_forward(client: Client, model: Any) -> None:
    found = model.forward(X, Y, loss=LOSS).result(30)
    assert (found.outputs.shape[:2], found.outputs.dtype) == ((2, 2), np.float32)
    assert all(isinstance(value, float) for value in found.metrics.values())
    assert model.forward(X, Y, loss=LOSS, outputs=False).result(30).outputs is None


def check_weights_of(client: Client, model: Any) -> None:
    found = model.state_dict()
    assert {name: array.shape for name, array in found.items() if name in dict(model.description.parameters)} == dict(
        model.description.parameters
    )
    model.load_state_dict(found)


def check_files(client: Client, model: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "a")
        model.load(Path(folder) / "a")


#: Calls on a model, by name.
TRAINING: dict[str, Callable[[Client, Any], Any]] = {
    "info": lambda client, model: check_info(model.info()),
    "model": lambda client, model: check_info(client.model("m").info()),
    "models": check_models,
    "create": lambda client, model: client.create_model(LAYERS, id="n", weights=np.zeros(8, np.float32)),
    "step": check_step,
    "step with gradients": lambda client, model: check_step(client, model, gradients=True),
    "a loss of one's own": check_custom,
    "optim_step": lambda client, model: model.optim_step(gradients=np.ones(8, np.float32)).result(30),
    "forward": check_forward,
    "make_durable": lambda client, model: model.make_durable().result(30),
    "state_dict": check_weights_of,
    "save": check_files,
    "resync": lambda client, model: model.resync(),
}

RETRIES = Retries(count=1, first_delay=0.0, max_retry_after=0.0)


def run(server: InProcessService, changes: Changes, always: bool, call: Callable[..., Any], *, trains: bool) -> None:
    transport = Changing(server)
    limits = Limits(max_response_bytes=2**20)
    with Client("http://node:8000", transport=transport, retries=RETRIES, limits=limits) as client:
        model = client.create_model(LAYERS, optimizer="sgd", id="m", patience=0.02) if trains else None
        transport.always, transport.changes = always, changes
        try:
            call(client) if model is None else call(client, model)
        except ExodusError as error:
            shown(error)
    for id in server.models if trains else ():
        server(httpx.Request("DELETE", f"http://node/v1/models/{id}"))


@pytest.mark.parametrize("name", PLAIN)
@any_answer
@given(changes=changes, always=st.booleans())
def test_any_answer_to_a_call(server: InProcessService, name: str, changes: Changes, always: bool) -> None:
    run(server, changes, always, PLAIN[name], trains=False)


@pytest.mark.parametrize("name", TRAINING)
@any_answer
@given(changes=changes, always=st.booleans())
def test_any_answer_to_a_call_on_a_model(server: InProcessService, name: str, changes: Changes, always: bool) -> None:
    server.settings["sequence_wait_s"] = 0.0
    run(server, changes, always, TRAINING[name], trains=True)


PIECES = rb"""
HTTP/1.1 200 OK\r\n
HTTP/1.1 100 Continue\r\n\r\n
HTTP/1.1 103 Early Hints\r\n\r\n
HTTP/1.1 204 No Content\r\n
HTTP/1.1 101 Switching\r\n
HTTP/1.1 999 \xff\r\n
Content-Length: 2\r\n
Content-Length: 2, 2\r\n
Content-Length: DIGITS\r\n
Content-Length: -1\r\n
Content-Length: 1_0\r\n
Transfer-Encoding: chunked\r\n
Connection: close\r\n
X-Request-ID: \xe9\xff\r\n
Server-Timing: a;dur=DIGITS\r\n
Retry-After: \xb2\r\n
Content-Type: application/json; charset=\xff\r\n
Set-Cookie: \xff=\xff; Max-Age=x\r\n
 folded\r\n
no colon\r\n
: no name\r\n
\xff\xfe: \x00\r\n
\r\n
{}
2\r\n{}\r\n
0\r\n\r\n
-5\r\n
DIGITS\r\n
zz\r\n
\x00
\xff
"""
#: What answers are made of, one a line, in the escapes of Python.
pieces = st.sampled_from(
    [
        line.decode("unicode_escape").encode("latin-1").replace(b"DIGITS", b"9" * 5000)
        for line in PIECES.split(b"\n")
        if line
    ]
)


@settings(max_examples=10 * EXAMPLES, deadline=None)
@given(parts=st.lists(st.one_of(pieces, st.binary(max_size=6)), max_size=8), sound=st.booleans())
def test_any_bytes_from_a_socket(parts: list[bytes], sound: bool) -> None:
    ours, theirs = socket.socketpair()
    with contextlib.closing(theirs):
        theirs.sendall((b"HTTP/1.1 200 OK\r\n" if sound else b"") + b"".join(parts))
        theirs.shutdown(socket.SHUT_WR)
        transport = SocketTransport(lambda timeout: ours, 1)
        try:
            with Client("http://node", transport=transport, retries=0, timeout=30) as client:
                assert isinstance(client.capabilities(), dict)
        except ExodusError as error:
            shown(error)
        finally:
            ours.close()


class TestExamples:
    """Answers that the changes above have found, one by one."""

    def answered(self, **arguments: Any) -> Client:
        return Client("http://node", transport=httpx.MockTransport(lambda request: httpx.Response(**arguments)))

    def test_a_header_beyond_ascii(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.sendall(b"HTTP/1.1 404 No\r\nX-Request-ID: caf\xe9\r\nContent-Length: 0\r\n\r\n")
        with contextlib.closing(theirs), Client("http://n", transport=SocketTransport(lambda _: ours, 1)) as client:
            with pytest.raises(ExodusError) as caught:
                client.capabilities()
            assert caught.value.request_id == "café"

    @pytest.mark.parametrize("number", ["9" * 5000, "9" * 30, "-1", "²", "1.5"])
    def test_a_length_that_is_none(self, number: str) -> None:
        headers = [(b"Content-Length", number.encode())]
        with self.answered(status_code=200, headers=headers, stream=httpx.ByteStream(b"{}")) as client:
            assert client.capabilities() == {}

    def test_a_number_of_5000_digits(self) -> None:
        body = b'{"a": ' + b"9" * 5000 + b"}"
        with self.answered(status_code=200, content=body) as client, pytest.raises(InvalidResponseError):
            client.capabilities()

    @pytest.mark.parametrize("number", ["9" * 5000, "9" * 20, "²", "٣", ""])
    def test_a_gap_at_a_number_that_is_none(self, number: str) -> None:
        server = InProcessService()
        fault = {"pointer": "", "expected": number, "got": ""}
        problem = httpx.Response(409, json={"code": "sequence_gap", "errors": [fault]})
        answer = lambda request: problem if request.url.path.endswith("/step") else server(request)  # noqa: E731
        with Client("http://node", transport=httpx.MockTransport(answer), retries=RETRIES) as client:
            model = client.create_model(LAYERS, id="m", patience=0.05)
            with pytest.raises(ExodusError):
                model.step(X, Y, loss=LOSS).result(30)

    @pytest.mark.parametrize(
        ("member", "value"),
        [
            ("sequence", 2**70),
            ("sequence", 2),
            ("sequence", True),
            ("durable", "x"),
            ("durable", -1),
            ("durable_error", 3),
            ("device", None),
            ("metrics", {"loss:mean": True}),
            ("grad_norms", []),
        ],
    )
    def test_a_step_with_something_else(self, member: str, value: Any) -> None:
        server = InProcessService()

        def answer(request: httpx.Request) -> httpx.Response:
            found = server(request)
            if not request.url.path.endswith("/step"):
                return found
            params = decode(found.content, found.headers["Content-Type"]).params | {member: value}
            return httpx.Response(200, json={"v": 1, "params": params, "tensors": []})

        with Client("http://node", transport=httpx.MockTransport(answer), retries=RETRIES) as client:
            model = client.create_model(LAYERS, id="m")
            with pytest.raises(InvalidResponseError):
                model.step(X, Y, loss=LOSS).result(30)

    @pytest.mark.parametrize(
        ("tensors", "wrong"),
        [
            ({}, "tensors of the answer must be grad_input, got none"),
            ({"grad_membrane": X}, "must be grad_input, got grad_membrane"),
            ({"grad_input": X, "more": X}, "must be grad_input, got grad_input, more"),
            ({"grad_input": X[:1]}, r"must be float32 of shape \[2, 2, 3\], got float32 of shape \[1, 2, 3\]"),
            ({"grad_input": X.astype(np.float64)}, r"must be float32 .*, got float64 of shape \[2, 2, 3\]"),
        ],
    )
    def test_gradients_that_were_not_asked_for(self, tensors: dict[str, Any], wrong: str) -> None:
        described = [
            {"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "data": array.tolist()}
            for name, array in tensors.items()
        ]
        params = {"device": "cpu", "method": "exodus", "grad_norms": {}}
        document = {"v": 1, "params": params, "tensors": described}
        with self.answered(status_code=200, json=document) as client, pytest.raises(InvalidResponseError, match=wrong):
            client.gradients(neuron=LIF(0.9), membrane=X, grad_output=X)

    def test_gradients_of_a_response_model(self) -> None:
        described = {"name": "grad_psp", "dtype": "float32", "shape": [2, 2, 3], "data": X.tolist()}
        document = {"v": 1, "params": {"device": "c", "method": "bptt", "grad_norms": {}}, "tensors": [described]}
        with self.answered(status_code=200, json=document) as client:
            found = client.gradients(neuron=SRM([-1.0]), method="bptt", psp=X, grad_output=X)
        assert np.array_equal(found.grad_psp, X)

    @pytest.mark.parametrize("field", ["id", "sequence", "parameters", "network", "seed", "dtype", "in_memory", "name"])
    @pytest.mark.parametrize("value", [None, -1.5, "a b", [[]], {"layers": [1]}])
    def test_a_model_with_something_else(self, field: str, value: Any) -> None:
        server = InProcessService()

        def answer(request: httpx.Request) -> httpx.Response:
            found = server(request)
            if request.method == "POST":
                return found
            return httpx.Response(200, json=found.json() | {field: value})

        with Client("http://node", transport=httpx.MockTransport(answer)) as client:
            model = client.create_model(LAYERS, id="m")
            if (field, value) == ("name", "a b"):
                assert model.info().name == "a b"
                return
            with pytest.raises(InvalidResponseError, match="model"):
                model.info()

    @pytest.mark.parametrize(
        "change",
        [
            {"input_shape": "ab"}, {"input_shape": [-1]}, {"input_shape": [2.0]}, {"input_shape": [True]},
            {"input_shape": 3}, {"input_shape": {}}, {"layers": [{"kind": 3}]}, {"layers": [{"kind": None}]},
        ],
        ids=str,
    )  # fmt: skip
    def test_a_network_of_something_else(self, change: Any) -> None:
        server = InProcessService()

        def answer(request: httpx.Request) -> httpx.Response:
            found = server(request)
            if request.method == "POST":
                return found
            info = found.json()
            return httpx.Response(200, json=info | {"network": info["network"] | change})

        with Client("http://node", transport=httpx.MockTransport(answer)) as client:
            client.create_model(LAYERS, id="m")
            with pytest.raises(InvalidResponseError, match="its network cannot be"):
                client.model("m")

    def test_another_model(self) -> None:
        server = InProcessService()
        with Client("http://node", transport=httpx.MockTransport(server)) as client:
            client.create_model(LAYERS, id="other")

        def change(request: httpx.Request) -> httpx.Response:
            return server(httpx.Request("GET", "http://node/v1/models/other"))

        with (
            Client("http://node", transport=httpx.MockTransport(change)) as client,
            pytest.raises(InvalidResponseError, match="asked about model 'm', got one about 'other'"),
        ):
            client.model("m")

    @pytest.mark.parametrize(
        "params", [{"sequence": 0}, {"sequence": 1, "context": "c"}, {"sequence": 0, "context": 1}]
    )
    def test_outputs_to_differentiate_without_a_context_or_of_another_time(self, params: dict[str, Any]) -> None:
        server = InProcessService()
        outputs = {"name": "outputs", "dtype": "float32", "shape": [2, 2, 2], "data": np.zeros((2, 2, 2)).tolist()}
        document = {"v": 1, "params": params, "tensors": [outputs]}

        def answer(request: httpx.Request) -> httpx.Response:
            forward = request.url.path.endswith("/forward")
            return httpx.Response(200, json=document) if forward else server(request)

        with Client("http://node", transport=httpx.MockTransport(answer)) as client:
            model = client.create_model(LAYERS, id="m")
            with pytest.raises(InvalidResponseError, match="context"):
                model.step(X, loss=lambda outputs: outputs.sum()).result(30)
            assert model.step(X, Y, loss=LOSS).result(30).sequence == 2

    @pytest.mark.parametrize(
        ("name", "about"),
        [
            ("weights.0.bias", {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]}),
            ("weights.0.bias", {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}),
            ("weights.0.bias", {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}),
            ("weights.0.bias", {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
            ("weights.0.bias", {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}),
            ("weights.0.bias", {"dtype": "F32", "shape": [2**70], "data_offsets": [0, 2**72]}),
            ("weights.0.bias", {"dtype": "X", "shape": [2], "data_offsets": [0, 8]}),
            ("weights.0.bias", None),
            ("weights.another", {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}),
        ],
    )
    def test_a_state_of_other_tensors(self, name: str, about: Any) -> None:
        self.refused_state({"__metadata__": {"exodus": '{"sequence": 0}'}, name: about})

    @pytest.mark.parametrize("sequence", ["1", -1, 2**70, None, True])
    def test_a_state_after_a_number_of_calls_that_is_none(self, sequence: Any) -> None:
        self.refused_state({"__metadata__": {"exodus": json.dumps({"sequence": sequence})}})

    def refused_state(self, described: dict[str, Any]) -> None:
        server = InProcessService()
        header = json.dumps(described).encode()
        body = len(header).to_bytes(8, "little") + header + bytes(8)
        state = httpx.Response(200, content=body)
        answer = lambda request: state if request.url.path.endswith("/state") else server(request)  # noqa: E731
        with Client("http://node", transport=httpx.MockTransport(answer)) as client:
            model = client.create_model(LAYERS, id="m")
            with pytest.raises(InvalidResponseError, match="state"):
                model.state_dict()

    def test_what_the_library_cannot_read_is_no_failed_connection(self) -> None:
        def undecodable(request: httpx.Request) -> httpx.Response:
            raise httpx.DecodingError("gzip")

        with (
            Client("http://node", transport=httpx.MockTransport(undecodable)) as client,
            pytest.raises(InvalidResponseError, match="DecodingError: gzip"),
        ):
            client.capabilities()

    def test_what_a_transport_raises_of_its_own_is_passed_on(self) -> None:
        def odd(request: httpx.Request) -> httpx.Response:
            raise RuntimeError("odd")

        with (
            Client("http://node", transport=httpx.MockTransport(odd)) as client,
            pytest.raises(RuntimeError, match=r"^odd$"),
        ):
            client.capabilities()

    def test_a_header_of_times_is_read_in_time_linear_in_its_length(self) -> None:
        headers = {"Server-Timing": "a" * 60_000, "Content-Type": JSON_TYPE}
        described = {"name": "grad_input", "dtype": "float32", "shape": [2, 2, 3], "data": X.tolist()}
        document = {"v": 1, "params": {"device": "c", "method": "exodus", "grad_norms": {}}, "tensors": [described]}
        content = json.dumps(document).encode()
        with self.answered(status_code=200, headers=headers, content=content) as client:
            found = client.gradients(neuron=LIF(0.9), membrane=X, grad_output=X)
        assert found.timing.keys() == {"round_trip"}
