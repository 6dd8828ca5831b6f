"""The endpoint of gradients."""

from collections.abc import Coroutine
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from exodus_core.arguments import METHODS
from exodus_service.call import Call, Result
from exodus_service.errors import ServiceError
from exodus_service.gradients.params import Method
from exodus_service.gradients.request import GradientRequest
from exodus_service.http.middleware import Route
from exodus_service.http.openapi import document
from exodus_service.http.pipeline import respond

MethodInPath = Annotated[Method, Path(description="How gradients pass through the reset of the neuron.")]


router = APIRouter(route_class=Route)


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
    and `psp`, with `reset_kernel`. If the gradient of `synapse_alpha` or `synapse_gain` is wanted, `current`, the trace
    of the synaptic current, goes with a `membrane`. With them goes `grad_output`, dL/ds, or `grad_membrane`, dL/du, or
    both; without them only the forward pass is run.
    """
    if method not in METHODS:
        raise ServiceError("not_found", f"{quote(request.scope['path'])}: the methods are {', '.join(METHODS)}")

    def compute(call: Call) -> Coroutine[Any, Any, Result]:
        gradient = GradientRequest(method, call)
        return call.compute(gradient.run, gradient, brief=lambda: method != "bptt" and not call.has("weight"))

    return await respond(request, compute, deferrable=False)
