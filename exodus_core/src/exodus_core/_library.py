"""Loads the compiled operators.

They are built against PyTorch's stable ABI, so one build serves every torch from 2.10 on. The CUDA kernels are a
library of their own, loaded only into a torch with CUDA; if it cannot be loaded, `CUDA` has the reason, and the CPU
kernels work all the same.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from exodus_core.errors import ArgumentError

HERE = Path(__file__).parent
LIBRARY = HERE / "_C.abi3.so"
CUDA_LIBRARY = HERE / "_C_cuda.abi3.so"
_INSTRUCTION_SETS = ("portable", "avx2", "avx512")


@dataclass(frozen=True)
class CudaLibrary:
    """State of the CUDA library; `reason` says why it is not loaded, and is empty if it is."""

    loaded: bool
    reason: str
    built_for: str
    architectures: str


def _load_cpu() -> None:
    asked = os.environ.get("EXODUS_INSTRUCTION_SET", "")
    if asked and asked not in _INSTRUCTION_SETS:
        raise ArgumentError("EXODUS_INSTRUCTION_SET", f"one of {', '.join(_INSTRUCTION_SETS)}", repr(asked))
    limit = os.environ.get("EXODUS_KEEP_MEMORY", "")
    if limit and not (limit.isascii() and limit.isdigit()):
        raise ArgumentError("EXODUS_KEEP_MEMORY", "a number of bytes", repr(limit))
    if not LIBRARY.exists():
        raise ImportError(
            f"exodus_core is not built: {LIBRARY.name} is missing; run `pip install --no-build-isolation ./exodus_core`"
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        raise ImportError(
            f"{LIBRARY.name} needs torch >= 2.10 and does not load in torch {torch.__version__}: "
            f"{explained(LIBRARY, error)}"
        ) from error
    if limit:
        torch.ops.exodus.keep_memory(int(limit))
    torch.ops.exodus.instruction_set()  # chooses now, so that what the environment says later does not matter


def _load_cuda() -> CudaLibrary:
    facts = CUDA_LIBRARY.with_name("_C_cuda.json")
    built = json.loads(facts.read_text()) if facts.exists() else {}
    built_for, architectures = built.get("cuda", ""), built.get("architectures", "")
    reason = ""
    if torch.version.cuda is None:
        reason = f"this torch ({torch.__version__}) was built without CUDA"
    elif not CUDA_LIBRARY.exists():
        reason = "exodus_core was built without CUDA: there was no nvcc, or no torch with CUDA"
    elif built_for.partition(".")[0] != torch.version.cuda.partition(".")[0]:
        reason = (
            f"exodus_core was built for CUDA {built_for}, and torch {torch.__version__} uses CUDA {torch.version.cuda}"
        )
    else:
        try:
            torch.ops.load_library(str(CUDA_LIBRARY))
        except OSError as error:
            reason = f"{CUDA_LIBRARY.name}, built for CUDA {built_for}, does not load: {explained(CUDA_LIBRARY, error)}"
    if reason and torch.version.cuda is not None:
        logging.getLogger("exodus_core").warning("no CUDA kernels: %s", reason)
    return CudaLibrary(not reason, reason, built_for, architectures)


#: Advice by words of the dynamic linker.
_ADVICE = {
    "undefined symbol": "it was built for another torch: build it again beside this one, with `pip install "
    "--no-build-isolation --force-reinstall --no-deps ./exodus_core`",
    "cannot open shared object file": "a library that it needs is missing: for one of CUDA, install a torch with CUDA "
    "of the same major version",
    "not found": "it needs a newer system library than this machine has: build it here, from source",
}


def explained(library: Path, error: OSError) -> str:
    """Why a library does not load, as the dynamic linker says it, which torch leaves out, and what to do about it."""
    try:
        ctypes.CDLL(str(library))
    except OSError as told:
        said = str(told)
    else:  # its operators were refused: torch has said why
        said = str(error)
    advice = next((advice for words, advice in _ADVICE.items() if words in said), "")
    return f"{said}; {advice}" if advice else said


_load_cpu()
CUDA = _load_cuda()
