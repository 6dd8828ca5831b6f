"""Puts the application together: routes, middleware, error handlers, and start-up to shut-down."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from exodus_service import __version__
from exodus_service.engine import Engine
from exodus_service.errors import Code, ServiceError
from exodus_service.gradients.selftest import SelfTestError
from exodus_service.http.auth import Keys
from exodus_service.http.middleware import CONTEXT, Authentication, Calls, Envelope, Route, problem, response_headers
from exodus_service.http.openapi import document
from exodus_service.http.routes import gradients, layers, models, requests, service
from exodus_service.models.storage.state_dir import StateDirError
from exodus_service.operations.pending import Requests
from exodus_service.settings import Settings
from exodus_service.shared_memory import Segments

#: Seconds that saving may take at the end, at least.
_SAVE_S = 10

_ROUTERS = (gradients.router, models.router, layers.router, requests.router, service.router)
_CODES: Mapping[int, Code] = {404: "not_found", 405: "method_not_allowed"}


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service as an ASGI application; `app.state.engine` is its Engine.

    If it cannot start, `app.state.start_error` says why.

    Args:
        settings: None takes them from the environment.

    Raises:
        ValueError: the device does not exist, or the key file cannot be read or holds no key.
    """
    settings = Settings() if settings is None else settings
    engine = Engine(settings)
    segments = (
        Segments(max_segments=settings.max_queue, max_bytes=settings.max_queue_bytes)
        if settings.shared_memory
        else None
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await engine.store.start()
            await engine.start()
        except (StateDirError, SelfTestError) as error:
            app.state.start_error = str(error)
            raise
        if segments is not None:
            segments.open()
        yield
        if segments is not None:
            segments.close()
        app.state.requests.close()
        await engine.store.close(max(_SAVE_S, settings.shutdown_timeout_s))
        engine.close()

    app = FastAPI(
        title="Exodus",
        summary="Exact gradients of spiking neural networks, and their training.",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,  # and with it /docs: both are added by document.install
        redoc_url=None,
    )
    app.state.engine = engine
    app.state.segments = segments
    app.state.requests = Requests(settings.result_ttl_s)
    app.state.start_error = None
    app.state.capabilities = engine.capabilities()
    for router in _ROUTERS:
        app.router.routes.extend(router.routes)
    # The last one added is the outermost.
    app.add_middleware(Calls, routes=[route for route in app.routes if isinstance(route, Route)])
    app.add_middleware(Authentication, keys=Keys.of(settings))
    app.add_middleware(Envelope)
    app.add_exception_handler(ServiceError, _problem)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _internal_error)
    document.install(app)
    return app


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return problem(request, error)


async def _http_exception(request: Request, error: Exception) -> Response:
    """Responds to errors of the router: an unknown path, or an HTTP method that the path does not take."""
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {quote(request.scope['path'])}: {error.detail.lower()}"
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _allowed(request) or headers["Allow"]
    return problem(request, ServiceError(_CODES[error.status_code], detail), headers)


def _allowed(request: Request) -> str:
    """The HTTP methods that a path takes; the router knows those of one of its routes."""
    routes = [route for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    matching = [route.methods or set() for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = set().union(*matching)
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


async def _internal_error(request: Request, error: Exception) -> Response:
    """Responds to a bug. The server logs the traceback and closes the connection; the caller gets an id to find it."""
    detail = "a bug; the log of the service has it under this request_id"
    response = problem(request, ServiceError("internal_error", detail), {"Connection": "close"})
    response.raw_headers += response_headers(request.scope[CONTEXT])
    return response
