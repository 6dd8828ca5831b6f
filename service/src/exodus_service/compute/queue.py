"""What waits for the thread, first come first served, and which of it may run together. Knows nothing of HTTP.

Work is taken in the order in which it came. With it comes its company: what waits behind it and is alike, as long as it
fits into a batch. Company overtakes what stands between, so that this is bounded: nothing is overtaken by more than one
batch's worth of others, and whatever stands first is taken next.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


class DeadlineError(Exception):
    """The turn of the work came after its deadline; it was not done."""


class Likeness(NamedTuple):
    """What may run together has equal keys; `nbytes` is what it adds to a batch."""

    key: Hashable
    nbytes: int


class Member(Protocol):
    """What may run with others that are alike."""

    @property
    def nbytes(self) -> int:
        """Bytes that it brings, told without a look at them; what brings more than a batch takes runs alone."""

    @property
    def likeness(self) -> Likeness | None:
        """None for what runs alone. Asked for on the thread that computes, and only where there may be company."""


@dataclass(frozen=True)
class Batching:
    """How work is combined.

    Attributes:
        run: computes for several members at once what they have in common. Their work is called after it, one by one,
            and finds it done, or still to do.
        max_requests: most members of a batch; 1 combines nothing.
        max_bytes: bound on the sum of their `nbytes`.
        delay: seconds that work waits for company, from its submission on, while nothing else waits.
    """

    run: Callable[[Sequence[Any]], None]
    max_requests: int
    max_bytes: int
    delay: float = 0.0


@dataclass(eq=False)
class Entry:
    """Work that waits, and the future of its result. What it refers to is let go when it ends or is withdrawn."""

    work: Callable[[], Any] | None
    deadline: float | None
    member: Member | None
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    overtaken: int = 0

    def begin(self) -> bool:
        """Whether the work is to be done: it was not withdrawn, and its deadline has not passed."""
        if not self.future.set_running_or_notify_cancel():
            self.release()
            return False
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.fail(DeadlineError())
            return False
        return True

    def finish(self, allow: Callable[[], None]) -> None:
        """Do the work, unless `allow` raises; the future takes what comes of it."""
        work = self.work
        assert work is not None, "work is done once"
        self.release()
        try:
            allow()
            result = work()
        except BaseException as error:  # noqa: BLE001  (what is not passed on leaves its client waiting)
            work = None  # the traceback has this frame
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """End without doing the work."""
        self.release()
        self.future.set_exception(error)

    def release(self) -> None:
        """Let go of what the work holds."""
        self.work = self.member = None


class Waiting:
    """The entries that wait. All threads may add and withdraw; one takes."""

    def __init__(self, batching: Batching | None = None) -> None:
        self._batching = batching
        self._entries: deque[Entry] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        with self._changed:
            self._entries.append(entry)
            self._changed.notify()

    def withdraw(self, entry: Entry) -> None:
        """Take away an entry whose future was cancelled; it may be gone already."""
        with self._changed:
            if entry in self._entries:
                self._entries.remove(entry)
        entry.release()

    def cancel(self) -> None:
        """Cancel everything that waits."""
        with self._changed:
            entries = list(self._entries)
            self._entries.clear()
        for entry in entries:
            entry.future.cancel()
            entry.release()

    def take(self) -> list[Entry]:
        """The first entry and its company; empty where nothing waits. Does not wait, unless there is a delay."""
        with self._changed:
            if not self._entries:
                return []
            first, last = self._entries.popleft(), not self._entries
        batching, member = self._batching, first.member
        if batching is None or batching.max_requests == 1 or member is None or (last and not batching.delay):
            return [first]
        likeness = _likeness(member, batching)
        if likeness is None or likeness.nbytes >= batching.max_bytes:
            return [first]
        return self._with_company(first, likeness, batching)

    def _with_company(self, first: Entry, likeness: Likeness, batching: Batching) -> list[Entry]:
        taken, room = [first], batching.max_bytes - likeness.nbytes
        until = first.since + batching.delay
        while True:
            with self._changed:
                standing = list(self._entries)
            # Not under the lock: what requests are like shows when they are decoded.
            joining = _company(standing, likeness.key, room, batching.max_requests - len(taken), batching)
            with self._changed:
                for entry, nbytes in joining:
                    if entry in self._entries:  # and was not withdrawn meanwhile
                        self._entries.remove(entry)
                        taken.append(entry)
                        room -= nbytes
                left = until - time.monotonic()
                strangers = any(entry in self._entries for entry in standing)
                if strangers or left <= 0 or len(taken) == batching.max_requests:
                    return taken
                if not self._entries:
                    self._changed.wait(left)


def _company(
    standing: Sequence[Entry], key: Hashable, room: int, places: int, batching: Batching
) -> list[tuple[Entry, int]]:
    """What of the standing entries joins a batch that has room for so many bytes and entries; and the bytes of each."""
    joining: list[tuple[Entry, int]] = []
    passed: list[tuple[Entry, int]] = []  # with the number of those that had joined before
    for entry in standing:
        if places <= 0:
            break
        likeness = _likeness(entry.member, batching)
        if likeness is not None and likeness.key == key and likeness.nbytes <= room:
            joining.append((entry, likeness.nbytes))
            room -= likeness.nbytes
            places -= 1
        else:
            passed.append((entry, len(joining)))
            places = min(places, batching.max_requests - entry.overtaken)
    for entry, before in passed:
        entry.overtaken += len(joining) - before
    return joining


def _likeness(member: Member | None, batching: Batching) -> Likeness | None:
    return None if member is None or member.nbytes > batching.max_bytes else member.likeness
