"""Changes the arithmetic of csrc/core, one operator, number, condition or call at a time: the tests must notice each.

    python -m tools.mutate [--quick] [--seed N] [--again] [--markdown docs/mutants.md]

The library for the CPU is built once with all mutants (build.py), and the most sensitive tests run against each
(plugin.py). What survives and is not explained in survivors.toml is tried on the emulated CUDA kernels too, which alone
have the scan through chunks of time. Exits with 1 if a survivor is not explained, or if an explanation is of a mutant
that did not survive. --quick tries a few mutants that the CPU's kernels have; --again tries what survived the last run
on the same sources, after tests were added.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tools.commands import ROOT, CheckError
from tools.mutate import build, report
from tools.mutate.mutants import Header, read_folder
from tools.mutate.plugin import Plan, Verdict

EXPLANATIONS = Path(__file__).with_name("survivors.toml")
LAST = build.BUILD / "kills.json"
QUICK = 12
#: Headers that the CPU's kernels do not include.
ONLY_EMULATED = ("scan.h",)
TESTS = {
    "cpu": ("surrogate", "lif", "srm", "filter", "gradient_functions"),
    "emulated": ("edges",),
}
#: Larger sizes are of the loops around this arithmetic; torch.compile starts compilers of its own.
CHOSEN = {
    "cpu": "not compiles and not million and not 2x63x100 and not 1x200x3 and not 2x65x17",
    "emulated": "lif_is_exact and (2x3x or 2x65x or 2x512x or 2x1025x or undiminished) or overflows",
}
#: Long backward passes go by chunks of time in the emulation, others do not.
ENVIRONMENT = {"cpu": {"EXODUS_INSTRUCTION_SET": "portable"}, "emulated": {"EXODUS_CUDA_BACKWARD": "auto"}}

PAGE = """# Mutants

Made by `make mutate` on {date}: torch {torch}.

Every operator, number, bare condition and call of an elementary function in `exodus_core/csrc/core` is changed, one at
a time, and the tests of the core run against each change until one fails. Numbers of enumerators, and what only a
compiler for a GPU sees, are left alone. An invalid mutant does not compile. What survives the tests on the CPU
unexplained runs on the emulated CUDA kernels too.

{table}

{killers}

## Survivors

No test can find these; tools/mutate/survivors.toml has the reasons.

{survivors}
"""


@dataclass
class Run:
    """A run on all mutants, as it is kept for the next: those that compile, and verdicts on those that were killed."""

    sources: str
    valid: list[int]
    kills: list[Verdict]

    def save(self) -> None:
        LAST.write_text(json.dumps(asdict(self)))

    @staticmethod
    def last(sources: str) -> Run | None:
        """The last one, if it was on the same sources. With more tests, what was killed is killed."""
        kept = json.loads(LAST.read_text()) if LAST.exists() else None
        if kept is None or kept["sources"] != sources:
            return None
        return Run(sources, kept["valid"], [Verdict(**verdict) for verdict in kept["kills"]])


def run_tests(name: str, library: Path, headers: list[Header], numbers: frozenset[int]) -> list[Verdict]:
    """Runs the tests of a library against mutants. Raises CheckError: pytest ends with an error."""
    files = {h.name: [m.number for m in h.mutants if m.number in numbers] for h in headers}
    plan, verdicts = build.BUILD / f"{name}.plan.json", build.BUILD / f"{name}.verdicts.jsonl"
    verdicts.unlink(missing_ok=True)
    (path,) = (library / "exodus_core").glob("_C.*so")
    Plan(str(path), {file: own for file, own in files.items() if own}, str(verdicts)).save(plan)
    command = [sys.executable, "-m", "pytest", "-p", "tools.mutate.plugin", "-p", "no:cacheprovider", "-q"]
    command += ["--capture=no", "--no-header", "-m", "not slow and not peers", "-k", CHOSEN[name]]
    command += [f"tests/core/test_{test}.py" for test in TESTS[name]]
    folders = os.pathsep.join(filter(None, (str(library), str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **ENVIRONMENT[name], "EXODUS_MUTATE_PLAN": str(plan), "PYTHONPATH": folders}
    # A fork has no threads but the one that it is made from: those of torch must not have been started before.
    environment |= {"OMP_NUM_THREADS": "1", "EXODUS_MUTANT": "0"}
    ended = subprocess.run(command, cwd=ROOT, env=environment)
    if ended.returncode not in (0, 5):  # 5: pytest ran nothing itself
        raise CheckError(f"pytest on the library {name} ended with status {ended.returncode}")
    return [Verdict(**json.loads(line)) for line in verdicts.read_text().splitlines()]


def page(found: report.Outcome) -> str:
    return PAGE.format(
        date=datetime.date.today(),
        torch=torch.__version__,
        table=report.table(found),
        killers=report.killers(found),
        survivors=report.survivors(found).rstrip(),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} mutants, drawn at random, on the CPU's kernels")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants that --quick draws")
    parser.add_argument("--again", action="store_true", help="only what survived the last run; tests may be new")
    parser.add_argument("--markdown", type=Path, default=None, help="write the tables to this page")
    options = parser.parse_args()
    began = time.monotonic()
    headers = read_folder(build.CORE)
    mutants = [m for header in headers for m in header.mutants]
    explanations = report.read_explanations(EXPLANATIONS)
    explained = {key for explanation in explanations for key in explanation.keys}
    if options.quick:
        mutants = random.Random(options.seed).sample([m for m in mutants if m.file not in ONLY_EMULATED], QUICK)
    numbers = frozenset(m.number for m in mutants)
    sources = build.digest_of_sources()
    last = Run.last(sources) if options.again else None
    valid = frozenset(last.valid) if last is not None else build.find_valid(headers, numbers)
    print(f"{len(mutants)} mutants, of which {len(numbers - valid)} do not compile", flush=True)
    verdicts = last.kills if last is not None else []
    alive = valid - {verdict.number for verdict in verdicts}
    for name in ["cpu"] if options.quick else build.LIBRARIES:
        library = build.build(name, headers, alive, build.BUILD / ("quick" if options.quick else name))
        print(f"library {name} is built after {time.monotonic() - began:.0f} s", flush=True)
        verdicts += run_tests(name, library, headers, alive)
        alive -= {verdict.number for verdict in verdicts if verdict.killed_by}
        alive -= {m.number for m in mutants if m.key in explained}
    if not options.quick:
        Run(sources, sorted(valid), [verdict for verdict in verdicts if verdict.killed_by]).save()
    if options.quick:
        unreached = {verdict.number for verdict in verdicts if verdict.tests == 0}
        mutants = [m for m in mutants if m.number not in unreached]
        print(f"{len(unreached)} mutants are not reached on the CPU, and left out")
    found = report.outcome(mutants, numbers - valid, verdicts, explanations)
    minutes = (time.monotonic() - began) / 60
    print(report.table(found))
    for mutant in found.unexplained:
        print(f"SURVIVED {mutant}")
    if not options.quick:
        for key in found.outdated:
            print(f"EXPLAINED, but no survivor: {key}")
    if options.markdown is not None:
        options.markdown.write_text(page(found))
    print(f"{len(found.survivors)} survivors, {len(found.unexplained)} without explanation, {minutes:.1f} minutes")
    return 1 if found.unexplained or (found.outdated and not options.quick) else 0


if __name__ == "__main__":
    sys.exit(main())
