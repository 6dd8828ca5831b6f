"""A message in memory, and the two functions that turn it into a body and back in any of the three forms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

from exodus_client.wire.bounds import DEFAULT_LIMITS, Limits, refused, sentence
from exodus_client.wire.header import check_sendable
from exodus_client.wire.json_form import read_json, write_json
from exodus_client.wire.msgpack_form import inline_chunks, read_binary, stream_chunks
from exodus_client.wire.tensor import Tensor

Form: TypeAlias = Literal["stream", "inline", "json"]

MSGPACK_TYPE = "application/vnd.msgpack"
JSON_TYPE = "application/json"

MSGPACK_TYPES = frozenset({MSGPACK_TYPE, "application/msgpack", "application/x-msgpack"})

#: How bodies begin. A message is a map in every form, which settles the first byte.
_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    "msgpack": (*(bytes([tag]) for tag in range(0x80, 0x90)), b"\xde", b"\xdf"),
    "JSON": (b"{", b"["),
    "zstd": (b"\x28\xb5\x2f\xfd",),
    "gzip": (b"\x1f\x8b",),
}
_ADVICE = {
    "zstd": "send it with Content-Encoding: zstd",
    "gzip": "send it as it is, or as zstd",
    "JSON": "send it with Content-Type: application/json",
    "msgpack": "send it with Content-Type: application/vnd.msgpack",
}


@dataclass
class Message:
    """Parameters and named tensors.

    Attributes:
        params: plain values: None, bool, int, float, str, and lists and string-keyed dicts of them.
        tensors: by name, in the order in which they travel.
        form: the form in which the message came, so that the answer can go back in the same one.
    """

    params: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    form: Form = "stream"

    @classmethod
    def of(cls, params: Mapping[str, Any], tensors: Iterable[Tensor], form: Form = "stream") -> Message:
        """A message of tensors that know their names."""
        return cls(dict(params), {tensor.name: tensor for tensor in tensors}, form)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A body to send: its pieces in order, which are views of the payloads and were never joined.

    Attributes:
        content_type: value of the header of that name.
        nbytes: length of the body.
        chunks: the pieces.
        content_encoding: value of the header of that name, None if there is none to send.
    """

    content_type: str
    nbytes: int
    chunks: list[bytes | memoryview]
    content_encoding: str | None = None


def encode(message: Message, form: Form = "stream", *, limits: Limits = DEFAULT_LIMITS) -> Encoded:
    """Write a message in one of the forms, without copying a payload in the msgpack forms.

    Raises:
        WireError: no reader would accept the message: too many tensors, a header that is too long, a payload over
            4 GiB - 1, a name that is not one; or it has more numbers than a JSON body is for.
        TypeError: a parameter is not a plain value.
        ValueError: the form is unknown.
    """
    check_sendable(message.tensors, limits)
    tensors = list(message.tensors.values())
    content_type = MSGPACK_TYPE
    if form == "stream":
        chunks = stream_chunks(message.params, tensors, limits)
    elif form == "inline":
        chunks = inline_chunks(message.params, tensors, limits)
    elif form == "json":
        content_type = JSON_TYPE
        chunks = [write_json(message.params, tensors, limits)]
    else:
        raise ValueError(sentence("form", "stream, inline or json", repr(form)))
    return Encoded(content_type, sum(map(len, chunks)), chunks)


def decode(body: bytes | bytearray | memoryview, content_type: str, *, limits: Limits = DEFAULT_LIMITS) -> Message:
    """Read a body, whose payloads stay where they are in the msgpack forms: the tensors are views of `body`.

    Tensors are writable if the body is. Nothing is allocated before its size was checked against `limits`.

    Raises:
        WireError: whatever is wrong with the body.
    """
    view = memoryview(body).cast("B")
    kind = content_type.partition(";")[0].strip().lower()
    if kind in MSGPACK_TYPES or kind == JSON_TYPE:
        require_form(view, "JSON" if kind == JSON_TYPE else "msgpack", f"Content-Type: {content_type}")
    if kind in MSGPACK_TYPES:
        form, params, tensors = read_binary(view, limits)
    elif kind == JSON_TYPE:
        form = "json"
        params, tensors = read_json(view, limits)
    else:
        raise refused("content type", f"{MSGPACK_TYPE}, {JSON_TYPE}", content_type, code="unsupported")
    return Message.of(params, tensors, cast(Form, form))


def looks_like(body: memoryview) -> str:
    """The form or compression that the body begins as; "" if it is none of them."""
    start = bytes(body[:64]).lstrip(b" \t\r\n")
    return next((form for form, beginnings in _BEGINNINGS.items() if start.startswith(beginnings)), "")


def require_form(body: memoryview, form: str, header: str) -> None:
    """Refuse a body that is evidently of another form than its header says; what is none of them is not looked into.

    Raises:
        WireError: with the header that the body should have had.
    """
    found = looks_like(body)
    if found in ("", form):
        return
    advice = "leave out Content-Encoding" if form == "zstd" else _ADVICE[found]
    raise refused("body", f"{form}, as the header {header} says", f"what looks like {found}; {advice}")
