"""Networks built from descriptions: what they compute, their gradients, and where their random numbers come from."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import network_cases as cases
import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from assertions import assert_agrees, relative_error
from exodus_core import losses, network
from exodus_core.network.recurrent import continued_recurrent_lif

# (batch, time), odd, of one, and beyond a vector register
SIZES = [(1, 1), (3, 7), (2, 65)]


def build(case: str, dtype: str = "float64", **more: Any) -> network.Network:
    net = network.build(cases.describe(case, dtype), **more)
    return net.eval() if case == "dropout" else net


def signal(net: Any, batch: int, time: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Strong enough that neurons fire, on a view: every second element of a larger tensor, time in front."""
    shape = net.description.input_shape
    larger = torch.randn(time, 2 * batch, *shape, 2, dtype=dtype) * 1.5 + 0.3
    return larger[:, ::2, ..., 0].transpose(0, 1)


def gradients(function: Callable[..., Any], x: Tensor, parameters: Any) -> Any:
    leaf = x.detach().requires_grad_()
    y = function(leaf)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).sin()
    return y, torch.autograd.grad((y * weights).sum(), [leaf, *parameters], materialize_grads=True, allow_unused=True)


@pytest.mark.parametrize(("batch", "time"), SIZES)
@pytest.mark.parametrize("case", cases.CASES)
def test_every_kind_has_the_outputs_and_gradients_of_a_plain_loop(case: str, batch: int, time: int) -> None:
    net = build(case)
    if "batch_norm of" not in case and "batch_norm" in case and batch * time * (5 if "not affine" in case else 1) == 1:
        pytest.skip("one value has no variance")
    x = signal(net, batch, time)
    assert not x.is_contiguous() or x.numel() == 1 or batch * time == 1
    parameters = dict(net.named_parameters())
    y, found = gradients(net, x, parameters.values())
    plain = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    expected_y, expected = gradients(lambda leaf: cases.plain_forward(net.description, plain, leaf), x, plain.values())
    assert y.shape == (batch, time, *net.description.output_shape)
    assert_agrees("output", y, expected_y)
    for name, ours, theirs in zip(["x", *parameters], found, expected, strict=True):
        assert_agrees(name, ours, theirs)


@pytest.mark.parametrize("case", [c for c in cases.CASES if "lif" in c or "if" in c or "srm" in c])
def test_the_neurons_of_the_cases_fire_and_rest(case: str) -> None:
    net = build(case)
    y = net(signal(net, 3, 65))
    assert 0.02 < (y > 0).double().mean() < 0.98


def test_the_mixed_network_has_the_gradients_of_a_plain_loop() -> None:
    layers = [layer for layer in cases.MIXED["layers"] if layer["kind"] != "dropout"]
    layers = [{**layer, "inputs": ["first", "3"]} if layer["kind"] == "add" else layer for layer in layers]
    net = network.build({**cases.MIXED, "dtype": "float64", "layers": layers})
    x = signal(net, 4, 9)
    parameters = dict(net.named_parameters())
    y, found = gradients(net, x, parameters.values())
    plain = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    expected_y, expected = gradients(lambda leaf: cases.plain_forward(net.description, plain, leaf), x, plain.values())
    assert_agrees("output", y, expected_y)
    for name, ours, theirs in zip(["x", *parameters], found, expected, strict=True):
        error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
        # The biases before a batch norm have no gradient but rounding.
        assert error < 1e-10 or theirs.abs().max() < 1e-10, name


@pytest.mark.parametrize("case", cases.CASES)
def test_parameters_have_the_names_and_shapes_that_the_description_says(case: str) -> None:
    net = build(case, "float32")
    assert [(name, tuple(p.shape)) for name, p in net.named_parameters()] == list(net.description.parameters)
    assert sum(p.nbytes for p in net.parameters()) == net.description.nbytes
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in net.parameters())
    assert net(signal(net, 2, 3, torch.float32)).dtype == torch.float32


@pytest.mark.parametrize("case", ["linear", "conv2d", "recurrent lif every parameter"])
def test_equal_seeds_give_equal_bits_and_leave_the_global_random_numbers_alone(case: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (build(case, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_the_bits_of_a_seed_stay_what_they_are() -> None:
    net = network.build({"layers": [{"kind": "linear", "in_features": 4, "out_features": 2}]}, seed=5)
    again = torch.Generator("cpu").manual_seed(5)
    torch.randint(2**62, (), generator=again, device="cpu")
    expected = [torch.empty(size, device="cpu").uniform_(-0.5, 0.5, generator=again) for size in ((2, 4), (2,))]
    assert all(torch.equal(p.cpu(), e) for p, e in zip(net.parameters(), expected, strict=True))


def test_initial_values_are_those_of_torch_times_the_gain() -> None:
    plain, gained = (
        network.build({"input_shape": [64], "layers": [{"kind": "linear", "out_features": 4096, "gain": gain}]}, seed=1)
        for gain in (1.0, 3.0)
    )
    weight, bias = plain.parameters()
    assert 0.124 < weight.abs().max() <= 0.125
    assert 0.12 < bias.abs().max() <= 0.125
    assert weight.std().item() == pytest.approx(0.125 / 3**0.5, rel=0.01)
    assert torch.equal(gained._modules["0"].weight, weight * 3)
    assert torch.equal(gained._modules["0"].bias, bias)


def test_dropout_draws_one_mask_for_all_steps_from_the_generator_of_the_network() -> None:
    net = network.build({"input_shape": [50, 4], "layers": [{"kind": "dropout", "p": 0.3}]}, seed=3)
    x = torch.rand(6, 5, 50, 4) + 1
    before, state = torch.get_rng_state(), net.generator.get_state()
    y = net(x)
    assert torch.equal(torch.get_rng_state(), before)
    kept = y != 0
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert torch.allclose(y[kept], x[kept] / 0.7)
    assert 0.65 < kept.double().mean() < 0.75
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(net(x), y)
    net.generator.set_state(state)
    assert torch.equal(net(x), y)
    assert torch.equal(net.eval()(x), x)


@pytest.mark.parametrize(("p", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_dropout_at_its_ends(p: float, expected: float) -> None:
    net = network.build({"input_shape": [3], "layers": [{"kind": "dropout", "p": p}]})
    assert torch.equal(net(torch.ones(2, 2, 3)), torch.full((2, 2, 3), expected))


@pytest.mark.parametrize("space", [(), (5,), (3, 2)])
def test_batch_norm_is_torchs_in_training_and_after(space: Any) -> None:
    data = {"input_shape": [3, *space], "layers": [{"kind": "batch_norm", "momentum": 0.3}]}
    net = network.build({**data, "dtype": "float64"})
    theirs = [torch.nn.BatchNorm1d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d][len(space)](
        3, momentum=0.3, dtype=torch.float64
    )
    for train in (True, True, False):
        x = torch.randn(4, 6, 3, *space, dtype=torch.float64)
        expected = theirs.train(train)(x.flatten(0, 1)).view(x.shape)
        assert torch.equal(net.train(train)(x), expected)
    assert torch.equal(net._modules["0"].running_var, theirs.running_var)


def test_batch_norm_of_one_value_is_refused_in_training() -> None:
    net = network.build({"input_shape": [3], "layers": [{"kind": "batch_norm"}]})
    with pytest.raises(
        ValueError,
        match="x must be more than one sample, step or place in space, for batch_norm in training, got shape",
    ):
        net(torch.ones(1, 1, 3))
    net.eval()(torch.ones(1, 1, 3))


def test_sums_over_windows_are_exact() -> None:
    net = network.build({"input_shape": [1, 3, 3], "layers": [{"kind": "sum_pool", "kernel_size": 3}]})
    x = torch.randint(0, 1000, (5, 7, 1, 3, 3))
    assert torch.equal(net(x).flatten(), x.sum((2, 3, 4)).float().flatten())


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_inputs_are_converted_to_the_dtype_of_the_network(dtype: torch.dtype) -> None:
    net = build("conv2d", "float32")
    x = torch.randint(0, 2, (2, 3, 2, 5, 7))
    assert torch.equal(net(x.to(dtype)), net(x.float()))


def test_no_state_is_kept_between_calls() -> None:
    for case in ("lif", "recurrent lif", "srm", "exp_leak"):
        net = build(case)
        x = signal(net, 2, 20)
        assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("shape", [(2, 3, 2, 5), (2, 3, 2, 7, 5), (0, 3, 2, 5, 7), (2, 0, 2, 5, 7), (2, 5, 7)])
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    net = build("conv2d")
    with pytest.raises(ValueError, match=r"x must be of shape \(batch, time, 2, 5, 7\).*got \(") as caught:
        net(torch.zeros(shape))
    assert str(tuple(shape)) in str(caught.value)


@pytest.mark.parametrize("wrong", [[[1.0]], torch.zeros(1, 1, 5, dtype=torch.complex64)])
def test_inputs_that_are_no_real_tensor_are_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="x must be a tensor of floats, integers or bool, got"):
        build("linear")(wrong)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "1"])
def test_seeds_that_are_no_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed must be an integer from 0 to 2\*\*63 - 1, got"):
        build("linear", seed=seed)


def test_constrain_brings_neuron_parameters_back_and_leaves_the_others() -> None:
    layers = [{"kind": "lif", **cases.EVERY_LIF}, {"kind": "exp_leak", "alpha": 0.5, "trainable": ["alpha"]}]
    net = network.build({"input_shape": [3], "layers": layers})
    neurons, leak = net._modules["0"], net._modules["1"]
    with torch.no_grad():
        neurons.alpha.copy_(torch.tensor([-0.1, 0.5, 1.1]))
        neurons.threshold.copy_(torch.tensor([-2.0, 0.0, 3.0]))
        neurons.reset_by.fill_(-1.0)
        leak.alpha.fill_(1.5)
    net.constrain()
    assert neurons.alpha.tolist() == [0.0, 0.5, 1.0]
    assert neurons.threshold[:2].min() > 0
    assert neurons.threshold[2] == 3.0
    assert neurons.reset_by.tolist() == [-1.0] * 3
    assert leak.alpha == 1.0


def test_names_of_layers_may_be_names_of_attributes() -> None:
    layers = [{"kind": "linear", "out_features": 3, "name": name} for name in ("forward", "generator", "training")]
    net = network.build({"input_shape": [3], "layers": layers})
    assert [name for name, _ in net.named_parameters()][::2] == [
        "forward.weight",
        "generator.weight",
        "training.weight",
    ]
    assert net(torch.ones(1, 1, 3)).shape == (1, 1, 3)


def test_copies_draw_their_own_masks_and_have_their_own_weights() -> None:
    net = network.build(cases.MIXED, seed=2)
    x = torch.rand(2, 3, 2, 6, 7)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        state = net.generator.get_state()
        expected = net(x)
        assert torch.equal(copied(x), expected)
        net.generator.set_state(state)
        copied.generator.set_state(state)
        assert copied._modules["6"].generator is copied.generator


def test_a_deep_network_frees_what_no_later_layer_reads() -> None:
    # Each layer's output is 4 MB; only the input, and one layer's input and output, may live together.
    net = network.build({"input_shape": [1000], "layers": [{"kind": "exp_leak", "alpha": 0.5}] * 4})
    assert [len(names) for names in net._done] == [1] * 4
    assert losses.parse("spike_count_mse")(net(torch.ones(1, 2, 1000)), torch.ones(1, 1000)).loss > 0


def test_a_state_has_what_changes_and_not_what_the_description_says() -> None:
    data = {"input_shape": [3], "layers": [{"kind": "lif", "alpha": [0.9, 0.8, 0.7], "trainable": ["threshold"]}]}
    assert list(network.build(data).state_dict()) == ["0.threshold"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", cases.CASES)
def test_a_network_is_converted_as_any_module(case: str, dtype: torch.dtype) -> None:
    net, other = build(case, "float32"), build(case, "float32")
    converted = net.to(dtype)
    assert converted is net
    assert net.dtype == dtype
    x = signal(net, 2, 7, torch.float32)
    y, found = gradients(net, x, net.parameters())
    assert y.dtype == dtype
    assert all(g.dtype == p.dtype == dtype for g, p in zip(found[1:], net.parameters(), strict=True))
    back = net.float()
    assert back(x).dtype == torch.float32
    if dtype == torch.float64:
        assert torch.equal(back(x), other(x))


def test_a_network_has_the_dtype_of_the_parameters_that_it_is_given() -> None:
    net, other = build("linear", "float32"), build("linear", "float64")
    x = signal(other, 2, 3)
    given = {name: p.detach().clone() for name, p in other.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(net, given, x), other(x))
    net.load_state_dict(given, assign=True)
    torch.testing.assert_close(net(x), other(x))


def test_a_network_without_parameters_is_converted_too() -> None:
    net = network.build({"input_shape": [3], "layers": [{"kind": "if"}]})
    assert net.double()(torch.ones(1, 1, 3)).dtype == torch.float64
    assert torch.nn.Sequential(net).half()(torch.ones(1, 1, 3)).dtype == torch.float16
    assert list(net.state_dict()) == []


@pytest.mark.parametrize("case", [case for case in cases.CASES if "bptt" not in case])
def test_a_network_goes_to_another_device(case: str) -> None:
    net = build(case, "float32").to("meta")
    y = net.train()(torch.ones(2, 3, *net.description.input_shape))
    assert net.device == y.device == torch.device("meta")
    assert y.shape == (2, 3, *net.description.output_shape)


class Elsewhere(torch.Generator):
    """A generator that says it is on another device."""

    device = torch.device("cpu", 0)


@pytest.mark.parametrize("drawn", [False, True])
def test_masks_are_drawn_where_the_network_goes(drawn: Any) -> None:
    net = network.build({"input_shape": [3], "layers": [{"kind": "dropout"}, {"kind": "dropout"}]}, seed=2)
    seed, state = net.generator.initial_seed(), net.generator.get_state()
    generator = Elsewhere().manual_seed(seed)
    net._share(generator)
    if drawn:
        torch.rand(1, generator=generator, device="cpu")
    net.float()
    assert net.generator.device == net.device
    assert {id(layer.generator) for layer in net._modules.values()} == {id(net.generator)}
    # As a network built there; where masks have been drawn, with others that those follow.
    assert (net.generator.initial_seed() == seed) is not drawn
    assert torch.equal(net.generator.get_state(), state) is not drawn


@pytest.mark.parametrize("case", cases.CASES)
def test_networks_train_under_autocast(case: str) -> None:
    net = build(case, "float32")
    x = signal(net, 2, 9, torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
        loss = losses.parse("spike_count_mse")(y, torch.ones(y.shape[0], *y.shape[2:])).loss
    assert loss.dtype == torch.float32
    found = torch.autograd.grad(loss, [x, *net.parameters()], allow_unused=True)
    assert all(g is None or (g.dtype == torch.float32 and g.isfinite().all()) for g in found)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_recurrent_network_trains_under_autocast(backend: str, within: Any) -> None:
    layers = [{"kind": "linear", "out_features": 8}, {"kind": "lif", "alpha": 0.9, "recurrent": {}}]
    net = network.build({"input_shape": [3], "layers": layers})
    x = torch.rand(2, 5, 3)
    results = []
    for call in (net, torch.compile(net, backend=backend)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = call(x).float().sum()
            found = torch.autograd.grad(loss, list(net.parameters())) if within else None
        results.append(found or torch.autograd.grad(loss, list(net.parameters())))
    assert all(torch.allclose(a, b, rtol=1e-2, atol=1e-6) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("method", ["exodus", "bptt"])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_neurons_keep_their_precision_under_autocast(method: str, bias: bool) -> None:
    layer = {"kind": "lif", "alpha": 0.9, "recurrent": {"bias": bias, "gain": 2.0}, "method": method}
    net = network.build({"input_shape": [40], "layers": [layer]})
    x = (torch.randn(3, 50, 40) * 0.7).bfloat16().float()

    def run(leaf: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found: Tensor = net(leaf)
            return found

    expected, wanted = gradients(net, x, net.parameters())
    y, found = gradients(run, x, net.parameters())
    assert torch.equal(y, expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))
    if method == "exodus":  # a backward pass that autocast reaches too
        with torch.autocast("cpu", torch.bfloat16):
            _, found = gradients(net, x, net.parameters())
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


@pytest.mark.parametrize("case", ["recurrent lif", "recurrent lif every parameter", "recurrent lif bptt"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_recurrent_neurons_of_half_types_are_computed_in_float32(case: str, dtype: torch.dtype) -> None:
    net = build(case, "float32").to(dtype)
    x = signal(net, 3, 65, torch.float32).to(dtype)
    y = net(x)
    assert torch.equal(y, net.float()(x).to(dtype))


def test_narrow_recurrent_layers_do_not_take_a_long_sequence_apart_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    unbound = []
    unbind = torch.Tensor.unbind

    def counted(tensor: Tensor, *dim: int) -> tuple[Tensor, ...]:
        unbound.append(len(tensor))
        return unbind(tensor, *dim)

    monkeypatch.setattr(torch.Tensor, "unbind", counted)
    net = network.build({"input_shape": [1], "layers": [{"kind": "lif", "alpha": 0.9, "recurrent": {}}]})
    net(torch.ones(1, 1000, 1))
    assert unbound
    assert max(unbound) <= 256


@pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"
)  # torch's
@pytest.mark.parametrize("case", ["dropout", "recurrent lif every parameter"])
def test_a_network_in_training_is_one_graph(case: str) -> None:
    net, other = build(case, "float32").train(), build(case, "float32").train()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = signal(net, 3, 5, torch.float32)
        y, found = gradients(compiled, x, net.parameters())
        expected, wanted = gradients(other, x, other.parameters())
        assert torch.equal(y, expected)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def test_compiled_dropout_draws_the_masks_of_the_network_in_their_order() -> None:
    layers = [{"kind": "dropout", "p": 0.3}, {"kind": "lif", "alpha": 0.9}, {"kind": "dropout", "p": 0.3}]
    data = {
        "input_shape": [8],
        "layers": [*layers, {"kind": "dropout", "p": 1.0}, {"kind": "add", "inputs": ["2", "3"]}],
    }
    net, other = network.build(data, seed=4), network.build(data, seed=4)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.rand(4, 6, 8) + 1
    before = torch.get_rng_state()
    first, second = compiled(x), compiled(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, other(x))
    assert torch.equal(second, other(x))
    assert not torch.equal(first, second)
    assert torch.equal(net.generator.get_state(), other.generator.get_state())
    copied = copy.deepcopy(net)
    assert torch.equal(torch.compile(copied, fullgraph=True, backend="aot_eager")(x), other(x))
    assert not torch.equal(net.generator.get_state(), other.generator.get_state())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_dropout_is_not_recomputed_with_another_mask(use_reentrant: bool) -> None:
    net = network.build({"input_shape": [3], "layers": [{"kind": "dropout"}, {"kind": "if"}]})
    x = torch.ones(2, 5, 3, requires_grad=True)
    outputs = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=use_reentrant)
    with pytest.raises(RuntimeError, match=r"dropout .* must not be recomputed in a backward pass"):
        outputs.sum().backward()
    torch.utils.checkpoint.checkpoint(net.eval(), x, use_reentrant=use_reentrant).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3)])
def test_a_seed_may_be_a_number_of_numpy(seed: int) -> None:
    data = [{"kind": "linear", "in_features": 3, "out_features": 2}]
    assert torch.equal(
        network.build(data, seed=seed).state_dict()["0.weight"], network.build(data, seed=3)._modules["0"].weight
    )


def test_a_sparse_input_is_refused() -> None:
    net = network.build([{"kind": "linear", "in_features": 3, "out_features": 2}])
    with pytest.raises(TypeError, match=r"x must be a dense tensor, got one of layout torch.sparse_coo"):
        net(torch.ones(2, 5, 3).to_sparse())


def test_parameter_gradients_of_a_recurrent_layer_keep_their_precision_over_many_steps() -> None:
    x, weight = torch.rand(1, 6000, 4), 0.01 * torch.randn(4, 4)
    found = []
    for dtype in (torch.float32, torch.float64):
        alpha = torch.full((4,), 0.5, dtype=dtype, requires_grad=True)
        continued_recurrent_lif(x.to(dtype), weight.to(dtype), alpha, None, threshold=5.0)[0].sum().backward()
        found.append(alpha.grad)
    assert relative_error(*found) < 2e-7
