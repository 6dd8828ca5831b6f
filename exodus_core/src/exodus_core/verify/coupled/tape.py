"""Numbers that remember how they were computed, so that the chain rule runs back through them.

Values are rationals, gradients numbers that are worked with (arithmetic.py). A derivative that no rational is, as that
of most surrogates, is given with `Tape.step`.
"""

from __future__ import annotations

from collections.abc import Iterable

from exodus_core.verify.arithmetic import Number


class Variable:
    """A value, and the derivatives of it by the variables that it was computed of."""

    __slots__ = ("derivatives", "gradient", "tape", "value")

    def __init__(self, tape: Tape, value: Number, derivatives: list[tuple[Variable, Number]]) -> None:
        self.tape = tape
        self.value = value
        self.derivatives = derivatives
        self.gradient: Number = 0

    def detached(self) -> Variable:
        """The value, through which no gradient passes."""
        return Variable(self.tape, self.value, [])

    def __add__(self, other: Variable) -> Variable:
        return self.tape.step(self.value + other.value, [(self, 1), (other, 1)])

    def __sub__(self, other: Variable) -> Variable:
        return self.tape.step(self.value - other.value, [(self, 1), (other, -1)])

    def __mul__(self, other: Variable) -> Variable:
        return self.tape.step(self.value * other.value, [(self, other.value), (other, self.value)])


class Tape:
    """The variables of one computation, in the order in which they were computed."""

    def __init__(self) -> None:
        self.computed: list[Variable] = []

    def variable(self, value: Number) -> Variable:
        """A variable that is computed of no others."""
        return Variable(self, value, [])

    def step(self, value: Number, derivatives: Iterable[tuple[Variable, Number]]) -> Variable:
        """A variable with the derivatives by those that it was computed of."""
        found = Variable(self, value, list(derivatives))
        self.computed.append(found)
        return found

    def differentiate(self) -> None:
        """Carries the gradients that variables have been given back to all that they were computed of."""
        for variable in reversed(self.computed):
            gradient = variable.gradient
            if isinstance(gradient, int) and gradient == 0:
                continue  # nothing that the loss sees
            for source, derivative in variable.derivatives:
                if not isinstance(derivative, int):
                    source.gradient = source.gradient + derivative * gradient
                elif derivative:
                    source.gradient = source.gradient + (gradient if derivative == 1 else derivative * gradient)
