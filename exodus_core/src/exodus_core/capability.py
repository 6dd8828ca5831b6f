"""Capabilities of this installation as data: for a bug report, a start-up log, or the clients of the service."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import torch

from exodus_core import ops
from exodus_core._library import CUDA
from exodus_core._version import __version__
from exodus_core.arguments import FLOATS, METHODS, NEURON_RESETS, NEURONS
from exodus_core.sparse.product import ENABLED
from exodus_core.surrogate import KINDS

STABLE_ABI_TARGET = "2.10"


def capabilities() -> dict[str, Any]:
    """Versions, methods, neurons, surrogates, dtypes, devices, the CPU's instruction set, the CUDA library's state.

    `keeps_memory` is the limit of `keep_memory` in bytes; 0 before torch 2.11, which has no tensors on foreign memory.

    `sparse_products` are those that are computed from spikes where they are few; none if the environment variable
    EXODUS_SPARSE is 0.

    `instruction_set` is the one in use; the environment variable EXODUS_INSTRUCTION_SET (portable, avx2, avx512), read
    when the package is imported, limits it.
    """
    return {
        "version": __version__,
        "torch": torch.__version__,
        "stable_abi_target": STABLE_ABI_TARGET,
        "python": platform.python_version(),
        "methods": list(METHODS),
        "neurons": list(NEURONS),
        "resets": list(NEURON_RESETS),
        "surrogates": sorted(KINDS),
        "kernels": ["taps", "exponential", "alpha"],
        "dtypes": [str(dtype).removeprefix("torch.") for dtype in FLOATS],
        "devices": ["cpu", "cuda"] if CUDA.loaded else ["cpu"],
        "instruction_set": ops.instruction_set(),
        "threads": torch.get_num_threads(),
        "keeps_memory": ops.kept_memory()[1],
        "sparse_products": ["linear", "conv1d", "conv2d"] if ENABLED else [],
        "cuda_library": asdict(CUDA),
    }
