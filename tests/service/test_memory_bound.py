"""Memory of unpacked requests stays within EXODUS_MAX_QUEUE_BYTES, whichever way they come and wait."""

import asyncio
import gc
import http.client
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from remote_models import ADAM, LOSS, NETWORK, Remote
from service.conftest import Served

from exodus_client.wire import Limits, Message, Tensor, encode
from exodus_service.call import Call
from exodus_service.compute.scheduler import Scheduler
from exodus_service.context import Timings

MIB = 2**20
BODY, QUEUE = 64 * MIB, 160 * MIB
#: One request that is being computed, what others unpack at the moment, and what Python and PyTorch need for it.
SLACK = BODY + 96 * MIB
CLIENTS = 10
ELEMENTS = BODY - 4096
COMMAND = str(Path(sys.executable).with_name("exodus-service"))
MSGPACK = "application/vnd.msgpack"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A service as a process of its own, with a model: its process, and its port."""
    log = tmp_path_factory.mktemp("service") / "log"
    bounds = {"MAX_BODY_BYTES": BODY, "MAX_QUEUE_BYTES": QUEUE, "KEEP_MEMORY": 0}
    settings = {**bounds, "SEQUENCE_WAIT_S": 1, "STATE_DIR": log.parent / "s"}
    environment = os.environ | {f"EXODUS_{name}": str(value) for name, value in settings.items()}
    with log.open("wb") as stderr:
        process = subprocess.Popen([COMMAND, "serve", "--port", "0"], stderr=stderr, env=environment)
    try:
        for _ in range(1500):
            found = re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())
            if found or process.poll() is not None:
                break
            time.sleep(0.02)
        assert found, log.read_text()
        port = int(found[1])
        remote = Remote(port)
        assert remote.create().status == 201
        assert remote.step(1).status == 200
        remote.connection.close()
        yield process, port
    finally:
        process.kill()
        process.wait()


def memory(process: subprocess.Popen[bytes], kind: str) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(rf"{kind}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def forget_peak(process: Any) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def packed(body: Any) -> Any:
    return zstandard.ZstdCompressor().compress(body)


def message(params: dict[str, Any], tensors: Any, form: Any = "stream") -> bytes:
    return b"".join(encode(Message.of(params, tensors), form).chunks)


def zeros(name: str, form: Any = "stream", dtype: Any = np.uint8, **params: Any) -> Any:
    return packed(message(params, [Tensor.of(name, np.zeros(ELEMENTS // dtype().itemsize, dtype))], form))


SPIKES = (1, ELEMENTS // 6, 6)  # what the network takes


def events(name: str, *others: Any, **params: Any) -> Any:
    return message(params, [Tensor(name, "bool", SPIKES, "events", memoryview(bytes(12))), *others])


def bits(name: str, *others: Any, **params: Any) -> Any:
    payload = memoryview(bytes(-(-SPIKES[1] * 6 // 8)))
    return packed(message(params, [Tensor(name, "bool", SPIKES, "bits", payload), *others]))


def nested_json(**params: Any) -> Any:
    """A list of lists of lists, which is more than thirty times its text in memory."""
    data = ",".join(["[[]]"] * (MIB // 6))
    tensor = f'{{"name": "input", "dtype": "int8", "shape": [{MIB // 6}, 1, 0], "data": [{data}]}}'
    return f'{{"v": 1, "params": {json.dumps(params)}, "tensors": [{tensor}]}}'.encode()


STEP, FORWARD = "/v1/models/m/step", "/v1/models/m/forward"
GAP = {"sequence": 5, "loss": LOSS}
TARGETS = Tensor.of("targets", np.zeros(1, np.int64))
NEXT = {"sequence": 2, "loss": LOSS}
NEURON = {"neuron": {"model": "lif", "alpha": 0.9}, "return": ["spikes"]}
STATE = packed(bytes(400 * MIB))

ATTACKS = {
    "a call in a gap": ("POST", STEP, zeros("input", **GAP)),
    "a call in a gap, inline": ("POST", STEP, zeros("input", "inline", **GAP)),
    "a call in a gap, of events": ("POST", STEP, events("input", TARGETS, **GAP)),
    "a call in a gap, of bits": ("POST", STEP, bits("input", TARGETS, **GAP)),
    "a call in a gap, in JSON": ("POST", STEP, nested_json(**GAP)),
    "the next call": ("POST", STEP, zeros("input", **NEXT)),
    "the next call, inline": ("POST", STEP, zeros("input", "inline", **NEXT)),
    "the next call, of events": ("POST", STEP, events("input", **NEXT)),
    "the next call, of bits": ("POST", STEP, bits("input", **NEXT)),
    "a call in a gap that adds gradients": ("POST", "/v1/models/m/forward_backward", zeros("input", **GAP)),
    "a call in a gap that takes gradients": (
        "POST",
        "/v1/models/m/optim_step",
        zeros("gradients", dtype=np.float32, sequence=5),
    ),
    "a forward call that waits": ("POST", FORWARD, zeros("input", after=5)),
    "a forward call that waits, of bits": ("POST", FORWARD, bits("input", after=5)),
    "weights of a new model": (
        "POST",
        "/v1/models",
        zeros("weights", dtype=np.float32, network=NETWORK, optimizer=ADAM),
    ),
    "a state": ("PUT", "/v1/models/m/state", STATE),
    "gradients": ("POST", "/v1/gradients/exodus", zeros("membrane", dtype=np.float32, **NEURON)),
    "gradients of bits": ("POST", "/v1/gradients/exodus", bits("spikes", **NEURON)),
    "gradients of events": ("POST", "/v1/gradients/exodus", events("spikes", **NEURON)),
    "a layer": ("POST", "/v1/layers/forward", bits("spikes", **NEURON)),
}


def send(port: int, verb: str, path: str, body: Any) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    kind = "application/vnd.safetensors" if verb == "PUT" else "application/json" if body[:1] == b"{" else MSGPACK
    coding = {"Content-Encoding": "zstd"} if body[:4] == b"\x28\xb5\x2f\xfd" else {}
    connection.request(verb, path, body, {"Content-Type": kind, **coding})
    answer = connection.getresponse()
    status = answer.status, json.loads(answer.read())["code"]
    connection.close()
    return status


@pytest.mark.parametrize("attack", ATTACKS)
def test_ten_small_requests_take_no_more_than_the_bound(
    service: tuple[subprocess.Popen[bytes], int], attack: Any
) -> None:
    process, port = service
    forget_peak(process)
    before = memory(process, "VmRSS")
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda _: send(port, *ATTACKS[attack]), range(CLIENTS)))
    grown = memory(process, "VmHWM") - before
    assert grown < QUEUE + SLACK, f"{grown / MIB:.0f} MiB"
    assert {status for status, _ in answers} <= {400, 409, 413, 422, 429}, answers


def test_calls_in_a_gap_wait_as_they_came(service: tuple[subprocess.Popen[bytes], int]) -> None:
    process, port = service
    forget_peak(process)
    before = memory(process, "VmRSS")
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda _: send(port, *ATTACKS["a call in a gap"]), range(CLIENTS)))
    assert answers == [(409, "sequence_gap")] * CLIENTS
    assert memory(process, "VmHWM") - before < BODY / 2
    remote = Remote(port)
    assert remote.step(2).status == 200
    remote.connection.close()


def raw(verb: str, path: str, body: Any) -> Any:
    kind = "application/vnd.safetensors" if verb == "PUT" else MSGPACK
    return f"{verb} {path} HTTP/1.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


#: Not of a size that is decoded on the event loop.
INPUT = Tensor.of("input", np.zeros((1, 10_000, 6), np.int8))


@pytest.mark.parametrize(
    ("unpacking", "request_"),
    {
        "operations.model_lifecycle._unpack_state": ("PUT", "/v1/models/m/state", bytes(100)),
        "models.store.import_state": ("PUT", "/v1/models/m/state", bytes(100)),
        "operations.model_lifecycle._prepare": (
            "POST",
            "/v1/models",
            message({"network": NETWORK, "optimizer": ADAM}, []),
        ),
        "operations.forward.ForwardCall.prepare": ("POST", FORWARD, message({}, [INPUT])),
        "operations.train.TrainingCall.prepare": ("POST", STEP, message({"sequence": 1, "loss": LOSS}, [INPUT])),
    }.items(),
)
def test_a_client_that_leaves_is_counted_until_its_body_is_unpacked(
    serve: Callable[..., Served],
    connect: Callable[..., Remote],
    until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    unpacking: Any,
    request_: Any,
) -> None:
    caplog.set_level("INFO")
    service = serve()
    connect(service.port).create()
    began, finish = threading.Event(), threading.Event()

    def unpack(*_arguments: Any) -> None:
        began.set()
        finish.wait(30)

    monkeypatch.setattr(f"exodus_service.{unpacking}", unpack)
    scheduler, sent = service.engine.scheduler, raw(*request_)
    until(lambda: "POST /v1/models" in caplog.text)
    caplog.clear()
    with service.raw() as leaving:
        leaving.sendall(sent)
        assert began.wait(10)
        counted = scheduler.bytes
    until(lambda: request_[1] in caplog.text)
    assert (scheduler.requests, scheduler.bytes) == (1, counted)
    finish.set()
    until(lambda: scheduler.requests == scheduler.bytes == 0)


def test_what_waits_to_be_unpacked_is_let_go_of_when_its_client_leaves() -> None:
    scheduler = Scheduler("test", max_requests=2, max_bytes=100)
    finish = threading.Event()
    done: list[Any] = []

    async def leave() -> Any:
        with ThreadPoolExecutor(1) as helper:
            helper.submit(finish.wait, 30)
            slot = scheduler.admit(5)
            call = Call("", "", None, math.inf, slot, Timings(), torch.device("cpu"), Limits())
            body = np.zeros(5, np.uint8)
            freed = weakref.ref(body)
            waiting = asyncio.create_task(call.aside(partial(done.append, body), helper))
            del body
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait((waiting,))
            slot.leave()
            await asyncio.sleep(0)
            del waiting
            gc.collect()  # of what the traceback holds
            left = freed() is None, scheduler.requests, scheduler.bytes
            finish.set()
        return left

    assert asyncio.run(leave()) == (True, 0, 0)
    assert done == []
    scheduler.close()
