"""Surrogates: the kernels' derivatives are those of the definitions, near the threshold and far from it."""

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

import exodus_core
from assertions import DTYPES, SURROGATES, name_of
from exodus_core import surrogate
from exodus_core.surrogate import Surrogate


def kernel_derivative(kind: Surrogate, x: Tensor) -> Tensor:
    """f'(x) as the kernel has it: with alpha = 0 and grad_spikes = 1, dL/dx[t] is f'(u[t])."""
    membrane = (x + 1.0).view(1, 1, -1)
    return exodus_core.lif_gradient(membrane, torch.ones_like(membrane), 0.0, reset="none", surrogate=kind).input[0, 0]


@pytest.mark.parametrize("kind", SURROGATES, ids=name_of)
@pytest.mark.parametrize(("slope", "scale"), [(1.0, 1.0), (4.0, 0.3), (0.25, -2.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name_of)
def test_kernel_derivative_is_the_definition(kind: Surrogate, slope: float, scale: float, dtype: torch.dtype) -> None:
    sampled = type(kind)(slope, scale)
    x = torch.cat([torch.linspace(-6, 6, 1001), torch.tensor([0.0, -1e-6, 1e-6])]).to(dtype)
    x = (x + 1.0) - 1.0  # what is left of x once it is a membrane
    expected = sampled.derivative(x.double())
    error = (kernel_derivative(sampled, x).double() - expected).abs()
    # One rounding of x - threshold moves the derivative by slope^2 at most; the rest is the kernel's own.
    assert error.max() <= 8 * torch.finfo(dtype).eps * abs(scale) * (1 + slope) * max(1, slope)


# Two units are promised; the Taylor polynomial with one term less has three, and a wrong last term nearly two.
@pytest.mark.parametrize(("dtype", "units"), [(torch.float32, 1.5), (torch.float64, 1.0)], ids=name_of)
def test_exponential_is_exact_to_two_units_in_the_last_place(dtype: torch.dtype, units: float) -> None:
    x = -torch.linspace(0, 80, 4001, dtype=dtype)
    membrane = x.view(1, 1, -1)
    found = exodus_core.lif_gradient(
        membrane, torch.ones_like(membrane), 0.0, threshold=0.0, reset="none", surrogate=surrogate.Exponential()
    ).input[0, 0]
    with mpmath.workprec(120):
        exact = [mpmath.exp(number) for number in x.tolist()]
        nearest = torch.tensor([float(number) for number in exact], dtype=torch.float64)
        rest = torch.tensor([float(e - n) for e, n in zip(exact, nearest.tolist(), strict=True)], dtype=torch.float64)
    unit = torch.finfo(dtype).eps * 2.0 ** nearest.log2().floor()
    assert ((found.double() - nearest - rest) / unit).abs().max() <= units


@pytest.mark.parametrize("kind", SURROGATES, ids=name_of)
@pytest.mark.parametrize("far", [1e4, 1e30, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name_of)
def test_derivative_far_from_the_threshold_is_finite(kind: Surrogate, far: float, dtype: torch.dtype) -> None:
    found = kernel_derivative(kind, torch.tensor([-far, far], dtype=dtype))
    assert found.isfinite().all()
    assert (found.abs() < 1e-6).all()


def test_boxcar_has_its_edges_at_half_a_width() -> None:
    x = torch.tensor([-0.26, -0.25, 0.0, 0.25, 0.26], dtype=torch.float64)
    assert kernel_derivative(surrogate.Boxcar(2.0), x).tolist() == [0, 2, 2, 2, 0]
    assert surrogate.Boxcar(2.0).derivative(x).tolist() == [0, 2, 2, 2, 0]


@pytest.mark.parametrize("kind", SURROGATES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_derivative_at_nan_is_nan(kind: Surrogate, dtype: torch.dtype) -> None:
    x = torch.tensor([torch.nan, 0.1] * 20, dtype=dtype)
    assert torch.equal(kernel_derivative(kind, x).isnan(), x.isnan())
    assert torch.equal(kind.derivative(x).isnan(), x.isnan())
