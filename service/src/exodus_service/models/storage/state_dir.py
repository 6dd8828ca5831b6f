"""The folder of all saved models: locked by one service, bounded in bytes, listed at the start."""

import errno
import fcntl
import logging
import os
import secrets
import shutil
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from exodus_service.models.storage.checkpoint import (
    GENERATIONS,
    CheckpointError,
    Folder,
    Manifest,
    Snapshot,
    remove_quietly,
    sync_folder,
)

logger = logging.getLogger(__name__)

_TRASH = ".trash-"

#: Errors of file systems that cannot lock folders, because they lock only files open for writing.
_NO_FOLDER_LOCKS = (errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOLCK, errno.ENOTSUP)


class StateDirError(Exception):
    """The folder is used by another service or cannot be written to."""


@dataclass(frozen=True)
class _Listed:
    """A saved model in the listing: `nbytes` on disk."""

    created: str
    nbytes: int


class StateDir:
    """STATE_DIR/models with a folder for each model, and STATE_DIR/lock. Any thread may use it.

    A listing of the models is kept in memory: filled from the manifests at the start, then by each write and removal.

    Two locks keep a second service out: one of the file `lock`, which names the process, and one of the folder
    `models`, which lasts even if someone removes the file. On file systems that cannot lock folders, as NFS, there is
    only the first.

    Args:
        path: the folder; created if missing.
        max_bytes: of all models together.

    Raises:
        StateDirError: it cannot be used.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._models = path / "models"
        self._max_bytes = max_bytes
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._models.mkdir(mode=0o700, exist_ok=True)
            with ExitStack() as held:
                self._take(held)
                sync_folder(path)
                self._tidy()
                self._lock = threading.Lock()
                self._listing = self._scan()
                self._held = held.pop_all()
        except OSError as error:
            raise StateDirError(f"state_dir must be a folder that can be written to, got {path}: {error}") from error

    def folder(self, owner: str, id: str) -> Folder:
        """The folder of a model. Equal ids of different owners are different folders, as an id has no dot in it."""
        return Folder(self._models / (f"{id}.{owner[:32]}" if owner else id))

    def ids(self, owner: str) -> list[str]:
        """Ids of the saved models of an owner, by age."""
        with self._lock:
            own = [(listed.created, id) for (whose, id), listed in self._listing.items() if whose == owner]
        return [id for _, id in sorted(own)]

    def nbytes(self) -> int:
        """Bytes on disk of all models of all owners."""
        with self._lock:
            return sum(listed.nbytes for listed in self._listing.values())

    def has(self, owner: str, id: str) -> bool:
        """True if there is a state of the model, readable or not."""
        return self.folder(owner, id).exists()

    def newest(self, owner: str, id: str) -> Manifest | None:
        """The newest manifest of a model, None if the owner has no model of this id. Raises CheckpointError."""
        folder = self.folder(owner, id)
        if not folder.exists():
            return None
        manifests = folder.manifests()
        if not manifests:
            raise CheckpointError(f"{folder.path} must have a manifest that verifies, got none")
        newest = manifests[0]
        return newest if (newest.header.owner, newest.header.id) == (owner, id) else None

    def write(self, snapshot: Snapshot) -> Manifest:
        """Make a snapshot the newest state of its model; on disk for good when this returns.

        Raises:
            OSError: the disk failed or is full; nothing has changed.
        """
        header = snapshot.header
        folder = self.folder(header.owner, header.id)
        if any(tensor.is_cuda for tensor in snapshot.tensors.values()):
            torch.cuda.synchronize()  # the clones are made on the stream of another thread
        manifest = folder.write(snapshot, self._require_room)
        try:
            nbytes = folder.nbytes()
        except OSError as error:  # the snapshot itself is written
            logger.warning("%s: size unknown: %s", folder.path, error)
            nbytes = GENERATIONS * manifest.space
        with self._lock:
            self._listing[header.owner, header.id] = _Listed(header.created, nbytes)
        return manifest

    def remove(self, owner: str, id: str) -> None:
        """Remove a model with all its states, atomically.

        Raises:
            OSError: the disk failed; the model is unchanged.
        """
        path = self.folder(owner, id).path
        trash = self._models / f"{_TRASH}{secrets.token_hex(8)}"
        try:
            os.rename(path, trash)
        except FileNotFoundError:
            return
        try:
            sync_folder(self._models)
        except OSError:
            os.rename(trash, path)
            raise
        with self._lock:
            self._listing.pop((owner, id), None)
        shutil.rmtree(trash, ignore_errors=True)

    def close(self) -> None:
        """Release the locks."""
        self._held.close()

    def _take(self, held: ExitStack) -> None:
        file = _opened(held, self.path / "lock", os.O_RDWR | os.O_CREAT)
        folder = _opened(held, self._models, os.O_RDONLY | os.O_DIRECTORY)
        free = _locked(file)
        try:
            free = free and _locked(folder)
        except OSError as error:
            if error.errno not in _NO_FOLDER_LOCKS:
                raise
        if not free:
            holder = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StateDirError(
                f"state_dir must be a folder of its own, got {self.path}, which another service uses, process {holder}"
            )
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)

    def _require_room(self, added: int, freed: int) -> None:
        """Refuse a save that would exceed the bound. Raises OSError."""
        total = self.nbytes() - freed + added
        if total > self._max_bytes:
            raise OSError(
                errno.ENOSPC,
                f"the saved models would take {total} bytes, models_disk_bytes allows {self._max_bytes}; delete some",
            )

    def _folders(self) -> list[Folder]:
        paths = sorted(self._models.iterdir())
        return [Folder(path) for path in paths if path.is_dir() and not path.name.startswith(_TRASH)]

    def _tidy(self) -> None:
        for index in self.path.glob("index.sqlite*"):  # of versions before 0.2, which kept the listing there
            remove_quietly(index)
        for trash in self._models.glob(f"{_TRASH}*"):
            shutil.rmtree(trash, ignore_errors=True)
        for folder in self._folders():
            try:
                folder.tidy()
            except (CheckpointError, OSError) as error:
                logger.error("%s is left alone: %s", folder.path, error)

    def _scan(self) -> dict[tuple[str, str], _Listed]:
        listing = {}
        for folder in self._folders():
            try:
                manifests = folder.manifests()
                nbytes = folder.nbytes()
            except (CheckpointError, OSError) as error:
                logger.error("%s is not served: %s", folder.path, error)
                continue
            header = manifests[0].header if manifests else None
            if header is None or self.folder(header.owner, header.id).path != folder.path:
                logger.error("%s is left alone: it has no state of a model of its name", folder.path)
                continue
            listing[header.owner, header.id] = _Listed(header.created, nbytes)
        return listing


def _opened(held: ExitStack, path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    held.callback(os.close, descriptor)
    return descriptor


def _locked(descriptor: int) -> bool:
    """Lock a file or folder until it is closed; false if another process has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    return True
