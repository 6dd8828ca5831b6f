"""Contexts: activations that forward calls save for their backward calls, under handles that cannot be guessed.

An LRU cache per owner, bounded in bytes; contexts expire if they are not used for a while.
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
class _Context:
    value: object
    nbytes: int
    group: str
    until: float


class ForwardContexts:
    """Contexts of all owners. Any thread may use it.

    Args:
        max_bytes: of one owner.
        ttl: seconds until an unused context expires.
        clock: seconds; for tests.
        least: bytes that each context counts at least.
    """

    def __init__(self, max_bytes: int, ttl: float, clock: Callable[[], float] = time.monotonic, least: int = 0) -> None:
        self.max_bytes = max_bytes
        self._least = min(least, max_bytes)
        self.ttl = ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._owners: dict[str, OrderedDict[str, _Context]] = {}

    def put(self, owner: str, value: object, nbytes: int, group: str = "") -> str:
        """Save a value; returns its handle. `group` names its model, with which it can be forgotten.

        Raises:
            ServiceError: too_large: it exceeds the bound of an owner by itself.
        """
        if nbytes > self.max_bytes:
            raise ServiceError(
                "too_large",
                f"the context takes {nbytes} bytes, those of one owner may take {self.max_bytes} "
                "(EXODUS_CONTEXT_BYTES); send a smaller batch, or the inputs again instead of the context",
            )
        handle = secrets.token_urlsafe(24)
        with self._lock:
            contexts = self._owners.setdefault(owner, self._live(owner))
            contexts[handle] = _Context(value, max(nbytes, self._least), group, self._clock() + self.ttl)
            while self._nbytes(contexts) > self.max_bytes:
                contexts.popitem(last=False)
        return handle

    def get(self, owner: str, handle: str, group: str = "") -> object:
        """The value, which becomes the most recently used.

        Raises:
            ServiceError: context_expired: it has expired, was evicted, or is of another owner or group.
        """
        with self._lock:
            contexts = self._live(owner)
            context = contexts.get(handle)
            if context is None or context.group != group:
                raise expired(f"the context {handle[:64]!r} has expired; send the inputs again", handle)
            contexts.move_to_end(handle)
            context.until = self._clock() + self.ttl
            return context.value

    def release(self, owner: str, handle: str) -> None:
        """Free a context; does nothing if there is none of this handle."""
        with self._lock:
            self._owners.get(owner, OrderedDict()).pop(handle, None)

    def forget(self, owner: str, group: str) -> None:
        """Free all contexts of a group."""
        with self._lock:
            contexts = self._live(owner)
            for handle in [handle for handle, context in contexts.items() if context.group == group]:
                del contexts[handle]

    def sweep(self) -> None:
        """Free expired contexts, whose memory would otherwise stay until the next call of their owner."""
        with self._lock:
            for owner in list(self._owners):
                if not self._live(owner):
                    del self._owners[owner]

    def nbytes(self, owner: str) -> int:
        """Bytes of an owner's contexts."""
        with self._lock:
            return self._nbytes(self._live(owner))

    def _live(self, owner: str) -> OrderedDict[str, _Context]:
        contexts = self._owners.get(owner, OrderedDict())
        now = self._clock()
        for handle in [handle for handle, context in contexts.items() if context.until <= now]:
            del contexts[handle]
        return contexts

    @staticmethod
    def _nbytes(contexts: OrderedDict[str, _Context]) -> int:
        return sum(context.nbytes for context in contexts.values())
