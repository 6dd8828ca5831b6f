"""Calls that train a model: received, checked, done in the order of their numbers, answered.

A call is unpacked and checked on a helper thread while those before it compute; where one of them is missing it waits
with its body as it came. Then it waits for its turn. On the thread that computes it is done, encoded and recorded, in
this order: what is recorded was answered, whether or not the client is still there.
"""

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from exodus_client.wire import JSON_TYPE, Encoded, Message, Tensor, encode
from exodus_core.losses import Loss
from exodus_core.training import ContextStaleError, Forward, Trainer
from exodus_service.compute.error_mapping import pointed, translated
from exodus_service.engine import Engine
from exodus_service.errors import Fault, ServiceError, invalid
from exodus_service.models.model import Answer, Model, Turn
from exodus_service.operations.call import Received, Reply
from exodus_service.operations.inputs import Early, Opened, foreseen, parsed_loss, refusal
from exodus_service.operations.params import ForwardBackwardParams, OptimStepParams, StepParams, TrainingParams

#: Header of an answer that was given before.
REPLAYED = "X-Exodus-Replayed"

SAMPLES = "samples:sum"

Metrics = dict[str, float]


@dataclass(frozen=True)
class Operation:
    """What a training call does: its name, its parameters, and whether it computes gradients and makes a step."""

    name: str
    params: type[TrainingParams]
    backward: bool
    update: bool


FORWARD_BACKWARD = Operation("forward_backward", ForwardBackwardParams, True, False)
OPTIM_STEP = Operation("optim_step", OptimStepParams, False, True)
STEP = Operation("step", StepParams, True, True)


@dataclass(frozen=True)
class Kept:
    """What a forward call leaves for a backward call, and whose it is."""

    trainer: Trainer
    forward: Forward


async def train(engine: Engine, operation: Operation, id: str, received: Received) -> Reply:
    """Make a training call. Raises ServiceError."""
    async with AsyncExitStack() as stack:
        model = await received.within(stack.enter_async_context(engine.store.use(received.owner, id)))
        prepare = partial(TrainingCall.prepare, engine, operation, model, received)
        while isinstance(call := await received.aside(partial(translated, prepare, engine.device)), Early):
            await model.approach(call.sequence, received.due)
        params = call.params
        turn = await stack.enter_async_context(
            model.turn(params.sequence, call.digest, received.due, writer=params.writer)
        )
        if isinstance(turn, Answer):
            body = turn.body or b""
            return Reply(Encoded(turn.content_type, len(body), [body]), headers={REPLAYED: "1"})
        work = turn.guard(lambda: translated(partial(call.run, turn), engine.device))
        return Reply(await received.computed(received.ticket.submit(work, received.due)))


@dataclass(eq=False)
class TrainingCall:
    """A checked call.

    Attributes:
        digest: tells it from another call of the same number.
        opened: its body.
        inputs, targets, grad_output, gradients: its tensors, None where it has none.
        loss: None where the client has computed its own.
    """

    engine: Engine
    operation: Operation
    received: Received
    opened: Opened
    params: Any
    digest: str
    inputs: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    grad_output: torch.Tensor | None = None
    gradients: torch.Tensor | None = None
    loss: Loss | None = None

    @classmethod
    def prepare(cls, engine: Engine, operation: Operation, model: Model, received: Received) -> "TrainingCall | Early":
        """Unpack and check a call, unless its turn is not near. Raises ServiceError, WireError, QueueFullError."""
        number = foreseen(received, "sequence", engine.limits)
        if number is not None and not model.near(number):
            return Early(number)
        opened = Opened(received, engine.limits)
        started = time.perf_counter()
        params = opened.params(operation.params)
        if not model.near(params.sequence):
            opened.close()
            return Early(params.sequence)
        call = cls(engine, operation, received, opened, params, opened.digest(operation.name))
        if operation.backward:
            call._take_backward(model)
        elif "gradients" in opened.operands:
            call.gradients = opened.flat("gradients", model.network)
        opened.operands.finish()
        call._require_room_for_answer(model)
        received.timings.decode += time.perf_counter() - started
        return call

    def run(self, turn: Turn) -> Encoded:
        """Do the call, and record it with its answer; on the thread that computes. Raises ServiceError, WireError."""
        clock, spent = time.perf_counter, self.received.timings
        began = clock()
        spent.queue = began - self.received.queued_at - spent.decode
        model = turn.model
        try:
            metrics, norms, gradients = self._compute(model)
        except ContextStaleError as error:
            raise ServiceError(
                "context_stale",
                f"{error}; send the inputs again",
                (Fault("/params/context", "a context of the present weights", "one of earlier weights"),),
            ) from error
        except (ValueError, TypeError) as error:
            raise refusal(error, self.opened.operands) from error
        tensors = [] if gradients is None else [Tensor.of("gradients", gradients.cpu())]
        computed = clock()
        spent.kernel = computed - began
        params = {
            "sequence": turn.sequence,
            "durable": model.durable,
            "durable_error": model.durable_error,
            "metrics": metrics,
            "grad_norms": norms,
            "device": str(model.device),
        }
        encoded = encode(Message.of(params, tensors), self.opened.message.form, limits=self.engine.limits)
        turn.record(encoded.chunks, encoded.content_type)
        if self.params_context is not None:
            self.engine.store.contexts.release(self.received.owner, self.params_context)
        self.received.ticket.resize(encoded.nbytes)
        spent.encode = clock() - computed
        return encoded

    @property
    def params_context(self) -> str | None:
        """The context that the call goes on from."""
        context: str | None = getattr(self.params, "context", None)
        return context

    def _take_backward(self, model: Model) -> None:
        """The tensors of a backward pass: one of context and grad_output, input and grad_output, input and targets."""
        opened, params = self.opened, self.params
        limit = self.engine.settings.max_activation_bytes
        own = "grad_output" in opened.operands or params.context is not None
        if own and params.loss is not None:
            raise invalid("/params/loss", "null with a context or a tensor 'grad_output'", repr(params.loss)[:80])
        if params.context is not None:
            self.grad_output = opened.outputs_gradient(None)
            return
        self.inputs = opened.input(model.network, limit, training=True)
        if own:
            self.grad_output = opened.outputs_gradient((*self.inputs.shape[:2], *model.network.output_shape))
            return
        if params.loss is None:
            raise invalid("/params/loss", "a loss unless a tensor 'grad_output' is there", "neither")
        self.loss = parsed_loss(params.loss)
        self.targets = opened.take("targets")

    def _require_room_for_answer(self, model: Model) -> None:
        """An answer that cannot be written must not be found out after the model has changed."""
        most = self.engine.limits.max_json_bytes // 2
        count = sum(torch.Size(shape).numel() for _, shape in model.network.parameters)
        if self.received.content_type == JSON_TYPE and self.params.gradients and count > most:
            expected, got = f"at most {most} numbers in JSON (use msgpack)", f"{count} gradients"
            detail = f"/params/gradients must be {expected}, got {got}"
            raise ServiceError("too_large", detail, (Fault("/params/gradients", expected, got),))

    def _compute(self, model: Model) -> tuple[Metrics, dict[str, float], torch.Tensor | None]:
        """Metrics, norms, and the gradients where they are asked for."""
        trainer, params = model.trainer, self.params
        finite = {"allow_non_finite": params.non_finite == "apply"}
        update = {}
        if self.operation.update:
            update = {name: getattr(params, name) for name in ("lr", "weight_decay", "clip_norm", "clip_value")}
        if not self.operation.backward:
            if params.skip:
                return {}, {}, None
            gradients = None
            if params.gradients:
                gradients = trainer.gradients() if self.gradients is None else self.gradients
            return {}, trainer.optim_step(**update, gradients=self.gradients, **finite), gradients
        if self.loss is not None and self.operation.update and not params.gradients:
            assert self.inputs is not None
            assert self.targets is not None
            result = trainer.step(self.inputs, self.targets, self.loss, **update, **finite)
            return result.metrics, result.grad_norms, None
        metrics, norms = self._backward(model, finite)
        gradients = trainer.gradients() if params.gradients else None
        if self.operation.update:
            trainer.optim_step(**update, **finite)
        return metrics, norms, gradients

    def _backward(self, model: Model, finite: dict[str, bool]) -> tuple[Metrics, dict[str, float]]:
        """Add to the accumulated gradients."""
        trainer = model.trainer
        if self.loss is not None:
            assert self.inputs is not None
            assert self.targets is not None
            result = trainer.forward_backward(self.inputs, self.targets, self.loss, **finite)
            return result.metrics, result.grad_norms
        assert self.grad_output is not None
        forward = self._forward(model) if self.inputs is None else trainer.begin(self.inputs)
        return {SAMPLES: float(forward.outputs.shape[0])}, trainer.backward(forward, self.grad_output, **finite)

    def _forward(self, model: Model) -> Forward:
        """The forward pass of the context. Raises ServiceError: context_expired, invalid."""
        handle = self.params.context
        kept = kept_context(self.engine, self.received.owner, handle, model.id)
        if not isinstance(kept, Kept) or kept.trainer is not model.trainer:
            raise expired(ServiceError("context_expired", "the context is not one of the present model"), handle)
        shape = tuple(kept.forward.outputs.shape)
        assert self.grad_output is not None
        if self.grad_output.shape != shape:
            expected = f"{list(shape)}, that of the outputs"
            raise self.opened.operands.fault("grad_output", "shape", expected, str(list(self.grad_output.shape)))
        return kept.forward


def kept_context(engine: Engine, owner: str, handle: str, group: str) -> object:
    """What a handle of a caller stands for. Raises ServiceError: context_expired."""
    try:
        return engine.store.contexts.get(owner, handle, group)
    except ServiceError as problem:
        raise expired(problem, handle) from None


def expired(problem: ServiceError, handle: str) -> ServiceError:
    """The problem, pointing at the context."""
    return pointed(problem, "/params/context", "a context that is kept", repr(handle[:64]))
