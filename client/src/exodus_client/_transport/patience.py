"""How long something is tried again."""

from __future__ import annotations

import logging
import threading
import time

from exodus_client import _constants as defaults
from exodus_client._config import Retries
from exodus_client._errors import ExodusError, reworded
from exodus_client._transport.retry import backoff, delay

_log = logging.getLogger("exodus_client")


class Patience:
    """The waits after failures in a row, for some time in all."""

    def __init__(self, retries: Retries, seconds: float, closing: threading.Event, path: str) -> None:
        self._retries = retries
        self._seconds = seconds
        self._closing = closing
        self._path = path
        self._since: float | None = None
        self._failures = 0
        self._over = False

    def left(self, error: ExodusError) -> bool:
        """Wait after a failure; whether there is to be another attempt."""
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

    def last_of(self, question: str, error: ExodusError) -> ExodusError:
        """The error of a question after a failure for which nothing was left; says why it is not asked any more."""
        return self._ended(error, f"{question} was given up", "")

    def _ended(self, error: ExodusError, what: str, advice: str) -> ExodusError:
        if not self._over:
            return error
        reason = f"after patience={self._seconds:g} seconds of failures"
        return reworded(error, f"{what} {reason}{advice}. The last failure: {error}")


class Spacing:
    """The waits of somebody who asks again though the server has answered: it is behind, or not done yet.

    The first time it is asked again at once. What counts against patience is the time that is waited here: a server
    that works, and holds its answer back meanwhile, may take any time.
    """

    def __init__(self, retries: Retries, seconds: float, closing: threading.Event) -> None:
        self._retries = retries
        self._seconds = seconds
        self._closing = closing
        self._asked = 0
        self.waited = 0.0

    def left(self, *, took: float = 0.0, at_least: float = 0.0) -> bool:
        """Wait before it is asked again; whether that is to be done.

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
