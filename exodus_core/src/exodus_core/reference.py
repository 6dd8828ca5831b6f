"""The neurons as plain PyTorch loops over time: the definition that everything else is compared with.

Slow, short, and differentiated by autograd alone. Numbers in brackets are equations of arXiv 2205.10242; "section" is a
section of docs/equations.md. In float64 this is the reference of every kernel; `method="bptt"` of the public functions
is this code too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exodus_core.arguments import check_bound, check_method, reset_code
from exodus_core.kernels import Kernel, Modes
from exodus_core.ops import compute_dtype
from exodus_core.surrogate import Exponential, Surrogate

_DEFAULT_SURROGATE = Exponential()

__all__ = ["coupled_lif", "coupled_on_trace", "filter", "lif", "lif_on_trace", "srm", "srm_on_trace"]


class _Spike(torch.autograd.Function):
    """s = f(u) (4), whose derivative with respect to u is the surrogate's, and with respect to theta minus that."""

    @staticmethod
    def forward(ctx: Any, membrane: Tensor, threshold: Tensor, surrogate: Surrogate, max_spikes: int) -> Tensor:
        ctx.save_for_backward(membrane, threshold)
        ctx.surrogate = surrogate
        if max_spikes == 1:
            return (membrane >= threshold).to(membrane.dtype)
        count = torch.floor(membrane / threshold)
        return torch.where(count > 0, count.clamp(max=max_spikes), 0.0)  # none where the membrane is NaN

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        membrane, threshold = ctx.saved_tensors
        grad_membrane = grad * ctx.surrogate.derivative(membrane - threshold)
        return grad_membrane, (-grad_membrane).sum_to_size(threshold.shape), None, None


def _spike(membrane: Tensor, threshold: Tensor, surrogate: Surrogate, max_spikes: int) -> Tensor:
    result: Tensor = _Spike.apply(membrane, threshold, surrogate, max_spikes)  # type: ignore[no-untyped-call]
    return result


class _Stored(torch.autograd.Function):
    """A value after a round trip through the dtype that it is kept in; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, dtype: torch.dtype) -> Tensor:
        return value.to(dtype).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == value.dtype:
        return value
    result: Tensor = _Stored.apply(value, dtype)  # type: ignore[no-untyped-call]
    return result


def _as_tensor(value: float | Tensor, like: Tensor) -> Tensor:
    tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return tensor.reshape(()) if tensor.numel() == 1 else tensor  # (1, 1, 1) must not add dimensions to a neuron


class _Pinned(torch.autograd.Function):
    """The value of `given` with the gradient of `looped` (section 6), so that rounding cannot flip a spike."""

    @staticmethod
    def forward(ctx: Any, looped: Tensor, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _pin(looped: Tensor, given: Tensor) -> Tensor:
    result: Tensor = _Pinned.apply(looped, given)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class _Lif:
    """The constants of a LIF neuron, as tensors that broadcast over the inner dimensions."""

    alpha: Tensor
    threshold: Tensor
    reset_by: Tensor
    floor: Tensor  # of u[t]
    left_floor: Tensor | None  # of what the reset leaves
    reset: str
    decay_reset: bool
    slayer: bool

    def left(self, u: Tensor, s: Tensor) -> Tensor:
        """The membrane that the reset leaves to the next step, on which a bound after the reset acts."""
        if self.reset == "none":
            return u
        if self.reset == "zero":
            return u - (u.detach() if self.slayer else u) * s
        return (u if self.decay_reset else self.alpha * u) - self.reset_by * s

    def integrate(self, u: Tensor, s: Tensor, x: Tensor) -> Tensor:
        """u[t] from u[t-1], s[t-1] and x[t] (section 2). SLAYER lets no gradient through the reset to the state."""
        if self.slayer:
            s = s.detach()
        if self.left_floor is not None:
            left = self.left(u, s)
            left = torch.where(left <= self.left_floor, self.left_floor, left)
            return (left if self.reset == "subtract" and not self.decay_reset else self.alpha * left) + x
        if self.reset == "none":
            return self.alpha * u + x
        if self.reset == "zero":
            return self.alpha * (u - (u.detach() if self.slayer else u) * s) + x
        if self.decay_reset:
            return self.alpha * (u - self.reset_by * s) + x
        return self.alpha * u + x - self.reset_by * s


def _lif_neuron(
    like: Tensor,
    dtype: torch.dtype,
    alpha: float | Tensor,
    threshold: float | Tensor,
    reset: str,
    reset_by: float | Tensor | None,
    decay_reset: bool,
    min_membrane: float | Tensor | None,
    bound_after_reset: bool,
    max_spikes: int,
    drops_reset: bool,
) -> _Lif:
    reset_code(reset, decay_reset, max_spikes)
    theta = _as_tensor(threshold, like)
    # Rounded as the membrane will be: a stored membrane that was raised to the bound must be seen to lie on it.
    floor = _stored(_as_tensor(-math.inf if min_membrane is None else min_membrane, like), dtype)
    return _Lif(
        alpha=_as_tensor(alpha, like),
        threshold=theta,
        reset_by=theta if reset_by is None else _as_tensor(reset_by, like),
        floor=torch.full_like(floor, -math.inf) if bound_after_reset else floor,
        left_floor=floor if bound_after_reset else None,
        reset=reset,
        decay_reset=decay_reset,
        slayer=drops_reset,
    )


def _state(value: float | Tensor | None, current: Tensor) -> Tensor:
    return _as_tensor(0.0 if value is None else value, current).expand(current.shape[1:])


def _time_first(x: Tensor, time_dim: int) -> Tensor:
    return x.to(compute_dtype(x.dtype)).movedim(time_dim, 0)


def _stack(steps: list[Tensor], like: Tensor, time_dim: int) -> Tensor:
    if not steps:
        return like.clone()  # empty, and part of the graph
    return torch.stack(steps).movedim(0, time_dim).to(like.dtype)


def lif(
    x: Tensor,
    alpha: float | Tensor,
    *,
    threshold: float | Tensor = 1.0,
    reset: str = "subtract",
    reset_by: float | Tensor | None = None,
    decay_reset: bool = False,
    surrogate: Surrogate = _DEFAULT_SURROGATE,
    method: str = "bptt",
    initial_membrane: float | Tensor | None = None,
    initial_spikes: float | Tensor | None = None,
    min_membrane: float | Tensor | None = None,
    bound_after_reset: bool = False,
    max_spikes: int = 1,
    reset_to: float | Tensor | None = None,
    detach_reset: bool = False,
    refractory: int = 0,
    time_dim: int = 1,
) -> tuple[Tensor, Tensor]:
    """LIF and IF as a loop over time (section 2); arguments and results are those of `exodus_core.lif`.

    `method` "exodus" and "bptt" differentiate the loop; "slayer" the loop with the reset detached from the state.
    """
    check_method(method)
    check_bound(bound_after_reset, reset, detach_reset, refractory, method)
    # With a bound after the reset, one that subtracts is detached as SLAYER does it.
    if (reset == "value" or detach_reset or refractory) and not bound_after_reset:
        return coupled_lif(
            x,
            alpha,
            threshold=threshold,
            reset=reset,
            reset_by=reset_by,
            decay_reset=decay_reset,
            surrogate=surrogate,
            method=method,
            initial_membrane=initial_membrane,
            initial_spikes=initial_spikes,
            min_membrane=min_membrane,
            max_spikes=max_spikes,
            reset_to=reset_to,
            detach_reset=detach_reset,
            refractory=refractory,
            time_dim=time_dim,
        )[:2]
    current = _time_first(x, time_dim)
    neuron = _lif_neuron(
        current,
        x.dtype,
        alpha,
        threshold,
        reset,
        reset_by,
        decay_reset,
        min_membrane,
        bound_after_reset,
        max_spikes,
        method == "slayer" or detach_reset,
    )
    u, s = _state(initial_membrane, current), _state(initial_spikes, current)
    membranes, spikes = [], []
    for x_t in current.unbind():  # not an index a step: the gradient of an index is a tensor of the whole size
        integrated = neuron.integrate(u, s, x_t)
        u = torch.where(integrated <= neuron.floor, neuron.floor, integrated)
        stored = _stored(u, x.dtype)
        s = _spike(stored, neuron.threshold, surrogate, max_spikes)
        membranes.append(stored)
        spikes.append(s)
    return _stack(spikes, x, time_dim), _stack(membranes, x, time_dim)


def lif_on_trace(
    membrane: Tensor,
    alpha: float | Tensor,
    *,
    threshold: float | Tensor = 1.0,
    reset: str = "subtract",
    reset_by: float | Tensor | None = None,
    decay_reset: bool = False,
    surrogate: Surrogate = _DEFAULT_SURROGATE,
    method: str = "bptt",
    initial_membrane: float | Tensor | None = None,
    initial_spikes: float | Tensor | None = None,
    min_membrane: float | Tensor | None = None,
    bound_after_reset: bool = False,
    max_spikes: int = 1,
    reset_to: float | Tensor | None = None,
    detach_reset: bool = False,
    refractory: int = 0,
    time_dim: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loop of `lif` on a membrane trace that is given (section 6).

    Returns (x, spikes, membrane): the input recovered from the trace, a leaf that requires a gradient, and the outputs
    of the loop, in the compute dtype. dL/dx of any loss is then `torch.autograd.grad(loss, x)`. With the last options
    they are those of `coupled_on_trace`.
    """
    check_method(method)
    check_bound(bound_after_reset, reset, detach_reset, refractory, method)
    # With a bound after the reset, one that subtracts is detached as SLAYER does it.
    if (reset == "value" or detach_reset or refractory) and not bound_after_reset:
        return coupled_on_trace(
            membrane,
            alpha,
            threshold=threshold,
            reset=reset,
            reset_by=reset_by,
            decay_reset=decay_reset,
            surrogate=surrogate,
            method=method,
            initial_membrane=initial_membrane,
            initial_spikes=initial_spikes,
            min_membrane=min_membrane,
            max_spikes=max_spikes,
            reset_to=reset_to,
            detach_reset=detach_reset,
            refractory=refractory,
            time_dim=time_dim,
        )
    trace = _time_first(membrane.detach(), time_dim)
    neuron = _lif_neuron(
        trace,
        membrane.dtype,
        alpha,
        threshold,
        reset,
        reset_by,
        decay_reset,
        min_membrane,
        bound_after_reset,
        max_spikes,
        method == "slayer" or detach_reset,
    )
    u, s = _state(initial_membrane, trace), _state(initial_spikes, trace)
    with torch.no_grad():
        fired = _spike(trace, neuron.threshold, surrogate, max_spikes)
        before = torch.cat([u[None], trace[:-1]]), torch.cat([s[None], fired[:-1]])
        recovered = trace - neuron.integrate(*before, torch.zeros_like(trace))
        clipped = trace <= neuron.floor
    x = recovered.movedim(0, time_dim).requires_grad_()
    membranes, spikes = [], []
    for x_t, clipped_t, trace_t in zip(x.movedim(time_dim, 0).unbind(), clipped, trace, strict=True):
        integrated = neuron.integrate(u, s, x_t)
        u = _pin(torch.where(clipped_t, neuron.floor, integrated), trace_t)
        s = _spike(u, neuron.threshold, surrogate, max_spikes)
        membranes.append(u)
        spikes.append(s)
    return x, _stack(spikes, x, time_dim), _stack(membranes, x, time_dim)


def coupled_lif(
    x: Tensor,
    alpha: float | Tensor,
    *,
    threshold: float | Tensor = 1.0,
    reset: str = "subtract",
    reset_by: float | Tensor | None = None,
    decay_reset: bool = False,
    surrogate: Surrogate = _DEFAULT_SURROGATE,
    method: str = "bptt",
    initial_membrane: float | Tensor | None = None,
    initial_spikes: float | Tensor | None = None,
    initial_current: float | Tensor | None = None,
    initial_adaptation: float | Tensor | None = None,
    initial_refractory: float | Tensor | None = None,
    min_membrane: float | Tensor | None = None,
    max_spikes: int = 1,
    reset_to: float | Tensor | None = None,
    detach_reset: bool = False,
    refractory: int = 0,
    synapse_alpha: float | Tensor | None = None,
    synapse_gain: float | Tensor = 1.0,
    synapse_delayed: bool = False,
    adapt_alpha: float | Tensor | None = None,
    adapt_by: float | Tensor = 1.0,
    adapt_membrane: float | Tensor = 0.0,
    adapt_threshold: float | Tensor = 0.0,
    adapt_current: float | Tensor = 0.0,
    time_dim: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """LIF with a synaptic current, an adaptation and a refractory period as a loop over time (section 9).

    The arguments are those of `exodus_core.alif` and `exodus_core.cuba_lif`. Returns (spikes, membrane, last): last is
    the state after the last step, (5, lanes): membrane, spikes, current, adaptation, refractory steps left.
    """
    options = dict(locals())
    del options["x"], options["time_dim"]
    spikes, membranes, last = _coupled_loop(_time_first(x, time_dim), x.dtype, **options)
    return _stack(spikes, x, time_dim), _stack(membranes, x, time_dim), last


def _coupled_loop(
    drive: Tensor,
    dtype: torch.dtype,
    alpha: float | Tensor,
    *,
    trace: Tensor | None = None,
    current_trace: Tensor | None = None,
    threshold: float | Tensor = 1.0,
    reset: str = "subtract",
    reset_by: float | Tensor | None = None,
    decay_reset: bool = False,
    surrogate: Surrogate = _DEFAULT_SURROGATE,
    method: str = "bptt",
    initial_membrane: float | Tensor | None = None,
    initial_spikes: float | Tensor | None = None,
    initial_current: float | Tensor | None = None,
    initial_adaptation: float | Tensor | None = None,
    initial_refractory: float | Tensor | None = None,
    min_membrane: float | Tensor | None = None,
    max_spikes: int = 1,
    reset_to: float | Tensor | None = None,
    detach_reset: bool = False,
    refractory: int = 0,
    synapse_alpha: float | Tensor | None = None,
    synapse_gain: float | Tensor = 1.0,
    synapse_delayed: bool = False,
    adapt_alpha: float | Tensor | None = None,
    adapt_by: float | Tensor = 1.0,
    adapt_membrane: float | Tensor = 0.0,
    adapt_threshold: float | Tensor = 0.0,
    adapt_current: float | Tensor = 0.0,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Spikes and membranes of each step, stored in a dtype, and the last state; time is first, of the traces too."""
    check_method(method)
    reset_code(reset, decay_reset, max_spikes)

    def value(given: float | Tensor) -> Tensor:
        return _as_tensor(given, drive)

    a, theta, floor = value(alpha), value(threshold), -math.inf if min_membrane is None else min_membrane
    beta, gain = value(0.0 if synapse_alpha is None else synapse_alpha), value(synapse_gain)
    gamma = value(0.0 if adapt_alpha is None else adapt_alpha)
    by, of_membrane = value(adapt_by), value(adapt_membrane)
    raises, inhibits = value(adapt_threshold), value(adapt_current)
    least = _stored(value(floor), dtype)
    target = value(0.0 if reset_to is None else reset_to)
    slayer = method == "slayer"
    u, s = _state(initial_membrane, drive), _state(initial_spikes, drive)
    i, w = _state(initial_current, drive), _state(initial_adaptation, drive)
    waiting = _state(initial_refractory, drive).detach()
    membranes, spikes = [], []
    for n, x_t in enumerate(drive.unbind()):
        fed_back = s.detach() if slayer else s  # SLAYER: no gradient through the spikes to the state
        reset_s = s.detach() if slayer or detach_reset else s
        u_before, w_before = u, w
        current = x_t
        if synapse_alpha is not None:
            before = i
            i = beta * before + x_t
            if current_trace is not None:
                i = _pin(i, current_trace[n])
            current = gain * (before if synapse_delayed else i)
        subtract = theta if reset_by is None else value(reset_by)
        if adapt_alpha is not None:
            if reset_by is None:
                subtract = theta + raises * (w_before.detach() if slayer else w_before)
            w = gamma * w_before + of_membrane * u_before + by * fed_back
        retained = u_before
        if reset in ("zero", "value"):
            # SLAYER: the gradient of u instead of that of u (1 - s).
            kept = u_before - u_before.detach() * reset_s if slayer else u_before * (1 - reset_s)
            retained = kept + target * reset_s
        elif reset == "subtract" and decay_reset:
            retained = u_before - subtract * reset_s
        moved, held = a * retained + current, retained
        if reset == "subtract" and not decay_reset:
            moved, held = moved - subtract * reset_s, held - subtract * reset_s
        if adapt_alpha is not None:
            moved = moved - inhibits * w
        waits = waiting > 0
        integrated = torch.where(waits, held, moved)
        clipped = (integrated if trace is None else trace[n]) <= least
        u = torch.where(clipped, least, integrated)
        if trace is not None:
            u = _pin(u, trace[n])
        stored = _stored(u, dtype)
        raised = theta if adapt_alpha is None else theta + raises * _stored(w, dtype)
        fired = _spike(stored, raised.expand_as(stored) if raised.dim() else raised, surrogate, max_spikes)
        s = torch.where(waits, torch.zeros_like(fired), fired)
        waiting = torch.where(s > 0, float(refractory), torch.where(waits, waiting - 1, 0.0)).detach()
        membranes.append(stored)
        spikes.append(s)
    last = torch.stack([part.expand(drive.shape[1:]).reshape(-1) for part in (u, s, i, w, waiting)])
    return spikes, membranes, last


def coupled_on_trace(
    membrane: Tensor, alpha: float | Tensor, *, current: Tensor | None = None, time_dim: int = 1, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The loop of `coupled_lif` on a membrane trace that is given, and on that of the current if it is (section 6).

    Returns (x, spikes, membrane) as `lif_on_trace` does, with zeros for x: an input cannot be recovered where the
    membrane is clipped or does not see it, and no gradient depends on its value.
    """
    trace = _time_first(membrane.detach(), time_dim)
    currents = None if current is None else _time_first(current.detach(), time_dim)
    x = torch.zeros_like(trace).movedim(0, time_dim).requires_grad_()
    spikes, membranes, _ = _coupled_loop(
        x.movedim(time_dim, 0), membrane.dtype, alpha, trace=trace, current_trace=currents, **options
    )
    return x, _stack(spikes, x, time_dim), _stack(membranes, x, time_dim)


class _TapsState:
    """sum_k taps[k] x[n-k] (5, 6) of a signal that is pushed step by step; what was pushed first is added first."""

    def __init__(self, taps: Tensor) -> None:
        self.taps = taps
        self.coming: Tensor | None = None  # what is known of the next responses, (K, ...)

    def push(self, signal: Tensor) -> Tensor:
        added = self.taps.reshape(-1, *[1] * signal.dim()) * signal
        if self.coming is not None:
            added = torch.cat([self.coming[1:] + added[:-1], added[-1:]])
        self.coming = added
        return added[0]


class _ModesState:
    """The same for sum_m (constant_m + linear_m k) decay_m^k, as recurrences in float64 (section 3)."""

    def __init__(self, modes: Modes) -> None:
        self.modes = list(zip(modes.decay, modes.constant, modes.linear, strict=True))
        self.state: list[tuple[Tensor, Tensor]] = []

    def push(self, signal: Tensor) -> Tensor:
        x = signal.double()
        state = self.state or [(torch.zeros_like(x), torch.zeros_like(x))] * len(self.modes)
        self.state = []
        response = torch.zeros_like(x)
        for (decay, constant, linear), (p, q) in zip(self.modes, state, strict=True):
            q = decay * (q + p)
            p = decay * p + x
            response = response + (constant * p if linear == 0 else constant * p + linear * q)
            self.state.append((p, q))
        return response.to(signal.dtype)


def _kernel_state(kernel: Kernel, like: Tensor) -> _TapsState | _ModesState:
    """A kernel for a signal like this one, time first: of its taps those that are felt within it."""
    if isinstance(kernel, Tensor):
        return _TapsState(kernel[: max(len(like), 1)].to(like.dtype))
    return _ModesState(kernel.modes)


def _srm_loop(
    psp: Tensor,
    trace: Tensor | None,
    reset_kernel: Kernel,
    threshold: float | Tensor,
    surrogate: Surrogate,
    method: str,
    dtype: torch.dtype,
) -> tuple[list[Tensor], list[Tensor]]:
    check_method(method)
    reset = _kernel_state(reset_kernel, psp)
    theta = _as_tensor(threshold, psp)
    membranes: list[Tensor] = []
    spikes: list[Tensor] = []
    response: Tensor | None = None
    for n, z_n in enumerate(psp.unbind()):
        u = z_n if response is None else z_n + response
        u = _stored(u, dtype) if trace is None else _pin(u, trace[n])
        s = _spike(u, theta, surrogate, 1)
        membranes.append(u)
        spikes.append(s)
        response = reset.push(s.detach() if method == "slayer" else s)  # SLAYER lets no gradient through the reset
    return spikes, membranes


def srm(
    z: Tensor,
    reset_kernel: Kernel,
    *,
    threshold: float | Tensor = 1.0,
    surrogate: Surrogate = _DEFAULT_SURROGATE,
    method: str = "bptt",
    time_dim: int = 1,
) -> tuple[Tensor, Tensor]:
    """An SRM neuron as a loop over time (5 to 8); arguments and results are those of `exodus_core.srm`."""
    spikes, membranes = _srm_loop(_time_first(z, time_dim), None, reset_kernel, threshold, surrogate, method, z.dtype)
    return _stack(spikes, z, time_dim), _stack(membranes, z, time_dim)


def srm_on_trace(
    membrane: Tensor,
    reset_kernel: Kernel,
    *,
    threshold: float | Tensor = 1.0,
    surrogate: Surrogate = _DEFAULT_SURROGATE,
    method: str = "bptt",
    time_dim: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loop of `srm` on a membrane trace that is given; returns (psp, spikes, membrane) like `lif_on_trace`."""
    trace = _time_first(membrane.detach(), time_dim)
    with torch.no_grad():
        reset = _kernel_state(reset_kernel, trace)
        responses = [reset.push(s) for s in _spike(trace, _as_tensor(threshold, trace), surrogate, 1)]
        recovered = [u - r for u, r in zip(trace[1:], responses[:-1], strict=True)]
    psp = torch.stack([*trace[:1], *recovered]) if len(trace) else trace.clone()
    psp = psp.movedim(0, time_dim).requires_grad_()
    spikes, membranes = _srm_loop(
        psp.movedim(time_dim, 0), trace, reset_kernel, threshold, surrogate, method, psp.dtype
    )
    return psp, _stack(spikes, psp, time_dim), _stack(membranes, psp, time_dim)


def filter(x: Tensor, kernel: Kernel, *, time_dim: int = 1) -> Tensor:
    """y[n] = sum_k kernel[k] x[n-k] (5) as a loop over time; arguments are those of `exodus_core.filter`."""
    signal = _time_first(x, time_dim)
    state = _kernel_state(kernel, signal)
    return _stack([state.push(x_n) for x_n in signal.unbind()], x, time_dim)
