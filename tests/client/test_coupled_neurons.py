"""`CubaLIF`, `ALIF`, and the refractory periods and resets of `LIF`: as values, in requests, and as remote layers."""

import copy
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from client.in_process_service import InProcessService
from torch import Tensor

from exodus_client import ALIF, IF, LIF, SRM, Client, CubaLIF, InvalidResponseError
from exodus_client.neuron import Operands
from exodus_client.torch import RemoteALIF, RemoteCubaLIF, RemoteLIF, remote_lif, remote_neurons
from exodus_client.wire import decode

U = np.linspace(-1, 2, 24, dtype=np.float32).reshape(2, 4, 3)
E = np.ones_like(U)


def sent(server: InProcessService) -> list[Any]:
    """The messages of all requests."""
    return [decode(bytearray(body), "application/vnd.msgpack") for body in server.bodies if body]


def test_a_neuron_travels_with_what_it_has() -> None:
    common = {"reset": "subtract", "decay_reset": False, "max_spikes": 1, "threshold": 1.0}
    synapse = {"synapse_alpha": 0.8, "synapse_gain": 1.0}
    assert CubaLIF(0.9, 0.8).params(Operands()) == {"model": "cuba_lif", "alpha": 0.9, **synapse, **common}
    late = CubaLIF(0.9, 0.8, synapse_gain=0.5, synapse_delayed=True).params(Operands())
    assert (late["synapse_gain"], late["synapse_delayed"]) == (0.5, True)
    adaptation = {"adapt_alpha": 0.8, "adapt_by": 1.0, "adapt_membrane": 0.0, "adapt_threshold": 0.0}
    assert ALIF(0.9, 0.8).params(Operands()) == {
        "model": "alif", "alpha": 0.9, **adaptation, "adapt_current": 0.0, "synapse_gain": 1.0, **common,
    }  # fmt: skip
    operands = Operands()
    per_neuron = ALIF(0.9, np.array([0.5, 0.8]), synapse_alpha=[0.5, 0.6]).params(operands)
    assert per_neuron["adapt_alpha"] == {"tensor": "adapt_alpha"}
    assert per_neuron["synapse_alpha"] == {"tensor": "synapse_alpha"}
    assert operands.tensors.keys() == {"adapt_alpha", "synapse_alpha"}


def test_options_travel_only_where_they_are_set() -> None:
    # A service may be from before they were.
    later = {"reset_to", "detach_reset", "refractory", "bound_after_reset"}
    assert not later & LIF(0.9).params(Operands()).keys()
    for neuron in (LIF(0.9, bound_after_reset=True), IF(bound_after_reset=True, detach_reset=True)):
        assert neuron.params(Operands())["bound_after_reset"] is True
    params = IF(reset="value", reset_to=-0.5, detach_reset=True, refractory=np.int64(3)).params(Operands())  # type: ignore[arg-type]
    assert (params["reset"], params["reset_to"], params["detach_reset"], params["refractory"]) == (
        "value", -0.5, True, 3,
    )  # fmt: skip
    assert type(params["refractory"]) is int


#: Values of other types than annotated.
UNFIT: dict[str, Any] = {"1": 1, "1.0": 1.0, "no": "no"}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CubaLIF(0.9, 1.5), ValueError, "CubaLIF.synapse_alpha must be in [0, 1], got 1.5"),
        (lambda: CubaLIF(0.9, None), TypeError, "CubaLIF.synapse_alpha must be a number or an array of numbers"),
        (
            lambda: CubaLIF(0.9, 0.8, synapse_delayed=UNFIT["1"]),
            TypeError,
            "CubaLIF.synapse_delayed must be True or False",
        ),
        (lambda: CubaLIF(0.9, 0.8, synapse_gain="1"), TypeError, "CubaLIF.synapse_gain must be a number or an array"),
        (lambda: ALIF(0.9, [0.5, -0.5]), ValueError, "ALIF.adapt_alpha must be in [0, 1], got -0.5 at [1]"),
        (lambda: ALIF(0.9, 0.8, adapt_by=np.nan), ValueError, "ALIF.adapt_by must be a finite number, got nan"),
        (lambda: ALIF(0.9, 0.8, synapse_gain=2.0), ValueError, "synapse_gain must be 1 without a synapse_alpha, got 2"),
        (lambda: ALIF(0.9, 0.8, synapse_gain=[1.0]), ValueError, "be 1 without a synapse_alpha, got list"),
        (lambda: ALIF(0.9, 0.8, synapse_delayed=True), ValueError, "False without a synapse_alpha, got True"),
        (lambda: ALIF(0.9, 0.8, adapt_threshold=0.1, max_spikes=2), ValueError, "max_spikes must be 1 with adapt_thr"),
        (lambda: LIF(0.9, refractory=-1), ValueError, "LIF.refractory must be an integer from 0 to 16777216, got -1"),
        (
            lambda: LIF(0.9, refractory=UNFIT["1.0"]),
            TypeError,
            "LIF.refractory must be an integer from 0 to 16777216, got 1.0",
        ),
        (lambda: LIF(0.9, detach_reset=UNFIT["no"]), TypeError, "LIF.detach_reset must be True or False, got 'no'"),
        (
            lambda: LIF(0.9, bound_after_reset=UNFIT["1"]),
            TypeError,
            "LIF.bound_after_reset must be True or False, got 1",
        ),
        (
            lambda: LIF(0.9, bound_after_reset=True, refractory=2),
            ValueError,
            "LIF.bound_after_reset must be False with reset 'value' or refractory steps, got True",
        ),
        (
            lambda: IF(bound_after_reset=True, reset="value", reset_to=0.5),
            ValueError,
            "IF.bound_after_reset must be False with reset 'value' or refractory steps, got True",
        ),
        (
            lambda: LIF(0.9, reset="value"),
            ValueError,
            "LIF.reset_to must be a value with reset 'value', and None with others, got NoneType with 'value'",
        ),
        (lambda: LIF(0.9, reset_to=0.1), ValueError, "and None with others, got 0.1 with 'subtract'"),
        (
            lambda: LIF(0.9, reset="value", reset_to=0.1, max_spikes=2),
            ValueError,
            "LIF.max_spikes must be 1 with reset 'value', got 2",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


CUBA = {"neuron": CubaLIF(0.9, 0.8)}
ADAPTIVE = {"neuron": ALIF(0.9, 0.8)}
TRACE = {"membrane": U, "grad_output": E}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (CUBA | {"psp": U}, TypeError, "arrays for CubaLIF must be membrane; or input; or spikes and weight, got psp"),
        (
            {"neuron": LIF(0.9), "input": U, "initial_current": 0.5},
            TypeError,
            "neuron must be CubaLIF(...) or ALIF(...) with initial_current, got LIF(...)",
        ),
        (
            CUBA | TRACE | {"initial_adaptation": 0.5},
            TypeError,
            "neuron must be ALIF(...) with initial_adaptation, got CubaLIF(...)",
        ),
        (
            {"neuron": SRM(np.ones(2)), "psp": U, "initial_refractory": 1},
            TypeError,
            "neuron must be LIF(...), IF(...), CubaLIF(...) or ALIF(...) with initial_refractory, got SRM(...)",
        ),
        (
            CUBA | TRACE | {"initial_refractory": 1.5},
            ValueError,
            "initial_refractory must be a whole number of steps, or an array of such, got 1.5",
        ),
        (
            {"neuron": LIF(0.9), "initial_refractory": -1} | TRACE,
            ValueError,
            "initial_refractory must be a whole number of steps, or an array of such, got -1",
        ),
        (CUBA | TRACE | {"initial_refractory": np.inf}, ValueError, "initial_refractory must be a finite number"),
        (CUBA | TRACE | {"wrt": ["adapt_by"]}, ValueError, "initial_membrane, initial_current, got 'adapt_by'"),
        (ADAPTIVE | TRACE | {"wrt": ["synapse_gain"]}, ValueError, "wrt must be names of parameters that the neuron"),
        (CUBA | TRACE | {"wrt": ["reset_to"]}, ValueError, "that the neuron has, got reset_to"),
        (
            {"neuron": LIF(0.9, reset="value", reset_to=0.1, reset_by=0.5), "wrt": ["reset_by"]} | TRACE,
            ValueError,
            "wrt must be names of parameters that the neuron has, got reset_by with reset 'value'",
        ),
        (
            CUBA | TRACE | {"wrt": ["synapse_gain", "synapse_alpha"]},
            TypeError,
            "current must be given with a membrane and wrt synapse_gain, synapse_alpha, got nothing",
        ),
        (
            CUBA | TRACE | {"current": U},
            TypeError,
            "current must be absent without a membrane and wrt synapse_alpha or synapse_gain, got an array",
        ),
        (
            CUBA | {"input": U, "grad_output": E, "current": U, "wrt": ["synapse_gain"]},
            TypeError,
            "current must be absent",
        ),
        (
            CUBA | TRACE | {"current": U[:1], "wrt": ["synapse_gain"]},
            ValueError,
            "current must be of shape [2, 4, 3] to go with membrane, got [1, 4, 3]",
        ),
        (CUBA | TRACE | {"return_": ["state"]}, TypeError, "without 'state' for SRM or a membrane, got membrane"),
        (
            {"neuron": SRM(np.ones(2)), "psp": U, "return_": ["state"]},
            TypeError,
            "return_ must be without 'state' for SRM or a membrane, got SRM",
        ),
    ],
)
def test_arguments_that_cannot_be_right_are_refused_before_anything_is_sent(
    client: Client, server: InProcessService, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        client.gradients(**arguments)
    assert message in str(caught.value)
    assert not server.requests


def test_gradients_and_the_state_come_by_their_names(client: Client) -> None:
    names: Any = ("alpha", "synapse_alpha", "synapse_gain", "initial_current", "threshold")
    neuron = CubaLIF(0.9, np.full(3, 0.8), refractory=1)
    more: Any = {"return_": ["spikes", "membrane", "state"], "initial_current": np.zeros((2, 3)), "grad_output": E}
    whole = client.gradients(neuron=neuron, input=U, wrt=names, initial_refractory=0, **more)
    assert whole.grad_synapse_alpha.shape == (3,)
    assert whole.grad_initial_current.shape == (2, 3)
    assert whole.grad_synapse_gain.shape == whole.grad_alpha.shape == ()
    assert whole.state.shape == (5, 2, 3)
    np.testing.assert_array_equal(whole.state[0], whole.membrane[:, -1])
    current = np.zeros_like(U)
    for t in range(4):
        current[:, t] = (np.float32(0.8) * current[:, t - 1] if t else 0) + U[:, t]
    np.testing.assert_allclose(whole.state[2], current[:, -1], rtol=1e-6)
    trace: Any = {"membrane": whole.membrane, "current": current, "wrt": ("synapse_alpha", "synapse_gain")}
    again = client.gradients(neuron=neuron, grad_output=E, **trace)
    np.testing.assert_allclose(again.grad_synapse_alpha, whole.grad_synapse_alpha, rtol=1e-4)
    np.testing.assert_array_equal(again.grad_input, whole.grad_input)


@pytest.mark.parametrize(
    ("x", "more", "dtype", "shape"),
    [
        (U, {}, np.float32, (5, 2, 3)),
        (U.astype(np.float16), {}, np.float32, (5, 2, 3)),
        (U.astype(np.float64), {"time_dim": -1}, np.float64, (5, 2, 4)),
        (U, {"result_dtype": "float64", "time_dim": 0}, np.float32, (5, 4, 3)),
        (U, {"result_dtype": "float16"}, np.float32, (5, 2, 3)),
    ],
)
def test_the_state_has_the_precision_of_the_computation(
    client: Client, x: Any, more: dict[str, Any], dtype: Any, shape: tuple[int, ...]
) -> None:
    state = client.gradients(neuron=ALIF(0.9, 0.8, adapt_by=0.5), input=x, return_=["state"], **more).state
    assert (state.dtype, state.shape) == (dtype, shape)


def test_a_state_of_another_shape_than_asked_for_is_no_answer(server: InProcessService) -> None:
    def other(request: httpx.Request) -> httpx.Response:
        body = request.read().replace(b"\xa8time_dim\x01", b"\xa8time_dim\x02")
        return server(httpx.Request("POST", request.url, headers=request.headers, content=body))

    with (
        Client("http://node:8000", transport=httpx.MockTransport(other)) as client,
        pytest.raises(InvalidResponseError, match=r"state in the answer must be float32 of shape \[5, 2, 3\], got"),
    ):
        client.gradients(neuron=CubaLIF(0.9, 0.8), input=U, return_=["state"])


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 12, 3, dtype=torch.float64).requires_grad_()


def test_neurons_of_any_kind_are_differentiable_in_their_tensors(
    client: Client, server: InProcessService, x: Tensor
) -> None:
    leaves: dict[str, Any] = {
        name: number(0.5) for name in ("alpha", "adapt_alpha", "adapt_by", "synapse_alpha", "synapse_gain")
    }
    start = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    spikes, membrane = remote_neurons(
        client, x, ALIF(**leaves, adapt_threshold=0.3), initial_adaptation=start, initial_refractory=1
    )
    (spikes.sum() + membrane.square().sum()).backward()
    assert all(leaf.grad is not None and leaf.grad.shape == leaf.shape for leaf in (x, start, *leaves.values()))
    forward, backward = sent(server)
    assert set(forward.tensors) == {"input", "initial_adaptation", *leaves}
    assert sorted(backward.params["wrt"]) == sorted(["initial_adaptation", *leaves])
    assert set(backward.tensors) == {"grad_output", "grad_membrane"}


def test_the_inputs_are_sent_again_where_the_context_is_gone(client: Client, x: Tensor) -> None:
    decay = number(0.8)
    spikes, _ = remote_neurons(client, x, CubaLIF(0.9, decay, refractory=1))
    first, second = (torch.autograd.grad(spikes.sum(), [x, decay], retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_a_gradient_that_the_server_does_not_compute_is_refused(client: Client, x: Tensor) -> None:
    neurons: list[tuple[Any, dict[str, Any]]] = [
        (CubaLIF(0.9, 0.8, min_membrane=number(-1.0)), {}),
        (CubaLIF(0.9, 0.8), {"initial_refractory": number(0.0)}),
        (CubaLIF(0.9, 0.8), {"initial_spikes": number(0.0)}),
    ]
    for neuron, more in neurons:
        with pytest.raises(ValueError, match="must be a tensor without a gradient"):
            remote_neurons(client, x, neuron, **more)


def test_only_neurons_that_the_server_has_layers_of_are_taken(client: Client, x: Tensor) -> None:
    with pytest.raises(TypeError, match=r"neuron must be LIF\(...\), IF\(...\), CubaLIF\(...\) or ALIF.*got SRM"):
        remote_neurons(client, x, SRM(np.ones(2)))  # type: ignore[arg-type]


def test_remote_lif_takes_the_options_of_lif(client: Client, x: Tensor) -> None:
    to = number(-0.2)
    options: Any = {"reset": "value", "refractory": 2, "detach_reset": True}
    spikes, membrane = remote_lif(client, x, 0.9, **options, reset_to=to, initial_refractory=1)
    neuron = LIF(0.9, **options, reset_to=-0.2)
    found = client.gradients(
        neuron=neuron, input=x.detach(), initial_refractory=1, grad_output=torch.ones_like(x), wrt=["reset_to"],
        return_=["spikes", "membrane"],
    )  # fmt: skip
    assert torch.equal(spikes, found.spikes)
    assert torch.equal(membrane, found.membrane)
    spikes.sum().backward()
    assert torch.equal(to.grad, found.grad_reset_to)  # type: ignore[arg-type]


@pytest.mark.parametrize("neuron", [LIF, CubaLIF])
def test_a_reset_to_a_value_reads_no_reset_by(client: Client, server: InProcessService, x: Tensor, neuron: Any) -> None:
    by, to = number(0.5), number(0.1)
    decays = (0.9,) if neuron is LIF else (0.9, 0.8)
    spikes, _ = remote_neurons(client, x, neuron(*decays, reset="value", reset_to=to, reset_by=by))
    spikes.sum().backward()
    assert (by.grad, to.grad is None) == (None, False)
    assert sent(server)[-1].params["wrt"] == ["reset_to"]


LAYERS: dict[str, Callable[..., Any]] = {
    "refractory": lambda client, **more: RemoteLIF(client, 0.9, refractory=2, **more),
    "reset to a value": lambda client, **more: RemoteLIF(client, 0.9, reset="value", reset_to=-0.2, **more),
    "cuba_lif": lambda client, **more: RemoteCubaLIF(client, 0.9, 0.8, refractory=1, **more),
    "alif": lambda client, **more: RemoteALIF(client, 0.9, 0.8, adapt_threshold=0.3, adapt_current=0.1, **more),
    "alif with a synapse": lambda client, **more: RemoteALIF(client, 0.9, 0.8, synapse_alpha=0.5, **more),
}
STATE_NAMES = {
    "refractory": ("membrane", "spikes", "refractory"),
    "reset to a value": ("membrane", "spikes"),
    "cuba_lif": ("membrane", "spikes", "current", "refractory"),
    "alif": ("membrane", "spikes", "current", "adaptation", "refractory"),
    "alif with a synapse": ("membrane", "spikes", "current", "adaptation", "refractory"),
}


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_stateful_layer_goes_on_where_it_ended(client: Client, x: Tensor, case: str, dtype: torch.dtype) -> None:
    x = x.detach().to(dtype)
    layer = LAYERS[case](client, stateful=True)
    assert layer.state_names == STATE_NAMES[case]
    joined = torch.cat([layer(piece) for piece in x.split(5, 1)], 1)
    assert joined.dtype == dtype
    state = layer.state
    assert len(state) == len(layer.state_names)
    assert all(part.shape == (2, 3) and part.untyped_storage().nbytes() == part.nbytes for part in state)
    layer(x[:, :0])
    assert layer.state is state
    assert copy.deepcopy(layer).state is not None
    layer.reset_state()
    assert torch.equal(layer(x), joined)


def test_a_stateful_layer_fetches_the_state_and_the_membrane_where_it_is_wanted(
    client: Client, server: InProcessService, x: Tensor
) -> None:
    layer = RemoteCubaLIF(client, 0.9, 0.8, stateful=True)
    layer(x.detach())
    layer.return_membrane = True
    layer(x.detach())
    assert layer.membrane is not None
    assert [message.params["return"] for message in sent(server)] == [
        ["spikes", "state"],
        ["spikes", "membrane", "state"],
    ]


def test_a_state_of_other_settings_is_refused_until_it_is_reset(client: Client, x: Tensor) -> None:
    layer = RemoteLIF(client, 0.9, stateful=True)
    layer(x.detach())
    layer.refractory = 2
    with pytest.raises(RuntimeError, match=r"the kept state must be of membrane, spikes, refractory, got 2 tensors"):
        layer(x.detach())
    layer.reset_state()
    layer(x.detach())


def test_parameters_are_trained_kept_in_range_and_saved(client: Client, x: Tensor) -> None:
    names = ("alpha", "adapt_alpha", "adapt_by", "synapse_alpha")
    layer = RemoteALIF(client, 0.9, 0.99, synapse_alpha=0.01, trainable=names)
    assert [name for name, _ in layer.named_parameters()] == ["alpha", "adapt_alpha", "adapt_by", "synapse_alpha"]
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(x.detach()).sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        parameter.grad = torch.full_like(parameter, -1.0 if parameter > 0.5 else 1.0)
    optimizer.step()
    assert [layer.alpha, layer.adapt_alpha, layer.synapse_alpha] == [1.0, 1.0, 0.0]
    other = RemoteALIF(client, 0.5, 0.5, synapse_alpha=0.5, adapt_current=0.1, trainable=names)
    other.load_state_dict(layer.state_dict())
    assert other.adapt_current == 0.0
    assert torch.equal(other(x.detach()), layer(x.detach()))


@pytest.mark.parametrize(
    ("make", "saved", "message"),
    [
        (lambda c: RemoteCubaLIF(c, 0.9, 0.8), {"synapse_alpha": 1.5}, r"CubaLIF.synapse_alpha must be in \[0, 1\]"),
        (
            lambda c: RemoteALIF(c, 0.9, 0.8, trainable="adapt_alpha"),
            {"adapt_alpha": -0.5},
            r"adapt_alpha: ALIF.adapt_alpha must be in \[0, 1\], got -0.5",
        ),
        (
            lambda c: RemoteALIF(c, 0.9, 0.8, max_spikes=2),
            {"adapt_threshold": 0.5},
            "adapt_threshold: ALIF.max_spikes must be 1 with adapt_threshold, got 2",
        ),
    ],
)
def test_parameters_out_of_range_are_not_loaded(client: Client, make: Any, saved: Any, message: str) -> None:
    layer = make(client)
    before = dict(layer.state_dict())
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(before | {name: torch.tensor(value) for name, value in saved.items()})
    torch.testing.assert_close(dict(layer.state_dict()), before)


def test_what_cannot_be_trained_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match=r"trainable must be names of parameters that have a value, among alpha"):
        RemoteALIF(client, 0.9, 0.8, trainable="synapse_alpha")
    with pytest.raises(ValueError, match="got adapt_alpha"):
        RemoteCubaLIF(client, 0.9, 0.8, trainable="adapt_alpha")
    with pytest.raises(ValueError, match=r"ALIF.synapse_gain must be 1 without a synapse_alpha, got Parameter"):
        RemoteALIF(client, 0.9, 0.8, trainable="synapse_gain")
    with pytest.raises(ValueError, match=r"ALIF.max_spikes must be 1 with adapt_threshold, got 2"):
        RemoteALIF(client, 0.9, 0.8, max_spikes=2, trainable="adapt_threshold")
    with torch.device("meta"), pytest.raises(ValueError, match=r"ALIF.synapse_gain must be 1"):
        RemoteALIF(client, 0.9, 0.8, trainable="synapse_gain")
    with pytest.raises(ValueError, match=r"or call remote_neurons, which passes gradients on"):
        RemoteCubaLIF(client, 0.9, number(0.8))
    with pytest.raises(ValueError, match=r"CubaLIF.synapse_alpha must be in \[0, 1\], got 20"):
        RemoteCubaLIF(client, 0.9, 20)
