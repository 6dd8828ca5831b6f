"""The state of neuron layers: kept between calls, copied, converted, cut from its graph, never recomputed."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from assertions import relative_error
from exodus_core import nn
from exodus_core.nn.stateful import StatefulNeuron

X = torch.linspace(-1, 2, 2 * 20 * 3).view(2, 20, 3)


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

        outputs: Tensor = self._carried(x, go_on)
        return outputs


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


NET = [
    lambda: nn.LIF(0.9, stateful=True),
    lambda: nn.IF(stateful=True),
    lambda: nn.ExpLeak(0.9, stateful=True),
    lambda: nn.Recurrent(nn.LIF(0.9, stateful=True), torch.nn.Linear(3, 3)),
]


@pytest.mark.parametrize("make", NET)
def test_reset_and_detach_reach_every_layer_of_a_tree(make: Callable[..., Any]) -> None:
    net = torch.nn.ModuleDict({"a": torch.nn.Sequential(torch.nn.Linear(3, 3), nn.TimeCheckpoint(make(), 5))})
    x = X.clone().requires_grad_()
    first = net["a"](x)
    layer: Any = next(part for part in net.modules() if hasattr(part, "state"))
    assert all(part.requires_grad for part in layer.state)
    kept = [part.clone() for part in layer.state]
    nn.detach(net)
    assert all(torch.equal(*pair) and not pair[0].requires_grad for pair in zip(layer.state, kept, strict=True))
    net["a"](X)
    nn.reset(net)
    assert layer.named_state() == {}
    assert torch.equal(net["a"](X), first)


class Counting(torch.nn.Module):
    """A layer of one's own with a state."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def reset_state(self) -> None:
        self.calls.append("reset")

    def detach_state(self) -> None:
        self.calls.append("detach")


def test_reset_and_detach_call_layers_of_ones_own() -> None:
    layer = Counting()
    net = torch.nn.Sequential(torch.nn.Linear(1, 1), layer)
    nn.reset(net)
    nn.detach(net)
    assert layer.calls == ["reset", "detach"]


@pytest.mark.parametrize("function", [nn.reset, nn.detach, nn.constrain, nn.bounded])
def test_functions_of_a_tree_take_modules(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got list"):
        function([nn.IF(stateful=True)])


@pytest.mark.parametrize("make", NET[:3])
def test_steps_that_a_stateful_layer_takes_one_by_one_are_the_sequence(make: Callable[..., Any]) -> None:
    layer, whole = make(), make()
    joined = torch.cat([layer(X[:, t].unsqueeze(1)) for t in range(X.shape[1])], 1)
    assert torch.equal(joined, whole(X))


@pytest.mark.parametrize("transform", [torch.vmap, lambda f: torch.func.grad(lambda x: f(x).sum())])
def test_a_state_does_not_outlive_a_transform(transform: Callable[..., Any]) -> None:
    layer = nn.LIF(0.9, stateful=True)
    with pytest.raises(RuntimeError, match=r"a stateful layer must not be called within a transform of torch\.func"):
        transform(layer)(X[:, None].expand(2, 2, 20, 3))
    assert layer.state is None
