"""Errors as HTTP responses: application/problem+json, RFC 9457."""

import json
from collections.abc import Mapping
from typing import Literal, NamedTuple

from starlette.responses import Response

from exodus_service.errors import MAX_FAULTS, Code, ServiceError

MEDIA_TYPE = "application/problem+json"

#: Most characters shown of a text, which may be the caller's.
MAX_CHARACTERS = 500

Category = Literal["user", "server"]


class Kind(NamedTuple):
    """HTTP status and title of an error code."""

    status: int
    title: str
    category: Category
    retryable: bool


KINDS: Mapping[Code, Kind] = {
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

#: Headers that go with the errors of a code.
_HEADERS: Mapping[str, dict[str, str]] = {
    "unauthorized": {"WWW-Authenticate": "Bearer"},
    "body_timeout": {"Connection": "close"},
}


def problem_body(error: ServiceError, instance: str, request_id: str) -> bytes:
    """The JSON document of an error; `instance` is the path of the request."""
    kind = KINDS[error.code]
    document = {
        "type": f"urn:exodus:problem:{error.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": _shortened(error.detail),
        "instance": instance,
        "code": error.code,
        "category": kind.category,
        "retryable": kind.retryable,
        "request_id": request_id,
        "errors": [
            {name: _shortened(text) for name, text in fault._asdict().items()} for fault in error.faults[:MAX_FAULTS]
        ],
    }
    return json.dumps(document).encode()


def problem_response(
    error: ServiceError, path: str, request_id: str, *, retry_after_s: int, headers: Mapping[str, str] | None = None
) -> Response:
    """The response to a failed request; 429 and 503 carry Retry-After."""
    status = KINDS[error.code].status
    retry = {"Retry-After": str(retry_after_s)} if status in (429, 503) else {}
    body = problem_body(error, path, request_id)
    return Response(
        body, status, headers=retry | _HEADERS.get(error.code, {}) | dict(headers or {}), media_type=MEDIA_TYPE
    )


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 3]}..."
