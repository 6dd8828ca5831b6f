"""One layer in two calls: the forward pass leaves a context on the service, from which the backward pass goes on.

The arithmetic is that of gradient requests (`gradients`), and so are the bits.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from exodus_client.wire import Encoded, Message, Tensor, encode
from exodus_service.compute.error_mapping import pointed, translated
from exodus_service.engine import Engine
from exodus_service.errors import ServiceError, invalid
from exodus_service.gradients.computation import Computation, Loss, Results, Source, Synapses, prepare_neurons
from exodus_service.gradients.operands import Operands
from exodus_service.gradients.params import Params
from exodus_service.gradients.request import norm
from exodus_service.operations.call import Received, Reply, owned
from exodus_service.operations.inputs import Opened
from exodus_service.operations.params import LayerBackwardParams, LayerForwardParams
from exodus_service.operations.train import kept_context


@dataclass(frozen=True)
class KeptLayer:
    """What a forward pass leaves: a computation from its membrane, and what its current was made of."""

    computation: Computation
    membrane: torch.Tensor
    synapses: Synapses | None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        parts = [self.membrane, *(v for v in self.computation.neuron.values() if isinstance(v, torch.Tensor))]
        if self.synapses is not None:
            parts += [self.synapses.spikes, self.synapses.weight]
        return sum(part.nbytes for part in parts)


async def forward(engine: Engine, received: Received) -> Reply:
    """The forward pass. Raises ServiceError."""
    return await _computed(engine, received, partial(_forward, engine, received))


async def backward(engine: Engine, received: Received) -> Reply:
    """The backward pass. Raises ServiceError."""
    return await _computed(engine, received, partial(_backward, engine, received))


async def _computed(engine: Engine, received: Received, work: Callable[[], Encoded]) -> Reply:
    def run() -> Encoded:
        spent = received.timings
        spent.queue = time.perf_counter() - received.queued_at
        with torch.no_grad():
            encoded = translated(work, engine.device)
        received.ticket.resize(encoded.nbytes)
        return encoded

    return Reply(await received.computed(received.ticket.submit(run, received.due)))


def _forward(engine: Engine, received: Received) -> Encoded:
    opened = Opened(received, engine.limits)
    started = time.perf_counter()
    params = opened.params(LayerForwardParams)
    if "membrane" in opened.operands:
        raise invalid("/tensors", "a list with exactly one of input, spikes, psp", "membrane")
    fields: dict[str, Any] = {name: getattr(params, name) for name in ("neuron", "surrogate", "time_dim")}
    asked = Params.model_construct(None, **fields, **{"return": params.return_})
    operands = Operands(opened.message, engine.device)
    computation = prepare_neurons(params.method, asked, operands, engine.limits.max_bytes)
    if computation.loss.given:
        raise invalid("/tensors", "a list without gradients of a loss", "grad_output or grad_membrane")
    prepared = time.perf_counter()
    received.timings.decode += prepared - started
    spikes, membrane = computation.fire(computation.source.trace())
    traces = {"spikes": spikes, "membrane": membrane}
    kept = _kept(computation, membrane, opened)
    computed = time.perf_counter()
    received.timings.kernel = computed - prepared
    contexts = engine.store.contexts
    try:
        handle = contexts.put(received.owner, kept, kept.nbytes)
    except ServiceError as problem:
        expected = f"at most {contexts.max_bytes} bytes of contexts"
        raise pointed(problem, "/tensors", expected, f"{kept.nbytes} bytes") from None
    about = {"context": handle, "expires_in_s": contexts.ttl, "nbytes": kept.nbytes, "device": str(engine.device)}
    try:
        return _encoded(engine, received, opened, about, {name: traces[name] for name in params.return_}, computed)
    except ValueError:  # nobody is going to know the handle
        contexts.release(received.owner, handle)
        raise


def _backward(engine: Engine, received: Received) -> Encoded:
    opened = Opened(received, engine.limits)
    started = time.perf_counter()
    params = opened.params(LayerBackwardParams)
    kept = kept_context(engine, received.owner, params.context, "")
    if not isinstance(kept, KeptLayer):
        raise ServiceError("context_expired", "the context is not one of a layer")
    computation, membrane = kept.computation, kept.membrane
    operands = Operands(opened.message, engine.device)
    output, on_membrane = (
        operands.take_like(name, "context", tuple(membrane.shape), membrane.dtype)
        for name in ("grad_output", "grad_membrane")
    )
    operands.finish()
    loss = Loss(output, on_membrane, None, computation.params.time_dim)
    if not loss.given:
        raise invalid("/tensors", "a list with 'grad_output' or 'grad_membrane'", "neither")
    wrt: dict[str, Any] = {}
    if "wrt" in computation.wrt:
        wrt = {"wrt": ("input", *params.wrt)}
    elif params.wrt:
        raise invalid("/params/wrt", "empty for the model srm", str(params.wrt))
    prepared = time.perf_counter()
    received.timings.decode += prepared - started
    results: Results = replace(computation, loss=loss, wrt=wrt).run()
    if kept.synapses is not None:
        results |= kept.synapses.gradients(results["grad_input"])
    norms = {name: norm(result) for name, result in results.items()}
    computed = time.perf_counter()
    received.timings.kernel = computed - prepared
    about = {"method": computation.neuron["method"], "device": str(engine.device), "grad_norms": norms}
    encoded = _encoded(engine, received, opened, about, results, computed)
    if not params.keep:
        engine.store.contexts.release(received.owner, params.context)
    return encoded


def _kept(computation: Computation, membrane: torch.Tensor, opened: Opened) -> KeptLayer:
    """The context, with nothing of the body in it."""

    def own(value: Any) -> Any:
        return owned(value, opened.body) if isinstance(value, torch.Tensor) else value

    synapses = computation.source.synapses
    if synapses is not None:
        synapses = Synapses(own(synapses.spikes), own(synapses.weight))
    backward = replace(
        computation,
        params=computation.params.model_copy(update={"return_": []}),
        neuron={name: own(value) for name, value in computation.neuron.items()},
        source=Source(membrane=membrane),
    )
    return KeptLayer(backward, membrane, synapses)


def _encoded(
    engine: Engine, received: Received, opened: Opened, params: dict[str, Any], tensors: Results, since: float
) -> Encoded:
    named = (Tensor.of(name, tensor.cpu()) for name, tensor in tensors.items())
    encoded = encode(Message.of(params, named), opened.message.form, limits=engine.limits)
    received.timings.encode = time.perf_counter() - since
    return encoded
