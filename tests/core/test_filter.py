"""Causal filters: taps, exponentials and alpha functions agree with the plain loop and with each other."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import exodus_core
from assertions import DTYPES, KERNELS, ODD_SHAPES, assert_agrees, gradients, leaves, name_of, relative_error
from exodus_core import AlphaKernel, ExponentialKernel, reference
from exodus_core.ops import compute_dtype


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("kernel_name", KERNELS)
def test_filter_equals_loop(shape: tuple[int, ...], dtype: torch.dtype, kernel_name: str) -> None:
    kernel = KERNELS[kernel_name](compute_dtype(dtype))
    arguments = {"x": torch.randn(shape, dtype=torch.float64).to(dtype), "kernel": kernel}
    weight = torch.randn(shape, dtype=torch.float64).to(dtype)
    exact = {name: v.double() if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}

    def run(function: Callable[..., Any], given: dict[str, Any], w: Tensor) -> dict[str, Tensor]:
        given = leaves(given)
        output = function(**given)
        return {"output": output, **gradients((output,), (w,), given)}

    found = run(exodus_core.filter, arguments, weight)
    expected = run(reference.filter, exact, weight.double())
    plain = run(reference.filter, arguments, weight) if dtype == torch.float32 else {}
    for name, value in found.items():
        assert_agrees(name, value, expected[name], plain=plain.get(name))


@pytest.mark.parametrize(("shape", "time_dim"), [((70, 3, 5), 0), ((3, 5, 70), 2), ((2, 3, 66, 4, 5), -3), ((65,), 0)])
@pytest.mark.parametrize("kernel_name", KERNELS)
def test_time_may_be_any_axis(shape: tuple[int, ...], time_dim: int, kernel_name: str) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    kernel = KERNELS[kernel_name](torch.float64)
    along = exodus_core.filter(x, kernel, time_dim=time_dim)
    first = exodus_core.filter(x.movedim(time_dim, 0).contiguous(), kernel, time_dim=0).movedim(0, time_dim)
    assert relative_error(along, first) < 1e-15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
# The last number is the largest one that does not become infinite as float16.
@pytest.mark.parametrize("factor", [1.0, 1 / 3, 2.7e-5, 4096.0, -1e10, 65519.99609375])
def test_half_types_are_read_and_rounded_as_torch_does_it(dtype: torch.dtype, factor: float) -> None:
    every_value = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    tap = torch.tensor([factor])
    found = exodus_core.filter(every_value.view(1, 1, -1), tap).flatten()
    # The response starts from zero: that makes -0 positive.
    expected = (every_value.float() * tap + 0.0).to(dtype)
    assert torch.equal(found.isnan(), every_value.isnan() | expected.isnan())
    assert torch.equal(found[~found.isnan()], expected[~found.isnan()])


def test_nan_stays_nan_in_a_half_type_whatever_its_bits() -> None:
    nan = torch.tensor([2**31 - 1], dtype=torch.int32).view(torch.float32)  # rounding these bits up would give -0
    for dtype in (torch.float16, torch.bfloat16):
        assert exodus_core.filter(torch.ones(1, 1, 20, dtype=dtype), nan).isnan().all()


def test_impulse_response_is_the_kernel() -> None:
    impulse = torch.zeros(1, 30, 1, dtype=torch.float64)
    impulse[0, 0] = 1
    for kernel in (ExponentialKernel(0.9, 2.0), ExponentialKernel((0.9, 0.5), (1.0, -1.0)), AlphaKernel(5.0, 3.0)):
        torch.testing.assert_close(exodus_core.filter(impulse, kernel).flatten(), kernel.taps(30))


SLOW = [AlphaKernel(2000.0), ExponentialKernel(math.exp(-1 / 2000)), ExponentialKernel((0.9995, 0.5), (1.0, 3.0))]


@pytest.mark.parametrize("kernel", SLOW, ids=["alpha", "exponential", "two exponentials"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=name_of)
def test_impulse_response_of_a_slow_kernel_is_the_kernel_to_the_precision_of_the_dtype(
    kernel: Any, dtype: torch.dtype
) -> None:
    impulse = torch.zeros(1, 8000, 3, dtype=dtype)
    impulse[0, 0] = 1
    taps = kernel.taps(8000)[:, None].expand(8000, 3)
    error = (exodus_core.filter(impulse, kernel)[0].double() - taps).abs()
    # One rounding; float16 has less of what is small.
    assert (error <= torch.finfo(dtype).eps * taps + (2**-24 if dtype == torch.float16 else 0)).all()


@pytest.mark.parametrize("kernel", SLOW, ids=["alpha", "exponential", "two exponentials"])
def test_a_constant_through_a_slow_kernel_does_not_lose_what_each_step_adds(kernel: Any) -> None:
    x = torch.full((1, 30000, 1), 0.1)
    torch.testing.assert_close(
        exodus_core.filter(x, kernel), exodus_core.filter(x.double(), kernel).float(), rtol=2**-23, atol=0
    )


@pytest.mark.parametrize("kernel_name", KERNELS)
def test_recurrence_is_the_sum_over_taps(kernel_name: str) -> None:
    kernel = KERNELS[kernel_name](torch.float64)
    taps = kernel if isinstance(kernel, torch.Tensor) else kernel.taps(300)
    x = torch.randn(2, 300, 5, dtype=torch.float64)
    for function in (exodus_core.filter, reference.filter):
        assert relative_error(function(x, kernel), reference.filter(x, taps)) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("kernel_name", KERNELS)
def test_filter_has_the_bits_of_the_loop(kernel_name: str, dtype: torch.dtype) -> None:
    kernel = KERNELS[kernel_name](compute_dtype(dtype))
    x = torch.randn(2, 100, 37).to(dtype)
    assert torch.equal(exodus_core.filter(x, kernel), reference.filter(x, kernel))


def test_a_subnormal_input_passes_and_what_is_left_of_it_fades_to_zero() -> None:
    x = torch.zeros(1, 3000, 1)
    x[0, 0] = 1e-39
    for kernel in (ExponentialKernel(0.9), AlphaKernel(20.0), torch.tensor([1.0, 0.5])):
        y = exodus_core.filter(x + x.roll(1, 1), kernel)
        assert y[0, :2].sum() > 0
        assert not y[0, 2500:].any()
    assert exodus_core.filter(x, ExponentialKernel(0.9))[0, 0] == x[0, 0]
    assert exodus_core.filter(torch.ones(1, 1, 1), ExponentialKernel(0.9, 1e-39))[0, 0] == x[0, 0]


@pytest.mark.parametrize(
    "kernel",
    [ExponentialKernel(0.8, 1e30), ExponentialKernel(0.8, -1e30), AlphaKernel(8.0, 1e30), AlphaKernel(8.0, -1e30)],
    ids=str,
)
def test_a_large_amplitude_keeps_what_a_small_state_stands_for(kernel: Any) -> None:
    impulse = torch.zeros(1, 400, 1)
    impulse[0, 0] = 1e-20
    torch.testing.assert_close(
        exodus_core.filter(impulse, kernel)[0, :, 0], (1e-20 * kernel.taps(400)).float(), rtol=1e-6, atol=1e-37
    )


def test_a_small_amplitude_does_not_end_the_past_before_its_time() -> None:
    impulse = torch.zeros(1, 200, 1)
    impulse[0, 0] = 1e-30
    kernel = ExponentialKernel(0.99, 1e-10)
    # Responses are subnormal, the state is not. Units in the last place are 1.4e-45.
    torch.testing.assert_close(
        exodus_core.filter(impulse, kernel)[0, :, 0], (1e-30 * kernel.taps(200)).float(), rtol=0, atol=2e-45
    )


@pytest.mark.parametrize("step", [0, 60, 63, 64, 127])
@pytest.mark.parametrize("tau", [20.0, 1000.0])
def test_a_small_state_that_grows_is_kept_whatever_the_step(tau: float, step: int) -> None:
    # Of slope 1: the response is 1e-39 k decay^k, subnormal at first and a normal number where it peaks.
    kernel = AlphaKernel(tau, tau / math.e)
    impulse = torch.zeros(1, step + 2000, 1)
    impulse[0, step] = 2e-39
    response = exodus_core.filter(impulse, kernel)[0, step:, 0]
    wanted = (2e-39 * kernel.taps(2000)).float()
    assert wanted.max() > 1.2e-38
    torch.testing.assert_close(response, wanted, rtol=1e-5, atol=1.2e-38)
    torch.testing.assert_close(response[: int(tau)], wanted[: int(tau)], rtol=1e-5, atol=3e-45)


def test_a_state_that_a_large_amplitude_lifts_above_zero_fades_all_the_same() -> None:
    impulse = torch.zeros(1, 8000, 1, dtype=torch.float64)
    impulse[0, 0] = 1.0
    # 0.9^7100 is the smallest subnormal number, which rounding keeps from becoming zero.
    assert not exodus_core.filter(impulse, ExponentialKernel(0.9, 1e20))[0, 7500:].any()


def test_an_alpha_kernel_of_slope_one_is_no_exponential() -> None:
    kernel = AlphaKernel(math.e)
    assert kernel.modes.linear == (1.0,)
    impulse = torch.zeros(1, 30, 1, dtype=torch.float64)
    impulse[0, 0] = 1.0
    torch.testing.assert_close(exodus_core.filter(impulse, kernel)[0, :, 0], kernel.taps(30))


def test_alpha_kernel_is_zero_at_zero_and_peaks_at_tau() -> None:
    taps = AlphaKernel(5.0, 3.0).taps(30)
    assert taps[0] == 0
    assert taps.argmax() == 5
    assert taps[5].item() == pytest.approx(3.0)


def test_more_taps_than_steps_do_no_harm() -> None:
    x = torch.randn(2, 10, 3, dtype=torch.float64)
    taps = torch.randn(50, dtype=torch.float64, requires_grad=True)
    y = exodus_core.filter(x, taps)
    y.sum().backward()
    assert torch.equal(y, exodus_core.filter(x, taps[:10]))
    assert not taps.grad[10:].any()


def test_gradient_of_a_filter_is_its_transpose() -> None:
    x, y = torch.randn(2, 40, 5, dtype=torch.float64, requires_grad=True), torch.randn(2, 40, 5, dtype=torch.float64)
    kernel = AlphaKernel(3.0)
    filtered = exodus_core.filter(x, kernel)
    (transposed,) = torch.autograd.grad(filtered, x, y)
    torch.testing.assert_close((filtered * y).sum(), (x * transposed).sum())
    torch.testing.assert_close(transposed.flip(1), exodus_core.filter(y.flip(1), kernel))


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=name_of)
def test_empty_tensors_give_empty_results(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    taps = torch.ones(3, requires_grad=True)
    exodus_core.filter(x, taps).sum().backward()
    assert x.grad.shape == shape
    assert taps.grad.tolist() == [0, 0, 0]
