"""The models of a service: made, found, saved, loaded again, deleted. Knows nothing of HTTP.

The event loop decides what happens to which model; it neither computes nor touches the disk. What must not meet a
computation (cloning a state, replacing it) runs on the thread that computes, what writes on the thread of the saver,
what reads and builds on threads of the store.

What is done to one id (make, load, replace, delete) is done in turn, to its end, even where the caller leaves.
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

from exodus_core.network import Description
from exodus_core.training import Trainer
from exodus_service.errors import ServiceError
from exodus_service.models import model_spec
from exodus_service.models.forward_contexts import Contexts
from exodus_service.models.keyed_tasks import Moves
from exodus_service.models.model import Bounds, Model, Snapshot
from exodus_service.models.model_cache import Key, Residents
from exodus_service.models.model_info import footprint
from exodus_service.models.progress import Progress
from exodus_service.models.storage.checkpoint import Header
from exodus_service.models.storage.restore import Saved, unknown
from exodus_service.models.storage.state_dir import StateDir
from exodus_service.models.storage.state_file import Buffer, StateFile
from exodus_service.models.storage.writer import GoneError, Saver
from exodus_service.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")
Execute = Callable[[Callable[[], Any]], "Future[Any]"]
Aside = Callable[[Callable[[], Any]], Awaitable[Any]]

_SWEEP_S = 5.0
#: What a context takes at least: its handle, and the objects of a small graph.
_AROUND_CONTEXT = 32 * 1024


@dataclass(frozen=True)
class Created:
    """A model, and whether it was made by this call; otherwise it was there, made from the same."""

    info: dict[str, Any]
    fresh: bool


class Store:
    """All models of all owners; call it on one event loop.

    Args:
        settings: limits, and the folder to save in.
        device: where models live.
        execute: runs something on the thread that computes, and returns its future. None: a thread of the store's own.

    Attributes:
        contexts: what forward calls have left, of all owners.
    """

    def __init__(self, settings: Settings, device: torch.device, execute: Execute | None = None) -> None:
        self._settings = settings
        self._device = device
        self._own = ThreadPoolExecutor(1, "exodus-store-device") if execute is None else None
        self._execute: Execute = execute or self._own.submit  # type: ignore[union-attr]
        self._threads = ThreadPoolExecutor(2, "exodus-store")
        # By itself, so that no call that trains a model waits for a model to be made.
        self._maker = ThreadPoolExecutor(1, "exodus-store-maker")
        self._bounds = Bounds(settings.answer_bytes, settings.sequence_wait_s, settings.max_queue)
        self.contexts = Contexts(settings.context_bytes, settings.context_ttl_s, least=_AROUND_CONTEXT)
        self._disk: StateDir | None = None
        self._saver: Saver | None = None
        save = None if settings.state_dir is None else self._save
        self._residents = Residents(settings.models_memory_bytes, save, self._forget_contexts)
        self._moves = Moves()
        self._saved = Saved(None, device)
        self._restoring: set[Key] = set()
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the folder.

        Raises:
            StateDirError: it cannot be used, or another service uses it.
        """
        path = self._settings.state_dir
        if path is None:
            logger.warning("models live in memory only and are lost when the service ends; EXODUS_STATE_DIR saves them")
        else:
            self._disk = await self._off(partial(StateDir, path, self._settings.models_disk_bytes))
            self._saved = Saved(self._disk, self._device)
            self._saver = Saver(self._disk.write)
            logger.info("models are saved in %s", path)
        self._sweeping = asyncio.create_task(self._sweep())

    async def close(self, timeout: float = 30.0) -> None:
        """Save every model that has something to save, and let go of the folder.

        It takes about `timeout` seconds at most; the log says what could not be saved by then.
        """
        until = time.monotonic() + timeout
        if self._sweeping is not None:
            self._sweeping.cancel()
        await self._residents.close()
        await self._moves.settle(timeout / 4)
        # First those that nothing keeps waiting.
        for model in sorted(self._residents, key=lambda model: not model.turns.idle):
            try:
                await asyncio.wait_for(self._save(model), max(0.0, until - time.monotonic()))
            except (TimeoutError, OSError, RuntimeError, ServiceError, GoneError) as error:
                reason = str(error) or "the time was over"
                logger.error("model %s: %s is saved, %d is lost: %s", model.id, model.durable, model.sequence, reason)
        for threads in (self._threads, self._maker, self._own):
            if threads is not None:
                threads.shutdown(wait=False, cancel_futures=True)
        if self._saver is None or self._disk is None:
            return
        saved = await asyncio.to_thread(self._saver.close, max(0.1, until - time.monotonic()))
        if saved:
            self._disk.close()
        else:
            logger.error("a save is still under way; the folder stays locked until the process ends")

    async def create(
        self,
        owner: str,
        *,
        network: object,
        optimizer: object,
        id: object = None,
        seed: object = 0,
        durable_every: object = 10,
        name: object = "",
        weights: torch.Tensor | None = None,
        deadline: float | None = None,
    ) -> Created:
        """Make a model; it is durable when this returns, where anything is.

        Args:
            owner: whose it is.
            network: a description, see exodus_core.network, or what was read from one.
            optimizer: its kind and options, see exodus_core.training.
            id: the caller's choice; None: made here.
            seed: of weights and dropout.
            durable_every: how many training calls are made from one save to the next.
            name: a label for people.
            weights: all parameters in order, flat; None: drawn by the seed.
            deadline: a time.monotonic() value; what has not begun by then is not done.

        Raises:
            ServiceError: invalid, too_large, model_exists, storage_full, out_of_memory, queue_full, deadline.
        """
        if id is None:
            id = model_spec.new_id()
        if not isinstance(id, str) or not model_spec.is_id(id):
            raise ServiceError("invalid", f"/params/id must be 1 to 64 letters, digits, - and _, got {str(id)[:100]!r}")
        planned = partial(
            model_spec.plan,
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
        plan = await self.aside(planned)
        return await self._moves.run((owner, id), lambda: self._create(plan, deadline))

    @asynccontextmanager
    async def use(self, owner: str, id: str) -> AsyncIterator[Model]:
        """The owner's model of this id, which stays in memory while the block is. Loads it where it had left.

        Raises:
            ServiceError: not_found; out_of_memory, queue_full: no room for it; internal_error: no state is sound.
        """
        key = (owner, id)
        while (model := self._residents.get(key)) is None:
            if not model_spec.is_id(id):
                raise unknown(id)
            await self._moves.run(key, lambda: self._load(owner, id))
        async with self._residents.pinned(model):
            yield model

    async def info(self, owner: str, id: str) -> dict[str, Any]:
        """What a model is and how far, without loading it. Raises ServiceError: not_found, internal_error."""
        await self._moves.ended((owner, id))
        model = self._residents.get((owner, id))
        if model is not None:
            return model.info()
        return (await self._off(partial(self._saved.find, owner, id))).info()

    async def list(self, owner: str) -> list[dict[str, Any]]:
        """All models of an owner, by age. One whose state cannot be read is left out, and named in the log."""
        infos = {model.id: model.info() for model in self._residents if model.owner == owner}
        saved = await self.aside(partial(self._saved.list, owner, frozenset(infos)))
        infos |= {found.header.id: found.info() for found in saved}
        infos |= {model.id: model.info() for model in self._residents if model.owner == owner}
        return sorted(infos.values(), key=lambda info: (info["created"], info["id"]))

    async def delete(self, owner: str, id: str) -> None:
        """Delete a model with all that was saved of it. A call that runs ends; those that wait get not_found.

        Raises:
            ServiceError: not_found; storage_full where the disk does not let it.
        """
        if not model_spec.is_id(id):
            raise unknown(id)
        await self._moves.run((owner, id), lambda: self._delete(owner, id))

    async def save(self, model: Model) -> int | None:
        """Make the present state durable; returns what is durable then, None where models live in memory alone.

        Raises:
            ServiceError: storage_full, not_found, draining.
        """
        try:
            await self._save(model)
        except OSError as error:
            raise ServiceError("storage_full", f"the state could not be saved: {error}") from error
        except GoneError as error:
            raise (unknown(model.id) if model.gone else self._stopping()) from error
        return model.durable

    async def export(self, model: Model) -> StateFile:
        """The present state as a file, for a caller."""
        async with model.exclusive():
            snapshot = await self._on_device(model.snapshot)
        return await self._off(partial(model_spec.state_file, snapshot))

    async def replace_state(self, model: Model, body: Buffer, off: Aside | None = None) -> dict[str, Any]:
        """Go on from a state that `export` gave; durable when this returns, where anything is.

        `off` reads the state on another thread, in place of one of the store's.

        Raises:
            ServiceError: malformed, state_mismatch, storage_full; nothing has changed then.
        """
        read = partial(model_spec.upload, model, body, self._device)
        del body  # it goes when it is read
        uploaded: model_spec.Upload = await (self._off if off is None else off)(read)
        del read
        return await self._moves.run((model.owner, model.id), lambda: self._replace(model, uploaded))

    # What is done in turn.

    async def _create(self, plan: model_spec.Plan, deadline: float | None) -> Created:
        def build() -> Trainer:
            if deadline is not None and time.monotonic() >= deadline:
                raise ServiceError("deadline", "the deadline passed before the model was made")
            return plan.build(self._device)

        header = plan.header
        there = self._residents.get((header.owner, header.id))
        if there is None and await self._off(partial(self._saved.has, header.owner, header.id)):
            found = await self._off(partial(self._saved.find, header.owner, header.id))
            return _again(header, found.header, found.info())
        if there is not None:
            return _again(header, there.header, there.info())
        async with self._residents.room(footprint(plan.network, dict(header.optimizer)), new=True):
            trainer = await self.aside(build)
            model = self._model(header, plan.network, trainer, Progress())
            if self._saver is not None:
                await self._written(self._saver.submit(await self._off(model.snapshot)))
            self._residents.add(model)
        return Created(model.info(), True)

    async def _load(self, owner: str, id: str) -> None:
        if self._residents.get((owner, id)) is not None:  # another call has loaded it meanwhile
            return
        if (owner, id) in self._restoring and self._saver is not None:
            # What was cloned before the call that failed half-way is still on its way to the disk.
            await _done(self._saver.run(lambda: None))
        found = await self._off(partial(self._saved.find, owner, id))
        async with self._residents.room(found.nbytes):
            loaded = await self._off(partial(self._saved.load, found))
            model = self._model(loaded.header, found.network, loaded.trainer, loaded.progress)
            model.durable_error = loaded.damage
            self._residents.add(model)
        self._restoring.discard((owner, id))
        logger.info("model %s is in memory at %d", id, model.sequence)

    async def _delete(self, owner: str, id: str) -> None:
        model = self._residents.get((owner, id))
        if model is None and not await self._off(partial(self._saved.has, owner, id)):
            raise unknown(id)
        if self._saver is not None and self._disk is not None:
            disk = self._disk

            def removed() -> None:
                disk.remove(owner, id)
                if model is not None:
                    model.gone = True  # what is given to be saved after this must not bring it back

            await self._written(self._saver.run(removed), "the disk does not let the model be removed")
        if model is not None:
            self._residents.pop(model)
            model.close(lambda: unknown(id))
            self._forget_contexts(model)

    async def _replace(self, model: Model, uploaded: model_spec.Upload) -> dict[str, Any]:
        async with self._residents.pinned(model), model.exclusive():
            progress = Progress(uploaded.sequence)
            if self._saver is not None:
                snapshot = Snapshot(model, uploaded.header, progress, uploaded.trainer.state(), told=False)
                await self._written(self._saver.submit(snapshot))
            replace = partial(model.replace, uploaded.header, uploaded.trainer, uploaded.sequence)
            await self._on_device(replace)
            self._forget_contexts(model)
            return model.info()

    async def _save(self, model: Model) -> None:
        """Raises OSError, GoneError, ServiceError."""
        async with model.exclusive():
            if not model.dirty or self._saver is None:
                return
            written = model.being_saved or self._saver.submit(await self._on_device(model.snapshot))
        await _done(written)

    async def _written(self, future: "Future[Any]", refusal: str = "the state could not be saved") -> None:
        """Wait for the saver. Raises ServiceError: storage_full; draining: it takes nothing more."""
        try:
            await _done(future)
        except OSError as error:
            raise ServiceError("storage_full", f"{refusal}: {error}") from error
        except GoneError:
            raise self._stopping() from None

    def _stopping(self) -> ServiceError:
        return ServiceError("draining", "the service is stopping; nothing was changed")

    # Small things.

    def _model(self, header: Header, network: Description, trainer: Trainer, progress: Progress) -> Model:
        durable = None if self._saver is None else progress.sequence
        return Model(
            header,
            network,
            trainer,
            self._bounds,
            keeper=self._saver,
            durable=durable,
            progress=progress,
            on_broken=self._broken,
        )

    def _broken(self, model: Model) -> None:
        """A call has changed the state and failed: its durable state comes back with the next call."""
        self._residents.pop(model)
        self._forget_contexts(model)
        if self._saver is None:
            logger.error("model %s at %d: a call failed half-way, the model is lost", model.id, model.sequence)
            model.turns.close(lambda: unknown(model.id))
            return
        logger.error(
            "model %s at %d: a call failed half-way, state %s returns", model.id, model.sequence, model.durable
        )
        self._restoring.add((model.owner, model.id))
        detail = "a call failed half-way and the model is restored from its last save; send again"
        model.turns.close(lambda: ServiceError("not_ready", detail))

    def _forget_contexts(self, model: Model) -> None:
        self.contexts.forget(model.owner, model.id)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._settings.context_ttl_s))
            self.contexts.sweep()

    @property
    def maker(self) -> Executor:
        """The thread of `aside`."""
        return self._maker

    async def aside(self, work: Callable[[], T]) -> T:
        """Do something that no call that trains a model is to wait for, one at a time; left before, it is not done."""
        return await asyncio.get_running_loop().run_in_executor(self._maker, work)

    async def _off(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _on_device(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.wrap_future(self._execute(work))


async def _done(future: "Future[Any]") -> None:
    """Wait for the saver, which goes on whoever leaves."""
    await asyncio.shield(asyncio.wrap_future(future))


def _again(header: Header, there: Header, info: dict[str, Any]) -> Created:
    if there.origin != header.origin:
        raise ServiceError("model_exists", f"the model {header.id!r} exists and was made from something else")
    return Created(info, False)
