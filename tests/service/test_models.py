"""Models over HTTP: creation, description, listing, deletion, owners, limits."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from remote_models import ADAM, NETWORK, Remote, batch, body_of, local, same_state, trained
from service.conftest import Served

from exodus_client.wire import Form
from exodus_core import network as networks
from exodus_core.network import parse
from exodus_core.training import Trainer
from exodus_service.errors import ServiceError
from exodus_service.models.model_spec import ModelSpec, footprint, parse_spec
from exodus_service.models.state_transfer import import_state
from exodus_service.models.storage.state_file import encode_state


@pytest.fixture
def service(serve: Callable[..., Served], tmp_path: Path) -> Served:
    return serve(state_dir=tmp_path / "state")


@pytest.fixture
def remote(service: Served, connect: Callable[..., Remote]) -> Remote:
    return connect(service.port)


@pytest.mark.parametrize("form", ["stream", "inline", "json"])
def test_a_model_is_made_and_described_in_the_form_of_the_request(remote: Remote, form: Form) -> None:
    answer = remote.post("/v1/models", {"network": NETWORK, "optimizer": ADAM, "name": "mine", "seed": 5}, form=form)
    assert answer.status == 201
    info = answer.message.params
    assert (answer.message.form, info["name"], info["seed"], info["sequence"], info["durable"]) == (
        form if form == "json" else "stream",  # a message without tensors is the same in both
        "mine",
        5,
        0,
        0,
    )
    assert info["network"] == parse(NETWORK).data
    assert [(p["name"], tuple(p["shape"])) for p in info["parameters"]] == list(parse(NETWORK).parameters)
    assert remote.info(info["id"]) == info
    assert [found["id"] for found in remote.call("GET", "/v1/models").json["models"]] == [info["id"]]


def test_equal_seeds_are_equal_weights_here_and_there(remote: Remote) -> None:
    remote.create(seed=7)
    trainer = local(seed=7)
    for name, value in remote.state().items():
        assert torch.equal(value, trainer.state()[name]), name


def test_weights_may_be_given(remote: Remote) -> None:
    weights = local(seed=3).weights()
    assert remote.post("/v1/models", {"id": "m", "network": NETWORK, "optimizer": ADAM}, weights=weights).status == 201
    state, names = remote.state(), [name for name, _ in parse(NETWORK).parameters]
    assert torch.equal(torch.cat([state[f"weights.{name}"].flatten() for name in names]), weights)


def test_creation_is_idempotent_and_a_different_request_is_refused(remote: Remote) -> None:
    assert remote.create().status == 201
    assert remote.step(1).status == 200
    again = remote.create()
    assert (again.status, again.params["sequence"]) == (200, 1)
    other = remote.create(seed=1)
    assert (other.status, other.json["code"], other.json["retryable"]) == (409, "model_exists", False)
    assert other.json["errors"][0].keys() == {"pointer", "expected", "got"}
    assert other.json["errors"][0]["pointer"] == "/params/id"


def test_a_deleted_model_is_gone(remote: Remote, service: Served, tmp_path: Path) -> None:
    remote.create()
    assert remote.call("DELETE", "/v1/models/m").status == 204
    for answer in (remote.call("GET", "/v1/models/m"), remote.step(1), remote.call("DELETE", "/v1/models/m")):
        assert (answer.status, answer.json["code"]) == (404, "not_found")
    assert remote.call("GET", "/v1/models").json == {"models": []}
    assert remote.create(seed=9).status == 201


def test_a_model_is_invisible_to_other_owners(serve: Callable[..., Served], connect: Callable[..., Remote]) -> None:
    service = serve(api_keys="one,two")
    one, two = connect(service.port, "one"), connect(service.port, "two")
    assert one.create().status == 201
    layer = {"neuron": {"model": "lif", "alpha": 0.9}}
    context = one.post("/v1/layers/forward", layer, input=torch.rand(1, 3, 2)).params["context"]
    of_model = one.post("/v1/models/m/forward", {"mode": "train", "context": True}, input=batch(1)[0]).params["context"]
    with service.busy():
        pending = one.step(1, headers={"Prefer": "wait=0"})
        assert two.call("GET", pending.headers["location"]).status == 404
        assert two.call("DELETE", pending.headers["location"]).status == 404
    for verb, path in [("GET", ""), ("DELETE", ""), ("GET", "/state"), ("POST", "/save")]:
        assert two.call(verb, f"/v1/models/m{path}").status == 404
    assert two.step(1).status == 404
    assert two.call("GET", "/v1/models").json == {"models": []}
    answer = two.post("/v1/layers/backward", {"context": context}, grad_output=torch.rand(1, 3, 2))
    assert (answer.status, answer.json["code"]) == (410, "context_expired")
    assert two.create(seed=4).status == 201  # the same id, a model of their own
    grad = torch.ones(4, 10, 3)
    answer = two.post("/v1/models/m/step", {"sequence": 1, "context": of_model}, grad_output=grad)
    assert (answer.status, answer.json["code"]) == (410, "context_expired")
    assert (one.info()["seed"], two.info()["seed"]) == (0, 4)
    assert connect(service.port).create().status == 401


WRONG = [
    ({"optimizer": ADAM}, "/params/network"),
    ({"network": NETWORK}, "/params/optimizer"),
    ({"network": NETWORK, "optimizer": ADAM, "color": 1}, "/params/color"),
    ({"network": NETWORK, "optimizer": ADAM, "id": "a/b"}, "/params/id"),
    ({"network": NETWORK, "optimizer": ADAM, "id": "a\n"}, "/params/id"),
    ({"network": NETWORK, "optimizer": ADAM, "id": ""}, "/params/id"),
    ({"network": NETWORK, "optimizer": ADAM, "seed": -1}, "/params/seed"),
    ({"network": NETWORK, "optimizer": ADAM, "seed": True}, "/params/seed"),
    ({"network": NETWORK, "optimizer": ADAM, "durable_every": 0}, "/params/durable_every"),
    ({"network": {"input_shape": [3], "layers": []}, "optimizer": ADAM}, "/params/network/layers"),
    (
        {
            "network": {
                "input_shape": [3],
                "layers": [{"kind": "linear", "out_features": 2}, {"kind": "lif", "alpha": 2.0}],
            },
            "optimizer": ADAM,
        },
        "/params/network/layers/1/alpha",
    ),
    ({"network": NETWORK, "optimizer": {"kind": "adam", "lr": -1.0}}, "/params/optimizer/lr"),
    ({"network": NETWORK, "optimizer": {"kind": "lion"}}, "/params/optimizer/kind"),
    ({"network": {"input_shape": [3], "layers": [{"kind": "flatten"}]}, "optimizer": ADAM}, "/params/network"),
]


@pytest.mark.parametrize(("params", "pointer"), WRONG, ids=lambda value: value if isinstance(value, str) else None)
def test_an_invalid_argument_is_pointed_at(remote: Remote, params: dict[str, Any], pointer: str) -> None:
    answer = remote.post("/v1/models", params)
    assert (answer.status, answer.json["code"]) == (422, "invalid"), answer.body
    error = answer.json["errors"][0]
    assert error["pointer"] == pointer
    assert error["expected"]
    assert error["got"]
    assert remote.call("GET", "/v1/models").json == {"models": []}


def test_weights_of_a_wrong_shape_or_dtype_are_pointed_at(remote: Remote) -> None:
    params = {"network": NETWORK, "optimizer": ADAM}
    for weights, pointer in [
        (torch.zeros(5), "/tensors/0/shape"),
        (local().weights().double(), "/tensors/0/dtype"),
    ]:
        answer = remote.post("/v1/models", params, weights=weights)
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, pointer)
    answer = remote.post("/v1/models", params, weight=torch.zeros(5))
    assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/tensors/0")


def test_a_model_that_is_too_large_is_refused_before_it_is_built(
    serve: Callable[..., Served], connect: Callable[..., Remote]
) -> None:
    remote = connect(serve(max_model_bytes=1000).port)
    network = {"input_shape": [100_000], "layers": [{"kind": "linear", "out_features": 100_000}]}
    answer = remote.post("/v1/models", {"network": network, "optimizer": ADAM})
    assert (answer.status, answer.json["code"]) == (413, "too_large")
    assert answer.json["errors"][0]["pointer"] == "/params/network"


def test_a_description_too_long_for_a_response_is_refused(remote: Remote) -> None:
    layers = [{"kind": "linear", "out_features": 1} for _ in range(1000)]
    answer = remote.post("/v1/models", {"network": {"input_shape": [1], "layers": layers}, "optimizer": ADAM})
    assert (answer.status, answer.json["code"]) == (413, "too_large")
    assert answer.json["errors"][0]["pointer"] == "/params/network/layers"
    assert remote.call("GET", "/v1/models").json == {"models": []}


@pytest.mark.parametrize("form", ["stream", "json"])
@pytest.mark.parametrize(
    ("layers", "settings", "pointer", "setting"),
    [
        (1025, {}, "/params/network/layers", "1024 layers (EXODUS_MAX_LAYERS)"),
        (4, {"max_layers": 4}, "/params/network/layers", "4 layers (EXODUS_MAX_LAYERS)"),
        (
            900,
            {"max_description_bytes": 8000},
            "/params/network",
            "8000 bytes as msgpack (EXODUS_MAX_DESCRIPTION_BYTES)",
        ),
    ],
)
def test_a_description_is_bounded_before_it_is_read(
    serve: Callable[..., Served],
    connect: Callable[..., Remote],
    monkeypatch: pytest.MonkeyPatch,
    form: Form,
    layers: int,
    settings: dict[str, Any],
    pointer: str,
    setting: str,
) -> None:
    service = serve(**settings)
    monkeypatch.setattr(networks, "parse", None)
    network = {"input_shape": [6], "layers": [{"kind": "linear", "out_features": 2}, *[{"kind": "if"}] * layers]}
    answer = connect(service.port).post("/v1/models", {"network": network, "optimizer": ADAM}, form)
    assert (answer.status, answer.json["code"]) == (413, "too_large")
    (fault,) = answer.json["errors"]
    assert (fault["pointer"], fault["expected"]) == (pointer, f"at most {setting}")
    capable = connect(service.port).call("GET", "/v1/capabilities").json["limits"]
    assert capable["max_layers"] == settings.get("max_layers", 1024)


def test_an_optimizer_of_more_names_than_an_answer_holds_is_refused_and_makes_no_model(remote: Remote) -> None:
    layers = [{"kind": "linear", "out_features": 1, "name": "layer_of_a_long_name_" + str(n)} for n in range(200)]
    network = {"input_shape": [1], "layers": layers}
    scales = {f"{layer['name']}.{what}": 1.5 for layer in layers for what in ("weight", "bias")}
    optimizer = ADAM | {"lr_scale": scales}
    answer = remote.post("/v1/models", {"id": "names", "network": network, "optimizer": optimizer})
    assert (answer.status, answer.json["code"]) == (422, "invalid"), answer.body
    (fault,) = answer.json["errors"]
    assert fault["pointer"] == "/params/optimizer"
    assert remote.call("GET", "/v1/models/names").status == 404
    few = dict(list(scales.items())[:20])
    assert remote.post("/v1/models", {"network": network, "optimizer": ADAM | {"lr_scale": few}}).status == 201
    largest = ADAM | {"lr_scale": dict.fromkeys([layer["name"] for layer in layers], 1.5)}
    made = remote.post("/v1/models", {"id": "names", "network": network, "optimizer": largest})
    assert made.status == 201, made.body


def test_a_state_with_an_optimizer_of_more_names_than_an_answer_holds_is_refused() -> None:
    layers = [{"kind": "linear", "out_features": 1, "name": "layer_of_a_long_name_" + str(n)} for n in range(200)]
    spec = parse_spec(
        "owner", "names", network={"input_shape": [1], "layers": layers}, optimizer=ADAM, max_model_bytes=2**20
    )
    scales = {name: 1.5 for name, _ in spec.network.parameters}
    state = Trainer(networks.build(spec.network), ADAM | {"lr_scale": scales}).state()
    metadata = {
        "network": spec.network.data,
        "optimizer": ADAM | {"lr_scale": scales},
        "seed": 0,
        "sequence": 0,
        "version": 1,
    }
    body = b"".join(encode_state(state, {"exodus": json.dumps(metadata)}).chunks)
    with pytest.raises(ServiceError) as caught:
        import_state(spec, body, torch.device("cpu"))
    assert caught.value.code == "state_mismatch"
    assert [fault.pointer for fault in caught.value.faults] == ["/optimizer"]


def test_a_description_in_json_has_no_more_room_than_one_in_msgpack(remote: Remote) -> None:
    network = {"input_shape": [6], "layers": [{"kind": "if"}] * 28_000}
    answer = remote.post("/v1/models", {"network": network, "optimizer": ADAM}, "json")
    assert (answer.status, answer.json["code"]) == (413, "too_large")


def test_calls_do_not_wait_for_a_creation_and_its_deadline_cancels_it(
    serve: Callable[..., Served], connect: Callable[..., Remote], tmp_path: Path
) -> None:
    room = footprint(parse(NETWORK), ADAM) + 10_000
    service = serve(state_dir=tmp_path / "state", models_memory_bytes=room)
    remote, other = connect(service.port), connect(service.port)
    for id in ("m", "k"):
        assert remote.create(id).status == 201
    finish = threading.Event()
    service.engine.store._maker.submit(finish.wait)
    try:
        body = {"id": "n", "network": NETWORK, "optimizer": ADAM}
        answer = other.post("/v1/models", body, headers={"X-Deadline-Ms": "100"})
        assert (answer.status, answer.json["code"]) == (504, "deadline")
        assert remote.step(1, "k").status == 200
        assert remote.step(1, "m").status == 200  # it had left memory
    finally:
        finish.set()
    assert other.call("GET", "/v1/models/n").status == 404
    assert service.engine.scheduler.requests == 0


def test_a_model_is_not_built_after_its_deadline(
    serve: Callable[..., Served],
    connect: Callable[..., Remote],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:
    service = serve(state_dir=tmp_path / "state")
    built: list[ModelSpec] = []
    monkeypatch.setattr(ModelSpec, "build", lambda self, device, weights: built.append(self))

    def slow(*arguments: Any, **options: Any) -> ModelSpec:
        time.sleep(0.3)
        return parse_spec(*arguments, **options)

    monkeypatch.setattr("exodus_service.models.store.parse_spec", slow)
    body = {"id": "n", "network": NETWORK, "optimizer": ADAM}
    answer = connect(service.port).post("/v1/models", body, headers={"X-Deadline-Ms": "100"})
    assert (answer.status, answer.json["code"]) == (504, "deadline")
    until(lambda: service.engine.scheduler.requests == 0)
    service.engine.store._maker.submit(lambda: None).result(10)
    assert built == []


def test_a_shape_of_any_size_is_refused(remote: Remote) -> None:
    layers = [{"kind": "flatten"}, {"kind": "linear", "out_features": 2}]
    for shape in ([2**31 - 1] * 470, [2**31 - 1] * 3):
        answer = remote.post("/v1/models", {"network": {"input_shape": shape, "layers": layers}, "optimizer": ADAM})
        assert (answer.status, answer.json["code"]) == (422, "invalid")
        assert answer.json["errors"][0]["pointer"] == "/params/network/input_shape"


def test_models_live_in_memory_only_without_a_state_folder(
    serve: Callable[..., Served], connect: Callable[..., Remote]
) -> None:
    remote = connect(serve().port)
    assert remote.create().params["durable"] is None
    answer = remote.step(1)
    assert (answer.params["sequence"], answer.params["durable"]) == (1, None)
    assert remote.call("POST", "/v1/models/m/save").json == {"sequence": 1, "durable": None}
    assert json.loads(remote.call("GET", "/v1/capabilities").body)["durable"] is False


def test_a_creation_on_a_full_disk_is_refused_and_leaves_nothing(
    serve: Callable[..., Served], tmp_path: Path, connect: Callable[..., Remote]
) -> None:
    remote = connect(serve(state_dir=tmp_path / "s", models_disk_bytes=2_000).port)
    answer = remote.create()
    assert (answer.status, answer.json["code"], answer.json["retryable"]) == (507, "storage_full", False)
    assert remote.call("GET", "/v1/models").json == {"models": []}


def test_evicted_models_are_loaded_again_by_a_call(
    serve: Callable[..., Served], tmp_path: Path, connect: Callable[..., Remote]
) -> None:
    room = 2 * footprint(parse(NETWORK), ADAM) + 10_000
    remote = connect(serve(state_dir=tmp_path / "s", models_memory_bytes=room).port)
    for id in ("a", "b", "c", "d"):
        assert remote.create(id).status == 201
        assert remote.step(1, id).status == 200
    kept = {info["id"]: info["in_memory"] for info in remote.call("GET", "/v1/models").json["models"]}
    assert kept.keys() == {"a", "b", "c", "d"}
    assert not kept["a"]
    assert remote.step(1, "a").replayed
    assert remote.step(2, "a").params["sequence"] == 2


def test_models_in_memory_are_listed_without_reading_the_disk(
    remote: Remote, service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for id in ("a", "b"):
        assert remote.create(id).status == 201

    def find(_self: Any, _owner: str, id: str) -> None:
        raise AssertionError(f"{id} was read")

    monkeypatch.setattr("exodus_service.models.saved_models.SavedModels.find", find)
    assert [model["id"] for model in remote.call("GET", "/v1/models").json["models"]] == ["a", "b"]


def test_a_model_evicted_while_models_are_listed_is_listed(
    remote: Remote, service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.create("a")
    store = service.engine.store
    assert store._saved is not None
    listed = store._saved.list

    def leave(owner: str, known: Any) -> Any:
        (model,) = store._cache
        store._cache.discard(model)
        return listed(owner, known)

    monkeypatch.setattr(store._saved, "list", leave)
    assert [model["id"] for model in remote.call("GET", "/v1/models").json["models"]] == ["a"]


def test_two_models_train_concurrently_without_interference(
    remote: Remote, service: Served, connect: Callable[..., Remote]
) -> None:
    def train(id: str, seed: int) -> None:
        own = connect(service.port)
        own.create(id, seed=seed)
        for number in range(1, 21):
            assert own.step(number, id).status == 200

    threads = [threading.Thread(target=train, args=(id, seed)) for id, seed in (("a", 1), ("b", 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same_state(remote.state("a"), trained(20, seed=1).state())
    assert same_state(remote.state("b"), trained(20, seed=2).state())


def test_the_requests_headers_work_here_too(remote: Remote) -> None:
    remote.create()
    body, content_type = body_of({"sequence": 1})
    answer = remote.call(
        "POST",
        "/v1/models/m/optim_step",
        body,
        {"Content-Type": content_type, "X-Request-ID": "mine", "X-Deadline-Ms": "5000"},
    )
    assert answer.status == 200
    assert answer.headers["x-request-id"] == "mine"
    phases = {entry.partition(";")[0] for entry in answer.headers["server-timing"].split(", ")}
    assert phases >= {"receive", "queue", "decode", "kernel", "encode", "total"}


@pytest.mark.parametrize(
    ("optimizer", "pointer"),
    [
        ({"kind": "adam", "lr": 1e300}, "/params/optimizer/lr"),
        ({"kind": "adam", "weight_decay": 1e300}, "/params/optimizer/weight_decay"),
        ({"kind": "sgd", "momentum": 0.9, "dampening": -1e300}, "/params/optimizer/dampening"),
    ],
)
def test_an_optimiser_whose_numbers_the_weights_dtype_has_no_room_for_is_refused(
    remote: Remote, optimizer: dict[str, Any], pointer: str
) -> None:
    answer = remote.post("/v1/models", {"id": "m", "network": NETWORK, "optimizer": optimizer})
    assert (answer.status, answer.json["code"]) == (422, "invalid")
    assert answer.json["errors"][0]["pointer"] == pointer


def test_a_network_of_more_weights_than_64_bits_count_is_too_large(remote: Remote) -> None:
    network = {"input_shape": [2**31 - 1], "layers": [{"kind": "linear", "out_features": 2**31 - 1}] * 2}
    answer = remote.post("/v1/models", {"id": "m", "network": network, "optimizer": ADAM})
    assert (answer.status, answer.json["code"]) == (413, "too_large")
    assert answer.json["errors"][0]["pointer"] == "/params/network"
