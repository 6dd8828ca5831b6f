"""Losses as data: a name, an object with a kind and its options, or a list of such with weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from exodus_core.losses.cross_entropy import MaxOverTimeCE, PerStepCE, SumOverTimeCE
from exodus_core.losses.errors import LossError
from exodus_core.losses.loss import Loss
from exodus_core.losses.spike_rate import SpikeRateBounds, SpikeRateMSE
from exodus_core.losses.spike_trains import SpikeCountMSE, SpikeTrainMSE, VanRossum
from exodus_core.losses.weighted import Term, WeightedSum
from exodus_core.schema import Place, choice, number, read_record

KINDS: dict[str, type[Loss]] = {
    cls.kind: cls
    for cls in (
        SumOverTimeCE,
        MaxOverTimeCE,
        PerStepCE,
        SpikeTrainMSE,
        VanRossum,
        SpikeCountMSE,
        SpikeRateMSE,
        SpikeRateBounds,
    )
}
#: Most losses of a sum.
MAX_TERMS = 16

_KIND = choice(*KINDS)
_WEIGHT = number(0)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


def parse(data: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]) -> Loss:
    """The loss that a name, or an object with a kind and its options, describes; or the sum of those in a list.

    An object in a list may have a `weight`, at least 0, by default 1, and a `name` for the metrics, by default its
    kind.

    Raises:
        LossError: it does not fit; with a JSON pointer to the value, what was expected and what is there.
    """
    place = Place("", LossError)
    if isinstance(data, str | Mapping):
        return _read(data, place)
    if not isinstance(data, list | tuple):
        raise place.refuse("a name or an object, or a list of such", data)
    if not 0 < len(data) <= MAX_TERMS:
        raise place.refuse_as(f"a list of 1 to {MAX_TERMS} losses", f"one of {len(data)}")
    terms: list[Term] = []
    for index, entry in enumerate(data):
        term = _term(entry, place.at(index))
        if any(term.name == other.name for other in terms):
            raise place.at(index).at("name").refuse("a name of its own, as two losses have one kind", term.name)
        terms.append(term)
    return WeightedSum(tuple(terms))


def _term(data: Any, place: Place) -> Term:
    own = data if isinstance(data, Mapping) else {}
    weight = _WEIGHT.read(own.get("weight", 1.0), place.at("weight"))
    loss = _read({k: v for k, v in own.items() if k not in ("weight", "name")} if own else data, place)
    name = own.get("name", loss.kind)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise place.at("name").refuse("1 to 32 letters, digits, - and _", name)
    return Term(loss, weight, name)


def _read(data: Any, place: Place) -> Loss:
    if isinstance(data, str):
        data = {"kind": data}
    if not isinstance(data, Mapping):
        raise place.refuse("a name or an object", data)
    kind = _KIND.read(data.get("kind"), place.at("kind"))
    loss = read_record(KINDS[kind], data, place, ("kind",))
    if isinstance(loss, SpikeRateBounds):
        _check_bounds(loss, place)
    return loss


def _check_bounds(loss: SpikeRateBounds, place: Place) -> None:
    lower, upper = loss.lower, loss.upper
    if lower is None and upper is None:
        raise place.at("lower").refuse_as("a number unless upper is one", "neither")
    if lower is not None and upper is not None and lower > upper:
        raise place.at("lower").refuse(f"at most upper, {upper:g}", lower)
