"""Documents of the service are true: OpenAPI, its examples, docs/service.md."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from service.conftest import Caller, Served

import exodus_core
from exodus_client.wire import WireError, decode
from exodus_core import losses, network
from exodus_core.arguments import METHODS
from exodus_core.training import OPTIMIZERS
from exodus_service.call import CONTENT_TYPES
from exodus_service.gradients.batching import LONG_TIME
from exodus_service.http.openapi import examples as documented
from exodus_service.http.problem_json import KINDS, MEDIA_TYPE
from exodus_service.settings import settings_table

PAGE = Path(__file__).parents[2] / "docs" / "service.md"
API_STATUSES = {400, 401, 403, 404, 411, 413, 415, 422, 429, 503, 504, 507}


@pytest.fixture
def document(caller: Caller) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(caller.call("GET", "/openapi.json").body)
    return found


def resolve(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        path = node["$ref"].removeprefix("#/").split("/")
        node = document
        for part in path:
            node = node[part]
    return node


def test_every_example_of_a_request_is_answered(caller: Caller, document: dict[str, Any]) -> None:
    content = document["paths"]["/v1/gradients/{method}"]["post"]["requestBody"]["content"]
    examples = content["application/json"]["examples"]
    assert len(examples) >= 5
    for method in METHODS:
        for name, example in examples.items():
            answer = caller.post(json.dumps(example["value"]).encode(), "application/json", method)
            assert answer.status == 200, (name, answer.body)
            assert answer.message.tensors


def test_every_example_of_models_and_layers_is_answered(serve: Callable[..., Served]) -> None:
    caller = serve().caller

    document = json.loads(caller.call("GET", "/openapi.json").body)

    def post(path: str, name: str, examples: dict[str, Any], **changes: Any) -> Any:
        body = examples[name]["value"]
        assert (
            examples
            == document["paths"][path.replace("demo", "{id}")]["post"]["requestBody"]["content"]["application/json"][
                "examples"
            ]
        )
        body = {**body, "params": {**body["params"], **changes}}
        answer = caller.call("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        assert answer.status in (200, 201), answer.body
        return json.loads(answer.body)["params"]

    post("/v1/models", "model", documented.CREATE)
    post("/v1/models/demo/forward", "evaluate", documented.FORWARD)
    numbers = post("/v1/models/demo/forward", "record", documented.FORWARD)["statistics"]
    assert {"0", "1", "2"} == numbers.keys()
    lengths = post("/v1/models/demo/forward", "lengths", documented.FORWARD)["metrics"]
    assert lengths != post("/v1/models/demo/forward", "mask", documented.FORWARD)["metrics"]
    post("/v1/models/demo/step", "first", documented.STEP)
    post("/v1/models/demo/forward_backward", "second", documented.FORWARD_BACKWARD)
    post("/v1/models/demo/optim_step", "third", documented.OPTIM_STEP)
    for layer in documented.LAYER_FORWARD:
        context = post("/v1/layers/forward", layer, documented.LAYER_FORWARD)["context"]
        post("/v1/layers/backward", "gradient", documented.LAYER_BACKWARD, context=context)


def test_every_tensor_that_a_call_on_a_model_takes_is_documented(document: dict[str, Any]) -> None:
    backward = ("`input`", "`targets`", "`grad_output`", "`lengths`", "`mask`")
    for call, tensors in {
        "forward": ("`input`", "`targets`", "`lengths`", "`mask`"),
        "forward_backward": backward,
        "step": backward,
        "optim_step": ("`gradients`",),
    }.items():
        described = document["paths"][f"/v1/models/{{id}}/{call}"]["post"]["description"]
        assert [name for name in tensors if name not in described] == [], call


def test_the_schemas_of_answers_have_the_members_that_are_sent(serve: Callable[..., Served]) -> None:
    caller = serve().caller
    document = json.loads(caller.call("GET", "/openapi.json").body)
    schemas = document["components"]["schemas"]
    for path, examples, info in (
        ("/v1/models", documented.CREATE, "ModelInfo"),
        ("/v1/models/demo/forward", documented.FORWARD, "ForwardInfo"),
        ("/v1/models/demo/step", documented.STEP, "TrainingInfo"),
        ("/v1/layers/forward", documented.LAYER_FORWARD, "LayerForwardInfo"),
    ):
        for example in examples.values():
            body = json.dumps(example["value"]).encode()
            answer = caller.call("POST", path, body, {"Content-Type": "application/json"})
            params = json.loads(answer.body)["params"]
            assert set(schemas[info]["required"]) <= params.keys() <= schemas[info]["properties"].keys(), path
            for numbers in params.get("statistics", {}).values():
                assert numbers.keys() <= schemas["StatisticsInfo"]["properties"].keys()


def test_all_references_of_the_document_lead_somewhere(document: dict[str, Any]) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert resolve(document, node)
            for member in node.values():
                walk(member)
        elif isinstance(node, list):
            for member in node:
                walk(member)

    walk(document)


def test_every_status_is_documented_with_the_form_of_its_body(document: dict[str, Any]) -> None:
    responses = document["paths"]["/v1/gradients/{method}"]["post"]["responses"]
    assert {int(status) for status in responses} >= API_STATUSES | {200, 408, 500}
    for status, response in responses.items():
        assert "X-Request-ID" in response["headers"]
        if status != "200":
            assert response["content"].keys() == {MEDIA_TYPE}
    for status in ("429", "503"):
        assert "Retry-After" in responses[status]["headers"]
    assert responses["200"]["content"].keys() == {"application/vnd.msgpack", "application/json"}


@pytest.mark.parametrize(
    ("path", "verb", "statuses"),
    [
        ("/v1/models", "post", API_STATUSES - {404} | {200, 201, 202, 408, 409, 410, 500}),
        ("/v1/models", "get", {200, 401, 403, 429, 500, 503}),
        ("/v1/models/{id}", "get", {200, 401, 403, 404, 500, 503}),
        ("/v1/models/{id}", "delete", {204, 401, 403, 404, 500, 503, 507}),
        ("/v1/models/{id}/step", "post", API_STATUSES | {200, 202, 408, 409, 410, 500}),
        ("/v1/models/{id}/forward", "post", API_STATUSES | {200, 202, 408, 409, 410, 500}),
        ("/v1/models/{id}/save", "post", {200, 202, 401, 403, 404, 429, 500, 503, 504, 507}),
        ("/v1/models/{id}/state", "get", {200, 401, 403, 404, 429, 500, 503, 504, 507}),
        ("/v1/models/{id}/state", "put", API_STATUSES | {200, 202, 408, 409, 410, 500}),
        ("/v1/layers/backward", "post", API_STATUSES - {404} | {200, 202, 408, 410, 500}),
        ("/v1/requests/{id}", "get", {200, 202, 401, 403, 404, 500, 503}),
        ("/v1/requests/{id}", "delete", {204, 401, 403, 404, 409, 500, 503}),
    ],
)
def test_every_status_of_models_layers_and_requests_is_documented(
    document: dict[str, Any], path: str, verb: str, statuses: set[int]
) -> None:
    responses = document["paths"][path][verb]["responses"]
    assert {int(status) for status in responses} == statuses
    for response in responses.values():
        assert "X-Request-ID" in response["headers"]
        assert response["description"]


def test_the_schema_of_problems_has_the_members_that_are_sent(caller: Caller, document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["ProblemDocument"]
    assert set(schema["required"]) == caller.call("GET", "/unknown").problem.keys()
    assert set(schema["properties"]["code"]["enum"]) == KINDS.keys()


def test_the_browsable_documentation_is_served(caller: Caller) -> None:
    answer = caller.call("GET", "/docs")
    assert answer.status == 200
    assert b"/openapi.json" in answer.body


def test_capabilities_are_those_of_the_core_and_the_wire(caller: Caller) -> None:
    known = json.loads(caller.call("GET", "/v1/capabilities").body)
    core = exodus_core.capabilities()
    assert known["core"]["version"] == core["version"]
    for name in ("methods", "neurons"):
        assert known[name] == core[name]
    assert sorted(known["surrogates"]) == core["surrogates"]
    assert known["wire_versions"] == [1]
    assert known["devices"] == ["cpu"]
    assert known["limits"]["max_body_bytes"] == 256 * 2**20
    assert (known["layers"], known["losses"], known["optimizers"]) == (
        list(network.KINDS),
        list(losses.KINDS),
        list(OPTIMIZERS),
    )
    assert known["limits"]["max_activation_bytes"] == 8 * 2**30
    assert known["limits"]["max_model_bytes"] == 2**30
    assert known["durable"] is False


def test_the_content_types_are_those_of_the_wire() -> None:
    for content_type in CONTENT_TYPES:
        with pytest.raises(WireError) as caught:
            decode(b"", content_type)
        assert caught.value.code == "malformed"


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples of the page are for curl")
def test_the_examples_of_the_page_work(running: Served) -> None:
    examples = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        command = example.replace("127.0.0.1:8000", f"127.0.0.1:{running.port}")
        ended = subprocess.run(["sh", "-c", command], capture_output=True, timeout=30)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert json.loads(ended.stdout)


def test_the_page_has_all_settings_and_all_problems() -> None:
    page = PAGE.read_text()
    assert settings_table() in page, "run `exodus-service settings` and put its output into docs/service.md"
    for code, kind in KINDS.items():
        assert code == "client_disconnected" or f"| {kind.status} | `{code}` |" in page


def test_the_guide_has_the_steps_from_which_a_gpu_computes_requests_alone() -> None:
    assert f"on a GPU {LONG_TIME} steps and more" in " ".join(PAGE.read_text().split())
