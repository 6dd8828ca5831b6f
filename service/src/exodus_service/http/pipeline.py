"""The way of every call: admitted and received (`admission`), run, and answered, or answered 202 and looked up later.

A call ends early when its client leaves, and at its deadline. Under `Prefer: wait=N` it goes on by itself after N
seconds, and its result is kept.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from fastapi import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from exodus_client.wire import Encoded
from exodus_service.call import Call, Result
from exodus_service.compute.scheduler import DeadlineError
from exodus_service.context import Context
from exodus_service.errors import ServiceError
from exodus_service.http.admission import receive_message
from exodus_service.http.body import empty_buffer
from exodus_service.http.middleware import CONTEXT
from exodus_service.http.problem_json import problem_response
from exodus_service.operations.pending import Pending, Requests

T = TypeVar("T")
Operation = Callable[[Call], Coroutine[Any, Any, Result]]

#: The preference of RFC 7240; there are others.
_WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?:[,;]|$)", re.IGNORECASE)

#: How long after its deadline a call is cut off from outside: what it waits for knows the deadline, and says more.
_GRACE_S = 0.005

#: Turns of the event loop in which brief work ends: it is admitted in the first, and computed in the second.
_BRIEF_TURNS = 2

#: The transport takes a piece without copying it, and waits for the reader between pieces.
PIECE = 1 << 20

#: Up to this size one write is cheaper than several.
JOINED = 1 << 16


async def respond(
    request: Request,
    operation: Operation,
    *,
    receive: Callable[[Request], Awaitable[Call]] = receive_message,
    deferrable: bool = True,
    stoppable: bool = True,
) -> Response:
    """Receive a call, run its operation, and respond.

    Args:
        operation: is cancelled if the client leaves, or the deadline passes.
        receive: admits the request and reads its body.
        deferrable: True if the call heeds `Prefer: wait=N`.
        stoppable: True if a call that was answered with 202 can be cancelled until it runs on the computing thread.

    Raises:
        ServiceError: as the operation does; client_disconnected, deadline.
    """
    request.app.state.engine.require_ready()
    call = await receive(request)
    try:
        seconds = wait_seconds(request.scope[CONTEXT].headers) if deferrable else None
        if seconds is None:
            result = await _while_connected(_within_deadline(call, operation(call)), request)
        else:
            await _unshared(call)
            task = asyncio.create_task(_within_deadline(call, operation(call)))
            if not await _has_ended(task, request, seconds):
                path, id = quote(request.scope["path"]), request.scope[CONTEXT].request_id
                return _running(request, request.app.state.requests.keep(Pending(call, task, stoppable, path, id)))
            result = task.result()
        if call.shared is not None:
            with call.timings.phase("encode"):
                result = Result(await call.shared.answer(result.encoded), result.status, result.headers)
    except BaseException:
        call.drop_body()
        call.slot.leave()
        raise
    call.drop_body()
    return TensorResponse(result, call.slot.leave)


async def look(request: Request, id: str) -> Response:
    """The response of a call that was answered with 202, or 202 again. Raises ServiceError: not_found."""
    requests: Requests = request.app.state.requests
    context: Context = request.scope[CONTEXT]
    pending = requests.find(context.owner, id)
    if not pending.task.done():
        waiting = asyncio.wait((pending.task,), timeout=wait_seconds(context.headers) or 0.0)
        await _while_connected(waiting, request)
        if not pending.task.done():
            return _running(request, id)
        pending = requests.find(context.owner, id)  # it may have been cancelled meanwhile
    context.timings = pending.call.timings
    try:
        return TensorResponse(pending.task.result(), requests.lend(pending))
    except ServiceError as failed:
        error = failed
    except (Exception, asyncio.CancelledError):  # noqa: BLE001  (it was logged when it was raised)
        error = ServiceError("internal_error", "a bug; the log of the service has it under this request_id")
    retry_after_s = request.app.state.engine.settings.retry_after_s
    return problem_response(error, pending.path, pending.request_id, retry_after_s=retry_after_s)


def wait_seconds(headers: Mapping[str, str]) -> float | None:
    """The seconds of `Prefer: wait=N`; None if there is no such preference."""
    given = headers.get("prefer")
    found = None if given is None else _WAIT.search(given)
    return None if found is None else float(found[1])


class TensorResponse(Response):
    """Sends the chunks of an encoded message as they are, and calls `release` when they have left.

    How long a client may take is up to the connection (`outgoing`).
    """

    def __init__(self, result: Result, release: Callable[[], object] = lambda: None) -> None:
        encoded = result.encoded
        headers = {"content-length": str(encoded.nbytes), "content-type": encoded.content_type, **result.headers}
        self.status_code = result.status
        self.background = None
        self.raw_headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._encoded = encoded
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            *earlier, last = pieces(self._encoded)
            large = bool(earlier) or len(last) > JOINED
            for piece in (*earlier, last) if large else ():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            # Before each message the server waits until the last one has all but left, also before the empty end.
            await send({"type": "http.response.body", "body": b"" if large else last, "more_body": False})
        finally:
            self._release()


def pieces(encoded: Encoded) -> Iterator[bytes | memoryview]:
    """The body in pieces of at most PIECE bytes, which are views if they are large."""
    if encoded.nbytes <= JOINED:
        yield b"".join(encoded.chunks)
        return
    for chunk in encoded.chunks:
        for start in range(0, len(chunk), PIECE):
            yield chunk[start : start + PIECE]


async def _within_deadline(call: Call, work: Awaitable[Result]) -> Result:
    """The result of the work, which is cancelled at the deadline. Raises DeadlineError."""
    if call.due is None:
        return await work
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as timeout:
            # Not at once: if the loop was busy, what the work waits for was told of the deadline in the same pass.
            seconds = max(0.0, call.due - time.monotonic()) + _GRACE_S
            timer = loop.call_later(seconds, lambda: timeout.reschedule(loop.time()))
            try:
                return await work
            finally:
                timer.cancel()
    except TimeoutError:
        if not timeout.expired():
            raise
    raise DeadlineError


async def _while_connected(work: Coroutine[Any, Any, T], request: Request) -> T:
    """The result of the work, which is cancelled if the client leaves. Raises ServiceError: client_disconnected."""
    task = asyncio.current_task()
    assert task is not None, "requests are served by tasks"
    watching: list[asyncio.Task[None]] = []

    def watch() -> None:
        watching.append(asyncio.create_task(_cancel_at_disconnect(request, task)))

    loop = asyncio.get_running_loop()
    # Brief work ends before the second turn of the loop is over.
    starting: list[asyncio.Handle] = [loop.call_soon(lambda: starting.append(loop.call_soon(watch)))]
    try:
        return await work
    except asyncio.CancelledError:
        if not any(watcher.done() and not watcher.cancelled() for watcher in watching):
            raise
        task.uncancel()
        raise ServiceError("client_disconnected", "the client left before the result was there") from None
    finally:
        for handle in starting:
            handle.cancel()
        for watcher in watching:
            watcher.cancel()


async def _cancel_at_disconnect(request: Request, task: "asyncio.Task[Any]") -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()


async def _has_ended(task: "asyncio.Task[Any]", request: Request, seconds: float) -> bool:
    """Wait for the end of a task for some seconds. If the client leaves or the server stops, it is cancelled."""
    try:
        for _ in range(_BRIEF_TURNS):
            await asyncio.sleep(0)
            if task.done():
                break
        else:
            await _while_connected(asyncio.wait((task,), timeout=seconds), request)
    except BaseException:
        task.add_done_callback(_seen)
        task.cancel()
        raise
    return task.done()


def _seen(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()


def _running(request: Request, id: str) -> Response:
    location = f"{request.scope.get('root_path', '')}/v1/requests/{id}"
    headers = {"Retry-After": str(request.app.state.engine.settings.retry_after_s), "Location": location}
    return JSONResponse({"id": id, "status": "running"}, 202, headers)


async def _unshared(call: Call) -> None:
    """Copy a body out of shared memory, which its client may write to as soon as the request was answered."""
    if call.shared is None:
        return
    body = empty_buffer(len(call.body))
    await call.aside(partial(np.copyto, np.frombuffer(body, np.uint8), np.frombuffer(call.body, np.uint8)))
    call.body = body
