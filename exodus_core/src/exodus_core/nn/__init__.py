"""Modules for networks that are built, trained and run in process: neurons, synapses, and what goes around them.

`LIF`, `IF`, `CubaLIF`, `ALIF`, `SRM` and `ExpLeak` are the neurons, `Linear`, `Conv1d` and `Conv2d` synapses that save
work where spikes are few, `MaxPool2d` and `AvgPool2d` torch's pools in less time, `Delay` and `DelayedLinear` delays of
neurons and of synapses. `Steps` puts a module of
single steps on whole sequences, `Recurrent` feeds spikes back, `TimeCheckpoint` saves memory. `reset`, `detach`,
`constrain`, `bounded` and `neuron_parameters` take a whole module. docs/neurons.md is their guide.
"""

from exodus_core.nn.coupled import ALIF, CubaLIF
from exodus_core.nn.delays import Delay, DelayedLinear
from exodus_core.nn.lif import IF, LIF, ExpLeak
from exodus_core.nn.pooling import AvgPool2d, MaxPool2d
from exodus_core.nn.recurrent import Recurrent
from exodus_core.nn.srm import SRM
from exodus_core.nn.steps import Steps
from exodus_core.nn.synapses import Conv1d, Conv2d, Linear
from exodus_core.nn.tree import bounded, constrain, detach, neuron_parameters, reset
from exodus_core.pieces.time_checkpoint import TimeCheckpoint

__all__ = [
    "ALIF",
    "IF",
    "LIF",
    "SRM",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "CubaLIF",
    "Delay",
    "DelayedLinear",
    "ExpLeak",
    "Linear",
    "MaxPool2d",
    "Recurrent",
    "Steps",
    "TimeCheckpoint",
    "bounded",
    "constrain",
    "detach",
    "neuron_parameters",
    "reset",
]
