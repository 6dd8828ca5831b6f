"""lif_gradient and srm_gradient: gradients from a trace equal those of the differentiable functions."""

from typing import Any

import pytest
import torch

import exodus_core
from assertions import DTYPES, KERNELS, RESETS, assert_agrees, leaves, lif_parameters, name_of, relative_error
from exodus_core.kernels import AlphaKernel
from exodus_core.surrogate import Arctan

SHAPE = (2, 45, 9)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("reset", RESETS, ids=name_of)
@pytest.mark.parametrize("method", ["exodus", "slayer"])
def test_gradient_from_a_trace_equals_backward(dtype: torch.dtype, reset: str, method: str) -> None:
    options = {"reset": reset[0], "decay_reset": reset[1], "surrogate": Arctan(), "method": method}
    arguments = lif_parameters(SHAPE, 1, dtype)
    given = leaves(arguments)
    x = torch.randn(SHAPE).to(dtype).requires_grad_()
    g, h = torch.randn(SHAPE).to(dtype), torch.randn(SHAPE).to(dtype)
    spikes, membrane = exodus_core.lif(x, **given, **options)
    torch.autograd.backward([spikes, membrane], [g, h])
    found = exodus_core.lif_gradient(membrane.detach(), g, **arguments, **options, grad_membrane=h)
    assert torch.equal(found.input, x.grad)
    for name in found._fields[1:]:
        assert torch.equal(getattr(found, name), given[name].grad), name


@pytest.mark.parametrize("reset", RESETS, ids=name_of)
@pytest.mark.parametrize("max_spikes", [1, 3])
def test_exodus_equals_bptt_on_a_trace(reset: str, max_spikes: int) -> None:
    if reset[0] == "zero" and max_spikes > 1:
        max_spikes = 1
    arguments = lif_parameters(SHAPE, 1, torch.float64, reset=reset[0], decay_reset=reset[1], max_spikes=max_spikes)
    membrane = torch.randn(SHAPE, dtype=torch.float64)  # any trace will do, not only one that a neuron can have
    g, h = torch.randn(2, *SHAPE, dtype=torch.float64)
    found, expected = (
        exodus_core.lif_gradient(membrane, g, **arguments, grad_membrane=h, method=method)
        for method in ("exodus", "bptt")
    )
    for name in found._fields:
        assert_agrees(name, getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("method", ["exodus", "bptt"])
def test_threshold_gradient_includes_the_reset_that_defaults_to_it(method: str) -> None:
    threshold = torch.rand(9, dtype=torch.float64)
    membrane, g = torch.randn(2, *SHAPE, dtype=torch.float64)
    tied = exodus_core.lif_gradient(membrane, g, 0.9, threshold=threshold, method=method)
    apart = exodus_core.lif_gradient(membrane, g, 0.9, threshold=threshold, reset_by=threshold, method=method)
    assert tied.reset_by is None
    torch.testing.assert_close(tied.threshold, apart.threshold + apart.reset_by)


@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
def test_gradients_of_float_parameters_are_scalars_on_request(method: str) -> None:
    membrane, g = torch.randn(2, *SHAPE, dtype=torch.float64)
    quiet = exodus_core.lif_gradient(membrane, g, 0.9, method=method)
    assert quiet[1:] == (None, None, None, None)
    names = ["alpha", "threshold", "reset_by", "initial_membrane"]
    asked = exodus_core.lif_gradient(membrane, g, 0.9, reset_by=0.7, method=method, wrt=names)
    per_neuron = exodus_core.lif_gradient(
        membrane,
        g,
        torch.full((9,), 0.9, dtype=torch.float64),
        threshold=torch.ones(9, dtype=torch.float64),
        reset_by=torch.full((9,), 0.7, dtype=torch.float64),
        initial_membrane=torch.zeros(2, 9, dtype=torch.float64),
        method=method,
    )
    for name in names:
        assert getattr(asked, name).shape == ()
        torch.testing.assert_close(getattr(asked, name), getattr(per_neuron, name).sum())


@pytest.mark.parametrize("kernel", KERNELS)
def test_srm_gradient_equals_backward_and_bptt(kernel: Any) -> None:
    nu = KERNELS[kernel](torch.float64)
    z = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    g, h = torch.randn(2, *SHAPE, dtype=torch.float64)
    spikes, membrane = exodus_core.srm(z, nu)
    torch.autograd.backward([spikes, membrane], [g, h])
    found = exodus_core.srm_gradient(membrane.detach(), g, nu, grad_membrane=h)
    assert torch.equal(found.psp, z.grad)
    by_loop = exodus_core.srm_gradient(membrane.detach(), g, nu, grad_membrane=h, method="bptt")
    assert relative_error(found.psp, by_loop.psp) < 1e-13


def test_bptt_works_where_gradients_are_switched_off() -> None:
    membrane, g = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert exodus_core.lif_gradient(membrane, g, 0.9, method="bptt").input.shape == SHAPE
        assert exodus_core.srm_gradient(membrane, g, torch.tensor([-1.0]), method="bptt").psp.shape == SHAPE


@pytest.mark.parametrize("reset", RESETS, ids=name_of)
def test_bptt_works_in_inference_mode(reset: str) -> None:
    with torch.inference_mode():
        arguments = lif_parameters(SHAPE, 1, torch.float64, reset=reset[0], decay_reset=reset[1])
        membrane, g = torch.randn(2, *SHAPE, dtype=torch.float64)
        taps = KERNELS["taps"](torch.float64)
        for wrt in ("input", None):
            by_loop = exodus_core.lif_gradient(membrane, g, **arguments, wrt=wrt, method="bptt")
            assert relative_error(exodus_core.lif_gradient(membrane, g, **arguments).input, by_loop.input) < 1e-12
        looped = exodus_core.srm_gradient(membrane, g, taps, threshold=arguments["threshold"], method="bptt")
        found = exodus_core.srm_gradient(membrane, g, taps, threshold=arguments["threshold"])
        assert relative_error(found.psp, looped.psp) < 1e-12


def test_wrt_is_checked() -> None:
    membrane, g = torch.randn(2, *SHAPE)
    with pytest.raises(ValueError, match=r"wrt must be names of input, alpha.*got beta"):
        exodus_core.lif_gradient(membrane, g, 0.9, wrt=["beta"])
    with pytest.raises(ValueError, match=r"^wrt must be names of parameters that are not None, got reset_by; its"):
        exodus_core.lif_gradient(membrane, g, 0.9, wrt="reset_by")


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=str)
@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
def test_empty_traces_have_empty_gradients(shape: tuple[int, ...], method: str) -> None:
    membrane = torch.zeros(shape)
    found = exodus_core.lif_gradient(membrane, membrane, 0.9, method=method, grad_membrane=membrane, wrt=["alpha"])
    assert found.input.shape == shape
    assert found.alpha == 0
    kernel = AlphaKernel(4.0, -1.0)
    srm = exodus_core.srm_gradient(membrane, membrane, kernel, method=method, grad_membrane=membrane)
    assert srm.psp.shape == shape
