"""Checkpoints on disk are consistent, the old state or the new, whatever interrupts a save or damages a file."""

import errno
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from exodus_service.models.storage import checkpoint
from exodus_service.models.storage.checkpoint import CheckpointError, Folder, Header, Snapshot
from exodus_service.models.storage.state_file import StateFile, StateFileError, decode_state, encode_state

HEADER = Header("m", "", "label", "2026-01-01T00:00:00+00:00", {"layers": [1.5]}, {"kind": "sgd"}, 3, 10, "abc")
CALLS = ("open", "fsync", "rename")


def tensors(number: int) -> dict[str, torch.Tensor]:
    return {
        "weights.a": torch.full((50, 3), float(number)),
        "optimizer.a.step": torch.tensor(float(number)),
        "random": torch.full((17,), number, dtype=torch.uint8),
        "wide": torch.full((3,), number, dtype=torch.float64),
    }


def save(folder: Folder, number: int, sequence: int | None = None) -> checkpoint.Manifest:
    sequence = number if sequence is None else sequence
    return folder.write(Snapshot(HEADER, sequence, f"w{number}", tensors(number), f"answers {number}".encode))


def holds(folder: Folder) -> int:
    """Which of the states is read back; fails unless it is whole."""
    found = folder.read()
    number = int(found.tensors["optimizer.a.step"])
    wanted = tensors(number)
    assert found.tensors.keys() == wanted.keys()
    assert all(torch.equal(found.tensors[name], wanted[name]) for name in wanted)
    assert found.responses == f"answers {number}".encode()
    assert found.manifest.writer == f"w{number}"
    assert found.manifest.header == HEADER
    return number


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "m")


@contextmanager
def interrupted(at: int, act: Callable[[], Any]) -> Iterator[list[str]]:
    """Of the calls of the operating system within the block, the one with number `at` begins with `act`."""
    seen: list[str] = []
    originals = {name: getattr(os, name) for name in (*CALLS, "unlink", "mkdir", "rmdir")}

    def wrapped(name: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            seen.append(name)
            if len(seen) == at:
                act()
            return originals[name](*arguments, **options)

        return run

    for name in originals:
        setattr(os, name, wrapped(name))
    try:
        yield seen
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def steps_of_a_save(folder: Folder, number: int) -> list[str]:
    with interrupted(0, lambda: None) as seen:
        save(folder, number)
    return seen


def test_a_state_comes_back_to_the_bit(folder: Folder) -> None:
    save(folder, 7)
    assert holds(folder) == 7
    assert holds(Folder(folder.path)) == 7


def test_files_are_named_by_the_sequence_number_and_private(folder: Folder) -> None:
    old = os.umask(0)
    try:
        save(folder, 20)
    finally:
        os.umask(old)
    assert sorted(path.name for path in folder.path.iterdir()) == ["000000000020.json", "000000000020.safetensors"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_each_file_is_synced_before_it_is_renamed_and_the_folder_after(folder: Folder) -> None:
    save(folder, 1)
    file = ["open", "fsync", "rename", "open", "fsync"]
    assert steps_of_a_save(folder, 2) == file + file


def test_two_generations_are_kept(folder: Folder) -> None:
    for number in range(1, 6):
        save(folder, number)
    assert sorted(path.stem for path in folder.path.glob("*.json")) == ["000000000004", "000000000005"]
    assert len(list(folder.path.iterdir())) == 4


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_process_killed_at_any_step_of_a_save_leaves_the_old_or_the_new_state(tmp_path: Path, before: int) -> None:
    probe = Folder(tmp_path / "probe")
    for number in range(1, before + 1):
        save(probe, number)
    steps = len(steps_of_a_save(probe, before + 1))
    outcomes = []
    for at in range(1, steps + 1):
        folder = Folder(tmp_path / f"m{at}")
        for number in range(1, before + 1):
            save(folder, number)
        child = os.fork()
        if not child:
            with interrupted(at, lambda: os._exit(7)):
                save(folder, before + 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        if folder.path.is_dir():
            folder.tidy()
        outcomes.append(holds(folder) if folder.path.is_dir() else 0)
        assert not list(tmp_path.glob(f"m{at}/*.tmp"))
        save(folder, before + 2)
        assert holds(folder) == before + 2
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {before, before + 1}


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_disk_error_at_any_step_leaves_a_consistent_state_and_the_next_save_succeeds(
    tmp_path: Path, before: int
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    probe = Folder(tmp_path / "probe")
    for number in range(1, before + 1):
        save(probe, number)
    steps = steps_of_a_save(probe, before + 1)
    for at in range(1, len(steps) + 1):
        folder = Folder(tmp_path / f"m{at}")
        for number in range(1, before + 1):
            save(folder, number)
        with interrupted(at, full):
            try:
                save(folder, before + 1)
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017 (it may succeed: only cleaning up was left)
        assert not list(folder.path.glob("*.tmp"))
        if folder.path.is_dir():
            assert holds(folder) in (before, before + 1)
        save(folder, before + 2)
        assert holds(folder) == before + 2


def test_an_interrupted_write_leaves_no_file(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder, 1)
    before = sorted(folder.path.iterdir())

    class Torn(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield self[0]
            raise OSError(errno.EIO, "Input/output error")

    def short(*arguments: Any) -> StateFile:
        encoded = encode_state(*arguments)
        return StateFile(Torn(encoded.chunks), encoded.nbytes)

    monkeypatch.setattr(checkpoint, "encode_state", short)
    with pytest.raises(OSError, match="Input/output"):
        save(folder, 2)
    assert sorted(folder.path.iterdir()) == before


def test_a_full_file_system_is_an_error_and_keeps_the_state_before(tmp_path: Path) -> None:
    """On a file system of 1 MiB, in a process that may mount one."""
    script = """
import sys; from pathlib import Path; import torch
from exodus_service.models.storage.checkpoint import Folder, Snapshot
sys.path.insert(0, sys.argv[2]); from test_checkpoint import HEADER, holds, save
folder = Folder(Path(sys.argv[1]) / "m")
save(folder, 1)
try:
    folder.write(Snapshot(HEADER, 2, None, {"big": torch.zeros(1 << 20)}))
except OSError as error:
    print(error.errno)
assert holds(folder) == 1
assert len(list(folder.path.iterdir())) == 2
save(folder, 3)
assert holds(folder) == 3
"""
    mount = f'mount -t tmpfs -o size=1m tmpfs "{tmp_path}" && exec "$@"'
    run = ["unshare", "-Urm", "sh", "-c", mount, "sh"]
    try:
        allowed = subprocess.run([*run, "true"], capture_output=True).returncode
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if allowed != 0:
        pytest.skip("file systems cannot be mounted here")
    arguments = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run([*run, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == errno.ENOSPC


def test_every_flipped_bit_of_the_tensors_is_detected_and_the_state_before_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    origin = Folder(tmp_path / "origin")
    save(origin, 1)
    newest = save(origin, 2)
    sound = (origin.path / newest.file).read_bytes()
    header_end = 8 + int.from_bytes(sound[:8], "little")
    places = [*range(0, header_end, 37), *range(header_end, len(sound), 53), len(sound) - 1]
    for place in places:
        flipped = bytearray(sound)
        flipped[place] ^= 1 << (place % 8)
        (origin.path / newest.file).write_bytes(flipped)
        caplog.clear()
        assert holds(origin) == 1
        assert newest.document in caplog.text
        assert "SHA-256" in caplog.text
        assert (origin.path / f"{newest.file}.corrupt").exists()
        for name in (newest.file, newest.document):
            os.rename(origin.path / f"{name}.corrupt", origin.path / name)
    (origin.path / newest.file).write_bytes(sound)
    assert holds(origin) == 2


def test_every_flipped_bit_of_the_manifest_is_detected_and_the_state_before_is_read(folder: Folder) -> None:
    save(folder, 1)
    newest = save(folder, 2)
    sound = (folder.path / newest.document).read_bytes()
    logging.disable(logging.ERROR)
    try:
        for place in range(len(sound)):
            flipped = bytearray(sound)
            flipped[place] ^= 1 << (place % 8)
            (folder.path / newest.document).write_bytes(flipped)
            assert [manifest.sequence for manifest in folder.manifests()] == [1], flipped
            for name in (newest.file, newest.document):
                os.rename(folder.path / f"{name}.corrupt", folder.path / name)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("kind", ["file", "document"])
@pytest.mark.parametrize("size", [None, 0, 1, 9, -1])
def test_a_truncated_or_missing_file_is_detected_and_the_state_before_is_read(
    folder: Folder, kind: str, size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, 1)
    path = folder.path / getattr(save(folder, 2), kind)
    if size is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:size])
    assert holds(folder) == 1
    if (size, kind) != (None, "document"):
        assert "000000000002" in caplog.text
    if (size, kind) == (9, "file"):
        assert "bytes, got 9" in caplog.text
    save(folder, 3)
    assert holds(folder) == 3


def test_the_error_names_the_remaining_files_if_no_state_verifies(folder: Folder) -> None:
    for number in (1, 2):
        manifest = save(folder, number)
        (folder.path / manifest.file).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"000000000001\.json\.corrupt.*000000000002\.safetensors\.corrupt"):
        folder.read()


def test_a_state_of_another_format_version_is_left_unchanged(folder: Folder) -> None:
    document = folder.path / save(folder, 1).document
    plain = json.loads(document.read_bytes())
    del plain["checksum"]
    document.write_bytes(checkpoint._sealed({**plain, "format": 2}))
    for attempt in (folder.read, folder.tidy):
        with pytest.raises(CheckpointError, match="another version"):
            attempt()
    assert len(list(folder.path.iterdir())) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"created": None},
        {"name": 3},
        {"name": "\ud800"},
        {"network": []},
        {"seed": "1"},
        {"sequence": True},
        {"sequence": -1},
        {"generation": 2**63},
        {"writer": 1},
        {"nbytes": 1.5},
        {"file": "../m/000000000002.safetensors"},
    ],
    ids=str,
)
def test_a_manifest_with_wrong_types_is_set_aside_and_the_state_before_is_read(
    folder: Folder, change: dict[str, Any]
) -> None:
    save(folder, 1)
    document = folder.path / save(folder, 2).document
    plain = json.loads(document.read_bytes())
    del plain["checksum"]
    document.write_bytes(checkpoint._sealed(plain | change))
    assert holds(folder) == 1
    assert (folder.path / f"{document.name}.corrupt").exists()


def test_a_folder_with_the_name_of_a_leftover_is_not_removed(folder: Folder) -> None:
    save(folder, 1)
    for name in ("000000000002.safetensors.tmp", "000000000002.safetensors"):
        (folder.path / name).mkdir()
    newest = folder.tidy()
    assert newest is not None
    assert newest.sequence == 1


def test_a_lack_of_file_handles_does_not_set_files_aside(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder, 1)

    def none(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", none)
    with pytest.raises(OSError, match="Too many"):
        folder.read()
    monkeypatch.undo()
    assert holds(folder) == 1


@pytest.mark.parametrize("sequence", [5, 10, 20])
def test_a_state_uploaded_later_is_the_newest_even_if_its_number_is_smaller(folder: Folder, sequence: int) -> None:
    save(folder, 1, sequence=10)
    save(folder, 2, sequence=20)
    save(folder, 3, sequence=sequence)
    assert holds(folder) == 3
    save(folder, 4, sequence=20)
    assert holds(folder) == 4
    assert len(list(folder.path.iterdir())) == 4


def test_leftovers_of_an_interrupted_save_are_removed(folder: Folder) -> None:
    save(folder, 1)
    for name in ("000000000002.safetensors.tmp", "000000000002.safetensors", "000000000001.json.tmp"):
        (folder.path / name).write_bytes(b"x")
    newest = folder.tidy()
    assert newest is not None
    assert newest.sequence == 1
    assert len(list(folder.path.iterdir())) == 2
    empty = Folder(folder.path.with_name("empty"))
    empty.path.mkdir()
    assert empty.tidy() is None
    assert not empty.path.exists()


EVERY_KIND = {
    "half": torch.rand(3).half(),
    "brain": torch.rand(3).bfloat16(),
    "flags": torch.tensor([True, False, True]),
    "scalar": torch.tensor(3.0, dtype=torch.float64),
    "empty": torch.empty(0, 4),
    "view": torch.arange(12.0).reshape(3, 4).T,
    "integers": torch.tensor([[-1, 2**40]]),
    "small": torch.tensor([-3], dtype=torch.int8),
    "short": torch.tensor([-3], dtype=torch.int16),
    "int": torch.tensor([-3], dtype=torch.int32),
    "bytes": torch.arange(5, dtype=torch.uint8),
}


def test_safetensors_reads_our_files(tmp_path: Path) -> None:
    encoded = encode_state(EVERY_KIND, {"exodus": "{}"})
    body = b"".join(encoded.chunks)
    assert len(body) == encoded.nbytes
    (tmp_path / "f").write_bytes(body)
    for read in (safetensors.torch.load_file(tmp_path / "f"), safetensors.torch.load(body), decode_state(body)[0]):
        assert read.keys() == EVERY_KIND.keys()
        for name, tensor in EVERY_KIND.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)
    assert decode_state(body)[1] == {"exodus": "{}"}


def test_we_read_files_of_safetensors() -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in EVERY_KIND.items()}
    read, metadata = decode_state(bytearray(safetensors.torch.save(contiguous, {"a": "b"})))
    assert metadata == {"a": "b"}
    assert all(torch.equal(read[name], tensor) for name, tensor in EVERY_KIND.items())


def test_a_tensor_of_an_unsupported_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match=r"tensors\['z'\].*complex64"):
        encode_state({"z": torch.zeros(1, dtype=torch.complex64)})


def test_a_body_that_is_not_a_state_file_is_refused() -> None:
    body = b"".join(encode_state(tensors(1)).chunks)
    for wrong in (
        b"",
        b"\x00" * 8,
        b"x" * 100,
        body[:-1],
        body + b"x",
        b"\xff" * 8 + body[8:],
        body[:8] + b"[" + body[9:],
    ):
        with pytest.raises(StateFileError, match="must be a safetensors file"):
            decode_state(wrong)
