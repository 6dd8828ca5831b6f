"""Threads that do not keep a program from ending.

Those of `concurrent.futures` are waited for when the interpreter ends: a program that was interrupted would stay for as
long as its calls have patience with a server that is down.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from exodus_client import _constants as defaults

Result = TypeVar("Result")


class Lanes:
    """At most `count` threads that run what is submitted. They are there while they are needed."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._changed = threading.Condition()
        self._queued: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False
        self._process = os.getpid()

    @property
    def here(self) -> bool:
        """Whether the calling thread is one of these."""
        return threading.current_thread() in self._threads

    @property
    def closed(self) -> bool:
        """Whether these take nothing any more."""
        return self._closed

    def submit(self, run: Callable[[], Result]) -> Future[Result]:
        """Run it when a thread is free.

        Raises:
            RuntimeError: these are closed, or there is no thread, and none can be started.
        """
        future: Future[Result] = Future()
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
            del work, future, run  # what it held is let go of before the next comes

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: bool(self._queued) or self._closed, defaults.KEEP_IDLE)
            self._idle -= 1
            if self._queued:
                return self._queued.popleft()
            self._threads.discard(threading.current_thread())
            self._changed.notify_all()
            return None
