"""Second-order and adaptive LIF, refractory periods, resets to a value and detached ones: over HTTP as in the core."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from remote_models import Remote
from service.conftest import Caller, Served

import exodus_core
from exodus_client.wire import Form, Limits, Message, encode
from exodus_core import coupled, reference
from exodus_service.call import Call
from exodus_service.compute.scheduler import Scheduler
from exodus_service.context import Timings
from exodus_service.gradients.batching import compute_ahead
from exodus_service.gradients.request import GradientRequest
from exodus_service.operations.layer import LayerContext

METHODS = ["exodus", "slayer", "bptt"]
FORWARD, BACKWARD = "/v1/layers/forward", "/v1/layers/backward"
NEURONS: dict[str, dict[str, Any]] = {
    "refractory": {"model": "lif", "alpha": 0.9, "refractory": 2, "initial_refractory": 1.0},
    "reset to a value": {"model": "lif", "alpha": 0.9, "reset": "value", "reset_to": -0.2},
    "detached reset": {"model": "if", "reset": "zero", "detach_reset": True},
    "cuba_lif": {"model": "cuba_lif", "alpha": 0.9, "synapse_alpha": 0.8, "synapse_gain": 0.5, "initial_current": 0.4},
    "late": {"model": "cuba_lif", "alpha": 0.9, "synapse_alpha": 0.8, "synapse_delayed": True, "max_spikes": 2},
    "alif": {
        "model": "alif",
        "alpha": 0.9,
        "adapt_alpha": 0.8,
        "adapt_by": 0.7,
        "adapt_membrane": 0.1,
        "adapt_threshold": 0.3,
        "adapt_current": 0.1,
        "initial_adaptation": 0.2,
    },
    "alif with a synapse": {
        "model": "alif", "alpha": 0.9, "adapt_alpha": 0.8, "adapt_threshold": 0.3, "synapse_alpha": 0.7,
        "refractory": 1,
    },
}  # fmt: skip
ADAPTATION = ("adapt_alpha", "adapt_by", "adapt_membrane", "adapt_threshold", "adapt_current", "initial_adaptation")
SYNAPSE = ("synapse_alpha", "synapse_gain", "initial_current")


def wanted(neuron: dict[str, Any]) -> list[str]:
    """Every parameter that has a gradient."""
    names = ["alpha", "threshold", "initial_membrane"]
    names += ["reset_to"] if neuron.get("reset") == "value" else []
    names += SYNAPSE if "synapse_alpha" in neuron else ()
    return names + (list(ADAPTATION) if neuron["model"] == "alif" else [])


def options_of(neuron: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the core."""
    return {"alpha": 1.0} | {name: value for name, value in neuron.items() if name != "model"}


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.3).to(dtype)


def expected_gradients(
    x: torch.Tensor, grad: torch.Tensor, neuron: dict[str, Any], method: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Spikes, membrane, the last state, and the gradients by autograd through the plain loop."""
    names = wanted(neuron)
    defaults: dict[str, Any] = {**coupled.DEFAULTS, **options_of(neuron)}
    leaves = {name: torch.tensor(defaults[name] or 0.0, dtype=x.dtype, requires_grad=True) for name in names}
    leaf = x.clone().requires_grad_()
    spikes, membrane, last = reference.coupled_lif(leaf, **{**options_of(neuron), **leaves, "method": method})
    found = torch.autograd.grad(spikes, [leaf, *leaves.values()], grad, allow_unused=True, materialize_grads=True)
    by_name = dict(zip(("grad_input", *(f"grad_{name}" for name in names)), found, strict=True))
    return spikes.detach(), membrane.detach(), last.detach(), by_name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", NEURONS)
def test_an_input_and_a_membrane_give_the_gradients_of_the_loop(
    caller: Caller, ask: Callable[..., Message], case: str, method: str
) -> None:
    neuron, x, grad = NEURONS[case], rand(3, 20, 5), rand(3, 20, 5, seed=1)
    spikes, membrane, last, gradients = expected_gradients(x, grad, neuron, method)
    whole = caller.gradients(
        ask(neuron, input=x, grad_output=grad, wrt=wanted(neuron), return_=["spikes", "membrane", "state"]), method
    )
    assert torch.equal(whole.tensor("spikes"), spikes)
    assert torch.equal(whole.tensor("membrane"), membrane)
    assert torch.equal(whole.tensor("state"), last.view(5, 3, 5))
    traces = {"membrane": membrane}
    if "synapse_alpha" in neuron:
        start = neuron.get("initial_current")
        traces["current"] = exodus_core.current_trace(x, neuron["synapse_alpha"], initial_current=start)
    from_trace = caller.gradients(
        ask(neuron, **traces, grad_output=grad, wrt=wanted(neuron), return_=["spikes"]), method
    )
    assert torch.equal(from_trace.tensor("spikes"), spikes)
    for name, value in gradients.items():
        torch.testing.assert_close(whole.tensor(name), value, rtol=1e-10, atol=1e-10)
        assert torch.equal(from_trace.tensor(name), whole.tensor(name)), name


@pytest.mark.parametrize("form", ["stream", "json"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", NEURONS)
def test_two_calls_are_one_gradient_request_to_the_bit(
    running: Served, connect: Callable[..., Remote], case: str, method: str, form: Form
) -> None:
    remote, neuron = connect(running.port), NEURONS[case]
    x, grad = rand(3, 20, 5, dtype=torch.float32), rand(3, 20, 5, seed=1, dtype=torch.float32)
    traces = ["spikes", "membrane", "state"]
    params: dict[str, Any] = {"neuron": neuron, "return": traces}
    whole = remote.post(
        f"/v1/gradients/{method}", {**params, "wrt": wanted(neuron)}, form=form, input=x, grad_output=grad
    )
    forward = remote.post(FORWARD, {**params, "method": method}, form=form, input=x)
    context = forward.params["context"]
    backward = remote.post(BACKWARD, {"context": context, "wrt": wanted(neuron)}, form=form, grad_output=grad)
    assert len(whole.message.tensors) == 4 + len(wanted(neuron))
    for name, tensor in whole.message.tensors.items():
        answer = forward if name in traces else backward
        assert torch.equal(answer.tensor(name), tensor.torch()), name


PLAIN: dict[str, dict[str, Any]] = {
    "lif": {"model": "lif", "alpha": 0.9, "reset_by": 0.8},
    "if": {"model": "if", "decay_reset": True},
    "zero": {"model": "lif", "alpha": 0.9, "reset": "zero", "initial_spikes": 1.0},
    "detached": {"model": "lif", "alpha": 0.9, "detach_reset": True},
    "detached zero": {"model": "lif", "alpha": 0.9, "reset": "zero", "detach_reset": True},
    "several spikes": {"model": "lif", "alpha": 0.9, "max_spikes": 3, "min_membrane": -0.5},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", PLAIN)
def test_gradients_of_lif_have_the_bits_of_the_core_with_the_state_and_without(
    running: Served, connect: Callable[..., Remote], case: str, method: str, dtype: torch.dtype
) -> None:
    remote = connect(running.port)
    x, grad = rand(2, 200, 33, dtype=dtype), rand(2, 200, 33, seed=1, dtype=dtype)
    # One value a neuron: a sum over all of them would hide the last bits.
    tensors: dict[str, Any] = {
        "alpha": torch.full((33,), 0.9, dtype=dtype),
        "threshold": torch.full((33,), 1.1, dtype=dtype),
        "initial_membrane": torch.full((2, 33), 0.3, dtype=dtype),
    }
    if PLAIN[case]["model"] == "if":
        del tensors["alpha"]
    neuron = PLAIN[case] | {name: {"tensor": name} for name in tensors}
    options = options_of(PLAIN[case]) | tensors | {"method": method}
    spikes, membrane = exodus_core.lif(x, **options)
    expected = exodus_core.lif_gradient(membrane, grad, **options)
    for traces in ([], ["state"], ["spikes", "membrane", "state"]):
        common = {"neuron": neuron, "return": traces}
        asked: dict[str, Any] = {**common, "wrt": list(tensors)}
        whole = remote.post(f"/v1/gradients/{method}", asked, input=x, grad_output=grad, **tensors)
        forward = remote.post(FORWARD, {**common, "method": method}, input=x, **tensors)
        context = forward.params["context"]
        backward = remote.post(BACKWARD, {"context": context, "wrt": list(tensors)}, grad_output=grad)
        for answer in (whole, backward):
            for name in ("input", *tensors):
                assert torch.equal(answer.tensor(f"grad_{name}"), getattr(expected, name)), (traces, name)
        for answer in (whole, forward):
            for name, trace in (("spikes", spikes), ("membrane", membrane)):
                assert name not in traces or torch.equal(answer.tensor(name), trace), (traces, name)


def test_a_sequence_in_pieces_is_the_whole(caller: Caller, ask: Callable[..., Message]) -> None:
    rows = ("initial_membrane", "initial_spikes", "initial_current", "initial_adaptation", "initial_refractory")
    x = rand(3, 30, 5, dtype=torch.float32)
    neuron = {name: value for name, value in NEURONS["alif with a synapse"].items() if not name.startswith("initial")}
    whole = caller.gradients(ask(neuron, input=x, return_=["spikes", "state"]))
    pieces, state = [], torch.zeros(5, 3, 5)
    for piece in x.split(11, 1):
        given = dict(zip(rows, state, strict=True))
        of_state = {name: {"tensor": name} for name in given}
        answer = caller.gradients(ask(neuron | of_state, input=piece, **given, return_=["spikes", "state"]))
        pieces.append(answer.tensor("spikes"))
        state = answer.tensor("state")
    assert torch.equal(torch.cat(pieces, 1), whole.tensor("spikes"))
    assert torch.equal(state, whole.tensor("state"))


@pytest.mark.parametrize("result_dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_the_state_is_not_rounded_to_the_dtype_of_the_answer(
    caller: Caller, ask: Callable[..., Message], dtype: torch.dtype, result_dtype: str
) -> None:
    x = rand(3, 20, 5, dtype=dtype)
    asked: dict[str, Any] = {"input": x, "return_": ["spikes", "state"]}
    plain = caller.gradients(ask(CUBA, **asked))
    other = caller.gradients(ask(CUBA, **asked, result_dtype=result_dtype))
    assert other.tensor("spikes").dtype == getattr(torch, result_dtype)
    assert other.tensor("state").dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(other.tensor("state"), plain.tensor("state"))


def test_the_state_of_plain_neurons_is_their_membrane_and_spikes(caller: Caller, ask: Callable[..., Message]) -> None:
    x = rand(3, 5, 7, dtype=torch.float32)
    traces = ["spikes", "membrane", "state"]
    for time_dim in (1, -1):
        neuron = {"model": "lif", "alpha": 0.9}
        answer = caller.gradients(ask(neuron, input=x, return_=traces, time_dim=time_dim))
        spikes, membrane = exodus_core.lif(x, 0.9, time_dim=time_dim)
        assert torch.equal(answer.tensor("spikes"), spikes)
        state = answer.tensor("state")
        assert torch.equal(state[0], membrane.select(time_dim, -1))
        assert torch.equal(state[1], spikes.select(time_dim, -1))
        assert not state[2:].any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["lif", "if", "cuba_lif", "alif"])
@pytest.mark.parametrize("shape", [(0, 6, 3), (2, 6, 0), (0, 0, 0), (2, 0, 3)])
def test_no_neurons_and_no_steps_have_a_state_too(
    running: Served, connect: Callable[..., Remote], shape: tuple[int, ...], model: str, method: str
) -> None:
    remote, x = connect(running.port), torch.zeros(shape)
    decays = {"if": {}, "lif": {"alpha": 0.9}, "cuba_lif": {"alpha": 0.9, "synapse_alpha": 0.8}}
    neuron = {"model": model, **decays.get(model, {"alpha": 0.9, "adapt_alpha": 0.8})}
    gradients = remote.post(
        f"/v1/gradients/{method}", {"neuron": neuron, "return": ["state"], "wrt": ["threshold"]}, input=x, grad_output=x
    )
    layer = remote.post(FORWARD, {"neuron": neuron, "return": ["state"], "method": method}, input=x)
    for answer in (gradients, layer):
        assert answer.status == 200, answer.json
        assert answer.tensor("state").shape == (5, shape[0], shape[2])


def test_parameters_may_be_one_value_a_neuron(caller: Caller, ask: Callable[..., Message]) -> None:
    x, grad, decays = rand(3, 20, 5), rand(3, 20, 5, seed=1), torch.linspace(0.5, 0.9, 5, dtype=torch.float64)
    neuron = {"model": "cuba_lif", "alpha": 0.9, "synapse_alpha": {"tensor": "decays"}}
    answer = caller.gradients(ask(neuron, input=x, decays=decays, grad_output=grad, wrt=["synapse_alpha"]))
    leaf = decays.clone().requires_grad_()
    exodus_core.cuba_lif(x, 0.9, leaf)[0].backward(grad)
    assert leaf.grad is not None
    assert torch.equal(answer.tensor("grad_synapse_alpha"), leaf.grad)


def test_spikes_and_weights_are_an_input_too(caller: Caller, ask: Callable[..., Message]) -> None:
    spikes, weight, grad = (rand(3, 20, 7) > 0.5).double(), rand(5, 7, seed=2), rand(3, 20, 5, seed=1)
    neuron = NEURONS["alif with a synapse"]
    answer = caller.gradients(ask(neuron, spikes=spikes, weight=weight, grad_output=grad, wrt=["synapse_gain"]))
    leaf, gain = weight.clone().requires_grad_(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    exodus_core.alif(spikes @ leaf.T, **options_of(neuron), synapse_gain=gain)[0].backward(grad)
    torch.testing.assert_close(answer.tensor("grad_weight"), leaf.grad)
    torch.testing.assert_close(answer.tensor("grad_synapse_gain"), gain.grad)


SCHEDULER = Scheduler("unused", max_requests=100_000, max_bytes=1 << 40)


def request_of(message: Message, method: str) -> GradientRequest:
    encoded = encode(message)
    body = memoryview(bytearray(b"".join(encoded.chunks)))
    slot, device = SCHEDULER.admit(len(body)), torch.device("cpu")
    call = Call("", encoded.content_type, None, math.inf, slot, Timings(), device, Limits(), body)
    return GradientRequest(method, call)


@pytest.mark.parametrize("method", ["exodus", "slayer"])
@pytest.mark.parametrize("case", NEURONS)
@pytest.mark.parametrize("kind", ["input", "membrane"])
def test_requests_that_are_computed_together_have_the_bits_of_those_alone(
    ask: Callable[..., Message], case: str, method: str, kind: str
) -> None:
    parts = [torch.randn(3, size, 65, 17) for size in (2, 1, 5)]
    traces = ["spikes", "membrane"]
    messages = [ask(NEURONS[case], return_=traces, **{kind: x}, grad_output=g, grad_membrane=h) for x, g, h in parts]
    alone = [b"".join(request_of(message, method).run().chunks) for message in messages]
    joined = [request_of(message, method) for message in messages]
    assert len({one.batch_key.key for one in joined if one.batch_key is not None}) == 1
    compute_ahead(joined)
    assert {one.timings.batch for one in joined} == {3}
    assert [b"".join(one.run().chunks) for one in joined] == alone


def test_requests_of_other_options_never_share_a_batch(ask: Callable[..., Message]) -> None:
    x, base = torch.randn(2, 9, 5), NEURONS["alif with a synapse"]
    others: list[dict[str, Any]] = [
        {"refractory": 2}, {"synapse_alpha": 0.6}, {"synapse_gain": 0.5}, {"synapse_delayed": True},
        {"detach_reset": True}, {"reset": "value", "reset_to": 0.1}, {"adapt_by": 0.5}, {"initial_refractory": 1.0},
        {"initial_current": 0.1}, {"initial_adaptation": 0.1}, {"model": "cuba_lif"},
    ]  # fmt: skip
    keys = {request_of(ask({**base, **other}, input=x, grad_output=x), "exodus").batch_key for other in ({}, *others)}
    assert None not in keys
    assert len({key.key for key in keys if key is not None}) == 1 + len(others)


@pytest.mark.parametrize(
    "more",
    [{"return_": ["state"]}, {"wrt": ["adapt_alpha"]}, {"current": torch.zeros(2, 9, 5)}],
    ids=["state", "wrt", "current"],
)
def test_what_is_not_of_each_lane_is_computed_alone(ask: Callable[..., Message], more: dict[str, Any]) -> None:
    x = torch.randn(2, 9, 5)
    message = ask(NEURONS["alif with a synapse"], input=x, grad_output=x, **more)
    assert request_of(message, "exodus").batch_key is None


@pytest.mark.parametrize("case", NEURONS)
def test_a_context_counts_all_of_its_tensors_and_holds_on_to_no_body(
    running: Served, connect: Callable[..., Remote], case: str
) -> None:
    remote, x = connect(running.port), rand(2, 9, 4, dtype=torch.float32)
    decays = torch.linspace(0.5, 0.9, 4)
    neuron = NEURONS[case] | ({} if NEURONS[case]["model"] == "if" else {"alpha": {"tensor": "decays"}})
    given: dict[str, Any] = {} if NEURONS[case]["model"] == "if" else {"decays": decays}
    answer = remote.post(FORWARD, {"neuron": neuron}, input=x, **given)
    kept = running.engine.store.contexts.get("", answer.params["context"])
    assert isinstance(kept, LayerContext)
    parts = [kept.membrane, *(value for value in kept.computation.neuron.values() if isinstance(value, torch.Tensor))]
    if "synapse_alpha" in neuron:
        assert kept.computation.source.current is not None
        parts.append(kept.computation.source.current)
    assert sum(part.untyped_storage().nbytes() for part in parts) == kept.nbytes == answer.params["nbytes"]
    assert kept.nbytes == x.nbytes * (2 if "synapse_alpha" in neuron else 1) + (16 if given else 0)


U = rand(2, 3, 4, dtype=torch.float32)
CUBA = NEURONS["cuba_lif"]
ALIF = NEURONS["alif"]
BOUNDED = {"model": "lif", "alpha": 0.9, "min_membrane": -1.0, "bound_after_reset": True}
WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"model": "cuba_lif", "alpha": 0.9}, {"input": U}, "/params/neuron/synapse_alpha"),
    ({"model": "alif", "alpha": 0.9}, {"input": U}, "/params/neuron/adapt_alpha"),
    (CUBA | {"adapt_alpha": 0.9}, {"input": U}, "/params/neuron/adapt_alpha"),
    (CUBA | {"synapse_alpha": 1.5}, {"input": U}, "/params/neuron/synapse_alpha"),
    (CUBA | {"synapse_alpha": None}, {"input": U}, "/params/neuron/synapse_alpha"),
    (CUBA | {"synapse_alpha": {"tensor": "missing"}}, {"input": U}, "/params/neuron/synapse_alpha/tensor"),
    (CUBA | {"synapse_alpha": {"tensor": "b"}}, {"input": U, "b": torch.tensor(1.5)}, "/params/neuron/synapse_alpha"),
    (CUBA | {"synapse_delayed": 1}, {"input": U}, "/params/neuron/synapse_delayed"),
    (ALIF | {"synapse_gain": 0.5}, {"input": U}, "/params/neuron/synapse_gain"),
    (ALIF | {"synapse_delayed": True}, {"input": U}, "/params/neuron/synapse_delayed"),
    (ALIF | {"max_spikes": 2}, {"input": U}, "/params/neuron/max_spikes"),
    (ALIF | {"adapt_by": "much"}, {"input": U}, "/params/neuron/adapt_by"),
    (CUBA | {"refractory": -1}, {"input": U}, "/params/neuron/refractory"),
    (CUBA | {"refractory": 1.5}, {"input": U}, "/params/neuron/refractory"),
    (CUBA | {"refractory": 2**24 + 1}, {"input": U}, "/params/neuron/refractory"),
    (CUBA | {"initial_refractory": 0.5}, {"input": U}, "/params/neuron/initial_refractory"),
    (CUBA | {"initial_current": {"tensor": "i"}}, {"input": U, "i": torch.zeros(5)}, "/params/neuron/initial_current"),
    (CUBA | {"initial_adaptation": 0.5}, {"input": U}, "/params/neuron/initial_adaptation"),
    (CUBA | {"detach_reset": "no"}, {"input": U}, "/params/neuron/detach_reset"),
    (CUBA | {"bound_after_reset": True}, {"input": U}, "/params/neuron/bound_after_reset"),
    *(
        (BOUNDED | more, {"input": U}, "/params/neuron/bound_after_reset")
        for more in ({"refractory": 2}, {"reset": "zero", "detach_reset": True}, {"reset": "value", "reset_to": 0.1})
    ),
    ({"model": "if", "bound_after_reset": 1}, {"input": U}, "/params/neuron/bound_after_reset"),
    (CUBA | {"reset": "value"}, {"input": U}, "/params/neuron/reset_to"),
    (CUBA | {"reset_to": 0.1}, {"input": U}, "/params/neuron/reset_to"),
    (CUBA | {"reset": "value", "reset_to": 0.1, "max_spikes": 2}, {"input": U}, "/params/neuron/max_spikes"),
    ({"model": "lif", "alpha": 0.9, "reset": "value"}, {"input": U}, "/params/neuron/reset_to"),
    ({"model": "lif", "alpha": 0.9, "synapse_alpha": 0.5}, {"input": U}, "/params/neuron/synapse_alpha"),
    ({"model": "srm", "refractory": 2}, {"psp": U}, "/params/neuron/refractory"),
]


@pytest.mark.parametrize(("neuron", "tensors", "pointer"), WRONG)
def test_a_wrong_neuron_is_pointed_at(
    running: Served, connect: Callable[..., Remote], neuron: dict[str, Any], tensors: dict[str, Any], pointer: str
) -> None:
    remote = connect(running.port)
    calls: list[tuple[str, dict[str, Any]]] = [("/v1/gradients/exodus", {"grad_output": U}), (FORWARD, {})]
    for path, more in calls:
        answer = remote.post(path, {"neuron": neuron}, **tensors, **more)
        assert (answer.status, answer.json["code"]) == (422, "invalid")
        assert answer.json["errors"][0]["pointer"] == pointer, answer.json


WRONG_WISHES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str, str]] = [
    (CUBA, {"wrt": ["adapt_alpha"]}, {"input": U}, "/params/wrt", "names of alpha, synapse_alpha"),
    (CUBA, {"wrt": ["tau"]}, {"input": U}, "/params/wrt/0", "'alpha', 'adapt_alpha'"),
    (ALIF, {"wrt": ["synapse_alpha"]}, {"input": U}, "/params/wrt", "names of parameters that are not None"),
    (CUBA, {"wrt": ["reset_to"]}, {"input": U}, "/params/wrt", "names of parameters that are not None"),
    (CUBA, {"wrt": ["synapse_gain"]}, {"membrane": U}, "/tensors", "a list with a tensor 'current'"),
    (CUBA, {}, {"membrane": U, "current": U}, "/tensors/1", "absent (unused tensor)"),
    (CUBA, {"wrt": ["synapse_gain"]}, {"input": U, "current": U}, "/tensors/1", "absent (unused tensor)"),
    (ALIF, {"wrt": ["adapt_by"]}, {"membrane": U, "current": U}, "/tensors/1", "absent (unused tensor)"),
    (CUBA, {"wrt": ["synapse_alpha"]}, {"membrane": U, "current": U[:1]}, "/tensors/1/shape", "to match 'membrane'"),
    (CUBA, {"return": ["state"]}, {"membrane": U}, "/params/return", "without 'state' where the membrane is given"),
    (
        {"model": "lif", "alpha": 0.9, "reset": "value", "reset_to": 0.1, "reset_by": 0.5},
        {"wrt": ["reset_by"]},
        {"input": U},
        "/params/wrt",
        "names of alpha, threshold, reset_to, initial_membrane",
    ),
    ({"model": "lif", "alpha": 0.9}, {"wrt": ["synapse_alpha"]}, {"input": U}, "/params/wrt", "names of alpha, thresh"),
    (
        BOUNDED,
        {"return": ["state"]},
        {"input": U},
        "/params/return",
        "without 'state' with bound_after_reset",
    ),
    (
        {"model": "srm"},
        {"return": ["state"]},
        {"psp": U, "reset_kernel": torch.tensor([-1.0])},
        "/params/return",
        "without 'state' for the model srm",
    ),
]


@pytest.mark.parametrize(("neuron", "wishes", "tensors", "pointer", "expected"), WRONG_WISHES)
def test_a_wish_that_cannot_be_granted_is_pointed_at(
    running: Served,
    connect: Callable[..., Remote],
    neuron: dict[str, Any],
    wishes: dict[str, Any],
    tensors: dict[str, Any],
    pointer: str,
    expected: str,
) -> None:
    remote = connect(running.port)
    answer = remote.post("/v1/gradients/exodus", {"neuron": neuron, **wishes}, **tensors, grad_output=U)
    assert (answer.status, answer.json["code"]) == (422, "invalid")
    fault = answer.json["errors"][0]
    assert (fault["pointer"], expected in fault["expected"]) == (pointer, True), answer.json


def test_a_backward_pass_for_a_parameter_that_the_neuron_lacks_is_pointed_at(
    running: Served, connect: Callable[..., Remote]
) -> None:
    remote = connect(running.port)
    context = remote.post(FORWARD, {"neuron": CUBA}, input=U).params["context"]
    answer = remote.post(BACKWARD, {"context": context, "wrt": ["adapt_alpha"]}, grad_output=U)
    assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/params/wrt")
    assert answer.json["errors"][0]["expected"].startswith("names of alpha, synapse_alpha, ")


def test_capabilities_name_all_neurons_and_resets(caller: Caller) -> None:
    found = json.loads(caller.call("GET", "/v1/capabilities").body)
    assert found["neurons"] == ["lif", "if", "cuba_lif", "alif", "srm"]
    assert found["core"]["resets"] == ["subtract", "zero", "none", "value"]
