"""Base of all neuron layers: their parameters as numbers, buffers or trained parameters, and their state_dict."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from exodus_core import arguments, ranges
from exodus_core.errors import ArgumentError, must_be


class Neuron(ranges.Bounded):
    """Keeps neuron parameters: trainable ones as torch.nn.Parameter, other tensors as buffers, numbers as floats.

    Tensors are copied. Floats are in the state_dict too, as 0-d float64 tensors.
    """

    _version = 2  # of the state_dict; 1 had no floats
    #: Attributes that repr() shows beside the parameters, unless they have this value.
    shown: ClassVar[Mapping[str, Any]] = {"time_dim": 1}
    #: Text for who calls with a step that has no axis of time.
    one_step = "pass x.unsqueeze(1) for one step from rest"
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
                start = torch.tensor(float(value)) if not isinstance(value, Tensor) else copied(value)  # type: ignore[arg-type]
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
                self.register_buffer(name, copied(value))
            else:
                setattr(self, name, None if value is None else float(value))
        self._parameter_names = tuple(parameters)

    def extra_repr(self) -> str:
        """The parameters and settings, for repr()."""
        parts = []
        for name in self._parameter_names:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                kind = "trainable" if isinstance(value, torch.nn.Parameter) else "tensor"
                kind = "trainable, bounded" if parametrize.is_parametrized(self, name) else kind
                value = f"{value.item():.4g} ({kind})" if value.numel() == 1 else f"{tuple(value.shape)} ({kind})"
            if value is not None:
                parts.append(f"{name}={value}")
        for name, usual in self.shown.items():
            value = getattr(self, name)
            if value != usual and name not in self._parameter_names:
                parts.append(f"{name}={value!r}")
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
                f"{self.one_step}, or set time_dim=-1 if the last axis is time",
            )

    def _numbers(self) -> dict[str, float | tuple[float, ...]]:
        """The parameters that are numbers, by their names in the state_dict."""
        found = {name: getattr(self, name) for name in self._parameter_names}
        return {name: value for name, value in found.items() if arguments.is_number(value)}

    def _set_number(self, name: str, value: Any) -> None:
        arguments.check_decay(name, value) if name in arguments.DECAYS else arguments.check_value(name, value)
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


def copied(tensor: Tensor) -> Tensor:
    """A copy of its own, contiguous, without a graph."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)
