"""Products with spikes: the raw operators and `linear` agree with dense products, outputs and all gradients."""

import copy
import io
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from sparse_cases import KINDS, assert_rounded, bits_of, on_cpu, spikes
from torch import Tensor
from torch.autograd import forward_ad

import exodus_core
from assertions import DTYPES, name_of
from exodus_core import PackedSpikes, nn, ops
from exodus_core.layer import synapse_current, synapse_gradients
from exodus_core.sparse import product
from exodus_core.sparse.product import linear

pytestmark = on_cpu

# Rows, columns, outputs: of one, around vectors, words of bits, panels of 64 to 512 bytes, and blocks of 64 rows
# forward and of 512 to 4,096 rows in dL/dW.
SIZES = [
    (1, 1, 1),
    (7, 15, 16),
    (16, 17, 7),
    (17, 1, 15),
    (63, 64, 65),
    (64, 1000, 127),
    (65, 7, 129),
    (100, 63, 100),
    (129, 127, 63),
    (1000, 65, 17),
    (513, 100, 600),
    (1025, 17, 128),
    (1026, 16, 64),
    (2050, 9, 33),
    (4097, 16, 16),
    (4099, 3, 8),
]
NOTHING = [(0, 17, 5), (5, 0, 17), (17, 5, 0), (0, 0, 0)]
DENSITIES = [0.0, 0.001, 0.02, 0.3, 1.0]


def dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The product in float64, and the sum of its terms' absolute values."""
    x, weight = x.double(), weight.double()
    offset = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.double()
    return x @ weight.T + offset, x.abs() @ weight.abs().T + offset.abs()


def operands(size: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, a bias and a gradient."""
    rows, columns, outputs = size
    return tuple(torch.randn(shape).to(dtype) for shape in ((outputs, columns), (outputs,), (rows, outputs)))  # type: ignore[return-value]


@pytest.mark.parametrize("size", SIZES + NOTHING, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_operators_agree_with_dense_products(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, columns, _ = size
    weight, bias, grad = operands(size, dtype)
    for density, kind, given in zip(DENSITIES, itertools.cycle(KINDS), itertools.cycle((bias, None)), strict=False):
        x = spikes((rows, columns), density, kind, dtype)
        bits, values = bits_of(x)
        assert (values is None) == bool(((x == 0) | (x == 1)).all())
        count = (x != 0).double()
        y = ops.spike_linear(bits, values, weight, given)
        assert_rounded("product", y, *dense(x, weight, given), count.sum(1, keepdim=True) + 1)
        gradient = ops.spike_linear_weight(bits, values, grad, columns)
        assert_rounded("gradient", gradient, *dense(grad.T, x.T, None), count.sum(0) + rows // 512 + 1)
        assert y.dtype == gradient.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_a_product_is_the_plain_sum_of_the_weights_that_spikes_select(dtype: torch.dtype) -> None:
    """Bit for bit: in ascending order of the inputs, the bias last."""
    x = spikes((40, 70), 0.2, "values", dtype)
    weight, bias, _ = operands((40, 70, 45), dtype)
    expected = torch.zeros(40, 45, dtype=dtype)
    for column in range(70):
        chosen = x[:, column] != 0
        expected[chosen] = expected[chosen] + x[chosen, column, None] * weight[:, column]
    assert torch.equal(ops.spike_linear(*bits_of(x), weight, bias), expected + bias)


def test_the_gradient_of_a_weight_is_the_sum_over_rows_in_blocks() -> None:
    x, grad = spikes((1500, 9), 0.3, "values", torch.float32), torch.randn(1500, 200)
    expected = torch.zeros(200, 9)
    for block in torch.arange(1500).split(512):
        part = torch.zeros(200, 9)
        for row in block:
            chosen = x[row] != 0
            part[:, chosen] = part[:, chosen] + grad[row, :, None] * x[row, chosen]
        expected = expected + part
    assert torch.equal(ops.spike_linear_weight(*bits_of(x), grad, 9), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("columns", [1, 7, 8, 15, 16, 17, 33, 63, 64, 65, 127, 1000])
def test_bits_are_where_elements_are_not_zero(columns: int, dtype: torch.dtype) -> None:
    x = spikes((9, columns), 0.5, "values", dtype)
    x[3] = 0
    x[4, ::2] = -0.0
    x[5, -1] = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the smallest subnormal number
    x[6, 0], x[7, -1] = torch.nan, -torch.inf
    bits, kind = ops.pack_spikes(x, 1.0)
    assert bits.shape == (9, -(-columns // 8))
    places = torch.arange(8 * bits.shape[1])
    ones = (bits[:, places // 8] >> (places % 8)) & 1  # element i is bit i mod 8 of byte i div 8
    assert torch.equal(ones[:, :columns].bool(), x != 0)
    assert not ones[:, columns:].any()
    assert kind == 2
    assert ops.pack_spikes((x != 0).to(dtype), 1.0)[1] == 1
    assert torch.equal(ops.pack_spikes(x != 0, 1.0)[0], bits)
    assert ops.count_spikes(bits) == (x != 0).sum()
    assert torch.equal(ops.unpack_spikes(bits, columns, x), (x != 0).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_one_element_that_is_not_one_is_found_wherever_it_is(dtype: torch.dtype) -> None:
    for place in range(41):
        x = torch.ones(2, 41, dtype=dtype)
        x[1, place] = 2
        assert ops.pack_spikes(x, 1.0)[1] == 2
        x[1, place] = 0
        assert ops.pack_spikes(x, 1.0)[1] == 1


@pytest.mark.parametrize("rows", [100, 256, 5000])
def test_what_exceeds_the_density_is_dense_wherever_the_spikes_are(rows: int) -> None:
    for ones in (slice(0, rows // 10), slice(rows - rows // 10, rows), slice(3, rows, 10)):
        x = torch.zeros(rows, 20)
        x[ones] = 1
        density = x.mean().item()
        bits, kind = ops.pack_spikes(x, density - 1e-4)
        assert kind == 0
        assert bits.numel() == 0
        for given in (x, x.bool()):
            assert ops.pack_spikes(given, 1.0)[1] == 1
    assert ops.pack_spikes(x, density + 1e-4)[1] == 1
    assert ops.pack_spikes(torch.ones(rows, 20), 0.5)[1] == 0
    assert ops.pack_spikes(torch.zeros(rows, 20), 0.0)[1] == 1


def test_bools_that_are_views_of_bytes_are_what_torch_takes_them_for() -> None:
    x = torch.tensor([[0, 255, 2, 128, 0], [1, 0, 4, 0, 64]], dtype=torch.uint8)
    bits, _ = ops.pack_spikes(x.view(torch.bool), 1.0)
    assert torch.equal(ops.unpack_spikes(bits, 5, torch.empty(0)), (x != 0).float())


@pytest.mark.usefixtures("all_sparse")
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 7, 5), (33, 100, 65)], ids=name_of)
def test_linear_has_the_outputs_and_gradients_of_a_dense_product(
    size: tuple[int, int, int], kind: str, dtype: torch.dtype
) -> None:
    rows, columns, outputs = size
    weight, bias, grad = operands((2 * rows, columns, outputs), dtype)
    x = spikes((2, rows, columns), 0.2, kind, dtype)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = linear(*leaves)
    assert is_sparse(y)
    assert y.shape == (2, rows, outputs)
    flat = x.flatten(0, 1)
    assert_rounded("product", y.detach().flatten(0, 1), *dense(flat, weight, bias), columns + 1)
    gradients = torch.autograd.grad(y, leaves, grad.view_as(y))
    assert_rounded("x", gradients[0].flatten(0, 1), *dense(grad, weight.T, None), outputs)
    assert_rounded("weight", gradients[1], *dense(grad.T, flat.T, None), 2 * rows + 1)
    ones = torch.ones(1, 2 * rows)
    exact, magnitude = dense(grad.T, ones, None)
    assert_rounded("bias", gradients[2], exact[:, 0], magnitude[:, 0], 2 * rows)


@pytest.mark.usefixtures("all_sparse")
@pytest.mark.parametrize("given", [torch.bool, torch.uint8, torch.int8, torch.int64], ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_bool_and_integers_give_the_bits_of_floats(given: torch.dtype, dtype: torch.dtype) -> None:
    x = torch.randint(-1 if given.is_signed else 0, 2 if given == torch.bool else 3, (5, 20, 33)).to(given)
    weight, bias, _ = operands((1, 33, 40), dtype)
    found = []
    for spikes_of in (x, x.to(dtype)):
        leaves = [t.clone().requires_grad_() for t in (weight, bias)]
        y = linear(spikes_of, *leaves)
        found.append([y, *torch.autograd.grad(y.sum(), leaves)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


@pytest.mark.usefixtures("all_sparse")
@pytest.mark.parametrize("kind", ["ones", "values"])
def test_views_give_the_bits_of_contiguous_tensors_and_nothing_outside_is_touched(kind: str) -> None:
    def view(rows: int, columns: int, turned: bool) -> tuple[Tensor, Tensor, Tensor]:
        buffer = torch.full((columns + 9, rows + 7) if turned else (rows + 7, columns + 9), 42.0)
        inner = buffer.T[3:-4, 4:-5] if turned else buffer[3:-4, 4:-5]
        inner.copy_(spikes((rows, columns), 0.3, kind, torch.float32))
        outside = torch.ones_like(buffer, dtype=torch.bool)
        (outside.T if turned else outside)[3:-4, 4:-5] = False
        return inner, buffer, outside

    for turned in (False, True):
        x, weight, grad = view(65, 33, turned), view(17, 33, turned), view(65, 17, turned)
        bias = torch.full((51,), 42.0)
        bias[1:-1:3] = 0.5
        leaves = [x[0].requires_grad_(), weight[0].requires_grad_(), bias[1:-1:3].requires_grad_()]
        by_view = torch.autograd.grad(linear(*leaves), leaves, grad[0])
        copies = [leaf.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for leaf in leaves]
        by_copy = torch.autograd.grad(linear(*copies), copies, grad[0].contiguous())
        assert torch.equal(linear(*leaves), linear(*copies))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(by_view, by_copy, strict=True))
        for _, buffer, outside in (x, weight, grad):
            assert (buffer.detach()[outside] == 42).all()


@pytest.mark.usefixtures("all_sparse")
def test_a_gradient_that_is_expanded_is_that_of_a_sum() -> None:
    x, weight = spikes((64, 20), 0.2, "ones", torch.float32), torch.randn(9, 20, requires_grad=True)
    (expected,) = torch.autograd.grad(linear(x, weight), weight, torch.ones(64, 9))
    (found,) = torch.autograd.grad(linear(x, weight).sum(), weight)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_zeros_contribute_nothing_whatever_the_weight_and_the_gradient(dtype: torch.dtype) -> None:
    x = spikes((40, 33), 0.2, "values", dtype)
    x[3, 5], x[4, 6], x[5, 7] = torch.nan, torch.inf, -torch.inf
    x[6] = 0
    weight, _, grad = operands((40, 33, 21), dtype)
    weight[2, 5:9], weight[3, 6], weight[4, 20] = torch.inf, torch.nan, -torch.inf
    grad[7, 3], grad[8, 4], grad[9, 5] = torch.nan, torch.inf, -torch.inf
    bits, values = bits_of(x)

    def chosen(few: Tensor, many: Tensor) -> Tensor:  # sums over the last axis of both
        terms = few.double().unsqueeze(1) * many.double().unsqueeze(0)
        return torch.where(few.unsqueeze(1) != 0, terms, 0.0).sum(-1)

    close: dict[str, Any] = {"rtol": 20 * torch.finfo(dtype).eps, "atol": 20 * torch.finfo(dtype).eps}
    y, expected = ops.spike_linear(bits, values, weight, None), chosen(x, weight)
    torch.testing.assert_close(y.double(), expected, equal_nan=True, **close)
    assert torch.equal(y[6], torch.zeros_like(y[6]))
    assert expected.isnan().any()
    assert expected.isinf().any()
    gradient, expected = ops.spike_linear_weight(bits, values, grad, 33), chosen(x.T, grad.T).T
    torch.testing.assert_close(gradient.double(), expected, equal_nan=True, **close)
    assert gradient.isfinite().any()


def everything(dtype: torch.dtype) -> list[Tensor]:
    """Outputs and gradients of products of one panel and of several, with few columns and many."""
    torch.manual_seed(3)
    results = []
    for rows, columns, outputs in ((700, 33, 300), (3000, 5, 9), (70, 1000, 40)):
        for kind in KINDS:
            x = spikes((rows, columns), 0.2, kind, dtype)
            weight, bias, grad = operands((rows, columns, outputs), dtype)
            bits, values = bits_of(x)
            results += [bits, ops.spike_linear(bits, values, weight, bias)]
            results += [ops.spike_linear_weight(bits, values, grad, columns), ops.unpack_spikes(bits, columns, x)]
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_bits_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    try:
        by_threads = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            by_threads.append(everything(dtype))
    finally:
        torch.set_num_threads(threads)
    for others in by_threads[1:]:
        assert all(torch.equal(first, other) for first, other in zip(by_threads[0], others, strict=True))


def large(kind: str = "ones", density: float = 0.05, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A product that is sparse without being made so."""
    x = spikes((4, 100, 80), density, kind, torch.float32)
    return x, torch.randn(128, 80, **more), torch.randn(128, **more)


def is_sparse(y: Tensor) -> bool:
    """True if a product was computed from the spikes, by its node in the graph, below views."""
    node = y.grad_fn
    while node is not None and node.name().startswith(("View", "Reshape", "Unsafe")):
        node = node.next_functions[0][0]
    return node is not None and "SpikeLinear" in node.name()


def test_few_spikes_are_counted_and_the_rest_is_torchs_product() -> None:
    x, weight, bias = large(requires_grad=True)
    assert is_sparse(linear(x, weight, bias))
    others: list[Any] = [
        (x[0, :15], torch.randn(1000, 80, requires_grad=True), None),  # few rows
        (x[:1], weight[:3], bias[:3]),  # few products
        (spikes((4, 100, 80), 0.5, "ones", torch.float32), weight, bias),  # many spikes
        (x[0, 0], weight, bias),
    ]
    for given in others:
        y = linear(*given)
        assert not is_sparse(y)
        assert torch.equal(y, F.linear(*given))
    y = linear(x, weight, bias, exact=True)
    assert not is_sparse(y)
    assert torch.equal(y, F.linear(x, weight, bias))


@pytest.mark.usefixtures("all_sparse")
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_gradcheck(kind: str) -> None:
    x = spikes((3, 4, 5), 0.4, kind, torch.float64).requires_grad_()
    weight, bias = (t.requires_grad_() for t in operands((1, 5, 6), torch.float64)[:2])
    assert torch.autograd.gradcheck(linear, (x, weight, bias))
    assert torch.autograd.gradcheck(lambda weight: linear(x.detach(), weight), weight)


@pytest.mark.usefixtures("all_sparse")
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
def test_gradients_are_computed_for_what_requires_them(wanted: tuple[bool, ...]) -> None:
    tensors = [spikes((20, 9), 0.2, "ones", torch.float64), *operands((1, 9, 6), torch.float64)[:2]]
    leaves = [t.clone().requires_grad_(want) for t, want in zip(tensors, wanted, strict=True)]
    y = linear(*leaves)
    assert y.requires_grad == any(wanted)
    if not any(wanted):
        return
    y.square().sum().backward()
    plain = [t.clone().requires_grad_(want) for t, want in zip(tensors, wanted, strict=True)]
    F.linear(*plain).square().sum().backward()
    for ours, theirs, want in zip(leaves, plain, wanted, strict=True):
        assert (ours.grad is not None) == want
        if want:
            torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.usefixtures("all_sparse")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_there_is_no_graph(mode: Callable[[], Any]) -> None:
    x, weight, bias = large(requires_grad=True)
    expected = linear(x, weight, bias)
    with mode():
        y = linear(x, weight, bias)
        made = linear(torch.where(x > 0, 1.0, 0.0), weight.clone(), bias)
    assert not y.requires_grad
    assert torch.equal(y, expected)
    assert torch.equal(made, expected)


def test_weights_and_values_that_change_before_the_backward_pass_are_refused() -> None:
    for kind in ("ones", "values"):
        x, weight, bias = large(kind, requires_grad=True)
        y = linear(x, weight, bias)
        assert is_sparse(y)
        with torch.no_grad():
            weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
        y = linear(x, weight, bias)
        x.mul_(2)
        if kind == "values":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()
        else:  # their bits are kept, not they
            (gradient,) = torch.autograd.grad(y.sum(), weight)
            torch.testing.assert_close(gradient, (x / 2).sum((0, 1)).expand_as(weight))


def test_bits_of_spikes_are_kept_and_not_the_spikes() -> None:
    x, weight, bias = large(requires_grad=True)
    kept = []

    def counted(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes if tensor.data_ptr() != weight.data_ptr() else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(counted, lambda tensor: tensor):
        linear(x, weight, bias)
    assert sum(kept) == x.numel() // 8


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_product_can_be_recomputed(use_reentrant: bool) -> None:
    x, weight, bias = large(requires_grad=True)
    x.requires_grad_()
    results = []
    for y in (
        linear(x, weight, bias),
        torch.utils.checkpoint.checkpoint(linear, x, weight, bias, use_reentrant=use_reentrant),
    ):
        x.grad = weight.grad = bias.grad = None
        y.square().sum().backward()
        results.append((x.grad, weight.grad, bias.grad))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_second_derivatives_are_refused() -> None:
    x, weight, bias = large(requires_grad=True)
    for wanted in (x.requires_grad_(), weight):
        (gradient,) = torch.autograd.grad(linear(x, weight, bias).sum(), wanted, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives of a spiking neuron, filter or sparse product"):
            gradient.square().sum().backward()
    (gradient,) = torch.autograd.grad(linear(x, weight, bias, exact=True).sum(), x, create_graph=True)
    gradient.square().sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, on entering the level
def test_forward_mode_and_transforms_are_those_of_the_dense_product() -> None:
    x, weight, bias = large()
    expected = F.linear(x, torch.ones_like(weight))
    with forward_ad.dual_level():
        dual = linear(x, forward_ad.make_dual(weight, torch.ones_like(weight)), bias)
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)
    tangent: Tensor = torch.func.jvp(lambda w: linear(x, w, bias), (weight,), (torch.ones_like(weight),))[1]
    torch.testing.assert_close(tangent, expected)
    gradient = torch.func.grad(lambda w: linear(x, w, bias).sum())(weight)
    torch.testing.assert_close(gradient, x.sum((0, 1)).expand_as(weight))
    mapped = torch.func.vmap(linear, in_dims=(0, None, None))(x, weight, bias)
    assert torch.equal(mapped, torch.func.vmap(F.linear, in_dims=(0, None, None))(x, weight, bias))
    packed = exodus_core.pack(x)
    torch.testing.assert_close(torch.func.grad(lambda w: linear(packed, w, bias).sum())(weight), gradient)


def test_gradients_of_synapses_are_those_of_dense_products() -> None:
    for density in (0.05, 0.9):
        x, weight, _ = large(density=density)
        grad = torch.randn(4, 100, 128)
        assert_rounded("current", synapse_current(x, weight).flatten(0, 1), *dense(x.flatten(0, 1), weight, None), 80)
        found = synapse_gradients(x, weight, grad)
        expected = dense(grad.flatten(0, 1).T, x.flatten(0, 1).T, None)
        assert_rounded("weight", found.weight, *expected, 400)
        assert_rounded("spikes", found.spikes.flatten(0, 1), *dense(grad.flatten(0, 1), weight.T, None), 128)


def test_autocast_is_torchs() -> None:
    x, weight, bias = large(requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = F.linear(x, weight, bias)
        takes: list[Tensor | PackedSpikes] = [x, x.bool(), x.long(), x.bfloat16(), exodus_core.pack(x)]
        for given in takes:
            y = linear(given, weight, bias)
            assert y.dtype == torch.bfloat16
            assert torch.equal(y, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("tracer", ["make_fx", "jit"])
def test_a_trace_is_right_for_other_spikes(tracer: str) -> None:
    """The choice by the density of the spikes that are traced must not be part of it."""
    x, weight, bias = large()
    make: Any = torch.fx.experimental.proxy_tensor.make_fx
    call = lambda x: linear(x, weight, bias)  # noqa: E731
    traced = make(call)(x) if tracer == "make_fx" else torch.jit.trace(call, x, check_trace=False)
    for other in (x, x * 0.5, torch.rand_like(x)):
        torch.testing.assert_close(traced(other), F.linear(other, weight, bias))


def operator_calls() -> dict[str, Any]:
    """One call of each operator with as few tensors as it can take, and one with all."""
    x = (torch.rand(9, 20) < 0.3).float()
    bits = torch.tensor([[1, 130, 5]], dtype=torch.uint8).repeat(9, 1)
    weight, grad = torch.randn(5, 20), torch.randn(9, 5)
    parameters, neuron = (torch.rand(20),) * 4 + (None,) * 2, (0.9, 1.0, 1.0, -1.0)
    signal = torch.randn(2, 7, 20)
    e = torch.ops.exodus
    return {
        "spike_linear": (e.spike_linear, (bits, None, weight, None)),
        "spike_linear with tensors": (e.spike_linear, (bits, x, weight, torch.randn(5))),
        "spike_linear_weight": (e.spike_linear_weight, (bits, None, grad, 20)),
        "spike_linear_weight with values": (e.spike_linear_weight, (bits, x, grad, 20)),
        "pack_spikes": (e.pack_spikes, (x, 1.0)),
        "pack_spikes of bool": (e.pack_spikes, (x.bool(), 1.0)),
        "unpack_spikes": (e.unpack_spikes, (bits, 20, weight.double())),
        "lif_forward_packed": (e.lif_forward_packed, (signal, *neuron, *[None] * 6, 1, False, 1)),
        "lif_forward_packed with tensors": (
            e.lif_forward_packed,
            (signal, *neuron, *parameters, 1, True, 1),
        ),
        "lif_backward_summed": (
            e.lif_backward_summed,
            (signal, signal, None, *neuron, 1.0, *[None] * 6, 1, False, 0, 1.0, 1.0, 0, False, 1),
        ),
        "lif_backward_summed with tensors": (
            e.lif_backward_summed,
            (signal, signal, signal, *neuron, 1.0, *parameters, 1, True, 0, 1.0, 1.0, 0, True, 1),
        ),
        "linear": (product._compiled, (x, torch.randn(5, 20, requires_grad=True), torch.randn(5))),
        "linear_weight": (product._compiled_weight, (x, grad)),
    }


@pytest.mark.parametrize("name", operator_calls())
def test_operator_passes_opcheck_and_has_a_fake(name: str) -> None:
    operator, arguments = operator_calls()[name]
    assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}
    real = operator(*arguments)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        fake = operator(*(torch.empty_like(a) if isinstance(a, Tensor) else a for a in arguments))
    for ours, theirs in zip(*((r,) if isinstance(r, Tensor) else r for r in (real, fake)), strict=True):
        assert not isinstance(ours, Tensor) or (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize("density", [0.05, 0.9])
@pytest.mark.parametrize("module", [False, True])
def test_linear_compiles_as_one_graph_with_its_bits(density: float, module: bool) -> None:
    torch._dynamo.reset()
    x, weight, bias = large(density=density)
    layer = nn.Linear(80, 128)
    function: Any = layer if module else linear
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for call in (function, compiled):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        wanted = [leaves[0], *(layer.parameters() if module else leaves[1:])]
        y = call(leaves[0]) if module else call(*leaves)
        results.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
    for eager, by_graph in zip(*results, strict=True):
        assert torch.equal(eager, by_graph)


def test_a_graph_chooses_anew_for_each_input_and_takes_packed_spikes() -> None:
    torch._dynamo.reset()
    x, weight, bias = large()
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    for given in (x, torch.rand_like(x), x * 0.5, x.bool()):
        assert torch.equal(compiled(given, weight, bias), linear(given, weight, bias))
    assert torch.equal(compiled(exodus_core.pack(x), weight, bias), F.linear(x, weight, bias))


def test_a_product_is_exported() -> None:
    layer = nn.Linear(80, 128)
    x = large()[0]
    for strict in (False, True):
        program = torch.export.export(layer, (x,), strict=strict).module()
        for given in (x, torch.rand_like(x)):
            torch.testing.assert_close(program(given), layer(given))


def test_the_module_has_the_state_of_torchs() -> None:
    layer, plain = nn.Linear(80, 128), torch.nn.Linear(80, 128)
    assert isinstance(layer, torch.nn.Linear)
    layer.load_state_dict(plain.state_dict())
    x = large()[0]
    assert is_sparse(layer(x))
    torch.testing.assert_close(layer(x), plain(x))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    plain.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert list(twin.state_dict()) == list(plain.state_dict())
    exact = nn.Linear(80, 128, bias=False, exact=True)
    assert torch.equal(exact(x), F.linear(x, exact.weight))
    assert "exact=True" in repr(exact)
    assert repr(layer) == repr(plain)
    assert layer.half()(x.half()).dtype == torch.float16
    assert nn.Linear(80, 128, device="meta", dtype=torch.float64)(x.double().to("meta")).shape == (4, 100, 128)


WRONG: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Any], type[Exception], str]] = {
    "a list": (
        lambda x, w, b: linear(x.tolist(), w),
        TypeError,
        "spikes must be a tensor of floats, integers or bool, or PackedSpikes, got list",
    ),
    "complex": (
        lambda x, w, b: linear(x.to(torch.complex64), w),
        TypeError,
        "spikes must be a tensor of floats, integers or bool, or PackedSpikes, got torch.complex64",
    ),
    "a sparse layout": (
        lambda x, w, b: linear(x[0].to_sparse(), w),
        TypeError,
        "spikes must be a dense tensor, got one of layout torch.sparse_coo",
    ),
    "another dtype": (
        lambda x, w, b: linear(x.double(), w),
        TypeError,
        "spikes must be of the dtype of weight, torch.float32, bool or integer, got torch.float64",
    ),
    "another width": (
        lambda x, w, b: linear(x[..., 1:], w),
        ValueError,
        r"spikes must be of shape \(..., 80\), got \(4, 100, 79\)",
    ),
    "no dimension": (
        lambda x, w, b: linear(x[0, 0, 0], w),
        ValueError,
        r"spikes must be of shape \(..., 80\), got \(\)",
    ),
    "packed of another width": (
        lambda x, w, b: linear(exodus_core.pack(x[..., 1:]), w),
        ValueError,
        r"spikes must be of shape \(..., 80\), got \(4, 100, 79\)",
    ),
    "weight of another type": (
        lambda x, w, b: linear(x, 1.0),
        TypeError,
        "weight must be a torch.Tensor, got float",
    ),
    "weight of integers": (
        lambda x, w, b: linear(x, w.long()),
        TypeError,
        "weight must be float32, float64, float16 or bfloat16, got torch.int64",
    ),
    "weight of one dimension": (
        lambda x, w, b: linear(x, w[0]),
        ValueError,
        r"weight must be of shape \(N_out, N_in\), got \(80,\)",
    ),
    "bias of another type": (
        lambda x, w, b: linear(x, w, 1.0),
        TypeError,
        "bias must be a tensor of the dtype of weight, torch.float32, got float",
    ),
    "bias of another dtype": (
        lambda x, w, b: linear(x, w, b.double()),
        TypeError,
        "bias must be a tensor of the dtype of weight, torch.float32, got torch.float64",
    ),
    "bias of another shape": (
        lambda x, w, b: linear(x, w, b[1:]),
        ValueError,
        r"bias must be of shape \(128,\), got \(127,\)",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_named(wrong: str) -> None:
    call, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        call(*large())


def test_operators_refuse_what_they_would_read_beyond() -> None:
    x = spikes((9, 20), 0.5, "values", torch.float32)
    bits, _ = bits_of(x)
    weight, grad = torch.randn(5, 20), torch.randn(9, 5)
    padded = bits.clone()
    padded[8, 2] |= 16  # element 20
    wrong: list[tuple[Callable[..., Any], tuple[Any, ...], str]] = [
        (ops.spike_linear, (padded, None, weight, None), "bits must be 0 behind the last of 20 elements"),
        (ops.spike_linear_weight, (padded, None, grad, 20), "bits must be 0 behind the last of 20 elements"),
        (ops.spike_linear, (bits, None, weight[:, :9].contiguous(), None), r"bits must be .* \(rows, 2\)"),
        (ops.spike_linear, (bits, x[:8], weight, None), "values must be .* with 20 elements a row"),
        (ops.spike_linear, (bits, x.double(), weight, None), "values must be a contiguous tensor of the weight's"),
        (ops.spike_linear, (bits, None, weight.T, None), "weight must be a contiguous tensor"),
        (ops.spike_linear, (bits, None, weight, weight[0, :4]), "bias must be .* with 5 elements"),
        (ops.spike_linear_weight, (bits, None, grad[:8], 20), "grad must be a contiguous tensor"),
        (ops.spike_linear_weight, (bits[:, ::2], None, grad, 16), "bits must be a contiguous uint8 tensor"),
        (ops.pack_spikes, (weight.T, 1.0), "input must be a contiguous tensor"),
        (ops.pack_spikes, (weight.long(), 1.0), "a tensor must be float32"),
        (ops.count_spikes, (bits[:, ::2],), "bits must be a contiguous uint8 tensor"),
        (ops.unpack_spikes, (bits, 30, weight), "bits must be a contiguous uint8 tensor"),
    ]
    for operator, arguments, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            operator(*arguments)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_the_environment_makes_every_product_dense() -> None:
    code = (
        "import torch, exodus_core\n"
        "from exodus_core import network\n"
        "x, w = (torch.rand(4, 100, 80) < 0.05).float(), torch.randn(128, 80, requires_grad=True)\n"
        "layers = [{'kind': 'linear', 'out_features': 128}, {'kind': 'if'}, {'kind': 'linear', 'out_features': 128}]\n"
        "net = network.build({'input_shape': [80], 'layers': layers})\n"
        "y = exodus_core.linear(x, w)\n"
        "print([name for name in net._modules if net._packs(name)], y.grad_fn.next_functions)\n"
    )
    for given, packed, node in (("0", "[]", "MmBackward"), ("", "['1']", "SpikeLinear")):
        run = run_python(code, EXODUS_SPARSE=given)
        assert run.stdout.startswith(packed), run.stderr
        assert node in run.stdout
    run = run_python("import exodus_core", EXODUS_SPARSE="yes")
    assert "EXODUS_SPARSE must be 0 or 1, got 'yes'" in run.stderr


FORK = """
import os, torch, exodus_core
torch.set_num_threads(1)
x, w = (torch.rand(4, 100, 80) < 0.05).float(), torch.randn(128, 80, requires_grad=True)
def step():
    y = exodus_core.linear(x, w)
    return [y, *torch.autograd.grad(y.square().sum(), w)]
expected = step()
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if all(map(torch.equal, step(), expected)) else 1)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_computes_the_product_of_its_parent() -> None:
    run = run_python(FORK, PYTHONWARNINGS="ignore")
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lead", [(700,), (7, 100)], ids=str)
def test_a_dense_product_has_the_bits_of_torch(dtype: torch.dtype, bias: bool, lead: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    operands = [torch.randn(*lead, 150, dtype=dtype), torch.randn(130, 150, dtype=dtype)]
    operands += [torch.randn(130, dtype=dtype)] if bias else []
    found = []
    for function in (exodus_core.linear, torch.nn.functional.linear):
        leaves = [operand.clone().requires_grad_() for operand in operands]
        y = function(*leaves)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y))
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_a_dense_product_can_be_differentiated_twice() -> None:
    x = torch.randn(300, 150, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(130, 150, dtype=torch.float64, requires_grad=True)
    found = []
    for function in (exodus_core.linear, torch.nn.functional.linear):
        (grad,) = torch.autograd.grad(function(x, weight).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), [x, weight]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)


def test_a_turned_input_with_a_bias_has_the_bits_of_torch() -> None:
    x = torch.randn(70, 80, 150).transpose(0, 1)
    weight, bias = torch.randn(130, 150, requires_grad=True), torch.randn(130)
    y = exodus_core.linear(x, weight, bias, exact=True)
    assert torch.equal(y, F.linear(x, weight, bias))


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_a_batch_of_gradients(share: float) -> None:
    x = ((torch.rand(512, 300) < share).float() * torch.rand(512, 300)).requires_grad_()
    weight = torch.randn(256, 300, requires_grad=True)
    y = exodus_core.linear(x, weight)
    grads = torch.randn(2, *y.shape)
    (found,) = torch.autograd.grad(y, x, grads, is_grads_batched=True)
    torch.testing.assert_close(found, grads @ weight)
