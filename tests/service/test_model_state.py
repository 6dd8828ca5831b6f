"""Model states over HTTP: download, upload, durable saves, shutdown and restart."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from remote_models import ADAM, NETWORK, Remote, Response, batch, local, same_state, trained
from service.conftest import Served

from exodus_core import losses
from exodus_service.models.storage.state_dir import StateDir
from exodus_service.models.storage.state_file import MAX_HEADER_BYTES

COMMAND = str(Path(sys.executable).with_name("exodus-service"))
STATE = "/v1/models/m/state"
TYPE = {"Content-Type": "application/vnd.safetensors"}


@pytest.fixture
def service(serve: Callable[..., Served], tmp_path: Path) -> Served:
    return serve(state_dir=tmp_path / "state")


@pytest.fixture
def remote(service: Served, connect: Callable[..., Remote]) -> Remote:
    remote = connect(service.port)
    remote.create()
    return remote


@contextmanager
def process(log: Path, state: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The service as a process of its own that keeps models in a folder; yields it and its port."""
    settings = {"EXODUS_STATE_DIR": str(state), "EXODUS_SEQUENCE_WAIT_S": "0.2", **environment}
    with open(log, "wb") as stderr:
        service = subprocess.Popen(
            [COMMAND, "serve", "--port", "0"],
            stderr=stderr,
            env=os.environ | settings,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where the tests run under nohup
        )
    try:
        for _ in range(1500):
            found = re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())
            if found or service.poll() is not None:
                break
            time.sleep(0.02)
        assert found, log.read_text()
        yield service, int(found[1])
    finally:
        service.kill()
        service.wait()


def test_a_state_is_the_whole_training_as_one_file(remote: Remote) -> None:
    for number in (1, 2):
        remote.step(number)
    answer = remote.call("GET", STATE)
    assert answer.headers["content-type"] == "application/vnd.safetensors"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert same_state(safetensors.torch.load(answer.body), trained(2).state())
    length = int.from_bytes(answer.body[:8], "little")
    about = json.loads(json.loads(answer.body[8 : 8 + length])["__metadata__"]["exodus"])
    assert about.keys() == {"network", "optimizer", "seed", "sequence", "version"}
    assert (about["sequence"], about["seed"], about["optimizer"]["kind"]) == (2, 0, "adam")


def test_an_uploaded_state_trains_on_as_the_original_did(remote: Remote) -> None:
    for number in (1, 2):
        remote.step(number)
    saved = remote.call("GET", STATE).body
    for number in (3, 4, 5):
        remote.step(number)
    later = remote.state()
    context = remote.post("/v1/models/m/forward", {"context": True}, input=batch(1)[0]).params["context"]
    answer = remote.call("PUT", STATE, saved, TYPE)
    assert (answer.status, answer.json["sequence"], answer.json["durable"]) == (200, 2, 2)
    again = remote.step(2)
    assert (again.status, again.json["code"]) == (410, "answer_expired")
    gone = remote.post("/v1/models/m/step", {"sequence": 3, "context": context}, grad_output=torch.ones(4, 10, 3))
    assert (gone.status, gone.json["code"]) == (410, "context_expired")
    for number in (3, 4, 5):
        assert not remote.step(number).replayed
    assert same_state(remote.state(), later)


def test_a_compressed_state_is_accepted(remote: Remote) -> None:
    import zstandard

    remote.step(1)
    saved = remote.call("GET", STATE).body
    headers = {**TYPE, "Content-Encoding": "zstd"}
    assert remote.call("PUT", STATE, zstandard.compress(saved), headers).json["sequence"] == 1


def test_a_state_of_another_model_is_refused_and_named(remote: Remote) -> None:
    remote.step(1)
    before = remote.state()
    wide = {**NETWORK, "layers": [{**NETWORK["layers"][0], "out_features": 9}, *NETWORK["layers"][1:]]}
    remote.post("/v1/models", {"id": "wide", "network": wide, "optimizer": ADAM})
    remote.post("/v1/models", {"id": "sgd", "network": NETWORK, "optimizer": {"kind": "sgd"}})
    for id, pointer in (("wide", "/network/layers/0/out_features"), ("sgd", "/optimizer/kind")):
        body = remote.call("GET", f"/v1/models/{id}/state").body
        answer = remote.call("PUT", STATE, body, TYPE)
        assert (answer.status, answer.json["code"], answer.json["retryable"]) == (409, "state_mismatch", False)
        assert answer.json["errors"][0]["pointer"] == pointer
    for body, headers, status, code in [
        (b"", TYPE, 400, "malformed"),
        (b"\xff" * 100, TYPE, 400, "malformed"),
        (remote.call("GET", STATE).body[:-1], TYPE, 400, "malformed"),
        (safetensors.torch.save({"a": torch.zeros(1)}), TYPE, 400, "malformed"),
        (b"x", {"Content-Type": "application/json"}, 415, "unsupported"),
    ]:
        answer = remote.call("PUT", STATE, body, headers)
        assert (answer.status, answer.json["code"]) == (status, code), answer.body
    assert same_state(remote.state(), before)
    assert remote.step(2).status == 200


def test_responses_carry_the_durable_number(remote: Remote, until: Callable[..., None]) -> None:
    remote.create("often", durable_every=1)
    for number in range(1, 6):
        answer = remote.step(number, "often")
        assert answer.params["durable"] <= number
        until(lambda number=number: remote.info("often")["durable"] == number)
    assert remote.step(1).params["durable"] == 0
    assert remote.call("POST", "/v1/models/m/save").json == {"sequence": 1, "durable": 1}
    assert remote.step(2).params["durable"] == 1


def test_a_save_waits_for_the_call_that_runs(remote: Remote, service: Served, until: Callable[..., None]) -> None:
    with service.busy():
        remote.step(1, headers={"Prefer": "wait=0"})
        until(lambda: service.engine.scheduler.waiting)
        saving = remote.call("POST", "/v1/models/m/save", headers={"Prefer": "wait=0"})
        assert remote.call("GET", saving.headers["location"]).status == 202
    found = remote.call("GET", saving.headers["location"], headers={"Prefer": "wait=30"})
    assert found.json == {"sequence": 1, "durable": 1}


def test_a_full_disk_is_reported_in_responses_and_training_continues(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_more: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        for number in range(1, 12):
            answer = remote.step(number)
            assert answer.status == 200
        saving = remote.call("POST", "/v1/models/m/save")
        assert (saving.status, saving.json["code"], saving.json["retryable"]) == (507, "storage_full", False)
        answer = remote.step(12)
        assert answer.params["durable"] == 0
        assert "No space left" in answer.params["durable_error"]
    assert remote.call("POST", "/v1/models/m/save").json == {"sequence": 12, "durable": 12}
    assert remote.step(13).params["durable_error"] is None


@pytest.mark.slow
def test_sigterm_saves_models_and_a_restart_continues(tmp_path: Path, connect: Callable[..., Remote]) -> None:
    done: list[int] = []
    stop = threading.Event()
    with process(tmp_path / "log1", tmp_path / "state") as (service, port):
        remote = connect(port)
        remote.create(durable_every=1000)

        def train() -> None:
            for number in range(1, 10_000):
                try:
                    if remote.step(number).status != 200 or stop.is_set():
                        return
                except OSError:
                    return
                done.append(number)

        thread = threading.Thread(target=train)
        thread.start()
        while len(done) < 20:
            time.sleep(0.005)
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=30) == 0
        thread.join(timeout=30)
        assert not thread.is_alive()
    with process(tmp_path / "log2", tmp_path / "state") as (_, port):
        remote = connect(port)
        info = remote.info()
        # Every call that was answered, and at most the one whose answer did not arrive.
        assert len(done) <= info["sequence"] <= len(done) + 1
        assert info["durable"] == info["sequence"]
        last = remote.step(info["sequence"])
        assert (last.status, last.replayed) == (200, True)
        for number in (info["sequence"] + 1, info["sequence"] + 2):
            assert remote.step(number).status == 200
        assert same_state(remote.state(), trained(info["sequence"] + 2).state())


@pytest.mark.parametrize(
    ("signals", "status"),
    [
        ([signal.SIGHUP], 0),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGTERM], 0),
        ([signal.SIGINT, signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGINT, signal.SIGTERM], 0),
    ],
    ids=lambda given: "-".join(one.name for one in given) if isinstance(given, list) else "",
)
def test_the_service_saves_models_before_it_ends_for_every_signal(
    tmp_path: Path, connect: Callable[..., Remote], signals: list[signal.Signals], status: int
) -> None:
    delay = "60" if len(signals) > 1 else "0"
    with process(tmp_path / "log", tmp_path / "state", EXODUS_DRAIN_DELAY_S=delay) as (service, port):
        remote = connect(port)
        remote.create(durable_every=1000)
        for number in (1, 2, 3):
            assert remote.step(number).status == 200
        for number in signals:
            service.send_signal(number)
            time.sleep(0.05)
        assert service.wait(timeout=30) == status
    saved = StateDir(tmp_path / "state", 1 << 40)
    newest = saved.newest("", "m")
    saved.close()
    assert newest is not None
    assert newest.sequence == 3


def test_a_second_ctrl_c_does_not_wait_for_what_runs_and_a_signal_never_for_less_than_the_saving(
    tmp_path: Path, connect: Callable[..., Remote]
) -> None:
    """A call that waits for one before it is running for as long as its sender wants."""
    settings = {"EXODUS_SEQUENCE_WAIT_S": "60", "EXODUS_SHUTDOWN_TIMEOUT_S": "60"}
    with process(tmp_path / "log", tmp_path / "state", **settings) as (service, port):
        remote, waiting = connect(port), connect(port)
        remote.create(durable_every=1000)
        assert remote.step(1).status == 200
        answers: list[Response] = []
        thread = threading.Thread(target=lambda: answers.append(waiting.step(3)))
        thread.start()
        time.sleep(0.3)
        service.send_signal(signal.SIGINT)
        time.sleep(1)
        assert service.poll() is None
        service.send_signal(signal.SIGINT)
        assert service.wait(timeout=30) == 130
        thread.join()
    assert answers[0].status == 503
    saved = StateDir(tmp_path / "state", 1 << 40)
    newest = saved.newest("", "m")
    saved.close()
    assert newest is not None
    assert newest.sequence == 1


@pytest.mark.slow
def test_training_continues_from_the_durable_state_after_a_kill(
    tmp_path: Path, connect: Callable[..., Remote], until: Callable[..., None]
) -> None:
    with process(tmp_path / "log1", tmp_path / "state") as (service, port):
        remote = connect(port)
        remote.create(durable_every=5)
        for number in range(1, 14):
            remote.step(number)
        until(lambda: remote.info()["durable"] >= 5)
        durable = remote.info()["durable"]
        service.kill()
        service.wait()
    with process(tmp_path / "log2", tmp_path / "state") as (_, port):
        remote = connect(port)
        info = remote.info()
        assert info["sequence"] == info["durable"] >= durable >= 5
        gap = remote.step(14)
        assert (gap.status, gap.json["code"]) == (409, "sequence_gap")
        first = int(gap.json["errors"][0]["expected"])
        assert first == info["sequence"] + 1
        for number in range(first, 16):
            assert remote.step(number).status == 200
        assert same_state(remote.state(), trained(15).state())


@pytest.mark.slow
def test_two_services_do_not_share_a_folder(tmp_path: Path) -> None:
    with process(tmp_path / "log", tmp_path / "state"):
        second = subprocess.run(
            [COMMAND, "serve", "--port", "0"],
            env=os.environ | {"EXODUS_STATE_DIR": str(tmp_path / "state")},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith("exodus-service: ")
    assert str(tmp_path / "state") in second.stderr.splitlines()[-1]


def test_the_self_test_command_does_not_open_the_state_folder(service: Served, tmp_path: Path) -> None:
    checked = subprocess.run(
        [COMMAND, "check"],
        env=os.environ | {"EXODUS_STATE_DIR": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stderr


def test_accumulated_gradients_are_part_of_the_state(remote: Remote) -> None:
    spikes, targets = batch(1)
    loss = {"sequence": 1, "loss": "max_over_time_ce"}
    remote.post("/v1/models/m/forward_backward", loss, input=spikes, targets=targets)
    saved = remote.call("GET", STATE).body
    remote.post("/v1/models/m/optim_step", {"sequence": 2})
    remote.call("PUT", STATE, saved, TYPE)
    remote.post("/v1/models/m/optim_step", {"sequence": 2})
    trainer = local()
    trainer.forward_backward(spikes, targets, losses.parse("max_over_time_ce"))
    trainer.optim_step()
    assert same_state(remote.state(), trainer.state())


@pytest.mark.parametrize("change", ["a weight is missing", "there is one more"])
def test_a_state_without_exactly_the_weights_of_the_network_is_refused(remote: Remote, change: str) -> None:
    remote.step(1)
    before = remote.call("GET", STATE).body
    (length,) = struct.unpack_from("<Q", before)
    about = json.loads(before[8 : 8 + length])["__metadata__"]
    tensors = safetensors.torch.load(before)
    if change == "a weight is missing":
        del tensors["weights.0.bias"]
    else:
        tensors["weights.9.bias"] = torch.zeros(2)
    answer = remote.call("PUT", STATE, safetensors.torch.save(tensors, about), TYPE)
    assert (answer.status, answer.json["code"]) == (409, "state_mismatch")
    assert ("weights.0.bias" if "missing" in change else "weights.9.bias") in answer.json["detail"]
    assert remote.call("GET", STATE).body == before


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_state_with_an_invalid_step_count_is_refused(remote: Remote, value: float) -> None:
    remote.step(1)
    before = remote.call("GET", STATE).body
    (length,) = struct.unpack_from("<Q", before)
    about = json.loads(before[8 : 8 + length])["__metadata__"]
    tensors = {
        name: torch.full_like(tensor, value) if name.endswith(".step") else tensor
        for name, tensor in safetensors.torch.load(before).items()
    }
    answer = remote.call("PUT", STATE, safetensors.torch.save(tensors, about), TYPE)
    assert (answer.status, answer.json["code"]) == (409, "state_mismatch")
    assert ".step must be a number of steps" in answer.json["detail"]
    assert remote.step(2).status == 200


@pytest.mark.parametrize("part", ["network", "optimizer"])
def test_a_saved_model_of_another_version_does_not_hide_the_others(
    serve: Callable[..., Served], connect: Callable[..., Remote], tmp_path: Path, part: str
) -> None:
    from exodus_service.models.storage.checkpoint import Folder, Snapshot

    state = tmp_path / "state"
    service = serve(state_dir=state)
    remote = connect(service.port)
    remote.create("good")
    remote.create("strange")
    folder = Folder(state / "models" / "strange")
    header = folder.manifests()[0].header
    strange: dict[str, Any] = {
        "network": {**header.network, "layers": [{"kind": "of_another_version"}]},
        "optimizer": {"kind": "of_another_version"},
    }
    folder.write(Snapshot(replace(header, **{part: strange[part]}), 1, None, {}))
    other = connect(serve(state_dir=shutil.copytree(state, tmp_path / "copy")).port)
    answer = other.call("GET", "/v1/models")
    assert answer.status == 200, answer.body
    assert [model["id"] for model in answer.json["models"]] == ["good"]
    for answer in (other.call("GET", "/v1/models/strange"), other.step(1, "strange")):
        assert (answer.status, answer.json["code"]) == (500, "internal_error")
        assert "of_another_version" in answer.json["detail"]
    assert other.call("DELETE", "/v1/models/strange").status == 204


def test_downloads_beyond_the_bytes_of_the_queue_are_refused(
    serve: Callable[..., Served], connect: Callable[..., Remote], until: Callable[..., None]
) -> None:
    service = serve(max_queue_bytes=5_000_000)
    remote = connect(service.port)
    network = {"input_shape": [700], "layers": [{"kind": "linear", "out_features": 700}]}
    assert remote.post("/v1/models", {"id": "m", "network": network, "optimizer": {"kind": "sgd"}}).status == 201
    answers: list[Response] = []
    with service.busy():
        callers = [connect(service.port) for _ in range(4)]
        threads = [
            threading.Thread(target=lambda caller=caller: answers.append(caller.call("GET", STATE)))
            for caller in callers
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(answers) >= 3 or service.engine.scheduler.requests == 4)
        until(lambda: len(answers) >= 3, 3)
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in answers) == [200, 429, 429, 429]
    until(lambda: service.engine.scheduler.requests == 0)
    assert service.engine.scheduler.bytes == 0


@pytest.mark.parametrize("coding", [None, "zstd"])
def test_a_body_larger_than_any_state_of_the_model_is_refused_before_it_is_read(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, coding: str | None
) -> None:
    import zstandard

    def read(*_arguments: Any) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr("exodus_service.models.state_transfer.decode_state", read)
    body = safetensors.torch.save({"a": torch.zeros(2**19)})
    headers = TYPE if coding is None else {**TYPE, "Content-Encoding": coding}
    answer = remote.call("PUT", STATE, body if coding is None else zstandard.compress(body), headers)
    assert (answer.status, answer.json["code"]) == (413, "too_large")


def test_the_header_of_a_state_is_bounded_before_it_is_read(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.step(1)
    saved = remote.call("GET", STATE).body
    (length,) = struct.unpack_from("<Q", saved)
    monkeypatch.setattr("exodus_service.models.storage.state_file.MAX_HEADER_BYTES", length)
    assert remote.call("PUT", STATE, saved, TYPE).status == 200
    monkeypatch.setattr("exodus_service.models.storage.state_file.MAX_HEADER_BYTES", length - 1)
    answer = remote.call("PUT", STATE, saved, TYPE)
    assert (answer.status, answer.json["code"]) == (400, "malformed")
    assert f"the header must have at most {length - 1} bytes, got {length}" in answer.json["detail"]


def test_the_state_of_the_longest_description_is_accepted(remote: Remote) -> None:
    layers = [{"kind": "batch_norm", "name": f"{number:032}"} for number in range(400)]
    network = {"input_shape": [1], "layers": layers}
    amsgrad = {"kind": "adam", "amsgrad": True}
    assert remote.post("/v1/models", {"id": "m", "network": network, "optimizer": ADAM}).status == 413
    while remote.post("/v1/models", {"id": "long", "network": network, "optimizer": amsgrad}).status == 413:
        del layers[-10:]
    spikes, target = torch.ones(2, 3, 1), torch.ones(2, 3, 1)
    params = {"sequence": 1}
    answer = remote.post("/v1/models/long/forward_backward", params, input=spikes, grad_output=target)
    assert answer.status == 200, answer.body
    assert remote.post("/v1/models/long/optim_step", {"sequence": 2}).status == 200
    saved = remote.call("GET", "/v1/models/long/state").body
    assert len(layers) > 200
    assert 8 * struct.unpack_from("<Q", saved)[0] > MAX_HEADER_BYTES
    assert remote.call("PUT", "/v1/models/long/state", saved, TYPE).status == 200
