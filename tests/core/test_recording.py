"""Recordings of networks: what they hold, that they change nothing, and what is refused."""

import threading
from typing import Any

import network_cases as cases
import pytest
import torch
from torch import Tensor

import exodus_core
from exodus_core import network, reference
from exodus_core.errors import ArgumentError
from exodus_core.network import RecordError, observe
from exodus_core.training import Trainer

LIF = {"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"]}
KERNEL = {"kind": "exponential", "alpha": 0.8, "amplitude": -1.0}
DEEP: dict[str, Any] = {
    "input_shape": [2, 6, 6],
    "layers": [
        {"kind": "conv2d", "out_channels": 8, "kernel_size": 3, "padding": 1, "gain": 3.0, "name": "conv"},
        LIF | {"name": "first"},
        {"kind": "max_pool", "kernel_size": 2, "name": "pool"},
        {"kind": "flatten", "name": "flat"},
        {"kind": "linear", "out_features": 24, "gain": 2.0, "name": "dense"},
        LIF | {"name": "second", "max_spikes": 3},
        {"kind": "linear", "out_features": 20, "gain": 2.0},
        {"kind": "lif", "alpha": 0.8, "recurrent": {"bias": True, "gain": 0.5}, "name": "back"},
        {"kind": "linear", "out_features": 4},
        {"kind": "exp_leak", "alpha": 0.9, "name": "out"},
    ],
}
EVERYTHING = [
    *["conv.output", "first.spikes", "first.membrane", "first.output", "pool.output", "flat.output"],
    *["second.spikes", "second.membrane", "back.spikes", "back.membrane", "out.membrane", "out.output"],
]
NEURONS = [case for case in cases.CASES if any(kind in case for kind in ("lif", "if", "srm", "exp_leak"))]


def described(steps: int | None = None, dtype: str = "float32", data: dict[str, Any] = DEEP) -> dict[str, Any]:
    return {**data, "dtype": dtype, "checkpoint_steps": steps}


def signal(net: network.Network, batch: int = 3, time: int = 13) -> Tensor:
    return torch.rand(batch, time, *net.description.input_shape) < 0.3


def steps_of_membrane(layer: dict[str, Any], parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """The membrane of neurons with recurrent connections as a loop of the plain reference."""
    s = u = torch.zeros_like(x[:, 0])
    found = []
    for x_t in x.unbind(1):
        back = s.flatten(1) @ parameters["recurrent.weight"].t() + parameters.get("recurrent.bias", 0.0)
        spikes, membrane = reference.lif(
            (x_t + back.view_as(x_t))[:, None],
            parameters.get("alpha", torch.tensor(layer.get("alpha", 1.0), dtype=x.dtype)),
            initial_membrane=u,
            initial_spikes=s,
            threshold=parameters.get("threshold", torch.tensor(layer["threshold"], dtype=x.dtype)),
            reset=layer["reset"],
            reset_by=parameters.get("reset_by"),
            min_membrane=layer["min_membrane"],
            bound_after_reset=layer.get("bound_after_reset", False),
            decay_reset=layer["decay_reset"],
            max_spikes=layer["max_spikes"],
        )
        s, u = spikes[:, 0], membrane[:, 0]
        found.append(u)
    return torch.stack(found, 1)


@pytest.mark.parametrize("steps", [None, 4, 13, 50])
def test_recordings_are_what_the_layers_compute_and_change_no_bit(steps: int | None) -> None:
    net = network.build(described(steps), seed=1)
    x = signal(net)
    expected = net(x)
    with observe(net, EVERYTHING) as seen:
        outputs = net(x)
    found = seen.recordings
    assert torch.equal(outputs, expected)
    assert list(found) == EVERYTHING
    for name, trace in found.items():
        shape = net.description.shape_of(name.partition(".")[0])
        assert trace.shape == (3, 13, *shape)
        assert trace.dtype == torch.float32
        assert not trace.requires_grad
    assert torch.equal(found["out.output"], outputs)
    assert torch.equal(found["out.membrane"], outputs)
    assert torch.equal(found["first.spikes"], found["first.output"])
    assert 0.01 < found["first.spikes"].mean() < 0.9
    assert found["second.spikes"].max() > 1
    assert torch.equal(found["first.spikes"], (found["first.membrane"] >= 1).float())
    assert torch.equal(found["back.spikes"], (found["back.membrane"] >= 1).float())
    pooled = torch.nn.functional.max_pool2d(found["first.spikes"].flatten(0, 1), 2).view_as(found["pool.output"])
    assert torch.equal(found["pool.output"], pooled)
    assert torch.equal(found["flat.output"], pooled.flatten(2))


@pytest.mark.parametrize("case", NEURONS)
def test_membranes_of_all_neurons_are_those_of_the_plain_reference(case: str) -> None:
    net = network.build(cases.describe(case))
    x = torch.randn(3, 17, *net.description.input_shape, dtype=torch.float64) * 1.5 + 0.3
    layer = net.description.data["layers"][0]
    module = net._modules["0"]
    with torch.no_grad(), observe(net, ["0.membrane"]) as seen:
        outputs = net(x)
    membrane = seen.recordings["0.membrane"]
    if layer["kind"] == "exp_leak":
        assert torch.equal(membrane, outputs)
        return
    if layer["kind"] == "srm":
        crossed = membrane >= torch.as_tensor(layer["threshold"], dtype=torch.float64)
        assert torch.equal(crossed.double(), outputs)
        return
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    if layer["recurrent"] is not None:
        expected = steps_of_membrane(layer, parameters, x)
    else:
        options = {name: layer[name] for name in ("reset", "decay_reset", "max_spikes", "min_membrane")}
        options["bound_after_reset"] = layer.get("bound_after_reset", False)
        values = {name: torch.tensor(layer[name], dtype=torch.float64) for name in ("threshold",)} | {
            name: p for name, p in parameters.items() if name != "alpha"
        }
        alpha = torch.tensor(layer.get("alpha", 1.0), dtype=torch.float64)
        expected = reference.lif(x, alpha, **options, **values)[1]
    torch.testing.assert_close(membrane, expected, rtol=1e-12, atol=1e-12)
    assert 0.02 < (outputs > 0).double().mean() < 0.98


SYNAPSE = {"synapse_alpha": 0.7, "synapse_gain": 1.5}
COUPLED: dict[str, dict[str, Any]] = {
    "cuba_lif": {"kind": "cuba_lif", "alpha": 0.9, **SYNAPSE},
    "cuba_lif bptt": {"kind": "cuba_lif", "alpha": 0.9, "method": "bptt", "synapse_delayed": True, **SYNAPSE},
    "alif": {"kind": "alif", "alpha": 0.9, "adapt_alpha": 0.8, "adapt_threshold": 0.3, **SYNAPSE},
    "alif current": {"kind": "alif", "alpha": 0.9, "adapt_alpha": 0.8, "adapt_current": 0.4, "refractory": 2},
    "lif refractory": {"kind": "lif", "alpha": 0.9, "refractory": 2, "reset": "value", "reset_to": 0.2},
}


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("case", COUPLED)
def test_membranes_of_neurons_with_more_variables_are_those_of_the_functions(case: str, recurrent: bool) -> None:
    layer = COUPLED[case] | ({"recurrent": {"gain": 1.5}} if recurrent else {})
    data = {"input_shape": [6], "dtype": "float64", "layers": [layer]}
    found = []
    for steps in (None, 5):
        net = network.build(data | {"checkpoint_steps": steps}, seed=3)
        x = torch.randn(3, 17, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.3
        with observe(net, ["0.membrane", "0.spikes"]) as seen:
            outputs = net(x)
        assert torch.equal(outputs, seen.recordings["0.spikes"])
        found.append(seen.recordings)
    whole, pieces = found
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert 0.02 < whole["0.spikes"].mean() < 0.98
    current = x
    if recurrent:
        weight = net.get_parameter("0.recurrent.weight").detach()
        before = torch.cat([torch.zeros(3, 1, 6, dtype=torch.float64), whole["0.spikes"][:, :-1]], 1)
        current = x + before @ weight.t()
    options = {name: value for name, value in layer.items() if name not in ("kind", "recurrent")}
    spikes, membrane = getattr(exodus_core, layer["kind"])(current, **options)
    torch.testing.assert_close(whole["0.membrane"], membrane, rtol=1e-12, atol=1e-12)
    assert torch.equal(whole["0.spikes"], spikes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_recordings_have_the_dtype_of_the_network(dtype: torch.dtype) -> None:
    net = network.build(DEEP, seed=1).to(dtype)
    with observe(net, EVERYTHING) as seen:
        net(signal(net))
    assert {trace.dtype for trace in seen.recordings.values()} == {dtype}
    assert torch.equal(seen.recordings["first.spikes"], (seen.recordings["first.membrane"] >= 1).to(dtype))


def test_a_recurrent_membrane_is_not_rounded_under_autocast() -> None:
    data = {"input_shape": [20], "layers": [LIF | {"recurrent": {"gain": 2.0}, "name": "back"}]}
    net = network.build(data, seed=1)
    x = torch.randn(3, 30, 20)
    with observe(net, ["back.membrane"]) as seen:
        net(x)
    with observe(net, ["back.membrane"]) as lowered, torch.autocast("cpu", torch.bfloat16):
        net(x)
    assert torch.equal(seen.recordings["back.membrane"], lowered.recordings["back.membrane"])


@pytest.mark.parametrize("steps", [None, 4])
def test_a_training_step_is_recorded_with_the_same_weights_after_it(steps: int | None) -> None:
    trainers = [Trainer(network.build(described(steps), seed=1), "adam") for _ in range(2)]
    x, targets = signal(trainers[0].net), torch.tensor([0, 1, 2])
    with observe(trainers[0].net, EVERYTHING, statistics=True) as seen:
        observed = trainers[0].step(x, targets, "max_over_time_ce")
    assert trainers[1].step(x, targets, "max_over_time_ce") == observed
    assert torch.equal(trainers[0].weights(), trainers[1].weights())
    assert seen.recordings["first.spikes"].any()
    assert not any(trace.requires_grad for trace in seen.recordings.values())


@pytest.mark.parametrize("method", ["exodus", "bptt"])
def test_a_loss_of_recordings_reaches_back(method: str) -> None:
    layers: list[dict[str, Any]] = [
        {"kind": "linear", "out_features": 5, "gain": 2.0},
        {"kind": "lif", "alpha": 0.9, "method": method, "name": "a"},
        {"kind": "lif", "alpha": 0.8, "method": method, "recurrent": {}, "name": "b"},
    ]
    net = network.build({"input_shape": [4], "dtype": "float64", "layers": layers}, seed=2)
    x = torch.rand(2, 9, 4, dtype=torch.float64)
    record = ["a.spikes", "a.membrane", "b.membrane"]
    with observe(net, record, detach=False) as seen:
        outputs = net(x)
    loss = sum((trace * trace).sum() for trace in seen.recordings.values()) + outputs.sum()
    found = torch.autograd.grad(loss, list(net.parameters()))
    weight, bias, back = (p.detach().clone().requires_grad_() for p in net.parameters())
    a, membrane = reference.lif(x @ weight.t() + bias, 0.9)
    s = u = torch.zeros(2, 5, dtype=torch.float64)
    spikes, membranes = [], []
    for x_t in a.unbind(1):
        fired, trace = reference.lif((x_t + s @ back.t())[:, None], 0.8, initial_membrane=u, initial_spikes=s)
        s, u = fired[:, 0], trace[:, 0]
        spikes.append(s)
        membranes.append(u)
    b, b_membrane = torch.stack(spikes, 1), torch.stack(membranes, 1)
    plain = (a * a).sum() + (membrane * membrane).sum() + (b_membrane * b_membrane).sum() + b.sum()
    expected = torch.autograd.grad(plain, [weight, bias, back])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_loss_of_recordings_is_refused_in_pieces() -> None:
    net = network.build(described(4))
    with (
        pytest.raises(ArgumentError, match="detach must be True of a network with checkpoint_steps"),
        observe(net, ["first.spikes"], detach=False),
    ):
        pass


def test_the_last_pass_counts_and_another_networks_does_not() -> None:
    net, other = network.build(DEEP, seed=1), network.build(DEEP, seed=2)
    x, y = signal(net), signal(net, 2, 5)
    with observe(net, ["first.spikes"]) as outer, observe(net, ["first.membrane"]) as inner:
        net(x)
        net(y)
        other(x)
    net(x)
    assert outer.recordings["first.spikes"].shape[:2] == (2, 5)
    assert torch.equal(outer.recordings["first.spikes"], (inner.recordings["first.membrane"] >= 1).float())


def test_a_recorded_view_of_the_input_is_a_copy() -> None:
    layers = [{"kind": "flatten"}, {"kind": "linear", "out_features": 2}]
    net = network.build({"input_shape": [2, 3], "layers": layers})
    x = torch.rand(1, 4, 2, 3)
    with observe(net, ["0.output"]) as seen:
        net(x)
    before = x.flatten(2).clone()
    x.zero_()
    assert torch.equal(seen.recordings["0.output"], before)


def test_passes_of_other_threads_and_failed_ones_are_not_seen() -> None:
    net = network.build(DEEP)
    x = signal(net)
    with observe(net, ["first.spikes"]) as seen:
        thread = threading.Thread(target=lambda: net(x))
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="a pass of the network must run within observe"):
            _ = seen.recordings
        net(x)
        assert seen.recordings
        handle = net._modules["out"].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            net(x)
        handle.remove()
        with pytest.raises(RuntimeError, match="a pass of the network must run within observe"):
            _ = seen.recordings


def test_hooks_see_what_is_recorded() -> None:
    net = network.build(DEEP, seed=1)
    module = net._modules["first"]
    module.register_forward_hook(lambda _, __, spikes: torch.zeros_like(spikes))
    with observe(net, ["first.spikes", "first.membrane"]) as seen:
        net(signal(net))
    assert not seen.recordings["first.spikes"].any()
    assert seen.recordings["first.membrane"].any()


@pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"
)  # torch's
def test_a_compiled_network_is_not_seen() -> None:
    net = network.build({"input_shape": [3], "layers": [{"kind": "linear", "out_features": 2}, LIF]})
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    x = torch.rand(2, 4, 3)
    with observe(net, ["1.membrane"]) as seen:
        outputs = compiled(x)
    assert torch.equal(outputs, net(x))
    with pytest.raises(RuntimeError, match="one of a compiled network cannot"):
        _ = seen.recordings


REFUSED = [
    ("first.spikes", "/record", "a list of names LAYER.TRACE", "'first.spikes'"),
    (["first"], "/record/0", "LAYER.TRACE, a trace being one of output, spikes, membrane", "'first'"),
    ([3], "/record/0", "LAYER.TRACE", "3"),
    (["first.spikes", "third.spikes"], "/record/1", "of a layer of the network (conv, first, pool", "'third.spikes'"),
    (["input.output"], "/record/0", "of a layer of the network", "'input.output'"),
    (["conv.spikes"], "/record/0", "one of output of layer conv, of kind conv2d", "'conv.spikes'"),
    (["first.current"], "/record/0", "one of output, spikes, membrane of layer first", "'first.current'"),
    (["out.spikes"], "/record/0", "one of output, membrane of layer out, of kind exp_leak", "'out.spikes'"),
    (["out.output", "out.output"], "/record/1", "a name that comes once", "'out.output'"),
    (["out.output"] * 33, "/record", "a list of at most 32 names", "one of 33"),
]


@pytest.mark.parametrize(("record", "pointer", "expected", "got"), REFUSED)
def test_a_record_that_does_not_fit_is_refused(record: Any, pointer: str, expected: str, got: str) -> None:
    with pytest.raises(RecordError) as caught, observe(network.build(DEEP), record):
        pass
    assert caught.value.pointer == pointer
    assert expected in caught.value.expected
    assert got in caught.value.got
