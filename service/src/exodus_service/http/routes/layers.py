"""The endpoints of single layers in two calls."""

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from exodus_service.http.admission import admission, receive
from exodus_service.http.conduct import conduct
from exodus_service.http.direct_route import DirectRoute
from exodus_service.http.openapi import document as documented
from exodus_service.operations import layer

router = APIRouter(tags=["layers"], route_class=DirectRoute)


@router.post("/v1/layers/forward", **documented.LAYER_FORWARD)
async def forward(request: Request) -> Response:
    """Forward pass of a layer of spiking neurons, which leaves a context for the backward pass.

    The tensors are `input` (the current), or `spikes` and `weight`, or for the model srm `psp` and `reset_kernel`.
    """
    with admission(request) as held:
        received = await receive(request, held)
        return await conduct(request, held, received, partial(layer.forward, request.app.state.engine))


@router.post("/v1/layers/backward", **documented.LAYER_BACKWARD)
async def backward(request: Request) -> Response:
    """Gradients of a layer from its context and `grad_output`, dL/ds, or `grad_membrane`, dL/du, or both.

    The context is gone afterwards unless `keep` says otherwise. 410: send the inputs again.
    """
    with admission(request) as held:
        received = await receive(request, held)
        return await conduct(request, held, received, partial(layer.backward, request.app.state.engine))
