"""The base of the layers on the server: one request forward and one backward, parameters, and the state.

A remote layer takes the place of the local one in a model: gradients flow to its input and to those of its parameters
that are tensors. The input goes to the server and the spikes come back; then dL/dspikes goes and dL/dinput comes back.

In between the server keeps the membrane and the parameters of the call, the synaptic current if the neurons have one,
and nothing else, where autograd is going to need them: until the backward pass, or until they are too old or too many
for the server (`contexts`). Without them, in a second backward pass too, the input is sent again. Nothing is kept for a
call without gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from exodus_client._checks import elements_of, is_real, unfit
from exodus_client._client import Client
from exodus_client._gradients.result import GradientArguments, Gradients, Method, Trace
from exodus_client.neuron import ALIF, IF, LIF, STATES, CubaLIF, Reset
from exodus_client.surrogate import Exponential, Surrogate
from exodus_client.torch.contexts import Context, layer_backward, layer_forward
from exodus_client.torch.once_differentiable import once_differentiable
from exodus_client.torch.ranges import MIN_THRESHOLD, Bounded

__all__ = ["RemoteNeuron", "remote_neurons"]

_HALVES = (torch.float16, torch.bfloat16)

_Value = float | Tensor | None

#: Neurons that a layer on the server may be of.
RemoteKind = LIF | IF | CubaLIF | ALIF


class Outputs(NamedTuple):
    """The results of a call; None for those that it did not ask for."""

    spikes: Tensor
    membrane: Tensor | None
    state: Tensor | None


def remote_neurons(
    client: Client,
    x: Tensor,
    neuron: RemoteKind,
    *,
    surrogate: Surrogate = Exponential(),  # noqa: B008 - frozen
    method: Method = "exodus",
    initial_membrane: float | Tensor | None = None,
    initial_spikes: float | Tensor | None = None,
    initial_current: float | Tensor | None = None,
    initial_adaptation: float | Tensor | None = None,
    initial_refractory: float | Tensor | None = None,
    time_dim: int = 1,
) -> tuple[Tensor, Tensor]:
    """Neurons of any kind but SRM on the server.

    Differentiable, once, in x, the tensors among the neuron's parameters but min_membrane, initial_membrane,
    initial_current and initial_adaptation. The server is asked for the gradients that autograd needs, and for none
    where it needs none.

    Args:
        client: connected to the server.
        x: input current with a dimension of time, (B, T, N) by default; float32, float64, float16 or bfloat16. It is
            kept for the backward pass.
        neuron: `LIF`, `IF`, `CubaLIF` or `ALIF`, whose parameters may be tensors that require a gradient.
        initial_membrane and the others: state before the first step, as far as the neuron has it; the shape of x
            without time, or broadcast to it.

    The other arguments are those of `Client.gradients`.

    Returns:
        spikes and membrane (before reset), with the shape, dtype and device of x.

    Raises:
        TypeError, ValueError: an argument does not fit; also where min_membrane, initial_spikes or initial_refractory
            require a gradient, which the server does not compute.
        ExodusError: see its tree.
    """
    check_input(client, x)
    if not isinstance(neuron, RemoteKind):
        raise unfit(TypeError, "neuron", "LIF(...), IF(...), CubaLIF(...) or ALIF(...)", type(neuron).__name__)
    initial = {
        "initial_membrane": initial_membrane,
        "initial_spikes": initial_spikes,
        "initial_current": initial_current,
        "initial_adaptation": initial_adaptation,
        "initial_refractory": initial_refractory,
    }
    given = {field.name: getattr(neuron, field.name) for field in dataclasses.fields(neuron)}
    outputs = run(client, x, type(neuron), given, initial, surrogate, method, time_dim, ("spikes", "membrane"))
    assert outputs.membrane is not None
    return outputs.spikes, outputs.membrane


def run(
    client: Client,
    x: Tensor,
    kind: type[RemoteKind],
    given: Mapping[str, Any],
    initial: Mapping[str, _Value],
    surrogate: Surrogate,
    method: Method,
    time_dim: int,
    traces: tuple[Trace, ...],
) -> Outputs:
    """The traces of a call, with gradients to x and to the tensors among its parameters and its initial state.

    Args:
        given: attributes of a neuron of this kind.
        initial: arguments `initial_...` of a request.

    The others are those of `remote_neurons`. Raises ValueError: a tensor requires a gradient that is not computed.
    """
    present = {name: value for name, value in initial.items() if value is not None}
    names = {*kind.trainable, *(f"initial_{name}" for name in kind.states if name not in ("spikes", "refractory"))}
    for name, value in {**given, **present}.items():
        if name not in names and isinstance(value, Tensor) and value.requires_grad:
            got = "one that requires a gradient, which the server does not compute"
            raise unfit(ValueError, name, "a tensor without a gradient", got, f"pass {name}.detach()")
    tensors = {name: value for name, value in {**given, **present}.items() if isinstance(value, Tensor)}
    if given["reset"] == "value":
        names.discard("reset_by")  # it is not read: it has no gradient, as that of a local layer
    differentiable = {name: value for name, value in tensors.items() if name in names}
    call = _Call(client, kind, {**given}, present, surrogate, method, time_dim, traces, tuple(differentiable))
    # Known here alone: within the function autograd is off.
    needed = torch.is_grad_enabled() and any(value.requires_grad for value in (x, *differentiable.values()))
    return Outputs(*_Remote.apply(call, needed, x, *differentiable.values()))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Call:
    """Arguments shared by the requests of one call.

    Attributes:
        given, initial: as of `run`.
        traces: that the forward pass returns.
        names: of the tensors among `given` and `initial` that autograd sees, in its order.
    """

    client: Client
    kind: type[RemoteKind]
    given: Mapping[str, Any]
    initial: Mapping[str, _Value]
    surrogate: Surrogate
    method: Method
    time_dim: int
    traces: tuple[Trace, ...]
    names: tuple[str, ...]

    def without_tensors(self) -> _Call:
        """The call without what autograd keeps for it."""
        kept = [{name: v for name, v in of.items() if name not in self.names} for of in (self.given, self.initial)]
        return dataclasses.replace(self, given=kept[0], initial=kept[1])

    def arguments(self, x: Tensor, tensors: Mapping[str, Tensor], **more: Any) -> GradientArguments:
        """Those of a request about the neurons with these tensors, by name."""
        of_neuron = {name: tensor for name, tensor in tensors.items() if not name.startswith("initial_")}
        of_state = {name: tensor for name, tensor in tensors.items() if name not in of_neuron}
        common: dict[str, Any] = {
            "input": x,
            "method": self.method,
            "neuron": self.kind(**{**self.given, **of_neuron}),
            "surrogate": self.surrogate,
            "time_dim": self.time_dim,
            **self.initial,
            **of_state,
        }
        return cast(GradientArguments, common | more)


class _Remote(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, differentiable: bool, x: Tensor, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        ctx.call = call.without_tensors()
        named = dict(zip(call.names, tensors, strict=True))
        arguments = ctx.call.arguments(x, named, return_=call.traces)
        found, ctx.context = layer_forward(call.client, arguments, keep=differentiable)
        ctx.save_for_backward(x, *tensors)
        ctx.set_materialize_grads(False)  # what nobody needs is not sent
        state = found.get("state")
        if state is not None:
            ctx.mark_non_differentiable(state)
        return found["spikes"].to(x.dtype), found.get("membrane"), state

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_spikes: Tensor | None, grad_membrane: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        call: _Call = ctx.call
        needs_input, *needed = ctx.needs_input_grad[2:]
        wrt = [name for name, is_needed in zip(call.names, needed, strict=True) if is_needed]
        asked: dict[str, Any] = {"grad_output": grad_spikes, "grad_membrane": grad_membrane, "wrt": wrt}
        context: Context | None
        context, ctx.context = ctx.context, None  # it is used up; a second backward pass goes without
        result: Gradients | None = None
        if context is not None:
            result = layer_backward(call.client, context, **asked)
        if result is None:
            named = dict(zip(call.names, tensors, strict=True))
            result = call.client.gradients(**call.arguments(x, named, **asked))
        by_parameter = (getattr(result, f"grad_{name}") if name in wrt else None for name in call.names)
        return None, None, result.grad_input if needs_input else None, *by_parameter


class RemoteNeuron(Bounded):
    """Neurons on the server as a module. Its kinds are `RemoteLIF`, `RemoteCubaLIF` and `RemoteALIF`.

    Attributes:
        kind: the neurons, as values.
        membrane: of the last call, with its gradient, if `return_membrane`; None before the first.
        state: of the last step, a copy, the tensors of `state_names`, if stateful; None at rest.
    """

    _version = 2  # of the state_dict; 1 had no numbers
    kind: ClassVar[type[RemoteKind]]
    _function: ClassVar[str] = "remote_neurons"  # that passes on gradients which the module does not

    alpha: float | Tensor
    threshold: float | Tensor
    reset_by: float | Tensor | None
    min_membrane: float | Tensor | None
    reset_to: float | Tensor | None
    reset: Reset
    decay_reset: bool
    max_spikes: int
    detach_reset: bool
    refractory: int

    def __init__(
        self,
        client: Client,
        parameters: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        surrogate: Surrogate,
        method: Method,
        time_dim: int,
        trainable: Collection[str],
        stateful: bool,
        return_membrane: bool,
    ) -> None:
        super().__init__()
        check_client(client)
        # Refuses what does not fit before there is a layer.
        self.kind(**{name: _checkable(value) for name, value in parameters.items()}, **settings)
        values = {name: _as_value(name, value) for name, value in parameters.items()}
        names = {trainable} if isinstance(trainable, str) else set(trainable)
        unknown = names - {name for name in self.kind.trainable if values[name] is not None}
        if unknown:
            expected = f"names of parameters that have a value, among {', '.join(self.kind.trainable)}"
            raise unfit(ValueError, "trainable", expected, ", ".join(sorted(unknown)))
        # A number that is trained becomes a tensor, which may not go with the others; 1 is in the range of all.
        trained: Any = torch.nn.Parameter(torch.ones((), device="cpu"))
        self.kind(**{name: trained if name in names else _checkable(v) for name, v in values.items()}, **settings)
        self._names = tuple(parameters)
        self._settings = tuple(settings)
        for name, value in values.items():
            self._keep(name, value, name in names)
        for name, setting in settings.items():
            setattr(self, name, setting)
        self.client = client
        self.surrogate = surrogate
        self.method = method
        self.time_dim = time_dim
        self.stateful = stateful
        self.return_membrane = return_membrane
        self._membrane: Tensor | None = None
        self.state: tuple[Tensor, ...] | None = None

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the tensors of the state: of LIF without a refractory period its last membrane and spikes."""
        return self.kind.states if self._keeps_all else ("membrane", "spikes")

    @property
    def _keeps_all(self) -> bool:
        return self.kind is not LIF or bool(self.refractory)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of the input current x, with its shape and dtype; raises as the function does."""
        check_input(self.client, x)
        if self.time_dim == 1 and x.dim() == 2:
            raise ValueError(
                f"x must have the shape (batch, time, neurons...) where time_dim is 1, got {tuple(x.shape)}; pass "
                "x.unsqueeze(1) for one step, or set time_dim=-1 where the last axis is time"
            )
        initial = self._initial(x)
        given = {name: getattr(self, name) for name in (*self._names, *self._settings)}
        traces: list[Trace] = ["spikes"]
        if self.return_membrane or (self.stateful and not self._keeps_all):
            traces.append("membrane")
        if self.stateful and self._keeps_all:
            traces.append("state")
        # The state of a half type must not be rounded between calls: the whole call is in the precision of the state.
        current = x.float() if self.stateful and x.dtype in _HALVES else x
        spikes, membrane, state = run(
            self.client, current, self.kind, given, initial, self.surrogate, self.method, self.time_dim, tuple(traces)
        )
        if self.stateful and x.shape[self.time_dim] > 0:
            if state is None:
                assert membrane is not None, "it is asked for where the state is not"
                self.state = (_last(membrane, self.time_dim), _last(spikes, self.time_dim))
            else:
                self.state = tuple(state[STATES.index(name)].clone() for name in self.state_names)
        self._membrane = membrane.to(x.dtype) if membrane is not None and self.return_membrane else None
        return spikes.to(x.dtype)

    @property
    def membrane(self) -> Tensor | None:
        """Membrane of the last call. Raises RuntimeError if membranes are not asked for."""
        if not self.return_membrane:
            # Not AttributeError, which a module would take for a missing attribute and word anew.
            raise RuntimeError("membrane is not fetched from the server; set return_membrane=True before the call")
        return self._membrane

    def reset_state(self) -> None:
        """Forget the last call: the next one starts from rest."""
        self.state = None

    def detach_state(self) -> None:
        """Does nothing, so that the layer can stand in for a local one: its state never has a gradient to cut."""

    def __getstate__(self) -> dict[str, Any]:
        """For copies, which are of the layer and not of its last call: a tensor within a graph cannot be copied."""
        buffers = self._buffers.items()
        kept = {name: buffer.detach() if buffer is not None and buffer.grad_fn else buffer for name, buffer in buffers}
        return self.__dict__ | {"_membrane": None, "_buffers": kept}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Conversion by .to() and its like: the state follows to other devices, and is never rounded to a half type."""
        super()._apply(fn, recurse)
        if self.state is not None:
            self.state = tuple(_moved(part, fn) for part in self.state)
        return self

    def _numbers(self) -> dict[str, float]:
        """The parameters that are numbers."""
        found = {name: getattr(self, name) for name in self._names}
        return {name: value for name, value in found.items() if value is not None and not isinstance(value, Tensor)}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in self._numbers().items():
            destination[prefix + name] = torch.tensor(value, dtype=torch.float64, device="cpu")

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        numbers = self._numbers()
        rest = {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in numbers}
        for name in self._names:
            key = prefix + name
            if isinstance(rest.get(key), Tensor) and (fault := self._fault(name, _checkable(rest[key]))):
                error_msgs.append(f"{key}: {fault}")
                rest[key] = getattr(self, name)  # it stays what it is
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        for name in numbers:
            key = prefix + name
            if key not in state_dict:
                if strict and (local_metadata.get("version") or 1) >= 2:
                    missing_keys.append(key)
                continue
            saved = torch.as_tensor(state_dict[key])
            if saved.numel() != 1:
                error_msgs.append(f"{key} must have one element, got shape {tuple(saved.shape)}")
                continue
            value = saved.double().item()
            if fault := self._fault(name, value):
                error_msgs.append(f"{key}: {fault}")
            else:
                setattr(self, name, value)

    def _fault(self, name: str, value: Any) -> str:
        """Why a parameter cannot have a value; "" if it can."""
        kept = {other: getattr(self, other) for other in (*self._names, *self._settings)}
        # Numbers and settings were checked; tensors are trained, and 1 is in the range of all.
        others: dict[str, Any] = {other: 1.0 if isinstance(given, Tensor) else given for other, given in kept.items()}
        try:
            self.kind(**(others | {name: value}))
        except (TypeError, ValueError) as error:
            return str(error)
        return ""

    def extra_repr(self) -> str:
        """Arguments shown by repr(): the server and the neuron, and no key."""
        return f"client={self.client!r}, method={self.method!r}, reset={self.reset!r}, time_dim={self.time_dim}"

    def _initial(self, x: Tensor) -> dict[str, _Value]:
        """The state before the first step, by the names that a request has for it."""
        # -1 where no backward pass is running.
        if self.stateful and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "a stateful layer must not be recomputed in a backward pass, as torch.utils.checkpoint does: it would "
                "not start from where the first call did; leave it out of the checkpoint, or pass the state on as "
                f"tensors, to and from {self._function}"
            )
        if self.state is None:
            return {}
        time = self.time_dim % x.dim()
        wanted = x.shape[:time] + x.shape[time + 1 :]
        if self.state[0].shape != wanted:
            expected = f"of shape {list(self.state[0].shape)} without time, as the kept state"
            advice = "call reset_state() before a batch of another shape"
            raise unfit(ValueError, "x", expected, list(x.shape), advice)
        if len(self.state) != len(self.state_names):
            raise RuntimeError(
                f"the kept state must be of {', '.join(self.state_names)}, got {len(self.state)} tensors of other "
                "settings; call reset_state()"
            )
        # Autograd can keep a copy of what was made in inference mode.
        parts = [part.clone() if part.is_inference() else part for part in self.state]
        return {f"initial_{name}": part for name, part in zip(self.state_names, parts, strict=True)}

    def _keep(self, name: str, value: _Value, is_trainable: bool) -> None:
        """A parameter where trainable, a buffer where a tensor, else a plain number."""
        if is_trainable:
            start = (
                _copied(value) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.get_default_dtype())
            )
            if name == "threshold" and not start.is_meta and not (start >= MIN_THRESHOLD).all():
                raise ValueError(f"threshold must be at least {MIN_THRESHOLD} if it is trained, got {value}")
            self.register_parameter(name, torch.nn.Parameter(start))
        elif isinstance(value, Tensor):
            if value.requires_grad:
                raise ValueError(
                    f"{name} must be named in trainable, or need no gradient, got a tensor that requires one; pass "
                    f"{name}.detach(), or call {self._function}, which passes gradients on"
                )
            self.register_buffer(name, _copied(value))
        else:
            setattr(self, name, None if value is None else float(value))


def _checkable(value: Any) -> Any:
    """A value for the checks of a neuron: what a tensor on meta will have for elements is not known, and fits."""
    return 1.0 if isinstance(value, Tensor) and value.is_meta else value


def _as_value(name: str, value: Any) -> _Value:
    """A number, or a tensor of the elements of an array: of its type if that is one of floats."""
    if value is None or isinstance(value, Tensor) or is_real(value):
        return cast(_Value, value)
    elements = elements_of(name, value)
    keeps_dtype = isinstance(value, np.ndarray) and elements.dtype.kind == "f"
    return torch.tensor(elements, dtype=None if keeps_dtype else torch.get_default_dtype())


def check_client(client: object) -> None:
    """Refuses what is no client."""
    if not isinstance(client, Client):
        raise unfit(TypeError, "client", "a Client, such as Client('http://HOST:PORT')", type(client).__name__)


def check_input(client: object, x: object) -> None:
    """Refuses what is no client, and no tensor."""
    check_client(client)
    if not isinstance(x, Tensor):
        raise unfit(TypeError, "x", "a torch.Tensor", type(x).__name__)


def _last(trace: Tensor, time_dim: int) -> Tensor:
    """A copy of the last step of a trace, without its graph."""
    return trace.detach().select(time_dim, -1).clone()


def _copied(tensor: Tensor) -> Tensor:
    """A copy of its own, contiguous, without a graph."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _moved(part: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """A part of the state after a conversion of the layer, but in float32 if that is to a half type."""
    moved = fn(part)
    return part.to(moved.device) if moved.dtype in _HALVES else moved
