"""How much is kept for a server that could lose it: beyond that it is asked to save."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from exodus_client import _constants as defaults
from exodus_client._errors import ExodusError
from exodus_client._models.replay_log import Calls

_log = logging.getLogger("exodus_client")


class Bound:
    """The bound on what a log keeps.

    Args:
        calls: the log.
        save: has the server save, and returns how many calls are durable then. Raises ExodusError.
        path: of the model.
    """

    def __init__(self, calls: Calls, save: Callable[[], int], path: str) -> None:
        self._calls = calls
        self._save = save
        self._path = path
        self._saving = threading.Lock()
        self._save_again = 0.0
        self._has_dropped = False

    def keep(self) -> None:
        """Have the server save where too much is kept; where it does not, drop what is far too much."""
        most = defaults.MAX_KEPT_BYTES
        if self._calls.durable is None or self._calls.nbytes <= most:
            return
        with self._saving:  # the others wait: calls must not come faster than they are saved
            if self._calls.nbytes > most and time.monotonic() >= self._save_again:
                self._have_saved()
            # A full disk stops no training there, and must not fill the memory here.
            dropped = self._calls.drop(2 * most)
            if dropped and not self._has_dropped:
                self._has_dropped = True
                _log.warning(
                    "%s: the server does not save, and %d bytes are as much as is kept here: calls from %d on would "
                    "be lost in a crash",
                    self._path,
                    2 * most,
                    dropped,
                )

    def _have_saved(self) -> None:
        try:
            self._calls.kept(self._save())
        except ExodusError as error:
            self._save_again = time.monotonic() + defaults.SAVE_AGAIN
            kept = self._calls.nbytes
            _log.warning("%s: calls of %d bytes are kept until the server saves: %s", self._path, kept, error)
