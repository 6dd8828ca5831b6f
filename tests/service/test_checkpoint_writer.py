"""Checkpoints are written in the background: the newest wins, training never waits, a failing disk is survived."""

import errno
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from exodus_service.models.storage.checkpoint import Header, Snapshot
from exodus_service.models.storage.checkpoint_writer import Checkpointer, CheckpointWriter, GoneError


class Disk:
    """Writes once it may."""

    def __init__(self) -> None:
        self.written: list[tuple[str, int]] = []
        self.may = threading.Event()
        self.may.set()
        self.began = threading.Event()
        self.error: Exception | None = None
        self.writer = CheckpointWriter()

    def write(self, snapshot: Snapshot) -> str:
        self.began.set()
        assert self.may.wait(10)
        if self.error is not None:
            raise self.error
        self.written.append((snapshot.header.id, snapshot.sequence))
        return "written"

    def model(self, id: str = "m") -> "Model":
        return Model(self, id)


class Model:
    """A checkpointer and the results that it reports."""

    def __init__(self, disk: Disk, id: str) -> None:
        self.id = id
        self.results: list[tuple[int, str | None]] = []
        self.checkpointer = Checkpointer(disk.writer, disk.write, self.saved)

    def saved(self, sequence: int, error: Exception | None) -> None:
        self.results.append((sequence, None if error is None else str(error)))

    def submit(self, sequence: int) -> "Future[Any]":
        return self.checkpointer.submit(self.snapshot(sequence))

    def snapshot(self, sequence: int) -> Snapshot:
        header = Header(self.id, "", "", "2026", {}, {}, 0, 1, "")
        return Snapshot(header, sequence, None, {"a": torch.zeros(1)})


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.may.set()
    assert disk.writer.close(10)


def test_a_snapshot_is_on_disk_when_its_future_ends(disk: Disk) -> None:
    model = disk.model()
    assert model.submit(3).result(10) == "written"
    assert model.results == [(3, None)]
    assert disk.written == [("m", 3)]


def test_submitting_does_not_wait_for_the_disk(disk: Disk) -> None:
    disk.may.clear()
    model = disk.model()
    began = time.monotonic()
    for sequence in range(100):
        model.submit(sequence)
    assert time.monotonic() - began < 1
    assert model.results == []


def test_of_the_waiting_snapshots_of_a_model_the_newest_is_written_and_stands_for_all(disk: Disk) -> None:
    disk.may.clear()
    model, other = disk.model(), disk.model("other")
    futures = [model.submit(1)]
    disk.began.wait(10)
    futures += [model.submit(sequence) for sequence in (2, 3, 4)]
    futures.append(other.submit(9))
    futures.append(model.submit(5))
    assert model.checkpointer.pending(5) is futures[-1]
    assert model.checkpointer.pending(4) is None
    disk.may.set()
    for future in futures:
        future.result(10)
    assert disk.written == [("m", 1), ("m", 5), ("other", 9)]
    assert (model.results, other.results) == ([(1, None), (5, None)], [(9, None)])
    assert model.checkpointer.pending(5) is None


def test_a_disk_error_is_reported_and_the_next_snapshot_is_tried(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    model = disk.model()
    model.submit(1).result(10)
    disk.error = OSError(errno.ENOSPC, "No space left on device")
    with caplog.at_level(logging.ERROR):
        assert model.submit(2).exception(10) is disk.error
    assert model.results == [(1, None), (2, "[Errno 28] No space left on device")]
    assert "model m: state 2 could not be saved: [Errno 28] No space left on device" in caplog.text
    assert "Traceback" not in caplog.text
    disk.error = None
    model.submit(3).result(10)
    assert model.results[-1] == (3, None)


def test_a_bug_in_writing_is_logged_with_its_traceback_and_does_not_end_the_thread(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    model = disk.model()
    disk.error = ValueError("a bug")
    assert model.submit(1).exception(10) is disk.error
    assert model.results == [(1, "a bug")]
    assert "Traceback" in caplog.text
    disk.error = None
    model.submit(2).result(10)


def test_nothing_is_written_of_a_model_after_it_is_removed(disk: Disk) -> None:
    disk.may.clear()
    model = disk.model()
    running = model.submit(1)
    disk.began.wait(10)
    removed = model.checkpointer.remove(lambda: disk.written.append(("removed", 0)))
    late = model.submit(2)
    disk.may.set()
    removed.result(10)
    assert running.exception(10) is None
    assert isinstance(late.exception(10), GoneError)
    assert disk.written == [("m", 1), ("removed", 0)]
    assert model.results == [(1, None)]


def test_a_model_that_could_not_be_removed_is_still_saved(disk: Disk) -> None:
    def refuse() -> None:
        raise OSError("read-only")

    model = disk.model()
    assert isinstance(model.checkpointer.remove(refuse).exception(10), OSError)
    model.submit(1).result(10)
    assert disk.written == [("m", 1)]


def test_waiting_snapshots_of_a_closed_checkpointer_are_not_written(disk: Disk) -> None:
    disk.may.clear()
    model = disk.model()
    running = model.submit(1)
    disk.began.wait(10)
    waiting = model.submit(2)
    model.checkpointer.close()
    disk.may.set()
    assert running.exception(10) is None
    assert isinstance(waiting.exception(10), GoneError)
    assert disk.written == [("m", 1)]


def test_closing_finishes_the_waiting_jobs_and_takes_no_more(disk: Disk) -> None:
    disk.may.clear()
    models = [disk.model(str(index)) for index in range(3)]
    futures = [model.submit(1) for model in models]
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(disk.writer.close(10)))
    thread.start()
    time.sleep(0.02)
    disk.may.set()
    thread.join(10)
    assert ended == [True]
    assert all(future.result(0) == "written" for future in futures)
    refused: list[Future[Any]] = [models[0].submit(2), disk.writer.submit(lambda: None)]
    assert all(isinstance(future.exception(0), GoneError) for future in refused)


def test_closing_does_not_wait_for_a_disk_that_hangs(disk: Disk) -> None:
    disk.may.clear()
    disk.model().submit(1)
    assert not disk.writer.close(0.05)


def test_the_memory_of_a_written_snapshot_is_freed(disk: Disk, until: Callable[..., None]) -> None:
    gc.disable()
    try:
        model = disk.model()
        snapshot = model.snapshot(1)
        alive = weakref.ref(snapshot)
        model.checkpointer.submit(snapshot).result(10)
        del snapshot
        until(lambda: alive() is None)
    finally:
        gc.enable()
