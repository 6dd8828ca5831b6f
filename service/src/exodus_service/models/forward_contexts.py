"""What a forward call leaves behind for its backward call, named by handles that cannot be guessed.

Every owner has a bound in bytes; the least recently used contexts go first, and those that nobody uses go after a time.
"""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from exodus_core.training import Forward, Trainer
from exodus_service.errors import Fault, ServiceError


@dataclass(frozen=True)
class ForwardContext:
    """A forward pass of a model that a backward pass can go on from, and the trainer that made it."""

    trainer: Trainer
    forward: Forward


def expired(detail: str, handle: str) -> ServiceError:
    """The error of a call whose context is not there."""
    fault = Fault("/params/context", "a context that is kept", repr(handle[:64]))
    return ServiceError("context_expired", detail, (fault,))


@dataclass
class _Kept:
    value: object
    nbytes: int
    group: str
    until: float


class Contexts:
    """Contexts of all owners. Any thread may use it.

    Args:
        max_bytes: of one owner.
        ttl: seconds that an unused context is kept.
        clock: seconds; for tests.
        least: bytes that a context counts at least.
    """

    def __init__(self, max_bytes: int, ttl: float, clock: Callable[[], float] = time.monotonic, least: int = 0) -> None:
        self.max_bytes = max_bytes
        self._least = min(least, max_bytes)
        self.ttl = ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._owners: dict[str, OrderedDict[str, _Kept]] = {}

    def put(self, owner: str, value: object, nbytes: int, group: str = "") -> str:
        """Keep a value; returns its handle. `group` is what it belongs to and can be forgotten with.

        Raises:
            ServiceError: too_large: it is larger than all contexts of an owner may be.
        """
        if nbytes > self.max_bytes:
            raise ServiceError(
                "too_large",
                f"the context takes {nbytes} bytes, those of one owner may take {self.max_bytes} "
                "(EXODUS_CONTEXT_BYTES); send a smaller batch, or the inputs again in place of the context",
            )
        handle = secrets.token_urlsafe(24)
        with self._lock:
            kept = self._owners.setdefault(owner, self._live(owner))
            kept[handle] = _Kept(value, max(nbytes, self._least), group, self._clock() + self.ttl)
            while self._nbytes(kept) > self.max_bytes:
                kept.popitem(last=False)
        return handle

    def get(self, owner: str, handle: str, group: str = "") -> object:
        """The value, which from now on is the most recently used.

        Raises:
            ServiceError: context_expired: it is not kept, another owner's or of another group.
        """
        with self._lock:
            contexts = self._live(owner)
            kept = contexts.get(handle)
            if kept is None or kept.group != group:
                raise expired(f"the context {handle[:64]!r} is not kept; send the inputs again", handle)
            contexts.move_to_end(handle)
            kept.until = self._clock() + self.ttl
            return kept.value

    def release(self, owner: str, handle: str) -> None:
        """Let go of a context; one that is not there is no error."""
        with self._lock:
            self._owners.get(owner, OrderedDict()).pop(handle, None)

    def forget(self, owner: str, group: str) -> None:
        """Let go of everything that belongs to the group."""
        with self._lock:
            contexts = self._live(owner)
            for handle in [handle for handle, kept in contexts.items() if kept.group == group]:
                del contexts[handle]

    def sweep(self) -> None:
        """Let go of what has expired; otherwise its memory stays until its owner comes again."""
        with self._lock:
            for owner in list(self._owners):
                if not self._live(owner):
                    del self._owners[owner]

    def nbytes(self, owner: str) -> int:
        """What the owner's contexts take."""
        with self._lock:
            return self._nbytes(self._live(owner))

    def _live(self, owner: str) -> OrderedDict[str, _Kept]:
        contexts = self._owners.get(owner, OrderedDict())
        now = self._clock()
        for handle in [handle for handle, kept in contexts.items() if kept.until <= now]:
            del contexts[handle]
        return contexts

    @staticmethod
    def _nbytes(contexts: OrderedDict[str, _Kept]) -> int:
        return sum(kept.nbytes for kept in contexts.values())
