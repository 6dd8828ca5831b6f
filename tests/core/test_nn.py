"""Modules: parameters that train, state that is kept, and the functions that they call."""

import copy
import math
import pickle

import pytest
import torch

import exodus_core
from agreement import relative_error
from exodus_core import AlphaKernel, ExponentialKernel, nn, surrogate
from exodus_core.surrogate import Sigmoid

X = torch.linspace(-1, 2, 2 * 20 * 3).view(2, 20, 3)


def test_lif_module_is_the_function():
    layer = nn.LIF(0.9, threshold=0.7, reset="zero", min_membrane=-0.5)
    assert torch.equal(layer(X), exodus_core.lif(X, 0.9, threshold=0.7, reset="zero", min_membrane=-0.5)[0])


def test_modules_pass_every_argument_on():
    x = X.transpose(1, 2)
    options = {"threshold": 0.6, "surrogate": Sigmoid(3.0), "method": "slayer", "time_dim": -1}
    more = {"reset_by": 0.5, "decay_reset": True, "min_membrane": -0.4, "max_spikes": 3}
    nu = AlphaKernel(3.0, -1.0)
    for layer, function in (
        (nn.LIF(0.9, **options, **more), lambda leaf: exodus_core.lif(leaf, 0.9, **options, **more)),
        (nn.SRM(nu, **options), lambda leaf: exodus_core.srm(leaf, nu, **options)),
    ):
        results = []
        for call in (layer, lambda leaf, function=function: function(leaf)[0]):
            leaf = x.clone().requires_grad_()
            spikes = call(leaf)
            spikes.sum().backward()
            results.append((spikes, leaf.grad))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_if_module_has_no_leak():
    assert torch.equal(nn.IF(threshold=2.0)(X), exodus_core.lif(X, 1.0, threshold=2.0)[0])


def test_exp_leak_module_is_an_exponential_filter():
    assert relative_error(nn.ExpLeak(0.8)(X), exodus_core.filter(X, ExponentialKernel(0.8))) < 1e-6


def test_srm_module_filters_then_fires():
    layer = nn.SRM(AlphaKernel(3.0, -1.0), response_kernel=AlphaKernel(5.0), threshold=0.6)
    expected, _ = exodus_core.srm(exodus_core.filter(X, AlphaKernel(5.0)), AlphaKernel(3.0, -1.0), threshold=0.6)
    assert torch.equal(layer(X), expected)
    assert torch.equal(nn.SRM(AlphaKernel(3.0, -1.0))(X), exodus_core.srm(X, AlphaKernel(3.0, -1.0))[0])


def test_trainable_names_become_parameters_and_get_gradients():
    start = torch.ones(3)
    layer = nn.LIF(0.9, threshold=start, reset_by=0.8, trainable=("alpha", "threshold"))
    assert layer.threshold.data_ptr() != start.data_ptr()
    assert {name for name, _ in layer.named_parameters()} == {"alpha", "threshold"}
    layer(X).sum().backward()
    assert layer.alpha.grad.shape == ()
    assert layer.threshold.grad.shape == (3,)
    assert layer.alpha.grad != 0


def test_taps_train():
    layer = nn.SRM(
        torch.tensor([-1.0, -0.5]), response_kernel=torch.ones(3), trainable=("reset_kernel", "response_kernel")
    )
    layer(X).sum().backward()
    assert layer.reset_kernel.grad.shape == (2,)
    assert layer.response_kernel.grad.shape == (3,)


def test_tensors_that_do_not_train_are_buffers_and_travel_with_the_module():
    layer = nn.LIF(torch.full((3,), 0.9))
    assert list(layer.state_dict()) == ["alpha"]
    assert layer.double().alpha.dtype == torch.float64
    assert not list(layer.parameters())


@pytest.mark.parametrize("wrong", ["beta", "reset_by"])
def test_trainable_must_name_a_parameter_that_has_a_value(wrong):
    with pytest.raises(ValueError, match=f"trainable must name .*got {wrong}"):
        nn.LIF(0.9, trainable=(wrong,))
    with pytest.raises(ValueError, match="trainable must name"):
        nn.SRM(AlphaKernel(3.0), trainable=("reset_kernel",))
    with pytest.raises(TypeError, match="reset_kernel must be a tensor of taps"):
        nn.SRM("alpha")(X)


@pytest.mark.parametrize("time_dim", [1, -2])
@pytest.mark.parametrize("make", [nn.LIF, nn.ExpLeak])
def test_stateful_module_goes_on_where_it_ended(make, time_dim):
    x = torch.randn(8, 20, 50)  # many neurons: some spike at the seams
    whole, pieces = (make(0.9, stateful=True, time_dim=time_dim) for _ in range(2))
    joined = torch.cat([pieces(part) for part in x.split([7, 1, 0, 12], dim=1)], dim=1)
    assert torch.equal(joined, whole(x))
    whole.reset_state()
    assert torch.equal(joined, whole(x))


def test_state_carries_gradients_until_detached():
    layer = nn.LIF(0.9, stateful=True, reset="none")
    first, second = (X[:1, :5].clone().requires_grad_() for _ in range(2))
    layer(first)
    layer(second).sum().backward()
    assert first.grad.abs().sum() > 0
    first.grad = None
    layer.reset_state()
    layer(first)
    layer.detach_state()
    layer(second).sum().backward()
    assert first.grad is None


class Arctan:
    """Of another library."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LIF(2.0), r"alpha must be in \[0, 1\], got 2.0"),
        (lambda: nn.LIF("0.9"), "alpha must be a float or a float tensor, got str"),
        (lambda: nn.LIF(torch.tensor(1)), "alpha must be a float or a float tensor, got a tensor of torch.int64"),
        (lambda: nn.LIF(2.0, trainable=["alpha"]), r"alpha must be in \[0, 1\], got 2.0"),
        (lambda: nn.LIF(0.9, reset="hard"), "reset must be 'subtract', 'zero' or 'none', got 'hard'"),
        (lambda: nn.LIF(0.9, method="bppt"), "method must be one of exodus, slayer, bptt, got 'bppt'"),
        (lambda: nn.LIF(0.9, max_spikes=0), "max_spikes must be at least 1, got 0"),
        (
            lambda: nn.LIF(0.9, max_spikes=2, threshold=-1.0),
            "threshold must be positive where max_spikes > 1, got -1.0",
        ),
        (lambda: nn.LIF(0.9, reset_by=math.nan), "reset_by must be a number, got nan"),
        (lambda: nn.LIF(0.9, min_membrane="-1"), "min_membrane must be a float or a float tensor, got str"),
        (lambda: nn.LIF(0.9, time_dim=1.0), "time_dim must be an int, got float"),
        (lambda: nn.IF(threshold=None), "threshold must be a float or a float tensor, got NoneType"),
        (lambda: nn.LIF(0.9, surrogate=Arctan()), r"one of exodus_core.surrogate, got \S*test_nn.Arctan$"),
        (lambda: nn.LIF(0.9, surrogate=surrogate.Arctan), "got the class exodus_core.surrogate.Arctan"),
        (lambda: nn.ExpLeak(-0.1), r"alpha must be in \[0, 1\], got -0.1"),
        (lambda: nn.ExpLeak(0.1, time_dim=None), "time_dim must be an int, got NoneType"),
        (lambda: nn.SRM([-1.0]), "reset_kernel must be a tensor of taps or one of exodus_core.kernels, got list"),
        (lambda: nn.SRM(torch.ones(2), response_kernel=torch.ones(0)), "response_kernel must be a 1-d tensor"),
        (lambda: nn.SRM(torch.ones(2), threshold="1"), "threshold must be a float or a float tensor, got str"),
        (lambda: nn.SRM(torch.ones(2), method="x"), "method must be one of"),
        (lambda: nn.SRM(torch.ones(2), surrogate="arctan"), "got str"),
    ],
)
def test_arguments_that_can_never_fit_are_refused_when_the_module_is_made(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_state_of_another_batch_is_refused():
    layer = nn.LIF(0.9, stateful=True)
    layer.detach_state()
    layer(X)
    with pytest.raises(ValueError, match=r"shape of the kept state, \(2, 3\).*got \(1, 20, 3\); call reset_state"):
        layer(X[:1])


@pytest.mark.parametrize("make", [lambda: nn.LIF(0.9, stateful=True), lambda: nn.ExpLeak(0.9, stateful=True)])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_and_pickles_have_the_state_without_its_graph(make, copied):
    layer = make()
    layer(X.clone().requires_grad_())
    twin = copied(layer)
    assert not any(kept.requires_grad for kept in twin.state)
    assert torch.equal(twin(X), layer(X))


def test_repr_tells_the_parameters():
    layer = nn.LIF(0.9, threshold=torch.ones(3), trainable=("alpha",))
    assert repr(layer) == "LIF(alpha=0.9 (trainable), threshold=(3,) (tensor))"


def test_network_trains():
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(3, 16), nn.LIF(0.9), torch.nn.Linear(16, 2), nn.ExpLeak(0.9))
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    target = torch.randn(2, 20, 2)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.mse_loss(network(X), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
