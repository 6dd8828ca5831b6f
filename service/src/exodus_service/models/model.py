"""A model that is trained: its trainer, how far it is, and whose turn it is.

Whatever changes a model does so on the thread that computes, under the turn of a call. There, a call that succeeded is
recorded: its number is done, its answer kept, and every so often the state is cloned and given to be saved.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from exodus_core.network import Description
from exodus_core.training import Trainer
from exodus_service.errors import ServiceError
from exodus_service.models.fingerprint import fingerprint, same
from exodus_service.models.model_info import description, footprint
from exodus_service.models.progress import Answer, Progress, joined
from exodus_service.models.sequencer import Hold, Turns
from exodus_service.models.storage.checkpoint import Header
from exodus_service.models.storage.state_file import Buffer

__all__ = ["Answer", "Model", "Snapshot", "Turn"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(eq=False)
class Snapshot:
    """A state that belongs together, cloned: nothing changes it any more."""

    model: "Model"
    header: Header
    progress: Progress
    tensors: dict[str, torch.Tensor]
    #: Whether the model is told what became of it.
    told: bool = True


class Keeper(Protocol):
    """Takes snapshots to be saved, without keeping the caller waiting."""

    def submit(self, snapshot: Snapshot) -> object: ...


@dataclass(frozen=True)
class Bounds:
    """Limits of one model: bytes of its answers, seconds that a call waits for those before it, and how many these are.

    Calls that are further ahead cannot all be waiting: they get no more than the seconds, whatever is done meanwhile.
    """

    answer_bytes: int
    sequence_wait_s: float
    reach: int = 256


@dataclass(eq=False)
class Model:
    """One model in memory.

    Attributes:
        header: what it is.
        network: its description.
        trainer: to be used, and looked up, on the computing thread only.
        bounds: of answers and waiting.
        keeper: takes its snapshots; None where it lives in memory alone.
        durable: sequence number of its newest state on disk; None where it lives in memory alone.
        durable_error: why the last save failed, or what had to be set aside when it was loaded; None after a save.
        progress: sequence number and kept answers.
        pins: calls that need it in memory.
        saving: sequence number of the newest snapshot that was given to be saved, and the future of that.
        on_broken: called on the event loop where a call has failed half-way and the state is not to be trusted.
    """

    header: Header
    network: Description
    trainer: Trainer
    bounds: Bounds
    keeper: Keeper | None = None
    durable: int | None = None
    durable_error: str | None = None
    progress: Progress = field(default_factory=Progress)
    pins: int = 0
    on_broken: Callable[["Model"], None] = lambda model: None
    gone: bool = field(default=False, init=False)
    saving: "tuple[int, Future[Any]] | None" = field(default=None, init=False)
    turns: Turns = field(init=False)
    _broken: bool = field(default=False, init=False)
    _full_bytes: int = field(default=0, init=False)
    _trained_bytes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._full_bytes = footprint(self.network, self.optimizer)
        self.turns = Turns(lambda: self.progress, self.bounds.sequence_wait_s, self.bounds.reach)
        self.measure()

    @property
    def owner(self) -> str:
        return self.header.owner

    @property
    def id(self) -> str:
        return self.header.id

    @property
    def name(self) -> str:
        return self.header.name

    @property
    def seed(self) -> int:
        return self.header.seed

    @property
    def durable_every(self) -> int:
        return self.header.durable_every

    @property
    def optimizer(self) -> dict[str, Any]:
        return dict(self.header.optimizer)

    @property
    def device(self) -> torch.device:
        return self.trainer.net.device

    @property
    def sequence(self) -> int:
        """Number of the last training call that was done."""
        return self.progress.sequence

    @property
    def writer(self) -> str | None:
        """Who made the last call, as they call themselves."""
        return self.progress.writer

    @property
    def dirty(self) -> bool:
        """Whether there is something to save."""
        return self.keeper is not None and self.durable != self.sequence

    @property
    def broken(self) -> bool:
        """Whether a call has failed half-way, so that the trainer is not to be used; on the computing thread."""
        return self._broken

    @property
    def being_saved(self) -> "Future[Any] | None":
        """The future of the present state's save, where it is under way."""
        number, future = self.saving or (None, None)
        return None if future is None or future.done() or number != self.sequence else future

    @property
    def idle(self) -> bool:
        """Whether no call needs it."""
        return self.pins == 0 and self.turns.idle

    @property
    def nbytes(self) -> int:
        """Bytes in memory: at least what it grows to in training, and the kept answers."""
        return max(self._full_bytes, self._trained_bytes) + self.progress.nbytes

    def info(self) -> dict[str, Any]:
        """What callers are told of it."""
        return description(
            self.header,
            self.network,
            sequence=self.sequence,
            durable=self.durable,
            in_memory=True,
            writer=self.writer,
            durable_error=self.durable_error,
        )

    @asynccontextmanager
    async def turn(
        self, sequence: int, digest: str, deadline: float | None = None, writer: str | None = None
    ) -> AsyncIterator["Turn | Answer"]:
        """The turn of the training call with this number; the answer, where the same call was done before.

        Args:
            sequence: the number, 1 for the first call on a new model.
            digest: of the request, to tell the same call from another.
            deadline: a time.monotonic() value.
            writer: who makes the call.

        Raises:
            ServiceError: sequence_conflict, sequence_gap, answer_expired, deadline; not_found if the model was deleted
                meanwhile, not_ready where it is restored.
        """
        taken = await self.turns.take(sequence, digest, deadline, self._ended)
        if isinstance(taken, Answer):
            yield taken
            return
        try:
            yield Turn(self, sequence, digest, writer, taken)
        finally:
            taken.leave()

    @asynccontextmanager
    async def exclusive(self, deadline: float | None = None) -> AsyncIterator[None]:
        """The model for a while, between training calls, without a number. Raises ServiceError as `turn` does."""
        hold = await self.turns.exclusive(deadline)
        try:
            yield
        finally:
            hold.leave()

    def near(self, sequence: int) -> bool:
        """True if the call of this number is to be opened, as `Turns.near` says. On any thread."""
        return self.turns.near(sequence)

    async def approach(self, sequence: int, deadline: float | None = None) -> None:
        """Return when the call of this number is near. Raises ServiceError as `turn` does."""
        await self.turns.approach(sequence, deadline)

    async def wait_for(self, sequence: int, deadline: float | None = None) -> None:
        """Return when the training call with this number has been done. Raises ServiceError as `turn` does."""
        await self.turns.reached(sequence, deadline)

    def close(self, problem: Callable[[], ServiceError]) -> None:
        """It is not the service's model any more: refuse calls that wait, save nothing more of it."""
        self.gone = True
        self.turns.close(problem)

    def measure(self) -> None:
        """Look up what the trainer takes; on the thread that uses it."""
        self._trained_bytes = self.trainer.nbytes

    def snapshot(self) -> Snapshot:
        """Clone the state; on the computing thread."""
        return Snapshot(self, self.header, self.progress, self.trainer.state())

    def replace(self, header: Header, trainer: Trainer, sequence: int) -> None:
        """Go on from another state, which is durable where anything is; on the computing thread, under a hold."""
        self.header, self.trainer, self.progress = header, trainer, Progress(sequence)
        self._full_bytes = footprint(self.network, self.optimizer)
        if self.keeper is not None:
            self.durable, self.durable_error = sequence, None
        self.measure()

    def record(self, answer: Answer) -> None:
        """A call was done; on the computing thread."""
        self.progress = self.progress.after(answer, self.bounds.answer_bytes)
        try:
            if answer.sequence % self.durable_every == 0:
                self.measure()
                if self.keeper is not None:
                    self.keeper.submit(self.snapshot())
        except (RuntimeError, MemoryError) as error:  # the call itself was done, whatever comes of its snapshot
            self.durable_error = f"the state could not be cloned to be saved: {error}"
            logger.error("model %s at %d: %s", self.id, answer.sequence, self.durable_error)

    def distrust(self) -> None:
        """A call has changed the trainer and was not done; on the computing thread."""
        self._broken = True

    def _ended(self) -> None:
        if self._broken and not self.gone:
            self.on_broken(self)


class Turn:
    """The model belongs to one training call."""

    def __init__(self, model: Model, sequence: int, digest: str, writer: str | None, hold: Hold) -> None:
        self.model = model
        self.sequence = sequence
        self._digest = digest
        self._writer = writer
        self._hold = hold
        self._recorded = False

    def guard(self, work: Callable[[], T]) -> Callable[[], T]:
        """The work as it is to be run on the computing thread, once.

        The model belongs to the call until it has ended, even where the call is left before. Where the call was left
        before it began, it raises concurrent.futures.CancelledError in place of the work.
        """

        def run() -> T:
            self._hold.begin()
            try:
                before = fingerprint(self.model.trainer)
                try:
                    return work()
                finally:
                    if not self._recorded and not same(before, fingerprint(self.model.trainer)):
                        self.model.distrust()
            finally:
                self._hold.end()

        return run

    def record(self, answer: Buffer | Iterable[Buffer], content_type: str) -> None:
        """The work has succeeded and this is its answer, in one piece or several; within the guarded work, once.

        The number is done from here on. The pieces are copied where the answer is kept.
        """
        body = joined(answer, self.model.bounds.answer_bytes)
        self.model.record(Answer(self.sequence, self._digest, self._writer, content_type, body))
        self._recorded = True
