"""Numbers about the layers of a pass against counts of its traces."""

import math
import subprocess
import sys
from typing import Any

import network_cases as cases
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from exodus_core import network
from exodus_core.network import LayerStatistics, observe
from exodus_core.network.recording import observed_bytes, parse_record
from exodus_core.network.statistics import with_gradient_norms
from exodus_core.training import Trainer

LIF = {"kind": "lif", "alpha": 0.9}
DEEP: dict[str, Any] = {
    "input_shape": [4, 9, 7],
    "layers": [
        {
            "kind": "conv2d",
            "out_channels": 6,
            "kernel_size": [3, 2],
            "stride": [2, 1],
            "padding": [2, 1],
            "dilation": [1, 3],
            "groups": 2,
            "gain": 4.0,
            "name": "conv",
        },
        LIF | {"name": "first", "threshold": 1.5, "trainable": ["alpha"]},
        {"kind": "conv2d", "out_channels": 5, "kernel_size": 3, "gain": 2.0, "name": "again"},
        LIF | {"name": "graded", "max_spikes": 3, "threshold": 0.5},
        {"kind": "avg_pool", "kernel_size": 2, "name": "pool"},
        {"kind": "flatten"},
        {"kind": "linear", "out_features": 20, "gain": 2.0, "name": "dense"},
        LIF | {"recurrent": {"gain": 2.0}, "name": "back"},
        {"kind": "srm", "reset_kernel": [-1.0], "name": "srm"},
        {"kind": "batch_norm", "name": "norm"},
        {"kind": "linear", "out_features": 3, "name": "last"},
        {"kind": "exp_leak", "alpha": 0.9, "name": "out"},
    ],
}
# What can run in pieces.
PLAIN = DEEP | {"layers": [layer for layer in DEEP["layers"] if layer["kind"] not in ("srm", "batch_norm")]}
RECORD = ["first.spikes", "graded.spikes", "pool.output", "back.spikes", "dense.output", "last.output"]


def signal(net: network.Network, batch: int = 3, time: int = 11) -> Tensor:
    return torch.rand(batch, time, *net.description.input_shape) < 0.3


def operations(net: network.Network, layer: str, x: Tensor) -> int:
    """Synaptic operations, by the layer itself with weights of one and an input of zeros and ones."""
    module: Any = net._modules[layer]
    weight, mask = torch.ones_like(module.weight, dtype=torch.float64), (x != 0).double()
    if weight.dim() == 2:
        return int(F.linear(mask, weight).sum())
    stride, padding, dilation = module.options
    convolution = F.conv1d if weight.dim() == 3 else F.conv2d
    return int(convolution(mask.flatten(0, 1), weight, None, stride, padding, dilation, module.groups).sum())


@pytest.mark.parametrize("data", [DEEP, PLAIN, PLAIN | {"checkpoint_steps": 4}], ids=["whole", "plain", "in pieces"])
def test_numbers_are_those_that_the_traces_have(data: dict[str, Any]) -> None:
    net = network.build(data, seed=1)
    x = signal(net)
    expected = net(x)
    with observe(net, RECORD, statistics=True) as seen:
        assert torch.equal(net(x), expected)
    found, traces = seen.statistics, seen.recordings
    assert list(found) == [
        name
        for name in ("conv", "first", "again", "graded", "dense", "back", "srm", "last")
        if name in [layer["name"] for layer in data["layers"] if "name" in layer]
    ]
    for name in ("first", "graded", "back"):
        spikes = traces[f"{name}.spikes"].double()
        rate = found[name].firing_rate
        assert rate is not None
        assert math.isclose(rate, spikes.mean().item(), rel_tol=1e-12)
        assert found[name].silent == (spikes.amax((0, 1)) == 0).double().mean().item()
    assert traces["graded.spikes"].max() > 1
    assert 0 < (found["first"].silent or 0) < 1
    for name, given in (
        ("conv", x),
        ("again", traces["first.spikes"]),
        ("dense", traces["pool.output"].flatten(2)),
    ):
        assert found[name].synaptic_operations == operations(net, name, given)
        assert found[name].dense_operations == operations(net, name, torch.ones_like(given))
        assert found[name].firing_rate is None
    back = traces["back.spikes"]
    assert found["back"].synaptic_operations == int(back[:, :-1].count_nonzero()) * 20
    assert found["back"].dense_operations == 3 * 10 * 20 * 20
    assert all(numbers.grad_norm is None for numbers in found.values())


@pytest.mark.parametrize("case", [case for case in cases.CASES if case.startswith(("conv", "linear"))])
def test_the_fan_out_of_every_connection_is_counted_exactly(case: str) -> None:
    net = network.build(cases.describe(case))
    x = (torch.rand(2, 3, *net.description.input_shape) < 0.4).double()
    with observe(net, statistics=True) as seen:
        net(x)
    layer = net.description.layers[0].name
    assert seen.statistics[layer].synaptic_operations == operations(net, layer, x)
    assert seen.statistics[layer].dense_operations == operations(net, layer, torch.ones_like(x))


@pytest.mark.parametrize("stride", [1, 2, 3, 6])
@pytest.mark.parametrize("dilation", [1, 2, 4, 9])
@pytest.mark.parametrize(("size", "kernel", "padding"), [(11, 1, 0), (12, 2, 5), (40, 4, 3), (9, 3, 40)])
def test_the_windows_that_see_a_place_are_counted_exactly(
    size: int, kernel: int, padding: int, stride: int, dilation: int
) -> None:
    if size + 2 * padding < dilation * (kernel - 1) + 1:
        padding += dilation * kernel
    layer = {"kind": "conv1d", "out_channels": 1, "kernel_size": kernel, "stride": stride, "padding": padding}
    net = network.build({"input_shape": [1, size], "dtype": "float64", "layers": [layer | {"dilation": dilation}]})
    for place in range(size):
        x = torch.zeros(1, 1, 1, size, dtype=torch.float64)
        x[..., place] = 1
        with observe(net, statistics=True) as seen:
            net(x)
        assert seen.statistics["0"].synaptic_operations == operations(net, "0", x)


def test_counting_takes_no_more_memory_for_a_large_kernel() -> None:
    program = """
import resource, torch
from exodus_core import network
from exodus_core.network.statistics import counter_bytes, dense_operations
layer = {"kind": "conv1d", "out_channels": 1, "kernel_size": 8000}
description = network.parse({"input_shape": [1, 16000], "layers": [layer]})
small = network.parse({"input_shape": [1, 8], "layers": [layer | {"kernel_size": 3}]})
dense_operations(small, 1, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert dense_operations(description, 1, 1) == {"0": 8001 * 8000}
grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
assert grown <= counter_bytes(description, 1), grown
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_numbers_do_not_depend_on_how_many_elements_are_counted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network.build(DEEP, seed=1).eval()
    x = signal(net)
    found = []
    for block in (2**18, 700, 1):
        monkeypatch.setattr("exodus_core.network.statistics._BLOCK", block)
        with observe(net, statistics=True) as seen:
            net(x)
        found.append(seen.statistics)
    assert found[0] == found[1] == found[2]


def test_a_training_call_adds_the_norm_of_each_layers_gradient() -> None:
    trainer = Trainer(network.build(DEEP, seed=1), "adam")
    x, targets = signal(trainer.net), torch.tensor([0, 1, 2])
    with observe(trainer.net, statistics=True) as seen:
        result = trainer.forward_backward(x, targets, "max_over_time_ce")
    found = seen.statistics_of_step(result.grad_norms)
    for layer in trainer.net.description.layers:
        module: Any = trainer.net._modules[layer.name]
        gradients = [p.grad.double().flatten() for p in module.parameters()]
        if not gradients:
            assert layer.name not in found or found[layer.name].grad_norm is None
            continue
        norm = found[layer.name].grad_norm
        assert norm is not None
        assert norm == pytest.approx(torch.cat(gradients).norm().item(), rel=1e-5)
    assert found["norm"] == LayerStatistics(grad_norm=found["norm"].grad_norm)
    assert found["back"].firing_rate == seen.statistics["back"].firing_rate


def test_parameters_without_a_norm_do_not_count() -> None:
    description = network.parse(DEEP)
    found = with_gradient_norms(
        {}, {"conv.weight": 3.0, "conv.bias": 4.0, "dense.bias": 2.0, "total": 9.0}, description
    )
    assert found == {"conv": LayerStatistics(grad_norm=5.0), "dense": LayerStatistics(grad_norm=2.0)}


def test_statistics_that_were_not_asked_for_are_not_there() -> None:
    net = network.build(DEEP)
    with observe(net, ["first.spikes"]) as seen:
        net(signal(net))
    with pytest.raises(RuntimeError, match="statistics must be True in observe"):
        _ = seen.statistics


def test_the_bytes_of_an_observed_pass_are_known_before_it() -> None:
    description = network.parse(DEEP)
    record = parse_record(["first.spikes", "back.membrane"], description)
    first, back = 6 * 6 * 6, 20
    assert description.shape_of("first") == (6, 6, 6)
    assert observed_bytes(record[:1], False, description, 5, 7) == 5 * 7 * first * 4
    assert observed_bytes(record, False, description, 5, 7) > 5 * 7 * (first + 7 * back) * 4
    assert observed_bytes((), False, description, 5, 7) == 0
    assert observed_bytes((), True, description, 2**20, 7) > 2**20 * first
