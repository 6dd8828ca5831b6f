"""Writes tests/client/golden: bodies of the wire format, made by hand from docs/wire-format.md.

    .venv/bin/python tests/client/make_golden.py

A second implementation on purpose: it uses msgpack, json and struct, and nothing of exodus_client. Tests take its
`stream` and `inline` to write bodies that the real encoder would refuse to write.
"""

import json
import struct
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]

GOLDEN = Path(__file__).with_name("golden")

PARAMS = {
    "neuron": {"model": "lif", "alpha": 0.95, "reset": "subtract"},
    "time_dim": 1,
    "wrt": ["alpha"],
    "output_filter": None,
}

# name, dtype, shape, encoding, payload, and the nested lists of the JSON form
TENSORS: list[tuple[str, str, list[int], str, bytes, Any]] = [
    (
        "f32",
        "float32",
        [2, 3],
        "raw",
        struct.pack("<6f", 0.5, -1.5, 2, 0, -0.0, 0.375),
        [[0.5, -1.5, 2.0], [0.0, -0.0, 0.375]],
    ),
    ("f64", "float64", [], "raw", struct.pack("<d", 0.1), 0.1),
    ("f16", "float16", [2], "raw", struct.pack("<2e", 1.5, -0.25), [1.5, -0.25]),
    ("bf16", "bfloat16", [2], "raw", bytes.fromhex("803f c0bf"), [1.0, -1.5]),
    ("i8", "int8", [3], "raw", struct.pack("<3b", -128, 0, 127), [-128, 0, 127]),
    ("u8", "uint8", [1, 2], "raw", bytes([0, 255]), [[0, 255]]),
    ("i16", "int16", [2], "raw", struct.pack("<2h", -2, 2**15 - 1), [-2, 32767]),
    ("i32", "int32", [2], "raw", struct.pack("<2i", -2, 2**31 - 1), [-2, 2147483647]),
    ("i64", "int64", [1], "raw", struct.pack("<q", -(2**63)), [-9223372036854775808]),
    ("flags", "bool", [2, 2], "raw", bytes([1, 0, 0, 1]), [[True, False], [False, True]]),
    ("empty", "float32", [0, 4], "raw", b"", []),
    # Ones at 0, 1 and 8 of 9 elements: the first element is the least significant bit of its byte.
    ("bits", "bool", [9], "bits", bytes([0b0000_0011, 0b0000_0001]), [True, True, *[False] * 6, True]),
    ("events", "bool", [2, 3], "events", struct.pack("<4i", 0, 2, 1, 0), [[False, False, True], [True, False, False]]),
]


def pad_and_tag(position: int, nbytes: int) -> bytes:
    """Bytes before a payload: a bin 8 pad, and the tag and length of the bin 32, so that it starts at 64 k."""
    pad = -(position + 2 + 5) % 64
    return b"\xc4" + bytes([pad]) + bytes(pad) + b"\xc6" + struct.pack(">I", nbytes)


def stream(header: Any, payloads: list[bytes]) -> bytes:
    """A body in the stream form: the header as it is given, then the payloads."""
    body: bytes = msgpack.packb(header)
    for payload in payloads:
        body += pad_and_tag(len(body), len(payload)) + payload
    return body


def entry(name: str, dtype: str, shape: list[int], encoding: str, **more: Any) -> dict[str, Any]:
    """The description of a tensor."""
    return {"name": name, "dtype": dtype, "shape": shape, "encoding": encoding, **more}


def main() -> None:
    described = [(entry(*row[:4]), row[4], row[5]) for row in TENSORS]
    header = {"v": 1, "params": PARAMS, "tensors": [e | {"nbytes": len(payload)} for e, payload, _ in described]}
    files = {"stream.msgpack": stream(header, [payload for _, payload, _ in described])}

    # msgpack writes the shortest tag for a bin; ours writes bin 32 always, as in the stream.
    top = b"\x83" + b"".join(map(msgpack.packb, ("v", 1, "params", PARAMS, "tensors"))) + bytes([0x90 + len(described)])
    for e, payload, _ in described:
        top += (
            b"\x85" + msgpack.packb(e)[1:] + msgpack.packb("data") + b"\xc6" + struct.pack(">I", len(payload)) + payload
        )
    files["inline.msgpack"] = top

    lists = [{key: e[key] for key in ("name", "dtype", "shape")} | {"data": data} for e, _, data in described]
    files["body.json"] = json.dumps({"v": 1, "params": PARAMS, "tensors": lists}).encode()

    small = entry("u", "float32", [2], "raw", nbytes=8)
    files["small.msgpack"] = stream({"v": 1, "params": {}, "tensors": [small]}, [struct.pack("<2f", 1.0, -2.0)])

    GOLDEN.mkdir(exist_ok=True)
    for name, body in files.items():
        (GOLDEN / name).write_bytes(body)


if __name__ == "__main__":
    main()
