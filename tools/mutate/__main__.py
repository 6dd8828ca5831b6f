"""Changes the arithmetic of csrc/core, one operator, number, condition or call at a time: the tests must notice each.

    python -m tools.mutate [--quick] [--seed N] [--again] [--markdown docs/mutants.md]

The library for the CPU is built once with all mutants (build.py), and the most sensitive tests run against each
(plugin.py). What survives and is not explained in survivors.toml is tried on the emulated CUDA kernels too, and so are
all survivors of the scan through chunks of time, which only those have. Exits with 1 if a survivor is not explained, or
if an explanation is of a mutant that did not survive. --quick tries a few mutants that the CPU's kernels have; --again
tries what survived the last run on the same sources, after tests were added.
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
from tools.mutate.mutants import Header, Mutant, read_folder
from tools.mutate.plugin import Plan, Verdict

EXPLANATIONS = Path(__file__).with_name("survivors.toml")
LAST = build.BUILD / "kills.json"
QUICK = 12
#: Headers that the CPU's kernels do not include.
ONLY_EMULATED = ("scan.h",)
TESTS = {
    "cpu": ("surrogate", "lif", "srm", "filter", "gradient_functions", "coupled", "coupled_gradients"),
    "emulated": ("edges", "coupled"),
}
#: Larger sizes are of the loops around this arithmetic; torch.compile starts compilers of its own.
CHOSEN = {
    "cpu": "not compiles and not million and not 2x63x100 and not 1x200x3 and not 2x65x17 and not 2x300x70 "
    "and not 1x2500x20 and not opcheck",
    "emulated": "lif_is_exact and (2x3x or 2x65x or 2x512x or 2x1025x or undiminished) or overflows or held_or_not",
}
#: Long backward passes go by chunks of time in the emulation, others do not.
ENVIRONMENT = {"cpu": {"EXODUS_INSTRUCTION_SET": "portable"}, "emulated": {"EXODUS_CUDA_BACKWARD": "auto"}}

PAGE = """# Mutants

Made by `make mutate` on {date}: torch {torch}.

Every operator, number, bare condition and call of an elementary function in `exodus_core/csrc/core` is changed, one at
a time, and the tests of the core run against each change until one fails. Numbers of enumerators, and what only a
compiler for a GPU sees, are left alone. An invalid mutant does not compile. What survives the tests on the CPU
unexplained, or is in a header that only CUDA kernels include, runs on the emulated CUDA kernels too.

{table}

{killers}

## Survivors

These change nothing, or something that is unspecified; tools/mutate/survivors.toml has the reasons.

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
    def last(sources: str) -> Run:
        """The last one. With more tests, what was killed is killed.

        Raises:
            CheckError: there is none, or it was on other sources.
        """
        kept = json.loads(LAST.read_text()) if LAST.exists() else None
        if kept is None or kept["sources"] != sources:
            found = "none" if kept is None else "one on other sources"
            raise CheckError(f"--again must follow a full run on the same sources, got {found}")
        return Run(sources, kept["valid"], [Verdict(**verdict) for verdict in kept["kills"]])


def tried_on(name: str, mutants: list[Mutant], explained: set[report.Key]) -> frozenset[int]:
    """Numbers of the mutants that a library is to try, if they are alive.

    What is explained is not tried on the emulation, unless nothing else compiles it: otherwise no test would run
    against it, and its explanation could not be found wrong.
    """
    if name == "cpu":
        return frozenset(m.number for m in mutants)
    return frozenset(m.number for m in mutants if m.file in ONLY_EMULATED or m.key not in explained)


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


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tools.mutate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} mutants, drawn at random, on the CPU's kernels")
    parser.add_argument("--seed", type=int, default=None, help="of the mutants that --quick draws; default: 0")
    parser.add_argument("--again", action="store_true", help="only what survived the last run; tests may be new")
    parser.add_argument("--markdown", type=Path, default=None, help="write the tables to this page")
    options = parser.parse_args(arguments)
    if options.seed is not None and not options.quick:
        parser.error("--seed is of the mutants that --quick draws: it needs --quick")
    for name in ("again", "markdown"):
        if options.quick and getattr(options, name):
            parser.error(f"--{name} is of all mutants: it does not go with --quick")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = read_options(arguments)
    try:
        return check(options.quick, options.seed or 0, options.again, options.markdown)
    except CheckError as error:
        print(f"mutate: {error}", file=sys.stderr)
        return 1


def check(quick: bool, seed: int, again: bool, markdown: Path | None) -> int:
    """Tries the mutants and prints what became of them; returns the exit status. Raises CheckError: it cannot."""
    began = time.monotonic()
    headers = read_folder(build.CORE)
    mutants = [m for header in headers for m in header.mutants]
    explanations = report.read_explanations(EXPLANATIONS)
    explained = {key for explanation in explanations for key in explanation.keys}
    if quick:
        mutants = random.Random(seed).sample([m for m in mutants if m.file not in ONLY_EMULATED], QUICK)
    numbers = frozenset(m.number for m in mutants)
    sources = build.digest_of_sources()
    last = Run.last(sources) if again else None
    valid = frozenset(last.valid) if last is not None else build.find_valid(headers, numbers)
    print(f"{len(mutants)} mutants, of which {len(numbers - valid)} do not compile", flush=True)
    verdicts = last.kills if last is not None else []
    alive = valid - {verdict.number for verdict in verdicts}
    for name in ["cpu"] if quick else build.LIBRARIES:
        tried = alive & tried_on(name, mutants, explained)
        library = build.build(name, headers, tried, build.BUILD / ("quick" if quick else name))
        print(f"library {name} is built after {time.monotonic() - began:.0f} s", flush=True)
        verdicts += run_tests(name, library, headers, tried)
        alive -= {verdict.number for verdict in verdicts if verdict.killed_by}
    if not quick:
        Run(sources, sorted(valid), [verdict for verdict in verdicts if verdict.killed_by]).save()
    if quick:
        unreached = {verdict.number for verdict in verdicts if verdict.tests == 0}
        mutants = [m for m in mutants if m.number not in unreached]
        print(f"{len(unreached)} mutants are not reached on the CPU, and left out")
    found = report.outcome(mutants, numbers - valid, verdicts, explanations)
    minutes = (time.monotonic() - began) / 60
    print(report.table(found))
    for mutant in found.unexplained:
        print(f"SURVIVED {mutant}")
    if not quick:
        for key in found.outdated:
            print(f"EXPLAINED, but no survivor: {key}")
    if markdown is not None:
        markdown.write_text(page(found))
    print(f"{len(found.survivors)} survivors, {len(found.unexplained)} without explanation, {minutes:.1f} minutes")
    return 1 if found.unexplained or (found.outdated and not quick) else 0


if __name__ == "__main__":
    sys.exit(main())
