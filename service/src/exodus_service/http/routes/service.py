"""The endpoints of the service itself: capabilities, shared memory, liveness, readiness."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from exodus_service.engine import Capabilities, Engine, Phase
from exodus_service.errors import ServiceError
from exodus_service.http.openapi import document
from exodus_service.shared_memory import Segments, SharedMemory

router = APIRouter()


@router.get("/v1/capabilities", tags=["service"], responses=document.CAPABILITIES_RESPONSES)
async def capabilities(request: Request) -> Capabilities:
    """Methods, neurons, surrogates, dtypes, devices, limits and versions of the wire format."""
    known: Capabilities = request.app.state.capabilities
    return known


@router.get("/v1/shared-memory", tags=["service"], responses=document.SHARED_MEMORY_RESPONSES)
async def shared_memory(request: Request) -> SharedMemory:
    """Socket where clients of the same user on this machine hand over memory; docs/wire-format.md has the exchange."""
    segments: Segments | None = request.app.state.segments
    if segments is None:
        raise ServiceError("not_found", "shared memory is off on this service; EXODUS_SHARED_MEMORY=1 turns it on")
    return SharedMemory(socket=segments.socket_name)


@router.get("/livez", tags=["service"], responses=document.LIVE_RESPONSES)
async def live() -> JSONResponse:
    """200 as long as the process answers; it does so while a gradient is computed."""
    return JSONResponse({"status": "alive"})


@router.get("/readyz", tags=["service"], responses=document.READY_RESPONSES)
async def ready(request: Request) -> JSONResponse:
    """200 while requests should be sent here; 503 while the service starts or stops."""
    engine: Engine = request.app.state.engine
    engine.require_ready()
    if engine.phase is Phase.DRAINING:
        raise ServiceError("draining", "the service is stopping; send new requests elsewhere")
    return JSONResponse({"status": "ready"})
