"""The bytes of the format never change: golden files, and what they mean. `make_golden.py` writes them."""

from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch

from exodus_client.wire import JSON_TYPE, MSGPACK_TYPE, Message, Tensor, decode, encode

GOLDEN = Path(__file__).with_name("golden")
FILES = [
    ("stream.msgpack", MSGPACK_TYPE, "stream"),
    ("inline.msgpack", MSGPACK_TYPE, "inline"),
    ("body.json", JSON_TYPE, "json"),
]


def values() -> dict[str, tuple[Any, Any]]:
    return {
        "f32": (np.array([[0.5, -1.5, 2], [0, -0.0, 0.375]], np.float32), "raw"),
        "f64": (np.float64(0.1), "raw"),
        "f16": (np.array([1.5, -0.25], np.float16), "raw"),
        "bf16": (torch.tensor([1, -1.5], dtype=torch.bfloat16), "raw"),
        "i8": (np.array([-128, 0, 127], np.int8), "raw"),
        "u8": (np.array([[0, 255]], np.uint8), "raw"),
        "i16": (np.array([-2, 2**15 - 1], np.int16), "raw"),
        "i32": (np.array([-2, 2**31 - 1], np.int32), "raw"),
        "i64": (np.array([-(2**63)], np.int64), "raw"),
        "flags": (np.eye(2, dtype=bool), "raw"),
        "empty": (np.zeros((0, 4), np.float32), "raw"),
        "bits": (np.array([1, 1, 0, 0, 0, 0, 0, 0, 1], bool), "bits"),
        "events": (np.array([[0, 0, 1], [1, 0, 0]], bool), "events"),
    }


def message() -> Message:
    params = {
        "neuron": {"model": "lif", "alpha": 0.95, "reset": "subtract"},
        "time_dim": 1,
        "wrt": ["alpha"],
        "output_filter": None,
    }
    return Message.of(params, [Tensor.of(name, value, encoding) for name, (value, encoding) in values().items()])


@pytest.mark.parametrize(("file", "content_type", "form"), FILES)
def test_a_message_is_written_byte_for_byte_as_the_golden_file(file: str, content_type: str, form: Any) -> None:
    encoded = encode(message(), form)
    assert b"".join(encoded.chunks) == (GOLDEN / file).read_bytes()
    assert encoded.nbytes == (GOLDEN / file).stat().st_size
    assert encoded.content_type == content_type


@pytest.mark.parametrize(("file", "content_type", "form"), FILES)
def test_a_golden_file_reads_as_the_message(file: str, content_type: str, form: Any) -> None:
    read = decode(bytearray((GOLDEN / file).read_bytes()), content_type)
    assert read.form == form
    assert read.params == message().params
    assert list(read.tensors) == list(values())
    for name, (value, _) in values().items():
        wanted = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))
        assert read.tensors[name].torch().dtype == wanted.dtype
        assert torch.equal(read.tensors[name].torch(), wanted)


def test_any_msgpack_library_reads_the_stream() -> None:
    with (GOLDEN / "stream.msgpack").open("rb") as body:
        header, *rest = msgpack.Unpacker(body)
    pads, payloads = rest[::2], rest[1::2]
    assert [len(payload) for payload in payloads] == [described["nbytes"] for described in header["tensors"]]
    assert payloads == [bytes(tensor.payload) for tensor in message().tensors.values()]
    assert all(set(pad) <= {0} for pad in pads)


def test_any_msgpack_library_reads_the_inline_form() -> None:
    top = msgpack.unpackb((GOLDEN / "inline.msgpack").read_bytes())
    assert [described["data"] for described in top["tensors"]] == [
        bytes(tensor.payload) for tensor in message().tensors.values()
    ]


@pytest.mark.parametrize(
    "content_type", ["application/msgpack", "application/x-msgpack", "Application/vnd.msgpack; v=1"]
)
def test_other_names_of_the_content_type_are_the_same(content_type: str) -> None:
    body = (GOLDEN / "stream.msgpack").read_bytes()
    assert decode(body, content_type).params == message().params


def test_a_bin_of_any_size_tag_is_read_in_the_inline_form() -> None:
    shortest = {"v": 1, "tensors": [{"name": "a", "dtype": "uint8", "shape": [n], "data": bytes(n)} for n in (1,)]}
    for length in (1, 300, 70_000):
        shortest["tensors"] = [{"name": "a", "dtype": "uint8", "shape": [length], "data": bytes(length)}]
        read = decode(msgpack.packb(shortest), MSGPACK_TYPE)
        assert (read.form, read.params, read.tensors["a"].shape) == ("inline", {}, (length,))


def test_the_document_shows_the_small_golden_body() -> None:
    document = (Path(__file__).parents[2] / "docs" / "wire-format.md").read_text("utf-8")
    shown = "".join(line[10:58] for line in document.splitlines() if line[:4] == "0000" and line[8:10] == "  ")
    assert bytes.fromhex(shown) == (GOLDEN / "small.msgpack").read_bytes()
    assert decode(bytes.fromhex(shown), MSGPACK_TYPE).tensors["u"].numpy().tolist() == [1.0, -2.0]
