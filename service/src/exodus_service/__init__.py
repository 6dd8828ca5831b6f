"""HTTP server for gradients of spiking neural networks: EXODUS, SLAYER and BPTT computed on request."""

import os
from importlib.metadata import version

__version__ = version("exodus-service")

__all__ = ["__version__"]

# The threads of a computation would otherwise spin for some milliseconds after it, on the cores that the next request
# needs to arrive. Read once, when PyTorch loads OpenMP, which is later than this line.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
