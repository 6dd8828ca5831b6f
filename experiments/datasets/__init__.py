"""Spike data sets, read from their own files: recordings as events, and spike tensors of them, binned at a time step.

Every data set is a `Recordings`: a length, the shape of a sample's inputs, and one recording at a time, so that a data
set larger than the memory can be iterated. `Binning` makes tensors (steps, *shape) of recordings, and `Binned` makes
`Samples` of them, batches for a training.

No reader downloads anything: files come from a folder that the user names.
"""

from experiments.datasets.binning import Binned, Binning
from experiments.datasets.events import DataError, Events, Recordings
from experiments.datasets.gesture import Gestures
from experiments.datasets.heidelberg import Heidelberg
from experiments.datasets.manifolds import Manifolds
from experiments.datasets.samples import Held, Samples, Split
from experiments.datasets.structured import Structured

__all__ = [
    "Binned",
    "Binning",
    "DataError",
    "Events",
    "Gestures",
    "Heidelberg",
    "Held",
    "Manifolds",
    "Recordings",
    "Samples",
    "Split",
    "Structured",
]
