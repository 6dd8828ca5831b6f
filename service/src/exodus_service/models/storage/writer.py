"""The thread that writes: snapshots, and whatever else must not meet them on disk, one after the other.

Of several snapshots of a model that wait, the newest is written and stands for all of them.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from exodus_service.models.model import Snapshot

logger = logging.getLogger(__name__)


class GoneError(Exception):
    """The model of a snapshot was deleted, or the service ends; nothing was written."""


@dataclass(eq=False)
class _Job:
    """A snapshot to be written, or something else to be done."""

    futures: list[Future[Any]]
    snapshot: Snapshot | None = None
    work: Callable[[], Any] | None = None

    def fail(self, error: Exception) -> None:
        for future in self.futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


class Saver:
    """Writes in the background. Any thread may use it.

    Args:
        write: puts one snapshot on disk for good; raises OSError where the disk says no.
    """

    def __init__(self, write: Callable[[Snapshot], object]) -> None:
        self._write = write
        self._changed = threading.Condition()
        self._jobs: OrderedDict[object, _Job] = OrderedDict()
        self._closed = False
        # A daemon: a disk that hangs must not keep the service from ending.
        self._thread = threading.Thread(target=self._run, name="exodus-saver", daemon=True)
        self._thread.start()

    def submit(self, snapshot: Snapshot) -> "Future[Any]":
        """Have a snapshot written. The future ends when it, or a newer one in its place, is on disk for good.

        It has the OSError of a disk that says no, or a GoneError. Nothing is written of a model that is gone. A
        snapshot of which the model is not told is written by itself: what becomes of it says nothing of others.
        """
        future: Future[Any] = Future()
        key: object = snapshot.model if snapshot.told else future
        with self._changed:
            waiting = self._jobs.get(key)
            if self._closed:
                future.set_exception(GoneError())
            elif waiting is None:
                self._jobs[key] = _Job([future], snapshot)
            else:
                waiting.snapshot = snapshot
                waiting.futures.append(future)
            snapshot.model.saving = (snapshot.progress.sequence, future) if snapshot.told else None
            self._changed.notify()
        return future

    def run(self, work: Callable[[], Any]) -> "Future[Any]":
        """Have something done in its turn; the future has what comes of it, or a GoneError."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                future.set_exception(GoneError())
            else:
                self._jobs[future] = _Job([future], work=work)
                self._changed.notify()
        return future

    def close(self, timeout: float) -> bool:
        """Write what waits, take nothing more, and end; false where it took longer than `timeout` seconds."""
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
            try:
                result = job.work() if job.work is not None else self._save(job.snapshot)
            except Exception as error:  # noqa: BLE001  (whoever waits is told, and the thread lives on)
                job.fail(error)
            else:
                for future in job.futures:
                    if future.set_running_or_notify_cancel():
                        future.set_result(result)
            del job  # with it the memory of the snapshot

    def _save(self, snapshot: Snapshot | None) -> object:
        assert snapshot is not None
        model, sequence = snapshot.model, snapshot.progress.sequence
        if model.gone:
            raise GoneError
        try:
            if any(tensor.is_cuda for tensor in snapshot.tensors.values()):
                torch.cuda.synchronize()  # the clones are made on the stream of another thread
            written = self._write(snapshot)
        except Exception as error:
            if snapshot.told:
                model.durable_error = f"state {sequence} could not be saved: {error}"
            if isinstance(error, OSError):
                logger.error("model %s: state %d could not be saved: %s", model.id, sequence, error)
            else:
                logger.exception("model %s: state %d could not be saved", model.id, sequence)
            raise
        if snapshot.told:
            model.durable, model.durable_error = sequence, None
        return written
