"""Compares a run with the gradients of the same neurons without rounding error.

The true gradient is that of the neuron's equations in exact numbers, at the inputs of the run, with the decisions of
the run: which steps have a spike, and which membranes were raised to their lower bound. The surrogate is taken at the
exact membrane of these decisions. A second exact gradient, at the membrane that the program rounded, tells the error
of the backward pass from that of the forward pass. docs/verify.md has the bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from exodus_core.kernels import Kernel
from exodus_core.verify import bounds
from exodus_core.verify.arithmetic import Arithmetic, Number, exact_derivative, with_narrow_balls
from exodus_core.verify.bounds import Bounded, KernelTerms, LifTerms, Rounding, SurrogateBounds
from exodus_core.verify.coupled.certificate import certify_coupled
from exodus_core.verify.coupled.runs import CoupledRun
from exodus_core.verify.deviation import (
    Certificate,
    Decisions,
    Differences,
    Membranes,
    Sums,
    SurrogatesBounded,
    count_clipping,
    count_spikes,
    counts,
    deviations_of,
    rationals,
    sharing,
)
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

#: What can be certified.
AnyRun = LifRun | SrmRun | CoupledRun

_PARAMETERS = ("alpha", "threshold", "reset_by", "min_membrane")


def certify(run: AnyRun) -> Certificate:
    """Compares the membranes and gradients of a run with the exact ones.

    Raises:
        ValueError: a membrane is not finite, or the exact gradients need more than MOST_BITS of arithmetic.py.
        ModuleNotFoundError: the surrogate is none of boxcar, triangle and fast sigmoid, or there are many steps, and
            python-flint is not installed.
    """
    check_finite("the membrane", run.membrane)

    def certified(arithmetic: Arithmetic) -> Certificate:
        if isinstance(run, CoupledRun):
            return certify_coupled(run, arithmetic)
        return _certify_lif(run, arithmetic) if isinstance(run, LifRun) else _certify_srm(run, arithmetic)

    return with_narrow_balls(run.surrogate, len(run.spikes), certified)


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
    differences = {name: Differences(arithmetic) for name in [*names, *parameters]}
    membrane_differences = Membranes(arithmetic)
    sums = {name: Sums(parameter) for name, parameter in parameters.items()}
    decisions = Decisions(steps=run.x.numel())
    columns = zip(
        lif_lanes(run, arithmetic.rational),
        lif_lanes(run, lambda value: working(arithmetic.rational(value))),
        rationals(arithmetic, run.x),
        rationals(arithmetic, run.membrane),
        rationals(arithmetic, run.grad_spikes),
        rationals(arithmetic, run.grad_membrane),
        counts(run.spikes),
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
        for count, is_clipped, u, above, error, error_above in steps:
            count_clipping(decisions, is_clipped, above, lane.floor, error_above, arithmetic)
            count_spikes(decisions, count, u, lane.threshold, run.max_spikes, error, rounding, arithmetic)
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
    f = SurrogatesBounded.of(run.surrogate, terms.membrane, terms.threshold, rounding, membranes.error)
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
    at_edge |= {name: sharing(f.edges.any(0), parameter) for name, parameter in parameters.items()}
    deviations = deviations_of(run.gradients, differences, f, membranes.error, bounded, at_edge, rounding)
    forward = membrane_differences.against(membranes, run.membrane, rounding)
    return Certificate(arithmetic.name, deviations, forward, decisions)


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
    differences = {name: Differences(arithmetic) for name in run.gradients}
    membrane_differences = Membranes(arithmetic)
    by_threshold = Sums(run.threshold)
    by_taps: list[Any] = [[0, 0] for _ in range(kernel_terms.taps)]
    decisions = Decisions(steps=run.z.numel())
    columns = zip(
        run.threshold.lanes.tolist(),
        rationals(arithmetic, run.z),
        rationals(arithmetic, run.membrane),
        rationals(arithmetic, run.grad_spikes),
        rationals(arithmetic, run.grad_membrane),
        counts(run.spikes),
        membranes.error.t().tolist(),
        run.gradients["psp"].t().tolist(),
        strict=True,
    )
    for index, (threshold, z, rounded, g, h, spikes, errors, computed) in enumerate(columns):
        theta = arithmetic.rational(threshold)
        exact = srm_membranes(kernel, z, spikes)
        membrane_differences.add_lane(exact, rounded)
        for u, count, error in zip(exact, spikes, errors, strict=True):
            count_spikes(decisions, count, u, theta, 1, error, rounding, arithmetic)
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
    f = SurrogatesBounded.of(run.surrogate, run.membrane.double(), threshold_of_lanes, rounding, membranes.error)
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
        "threshold": sharing(f.edges.any(0), run.threshold),
        "reset_kernel": f.edges.any(),
    }
    deviations = deviations_of(run.gradients, differences, f, membranes.error, bounded, at_edge, rounding)
    forward = membrane_differences.against(membranes, run.membrane, rounding)
    return Certificate(arithmetic.name, deviations, forward, decisions)
