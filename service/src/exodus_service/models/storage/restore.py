"""Saved models, read: what is known of them, and what they go on from. On threads that may wait for the disk."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from exodus_core import network as networks
from exodus_core.errors import DescriptionError
from exodus_core.network import Description
from exodus_core.training import StateError, Trainer, parse_optimizer
from exodus_service.errors import ServiceError
from exodus_service.models.model_info import description, footprint
from exodus_service.models.model_spec import is_id, new_trainer, settle
from exodus_service.models.progress import Progress
from exodus_service.models.storage.checkpoint import CheckpointError, Header, Manifest
from exodus_service.models.storage.state_dir import StateDir

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A saved model, without its tensors."""

    manifest: Manifest
    network: Description

    @property
    def header(self) -> Header:
        return self.manifest.header

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return max(footprint(self.network, dict(self.header.optimizer)), self.manifest.nbytes)

    def info(self) -> dict[str, Any]:
        """What callers are told of it."""
        sequence = self.manifest.sequence
        return description(
            self.header,
            self.network,
            sequence=sequence,
            durable=sequence,
            in_memory=False,
            writer=self.manifest.writer,
        )


@dataclass(frozen=True)
class Loaded:
    """A saved model, with everything that training depends on.

    `damage` says which later states did not verify, None where all did.
    """

    header: Header
    trainer: Trainer
    progress: Progress
    damage: str | None


class Saved:
    """The models of a folder.

    Args:
        disk: the folder; None: there are none.
        device: where they are loaded to.
    """

    def __init__(self, disk: StateDir | None, device: torch.device) -> None:
        self._disk = disk
        self._device = device

    def has(self, owner: str, id: str) -> bool:
        """True if there is something of a model, readable or not. Raises ServiceError: internal_error."""
        try:
            return self._disk is not None and is_id(id) and self._disk.has(owner, id)
        except OSError as error:
            raise _unreadable(id, error) from error

    def find(self, owner: str, id: str) -> Found:
        """Look a model up. Raises ServiceError: not_found, internal_error."""
        try:
            manifest = self._disk.newest(owner, id) if self._disk is not None and is_id(id) else None
        except (CheckpointError, OSError) as error:
            raise _unreadable(id, error) from error
        if manifest is None:
            raise unknown(id)
        try:
            parse_optimizer(manifest.header.optimizer)
            return Found(manifest, networks.parse(manifest.header.network))
        except DescriptionError as error:  # saved by another version
            raise _unreadable(id, error) from error

    def list(self, owner: str, known: Collection[str] = ()) -> list[Found]:
        """The models of an owner but those that are known; what cannot be read is left out and named in the log."""
        found = []
        for id in self._disk.ids(owner) if self._disk is not None else ():
            if id in known:
                continue
            try:
                found.append(self.find(owner, id))
            except ServiceError as problem:
                logger.error("model %s is not listed: %s", id, problem.detail)
        return found

    def load(self, found: Found) -> Loaded:
        """Read the newest state that is sound. Raises ServiceError: internal_error where none is."""
        assert self._disk is not None
        owner, id = found.header.owner, found.header.id
        try:
            folder = self._disk.folder(owner, id)
            checkpoint = folder.read()
        except (CheckpointError, OSError) as error:
            raise _unreadable(id, error) from error
        header = checkpoint.manifest.header
        trainer = new_trainer(found.network, header.optimizer, header.seed, self._device)
        try:
            trainer.load_state(checkpoint.tensors)
        except StateError as error:
            raise _unreadable(id, error) from error
        settle(self._device)
        sequence = checkpoint.manifest.sequence
        aside = ", ".join(folder.set_aside(sequence))
        damage = f"a saved state did not verify and is set aside ({aside}); went on from state {sequence}"
        return Loaded(header, trainer, Progress.unpack(sequence, checkpoint.answers), damage if aside else None)


def unknown(id: str) -> ServiceError:
    """The answer to who asks for a model that is not there, or not theirs."""
    return ServiceError("not_found", f"there is no model {str(id)[:64]!r}")


def _unreadable(id: str, error: CheckpointError | DescriptionError | StateError | OSError) -> ServiceError:
    return ServiceError("internal_error", f"no saved state of the model {id!r} can be read: {error}")
