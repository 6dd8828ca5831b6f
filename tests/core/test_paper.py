"""The recurrences against the implicit function theorem as the paper writes it, with dense matrices, O(T^3)."""

from typing import Any

import pytest
import torch
from torch import Tensor

import exodus_core
from assertions import KERNELS, relative_error
from exodus_core import AlphaKernel, ExponentialKernel
from exodus_core.surrogate import Exponential, Surrogate

T = 30


def implicit_gradient(
    membrane: Tensor, grad_spikes: Tensor, nu: ExponentialKernel | AlphaKernel, surrogate: Surrogate
) -> Tensor:
    """delta of one neuron from the implicit function theorem.

    The forward pass is the solution of u = z + N s, s = f(u), where N[n, m] = nu[n - 1 - m] for m < n. Differentiating
    both, du/dz = (I - N F)^-1 with F = diag(f'), so delta = (F (I - N F)^-1)^T g.
    """
    shift = torch.arange(T)[:, None] - 1 - torch.arange(T)[None, :]
    reset = torch.where(shift >= 0, nu.taps(T)[shift.clamp(min=0)], 0.0)
    derivative = torch.diag(surrogate.derivative(membrane - 1.0))
    jacobian = derivative @ torch.linalg.inv(torch.eye(T, dtype=torch.float64) - reset @ derivative)
    delta: Tensor = jacobian.T @ grad_spikes
    return delta


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "taps"])
def test_srm_gradient_is_that_of_the_implicit_function_theorem(kernel: Any) -> None:
    nu = KERNELS[kernel](torch.float64)
    _, membrane = exodus_core.srm(torch.randn(1, T, 1, dtype=torch.float64), nu)
    g = torch.randn(1, T, 1, dtype=torch.float64)
    found = exodus_core.srm_gradient(membrane, g, nu).psp
    expected = implicit_gradient(membrane[0, :, 0], g[0, :, 0], nu, Exponential())
    assert relative_error(found[0, :, 0], expected) < 1e-13


def test_lif_gradient_is_that_of_the_implicit_function_theorem_through_the_response_kernel() -> None:
    x = torch.randn(1, T, 1, dtype=torch.float64)
    _, membrane = exodus_core.lif(x, 0.9)
    g = torch.randn(1, T, 1, dtype=torch.float64)
    found = exodus_core.lif_gradient(membrane, g, 0.9).input
    delta = implicit_gradient(membrane[0, :, 0], g[0, :, 0], ExponentialKernel(0.9, -1.0), Exponential())
    # dL/dx = eps correlated with delta, because z = eps * x
    lam = exodus_core.filter(delta.flip(0)[None, :, None], ExponentialKernel(0.9))[0, :, 0].flip(0)
    assert relative_error(found[0, :, 0], lam) < 1e-13
