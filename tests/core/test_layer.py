"""Equations around the neurons (4, 11, 13, 14): against autograd in float64, at odd sizes, for every dtype and axis."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import exodus_core
from exodus_core import (
    AlphaKernel,
    ArgumentError,
    ArgumentTypeError,
    ExponentialKernel,
    fire,
    output_filter_adjoint,
    reference,
    surrogate,
    synapse_current,
    synapse_gradients,
)
from exodus_core.kernels import Kernel

KERNELS: dict[str, Kernel] = {
    "exponential": ExponentialKernel(0.9),
    "no memory": ExponentialKernel(0.0),
    "integrator": ExponentialKernel(1.0),
    "two": ExponentialKernel((0.9, 0.5), (1.0, -2.0)),
    "alpha": AlphaKernel(4.0),
    "taps": torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64),
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("time_dim", [0, 1, -1])
@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 1, 1), (3, 70, 17), (0, 4, 2)])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_the_adjoint_of_the_output_filter_is_autograds(kernel: Kernel, shape: tuple[int, ...], time_dim: int) -> None:
    spikes = torch.randint(0, 2, shape).double().requires_grad_()
    grad_output = torch.randn(shape, dtype=torch.float64)
    filtered = reference.filter(spikes, kernel, time_dim=time_dim)
    (expected,) = torch.autograd.grad(filtered, spikes, grad_output)
    found = output_filter_adjoint(grad_output, kernel, time_dim=time_dim)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time_dim", [0, 1, -1])
def test_the_adjoint_is_the_filter_from_the_end_of_time_to_the_bit(dtype: torch.dtype, time_dim: int) -> None:
    grad_output = torch.randn(3, 130, 17).to(dtype)
    backwards = exodus_core.filter(grad_output.flip(time_dim), ExponentialKernel(0.9), time_dim=time_dim)
    found = output_filter_adjoint(grad_output, ExponentialKernel(0.9), time_dim=time_dim)
    assert torch.equal(found, backwards.flip(time_dim))


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (2, 5, 3), (4, 3), (3,), (0, 5, 3)])
@pytest.mark.parametrize("n_out", [1, 4, 0])
def test_the_gradients_of_synapses_are_autograds(shape: tuple[int, ...], n_out: int) -> None:
    spikes = torch.randint(0, 2, shape).double().requires_grad_()
    weight = torch.randn(n_out, shape[-1], dtype=torch.float64, requires_grad=True)
    current = synapse_current(spikes, weight)
    assert current.shape == (*shape[:-1], n_out)
    torch.testing.assert_close(current, torch.einsum("...i,oi->...o", spikes, weight))
    grad_input = torch.randn_like(current)
    expected = torch.autograd.grad(current, (spikes, weight), grad_input)
    found = synapse_gradients(spikes, weight, grad_input)
    torch.testing.assert_close(tuple(found), expected)
    assert not found.weight.requires_grad


def test_a_layer_is_differentiated_from_its_trace_as_by_autograd() -> None:
    """Spikes through synapses, neurons and an output filter, and all the way back (11, 13, 14)."""
    spikes = torch.randint(0, 2, (2, 40, 6)).double().requires_grad_()
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    kernel = ExponentialKernel(0.7)
    fired, membrane = reference.lif(synapse_current(spikes, weight), 0.9)
    filtered = reference.filter(fired, kernel)
    grad_output = torch.randn_like(filtered)
    expected = torch.autograd.grad(filtered, (spikes, weight), grad_output)
    trace = membrane.detach()
    adjoint = exodus_core.lif_gradient(trace, output_filter_adjoint(grad_output, kernel), 0.9).input
    assert torch.equal(fire(trace), fired)
    torch.testing.assert_close(tuple(synapse_gradients(spikes, weight, adjoint)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("threshold", "max_spikes"), [(1.0, 1), (0.5, 3), (torch.tensor([0.5, 1.0, 2.0]), 2)])
def test_the_spikes_of_a_trace_are_those_of_the_neuron(
    dtype: torch.dtype, threshold: float | Tensor, max_spikes: int
) -> None:
    threshold = threshold.to(dtype) if isinstance(threshold, Tensor) else threshold
    x = torch.randn(2, 50, 3).to(dtype)
    spikes, membrane = exodus_core.lif(x, 0.8, threshold=threshold, max_spikes=max_spikes)
    assert spikes.sum() > 0
    assert torch.equal(fire(membrane, threshold, max_spikes=max_spikes), spikes)


def test_the_spikes_of_a_trace_are_differentiated_by_the_surrogate() -> None:
    membrane = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    chosen, grad_spikes = surrogate.Arctan(), torch.randn(2, 9, 3, dtype=torch.float64)
    (found,) = torch.autograd.grad(fire(membrane, surrogate=chosen), membrane, grad_spikes)
    torch.testing.assert_close(found, grad_spikes * chosen.derivative(membrane.detach() - 1.0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s, w, g: synapse_current([1.0], w), ArgumentTypeError, "spikes must be a torch.Tensor, got list"),
        (
            lambda s, w, g: synapse_current(s, w.long()),
            ArgumentTypeError,
            "weight must be float32, float64, float16 or bfloat16, got torch.int64",
        ),
        (lambda s, w, g: synapse_current(s, w[0]), ArgumentError, "weight must be of shape (N_out, N_in), got (3,)"),
        (
            lambda s, w, g: synapse_current(s.double(), w),
            ArgumentTypeError,
            "spikes must be of the dtype of weight, torch.float32, got torch.float64",
        ),
        (
            lambda s, w, g: synapse_current(s[..., 1:], w),
            ArgumentError,
            "spikes must be of shape (..., 3), got (2, 5, 2)",
        ),
        (
            lambda s, w, g: synapse_gradients(s, w, g[:1]),
            ArgumentError,
            "grad_input must be of shape (2, 5, 4), got (1, 5, 4)",
        ),
        (
            lambda s, w, g: synapse_gradients(s, w, g.half()),
            ArgumentTypeError,
            "grad_input must be of the dtype of weight, torch.float32, got torch.float16",
        ),
        (
            lambda s, w, g: synapse_gradients(s, w, None),
            ArgumentTypeError,
            "grad_input must be a torch.Tensor, got NoneType",
        ),
        (
            lambda s, w, g: fire(s, time_dim=3),
            ArgumentError,
            "time_dim must be an axis of membrane with shape (2, 5, 3), got 3",
        ),
        (
            lambda s, w, g: fire(s, -1.0, max_spikes=2),
            ArgumentError,
            "threshold must be positive if max_spikes > 1, got -1.0",
        ),
        (
            lambda s, w, g: output_filter_adjoint(g, torch.ones(0)),
            ArgumentError,
            "kernel must be a 1-d tensor with at least one tap, got shape (0,)",
        ),
    ],
)
def test_an_error_names_the_argument(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call(torch.ones(2, 5, 3), torch.ones(4, 3), torch.ones(2, 5, 4))
    assert str(caught.value) == message
