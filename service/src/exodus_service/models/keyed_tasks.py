"""Runs one task at a time per key; a started task finishes even if its caller is cancelled. On one event loop."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class KeyedTasks:
    """Tasks that run, by key."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}

    async def wait(self, key: Hashable) -> bool:
        """Wait for the task of a key, whatever its result; false if there is none."""
        task = self._tasks.get(key)
        if task is not None:
            await asyncio.wait({task})
        return task is not None

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work` after the tasks of the same key, and return its result."""
        while await self.wait(key):
            pass
        task = asyncio.create_task(work())
        self._tasks[key] = task

        def forget(task: asyncio.Task[T]) -> None:
            del self._tasks[key]
            if not task.cancelled():
                task.exception()  # marked as retrieved, in case the caller was cancelled

        task.add_done_callback(forget)
        return await asyncio.shield(task)

    async def drain(self, timeout: float) -> None:
        """Wait for all tasks, `timeout` seconds at most."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=timeout)
