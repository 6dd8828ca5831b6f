"""Modules: the functions that they call, their parameters, what is saved and shown of them."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

import exodus_core
from assertions import relative_error
from exodus_core import AlphaKernel, ExponentialKernel, SlayerRefractory, SlayerResponse, nn, surrogate
from exodus_core.surrogate import Sigmoid

X = torch.linspace(-1, 2, 2 * 20 * 3).view(2, 20, 3)


def test_lif_module_is_the_function() -> None:
    layer = nn.LIF(0.9, threshold=0.7, reset="zero", min_membrane=-0.5)
    assert torch.equal(layer(X), exodus_core.lif(X, 0.9, threshold=0.7, reset="zero", min_membrane=-0.5)[0])


def test_modules_pass_every_argument_on() -> None:
    x = X.transpose(1, 2)
    options = {"threshold": 0.6, "surrogate": Sigmoid(3.0), "method": "slayer", "time_dim": -1}
    more = {"reset_by": 0.5, "decay_reset": True, "min_membrane": -0.4, "max_spikes": 3}
    nu = AlphaKernel(3.0, -1.0)
    for layer, function in (
        (nn.LIF(0.9, **options, **more), lambda leaf: exodus_core.lif(leaf, 0.9, **options, **more)),
        (nn.SRM(nu, **options), lambda leaf: exodus_core.srm(leaf, nu, **options)),
    ):
        results = []
        calls: list[Callable[[Tensor], Any]] = [layer, lambda leaf, function=function: function(leaf)[0]]  # type: ignore[misc]
        for call in calls:
            leaf = x.clone().requires_grad_()
            spikes = call(leaf)
            spikes.sum().backward()
            results.append((spikes, leaf.grad))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_if_module_has_no_leak() -> None:
    assert torch.equal(nn.IF(threshold=2.0)(X), exodus_core.lif(X, 1.0, threshold=2.0)[0])


def test_exp_leak_module_is_an_exponential_filter() -> None:
    assert relative_error(nn.ExpLeak(0.8)(X), exodus_core.filter(X, ExponentialKernel(0.8))) < 1e-6


def test_srm_module_filters_then_fires() -> None:
    layer = nn.SRM(AlphaKernel(3.0, -1.0), response_kernel=AlphaKernel(5.0), threshold=0.6)
    expected, _ = exodus_core.srm(exodus_core.filter(X, AlphaKernel(5.0)), AlphaKernel(3.0, -1.0), threshold=0.6)
    assert torch.equal(layer(X), expected)
    assert torch.equal(nn.SRM(AlphaKernel(3.0, -1.0))(X), exodus_core.srm(X, AlphaKernel(3.0, -1.0))[0])


def test_trainable_names_become_parameters_and_get_gradients() -> None:
    start = torch.ones(3)
    layer = nn.LIF(0.9, threshold=start, reset_by=0.8, trainable=("alpha", "threshold"))
    assert layer.threshold.data_ptr() != start.data_ptr()
    assert {name for name, _ in layer.named_parameters()} == {"alpha", "threshold"}
    layer(X).sum().backward()
    assert layer.alpha.grad.shape == ()
    assert layer.threshold.grad.shape == (3,)
    assert layer.alpha.grad != 0


def test_taps_train() -> None:
    layer = nn.SRM(
        torch.tensor([-1.0, -0.5]), response_kernel=torch.ones(3), trainable=("reset_kernel", "response_kernel")
    )
    layer(X).sum().backward()
    assert layer.reset_kernel.grad.shape == (2,)
    assert layer.response_kernel.grad.shape == (3,)


def test_tensors_that_do_not_train_are_buffers_and_travel_with_the_module() -> None:
    layer = nn.LIF(torch.full((3,), 0.9))
    assert [name for name, _ in layer.named_buffers()] == ["alpha"]
    assert layer.double().alpha.dtype == torch.float64
    assert not list(layer.parameters())


@pytest.mark.parametrize("trainable", [(), ("alpha", "threshold")])
def test_tensors_are_copied(trainable: Any) -> None:
    alpha = torch.tensor(0.9).expand(3)
    first, second = (nn.LIF(alpha, threshold=alpha, trainable=trainable) for _ in range(2))
    first.load_state_dict({"alpha": torch.zeros(3), "threshold": torch.full((3,), 0.5)})
    assert first.alpha.tolist() == [0.0] * 3
    assert first.threshold.tolist() == [0.5] * 3
    for untouched in (alpha, second.alpha, second.threshold):
        assert torch.equal(untouched, torch.full((3,), 0.9))
    taps = torch.ones(4)
    nn.SRM(taps[:2], trainable=trainable[2:]).reset_kernel.data.zero_()
    assert torch.equal(taps, torch.ones(4))


@pytest.mark.parametrize(
    "start", [torch.full((3,), 0.5, requires_grad=True), torch.zeros(3, requires_grad=True).sigmoid()]
)
def test_a_tensor_that_requires_a_gradient_is_trained_or_refused(start: Any) -> None:
    with pytest.raises(
        ValueError, match=r"alpha must be named in trainable, or without a gradient.*pass alpha\.detach\(\)"
    ):
        nn.LIF(start)
    with pytest.raises(ValueError, match="response_kernel must be named in trainable"):
        nn.SRM(torch.ones(2), response_kernel=start)
    layer = copy.deepcopy(nn.LIF(start, trainable="alpha"))
    assert torch.equal(layer.alpha, start)
    assert layer.alpha.is_leaf


def test_a_layer_whose_tensor_was_set_within_a_graph_can_be_copied() -> None:
    layer = nn.LIF(torch.full((3,), 0.5))
    weight = torch.zeros(3, requires_grad=True)
    layer.alpha = weight.sigmoid()
    layer(X).sum().backward()
    assert weight.grad.abs().sum() > 0
    assert torch.equal(copy.deepcopy(layer).alpha, torch.full((3,), 0.5))


@pytest.mark.parametrize("wrong", ["beta", "reset_by"])
def test_trainable_must_name_a_parameter_that_has_a_value(wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"trainable must be names .*got {wrong}"):
        nn.LIF(0.9, trainable=(wrong,))
    with pytest.raises(ValueError, match="trainable must be names"):
        nn.SRM(AlphaKernel(3.0), trainable=("reset_kernel",))
    with pytest.raises(TypeError, match="reset_kernel must be a tensor of taps"):
        nn.SRM("alpha")(X)


class Arctan:
    """Of another library."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LIF(2.0), r"alpha must be in \[0, 1\], got 2.0"),
        (lambda: nn.LIF("0.9"), "alpha must be a float or a float tensor, got str"),
        (lambda: nn.LIF(torch.tensor(1)), "alpha must be a float or a float tensor, got a tensor of torch.int64"),
        (lambda: nn.LIF(2.0, trainable=["alpha"]), r"alpha must be in \[0, 1\], got 2.0"),
        (lambda: nn.LIF(0.9, reset="hard"), "reset must be one of subtract, zero, none, value, got 'hard'"),
        (lambda: nn.LIF(0.9, method="bppt"), "method must be one of exodus, slayer, bptt, got 'bppt'"),
        (lambda: nn.LIF(0.9, max_spikes=0), "max_spikes must be at least 1, got 0"),
        (
            lambda: nn.LIF(0.9, max_spikes=2, threshold=-1.0),
            "threshold must be positive if max_spikes > 1, got -1.0",
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
        (lambda: nn.LIF(torch.tensor([0.5, 1.5])), r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: nn.LIF(torch.tensor(-0.5), trainable="alpha"), r"alpha must be in \[0, 1\], got -0.5"),
        (lambda: nn.ExpLeak(torch.tensor(math.nan)), "alpha must be a number, got nan"),
        (lambda: nn.LIF(0.9, threshold=torch.tensor(math.nan)), "threshold must be a number, got nan"),
        (lambda: nn.LIF(0.9, threshold=torch.zeros(3), max_spikes=2), "threshold must be positive, got 0.0"),
        (lambda: nn.SRM(torch.tensor([math.nan])), "reset_kernel must be a number, got nan"),
        (lambda: nn.LIF(torch.rand(3).to_sparse()), "alpha must be a dense tensor, got one of layout torch.sparse_coo"),
    ],
)
def test_arguments_that_can_never_fit_are_refused_when_the_module_is_made(
    make: Callable[..., Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


NUMBERS = {
    "lif": (
        lambda: nn.LIF(0.9, threshold=0.7, reset_by=0.6, min_membrane=-0.5),
        lambda: nn.LIF(0.5, reset_by=1.0, min_membrane=-2.0),
    ),
    "if": (lambda: nn.IF(threshold=0.7), lambda: nn.IF()),
    "exp_leak": (lambda: nn.ExpLeak(0.9), lambda: nn.ExpLeak(0.5)),
    "srm": (
        lambda: nn.SRM(
            AlphaKernel(3.0, -1.0), response_kernel=ExponentialKernel((0.9, 0.5), (1.0, -1.0)), threshold=0.6
        ),
        lambda: nn.SRM(AlphaKernel(5), response_kernel=ExponentialKernel((0.1, 0.2), (1, 1))),
    ),
    "learnt into fixed": (lambda: nn.LIF(0.75, trainable="alpha"), lambda: nn.LIF(0.5)),
    "fixed into learnt": (lambda: nn.LIF(0.75), lambda: nn.LIF(0.5, trainable="alpha")),
}


@pytest.mark.parametrize(("make", "make_other"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_are_in_the_state_dict(make: Callable[..., Any], make_other: Any) -> None:
    saved, loaded = (torch.nn.Sequential(torch.nn.Linear(3, 3), layer()) for layer in (make, make_other))
    with io.BytesIO() as file:
        torch.save(saved.state_dict(), file)
        file.seek(0)
        loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loaded(X), saved(X))
    assert all(isinstance(value, torch.Tensor) for value in saved.state_dict().values())


def test_numbers_keep_their_precision_and_device_in_the_state_dict() -> None:
    with torch.device("meta"):
        state = nn.LIF(0.1).half().state_dict()
    assert {name: value.item() for name, value in state.items()} == {"alpha": 0.1, "threshold": 1.0}
    assert "alpha" not in nn.IF().state_dict()


def test_a_state_dict_from_before_numbers_were_in_it_is_loaded() -> None:
    state = nn.LIF(0.9).state_dict()
    del state["alpha"], state["threshold"]
    layer = nn.LIF(0.5)
    with pytest.raises(RuntimeError, match=r'Missing key.* "alpha", "threshold"'):
        layer.load_state_dict(state)
    state._metadata[""]["version"] = 1  # type: ignore[attr-defined]
    layer.load_state_dict(state)
    layer.load_state_dict({})
    assert layer.alpha == 0.5


@pytest.mark.parametrize(
    ("make", "state", "message"),
    [
        (lambda: nn.LIF(0.5), {"alpha": torch.tensor(1.5)}, r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: nn.LIF(0.5), {"threshold": torch.tensor(math.nan)}, "threshold must be a number, got nan"),
        (lambda: nn.LIF(0.5), {"alpha": torch.ones(3)}, r"alpha must be of 1 elements, got shape \(3,\)"),
        (lambda: nn.LIF(0.5), {"reset_by": torch.ones(())}, 'Unexpected key.* "reset_by"'),
        (lambda: nn.IF(), {"alpha": torch.ones(())}, 'Unexpected key.* "alpha"'),
        (lambda: nn.SRM(AlphaKernel(3.0)), {"reset_kernel.tau": torch.zeros(())}, "tau must be positive, got 0.0"),
        (lambda: nn.SRM(AlphaKernel(3.0)), {"reset_kernel.alpha": torch.zeros(())}, "Unexpected key"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(make: Callable[..., Any], state: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        make().load_state_dict(state)


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: nn.LIF(0.9, **o),
        nn.IF,
        lambda **o: nn.ExpLeak(0.9, **o),
        lambda **o: nn.SRM(torch.ones(2), **o),
    ],
)
def test_neurons_are_not_taken_for_time(make: Callable[..., Any]) -> None:
    with pytest.raises(
        ValueError, match=r"x must be of shape \(batch, time, neurons...\) .*got \(2, 3\); pass x.unsqueeze"
    ):
        make()(X[:, 0])
    assert torch.equal(make(time_dim=-1)(X[0]), make(time_dim=-1)(X[:1])[0])
    assert make(time_dim=0)(X[0]).shape == X[0].shape


SHOWN = {
    "LIF(alpha=0.9 (trainable), threshold=(3,) (tensor), reset='subtract', "
    "surrogate=Exponential(slope=1.0, scale=1.0), method='exodus')": lambda: nn.LIF(
        0.9, threshold=torch.ones(3), trainable=("alpha",)
    ),
    "IF(threshold=1.0, reset='subtract', decay_reset=True, max_spikes=2, surrogate=Boxcar(slope=1.0, scale=1.0), "
    "method='bptt', return_membrane=True, stateful=True, time_dim=0)": lambda: nn.IF(
        decay_reset=True,
        max_spikes=2,
        surrogate=surrogate.Boxcar(1.0),
        method="bptt",
        return_membrane=True,
        stateful=True,
        time_dim=0,
    ),
    "ExpLeak(alpha=0.9, stateful=True)": lambda: nn.ExpLeak(0.9, stateful=True),
    "SRM(threshold=1.0, reset_kernel=(2,) (tensor), response_kernel=AlphaKernel(tau=3.0, amplitude=1.0), "
    "surrogate=Exponential(slope=1.0, scale=1.0), method='exodus')": lambda: nn.SRM(
        torch.ones(2), response_kernel=AlphaKernel(3.0)
    ),
    "Steps(\n  (module): Flatten(start_dim=1, end_dim=-1)\n)": lambda: nn.Steps(torch.nn.Flatten()),
}


@pytest.mark.parametrize(("shown", "make"), SHOWN.items())
def test_repr_tells_the_neuron(shown: str, make: Callable[..., Any]) -> None:
    assert repr(make()) == shown


@pytest.mark.parametrize("time_dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda **o: nn.LIF(0.9, **o), nn.IF])
def test_the_membrane_is_returned_beside_the_spikes(make: Callable[..., Any], dtype: Any, time_dim: int) -> None:
    x = X.to(dtype)
    alpha = 1.0 if make is nn.IF else 0.9
    expected = exodus_core.lif(x, alpha, time_dim=time_dim)
    found = make(return_membrane=True, time_dim=time_dim)(x)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    kept = make(return_membrane=True, time_dim=time_dim, stateful=True)(x)
    alone = exodus_core.lif(x.float(), alpha, time_dim=time_dim)
    assert all(torch.equal(ours, theirs.to(dtype)) for ours, theirs in zip(kept, alone, strict=True))


def test_the_membrane_of_srm_is_returned_beside_the_spikes() -> None:
    found = nn.SRM(AlphaKernel(3.0, -1.0), return_membrane=True)(X)
    expected = exodus_core.srm(X, AlphaKernel(3.0, -1.0))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_the_membrane_in_pieces_is_that_of_the_whole() -> None:
    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = nn.LIF(0.9, return_membrane=True)

        def forward(self, x: Tensor) -> Tensor:
            spikes, membrane = self.neuron(x)
            total: Tensor = 2 * spikes + membrane
            return total

    assert torch.equal(nn.TimeCheckpoint(Sum(), 6)(X), Sum()(X))
    with pytest.raises(TypeError, match="module must be one that returns a tensor, got one that returns tuple"):
        nn.TimeCheckpoint(nn.LIF(0.9, return_membrane=True), 6)(X)


def test_pickles_from_before_the_membrane_was_returned_are_loaded() -> None:
    for layer in (nn.LIF(0.9), nn.SRM(AlphaKernel(3.0))):
        del layer.return_membrane
        assert torch.equal(pickle.loads(pickle.dumps(layer))(X), layer(X))


def test_network_trains() -> None:
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


def test_slayers_kernels_are_in_the_state_dict() -> None:
    layer = nn.SRM(SlayerRefractory(9.0, -5.0), response_kernel=SlayerResponse(2.0))
    layer.load_state_dict(nn.SRM(SlayerRefractory(3.0, -1.0), response_kernel=SlayerResponse(4.0)).state_dict())
    assert (layer.reset_kernel, layer.response_kernel) == (SlayerRefractory(3.0, -1.0), SlayerResponse(4.0))


@pytest.mark.parametrize("name", nn.__all__)
def test_pickles_find_every_class_by_the_name_of_the_package(name: str) -> None:
    assert pickle.loads(f"cexodus_core.nn\n{name}\n.".encode()) is getattr(nn, name)
