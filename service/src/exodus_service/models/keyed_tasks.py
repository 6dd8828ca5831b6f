"""What is done to one thing is done in turn, each to its end, even where the caller leaves. On one event loop."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Moves:
    """The work that is under way, by what it is done to."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}

    async def ended(self, key: Hashable) -> bool:
        """Wait for what is being done; whether there was something. Says nothing of how it ended."""
        task = self._tasks.get(key)
        if task is not None:
            await asyncio.wait({task})
        return task is not None

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something after what is being done to the same, and wait for it."""
        while await self.ended(key):
            pass
        task = asyncio.create_task(work())
        self._tasks[key] = task

        def forget(task: asyncio.Task[T]) -> None:
            del self._tasks[key]
            if not task.cancelled():
                task.exception()  # seen, even where nobody waits for it any more

        task.add_done_callback(forget)
        return await asyncio.shield(task)

    async def settle(self, timeout: float) -> None:
        """Wait for all that is under way, `timeout` seconds at most."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=timeout)
