"""Recurrent: the fast loop and the plain one are the same neurons, stateful, in pieces, on any axis."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from assertions import relative_error
from exodus_core import network, nn, surrogate
from exodus_core.nn import recurrent

N = 6
LINEARS = {
    "torch": lambda: torch.nn.Linear(N, N),
    "no bias": lambda: torch.nn.Linear(N, N, bias=False),
    "exodus": lambda: nn.Linear(N, N),
}
NEURONS: dict[str, Callable[..., Any]] = {
    "lif": lambda **o: nn.LIF(0.9, threshold=0.7, **o),
    "if": nn.IF,
    "trained": lambda **o: nn.LIF(torch.rand(N), threshold=torch.ones(N), trainable=("alpha", "threshold"), **o),
    "zero": lambda **o: nn.LIF(0.8, reset="zero", surrogate=surrogate.Arctan(), **o),
    "lower bound": lambda **o: nn.LIF(0.8, decay_reset=True, reset_by=0.6, min_membrane=-0.3, max_spikes=3, **o),
    "bound after the reset": lambda **o: nn.LIF(0.8, reset_by=0.6, min_membrane=-0.3, bound_after_reset=True, **o),
    "cuba": lambda **o: nn.CubaLIF(0.9, 0.6, trainable=("alpha", "synapse_alpha"), **o),
    "adaptive": lambda **o: nn.ALIF(0.9, 0.8, adapt_threshold=0.2, adapt_current=0.1, trainable="adapt_alpha", **o),
    "refractory": lambda **o: nn.LIF(0.9, reset="value", reset_to=0.2, refractory=2, **o),
    "detached": lambda **o: nn.LIF(0.9, detach_reset=True, **o),
    "slayer": lambda **o: nn.LIF(0.9, method="slayer", **o),
    "bptt": lambda **o: nn.LIF(0.9, method="bptt", **o),
}


def signal(time_dim: int = 1, dtype: torch.dtype = torch.float64, steps: int = 12) -> Tensor:
    x = torch.randn(3, steps, N, dtype=dtype, generator=torch.Generator().manual_seed(3))
    return (x + 0.3).movedim(1, time_dim)


def gradients(module: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of the parameters, of two calls one after the other."""
    leaf = x.clone().requires_grad_()
    outputs = [module(leaf), module(leaf.flip(0))]
    loss = torch.zeros((), dtype=x.dtype)
    for i, y in enumerate(outputs):
        weights = torch.linspace(0.5, 1.5 + i, y.numel(), dtype=y.dtype).view_as(y)
        loss = loss + (y * weights).sum()
    loss.backward()
    return [*(y.detach() for y in outputs), leaf.grad, *(p.grad for p in module.parameters())]


def fast_and_plain(module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> Any:
    """The results of run for copies of a module, in the fast loop and in the plain one."""
    taken = []
    dense = nn.Recurrent._dense

    def counted(*arguments: Any) -> Any:
        taken.append(1)
        return dense(*arguments)

    monkeypatch.setattr(nn.Recurrent, "_dense", counted)
    fast = run(copy.deepcopy(module))
    assert taken
    monkeypatch.setattr(recurrent, "_is_dense", lambda *_: False)
    count = len(taken)
    plain = run(copy.deepcopy(module))
    assert len(taken) == count
    return fast, plain


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("linear", LINEARS.values(), ids=LINEARS)
@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_the_fast_loop_is_the_plain_one(
    neuron: Any, linear: Any, stateful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nn.Recurrent(neuron(stateful=stateful), linear()).double()
    fast, plain = fast_and_plain(module, monkeypatch, lambda module: gradients(module, signal()))
    assert fast[0].sum() > 0
    assert fast[2].abs().sum() > 0
    assert all(relative_error(*pair) < 1e-10 for pair in zip(fast, plain, strict=True))


@pytest.mark.parametrize("time_dim", [0, -1])
def test_time_may_be_any_axis(time_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.Linear(N, N).double()
    first = nn.Recurrent(nn.LIF(0.9, stateful=True), linear)
    other = nn.Recurrent(nn.LIF(0.9, stateful=True, time_dim=time_dim), linear)
    expected = [first(signal()), first(signal())]
    found = [other(signal(time_dim)), other(signal(time_dim))]
    assert all(torch.equal(a.movedim(1, time_dim), b) for a, b in zip(expected, found, strict=True))


def test_the_wrapper_is_the_layer_of_a_network_as_data() -> None:
    layer = {"kind": "lif", "alpha": 0.9, "recurrent": {"bias": True}}
    net = network.build({"input_shape": [N], "layers": [layer]})
    module = nn.Recurrent(nn.LIF(0.9), torch.nn.Linear(N, N))
    state = {name.replace("0.recurrent.", ""): value for name, value in net.state_dict().items()}
    module.synapse.load_state_dict(state)
    assert torch.equal(module(signal(dtype=torch.float32)), net(signal(dtype=torch.float32)))


def test_a_synapse_may_be_any_module_of_steps() -> None:
    class Ring(torch.nn.Module):
        def forward(self, spikes: Tensor) -> Tensor:
            return spikes.roll(1, -1)

    ring = nn.Recurrent(nn.LIF(0.9), Ring())
    dense = nn.Recurrent(nn.LIF(0.9), torch.nn.Linear(N, N, bias=False)).double()
    with torch.no_grad():
        dense.synapse.weight.copy_(torch.eye(N).roll(1, 0))
    found = [gradients(module, signal())[:3] for module in (ring, dense)]
    assert all(relative_error(*pair) < 1e-10 for pair in zip(*found, strict=True))
    x = torch.randn(2, 5, 3, 4, 4)
    assert nn.Recurrent(nn.IF(), torch.nn.Conv2d(3, 3, 3, padding=1))(x).shape == x.shape


def test_hooks_of_the_synapse_are_called() -> None:
    module = nn.Recurrent(nn.LIF(0.9), torch.nn.Linear(N, N))
    seen: list[Any] = []
    module.synapse.register_forward_hook(lambda layer, given, found: seen.append(found))
    module(signal(dtype=torch.float32))
    assert len(seen) == 12


def test_the_membrane_is_returned_beside_the_spikes() -> None:
    linear = torch.nn.Linear(N, N).double()
    spikes, membrane = nn.Recurrent(nn.LIF(0.9, return_membrane=True), linear)(signal())
    assert torch.equal(spikes, nn.Recurrent(nn.LIF(0.9), linear)(signal()))
    assert torch.equal(spikes, (membrane >= 1).double())


@pytest.mark.parametrize("steps", [1, 5, 12])
@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("make", [NEURONS["trained"], NEURONS["cuba"]])
def test_pieces_of_a_sequence_are_the_whole(
    make: Any, steps: int, stateful: bool, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain:
        monkeypatch.setattr(recurrent, "_is_dense", lambda *_: False)
    module = nn.Recurrent(make(stateful=stateful), torch.nn.Linear(N, N)).double()
    whole, pieces = (
        gradients(each, signal()) for each in (copy.deepcopy(module), nn.TimeCheckpoint(copy.deepcopy(module), steps))
    )
    assert all(relative_error(*pair) < 1e-10 for pair in zip(whole, pieces, strict=True))


def test_stateful_calls_one_after_the_other_are_one_call() -> None:
    whole = nn.Recurrent(nn.LIF(0.9, stateful=True), torch.nn.Linear(N, N)).double()
    pieces = copy.deepcopy(whole)
    x = signal()
    joined = torch.cat([pieces(part) for part in x.split([5, 1, 0, 6], 1)], 1)
    assert torch.equal(joined, whole(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Recurrent(nn.LIF(0.9), torch.nn.Linear(N, N))
    x = signal(dtype=dtype)
    fast, plain = fast_and_plain(module, monkeypatch, lambda module: module(x))
    assert fast.dtype == plain.dtype == dtype
    assert torch.equal(fast, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = module(x.float())
    assert torch.equal(under, module(x.float()))


def test_the_state_dict_is_that_of_the_parts() -> None:
    module, other = (nn.Recurrent(nn.LIF(a), torch.nn.Linear(N, N)) for a in (0.9, 0.5))
    assert set(module.state_dict()) == {"neuron.alpha", "neuron.threshold", "synapse.weight", "synapse.bias"}
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(signal(dtype=torch.float32)), module(signal(dtype=torch.float32)))


def test_torch_func_sees_the_plain_loop() -> None:
    module = nn.Recurrent(nn.LIF(0.9), torch.nn.Linear(N, N)).double()
    x = signal()
    parameters = dict(module.named_parameters())

    def loss(parameters: Any, sample: Tensor) -> Tensor:
        total: Tensor = torch.func.functional_call(module, parameters, (sample[None],)).sum()
        return total

    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    module(x).sum().backward()
    assert relative_error(each["synapse.weight"].sum(0), module.synapse.weight.grad) < 1e-10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.Recurrent(nn.ExpLeak(0.9), torch.nn.Linear(N, N)), "with spikes, such as LIF or IF, got ExpLeak"),
        (lambda: nn.Recurrent(nn.SRM(torch.ones(2)), torch.nn.Linear(N, N)), "got SRM"),
        (lambda: nn.Recurrent(torch.nn.ReLU(), torch.nn.Linear(N, N)), "neuron must be a stateful layer .*, got ReLU"),
        (lambda: nn.Recurrent(nn.IF(), torch.eye(N)), "synapse must be a torch.nn.Module, got Tensor"),
        (lambda: nn.Recurrent(nn.IF(), torch.nn.Sequential(nn.IF())), "synapse must be made of layers .*got IF '0'"),
        (
            lambda: nn.Recurrent(nn.IF(), torch.nn.Linear(N, N + 1))(torch.randn(3, 4, N)),
            r"synapse must be one that returns the shape of a step, \(3, 6\), got \(3, 7\)",
        ),
        (
            lambda: nn.Recurrent(nn.IF(), torch.nn.Linear(N + 1, N))(torch.randn(3, 4, N)),
            r"synapse must be one that takes the spikes of a step, \(3, 6\), got one of 7 features",
        ),
        (
            lambda: nn.Recurrent(nn.IF(), torch.nn.Linear(N, N))(torch.randn(4, N)),
            r"neurons...\) if time_dim is 1, got \(4, 6\); pass x.unsqueeze\(1\) for one step",
        ),
        (
            lambda: nn.Recurrent(nn.IF(time_dim=0), torch.nn.Linear(N, N))(torch.randn(4, N)),
            r"x must be of shape \(batch, time, neurons...\), got \(4, 6\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()
