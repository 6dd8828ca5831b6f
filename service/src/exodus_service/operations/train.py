"""Training calls on a model, done in the order of their sequence numbers.

A call is decoded and checked while those before it compute; if one of them is missing it waits with its body as it was
sent. Then it waits for its turn. On the computing thread it is done, encoded and recorded, in this order: a recorded
call has its response, whether or not the client is still there.
"""

import math
import time
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from exodus_client.wire import JSON_TYPE, Encoded, Message, encode
from exodus_core.losses import Loss
from exodus_core.network import Description
from exodus_core.training import ContextStaleError, Forward
from exodus_service.call import Call, Result
from exodus_service.compute.transfers import Upload, to_host
from exodus_service.engine import Engine
from exodus_service.errors import Fault, ServiceError, invalid
from exodus_service.models.forward_contexts import ForwardContext, expired
from exodus_service.models.model import Model
from exodus_service.models.model_spec import LARGEST_FACTOR
from exodus_service.models.sequencer import CachedResponse, Step
from exodus_service.operations.inputs import REFUSALS, DecodedCall, Early, Labels, parsed_loss, peek, refusal
from exodus_service.operations.params import ForwardBackwardParams, OptimStepParams, StepParams, TrainingParams
from exodus_service.operations.recording import Observation, Seen

#: Header of a response that was given before.
REPLAYED = "X-Exodus-Replayed"

SAMPLES = "samples:sum"

Metrics = dict[str, float]

#: Parameters of a step of the optimiser that are arguments of the trainer's.
_UPDATE = ("lr", "weight_decay", "clip_norm", "clip_value", "frozen", "lr_scale", "lr_of", "average")


@dataclass(frozen=True)
class Operation:
    """A kind of training call: its name, its parameters, and if it computes gradients and makes a step."""

    name: str
    params: type[TrainingParams]
    backward: bool
    update: bool


FORWARD_BACKWARD = Operation("forward_backward", ForwardBackwardParams, True, False)
OPTIM_STEP = Operation("optim_step", OptimStepParams, False, True)
STEP = Operation("step", StepParams, True, True)


async def train(engine: Engine, operation: Operation, id: str, call: Call) -> Result:
    """Make a training call. Raises ServiceError."""
    async with engine.store.use(call.owner, id) as model:
        prepare = partial(TrainingCall.prepare, engine, operation, model, call)
        while isinstance(ready := await call.prepare(prepare), Early):
            await model.sequencer.wait_until_near(ready.sequence, call.due)
        params = ready.params
        async with model.sequencer.step(params.sequence, ready.digest, call.due, writer=params.writer) as step:
            if isinstance(step, CachedResponse):
                body = step.body or b""
                return Result(Encoded(step.content_type, len(body), [body]), headers={REPLAYED: "1"})
            work = step.guard(partial(ready.run, model, step))
            return await call.compute(work, brief=lambda: model.is_brief(ready.kind))


@dataclass(eq=False)
class TrainingCall:
    """A checked call.

    Attributes:
        call: the request as it was received.
        decoded: its body.
        digest: tells it from another call of the same number.
        inputs, grad_output, gradients: its tensors, None for those that it has not.
        upload: of the inputs.
        labels: loss and targets; None if the client has computed its own.
        observation: what is recorded; None of a call without a backward pass.
    """

    engine: Engine
    operation: Operation
    call: Call
    decoded: DecodedCall
    params: Any
    digest: str
    inputs: torch.Tensor | None = None
    upload: Upload | None = None
    grad_output: torch.Tensor | None = None
    gradients: torch.Tensor | None = None
    labels: Labels | None = None
    observation: Observation | None = None

    @classmethod
    def prepare(cls, engine: Engine, operation: Operation, model: Model, call: Call) -> "TrainingCall | Early":
        """Decode and check a call, unless its turn is not near. Raises ServiceError, WireError, QueueFullError."""
        number = peek(call, "sequence")
        if number is not None and not model.sequencer.is_near(number):
            return Early(number)
        decoded = DecodedCall(call)
        with call.timings.phase("decode"):
            params = decoded.params(operation.params)
            if not model.sequencer.is_near(params.sequence):
                call.forget()
                return Early(params.sequence)
            ready = cls(engine, operation, call, decoded, params, decoded.digest(operation.name))
            if operation.backward:
                ready._take_backward(model)
            elif "gradients" in decoded.operands:
                ready.gradients = decoded.flat("gradients", model.network)
            decoded.operands.finish()
            try:
                ready._check_options(model)
            except REFUSALS as error:
                raise refusal(error, decoded.operands) from error
            ready._require_room_for_response(model)
            if ready.inputs is not None:
                ready.upload = engine.uploads.start(ready.inputs)
            return ready

    @property
    def kind(self) -> Hashable:
        """Calls of one kind take about the same time."""
        observed = None if self.observation is None else self.observation.kind
        return self.operation.name, None if self.inputs is None else self.inputs.shape, observed

    def run(self, model: Model, step: Step) -> Encoded:
        """Do the call, and record it with its response; on the computing thread. Raises ServiceError, WireError."""
        began = time.monotonic()
        with self.call.timings.phase("kernel"):
            if self.upload is not None:
                self.inputs = self.upload.wait()
            try:
                metrics, norms, gradients, seen = self._observed(model)
            except ContextStaleError as error:
                raise ServiceError(
                    "context_stale",
                    f"{error}; send the inputs again",
                    (Fault("/params/context", "a context of the present weights", "one of earlier weights"),),
                ) from error
            except REFUSALS as error:
                raise refusal(error, self.decoded.operands) from error
            own = {} if gradients is None else {"gradients": gradients}
            wanted = to_host(own | dict(seen.tensors), model.device)
            observation = self.observation or Observation(model.network)
            tensors = [observation.tensor(name, tensor) for name, tensor in wanted.items()]
        with self.call.timings.phase("encode"):
            params = {
                "sequence": step.sequence,
                "durable": model.durable,
                "durable_error": model.durable_error,
                "metrics": metrics,
                "grad_norms": norms,
                "device": str(model.device),
                **seen.params(),
            }
            encoded = encode(Message.of(params, tensors), self.decoded.message.form, limits=self.call.limits)
            step.record(encoded.chunks, encoded.content_type)
            if self.operation.backward and self.params.context is not None:
                self.engine.store.contexts.release(self.call.owner, self.params.context)
        model.took(self.kind, time.monotonic() - began)
        return encoded

    def _take_backward(self, model: Model) -> None:
        """The tensors of a backward pass: one of context and grad_output, input and grad_output, input and targets."""
        decoded, params = self.decoded, self.params
        limit = self.engine.settings.max_activation_bytes
        self.observation = Observation.of(params, model.network)
        own = "grad_output" in decoded.operands or params.context is not None
        if own and params.loss is not None:
            raise invalid("/params/loss", "null with a context or a tensor 'grad_output'", repr(params.loss)[:80])
        if params.context is not None:
            if params.record:
                expected = "empty with a context, whose forward pass has been made: record that"
                raise invalid("/params/record", expected, repr(params.record)[:80])
            self.grad_output = decoded.outputs_gradient(None)
            return
        loss = None if params.loss is None else parsed_loss(params.loss)
        self.inputs = decoded.input(model, limit, training=True, beside=partial(self._beside, model.network, loss))
        if own:
            self.grad_output = decoded.outputs_gradient((*self.inputs.shape[:2], *model.network.output_shape))
            return
        if loss is None:
            raise invalid("/params/loss", "a loss unless a tensor 'grad_output' is there", "neither")
        self.labels = decoded.labels(loss, model.network)

    def _beside(self, network: Description, loss: Loss | None, batch: int, time: int) -> int:
        """Bytes that the call takes beside the pass and one loss."""
        outputs = batch * time * math.prod(network.output_shape) * network.itemsize
        further = 0 if loss is None else loss.further_copies * outputs
        return further + (0 if self.observation is None else self.observation.nbytes(batch, time))

    def _require_room_for_response(self, model: Model) -> None:
        """Refuse a response that cannot be written, before the model has changed."""
        if self.observation is not None and not self.observation.is_empty:
            gradients = sum(math.prod(shape) for _, shape in model.network.parameters) if self.params.gradients else 0
            shape = (0, 0) if self.inputs is None else self.inputs.shape
            self.observation.require_room(self.call, shape, gradients)
        if self.call.content_type != JSON_TYPE or not self.params.gradients:
            return
        most = self.call.limits.max_json_bytes // 2
        count = sum(math.prod(shape) for _, shape in model.network.parameters)
        if count > most:
            expected, got = f"at most {most} numbers in JSON (use msgpack)", f"{count} gradients"
            raise ServiceError(
                "too_large",
                f"/params/gradients must be {expected}, got {got}",
                (Fault("/params/gradients", expected, got),),
            )

    def _observed(self, model: Model) -> tuple[Metrics, dict[str, float], torch.Tensor | None, Seen]:
        """Results of `_compute`, with recordings and statistics."""
        if self.observation is None:
            return *self._compute(model), Seen({}, None)
        if self.inputs is None:  # the forward pass was another call's
            metrics, norms, gradients = self._compute(model)
            return metrics, norms, gradients, self.observation.seen_backward(norms)
        with self.observation.observing(model.trainer) as observer:
            metrics, norms, gradients = self._compute(model)
        return metrics, norms, gradients, self.observation.seen(observer, norms)

    def _compute(self, model: Model) -> tuple[Metrics, dict[str, float], torch.Tensor | None]:
        """Metrics, norms, and the gradients if they are asked for."""
        trainer, params = model.trainer, self.params
        finite = {"allow_non_finite": params.non_finite == "apply"}
        update = {name: getattr(params, name) for name in _UPDATE} if self.operation.update else {}
        self._check_options(model)
        if not self.operation.backward:
            if params.skip:
                return {}, {}, None
            gradients = None
            if params.gradients:
                averaged = {"average": params.average}
                gradients = trainer.gradients(**averaged) if self.gradients is None else self.gradients
            return {}, trainer.optim_step(**update, gradients=self.gradients, **finite), gradients
        added = {"accumulate": params.accumulate}
        if self.labels is not None and self.operation.update and not params.gradients:
            assert self.inputs is not None
            result = trainer.step(self.inputs, **self.labels.given(), **update, **added, **finite)
            return result.metrics, result.grad_norms, None
        if self.operation.update:  # what could refuse the second part is found out before the first
            trainer.check_average(params.average)
        metrics, norms = self._backward(model, {"frozen": params.frozen, **added, **finite})
        averaged = {"average": params.average} if self.operation.update else {}
        gradients = trainer.gradients(**averaged) if params.gradients else None
        if self.operation.update:
            trainer.optim_step(**update, **finite)
        return metrics, norms, gradients

    def _check_options(self, model: Model) -> None:
        """Refuse options of single parameters that do not fit, before anything changes.

        Once where the call is decoded, and again on the computing thread: calls between may have replaced the model.

        Raises:
            OptimizerError: the network has no such layer or parameter.
            ServiceError: a rate times its factor could make a step fail half-way.
        """
        params, optimizer = self.params, model.spec.header.optimizer
        if not self.operation.update:
            model.trainer.resolved(frozen=params.frozen)
            return
        if not self.operation.backward and params.skip:
            return
        model.trainer.resolved(frozen=params.frozen, lr_scale=params.lr_scale, lr_of=params.lr_of)
        whole = params.lr_scale is None and params.lr_of is None
        factors = (optimizer.get("lr_scale") if whole else params.lr_scale) or {}
        rate = optimizer["lr"] if params.lr is None else params.lr
        largest = rate * max(factors.values(), default=0.0)
        if largest > LARGEST_FACTOR:
            expected = f"factors on {rate:g} that give at most {LARGEST_FACTOR:g}"
            raise invalid("/params/lr_scale", expected, f"{largest:g}")

    def _backward(self, model: Model, options: dict[str, Any]) -> tuple[Metrics, dict[str, float]]:
        """Add to the accumulated gradients."""
        trainer = model.trainer
        if self.labels is not None:
            assert self.inputs is not None
            result = trainer.forward_backward(self.inputs, **self.labels.given(), **options)
            return result.metrics, result.grad_norms
        assert self.grad_output is not None
        forward = self._forward(model) if self.inputs is None else trainer.begin(self.inputs)
        return {SAMPLES: float(forward.outputs.shape[0])}, trainer.backward(forward, self.grad_output, **options)

    def _forward(self, model: Model) -> Forward:
        """The forward pass of the context. Raises ServiceError: context_expired, invalid."""
        handle = self.params.context
        context = self.engine.store.contexts.get(self.call.owner, handle, model.id)
        if not isinstance(context, ForwardContext) or context.trainer is not model.trainer:
            raise expired("the context is not one of the present model", handle)
        shape = tuple(context.forward.outputs.shape)
        assert self.grad_output is not None
        if self.grad_output.shape != shape:
            expected = f"{list(shape)}, that of the outputs"
            raise self.decoded.operands.fault("grad_output", "shape", expected, str(list(self.grad_output.shape)))
        return context.forward
