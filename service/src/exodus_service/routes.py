"""The endpoints of gradients and of the service itself: they read a request, have it computed, and answer."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import JSONResponse, Response

from exodus_client.wire import Encoded
from exodus_service import openapi
from exodus_service.answering import disconnected
from exodus_service.engine import Capabilities, Engine, Phase
from exodus_service.exchange import Exchange
from exodus_service.params import Method
from exodus_service.problems import Problem
from exodus_service.receiving import admission, receive
from exodus_service.responses import TensorResponse
from exodus_service.scheduler import DeadlineError
from exodus_service.segments import Segments, SharedMemory

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
    with admission(request) as held:
        received = await receive(request, held)
        ticket, deadline, timings = received.ticket, received.deadline, received.timings
        exchange = Exchange(
            method,
            received.body,
            received.content_type,
            received.content_encoding,
            engine.device,
            engine.limits,
            timings,
            received.queued_at,
            ticket.reserve,
        )

        def compute() -> Encoded:
            encoded = exchange.run()
            ticket.resize(encoded.nbytes)
            return encoded

        encoded = await _outcome(ticket.submit(compute, deadline, exchange), request.receive, deadline)
        if received.shared is not None:
            began = time.perf_counter()
            encoded = await received.shared.answer(encoded)
            timings.encode += time.perf_counter() - began
        return TensorResponse(encoded, held.pop_all().close)


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


async def _outcome(future: Future[Encoded], receive: Receive, deadline: float) -> Encoded:
    """The result of the work, unless the deadline passes or the client leaves before."""
    computed = asyncio.wrap_future(future)
    left = asyncio.ensure_future(disconnected(receive))
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
