"""Training with spiking layers on a real service, over HTTP, against the same training in this process."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from examples.demo import largest_difference
from examples.local_service import running_service
from examples.train_raster import Task, build_network, local_layer, oxford, poisson, remote_layers, train
from exodus_client import Client

ROOT = Path(__file__).parents[2]


def curves(client: Client, task: Task, *, epochs: int, seed: int = 0) -> tuple[list[float], list[float]]:
    """Loss curves with remote and with local layers."""
    remote, local = (
        [epoch.loss for epoch in train(build_network(task, make_layer, seed), task, epochs)]
        for make_layer in (remote_layers(client), local_layer)
    )
    return remote, local


def test_remote_and_local_training_have_the_same_loss_curve(client: Client) -> None:
    remote, local = curves(client, poisson(2), epochs=20, seed=2)
    assert len(remote) == 21
    assert len(set(remote)) > 10  # it moves
    assert largest_difference(remote, local) < 1e-6


def test_remote_and_local_training_agree_on_the_oxford_raster(client: Client, oxford_folder: Path) -> None:
    remote, local = curves(client, oxford(oxford_folder), epochs=3)
    assert len(set(remote)) == 4
    assert largest_difference(remote, local) < 1e-6


def test_a_neuron_learns_to_fire_at_the_four_target_times() -> None:
    task = poisson(0)
    *_, last = train(build_network(task, local_layer, 0), task, task.epochs)
    assert last.loss < 0.01
    fired, wanted = last.output[0, :, 0].nonzero().ravel(), task.target[0, :, 0].nonzero().ravel()
    torch.testing.assert_close(fired, wanted, rtol=0, atol=2)


def test_the_service_is_stopped_when_training_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), running_service(tmp_path / "service.log") as url:  # noqa: PT012
        port = urlsplit(url).port
        raise ZeroDivisionError
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_the_demo_saves_its_picture_and_its_loss_curves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.demo", "--epochs", "3", "--output", str(tmp_path / "new" / "folder")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "largest relative difference of the two loss curves: 0" in run.stdout
    assert run.stderr == ""
    assert " warning " not in (tmp_path / "new" / "folder" / "service.log").read_text()
    saved = tmp_path / "new" / "folder" / "poisson-spike-trains"
    assert saved.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    losses = json.loads(saved.with_suffix(".json").read_text())["losses"]
    assert losses["remote"] == losses["local"]
    assert len(losses["local"]) == 4
