"""Bodies that a server has to survive: each is refused for its reason, and points at the place."""

import json
import struct
from types import SimpleNamespace
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest

from exodus_client.wire import (
    JSON_TYPE,
    MAX_PAYLOAD_BYTES,
    MSGPACK_TYPE,
    Limits,
    Message,
    Tensor,
    WireError,
    decode,
    encode,
)

SMALL = Limits(max_bytes=1000)


def refusal(body: bytes, content_type: str = MSGPACK_TYPE, limits: Limits = SMALL) -> tuple[str, str]:
    with pytest.raises(WireError) as caught:
        read_all(body, content_type, limits)
    assert str(caught.value)
    return caught.value.code, caught.value.pointer


def read_all(body: bytes, content_type: str, limits: Limits) -> None:
    for tensor in decode(body, content_type, limits=limits).tensors.values():
        tensor.numpy()


def header(*entries: Any, **more: Any) -> dict[str, Any]:
    return {"v": 1, "params": {}, "tensors": list(entries)} | more


def a_tensor(**changes: Any) -> dict[str, Any]:
    entry = {"name": "a", "dtype": "uint8", "shape": [3], "encoding": "raw", "nbytes": 3} | changes
    return {key: value for key, value in entry.items() if value is not None}


@pytest.mark.parametrize(
    ("top", "refused"),
    [
        ([], ("malformed", "")),
        ({"params": {}, "tensors": []}, ("malformed", "/v")),
        (header(v=2), ("unsupported", "/v")),
        (header(v=True), ("unsupported", "/v")),
        (header(v="a long version, which is not shown in the message as a whole"), ("unsupported", "/v")),
        (header(params=[]), ("malformed", "/params")),
        (header(tensors={}), ("malformed", "/tensors")),
        ({"v": 1, "params": {}}, ("malformed", "/tensors")),
        (header(more=1), ("malformed", "")),
        (header(*([a_tensor()] * 65)), ("too_large", "/tensors")),
        (header("a"), ("malformed", "/tensors/0")),
        (header(a_tensor(shpae=[])), ("malformed", "/tensors/0")),
        (header(a_tensor(name=None)), ("malformed", "/tensors/0/name")),
        (header(a_tensor(name=1)), ("malformed", "/tensors/0/name")),
        (header(a_tensor(name="")), ("malformed", "/tensors/0/name")),
        (header(a_tensor(name="../etc")), ("malformed", "/tensors/0/name")),
        (header(a_tensor(name="a" * 65)), ("malformed", "/tensors/0/name")),
        (header(a_tensor(), a_tensor()), ("mismatch", "/tensors/1/name")),
        (header(a_tensor(dtype=None)), ("malformed", "/tensors/0/dtype")),
        (header(a_tensor(dtype="complex64")), ("unsupported", "/tensors/0/dtype")),
        (header(a_tensor(dtype=["float32"])), ("unsupported", "/tensors/0/dtype")),
        (header(a_tensor(encoding="pickle")), ("unsupported", "/tensors/0/encoding")),
        (header(a_tensor(encoding={})), ("unsupported", "/tensors/0/encoding")),
        (header(a_tensor(shape=None)), ("malformed", "/tensors/0/shape")),
        (header(a_tensor(shape=3)), ("malformed", "/tensors/0/shape")),
        (header(a_tensor(shape=[-3])), ("malformed", "/tensors/0/shape")),
        (header(a_tensor(shape=[3.0])), ("malformed", "/tensors/0/shape")),
        (header(a_tensor(shape=[True])), ("malformed", "/tensors/0/shape")),
        (header(a_tensor(shape=[1] * 9)), ("too_large", "/tensors/0/shape")),
        (header(a_tensor(shape=[2**32, 2**32], nbytes=0)), ("too_large", "/tensors/0/shape")),
        (header(a_tensor(shape=[0, 2**63], nbytes=0)), ("too_large", "/tensors/0/shape")),
        (header(a_tensor(shape=[501]), a_tensor(name="b", shape=[500])), ("too_large", "/tensors/1/shape")),
        (header(a_tensor(encoding="bits")), ("mismatch", "/tensors/0/dtype")),
        (header(a_tensor(encoding="bits", dtype="bool", shape=[1001], nbytes=126)), ("too_large", "/tensors/0/shape")),
        (header(a_tensor(encoding="events", dtype="bool", shape=[1001], nbytes=0)), ("too_large", "/tensors/0/shape")),
        (header(a_tensor(encoding="events", dtype="bool", shape=[])), ("mismatch", "/tensors/0/shape")),
        (header(a_tensor(encoding="events", dtype="bool", shape=[2**31 + 1])), ("mismatch", "/tensors/0/shape")),
        (header(a_tensor(nbytes=None)), ("malformed", "/tensors/0/nbytes")),
        (header(a_tensor(nbytes=-3)), ("malformed", "/tensors/0/nbytes")),
        (header(a_tensor(nbytes=4)), ("mismatch", "/tensors/0")),
        (header(a_tensor(data="text")), ("malformed", "/tensors/0/data")),
    ],
)
def test_a_header_that_does_not_fit_is_refused(top: Any, refused: tuple[str, str], by_hand: SimpleNamespace) -> None:
    assert refusal(by_hand.stream(top, [b"abc"])) == refused


@pytest.mark.parametrize(
    ("dtype", "shape", "encoding", "payload"),
    [
        ("float32", [2], "raw", bytes(7)),
        ("bool", [9], "bits", bytes(3)),
        ("bool", [9], "bits", bytes([0, 2])),
        ("bool", [3], "raw", bytes([0, 1, 2])),
        ("bool", [2, 2], "events", bytes(12)),
        ("bool", [1, 2], "events", bytes(24)),
        ("bool", [2, 2], "events", struct.pack("<2i", 0, 2)),
        ("bool", [2, 2], "events", struct.pack("<2i", -1, 0)),
    ],
)
def test_a_payload_that_does_not_fit_its_description_is_refused(
    dtype: str, shape: list[int], encoding: str, payload: bytes, by_hand: SimpleNamespace
) -> None:
    entry = by_hand.entry("a", dtype, shape, encoding)
    inline = msgpack.packb(header(entry | {"data": payload}))
    streamed = by_hand.stream(header(entry | {"nbytes": len(payload)}), [payload])
    assert refusal(inline) == refusal(streamed) == ("mismatch", "/tensors/0")


def test_bits_and_events_of_the_right_size_are_taken(by_hand: SimpleNamespace) -> None:
    bits = by_hand.entry("a", "bool", [9], "bits", nbytes=2)
    events = by_hand.entry("b", "bool", [2], "events", nbytes=8)
    read = decode(by_hand.stream(header(bits, events), [bytes([1, 1]), struct.pack("<2i", 1, 1)]), MSGPACK_TYPE)
    assert read.tensors["a"].numpy().tolist() == [True, *[False] * 7, True]
    assert read.tensors["b"].numpy().tolist() == [False, True]


def test_a_payload_that_is_not_aligned_is_refused() -> None:
    start = msgpack.packb(header(a_tensor()))
    pad = -(len(start) + 7) % 64
    payload = b"\xc6\x00\x00\x00\x03abc"
    good = start + bytes([0xC4, pad]) + bytes(pad) + payload
    assert decode(good, MSGPACK_TYPE).tensors["a"].numpy().tolist() == list(b"abc")
    wider = start + bytes([0xC4, pad + 64]) + bytes([7]) * (pad + 64) + payload
    assert decode(wider, MSGPACK_TYPE).tensors["a"].numpy().tolist() == list(b"abc")
    shifted = start + bytes([0xC4, pad + 1]) + bytes(pad + 1) + payload
    assert refusal(shifted) == ("malformed", "/tensors/0")


def test_anything_in_the_place_of_pad_or_payload_is_refused(by_hand: SimpleNamespace) -> None:
    body = by_hand.stream(header(a_tensor()), [b"abc"])
    at = body.index(b"\xc4")
    assert refusal(body[:at] + b"\xd9" + body[at + 1 :]) == ("malformed", "/tensors/0")
    assert refusal(body[:-8] + b"\xc5" + body[-7:]) == ("malformed", "/tensors/0")
    assert refusal(body[:-4] + b"\x04abcd") == ("malformed", "/tensors/0")
    assert refusal(body + b"\xc0") == ("malformed", "")
    assert refusal(body[:-1]) == ("malformed", "")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed"),
        (b"\xc1", "malformed"),
        (b"\xc7\x01\x05x", "malformed"),  # ext 8
        (b"\xd4\x05x", "malformed"),  # fixext 1
        (b"\x81\x01\x01", "malformed"),  # a key that is a number
        (b"\x81\x90\x01", "malformed"),  # a key that is a list
        (b"\x82\xa1v\x01\xa1v\x01", "malformed"),  # a key twice
        (b"\x81\xa1\xff\x01", "malformed"),  # a key that is not UTF-8
        (b"\x91" * 1000, "malformed"),
        (b"\x81\xa1v" * 1000, "malformed"),
        (b"\xdd\xff\xff\xff\xff", "malformed"),  # a list of 4 G elements, none of them there
        (b"\xdf\xff\xff\xff\xff", "malformed"),
        (b"\xdb\xff\xff\xff\xff", "malformed"),
        (b"\xc6\xff\xff\xff\xff", "malformed"),
        (b"\xdc\xff\xff" + b"\x90" * 70_000, "too_large"),  # lists by the thousand in little body
        (msgpack.packb(header(params={"a": "b" * 70_000})), "too_large"),
    ],
)
def test_a_msgpack_bomb_is_refused(body: bytes, code: str) -> None:
    assert refusal(body) == (code, "")


def test_binary_is_refused_outside_of_the_data_of_tensors() -> None:
    entry = {key: value for key, value in a_tensor().items() if key != "nbytes"}
    assert refusal(msgpack.packb(header(entry | {"data": b"abc"}, params={"a": b"abc"}))) == ("malformed", "")
    assert refusal(msgpack.packb(header(params={"a": b"abc"}))) == ("malformed", "")
    assert refusal(msgpack.packb(header(params={"a": [b"abc"]}))) == ("malformed", "")
    assert refusal(msgpack.packb(header(entry, params={"a": b"abc"}))) == ("malformed", "/tensors/0/data")
    assert refusal(msgpack.packb(header(entry | {"data": b"abc", "nbytes": 2}))) == ("mismatch", "/tensors/0")


def test_the_limit_of_the_header_counts_no_payload() -> None:
    limits = Limits(max_header_bytes=200)
    entry = {"name": "a", "dtype": "uint8", "shape": [500], "encoding": "raw"}
    assert decode(msgpack.packb(header(entry | {"data": bytes(500)})), MSGPACK_TYPE, limits=limits).form == "inline"
    streamed = encode(Message.of({}, [Tensor.of(name, np.zeros(500, np.uint8)) for name in "ab"]))
    assert len(decode(b"".join(streamed.chunks), MSGPACK_TYPE, limits=limits).tensors) == 2
    assert refusal(msgpack.packb(header(entry, params={"a": "b" * 200})), limits=limits)[0] == "too_large"


def in_json(**changes: Any) -> bytes:
    return json.dumps(header(a_tensor(nbytes=None, data=[1, 2, 3]) | changes)).encode()


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (b"{", ("malformed", "")),
        (b"\xff", ("malformed", "")),
        (b"[" * 100_000, ("malformed", "")),
        (b'{"v": ' + b"1" * 10_000 + b"}", ("malformed", "")),
        (b'{"v": 1, "v": 1}', ("malformed", "")),
        (b'{"v": NaN}', ("malformed", "")),
        (b'{"v": 1, "tensors": [], "params": {"a": ' + b"[" * 20 + b"]" * 20 + b"}}", ("malformed", "/params")),
        (b'{"v": 1, "tensors": [], "params": {"a": "\\ud800"}}', ("malformed", "/params")),
        (b'{"v": 1, "tensors": [], "params": {"\\ud800": 1}}', ("malformed", "/params")),
        (b'{"v": 1, "tensors": [], "params": {"a": 18446744073709551616}}', ("malformed", "/params")),
        (b'{"v": 1, "tensors": [], "params": {"a": 1e400}}', ("malformed", "/params")),
        (b'{"v": 1, "tensors": [], "params": {"a": [' + b"0," * 2**16 + b"0]}}", ("too_large", "/params")),
        (json.dumps(header(params={"a" * 2**16: 0})).encode(), ("too_large", "/params")),
        (in_json(shape=[10**2200, 10**2200]), ("too_large", "/tensors/0/shape")),
        (in_json(shape=[2**63 - 1] * 8), ("too_large", "/tensors/0/shape")),
        (in_json(shape=[0, 10**4200]), ("too_large", "/tensors/0/shape")),
        (in_json(shape=[-(10**4200)]), ("malformed", "/tensors/0/shape")),
        (in_json(data=[1, 2]), ("mismatch", "/tensors/0/data")),
        (in_json(data=3), ("mismatch", "/tensors/0/data")),
        (in_json(data=[1, 2, [3]]), ("mismatch", "/tensors/0/data")),
        (in_json(shape=[3, 1]), ("mismatch", "/tensors/0/data")),
        (in_json(shape=[]), ("mismatch", "/tensors/0/data")),
        (in_json(shape=[0, 3], data=[[]]), ("mismatch", "/tensors/0/data")),
        (in_json(data=[1, 2, 256]), ("mismatch", "/tensors/0/data")),
        (in_json(data=[1, 2, -1]), ("mismatch", "/tensors/0/data")),
        (in_json(data=[1, 2, 3.5]), ("mismatch", "/tensors/0/data")),
        (in_json(data=[1, 2, True]), ("mismatch", "/tensors/0/data")),
        (in_json(data=[1, 2, None]), ("mismatch", "/tensors/0/data")),
        (in_json(dtype="bool"), ("mismatch", "/tensors/0/data")),
        (in_json(dtype="float32", data=[1, 2, 1e39]), ("mismatch", "/tensors/0/data")),
        (in_json(dtype="bfloat16", data=[1, 2, 1e39]), ("mismatch", "/tensors/0/data")),
        (in_json(dtype="float64", data=[1, 2, 10**400]), ("mismatch", "/tensors/0/data")),
        (in_json(dtype="float64", data=[1, 2, 1]).replace(b"1]", b"1e400]"), ("mismatch", "/tensors/0/data")),
        (in_json(dtype="float32", data=[1, 2, "3"]), ("mismatch", "/tensors/0/data")),
        (in_json(dtype="float32", data=[1, 2, "nan"]), ("mismatch", "/tensors/0/data")),
        (in_json(dtype="bool", encoding="bits"), ("unsupported", "/tensors/0/encoding")),
        (in_json(dtype="bool", encoding="events", data=[0]), ("mismatch", "/tensors/0/data")),
        (in_json(dtype="bool", encoding="events", data="abc"), ("mismatch", "/tensors/0/data")),
        (in_json(dtype="bool", encoding="events", data=[[2**31]]), ("mismatch", "/tensors/0/data")),
        (in_json(dtype="bool", encoding="events", data=[[3]]), ("mismatch", "/tensors/0")),
        (json.dumps(header(a_tensor(nbytes=None))).encode(), ("malformed", "/tensors/0/data")),
        (b" " * (2**20 + 1), ("too_large", "")),
    ],
)
def test_json_that_does_not_fit_is_refused(body: bytes, refused: tuple[str, str]) -> None:
    assert refusal(body, JSON_TYPE) == refused


def test_json_takes_events_as_lists_of_indices_and_numbers_that_json_lacks_as_strings() -> None:
    events = {"name": "e", "dtype": "bool", "shape": [2, 2], "encoding": "events", "data": [[0, 1], [0, 1]]}
    none = {"name": "n", "dtype": "bool", "shape": [2], "encoding": "events", "data": []}
    floats = {"name": "f", "dtype": "float16", "shape": [4], "data": ["NaN", "Infinity", "-Infinity", 1]}
    read = decode(json.dumps(header(events, none, floats)).encode(), JSON_TYPE)
    assert read.tensors["e"].numpy().tolist() == [[False, True], [False, False]]
    assert read.tensors["n"].numpy().tolist() == [False, False]
    np.testing.assert_array_equal(read.tensors["f"].numpy(), np.array([np.nan, np.inf, -np.inf, 1], np.float16))


def test_json_writes_numbers_that_it_lacks_as_strings_in_parameters_too() -> None:
    params = {"norms": [float("nan"), float("inf"), float("-inf"), 1.5], "inner": {"a": (float("nan"),)}}
    read = decode(b"".join(encode(Message(params), "json").chunks), JSON_TYPE)
    assert read.params == {"norms": ["NaN", "Infinity", "-Infinity", 1.5], "inner": {"a": ["NaN"]}}


def test_json_rounds_to_the_nearest_bfloat16_with_ties_to_even() -> None:
    not_json: list[Any] = ["NaN", "Infinity"]
    numbers = [1.0, 1 + 2**-9, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, *not_json, 3.3e38]
    body = json.dumps(header(a_tensor(nbytes=None, dtype="bfloat16", shape=[8], data=numbers))).encode()
    import torch

    wanted = torch.tensor([float(number) for number in numbers]).to(torch.bfloat16)
    read = decode(body, JSON_TYPE).tensors["a"].torch()
    assert torch.equal(read[:5], wanted[:5])
    assert read[5].isnan()
    assert torch.equal(read[6:], wanted[6:])


def test_another_content_type_is_refused() -> None:
    assert refusal(b"", "application/octet-stream") == ("unsupported", "")
    assert refusal(b"", "") == ("unsupported", "")


@pytest.mark.parametrize(
    ("body", "content_type", "advice"),
    [
        (b'{"v": 1}', MSGPACK_TYPE, "got what looks like JSON; send it with Content-Type: application/json"),
        (b"\r\n\t [", MSGPACK_TYPE, "got what looks like JSON; send it with Content-Type: application/json"),
        (
            b"\x83\xa1v\x01",
            JSON_TYPE,
            "got what looks like msgpack; send it with Content-Type: application/vnd.msgpack",
        ),
        (b"\xde\x00\x01", JSON_TYPE, "got what looks like msgpack; send it with Content-Type: application/vnd.msgpack"),
        (b"\x28\xb5\x2f\xfd", MSGPACK_TYPE, "got what looks like zstd; send it with Content-Encoding: zstd"),
        (b"\x1f\x8b\x08", JSON_TYPE, "got what looks like gzip; send it as it is, or as zstd"),
    ],
)
def test_a_body_under_the_wrong_header_is_told_the_right_one(body: bytes, content_type: str, advice: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(body, content_type)
    wanted = "JSON" if content_type == JSON_TYPE else "msgpack"
    assert str(caught.value) == f"body must be {wanted}, as the header Content-Type: {content_type} says, {advice}"
    assert caught.value.code == "malformed"


class TestWriting:
    def refusal(self, message: Message) -> tuple[str, str]:
        codes = set()
        for form in ("stream", "inline"):
            with pytest.raises(WireError) as caught:
                encode(message, form)
            codes.add((caught.value.code, caught.value.pointer))
        (code,) = codes
        return code

    def test_a_payload_over_4_gib_is_refused_with_advice(self) -> None:
        zeros: Any = np.broadcast_to(np.uint8(0), MAX_PAYLOAD_BYTES + 1)  # one byte, read again and again
        page = memoryview(zeros)
        huge = Tensor("a", "uint8", (len(page),), "raw", page)
        with pytest.raises(WireError, match=r"at most 4294967295 bytes.*split it"):
            encode(Message.of({}, [huge]))

    def test_what_no_reader_takes_is_not_written(self) -> None:
        one = Tensor.of("a", np.zeros(1))
        assert self.refusal(Message({"a": "b" * 70_000})) == ("too_large", "/params")
        assert self.refusal(Message({"a": "b" * 70_000}, {"a": one})) == ("too_large", "/params")
        assert self.refusal(Message.of({}, [Tensor.of(f"a{i}", 0) for i in range(65)])) == ("too_large", "/tensors")
        assert self.refusal(Message.of({}, [Tensor.of("a b", 0)])) == ("malformed", "/tensors/0/name")
        assert self.refusal(Message({}, {"b": one})) == ("mismatch", "/tensors/0")
        assert self.refusal(Message.of({}, [Tensor.of("a", np.zeros((1,) * 9))])) == ("too_large", "/tensors/0/shape")

    def test_very_many_numbers_are_not_written_as_json(self) -> None:
        limits = Limits(max_json_bytes=20)
        encode(Message.of({}, [Tensor.of("a", np.zeros(10, bool))]), "json", limits=limits)
        with pytest.raises(WireError, match=r"at most 10 numbers in JSON, got 11 numbers; use msgpack") as caught:
            encode(Message.of({}, [Tensor.of("a", np.zeros(10)), Tensor.of("b", 0)]), "json", limits=limits)
        assert caught.value.code == "too_large"

    def test_an_unknown_form_is_a_value_error(self) -> None:
        with pytest.raises(ValueError, match="json, got 'xml'"):
            encode(Message(), "xml")  # type: ignore[arg-type]
