"""Calls that were answered with 202, found by their id until their result expires.

A call that has ended gives up its place in the queue; the bytes of its result remain counted.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from exodus_service.call import Call, Result
from exodus_service.errors import ServiceError

logger = logging.getLogger(__name__)

#: Bytes that a kept result counts at least, for the objects around it.
_LEAST_BYTES = 4096


@dataclass(eq=False)
class Pending:
    """One call.

    Attributes:
        call: as it was received.
        task: its work, which ends with a Result or a ServiceError. Once it has ended, a future with the same outcome.
        stoppable: True if it can be cancelled before it has begun.
        readers: responses that send the result.
        forgotten: True once it is not to be found any more.
        path, request_id: of the request.
    """

    call: Call
    task: asyncio.Future[Result]
    stoppable: bool
    path: str
    request_id: str
    readers: int = field(default=0, init=False)
    forgotten: bool = field(default=False, init=False)

    @property
    def owner(self) -> str:
        return self.call.owner


class Requests:
    """All pending calls; for one event loop.

    Args:
        ttl: seconds that a result is kept.
    """

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._pending: dict[str, Pending] = {}

    def keep(self, pending: Pending) -> str:
        """Take over a call; returns its id."""
        id = secrets.token_urlsafe(24)
        self._pending[id] = pending
        pending.task.add_done_callback(lambda _: self._ended(id, pending))
        return id

    def find(self, owner: str, id: str) -> Pending:
        """The owner's call of this id. Raises ServiceError: not_found."""
        pending = self._pending.get(id)
        if pending is None or pending.owner != owner:
            raise ServiceError("not_found", "there is no such request, or its result is not kept any more")
        return pending

    def lend(self, pending: Pending) -> Callable[[], None]:
        """Keep the bytes of a result counted until it has been sent; call what is returned then."""
        pending.readers += 1
        return lambda: self._returned(pending)

    def cancel(self, owner: str, id: str) -> None:
        """Cancel a call that has not begun, or forget the result of one that has ended.

        Raises:
            ServiceError: not_found; running: it cannot be stopped.
        """
        pending = self.find(owner, id)
        if not pending.task.done():
            if not pending.stoppable or not pending.call.slot.stop():
                raise ServiceError("running", "the call has begun and goes on to its end; its result will be kept")
            pending.task.cancel()
        self._forget(id)

    def close(self) -> None:
        """Cancel what has not begun, and forget all results."""
        for id, pending in list(self._pending.items()):
            pending.task.cancel()
            self._forget(id)

    def _ended(self, id: str, pending: Pending) -> None:
        error = None if pending.task.cancelled() else pending.task.exception()
        if error is not None and not isinstance(error, ServiceError):
            logger.error("%s failed", pending.path, exc_info=error, extra={"fields": {"request": pending.request_id}})
        if self._pending.get(id) is not pending:
            return
        nbytes = 0 if error is not None or pending.task.cancelled() else pending.task.result().encoded.nbytes
        pending.call.slot.resize(max(nbytes, _LEAST_BYTES))
        pending.call.slot.give_up_place()
        pending.call.drop_body()
        pending.task = _bare(pending.task)
        asyncio.get_running_loop().call_later(self._ttl, self._forget, id)

    def _forget(self, id: str) -> None:
        pending = self._pending.pop(id, None)
        if pending is not None:
            pending.forgotten = True
            if not pending.readers:
                pending.call.slot.leave()

    def _returned(self, pending: Pending) -> None:
        pending.readers -= 1
        if pending.forgotten and not pending.readers:
            pending.call.slot.leave()


def _bare(ended: asyncio.Future[Result]) -> asyncio.Future[Result]:
    """A future of the same outcome, without the tracebacks, whose frames hold the request."""
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    if ended.cancelled():
        future.cancel()
        return future
    error = ended.exception()
    if error is None:
        future.set_result(ended.result())
        return future
    error.__traceback__ = error.__cause__ = error.__context__ = None
    future.set_exception(error)
    future.exception()  # it was logged, or is the answer to the next request for it
    return future
