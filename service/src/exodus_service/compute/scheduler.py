"""One thread that computes and a bounded queue in front of it. Knows nothing of HTTP.

A request is admitted before its body is read, so that a full queue costs no upload:

    with scheduler.admit(nbytes) as ticket:
        result = await asyncio.wrap_future(ticket.submit(work, deadline))

Leaving the block withdraws work that still waits. Work that is running cannot be stopped: it stays in the accounts
until it ends, as does what unpacks a request on another thread (`Ticket.attach`), which asks for the memory before it
takes it (`Ticket.reserve`). The work itself says
what its result occupies (`Ticket.resize`); where results that nobody takes have filled the queue, the work behind them
is refused in its turn.

Work that is submitted with a member may run together with its like (`waiting.Batching`). It keeps its own place, its
own deadline and its own result.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from exodus_service.compute.queue import Batching, DeadlineError, Entry, Member, Waiting

__all__ = ["Batching", "DeadlineError", "QueueFullError", "Scheduler", "Ticket"]

T = TypeVar("T")


class QueueFullError(Exception):
    """The bound on requests or on bytes is reached; nothing was admitted."""


class Scheduler:
    """Runs work in the order of submission on one thread of its own.

    Args:
        name: of the thread, for logs and debuggers.
        max_requests: requests admitted at a time.
        max_bytes: sum of their sizes, unpacked, and of those of results; a request that is alone may be of any size.
        initializer: called on the thread before its first work.
        batching: which work runs together; None: none does.
    """

    def __init__(
        self,
        name: str,
        *,
        max_requests: int,
        max_bytes: int,
        initializer: Callable[[], object] | None = None,
        batching: Batching | None = None,
    ) -> None:
        self._batching = batching
        self._waiting = Waiting(batching)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=initializer)
        self._lock = threading.Lock()
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    @property
    def waiting(self) -> int:
        """How many of the requests that are admitted wait for the thread."""
        return len(self._waiting)

    def admit(self, nbytes: int) -> "Ticket":
        """Reserve a place for a request of `nbytes`; raises QueueFullError."""
        with self._lock:
            if self.requests >= self._max_requests:
                raise QueueFullError(f"{self.requests} requests are admitted, the limit is {self._max_requests}")
            # Kept results have left their places: without requests, too, their bytes may be all that there are.
            if self.bytes > self._max_bytes or (self.requests and self.bytes + nbytes > self._max_bytes):
                raise self._over(nbytes)
            self.requests += 1
            self.bytes += nbytes
        return Ticket(self, nbytes)

    def reserve(self, nbytes: int) -> None:
        """Add to the bytes that are admitted, where they fit or are of the only request; called by the ticket.

        Raises:
            QueueFullError: they do not; nothing was added.
        """
        with self._lock:
            if nbytes > 0 and self.requests > 1 and self.bytes + nbytes > self._max_bytes:
                raise self._over(nbytes)
            self.bytes += nbytes

    def admit_answer(self, nbytes: int) -> "Ticket":
        """Count the bytes of an answer for which nothing is computed; it takes no place. Raises QueueFullError."""
        with self._lock:
            if self.bytes and self.bytes + nbytes > self._max_bytes:
                raise self._over(nbytes)
            self.bytes += nbytes
        return Ticket(self, nbytes, places=0)

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

    def _over(self, nbytes: int) -> QueueFullError:
        return QueueFullError(
            f"{self.bytes} bytes are admitted, {nbytes} more would exceed the limit of {self._max_bytes}"
        )

    def queue(self, entry: Entry) -> None:
        """Have the entry done in its turn; called by the ticket."""
        self._waiting.put(entry)
        self._executor.submit(self._turn)

    def withdraw(self, entry: Entry) -> None:
        """Let go of an entry whose future was cancelled; called by the ticket."""
        self._waiting.withdraw(entry)

    def execute(self, run: Callable[[], T]) -> "Future[T]":
        """Run on the thread, after what waits already, outside the accounts."""
        return self._executor.submit(run)

    def close(self) -> None:
        """Withdraw what waits. What is running goes on to its end."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._waiting.cancel()

    def _turn(self) -> None:
        """One turn for each entry that was queued; it finds nothing where entries left, or ran with others."""
        batch = [entry for entry in self._waiting.take() if entry.begin()]
        if len(batch) > 1 and self._batching is not None:
            try:
                self._batching.run([entry.member for entry in batch])
            except Exception as error:  # noqa: BLE001  (what is not passed on leaves its clients waiting)
                for entry in batch:
                    entry.fail(error)
                return
        for entry in batch:
            entry.finish(self.require_room)


class Ticket:
    """The place of one request, given back when its block is left and its work has ended."""

    def __init__(self, scheduler: Scheduler, nbytes: int, places: int = 1) -> None:
        self._scheduler = scheduler
        self._places = places
        self._nbytes = nbytes
        self._lock = threading.Lock()
        self._released = self._left = False
        self._working = 0
        self._entry: Entry | None = None

    def submit(self, work: Callable[[], T], deadline: float | None = None, member: Member | None = None) -> "Future[T]":
        """Queue the work; a ticket takes one. `deadline` is a time.monotonic() value.

        With a member the work may run together with other work, else it runs alone. The future ends with the result of
        `work`, with its exception, with DeadlineError or QueueFullError where it was not done, or cancelled.
        """
        entry = Entry(work, deadline, member)
        self._scheduler.queue(entry)
        self._entry = entry
        self.attach(entry.future)
        return entry.future

    def attach(self, future: "Future[Any]") -> None:
        """Keep the place until this work has ended, too, where the block is left before. Not after it was left."""
        with self._lock:
            self._working += 1
        future.add_done_callback(lambda _: self._ended())

    def resize(self, nbytes: int) -> None:
        """Count another size from now on, such as that of the result in place of that of the request. On any thread."""
        with self._lock:
            if self._released:
                return
            self._scheduler.account(0, nbytes - self._nbytes)
            self._nbytes = nbytes

    def reserve(self, nbytes: int) -> None:
        """Count another size from now on, before the memory of it is taken. On any thread.

        Raises:
            QueueFullError: there is no room for it; the size is what it was.
        """
        with self._lock:
            if self._released:
                return
            self._scheduler.reserve(nbytes - self._nbytes)
            self._nbytes = nbytes

    def stop(self) -> bool:
        """Withdraw the work, where some was submitted; false where it has begun."""
        return self._entry is None or self._entry.future.cancel()

    def step_aside(self) -> None:
        """Leave the place to another request; the bytes are counted on."""
        with self._lock:
            if not self._released:
                self._scheduler.account(-self._places, 0)
                self._places = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._entry is not None and self._entry.future.cancel():
            self._scheduler.withdraw(self._entry)
        with self._lock:
            self._left, over = True, not self._working
        if over:
            self._release()

    def _ended(self) -> None:
        with self._lock:
            self._working -= 1
            over = self._left and not self._working
        if over:
            self._release()

    def _release(self) -> None:
        with self._lock:
            self._released = True
            self._scheduler.account(-self._places, -self._nbytes)
