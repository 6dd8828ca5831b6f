"""A model in memory: its trainer, the order of its training calls, and its checkpoints.

The trainer is used, and changed, on the computing thread only, or in its place on the event loop, within the lease of
a call. There, every `durable_every` calls, the state is cloned and handed to the thread that writes.
"""

import logging
import math
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import torch

from exodus_core.network import Description
from exodus_core.training import Trainer
from exodus_service.errors import ServiceError
from exodus_service.models.model_spec import ModelSpec
from exodus_service.models.sequencer import Progress, Sequencer, SequencerLimits
from exodus_service.models.storage.checkpoint import Snapshot
from exodus_service.models.storage.checkpoint_writer import Checkpointer, OnSaved

logger = logging.getLogger(__name__)

#: Seconds that the event loop can wait for a computation.
BRIEF_S = 0.005

#: Kinds of work whose time and memory are remembered.
_KINDS_OF_WORK = 64


class Model:
    """A model in memory.

    Args:
        spec: its constant properties.
        trainer: its state.
        limits: of the sequencer.
        progress: training calls done.
        checkpointer: makes the checkpointer, which tells the given callback what was saved; None: the model lives in
            memory only. With it, `progress` is on disk already.
        on_broken: called on the event loop when a call has failed half-way and the state must not be used.

    Attributes:
        sequencer: hands out the steps of training calls.
        checkpointer: saves its snapshots; None if the model lives in memory only.
        pins: number of calls that need the model in memory.
    """

    def __init__(
        self,
        spec: ModelSpec,
        trainer: Trainer,
        limits: SequencerLimits,
        *,
        progress: Progress | None = None,
        checkpointer: Callable[[OnSaved], Checkpointer] | None = None,
        on_broken: Callable[["Model"], None] = lambda model: None,
    ) -> None:
        progress = Progress() if progress is None else progress
        self.spec = spec
        self.trainer = trainer
        self.sequencer = Sequencer(
            limits,
            progress,
            None if checkpointer is None else progress.sequence,
            watch=lambda: _watch(self.trainer),
            on_recorded=self._checkpoint_if_due,
            on_broken=lambda: on_broken(self),
        )
        self.checkpointer = None if checkpointer is None else checkpointer(self.sequencer.saved)
        self.pins = 0
        self._trained_bytes = trainer.nbytes
        self._seconds: dict[Hashable, float] = {}
        self._activation_bytes = lru_cache(_KINDS_OF_WORK)(
            lambda batch, time, training: spec.network.memory(batch, time, training=training)
        )

    @property
    def owner(self) -> str:
        return self.spec.header.owner

    @property
    def id(self) -> str:
        return self.spec.header.id

    @property
    def network(self) -> Description:
        return self.spec.network

    @property
    def device(self) -> torch.device:
        return self.trainer.net.device

    @property
    def sequence(self) -> int:
        """Number of the last training call done."""
        return self.sequencer.sequence

    @property
    def durable(self) -> int | None:
        """Sequence number of the newest state on disk; None if the model lives in memory only."""
        return self.sequencer.durable

    @property
    def durable_error(self) -> str | None:
        """Why the newest save failed, or what was set aside when the model was loaded; None after a save."""
        return self.sequencer.durable_error

    @property
    def idle(self) -> bool:
        """True if no call needs the model."""
        return self.pins == 0 and self.sequencer.idle

    def activation_bytes(self, batch: int, time: int, *, training: bool) -> int:
        """`Description.memory` of the network, remembered: it takes longer than to decode a small call."""
        return self._activation_bytes(batch, time, training)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: at least what it grows to in training, its CUDA graphs, and the cached responses."""
        trained = max(self.spec.footprint, self._trained_bytes)
        return trained + self.trainer.graph_nbytes + self.sequencer.progress.nbytes

    def is_brief(self, work: Hashable) -> bool:
        """True if equal work took at most BRIEF_S the last time."""
        return self._seconds.get(work, math.inf) <= BRIEF_S

    def took(self, work: Hashable, seconds: float) -> None:
        """Note how long some work has computed; on the computing thread."""
        if len(self._seconds) >= _KINDS_OF_WORK:
            self._seconds.clear()
        self._seconds[work] = seconds

    def info(self) -> dict[str, Any]:
        """The model as callers see it."""
        return self.spec.info(
            sequence=self.sequence,
            durable=self.durable,
            in_memory=True,
            writer=self.sequencer.progress.writer,
            durable_error=self.durable_error,
        )

    def snapshot(self) -> Snapshot:
        """Clone the state; on the computing thread."""
        progress = self.sequencer.progress
        return Snapshot(self.spec.header, progress.sequence, progress.writer, self.trainer.state(), progress.pack)

    def replace(self, spec: ModelSpec, trainer: Trainer, sequence: int) -> None:
        """Continue from another state, which is on disk; on the computing thread, within a lease."""
        self.spec, self.trainer = spec, trainer
        self.sequencer.restart(sequence)
        self._trained_bytes = trainer.nbytes
        self._seconds.clear()

    def close(self, refusal: Callable[[], ServiceError]) -> None:
        """Refuse all calls that wait or come, and save nothing more: the model was deleted or evicted."""
        if self.checkpointer is not None:
            self.checkpointer.close()
        self.sequencer.close(refusal)

    def _checkpoint_if_due(self, sequence: int) -> None:
        if sequence % self.spec.header.durable_every != 0:
            return
        try:
            self._trained_bytes = self.trainer.nbytes
            if self.checkpointer is not None:
                self.checkpointer.submit(self.snapshot())
        except Exception as error:  # the call is recorded, whatever becomes of its snapshot
            logger.exception("model %s: state %d could not be cloned to be saved", self.id, sequence)
            self.sequencer.saved(sequence, error)


def _watch(trainer: Trainer) -> Callable[[], bool]:
    """Begin to watch a trainer; the function returned says if it has changed since. Compares versions, not values."""
    before = _versions(trainer)

    def changed() -> bool:
        after = _versions(trainer)
        return len(before) != len(after) or any(
            old is not new or version != now for (old, version), (new, now) in zip(before, after, strict=True)
        )

    return changed


def _versions(trainer: Trainer) -> list[tuple[torch.Tensor, int]]:
    """Every tensor that training changes, with the number of its in-place changes."""
    return [(tensor, tensor._version) for tensor in trainer.tensors()]
