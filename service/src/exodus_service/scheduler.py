"""One thread that computes and a bounded queue in front of it. Knows nothing of HTTP.

A request is admitted before its body is read, so that a full queue costs no upload:

    with scheduler.admit(nbytes) as ticket:
        result = await asyncio.wrap_future(ticket.submit(work, deadline))

Leaving the block withdraws work that still waits. Work that is running cannot be stopped: it stays in the accounts
until it ends. The work itself says what its result occupies (`Ticket.resize`); where results that nobody takes have
filled the queue, the work behind them is refused in its turn.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class QueueFullError(Exception):
    """The bound on requests or on bytes is reached; nothing was admitted."""


class DeadlineError(Exception):
    """The turn of the work came after its deadline; it was not done."""


class Scheduler:
    """Runs work in the order of submission on one thread of its own.

    Args:
        name: of the thread, for logs and debuggers.
        max_requests: requests admitted at a time.
        max_bytes: sum of their sizes; a request that is alone is admitted whatever its size.
        initializer: called on the thread before its first work.
    """

    def __init__(
        self, name: str, *, max_requests: int, max_bytes: int, initializer: Callable[[], object] | None = None
    ) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=initializer)
        self._lock = threading.Lock()
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    def admit(self, nbytes: int) -> "Ticket":
        """Reserve a place for a request of `nbytes`; raises QueueFullError."""
        with self._lock:
            if self.requests >= self._max_requests:
                raise QueueFullError(f"{self.requests} requests are admitted, the limit is {self._max_requests}")
            if self.requests and self.bytes + nbytes > self._max_bytes:
                raise QueueFullError(
                    f"{self.bytes} bytes are admitted, {nbytes} more would exceed the limit of {self._max_bytes}"
                )
            self.requests += 1
            self.bytes += nbytes
        return Ticket(self, nbytes)

    def account(self, requests: int, nbytes: int) -> None:
        """Add to what is admitted, or take away from it; called by the ticket."""
        with self._lock:
            self.requests += requests
            self.bytes += nbytes

    def require_room(self) -> None:
        """Raise QueueFullError where the results of other requests have outgrown the bound on bytes."""
        with self._lock:
            if self.requests > 1 and self.bytes > self._max_bytes:
                raise QueueFullError(
                    f"requests and results of {self.bytes} bytes wait to be taken, the limit is {self._max_bytes}"
                )

    def execute(self, run: Callable[[], T]) -> "Future[T]":
        """Run on the thread, after what waits already, outside the accounts."""
        return self._executor.submit(run)

    def close(self) -> None:
        """Withdraw what waits. What is running goes on to its end."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Ticket:
    """The place of one request, given back when its block is left and its work has ended."""

    def __init__(self, scheduler: Scheduler, nbytes: int) -> None:
        self._scheduler = scheduler
        self._nbytes = nbytes
        self._waiting: list[Callable[[], Any]] = []
        self._future: Future[Any] | None = None

    def submit(self, work: Callable[[], T], deadline: float | None = None) -> "Future[T]":
        """Queue the work; a ticket takes one. `deadline` is a time.monotonic() value.

        The future ends with the result of `work`, with its exception, with DeadlineError or QueueFullError where it was
        not done, or cancelled.
        """
        # The queue refers to the ticket, not to the work: work that is withdrawn frees the body it holds at once.
        self._waiting.append(work)

        def run() -> Any:
            turn = self._waiting.pop()
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineError
            self._scheduler.require_room()
            return turn()

        self._future = self._scheduler.execute(run)
        return self._future

    def resize(self, nbytes: int) -> None:
        """Count another size from now on: that of the result in place of that of the request."""
        self._scheduler.account(0, nbytes - self._nbytes)
        self._nbytes = nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._future is None:
            self._release()
            return
        if self._future.cancel():
            self._waiting.clear()
        self._future.add_done_callback(lambda _: self._release())

    def _release(self) -> None:
        self._scheduler.account(-1, -self._nbytes)
