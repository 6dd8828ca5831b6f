"""ASGI middleware for every request: request id, Server-Timing, access log, API keys.

Plain ASGI, because Starlette's BaseHTTPMiddleware is slower and copies streamed bodies.
"""

import logging
import re
import secrets
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exodus_service.context import Context, current_request_id
from exodus_service.errors import ServiceError
from exodus_service.http.auth import Keys
from exodus_service.http.problem_json import problem_response

logger = logging.getLogger("exodus_service.http.auth")

#: Key of the request's Context in the ASGI scope.
CONTEXT = "exodus.context"

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_PROBES = ("/livez", "/readyz")
_OPEN = (*_PROBES, "/docs", "/openapi.json")


def header(scope: Scope, name: bytes) -> bytes | None:
    """First value of a request header; the name is in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def new_request_id() -> str:
    """Id for a request that came without one."""
    return secrets.token_hex(16)


def response_headers(context: Context) -> list[tuple[bytes, bytes]]:
    """Headers of every response."""
    return [
        (b"x-request-id", context.request_id.encode()),
        (b"server-timing", context.server_timing().encode()),
    ]


class Envelope:
    """Gives the request its id, adds the headers of every response, and logs a line at the end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        valid = given is not None and _REQUEST_ID.fullmatch(given)
        context = Context(given.decode() if given and valid else new_request_id(), scope["path"])
        scope[CONTEXT] = context
        current_request_id.set(context.request_id)
        # HEAD is answered as GET; the server leaves out the body.
        served = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        unread = header(scope, b"expect") is not None

        async def read() -> Message:
            nonlocal unread
            unread = False
            return await receive()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = [*message["headers"], *response_headers(context)]
                if unread or context.closing:
                    # The client may or may not send a body that it was never asked for, so that the start of the next
                    # request is unknown.
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            elif scope["method"] != "HEAD":
                context.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(served, read, answer)
        finally:
            level = logging.DEBUG if context.path in _PROBES else logging.INFO
            if logger.isEnabledFor(level):
                logger.log(level, "%s %s", scope["method"], quote(context.path), extra={"fields": _fields(context)})


class Authentication:
    """Refuses requests without an API key before their body is read. Probes and documentation are open."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", "")) not in _OPEN:
            try:
                scope[CONTEXT].owner = self._keys.check(header(scope, b"authorization"))
            except ServiceError as error:
                response = problem_response(error, quote(scope["path"]), scope[CONTEXT].request_id, retry_after_s=0)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _fields(context: Context) -> dict[str, Any]:
    served = {
        "status": context.status or 500,
        "bytes_in": context.bytes_in,
        "bytes_out": context.bytes_out,
        "total_ms": round(context.elapsed * 1e3, 3),
    }
    spent = context.timings
    computed = {
        "queue_ms": round(spent.queue * 1e3, 3),
        "decode_ms": round(spent.decode * 1e3, 3),
        "kernel_ms": round(spent.kernel * 1e3, 3),
        "encode_ms": round(spent.encode * 1e3, 3),
        "batch": spent.batch,
    }
    return served | computed if spent.queue else served
