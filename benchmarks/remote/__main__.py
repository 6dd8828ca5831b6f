"""Measures what training on the server costs beyond training in the process.

    python -m benchmarks.remote [--quick]

Server and client share the machine. Every way is checked first: its weights have to be those of the training in this
process, to the bit, before and after it is timed. Contenders take turns. Writes benchmarks/results/remote.md;
--quick measures less, and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.service import servers
from benchmarks.service.__main__ import table
from benchmarks.service.lines import Line
from benchmarks.speed.machine import Others, describe, sentence
from exodus_service.compute.allocator import keep_memory
from exodus_service.settings import Settings

from . import lines
from .tasks import LARGE, SMALL

RESULTS = Path(__file__).parents[1] / "results"


def measured(quick: bool) -> Iterator[Line]:
    with tempfile.TemporaryDirectory() as folder, servers.service(state_dir=folder) as server:
        yield from lines.steps(server, LARGE, 1 if quick else 12)
        yield from lines.encodings(server, LARGE, 1 if quick else 4)
        yield from lines.overhead(server, SMALL, 50 if quick else 1000)
        yield from lines.custom(server, LARGE, 3 if quick else 50)
        if not quick:
            keep_memory(Settings().keep_memory)  # for the rest of this process
            as_there = replace(LARGE, name=f"{LARGE.name}, memory kept here too")
            yield from lines.steps(server, as_there, 12, targets=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats; nothing is written")
    quick = parser.parse_args().quick
    machine, others, found = describe(), Others(), []
    for line in measured(quick):
        found.append(line)
        verdict = {True: "yes", False: "NO", None: ""}[line.passed]
        print(f"{line.what} | {line.must} | {line.reached} | {verdict}", flush=True)
    machine["others"] = others.share()
    if not quick:
        (RESULTS / "remote.md").write_text(
            "# Training on the server\n\n"
            f"By `make bench-remote` ({sentence(machine)}). Server and client share the machine; the model is saved "
            "every 10 steps, in the background. Adam, `max_over_time_ce`, one spike in twenty. Before and after it was "
            "timed every way had the weights of the training in this process, to the bit. Contenders took turns, "
            f"{lines.STEPS} steps each; best and median of the turns. The server keeps memory that it has freed "
            "(EXODUS_KEEP_MEMORY); the process that it is compared with leaves the C library as it is, but in the "
            f"lines that say so.\n\n{table(found)}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
