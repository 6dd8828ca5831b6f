"""The service on a Unix socket: who may use it, and what becomes of the file."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from service.conftest import Served
from typer.testing import CliRunner

from exodus_client import LIF, APIConnectionError, APITimeoutError, Client, Retries, Timeout
from exodus_client.cli import main as exodus
from exodus_client.torch import RemoteLIF
from exodus_core import nn
from exodus_service.cli import app as commands
from exodus_service.http.unix_socket import SocketPathError, unix_socket

COMMAND = str(Path(sys.executable).with_name("exodus-service"))
U = np.random.default_rng(0).standard_normal((2, 20, 5), np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def test_only_its_owner_may_use_the_socket_and_it_is_gone_in_the_end(serve: Callable[..., Served], path: Path) -> None:
    with unix_socket(path, 0o600) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert listener.getsockname() == str(path)
    assert not path.exists()
    with unix_socket(path, 0o660):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_nobody_gets_in_before_the_permissions_are_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chmod(there: Any, mode: int) -> None:
        with socket.socket(socket.AF_UNIX) as early, pytest.raises(ConnectionRefusedError):
            early.connect(str(there))

    monkeypatch.setattr("exodus_service.http.unix_socket.os.chmod", chmod)
    with unix_socket(path, 0o600), socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))


def test_what_a_dead_server_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    with unix_socket(path, 0o600), socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))


def test_a_live_server_keeps_its_socket(path: Path) -> None:
    with unix_socket(path, 0o600):
        inode = path.stat().st_ino
        with (
            pytest.raises(SocketPathError, match=f"^uds {path} must be free, got one that another server listens on$"),
            unix_socket(path, 0o600),
        ):
            pass
        assert path.stat().st_ino == inode


def test_a_server_whose_backlog_is_full_is_alive(path: Path) -> None:
    with unix_socket(path, 0o600, backlog=0):
        callers = []
        for _ in range(2):
            caller = socket.socket(socket.AF_UNIX)
            caller.setblocking(False)
            callers.append(caller)
            try:
                caller.connect(str(path))
            except BlockingIOError:
                break
        with pytest.raises(SocketPathError, match="got one that another server listens on"), unix_socket(path, 0o600):
            pass
        for caller in callers:
            caller.close()


def test_other_files_are_left_alone(path: Path) -> None:
    path.write_text("precious")
    with (
        pytest.raises(SocketPathError, match="must be a socket or absent, got another kind of file"),
        unix_socket(path, 0o600),
    ):
        pass
    assert path.read_text() == "precious"


def test_the_socket_of_a_successor_is_left_alone(path: Path) -> None:
    with unix_socket(path, 0o600):
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    assert path.exists()
    successor.close()


@pytest.mark.parametrize("wrong", ["/nowhere/socket", "/tmp/" + "x" * 200])
def test_a_path_that_cannot_be_is_named_and_nothing_starts(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exodus_service.cli.configure_logging", lambda *_args: None)
    ended = CliRunner().invoke(commands, ["serve", "--uds", wrong])
    assert ended.exit_code == 1
    assert f"uds {wrong} must be " in ended.stderr


def test_a_socket_in_use_stops_the_command(serve: Callable[..., Served], path: Path) -> None:
    serve(uds=path)
    ended = subprocess.run([COMMAND, "serve", "--uds", str(path)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "got one that another server listens on" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def open_files(pid: int) -> Any:
    """Files that a process has open; a connection may close while we look."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(entry))
    return found


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_serves_there_and_nowhere_else(path: Path, end: Any) -> None:
    for _ in range(2):  # the second time over what the first left
        with subprocess.Popen([COMMAND, "serve", "--uds", str(path)], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert any(f"running on unix socket {path}" in line for line in process.stderr)
            with Client(f"unix:{path}") as client:
                assert client.ping().ready
            table = Path(f"/proc/{process.pid}/net/tcp").read_text()
            sockets = open_files(process.pid)
            process.send_signal(end)
            process.wait(timeout=20)
        assert not any(f"socket:[{line.split()[9]}]" in sockets for line in table.splitlines()[1:])
        assert path.exists() == (end == signal.SIGKILL)


def test_gradients_and_the_command_line_work_through_it(
    serve: Callable[..., Served],
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve(uds=path)
    with Client(f"unix:{path}") as client:
        result = client.gradients(neuron=LIF(0.9), membrane=U, grad_output=U)
    np.save(tmp_path / "u.npy", U)
    arguments = ["gradient", "--url", f"unix:{path}", "--alpha", "0.9", "--out", str(tmp_path / "g.npy")]
    files = ["--membrane", str(tmp_path / "u.npy"), "--grad-output", str(tmp_path / "u.npy")]
    monkeypatch.setattr(sys, "argv", ["exodus", *arguments, *files])
    with pytest.raises(SystemExit) as ended:
        exodus()
    assert ended.value.code in (0, None)
    np.testing.assert_array_equal(np.load(tmp_path / "g.npy"), result.grad_input)
    assert "grad_input ->" in capsys.readouterr().out


def test_a_remote_layer_trains_through_it(serve: Callable[..., Served], path: Path) -> None:
    serve(uds=path, shared_memory=True)
    torch.manual_seed(0)
    x = torch.randn(8, 50, 100)
    gradients = []
    with Client(f"unix:{path}", shared_memory=True) as client:
        for layer in (RemoteLIF(client, alpha=0.9, trainable=("alpha",)), nn.LIF(0.9, trainable=("alpha",))):
            leaf = x.clone().requires_grad_()
            layer(leaf).square().sum().backward()
            assert isinstance(layer.alpha, torch.Tensor)
            gradients.append((leaf.grad, layer.alpha.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_server_that_comes_late_is_found_by_a_retry(serve: Callable[..., Served], path: Path) -> None:
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            serve(uds=path)

    with Client(f"unix:{path}", retries=Retries(sleep=sleep)) as client:
        assert client.capabilities()["devices"] == ["cpu"]
    assert len(waits) == 1


def test_no_server_and_a_silent_one_are_errors_in_time(path: Path) -> None:
    with Client(f"unix:{path}", retries=0) as client:
        with pytest.raises(APIConnectionError, match="ConnectError"):
            client.ping()
        with unix_socket(path, 0o600), Client(f"unix:{path}", retries=0, timeout=Timeout(read=0.2)) as waiting:
            began = time.monotonic()
            with pytest.raises(APITimeoutError, match="ReadTimeout"):
                waiting.ping()
            assert time.monotonic() - began < 5


def test_two_servers_that_start_at_once_do_not_both_get_it(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    won, release = [], threading.Event()
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        try:
            with unix_socket(path, 0o600):
                won.append(1)
                release.wait()
        except SocketPathError:
            pass

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while sum(thread.is_alive() for thread in threads) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    release.set()
    for thread in threads:
        thread.join()
    assert won == [1]
