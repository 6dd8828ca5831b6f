"""Exact gradients of spiking neural networks: EXODUS, SLAYER and BPTT for LIF, IF and any SRM neuron, and for
second-order (CubaLIF) and adaptive LIF (ALIF).

`lif`, `cuba_lif`, `alif`, `srm`, `filter`, `delay` and `delayed_linear` are differentiable functions;
`lif_gradient`, `cuba_lif_gradient`, `alif_gradient` and `srm_gradient` compute gradients from a membrane trace,
`synapse_gradients` and `output_filter_adjoint` those of what surrounds the neurons. `nn` has modules, `surrogate` the
surrogate derivatives, `reference` the definitions as plain loops; `network` builds networks from plain data, `losses`
has losses by name, `training` trains. `METHODS`, `NEURONS`, `RESETS` and `surrogate.KINDS` name what there is.
`accelerate` and `to_network` take models of other libraries. `keep_memory` bounds the cache of freed outputs' memory.
"""

from exodus_core import losses, network, nn, reference, surrogate, training
from exodus_core._version import __version__
from exodus_core.accelerate import AccelerationError, NetworkData, accelerate, to_network
from exodus_core.arguments import METHODS, NEURONS, RESETS
from exodus_core.capability import capabilities
from exodus_core.coupled import alif, cuba_lif
from exodus_core.coupled_gradients import (
    AlifGradient,
    CubaLifGradient,
    alif_gradient,
    cuba_lif_gradient,
    current_trace,
    spikes_of_trace,
)
from exodus_core.delays import delay, delayed_linear
from exodus_core.errors import ArgumentError, ArgumentTypeError, DescriptionError
from exodus_core.functional import filter, lif, srm
from exodus_core.gradients import LifGradient, LifValueGradient, SrmGradient, lif_gradient, srm_gradient
from exodus_core.kernels import AlphaKernel, ExponentialKernel, SlayerRefractory, SlayerResponse
from exodus_core.layer import SynapseGradients, fire, output_filter_adjoint, synapse_current, synapse_gradients
from exodus_core.output_cache import keep_memory, kept_memory
from exodus_core.refusals import Refusal
from exodus_core.sparse.convolution import conv1d, conv2d
from exodus_core.sparse.product import linear
from exodus_core.sparse.spikes import PackedSpikes, pack

__all__ = [
    "METHODS",
    "NEURONS",
    "RESETS",
    "AccelerationError",
    "AlifGradient",
    "AlphaKernel",
    "ArgumentError",
    "ArgumentTypeError",
    "CubaLifGradient",
    "DescriptionError",
    "ExponentialKernel",
    "LifGradient",
    "LifValueGradient",
    "NetworkData",
    "PackedSpikes",
    "Refusal",
    "SlayerRefractory",
    "SlayerResponse",
    "SrmGradient",
    "SynapseGradients",
    "__version__",
    "accelerate",
    "alif",
    "alif_gradient",
    "capabilities",
    "conv1d",
    "conv2d",
    "cuba_lif",
    "cuba_lif_gradient",
    "current_trace",
    "delay",
    "delayed_linear",
    "filter",
    "fire",
    "keep_memory",
    "kept_memory",
    "lif",
    "lif_gradient",
    "linear",
    "losses",
    "network",
    "nn",
    "output_filter_adjoint",
    "pack",
    "reference",
    "spikes_of_trace",
    "srm",
    "srm_gradient",
    "surrogate",
    "synapse_current",
    "synapse_gradients",
    "to_network",
    "training",
]
