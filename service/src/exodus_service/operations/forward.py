"""Forward passes of a model, which change nothing and have no number."""

import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import torch

from exodus_client.wire import Encoded, Message, Tensor, encode
from exodus_core.losses import Loss
from exodus_service.compute.error_mapping import pointed, translated
from exodus_service.engine import Engine
from exodus_service.errors import ServiceError, invalid
from exodus_service.models.model import Model
from exodus_service.operations.call import Received, Reply, owned
from exodus_service.operations.inputs import Early, Opened, foreseen, parsed_loss, refusal, scalars
from exodus_service.operations.params import ForwardParams
from exodus_service.operations.train import Kept


async def forward(engine: Engine, id: str, received: Received) -> Reply:
    """Make a forward call. Raises ServiceError."""
    async with AsyncExitStack() as stack:
        model = await received.within(stack.enter_async_context(engine.store.use(received.owner, id)))
        prepare = partial(ForwardCall.prepare, engine, model, received)
        while isinstance(call := await received.aside(partial(translated, prepare, engine.device)), Early):
            await model.wait_for(call.sequence, received.due)
        work = partial(translated, call.run, engine.device)
        return Reply(await received.computed(received.ticket.submit(work, received.due)))


class ForwardCall:
    """A checked call. Making it raises ServiceError, WireError."""

    @classmethod
    def prepare(cls, engine: Engine, model: Model, received: Received) -> "ForwardCall | Early":
        """Unpack and check a call, unless it waits for another. Raises ServiceError, WireError, QueueFullError."""
        after = foreseen(received, "after", engine.limits)
        if after is not None and after > model.sequence:
            return Early(after)
        opened = Opened(received, engine.limits)
        params = opened.params(ForwardParams)
        if params.after is not None and params.after > model.sequence:
            opened.close()
            return Early(params.after)
        return cls(engine, model, received, opened, params)

    def __init__(self, engine: Engine, model: Model, received: Received, opened: Opened, params: ForwardParams) -> None:
        self._engine = engine
        self._model = model
        self._received = received
        self._opened = opened
        self.params = params
        started = time.perf_counter()
        if params.context and params.mode == "eval":
            raise invalid("/params/mode", "'train' with a context", "'eval'")
        self._train = params.context or params.mode == "train"
        limit = engine.settings.max_activation_bytes
        inputs = opened.input(model.network, limit, training=params.context)
        self._inputs = owned(inputs, opened.body) if params.context else inputs
        self._loss: Loss | None = None
        self._targets: torch.Tensor | None = None
        if params.loss is not None:
            self._loss = parsed_loss(params.loss)
            self._targets = opened.take("targets")
        opened.operands.finish()
        received.timings.decode += time.perf_counter() - started

    def run(self) -> Encoded:
        """The answer; on the thread that computes. Raises ServiceError, WireError."""
        clock, spent = time.perf_counter, self._received.timings
        began = clock()
        spent.queue = began - self._received.queued_at - spent.decode
        if self._model.broken:
            raise ServiceError("not_ready", "a call before this one failed half-way")
        trainer = self._model.trainer
        params: dict[str, Any] = {"sequence": self._model.sequence, "durable": self._model.durable}
        kept: Kept | None = None
        try:
            if self.params.context:
                kept = Kept(trainer, trainer.begin(self._inputs))
                outputs = kept.forward.outputs.detach()
            else:
                outputs = trainer.forward(self._inputs, train=self._train)
            if self._loss is not None and self._targets is not None:
                with torch.no_grad():
                    params["metrics"] = scalars(self._loss(outputs, self._targets).metrics)
        except (ValueError, TypeError) as error:
            raise refusal(error, self._opened.operands) from error
        tensors = [Tensor.of("outputs", outputs.cpu())] if "outputs" in self.params.return_ else []
        computed = clock()
        spent.kernel = computed - began
        if kept is None:
            encoded = self._encode(params, tensors)
        else:
            contexts, owner = self._engine.store.contexts, self._received.owner
            params["context"] = handle = self._keep(kept)
            params["expires_in_s"] = contexts.ttl
            try:
                encoded = self._encode(params, tensors)
            except ValueError:  # nobody is going to know the handle
                contexts.release(owner, handle)
                raise
        self._received.ticket.resize(encoded.nbytes)
        spent.encode = clock() - computed
        return encoded

    def _encode(self, params: dict[str, Any], tensors: list[Tensor]) -> Encoded:
        return encode(Message.of(params, tensors), self._opened.message.form, limits=self._engine.limits)

    def _keep(self, kept: Kept) -> str:
        contexts = self._engine.store.contexts
        nbytes = kept.forward.nbytes + self._model.network.graph(self._inputs.shape[1])
        try:
            return contexts.put(self._received.owner, kept, nbytes, self._model.id)
        except ServiceError as problem:
            expected = f"at most {contexts.max_bytes} bytes of contexts"
            raise pointed(problem, "/params/context", expected, f"{nbytes} bytes") from None
