"""The certificate of neurons with several variables; what is compared with what is that of certificate.py above."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from exodus_core.verify import bounds
from exodus_core.verify.arithmetic import Arithmetic, Number, exact_derivative
from exodus_core.verify.bounds import Bounded, Rounding, SurrogateBounds
from exodus_core.verify.coupled.bounds import CoupledTerms, ForwardBounds, Offsets, forward_bounds, gradient_bounds
from exodus_core.verify.coupled.exact import CoupledLane, CoupledNeuron, CoupledTrace, CoupledValues, Steps
from exodus_core.verify.coupled.runs import CoupledRun
from exodus_core.verify.deviation import (
    Certificate,
    Decisions,
    Deviation,
    Differences,
    Membranes,
    Sums,
    count_clipping,
    count_spikes,
    counts,
    is_at_edge,
    rationals,
    sharing,
)


def _neuron(run: CoupledRun) -> CoupledNeuron:
    return CoupledNeuron(run.reset, run.delayed, run.method == "slayer", run.detached)


def _lanes(run: CoupledRun, number: Callable[[float], Number]) -> Iterator[CoupledLane]:
    """The constants of each lane."""
    neuron = _neuron(run)
    parameters = {name: parameter.lanes.tolist() for name, parameter in run.parameters.items()}
    initial = {name: values.tolist() for name, values in run.initial.items()}
    for lane in range(run.x.shape[1]):
        yield CoupledLane(
            neuron,
            {name: number(values[lane]) for name, values in parameters.items()},
            {name: number(values[lane]) for name, values in initial.items()},
        )


class _Comparison:
    """The lanes of a run against the exact ones."""

    def __init__(self, run: CoupledRun, arithmetic: Arithmetic) -> None:
        self.run = run
        self.arithmetic = arithmetic
        self.membranes = Membranes(arithmetic)
        self.differences = {name: Differences(arithmetic) for name in run.gradients}
        self.exact: list[CoupledValues] = []  # at the exact membranes
        self.own: list[CoupledValues] = []  # at those of the program
        self._compare()

    def _compare(self) -> None:
        run, arithmetic = self.run, self.arithmetic
        working, derivative = arithmetic.working, exact_derivative(run.surrogate, arithmetic)
        sums = {name: Sums(parameter) for name, parameter in run.parameters.items() if name in run.gradients}
        each_lane = [name for name in run.gradients if name not in sums and name != "input"]
        computed = {name: run.gradients[name].t().tolist() for name in ("input", *each_lane)}
        columns = zip(
            _lanes(run, arithmetic.rational),
            rationals(arithmetic, run.x),
            rationals(arithmetic, run.membrane),
            rationals(arithmetic, run.grad_spikes),
            rationals(arithmetic, run.grad_membrane),
            counts(run.spikes),
            run.clipped.t().tolist(),
            run.held.t().tolist(),
            strict=True,
        )
        for index, (lane, x, rounded, g, h, *decisions) in enumerate(columns):
            steps = Steps(x, *decisions)
            traces = [CoupledTrace(lane, steps, membrane, derivative) for membrane in (None, rounded)]
            self.exact.append(traces[0].values)
            self.own.append(traces[1].values)
            self.membranes.add_lane(traces[0].values.membrane, rounded)
            g, h = [working(value) for value in g], [working(value) for value in h]
            true, own = (trace.gradients(g, h) for trace in traces)
            for value, *pair in zip(computed["input"][index], true["input"], own["input"], strict=True):
                self.differences["input"].add(value, *pair)
            for name in each_lane:
                self.differences[name].add(computed[name][index], true[name], own[name])
            for name, total in sums.items():
                total.add(index, true[name], own[name])
        for name, total in sums.items():
            for value, *pair in zip(run.gradients[name].tolist(), total.true, total.own, strict=True):
                self.differences[name].add(value, *pair)

    def decisions(self, forward: ForwardBounds) -> Decisions:
        """The decisions that exact variables make otherwise; no rounding explains a spike in a refractory period."""
        run, arithmetic = self.run, self.arithmetic
        rounding = Rounding(run.x.dtype, run.method == "bptt")
        found = Decisions(steps=run.x.numel())
        floors = run.parameters["min_membrane"].lanes.tolist() if "min_membrane" in run.parameters else None
        lanes = zip(
            self.exact,
            counts(run.spikes),
            run.clipped.t().tolist(),
            run.held.t().tolist(),
            (forward.membrane.error + forward.threshold).t().tolist(),
            forward.integrated.t().tolist(),
            strict=True,
        )
        for index, (values, *decided) in enumerate(lanes):
            floor = None if floors is None else arithmetic.rational(floors[index])
            steps = zip(values.membrane, values.integrated, values.threshold, *decided, strict=True)
            for u, above, threshold, count, is_clipped, is_held, error, error_above in steps:
                count_clipping(found, is_clipped, above, floor, error_above, arithmetic)
                if not is_held:
                    count_spikes(found, count, u, threshold, run.max_spikes, error, rounding, arithmetic)
                elif count:
                    found.spikes += 1
                    found.farthest = torch.inf
        return found

    def terms(self) -> CoupledTerms:
        """The terms of the bounds."""
        run, arithmetic = self.run, self.arithmetic

        def nearest(name: str) -> Tensor:
            values = [
                [arithmetic.nearest(arithmetic.working(value)) for value in getattr(own, name)] for own in self.own
            ]
            return torch.tensor(values, dtype=torch.float64).t()

        return CoupledTerms(
            neuron=_neuron(run),
            parameters={name: parameter.lanes.double() for name, parameter in run.parameters.items()},
            initial={name: values.double() for name, values in run.initial.items()},
            x=run.x.double(),
            spikes=run.spikes.double(),
            membrane=run.membrane.double(),
            current=nearest("current"),
            adaptation=nearest("adaptation"),
            threshold=nearest("threshold"),
            clipped=run.clipped,
            held=run.held,
            grad_spikes=run.grad_spikes.double(),
            grad_membrane=run.grad_membrane.double(),
        )


def certify_coupled(run: CoupledRun, arithmetic: Arithmetic) -> Certificate:
    """Compares the membranes and gradients of a run with the exact ones."""
    rounding = Rounding(run.x.dtype, run.method == "bptt")
    comparison = _Comparison(run, arithmetic)
    terms = comparison.terms()
    forward = forward_bounds(terms, rounding)
    whole, own = (
        bounds.surrogate_bounds(run.surrogate, terms.membrane, terms.threshold, rounding, apart)
        for apart in (forward.membrane.error + forward.threshold, forward.own_threshold)
    )
    edges = is_at_edge(run.surrogate, whole) & ~run.held
    decisions = comparison.decisions(forward)
    decisions.edges = int(edges.sum())
    bounded = _gradient_bounds(run, terms, forward, [whole, own, own.as_terms()], rounding)
    at_edge = {name: edges.any(0) for name in run.gradients}
    at_edge |= {name: sharing(edges.any(0), parameter) for name, parameter in run.parameters.items()}
    deviations = {}
    for name, difference in comparison.differences.items():
        of_whole, of_own, of_terms = bounded[name]
        deviations[name] = difference.deviation(
            run.gradients[name], of_whole, of_own, of_terms.terms, at_edge[name], rounding
        )
    membrane: Deviation = comparison.membranes.against(forward.membrane, run.membrane, rounding)
    return Certificate(arithmetic.name, deviations, membrane, decisions)


def _gradient_bounds(
    run: CoupledRun, terms: CoupledTerms, forward: ForwardBounds, surrogates: list[SurrogateBounds], rounding: Rounding
) -> dict[str, list[Bounded]]:
    """Bounds against the true gradients, bounds against those at the membranes of the program, and the terms."""
    f = SurrogateBounds(
        *(torch.stack([getattr(each, name) for each in surrogates]) for name in ("value", "terms", "error"))
    )
    none = torch.zeros_like(forward.current)
    initial = torch.zeros_like(none[:1])
    offsets = Offsets(
        membrane=torch.stack([torch.cat([initial, forward.membrane.error + rounding.least]), none, none]),
        current=torch.stack([forward.current, forward.current, none]),
        adaptation=torch.stack([forward.adaptation, forward.own_adaptation, none]),
    )
    found = gradient_bounds(terms, f, offsets, rounding)
    rows = {
        name: [Bounded(each.terms[row], each.error[row]) for row in range(3)]
        for name, each in found.items()
        if name in run.gradients
    }
    for name, parameter in run.parameters.items():
        if name in rows:
            uses, columns = (2, 0) if rounding.loop else _additions(run, name)
            rows[name] = [
                bounds.summed(each, parameter.owners, len(parameter.values), len(run.x), rounding, uses, columns)
                for each in rows[name]
            ]
    return rows


def _additions(run: CoupledRun, name: str) -> tuple[int, int]:
    """How often a step of the kernel adds to the gradient of a parameter, and how many sums are added behind it.

    A number beside parameters of each neuron is one of each neuron to the kernel. A threshold that spikes subtract is
    two parameters to it, and its slope by the adaptation is added twice a step.
    """
    most = max(len(parameter.values) for parameter in run.parameters.values())
    columns = most if len(run.parameters[name].values) < most else 0
    return 2 if name == "adapt_threshold" else 1, columns + (name == "threshold")
