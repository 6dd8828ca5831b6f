"""One lane without rounding error: section 9 of docs/equations.md, forward, and the chain rule back through it.

Spikes, the steps at which a membrane was raised to its lower bound, and so the refractory periods, are decisions: they
are taken as a program made them. Nothing here knows the formulas of a backward pass: the gradients are those of the
forward equations, operation by operation (differentiation.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from exodus_core.verify.arithmetic import Number
from exodus_core.verify.coupled.differentiation import Variable, differentiate


@dataclass(frozen=True)
class CoupledNeuron:
    """Which equations of section 9 a neuron has, but for the variables, which its parameters tell.

    Args:
        reset: "subtract", "subtract_decayed", "zero", "value" or "none".
        delayed: the membrane sees the current of the step before.
        slayer: spikes hand nothing back to the state of the neuron.
        detached: spikes are constants in the reset.
    """

    reset: str
    delayed: bool
    slayer: bool
    detached: bool


@dataclass(frozen=True)
class CoupledLane:
    """The constants of one neuron and its state before the first step, rationals by name.

    A parameter that is not there has no term: without `synapse_alpha` the membrane sees the input, without
    `adapt_alpha` there is no adaptation, and a spike subtracts the threshold, as far as it is raised, without
    `reset_by`.
    """

    neuron: CoupledNeuron
    parameters: dict[str, Number]
    initial: dict[str, Number]


@dataclass(frozen=True)
class Steps:
    """Input of a lane and the decisions of the program, one element a step."""

    x: Sequence[Number]
    spikes: Sequence[int]
    clipped: Sequence[bool]
    held: Sequence[bool]


@dataclass(frozen=True)
class CoupledValues:
    """Of each step u, what it would be without the lower bound, i, w, and the threshold."""

    membrane: list[Number]
    integrated: list[Number]
    current: list[Number]
    adaptation: list[Number]
    threshold: list[Number]


class CoupledTrace:
    """A lane, computed, whose gradients can be asked for.

    Args:
        lane, steps: see there.
        membrane: membranes that stand in the place of the computed ones, such as those of a program.
        derivative: f' as a function of u - threshold.
    """

    def __init__(
        self,
        lane: CoupledLane,
        steps: Steps,
        membrane: Sequence[Number] | None,
        derivative: Callable[[Number], Number],
    ) -> None:
        self._neuron = lane.neuron
        self._parameters = {name: Variable(value) for name, value in lane.parameters.items()}
        self._initial = {name: Variable(value) for name, value in lane.initial.items()}
        self._x = [Variable(value) for value in steps.x]
        self._u: list[Variable] = []
        self._s: list[Variable] = []
        self.values = CoupledValues([], [], [], [], [])
        self._run(steps, membrane, derivative)

    def _run(self, steps: Steps, membrane: Sequence[Number] | None, derivative: Callable[[Number], Number]) -> None:
        neuron, given, values = self._neuron, self._parameters, self.values
        zero = Variable(0)
        u, s = self._initial["membrane"], self._initial["spikes"]
        i, w = self._initial.get("current", zero), self._initial.get("adaptation", zero)
        for t, x in enumerate(self._x):
            before, kept_spikes = u, s.detached() if neuron.slayer or neuron.detached else s
            raised = self._raised(w.detached() if neuron.slayer else w)
            subtracted = given.get("reset_by", raised)
            drive, i = self._driven(x, i)
            w = self._adapted(w, before, s.detached() if neuron.slayer else s)
            retained = self._retained(before, kept_spikes, subtracted)
            taken = subtracted * kept_spikes if neuron.reset == "subtract" else None
            if steps.held[t]:
                moved = retained
            else:
                moved = given["alpha"] * retained + drive
                if "adapt_current" in given:
                    moved = moved - given["adapt_current"] * w
            if taken is not None:
                moved = moved - taken
            source = given["min_membrane"] if steps.clipped[t] else moved
            u = Variable(source.value if membrane is None else membrane[t], (source, 1))
            threshold = self._raised(w)
            s = self._fired(u, threshold, steps.spikes[t], None if steps.held[t] else derivative)
            self._u.append(u)
            self._s.append(s)
            values.membrane.append(u.value)
            values.integrated.append(moved.value)
            values.current.append(i.value)
            values.adaptation.append(w.value)
            values.threshold.append(threshold.value)

    def _driven(self, x: Variable, before: Variable) -> tuple[Variable, Variable]:
        """d[t] and i[t]."""
        given = self._parameters
        if "synapse_alpha" not in given:
            return x, before
        current = given["synapse_alpha"] * before + x
        return given["synapse_gain"] * (before if self._neuron.delayed else current), current

    def _adapted(self, before: Variable, u: Variable, s: Variable) -> Variable:
        """w[t]"""
        given = self._parameters
        if "adapt_alpha" not in given:
            return before
        adaptation = given["adapt_alpha"] * before + given["adapt_by"] * s
        return adaptation + given["adapt_membrane"] * u if "adapt_membrane" in given else adaptation

    def _raised(self, w: Variable) -> Variable:
        """The threshold."""
        given = self._parameters
        return given["threshold"] + given["adapt_threshold"] * w if "adapt_threshold" in given else given["threshold"]

    def _retained(self, u: Variable, s: Variable, subtracted: Variable) -> Variable:
        """r; SLAYER differentiates u (1 - s) as if it were u."""
        if self._neuron.reset == "subtract_decayed":
            return u - subtracted * s
        if self._neuron.reset not in ("zero", "value"):
            return u
        retained = u - (u.detached() if self._neuron.slayer else u) * s
        return retained + self._parameters["reset_to"] * s if self._neuron.reset == "value" else retained

    def _fired(
        self, u: Variable, threshold: Variable, count: int, derivative: Callable[[Number], Number] | None
    ) -> Variable:
        """s[t]; without a derivative a constant, in the refractory period."""
        if derivative is None:
            return Variable(count)
        slope = derivative(u.value - threshold.value)
        return Variable(count, (u, slope), (threshold, -slope))

    def gradients(self, grad_spikes: Sequence[Number], grad_membrane: Sequence[Number]) -> dict[str, Number]:
        """dL/d(argument) by name, that of `input` a list; to be asked for once."""
        for variables, gradients in ((self._s, grad_spikes), (self._u, grad_membrane)):
            for variable, gradient in zip(variables, gradients, strict=True):
                variable.gradient = gradient
        differentiate([*self._s, *self._u])
        zero = 0 * grad_spikes[0]  # the number of what the loss does not see
        found = {f"initial_{name}": zero + variable.gradient for name, variable in self._initial.items()}
        found |= {name: zero + variable.gradient for name, variable in self._parameters.items()}
        return {"input": [zero + variable.gradient for variable in self._x], **found}
