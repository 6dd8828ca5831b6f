"""The models of a service: created, found, saved, loaded, deleted.

The event loop decides; it neither computes nor waits for the disk. Work that must not overlap a computation (cloning or
replacing a state) runs on the computing thread, writes run on the thread of the `CheckpointWriter`, reads and builds on
threads of the store. Creating, loading, replacing and deleting one id are `KeyedTasks`: one after the other.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from exodus_core.training import Trainer
from exodus_service.errors import ServiceError
from exodus_service.models.forward_contexts import ForwardContexts
from exodus_service.models.keyed_tasks import KeyedTasks
from exodus_service.models.model import Model
from exodus_service.models.model_cache import Key, ModelCache
from exodus_service.models.model_spec import ModelSpec, is_id, parse_spec
from exodus_service.models.saved_models import SavedModels, unknown
from exodus_service.models.sequencer import Progress, SequencerLimits
from exodus_service.models.state_transfer import (
    Selection,
    UploadedState,
    export_state,
    import_state,
    read_weights,
    with_weights,
)
from exodus_service.models.storage.checkpoint import Snapshot
from exodus_service.models.storage.checkpoint_writer import GoneError
from exodus_service.models.storage.state_file import Buffer, StateFile
from exodus_service.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")
Execute = Callable[[Callable[[], Any]], "Future[Any]"]
RunInThread = Callable[[Callable[[], Any]], Awaitable[Any]]

_SWEEP_S = 5.0
#: Least bytes of a context: its handle, and the objects of a small graph.
_CONTEXT_BYTES = 32 * 1024


@dataclass(frozen=True)
class Created:
    """A model; `fresh` if this call has created it, not an equal call before."""

    info: dict[str, Any]
    fresh: bool


class Store:
    """All models of all owners; used on one event loop.

    Args:
        settings: limits, and the folder to save in.
        device: where models live.
        execute: runs work on the computing thread and returns its future. None: a thread of the store's own.

    Attributes:
        contexts: activations saved by forward calls, of all owners.
    """

    def __init__(self, settings: Settings, device: torch.device, execute: Execute | None = None) -> None:
        self._settings = settings
        self._device = device
        self._own = ThreadPoolExecutor(1, "exodus-store-device") if execute is None else None
        self._execute: Execute = execute or self._own.submit  # type: ignore[union-attr]
        self._threads = ThreadPoolExecutor(2, "exodus-store")
        # A separate thread, so that no training call waits for a model to be created.
        self._maker = ThreadPoolExecutor(1, "exodus-store-maker")
        self._limits = SequencerLimits(settings.answer_bytes, settings.sequence_wait_s, settings.max_queue)
        self.contexts = ForwardContexts(settings.context_bytes, settings.context_ttl_s, least=_CONTEXT_BYTES)
        save = None if settings.state_dir is None else self._save
        self._cache = ModelCache(settings.models_memory_bytes, save, self._forget_contexts)
        self._tasks = KeyedTasks()
        self._saved: SavedModels | None = None
        self._broken: set[Key] = set()
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the state folder.

        Raises:
            StateDirError: it cannot be used, or another service uses it.
        """
        path = self._settings.state_dir
        if path is None:
            logger.warning("models live in memory only and are lost when the service ends; EXODUS_STATE_DIR saves them")
        else:
            self._saved = await self._read(partial(SavedModels, path, self._settings.models_disk_bytes, self._device))
            logger.info("models are saved in %s", path)
        self._sweeping = asyncio.create_task(self._sweep())

    async def close(self, timeout: float = 30.0) -> None:
        """Save every model that has unsaved changes, and release the folder.

        This takes about `timeout` seconds at most; models that could not be saved by then are logged.
        """
        until = time.monotonic() + timeout
        if self._sweeping is not None:
            self._sweeping.cancel()
        await self._cache.close()
        await self._tasks.drain(timeout / 4)
        # Idle models first: the others may use up the time.
        for model in sorted(self._cache, key=lambda model: not model.sequencer.idle):
            try:
                await asyncio.wait_for(self._save(model), max(0.0, until - time.monotonic()))
            except (TimeoutError, OSError, RuntimeError, ServiceError, GoneError) as error:
                reason = str(error) or "the time was over"
                logger.error("model %s: %s is saved, %d is lost: %s", model.id, model.durable, model.sequence, reason)
        for threads in (self._threads, self._maker, self._own):
            if threads is not None:
                threads.shutdown(wait=False, cancel_futures=True)
        if self._saved is not None:
            await asyncio.to_thread(self._saved.close, max(0.1, until - time.monotonic()))

    async def create(
        self,
        owner: str,
        *,
        network: object,
        optimizer: object,
        id: str | None = None,
        seed: object = 0,
        durable_every: object = 10,
        name: object = "",
        weights: torch.Tensor | None = None,
        deadline: float | None = None,
    ) -> Created:
        """Create a model; it is durable when this returns, unless models live in memory only.

        Idempotent: an equal call for the same `id` finds the model.

        Args:
            owner: the owner of the model.
            network: a description, see exodus_core.network, plain or parsed.
            optimizer: its kind and options, see exodus_core.training.
            id: 1 to 64 letters, digits, - and _; None: generated.
            seed: of weights and dropout.
            durable_every: number of training calls from one save to the next.
            name: a label for people.
            weights: all parameters in order, flat; None: drawn by the seed.
            deadline: a time.monotonic() value; the model is not built after it.

        Raises:
            ServiceError: invalid, too_large, model_exists, storage_full, out_of_memory, queue_full, deadline.
        """
        parsed = partial(
            parse_spec,
            owner,
            id,
            network=network,
            optimizer=optimizer,
            seed=seed,
            durable_every=durable_every,
            name=name,
            weights=weights,
            max_model_bytes=self._settings.max_model_bytes,
        )
        spec = await self._make(parsed)
        return await self._tasks.run((owner, spec.header.id), lambda: self._create(spec, weights, deadline))

    @asynccontextmanager
    async def use(self, owner: str, id: str) -> AsyncIterator[Model]:
        """The owner's model of this id, loaded if needed, and kept in memory for the duration of the block.

        Raises:
            ServiceError: not_found; out_of_memory, queue_full: no room for it; internal_error: no state verifies.
        """
        key = (owner, id)
        while (model := self._cache.get(key)) is None:
            if not is_id(id):
                raise unknown(id)
            await self._tasks.run(key, lambda: self._load(owner, id))
        async with self._cache.pin(model):
            yield model

    async def info(self, owner: str, id: str) -> dict[str, Any]:
        """The model as callers see it, without loading it. Raises ServiceError: not_found, internal_error."""
        await self._tasks.wait((owner, id))
        model = self._cache.get((owner, id))
        if model is not None:
            return model.info()
        if self._saved is None:
            raise unknown(id)
        return (await self._read(partial(self._saved.find, owner, id))).info()

    async def list(self, owner: str) -> list[dict[str, Any]]:
        """All models of an owner, by age. Models whose state cannot be read are omitted and logged."""
        infos = {model.id: model.info() for model in self._cache if model.owner == owner}
        if self._saved is not None:
            saved = await self._make(partial(self._saved.list, owner, frozenset(infos)))
            infos |= {found.spec.header.id: found.info() for found in saved}
            infos |= {model.id: model.info() for model in self._cache if model.owner == owner}
        return sorted(infos.values(), key=lambda info: (info["created"], info["id"]))

    async def delete(self, owner: str, id: str) -> None:
        """Delete a model and its saved states. A call that runs ends; those that wait get not_found.

        Raises:
            ServiceError: not_found; storage_full if the disk fails.
        """
        if not is_id(id):
            raise unknown(id)
        await self._tasks.run((owner, id), lambda: self._delete(owner, id))

    async def save(self, model: Model) -> int | None:
        """Make the present state durable; returns the durable sequence number, None if models live in memory only.

        Raises:
            ServiceError: storage_full, not_found, draining.
        """
        try:
            await self._save(model)
        except OSError as error:
            raise ServiceError("storage_full", f"the state could not be saved: {error}") from error
        except GoneError as error:
            gone = model.checkpointer is not None and model.checkpointer.closed
            raise (unknown(model.id) if gone else _stopping()) from error
        return model.durable

    async def export(self, model: Model) -> StateFile:
        """The present state as a file, for a caller."""
        async with model.sequencer.exclusive():
            snapshot = await self._on_device(model.snapshot)
        return await self._read(partial(export_state, snapshot))

    async def replace_state(self, model: Model, body: Buffer, run: RunInThread | None = None) -> dict[str, Any]:
        """Continue from an exported state; durable when this returns, unless models live in memory only.

        `run` decodes the state on a thread of the caller's instead of one of the store's.

        Raises:
            ServiceError: malformed, state_mismatch, storage_full; nothing has changed then.
        """
        decode = partial(import_state, model.spec, body, self._device)
        del body  # freed once it is decoded
        uploaded: UploadedState = await (self._read if run is None else run)(decode)
        del decode
        return await self._tasks.run((model.owner, model.id), lambda: self._replace(model, uploaded))

    async def load_weights(
        self, model: Model, body: Buffer, selection: Selection, run: RunInThread | None = None
    ) -> dict[str, Any]:
        """Continue with the weights of a file; the optimiser starts anew. Otherwise as `replace_state`.

        Returns:
            The model as callers see it, and the names of weights `loaded`, `missing` and `unexpected`.

        Raises:
            ServiceError: malformed, invalid, state_mismatch, storage_full; nothing has changed then.
        """
        decode = partial(read_weights, body)
        del body  # freed once it is decoded
        tensors: dict[str, torch.Tensor] = await (self._read if run is None else run)(decode)
        del decode
        return await self._tasks.run((model.owner, model.id), lambda: self._load_weights(model, tensors, selection))

    # Keyed tasks: one at a time per model.

    async def _create(self, spec: ModelSpec, weights: torch.Tensor | None, deadline: float | None) -> Created:
        def build() -> Trainer:
            if deadline is not None and time.monotonic() >= deadline:
                raise ServiceError("deadline", "the deadline passed before the model was made")
            return spec.build(self._device, weights)

        owner, id = spec.header.owner, spec.header.id
        there = self._cache.get((owner, id))
        if there is not None:
            return _existing(spec, there.spec, there.info())
        if self._saved is not None and await self._read(partial(self._saved.has, owner, id)):
            found = await self._read(partial(self._saved.find, owner, id))
            return _existing(spec, found.spec, found.info())
        async with self._cache.reserve(spec.footprint, new=True):
            model = self._model(spec, await self._make(build), Progress())
            if model.checkpointer is not None:
                await _written(model.checkpointer.submit(await self._read(model.snapshot)))
            self._cache.add(model)
        return Created(model.info(), True)

    async def _load(self, owner: str, id: str) -> None:
        if self._cache.get((owner, id)) is not None:  # loaded meanwhile by another call
            return
        if self._saved is None:
            raise unknown(id)
        if (owner, id) in self._broken:
            await _done(self._saved.flush())  # the newest snapshot before the failed call may still wait to be written
        found = await self._read(partial(self._saved.find, owner, id))
        async with self._cache.reserve(found.nbytes):
            loaded = await self._read(partial(self._saved.load, found))
            model = self._model(loaded.spec, loaded.trainer, loaded.progress)
            model.sequencer.durable_error = loaded.damage
            self._cache.add(model)
        self._broken.discard((owner, id))
        logger.info("model %s was loaded at %d", id, model.sequence)

    async def _delete(self, owner: str, id: str) -> None:
        model = self._cache.get((owner, id))
        if self._saved is not None:
            if model is None and not await self._read(partial(self._saved.has, owner, id)):
                raise unknown(id)
            removed = self._saved.remove(owner, id, None if model is None else model.checkpointer)
            await _written(removed, "the model could not be removed")
        elif model is None:
            raise unknown(id)
        if model is not None:
            self._cache.discard(model)
            model.close(lambda: unknown(id))
            self._forget_contexts(model)

    async def _replace(self, model: Model, uploaded: UploadedState) -> dict[str, Any]:
        async with self._cache.pin(model), model.sequencer.exclusive():
            if self._saved is not None:
                header, sequence = uploaded.spec.header, uploaded.sequence
                state = Snapshot(header, sequence, None, uploaded.trainer.state(), Progress().pack)
                await _written(self._saved.write(state))
            trainer = self._configured(uploaded.trainer)
            await self._on_device(partial(model.replace, uploaded.spec, trainer, uploaded.sequence))
            self._forget_contexts(model)
            return model.info()

    async def _load_weights(
        self, model: Model, tensors: dict[str, torch.Tensor], selection: Selection
    ) -> dict[str, Any]:
        async with self._cache.pin(model), model.sequencer.exclusive():
            spec, sequence = model.spec, model.sequence
            made, loaded = await self._on_device(partial(with_weights, spec, model.trainer, tensors, selection))
            if self._saved is not None:
                state = Snapshot(spec.header, sequence, None, made.state(), Progress().pack)
                await _written(self._saved.write(state))
            await self._on_device(partial(model.replace, spec, self._configured(made), sequence))
            self._forget_contexts(model)
            return model.info() | loaded._asdict()

    async def _save(self, model: Model) -> None:
        """Make the present state durable. Raises OSError, GoneError, ServiceError."""
        async with model.sequencer.exclusive():
            if model.checkpointer is None or not model.sequencer.dirty:
                return
            written = model.checkpointer.pending(model.sequence)
            if written is None:
                written = model.checkpointer.submit(await self._on_device(model.snapshot))
        await _done(written)

    def _model(self, spec: ModelSpec, trainer: Trainer, progress: Progress) -> Model:
        checkpointer = None if self._saved is None else self._saved.checkpointer
        return Model(
            spec,
            self._configured(trainer),
            self._limits,
            progress=progress,
            checkpointer=checkpointer,
            on_broken=self._restore_later,
        )

    def _configured(self, trainer: Trainer) -> Trainer:
        """The trainer of a model, with what the settings say of all of them."""
        trainer.graphs = None if self._settings.graphs else False
        return trainer

    def _restore_later(self, model: Model) -> None:
        """A call has changed the state and failed: the next call loads the durable state."""
        self._cache.discard(model)
        self._forget_contexts(model)
        if self._saved is None:
            logger.error("model %s at %d: a call failed half-way, the model is lost", model.id, model.sequence)
            model.sequencer.close(lambda: unknown(model.id))
            return
        logger.error(
            "model %s at %d: a call failed half-way, state %s is restored", model.id, model.sequence, model.durable
        )
        self._broken.add((model.owner, model.id))
        detail = "a call failed half-way and the model is restored from its newest checkpoint; send again"
        model.sequencer.close(lambda: ServiceError("not_ready", detail))

    def _forget_contexts(self, model: Model) -> None:
        self.contexts.forget(model.owner, model.id)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._settings.context_ttl_s))
            self.contexts.sweep()

    # Threads.

    @property
    def maker(self) -> Executor:
        """The thread that creates and lists models: one at a time, so that no training call waits for it."""
        return self._maker

    async def _make(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._maker, work)

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _on_device(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.wrap_future(self._execute(work))


async def _done(future: "Future[Any]") -> None:
    """Wait for the writer, which goes on if the caller is cancelled."""
    await asyncio.shield(asyncio.wrap_future(future))


async def _written(future: "Future[Any]", failure: str = "the state could not be saved") -> None:
    """Wait for the writer. Raises ServiceError: storage_full; draining if the writer is closed."""
    try:
        await _done(future)
    except OSError as error:
        logger.error("%s: %s", failure, error)
        raise ServiceError("storage_full", f"{failure}: {error}") from error
    except GoneError:
        raise _stopping() from None


def _stopping() -> ServiceError:
    return ServiceError("draining", "the service is stopping; nothing was changed")


def _existing(spec: ModelSpec, there: ModelSpec, info: dict[str, Any]) -> Created:
    if there.header.origin != spec.header.origin:
        raise ServiceError("model_exists", f"the model {spec.header.id!r} exists and was created from another request")
    return Created(info, False)
