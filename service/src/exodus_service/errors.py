"""Errors of requests, without HTTP: a code, a sentence, and the places in the request that are wrong."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

#: Most faults that one error names.
MAX_FAULTS = 32

#: Every code; `http.problem_json` has the status and the title of each.
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
    """One place in the request that is wrong: a JSON pointer to it, what was expected there, what it got."""

    pointer: str
    expected: str
    got: str

    @property
    def sentence(self) -> str:
        """The fault for people."""
        return f"{self.pointer}: expected {self.expected}, got {self.got}"


@dataclass
class ServiceError(Exception):
    """A request that is not answered with success.

    Attributes:
        code: what callers may depend on.
        detail: what is wrong, in a sentence; it contains the first of `faults`, so that nobody shows both.
        faults: every place in the request that is wrong.
    """

    code: Code
    detail: str
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        super().__init__(self.detail)


def invalid(pointer: str, expected: str, got: str) -> ServiceError:
    """An error of code `invalid` for one place in the request."""
    fault = Fault(pointer, expected, got)
    return ServiceError("invalid", fault.sentence, (fault,))
