"""Remote layers of second-order and adaptive LIF, and of LIF with its options, have the bits of the local ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import exodus_client
from exodus_client import Client
from exodus_client.torch import RemoteALIF, RemoteCubaLIF, RemoteLIF, remote_neurons
from exodus_core import alif, cuba_lif, nn

SYNAPSE = ("alpha", "synapse_alpha", "synapse_gain", "threshold")
ADAPTATION = ("alpha", "adapt_alpha", "adapt_by", "adapt_membrane", "adapt_threshold", "adapt_current", "threshold")
#: The layer on the server, the local one, and the arguments of both.
LAYERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "refractory": (RemoteLIF, nn.LIF, {"alpha": 0.9, "refractory": 2, "trainable": ("alpha", "threshold")}),
    "reset to a value": (
        RemoteLIF,
        nn.LIF,
        {"alpha": 0.9, "reset": "value", "reset_to": -0.2, "trainable": ("alpha", "threshold", "reset_to")},
    ),
    "detached reset": (RemoteLIF, nn.LIF, {"alpha": 0.9, "reset": "zero", "detach_reset": True, "trainable": "alpha"}),
    "bound after the reset": (
        RemoteLIF,
        nn.LIF,
        {
            "alpha": 0.9,
            "decay_reset": True,
            "min_membrane": -0.1,
            "bound_after_reset": True,
            "trainable": ("alpha", "threshold"),
        },
    ),
    "cuba_lif": (RemoteCubaLIF, nn.CubaLIF, {"alpha": 0.9, "synapse_alpha": 0.8, "trainable": SYNAPSE}),
    "late": (
        RemoteCubaLIF,
        nn.CubaLIF,
        {
            "alpha": 0.9,
            "synapse_alpha": torch.linspace(0.5, 0.9, 17),
            "synapse_gain": 0.5,
            "synapse_delayed": True,
            "decay_reset": True,
            "refractory": 1,
            "trainable": SYNAPSE,
        },
    ),
    "alif": (
        RemoteALIF,
        nn.ALIF,
        {"alpha": 0.9, "adapt_alpha": 0.8, "adapt_threshold": 0.3, "trainable": ADAPTATION},
    ),
    "alif with a synapse": (
        RemoteALIF,
        nn.ALIF,
        {
            "alpha": 0.9,
            "adapt_alpha": torch.linspace(0.5, 0.9, 17),
            "adapt_by": 0.7,
            "adapt_membrane": 0.1,
            "adapt_current": 0.2,
            "synapse_alpha": 0.7,
            "min_membrane": -1.0,
            "reset_by": 0.9,
            "trainable": ("adapt_alpha", "synapse_alpha", "synapse_gain", "reset_by"),
        },
    ),
}


@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", LAYERS)
def test_a_remote_layer_has_the_bits_of_the_local_one(
    client: Client, case: str, dtype: torch.dtype, method: str
) -> None:
    remote, local, options = LAYERS[case]
    found = []
    for layer in (remote(client, method=method, **options), local(method=method, **options)):
        layer = layer.to(dtype)
        torch.manual_seed(0)
        x = torch.randn(4, 30, 17).to(dtype).requires_grad_()
        spikes = layer(x)
        assert spikes.any()
        (spikes * torch.linspace(-1, 1, spikes.numel()).reshape(spikes.shape).to(dtype)).sum().backward()
        found.append([spikes, x.grad, *(parameter.grad for _, parameter in sorted(layer.named_parameters()))])
    for own, expected in zip(*found, strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["refractory", "cuba_lif", "alif"])
def test_half_types_have_the_bits_too(client: Client, case: str, dtype: torch.dtype) -> None:
    remote, local, options = LAYERS[case]
    options = options | {"trainable": ()}
    found = []
    for layer in (remote(client, **options), local(**options)):
        torch.manual_seed(0)
        x = torch.randn(4, 30, 17).to(dtype).requires_grad_()
        spikes = layer(x)
        spikes.sum().backward()
        found.append([spikes, x.grad])
    for own, expected in zip(*found, strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("case", LAYERS)
def test_truncated_backpropagation_is_that_of_the_local_layer(client: Client, case: str) -> None:
    remote, local, options = LAYERS[case]
    found = []
    for layer in (remote(client, stateful=True, **options), local(stateful=True, **options)):
        torch.manual_seed(0)
        x = torch.randn(4, 30, 17).requires_grad_()
        pieces = []
        for piece in x.split(11, 1):
            pieces.append(layer(piece))
            layer.detach_state()
        joined = torch.cat(pieces, 1)
        (joined * torch.linspace(-1, 1, joined.numel()).reshape(joined.shape)).sum().backward()
        state = dict(zip(layer.state_names, layer.state, strict=True))
        found.append([joined, x.grad, *(state[name] for name in ("membrane", "spikes"))])
    for own, expected in zip(*found, strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
@pytest.mark.parametrize("case", ["reset to a value", "cuba_lif", "alif"])
def test_reset_by_has_no_gradient_where_the_reset_is_to_a_value(client: Client, case: str, method: str) -> None:
    remote, local, options = LAYERS[case]
    options = options | {"reset": "value", "reset_to": 0.1, "reset_by": 0.5, "trainable": ("reset_to", "reset_by")}
    found = []
    for layer in (remote(client, method=method, **options), local(method=method, **options)):
        torch.manual_seed(0)
        x = torch.randn(4, 30, 17).requires_grad_()
        spikes = layer(x)
        spikes.sum().backward()
        assert layer.reset_by.grad is None
        found.append([spikes, x.grad, layer.reset_to.grad])
    for own, expected in zip(*found, strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("shape", [(0, 6, 17), (4, 0, 17)])
@pytest.mark.parametrize("case", LAYERS)
def test_stateful_layers_take_what_has_no_elements(client: Client, case: str, shape: tuple[int, ...]) -> None:
    remote, _, options = LAYERS[case]
    layer = remote(client, stateful=True, **options)
    x = torch.rand(shape).requires_grad_()
    spikes = layer(x)
    spikes.sum().backward()
    assert spikes.shape == shape
    assert x.grad is not None
    assert layer(x).shape == shape


def test_the_function_has_the_bits_of_the_local_ones(client: Client) -> None:
    given: dict[str, Any] = {"alpha": 0.9, "synapse_alpha": 0.8, "synapse_gain": 0.5}
    adaptive = {"alpha": 0.9, "adapt_alpha": 0.8, "adapt_threshold": 0.2}
    for kind, function, numbers in ((exodus_client.CubaLIF, cuba_lif, given), (exodus_client.ALIF, alif, adaptive)):
        found = []
        for is_remote in (True, False):
            torch.manual_seed(0)
            x, start = torch.randn(3, 20, 5).requires_grad_(), torch.rand(3, 5).requires_grad_()
            leaves: dict[str, Any] = {
                name: torch.full((5,), number).requires_grad_() for name, number in numbers.items()
            }
            more: dict[str, Any] = {"initial_membrane": start, "initial_refractory": 1.0}
            if is_remote:
                neuron: Any = kind(**leaves, refractory=1)
                outputs = remote_neurons(client, x, neuron, **more)
            else:
                outputs = function(x, **leaves, **more, refractory=1)
            found.append(
                [
                    *outputs,
                    *torch.autograd.grad(
                        outputs[0].square().sum() + outputs[1].square().sum(), [x, start, *leaves.values()]
                    ),
                ]
            )
        for own, expected in zip(*found, strict=True):
            assert torch.equal(own, expected)
