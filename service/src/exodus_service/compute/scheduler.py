"""One computing thread behind a bounded queue with admission control.

A request is admitted before its body is read, so that a full queue costs no upload:

    with scheduler.admit(nbytes) as slot:
        result = await asyncio.wrap_future(slot.submit(work, deadline))

Leaving the block withdraws work that still waits. Work that runs cannot be stopped: its slot stays occupied until it
ends, and so does one whose request is decoded on another thread (`Slot.attach`). Memory is reserved before it is taken
(`Slot.reserve`). The work itself says what its result occupies (`Slot.resize`); if results that nobody reads have
filled the queue, the work behind them is refused when it reaches the head.

Work is done first come, first served, except that compatible work may run with the head of the queue (`Batching`).
Brief work of the only request is done on the event loop (`Slot.at_once`): to pass it to another thread and back takes
as long as a small computation.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from exodus_service.errors import ServiceError

T = TypeVar("T")


class QueueFullError(ServiceError):
    """The bound on requests or on bytes is reached; nothing was admitted."""

    def __init__(self, detail: str) -> None:
        super().__init__("queue_full", detail)


class DeadlineError(ServiceError):
    """The deadline passed; work that had not begun is not done."""

    def __init__(self) -> None:
        super().__init__("deadline", "the deadline passed before the result was there")


class Batching(Protocol):
    """Combines compatible work. Called on the computing thread, without a lock."""

    @property
    def delay(self) -> float:
        """Seconds after submission that work waits for compatible work while nothing else is queued."""

    def has_room(self, batch: "Sequence[Slot]") -> bool:
        """True if more work may join the batch, which has at least its head."""

    def join(self, batch: "Sequence[Slot]", queued: "Sequence[Slot]") -> "list[Slot]":
        """The queued work that fits into the batch."""

    def run(self, batch: "Sequence[Slot]") -> None:
        """Compute what the work has in common. Its own part runs afterwards, one by one."""


class Scheduler:
    """Runs work in the order of submission, one at a time, on one thread; brief work also on the event loop's.

    Args:
        name: of the thread, for logs and debuggers.
        max_requests: requests admitted at a time.
        max_bytes: sum of their sizes, unpacked, and of those of results; a request that is alone may be of any size.
        initializer: called on the thread before its first work.
        batching: decides which work runs together; None: none does.
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
        self._queue = Queue(batching)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=initializer)
        self._lock = threading.Lock()
        self._computing = threading.Lock()
        self._outstanding = 0  # turns that the thread has not ended
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    @property
    def waiting(self) -> int:
        """Number of admitted requests whose work waits for the thread."""
        return len(self._queue)

    def admit(self, nbytes: int) -> "Slot":
        """Take a slot for a request of `nbytes`. Raises QueueFullError."""
        with self._lock:
            if self.requests >= self._max_requests:
                raise QueueFullError(f"{self.requests} requests are admitted, the limit is {self._max_requests}")
            # Kept results have left their places: their bytes may be all that is counted.
            if self.bytes > self._max_bytes or (self.requests and self.bytes + nbytes > self._max_bytes):
                raise self._full(nbytes)
            self.requests += 1
            self.bytes += nbytes
        return Slot(self, nbytes)

    def admit_result(self, nbytes: int) -> "Slot":
        """Count the bytes of a result for which nothing is computed; it takes no place. Raises QueueFullError."""
        with self._lock:
            if self.bytes and self.bytes + nbytes > self._max_bytes:
                raise self._full(nbytes)
            self.bytes += nbytes
        return Slot(self, nbytes, places=0)

    def reserve(self, nbytes: int) -> None:
        """Count more bytes if they fit, or if they are those of the only request; called by its slot.

        Raises:
            QueueFullError: they do not fit; nothing was counted.
        """
        with self._lock:
            if nbytes > 0 and self.requests > 1 and self.bytes + nbytes > self._max_bytes:
                raise self._full(nbytes)
            self.bytes += nbytes

    def account(self, requests: int, nbytes: int) -> None:
        """Add to the requests and bytes that are counted, or subtract; called by a slot."""
        with self._lock:
            self.requests += requests
            self.bytes += nbytes

    def require_room(self) -> None:
        """Raise QueueFullError if the results of other requests have outgrown the bound on bytes."""
        with self._lock:
            if self.requests > 1 and self.bytes > self._max_bytes:
                raise QueueFullError(
                    f"requests and results of {self.bytes} bytes wait to be taken, the limit is {self._max_bytes}"
                )

    @property
    def is_free(self) -> bool:
        """True if there is one request, nothing is queued or runs, and work does not wait to be batched."""
        waits = self._batching is not None and self._batching.delay
        return self.requests == 1 and self._outstanding == 0 and not waits

    def at_once(self, work: Callable[[], T]) -> T:
        """Do work in place of the thread, which is free; called by a slot, on the event loop."""
        with self._computing:
            self.require_room()
            return work()

    def enqueue(self, slot: "Slot") -> None:
        """Queue the work of a slot; called by the slot."""
        self._queue.put(slot)
        self.execute(self._turn)

    def withdraw(self, slot: "Slot") -> None:
        """Remove cancelled work from the queue; called by its slot."""
        self._queue.remove(slot)

    def execute(self, run: Callable[[], T]) -> "Future[T]":
        """Run on the thread, after everything that is queued, outside the accounts."""

        def turn() -> T:
            with self._computing:
                return run()

        self._count_outstanding(1)
        try:
            future = self._executor.submit(turn)
        except BaseException:
            self._count_outstanding(-1)
            raise
        future.add_done_callback(lambda _: self._count_outstanding(-1))
        return future

    def close(self) -> None:
        """Withdraw everything that waits. Work that runs goes on to its end."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._queue.cancel()

    def _count_outstanding(self, turns: int) -> None:
        with self._lock:
            self._outstanding += turns

    def _full(self, nbytes: int) -> QueueFullError:
        return QueueFullError(
            f"{self.bytes} bytes are admitted, {nbytes} more would exceed the limit of {self._max_bytes}"
        )

    def _turn(self) -> None:
        """One turn per queued slot; it finds nothing if slots were withdrawn or ran in a batch."""
        batch = [slot for slot in self._queue.take() if slot.begin()]
        if len(batch) > 1 and self._batching is not None:
            try:
                self._batching.run(batch)
            except Exception as error:  # noqa: BLE001  (unless it is passed on, the clients wait for ever)
                for slot in batch:
                    slot.fail(error)
                return
        for slot in batch:
            slot.finish()


class Slot:
    """A request's slot in the queue: its place, the bytes reserved for it, its work, and the result.

    The slot is released when its block is left and everything that runs for it has ended.

    Attributes:
        nbytes: bytes that are counted for the request.
        member: what batching knows the work by; None for work that runs alone.
        submitted: a time.monotonic() value.
        overtaken: how much younger work has run before this.
    """

    def __init__(self, scheduler: Scheduler, nbytes: int, places: int = 1) -> None:
        self.nbytes = nbytes
        self.member: Any = None
        self.submitted = 0.0
        self.overtaken = 0
        self._scheduler = scheduler
        self._places = places
        self._lock = threading.Lock()
        self._left = self._released = False
        self._running = 0
        self._work: Callable[[], Any] | None = None
        self._deadline: float | None = None
        self._future: Future[Any] | None = None

    @property
    def is_alone(self) -> bool:
        """True if brief work, which the event loop can wait for, may be done by `at_once` instead of `submit`."""
        return self._scheduler.is_free

    def at_once(self, work: Callable[[], T], deadline: float | None = None) -> T:
        """The result of the work, done in place of the computing thread. Raises what the future of `submit` would."""
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlineError
        return self._scheduler.at_once(work)

    def submit(self, work: Callable[[], T], deadline: float | None = None, member: Any = None) -> "Future[T]":
        """Queue the work; a slot takes one. `deadline` is a time.monotonic() value.

        The future ends with the result of `work` or its exception; with DeadlineError or QueueFullError if the work was
        not done; or cancelled.
        """
        future: Future[T] = Future()
        self._work, self._deadline, self.member, self._future = work, deadline, member, future
        self.submitted = time.monotonic()
        self.attach(future)
        self._scheduler.enqueue(self)
        return future

    def attach(self, future: "Future[Any]") -> None:
        """Keep the slot until this work has ended too, even if the block is left before. Not after it was left."""
        with self._lock:
            self._running += 1
        future.add_done_callback(self._ended)

    def resize(self, nbytes: int) -> None:
        """Count another size from now on, such as that of the result instead of that of the request. On any thread."""
        with self._lock:
            if not self._released:
                self._scheduler.account(0, nbytes - self.nbytes)
                self.nbytes = nbytes

    def reserve(self, nbytes: int) -> None:
        """Count another size from now on, before its memory is taken. On any thread.

        Raises:
            QueueFullError: there is no room for it; the size is unchanged.
        """
        with self._lock:
            if not self._released:
                self._scheduler.reserve(nbytes - self.nbytes)
                self.nbytes = nbytes

    def stop(self) -> bool:
        """Cancel the work, if any was submitted. False if it has begun."""
        return self._future is None or self._future.cancel()

    def give_up_place(self) -> None:
        """Leave the place to another request; the bytes remain counted."""
        with self._lock:
            if not self._released:
                self._scheduler.account(-self._places, 0)
                self._places = 0

    def leave(self) -> None:
        """The request is over: withdraw work that waits, and release the slot once nothing runs for it."""
        if self._future is not None and self._future.cancel():
            self._scheduler.withdraw(self)
            self._drop_work()
        with self._lock:
            self._left, over = True, not self._running
        if over:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()

    # On the computing thread, and by the queue.

    def begin(self) -> bool:
        """True if the work is to be done: it was not cancelled, and its deadline has not passed."""
        future = self._future
        if future is None or not future.set_running_or_notify_cancel():
            self._drop_work()
            return False
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.fail(DeadlineError())
            return False
        return True

    def finish(self) -> None:
        """Do the work, and set the future."""
        work, future = self._work, self._future
        assert work is not None, "work is done once"
        assert future is not None, "work was submitted"
        self._drop_work()
        try:
            self._scheduler.require_room()
            result = work()
        except BaseException as error:  # noqa: BLE001  (unless it is passed on, the client waits for ever)
            work = None  # the traceback has this frame
            future.set_exception(error)
        else:
            future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """End without doing the work."""
        assert self._future is not None, "work was submitted"
        self._drop_work()
        self._future.set_exception(error)

    def cancel(self) -> None:
        """Cancel work that was taken out of the queue."""
        if self._future is not None:
            self._future.cancel()
        self._drop_work()

    def _drop_work(self) -> None:
        self._work = self.member = None

    def _ended(self, _future: "Future[Any]") -> None:
        with self._lock:
            self._running -= 1
            over = self._left and not self._running
        if over:
            self._release()

    def _release(self) -> None:
        with self._lock:
            self._released = True
            self._future = None  # which refers to the slot, and has the result
            self._scheduler.account(-self._places, -self.nbytes)


class Queue:
    """Slots whose work waits. All threads may add and remove; one takes."""

    def __init__(self, batching: Batching | None = None) -> None:
        self._batching = batching
        self._slots: deque[Slot] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, slot: Slot) -> None:
        with self._changed:
            self._slots.append(slot)
            self._changed.notify()

    def remove(self, slot: Slot) -> None:
        """Remove a slot, if it is still queued."""
        with self._changed:
            if slot in self._slots:
                self._slots.remove(slot)

    def cancel(self) -> None:
        """Cancel everything that waits."""
        with self._changed:
            slots = list(self._slots)
            self._slots.clear()
        for slot in slots:
            slot.cancel()

    def take(self) -> list[Slot]:
        """The head of the queue with compatible work; empty if nothing waits. Blocks only during a batching delay."""
        with self._changed:
            if not self._slots:
                return []
            batch = [self._slots.popleft()]
            alone = not self._slots
        batching = self._batching
        if batching is None or (alone and not batching.delay):
            return batch
        until = batch[0].submitted + batching.delay
        while batching.has_room(batch):
            with self._changed:
                queued = list(self._slots)
            joining = batching.join(batch, queued)
            with self._changed:
                for slot in joining:
                    if slot in self._slots:  # and was not withdrawn meanwhile
                        self._slots.remove(slot)
                        batch.append(slot)
                left = until - time.monotonic()
                if left <= 0 or any(slot in self._slots for slot in queued):  # those are not to wait
                    break
                if not joining and not self._slots:
                    self._changed.wait(left)
        return batch
