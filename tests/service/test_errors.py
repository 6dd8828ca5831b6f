"""Refused requests: each with its status, code and pointer, and the connection serves the next one."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from service.conftest import Answer, Caller, Served

from exodus_client.wire import JSON_TYPE, MSGPACK_TYPE, Message, Tensor, encode
from exodus_service.errors import MAX_FAULTS, Code, Fault, ServiceError, invalid
from exodus_service.gradients.params import Params, parse
from exodus_service.http.problem_json import KINDS
from exodus_service.operations.params import CreateParams, OptimStepParams

LIF = {"model": "lif", "alpha": 0.9}
MEMBERS = {
    "type", "title", "status", "detail", "instance", "code", "category", "retryable", "request_id", "errors",
}  # fmt: skip


def assert_problem(answer: Answer, status: int, code: Code, *pointers: Any) -> Any:
    """The answer is the problem that was meant, with every member that it has to have."""
    assert answer.status == status, answer.body
    problem = answer.problem
    assert problem.keys() == MEMBERS
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["category"] == KINDS[code].category
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "server-timing" in answer.headers
    assert problem["detail"]
    found = [error["pointer"] for error in problem["errors"]]
    for pointer in pointers:
        assert pointer in found, problem
    return problem


@pytest.fixture
def caller(caller: Caller, good: Message) -> Iterator[Any]:
    """A connection on which a good request is served after the test, whatever the test did."""
    yield caller
    assert caller.gradients(good).status == 200


def body_of(message: Message) -> bytes:
    return b"".join(encode(message).chunks)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", MSGPACK_TYPE),
        (b"\xc1", MSGPACK_TYPE),
        (b"\x81\xa1v", MSGPACK_TYPE),
        (b"[]", "application/json"),
        (b"{", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b'{"v": 1}', "application/json"),
    ],
)
def test_400_for_a_body_that_cannot_be_read(caller: Caller, body: bytes, content_type: str) -> None:
    (error,) = assert_problem(caller.post(body, content_type), 400, "malformed")["errors"]
    assert error["expected"]
    assert error["got"]


def test_400_for_a_truncated_body(caller: Caller, good: Message) -> None:
    body = body_of(good)
    for length in (1, 60, 200, len(body) - 1):
        assert_problem(caller.post(body[:length], MSGPACK_TYPE), 400, "malformed")


@pytest.mark.parametrize("value", ["soon", "-1", "1.5", "9" * 40, ""])
def test_400_for_a_deadline_that_is_no_number(caller: Caller, good: Message, value: Any) -> None:
    answer = caller.gradients(good, headers={"X-Deadline-Ms": value})
    assert_problem(answer, 400, "malformed", "/headers/x-deadline-ms")


def test_401_without_a_key_and_403_with_a_wrong_one(serve: Callable[..., Served], good: Message) -> None:
    caller = serve(api_keys="first, second").caller
    answer = caller.gradients(good)
    assert_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert_problem(caller.gradients(good, headers={"Authorization": "Basic first"}), 401, "unauthorized")
    assert_problem(caller.gradients(good, headers={"Authorization": "Bearer wrong"}), 403, "forbidden")
    assert_problem(caller.call("GET", "/v1/capabilities"), 401, "unauthorized")
    assert_problem(caller.call("GET", "/v1/unknown"), 401, "unauthorized")
    for key in ("first", "second"):
        assert caller.gradients(good, headers={"Authorization": f"Bearer {key}"}).status == 200
    for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
        assert caller.call("GET", path).status == 200


def test_keys_are_read_from_a_file_too(serve: Callable[..., Served], good: Message, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\ufeff# for the laboratory\n\n  third \n")  # as editors on Windows save it
    caller = serve(api_keys_file=file).caller
    assert_problem(caller.gradients(good), 401, "unauthorized")
    assert caller.gradients(good, headers={"Authorization": "bearer third"}).status == 200


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/gradients", "/v1/gradients/adjoint", "/livez/", "/v1/unknown"])
def test_404_for_what_is_not_there(caller: Caller, path: str) -> None:
    assert_problem(caller.call("POST", path, b"{}"), 404, "not_found")


@pytest.mark.parametrize(
    ("verb", "path", "allowed"),
    [
        ("GET", "/v1/gradients/exodus", "POST"),
        ("HEAD", "/v1/gradients/exodus", "POST"),
        ("DELETE", "/v1/models", "GET, HEAD, POST"),
        ("PATCH", "/v1/models/m/state", "GET, HEAD, PUT"),
        ("POST", "/livez", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
def test_405_for_another_method_than_the_path_takes(caller: Caller, verb: str, path: str, allowed: str) -> None:
    answer = caller.call(verb, path)
    assert answer.status == 405
    assert ", ".join(sorted(answer.headers["allow"].split(", "))) == allowed
    if verb != "HEAD":
        assert_problem(answer, 405, "method_not_allowed")


@pytest.mark.parametrize(
    "path",
    ["/livez", "/readyz", "/v1/capabilities", "/v1/models", "/v1/models/none", "/docs", "/openapi.json", "/none"],
)
def test_head_is_get_without_the_body(caller: Caller, path: str) -> None:
    told, asked = caller.call("HEAD", path), caller.call("GET", path)
    assert (told.status, told.body) == (asked.status, b"")
    assert told.headers["content-type"] == asked.headers["content-type"]
    assert int(told.headers["content-length"]) == len(asked.body)
    assert told.headers.keys() == asked.headers.keys()


@pytest.mark.parametrize(
    ("content_type", "encoding", "beginning", "advice"),
    [
        (MSGPACK_TYPE, "identity", b'{"v": 1}', "JSON; send it with Content-Type: application/json"),
        (MSGPACK_TYPE, "identity", b"\n [1]", "JSON; send it with Content-Type: application/json"),
        ("application/json", "identity", b"\x83\xa1v", "msgpack; send it with Content-Type: application/vnd.msgpack"),
        (MSGPACK_TYPE, "identity", b"\x28\xb5\x2f\xfd", "zstd; send it with Content-Encoding: zstd"),
        ("application/json", "identity", b"\x1f\x8b\x08", "gzip; send it as it is, or as zstd"),
        (MSGPACK_TYPE, "zstd", b"\x83\xa1v", "msgpack; leave out Content-Encoding"),
    ],
)
def test_a_body_of_another_form_than_its_header_says_is_told_what_to_send(
    caller: Caller, content_type: str, encoding: str, beginning: bytes, advice: str
) -> None:
    answer = caller.post(beginning, content_type, headers={"Content-Encoding": encoding})
    problem = assert_problem(answer, 400, "malformed", "")
    assert problem["detail"].endswith(f"got what looks like {advice}")


def test_a_problem_says_its_sentence_once_and_is_short_whatever_came(
    caller: Caller, ask: Callable[..., Message]
) -> None:
    one = caller.gradients(ask({"model": "lif", "alpha": 1.5}, membrane=U, grad_output=U)).problem
    (fault,) = one["errors"]
    assert one["detail"] == f"{fault['pointer']} must be {fault['expected']}, got {fault['got']}"
    many = caller.gradients(ask(LIF, membrane=U, grad_output=U, wrt=["x"] * 1000, **{"y" * 10_000: 1}))
    assert len(many.problem["errors"]) == MAX_FAULTS
    assert many.problem["detail"].endswith("; and 1000 more")
    assert len(many.body) < 50_000


def test_411_for_a_body_without_length(caller: Caller) -> None:
    headers = {"Content-Type": MSGPACK_TYPE, "Transfer-Encoding": "chunked"}
    answer = caller.call("POST", "/v1/gradients/exodus", b"4\r\nabcd\r\n0\r\n\r\n", headers)
    assert_problem(answer, 411, "length_required", "/headers/content-length")


def test_413_for_a_body_over_the_limit(serve: Callable[..., Served], good: Message, until: Callable[..., None]) -> None:
    service = serve(max_body_bytes=10_000)
    answer = service.caller.post(bytes(10_001), MSGPACK_TYPE)
    problem = assert_problem(answer, 413, "too_large", "/headers/content-length")
    assert problem["errors"][0]["expected"] == "at most 10000 bytes (EXODUS_MAX_BODY_BYTES)"
    assert service.caller.gradients(good).status == 200


def test_413_is_answered_before_the_body_is_read(running: Served) -> None:
    with running.raw() as connection:
        connection.sendall(
            b"POST /v1/gradients/exodus HTTP/1.1\r\nHost: x\r\nContent-Type: application/msgpack\r\n"
            b"Content-Length: 1000000000000\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = connection.makefile("rb").read()  # to the end: the connection is closed
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


def test_an_admitted_body_is_asked_for(running: Served, good: Message) -> None:
    body = body_of(good)
    with running.raw() as connection:
        connection.sendall(
            b"POST /v1/gradients/exodus HTTP/1.1\r\nHost: x\r\nContent-Type: application/msgpack\r\n"
            b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body)
        )
        reply = connection.makefile("rb")
        assert reply.readline() == b"HTTP/1.1 100 Continue\r\n"
        reply.readline()
        connection.sendall(body)
        assert reply.readline() == b"HTTP/1.1 200 OK\r\n"


def test_413_for_json_over_its_own_limit(caller: Caller) -> None:
    assert_problem(caller.post(b" " * (1 << 20) + b"{}", "application/json"), 413, "too_large")


def test_413_for_a_small_body_that_unpacks_to_a_large_one(serve: Callable[..., Served], good: Message) -> None:
    import zstandard

    caller = serve(max_body_bytes=1_000_000).caller
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    answer = caller.post(bomb, MSGPACK_TYPE, headers={"Content-Encoding": "zstd"})
    assert_problem(answer, 413, "too_large")
    spikes = Tensor.of("spikes", np.zeros((1, 1000, 2000), bool), "events")
    request = Message.of({"neuron": LIF}, [spikes])
    assert_problem(caller.gradients(request), 413, "too_large", "/tensors/0/shape")
    assert caller.gradients(good).status == 200


def test_413_for_too_many_tensors_and_dimensions(caller: Caller) -> None:
    entry = {"name": "a", "dtype": "bool", "shape": [1] * 9, "data": []}
    body = json.dumps({"v": 1, "params": {}, "tensors": [entry]}).encode()
    assert_problem(caller.post(body, "application/json"), 413, "too_large", "/tensors/0/shape")
    body = json.dumps({"v": 1, "params": {}, "tensors": [entry] * 65}).encode()
    assert_problem(caller.post(body, "application/json"), 413, "too_large", "/tensors")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-protobuf", ""])
def test_415_for_another_content_type(caller: Caller, content_type: str) -> None:
    assert_problem(caller.post(b"{}", content_type), 415, "unsupported", "/headers/content-type")


def test_415_for_another_content_encoding(caller: Caller, good: Message) -> None:
    answer = caller.gradients(good, headers={"Content-Encoding": "gzip"})
    assert_problem(answer, 415, "unsupported", "/headers/content-encoding")


def test_415_for_an_encoding_or_version_that_is_not_spoken(caller: Caller) -> None:
    entry = {"name": "a", "dtype": "float32", "shape": [1], "encoding": "csr", "data": [1.0]}
    body = json.dumps({"v": 1, "params": {}, "tensors": [entry]}).encode()
    assert_problem(caller.post(body, "application/json"), 415, "unsupported", "/tensors/0/encoding")
    body = json.dumps({"v": 2, "params": {}, "tensors": []}).encode()
    assert_problem(caller.post(body, "application/json"), 415, "unsupported", "/v")


def test_422_names_the_tensor_and_both_shapes(caller: Caller, ask: Callable[..., Message]) -> None:
    answer = caller.gradients(ask(LIF, membrane=torch.rand(2, 5, 3), grad_output=torch.rand(2, 5, 4)))
    problem = assert_problem(answer, 422, "invalid", "/tensors/1/shape")
    for part in ("'grad_output'", "'membrane'", "[2, 5, 3]", "[2, 5, 4]"):
        assert part in problem["detail"]
    (error,) = problem["errors"]
    assert "[2, 5, 3]" in error["expected"]
    assert error["got"] == "[2, 5, 4]"


U, W = torch.rand(2, 5, 3), torch.rand(4, 3)


@pytest.mark.parametrize(
    ("neuron", "parts", "pointer"),
    [
        (LIF, {"membrane": U, "grad_output": U.double()}, "/tensors/1/dtype"),
        (LIF, {"membrane": U.int(), "grad_output": U}, "/tensors/0/dtype"),
        (LIF, {"membrane": U, "grad_output": U, "grad_membrane": U[:1]}, "/tensors/2/shape"),
        (LIF, {"membrane": U, "grad_output": U, "weights": W}, "/tensors/2"),
        (LIF, {"membrane": U, "input": U, "grad_output": U}, "/tensors"),
        (LIF, {"grad_output": U}, "/tensors"),
        (LIF, {"membrane": U}, "/tensors"),
        (LIF, {"membrane": U, "return_": ["spikes"]}, "/tensors"),
        (LIF, {"input": U}, "/tensors"),
        (LIF, {"input": U, "return_": ["spikes"], "wrt": ["alpha"]}, "/params/wrt"),
        (LIF, {"psp": U, "grad_output": U}, "/tensors"),
        (LIF, {"spikes": U, "grad_output": U}, "/tensors"),
        (LIF, {"spikes": U, "weight": W.T, "grad_output": U}, "/tensors/0/shape"),
        (LIF, {"spikes": U, "weight": W[0], "grad_output": U}, "/tensors/1/shape"),
        (LIF, {"spikes": U, "weight": W, "grad_output": U}, "/tensors/2/shape"),
        (LIF, {"spikes": U, "weight": W, "grad_output": U, "time_dim": 2}, "/params/time_dim"),
        (LIF, {"membrane": U, "grad_output": U, "time_dim": 3}, "/params/time_dim"),
        (LIF, {"membrane": U, "grad_output": U, "time_dim": 1.0}, "/params/time_dim"),
        (LIF, {"membrane": U, "grad_output": U, "threshhold": 1.0}, "/params/threshhold"),
        (LIF, {"membrane": U, "grad_output": U, "wrt": ["alpha", "beta"]}, "/params/wrt/1"),
        (LIF, {"membrane": U, "grad_output": U, "result_dtype": "int8"}, "/params/result_dtype"),
        (LIF, {"membrane": U, "grad_output": U, "surrogate": {"kind": "relu"}}, "/params/surrogate/kind"),
        (LIF, {"membrane": U, "grad_output": U, "surrogate": {"slope": 0.0}}, "/params/surrogate/slope"),
        (LIF, {"membrane": U, "grad_output": U, "output_filter": {"alpha": 1.5}}, "/params/output_filter/alpha"),
        (LIF, {"membrane": U, "grad_membrane": U, "output_filter": {"alpha": 0.5}}, "/params/output_filter"),
        (LIF, {"membrane": U, "grad_output": U, "wrt": ["reset_by"]}, "/params/wrt"),
        ({"model": "lif"}, {"membrane": U, "grad_output": U}, "/params/neuron/alpha"),
        ({"model": "lif", "alpha": 1.5}, {"membrane": U, "grad_output": U}, "/params/neuron/alpha"),
        ({"model": "lif", "alpha": "0.9"}, {"membrane": U, "grad_output": U}, "/params/neuron/alpha"),
        ({"model": "lif", "alpha": {"tensor": "a"}}, {"membrane": U, "grad_output": U}, "/params/neuron/alpha/tensor"),
        ({"model": "lif", "alpha": {"tensor": "a"}}, {"membrane": U, "grad_output": U, "a": W}, "/params/neuron/alpha"),
        (LIF | {"lif": 1}, {"membrane": U, "grad_output": U}, "/params/neuron/lif"),
        (LIF | {"reset": "hard"}, {"membrane": U, "grad_output": U}, "/params/neuron/reset"),
        (LIF | {"reset": "zero", "max_spikes": 2}, {"membrane": U, "grad_output": U}, "/params/neuron/max_spikes"),
        (LIF | {"max_spikes": 0}, {"membrane": U, "grad_output": U}, "/params/neuron/max_spikes"),
        ({"model": "if", "alpha": 0.5}, {"membrane": U, "grad_output": U}, "/params/neuron/alpha"),
        ({"model": "izhikevich"}, {"membrane": U, "grad_output": U}, "/params/neuron"),
        ({"model": "srm"}, {"psp": U, "grad_output": U}, "/tensors"),
        ({"model": "srm"}, {"psp": U, "grad_output": U, "reset_kernel": W}, "/params/neuron/reset_kernel"),
        ({"model": "srm", "reset_kernel": {"kind": "b"}}, {"psp": U, "grad_output": U}, "/params/neuron/reset_kernel"),
        ({"model": "srm", "reset_kernel": {"kind": []}}, {"psp": U, "grad_output": U}, "/params/neuron/reset_kernel"),
        ({"model": "srm"}, {"psp": U, "grad_output": U, "reset_kernel": W[0], "wrt": ["alpha"]}, "/params/wrt"),
        ({"model": "srm", "reset_kernel": {"kind": {}}}, {"psp": U, "grad_output": U}, "/params/neuron/reset_kernel"),
        ({"model": []}, {"membrane": U, "grad_output": U}, "/params/neuron"),
    ],
)  # fmt: skip
def test_422_points_at_what_does_not_fit(
    caller: Caller, ask: Callable[..., Message], neuron: dict[str, Any], parts: dict[str, Any], pointer: str
) -> None:
    assert_problem(caller.gradients(ask(neuron, **parts)), 422, "invalid", pointer)


@pytest.mark.parametrize(
    ("neuron", "parts", "expected", "got"),
    [
        ({"model": "lif", "alpha": 1.5}, {"membrane": U}, "in [0, 1]", "1.5"),
        (LIF | {"reset": "zero", "max_spikes": 2}, {"membrane": U}, "1 with reset 'zero'", "2"),
        (
            {"model": "lif", "alpha": {"tensor": "a"}},
            {"membrane": U, "a": W},
            "values that broadcast",
            "shape",
        ),
        (LIF, {"membran": U}, "a list with exactly one of membrane, input, spikes", "'grad_output', 'membran'"),
        ({"model": "srm"}, {"psp": U, "reset_kernel": W}, "a 1-d tensor with at least one tap", "shape (4, 3)"),
    ],
)
def test_what_is_expected_is_said_in_plain_words(
    caller: Caller, ask: Callable[..., Message], neuron: dict[str, Any], parts: dict[str, Any], expected: str, got: str
) -> None:
    (error,) = caller.gradients(ask(neuron, grad_output=U, **parts)).problem["errors"]
    assert error["expected"].startswith(expected)
    assert error["got"].startswith(got)


def test_a_request_that_asks_for_nothing_is_told_which_tensors_came(
    caller: Caller, ask: Callable[..., Message]
) -> None:
    (error,) = caller.gradients(ask(LIF, membrane=U)).problem["errors"]
    assert error["got"] == "'membrane'"


CREATE: dict[str, Any] = {"network": {}, "optimizer": {}}


@pytest.mark.parametrize(
    ("model", "params", "sentence"),
    [
        (Params, {}, "/params/neuron must be present, got nothing"),
        (Params, {"neuron": LIF, "wrrt": []}, "/params/wrrt must be absent (unknown field), got []"),
        (
            Params,
            {"neuron": 1},
            "/params/neuron must be an object whose model is lif, if, cuba_lif, alif or srm, got 1",
        ),
        (
            Params,
            {"neuron": {"model": "srm", "reset_kernel": {"kind": "b"}}},
            "/params/neuron/reset_kernel must be a tensor, or an object whose kind is exponential, alpha or "
            "slayer_refractory, got {'kind': 'b'}",
        ),
        (Params, {"neuron": LIF | {"alpha": "1"}}, "/params/neuron/alpha must be a number, got '1'"),
        (Params, {"neuron": LIF | {"alpha": np.inf}}, "/params/neuron/alpha must be a finite number, got inf"),
        (
            Params,
            {"neuron": LIF | {"reset": "hard"}},
            "/params/neuron/reset must be 'subtract', 'zero', 'none' or 'value', got 'hard'",
        ),
        (Params, {"neuron": LIF | {"max_spikes": 0}}, "/params/neuron/max_spikes must be at least 1, got 0"),
        (Params, {"neuron": LIF | {"decay_reset": 1}}, "/params/neuron/decay_reset must be true or false, got 1"),
        (
            Params,
            {"neuron": LIF | {"threshold": {"tensor": ""}}},
            "/params/neuron/threshold/tensor must be a text of at least 1 characters, got ''",
        ),
        (Params, {"neuron": LIF, "time_dim": 1.5}, "/params/time_dim must be an integer, got 1.5"),
        (Params, {"neuron": LIF, "time_dim": 8}, "/params/time_dim must be at most 7, got 8"),
        (Params, {"neuron": LIF, "surrogate": 1}, "/params/surrogate must be an object, got 1"),
        (
            Params,
            {"neuron": LIF, "surrogate": {"slope": -1.0}},
            "/params/surrogate/slope must be greater than 0.0, got -1.0",
        ),
        (Params, {"neuron": LIF, "wrt": "alpha"}, "/params/wrt must be a list, got 'alpha'"),
        (CreateParams, CREATE | {"name": 1}, "/params/name must be a text, got 1"),
        (CreateParams, CREATE | {"name": "x" * 300}, "/params/name must be a text of at most 256 characters, got '"),
        (
            CreateParams,
            CREATE | {"id": "a b"},
            "/params/id must be a text that matches ^[A-Za-z0-9_-]{1,64}$, got 'a b'",
        ),
        (CreateParams, CREATE | {"network": []}, "/params/network must be an object, got []"),
        (CreateParams, CREATE | {"seed": 10**30}, "/params/seed must be at most 9223372036854775807, got 1000"),
        (OptimStepParams, {"sequence": 1.0}, "/params/sequence must be an integer, got 1.0"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_it_must_be(model: Any, params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ServiceError) as caught:
        parse(model, params)
    assert caught.value.detail.startswith(sentence)


@pytest.mark.parametrize(
    ("pointer", "name"),
    [("", "the body"), ("/headers/x-deadline-ms", "header x-deadline-ms"), ("/params/wrt/1", "/params/wrt/1")],
)
def test_the_sentence_of_a_fault_names_the_body_a_header_or_the_pointer(pointer: str, name: str) -> None:
    assert Fault(pointer, "an integer", "1.5").sentence == f"{name} must be an integer, got 1.5"
    error = invalid(pointer, "an integer", "1.5", name="it", code="malformed")
    assert (error.code, error.detail) == ("malformed", "it must be an integer, got 1.5")


def test_422_for_a_payload_that_contradicts_its_description(caller: Caller, good: Message) -> None:
    body = body_of(good).replace(b"\xa5shape\x93\x02\x05\x03", b"\xa5shape\x93\x02\x05\x04", 1)
    assert_problem(caller.post(body, MSGPACK_TYPE), 422, "invalid", "/tensors/0")


def test_422_for_spikes_and_weights_that_would_make_something_huge(
    serve: Callable[..., Served], ask: Callable[..., Message]
) -> None:
    caller = serve(max_body_bytes=1_000_000).caller
    request = ask(LIF, spikes=torch.zeros(1, 5000, 1), weight=torch.zeros(5000, 1), return_=["spikes"])
    assert_problem(caller.gradients(request), 422, "invalid", "/tensors/1/shape")
    bits = Tensor.of("spikes", np.zeros((1, 5000, 100), bool), "bits")
    request = Message.of({"neuron": LIF, "return": ["spikes"]}, [bits, Tensor.of("weight", np.zeros((1, 100)))])
    assert_problem(caller.gradients(request), 422, "invalid", "/tensors/0/shape")


def test_413_for_a_shape_of_numbers_beyond_all_sizes(caller: Caller) -> None:
    shape = [10**2200, 10**2200]
    body = {"v": 1, "params": {}, "tensors": [{"name": "a", "dtype": "int8", "shape": shape, "data": []}]}
    assert_problem(caller.post(json.dumps(body).encode(), JSON_TYPE), 413, "too_large", "/tensors/0/shape")


@pytest.mark.parametrize("name", ["Content-Length", "X-Deadline-Ms", "Content-Type", "Content-Encoding"])
def test_a_header_of_any_length_is_refused_and_named_briefly(running: Served, good: Message, name: str) -> None:
    headers = {"Content-Type": MSGPACK_TYPE, "Content-Length": "9" * 17} | {name: "9" * 5000}
    with running.raw() as connection:
        lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        connection.sendall(f"POST /v1/gradients/exodus HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode())
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"413", b"415")
    assert len(body) < 2000


def test_of_very_many_faults_the_first_are_named(caller: Caller, ask: Callable[..., Message]) -> None:
    message = ask(membrane=torch.zeros(1, 2), **{f"unknown{number}": 0 for number in range(2000)})
    answer = caller.gradients(message)
    assert_problem(answer, 422, "invalid", "/params/unknown0")
    assert len(answer.problem["errors"]) == 32


def test_several_faults_are_named_together(caller: Caller, ask: Callable[..., Message]) -> None:
    request = ask({"model": "lif", "alpha": "x", "reset": "y"}, membrane=U, grad_output=U, z=1)
    problem = assert_problem(caller.gradients(request), 422, "invalid", "/params/neuron/alpha", "/params/z")
    assert len(problem["errors"]) == 3


def test_429_when_as_many_requests_as_allowed_are_admitted(
    serve: Callable[..., Served], good: Message, until: Callable[..., None]
) -> None:
    service = serve(max_queue=1, retry_after_s=7)
    with service.busy():
        waiting = service.new_caller()
        encoded = encode(good)
        waiting.connection.request(
            "POST", "/v1/gradients/exodus", b"".join(encoded.chunks), {"Content-Type": encoded.content_type}
        )
        until(lambda: service.engine.scheduler.requests == 1)
        answer = service.caller.gradients(good)
        assert assert_problem(answer, 429, "queue_full")["retryable"]
        assert answer.headers["retry-after"] == "7"
        assert service.caller.call("GET", "/livez").status == 200
    assert waiting.connection.getresponse().status == 200
    waiting.connection.close()
    until(lambda: service.engine.scheduler.requests == 0)
    assert service.caller.gradients(good).status == 200


def test_500_says_nothing_of_the_inside_and_the_log_has_the_traceback(
    caller: Caller,
    good: Message,
    until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_args: Any, **_more: Any) -> None:
        raise ZeroDivisionError("secret")

    with monkeypatch.context() as patch:
        patch.setattr("exodus_service.gradients.request.prepare", broken)
        answer = caller.gradients(good, headers={"X-Request-ID": "find-me"})
    assert_problem(answer, 500, "internal_error")
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"] == "find-me"
    until(lambda: "ZeroDivisionError: secret" in caplog.text)


def test_503_while_the_service_starts_or_stops(serve: Callable[..., Served], good: Message) -> None:
    from exodus_service.engine import Phase

    service = serve(retry_after_s=3)
    codes: tuple[tuple[Phase, Code], ...] = ((Phase.STARTING, "not_ready"), (Phase.STOPPING, "draining"))
    for phase, code in codes:
        service.engine.phase = phase
        for answer in (service.caller.gradients(good), service.caller.call("GET", "/readyz")):
            assert assert_problem(answer, 503, code)["retryable"]
            assert answer.headers["retry-after"] == "3"
        assert service.caller.call("GET", "/livez").status == 200
    service.engine.phase = Phase.READY
    assert service.caller.gradients(good).status == 200


def test_504_at_the_deadline_and_the_work_is_never_done(
    running: Served, caller: Caller, good: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    prepare = "exodus_service.gradients.request.prepare"
    with running.busy(), monkeypatch.context() as patch:
        patch.setattr(prepare, lambda *_args, **_more: computed.append(1))
        answer = caller.gradients(good, headers={"X-Deadline-Ms": "30"})
        assert_problem(answer, 504, "deadline")
    running.engine.scheduler.execute(lambda: None).result()
    assert not computed
    assert_problem(caller.gradients(good, headers={"X-Deadline-Ms": "0"}), 504, "deadline")
    assert caller.gradients(good, headers={"X-Deadline-Ms": "10000"}).status == 200


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8589934592 bytes."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes."),
    ],
    ids=repr,
)
def test_507_when_an_allocation_fails(
    caller: Caller, good: Message, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def exhausted(*_args: Any, **_more: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("exodus_service.gradients.computation.Computation.run", exhausted)
        answer = caller.gradients(good)
    assert_problem(answer, 507, "out_of_memory")


def test_507_when_there_is_no_room_for_the_body(caller: Caller, good: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_args: Any, **_more: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("exodus_service.http.body.empty_buffer", exhausted)
        assert_problem(caller.gradients(good), 507, "out_of_memory")


def test_the_name_of_a_request_is_echoed_or_made_up(caller: Caller, good: Message) -> None:
    named = caller.gradients(good, headers={"X-Request-ID": "run-7/step.3"})
    assert named.headers["x-request-id"] == "run-7/step.3"
    made_up = [caller.gradients(good).headers["x-request-id"] for _ in range(2)]
    assert made_up[0] != made_up[1]
    for bad in ("a b", "x" * 129, "a;b", 'a"b'):
        assert caller.call("GET", "/livez", headers={"X-Request-ID": bad}).headers["x-request-id"] != bad


def test_every_response_says_where_the_time_went(caller: Caller, good: Message) -> None:
    answers = caller.gradients(good), caller.call("GET", "/livez"), caller.call("GET", "/unknown")
    for answer in answers:
        spent = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
        assert spent.keys() == {"receive", "queue", "decode", "kernel", "encode", "total"}
        parts = sum(float(value) for name, value in spent.items() if name != "total")
        assert parts <= float(spent["total"]) + 0.01


def test_a_body_that_is_not_understood_is_never_an_internal_error(caller: Caller, good: Message) -> None:
    from hypothesis import given, settings
    from hypothesis import strategies as st

    original = body_of(good)

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.lists(st.tuples(st.integers(0, len(original) - 1), st.integers(0, 255)), max_size=4), st.integers(1, 300))
    def damaged(changes: list[tuple[int, int]], kept: int) -> None:
        body = bytearray(original)
        for place, value in changes:
            body[place] = value
        for candidate in (bytes(body), bytes(body[:kept])):
            assert caller.post(candidate, MSGPACK_TYPE).status in (200, 400, 413, 415, 422)

    damaged()


def test_a_gradient_of_a_parameter_that_is_none_is_refused_in_one_sentence(
    caller: Caller, ask: Callable[..., Message]
) -> None:
    problem = caller.gradients(ask(LIF, membrane=U, grad_output=U, wrt=["reset_by"])).problem
    (error,) = problem["errors"]
    assert error["pointer"] == "/params/wrt"
    assert error["expected"].endswith("parameters that are not None")
    assert error["got"].startswith("reset_by")
    assert problem["detail"].count(error["expected"]) == problem["detail"].count(error["got"]) == 1
