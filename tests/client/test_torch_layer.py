"""The remote layer against the same neuron in a local loop, differentiated by autograd."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from exodus_client import Tanh
from exodus_client.torch import RemoteLIF, remote_lif


def local_lif(
    x: Tensor,
    alpha: Any,
    threshold: Any = 1.0,
    reset_by: Any = None,
    initial_membrane: Any = 0.0,
    initial_spikes: Any = 0.0,
) -> tuple[Tensor, Tensor]:
    """u[t] = alpha u[t-1] + x[t] - rho s[t-1], with the exponential surrogate as the slope of s."""
    rho = threshold if reset_by is None else reset_by
    u, s = torch.as_tensor(initial_membrane), torch.as_tensor(initial_spikes)
    spikes, membrane = [], []
    for t in range(x.shape[1]):
        u = alpha * u + x[:, t] - rho * s
        linear = torch.exp(-(u - threshold).abs()).detach() * (u - threshold)
        s = (u >= threshold).to(x.dtype) + linear - linear.detach()
        spikes.append(s)
        membrane.append(u)
    return torch.stack(spikes, 1), torch.stack(membrane, 1)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 12, 3, dtype=torch.float64).requires_grad_()


def leaf(*shape: int, low: float = 0.5) -> Tensor:
    return (low + 0.5 * torch.rand(shape, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("with_reset_by", [False, True])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_remote_neuron_has_the_gradients_of_the_local_one(
    service: Any, x: Tensor, shape: Any, with_reset_by: bool
) -> None:
    leaves = {"alpha": leaf(*shape), "threshold": leaf(*shape), "initial_membrane": leaf(2, 3)}
    if with_reset_by:
        leaves["reset_by"] = leaf(*shape)
    found, wanted = [], []
    for outputs, to in (
        (remote_lif(service.client(), x, **leaves), found),
        (local_lif(x, **leaves), wanted),
    ):
        weights = [torch.linspace(-1, 1, 72, dtype=torch.float64).reshape(2, 12, 3), torch.ones(2, 12, 3).double()]
        to += [*outputs, *torch.autograd.grad(outputs, [x, *leaves.values()], weights)]
    for remote, local in zip(found, wanted, strict=True):
        torch.testing.assert_close(remote, local)
    forward, backward = service.messages
    assert set(forward.tensors) == {"input", *leaves}
    assert "grad_output" in backward.tensors
    assert "input" not in backward.tensors


def test_the_server_is_asked_for_what_is_needed_and_nothing_else(service: Any, x: Tensor) -> None:
    client = service.client()
    with torch.no_grad():
        remote_lif(client, x, 0.9)
    remote_lif(client, x.detach(), 0.9)
    assert len(service.requests) == 2

    spikes, _ = remote_lif(client, x, leaf(3).detach())
    spikes.sum().backward()
    *_, backward = service.messages
    assert backward.params["wrt"] == []
    assert set(backward.tensors) == {"membrane", "grad_output", "alpha"}

    alpha = leaf(3)
    _, membrane = remote_lif(client, x.detach(), alpha)
    membrane.sum().backward()
    *_, backward = service.messages
    assert backward.params["wrt"] == ["alpha"]
    assert set(backward.tensors) == {"membrane", "grad_membrane", "alpha"}
    assert alpha.grad is not None


def test_a_second_derivative_is_refused(service: Any, x: Tensor) -> None:
    spikes, _ = remote_lif(service.client(), x, 0.9)
    (first,) = torch.autograd.grad(spikes.square().sum() + (spikes * x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("name", ["initial_spikes", "min_membrane"])
def test_a_gradient_that_the_server_does_not_compute_is_refused(service: Any, x: Tensor, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: requires a gradient"):
        remote_lif(service.client(), x, 0.9, **{name: leaf(3)})
    assert not service.requests


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_keep_the_dtype(service: Any, x: Tensor, dtype: torch.dtype) -> None:
    low = x.detach().to(dtype).requires_grad_()
    spikes, membrane = remote_lif(service.client(), low, 0.9)
    spikes.sum().backward()
    assert spikes.dtype == membrane.dtype == dtype
    assert low.grad is not None
    assert low.grad.dtype == dtype


class TestModule:
    def test_it_trains_in_a_model(self, service: Any) -> None:
        layer = RemoteLIF(service.client(), 0.9, threshold=torch.tensor(0.5), trainable=("alpha", "threshold"))
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), layer)
        assert {name for name, _ in model.named_parameters()} == {"0.weight", "0.bias", "1.alpha", "1.threshold"}
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
        before = copy.deepcopy(model.state_dict())
        model(torch.randn(2, 8, 4)).sum().backward()
        optimiser.step()
        assert all(not torch.equal(before[name], after) for name, after in model.state_dict().items())
        assert layer.membrane is not None
        assert layer.membrane.shape == (2, 8, 3)

    def test_tensors_move_with_the_module_and_numbers_stay(self, service: Any) -> None:
        layer = RemoteLIF(service.client(), torch.full((3,), 0.9), reset_by=0.5, min_membrane=torch.tensor(-1.0))
        assert set(layer.state_dict()) == {"alpha", "min_membrane"}
        assert layer.reset_by == 0.5
        assert layer.double().alpha.dtype == torch.float64  # type: ignore[union-attr]
        assert not list(layer.parameters())

    def test_its_arguments_reach_the_server(self, service: Any) -> None:
        layer = RemoteLIF(
            service.client(),
            0.9,
            reset="zero",
            decay_reset=True,
            surrogate=Tanh(2.0),
            method="slayer",
            min_membrane=-3.0,
            max_spikes=2,
            time_dim=-2,
        )
        layer(torch.randn(2, 8, 3))
        params = service.messages[0].params
        assert service.requests[0].url.path == "/v1/gradients/slayer"
        assert params["surrogate"] == {"kind": "tanh", "slope": 2.0, "scale": 1.0}
        assert params["time_dim"] == -2
        assert params["neuron"] == {
            "model": "lif",
            "alpha": 0.9,
            "threshold": 1.0,
            "reset": "zero",
            "decay_reset": True,
            "min_membrane": -3.0,
            "max_spikes": 2,
        }

    def test_a_sequence_in_two_calls_gives_the_spikes_of_the_whole(self, service: Any, x: Tensor) -> None:
        layer = RemoteLIF(service.client(), 0.9, stateful=True)
        halves = torch.cat([layer(x[:, :5]), layer(x[:, 5:])], 1)
        assert torch.equal(halves, local_lif(x, 0.9)[0])
        halves.sum().backward()  # ends at the border between the calls
        layer.reset_state()
        assert torch.equal(layer(x), halves)

    def test_it_stands_in_for_a_local_layer_in_truncated_backpropagation(self, service: Any, x: Tensor) -> None:
        layer = RemoteLIF(service.client(), 0.9, stateful=True)
        layer.detach_state()
        first = layer(x[:, :5])
        layer.detach_state()
        assert layer.state is not None
        assert not any(part.requires_grad for part in layer.state)
        layer(x[:, 5:]).sum().backward()
        assert x.grad is not None
        assert not x.grad[:, :5].any()
        first.sum().backward()
        assert x.grad[:, :5].any()

    def test_a_call_without_time_leaves_the_state_as_it_is(self, service: Any, x: Tensor) -> None:
        layer = RemoteLIF(service.client(), 0.9, stateful=True)
        layer(x[:, :0])
        assert layer.state is None
        layer(x[:, :5])
        kept = layer.state
        layer(x[:, 5:5])
        assert layer.state is kept

    def test_a_batch_of_another_shape_than_the_state_is_refused(self, service: Any, x: Tensor) -> None:
        layer = RemoteLIF(service.client(), 0.9, stateful=True, time_dim=-2)
        layer(x)
        with pytest.raises(ValueError, match=r"x: got shape \[1, 12, 3\].*call reset_state\(\)"):
            layer(x[:1])
        assert len(service.requests) == 1

    @pytest.mark.parametrize("stateful", [False, True])
    def test_it_can_be_copied_after_a_call(self, service: Any, x: Tensor, stateful: bool) -> None:
        layer = RemoteLIF(service.client(), 0.9, trainable="alpha", stateful=stateful)
        layer(x)
        copied = copy.deepcopy(layer)
        assert copied.client is layer.client
        assert copied.membrane is None
        assert layer.membrane is not None
        assert torch.equal(copied(x), layer(x))

    def test_without_state_each_call_starts_from_rest(self, service: Any, x: Tensor) -> None:
        layer = RemoteLIF(service.client(), 0.9)
        assert torch.equal(layer(x), layer(x))
        assert layer.state is None

    def test_it_shows_its_server_and_no_key(self, service: Any) -> None:
        shown = repr(RemoteLIF(service.client(api_key="secret"), 0.9))
        assert "client=Client('http://node:8000'), method='exodus', reset='subtract', time_dim=1" in shown
        assert "secret" not in shown

    @pytest.mark.parametrize("trainable", ["beta", ("beta",), ("reset_by",), ("min_membrane",)])
    def test_what_cannot_be_trained_is_refused(self, service: Any, trainable: Any) -> None:
        with pytest.raises(ValueError, match=r"trainable: got .*, want names of parameters"):
            RemoteLIF(service.client(), 0.9, trainable=trainable)
