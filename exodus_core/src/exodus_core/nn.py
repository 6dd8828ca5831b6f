"""Modules: LIF, IF, SRM and ExpLeak, for torch.nn.Sequential and everything built from modules."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from exodus_core import arguments, functional
from exodus_core.functional import DEFAULT_SURROGATE
from exodus_core.kernels import Kernel
from exodus_core.surrogate import Surrogate

__all__ = ["IF", "LIF", "SRM", "ExpLeak"]


class _Neuron(torch.nn.Module):
    """Keeps neuron parameters: as torch.nn.Parameter where trainable, as a buffer where a tensor, else as a float."""

    def __init__(self, trainable: Collection[str], **parameters: float | Tensor | None) -> None:
        super().__init__()
        names = {trainable} if isinstance(trainable, str) else set(trainable)
        unknown = names - {name for name, value in parameters.items() if value is not None}
        if unknown:
            raise ValueError(
                f"trainable must name parameters that have a value, of {', '.join(parameters)}; got "
                f"{', '.join(sorted(unknown))}"
            )
        for name, value in parameters.items():
            if name in names:
                start = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(float(value))  # type: ignore[arg-type]
                self.register_parameter(name, torch.nn.Parameter(start))
            elif isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
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


class _Stateful(_Neuron):
    """A neuron that can go on where the last call ended."""

    state: tuple[Tensor, Tensor] | None

    def __init__(self, trainable: Collection[str], stateful: bool, **parameters: float | Tensor | None) -> None:
        super().__init__(trainable, **parameters)
        self.stateful = stateful
        self.state = None

    def reset_state(self) -> None:
        """Forgets the last call: the next one starts from rest."""
        self.state = None

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made from: the state as values, as a graph can be neither copied nor saved."""
        kept = self.__dict__.copy()
        if self.state is not None:
            kept["state"] = (self.state[0].detach(), self.state[1].detach())
        return kept

    def detach_state(self) -> None:
        """Keeps the state and cuts its gradient: truncated backpropagation through time."""
        if self.state is not None:
            self.state = (self.state[0].detach(), self.state[1].detach())

    def _initial(self, x: Tensor, time_dim: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if not self.stateful or self.state is None:
            return None, None
        lanes = torch.Size(size for d, size in enumerate(x.shape) if d != time_dim % x.dim())
        if self.state[0].shape != lanes:
            raise ValueError(
                f"x must have the shape of the kept state, {tuple(self.state[0].shape)}, beside time, got "
                f"{tuple(x.shape)}; call reset_state() before a batch of another shape"
            )
        return self.state

    def _keep(self, spikes: Tensor, membrane: Tensor, time_dim: int) -> None:
        if self.stateful and membrane.shape[time_dim] > 0:
            self.state = (membrane.select(time_dim, -1), spikes.select(time_dim, -1))


class LIF(_Stateful):
    """Leaky integrate-and-fire neurons; the arguments are those of `exodus_core.lif`.

    Args:
        trainable: names of "alpha", "threshold", "reset_by", "min_membrane" that become torch.nn.Parameter.
        stateful: start each call from the membrane and spikes that the last one ended with. Gradients reach back into
            that call unless `detach_state` is called between them.

    Raises:
        TypeError, ValueError: an argument does not fit, as far as the call does not tell; or trainable names something
            else, or a parameter that is None.
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
        arguments.check_time_dim(time_dim)
        super().__init__(
            trainable, stateful, alpha=alpha, threshold=threshold, reset_by=reset_by, min_membrane=min_membrane
        )
        self.reset = reset
        self.decay_reset = decay_reset
        self.surrogate = surrogate
        self.method = method
        self.max_spikes = max_spikes
        self.time_dim = time_dim

    def forward(self, x: Tensor) -> Tensor:
        """Spikes, with the shape and dtype of the input current x."""
        initial_membrane, initial_spikes = self._initial(x, self.time_dim)
        spikes, membrane = functional.lif(
            x,
            self.alpha,
            threshold=self.threshold,
            reset=self.reset,
            reset_by=self.reset_by,
            decay_reset=self.decay_reset,
            surrogate=self.surrogate,
            method=self.method,
            initial_membrane=initial_membrane,
            initial_spikes=initial_spikes,
            min_membrane=self.min_membrane,
            max_spikes=self.max_spikes,
            time_dim=self.time_dim,
        )
        self._keep(spikes, membrane, self.time_dim)
        return spikes


class IF(LIF):
    """Integrate-and-fire neurons: LIF with alpha = 1; the other arguments are those of `LIF`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(1.0, **options)


class ExpLeak(_Stateful):
    """A leaky integrator without spikes, u[t] = alpha u[t-1] + x[t]: the usual readout.

    Args:
        alpha: decay per step, exp(-dt/tau); a float or a tensor that broadcasts over the inner dimensions.
        trainable: "alpha" makes it a torch.nn.Parameter.
        stateful: start each call from the value that the last one ended with.
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
        arguments.check_time_dim(time_dim)
        super().__init__(trainable, stateful, alpha=alpha)
        self.time_dim = time_dim

    def forward(self, x: Tensor) -> Tensor:
        """The membrane, with the shape and dtype of x."""
        initial_membrane, _ = self._initial(x, self.time_dim)
        spikes, membrane = functional.lif(
            x,
            self.alpha,
            threshold=math.inf,
            reset="none",
            initial_membrane=initial_membrane,
            time_dim=self.time_dim,
        )
        self._keep(spikes, membrane, self.time_dim)
        return membrane


class SRM(_Neuron):
    """Spike-response neurons: the weighted input is filtered by response_kernel, spikes reset through reset_kernel.

    Args:
        reset_kernel: nu, taps (K,), `ExponentialKernel` or `AlphaKernel`; usually negative.
        response_kernel: eps, likewise; None where the input is filtered already.
        threshold, surrogate, method, time_dim: as in `exodus_core.srm`.
        trainable: names of "threshold", and of "reset_kernel" and "response_kernel" where they are taps.

    Raises:
        TypeError, ValueError: an argument does not fit, as far as the call does not tell; or trainable names something
            else.
    """

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
        arguments.check_time_dim(time_dim)
        parameters: dict[str, float | Tensor | None] = {"threshold": threshold}
        kernels = {"reset_kernel": reset_kernel, "response_kernel": response_kernel}
        parameters.update({name: kernel for name, kernel in kernels.items() if isinstance(kernel, Tensor)})
        super().__init__(trainable, **parameters)
        for name, kernel in kernels.items():
            if name not in parameters:
                setattr(self, name, kernel)
        self.surrogate = surrogate
        self.method = method
        self.time_dim = time_dim

    def forward(self, x: Tensor) -> Tensor:
        """Spikes, with the shape and dtype of the weighted input x."""
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
