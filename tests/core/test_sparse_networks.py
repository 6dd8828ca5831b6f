"""Networks hand spikes on as bits where products alone read them, and compute what dense ones do."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from sparse_cases import on_cpu, spikes
from torch import Tensor

from assertions import relative_error
from exodus_core import PackedSpikes, losses, network
from exodus_core.sparse import product
from exodus_core.training import Trainer

pytestmark = [on_cpu, pytest.mark.usefixtures("all_sparse")]

LINEAR = {"kind": "linear", "out_features": 20}
LIF = {"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"], "min_membrane": -1.0, "decay_reset": True}
CONV = {"kind": "conv2d", "out_channels": 3, "kernel_size": 3}
# Layers behind an input of (2, 6, 7), and the names of the values that are handed on as bits, or bool.
CASES: dict[str, tuple[list[dict[str, Any]], set[str]]] = {
    "linear lif linear": ([{"kind": "flatten"}, LINEAR, LIF, LINEAR], {"input", "2"}),
    "lif last": ([{"kind": "flatten"}, LINEAR, LIF, LINEAR, LIF], {"input", "2"}),
    "flattened last": ([CONV, LIF, {"kind": "flatten"}], {"input"}),
    "read by linear and add": (
        [{"kind": "flatten"}, LINEAR, LIF | {"name": "s"}, LINEAR, {"kind": "add", "inputs": ["3", "s"]}],
        {"input"},
    ),
    "read by two": (
        [
            {"kind": "flatten"},
            LINEAR,
            LIF | {"name": "s"},
            LINEAR | {"name": "a"},
            LINEAR | {"name": "b", "inputs": ["s"]},
            {"kind": "add", "inputs": ["a", "b"]},
        ],
        {"input"},
    ),
    "convolution": ([CONV, LIF, CONV, LIF, {"kind": "flatten"}, LINEAR], {"input", "1", "3"}),
    "flattened, and read as it is": (
        [
            CONV,
            LIF | {"name": "s"},
            {"kind": "flatten"},
            LINEAR | {"name": "a"},
            CONV | {"inputs": ["s"]},
            {"kind": "flatten"},
            LINEAR,
            {"kind": "add", "inputs": ["a", "6"]},
        ],
        {"input"},
    ),
    "flattened and added": (
        [CONV, LIF, {"kind": "flatten"}, LINEAR | {"out_features": 60}, {"kind": "add", "inputs": ["3", "2"]}],
        {"input"},
    ),
    "names of attributes": (
        [{"kind": "flatten", "name": "exact"}, LINEAR | {"name": "_done"}, LIF | {"name": "packed"}, LINEAR],
        {"input", "packed"},
    ),
    "recurrent": ([{"kind": "flatten"}, LINEAR, LIF | {"recurrent": {"bias": True}}, LINEAR], {"input", "2"}),
    "bptt, and several spikes": (
        [{"kind": "flatten"}, LINEAR, LIF | {"method": "bptt"}, LINEAR, LIF | {"max_spikes": 3}, LINEAR],
        {"input", "2", "4"},
    ),
    "few neurons": ([{"kind": "flatten"}, LINEAR | {"out_features": 15}, LIF, LINEAR], {"input", "2"}),
    "batch_norm and dropout between": (
        [{"kind": "flatten"}, LINEAR, LIF, {"kind": "batch_norm"}, LINEAR, LIF, {"kind": "dropout"}, LINEAR],
        {"input"},
    ),
    "input read by two": (
        [
            {"kind": "flatten"},
            LINEAR | {"name": "a"},
            LINEAR | {"name": "b", "inputs": ["0"]},
            {"kind": "add", "inputs": ["a", "b"]},
        ],
        set(),
    ),
    "max_pool, reshape and concat between": (
        [
            CONV,
            LIF | {"name": "s"},
            {"kind": "max_pool", "kernel_size": 2},
            {"kind": "reshape", "shape": [12], "name": "pooled"},
            {"kind": "flatten", "inputs": ["s"]},
            {"kind": "concat", "inputs": ["pooled", "4"]},
            LINEAR,
            LIF,
            LINEAR,
        ],
        {"input", "7"},
    ),
    "pool first": ([{"kind": "sum_pool", "kernel_size": 2}, {"kind": "flatten"}, LINEAR], set()),
    "srm and exp_leak": (
        [
            {"kind": "flatten"},
            LINEAR,
            {"kind": "srm", "reset_kernel": [-1.0]},
            LINEAR,
            LIF,
            {"kind": "exp_leak", "alpha": 0.8},
        ],
        {"input"},
    ),
}


def build(case: str, dtype: str = "float64", **more: Any) -> network.Network:
    data = {"input_shape": [2, 6, 7], "dtype": dtype, "layers": CASES[case][0]}
    return network.build(data, seed=3, **more)


def signal(dtype: torch.dtype = torch.float64, kind: str = "ones") -> Tensor:
    return spikes((2, 9, 2, 6, 7), 0.3, kind, dtype) * (1 if kind == "ones" else 2)


def everything(net: Callable[[Tensor], Tensor], x: Tensor, parameters: Any) -> list[Tensor]:
    """The output, the loss, and the gradients of what has any."""
    y = net(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).sin()
    loss = (y * weights).sum()
    wanted = [*([x] if x.requires_grad else []), *parameters]
    return [y.detach(), loss.detach(), *torch.autograd.grad(loss, wanted, materialize_grads=True, allow_unused=True)]


@pytest.mark.parametrize("kind", ["ones", "values"])
@pytest.mark.parametrize("case", CASES)
def test_sparse_and_dense_networks_agree(case: str, kind: str) -> None:
    net, exact = build(case), build(case, exact=True)
    x = signal(kind=kind).requires_grad_()
    assert {name for name in ("input", *net._modules) if net._packs(name)} == CASES[case][1]
    assert not any(exact._packs(name) for name in ("input", *exact._modules))
    sparse, dense = (everything(each, x, each.parameters()) for each in (net, exact))
    assert dense[0].any()
    for ours, theirs in zip(sparse, dense, strict=True):
        assert relative_error(ours, theirs) < 1e-11
    assert net.__dict__["exact"] is False
    assert exact.__dict__["exact"] is True


@pytest.mark.parametrize("case", CASES)
def test_bits_between_layers_have_the_bits_of_tensors(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = build(case, "float32").eval(), signal(torch.float32).requires_grad_()
    packed = everything(net, x, net.parameters())
    monkeypatch.setattr(net, "_packs", lambda name: False)
    for ours, theirs in zip(packed, everything(net, x, net.parameters()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "float64", "half", "bfloat16"])
@pytest.mark.parametrize("case", ["linear lif linear", "read by linear and add", "convolution", "pool first"])
def test_bool_and_integer_inputs_have_the_bits_of_floats(case: str, dtype: str) -> None:
    net = build(case, dtype if dtype.startswith("float") else "float32")
    net = net if dtype.startswith("float") else getattr(net, dtype)()
    x = signal(net.dtype)
    expected = everything(net, x, net.parameters())
    assert expected[0].dtype == net.dtype
    for given in (x.bool(), x.to(torch.uint8), x.long()):
        for ours, theirs in zip(everything(net, given, net.parameters()), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_an_exact_network_has_the_bits_of_torchs_products() -> None:
    net = build("linear lif linear", "float32", exact=True)
    assert [module.exact for name in ("1", "3") if (module := net._modules[name])] == [True, True]
    parameters = dict(net.named_parameters())
    x = signal(torch.float32)
    first = torch.nn.functional.linear(x.flatten(2), parameters["1.weight"], parameters["1.bias"])
    lif: Any = net._modules["2"]
    expected = torch.nn.functional.linear(lif(first), parameters["3.weight"], parameters["3.bias"])
    for given in (x, x.bool()):
        assert torch.equal(net(given), expected)


@pytest.mark.parametrize("case", ["linear lif linear", "convolution"])
def test_sparse_and_dense_networks_learn_the_same(case: str) -> None:
    x, targets = signal(), torch.rand(2, 20, dtype=torch.float64)
    results = []
    for exact in (False, True):
        net = build(case, exact=exact)
        trainer = Trainer(net, "adam")
        for _ in range(4):
            trainer.step(x, targets, "spike_count_mse")
        results.append([p.detach() for p in net.parameters()])
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9


def test_losses_of_sparse_and_dense_networks_agree() -> None:
    x, found = signal(), []
    for exact in (False, True):
        y = build("lif last", exact=exact)(x)
        found.append(losses.parse({"kind": "van_rossum", "alpha": 0.9})(y, torch.ones_like(y)).loss)
    torch.testing.assert_close(*found)


REGISTER: dict[str, Callable[[Any, Callable[..., None]], Any]] = {
    "forward": lambda module, hook: module.register_forward_hook(hook),
    "forward pre": lambda module, hook: module.register_forward_pre_hook(hook),
    "backward": lambda module, hook: module.register_full_backward_hook(hook),
    "backward pre": lambda module, hook: module.register_full_backward_pre_hook(hook),
    "global": lambda module, hook: torch.nn.modules.module.register_module_forward_hook(hook),
    "global backward": lambda module, hook: torch.nn.modules.module.register_module_full_backward_hook(hook),
}


@pytest.mark.parametrize("layer", ["1", "3", "4", "5"])
@pytest.mark.parametrize("kind", REGISTER)
def test_hooks_see_ordinary_tensors(kind: str, layer: str) -> None:
    net, x = build("convolution"), signal().requires_grad_()
    expected = everything(net, x, net.parameters())
    seen: list[Any] = []

    def hook(module: Any, *given: Any) -> None:
        if module is net._modules[layer]:
            seen.extend(value for each in given for value in (each if isinstance(each, tuple) else (each,)))

    handle = REGISTER[kind](net._modules[layer], hook)
    try:
        hooked = everything(net, x, net.parameters())
    finally:
        handle.remove()
    assert seen
    assert all(type(value) is Tensor for value in seen), [type(value) for value in seen]
    for ours, theirs in zip(hooked, expected, strict=True):
        assert torch.equal(ours, theirs)
    seen.clear()
    net(x)
    assert not seen


def test_a_module_in_the_place_of_a_layer_is_given_tensors() -> None:
    given: list[Any] = []

    class Other(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            given.append(x)
            return x

    for name in ("2", "3"):
        net = build("linear lif linear")
        net._modules[name] = Other()
        assert net(signal()).shape == (2, 9, 20)
    assert [type(x) for x in given] == [Tensor, Tensor]


def test_spikes_go_from_layer_to_layer_as_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    check = product._check

    def watched(x: Any, *more: Any) -> None:
        given.append(x)
        check(x, *more)

    monkeypatch.setattr(product, "_check", watched)
    net = build("linear lif linear")
    net(signal().bool())
    assert [type(x) for x in given] == [Tensor, PackedSpikes]
    assert given[0].dtype == torch.bool


def test_copies_compute_the_same() -> None:
    for exact in (False, True):
        net = build("convolution", exact=exact)
        x = signal()
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert twin._readers == net._readers
            for ours, theirs in zip(
                everything(twin, x, twin.parameters()), everything(net, x, net.parameters()), strict=True
            ):
                assert torch.equal(ours, theirs)
        state = build("convolution", exact=not exact)
        state.load_state_dict(net.state_dict())


# torch's own tracer makes an instance of autograd.Function, which torch deprecates.
traced = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@traced
@pytest.mark.parametrize("case", ["linear lif linear", "flattened, and read as it is"])
def test_a_network_compiles_as_one_graph(case: str) -> None:
    torch._dynamo.reset()
    net = build(case)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for x in (signal(), torch.rand(2, 9, 2, 6, 7, dtype=torch.float64)):
        x.requires_grad_()
        eager, by_graph = (everything(call, x, net.parameters()) for call in (net, compiled))
        for ours, theirs in zip(by_graph, eager, strict=True):
            assert relative_error(ours, theirs) < 1e-11


@traced
@pytest.mark.parametrize("strict", [False, True])
def test_a_network_is_exported(strict: bool) -> None:
    net = build("linear lif linear")
    program: Any = torch.export.export(net, (signal(),), strict=strict).module()
    for x in (signal(), torch.rand(2, 9, 2, 6, 7, dtype=torch.float64)):
        torch.testing.assert_close(program(x), net(x))


def test_a_network_of_fake_tensors_and_on_meta_has_shapes() -> None:
    net, x = build("convolution"), signal()
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert net(mode.from_tensor(x)).shape == (2, 9, 20)
    assert build("convolution", device="meta")(signal().bool()).shape == (2, 9, 20)


def test_functional_calls_and_their_transforms_agree() -> None:
    net, x = build("linear lif linear"), signal()
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        y: Tensor = torch.func.functional_call(net, parameters, (x,))
        return y.square().sum()

    exact = build("linear lif linear", exact=True)
    torch.testing.assert_close(loss(parameters), exact(x).square().sum())
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()))
    for ours, theirs in zip(found, torch.autograd.grad(exact(x).square().sum(), list(exact.parameters())), strict=True):
        assert relative_error(ours, theirs) < 1e-11


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_network_can_be_recomputed(use_reentrant: bool) -> None:
    net, x = build("convolution"), signal().requires_grad_()
    results = []
    for y in (net(x), torch.utils.checkpoint.checkpoint(net, x, use_reentrant=use_reentrant)):
        net.zero_grad()
        y.square().sum().backward()
        results.append([p.grad for p in net.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_a_network_under_autocast_is_that_of_dense_products() -> None:
    net, exact = build("linear lif linear", "float32"), build("linear lif linear", "float32", exact=True)
    x = signal(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(x), exact(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_outputs_are_the_same(mode: Callable[[], Any]) -> None:
    net, x = build("flattened, and read as it is"), signal()
    expected = net(x)
    with mode():
        y = net(x)
    assert not y.requires_grad
    assert torch.equal(y, expected)
