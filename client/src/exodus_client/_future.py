"""A result that is on its way, for threads and for asyncio alike."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Future(Generic[Result]):
    """What a call returns that does not wait: `future.result()` waits in a thread, `await future` in an event loop."""

    def __init__(self, running: concurrent.futures.Future[Result], about: Callable[[], str]) -> None:
        self._running = running
        self._about = about  # what it waits for, for people

    def result(self, timeout: float | None = None) -> Result:
        """The result, waited for at most `timeout` seconds.

        Raises:
            TimeoutError: it is not there yet, says what is waited for and the last failure; the request goes on.
            ExodusError: the request failed, as in a call that waits.
        """
        seconds = math.inf if timeout is None else float(timeout)  # a lock takes no number of numpy, nor every one
        try:
            return self._running.result(None if seconds > threading.TIMEOUT_MAX else seconds)
        except TimeoutError:
            if self._running.done():  # its own, or it has come just now
                return self._running.result()
            raise TimeoutError(f"no result within {seconds:g} s of {self._about()}") from None

    def done(self) -> bool:
        """Whether `result()` would return or raise at once."""
        return self._running.done()

    def cancel(self) -> bool:
        """Drop the request if it has not been sent yet; whether it was dropped."""
        return self._running.cancel()

    def __await__(self) -> Generator[Any, None, Result]:
        return asyncio.wrap_future(self._running).__await__()
