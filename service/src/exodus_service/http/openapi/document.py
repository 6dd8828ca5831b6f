"""OpenAPI document: headers, bodies and responses of each route, which FastAPI cannot derive from routes that read
their request themselves."""

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel
from starlette.responses import Response

from exodus_client.wire import JSON_TYPE, SEGMENT_TYPE
from exodus_service.errors import Code
from exodus_service.http.openapi import examples
from exodus_service.http.openapi.schemas import (
    ForwardInfo,
    GradientInfo,
    JsonAnswer,
    JsonRequest,
    LayerForwardInfo,
    LoadInfo,
    ModelInfo,
    ModelList,
    ProblemDocument,
    RunningInfo,
    SaveInfo,
    TrainingInfo,
    message,
)
from exodus_service.http.problem_json import KINDS, MEDIA_TYPE
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

Document = dict[str, Any]
Responses = dict[int | str, Document]
Codes = tuple[Code, ...]

#: Paths of the document, and of the page to browse it.
DOCUMENT, DOCS = "/openapi.json", "/docs"

_BINARY_TYPE = "application/vnd.msgpack"
_BINARY: Document = {"schema": {"type": "string", "format": "binary"}}

#: Models whose schemas are added to those that FastAPI finds.
_SCHEMAS: list[type[BaseModel]] = [
    ProblemDocument, JsonRequest, JsonAnswer, ModelInfo, LoadInfo, ModelList, SaveInfo, RunningInfo,
]  # fmt: skip

# Codes of errors: of any call, of any request with a body, of a call on a model, of a training call.
_CALLER: Codes = ("unauthorized", "forbidden", "internal_error", "not_ready", "draining")
_BODY: Codes = (
    "malformed", "unauthorized", "forbidden", "body_timeout", "segment_gone", "length_required", "too_large",
    "unsupported", "invalid", "queue_full", "internal_error", "not_ready", "draining", "deadline", "out_of_memory",
)  # fmt: skip
_MODEL: Codes = (*_BODY, "not_found")
_TRAINING: Codes = (
    *_MODEL, "sequence_conflict", "sequence_gap", "context_stale", "context_expired", "answer_expired", "non_finite",
)  # fmt: skip


def _header(kind: str, description: str = "") -> Document:
    return ({"description": description} if description else {}) | {"schema": {"type": kind}}


def _parameter(name: str, description: str, **schema: Any) -> Document:
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _query(name: str, description: str, **schema: Any) -> Document:
    return {"name": name, "in": "query", "description": description, "schema": schema}


_RETRY_AFTER = {"Retry-After": _header("integer", "Seconds.")}
_HEADERS: Document = {
    "X-Request-ID": _header("string", "Id of the request, as sent or generated."),
    "Server-Timing": _header("string", "Milliseconds in receive, queue, decode, kernel, encode, and in total."),
}
_EXTRA_HEADERS: dict[int, Document] = {
    401: {"WWW-Authenticate": _header("string")},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}
_REPLAYED: Document = {
    "X-Exodus-Replayed": _header("string", "1: the call was done before, and this is its answer again.")
}
_PARAMETERS: list[Document] = [
    _parameter(
        "X-Request-ID", "Id for the request, echoed in the response and in log lines.", type="string", maxLength=128
    ),
    _parameter(
        "X-Deadline-Ms",
        "Milliseconds after which the answer is of no use; then 504.",
        type="integer",
        minimum=0,
        maximum=10**12 - 1,
    ),
    _parameter("Content-Encoding", "Compression of the body.", type="string", enum=["identity", "zstd"]),
]
_PREFER = _parameter("Prefer", "`wait=N`: after N seconds answer with 202 and the result's location.", type="string")


def _reference(model: type[BaseModel]) -> Document:
    return {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}


_LATER: Document = {
    "description": "Not done yet.",
    "headers": _HEADERS | {"Location": _header("string", "Location of the result.")} | _RETRY_AFTER,
    "content": {JSON_TYPE: _reference(RunningInfo)},
}


def _responses(*codes: Code, status: int = 200) -> Responses:
    """Responses of a route: success, and errors of the given codes."""
    responses: Responses = {status: {"headers": _HEADERS}}
    for code in codes:
        kind = KINDS[code]
        described = responses.get(kind.status, {}).get("description", "")
        responses[kind.status] = {
            "description": f"{described} {kind.title}.".strip(),
            "headers": _HEADERS | _EXTRA_HEADERS.get(kind.status, {}),
            "content": {MEDIA_TYPE: _reference(ProblemDocument)},
        }
    return responses


def _message_body(model: type[BaseModel], shown: Document, *parameters: Document) -> Document:
    """Headers and body of a request that is a message."""
    content = {
        _BINARY_TYPE: _BINARY,
        JSON_TYPE: _reference(model) | {"examples": shown},
        SEGMENT_TYPE: {"schema": {"type": "object", "description": "Reference to a body in shared memory."}},
    }
    return {"parameters": [*_PARAMETERS, *parameters], "requestBody": {"required": True, "content": content}}


def _route(responses: Responses, extra: Document | None = None, status: int = 200) -> dict[str, Any]:
    """Arguments of a route's decorator."""
    return {"responses": responses, "response_class": Response, "status_code": status, "openapi_extra": extra}


def _call(name: str, params: type[BaseModel], info: type[BaseModel], shown: Document, *codes: Code) -> dict[str, Any]:
    """A route that takes a message and answers with one."""
    request, answer = message(f"{name}Request", params), message(f"{name}Answer", info)
    _SCHEMAS.extend((request, answer))
    responses = _responses(*codes)
    responses[200]["content"] = {_BINARY_TYPE: _BINARY, JSON_TYPE: _reference(answer)}
    responses[202] = _LATER
    return _route(responses, _message_body(request, shown, _PREFER))


def _training(name: str, params: type[BaseModel], shown: Document) -> dict[str, Any]:
    route = _call(name, params, TrainingInfo, shown, *_TRAINING)
    route["responses"][200]["headers"] = _HEADERS | _REPLAYED
    return route


def _json(info: type[BaseModel] | None, *codes: Code, status: int = 200) -> dict[str, Any]:
    """A route that takes no message, and answers with JSON or nothing."""
    responses = _responses(*codes, status=status)
    if info is not None:
        responses[status]["content"] = {JSON_TYPE: _reference(info)}
    return _route(responses, status=status)


LIVE_RESPONSES = _responses()
READY_RESPONSES = _responses("not_ready", "draining")
CAPABILITIES_RESPONSES = _responses("unauthorized", "forbidden", "internal_error")
SHARED_MEMORY_RESPONSES = _responses("unauthorized", "forbidden", "not_found", "internal_error")

GRADIENTS = _route(_responses(*_BODY, "not_found"), _message_body(JsonRequest, examples.GRADIENTS))
GRADIENTS["responses"][200]["content"] = {_BINARY_TYPE: _BINARY, JSON_TYPE: _reference(JsonAnswer)}

CREATE = _call("Create", CreateParams, ModelInfo, examples.CREATE, *_BODY, "model_exists", "storage_full")
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
GET_STATE["responses"][200]["content"] = {STATE_TYPE: _BINARY}
PUT_STATE = _json(LoadInfo, *_MODEL, "state_mismatch", "storage_full")
PUT_STATE["responses"][202] = _LATER
PUT_STATE["openapi_extra"] = {
    "parameters": [
        _query("weights", "The file has weights: `all` of the network or of `names`, or those that there are.",
               type="string", enum=["all", "partial"]),
        _query("names", "Layers or weights that are taken; absent: all.", type="array", items={"type": "string"}),
    ],
    "requestBody": {"required": True, "content": {STATE_TYPE: _BINARY}},
}  # fmt: skip
LAYER_FORWARD = _call("LayerForward", LayerForwardParams, LayerForwardInfo, examples.LAYER_FORWARD, *_BODY)
LAYER_BACKWARD = _call(
    "LayerBackward", LayerBackwardParams, GradientInfo, examples.LAYER_BACKWARD, *_BODY, "context_expired"
)
GET_REQUEST = _json(None, *_CALLER, "not_found")
GET_REQUEST["responses"][200]["description"] = "The response of the call, with its own status, headers and body."
GET_REQUEST["responses"][202] = _LATER
GET_REQUEST["openapi_extra"] = {"parameters": [_PREFER]}
DELETE_REQUEST = _json(None, *_CALLER, "not_found", "running", status=204)


def install(app: FastAPI) -> None:
    """Add our schemas and the API key to the application's document, and serve it.

    The document is encoded once: all responses are views of the same bytes.
    """
    derive = app.openapi

    def complete() -> Document:
        if app.openapi_schema is None:
            document = derive()
            components = document.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for model in _SCHEMAS:
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= schema.pop("$defs", {})
                schemas[model.__name__] = schema
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, item in document["paths"].items():
                if path.startswith("/v1/"):
                    for operation in item.values():
                        operation["security"] = [{"key": []}, {}]
                        _drop_validation_error(operation["responses"])
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = complete  # type: ignore[method-assign]
    encoded: list[bytes] = []

    async def document(request: Request) -> Response:
        if not encoded:
            encoded.append(json.dumps(complete(), separators=(",", ":")).encode())
        return Response(encoded[0], media_type=JSON_TYPE)

    async def docs(request: Request) -> Response:
        return get_swagger_ui_html(openapi_url=f"{request.scope.get('root_path', '')}{DOCUMENT}", title=app.title)

    app.add_route(DOCUMENT, document, include_in_schema=False)
    app.add_route(DOCS, docs, include_in_schema=False)


def _drop_validation_error(responses: Document) -> None:
    """Remove the 422 that FastAPI adds to every path with a parameter; ours is application/problem+json."""
    if JSON_TYPE in responses.get("422", {}).get("content", {}):
        del responses["422"]
