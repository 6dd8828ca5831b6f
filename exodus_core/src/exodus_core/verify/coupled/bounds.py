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


@dataclass(frozen=True)
class _Slopes:
    """The partial derivatives of what u[t+1] is before it is raised to the lower bound, by s, u and w of step t.

    Each is a product of factors, one for each state or for all; without a factor it is 0. `by_reset` is that by ρ or v.
    """

    by_spikes: list[Bounded]
    direct: list[Bounded]
    by_adaptation: list[Bounded]
    by_reset: list[Bounded]


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


@dataclass(frozen=True)
class _Later:
    """The adjoint of the step after: P, W and I of section 9."""

    moved: Bounded
    adaptation: Bounded
    current: Bounded


_Line = list[tuple[Bounded, ...]]


@dataclass(frozen=True)
class _Received:
    """The terms of the gradients of a state that come from the step after it."""

    spikes: _Line
    membrane: _Line
    adaptation: _Line
    current: _Line


class _Backward:
    """The backward equations of section 9 as lines, from the last step to the first."""

    def __init__(self, run: CoupledTerms, f: SurrogateBounds, offsets: Offsets, rounding: Rounding) -> None:
        self.run = run
        self.given = {name: exactly(values) for name, values in run.parameters.items()}
        self.lines = Lines.backward(rounding)
        self.f = Bounded(torch.where(run.held, 0.0, f.value), torch.where(run.held, 0.0, f.error))
        self.nothing = Bounded(torch.zeros_like(f.error[:, 0]), torch.zeros_like(f.error[:, 0]))
        self.grad_spikes, self.grad_membrane = (
            exactly(grads.expand_as(f.value)) for grads in (run.grad_spikes, run.grad_membrane)
        )
        self.u, self.i, self.w = (
            about(run.state(name), getattr(offsets, name)) for name in ("membrane", "current", "adaptation")
        )
        forward = Lines.forward(rounding)
        self.subtracted = self.given.get("reset_by", self._raised(forward))
        self.retained = _retained(run, forward, self.u, run.state("spikes"), self.subtracted)
        last = torch.ones_like(run.x[:1])  # of a step after the last, which nothing comes from
        decay = exactly(torch.cat([torch.where(run.held, 1.0, run.parameters["alpha"]), last]))
        self.slopes = _slopes(run, self.lines, rounding, self.u, self.subtracted, decay)
        # Of steps, from the last to the first.
        self.by_spikes: list[Bounded] = []
        self.unclipped: list[Bounded] = []
        self.later = [_Later(self.nothing, self.nothing, self.nothing)]
        for t in range(len(run.x) - 1, -1, -1):
            self._step(t)

    def _raised(self, lines: Lines) -> Bounded:
        """The thresholds that the spikes of all states were fired at."""
        raised = _raised(self.given, lines, self.w)
        if "adapt_threshold" not in self.given:
            return raised
        given, first = self.run.parameters, self.run.first("adaptation")
        initial = given["threshold"] + given["adapt_threshold"] * first
        return about(torch.cat([initial[None], self.run.threshold]), raised.error)

    def _term(self, name: str, *factors: Bounded) -> _Line:
        """A term with a parameter, if there is one of that name."""
        return [(self.given[name], *factors)] if name in self.given else []

    def free(self, t: int, moved: Bounded) -> Bounded:
        """The gradient that reaches the input of step t: none in the refractory period."""
        return where(self.run.held[t], self.nothing, moved)

    def received(self, state: int) -> _Received:
        """The terms that the last step which was computed hands to the state before it, counted from 0."""
        later = self.later[-1]

        def through(slope: list[Bounded]) -> _Line:
            factors = [at(factor, state) if factor.terms.dim() > 1 else factor for factor in slope]
            return [(*factors, later.moved)] if slope else []

        fed_back = [] if self.run.neuron.slayer else self._term("adapt_by", later.adaptation)
        late = self.run.neuron.delayed and state < len(self.run.x)
        return _Received(
            spikes=through(self.slopes.by_spikes) + fed_back,
            membrane=through(self.slopes.direct) + self._term("adapt_membrane", later.adaptation),
            adaptation=self._term("adapt_alpha", later.adaptation) + through(self.slopes.by_adaptation),
            current=self._term("synapse_alpha", later.current)
            + (self._term("synapse_gain", self.free(state, later.moved)) if late else []),
        )

    def _step(self, t: int) -> None:
        run, lines, received, f = self.run, self.lines, self.received(t + 1), at(self.f, t)
        by_spikes = lines((at(self.grad_spikes, t),), *received.spikes)
        unclipped = lines((f, by_spikes), (at(self.grad_membrane, t),), *received.membrane)
        moved = where(run.clipped[t], self.nothing, unclipped)
        free = self.free(t, moved)
        adaptation = current = self.nothing
        if run.has("adapt_alpha"):
            raising = self._term("adapt_threshold", f, by_spikes)
            adaptation = lines(*received.adaptation, *raising, *self._term("adapt_current", free))
        if run.has("synapse_alpha"):
            driving = [] if run.neuron.delayed else self._term("synapse_gain", free)
            current = lines(*received.current, *driving)
        self.by_spikes.append(by_spikes)
        self.unclipped.append(unclipped)
        self.later.append(_Later(moved, adaptation, current))

    def initial(self) -> dict[str, Bounded]:
        """The gradients of the state before the first step."""
        received = self.received(0)
        return {f"initial_{name}": self.lines(*line) if line else self.nothing for name, line in vars(received).items()}

    def others(self) -> dict[str, Bounded]:
        """The gradients of the input, and those of the parameters of each lane."""
        run, lines, f = self.run, self.lines, self.f
        moved, adapted, current = (
            _in_time([getattr(each, name) for each in self.later[1:]]) for name in ("moved", "adaptation", "current")
        )
        by_spikes, unclipped = _in_time(self.by_spikes), _in_time(self.unclipped)
        free = Bounded(torch.where(run.held, 0.0, moved.terms), torch.where(run.held, 0.0, moved.error))
        spikes = exactly(run.state("spikes"))

        def total(*factors: Bounded) -> Bounded:
            product = lines(factors)
            return Bounded(product.terms.sum(1), product.error.sum(1))

        found = {
            "input": current if run.has("synapse_alpha") else free,
            "alpha": total(free, _before(self.retained)),
            "threshold": total(f, by_spikes),
            "min_membrane": total(exactly(run.clipped.double()), unclipped),
            "synapse_alpha": total(current, _before(self.i)),
            "synapse_gain": total(free, _before(self.i) if run.neuron.delayed else _after(self.i)),
            "adapt_alpha": total(adapted, _before(self.w)),
            "adapt_membrane": total(adapted, _before(self.u)),
            "adapt_by": total(adapted, _before(spikes)),
            "adapt_current": total(free, _after(self.w)),
            "adapt_threshold": total(f, by_spikes, _after(self.w)),
        }
        reset = [_before(factor) for factor in self.slopes.by_reset]
        by_reset = total(*reset, moved) if reset else self.nothing
        if run.has("reset_by") or run.has("reset_to"):
            return {**found, "reset_by": by_reset, "reset_to": by_reset}
        found["threshold"] = _both(found["threshold"], by_reset)
        if reset:
            found["adapt_threshold"] = _both(found["adapt_threshold"], total(*reset, moved, _before(self.w)))
        return found


def gradient_bounds(run: CoupledTerms, f: SurrogateBounds, offsets: Offsets, rounding: Rounding) -> dict[str, Bounded]:
    """Terms and errors of the gradients, (rows, ...); those of parameters are of one lane, not yet rounded for its sum.

    Args:
        f, offsets: f' (rows, time, lanes) and states (rows, time + 1, lanes), of what is bounded together.
    """
    backward = _Backward(run, f, offsets, rounding)
    found = backward.initial() | backward.others()
    return {name: Bounded(each.terms, RAISED * each.error) for name, each in found.items()}


def _before(states: Bounded) -> Bounded:
    """The states before each step; numbers of lanes as they are."""
    return states if states.terms.dim() < 2 else Bounded(states.terms[..., :-1, :], states.error[..., :-1, :])


def _after(states: Bounded) -> Bounded:
    """The states after each step."""
    return Bounded(states.terms[..., 1:, :], states.error[..., 1:, :])


def _in_time(backwards: list[Bounded]) -> Bounded:
    """Steps that were computed from the last to the first, (rows, time, lanes)."""
    return Bounded(
        torch.stack([each.terms for each in reversed(backwards)], 1),
        torch.stack([each.error for each in reversed(backwards)], 1),
    )


def _both(one: Bounded, other: Bounded) -> Bounded:
    return Bounded(one.terms + other.terms, one.error + other.error)
