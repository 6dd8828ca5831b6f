"""Checks of what callers give: numbers, arrays of numbers, names out of a few.

A number of numpy is as good as one of Python, and becomes one: it travels, and clocks, sockets and locks take no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from exodus_client.wire import Tensor, is_torch
from exodus_client.wire.bounds import sentence
from exodus_client.wire.tensor import widen

Error = TypeVar("Error", TypeError, ValueError)

#: The largest integer of a setting.
LARGEST = 2**31 - 1
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from low to high; `above`: without low."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"
        if self.low > -math.inf:
            return f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return "a number"

    def has(self, values: Any) -> Any:
        """True for those within; elementwise, and never if one is NaN."""
        return ((values > self.low) if self.above else (values >= self.low)) & (values <= self.high)


ANY = Range()
DECAY = Range(0, 1)
POSITIVE = Range(0, above=True)


def unfit(kind: type[Error], name: str, expected: str, got: object, advice: str = "") -> Error:
    """The error of a kind for an argument that does not fit."""
    return kind(sentence(name, expected, got, advice))


def one_of(name: str, given: Any, known: Iterable[str]) -> str:
    """One of a few names. Raises ValueError."""
    if not isinstance(given, str) or given not in known:
        raise unfit(ValueError, name, f"one of {', '.join(known)}", shown(given))
    return given


def is_real(given: object) -> bool:
    """True for a real number of Python or numpy: no boolean, and no array."""
    return isinstance(given, Real) and not isinstance(given, bool)


def real(name: str, given: Any, within: Range = ANY) -> float:
    """A finite number within a range. Raises TypeError, ValueError."""
    if not is_real(given):
        raise TypeError(f"{name} must be a number, got {shown(given)}")
    try:
        number = float(given)
    except OverflowError:  # an integer beyond all floats
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {shown(given)}")
    if not within.has(number):
        raise ValueError(f"{name} must be {within}, got {shown(given)}")
    return number


def integer(name: str, given: Any, low: int, high: int = LARGEST) -> int:
    """An integer from low to high. Raises TypeError, ValueError."""
    wanted = f"an integer of at least {low}" if high >= LARGEST else f"an integer from {low} to {high}"
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise TypeError(f"{name} must be {wanted}, got {shown(given)}")
    found = int(given)
    if not low <= found <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {shown(given)}")
    return found


def flag(name: str, given: Any) -> bool:
    """True or False, of Python or numpy. Raises TypeError: a text, a number or None has no truth that is meant."""
    if not isinstance(given, bool | np.bool_):
        raise unfit(TypeError, name, "True or False", shown(given))
    return bool(given)


def check_parameter(name: str, given: Any, within: Range = ANY) -> None:
    """Refuse what is neither a finite number nor an array of numbers, all within a range.

    Elements of an array may be infinite, as a lower bound that is none; NaN they may not be.

    Raises:
        TypeError: it is something else.
        ValueError: a number is out of range, or NaN.
    """
    if is_real(given):
        real(name, given, within)
        return
    elements = elements_of(name, given)
    fits = within.has(elements)
    if not fits.all():
        place = np.argwhere(~fits)[0].tolist()
        at = f" at {place}" if place else ""
        raise ValueError(f"{name} must be {within}, got {elements[tuple(place)]:.9g}{at}")


def elements_of(name: str, given: Any) -> npt.NDArray[Any]:
    """The elements of an array of numbers, of any kind that can travel. Raises TypeError."""
    try:
        tensor = Tensor.of(name, given)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number or an array of numbers, got {_kind(given)}") from error
    if tensor.dtype == "bool":
        raise TypeError(f"{name} must be a number or an array of numbers, got {_kind(given)}")
    return values_of(tensor)


def values_of(tensor: Tensor) -> npt.NDArray[Any]:
    """The elements of a tensor as the numbers that they are."""
    stored = tensor.stored()
    return widen(stored) if tensor.dtype == "bfloat16" else stored


def shown(given: object) -> str:
    """A value for an error message: numbers and texts as they are, cut short, and the rest by its type."""
    if isinstance(given, np.generic):
        given = given.item()
    if isinstance(given, int) and given.bit_length() > 256:
        return f"an integer of {given.bit_length()} bits"
    if not isinstance(given, int | float | str | bytes):
        return type(given).__name__
    text = repr(given)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _kind(given: Any) -> str:
    """The kind of an array, or of something else, for an error message."""
    if is_torch(given):
        layout = str(given.layout).removeprefix("torch.")
        return f"a {layout} tensor of {given.dtype}"
    if isinstance(given, np.ndarray):
        return f"an array of {given.dtype}"
    return shown(given)
