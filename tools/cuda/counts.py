"""The traffic of the CUDA kernels: bytes of global memory, counted by the emulation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


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


def is_emulated() -> bool:
    """True if exodus_core is the emulation instead of the CPU's kernels."""
    return bool(torch.ops.exodus.instruction_set() == "emulated CUDA")


def traffic(run: Callable[[], Any], choice: Mapping[str, str]) -> list[Traffic]:
    """Memory traffic of every kernel that `run` launches, with these overrides of choice.cuh."""
    torch.ops.exodus_emulation.reset_counters()
    os.environ.update(choice)
    try:
        run()
    finally:
        for name in choice:
            del os.environ[name]
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
