"""Models of snnTorch, sinabs, SpikingJelly and norse on the kernels of exodus_core, with the same spikes and gradients.

No library is a dependency: each is imported when a model of it comes. docs/peers.md has what maps to what.
"""

from exodus_core.accelerate.conversion import accelerate
from exodus_core.accelerate.network_data import NetworkData, to_network
from exodus_core.accelerate.refusal import AccelerationError
from exodus_core.refusals import Refusal

__all__ = ["AccelerationError", "NetworkData", "Refusal", "accelerate", "to_network"]
