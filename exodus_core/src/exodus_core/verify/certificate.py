"""Compares a run with the gradients of the same neurons without rounding error.

The true gradient is that of the neuron's equations in exact numbers, at the inputs of the run, with the decisions of
the run: which steps have a spike, and which membranes were raised to their lower bound. The surrogate is taken at the
exact membrane of these decisions. A second exact gradient, at the membrane that the program rounded, tells the error
of the backward pass from that of the forward pass. docs/verify.md has the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exodus_core.kernels import Kernel
from exodus_core.surrogate import Surrogate
from exodus_core.verify import bounds
from exodus_core.verify.arithmetic import Arithmetic, Number, check_radii, exact_derivative, with_narrow_balls
from exodus_core.verify.bounds import Bounded, KernelTerms, LifTerms, Rounding, SurrogateBounds
from exodus_core.verify.exact import (
    ExactKernel,
    LifLane,
    exact_modes,
    lif_gradients,
    lif_membranes,
    srm_gradients,
    srm_membranes,
)
from exodus_core.verify.runs import LifRun, Parameter, SrmRun, check_finite

_PARAMETERS = ("alpha", "threshold", "reset_by", "min_membrane")


@dataclass(frozen=True)
class Deviation:
    """How far a result of the program is from the true one. All are float64 of the shape of the result.

    Args:
        computed: the result.
        true: the true one, rounded to float64.
        error: their distance, not less than it is.
        ulp: distance between neighbouring floats of the program's dtype around the true one.
        terms: sum of the absolute values of the terms that the result is a sum of.
        unit, least: u, the unit roundoff of that dtype, and its smallest normal number.
        bound: a priori, of `error`.
        own_error: distance of the result from the exact one at the membrane that the program rounded.
        own_bound: a priori, of `own_error`: of the rounding errors of the backward pass alone.
        at_edge: True where a membrane of the neuron is within rounding of an edge of the boxcar: the true gradient is
            then known up to the jump, which the bounds have in them.
    """

    computed: Tensor
    true: Tensor
    error: Tensor
    ulp: Tensor
    terms: Tensor
    unit: float
    least: float
    bound: Tensor
    own_error: Tensor
    own_bound: Tensor
    at_edge: Tensor

    @property
    def scale(self) -> Tensor:
        """u times the terms; what lies below the smallest normal number counts as that."""
        return self.unit * self.terms + self.least

    @property
    def ulps(self) -> Tensor:
        """The error in units in the last place of the true result."""
        return self.error / self.ulp

    @property
    def units(self) -> Tensor:
        """The error of the backward pass in units of u times the terms."""
        return self.own_error / self.scale

    @property
    def share(self) -> Tensor:
        """The error as a share of its bound."""
        return _share(self.error, self.bound)

    @property
    def own_share(self) -> Tensor:
        """The error of the backward pass as a share of its bound."""
        return _share(self.own_error, self.own_bound)

    @property
    def broken(self) -> Tensor:
        """The elements whose error is not within its bound, of those that can be certified."""
        return ~((self.own_error <= self.own_bound) & (self.error <= self.bound)) & ~self.uncertain

    @property
    def uncertain(self) -> Tensor:
        """The elements that cannot be certified: the result or a bound is not finite."""
        return ~(self.computed.isfinite() & self.bound.isfinite() & self.own_bound.isfinite())


def _share(error: Tensor, bound: Tensor) -> Tensor:
    return torch.where(error == 0, 0.0, error / bound)


@dataclass
class Decisions:
    """Decisions of a run that exact membranes would decide otherwise, and how close these membranes are.

    Args:
        steps: neuron-steps in all.
        spikes, clipped: neuron-steps with another number of spikes, or on the other side of the lower bound.
        farthest: the largest distance of such a membrane from the threshold or bound, in units of the bound of its
            rounding error: at most 1 if the program is right.
        edges: neuron-steps whose boxcar is, or may be, that of the other side of its edge.
    """

    steps: int = 0
    spikes: int = 0
    clipped: int = 0
    farthest: float = 0.0
    edges: int = 0


@dataclass(frozen=True)
class Certificate:
    """The findings about a run, and whether its bounds are kept.

    Args:
        arithmetic: how the true gradients were computed.
        gradients: by the name of the argument.
        membrane: of the forward pass; both bounds are the same.
        decisions: see there.
    """

    arithmetic: str
    gradients: dict[str, Deviation]
    membrane: Deviation
    decisions: Decisions

    @property
    def kept(self) -> bool:
        """True if every result can be certified and every bound is kept."""
        deviations = [self.membrane, *self.gradients.values()]
        return self.decisions.farthest <= 1 and not any(
            bool((each.broken | each.uncertain).any()) for each in deviations
        )


@dataclass
class _Differences:
    """True results with the errors of a program's, element by element."""

    arithmetic: Arithmetic
    true: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    own_error: list[float] = field(default_factory=list)
    radius: list[float] = field(default_factory=list)

    def add(self, computed: float, true: Number, own: Number) -> None:
        exact = self.arithmetic
        self.true.append(exact.nearest(true))
        self.radius.append(max(exact.radius(true), exact.radius(own)))
        if computed - computed != 0:  # infinite or NaN, neither of which a rational has
            self.error.append(torch.inf)
            self.own_error.append(torch.inf)
            return
        given = exact.rational(computed)
        self.error.append(exact.magnitude(given - true))
        self.own_error.append(exact.magnitude(given - own))

    def deviation(
        self, computed: Tensor, whole: Bounded, own: Bounded, terms: Tensor, at_edge: Tensor, rounding: Rounding
    ) -> Deviation:
        shape = computed.shape

        def of(values: list[float]) -> Tensor:
            found = torch.tensor(values, dtype=torch.float64)
            return found.reshape(shape[::-1]).t() if len(shape) == 2 else found.reshape(shape)

        true = of(self.true)
        ulp = rounding.ulp(true)
        check_radii(true, of(self.radius), ulp)
        return Deviation(
            computed=computed.double(),
            true=true,
            error=of(self.error),
            ulp=ulp,
            terms=terms,
            unit=rounding.unit,
            least=rounding.least,
            bound=whole.error,
            own_error=of(self.own_error),
            own_bound=own.error,
            at_edge=at_edge.expand(shape),
        )


class _Membranes(_Differences):
    """The exact membranes with the errors of the rounded ones, of the forward pass alone."""

    def add_lane(self, exact: list[Number], rounded: list[Number]) -> None:
        working = self.arithmetic.working
        for u, near in zip(exact, rounded, strict=True):
            self.true.append(self.arithmetic.nearest(working(u)))
            self.radius.append(0.0)  # of rationals until here
            self.error.append(self.arithmetic.magnitude(working(near - u)))

    def against(self, bounded: Bounded, computed: Tensor, rounding: Rounding) -> Deviation:
        self.own_error = self.error
        nowhere = torch.zeros(1, dtype=torch.bool)
        return self.deviation(computed, bounded, bounded, bounded.terms, nowhere, rounding)


def certify(run: LifRun | SrmRun) -> Certificate:
    """Compares the membranes and gradients of a run with the exact ones.

    Raises:
        ValueError: a membrane is not finite, or the exact gradients need more than MOST_BITS of arithmetic.py.
        ModuleNotFoundError: the surrogate is none of boxcar, triangle and fast sigmoid, or there are many steps, and
            python-flint is not installed.
    """
    check_finite("the membrane", run.membrane)

    def certified(arithmetic: Arithmetic) -> Certificate:
        return _certify_lif(run, arithmetic) if isinstance(run, LifRun) else _certify_srm(run, arithmetic)

    return with_narrow_balls(run.surrogate, len(run.spikes), certified)


def _rationals(arithmetic: Arithmetic, values: Tensor) -> list[list[Number]]:
    """Signals (time, lanes) as one list a lane."""
    return [[arithmetic.rational(value) for value in lane] for lane in values.t().tolist()]


def _counts(spikes: Tensor) -> list[list[int]]:
    return [[int(count) for count in lane] for lane in spikes.t().tolist()]


class _Sums:
    """Sums over the lanes that share a parameter."""

    def __init__(self, parameter: Parameter) -> None:
        self.owners = parameter.owners.tolist()
        self.true: list[Number] = [0] * len(parameter.values)
        self.own: list[Number] = [0] * len(parameter.values)

    def add(self, lane: int, true: Number, own: Number) -> None:
        owner = self.owners[lane]
        self.true[owner] = self.true[owner] + true
        self.own[owner] = self.own[owner] + own


def _parameters(run: LifRun) -> dict[str, Parameter]:
    """The parameters whose gradients the run has."""
    given = {name: getattr(run, name) for name in _PARAMETERS}
    return {name: parameter for name, parameter in given.items() if name in run.gradients}


def lif_lanes(run: LifRun, number: Callable[[float], Number]) -> Iterator[LifLane]:
    """The constants of each lane."""
    lanes = zip(
        run.alpha.lanes.tolist(),
        run.threshold.lanes.tolist(),
        run.reset_by.lanes.tolist(),
        [None] * run.x.shape[1] if run.min_membrane is None else run.min_membrane.lanes.tolist(),
        run.initial_membrane.tolist(),
        run.initial_spikes.tolist(),
        strict=True,
    )
    for *values, floor, u, s in lanes:
        alpha, threshold, reset_by = map(number, values)
        bound = None if floor is None else number(floor)
        yield LifLane(alpha, threshold, reset_by, bound, number(u), number(s), run.reset)


def _certify_lif(run: LifRun, arithmetic: Arithmetic) -> Certificate:
    rounding = Rounding(run.x.dtype, run.method == "bptt")
    terms = _lif_terms(run)
    membranes, integrated = bounds.lif_membrane_bounds(terms, rounding)
    derivative = exact_derivative(run.surrogate, arithmetic)
    working, slayer = arithmetic.working, run.method == "slayer"
    parameters = _parameters(run)
    names = ["input", "initial_membrane", "initial_spikes"]
    differences = {name: _Differences(arithmetic) for name in [*names, *parameters]}
    membrane_differences = _Membranes(arithmetic)
    sums = {name: _Sums(parameter) for name, parameter in parameters.items()}
    decisions = Decisions(steps=run.x.numel())
    columns = zip(
        lif_lanes(run, arithmetic.rational),
        lif_lanes(run, lambda value: working(arithmetic.rational(value))),
        _rationals(arithmetic, run.x),
        _rationals(arithmetic, run.membrane),
        _rationals(arithmetic, run.grad_spikes),
        _rationals(arithmetic, run.grad_membrane),
        _counts(run.spikes),
        run.clipped.t().tolist(),
        membranes.error.t().tolist(),
        integrated.t().tolist(),
        strict=True,
    )
    computed = {name: run.gradients[name].t().tolist() for name in names}
    for index, (lane, working_lane, x, rounded, g, h, spikes, clipped, *errors) in enumerate(columns):
        exact = lif_membranes(lane, x, spikes, clipped)
        membrane_differences.add_lane(exact.clipped, rounded)
        steps = zip(spikes, clipped, exact.clipped, exact.integrated, *errors, strict=True)
        _decide_lif(decisions, lane, run.max_spikes, steps, rounding, arithmetic)
        g, h = [working(value) for value in g], [working(value) for value in h]
        true, own = (
            lif_gradients(
                working_lane,
                [working(u) for u in at],
                spikes,
                clipped,
                [derivative(u - lane.threshold) for u in at],
                g,
                h,
                slayer,
            )
            for at in (exact.clipped, rounded)
        )
        for value, *pair in zip(computed["input"][index], true.input, own.input, strict=True):
            differences["input"].add(value, *pair)
        for name in names[1:]:
            differences[name].add(computed[name][index], getattr(true, name), getattr(own, name))
        for name, total in sums.items():
            pair = [getattr(true, name), getattr(own, name)]
            if name == "threshold" and run.tied:
                pair = [pair[0] + true.reset_by, pair[1] + own.reset_by]
            total.add(index, *pair)
    for name, total in sums.items():
        for value, *pair in zip(run.gradients[name].tolist(), total.true, total.own, strict=True):
            differences[name].add(value, *pair)
    f = _SurrogatesBounded.of(run.surrogate, terms.membrane, terms.threshold, rounding, membranes.error)
    decisions.edges = int(f.edges.sum())

    def bounded(surrogate: SurrogateBounds, distance: Tensor) -> dict[str, Bounded]:
        found = bounds.lif_gradient_bounds(terms, surrogate, rounding, distance)
        if run.tied:
            both = found["threshold"], found["reset_by"]
            found["threshold"] = Bounded(both[0].terms + both[1].terms, both[0].error + both[1].error)
        for name, parameter in parameters.items():
            found[name] = bounds.summed(found[name], parameter.owners, len(parameter.values), len(run.x), rounding)
        return found

    at_edge = dict.fromkeys(names, f.edges.any(0))
    at_edge |= {name: _sharing(f.edges.any(0), parameter) for name, parameter in parameters.items()}
    deviations = _deviations(run.gradients, differences, f, membranes.error, bounded, at_edge, rounding)
    forward = membrane_differences.against(membranes, run.membrane, rounding)
    return Certificate(arithmetic.name, deviations, forward, decisions)


def _decide_lif(
    decisions: Decisions,
    lane: LifLane,
    max_spikes: int,
    steps: Iterable[tuple[int, bool, Number, Number, float, float]],
    rounding: Rounding,
    arithmetic: Arithmetic,
) -> None:
    """Counts the decisions of a lane that its exact membranes make otherwise.

    A step is its spikes, True if it was clipped, the exact membrane after and before clipping, and the bounds of the
    errors of these two.
    """
    for count, is_clipped, u, above, error, error_above in steps:
        if lane.floor is not None and is_clipped != (above <= lane.floor):
            decisions.clipped += 1
            _close(decisions, above - lane.floor, error_above, arithmetic)
        exact_count, edge = spikes_of(u, lane.threshold, max_spikes)
        if exact_count != count:
            decisions.spikes += 1
            # The quotient u / threshold is rounded too, unless it is one comparison.
            near = abs(arithmetic.nearest(arithmetic.working(u)))
            divided = 2 * rounding.unit * near if max_spikes > 1 else 0.0
            _close(decisions, u - edge(count), error + divided, arithmetic)


class _SurrogatesBounded(NamedTuple):
    """Bounds of f' against that at the exact membrane (whole) and at the rounded one (own).

    `edges` are the membranes within rounding of an edge of the boxcar, where f' is off by the jump.
    """

    whole: SurrogateBounds
    own: SurrogateBounds
    edges: Tensor

    @classmethod
    def of(
        cls, surrogate: Surrogate, membrane: Tensor, threshold: Tensor, rounding: Rounding, apart: Tensor
    ) -> _SurrogatesBounded:
        whole, own = (
            bounds.surrogate_bounds(surrogate, membrane, threshold, rounding, distance)
            for distance in (apart, torch.zeros_like(apart))
        )
        jumped = whole.error > abs(surrogate.scale) * surrogate.slope / 2
        return cls(whole, own, jumped if surrogate.kind == "boxcar" else torch.zeros_like(jumped))


def _deviations(
    gradients: dict[str, Tensor],
    differences: dict[str, _Differences],
    f: _SurrogatesBounded,
    apart: Tensor,
    bounded: Callable[[SurrogateBounds, Tensor], dict[str, Bounded]],
    at_edge: dict[str, Tensor],
    rounding: Rounding,
) -> dict[str, Deviation]:
    """The deviation of each gradient; `bounded` makes bounds from those of f' and of the membrane."""
    none = torch.zeros_like(apart)
    whole, own, terms = bounded(f.whole, apart), bounded(f.own, none), bounded(f.own.as_terms(), none)
    return {
        name: difference.deviation(gradients[name], whole[name], own[name], terms[name].terms, at_edge[name], rounding)
        for name, difference in differences.items()
    }


def _sharing(lanes: Tensor, parameter: Parameter) -> Tensor:
    """The parameters that one of these lanes, (lanes,) bool, uses."""
    return torch.bincount(parameter.owners[lanes], minlength=len(parameter.values)) > 0


def _lif_terms(run: LifRun) -> LifTerms:
    return LifTerms(
        x=run.x.double(),
        spikes=run.spikes.double(),
        membrane=run.membrane.double(),
        grad_spikes=run.grad_spikes.double(),
        grad_membrane=run.grad_membrane.double(),
        clipped=run.clipped,
        alpha=run.alpha.lanes.double(),
        threshold=run.threshold.lanes.double(),
        reset_by=run.reset_by.lanes.double(),
        initial_membrane=run.initial_membrane.double(),
        initial_spikes=run.initial_spikes.double(),
        reset=run.reset,
        slayer=run.method == "slayer",
    )


def spikes_of(u: Number, threshold: Number, max_spikes: int) -> tuple[int, Callable[[int], Number]]:
    """The spikes of an exact membrane, and the nearest membrane that would have had so many."""
    if max_spikes == 1:
        return int(u >= threshold), lambda count: threshold
    count = min(max(math.floor(u / threshold), 0), max_spikes)
    return int(count), lambda other: threshold * (other if other > count else other + 1)


def _close(decisions: Decisions, distance: Number, error: float, arithmetic: Arithmetic) -> None:
    """A membrane on the other side of an edge: rounding must have been able to take it there."""
    apart = arithmetic.magnitude(arithmetic.working(distance))
    if apart:
        decisions.farthest = max(decisions.farthest, apart / error if error else torch.inf)


def _exact_kernel(kernel: Kernel, number: Callable[[float], Number]) -> ExactKernel:
    if isinstance(kernel, Tensor):
        return [number(tap) for tap in kernel.tolist()]
    return exact_modes(kernel.modes, number)


def _kernel_terms(kernel: Kernel, steps: int) -> KernelTerms:
    if isinstance(kernel, Tensor):
        return KernelTerms(kernel.double().abs(), len(kernel), 0)
    k = torch.arange(steps, dtype=torch.float64)
    modes = zip(kernel.modes.decay, kernel.modes.constant, kernel.modes.linear, strict=True)
    absolute = sum((abs(constant) + abs(linear) * k) * decay**k for decay, constant, linear in modes)
    return KernelTerms(torch.as_tensor(absolute), 0, len(kernel.modes.decay))


def _certify_srm(run: SrmRun, arithmetic: Arithmetic) -> Certificate:
    rounding = Rounding(run.z.dtype, run.method == "bptt")
    steps, lanes = run.z.shape
    working, slayer = arithmetic.working, run.method == "slayer"
    kernel = _exact_kernel(run.reset_kernel, arithmetic.rational)
    working_kernel = _exact_kernel(run.reset_kernel, lambda value: working(arithmetic.rational(value)))
    kernel_terms = _kernel_terms(run.reset_kernel, steps)
    spikes_seen = run.spikes.double()
    membranes = bounds.srm_membrane_bounds(run.z.double(), spikes_seen, kernel_terms, rounding)
    derivative = exact_derivative(run.surrogate, arithmetic)
    differences = {name: _Differences(arithmetic) for name in run.gradients}
    membrane_differences = _Membranes(arithmetic)
    by_threshold = _Sums(run.threshold)
    by_taps: list[Any] = [[0, 0] for _ in range(kernel_terms.taps)]
    decisions = Decisions(steps=run.z.numel())
    columns = zip(
        run.threshold.lanes.tolist(),
        _rationals(arithmetic, run.z),
        _rationals(arithmetic, run.membrane),
        _rationals(arithmetic, run.grad_spikes),
        _rationals(arithmetic, run.grad_membrane),
        _counts(run.spikes),
        membranes.error.t().tolist(),
        run.gradients["psp"].t().tolist(),
        strict=True,
    )
    for index, (threshold, z, rounded, g, h, spikes, errors, computed) in enumerate(columns):
        theta = arithmetic.rational(threshold)
        exact = srm_membranes(kernel, z, spikes)
        membrane_differences.add_lane(exact, rounded)
        for u, count, error in zip(exact, spikes, errors, strict=True):
            if (u >= theta) != bool(count):
                decisions.spikes += 1
                _close(decisions, u - theta, error, arithmetic)
        g, h = [working(value) for value in g], [working(value) for value in h]
        true, own = (
            srm_gradients(working_kernel, spikes, [derivative(u - theta) for u in at], g, h, slayer)
            for at in (exact, rounded)
        )
        for value, *pair in zip(computed, true.psp, own.psp, strict=True):
            differences["psp"].add(value, *pair)
        by_threshold.add(index, true.threshold, own.threshold)
        for total, *pair in zip(by_taps, true.reset_kernel, own.reset_kernel, strict=True):
            total[0], total[1] = total[0] + pair[0], total[1] + pair[1]
    for value, *pair in zip(run.gradients["threshold"].tolist(), by_threshold.true, by_threshold.own, strict=True):
        differences["threshold"].add(value, *pair)
    if kernel_terms.taps:
        for value, pair in zip(run.gradients["reset_kernel"].tolist(), by_taps, strict=True):
            differences["reset_kernel"].add(value, *pair)
    threshold_of_lanes = run.threshold.lanes.double()
    f = _SurrogatesBounded.of(run.surrogate, run.membrane.double(), threshold_of_lanes, rounding, membranes.error)
    decisions.edges = int(f.edges.sum())

    def bounded(surrogate: SurrogateBounds, _: Tensor) -> dict[str, Bounded]:
        found = bounds.srm_gradient_bounds(
            kernel_terms,
            spikes_seen,
            run.grad_spikes.double(),
            run.grad_membrane.double(),
            surrogate,
            rounding,
            slayer,
        )
        owners, count = run.threshold.owners, len(run.threshold.values)
        found["threshold"] = bounds.summed(found["threshold"], owners, count, steps, rounding)
        if kernel_terms.taps:
            each = torch.arange(kernel_terms.taps)
            found["reset_kernel"] = bounds.summed(
                found["reset_kernel"], each, kernel_terms.taps, steps * lanes, rounding
            )
        return found

    at_edge = {
        "psp": f.edges.any(0),
        "threshold": _sharing(f.edges.any(0), run.threshold),
        "reset_kernel": f.edges.any(),
    }
    deviations = _deviations(run.gradients, differences, f, membranes.error, bounded, at_edge, rounding)
    forward = membrane_differences.against(membranes, run.membrane, rounding)
    return Certificate(arithmetic.name, deviations, forward, decisions)
