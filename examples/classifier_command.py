"""What the commands that train a classifier share: where it runs, its progress, its report and its files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from examples.charts import draw_classifier
from examples.classifying import Epoch, Learner, LocalLearner, RemoteLearner, Task, confusion, outputs, score, train
from examples.demo import own_service
from examples.endings import connected

DataOption = Annotated[Path, typer.Option("--data", envvar="EXODUS_DATA", help="Folder with the recordings.")]
UrlOption = Annotated[
    str | None, typer.Option(help="Service to train on; without it and --local, one is started for this training.")
]
LocalOption = Annotated[bool, typer.Option("--local", help="Train in this program.")]
CompareOption = Annotated[
    bool, typer.Option("--compare", help="Train once more, in this program: the results are the same to the bit.")
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", min=1, help="How often every sample is shown; the default is the task's.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of the weights, the order and the variations.")]
OutputOption = Annotated[
    Path, typer.Option("--output", "--out", help="Folder for the picture and the figures as JSON.")
]


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        where: where it ran.
        seconds: how long training took, with the validation after each epoch.
        epochs: how each went.
        loss, accuracy: of the test samples after the last epoch.
        outputs: for the test samples, shape (samples, time, classes).
    """

    where: str
    seconds: float
    epochs: list[Epoch]
    loss: float
    accuracy: float
    outputs: Tensor


def execute(
    task: Task, *, url: str | None, local: bool, compare: bool, epochs: int | None, seed: int, output: Path
) -> None:
    """Trains where it is asked to, prints how good the network is, and writes the files.

    Raises:
        typer.BadParameter: the options contradict each other.
        typer.Exit: the two trainings of a comparison differ, or the service cannot be used.
    """
    if local and (url is not None or compare):
        raise typer.BadParameter("--local goes neither with --url nor with --compare")
    output.mkdir(parents=True, exist_ok=True)
    epochs = task.epochs if epochs is None else epochs
    if local:
        run = fit(LocalLearner(task, seed), task, "local", seed=seed, epochs=epochs)
    else:
        with _service(url, output) as address, connected(address) as client:
            learner = RemoteLearner(client, task, seed)
            typer.echo(f"model {learner.model.id} on {address}")
            run = fit(learner, task, "remote", seed=seed, epochs=epochs)
    report(task, run)
    save(output, task, seed, run)
    if compare:
        again = fit(LocalLearner(task, seed), task, "local", seed=seed, epochs=epochs)
        report(task, again)
        same = again.epochs == run.epochs and again.outputs.equal(run.outputs)
        typer.echo(f"both trainings are {'the same to the bit' if same else 'different'}")
        if not same:
            raise typer.Exit(1)


@contextmanager
def _service(url: str | None, output: Path) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with own_service(output / "service.log") as started:
        yield started


def fit(learner: Learner, task: Task, where: str, *, seed: int, epochs: int) -> Run:
    """Trains under a progress bar and reads the test samples once, after the last epoch."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    done = []
    with Progress(*columns) as progress:
        bar = progress.add_task(f"{task.name}, {where}", total=epochs, state="")
        for epoch in train(learner, task, seed, epochs):
            done.append(epoch)
            state = f"loss {epoch.loss:.3f}, validation accuracy {epoch.validation_accuracy:.1%}"
            progress.update(bar, advance=1, state=state)
    seconds = time.perf_counter() - started
    found = outputs(learner, task.test.spikes)
    return Run(where, seconds, done, *score(found, task.test.labels), found)


def report(task: Task, run: Run) -> None:
    """Prints how good the network is."""
    last, samples = run.epochs[-1], len(task.test.labels)
    typer.echo(
        f"{run.where}: {len(run.epochs)} epochs in {run.seconds:.1f} s; loss {last.loss:.4f}; "
        f"accuracy while learning {last.accuracy:.1%}, validation {last.validation_accuracy:.1%}"
    )
    right = int(confusion(run.outputs, task.test.labels).diagonal().sum())
    typer.echo(f"test accuracy after the last epoch: {run.accuracy:.1%} ({right} of {samples})")


def save(folder: Path, task: Task, seed: int, run: Run) -> None:
    """Writes the picture and the figures."""
    matrix = confusion(run.outputs, task.test.labels)
    stem = folder / task.name.lower().replace(" ", "-")
    picture, numbers = stem.with_suffix(".png"), stem.with_suffix(".json")
    draw_classifier(picture, f"{task.name}, seed {seed}", run.epochs, matrix, task.classes)
    content = {
        "task": task.name,
        "seed": seed,
        "where": run.where,
        "seconds": round(run.seconds, 1),
        "samples": {name: len(getattr(task, name).labels) for name in ("train", "validation", "test")},
        "test": {"loss": run.loss, "accuracy": run.accuracy},
        "curves": {name: [getattr(epoch, name) for epoch in run.epochs] for name in Epoch._fields},
        "classes": task.classes,
        "confusion": matrix.tolist(),
    }
    numbers.write_text(json.dumps(content, indent=1) + "\n")
    typer.echo(f"saved {picture} and {numbers}")
