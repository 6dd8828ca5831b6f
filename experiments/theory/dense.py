"""The gradient as dense matrices, from the implicit function theorem (9, 15, 16), for comparison with the recurrence.

The forward pass of T steps is the solution of F(u, z) = u - z - N f(u) = 0, where N[n, m] = nu[n - 1 - m] for m < n is
the reset. The theorem gives du/dz = (dF/du)^-1 wherever dF/du = I - N diag(f') is regular, and it always is (section
6.2): N is strictly lower triangular, since a spike acts from the next step on, so that the determinant is 1 whatever
the surrogate derivative is.

chi[n, m] = du[n]/dz[m] and sigma[n, m] = ds[n]/dz[m] = f'[n] chi[n, m] here; delta = sigma^T g.
"""

from __future__ import annotations

import sympy as sp  # type: ignore[import-untyped]
import torch
from torch import Tensor

from experiments.theory.neuron import ResetKernel


def reset_matrix(taps: Tensor) -> Tensor:
    """N of the taps of a reset kernel, shape (T,): (T, T), strictly lower triangular."""
    steps = len(taps)
    lag = torch.arange(steps)[:, None] - 1 - torch.arange(steps)
    return torch.where(lag >= 0, taps[lag.clamp(min=0)], 0.0)


def taps_of(kernel: ResetKernel, steps: int) -> Tensor:
    """nu[0], ..., nu[steps - 1] of a reset kernel, float64."""
    return kernel.taps(steps)


def residual_jacobian(taps: Tensor, derivative: Tensor) -> Tensor:
    """dF/du = I - N diag(f'), shape (T, T)."""
    return torch.eye(len(taps), dtype=torch.float64) - reset_matrix(taps) @ torch.diag(derivative)


def chi_by_theorem(taps: Tensor, derivative: Tensor) -> Tensor:
    """chi as the inverse of dF/du."""
    chi: Tensor = torch.linalg.inv(residual_jacobian(taps, derivative))
    return chi


def chi_by_recursion(taps: Tensor, derivative: Tensor) -> Tensor:
    """chi row by row, as the chain rule reaches step n from all earlier ones.

    chi[n, m] = [n = m] + sum over k from m to n - 1 of nu[n - 1 - k] f'[k] chi[k, m].
    """
    steps = len(taps)
    chi = torch.eye(steps, dtype=torch.float64)
    for n in range(1, steps):
        back = taps[:n].flip(0) * derivative[:n]
        chi[n] += back @ chi[:n]
    return chi


def sigma(chi: Tensor, derivative: Tensor) -> Tensor:
    """ds/dz, shape (T, T)."""
    return derivative[:, None] * chi


def chi_of_lif(derivative: Tensor, alpha: float, rho: float) -> Tensor:
    """du[n]/dx[m] of a LIF neuron: the product of alpha - rho f'[k] over k from m to n - 1, shape (T, T)."""
    steps = len(derivative)
    chi = torch.zeros(steps, steps, dtype=torch.float64)
    for m in range(steps):
        factors = alpha - rho * derivative[m : steps - 1]
        chi[m:, m] = torch.cat([torch.ones(1, dtype=torch.float64), factors.cumprod(0)])
    return chi


def symbolic_determinants(steps: int) -> tuple[sp.Expr, sp.Expr]:
    """det dF/du of any reset kernel and any surrogate derivative, and what it would be of a reset without delay.

    The second is that of u[n] = z[n] + nu[0] s[n] + nu[1] s[n - 1] + ...: a spike that acts on its own step.
    """
    nu, derivative = sp.symbols(f"nu:{steps}"), sp.symbols(f"f:{steps}")

    def entry(n: int, m: int, delay: int) -> sp.Expr:
        taken = nu[n - delay - m] * derivative[m] if n - delay >= m else sp.Integer(0)
        return int(n == m) - taken

    return tuple(sp.factor(sp.Matrix(steps, steps, lambda n, m, d=d: entry(n, m, d)).det()) for d in (1, 0))
