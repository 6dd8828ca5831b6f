"""Says in the log what training waits for, where the server is silent, and when it is back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from exodus_client import _constants as defaults
from exodus_client._errors import ExodusError

_log = logging.getLogger("exodus_client")


class Watch:
    """Those who wait for a server, and since when it has answered none of them. Any thread may use it.

    After `SAY_AFTER` seconds of failures, or `SILENT_AFTER` seconds without any, a line goes to the log, at the level
    that Python shows by default; then at intervals that double.

    Args:
        path: of the model.
        patience: seconds of failures after which nobody waits any more.
        closing: set where nobody waits any more.
    """

    def __init__(self, path: str, patience: float, closing: threading.Event) -> None:
        self._path = path
        self._patience = patience
        self._closing = closing
        self._lock = threading.Lock()
        self._waiting: list[str] = []
        self._silent_since = time.monotonic()
        self._failure: ExodusError | None = None
        self._failing_since = 0.0
        self._next = 0.0  # seconds of silence of the next line; 0 before the first
        self._thread: threading.Thread | None = None

    @contextmanager
    def waits(self, what: str) -> Iterator[None]:
        """Meanwhile somebody waits for an answer."""
        with self._lock:
            if not self._waiting and self._failure is None:  # which somebody will go on to wait for otherwise
                self._silent_since = time.monotonic()
            self._waiting.append(what)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="exodus-watch", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._waiting.remove(what)

    def answered(self) -> None:
        """The server has answered somebody."""
        with self._lock:
            silent = time.monotonic() - self._silent_since
            said, self._next = self._next > 0, 0.0
            self._failure = None
            self._silent_since = time.monotonic()
        if said:
            _log.warning("%s: the server is back, after %.0f s", self._path, silent)

    def gave_up(self) -> None:
        """Whoever waited does so no more; what follows is another silence."""
        with self._lock:
            self._failure, self._next = None, 0.0
            self._silent_since = time.monotonic()

    def failed(self, error: ExodusError) -> None:
        """It has not, and why."""
        with self._lock:
            if self._failure is None:
                self._failing_since = time.monotonic()
            self._failure = error

    def __str__(self) -> str:
        """State of the server as far as it is known, for people."""
        with self._lock:
            if self._failure is not None:
                return f"{self._path}: trying again until {self._until()}; the last failure: {self._failure}"
            silent = time.monotonic() - self._silent_since
            return f"{self._path}: nothing has failed, and nothing has come for {silent:.3g} s"

    def look(self, now: float) -> None:
        """Write a line where it is time for one."""
        with self._lock:
            silent = now - self._silent_since
            first = defaults.SILENT_AFTER if self._failure is None else defaults.SAY_AFTER
            if not self._waiting or silent < (self._next or first):
                return
            self._next = 2 * silent
            what, failure, until = self._waiting[0], self._failure, self._until()
        if failure is None:
            _log.warning("%s: no answer for %.0f s to %s, and no failure; still waiting", self._path, silent, what)
        else:
            _log.warning(
                "%s: no answer for %.0f s to %s; trying again until %s. The last failure: %s",
                self._path,
                silent,
                what,
                until,
                failure,
            )

    def _until(self) -> str:
        left = self._failing_since + self._patience - time.monotonic()
        ends = time.strftime("%H:%M:%S", time.localtime(time.time() + left)) if left < 1e6 else "it answers"
        return f"{ends} (patience={self._patience:g} s)"

    def _look(self) -> None:
        idle_since = None
        while not self._closing.wait(defaults.LOOK_EVERY):
            now = time.monotonic()
            self.look(now)
            with self._lock:
                idle_since = None if self._waiting else idle_since or now
                if idle_since is not None and now - idle_since >= defaults.KEEP_IDLE:
                    self._thread = None  # in one with the look at who waits: who comes now starts another
                    return
