"""HTTP server for gradients of spiking neural networks: EXODUS, SLAYER and BPTT computed on request."""

from importlib.metadata import version

__version__ = version("exodus-service")

__all__ = ["__version__"]
