"""SRM neurons: the kernels agree with the plain loop for taps and for recurrent kernels."""

from typing import Any

import pytest
import torch

import exodus_core
from assertions import (
    DTYPES,
    KERNELS,
    ODD_SHAPES,
    SURROGATES,
    assert_agrees,
    gradients,
    leaves,
    name_of,
    relative_error,
)
from exodus_core import AlphaKernel, ExponentialKernel, reference
from exodus_core.ops import compute_dtype
from exodus_core.surrogate import Exponential, Surrogate

EXPONENTIAL = Exponential()


def compare(
    shape: tuple[int, ...],
    time_dim: int,
    dtype: torch.dtype,
    kernel_name: str,
    method: str = "exodus",
    surrogate: Surrogate = EXPONENTIAL,
) -> None:
    torch.manual_seed(0)
    kernel = KERNELS[kernel_name](compute_dtype(dtype))
    arguments = {
        "z": torch.randn(shape, dtype=torch.float64).to(dtype),
        "reset_kernel": kernel,
        "threshold": (0.5 + torch.rand(shape[time_dim + 1 :], dtype=torch.float64)).to(dtype),
    }
    weights = tuple(torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    options = {"surrogate": surrogate, "time_dim": time_dim, "method": method}
    ours = leaves(arguments)
    outputs = exodus_core.srm(**ours, **options)
    found = gradients(outputs, weights, ours)

    exact = leaves({k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments.items() if k != "z"})
    psp, spikes, membrane = reference.srm_on_trace(outputs[1].double(), **exact, **options)
    assert torch.equal(outputs[0].double(), spikes)
    assert_agrees("psp recovered", arguments["z"], psp)
    expected = gradients((spikes, membrane), tuple(w.double() for w in weights), {**exact, "z": psp})
    plain = {}
    if dtype == torch.float32:
        rough = leaves({name: value for name, value in arguments.items() if name != "z"})
        psp, *pinned = reference.srm_on_trace(outputs[1].detach(), **rough, **options)
        plain = gradients(tuple(pinned), weights, {**rough, "z": psp})
    for name, gradient in found.items():
        assert_agrees(name, gradient, expected[name], plain=plain.get(name))


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("method", ["exodus", "slayer"])
def test_kernel_equals_loop_for_every_reset_kernel_and_dtype(
    shape: tuple[int, ...], dtype: torch.dtype, kernel: Any, method: str
) -> None:
    compare(shape, 1, dtype, kernel, method)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_kernel_equals_loop_for_every_surrogate(surrogate: Surrogate, dtype: torch.dtype) -> None:
    compare((2, 33, 19), 1, dtype, "taps", surrogate=surrogate)


@pytest.mark.parametrize(("shape", "time_dim"), [((7, 3, 5), 0), ((3, 5, 70), 2), ((2, 3, 66, 4, 5), 2), ((65,), 0)])
def test_time_may_be_any_axis(shape: tuple[int, ...], time_dim: int) -> None:
    compare(shape, time_dim, torch.float64, "alpha")


@pytest.mark.parametrize("kernel", KERNELS)
def test_forward_equals_the_loop(kernel: Any) -> None:
    z = torch.randn(2, 50, 6, dtype=torch.float64)
    nu = KERNELS[kernel](torch.float64)
    spikes, membrane = exodus_core.srm(z, nu)
    looped = reference.srm(z, nu)
    assert torch.equal(spikes, looped[0])
    assert_agrees("membrane", membrane, looped[1])


def test_srm_with_the_kernels_of_a_lif_neuron_is_that_neuron() -> None:
    x = torch.randn(2, 80, 6, dtype=torch.float64)
    weight = torch.randn_like(x)
    results = []
    for neuron in ("lif", "srm"):
        leaf = x.clone().requires_grad_()
        if neuron == "lif":
            spikes, membrane = exodus_core.lif(leaf, 0.9, threshold=0.8)
        else:
            psp = exodus_core.filter(leaf, ExponentialKernel(0.9))
            spikes, membrane = exodus_core.srm(psp, ExponentialKernel(0.9, -0.8), threshold=0.8)
        (spikes * weight).sum().backward()
        results.append((spikes, membrane, leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert relative_error(results[0][1], results[1][1]) < 1e-14
    assert relative_error(results[0][2], results[1][2]) < 1e-13


def test_reset_through_an_alpha_kernel_comes_late_and_fades() -> None:
    z = torch.zeros(1, 40, 1, dtype=torch.float64)
    z[0, 0] = 1.5
    spikes, membrane = exodus_core.srm(z, AlphaKernel(4.0, -1.0))
    assert spikes.sum() == 1
    assert membrane[0, 1:, 0].argmin() == 4  # nu peaks at tau = 4 steps after the step that follows the spike
    assert membrane[0, 5, 0].item() == pytest.approx(-1.0)


def test_views_give_the_results_of_contiguous_tensors() -> None:
    z = torch.randn(6, 40, 2, dtype=torch.float64).transpose(0, 2)
    taps = torch.randn(10, dtype=torch.float64)[::2]
    g, h = (torch.randn(6, 40, 2, dtype=torch.float64).transpose(0, 2) for _ in range(2))
    results = []
    for dense in (False, True):
        given = [t.contiguous() if dense else t for t in (z, taps, g, h)]
        leaf, nu = (t.detach().requires_grad_() for t in given[:2])
        outputs = exodus_core.srm(leaf, nu)
        filtered = exodus_core.filter(leaf, nu)
        found = exodus_core.srm_gradient(outputs[1].detach(), given[2], nu.detach(), grad_membrane=given[3])
        strided = exodus_core.srm_gradient(given[0], given[2], nu.detach())
        reached = torch.autograd.grad([*outputs, filtered], [leaf, nu], [given[2], given[3], given[2]])
        results.append([*outputs, filtered, *found, *strided, *reached])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(2, 3, 2100), (300, 3, 7)], ids=name_of)
def test_kernel_equals_loop_where_neurons_fill_several_tiles(shape: tuple[int, ...]) -> None:
    compare(shape, 1, torch.float64, "taps")


def test_bptt_equals_exodus() -> None:
    z = torch.randn(2, 40, 6, dtype=torch.float64)
    for kernel in KERNELS.values():
        found = []
        for method in ("exodus", "bptt"):
            leaf = z.clone().requires_grad_()
            options = {"method": method, "threshold": 0.7, "surrogate": Exponential(2.0), "time_dim": 2}
            exodus_core.srm(leaf, kernel(torch.float64), **options)[0].sum().backward()
            found.append(leaf.grad)
        assert relative_error(*found) < 1e-13


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=name_of)
def test_empty_tensors_give_empty_results(shape: tuple[int, ...]) -> None:
    z = torch.zeros(shape, requires_grad=True)
    threshold = torch.ones(shape[2:], requires_grad=True)
    spikes, _ = exodus_core.srm(z, AlphaKernel(4.0, -1.0), threshold=threshold)
    spikes.sum().backward()
    assert spikes.shape == z.grad.shape == shape
    assert not threshold.grad.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("kernel", [*KERNELS, "slow"])
def test_method_does_not_change_the_forward_pass(kernel: Any, dtype: torch.dtype) -> None:
    nu = AlphaKernel(500.0, -1.0) if kernel == "slow" else KERNELS[kernel](compute_dtype(dtype))
    z = (0.6 + 0.5 * torch.randn(2, 400, 33)).to(dtype)
    spikes, membrane = exodus_core.srm(z, nu)
    assert 0 < spikes.mean() < 1
    for method in ("slayer", "bptt"):
        others = exodus_core.srm(z, nu, method=method)
        assert torch.equal(spikes, others[0])
        assert torch.equal(membrane, others[1])


def test_membranes_too_small_for_their_exponent_are_compared_as_they_are() -> None:
    z = torch.tensor([[[1e-39], [2e-39], [2e-39], [0.5e-39]]])
    spikes, membrane = exodus_core.srm(z, ExponentialKernel(0.5, -1e-39), threshold=1.5e-39)
    assert spikes.flatten().tolist() == [0, 1, 0, 0]
    assert torch.equal(membrane, reference.srm(z, ExponentialKernel(0.5, -1e-39), threshold=1.5e-39)[1])


@pytest.mark.parametrize(("threshold", "fired"), [(0.0, [0, 1, 1]), (-1.0, [1, 1, 1]), (1.0, [0, 0, 1])])
def test_a_membrane_that_reaches_its_threshold_fires_whatever_the_sign(threshold: float, fired: list[int]) -> None:
    z = torch.tensor([[[-0.5, 0.0, 2.0]]])
    assert exodus_core.srm(z, torch.tensor([-1.0]), threshold=threshold)[0].flatten().tolist() == fired


def test_nan_stays_in_the_gradient() -> None:
    membrane = torch.tensor([[[0.3, 0.3], [torch.nan, 0.3], [0.3, 0.3]]])
    for surrogate in SURROGATES:
        gradient = exodus_core.srm_gradient(
            membrane, torch.ones_like(membrane), ExponentialKernel(0.5, -1.0), surrogate=surrogate
        ).psp
        assert gradient[0, :, 0].isnan().tolist() == [True, True, False]
        assert gradient[0, :, 1].isfinite().all()


def test_threshold_and_tap_gradients_keep_their_precision_over_a_million_steps() -> None:
    z = torch.rand(1, 2**20 + 77, 1)
    taps = torch.tensor([-0.2, -0.1])
    results = []
    for dtype in (torch.float32, torch.float64):
        nu, threshold = taps.to(dtype).requires_grad_(), torch.tensor(2.0, dtype=dtype, requires_grad=True)
        spikes, membrane = exodus_core.srm(z.to(dtype) + 1.5, nu, threshold=threshold)
        results.append(torch.autograd.grad(spikes.sum() + membrane.sum(), [nu, threshold]))
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) < 2e-6  # some spikes differ
