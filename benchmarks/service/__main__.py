"""Measures the way over HTTP and compares with what it must reach.

    python -m benchmarks.service [--quick]

Every way is checked first: its gradient has to be the one that this machine computes itself. Contenders take turns.
Writes benchmarks/results/service.md; --quick measures less, and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from . import lines, profile, servers
from .lines import Line
from .messages import KIB, MIB

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("exodus-service", "exodus-client", "uvicorn", "uvloop", "httptools", "fastapi", "httpx", "numpy", "torch")


def measured(quick: bool) -> Iterator[Line]:
    small, medium, large = (100, 30, 5) if quick else (2000, 200, 40)
    with servers.service() as service, servers.other("echo") as echo:
        yield from lines.against_echo(service, echo, {KIB: small, 32 * MIB: large})
    with servers.other("sink") as sink:
        yield from lines.client_against_httpx(sink, 5 * large)  # the best of them is compared
        yield from lines.spikes_as_bits(sink, large)
    yield from lines.decoding()
    with servers.service() as service:
        yield from lines.probes_under_load(service, 2.0 if quick else 15.0)
    yield from lines.memory_of_a_request()
    yield from lines.ways({KIB: small // 2, MIB: medium, 32 * MIB: large})
    with servers.service(shared_memory=1) as service:
        yield from profile.phases(service, large, shared_memory=False)
        yield from profile.phases(service, large, shared_memory=True)
        yield from profile.client_functions(service, large)


def machine() -> dict[str, str]:
    """Machine, commit and versions of the packages."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "processor": models[0].partition(": ")[2] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "threads of torch": str(torch.get_num_threads()),
        "commit": commit.stdout.strip() or "unknown",
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def table(found: list[Line]) -> str:
    rows = ["| what | must reach | reached | |", "|---|---|---|---|"]
    verdicts = {True: "yes", False: "**no**", None: ""}
    rows += [f"| {line.what} | {line.must} | {line.reached} | {verdicts[line.passed]} |" for line in found]
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats; nothing is written")
    quick = parser.parse_args().quick
    found = []
    for line in measured(quick):
        found.append(line)
        print(f"{line.what} | {line.must} | {line.reached} | {'' if line.passed is None else line.passed}", flush=True)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        here = machine()
        described = ", ".join(f"{name} {value}" for name, value in here.items())
        (RESULTS / "service.md").write_text(
            f"# The way over HTTP\n\nBy `make bench-service`. {described}.\n\n{table(found)}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
