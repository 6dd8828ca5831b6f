"""The thread that writes: the newest state wins, whoever trains does not wait, and a disk that says no is survived."""

import errno
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import pytest
import torch

from exodus_service.models.model import Model, Snapshot
from exodus_service.models.progress import Progress
from exodus_service.models.storage.checkpoint import Header
from exodus_service.models.storage.writer import GoneError, Saver

HEADER = Header("m", "", "", "2026", {}, {}, 0, 1, "")


class Stub:
    """What the saver sees of a model."""

    def __init__(self, id: str = "m") -> None:
        self.id = id
        self.gone = False
        self.durable: int | None = 0
        self.durable_error: str | None = None
        self.saving: object = None


def snapshot(model: Stub, sequence: int, **options: Any) -> Snapshot:
    return Snapshot(cast(Model, model), HEADER, Progress(sequence), {"a": torch.zeros(1)}, **options)


class Disk:
    """Writes when it may."""

    def __init__(self) -> None:
        self.written: list[tuple[str, int]] = []
        self.may = threading.Event()
        self.may.set()
        self.began = threading.Event()
        self.error: Exception | None = None

    def write(self, snapshot: Snapshot) -> str:
        self.began.set()
        assert self.may.wait(10)
        if self.error is not None:
            raise self.error
        self.written.append((snapshot.model.id, snapshot.progress.sequence))
        return "written"


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def saver(disk: Disk) -> Any:
    saver = Saver(disk.write)
    yield saver
    disk.may.set()
    assert saver.close(10)


def test_a_snapshot_is_durable_when_its_future_ends(saver: Saver, disk: Disk) -> None:
    model = Stub()
    assert saver.submit(snapshot(model, 3)).result(10) == "written"
    assert (model.durable, model.durable_error) == (3, None)
    assert disk.written == [("m", 3)]


def test_submitting_does_not_wait_for_the_disk(saver: Saver, disk: Disk) -> None:
    disk.may.clear()
    model = Stub()
    began = time.monotonic()
    for sequence in range(100):
        saver.submit(snapshot(model, sequence))
    assert time.monotonic() - began < 1
    assert model.durable == 0


def test_of_those_that_wait_the_newest_is_written_and_stands_for_all(saver: Saver, disk: Disk) -> None:
    disk.may.clear()
    model, other = Stub(), Stub("other")
    futures = [saver.submit(snapshot(model, 1))]
    disk.began.wait(10)
    futures += [saver.submit(snapshot(model, sequence)) for sequence in (2, 3, 4)]
    futures.append(saver.submit(snapshot(other, 9)))
    futures.append(saver.submit(snapshot(model, 5)))
    disk.may.set()
    for future in futures:
        future.result(10)
    assert disk.written == [("m", 1), ("m", 5), ("other", 9)]
    assert (model.durable, other.durable) == (5, 9)


def test_a_disk_that_says_no_is_told_and_tried_again(
    saver: Saver, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    model = Stub()
    saver.submit(snapshot(model, 1)).result(10)
    disk.error = OSError(errno.ENOSPC, "No space left on device")
    with caplog.at_level(logging.ERROR):
        error = saver.submit(snapshot(model, 2)).exception(10)
    assert isinstance(error, OSError)
    assert model.durable == 1
    assert "state 2 could not be saved" in (model.durable_error or "")
    assert "No space left" in (model.durable_error or "")
    assert "model m" in caplog.text
    disk.error = None
    saver.submit(snapshot(model, 3)).result(10)
    assert (model.durable, model.durable_error) == (3, None)


def test_a_bug_in_writing_does_not_end_the_thread(saver: Saver, disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    model = Stub()
    disk.error = ValueError("a bug")
    assert isinstance(saver.submit(snapshot(model, 1)).exception(10), ValueError)
    assert "a bug" in (model.durable_error or "")
    assert "Traceback" in caplog.text
    disk.error = None
    saver.submit(snapshot(model, 2)).result(10)


def test_a_state_that_replaces_another_is_not_told_to_the_model(saver: Saver, disk: Disk) -> None:
    model = Stub()
    saver.submit(snapshot(model, 7, told=False)).result(10)
    assert model.durable == 0
    disk.error = OSError("no")
    assert saver.submit(snapshot(model, 8, told=False)).exception(10)
    assert model.durable_error is None


def test_nothing_more_is_written_of_a_model_that_is_gone(saver: Saver, disk: Disk) -> None:
    disk.may.clear()
    model = Stub()
    running = saver.submit(snapshot(model, 1))
    disk.began.wait(10)
    waiting = saver.submit(snapshot(model, 2))

    model.gone = True
    late = saver.submit(snapshot(model, 3))
    removed = saver.run(lambda: disk.written.append(("removed", 0)))
    disk.may.set()
    removed.result(10)
    assert running.exception(10) is None
    assert isinstance(waiting.exception(10), GoneError)
    assert isinstance(late.exception(10), GoneError)
    assert disk.written == [("m", 1), ("removed", 0)]


def test_closing_writes_what_waits_and_takes_nothing_more(disk: Disk) -> None:
    saver = Saver(disk.write)
    disk.may.clear()
    models = [Stub(str(index)) for index in range(3)]
    futures = [saver.submit(snapshot(model, 1)) for model in models]
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(saver.close(10)))
    thread.start()
    time.sleep(0.02)
    disk.may.set()
    thread.join(10)
    assert ended == [True]
    assert all(future.result(0) == "written" for future in futures)
    refused: list[Future[Any]] = [saver.submit(snapshot(models[0], 2)), saver.run(lambda: None)]
    assert all(isinstance(future.exception(0), GoneError) for future in refused)


def test_closing_does_not_wait_for_a_disk_that_hangs(disk: Disk) -> None:
    saver = Saver(disk.write)
    disk.may.clear()
    saver.submit(snapshot(Stub(), 1))
    assert not saver.close(0.05)
    disk.may.set()
    assert saver.close(10)


def test_the_memory_of_a_snapshot_is_let_go(saver: Saver, disk: Disk, until: Callable[..., None]) -> None:
    gc.disable()
    try:
        taken = snapshot(Stub(), 1)
        alive = weakref.ref(taken)
        saver.submit(taken).result(10)
        del taken
        until(lambda: alive() is None)
    finally:
        gc.enable()
