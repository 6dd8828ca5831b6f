"""Checks the resources of the compiled CUDA kernels: registers, memory, instructions. Needs nvcc, and no GPU.

    python -m tools.cuda.check [--quick] [--markdown docs/cuda-kernels.md]

Builds the very library that an installation builds, for every architecture, and reads it. Exits with 1 if a kernel
spills registers or uses local memory, if one needs more registers than a block of it can have, if one for float or a
half type has a double-precision instruction that is not meant, or if a vector kernel does not load and store whole
vectors.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.cuda.machine_code import (
    Instruction,
    MissingToolError,
    disassemble,
    element_type,
    find_tool,
    readable_names,
    threads_of_a_block,
    widths,
)

ROOT = Path(__file__).absolute().parents[2]
BUILD = ROOT / "build" / "cuda-check"
LIBRARY = BUILD / "lib" / "exodus_core" / "_C_cuda.abi3.so"
FACTS = LIBRARY.with_name("_C_cuda.json")
QUICK = "9.0"
NO_VIOLATION = """\
No kernel spills registers, has a stack frame or uses local memory on any of them; all shared memory is asked for at
launch. Of the kernels for float, float16 and bfloat16 only those have double-precision instructions that are meant to:
filters and SRM for the state of exponentials and alpha functions, others for totals of sums. Every kernel with more
than one lane a thread loads and stores its signals in whole vectors."""

REGISTERS_OF_A_THREAD = 255
REGISTERS_OF_A_BLOCK = 65536
MAY_USE_DOUBLE = re.compile(r"(filter|srm|taps)_|.*, sums>")
ELEMENT_BITS = {"float": 32, "double": 64, "Half": 16, "BFloat16": 16}


@dataclass(frozen=True)
class Resources:
    """Resources of a kernel on one architecture; memory in bytes."""

    registers: int
    shared: int  # known when compiled; the rest is asked for at launch
    stack: int
    spill_stores: int
    spill_loads: int

    def __str__(self) -> str:
        more = {"shared": self.shared, "stack": self.stack, "spilled": self.spill_stores, "reloaded": self.spill_loads}
        return ", ".join([str(self.registers), *(f"{name} {count}" for name, count in more.items() if count)])


@dataclass(frozen=True)
class Kernel:
    """A kernel on one architecture, by its readable name."""

    name: str
    architecture: str
    threads: int
    resources: Resources
    instructions: list[Instruction]

    @property
    def vector_bits(self) -> int | None:
        """Required width of the loads of its signals; None if a thread has one lane."""
        match = re.match(r"\w+_in_place<(\w+), ([2-9])", self.name)
        return ELEMENT_BITS[match[1]] * int(match[2]) if match else None

    def violations(self) -> list[str]:
        found = []
        needs = self.resources
        if needs.stack or needs.spill_stores or needs.spill_loads or any(i.is_local for i in self.instructions):
            found.append("uses local memory")
        if needs.registers > min(REGISTERS_OF_A_THREAD, REGISTERS_OF_A_BLOCK // self.threads):
            found.append(f"needs more registers than {self.threads} threads can have")
        may = element_type(self.name) == "double" or MAY_USE_DOUBLE.match(self.name)
        if not may and any(i.is_double for i in self.instructions):
            found.append("has double-precision instructions")
        bits = self.vector_bits
        if bits is not None and bits not in widths(self.instructions, "LDG", "LDGSTS"):
            found.append(f"loads no vectors of {bits} bits")
        # Sums are written a lane at a time, but vector kernels have none: whatever they store is a vector.
        if bits is not None and set(widths(self.instructions, "STG")) != {bits}:
            found.append(f"does not only store vectors of {bits} bits")
        return [f"{self.name} on {self.architecture} {what} ({needs})" for what in found]


def build(architectures: str | None) -> str:
    """Builds the library as an installation does, and returns what the assembler says of it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXODUS_")}
    environment |= {"EXODUS_FORCE_CUDA": "1", "NVCC_APPEND_FLAGS": "-Xptxas -v --threads 2"}
    environment.pop("TORCH_CUDA_ARCH_LIST", None)
    LIBRARY.unlink(missing_ok=True)  # without nvcc none is built
    if architectures is not None:
        environment["TORCH_CUDA_ARCH_LIST"] = architectures
    command = [
        sys.executable,
        "setup.py",
        "--quiet",
        "build",
        "--build-base",
        str(BUILD),
        "--build-lib",
        str(BUILD / "lib"),
    ]
    done = subprocess.run(
        command, cwd=ROOT / "exodus_core", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0 or not LIBRARY.exists():
        sys.exit(f"the build failed:\n{done.stdout}")
    return done.stdout


def parse_resources(log: str) -> dict[str, dict[str, Resources]]:
    """By architecture and symbol, from what `ptxas -v` prints."""
    found: dict[str, dict[str, Resources]] = {}
    pattern = (
        r"Compiling entry function '(?P<symbol>\w+)' for '(?P<architecture>sm_\w+)'\n"
        r".*Function properties for (?P=symbol)\n"
        r"\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*Used (\d+) registers(?:.*?(\d+) bytes smem)?"
    )
    for match in re.finditer(pattern, log):
        stack, stores, loads, registers, shared = (int(number or 0) for number in match.groups()[2:])
        of_architecture = found.setdefault(match["architecture"], {})
        of_architecture[match["symbol"]] = Resources(registers, shared, stack, stores, loads)
    return found


def built_architectures() -> str:
    """Architectures of the library, as in TORCH_CUDA_ARCH_LIST."""
    listed: str = json.loads(FACTS.read_text())["architectures"]
    return listed


def read_kernels(log: str) -> list[Kernel]:
    kernels = []
    by_architecture = parse_resources(log)
    expected = {f"sm_{entry.removesuffix('+PTX').replace('.', '')}" for entry in built_architectures().split(";")}
    if by_architecture.keys() != expected:
        sys.exit(f"the assembler reported {sorted(by_architecture)}, not {sorted(expected)}: is nvcc on PATH?")
    for architecture, resources in by_architecture.items():
        listings = disassemble(LIBRARY, architecture)
        threads = threads_of_a_block(LIBRARY, architecture)
        if not resources.keys() == listings.keys() == threads.keys():
            sys.exit(f"the assembler's log and the library have different kernels for {architecture}")
        names = readable_names(resources)
        kernels += [
            Kernel(names[symbol], architecture, threads[symbol], needs, listings[symbol])
            for symbol, needs in resources.items()
        ]
    return sorted(kernels, key=lambda kernel: (kernel.name, int(kernel.architecture.removeprefix("sm_"))))


def table(kernels: list[Kernel], cell: Callable[[Kernel], str]) -> str:
    """One line a kernel, one column an architecture."""
    columns = list(dict.fromkeys(kernel.architecture for kernel in kernels))
    lines = [f"| kernel | threads | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name in dict.fromkeys(kernel.name for kernel in kernels):
        row = {kernel.architecture: kernel for kernel in kernels if kernel.name == name}
        cells = [cell(row[column]) for column in columns]
        lines.append(f"| `{name}` | {row[columns[0]].threads} | {' | '.join(cells)} |")
    return "\n".join(lines)


def memory_table(kernels: list[Kernel], architecture: str) -> str:
    """Loads and stores in the machine code of the float kernels, counted by width in bits."""

    def listed(counts: Counter[int]) -> str:
        return ", ".join(f"{count} of {bits}" for bits, count in sorted(counts.items(), reverse=True))

    lines = [
        "| kernel | instructions | copies to shared | global loads | global stores | generic loads | generic stores |",
        "|---" * 7 + "|",
    ]
    for kernel in kernels:
        if kernel.architecture != architecture or element_type(kernel.name) != "float":
            continue
        code = kernel.instructions
        accesses = " | ".join(listed(widths(code, name)) for name in ("LDGSTS", "LDG", "STG", "LD", "ST"))
        lines.append(f"| `{kernel.name}` | {len(code)} | {accesses} |")
    return "\n".join(lines)


def report(kernels: list[Kernel], violations: list[str]) -> str:
    compiler = json.loads(FACTS.read_text())["cuda"]
    architectures = list(dict.fromkeys(kernel.architecture for kernel in kernels))
    shown = "sm_90" if "sm_90" in architectures else architectures[-1]
    verdict = "\n".join(f"- {line}" for line in violations) or NO_VIOLATION
    return f"""# Resources of the CUDA kernels

Made by `make cuda-check` on {datetime.date.today()}: nvcc {compiler}, {len(kernels) // len(architectures)} kernels
for {built_architectures().replace(";", ", ")}. Compiled and read, not run.

{verdict}

## Registers

Per thread, by architecture; then shared memory, stack and spills in bytes, if any. "sums" are the
kernels that also compute the gradients of the neuron's parameters; a number is how many lanes a thread has.

{table(kernels, lambda kernel: str(kernel.resources))}

## Memory instructions of the float kernels

In the machine code for {shown}: how many of which width in bits. Parameters are loaded one at a time, before the walk
through time. Generic ones reach global or shared memory, whichever holds the state of a kernel's response.

{memory_table(kernels, shown)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only the architectures {QUICK}")
    parser.add_argument("--markdown", type=Path, default=None, help="write the page to this file")
    options = parser.parse_args()
    try:
        find_tool("cuobjdump")
        find_tool("nvdisasm")
    except MissingToolError as error:
        print(error, file=sys.stderr)
        return 1
    kernels = read_kernels(build(QUICK if options.quick else None))
    violations = [line for kernel in kernels for line in kernel.violations()]
    page = report(kernels, violations)
    print(page)
    if options.markdown is not None:
        options.markdown.write_text(page)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
