"""Replay log: the training calls of one model, numbered, kept until a crash of the server cannot lose them.

Calls are idempotent by their number: a call is sent under it with the same bytes until it is answered, and the server
does it once. It stays in the log until the server says that its effect is durable; if the server comes back with less
than it had, the log is rewound and the calls are replayed.

A number is never given to another call. One that fails for good, or is cancelled, is replaced by an empty call: a copy
of it that is still on its way somewhere cannot be taken for its successor.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum

from exodus_client import _constants as defaults
from exodus_client._errors import ExodusError, ModelClosedError, StateLostError, reworded
from exodus_client._models.messages import StepResult
from exodus_client._transport.retry import Polling
from exodus_client.wire import Encoded

_log = logging.getLogger("exodus_client")


class State(Enum):
    """Progress of a call."""

    QUEUED = "queued"
    UNDER_WAY = "under way"
    DONE = "done"


@dataclass(eq=False)
class Call:
    """One training call.

    Attributes:
        sequence: its number.
        path: where it is sent.
        body: what is sent; None for one that is made from the outputs of a forward pass when its turn comes.
        make: makes body and fallback of such a call, and how to read the answer.
        fallback: sent instead of the body if the server does not keep its context any more.
        read: reads the answer.
        future: takes the result, once.
        in_turn: whether it is sent only when all before it are done.
        begun: whether it was ever under way.
        cancelled: whether nobody wanted it any more when it began.
        polling: the waits after refusals because calls before it are missing; None before the first.
    """

    sequence: int
    path: str
    body: Encoded | None = None
    make: Callable[[Call], None] | None = None
    fallback: Encoded | None = None
    read: Callable[..., StepResult] | None = None
    future: Future[StepResult] = field(default_factory=Future)
    state: State = State.QUEUED
    in_turn: bool = False
    begun: bool = False
    cancelled: bool = False
    polling: Polling | None = None

    @property
    def nbytes(self) -> int:
        """Bytes kept for it."""
        return sum(encoded.nbytes for encoded in (self.body, self.fallback) if encoded is not None)


class ReplayLog:
    """Calls of one model that may have to be sent again. Any thread may use it.

    Args:
        done: number of calls that the server has done.
        durable: number of those that are durable; None if nothing ever is: then nothing is kept.
        ahead: calls submitted and not yet answered, beyond which `append` waits.
        width: calls under way at a time.
    """

    def __init__(self, done: int, durable: int | None, *, ahead: int, width: int) -> None:
        self._changed = threading.Condition()
        self._calls: OrderedDict[int, Call] = OrderedDict()
        self._ahead = ahead
        self._width = width
        self._error: ExodusError | None = None
        self._paused = False
        self._saving = threading.Lock()
        self._save_again = 0.0
        self._has_dropped = False
        self._reported = done
        self._reports: dict[int, StepResult | None] = {}
        self.last = done
        self.durable = durable
        # Calls after the save before the last are kept: a damaged state makes the server go back to that.
        self._kept_after = done

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        with self._changed:
            return sum(call.nbytes for call in self._calls.values())

    @property
    def kept_after(self) -> int:
        """The number after which all calls are kept."""
        return self._kept_after

    @property
    def error(self) -> ExodusError | None:
        """Why no call is taken any more."""
        return self._error

    def append(self, make: Callable[[int], Call]) -> Call:
        """Number a call and queue it; waits while too many are unanswered, and while the log is paused.

        Raises:
            ExodusError: what has ended the log.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._error is not None or (not self._paused and self._unanswered() < self._ahead)
            )
            self._require_sound()
            call = make(self.last + 1)  # what raises here has taken no number
            self.last = call.sequence
            self._calls[call.sequence] = call
            return call

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile no call is numbered. One thread at a time.

        Raises:
            ExodusError: what has ended the log.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not self._paused)
            self._require_sound()
            self._paused = True
        try:
            yield
        finally:
            with self._changed:
                self._paused = False
                self._changed.notify_all()

    def next(self) -> Call | None:
        """The call to be sent now, which counts as under way from here on; None if there is none."""
        with self._changed:
            if self._error is not None:
                return None
            under_way = sum(call.state is State.UNDER_WAY for call in self._calls.values())
            first = True
            for call in self._calls.values():
                if call.state is State.DONE:
                    continue
                if call.state is State.QUEUED and under_way < self._width and (first or not call.in_turn):
                    call.state = State.UNDER_WAY
                    if not call.begun:
                        call.begun = True
                        call.cancelled = not call.future.set_running_or_notify_cancel()
                    return call
                if call.in_turn:
                    return None  # those behind it would only wait for it
                first = False
            return None

    def done(self, call: Call, durable: int | None, came: StepResult | Exception | None) -> None:
        """The server has done it: its number is consumed. The caller gets what came; None if it has been told."""
        with self._changed:
            call.state = State.DONE
            if call.sequence > self._reported:
                self._reports.setdefault(call.sequence, came if isinstance(came, StepResult) else None)
            self._forget(durable)
            # Before those are woken that wait for calls to be answered: nothing may wake them again.
            if isinstance(came, Exception):
                fail(call, came)
            elif came is not None:
                answer(call, came)
            self._changed.notify_all()

    def requeue(self, call: Call, *, in_turn: bool = False) -> None:
        """The call is to be sent again."""
        with self._changed:
            call.state = State.QUEUED
            call.in_turn = call.in_turn or in_turn
            self._changed.notify_all()

    def rewind(self, done: int, kept_after: int) -> int:
        """The server said how many calls it has done: what it has lost is queued again; returns how many calls.

        `kept_after` is the value from before the server was asked. More may have been done and forgotten since then;
        what was done already when it was asked, and is neither there nor here, is lost.

        Raises:
            StateLostError: it has lost what is not kept any more.
        """
        with self._changed:
            if done < kept_after and self.last > done:
                raise StateLostError(
                    f"the server has done {done} calls, and this handle keeps those from {kept_after + 1} on: those "
                    f"between are lost. resync() goes on from {done}"
                )
            again = [call for call in self._calls.values() if call.sequence > done and call.state is State.DONE]
            for call in again:
                call.state = State.QUEUED
            return len(again)

    def end(self, error: ExodusError, *, under_way: bool = True) -> None:
        """Take no more calls, and fail those that wait for an answer, or only those that are not under way."""
        with self._changed:
            self._error = self._error or error
            for call in self._calls.values():
                if under_way or call.state is not State.UNDER_WAY:
                    fail(call, error)
            self._calls.clear()
            self._changed.notify_all()

    def wait_done(self, sequence: int) -> None:
        """Wait until all calls up to this number are done. Raises ExodusError: what has ended the log."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._all_done(sequence))
            self._require_sound()

    @property
    def to_report(self) -> bool:
        """True if `reports` has something."""
        with self._changed:
            return self._reported + 1 in self._reports

    def reports(self) -> Iterator[StepResult]:
        """Results in the order of their numbers, each once, as far as they are there."""
        while True:
            with self._changed:
                if self._reported + 1 not in self._reports:
                    return
                self._reported += 1
                result = self._reports.pop(self._reported)
            if result is not None:
                yield result

    def kept(self, durable: int | None) -> None:
        """Take note of what the server says is durable."""
        with self._changed:
            self._forget(durable)

    def limit(self, save: Callable[[], int], path: str) -> None:
        """Bound the bytes kept: above MAX_KEPT_BYTES have the server save, above twice that drop the oldest calls.

        Args:
            save: has the server save, and returns how many calls are durable then. Raises ExodusError.
            path: of the model, for the log.
        """
        most = defaults.MAX_KEPT_BYTES
        if self.durable is None or self.nbytes <= most:
            return
        with self._saving:  # the others wait: calls must not come faster than they are saved
            if self.nbytes > most and time.monotonic() >= self._save_again:
                try:
                    self.kept(save())
                except ExodusError as error:
                    self._save_again = time.monotonic() + defaults.SAVE_AGAIN
                    _log.warning("%s: calls of %d bytes are kept until the server saves: %s", path, self.nbytes, error)
            # A full disk stops no training there, and must not fill the memory here.
            dropped = self._trim(2 * most)
            if dropped and not self._has_dropped:
                self._has_dropped = True
                _log.warning(
                    "%s: the server does not save, and at most %d bytes are kept here: calls from %d on would be lost "
                    "in a crash",
                    path,
                    2 * most,
                    dropped,
                )

    def _trim(self, most: int) -> int | None:
        """Drop the oldest calls that are done until `most` bytes are left; the number of the first dropped."""
        with self._changed:
            kept, dropped = sum(call.nbytes for call in self._calls.values()), None
            for sequence, call in list(self._calls.items()):
                if kept <= most or call.state is not State.DONE:
                    break
                kept -= call.nbytes
                del self._calls[sequence]
                self._kept_after = sequence
                dropped = dropped or sequence
            return dropped

    def _forget(self, durable: int | None) -> None:
        if durable is None:
            limit = self.last
        else:
            if self.durable is not None and durable > self.durable:
                self._kept_after = max(self._kept_after, self.durable)
            self.durable = durable
            limit = self._kept_after
        for sequence, call in list(self._calls.items()):
            if call.state is not State.DONE or sequence > limit:
                break
            del self._calls[sequence]
            if durable is None:
                self._kept_after = sequence

    def _all_done(self, sequence: int) -> bool:
        return all(call.state is State.DONE for call in self._calls.values() if call.sequence <= sequence)

    def _unanswered(self) -> int:
        return sum(not call.future.done() for call in self._calls.values())

    def _require_sound(self) -> None:
        if self._error is not None:
            closed = isinstance(self._error, ModelClosedError)
            raise reworded(self._error, "the model is closed" if closed else str(self._error))


def fail(call: Call, error: BaseException) -> None:
    """Answer a call with an error, unless it has been answered."""
    with suppress(InvalidStateError):  # another thread was faster
        if not (call.future.running() or call.future.done()):
            call.future.set_running_or_notify_cancel()
        if not call.future.done():
            call.future.set_exception(error)


def has_result(call: Call) -> bool:
    """True if the caller has the result of the call."""
    future = call.future
    return future.done() and not future.cancelled() and future.exception() is None


def answer(call: Call, result: StepResult) -> None:
    """Answer a call, unless it has been answered."""
    with suppress(InvalidStateError):
        if not call.future.done():
            call.future.set_result(result)
