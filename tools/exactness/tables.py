"""The errors as markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .results import EXACT, Result

Columns = Mapping[str, Sequence[str]]  # the gradients whose largest error a column shows, by its head

ONE_STATE: Columns = {
    name: (name,)
    for name in (
        "input",
        "alpha",
        "threshold",
        "reset_by",
        "min_membrane",
        "initial_membrane",
        "initial_spikes",
        "reset_kernel",
    )
}
COUPLED: Columns = {
    "input": ("input",),
    "membrane": ("alpha", "threshold", "reset_by", "reset_to", "min_membrane"),
    "synapse": ("synapse_alpha", "synapse_gain"),
    "adaptation": ("adapt_alpha", "adapt_by", "adapt_membrane", "adapt_threshold", "adapt_current"),
    "initial states": ("initial_membrane", "initial_spikes", "initial_current", "initial_adaptation"),
}
EVERY_COUPLED: Columns = {name: (name,) for names in COUPLED.values() for name in names}


def largest(results: Sequence[Result], names: Sequence[str]) -> tuple[float, float] | None:
    """The kernel's largest error of these gradients and the float32 loop's; None where no neuron has one of them."""
    pairs = [
        (max(r.errors[name]), max(r.plain.get(name, [0.0]))) for r in results for name in names if name in r.errors
    ]
    return (max(kernel for kernel, _ in pairs), max(loop for _, loop in pairs)) if pairs else None


def table(results: list[Result], columns: Columns, *, each_surrogate: bool = False) -> str:
    """The largest errors as a markdown table: one line a case, or one for all surrogates of a neuron together."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        case = result.case
        key = (str(case.dtype).removeprefix("torch."), case.neuron, case.method, case.reset)
        surrogate = (case.surrogate,) if each_surrogate else ()
        groups.setdefault(key + surrogate, []).append(result)
    head = ["dtype", "neuron", "method", "reset", *(["surrogate"] if each_surrogate else []), *columns, "within"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for labels, group in groups.items():
        cells = []
        for names in columns.values():
            found = largest(group, names)
            cell = "" if found is None else f"{found[0]:.1e}"
            if found is not None and labels[0] == "float32":
                cell += f" ({found[1]:.1e})"
            cells.append(cell)
        passed = all(result.passed for result in group)
        lines.append("| " + " | ".join([*labels, *cells, "yes" if passed else "NO"]) + " |")
    return "\n".join(lines)


def summary(results: list[Result]) -> str:
    """The worst figure of each dtype."""
    lines = ["| dtype | cases | largest error | limit | largest share of the limit |", "|---|---|---|---|---|"]
    limits = {
        torch.float64: f"{EXACT:.0e}",
        torch.float32: "mean error twice that of the float32 loop, at least 1 unit in the last place",
        torch.float16: "signals 1 rounding, parameters as float32",
        torch.bfloat16: "signals 1 rounding, parameters as float32",
    }
    for dtype, limit in limits.items():
        own = [r for r in results if r.case.dtype == dtype]
        if not own:
            continue
        error = max(max(errors) for r in own for errors in r.errors.values())
        share = max(r.judged(name) / r.limit(name) for r in own for name in r.errors)
        lines.append(f"| {str(dtype).removeprefix('torch.')} | {len(own)} | {error:.1e} | {limit} | {share:.2f} |")
    return "\n".join(lines)


def by_the_largest(results: list[Result]) -> str:
    """Counts float32 gradients in which one program's largest error is twice the other's; no limit depends on it."""
    pairs = [(max(r.errors[name]), max(r.plain[name])) for r in results for name in r.plain if r.errors[name]]
    kernel, loop = sum(ours > 2 * plain for ours, plain in pairs), sum(plain > 2 * ours for ours, plain in pairs)
    return (
        f"Of {len(pairs)} float32 gradients the kernel's largest error is more than twice the loop's in {kernel},\n"
        f"the loop's more than twice the kernel's in {loop}."
    )
