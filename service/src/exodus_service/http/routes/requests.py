"""The endpoints of calls that were answered with 202."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from exodus_service.http.middleware import CONTEXT, Route
from exodus_service.http.openapi import document as documented
from exodus_service.http.pipeline import look
from exodus_service.operations.pending import Requests

RequestId = Annotated[str, Path(description="Id of the request, as in the 202 answer.")]

router = APIRouter(tags=["requests"], route_class=Route)


@router.get("/v1/requests/{id}", **documented.GET_REQUEST)
async def find(id: RequestId, request: Request) -> Response:
    """The response of the call, status and headers and body, once it is there; else 202. `Prefer: wait=N` waits."""
    request.app.state.engine.require_ready()
    return await look(request, id)


@router.delete("/v1/requests/{id}", **documented.DELETE_REQUEST)
async def cancel(id: RequestId, request: Request) -> Response:
    """Cancel a call that has not begun, or forget its result. 409 if it is running."""
    requests: Requests = request.app.state.requests
    requests.cancel(request.scope[CONTEXT].owner, id)
    return Response(status_code=204)
