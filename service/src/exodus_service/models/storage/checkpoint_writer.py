"""Writes checkpoints in the background: one thread for all models, which runs one job at a time, in order.

Training never waits for the disk. If it is faster than the disk, checkpoints are skipped: of the snapshots of one model
that wait, only the newest is written, and stands for all.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from exodus_service.models.storage.checkpoint import Snapshot

logger = logging.getLogger(__name__)

#: Called after each attempt to write a snapshot, on the writer's thread: its sequence number; the error, None if it is
#: on disk.
OnSaved = Callable[[int, Exception | None], None]


class GoneError(Exception):
    """The model was deleted or evicted, or the writer is closed; nothing was written."""


@dataclass(eq=False)
class _Job:
    work: Callable[[], Any]
    futures: list[Future[Any]]

    def run(self) -> None:
        waiting = [future for future in self.futures if future.set_running_or_notify_cancel()]
        try:
            result = self.work()
        except Exception as error:  # noqa: BLE001  (whoever waits gets it, and the thread lives on)
            for future in waiting:
                future.set_exception(error)
        else:
            for future in waiting:
                future.set_result(result)


class CheckpointWriter:
    """The thread that writes to disk. Any thread may use it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: OrderedDict[object, _Job] = OrderedDict()
        self._closed = False
        # A daemon: a disk that hangs must not keep the service from ending.
        self._thread = threading.Thread(target=self._run, name="exodus-checkpoint-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Any], key: object = None) -> "Future[Any]":
        """Run `work` after all jobs before it; the future has its result, or GoneError if the writer is closed.

        A job of the same `key` that still waits is replaced: the new work runs in its place, for the futures of both.
        """
        future: Future[Any] = Future()
        with self._changed:
            waiting = None if key is None else self._jobs.get(key)
            if self._closed:
                future.set_exception(GoneError())
            elif waiting is None:
                self._jobs[future if key is None else key] = _Job(work, [future])
            else:
                waiting.work = work
                waiting.futures.append(future)
            self._changed.notify()
        return future

    def close(self, timeout: float) -> bool:
        """Finish the jobs that wait, take no more, and end; false if that takes longer than `timeout` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                _, job = self._jobs.popitem(last=False)
            job.run()
            del job  # frees the memory of its snapshot


class Checkpointer:
    """Saves the snapshots of one model in the background. Any thread may use it.

    Args:
        writer: the thread that writes.
        write: makes a snapshot the model's state on disk; raises OSError if the disk fails.
        on_saved: called with the result of each attempt.
    """

    def __init__(self, writer: CheckpointWriter, write: Callable[[Snapshot], Any], on_saved: OnSaved) -> None:
        self._writer = writer
        self._write = write
        self._on_saved = on_saved
        self._newest: tuple[int, Future[Any]] | None = None
        #: True if nothing more is written: the model was deleted or evicted.
        self.closed = False

    def submit(self, snapshot: Snapshot) -> "Future[Any]":
        """Write a snapshot. The future ends when it, or a newer one in its place, is on disk.

        The future's exception is the OSError of a failed disk, or GoneError.
        """
        future = self._writer.submit(partial(self._save, snapshot), self)
        self._newest = (snapshot.sequence, future)
        return future

    def pending(self, sequence: int) -> "Future[Any] | None":
        """The future of the newest snapshot, if it is of this sequence number and not written yet."""
        newest, future = self._newest or (None, None)
        return None if future is None or future.done() or newest != sequence else future

    def remove(self, remove: Callable[[], None]) -> "Future[Any]":
        """Remove the model from disk in its turn; if that succeeds, nothing is written after it."""

        def removed() -> None:
            remove()
            self.closed = True

        return self._writer.submit(removed)

    def close(self) -> None:
        """Write nothing more."""
        self.closed = True

    def _save(self, snapshot: Snapshot) -> Any:
        if self.closed:
            raise GoneError
        try:
            written = self._write(snapshot)
        except Exception as error:
            expected = isinstance(error, OSError)
            logger.error(
                "model %s: state %d could not be saved: %s",
                snapshot.header.id,
                snapshot.sequence,
                error,
                exc_info=not expected,
            )
            self._on_saved(snapshot.sequence, error)
            raise
        self._on_saved(snapshot.sequence, None)
        return written
