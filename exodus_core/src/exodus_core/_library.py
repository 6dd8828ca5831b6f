"""Loads the compiled operators.

The library is built against PyTorch's stable ABI, so one build serves every torch from 2.10 on.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

LIBRARY = Path(__file__).parent / "_C.abi3.so"
_INSTRUCTION_SETS = ("portable", "avx2", "avx512")


def load() -> None:
    """Registers torch.ops.exodus.

    Raises:
        ImportError: the library was not built, or this torch cannot load it.
        ValueError: EXODUS_INSTRUCTION_SET is not one of portable, avx2, avx512.
    """
    asked = os.environ.get("EXODUS_INSTRUCTION_SET", "")
    if asked and asked not in _INSTRUCTION_SETS:
        raise ValueError(f"EXODUS_INSTRUCTION_SET must be one of {', '.join(_INSTRUCTION_SETS)}, got {asked!r}")
    if not LIBRARY.exists():
        raise ImportError(
            f"exodus_core is not built: {LIBRARY.name} is missing; run `pip install --no-build-isolation ./exodus_core`"
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        raise ImportError(
            f"{LIBRARY.name} needs torch >= 2.10 and does not load in torch {torch.__version__}: {error}"
        ) from error
    torch.ops.exodus.instruction_set()  # chooses now, so that what the environment says later does not matter


load()
