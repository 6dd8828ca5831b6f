"""Compares the gradients of the kernels with autograd through the plain loop in float64, for every setting.

    python -m tools.exactness [--quick] [--seed N] [--markdown docs/exactness.md]

For each neuron, method, reset, surrogate and dtype, over odd shapes and fresh random inputs, it prints the largest
difference of each gradient, relative to the largest value of that gradient. The loop is pinned to the membrane that the
neuron really had (docs/equations.md, section 6), so that no spike is decided differently. Next to each float32 error
stands that of the same loop in float32: the mean error of a gradient over the draws may be twice the loop's, or
one unit in the last place where the loop happens to be exact. Exits with 1 if a limit is passed.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import secrets
import statistics
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exodus_core
from exodus_core import AlphaKernel, ExponentialKernel, reference
from exodus_core.ops import compute_dtype
from exodus_core.surrogate import KINDS

SHAPES = [(1, 1, 1), (3, 7, 5), (2, 63, 100), (1, 1000, 3)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
RESETS = {
    "subtract": ("subtract", False),
    "subtract, decayed": ("subtract", True),
    "zero": ("zero", False),
    "none": ("none", False),
}
SRM_KERNELS: dict[str, Any] = {
    "FIR": torch.tensor([-0.9, 0.3, -0.2, 0.0, -0.1], dtype=torch.float64),
    "exponential": ExponentialKernel(0.9, -1.0),
    "alpha kernel": AlphaKernel(4.0, -1.2),
}
EXACT = 1e-12
DRAWS = 16  # random inputs a shape
PARAMETERS = ("alpha", "threshold", "reset_by", "min_membrane")
SIGNALS = ("input", "initial_membrane", "initial_spikes")  # what is kept in a half type; parameters stay float32


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    neuron: str
    method: str
    reset: str
    surrogate: str
    dtype: torch.dtype


@dataclass
class Result:
    """The relative errors of each gradient, one a draw and shape, and those of the plain loop in float32."""

    case: Case
    errors: dict[str, list[float]]
    plain: dict[str, list[float]]

    def is_rounded(self, name: str) -> bool:
        """True if a gradient is kept in a half type: computed in float32, and rounded once."""
        return self.case.dtype in (torch.float16, torch.bfloat16) and name in SIGNALS

    def judged(self, name: str) -> float:
        """The error that has the limit: the largest; in float32 the mean, the largest being a matter of luck there."""
        errors = self.errors[name]
        return max(errors) if self.case.dtype == torch.float64 or self.is_rounded(name) else statistics.mean(errors)

    def limit(self, name: str) -> float:
        if self.case.dtype == torch.float64:
            return EXACT
        if self.is_rounded(name):
            return torch.finfo(self.case.dtype).eps
        return max(2 * statistics.mean(self.plain[name]), torch.finfo(torch.float32).eps)

    @property
    def passed(self) -> bool:
        return all(self.judged(name) <= self.limit(name) for name in self.errors)


def cases(quick: bool) -> Iterable[Case]:
    surrogates = ["exponential", "arctan"] if quick else list(KINDS)
    dtypes = DTYPES[:2] if quick else DTYPES
    for dtype in dtypes:
        for method in ("exodus", "slayer"):
            for surrogate in surrogates:
                for neuron in ("LIF", "IF"):
                    for reset in RESETS:
                        yield Case(neuron, method, reset, surrogate, dtype)
                for kernel in SRM_KERNELS:
                    yield Case("SRM", method, kernel, surrogate, dtype)


def _uniform(*size: int) -> Tensor:
    return torch.rand(size, dtype=torch.float64)


def arguments(case: Case, shape: tuple[int, ...]) -> dict[str, Any]:
    """Random inputs and parameters for DRAWS calls, the draw in front: signals (draw, outer, time, inner), states
    (draw, outer, inner), parameters (draw, 1, inner). Parameters stay in the dtype that is computed in."""
    outer, _, inner = shape
    given: dict[str, Any] = {
        "x": torch.randn(DRAWS, *shape, dtype=torch.float64),
        "threshold": 0.5 + _uniform(DRAWS, 1, inner),
    }
    if case.neuron == "SRM":
        given["z"] = given.pop("x")
        given["reset_kernel"] = SRM_KERNELS[case.reset]
    else:
        decay = 0.5 + 0.5 * _uniform(DRAWS, 1, inner)
        given["alpha"] = torch.ones_like(decay) if case.neuron == "IF" else decay
        given["reset_by"] = 0.5 + _uniform(DRAWS, 1, inner)
        # The neuron rounds this bound to the dtype that the membrane is stored in.
        given["min_membrane"] = (-1.5 + _uniform(DRAWS, 1, inner)).to(case.dtype).double()
        given["initial_membrane"] = torch.randn(DRAWS, outer, inner, dtype=torch.float64)
        given["initial_spikes"] = torch.randint(0, 2, (DRAWS, outer, inner)).double()
    return {
        name: value.to(case.dtype if name in ("x", "z", *SIGNALS) else compute_dtype(case.dtype))
        if isinstance(value, Tensor)
        else value
        for name, value in given.items()
    }


def leaves(given: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
    return {
        name: value.detach().to(dtype or value.dtype).clone().requires_grad_() if isinstance(value, Tensor) else value
        for name, value in given.items()
    }


def gradients(outputs: tuple[Tensor, ...], weights: tuple[Tensor, ...], given: dict[str, Any]) -> dict[str, Tensor]:
    names = [name for name, value in given.items() if isinstance(value, Tensor)]
    found = torch.autograd.grad(
        outputs,
        [given[name] for name in names],
        [w.to(outputs[0].dtype) for w in weights],
        allow_unused=True,
        materialize_grads=True,
    )
    return {"input" if name in ("x", "z") else name: gradient for name, gradient in zip(names, found, strict=True)}


def relative_errors(actual: Tensor, expected: Tensor) -> list[float]:
    """The largest difference of each draw (the first axis), relative to the largest value of all of them.

    Relative to the smallest normal number where all are below it. Values beyond the range of the dtype must have
    become infinite, and is left out otherwise.
    """
    limits = torch.finfo(actual.dtype)
    within = expected.abs() <= limits.max
    if not actual[~within].isinf().all():
        return [float("inf")]
    scale = max(expected[within].abs().max().item(), limits.tiny)
    difference = torch.where(within, actual.double() - expected, 0.0)
    errors: list[float] = (difference.abs().flatten(1).amax(1) / scale).tolist()
    return errors


def one_draw(name: str, value: Any, draw: int) -> Any:
    """The argument of one call. The calls share a reset kernel."""
    if name == "reset_kernel":
        return value
    return value[draw, 0] if name in PARAMETERS else value[draw]


def measure(case: Case, shape: tuple[int, ...]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The errors of the kernel, and of the plain loop in float32, at one shape.

    The kernel is called once a draw, at exactly this shape; the loops, whose lanes do not see each other, take all
    draws at once. Errors are relative to the largest value among the draws: relative to that of one draw, whose few
    values may cancel to nearly nothing, the comparison of two programs would be one of luck.
    """
    given = arguments(case, shape)
    weights = tuple(torch.randn(DRAWS, *shape, dtype=torch.float64).to(case.dtype) for _ in range(2))
    options: dict[str, Any] = {"surrogate": KINDS[case.surrogate](), "method": case.method}
    kernel: Callable[..., tuple[Tensor, Tensor]]
    loop: Callable[..., tuple[Tensor, Tensor, Tensor]]
    if case.neuron == "SRM":
        kernel, loop, signal = exodus_core.srm, reference.srm_on_trace, "z"
    else:
        kernel, loop, signal = exodus_core.lif, reference.lif_on_trace, "x"
        options["reset"], options["decay_reset"] = RESETS[case.reset]

    membranes, found = [], []
    for draw in range(DRAWS):
        ours = leaves({name: one_draw(name, value, draw) for name, value in given.items()})
        outputs = kernel(**ours, **options)
        membranes.append(outputs[1].detach())
        found.append(gradients(outputs, tuple(w[draw] for w in weights), ours))
    trace = torch.stack(membranes)

    def by_loop(dtype: torch.dtype) -> dict[str, Tensor]:
        theirs = leaves({name: value for name, value in given.items() if name != signal}, dtype)
        leaf, *pinned = loop(trace.to(dtype), **theirs, **options, time_dim=2)
        return gradients((pinned[0], pinned[1]), weights, {signal: leaf, **theirs})

    def errors(results: dict[str, Tensor]) -> dict[str, list[float]]:
        # The draws share the taps: of those there is one gradient, the sum.
        one = {"reset_kernel": (1, -1)}
        return {
            name: relative_errors(*(t.reshape(one.get(name, exact.shape)) for t in (results[name], exact)))
            for name, exact in expected.items()
        }

    expected = by_loop(torch.float64)
    stacked = {name: torch.stack([f[name] for f in found]) for name in expected}
    if "reset_kernel" in stacked:
        stacked["reset_kernel"] = stacked["reset_kernel"].sum(0)
    return errors(stacked), {} if case.dtype == torch.float64 else errors(by_loop(torch.float32))


def run(case: Case, seed: int, quick: bool) -> Result:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    result = Result(case, {}, {})
    for shape in SHAPES[: 3 if quick else 4]:
        for total, part in zip((result.errors, result.plain), measure(case, shape), strict=True):
            for name, errors in part.items():
                total.setdefault(name, []).extend(errors)
    return result


COLUMNS = [
    "input",
    "alpha",
    "threshold",
    "reset_by",
    "min_membrane",
    "initial_membrane",
    "initial_spikes",
    "reset_kernel",
]


def table(results: list[Result], *, each_surrogate: bool) -> str:
    """The largest errors as a markdown table: one line a case, or one for all surrogates of a neuron together."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        case = result.case
        key = (str(case.dtype).removeprefix("torch."), case.neuron, case.method, case.reset)
        surrogate = (case.surrogate,) if each_surrogate else ()
        groups.setdefault(key + surrogate, []).append(result)
    head = ["dtype", "neuron", "method", "reset", *(["surrogate"] if each_surrogate else []), *COLUMNS, "within"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for labels, group in groups.items():
        cells = []
        for name in COLUMNS:
            own = [result for result in group if name in result.errors]
            cell = f"{max(max(result.errors[name]) for result in own):.1e}" if own else ""
            if own and labels[0] == "float32":
                cell += f" ({max(max(result.plain[name]) for result in own):.1e})"
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
        largest = max(max(errors) for r in own for errors in r.errors.values())
        share = max(r.judged(name) / r.limit(name) for r in own for name in r.errors)
        lines.append(f"| {str(dtype).removeprefix('torch.')} | {len(own)} | {largest:.1e} | {limit} | {share:.2f} |")
    return "\n".join(lines)


def by_the_largest(results: list[Result]) -> str:
    """Counts float32 gradients in which one program's largest error is twice the other's; no limit depends on it."""
    pairs = [(max(r.errors[name]), max(r.plain[name])) for r in results for name in r.plain if r.errors[name]]
    kernel, loop = sum(ours > 2 * plain for ours, plain in pairs), sum(plain > 2 * ours for ours, plain in pairs)
    return (
        f"Of {len(pairs)} float32 gradients the kernel's largest error is more than twice the loop's in {kernel},\n"
        f"the loop's more than twice the kernel's in {loop}."
    )


PAGE = """# Exactness

Made by `make exactness` on {date}: torch {torch}, instruction set {instruction_set}, {machine}, seed {seed}.

The largest difference between a gradient of the kernels and autograd through the plain loop in float64
(`exodus_core.reference`), relative to the largest value of that gradient at that shape. The shapes are
{shapes} (outer, time, inner), with {draws} random inputs each; every parameter is a tensor. In
brackets: the same loop in float32. With float16 and bfloat16 the signals and their gradients are kept so, the
parameters in float32. "exodus" is compared with the loop as it is (BPTT), "slayer" with the loop whose reset is
detached from the state.

## Summary

{summary}

{by_the_largest}

## By neuron, method and reset

Each figure is the largest over all surrogates; `make exactness` prints one line for each of them.

{table}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two surrogates, float64 and float32, no long shape")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run; a fresh one by default")
    parser.add_argument("--markdown", type=Path, default=None, help="write the table to this page")
    options = parser.parse_args()
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    chosen = list(cases(options.quick))
    with ProcessPoolExecutor() as pool:
        results = list(pool.map(run, chosen, [seed + i for i in range(len(chosen))], [options.quick] * len(chosen)))
    print(table(results, each_surrogate=True), summary(results), sep="\n\n")
    print("\n" + by_the_largest([r for r in results if r.case.dtype == torch.float32]))
    failed = [r for r in results if not r.passed]
    print(f"\n{len(results)} cases, {len(failed)} beyond their limit, seed {seed}")
    if options.markdown is not None:
        options.markdown.write_text(
            PAGE.format(
                date=datetime.date.today(),
                torch=torch.__version__,
                instruction_set=exodus_core.capabilities()["instruction_set"],
                machine=platform.machine(),
                seed=seed,
                draws=DRAWS,
                shapes=", ".join("x".join(map(str, s)) for s in SHAPES[: 3 if options.quick else 4]),
                summary=summary(results),
                by_the_largest=by_the_largest([r for r in results if r.case.dtype == torch.float32]),
                table=table(results, each_surrogate=False),
            )
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
