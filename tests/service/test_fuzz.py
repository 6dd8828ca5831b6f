"""Whatever a caller sends as a part of a body or a header, the answer is a result or a problem, never a bug."""

import copy
import http.client
import json
import re
import string
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from remote_models import ADAM, LOSS, NETWORK, Remote
from service.conftest import Served

from exodus_service.models.storage.state_file import MEDIA_TYPE, encode_state

JSON, MSGPACK = "application/json", "application/vnd.msgpack"
HANDLE = "a" * 32

#: What Python's json would not write: numbers of any size, and lists and objects of any depth.
LITERALS = [
    *("1e400", "-1e400", "1e-400", "-0", "1" + "0" * 4200, "-1" + "0" * 2200, "1" + "0" * 5000, "0.1" + "0" * 5000),
    *("[" * depth + "]" * depth for depth in (100, 900, 980, 2000)),
    '{"a":' * 960 + "1" + "}" * 960,
]


class Literal(str):
    """Written into JSON as it is spelt."""

    __slots__ = ()

    def __repr__(self) -> Any:
        return f"Literal({self[:20]})"


NUMBERS = [0, -1, 1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1e308, -1e308, 5e-324]
TEXTS = ["", "1", "-1", "1e400", "NaN", "Infinity", "-Infinity", "nan", "\u0663", "\ud800", "x" * 300, "input"]
PLAIN: list[Any] = [None, True, False, [], {}, [[]], [{}], [[[[[[[[[[[[[[]]]]]]]]]]]]]], {"a": {"a": {"a": {"a": {}}}}},
         {"kind": []}, {"kind": {}}, {"kind": None}, {"tensor": []}, {"tensor": "input"}]  # fmt: skip
KEYS = ["kind", "model", "alpha", "tensor", "v", "layers", "a", "__metadata__"]
EVIL = st.one_of(
    st.sampled_from([Literal(text) for text in LITERALS]),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(PLAIN),
    st.lists(st.sampled_from([0, 1, 2**31 - 1, 2**63 - 1, Literal("-1" + "0" * 2200)]), max_size=9),
    st.integers(1, 40).map(lambda count: [2**31 - 1] * count),
    st.integers(-(2**64), 2**65),
    st.floats(),
    st.text(max_size=5),
    st.dictionaries(st.sampled_from(KEYS), st.integers(), max_size=3),
)


def tensor(name: Any, dtype: str, shape: Any, data: Any, **more: Any) -> Any:
    return {"name": name, "dtype": dtype, "shape": shape, "data": data, **more}


INPUT = tensor("input", "bool", [1, 2, 6], [[0, 0, 1], [0, 1, 5]], encoding="events")
TARGETS = tensor("targets", "int64", [1], [1])
TRACE = [tensor(name, "float32", [1, 3, 1], [[[0.5], [1.5], [0.1]]]) for name in ("membrane", "grad_output")]
CURRENT = {**TRACE[0], "name": "input"}
SRM = {"model": "srm", "threshold": 1.0, "reset_kernel": {"kind": "exponential", "alpha": 0.9, "amplitude": -1.0}}
LIF = {"model": "lif", "alpha": 0.9, "threshold": 1.0, "reset": "subtract", "reset_by": 0.5, "decay_reset": False,
       "initial_membrane": 0.1, "min_membrane": -1.0, "bound_after_reset": True, "max_spikes": 2}  # fmt: skip
CUBA = {"model": "cuba_lif", "alpha": 0.9, "synapse_alpha": 0.8, "synapse_gain": 0.5, "synapse_delayed": True,
        "refractory": 2, "reset": "value", "reset_to": 0.1, "detach_reset": True, "initial_current": 0.1}  # fmt: skip
ALIF = {"model": "alif", "alpha": 0.9, "adapt_alpha": 0.8, "adapt_by": 0.5, "adapt_membrane": 0.1, "adapt_current": 0.1,
        "adapt_threshold": 0.3, "synapse_alpha": 0.8, "initial_adaptation": 0.1, "initial_refractory": 1.0}  # fmt: skip
SHAPED = {"input_shape": [2, 6, 6], "dtype": "float32", "layers": [
    {"kind": "conv2d", "out_channels": 2, "kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1]},
    {"kind": "if", "threshold": 1.0}, {"kind": "sum_pool", "size": [2, 2]}, {"kind": "flatten"},
    {"kind": "linear", "out_features": 2}, {"kind": "lif", "alpha": 0.9, "recurrent": True,
                                             "surrogate": {"kind": "boxcar", "slope": 1.0, "scale": 1.0}},
    {"kind": "dropout", "p": 0.1}]}  # fmt: skip


def document(params: dict[str, Any], *tensors: Any) -> Any:
    return {"v": 1, "params": params, "tensors": list(tensors)}


NEURONS = {"surrogate": {"kind": "exponential", "slope": 2.0, "scale": 1.0}, "time_dim": 1}
BODIES = {
    "/v1/gradients/exodus": [
        document({"neuron": LIF, **NEURONS, "output_filter": {"alpha": 0.5}, "result_dtype": "float64",
                  "wrt": ["alpha"], "return": ["spikes"]}, CURRENT, TRACE[1]),
        document({"neuron": SRM, **NEURONS}, *TRACE),
        document({"neuron": CUBA, "wrt": ["synapse_alpha", "reset_to"]}, *TRACE, {**TRACE[0], "name": "current"}),
        document({"neuron": ALIF, "wrt": ["adapt_alpha"], "return": ["state"]}, CURRENT, TRACE[1]),
        document({"neuron": {**SRM, "reset_kernel": {"kind": "alpha", "tau": 4.0, "amplitude": -1.0}}}, *TRACE),
        document({"neuron": {"model": "if"}}, tensor("spikes", "bool", [1, 2, 3], [[0, 0, 1]], encoding="events"),
                 tensor("weight", "float32", [1, 3], [[1.0, 2.0, 3.0]])),
    ],
    "/v1/gradients/bptt": [document({"neuron": LIF}, *TRACE)],
    "/v1/layers/forward": [
        document({"neuron": LIF, **NEURONS, "method": "slayer", "return": ["spikes"]}, CURRENT),
        document({"neuron": ALIF, "return": ["state"]}, CURRENT),
    ],
    "/v1/layers/backward": [document({"context": HANDLE, "wrt": ["alpha"], "keep": True}, TRACE[1])],
    "/v1/models": [
        document({"id": "n", "network": NETWORK, "optimizer": ADAM, "seed": 1, "durable_every": 5, "name": "n"}),
        document({"id": "n", "network": SHAPED, "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9}}),
        document({"id": "n", "network": {"layers": [{"kind": "linear", "in_features": 1, "out_features": 1}]},
                  "optimizer": {"kind": "adamw", "lr": 0.1, "betas": [0.9, 0.99]}},
                 tensor("weights", "float32", [2], [0.5, 0.5])),
    ],
    "/v1/models/m/step": [
        document({"sequence": 1, "writer": "w", "loss": {"kind": LOSS}, "gradients": True, "non_finite": "apply",
                  "lr": 0.1, "weight_decay": 0.1, "clip_norm": 1.0, "clip_value": 1.0}, INPUT, TARGETS),
        document({"sequence": 1, "context": HANDLE}, TRACE[1]),
    ],
    "/v1/models/m/forward_backward": [document({"sequence": 1, "loss": LOSS}, INPUT, TARGETS)],
    "/v1/models/m/optim_step": [document({"sequence": 1, "lr": 0.1, "skip": False, "gradients": False})],
    "/v1/models/m/forward": [
        document({"mode": "train", "context": True, "return": ["outputs"], "loss": LOSS, "after": 0,
                  "record": ["1.spikes", "1.membrane", "0.output"], "statistics": True}, INPUT, TARGETS)
    ],
}  # fmt: skip

HEADERS = ["X-Deadline-Ms", "Prefer", "X-Request-ID", "Content-Encoding", "Content-Type", "Content-Length", "Expect",
           "Authorization", "Upgrade", "Connection", "Accept", "Transfer-Encoding", "Host"]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(["0", "-1", "9" * 12, "9" * 13, "9" * 5000, "1" * 19, "1e400", "nan", "1.5", " 1", "1_0", "0x10"]),
    st.sampled_from(["\xb2\xb3", "\xff" * 10, "Bearer", "Bearer \xff", "application/json; charset=\xff", ""]),
    st.sampled_from(["wait=" + "9" * 5000, "wait=0", "wait=999999999", 'wait="', "zstd", "identity", "chunked"]),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20),
    st.text(string.digits, min_size=1, max_size=40),
)


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[Any]:
    """The paths of everything within plain data."""
    yield here
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from places(member, (*here, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


@st.composite
def documents(draw: Any, originals: Any) -> Any:
    """One of the documents with some of its values replaced, or members added."""
    found = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(found))))
        found = put(found, path, copy.deepcopy(draw(EVIL)))
        if isinstance(found, dict) and draw(st.integers(0, 9)) == 0:
            found[draw(st.sampled_from(["extra", "data", "nbytes", "encoding"]))] = copy.deepcopy(draw(EVIL))
    return found


def json_of(value: Any) -> Any:
    """JSON in which literals stand as they are spelt."""
    literals = []

    def marked(item: Any) -> Any:
        if isinstance(item, Literal):
            literals.append(item)
            return f"literal {len(literals) - 1}"
        if isinstance(item, dict):
            return {key: marked(member) for key, member in item.items()}
        return [marked(member) for member in item] if isinstance(item, list) else item

    text = json.dumps(marked(value))
    return re.sub(r'"literal (\d+)"', lambda found: str(literals[int(found[1])]), text).encode()


def msgpack_of(value: Any) -> Any:
    """The inline form, as far as msgpack has what is in the document."""

    def carried(item: Any) -> Any:
        if isinstance(item, Literal):
            return float("inf")
        if isinstance(item, int) and not isinstance(item, bool):
            return min(max(item, -(2**63)), 2**64 - 1)
        if isinstance(item, str):
            return item.encode("utf-8", "surrogatepass")[:60].decode("utf-8", "replace")
        if isinstance(item, dict):
            if isinstance(item.get("data"), list) and isinstance(item.get("dtype"), str):
                item = {**item, "data": packed(item["dtype"], item["data"], item.get("encoding"))}
            return {carried(str(key)): carried(member) for key, member in item.items()}
        return [carried(member) for member in item] if isinstance(item, list) else item

    def packed(dtype: str, data: Any, encoding: Any) -> Any:
        flat = str(data).translate(str.maketrans("[],", "   ")).split()
        numbers = [float(word) for word in flat if re.fullmatch(r"-?[0-9.]{1,9}", word)]
        if encoding == "events":
            return struct.pack(f"<{len(numbers)}i", *map(int, numbers))
        kind, cast = {"float32": ("f", float), "int64": ("q", int)}.get(dtype, ("b", lambda n: int(n) % 2))
        return struct.pack(f"<{len(numbers)}{kind}", *map(cast, numbers))

    return msgpack.packb(carried(value))


def check(status: int, content_type: str, body: bytes) -> None:
    """An answer that a caller can understand."""
    assert status != 500, body
    if status >= 400:
        assert content_type == "application/problem+json", body
        problem = json.loads(body)
        assert problem["status"] == status
        assert problem["code"] != "internal_error", problem
        assert all(fault.keys() == {"pointer", "expected", "got"} for fault in problem["errors"])
        assert len(body) < 100_000


@pytest.fixture
def remote(serve: Callable[..., Served], tmp_path: Path, connect: Callable[..., Remote]) -> Iterator[Any]:
    service = serve(
        state_dir=tmp_path / "state", max_activation_bytes=2**24, max_model_bytes=2**20, sequence_wait_s=0.01
    )
    remote = connect(service.port)
    assert remote.create().status == 201
    yield remote
    assert remote.info()["sequence"] >= 0
    assert service.engine.scheduler.requests == 0


EXAMPLES = settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("path", BODIES)
def test_no_value_anywhere_in_a_body_is_a_bug(remote: Remote, path: str) -> None:
    @EXAMPLES
    @given(documents(BODIES[path]), st.booleans())
    def sent(found: Any, as_json: Any) -> None:
        body = json_of(found) if as_json else msgpack_of(found)
        answer = remote.call(
            "POST", path, body, {"Content-Type": JSON if as_json else MSGPACK, "X-Deadline-Ms": "9000"}
        )
        check(answer.status, answer.headers["content-type"], answer.body)
        remote.call("DELETE", "/v1/models/n")

    sent()


def test_no_value_anywhere_in_a_state_is_a_bug(remote: Remote) -> None:
    tensors = remote.state()
    about = {
        "network": remote.info()["network"],
        "optimizer": remote.info()["optimizer"],
        "seed": 0,
        "sequence": 3,
        "version": 1,
    }

    @EXAMPLES
    @given(
        documents([about]),
        st.sampled_from(sorted(tensors)),
        st.sampled_from(["keep", "drop", "noise", "shape", "type"]),
    )
    def sent(found: Any, name: Any, change: Any) -> None:
        changed = dict(tensors)
        value = changed.pop(name)
        if change == "noise":
            changed[name] = torch.full_like(value, 255 if value.dtype == torch.uint8 else torch.nan)
        elif change == "shape":
            changed[name] = torch.zeros(3, dtype=value.dtype)
        elif change == "type":
            changed[name] = value.double()
        elif change == "keep":
            changed[name] = value
        metadata = {"exodus": json_of(found).decode()}
        body = b"".join(encode_state(changed, metadata).chunks)
        answer = remote.call("PUT", "/v1/models/m/state", body, {"Content-Type": MEDIA_TYPE})
        check(answer.status, answer.headers["content-type"], answer.body)

    sent()


def test_no_bytes_of_a_state_are_a_bug(remote: Remote) -> None:
    body = b"".join(encode_state(remote.state(), {"exodus": "{}"}).chunks)

    @EXAMPLES
    @given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=3), st.integers(0, len(body)))
    def sent(changes: Any, kept: int) -> None:
        damaged = bytearray(body[:kept])
        for place, value in changes:
            if place < kept:
                damaged[place] = value
        answer = remote.call("PUT", "/v1/models/m/state", bytes(damaged), {"Content-Type": MEDIA_TYPE})
        check(answer.status, answer.headers["content-type"], answer.body)

    sent()


CALLS = [("POST", path, json_of(bodies[0])) for path, bodies in BODIES.items()] + [
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/m/state", None),
    ("POST", "/v1/models/m/save", b""),
    ("GET", f"/v1/requests/{HANDLE}", None),
    ("DELETE", f"/v1/requests/{HANDLE}", None),
    ("GET", "/v1/models/" + "9" * 5000, None),
    ("DELETE", "/v1/models/%00%ff%d9%a3", None),
    ("GET", "/readyz", None),
]


def test_no_value_of_a_header_is_a_bug(remote: Remote) -> None:
    port = remote.connection.port

    @EXAMPLES
    @given(st.sampled_from(CALLS), st.dictionaries(st.sampled_from(HEADERS), VALUES, min_size=1, max_size=2))
    def sent(call: Any, headers: Any) -> None:
        verb, path, body = call
        given_headers = {"Content-Type": JSON, "Content-Length": str(len(body or b""))} | headers
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.putrequest(verb, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in given_headers.items():
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders()
        try:
            connection.send(body or b"")
            answer = connection.getresponse()
            check(answer.status, answer.headers["content-type"] or "", answer.read())
        except (TimeoutError, ConnectionError, http.client.RemoteDisconnected):
            assert headers.keys() & {"Content-Length", "Expect", "Transfer-Encoding", "Connection", "Upgrade", "Host"}
        finally:
            connection.close()
        remote.call("DELETE", "/v1/models/n")

    sent()
