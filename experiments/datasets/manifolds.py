"""Random manifolds: a classification task made by chance, whose labels are only in the times of the spikes.

After the idea of Zenke and Vogels (2021), "The remarkable robustness of surrogate gradient learning for instilling
complex function in spiking neural networks", section 4.1: every class is a smooth random manifold, a sample is a random
point of it, and each coordinate of the point is the time of the one spike of an input. So every sample of every class
has the same spike counts: one for each input.

Here a coordinate is a random field over the parameters p in [0, 1)^d of the manifold, a sum of waves that is smoother
the faster their amplitudes fall,

    f(p) = sum_k |k|^-smoothness a_k cos(2 pi (k . p + phase_k)),    k integer vectors other than 0, |k|_max <= WAVES,

with a_k normally and phase_k uniformly distributed, then shifted and stretched so that it reaches from 0 to 1.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from experiments.datasets.events import Events

#: Largest wave number in each dimension.
WAVES = 8
#: Points that the range of a coordinate is taken from.
_POINTS = 4096


class Manifolds:
    """Samples of random manifolds, the same classes one after the other: sample i is of class i modulo `classes`.

    Args:
        samples: number of samples.
        inputs: number of inputs, coordinates of a point.
        classes: number of manifolds.
        dimensions: of a manifold.
        smoothness: how fast the amplitudes of the waves fall.
        duration: of a sample in microseconds: spikes are at times from 0 to duration - 1.
        seed: of the manifolds.
        part: of the points: other parts are other points of the same manifolds.
    """

    def __init__(
        self,
        samples: int,
        *,
        inputs: int = 20,
        classes: int = 10,
        dimensions: int = 1,
        smoothness: float = 1.0,
        duration: int = 100_000,
        seed: int = 0,
        part: int = 0,
    ) -> None:
        sizes = {"samples": samples, "inputs": inputs, "classes": classes, "dimensions": dimensions}
        for name, value in {**sizes, "duration": duration}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.classes = tuple(f"manifold {number}" for number in range(classes))
        self._inputs = inputs
        self._labels = np.arange(samples) % classes
        chance = np.random.default_rng([seed, part])
        points = chance.random((samples, dimensions))
        coordinates = np.empty((samples, inputs))
        for label in range(classes):
            field = _Field(np.random.default_rng([seed, 0, label + 1]), inputs, dimensions, smoothness)
            chosen = self._labels == label
            coordinates[chosen] = field(points[chosen])
        self._times = np.minimum((coordinates * duration).astype(np.int64), duration - 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """(inputs,)"""
        return (self._inputs,)

    def __len__(self) -> int:
        return len(self._labels)

    def recording(self, index: int) -> tuple[Events, int]:
        """Events of a sample, one of each input, and its class number."""
        return Events(self._times[index], np.arange(self._inputs)), int(self._labels[index])


class _Field:
    """Coordinates as a function of the parameters of one manifold."""

    def __init__(self, chance: np.random.Generator, inputs: int, dimensions: int, smoothness: float) -> None:
        vectors = np.array([k for k in itertools.product(range(-WAVES, WAVES + 1), repeat=dimensions) if any(k)])
        self._vectors = vectors
        self._amplitudes = chance.normal(size=(len(vectors), inputs))
        self._amplitudes *= np.linalg.norm(vectors, axis=1)[:, None] ** -smoothness
        self._phases = chance.random((len(vectors), inputs))
        everywhere = self._waves(chance.random((_POINTS, dimensions)))
        self._low, self._high = everywhere.min(0), everywhere.max(0)

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates of points, (points, dimensions): (points, inputs), from 0 to 1."""
        stretched: NDArray[np.float64] = (self._waves(points) - self._low) / (self._high - self._low)
        return stretched.clip(0.0, 1.0)

    def _waves(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        # cos(a + b) = cos a cos b - sin a sin b: two products instead of an array of points x waves x inputs.
        angles, phases = 2 * np.pi * points @ self._vectors.T, 2 * np.pi * self._phases
        waves: NDArray[np.float64] = np.cos(angles) @ (self._amplitudes * np.cos(phases))
        waves -= np.sin(angles) @ (self._amplitudes * np.sin(phases))
        return waves
