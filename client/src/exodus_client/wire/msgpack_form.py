"""The two msgpack forms: the stream, whose aligned payloads follow the header, and the inline map."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, ClassVar

import msgpack  # type: ignore[import-untyped]

from exodus_client.wire.bounds import MAX_DEPTH, Limits, WireError, refused
from exodus_client.wire.header import VERSION, Entry, describe, read_header
from exodus_client.wire.tensor import Tensor

ALIGNMENT = 64

_BIN_8, _BIN_32 = 0xC4, 0xC6
_PREFIX = Struct(">BI")  # the tag and length of a bin 32 object
_SEPARATOR_BYTES = 2 + _PREFIX.size  # tag and length of the pad, tag and length of the payload

#: Bytes that a header without large values has at most.
_SHORT_HEADER_BYTES = 4096

_NUMBERS = {
    0xCA: Struct(">f"), 0xCB: Struct(">d"),
    0xCC: Struct(">B"), 0xCD: Struct(">H"), 0xCE: Struct(">I"), 0xCF: Struct(">Q"),
    0xD0: Struct(">b"), 0xD1: Struct(">h"), 0xD2: Struct(">i"), 0xD3: Struct(">q"),
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_BYTE, _SHORT, _LONG = Struct(">B"), Struct(">H"), Struct(">I")


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
    params, entries = read_header(walk.header(), limits)
    if walk.payloads:
        tensors = _inline_tensors(walk, entries)
        form = "inline"
    else:
        tensors = [entry.tensor(_stream_payload(walk, entry)) for entry in entries]
        form = "stream"
    if walk.position != len(body):
        raise refused("body", f"{walk.position} bytes", f"{len(body)} bytes")
    return form, params, tensors


def check_header_bytes(nbytes: int, limits: Limits) -> None:
    """Refuse to write a description that no reader accepts."""
    if nbytes > limits.max_header_bytes:
        raise refused(
            "description of the message",
            f"at most {limits.max_header_bytes} bytes",
            f"{nbytes} bytes",
            code="too_large",
            pointer="/params",
            advice="large values belong into tensors",
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
        what = f"start of the payload of tensor {entry.name!r}"
        raise refused(what, f"a multiple of {ALIGNMENT}", str(walk.position), pointer=entry.pointer)
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


class _PlainMap:
    """Hooks of `msgpack.Unpacker` that raise ValueError for all that needs a closer look: binary, keys, extensions.

    Attributes:
        containers: maps and lists met; so many at most are nested.
    """

    def __init__(self) -> None:
        self.containers = 0

    def members(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        self.containers += 1
        for key, value in pairs:
            if type(key) is not str or type(value) is bytes:
                raise ValueError("a key that is not text, or binary")
        members = dict(pairs)
        if len(members) < len(pairs):
            raise ValueError("a key appears twice")
        return members

    def items(self, items: list[Any]) -> list[Any]:
        self.containers += 1
        if bytes in map(type, items):
            raise ValueError("binary")
        return items

    def refuse(self, code: int, data: bytes) -> Any:
        raise ValueError("an extension")


class Walk:
    """Cursor over the objects of a msgpack body; binary members stay where they are, as views of the body.

    `msgpack.unpackb` copies every payload, and lets a small hostile body allocate many times its size. Here payloads
    cost nothing, all else is bounded by `max_header_bytes`, and extension types are refused.

    Attributes:
        position: where the next object begins.
        payloads: binary members met so far.
    """

    def __init__(self, body: memoryview, limits: Limits) -> None:
        self.position = 0
        self.payloads = 0
        self._body = body
        self._max_plain_bytes = limits.max_header_bytes
        self._plain_end = limits.max_header_bytes  # grows by every payload that is skipped
        self._stop = min(len(body), self._plain_end)

    def header(self) -> Any:
        """The first object, as `next_object` reads it; a short plain map is left to `msgpack`, which is faster."""
        plain = _PlainMap()
        unpacker = msgpack.Unpacker(
            object_pairs_hook=plain.members,
            list_hook=plain.items,
            ext_hook=plain.refuse,
            max_ext_len=0,
            read_size=_SHORT_HEADER_BYTES,
            max_buffer_size=_SHORT_HEADER_BYTES,
            strict_map_key=False,
        )
        unpacker.feed(self._body[: min(_SHORT_HEADER_BYTES, self._max_plain_bytes)])
        try:
            found = unpacker.unpack()
        except (msgpack.UnpackException, ValueError):  # longer, not plain or not right, which `next_object` tells apart
            return self.next_object()
        if type(found) is not dict or plain.containers > MAX_DEPTH:
            return self.next_object()
        self.position = unpacker.tell()
        return found

    def next_object(self, depth: int = 0) -> Any:
        """The object at `position`, which moves behind it.

        Raises:
            WireError: the bytes are not msgpack, end too early, nest too deep, or exceed a limit.
        """
        tag = self._body[self._advance(1)]
        if 0xA0 <= tag < 0xC0:  # first, because most objects of a header are short strings
            return self._text(tag & 0x1F)
        if tag < 0x80:
            return tag
        if tag < 0x90:
            return self._map(tag & 0x0F, depth)
        if tag < 0xA0:
            return self._array(tag & 0x0F, depth)
        if tag >= 0xE0:
            return tag - 256
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag in _NUMBERS:
            return self._number(_NUMBERS[tag])
        if tag in self._SIZED:
            read, length, nests = self._SIZED[tag]
            return read(self, self._number(length), depth) if nests else read(self, self._number(length))
        raise WireError(
            f"byte {self.position - 1}: 0x{tag:02x} is not a plain msgpack object; extension types are refused"
        )

    def payload(self, length: int) -> memoryview:
        """The next `length` bytes as a view, which do not count as header."""
        self._plain_end += length
        self._stop = min(len(self._body), self._plain_end)
        self.payloads += 1
        start = self._advance(length)
        return self._body[start : start + length]

    def _advance(self, length: int) -> int:
        start = self.position
        self.position = end = start + length
        if end > self._stop:
            raise self._overrun(end)
        return start

    def _overrun(self, end: int) -> WireError:
        if end > len(self._body):
            return refused("body", f"{end} bytes or more", f"{len(self._body)} bytes")
        return refused(
            "description of the message",
            f"at most {self._max_plain_bytes} bytes",
            "more",
            code="too_large",
            advice="large values belong into tensors",
        )

    def _number(self, number: Struct) -> Any:
        return number.unpack_from(self._body, self._advance(number.size))[0]

    def _text(self, length: int) -> str:
        start = self._advance(length)
        try:
            return str(self._body[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise WireError(f"byte {start}: a string is not UTF-8") from error

    def _array(self, length: int, depth: int) -> list[Any]:
        self._check_depth(depth)
        return [self.next_object(depth + 1) for _ in range(length)]

    def _map(self, length: int, depth: int) -> dict[str, Any]:
        self._check_depth(depth)
        members: dict[str, Any] = {}
        for _ in range(length):
            start = self.position
            key = self.next_object(MAX_DEPTH)
            if type(key) is not str:
                raise WireError(f"byte {start}: a key of a map has to be a string")
            if key in members:
                raise WireError(f"byte {start}: key {ascii(key)[:40]} appears twice in a map")
            members[key] = self.next_object(depth + 1)
        return members

    def _check_depth(self, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise WireError(f"byte {self.position}: maps and lists nest deeper than {MAX_DEPTH}")

    _SIZED: ClassVar[dict[int, tuple[Callable[..., Any], Struct, bool]]] = {
        0xC4: (payload, _BYTE, False), 0xC5: (payload, _SHORT, False), 0xC6: (payload, _LONG, False),
        0xD9: (_text, _BYTE, False), 0xDA: (_text, _SHORT, False), 0xDB: (_text, _LONG, False),
        0xDC: (_array, _SHORT, True), 0xDD: (_array, _LONG, True),
        0xDE: (_map, _SHORT, True), 0xDF: (_map, _LONG, True),
    }  # fmt: skip
