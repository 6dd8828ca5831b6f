"""The accuracy experiment compares methods from the same weights and batches, and says what it found."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import typer
from rich.progress import Progress
from torch import Tensor
from typer.testing import CliRunner

from exodus_core import network
from exodus_core.network.spiking import Lif
from experiments import accuracy
from experiments.accuracy import TaskName, learn, manifold_task, verdict
from experiments.datasets import Held, Split
from experiments.report import RESULTS
from experiments.training import Batch, DivergedError, Learner, Local, Update
from recordings import polarity, write_gestures, write_heidelberg

runner = CliRunner()


def command(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(accuracy.main)
    return runner.invoke(app, list(arguments))


class Noted:
    """A learner that notes what it is shown, names class 0, and may diverge."""

    def __init__(self, diverges_in: int | None = None) -> None:
        self.epochs: list[list[int]] = []
        self.diverges_in = diverges_in

    def learn(self, batches: Iterable[Batch], **options: object) -> Iterator[Update]:
        if len(self.epochs) == self.diverges_in:
            raise DivergedError("the norm of 0.weight must be finite, got inf")
        self.epochs.append([])
        for batch in batches:
            self.epochs[-1] += batch.spikes[:, 0, 0].tolist()
            samples = len(batch.targets)
            yield Update({"loss:mean": 2.0, "accuracy:mean": 0.0, "samples:sum": samples}, {})

    def outputs(self, spikes: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand(*spikes.shape[:2], 2)


def small_task() -> accuracy.Task:
    held = Held(torch.arange(10.0).view(10, 1, 1), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1]))
    return accuracy.Task("small", "", Split(held, held, held), {}, "sum_over_time_ce", {}, 4, 2, "")


def shown(seed: int) -> Noted:
    learner = Noted()
    for _ in learn(cast(Learner, learner), small_task(), seed, 2, None):
        pass
    return learner


def test_the_seed_alone_decides_the_order_of_the_samples() -> None:
    first, again, other = shown(0), shown(0), shown(1)
    assert first.epochs == again.epochs
    assert first.epochs != other.epochs
    assert all(sorted(epoch) == list(range(10)) for epoch in first.epochs)
    assert first.epochs[0] != first.epochs[1]


def test_accuracy_is_that_of_all_samples_before_and_after_each_epoch() -> None:
    *_, run = learn(cast(Learner, Noted()), small_task(), 0, 2, None)
    assert run.accuracies == pytest.approx([0.4, 0.4, 0.4])
    assert run.test == pytest.approx(0.4)
    assert (run.losses, run.stopped) == ([2.0, 2.0], "")


def test_a_run_that_diverges_stops_and_is_tested_with_the_weights_it_had() -> None:
    runs = list(learn(cast(Learner, Noted(diverges_in=1)), small_task(), 0, 5, None))
    assert len(runs) == 2
    assert runs[-1].stopped == "epoch 2: the norm of 0.weight must be finite, got inf"
    assert runs[-1].test == pytest.approx(0.4)
    assert len(runs[-1].losses) == 1


@pytest.mark.parametrize(
    ("exodus", "slayer", "said"),
    [
        ([0.8, 0.9, 0.85], [0.7, 0.79, 0.6], "EXODUS above SLAYER"),
        ([0.7, 0.9, 0.85], [0.6, 0.71, 0.6], "not apart"),
        ([0.5, 0.6, 0.5], [0.7, 0.7, 0.7], "SLAYER above EXODUS"),
        ([0.9], [0.1], "one run, no spread"),
    ],
)
def test_methods_are_apart_if_all_runs_are(exodus: list[float], slayer: list[float], said: str) -> None:
    assert verdict(exodus, slayer) == said


def test_both_methods_start_from_the_same_outputs_and_differ_after_learning() -> None:
    task = manifold_task()
    assert accuracy.same_start(Local(), task, 0)
    outputs = {}
    spikes, labels = next(task.split.train.batches(8))
    for method in accuracy.METHODS:
        learner = accuracy._learner(Local(), task, method, 0)
        list(learner.learn([Batch(spikes, labels)]))
        outputs[method] = learner.outputs(spikes)
    assert not torch.equal(outputs["exodus"], outputs["slayer"])


def test_a_comparison_of_different_networks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(description: Mapping[str, Any], method: str) -> Mapping[str, Any]:
        layers = [
            {**layer, "gain": 4.0} if "gain" in layer and method == "slayer" else layer
            for layer in description["layers"]
        ]
        return {**description, "layers": layers}

    monkeypatch.setattr(accuracy, "with_method", other)
    with Progress(disable=True) as bar, pytest.raises(ArithmeticError, match="outputs of the methods differ"):
        accuracy.compare(Local(), manifold_task(), [0], 1, 8, bar, bar.add_task(""))


def test_the_command_learns_manifolds_and_writes_nothing_in_its_quick_form() -> None:
    before = {path: path.read_bytes() for path in RESULTS.glob("*")}
    result = command("--task", "manifolds", "--local", "--quick")
    assert result.exit_code == 0, result.output
    assert "random manifolds" in result.output
    assert "one run" in result.output
    assert before == {path: path.read_bytes() for path in RESULTS.glob("*")}


def test_files_of_the_paper_s_data_sets_are_learned(tmp_path: Path) -> None:
    chance = torch.Generator().manual_seed(0)
    recordings = [
        (torch.rand(400, generator=chance).tolist(), torch.randint(700, (400,), generator=chance).tolist(), label)
        for label in range(4)
    ]
    for part in ("train", "test"):
        write_heidelberg(tmp_path / f"shd_{part}.h5", recordings)
    result = command("--task", "shd", "--data", str(tmp_path), "--local", "--quick", "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert "HSD" in result.output


def test_a_gesture_is_learned_from_its_files(tmp_path: Path) -> None:
    write_gestures(tmp_path, polarity((0, 5, 5, 1), (20_000, 99, 9, 0)), [(3, 0, 30_000)])
    (tmp_path / "trials_to_test.txt").write_text("user01_led.aedat\n")
    task = accuracy.load(TaskName.DVS, tmp_path)
    assert task.split.train.shape == (300, 2, 64, 64)
    learner = accuracy._learner(Local(), task, "exodus", 0)
    *_, run = learn(learner, task, 0, 1, None)
    assert len(run.losses) == 1


@pytest.mark.parametrize("name", ["braille", "nmnist", "shd", "ssc", "dvs"])
def test_a_missing_file_or_folder_is_told(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXODUS_DATA", raising=False)
    without = command("--task", name, "--local")
    assert (without.exit_code, "needs the folder of its files" in " ".join(without.output.split())) == (2, True)
    assert command("--task", name, "--local", "--data", str(tmp_path)).exit_code == 2


def test_results_that_are_committed_are_of_three_runs_of_each_method() -> None:
    path = RESULTS / "accuracy.json"
    if not path.exists():
        pytest.skip("no results yet: python -m experiments.accuracy writes them")
    tasks = json.loads(path.read_text())["tasks"]
    assert set(tasks) == {"braille", "nmnist", "manifolds"}
    for methods in tasks.values():
        assert {method: len(runs) for method, runs in methods.items()} == {"exodus": 3, "slayer": 3}


@pytest.mark.parametrize("name", ["manifolds", "braille", "nmnist"])
def test_half_of_the_neurons_of_each_layer_fire_before_learning(name: str) -> None:
    folder = Path(os.environ.get("EXODUS_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if name != "manifolds" and not folder.is_dir():
        pytest.skip(f"{folder} is no folder; EXODUS_DATA names the one that has the recordings")
    task = accuracy.load(TaskName(name), folder)
    net = network.build(task.description, 0)
    active: list[float] = []
    for layer in net.modules():
        if isinstance(layer, Lif):
            layer.register_forward_hook(lambda layer, args, spikes: active.append(_share_that_fires(spikes)))
    spikes, _ = next(task.split.train.batches(64))
    with torch.no_grad():
        net(spikes)
    assert len(active) >= 3
    assert min(active) >= 0.5


def _share_that_fires(spikes: Tensor) -> float:
    return float((spikes.flatten(2).sum((0, 1)) > 0).float().mean())
