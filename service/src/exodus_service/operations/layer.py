"""One layer in two calls: the forward pass leaves a context on the service, from which the backward pass goes on.

The arithmetic is that of gradient requests (`gradients`), and so are the bits.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from exodus_client.wire import Encoded, Message, Tensor, encode
from exodus_service.call import Call, Result, owned
from exodus_service.compute.transfers import to_host
from exodus_service.engine import Engine
from exodus_service.errors import ServiceError, invalid
from exodus_service.gradients.computation import (
    Computation,
    LossGradients,
    Results,
    Source,
    Synapses,
    norm,
    prepare_neurons,
)
from exodus_service.gradients.operands import Operands
from exodus_service.gradients.params import Params
from exodus_service.operations.inputs import DecodedCall
from exodus_service.operations.params import LayerBackwardParams, LayerForwardParams


@dataclass(frozen=True)
class LayerContext:
    """State of a forward pass for its backward pass: a computation from the traces, and what made the input."""

    computation: Computation
    membrane: torch.Tensor
    synapses: Synapses | None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        parts = [self.membrane, *(v for v in self.computation.neuron.values() if isinstance(v, torch.Tensor))]
        if self.computation.source.current is not None:
            parts.append(self.computation.source.current)
        if self.synapses is not None:
            parts += [self.synapses.spikes, self.synapses.weight]
        return sum(part.nbytes for part in parts)


async def forward(engine: Engine, call: Call) -> Result:
    """The forward pass. Raises ServiceError."""
    return await call.compute(partial(_forward, engine, call), brief=lambda: not call.has("weight"))


async def backward(engine: Engine, call: Call) -> Result:
    """The backward pass. Raises ServiceError."""
    return await call.compute(partial(_backward, engine, call))


@torch.no_grad()
def _forward(engine: Engine, call: Call) -> Encoded:
    decoded = DecodedCall(call)
    with call.timings.phase("decode"):
        params = decoded.params(LayerForwardParams)
        if "membrane" in decoded.operands:
            raise invalid("/tensors", "a list with exactly one of input, spikes, psp", "membrane")
        fields: dict[str, Any] = {name: getattr(params, name) for name in ("neuron", "surrogate", "time_dim")}
        asked = Params.model_construct(None, **fields, **{"return": params.return_})
        operands = Operands(decoded.message, engine.device)
        computation = prepare_neurons(params.method, asked, operands, call.limits.max_bytes)
        if computation.loss.given:
            raise invalid("/tensors", "a list without gradients of a loss", "grad_output or grad_membrane")
    with call.timings.phase("kernel"):
        drive = computation.source.trace()
        traces = computation.fire(drive)
        context = _context(computation, traces["membrane"], computation.current(drive), decoded)
    with call.timings.phase("encode"):
        contexts = engine.store.contexts
        try:
            handle = contexts.put(call.owner, context, context.nbytes)
        except ServiceError as problem:
            expected = f"at most {contexts.max_bytes} bytes of contexts"
            raise problem.pointing_at("/tensors", expected, f"{context.nbytes} bytes") from None
        about = {
            "context": handle,
            "expires_in_s": contexts.ttl,
            "nbytes": context.nbytes,
            "device": str(engine.device),
        }
        try:
            return _encoded(call, decoded, about, {name: traces[name] for name in params.return_})
        except ValueError:  # nobody is going to know the handle
            contexts.release(call.owner, handle)
            raise


@torch.no_grad()
def _backward(engine: Engine, call: Call) -> Encoded:
    decoded = DecodedCall(call)
    with call.timings.phase("decode"):
        params = decoded.params(LayerBackwardParams)
        context = engine.store.contexts.get(call.owner, params.context)
        if not isinstance(context, LayerContext):
            raise ServiceError("context_expired", "the context is not one of a layer")
        computation, membrane = context.computation, context.membrane
        operands = Operands(decoded.message, engine.device)
        output, on_membrane = (
            operands.take_like(name, "context", tuple(membrane.shape), membrane.dtype)
            for name in ("grad_output", "grad_membrane")
        )
        operands.finish()
        loss = LossGradients(output, on_membrane, None, computation.params.time_dim)
        if not loss.given:
            raise invalid("/tensors", "a list with 'grad_output' or 'grad_membrane'", "neither")
        wrt: dict[str, Any] = {}
        if "wrt" in computation.wrt:
            wrt = {"wrt": ("input", *params.wrt)}
        elif params.wrt:
            raise invalid("/params/wrt", "empty for the model srm", str(params.wrt))
    with call.timings.phase("kernel"):
        results: Results = replace(computation, loss=loss, wrt=wrt).run()
        if context.synapses is not None:
            results |= context.synapses.gradients(results["grad_input"])
        norms = {name: norm(result) for name, result in results.items()}
    with call.timings.phase("encode"):
        about = {"method": computation.neuron["method"], "device": str(engine.device), "grad_norms": norms}
        encoded = _encoded(call, decoded, about, results)
        if not params.keep:
            engine.store.contexts.release(call.owner, params.context)
        return encoded


def _context(
    computation: Computation, membrane: torch.Tensor, current: torch.Tensor | None, decoded: DecodedCall
) -> LayerContext:
    """The context, which refers to nothing of the body."""

    def own(value: Any) -> Any:
        return owned(value, decoded.body) if isinstance(value, torch.Tensor) else value

    synapses = computation.source.synapses
    if synapses is not None:
        synapses = Synapses(own(synapses.spikes), own(synapses.weight))
    backward = replace(
        computation,
        params=computation.params.model_copy(update={"return_": []}),
        neuron={name: own(value) for name, value in computation.neuron.items()},
        source=Source(membrane=membrane, current=current),
    )
    return LayerContext(backward, membrane, synapses)


def _encoded(call: Call, decoded: DecodedCall, params: dict[str, Any], tensors: Results) -> Encoded:
    named = (Tensor.of(name, tensor) for name, tensor in to_host(tensors, call.device).items())
    return encode(Message.of(params, named), decoded.message.form, limits=call.limits)
