"""Futures, and the daemon threads that fill them.

The threads of `concurrent.futures` are joined when the interpreter exits: an interrupted program would stay for as long
as its calls wait for a server that is down.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future as Running
from typing import Any, Generic, TypeVar

from exodus_client import _constants as defaults

Result = TypeVar("Result")


class Future(Generic[Result]):
    """Result of a call that does not wait: `future.result()` waits in a thread, `await future` in an event loop."""

    def __init__(self, running: Running[Result], about: Callable[[], str]) -> None:
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
        """True if `result()` would return or raise at once."""
        return self._running.done()

    def cancel(self) -> bool:
        """Cancel the request if it has not been sent yet; True if it was cancelled."""
        return self._running.cancel()

    def __await__(self) -> Generator[Any, None, Result]:
        return asyncio.wrap_future(self._running).__await__()


class DaemonThreadPool:
    """At most `count` daemon threads, started when needed, which end when idle."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._changed = threading.Condition()
        self._queued: deque[tuple[Running[Any], Callable[[], Any]]] = deque()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False
        self._process = os.getpid()

    @property
    def here(self) -> bool:
        """True if the calling thread is one of these."""
        return threading.current_thread() in self._threads

    @property
    def closed(self) -> bool:
        """True if nothing can be submitted any more."""
        return self._closed

    def submit(self, run: Callable[[], Result]) -> Running[Result]:
        """Run it when a thread is free.

        Raises:
            RuntimeError: these are closed, or there is no thread, and none can be started.
        """
        future: Running[Result] = Running()
        with self._changed:
            if self._closed:
                raise RuntimeError("cannot be used after shutdown")
            if len(self._queued) >= self._idle and len(self._threads) < self._count:
                self._start()
            self._queued.append((future, run))
            self._changed.notify()
        return future

    def close(self, *, wait: bool = True) -> None:
        """Drop what was not begun, and wait for the rest; not for the thread that calls this."""
        if os.getpid() != self._process:
            return  # the threads are in the process that this one was forked from
        with self._changed:
            self._closed = True
            dropped = list(self._queued)
            self._queued.clear()
            self._changed.notify_all()
        for future, _ in dropped:
            future.cancel()
            future.set_running_or_notify_cancel()
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: not self._threads - {threading.current_thread()})

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more, or the interpreter ends
            if not self._threads:
                raise
        else:
            self._threads.add(thread)  # before it looks for work, which takes the lock

    def _work(self) -> None:
        while (work := self._next()) is not None:
            future, run = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(run())
                except BaseException as error:  # noqa: BLE001 - raised by the future
                    future.set_exception(error)
            del work, future, run  # releases what it held before the next comes

    def _next(self) -> tuple[Running[Any], Callable[[], Any]] | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: bool(self._queued) or self._closed, defaults.KEEP_IDLE)
            self._idle -= 1
            if self._queued:
                return self._queued.popleft()
            self._threads.discard(threading.current_thread())
            self._changed.notify_all()
            return None


def within(seconds: float | None, run: Callable[[], Result]) -> Result:
    """Run on a thread of its own, which is left behind if it takes longer than so many seconds; None for no bound.

    Raises:
        TimeoutError: it took longer.
    """
    if seconds is None:
        return run()
    future: Running[Result] = Running()

    def work() -> None:
        try:
            future.set_result(run())
        except BaseException as error:  # noqa: BLE001 - raised by the future
            future.set_exception(error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="exodus-within", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # its own, or it has come just now
            return future.result()
        raise TimeoutError(f"timed out after {seconds:.3g} s") from None
