"""The endpoints of models."""

import asyncio
import json
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from exodus_client.wire import JSON_TYPE
from exodus_service.call import Call, Result
from exodus_service.engine import Engine
from exodus_service.http.admission import receive_file, receive_nothing
from exodus_service.http.middleware import CONTEXT, Route
from exodus_service.http.openapi import document as documented
from exodus_service.http.pipeline import JOINED, TensorResponse, respond
from exodus_service.models.storage.state_file import MEDIA_TYPE
from exodus_service.operations import forward as forwarding
from exodus_service.operations import model_lifecycle, train

ModelId = Annotated[str, Path(description="Id of the model.")]

router = APIRouter(tags=["models"], route_class=Route)


@router.post("/v1/models", **documented.CREATE)
async def create(request: Request) -> Response:
    """Make a model from a network, an optimiser and a seed, or from `weights`: all parameters in order, flat.

    Durable when it is answered, where the service has a folder to save in. The same call again, with the same `id`, is
    answered with 200 and the model as it is by then.
    """
    return await respond(request, partial(model_lifecycle.create, request.app.state.engine), stoppable=False)


@router.get("/v1/models", **documented.LIST)
async def find_all(request: Request) -> Response:
    """All models of the caller, the oldest first."""
    engine: Engine = request.app.state.engine
    engine.require_ready()
    infos = await engine.store.list(request.scope[CONTEXT].owner)
    result = await asyncio.to_thread(Result.json, {"models": infos})
    if result.encoded.nbytes <= JOINED:  # a short list is there for whoever looks into a full service
        return TensorResponse(result)
    return TensorResponse(result, engine.scheduler.admit_result(result.encoded.nbytes).leave)


@router.get("/v1/models/{id}", **documented.INFO)
async def info(id: ModelId, request: Request) -> Response:
    """Description of a model, and its progress in training."""
    engine: Engine = request.app.state.engine
    engine.require_ready()
    return Response(json.dumps(await engine.store.info(request.scope[CONTEXT].owner, id)), media_type=JSON_TYPE)


@router.delete("/v1/models/{id}", **documented.DELETE)
async def delete(id: ModelId, request: Request) -> Response:
    """Delete a model and all that was saved of it. A call that runs ends and is answered; those that wait get 404."""
    engine: Engine = request.app.state.engine
    engine.require_ready()
    await engine.store.delete(request.scope[CONTEXT].owner, id)
    return Response(status_code=204)


@router.post("/v1/models/{id}/forward", **documented.FORWARD)
async def forward(id: ModelId, request: Request) -> Response:
    """Outputs of the network on `input`, and the metrics of a loss where `targets` and `loss` are there.

    With a loss, the tensor `lengths`, integers of shape (batch,), says how many steps of each sample count, from the
    first on; or the tensor `mask`, bool of shape (batch, time), which steps do.

    Changes nothing. With `context`, what a backward pass needs is kept for a while: send `grad_output` and the context
    to `forward_backward` or `step`.
    """
    return await respond(request, partial(forwarding.forward, request.app.state.engine, id))


@router.post("/v1/models/{id}/forward_backward", **documented.FORWARD_BACKWARD)
async def forward_backward(id: ModelId, request: Request) -> Response:
    """Add gradients to those accumulated.

    The tensors are `input` and `targets`, with a loss; or `input` and `grad_output`, the gradient of any loss with
    respect to the outputs; or `grad_output` alone, with the context of a forward pass.

    With a loss, the tensor `lengths`, integers of shape (batch,), says how many steps of each sample count, from the
    first on; or the tensor `mask`, bool of shape (batch, time), which steps do. A network with batch norm has
    neither.
    """
    return await _train(request, id, train.FORWARD_BACKWARD)


@router.post("/v1/models/{id}/optim_step", **documented.OPTIM_STEP)
async def optim_step(id: ModelId, request: Request) -> Response:
    """Change the weights by the accumulated gradients, or by `gradients`, flat, in their place; then clear them."""
    return await _train(request, id, train.OPTIM_STEP)


@router.post("/v1/models/{id}/step", **documented.STEP)
async def step(id: ModelId, request: Request) -> Response:
    """`forward_backward` and `optim_step` in one round trip, with the tensors of `forward_backward`.

    They are `input` and `targets`, with a loss, and `lengths` or `mask` where not all steps count; or `input` and
    `grad_output`; or `grad_output` alone.
    """
    return await _train(request, id, train.STEP)


@router.post("/v1/models/{id}/save", **documented.SAVE)
async def save(id: ModelId, request: Request) -> Response:
    """Make the present state durable before answering. Has no body."""
    work = partial(model_lifecycle.save, request.app.state.engine, id)
    return await respond(request, work, receive=receive_nothing, stoppable=False)


@router.get("/v1/models/{id}/state", **documented.GET_STATE)
async def download(id: ModelId, request: Request) -> Response:
    """Weights, optimiser, accumulated gradients, random state and sequence number, as a safetensors file."""
    work = partial(model_lifecycle.download, request.app.state.engine, id)
    return await respond(request, work, receive=receive_nothing, stoppable=False)


@router.put("/v1/models/{id}/state", **documented.PUT_STATE)
async def upload(id: ModelId, request: Request) -> Response:
    """Go on from a state that was downloaded from a model of the same network and kind of optimiser.

    It replaces weights, optimiser, random state and sequence number, and forgets answers and contexts. Durable when it
    is answered.

    With `weights` the file has weights alone, named as in a state or without their prefix, or is a state whose other
    tensors are left aside: the optimiser starts anew, accumulated gradients are dropped, random state and sequence
    number stay. The answer then lists what was `loaded`, `missing` and `unexpected`.
    """
    engine: Engine = request.app.state.engine
    receive = partial(receive_file, content_type=MEDIA_TYPE, limit=model_lifecycle.largest_state(engine))

    async def work(call: Call) -> Result:
        selection = model_lifecycle.selection(request.query_params.multi_items())
        if selection is None:
            return await model_lifecycle.upload(engine, id, call)
        return await model_lifecycle.upload_weights(engine, id, selection, call)

    return await respond(request, work, receive=receive, stoppable=False)


async def _train(request: Request, id: str, operation: train.Operation) -> Response:
    return await respond(request, partial(train.train, request.app.state.engine, operation, id))
