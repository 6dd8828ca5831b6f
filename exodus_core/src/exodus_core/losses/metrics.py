"""Metrics of several calls as those of one: their names say how they combine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exodus_core.errors import ArgumentError

SAMPLES = "samples:sum"


def combine(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of several calls as those of one: ":mean" weighted by "samples:sum", ":sum" added.

    Raises:
        ValueError: nothing to combine, names that differ, a name without its reduction, or means without samples.
    """
    if not metrics:
        raise ArgumentError("metrics", "a list of at least one entry", "none")
    names = metrics[0].keys()
    combined = {}
    for entry in metrics:
        if entry.keys() != names:
            raise ArgumentError("metrics", "entries of the same names", f"{sorted(names)} and {sorted(entry.keys())}")
    for name in names:
        reduction = name.rpartition(":")[2]
        if reduction == "sum":
            combined[name] = sum(entry[name] for entry in metrics)
        elif reduction == "mean" and SAMPLES in names:
            samples = sum(entry[SAMPLES] for entry in metrics)
            combined[name] = sum(entry[name] * entry[SAMPLES] for entry in metrics) / samples
        else:
            raise ArgumentError("metrics", f"named NAME:sum, or NAME:mean along with {SAMPLES}", name)
    return combined
