"""The OpenAPI document: what FastAPI cannot derive from code that reads bodies by itself."""

import json
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from exodus_client.wire import DTYPES, JSON_TYPE, SEGMENT_TYPE
from exodus_service.errors import Code
from exodus_service.gradients.params import Params
from exodus_service.http.openapi.examples import EXAMPLES
from exodus_service.http.problem_json import KINDS, MEDIA_TYPE, Category

Document = dict[str, Any]

BINARY_TYPE = "application/vnd.msgpack"

#: Paths of the document, and of the page to browse it.
DOCUMENT, DOCS = "/openapi.json", "/docs"


class FaultDocument(BaseModel):
    """One place in the request that is wrong."""

    pointer: str = Field(description="JSON pointer into the body; /headers/NAME for a header.")
    expected: str
    got: str


class ProblemDocument(BaseModel):
    """An error, as of RFC 9457."""

    type: str = Field(description="URN of the kind of problem.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="Path of the request.")
    code: str = Field(description="Stable name of the kind of problem.", json_schema_extra={"enum": list(KINDS)})
    category: Category = Field(description="Who can do something about it.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    request_id: str
    errors: list[FaultDocument]


class JsonTensor(BaseModel):
    """A tensor in the JSON form."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")
    dtype: str = Field(json_schema_extra={"enum": list(DTYPES)})
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=8)
    encoding: str = Field(default="raw", json_schema_extra={"enum": ["raw", "events"]})
    data: Any = Field(description='Nested lists. NaN and infinities are the strings "NaN", "Infinity", "-Infinity".')


class JsonRequest(BaseModel):
    """A gradient request in the JSON form; the msgpack forms have the same members."""

    model_config = ConfigDict(extra="forbid")

    v: int = Field(json_schema_extra={"const": 1})
    params: Params
    tensors: list[JsonTensor] = Field(max_length=64)


class GradientInfo(BaseModel):
    """What the service says beside the tensors."""

    method: str
    device: str
    grad_norms: dict[str, float] = Field(description="L2 norm of each gradient, by the name of its tensor.")


class JsonAnswer(BaseModel):
    """The answer to a gradient request in the JSON form."""

    v: int = Field(json_schema_extra={"const": 1})
    params: GradientInfo
    tensors: list[JsonTensor]


#: What the document has schemas of, beside what FastAPI finds.
SCHEMAS: list[type[BaseModel]] = [ProblemDocument, JsonRequest, JsonAnswer]

HEADERS: Document = {
    "X-Request-ID": {"description": "The name of the request, as sent or made up.", "schema": {"type": "string"}},
    "Server-Timing": {
        "description": "Milliseconds in queue, decode, kernel, encode, and in total.",
        "schema": {"type": "string"},
    },
}
_EXTRA_HEADERS: dict[int, Document] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
    503: {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
}


def reference(model: type[BaseModel]) -> Document:
    """Where the document has the schema of a model."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def responses_of(*codes: Code, status: int = 200) -> dict[int | str, Document]:
    """The responses of a route: success, and what can go wrong."""
    responses: dict[int | str, Document] = {status: {"headers": HEADERS}}
    for code in codes:
        kind = KINDS[code]
        described = responses.get(kind.status, {}).get("description", "")
        responses[kind.status] = {
            "description": f"{described} {kind.title}.".strip(),
            "headers": HEADERS | _EXTRA_HEADERS.get(kind.status, {}),
            "content": {MEDIA_TYPE: {"schema": reference(ProblemDocument)}},
        }
    return responses


BINARY: Document = {"schema": {"type": "string", "format": "binary"}}

_PARAMETERS: list[Document] = [
    {
        "name": "X-Request-ID",
        "in": "header",
        "description": "Name for the request, echoed in the response and written to the log.",
        "schema": {"type": "string", "maxLength": 128},
    },
    {
        "name": "X-Deadline-Ms",
        "in": "header",
        "description": "Milliseconds after which the answer is of no use; then 504.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 10**12 - 1},
    },
    {
        "name": "Content-Encoding",
        "in": "header",
        "description": "Compression of the body.",
        "schema": {"type": "string", "enum": ["identity", "zstd"]},
    },
]


def request_of(model: type[BaseModel], examples: Document, *parameters: Document) -> Document:
    """The body of a request that is a message, and its headers."""
    content = {
        BINARY_TYPE: BINARY,
        JSON_TYPE: {"schema": reference(model), "examples": examples},
        SEGMENT_TYPE: {"schema": {"type": "object", "description": "Where the body is in shared memory."}},
    }
    return {"parameters": [*_PARAMETERS, *parameters], "requestBody": {"required": True, "content": content}}


def answer_of(model: type[BaseModel]) -> Document:
    """The content of a response that is a message."""
    return {BINARY_TYPE: BINARY, JSON_TYPE: {"schema": reference(model)}}


#: What any request with a body may meet.
BODY_CODES: tuple[Code, ...] = (
    "malformed", "unauthorized", "forbidden", "body_timeout", "segment_gone", "length_required", "too_large",
    "unsupported", "invalid", "queue_full", "internal_error", "not_ready", "draining", "deadline", "out_of_memory",
)  # fmt: skip

LIVE_RESPONSES = responses_of()
READY_RESPONSES = responses_of("not_ready", "draining")
CAPABILITIES_RESPONSES = responses_of("unauthorized", "forbidden", "internal_error")
SHARED_MEMORY_RESPONSES = responses_of("unauthorized", "forbidden", "not_found", "internal_error")
GRADIENT_RESPONSES = responses_of(*BODY_CODES, "not_found")
GRADIENT_RESPONSES[200]["content"] = answer_of(JsonAnswer)
GRADIENT_REQUEST = request_of(JsonRequest, EXAMPLES)


def _drop_unknown(responses: Document) -> None:
    """Take out the refusal that FastAPI writes down for every path with a parameter: ours have a form of their own."""
    if JSON_TYPE in responses.get("422", {}).get("content", {}):
        del responses["422"]


def install(app: FastAPI) -> None:
    """Have the application's document contain the schemas that the routes refer to, and the API key; and serve it.

    The document is written once: however many are being sent, they are views of the same bytes.
    """
    derive = app.openapi

    def complete() -> Document:
        if app.openapi_schema is None:
            document = derive()
            components = document.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for model in SCHEMAS:
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= schema.pop("$defs", {})
                schemas[model.__name__] = schema
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, item in document["paths"].items():
                if path.startswith("/v1/"):
                    for operation in item.values():
                        operation["security"] = [{"key": []}, {}]
                        _drop_unknown(operation["responses"])
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = complete  # type: ignore[method-assign]
    written: list[bytes] = []

    async def document(request: Request) -> Response:
        if not written:
            written.append(json.dumps(complete(), separators=(",", ":")).encode())
        return Response(written[0], media_type=JSON_TYPE)

    async def docs(request: Request) -> Response:
        return get_swagger_ui_html(openapi_url=f"{request.scope.get('root_path', '')}{DOCUMENT}", title=app.title)

    app.add_route(DOCUMENT, document, include_in_schema=False)
    app.add_route(DOCS, docs, include_in_schema=False)
