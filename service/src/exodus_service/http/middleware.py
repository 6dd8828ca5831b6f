"""ASGI middleware for every request: request id, Server-Timing, access log, API keys, and the short way to a call.

Plain ASGI, because Starlette's BaseHTTPMiddleware is slower and copies streamed bodies.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exodus_service.context import Context, current_request_id
from exodus_service.errors import ServiceError
from exodus_service.http.auth import Keys
from exodus_service.http.problem_json import problem_response

logger = logging.getLogger("exodus_service.http.auth")

#: Key of the request's Context in the ASGI scope.
CONTEXT = "exodus.context"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_PROBES = ("/livez", "/readyz")
_OPEN = (*_PROBES, "/docs", "/openapi.json")


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
        # The first of those that were sent several times is the one that counts.
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        given = headers.get("x-request-id", "")
        context = Context(given if _REQUEST_ID.fullmatch(given) else new_request_id(), scope["path"], headers)
        scope[CONTEXT] = context
        current_request_id.set(context.request_id)
        # HEAD is answered as GET; the server leaves out the body.
        served = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        unread = "expect" in headers

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
                scope[CONTEXT].owner = self._keys.check(scope[CONTEXT].headers.get("authorization", ""))
            except ServiceError as error:
                response = problem_response(error, quote(scope["path"]), scope[CONTEXT].request_id, retry_after_s=0)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Route(APIRoute):
    """A route whose endpoint takes a request, and the parameters of its path as text, and returns a response.

    FastAPI has it in its document. It is served by `Calls`.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = _served(endpoint)


class Calls:
    """Middleware that serves calls ahead of the framework, which takes as long as a small call by itself."""

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            for route in self._routes:
                found = route.path_regex.match(path)
                if found is not None and scope["method"] in (route.methods or ()):
                    scope["path_params"] = found.groupdict()
                    await route.app(scope, receive, send)
                    return
        await self._app(scope, receive, send)


def _served(endpoint: Callable[..., Awaitable[Response]]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request=request, **scope["path_params"])
        except ServiceError as error:
            response = problem(request, error)
        except asyncio.CancelledError:  # by the server, when EXODUS_SHUTDOWN_TIMEOUT_S is over
            scope[CONTEXT].closing = True
            response = problem(request, ServiceError("draining", "the service stopped before the result was there"))
        await response(scope, receive, send)

    return app


def problem(request: Request, error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
    """The response of a request that failed."""
    return problem_response(
        error,
        quote(request.scope["path"]),
        request.scope[CONTEXT].request_id,
        retry_after_s=request.app.state.engine.settings.retry_after_s,
        headers=headers,
    )


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
