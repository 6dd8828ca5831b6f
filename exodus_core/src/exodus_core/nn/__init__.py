"""Modules: LIF, IF, CubaLIF, ALIF, SRM and ExpLeak, for torch.nn.Sequential and everything built from modules."""

from exodus_core.nn.coupled import ALIF, CubaLIF
from exodus_core.nn.lif import IF, LIF, ExpLeak
from exodus_core.nn.srm import SRM
from exodus_core.nn.synapses import Conv1d, Conv2d, Linear
from exodus_core.nn.tree import neuron_parameters
from exodus_core.pieces.time_checkpoint import TimeCheckpoint

__all__ = [
    "ALIF",
    "IF",
    "LIF",
    "SRM",
    "Conv1d",
    "Conv2d",
    "CubaLIF",
    "ExpLeak",
    "Linear",
    "TimeCheckpoint",
    "neuron_parameters",
]
