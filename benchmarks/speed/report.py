"""The figures as Markdown: the tables of benchmarks/results/speed.md, and the section of the README."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .comparison import Comparison
from .contenders import ABSENT, CONTENDERS
from .growth import best_times, exponent
from .machine import sentence
from .measure import Timing
from .requirements import Requirement, speed_up
from .workloads import FLOAT, WORKLOADS

BEGIN, END = "<!-- speed: begin, written by make bench -->", "<!-- speed: end -->"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def duration(seconds: float) -> str:
    """Three digits, in a unit in which they are readable."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:#.3g} {unit}".replace(". ", " ")
    return f"{seconds / 1e-6:#.3g} us".replace(". ", " ")


def times(value: float) -> str:
    return f"{value:.0f}x" if value >= 100 else f"{value:.3g}x"


def _cell(timings: dict[str, Timing], wrong: dict[str, str], name: str) -> str:
    if name not in timings:
        return "wrong" if name in wrong else "-"
    if name == "exodus" or "exodus" not in timings:
        return duration(timings[name].best)
    return f"{duration(timings[name].best)} ({times(speed_up(timings, name))})"


def comparison_table(by_workload: dict[str, dict[str, Timing]], wrong: dict[str, dict[str, str]]) -> str:
    """Best times, and how many times as long as exodus that is."""
    names = list(dict.fromkeys(name for timings in by_workload.values() for name in timings))
    names += [name for faults in wrong.values() for name in faults if name not in names]
    rows = [
        [f"**{name}**" if name == "exodus" else name]
        + [_cell(timings, wrong.get(workload, {}), name) for workload, timings in by_workload.items()]
        for name in names
    ]
    return table(["B x T x N", *by_workload], rows)


def median_table(by_workload: dict[str, dict[str, Timing]]) -> str:
    rows = [
        [workload, name, duration(t.best), duration(t.median), duration(t.best_of(0)), str(len(t.repeats))]
        for workload, timings in by_workload.items()
        for name, t in timings.items()
    ]
    return table(["B x T x N", "contender", "best", "median", "forward, best", "repeats"], rows)


def requirement_table(rows: Iterable[Requirement]) -> str:
    return table(
        ["requirement", "must reach", "reached", "holds", "at the memory's limit", "command"],
        (row.row() for row in rows),
    )


def memory_table(comparison: Comparison) -> str:
    rows = [
        [name, f"{kept:.2f}", f"{comparison.peak[name]:.1f}" if name in comparison.peak else "-"]
        for name, kept in comparison.kept.items()
    ]
    return table(["contender", "kept for the backward pass", "peak of forward + backward"], rows)


def _each_mode(kernels: dict[str, dict[str, Any]], section: str, name: str) -> list[dict[str, Timing]]:
    return [kernels[mode][section][name] for mode in ("reused", "fresh")]


def kernel_table(kernels: dict[str, dict[str, Any]]) -> str:
    rows = []
    for workload in kernels["reused"]["memory"]:
        reused, fresh = _each_mode(kernels, "memory", workload)
        for kernel in ("forward", "backward"):
            cells = [f"{duration(m[kernel].best)} ({times(m[kernel].best / m['triad'].best)})" for m in (reused, fresh)]
            rows.append([workload, kernel, *cells, duration(reused["triad"].best), duration(reused["copy"].best)])
    return table(["B x T x N", "kernel", "reused memory", "fresh outputs", "triad, 12 B", "copy, 8 B"], rows)


def variant_table(kernels: dict[str, dict[str, Any]]) -> str:
    rows = []
    for workload in kernels["reused"]["variants"]:
        cells = []
        for of in _each_mode(kernels, "variants", workload):
            cells.append(times(of["time last"].best / of["canonical"].best))
            cells.append(times(of["parameters"].best_of(1) / of["canonical"].best_of(1)))
        rows.append([workload, cells[0], cells[2], cells[1], cells[3]])
    head = ["B x T x N", "time last", "time last, fresh", "parameter gradients", "parameter gradients, fresh"]
    return table(head, rows)


def growth_tables(curves: dict[str, dict[Any, Timing]]) -> str:
    parts = []
    for name, curve in curves.items():
        best = best_times(curve)
        first = next(iter(best))
        title = f"{name}: " + (
            f"{best[first] / best[max(best)]:.2f} times as fast with {max(best)} as with {first}"
            if name == "threads"
            else f"exponent {exponent(best):.3f}"
        )
        cells = [[duration(seconds) for seconds in best.values()]]
        parts.append(f"{title}\n\n" + table([str(size) for size in best], cells))
    return "\n\n".join(parts)


def option_table(kernels: dict[str, dict[str, Any]]) -> str:
    reused = kernels["reused"]
    triad = reused["memory"][WORKLOADS[0].name]["triad"].best
    timed = [(f"{kind}, backward kernel", t, 1.0) for kind, t in reused["surrogates"].items()]
    for dtype, t in reused["dtypes"].items():
        timed.append((f"{dtype}, forward + backward", t, 2 * getattr(torch, dtype).itemsize / FLOAT))
    rows = [[what, duration(t.best), times(t.best / (triads * triad))] for what, t, triads in timed]
    return table(["", WORKLOADS[0].name, "against a triad of as many bytes"], rows)


def kernel_sections(kernels: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Titles and tables of what the kernels do by themselves."""
    return {
        "Kernels against the memory": kernel_table(kernels),
        "Layout and parameter gradients, against the canonical call": variant_table(kernels),
        "Growth of forward + backward": growth_tables(kernels["reused"]["growth"]),
        "Surrogates and dtypes": option_table(kernels),
    }


def wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def titled(sections: dict[str, str]) -> str:
    return "\n\n".join(f"## {title}\n\n{section}" for title, section in sections.items())


def remarks(comparison: Comparison) -> str:
    lines = [f"- {name}: {reason}." for name, reason in (ABSENT | comparison.missing).items()]
    for workload, faults in comparison.wrong.items():
        lines += [f"- {name} at {workload}: wrong, not timed; {reason}." for name, reason in faults.items()]
    return "\n".join(lines)


NOTES = """\
Best of the repeats; in brackets how many times as long as exodus. LIF with soft reset, float32; outputs and gradients
are allocated anew, within the time. A contender is timed after its spikes and gradient have been found to be those of
the same neuron in float64, to 1e-5 of the largest value. Contenders take turns after a warm-up; a call of five seconds
or more is timed once. Every library gets its own layout and, where it has it, the surrogate of exodus (sigmoid); sinabs
and norse have others. The gradient of snnTorch is SLAYER's, its only one. Loops over time iterate over the input; an
index a step, as sinabs has, makes the backward pass quadratic in T."""


REQUIRED = """\
Each figure is the worst of the workloads that it is about; "at the memory's limit" is what two triads of as many bytes
would have reached in its place (where they fit into the cache, they run at its speed). The figures of the kernels are
taken in reused memory: outputs lie in pages that have been written before, as the arrays of the triad do, and glibc is
told to keep what is freed, too. The cost of fresh pages, where nothing is kept, is in the tables below."""


def full(
    comparison: Comparison, kernels: dict[str, dict[str, Any]], rows: list[Requirement], machine: dict[str, Any]
) -> str:
    """The whole report."""
    sections = {
        "Forward + backward, the neuron alone": f"{comparison_table(comparison.neuron, comparison.wrong)}\n\n{NOTES}",
        "Not compared": remarks(comparison),
        "Requirements": f"{requirement_table(rows)}\n\n{REQUIRED}",
        "Linear + neuron": comparison_table(comparison.layer, {}),
        "Memory, in arrays of the membrane's size": memory_table(comparison),
        **kernel_sections(kernels),
        "Best and median": median_table(comparison.neuron),
    }
    return f"# Speed\n\n{wrapped(f'Written by `make bench` on: {sentence(machine)}.')}\n\n{titled(sections)}\n"


FURTHER = (
    "Memory, growth, the kernels against the memory's speed: "
    "[benchmarks/results/speed.md](benchmarks/results/speed.md)."
)


def readme_section(comparison: Comparison, machine: dict[str, Any]) -> str:
    """The plot and the main table."""
    names = {c.name for c in CONTENDERS}
    shown = {w: {n: t for n, t in timings.items() if n in names} for w, timings in comparison.neuron.items()}
    return f"""\
![How many times as long as exodus each library takes](benchmarks/results/speed.png)

{comparison_table(shown, comparison.wrong)}

{NOTES}

{wrapped(f"Written by `make bench` ({sentence(machine)}). {FURTHER}")}"""


def rewrite_readme(path: Path, section: str) -> None:
    """Puts the section between its two markers.

    Raises:
        LookupError: the file lacks a marker.
    """
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise LookupError(f"{path.name} has no section between {BEGIN!r} and {END!r}")
    before, _, rest = text.partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{section}\n{END}{rest.partition(END)[2]}")
