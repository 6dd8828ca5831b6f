"""The work of the CUDA kernels: bytes of global memory, counted by the emulation, and instructions, by the compiler."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tools.cuda.machine_code import Instruction, MissingToolError, disassemble, readable_names

CORE = Path(__file__).absolute().parents[2] / "exodus_core"
PLAIN_KERNELS = Path(__file__).with_name("plain_lif.cu")
NEURON_STEPS_OF_A_ROUND = 16  # four steps of four lanes: kStepsInFlight and vector_width<float>() in tiles.cuh


@dataclass(frozen=True)
class Traffic:
    """Traffic of one kernel: global memory in bytes, launches, and the largest dynamic shared memory of a block."""

    kernel: str
    loaded: int
    stored: int
    shared: int

    @property
    def total(self) -> int:
        return self.loaded + self.stored


@dataclass(frozen=True)
class StepInstructions:
    """Instructions that a neuron-step costs: all of them, and those that add or multiply floats."""

    all: float
    floating: float


def is_emulated() -> bool:
    """True if exodus_core is the emulation instead of the CPU's kernels."""
    return bool(torch.ops.exodus.instruction_set() == "emulated CUDA")


def traffic(run: Callable[[], Any], backward: str = "auto") -> list[Traffic]:
    """Memory traffic of every kernel that `run` launches; `backward` selects the LIF backward pass."""
    torch.ops.exodus_emulation.reset_counters()
    os.environ["EXODUS_CUDA_BACKWARD"] = backward
    try:
        run()
    finally:
        del os.environ["EXODUS_CUDA_BACKWARD"]
    counted: dict[str, dict[str, int]] = json.loads(torch.ops.exodus_emulation.counters())
    return [
        Traffic(
            name.strip("()").partition("<")[0],
            of_kernel["loaded_bytes"],
            of_kernel["stored_bytes"],
            of_kernel["shared_bytes"] // of_kernel["blocks"],
        )
        for name, of_kernel in counted.items()
    ]


def _nvcc_flags() -> list[str]:
    """NVCC of setup.py: the kernels are counted as they are built."""
    for statement in ast.parse((CORE / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "NVCC":
            flags: list[str] = ast.literal_eval(statement.value)
            return flags
    raise LookupError("setup.py has no list NVCC")


def find_nvcc() -> str:
    """The path of nvcc.

    Raises:
        MissingToolError: it is neither under CUDA_HOME nor on PATH.
    """
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if found is None:
        raise MissingToolError("nvcc is not installed, or not on PATH")
    return found


def _loop(code: list[Instruction]) -> list[Instruction]:
    """The longest loop: what lies between a branch backwards and its target."""
    begin = end = 0
    for instruction in code:
        if instruction.name != "BRA":
            continue
        target = int(instruction.operands.split()[-1], 16)
        if target < instruction.address and instruction.address - target > end - begin:
            begin, end = target, instruction.address
    return [instruction for instruction in code if begin <= instruction.address <= end]


def step_instructions(architecture: str) -> dict[str, StepInstructions]:
    """Of the plain float32 LIF on "sm_90", say: "plain_forward", and "plain_backward<code>" by the surrogate's code."""
    include = ["-isystem", str(Path(torch.__file__).parent / "include"), f"-I{CORE / 'csrc'}"]
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "plain_lif.cubin"
        command = [find_nvcc(), *_nvcc_flags(), f"-arch={architecture}", *include, "-cubin", "-o", str(compiled)]
        subprocess.run([*command, str(PLAIN_KERNELS)], check=True)
        listings = disassemble(compiled, architecture)
    found = {}
    for symbol, name in readable_names(listings).items():
        if not name.startswith("plain_"):
            continue
        loop = _loop(listings[symbol])
        floating = sum(i.name in ("FADD", "FFMA", "FMUL") for i in loop)
        found[name] = StepInstructions(len(loop) / NEURON_STEPS_OF_A_ROUND, floating / NEURON_STEPS_OF_A_ROUND)
    return found
