"""A model of another library trains on a real service in two lines, and starts with the library's spikes there."""

import warnings

import pytest
import torch

import exodus_core
from exodus_client import Client

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]


def test_a_model_of_snntorch_trains_on_the_service(client: Client) -> None:
    snntorch = pytest.importorskip("snntorch", reason="run `make peers`")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(20, 30),
        snntorch.Leaky(beta=0.9, learn_beta=True, init_hidden=True),
        torch.nn.Linear(30, 4),
        snntorch.Synaptic(alpha=0.7, beta=0.8, init_hidden=True),
    )
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(4)
    description, weights = exodus_core.to_network(net, input_shape=[20])
    model = client.create_model(description, weights=weights)
    x = (torch.rand(8, 40, 20) < 0.3).float()
    with warnings.catch_warnings(), torch.no_grad():
        wanted = exodus_core.accelerate(net, time_dim=1, exact=True)(x)
    found = model.forward(x).result().outputs
    assert wanted.any()
    assert torch.equal(torch.as_tensor(found), wanted)
    losses = [model.step(x, torch.arange(8) % 4, loss="sum_over_time_ce").result().loss for _ in range(10)]
    assert losses[-1] < losses[0]
