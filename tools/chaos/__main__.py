"""Trains while everything fails, and says whether the result is the same to the bit.

    python -m tools.chaos [--quick] [--seed N] [--markdown FILE]

Exit status 1 where anything differs. --markdown puts the tables between the marks in a file.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from . import disks, kills, scenarios, workload
from .verdicts import Scenario, Verdicts

BEGIN, END = "<!-- chaos: begin, written by make chaos -->", "<!-- chaos: end -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps and kills, every kind at least once")
    parser.add_argument("--seed", type=int, help="of kills, faults and training; chosen and printed unless given")
    parser.add_argument("--only", help="scenarios whose names contain this")
    parser.add_argument("--markdown", type=Path, help="the file whose marked part is replaced")
    arguments = parser.parse_args()
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    torch.set_num_threads(1)  # as the servers that are started here: the sums are the same then
    steps, few = (60, 30) if arguments.quick else (200, 60)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="exodus-chaos-") as folder:
        verdicts = run(Path(folder), steps, few, seed, arguments.quick, arguments.only or "")
    seconds = time.monotonic() - began
    quick = " --quick" if arguments.quick else ""
    text = f"`python -m tools.chaos{quick} --seed {seed}`, {seconds:.0f} s:\n\n{verdicts.markdown()}"
    print(text)
    print(f"\nverdict: {'everything is as undisturbed' if verdicts.fine else 'SOMETHING DIFFERS'}")
    if arguments.markdown is not None:
        before, _, rest = arguments.markdown.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        arguments.markdown.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return 0 if verdicts.fine else 1


def run(folder: Path, steps: int, few: int, seed: int, quick: bool, only: str) -> Verdicts:
    """All scenarios; the long ones have `steps` steps, the others `few`."""
    verdicts = Verdicts()
    wanted, wanted_few = workload.in_process(steps, seed), workload.in_process(few, seed)
    events: tuple[list[str], list[str]] = ([], [])
    with verdicts.scenario("nothing: over HTTP as in this process") as found:
        events = scenarios.undisturbed(folder / "undisturbed", few, seed, wanted_few, found)
    planned: dict[str, Callable[[Scenario], object]] = {
        "SIGKILL, faults of the network": lambda found: scenarios.disturbed(
            folder / "kill", steps, seed, kills.all_kinds(*events, seed, quick), wanted, found
        ),
        "SIGTERM, faults of the network": lambda found: scenarios.terminated(
            folder / "term", steps, seed, kills.graceful(seed, 2 if quick else 8), wanted, found
        ),
        "disk full": lambda found: disks.full_disk(folder / "full", few, seed, wanted_few, found),
        "damaged files": lambda found: disks.rotten_files(folder / "rotten", few, seed, wanted_few, found),
        "two clients, two models": lambda found: scenarios.two_models(folder / "two", few, seed, found),
        "two clients, one model": lambda found: scenarios.one_model(folder / "one", few, seed, wanted_few, found),
    }
    for name, scenario in planned.items():
        if only in name:
            with verdicts.scenario(name) as found:
                scenario(found)
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
