"""Modules: LIF, IF, SRM and ExpLeak, for torch.nn.Sequential and everything built from modules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Unpack

import torch
from torch import Tensor

from exodus_core import arguments, functional, ranges
from exodus_core.arguments import NeuronOptions
from exodus_core.errors import ArgumentError, must_be
from exodus_core.kernels import Kernel
from exodus_core.network import spiking
from exodus_core.ops import compute_dtype
from exodus_core.pieces import carried
from exodus_core.pieces.carried import State
from exodus_core.pieces.continuation import INSTEAD, continued_lif, kept
from exodus_core.pieces.time_checkpoint import TimeCheckpoint
from exodus_core.recomputation import refuse_recomputation
from exodus_core.sparse.convolution import conv1d, conv2d
from exodus_core.sparse.product import linear
from exodus_core.sparse.spikes import PackedSpikes
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate

__all__ = ["IF", "LIF", "SRM", "Conv1d", "Conv2d", "ExpLeak", "Linear", "TimeCheckpoint", "neuron_parameters"]


class Linear(torch.nn.Linear):
    """torch.nn.Linear, in time proportional to the spikes where its input is mostly zeros: see `exodus_core.linear`.

    Args:
        in_features, out_features, bias, device, dtype: as of torch.nn.Linear, whose state_dict it has.
        exact: compute the dense product, whose bits are torch's.

    Raises:
        ArgumentTypeError, ArgumentError: the input does not fit the weight.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        exact: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.exact = exact

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        """x W^T + b, shape (..., out_features), of x with shape (..., in_features)."""
        return linear(x, self.weight, self.bias, exact=self.exact)

    def extra_repr(self) -> str:
        """The sizes, for repr()."""
        return super().extra_repr() + (", exact=True" if self.exact else "")


class Conv1d(torch.nn.Conv1d):
    """torch.nn.Conv1d, in time proportional to the spikes where its input is mostly zeros: see `exodus_core.conv1d`.

    Args:
        arguments, options: as of torch.nn.Conv1d, whose state_dict it has.
        exact: compute the dense convolution, whose bits are torch's. So are those of a padding_mode other than "zeros"
            or a padding that is named.
    """

    def __init__(self, *arguments: Any, exact: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.exact = exact

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        """The convolution of x, shape (..., in_channels, length)."""
        return _convolved(self, conv1d, x)


class Conv2d(torch.nn.Conv2d):
    """torch.nn.Conv2d, in time proportional to the spikes where its input is mostly zeros: see `exodus_core.conv2d`.

    Args:
        arguments, options, exact: as of `Conv1d`.
    """

    def __init__(self, *arguments: Any, exact: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.exact = exact

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        """The convolution of x, shape (..., in_channels, height, width)."""
        return _convolved(self, conv2d, x)


def _convolved(layer: Conv1d | Conv2d, function: Callable[..., Tensor], x: Tensor | PackedSpikes) -> Tensor:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        dense = x.unpack(layer.weight.dtype) if isinstance(x, PackedSpikes) else x
        padded: Tensor = layer._conv_forward(dense, layer.weight, layer.bias)
        return padded
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return function(x, layer.weight, layer.bias, *options, exact=layer.exact)


class _Neuron(ranges.Bounded):
    """Keeps neuron parameters: trainable ones as torch.nn.Parameter, other tensors as buffers, numbers as floats.

    Tensors are copied. Floats are in the state_dict too, as 0-d float64 tensors.
    """

    _version = 2  # of the state_dict; 1 had no floats
    time_dim: int

    def __init__(self, trainable: Collection[str], time_dim: int, **parameters: float | Tensor | None) -> None:
        super().__init__()
        self.time_dim = arguments.integer("time_dim", time_dim)
        names = {trainable} if isinstance(trainable, str) else set(trainable)
        unknown = names - {name for name, value in parameters.items() if value is not None}
        if unknown:
            expected = f"names of parameters that have a value, of {', '.join(parameters)}"
            raise ArgumentError("trainable", expected, ", ".join(sorted(unknown)))
        for name, value in parameters.items():
            if name in names:
                start = torch.tensor(float(value)) if not isinstance(value, Tensor) else _copied(value)  # type: ignore[arg-type]
                arguments.check_values(name, start, positive=name == "threshold")
                if name == "threshold" and not start.is_meta and bool((start < ranges.MIN_THRESHOLD).any()):
                    expected = f"at least {ranges.MIN_THRESHOLD} if it is trained"
                    raise ArgumentError("threshold", expected, f"{start.min().item():g}")
                self.register_parameter(name, torch.nn.Parameter(start))
            elif isinstance(value, Tensor):
                if value.requires_grad:
                    raise ArgumentError(
                        name,
                        "named in trainable, or without a gradient",
                        "a tensor that requires one",
                        f"pass {name}.detach(), or call exodus_core.lif, srm or filter, which pass gradients on",
                    )
                arguments.check_values(name, value)
                self.register_buffer(name, _copied(value))
            else:
                setattr(self, name, None if value is None else float(value))
        self._parameter_names = tuple(parameters)

    def extra_repr(self) -> str:
        """The parameters, for repr()."""
        parts = []
        for name in self._parameter_names:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                kind = "trainable" if isinstance(value, torch.nn.Parameter) else "tensor"
                value = f"{value.item():.4g} ({kind})" if value.numel() == 1 else f"{tuple(value.shape)} ({kind})"
            if value is not None:
                parts.append(f"{name}={value}")
        return ", ".join(parts)

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles: values, as a graph can be neither copied nor saved."""
        buffers = self._buffers.items()
        kept = {name: buffer.detach() if buffer is not None and buffer.grad_fn else buffer for name, buffer in buffers}
        return self.__dict__ | {"_buffers": kept}

    def _check_steps(self, x: Tensor) -> None:
        if self.time_dim == 1 and isinstance(x, Tensor) and x.dim() == 2:
            raise ArgumentError(
                "x",
                "of shape (batch, time, neurons...) if time_dim is 1",
                tuple(x.shape),
                "pass x.unsqueeze(1) for one step, or set time_dim=-1 if the last axis is time",
            )

    def _numbers(self) -> dict[str, float | tuple[float, ...]]:
        """The parameters that are numbers, by their names in the state_dict."""
        found = {name: getattr(self, name) for name in self._parameter_names}
        return {name: value for name, value in found.items() if arguments.is_number(value)}

    def _set_number(self, name: str, value: Any) -> None:
        arguments.check_alpha(value) if name == "alpha" else arguments.check_value(name, value)
        if name == "threshold":
            arguments.check_threshold(value, self._max_spikes)
        setattr(self, name, value)

    @property
    def _max_spikes(self) -> int:
        return getattr(self, "max_spikes", 1)

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
        for name in self._parameter_names:
            key = prefix + name
            given, own = rest.get(key), getattr(self, name)
            if not isinstance(given, Tensor) or not isinstance(own, Tensor):
                continue
            try:
                arguments.check_values(name, given, positive=name == "threshold" and self._max_spikes > 1)
            except ValueError as error:
                error_msgs.append(f"{key}: {error}")
                rest[key] = own  # unchanged
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        for name, own in numbers.items():
            key, length = prefix + name, len(own) if isinstance(own, tuple) else 1
            if key not in state_dict:
                if strict and (local_metadata.get("version") or 1) >= 2:
                    missing_keys.append(key)
                continue
            saved = torch.as_tensor(state_dict[key])
            if saved.numel() != length:
                error_msgs.append(must_be(key, f"of {length} elements", f"shape {tuple(saved.shape)}"))
                continue
            values = saved.double().reshape(-1).tolist()
            try:
                self._set_number(name, tuple(values) if isinstance(own, tuple) else values[0])
            except ValueError as error:
                error_msgs.append(f"{key}: {error}")


class _Stateful(_Neuron):
    """A neuron that can continue from the state of the last call.

    Attributes:
        state: membrane and spikes of the last step, a copy, if stateful; None at rest. Shape of the input without time;
            float32, or float64 if the input was.
    """

    state: tuple[Tensor, Tensor] | None

    def __init__(
        self, trainable: Collection[str], time_dim: int, stateful: bool, **parameters: float | Tensor | None
    ) -> None:
        super().__init__(trainable, time_dim, **parameters)
        self.stateful = stateful
        self.state = None

    def reset_state(self) -> None:
        """Drops the state of the last call: the next one starts from rest."""
        self.state = None

    def detach_state(self) -> None:
        """Keeps the state and cuts its gradient: truncated backpropagation through time."""
        if self.state is not None:
            self.state = (self.state[0].detach(), self.state[1].detach())

    def __getstate__(self) -> dict[str, Any]:
        state = None if self.state is None else (_copied(self.state[0]), _copied(self.state[1]))
        return super().__getstate__() | {"state": state}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Conversion by .to() and its like: the state follows to other devices, and is never rounded to a half type."""
        super()._apply(fn, recurse)
        if self.state is not None:
            self.state = (_moved(self.state[0], fn), _moved(self.state[1], fn))
        return self

    def _lif(self, x: Tensor, alpha: float | Tensor, **options: Unpack[NeuronOptions]) -> tuple[Tensor, Tensor]:
        """`exodus_core.lif`, if stateful or in a piece of a sequence from the state before it on."""
        self._check_steps(x)
        piece = carried.current()
        if piece is None and not self.stateful:
            return functional.lif(x, alpha, time_dim=self.time_dim, **options)
        time_dim = arguments.check_signal("x", x, self.time_dim)

        def go_on(state: Any) -> Any:
            return continued_lif(x, alpha, self._fitting(state, x, time_dim), time_dim, options)

        if piece is not None:
            result: tuple[Tensor, Tensor] = piece.carry(self, x.shape[time_dim], go_on)
            return result
        refuse_recomputation("a stateful layer", INSTEAD)
        result, self.state = go_on(self.state)
        return result

    def _fitting(self, state: State | None, x: Tensor, time_dim: int) -> State | None:
        """A state that x can go on from, checked."""
        if state is None:
            return None
        membrane, spikes = state
        if membrane.shape != x.shape[:time_dim] + x.shape[time_dim + 1 :]:
            raise ArgumentError(
                "x",
                f"of the shape of the kept state, {tuple(membrane.shape)}, and time",
                tuple(x.shape),
                "call reset_state() before a batch of another shape",
            )
        if membrane.device != x.device:
            raise ArgumentError(
                "x",
                f"on the device of the kept state, {membrane.device}",
                x.device,
                "move the layer, or call reset_state()",
            )
        # Autograd can keep a copy of what was made in inference mode; torch.compile cannot ask, and fuses the copy.
        if torch.compiler.is_compiling() or membrane.is_inference():
            return kept(membrane), kept(spikes)
        return state


def _copied(tensor: Tensor) -> Tensor:
    """A copy of its own, contiguous, without a graph."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _moved(part: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """A part of the state after a conversion of the layer; float32 if the layer is converted to a half type."""
    moved = fn(part)
    return moved if moved.dtype == compute_dtype(moved.dtype) else part.to(moved.device)


class LIF(_Stateful):
    """Leaky integrate-and-fire neurons; the arguments are those of `exodus_core.lif`.

    Args:
        trainable: names of "alpha", "threshold", "reset_by", "min_membrane" that become torch.nn.Parameter. After each
            step of an optimiser of torch.optim alpha is brought back to [0, 1] and the threshold above 0.001; after
            other changes call `constrain`.
        stateful: start each call from the membrane and spikes that the last one ended with. Gradients reach back into
            that call unless `detach_state` is called between them. float16 and bfloat16 are computed in float32 as a
            whole, membrane and spike decisions too, so that a sequence in pieces is that in one call.

    Parameters that are tensors are copied. Numbers are in the state_dict beside them, float64, and are set by
    load_state_dict; a state_dict from before they were is loaded without. `torch.func.functional_call` takes parameters
    and buffers, `dict(net.named_parameters()) | dict(net.named_buffers())`, and no state_dict with numbers in it.

    Raises:
        ArgumentTypeError, ArgumentError: an argument is invalid (values that depend on the input are checked when
            called); trainable names an unknown parameter or one that is None; a threshold to be trained is below 0.001;
            a tensor that is not trained requires a gradient. In the call: x has two dimensions if time_dim is 1.
        RuntimeError: a stateful layer is called by a backward pass, to be recomputed (torch.utils.checkpoint).
    """

    alpha: float | Tensor
    threshold: float | Tensor
    reset_by: float | Tensor | None
    min_membrane: float | Tensor | None

    def __init__(
        self,
        alpha: float | Tensor,
        *,
        threshold: float | Tensor = 1.0,
        reset: str = "subtract",
        reset_by: float | Tensor | None = None,
        decay_reset: bool = False,
        surrogate: Surrogate = DEFAULT_SURROGATE,
        method: str = "exodus",
        min_membrane: float | Tensor | None = None,
        max_spikes: int = 1,
        time_dim: int = 1,
        trainable: Collection[str] = (),
        stateful: bool = False,
    ) -> None:
        arguments.check_method(method)
        arguments.check_surrogate(surrogate)
        arguments.reset_code(reset, decay_reset, max_spikes)
        arguments.check_alpha(alpha)
        arguments.check_value("threshold", threshold)
        for name, value in {"reset_by": reset_by, "min_membrane": min_membrane}.items():
            if value is not None:
                arguments.check_value(name, value)
        arguments.check_threshold(threshold, max_spikes)
        if isinstance(threshold, Tensor):
            arguments.check_values("threshold", threshold, positive=max_spikes > 1)
        super().__init__(
            trainable,
            time_dim,
            stateful,
            alpha=alpha,
            threshold=threshold,
            reset_by=reset_by,
            min_membrane=min_membrane,
        )
        self.reset = reset
        self.decay_reset = decay_reset
        self.surrogate = surrogate
        self.method = method
        self.max_spikes = int(max_spikes)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes, with the shape and dtype of the input current x."""
        spikes, _ = self._lif(
            x,
            self.alpha,
            threshold=self.threshold,
            reset=self.reset,
            reset_by=self.reset_by,
            decay_reset=self.decay_reset,
            surrogate=self.surrogate,
            method=self.method,
            min_membrane=self.min_membrane,
            max_spikes=self.max_spikes,
        )
        return spikes


class IF(LIF):
    """Integrate-and-fire neurons: LIF with alpha = 1; the other arguments are those of `LIF`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(1.0, **options)

    def _numbers(self) -> dict[str, float | tuple[float, ...]]:
        return {name: value for name, value in super()._numbers().items() if name != "alpha"}


class ExpLeak(_Stateful):
    """A leaky integrator without spikes, u[t] = alpha u[t-1] + x[t]: the usual readout.

    Args:
        alpha: decay per step, exp(-dt/tau); a float or a tensor that broadcasts over the inner dimensions.
        trainable: "alpha" makes it a torch.nn.Parameter, which is kept in [0, 1] as that of `LIF`.
        stateful: start each call from the value that the last one ended with, as `LIF` does.

    Raises:
        TypeError, ValueError, RuntimeError: as `LIF`.
    """

    alpha: float | Tensor

    def __init__(
        self,
        alpha: float | Tensor,
        *,
        time_dim: int = 1,
        trainable: Collection[str] = (),
        stateful: bool = False,
    ) -> None:
        arguments.check_alpha(alpha)
        super().__init__(trainable, time_dim, stateful, alpha=alpha)

    def forward(self, x: Tensor) -> Tensor:
        """The membrane, with the shape and dtype of x."""
        _, membrane = self._lif(x, self.alpha, threshold=math.inf, reset="none")
        return membrane


class SRM(_Neuron):
    """Spike-response neurons: the weighted input is filtered by response_kernel, spikes reset through reset_kernel.

    Args:
        reset_kernel: nu, taps (K,), `ExponentialKernel` or `AlphaKernel`; usually negative.
        response_kernel: eps, likewise; None if the input is filtered already.
        threshold, surrogate, method, time_dim: as in `exodus_core.srm`.
        trainable: names of "threshold", and of "reset_kernel" and "response_kernel" if they are taps. The threshold is
            kept positive as that of `LIF`.

    Tensors are copied, and numbers are in the state_dict, as those of `LIF`; those of a kernel as reset_kernel.tau and
    so on.

    Raises:
        ArgumentTypeError, ArgumentError: as `LIF`.
    """

    not_in_pieces = carried.SRM_IN_PIECES
    threshold: float | Tensor
    reset_kernel: Kernel
    response_kernel: Kernel | None

    def __init__(
        self,
        reset_kernel: Kernel,
        *,
        response_kernel: Kernel | None = None,
        threshold: float | Tensor = 1.0,
        surrogate: Surrogate = DEFAULT_SURROGATE,
        method: str = "exodus",
        time_dim: int = 1,
        trainable: Collection[str] = (),
    ) -> None:
        arguments.check_method(method)
        arguments.check_surrogate(surrogate)
        arguments.check_kernel("reset_kernel", reset_kernel)
        if response_kernel is not None:
            arguments.check_kernel("response_kernel", response_kernel)
        arguments.check_value("threshold", threshold)
        parameters: dict[str, float | Tensor | None] = {"threshold": threshold}
        kernels = {"reset_kernel": reset_kernel, "response_kernel": response_kernel}
        parameters.update({name: kernel for name, kernel in kernels.items() if isinstance(kernel, Tensor)})
        super().__init__(trainable, time_dim, **parameters)
        for name, kernel in kernels.items():
            if name not in parameters:
                setattr(self, name, kernel)
        self.surrogate = surrogate
        self.method = method

    def _numbers(self) -> dict[str, float | tuple[float, ...]]:
        found = super()._numbers()
        for name in ("reset_kernel", "response_kernel"):
            kernel = getattr(self, name)
            if not isinstance(kernel, Tensor | None):
                fields = [field.name for field in dataclasses.fields(kernel) if field.init]
                found |= {f"{name}.{field}": getattr(kernel, field) for field in fields}
        return found

    def _set_number(self, name: str, value: Any) -> None:
        kernel, _, field = name.partition(".")
        if field:
            setattr(self, kernel, dataclasses.replace(getattr(self, kernel), **{field: value}))
        else:
            super()._set_number(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes, with the shape and dtype of the weighted input x."""
        self._check_steps(x)
        psp = x if self.response_kernel is None else functional.filter(x, self.response_kernel, time_dim=self.time_dim)
        spikes, _ = functional.srm(
            psp,
            self.reset_kernel,
            threshold=self.threshold,
            surrogate=self.surrogate,
            method=self.method,
            time_dim=self.time_dim,
        )
        return spikes


def neuron_parameters(module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """The trained parameters of the neurons in a module: alpha, threshold, reset_by, min_membrane, taps.

    They are constants of a model, which weight decay would pull to 0: give them to an optimiser in a group of their own
    with `weight_decay=0`. Networks of `exodus_core.network.build` in the module count too.
    """
    for part in module.modules():
        if isinstance(part, _Neuron | spiking.Lif | spiking.ExpLeak):
            yield from part.parameters(recurse=False)
