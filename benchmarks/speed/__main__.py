"""Measures everything and reports it.

    python -m benchmarks.speed [--quick] [--kernels]

Writes benchmarks/results/speed.md and speed.png, the README's section, and every repeat to build/bench/speed.json.
--quick (a part, few repeats) and --kernels (the kernels by themselves) only print. Exits with 1 if a contender of ours
is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import machine, plot, report
from .comparison import compare
from .kernels import MODES, measured
from .requirements import requirements

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
REPEATS = ROOT / "build" / "bench" / "speed.json"


def kernel_figures(quick: bool) -> dict[str, dict[str, Any]]:
    figures = {}
    for mode in MODES:
        print(f"the kernels by themselves, {mode} memory", flush=True)
        figures[mode] = measured(mode, quick)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two workloads, few repeats, nothing is written")
    parser.add_argument("--kernels", action="store_true", help="the kernels by themselves, nothing is written")
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    if arguments.kernels:
        print(report.titled(report.kernel_sections(kernel_figures(quick))))
        return 0
    others = machine.Others()
    comparison = compare(quick)
    kernels = kernel_figures(quick)
    here = machine.describe() | {"others": others.share()}
    rows = requirements(comparison, kernels)
    text = report.full(comparison, kernels, rows, here)
    print(f"\n{text}")
    if comparison.ours_is_wrong:
        print("A contender of ours is wrong: nothing is written.")
        return 1
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        figures = {
            "machine": here,
            "comparison": vars(comparison),
            "kernels": kernels,
            "requirements": [asdict(row) | {"holds": row.holds} for row in rows],
        }
        REPEATS.parent.mkdir(parents=True, exist_ok=True)
        REPEATS.write_text(json.dumps(figures, default=vars) + "\n")
        (RESULTS / "speed.md").write_text(text)
        plot.draw(comparison, RESULTS / "speed.png")
        report.rewrite_readme(ROOT / "README.md", report.readme_section(comparison, here))
    return 0


if __name__ == "__main__":
    sys.exit(main())
