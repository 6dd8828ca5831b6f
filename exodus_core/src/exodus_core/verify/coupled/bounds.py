"""Bounds of the rounding errors of neurons with several variables, line by line (docs/verify.md).

All tensors are float64. Signals are (time, lanes), and states (time + 1, lanes), from the one before the first step on;
what is bounded together has one dimension more in front.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exodus_core.verify.bounds import RAISED, Bounded, Rounding, SurrogateBounds
from exodus_core.verify.coupled.exact import CoupledNeuron
from exodus_core.verify.coupled.lines import Lines, about, at, exactly, where


@dataclass(frozen=True)
class CoupledTerms:
    """The values of a run of which its bounds are made.

    Args:
        neuron, parameters, initial: as of CoupledLane, one value a lane.
        current, adaptation, threshold: the exact ones of the membranes and spikes of the program.
        others: as of CoupledRun.
    """

    neuron: CoupledNeuron
    parameters: dict[str, Tensor]
    initial: dict[str, Tensor]
    x: Tensor
    spikes: Tensor
    membrane: Tensor
    current: Tensor
    adaptation: Tensor
    threshold: Tensor
    clipped: Tensor
    held: Tensor
    grad_spikes: Tensor
    grad_membrane: Tensor

    def has(self, name: str) -> bool:
        """True if there is a parameter of that name."""
        return name in self.parameters

    def state(self, name: str) -> Tensor:
        """The states of a variable."""
        return torch.cat([self.first(name)[None], getattr(self, name)])

    def first(self, name: str) -> Tensor:
        """The state before the first step."""
        return self.initial.get(name, torch.zeros_like(self.x[0]))


@dataclass(frozen=True)
class ForwardBounds:
    """Bounds of the forward pass, against the exact one, and for `own` against that at the membranes of the program.

    Args:
        membrane: terms and errors of u.
        integrated: errors that it has before it is raised to the lower bound.
        current, adaptation, own_adaptation: errors of states.
        threshold, own_threshold: errors of the threshold.
    """

    membrane: Bounded
    integrated: Tensor
    current: Tensor
    adaptation: Tensor
    own_adaptation: Tensor
    threshold: Tensor
    own_threshold: Tensor


# What is bounded together, forward: the terms, which grow from step to step; the errors of values whose sizes are those
# of the program; and the same at its membranes, which then have no error.
_TERMS, _WHOLE, _OWN = range(3)


def forward_bounds(run: CoupledTerms, rounding: Rounding) -> ForwardBounds:
    """The forward equations of section 9 as lines."""
    lines, neuron = Lines.forward(rounding), run.neuron
    given = {name: exactly(values) for name, values in run.parameters.items()}
    row = torch.arange(3)[:, None]
    zeros = torch.zeros(3, run.x.shape[1], dtype=torch.float64)

    def faded(state: Bounded) -> Bounded:
        return Bounded(state.terms, state.error + rounding.least)  # a subnormal number counts as zero

    def sized(state: Bounded, values: Tensor) -> Bounded:
        """The state with the sizes of these values."""
        return Bounded(torch.where(row == _TERMS, state.terms, values.abs() + state.error), state.error)

    u, i, w = (exactly(run.first(name) + zeros) for name in ("membrane", "current", "adaptation"))
    spikes = run.state("spikes")
    membranes, integrated, currents, adaptations, thresholds = [], [], [i.error], [w.error], []
    for t, x in enumerate(run.x):
        u, i, w, s = faded(u), faded(i), faded(w), exactly(spikes[t])
        subtracted = given["reset_by"] if "reset_by" in given else _raised(given, lines, w)
        drive: tuple[Bounded, ...] = (exactly(x),)
        if "synapse_alpha" in given:
            before, i = i, lines((given["synapse_alpha"], i), (exactly(x),))
            drive = given["synapse_gain"], before if neuron.delayed else i
        if "adapt_alpha" in given:
            sensed = [(given["adapt_membrane"], u)] if "adapt_membrane" in given else []
            w = lines((given["adapt_alpha"], w), (given["adapt_by"], s), *sensed)
        retained = _retained(run, lines, u, spikes[t], subtracted)
        taken = [(subtracted, s)] if neuron.reset == "subtract" else []
        inhibited = [(given["adapt_current"], w)] if "adapt_current" in given else []
        moved = lines((given["alpha"], retained), drive, *taken, *inhibited)
        moved = where(run.held[t], lines((retained,), *taken), moved)
        integrated.append(moved.error[_WHOLE])
        u = where(run.clipped[t], exactly(run.membrane[t] + zeros), moved)
        membranes.append(Bounded(u.terms[_TERMS], u.error[_WHOLE]))
        u = sized(Bounded(u.terms, torch.where(row == _OWN, 0.0, u.error)), run.membrane[t])
        i, w = sized(i, run.current[t]), sized(w, run.adaptation[t])
        currents.append(i.error)
        adaptations.append(w.error)
        # Their exact values are given as float64, which rounds once more.
        thresholds.append(_raised(given, lines, w).error + 2.0**-53 * run.threshold[t].abs() + zeros)
    current, adaptation, threshold = (RAISED * torch.stack(errors, 1) for errors in (currents, adaptations, thresholds))
    return ForwardBounds(
        membrane=Bounded(
            torch.stack([each.terms for each in membranes]), RAISED * torch.stack([each.error for each in membranes])
        ),
        integrated=RAISED * torch.stack(integrated),
        current=current[_OWN],
        adaptation=adaptation[_WHOLE],
        own_adaptation=adaptation[_OWN],
        threshold=threshold[_WHOLE],
        own_threshold=threshold[_OWN],
    )


def _raised(given: dict[str, Bounded], lines: Lines, w: Bounded) -> Bounded:
    """The threshold."""
    if "adapt_threshold" not in given:
        return given["threshold"]
    return lines((given["threshold"],), (given["adapt_threshold"], w))


def _kept(lines: Lines, s: Tensor) -> Bounded:
    """1 - s; before the first step spikes may be no whole number."""
    kept = (1 - s).abs()
    return Bounded(kept, lines.step * kept)


def _retained(run: CoupledTerms, lines: Lines, u: Bounded, s: Tensor, subtracted: Bounded) -> Bounded:
    """r of the step after u and s."""
    if run.neuron.reset == "subtract_decayed":
        return lines((u,), (subtracted, exactly(s)))
    if run.neuron.reset == "value":
        return lines((u, _kept(lines, s)), (exactly(run.parameters["reset_to"]), exactly(s)))
    return lines((u, _kept(lines, s))) if run.neuron.reset == "zero" else u


@dataclass(frozen=True)
class Offsets:
    """How far the states of a program may lie from those of the gradient that its own is compared with."""

    membrane: Tensor
    current: Tensor
    adaptation: Tensor


#: The factors of a term, one for each step or for all; none if there is no such term.
_Factors = list[Bounded]


@dataclass(frozen=True)
class _Slopes:
    """The partial derivatives of what u[t+1] is before it is raised to the lower bound, by s, u and w of step t.

    `by_reset` is that by ρ or v.
    """

    by_spikes: _Factors
    direct: _Factors
    by_adaptation: _Factors
    by_reset: _Factors


def _slopes(
    run: CoupledTerms, lines: Lines, rounding: Rounding, u: Bounded, subtracted: Bounded, decay: Bounded
) -> _Slopes:
    """C, B and D of section 9, of all states."""
    neuron, spikes = run.neuron, run.state("spikes")
    fired = exactly(spikes)
    drops_spikes = neuron.slayer or neuron.detached
    if neuron.reset == "none":
        return _Slopes([], [decay], [], [])
    if neuron.reset in ("zero", "value"):
        value = run.parameters.get("reset_to", torch.zeros_like(run.x[0]))
        moved = value - run.state("membrane")
        size = value.abs() + u.terms if rounding.loop else moved.abs()  # the loop takes the two apart
        difference = Bounded(size, u.error + rounding.gamma(1) * (size + u.error))
        return _Slopes(
            [] if drops_spikes else [decay, difference],
            [decay] if neuron.slayer else [decay, _kept(lines, spikes)],
            [],
            [decay, fired] if neuron.reset == "value" else [],
        )
    factors = [decay] if neuron.reset == "subtract_decayed" else []
    tied = run.has("adapt_threshold") and not run.has("reset_by")
    return _Slopes(
        [] if drops_spikes else [*factors, subtracted],
        [decay],
        [*factors, exactly(run.parameters["adapt_threshold"]), fired] if tied and not neuron.slayer else [],
        [*factors, fired],
    )


def gradient_bounds(run: CoupledTerms, f: SurrogateBounds, offsets: Offsets, rounding: Rounding) -> dict[str, Bounded]:
    """Terms and errors of the gradients, (rows, ...); those of parameters are of one lane, not yet rounded for its sum.

    Args:
        f, offsets: f' (rows, time, lanes) and states (rows, time + 1, lanes), of what is bounded together.
    """
    lines, steps = Lines.backward(rounding), len(run.x)
    given = {name: exactly(values) for name, values in run.parameters.items()}
    u, i, w = (about(run.state(name), getattr(offsets, name)) for name in ("membrane", "current", "adaptation"))
    forward = Lines.forward(rounding)
    raised = _raised(given, forward, w)
    if "adapt_threshold" in given:
        first = run.parameters["threshold"] + run.parameters["adapt_threshold"] * run.first("adaptation")
        raised = about(torch.cat([first[None], run.threshold]), raised.error)
    subtracted = given.get("reset_by", raised)
    last = torch.ones_like(run.x[:1])  # of a step after the last, which nothing comes from
    decay = exactly(torch.cat([torch.where(run.held, 1.0, run.parameters["alpha"]), last]))
    slopes = _slopes(run, lines, rounding, u, subtracted, decay)
    zero = torch.zeros_like(f.error[:, 0])
    nothing = Bounded(zero, zero)

    def term(factors: _Factors, step: int, *more: Bounded) -> list[tuple[Bounded, ...]]:
        """A term of a line of one state, if there is one."""
        each = [at(factor, step) if factor.terms.dim() > 1 else factor for factor in factors]
        return [(*each, *more)] if factors else []

    def given_term(name: str, *more: Bounded) -> list[tuple[Bounded, ...]]:
        return [(given[name], *more)] if name in given else []

    g, h = (exactly(grads.expand_as(f.value)) for grads in (run.grad_spikes, run.grad_membrane))
    value = Bounded(torch.where(run.held, 0.0, f.value), torch.where(run.held, 0.0, f.error))
    by_spikes, unclipped, moved, adapted, current = [], [], [nothing], [nothing], [nothing]
    for state in range(steps, -1, -1):  # that of step t, the steps after it counted from t + 1
        t, p, adaptation = state - 1, moved[-1], adapted[-1]
        fed_back = [] if run.neuron.slayer else given_term("adapt_by", adaptation)
        through = [*term(slopes.by_spikes, state, p), *fed_back]
        rest = [*term(slopes.direct, state, p), *given_term("adapt_membrane", adaptation)]
        into_adaptation = [*given_term("adapt_alpha", adaptation), *term(slopes.by_adaptation, state, p)]
        into_current = given_term("synapse_alpha", current[-1])
        if run.neuron.delayed:
            into_current += given_term("synapse_gain", _free(run, p, state) if state < steps else nothing)
        if t < 0:
            break
        ds = lines(term([g], t)[0], *through)
        by_spikes.append(ds)
        unclipped.append(lines((at(value, t), ds), term([h], t)[0], *rest))
        moved.append(where(run.clipped[t], nothing, unclipped[-1]))
        free = _free(run, moved[-1], t)
        if run.has("adapt_alpha"):
            raising = given_term("adapt_threshold", at(value, t), ds)
            adapted.append(lines(*into_adaptation, *raising, *given_term("adapt_current", free)))
        if run.has("synapse_alpha"):
            driving = [] if run.neuron.delayed else given_term("synapse_gain", free)
            current.append(lines(*into_current, *driving))
    found = {
        "initial_membrane": lines(*rest),
        "initial_spikes": lines(*through) if through else nothing,
        "initial_current": lines(*into_current) if into_current else nothing,
        "initial_adaptation": lines(*into_adaptation) if into_adaptation else nothing,
    }
    p, ds = _in_time(moved[1:]), _in_time(by_spikes)
    free = where(run.held, Bounded(torch.zeros_like(p.terms), torch.zeros_like(p.error)), p)
    before, after = slice(0, steps), slice(1, None)

    def total(*factors: Bounded) -> Bounded:
        product = lines(factors)
        return Bounded(product.terms.sum(1), product.error.sum(1))

    def states(bounded: Bounded, which: slice) -> Bounded:
        if bounded.terms.dim() < 2:
            return bounded
        return Bounded(bounded.terms[..., which, :], bounded.error[..., which, :])

    spikes = exactly(run.state("spikes"))
    retained = _retained(run, forward, u, run.state("spikes"), subtracted)
    by_reset = [states(factor, before) for factor in slopes.by_reset]
    off = Bounded(torch.where(run.clipped, 1.0, 0.0), torch.zeros_like(run.x))
    found |= {
        "input": _in_time(current[1:]) if run.has("synapse_alpha") else free,
        "alpha": total(free, states(retained, before)),
        "threshold": total(value, ds),
        "min_membrane": total(off, _in_time(unclipped)),
        "reset_by": nothing,
        "reset_to": nothing,
    }
    if by_reset:
        found["reset_to" if run.neuron.reset == "value" else "reset_by"] = total(*by_reset, p)
    if run.has("synapse_alpha"):
        later = _in_time(current[1:])
        found["synapse_alpha"] = total(later, states(i, before))
        found["synapse_gain"] = total(free, states(i, before if run.neuron.delayed else after))
    if run.has("adapt_alpha"):
        later = _in_time(adapted[1:])
        found["adapt_alpha"] = total(later, states(w, before))
        found["adapt_membrane"] = total(later, states(u, before))
        found["adapt_by"] = total(later, states(spikes, before))
        found["adapt_current"] = total(free, states(w, after))
        found["adapt_threshold"] = total(value, ds, states(w, after))
    if not run.has("reset_by") and run.neuron.reset in ("subtract", "subtract_decayed"):
        reset_by = found.pop("reset_by")
        found["threshold"] = _both(found["threshold"], reset_by)
        if run.has("adapt_threshold"):
            found["adapt_threshold"] = _both(found["adapt_threshold"], total(*by_reset, p, states(w, before)))
    return {name: Bounded(each.terms, RAISED * each.error) for name, each in found.items()}


def _free(run: CoupledTerms, moved: Bounded, t: int) -> Bounded:
    """What reaches the input of step t: nothing in the refractory period."""
    return Bounded(torch.where(run.held[t], 0.0, moved.terms), torch.where(run.held[t], 0.0, moved.error))


def _in_time(backwards: list[Bounded]) -> Bounded:
    """Steps that were computed from the last to the first, (rows, time, lanes)."""
    return Bounded(
        torch.stack([each.terms for each in reversed(backwards)], 1),
        torch.stack([each.error for each in reversed(backwards)], 1),
    )


def _both(one: Bounded, other: Bounded) -> Bounded:
    return Bounded(one.terms + other.terms, one.error + other.error)
