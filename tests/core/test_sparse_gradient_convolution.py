"""dL/ds of convolutions from the elements of dL/dx that are not zero agrees with the dense one in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from sparse_cases import assert_rounded, bits_of, calls_of, on_cpu, spikes
from torch import Tensor

from assertions import DTYPES, name_of
from exodus_core import nn, ops
from exodus_core.sparse.convolution import Windows, conv2d, max_gradient_density

pytestmark = on_cpu

SIZE = (9, 13)
# Channels and outputs: rows of a kernel from one element to several parts.
CHANNELS = [(1, 1), (3, 17), (12, 64), (40, 9), (130, 5)]
# Kernel, stride, padding.
WINDOWS: list[tuple[tuple[int, int], list[int], list[int]]] = [
    ((1, 1), [1, 1], [0, 0]),
    ((3, 3), [1, 1], [1, 1]),
    ((5, 5), [1, 1], [0, 0]),
    ((3, 5), [2, 3], [0, 2]),
    ((3, 2), [4, 3], [3, 7]),  # padding wider than the kernel, strides that leave places unseen
    ((9, 13), [1, 1], [0, 0]),  # one window
    ((2, 9), [1, 1], [1, 4]),
]


def gradient_of(y: Tensor, density: float, dtype: torch.dtype) -> Tensor:
    return spikes(tuple(y.shape), density, "values", dtype)


def transposed(grad: Tensor, weight: Tensor, images: int, stride: list[int], padding: list[int]) -> Tensor:
    x = torch.zeros(images, weight.shape[1], *SIZE, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, weight.double(), None, stride, padding)
    return torch.autograd.grad(y, x, grad.double())[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("channels", CHANNELS, ids=name_of)
def test_the_operator_is_the_transposed_convolution(channels: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs, outputs = channels
    for kernel, stride, padding in WINDOWS:
        weight = torch.randn(outputs, inputs, *kernel, dtype=torch.float64).to(dtype)
        y = F.conv2d(torch.zeros(3, inputs, *SIZE, dtype=dtype), weight, None, stride, padding)
        for density in (0.0, 0.1, 1.0):
            grad = gradient_of(y, density, dtype)
            found = ops.sparse_gradient_convolution(
                bits_of(grad.flatten(1))[0], grad, weight, list(SIZE), stride, padding
            )
            expected = transposed(grad, weight, 3, stride, padding)
            magnitude = transposed(grad.abs(), weight.abs(), 3, stride, padding)
            assert_rounded(f"dL/ds {kernel}", found, expected, magnitude, outputs * math.prod(kernel))


@pytest.mark.parametrize("inputs", [1, 12, 40])
def test_a_gradient_that_is_not_finite_reaches_its_own_window_only(inputs: int) -> None:
    weight = torch.rand(3, inputs, 3, 5) + 0.5
    grad = torch.zeros(4, 3, 9, 9)
    grad[1, 0, 4, 3], grad[2, 2, 8, 8], grad[3, 1, 0, 0] = math.inf, math.nan, 2.0
    found = ops.sparse_gradient_convolution(bits_of(grad.flatten(1))[0], grad, weight, list(SIZE), [1, 1], [1, 0])
    reached = transposed((~grad.isfinite()).float(), torch.ones_like(weight), 4, [1, 1], [1, 0]) > 0
    assert torch.equal(found.isfinite(), ~reached)
    finite = grad.nan_to_num(0.0, 0.0, 0.0)
    torch.testing.assert_close(found[[0, 3]], transposed(finite, weight, 4, [1, 1], [1, 0])[[0, 3]].float())


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_bits_do_not_depend_on_the_threads(threads: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(33, 12, 3, 3)
    grad = gradient_of(torch.empty(50, 33, 7, 11), 0.2, torch.float32)
    bits = bits_of(grad.flatten(1))[0]
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            results.append(ops.sparse_gradient_convolution(bits, grad, weight, list(SIZE), [1, 1], [0, 0]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_behind_a_max_pool_gradients_are_those_of_torchs_layers(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    called = calls_of(monkeypatch, "sparse_gradient_convolution")
    ours = torch.nn.Sequential(nn.Conv2d(4, 32, 3, padding=1), nn.MaxPool2d(2)).to(dtype)
    theirs = torch.nn.Sequential(torch.nn.Conv2d(4, 32, 3, padding=1), torch.nn.MaxPool2d(2)).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    x = spikes((20, 4, 10, 12), 0.1, "ones", dtype).requires_grad_()
    y, expected = ours(x), theirs(x)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *ours.parameters()], grad)
    wanted = torch.autograd.grad(expected, [x, *theirs.parameters()], grad)
    for one, other in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(one, other)
    assert called == [1]


# Weight, groups, dilation, dtype, and the share of the gradient that is the limit.
LIMITS: list[tuple[tuple[int, int, int, int], int, int, torch.dtype, float]] = [
    ((32, 4, 3, 3), 1, 1, torch.float32, 0.3),
    ((32, 4, 3, 3), 1, 1, torch.float64, 0.3),
    ((32, 4, 3, 3), 1, 1, torch.float16, 0.3),
    ((32, 4, 3, 3), 1, 1, torch.bfloat16, 0.15),
    ((31, 4, 3, 3), 1, 1, torch.float32, 0.15),
    ((7, 4, 3, 3), 1, 1, torch.float32, 0.0),
    ((32, 2, 3, 3), 2, 1, torch.float32, 0.0),
    ((32, 4, 3, 3), 1, 2, torch.float32, 0.0),
    ((256, 128, 3, 3), 1, 1, torch.float32, 0.0),
]


@pytest.mark.parametrize(("shape", "groups", "dilation", "dtype", "limit"), LIMITS, ids=name_of)
def test_gradients_on_both_sides_of_each_limit(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int, int, int],
    groups: int,
    dilation: int,
    dtype: torch.dtype,
    limit: float,
) -> None:
    torch.manual_seed(0)
    windows = Windows(SIZE, (1, 1), (0, 0), (dilation, dilation), groups)
    assert max_gradient_density(shape, windows, dtype) == limit
    called = calls_of(monkeypatch, "sparse_gradient_convolution")
    weight = torch.randn(shape, dtype=torch.float64).to(dtype)
    x = spikes((20, shape[1] * groups, *SIZE), 0.03, "ones", dtype).requires_grad_()
    y = conv2d(x, weight, dilation=dilation, groups=groups)
    places = torch.randperm(y.numel())
    for more, sparse in ((0, limit > 0), (1, False)):
        called.clear()
        grad = torch.zeros_like(y)
        grad.view(-1)[places[: int(limit * grad.numel()) + more]] = 0.5
        (found,) = torch.autograd.grad(y, x, grad, retain_graph=True)
        assert called == ([1] if sparse else [])
        leaf = x.detach().double().requires_grad_()
        dense = F.conv2d(leaf, weight.double(), dilation=dilation, groups=groups)
        (expected,) = torch.autograd.grad(dense, leaf, grad.double())
        scale = expected.abs().max().item() + 1e-30
        torch.testing.assert_close(
            found.double() / scale, expected / scale, atol=8 * torch.finfo(dtype).eps, rtol=8 * torch.finfo(dtype).eps
        )


def test_a_batch_of_gradients_is_dense() -> None:
    torch.manual_seed(0)
    x = spikes((20, 4, *SIZE), 0.1, "ones", torch.float64).requires_grad_()
    weight = torch.randn(32, 4, 3, 3, dtype=torch.float64)
    y = conv2d(x, weight)
    grads = gradient_of(torch.empty(3, *y.shape), 0.1, torch.float64)
    (together,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    mapped = torch.func.vmap(lambda grad: torch.autograd.grad(y, x, grad, retain_graph=True)[0])(grads)
    alone = torch.stack([torch.autograd.grad(y, x, grad, retain_graph=True)[0] for grad in grads])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(mapped, alone)


def test_opcheck_and_wrong_arguments() -> None:
    weight = torch.randn(6, 2, 3, 3)
    grad = gradient_of(torch.empty(2, 6, 7, 11), 0.2, torch.float32)
    bits = bits_of(grad.flatten(1))[0]
    operator = torch.ops.exodus.sparse_gradient_convolution.default
    torch.library.opcheck(operator, (bits, grad, weight, list(SIZE), [1, 1], [0, 0]))
    assert operator(bits[:0], grad[:0], weight, list(SIZE), [1, 1], [0, 0]).shape == (0, 2, *SIZE)
    with pytest.raises(RuntimeError, match="bits must be a contiguous uint8 tensor"):
        operator(bits[:, 1:], grad, weight, list(SIZE), [1, 1], [0, 0])
    with pytest.raises(RuntimeError, match="values must be a contiguous tensor of the weight's dtype"):
        operator(bits, grad.double(), weight, list(SIZE), [1, 1], [0, 0])
    with pytest.raises(RuntimeError, match="an image must have a window"):
        operator(bits, grad, weight, [2, 2], [1, 1], [0, 0])
