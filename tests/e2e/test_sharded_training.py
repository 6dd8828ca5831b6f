"""One model on two services, and layers in two requests, against the same computed here."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch

from examples.local_service import running_service
from exodus_client import Client, ShardedClient, UnprocessableError
from exodus_client.torch import RemoteLIF
from exodus_core import losses, network, nn, training

LOSS = "max_over_time_ce"
ADAM = {"kind": "adam", "lr": 1e-2}
LAYERS = [
    {"kind": "linear", "in_features": 12, "out_features": 20},
    {"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"], "recurrent": {}},
    {"kind": "linear", "out_features": 5},
    {"kind": "exp_leak", "alpha": 0.9},
]


@pytest.fixture(scope="module")
def servers(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardedClient]:
    folder = tmp_path_factory.mktemp("second")
    with running_service(folder / "service.log") as url, ShardedClient([client, url]) as servers:
        yield servers


def batches(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield (rng.random((7, 40, 12)) < 0.2).astype(np.float32), rng.integers(0, 5, 7)


def test_two_servers_train_as_one_trainer_does_and_stay_equal_to_the_bit(servers: ShardedClient) -> None:
    model = servers.create_model(LAYERS, optimizer=ADAM, seed=1)
    trainer = training.Trainer(network.build({"layers": LAYERS}, seed=1), ADAM)
    loss = losses.parse(LOSS)
    for x, y in batches(10):
        found = model.step(x, y, loss=LOSS, clip_norm=1.0).result()
        wanted = trainer.step(torch.from_numpy(x), torch.from_numpy(y), loss, clip_norm=1.0)
        assert found.loss == pytest.approx(wanted.metrics["loss:mean"], rel=1e-4)
        assert found.metrics["samples:sum"] == 7
    first, second = (replica.state_dict() for replica in model.replicas)
    for name, weight in trainer.net.state_dict().items():
        assert np.array_equal(first[name], second[name])
        torch.testing.assert_close(torch.from_numpy(first[name]), weight, rtol=1e-3, atol=1e-4)
    model.close()
    servers.delete_model(model.id)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_both_servers_load_what_one_gave_scalars_too(servers: ShardedClient, kind: Literal["numpy", "torch"]) -> None:
    model = servers.create_model(LAYERS, optimizer=ADAM, seed=1)
    weights = model.state_dict(kind)
    assert weights["1.alpha"].shape == ()
    model.load_state_dict(weights)
    for replica in model.replicas:
        assert all((value == weights[name]).all() for name, value in replica.state_dict(kind).items())
    model.close()
    servers.delete_model(model.id)


def test_a_part_that_is_refused_leaves_no_trace_in_the_training(servers: ShardedClient) -> None:
    weights = []
    for disturbed in (False, True):
        model = servers.create_model(LAYERS, optimizer=ADAM, seed=1)
        for x, y in batches(4):
            if disturbed:
                with pytest.raises(UnprocessableError, match="targets"):
                    model.step(x, np.append(y[:-1], 5), loss=LOSS).result()  # class 5 of 0 to 4, on the second
            model.step(x, y, loss=LOSS).result()
        weights.append(model.state_dict())
        model.close()
        servers.delete_model(model.id)
    for name, weight in weights[0].items():
        assert np.array_equal(weight, weights[1][name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"trainable": ("alpha", "threshold")}, {"reset": "zero", "stateful": True}])
def test_a_remote_layer_has_the_bits_of_the_local_one(
    client: Client, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    found = []
    for layer in (RemoteLIF(client, 0.9, **options).to(dtype), nn.LIF(0.9, **options).to(dtype)):
        torch.manual_seed(0)
        x = torch.randn(4, 30, 17).to(dtype).requires_grad_()
        spikes = layer(x)
        (spikes * torch.linspace(-1, 1, spikes.numel()).reshape(spikes.shape).to(dtype)).sum().backward()
        found.append([spikes, x.grad, *(parameter.grad for parameter in layer.parameters())])
    for remote, local in zip(*found, strict=True):
        assert torch.equal(remote, local)


def test_a_second_backward_pass_gives_the_same_bits_from_the_inputs(client: Client) -> None:
    x = torch.randn(4, 30, 17, requires_grad=True)
    spikes = RemoteLIF(client, 0.9)(x).sum()
    first, second = (torch.autograd.grad(spikes, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
