"""A disk error, at any system call, leaves models unchanged in memory and on disk."""

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from training_store import ADAM, NETWORK, call, create, equal, opened, state, undisturbed

from exodus_core.network import parse
from exodus_service.errors import ServiceError
from exodus_service.models.model_spec import footprint
from exodus_service.models.storage.checkpoint import Folder, Snapshot
from exodus_service.models.storage.checkpoint_writer import CheckpointWriter
from exodus_service.models.storage.state_dir import StateDir
from exodus_service.models.store import Store

CALLS = ("open", "fsync", "rename", "mkdir", "unlink", "rmdir", "stat", "listdir")


class FailingDisk:
    """The nth call of the disk fails; or, with `all_after`, every call from it on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int, all_after: bool) -> None:
        self.calls = 0
        self.failed = 0
        self._nth = nth
        self._all_after = all_after
        for name in CALLS:
            monkeypatch.setattr(os, name, self._failing(name, getattr(os, name)))

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *arguments: Any, **options: Any) -> Any:
            if not isinstance(path, int) and "models" not in str(path):
                return call(path, *arguments, **options)
            self.calls += 1
            if self.calls == self._nth or (self._all_after and self.calls > self._nth):
                self.failed += 1
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return call(path, *arguments, **options)

        return counted


async def exported(store: Store, id: str = "m") -> bytes:
    async with store.use("", id) as model:
        return b"".join((await store.export(model)).chunks)


async def save(store: Store) -> None:
    async with store.use("", "m") as model:
        await store.save(model)


async def replace(store: Store) -> None:
    body = await exported(store, "other")
    async with store.use("", "m") as model:
        await store.replace_state(model, body)


OPERATIONS: dict[str, Callable[[Store], Awaitable[Any]]] = {
    "create": lambda store: create(store, "new"),
    "delete": lambda store: store.delete("", "m"),
    "save": save,
    "replace the state": replace,
}


def writer(store: Store) -> CheckpointWriter:
    assert store._saved is not None
    return store._saved._writer


def on_disk(path: Path) -> list[tuple[str, int]]:
    """Each model and the number of its newest state."""
    folders = [Folder(found) for found in sorted((path / "models").iterdir()) if not found.name.startswith(".")]
    return [(folder.path.name, manifests[0].sequence) for folder in folders if (manifests := folder.manifests())]


async def seen(store: Store) -> Any:
    """The models as callers see them, without failed attempts to save."""
    return [info | {"durable_error": None} for info in await store.list("")]


@pytest.mark.parametrize("all_after", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_that_a_disk_error_stops_has_changed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, all_after: bool
) -> None:
    refused = 0

    async def attempt(nth: int) -> bool:
        """True if the operation had so many calls of the disk."""
        nonlocal refused
        path = tmp_path / str(nth)
        async with opened(path) as store:
            await create(store, durable_every=1000)
            await create(store, "other")
            await call(store, 1, "other")
            for number in range(1, 4):
                await call(store, number)
            before, files = await seen(store), on_disk(path)
            with monkeypatch.context() as patch:
                disk = FailingDisk(patch, nth, all_after)
                try:
                    await OPERATIONS[operation](store)
                except ServiceError as problem:
                    assert problem.code in ("storage_full", "internal_error")  # noqa: PT017 (it may succeed)
                    failed = True
                else:
                    failed = False
            if failed:
                refused += 1
                assert await seen(store) == before
                assert equal(await state(store), undisturbed(3).state())
                assert await call(store, 3) == b"answer 3"
                if not all_after:  # else not even what was written can be taken back
                    assert on_disk(path) == files
                await OPERATIONS[operation](store)
            after = await seen(store)
            there = {info["id"]: info["sequence"] for info in after}
        async with opened(path) as store:  # and so it is when the service starts anew
            again = {info["id"]: info["sequence"] for info in await store.list("")}
            assert again == there or (all_after and again == there | {"new": 0})
        return disk.failed > 0

    async def every() -> None:
        nth = 1
        while await attempt(nth):
            nth += 1
        assert nth > 2

    asyncio.run(asyncio.wait_for(every(), 120))
    assert refused > 1


def test_a_model_stays_usable_if_the_disk_refuses_to_delete_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store, durable_every=1000)
            for number in range(1, 8):
                await call(store, number)
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", refuse)
                with pytest.raises(ServiceError, match="could not be removed") as caught:
                    await store.delete("", "m")
                assert caught.value.code == "storage_full"
            assert (await store.info("", "m"))["sequence"] == 7
            await call(store, 8)
            assert equal(await state(store), undisturbed(8).state())

    asyncio.run(test())


def test_a_deleted_model_is_not_saved_again_by_a_call_under_way(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store, durable_every=1)
            for number in range(1, 5):
                await call(store, number)
            async with store.use("", "m") as model:
                deleting = asyncio.create_task(store.delete("", "m"))
                assert model.checkpointer is not None
                while not model.checkpointer.closed:
                    await asyncio.sleep(0)
                model.checkpointer.submit(model.snapshot())
                await deleting
            assert on_disk(tmp_path) == []
        async with opened(tmp_path) as store:
            assert await store.list("") == []

    asyncio.run(test())


def test_a_model_that_cannot_be_saved_is_not_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        room = 2 * footprint(parse(NETWORK), ADAM) + 1000
        async with opened(tmp_path, models_memory_bytes=room) as store:
            await create(store, durable_every=1000)
            await create(store, "other")
            await call(store, 1)
            with monkeypatch.context() as patch:
                disk = FailingDisk(patch, 1, all_after=True)
                with pytest.raises(ServiceError):
                    await create(store, "new")
                assert disk.failed
            assert equal(await state(store), undisturbed(1).state())

    asyncio.run(test())


@pytest.mark.parametrize("fails", [False, True])
def test_an_upload_does_not_stand_for_a_save_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    write, sequences = StateDir.write, list[int]()

    def writing(state_dir: StateDir, snapshot: Snapshot) -> Any:
        sequences.append(snapshot.sequence)
        if fails and sequences == [1, 0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(state_dir, snapshot)

    monkeypatch.setattr(StateDir, "write", writing)

    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store, durable_every=1)
            body = await exported(store)
            async with store.use("", "m") as model:
                held = threading.Event()
                writer(store).submit(lambda: held.wait(10))
                sequences.clear()
                await call(store, 1)  # its state waits to be written
                saving = asyncio.create_task(store.save(model))
                replacing = asyncio.create_task(store.replace_state(model, body))
                await asyncio.sleep(0.2)
                held.set()
                assert await saving == 1
                if fails:
                    with pytest.raises(ServiceError, match="No space"):
                        await replacing
                    assert (model.sequence, model.durable) == (1, 1)
                else:
                    await replacing
                    assert (model.sequence, model.durable) == (0, 0)
                assert sequences == [1, 0]

    asyncio.run(asyncio.wait_for(test(), 30))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_after_the_writer_has_stopped_are_refused_and_change_nothing(tmp_path: Path, operation: str) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store, durable_every=1000)
            await create(store, "other")
            await call(store, 1)
            before, files = await seen(store), on_disk(tmp_path)
            writer(store).close(10)
            with pytest.raises(ServiceError, match="stopping") as caught:
                await OPERATIONS[operation](store)
            assert caught.value.code == "draining"
            assert (await seen(store), on_disk(tmp_path)) == (before, files)

    asyncio.run(test())
