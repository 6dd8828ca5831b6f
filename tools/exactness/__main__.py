"""Compares the gradients of the kernels with autograd through the plain loop in float64, for every setting.

    python -m tools.exactness [--quick] [--seed N] [--markdown docs/exactness.md]

For each neuron, method, reset, surrogate and dtype, over odd shapes and fresh random inputs, it prints the largest
difference of each gradient, relative to the largest value of that gradient. Both sides decide every spike alike: the
loop is pinned to the membrane that the neuron really had (docs/equations.md, section 6; `one_state`), or the exact
gradient is computed of the traces that the kernel stored (`coupled`). Next to each float32 error stands that of the
same loop in float32: the mean error of a gradient over the draws may be twice the loop's, or one unit in the last
place where the loop happens to be exact. Exits with 1 if a limit is passed.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import secrets
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

import exodus_core

from . import coupled, one_state
from .results import DRAWS, SHAPES, Case, Result
from .tables import COUPLED, EVERY_COUPLED, ONE_STATE, by_the_largest, summary, table

Measure = Callable[[Case, tuple[int, ...]], tuple[dict[str, list[float]], dict[str, list[float]]]]


def run(measure: Measure, case: Case, seed: int, quick: bool) -> Result:
    """All shapes of a case, whose errors `measure` finds at one."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    result = Result(case, {}, {})
    for shape in SHAPES[: 3 if quick else 4]:
        for total, part in zip((result.errors, result.plain), measure(case, shape), strict=True):
            for name, errors in part.items():
                total.setdefault(name, []).extend(errors)
    return result


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

## Neurons with more variables

Second-order and adaptive neurons, refractory periods, and resets to a value or without a gradient
([equations.md](equations.md), section 9). Of several gradients a figure is the largest: of what the membrane has
(alpha, threshold, reset_by or reset_to, min_membrane), the synapse (synapse_alpha, synapse_gain), the adaptation
(adapt_alpha, adapt_by, and of adapt_membrane, adapt_threshold and adapt_current those that the neuron has), and of the
states before the first step; `make exactness` prints each of them. The gradients are of a random function of spikes,
membranes and the last current and adaptation; the surrogate is the exponential one.

Spikes and membranes are those of the loop to the bit, in every dtype. In float64 the gradients are compared with
autograd through the loop. A loop in float64 would have other membranes than a neuron in float32, soon other spikes: the
other dtypes are compared with the backward pass in float64 on the traces that the kernel stored. In float32 the loop
has these traces too, so that its own error, in brackets, is one of the same sums, and the limit is that of above. With
float16 and bfloat16 the backward pass computes in float32 and rounds once, when it writes the gradient of a signal: the
limit of signals is this rounding, that of parameters twice the mean error of the float32 loop on the same inputs, at
least one unit in the last place of float32.

{coupled}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two surrogates, float64 and float32, no long shape")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run; a fresh one by default")
    parser.add_argument("--markdown", type=Path, default=None, help="write the table to this page")
    options = parser.parse_args()
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    simple, others = list(one_state.cases(options.quick)), list(coupled.cases(options.quick))
    measures = [one_state.measure] * len(simple) + [coupled.measure] * len(others)
    seeds, quick = range(seed, seed + len(measures)), [options.quick] * len(measures)
    with ProcessPoolExecutor() as pool:
        results = list(pool.map(run, measures, simple + others, seeds, quick))
    of_one_state, of_coupled = results[: len(simple)], results[len(simple) :]
    print(table(of_one_state, ONE_STATE, each_surrogate=True), table(of_coupled, EVERY_COUPLED), sep="\n\n")
    print("\n" + summary(results))
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
                table=table(of_one_state, ONE_STATE),
                coupled=table(of_coupled, COUPLED),
            )
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
