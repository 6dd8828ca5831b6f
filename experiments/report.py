"""Results of an experiment: printed, or written as Markdown, JSON and PNG into experiments/results."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.speed import machine

RESULTS = Path(__file__).parent / "results"
#: Colours of Okabe and Ito, which colour-blind readers tell apart.
COLORS = {"exodus": "#0072B2", "slayer": "#E69F00", "bptt": "#009E73", "target": "#000000"}


def progress() -> Progress:
    """A progress bar; a task may say what it is at by `description`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def as_json(numbers: Mapping[str, Any]) -> str:
    """Indented JSON in which a list of plain values takes one line.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(numbers, indent=1, allow_nan=False)
    lists = re.compile(r"\[\s+([^][{}]+?)\s+\]")
    return lists.sub(lambda found: "[" + re.sub(r"\s*\n\s*", " ", found[1]) + "]", text) + "\n"


@dataclass
class Report:
    """Text, numbers and figures of one experiment; make it before the experiment, its clock starts then.

    Attributes:
        name: of the files.
        title: heading of the page.
        command: that repeats it.
        sections: Markdown, in order; `figure` adds the line that shows one.
        numbers: for the JSON file; finite floats, integers, strings, None, lists and dicts of them.
        figures: by file name.
    """

    name: str
    title: str
    command: str
    sections: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _others: machine.Others = field(default_factory=machine.Others)
    _machine: dict[str, Any] = field(default_factory=machine.describe)

    def add(self, *sections: str) -> None:
        """Adds paragraphs, tables and headings to the page."""
        self.sections += sections

    def figure(self, figure: Figure, caption: str, suffix: str = "") -> None:
        """Adds a figure; its file is NAME.png, or NAME-SUFFIX.png."""
        file = f"{self.name}-{suffix}.png" if suffix else f"{self.name}.png"
        self.figures[file] = figure
        self.sections.append(f"![{caption}]({file})")

    def publish(self, *, quick: bool, where: str = "this program", folder: Path = RESULTS) -> None:
        """Prints the page, and writes page, numbers and figures to the folder unless `quick`.

        Args:
            quick: whether this was a part of the experiment only.
            where: where networks were trained.
            folder: for the files.

        Raises:
            OSError: a file cannot be written.
            ValueError: a number is not finite.
        """
        seconds = round(time.monotonic() - self._started)
        about = {**self._machine, "others": self._others.share()}
        made = (
            f"By `{self.command}` in {seconds // 60} min {seconds % 60} s, computed in {where} ({about['cpu']}, "
            f"{about['instruction_set']}, torch {about['torch']}; others took {about['others']:.0%} of the processors; "
            f"commit {about['commit']}, {about['date']})."
        )
        page = "\n\n".join([f"# {self.title}", *self.sections, made]) + "\n"
        numbers = {"command": self.command, "seconds": seconds, "where": where, **self.numbers}
        content = as_json(numbers)
        console = Console()
        console.print(Markdown(page))
        if quick:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for file, figure in self.figures.items():
            figure.savefig(folder / file, dpi=100, pil_kwargs={"optimize": True})
        (folder / f"{self.name}.md").write_text(page)
        (folder / f"{self.name}.json").write_text(content)
        console.print(f"written: {', '.join([f'{self.name}.md', f'{self.name}.json', *self.figures])} in {folder}")


def repeated_by(module: str, options: Mapping[str, object]) -> str:
    """The command of a module with the options that are not off: True stands for a flag."""
    words = [f"python -m experiments.{module}"]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words.append(f"--{name} {value}")
    return " ".join(words)
