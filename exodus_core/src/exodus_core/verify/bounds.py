"""Bounds of the rounding errors of the kernels and of the loops, derived from the operations (docs/verify.md).

Every figure is a sum of absolute values, so float64 computes it to a few parts in 1e13; bounds are raised by 1e-4 of
themselves, which covers that and the terms of second order that the derivation leaves out of a surrogate's error: at
most 1.2e-5 of it, in float32 for a gaussian that underflows next. All tensors are float64, (time, lanes); parameters
are (lanes,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from exodus_core.surrogate import Surrogate

#: What a bound is raised by.
RAISED = 1 + 1e-4

#: Steps that a kernel sums in the dtype before it adds them in float64 (kBlockSteps in csrc/cpu/kernels.h).
_BLOCK_STEPS = 128


@dataclass(frozen=True)
class Rounding:
    """The arithmetic that is bounded.

    Args:
        dtype: float32 or float64.
        loop: autograd through the loop over time, not a kernel.
    """

    dtype: torch.dtype
    loop: bool

    @property
    def unit(self) -> float:
        """u: fl(a + b) = (a + b)(1 + d) with abs(d) <= u, and so for - * / and a fused multiply-add."""
        return torch.finfo(self.dtype).eps / 2

    @property
    def least(self) -> float:
        """The smallest normal number: what a result that underflows, or is flushed to zero, is off by at most."""
        return torch.finfo(self.dtype).tiny

    @property
    def step(self) -> float:
        """The relative error of a term in a product and sum of the recurrence: one fused operation, or up to four."""
        return self.gamma(4 if self.loop else 1)

    def gamma(self, n: int) -> float:
        """Relative error of a term that is rounded n times."""
        return n * self.unit / (1 - n * self.unit)

    def summed(self, steps: int, lanes: int, uses: int = 1) -> float:
        """Relative error of a term in a sum over the steps of so many lanes, rounded to the dtype.

        A step adds to the sum so many times, in the loop once more.
        """
        if self.loop:
            return self.gamma((uses + 1) * steps + lanes + 8)
        wide = (uses * steps // _BLOCK_STEPS + lanes + 4) * 2.0**-53
        return self.gamma(uses * min(steps, _BLOCK_STEPS) + 6) + 2 * wide

    def ulp(self, values: Tensor) -> Tensor:
        """Distance between neighbours of the dtype around values."""
        _, exponent = torch.frexp(values.abs().clamp(min=self.least))
        digits = 24 if self.dtype == torch.float32 else 53
        return torch.ldexp(torch.ones_like(values), exponent - digits)


@dataclass(frozen=True)
class Bounded:
    """The sum of the absolute values of the terms of a result, and the bound of its error."""

    terms: Tensor
    error: Tensor


@dataclass(frozen=True)
class SurrogateBounds:
    """f' at the membranes of a run, the sum of the absolute terms that it is a sum of, and how far a value may lie."""

    value: Tensor
    terms: Tensor
    error: Tensor

    def as_terms(self) -> SurrogateBounds:
        """The terms in the place of the value, without errors: what the terms of a gradient are computed of."""
        return SurrogateBounds(self.terms, self.terms, torch.zeros_like(self.error))


def _even(kind: str, k: float, a: Tensor) -> Tensor:
    """f' without its scale at a = k abs(x), decreasing in a, without cancellation."""
    e = torch.exp(-a)
    return {
        "exponential": lambda: e,
        "boxcar": lambda: torch.where(a <= 0.5, k, 0.0).to(a),
        "triangle": lambda: (1 - a).clamp(min=0),
        "fast_sigmoid": lambda: (1 + a) ** -2,
        "sigmoid": lambda: k * e / (1 + e) ** 2,
        "arctan": lambda: k / 2 / (1 + (math.pi / 2 * a) ** 2),
        "tanh": lambda: 4 * e**2 / (1 + e**2) ** 2,
        "gaussian": lambda: k / math.sqrt(2 * math.pi) * torch.exp(-(a**2) / 2),
    }[kind]()


def _rounded(kind: str, k: float, a: Tensor, loop: bool) -> Tensor:
    """Error of f' (without its scale) in units of u, at the membrane and threshold that the program had.

    a = k abs(u - theta) is rounded twice. The rest follows from the order of operations in csrc/core/surrogate.h, where
    an exponential is off by 2 units in the last place, and in surrogate.py for the loop.
    """
    f = _even(kind, k, a)
    if kind == "sigmoid" and loop:  # 1 - q cancels where q is almost 1
        q = torch.sigmoid(a)
        return k * (2 * a * q * (1 - q) + 6 * q) + 5 * f
    if kind == "tanh" and loop:
        t = torch.tanh(a)
        return 2 * t * (2 * a * f + 4 * t) + t * t + 3 * f
    return {
        "exponential": lambda: (2 * a + 5) * f,
        "boxcar": lambda: f,
        "triangle": lambda: torch.where(a < 1.001, 2 * a + 2 * f, 0.0),
        "fast_sigmoid": lambda: 10 * f,
        "sigmoid": lambda: (2 * a + 12) * f,
        "arctan": lambda: 12 * f,
        "tanh": lambda: (4 * a + 11) * f,
        "gaussian": lambda: (2.5 * a * a + 8) * f,
    }[kind]()


def _terms(kind: str, k: float, a: Tensor, loop: bool) -> Tensor:
    """The sum of the absolute values of the terms of f' (without its scale), where it is a difference."""
    if kind == "triangle":
        return torch.where(a < 1.001, 1 + a, 0.0)
    if kind == "sigmoid" and loop:
        q = torch.sigmoid(a)
        return k * q * (1 + q)
    if kind == "tanh" and loop:
        return 1 + torch.tanh(a) ** 2
    return _even(kind, k, a)


def _slope(kind: str, k: float, nearest: Tensor, farthest: Tensor) -> Tensor:
    """A bound of the derivative of f' (without its scale) by u for a from `nearest` to `farthest`."""
    f = _even(kind, k, nearest)
    return {
        "exponential": lambda: k * f,
        "boxcar": lambda: torch.zeros_like(f),
        "triangle": lambda: torch.where(nearest < 1, k, 0.0).to(f),
        "fast_sigmoid": lambda: 2 * k * f,
        "sigmoid": lambda: k * f,
        "arctan": lambda: math.pi / 2 * k * f,
        "tanh": lambda: 2 * k * f,
        "gaussian": lambda: k * farthest * f,
    }[kind]()


def surrogate_bounds(
    surrogate: Surrogate, membrane: Tensor, threshold: Tensor, rounding: Rounding, apart: Tensor
) -> SurrogateBounds:
    """f' at the membranes of a run, and the bound of its error against f' at membranes up to `apart` from them.

    A boxcar jumps: if its edge is as near as that, the error is the jump.
    """
    kind, k, scale = surrogate.kind, surrogate.slope, abs(surrogate.scale)
    a = k * (membrane - threshold).abs()
    reach = k * apart
    value = _even(kind, k, a)
    error = rounding.unit * _rounded(kind, k, a, rounding.loop)
    error += apart * _slope(kind, k, (a - reach).clamp(min=0), a + reach)
    terms = _terms(kind, k, a, rounding.loop)
    if kind == "boxcar":
        near = (a - 0.5).abs() <= reach + 4 * rounding.unit
        error, terms = torch.where(near, k, error), torch.where(near, k, terms)
    # The exponential of the kernels ends at e^-87 (e^-708), up to twice the smallest normal number.
    error = scale * (error + 8 * max(1.0, k) * rounding.least) + rounding.least
    return SurrogateBounds(scale * value, scale * terms, RAISED * error)


@dataclass(frozen=True)
class LifTerms:
    """The values of a run of which the bounds of LIF neurons are made."""

    x: Tensor
    spikes: Tensor
    membrane: Tensor
    grad_spikes: Tensor
    grad_membrane: Tensor
    clipped: Tensor
    alpha: Tensor
    threshold: Tensor
    reset_by: Tensor
    initial_membrane: Tensor
    initial_spikes: Tensor
    reset: str
    slayer: bool

    def retained(self, u: Tensor, s: Tensor) -> Tensor:
        """Sum of the absolute terms of what alpha multiplies."""
        if self.reset == "subtract_decayed":
            return u.abs() + (self.reset_by * s).abs()
        return u.abs() * (1 + s.abs()) if self.reset == "zero" else u.abs()


def lif_membrane_bounds(run: LifTerms, rounding: Rounding) -> tuple[Bounded, Tensor]:
    """u[t] is a sum of terms, each of which is rounded at most four times a step.

    Returns:
        terms and error of the membrane, and the error that it has before it is raised to the lower bound.
    """
    u, s = run.initial_membrane, run.initial_spikes
    error, terms = torch.zeros_like(u), u.abs()
    all_terms, errors, integrated = [], [], []
    for x, computed, fired, clipped in zip(run.x, run.membrane, run.spikes, run.clipped, strict=True):
        subtracted = (run.reset_by * s).abs() if run.reset == "subtract" else torch.zeros_like(u)
        added = x.abs() + subtracted
        kept = (1 - s).abs() if run.reset == "zero" else torch.ones_like(u)
        error = run.alpha * kept * error + rounding.gamma(4) * (run.alpha * run.retained(u, s) + added)
        error = error + 4 * rounding.least
        integrated.append(RAISED * error)
        error = torch.where(clipped, 0.0, error)
        jump = (run.alpha * run.reset_by * s).abs() if run.reset == "subtract_decayed" else 0.0
        # u (1 - s) is rounded as a difference: also where it is 0, and leaves no term of u.
        rounded = run.retained(u, s) - kept * u.abs() if run.reset == "zero" else 0.0
        terms = torch.where(clipped, computed.abs(), run.alpha * (kept * terms + rounded) + jump + added)
        all_terms.append(terms)
        errors.append(RAISED * error)
        u, s = computed, fired
    return Bounded(torch.stack(all_terms), torch.stack(errors)), torch.stack(integrated)


@dataclass(frozen=True)
class _Product:
    """The error of fl(fl(f ds) + p) and the like: sums of absolute terms, and the error they have so far."""

    terms: Tensor
    error: Tensor


def _adjoint(f: SurrogateBounds, t: int, ds: _Product, rest: _Product, rounding: Rounding) -> tuple[_Product, _Product]:
    """f' dL/ds, and lam = f' dL/ds + rest, of step t."""
    value, off = f.value[t], f.error[t]
    terms = value * ds.terms
    error = value * ds.error + off * (ds.terms + ds.error)
    all_terms, all_error = terms + rest.terms, error + rest.error
    rounded = all_error + rounding.step * (all_terms + all_error) + 2 * rounding.least
    through = _Product(terms, error + rounding.step * (terms + error) + rounding.least)
    return through, _Product(all_terms, rounded)


def lif_gradient_bounds(run: LifTerms, f: SurrogateBounds, rounding: Rounding, apart: Tensor) -> dict[str, Bounded]:
    """Terms and errors of the gradients against those at membranes up to `apart` from the ones of the run."""
    steps, lanes = run.x.shape
    zero = torch.zeros(lanes, dtype=torch.float64)
    later = _Product(zero, zero)
    sums = {name: _Product(zero, zero) for name in ("alpha", "threshold", "reset_by", "min_membrane")}
    found = []

    def add(name: str, terms: Tensor, error: Tensor) -> None:
        sums[name] = _Product(sums[name].terms + terms, sums[name].error + error)

    def slopes(u: Tensor, s: Tensor, off: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """abs(c), its error, abs(b), and the sum of the terms of b."""
        if run.slayer or run.reset == "none":
            return zero, zero, run.alpha, run.alpha
        if run.reset == "zero":
            c = run.alpha * u.abs()
            moved = run.alpha * (off + rounding.least)
            return c, moved + rounding.gamma(1) * (c + moved), run.alpha * (1 - s).abs(), run.alpha * (1 + s.abs())
        c = run.reset_by.abs() * (run.alpha if run.reset == "subtract_decayed" else 1.0)
        return c, rounding.gamma(1) * c, run.alpha, run.alpha

    def by_retained(u: Tensor, s: Tensor, off: Tensor) -> None:
        terms = run.retained(u, s)
        error = (off + rounding.least) * ((1 - s).abs() if run.reset == "zero" else 1.0) + rounding.gamma(2) * terms
        add("alpha", later.terms * terms, later.error * terms + error * (later.terms + later.error))

    for t in range(steps - 1, -1, -1):
        u, s, off = run.membrane[t], run.spikes[t], apart[t]
        c, c_error, b, b_terms = slopes(u, s, off)
        g, h = run.grad_spikes[t].abs(), run.grad_membrane[t].abs()
        moved = c * later.error + c_error * (later.terms + later.error)
        terms = g + (c + c_error) * (later.terms + later.error)
        ds = _Product(g + c * later.terms, moved + rounding.step * terms + 2 * rounding.least)
        terms = h + b_terms * (later.terms + later.error)
        rest = _Product(h + b * later.terms, b * later.error + rounding.step * terms + 2 * rounding.least)
        through, unclipped = _adjoint(f, t, ds, rest, rounding)
        by_retained(u, s, off)
        add("threshold", through.terms, through.error)
        add("reset_by", later.terms * s, later.error * s)
        clipped = run.clipped[t]
        add("min_membrane", torch.where(clipped, unclipped.terms, 0.0), torch.where(clipped, unclipped.error, 0.0))
        later = _Product(torch.where(clipped, 0.0, unclipped.terms), torch.where(clipped, 0.0, unclipped.error))
        found.append(later)
    u, s = run.initial_membrane, run.initial_spikes
    c, c_error, b, b_terms = slopes(u, s, zero)
    by_retained(u, s, zero)
    add("reset_by", later.terms * s.abs(), later.error * s.abs())
    decay = {"subtract": torch.ones_like(zero), "subtract_decayed": run.alpha}.get(run.reset, zero)
    reset_by = sums["reset_by"]
    sums["reset_by"] = _Product(decay * reset_by.terms, decay * reset_by.error)
    computed = later.terms + later.error
    found.reverse()
    return {
        "input": Bounded(
            torch.stack([part.terms for part in found]), RAISED * torch.stack([part.error for part in found])
        ),
        "initial_membrane": Bounded(
            b * later.terms, RAISED * (b * later.error + rounding.gamma(4) * b_terms * computed + rounding.least)
        ),
        "initial_spikes": Bounded(
            c * later.terms,
            RAISED * (c * later.error + (c_error + rounding.gamma(4) * c) * computed + rounding.least),
        ),
        **{name: Bounded(part.terms, RAISED * part.error) for name, part in sums.items()},
    }


def summed(
    parts: Bounded, owners: Tensor, count: int, steps: int, rounding: Rounding, uses: int = 1, columns: int = 0
) -> Bounded:
    """Terms and errors of sums over time and over lanes; `owners` is the index of the parameter that a lane uses.

    A step adds so many times (`Rounding.summed`), and so many sums are added in the dtype behind the kernel.
    """

    def total(values: Tensor) -> Tensor:
        return torch.zeros(count, dtype=torch.float64).index_add_(0, owners, values)

    terms, error = total(parts.terms), total(parts.error)
    lanes = int(torch.bincount(owners, minlength=count).max())
    relative = rounding.summed(steps, lanes, uses) + rounding.gamma(columns)
    rounded = relative * (terms + error) + (uses * steps + lanes + columns) * rounding.least
    return Bounded(terms, RAISED * (error + rounded))


@dataclass(frozen=True)
class KernelTerms:
    """The absolute values of a reset kernel, (time,), and how it is computed: by taps, or by so many modes."""

    absolute: Tensor
    taps: int
    modes: int

    def response(self, newest_first: list[Tensor]) -> Tensor | float:
        """sum_k abs(kernel[k]) pushed[n-k]."""
        if not newest_first:
            return 0.0
        signal = torch.stack(newest_first[: len(self.absolute)])
        return torch.einsum("k,kl->l", self.absolute[: len(signal)], signal)

    def error(self, steps: int, rounding: Rounding) -> float:
        """Relative error of a term of the response, so many steps after the first."""
        if self.modes:
            return 8 * (steps + self.modes + 2) * 2.0**-53 + rounding.gamma(1)
        terms = min(self.taps, steps)
        return rounding.gamma(2 * terms + 6 if rounding.loop else terms + 1)


def srm_membrane_bounds(z: Tensor, spikes: Tensor, kernel: KernelTerms, rounding: Rounding) -> Bounded:
    """u[n] is a sum of terms without errors of their own."""
    pushed: list[Tensor] = []
    all_terms, errors = [], []
    for n, (z_n, s_n) in enumerate(zip(z, spikes, strict=True)):
        felt = kernel.response(pushed)
        terms = z_n.abs() + felt
        all_terms.append(terms)
        rounded = kernel.error(n, rounding) * felt + 2 * rounding.gamma(1) * terms
        errors.append(RAISED * (rounded + (n + 4) * rounding.least))
        pushed.insert(0, s_n)
    return Bounded(torch.stack(all_terms), torch.stack(errors))


def srm_gradient_bounds(
    kernel: KernelTerms,
    spikes: Tensor,
    grad_spikes: Tensor,
    grad_membrane: Tensor,
    f: SurrogateBounds,
    rounding: Rounding,
    slayer: bool,
) -> dict[str, Bounded]:
    """Terms and errors of the gradients; those of the taps are summed over the lanes, not yet rounded for that."""
    steps, lanes = spikes.shape
    zero = torch.zeros(lanes, dtype=torch.float64)
    pushed_terms: list[Tensor] = []
    pushed_errors: list[Tensor] = []
    by_threshold = _Product(zero, zero)
    for n in range(steps - 1, -1, -1):
        after = steps - 1 - n
        felt, felt_error = (0.0, 0.0) if slayer else (kernel.response(pushed_terms), kernel.response(pushed_errors))
        g, h = grad_spikes[n].abs(), grad_membrane[n].abs()
        error = felt_error + kernel.error(after, rounding) * (felt + felt_error)
        error = error + rounding.step * (g + felt + error) + (after + 4) * rounding.least
        rest = _Product(h, zero)
        through, delta = _adjoint(f, n, _Product(g + felt, error), rest, rounding)
        by_threshold = _Product(by_threshold.terms + through.terms, by_threshold.error + through.error)
        pushed_terms.insert(0, delta.terms)
        pushed_errors.insert(0, delta.error)
    terms, errors = torch.stack(pushed_terms), torch.stack(pushed_errors)

    def by_tap(values: Tensor) -> Tensor:
        return torch.stack([(values[j + 1 :] * spikes[: max(0, steps - 1 - j)]).sum() for j in range(kernel.taps)])

    found = {
        "psp": Bounded(terms, RAISED * errors),
        "threshold": Bounded(by_threshold.terms, RAISED * by_threshold.error),
    }
    if kernel.taps:
        found["reset_kernel"] = Bounded(by_tap(terms), RAISED * by_tap(errors))
    return found
