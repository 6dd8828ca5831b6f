"""Machine code of the CUDA kernels, read from a compiled file with cuobjdump (requirements-cuda.txt)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DOUBLE = ("DADD", "DFMA", "DMMA", "DMNMX", "DMUL", "DSETP")
BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}


class MissingToolError(Exception):
    """A program that the machine code is read with is not installed."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its address in bytes, its opcode with modifiers ("LDG.E.128"), and the operands as text."""

    address: int
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def bits(self) -> int:
        """Width of a load or store."""
        return next((BITS[part] for part in self.opcode.split(".") if part in BITS), 32)

    @property
    def is_double(self) -> bool:
        return self.name in DOUBLE or ".F64" in self.opcode or "64H" in self.opcode

    @property
    def is_local(self) -> bool:
        return self.name in ("LDL", "STL")


def find_tool(name: str) -> str:
    """The path of cuobjdump or nvdisasm: on PATH, or from its Python package.

    Raises:
        MissingToolError: it is in neither place.
    """
    found = shutil.which(name)
    if found is not None:
        return found
    try:
        files = metadata.distribution(f"nvidia-cuda-{name}").files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return str(file.locate())
    raise MissingToolError(f"{name} is not installed: pip install --requirement requirements-cuda.txt")


def _cuobjdump(what: str, binary: Path, architecture: str) -> Iterator[str]:
    folders = [str(Path(find_tool("nvdisasm")).parent), os.environ.get("PATH", "")]  # cuobjdump starts nvdisasm
    command = [find_tool("cuobjdump"), what, "-arch", architecture, str(binary)]
    done = subprocess.run(
        command, env={**os.environ, "PATH": os.pathsep.join(folders)}, capture_output=True, text=True, check=True
    )
    yield from done.stdout.splitlines()


def disassemble(binary: Path, architecture: str) -> dict[str, list[Instruction]]:
    """The instructions of every kernel, by its symbol, for an architecture such as "sm_90"."""
    kernels: dict[str, list[Instruction]] = {}
    listing: list[Instruction] = []
    for line in _cuobjdump("-sass", binary, architecture):
        if "Function :" in line:
            listing = kernels.setdefault(line.partition("Function :")[2].strip(), [])
        match = re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*) ?(.*?);", line)
        if match is not None:
            listing.append(Instruction(int(match[1], 16), match[2], match[3].strip()))
    return kernels


def threads_of_a_block(binary: Path, architecture: str) -> dict[str, int]:
    """Threads of a block that the kernels were compiled for (__launch_bounds__), by symbol."""
    found: dict[str, int] = {}
    kernel = attribute = ""
    for line in _cuobjdump("-elf", binary, architecture):
        if line.startswith(".nv.info."):
            kernel = line.strip().removeprefix(".nv.info.")
        elif "Attribute:" in line:
            attribute = line.split()[-1]
        elif "Value:" in line and attribute == "EIATTR_MAX_THREADS" and kernel:
            x, y, z = (int(number, 16) for number in line.split()[1:4])
            found[kernel] = x * y * z
            attribute = ""
    return found


def readable_names(symbols: Iterable[str]) -> dict[str, str]:
    """Names such as "lif_backward_in_place<float, 4, sums>" for symbols."""
    listed = list(symbols)
    demangled = subprocess.run(["c++filt"], input="\n".join(listed), capture_output=True, text=True, check=True).stdout
    names = {}
    for symbol, full in zip(listed, demangled.splitlines(), strict=True):
        short = re.sub(r"^void |exodus::(cuda::)?|\(anonymous namespace\)::", "", full).partition("(")[0]
        names[symbol] = short.replace(", true>", ", sums>").replace(", false>", ">")
    return names


def element_type(kernel: str) -> str:
    """float, double, Half or BFloat16, from a readable name."""
    return kernel.partition("<")[2].rstrip(">").partition(",")[0]


def widths(instructions: Iterable[Instruction], *names: str) -> Counter[int]:
    """Number of loads or stores of these names ("LDG") by width in bits."""
    return Counter(instruction.bits for instruction in instructions if instruction.name in names)
