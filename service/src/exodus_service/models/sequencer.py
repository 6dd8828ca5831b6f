"""Whose turn it is on one model: training calls in the order of their numbers, one at a time.

All of it happens on one event loop; only the end of work is told by the thread that computes. Those that wait are woken
in the order in which they came.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import TypeVar

from exodus_service.errors import Fault, ServiceError
from exodus_service.models.progress import Answer, Progress

T = TypeVar("T")

#: Calls that are opened ahead of the one that has its turn.
_AHEAD = 4


class Hold:
    """The model belongs to one call, until the call leaves it and its work, if it has begun, has ended."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._working = self._over = False

    def begin(self) -> None:
        """On the computing thread, before the work. Raises CancelledError where the call has left already."""
        with self._lock:
            if self._over:
                raise CancelledError("the call was left before its work began")
            self._working = True

    def end(self) -> None:
        """On the computing thread, after the work."""
        with self._lock:
            self._over, self._working = True, False
        try:
            self._loop.call_soon_threadsafe(self._release)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def leave(self) -> None:
        """On the event loop: the call needs the model no longer. Work that is running keeps it."""
        with self._lock:
            if self._over or self._working:
                return
            self._over = True
        self._release()


class Turns:
    """The order of calls on one model.

    Args:
        progress: returns how far the model is.
        wait_s: how long a call waits for those numbered before it, while none of them is running.
        reach: how many calls may wait at a time; one that is further ahead waits no longer than `wait_s` in all.
    """

    def __init__(self, progress: Callable[[], Progress], wait_s: float, reach: int = 256) -> None:
        self._progress = progress
        self._wait_s = wait_s
        self._reach = reach
        self._hold: object | None = None
        self._running: int | None = None
        self._opened: Counter[int] = Counter()
        self._moved = time.monotonic()
        self._places: dict[object, asyncio.Future[None] | None] = {}
        self._closed: Callable[[], ServiceError] | None = None

    @property
    def idle(self) -> bool:
        """Whether no call has the model."""
        return self._hold is None

    async def take(
        self, sequence: int, digest: str, deadline: float | None, ended: Callable[[], None]
    ) -> Hold | Answer:
        """Wait for the turn of a training call; an Answer, where it was done before. `ended` is called after the turn.

        Raises:
            ServiceError: sequence_conflict, answer_expired, sequence_gap, deadline, or what the turns were closed with.
        """

        def attempt() -> Hold | Answer | None:
            progress = self._progress()
            if sequence <= progress.sequence:
                return progress.replay(sequence, digest)
            if sequence == progress.sequence + 1 and self._hold is None:
                self._running = sequence
                return self._grant(ended)
            return None

        self._opened[sequence] += 1
        self._wake()  # the next call may be near
        try:
            return await self._when(attempt, deadline, sequence)
        finally:
            self._opened[sequence] -= 1
            if not self._opened[sequence]:
                del self._opened[sequence]

    def near(self, sequence: int) -> bool:
        """True if a call is to be opened: the one before it is done, has its turn or waits for it. On any thread.

        So calls that are on their way together are opened while others compute, in their order, and those behind a gap
        are not.
        """
        reached = max(self._progress().sequence, self._running or 0)
        return sequence <= reached + 1 or (sequence <= reached + _AHEAD and sequence - 1 in self._opened)

    async def approach(self, sequence: int, deadline: float | None) -> None:
        """Wait until the call of this number is near.

        Raises:
            ServiceError: sequence_gap, deadline, or what the turns were closed with.
        """
        await self._when(lambda: self.near(sequence) or None, deadline, sequence)

    async def exclusive(self, deadline: float | None = None) -> Hold:
        """Wait until no call has the model, and have it.

        Raises:
            ServiceError: deadline, or what the turns were closed with.
        """
        return await self._when(lambda: self._grant(lambda: None) if self._hold is None else None, deadline, None)

    async def reached(self, sequence: int, deadline: float | None) -> None:
        """Wait until the call of this number has been done.

        Raises:
            ServiceError: sequence_gap, deadline, or what the turns were closed with.
        """
        await self._when(lambda: self._progress().sequence >= sequence or None, deadline, sequence + 1)

    def close(self, problem: Callable[[], ServiceError]) -> None:
        """Refuse all that wait and all that come. The call that has the model keeps it."""
        self._closed = problem
        self._wake()

    def _grant(self, ended: Callable[[], None]) -> Hold:
        def release() -> None:
            if self._hold is not hold:
                return
            self._hold = None
            if self._running is not None:
                self._running, self._moved = None, time.monotonic()
            ended()
            self._wake()

        hold = Hold(release)
        self._hold = hold
        return hold

    async def _when(self, attempt: Callable[[], T | None], deadline: float | None, sequence: int | None) -> T:
        """The result of the attempt as soon as it has one; tried anew at each change.

        `sequence` is the number of the call: where the one before it is missing, or out of reach, the wait is bounded.
        """
        place = object()
        self._places[place] = None
        arrived = time.monotonic()
        try:
            while True:
                if self._closed is not None:
                    raise self._closed()
                result = attempt()
                if result is not None:
                    return result
                done, running = self._progress().sequence, self._running
                gap = sequence is not None and sequence > done + 1 and running is None
                far = sequence is not None and sequence > done + self._reach
                patience = (arrived if far else max(arrived, self._moved)) + self._wait_s if gap or far else None
                until = min((moment for moment in (deadline, patience) if moment is not None), default=None)
                if until is not None and time.monotonic() >= until:
                    raise _gap(done, sequence) if (gap or far) and sequence is not None else _late(done, running)
                await self._change(place, until)
        finally:
            del self._places[place]

    async def _change(self, place: object, until: float | None) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._places[place] = woken
        timer = None if until is None else loop.call_later(max(0.0, until - time.monotonic()), _set, woken)
        try:
            await woken
        finally:
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        for woken in self._places.values():
            if woken is not None:
                _set(woken)


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _gap(done: int, sequence: int) -> ServiceError:
    return ServiceError(
        "sequence_gap",
        f"{done} calls are done and the next is {done + 1}; it did not come in time for call {sequence}: "
        f"send the calls from {done + 1} on",
        (Fault("/params/sequence", str(done + 1), str(sequence)),),
    )


def _late(done: int, running: int | None) -> ServiceError:
    state = f"call {running} is running" if running is not None else "the model is busy"
    return ServiceError("deadline", f"the deadline passed before the call could begin: {done} calls are done, {state}")
