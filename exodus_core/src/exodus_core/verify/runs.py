"""Runs of a kernel that are certified: inputs, decisions, membranes and gradients, as the program returned them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import exodus_core
from exodus_core import arguments
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.kernels import Kernel
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate

_DTYPES = (torch.float32, torch.float64)

#: Names of the resets here: what a spike does, with what becomes of the decay.
RESETS = {"subtract": False, "subtract_decayed": True, "zero": False, "none": False}


@dataclass(frozen=True)
class Parameter:
    """A parameter of the neurons: its values, and for each lane the index of the one that it uses.

    A number that the neurons were given as such has values of one element, and no gradient.
    """

    values: Tensor  # (parameters,)
    owners: Tensor  # (lanes,), int64

    @property
    def lanes(self) -> Tensor:
        """One value a lane."""
        return self.values[self.owners]


@dataclass(frozen=True)
class LifRun:
    """A run of LIF or IF neurons. Signals are (time, lanes), of float32 or float64; a lane is a pair (outer, inner).

    Gradients are by name: of `input` (time, lanes), of `initial_membrane` and `initial_spikes` (lanes,), of parameters
    (parameters,), those that the program returned.
    """

    x: Tensor
    grad_spikes: Tensor
    grad_membrane: Tensor
    spikes: Tensor
    membrane: Tensor
    alpha: Parameter
    threshold: Parameter
    reset_by: Parameter
    min_membrane: Parameter | None
    initial_membrane: Tensor
    initial_spikes: Tensor
    reset: str  # one of RESETS
    tied: bool  # reset_by is the threshold
    max_spikes: int
    surrogate: Surrogate
    method: str
    gradients: dict[str, Tensor]

    @property
    def clipped(self) -> Tensor:
        """The steps at which the membrane was raised to its lower bound, (time, lanes)."""
        if self.min_membrane is None:
            return torch.zeros_like(self.membrane, dtype=torch.bool)
        return self.membrane <= self.min_membrane.lanes


@dataclass(frozen=True)
class SrmRun:
    """A run of SRM neurons, likewise; gradients of `psp` (time, lanes), `threshold` and `reset_kernel` (taps,)."""

    z: Tensor
    grad_spikes: Tensor
    grad_membrane: Tensor
    spikes: Tensor
    membrane: Tensor
    reset_kernel: Kernel
    threshold: Parameter
    surrogate: Surrogate
    method: str
    gradients: dict[str, Tensor]


def check_input(name: str, signal: Tensor, time_dim: int) -> int:
    """Checks the input of a run; returns time_dim counted from the front.

    Raises:
        TypeError, ValueError: it is not float32 or float64, not finite, or has no step of a neuron.
    """
    if isinstance(signal, Tensor) and signal.dtype not in _DTYPES:
        raise ArgumentTypeError(name, "float32 or float64", signal.dtype)
    time_dim = arguments.check_signal(name, signal, time_dim)
    if signal.shape[time_dim] == 0 or signal.numel() == 0:
        raise ArgumentError(name, "at least one step of one neuron", f"shape {tuple(signal.shape)}")
    check_finite(name, signal)
    return time_dim


def check_finite(name: str, values: Tensor) -> None:
    """Checks that values are finite, so that each is a rational."""
    if not bool(torch.isfinite(values).all()):
        raise ArgumentError(name, "finite", "a value that is not")


def rounded_surrogate(surrogate: Surrogate, dtype: torch.dtype) -> Surrogate:
    """The surrogate with slope and scale as the kernels take them, of the dtype."""
    slope, scale = torch.tensor([surrogate.slope, surrogate.scale], dtype=torch.float64).to(dtype).tolist()
    return type(surrogate)(slope, scale)


class Leaves:
    """The arguments of a call as leaves of autograd, and as the run has them."""

    def __init__(self, signal: Tensor, time_dim: int) -> None:
        self.like = signal
        self.dtype = signal.dtype
        self.time_dim = time_dim
        self.shape = (*signal.shape[:time_dim], *signal.shape[time_dim + 1 :])
        self.inner = signal.shape[time_dim + 1 :]
        self.count = signal[(slice(None),) * time_dim + (0,)].numel()
        self.tensors: dict[str, Tensor] = {}

    def signal(self, name: str, values: Tensor) -> Tensor:
        self.tensors[name] = values.detach().clone().requires_grad_()
        return self.tensors[name]

    def parameter(self, name: str, value: float | Tensor, *, positive: bool = False) -> tuple[Tensor, Parameter]:
        """A tensor for the call, whose gradient is taken, and the parameter."""
        arguments.parameter(name, value, self.like, self.time_dim)
        tensor = torch.as_tensor(value, dtype=self.dtype).detach()
        check_finite(name, tensor)
        arguments.check_values(name, tensor, positive=positive)
        tensor = tensor.reshape(()) if tensor.numel() == 1 else tensor.expand(self.inner).clone()
        self.tensors[name] = tensor.requires_grad_()
        lanes = torch.arange(self.count)
        return tensor, Parameter(tensor.detach().reshape(-1), lanes % tensor.numel())

    def state(self, name: str, value: float | Tensor | None) -> Tensor:
        arguments.initial_state(name, value, self.like, self.time_dim)
        tensor = torch.as_tensor(0.0 if value is None else value, dtype=self.dtype).detach()
        check_finite(name, tensor)
        return self.signal(name, tensor.expand(self.shape))

    def flat(self, name: str, values: Tensor) -> Tensor:
        """Signals as (time, lanes), states as (lanes,), parameters as (parameters,)."""
        if values.dim() == len(self.shape) + 1 and name in ("input", "psp"):
            return values.movedim(self.time_dim, 0).reshape(values.shape[self.time_dim], -1)
        return values.reshape(-1)

    def gradients(self, outputs: tuple[Tensor, Tensor], grads: list[Tensor]) -> dict[str, Tensor]:
        found = torch.autograd.grad(
            outputs, list(self.tensors.values()), grads, allow_unused=True, materialize_grads=True
        )
        return {name: self.flat(name, grad) for name, grad in zip(self.tensors, found, strict=True)}


def check_grads(signal: Tensor, grad_spikes: Tensor, grad_membrane: Tensor | None, name: str) -> list[Tensor]:
    """dL/ds and dL/du of a run on an input of that name, checked to be finite and like it; None is 0."""
    grads = [grad_spikes, torch.zeros_like(signal) if grad_membrane is None else grad_membrane]
    for which, grad in zip(("grad_spikes", "grad_membrane"), grads, strict=True):
        arguments.check_like(which, grad, name, signal)
        check_finite(which, grad)
    return grads


def run_lif(
    x: Tensor,
    alpha: float | Tensor,
    grad_spikes: Tensor,
    *,
    grad_membrane: Tensor | None = None,
    threshold: float | Tensor = 1.0,
    reset: str = "subtract",
    reset_by: float | Tensor | None = None,
    decay_reset: bool = False,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    method: str = "exodus",
    initial_membrane: float | Tensor | None = None,
    initial_spikes: float | Tensor | None = None,
    min_membrane: float | Tensor | None = None,
    max_spikes: int = 1,
    time_dim: int = 1,
) -> LifRun:
    """Runs `exodus_core.lif` forward and backward, with the gradient of every argument; an alpha of 1.0 has none.

    Args:
        x, alpha, ...: as of `exodus_core.lif`; float32 or float64, finite, at least one step. Numbers become tensors
            of the dtype of x, and so do slope and scale of the surrogate.
        grad_spikes, grad_membrane: dL/ds and dL/du, with the shape and dtype of x; None is 0.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    time_dim = check_input("x", x, time_dim)
    arguments.check_surrogate(surrogate)
    arguments.reset_code(reset, decay_reset, max_spikes)
    grads = check_grads(x, grad_spikes, grad_membrane, "x")
    surrogate = rounded_surrogate(surrogate, x.dtype)
    leaves = Leaves(x, time_dim)
    current = leaves.signal("input", x)
    given: dict[str, Any] = {}
    given["threshold"], thresholds = leaves.parameter("threshold", threshold, positive=max_spikes > 1)
    given["alpha"], alphas = leaves.parameter("alpha", alpha)
    if not isinstance(alpha, Tensor) and alpha == 1:  # IF neurons, which have no decay
        given["alpha"] = 1.0
        del leaves.tensors["alpha"]
    given["reset_by"], resets_by = None, thresholds
    if reset_by is not None:
        given["reset_by"], resets_by = leaves.parameter("reset_by", reset_by)
    given["min_membrane"], bounds = None, None
    if min_membrane is not None:
        given["min_membrane"], bounds = leaves.parameter("min_membrane", min_membrane)
    states: dict[str, Any] = {
        name: leaves.state(name, value)
        for name, value in (("initial_membrane", initial_membrane), ("initial_spikes", initial_spikes))
    }
    outputs = exodus_core.lif(
        current,
        given.pop("alpha"),
        reset=reset,
        decay_reset=decay_reset,
        surrogate=surrogate,
        method=method,
        max_spikes=max_spikes,
        time_dim=time_dim,
        **given,
        **states,
    )
    return LifRun(
        x=leaves.flat("input", x),
        grad_spikes=leaves.flat("input", grads[0]),
        grad_membrane=leaves.flat("input", grads[1]),
        spikes=leaves.flat("input", outputs[0].detach()),
        membrane=leaves.flat("input", outputs[1].detach()),
        alpha=alphas,
        threshold=thresholds,
        reset_by=resets_by,
        min_membrane=bounds,
        initial_membrane=states["initial_membrane"].detach().reshape(-1),
        initial_spikes=states["initial_spikes"].detach().reshape(-1),
        reset="subtract_decayed" if reset == "subtract" and decay_reset else reset,
        tied=reset_by is None,
        max_spikes=max_spikes,
        surrogate=surrogate,
        method=method,
        gradients=leaves.gradients(outputs, grads),
    )


def run_srm(
    z: Tensor,
    reset_kernel: Kernel,
    grad_spikes: Tensor,
    *,
    grad_membrane: Tensor | None = None,
    threshold: float | Tensor = 1.0,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    method: str = "exodus",
    time_dim: int = 1,
) -> SrmRun:
    """Runs `exodus_core.srm` forward and backward, with the gradient of every argument.

    Args:
        z, reset_kernel, ...: as of `exodus_core.srm`; float32 or float64, finite, at least one step.
        grad_spikes, grad_membrane: dL/ds and dL/du, with the shape and dtype of z; None is 0.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    time_dim = check_input("z", z, time_dim)
    arguments.check_surrogate(surrogate)
    arguments.check_kernel("reset_kernel", reset_kernel)
    grads = check_grads(z, grad_spikes, grad_membrane, "z")
    surrogate = rounded_surrogate(surrogate, z.dtype)
    leaves = Leaves(z, time_dim)
    psp = leaves.signal("psp", z)
    theta, thresholds = leaves.parameter("threshold", threshold)
    if isinstance(reset_kernel, Tensor):
        check_finite("reset_kernel", reset_kernel)
        reset_kernel = leaves.signal("reset_kernel", reset_kernel.to(z.dtype))
    outputs = exodus_core.srm(psp, reset_kernel, threshold=theta, surrogate=surrogate, method=method, time_dim=time_dim)
    return SrmRun(
        z=leaves.flat("psp", z),
        grad_spikes=leaves.flat("psp", grads[0]),
        grad_membrane=leaves.flat("psp", grads[1]),
        spikes=leaves.flat("psp", outputs[0].detach()),
        membrane=leaves.flat("psp", outputs[1].detach()),
        reset_kernel=reset_kernel.detach() if isinstance(reset_kernel, Tensor) else reset_kernel,
        threshold=thresholds,
        surrogate=surrogate,
        method=method,
        gradients=leaves.gradients(outputs, grads),
    )
