"""The models of a state folder: found, loaded, written, removed.

Reads block and belong on a helper thread; writes run on the writer's thread and return its future.
"""

import logging
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from exodus_core import network as networks
from exodus_core.errors import DescriptionError
from exodus_core.training import StateError, Trainer, parse_optimizer
from exodus_service.errors import ServiceError
from exodus_service.models.model_spec import ModelSpec, is_id, synchronize
from exodus_service.models.sequencer import Progress
from exodus_service.models.storage.checkpoint import CheckpointError, Manifest, Snapshot
from exodus_service.models.storage.checkpoint_writer import Checkpointer, CheckpointWriter, OnSaved
from exodus_service.models.storage.state_dir import StateDir

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedModel:
    """A saved model, without its tensors."""

    spec: ModelSpec
    manifest: Manifest

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return max(self.spec.footprint, self.manifest.nbytes)

    def info(self) -> dict[str, Any]:
        """The model as callers see it."""
        sequence, writer = self.manifest.sequence, self.manifest.writer
        return self.spec.info(sequence=sequence, durable=sequence, in_memory=False, writer=writer)


@dataclass(frozen=True)
class LoadedModel:
    """A saved model, with everything that training depends on.

    `damage` names later states that did not verify; None if all did.
    """

    spec: ModelSpec
    trainer: Trainer
    progress: Progress
    damage: str | None


class SavedModels:
    """The models of a state folder.

    Args:
        path: the folder.
        max_bytes: of all models on disk.
        device: where models are loaded to.

    Raises:
        StateDirError: the folder cannot be used, or another service uses it.
    """

    def __init__(self, path: Path, max_bytes: int, device: torch.device) -> None:
        self._state_dir = StateDir(path, max_bytes)
        self._writer = CheckpointWriter()
        self._device = device

    def has(self, owner: str, id: str) -> bool:
        """True if there is a state of the model, readable or not. Raises ServiceError: internal_error."""
        try:
            return is_id(id) and self._state_dir.has(owner, id)
        except OSError as error:
            raise _unreadable(id, error) from error

    def find(self, owner: str, id: str) -> SavedModel:
        """Look a model up. Raises ServiceError: not_found, internal_error."""
        try:
            manifest = self._state_dir.newest(owner, id) if is_id(id) else None
        except (CheckpointError, OSError) as error:
            raise _unreadable(id, error) from error
        if manifest is None:
            raise unknown(id)
        try:
            parse_optimizer(manifest.header.optimizer)
            return SavedModel(ModelSpec(manifest.header, networks.parse(manifest.header.network)), manifest)
        except DescriptionError as error:  # saved by another version
            raise _unreadable(id, error) from error

    def list(self, owner: str, known: Collection[str] = ()) -> list[SavedModel]:
        """The models of an owner except those `known`; models that cannot be read are omitted and logged."""
        found = []
        for id in self._state_dir.ids(owner):
            if id in known:
                continue
            try:
                found.append(self.find(owner, id))
            except ServiceError as problem:
                logger.error("model %s is not listed: %s", id, problem.detail)
        return found

    def load(self, saved: SavedModel) -> LoadedModel:
        """Load the newest state that verifies. Raises ServiceError: internal_error if none does."""
        owner, id = saved.spec.header.owner, saved.spec.header.id
        try:
            folder = self._state_dir.folder(owner, id)
            checkpoint = folder.read()
        except (CheckpointError, OSError) as error:
            raise _unreadable(id, error) from error
        spec = ModelSpec(checkpoint.manifest.header, saved.spec.network)
        trainer = spec.build(self._device)
        try:
            trainer.load_state(checkpoint.tensors)
        except StateError as error:
            raise _unreadable(id, error) from error
        synchronize(self._device)
        sequence = checkpoint.manifest.sequence
        aside = ", ".join(folder.set_aside(sequence))
        damage = f"a saved state did not verify and is set aside ({aside}); continued from state {sequence}"
        return LoadedModel(spec, trainer, Progress.unpack(sequence, checkpoint.responses), damage if aside else None)

    def checkpointer(self, on_saved: OnSaved) -> Checkpointer:
        """Saves the states of one model, and calls `on_saved` with the result of each."""
        return Checkpointer(self._writer, self._state_dir.write, on_saved)

    def write(self, snapshot: Snapshot) -> "Future[Any]":
        """Write a state, whatever becomes of other snapshots of its model."""
        return self._writer.submit(partial(self._state_dir.write, snapshot))

    def remove(self, owner: str, id: str, checkpointer: Checkpointer | None) -> "Future[Any]":
        """Remove a model. `checkpointer` is that of the model if it is in memory; it then saves nothing more."""
        remove = partial(self._state_dir.remove, owner, id)
        return self._writer.submit(remove) if checkpointer is None else checkpointer.remove(remove)

    def flush(self) -> "Future[Any]":
        """The future of all writes so far."""
        return self._writer.submit(lambda: None)

    def close(self, timeout: float) -> None:
        """Finish writing, within `timeout` seconds, and release the folder."""
        if self._writer.close(timeout):
            self._state_dir.close()
        else:
            logger.error("a checkpoint is still being written; the folder stays locked until the process ends")


def unknown(id: str) -> ServiceError:
    """The error for a model that does not exist, or is another owner's."""
    return ServiceError("not_found", f"there is no model {str(id)[:64]!r}")


def _unreadable(id: str, error: CheckpointError | DescriptionError | StateError | OSError) -> ServiceError:
    return ServiceError("internal_error", f"no saved state of the model {id!r} can be read: {error}")
