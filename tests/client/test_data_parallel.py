"""One model on several servers: what the parts of a batch become, and what is left of a step that fails."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from client.in_process_service import InProcessService

from exodus_client import (
    APIConnectionError,
    Client,
    ClientClosedError,
    ConflictError,
    ExodusError,
    InvalidResponseError,
    ModelClosedError,
    NotFoundError,
    Retries,
    ShardedClient,
    ShardedModel,
    UnprocessableError,
)
from exodus_client._data_parallel.shards import combined_gradients, combined_metrics, parts_of
from exodus_client.wire import Message, decode, encode

LAYERS = [{"kind": "linear", "in_features": 3, "out_features": 2}, {"kind": "lif", "alpha": 0.5}]
LOSS = "max_over_time_ce"


class Node:
    """A server that can go away, and remembers the messages that it answered."""

    def __init__(self) -> None:
        self.server = InProcessService()
        self.gone = False
        self.calls: list[tuple[str, Message, Message]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.gone:
            raise httpx.ConnectError("gone")
        answer = self.server(request)
        if self.gone:
            raise httpx.ReadError("gone")
        if request.method == "POST" and answer.status_code == 200 and request.content:
            asked, answered = (decode(m.content, m.headers["Content-Type"]) for m in (request, answer))
            self.calls.append((request.url.path.rpartition("/")[2], asked, answered))
        return answer

    def asked(self, what: str) -> list[Message]:
        return [request for path, request, _ in self.calls if path == what and not request.params.get("skip")]

    def answered(self, what: str) -> list[Message]:
        return [answer for path, request, answer in self.calls if path == what and not request.params.get("skip")]

    @property
    def state(self) -> Any:
        (id,) = self.server.models
        return self.server.state(id)

    def go_at(self, number: int, *, after: bool = False) -> None:
        """Go away at the call of this number, after it was done or before."""

        def on_work(id: str, sequence: int) -> None:
            if sequence == number:
                self.server.on_work = lambda id, sequence: None
                self.gone = True
                if not after:
                    raise httpx.RemoteProtocolError("gone")

        self.server.on_work = on_work

    def refuse(self, number: int) -> None:
        """Fail at the call of this number, once."""

        def on_work(id: str, sequence: int) -> httpx.Response | None:
            if sequence != number:
                return None
            self.server.on_work = lambda id, sequence: None
            return httpx.Response(507, json={"code": "out_of_memory", "detail": "no memory", "retryable": False})

        self.server.on_work = on_work


@pytest.fixture
def nodes() -> list[Node]:
    return [Node() for _ in range(3)]


@pytest.fixture
def connect(nodes: list[Node]) -> Iterator[Callable[[], ShardedClient]]:
    opened: list[Client] = []

    def client() -> ShardedClient:
        retries = Retries(first_delay=0.0, jitter=0.0)
        clients = [
            Client(f"http://{k}", transport=httpx.MockTransport(node), retries=retries) for k, node in enumerate(nodes)
        ]
        opened.extend(clients)
        return ShardedClient(clients)

    yield client
    for each in opened:
        each.close()


@pytest.fixture
def model(connect: Callable[[], ShardedClient]) -> Iterator[ShardedModel]:
    model = connect().create_model(LAYERS, optimizer="sgd", seed=7, id="net", patience=0.05)
    yield model
    model.close()


def batch(samples: int, start: float = 0.0) -> tuple[Any, Any]:
    x = np.arange(start, start + samples * 6, dtype=np.float32).reshape(samples, 2, 3)
    return x, np.arange(samples) % 2


def wait(event: threading.Event) -> None:
    assert event.wait(10)


def random(node: Node) -> bytes:
    """The state of the random numbers of a replica, which is its own."""
    state: bytes = node.state.tensors["random"].tobytes()
    return state


def equal(nodes: list[Node]) -> bool:
    return all(np.array_equal(node.state.weights, nodes[0].state.weights) for node in nodes)


class TestArithmetic:
    @pytest.mark.parametrize(
        ("samples", "shards", "sizes"), [(6, 3, [2, 2, 2]), (8, 3, [3, 3, 2]), (2, 3, [1, 1]), (5, 1, [5])]
    )
    def test_a_batch_is_split_into_contiguous_parts(self, samples: int, shards: int, sizes: list[int]) -> None:
        x, y = batch(samples)
        parts = parts_of(x, y, shards)
        assert [len(part.inputs) for part in parts] == sizes
        assert np.array_equal(np.concatenate([part.inputs for part in parts]), x)
        assert np.array_equal(np.concatenate([np.asarray(part.targets) for part in parts]), y)
        assert [part.weight for part in parts] == [size / samples for size in sizes]
        x[:] = -1
        assert parts[0].inputs[0, 0, 0] == 0

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            (
                np.zeros((0, 2, 3)),
                None,
                r"spikes must be an array with samples along its first axis, got shape \[0, 2, 3\]",
            ),
            (1.0, None, r"first axis, got shape \[\]"),
            ([[[0.0]]], [1, 2], r"targets must be one for each of 1 samples, got shape \[2\]"),
            ([[[0.0]]], 1, r"samples, got shape \[\]"),
        ],
    )
    def test_what_cannot_be_split_is_refused(self, x: Any, y: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parts_of(x, y, 2)

    def test_metrics_combine_as_their_names_say(self) -> None:
        parts = [
            {"loss:mean": 1.0, "samples:sum": 3.0, "rate:max": 0.5, "rate:min": 0.1, "odd": 1.0},
            {"loss:mean": 5.0, "samples:sum": 1.0, "rate:max": 0.25, "rate:min": 0.05, "rare:mean": 2.0},
        ]
        assert combined_metrics(parts, [0.75, 0.25]) == {
            "loss:mean": 2.0,
            "samples:sum": 4.0,
            "rate:max": 0.5,
            "rate:min": 0.05,
            "rare:mean": 2.0,
        }

    def test_gradients_are_summed_up_in_float64_and_rounded_once(self) -> None:
        parts: list[dict[str, Any]] = [
            {"w": np.array([[weight]], np.float32), "b": torch.ones(1)} for weight in (1e8, 1, -1e8)
        ]
        flat = combined_gradients(parts, [0.25, 0.5, 0.25], ["w", "b"], "float32")
        assert flat.dtype == np.float32
        assert flat.tolist() == [0.5, 1.0]


class TestStep:
    def test_every_server_gets_its_part_and_all_get_the_same_gradients(
        self, nodes: list[Node], model: ShardedModel
    ) -> None:
        x, y = batch(5)
        result = model.step(x, y, loss=LOSS, lr=0.5, clip_norm=2.0, gradients=True).result()
        parts = [node.asked("forward_backward")[0] for node in nodes]
        assert [part.tensors["input"].shape[0] for part in parts] == [2, 2, 1]
        assert np.array_equal(np.concatenate([part.tensors["input"].numpy() for part in parts]), x)
        found = [node.answered("forward_backward")[0].tensors["gradients"].numpy().astype(float) for node in nodes]
        wanted = np.float32(0.4 * found[0] + 0.4 * found[1] + 0.2 * found[2])
        for node in nodes:
            (update,) = node.asked("optim_step")
            assert np.array_equal(update.tensors["gradients"].numpy(), wanted)
            assert (update.params["lr"], update.params["clip_norm"]) == (0.5, 2.0)
        assert equal(nodes)
        assert result.gradients is not None
        assert np.array_equal(np.concatenate([part.ravel() for part in result.gradients.values()]), wanted)
        assert list(result.gradients) == ["0.weight", "0.bias"]
        assert result.metrics["samples:sum"] == 5.0
        losses = [node.answered("forward_backward")[0].params["metrics"]["loss:mean"] for node in nodes]
        assert result.loss == pytest.approx(0.4 * losses[0] + 0.4 * losses[1] + 0.2 * losses[2])
        assert result.grad_norms["total"] == pytest.approx(np.linalg.norm(wanted))
        assert (result.sequence, result.durable, result.device) == (2, 0, "cpu")

    def test_with_fewer_samples_than_servers_the_others_make_the_same_step(
        self, nodes: list[Node], model: ShardedModel
    ) -> None:
        model.step(*batch(2), loss=LOSS).result()
        assert [len(node.asked("forward_backward")) for node in nodes] == [1, 1, 0]
        assert [len(node.asked("optim_step")) for node in nodes] == [1, 1, 1]
        assert equal(nodes)

    def test_equal_batches_give_equal_bits_whoever_answers_first(
        self, nodes: list[Node], model: ShardedModel, connect: Any
    ) -> None:
        for number in range(3):
            model.step(*batch(5, number), loss=LOSS).result()
        weights = model.state_dict()
        nodes[:] = [Node() for _ in nodes]
        nodes[0].server.on_work = lambda id, sequence: threading.Event().wait(0.01)
        with_delay = connect().create_model(LAYERS, optimizer="sgd", seed=7)
        for number in range(3):
            with_delay.step(*batch(5, number), loss=LOSS).result()
        for name, array in with_delay.state_dict().items():
            assert np.array_equal(array, weights[name])
        with_delay.close()

    def test_arrays_come_back_as_what_they_were(self, model: ShardedModel) -> None:
        x, y = batch(4)
        result = model.step(torch.from_numpy(x), torch.from_numpy(y), loss=LOSS, gradients=True).result()
        assert result.gradients is not None
        assert isinstance(result.gradients["0.weight"], torch.Tensor)
        assert result.gradients["0.weight"].shape == (2, 3)
        outputs = model.forward(torch.from_numpy(x)).result().outputs
        assert isinstance(outputs, torch.Tensor)
        assert outputs.shape == (4, 2, 2)

    def test_a_loss_of_the_caller_gets_the_targets_of_each_part(self, nodes: list[Node], model: ShardedModel) -> None:
        seen = []

        def loss(outputs: Any, targets: Any) -> Any:
            seen.append((len(outputs), np.asarray(targets).tolist()))
            return outputs.mean()

        model.step(*batch(5), loss=loss).result()
        assert sorted(seen) == [(1, [0]), (2, [0, 1]), (2, [0, 1])]
        assert equal(nodes)
        with pytest.raises(TypeError, match="targets must be given to a loss that is a function"):
            model.step(batch(5)[0], loss=lambda outputs: outputs.sum())

    @pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
    def test_steps_are_done_in_the_order_of_submission_and_reported_so(
        self, model: ShardedModel, error: type[BaseException]
    ) -> None:
        reported: list[int] = []

        def fail(result: Any) -> None:
            raise error

        model.callbacks += [lambda result: reported.append(result.sequence), fail]
        futures = [model.step(*batch(3, number), loss=LOSS) for number in range(4)]
        assert [future.result().sequence for future in futures] == [2, 4, 6, 8]
        assert reported == [2, 4, 6, 8]

    def test_a_callback_may_save_the_state_after_its_step(self, model: ShardedModel, tmp_path: Path) -> None:
        model.callbacks.append(lambda result: model.save(tmp_path / f"{result.sequence}"))
        futures = [model.step(*batch(3, number), loss=LOSS) for number in range(2)]
        assert [future.result(10).sequence for future in futures] == [2, 4]
        assert (tmp_path / "2").read_bytes() != (tmp_path / "4").read_bytes()

    def test_a_callback_may_ask_for_everything(self, model: ShardedModel) -> None:
        found: list[Any] = []

        def ask(result: Any) -> None:
            found.append(model.forward(batch(3)[0]).result(10).sequence)
            found.append(model.make_durable().result(10))
            refused = model.forward(batch(3)[0], loss=LOSS)
            with pytest.raises(TypeError, match="loss and targets must be both given"):
                refused.result(10)
            found.append("refused")

        model.callbacks.append(ask)
        futures = [model.step(*batch(3), loss=LOSS) for _ in range(2)]
        assert [future.result(10).sequence for future in futures] == [2, 4]
        assert found == [2, None, "refused", 4, None, "refused"]

    def test_a_callback_may_make_more_steps_than_go_ahead(self, model: ShardedModel) -> None:
        more: list[Any] = []

        def ask(result: Any) -> None:
            if not more:
                more.extend(model.step(*batch(3), loss=LOSS) for _ in range(5))

        model.callbacks.append(ask)
        first = model.step(*batch(3), loss=LOSS)
        assert first.result(10).sequence == 2
        assert [future.result(10).sequence for future in more] == [4, 6, 8, 10, 12]

    def test_steps_ahead_are_bounded(self, nodes: list[Node], model: ShardedModel) -> None:
        go = threading.Event()
        nodes[0].server.on_work = lambda id, sequence: wait(go)
        futures = [model.step(*batch(3), loss=LOSS) for _ in range(2)]
        third = threading.Thread(target=lambda: futures.append(model.step(*batch(3), loss=LOSS)))
        third.start()
        third.join(0.05)
        assert third.is_alive()
        go.set()
        third.join(10)
        assert len([future.result() for future in futures]) == 3

    def test_in_memory_alone_nothing_is_durable(self, nodes: list[Node], connect: Any) -> None:
        for node in nodes:
            node.server.memory_only = True
        model = connect().create_model(LAYERS, optimizer="sgd")
        assert model.step(*batch(3), loss=LOSS).result().durable is None
        model.close()

    def test_durable_is_what_all_servers_have(self, nodes: list[Node], connect: Any) -> None:
        model = connect().create_model(LAYERS, optimizer="sgd", durable_every=2)
        nodes[2].server.full = True
        model.step(*batch(3), loss=LOSS).result()
        for node in nodes:
            node.server.wait_for_saves()
        result = model.step(*batch(3), loss=LOSS).result()
        assert (result.sequence, result.durable) == (4, 0)
        assert "No space left on device" in (result.durable_error or "")
        with pytest.raises(ExodusError, match="No space left") as caught:
            model.make_durable().result()
        assert caught.value.__notes__ == ["shard 2"]
        nodes[2].server.full = False
        model.make_durable().result()
        assert model.step(*batch(3), loss=LOSS).result().durable == 4
        model.close()


class TestFailure:
    def final_weights(self, nodes: list[Node], model: ShardedModel) -> Any:
        model.step(*batch(5, 1.0), loss=LOSS).result()
        assert equal(nodes)
        assert all(node.state.gradients is None for node in nodes)
        return nodes[0].state.weights

    @pytest.fixture
    def undisturbed(self, nodes: list[Node], connect: Any) -> Any:
        """Weights after `final_weights` alone, on servers of their own."""
        mine = list(nodes)
        nodes[:] = [Node() for _ in nodes]
        model = connect().create_model(LAYERS, optimizer="sgd", seed=7)
        weights = self.final_weights(nodes, model)
        model.close()
        nodes[:] = mine
        return weights

    @pytest.fixture
    def model(self, undisturbed: Any, connect: Any) -> Iterator[ShardedModel]:
        model = connect().create_model(LAYERS, optimizer="sgd", seed=7, id="net", patience=0.05)
        yield model
        model.close()

    def test_a_part_that_is_refused_leaves_nothing_behind_on_any_server(
        self, nodes: list[Node], model: ShardedModel, undisturbed: Any
    ) -> None:
        x, y = batch(5)
        x[4] = np.nan  # the part of the last server
        with pytest.raises(UnprocessableError, match="non_finite") as caught:
            model.step(x, y, loss=LOSS).result()
        assert caught.value.__notes__ == ["shard 2"]
        assert nodes[0].state.gradients is not None
        assert np.array_equal(self.final_weights(nodes, model), undisturbed)
        assert model.step(x, y, loss=LOSS, allow_non_finite=True).result().metrics["samples:sum"] == 5

    def test_a_forward_pass_does_without_them_too(self, nodes: list[Node], model: ShardedModel) -> None:
        x, y = batch(5)
        with pytest.raises(UnprocessableError):
            model.step(x * np.float32(np.nan), y, loss=LOSS).result()
        model.forward(x).result()
        assert all(node.state.gradients is None for node in nodes)

    def test_a_step_that_is_refused_by_all_changes_nothing(
        self, nodes: list[Node], model: ShardedModel, undisturbed: Any
    ) -> None:
        with pytest.raises(UnprocessableError, match=r"/params/lr must be at least 0\.0, got -1\.0"):
            model.step(*batch(5), loss=LOSS, lr=-1.0).result()
        assert np.array_equal(self.final_weights(nodes, model), undisturbed)

    def test_a_step_that_some_have_made_counts_and_the_others_catch_up(
        self, nodes: list[Node], model: ShardedModel, undisturbed: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        nodes[0].refuse(2)
        model.step(*batch(5, 1.0), loss=LOSS).result()
        assert np.array_equal(nodes[1].state.weights, undisturbed)
        assert not equal(nodes)
        assert "shard 0 did not make a step that others made" in caplog.text
        model.forward(batch(5)[0]).result()
        assert equal(nodes)
        self.final_weights(nodes, model)
        assert random(nodes[0]) != random(nodes[1])

    def test_resync_takes_no_state_of_a_replica_that_did_not_make_the_step(
        self, nodes: list[Node], model: ShardedModel, undisturbed: Any
    ) -> None:
        nodes[0].refuse(2)
        model.step(*batch(5, 1.0), loss=LOSS).result()
        model.replicas[0].make_durable().result()
        assert nodes[0].state.sequence == 2  # an empty call has its number
        model.resync()
        assert equal(nodes)
        assert np.array_equal(nodes[0].state.weights, undisturbed)

    def test_an_input_that_cannot_travel_fails_the_step_alone(
        self, nodes: list[Node], model: ShardedModel, undisturbed: Any
    ) -> None:
        with pytest.raises(TypeError, match="bool, got complex64"):
            model.step(batch(3)[0].astype(np.complex64), [0, 1, 0], loss=LOSS).result()
        assert np.array_equal(self.final_weights(nodes, model), undisturbed)

    def test_an_answer_without_gradients_fails_the_step(
        self, nodes: list[Node], model: ShardedModel, monkeypatch: pytest.MonkeyPatch, undisturbed: Any
    ) -> None:
        answered = InProcessService.__call__

        def without(self: Any, request: httpx.Request) -> httpx.Response:
            answer = answered(self, request)
            if not request.url.path.endswith("/forward_backward"):
                return answer
            found = encode(Message(decode(answer.content, answer.headers["Content-Type"]).params))
            return httpx.Response(200, content=b"".join(found.chunks), headers={"Content-Type": found.content_type})

        monkeypatch.setattr(InProcessService, "__call__", without)
        with pytest.raises(InvalidResponseError, match="tensors of the answer must be gradients, got none"):
            model.step(*batch(5), loss=LOSS).result()
        monkeypatch.setattr(InProcessService, "__call__", answered)
        assert np.array_equal(self.final_weights(nodes, model), undisturbed)

    def test_a_server_that_is_gone_ends_the_training_until_resync(
        self, nodes: list[Node], model: ShardedModel, undisturbed: Any
    ) -> None:
        nodes[1].gone = True
        with pytest.raises(APIConnectionError) as caught:
            model.step(*batch(5), loss=LOSS).result()
        assert caught.value.__notes__ == ["shard 1"]
        nodes[1].gone = False
        with pytest.raises(APIConnectionError):
            model.step(*batch(5), loss=LOSS).result()
        model.resync()
        assert np.array_equal(self.final_weights(nodes, model), undisturbed)

    def test_resync_finds_out_who_made_the_last_step(
        self, nodes: list[Node], model: ShardedModel, undisturbed: Any
    ) -> None:
        nodes[0].go_at(2)
        nodes[1].go_at(2)
        nodes[2].go_at(2, after=True)
        with pytest.raises(APIConnectionError):
            model.step(*batch(5, 1.0), loss=LOSS).result()
        assert [node.state.sequence for node in nodes] == [1, 1, 2]
        for node in nodes:
            node.gone = False
        model.resync()
        assert equal(nodes)
        assert np.array_equal(nodes[0].state.weights, undisturbed)

    def test_a_server_that_is_gone_in_the_middle_of_a_step_gets_the_state_of_another_by_resync(
        self, nodes: list[Node], model: ShardedModel, undisturbed: Any
    ) -> None:
        nodes[0].go_at(2)
        assert model.step(*batch(5, 1.0), loss=LOSS).result().sequence == 2
        nodes[0].gone = False
        with pytest.raises(APIConnectionError):  # whether another trains it now is for the caller to know
            model.step(*batch(5), loss=LOSS).result()
        model.resync()
        assert equal(nodes)
        assert np.array_equal(nodes[0].state.weights, undisturbed)

    def test_a_replica_that_lost_what_was_durable_gets_the_state_of_another(
        self, nodes: list[Node], model: ShardedModel, undisturbed: Any
    ) -> None:
        self.final_weights(nodes, model)
        nodes[0].server.crash()
        assert nodes[0].state.sequence == 0
        model.resync()
        assert equal(nodes)
        assert np.array_equal(nodes[0].state.weights, undisturbed)


class TestStates:
    def test_replicas_start_with_equal_weights_and_draw_dropout_masks_of_their_own(
        self, nodes: list[Node], model: ShardedModel
    ) -> None:
        assert equal(nodes)
        made = [info for node in nodes for info in node.server.models.values()]
        assert [info["id"] for info in made] == ["net-0", "net-1", "net-2"]
        assert [info["seed"] for info in made] == [7, 8, 9]
        assert model.info().id == "net-0"

    def test_a_state_goes_to_a_file_and_to_all_replicas(
        self, nodes: list[Node], model: ShardedModel, tmp_path: Path
    ) -> None:
        model.step(*batch(5), loss=LOSS).result()
        weights = nodes[0].state.weights
        model.save(tmp_path / "net.safetensors")
        model.step(*batch(5), loss=LOSS).result()
        assert not np.array_equal(nodes[0].state.weights, weights)
        model.load(tmp_path / "net.safetensors")
        assert np.array_equal(nodes[0].state.weights, weights)
        assert equal(nodes)
        assert len({random(node) for node in nodes}) == 3
        model.step(*batch(5), loss=LOSS).result()
        assert equal(nodes)

    def test_weights_are_replaced_everywhere(self, nodes: list[Node], model: ShardedModel) -> None:
        with pytest.raises(ValueError, match=r"got missing 0\.weight;"):
            model.load_state_dict({"0.bias": np.array([5, 6], np.float32)})
        found = model.load_state_dict({"0.bias": np.array([5, 6], np.float32)}, strict=False)
        assert found == (["0.weight"], [])
        assert equal(nodes)
        assert model.state_dict("torch")["0.bias"].tolist() == [5, 6]
        model.step(*batch(5), loss=LOSS).result()
        assert equal(nodes)

    def test_outputs_and_metrics_are_those_of_the_whole_batch(self, nodes: list[Node], model: ShardedModel) -> None:
        x, y = batch(5)
        found = model.forward(x, y, loss=LOSS).result()
        whole = model.replicas[0].forward(x, y, loss=LOSS).result()
        assert found.outputs is not None
        assert whole.outputs is not None
        assert found.outputs.shape == (5, 2, 2)
        assert np.array_equal(found.outputs, whole.outputs)
        assert found.metrics == pytest.approx(whole.metrics)
        assert found.metrics["samples:sum"] == 5
        assert model.forward(x, y, loss=LOSS, outputs=False).result().outputs is None

    def test_running_statistics_of_the_first_server_are_those_that_count(
        self, nodes: list[Node], model: ShardedModel
    ) -> None:
        first = model.replicas[0]
        network = {"layers": [*first.description.network["layers"], {"kind": "batch_norm"}]}
        first.description = dataclasses.replace(first.description, network=network)
        outputs = model.forward(batch(5)[0]).result().outputs
        assert outputs is not None
        assert outputs.shape == (5, 2, 2)
        assert [len(node.asked("forward")) for node in nodes] == [1, 0, 0]

    def test_a_model_is_found_again_and_replicas_of_a_step_that_was_left_are_made_equal(
        self, nodes: list[Node], model: ShardedModel, connect: Any
    ) -> None:
        model.step(*batch(5), loss=LOSS).result()
        x, y = batch(2)
        first = model.replicas[1]
        first.forward_backward(x, y, loss=LOSS, gradients=True).result()
        first.optim_step(gradients=np.arange(8, dtype=np.float32)).result()
        model.close()
        assert not equal(nodes)
        wanted = nodes[1].state.weights
        again = connect().model("net")
        assert equal(nodes)
        assert np.array_equal(nodes[0].state.weights, wanted)
        again.step(*batch(5), loss=LOSS).result()
        assert equal(nodes)
        assert repr(again) == f"ShardedModel('net', 3 replicas, sequence={again.replicas[0].sequence})"
        again.close()

    def test_it_is_made_again_with_the_same_id_as_long_as_it_is_not_trained(
        self, nodes: list[Node], model: ShardedModel, connect: Any
    ) -> None:
        connect().create_model(LAYERS, optimizer="sgd", seed=7, id="net").close()
        model.step(*batch(5), loss=LOSS).result()
        with pytest.raises(ConflictError, match="model_exists"):
            connect().create_model(LAYERS, optimizer="sgd", seed=7, id="net")

    def test_it_is_deleted_everywhere(self, nodes: list[Node], model: ShardedModel, connect: Any) -> None:
        client = connect()
        nodes[0].server(httpx.Request("DELETE", "http://node/v1/models/net-0"))
        with pytest.raises(NotFoundError, match="net-0"):
            client.delete_model("net")
        assert not any(node.server.models for node in nodes)
        client.create_model(LAYERS, id="two").close()
        client.delete_model("two")

    def test_what_was_not_begun_is_dropped_at_the_end(self, nodes: list[Node], model: ShardedModel) -> None:
        begun, go = threading.Event(), threading.Event()
        nodes[0].server.on_work = lambda id, sequence: (begun.set(), wait(go))  # type: ignore[func-returns-value]
        futures = [model.step(*batch(3), loss=LOSS) for _ in range(2)]
        wait(begun)
        threading.Timer(0.05, go.set).start()
        model.close()
        assert futures[0].result().sequence == 2
        with pytest.raises(CancelledError):
            futures[1].result()
        with pytest.raises(ModelClosedError, match=r"^the model is closed$"):
            model.step(*batch(3), loss=LOSS)


class TestClient:
    def test_it_closes_the_clients_that_it_made_and_no_others(self, nodes: list[Node]) -> None:
        mine = Client("http://mine", transport=httpx.MockTransport(nodes[0]))
        made = {"transport": httpx.MockTransport(nodes[1])}
        with ShardedClient([mine, "http://made"], **made) as client:
            assert repr(client) == "ShardedClient([Client('http://mine'), Client('http://made')])"
            own = client.clients[1]
        assert mine.models() == []
        with pytest.raises(ClientClosedError, match=r"^the client is closed$"):
            own.models()
        mine.close()

    def test_closing_it_waits_for_the_step_that_was_begun(self, nodes: list[Node]) -> None:
        begun, go = threading.Event(), threading.Event()
        nodes[0].server.on_work = lambda id, sequence: (begun.set(), wait(go))  # type: ignore[func-returns-value]
        with ShardedClient("http://node", transport=httpx.MockTransport(nodes[0])) as client:
            future = client.create_model(LAYERS).step(*batch(2), loss=LOSS)
            wait(begun)
            threading.Timer(0.05, go.set).start()
        assert future.result(0).sequence == 2

    def test_leaving_it_by_an_exception_fails_the_step_that_was_begun(self, nodes: list[Node]) -> None:
        begun, go = threading.Event(), threading.Event()
        nodes[0].server.on_work = lambda id, sequence: (begun.set(), wait(go))  # type: ignore[func-returns-value]
        mine = Client("http://mine", transport=httpx.MockTransport(nodes[0]))
        futures = []

        def loop() -> None:
            with ShardedClient([mine]) as client:
                futures.append(client.create_model(LAYERS).step(*batch(2), loss=LOSS))
                wait(begun)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            loop()
        with pytest.raises(ModelClosedError):
            futures[0].result(10)
        go.set()
        mine.close()

    def test_a_model_does_not_outlive_a_fork(self, nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
        with ShardedClient("http://node", transport=httpx.MockTransport(nodes[0])) as client:
            model = client.create_model(LAYERS)
            model.step(*batch(2), loss=LOSS).result()
            with monkeypatch.context() as forked:
                forked.setattr("os.getpid", lambda: -1)
                for ask in (lambda: model.step(*batch(2), loss=LOSS), model.state_dict, model.make_durable):
                    with pytest.raises(RuntimeError, match="made before the fork"):
                        ask()

    def test_one_server_is_enough(self, nodes: list[Node]) -> None:
        with ShardedClient("http://node", transport=httpx.MockTransport(nodes[0])) as client:
            model = client.create_model(LAYERS)
            assert model.step(*batch(2), loss=LOSS).result().sequence == 2
            model.close()

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(ValueError, match="servers must be one or more, got none"):
            ShardedClient([])
        with pytest.raises(ValueError, match=r"^base_url must be .*, got 'node'"):
            ShardedClient(["http://good", "node"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps_ahead": 0}, "steps_ahead must be an integer from 1 to"),
            ({"time_dim": 2}, "time_dim must be an integer from -1 to 1, got 2"),
        ],
    )
    def test_options_are_checked_before_there_is_a_model(
        self, nodes: list[Node], connect: Callable[[], ShardedClient], options: dict[str, Any], message: str
    ) -> None:
        client = connect()
        with pytest.raises(ValueError, match=message):
            client.create_model(LAYERS, **options)
        with pytest.raises(ValueError, match=message):
            client.model("m", **options)
        assert not any(node.server.requests for node in nodes)

    def test_options_may_be_numbers_of_numpy(self, connect: Callable[[], ShardedClient]) -> None:
        numbers: dict[str, Any] = {"seed": np.uint8(255), "steps_ahead": np.int64(1)}
        model = connect().create_model(LAYERS, **numbers)
        assert [replica.info().seed for replica in model.replicas] == [255, 256, 257]
        model.close()
