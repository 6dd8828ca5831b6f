"""Admits a request: checks its headers, takes a slot in the queue, and reads its body. The same for all routes."""

import math
import time
from collections.abc import Mapping, Sequence

from fastapi import Request

from exodus_client.wire import (
    JSON_TYPE,
    MAX_REFERENCE_BYTES,
    MSGPACK_TYPE,
    SEGMENT_TYPE,
    WireError,
    read_reference,
)
from exodus_service.call import CONTENT_ENCODINGS, CONTENT_TYPES, Call, wire_problem
from exodus_service.context import Context
from exodus_service.engine import Engine
from exodus_service.errors import Code, Fault, ServiceError
from exodus_service.http.body import read_body
from exodus_service.http.middleware import CONTEXT
from exodus_service.shared_memory import Segments, Shared

_MESSAGES = (*CONTENT_TYPES, SEGMENT_TYPE)
#: The setting that bounds bodies.
_SETTING = "(EXODUS_MAX_BODY_BYTES)"
#: Most digits of a number of bytes.
_LONGEST_NUMBER = 18
#: Most characters of a header that a message shows.
_SHOWN = 80


async def receive_message(request: Request) -> Call:
    """Receive a message, or a reference to one in shared memory. Raises ServiceError."""
    engine: Engine = request.app.state.engine
    content_type = _content_type(request.scope[CONTEXT].headers, _MESSAGES)
    limit, why = engine.settings.max_body_bytes, _SETTING
    if content_type == SEGMENT_TYPE:
        limit, why = MAX_REFERENCE_BYTES, "for a reference"
    elif content_type == JSON_TYPE and engine.limits.max_json_bytes < limit:
        limit, why = engine.limits.max_json_bytes, "in JSON; send msgpack"
    return await _receive(request, content_type, limit, why)


async def receive_file(request: Request, content_type: str, limit: int) -> Call:
    """Receive a body of another content type, of at most `limit` bytes. Raises ServiceError."""
    given = _content_type(request.scope[CONTEXT].headers, (content_type,))
    return await _receive(request, given, limit, "(5 times EXODUS_MAX_MODEL_BYTES, and 1 MiB)")


async def receive_nothing(request: Request) -> Call:
    """A request whose body, if any, is ignored. Raises ServiceError."""
    call = _admit(request, "", None, 0)
    call.timings.received()
    return call


async def _receive(request: Request, content_type: str, limit: int, why: str) -> Call:
    context: Context = request.scope[CONTEXT]
    headers = context.headers
    encoding = headers.get("content-encoding")
    _require_known_encoding(encoding)
    _require_no_upgrade(headers, context)
    nbytes = _content_length(headers, limit, why)
    call = _admit(request, content_type, encoding, nbytes)
    engine: Engine = request.app.state.engine
    try:
        call.body = await read_body(
            request.receive,
            nbytes,
            stall_timeout=engine.settings.stall_timeout_s,
            min_rate=engine.settings.min_upload_rate,
            seconds_left=call.deadline - time.monotonic(),
            scope=request.scope,
            pinned=engine.device.type == "cuda",
        )
        if content_type == SEGMENT_TYPE:
            call.shared = _find(request, call.body)
            call.body, call.content_type, call.content_encoding = call.shared.body, MSGPACK_TYPE, None
            call.slot.reserve(len(call.body))
            context.bytes_in = len(call.body)
    except BaseException:
        call.slot.leave()
        raise
    finally:
        call.timings.received()
    return call


def _admit(request: Request, content_type: str, content_encoding: str | None, nbytes: int) -> Call:
    """Take a slot in the queue."""
    engine: Engine = request.app.state.engine
    context: Context = request.scope[CONTEXT]
    deadline = context.arrived + _deadline_seconds(context.headers)
    slot = engine.scheduler.admit(nbytes)
    context.bytes_in = nbytes
    return Call(
        context.owner, content_type, content_encoding, deadline, slot, context.timings, engine.device, engine.limits
    )


def _find(request: Request, body: memoryview) -> Shared:
    """The shared memory that a reference names, within the limit on bodies."""
    segments: Segments | None = request.app.state.segments
    try:
        reference = read_reference(body)
    except WireError as error:
        raise wire_problem(error) from error
    limit = request.app.state.engine.settings.max_body_bytes
    if reference.body.nbytes > limit:
        expected, got = f"at most {limit} bytes {_SETTING}", f"{reference.body.nbytes} bytes"
        raise ServiceError(
            "too_large", f"the body must be {expected}, got {got}", (Fault("/body/nbytes", expected, got),)
        )
    if segments is None:
        raise ServiceError("segment_gone", "shared memory is off on this service; send the body itself")
    return segments.find(reference)


def _content_type(headers: Mapping[str, str], known: Sequence[str]) -> str:
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in known:
        wanted = " or ".join(name for name in known if name != SEGMENT_TYPE)
        raise header_problem("unsupported", "content-type", wanted, shown(given))
    if given == SEGMENT_TYPE and headers.get("content-encoding", "identity") != "identity":
        given_encoding = headers["content-encoding"]
        raise header_problem("unsupported", "content-encoding", "absent for a reference", given_encoding)
    return given


def _require_known_encoding(given: str | None) -> None:
    if given is not None and given.strip().lower() not in CONTENT_ENCODINGS:
        raise header_problem("unsupported", "content-encoding", " or ".join(CONTENT_ENCODINGS), shown(given))


def _require_no_upgrade(headers: Mapping[str, str], context: Context) -> None:
    """The parser takes what follows an upgrade for another protocol, and with it the body."""
    given = headers.get("upgrade", "")
    if given and "upgrade" in headers.get("connection", "").lower():
        context.closing = True
        raise header_problem("malformed", "upgrade", "absent, as only HTTP/1.1 is spoken here", shown(given))


def _content_length(headers: Mapping[str, str], limit: int, why: str) -> int:
    given = headers.get("content-length")
    if given is None:
        raise header_problem("length_required", "content-length", "the number of bytes of the body", "")
    if not given.isdecimal():
        raise header_problem("malformed", "content-length", "a number of bytes", shown(given))
    nbytes = int(given) if len(given) <= _LONGEST_NUMBER else math.inf
    if nbytes > limit:
        raise header_problem("too_large", "content-length", f"at most {limit} bytes {why}", f"{shown(given)} bytes")
    return int(nbytes)


def _deadline_seconds(headers: Mapping[str, str]) -> float:
    """The value of X-Deadline-Ms in seconds; infinite if there is none."""
    given = headers.get("x-deadline-ms")
    if given is None:
        return math.inf
    if not given.isdecimal() or len(given) > 12:
        raise header_problem("malformed", "x-deadline-ms", "a whole number of milliseconds", shown(given))
    return int(given) / 1e3


def shown(value: str) -> str:
    """The value of a header for a message, truncated if it is long."""
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."


def header_problem(code: Code, name: str, expected: str, got: str) -> ServiceError:
    """An error in one header of a request."""
    detail = f"header {name} must be {expected}, got {got or 'nothing'}"
    return ServiceError(code, detail, (Fault(f"/headers/{name}", expected, got or "nothing"),))
