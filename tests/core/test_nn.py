"""Modules: parameters that train, state that is kept, and the functions that they call."""

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
from exodus_core import AlphaKernel, ExponentialKernel, SlayerRefractory, SlayerResponse, network, nn, surrogate
from exodus_core.nn.stateful import StatefulNeuron
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


@pytest.mark.parametrize("time_dim", [1, -2])
@pytest.mark.parametrize("make", [nn.LIF, nn.ExpLeak])
def test_stateful_module_goes_on_where_it_ended(make: Callable[..., Any], time_dim: int) -> None:
    x = torch.randn(8, 20, 50)  # many neurons: some spike at the seams
    whole, pieces = (make(0.9, stateful=True, time_dim=time_dim) for _ in range(2))
    joined = torch.cat([pieces(part) for part in x.split([7, 1, 0, 12], dim=1)], dim=1)
    assert torch.equal(joined, whole(x))
    whole.reset_state()
    assert torch.equal(joined, whole(x))


@pytest.mark.parametrize("make", [nn.LIF, nn.ExpLeak])
def test_what_is_done_to_the_output_does_not_reach_the_state(make: Callable[..., Any]) -> None:
    changed, left = make(0.9, stateful=True), make(0.9, stateful=True)
    for x in (X[:, :5], X[:, 5:6], X[:, 6:]):
        with torch.no_grad():
            found = changed(x)
            assert torch.equal(found, left(x))
            found.zero_()


def test_the_state_is_as_large_as_one_step() -> None:
    layer = nn.IF(stateful=True)
    layer(torch.zeros(1, 100_000, 1))
    assert len(pickle.dumps(layer)) < 4000
    assert all(part.untyped_storage().nbytes() == 4 for part in copy.deepcopy(layer).state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.IF(stateful=True), torch.full((1, 513, 1), 2**-9)),
        (lambda: nn.LIF(0.999, stateful=True, max_spikes=2), torch.randn(3, 200, 4)),
        (lambda: nn.ExpLeak(0.999, stateful=True), torch.full((1, 600, 2), 0.01)),
    ],
)
def test_pieces_of_a_half_type_are_the_whole(make: Callable[..., Any], x: Tensor, dtype: torch.dtype) -> None:
    x = x.to(dtype)
    whole, pieces = make(), make()
    joined = torch.cat([pieces(x[:, t : t + 1]) for t in range(x.shape[1])], 1)
    assert joined.dtype == dtype
    assert torch.equal(joined, whole(x))
    assert torch.equal(joined, make()(x.float()).to(dtype))


def test_the_state_follows_the_layer_and_is_never_rounded() -> None:
    layer = nn.ExpLeak(0.9, stateful=True)
    layer(X)
    kept = layer.state[0]
    for conversion, dtype in (("half", torch.float32), ("bfloat16", torch.float32), ("double", torch.float64)):
        getattr(layer, conversion)()
        assert layer.state[0].dtype == dtype
        assert torch.equal(layer.state[0], kept.to(dtype))
    layer.to("meta")
    assert layer.state[0].is_meta
    with pytest.raises(ValueError, match="x must be on the device of the kept state, meta, got cpu; move the layer"):
        layer(X)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_stateful_layer_is_not_recomputed(use_reentrant: bool) -> None:
    layer = nn.IF(stateful=True)
    x = torch.tensor([[[1.5], [0.0]]], requires_grad=True)
    spikes = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=use_reentrant)
    kept = layer.state
    with pytest.raises(RuntimeError, match="a stateful layer must not be recomputed in a backward pass"):
        spikes.sum().backward()
    assert layer.state is kept


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_other_layers_are_recomputed(use_reentrant: bool) -> None:
    x = torch.tensor([[[1.5], [0.0]]], requires_grad=True)
    torch.utils.checkpoint.checkpoint(nn.IF(), x, use_reentrant=use_reentrant).sum().backward()
    torch.testing.assert_close(x.grad.flatten(), torch.tensor([0.8452, 0.6065]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("shape", "time_dim"), [((1, 4, 3), 1), ((4, 2, 3), 0), ((2, 4, 3), 1)])
@pytest.mark.parametrize("make", [nn.LIF, nn.ExpLeak])
def test_training_goes_on_from_a_state_of_inference_mode(
    make: Callable[..., Any], shape: tuple[int, ...], time_dim: int
) -> None:
    layer, other = (make(0.9, stateful=True, time_dim=time_dim) for _ in range(2))
    x = torch.randn(shape)
    with torch.inference_mode():
        layer(x)
    other(x)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    for each, leaf in zip((layer, other), leaves, strict=True):
        each(leaf).sum().backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)


def test_state_carries_gradients_until_detached() -> None:
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
        (lambda: nn.LIF(0.9, reset="hard"), "reset must be one of subtract, zero, none, got 'hard'"),
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


OPTIMISERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 1.0),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.3),
    "fused adam": lambda parameters: torch.optim.Adam(parameters, 0.3, fused=True),
}
LEARNT = {
    "lif": (lambda: nn.LIF(0.95, trainable=("alpha", "threshold")), {"alpha": (0, 1), "threshold": (1e-3, math.inf)}),
    "per neuron": (lambda: nn.LIF(torch.full((3,), 0.95), trainable="alpha"), {"alpha": (0, 1)}),
    "many spikes": (lambda: nn.LIF(0.9, max_spikes=9, trainable="threshold"), {"threshold": (1e-3, math.inf)}),
    "exp_leak": (lambda: nn.ExpLeak(0.999, trainable="alpha"), {"alpha": (0, 1)}),
    "srm": (lambda: nn.SRM(AlphaKernel(3.0, -1.0), trainable="threshold"), {"threshold": (1e-3, math.inf)}),
}


@pytest.mark.parametrize(
    "copied", [lambda layer: layer, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize(("make", "ranges"), LEARNT.values(), ids=LEARNT)
def test_learnt_parameters_stay_in_their_ranges(
    make: Callable[..., Any], ranges: Any, optimiser: Any, copied: Callable[[Any], Any]
) -> None:
    for sign in (-1, 1):
        layer = copied(make())
        steps = optimiser(layer.parameters())
        moved = False

        def loss(layer: Any = layer, steps: Any = steps, sign: float = sign) -> Any:
            steps.zero_grad()
            # The second term pulls with all its might, whatever the neurons do.
            value = layer(X).sum() + sign * 100 * sum(parameter.sum() for parameter in layer.parameters())
            value.backward()
            return value

        for _ in range(5):
            before = {name: getattr(layer, name).detach().clone() for name in ranges}
            steps.step(loss)
            for name, (low, high) in ranges.items():
                value = getattr(layer, name).detach()
                assert ((value >= low) & (value <= high)).all()
                moved |= not torch.equal(value, before[name])
        assert moved


def test_a_learnt_decay_comes_back_from_the_end_of_its_range() -> None:
    layer = nn.ExpLeak(1.0, trainable="alpha")
    layer(X).square().sum().backward()
    assert layer.alpha.grad > 0
    torch.optim.SGD(layer.parameters(), 0.1 / layer.alpha.grad.item()).step()
    assert layer.alpha.item() == pytest.approx(0.9)


def test_an_optimiser_changes_no_parameter_of_another() -> None:
    ours, others = nn.LIF(0.9, trainable="alpha"), nn.LIF(0.9, trainable="alpha")
    with torch.no_grad():
        others.alpha.fill_(1.5)
    spikes = others(X)  # keeps the parameter for the backward pass
    ours(X).sum().backward()
    torch.optim.SGD(ours.parameters(), 1.0).step()
    spikes.sum().backward()
    assert others.alpha == 1.5
    others.constrain()
    assert others.alpha == 1.0


def test_a_threshold_to_be_trained_must_be_positive() -> None:
    for threshold in (0.0, torch.tensor([1.0, -1.0])):
        with pytest.raises(ValueError, match="threshold must be positive, got"):
            nn.LIF(0.9, threshold=threshold, trainable="threshold")


@pytest.mark.parametrize("step", ["adam", "sgd"])
def test_the_readme_network_trains_at_a_high_rate(step: Any) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(10, 32, bias=False),
        nn.LIF(0.95, surrogate=surrogate.Arctan(), trainable="alpha"),
        torch.nn.Linear(32, 4, bias=False),
        nn.ExpLeak(0.9, trainable="alpha"),
    )
    x = torch.randn(4, 100, 10)
    optimiser = (
        torch.optim.Adam(network.parameters(), 5e-2) if step == "adam" else torch.optim.SGD(network.parameters(), 5e-2)
    )
    for _ in range(30):
        optimiser.zero_grad()
        readout = network(x)
        (-readout.max(dim=1).values.sum()).backward()
        optimiser.step()
        assert all(0 <= network[i].alpha <= 1 for i in (1, 3))
    assert readout.isfinite().all()


@pytest.mark.parametrize(
    "make", [lambda **o: nn.LIF(0.9, **o), lambda **o: nn.ExpLeak(0.9, **o), lambda **o: nn.SRM(torch.ones(2), **o)]
)
def test_neurons_are_not_taken_for_time(make: Callable[..., Any]) -> None:
    with pytest.raises(
        ValueError, match=r"x must be of shape \(batch, time, neurons...\) .*got \(2, 3\); pass x.unsqueeze"
    ):
        make()(X[:, 0])
    assert torch.equal(make(time_dim=-1)(X[0]), make(time_dim=-1)(X[:1])[0])
    assert make(time_dim=0)(X[0]).shape == X[0].shape


def test_state_of_another_batch_is_refused() -> None:
    layer = nn.LIF(0.9, stateful=True)
    layer.detach_state()
    layer(X)
    with pytest.raises(ValueError, match=r"shape of the kept state, \(2, 3\).*got \(1, 20, 3\); call reset_state"):
        layer(X[:1])


@pytest.mark.parametrize("make", [lambda: nn.LIF(0.9, stateful=True), lambda: nn.ExpLeak(0.9, stateful=True)])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_and_pickles_have_the_state_without_its_graph(
    make: Callable[..., Any], copied: Callable[[Any], Any]
) -> None:
    layer = make()
    layer(X.clone().requires_grad_())
    twin = copied(layer)
    assert not any(kept.requires_grad for kept in twin.state)
    assert torch.equal(twin(X), layer(X))


def test_repr_tells_the_parameters() -> None:
    layer = nn.LIF(0.9, threshold=torch.ones(3), trainable=("alpha",))
    assert repr(layer) == "LIF(alpha=0.9 (trainable), threshold=(3,) (tensor))"


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


def test_the_parameters_of_neurons_can_be_kept_from_weight_decay() -> None:
    hidden = nn.LIF(0.9, threshold=2.0, trainable=("alpha", "threshold"))
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 3), hidden, torch.nn.Sequential(hidden, nn.ExpLeak(0.5, trainable="alpha"))
    )
    neurons = list(nn.neuron_parameters(net))
    assert [id(p) for p in neurons] == [id(p) for p in (hidden.alpha, hidden.threshold, net[2][1].alpha)]
    weights = [p for p in net.parameters() if all(p is not neuron for neuron in neurons)]
    optimizer = torch.optim.AdamW(
        [{"params": weights}, {"params": neurons, "weight_decay": 0.0}], lr=0.1, weight_decay=0.5
    )
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    before = net[0].weight.clone()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)
    assert [round(p.item(), 6) for p in neurons] == [0.9, 2.0, 0.5]


@pytest.mark.filterwarnings("ignore")  # torch's own, of compiling
@pytest.mark.parametrize(("backend", "use_reentrant"), [("eager", True), ("aot_eager", True), ("aot_eager", False)])
def test_a_compiled_stateful_layer_is_not_recomputed(backend: str, use_reentrant: bool) -> None:
    layer = nn.IF(stateful=True)
    compiled = torch.compile(layer, backend=backend)
    x = torch.tensor([[[1.5], [0.0]]], requires_grad=True)
    calls: list[Callable[[Tensor], Any]] = [
        compiled,
        lambda x: torch.utils.checkpoint.checkpoint(compiled, x, use_reentrant=use_reentrant),
    ]
    for call in calls:
        layer.state = (torch.full((1, 1), 0.6), torch.zeros(1, 1))
        outputs = call(x)
    with pytest.raises(RuntimeError, match="a stateful layer must not be recomputed"):
        outputs.sum().backward()


@pytest.mark.filterwarnings("ignore")  # torch's own, of compiling
def test_a_compiled_layer_keeps_no_more_than_a_step() -> None:
    layer = nn.LIF(0.9, stateful=True, time_dim=0)
    with torch.no_grad():
        torch.compile(layer)(torch.zeros(500, 4, 8))
    assert [part.untyped_storage().nbytes() for part in layer.state] == [128, 128]


def test_slayers_kernels_are_in_the_state_dict() -> None:
    layer = nn.SRM(SlayerRefractory(9.0, -5.0), response_kernel=SlayerResponse(2.0))
    layer.load_state_dict(nn.SRM(SlayerRefractory(3.0, -1.0), response_kernel=SlayerResponse(4.0)).state_dict())
    assert (layer.reset_kernel, layer.response_kernel) == (SlayerRefractory(3.0, -1.0), SlayerResponse(4.0))


def overshoot(module: Any, parameter: Tensor, optimizer: Any = None) -> None:
    optimizer = optimizer or torch.optim.SGD(module.parameters(), lr=0.1)
    parameter.grad = torch.full_like(parameter, -10.0)
    optimizer.step()


@pytest.mark.parametrize("copied", [False, True])
def test_parameters_that_are_set_later_stay_in_range_too(copied: bool) -> None:
    layer = nn.LIF(0.9)
    layer.alpha = torch.nn.Parameter(torch.tensor(0.999))
    layer = copy.deepcopy(layer) if copied else layer
    overshoot(layer, layer.alpha)
    assert layer.alpha.item() == 1


@pytest.mark.parametrize("copied", [False, True])
def test_networks_from_descriptions_stay_in_range_in_a_loop_of_ones_own(copied: bool) -> None:
    lif = {"kind": "lif", "alpha": 0.999, "trainable": ["alpha"]}
    net = network.build([{"kind": "linear", "in_features": 3, "out_features": 3}, lif])
    net = copy.deepcopy(net) if copied else net
    overshoot(net, net.get_parameter("1.alpha"))
    assert net.get_parameter("1.alpha").item() == 1
    assert [id(p) for p in nn.neuron_parameters(torch.nn.Sequential(net))] == [id(net.get_parameter("1.alpha"))]


def test_an_optimiser_does_not_write_to_a_parameter_that_it_left_alone() -> None:
    layer, other = nn.LIF(0.9, trainable=["alpha"]), torch.nn.Linear(3, 3)
    optimizer = torch.optim.SGD([*layer.parameters(), *other.parameters()], 0.1)
    loss = layer(torch.rand(2, 4, 3)).sum()
    overshoot(other, other.bias, optimizer)
    loss.backward()
    assert layer.alpha.grad is not None


def test_a_threshold_to_be_trained_starts_within_its_range() -> None:
    with pytest.raises(ValueError, match=r"threshold must be at least 0.001 if it is trained, got 0.0005"):
        nn.LIF(0.9, threshold=torch.tensor([1.0, 5e-4]), trainable=["threshold"])


@pytest.mark.parametrize("name", nn.__all__)
def test_pickles_find_every_class_by_the_name_of_the_package(name: str) -> None:
    assert pickle.loads(f"cexodus_core.nn\n{name}\n.".encode()) is getattr(nn, name)


class Adapting(StatefulNeuron):
    """A neuron with a state of three tensors: u[t] = u[t-1] / 2 + x[t], and sums of x and of u."""

    state_names = ("membrane", "total", "sum")

    def forward(self, x: Tensor) -> Tensor:
        def go_on(state: Any, time_dim: int) -> Any:
            u, total, sums = (torch.zeros_like(x.select(time_dim, 0)),) * 3 if state is None else state
            outputs = []
            for x_t in x.unbind(time_dim):
                u, total = u / 2 + x_t, total + x_t
                sums = sums + u
                outputs.append(u * total + sums)
            return torch.stack(outputs, time_dim), (u, total, sums)

        return self._carried(x, go_on)


def test_a_neuron_may_have_a_state_of_any_number_of_tensors() -> None:
    net = torch.nn.Sequential(nn.LIF(0.9), Adapting((), 1, True), nn.ExpLeak(0.5, stateful=True))
    whole, pieces = copy.deepcopy(net), nn.TimeCheckpoint(copy.deepcopy(net), 6)
    results = []
    for module in (whole, pieces):
        leaf = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        outputs = module(leaf)
        outputs = torch.cat([outputs, module(leaf)], 1)
        outputs.square().sum().backward()
        results.append((outputs.detach(), leaf.grad))
    assert all(relative_error(*pair) < 1e-6 for pair in zip(*results, strict=True))
    layer = whole[1]
    assert {name: part.shape for name, part in layer.named_state().items()} == dict.fromkeys(
        ("membrane", "total", "sum"), (2, 3)
    )
    layer.half().detach_state()
    assert all(part.dtype == torch.float32 and not part.requires_grad for part in layer.state)
    layer.reset_state()
    assert layer.named_state() == {}
