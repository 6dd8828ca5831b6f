"""Tables of certificates: what they say of each gradient, or of many random cases."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from exodus_core.verify.certificate import AnyRun
from exodus_core.verify.deviation import Certificate, Deviation


class Outcome(IntEnum):
    """Verdict on all lines; the number is the exit status."""

    KEPT = 0
    BROKEN = 1
    UNCERTAIN = 4


@dataclass
class Line:
    """The figures of a group of results; a figure is NaN where one of its parts is.

    `units` is the largest error of the backward pass in units of u times the sum of the absolute terms, `units_bound`
    the bound of that error there, in the same units. `exceeded` are the results whose bound is larger than the true
    result itself, `broken` those that do not keep a bound, `uncertain` those that cannot be certified, since they or a
    bound are not finite. `zeros` are the results whose true value is 0, which have no unit in the last place, and
    `zeros_missed` those of them that the program has otherwise. Results at an edge of a boxcar, whose bound is the
    jump, are checked and count in no figure.
    """

    group: tuple[str, ...]
    cases: int = 0
    elements: int = 0
    ulps: list[Tensor] = field(default_factory=list)
    units: float = 0.0
    units_bound: float = 0.0
    own_share: float = 0.0
    share: float = 0.0
    membrane_units: float = 0.0
    membrane_share: float = 0.0
    decisions: int = 0
    farthest: float = 0.0
    edges: int = 0
    zeros: int = 0
    zeros_missed: int = 0
    exceeded: int = 0
    broken: int = 0
    uncertain: int = 0

    def add(self, deviation: Deviation) -> None:
        """Takes in a gradient."""
        self.elements += deviation.error.numel()
        self.broken += int(deviation.broken.sum())
        self.uncertain += int(deviation.uncertain.sum())
        self.exceeded += int((deviation.bound > deviation.true.abs()).sum())
        certain = ~deviation.at_edge
        zero = certain & (deviation.true == 0)
        self.zeros += int(zero.sum())
        self.zeros_missed += int((deviation.error[zero] != 0).sum())
        self.ulps.append(deviation.ulps[certain & ~zero])
        units = deviation.units[certain]
        if not units.numel():
            return
        self.own_share = _larger(self.own_share, deviation.own_share[certain])
        self.share = _larger(self.share, deviation.share[certain])
        if not float(units.max()) < self.units:
            at = units.argmax()
            self.units = float(units[at])
            self.units_bound = float((deviation.own_bound / deviation.scale)[certain][at])

    def quantiles(self) -> list[float]:
        """The median error in ulps, that which 99 of 100 results do not exceed, and the largest; none without any."""
        ulps = torch.cat(self.ulps).sort().values
        if not len(ulps):
            return []
        return [float(ulps[math.ceil(share * len(ulps)) - 1]) for share in (0.5, 0.99, 1.0)]

    def add_run(self, run: AnyRun, certificate: Certificate) -> None:
        """Takes in a run, without its gradients."""
        self.cases += run.spikes.shape[1]
        membrane, decisions = certificate.membrane, certificate.decisions
        self.membrane_units = _larger(self.membrane_units, membrane.units)
        self.membrane_share = _larger(self.membrane_share, membrane.share)
        self.broken += int(membrane.broken.sum()) + int(decisions.farthest > 1)
        self.uncertain += int(membrane.uncertain.sum())
        self.decisions += decisions.spikes + decisions.clipped
        self.farthest = max(self.farthest, decisions.farthest)
        self.edges += decisions.edges


def _larger(value: float, values: Tensor) -> float:
    """The largest of a value and of others; NaN if one is."""
    return float(torch.cat([torch.tensor([value], dtype=torch.float64), values.flatten()]).max())


def outcome_of(lines: list[Line]) -> Outcome:
    """The verdict on all lines: a broken bound before one that is not finite."""
    if any(line.broken for line in lines):
        return Outcome.BROKEN
    return Outcome.UNCERTAIN if any(line.uncertain for line in lines) else Outcome.KEPT


def outcome_line(lines: list[Line]) -> str:
    """The sentence of that, with the number of results."""
    broken, uncertain = (sum(getattr(line, name) for line in lines) for name in ("broken", "uncertain"))
    return {
        Outcome.KEPT: "every bound is kept",
        Outcome.BROKEN: "a bound is not kept" if broken == 1 else f"{broken} bounds are not kept",
        Outcome.UNCERTAIN: f"{uncertain} results cannot be certified: a bound or a result is not finite",
    }[outcome_of(lines)]


def notes_of(lines: list[Line]) -> list[str]:
    """Notes under a table: bounds that say little, and true values that have no ulp."""
    exceeded, elements = (sum(getattr(line, name) for line in lines) for name in ("exceeded", "elements"))
    return [f"the bound exceeds the value itself for {exceeded} of {elements} results", *zeros_of(lines)]


def zeros_of(lines: list[Line]) -> list[str]:
    """How many true values are 0, and the results there; nothing if there are none."""
    zeros, missed = (sum(getattr(line, name) for line in lines) for name in ("zeros", "zeros_missed"))
    return [f"{zeros} true values are 0 and count in no ulps; {missed} of these results are not 0"] if zeros else []


def lines_of(run: AnyRun, certificate: Certificate) -> list[Line]:
    """The membrane and each gradient of one run; a decision that rounding does not explain is one of the membrane."""
    lines = []
    for name, deviation in {"membrane": certificate.membrane, **certificate.gradients}.items():
        line = Line((run.method, name))
        line.add(deviation)
        lines.append(line)
    lines[0].broken += int(certificate.decisions.farthest > 1)
    return lines


def grouped(runs: Iterable[tuple[tuple[str, ...], AnyRun, Certificate]]) -> list[Line]:
    """One line for each group, in the order of their names."""
    lines: dict[tuple[str, ...], Line] = {}
    for group, run, certificate in runs:
        line = lines.setdefault(group, Line(group))
        line.add_run(run, certificate)
        for deviation in certificate.gradients.values():
            line.add(deviation)
    return [lines[group] for group in sorted(lines)]


def figure(value: float) -> str:
    """Two digits."""
    return "0" if value == 0 else f"{value:.2g}" if value < 100 else f"{value:.0f}" if value < 1e5 else f"{value:.1e}"


#: Of gradients: quantiles of the error in ulps; the largest error of the backward pass and its bound, in units of uS;
#: the largest share of a bound that an error is, of the backward pass and of the whole.
_GRADIENTS = ("ulps 50%", "99%", "100%", "error/uS", "bound/uS", "share", "whole")
#: Of runs: the largest error of a membrane in units of uS, its share of the bound; the spikes and clippings that are
#: not those of the exact membrane; the membranes at the edge of a boxcar.
_CASES = ("membrane", "share", "decided", "edges")

#: Fields of a line in JSON: of a result of a run, of a group of random cases, and of a comparison without bounds.
JSON_RESULT = (
    *("elements", "units", "units_bound", "own_share", "share"),
    *("zeros", "zeros_missed", "exceeded", "broken", "uncertain"),
)
JSON_CASES = ("cases", *JSON_RESULT, "membrane_units", "membrane_share", "decisions", "farthest", "edges")
JSON_COMPARISON = ("elements", "units", "zeros", "zeros_missed")


def empty_table(title: str) -> Any:
    """A table without lines between its rows, so that it fits into a document."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=0)


def table(title: str, names: tuple[str, ...], lines: list[Line], with_cases: bool) -> Any:
    """A table for the terminal."""
    counted = ("cases", "gradients") if with_cases else ("elements",)
    drawn = empty_table(title)
    for name in (*names, *counted, *_GRADIENTS, *(_CASES if with_cases else ())):
        drawn.add_column(name, justify="left" if name in names else "right")
    for line in lines:
        cells = [str(line.cases), str(line.elements)] if with_cases else [str(line.elements)]
        cells += [
            *ulps_cells(line),
            figure(line.units),
            figure(line.units_bound),
            figure(line.own_share),
            figure(line.share),
        ]
        if with_cases:
            cells += [figure(line.membrane_units), figure(line.membrane_share), str(line.decisions), str(line.edges)]
        drawn.add_row(*line.group, *cells, style="red" if line.broken or line.uncertain else None)
    return drawn


def ulps_cells(line: Line) -> list[str]:
    """The quantiles of a line for a table."""
    return [figure(value) for value in line.quantiles()] or ["-"] * 3


def as_json(lines: list[Line], names: tuple[str, ...], **more: Any) -> str:
    """The fields of lines that have these names, and more, as JSON; what is not finite is null."""
    described = [{"group": line.group, **{name: getattr(line, name) for name in names}} for line in lines]
    described = [{**fields, "ulps": line.quantiles()} for fields, line in zip(described, lines, strict=True)]
    return json.dumps(_finite({**more, "lines": described}), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def spikes_line(certificate: Certificate) -> str:
    """The decisions of a run that its exact membranes make otherwise."""
    decisions = certificate.decisions
    found = (
        f"{decisions.steps} neuron-steps: {decisions.spikes} spikes and {decisions.clipped} clippings are not those of "
        "the exact membrane"
    )
    if decisions.spikes or decisions.clipped:
        found += f", which is off the edge by at most {decisions.farthest:.2g} of the bound of its rounding error"
    if decisions.edges:
        found += f"; {decisions.edges} membranes are within rounding of an edge of the boxcar"
    return found
