"""The order of batch and time: what is sent is batch first, whatever order the handle of a model takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from client.faults import patient_client
from client.in_process_service import InProcessService

from exodus_client import Client, Model, ShardedClient, ShardedModel, UnprocessableError
from exodus_client.wire import MSGPACK_TYPE, Message, decode

LAYERS = [{"kind": "linear", "in_features": 3, "out_features": 2}, {"kind": "lif", "alpha": 0.5}]
#: Two samples of four steps, and spike trains for them.
X = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
TRAINS = np.arange(16, dtype=np.float32).reshape(2, 4, 2)
LABELS = np.array([0, 1])
#: Batch first in the order of a handle.
ORDERS: dict[int, Callable[[Any], Any]] = {
    0: lambda array: array.swapaxes(0, 1),
    1: lambda array: array,
    -1: lambda array: array.swapaxes(1, 2),
}

each_order = pytest.mark.parametrize("time_dim", ORDERS)
each_kind = pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, np.ndarray.tolist])


def make(client: Client, **options: Any) -> Model:
    return client.create_model(LAYERS, input_shape=[3], id="m", **options)


@pytest.fixture
def sharded(client: Client) -> Iterator[Callable[..., ShardedModel]]:
    """Makes a model of two replicas on one server."""
    servers = ShardedClient([client, client])
    yield lambda **options: servers.create_model(LAYERS, input_shape=[3], id="s", **options)
    servers.close()


def calls(server: InProcessService) -> list[Message]:
    """The messages with an input, in order."""
    answered = zip(server.requests, server.bodies, strict=True)
    messages = [decode(body, MSGPACK_TYPE) for (method, path), body in answered if method == "POST" and body]
    return [message for message in messages if "input" in message.tensors]


@each_order
@each_kind
def test_spikes_and_target_trains_travel_batch_first(
    client: Client, server: InProcessService, time_dim: int, kind: Callable[[Any], Any]
) -> None:
    model, given = make(client, time_dim=time_dim), ORDERS[time_dim]
    for loss in ("spike_train_mse", {"kind": "van_rossum", "alpha": 0.9}):
        model.step(kind(given(X)), kind(given(TRAINS)), loss=loss).result(10)
    for message in calls(server):
        np.testing.assert_array_equal(message.tensors["input"].numpy(), X)
        np.testing.assert_array_equal(message.tensors["targets"].numpy(), TRAINS)


@each_order
def test_targets_without_time_travel_as_they_are(client: Client, server: InProcessService, time_dim: int) -> None:
    model, counts = client.model(make(client).id, time_dim=time_dim), np.arange(4.0).reshape(2, 2)
    model.forward_backward(ORDERS[time_dim](X), LABELS, loss="max_over_time_ce").result(10)
    model.forward_backward(ORDERS[time_dim](X), counts, loss="spike_count_mse").result(10)
    first, second = calls(server)
    np.testing.assert_array_equal(first.tensors["targets"].numpy(), LABELS)
    np.testing.assert_array_equal(second.tensors["targets"].numpy(), counts)


@each_order
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_outputs_come_back_in_the_order_of_the_handle(
    client: Client, time_dim: int, kind: Callable[[Any], Any], sharded: Callable[..., ShardedModel]
) -> None:
    wanted = ORDERS[time_dim](make(client).forward(X).result(10).outputs)
    for model in (client.model("m", time_dim=time_dim), sharded(time_dim=time_dim)):
        outputs = model.forward(kind(ORDERS[time_dim](X))).result(10).outputs
        assert isinstance(outputs, type(kind(X)))
        np.testing.assert_array_equal(outputs, wanted)
        only_metrics = model.forward(ORDERS[time_dim](X), LABELS, loss="max_over_time_ce", outputs=False).result(10)
        assert only_metrics.outputs is None


@each_order
def test_a_loss_of_ones_own_gets_outputs_in_the_order_of_the_handle(
    client: Client, server: InProcessService, time_dim: int, sharded: Callable[..., ShardedModel]
) -> None:
    shapes, grads = [], []

    def loss(outputs: torch.Tensor, targets: np.ndarray[Any, Any]) -> torch.Tensor:
        shapes.append(tuple(outputs.shape))
        return (outputs * torch.arange(outputs.numel()).view_as(outputs)).sum()

    make(client, time_dim=time_dim).step(ORDERS[time_dim](X), LABELS, loss=loss).result(10)
    assert shapes == [ORDERS[time_dim](TRAINS).shape]
    grads = [decode(body, MSGPACK_TYPE).tensors.get("grad_output") for body in server.bodies if body]
    (grad,) = [tensor.numpy() for tensor in grads if tensor is not None]
    np.testing.assert_array_equal(ORDERS[time_dim](grad).ravel(), np.arange(16))
    sharded(time_dim=time_dim).step(ORDERS[time_dim](X), LABELS, loss=loss).result(10)
    assert shapes[1:] == [ORDERS[time_dim](TRAINS[:1]).shape] * 2


@each_order
def test_a_step_on_several_servers_splits_the_batch(
    server: InProcessService, time_dim: int, sharded: Callable[..., ShardedModel]
) -> None:
    given = ORDERS[time_dim]
    sharded(time_dim=time_dim).step(given(X), given(TRAINS), loss="spike_train_mse").result(10)
    parts = sorted(calls(server), key=lambda message: float(message.tensors["input"].numpy().sum()))
    for sample, message in enumerate(parts):
        np.testing.assert_array_equal(message.tensors["input"].numpy(), X[sample : sample + 1])
        np.testing.assert_array_equal(message.tensors["targets"].numpy(), TRAINS[sample : sample + 1])


TIME_FIRST = "; for time first pass time_dim=0 where the model's handle is made$"
BATCH_FIRST = "; time_dim is {}, for batch first pass 1 where the model's handle is made$"


@pytest.mark.parametrize(
    ("time_dim", "spikes", "targets", "loss", "message"),
    [
        (
            1,
            (4, 2, 3),
            (2,),
            "max_over_time_ce",
            r"targets must have one value for each sample of the spikes, which are \(batch, time, ...\) of shape "
            r"\[4, 2, 3\], got shape \[2\]" + TIME_FIRST,
        ),
        (1, (4, 2, 3), (2, 2), "spike_count_mse", r"got shape \[2, 2\]" + TIME_FIRST),
        (1, (2, 4, 3), (), "max_over_time_ce", r"got shape \[\]" + TIME_FIRST),
        (
            1,
            (4, 2, 3),
            (2, 4, 2),
            {"kind": "van_rossum", "alpha": 0.9},
            r"targets must have one value for each sample and step of .*, got shape \[2, 4, 2\]" + TIME_FIRST,
        ),
        (1, (2, 4, 3), (2,), "spike_train_mse", r"got shape \[2\]" + TIME_FIRST),
        (
            0,
            (2, 4, 3),
            (2,),
            "max_over_time_ce",
            r"which are \(time, batch, ...\) of shape \[2, 4, 3\], got shape \[2\]" + BATCH_FIRST.format(0),
        ),
        (
            -1,
            (2, 3, 4),
            (2, 4, 2),
            "spike_train_mse",
            r"which are \(batch, ..., time\) of shape \[2, 3, 4\], got shape \[2, 4, 2\]" + BATCH_FIRST.format(-1),
        ),
        (
            1,
            (2, 3, 4),
            (2,),
            "max_over_time_ce",
            r"spikes must have shape \(batch, time, 3\), got \[2, 3, 4\]" + TIME_FIRST,
        ),
        (-1, (2, 4, 3), (2,), "max_over_time_ce", r"spikes must have shape \(batch, 3, time\), got \[2, 4, 3\]"),
        (1, (3,), (2,), "max_over_time_ce", r"spikes must have shape \(batch, time, 3\), got \[3\]" + TIME_FIRST),
        (0, (3,), (2,), "max_over_time_ce", r"spikes must have shape \(time, batch, 3\), got \[3\]"),
    ],
)
def test_shapes_that_cannot_be_right_are_refused_with_the_order_of_axes(
    client: Client,
    server: InProcessService,
    sharded: Callable[..., ShardedModel],
    time_dim: int,
    spikes: tuple[int, ...],
    targets: tuple[int, ...],
    loss: Any,
    message: str,
) -> None:
    arrays = np.zeros(spikes, np.float32), np.zeros(targets, np.int64)
    for model in (make(client, time_dim=time_dim), sharded(time_dim=time_dim)):
        for call in (model.step, model.forward):
            with pytest.raises(ValueError, match=message):
                call(*arrays, loss=loss)
    assert not calls(server)


def test_where_the_shape_of_a_sample_is_not_known_the_server_is_asked(client: Client, server: InProcessService) -> None:
    make(client)

    def without_shape(request: httpx.Request) -> httpx.Response:
        if request.method != "GET":
            return server(request)
        info = server.models["m"]
        return httpx.Response(200, json=info | {"network": info["network"] | {"input_shape": None}})

    with patient_client(httpx.MockTransport(without_shape)) as asking:
        model = asking.model("m")
        with pytest.raises(UnprocessableError, match="input"):
            model.step(np.zeros((2, 4, 5), np.float32), LABELS, loss="max_over_time_ce").result(10)
        with pytest.raises(ValueError, match=r"spikes must have shape \(batch, time, ...\), got \[3\]"):
            model.step(np.zeros(3, np.float32), LABELS, loss="max_over_time_ce")


def test_targets_of_a_function_that_look_time_first_are_not_split(sharded: Callable[..., ShardedModel]) -> None:
    square = np.zeros((4, 4, 3), np.float32)
    with pytest.raises(ValueError, match=r"targets of a function must be \(batch, ...\), .*, got shape \[4, 4, 2\]"):
        sharded(time_dim=0).step(square, np.zeros((4, 4, 2)), loss=lambda outputs, targets: outputs.sum())


def test_spikes_of_every_dtype_travel_as_bits(client: Client, server: InProcessService) -> None:
    model = make(client)
    for dtype in (np.uint8, np.int64, np.uint32, np.float16, np.bool_):
        model.step((X % 2).astype(dtype), LABELS, loss="max_over_time_ce").result(10)
    assert [message.tensors["input"].encoding for message in calls(server)] == ["bits"] * 5


LOSSES = ["max_over_time_ce", lambda outputs, targets: outputs.sum()]


@pytest.mark.parametrize("loss", LOSSES, ids=["a loss by name", "a function"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "got None"),
        ([[[1.0, 2.0, 3.0]], [[1.0, 2.0]]], "got lists of several lengths"),
        (torch.as_tensor(X).to_sparse(), "got a tensor that is sparse_coo"),
        (torch.empty(2, 4, 3, device="meta"), "got a tensor on meta"),
        (
            torch.nested.nested_tensor([torch.ones(4, 3), torch.ones(2, 3)], layout=torch.jagged),
            "got a tensor that is nested",
        ),
    ],
    ids=["none", "ragged", "sparse", "meta", "nested"],
)
@each_order
def test_what_is_no_dense_array_is_refused_by_name(
    client: Client, server: InProcessService, sharded: Any, time_dim: int, given: Any, message: str, loss: Any
) -> None:
    models: list[Any] = [make(client, time_dim=time_dim), sharded(time_dim=time_dim)]
    for model in models:
        with pytest.raises((TypeError, ValueError), match=f"^spikes must be a dense array of numbers, {message}"):
            model.step(given, LABELS, loss=loss)
        if given is not None:
            spikes = ORDERS[time_dim](X)
            with pytest.raises((TypeError, ValueError), match=f"^targets must be a dense array of numbers, {message}"):
                model.step(spikes, given, loss=loss)
    assert not calls(server)


@pytest.mark.parametrize("kind", [["a"], {}, None, 3])
def test_a_loss_of_no_kind_is_for_the_server_to_refuse(client: Client, server: InProcessService, kind: Any) -> None:
    model = make(client)
    for loss in ({"kind": kind}, {}):
        with pytest.raises(UnprocessableError, match=r"/params/loss"):
            model.forward(X, LABELS, loss=loss).result(10)
        assert calls(server)[-1].params["loss"] == loss
