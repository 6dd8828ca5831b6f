"""Convolutions with spikes agree with dense ones in float64, outputs and all gradients."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_cases import KINDS, assert_rounded, bits_of, calls_of, on_cpu, spikes
from torch import Tensor

from assertions import DTYPES, name_of
from exodus_core import ArgumentError, ArgumentTypeError, PackedSpikes, nn, ops, pack
from exodus_core.sparse.convolution import conv1d, conv2d

pytestmark = on_cpu

# Channels, outputs, groups: of one, panels of 64 to 512 bytes and several of them, groups of several panels and of less
# than one.
CHANNELS = [(1, 1, 1), (2, 8, 1), (3, 17, 1), (4, 40, 2), (6, 6, 3), (1, 130, 1), (16, 300, 1), (4, 280, 2)]
# Kernel, stride, padding, dilation.
WINDOWS: list[tuple[Any, Any, Any, Any]] = [
    ((1, 1), (1, 1), (0, 0), (1, 1)),
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((1, 5), (2, 3), (0, 2), (1, 1)),
    ((2, 3), (2, 1), (1, 2), (2, 3)),
    ((3, 2), (4, 3), (3, 0), (1, 2)),  # padding wider than the kernel, strides that leave places unseen
    ((9, 13), (1, 1), (0, 0), (1, 1)),  # one window
    ((5, 5), (1, 1), (0, 0), (1, 1)),
    ((3, 4), (1, 1), (1, 7), (1, 1)),  # padding wider than the kernel, without strides
    ((4, 5), (1, 1), (3, 2), (2, 3)),  # windows with more of the padding than of the image
    ((1, 6), (1, 1), (0, 2), (1, 1)),  # more taps in a row than are unrolled
]
SIZE = (9, 13)
#: Without the types that torch declares, of plain numbers.
dense1d: Any = F.conv1d
dense2d: Any = F.conv2d


def operands(channels: tuple[int, int, int], kernel: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    inputs, outputs, groups = channels
    weight = torch.randn(outputs, inputs // groups, *kernel, dtype=torch.float64).to(dtype)
    return weight, torch.randn(outputs, dtype=torch.float64).to(dtype)


def gradients(x: Tensor, weight: Tensor, grad: Tensor, windows: Any, groups: int) -> tuple[Tensor, Tensor]:
    """dL/dx and dL/dW of the dense convolution."""
    leaves = x.requires_grad_(), weight.requires_grad_()
    found = torch.autograd.grad(dense2d(*leaves, None, *windows, groups), leaves, grad)
    return found[0], found[1]


# All channels with all windows; all dtypes with all kinds of spikes, with some of those.
CASES = [(torch.float32, channels, windows, "values") for channels in CHANNELS for windows in WINDOWS]
CASES += [
    (dtype, CHANNELS[i % len(CHANNELS)], WINDOWS[i % len(WINDOWS)], kind)
    for i, (dtype, kind) in enumerate(itertools.product(DTYPES, KINDS))
]


@pytest.mark.parametrize(("dtype", "channels", "windows", "kind"), CASES, ids=name_of)
def test_operators_are_the_dense_convolution(dtype: torch.dtype, channels: Any, windows: Any, kind: str) -> None:
    torch.manual_seed(0)
    inputs, _, groups = channels
    kernel, *placed = windows
    weight, bias = operands(channels, kernel, dtype)
    images = 5 if kind == "ones" else 3
    for density in (0.0, 0.1, 1.0):
        x = spikes((images, inputs, *SIZE), density, kind, dtype)
        bits, values = bits_of(x.flatten(1))
        y = ops.spike_convolution(bits, values, weight, bias, SIZE, *placed, groups)
        exact, wide, offset = x.double(), weight.double(), bias.double()
        expected = dense2d(exact, wide, offset, *placed, groups)
        magnitude = dense2d(exact.abs(), wide.abs(), offset.abs(), *placed, groups)
        assert_rounded("output", y, expected, magnitude, weight[0].numel() + 1)
        grad = torch.randn(y.shape, dtype=torch.float64).to(dtype)
        found, sums = ops.spike_convolution_weight(bits, values, grad, weight, SIZE, *placed, groups)
        _, expected = gradients(exact, wide, grad.double(), placed, groups)
        _, magnitude = gradients(exact.abs(), wide, grad.double().abs(), placed, groups)
        terms = images * math.prod(y.shape[2:])
        assert_rounded("dL/dW", found, expected, magnitude, terms)
        wide = grad.double()
        assert_rounded("dL/db", sums, wide.sum((0, 2, 3)), wide.abs().sum((0, 2, 3)), terms)


# Channels, outputs, groups; size, kernel, padding, dilation, of rows of five taps.
TABLES: list[tuple[tuple[int, int, int], tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]] = [
    ((12, 64, 1), (12, 12), (5, 5), (0, 0), (1, 1)),  # several blocks of channels
    ((6, 40, 2), (9, 13), (3, 5), (1, 2), (1, 1)),  # groups of a panel and a part of one
    ((1, 17, 1), (7, 40), (2, 5), (3, 7), (3, 1)),  # padding wider than the kernel, several words a row
    ((3, 16, 1), (13, 9), (1, 5), (0, 0), (1, 1)),  # a row of outputs shorter than a word
]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("channels", "size", "kernel", "padding", "dilation"), TABLES, ids=name_of)
def test_images_of_many_spikes_are_convolved_by_tables(
    channels: tuple[int, int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    inputs, _, groups = channels
    weight, bias = operands(channels, kernel, dtype)
    share = torch.rand(75, 1, 1, 1)  # on both sides of the limit, in no order
    x = (torch.rand(75, inputs, *size) < share).to(dtype)
    windows = ((1, 1), padding, dilation)
    y = ops.spike_convolution(bits_of(x.flatten(1))[0], None, weight, bias, size, *windows, groups)
    exact, wide, offset = x.double(), weight.double(), bias.double()
    expected = dense2d(exact, wide, offset, *windows, groups)
    magnitude = dense2d(exact, wide.abs(), offset.abs(), *windows, groups)
    assert_rounded("output", y, expected, magnitude, weight[0].numel() + 1)
    weight[0, 0, 0, 2] = math.inf
    y = ops.spike_convolution(bits_of(x.flatten(1))[0], None, weight, None, size, *windows, groups)
    one = torch.zeros_like(wide)
    one[0, 0, 0, 2] = 1.0
    assert torch.equal(y == math.inf, dense2d(exact, one, None, *windows, groups) > 0)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_value_that_is_not_finite_reaches_its_own_windows_only(stride: int) -> None:
    x = torch.zeros(3, 2, *SIZE)
    x[0, 0, 0, 0], x[1, 1, 4, 12], x[2, 0, 8, 5] = math.inf, -math.inf, 2.0
    weight, bias = operands((2, 9, 1), (3, 3), torch.float32)
    windows = ((stride, stride), (1, 1), (1, 1))
    bits, values = bits_of(x.flatten(1))
    y = ops.spike_convolution(bits, values, weight, bias, SIZE, *windows, 1)
    reached = dense2d((x.abs() == math.inf).float(), torch.ones(9, 2, 3, 3), None, *windows) > 0
    assert torch.equal(y.isfinite(), ~reached)
    found, _ = ops.spike_convolution_weight(bits, values, torch.ones_like(y), weight, SIZE, *windows, 1)
    one = torch.zeros_like(x)
    for place in ((0, 0, 0, 0), (1, 1, 4, 12)):
        one[place] = 1.0
    _, reached = gradients(one, weight.clone(), torch.ones_like(y), windows, 1)
    assert torch.equal(found.isfinite(), reached == 0)


@pytest.mark.parametrize("outputs", [4, 8, 11, 16])
def test_nothing_is_written_beside_the_outputs(outputs: int) -> None:
    x = spikes((4, 3, *SIZE), 0.3, "ones", torch.float32)
    weight = torch.randn(outputs, 3, 3, 5)
    bits, _ = bits_of(x.flatten(1))
    windows = (SIZE, (1, 1), (0, 1), (1, 1), 1)
    whole = ops.spike_convolution(bits, None, weight, None, *windows)
    grad = torch.randn_like(whole)
    gradient, sums = ops.spike_convolution_weight(bits, None, grad, weight, *windows)
    for output in range(outputs):  # each output by itself, whose lanes are mostly empty
        one = weight[output : output + 1].contiguous()
        assert torch.equal(ops.spike_convolution(bits, None, one, None, *windows)[:, 0], whole[:, output])
        own = grad[:, output : output + 1].contiguous()
        found = ops.spike_convolution_weight(bits, None, own, one, *windows)
        assert torch.equal(found[0][0], gradient[output])
        assert torch.equal(found[1][0], sums[output])


def test_a_bias_gradient_of_one_sign_is_summed_by_rows() -> None:
    x = spikes((8, 1, 128, 128), 0.01, "ones", torch.float32)
    weight = torch.randn(16, 1, 3, 3)
    grad = torch.full((8, 16, 126, 126), 0.1)
    windows = ((1, 1), (0, 0), (1, 1), 1)
    _, found = ops.spike_convolution_weight(bits_of(x.flatten(1))[0], None, grad, weight, (128, 128), *windows)
    torch.testing.assert_close(found.double(), grad.double().sum((0, 2, 3)), rtol=1e-5, atol=0)


def test_large_and_few_images_have_no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    called = calls_of(monkeypatch, "spike_convolution")
    weight = torch.randn(32, 8, 5, 5)
    for shape, options, sparse in (
        ((32, 8, 12, 12), {}, True),
        ((31, 8, 12, 12), {}, False),  # 31 x 64 windows
        ((16, 8, 68, 68), {}, True),
        ((16, 8, 69, 68), {}, False),
        ((32, 8, 20, 20), {"dilation": 2}, False),
        ((32, 8, 20, 16), {"dilation": (2, 1)}, True),
    ):
        called.clear()
        x = spikes(shape, 0.35, "ones", torch.float32)
        torch.testing.assert_close(conv2d(x, weight, **options), dense2d(x, weight, **options), rtol=1e-4, atol=1e-4)
        assert called == ([1] if sparse else [])


# Shape of a weight, stride, dtype, and the share that is the limit.
LIMITS: list[tuple[tuple[int, ...], int, torch.dtype, float]] = [
    ((8, 1, 5, 5), 1, torch.float32, 0.25),
    ((16, 4, 3, 3), 1, torch.float32, 0.25),
    ((16, 5, 3, 3), 1, torch.float32, 0.18),
    ((4, 16, 3, 3), 1, torch.float32, 0.18),
    ((3, 16, 3, 3), 1, torch.float32, 0.0),
    ((64, 12, 5, 5), 1, torch.float32, 0.25),
    ((64, 2, 5, 5), 1, torch.float32, 0.3),
    ((64, 2, 5, 5), 1, torch.float16, 0.3),
    ((64, 2, 5, 5), 1, torch.bfloat16, 0.15),
    ((64, 12, 5, 5), 1, torch.float64, 0.5),
    ((16, 12, 5, 5), 2, torch.float32, 0.08),
    ((32, 2, 3, 6), 1, torch.float32, 0.15),
    ((7, 2, 3, 6), 1, torch.float32, 0.0),
    ((64, 12, 1, 1), 1, torch.float32, 0.04),
]


# Of ones alone.
LIMITS_OF_ONES: list[tuple[tuple[int, ...], int, torch.dtype, float]] = [
    ((16, 4, 5, 5), 1, torch.float32, 0.4),
    ((16, 32, 1, 5), 1, torch.float32, 0.4),
    ((16, 4, 3, 5), 1, torch.bfloat16, 0.2),
    ((16, 4, 5, 5), 1, torch.float64, 0.8),
    ((16, 4, 5, 3), 1, torch.float32, 0.25),
    ((15, 4, 5, 5), 1, torch.float32, 0.25),
    ((16, 33, 5, 5), 1, torch.float32, 0.18),
    ((16, 4, 5, 5), 2, torch.float32, 0.08),
]


@pytest.mark.parametrize(
    ("shape", "stride", "dtype", "limit", "value"),
    [(*case, 0.5) for case in LIMITS] + [(*case, 1.0) for case in LIMITS_OF_ONES],
    ids=name_of,
)
def test_spikes_on_both_sides_of_each_limit(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], stride: int, dtype: torch.dtype, limit: float, value: float
) -> None:
    called = calls_of(monkeypatch, "spike_convolution")
    weight = torch.randn(shape, dtype=torch.float64).to(dtype)
    size = (40, shape[1], 14, 15)
    few, many = torch.zeros(2, *size, dtype=dtype)
    places = torch.randperm(few.numel())
    few.view(-1)[places[: int(limit * few.numel())]] = value
    many.view(-1)[places[: int(limit * few.numel()) + 1]] = value
    for x, sparse in ((few, True), (many, False)):
        called.clear()
        y = conv2d(x, weight, stride=stride)
        assert called == ([1] if sparse else [])
        exact, wide = x.double(), weight.double()
        expected, magnitude = dense2d(exact, wide, None, stride), dense2d(exact.abs(), wide.abs(), None, stride)
        assert_rounded("output", y, expected, magnitude, weight[0].numel())


@pytest.mark.usefixtures("all_sparse")
@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_functions_have_all_gradients_of_torchs(dtype: torch.dtype, dimensions: int) -> None:
    ours, theirs = (conv1d, dense1d) if dimensions == 1 else (conv2d, dense2d)
    size, kernel = SIZE[:dimensions], (3, 2)[:dimensions]
    x = spikes((6, 4, *size), 0.2, "values", dtype)
    weight, bias = torch.randn(10, 2, *kernel, dtype=dtype), torch.randn(10, dtype=dtype)
    options: tuple[Any, ...] = (2, 1, 1, 2)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y, expected = ours(*leaves, *options), theirs(*leaves, *options)
    grad = torch.randn_like(y)
    for found, wanted in zip(
        (y, *torch.autograd.grad(y, leaves, grad)),
        (expected, *torch.autograd.grad(expected, leaves, grad)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.usefixtures("all_sparse")
def test_any_dimensions_lead_and_views_are_read_as_they_are() -> None:
    x = spikes((3, 4, 2, *SIZE), 0.2, "ones", torch.float32)
    weight, bias = operands((2, 9, 1), (3, 3), torch.float32)
    expected = conv2d(x.flatten(0, 1), weight, bias)
    assert torch.equal(conv2d(x, weight, bias), expected.unflatten(0, (3, 4)))
    assert torch.equal(conv2d(x[0, 0], weight, bias), expected[0])
    turned = x.flatten(0, 1).movedim(1, -1).contiguous().movedim(-1, 1)  # channels last
    wide = torch.stack([weight, weight], -1)[..., 0]
    assert torch.equal(conv2d(turned, wide, torch.stack([bias, bias], -1)[:, 0]), expected)
    for dtype in (torch.bool, torch.uint8, torch.int64):
        assert torch.equal(conv2d(x.flatten(0, 1).to(dtype), weight, bias), expected)
    assert torch.equal(conv2d(pack(x, 3), weight, bias), expected.unflatten(0, (3, 4)))


@pytest.mark.usefixtures("all_sparse")
def test_a_gradient_flows_through_packed_spikes_and_a_second_one_is_refused() -> None:
    x = spikes((5, 2, *SIZE), 0.2, "ones", torch.float64)
    weight, bias = operands((2, 9, 1), (3, 3), torch.float64)
    graph = torch.zeros((), dtype=torch.float64).expand(x.shape).requires_grad_()
    packed = PackedSpikes(pack(x, 3).bits, x.shape, 3, graph)
    grad = torch.randn(5, 9, 7, 11, dtype=torch.float64)
    (found,) = torch.autograd.grad(conv2d(packed, weight, bias), graph, grad)
    leaf = x.requires_grad_()
    (expected,) = torch.autograd.grad(dense2d(leaf, weight, bias), leaf, grad)
    torch.testing.assert_close(found, expected)
    weight.requires_grad_()
    (first,) = torch.autograd.grad(conv2d(leaf, weight, bias).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        first.sum().backward()


@pytest.mark.usefixtures("all_sparse")
def test_gradcheck() -> None:
    x = spikes((4, 2, 5, 6), 0.3, "ones", torch.float64)
    weight, bias = (t.requires_grad_() for t in operands((2, 9, 1), (3, 2), torch.float64))
    assert torch.autograd.gradcheck(lambda w, b: conv2d(x, w, b, 2, 1), (weight, bias))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_bits_do_not_depend_on_the_threads(threads: int) -> None:
    torch.manual_seed(0)
    x = spikes((150, 3, *SIZE), 0.1, "values", torch.float32)
    many = spikes((150, 3, *SIZE), 0.16, "ones", torch.float32)
    weight, _ = operands((3, 140, 1), (3, 3), torch.float32)
    wide, _ = operands((3, 140, 1), (3, 5), torch.float32)
    bits, values = bits_of(x.flatten(1))
    windows = ((1, 1), (1, 1), (1, 1), 1)
    grad = torch.randn(150, 140, *SIZE)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            y = ops.spike_convolution(bits, values, weight, None, SIZE, *windows)
            by_tables = ops.spike_convolution(bits_of(many.flatten(1))[0], None, wide, None, SIZE, *windows)
            results.append((y, by_tables, *ops.spike_convolution_weight(bits, values, grad, weight, SIZE, *windows)))
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        assert torch.equal(one, many)


def test_density_decides_and_exact_has_torchs_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    called = calls_of(monkeypatch, "spike_convolution")
    weight, bias = operands((2, 32, 1), (3, 3), torch.float32)
    few, many = (spikes((60, 2, 20, 20), density, "ones", torch.float32) for density in (0.05, 0.4))
    torch.testing.assert_close(conv2d(few, weight, bias), dense2d(few, weight, bias))
    assert len(called) == 1
    for x, options in ((few, {"exact": True}), (many, {}), (few[:1], {})):
        assert torch.equal(conv2d(x, weight, bias, **options), dense2d(x, weight, bias))
    assert len(called) == 1


@pytest.mark.usefixtures("all_sparse")
def test_a_zero_contributes_nothing_whatever_the_weight() -> None:
    x = torch.zeros(2, 2, 4, 4)
    x[0, 0, 1, 1] = 1.0
    weight = torch.ones(8, 2, 3, 3)
    weight[:, 1] = math.nan
    assert torch.equal(conv2d(x, weight)[0, 0], torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    weight[3, 0, 0, 0] = math.inf
    assert conv2d(x, weight)[0, 3].tolist() == [[1.0, 1.0], [1.0, math.inf]]


@pytest.mark.usefixtures("all_sparse")
def test_modules_are_torchs() -> None:
    for ours, theirs, size in ((nn.Conv1d, torch.nn.Conv1d, (20,)), (nn.Conv2d, torch.nn.Conv2d, (8, 9))):
        options: Any = {"stride": 2, "padding": 1, "groups": 2}
        layer, plain = ours(4, 16, 3, **options), theirs(4, 16, 3, **options)
        plain.load_state_dict(layer.state_dict())
        x = spikes((7, 4, *size), 0.1, "ones", torch.float32)
        torch.testing.assert_close(layer(x), plain(x))
        torch.testing.assert_close(layer(pack(x, len(size) + 1)), plain(x))
        assert torch.equal(ours(4, 16, 3, exact=True)(x).isfinite().all(), torch.tensor(True))
        same, expected = ours(4, 16, 3, padding="same"), theirs(4, 16, 3, padding="same")
        expected.load_state_dict(same.state_dict())
        assert torch.equal(same(x), expected(x))
        assert torch.equal(same(pack(x, len(size) + 1)), expected(x))


def test_compiled_and_mapped_convolutions_are_dense() -> None:
    weight, bias = operands((2, 32, 1), (3, 3), torch.float32)
    x = spikes((60, 2, 20, 20), 0.05, "ones", torch.float32)
    compiled = torch.compile(conv2d, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, weight, bias), dense2d(x, weight, bias))
    mapped = torch.func.vmap(lambda w: conv2d(x, w, bias))(torch.stack([weight, weight]))
    torch.testing.assert_close(mapped[1], dense2d(x, weight, bias))


def test_opcheck() -> None:
    x = spikes((3, 4, *SIZE), 0.1, "values", torch.float32)
    weight, bias = operands((4, 10, 2), (3, 2), torch.float32)
    bits, values = bits_of(x.flatten(1))
    windows = (list(SIZE), [2, 1], [1, 0], [1, 2], 2)
    torch.library.opcheck(torch.ops.exodus.spike_convolution.default, (bits, values, weight, bias, *windows))
    grad = ops.spike_convolution(bits, values, weight, bias, *windows)
    torch.library.opcheck(torch.ops.exodus.spike_convolution_weight.default, (bits, values, grad, weight, *windows))


GOOD = torch.zeros(2, 4, 8, 9), torch.zeros(6, 2, 3, 3)


@pytest.mark.parametrize(
    ("given", "options", "error", "said"),
    [
        (("spikes", GOOD[1]), {"groups": 2}, ArgumentTypeError, "spikes must be a tensor of floats"),
        ((GOOD[0].double(), GOOD[1]), {"groups": 2}, ArgumentTypeError, "spikes must be of the dtype of weight"),
        ((GOOD[0], GOOD[1].int()), {"groups": 2}, ArgumentTypeError, "weight must be float32, float64"),
        ((GOOD[0], GOOD[1][0]), {"groups": 2}, ArgumentError, r"weight must be of shape \(N_out, channels"),
        (GOOD, {}, ArgumentError, r"spikes must be of shape \(..., 2, height, width\), got \(2, 4, 8, 9\)"),
        (GOOD, {"groups": 4}, ArgumentError, "groups must be a divisor of the 6 outputs, got 4"),
        (GOOD, {"groups": 2, "stride": 0}, ArgumentError, "stride must be an integer of at least 1"),
        (GOOD, {"groups": 2, "padding": (1, 2, 3)}, ArgumentError, "padding must be an integer of at least 0, or 2"),
        (GOOD, {"groups": 2, "bias": torch.zeros(5)}, ArgumentError, r"bias must be of shape \(6,\), got \(5,\)"),
        (GOOD, {"groups": 2, "bias": 1.0}, ArgumentTypeError, "bias must be a tensor of the dtype of weight"),
        (GOOD, {"groups": 2, "bias": torch.zeros(6).double()}, ArgumentTypeError, "bias must be .*, got torch.float64"),
        ((GOOD[0].to_sparse(), GOOD[1]), {"groups": 2}, ArgumentTypeError, "spikes must be a dense tensor"),
    ],
)
def test_a_wrong_argument_is_named(given: Any, options: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        conv2d(*given, **options)


def test_spikes_packed_for_another_product_are_refused() -> None:
    with pytest.raises(ArgumentError, match="spikes must be packed with 3 features, got 1"):
        conv2d(pack(GOOD[0], 1), GOOD[1], groups=2)


@pytest.mark.usefixtures("all_sparse")
def test_a_kernel_that_does_not_fit_is_torchs_error_and_no_image_is_none() -> None:
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        conv2d(torch.zeros(2, 2, 2, 2), torch.zeros(8, 2, 3, 3))
    assert conv2d(torch.zeros(0, 2, 5, 5), torch.ones(8, 2, 3, 3)).shape == (0, 8, 3, 3)
    bits = torch.zeros(2, 4, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="groups must divide"):
        ops.spike_convolution(bits, None, torch.zeros(5, 1, 3, 3), None, (4, 4), (1, 1), (0, 0), (1, 1), 2)
