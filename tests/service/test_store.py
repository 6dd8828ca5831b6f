"""The store of models: creation, training, saving, loading, eviction, deletion, uploads."""

import asyncio
import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_store import ADAM, LOSS, NETWORK, apply, batch, call, create, equal, opened, state, undisturbed

from exodus_core.network import parse
from exodus_service.errors import ServiceError
from exodus_service.models.model import Model
from exodus_service.models.model_spec import footprint
from exodus_service.models.sequencer import CachedResponse, Step
from exodus_service.models.storage import checkpoint
from exodus_service.models.storage.checkpoint import Folder, Header, Snapshot
from exodus_service.models.storage.state_dir import StateDir, StateDirError
from exodus_service.models.storage.state_file import decode_state, encode_state
from exodus_service.models.store import Store
from exodus_service.settings import Settings

FOOTPRINT = footprint(parse(NETWORK), ADAM)


async def problem(awaitable: Awaitable[Any]) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await awaitable
    return caught.value


async def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        await asyncio.sleep(0.002)


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test, 60)

    asyncio.run(bounded())


# Creation.


class SlowDisk:
    """After `begin`, each sync of a file sets `began` and waits for `may`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._fsync = os.fsync
        self.began, self.may = threading.Event(), threading.Event()

    def begin(self) -> None:
        self._monkeypatch.setattr(os, "fsync", self._wait)

    def _wait(self, handle: int) -> None:
        self.began.set()
        assert self.may.wait(10)
        self._fsync(handle)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


def test_a_new_model_is_durable_and_described(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path / "s") as store:
            info = await create(store, name="label", seed=3, durable_every=5)
            assert {name: info[name] for name in ("id", "name", "sequence", "durable", "durable_every", "seed")} == {
                "id": "m",
                "name": "label",
                "sequence": 0,
                "durable": 0,
                "durable_every": 5,
                "seed": 3,
            }
            assert info["network"] == parse(NETWORK).data
            assert info["optimizer"]["lr"] == ADAM["lr"]
            assert info["parameters"][0] == {"name": "0.weight", "shape": [7, 5]}
            assert info["nbytes"] == parse(NETWORK).nbytes
            assert info["in_memory"]
            assert info["created"].endswith("+00:00")
            assert Folder(tmp_path / "s" / "models" / "m").read().manifest.sequence == 0

    run(test())


def test_without_a_state_folder_models_live_in_memory_only(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with opened() as store:
            assert "in memory only" in caplog.text
            assert (await create(store))["durable"] is None
            for number in range(1, 5):
                await call(store, number)
            assert equal(await state(store), undisturbed(4).state())
            async with store.use("", "m") as model:
                assert await store.save(model) is None
            assert [info["sequence"] for info in await store.list("")] == [4]
            await store.delete("", "m")
            assert (await problem(call(store, 5))).code == "not_found"

    run(test())


def test_creation_is_idempotent_and_a_different_request_for_the_id_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            assert (await store.create("", id="m", network=NETWORK, optimizer=ADAM)).fresh
            await call(store, 1)
            again = await store.create("", id="m", network=NETWORK, optimizer=ADAM)
            assert not again.fresh
            assert again.info["sequence"] == 1
            weights = torch.zeros(again.info["nbytes"] // 4)
            others: list[dict[str, Any]] = [
                {"seed": 1},
                {"optimizer": {"kind": "sgd"}},
                {"name": "x"},
                {"weights": weights},
            ]
            for other in others:
                assert (await problem(create(store, **other))).code == "model_exists"
        async with opened(tmp_path) as store:
            again = await store.create("", id="m", network=NETWORK, optimizer=ADAM)
            assert not again.fresh
            assert not again.info["in_memory"]
            assert (await problem(create(store, seed=1))).code == "model_exists"

    run(test())


def test_concurrent_creations_of_one_id_create_one_model(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            made = await asyncio.gather(*(store.create("", id="m", network=NETWORK, optimizer=ADAM) for _ in range(6)))
            assert sorted(created.fresh for created in made) == [False] * 5 + [True]

    run(test())


def test_weights_can_be_given() -> None:
    async def test() -> None:
        async with opened() as store:
            weights = torch.rand(parse(NETWORK).nbytes // 4)
            await create(store, weights=weights)
            async with store.use("", "m") as model:
                assert torch.equal(model.trainer.weights(), weights)
            wrong = await problem(create(store, "n", weights=weights[1:]))
            assert (wrong.code, wrong.faults[0].pointer) == ("invalid", "/tensors/weights")
            assert len(await store.list("")) == 1

    run(test())


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"network": {"input_shape": [5], "layers": [{"kind": "lif", "alpha": 2}]}}, "/params/network/layers/0/alpha"),
        ({"network": None}, "/params/network"),
        ({"network": {"input_shape": [5], "layers": [{"kind": "lif", "alpha": 0.5}]}}, "/params/network"),
        ({"optimizer": {"kind": "adam", "lr": -1}}, "/params/optimizer/lr"),
        ({"optimizer": 3}, "/params/optimizer"),
        ({"seed": -1}, "/params/seed"),
        ({"seed": True}, "/params/seed"),
        ({"durable_every": 0}, "/params/durable_every"),
        ({"name": "x" * 300}, "/params/name"),
    ],
)
def test_an_invalid_argument_is_named(options: dict[str, Any], pointer: str) -> None:
    async def test() -> None:
        async with opened() as store:
            wrong = await problem(create(store, **options))
            assert wrong.code == "invalid"
            assert wrong.faults[0].pointer == pointer
            assert await store.list("") == []

    run(test())


@pytest.mark.parametrize("id", ["", ".", "..", "../m", "a/b", "a\x00b", "m.owner", "x" * 65, "ä", "m\n", 3])
def test_an_id_can_never_be_a_path(tmp_path: Path, id: Any) -> None:
    async def test() -> None:
        async with opened(tmp_path / "s") as store:
            assert (await problem(create(store, id))).code == "invalid"
            assert (await problem(store.info("", id))).code == "not_found"
            assert (await problem(store.delete("", id))).code == "not_found"
            assert (await problem(call(store, 1, id))).code == "not_found"
        assert {path.name for path in tmp_path.iterdir()} == {"s"}
        assert list((tmp_path / "s" / "models").iterdir()) == []

    run(test())


def test_a_model_too_large_is_refused_before_it_is_built() -> None:
    async def test() -> None:
        network = {"input_shape": [100_000], "layers": [{"kind": "linear", "out_features": 100_000}]}
        async with opened() as store:
            wrong = await problem(create(store, network=network))
            assert wrong.code == "too_large"
            assert "40000400000 bytes" in wrong.detail
        async with opened(models_memory_bytes=FOOTPRINT - 1) as store:
            assert (await problem(create(store))).code == "out_of_memory"

    run(test())


def test_owners_are_kept_apart(tmp_path: Path) -> None:
    alice, bob = "a" * 64, "b" * 64

    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store, owner=alice)
            assert (await problem(call(store, 1, owner=bob))).code == "not_found"
            assert (await problem(store.info(bob, "m"))).code == "not_found"
            assert (await problem(store.delete(bob, "m"))).code == "not_found"
            assert await store.list(bob) == []
            await create(store, owner=bob, seed=1)  # the same id
            await create(store)
            await call(store, 1, owner=alice)
            assert [info["sequence"] for info in await store.list(bob)] == [0]
            await store.delete(alice, "m")
        async with opened(tmp_path) as store:
            assert await store.list(alice) == []
            assert [info["seed"] for info in await store.list(bob)] == [1]
            assert [info["seed"] for info in await store.list("")] == [0]

    run(test())


# Training, saving and loading.


def test_a_restart_restores_gradients_optimiser_generator_and_cached_responses_bit_by_bit(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store)
            for number in range(1, 8):  # the last one accumulates
                await call(store, number)
        async with opened(tmp_path) as store:
            assert not (await store.info("", "m"))["in_memory"]
            assert equal(await state(store), undisturbed(7).state())
            assert await call(store, 7) == b"answer 7"
            assert (await problem(call(store, 7, digest="other"))).code == "sequence_conflict"
            for number in range(8, 12):
                await call(store, number)
            assert equal(await state(store), undisturbed(11).state())
            assert (await store.info("", "m"))["writer"] == "w"

    run(test())


def test_a_state_is_saved_every_durable_every_calls_and_on_request(tmp_path: Path, until: Callable[..., None]) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store, durable_every=3)
            for number in range(1, 6):
                await call(store, number)
            async with store.use("", "m") as model:
                await wait_for(lambda: model.durable == 3)
                assert model.sequence == 5
                assert await store.save(model) == 5
                assert Folder(tmp_path / "models" / "m").read().manifest.sequence == 5
                assert await store.save(model) == 5

    run(test())


KILLED = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from training_store import call, create, opened

async def main():
    async with opened(Path(sys.argv[1])) as store:
        await create(store, durable_every=2)
        number = (await store.info("", "m"))["sequence"]
        print("from", number, flush=True)
        while True:
            number += 1
            await call(store, number)
            print(number, (await store.info("", "m"))["durable"], flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_killed_service_restarts_with_a_consistent_state_and_its_cached_responses(tmp_path: Path) -> None:
    """SIGKILL after more and more output; the state found each time is that of an undisturbed training."""
    for lines in (2, 5, 9, 14):
        command: list[str | Path] = [sys.executable, "-c", KILLED, tmp_path, Path(__file__).parents[1]]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        last = [child.stdout.readline() for _ in range(lines)][-1]
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert last, "the service ended by itself"

        async def look(durable: int = int(last.split()[1])) -> None:
            async with opened(tmp_path) as store:
                sequence = (await store.info("", "m"))["sequence"]
                assert sequence >= durable, "a state that was said to be durable is lost"
                assert equal(await state(store), undisturbed(sequence).state())
                if sequence:
                    assert await call(store, sequence) == f"answer {sequence}".encode()

        run(look())


def test_closing_saves_every_dirty_model(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            for index in range(5):
                await create(store, f"m{index}", durable_every=100)
                for number in range(1, index + 1):
                    await call(store, number, f"m{index}")
        async with opened(tmp_path) as store:
            assert [info["durable"] for info in await store.list("")] == [0, 1, 2, 3, 4]

    run(test())


def test_closing_takes_a_bounded_time_and_logs_lost_calls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        hang = threading.Event()
        store = Store(Settings(state_dir=tmp_path), torch.device("cpu"))
        await store.start()
        await create(store)
        await call(store, 1)
        store._execute(hang.wait)
        began = time.monotonic()
        await store.close(timeout=0.2)
        assert time.monotonic() - began < 2
        assert "model m: 0 is saved, 1 is lost" in caplog.text
        hang.set()

    run(test())


def test_training_continues_on_a_full_disk_and_the_next_save_catches_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store, durable_every=2)
            monkeypatch.setattr(os, "fsync", full)
            for number in (1, 2, 3):
                await call(store, number)
            async with store.use("", "m") as model:
                await wait_for(lambda: model.durable_error is not None)
                assert model.durable == 0
                assert "No space left" in (model.info()["durable_error"] or "")
                assert (await problem(store.save(model))).code == "storage_full"
            assert (await problem(create(store, "n"))).code == "storage_full"
            assert [info["id"] for info in await store.list("")] == ["m"]
            monkeypatch.undo()
            await call(store, 4)
            async with store.use("", "m") as model:
                await wait_for(lambda: model.durable == 4)
                assert model.durable_error is None
            await create(store, "n")

    run(test())


def test_the_bound_on_disk_holds(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store)
        one = Folder(tmp_path / "models" / "m").nbytes()
        async with opened(tmp_path, models_disk_bytes=2 * one) as store:
            wrong = None
            for index in range(4):
                try:
                    await create(store, f"n{index}")
                except ServiceError as problem:
                    wrong = problem
            assert wrong is not None
            assert wrong.code == "storage_full"
            assert "models_disk_bytes" in wrong.detail
            assert sum(Folder(path).nbytes() for path in (tmp_path / "models").iterdir()) <= 2 * one
            await store.delete("", "m")
            await create(store, "n9")

    run(test())


@pytest.mark.parametrize("where", ["file", "document"])
def test_a_corrupt_checkpoint_is_reported_and_the_one_before_is_loaded(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store, durable_every=2)
            for number in range(1, 5):
                await call(store, number)
                async with store.use("", "m") as model:
                    await store.save(model)
        folder = Folder(tmp_path / "models" / "m")
        newest = folder.path / getattr(folder.manifests()[0], where)
        body = bytearray(newest.read_bytes())
        body[len(body) // 2] ^= 4
        newest.write_bytes(body)
        async with opened(tmp_path) as store:
            assert equal(await state(store), undisturbed(3).state())
            assert "000000000004" in caplog.text
            assert "000000000004" in (await store.info("", "m"))["durable_error"]
            await call(store, 4)
            assert equal(await state(store), undisturbed(4).state())
            async with store.use("", "m") as model:
                await store.save(model)
            assert (await store.info("", "m"))["durable_error"] is None
        for path in folder.path.glob("*.safetensors"):
            path.write_bytes(b"")
        async with opened(tmp_path) as store:
            for _ in range(2):
                wrong = await problem(call(store, 5))
                assert wrong.code == "internal_error"
                assert "'m'" in wrong.detail
            await store.delete("", "m")
            await create(store)

    run(test())


def test_two_services_cannot_share_a_folder(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path):
            with pytest.raises(StateDirError, match=rf"another service uses, process {os.getpid()}"):
                async with opened(tmp_path):
                    pass
        async with opened(tmp_path):
            pass

    run(test())


def test_a_folder_stays_locked_if_the_lock_file_is_removed(tmp_path: Path) -> None:
    first = StateDir(tmp_path, 1)
    (tmp_path / "lock").unlink()
    for _ in range(2):  # the second time with the file that the first attempt has left
        with pytest.raises(StateDirError, match="another service uses"):
            StateDir(tmp_path, 1)
    first.close()
    StateDir(tmp_path, 1).close()


def test_the_lock_file_suffices_if_folders_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def of_files(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "as on NFS")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", of_files)
    first = StateDir(tmp_path, 1)
    with pytest.raises(StateDirError, match=rf"another service uses, process {os.getpid()}"):
        StateDir(tmp_path, 1)
    first.close()
    StateDir(tmp_path, 1).close()


def test_a_folder_that_cannot_be_created_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateDirError, match="must be a folder that can be written to"):
        StateDir(tmp_path / "file", 1)
    with pytest.raises(StateDirError, match="must be a folder"):
        StateDir(tmp_path / "file" / "below", 1)


def test_an_unreadable_model_is_logged_and_the_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.parent.name == "n":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store)
            await create(store, "n")
        (tmp_path / "models" / "m" / "notes.tmp").mkdir()
        monkeypatch.setattr(Path, "read_bytes", refused)
        async with opened(tmp_path) as store:
            assert f"{tmp_path / 'models' / 'n'} is not served: " in caplog.text
            assert [info["id"] for info in await store.list("")] == ["m"]
            assert "Permission denied" in (await problem(store.info("", "n"))).detail
            await call(store, 1)
        monkeypatch.undo()
        async with opened(tmp_path) as store:
            assert [info["id"] for info in await store.list("")] == ["m", "n"]

    run(test())


def test_tensors_that_do_not_match_the_manifest_are_an_error_naming_the_model(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store)
        (document,) = (tmp_path / "models" / "m").glob("*.json")
        plain = json.loads(document.read_bytes())
        del plain["checksum"]
        plain["network"]["layers"][0]["bias"] = not plain["network"]["layers"][0]["bias"]
        document.write_bytes(checkpoint._sealed(plain))
        async with opened(tmp_path) as store:
            wrong = await problem(call(store, 1))
            assert wrong.code == "internal_error"
            assert "no saved state of the model 'm' can be read: " in wrong.detail

    run(test())


def test_a_folder_with_the_index_of_an_earlier_version_is_opened_and_the_index_removed(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store)
        for suffix in ("", "-wal", "-shm", ".corrupt"):
            (tmp_path / f"index.sqlite{suffix}").write_bytes(b"garbage" * 1000)
        async with opened(tmp_path) as store:
            assert [info["id"] for info in await store.list("")] == ["m"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "models"]

    run(test())


def saved_model(path: Path, owner: str, id: str, created: str, payload: int = 0) -> None:
    header = Header(id, owner, "", created, {}, {}, 0, 1, "")
    folder = Folder(path / "models" / (f"{id}.{owner}" if owner else id))
    folder.write(Snapshot(header, 0, None, {"a": torch.zeros(payload)}))


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_the_listing_has_each_owners_models_by_age_and_the_bytes_of_all(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for owner, id, created in (("", "a", "2026-01-03"), ("", "b", "2026-01-02"), ("owner", "b", "2026-01-01")):
        saved_model(tmp_path, owner, id, created, payload=100)
    state_dir = StateDir(tmp_path, 10**9)
    assert [state_dir.ids(owner) for owner in ("", "owner", "nobody")] == [["b", "a"], ["b"], []]
    assert state_dir.nbytes() == size(tmp_path / "models")
    state_dir.remove("", "b")
    state_dir.remove("", "no such model")
    assert [state_dir.ids(owner) for owner in ("", "owner")] == [["a"], ["b"]]
    assert state_dir.nbytes() == size(tmp_path / "models")
    state_dir.close()


# Memory.


def test_least_recently_used_models_are_saved_evicted_and_reloaded_bit_by_bit(tmp_path: Path) -> None:
    async def test() -> None:
        room = 2 * FOOTPRINT + 1000
        async with opened(tmp_path, models_memory_bytes=room) as store:
            for id in ("a", "b", "c"):
                await create(store, id, durable_every=1000)
            assert [info["in_memory"] for info in await store.list("")] == [False, True, True]
            for number in range(1, 6):
                for id in ("a", "b", "c"):
                    await call(store, number, id)
                    assert store._cache.nbytes <= room
            for id in ("a", "b", "c"):
                assert equal(await state(store, id), undisturbed(5).state())
                assert await call(store, 5, id) == b"answer 5"

    run(test())


def test_a_recently_used_model_is_not_evicted(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, models_memory_bytes=2 * FOOTPRINT + 500) as store:
            await create(store, "a")
            await create(store, "b")
            await call(store, 1, "a")
            await create(store, "c")
            assert [info["in_memory"] for info in await store.list("")] == [True, False, True]

    run(test())


def test_creation_is_refused_instead_of_waiting_for_a_running_call(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, models_memory_bytes=FOOTPRINT + 500) as store:
            await create(store, "a")
            await call(store, 1, "a")
            began, may = threading.Event(), threading.Event()

            def held(model: Model, step: Step) -> None:
                began.set()
                assert may.wait(10)
                apply(model.trainer, 2)
                step.record(b"", "t")

            running = asyncio.create_task(call(store, 2, "a", work=held))
            await asyncio.to_thread(began.wait)
            wrong = await asyncio.wait_for(problem(create(store, "b")), 5)
            assert wrong.code == "queue_full"
            may.set()
            await running

    run(test())


def test_a_model_with_a_waiting_call_is_not_evicted(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, models_memory_bytes=FOOTPRINT + 500, sequence_wait_s=5) as store:
            await create(store, "a")
            waiting = asyncio.create_task(call(store, 2, "a"))
            await asyncio.sleep(0.02)
            wrong = await problem(create(store, "b"))
            assert wrong.code == "queue_full"
            await call(store, 1, "a")
            assert await waiting == b"answer 2"
            await create(store, "b")
            assert not (await store.info("", "a"))["in_memory"]

    run(test())


def test_a_model_whose_cached_responses_exceed_the_bound_can_still_be_loaded(tmp_path: Path) -> None:
    async def test() -> None:
        room = 2 * FOOTPRINT + 1000
        async with opened(tmp_path, models_memory_bytes=room) as store:
            await create(store, "a")
            await create(store, "b")
            for number in (1, 2, 3):
                await call(store, number, "b", body=bytes(FOOTPRINT))
            await wait_for(lambda: [model.id for model in store._cache] == ["b"])
            await call(store, 1, "a")
            for number in (4, 5):
                await call(store, number, "b", body=bytes(FOOTPRINT))
            assert equal(await state(store, "b"), undisturbed(5).state())
        async with opened(tmp_path, models_memory_bytes=100) as store:
            for id, number in (("a", 1), ("b", 5)):
                assert equal(await state(store, id), undisturbed(number).state())

    run(test())


def test_a_model_that_lives_in_memory_only_is_never_evicted() -> None:
    async def test() -> None:
        async with opened(models_memory_bytes=FOOTPRINT + 500) as store:
            await create(store, "a")
            wrong = await problem(create(store, "b"))
            assert wrong.code == "out_of_memory"
            assert "state_dir" in wrong.detail
            await call(store, 1, "a")

    run(test())


def test_a_model_is_not_evicted_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def test() -> None:
        async with opened(tmp_path, models_memory_bytes=FOOTPRINT + 500) as store:
            await create(store, "a")
            await call(store, 1, "a")
            monkeypatch.setattr(os, "fsync", full)
            assert (await problem(create(store, "b"))).code == "queue_full"
            assert (await store.info("", "a"))["in_memory"]
            monkeypatch.undo()
            await call(store, 2, "a")

    run(test())


def test_a_call_during_the_save_before_an_eviction_prevents_it(tmp_path: Path, slow_disk: SlowDisk) -> None:
    async def test() -> None:
        async with opened(tmp_path, models_memory_bytes=FOOTPRINT + 500) as store:
            await create(store, "a")
            await call(store, 1, "a")
            slow_disk.begin()
            making = asyncio.create_task(create(store, "b"))
            await asyncio.to_thread(slow_disk.began.wait)
            await call(store, 2, "a")
            slow_disk.may.set()
            # It changed after it was saved: the state before must not be what is left of it.
            assert (await problem(making)).code == "queue_full"
            assert equal(await state(store, "a"), undisturbed(2).state())

    run(test())


def test_a_model_deleted_during_the_save_before_an_eviction_makes_room(tmp_path: Path, slow_disk: SlowDisk) -> None:
    async def test() -> None:
        async with opened(tmp_path, models_memory_bytes=2 * FOOTPRINT + 1000) as store:
            await create(store, "a")
            await create(store, "b")
            await call(store, 1, "a")
            await call(store, 1, "b")
            slow_disk.begin()
            async with store.use("", "b") as model:
                saving = asyncio.create_task(store.save(model))  # occupies the disk
                assert await asyncio.to_thread(slow_disk.began.wait, 10)
                making = asyncio.create_task(create(store, "c", owner="another"))
                await asyncio.sleep(0.05)
                deleting = asyncio.create_task(store.delete("", "a"))
                await asyncio.sleep(0.05)
                slow_disk.may.set()
                await asyncio.gather(saving, deleting)
            assert (await making)["id"] == "c"

    run(test())


def test_concurrent_calls_load_a_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read = Folder.read

    def counted(folder: Folder) -> Any:
        reads.append(folder.path)
        time.sleep(0.05)
        return read(folder)

    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store)
        monkeypatch.setattr(Folder, "read", counted)
        async with opened(tmp_path) as store:
            left = asyncio.create_task(call(store, 1))
            await asyncio.sleep(0.02)
            others = [asyncio.create_task(call(store, number)) for number in (4, 3, 2, 1)]
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.gather(*others)
            assert len(reads) == 1
            assert equal(await state(store), undisturbed(4).state())

    run(test())


def test_a_slow_disk_does_not_block_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, slow = os.fsync, 0.25

    def delayed(handle: int) -> None:
        time.sleep(slow)
        fsync(handle)

    async def test() -> None:
        longest = 0.0

        async def beat() -> None:
            nonlocal longest
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.001)
                longest = max(longest, time.monotonic() - before)

        async with opened(tmp_path, models_memory_bytes=FOOTPRINT + 2000) as store:
            await create(store)
            await call(store, 1)
            monkeypatch.setattr(os, "fsync", delayed)
            heart = asyncio.create_task(beat())
            began = time.monotonic()
            async with store.use("", "m") as model:
                saving = asyncio.create_task(store.save(model))
                await asyncio.sleep(0.02)
                for number in range(2, 7):
                    await call(store, number)
                assert not saving.done(), "training must not wait for the disk"
                await saving
            await create(store, "n")
            await call(store, 7)
            await store.list("")
            await store.delete("", "m")
            assert time.monotonic() - began > 4 * slow
            assert longest < slow
            heart.cancel()
            monkeypatch.undo()

    run(test())


# Deleting.


def test_a_deletion_lets_the_running_call_finish_and_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, sequence_wait_s=5) as store:
            await create(store, durable_every=1)
            began, may = threading.Event(), threading.Event()

            def held(model: Model, step: Step) -> None:
                began.set()
                assert may.wait(10)
                apply(model.trainer, 1)
                step.record(b"x", "t")

            running = asyncio.create_task(call(store, 1, work=held))
            await asyncio.to_thread(began.wait)
            waiting = asyncio.create_task(call(store, 2))
            await asyncio.sleep(0.02)
            await store.delete("", "m")
            assert (await problem(waiting)).code == "not_found"
            may.set()
            assert await running == b"answer 1"
            assert (await problem(call(store, 2))).code == "not_found"
            assert list((tmp_path / "models").iterdir()) == []
            await create(store, seed=1)
            assert (await store.info("", "m"))["sequence"] == 0
        async with opened(tmp_path) as store:
            assert [info["seed"] for info in await store.list("")] == [1]

    run(test())


def test_an_interrupted_removal_is_completed_at_the_start(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store)
        os.rename(tmp_path / "models" / "m", tmp_path / "models" / ".trash-1")
        async with opened(tmp_path) as store:
            assert await store.list("") == []
        assert list((tmp_path / "models").iterdir()) == []

    run(test())


# Calls that fail half-way.


def half_way(model: Model, step: Step) -> None:
    model.trainer.forward_backward(*batch(1), LOSS)
    raise MemoryError("while the answer was encoded")


def test_a_call_that_fails_half_way_restores_the_durable_state(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, sequence_wait_s=0.05) as store:
            await create(store, durable_every=2)
            for number in (1, 2, 3):
                await call(store, number)
            with pytest.raises(MemoryError):
                await call(store, 4, work=half_way)
            gap = await problem(call(store, 4))
            assert (gap.code, gap.faults[0].expected) == ("sequence_gap", "3")
            for number in (3, 4):
                await call(store, number)
            assert equal(await state(store), undisturbed(4).state())

    run(test())


def test_a_restore_waits_for_the_snapshot_that_is_being_written(tmp_path: Path, slow_disk: SlowDisk) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store, durable_every=2)
            slow_disk.begin()
            for number in (1, 2):
                await call(store, number)
            await asyncio.to_thread(slow_disk.began.wait)
            with pytest.raises(MemoryError):
                await call(store, 3, work=half_way)
            again = asyncio.create_task(call(store, 3))
            await asyncio.sleep(0.05)
            slow_disk.may.set()
            assert await again == b"answer 3"
            assert equal(await state(store), undisturbed(3).state())

    run(test())


def test_calls_waiting_behind_one_that_fails_half_way_get_not_ready(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store)
            began, may = threading.Event(), threading.Event()

            def held(model: Model, step: Step) -> None:
                began.set()
                assert may.wait(10)
                half_way(model, step)

            failing = asyncio.create_task(call(store, 1, work=held))
            await asyncio.to_thread(began.wait)
            waiting = asyncio.create_task(call(store, 2))
            await asyncio.sleep(0.02)
            may.set()
            with pytest.raises(MemoryError):
                await failing
            wrong = await problem(waiting)
            assert wrong.code == "not_ready"
            await call(store, 1)
            assert equal(await state(store), undisturbed(1).state())

    run(test())


def test_without_a_state_folder_a_call_that_fails_half_way_loses_the_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with opened() as store:
            await create(store)
            with pytest.raises(MemoryError):
                await call(store, 1, work=half_way)
            assert (await problem(call(store, 1))).code == "not_found"
            assert "the model is lost" in caplog.text

    run(test())


# States up and down.


async def exported(store: Store, id: str = "m") -> bytes:
    async with store.use("", id) as model:
        file = await store.export(model)
    body = b"".join(file.chunks)
    assert len(body) == file.nbytes
    return body


def test_a_state_survives_export_and_upload_bit_by_bit(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, sequence_wait_s=0.05) as store:
            await create(store)
            for number in range(1, 6):
                await call(store, number)
            body = await exported(store)
            for number in range(6, 12):
                await call(store, number)
            context = store.contexts.put("", "value", 1, "m")
            async with store.use("", "m") as model:
                info = await store.replace_state(model, body)
            assert (info["sequence"], info["durable"]) == (5, 5)
            assert equal(await state(store), undisturbed(5).state())
            assert (await problem(call(store, 5))).code == "answer_expired"
            with pytest.raises(ServiceError):
                store.contexts.get("", context, "m")
            await call(store, 6)
            assert equal(await state(store), undisturbed(6).state())
            await create(store, "copy", seed=4)
            async with store.use("", "copy") as model:
                await store.replace_state(model, body)
        async with opened(tmp_path) as store:
            assert equal(await state(store, "copy"), undisturbed(5).state())
            assert equal(await state(store), undisturbed(6).state())

    run(test())


@pytest.mark.parametrize(("setting", "graphs"), [(True, None), (False, False)])
def test_the_setting_for_cuda_graphs_holds_for_every_model(tmp_path: Path, setting: bool, graphs: object) -> None:
    async def test() -> None:
        async with opened(tmp_path, graphs=setting) as store:
            await create(store)
            body = await exported(store)
            async with store.use("", "m") as model:
                assert model.trainer.graphs is graphs
                await store.replace_state(model, body)
                assert model.trainer.graphs is graphs
        async with opened(tmp_path, graphs=setting) as store, store.use("", "m") as model:
            assert model.trainer.graphs is graphs

    run(test())


def test_an_upload_is_durable_even_if_its_number_is_smaller(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store, durable_every=1)
            body = await exported(store)
            for number in (1, 2, 3):
                await call(store, number)
            async with store.use("", "m") as model:
                await store.replace_state(model, body)
                assert Folder(tmp_path / "models" / "m").read().manifest.sequence == 0

    run(test())


@pytest.mark.parametrize("kind", ["network", "optimizer", "tensors", "garbage", "metadata", "version", "sequence"])
def test_a_state_of_another_model_is_refused_naming_the_difference(tmp_path: Path, kind: str) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store)
            await call(store, 1)
            tensors, metadata = decode_state(await exported(store))
            about = json.loads(metadata["exodus"])
            wanted = "state_mismatch"
            if kind == "network":
                about["network"]["layers"][2]["alpha"] = 0.5
            elif kind == "optimizer":
                about["optimizer"] = {"kind": "sgd"}
            elif kind == "tensors":
                tensors["weights.0.weight"] = torch.zeros(2)
            elif kind == "version":
                about["version"], wanted = 2, "malformed"
            elif kind == "sequence":
                about["sequence"], wanted = -1, "malformed"
            else:
                wanted = "malformed"
            metadata = {} if kind == "metadata" else {"exodus": json.dumps(about)}
            body = b"garbage" if kind == "garbage" else b"".join(encode_state(tensors, metadata).chunks)
            async with store.use("", "m") as model:
                wrong = await problem(store.replace_state(model, body))
            assert wrong.code == wanted
            named = {
                "network": "/network/layers/2/alpha must be 0.9, got 0.5",
                "optimizer": "/optimizer/kind must be 'adam', got 'sgd'",
                "tensors": "weights.0.weight",
            }
            assert named.get(kind, "") in wrong.detail
            assert equal(await state(store), undisturbed(1).state())
            await call(store, 2)

    run(test())


def test_an_upload_to_a_full_disk_is_refused_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store)
            body = await exported(store)
            await call(store, 1)
            monkeypatch.setattr(os, "fsync", full)
            async with store.use("", "m") as model:
                assert (await problem(store.replace_state(model, body))).code == "storage_full"
            monkeypatch.undo()
            assert equal(await state(store), undisturbed(1).state())
            assert await call(store, 1) == b"answer 1"

    run(test())


def test_an_upload_completes_if_the_client_disconnects(tmp_path: Path, slow_disk: SlowDisk) -> None:
    async def test() -> None:
        async with opened(tmp_path) as store:
            await create(store)
            body = await exported(store)
            await call(store, 1)

            async def upload() -> None:
                async with store.use("", "m") as model:
                    await store.replace_state(model, body)

            slow_disk.begin()
            leaving = asyncio.create_task(upload())
            await asyncio.to_thread(slow_disk.began.wait)
            leaving.cancel()
            await asyncio.wait({leaving})
            slow_disk.may.set()
            await store._tasks.wait(("", "m"))
            await call(store, 1, digest="of the new line")
            assert equal(await state(store), undisturbed(1).state())
        async with opened(tmp_path) as store:
            assert (await store.info("", "m"))["sequence"] == 1

    run(test())


def test_cached_responses_of_a_model_are_bounded_in_bytes(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, answer_bytes=100) as store:
            await create(store)
            for number in range(1, 4):
                await call(store, number, body=bytes(40))
            assert (await problem(call(store, 1))).code == "answer_expired"
        async with opened(tmp_path, answer_bytes=100) as store:
            assert await call(store, 3, body=b"") == bytes(40)
            assert (await problem(call(store, 1))).code == "answer_expired"
            async with store.use("", "m") as model, model.sequencer.step(2, "digest 2") as step:
                assert isinstance(step, CachedResponse)
                assert step.content_type == "text/plain"

    run(test())
