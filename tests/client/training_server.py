"""The part of a server that keeps models, without sockets: the order of calls, kept answers, durable states, crashes.

`TrainingServer` is called with requests, in any threads. What calls do to a model is in `training_arithmetic`.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
from client.training_arithmetic import (
    Array,
    Refusal,
    State,
    Stored,
    check,
    described,
    forward,
    parts_of,
    read_safetensors,
    safetensors,
    taken,
    work,
)

from exodus_client.wire import Message, Tensor, decode, decompress, encode

#: Calls whose answers are kept.
KEPT = 64
STATE_TYPE = "application/vnd.safetensors"


class TrainingServer:
    """Answers requests on models, as a service does.

    Attributes:
        models: by id.
        sequence_wait: seconds that a call waits for those before it.
        memory_only: there is no disk: `durable` is None.
        full: the disk is full: nothing becomes durable.
        done: (model, sequence number, hash of the payload) of all work, in order, replays not counted.
        on_work: called with the model's id and the sequence number before work is done.
        pending: a request with `Prefer: wait` is answered by 202, and its answer held back for so many questions.
        saves: how often POST save was asked for.
        requests, bodies: method and path of everything that came, and what came with it.
    """

    def __init__(self) -> None:
        self.models: dict[str, Stored] = {}
        self.sequence_wait = 0.02
        self.memory_only = False
        self.full = False
        self.done: list[tuple[str, int, str]] = []
        self.on_work: Callable[[str, int], None] = lambda id, sequence: None
        self.pending: int | None = None
        self.saves = 0
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self._results: dict[str, tuple[int, httpx.Response]] = {}
        self._changed = threading.Condition(threading.RLock())
        self._life = 0
        self._doomed = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request. Raises httpx.RemoteProtocolError where the server goes down meanwhile."""
        request.read()
        with self._changed:
            self.requests.append((request.method, request.url.path))
            self.bodies.append(request.content)
            life = self._life
        try:
            answer = self._route(request, life)
        except Refusal as refusal:
            answer = refusal.response()
        return self._deferred(request, copied(answer))

    def crash(self, *, damaged: bool = False) -> None:
        """Stop at once and start again: every model is as it was durable, nothing else is left.

        `damaged`: the durable states cannot be read, and the ones before them are used.
        """
        with self._changed:
            self._life += 1
            self._results.clear()
            for id, model in list(self.models.items()):
                if self.memory_only:
                    del self.models[id]
                    continue
                if damaged:
                    model.durable = model.durable_before
                model.state, model.busy = model.durable, False
                model.contexts = {}
            self._changed.notify_all()

    def stop(self) -> None:
        """Save everything, then stop and start again."""
        with self._changed:
            for model in self.models.values():
                if not self.full:
                    model.put_aside()
            self.crash()

    def crash_at_work(self) -> None:
        """Crash in the middle of the next work."""
        self._doomed = True

    def forget_answers(self) -> None:
        """Keep no answer of what was done."""
        for model in self.models.values():
            kept = {number: (digest, None) for number, (digest, _) in model.state.answers.items()}
            model.state = replace(model.state, answers=kept)

    def forget_contexts(self) -> None:
        """Let all contexts expire."""
        for model in self.models.values():
            model.contexts = {}

    # What is asked

    def _route(self, request: httpx.Request, life: int) -> httpx.Response:
        parts = request.url.path.strip("/").split("/")[1:]
        method = request.method
        if parts[0] == "requests":
            return self._request(method, parts[1])
        if parts == ["models"]:
            if method == "POST":
                return self._create(request)
            return httpx.Response(200, json={"models": [self._info(id) for id in self.models]})
        with self._changed:
            model = self.models.get(parts[1])
            if model is None:
                raise Refusal(404, "not_found", f"there is no model {parts[1]!r}")
            if len(parts) == 2:
                if method == "DELETE":
                    del self.models[parts[1]]
                    return httpx.Response(204)
                return httpx.Response(200, json=self._info(parts[1]))
        if parts[2] == "state":
            return self._get_state(parts[1], model) if method == "GET" else self._put_state(parts[1], model, request)
        if parts[2] == "save":
            return self._save(model)
        if parts[2] == "forward":
            return self._forward(model, request, life)
        return self._train(parts[1], model, parts[2], request, life)

    def _create(self, request: httpx.Request) -> httpx.Response:
        message = opened(request)
        made = message.params
        digest = hashlib.sha256(content(request)).hexdigest()
        with self._changed:
            id = made.get("id") or f"model-{len(self.models)}"
            if id in self.models:
                if self.models[id].digest != digest:
                    raise Refusal(409, "model_exists", f"there is another model {id!r}", "/params/id", "a new id", id)
                return reply(message, self._info(id), [])
            parameters = described(made["network"])
            count = sum(math.prod(shape) for _, shape in parameters)
            weights = np.arange(count, dtype=float) + made["seed"]
            if "weights" in message.tensors:
                weights = message.tensors["weights"].numpy().astype(float)
            if weights.shape != (count,):
                raise Refusal(422, "invalid", "weights", "/tensors/0/shape", f"[{count}]", str(list(weights.shape)))
            state = State(0, weights)
            self.models[id] = Stored(dict(made), digest, state, state, state, parameters)
            return reply(message, self._info(id), [], 201)

    def _info(self, id: str) -> dict[str, Any]:
        model = self.models[id]
        made = model.made
        return {
            "id": id,
            "name": made.get("name", ""),
            "sequence": model.state.sequence,
            "durable": self._durable(model),
            "durable_every": made.get("durable_every", 10),
            "network": made["network"],
            "optimizer": made["optimizer"],
            "seed": made["seed"],
            "parameters": [{"name": name, "shape": shape} for name, shape in model.parameters],
            "dtype": made["network"].get("dtype", "float32"),
            "nbytes": 4 * len(model.state.weights),
            "in_memory": True,
            "created": "2026-01-01T00:00:00+00:00",
            "writer": model.state.writer,
            "durable_error": self._durable_error(),
        }

    def _durable(self, model: Stored) -> int | None:
        return None if self.memory_only else model.durable.sequence

    def _durable_error(self) -> str | None:
        return "No space left on device" if self.full else None

    def _save(self, model: Stored) -> httpx.Response:
        with self._changed:
            self.saves += 1
            if self.full:
                raise Refusal(507, "storage_full", "No space left on device")
            model.put_aside()
            return httpx.Response(200, json={"sequence": model.state.sequence, "durable": self._durable(model)})

    # Calls

    def _forward(self, model: Stored, request: httpx.Request, life: int) -> httpx.Response:
        message = opened(request)
        params = message.params
        inputs = taken(message, "input")
        with self._changed:
            self._wait(model, params.get("after") or 0, 0, request, life)
            outputs = forward(model, inputs)
            answer: dict[str, Any] = {"sequence": model.state.sequence, "durable": self._durable(model)}
            if params.get("context"):
                answer["context"] = handle = uuid.uuid4().hex
                answer["expires_in_s"] = 300.0
                model.contexts[handle] = inputs, model.state.weights
            if params.get("loss") is not None:
                taken(message, "targets")
                answer["metrics"] = {"loss:mean": float(outputs.sum()), "samples:sum": float(len(inputs))}
        wanted = params.get("return", ["outputs"])
        return reply(message, answer, [Tensor.of("outputs", outputs)] if "outputs" in wanted else [])

    def _train(self, id: str, model: Stored, what: str, request: httpx.Request, life: int) -> httpx.Response:
        message = opened(request)
        params = message.params
        number = params["sequence"]
        digest = hashlib.sha256(what.encode() + content(request)).hexdigest()
        check(what, message, model)
        with self._changed:
            replayed = self._turn(model, number, digest, request, life)
            if replayed is not None:
                return replayed
            model.busy = True
        try:
            self.on_work(id, number)  # outside the lock: it may last, and the server may go down meanwhile
            if self._doomed:
                self._doomed = False
                self.crash()
            with self._changed:
                self._require(life)
                state, answer, payload = work(model, what, message)
                self.done.append((id, number, payload))
                due = number % model.made.get("durable_every", 10) == 0 and not self.full
                durable = None if self.memory_only else number if due else model.durable.sequence
                used = answer.pop("used", None)
                tensors = [Tensor.of("gradients", used.astype(np.float32))] if params.get("gradients") else []
                answer |= {"durable": durable, "durable_error": self._durable_error()}
                response = reply(message, answer, tensors)
                answers = {**model.state.answers, number: (digest, response)}
                kept = {key: answers[key] for key in sorted(answers)[-KEPT:]}
                model.state = replace(state, sequence=number, writer=params.get("writer"), answers=kept)
                if due:
                    model.put_aside()
                model.contexts.pop(params.get("context") or "", None)
                return response
        finally:
            with self._changed:
                if life == self._life:
                    model.busy = False
                self._changed.notify_all()

    def _turn(
        self, model: Stored, number: int, digest: str, request: httpx.Request, life: int
    ) -> httpx.Response | None:
        """Wait until a call is the next one; the answer, where it was done before."""
        self._wait(model, number - 1, number, request, life)
        done = model.state.sequence
        if number > done:
            return None
        digest_then, answer = model.state.answers.get(number, ("", None))
        if digest_then and digest_then != digest:
            raise Refusal(
                409,
                "sequence_conflict",
                f"another client trains this model: call {number} of {done} was made by {model.state.writer!r}",
                "/params/sequence",
                str(done + 1),
                str(number),
            )
        if answer is None:
            raise Refusal(410, "answer_expired", f"call {number} was done; its answer is not kept any more")
        answer = copied(answer)
        answer.headers["X-Exodus-Replayed"] = "1"
        return answer

    def _wait(self, model: Stored, before: int, number: int, request: httpx.Request, life: int) -> None:
        """Wait until the call `before` was done, and for a training call, until no other runs."""
        until = time.monotonic() + self.sequence_wait
        deadline = request.headers.get("X-Deadline-Ms")
        ends = math.inf if deadline is None else time.monotonic() + int(deadline) / 1e3
        while True:
            self._require(life)
            done = model.state.sequence
            if done >= before and not (number == done + 1 and model.busy):
                return
            now = time.monotonic()
            if now >= ends:
                raise Refusal(504, "deadline", "the deadline passed")
            if not model.busy and now >= until:
                number = number or before + 1
                detail = f"{done} calls are done and call {done + 1} did not come in time for call {number}"
                raise Refusal(409, "sequence_gap", detail, "/params/sequence", str(done + 1), str(number))
            self._changed.wait(min(ends, until if not model.busy else math.inf, now + 5) - now)
            if model.busy:
                until = time.monotonic() + self.sequence_wait

    def _require(self, life: int) -> None:
        if life != self._life:
            raise httpx.RemoteProtocolError("the server went down")

    # Whole states

    def _get_state(self, id: str, model: Stored) -> httpx.Response:
        with self._changed:
            state = model.state
            tensors: dict[str, Array] = {}
            for prefix, flat in (("weights", state.weights), ("gradients", state.gradients)):
                if flat is not None:
                    tensors |= {f"{prefix}.{name}": part for name, part in parts_of(model, flat.astype(np.float32))}
            tensors["random"] = np.frombuffer(state.history.encode(), np.uint8)
            about = {name: model.made[name] for name in ("network", "optimizer", "seed")}
        metadata = {"exodus": json.dumps(about | {"sequence": state.sequence, "version": 1})}
        return httpx.Response(200, content=safetensors(tensors, metadata), headers={"Content-Type": STATE_TYPE})

    def _put_state(self, id: str, model: Stored, request: httpx.Request) -> httpx.Response:
        if request.headers["Content-Type"] != STATE_TYPE:
            raise Refusal(415, "unsupported", f"expected {STATE_TYPE}, got {request.headers['Content-Type']}")
        tensors, metadata = read_safetensors(request.content)
        about = json.loads(metadata["exodus"])
        if about["network"] != model.made["network"]:
            raise Refusal(409, "state_mismatch", "the network is another", "/network", "that of the model", "another")
        flat = {
            prefix: [tensors[f"{prefix}.{name}"].ravel().astype(float) for name, _ in model.parameters]
            for prefix in ("weights", "gradients")
            if f"{prefix}.{model.parameters[0][0]}" in tensors
        }
        with self._changed:
            gradients = np.concatenate(flat["gradients"]) if "gradients" in flat else None
            history = bytes(tensors["random"]).decode()
            model.state = State(about["sequence"], np.concatenate(flat["weights"]), gradients, history)
            model.durable = model.durable_before = model.state
            model.contexts = {}
            self._changed.notify_all()
            return httpx.Response(200, json=self._info(id))

    # Answers that come later

    def _deferred(self, request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        if self.pending is None or request.method != "POST" or "wait" not in request.headers.get("Prefer", ""):
            return answer
        with self._changed:
            id = uuid.uuid4().hex
            self._results[id] = self.pending, answer
        return later(id)

    def _request(self, method: str, id: str) -> httpx.Response:
        with self._changed:
            if id not in self._results:
                raise Refusal(404, "not_found", f"there is no request {id!r}")
            left, answer = self._results[id]
            if method == "DELETE":
                del self._results[id]
                return httpx.Response(204)
            self._results[id] = left - 1, answer
        return later(id) if left > 0 else answer


def later(id: str) -> httpx.Response:
    """The answer to a request that lasts."""
    headers = {"Location": f"/v1/requests/{id}", "Retry-After": "0"}
    return httpx.Response(202, json={"id": id, "status": "running"}, headers=headers)


def copied(answer: httpx.Response) -> httpx.Response:
    """The same once more: a response is read once."""
    return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)


def content(request: httpx.Request) -> bytes:
    return bytes(decompress(request.content, request.headers.get("Content-Encoding")))


def opened(request: httpx.Request) -> Message:
    return decode(content(request), request.headers["Content-Type"])


def reply(message: Message, params: dict[str, Any], tensors: list[Tensor], status: int = 200) -> httpx.Response:
    encoded = encode(Message.of(params, tensors), message.form)
    headers = {"Content-Type": encoded.content_type, "Server-Timing": "queue;dur=1, kernel;dur=2"}
    return httpx.Response(status, content=b"".join(encoded.chunks), headers=headers)
