"""The part of the OpenAPI document about models, layers and requests: arguments of the routes' decorators."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.responses import Response

from exodus_client.wire import JSON_TYPE
from exodus_service.errors import Code
from exodus_service.http.openapi import document
from exodus_service.http.openapi import model_examples as examples
from exodus_service.http.openapi.document import BINARY, BODY_CODES, Document, JsonTensor
from exodus_service.models.storage.state_file import MEDIA_TYPE as STATE_TYPE
from exodus_service.operations.params import (
    CreateParams,
    ForwardBackwardParams,
    ForwardParams,
    LayerBackwardParams,
    LayerForwardParams,
    OptimStepParams,
    StepParams,
)


class ParameterInfo(BaseModel):
    """One parameter of a model."""

    name: str
    shape: list[int]


class ModelInfo(BaseModel):
    """What a model is, and how far it was trained."""

    id: str
    name: str
    sequence: int = Field(description="Number of the last training call that was done; 0: none.")
    durable: int | None = Field(description="Newest state on disk; null where models live in memory only.")
    durable_every: int
    network: dict[str, Any]
    optimizer: dict[str, Any]
    seed: int
    parameters: list[ParameterInfo] = Field(description="In the order in which flat weights and gradients have them.")
    dtype: str
    nbytes: int = Field(description="Bytes of the parameters.")
    in_memory: bool = Field(description="False: it comes back from disk with the next call.")
    created: str = Field(description="Time, ISO 8601.")
    writer: str | None = Field(description="Who made the last training call, as they call themselves.")
    durable_error: str | None = Field(
        description="Why the last save failed, or which saved state was damaged; null after a save."
    )


class ModelList(BaseModel):
    """The models of the caller."""

    models: list[ModelInfo]


class TrainingInfo(BaseModel):
    """What a training call has done; with `gradients`, a flat tensor of that name goes with it."""

    sequence: int
    durable: int | None = Field(description="Newest state on disk; calls up to it need not be sent again.")
    durable_error: str | None
    metrics: dict[str, float] = Field(description="Names end in :mean or :sum, how those of several calls combine.")
    grad_norms: dict[str, float] = Field(description="L2 norm of each gradient before clipping, and `total`.")
    device: str


class ForwardInfo(BaseModel):
    """What is said beside the outputs."""

    sequence: int
    durable: int | None
    metrics: dict[str, float] | None = None
    context: str | None = None
    expires_in_s: float | None = Field(default=None, description="How long an unused context is kept.")


class LayerForwardInfo(BaseModel):
    """What is said beside the traces."""

    context: str
    expires_in_s: float = Field(description="How long an unused context is kept.")
    nbytes: int = Field(description="Bytes of the context.")
    device: str


class SaveInfo(BaseModel):
    """What is saved."""

    sequence: int
    durable: int | None


class RunningInfo(BaseModel):
    """A call that is not done yet."""

    id: str
    status: str


def _message(name: str, params: type[BaseModel]) -> type[BaseModel]:
    """A message in the JSON form."""
    made = create_model(
        name,
        __config__=ConfigDict(extra="forbid"),
        __doc__=f"{params.__doc__} In the JSON form.",
        v=(int, Field(json_schema_extra={"const": 1})),
        params=(params, ...),
        tensors=(list[JsonTensor], Field(max_length=64)),
    )
    document.SCHEMAS.append(made)
    return made


_CALLER: tuple[Code, ...] = ("unauthorized", "forbidden", "internal_error", "not_ready", "draining")
_MODEL: tuple[Code, ...] = (*BODY_CODES, "not_found")
_TRAINING: tuple[Code, ...] = (
    *_MODEL, "sequence_conflict", "sequence_gap", "context_stale", "context_expired", "answer_expired", "non_finite",
)  # fmt: skip

_PREFER: Document = {
    "name": "Prefer",
    "in": "header",
    "description": "`wait=N`: after N seconds answer with 202 and where the result will be found.",
    "schema": {"type": "string"},
}
_LATER: Document = {
    "description": "Not done yet.",
    "headers": document.HEADERS
    | {
        "Location": {"description": "Where the result will be found.", "schema": {"type": "string"}},
        "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}},
    },
    "content": {JSON_TYPE: {"schema": document.reference(RunningInfo)}},
}
_REPLAYED: Document = {
    "X-Exodus-Replayed": {
        "description": "1: the call was done before, and this is its answer again.",
        "schema": {"type": "string"},
    }
}
document.SCHEMAS += [ModelInfo, ModelList, SaveInfo, RunningInfo]


def _route(responses: dict[int | str, Document], extra: Document | None = None, status: int = 200) -> dict[str, Any]:
    return {"responses": responses, "response_class": Response, "status_code": status, "openapi_extra": extra}


def _call(name: str, params: type[BaseModel], info: type[BaseModel], shown: Document, *codes: Code) -> dict[str, Any]:
    """A route that takes a message and answers with one."""
    request, answer = _message(f"{name}Request", params), _message(f"{name}Answer", info)
    responses = document.responses_of(*codes)
    responses[200]["content"] = document.answer_of(answer)
    responses[202] = _LATER
    return _route(responses, document.request_of(request, shown, _PREFER))


def _json(info: type[BaseModel] | None, *codes: Code, status: int = 200) -> dict[str, Any]:
    """A route that takes no message and answers in JSON, or with nothing."""
    responses = document.responses_of(*codes, status=status)
    if info is not None:
        responses[status]["content"] = {JSON_TYPE: {"schema": document.reference(info)}}
    return _route(responses, status=status)


def _training(name: str, params: type[BaseModel], shown: Document) -> dict[str, Any]:
    route = _call(name, params, TrainingInfo, shown, *_TRAINING)
    route["responses"][200]["headers"] = document.HEADERS | _REPLAYED
    return route


CREATE = _call("Create", CreateParams, ModelInfo, examples.CREATE, *BODY_CODES, "model_exists", "storage_full")
CREATE["responses"][201] = CREATE["responses"][200] | {"description": "The model was made."}
CREATE["responses"][200] = CREATE["responses"][200] | {"description": "The model was there, made from the same."}
LIST = _json(ModelList, *_CALLER, "queue_full")
INFO = _json(ModelInfo, *_CALLER, "not_found")
DELETE = _json(None, *_CALLER, "not_found", "storage_full", status=204)
FORWARD = _call("Forward", ForwardParams, ForwardInfo, examples.FORWARD, *_MODEL, "sequence_gap")
FORWARD_BACKWARD = _training("ForwardBackward", ForwardBackwardParams, examples.FORWARD_BACKWARD)
OPTIM_STEP = _training("OptimStep", OptimStepParams, examples.OPTIM_STEP)
STEP = _training("Step", StepParams, examples.STEP)
SAVE = _json(SaveInfo, *_CALLER, "not_found", "queue_full", "deadline", "storage_full")
SAVE["responses"][202] = _LATER
SAVE["openapi_extra"] = {"parameters": [_PREFER]}
GET_STATE = _json(None, *_CALLER, "not_found", "queue_full", "deadline", "out_of_memory")
GET_STATE["responses"][200]["content"] = {STATE_TYPE: BINARY}
PUT_STATE = _json(ModelInfo, *_MODEL, "state_mismatch", "storage_full")
PUT_STATE["responses"][202] = _LATER
PUT_STATE["openapi_extra"] = {"requestBody": {"required": True, "content": {STATE_TYPE: BINARY}}}
LAYER_FORWARD = _call("LayerForward", LayerForwardParams, LayerForwardInfo, examples.LAYER_FORWARD, *BODY_CODES)
LAYER_BACKWARD = _call(
    "LayerBackward", LayerBackwardParams, document.GradientInfo, examples.LAYER_BACKWARD, *BODY_CODES, "context_expired"
)
GET_REQUEST = _json(None, *_CALLER, "not_found")
GET_REQUEST["responses"][200]["description"] = "The response of the call; its own status, headers and body."
GET_REQUEST["responses"][202] = _LATER
GET_REQUEST["openapi_extra"] = {"parameters": [_PREFER]}
DELETE_REQUEST = _json(None, *_CALLER, "not_found", "running", status=204)
