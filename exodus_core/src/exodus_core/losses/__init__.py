"""Losses by name: cross-entropies, spike trains, filtered spike trains, spike counts and rates, and weighted sums.

docs/networks.md has the equations. A loss gives its value, the mean over the batch, and metrics whose names carry how
those of several calls combine: ":mean" weighted by samples, ":sum" added.
"""

from exodus_core.losses.cross_entropy import MaxOverTimeCE, PerStepCE, SumOverTimeCE
from exodus_core.losses.description import KINDS, parse
from exodus_core.losses.errors import LossError
from exodus_core.losses.loss import Loss, LossValue
from exodus_core.losses.metrics import combine
from exodus_core.losses.spike_rate import SpikeRateBounds, SpikeRateMSE
from exodus_core.losses.spike_trains import SpikeCountMSE, SpikeTrainMSE, VanRossum
from exodus_core.losses.steps import counted_steps
from exodus_core.losses.weighted import Term, WeightedSum

__all__ = [
    "KINDS",
    "Loss",
    "LossError",
    "LossValue",
    "MaxOverTimeCE",
    "PerStepCE",
    "SpikeCountMSE",
    "SpikeRateBounds",
    "SpikeRateMSE",
    "SpikeTrainMSE",
    "SumOverTimeCE",
    "Term",
    "VanRossum",
    "WeightedSum",
    "combine",
    "counted_steps",
    "parse",
]
