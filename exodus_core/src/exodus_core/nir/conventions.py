"""Conventions that a NIR file leaves open: time step, discretisation, reset, and the order of updates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

from exodus_core.errors import ArgumentError

DISCRETISATIONS = ("euler", "exponential")
INPUT_GAINS = ("equation", "step", "unit")
RESETS = ("zero", "subtract")
SYNAPSES = ("current", "delayed")
FIRINGS = ("above", "at")
STARTS = ("zero", "leak", "reset")
MIN_MEMBRANES = ("none", "threshold")

_CHOICES = {
    "discretisation": DISCRETISATIONS,
    "input_gain": INPUT_GAINS,
    "reset": RESETS,
    "synapse": SYNAPSES,
    "firing": FIRINGS,
    "start": STARTS,
    "min_membrane": MIN_MEMBRANES,
}


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """How the equations of NIR are computed in steps. None: not known, and an error where it is needed.

    Args:
        dt: time step, in the unit of the file's time constants.
        discretisation: "euler", a decay of 1 - dt/tau in one step, or "exponential", exp(-dt/tau).
        input_gain: factor on R I and w_in S in one step: "equation", as the discretised equation has it (dt/tau for
            euler, 1 - exp(-dt/tau) for exponential); "step", dt/tau; "unit", 1. For I and IF dt, dt and 1.
        reset: "zero", a spike sets the membrane to v_reset, or "subtract", it subtracts v_threshold.
        reset_delayed: a spike resets in the next step, after the decay of the membrane; NIR resets at once.
        synapse: the membrane of CubaLIF and CubaLI is driven by the synaptic current after its update in the same
            step, "current", or by that before it, "delayed".
        firing: a neuron fires "above" its threshold, as in NIR's equations, or "at" it too.
        start: the membrane before the first step: "zero", "leak" (v_leak) or "reset" (v_reset).
        max_spikes: most spikes of a neuron in one step; 1 in NIR's equations.
        min_membrane: lower bound of the membrane of IF: "none", or "threshold" for -v_threshold.
    """

    dt: float | None = None
    discretisation: str | None = None
    input_gain: str | None = None
    reset: str | None = None
    reset_delayed: bool | None = None
    synapse: str | None = None
    firing: str | None = None
    start: str | None = None
    max_spikes: int | None = None
    min_membrane: str | None = None

    def over(self, other: Conventions) -> Conventions:
        """These where they are known, else those of `other`."""
        return replace(other, **self.known)

    @property
    def known(self) -> dict[str, Any]:
        """The conventions that are not None."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


#: What NIR's own equations say.
OF_THE_EQUATIONS = Conventions(
    input_gain="equation", reset_delayed=False, firing="above", max_spikes=1, min_membrane="none"
)

#: How each library reads a NIR file, as far as its own reader has it fixed.
LIBRARIES: dict[str, Conventions] = {
    # The reset of the neuron does not reach the file, so it stays open.
    "snntorch": Conventions(
        dt=1e-4, discretisation="euler", input_gain="step", synapse="current", firing="above", start="zero"
    ),
    "norse": Conventions(
        discretisation="euler", input_gain="step", reset="zero", synapse="current", firing="above", start="leak"
    ),
    # Its time constants are in steps.
    "sinabs": Conventions(
        dt=1.0,
        discretisation="exponential",
        input_gain="unit",
        reset="subtract",
        firing="at",
        start="zero",
        max_spikes=2**31 - 1,
        min_membrane="threshold",
    ),
    "spikingjelly": Conventions(
        discretisation="euler", input_gain="step", reset="zero", synapse="current", firing="at", start="reset"
    ),
}


def read_conventions(values: Mapping[str, Any], where: str = "") -> Conventions:
    """The conventions that a mapping names, checked; `where` comes before the names in errors."""
    names = [f.name for f in fields(Conventions)]
    for name, value in values.items():
        if name not in names:
            raise ArgumentError(f"{where}{name}", f"one of {', '.join(names)}", "another name")
        if value is not None:
            _check(name, value, where)
    return Conventions(**values)


def _check(name: str, value: Any, where: str) -> None:
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ArgumentError(where + name, f"one of {', '.join(_CHOICES[name])}", value)
    elif name == "dt":
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
            raise ArgumentError(where + name, "a positive number", value)
    elif name == "reset_delayed":
        if not isinstance(value, bool):
            raise ArgumentError(where + name, "True or False", value)
    elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(where + name, "an integer of at least 1", value)


def of_library(written_by: str | None) -> Conventions:
    """The conventions of the library that wrote a file; None: none are known."""
    if written_by is None:
        return Conventions()
    if written_by not in LIBRARIES:
        raise ArgumentError("written_by", f"one of {', '.join(LIBRARIES)}, or None", written_by)
    return LIBRARIES[written_by]


def check_known(needed: Iterable[tuple[str, str]]) -> None:
    """Raises if there are conventions that nodes need and that are not known.

    Args:
        needed: pairs of a convention that is not known and the node that needs it.
    """
    by_name: dict[str, list[str]] = {}
    for name, node in needed:
        by_name.setdefault(name, []).append(node)
    if by_name:
        listed = "; ".join(f"{name} for {_some(nodes)}" for name, nodes in by_name.items())
        raise ArgumentError(", ".join(by_name), "given, as the file does not say", f"nothing ({listed})")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
