"""The models in memory, within a bound of bytes: the least recently used that no call needs leave it, saved."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager

from exodus_service.errors import ServiceError
from exodus_service.models.model import Model
from exodus_service.models.storage.writer import GoneError

logger = logging.getLogger(__name__)

Key = tuple[str, str]


class Residents:
    """All on one event loop.

    Args:
        max_bytes: of all models in memory.
        save: makes a model durable, and raises OSError or a ServiceError where that fails; None: models live in memory
            alone, and none may leave.
        left: called when a model has left.
    """

    def __init__(
        self,
        max_bytes: int,
        save: Callable[[Model], Awaitable[None]] | None,
        left: Callable[[Model], None],
    ) -> None:
        self._max_bytes = max_bytes
        self._save = save
        self._left = left
        self._models: OrderedDict[Key, Model] = OrderedDict()
        self._making_room = asyncio.Lock()
        self._reserved = 0
        self._trimming: asyncio.Task[None] | None = None

    @property
    def nbytes(self) -> int:
        """What the models in memory take, and those that are coming."""
        return self._reserved + sum(model.nbytes for model in self._models.values())

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._models.values()))

    def get(self, key: Key) -> Model | None:
        """The model of this owner and id, if it is in memory."""
        return self._models.get(key)

    def add(self, model: Model) -> None:
        """Take in a model, within the block of `room`."""
        self._models[model.owner, model.id] = model

    def pop(self, model: Model) -> None:
        """Let go of a model, saved or not."""
        if self._models.get((model.owner, model.id)) is model:
            del self._models[model.owner, model.id]

    @asynccontextmanager
    async def pinned(self, model: Model) -> AsyncIterator[None]:
        """Keep a model in memory while the block is; it is the most recently used."""
        model.pins += 1
        if self._models.get((model.owner, model.id)) is model:
            self._models.move_to_end((model.owner, model.id))
        try:
            yield
        finally:
            model.pins -= 1
            self.trim()

    @asynccontextmanager
    async def room(self, nbytes: int, *, new: bool = False) -> AsyncIterator[None]:
        """Room for a model that is taken in within the block.

        One that is not new may be larger than the bound, as its answers have grown or the bound was lowered; it then
        is alone.

        Raises:
            ServiceError: out_of_memory: it never fits; queue_full: not while calls use the models in memory.
        """
        if nbytes > self._max_bytes and new:
            raise ServiceError(
                "out_of_memory",
                f"the model grows to {nbytes} bytes with its gradients and optimiser; all models in memory may take "
                f"{self._max_bytes}",
            )
        nbytes = min(nbytes, self._max_bytes)
        async with self._making_room:
            await self._shrink(self, self._max_bytes - nbytes)
            if self.nbytes + nbytes > self._max_bytes:
                raise self._refusal(nbytes)
            self._reserved += nbytes
        try:
            yield
        finally:
            self._reserved -= nbytes

    def trim(self) -> None:
        """Where models have outgrown the bound, have some leave soon."""
        if self._save is None or self._trimming is not None or self.nbytes <= self._max_bytes:
            return
        self._trimming = asyncio.create_task(self._trim())

    async def _trim(self) -> None:
        try:
            async with self._making_room:
                # The last one used stays: it would only have to come back.
                await self._shrink(list(self)[:-1], self._max_bytes)
        finally:
            self._trimming = None

    async def close(self) -> None:
        """Stop the work in the background."""
        if self._trimming is not None:
            self._trimming.cancel()
            await asyncio.wait({self._trimming})

    async def _shrink(self, leaving: Iterable[Model], nbytes: int) -> None:
        """Have idle models of these leave until all others take no more than this, or none can."""
        if self._save is None:
            return
        for model in leaving:
            if self.nbytes <= nbytes:
                return
            if model.idle:
                await self._leave(model, self._save)

    async def _leave(self, model: Model, save: Callable[[Model], Awaitable[None]]) -> None:
        if model.dirty:
            try:
                await save(model)
            except GoneError:  # it was deleted meanwhile
                return
            except (OSError, ServiceError) as error:
                logger.warning("model %s stays in memory, since it cannot be saved: %s", model.id, error)
                return
        # A call may have come while it was saved.
        if model.idle and not model.dirty and self._models.get((model.owner, model.id)) is model:
            self.pop(model)
            model.close(lambda: ServiceError("not_ready", "the model has left memory"))
            self._left(model)
            logger.info("model %s has left memory at %d", model.id, model.sequence)

    def _refusal(self, nbytes: int) -> ServiceError:
        detail = f"the model takes {nbytes} bytes, those in memory {self.nbytes} of {self._max_bytes}"
        if self._save is None:
            return ServiceError("out_of_memory", f"{detail}; none can leave, since there is no state_dir; delete some")
        return ServiceError("queue_full", f"{detail}, and calls need them")
