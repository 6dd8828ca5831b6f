"""Layers for PyTorch whose forward and backward run on the server, one request each.

A remote layer takes the place of the local one in a model: gradients flow to its input and to those of its parameters
that are tensors. The input goes to the server and the spikes come back; then dL/dspikes goes and dL/dinput comes back.

In between the server keeps the membrane and the parameters of the call, and nothing else, where autograd is going to
need them: until the backward pass, or until they are too old or too many for the server (`contexts`). Without them,
in a second backward pass too, the input is sent again. Nothing is kept for a call without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from exodus_client._checks import elements_of, is_real, unfit
from exodus_client._client import Client
from exodus_client._gradients.result import GradientArguments, Gradients, Method, Parameter, Trace
from exodus_client.neuron import LIF, Reset
from exodus_client.surrogate import Exponential, Surrogate
from exodus_client.torch.contexts import Context, layer_backward, layer_forward
from exodus_client.torch.once_differentiable import once_differentiable
from exodus_client.torch.ranges import MIN_THRESHOLD, Bounded

__all__ = ["RemoteLIF", "remote_lif"]

#: The differentiable arguments of a call beside its input, in the order in which autograd sees them.
_PARAMETERS: tuple[Parameter, ...] = ("alpha", "threshold", "reset_by", "initial_membrane")
_TRAINABLE = ("alpha", "threshold", "reset_by")

_HALVES = (torch.float16, torch.bfloat16)

_Value = float | Tensor | None


def remote_lif(
    client: Client,
    x: Tensor,
    alpha: float | Tensor,
    *,
    threshold: float | Tensor = 1.0,
    reset: Reset = "subtract",
    reset_by: float | Tensor | None = None,
    decay_reset: bool = False,
    surrogate: Surrogate = Exponential(),  # noqa: B008 - frozen
    method: Method = "exodus",
    initial_membrane: float | Tensor | None = None,
    initial_spikes: float | Tensor | None = None,
    min_membrane: float | Tensor | None = None,
    max_spikes: int = 1,
    time_dim: int = 1,
) -> tuple[Tensor, Tensor]:
    """Leaky integrate-and-fire neurons on the server.

    Differentiable, once, in x, alpha, threshold, reset_by and initial_membrane. The server is asked for the gradients
    that autograd needs, and for none where it needs none.

    Args:
        client: connected to the server.
        x: input current with a dimension of time, (B, T, N) by default; float32, float64, float16 or bfloat16. It is
            kept for the backward pass.
        initial_membrane, initial_spikes: state before the first step; the shape of x without time, or broadcast to it.

    The other arguments are those of `LIF` and `Client.gradients`.

    Returns:
        spikes and membrane (before reset), with the shape, dtype and device of x.

    Raises:
        TypeError, ValueError: an argument does not fit; also where initial_spikes or min_membrane require a gradient,
            which the server does not compute.
        ExodusError: see its tree.
    """
    _check(client, x)
    call = _Call(
        client, reset, decay_reset, surrogate, method, initial_spikes, min_membrane, max_spikes, time_dim, True
    )
    spikes, membrane = call.run(x, alpha, threshold, reset_by, initial_membrane)
    assert membrane is not None
    return spikes, membrane


@dataclass(frozen=True)
class _Call:
    """Arguments shared by the requests of one call."""

    client: Client
    reset: Reset
    decay_reset: bool
    surrogate: Surrogate
    method: Method
    initial_spikes: _Value
    min_membrane: _Value
    max_spikes: int
    time_dim: int
    return_membrane: bool

    def run(self, x: Tensor, *values: _Value) -> tuple[Tensor, Tensor | None]:
        """Spikes, and the membrane if it is returned; the values are those of `_PARAMETERS`."""
        for name, value in (("initial_spikes", self.initial_spikes), ("min_membrane", self.min_membrane)):
            if isinstance(value, Tensor) and value.requires_grad:
                got = "one that requires a gradient, which the server does not compute"
                raise unfit(ValueError, name, "a tensor without a gradient", got, f"pass {name}.detach()")
        # Known here alone: within the function autograd is off.
        needed = torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in (x, *values))
        outputs = _RemoteLif.apply(self, needed, x, *values)  # type: ignore[no-untyped-call]
        return cast("tuple[Tensor, Tensor | None]", outputs)

    @property
    def traces(self) -> tuple[Trace, ...]:
        """Traces that the forward pass returns."""
        return ("spikes", "membrane") if self.return_membrane else ("spikes",)

    def arguments(self, x: Tensor, parameters: dict[Parameter, _Value], **more: Any) -> GradientArguments:
        """Those of a request about the neurons with these parameters."""
        neuron = LIF(
            alpha=parameters["alpha"],
            threshold=parameters["threshold"],
            reset=self.reset,
            reset_by=parameters["reset_by"],
            decay_reset=self.decay_reset,
            min_membrane=self.min_membrane,
            max_spikes=self.max_spikes,
        )
        common: dict[str, Any] = {
            "input": x,
            "method": self.method,
            "neuron": neuron,
            "surrogate": self.surrogate,
            "initial_membrane": parameters["initial_membrane"],
            "initial_spikes": self.initial_spikes,
            "time_dim": self.time_dim,
        }
        return cast(GradientArguments, common | more)


class _RemoteLif(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, differentiable: bool, x: Tensor, *values: _Value) -> tuple[Tensor | None, ...]:
        parameters = dict(zip(_PARAMETERS, values, strict=True))
        arguments = call.arguments(x, parameters, return_=call.traces)
        traces, ctx.context = layer_forward(call.client, arguments, keep=differentiable)
        tensors = {name: value for name, value in parameters.items() if isinstance(value, Tensor)}
        ctx.call = call
        ctx.numbers = {name: value for name, value in parameters.items() if name not in tensors}
        ctx.names = tuple(tensors)
        ctx.save_for_backward(x, *tensors.values())
        ctx.set_materialize_grads(False)  # what nobody needs is not sent
        return traces["spikes"].to(x.dtype), traces["membrane"] if call.return_membrane else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_membrane: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        _, _, needs_input, *needed = ctx.needs_input_grad
        wrt = [name for name, is_needed in zip(_PARAMETERS, needed, strict=True) if is_needed]
        asked: dict[str, Any] = {"grad_output": grad_spikes, "grad_membrane": grad_membrane, "wrt": wrt}
        context: Context | None
        context, ctx.context = ctx.context, None  # it is used up; a second backward pass goes without
        result: Gradients | None = None
        if context is not None:
            result = layer_backward(ctx.call.client, context, **asked)
        if result is None:
            parameters = ctx.numbers | dict(zip(ctx.names, tensors, strict=True))
            result = ctx.call.client.gradients(**ctx.call.arguments(x, parameters, **asked))
        by_parameter = (getattr(result, f"grad_{name}") if name in wrt else None for name in _PARAMETERS)
        return None, None, result.grad_input if needs_input else None, *by_parameter


class RemoteLIF(Bounded):
    """Leaky integrate-and-fire neurons on the server, in the place of a local layer of the same arguments.

    Args:
        client: connected to the server. It is no part of the state of the module, which can be saved without it.
        trainable: names of "alpha", "threshold", "reset_by" that become `torch.nn.Parameter`. After each step of an
            optimiser of torch.optim alpha is brought back to [0, 1] and the threshold above 0.001; after other changes
            call `constrain`.
        stateful: start each call from the state that the last one ended with. The state carries values and no
            gradients: backpropagation through time ends at the border between two calls, as it does for a local layer
            whose `detach_state` is called after each. The membrane of each call comes from the server for it, and
            float16 and bfloat16 travel as float32, so that a sequence in pieces is that in one call.
        return_membrane: fetch the membrane of each call too, for `membrane`; as much again as the spikes.

    The other arguments are those of `remote_lif`. Tensors are copied. Numbers are in the state_dict beside them,
    float64, and are set by load_state_dict; a state_dict from before they were is loaded without.

    Attributes:
        membrane: of the last call, with its gradient, if `return_membrane`; None before the first.
        state: membrane and spikes of the last step, a copy, if stateful; None at rest.

    Raises:
        TypeError: client is no `Client`; a parameter is neither a number nor an array of numbers.
        ValueError: trainable names something else, or a parameter that is None; a parameter is out of range, as of
            `LIF`; a threshold to be trained is not positive; a tensor that is not trained requires a gradient. In the
            call: x has two dimensions where time_dim is 1.
        RuntimeError: a stateful layer is called by a backward pass, to be recomputed (torch.utils.checkpoint).
    """

    _version = 2  # of the state_dict; 1 had no numbers

    alpha: float | Tensor
    threshold: float | Tensor
    reset_by: float | Tensor | None
    min_membrane: float | Tensor | None

    def __init__(
        self,
        client: Client,
        alpha: float | Tensor,
        *,
        threshold: float | Tensor = 1.0,
        reset: Reset = "subtract",
        reset_by: float | Tensor | None = None,
        decay_reset: bool = False,
        surrogate: Surrogate = Exponential(),  # noqa: B008 - frozen
        method: Method = "exodus",
        min_membrane: float | Tensor | None = None,
        max_spikes: int = 1,
        time_dim: int = 1,
        trainable: Collection[str] = (),
        stateful: bool = False,
        return_membrane: bool = False,
    ) -> None:
        super().__init__()
        _check_client(client)
        LIF(  # refuses what does not fit before there is a layer
            _checkable(alpha), threshold=_checkable(threshold), reset=reset, reset_by=_checkable(reset_by),
            decay_reset=decay_reset, min_membrane=_checkable(min_membrane), max_spikes=max_spikes,
        )  # fmt: skip
        given = {"alpha": alpha, "threshold": threshold, "reset_by": reset_by}
        values = {name: _as_value(name, value) for name, value in given.items()}
        names = {trainable} if isinstance(trainable, str) else set(trainable)
        unknown = names - {name for name, value in values.items() if value is not None}
        if unknown:
            expected = f"names of parameters that have a value, among {', '.join(_TRAINABLE)}"
            raise unfit(ValueError, "trainable", expected, ", ".join(sorted(unknown)))
        for name, value in values.items():
            self._keep(name, value, name in names)
        self._keep("min_membrane", _as_value("min_membrane", min_membrane), False)
        self.client = client
        self.reset = reset
        self.decay_reset = decay_reset
        self.surrogate = surrogate
        self.method = method
        self.max_spikes = max_spikes
        self.time_dim = time_dim
        self.stateful = stateful
        self.return_membrane = return_membrane
        self._membrane: Tensor | None = None
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of the input current x, with its shape and dtype; raises as `remote_lif`."""
        _check(self.client, x)
        if self.time_dim == 1 and x.dim() == 2:
            raise ValueError(
                f"x must have the shape (batch, time, neurons...) where time_dim is 1, got {tuple(x.shape)}; pass "
                "x.unsqueeze(1) for one step, or set time_dim=-1 where the last axis is time"
            )
        initial_membrane, initial_spikes = self._initial(x)
        call = _Call(
            self.client, self.reset, self.decay_reset, self.surrogate, self.method, initial_spikes,
            self.min_membrane, self.max_spikes, self.time_dim, self.return_membrane or self.stateful,
        )  # fmt: skip
        # The state of a half type must not be rounded between calls: the whole call is in the precision of the state.
        current = x.float() if self.stateful and x.dtype in _HALVES else x
        spikes, membrane = call.run(current, self.alpha, self.threshold, self.reset_by, initial_membrane)
        if self.stateful and membrane is not None and x.shape[self.time_dim] > 0:
            self.state = (_last(membrane, self.time_dim), _last(spikes, self.time_dim))
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
            self.state = (_moved(self.state[0], fn), _moved(self.state[1], fn))
        return self

    def _numbers(self) -> dict[str, float]:
        """The parameters that are numbers."""
        found = {name: getattr(self, name) for name in (*_TRAINABLE, "min_membrane")}
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
        for name in (*_TRAINABLE, "min_membrane"):
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
        try:
            LIF(**({"alpha": 1.0, "max_spikes": self.max_spikes} | {name: value}))
        except (TypeError, ValueError) as error:
            return str(error)
        return ""

    def extra_repr(self) -> str:
        """Arguments shown by repr(): the server and the neuron, and no key."""
        return f"client={self.client!r}, method={self.method!r}, reset={self.reset!r}, time_dim={self.time_dim}"

    def _initial(self, x: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        # -1 where no backward pass is running.
        if self.stateful and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "a stateful layer must not be recomputed in a backward pass, as torch.utils.checkpoint does: it would "
                "not start from where the first call did; leave it out of the checkpoint, or pass the state on as "
                "tensors, to and from remote_lif"
            )
        if self.state is None:
            return None, None
        time = self.time_dim % x.dim()
        wanted = x.shape[:time] + x.shape[time + 1 :]
        if self.state[0].shape != wanted:
            expected = f"of shape {list(self.state[0].shape)} without time, as the kept state"
            advice = "call reset_state() before a batch of another shape"
            raise unfit(ValueError, "x", expected, list(x.shape), advice)
        if self.state[0].is_inference():  # autograd can keep a copy of what was made in inference mode
            return self.state[0].clone(), self.state[1].clone()
        return self.state

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
                    f"{name}.detach(), or call remote_lif, which passes gradients on"
                )
            self.register_buffer(name, _copied(value))
        else:
            setattr(self, name, None if value is None else float(value))


def _checkable(value: Any) -> Any:
    """A value for the checks of `LIF`: what a tensor on meta will have for elements is not known, and fits."""
    return 1.0 if isinstance(value, Tensor) and value.is_meta else value


def _as_value(name: str, value: Any) -> _Value:
    """A number, or a tensor of the elements of an array: of its type if that is one of floats."""
    if value is None or isinstance(value, Tensor) or is_real(value):
        return cast(_Value, value)
    elements = elements_of(name, value)
    keeps_dtype = isinstance(value, np.ndarray) and elements.dtype.kind == "f"
    return torch.tensor(elements, dtype=None if keeps_dtype else torch.get_default_dtype())


def _check_client(client: object) -> None:
    if not isinstance(client, Client):
        raise unfit(TypeError, "client", "a Client, such as Client('http://HOST:PORT')", type(client).__name__)


def _check(client: object, x: object) -> None:
    _check_client(client)
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
