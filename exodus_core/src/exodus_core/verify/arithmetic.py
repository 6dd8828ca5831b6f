"""Numbers without rounding error: rationals, and balls that are proved to contain a number.

A rational is a `flint.fmpq` where python-flint is installed, else a `fractions.Fraction`, which gives the same results
many times slower. A ball is a `flint.arb`: a midpoint and a radius, which every operation keeps an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import Any, TypeVar

from torch import Tensor

from exodus_core.errors import ArgumentError
from exodus_core.surrogate import Surrogate

#: A rational or a ball; both take + - * / with each other and with integers.
Number = Any

Found = TypeVar("Found")

#: Surrogates whose value at a rational is a rational.
RATIONAL_KINDS = frozenset({"boxcar", "triangle", "fast_sigmoid"})

#: Steps up to which gradients are computed as rationals, if they are any: their digits grow with the square of it.
MOST_RATIONAL_STEPS = 32

#: Bits of the midpoint of a ball: the first number, and the largest that is tried where radii are too large.
BITS, MOST_BITS = 256, 2**14

#: The largest radius of a ball in units in the last place of the number that it stands for.
MOST_RADIUS = 2.0**-10

# Floats that stand for a number of any size are this much too large, relatively, rather than too small.
_OUTWARD = 1 + 2.0**-40


def flint() -> ModuleType:
    """The module flint.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import flint
    except ModuleNotFoundError as error:
        if error.name != "flint":
            raise
        raise ModuleNotFoundError("balls need python-flint: pip install 'exodus-core[verify]'", name="flint") from error
    return flint


def has_flint() -> bool:
    """True if python-flint is installed."""
    try:
        flint()
    except ModuleNotFoundError:
        return False
    return True


@dataclass(frozen=True)
class Arithmetic:
    """How the numbers of a certificate are computed.

    Args:
        name: for people.
        rational: a rational from a float, or from an integer or a fraction.
        working: what gradients are computed with, from a rational.
        magnitude: a float at least as large as the absolute value of such a number, by 2^-40 of it at most.
        nearest: the float next to such a number.
        radius: how far such a number may be from the true one: 0 of a rational.
    """

    name: str
    rational: Callable[[float | Fraction], Number]
    working: Callable[[Number], Number]
    magnitude: Callable[[Number], float]
    nearest: Callable[[Number], float]
    radius: Callable[[Number], float]


def _float(number: Number) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _fractions() -> Arithmetic:
    return Arithmetic(
        "rationals, fractions of the standard library",
        rational=lambda value: Fraction(value),
        working=lambda number: number,
        magnitude=lambda number: _float(abs(number)) * _OUTWARD,
        nearest=_float,
        radius=lambda number: 0.0,
    )


def _flint_rationals() -> Arithmetic:
    fmpq, arb = flint().fmpq, flint().arb
    return Arithmetic(
        "rationals, fmpq of python-flint",
        rational=lambda value: fmpq(*value.as_integer_ratio()),
        working=lambda number: number,
        magnitude=lambda number: abs(float(arb(number))) * _OUTWARD,
        nearest=lambda number: float(arb(number)),
        radius=lambda number: 0.0,
    )


def _balls(bits: int) -> Arithmetic:
    fmpq, arb = flint().fmpq, flint().arb
    return Arithmetic(
        f"balls of {bits} bits, arb of python-flint",
        rational=lambda value: fmpq(*value.as_integer_ratio()),
        working=arb,
        magnitude=lambda number: float(number.abs_upper()) * _OUTWARD,
        nearest=lambda number: float(number.mid()),
        radius=lambda number: float(number.rad()),
    )


@contextmanager
def arithmetic_for(surrogate: Surrogate, steps: int, bits: int = BITS) -> Iterator[Arithmetic]:
    """The arithmetic for gradients of so many steps: rationals if they can be, else balls of so many bits.

    Raises:
        ModuleNotFoundError: balls are wanted, and python-flint is not installed.
    """
    # Products of boxcars have as many digits as a product of the inputs has.
    rational = surrogate.kind == "boxcar" or (surrogate.kind in RATIONAL_KINDS and steps <= MOST_RATIONAL_STEPS)
    if rational and not has_flint():
        yield _fractions()
        return
    module = flint()
    with module.ctx.workprec(bits):
        yield _flint_rationals() if rational else _balls(bits)


class WideBallError(ArithmeticError):
    """A ball says too little of the number in it: more bits are needed."""


def with_narrow_balls(surrogate: Surrogate, steps: int, compute: Callable[[Arithmetic], Found]) -> Found:
    """The result of `compute`; as long as it raises WideBallError, it is called again with twice the bits.

    Raises:
        ValueError: MOST_BITS are not enough.
        ModuleNotFoundError: balls are wanted, and python-flint is not installed.
    """
    bits = BITS
    while bits <= MOST_BITS:
        try:
            with arithmetic_for(surrogate, steps, bits) as arithmetic:
                return compute(arithmetic)
        except WideBallError:
            bits *= 2
    expected = f"a run whose exact gradients balls of {MOST_BITS} bits hold to 2^-10 units in the last place"
    raise ArgumentError("the run", expected, f"one of {steps} steps whose balls are wider")


def check_radii(true: Tensor, radius: Tensor, ulp: Tensor) -> None:
    """Checks that radii are far below the units in the last place of the numbers; those beyond float64 count as narrow.

    Raises:
        WideBallError: a radius is not.
    """
    narrow = (radius <= MOST_RADIUS * ulp) | true.isinf()
    if not bool(narrow.all()):
        raise WideBallError


def exact_derivative(surrogate: Surrogate, arithmetic: Arithmetic) -> Callable[[Number], Number]:
    """f' as a function of x = u - threshold, a rational (section 4 of docs/equations.md), in working numbers."""
    k, scale = arithmetic.rational(surrogate.slope), arithmetic.rational(surrogate.scale)
    working = arithmetic.working
    zero, height = working(0 * k), working(scale * k)

    def boxcar(x: Number) -> Number:
        return height if 2 * abs(k * x) <= 1 else zero

    def triangle(x: Number) -> Number:
        a = abs(k * x)
        return working(scale * (1 - a)) if a < 1 else zero

    def fast_sigmoid(x: Number) -> Number:
        q = working(1 + abs(k * x))
        return scale / (q * q)

    rational = {"boxcar": boxcar, "triangle": triangle, "fast_sigmoid": fast_sigmoid}
    if surrogate.kind in rational:
        return rational[surrogate.kind]

    arb = flint().arb
    pi = arb.pi()
    normal = height / (2 * pi).sqrt()

    def exponential(x: Number) -> Number:
        return scale * arb(-abs(k * x)).exp()

    def sigmoid(x: Number) -> Number:
        e = arb(-abs(k * x)).exp()
        return height * e / ((1 + e) * (1 + e))

    def arctan(x: Number) -> Number:
        y = pi / 2 * (k * x)
        return height / 2 / (1 + y * y)

    def tanh(x: Number) -> Number:
        e = arb(-2 * abs(k * x)).exp()
        return 4 * scale * e / ((1 + e) * (1 + e))

    def gaussian(x: Number) -> Number:
        a = k * x
        return normal * arb(-a * a / 2).exp()

    transcendental = {
        "exponential": exponential,
        "sigmoid": sigmoid,
        "arctan": arctan,
        "tanh": tanh,
        "gaussian": gaussian,
    }
    return transcendental[surrogate.kind]
