"""Bad arguments: a ValueError or TypeError that names the argument, what came and what was wanted."""

import numpy as np
import pytest
import torch

import exodus_core
from exodus_core import AlphaKernel, ExponentialKernel, reference
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
    (ValueError, r"alpha must broadcast to the inner dimensions, \(3,\), got shape \(4,\)", {"alpha": torch.ones(4)}),
    (ValueError, r"threshold must broadcast .* \(3,\), got shape \(2, 3\)", {"threshold": torch.ones(2, 3)}),
    (ValueError, "threshold must be positive where max_spikes > 1, got -1", {"threshold": -1, "max_spikes": 2}),
    (ValueError, "reset must be 'subtract', 'zero' or 'none', got 'soft'", {"reset": "soft"}),
    (ValueError, "max_spikes must be 1 with reset 'zero', got 2", {"reset": "zero", "max_spikes": 2}),
    (ValueError, "max_spikes must be at least 1, got 0", {"max_spikes": 0}),
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
    (ValueError, r"initial_membrane must broadcast .* \(2, 3\), got shape \(5,\)", {"initial_membrane": torch.ones(5)}),
    (ValueError, "alpha must be on the device of the input, cpu, got meta", {"alpha": torch.ones(3, device="meta")}),
]


@pytest.mark.parametrize(("error", "message", "wrong"), WRONG_LIF, ids=[m for _, m, _ in WRONG_LIF])
def test_lif_names_what_is_wrong(error, message, wrong):
    with pytest.raises(error, match=message):
        exodus_core.lif(**{"x": X, "alpha": 0.9, **wrong})


@pytest.mark.parametrize(
    ("error", "message", "kernel"),
    [
        (TypeError, "kernel must be a tensor of taps or one of exodus_core.kernels, got float", 0.9),
        (ValueError, r"kernel must be a 1-d tensor with at least one tap, got shape \(0,\)", torch.zeros(0)),
        (ValueError, r"kernel must be a 1-d tensor with at least one tap, got shape \(2, 2\)", torch.zeros(2, 2)),
        (TypeError, "kernel must be a float or a float tensor, got a tensor of torch.int64", torch.zeros(2).long()),
    ],
)
def test_kernels_name_what_is_wrong(error, message, kernel):
    with pytest.raises(error, match=message):
        exodus_core.filter(X, kernel)
    with pytest.raises(error, match="reset_" + message):
        exodus_core.srm(X, kernel)


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, r"alpha must be in \[0, 1\], got 2", lambda: ExponentialKernel(2)),
        (ValueError, "alpha and amplitude must have one length, got 2 and 1", lambda: ExponentialKernel((0.5, 0.6))),
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
def test_value_objects_name_what_is_wrong(error, message, make):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("error", "message", "grad"),
    [
        (TypeError, "grad_spikes must be a torch.Tensor, got NoneType", None),
        (TypeError, "grad_spikes must have the dtype of membrane, torch.float32, got torch.float64", X.double()),
        (ValueError, r"grad_spikes must have the shape of membrane, \(2, 5, 3\), got \(2, 5\)", X[..., 0]),
        (ValueError, "grad_spikes must be on the device of membrane, cpu, got meta", X.to("meta")),
    ],
)
def test_gradient_functions_name_what_is_wrong(error, message, grad):
    with pytest.raises(error, match=message):
        exodus_core.lif_gradient(X, grad, 0.9)
    with pytest.raises(error, match=message):
        exodus_core.srm_gradient(X, grad, torch.tensor([-1.0]))
    if isinstance(grad, torch.Tensor):
        with pytest.raises(error, match=message.replace("grad_spikes", "grad_membrane")):
            exodus_core.lif_gradient(X, X, 0.9, grad_membrane=grad)


def test_the_loops_refuse_a_reset_or_method_that_they_do_not_know():
    with pytest.raises(ValueError, match="reset must be"):
        reference.lif(X, 0.9, reset="hard")
    with pytest.raises(ValueError, match="method must be"):
        reference.lif_on_trace(X, 0.9, method="stbp")
    with pytest.raises(ValueError, match="method must be"):
        reference.srm(X, AlphaKernel(3.0), method="stbp")


def test_the_operators_have_a_net_of_their_own():
    arguments = (0.9, 1.0, 1.0, -float("inf"), 1.0, None, None, None, None, None, None)
    with pytest.raises(RuntimeError, match="contiguous"):
        torch.ops.exodus.lif_forward(X.transpose(0, 2), *arguments, 1, 1)
    with pytest.raises(RuntimeError, match="time_dim"):
        torch.ops.exodus.lif_forward(X, *arguments, 1, 3)
    with pytest.raises(RuntimeError, match="reset"):
        torch.ops.exodus.lif_forward(X, *arguments, 7, 1)
    with pytest.raises(RuntimeError, match="float32, float64"):
        torch.ops.exodus.lif_forward(X.long(), *arguments, 1, 1)
    with pytest.raises(RuntimeError, match="a parameter must be"):
        torch.ops.exodus.lif_forward(X, 0.9, 1.0, 1.0, -1.0, 1.0, torch.ones(2), None, None, None, None, None, 1, 1)
    with pytest.raises(RuntimeError, match="either taps or modes"):
        torch.ops.exodus.filter(X, torch.ones(2), [0.9], [1.0], [0.0], False, 1)


@pytest.mark.skipif(exodus_core.capabilities()["cuda_library"]["loaded"], reason="the CUDA library is loaded here")
def test_a_tensor_on_a_gpu_without_cuda_kernels_is_told_why():
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 5, 3, device="cuda")
    with pytest.raises(RuntimeError, match=r"x is on cuda:0, and there are no CUDA kernels: .+"):
        exodus_core.lif(x, 0.9)
