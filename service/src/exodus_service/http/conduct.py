"""Has a call done and answers its request: with what comes of it, or with 202 where the client prefers not to wait."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from contextlib import ExitStack
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import Request
from starlette.responses import JSONResponse, Response

from exodus_service.compute.scheduler import QueueFullError
from exodus_service.context import Context
from exodus_service.engine import Engine
from exodus_service.errors import ServiceError
from exodus_service.http.admission import unshared
from exodus_service.http.middleware import CONTEXT
from exodus_service.http.problem_json import problem_response
from exodus_service.http.responses import TensorResponse
from exodus_service.operations.call import Received, Reply
from exodus_service.operations.pending import Pending, Requests

T = TypeVar("T")

#: Of the preference in RFC 7240; others are not for us.
_WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?:[,;]|$)", re.IGNORECASE)


async def conduct(
    request: Request,
    held: ExitStack,
    received: Received,
    work: Callable[[Received], Coroutine[Any, Any, Reply]],
    *,
    stoppable: bool = True,
) -> Response:
    """Have the work done, and answer.

    Args:
        held: what the request holds; goes to whatever ends last, the response or the kept result.
        work: what is to be done; it is left where the client leaves, or the deadline passes.
        stoppable: whether it can be stopped as long as nothing of it runs on the thread that computes.

    Raises:
        ServiceError: what the work raises, client_disconnected.
    """
    engine: Engine = request.app.state.engine
    patience = wait_seconds(request.headers)
    if patience is not None:
        await unshared(received)
    task = asyncio.create_task(_done(work, received, engine))
    if not await settled(task, request.receive, patience):
        return _later(request, Pending(received, task, stoppable, held.pop_all().close, *_name(request)))
    reply = task.result()
    if received.shared is not None:
        reply = Reply(await received.shared.answer(reply.encoded), reply.status, reply.headers)
    return _sent(reply, held.pop_all().close)


async def look(request: Request, id: str) -> Response:
    """The answer of a call that was answered with 202, or 202 again. Raises ServiceError: not_found."""
    requests: Requests = request.app.state.requests
    context: Context = request.scope[CONTEXT]
    retry_after_s = request.app.state.engine.settings.retry_after_s
    pending = requests.find(context.owner, id)
    if not pending.task.done():
        ended = asyncio.create_task(_end_of(pending.task))
        if not await settled(ended, request.receive, wait_seconds(request.headers) or 0.0):
            ended.cancel()
            return _running(request, id)
        pending = requests.find(context.owner, id)  # it may have been cancelled meanwhile
    context.timings = pending.received.timings
    try:
        return _sent(pending.task.result(), requests.lend(pending))
    except ServiceError as problem:
        return problem_response(problem, pending.path, pending.request_id, retry_after_s=retry_after_s)
    except (Exception, asyncio.CancelledError):  # noqa: BLE001  (it was logged when it came)
        detail = "a bug; the log of the service has it under this request_id"
        error = ServiceError("internal_error", detail)
        return problem_response(error, pending.path, pending.request_id, retry_after_s=retry_after_s)


async def settled(task: "asyncio.Task[Any]", receive: Callable[[], Awaitable[Any]], seconds: float | None) -> bool:
    """Wait for the end of a task, for some seconds or as long as it takes; whether it has ended.

    Where the client leaves, or the server stops, the task is cancelled.

    Raises:
        ServiceError: client_disconnected.
    """
    left = asyncio.ensure_future(disconnected(receive))
    try:
        done, _ = await asyncio.wait((task, left), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        task.add_done_callback(_seen)
        task.cancel()
        raise
    finally:
        left.cancel()
    if task in done:
        return True
    if left not in done:
        return False
    task.add_done_callback(_seen)
    task.cancel()
    await asyncio.wait((task,))
    raise ServiceError("client_disconnected", "the client left before the result was there")


async def disconnected(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def wait_seconds(headers: Mapping[str, str]) -> float | None:
    """The seconds of `Prefer: wait=N`; None where there is no such preference."""
    found = _WAIT.search(headers.get("prefer", ""))
    return None if found is None else float(found[1])


def _later(request: Request, pending: Pending) -> Response:
    requests: Requests = request.app.state.requests
    return _running(request, requests.keep(pending))


def _running(request: Request, id: str) -> Response:
    location = f"{request.scope.get('root_path', '')}/v1/requests/{id}"
    headers = {"Retry-After": str(request.app.state.engine.settings.retry_after_s), "Location": location}
    return JSONResponse({"id": id, "status": "running"}, 202, headers)


def _sent(reply: Reply, release: Callable[[], object]) -> Response:
    response = TensorResponse(reply.encoded, release)
    response.status_code = reply.status
    response.headers.update(reply.headers)
    return response


def _name(request: Request) -> tuple[str, str]:
    return quote(request.scope["path"]), request.scope[CONTEXT].request_id


async def _done(work: Callable[[Received], Coroutine[Any, Any, Reply]], received: Received, engine: Engine) -> Reply:
    """Do the work. Its refusal for want of room is a problem like others, also where it is looked up later."""
    try:
        return await work(received)
    except QueueFullError as error:
        raise ServiceError("queue_full", str(error)) from error


async def _end_of(task: "asyncio.Future[Any]") -> None:
    await asyncio.wait((task,))


def _seen(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()
