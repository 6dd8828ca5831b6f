"""A bound on the time of what knows none itself: the name service, and transports that are not ours."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def within(seconds: float | None, run: Callable[[], Result]) -> Result:
    """The result of `run`, on a thread of its own, which it is left to where it takes longer; None for no bound.

    Raises:
        TimeoutError: it took longer.
    """
    if seconds is None:
        return run()
    future: Future[Result] = Future()

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
