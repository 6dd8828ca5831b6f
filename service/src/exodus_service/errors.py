"""Errors of requests, without HTTP: a code, a sentence, and the places in the request that are wrong.

Every sentence about a value reads `NAME must be EXPECTED, got GOT`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

#: Most faults listed by one error.
MAX_FAULTS = 32

#: Every code; `http.problem_json` maps them to HTTP statuses.
Code = Literal[
    "malformed",
    "unauthorized",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "body_timeout",
    "model_exists",
    "sequence_conflict",
    "sequence_gap",
    "state_mismatch",
    "context_stale",
    "running",
    "context_expired",
    "answer_expired",
    "segment_gone",
    "length_required",
    "too_large",
    "unsupported",
    "invalid",
    "non_finite",
    "queue_full",
    "client_disconnected",
    "internal_error",
    "not_ready",
    "draining",
    "deadline",
    "out_of_memory",
    "storage_full",
]


class Fault(NamedTuple):
    """One wrong value of a request.

    Attributes:
        pointer: JSON pointer into the body, "" for the body as a whole, /headers/NAME for a header.
        expected: the value that is accepted, in words that go on from "must be".
        got: the value that came.
    """

    pointer: str
    expected: str
    got: str

    @property
    def name(self) -> str:
        """The value's name in a sentence."""
        header = self.pointer.removeprefix("/headers/")
        return f"header {header}" if header != self.pointer else self.pointer or "the body"

    @property
    def sentence(self) -> str:
        """The fault, spelled out."""
        return must_be(self.name, self.expected, self.got)


@dataclass
class ServiceError(Exception):
    """A request that fails.

    Attributes:
        code: stable name of the kind of error, for programs.
        detail: the error in a sentence; it contains the first of `faults`, so that nobody shows both.
        faults: every wrong value of the request.
    """

    code: Code
    detail: str
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        super().__init__(self.detail)

    def pointing_at(self, pointer: str, expected: str, got: str) -> Self:
        """The error with a place in the request, if it has none of its own."""
        self.faults = self.faults or (Fault(pointer, expected, got),)
        return self


def invalid(pointer: str, expected: str, got: str, *, name: str = "", code: Code = "invalid") -> ServiceError:
    """An error about one value of the request, called `name` in its sentence, else by its pointer."""
    fault = Fault(pointer, expected, got)
    return ServiceError(code, must_be(name or fault.name, expected, got), (fault,))


def must_be(name: str, expected: str, got: str) -> str:
    """The sentence for a wrong value."""
    return f"{name} must be {expected}, got {got}"
