"""The endpoints of single layers, forward and backward in two calls."""

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from exodus_service.http.middleware import Route
from exodus_service.http.openapi import document as documented
from exodus_service.http.pipeline import respond
from exodus_service.operations import layer

router = APIRouter(tags=["layers"], route_class=Route)


@router.post("/v1/layers/forward", **documented.LAYER_FORWARD)
async def forward(request: Request) -> Response:
    """Forward pass of a layer of spiking neurons, which leaves a context for the backward pass.

    The tensors are `input` (the current), or `spikes` and `weight`, or for the model srm `psp` and `reset_kernel`.
    """
    return await respond(request, partial(layer.forward, request.app.state.engine))


@router.post("/v1/layers/backward", **documented.LAYER_BACKWARD)
async def backward(request: Request) -> Response:
    """Gradients of a layer from its context and `grad_output`, dL/ds, or `grad_membrane`, dL/du, or both.

    The context is gone afterwards unless `keep` says otherwise. 410: send the inputs again.
    """
    return await respond(request, partial(layer.backward, request.app.state.engine))
