"""Everything that goes wrong after a request was found fit to send.

    ExodusError
    ├── APIConnectionError                no answer: refused, reset, unreachable
    │   └── APITimeoutError               no answer in time
    ├── InvalidResponseError              an answer that cannot be read
    ├── StateLostError                    the server's model is older than what can be sent again
    ├── ModelClosedError                  the model is closed, or was before the call was answered
    ├── ClientClosedError                 the client is closed
    └── APIStatusError                    an answer that says no; one class a status
        ├── BadRequestError               400  malformed
        ├── AuthenticationError           401  no key, or an unknown one
        ├── PermissionDeniedError         403
        ├── NotFoundError                 404
        ├── RequestTimeoutError           408  the body came too slowly            retried
        ├── ConflictError                 409  out of sequence                     retried if the server says so
        ├── GoneError                     410  expired: send the inputs again
        ├── LengthRequiredError           411
        ├── PayloadTooLargeError          413
        ├── UnsupportedMediaTypeError     415
        ├── UnprocessableError            422  shape, dtype or parameter
        ├── RateLimitError                429  queue or quota full                 retried
        └── InternalServerError           500 and other 5xx                        retried unless the server says no
            ├── ServiceUnavailableError   503  not ready, or draining              retried
            ├── DeadlineExceededError     504                                      retried
            ├── ServerOutOfMemoryError    507  too little memory                   retried if the server says so
            └── ServerStorageFullError    507  storage_full: the server's disk     retried if the server says so

Arguments that cannot be right raise TypeError or ValueError before anything is sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from exodus_client._constants import MAX_DETAIL_CHARACTERS


class ExodusError(Exception):
    """Base of all errors of the client.

    Attributes:
        request_id: the `X-Request-ID` under which the server logged the request.
    """

    def __init__(self, message: str, *, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


Kind = TypeVar("Kind", bound="ExodusError")


def reworded(error: Kind, message: str) -> Kind:
    """The same error with another message, for another raise: an exception object belongs to one traceback."""
    copy = error.__class__.__new__(error.__class__)
    copy.__dict__.update(error.__dict__)
    copy.args = (message,)
    copy.__cause__ = error
    return copy


class APIConnectionError(ExodusError):
    """There was no answer, after all retries; the cause is chained."""


class APITimeoutError(APIConnectionError):
    """There was no answer in time, after all retries; the cause is chained if there is one."""


class InvalidResponseError(ExodusError):
    """The answer cannot be read: it is not what the API promises, or larger than `Limits.max_response_bytes`."""


class StateLostError(ExodusError):
    """The server's model is older than what this handle has kept: steps are missing that cannot be sent again."""


class ModelClosedError(ExodusError):
    """The model, or its client, is closed, or was closed before the call was answered."""


class ClientClosedError(ExodusError):
    """The client is closed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One place of the request that the server objects to: JSON pointer, what it expected, what it got."""

    pointer: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.pointer or 'the request'} must be {self.expected}, got {self.got}"

    def beside(self, detail: str, *, alone: bool) -> str:
        """The part of it that a sentence about it, alone or among others, leaves out; "" if that says it all."""
        if not self.got or self.got not in detail or not (alone or self.expected in detail):
            return str(self)
        return "" if self.pointer in detail else f"at {self.pointer}"


class APIStatusError(ExodusError):
    """The server answered with an error.

    Attributes:
        status_code: HTTP status.
        code: stable slug of the problem, such as "queue_full"; "" if the answer was not from the service itself.
        detail: what went wrong, in a sentence.
        errors: the places of the request that are wrong.
        category: "user" or "server"; "" if unknown.
        retryable: whether the same request may succeed later; None if the answer does not say.
        retry_after: seconds that the server asks to wait, or None.
    """

    def __init__(
        self, status_code: int, problem: Mapping[str, Any], *, request_id: str, retry_after: float | None
    ) -> None:
        self.status_code = status_code
        self.code = _text(problem, "code")
        self.detail = _text(problem, "detail") or _text(problem, "title") or "no reason given"
        self.errors = _faults(problem.get("errors"))
        self.category = _text(problem, "category")
        retryable = problem.get("retryable")
        self.retryable = retryable if isinstance(retryable, bool) else None
        self.retry_after = retry_after
        more = (fault.beside(self.detail, alone=len(self.errors) == 1) for fault in self.errors)
        lines = [f"{status_code} {self.code}".rstrip() + f": {self.detail}", *(f"  {line}" for line in more if line)]
        super().__init__("\n".join(lines) + f" [request {request_id}]", request_id=request_id)


class BadRequestError(APIStatusError):
    """400: the server cannot read the request."""


class AuthenticationError(APIStatusError):
    """401: the server wants an API key, and got none or an unknown one."""


class PermissionDeniedError(APIStatusError):
    """403: the API key is not allowed to do this."""


class NotFoundError(APIStatusError):
    """404: there is no such thing, or it belongs to someone else."""


class RequestTimeoutError(APIStatusError):
    """408: the body of the request came too slowly."""


class ConflictError(APIStatusError):
    """409: the request is out of sequence."""


class GoneError(APIStatusError):
    """410: what the request refers to has expired; send the inputs again."""


class LengthRequiredError(APIStatusError):
    """411: the request had no Content-Length, which something between client and server must have removed."""


class PayloadTooLargeError(APIStatusError):
    """413: the request is larger than the server takes; split it along the batch."""


class UnsupportedMediaTypeError(APIStatusError):
    """415: the server does not speak this form, encoding, dtype or compression."""


class UnprocessableError(APIStatusError):
    """422: a shape, dtype or parameter does not fit; `errors` says which."""


class RateLimitError(APIStatusError):
    """429: the queue or the quota is full."""


class InternalServerError(APIStatusError):
    """5xx: the server failed."""


class ServiceUnavailableError(InternalServerError):
    """503: the server is not ready yet, or about to stop."""


class DeadlineExceededError(InternalServerError):
    """504: the deadline passed before the result was there."""


class ServerOutOfMemoryError(InternalServerError):
    """507: the device has too little memory for this request; split it along the batch."""


class ServerStorageFullError(InternalServerError):
    """507 of the code storage_full: the server's disk does not take a model; what is in memory there goes on."""


STATUS_ERRORS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: RequestTimeoutError,
    409: ConflictError,
    410: GoneError,
    411: LengthRequiredError,
    413: PayloadTooLargeError,
    415: UnsupportedMediaTypeError,
    422: UnprocessableError,
    429: RateLimitError,
    503: ServiceUnavailableError,
    504: DeadlineExceededError,
    507: ServerOutOfMemoryError,
}

#: Codes of problems whose error is another than that of their status.
CODE_ERRORS: dict[tuple[int, str], type[APIStatusError]] = {(507, "storage_full"): ServerStorageFullError}


def status_error(
    status_code: int, body: bytes, *, request_id: str, retry_after: float | None, location: str = ""
) -> APIStatusError:
    """The error of an answer. A body that is no problem document, from a proxy for example, becomes the detail.

    `location`: where the answer says that the server has moved to; a client stays with the address that it was given.
    """
    problem = _problem(body)
    if 300 <= status_code < 400 and location:
        moved = f"the server has moved to {location:.200}; give the client that address"
        problem = {**problem, "detail": _readable(moved)}
    kind = STATUS_ERRORS.get(status_code, InternalServerError if status_code >= 500 else APIStatusError)
    kind = CODE_ERRORS.get((status_code, _text(problem, "code")), kind)
    return kind(status_code, problem, request_id=request_id, retry_after=retry_after)


def _problem(body: bytes) -> Mapping[str, Any]:
    text = body.decode("utf-8", "replace")
    try:
        problem = json.loads(text)
    except (ValueError, RecursionError):
        problem = None
    return problem if isinstance(problem, dict) else {"detail": text.strip()[:MAX_DETAIL_CHARACTERS]}


def _text(problem: Mapping[str, Any], member: str) -> str:
    value = problem.get(member)
    return _readable(value) if isinstance(value, str) else ""


def _readable(text: str) -> str:
    """Text that can be printed: JSON may have halves of surrogate pairs, which no encoding has."""
    return text.encode("utf-8", "replace").decode()


def _faults(errors: Any) -> tuple[Fault, ...]:
    entries = [entry for entry in errors if isinstance(entry, dict)] if isinstance(errors, list) else []
    return tuple(Fault(_text(entry, "pointer"), _text(entry, "expected"), _text(entry, "got")) for entry in entries)
