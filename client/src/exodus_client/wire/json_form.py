"""The JSON form, for curl and the browser: tensors as nested lists, and numbers that JSON does not have as strings."""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import Any, NoReturn

import numpy as np

from exodus_client.wire.bounds import MAX_DEPTH, Limits, WireError, refused
from exodus_client.wire.header import VERSION, Entry, read_header
from exodus_client.wire.tensor import DTYPES, FLOATS, AnyArray, Tensor, widen

#: JSON has no such numbers: they travel as these strings, in tensors and in parameters.
NON_FINITE = ("NaN", "Infinity", "-Infinity")

#: Of a number in JSON: a digit and a comma.
_SHORTEST_BYTES = 2


def write_json(params: dict[str, Any], tensors: list[Tensor], limits: Limits) -> bytes:
    """The whole body as UTF-8; boolean tensors are written as lists of true and false, whatever their encoding."""
    # Writing JSON holds up all other threads, so that it is bounded as reading is: a body has no more numbers than fit
    # into one that readers take.
    count, most = sum(tensor.size for tensor in tensors), limits.max_json_bytes // _SHORTEST_BYTES
    if count > most:
        raise refused(
            "body",
            f"at most {most} numbers in JSON",
            f"{count} numbers",
            code="too_large",
            pointer="/tensors",
            advice="use msgpack instead",
        )
    described = [
        {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "data": _nested(tensor)}
        for tensor in tensors
    ]
    return json.dumps({"v": VERSION, "params": _plain(params), "tensors": described}, allow_nan=False).encode()


def read_json(body: memoryview, limits: Limits) -> tuple[dict[str, Any], list[Tensor]]:
    """Parameters and tensors of a JSON body, every list checked against the declared shape and dtype."""
    if len(body) > limits.max_json_bytes:
        most, got = f"at most {limits.max_json_bytes} bytes", f"{len(body)} bytes"
        raise refused("JSON body", most, got, code="too_large", advice="send msgpack instead")
    try:
        top = json.loads(str(body, "utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except WireError:
        raise
    except RecursionError as error:
        raise WireError(f"JSON nests deeper than {MAX_DEPTH}") from error
    except ValueError as error:  # not UTF-8, not JSON, or an integer of thousands of digits
        raise WireError(f"body is not JSON: {error}") from error
    params, entries = read_header(top, limits)
    check_plain(params, limits)
    return params, [entry.tensor(_payload(entry)) for entry in entries]


def _nested(tensor: Tensor) -> Any:
    array = tensor.stored()
    if tensor.dtype == "bfloat16":
        array = widen(array)
    if tensor.dtype in FLOATS and not np.isfinite(array).all():
        named = array.astype(object)
        named[np.isnan(array)] = "NaN"
        named[np.isposinf(array)] = "Infinity"
        named[np.isneginf(array)] = "-Infinity"
        array = named
    return array.tolist()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise WireError("a key appears twice in a JSON object")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise WireError(f'{name} is not JSON; write it as the string "{name}"', expected=f'"{name}"', got=name)


def check_plain(value: Any, limits: Limits) -> None:
    """Parameters from JSON are what the other forms can carry: in size, depth, numbers, and text that is UTF-8.

    Raises:
        WireError: they are not.
    """
    room = limits.max_header_bytes
    level, depth = [value], 0  # params is within the outermost map
    while level:
        depth += 1
        room -= len(level) + sum(len(member) for member in level if type(member) is str)
        if room < 0:
            raise refused(
                "params",
                f"at most {limits.max_header_bytes} bytes",
                "more",
                code="too_large",
                pointer="/params",
                advice="large values belong into tensors",
            )
        for member in level:
            _check_leaf(member)
        nested = [chain(m, m.values()) if type(m) is dict else m for m in level if type(m) in (dict, list)]
        if nested and depth >= MAX_DEPTH:
            raise WireError(f"maps and lists nest deeper than {MAX_DEPTH}", pointer="/params")
        level = list(chain.from_iterable(nested))


def _check_leaf(value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise WireError("a string has half of a surrogate pair", pointer="/params") from error
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise WireError("an integer has more than 64 bits", pointer="/params")
    elif isinstance(value, float) and not math.isfinite(value):
        raise WireError("a number has more than 64 bits", pointer="/params")


def _payload(entry: Entry) -> memoryview:
    """The nested lists of an entry as the bytes that its description asks for."""
    if entry.encoding == "bits":
        raise WireError(
            f"tensor {entry.name!r}: JSON has no encoding bits; write true and false, or encoding events",
            code="unsupported",
            pointer=f"{entry.pointer}/encoding",
            expected="raw, events",
            got="bits",
        )
    if "data" not in entry.members:
        raise WireError(f"tensor {entry.name!r}: 'data' is missing", pointer=f"{entry.pointer}/data")
    rows = entry.members["data"]
    if entry.encoding == "events":
        shape: tuple[int, ...] = (len(rows) if type(rows) is list else 0, len(entry.shape))
        return _numbers(_flat(rows, shape, entry), "int32", entry)
    return _numbers(_flat(rows, entry.shape, entry), entry.dtype, entry)


def _flat(rows: Any, shape: tuple[int, ...], entry: Entry) -> list[Any]:
    level = [rows]
    for axis, length in enumerate(shape):
        for row in level:
            if type(row) is not list or len(row) != length:
                got = f"a list of {len(row)}" if type(row) is list else f"{type(row).__name__}"
                what, expected = f"data of tensor {entry.name!r}", f"lists of {length} in dimension {axis}"
                raise refused(what, expected, got, code="mismatch", pointer=f"{entry.pointer}/data")
        level = list(chain.from_iterable(level))
    return level


def _numbers(flat: list[Any], dtype: str, entry: Entry) -> memoryview:
    """A flat list as little-endian bytes, refusing what the dtype cannot hold."""
    found = set(map(type, flat))
    wanted: set[type] = {bool} if dtype == "bool" else {int, float, str} if dtype in FLOATS else {int}
    if not found <= wanted or (str in found and not {v for v in flat if type(v) is str} <= set(NON_FINITE)):
        raise _not_a(dtype, entry, ", ".join(sorted(kind.__name__ for kind in found)))
    if wanted == {int} and flat:
        bounds = np.iinfo(DTYPES[dtype])
        if min(flat) < bounds.min or max(flat) > bounds.max:
            raise _not_a(dtype, entry, "an integer out of range")
    return _floats(flat, dtype, entry) if dtype in FLOATS else np.array(flat, DTYPES[dtype]).view(np.uint8).data


def _floats(flat: list[Any], dtype: str, entry: Entry) -> memoryview:
    try:
        doubles = np.array([float(value) for value in flat], np.float64)
        named = sum(value in NON_FINITE for value in flat if type(value) is str)
        if np.count_nonzero(~np.isfinite(doubles)) != named:
            raise OverflowError("a number of JSON is infinite, such as 1e400")
        with np.errstate(over="raise", under="ignore"):
            array: AnyArray = doubles.astype(np.float32 if dtype == "bfloat16" else DTYPES[dtype])
    except (OverflowError, FloatingPointError) as error:
        raise _not_a(dtype, entry, "a number out of range") from error
    return (_narrow(array) if dtype == "bfloat16" else array).view(np.uint8).data


def _narrow(array: AnyArray) -> AnyArray:
    """float32 to the bits of the nearest bfloat16, ties to even; a NaN stays one."""
    bits = array.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), np.uint32(0x7FC0), rounded).astype("<u2")


def _not_a(dtype: str, entry: Entry, got: str) -> WireError:
    return refused(f"data of tensor {entry.name!r}", dtype, got, code="mismatch", pointer=f"{entry.pointer}/data")
