"""One lane without rounding error: membranes and gradients of a neuron whose spikes are given (docs/equations.md).

Spikes, and the steps at which a membrane was raised to its lower bound, are decisions: they are taken as a program made
them. Everything else is computed here from the inputs, in the numbers of `arithmetic`. Section 2 has the equations of
the membrane, section 3 those of the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from exodus_core.kernels import Modes
from exodus_core.verify.arithmetic import Number


@dataclass(frozen=True)
class LifLane:
    """The constants of one LIF neuron and its state before the first step, rationals; floor is None without a bound."""

    alpha: Number
    threshold: Number
    reset_by: Number
    floor: Number | None
    initial_membrane: Number
    initial_spikes: Number
    reset: str  # "subtract", "subtract_decayed", "zero" or "none"

    def retained(self, u: Number, s: Number) -> Number:
        """The factor of alpha in the next membrane: du[t+1]/dalpha."""
        if self.reset == "subtract_decayed":
            return u - self.reset_by * s
        return u * (1 - s) if self.reset == "zero" else u


@dataclass(frozen=True)
class Membranes:
    """u of each step, and what it would be without the lower bound."""

    clipped: list[Number]
    integrated: list[Number]


def lif_membranes(lane: LifLane, x: Sequence[Number], spikes: Sequence[int], clipped: Sequence[bool]) -> Membranes:
    """u[t], of the spikes and the clipping that are given (section 2)."""
    u, s = lane.initial_membrane, lane.initial_spikes
    found, integrated = [], []
    for x_t, s_t, clipped_t in zip(x, spikes, clipped, strict=True):
        u = lane.alpha * lane.retained(u, s) + x_t
        if lane.reset == "subtract":
            u = u - lane.reset_by * s
        integrated.append(u)
        if clipped_t:
            u = lane.floor
        found.append(u)
        s = s_t
    return Membranes(found, integrated)


@dataclass(frozen=True)
class LifGradients:
    """dL/d(argument) of one lane; the threshold's without reset_by's, which is added where they are one."""

    input: list[Number]
    initial_membrane: Number
    initial_spikes: Number
    alpha: Number
    threshold: Number
    reset_by: Number
    min_membrane: Number


def lif_gradients(
    lane: LifLane,
    membrane: Sequence[Number],
    spikes: Sequence[int],
    clipped: Sequence[bool],
    surrogate: Sequence[Number],
    grad_spikes: Sequence[Number],
    grad_membrane: Sequence[Number],
    slayer: bool,
) -> LifGradients:
    """The gradients of one lane at the membrane that is given (section 3). All numbers are of one kind."""
    alpha, rho = lane.alpha, lane.reset_by

    def slopes(u: Number, s: Number) -> tuple[Number, Number]:
        """c and b, the derivatives of u[t+1] by s[t] and by u[t]."""
        if slayer or lane.reset == "none":
            return 0, alpha
        if lane.reset == "zero":
            return -alpha * u, alpha * (1 - s)
        return (-alpha * rho if lane.reset == "subtract_decayed" else -rho), alpha

    later = 0 * alpha
    by_alpha = by_threshold = by_spikes = by_floor = later
    found = []
    for t in range(len(membrane) - 1, -1, -1):
        u, s, f = membrane[t], spikes[t], surrogate[t]
        c, b = slopes(u, s)
        through_spikes = f * (grad_spikes[t] + c * later)
        unclipped = through_spikes + grad_membrane[t] + b * later
        by_alpha = by_alpha + later * lane.retained(u, s)
        by_threshold = by_threshold - through_spikes
        by_spikes = by_spikes + later * s
        if clipped[t]:
            by_floor = by_floor + unclipped
            later = 0 * alpha
        else:
            later = unclipped
        found.append(later)
    found.reverse()
    u, s = lane.initial_membrane, lane.initial_spikes
    c, b = slopes(u, s)
    by_spikes = by_spikes + later * s
    by_reset = {"subtract": -by_spikes, "subtract_decayed": -alpha * by_spikes}.get(lane.reset, 0 * alpha)
    return LifGradients(
        input=found,
        initial_membrane=b * later,
        initial_spikes=c * later,
        alpha=by_alpha + later * lane.retained(u, s),
        threshold=by_threshold,
        reset_by=by_reset,
        min_membrane=by_floor,
    )


class TapsResponse:
    """sum_k taps[k] x[n-k] of what is pushed."""

    def __init__(self, taps: Sequence[Number]) -> None:
        self.taps = taps
        self.pushed: list[Number] = []  # the newest first

    def push(self, x: Number) -> Number:
        self.pushed = [x, *self.pushed[: len(self.taps) - 1]]
        return sum((tap * past for tap, past in zip(self.taps, self.pushed, strict=False)), 0 * x)


class ModesResponse:
    """The same for sum_m (constant_m + linear_m k) decay_m^k, as recurrences (section 3)."""

    def __init__(self, modes: Sequence[tuple[Number, Number, Number]]) -> None:
        self.modes = modes
        self.state: list[tuple[Number, Number]] = []

    def push(self, x: Number) -> Number:
        state = self.state or [(0 * x, 0 * x)] * len(self.modes)
        stepped = [(decay * p + x, decay * (q + p)) for (decay, _, _), (p, q) in zip(self.modes, state, strict=True)]
        self.state = stepped
        parts = zip(self.modes, stepped, strict=True)
        return sum((constant * p + linear * q for (_, constant, linear), (p, q) in parts), 0 * x)


#: The taps of a reset kernel, or its modes as (decay, constant, linear).
ExactKernel = Sequence[Number] | Sequence[tuple[Number, Number, Number]]


def response(kernel: ExactKernel) -> TapsResponse | ModesResponse:
    """The state of a kernel to which nothing was pushed."""
    return ModesResponse(kernel) if isinstance(kernel[0], tuple) else TapsResponse(kernel)


def exact_modes(modes: Modes, number: Callable[[float], Number]) -> list[tuple[Number, Number, Number]]:
    """The modes of a kernel in other numbers."""
    constants = zip(modes.decay, modes.constant, modes.linear, strict=True)
    return [(number(decay), number(constant), number(linear)) for decay, constant, linear in constants]


def srm_membranes(kernel: ExactKernel, z: Sequence[Number], spikes: Sequence[int]) -> list[Number]:
    """u[n] = z[n] + sum_j nu[j] s[n-1-j], of the spikes that are given (6)."""
    state, felt = response(kernel), 0
    found = []
    for z_n, s_n in zip(z, spikes, strict=True):
        found.append(z_n + felt)
        felt = state.push(s_n)
    return found


@dataclass(frozen=True)
class SrmGradients:
    """dL/d(argument) of one lane; of the taps, as many as there are."""

    psp: list[Number]
    threshold: Number
    reset_kernel: list[Number]


def srm_gradients(
    kernel: ExactKernel,
    spikes: Sequence[int],
    surrogate: Sequence[Number],
    grad_spikes: Sequence[Number],
    grad_membrane: Sequence[Number],
    slayer: bool,
) -> SrmGradients:
    """The gradients of one lane (the transpose of 22). All numbers are of one kind."""
    steps = len(spikes)
    state, zero = response(kernel), 0 * grad_spikes[0]
    felt = by_threshold = zero
    found: list[Number] = [zero] * steps
    for n in range(steps - 1, -1, -1):
        through_spikes = surrogate[n] * (grad_spikes[n] + felt)
        by_threshold = by_threshold - through_spikes
        found[n] = through_spikes + grad_membrane[n]
        if not slayer:
            felt = state.push(found[n])
    taps = 0 if isinstance(kernel[0], tuple) else len(kernel)
    by_taps = [sum((found[n] for n in range(j + 1, steps) if spikes[n - 1 - j]), zero) for j in range(taps)]
    return SrmGradients(found, by_threshold, by_taps)
