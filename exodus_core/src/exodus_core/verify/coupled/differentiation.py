"""Numbers that remember how they were computed, so that the chain rule runs back through them.

Values are rationals, gradients numbers that are worked with (arithmetic.py). The derivative of a spike, which may be no
rational, is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from exodus_core.verify.arithmetic import Number

_computed = count()


class Variable:
    """A value, and the derivatives of it by the variables that it was computed of."""

    __slots__ = ("derivatives", "gradient", "number", "value")

    def __init__(self, value: Number, *derivatives: tuple[Variable, Number]) -> None:
        self.value = value
        self.derivatives = derivatives
        self.gradient: Number = 0
        self.number = next(_computed)  # larger than those of all that it was computed of

    def detached(self) -> Variable:
        """The value, through which no gradient passes."""
        return Variable(self.value)

    def __add__(self, other: Variable) -> Variable:
        return Variable(self.value + other.value, (self, 1), (other, 1))

    def __sub__(self, other: Variable) -> Variable:
        return Variable(self.value - other.value, (self, 1), (other, -1))

    def __mul__(self, other: Variable) -> Variable:
        return Variable(self.value * other.value, (self, other.value), (other, self.value))


def differentiate(variables: Iterable[Variable]) -> None:
    """Carries the gradients that variables have been given back to all that they were computed of."""
    found: dict[int, Variable] = {}
    waiting = list(variables)
    while waiting:
        variable = waiting.pop()
        if variable.number not in found:
            found[variable.number] = variable
            waiting += [source for source, _ in variable.derivatives]
    for number in sorted(found, reverse=True):
        gradient = found[number].gradient
        if isinstance(gradient, int) and gradient == 0:
            continue  # nothing that the loss sees
        for source, derivative in found[number].derivatives:
            if not isinstance(derivative, int):
                source.gradient = source.gradient + derivative * gradient
            elif derivative:
                source.gradient = source.gradient + (gradient if derivative == 1 else derivative * gradient)
