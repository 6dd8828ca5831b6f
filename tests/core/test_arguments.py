"""Bad arguments: a ValueError or TypeError that names the argument, what came and what was wanted."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import exodus_core
from exodus_core import AlphaKernel, ExponentialKernel, nn, reference
from exodus_core.surrogate import Exponential, Sigmoid, Surrogate

X = torch.zeros(2, 5, 3)
WRONG_LIF = [
    (TypeError, "x must be a torch.Tensor, got list", {"x": [1.0]}),
    (TypeError, "x must be float32, float64, float16 or bfloat16, got torch.int64", {"x": torch.zeros(2, 5, 3).long()}),
    (ValueError, r"time_dim must be an axis of x with shape \(2, 5, 3\), got 3", {"time_dim": 3}),
    (ValueError, r"time_dim must be an axis of x with shape \(\), got 0", {"x": torch.tensor(1.0), "time_dim": 0}),
    (TypeError, "time_dim must be an int, got float", {"time_dim": 1.0}),
    (ValueError, r"alpha must be in \[0, 1\], got 1.5", {"alpha": 1.5}),
    (ValueError, "alpha must be a number, got nan", {"alpha": float("nan")}),
    (TypeError, "alpha must be a float or a float tensor, got str", {"alpha": "0.9"}),
    (TypeError, "alpha must be a float or a float tensor, got a tensor of torch.int64", {"alpha": torch.tensor(1)}),
    (
        ValueError,
        r"alpha must be values that broadcast to the inner dimensions, \(3,\), got shape \(4,\)",
        {"alpha": torch.ones(4)},
    ),
    (
        ValueError,
        r"threshold must be values .* \(3,\), got shape \(2, 3\)",
        {"threshold": torch.ones(2, 3)},
    ),
    (ValueError, "threshold must be positive if max_spikes > 1, got -1", {"threshold": -1, "max_spikes": 2}),
    (ValueError, "reset must be one of subtract, zero, none, value, got 'soft'", {"reset": "soft"}),
    (ValueError, "max_spikes must be 1 with reset 'zero', got 2", {"reset": "zero", "max_spikes": 2}),
    (ValueError, "max_spikes must be at least 1, got 0", {"max_spikes": 0}),
    (ValueError, "max_spikes must be at most 2147483647, got an integer of 1329 bits", {"max_spikes": 10**400}),
    (ValueError, "threshold must be a number of a float's size, got an integer of 1329 bits", {"threshold": 10**400}),
    (TypeError, "max_spikes must be an int, got float", {"max_spikes": 2.0}),
    (ValueError, "method must be one of exodus, slayer, bptt, got 'BPTT'", {"method": "BPTT"}),
    (TypeError, "surrogate must be one of exodus_core.surrogate, got str", {"surrogate": "exponential"}),
    (
        TypeError,
        "surrogate must be one of exodus_core.surrogate, got exodus_core.surrogate.Surrogate",
        {"surrogate": Surrogate()},
    ),
    (TypeError, "initial_membrane must be a float or a float tensor, got bool", {"initial_membrane": False}),
    (TypeError, "initial_spikes must be a float or a float tensor, got ndarray", {"initial_spikes": np.zeros(3)}),
    (TypeError, "reset_by must be a float or a float tensor, got str", {"reset_by": "x"}),
    (TypeError, "min_membrane must be a float or a float tensor, got bool", {"min_membrane": True}),
    (TypeError, "bound_after_reset must be a bool, got int", {"bound_after_reset": 1}),
    *[
        (
            ValueError,
            "bound_after_reset must be False with reset 'value', a detached reset to zero, .* got True",
            {"bound_after_reset": True, "min_membrane": -1.0, **others},
        )
        for others in (
            {"reset": "value", "reset_to": 0.1},
            {"refractory": 2},
            {"reset": "zero", "detach_reset": True},
            {"refractory": 2, "method": "bptt"},
        )
    ],
    (
        ValueError,
        r"initial_membrane must be values that broadcast .* \(2, 3\), got shape \(5,\)",
        {"initial_membrane": torch.ones(5)},
    ),
    (ValueError, "alpha must be on the device of the input, cpu, got meta", {"alpha": torch.ones(3, device="meta")}),
    (ValueError, r"alpha must be in \[0, 1\], got 1.5", {"alpha": torch.tensor([0.5, 1.5, 0.5])}),
    (ValueError, r"alpha must be in \[0, 1\], got -0.5", {"alpha": torch.tensor(-0.5)}),
    (ValueError, "alpha must be a number, got nan", {"alpha": torch.tensor([0.5, math.nan, 0.5])}),
    (ValueError, "threshold must be a number, got nan", {"threshold": torch.tensor(math.nan)}),
    (ValueError, "threshold must be positive, got 0.0", {"threshold": torch.zeros(3), "max_spikes": 2}),
    (ValueError, "reset_by must be a number, got nan", {"reset_by": torch.tensor(math.nan)}),
    (ValueError, "min_membrane must be a number, got nan", {"min_membrane": torch.tensor(math.nan)}),
    *[
        (TypeError, f"{name} must be a dense tensor, got one of layout torch.sparse_coo", {name: shape.to_sparse()})
        for name, shape in (
            ("x", torch.ones(2, 5, 3)),
            *((name, torch.full((3,), 0.5)) for name in ("alpha", "threshold", "reset_by", "min_membrane")),
            *((name, torch.full((2, 3), 0.5)) for name in ("initial_membrane", "initial_spikes")),
        )
    ],
    (TypeError, "x must be a dense tensor, got one of layout torch._mkldnn", {"x": torch.ones(2, 5).to_mkldnn()}),
    (TypeError, "max_spikes must be an int, got bool", {"max_spikes": True}),
    (TypeError, "max_spikes must be an int, got float64", {"max_spikes": np.float64(2)}),
    (TypeError, "alpha must be a float or a float tensor, got bool", {"alpha": np.bool_(True)}),
    (ValueError, r"alpha must be in \[0, 1\], got 1.5", {"alpha": np.float32(1.5)}),
    (ValueError, "threshold must be a number, got nan", {"threshold": np.float64("nan")}),
]


@pytest.mark.parametrize(("error", "message", "wrong"), WRONG_LIF, ids=[m for _, m, _ in WRONG_LIF])
def test_lif_names_what_is_wrong(error: type[Exception], message: str, wrong: Any) -> None:
    with pytest.raises(error, match=message):
        exodus_core.lif(**{"x": X, "alpha": 0.9, **wrong})


@pytest.mark.parametrize(
    ("error", "message", "kernel"),
    [
        (TypeError, "kernel must be a tensor of taps or one of exodus_core.kernels, got float", 0.9),
        (ValueError, r"kernel must be a 1-d tensor with at least one tap, got shape \(0,\)", torch.zeros(0)),
        (ValueError, r"kernel must be a 1-d tensor with at least one tap, got shape \(2, 2\)", torch.zeros(2, 2)),
        (TypeError, "kernel must be a float or a float tensor, got a tensor of torch.int64", torch.zeros(2).long()),
        (TypeError, "kernel must be a dense tensor, got one of layout torch.sparse_coo", torch.ones(2).to_sparse()),
    ],
)
def test_kernels_name_what_is_wrong(error: type[Exception], message: str, kernel: Any) -> None:
    with pytest.raises(error, match=message):
        exodus_core.filter(X, kernel)
    with pytest.raises(error, match="reset_" + message):
        exodus_core.srm(X, kernel)


def test_a_reset_kernel_with_nan_is_refused_and_a_filter_shows_it() -> None:
    taps = torch.tensor([1.0, math.nan])
    for call in (lambda: exodus_core.srm(X, taps), lambda: exodus_core.srm_gradient(X, X, taps)):
        with pytest.raises(ValueError, match="reset_kernel must be a number, got nan"):
            call()
    assert exodus_core.filter(X, taps)[:, 1:].isnan().all()


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, r"alpha must be in \[0, 1\], got 2", lambda: ExponentialKernel(2)),
        (
            ValueError,
            "amplitude must be of the length of alpha, 2, and not empty, got 1",
            lambda: ExponentialKernel((0.5, 0.6)),
        ),
        (ValueError, "amplitude must be finite, got inf", lambda: ExponentialKernel(0.5, float("inf"))),
        (TypeError, "alpha must be a number or a tuple of numbers, got str", lambda: ExponentialKernel("a")),
        (TypeError, "alpha must be a number or a tuple of numbers, got list", lambda: ExponentialKernel([0.9])),
        (ValueError, "tau must be positive, got 0", lambda: AlphaKernel(0)),
        (TypeError, "tau must be a number, got tuple", lambda: AlphaKernel((3.0, 4.0))),
        (ValueError, "slope must be positive, got -1", lambda: Exponential(-1)),
        (ValueError, "scale must be finite, got nan", lambda: Sigmoid(scale=float("nan"))),
        (TypeError, "slope must be a number, got str", lambda: Sigmoid("4")),
    ],
)
def test_value_objects_name_what_is_wrong(error: type[Exception], message: str, make: Callable[..., Any]) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("error", "message", "grad"),
    [
        (TypeError, "grad_spikes must be a torch.Tensor, got NoneType", None),
        (TypeError, "grad_spikes must be of the dtype of membrane, torch.float32, got torch.float64", X.double()),
        (ValueError, r"grad_spikes must be of the shape of membrane, \(2, 5, 3\), got \(2, 5\)", X[..., 0]),
        (ValueError, "grad_spikes must be on the device of membrane, cpu, got meta", X.to("meta")),
        (TypeError, "grad_spikes must be a dense tensor, got one of layout torch.sparse_coo", X.to_sparse()),
    ],
)
def test_gradient_functions_name_what_is_wrong(error: type[Exception], message: str, grad: Tensor) -> None:
    with pytest.raises(error, match=message):
        exodus_core.lif_gradient(X, grad, 0.9)
    with pytest.raises(error, match=message):
        exodus_core.srm_gradient(X, grad, torch.tensor([-1.0]))
    if isinstance(grad, torch.Tensor):
        with pytest.raises(error, match=message.replace("grad_spikes", "grad_membrane")):
            exodus_core.lif_gradient(X, X, 0.9, grad_membrane=grad)


NUMPY: dict[str, Any] = {
    "alpha": np.float32(0.5),
    "threshold": np.float64(1.0),
    "reset_by": np.int32(1),
    "min_membrane": np.float16(-1.0),
    "initial_membrane": np.float32(0.5),
    "initial_spikes": np.uint8(1),
    "max_spikes": np.int64(2),
    "time_dim": np.int16(1),
    "decay_reset": np.bool_(True),
}


@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
def test_numbers_of_numpy_are_numbers(method: str) -> None:
    plain = {name: value.item() for name, value in NUMPY.items()}
    x = torch.linspace(-1, 2, 30).view(2, 5, 3)
    for function, arguments in ((exodus_core.lif, (x,)), (exodus_core.lif_gradient, (x, torch.ones_like(x)))):
        for found, wanted in zip(
            function(*arguments, method=method, **NUMPY), function(*arguments, method=method, **plain), strict=True
        ):
            assert found is wanted is None or torch.equal(found, wanted)
    assert AlphaKernel(np.float64(3), np.int64(-1)).modes == AlphaKernel(3.0, -1.0).modes
    assert (
        ExponentialKernel((np.float64(0.5), 0.25), (1, np.int8(2))).modes
        == ExponentialKernel((0.5, 0.25), (1, 2)).modes
    )
    assert repr(Sigmoid(np.float32(4), np.int64(1))) == repr(Sigmoid(4.0, 1.0))
    layer = nn.LIF(**{name: NUMPY[name] for name in ("alpha", "threshold", "max_spikes", "time_dim")})
    assert [type(value) for value in (layer.alpha, layer.max_spikes, layer.time_dim)] == [float, int, int]


def test_a_parameter_that_is_traced_or_trained_is_not_read() -> None:
    trained = torch.tensor(1.5, requires_grad=True)
    exodus_core.lif(X, trained)[0].sum().backward()
    assert torch.vmap(lambda alpha: exodus_core.lif(X, alpha)[0])(torch.full((4, 3), 0.5)).shape == (4, *X.shape)
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(lambda x, alpha: exodus_core.lif(x, alpha)[1], tracing_mode=mode)(X, torch.full((3,), 0.5))
        assert torch.equal(graph(X + 0.5, torch.full((3,), 0.25)), exodus_core.lif(X + 0.5, 0.25)[1])


def test_the_loops_refuse_a_reset_or_method_that_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="reset must be"):
        reference.lif(X, 0.9, reset="hard")
    with pytest.raises(ValueError, match="method must be"):
        reference.lif_on_trace(X, 0.9, method="stbp")
    with pytest.raises(ValueError, match="method must be"):
        reference.srm(X, AlphaKernel(3.0), method="stbp")


def test_the_operators_have_a_net_of_their_own() -> None:
    arguments = (0.9, 1.0, 1.0, -float("inf"), 1.0, None, None, None, None, None, None)
    with pytest.raises(RuntimeError, match="contiguous"):
        torch.ops.exodus.lif_forward(X.transpose(0, 2), *arguments, 1, False, 1)
    with pytest.raises(RuntimeError, match="time_dim"):
        torch.ops.exodus.lif_forward(X, *arguments, 1, False, 3)
    with pytest.raises(RuntimeError, match="reset"):
        torch.ops.exodus.lif_forward(X, *arguments, 7, False, 1)
    with pytest.raises(RuntimeError, match="float32, float64"):
        torch.ops.exodus.lif_forward(X.long(), *arguments, 1, False, 1)
    wrong = (0.9, 1.0, 1.0, -1.0, 1.0, torch.ones(2), None, None, None, None, None)
    with pytest.raises(RuntimeError, match="a parameter must be"):
        torch.ops.exodus.lif_forward(X, *wrong, 1, False, 1)
    with pytest.raises(RuntimeError, match="either taps or modes"):
        torch.ops.exodus.filter(X, torch.ones(2), [0.9], [1.0], [0.0], False, 1)


@pytest.mark.skipif(exodus_core.capabilities()["cuda_library"]["loaded"], reason="the CUDA library is loaded here")
def test_a_tensor_on_a_gpu_without_cuda_kernels_is_told_why() -> None:
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 5, 3, device="cuda")
    with pytest.raises(RuntimeError, match=r"x is on cuda:0, and there are no CUDA kernels: .+"):
        exodus_core.lif(x, 0.9)


@pytest.mark.parametrize(
    ("options", "saved", "message"),
    [
        ({"max_spikes": 2}, {"threshold": -1.0}, "threshold must be positive if max_spikes > 1, got -1.0"),
        (
            {"threshold": torch.ones(2), "max_spikes": 2},
            {"threshold": [1.0, -1.0]},
            "threshold must be positive, got -1.0",
        ),
        ({"trainable": "threshold", "max_spikes": 2}, {"threshold": 0.0}, "threshold must be positive, got 0.0"),
        ({"alpha": torch.ones(2)}, {"alpha": [0.5, 1.5]}, r"alpha must be in \[0, 1\], got 1.5"),
        ({"trainable": "alpha"}, {"alpha": -0.5}, r"alpha must be in \[0, 1\], got -0.5"),
        ({}, {"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
        (
            {"min_membrane": torch.zeros(2)},
            {"min_membrane": [0.0, torch.nan]},
            "min_membrane must be a number, got nan",
        ),
    ],
)
def test_parameters_out_of_range_are_not_loaded(options: Any, saved: Any, message: str) -> None:
    layer = nn.LIF(**({"alpha": 0.9} | options))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    given = {name: torch.tensor(value) for name, value in saved.items()}
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(before | given)
    torch.testing.assert_close(dict(layer.state_dict()), before)


@pytest.mark.parametrize("threshold", [1.0, torch.ones(2)], ids=["number", "tensor"])
def test_a_threshold_below_0_is_loaded_where_spikes_are_not_counted_by_it(threshold: Any) -> None:
    layer = nn.LIF(0.9, threshold=threshold)
    layer.load_state_dict(layer.state_dict() | {"threshold": -torch.as_tensor(threshold)})
    assert torch.equal(torch.as_tensor(layer.threshold), -torch.as_tensor(threshold))
