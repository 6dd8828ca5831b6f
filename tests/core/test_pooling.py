"""Pools are torch's: outputs to the bit, gradients to the bit in float32 and float64 and to one rounding in half."""

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_cases import on_cpu
from torch import Tensor

from assertions import DTYPES, name_of
from exodus_core import nn, ops
from exodus_core.accelerate import layers as accelerated
from exodus_core.pooling import avg_pool2d, max_pool2d

pytestmark = on_cpu

# Planes of less and of more than a vector of windows, of odd sizes, and of one row or column.
PLANES = [(2, 2), (8, 8), (7, 9), (3, 100), (33, 17), (6, 64), (1, 40), (40, 1), (28, 29)]
# Kernel, stride, padding: pairs, overlapping windows, places that no window sees, padding, one axis alone.
WINDOWS: list[tuple[Any, Any, Any]] = [
    (2, 2, 0),
    (2, None, 0),
    (2, 1, 0),
    (3, 2, 1),
    (3, 1, 1),
    (3, 3, 0),
    (1, 2, 0),
    (2, 2, 1),
    ((2, 3), (1, 2), (1, 0)),
    ((2, 1), (3, 4), 0),
    ((5, 4), (2, 3), (2, 2)),
    ((1, 2), (1, 2), 0),
    ((15, 17), 5, (7, 8)),  # 255 places
]
Pool = Callable[..., Any]
POOLS: dict[str, tuple[Pool, Pool, dict[str, Any]]] = {
    "max": (max_pool2d, F.max_pool2d, {}),
    "avg": (avg_pool2d, F.avg_pool2d, {}),
    "avg of places in the image": (avg_pool2d, F.avg_pool2d, {"count_include_pad": False}),
    "avg by 3": (avg_pool2d, F.avg_pool2d, {"divisor_override": 3}),
    "avg by -4": (avg_pool2d, F.avg_pool2d, {"divisor_override": -4}),
    "sum": (avg_pool2d, F.avg_pool2d, {"divisor_override": 1}),
}
CASES = [(plane, windows) for plane in PLANES for windows in WINDOWS]
CASES = [
    (plane, (kernel, stride, padding))
    for plane, (kernel, stride, padding) in CASES
    if all(
        size + 2 * before >= taps
        for size, taps, before in zip(
            plane,
            (kernel, kernel) if isinstance(kernel, int) else kernel,
            (padding, padding) if isinstance(padding, int) else padding,
            strict=True,
        )
    )
]


def images(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> Tensor:
    """Spikes, or numbers of which some are equal and some infinite."""
    if kind == "spikes":
        return (torch.rand(shape) < 0.3).to(dtype)
    x = (torch.randn(shape) * 2).round().to(dtype)
    if kind == "infinite":
        x[torch.rand(shape) < 0.6] = -math.inf
        x[torch.rand(shape) < 0.1] = math.nan
    return x


def is_ours(y: Tensor) -> bool:
    """True for an output of the kernels."""
    return type(y.grad_fn).__name__ in ("MaxPoolBackward", "AvgPoolBackward")


def assert_torchs(pool: str, x: Tensor, windows: Any) -> None:
    """Output and gradient have the bits of torch's, and those of half precision are theirs in float32, rounded once."""
    ours, theirs, options = POOLS[pool]
    leaf = x.clone().requires_grad_()
    wide = (x.float() if x.element_size() == 2 else x.clone()).requires_grad_()
    y, expected = ours(leaf, *windows, **options), theirs(wide, *windows, **options)
    assert is_ours(y)
    torch.testing.assert_close(y, theirs(x, *windows, **options), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(ours(x, *windows, **options), y.detach(), rtol=0, atol=0, equal_nan=True)
    grad = torch.randn_like(expected).to(x.dtype)
    (found,) = torch.autograd.grad(y, leaf, grad)
    (wanted,) = torch.autograd.grad(expected, wide, grad.to(wide.dtype))
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted.to(x.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("pool", POOLS)
def test_outputs_and_gradients_are_torchs(pool: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kinds = itertools.cycle(("spikes", "equal", "infinite") if pool == "max" else ("spikes", "equal"))
    for plane, windows in CASES if pool in ("max", "avg") else CASES[::3]:
        assert_torchs(pool, images((3, 2, *plane), next(kinds), dtype), windows)


@pytest.mark.parametrize("kind", ["spikes", "equal", "infinite"])
@pytest.mark.parametrize("windows", WINDOWS[:4], ids=name_of)
def test_every_maximum_has_its_place(windows: Any, kind: str) -> None:
    torch.manual_seed(1)
    for plane in PLANES[1:6]:
        x = images((20, 3, *plane), kind, torch.float32)
        assert_torchs("max", x, windows)


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("windows", [(2, 2, 0), (3, 2, 1)], ids=name_of)
@pytest.mark.parametrize("width", [8, 9, 35])
def test_nothing_beside_the_tensors_is_written_or_read(pool: str, windows: Any, width: int) -> None:
    """The operators see a part of larger tensors, in which all else is NaN: it would be seen in the results."""
    kernel, stride, padding = ([size] * 2 for size in windows)
    around = torch.full((7, 4, 6, width), math.nan)
    x = around[2:5]
    x.copy_(torch.randn_like(x))
    if pool == "max":
        y, places = ops.max_pool2d(x, kernel, stride, padding, True)
        grad_around = torch.full((7, *y.shape[1:]), math.nan)
        grad_around[2:5] = 1.0
        places_around = torch.full(grad_around.shape, 255, dtype=torch.uint8)
        places_around[2:5] = places
        grad = ops.max_pool2d_backward(grad_around[2:5], places_around[2:5], [6, width], kernel, stride, padding)
        assert grad.sum() == y.numel()
        assert torch.equal(places_around[2:5], places)
    else:
        y = ops.avg_pool2d(x, kernel, stride, padding, 1)
        grad_around = torch.full((7, *y.shape[1:]), math.nan)
        grad_around[2:5] = 1.0
        grad = ops.avg_pool2d_backward(grad_around[2:5], [6, width], kernel, stride, padding, 1)
    assert not y.isnan().any()
    assert not grad.isnan().any()
    outside = torch.cat([around[:2], around[5:]])
    assert outside.isnan().all()


def test_outputs_are_written_as_a_whole() -> None:
    """Also where the memory of an output held other numbers before."""
    x = torch.rand(300, 8, 13, 15).requires_grad_()
    expected = F.max_pool2d(x, 2)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    for _ in range(3):
        y = max_pool2d(x, 2)
        (found,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(y, expected)
        assert torch.equal(found, wanted)
        found.fill_(math.nan)
        y.detach().fill_(math.nan)
        del y, found


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_bits_do_not_depend_on_the_threads(threads: int) -> None:
    x = torch.randn(150, 5, 9, 26).requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            for windows in ((2, 2, 0), (3, 2, 1)):
                for pool in (max_pool2d, avg_pool2d):
                    y = pool(x, *windows)
                    results.append((y, torch.autograd.grad(y.square().sum(), x)[0]))
    finally:
        torch.set_num_threads(before)
    for one, many in zip(results[:4], results[4:], strict=True):
        assert torch.equal(one[0], many[0])
        assert torch.equal(one[1], many[1])


@pytest.mark.parametrize("pool", [max_pool2d, avg_pool2d])
def test_gradients_are_differentiated_again(pool: Any) -> None:
    torch.manual_seed(2)
    x = torch.randn(2, 2, 5, 7, dtype=torch.float64).requires_grad_()
    for windows in ((2, 2, 0), (3, 2, 1)):
        assert torch.autograd.gradcheck(lambda x, w=windows: pool(x, *w), x)
        assert torch.autograd.gradgradcheck(lambda x, w=windows: pool(x, *w).pow(3), x)


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_any_shape_and_memory_is_torchs(pool: str) -> None:
    ours, theirs, _ = POOLS[pool]
    x = torch.randn(4, 3, 10, 12)
    assert torch.equal(ours(x[0], 2), theirs(x[0], 2))
    assert torch.equal(ours(x[:1], 2), theirs(x[:1], 2))
    views = {
        "strided": torch.randn(4, 3, 20, 24)[..., ::2, ::2],
        "moved": torch.randn(10, 12, 4, 3).permute(2, 3, 0, 1),
        "expanded": torch.randn(1, 3, 10, 12).expand(4, 3, 10, 12),
        "channels last": x.to(memory_format=torch.channels_last),
    }
    for view in views.values():
        found, expected = ours(view, 3, 2, 1), theirs(view, 3, 2, 1)
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
        leaf = view.detach().requires_grad_()
        grads = [torch.autograd.grad(f(leaf, 3, 2, 1).sum(), leaf)[0] for f in (ours, theirs)]
        assert torch.equal(*grads)
    empty = torch.randn(0, 3, 10, 12).requires_grad_()
    y = ours(empty, 2)
    assert y.shape == (0, 3, 5, 6)
    assert torch.autograd.grad(y.sum(), empty)[0].shape == empty.shape


def test_a_gradient_without_memory_of_its_own_is_read() -> None:
    x = torch.randn(3, 2, 6, 6).requires_grad_()
    for ours, theirs in ((max_pool2d, F.max_pool2d), (avg_pool2d, F.avg_pool2d)):
        for grad in (torch.ones(()).expand(3, 2, 3, 3), torch.randn(3, 2, 3, 3).mT):
            assert torch.equal(*(torch.autograd.grad(pool(x, 2), x, grad)[0] for pool in (ours, theirs)))


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize(
    ("shape", "windows"),
    [
        ((6, 6), (2, 2, 0)),
        ((1, 2, 3, 6, 6), (2, 2, 0)),
        ((1, 2, 6, 6), (7, 2, 0)),
        ((1, 2, 6, 6), (2, 2, 2)),
        ((1, 2, 6, 6), (2, 2, -1)),
        ((1, 2, 6, 6), (0, 1, 0)),
        ((1, 2, 6, 6), (2, 0, 0)),
        ((1, 2, 6, 6), ((2, 2, 2), 2, 0)),
        ((1, 2, 0, 6), (2, 2, 0)),
    ],
    ids=name_of,
)
def test_a_wrong_argument_is_torchs_error(pool: str, shape: Any, windows: Any) -> None:
    ours, theirs, _ = POOLS[pool]
    x = torch.randn(shape)
    with pytest.raises((RuntimeError, TypeError, IndexError)) as expected:
        theirs(x, *windows)
    with pytest.raises(type(expected.value)) as found:
        ours(x, *windows)
    assert str(found.value).splitlines()[0] == str(expected.value).splitlines()[0]


def test_what_the_kernels_do_not_take_is_torchs() -> None:
    x = torch.randn(2, 3, 20, 21).requires_grad_()
    whole = max_pool2d(x, (16, 16))  # 256 places
    assert not is_ours(whole)
    assert torch.equal(whole, F.max_pool2d(x, (16, 16)))
    assert is_ours(avg_pool2d(x, (16, 16)))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_ours(max_pool2d(x, 2))
    with pytest.raises(RuntimeError, match="divisor must be not zero"):
        avg_pool2d(x, 2, divisor_override=0)
    for dtype in (torch.int64, torch.uint8):
        counts = torch.randint(0, 9, (1, 2, 6, 6)).to(dtype)
        assert torch.equal(max_pool2d(counts, 2), F.max_pool2d(counts, 2))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, on entering the level
def test_compiled_mapped_and_tangent_pools_are_torchs() -> None:
    x, tangent = torch.randn(2, 5, 3, 8, 9)
    for ours, theirs in ((max_pool2d, F.max_pool2d), (avg_pool2d, F.avg_pool2d)):
        compiled = torch.compile(lambda x, pool=ours: pool(x, 3, 2, 1), fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), theirs(x, 3, 2, 1))
        mapped = torch.func.vmap(lambda image, pool=ours: pool(image, 2))(x)
        assert torch.equal(mapped, theirs(x, 2))
        grads = [torch.func.grad(lambda x, f=pool: f(x, 2).square().sum())(x) for pool in (ours, theirs)]
        assert torch.equal(*grads)
        jvps = [torch.func.jvp(lambda x, f=pool: f(x, 2), (x,), (tangent,))[1] for pool in (ours, theirs)]
        assert torch.equal(*jvps)


def test_opcheck() -> None:
    x = torch.randn(2, 3, 7, 9)
    for windows in (([2, 2], [2, 2], [0, 0]), ([3, 2], [2, 1], [1, 1])):
        for with_places in (True, False):
            torch.library.opcheck(torch.ops.exodus.max_pool2d.default, (x, *windows, with_places))
        y, places = ops.max_pool2d(x, *windows, True)
        torch.library.opcheck(torch.ops.exodus.max_pool2d_backward.default, (y, places, [7, 9], *windows))
        torch.library.opcheck(torch.ops.exodus.avg_pool2d.default, (x, *windows, 4))
        torch.library.opcheck(torch.ops.exodus.avg_pool2d_backward.default, (y, [7, 9], *windows, 4))


def test_operators_refuse_what_they_cannot_read() -> None:
    x, pairs = torch.randn(2, 6, 6), ([2, 2], [2, 2], [0, 0])
    y, places = ops.max_pool2d(x, *pairs, True)
    refused: list[tuple[str, Callable[[], Any]]] = [
        ("must be contiguous", lambda: ops.max_pool2d(x.mT, *pairs, True)),
        ("at most 255 places, got 256", lambda: ops.max_pool2d(torch.zeros(16, 16), [16, 16], [1, 1], [0, 0], True)),
        ("kernel_size must be at most the padded size, 6, got 7", lambda: ops.avg_pool2d(x, [7, 2], *pairs[1:], 4)),
        ("padding at most half of kernel_size", lambda: ops.avg_pool2d(x, *pairs[:2], [2, 0], 4)),
        ("sizes must be of two dimensions, got 1", lambda: ops.avg_pool2d(x, [2], *pairs[1:], 4)),
        ("float32, float64, float16 or bfloat16", lambda: ops.avg_pool2d(x.long(), *pairs, 4)),
        (r"grad must be of shape \(..., 3, 3\)", lambda: ops.avg_pool2d_backward(x, [6, 6], *pairs, 4)),
        ("places must be bytes", lambda: ops.max_pool2d_backward(y, places.int(), [6, 6], *pairs)),
    ]
    for said, call in refused:
        with pytest.raises(RuntimeError, match=said):
            call()


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({}, True),
        ({"stride": 1, "padding": 1}, True),
        ({"ceil_mode": True}, False),
        ({"dilation": 2}, False),
        ({"return_indices": True}, False),
    ],
    ids=str,
)
def test_max_pool_module_is_torchs(options: Any, ours: bool) -> None:
    layer, plain = nn.MaxPool2d(3, **options), torch.nn.MaxPool2d(3, **options)
    assert repr(layer) == repr(plain)
    for shape in ((2, 3, 10, 11), (3, 10, 11)):
        x = torch.randn(shape).requires_grad_()
        found, expected = layer(x), plain(x)
        if "return_indices" in options:
            assert torch.equal(found[1], expected[1])
            found, expected = found[0], expected[0]
        assert torch.equal(found, expected)
        assert is_ours(found) == ours


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({}, True),
        ({"stride": (1, 2), "padding": 1, "count_include_pad": False}, True),
        ({"divisor_override": 5}, True),
        ({"ceil_mode": True}, False),
    ],
    ids=str,
)
def test_avg_pool_module_is_torchs(options: Any, ours: bool) -> None:
    layer, plain = nn.AvgPool2d(3, **options), torch.nn.AvgPool2d(3, **options)
    assert repr(layer) == repr(plain)
    for shape in ((2, 3, 10, 11), (3, 10, 11)):
        x = torch.randn(shape).requires_grad_()
        found, expected = layer(x), plain(x)
        assert torch.equal(found, expected)
        assert is_ours(found) == ours


@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": (2, 3), "stride": 1}], ids=str)
def test_sums_of_norm_1_are_those_of_torchs_pool(options: Any) -> None:
    layer, plain = accelerated.SumPool2d(1, **options), torch.nn.LPPool2d(1, **options)
    x = (torch.randn(3, 2, 7, 9) * (torch.rand(3, 2, 7, 9) < 0.3)).requires_grad_()
    found, expected = layer(x), plain(x)
    assert torch.equal(found, expected)
    grad = torch.randn_like(found)
    assert torch.equal(*(torch.autograd.grad(y, x, grad)[0] for y in (found, expected)))
    for other in ({"norm_type": 2, **options}, {"norm_type": 1, **options, "ceil_mode": True}):
        assert torch.equal(accelerated.SumPool2d(**other)(x.abs()), torch.nn.LPPool2d(**other)(x.abs()))


class Library(torch.nn.MaxPool2d):
    """As SpikingJelly's: it folds steps, and leaves the rest to torch's class by super()."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = super().forward(x.flatten(0, 1)).view(*x.shape[:3], 3, 3)
        return found


def test_a_librarys_class_stays_what_it_is_but_for_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(accelerated._LIBRARIES, (__name__, "Library"), ((), (nn.MaxPool2d,)))
    layer = Library(2)
    joined = accelerated.counterpart(Library)
    assert joined is not None
    layer.__class__ = joined
    x = torch.randn(3, 4, 2, 6, 6).requires_grad_()
    expected = Library(2)(x)
    assert isinstance(layer, Library)
    for each in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        y = each(x)
        assert type(each) is joined
        assert torch.equal(y, expected)
        assert is_ours(max_pool2d(x.flatten(0, 1), 2))
        assert type(y.grad_fn.next_functions[0][0]).__name__ == "MaxPoolBackward"
    assert accelerated.counterpart(torch.nn.MaxPool1d) is None
