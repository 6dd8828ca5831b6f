"""Options of training calls and weights alone, as they are sent, split over servers, refused and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import safetensors.numpy
import torch
from client.in_process_service import InProcessService

from exodus_client import (
    Client,
    ConflictError,
    InvalidResponseError,
    LoadedWeights,
    Model,
    Retries,
    ShardedClient,
    UnprocessableError,
)
from exodus_client.wire import MSGPACK_TYPE, Message, decode

LAYERS = [
    {"kind": "linear", "in_features": 3, "out_features": 4, "gain": 8.0, "name": "in"},
    {"kind": "lif", "alpha": 0.5},
    {"kind": "linear", "out_features": 2, "bias": False, "name": "out"},
]
#: Batch of three samples of four steps, first in the order (batch, time, ...).
X = (np.arange(36).reshape(3, 4, 3) % 5 < 2).astype(np.float32)
LABELS = np.array([0, 1, 1])
STEPS = np.array([[0, 1, 1, 0]] * 3)
LENGTHS = np.array([4, 1, 2])
MASK = np.arange(4) < LENGTHS[:, None]
CE = "sum_over_time_ce"
SUM: list[Any] = [CE, {"kind": "spike_rate_bounds", "upper": 0.1, "weight": 0.5}]

each_order = pytest.mark.parametrize("time_dim", [0, 1, -1])


def create(client: Client, **options: Any) -> Model:
    return client.create_model(**({"layers": LAYERS, "optimizer": {"kind": "sgd", "lr": 0.5}, "id": "m"} | options))


def ordered(array: Any, time_dim: int) -> Any:
    """An array (batch, time, ...) in the order of a handle."""
    return np.moveaxis(array, 1, time_dim)


def sent(server: InProcessService) -> list[Message]:
    """The messages of training and forward calls, in order."""
    paths = [path.rpartition("/")[2] for _, path in server.requests]
    calls = zip(paths, server.bodies, strict=True)
    wanted = ("step", "forward_backward", "optim_step", "forward")
    return [decode(body, MSGPACK_TYPE) for path, body in calls if path in wanted]


def test_a_list_of_losses_travels_as_it_is(client: Client, server: InProcessService) -> None:
    model = create(client)
    result = model.step(X, LABELS, loss=SUM).result()
    assert sent(server)[0].params["loss"] == SUM
    assert {"loss:mean", f"{CE}.loss:mean", "spike_rate_bounds.loss:mean", "rate:mean"} < result.metrics.keys()
    weighted = (CE, {"kind": "spike_rate_mse", "rate": np.float32(0.5), "weight": torch.tensor(2.0)})
    model.step(X, LABELS, loss=weighted).result()
    assert sent(server)[1].params["loss"][1] == {"kind": "spike_rate_mse", "rate": 0.5, "weight": 2.0}
    with pytest.raises(TypeError, match=r"loss\[0\] must be "):
        model.step(X, LABELS, loss=[object()])  # type: ignore[list-item]


def test_what_is_not_given_is_not_sent(client: Client, server: InProcessService) -> None:
    model = create(client)
    model.step(X, LABELS, loss=CE).result()
    model.forward_backward(X, LABELS, loss=CE).result()
    model.optim_step().result()
    names = [{*message.params} - {"sequence", "writer"} for message in sent(server)]
    assert names == [{"loss"}, {"loss"}, set()]
    assert sorted(sent(server)[0].tensors) == ["input", "targets"]


@each_order
def test_targets_of_steps_and_masks_travel_batch_first(client: Client, server: InProcessService, time_dim: int) -> None:
    model = create(client, time_dim=time_dim)
    x = ordered(X, time_dim)
    model.step(x, ordered(STEPS, time_dim), loss="per_step_ce", mask=ordered(MASK, time_dim)).result()
    model.forward_backward(x, LABELS, loss="per_step_ce", lengths=LENGTHS.tolist()).result()
    model.forward(x, ordered(STEPS, time_dim), loss=[{"kind": "per_step_ce"}], lengths=torch.tensor(LENGTHS)).result()
    first, second, third = sent(server)
    assert first.tensors["targets"].numpy().tolist() == STEPS.tolist()
    assert first.tensors["mask"].numpy().tolist() == MASK.tolist()
    assert first.tensors["mask"].encoding == "bits"
    assert second.tensors["targets"].numpy().tolist() == LABELS.tolist()
    assert second.tensors["lengths"].numpy().tolist() == LENGTHS.tolist()
    assert third.tensors["lengths"].numpy().tolist() == LENGTHS.tolist()
    assert "mask" not in third.tensors


def test_lengths_and_a_mask_of_them_are_the_same(client: Client) -> None:
    losses = [
        create(client, id=id).step(X, LABELS, loss=SUM, **given).result().loss
        for id, given in (("a", {"lengths": LENGTHS}), ("b", {"mask": MASK}), ("c", {}))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_of_the_outputs_alone_takes_no_targets(client: Client, server: InProcessService) -> None:
    model = create(client)
    loss = {"kind": "spike_rate_mse", "rate": 0.5}
    assert "rate:mean" in model.step(X, loss=loss).result().metrics
    assert "rate:mean" in model.forward(X, loss=loss, lengths=LENGTHS).result().metrics
    assert all("targets" not in message.tensors for message in sent(server))
    with pytest.raises(UnprocessableError, match="unused tensor"):
        model.step(X, LABELS, loss=loss).result()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"lengths": LENGTHS, "mask": MASK}, TypeError, "lengths must be None with a mask, got both"),
        ({"lengths": LENGTHS[:2]}, ValueError, r"lengths must be of shape \[3\], \(batch,\), got \[2\]"),
        ({"mask": MASK.T}, ValueError, r"mask must be of shape \[3, 4\], \(batch, time\), got \[4, 3\]"),
        ({"mask": MASK.astype(float)}, TypeError, "mask must be of bools, got an array of float64"),
        ({"mask": torch.tensor(MASK).float()}, TypeError, "mask must be of bools, got an array of torch.float32"),
        ({"average": "no"}, TypeError, "average must be True or False, got 'no'"),
        ({"statistics": "no"}, TypeError, "statistics must be True or False, got 'no'"),
        ({"gradients": 1}, TypeError, "gradients must be True or False, got 1"),
        ({"allow_non_finite": None}, TypeError, "allow_non_finite must be True or False, got NoneType"),
        ({"mask": MASK[0]}, ValueError, r"mask must be of shape \[3, 4\], \(batch, time\), got \[4\]"),
        ({"loss": lambda y, t: y.sum(), "mask": MASK}, TypeError, "mask must be None with a loss that is a function"),
        ({"frozen": "in"}, TypeError, "frozen must be a list of names of layers or parameters, got str"),
        ({"lr_scale": ["in"]}, TypeError, "lr_scale must be a dict of numbers by the names of layers or parameters"),
        ({"lr_of": {"in": "fast"}}, TypeError, r"lr_of\['in'\] must be a number, got 'fast'"),
        ({"accumulate": "all"}, ValueError, "accumulate must be one of calls, samples, got 'all'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_sent(
    client: Client, server: InProcessService, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = create(client)
    with pytest.raises(error, match=message):
        model.step(X, LABELS, **({"loss": CE} | given))
    assert sent(server) == []
    assert model.sequence == 0


def test_lengths_travel_as_they_are(client: Client, server: InProcessService) -> None:
    model, true = create(client), cast("bool", np.True_)
    model.step(X, LABELS, loss="per_step_ce", lengths=[1, 1, 1], average=true).result()
    (message,) = sent(server)
    assert (message.tensors["lengths"].dtype, message.tensors["lengths"].encoding) == ("int64", "raw")
    with pytest.raises(UnprocessableError, match=r"lengths must be an integer tensor, got torch\.float64"):
        model.forward(X, LABELS, loss="per_step_ce", lengths=[1.0, 1.0, 1.0]).result()


@pytest.mark.parametrize("name", ["train", "outputs"])
def test_a_forward_pass_takes_no_text_for_true(client: Client, name: str) -> None:
    options: dict[str, Any] = {name: "no"}
    with pytest.raises(TypeError, match=f"{name} must be True or False, got 'no'"):
        create(client).forward(X, **options)


def test_lengths_without_a_loss_are_refused(client: Client) -> None:
    with pytest.raises(TypeError, match="lengths or mask must be given with a loss"):
        create(client).forward(X, lengths=LENGTHS)


def test_options_of_layers_and_of_accumulation_are_sent(client: Client, server: InProcessService) -> None:
    model = create(client, optimizer={"kind": "adam", "frozen": ["in.bias"], "lr_scale": {"out": 2.0}})
    assert model.info().optimizer["frozen"] == ["in.bias"]
    before = model.state_dict()
    rates: dict[str, Any] = {"lr_scale": {"in": np.float32(0.5)}, "lr_of": {"out": 0.25}}
    model.step(X, LABELS, loss=CE, frozen=("out",), **rates).result()
    model.forward_backward(X, LABELS, loss=CE, frozen=[], accumulate="samples").result()
    model.optim_step(frozen=[], average=True, **rates).result()
    model.step(X, LABELS, loss=CE, accumulate="samples", average=True).result()
    params = [{**message.params} for message in sent(server)]
    for entry in params:
        del entry["sequence"], entry["writer"]
    sent_rates = {"lr_scale": {"in": 0.5}, "lr_of": {"out": 0.25}}
    assert params == [
        {"loss": CE, "frozen": ["out"], **sent_rates},
        {"loss": CE, "frozen": [], "accumulate": "samples"},
        {"frozen": [], "average": True, **sent_rates},
        {"loss": CE, "accumulate": "samples", "average": True},
    ]
    assert not np.array_equal(before["out.weight"], model.state_dict()["out.weight"])
    with pytest.raises(UnprocessableError, match="nose"):
        model.step(X, LABELS, loss=CE, frozen=["nose"]).result()


def test_a_function_as_the_loss_takes_the_options_too(client: Client) -> None:
    model = create(client)
    before = model.state_dict()
    model.step(X, loss=lambda y: y.square().sum(), frozen=["out"], accumulate="samples", average=True).result()
    after = model.state_dict()
    assert np.array_equal(before["out.weight"], after["out.weight"])
    assert not np.array_equal(before["in.weight"], after["in.weight"])


class TestLoadingWeights:
    @pytest.mark.parametrize("of", ["a dict", "a dict of torch", "a file", "a state"])
    def test_weights_are_replaced_and_the_optimiser_starts_anew(
        self, client: Client, server: InProcessService, tmp_path: Path, of: str
    ) -> None:
        other, model = create(client, id="other", seed=5), create(client, optimizer="adam")
        model.step(X, LABELS, loss=CE).result()
        model.forward_backward(X, LABELS, loss=CE).result()
        wanted, file = other.state_dict(), tmp_path / "weights.safetensors"
        by_kind: dict[str, Any] = {"a dict": wanted, "a dict of torch": other.state_dict("torch")}
        if of == "a file":
            file.write_bytes(safetensors.numpy.save(wanted))
        elif of == "a state":
            other.save(file)
        found = model.load_weights(by_kind.get(of, file))
        assert found == LoadedWeights(["in.weight", "in.bias", "out.weight"], [], [])
        assert model.sequence == 2
        assert all(np.array_equal(wanted[name], array) for name, array in model.state_dict().items())
        assert {name.partition(".")[0] for name in server.state("m").tensors} == {"weights", "random"}
        assert model.step(X, LABELS, loss=CE).result().sequence == 3

    def test_parts_are_chosen_by_name(self, client: Client) -> None:
        model = create(client)
        ones = {name: np.ones_like(array) for name, array in model.state_dict().items()}
        assert model.load_weights(ones, names=["in"]).loaded == ["in.weight", "in.bias"]
        assert not (model.state_dict()["out.weight"] == 1).all()
        some = {"out.weight": ones["out.weight"], "nose": np.ones(2)}
        found = model.load_weights(some, partial=True)
        assert found == (["out.weight"], ["in.weight", "in.bias"], ["nose"])
        assert (model.state_dict()["out.weight"] == 1).all()

    def test_what_does_not_fit_is_refused(self, client: Client, tmp_path: Path) -> None:
        model = create(client)
        before = model.state_dict()
        with pytest.raises(ConflictError, match=r"in\.bias"):
            model.load_weights({"in.bias": np.ones(3)}, partial=True)
        with pytest.raises(UnprocessableError, match="nose"):
            model.load_weights(before, names=["nose"])
        with pytest.raises(TypeError, match="weights must be a dict of arrays by name"):
            model.load_weights([np.ones(3)])  # type: ignore[arg-type]
        with pytest.raises(ConflictError, match=r"in\.bias must be finite"):
            model.load_weights({"in.bias": np.full(4, np.nan)}, partial=True)
        with pytest.raises(TypeError, match=r"in\.bias must be a number or an array of numbers, got 'ones'"):
            model.load_weights({"in.bias": "ones"}, partial=True)
        with pytest.raises(TypeError, match="partial must be True or False, got 'no'"):
            model.load_weights(before, partial="no")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="strict must be True or False, got 'no'"):
            model.load_state_dict(before, strict="no")  # type: ignore[arg-type]
        with pytest.raises(FileNotFoundError):
            model.load_weights(tmp_path / "none")
        assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())

    @pytest.mark.parametrize("prefix", ["", "weights."])
    def test_what_is_not_taken_is_not_looked_at(self, client: Client, prefix: str) -> None:
        model = create(client)
        ones = {f"{prefix}{name}": np.ones_like(array) for name, array in model.state_dict().items()}
        given = ones | {f"{prefix}in.bias": np.full(4, np.nan), "inner.weight": "no array"}
        found = model.load_weights(given, names=["in.weight", "out"])
        assert found == LoadedWeights(["in.weight", "out.weight"], [], [])
        assert (model.state_dict()["in.weight"] == 1).all()

    @pytest.mark.parametrize("kind", ["a dict", "a dict of numbers", "a file"])
    def test_decays_and_thresholds_are_brought_into_range(self, client: Client, tmp_path: Path, kind: str) -> None:
        model = create(client, layers=[LAYERS[0], LAYERS[1] | {"trainable": ["alpha", "threshold"]}, LAYERS[2]])
        weights = model.state_dict() | {"1.alpha": np.array(1.5, np.float32), "1.threshold": np.array(-1.0, np.float32)}
        if kind == "a dict of numbers":
            weights |= {"1.alpha": 1.5, "1.threshold": -1.0}
        file = tmp_path / "weights.safetensors"
        if kind == "a file":
            file.write_bytes(safetensors.numpy.save(weights))
        model.load_weights(file if kind == "a file" else weights)
        assert model.state_dict()["1.alpha"] == 1
        assert model.state_dict()["1.threshold"] > 0

    def test_an_answer_that_does_not_say_what_was_loaded_is_none(self, server: InProcessService) -> None:
        def change(request: httpx.Request) -> httpx.Response:
            answer = server(request)
            if request.method != "PUT":
                return answer
            return httpx.Response(200, json={**answer.json(), "loaded": "all"})

        with Client("http://node", transport=httpx.MockTransport(change), retries=Retries(count=0)) as client:
            model = create(client)
            with pytest.raises(InvalidResponseError, match="does not say which weights were loaded"):
                model.load_weights(model.state_dict())


@pytest.fixture
def sharded(client: Client) -> Any:
    servers = ShardedClient([client, client])
    yield lambda **options: servers.create_model(LAYERS, id="s", **({"optimizer": {"kind": "sgd"}} | options))
    servers.close()


@each_order
@pytest.mark.parametrize("counted", ["lengths", "mask"])
def test_servers_share_lengths_and_masks_as_they_share_samples(
    client: Client, sharded: Callable[..., Any], time_dim: int, counted: str
) -> None:
    whole, parts = create(client, optimizer={"kind": "sgd"}), sharded(time_dim=time_dim)
    one = {"lengths": LENGTHS} if counted == "lengths" else {"mask": MASK}
    other = {"lengths": LENGTHS} if counted == "lengths" else {"mask": ordered(MASK, time_dim)}
    x = ordered(X, time_dim)
    options: dict[str, Any] = {"frozen": ["in.bias"], "lr_of": {"out": 0.5}, "lr_scale": {"in": 3.0}}
    for _ in range(2):
        wanted = whole.step(X, LABELS, loss=SUM, **one, **options).result()
        found = parts.step(x, LABELS, loss=SUM, **other, **options).result()
        assert found.metrics == pytest.approx(wanted.metrics, rel=1e-5)
    weights = parts.state_dict()
    assert all(np.allclose(array, weights[name], atol=1e-6) for name, array in whole.state_dict().items())
    wanted_metrics = whole.forward(X, LABELS, loss=SUM, **one).result().metrics
    assert parts.forward(x, LABELS, loss=SUM, **other).result().metrics == pytest.approx(wanted_metrics, rel=1e-5)


@pytest.mark.parametrize("name", ["gradients", "allow_non_finite", "train", "outputs"])
def test_several_servers_take_no_text_for_true(sharded: Callable[..., Any], name: str) -> None:
    model, options = sharded(), {name: "no"}
    with pytest.raises(TypeError, match=f"{name} must be True or False, got 'no'"):
        model.forward(X, **options) if name in ("train", "outputs") else model.step(X, LABELS, loss=CE, **options)


def test_all_servers_get_the_weights(sharded: Callable[..., Any]) -> None:
    model = sharded(optimizer="adam")
    model.step(X, LABELS, loss=CE).result()
    ones = {name: np.ones_like(array) for name, array in model.state_dict().items()}
    assert model.load_weights(ones, names=["in"]).loaded == ["in.weight", "in.bias"]
    for replica in model.replicas:
        assert (replica.state_dict()["in.weight"] == 1).all()
        assert not (replica.state_dict()["out.weight"] == 1).all()
    model.step(X, LABELS, loss=CE).result()
