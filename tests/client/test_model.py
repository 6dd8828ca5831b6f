"""Models on the server, as they are used where nothing fails: every method, numpy and torch, futures, errors."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
import torch
from client.faults import Road, patient_client
from client.in_process_service import InProcessService

import exodus_client
from exodus_client import (
    APIConnectionError,
    Client,
    ConflictError,
    InvalidResponseError,
    Limits,
    Model,
    ModelClosedError,
    NotFoundError,
    Retries,
    UnprocessableError,
)
from exodus_client._models.state import State

LAYERS = [
    {"kind": "linear", "in_features": 3, "out_features": 2, "name": "in"},
    {"kind": "lif", "alpha": 0.5},
    {"kind": "linear", "out_features": 2, "bias": False, "name": "out"},
]
#: Of in.weight, in.bias and out.weight.
COUNT = 6 + 2 + 4
NAMES = ["in.weight", "in.bias", "out.weight"]
X = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
Y = np.array([0, 1])
LOSS = "max_over_time_ce"


@pytest.fixture
def model(client: Client) -> Model:
    return create(client)


def create(client: Client, **options: Any) -> Model:
    return client.create_model(LAYERS, **({"optimizer": {"kind": "sgd", "lr": 0.5}, "id": "m"} | options))


def answered(server: InProcessService, change: Callable[[httpx.Request], httpx.Response | None]) -> Client:
    """A client of a server some of whose answers are others."""
    transport = httpx.MockTransport(lambda request: change(request) or server(request))
    return Client("http://node:8000", transport=transport, retries=Retries(first_delay=0.0))


bad_weights = pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("in.bias", None, r"^in\.bias must be a number or an array of numbers, got NoneType"),
        ("in.bias", "text", r"^in\.bias must be a number or an array of numbers, got 'text'"),
        ("in.bias", ["a", "b"], r"^in\.bias must be a number or an array of numbers, got list"),
        ("in.bias", [[1.0], [1.0, 2.0]], r"^in\.bias must be a number or an array of numbers, got list"),
        (
            "in.bias",
            np.array([True, False]),
            r"^in\.bias must be a number or an array of numbers, got an array of bool",
        ),
        (
            "in.bias",
            np.ones(2, complex),
            r"^in\.bias must be a number or an array of numbers, got an array of complex128",
        ),
        ("in.bias", torch.ones(2).to_sparse(), r"^in\.bias must be .*, got a sparse_coo tensor"),
        ("in.bias", torch.ones(2, device="meta"), r"^in\.bias must be a number or an array of numbers, got a "),
        ("in.bias", np.array([0.0, math.nan]), r"^in\.bias must be a number, got nan at \[1\]"),
        ("1.alpha", np.array(1.5), r"^1\.alpha must be in \[0, 1\], got 1\.5"),
        ("1.alpha", torch.tensor([0.5, -0.5]), r"^1\.alpha must be in \[0, 1\], got -0\.5 at \[1\]"),
        ("1.threshold", 0.0, r"^1\.threshold must be above 0, got 0\.0"),
        ("1.threshold", np.array([1.0, -1.0]), r"^1\.threshold must be above 0, got -1 at \[1\]"),
    ],
)


class TestMaking:
    def test_layers_become_a_network(self, client: Client, server: InProcessService) -> None:
        create(client, seed=4, durable_every=3, name="mine")
        assert sent(server).params == {
            "id": "m",
            "network": {"input_shape": None, "dtype": "float32", "layers": LAYERS},
            "optimizer": {"kind": "sgd", "lr": 0.5},
            "seed": 4,
            "durable_every": 3,
            "name": "mine",
        }

    def test_a_description_is_sent_as_it_is(self, client: Client, server: InProcessService) -> None:
        network = {"input_shape": [3], "dtype": "float64", "layers": LAYERS}
        client.create_model(network)
        assert sent(server).params["network"] == network
        assert sent(server).params["optimizer"] == {"kind": "adam"}

    def test_the_shape_of_the_input_may_stand_beside_the_layers(self, client: Client, server: InProcessService) -> None:
        model = client.create_model([{"kind": "linear", "out_features": 2}], input_shape=(5,), dtype="float64")
        assert sent(server).params["network"]["input_shape"] == [5]
        assert model.info().dtype == "float64"

    def test_checkpoint_steps_are_sent_where_they_are_given(self, client: Client, server: InProcessService) -> None:
        model = client.create_model(LAYERS, checkpoint_steps=50)
        assert sent(server).params["network"]["checkpoint_steps"] == 50
        assert model.info().network["checkpoint_steps"] == 50
        client.create_model({"layers": LAYERS, "checkpoint_steps": 40}, checkpoint_steps=30)
        assert sent(server).params["network"]["checkpoint_steps"] == 30
        for wrong, error in ((0, ValueError), ("10", TypeError), (True, TypeError)):
            with pytest.raises(error, match="checkpoint_steps must be an integer"):
                client.create_model(LAYERS, checkpoint_steps=wrong)  # type: ignore[arg-type]

    def test_a_request_that_was_lost_makes_one_model(self, server: InProcessService) -> None:
        with patient_client(Road(server, ["lost", "gateway"])) as client:
            model = client.create_model(LAYERS)
        assert list(server.models) == [model.id]

    def test_the_same_again_is_the_same_model_and_another_is_refused(self, client: Client) -> None:
        create(client)
        assert create(client).id == "m"
        with pytest.raises(ConflictError) as caught:
            create(client, seed=1)
        assert caught.value.code == "model_exists"

    def test_weights_are_given_flat(self, client: Client, server: InProcessService) -> None:
        create(client, weights=np.zeros(COUNT, np.float32))  # zeros are no spikes
        assert server.state().weights.tolist() == [0.0] * COUNT

    def test_weights_are_given_by_name(self, client: Client) -> None:
        given = {name: np.full(shape, 2.0, np.float32) for name, shape in create(client).info().parameters}
        model = create(client, id="other", weights=given)
        assert all((array == 2.0).all() for array in model.state_dict().values())

    def test_weights_are_those_to_begin_with(self, client: Client) -> None:
        given = {name: np.full(shape, 2.0, np.float32) for name, shape in create(client, id="other").info().parameters}
        create(client, weights=given).optim_step(gradients=np.ones(COUNT, np.float32)).result(10)
        again = create(client, weights=given)  # as after an answer that was lost
        assert again.sequence == 1
        assert again.state_dict()["in.bias"].tolist() != [2.0, 2.0]

    def test_what_does_not_fit_is_named(self, client: Client) -> None:
        with pytest.raises(UnprocessableError) as caught:
            client.create_model([{"kind": "lstm"}])
        assert caught.value.errors[0].pointer == "/params/network/layers/0/kind"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"ahead": 0}, "ahead must be an integer from 1 to 2147483647, got 0"),
            ({"ahead": 1.5}, "ahead must be an integer of at least 1, got 1.5"),
            ({"patience": -1.0}, "patience must be at least 0, got -1.0"),
            ({"patience": True}, "patience must be a number, got True"),
            ({"patience": np.ones(2)}, "patience must be a number, got ndarray"),
            ({"patience": math.nan}, "patience must be a finite number, got nan"),
            ({"time_dim": 2}, "time_dim must be an integer from -1 to 1, got 2"),
            ({"seed": -1}, "seed must be an integer from 0 to 9223372036854775807, got -1"),
            ({"seed": 2**64}, "seed must be an integer of at most 64 bits"),
            ({"durable_every": 0}, "durable_every must be an integer from 1 to 2147483647, got 0"),
        ],
    )
    def test_bad_options_are_refused_before_there_is_a_model(
        self, client: Client, server: InProcessService, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises((TypeError, ValueError), match=message):
            create(client, **options)
        assert not server.requests

    def test_options_may_be_numbers_of_numpy(self, client: Client, server: InProcessService) -> None:
        counts = {"seed": np.uint64(3), "durable_every": np.int16(4), "ahead": np.int64(2), "time_dim": np.int8(1)}
        model = create(client, patience=np.float32(9), **counts)
        rate: Any = np.float16(0.5)
        seconds: Any = np.float32(10)
        assert (server.models["m"]["seed"], server.models["m"]["durable_every"]) == (3, 4)
        assert model.step(X, Y, loss=LOSS, lr=rate).result(seconds).sequence == 1

    def test_patience_may_have_no_end(self, client: Client) -> None:
        assert create(client, patience=math.inf).step(X, Y, loss=LOSS).result(10).sequence == 1

    @pytest.mark.parametrize("timeout", [math.inf, 1e10, np.float64(1e300)])
    def test_a_result_may_be_waited_for_without_end(self, model: Model, timeout: float) -> None:
        assert model.step(X, Y, loss=LOSS).result(timeout).sequence == 1

    @bad_weights
    def test_weights_to_begin_with_have_values_that_fit(
        self, client: Client, server: InProcessService, name: str, given: Any, message: str
    ) -> None:
        for weights in ({name: given}, {"in.bias": np.zeros(2), name: given}):
            with pytest.raises((TypeError, ValueError), match=message):
                create(client, weights=weights)
        assert not server.requests

    @pytest.mark.parametrize("given", [[1.0, math.nan], np.array([True]), "text", np.ones(2, complex)])
    def test_flat_weights_to_begin_with_have_values_that_fit(
        self, client: Client, server: InProcessService, given: Any
    ) -> None:
        with pytest.raises((TypeError, ValueError), match=r"^weights must be a number"):
            create(client, weights=given)
        assert not server.requests

    def test_models_are_found_listed_and_deleted(self, client: Client, model: Model) -> None:
        model.step(X, Y, loss=LOSS).result()
        again = client.model("m")
        assert (again.id, again.sequence, again.durable) == ("m", 1, 0)
        (info,) = client.models()
        assert (info.id, info.sequence, info.parameters) == (
            "m",
            1,
            (("in.weight", (2, 3)), ("in.bias", (2,)), ("out.weight", (2, 2))),
        )
        client.delete_model("m")
        assert client.models() == []
        with pytest.raises(NotFoundError):
            client.model("m")

    @pytest.mark.parametrize("id", ["", "a/b?c", "..", "a b", "ä", "a" * 65])
    def test_an_id_is_no_path(self, client: Client, server: InProcessService, id: str) -> None:
        for use in (client.model, client.delete_model, lambda id: create(client, id=id)):
            with pytest.raises(ValueError, match=r"^id must be 1 to 64 letters, digits, - and _, got '"):
                use(id)
        assert not server.requests

    @pytest.mark.parametrize("body", [b"[]", b"{}", b'{"models": 3}', b"?", b'{"models": [{"id": "m"}]}'])
    def test_a_list_that_is_none_is_refused(self, server: InProcessService, body: bytes) -> None:
        with (
            answered(server, lambda request: httpx.Response(200, content=body)) as client,
            pytest.raises(InvalidResponseError),
        ):
            client.models()


class TestStep:
    def test_is_one_round_trip(self, model: Model, server: InProcessService) -> None:
        before = len(server.requests)
        result = model.step(X, Y, loss=LOSS).result()
        assert server.requests[before:] == [("POST", "/v1/models/m/step")]
        assert (result.sequence, result.durable, result.device) == (1, 0, "cpu")
        assert result.metrics.keys() == {"loss:mean", "samples:sum", "accuracy:mean"}
        assert result.loss == result.metrics["loss:mean"] > 0
        assert result.grad_norms.keys() == {*NAMES, "total"}
        assert result.gradients is None
        assert result.durable_error is None
        assert result.timing.keys() >= {"queue", "kernel", "round_trip"}
        assert result.request_id

    def test_sends_what_it_is_told(self, model: Model, server: InProcessService) -> None:
        loss = {"kind": "van_rossum", "alpha": 0.9}
        options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2, "clip_norm": 3.0, "clip_value": 4.0}
        model.step(X, X[..., :2], loss=loss, allow_non_finite=True, **options).result()
        params = sent(server).params
        assert {name: params[name] for name in options} == options
        assert (params["loss"], params["non_finite"], params["sequence"]) == (loss, "apply", 1)

    def test_zeros_and_ones_travel_as_bits(self, model: Model, server: InProcessService) -> None:
        for ones in (X > 3, (X > 3).astype(np.float32), torch.from_numpy(X > 3)):
            model.step(ones, Y, loss=LOSS).result()
            tensors = sent(server).tensors
            assert (tensors["input"].encoding, tensors["input"].nbytes) == ("bits", 2)
            assert (tensors["targets"].dtype, tensors["targets"].encoding) == ("int64", "raw")

    def test_gradients_come_back_by_parameter(self, model: Model) -> None:
        result = model.step(X, Y, loss=LOSS, gradients=True).result()
        assert result.gradients is not None
        assert {name: array.shape for name, array in result.gradients.items()} == dict(model.info().parameters)
        flat = np.concatenate([array.ravel() for array in result.gradients.values()])
        assert np.linalg.norm(flat) == pytest.approx(result.grad_norms["total"])

    def test_torch_in_torch_out(self, model: Model) -> None:
        result = model.step(torch.from_numpy(X), torch.from_numpy(Y), loss=LOSS, gradients=True).result()
        assert result.gradients is not None
        assert all(isinstance(array, torch.Tensor) for array in result.gradients.values())

    def test_can_be_awaited(self, model: Model) -> None:
        async def train() -> list[int]:
            return [(await step).sequence for step in [model.step(X, Y, loss=LOSS) for _ in range(3)]]

        assert asyncio.run(train()) == [1, 2, 3]

    def test_in_parts_is_the_same(self, client: Client, server: InProcessService) -> None:
        parts, whole = create(client), create(client, id="other")
        first = parts.forward_backward(X, Y, loss=LOSS, gradients=True)
        second = parts.forward_backward(X, Y, loss=LOSS, gradients=True).result()
        once, twice = first.result().gradients, second.gradients
        assert once is not None
        assert twice is not None
        np.testing.assert_array_equal(twice["in.bias"], 2 * once["in.bias"])
        assert server.state().gradients is not None
        parts.optim_step(lr=0.1).result()
        assert server.state().gradients is None
        whole.step(X, Y, loss=LOSS, lr=0.2).result()
        np.testing.assert_allclose(server.state("other").weights, server.state().weights, rtol=1e-6)

    @pytest.mark.parametrize("kind", ["flat", "numpy", "torch"])
    @pytest.mark.parametrize("value", [0.0, 3.0])
    def test_gradients_of_ones_own_are_used(
        self, model: Model, server: InProcessService, kind: str, value: float
    ) -> None:
        before = server.state().weights
        given: Any = np.full(COUNT, value, np.float32)
        if kind != "flat":
            given = {name: np.full(shape, value, np.float32) for name, shape in model.info().parameters}
        if kind == "torch":
            given = {name: torch.from_numpy(array).requires_grad_() for name, array in reversed(given.items())}
            given["in.bias"] = given["in.bias"].bfloat16()
        result = model.optim_step(gradients=given).result()
        np.testing.assert_allclose(server.state().weights, before - 0.5 * value, rtol=1e-6)
        assert result.metrics == {}
        assert math.isnan(result.loss)

    def test_gradients_that_do_not_fit_take_no_number(self, model: Model) -> None:
        fit = {name: np.zeros(shape, np.float32) for name, shape in model.info().parameters}
        with pytest.raises(
            ValueError, match=r"gradients must be arrays for in.weight, in.bias, out.weight, got in.weight"
        ):
            model.optim_step(gradients={"in.weight": fit["in.weight"]})
        with pytest.raises(ValueError, match=r"gradients for in.bias must be of shape \[2\], got \[1\]"):
            model.optim_step(gradients=fit | {"in.bias": np.zeros(1)})
        assert model.sequence == 0

    def test_what_cannot_travel_takes_no_number(self, model: Model) -> None:
        with pytest.raises(TypeError, match="complex"):
            model.step(X.astype(complex), Y, loss=LOSS)
        with pytest.raises(TypeError):
            model.step(X, Y, loss=LOSS, lr=object())  # type: ignore[arg-type]
        assert model.step(X, Y, loss=LOSS).result().sequence == 1

    def test_a_list_is_an_array(self, model: Model, server: InProcessService) -> None:
        model.step(X.tolist(), [0, 1], loss=LOSS).result()
        assert sent(server).tensors["targets"].dtype == "int64"


class TestLossOfOnesOwn:
    def test_is_differentiated_here(self, model: Model, server: InProcessService) -> None:
        outputs = model.forward(X).result().outputs
        assert outputs is not None
        before = len(server.requests)
        result = model.step(X, loss=lambda outputs: (outputs**2).sum()).result()
        assert [path for _, path in server.requests[before:]] == ["/v1/models/m/forward", "/v1/models/m/step"]
        assert result.loss == pytest.approx((outputs**2).sum())
        assert result.metrics["samples:sum"] == 2.0
        assert sent(server).tensors.keys() == {"grad_output"}
        assert sent(server).params["context"]

    def test_gets_the_targets_as_they_were(self, model: Model) -> None:
        for targets in (np.zeros((2, 2, 2), np.float32), torch.ones(2, 2, 2), torch.ones(2, 2, 2, dtype=torch.int64)):
            seen: list[Any] = []

            def loss(outputs: Any, given: Any, seen: list[Any] = seen) -> Any:
                seen.append(given)
                return ((outputs - given) ** 2).mean()

            kept = np.array(targets.tolist(), str(targets.dtype).removeprefix("torch."))
            future = model.step(X, targets, loss=loss)
            targets[:] = 9
            future.result()
            assert isinstance(seen[0], torch.Tensor)
            np.testing.assert_array_equal(seen[0].numpy(), kept)
            assert str(seen[0].dtype).removeprefix("torch.") == str(kept.dtype)

    def test_a_gradient_of_zeros_and_ones_is_no_spike_train(self, model: Model, server: InProcessService) -> None:
        model.step(X, loss=lambda outputs: 0 * outputs.sum()).result()
        assert sent(server).tensors["grad_output"].dtype == "float32"

    def test_comes_back_as_what_went_in(self, model: Model) -> None:
        result = model.forward_backward(X, loss=lambda outputs: outputs.sum(), gradients=True).result()
        assert isinstance((result.gradients or {})["in.bias"], np.ndarray)

    def test_inputs_are_sent_where_the_context_is_gone(self, model: Model, server: InProcessService) -> None:
        def loss(outputs: Any) -> Any:
            server.crash()
            return outputs.sum()

        model.step(X, loss=loss).result()
        assert sent(server).tensors.keys() == {"input", "grad_output"}
        assert sent(server).params.get("context") is None

    @pytest.mark.parametrize(
        ("loss", "error", "message"),
        [
            (lambda outputs: 1 / 0, ZeroDivisionError, "division"),
            (lambda outputs: 3.0, TypeError, "loss must be a function that returns a scalar tensor, got 3.0"),
            (lambda outputs: outputs, TypeError, r"^loss must be .* scalar tensor, got a tensor of shape \[2, 2, 2\]"),
            (lambda outputs: torch.ones(()), TypeError, "^loss must be .* depends on the outputs"),
            (lambda outputs: outputs.detach().sum(), TypeError, "^loss must be .* was detached from them"),
            (lambda outputs: torch.ones((), requires_grad=True), TypeError, "^loss must be .* depends on the outputs"),
        ],
    )
    def test_what_it_raises_is_raised_and_harms_nothing(
        self, model: Model, server: InProcessService, loss: Any, error: type[Exception], message: str
    ) -> None:
        futures = [model.step(X, Y, loss=LOSS), model.step(X, loss=loss), model.step(X, Y, loss=LOSS)]
        with pytest.raises(error, match=message):
            futures[1].result(10)
        assert futures[2].result(10).sequence == 3
        assert [what for _, _, what in server.done].count("skip") == 1

    def test_may_end_the_program(self, model: Model) -> None:
        def loss(outputs: Any) -> Any:
            raise SystemExit(3)

        futures = [model.step(X, loss=loss), model.step(X, Y, loss=LOSS)]
        with pytest.raises(SystemExit):
            futures[0].result(10)
        assert futures[1].result(10).sequence == 2


class TestAhead:
    def test_a_call_waits_while_too_many_are_unanswered(self, client: Client, server: InProcessService) -> None:
        model = create(client, ahead=2)
        gate = threading.Event()
        server.on_work = lambda id, sequence: gate.wait(10) and None
        futures = [model.step(X, Y, loss=LOSS) for _ in range(2)]
        third: list[Any] = []
        thread = threading.Thread(target=lambda: third.append(model.step(X, Y, loss=LOSS)))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        assert model.sequence == 2
        gate.set()
        thread.join(10)
        assert [future.result(10).sequence for future in futures + third] == [1, 2, 3]

    def test_one_at_a_time_never_hangs(self, client: Client) -> None:
        model = create(client, ahead=1)
        for number in range(100):
            assert model.step(X, Y, loss=LOSS).result(10).sequence == number + 1

    def test_arrays_may_be_written_to_at_once(self, client: Client, model: Model, server: InProcessService) -> None:
        gate = threading.Event()
        server.on_work = lambda id, sequence: gate.wait(10) and None
        x = X.copy()
        futures = [model.step(x, Y, loss=LOSS), model.step(x, loss=lambda outputs: outputs.sum())]
        x[:] = np.nan
        gate.set()
        assert futures[0].result(10).loss == create(client, id="other").step(X, Y, loss=LOSS).result(10).loss
        assert math.isfinite(futures[1].result(10).loss)

    def test_a_call_that_is_refused_harms_nothing(self, model: Model, server: InProcessService) -> None:
        futures = [model.step(X, Y, loss=LOSS if number != 2 else "none") for number in range(5)]
        with pytest.raises(UnprocessableError) as caught:
            futures[2].result(10)
        assert caught.value.errors[0].pointer == "/params/loss/kind"
        assert [futures[n].result(10).sequence for n in (0, 1, 3, 4)] == [1, 2, 4, 5]

    def test_a_call_is_cancelled_before_it_is_sent(self, model: Model, server: InProcessService) -> None:
        gate = threading.Event()
        server.on_work = lambda id, sequence: gate.wait(10) and None
        futures = [model.step(X, Y, loss=LOSS) for _ in range(7)]
        assert futures[6].cancel()
        assert not futures[0].cancel()
        gate.set()
        assert futures[5].result(10).sequence == 6
        assert model.step(X, Y, loss=LOSS).result(10).sequence == 8
        assert futures[6].done()
        assert ("m", 7, "skip") in server.done


class TestForward:
    def test_comes_after_the_calls_before_it(self, model: Model, server: InProcessService) -> None:
        steps = [model.step(X, Y, loss=LOSS) for _ in range(3)]
        result = model.forward(X).result(10)
        assert result.sequence == 3
        assert all(step.done() for step in steps)
        assert isinstance(result.outputs, np.ndarray)
        assert result.outputs.shape == (2, 2, 2)
        assert (result.metrics, result.context) == ({}, None)
        assert sent(server).params["mode"] == "eval"

    def test_has_the_metrics_of_a_loss(self, model: Model, server: InProcessService) -> None:
        result = model.forward(torch.from_numpy(X), Y, loss=LOSS, train=True, outputs=False).result(10)
        assert result.outputs is None
        assert result.metrics["samples:sum"] == 2.0
        assert (sent(server).params["mode"], sent(server).params["return"]) == ("train", [])

    def test_torch_in_torch_out(self, model: Model) -> None:
        assert isinstance(model.forward(torch.from_numpy(X)).result(10).outputs, torch.Tensor)

    def test_arrays_may_be_written_to_at_once(self, model: Model, server: InProcessService) -> None:
        gate = threading.Event()
        server.on_work = lambda id, sequence: gate.wait(10) and None
        model.step(X, Y, loss=LOSS)
        x = X.copy()
        future = model.forward(x)
        x[:] = np.nan
        gate.set()
        outputs = future.result(10).outputs
        assert outputs is not None
        assert np.isfinite(outputs).all()

    def test_loss_and_targets_go_together(self, model: Model) -> None:
        alone: list[dict[str, Any]] = [{"loss": LOSS}, {"targets": Y}]
        for arguments in alone:
            with pytest.raises(TypeError, match="loss and targets must be both given, or neither"):
                model.forward(X, **arguments)

    def test_can_be_awaited_and_fail(self, model: Model) -> None:
        async def ask() -> Any:
            return await model.forward(X, Y, loss=LOSS)

        assert asyncio.run(ask()).sequence == 0
        model.close()
        with pytest.raises(ModelClosedError, match=r"^the model is closed$"):
            model.forward(X).result(10)


class TestState:
    def test_weights_come_as_numpy_or_torch(self, model: Model) -> None:
        model.step(X, Y, loss=LOSS)
        arrays, tensors = model.state_dict(), model.state_dict("torch")
        assert list(arrays) == list(tensors)
        assert set(arrays) == set(NAMES)
        for name, array in arrays.items():
            assert isinstance(array, np.ndarray)
            assert isinstance(tensors[name], torch.Tensor)
            np.testing.assert_array_equal(tensors[name].numpy(), array)
            array[:] = 0  # it is the caller's
        with pytest.raises(ValueError, match=r"^kind must be one of numpy, torch, got 'jax'$"):
            model.state_dict("jax")  # type: ignore[arg-type]

    def test_weights_are_replaced(self, model: Model, server: InProcessService) -> None:
        model.step(X, Y, loss=LOSS)
        changed = {"in.bias": torch.full((2,), 7.0, requires_grad=True), "out.weight": np.eye(2)}
        assert model.load_state_dict(model.state_dict() | changed) == ([], [])
        weights = model.state_dict()
        assert weights["in.bias"].tolist() == [7.0, 7.0]
        assert weights["out.weight"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
        assert model.sequence == 1
        assert model.step(X, Y, loss=LOSS).result(10).sequence == 2

    @pytest.mark.parametrize("given", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), 0.5])
    def test_a_weight_without_dimensions_keeps_its_shape(self, given: Any) -> None:
        file = safetensors.numpy.save({"weights.1.alpha": np.array(0.9, np.float32)}, metadata={"exodus": "{}"})
        changed = State(file, 0).with_weights({"1.alpha": given})
        alpha = changed.weights("numpy")["1.alpha"]
        assert (alpha.shape, alpha.dtype, alpha.item()) == ((), np.float32, 0.5)

    def test_a_step_of_another_thread_comes_before_or_after_weights_are_replaced(
        self, server: InProcessService
    ) -> None:
        found: list[Any] = []
        threads: list[threading.Thread] = []

        def change(request: httpx.Request) -> httpx.Response | None:
            if request.method == "PUT" and not threads:
                for call in (lambda: model.step(X, Y, loss=LOSS).result(10).sequence, replace):
                    threads.append(threading.Thread(target=lambda call=call: found.append(call())))
                    threads[-1].start()
                    threads[-1].join(0.1)
            return None

        def replace() -> None:
            model.load_state_dict({"in.bias": np.zeros(2)}, strict=False)

        with answered(server, change) as client:
            model = create(client)
            replace()
            for thread in threads:
                thread.join(10)
            assert sorted(found, key=str) == [1, None]
            assert server.state(model.id).sequence == 1
            assert model.step(X, Y, loss=LOSS).result(10).sequence == 2

    def test_a_model_that_is_closed_while_weights_are_replaced_stays_closed(self, server: InProcessService) -> None:
        made: list[Model] = []

        def change(request: httpx.Request) -> httpx.Response | None:
            if request.method == "PUT":
                made[0].close()
            return None

        with answered(server, change) as client:
            model = create(client)
            made.append(model)
            with pytest.raises(ModelClosedError):
                model.load_state_dict({"in.bias": np.zeros(2)}, strict=False)
            with pytest.raises(ModelClosedError):
                model.step(X, Y, loss=LOSS)

    def test_weights_that_do_not_fit_are_refused(self, model: Model, server: InProcessService) -> None:
        before = server.state()
        given = {"in.bias": np.zeros(2), "in.weight": np.zeros((2, 3)), "nose": np.zeros(2)}
        with pytest.raises(ValueError, match=r"got missing out\.weight and unexpected nose; strict=False"):
            model.load_state_dict(given)
        with pytest.raises(ValueError, match=r"^weights: in.bias must have shape \[2\], got \[3\]$"):
            model.load_state_dict(model.state_dict() | {"in.bias": np.zeros(3)})
        assert server.state() == before

    @bad_weights
    def test_weights_have_values_that_fit(
        self, model: Model, server: InProcessService, name: str, given: Any, message: str
    ) -> None:
        weights = model.state_dict() | {name: given}
        asked = len(server.requests)
        with pytest.raises((TypeError, ValueError), match=message):
            model.load_state_dict(weights)
        if name == "in.bias":
            with pytest.raises((TypeError, ValueError), match=message):
                model.load_state_dict({name: given}, strict=False)
        assert len(server.requests) == asked

    def test_weights_of_buffers_have_values_that_fit(self) -> None:
        file = safetensors.numpy.save({"weights.1.alpha": np.array(0.9, np.float32)}, metadata={"exodus": "{}"})
        with pytest.raises(ValueError, match=r"^1\.alpha must be in \[0, 1\], got 2"):
            State(file, 0).with_weights({"1.alpha": np.array(2.0)})

    def test_weights_may_be_of_a_half_type(self, model: Model) -> None:
        given = {"in.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16), "out.weight": torch.eye(2).half()}
        model.load_state_dict(model.state_dict() | given)
        assert model.state_dict()["in.bias"].tolist() == [1.5, -2.0]
        assert model.state_dict()["out.weight"].tolist() == [[1.0, 0.0], [0.0, 1.0]]

    def test_some_of_the_weights_are_replaced_where_that_is_wanted(self, model: Model) -> None:
        before = model.state_dict()
        found = model.load_state_dict({"in.bias": np.zeros(2), "nose": np.zeros(2)}, strict=False)
        assert found.missing_keys == ["in.weight", "out.weight"]
        assert found.unexpected_keys == ["nose"]
        after = model.state_dict()
        assert after["in.bias"].tolist() == [0.0, 0.0]
        for name in found.missing_keys:
            np.testing.assert_array_equal(after[name], before[name])

    def test_a_model_that_its_weights_do_not_fit_is_not_made(self, client: Client, server: InProcessService) -> None:
        weights = {"in.bias": np.zeros(2)}
        with pytest.raises(ValueError, match=r"got missing in\.weight, out\.weight;"):
            create(client, weights=weights)
        assert not server.models
        create(client)
        with pytest.raises(ValueError, match="got missing"):
            create(client, weights=weights)
        assert list(server.models) == ["m"]  # which was there before

    def test_a_file_brings_back_everything(self, model: Model, server: InProcessService, tmp_path: Path) -> None:
        model.forward_backward(X, Y, loss=LOSS)
        model.save(tmp_path / "state")
        wanted = server.state()
        after = model.step(X, Y, loss=LOSS).result(10)
        model.load(str(tmp_path / "state"))
        assert server.state() == wanted
        assert wanted.gradients is not None
        assert (model.sequence, model.durable) == (1, 1)
        again = model.step(X, Y, loss=LOSS).result(10)
        assert (again.sequence, again.metrics, again.grad_norms) == (2, after.metrics, after.grad_norms)
        assert [path.name for path in tmp_path.iterdir()] == ["state"]

    def test_a_forward_pass_before_an_older_state_is_loaded_is_answered(
        self, client: Client, model: Model, tmp_path: Path
    ) -> None:
        model.save(tmp_path / "digits.safetensors")
        model.step(X, Y, loss=LOSS).result(10)
        gate, pool = threading.Event(), client.connection._pool
        busy = [pool.submit(lambda: gate.wait(10)) for _ in range(8)]  # as other evaluations are
        asked = model.forward(X)
        threading.Timer(0.1, gate.set).start()
        model.load(tmp_path / "digits.safetensors")
        assert asked.result(10).sequence == 1
        assert all(future.result(10) for future in busy)

    def test_whether_a_state_was_loaded_is_asked_until_it_is_known(
        self, server: InProcessService, tmp_path: Path
    ) -> None:
        lost = [False]

        def change(request: httpx.Request) -> httpx.Response | None:
            if lost[0] and request.method == "PUT":
                server(request)
                raise httpx.ReadError("the answer is lost")
            return None

        with answered(server, change) as client:
            model = client.create_model(LAYERS, optimizer="sgd", durable_every=1000, patience=0.01)
            model.save(tmp_path / "digits.safetensors")
            model.step(X, Y, loss=LOSS).result(10)
            lost[0] = True
            with pytest.raises(APIConnectionError, match="the answer is lost"):
                model.load(tmp_path / "digits.safetensors")
            with pytest.raises(APIConnectionError, match="the answer is lost"):  # not made beside the step before
                model.step(X, Y, loss=LOSS)
            model.resync()
            assert model.step(X, Y, loss=LOSS).result(10).sequence == 1

    def test_a_forward_pass_that_resync_overtakes_fails(
        self, client: Client, model: Model, server: InProcessService
    ) -> None:
        model.step(X, Y, loss=LOSS).result(10)
        gate, pool = threading.Event(), client.connection._pool
        busy = [pool.submit(lambda: gate.wait(10)) for _ in range(8)]
        asked = model.forward(X)
        server.crash()
        model.resync()
        gate.set()
        with pytest.raises(ModelClosedError):
            asked.result(10)
        assert all(future.result(10) for future in busy)

    def test_a_file_of_another_network_is_refused(self, client: Client, model: Model, tmp_path: Path) -> None:
        other = client.create_model([{"kind": "linear", "in_features": 3, "out_features": 2}])
        other.save(tmp_path / "state")
        with pytest.raises(ConflictError) as caught:
            model.load(tmp_path / "state")
        assert caught.value.code == "state_mismatch"
        assert model.step(X, Y, loss=LOSS).result(10).sequence == 1  # nothing was harmed

    def test_it_is_made_durable_on_request(self, model: Model, server: InProcessService) -> None:
        model.step(X, Y, loss=LOSS)
        assert model.make_durable().result(10) == 1
        assert model.durable == 1
        server.full = True
        model.step(X, Y, loss=LOSS)
        with pytest.raises(exodus_client.ServerStorageFullError) as caught:
            model.make_durable().result(10)
        assert caught.value.code == "storage_full"
        assert model.durable == 1

    def test_without_a_disk_nothing_is_durable_or_kept(self, client: Client, server: InProcessService) -> None:
        server.memory_only = True
        model = create(client)
        results = [model.step(X, Y, loss=LOSS) for _ in range(5)]
        assert [result.result(10).durable for result in results] == [None] * 5
        assert model.forward(X).result(10).sequence == 5
        assert (model.durable, model._calls.nbytes) == (None, 0)
        with pytest.raises(
            exodus_client.ExodusError, match=r"^make_durable: .* in memory only: .*EXODUS_STATE_DIR=FOLDER"
        ):
            model.make_durable()

    def test_without_a_disk_the_log_says_so_once(
        self, client: Client, server: InProcessService, caplog: pytest.LogCaptureFixture
    ) -> None:
        create(client, id="saved")
        assert not caplog.records
        server.memory_only = True
        server.stop()
        create(client)
        create(client, id="other")
        (record,) = caplog.records
        assert "Client('http://node:8000') keeps models in memory only" in record.getMessage()
        assert "EXODUS_STATE_DIR=FOLDER" in record.getMessage()

    @pytest.mark.parametrize(
        "content",
        [b"", b"\x08\0\0\0\0\0\0\0garbage!", b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"],
    )
    def test_a_state_that_is_none_is_refused(self, server: InProcessService, content: bytes) -> None:
        def change(request: httpx.Request) -> httpx.Response | None:
            return httpx.Response(200, content=content) if request.url.path.endswith("/state") else None

        with answered(server, change) as client, pytest.raises(InvalidResponseError):
            create(client).state_dict()

    def test_safetensors_is_asked_for(self, model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "safetensors", None)
        monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
        with pytest.raises(ModuleNotFoundError, match="safetensors"):
            model.state_dict()
        model.save(tmp_path / "state")  # needs no library


class TestCallbacks:
    def test_get_each_result_once_in_order(self, model: Model, server: InProcessService) -> None:
        seen: list[int] = []
        model.callbacks.append(lambda result: seen.append(result.sequence))
        futures = [model.step(X, Y, loss=LOSS if number % 4 else "none") for number in range(12)]
        for number, future in enumerate(futures):
            if number % 4:
                future.result(10)
        model.forward(X).result(10)
        model.close()
        assert seen == [2, 3, 4, 6, 7, 8, 10, 11, 12]

    @pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
    def test_what_they_raise_is_logged(
        self, model: Model, caplog: pytest.LogCaptureFixture, error: type[BaseException]
    ) -> None:
        def fail(result: Any) -> None:
            raise error

        model.callbacks.append(fail)
        model.step(X, Y, loss=LOSS).result(10)
        assert model.step(X, Y, loss=LOSS).result(10).sequence == 2
        model.close()
        assert caplog.text.count("a callback failed at call") == 2

    def test_may_replace_weights(self, model: Model, server: InProcessService) -> None:
        def replace(result: Any) -> None:
            if result.sequence % 4 == 0:
                model.load_state_dict({"in.bias": np.zeros(2)}, strict=False)

        model.callbacks.append(replace)
        futures = [model.step(X, Y, loss=LOSS) for _ in range(20)]
        assert [future.result(10).sequence for future in futures] == list(range(1, 21))
        model.forward(X).result(10)
        assert sorted(sequence for _, sequence, _ in server.done) == list(range(1, 21))

    def test_may_make_more_calls_than_go_ahead(self, client: Client) -> None:
        model = create(client, ahead=2)
        made: list[Any] = []

        def more(result: Any) -> None:
            if result.sequence == 1:
                made.extend(model.step(X, Y, loss=LOSS) for _ in range(20))

        model.callbacks.append(more)
        first = model.step(X, Y, loss=LOSS)
        assert first.result(10).sequence == 1
        until(lambda: len(made) == 20)
        assert made[-1].result(10).sequence == 21

    @pytest.mark.parametrize("loss", [LOSS, lambda outputs, targets: outputs.sum()], ids=["by name", "of one's own"])
    @pytest.mark.parametrize("max_in_flight", [1, 8])
    def test_may_ask_for_the_state_after_all_calls(
        self, server: InProcessService, max_in_flight: int, loss: Any
    ) -> None:
        with patient_client(Road(server), limits=Limits(max_in_flight=max_in_flight)) as client:
            model = create(client)
            asked: list[int] = []
            made = threading.Event()

            def ask(result: Any) -> None:
                if result.sequence == 1:
                    assert made.wait(10)
                    model.state_dict()
                    asked.append(server.state(model.id).sequence)

            model.callbacks.append(ask)
            futures = [model.step(X, Y, loss=loss) for _ in range(6)]
            made.set()
            assert [future.result(10).sequence for future in futures] == [1, 2, 3, 4, 5, 6]
            until(lambda: asked == [6])


class TestTwoHandles:
    def test_the_second_to_train_is_told(self, client: Client, model: Model, server: InProcessService) -> None:
        other = client.model("m")
        model.step(X, Y, loss=LOSS).result(10)
        with pytest.raises(ConflictError, match="another client trains this model") as caught:
            other.step(X, Y, loss=LOSS).result(10)
        assert caught.value.code == "sequence_conflict"
        with pytest.raises(ConflictError, match="another client trains this model"):
            other.step(X, Y, loss=LOSS)
        with pytest.raises(ConflictError):
            other.forward(X).result(10)
        assert model.step(X, Y, loss=LOSS).result(10).sequence == 2
        other.resync()
        assert other.step(X, Y, loss=LOSS).result(10).sequence == 3

    def test_a_deleted_model_ends_the_training(self, client: Client, model: Model) -> None:
        client.delete_model("m")
        with pytest.raises(NotFoundError):
            model.step(X, Y, loss=LOSS).result(10)
        with pytest.raises(NotFoundError) as caught:
            model.step(X, Y, loss=LOSS)
        assert caught.value.status_code == 404

    def test_two_models_are_trained_at_once(self, client: Client) -> None:
        one, two = create(client), create(client, id="two")
        futures = [model.step(X, Y, loss=LOSS) for _ in range(8) for model in (one, two)]
        assert [future.result(10).sequence for future in futures] == [n for n in range(1, 9) for _ in range(2)]


class TestClosing:
    def test_fails_what_was_not_sent_and_waits_for_the_rest(self, client: Client, server: InProcessService) -> None:
        model = create(client)
        gate = threading.Event()
        begun = threading.Event()

        def hold(id: str, sequence: int) -> None:
            begun.set()
            gate.wait(10)

        server.on_work = hold
        futures = [model.step(X, Y, loss=LOSS) for _ in range(8)]
        begun.wait(10)
        closing = threading.Thread(target=model.close)
        closing.start()
        with pytest.raises(ModelClosedError):
            futures[7].result(10)
        gate.set()
        closing.join(10)
        assert not closing.is_alive()
        assert futures[0].result(0).sequence == 1
        assert all(future.done() for future in futures)
        with pytest.raises(ModelClosedError, match=r"^the model is closed$"):
            model.step(X, Y, loss=LOSS)
        model.close()

    def test_a_client_closes_its_models(self, server: InProcessService) -> None:
        with patient_client(Road(server)) as client:
            model = create(client)
            model.step(X, Y, loss=LOSS).result(10)
        with pytest.raises(ModelClosedError):
            model.step(X, Y, loss=LOSS)

    def test_a_model_that_nobody_has_is_forgotten(self, client: Client) -> None:
        model = create(client)
        model.step(X, Y, loss=LOSS).result(10)
        gone = weakref.ref(model)
        model.close()
        del model
        gc.collect()
        assert gone() is None

    def test_it_says_what_it_is(self, model: Model) -> None:
        model.step(X, Y, loss=LOSS).result(10)
        assert repr(model) == "Model('m', sequence=1, durable=0)"


class TestAnswers:
    """Answers that cannot be read."""

    @pytest.mark.parametrize(
        "answer",
        [
            httpx.Response(200, content=b"<html>", headers={"Content-Type": "text/html"}),
            httpx.Response(200, json={"v": 1, "params": {}, "tensors": []}),
            httpx.Response(200, json={"v": 1, "params": {"sequence": "1"}, "tensors": []}),
        ],
    )
    def test_a_step_that_cannot_be_read_raises_and_counts(
        self, server: InProcessService, answer: httpx.Response
    ) -> None:
        replace: list[httpx.Response] = []

        def change(request: httpx.Request) -> httpx.Response | None:
            if replace and request.url.path.endswith("/step"):
                server(request)
                return replace.pop()
            return None

        with answered(server, change) as client:
            model = create(client)
            replace.append(answer)
            with pytest.raises(InvalidResponseError):
                model.step(X, Y, loss=LOSS).result(10)
            assert model.step(X, Y, loss=LOSS).result(10).sequence == 2
            assert server.state().sequence == 2

    def test_gradients_of_another_size_raise(self, server: InProcessService) -> None:
        def change(request: httpx.Request) -> httpx.Response | None:
            if not request.url.path.endswith("/step"):
                return None
            tensors = [{"name": "gradients", "dtype": "float32", "shape": [1], "data": [0.5]}]
            params = {"sequence": 1, "durable": 0, "metrics": {}, "grad_norms": {}, "device": "fake"}
            server(request)
            return httpx.Response(200, json={"v": 1, "params": params, "tensors": tensors})

        with (
            answered(server, change) as client,
            pytest.raises(
                InvalidResponseError,
                match=r"gradients in the answer must be float32 of shape \[12\], got float32 of shape \[1\]",
            ),
        ):
            create(client).step(X, Y, loss=LOSS, gradients=True).result(10)

    def test_outputs_that_cannot_be_read_raise(self, server: InProcessService) -> None:
        def change(request: httpx.Request) -> httpx.Response | None:
            forward = request.url.path.endswith("/forward")
            return httpx.Response(200, json={"v": 1, "params": {}, "tensors": []}) if forward else None

        with answered(server, change) as client:
            model = create(client)
            with pytest.raises(InvalidResponseError, match="tensors of the answer must be outputs, got none"):
                model.forward(X).result(10)
            with pytest.raises(InvalidResponseError, match="lacks sequence"):
                model.forward(X, outputs=False).result(10)

    def test_an_answer_larger_than_the_limit_fails_that_call_alone(self, server: InProcessService) -> None:
        limits = exodus_client.Limits(max_response_bytes=4000)
        layers = [{"kind": "linear", "in_features": 3, "out_features": 2000}]
        with patient_client(Road(server), limits=limits) as client:
            model = client.create_model(layers)
            with pytest.raises(InvalidResponseError, match="max_response_bytes"):
                model.step(X, Y, loss=LOSS, gradients=True).result(10)
            assert model.step(X, Y, loss=LOSS).result(10).sequence == 2


class TestLongCalls:
    def test_are_asked_for_until_they_are_done(self, client: Client, server: InProcessService) -> None:
        server.pending = 3
        server.settings["sequence_wait_s"] = 10.0  # the first call may be the last to arrive
        model = create(client)

        def asked() -> list[int]:
            """How often each answer was asked for."""
            paths = (path for _, path in server.requests if path.startswith("/v1/requests/"))
            return [*Counter(paths).values()]

        with server.busy():
            futures = [model.step(X, Y, loss=LOSS) for _ in range(4)]
            server.wait_for_requests(lambda: asked().count(4) == 4)  # the fourth question waits for the answer
        assert [future.result(10).sequence for future in futures] == [1, 2, 3, 4]
        assert asked().count(4) == 4

    def test_their_failures_are_those_of_the_call(self, client: Client, server: InProcessService) -> None:
        server.pending = 1
        model = create(client)
        with pytest.raises(UnprocessableError):
            model.step(X, Y, loss="none").result(10)
        assert model.step(X, Y, loss=LOSS).result(10).sequence == 2

    def test_a_location_elsewhere_is_not_followed(self, server: InProcessService) -> None:
        asked: list[str] = []

        def change(request: httpx.Request) -> httpx.Response | None:
            asked.append(str(request.url))
            if not request.url.path.endswith("/step"):
                return None
            server(request)
            return httpx.Response(202, json={}, headers={"Location": "http://evil/v1/requests/1"})

        with answered(server, change) as client:
            with pytest.raises(InvalidResponseError, match="202 without a Location"):
                create(client).step(X, Y, loss=LOSS).result(10)
            assert not any("evil" in url for url in asked)


def sent(server: InProcessService) -> Any:
    """The last message that the server got."""
    from exodus_client.wire import decode

    body = next(body for body in reversed(server.bodies) if body)
    return decode(body, "application/vnd.msgpack")


def until(holds: Callable[[], bool]) -> None:
    """Wait until something is so."""
    for _ in range(1000):
        if holds():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come to that")
