"""Checks of the scenarios, and the tables of a run."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Scenario:
    """One kind of disturbance: what was done, what was counted, what was wrong."""

    name: str
    seconds: float = 0.0
    counts: dict[str, int | str] = field(default_factory=dict)
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)

    def check(self, what: str, fine: bool, otherwise: object = "") -> None:
        """Note that something was looked at, and whether it was as it should be."""
        self.checks.append(what)
        if not fine:
            self.wrong.append(f"{what}: {otherwise}" if otherwise else what)

    @property
    def verdict(self) -> str:
        return "**wrong**" if self.wrong else "right"


class Verdicts:
    """All scenarios of a run."""

    def __init__(self) -> None:
        self.scenarios: list[Scenario] = []

    @contextmanager
    def scenario(self, name: str) -> Iterator[Scenario]:
        """One more; an exception is something wrong, and ends this scenario alone."""
        scenario = Scenario(name)
        self.scenarios.append(scenario)
        began = time.monotonic()
        try:
            yield scenario
        except Exception as error:  # noqa: BLE001  (the others are to be run all the same)
            import traceback

            traceback.print_exc()
            scenario.wrong.append(f"{type(error).__name__}: {error}")
        scenario.seconds = time.monotonic() - began
        print(f"{name}: {scenario.verdict}, {scenario.seconds:.1f} s", file=sys.stderr, flush=True)
        for line in scenario.wrong[:10]:
            print(f"    {line}", file=sys.stderr, flush=True)

    @property
    def fine(self) -> bool:
        return not any(scenario.wrong for scenario in self.scenarios)

    def markdown(self) -> str:
        """The tables of the run."""
        rows = ["| what happened | counted | seconds | result |", "|---|---|---|---|"]
        for s in self.scenarios:
            counted = ", ".join(f"{name} {value}" for name, value in s.counts.items())
            rows.append(f"| {s.name} | {counted} | {s.seconds:.0f} | {s.verdict} |")
        kills: Counter[tuple[str, str]] = sum((s.kills for s in self.scenarios), Counter())
        faults: Counter[str] = sum((s.faults for s in self.scenarios), Counter())
        answers: Counter[str] = sum((s.answers for s in self.scenarios), Counter())
        rows += ["", "| the server ended | times | where |", "|---|---|---|"]
        for kind in sorted({kind for kind, _ in kills}):
            places = sorted((where, count) for (one, where), count in kills.items() if one == kind)
            reached = "; ".join(where + (f" ({count})" if count > 1 else "") for where, count in places if where)
            rows.append(f"| {kind} | {sum(count for _, count in places)} | {reached} |")
        rows += ["", "| fault of the network | times |", "|---|---|"]
        rows += [f"| {fault} | {count} |" for fault, count in sorted(faults.items())]
        rows += ["", "| answers through the proxy | times |", "|---|---|"]
        rows += [f"| {answer} | {count} |" for answer, count in sorted(answers.items())]
        wrong = [f"- {s.name}: {line}" for s in self.scenarios for line in s.wrong]
        if wrong:
            rows += ["", "Wrong:", "", *wrong]
        return "\n".join(rows)
