"""The code in the documents runs."""

import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from client.conftest import Handler
from client.in_process_service import InProcessService

import exodus_client
from exodus_client import ShardedClient
from exodus_client.wire import MSGPACK_TYPE, Message, Tensor, decode, encode

DOCS = Path(__file__).parents[2] / "docs"


def blocks(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / document).read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_client_guide_runs_from_top_to_bottom(
    service: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lif: Handler = service.handler

    training = InProcessService()

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith(("/v1/models", "/v1/requests")):
            return training(request)
        if request.method == "GET":
            return httpx.Response(200, json={"methods": ["exodus"]})
        message = decode(request.content, MSGPACK_TYPE)
        if message.params.get("neuron", {}).get("model") in ("cuba_lif", "alif"):
            return training(request)
        if message.params.get("neuron", {}).get("model") == "srm":
            method = request.url.path.rpartition("/")[2]
            grad_psp = Tensor.of("grad_psp", np.zeros((8, 100, 32), np.float32))
            answer = Message.of({"device": "cpu", "method": method, "grad_norms": {}}, [grad_psp])
            body = b"".join(encode(answer).chunks)
            return httpx.Response(200, content=body, headers={"Content-Type": MSGPACK_TYPE})
        if message.tensors.get("alpha") is not None and message.tensors["alpha"].shape == (7,):
            return httpx.Response(422, json={"errors": [{"pointer": "/params/neuron/alpha"}]})
        return lif(request)

    service.handler = handler
    monkeypatch.setattr(exodus_client, "Client", lambda url, **arguments: service.client(**arguments))
    monkeypatch.setattr(ShardedClient, "_client", lambda self, url, arguments: service.client(**arguments))
    namespace: dict[str, Any] = {}
    for block in blocks("client.md"):
        exec(compile(block, "client.md", "exec"), namespace)
    assert "(32, 64) (8, 100, 64)\n" in capsys.readouterr().out
    assert len(namespace["norms"]) == 3
    assert len(namespace["losses"]) >= 20
    assert namespace["outputs"].shape == (8, 100, 10)
    assert not training.models


def test_the_writer_and_reader_of_the_format_page_are_right() -> None:
    namespace: dict[str, Any] = {}
    for block in blocks("wire-format.md"):
        alone: dict[str, Any] = {}
        exec(compile(block, "wire-format.md", "exec"), alone)
        namespace |= alone
    assert decode(namespace["body"], MSGPACK_TYPE).tensors["membrane"].numpy().tolist() == [[[1.0] * 2] * 3]
    written = namespace["write"]({"a": 1}, [("x", "float32", [2], b"12345678"), ("y", "uint8", [3], b"abc")])
    read = decode(written, MSGPACK_TYPE)
    assert bytes(read.tensors["y"].payload) == b"abc"
    message = Message.of({"a": 1}, [Tensor.of("x", np.ones(2)), Tensor.of("y", [True], "bits")])
    params, tensors = namespace["read"](b"".join(encode(message).chunks))
    assert params == {"a": 1}
    assert [payload for _, payload in tensors] == [bytes(tensor.payload) for tensor in message.tensors.values()]


def test_the_json_of_the_format_page_is_a_request(service: Any) -> None:
    document = (DOCS / "wire-format.md").read_text("utf-8")
    (body,) = re.findall(r"-d '(\{.*?\})'\n", document, re.DOTALL)
    message = decode(body.encode(), "application/json")
    assert message.tensors["membrane"].shape == message.tensors["grad_output"].shape == (1, 3, 1)
