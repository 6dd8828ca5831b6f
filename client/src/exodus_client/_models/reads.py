"""Reads of a model after its training calls: outputs, states, saves. They change nothing, and may be repeated."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from concurrent.futures import Future as Running
from typing import Any, TypeVar

from exodus_client._errors import ExodusError
from exodus_client._models.replay_log import ReplayLog
from exodus_client._models.sender import Sender
from exodus_client._threads import Future
from exodus_client._transport.connection import Connection
from exodus_client._transport.retry import is_retryable

Result = TypeVar("Result")


class StaleRead(Exception):  # noqa: N818 (no failure: a reason to read again)
    """The answer is that of a model with fewer training calls than the read follows."""

    def __init__(self, done: int) -> None:
        super().__init__(done)
        self.done = done


class Reads:
    """Those about the calls of one log; if that has ended, they raise what has ended it."""

    def __init__(self, connection: Connection, calls: ReplayLog, sender: Sender) -> None:
        self._connection = connection
        self._calls = calls
        self._sender = sender
        self._open: set[Running[Any]] = set()

    @property
    def after(self) -> int:
        """Number of the calls made so far."""
        return self._calls.last

    def submit(self, after: int, run: Callable[[], Result]) -> Future[Result]:
        """Read on another thread."""
        running = self._connection.submit(lambda: self.ask(after, run))
        self._open.add(running)
        running.add_done_callback(self._open.discard)
        return Future(running, lambda: f"a read after call {after}; {self._sender.watch}")

    def ask(self, after: int, run: Callable[[], Result]) -> Result:
        """Run when the calls up to this one are done, and again if the server has lost some or does not answer.

        `run` is one attempt; patience bounds how often it is repeated.
        """
        self._connection.session.check_process()
        budget, polling, watch = self._sender.budget(), self._sender.polling(), self._sender.watch
        read = f"a read after call {after}"
        while True:
            self._calls.wait_done(after)
            kept_after = self._calls.kept_after
            with watch.waits(read):
                try:
                    found = run()
                    watch.answered()
                    return found
                except StaleRead as behind:
                    watch.answered()
                    self._sender.rewind(behind.done, kept_after)
                    self._sender.pump()
                except ExodusError as error:
                    if is_retryable(error):
                        watch.failed(error)
                    else:
                        watch.answered()
                    if not self._sender.lost(error, kept_after):
                        if not budget.left(error):
                            watch.gave_up()
                            if (last := budget.last_of(read, error)) is not error:
                                raise last from error
                            raise
                        continue
                if not polling.left():
                    raise self._sender.stalled()

    def wait(self) -> None:
        """Wait for the answers to all that was submitted."""
        concurrent.futures.wait(tuple(self._open))


def require(after: int, done: int) -> None:
    """Raises StaleRead if not all these calls are done."""
    if done < after:
        raise StaleRead(done)
