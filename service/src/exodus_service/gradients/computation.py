"""The computation of a gradient request, from checked parameters and tensors to tensors of the response.

`prepare` checks a request and moves its tensors to the device; `Computation.run` computes in two steps that can be
taken apart: the results of the neurons, and what is left for the request as a whole. All arithmetic of neurons is that
of exodus_core. Equation numbers are those of arXiv 2205.10242.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch

import exodus_core
from exodus_client.wire import Message
from exodus_core import ArgumentError, ArgumentTypeError, coupled
from exodus_core.arguments import is_coupled
from exodus_core.coupled_gradients import OF_THE_CURRENT, neurons_gradients
from exodus_core.ops import COUPLED_STATES
from exodus_service.errors import invalid
from exodus_service.gradients.operands import Operands
from exodus_service.gradients.params import (
    AlphaTaps,
    ExponentialTaps,
    IfNeuron,
    LifNeuron,
    Method,
    Params,
    SrmNeuron,
    TensorName,
    parse_params,
)

P = ParamSpec("P")
T = TypeVar("T")
Results = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LossGradients:
    """Gradients of the loss: `output` = dL/ds or, with a filter, dL/d(eps * s), and `membrane` = dL/du."""

    output: torch.Tensor | None
    membrane: torch.Tensor | None
    filter_alpha: float | None
    time_dim: int

    @property
    def given(self) -> bool:
        return self.output is not None or self.membrane is not None

    def grad_spikes(self, membrane: torch.Tensor) -> torch.Tensor:
        """g = dL/ds; with a filter the adjoint of the filter of `output` (11, 13)."""
        if self.output is None:
            return torch.zeros_like(membrane)
        if self.filter_alpha is None:
            return self.output
        kernel = _checked(exodus_core.ExponentialKernel, self.filter_alpha)
        return _checked(exodus_core.output_filter_adjoint, self.output, kernel, time_dim=self.time_dim)


@dataclass(frozen=True)
class Synapses:
    """Input spikes (..., N_in) and weights (N_out, N_in); the current is x = s W^T."""

    spikes: torch.Tensor
    weight: torch.Tensor

    def current(self) -> torch.Tensor:
        return _checked(exodus_core.synapse_current, self.spikes, self.weight)

    def gradients(self, grad_input: torch.Tensor) -> Results:
        """dL/dW and dL/ds (14), from lambda = dL/dx."""
        found = _checked(exodus_core.synapse_gradients, self.spikes, self.weight, grad_input)
        return {"grad_weight": found.weight, "grad_spikes": found.spikes}


@dataclass(frozen=True)
class Source:
    """Input of the neuron, exactly one of: its membrane trace, its current or psp, or spikes and weights.

    With the membrane there may be `current`, the trace of the synaptic current.
    """

    membrane: torch.Tensor | None = None
    drive: torch.Tensor | None = None
    synapses: Synapses | None = None
    current: torch.Tensor | None = None

    def trace(self) -> torch.Tensor:
        """The membrane if it is given, else the current or psp."""
        if self.synapses is not None:
            return self.synapses.current()
        trace = self.drive if self.membrane is None else self.membrane
        assert trace is not None, "a source has one of its members"
        return trace


@dataclass(frozen=True)
class Computation:
    """A checked request.

    Attributes:
        forward: of exodus_core, to spikes, membrane and, of neurons with coupled variables, the last state.
        backward: of exodus_core, to gradients by name.
        neuron: keyword arguments of both.
        wrt: further keyword arguments of `backward`.
    """

    params: Params
    forward: Callable[..., tuple[torch.Tensor, ...]]
    backward: Callable[..., Results]
    neuron: Mapping[str, Any]
    wrt: Mapping[str, Any]
    source: Source
    loss: LossGradients

    def run(self) -> Results:
        """The response tensors by name."""
        return self.finish(self.neuron_results(self.source.trace(), self.loss))

    def neuron_results(self, trace: torch.Tensor, loss: LossGradients) -> Results:
        """Results of the neurons, given the trace and the loss of this request, or those of several (`batching`)."""
        results: Results = {}
        fired: Results = {"membrane": trace}
        current = self.source.current
        if self.source.membrane is None:
            fired = self.fire(trace)
            current = self.current(trace) if self._reads_current else None
        if loss.given:
            results |= self._gradients(fired["membrane"], current, loss)
        if "spikes" in self.params.return_ and "spikes" not in fired:
            fired["spikes"] = self._fired(trace)
        return results | {name: fired[name] for name in ("spikes", "membrane", "state") if name in self.params.return_}

    def fire(self, drive: torch.Tensor) -> Results:
        """Spikes, membrane and, if it is asked for, the last state of the forward pass."""
        spikes, membrane, *last = _checked(self.forward, drive, **self.neuron)
        fired = {"spikes": spikes, "membrane": membrane}
        if "state" in self.params.return_:
            time = self.params.time_dim % drive.dim()
            fired["state"] = last[0].view(len(COUPLED_STATES), *drive.shape[:time], *drive.shape[time + 1 :])
        return fired

    def current(self, drive: torch.Tensor) -> torch.Tensor | None:
        """The trace of the synaptic current; None of neurons without."""
        decay = self.neuron.get("synapse_alpha")
        if decay is None:
            return None
        options = {"initial_current": self.neuron["initial_current"], "time_dim": self.params.time_dim}
        return _checked(exodus_core.current_trace, drive, decay, **options)

    def finish(self, neurons: Results) -> Results:
        """The response tensors, given the results of the neurons of this request."""
        synapses = self.source.synapses
        return neurons | synapses.gradients(neurons["grad_input"]) if synapses and self.loss.given else neurons

    @property
    def _reads_current(self) -> bool:
        return any(name in OF_THE_CURRENT for name in self.wrt.get("wrt", ()))

    def _gradients(self, membrane: torch.Tensor, current: torch.Tensor | None, loss: LossGradients) -> Results:
        more = dict(self.wrt) if current is None else {**self.wrt, "current": current}
        found = _checked(
            self.backward, membrane, loss.grad_spikes(membrane), grad_membrane=loss.membrane, **self.neuron, **more
        )
        return {f"grad_{name}": value for name, value in found.items()}

    def _fired(self, membrane: torch.Tensor) -> torch.Tensor:
        """The spikes of a given trace (4)."""
        if self.forward is coupled.neurons:
            return _checked(exodus_core.spikes_of_trace, membrane, **self.neuron)
        options = {name: self.neuron[name] for name in ("threshold", "max_spikes", "time_dim") if name in self.neuron}
        return _checked(exodus_core.fire, membrane, **options)


def norm(tensor: torch.Tensor) -> float:
    """The L2 norm, accumulated in float32 or better."""
    dtype = tensor.dtype if tensor.dtype in (torch.float32, torch.float64) else torch.float32
    return float(torch.linalg.vector_norm(tensor, dtype=dtype))


def prepare(method: Method, message: Message, *, device: torch.device, max_bytes: int) -> Computation:
    """Check a request. `max_bytes` bounds the spikes in the dtype of the weights, and the current that they make.

    Raises:
        ServiceError: `invalid`, naming what does not fit.
        WireError: a tensor whose payload contradicts its description.
    """
    params = parse_params(message.params)
    operands = Operands(message, device)
    computation = prepare_neurons(method, params, operands, max_bytes)
    if not computation.loss.given and (computation.source.membrane is not None or not params.return_):
        raise invalid(
            "/tensors",
            "a list with 'grad_output' or 'grad_membrane', or with an input and `return` set, for a forward pass alone",
            operands.names(),
        )
    if params.wrt and not computation.loss.given:
        raise invalid("/params/wrt", "empty for a forward pass alone", str(params.wrt))
    return computation


def prepare_neurons(method: Method, params: Params, operands: Operands, max_bytes: int) -> Computation:
    """Check the neurons and tensors of a request, whatever is asked of them; raises as `prepare` does."""
    if isinstance(params.neuron, SrmNeuron):
        computation = _prepare_srm(method, params, params.neuron, operands)
    else:
        computation = _prepare_lif(method, params, operands, max_bytes)
    operands.finish()
    return computation


def _prepare_lif(method: Method, params: Params, operands: Operands, max_bytes: int) -> Computation:
    name = _one_of(operands, "membrane", "input", "spikes")
    if name == "spikes":
        synapses = _synapses(params, operands, max_bytes)
        source, like = Source(synapses=synapses), "weight"
        shape, dtype = (*synapses.spikes.shape[:-1], synapses.weight.shape[0]), synapses.weight.dtype
    else:
        trace = operands.take_float(name)
        source = Source(membrane=trace) if name == "membrane" else Source(drive=trace)
        like, shape, dtype = name, tuple(trace.shape), trace.dtype
    fields = {field: getattr(params.neuron, field) for field in type(params.neuron).model_fields if field != "model"}
    neuron = {field: operands.value(field, value) for field, value in fields.items()}
    has_synapse = neuron.get("synapse_alpha") is not None
    if name == "membrane":
        if "state" in params.return_:
            raise invalid("/params/return", "without 'state' where the membrane is given", str(params.return_))
        if has_synapse and any(wanted in OF_THE_CURRENT for wanted in params.wrt):
            current = operands.take_like("current", like, shape, dtype)
            if current is None:
                expected = "a list with a tensor 'current', the trace of the synaptic current, for this `wrt`"
                raise invalid("/tensors", expected, operands.names())
            source = replace(source, current=current)
    if neuron.get("bound_after_reset") and "state" in params.return_:
        expected = "without 'state' with bound_after_reset: the last steps of 'membrane' and 'spikes' are that"
        raise invalid("/params/return", expected, str(params.return_))
    options = neuron | _common(method, params)
    forward, backward = _functions(params, options)
    return Computation(
        params,
        forward,
        backward,
        options,
        {"wrt": ("input", *params.wrt)},
        source,
        _loss(params, operands, like, shape, dtype),
    )


#: Results of neurons with coupled variables, whose fields are the names that `wrt` may have.
_FIELDS: dict[str, Any] = {"cuba_lif": exodus_core.CubaLifGradient, "alif": exodus_core.AlifGradient}


def _functions(
    params: Params, options: dict[str, Any]
) -> tuple[Callable[..., tuple[torch.Tensor, ...]], Callable[..., Results]]:
    """The forward and the backward pass of neurons; arguments that are not theirs are taken from the options."""
    if is_coupled(**options) or options["initial_refractory"] is not None:
        kind = _FIELDS.get(params.neuron.model, exodus_core.LifGradient)
        if isinstance(params.neuron, LifNeuron | IfNeuron) and params.neuron.reset == "value":
            kind = exodus_core.LifValueGradient
        return coupled.neurons, partial(_coupled_gradient, kind._fields)
    del options["initial_refractory"]
    # Both give the same bits, and gradients do not depend on what else is asked for.
    forward = coupled.neurons if "state" in params.return_ else exodus_core.lif
    return forward, _lif_gradient


def _coupled_gradient(
    fields: Sequence[str],
    membrane: torch.Tensor,
    grad_spikes: torch.Tensor,
    *,
    grad_membrane: torch.Tensor | None,
    alpha: float | torch.Tensor,
    wrt: Collection[str],
    current: torch.Tensor | None = None,
    **options: Any,
) -> Results:
    _check_wrt(wrt, fields)
    return neurons_gradients(fields, membrane, grad_spikes, grad_membrane, alpha, current, wrt, **options)


def _lif_gradient(
    membrane: torch.Tensor, grad_spikes: torch.Tensor, *, wrt: Collection[str], **options: Any
) -> Results:
    _check_wrt(wrt, exodus_core.LifGradient._fields)
    found = exodus_core.lif_gradient(membrane, grad_spikes, wrt=wrt, **options)
    return {name: value for name, value in found._asdict().items() if value is not None}


def _check_wrt(wrt: Collection[str], fields: Sequence[str]) -> None:
    """Checks names by the fields of the result, of which a request asks for all but the first, that of the input."""
    unknown = sorted(set(wrt) - set(fields))
    if unknown:
        raise ArgumentError("wrt", f"names of {', '.join(fields[1:])}", ", ".join(unknown))


def _srm_gradient(membrane: torch.Tensor, grad_spikes: torch.Tensor, **options: Any) -> Results:
    return exodus_core.srm_gradient(membrane, grad_spikes, **options)._asdict()


def _prepare_srm(method: Method, params: Params, srm: SrmNeuron, operands: Operands) -> Computation:
    if params.wrt:
        raise invalid("/params/wrt", "empty for the model srm", str(params.wrt))
    if "state" in params.return_:
        raise invalid("/params/return", "without 'state' for the model srm", str(params.return_))
    name = _one_of(operands, "membrane", "psp")
    trace = operands.take_float(name)
    neuron = {"threshold": operands.value("threshold", srm.threshold), "reset_kernel": _reset_kernel(srm, operands)}
    return Computation(
        params,
        exodus_core.srm,
        _srm_gradient,
        neuron | _common(method, params),
        {},
        Source(membrane=trace) if name == "membrane" else Source(drive=trace),
        _loss(params, operands, name, tuple(trace.shape), trace.dtype),
    )


def _common(method: Method, params: Params) -> dict[str, Any]:
    chosen = params.surrogate
    kind = exodus_core.surrogate.KINDS[chosen.kind]
    slope = {} if chosen.slope is None else {"slope": chosen.slope}
    return {"method": method, "time_dim": params.time_dim, "surrogate": kind(**slope, scale=chosen.scale)}


def _reset_kernel(srm: SrmNeuron, operands: Operands) -> object:
    chosen = srm.reset_kernel
    if chosen is None:
        return operands.take_float("reset_kernel")
    if isinstance(chosen, TensorName):
        return operands.value("reset_kernel", chosen)
    if isinstance(chosen, ExponentialTaps):
        return exodus_core.ExponentialKernel(chosen.alpha, chosen.amplitude)
    made = exodus_core.AlphaKernel if isinstance(chosen, AlphaTaps) else exodus_core.SlayerRefractory
    return made(chosen.tau, chosen.amplitude)


def _one_of(operands: Operands, *names: str) -> str:
    found = [name for name in names if name in operands]
    if len(found) != 1:
        raise invalid(
            "/tensors", f"a list with exactly one of {', '.join(names)}", " and ".join(found) or operands.names()
        )
    return found[0]


def _synapses(params: Params, operands: Operands, max_bytes: int) -> Synapses:
    spikes, weight = operands.take("spikes"), operands.take_float("weight")
    if weight.ndim != 2:
        raise operands.fault("weight", "shape", "[N_out, N_in]", str(list(weight.shape)))
    n_out, n_in = weight.shape
    if spikes.ndim < 2 or spikes.shape[-1] != n_in:
        expected = f"[..., {n_in}], to match 'weight' of shape {[n_out, n_in]}"
        raise operands.fault("spikes", "shape", expected, str(list(spikes.shape)))
    if params.time_dim in (-1, spikes.ndim - 1):
        raise invalid("/params/time_dim", "another axis than the last, that of the features", str(params.time_dim))
    # Bits and events grow twice: to the dtype of the weights, and to the current.
    widened = spikes.numel() * weight.element_size()
    if widened > max_bytes:
        expected = f"at most {max_bytes} bytes in the dtype of 'weight' (EXODUS_MAX_BODY_BYTES)"
        raise operands.fault("spikes", "shape", expected, f"{list(spikes.shape)}, which makes {widened}")
    nbytes = math.prod(spikes.shape[:-1]) * n_out * weight.element_size()
    if nbytes > max_bytes:
        expected = f"one whose product with spikes has at most {max_bytes} bytes (EXODUS_MAX_BODY_BYTES)"
        raise operands.fault("weight", "shape", expected, f"{[n_out, n_in]}, which makes {nbytes}")
    return Synapses(spikes.to(weight.dtype), weight)


def _loss(params: Params, operands: Operands, like: str, shape: tuple[int, ...], dtype: torch.dtype) -> LossGradients:
    """The gradients of the loss, which have the shape and dtype of the membrane."""
    if not -len(shape) <= params.time_dim < len(shape):
        raise invalid("/params/time_dim", f"an axis of shape {list(shape)}", str(params.time_dim))
    output = operands.take_like("grad_output", like, shape, dtype)
    membrane = operands.take_like("grad_membrane", like, shape, dtype)
    chosen = params.output_filter
    if chosen is not None and output is None:
        raise invalid("/params/output_filter", "null without a tensor 'grad_output' to filter", "a filter")
    return LossGradients(output, membrane, None if chosen is None else chosen.alpha, params.time_dim)


def _checked(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call exodus_core. An argument that it refuses becomes a ServiceError that points at the parameter."""
    try:
        return function(*args, **kwargs)
    except (ArgumentError, ArgumentTypeError) as error:
        name = error.argument
        pointer = f"/params/{name}" if name in Params.model_fields else f"/params/neuron/{name}"
        raise invalid(pointer, error.expected, error.got) from error
