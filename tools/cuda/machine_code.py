"""Machine code of the CUDA kernels, read from a compiled file with cuobjdump (requirements-cuda.txt)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

DOUBLE = ("DADD", "DFMA", "DMMA", "DMNMX", "DMUL", "DSETP")
BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}


class MissingToolError(Exception):
    """A program that the machine code is read with is not installed."""


@dataclass(frozen=True)
class Control:
    """The compiler's word to the scheduler about an instruction (Volta and later; decode_control).

    Attributes:
        stall: cycles until the warp may start its next instruction.
        write_barrier: scoreboard that is held until the result is there, or None.
        read_barrier: scoreboard that is held until the operands have been read, or None.
        waits: scoreboards that must be free before the instruction starts.
    """

    stall: int = 1
    write_barrier: int | None = None
    read_barrier: int | None = None
    waits: tuple[int, ...] = ()


@dataclass(frozen=True)
class Instruction:
    """One instruction: its address in bytes, its opcode with modifiers ("LDG.E.128"), and the operands as text.

    The guard is the predicate it is executed under ("!P0"), or empty.
    """

    address: int
    opcode: str
    operands: str
    guard: str = ""
    control: Control = Control()

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def operand_list(self) -> list[str]:
        return [operand.strip().removesuffix(".reuse") for operand in self.operands.split(",")]

    @property
    def target(self) -> int:
        """Address that a branch goes to."""
        return int(self.operands.split()[-1], 16)

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


def decode_control(high_word: int) -> Control:
    """From the upper 64 of an instruction's 128 bits: 105 to 121 are stall, yield, two barriers (7: none), and waits.

    The field is not documented by NVIDIA; it was found by Jia et al. for Volta (arXiv 1804.06826, section 2.1).
    """
    field = high_word >> 41

    def barrier(number: int) -> int | None:
        return None if number == 7 else number

    waits = tuple(number for number in range(6) if field >> 11 + number & 1)
    return Control(field & 15, barrier(field >> 5 & 7), barrier(field >> 8 & 7), waits)


def parse_listing(lines: Iterable[str]) -> dict[str, list[Instruction]]:
    """The instructions of every kernel, by its symbol, from what `cuobjdump -sass` prints.

    A line with an instruction ends with the lower word of its code, and the line after it with the upper word.
    """
    kernels: dict[str, list[Instruction]] = {}
    listing: list[Instruction] = []
    for line in lines:
        if "Function :" in line:
            listing = kernels.setdefault(line.partition("Function :")[2].strip(), [])
        instruction = re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+) )?([A-Z][\w.]*) ?(.*?);", line)
        high_word = re.match(r"\s+/\* 0x([0-9a-f]{16}) \*/", line)
        if instruction is not None:
            listing.append(
                Instruction(int(instruction[1], 16), instruction[3], instruction[4].strip(), instruction[2] or "")
            )
        elif high_word is not None and listing:
            listing[-1] = replace(listing[-1], control=decode_control(int(high_word[1], 16)))
    return kernels


def disassemble(binary: Path, architecture: str) -> dict[str, list[Instruction]]:
    """The instructions of every kernel, by its symbol, for an architecture such as "sm_90"."""
    return parse_listing(_cuobjdump("-sass", binary, architecture))


def registers(binary: Path, architecture: str) -> dict[str, int]:
    """Registers of a thread of the kernels, by symbol."""
    found: dict[str, int] = {}
    kernel = ""
    for line in _cuobjdump("-res-usage", binary, architecture):
        if line.strip().startswith("Function "):
            kernel = line.strip().removeprefix("Function ").removesuffix(":")
        elif (match := re.search(r"REG:(\d+)", line)) is not None:
            found[kernel] = int(match[1])
    return found


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
        flag = "sums" if short.startswith(("lif_", "coupled_")) else "reverse"
        names[symbol] = short.replace(", true>", f", {flag}>").replace(", false>", ">")
    return names


def element_type(kernel: str) -> str:
    """float, double, Half or BFloat16, from a readable name."""
    return kernel.partition("<")[2].rstrip(">").partition(",")[0]


def widths(instructions: Iterable[Instruction], *names: str) -> Counter[int]:
    """Number of loads or stores of these names ("LDG") by width in bits."""
    return Counter(instruction.bits for instruction in instructions if instruction.name in names)
