"""Schema of plain data (JSON): reads it into frozen dataclasses, or raises an error with a JSON pointer to the fault.

A dataclass declares its fields as name: Annotated[type, check, meaning]. Reading, error messages and the tables of the
guide all come from these declarations.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from exodus_core.errors import DescriptionError

LARGEST = 2**31 - 1
_SHOWN = 80
# Python may be set to refuse more than 640 decimal digits.
_SHOWN_BITS = 2048


class _Shortened(reprlib.Repr):
    """repr() that reads no more of a value than it shows, however long, deep or large it is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20
        self.maxstring = self.maxother = _SHOWN + 1

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= _SHOWN_BITS else f"an integer of {x.bit_length()} bits"


_repr = _Shortened().repr


def shown(value: object) -> str:
    """A value for an error message, truncated."""
    text = _repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


@dataclass(frozen=True)
class Place:
    """Location of a value in the data, and the class of the errors about it."""

    pointer: str
    error: type[DescriptionError]

    def at(self, key: str | int) -> Place:
        return Place(f"{self.pointer}/" + str(key).replace("~", "~0").replace("/", "~1"), self.error)

    def refuse(self, expected: str, got: object) -> DescriptionError:
        """The error to raise; `got` is the value found."""
        return self.error(self.pointer, expected, shown(got))

    def refuse_as(self, expected: str, got: str) -> DescriptionError:
        """The error to raise; `got` describes in words what was found."""
        return self.error(self.pointer, expected, got)


@dataclass(frozen=True)
class Check:
    """Check of a field: the valid values in words, and a function that returns a value normalised, or raises."""

    wanted: str
    read: Callable[[Any, Place], Any]


@dataclass(frozen=True)
class Described:
    """A field of a dataclass: its name, check, meaning and default."""

    name: str
    check: Check
    meaning: str
    default: Any  # dataclasses.MISSING if required


@functools.cache
def described(cls: type[Any]) -> tuple[Described, ...]:
    """The fields that a dataclass declares as name: Annotated[type, check, meaning]; others are read elsewhere."""
    hints = get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        if get_origin(hints[field.name]) is Annotated:
            _, check, meaning = get_args(hints[field.name])
            found.append(Described(field.name, check, meaning, field.default))
    return tuple(found)


Record = TypeVar("Record")


def read_record(cls: type[Record], value: object, place: Place, ignore: Sequence[str] = ()) -> Record:
    """The dataclass that a mapping describes; the caller reads the names in `ignore`."""
    if not isinstance(value, Mapping):
        raise place.refuse("an object", value)
    fields = {field.name: field for field in described(cls)}  # type: ignore[arg-type]
    for key in value:
        if key not in fields and key not in ignore:
            raise place.at(key).refuse(f"absent (the fields are {', '.join([*ignore, *fields])})", value[key])
    found = {}
    for name, field in fields.items():
        if name in value:
            found[name] = field.check.read(value[name], place.at(name))
        elif field.default is dataclasses.MISSING:
            raise place.at(name).refuse_as(field.check.wanted, "nothing")
    return cls(**found)


def plain(value: Any) -> Any:
    """The inverse of reading: dataclasses become objects, tuples become lists.

    A dataclass may name fields in `left_out_by_default`, which are left out where they have their default: data that
    was written before there were such fields stays the same.
    """
    if dataclasses.is_dataclass(value):
        kind = getattr(value, "kind", None)
        fields = dataclasses.fields(value)
        own = {} if kind is None or "kind" in {f.name for f in fields} else {"kind": kind}
        left_out = getattr(value, "left_out_by_default", ())
        found = {f.name: getattr(value, f.name) for f in fields}
        shown = {f.name for f in fields if f.name not in left_out or found[f.name] != f.default}
        return own | {name: plain(each) for name, each in found.items() if name in shown}
    return [plain(v) for v in value] if isinstance(value, tuple) else value


def integer(low: int, high: int = LARGEST) -> Check:
    """An integer from low to high, NumPy's too."""
    within = f"an integer from {low} to {high}"
    wanted = f"an integer of at least {low}" if high == LARGEST else within

    def read(value: Any, place: Place) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
            raise place.refuse(wanted, value)
        if int(value) > high:
            raise place.refuse(within, value)
        return int(value)

    return Check(wanted, read)


def _interval(low: float, high: float, above: bool, below: bool) -> str:
    if high < math.inf:
        return f" in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
    if low > -math.inf:
        return f" above {low:g}" if above else f" of at least {low:g}"
    return ""


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False) -> Check:
    """A finite number from low to high, NumPy's too; `above`, `below`: without low, without high."""
    wanted = "a number" + _interval(low, high, above, below)

    def read(value: Any, place: Place) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise place.refuse(wanted, value)
        try:
            found = float(value)
        except OverflowError:
            raise place.refuse(wanted, value) from None
        fits = math.isfinite(found) and low <= found <= high
        if not fits or (above and found == low) or (below and found == high):
            raise place.refuse(wanted, value)
        return found

    return Check(wanted, read)


def _read_boolean(value: Any, place: Place) -> bool:
    if not isinstance(value, bool):
        raise place.refuse("true or false", value)
    return value


boolean = Check("true or false", _read_boolean)


def choice(*names: str) -> Check:
    """One of some strings."""
    wanted = "one of " + ", ".join(names)

    def read(value: Any, place: Place) -> str:
        if not isinstance(value, str) or value not in names:
            raise place.refuse(wanted, value)
        return value

    return Check(wanted, read)


def optional(check: Check) -> Check:
    """null, or a value that another check accepts."""

    def read(value: Any, place: Place) -> Any:
        return None if value is None else check.read(value, place)

    return Check(f"{check.wanted}, or null", read)


def array(check: Check, length: int | None = None) -> Check:
    """A list, of a given length or not empty, of values that another check accepts; read as a tuple."""
    wanted = f"a list of {'one or more' if length is None else length}, each {check.wanted}"

    def read(value: Any, place: Place) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not value or length not in (None, len(value)):
            raise place.refuse(wanted, value)
        return tuple(check.read(v, place.at(i)) for i, v in enumerate(value))

    return Check(wanted, read)


def some_of(*names: str) -> Check:
    """A list of some of these names, each once; read as a tuple in the order given here."""
    wanted = "a list of names of " + ", ".join(names)

    def read(value: Any, place: Place) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise place.refuse(wanted, value)
        for i, name in enumerate(value):
            if name not in names or name in value[:i]:
                raise place.at(i).refuse(f"one of {', '.join(names)}, each once", name)
        return tuple(name for name in names if name in value)

    return Check(wanted, read)


def either(scalar: Check, dimensions: int | None) -> Check:
    """One value for all `dimensions`, or a list with one for each; None: how many is checked elsewhere."""
    several = array(scalar, dimensions)
    listed = f"a list of {dimensions}" if dimensions else "a list with one for each dimension"
    wanted = scalar.wanted if dimensions == 1 else f"{scalar.wanted}, or {listed}"

    def read(value: Any, place: Place) -> Any:
        return (several if isinstance(value, list | tuple) else scalar).read(value, place)

    return Check(wanted, read)


def nested(scalar: Check, depth: int = 8) -> Check:
    """A number, or a (nested, rectangular) list of numbers; lists are read as tuples."""
    wanted = f"{scalar.wanted}, or a list of such"

    def read_at(value: Any, place: Place, left: int) -> Any:
        if not isinstance(value, list | tuple):
            return scalar.read(value, place)
        if not value or not left:
            raise place.refuse(wanted, value)
        found = tuple(read_at(v, place.at(i), left - 1) for i, v in enumerate(value))
        for i, v in enumerate(found):
            if extent(v) != extent(found[0]):
                raise place.at(i).refuse(f"as many values as there are in {place.at(0).pointer}", value[i])
        return found

    return Check(wanted, lambda value, place: read_at(value, place, depth))


def extent(values: Any) -> tuple[int, ...]:
    """The shape of what `nested` reads: () for a number."""
    return (len(values), *extent(values[0])) if isinstance(values, tuple) else ()


def record(cls: type[Any]) -> Check:
    """An object that describes a dataclass."""
    return Check("an object", lambda value, place: read_record(cls, value, place))
