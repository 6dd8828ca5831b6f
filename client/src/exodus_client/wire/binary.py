"""The two msgpack forms: the stream, whose payloads are aligned and follow the header, and the inline map."""

from __future__ import annotations

from struct import Struct
from typing import Any

import msgpack  # type: ignore[import-untyped]

from exodus_client.wire.bounds import Limits, WireError
from exodus_client.wire.header import VERSION, Entry, describe, read_header
from exodus_client.wire.tensor import Tensor
from exodus_client.wire.walk import Walk

ALIGNMENT = 64

_BIN_8, _BIN_32 = 0xC4, 0xC6
_PREFIX = Struct(">BI")  # the tag and length of a bin 32 object
_SEPARATOR_BYTES = 2 + _PREFIX.size  # tag and length of the pad, tag and length of the payload


def stream_chunks(params: dict[str, Any], tensors: list[Tensor], limits: Limits) -> list[bytes | memoryview]:
    """Header, then pad and payload of each tensor; payloads are passed on as they are."""
    described = [describe(tensor) | {"nbytes": tensor.nbytes} for tensor in tensors]
    pending: bytes = msgpack.packb({"v": VERSION, "params": params, "tensors": described})
    check_header_bytes(len(pending), limits)
    chunks: list[bytes | memoryview] = []
    position = 0
    for tensor in tensors:
        pad = -(position + len(pending) + _SEPARATOR_BYTES) % ALIGNMENT
        pending += bytes((_BIN_8, pad)) + bytes(pad) + _PREFIX.pack(_BIN_32, tensor.nbytes)
        chunks += [pending, tensor.payload]
        position += len(pending) + tensor.nbytes
        pending = b""
    return chunks or [pending]


def inline_chunks(params: dict[str, Any], tensors: list[Tensor], limits: Limits) -> list[bytes | memoryview]:
    """One map with the payloads as members `data`, passed on as they are."""
    packer = msgpack.Packer()
    head = {"v": VERSION, "params": params}
    # A map of three members: the two of `head`, whose own tag is cut off, and the tensors.
    pending = packer.pack_map_header(3) + packer.pack(head)[1:] + packer.pack("tensors")
    pending += packer.pack_array_header(len(tensors))
    chunks: list[bytes | memoryview] = []
    plain = 0
    for tensor in tensors:
        members = describe(tensor)
        pending += packer.pack_map_header(len(members) + 1) + packer.pack(members)[1:] + packer.pack("data")
        pending += _PREFIX.pack(_BIN_32, tensor.nbytes)
        chunks += [pending, tensor.payload]
        plain += len(pending)
        pending = b""
    check_header_bytes(plain + len(pending), limits)
    return chunks or [pending]


def read_binary(body: memoryview, limits: Limits) -> tuple[str, dict[str, Any], list[Tensor]]:
    """Form, parameters and tensors of a msgpack body. Inline is what has payloads within its first object."""
    walk = Walk(body, limits)
    params, entries = read_header(walk.next_object(), limits)
    if walk.payloads:
        tensors = _inline_tensors(walk, entries)
        form = "inline"
    else:
        tensors = [entry.tensor(_stream_payload(walk, entry)) for entry in entries]
        form = "stream"
    if walk.position != len(body):
        raise WireError(
            f"{len(body) - walk.position} bytes follow the message",
            expected=f"{walk.position} bytes",
            got=f"{len(body)} bytes",
        )
    return form, params, tensors


def check_header_bytes(nbytes: int, limits: Limits) -> None:
    """Refuse to write a description that no reader accepts."""
    if nbytes > limits.max_header_bytes:
        raise WireError(
            f"the description of the message has {nbytes} bytes, at most {limits.max_header_bytes} travel; "
            "large values belong into tensors",
            code="too_large",
            pointer="/params",
            expected=f"at most {limits.max_header_bytes} bytes",
            got=f"{nbytes} bytes",
        )


def _inline_tensors(walk: Walk, entries: list[Entry]) -> list[Tensor]:
    tensors = []
    for entry in entries:
        payload = entry.members.get("data")
        if type(payload) is not memoryview:
            raise _not_binary(entry)
        entry.check_size(_declared_bytes(entry, len(payload)))
        tensors.append(entry.tensor(payload))
    if walk.payloads != len(tensors):
        raise WireError("binary is allowed in the 'data' of tensors only", expected="plain values", got="binary")
    return tensors


def _stream_payload(walk: Walk, entry: Entry) -> memoryview:
    """The payload of the entry, at `walk.position`: a pad as bin 8, then a bin 32 whose bytes are aligned."""
    if "data" in entry.members:
        raise _not_binary(entry)
    nbytes = _declared_bytes(entry)
    entry.check_size(nbytes)
    start = walk.position
    tag, pad = walk.payload(2)
    if tag != _BIN_8:
        raise WireError(f"byte {start}: want the bin 8 pad of tensor {entry.name!r}", pointer=entry.pointer)
    walk.payload(pad)
    if walk.payload(_PREFIX.size) != _PREFIX.pack(_BIN_32, nbytes):
        raise WireError(
            f"byte {start + 2 + pad}: want a bin 32 of {nbytes} bytes, the payload of tensor {entry.name!r}",
            pointer=entry.pointer,
        )
    if walk.position % ALIGNMENT:
        raise WireError(
            f"tensor {entry.name!r}: the payload begins at byte {walk.position}, want a multiple of {ALIGNMENT}",
            pointer=entry.pointer,
            expected=f"a multiple of {ALIGNMENT}",
            got=str(walk.position),
        )
    return walk.payload(nbytes)


def _not_binary(entry: Entry) -> WireError:
    return WireError(
        f"tensor {entry.name!r}: 'data' has to be binary", pointer=f"{entry.pointer}/data", expected="binary"
    )


def _declared_bytes(entry: Entry, default: int | None = None) -> int:
    nbytes = entry.members.get("nbytes", default)
    if type(nbytes) is not int or nbytes < 0:
        raise WireError(
            f"tensor {entry.name!r}: want its size in 'nbytes' (stream form) or binary 'data' (inline form)",
            pointer=f"{entry.pointer}/nbytes",
            expected="integer >= 0",
        )
    return nbytes
