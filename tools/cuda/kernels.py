"""The launches of the plain LIF neuron, as model.py takes them, read from the built library and from choice.cuh.

Plain: float32, one spike a step, reset subtract_decayed, EXODUS; the loss reads the spikes, so that the backward pass
loads membrane and dL/ds, and stores dL/dx.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exodus_core.surrogate import KINDS
from tools.cuda.loops import Pass, measure
from tools.cuda.machine_code import Instruction, disassemble, readable_names, registers
from tools.cuda.model import Gpu, Launch, Prediction, Shape, loop_of, predict

CHOICE = Path(__file__).absolute().parents[2] / "exodus_core" / "csrc" / "cuda" / "choice.cuh"
TABLES = {"sm_80": "kAmpere", "sm_89": "kWorkstation", "sm_90": "kHopper"}
THREADS, SIDE_BY_SIDE, SLOTS = 64, 4, 8  # in_place.cuh
CHUNKS, CHUNK_STEPS, CHUNK_THREADS, CHUNK_SLOTS, MAP_BYTES = 16, 64, 256, 2, 256 * 8  # lif_chunks.cu

# Where a kernel's arguments begin in constant bank 0, and offsets within LifForwardArgs and LifBackwardArgs (lif.cuh).
ARGUMENTS = {"sm_80": 0x160, "sm_89": 0x160, "sm_90": 0x210}
ONE, SUBTRACT_DECAYED, EXODUS = 0x3F800000, 2, 0  # float 1, Reset and Method
FORWARD_WORDS = {152: ONE, 160: SUBTRACT_DECAYED, 164: 0}
BACKWARD_WORDS = {48: 0, 52: 0, 160: ONE, 168: SUBTRACT_DECAYED, 172: 0, 180: 0, 192: EXODUS, 196: 0}
KIND = 176

ELEMENT_BYTES = {"float": 4, "Half": 2, "BFloat16": 2}


@dataclass(frozen=True)
class Choice:
    """A row of a table in choice.cuh."""

    lanes: float
    row_bytes: int
    chunk_steps: int


def choices(architecture: str) -> list[Choice]:
    """The table for an architecture such as "sm_90"."""
    text = CHOICE.read_text()
    rows = re.search(rf"constexpr Choice {TABLES[architecture]}\[\] = {{(.*?)}};", text, re.DOTALL)
    if rows is None:
        raise LookupError(f"choice.cuh has no table {TABLES[architecture]}")
    found = re.findall(r"{(\w+), (\d+), (\d+)}", rows[1])
    return [
        Choice(float("inf") if lanes == "kAnyLanes" else int(lanes), int(row), int(steps))
        for lanes, row, steps in found
    ]


def chosen(architecture: str, lanes: int) -> Choice:
    return next(row for row in choices(architecture) if lanes <= row.lanes)


def _innermost(code: list[Instruction]) -> Iterator[list[Instruction]]:
    """Loops that have no other loop in them."""
    loops = [(i.target, i.address) for i in code if i.name == "BRA" and i.target < i.address]
    for begin, end in loops:
        if not any((a, b) != (begin, end) and begin <= a and b <= end for a, b in loops):
            yield [i for i in code if begin <= i.address <= end]


def _walk(code: list[Instruction], stores: int, *, rounds: bool) -> int:
    """An address in the longest loop that takes rows and stores so many; without `rounds`, of one spike a step."""
    found = []
    for loop in _innermost(code):
        names = Counter(i.name for i in loop)
        if names["LDS"] and names["STG"] == stores and (rounds or not names["FRND"]):
            found.append(loop)
    if not found:
        raise LookupError(f"no loop through time with {stores} stores")
    return max(found, key=len)[1].address


def _group(width: int) -> int:
    """Steps of a group: kGroup of in_place.cuh."""
    return max(1, SIDE_BY_SIDE // width)


def _ring(width: int, size: int) -> int:
    """Bytes of the ring of one input, for a block."""
    return SLOTS * _group(width) * width * size * THREADS


def _backward_name(width: int, element: str, sums: bool) -> str:
    return f"lif_backward_in_place<{element}, {width}{', sums' if sums else ''}>"


class Kernels:
    """The kernels of a library for one architecture."""

    def __init__(self, library: Path, architecture: str) -> None:
        self.architecture = architecture
        listings, needed = disassemble(library, architecture), registers(library, architecture)
        names = readable_names(listings)
        self._code = {name: listings[symbol] for symbol, name in names.items()}
        self._registers = {name: needed[symbol] for symbol, name in names.items()}

    def _pass(self, name: str, words: dict[int, int], stores: int) -> Pass:
        constants = {ARGUMENTS[self.architecture] + offset: word for offset, word in words.items()}
        code = self._code[name]
        # The forward pass has a loop for many spikes a step, the backward pass a branch.
        return measure(code, constants, _walk(code, stores, rounds="backward" in name))

    def forward_pass(self, width: int, element: str = "float") -> Pass:
        """One group of steps of a warp."""
        name = f"lif_forward_in_place<{element}, {width}>"
        return self._pass(name, FORWARD_WORDS, 2 * _group(width))

    def backward_pass(
        self, width: int, surrogate: str = "sigmoid", element: str = "float", *, sums: bool = False
    ) -> Pass:
        """One group of steps of a warp; with `sums` also the gradients of parameters."""
        words = {**BACKWARD_WORDS, KIND: KINDS[surrogate].code}
        return self._pass(_backward_name(width, element, sums), words, _group(width))

    def forward(self, width: int, element: str = "float") -> Launch:
        size, group = ELEMENT_BYTES[element], _group(width)
        loop = loop_of(self.forward_pass(width, element), group, width, size, 2 * size, group)
        needed = self._registers[f"lif_forward_in_place<{element}, {width}>"]
        name = f"forward, {element}, {width} lanes a thread"
        return Launch(name, THREADS, needed, width, (loop,), _ring(width, size))

    def backward(self, width: int, element: str = "float", *, sums: bool = False) -> Launch:
        size, group = ELEMENT_BYTES[element], _group(width)
        measured = self.backward_pass(width, element=element, sums=sums)
        loop = loop_of(measured, group, width, 2 * size, size, group)
        needed = self._registers[_backward_name(width, element, sums)]
        name = f"backward, {element}, {width} lanes a thread{', sums' if sums else ''}"
        return Launch(name, THREADS, needed, width, (loop,), 2 * _ring(width, size))

    def chunks(self) -> Launch:
        name = "lif_backward_in_chunks<float>"
        slot = 2 * SIDE_BY_SIDE * 4 * CHUNK_THREADS
        words = {**BACKWARD_WORDS, KIND: KINDS["sigmoid"].code}
        reduce, replay = (
            loop_of(self._pass(name, words, stores * SIDE_BY_SIDE), SIDE_BY_SIDE, 1, 8, 4 * stores, SIDE_BY_SIDE)
            for stores in (0, 1)
        )
        shared = MAP_BYTES + CHUNK_SLOTS * slot
        needed = self._registers[name]
        return Launch(
            "backward, chunks of time", CHUNK_THREADS, needed, 1, (reduce, replay), shared, CHUNKS, CHUNK_STEPS
        )

    def launches(
        self, outer: int, time: int, inner: int, element: str = "float", *, sums: bool = False
    ) -> tuple[Launch, Launch]:
        """Forward and backward, as choice.cuh chooses them."""
        choice = chosen(self.architecture, outer * inner)
        size = ELEMENT_BYTES[element]
        width = choice.row_bytes // size
        if choice.chunk_steps and time >= choice.chunk_steps and element == "float" and not sums:
            backward = self.chunks()
        else:
            backward = self.backward(4 // size if sums else width, element, sums=sums)
        return self.forward(width, element), backward

    def predict(
        self, gpu: Gpu, shape: Shape, element: str = "float", *, sums: bool = False
    ) -> tuple[Prediction, Prediction]:
        """Of the forward and the backward pass."""
        forward, backward = (predict(gpu, launch, *shape) for launch in self.launches(*shape, element, sums=sums))
        return forward, backward
