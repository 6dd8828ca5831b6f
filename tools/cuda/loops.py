"""The loop of a kernel through time: the path that a launch takes through it, and its cycles for one warp alone.

    python -m tools.cuda.loops BINARY KERNEL [--architecture sm_90] [--set 0x2c0=4 ...] [--within 0xd60]

Prints what model.py needs of a kernel, such as "lif_forward_in_place<float, 4>". --set gives 32-bit words of the
kernel's arguments (constant bank 0) that branches depend on: the reset, the surrogate, pointers that may be null.
--within selects the shortest loop that contains an address, instead of the longest one of all.
"""

from __future__ import annotations

import argparse
import itertools
import operator
import re
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.cuda.machine_code import Instruction, MissingToolError, disassemble, readable_names, registers

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "EQ": operator.eq,
    "NE": operator.ne,
    "NEU": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GTU": operator.gt,
    "GE": operator.ge,
    "GEU": operator.ge,
}
COPIES = ("MOV", "UMOV", "R2UR", "IMAD.MOV.U32", "IMAD.U32")
WITHOUT_RESULT = ("ST", "STG", "STS", "STL", "BAR", "BSSY", "BSYNC", "LDGSTS", "LDGDEPBAR", "DEPBAR", "NOP", "WARPSYNC")

# Cycles until the result of an instruction without fixed latency is there. Shared memory: measured by Luo et al. (arXiv
# 2402.13499, table IV); others: estimates of the right order, from Jia et al. for Volta (arXiv 1804.06826).
LATENCIES = {"LDS": 29, "LDC": 30, "S2R": 30, "R2UR": 12}
OTHER_LATENCY = 22  # the units for conversions, reciprocals and their like
OPERANDS_READ = 12  # cycles that a load or store holds the registers of its address and values
MEMORY_LOADS = ("LDG", "LD", "LDGSTS")

USUAL_LATENCY = 700  # of global memory, in cycles: that of an H100 in model.py
LONG_LATENCY = 100_000  # longer than any pass

SLOW_PATH = 8  # instructions that a branch around a call jumps over at most
PASSES = 40  # simulated; the second half is measured


class Known:
    """Values of registers and predicates as far as they follow from constants; all others are unknown (None)."""

    def __init__(self, constants: Mapping[int, int]) -> None:
        self._constants = constants
        self._values: dict[str, int] = {}

    def integer(self, operand: str) -> int | None:
        """The 32 bits of a register, an immediate or a constant."""
        if operand in ("RZ", "URZ"):
            return 0
        if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", operand):
            return int(operand, 0) & 0xFFFFFFFF
        if (constant := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", operand)) is not None:
            return self._constants.get(int(constant[1], 16))
        return self._values.get(operand)

    def number(self, operand: str) -> float | None:
        """The same as a float32."""
        if re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", operand):
            return float(operand)
        bits = self.integer(operand)
        return None if bits is None else float(struct.unpack("f", struct.pack("I", bits))[0])

    def predicate(self, operand: str) -> bool | None:
        """True for no predicate at all."""
        name = operand.removeprefix("!")
        value = 1 if name in ("", "PT", "UPT") else self._values.get(name)
        return None if value is None else bool(value) != operand.startswith("!")

    def execute(self, instruction: Instruction) -> None:
        """Sets the results, to unknown where the instruction is not one of the few understood here."""
        guard = self.predicate(instruction.guard)
        if guard is False or instruction.name in WITHOUT_RESULT:
            return
        operands = instruction.operand_list
        if instruction.name in ("ISETP", "UISETP", "FSETP"):
            self._set(operands[0], self._compare(instruction) if guard else None)
        elif instruction.name == "PLOP3":
            self._set(operands[0], self._look_up(operands) if guard else None)
        elif instruction.name in ("LDC", "ULDC"):
            for register, offset in zip(_results(instruction), (0, 4, 8, 12), strict=False):
                self._set(register, self._constant(operands[1], offset) if guard else None)
        elif instruction.name == "P2R":
            bits = [
                self.predicate(f"P{number}") if int(operands[3], 16) >> number & 1 else False for number in range(7)
            ]
            known = None if None in bits else sum(bool(bit) << number for number, bit in enumerate(bits))
            self._set(operands[0], known if guard else None)
        elif instruction.opcode in COPIES and set(operands[1:-1]) <= {"RZ"}:
            self._set(operands[0], self.integer(operands[-1]) if guard else None)
        else:
            for result in _results(instruction):
                self._set(result, None)

    def _set(self, name: str, value: int | None) -> None:
        if value is None:
            self._values.pop(name, None)
        else:
            self._values[name] = value

    def _constant(self, operand: str, offset: int) -> int | None:
        address = re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", operand)
        return None if address is None else self._constants.get(int(address[1], 16) + offset)

    def _compare(self, instruction: Instruction) -> bool | None:
        """SETP.comparison.AND or .OR with a predicate; .EX has the upper words, and the result of the lower ones."""
        parts = instruction.opcode.split(".")
        _, _, left, right, other, *lower = instruction.operand_list
        read = self.number if instruction.name == "FSETP" else self.integer
        a, b = read(left), read(right)
        result: bool | None = None
        if a is not None and b is not None:
            if instruction.name != "FSETP" and "U32" not in parts:
                a, b = (x - (1 << 32) if x >= 1 << 31 else x for x in (a, b))
            result = self.predicate(lower[0]) if "EX" in parts and a == b else COMPARISONS[parts[1]](a, b)
        combined = self.predicate(other)
        decisive = "OR" in parts  # an OR is true if either is, an AND false
        if decisive in (result, combined):
            return decisive
        return None if None in (result, combined) else not decisive

    def _look_up(self, operands: list[str]) -> bool | None:
        """PLOP3: a table of eight bits over three predicates."""
        table = int(operands[5], 16)
        choices = [[False, True] if known is None else [known] for known in map(self.predicate, operands[2:5])]
        results = {table >> (4 * a + 2 * b + c) & 1 for a, b, c in itertools.product(*choices)}
        return bool(results.pop()) if len(results) == 1 else None


def _results(instruction: Instruction) -> list[str]:
    """Registers and predicates that an instruction writes."""
    operands = instruction.operand_list
    found = [operand for operand in operands[:2] if re.fullmatch(r"U?P\d", operand)]
    if (register := re.fullmatch(r"(U?R)(\d+)", operands[0])) is not None:
        parts = instruction.opcode.split(".")
        words = 4 if "128" in parts else 2 if {"64", "WIDE", "CS2R"} & set(parts) else 1
        found += [f"{register[1]}{int(register[2]) + word}" for word in range(words)]
    return found


@dataclass(frozen=True)
class Step:
    """One instruction of a path, and if it is a branch that is taken."""

    instruction: Instruction
    is_taken: bool = False


def find_loop(code: list[Instruction], within: int | None = None) -> tuple[int, int]:
    """Addresses of the first instruction and of the branch back to it: the longest loop, or the one around `within`."""
    loops = [
        (instruction.target, instruction.address)
        for instruction in code
        if instruction.name == "BRA" and instruction.target < instruction.address
    ]
    if within is not None:
        loops = [(begin, end) for begin, end in loops if begin <= within <= end]
    if not loops:
        raise LookupError("the kernel has no such loop")
    return (max if within is None else min)(loops, key=lambda loop: loop[1] - loop[0])


def follow(
    code: list[Instruction], loop: tuple[int, int], constants: Mapping[int, int], passes: int
) -> list[list[Step]]:
    """The paths of some passes through a loop, after all that stands before it.

    A branch is decided by the constants, if they determine it. If not, it is taken where it goes around a call that
    stands right behind it (the slow path of a division), and not taken elsewhere: time goes on, no loop ends early.
    """
    begin, end = loop
    known = Known(constants)
    for instruction in code:
        if instruction.address < begin and instruction.name not in ("BRA", "CALL", "EXIT"):
            known.execute(instruction)
    at = {instruction.address: index for index, instruction in enumerate(code)}
    followed: list[list[Step]] = []
    for _ in range(passes):
        path: list[Step] = []
        index = at[begin]
        while not path or path[-1].instruction.address != end:
            instruction = code[index]
            if instruction.name == "EXIT" and known.predicate(instruction.guard):
                raise LookupError(f"the kernel ends within its loop, at {instruction.address:#x}")
            taken = instruction.name == "BRA" and (instruction.address == end or _is_taken(code, index, at, known))
            known.execute(instruction)
            path.append(Step(instruction, taken))
            index = at[instruction.target] if taken else index + 1
        followed.append(path)
    return followed


def _is_taken(code: list[Instruction], index: int, at: Mapping[int, int], known: Known) -> bool:
    branch = code[index]
    conditions = [known.predicate(condition) for condition in (branch.guard, *branch.operand_list[:-1])]
    if False in conditions:
        return False
    if None not in conditions:
        return True
    skipped = code[index : at[branch.target]]
    return 0 < len(skipped) <= SLOW_PATH and any(instruction.name == "CALL" for instruction in skipped)


def cycles(passes: list[list[Step]], memory: float) -> list[float]:
    """Cycle at which each pass of one warp alone ends; `memory` is the latency of global memory.

    An instruction starts when the stall of the one before it is over and the scoreboards it waits for are free. A
    scoreboard is free when everything that holds it is done, so a wait for one load is a wait for all later ones that
    share its scoreboard. Copies to shared memory are waited for by groups, in order (LDGDEPBAR, DEPBAR.LE SB, pending).
    What a branch costs beyond its stall is not counted.
    """
    now = 0.0
    free = [0.0] * 6
    copied = 0.0  # when the copies of the open group are done
    groups: list[float] = []
    ends = []
    for path in passes:
        for step in path:
            instruction = step.instruction
            control = instruction.control
            now = max([now, *(free[number] for number in control.waits)])
            done = now + (
                memory if instruction.name in MEMORY_LOADS else LATENCIES.get(instruction.name, OTHER_LATENCY)
            )
            if instruction.name == "LDGSTS":
                copied = max(copied, done)
            elif instruction.name == "LDGDEPBAR":
                groups.append(copied)
            elif instruction.name == "DEPBAR" and groups:
                pending = int(instruction.operand_list[1], 16)
                over = max(0, len(groups) - pending)
                now = max([now, *groups[:over]])
                groups = groups[over:]
            if control.write_barrier is not None:
                free[control.write_barrier] = max(free[control.write_barrier], done)
            if control.read_barrier is not None:
                free[control.read_barrier] = max(free[control.read_barrier], now + OPERANDS_READ)
            now += max(1, control.stall)
        ends.append(now)
    return ends


@dataclass(frozen=True)
class Pass:
    """One pass through a loop, for one warp alone, on average.

    Attributes:
        instructions: instructions that the warp starts.
        branches: those that are branches and taken.
        cycles: cycles if global memory answered at once.
        waited: cycles that it takes longer if global memory answers after USUAL_LATENCY.
        latencies: latencies of global memory that it waits for, one after the other, if they are long. A pass of n
            steps has the loads of n / latencies steps under way together, whatever the source says.
    """

    instructions: float
    branches: float
    cycles: float
    waited: float
    latencies: float


def measure(code: list[Instruction], constants: Mapping[int, int], within: int | None = None) -> Pass:
    """One pass through the longest loop of a kernel, or the shortest around the address `within`."""
    passes = follow(code, find_loop(code, within), constants, PASSES)
    half = passes[PASSES // 2 :]

    def mean(memory: float) -> float:
        ends = cycles(passes, memory)
        return (ends[-1] - ends[-1 - len(half)]) / len(half)

    return Pass(
        instructions=sum(map(len, half)) / len(half),
        branches=sum(step.is_taken for path in half for step in path) / len(half),
        cycles=mean(0),
        waited=mean(USUAL_LATENCY) - mean(0),
        latencies=(mean(2 * LONG_LATENCY) - mean(LONG_LATENCY)) / LONG_LATENCY,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("kernel")
    parser.add_argument("--architecture", default="sm_90")
    parser.add_argument("--set", action="append", default=[], metavar="OFFSET=WORD")
    parser.add_argument("--within", type=lambda text: int(text, 0), default=None)
    options = parser.parse_args()
    constants = {}
    for setting in options.set:
        offset, _, word = setting.partition("=")
        constants[int(offset, 0)] = int(word, 0)
    try:
        listings = disassemble(options.binary, options.architecture)
        needed = registers(options.binary, options.architecture)
    except MissingToolError as error:
        print(error, file=sys.stderr)
        return 1
    for symbol, name in readable_names(listings).items():
        if name == options.kernel:
            print(f"{needed[symbol]} registers, {measure(listings[symbol], constants, options.within)}")
            return 0
    print(f"{options.binary} has no kernel {options.kernel}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
