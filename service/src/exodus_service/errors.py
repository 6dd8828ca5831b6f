"""What can go wrong with a request, and its answer in the form of RFC 9457 (application/problem+json)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

MEDIA_TYPE = "application/problem+json"

#: A problem is for people to read: so many places that are wrong are named, and so many characters of each are shown.
MAX_FAULTS = 32
MAX_CHARACTERS = 500

Category = Literal["user", "server"]


class Kind(NamedTuple):
    """What all problems of one code have in common."""

    status: int
    title: str
    category: Category
    retryable: bool


KINDS: Mapping[str, Kind] = {
    "malformed": Kind(400, "The request cannot be read", "user", False),
    "unauthorized": Kind(401, "An API key is needed", "user", False),
    "forbidden": Kind(403, "The API key is not accepted", "user", False),
    "not_found": Kind(404, "There is no such resource", "user", False),
    "method_not_allowed": Kind(405, "The resource does not take this HTTP method", "user", False),
    "body_timeout": Kind(408, "The body arrived too slowly", "user", True),
    "model_exists": Kind(409, "There is another model of this id", "user", False),
    "sequence_conflict": Kind(409, "Another call has this sequence number", "user", False),
    "sequence_gap": Kind(409, "Calls with smaller sequence numbers are missing", "user", False),
    "state_mismatch": Kind(409, "The state is not one of this model", "user", False),
    "context_stale": Kind(409, "The weights have changed since the forward pass", "user", False),
    "running": Kind(409, "The call is running and cannot be stopped", "user", False),
    "context_expired": Kind(410, "The context is not kept any more", "user", False),
    "answer_expired": Kind(410, "The answer is not kept any more", "user", False),
    "segment_gone": Kind(410, "The shared memory is not known here", "user", False),
    "length_required": Kind(411, "The request has no Content-Length", "user", False),
    "too_large": Kind(413, "The request is too large", "user", False),
    "unsupported": Kind(415, "The content type or encoding is not supported", "user", False),
    "invalid": Kind(422, "A tensor or parameter does not fit", "user", False),
    "non_finite": Kind(422, "The loss or a gradient is not finite", "user", False),
    "queue_full": Kind(429, "The queue is full", "server", True),
    "client_disconnected": Kind(499, "The client closed the connection", "user", True),
    "internal_error": Kind(500, "The service failed", "server", False),
    "not_ready": Kind(503, "The service is starting", "server", True),
    "draining": Kind(503, "The service is stopping", "server", True),
    "deadline": Kind(504, "The deadline passed", "server", True),
    "out_of_memory": Kind(507, "The device has too little memory for this request", "server", False),
    "storage_full": Kind(507, "The storage of the service does not take a model", "server", False),
}


class Fault(NamedTuple):
    """One place in the request that is wrong: a JSON pointer into it, what was wanted there and what came."""

    pointer: str
    expected: str
    got: str

    @property
    def sentence(self) -> str:
        """The same for people."""
        return f"{self.pointer}: expected {self.expected}, got {self.got}"


@dataclass
class Problem(Exception):  # noqa: N818 (the word of RFC 9457)
    """An answer other than success.

    Attributes:
        code: one of KINDS.
        detail: what is wrong, in a sentence; it says what the first of `errors` says, so that nobody shows both.
        errors: every place that is wrong.
        headers: are added to the response.
    """

    code: str
    detail: str
    errors: tuple[Fault, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.detail)

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]

    def body(self, instance: str, request_id: str) -> bytes:
        """The JSON document, for the request at path `instance`."""
        kind = self.kind
        document = {
            "type": f"urn:exodus:problem:{self.code}",
            "title": kind.title,
            "status": kind.status,
            "detail": shortened(self.detail),
            "instance": instance,
            "code": self.code,
            "category": kind.category,
            "retryable": kind.retryable,
            "request_id": request_id,
            "errors": [
                {name: shortened(text) for name, text in fault._asdict().items()} for fault in self.errors[:MAX_FAULTS]
            ],
        }
        return json.dumps(document).encode()


def invalid(pointer: str, expected: str, got: str) -> Problem:
    """A 422 for one place in the request."""
    fault = Fault(pointer, expected, got)
    return Problem("invalid", fault.sentence, (fault,))


def shortened(text: str) -> str:
    """A text of the caller's, as much of it as is shown."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 3]}..."
