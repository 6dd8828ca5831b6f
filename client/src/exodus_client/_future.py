"""A result that is on its way, for threads and for asyncio alike."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Generator
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Future(Generic[Result]):
    """What a call returns that does not wait: `future.result()` waits in a thread, `await future` in an event loop."""

    def __init__(self, running: concurrent.futures.Future[Result]) -> None:
        self._running = running

    def result(self, timeout: float | None = None) -> Result:
        """The result, waited for at most `timeout` seconds.

        Raises:
            TimeoutError: it is not there yet; the request goes on.
            ExodusError: the request failed, as in a call that waits.
        """
        return self._running.result(None if timeout is None else float(timeout))  # a lock takes no number of numpy

    def done(self) -> bool:
        """Whether `result()` would return or raise at once."""
        return self._running.done()

    def cancel(self) -> bool:
        """Drop the request if it has not been sent yet; whether it was dropped."""
        return self._running.cancel()

    def __await__(self) -> Generator[Any, None, Result]:
        return asyncio.wrap_future(self._running).__await__()
