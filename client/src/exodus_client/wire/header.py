"""The part of a body that describes: version, parameters, and of each tensor name, dtype, shape, encoding and size.

Every bound of the format is checked here, with Python's unbounded integers and before a payload is touched.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from exodus_client.wire.bounds import MAX_PAYLOAD_BYTES, Limits, WireError, refused, sentence
from exodus_client.wire.tensor import DTYPES, ENCODINGS, Encoding, Tensor

VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_TOP_KEYS = dict.fromkeys(("v", "params", "tensors"))
_ENTRY_KEYS = dict.fromkeys(("name", "dtype", "shape", "encoding", "nbytes", "data"))


@dataclass(slots=True)
class Entry:
    """A checked description of one tensor, before its payload is looked at."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    encoding: Encoding
    pointer: str
    members: dict[str, Any]

    def check_size(self, nbytes: int) -> None:
        """Refuse a payload size that the description does not give."""
        size = math.prod(self.shape)
        if self.encoding == "events":
            row = 4 * len(self.shape)
            fits = nbytes % row == 0 and nbytes // row <= size
            wanted = f"a multiple of {row}, at most {row * size}"
        else:
            exact = -(-size // 8) if self.encoding == "bits" else size * DTYPES[self.dtype].itemsize
            fits, wanted = nbytes == exact, str(exact)
        if not fits:
            name = f"tensor {self.name!r}, {self.encoding} {self.dtype} of shape {list(self.shape)},"
            raise refused(name, f"{wanted} bytes", f"{nbytes} bytes", code="mismatch", pointer=self.pointer)

    def tensor(self, payload: memoryview) -> Tensor:
        """The described tensor with this payload, whose size and padding are checked."""
        self.check_size(len(payload))
        spare = -math.prod(self.shape) % 8
        if self.encoding == "bits" and spare and payload[-1] >> (8 - spare):
            raise WireError(
                f"tensor {self.name!r}: the last {spare} bits of encoding bits are padding and have to be 0",
                code="mismatch",
                pointer=self.pointer,
            )
        return Tensor(self.name, self.dtype, self.shape, self.encoding, payload, self.pointer)


def describe(tensor: Tensor) -> dict[str, Any]:
    """The members that describe a tensor in every form."""
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "encoding": tensor.encoding}


def check_sendable(tensors: Mapping[str, Tensor], limits: Limits) -> None:
    """Refuse to write what no reader would accept: too many tensors, bad names, too many dimensions, huge payloads."""
    _check_count(len(tensors), limits)
    for index, (key, tensor) in enumerate(tensors.items()):
        pointer = f"/tensors/{index}"
        if _read_name(tensor.name, pointer) != key:
            raise WireError(f"tensor {tensor.name!r} is filed under {key!r}", code="mismatch", pointer=pointer)
        _read_shape(tensor.shape, tensor.name, pointer, limits)
        if tensor.nbytes > MAX_PAYLOAD_BYTES:
            raise refused(
                f"tensor {tensor.name!r}",
                f"at most {MAX_PAYLOAD_BYTES} bytes",
                f"{tensor.nbytes} bytes",
                code="too_large",
                pointer=pointer,
                advice="split it, for example along the batch",
            )


def read_header(top: Any, limits: Limits) -> tuple[dict[str, Any], list[Entry]]:
    """Parameters and checked entries of the outermost map of a body, in whatever form it came."""
    members = _typed(top, dict, "", "body")
    _check_keys(members, _TOP_KEYS, "")
    version = _member(members, "v", "")
    if type(version) is not int or version != VERSION:
        raise refused("wire version", str(VERSION), _brief(version), code="unsupported", pointer="/v")
    params = _typed(members.get("params", {}), dict, "/params", "params")
    described = _typed(_member(members, "tensors", ""), list, "/tensors", "tensors")
    _check_count(len(described), limits)
    entries = [_read_entry(entry, f"/tensors/{index}", limits) for index, entry in enumerate(described)]
    _check_together(entries, limits)
    return params, entries


def _read_entry(given: Any, pointer: str, limits: Limits) -> Entry:
    members = _typed(given, dict, pointer, "tensor")
    _check_keys(members, _ENTRY_KEYS, pointer)
    name = _read_name(_member(members, "name", pointer), pointer)
    dtype = _one_of(DTYPES, _member(members, "dtype", pointer), name, "dtype", pointer)
    encoding = _one_of(ENCODINGS, members.get("encoding", "raw"), name, "encoding", pointer)
    shape = _read_shape(_member(members, "shape", pointer), name, pointer, limits)
    if encoding != "raw" and dtype != "bool":
        what = f"dtype of tensor {name!r} in encoding {encoding}"
        raise refused(what, "bool", dtype, code="mismatch", pointer=f"{pointer}/dtype")
    if encoding == "events" and not (shape and max(shape) <= 2**31):
        raise refused(
            f"shape of tensor {name!r} in encoding events",
            "1 dimension or more, each at most 2**31",
            str(list(shape)),
            code="mismatch",
            pointer=f"{pointer}/shape",
        )
    return Entry(name, dtype, shape, cast(Encoding, encoding), pointer, members)


def _read_name(given: Any, pointer: str) -> str:
    name: str = _typed(given, str, f"{pointer}/name", "name")
    if not _NAME.fullmatch(name):
        raise refused("name of a tensor", _NAME.pattern, _brief(name), pointer=f"{pointer}/name")
    return name


def _read_shape(given: Any, name: str, pointer: str, limits: Limits) -> tuple[int, ...]:
    pointer = f"{pointer}/shape"
    dimensions = given if type(given) is tuple else _typed(given, list, pointer, "shape")
    if len(dimensions) > limits.max_ndim:
        most, got = f"at most {limits.max_ndim} dimensions", f"{len(dimensions)} dimensions"
        raise refused(f"shape of tensor {name!r}", most, got, code="too_large", pointer=pointer)
    for dimension in dimensions:
        if type(dimension) is not int or dimension < 0:
            raise refused(f"shape of tensor {name!r}", "integers >= 0", _brief(dimension), pointer=pointer)
        if dimension >= 2**63:  # products of such numbers take any time and memory, and have too many digits to be said
            what, most = f"shape of tensor {name!r}", "integers below 2**63"
            raise refused(what, most, _brief(dimension), code="too_large", pointer=pointer)
    return tuple(dimensions)


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.max_tensors:
        most = f"at most {limits.max_tensors} tensors"
        raise refused("message", most, f"{count} tensors", code="too_large", pointer="/tensors")


def _check_together(entries: Sequence[Entry], limits: Limits) -> None:
    """Names are unique, and what the message unpacks to stays within the limit."""
    names: set[str] = set()
    total = 0
    for entry in entries:
        if entry.name in names:
            pointer = f"{entry.pointer}/name"
            raise refused("names of tensors", "unique names", entry.name, code="mismatch", pointer=pointer)
        names.add(entry.name)
        # A dimension of 0 must not hide the others: numpy and torch multiply them all in 64 bits.
        size = math.prod(entry.shape) or math.prod(max(dimension, 1) for dimension in entry.shape)
        total += size * DTYPES[entry.dtype].itemsize
        if total > limits.max_bytes:
            raise refused(
                f"message up to tensor {entry.name!r} of shape {list(entry.shape)}",
                f"at most {limits.max_bytes} bytes",
                f"{total} bytes",
                code="too_large",
                pointer=f"{entry.pointer}/shape",
            )


def _check_keys(members: dict[str, Any], known: Mapping[str, Any], pointer: str) -> None:
    if not members.keys() <= known.keys():
        key = _brief(min(members.keys() - known.keys()))
        raise refused(f"keys of {pointer or 'body'}", ", ".join(known), key, pointer=pointer)


def _member(members: dict[str, Any], key: str, pointer: str) -> Any:
    if key not in members:
        raise refused(f"{pointer}/{key}", key, "nothing", pointer=f"{pointer}/{key}")
    return members[key]


_KINDS: dict[type, str] = {dict: "map", list: "list", str: "string"}


def _typed(value: Any, kind: type, pointer: str, what: str) -> Any:
    if type(value) is not kind:
        said = sentence(what, f"a {_KINDS[kind]}", _brief(value))
        raise WireError(said, pointer=pointer, expected=_KINDS[kind], got=_brief(value))
    return value


def _one_of(known: Mapping[str, Any] | Sequence[str], value: Any, tensor: str, key: str, pointer: str) -> str:
    if type(value) is not str or value not in known:
        what = f"tensor {tensor!r}: {key}"
        raise refused(what, ", ".join(known), _brief(value), code="unsupported", pointer=f"{pointer}/{key}")
    return value


def _brief(value: Any) -> str:
    """A value for an error message: scalars as they are, cut short, and containers by their kind."""
    if isinstance(value, dict | list | memoryview):
        return {dict: "a map", list: "a list", memoryview: "binary"}[type(value)]
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:36]}..."
