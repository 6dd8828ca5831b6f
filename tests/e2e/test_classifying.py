"""Classifiers of the examples: trained on a real service and in this process, with equal bits."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner, Result

from examples.train_classifier import (
    LocalLearner,
    Part,
    RemoteLearner,
    Task,
    braille,
    confusion,
    lose,
    main,
    outputs,
    score,
    train,
)
from exodus_client import Client

ROOT = Path(__file__).parents[2]
STEPS, CHANNELS = 20, 6


def samples(count: int, seed: int) -> Part:
    """Class 0: the first half of the channels fires; class 1: the other half; class 2: none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    rate = torch.full((count, STEPS, CHANNELS), 0.02)
    rate[labels == 0, :, :3] = 0.3
    rate[labels == 1, :, 3:] = 0.3
    return Part(torch.rand(rate.shape, generator=generator) < rate, labels)


#: Fields of the hidden neurons.
FORMS: dict[str, dict[str, Any]] = {
    "feed-forward": {"kind": "lif"},
    "recurrent": {"kind": "lif", "recurrent": {}},
    "second-order": {"kind": "cuba_lif", "synapse_alpha": 0.7, "trainable": ["synapse_alpha"], "recurrent": {}},
    "adaptive": {"kind": "alif", "adapt_alpha": 0.9, "adapt_threshold": 0.2, "trainable": ["adapt_alpha"]},
}


def small_task(form: str = "feed-forward", *, epochs: int = 3) -> Task:
    neurons = {"alpha": [0.6 + 0.02 * i for i in range(16)], **FORMS[form]}
    network = {
        "input_shape": [CHANNELS],
        "layers": [
            {"kind": "linear", "out_features": 16, "gain": 2.0},
            neurons,
            {"kind": "dropout", "p": 0.2},
            {"kind": "linear", "out_features": 3, "gain": 0.5},
        ],
    }
    return Task(
        "small",
        ("first", "second", "none"),
        samples(45, 1),
        samples(12, 2),
        samples(30, 3),
        network,
        lambda spikes, generator: lose(spikes, 0.05, generator),
        epochs=epochs,
        batch=20,
        rate=0.02,
    )


@pytest.mark.parametrize("form", FORMS)
def test_remote_and_local_training_are_the_same_to_the_bit(client: Client, form: str) -> None:
    task = small_task(form)
    learners = RemoteLearner(client, task, 5), LocalLearner(task, 5)
    remote, local = (list(train(learner, task, 5, task.epochs)) for learner in learners)
    assert remote == local
    assert len({epoch.loss for epoch in local}) == task.epochs
    found, wanted = (outputs(learner, task.test.spikes) for learner in learners)
    assert found.equal(wanted)


def test_the_seed_decides_the_training() -> None:
    task = small_task()
    first, same, other = (list(train(LocalLearner(task, seed), task, seed, 2)) for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_a_classifier_learns() -> None:
    task = small_task(epochs=15)
    learner = LocalLearner(task, 0)
    *_, last = train(learner, task, 0, task.epochs)
    assert last.accuracy > 0.9
    assert score(outputs(learner, task.test.spikes), task.test.labels)[1] > 0.9


class Recorder:
    """A learner that learns nothing, and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[list[Part]] = []
        self.rates: list[float] = []
        self.asked: list[Tensor] = []

    def learn(self, batches: Iterable[Part], rate: float) -> list[Mapping[str, float]]:
        self.shown.append(list(batches))
        self.rates.append(rate)
        return [
            {"loss:mean": float(number), "accuracy:mean": 0.5, "samples:sum": float(len(batch.labels))}
            for number, batch in enumerate(self.shown[-1])
        ]

    def outputs(self, spikes: Tensor) -> Tensor:
        self.asked.append(spikes)
        return torch.zeros(*spikes.shape[:2], 3)


def test_an_epoch_shows_every_training_sample_once_and_no_other() -> None:
    task = small_task()
    # Each sample is told apart by its own pattern; nothing is lost or moved.
    patterns = torch.arange(45)[:, None, None] >> torch.arange(CHANNELS) & 1 == 1
    task = Task(
        **vars(task) | {"train": Part(patterns.expand(-1, STEPS, -1), torch.arange(45)), "vary": lambda s, _: s}
    )
    recorder = Recorder()
    epochs = list(train(recorder, task, 0, 4))
    for batches in recorder.shown:
        assert [len(batch.labels) for batch in batches] == [20, 20, 5]
        seen = torch.cat([batch.labels for batch in batches])
        assert sorted(seen.tolist()) == list(range(45))
        assert torch.cat([batch.spikes for batch in batches]).equal(task.train.spikes[seen])
    orders = {tuple(torch.cat([batch.labels for batch in batches]).tolist()) for batches in recorder.shown}
    assert len(orders) == 4
    assert recorder.rates == [pytest.approx(0.02 * (1 + math.cos(math.pi * k / 4)) / 2) for k in range(4)]
    assert all(asked.equal(task.validation.spikes) for asked in recorder.asked)
    # The mean of the losses 0, 1, 2 of 20, 20 and 5 samples; a third of the silent outputs is right.
    assert epochs[0].loss == pytest.approx(30 / 45)
    assert epochs[0].accuracy == pytest.approx(0.5)
    assert epochs[0].validation_accuracy == pytest.approx(1 / 3)


def test_the_confusion_counts_classes_by_what_they_were_taken_for() -> None:
    labels = torch.tensor([0, 0, 1, 2])
    spikes = torch.zeros(4, 5, 3)
    spikes[0, 2, 0] = spikes[1, 1, 0] = spikes[2, 0, 1] = spikes[3, 4, 2] = 1.0
    spikes[1, :, 2] = 0.3  # less than 1 at every step, more in all: the sum over time decides
    assert confusion(spikes, labels).tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]


def command(data_set: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "examples.train_classifier", data_set, *options]
    env = os.environ | environment
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120, env=env)


def letters(folder: Path) -> Path:
    """Two letters of 50 repetitions: one taxel rises early, or late."""
    taxels = np.full((100, 12, 12), 100, np.uint8)
    taxels[:50, 3:, 0] += 30
    taxels[50:, 8:, 0] += 30
    np.savez(
        folder / "braille_letters.npz",
        taxels=taxels.reshape(-1, 12),
        offsets=np.arange(101) * 12,
        labels=np.repeat([0, 1], 50),
        repetition=np.tile(np.arange(50), 2),
        letters=np.array(["A", "B"]),
    )
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of the command without --url, in an environment that describes another service; its output folder."""
    folder = tmp_path_factory.mktemp("trained")
    others = {
        "EXODUS_API_KEYS": "secret",
        "EXODUS_API_KEYS_FILE": str(folder / "none"),
        "EXODUS_UDS": str(folder / "socket"),
        "EXODUS_STATE_DIR": str(folder / "states"),
        "EXODUS_DATA": str(letters(folder)),
    }
    out = folder / "new" / "folder"
    run = command("braille", "--epochs", "2", "--seed", "3", "--compare", "--out", str(out), **others)
    assert run.returncode == 0, run.stdout + run.stderr
    return out, run


def test_the_command_trains_on_a_service_of_its_own_and_saves_figures(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, run = trained
    assert "both trainings are the same to the bit" in run.stdout
    assert (out / "braille-letters.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((out / "braille-letters.json").read_text())
    assert figures["where"] == "remote"
    assert figures["samples"] == {"train": 70, "validation": 10, "test": 20}
    assert [len(curve) for curve in figures["curves"].values()] == [2] * 4
    matrix = np.array(figures["confusion"])
    assert matrix.sum(1).tolist() == [10, 10]
    assert figures["test"]["accuracy"] == pytest.approx(np.trace(matrix) / 20)


def test_the_service_of_the_command_is_its_own_whatever_the_environment_says_of_others(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, run = trained
    assert run.stderr == ""
    assert " warning " not in (out / "service.log").read_text()
    assert not (out.parents[1] / "states").exists()


@pytest.fixture
def signals() -> Iterator[None]:
    """Restores the handlers that `own_service` replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_a_service_that_does_not_start_ends_the_command_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXODUS_DEVICE", "abacus")
    ended = in_process("braille", "--data", str(letters(tmp_path)), "--out", str(tmp_path))
    assert ended.exit_code == 3
    assert ended.stderr.startswith("the service ended with status 2; the end of ")
    assert "abacus" in ended.stderr


def test_the_service_of_a_command_that_is_terminated_is_stopped(tmp_path: Path) -> None:
    options = ("--data", str(letters(tmp_path)), "--epochs", "1000000", "--out", str(tmp_path))
    arguments = [sys.executable, "-u", "-m", "examples.train_classifier", "braille", *options]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        line = next(line for line in run.stdout if line.startswith("model "))  # when the service is ready
        run.terminate()
        run.stdout.read()
        assert run.wait(60) == 128 + signal.SIGTERM
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", urlsplit(line.split()[-1]).port)) != 0


def test_the_command_leaves_its_model_on_a_given_service(client: Client, tmp_path: Path) -> None:
    before = {model.id for model in client.models()}
    options = ("--data", str(letters(tmp_path)), "--epochs", "1", "--out", str(tmp_path))
    ended = in_process("braille", *options, "--url", client.connection.session.base_url, "--recurrent")
    assert ended.exit_code == 0, ended.output
    (model,) = (model for model in client.models() if model.id not in before)
    assert model.id in ended.stdout
    assert model.name == "Braille letters"
    assert model.sequence == 2  # 70 samples, 64 an update
    assert model.network["layers"][1]["recurrent"] is not None


def in_process(*arguments: str) -> Result:
    """The command in this process."""
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, arguments)


def refusal(*arguments: str) -> str:
    """The error of a command line that is refused."""
    ended = in_process(*arguments)
    assert ended.exit_code == 2
    return ended.stderr


@pytest.mark.parametrize("others", [("--url", "http://x"), ("--compare",)], ids=["url", "compare"])
def test_options_that_contradict_are_refused(tmp_path: Path, others: tuple[str, ...]) -> None:
    options = ("--data", str(letters(tmp_path)), "--out", str(tmp_path), "--local", *others)
    assert "--local goes neither with" in refusal("braille", *options)


@pytest.mark.parametrize("data_set", ["braille", "nmnist"])
def test_a_folder_without_recordings_is_refused(tmp_path: Path, data_set: str) -> None:
    assert "No such file" in refusal(data_set, "--data", str(tmp_path), "--local")


@pytest.mark.parametrize("option", ["--recurrent", "--second-order"])
def test_only_the_network_of_braille_has_other_forms(tmp_path: Path, option: str) -> None:
    assert f"{option} goes with braille" in refusal("nmnist", "--data", str(tmp_path), "--local", option)


def test_second_order_neurons_of_braille_are_recurrent(tmp_path: Path) -> None:
    layer = braille(letters(tmp_path), second_order=True).network["layers"][1]
    assert layer["kind"] == "cuba_lif"
    assert layer["recurrent"] == {"gain": 0.3}
