"""From start to stop: readiness, drain, signals, memory that runs out, the command line."""

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from service.conftest import Caller, Served
from typer.testing import CliRunner

import exodus_core
from exodus_client.wire import Message
from exodus_service.cli import app as commands
from exodus_service.engine import Phase
from exodus_service.gradients.selftest import SelfTestError
from exodus_service.http.app import create_app
from exodus_service.http.server import Server, tcp_sockets
from exodus_service.settings import Settings

COMMAND = str(Path(sys.executable).with_name("exodus-service"))
LIF = {"model": "lif", "alpha": 0.9}


@contextmanager
def process(
    log: Path, *flags: str, before: Callable[[], Any] | None = None, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The service as a process of its own; yields it and its port."""

    def begin() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
        if before is not None:
            before()

    with open(log, "wb") as stderr:
        service = subprocess.Popen(
            [COMMAND, "serve", "--port", "0", *flags], stderr=stderr, env=os.environ | environment, preexec_fn=begin
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


@pytest.fixture
def call(caller: Caller) -> Iterator[Callable[[int], Caller]]:
    """Calls on a connection of their own: `call(port)` is a caller."""
    made = []

    def to(port: int) -> Caller:
        made.append(type(caller)(port))
        return made[-1]

    yield to
    for one in made:
        one.connection.close()


def test_sigterm_drains_and_lets_a_running_request_finish(
    tmp_path: Path, call: Callable[[int], Caller], good: Message, slow: Message, until: Callable[..., None]
) -> None:
    log = tmp_path / "log"
    with process(log, "--drain-delay-s", "0.5", "--log-format", "json") as (service, port):
        caller = call(port)
        assert caller.call("GET", "/readyz").status == 200
        service.send_signal(signal.SIGTERM)
        until(lambda: caller.call("GET", "/readyz").status == 503)
        answer = caller.call("GET", "/readyz")
        assert answer.problem["code"] == "draining"
        assert "retry-after" in answer.headers
        assert caller.gradients(good).status == 200
        answers = []
        thread = threading.Thread(target=lambda: answers.append(call(port).gradients(slow)))
        thread.start()
        assert service.wait(timeout=20) == 0
        thread.join()
        assert answers[0].status == 200
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    served = [line for line in lines if line["message"] == "POST /v1/gradients/exodus"]
    assert served[-1]["status"] == 200
    assert served[-1]["kernel_ms"] > 100
    assert served[-1]["request_id"] == answers[0].headers["x-request-id"]


def test_what_is_not_done_when_time_is_up_is_answered_and_ends_with_the_process(
    tmp_path: Path, call: Callable[[int], Caller], ask: Callable[..., Message]
) -> None:
    trace = torch.rand(16, 20_000, 64)
    endless = ask({"model": "srm"}, membrane=trace, grad_output=trace, reset_kernel=torch.full((20_000,), -1e-3))
    log = tmp_path / "log"
    with process(log, "--log-format", "json", EXODUS_SHUTDOWN_TIMEOUT_S="1") as (service, port):
        answers = []
        thread = threading.Thread(target=lambda: answers.append(call(port).gradients(endless)))
        thread.start()
        time.sleep(1)
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=10) == 0  # the computation takes 20 s and more
        thread.join()
    assert (answers[0].status, answers[0].problem["code"]) == (503, "draining")
    assert "retry-after" in answers[0].headers
    assert "Traceback" not in log.read_text()
    assert "stopping during a computation" in log.read_text()


def test_memory_that_runs_out_costs_one_request_and_not_the_service(
    tmp_path: Path, call: Callable[[int], Caller], good: Message, ask: Callable[..., Message]
) -> None:
    log = tmp_path / "log"
    large = ask(LIF, membrane=torch.zeros(64, 64, 4096), grad_output=torch.zeros(64, 64, 4096))
    headers = {"Authorization": "Bearer not-for-the-log"}
    with process(log, EXODUS_API_KEYS="not-for-the-log") as (service, port):
        caller = call(port)
        assert caller.gradients(good, headers=headers).status == 200
        used = int(Path(f"/proc/{service.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = used + 150 * 2**20  # room for the body of 128 MiB, and not for the result of 64 MiB
        resource.prlimit(service.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        answer = caller.gradients(large, headers=headers)
        assert answer.status == 507, answer.body
        assert answer.problem["code"] == "out_of_memory"
        assert caller.gradients(good, headers=headers).status == 200
        resource.prlimit(service.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert caller.gradients(large, headers=headers).status == 200
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=20) == 0
    assert "not-for-the-log" not in log.read_text()


def test_nothing_is_ready_before_the_self_test_has_passed() -> None:
    app = create_app(Settings())
    sent = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/readyz",
        "raw_path": b"/readyz",
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "scheme": "http",
    }
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 503
    asyncio.run(app.state.engine.start())
    sent.clear()
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 200
    app.state.engine.close()


@pytest.mark.parametrize("gradient", ["lif_gradient", "cuba_lif_gradient", "alif_gradient", "srm_gradient"])
def test_a_kernel_that_computes_something_else_stops_the_start(monkeypatch: pytest.MonkeyPatch, gradient: Any) -> None:
    right = getattr(exodus_core, gradient)
    monkeypatch.setattr(exodus_core, gradient, lambda *args, **more: type(found := right(*args, **more))(*_off(found)))
    app = create_app(Settings())
    with pytest.raises(SelfTestError, match="exodus on cpu: the gradient is off by"):
        asyncio.run(app.state.engine.start())
    app.state.engine.close()


def _off(gradient: Any) -> Any:
    return [None if part is None else part * 1.01 for part in gradient]


def test_flags_override_the_environment(tmp_path: Path, call: Callable[[int], Caller]) -> None:
    log = tmp_path / "log"
    with process(log, "--max-queue", "5", EXODUS_MAX_QUEUE="7", EXODUS_MAX_QUEUE_BYTES="1000") as (_, port):
        limits = json.loads(call(port).call("GET", "/v1/capabilities").body)["limits"]
    assert (limits["max_queue"], limits["max_queue_bytes"]) == (5, 1000)


def test_the_commands_beside_serve() -> None:
    check = CliRunner().invoke(commands, ["check"])
    assert (check.exit_code, check.stderr) == (0, "")
    assert "agrees with its reference on cpu" in check.stdout
    assert "/v1/gradients/{method}" in json.loads(CliRunner().invoke(commands, ["openapi"]).stdout)["paths"]
    assert "EXODUS_MAX_QUEUE" in CliRunner().invoke(commands, ["settings"]).stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        (["serve"], {"EXODUS_PORT": "many"}, "EXODUS_PORT must be an integer, got 'many'"),
        (["serve", "--max-queue", "0"], {}, "--max-queue must be at least 1, got 0"),
        (["serve"], {"EXODUS_UDS_MODE": "abc"}, "EXODUS_UDS_MODE must be a text that matches ^[0-7]{3}$, got 'abc'"),
        (["serve", "--device", "tpu"], {}, "device must be "),
        (
            ["serve", "--api-keys-file", "/nowhere"],
            {},
            "the API key file /nowhere must be readable, got No such file",
        ),
        (["serve", "--api-keys-file", os.devnull], {}, " must be one API key a line, got none"),
        (["serve", "--api-keys-file", sys.executable], {}, f"{sys.executable} must be UTF-8 text, got "),
        (["serve", "--log-format", "xml"], {}, "--log-format must be 'plain' or 'json', got 'xml'"),
        (["serve"], {"EXODUS_API_KEYS": " , "}, "EXODUS_API_KEYS must be at least one key, or unset"),
        (["serve"], {"EXODUS_API_KEYS": ""}, "EXODUS_API_KEYS must be at least one key, or unset"),
        (["serve"], {"EXODUS_API_KEYS_FILE": ""}, "EXODUS_API_KEYS_FILE must be non-empty, or unset"),
        (["serve"], {"EXODUS_HOST": ""}, "EXODUS_HOST must be non-empty, or unset, got ''"),
        (["serve"], {"EXODUS_STATE_DIR": ""}, "EXODUS_STATE_DIR must be non-empty, or unset"),
        (["serve", "--uds", ""], {}, "--uds must be non-empty, or unset"),
        (["serve", "--uds", " "], {}, "--uds must be non-empty, or unset"),
        *(
            (["serve"], {f"EXODUS_{name}": " \t"}, f"EXODUS_{name} must be non-empty, or unset")
            for name in ("HOST", "UDS", "STATE_DIR", "API_KEYS_FILE")
        ),
        (["serve", "--drain-delay-s", "inf"], {}, "--drain-delay-s must be a finite number, got inf"),
        (["check"], {"EXODUS_DEVICE": "tpu"}, "device must be "),
        (["openapi"], {"EXODUS_DEVICE": "tpu"}, "device must be "),
    ],
)
def test_a_setting_that_cannot_be_is_named_and_nothing_starts(
    arguments: list[str], environment: dict[str, str], complaint: str
) -> None:
    ended = CliRunner(env=environment).invoke(commands, arguments)
    assert ended.exit_code == 2
    assert complaint in ended.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_device_that_is_not_there_is_refused_with_the_reason(command: str) -> None:
    ended = CliRunner().invoke(commands, [command, "--device", "cuda"])
    assert ended.exit_code == 2
    reason = exodus_core.capabilities()["cuda_library"]["reason"] or "PyTorch sees no CUDA device"
    assert ended.stderr == f"exodus-service: device must be one of cpu, got 'cuda': {reason}\n"


def test_an_address_that_cannot_be_had_is_told_in_one_line_before_anything_starts(serve: Callable[..., Served]) -> None:
    taken = serve().port
    ended = subprocess.run([COMMAND, "serve", "--port", str(taken)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"exodus-service: port {taken} must be free on 127.0.0.1, got one that another process listens "
        "on; --port takes another one, --port 0 any that is free\n"
    )


@pytest.mark.parametrize(
    ("host", "complaint"),
    [
        ("nowhere.invalid", "host nowhere.invalid must be an address of this machine, got "),
        ("203.0.113.1", "host 203.0.113.1 must be an address of this machine, got another one"),
    ],
)
def test_a_host_that_is_not_this_one_is_named(monkeypatch: pytest.MonkeyPatch, host: str, complaint: str) -> None:
    monkeypatch.setattr("exodus_service.cli.configure_logging", lambda *_args: None)
    ended = CliRunner(env={"EXODUS_API_KEYS": "k"}).invoke(commands, ["serve", "--host", host, "--port", "0"])
    assert ended.exit_code == 1
    assert complaint in ended.stderr


def test_a_port_that_is_lost_during_the_self_test_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exodus_service.cli.configure_logging", lambda *_args: None)
    with tcp_sockets("127.0.0.1", 0) as (rival,):
        monkeypatch.setattr("exodus_service.engine.self_test", lambda _device: rival.listen())
        port = rival.getsockname()[1]
        ended = CliRunner().invoke(commands, ["serve", "--port", str(port)])
    assert ended.exit_code == 1
    assert f"port {port} must be free on 127.0.0.1" in ended.stderr


def test_every_address_of_a_host_has_the_same_port() -> None:
    with tcp_sockets("localhost", 0) as listeners:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1


def test_a_service_under_nohup_does_not_end_with_its_terminal(tmp_path: Path, call: Callable[[int], Caller]) -> None:
    with process(tmp_path / "log", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as (service, port):
        service.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert call(port).call("GET", "/readyz").status == 200
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=20) == 0


def test_a_service_that_is_told_to_end_while_it_starts_is_never_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(drain_delay_s=60))
    server = Server(app, app.state.engine.settings)
    monkeypatch.setattr("exodus_service.engine.self_test", lambda _device: server.handle_exit(signal.SIGTERM, None))
    asyncio.run(app.state.engine.start())
    assert app.state.engine.phase is Phase.DRAINING
    app.state.engine.close()


def test_a_variable_that_is_no_setting_is_named_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("exodus_service.cli.configure_logging", lambda *_args: None)
    monkeypatch.setattr("exodus_service.http.server.Server.run", lambda _self: None)
    strange = {"EXODUS_MAX_QUEU": "3", "EXODUS_COLOUR": "red"}
    ours = (
        "API_KEY",
        "DATA",
        "KEEP_MEMORY",
        "CUDA_BACKWARD",
        "INSTRUCTION_SET",
        "SPARSE",
        "EMULATE",
        "EMULATE_ORDER",
        "PORT",
    )
    environment = strange | {f"EXODUS_{name}": "0" for name in ours}
    assert CliRunner(env=environment).invoke(commands, ["serve"]).exit_code == 0
    said = [record.getMessage() for record in caplog.records if "unknown setting" in record.getMessage()]
    assert sorted(said) == [
        "unknown setting EXODUS_COLOUR ignored",
        "unknown setting EXODUS_MAX_QUEU ignored; did you mean EXODUS_MAX_QUEUE?",
    ]


def test_a_start_that_fails_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    ended = subprocess.run(
        [COMMAND, "serve", "--port", "0", "--state-dir", str(tmp_path / "file"), "--log-level", "error"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(
        f"exodus-service: state_dir must be a folder that can be written to, got {tmp_path / 'file'}"
    )


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError, match="max_quue"):
        Settings(max_quue=3)  # type: ignore[call-arg]
    keys: dict[str, Any] = {"api_keys": " a ,secret,"}  # as in the environment
    assert [key.get_secret_value() for key in Settings(**keys).api_keys] == ["a", "secret"]
    assert "secret" not in repr(Settings(**keys))


@pytest.mark.parametrize(
    ("host", "keys", "warned"), [("0.0.0.0", None, True), ("0.0.0.0", "k", False), ("", None, False)]
)
def test_a_service_that_is_open_to_the_network_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, host: str, keys: Any, warned: bool
) -> None:
    monkeypatch.setattr("exodus_service.cli.configure_logging", lambda *_args: None)
    monkeypatch.setattr("exodus_service.http.server.Server.run", lambda _self: None)
    host_flag = ["--host", host] if host else []
    assert CliRunner(env={"EXODUS_API_KEYS": keys}).invoke(commands, ["serve", *host_flag]).exit_code == 0
    assert ("no API keys: everyone who can reach 0.0.0.0 may use the service" in caplog.text) == warned


def test_ctrl_c_ends_with_the_status_that_shells_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("exodus_service.cli.configure_logging", lambda *_args: None)
    monkeypatch.setattr("exodus_service.http.server.Server.run", interrupted)
    assert CliRunner().invoke(commands, ["serve"]).exit_code == 130
