"""Forward passes of a model, which change nothing and have no sequence number."""

import time
from collections.abc import Hashable
from functools import partial
from typing import Any

import torch

from exodus_client.wire import Encoded, Message, Tensor, encode
from exodus_service.call import Call, Result, owned
from exodus_service.compute.transfers import to_host
from exodus_service.engine import Engine
from exodus_service.errors import ServiceError, invalid
from exodus_service.models.forward_contexts import ForwardContext
from exodus_service.models.model import Model
from exodus_service.operations.inputs import REFUSALS, DecodedCall, Early, parsed_loss, peek, refusal, scalars
from exodus_service.operations.params import ForwardParams
from exodus_service.operations.recording import Observation


async def forward(engine: Engine, id: str, call: Call) -> Result:
    """Make a forward call. Raises ServiceError."""
    async with engine.store.use(call.owner, id) as model:
        prepare = partial(ForwardCall.prepare, engine, model, call)
        while isinstance(ready := await call.prepare(prepare), Early):
            await model.sequencer.wait_until_done(ready.sequence, call.due)
        return await call.compute(ready.run, brief=lambda: model.is_brief(ready.kind))


class ForwardCall:
    """A checked call. Making it raises ServiceError, WireError."""

    @classmethod
    def prepare(cls, engine: Engine, model: Model, call: Call) -> "ForwardCall | Early":
        """Decode and check a call, unless it waits for another. Raises ServiceError, WireError, QueueFullError."""
        after = peek(call, "after")
        if after is not None and after > model.sequence:
            return Early(after)
        decoded = DecodedCall(call)
        with call.timings.phase("decode"):
            params = decoded.params(ForwardParams)
            if params.after is None or params.after <= model.sequence:
                return cls(engine, model, call, decoded, params)
        call.forget()
        return Early(params.after)

    def __init__(self, engine: Engine, model: Model, call: Call, decoded: DecodedCall, params: ForwardParams) -> None:
        self._engine = engine
        self._model = model
        self._call = call
        self._decoded = decoded
        self.params = params
        if params.context and params.mode == "eval":
            raise invalid("/params/mode", "'train' with a context", "'eval'")
        self._train = params.context or params.mode == "train"
        limit = engine.settings.max_activation_bytes
        self._observation = Observation.of(params, model.network)
        inputs = decoded.input(model, limit, training=params.context, beside=self._observation.nbytes)
        self._observation.require_room(call, inputs.shape)
        self._inputs = owned(inputs, decoded.body) if params.context else inputs
        loss = None if params.loss is None else parsed_loss(params.loss)
        self._labels = None if loss is None else decoded.labels(loss, model.network, training=self._train)
        decoded.operands.finish()
        self._upload = engine.uploads.start(self._inputs)

    @property
    def kind(self) -> Hashable:
        """Calls of one kind take about the same time."""
        return "forward", self._train, self.params.context, self._inputs.shape, self._observation.kind

    def run(self) -> Encoded:
        """The body of the response; on the computing thread. Raises ServiceError, WireError."""
        began = time.monotonic()
        encoded = self._run()
        self._model.took(self.kind, time.monotonic() - began)
        return encoded

    def _run(self) -> Encoded:
        if self._model.sequencer.broken:
            raise ServiceError("not_ready", "a call before this one failed half-way")
        params: dict[str, Any] = {"sequence": self._model.sequence, "durable": self._model.durable}
        context: ForwardContext | None = None
        with self._call.timings.phase("kernel"):
            trainer, inputs = self._model.trainer, self._upload.wait()
            try:
                with self._observation.observing(trainer) as observer:
                    if self.params.context:
                        context = ForwardContext(trainer, trainer.begin(inputs))
                        outputs = context.forward.outputs.detach()
                    else:
                        outputs = trainer.forward(inputs, train=self._train)
                if self._labels is not None:
                    with torch.no_grad():
                        params["metrics"] = scalars(self._labels.value(outputs).metrics)
            except REFUSALS as error:
                raise refusal(error, self._decoded.operands) from error
            seen = self._observation.seen(observer)
            params |= seen.params()
            own = {"outputs": outputs} if "outputs" in self.params.return_ else {}
            wanted = to_host(own | dict(seen.tensors), outputs.device)
            tensors = [self._observation.tensor(name, tensor) for name, tensor in wanted.items()]
        with self._call.timings.phase("encode"):
            if context is None:
                return self._encode(params, tensors)
            contexts, owner = self._engine.store.contexts, self._call.owner
            params["context"] = handle = self._keep(context)
            params["expires_in_s"] = contexts.ttl
            try:
                return self._encode(params, tensors)
            except ValueError:  # nobody is going to know the handle
                contexts.release(owner, handle)
                raise

    def _encode(self, params: dict[str, Any], tensors: list[Tensor]) -> Encoded:
        return encode(Message.of(params, tensors), self._decoded.message.form, limits=self._call.limits)

    def _keep(self, context: ForwardContext) -> str:
        contexts = self._engine.store.contexts
        nbytes = context.forward.nbytes + self._model.network.graph(self._inputs.shape[1])
        try:
            return contexts.put(self._call.owner, context, nbytes, self._model.id)
        except ServiceError as problem:
            expected = f"at most {contexts.max_bytes} bytes of contexts"
            raise problem.pointing_at("/params/context", expected, f"{nbytes} bytes") from None
