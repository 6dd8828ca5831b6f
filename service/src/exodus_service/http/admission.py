"""Reads a request: checks its headers, gives it a place in the queue, and reads its body. The same for all routes."""

import asyncio
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
from fastapi import Request

from exodus_client.wire import (
    JSON_TYPE,
    MAX_REFERENCE_BYTES,
    MSGPACK_TYPE,
    SEGMENT_TYPE,
    WireError,
    read_reference,
)
from exodus_service.compute.error_mapping import problem_of
from exodus_service.compute.scheduler import QueueFullError
from exodus_service.context import Context
from exodus_service.engine import Engine
from exodus_service.errors import Code, Fault, ServiceError
from exodus_service.gradients.request import CONTENT_ENCODINGS, CONTENT_TYPES
from exodus_service.http.body import empty_buffer, read_body
from exodus_service.http.middleware import CONTEXT
from exodus_service.operations.call import Received
from exodus_service.shared_memory import Segments, Shared

_MESSAGES = (*CONTENT_TYPES, SEGMENT_TYPE)
#: What bounds bodies.
_SETTING = "(EXODUS_MAX_BODY_BYTES)"
#: Digits of a number of bytes that there may be.
_LONGEST_NUMBER = 18
_SHOWN = 80


@contextmanager
def admission(request: Request) -> Iterator[ExitStack]:
    """What a request holds until it is answered; and what keeps it from being served, as problems."""
    engine: Engine = request.app.state.engine
    engine.require_ready()
    try:
        with ExitStack() as held:
            yield held
    except QueueFullError as error:
        raise ServiceError("queue_full", str(error)) from error
    except asyncio.CancelledError:  # by the server, when EXODUS_SHUTDOWN_TIMEOUT_S is over
        request.scope[CONTEXT].closing = True
        raise ServiceError("draining", "the service stopped before the result was there") from None


def admit(request: Request, held: ExitStack) -> Received:
    """A request whose body is of no interest. Raises ServiceError, QueueFullError."""
    deadline = request.scope[CONTEXT].arrived + _deadline_seconds(request.headers)
    return _received(request, held, memoryview(b""), "", None, deadline)


async def receive(request: Request, held: ExitStack) -> Received:
    """Receive a message, or a reference to one in shared memory. Raises ServiceError, QueueFullError."""
    engine: Engine = request.app.state.engine
    content_type = _content_type(request.headers, _MESSAGES)
    limit, why = engine.settings.max_body_bytes, _SETTING
    if content_type == SEGMENT_TYPE:
        limit, why = MAX_REFERENCE_BYTES, "for a reference"
    elif content_type == JSON_TYPE and engine.limits.max_json_bytes < limit:
        limit, why = engine.limits.max_json_bytes, "in JSON; send msgpack"
    return await _receive(request, held, content_type, limit, why)


async def receive_file(request: Request, held: ExitStack, content_type: str, limit: int) -> Received:
    """Receive a body of another content type, of at most `limit` bytes. Raises ServiceError, QueueFullError."""
    given = _content_type(request.headers, (content_type,))
    return await _receive(request, held, given, limit, "(5 times EXODUS_MAX_MODEL_BYTES, and 1 MiB)")


async def unshared(received: Received) -> None:
    """Copy a body out of shared memory, which its client may write to as soon as the request was answered."""
    if received.shared is None:
        return
    body = empty_buffer(len(received.body))
    await received.aside(partial(np.copyto, np.frombuffer(body, np.uint8), np.frombuffer(received.body, np.uint8)))
    received.body = body


async def _receive(request: Request, held: ExitStack, content_type: str, limit: int, why: str) -> Received:
    headers = request.headers
    encoding = headers.get("content-encoding")
    _require_known_encoding(encoding)
    context: Context = request.scope[CONTEXT]
    _require_no_upgrade(headers, context)
    nbytes = _content_length(headers, limit, why)
    deadline = context.arrived + _deadline_seconds(headers)
    if content_type == SEGMENT_TYPE:
        shared = _find(request, await _read(request, nbytes, deadline))
        return _received(request, held, shared.body, MSGPACK_TYPE, None, deadline, shared)
    received = _received(request, held, memoryview(b""), content_type, encoding, deadline, nbytes=nbytes)
    received.body = await _read(request, nbytes, deadline)
    context.timings.receive = context.elapsed
    received.queued_at = time.perf_counter()
    return received


def _received(
    request: Request,
    held: ExitStack,
    body: memoryview,
    content_type: str,
    content_encoding: str | None,
    deadline: float,
    shared: Shared | None = None,
    nbytes: int | None = None,
) -> Received:
    """Take a place in the queue."""
    engine: Engine = request.app.state.engine
    context: Context = request.scope[CONTEXT]
    nbytes = len(body) if nbytes is None else nbytes
    ticket = held.enter_context(engine.scheduler.admit(nbytes))
    context.bytes_in = nbytes
    context.timings.receive = context.elapsed
    return Received(
        context.owner,
        body,
        content_type,
        content_encoding,
        deadline,
        ticket,
        context.timings,
        time.perf_counter(),
        shared,
    )


async def _read(request: Request, nbytes: int, deadline: float) -> memoryview:
    engine: Engine = request.app.state.engine
    return await read_body(
        request.receive,
        nbytes,
        stall_timeout=engine.settings.stall_timeout_s,
        min_rate=engine.settings.min_upload_rate,
        seconds_left=deadline - time.monotonic(),
        scope=request.scope,
        pinned=engine.device.type == "cuda",
    )


def _find(request: Request, body: memoryview) -> Shared:
    """What is meant by a reference to shared memory, within the limit on bodies."""
    segments: Segments | None = request.app.state.segments
    try:
        reference = read_reference(body)
    except WireError as error:
        raise problem_of(error) from error
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
    """The value of X-Deadline-Ms in seconds; infinite where there is none."""
    given = headers.get("x-deadline-ms")
    if given is None:
        return math.inf
    if not given.isdecimal() or len(given) > 12:
        raise header_problem("malformed", "x-deadline-ms", "a whole number of milliseconds", shown(given))
    return int(given) / 1e3


def shown(value: str) -> str:
    """The value of a header for a message, cut where it is long."""
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."


def header_problem(code: Code, name: str, expected: str, got: str) -> ServiceError:
    """A problem with one header of a request."""
    detail = f"header {name} must be {expected}, got {got or 'nothing'}"
    return ServiceError(code, detail, (Fault(f"/headers/{name}", expected, got or "nothing"),))
