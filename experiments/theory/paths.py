"""The chain rule as a sum over paths (section 6.1): which of them SLAYER leaves out.

u[n+1] depends on u[n] directly (alpha), and through the spike s[n] (f'[n], then -rho). A derivative is the sum, over
all paths from the one to the other, of the products of the derivatives along each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import sympy as sp  # type: ignore[import-untyped]


def paths(steps: int) -> Iterator[tuple[bool, ...]]:
    """All paths from u[0] to u[steps]: for each step, if it leads through the spike. 2^steps of them."""
    return itertools.product((False, True), repeat=steps)


def over_paths(derivative: Sequence[float], alpha: float, rho: float, *, through_spikes: bool = True) -> float:
    """du[T]/du[0] as the sum over the paths, T being the number of derivatives.

    Args:
        derivative: f'[0], ..., f'[T - 1].
        alpha, rho: of the neuron.
        through_spikes: False: only the path that leads through no spike, SLAYER's.
    """
    found = [
        math.prod(-rho * f if through else alpha for f, through in zip(derivative, path, strict=True))
        for path in paths(len(derivative))
        if through_spikes or not any(path)
    ]
    return math.fsum(found)


def symbolic(steps: int) -> tuple[sp.Expr, sp.Expr]:
    """du[steps]/du[0] in symbols: the sum over the paths, and the product that it is."""
    alpha, rho = sp.symbols("alpha rho")
    derivative = sp.symbols(f"f0:{steps}")
    total = sum(
        (
            sp.Mul(*(-rho * f if through else alpha for f, through in zip(derivative, path, strict=True)))
            for path in paths(steps)
        ),
        sp.Integer(0),
    )
    return total, sp.Mul(*(alpha - rho * f for f in derivative))
