"""The endpoints: they read the HTTP side of a request, have the engine compute, and answer."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import JSONResponse, Response

from exodus_client.wire import (
    JSON_TYPE,
    MAX_REFERENCE_BYTES,
    MSGPACK_TYPE,
    SEGMENT_TYPE,
    Encoded,
    WireError,
    read_reference,
)
from exodus_service import openapi
from exodus_service.body import read_body
from exodus_service.context import Context
from exodus_service.engine import Capabilities, Engine, Phase
from exodus_service.exchange import CONTENT_ENCODINGS, CONTENT_TYPES, Exchange, problem_of
from exodus_service.middleware import CONTEXT
from exodus_service.params import Method
from exodus_service.problems import Fault, Problem
from exodus_service.responses import TensorResponse
from exodus_service.scheduler import DeadlineError, QueueFullError
from exodus_service.segments import Segments, Shared, SharedMemory

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MethodInPath = Annotated[Method, Path(description="How gradients pass through the reset of the neuron.")]

router = APIRouter()


@router.post(
    "/v1/gradients/{method}",
    tags=["gradients"],
    response_class=Response,
    response_description="The gradients, in the form of the request.",
    responses=openapi.GRADIENT_RESPONSES,
    openapi_extra=openapi.GRADIENT_REQUEST,
)
async def gradients(method: MethodInPath, request: Request) -> Response:
    """Gradients of a layer of spiking neurons in one round trip. Stateless, and safe to send again.

    The tensors of the request are one of `membrane` (the trace of a forward pass), `input` (the current: the service
    runs the forward pass) or `spikes` and `weight` (the current is their product); for the model srm one of `membrane`
    and `psp`, with `reset_kernel`. With them goes `grad_output`, dL/ds, or `grad_membrane`, dL/du, or both; without
    them only the forward pass is run.
    """
    engine: Engine = request.app.state.engine
    context: Context = request.scope[CONTEXT]
    engine.require_ready()
    headers = request.headers
    content_type, content_encoding = _content_type(headers), headers.get("content-encoding")
    _require_known_encoding(content_encoding)
    _require_no_upgrade(headers)
    nbytes = _content_length(headers, _body_limit(engine, content_type))
    deadline = context.arrived + _deadline_seconds(headers)
    shared: Shared | None = None
    if content_type == SEGMENT_TYPE:
        shared = _find(request, await _read(request, nbytes, deadline))
        content_type, nbytes = MSGPACK_TYPE, len(shared.body)
    with _refusals(engine), ExitStack() as held:
        ticket = held.enter_context(engine.scheduler.admit(nbytes))
        body = await _read(request, nbytes, deadline) if shared is None else shared.body
        context.bytes_in = nbytes
        context.timings.receive = context.elapsed
        exchange = Exchange(
            method,
            body,
            content_type,
            content_encoding,
            engine.device,
            engine.limits,
            context.timings,
            time.perf_counter(),
        )

        def compute() -> Encoded:
            encoded = exchange.run()
            ticket.resize(encoded.nbytes)
            return encoded

        encoded = await _outcome(ticket.submit(compute, deadline, exchange), request.receive, deadline)
        if shared is not None:
            began = time.perf_counter()
            encoded = await shared.answer(encoded)
            context.timings.encode += time.perf_counter() - began
        return TensorResponse(encoded, engine.settings.stall_timeout_s, held.pop_all().close)


@router.get("/v1/capabilities", tags=["service"], responses=openapi.CAPABILITIES_RESPONSES)
async def capabilities(request: Request) -> Capabilities:
    """Methods, neurons, surrogates, dtypes, devices, limits and versions of the wire format."""
    known: Capabilities = request.app.state.capabilities
    return known


@router.get("/v1/shared-memory", tags=["service"], responses=openapi.SHARED_MEMORY_RESPONSES)
async def shared_memory(request: Request) -> SharedMemory:
    """Where clients of the same user on this machine hand over memory; docs/wire-format.md has the exchange."""
    segments: Segments | None = request.app.state.segments
    if segments is None:
        raise Problem("not_found", "shared memory is off on this service; EXODUS_SHARED_MEMORY=1 turns it on")
    return SharedMemory(socket=segments.socket_name)


@router.get("/livez", tags=["service"], responses=openapi.LIVE_RESPONSES)
async def live() -> JSONResponse:
    """200 as long as the process answers; it does so while a gradient is computed."""
    return JSONResponse({"status": "alive"})


@router.get("/readyz", tags=["service"], responses=openapi.READY_RESPONSES)
async def ready(request: Request) -> JSONResponse:
    """200 while requests should be sent here; 503 while the service starts or stops."""
    engine: Engine = request.app.state.engine
    engine.require_ready()
    if engine.phase is Phase.DRAINING:
        raise Problem("draining", "the service is stopping; send new requests elsewhere", headers=engine.retry_after)
    return JSONResponse({"status": "ready"})


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
        expected, got = f"at most {limit} bytes", f"{reference.body.nbytes} bytes"
        raise Problem("too_large", f"body: expected {expected}, got {got}", (Fault("/body/nbytes", expected, got),))
    if segments is None:
        raise Problem("segment_gone", "shared memory is off on this service; send the body itself")
    return segments.find(reference)


def _content_type(headers: Mapping[str, str]) -> str:
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if given == SEGMENT_TYPE:
        if headers.get("content-encoding", "identity") != "identity":
            given_encoding = headers["content-encoding"]
            raise _header_problem("unsupported", "content-encoding", "none, of a reference", given_encoding)
        return given
    if given not in CONTENT_TYPES:
        raise _header_problem("unsupported", "content-type", " or ".join(CONTENT_TYPES), given)
    return given


def _require_known_encoding(given: str | None) -> None:
    if given is not None and given.strip().lower() not in CONTENT_ENCODINGS:
        raise _header_problem("unsupported", "content-encoding", " or ".join(CONTENT_ENCODINGS), given)


def _require_no_upgrade(headers: Mapping[str, str]) -> None:
    """The parser takes what follows an upgrade for another protocol, and with it the body."""
    given = headers.get("upgrade", "")
    if given and "upgrade" in headers.get("connection", "").lower():
        problem = _header_problem("malformed", "upgrade", "none, as HTTP/1.1 is all that is spoken here", given)
        problem.headers["Connection"] = "close"
        raise problem


def _body_limit(engine: Engine, content_type: str) -> int:
    limit = engine.settings.max_body_bytes
    if content_type == SEGMENT_TYPE:
        return MAX_REFERENCE_BYTES
    return min(limit, engine.limits.max_json_bytes) if content_type == JSON_TYPE else limit


def _content_length(headers: Mapping[str, str], limit: int) -> int:
    given = headers.get("content-length")
    if given is None:
        raise _header_problem("length_required", "content-length", "the number of bytes of the body", "")
    if not given.isdecimal():
        raise _header_problem("malformed", "content-length", "a number of bytes", given)
    nbytes = int(given)
    if nbytes > limit:
        raise _header_problem("too_large", "content-length", f"at most {limit} bytes", f"{nbytes} bytes")
    return nbytes


def _deadline_seconds(headers: Mapping[str, str]) -> float:
    """The value of X-Deadline-Ms in seconds; infinite where there is none."""
    given = headers.get("x-deadline-ms")
    if given is None:
        return math.inf
    if not given.isdecimal() or len(given) > 12:
        raise _header_problem("malformed", "x-deadline-ms", "a whole number of milliseconds", given)
    return int(given) / 1e3


def _header_problem(code: str, name: str, expected: str, got: str) -> Problem:
    detail = f"header {name}: expected {expected}, got {got or 'nothing'}"
    return Problem(code, detail, (Fault(f"/headers/{name}", expected, got or "nothing"),))


@contextmanager
def _refusals(engine: Engine) -> Iterator[None]:
    """What the scheduler and the end of the process have to say to a request, as problems."""
    try:
        yield
    except QueueFullError as error:
        raise Problem("queue_full", str(error), headers=engine.retry_after) from error
    except asyncio.CancelledError:  # by the server, when EXODUS_SHUTDOWN_TIMEOUT_S is over
        headers = {**engine.retry_after, "Connection": "close"}
        raise Problem("draining", "the service stopped before the result was there", headers=headers) from None


async def _outcome(future: Future[Encoded], receive: Receive, deadline: float) -> Encoded:
    """The result of the work, unless the deadline passes or the client leaves before."""
    computed = asyncio.wrap_future(future)
    left = asyncio.ensure_future(_disconnected(receive))
    timeout = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
    try:
        done, _ = await asyncio.wait((computed, left), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if computed in done:
            return computed.result()
    except DeadlineError:
        pass
    finally:
        left.cancel()
        computed.cancel()
    if left in done:
        raise Problem("client_disconnected", "the client left before the result was there")
    raise Problem("deadline", "the deadline passed before the result was there")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
