"""Retries: which failures are worth another attempt, after which waits, for how long in all, and what the log says."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from exodus_client import _constants as defaults
from exodus_client._config import Retries
from exodus_client._errors import APIConnectionError, APIStatusError, ExodusError, reworded

_log = logging.getLogger("exodus_client")

_ALWAYS = frozenset({408, 429})
_NEVER_UNASKED = frozenset({501, 507})


def is_retryable(error: ExodusError) -> bool:
    """True if the same request may succeed later: by what the server says, otherwise by the status."""
    if isinstance(error, APIStatusError):
        status = error.status_code
        if status in _ALWAYS:
            return True
        if status == 409 or status in _NEVER_UNASKED:
            return error.retryable is True
        return status >= 500 and error.retryable is not False
    return isinstance(error, APIConnectionError)


def delay(attempt: int, error: ExodusError, retries: Retries) -> float | None:
    """Seconds to wait after the failure of an attempt (0, 1, ...), or None if the error is to be raised."""
    if attempt >= retries.count or not is_retryable(error):
        return None
    wait = backoff(attempt, retries)
    wanted = error.retry_after if isinstance(error, APIStatusError) else None
    if wanted is None:
        return wait
    return None if wanted > retries.max_retry_after else min(max(wanted, wait), defaults.LONGEST_WAIT)


def backoff(attempt: int, retries: Retries) -> float:
    """Seconds to wait after attempt 0, 1, ... before the next, if nobody asks for more."""
    # The exponent is bounded because 2.0**1024 is an OverflowError, and max_delay is reached long before.
    longest = min(retries.max_delay, retries.first_delay * 2.0 ** min(attempt, 60))
    return longest * (1 - retries.jitter * random.random())


def parse_retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, a number or an HTTP date; None if it is absent or neither."""
    if value is None:
        return None
    if value.strip().isdecimal() and value.isascii():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        # A date without a zone is in UTC, as all HTTP dates are.
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)
    except (ValueError, OverflowError):  # OverflowError: a year, or a zone, of many digits
        return None
    return max(0.0, seconds.total_seconds())


class RetryBudget:
    """Waits after failures in a row, bounded in all by a number of seconds."""

    def __init__(self, retries: Retries, seconds: float, closing: threading.Event, path: str) -> None:
        self._retries = retries
        self._seconds = seconds
        self._closing = closing
        self._path = path
        self._since: float | None = None
        self._failures = 0
        self._over = False

    def left(self, error: ExodusError) -> bool:
        """Wait after a failure; True if there is to be another attempt."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        wait = delay(self._failures, error, self._retries)
        self._failures += 1
        left = self._since + self._seconds - now
        self._over = left <= 0
        if wait is None or self._over:
            return False
        wait = min(wait, left)  # one attempt more when it ends
        _log.info("%s: next attempt in %.2f s: %s", self._path, wait, error)
        return not self._closing.wait(wait)

    def last(self, error: ExodusError) -> ExodusError:
        """The error that ends the training after a failure for which nothing was left; says why it ended."""
        return self._ended(error, "training ended", "; resync() goes on from what is on the server")

    def last_of(self, read: str, error: ExodusError) -> ExodusError:
        """The error of a read after a failure for which nothing was left; says why it is given up."""
        return self._ended(error, f"{read} was given up", "")

    def _ended(self, error: ExodusError, what: str, advice: str) -> ExodusError:
        if not self._over:
            return error
        reason = f"after patience={self._seconds:g} seconds of failures"
        return reworded(error, f"{what} {reason}{advice}. The last failure: {error}")


class Polling:
    """Waits between repetitions of a request that the server has answered: it is behind, or not done yet.

    The first repetition comes at once. The time that is waited here counts against patience; a server that works, and
    holds its answer back meanwhile, may take any time.
    """

    def __init__(self, retries: Retries, seconds: float, closing: threading.Event) -> None:
        self._retries = retries
        self._seconds = seconds
        self._closing = closing
        self._asked = 0
        self.waited = 0.0

    def left(self, *, took: float = 0.0, at_least: float = 0.0) -> bool:
        """Wait before the next repetition; True if there is to be one.

        Args:
            took: seconds from the last question to its answer, which count as waited already.
            at_least: seconds that the server asks to wait.
        """
        pace = max(defaults.SOONEST, backoff(self._asked - 1, self._retries)) if self._asked else 0.0
        self._asked += 1
        wait = min(max(pace, at_least) - took, defaults.LONGEST_WAIT)
        if wait > 0:
            self.waited += wait
        return self.waited <= self._seconds and not self._closing.wait(max(0.0, wait))


class Watch:
    """Log lines about a silent server: what waits for it, since when, and that it is back. Any thread may use it.

    After `SAY_AFTER` seconds of failures, or `SILENT_AFTER` seconds without any, a line goes to the log, at the level
    that Python shows by default; then at intervals that double.

    Args:
        path: of the model.
        patience: seconds of failures after which nobody waits any more.
        closing: set if nobody waits any more.
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
        """Write a line if it is time for one."""
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
