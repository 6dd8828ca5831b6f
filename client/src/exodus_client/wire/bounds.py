"""Error and limits of the wire format; limits are checked before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

ErrorCode: TypeAlias = Literal["malformed", "too_large", "unsupported", "mismatch"]

#: Nesting of maps and arrays within a body. A request needs five levels; deeper ones are an attack or a mistake.
MAX_DEPTH = 16

#: The length of a msgpack `bin 32` object is an unsigned 32-bit number.
MAX_PAYLOAD_BYTES = 2**32 - 1


class WireError(ValueError):
    """The one error of the format.

    Attributes:
        code: "malformed" (not the format), "too_large" (over a limit), "unsupported" (a dtype, encoding, content type
            or version that is not spoken here) or "mismatch" (shape, dtype, size or names contradict each other).
        pointer: JSON pointer into the body, such as "/tensors/0/shape"; "" for the body as a whole.
        expected, got: the two sides of the contradiction, as text; "" if there are none.
    """

    def __init__(
        self, message: str, *, code: ErrorCode = "malformed", pointer: str = "", expected: str = "", got: str = ""
    ) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.pointer = pointer
        self.expected = expected
        self.got = got


def refused(
    name: str, expected: str, got: str, *, code: ErrorCode = "malformed", pointer: str = "", advice: str = ""
) -> WireError:
    """The error for a part of a body that does not fit."""
    return WireError(sentence(name, expected, got, advice), code=code, pointer=pointer, expected=expected, got=got)


def sentence(name: str, expected: str, got: object, advice: str = "") -> str:
    """The sentence in which all errors about arguments and bodies say what was wanted and what came."""
    return f"{name} must be {expected}, got {got}" + (advice and f"; {advice}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest messages that a reader accepts.

    Attributes:
        max_bytes: bytes of all tensors of a message once they are unpacked (bits and events count one byte an element).
        max_tensors: tensors in a message.
        max_ndim: dimensions of a tensor.
        max_header_bytes: the body without its payloads.
        max_json_bytes: a whole body in the JSON form.
    """

    max_bytes: int = 2**30
    max_tensors: int = 64
    max_ndim: int = 8
    max_header_bytes: int = 64 * 1024
    max_json_bytes: int = 1024 * 1024

    @property
    def max_body_bytes(self) -> int:
        """Upper bound of a msgpack body: payloads, header, and per tensor a pad (2 + 63) and a bin 32 prefix (5)."""
        return self.max_bytes + self.max_header_bytes + 70 * self.max_tensors


DEFAULT_LIMITS = Limits()
