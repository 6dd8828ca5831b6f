"""Checkpoints of one model: a folder of generations, each a safetensors file and the manifest that commits it.

    FOLDER/000000000020.safetensors     tensors of the trainer, and "answers": the cached responses
    FOLDER/000000000020.json            the manifest: header, size and SHA-256 of the tensors, and its own checksum

Each file is written under a temporary name, synced and renamed, and the folder synced. The manifest's rename is the
commit: before it the previous generation is the state, after it this one. Two generations are kept. A generation that
does not verify is renamed to *.corrupt and logged, and the one before it is used.

Files are named by the sequence number. If the name is taken, because a state with a smaller number was uploaded, the
number of the generation follows. Generations are ordered by their own number, which only grows.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any

import torch

from exodus_service.models.storage.state_file import Buffer, StateFileError, encode_state, read_state

logger = logging.getLogger(__name__)

FORMAT = 1
GENERATIONS = 2

#: Name of the tensor that holds the packed cached responses.
_RESPONSES = "answers"

_TEMPORARY, _CORRUPT = ".tmp", ".corrupt"
#: Errors that do not condemn a file: another attempt may read it.
_TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.EINTR)


class CheckpointError(Exception):
    """No state of the model can be read."""


class _CorruptError(Exception):
    """A file of a generation does not verify."""


@dataclass(frozen=True)
class Header:
    """The constant properties of a model. `origin` is the digest of the request that created it."""

    id: str
    owner: str
    name: str
    created: str
    network: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    seed: int
    durable_every: int
    origin: str


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A training state, cloned: it does not change while it is written.

    Attributes:
        sequence: number of training calls done.
        writer: the client that made the last one.
        tensors: of the trainer.
        responses: packs the cached responses; called on the thread that writes.
    """

    header: Header
    sequence: int
    writer: str | None
    tensors: Mapping[str, torch.Tensor]
    responses: Callable[[], bytes] = bytes


@dataclass(frozen=True)
class Manifest:
    """One generation: the model, its sequence number and writer, and the file with its tensors."""

    header: Header
    sequence: int
    writer: str | None
    generation: int
    file: str
    nbytes: int
    sha256: str

    def encode(self) -> bytes:
        """The JSON document: the same bytes for equal manifests."""
        plain = asdict(self)
        return _sealed({"format": FORMAT, **plain.pop("header"), **plain})

    @property
    def space(self) -> int:
        """Bytes of its two files."""
        return self.nbytes + len(self.encode())

    @property
    def document(self) -> str:
        """Name of the manifest's file."""
        return Path(self.file).with_suffix(".json").name


@dataclass(frozen=True)
class Checkpoint:
    """A generation with its tensors, which are views of the mapped file, and the packed responses."""

    manifest: Manifest
    tensors: dict[str, torch.Tensor]
    responses: bytes


class Folder:
    """The generations of one model. One thread at a time may use it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(
        self, snapshot: Snapshot, require_room: Callable[[int, int], None] = lambda added, freed: None
    ) -> Manifest:
        """Make a snapshot the newest generation; it is on disk for good when this returns.

        `require_room` gets the bytes that will be added and freed, and may raise an OSError.

        Raises:
            OSError: the disk failed; the generations are unchanged.
        """
        before = self.manifests()
        generation = before[0].generation + 1 if before else 1
        stem = f"{snapshot.sequence:012d}"
        if any((self.path / f"{stem}{suffix}").exists() for suffix in (".safetensors", ".json")):
            stem += f".{generation}"
        responses = snapshot.responses()
        payload = torch.frombuffer(bytearray(responses), dtype=torch.uint8) if responses else torch.empty(0).byte()
        encoded = encode_state({**snapshot.tensors, _RESPONSES: payload})
        states, document = self.path / f"{stem}.safetensors", self.path / f"{stem}.json"
        manifest = Manifest(
            snapshot.header, snapshot.sequence, snapshot.writer, generation, states.name, encoded.nbytes, "0" * 64
        )
        require_room(manifest.space, sum(old.space for old in before[GENERATIONS - 1 :]))
        try:
            if not self.path.is_dir():
                self.path.mkdir(mode=0o700)
                sync_folder(self.path.parent)
            manifest = replace(manifest, sha256=_write(states, encoded.chunks))
            _write(document, [manifest.encode()])
        except OSError:
            # Even if the manifest is in place and only its sync failed: a save that was reported as failed must not
            # reappear at the next start.
            for name in (document, states):
                remove_quietly(name)
            if not before:
                _remove_if_empty(self.path)
            raise
        self._prune([manifest, *before])
        return manifest

    def exists(self) -> bool:
        """True if there is a state, readable or not. Files left by a failed save do not count."""
        try:
            names = os.listdir(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return any(name.endswith((".json", f".json{_CORRUPT}")) for name in names)

    def read(self) -> Checkpoint:
        """The newest generation that verifies.

        Raises:
            CheckpointError: none verifies.
            OSError: the disk cannot be read at the moment.
        """
        for manifest in self.manifests():
            try:
                return self._read(manifest)
            except _CorruptError as error:
                self._set_aside(manifest.document, str(error))
        left = ", ".join(sorted(path.name for path in self.path.glob(f"*{_CORRUPT}"))) or "nothing"
        raise CheckpointError(f"{self.path} must have a state that verifies, got {left}")

    def manifests(self) -> list[Manifest]:
        """The manifests that verify, newest first; the others are set aside."""
        found = []
        for path in sorted(self.path.glob("*.json")):
            try:
                manifest = _parse(_bytes(path))
                if manifest.document != path.name:
                    raise _CorruptError(f"the file must be named {manifest.document}, got {path.name}")
            except FileNotFoundError:  # pruned meanwhile by a save
                continue
            except _CorruptError as error:
                self._set_aside(path.name, str(error))
                continue
            found.append(manifest)
        return sorted(found, key=lambda manifest: manifest.generation, reverse=True)

    def tidy(self) -> Manifest | None:
        """Remove the files of an interrupted save, and the folder if it is empty then; before anything is written.

        Returns the newest manifest.
        """
        for stray in self.path.glob(f"*{_TEMPORARY}"):
            remove_quietly(stray)
        manifests = self.manifests()
        known = {manifest.file for manifest in manifests}
        for orphan in self.path.glob("*.safetensors"):
            if orphan.name not in known:
                remove_quietly(orphan)
        if not any(self.path.iterdir()):
            self.path.rmdir()
        return manifests[0] if manifests else None

    def set_aside(self, sequence: int) -> list[str]:
        """Files of states after this one that did not verify."""
        names = sorted(path.name for path in self.path.glob(f"*{_CORRUPT}"))
        return [name for name in names if name[:12].isdecimal() and int(name[:12]) > sequence]

    def nbytes(self) -> int:
        """Bytes on disk of all files, including those set aside."""
        return sum(path.stat().st_size for path in self.path.iterdir()) if self.path.is_dir() else 0

    def _read(self, manifest: Manifest) -> Checkpoint:
        path = self.path / manifest.file
        try:
            size = path.stat().st_size
            if size != manifest.nbytes:
                raise _CorruptError(f"{manifest.file} must have {manifest.nbytes} bytes, got {size}")
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            if error.errno in _TRANSIENT:
                raise
            raise _CorruptError(f"{manifest.file}: {error.strerror}") from error
        if digest != manifest.sha256:
            raise _CorruptError(f"{manifest.file} must have the SHA-256 {manifest.sha256}, got {digest}")
        try:
            tensors = read_state(path)
        except StateFileError as error:
            raise _CorruptError(str(error)) from error
        if _RESPONSES not in tensors:
            raise _CorruptError(f"{manifest.file} must have a tensor {_RESPONSES!r}, got none")
        return Checkpoint(manifest, tensors, tensors.pop(_RESPONSES).numpy().tobytes())

    def _prune(self, manifests: list[Manifest]) -> None:
        for old in manifests[GENERATIONS:]:
            # The manifest first: tensors without a manifest are a leftover, a manifest without tensors is corrupt.
            remove_quietly(self.path / old.document)
            remove_quietly(self.path / old.file)

    def _set_aside(self, document: str, reason: str) -> None:
        logger.error("%s/%s does not verify and is set aside: %s", self.path, document, reason)
        for name in (document, f"{document.removesuffix('.json')}.safetensors"):
            try:
                os.rename(self.path / name, self.path / f"{name}{_CORRUPT}")
            except FileNotFoundError:
                continue
            except OSError as error:
                logger.error("%s/%s cannot be renamed: %s", self.path, name, error)


def sync_folder(path: Path) -> None:
    """Sync a folder, so that renames within it survive a power failure."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, chunks: Iterable[Buffer]) -> str:
    """Write a file atomically and durably; returns its SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    temporary = path.with_name(f"{path.name}{_TEMPORARY}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            for chunk in chunks:
                digest.update(chunk)
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, path)
    except OSError:
        remove_quietly(temporary)
        raise
    sync_folder(path.parent)
    return digest.hexdigest()


def remove_quietly(path: Path) -> None:
    """Remove a file that is no longer needed; a failure is only logged."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s is no longer needed and cannot be removed: %s", path, error)


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("%s is empty and cannot be removed: %s", path, error)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in (*_TRANSIENT, errno.ENOENT):
            raise
        raise _CorruptError(str(error)) from error


def _sealed(plain: dict[str, Any]) -> bytes:
    """JSON with a checksum of everything else in it."""
    text = json.dumps(plain, indent=1, sort_keys=True)
    return json.dumps(
        {**plain, "checksum": hashlib.sha256(text.encode()).hexdigest()}, indent=1, sort_keys=True
    ).encode()


#: Types of a manifest's fields. Integers fit into 63 bits.
_KINDS: dict[str, type | UnionType] = {
    "id": str, "owner": str, "name": str, "created": str, "network": dict, "optimizer": dict, "seed": int,
    "durable_every": int, "origin": str, "sequence": int, "writer": str | None, "generation": int, "file": str,
    "nbytes": int, "sha256": str,
}  # fmt: skip


def _check_kind(name: str, kind: type | UnionType, value: Any) -> None:
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if isinstance(value, int):
        fits = fits and 0 <= value < 2**63
    if isinstance(value, str):
        value.encode()  # a lone surrogate is a ValueError: no response could carry it
        fits = fits and (name != "file" or Path(value).name == value)
    if not fits:
        wanted = {int: "an integer of 63 bits", dict: "an object"}.get(kind, "a string")  # type: ignore[arg-type]
        raise _CorruptError(f"{name} must be {wanted}, got {value!r:.80}")


def _parse(raw: bytes) -> Manifest:
    try:
        plain = json.loads(raw)
        del plain["checksum"]
        # Encoding it again must give the same bytes.
        if _sealed(plain) != raw:
            raise _CorruptError("the checksum does not match")
        if plain.pop("format") != FORMAT:
            raise CheckpointError(f"the manifest must have format {FORMAT}, got that of another version of the service")
        for name, kind in _KINDS.items():
            _check_kind(name, kind, plain[name])
        header = Header(**{field.name: plain.pop(field.name) for field in fields(Header)})
        return Manifest(header, **plain)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _CorruptError(f"the file must be a manifest, got {error}") from error
