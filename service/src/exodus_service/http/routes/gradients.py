"""The endpoint of gradients."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from exodus_client.wire import Encoded
from exodus_core.arguments import METHODS
from exodus_service.compute.scheduler import DeadlineError
from exodus_service.engine import Engine
from exodus_service.errors import ServiceError
from exodus_service.gradients.params import Method
from exodus_service.gradients.request import Exchange
from exodus_service.http.admission import admission, receive
from exodus_service.http.conduct import disconnected
from exodus_service.http.direct_route import DirectRoute
from exodus_service.http.openapi import document
from exodus_service.http.responses import TensorResponse

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MethodInPath = Annotated[Method, Path(description="How gradients pass through the reset of the neuron.")]

router = APIRouter(route_class=DirectRoute)


@router.post(
    "/v1/gradients/{method}",
    tags=["gradients"],
    response_description="The gradients, in the form of the request.",
    **document.GRADIENTS,
)
async def gradients(method: MethodInPath, request: Request) -> Response:
    """Gradients of a layer of spiking neurons in one round trip. Stateless, and safe to send again.

    The tensors of the request are one of `membrane` (the trace of a forward pass), `input` (the current: the service
    runs the forward pass) or `spikes` and `weight` (the current is their product); for the model srm one of `membrane`
    and `psp`, with `reset_kernel`. With them goes `grad_output`, dL/ds, or `grad_membrane`, dL/du, or both; without
    them only the forward pass is run.
    """
    if method not in METHODS:
        raise ServiceError("not_found", f"{quote(request.scope['path'])}: the methods are {', '.join(METHODS)}")
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
        raise ServiceError("client_disconnected", "the client left before the result was there")
    raise ServiceError("deadline", "the deadline passed before the result was there")
