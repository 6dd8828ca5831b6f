"""What calls do to a model of the `TrainingServer`: arithmetic on small whole numbers, and a running hash.

A call that is lost, doubled, or done in another order leaves another state.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np

from exodus_client.wire import Message

Array = np.ndarray[Any, Any]

LOSSES = ("sum_over_time_ce", "max_over_time_ce", "spike_train_mse", "van_rossum", "spike_count_mse")
#: What does not count as the payload of a call: how it is numbered, who makes it, which handle it goes on from.
ENVELOPE = ("sequence", "writer", "context", "gradients")


class Refusal(Exception):  # noqa: N818
    """An answer that says no."""

    def __init__(
        self, status: int, code: str, detail: str, pointer: str = "", expected: str = "", got: str = "", **headers: str
    ) -> None:
        super().__init__(detail)
        self.headers = headers
        self.document = {
            "type": f"urn:exodus:problem:{code}",
            "title": code,
            "status": status,
            "detail": detail,
            "code": code,
            "category": "user" if status < 500 else "server",
            "retryable": status in (429, 503, 504),
            "errors": [{"pointer": pointer, "expected": expected, "got": got}] if pointer else [],
        }

    def response(self) -> httpx.Response:
        kind = {"Content-Type": "application/problem+json"}
        return httpx.Response(self.document["status"], json=self.document, headers=kind | self.headers)


@dataclass(frozen=True)
class State:
    """What training changes. Replaced as a whole; a durable state is one that was put aside.

    Attributes:
        sequence: number of the last call that was done.
        weights: one number for each parameter.
        gradients: those accumulated, None where there are none.
        history: hash of everything that was done, in order.
        answers: sequence number -> digest of the request, and the answer: None where it is not kept any more.
        writer: of the last call.
    """

    sequence: int
    weights: Array
    gradients: Array | None = None
    history: str = ""
    answers: Mapping[int, tuple[str, httpx.Response | None]] = field(default_factory=dict)
    writer: str | None = None


@dataclass
class Stored:
    """A model: what it was made of, its state, the one that a crash falls back to, and the one before that."""

    made: dict[str, Any]
    digest: str
    state: State
    durable: State
    durable_before: State
    parameters: list[tuple[str, list[int]]]
    busy: bool = False
    contexts: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def put_aside(self) -> None:
        """The present state becomes durable."""
        if self.durable.sequence != self.state.sequence:
            self.durable_before = self.durable
        self.durable = self.state


def taken(message: Message, name: str) -> Array:
    """A tensor of the request, refused where it is missing."""
    if name not in message.tensors:
        raise Refusal(422, "invalid", f"a tensor {name!r} is missing", "/tensors", f"a tensor {name!r}", "none")
    return message.tensors[name].numpy().astype(float)


def described(network: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """Names and shapes of the parameters; layers other than linear have none."""
    size = (network.get("input_shape") or [None])[0]
    parameters: list[tuple[str, list[int]]] = []
    for place, layer in enumerate(network["layers"]):
        pointer = f"/params/network/layers/{place}"
        if layer.get("kind") not in ("linear", "lif", "exp_leak", "dropout"):
            kind = repr(layer.get("kind"))
            raise Refusal(422, "invalid", f"layer {place}: no kind {kind}", f"{pointer}/kind", "a kind of layer", kind)
        if layer["kind"] == "linear":
            size = layer.get("in_features") or size
            if size is None:
                raise Refusal(422, "invalid", "no input shape", pointer, "in_features or input_shape", "neither")
            name = layer.get("name", str(place))
            parameters.append((f"{name}.weight", [layer["out_features"], size]))
            if layer.get("bias", True):
                parameters.append((f"{name}.bias", [layer["out_features"]]))
            size = layer["out_features"]
    return parameters


def outputs_of(model: Stored) -> int:
    """Features of the last layer; 1 where no layer has weights."""
    return next((shape[0] for _, shape in reversed(model.parameters)), 1)


def parts_of(model: Stored, flat: Array) -> list[tuple[str, Array]]:
    """A flat array as one for each parameter."""
    parts, begin = [], 0
    for name, shape in model.parameters:
        count = math.prod(shape)
        parts.append((name, flat[begin : begin + count].reshape(shape)))
        begin += count
    return parts


def forward(model: Stored, inputs: Array) -> Array:
    """Outputs, (batch, time, features): of the inputs and of all weights, in whole numbers."""
    features = np.arange(1.0, outputs_of(model) + 1)
    return (inputs.sum(axis=2, keepdims=True) * features + model.state.weights.sum() % 97).astype(np.float32)


def check(what: str, message: Message, model: Stored) -> None:
    """Refuse what cannot be right, whatever the state is."""
    params, tensors = message.params, message.tensors
    if params.get("lr") is not None and params["lr"] < 0:
        raise Refusal(422, "invalid", "lr: expected >= 0", "/params/lr", "a number >= 0", str(params["lr"]))
    if params.get("skip"):
        if what != "optim_step" or tensors or params.get("gradients"):
            raise Refusal(422, "invalid", "skip goes with nothing else", "/params/skip", "false", "true")
        return
    for name in ("gradients", "grad_output"):
        if name in tensors and not tensors[name].dtype.startswith("float"):
            dtype = tensors[name].dtype
            raise Refusal(422, "invalid", f"{name} are {dtype}", f"{tensors[name].pointer}/dtype", "a float", dtype)
    if what == "optim_step":
        if "gradients" in tensors and tensors["gradients"].shape != model.state.weights.shape:
            shapes = str(list(model.state.weights.shape)), str(list(tensors["gradients"].shape))
            raise Refusal(422, "invalid", "gradients do not fit", "/tensors/0/shape", *shapes)
        return
    if params.get("context") is not None:
        taken(message, "grad_output")
        return
    taken(message, "input")
    if "grad_output" in tensors:
        return
    taken(message, "targets")
    loss = params.get("loss")
    kind = loss.get("kind") if isinstance(loss, dict) else loss
    if kind not in LOSSES:
        raise Refusal(422, "invalid", f"loss: got {kind!r}", "/params/loss", "one of the losses", repr(kind))


def work(model: Stored, what: str, message: Message) -> tuple[State, dict[str, Any], str]:
    """Do a training call: the state after it, its answer, and a hash of what was asked. Changes nothing itself."""
    params, state = message.params, model.state
    answer: dict[str, Any] = {"sequence": params["sequence"], "metrics": {}, "grad_norms": {}, "device": "fake"}
    if params.get("skip"):
        return state, answer, "skip"
    tensors = {name: tensor.numpy() for name, tensor in message.tensors.items()}
    if params.get("context") is not None:
        if params["context"] not in model.contexts:
            raise Refusal(410, "context_expired", "the context is not kept", "/params/context", "one kept", "another")
        tensors["input"], weights = model.contexts[params["context"]]
        if weights is not state.weights:
            raise Refusal(409, "context_stale", "the weights have changed", "/params/context", "present", "earlier")
    payload = digest_of(what, params, tensors)
    metrics = answer["metrics"]
    gradients = state.gradients
    if what != "optim_step":
        given = [tensors[name] for name in ("input", "targets", "grad_output") if name in tensors]
        if params.get("non_finite") != "apply" and not all(np.isfinite(array).all() for array in given):
            raise Refusal(422, "non_finite", "the loss is not finite", "/tensors/0", "a finite loss", "nan")
        fresh = np.random.default_rng(int(payload[:8], 16)).integers(-9, 9, len(state.weights)).astype(float)
        gradients = fresh if gradients is None else gradients + fresh
        metrics["samples:sum"] = float(len(tensors["input"]))
        if "targets" in tensors:
            metrics["loss:mean"] = float(np.nansum(tensors["input"].astype(float)))
    used = tensors.get("gradients", np.zeros_like(state.weights) if gradients is None else gradients)
    weights = state.weights
    if what != "forward_backward":
        weights, gradients = np.round(weights - used.astype(float)), None
    history = hashlib.sha256((state.history + payload).encode()).hexdigest()
    norms = {name: float(np.linalg.norm(part)) for name, part in parts_of(model, used)}
    after = replace(state, weights=weights, gradients=gradients, history=history)
    answer["grad_norms"] = norms | {"total": float(np.linalg.norm(used))}
    answer["used"] = used
    return after, answer, payload


def digest_of(what: str, params: Mapping[str, Any], tensors: Mapping[str, Array]) -> str:
    """What a call is about, whatever its number, and whether its inputs came with it or lay here in a context."""
    about = {name: value for name, value in params.items() if name not in ENVELOPE and value is not None}
    digest = hashlib.sha256(json.dumps([what, about], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].astype(float).tobytes())
    return digest.hexdigest()


def safetensors(tensors: Mapping[str, Array], metadata: dict[str, str]) -> bytes:
    """A file of the safetensors format."""
    header: dict[str, Any] = {"__metadata__": metadata}
    names = {"float32": "F32", "float64": "F64", "uint8": "U8", "int64": "I64"}
    payloads, end = [], 0
    for name, array in tensors.items():
        payloads.append(array.tobytes())
        offsets = [end, end := end + array.nbytes]
        header[name] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(payloads)


def read_safetensors(body: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata of such a file."""
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    dtypes = {"F32": np.float32, "F64": np.float64, "U8": np.uint8, "I64": np.int64}
    payload = body[8 + length :]
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(payload[begin:end], dtypes[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata
