"""Recordings and statistics of models on the server: those of the same passes here, through every fault."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from client.faults import Road, patient_client
from client.in_process_service import InProcessService

import exodus_client
from exodus_client import Client, InvalidResponseError, Model, Retries, UnprocessableError
from exodus_core import losses, network
from exodus_core.network import observe
from exodus_core.training import Trainer

LAYERS: list[dict[str, Any]] = [
    {"kind": "linear", "in_features": 3, "out_features": 6, "gain": 2.0},
    {"kind": "lif", "alpha": 0.5, "name": "hidden"},
    {"kind": "linear", "out_features": 2, "name": "last"},
    {"kind": "exp_leak", "alpha": 0.9, "name": "out"},
]
SGD = {"kind": "sgd", "lr": 0.5}
RECORD = ["hidden.spikes", "hidden.membrane", "out.output"]
LOSS = "max_over_time_ce"
X = (np.random.default_rng(1).random((4, 7, 3)) < 0.5).astype(np.float32)
Y = np.array([0, 1, 1, 0])


@pytest.fixture
def model(client: Client) -> Model:
    return client.create_model(LAYERS, optimizer=SGD, id="m")


def trainer() -> Trainer:
    return Trainer(network.build(LAYERS), SGD)


def same(given: Any, expected: Any) -> bool:
    """True if recordings or statistics from the server are those from here."""
    if isinstance(next(iter(expected.values())), torch.Tensor):
        arrays = {name: np.asarray(array) for name, array in given.items()}
        return arrays.keys() == expected.keys() and all(
            np.array_equal(arrays[name], trace.numpy()) for name, trace in expected.items()
        )
    return {n: asdict(v) for n, v in given.items()} == {n: asdict(v) for n, v in expected.items()}


def test_numbers_of_layers_are_those_of_the_core() -> None:
    ours, theirs = (fields(cls) for cls in (exodus_client.LayerStatistics, network.LayerStatistics))
    assert [field.name for field in ours] == [field.name for field in theirs]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_forward_pass_returns_what_was_asked_for(model: Model, kind: Callable[[Any], Any]) -> None:
    found = model.forward(kind(X), record=RECORD, statistics=True, outputs=False).result()
    local = trainer()
    with observe(local.net, RECORD, statistics=True) as seen:
        local.forward(torch.from_numpy(X))
    assert found.outputs is None
    assert same(found.recordings, seen.recordings)
    assert same(found.statistics, seen.statistics)
    assert {type(array) for array in found.recordings.values()} == {type(kind(X))}
    plain = model.forward(kind(X)).result()
    assert plain.recordings == {}
    assert plain.statistics is None


def test_training_calls_return_what_was_asked_for_and_may_be_awaited(model: Model) -> None:
    async def train() -> Any:
        step = model.step(X, Y, loss=LOSS, record=RECORD, statistics=True)
        accumulated = model.forward_backward(X, Y, loss=LOSS, record=RECORD[:1], statistics=True)
        return await step, await accumulated

    local, loss = trainer(), losses.parse(LOSS)
    for name, result in zip(("step", "forward_backward"), asyncio.run(train()), strict=True):
        record = RECORD if name == "step" else RECORD[:1]
        with observe(local.net, record, statistics=True) as seen:
            here = getattr(local, name)(torch.from_numpy(X), torch.from_numpy(Y), loss)
        assert same(result.recordings, seen.recordings)
        assert same(result.statistics, seen.statistics_of_step(here.grad_norms))
    assert result.statistics["last"].grad_norm > 0
    plain = model.step(X, Y, loss=LOSS).result()
    assert plain.recordings == {}
    assert plain.statistics is None


def squares(outputs: Any) -> Any:
    return outputs.square().mean()


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_loss_of_the_callers_own_has_the_recordings_of_its_forward_pass(
    server: InProcessService, kind: Callable[[Any], Any], expired: bool
) -> None:
    problems = [httpx.Response(410, json={"code": "context_expired"})] if expired else []

    def answer(request: httpx.Request) -> httpx.Response:
        return problems.pop() if problems and request.url.path.endswith("/step") else server(request)

    with Client("http://node", transport=httpx.MockTransport(answer), retries=Retries(first_delay=0.0)) as client:
        model = client.create_model(LAYERS, optimizer=SGD, id="m")
        result = model.step(kind(X), loss=squares, record=RECORD, statistics=True).result()
        only = model.step(kind(X), loss=squares, record=RECORD[:1]).result()
        assert model.step(kind(X), loss=squares).result().recordings == {}
    assert not problems
    local = trainer()
    with observe(local.net, RECORD, statistics=True) as seen:
        forward = local.begin(torch.from_numpy(X))
    leaf = forward.outputs.detach().requires_grad_()
    norms = local.backward(forward, torch.autograd.grad(squares(leaf), leaf)[0])
    assert same(result.recordings, seen.recordings)
    assert same(result.statistics, seen.statistics_of_step(norms))
    assert {type(array) for array in result.recordings.values()} == {type(kind(X))}
    assert list(only.recordings) == RECORD[:1]
    assert only.statistics is None


@pytest.mark.parametrize("time_dim", [0, -1])
def test_recordings_have_the_order_of_the_handle(client: Client, time_dim: int) -> None:
    model = client.create_model(LAYERS, optimizer=SGD, id="m", time_dim=time_dim)
    x = np.moveaxis(X, 1, time_dim)
    found = model.forward(x, record=RECORD).result().recordings
    called = model.step(x, loss=squares, record=RECORD).result().recordings
    trained = model.step(x, Y, loss=LOSS, record=RECORD).result().recordings
    local = trainer()
    with observe(local.net, RECORD) as seen:
        local.forward(torch.from_numpy(X))
    for name, trace in seen.recordings.items():
        assert np.array_equal(found[name], np.moveaxis(trace.numpy(), 1, time_dim))
        assert np.array_equal(called[name], found[name])
        assert trained[name].shape == found[name].shape


@pytest.mark.parametrize("fate", ["lost", "cut", "crash_after", "twice", "echo", "gateway", "crash"])
def test_a_call_through_a_fault_returns_the_recordings_of_one_without(server: InProcessService, fate: str) -> None:
    undisturbed = trainer()
    expected = []
    for _ in range(4):
        with observe(undisturbed.net, RECORD, statistics=True) as seen:
            result = undisturbed.step(torch.from_numpy(X), torch.from_numpy(Y), LOSS)
        expected.append((seen.recordings, seen.statistics_of_step(result.grad_norms)))
    road = Road(server)
    with patient_client(road) as client:
        model = client.create_model(LAYERS, optimizer=SGD, id="m", durable_every=2)
        road.fates = ["ok", fate, "ok", fate]
        futures = [model.step(X, Y, loss=LOSS, record=RECORD, statistics=True) for _ in range(4)]
        for future, (recordings, statistics) in zip(futures, expected, strict=True):
            found = future.result(30)
            assert same(found.recordings, recordings)
            assert same(found.statistics, statistics)
        model.close()
    road.settle()


def test_what_the_network_has_not_is_refused_and_the_next_call_goes_on(model: Model) -> None:
    wrong = {"/params/record/0": ["third.spikes"], "/params/record/1": ["out.output", "last.spikes"]}
    for pointer, record in wrong.items():
        with pytest.raises(UnprocessableError) as caught:
            model.step(X, Y, loss=LOSS, record=record).result()
        assert caught.value.errors[0].pointer == pointer
        with pytest.raises(UnprocessableError):
            model.forward(X, record=record).result()
    assert model.step(X, Y, loss=LOSS).result().loss > 0


@pytest.mark.parametrize("record", ["hidden.spikes", [("hidden", "spikes")], {"hidden": "spikes"}, [3], None])
def test_a_record_that_is_no_list_of_names_is_refused_here(model: Model, record: Any) -> None:
    for call in (model.step, model.forward_backward, model.forward):
        with pytest.raises(TypeError, match=r"record must be a list of names .*, such as \['hidden.spikes'"):
            call(X, Y, loss=LOSS, record=record)
    assert model.sequence == 0


@pytest.mark.parametrize(
    "statistics",
    [None, [], 3, {"hidden": 3}, {"hidden": {"firing_rate": "x"}}, {"hidden": {"synaptic_operations": 1.5}}],
)
def test_answers_without_statistics_are_refused(server: InProcessService, statistics: Any) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/forward"):
            return server(request)
        params = {"sequence": 0, "statistics": statistics}
        return httpx.Response(200, json={"v": 1, "params": params, "tensors": []})

    with Client("http://node", transport=httpx.MockTransport(answer)) as client:
        model = client.create_model(LAYERS, id="m")
        with pytest.raises(InvalidResponseError, match="the answer lacks statistics"):
            model.forward(X, outputs=False, statistics=True).result()


def test_numbers_of_later_servers_are_passed_over(server: InProcessService) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/forward"):
            return server(request)
        numbers = {"hidden": {"firing_rate": 0.5, "grad_norm": "NaN", "synaptic_operations": 2, "bursts": 3}}
        return httpx.Response(200, json={"v": 1, "params": {"sequence": 0, "statistics": numbers}, "tensors": []})

    with Client("http://node", transport=httpx.MockTransport(answer)) as client:
        model = client.create_model(LAYERS, id="m")
        found = model.forward(X, outputs=False, statistics=True).result().statistics
    assert found is not None
    hidden = found["hidden"]
    assert (hidden.firing_rate, hidden.silent, hidden.synaptic_operations) == (0.5, None, 2)
    assert hidden.grad_norm != hidden.grad_norm
