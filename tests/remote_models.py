"""Calls on models over HTTP, as a client would make them by hand; and the same training in this process."""

import http.client
from collections.abc import Mapping
from typing import Any

import torch

from exodus_client.wire import Form, Message, Tensor, decode, encode
from exodus_core import losses, network
from exodus_core.training import Trainer

NETWORK: dict[str, Any] = {
    "input_shape": [6],
    "layers": [
        {"kind": "linear", "out_features": 8},
        {"kind": "lif", "alpha": 0.9},
        {"kind": "dropout", "p": 0.2},
        {"kind": "linear", "out_features": 3},
        {"kind": "exp_leak", "alpha": 0.9},
    ],
}
ADAM: dict[str, Any] = {"kind": "adam", "lr": 0.01}
LOSS = "max_over_time_ce"


class Response:
    """A response that has been read whole."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def message(self) -> Message:
        assert self.status in (200, 201), self.body
        return decode(bytearray(self.body), self.headers["content-type"])

    @property
    def params(self) -> dict[str, Any]:
        return self.message.params

    @property
    def json(self) -> Any:
        import json

        return json.loads(self.body)

    @property
    def replayed(self) -> bool:
        return self.headers.get("x-exodus-replayed") == "1"

    def tensor(self, name: str) -> torch.Tensor:
        return self.message.tensors[name].torch()


def batch(number: int, samples: int = 4, steps: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes and classes of the training call of this number."""
    generator = torch.Generator().manual_seed(number)
    spikes = torch.rand(samples, steps, 6, generator=generator) < 0.4
    return spikes, torch.randint(3, (samples,), generator=generator)


def body_of(params: Mapping[str, Any], form: Form = "stream", /, **tensors: torch.Tensor) -> tuple[bytes, str]:
    """A message as bytes, and its content type; spikes travel as bits where they can."""
    packed = [
        Tensor.of(name, value, "bits" if value.dtype == torch.bool and form != "json" else "raw")
        for name, value in tensors.items()
    ]
    encoded = encode(Message.of(params, packed), form)
    return b"".join(encoded.chunks), encoded.content_type


class Remote:
    """A caller of one service with a connection of its own."""

    def __init__(self, port: int, key: str = "") -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def call(
        self, verb: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        self.connection.request(verb, path, body, {**self.headers, **(headers or {})})
        return Response(self.connection.getresponse())

    def post(
        self,
        path: str,
        params: Mapping[str, Any],
        /,
        form: Form = "stream",
        headers: Mapping[str, str] | None = None,
        **tensors: torch.Tensor,
    ) -> Response:
        body, content_type = body_of(params, form, **tensors)
        return self.call("POST", path, body, {"Content-Type": content_type, **(headers or {})})

    def create(self, id: str = "m", **params: Any) -> Response:
        return self.post("/v1/models", {"id": id, "network": NETWORK, "optimizer": ADAM, **params})

    def step(self, number: int, id: str = "m", headers: Mapping[str, str] | None = None, **params: Any) -> Response:
        spikes, targets = batch(number)
        path = f"/v1/models/{id}/step"
        return self.post(
            path, {"sequence": number, "loss": LOSS, **params}, headers=headers, input=spikes, targets=targets
        )

    def info(self, id: str = "m") -> Any:
        return self.call("GET", f"/v1/models/{id}").json

    def state(self, id: str = "m") -> dict[str, torch.Tensor]:
        import safetensors.torch

        answer = self.call("GET", f"/v1/models/{id}/state")
        assert answer.status == 200, answer.body
        return safetensors.torch.load(answer.body)


def local(seed: int = 0, description: Mapping[str, Any] = NETWORK) -> Trainer:
    """The same model in this process."""
    return Trainer(network.build(description, seed), ADAM)


def trained(numbers: int, seed: int = 0) -> Trainer:
    """A local model after the steps 1 to `numbers`."""
    trainer = local(seed)
    loss = losses.parse(LOSS)
    for number in range(1, numbers + 1):
        trainer.step(*batch(number), loss)
    return trainer


def same_state(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """True if two states are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
