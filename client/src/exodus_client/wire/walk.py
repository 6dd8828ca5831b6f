"""Reads one msgpack object whose binary members stay where they are, as views of the body.

`msgpack.unpackb` copies every payload, and lets a small hostile body allocate many times its size. Here payloads cost
nothing, everything that is not payload is bounded by `max_header_bytes`, and there are no extension types.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

from exodus_client.wire.bounds import MAX_DEPTH, Limits, WireError

_NUMBERS = {
    0xCA: Struct(">f"), 0xCB: Struct(">d"),
    0xCC: Struct(">B"), 0xCD: Struct(">H"), 0xCE: Struct(">I"), 0xCF: Struct(">Q"),
    0xD0: Struct(">b"), 0xD1: Struct(">h"), 0xD2: Struct(">i"), 0xD3: Struct(">q"),
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_BYTE, _SHORT, _LONG = Struct(">B"), Struct(">H"), Struct(">I")


class Walk:
    """A walk over the objects of a msgpack body, from the front.

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
        if tag in _SIZED:
            read, length, nests = _SIZED[tag]
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
            return WireError(
                f"body ends too early: {end} bytes wanted so far, got {len(self._body)}",
                expected=f"{end} bytes or more",
                got=f"{len(self._body)} bytes",
            )
        return WireError(
            f"the description of the message is over {self._max_plain_bytes} bytes; large values belong into tensors",
            code="too_large",
            expected=f"at most {self._max_plain_bytes} bytes",
            got="more",
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


_SIZED: dict[int, tuple[Callable[..., Any], Struct, bool]] = {
    0xC4: (Walk.payload, _BYTE, False), 0xC5: (Walk.payload, _SHORT, False), 0xC6: (Walk.payload, _LONG, False),
    0xD9: (Walk._text, _BYTE, False), 0xDA: (Walk._text, _SHORT, False), 0xDB: (Walk._text, _LONG, False),
    0xDC: (Walk._array, _SHORT, True), 0xDD: (Walk._array, _LONG, True),
    0xDE: (Walk._map, _SHORT, True), 0xDF: (Walk._map, _LONG, True),
}  # fmt: skip
