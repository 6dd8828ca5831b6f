"""Exactly-once training calls on one model: in the order of their numbers, one at a time, each counted once.

A training call carries a sequence number and a digest of its request. The model's `Sequencer` makes it wait until all
calls before it are done, and answers with one of three:

- a `Step`, for the next number: the model belongs to the call until its work has ended. `Step.record` counts the call
  and caches its response; from then on the number is done, even if the client is gone. Work that fails before that
  leaves the model as it was, or, if the trainer has changed by then, has it restored from its newest checkpoint.
- a `CachedResponse`, for a number that is done, if the digest is the same: the call was sent again.
- an error: `sequence_conflict` if the digest differs, `answer_expired` if the response is no longer cached,
  `sequence_gap` if the calls before it do not arrive in time.

`Progress`, the number of calls done and their cached responses, is saved together with the tensors that they led to.
`Sequencer.durable` is the number of the newest state on disk, the durable watermark: clients keep their calls in a
replay log until it passes them. docs/exactly-once.md follows a call from the client to the disk and back.

All of this runs on one event loop, except the methods marked otherwise: the computing thread works and records, the
writer's thread reports saves. Waiting calls are woken in the order of their arrival.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import msgpack  # type: ignore[import-untyped]

from exodus_service.errors import Fault, ServiceError

T = TypeVar("T")
LeaseT = TypeVar("LeaseT", bound="Lease")
Body = bytes | bytearray | memoryview

#: Calls of each model that are remembered with their digests.
MAX_CACHED_RESPONSES = 64

#: Calls decoded ahead of the one that runs.
_DECODED_AHEAD = 4


@dataclass(frozen=True)
class SequencerLimits:
    """Limits of one model.

    Attributes:
        response_bytes: of all cached responses.
        wait_s: seconds that a call waits for a call before it that has not arrived.
        max_waiting: calls that can wait at a time. A call that is further ahead waits for `wait_s` at most, even if
            calls before it are done meanwhile.
    """

    response_bytes: int
    wait_s: float
    max_waiting: int = 256


@dataclass(frozen=True)
class CachedResponse:
    """Response of a training call that was done, for a client that sends the call again.

    Attributes:
        sequence: the number of the call.
        digest: of its request.
        writer: the client that sent it, by the name it gave itself.
        body: None if it was too large to be cached or was evicted.
    """

    sequence: int
    digest: str
    writer: str | None
    content_type: str
    body: bytes | None

    @property
    def nbytes(self) -> int:
        """Bytes of the body."""
        return 0 if self.body is None else len(self.body)


@dataclass(frozen=True)
class Progress:
    """Number of the last call done, and cached responses. Immutable, so that any thread reads a consistent pair.

    Attributes:
        nbytes: bytes of the cached responses.
    """

    sequence: int = 0
    responses: tuple[CachedResponse, ...] = ()
    nbytes: int = 0

    @property
    def writer(self) -> str | None:
        """The client that made the last call."""
        return self.responses[-1].writer if self.responses else None

    def after(self, response: CachedResponse, max_bytes: int) -> "Progress":
        """The progress after one more call; the bodies of the oldest responses are evicted to make room."""
        cached = [*self.responses, response]
        nbytes = self.nbytes + response.nbytes
        while len(cached) > MAX_CACHED_RESPONSES:
            nbytes -= cached.pop(0).nbytes
        for place, old in enumerate(cached):
            if nbytes <= max_bytes:
                break
            nbytes -= old.nbytes
            cached[place] = replace(old, body=None)
        return Progress(response.sequence, tuple(cached), nbytes)

    def replay(self, sequence: int, digest: str) -> CachedResponse:
        """The response of a call that was done.

        Raises:
            ServiceError: sequence_conflict: another call had this number; answer_expired.
        """
        cached = next((response for response in self.responses if response.sequence == sequence), None)
        fault = Fault("/params/sequence", str(self.sequence + 1), str(sequence))
        if cached is not None and cached.digest != digest:
            writer = "without a name" if cached.writer is None else repr(cached.writer)
            raise ServiceError(
                "sequence_conflict",
                f"another client trains this model: call {sequence} was a different one, by the writer {writer}, and "
                f"{self.sequence} calls are done; nothing was changed",
                (fault,),
            )
        if cached is None or cached.body is None:
            raise ServiceError(
                "answer_expired",
                f"call {sequence} is done, {self.sequence} are, and its response is no longer cached; "
                f"the next call is {self.sequence + 1}",
                (fault,),
            )
        return cached

    def pack(self) -> bytes:
        """The responses as msgpack, to be saved beside the tensors that they led to."""
        packed = [[r.sequence, r.digest, r.body, r.content_type, r.writer] for r in self.responses]
        return bytes(msgpack.packb(packed))

    @classmethod
    def unpack(cls, sequence: int, packed: bytes) -> "Progress":
        """The inverse of `pack`."""
        rows = msgpack.unpackb(packed)
        responses = [CachedResponse(n, digest, writer, kind, body) for n, digest, body, kind, writer in rows]
        return cls(sequence, tuple(responses), sum(response.nbytes for response in responses))


class Lease:
    """Exclusive use of a model by one call: until the call releases it and its work, if it has begun, has ended."""

    def __init__(self, on_ended: Callable[[], None]) -> None:
        self._on_ended = on_ended
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._working = self._released = False

    def begin(self) -> None:
        """Begin the work; on the computing thread. Raises CancelledError if the call has released the lease."""
        with self._lock:
            if self._released:
                raise CancelledError("the call was cancelled before its work began")
            self._working = True

    def end(self) -> None:
        """End the work; on the computing thread. The lease ends here only if the call has released it already."""
        with self._lock:
            self._working = False
            if not self._released:
                return
        try:
            self._loop.call_soon_threadsafe(self._on_ended)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def release(self) -> None:
        """End the lease, unless work is running, which ends it later."""
        with self._lock:
            if self._released:
                return
            self._released = True
            if self._working:
                return
        self._on_ended()


class Step(Lease):
    """The lease of the next training call, in which the call is done and recorded.

    Attributes:
        sequence: its number.
    """

    def __init__(self, sequencer: "Sequencer", sequence: int, digest: str, writer: str | None) -> None:
        super().__init__(sequencer.lease_ended)
        self.sequence = sequence
        self._sequencer = sequencer
        self._digest = digest
        self._writer = writer
        self._recorded = False

    def guard(self, work: Callable[[], T]) -> Callable[[], T]:
        """The work to run on the computing thread, once, within the lease.

        If the call was cancelled before the work begins, it raises concurrent.futures.CancelledError instead.
        """

        def run() -> T:
            self.begin()
            try:
                changed = self._sequencer.watch()
                try:
                    return work()
                finally:
                    if not self._recorded and changed():
                        self._sequencer.broken = True
            finally:
                self.end()

        return run

    def record(self, body: Body | Iterable[Body], content_type: str) -> None:
        """Count the call as done and cache a copy of its response, in one piece or several; ends the work."""
        cached = joined(body, self._sequencer.limits.response_bytes)
        self._sequencer.record(CachedResponse(self.sequence, self._digest, self._writer, content_type, cached))
        self._recorded = True


class Sequencer:
    """Orders the training calls of one model and counts each of them once.

    Args:
        limits: of waiting and of cached responses.
        progress: the calls that are done.
        durable: number of the newest state on disk; None if the model lives in memory only.
        watch: begins to watch the trainer; the function it returns says if the trainer has changed since. Computing
            thread.
        on_recorded: called after each call that was recorded. Computing thread.
        on_broken: called once when a call has changed the trainer and failed.

    Attributes:
        durable_error: why the newest save failed, or what was set aside when the model was loaded; None after a save.
        broken: a call has changed the trainer and failed: the trainer must not be used. Computing thread.
    """

    def __init__(
        self,
        limits: SequencerLimits,
        progress: Progress | None = None,
        durable: int | None = None,
        *,
        watch: Callable[[], Callable[[], bool]] = lambda: lambda: False,
        on_recorded: Callable[[int], None] = lambda sequence: None,
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits
        self.progress = Progress() if progress is None else progress
        self.durable = durable
        self.durable_error: str | None = None
        self.watch = watch
        self.broken = False
        self._on_recorded = on_recorded
        self._on_broken = on_broken
        self._lease: Lease | None = None
        self._decoded: Counter[int] = Counter()
        self._moved = time.monotonic()
        self._waiting: dict[object, asyncio.Future[None] | None] = {}
        self._refusal: Callable[[], ServiceError] | None = None

    @property
    def sequence(self) -> int:
        """Number of the last call done."""
        return self.progress.sequence

    @property
    def dirty(self) -> bool:
        """True if the present state is not on disk but belongs there."""
        return self.durable is not None and self.durable != self.sequence

    @property
    def idle(self) -> bool:
        """True if no call has a lease."""
        return self._lease is None

    @asynccontextmanager
    async def step(
        self, sequence: int, digest: str, deadline: float | None = None, writer: str | None = None
    ) -> AsyncIterator[Step | CachedResponse]:
        """Wait for the turn of a training call; yields its step, or its cached response if the call was done before.

        Args:
            sequence: its number, 1 for the first call on a new model.
            digest: of its request, which tells the same call from another.
            deadline: a time.monotonic() value.
            writer: the client, by the name it gives itself.

        Raises:
            ServiceError: sequence_conflict, answer_expired, sequence_gap, deadline, or the error of `close`.
        """

        def attempt() -> Step | CachedResponse | None:
            if sequence <= self.sequence:
                return self.progress.replay(sequence, digest)
            if sequence == self.sequence + 1 and self._lease is None:
                return self._grant(Step(self, sequence, digest, writer))
            return None

        self._decoded[sequence] += 1
        self._wake()  # this may bring the next call near
        try:
            taken: Step | CachedResponse = await self._wait(attempt, deadline, sequence)
        finally:
            self._decoded[sequence] -= 1
            if not self._decoded[sequence]:
                del self._decoded[sequence]
        if isinstance(taken, CachedResponse):
            yield taken
            return
        try:
            yield taken
        finally:
            taken.release()

    @asynccontextmanager
    async def exclusive(self, deadline: float | None = None) -> AsyncIterator[None]:
        """Lease the model between training calls. Raises ServiceError: deadline, or the error of `close`."""
        lease = await self._wait(
            lambda: self._grant(Lease(self.lease_ended)) if self._lease is None else None, deadline, None
        )
        try:
            yield
        finally:
            lease.release()

    def is_near(self, sequence: int) -> bool:
        """True if a call is due to be decoded: the call before it is done, runs, or waits decoded. On any thread.

        So calls that arrive together are decoded in their order while others compute, but not those behind a gap.
        """
        reached = max(self.sequence, self._running or 0)
        return sequence <= reached + 1 or (sequence <= reached + _DECODED_AHEAD and sequence - 1 in self._decoded)

    async def wait_until_near(self, sequence: int, deadline: float | None = None) -> None:
        """Wait until a call is near. Raises ServiceError: sequence_gap, deadline, or the error of `close`."""
        await self._wait(lambda: self.is_near(sequence) or None, deadline, sequence)

    async def wait_until_done(self, sequence: int, deadline: float | None = None) -> None:
        """Wait until a call is done. Raises ServiceError: sequence_gap, deadline, or the error of `close`."""
        await self._wait(lambda: self.sequence >= sequence or None, deadline, sequence + 1)

    def close(self, refusal: Callable[[], ServiceError]) -> None:
        """Refuse all calls that wait and all that come. The call that has the lease keeps it."""
        self._refusal = refusal
        self._wake()

    def record(self, response: CachedResponse) -> None:
        """Count a call as done; on the computing thread."""
        self.progress = self.progress.after(response, self.limits.response_bytes)
        self._on_recorded(response.sequence)

    def restart(self, sequence: int) -> None:
        """Continue from another state, which is on disk unless the model lives in memory; on the computing thread."""
        self.progress = Progress(sequence)
        if self.durable is not None:
            self.saved(sequence, None)

    def saved(self, sequence: int, error: Exception | None) -> None:
        """Note the result of saving a state: success, or an error. On the thread that saves."""
        if error is None:
            self.durable, self.durable_error = sequence, None
        else:
            self.durable_error = f"state {sequence} could not be saved: {error}"

    def lease_ended(self) -> None:
        """Free the model for the next call."""
        if self._running is not None:
            self._moved = time.monotonic()
        self._lease = None
        if self.broken and self._refusal is None:
            self._on_broken()
        self._wake()

    @property
    def _running(self) -> int | None:
        """Number of the training call that has the lease."""
        lease = self._lease
        return lease.sequence if isinstance(lease, Step) else None

    def _grant(self, lease: LeaseT) -> LeaseT:
        self._lease = lease
        return lease

    async def _wait(self, attempt: Callable[[], T | None], deadline: float | None, sequence: int | None) -> T:
        """Retry `attempt` at each change until it has a result.

        `sequence` is the number of the call. If the call before it is missing, or it is too far ahead, the wait is
        bounded by `wait_s`.
        """
        place = object()
        self._waiting[place] = None
        arrived = time.monotonic()
        try:
            while True:
                if self._refusal is not None:
                    raise self._refusal()
                result = attempt()
                if result is not None:
                    return result
                done, running = self.sequence, self._running
                gap = sequence is not None and sequence > done + 1 and running is None
                far = sequence is not None and sequence > done + self.limits.max_waiting
                since = arrived if far else max(arrived, self._moved)
                patience = since + self.limits.wait_s if gap or far else None
                until = min((moment for moment in (deadline, patience) if moment is not None), default=None)
                if until is not None and time.monotonic() >= until:
                    raise _gap(done, sequence) if (gap or far) and sequence is not None else _late(done, running)
                await self._change(place, until)
        finally:
            del self._waiting[place]

    async def _change(self, place: object, until: float | None) -> None:
        """Wait for the next change, until the given time at most."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._waiting[place] = woken
        timer = None if until is None else loop.call_later(max(0.0, until - time.monotonic()), _set, woken)
        try:
            await woken
        finally:
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        for woken in self._waiting.values():
            if woken is not None:
                _set(woken)


def joined(body: Body | Iterable[Body], max_bytes: int) -> bytes | None:
    """A copy of a body in one piece or several; None, without copying, if it is longer than `max_bytes`."""
    pieces = [body] if isinstance(body, Body) else list(body)
    return None if sum(memoryview(piece).nbytes for piece in pieces) > max_bytes else b"".join(pieces)


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _gap(done: int, sequence: int) -> ServiceError:
    return ServiceError(
        "sequence_gap",
        f"{done} calls are done and the next is {done + 1}, which did not arrive in time for call {sequence}: "
        f"send the calls from {done + 1} on",
        (Fault("/params/sequence", str(done + 1), str(sequence)),),
    )


def _late(done: int, running: int | None) -> ServiceError:
    state = f"call {running} is running" if running is not None else "the model is busy"
    return ServiceError("deadline", f"the deadline passed before the call could begin: {done} calls are done, {state}")
