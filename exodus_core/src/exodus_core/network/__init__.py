"""Networks as data: a checked description of layers, and the torch module that it describes.

The same description and seed give the same module, to the bit, wherever they are built; no code is ever sent. See
docs/networks.md for the kinds of layers and their fields.
"""

from exodus_core.network.build import Network, build
from exodus_core.network.description import KINDS, MAX_LAYERS, Description, NetworkError, parse
from exodus_core.network.recording import Observer, RecordError, observe
from exodus_core.network.statistics import LayerStatistics

__all__ = [
    "KINDS",
    "MAX_LAYERS",
    "Description",
    "LayerStatistics",
    "Network",
    "NetworkError",
    "Observer",
    "RecordError",
    "build",
    "observe",
    "parse",
]
