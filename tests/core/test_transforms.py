"""torch.func: grad, vjp, jacrev and vmap of the functions and the modules are what loops over the samples give."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vjp, vmap

import exodus_core
from assertions import relative_error
from exodus_core import AlphaKernel, ExponentialKernel, network, nn

B, T, N = 3, 8, 4
#: A function of (x, parameter) of one sample, and a parameter for each of B samples.
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[], Tensor]]] = {
    "lif": (lambda x, a: exodus_core.lif(x, a, threshold=0.7), lambda: torch.rand(B)),
    "lif per neuron": (lambda x, a: exodus_core.lif(x, a, decay_reset=True), lambda: torch.rand(B, N)),
    "lif slayer": (lambda x, a: exodus_core.lif(x, a, method="slayer"), lambda: torch.rand(B)),
    "threshold": (
        lambda x, a: exodus_core.lif(x, torch.full((N,), 0.9, dtype=x.dtype), threshold=a, max_spikes=3),
        lambda: 0.5 + torch.rand(B),
    ),
    "reset and bound": (
        lambda x, a: exodus_core.lif(x, 0.9, reset_by=a, min_membrane=-a, reset="subtract"),
        lambda: torch.rand(B, N),
    ),
    "bound after the reset": (
        lambda x, a: exodus_core.lif(x, 0.9, reset_by=a, min_membrane=-0.2 * a, bound_after_reset=True),
        lambda: torch.rand(B, N),
    ),
    "first state": (
        lambda x, a: exodus_core.lif(x, 0.9, initial_membrane=a, initial_spikes=0.5 * a),
        lambda: torch.rand(B, 2, N),
    ),
    "first state and decay": (
        lambda x, a: exodus_core.lif(x, a[0], initial_membrane=a, initial_spikes=a * a),
        lambda: torch.rand(B, 2, N),
    ),
    "refractory": (
        lambda x, a: exodus_core.lif(x, a, refractory=1, reset="value", reset_to=0.1),
        lambda: torch.rand(B),
    ),
    "cuba": (lambda x, a: exodus_core.cuba_lif(x, a, 0.6), lambda: torch.rand(B, N)),
    "adaptive": (lambda x, a: exodus_core.alif(x, 0.9, a, adapt_threshold=0.2), lambda: torch.rand(B)),
    "srm": (lambda x, a: exodus_core.srm(x, AlphaKernel(3.0, -1.0), threshold=a), lambda: 0.5 + torch.rand(B)),
    "srm per neuron": (
        lambda x, a: exodus_core.srm(x, AlphaKernel(3.0, -1.0), threshold=a),
        lambda: 0.5 + torch.rand(B, N),
    ),
    "srm taps": (lambda x, a: exodus_core.srm(x, a), lambda: -torch.rand(B, 3)),
    "filter": (lambda x, a: (exodus_core.filter(x * a, ExponentialKernel(0.9)),), lambda: torch.rand(B)),
    "filter taps": (lambda x, a: (exodus_core.filter(x, a),), lambda: torch.rand(B, 3)),
}
everywhere = pytest.mark.parametrize(("function", "make"), FUNCTIONS.values(), ids=FUNCTIONS)


def samples() -> Tensor:
    return torch.randn(B, 2, T, N, dtype=torch.float64) + 0.3


def loss_of(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """A number that depends on all outputs, each element with a weight of its own."""

    def loss(x: Tensor, parameter: Tensor) -> Tensor:
        outputs = function(x, parameter)
        weights = torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).view(x.shape)
        return torch.stack([((i + 1) * output * weights).sum() for i, output in enumerate(outputs)]).sum()

    return loss


def by_hand(loss: Callable[..., Tensor], x: Tensor, parameter: Tensor) -> list[Tensor]:
    """The gradients that autograd has."""
    leaves = x.clone().requires_grad_(), parameter.clone().requires_grad_()
    return list(torch.autograd.grad(loss(*leaves), leaves))


def agree(found: Any, expected: Any) -> bool:
    pairs = list(zip(found, expected, strict=True))
    assert all(ours.shape == theirs.shape for ours, theirs in pairs)
    return all(relative_error(*pair) < 1e-12 for pair in pairs)


@everywhere
def test_grad_and_vjp_are_autograds(function: Any, make: Any) -> None:
    x, parameter = samples()[0], make().double()[0]
    loss = loss_of(function)
    expected = by_hand(loss, x, parameter)
    assert expected[0].abs().sum() > 0
    assert agree(grad(loss, (0, 1))(x, parameter), expected)
    value, pull, *_ = vjp(loss, x, parameter)
    assert torch.equal(value, loss(x, parameter))
    assert agree(pull(torch.ones_like(value)), expected)


@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 0), (2, 0)])
@everywhere
def test_vmap_of_grad_is_a_loop_over_the_samples(function: Any, make: Any, dims: Any) -> None:
    xs, parameters = samples(), make().double()
    loss = loss_of(function)
    given = [all_of if dim is not None else all_of[0] for all_of, dim in zip((xs, parameters), dims, strict=True)]
    expected = [
        by_hand(loss, xs[i if dims[0] is not None else 0], parameters[i if dims[1] is not None else 0])
        for i in range(B)
    ]
    given[0] = given[0] if not dims[0] else given[0].movedim(0, dims[0])
    assert agree(vmap(grad(loss, (0, 1)), dims)(*given), [torch.stack(each) for each in zip(*expected, strict=True)])


@everywhere
def test_vmap_is_a_loop_and_can_be_differentiated(function: Any, make: Any) -> None:
    xs, parameters = samples(), make().double()
    expected = [function(*each) for each in zip(xs, parameters, strict=True)]
    assert agree(vmap(function)(xs, parameters), [torch.stack(each) for each in zip(*expected, strict=True)])
    loss = loss_of(function)
    gradients = [by_hand(loss, *each) for each in zip(xs, parameters, strict=True)]
    stacked = [torch.stack(each) for each in zip(*gradients, strict=True)]
    assert agree(grad(lambda *given: vmap(loss)(*given).sum(), (0, 1))(xs, parameters), stacked)
    leaves = xs.clone().requires_grad_(), parameters.clone().requires_grad_()
    assert agree(torch.autograd.grad(vmap(loss)(*leaves).sum(), leaves), stacked)


def test_two_mapped_axes_are_two_loops() -> None:
    x, alphas = torch.randn(3, 2, 1, T, N, dtype=torch.float64), torch.rand(2, N, dtype=torch.float64)
    nested = vmap(vmap(lambda x, a: exodus_core.lif(x, a)[1]), (0, None))(x, alphas)
    expected = torch.stack([torch.stack([exodus_core.lif(x[i, j], alphas[j])[1] for j in range(2)]) for i in range(3)])
    assert relative_error(nested, expected) < 1e-12


def test_jacobians_are_rows_of_gradients() -> None:
    x = torch.randn(1, 5, 2, dtype=torch.float64)
    jacobian = jacrev(lambda x: exodus_core.lif(x, 0.9)[1])(x)
    leaf = x.clone().requires_grad_()
    membrane = exodus_core.lif(leaf, 0.9)[1]
    rows = [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in membrane.flatten()]
    assert relative_error(jacobian, torch.stack(rows).view(*x.shape, *x.shape)) < 1e-12
    assert (jacobian.abs().sum() > 0).all()


@pytest.mark.parametrize("axis", [0, -1])
def test_any_axis_may_be_time(axis: int) -> None:
    x = torch.randn(B, 5, 6, dtype=torch.float64)
    found = vmap(grad(lambda x: exodus_core.lif(x, 0.9, time_dim=axis)[0].sum()))(x)
    expected = [grad(lambda x: exodus_core.lif(x, 0.9, time_dim=axis)[0].sum())(each) for each in x]
    assert relative_error(found, torch.stack(expected)) < 1e-12


def test_no_steps_and_no_neurons_are_mapped_too() -> None:
    for shape in [(B, 2, 0, N), (B, 2, T, 0), (B, 0, T, N)]:
        found = vmap(grad(lambda x, a: exodus_core.lif(x, a)[1].sum(), (0, 1)))(torch.zeros(shape), torch.rand(B))
        assert found[0].shape == shape
        assert found[1].tolist() == [0.0] * B


@everywhere
def test_second_derivatives_are_refused(function: Any, make: Any) -> None:
    x, parameter = samples()[0], make().double()[0]

    def loss(x: Tensor, parameter: Tensor) -> Tensor:
        return loss_of(function)(x, parameter) ** 2

    def of_x(value: Tensor) -> Any:
        return grad(loss)(value, parameter)

    def of_parameter(value: Tensor) -> Any:
        return grad(loss, 1)(x, value)

    firsts: list[tuple[Callable[..., Any], Tensor]] = [(of_x, x), (of_parameter, parameter)]
    for first, given in firsts:
        for second in (grad(lambda value, first=first: first(value).sum()), jacrev(first)):
            for call in (partial(second, given), partial(vmap(second), given[None])):
                with pytest.raises(RuntimeError, match="second derivatives of a spiking neuron, filter or sparse"):
                    call()


NETS: dict[str, Callable[[], torch.nn.Module]] = {
    "linear": lambda: torch.nn.Sequential(
        nn.Linear(N, 5),
        nn.LIF(0.9, trainable=("alpha", "threshold")),
        nn.Linear(5, 2),
        nn.ExpLeak(0.8, trainable="alpha"),
    ),
    "srm": lambda: torch.nn.Sequential(
        torch.nn.Linear(N, 5),
        nn.SRM(AlphaKernel(3.0, -1.0), response_kernel=torch.rand(3), trainable=("threshold", "response_kernel")),
    ),
    "conv": lambda: torch.nn.Sequential(
        torch.nn.Unflatten(-1, (1, 2, 2)), nn.Conv2d(1, 3, 2, bias=False), nn.IF(threshold=torch.ones(3, 1, 1))
    ),
    "steps": lambda: torch.nn.Sequential(nn.Steps(torch.nn.Linear(N, 3)), nn.LIF(torch.rand(3))),
    "network as data": lambda: network.build(
        {
            "input_shape": [N],
            "layers": [
                {"kind": "linear", "in_features": N, "out_features": 32},
                {"kind": "lif", "alpha": 0.9},
                {"kind": "linear", "in_features": 32, "out_features": 2},
                {"kind": "exp_leak", "alpha": 0.8, "trainable": ["alpha"]},
            ],
        }
    ),
}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_gradients_of_each_sample_of_a_network(make: Callable[[], torch.nn.Module]) -> None:
    net = make().double()
    x = torch.randn(B, T, N, dtype=torch.float64) + 0.5
    parameters = dict(net.named_parameters())

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        total: Tensor = functional_call(net, parameters, (sample[None],)).square().sum()
        return total

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        net.zero_grad()
        net(sample[None]).square().sum().backward()
        for name, parameter in net.named_parameters():
            assert relative_error(found[name][i], parameter.grad) < 1e-10, name
    assert sum(each.abs().sum() for each in found.values()) > 0


def test_plain_loops_are_not_transformed() -> None:
    with pytest.raises(RuntimeError, match="must override the setup_context"):
        grad(lambda x: exodus_core.lif(x, 0.9, method="bptt")[0].sum())(torch.randn(1, T, N))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_forward_mode_is_refused() -> None:
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(lambda x: exodus_core.lif(x, 0.9)[0], (torch.randn(1, T, N),), (torch.ones(1, T, N),))


def test_a_time_checkpoint_is_not_transformed() -> None:
    net = nn.TimeCheckpoint(nn.LIF(0.9), 3)
    with pytest.raises(RuntimeError, match=r"a time checkpoint must not be within a transform of torch\.func"):
        grad(lambda x: net(x).sum())(torch.randn(1, T, N))
