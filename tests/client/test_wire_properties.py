"""Properties of every message and body: messages survive the round trip, other bodies raise WireError only."""

import contextlib
import re
from collections.abc import Callable
from typing import Any, Literal

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from exodus_client.wire import DTYPES, Limits, Message, Tensor, WireError, decode, encode
from exodus_client.wire.msgpack_form import Walk

FORMS: tuple[Literal["stream", "inline", "json"], ...] = ("stream", "inline", "json")
NAMES = st.text("abcXYZ019_.-", min_size=1, max_size=12)
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=3)
LIMITS = Limits(max_bytes=1 << 20)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)
PARAMS = st.dictionaries(st.text("abcdefgh_", min_size=1, max_size=8), plain, max_size=4)


@st.composite
def tensors(draw: st.DrawFn, name: str) -> Tensor:
    """A tensor of any dtype, encoding and shape, contiguous or not, of either byte order."""
    dtype = draw(st.sampled_from(list(DTYPES)))
    shape = draw(SHAPES)
    if dtype == "bfloat16":
        bits = draw(arrays_of.arrays(np.int16, shape))
        return Tensor.of(name, torch.from_numpy(bits).view(torch.bfloat16))
    orders: tuple[Literal["<", ">", "="], ...] = ("<", ">") if DTYPES[dtype].itemsize > 1 else ("=",)
    order = draw(st.sampled_from(orders))
    array = draw(arrays_of.arrays(DTYPES[dtype].newbyteorder(order), shape))
    if draw(st.booleans()):
        array = array.T
    if dtype != "bool":
        return Tensor.of(name, array)
    return Tensor.of(name, array, draw(st.sampled_from(["raw", "bits", "events"] if shape else ["raw", "bits"])))


@st.composite
def messages(draw: st.DrawFn) -> Message:
    names = draw(st.lists(NAMES, unique=True, max_size=4))
    return Message.of(draw(PARAMS), [draw(tensors(name)) for name in names])


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (
        left.dtype == right.dtype and left.shape == right.shape and torch.equal(left.nan_to_num(7), right.nan_to_num(7))
    )


@given(message=messages(), form=st.sampled_from(FORMS), writable=st.booleans())
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read(message: Message, form: Any, writable: bool) -> None:
    encoded = encode(message, form)
    body = (bytearray if writable else bytes)(b"".join(encoded.chunks))
    read = decode(body, encoded.content_type)
    assert len(body) == encoded.nbytes
    # An inline message without a payload cannot be told from a stream without one.
    assert read.form == (form if message.tensors or form == "json" else "stream")
    assert read.params == message.params
    assert list(read.tensors) == list(message.tensors)
    for name, tensor in message.tensors.items():
        assert same(read.tensors[name].torch(), tensor.torch())
        if form != "json":
            assert bytes(read.tensors[name].payload) == bytes(tensor.payload)
            assert read.tensors[name].encoding == tensor.encoding
        if tensor.dtype != "bfloat16":
            np.testing.assert_array_equal(read.tensors[name].numpy(), tensor.numpy())


@given(message=messages())
@settings(max_examples=60, deadline=None)
def test_every_payload_of_a_stream_begins_at_a_multiple_of_64(message: Message) -> None:
    encoded = encode(message)
    position = 0
    for chunk, following in zip(encoded.chunks[::2], encoded.chunks[1::2], strict=False):
        position += len(chunk)
        assert position % 64 == 0
        position += len(following)


anything = st.recursive(
    scalars | st.binary(max_size=3) | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars | st.binary(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def outcome(read: Callable[[Walk], Any], body: bytes, limits: Limits) -> Any:
    walk = Walk(memoryview(body), limits)
    try:
        found = repr(read(walk))  # 1 is not True, nor 1.0
        return re.sub(r"<memory at \w+>", "a view", found), walk.position, walk.payloads
    except WireError as error:
        return str(error)


@given(value=anything | plain, data=st.data(), room=st.sampled_from([8, 1 << 20]))
@settings(max_examples=400, deadline=None)
def test_a_header_is_what_a_walk_over_it_finds(value: Any, data: st.DataObject, room: int) -> None:
    body = bytearray(msgpack.packb({"a": value, "b": {}}) + b"next")
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    limits = Limits(max_header_bytes=room)
    assert outcome(Walk.header, bytes(body), limits) == outcome(Walk.next_object, bytes(body), limits)


@pytest.mark.parametrize(
    "body",
    [
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x81\xa1a\xc7\x00\xff",  # one of no bytes
        b"\x81\xa1a\xc7\x00\x05",  # an extension of no bytes
        b"\x81\xc4\x01a\x01",  # a key that is binary
        b"\x81\x90\x01",  # a key that is a list
        b"\x81\xa1a\xa1\xff",  # not UTF-8
        b"\x81\xa1a" + b"\x91" * 15 + b"\x90",  # as deep as it may be, and deeper
        b"\x81\xa1a" + b"\x91" * 16 + b"\x90",
        b"\x81\xa1a" + b"\x91" * 600 + b"\x90",
        b"\x81\xa1a\xc1",  # no object
        b"\x81\xa1a",
        b"",
        b"\x01",
    ],
)
def test_an_unusual_header_is_refused_as_a_walk_refuses_it(body: bytes) -> None:
    assert outcome(Walk.header, body, LIMITS) == outcome(Walk.next_object, body, LIMITS)


def read_everything(body: bytes, content_type: str) -> None:
    """Decode, unpack and write again; a body may be fine or refused, and nothing else."""
    with contextlib.suppress(WireError):
        message = decode(bytearray(body), content_type, limits=LIMITS)
        for tensor in message.tensors.values():
            assert tensor.torch().numel() == tensor.size
        for form in FORMS:
            encode(message, form)


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_body_is_refused_with_a_wire_error(form: Any, data: st.DataObject) -> None:
    encoded = encode(data.draw(messages()), form)
    body = bytearray(b"".join(encoded.chunks))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        damage = data.draw(st.sampled_from(["flip", "cut", "insert", "remove"]))
        if damage == "cut":
            del body[at:]
        elif damage == "insert":
            body[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        elif damage == "remove":
            del body[at : at + 1]
        else:
            body[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
    read_everything(bytes(body), encoded.content_type)


@given(body=st.binary(max_size=200), content_type=st.sampled_from(["application/vnd.msgpack", "application/json"]))
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_refused_with_a_wire_error(body: bytes, content_type: str) -> None:
    with pytest.raises(WireError):
        decode(body, content_type)


@pytest.mark.parametrize("form", FORMS)
@given(message=messages())
@settings(max_examples=15, deadline=None)
def test_every_truncation_is_refused(form: Any, message: Message) -> None:
    encoded = encode(message, form)
    body = b"".join(encoded.chunks)
    for length in range(len(body)):
        with pytest.raises(WireError):
            decode(body[:length], encoded.content_type)
