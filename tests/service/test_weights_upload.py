"""Weights alone over HTTP: those of a file replace the model's, its optimiser starts anew, and the training goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import zstandard
from remote_models import LOSS, Remote, batch, local, same_state
from service.conftest import Served

STATE = "/v1/models/m/state"
HEADERS = {"Content-Type": "application/vnd.safetensors"}


@pytest.fixture(params=[True, False], ids=["on disk", "in memory"])
def service(serve: Callable[..., Served], tmp_path: Path, request: pytest.FixtureRequest) -> Served:
    return serve(**({"state_dir": tmp_path / "state"} if request.param else {}))


@pytest.fixture
def remote(service: Served, connect: Callable[..., Remote]) -> Remote:
    remote = connect(service.port)
    remote.create()
    for number in (1, 2):
        remote.step(number)
    return remote


def weights(seed: int) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in local(seed).net.state_dict().items()}


def put(remote: Remote, query: str, tensors: dict[str, torch.Tensor]) -> Any:
    return remote.call("PUT", f"{STATE}?{query}", safetensors.torch.save(tensors), HEADERS)


@pytest.mark.parametrize("whole", [False, True], ids=["weights alone", "a whole state"])
def test_weights_are_replaced_and_the_training_goes_on_as_here(remote: Remote, whole: bool) -> None:
    trainer, other = local(), local(7)
    for number in (1, 2):
        trainer.step(*batch(number), LOSS)
    other.step(*batch(9), LOSS)
    given = other.state() if whole else {name: value.clone() for name, value in other.net.state_dict().items()}
    answer = put(remote, "weights=all", given)
    assert (answer.status, answer.json["sequence"]) == (200, 2), answer.body
    wanted = trainer.load_weights(given)
    assert {name: answer.json[name] for name in wanted._fields} == wanted._asdict()
    assert same_state(remote.state(), trainer.state())
    for number in (3, 4):
        result = trainer.step(*batch(number), LOSS)
        assert remote.step(number).params["metrics"] == result.metrics
    assert same_state(remote.state(), trainer.state())


def test_parts_are_chosen_by_name(remote: Remote) -> None:
    before, given = remote.state(), weights(7)
    answer = put(remote, "weights=all&names=0&names=3.bias", given)
    assert answer.json["loaded"] == ["0.weight", "0.bias", "3.bias"]
    after = remote.state()
    assert torch.equal(after["weights.0.weight"], given["0.weight"])
    assert torch.equal(after["weights.3.weight"], before["weights.3.weight"])
    answer = put(remote, "weights=partial", {"3.bias": torch.ones(3), "9.bias": torch.ones(3)})
    assert answer.json["loaded"] == ["3.bias"]
    assert answer.json["missing"] == ["0.weight", "0.bias", "3.weight"]
    assert answer.json["unexpected"] == ["9.bias"]
    assert remote.state()["weights.3.bias"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("query", "change", "status", "pointer"),
    [
        ("weights=some", {}, 422, "/query/weights"),
        ("names=0", {}, 422, "/query/names"),
        ("weights=all&names=9", {}, 422, "/query/names"),
        ("weights=all&name=0", {}, 422, "/query/name"),
        ("partial=1", {}, 422, "/query/partial"),
        ("weights=all&a~/b=", {}, 422, "/query/a~0~1b"),
        ("weights=partial&weights=all", {}, 422, "/query/weights"),
        ("weights=&weights=all", {}, 422, "/query/weights"),
        ("weights=", {}, 422, "/query/weights"),
        ("weights=all", {"9.bias": torch.ones(1)}, 409, None),
        ("weights=all", {"0.bias": torch.ones(7)}, 409, None),
        ("weights=partial", {"0.bias": torch.full((8,), torch.inf)}, 409, None),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    remote: Remote, query: str, change: dict[str, torch.Tensor], status: int, pointer: str | None
) -> None:
    before = remote.state()
    answer = put(remote, query, weights(7) | change)
    assert answer.status == status, answer.body
    assert answer.json["code"] == ("invalid" if pointer else "state_mismatch")
    assert pointer in (None, *(error["pointer"] for error in answer.json["errors"]))
    assert same_state(remote.state(), before)


@pytest.mark.parametrize("coding", [None, "zstd"])
def test_layers_are_taken_out_of_the_file_of_a_larger_network(remote: Remote, coding: str | None) -> None:
    given = weights(7)
    body = safetensors.torch.save(given | {"9.weight": torch.zeros(2**19)})
    headers = HEADERS if coding is None else {**HEADERS, "Content-Encoding": coding}
    sent = body if coding is None else zstandard.compress(body)
    answer = remote.call("PUT", f"{STATE}?weights=all&names=0&names=3", sent, headers)
    assert answer.status == 200, answer.body
    assert answer.json["loaded"] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert torch.equal(remote.state()["weights.0.weight"], given["0.weight"])
    assert remote.call("PUT", STATE, sent, headers).status == 413


def test_a_file_of_weights_larger_than_any_state_is_refused(
    serve: Callable[..., Served], connect: Callable[..., Remote]
) -> None:
    remote = connect(serve(max_model_bytes=100_000).port)
    remote.create()
    body = zstandard.compress(safetensors.torch.save(weights(7) | {"9.weight": torch.zeros(2**20)}))
    headers = {**HEADERS, "Content-Encoding": "zstd"}
    answer = remote.call("PUT", f"{STATE}?weights=all&names=0", body, headers)
    assert (answer.status, answer.json["code"]) == (413, "too_large")


def test_weights_without_the_option_are_no_state(remote: Remote) -> None:
    assert remote.call("PUT", STATE, safetensors.torch.save(weights(7)), HEADERS).json["code"] == "malformed"
    assert remote.call("PUT", f"{STATE}?weights=all", b"no file", HEADERS).json["code"] == "malformed"


def test_answers_of_before_are_forgotten_and_counted_once_all_the_same(remote: Remote) -> None:
    assert put(remote, "weights=all", weights(7)).status == 200
    assert remote.step(2).json["code"] == "answer_expired"
    assert remote.step(3).params["sequence"] == 3
