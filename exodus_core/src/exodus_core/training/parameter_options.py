"""Options of single layers or parameters: which are frozen, and the learning rates of others than the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exodus_core.schema import Check, Place, number
from exodus_core.training.meanings import meanings

_NOT_NEGATIVE = number(0)
#: Most names that an option may have.
MAX_NAMES = 4096


def _check_count(count: int, place: Place) -> None:
    if count > MAX_NAMES:
        raise place.refuse_as(f"of at most {MAX_NAMES} names", str(count))


def _read_names(value: Any, place: Place) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise place.refuse(names.wanted, value)
    _check_count(len(value), place)
    seen: set[str] = set()
    for index, name in enumerate(value):
        if not isinstance(name, str) or name in seen:
            raise place.at(index).refuse("a name, each once", name)
        seen.add(name)
    return tuple(value)


def _read_rates(value: Any, place: Place) -> dict[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise place.refuse(rates.wanted, value)
    _check_count(len(value), place)
    for name in value:
        if not isinstance(name, str):
            raise place.at(str(name)).refuse("the name of a layer or parameter", name)
    return {name: _NOT_NEGATIVE.read(rate, place.at(name)) for name, rate in value.items()}


names = Check("a list of names of layers or parameters", _read_names)
rates = Check("an object of numbers of at least 0 by layers or parameters, or null", _read_rates)


@dataclass(frozen=True)
class ParameterOptions:
    """Frozen parameters, and factors on the learning rate or rates of single ones, by the names of all parameters.

    Attributes:
        frozen: names of those that stay as they are.
        factors: of those whose rate is the optimiser's times a factor.
        rates: of those that have a rate of their own.
    """

    frozen: frozenset[str]
    factors: Mapping[str, float]
    rates: Mapping[str, float]

    def grouped_as(self, other: ParameterOptions) -> bool:
        """True if both have the same groups, whatever is frozen."""
        return self.factors == other.factors and self.rates == other.rates

    def kind(self, name: str) -> tuple[float, float | None]:
        """Factor and own rate of a parameter: parameters of equal ones share a group of the optimiser."""
        return self.factors.get(name, 1.0), self.rates.get(name)


def resolved(
    parameters: Sequence[str],
    place: Place,
    *,
    frozen: Sequence[str] = (),
    lr_scale: Mapping[str, float] | None = None,
    lr_of: Mapping[str, float] | None = None,
) -> ParameterOptions:
    """Options by layer or parameter as options of each parameter; that of a parameter comes before its layer's.

    Args:
        parameters: the names of all parameters of the network.
        place: of the options.
        frozen, lr_scale, lr_of: as in the description of an optimiser, read.

    Raises:
        DescriptionError: there is no such layer or parameter; one has a factor and a rate; or all are frozen.
    """
    meaning = meanings(parameters)
    kept: set[str] = set()
    for index, name in enumerate(frozen):
        kept.update(_named(name, meaning, place.at("frozen").at(index)))
    if len(kept) == len(parameters):
        raise place.at("frozen").refuse_as("names that leave a parameter to train", "all of them")
    factors, own = (
        _each(lr_scale or {}, meaning, place.at("lr_scale")),
        _each(lr_of or {}, meaning, place.at("lr_of")),
    )
    for name in lr_of or {}:
        if name in (lr_scale or {}):
            raise place.at("lr_of").at(name).refuse_as("absent, as lr_scale has it", "both")
    # Of a factor and a rate the one that names the parameter holds, not the one that names its layer.
    for name in factors.keys() & own.keys():
        if name in (lr_scale or {}):
            del own[name]
        else:
            del factors[name]
    return ParameterOptions(frozenset(kept), factors, own)


def _each(by_name: Mapping[str, float], meaning: Mapping[str, list[str]], place: Place) -> dict[str, float]:
    """Values by parameter of values by layer or parameter."""
    found: dict[str, float] = {}
    # Layers first, so that what names a parameter holds.
    for name in sorted(by_name, key=lambda name: meaning.get(name) == [name]):
        found |= dict.fromkeys(_named(name, meaning, place.at(name)), by_name[name])
    return found


def _named(name: str, meaning: Mapping[str, list[str]], place: Place) -> list[str]:
    """The parameters that a name means: itself, or all of a layer."""
    found = meaning.get(name)
    if found is None:
        layers = [known for known in meaning if "." not in known]
        shown = f"{', '.join(layers[:8])}{', ...' if len(layers) > 8 else ''}"
        raise place.refuse(f"a parameter, or a layer with parameters ({shown})", name)
    return found
