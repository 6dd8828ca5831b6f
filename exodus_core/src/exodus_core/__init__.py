"""Exact gradients of spiking neural networks: EXODUS, SLAYER and BPTT for LIF, IF and any SRM neuron.

`lif`, `srm` and `filter` are differentiable functions, `lif_gradient` and `srm_gradient` compute gradients from a
membrane trace, `nn` has modules, `surrogate` the surrogate derivatives, `reference` the definitions as plain loops;
`network` builds networks from plain data, `losses` has losses by name, `training` trains. `keep_memory` limits the
memory that freed outputs leave to the next ones.
"""

from exodus_core import losses, network, nn, reference, surrogate, training
from exodus_core._version import __version__
from exodus_core.arguments import METHODS, RESETS
from exodus_core.capability import capabilities
from exodus_core.errors import ArgumentError, ArgumentTypeError, DescriptionError
from exodus_core.functional import filter, lif, srm
from exodus_core.gradients import LifGradient, SrmGradient, lif_gradient, srm_gradient
from exodus_core.kernels import AlphaKernel, ExponentialKernel, SlayerRefractory, SlayerResponse
from exodus_core.output_cache import keep_memory, kept_memory

__all__ = [
    "METHODS",
    "RESETS",
    "AlphaKernel",
    "ArgumentError",
    "ArgumentTypeError",
    "DescriptionError",
    "ExponentialKernel",
    "LifGradient",
    "SlayerRefractory",
    "SlayerResponse",
    "SrmGradient",
    "__version__",
    "capabilities",
    "filter",
    "keep_memory",
    "kept_memory",
    "lif",
    "lif_gradient",
    "losses",
    "network",
    "nn",
    "reference",
    "srm",
    "srm_gradient",
    "surrogate",
    "training",
]
