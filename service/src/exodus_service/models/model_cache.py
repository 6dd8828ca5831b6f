"""LRU cache of loaded models, bounded in bytes. Idle models are saved and evicted."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager

from exodus_service.errors import ServiceError
from exodus_service.models.model import Model
from exodus_service.models.storage.checkpoint_writer import GoneError

logger = logging.getLogger(__name__)

Key = tuple[str, str]


class ModelCache:
    """LRU cache of models by owner and id, on one event loop.

    Args:
        max_bytes: of all models in memory.
        save: makes a model durable; raises OSError or a ServiceError if that fails. None: models live in memory only,
            and none is evicted.
        on_evicted: called after a model was evicted.
    """

    def __init__(
        self,
        max_bytes: int,
        save: Callable[[Model], Awaitable[None]] | None,
        on_evicted: Callable[[Model], None],
    ) -> None:
        self._max_bytes = max_bytes
        self._save = save
        self._on_evicted = on_evicted
        self._models: OrderedDict[Key, Model] = OrderedDict()
        self._evicting = asyncio.Lock()
        self._reserved = 0
        self._trimming: asyncio.Task[None] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the models in memory, and of reservations."""
        return self._reserved + sum(model.nbytes for model in self._models.values())

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._models.values()))

    def get(self, key: Key) -> Model | None:
        """The model of this owner and id, if it is in memory."""
        return self._models.get(key)

    def add(self, model: Model) -> None:
        """Add a model, within the block of `reserve`."""
        self._models[model.owner, model.id] = model

    def discard(self, model: Model) -> None:
        """Drop a model without saving it."""
        if self._models.get((model.owner, model.id)) is model:
            del self._models[model.owner, model.id]

    @asynccontextmanager
    async def pin(self, model: Model) -> AsyncIterator[None]:
        """Keep a model in memory for the duration of the block, and mark it as the most recently used."""
        model.pins += 1
        if self._models.get((model.owner, model.id)) is model:
            self._models.move_to_end((model.owner, model.id))
        try:
            yield
        finally:
            model.pins -= 1
            self.trim()

    @asynccontextmanager
    async def reserve(self, nbytes: int, *, new: bool = False) -> AsyncIterator[None]:
        """Reserve memory for a model that is added within the block; evicts others to make room.

        A saved model may be larger than the bound, because its cached responses have grown or the bound was lowered;
        it is then the only one. A `new` model may not.

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
        async with self._evicting:
            await self._shrink(self, self._max_bytes - nbytes)
            if self.nbytes + nbytes > self._max_bytes:
                raise self._refusal(nbytes)
            self._reserved += nbytes
        try:
            yield
        finally:
            self._reserved -= nbytes

    def trim(self) -> None:
        """Begin to evict models in the background if they have outgrown the bound."""
        if self._save is None or self._trimming is not None or self.nbytes <= self._max_bytes:
            return
        self._trimming = asyncio.create_task(self._trim())

    async def close(self) -> None:
        """Stop evicting."""
        if self._trimming is not None:
            self._trimming.cancel()
            await asyncio.wait({self._trimming})

    async def _trim(self) -> None:
        try:
            async with self._evicting:
                # The most recently used stays: it would be loaded again at once.
                await self._shrink(list(self)[:-1], self._max_bytes)
        finally:
            self._trimming = None

    async def _shrink(self, candidates: Iterable[Model], nbytes: int) -> None:
        """Evict idle candidates until all models together take at most `nbytes`."""
        if self._save is None:
            return
        for model in candidates:
            if self.nbytes <= nbytes:
                return
            if model.idle:
                await self._evict(model, self._save)

    async def _evict(self, model: Model, save: Callable[[Model], Awaitable[None]]) -> None:
        if model.sequencer.dirty:
            try:
                await save(model)
            except GoneError:  # it was deleted meanwhile
                return
            except (OSError, ServiceError) as error:
                logger.warning("model %s stays in memory, because it cannot be saved: %s", model.id, error)
                return
        # A call may have arrived during the save.
        if model.idle and not model.sequencer.dirty and self._models.get((model.owner, model.id)) is model:
            self.discard(model)
            model.close(lambda: ServiceError("not_ready", "the model was evicted from memory; send again"))
            self._on_evicted(model)
            logger.info("model %s was evicted at %d", model.id, model.sequence)

    def _refusal(self, nbytes: int) -> ServiceError:
        detail = f"the model takes {nbytes} bytes, those in memory {self.nbytes} of {self._max_bytes}"
        if self._save is None:
            return ServiceError(
                "out_of_memory", f"{detail}; none can be evicted, since there is no state_dir; delete some"
            )
        return ServiceError("queue_full", f"{detail}, and calls use them")
