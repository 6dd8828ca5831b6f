"""Training on the server, over HTTP, against the same training in this process: equal to the bit."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch

from exodus_client import Client
from exodus_core import losses, network, training

LIF = {"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"]}
READOUT = [{"kind": "linear", "out_features": 4}, {"kind": "exp_leak", "alpha": 0.9, "trainable": ["alpha"]}]
KERNEL = {"kind": "exponential", "alpha": 0.8, "amplitude": -1.0}
# Each kind of network: the shape of a sample in one step, and what is before the readout.
NETWORKS: dict[str, tuple[list[int], list[dict[str, Any]]]] = {
    "feed-forward": ([12], [{"kind": "linear", "out_features": 16, "gain": 2.0}, LIF]),
    "convolutional": (
        [2, 6, 6],
        [
            {"kind": "conv2d", "out_channels": 4, "kernel_size": 3, "padding": 1, "gain": 2.0},
            LIF,
            {"kind": "sum_pool", "kernel_size": 2},
            {"kind": "flatten"},
        ],
    ),
    "recurrent": (
        [12],
        [{"kind": "linear", "out_features": 10, "gain": 2.0}, LIF | {"recurrent": {"bias": True, "gain": 0.5}}],
    ),
    "batch norm and dropout": (
        [12],
        [
            {"kind": "linear", "out_features": 16},
            {"kind": "batch_norm"},
            LIF,
            {"kind": "dropout", "p": 0.3},
        ],
    ),
    "in pieces": (
        [12],
        [
            {"kind": "linear", "out_features": 16, "gain": 2.0},
            LIF,
            {"kind": "dropout", "p": 0.3},
            {"kind": "linear", "out_features": 10, "gain": 2.0},
            LIF | {"recurrent": {"bias": True, "gain": 0.5}},
        ],
    ),
    "delays": (
        [12],
        [
            {"kind": "delayed_linear", "out_features": 16, "max_delay": 5, "gain": 4.0},
            LIF,
            {"kind": "delay", "max_delay": 4, "trainable": ["delays"]},
        ],
    ),
    "delays in pieces": (
        [12],
        [
            {"kind": "delay", "delays": 1.5},
            {"kind": "delayed_linear", "out_features": 16, "max_delay": 5, "gain": 4.0, "width": 0.75},
            LIF,
        ],
    ),
    "srm": (
        [12],
        [
            {"kind": "linear", "out_features": 16},
            {"kind": "srm", "reset_kernel": KERNEL, "response_kernel": {"kind": "alpha", "tau": 2.0}, "threshold": 0.5},
        ],
    ),
    "pools and branches": (
        [2, 8, 8],
        [
            {"kind": "conv2d", "out_channels": 4, "kernel_size": 3, "padding": 1, "gain": 3.0},
            LIF | {"name": "s"},
            {"kind": "max_pool", "kernel_size": 3, "stride": 2, "padding": 1, "name": "fine"},
            {"kind": "adaptive_max_pool", "output_size": 4, "inputs": ["s"], "name": "coarse"},
            {"kind": "concat", "inputs": ["fine", "coarse", "fine"]},
            {"kind": "adaptive_avg_pool", "output_size": [2, 1]},
            {"kind": "reshape", "shape": [24]},
        ],
    ),
    "graph with add": (
        [12],
        [
            {"kind": "linear", "out_features": 16, "gain": 2.0},
            LIF | {"name": "first"},
            {"kind": "linear", "out_features": 16, "gain": 2.0},
            {"kind": "if"},
            {"kind": "add", "inputs": ["first", "3"]},
        ],
    ),
}
# Of networks that run in pieces: the steps of one.
CHECKPOINT_STEPS = {"in pieces": 6, "delays in pieces": 7}
OPTIMIZERS = {
    "adam": {"kind": "adam", "lr": 3e-3},
    "sgd": {"kind": "sgd", "lr": 0.003, "momentum": 0.9, "nesterov": True},
}
STEPS = 50


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_fifty_steps_over_http_give_the_bits_of_fifty_in_process(
    client: Client, kind: str, optimizer: str, tmp_path: Path
) -> None:
    shape, layers = NETWORKS[kind]
    description = {"input_shape": shape, "layers": layers + READOUT, "checkpoint_steps": CHECKPOINT_STEPS.get(kind)}
    chance = torch.Generator().manual_seed(7)
    spikes = (torch.rand(STEPS, 5, 20, *shape, generator=chance) < 0.2).bool()
    targets = torch.randint(0, 4, (STEPS, 5), generator=chance)

    model = client.create_model(description, optimizer=OPTIMIZERS[optimizer], seed=3)
    futures = [model.step(x, y, loss="max_over_time_ce", clip_norm=2.0) for x, y in zip(spikes, targets, strict=True)]
    remote = [future.result(timeout=60) for future in futures]

    trainer = training.Trainer(network.build(description, seed=3), OPTIMIZERS[optimizer])
    loss = losses.parse("max_over_time_ce")
    before = trainer.weights()
    local = [trainer.step(x, y, loss, clip_norm=2.0) for x, y in zip(spikes, targets, strict=True)]

    assert not torch.equal(before, trainer.weights())  # it moves
    assert [result.sequence for result in remote] == list(range(1, STEPS + 1))
    assert [dict(result.metrics) for result in remote] == [metrics for metrics, _ in local]
    assert [dict(result.grad_norms) for result in remote] == [norms for _, norms in local]
    model.save(tmp_path / "state.safetensors")
    state, wanted = safetensors.torch.load_file(tmp_path / "state.safetensors"), trainer.state()
    assert state.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []
    client.delete_model(model.id)


@pytest.mark.parametrize("kind", NETWORKS)
def test_recordings_and_statistics_over_http_are_those_in_process(client: Client, kind: str) -> None:
    shape, layers = NETWORKS[kind]
    data = {"input_shape": shape, "layers": layers + READOUT, "checkpoint_steps": CHECKPOINT_STEPS.get(kind)}
    description = network.parse(data)
    record = [f"{layer.name}.output" for layer in description.layers]
    record += [f"{layer.name}.spikes" for layer in description.layers if layer.fires]
    record += [f"{layer.name}.membrane" for layer in description.layers if layer.has_membrane]
    spikes = torch.rand(5, 20, *shape, generator=torch.Generator().manual_seed(7)) < 0.2
    targets = torch.tensor([0, 1, 2, 3, 0])
    model = client.create_model(data, optimizer="adam", seed=3)
    trainer = training.Trainer(network.build(data, seed=3), "adam")
    for _ in range(2):
        remote = model.step(spikes, targets, loss="max_over_time_ce", record=record, statistics=True).result(60)
        with network.observe(trainer.net, record, statistics=True) as seen:
            local = trainer.step(spikes, targets, "max_over_time_ce")
        assert [name for name in record if not torch.equal(remote.recordings[name], seen.recordings[name])] == []
        statistics = seen.statistics_of_step(local.grad_norms)
        assert remote.statistics is not None
        assert {name: asdict(numbers) for name, numbers in remote.statistics.items()} == {
            name: asdict(numbers) for name, numbers in statistics.items()
        }
    evaluated = model.forward(spikes, record=record, statistics=True).result(60)
    with network.observe(trainer.net, record, statistics=True) as seen:
        trainer.forward(spikes)
    assert [name for name in record if not torch.equal(evaluated.recordings[name], seen.recordings[name])] == []
    client.delete_model(model.id)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_state_loads_what_it_gave_scalars_too(client: Client, kind: Literal["numpy", "torch"]) -> None:
    layers = [{"kind": "linear", "in_features": 3, "out_features": 2}, LIF]
    model = client.create_model(layers, optimizer=OPTIMIZERS["adam"])
    weights = model.state_dict(kind)
    assert weights["1.alpha"].shape == ()
    model.load_state_dict({name: value * 0.5 for name, value in weights.items()})
    for name, value in model.state_dict(kind).items():
        assert value.shape == weights[name].shape
        assert (value == weights[name] * 0.5).all(), name
    client.delete_model(model.id)
