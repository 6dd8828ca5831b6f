"""How long something is tried again."""

from __future__ import annotations

import logging
import threading
import time

from ._config import Retries
from ._errors import ExodusError, reworded
from ._retry import delay

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
        self._over = now - self._since > self._seconds
        if wait is None or self._over:
            return False
        _log.info("%s: next attempt in %.2f s: %s", self._path, wait, error)
        return not self._closing.wait(wait)

    def last(self, error: ExodusError) -> ExodusError:
        """The error that ends the training after a failure for which nothing was left; says why it ended."""
        if not self._over:
            return error
        ended = f"training ended after patience={self._seconds:g} seconds of failures; resync() goes on from what is "
        return reworded(error, f"{ended}on the server. The last failure: {error}")
