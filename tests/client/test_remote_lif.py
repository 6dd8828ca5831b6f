"""The remote layer against the same neuron in a local loop, differentiated by autograd."""

import copy
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from exodus_client import Client, InvalidResponseError, Tanh
from exodus_client.torch import RemoteLIF, remote_lif
from exodus_client.wire import Message, encode
from exodus_client.wire import Tensor as WireTensor


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
        s = (linear - linear.detach()) + (u >= threshold).to(x.dtype)  # in this order it is 0 or 1 to the bit
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
    leaves: dict[str, Any] = {"alpha": leaf(*shape), "threshold": leaf(*shape), "initial_membrane": leaf(2, 3)}
    if with_reset_by:
        leaves["reset_by"] = leaf(*shape)
    found: list[Tensor] = []
    wanted: list[Tensor] = []
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
    assert set(backward.tensors) == {"grad_output", "grad_membrane"}
    assert [request.url.path for request in service.requests] == ["/v1/layers/forward", "/v1/layers/backward"]
    assert not service.contexts


def test_the_server_is_asked_for_what_is_needed_and_nothing_else(service: Any, x: Tensor) -> None:
    client = service.client()
    with torch.no_grad():
        remote_lif(client, x, 0.9)
    remote_lif(client, x.detach(), 0.9)
    assert len(service.requests) == 2
    assert not service.contexts

    spikes, _ = remote_lif(client, x, leaf(3).detach())
    spikes.sum().backward()
    *_, backward = service.messages
    assert backward.params["wrt"] == []
    assert set(backward.tensors) == {"grad_output"}

    alpha = leaf(3)
    _, membrane = remote_lif(client, x.detach(), alpha)
    membrane.sum().backward()
    *_, backward = service.messages
    assert backward.params["wrt"] == ["alpha"]
    assert set(backward.tensors) == {"grad_membrane"}
    assert alpha.grad is not None


@pytest.mark.parametrize(
    "loss",
    [
        lambda spikes, x: spikes.square().sum() + (spikes * x).sum(),
        lambda spikes, x: spikes.sum(),  # the gradient that comes in is ones, and requires none
    ],
    ids=["a loss with a curvature", "a sum"],
)
def test_a_second_derivative_is_refused(service: Any, x: Tensor, loss: Any) -> None:
    spikes, _ = remote_lif(service.client(), x, 0.9)
    (first,) = torch.autograd.grad(loss(spikes, x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives of a remote layer are not computed"):
        first.sum().backward()


def test_create_graph_gives_the_same_first_derivatives(service: Any, x: Tensor) -> None:
    alpha = leaf(3)
    spikes, _ = remote_lif(service.client(), x, alpha)
    expected = torch.autograd.grad(spikes.sum(), (x, alpha), retain_graph=True)
    found = torch.autograd.grad(spikes.sum(), (x, alpha), create_graph=True)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_only_a_client_and_a_tensor_are_taken(service: Any, x: Tensor) -> None:
    with pytest.raises(TypeError, match=r"client must be a Client, .*got str"):
        RemoteLIF("http://node:8000", 0.9)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"client must be a Client, .*got str"):
        remote_lif("http://node:8000", x, 0.9)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got ndarray"):
        RemoteLIF(service.client(), 0.9, stateful=True)(x.detach().numpy())
    assert not service.requests


@pytest.mark.parametrize("name", ["initial_spikes", "min_membrane"])
def test_a_gradient_that_the_server_does_not_compute_is_refused(service: Any, x: Tensor, name: str) -> None:
    given: Any = {name: leaf(3)}
    with pytest.raises(ValueError, match=f"{name} must be a tensor without a gradient"):
        remote_lif(service.client(), x, 0.9, **given)
    assert not service.requests


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_keep_the_dtype(service: Any, x: Tensor, dtype: torch.dtype) -> None:
    low = x.detach().to(dtype).requires_grad_()
    spikes, membrane = remote_lif(service.client(), low, 0.9)
    spikes.sum().backward()
    assert spikes.dtype == membrane.dtype == dtype
    assert low.grad is not None
    assert low.grad.dtype == dtype


def problem(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "detail": f"{code}; go on", "retryable": False})


class TestWithoutContext:
    """The way through gradient requests, which needs nothing of the server between two of them."""

    @pytest.fixture
    def wanted(self, service: Any, x: Tensor) -> list[Tensor]:
        """Gradients of x and alpha by the way through contexts."""
        found = self.gradients_of(service.client(), x)
        service.requests.clear()
        return found

    @staticmethod
    def gradients_of(client: Client, x: Tensor) -> list[Tensor]:
        alpha = torch.full((3,), 0.9, dtype=torch.float64, requires_grad=True)
        spikes, membrane = remote_lif(client, x, alpha)
        return list(torch.autograd.grad(spikes.sum() + membrane.square().sum(), (x, alpha)))

    def paths(self, service: Any) -> list[str]:
        return [request.url.path.removeprefix("/v1/") for request in service.requests]

    def answer(self, service: Any, path: str, answer: Callable[[], httpx.Response]) -> None:
        service.handler = lambda request: answer() if request.url.path == path else service.compute(request)

    @pytest.mark.parametrize("refusal", [(410, "context_expired"), (404, "not_found")])
    def test_an_expired_context_sends_the_inputs_again(
        self, service: Any, x: Tensor, wanted: list[Tensor], refusal: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.answer(service, "/v1/layers/backward", lambda: problem(*refusal))
        client = service.client()
        for _ in range(2):
            for found, expected in zip(self.gradients_of(client, x), wanted, strict=True):
                assert torch.equal(found, expected)
        assert self.paths(service) == ["layers/forward", "layers/backward", "gradients/exodus"] * 2
        assert service.messages[2].tensors.keys() == {"input", "alpha", "grad_output", "grad_membrane"}
        (said,) = caplog.messages  # once, not every time
        assert "send their inputs again" in said
        assert refusal[1] in said

    def test_a_server_without_layers_is_asked_once(
        self, service: Any, x: Tensor, wanted: list[Tensor], caplog: pytest.LogCaptureFixture
    ) -> None:
        self.answer(service, "/v1/layers/forward", lambda: problem(404, "not_found"))
        client = service.client()
        for _ in range(2):
            for found, expected in zip(self.gradients_of(client, x), wanted, strict=True):
                assert torch.equal(found, expected)
        assert self.paths(service) == ["layers/forward", *["gradients/exodus"] * 4]
        assert len(caplog.messages) == 1

    def test_what_is_too_large_to_be_kept_is_sent_again_and_smaller_layers_are_kept(
        self, service: Any, x: Tensor, wanted: list[Tensor]
    ) -> None:
        self.answer(service, "/v1/layers/forward", lambda: problem(413, "too_large"))
        client = service.client()
        for found, expected in zip(self.gradients_of(client, x), wanted, strict=True):
            assert torch.equal(found, expected)
        service.handler = service.compute
        self.gradients_of(client, x)
        self.gradients_of(client, x[:1])
        assert self.paths(service) == [
            *("layers/forward", "gradients/exodus", "gradients/exodus"),
            *("gradients/exodus", "gradients/exodus"),
            *("layers/forward", "layers/backward"),
        ]

    def test_a_second_backward_pass_goes_without_the_context_of_the_first(self, service: Any, x: Tensor) -> None:
        spikes, _ = remote_lif(service.client(), x, 0.9)
        first, second = (torch.autograd.grad(spikes.sum(), x, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, second)
        assert self.paths(service) == ["layers/forward", "layers/backward", "gradients/exodus"]

    def test_an_input_that_was_changed_in_between_is_noticed(self, service: Any, x: Tensor) -> None:
        inner = x * 1
        spikes, _ = remote_lif(service.client(), inner, 0.9)
        inner.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            spikes.sum().backward()

    @pytest.mark.parametrize(("params", "names"), [({}, ("spikes", "membrane")), ({"context": "c"}, ("spikes",))])
    def test_an_answer_that_lacks_something_is_refused(self, service: Any, x: Tensor, params: Any, names: Any) -> None:
        body = encode(Message.of(params, [WireTensor.of(name, x.detach()) for name in names]))
        headers = {"Content-Type": body.content_type}
        service.answers = [httpx.Response(200, content=b"".join(body.chunks), headers=headers)]
        with pytest.raises(
            InvalidResponseError, match=r"the answer (lacks a context|must be membrane, spikes, got spikes)"
        ):
            remote_lif(service.client(), x, 0.9)


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

    def test_the_membrane_comes_only_where_it_is_asked_for(self, service: Any, x: Tensor) -> None:
        layer = RemoteLIF(service.client(), 0.9)
        layer(x)
        with pytest.raises(RuntimeError, match="set return_membrane=True before the call"):
            layer.membrane  # noqa: B018
        asking = RemoteLIF(service.client(), 0.9, return_membrane=True)
        before = asking.membrane
        assert before is None
        asking(x)
        assert [message.params["return"] for message in service.messages] == [["spikes"], ["spikes", "membrane"]]
        assert asking.membrane is not None
        asking.membrane.square().sum().backward()
        assert x.grad is not None
        assert service.messages[-1].tensors.keys() == {"grad_membrane"}

    def test_tensors_move_with_the_module_and_numbers_stay(self, service: Any) -> None:
        layer = RemoteLIF(service.client(), torch.full((3,), 0.9), reset_by=0.5, min_membrane=torch.tensor(-1.0))
        assert {name for name, _ in layer.named_buffers()} == {"alpha", "min_membrane"}
        assert layer.reset_by == 0.5
        assert layer.double().alpha.dtype == torch.float64  # type: ignore[union-attr]
        assert not list(layer.parameters())

    def test_tensors_are_copied(self, service: Any) -> None:
        alpha = torch.tensor(0.9).expand(3)
        first, second = (RemoteLIF(service.client(), alpha, threshold=alpha, trainable="threshold") for _ in range(2))
        first.load_state_dict({"alpha": torch.zeros(3), "threshold": torch.ones(3)})
        for untouched in (alpha, second.alpha, second.threshold):
            assert isinstance(untouched, Tensor)
            assert torch.equal(untouched, torch.full((3,), 0.9))

    def test_a_tensor_that_requires_a_gradient_is_trained_or_refused(self, service: Any) -> None:
        start = torch.zeros(3, requires_grad=True).sigmoid()
        with pytest.raises(ValueError, match=r"alpha must be named in trainable, or need no gradient.*alpha\.detach"):
            RemoteLIF(service.client(), start)
        trained = RemoteLIF(service.client(), start, trainable="alpha")
        replaced = RemoteLIF(service.client(), torch.ones(3))
        replaced.alpha = start
        for layer in (trained, replaced):
            alpha = copy.deepcopy(layer).alpha
            assert isinstance(alpha, Tensor)
            assert torch.equal(alpha, start)

    def test_numbers_are_in_the_state_dict(self, service: Any) -> None:
        saved = torch.nn.Sequential(RemoteLIF(service.client(), 0.9, threshold=0.7, min_membrane=-1.0)).state_dict()
        layer = RemoteLIF(service.client(), 0.5, min_membrane=-2.0)
        torch.nn.Sequential(layer).load_state_dict(saved)
        assert (layer.alpha, layer.threshold, layer.min_membrane) == (0.9, 0.7, -1.0)
        trained = RemoteLIF(service.client(), 0.5, trainable="alpha", min_membrane=0.0)
        torch.nn.Sequential(trained).load_state_dict(saved)
        assert isinstance(trained.alpha, Tensor)
        assert trained.alpha.item() == pytest.approx(0.9)

    def test_a_state_dict_from_before_numbers_were_in_it_is_loaded(self, service: Any) -> None:
        layer = RemoteLIF(service.client(), 0.5)
        state = layer.state_dict()
        del state["alpha"]
        with pytest.raises(RuntimeError, match=r'Missing key.* "alpha"'):
            layer.load_state_dict(state)
        layer.load_state_dict({})
        assert layer.alpha == 0.5

    @pytest.mark.parametrize(
        ("saved", "message"),
        [
            (torch.ones(3), r"alpha must have one element, got shape \(3,\)"),
            (torch.tensor(torch.nan), "alpha: LIF.alpha must be a finite number, got nan"),
        ],
    )
    def test_a_state_dict_that_does_not_fit_is_refused(self, service: Any, saved: Tensor, message: str) -> None:
        with pytest.raises(RuntimeError, match=message):
            RemoteLIF(service.client(), 0.5).load_state_dict({"alpha": saved})

    @pytest.mark.parametrize("sign", [-1, 1])
    @pytest.mark.parametrize("copied", [lambda layer: layer, copy.deepcopy])
    def test_learnt_parameters_stay_in_their_ranges(self, service: Any, x: Tensor, sign: int, copied: Any) -> None:
        layer = copied(RemoteLIF(service.client(), 0.95, trainable=("alpha", "threshold")))
        others = RemoteLIF(service.client(), 0.9, trainable="alpha")
        with torch.no_grad():
            others.alpha.fill_(1.5)  # type: ignore[union-attr]
        optimiser = torch.optim.SGD(layer.parameters(), 1.0)
        (layer(x).sum() + 100 * sign * (layer.alpha + layer.threshold)).backward()
        optimiser.step()
        assert layer.alpha == (0.0 if sign == 1 else 1.0)
        assert layer.threshold >= 1e-3
        assert others.alpha == 1.5  # it is no parameter of this optimiser
        others.constrain()
        assert others.alpha == 1.0

    def test_a_parameter_that_is_set_later_stays_in_its_range(self, service: Any) -> None:
        layer = RemoteLIF(service.client(), 0.9)
        layer.alpha = torch.nn.Parameter(torch.tensor(0.999))
        layer.alpha.grad = torch.tensor(-1.0)
        torch.optim.SGD(layer.parameters(), 1.0).step()
        assert layer.alpha == 1.0

    def test_an_optimiser_does_not_write_to_a_parameter_that_it_left_alone(self, service: Any, x: Tensor) -> None:
        layer, weight = RemoteLIF(service.client(), 0.9, trainable="alpha"), torch.nn.Parameter(torch.ones(1))
        optimiser = torch.optim.SGD([*layer.parameters(), weight], 0.1)
        loss = layer(x).sum()
        weight.sum().backward()
        optimiser.step()
        loss.backward()
        assert layer.alpha.grad is not None  # type: ignore[union-attr]

    @pytest.mark.parametrize("start", [0.0, 5e-4])
    def test_a_threshold_to_be_trained_starts_within_its_range(self, service: Any, start: float) -> None:
        with pytest.raises(ValueError, match=rf"threshold must be at least 0.001 if it is trained, got {start}"):
            RemoteLIF(service.client(), 0.9, threshold=start, trainable="threshold")

    def test_neurons_are_not_taken_for_time(self, service: Any, x: Tensor) -> None:
        with pytest.raises(ValueError, match=r"x must have the shape \(batch, time, .*got \(2, 3\); pass x.unsqueeze"):
            RemoteLIF(service.client(), 0.9)(x[:, 0])
        assert not service.requests

    def test_its_arguments_reach_the_server(self, service: Any) -> None:
        layer = RemoteLIF(
            service.client(),
            0.9,
            reset="none",
            decay_reset=True,
            surrogate=Tanh(2.0),
            method="slayer",
            min_membrane=-3.0,
            max_spikes=2,
            time_dim=-2,
        )
        layer(torch.randn(2, 8, 3))
        layer(torch.randn(2, 8, 3).requires_grad_())
        params = service.messages[0].params
        assert service.requests[0].url.path == "/v1/gradients/slayer"
        assert service.messages[1].params == {name: params[name] for name in params if name != "wrt"} | {
            "method": "slayer"
        }
        assert params["surrogate"] == {"kind": "tanh", "slope": 2.0, "scale": 1.0}
        assert params["time_dim"] == -2
        assert params["neuron"] == {
            "model": "lif",
            "alpha": 0.9,
            "threshold": 1.0,
            "reset": "none",
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

    def test_what_is_done_to_the_output_does_not_reach_the_state(self, service: Any, x: Tensor) -> None:
        layer = RemoteLIF(service.client(), 0.9, stateful=True, return_membrane=True)
        with torch.no_grad():
            layer(x[:, :5]).zero_()
            layer.membrane.zero_()  # type: ignore[union-attr]
            assert torch.equal(layer(x[:, 5:]), local_lif(x, 0.9)[0][:, 5:])
        assert layer.state is not None
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in layer.state)

    def test_pieces_of_a_half_type_are_the_whole(self, service: Any) -> None:
        layer = RemoteLIF(service.client(), 1.0, stateful=True, return_membrane=True)
        x = torch.full((1, 300, 1), 2**-8, dtype=torch.bfloat16)
        joined = torch.cat([layer(x[:, t : t + 1]) for t in range(300)], 1)
        assert joined.dtype == layer.membrane.dtype == torch.bfloat16  # type: ignore[union-attr]
        assert torch.equal(joined, local_lif(x.double(), 1.0)[0].bfloat16())

    def test_the_state_follows_the_layer_and_is_never_rounded(self, service: Any, x: Tensor) -> None:
        layer = RemoteLIF(service.client(), 0.9, stateful=True).double()
        layer(x)
        assert layer.state is not None
        kept = layer.state[0]
        layer.half()
        assert torch.equal(layer.state[0], kept)
        layer.float()
        assert torch.equal(layer.state[0], kept.float())

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_a_stateful_layer_is_not_recomputed(self, service: Any, x: Tensor, use_reentrant: bool) -> None:
        layer = RemoteLIF(service.client(), 0.9, stateful=True)
        spikes = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=use_reentrant)
        kept = layer.state
        with pytest.raises(RuntimeError, match="a stateful layer must not be recomputed in a backward pass"):
            spikes.sum().backward()
        assert layer.state is kept

    def test_training_goes_on_from_a_state_of_inference_mode(self, service: Any, x: Tensor) -> None:
        layer, other = (RemoteLIF(service.client(), 0.9, stateful=True) for _ in range(2))
        with torch.inference_mode():
            layer(x)
        other(x)
        found, wanted = (torch.autograd.grad(each(x).sum(), x)[0] for each in (layer, other))
        assert torch.equal(found, wanted)

    def test_a_batch_of_another_shape_than_the_state_is_refused(self, service: Any, x: Tensor) -> None:
        layer = RemoteLIF(service.client(), 0.9, stateful=True, time_dim=-2)
        layer(x)
        with pytest.raises(ValueError, match=r"x must be of shape .*got \[1, 12, 3\]; call reset_state\(\)"):
            layer(x[:1])
        assert len(service.requests) == 1

    @pytest.mark.parametrize("stateful", [False, True])
    def test_it_can_be_copied_after_a_call(self, service: Any, x: Tensor, stateful: bool) -> None:
        layer = RemoteLIF(service.client(), 0.9, trainable="alpha", stateful=stateful, return_membrane=True)
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
        with pytest.raises(ValueError, match=r"trainable must be names of parameters"):
            RemoteLIF(service.client(), 0.9, trainable=trainable)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"alpha": 20}, r"LIF.alpha must be in \[0, 1\], got 20"),
            ({"alpha": torch.tensor([0.5, float("nan")])}, r"got nan at \[1\]"),
            ({"alpha": 0.9, "threshold": 0.0, "max_spikes": 2}, "LIF.threshold must be above 0, got 0.0"),
        ],
    )
    def test_a_parameter_out_of_range_is_refused_before_there_is_a_layer(
        self, service: Any, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            RemoteLIF(service.client(), **arguments)


class TestParameters:
    """Parameters that a layer takes, and those that it loads."""

    @pytest.mark.parametrize("name", ["alpha", "threshold", "reset_by", "min_membrane"])
    @pytest.mark.parametrize(
        ("given", "dtype"),
        [
            (np.array([0.25, 0.5, 0.75]), torch.float64),
            (np.array([0.25, 0.5, 0.75], np.float32), torch.float32),
            ([0.25, 0.5, 0.75], torch.float32),
            ((1, 1, 1), torch.float32),
            (np.array(0.5), torch.float64),
            (np.ones(3, np.int32), torch.float32),
        ],
        ids=str,
    )
    def test_may_be_arrays_of_numpy_and_lists(
        self, service: Any, x: Tensor, name: str, given: Any, dtype: torch.dtype
    ) -> None:
        arguments: Any = {"alpha": 0.9} | {name: given}
        layer = RemoteLIF(service.client(), **arguments)
        kept = getattr(layer, name)
        assert kept.dtype == dtype
        assert kept.tolist() == np.asarray(given).tolist()
        layer(x.detach())
        (message,) = service.messages
        assert message.params["neuron"][name] == {"tensor": name}
        if name != "min_membrane":
            trained = RemoteLIF(service.client(), **arguments, trainable=name)
            assert isinstance(getattr(trained, name), torch.nn.Parameter)

    def test_arrays_are_copied(self, service: Any) -> None:
        alpha: Any = np.array([0.25, 0.5])
        layer = RemoteLIF(service.client(), alpha)
        alpha[:] = 0.0
        assert layer.alpha.tolist() == [0.25, 0.5]  # type: ignore[union-attr]

    def test_of_an_array_out_of_range_are_refused_by_name(self, service: Any) -> None:
        with pytest.raises(ValueError, match=r"^LIF\.alpha must be in \[0, 1\], got 2 at \[1\]"):
            RemoteLIF(service.client(), np.array([0.5, 2.0]))  # type: ignore[arg-type]

    def test_may_be_on_meta_until_there_are_values(self, service: Any, x: Tensor) -> None:
        with torch.device("meta"):
            layer = RemoteLIF(service.client(), torch.empty(3), threshold=torch.empty(()), trainable="alpha")
        values = {"alpha": torch.full((3,), 0.5), "threshold": torch.tensor(2.0)}
        layer.load_state_dict(values, assign=True)
        layer(x.detach().float())
        (message,) = service.messages
        assert message.tensors["alpha"].numpy().tolist() == [0.5] * 3

    @pytest.mark.parametrize(
        ("options", "saved", "message"),
        [
            ({"max_spikes": 2}, {"threshold": -1.0}, "threshold: LIF.threshold must be above 0, got -1.0"),
            ({"threshold": torch.ones(2), "max_spikes": 2}, {"threshold": [1.0, -1.0]}, "threshold must be above 0"),
            ({"threshold": 1.0, "trainable": "threshold", "max_spikes": 2}, {"threshold": 0.0}, "must be above 0"),
            ({"alpha": torch.ones(2)}, {"alpha": [0.5, 1.5]}, r"alpha: LIF.alpha must be in \[0, 1\], got 1.5 at"),
            ({"trainable": "alpha"}, {"alpha": -0.5}, r"alpha: LIF.alpha must be in \[0, 1\], got -0.5"),
            ({"min_membrane": torch.zeros(2)}, {"min_membrane": [0.0, torch.nan]}, "min_membrane must be a number"),
        ],
    )
    def test_out_of_range_are_not_loaded(self, service: Any, options: Any, saved: Any, message: str) -> None:
        layer = RemoteLIF(service.client(), **({"alpha": 0.9} | options))
        before = copy.deepcopy(layer.state_dict())
        given = {name: torch.tensor(value) for name, value in saved.items()}
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(before | given)
        torch.testing.assert_close(dict(layer.state_dict()), dict(before))

    def test_a_threshold_below_0_is_loaded_where_spikes_are_not_counted_by_it(self, service: Any) -> None:
        layer = RemoteLIF(service.client(), 0.9)
        layer.load_state_dict({"alpha": torch.tensor(0.9), "threshold": torch.tensor(-1.0)})
        assert layer.threshold == -1.0
