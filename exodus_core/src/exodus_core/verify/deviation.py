"""How far the results of a run are from the true ones, and which bounds they keep: what a certificate is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from exodus_core.surrogate import Surrogate
from exodus_core.verify import bounds
from exodus_core.verify.arithmetic import Arithmetic, Number, check_radii
from exodus_core.verify.bounds import Bounded, Rounding, SurrogateBounds
from exodus_core.verify.runs import Parameter


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
class Differences:
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


class Membranes(Differences):
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


def rationals(arithmetic: Arithmetic, values: Tensor) -> list[list[Number]]:
    """Signals (time, lanes) as one list a lane."""
    return [[arithmetic.rational(value) for value in lane] for lane in values.t().tolist()]


def counts(spikes: Tensor) -> list[list[int]]:
    return [[int(count) for count in lane] for lane in spikes.t().tolist()]


class Sums:
    """Sums over the lanes that share a parameter."""

    def __init__(self, parameter: Parameter) -> None:
        self.owners = parameter.owners.tolist()
        self.true: list[Number] = [0] * len(parameter.values)
        self.own: list[Number] = [0] * len(parameter.values)

    def add(self, lane: int, true: Number, own: Number) -> None:
        owner = self.owners[lane]
        self.true[owner] = self.true[owner] + true
        self.own[owner] = self.own[owner] + own


class SurrogatesBounded(NamedTuple):
    """Bounds of f' against that at the exact membrane (whole) and at the rounded one (own).

    `edges` are the membranes within rounding of an edge of the boxcar, where f' is off by the jump.
    """

    whole: SurrogateBounds
    own: SurrogateBounds
    edges: Tensor

    @classmethod
    def of(
        cls, surrogate: Surrogate, membrane: Tensor, threshold: Tensor, rounding: Rounding, apart: Tensor
    ) -> SurrogatesBounded:
        whole, own = (
            bounds.surrogate_bounds(surrogate, membrane, threshold, rounding, distance)
            for distance in (apart, torch.zeros_like(apart))
        )
        return cls(whole, own, is_at_edge(surrogate, whole))


def is_at_edge(surrogate: Surrogate, bounded: SurrogateBounds) -> Tensor:
    """The membranes within rounding of an edge of the boxcar."""
    jumped = bounded.error > abs(surrogate.scale) * surrogate.slope / 2
    return jumped if surrogate.kind == "boxcar" else torch.zeros_like(jumped)


def deviations_of(
    gradients: dict[str, Tensor],
    differences: dict[str, Differences],
    f: SurrogatesBounded,
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


def sharing(lanes: Tensor, parameter: Parameter) -> Tensor:
    """The parameters that one of these lanes, (lanes,) bool, uses."""
    return torch.bincount(parameter.owners[lanes], minlength=len(parameter.values)) > 0


def spikes_of(u: Number, threshold: Number, max_spikes: int) -> tuple[int, Callable[[int], Number]]:
    """The spikes of an exact membrane, and the nearest membrane that would have had so many."""
    if max_spikes == 1:
        return int(u >= threshold), lambda count: threshold
    count = min(max(math.floor(u / threshold), 0), max_spikes)
    return int(count), lambda other: threshold * (other if other > count else other + 1)


def count_spikes(
    decisions: Decisions,
    count: int,
    u: Number,
    threshold: Number,
    max_spikes: int,
    error: float,
    rounding: Rounding,
    arithmetic: Arithmetic,
) -> None:
    """Counts the spikes of a step if its exact membrane has others; `error` bounds that of u - threshold."""
    exact_count, edge = spikes_of(u, threshold, max_spikes)
    if exact_count != count:
        decisions.spikes += 1
        # The quotient u / threshold is rounded too, unless it is one comparison.
        near = abs(arithmetic.nearest(arithmetic.working(u)))
        divided = 2 * rounding.unit * near if max_spikes > 1 else 0.0
        _check_distance(decisions, u - edge(count), error + divided, arithmetic)


def count_clipping(
    decisions: Decisions,
    is_clipped: bool,
    above: Number,
    floor: Number | None,
    error: float,
    arithmetic: Arithmetic,
) -> None:
    """Counts a step if its exact membrane, before it is raised, is on the other side of the lower bound."""
    if floor is not None and is_clipped != (above <= floor):
        decisions.clipped += 1
        _check_distance(decisions, above - floor, error, arithmetic)


def _check_distance(decisions: Decisions, distance: Number, error: float, arithmetic: Arithmetic) -> None:
    """A membrane on the other side of an edge: rounding must have been able to take it there."""
    apart = arithmetic.magnitude(arithmetic.working(distance))
    if apart:
        decisions.farthest = max(decisions.farthest, apart / error if error else torch.inf)
