"""Plain data: NumPy and torch numbers are accepted, everything else is refused by its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from client.in_process_service import InProcessService

from exodus_client import Arctan, Client, ShardedClient
from exodus_client._plain_data import plain
from exodus_client.wire import MSGPACK_TYPE, decode

LAYERS: list[dict[str, Any]] = [{"kind": "linear", "in_features": 3, "out_features": 2}, {"kind": "lif", "alpha": 0.5}]
X = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
Y = np.array([0, 1])
LOSS = "max_over_time_ce"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(0.5), 0.5),
        (np.array([0.5, 0.25], np.float32), [0.5, 0.25]),
        (torch.tensor(3), 3),
        (torch.tensor([0.5, 1.0], requires_grad=True), [0.5, 1.0]),
        (torch.tensor([0.5], dtype=torch.bfloat16), [0.5]),
        ((1, np.int8(2)), [1, 2]),
        (np.array([1, 2], np.uint64), [1, 2]),
        (torch.tensor([1, 2], dtype=torch.uint16), [1, 2]),
        (np.longdouble(0.5), 0.5),
        ({"a": {"b": np.float16(0.5)}}, {"a": {"b": 0.5}}),
        (Arctan(2.0), {"kind": "arctan", "scale": 1.0, "slope": 2.0}),
    ],
)
def test_numbers_of_numpy_and_torch_are_plain_data(given: Any, expected: Any) -> None:
    found = plain("place", given)
    assert found == expected
    assert type(found) is type(expected)


def test_a_description_may_hold_numbers_of_numpy_and_torch(client: Client, server: InProcessService) -> None:
    layers = [LAYERS[0], {"kind": "lif", "alpha": np.array([0.5, 0.25]), "surrogate": Arctan()}]
    optimizer = {"kind": "sgd", "lr": np.float32(0.5)}
    model = client.create_model(layers, optimizer=optimizer, seed=np.int64(3), input_shape=np.array([3]))  # type: ignore[arg-type]
    made = decode(server.bodies[-1], MSGPACK_TYPE).params
    surrogate = {"kind": "arctan", "scale": 1.0}
    assert made["network"]["layers"][1] == {"kind": "lif", "alpha": [0.5, 0.25], "surrogate": surrogate}
    assert (made["network"]["input_shape"], made["optimizer"], made["seed"]) == ([3], {"kind": "sgd", "lr": 0.5}, 3)
    assert model.step(X, Y, loss=LOSS, lr=torch.tensor(0.5)).result(10).sequence == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": torch.nn.Sequential(torch.nn.Linear(3, 2))}, r"layers must be a list of dicts, .*got Sequential"),
        ({"layers": "lif"}, r"layers must be a list of dicts, .*got str"),
        ({"layers": [torch.nn.Linear(3, 2)]}, r"layers\[0\] must be a dict such as .*, got Linear"),
        (
            {"layers": [LAYERS[0], {"kind": "lif", "surrogate": Arctan}]},
            r"layers\[1\]\.surrogate must be a dict such as \{'kind': 'arctan'\}, got the class Arctan",
        ),
        ({"layers": {"layers": [{"kind": {1, 2}}]}}, r"layers\[0\]\.kind must be a number, a string.*, got set"),
        (
            {"layers": [{"alpha": np.ones((1, 2))}]},
            r"layers\[0\]\.alpha must be a number or a list, got an array of shape \[1, 2\] and float64",
        ),
        ({"layers": [{"alpha": torch.eye(2).to_sparse()}]}, r"tensor 'layers\[0\]\.alpha' must be dense"),
        (
            {"layers": [{"alpha": np.array(["a"])}]},
            r"layers\[0\]\.alpha must be a number or a list, got an array of shape \[1\] and <U1",
        ),
        ({"optimizer": torch.optim.Adam}, r"optimizer must be 'sgd', 'adam', 'adamw', or a dict.*, got the class Adam"),
        ({"optimizer": None}, r"optimizer must be .*, got NoneType"),
        ({"seed": object()}, r"seed must be .*, got object"),
        ({"dtype": np.float32}, r"dtype must be 'float32' or 'float64', got type"),
        ({"dtype": "float16"}, r"dtype must be 'float32' or 'float64', got 'float16'"),
        ({"id": 3}, r"id must be a string, got 3$"),
    ],
)
def test_what_cannot_travel_is_refused_by_its_place(
    client: Client, server: InProcessService, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        client.create_model(**({"layers": LAYERS} | arguments))
    assert not server.requests


def test_a_model_is_named_by_its_id(client: Client, server: InProcessService) -> None:
    model: Any = client.create_model(LAYERS)
    for ask in (client.model, client.delete_model, ShardedClient([client]).model, ShardedClient([client]).delete_model):
        with pytest.raises(TypeError, match=r"^id must be a string, got Model; its `id` is one"):
            ask(model)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": 3}, "loss must be a name such as 'max_over_time_ce', a dict .*, a list .*, or a function.*, got 3"),
        ({"loss": None}, "loss must be a name.*, got NoneType"),
        ({"loss": {"kind": object()}}, r"loss\.kind must be .*, got object"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"clip_norm": True}, "clip_norm must be a number, got True"),
        ({"lr": float("nan")}, "lr must be a finite number, got nan"),
        ({"clip_value": 10**400}, "clip_value must be an integer of at most 64 bits, got an integer of 1329 bits"),
    ],
)
def test_options_of_a_step_are_refused_by_their_names(client: Client, arguments: Any, message: str) -> None:
    model = client.create_model(LAYERS)
    sharded = ShardedClient([client]).create_model(LAYERS)
    for step in (model.step, sharded.step):
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            step(X, Y, **({"loss": LOSS} | arguments))
    assert model.step(X, Y, loss=LOSS).result(10).sequence == 1
    sharded.close()


def test_spikes_and_weights_are_called_what_the_caller_calls_them(client: Client) -> None:
    model: Any = client.create_model(LAYERS)
    with pytest.raises(TypeError, match=r"^spikes must be a dense array of numbers, got None$"):
        model.step(None, Y, loss=LOSS)
    with pytest.raises(TypeError, match=r"dtype of 'spikes' must be .*, got object"):
        model.step({"a": 1}, Y, loss=LOSS)
    with pytest.raises(TypeError, match=r"^loss must be a name or a dict, got a function"):
        model.forward(X, Y, loss=lambda outputs, targets: outputs.sum())
    with pytest.raises(
        TypeError, match=r"^weights must be a dict of arrays by name, got str; load\(path\) reads a file"
    ):
        model.load_state_dict("digits.safetensors")
    with pytest.raises(TypeError, match=r"^weights must be a dict of arrays by name, got ndarray$"):
        model.load_state_dict(X)
    with pytest.raises(ValueError, match=r"got missing \S+\.bias, \S+\.weight and unexpected nothing;"):
        model.load_state_dict({"nothing": X})


@pytest.mark.parametrize(
    ("targets", "dtype"),
    [
        ([0.0, 1.0], "float64"),
        (torch.tensor([0.0, 1.0]), "float32"),
        (np.zeros((2, 2, 2), np.float32), "bool"),  # spike trains
        (np.zeros((2, 2), np.int64), "int64"),  # counts
    ],
)
def test_class_numbers_and_counts_keep_their_dtype_and_spike_trains_travel_as_bits(targets: Any, dtype: str) -> None:
    from exodus_client._models.messages import Batch

    assert Batch.of(X, targets).tensors[1].dtype == dtype
