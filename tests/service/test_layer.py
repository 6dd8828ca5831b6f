"""One layer in two calls: the bits of one gradient request, and contexts that come and go."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from remote_models import Remote
from service.conftest import Served

import exodus_core
from exodus_client.wire import Form

LIF = {"model": "lif", "alpha": 0.9}
FORWARD, BACKWARD = "/v1/layers/forward", "/v1/layers/backward"


@pytest.fixture
def remote(running: Served, connect: Callable[..., Remote]) -> Remote:
    return connect(running.port)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.7


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "input": (LIF, {"input": rand(3, 20, 5)}),
    "if": ({"model": "if", "threshold": 0.7, "reset": "zero"}, {"input": rand(3, 20, 5)}),
    "per neuron": (
        {"model": "lif", "alpha": {"tensor": "decays"}},
        {"input": rand(3, 20, 5), "decays": torch.linspace(0.5, 0.9, 5)},
    ),
    "spikes and weight": (LIF, {"spikes": rand(3, 20, 7) > 0.5, "weight": rand(5, 7)}),
    "float spikes": (LIF, {"spikes": (rand(3, 20, 7) > 0.5).float(), "weight": rand(5, 7)}),
    "srm": ({"model": "srm"}, {"psp": rand(3, 20, 5) * 2, "reset_kernel": torch.tensor([-1.0, -0.5])}),
    "srm formula": (
        {"model": "srm", "reset_kernel": {"kind": "exponential", "alpha": 0.5, "amplitude": -1.0}},
        {"psp": rand(3, 20, 5) * 2},
    ),
}


@pytest.mark.parametrize("form", ["stream", "json"])
@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
@pytest.mark.parametrize("case", CASES)
def test_two_calls_are_one_gradient_request_to_the_bit(remote: Remote, case: str, method: str, form: Form) -> None:
    neuron, tensors = CASES[case]
    grad = rand(3, 20, 5, seed=1)
    wrt = [] if neuron["model"] == "srm" else ["threshold"]
    params = {"neuron": neuron, "surrogate": {"kind": "arctan"}}
    whole = remote.post(
        f"/v1/gradients/{method}",
        {**params, "wrt": wrt, "return": ["spikes", "membrane"]},
        form=form,
        **tensors,
        grad_output=grad,
    )
    forward = remote.post(FORWARD, {**params, "method": method, "return": ["spikes", "membrane"]}, form=form, **tensors)
    backward = remote.post(BACKWARD, {"context": forward.params["context"], "wrt": wrt}, form=form, grad_output=grad)
    expected = {name: tensor.torch() for name, tensor in whole.message.tensors.items()}
    assert len(expected) >= 3
    for name, value in expected.items():
        answer = forward if name in ("spikes", "membrane") else backward
        assert torch.equal(answer.tensor(name), value), name
    assert backward.params == whole.params


def test_spikes_are_those_of_the_core_and_alone_unless_asked_otherwise(remote: Remote) -> None:
    x = rand(2, 30, 4)
    answer = remote.post(FORWARD, {"neuron": LIF}, input=x)
    assert answer.message.tensors.keys() == {"spikes"}
    assert torch.equal(answer.tensor("spikes"), exodus_core.lif(x, 0.9)[0])
    assert answer.params["nbytes"] == x.nbytes
    assert answer.params["expires_in_s"] == 300


def test_the_loss_may_depend_on_the_membrane(remote: Remote) -> None:
    x, grad = rand(2, 30, 4), rand(2, 30, 4, seed=1)
    whole = remote.post("/v1/gradients/exodus", {"neuron": LIF}, input=x, grad_membrane=grad)
    context = remote.post(FORWARD, {"neuron": LIF}, input=x).params["context"]
    answer = remote.post(BACKWARD, {"context": context}, grad_membrane=grad)
    assert torch.equal(answer.tensor("grad_input"), whole.tensor("grad_input"))


def test_a_context_serves_once_unless_it_is_kept(remote: Remote) -> None:
    context = remote.post(FORWARD, {"neuron": LIF}, input=rand(2, 3, 4)).params["context"]
    grad = rand(2, 3, 4)
    statuses = [
        remote.post(BACKWARD, {"context": context, "keep": keep}, grad_output=grad).status
        for keep in (True, True, False, False)
    ]
    assert statuses == [200, 200, 200, 410]


def test_a_backward_pass_that_fails_leaves_the_context(remote: Remote) -> None:
    context = remote.post(FORWARD, {"neuron": LIF}, input=rand(2, 3, 4)).params["context"]
    assert remote.post(BACKWARD, {"context": context}, grad_output=rand(2, 3, 5)).status == 422
    assert remote.post(BACKWARD, {"context": context}, grad_output=rand(2, 3, 4)).status == 200


def test_contexts_make_room_for_later_ones_and_expire(
    serve: Callable[..., Served], connect: Callable[..., Remote]
) -> None:
    remote = connect(serve(context_bytes=1000, context_ttl_s=0.5).port)
    grad = rand(1, 20, 5)

    def forward() -> Any:
        return remote.post(FORWARD, {"neuron": LIF}, input=rand(1, 20, 5)).params["context"]

    first, second, third = forward(), forward(), forward()
    answer = remote.post(BACKWARD, {"context": first}, grad_output=grad)
    assert (answer.status, answer.json["code"], answer.json["retryable"]) == (410, "context_expired", False)
    assert answer.json["errors"][0]["pointer"] == "/params/context"
    assert remote.post(BACKWARD, {"context": third}, grad_output=grad).status == 200
    time.sleep(0.6)
    assert remote.post(BACKWARD, {"context": second}, grad_output=grad).status == 410
    answer = remote.post(FORWARD, {"neuron": LIF}, input=rand(1, 200, 5))
    assert (answer.status, answer.json["code"]) == (413, "too_large")
    assert answer.json["errors"][0]["got"] == "4000 bytes"


def test_contexts_that_hold_next_to_nothing_make_room_too(
    serve: Callable[..., Served], connect: Callable[..., Remote]
) -> None:
    remote = connect(serve(context_bytes=100_000).port)
    first = remote.post(FORWARD, {"neuron": LIF}, input=rand(0, 3, 4)).params["context"]
    for _ in range(3):
        last = remote.post(FORWARD, {"neuron": LIF}, input=rand(0, 3, 4)).params["context"]
    assert remote.post(BACKWARD, {"context": last}, grad_output=rand(0, 3, 4)).status == 200
    answer = remote.post(BACKWARD, {"context": first}, grad_output=rand(0, 3, 4))
    assert (answer.status, answer.json["code"]) == (410, "context_expired")


def test_the_context_does_not_hold_on_to_the_body(running: Served, connect: Callable[..., Remote]) -> None:
    """Neither its memory nor its contents: the tensors of a context are its own."""
    from exodus_service.operations.layer import LayerContext

    remote = connect(running.port)
    spikes, weight, decays = (rand(2, 9, 4) > 0).float(), rand(3, 4), torch.linspace(0.5, 0.9, 3)
    neuron = {"model": "lif", "alpha": {"tensor": "decays"}}
    context = remote.post(FORWARD, {"neuron": neuron}, spikes=spikes, weight=weight, decays=decays).params["context"]
    kept = running.engine.store.contexts.get("", context)
    assert isinstance(kept, LayerContext)
    assert kept.synapses is not None
    parts = [kept.synapses.spikes, kept.synapses.weight, kept.computation.neuron["alpha"], kept.membrane]
    assert sum(part.untyped_storage().nbytes() for part in parts) == kept.nbytes


WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    (FORWARD, {"neuron": LIF}, {}, "/tensors"),
    (FORWARD, {"neuron": LIF}, {"membrane": rand(1, 2, 3)}, "/tensors"),
    (FORWARD, {"neuron": LIF}, {"input": rand(1, 2, 3), "grad_output": rand(1, 2, 3)}, "/tensors"),
    (FORWARD, {"neuron": LIF, "wrt": ["alpha"]}, {"input": rand(1, 2, 3)}, "/params/wrt"),
    (FORWARD, {"neuron": {"model": "lif"}}, {"input": rand(1, 2, 3)}, "/params/neuron/alpha"),
    (FORWARD, {"neuron": LIF, "method": "magic"}, {"input": rand(1, 2, 3)}, "/params/method"),
    (FORWARD, {"neuron": LIF, "time_dim": 5}, {"input": rand(1, 2, 3)}, "/params/time_dim"),
    (BACKWARD, {}, {"grad_output": rand(1, 2, 3)}, "/params/context"),
    (BACKWARD, {"context": "CONTEXT"}, {}, "/tensors"),
    (BACKWARD, {"context": "CONTEXT"}, {"grad_output": rand(1, 2, 4)}, "/tensors/0/shape"),
    (BACKWARD, {"context": "CONTEXT"}, {"grad_output": rand(1, 2, 3).double()}, "/tensors/0/dtype"),
    (BACKWARD, {"context": "CONTEXT"}, {"grad_output": rand(1, 2, 3), "input": rand(1, 2, 3)}, "/tensors/1"),
    (BACKWARD, {"context": "CONTEXT", "wrt": ["tau"]}, {"grad_output": rand(1, 2, 3)}, "/params/wrt/0"),
]


@pytest.mark.parametrize(("path", "params", "tensors", "pointer"), WRONG)
def test_what_does_not_fit_is_pointed_at(
    remote: Remote, path: str, params: dict[str, Any], tensors: dict[str, Any], pointer: str
) -> None:
    context = remote.post(FORWARD, {"neuron": LIF}, input=rand(1, 2, 3)).params["context"]
    params = {**params, "context": context} if "context" in params else params
    answer = remote.post(path, params, **tensors)
    assert (answer.status, answer.json["code"]) == (422, "invalid")
    assert answer.json["errors"][0]["pointer"] == pointer, answer.json


def test_many_callers_at_once_each_get_their_own(running: Served, connect: Callable[..., Remote]) -> None:
    def work(seed: int) -> None:
        own = connect(running.port)
        x, grad = rand(2, 25, 8, seed=seed), rand(2, 25, 8, seed=seed + 100)
        for _ in range(5):
            context = own.post(FORWARD, {"neuron": LIF}, input=x).params["context"]
            found.append((seed, own.post(BACKWARD, {"context": context}, grad_output=grad).tensor("grad_input")))

    found: list[tuple[int, torch.Tensor]] = []
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    for seed, got in found:
        x, grad = rand(2, 25, 8, seed=seed), rand(2, 25, 8, seed=seed + 100)
        expected = exodus_core.lif_gradient(exodus_core.lif(x, 0.9)[1], grad, 0.9).input
        assert torch.equal(got, expected)
