"""Delays against a plain loop: values, gradients, every layout and dtype, and what is refused."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from assertions import relative_error
from exodus_core import ArgumentError, ArgumentTypeError, delay, delayed_linear, nn
from exodus_core import delays as delays_module

SHAPES = [(1, 1, 1), (3, 7, 5), (2, 33, 17), (2, 40, 1), (4, 1, 3)]


def looped_delay(x: Tensor, delays: Tensor) -> Tensor:
    """y_i[t] = (1 - f) x_i[t-n] + f x_i[t-n-1], n = floor(d), f = d - n, of (batch, time, neurons), step by step."""
    columns = []
    for i, d in enumerate(delays.expand(x.shape[2])):
        n = math.floor(d.detach())
        f = d - n
        now = [x[:, t - n, i] if t >= n else x.new_zeros(len(x)) for t in range(x.shape[1])]
        before = [x[:, t - n - 1, i] if t >= n + 1 else x.new_zeros(len(x)) for t in range(x.shape[1])]
        columns.append(torch.stack([(1 - f) * a + f * b for a, b in zip(now, before, strict=True)], 1))
    return torch.stack(columns, 2)


def looped_product(x: Tensor, weight: Tensor, delays: Tensor) -> Tensor:
    """y_j[t] = sum over i of W_ji x_i[t - d_ji]."""
    rows = []
    for row, ds in zip(weight, delays.expand(weight.shape), strict=True):
        rows.append((looped_delay(x, ds) * row).sum(2))
    return torch.stack(rows, 2)


def doubles(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def delays_up_to(most: float, *shape: int) -> Tensor:
    """Fractional and whole ones."""
    delays = most * torch.rand(shape, dtype=torch.float64)
    return torch.where(torch.rand(shape) < 0.3, delays.floor(), delays)


def differentiated(function: Any, *leaves: Tensor) -> list[Tensor]:
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
    y = function(*leaves)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).sin()
    found = torch.autograd.grad((y * weights).sum(), leaves, allow_unused=True, materialize_grads=True)
    return [y.detach(), *found]


def assert_equal(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-12) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, theirs) <= tolerance


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("most", [0.0, 1.0, 4.5, 60.0])
def test_delay_and_its_gradients_are_those_of_the_loop(shape: tuple[int, ...], most: float) -> None:
    x, delays = doubles(*shape), delays_up_to(most, shape[2])
    assert_equal(differentiated(delay, x, delays), differentiated(looped_delay, x, delays))
    bounded = differentiated(lambda x, d: delay(x, d, max_delay=61), x, delays)
    assert_equal(bounded, differentiated(looped_delay, x, delays))


@pytest.mark.parametrize("number", [0, 0.0, 0.25, 3, 3.75, 6.0, 6.5, 7, 1e9, np.float32(1.5)])
def test_one_delay_may_be_a_number_or_a_tensor_of_any_shape(number: float) -> None:
    x = doubles(3, 7, 5)
    wanted = looped_delay(x, torch.tensor(min(float(number), 20.0), dtype=torch.float64))
    assert_equal([delay(x, number)], [wanted])
    for shape in [(), (1,), (1, 1)]:
        one = torch.full(shape, float(number), dtype=torch.float64)
        assert_equal([delay(x, one)], [wanted])
    (gradient,) = differentiated(lambda x: delay(x, number), x)[1:]
    assert_equal([gradient], differentiated(lambda x: delay(x, torch.tensor(float(number))), x)[1:])


@pytest.mark.parametrize(
    ("shape", "time_dim", "inner"),
    [((5, 4), 0, (4,)), ((2, 3, 9), -1, ()), ((2, 6, 3, 4), 1, (3, 4)), ((2, 6, 3, 4), 2, (4,)), ((9,), 0, ())],
)
def test_time_may_be_any_axis_and_x_any_view(shape: tuple[int, ...], time_dim: int, inner: tuple[int, ...]) -> None:
    x, delays = doubles(*shape), delays_up_to(4.0, *inner)
    axis = time_dim % len(shape)
    flat = x.reshape(math.prod(shape[:axis]), shape[axis], -1)
    wanted = looped_delay(flat, delays.reshape(-1)).view(shape)
    assert_equal([delay(x, delays, time_dim=time_dim)], [wanted])
    strided = torch.stack([x, x], -1)[..., 0]
    turned = x.movedim(0, -1).contiguous().movedim(-1, 0)
    for view in (strided, turned):
        assert_equal([delay(view, delays, time_dim=time_dim)], [wanted])


def test_delays_broadcast_over_the_inner_dimensions() -> None:
    x, delays = doubles(2, 6, 3, 4), delays_up_to(4.0, 3, 1)
    wide = differentiated(lambda x, d: delay(x, d.expand(3, 4)), x, delays)
    assert_equal(differentiated(delay, x, delays), wide)


def test_whole_delays_move_values_to_the_bit() -> None:
    x = torch.randn(3, 9, 4)
    for whole in (0, 1, 5, 9, 20):
        moved = torch.cat([torch.zeros(3, min(whole, 9), 4), x[:, : max(9 - whole, 0)]], 1)
        assert torch.equal(delay(x, whole), moved)
        assert torch.equal(delay(x, torch.full((4,), float(whole))), moved)


def test_the_derivative_at_a_whole_delay_is_that_to_the_right_and_at_the_bound_that_to_the_left() -> None:
    x = doubles(1, 8, 1)

    def slope(d: float, side: float, **options: Any) -> Tensor:
        step = side * 2.0**-20
        return (delay(x, d + step) - delay(x, d)).sum() / step

    for function in (delay, lambda x, d, **options: delayed_linear(x, torch.ones(1, 1, dtype=x.dtype), d, max_delay=3)):
        at = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
        (right,) = torch.autograd.grad(function(x, at, max_delay=3).sum(), at)
        assert relative_error(right.squeeze(), slope(2.0, 1.0)) < 1e-8
        at = torch.tensor([[3.0]], dtype=torch.float64, requires_grad=True)
        y = function(x, at, max_delay=3)
        (left,) = torch.autograd.grad(y.sum(), at)
        assert relative_error(left.squeeze(), slope(3.0, -1.0)) < 1e-8
        assert_equal([y.detach()], [delay(x, 3.0)])


def test_gradients_and_second_derivatives_are_those_of_finite_differences() -> None:
    x, delays = doubles(2, 9, 3).requires_grad_(), torch.tensor([0.4, 2.3, 5.7], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(delay, (x, delays))
    assert torch.autograd.gradgradcheck(delay, (x, delays))
    weight, bias = doubles(2, 3).requires_grad_(), doubles(2).requires_grad_()
    of_synapses = (0.1 + 0.8 * torch.rand(2, 3, dtype=torch.float64) + torch.arange(3)).requires_grad_()
    for width in (None, 0.7):
        call = lambda *leaves: delayed_linear(*leaves, max_delay=4, width=width)  # noqa: B023, E731
        assert torch.autograd.gradcheck(call, (x, weight, of_synapses, bias))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("most", [1, 4, 50])
def test_delayed_linear_and_its_gradients_are_those_of_the_loop(shape: tuple[int, ...], most: int) -> None:
    x, weight = doubles(*shape), doubles(3, shape[2])
    delays = delays_up_to(0.99 * most, 3, shape[2])
    found = differentiated(lambda *leaves: delayed_linear(*leaves, max_delay=most), x, weight, delays)
    assert_equal(found, differentiated(looped_product, x, weight, delays))


def test_delayed_linear_has_the_bias_the_axis_of_time_and_one_delay_for_many_synapses() -> None:
    x, weight, bias, delays = doubles(2, 9, 4), doubles(3, 4), doubles(3), delays_up_to(3.0, 3, 1)
    wanted = looped_product(x, weight, delays) + bias
    assert_equal([delayed_linear(x, weight, delays, bias, max_delay=3)], [wanted])
    turned = x.movedim(1, 0)
    assert_equal([delayed_linear(turned, weight, delays, bias, max_delay=3, time_dim=0)], [wanted.movedim(1, 0)])
    number = delayed_linear(x, weight, 1.25, max_delay=3)
    assert_equal([number], [looped_product(x, weight, torch.tensor(1.25, dtype=torch.float64))])


@pytest.mark.usefixtures("all_sparse")
def test_delayed_linear_computed_from_spikes_is_the_dense_one() -> None:
    spikes = (torch.rand(2, 30, 20) < 0.1).double()
    weight, delays = doubles(9, 20), delays_up_to(5.9, 9, 20)
    results = [
        differentiated(lambda *leaves: delayed_linear(*leaves, max_delay=6, exact=exact), spikes, weight, delays)  # noqa: B023
        for exact in (False, True)
    ]
    assert_equal(*results)
    assert_equal(results[0], differentiated(looped_product, spikes, weight, delays))


def test_a_narrow_density_is_the_nearest_step_and_shares_sum_to_one() -> None:
    x, weight = doubles(2, 12, 4), doubles(3, 4)
    delays = delays_up_to(5.0, 3, 4).floor() + 0.25
    narrow = delayed_linear(x, weight, delays, max_delay=6, width=0.02)
    assert_equal([narrow], [looped_product(x, weight, delays.floor())])
    ones = torch.ones(1, 20, 4, dtype=torch.float64)
    for width in (0.3, 2.0, 100.0):
        y = delayed_linear(ones, weight, delays, max_delay=6, width=width)
        assert_equal([y[:, 6:]], [weight.sum(1).expand(1, 14, 3)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes_are_the_float64_result_rounded(dtype: torch.dtype) -> None:
    x, weight = doubles(3, 20, 6).to(dtype), doubles(4, 6).to(dtype)
    delays, of_synapses = delays_up_to(7.0, 6).float(), delays_up_to(7.0, 4, 6).float()
    y = delay(x, delays)
    assert y.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    assert relative_error(y, looped_delay(x.double(), delays.double())) <= tolerance
    y = delayed_linear(x, weight, of_synapses, max_delay=7)
    assert y.dtype == dtype
    assert relative_error(y, looped_product(x.double(), weight.double(), of_synapses.double())) <= tolerance
    leaf = delays.clone().requires_grad_()
    delay(x, leaf).sum().backward()
    assert leaf.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=str)
def test_empty_signals_give_empty_ones_with_gradients(shape: tuple[int, ...]) -> None:
    x, delays = doubles(*shape).requires_grad_(), delays_up_to(3.0, shape[2]).requires_grad_()
    y = delay(x, delays)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape
    assert not delays.grad.any()
    assert delay(x, 1.5).shape == shape
    weight = doubles(4, shape[2])
    assert delayed_linear(x, weight, 1.5, max_delay=3).shape == (*shape[:2], 4)


def test_the_result_is_a_tensor_of_its_own() -> None:
    x = torch.randn(2, 5, 3)
    before = x.clone()
    delay(x, 0.0).zero_()
    delay(x, torch.zeros(3)).zero_()
    assert torch.equal(x, before)


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (-0.5, {}, ArgumentError, r"delays must be non-negative and finite, got -0\.5"),
    (math.nan, {}, ArgumentError, "delays must be a number, got nan"),
    (math.inf, {}, ArgumentError, "delays must be non-negative and finite, got inf"),
    (torch.tensor([1.0, -0.5, 0.0]), {}, ArgumentError, r"delays must be non-negative and finite, got -0\.5"),
    (torch.tensor([1.0, math.nan, 0.0]), {}, ArgumentError, "delays must be non-negative and finite, got nan"),
    (torch.tensor([1.0, math.inf, 0.0]), {"max_delay": 9}, ArgumentError, r"delays must be in \[0, 9\]"),
    (torch.tensor([1.0, 9.5, 0.0]), {"max_delay": 9}, ArgumentError, r"in \[0, 9\] \(max_delay\), got 9\.5"),
    (torch.tensor([9.5, 1, 1]).requires_grad_(), {"max_delay": 9}, ArgumentError, r"in \[0, 9\]"),
    (10, {"max_delay": 9}, ArgumentError, r"in \[0, 9\] \(max_delay\), got 10"),
    (torch.ones(4), {}, ArgumentError, "delays must be values that broadcast to the inner dimensions"),
    (torch.ones(3, dtype=torch.int64), {}, ArgumentTypeError, "delays must be a float or a float tensor"),
    ("1", {}, ArgumentTypeError, "delays must be a float or a float tensor, got str"),
    (1.0, {"max_delay": 0}, ArgumentError, "max_delay must be from 1 to"),
    (1.0, {"max_delay": 2.5}, ArgumentTypeError, "max_delay must be an int, got float"),
    (1.0, {"time_dim": 3}, ArgumentError, "time_dim must be an axis of x"),
]


@pytest.mark.parametrize(("delays", "options", "error", "message"), REFUSED, ids=[f"{i}" for i in range(len(REFUSED))])
def test_invalid_arguments_of_delay_are_refused_in_words(
    delays: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        delay(torch.ones(2, 5, 3), delays, **options)


PRODUCTS_REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"delays": -1.0}, ArgumentError, r"delays must be in \[0, 4\] \(max_delay\), got -1"),
    ({"delays": torch.full((2, 3), 4.5)}, ArgumentError, r"delays must be in \[0, 4\] \(max_delay\), got 4\.5"),
    ({"delays": torch.full((2, 3), math.nan)}, ArgumentError, r"delays must be in \[0, 4\] \(max_delay\), got nan"),
    ({"delays": torch.ones(2, 4)}, ArgumentError, r"broadcast to the shape of weight, \(2, 3\)"),
    ({"weight": torch.ones(2, 4)}, ArgumentError, r"x must be of shape \(\.\.\., 4\)"),
    ({"weight": torch.ones(2)}, ArgumentError, r"weight must be of shape \(N_out, N_in\)"),
    ({"weight": torch.ones(2, 3).double()}, ArgumentTypeError, "weight must be of the dtype of x"),
    ({"weight": [[1.0]]}, ArgumentTypeError, "weight must be a torch.Tensor, got list"),
    ({"bias": torch.ones(3)}, ArgumentError, r"bias must be of shape \(2,\)"),
    ({"max_delay": None}, ArgumentTypeError, "max_delay must be an int"),
    ({"width": 0.0}, ArgumentError, "width must be a positive number or None, got 0"),
    ({"width": math.nan}, ArgumentError, "width must be a positive number or None, got nan"),
    ({"width": "wide"}, ArgumentTypeError, "width must be a positive number or None, got str"),
    ({"time_dim": 2}, ArgumentError, "time_dim must be an axis of x with shape .* before the last"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), PRODUCTS_REFUSED, ids=[f"{i}" for i in range(len(PRODUCTS_REFUSED))]
)
def test_invalid_arguments_of_delayed_linear_are_refused_in_words(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"weight": torch.ones(2, 3), "delays": 1.0, "max_delay": 4} | change
    with pytest.raises(error, match=message):
        delayed_linear(torch.ones(2, 5, 3), **arguments)


def test_delays_that_are_not_read_count_as_the_nearest_in_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(delays_module, "check_delays", lambda *_: None)
    x, weight = doubles(2, 8, 3), doubles(1, 3)
    apart = torch.tensor([-1.0, 2.5, 99.0], dtype=torch.float64)
    y, _, gradient = differentiated(lambda x, d: delay(x, d, max_delay=4), x, apart)
    inside = torch.tensor([0.0, 2.5, 4.0], dtype=torch.float64)
    wanted, _, wanted_gradient = differentiated(lambda x, d: delay(x, d, max_delay=4), x, inside)
    assert_equal([y, gradient], [wanted, wanted_gradient])
    product = differentiated(lambda x, d: delayed_linear(x, weight, d, max_delay=4), x, apart)
    assert_equal(product, differentiated(lambda x, d: delayed_linear(x, weight, d, max_delay=4), x, inside))
    unknown = torch.tensor([1.0, math.nan, 2.0], dtype=torch.float64, requires_grad=True)
    assert delay(x, unknown).isnan().any((0, 1)).tolist() == [False, True, False]
    assert delayed_linear(x, weight, unknown, max_delay=4).isnan().any()


# Modules


def layers(stateful: bool = False, time_dim: int = 1) -> torch.nn.Sequential:
    options: Any = {"stateful": stateful, "time_dim": time_dim}
    return torch.nn.Sequential(
        nn.DelayedLinear(5, 8, max_delay=4, **options),
        nn.LIF(0.9, **options),
        nn.Delay(torch.rand(8) * 3, max_delay=5, trainable="delays", **options),
        nn.DelayedLinear(8, 3, max_delay=6, width=1.5, bias=False, **options),
        nn.Delay(1.5, **options),
    ).double()


def test_the_modules_are_the_functions() -> None:
    x = doubles(2, 11, 5)
    delayed, product = nn.Delay(torch.rand(5).double() * 3), nn.DelayedLinear(5, 2, max_delay=3).double()
    assert torch.equal(delayed(x), delay(x, delayed.delays, max_delay=3))
    wanted = delayed_linear(x, product.weight, product.delays, product.bias, max_delay=3)
    assert torch.equal(product(x), wanted)
    assert product.weight.shape == product.delays.shape == (2, 5)
    assert 0 <= product.delays.min() < product.delays.max() <= 3
    assert nn.DelayedLinear(5, 2, bias=False, max_delay=3, delays=1.0, trainable=()).delays == 1.0


@pytest.mark.parametrize("cuts", [[4, 7], [1] * 11, [2, 0, 9]], ids=str)
@pytest.mark.parametrize("time_dim", [0, 1])
def test_a_stateful_sequence_in_parts_is_the_whole_one(cuts: list[int], time_dim: int) -> None:
    whole = layers(time_dim=time_dim)
    parts = layers(stateful=True, time_dim=time_dim)
    parts.load_state_dict(whole.state_dict())
    shape = (2, 11, 5) if time_dim == 1 else (11, 2, 5)
    x = doubles(*shape).requires_grad_()
    y, found = whole(x), torch.cat([parts(part) for part in x.split(cuts, time_dim)], time_dim)
    assert_equal([found], [y])
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), [x, *parts.parameters()]),
        torch.autograd.grad(y.square().sum(), [x, *whole.parameters()]),
        strict=True,
    ):
        assert relative_error(ours, theirs) <= 1e-12
    assert parts[0].named_state()["inputs"].shape == (4, 2, 5)
    with pytest.raises(ArgumentError, match="of the shape of the kept state"):
        parts(doubles(3, 11, 5) if time_dim == 1 else doubles(11, 3, 5))
    for layer in parts:
        layer.reset_state()
    assert_equal([parts(x).detach()], [y.detach()])


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_a_time_checkpoint_carries_the_last_inputs(steps: int) -> None:
    plain = layers()
    pieces = copy.deepcopy(plain)
    x = doubles(2, 23, 5)
    found = differentiated(lambda x: nn.TimeCheckpoint(pieces, steps=steps)(x), x)
    assert_equal(found, differentiated(plain, x))
    plain(x).square().sum().backward()
    nn.TimeCheckpoint(pieces, steps=steps)(x).square().sum().backward()
    for ours, theirs in zip(pieces.parameters(), plain.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) <= 1e-12


class Calls(torch.nn.Module):
    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


def test_the_functions_are_refused_in_pieces() -> None:
    for call in (lambda x: delay(x, 1.0), lambda x: delayed_linear(x, torch.ones(3, 3), 1.0, max_delay=2)):
        with pytest.raises(
            RuntimeError, match=r"must not be called by a module with a time checkpoint.*exodus_core\.nn"
        ):
            nn.TimeCheckpoint(Calls(call), steps=2)(torch.ones(2, 5, 3))


def test_an_optimiser_keeps_delays_in_range_and_learns_them() -> None:
    x = doubles(4, 30, 3)
    target = delay(x, torch.tensor([0.5, 3.5, 2.25], dtype=torch.float64))
    layer = nn.Delay(torch.tensor([0.1, 3.8, 2.9], dtype=torch.float64), max_delay=4, trainable="delays")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    assert (layer.delays - torch.tensor([0.5, 3.5, 2.25], dtype=torch.float64)).abs().max() < 1e-2
    layer.delays.grad = torch.tensor([1e6, -1e6, 0.0], dtype=torch.float64)
    optimizer.step()
    assert layer.delays.tolist()[:2] == [0.0, 4.0]
    with torch.no_grad():
        layer.delays.fill_(9.0)
    layer.constrain()
    assert layer.delays.tolist() == [4.0] * 3


def test_delays_are_constants_of_a_model_and_weights_are_not() -> None:
    net = layers()
    assert [id(p) for p in nn.neuron_parameters(net)] == [id(net[i].delays) for i in (0, 2, 3)]


def test_copies_states_and_repr_say_what_there_is() -> None:
    net = layers(stateful=True)
    x = doubles(2, 6, 5)
    net(x)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), net(x))
    fresh = layers()
    fresh.load_state_dict(net.state_dict())
    assert {"0.weight", "0.bias", "0.delays", "2.delays", "3.delays", "4.delays"} <= net.state_dict().keys()
    assert "max_delay=4" in repr(net[0])
    assert "delays=1.5, max_delay=2" in repr(net[4])


def test_invalid_modules_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="max_delay must be an int if delays are trained, got NoneType"):
        nn.Delay(1.0, trainable="delays")
    with pytest.raises(ArgumentError, match=r"delays must be in \[0, 2\]"):
        nn.Delay(torch.tensor([1.0, 3.0]), max_delay=2)
    with pytest.raises(ArgumentError, match="trainable must be names"):
        nn.Delay(1.0, max_delay=2, trainable="delay")
    with pytest.raises(ArgumentError, match=r"broadcast to \(out_features, in_features\), \(2, 3\)"):
        nn.DelayedLinear(3, 2, max_delay=2, delays=torch.ones(3, 2))
    with pytest.raises(ArgumentTypeError, match="max_delay must be an int, got NoneType"):
        nn.DelayedLinear(3, 2, max_delay=None)
    with pytest.raises(ArgumentError, match="x must be of shape"):
        nn.Delay(1.0)(torch.ones(2, 3))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_one_graph_of_delays_has_the_results_without() -> None:
    x = torch.randn(2, 9, 5)
    net = torch.nn.Sequential(nn.DelayedLinear(5, 4, max_delay=2), nn.Delay(torch.rand(4), stateful=True))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(x).square().sum(), [net[0].delays])
    net[1].reset_state()
    (wanted,) = torch.autograd.grad(net(x).square().sum(), [net[0].delays])
    assert relative_error(gradient, wanted) < 1e-5
