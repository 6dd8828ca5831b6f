"""Pytest plugin that runs the collected tests against every mutant of a library, each in a process of its own.

    EXODUS_MUTATE_PLAN=plan.json python -m pytest -p tools.mutate.plugin TESTS

Python, torch and the tests are loaded once; each mutant is a fork of that process, in which its switch is set. A first
fork, without any mutant, must pass; it notes of every test how long it takes and the places of mutants that it reaches.
A mutant then gets the tests that reach it, first those that are quick and failed for other mutants of its file, and
ends at the first failure. A test has a limit of processor time, since a mutant may loop forever.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

#: A test of this many seconds, without mutants, is not run for mutants.
SLOW = 2.0


@dataclass(frozen=True)
class Plan:
    """Task of a run: the library that the tests load, numbers of its mutants by the file that they are in, and
    where the verdicts go."""

    library: str
    files: dict[str, list[int]]
    verdicts: str
    limit: float = 10.0  # processor time of a test in seconds, beside 20 times what it takes without mutants

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> Plan:
        return Plan(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Verdict:
    """Fate of a mutant. `killed_by` is a test, or nothing for one that survived the tests that reach it."""

    number: int
    killed_by: str
    how: str  # "failure", "time", or the name of a signal; empty for one that survived
    tests: int  # that were run
    seconds: float


@dataclass
class Measured:
    """A test without mutants."""

    seconds: float
    reached: frozenset[int]


class Switch:
    """The switch of a library."""

    def __init__(self, library: str) -> None:
        self.library = ctypes.CDLL(library)
        self.library.exodus_mutant_was_reached.restype = ctypes.c_bool

    def set(self, number: int) -> None:
        """Turns a mutant on, also for processes that tests start; 0 for none. Forgets what was reached."""
        os.environ["EXODUS_MUTANT"] = str(number)
        self.library.exodus_set_mutant(number)

    def reached(self, numbers: list[int]) -> frozenset[int]:
        return frozenset(number for number in numbers if self.library.exodus_mutant_was_reached(number))


def forked(work: Callable[[int], None]) -> tuple[bytes, int]:
    """Runs work(file descriptor) in a fork; returns what it wrote there and its status, as `os.waitpid` has it."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of Python: there are none
        child = os.fork()
    if child == 0:
        os.close(reading)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        status = 1
        try:
            work(writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        written = pipe.read()
    return written, os.waitpid(child, 0)[1]


class Mutations:
    """The plugin: takes the place of pytest's loop over tests."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.switch = Switch(plan.library)
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed

    def passing(self, items: list[pytest.Item]) -> Iterator[bool]:
        """Runs tests. The last is told that the first follows, since the process ends without leaving the session."""
        for item, following in zip(items, [*items[1:], *items[:1]], strict=True):
            self.failed = False
            nextitem = following if following is not item else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
            yield not self.failed

    def measure(self, items: list[pytest.Item]) -> dict[str, Measured]:
        """Runs the tests without mutants. Raises pytest.UsageError: one fails."""
        numbers = [number for of_file in self.plan.files.values() for number in of_file]

        def work(pipe: int) -> None:
            measured: dict[str, Measured | None] = {}
            self.switch.set(0)
            began = time.process_time()
            for item, passed in zip(items, self.passing(items), strict=True):
                spent = time.process_time() - began
                measured[item.nodeid] = Measured(spent, self.switch.reached(numbers)) if passed else None
                self.switch.set(0)
                began = time.process_time()
            with os.fdopen(pipe, "wb") as out:
                pickle.dump(measured, out)

        written, status = forked(work)
        if status:
            raise pytest.UsageError(f"the tests without mutants ended with status {status}")
        found: dict[str, Measured | None] = pickle.loads(written)
        failed = [name for name, test in found.items() if test is None]
        if failed:
            raise pytest.UsageError(f"without mutants all tests must pass, got {len(failed)} failures: {failed[:5]}")
        measured = {name: test for name, test in found.items() if test is not None}
        if not any(test.reached for test in measured.values()):
            raise pytest.UsageError(f"the tests must load {self.plan.library}, and reach a mutant of it")
        return measured

    def judge(self, number: int, items: list[pytest.Item], measured: dict[str, Measured]) -> Verdict:
        """Runs tests against a mutant, up to the first failure."""

        def work(pipe: int) -> None:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            self.switch.set(number)
            passing = self.passing(items)
            for item in items:
                os.write(pipe, f"{item.nodeid}\n".encode())
                # Of processor time, which does not pass while the machine does something else.
                signal.setitimer(signal.ITIMER_PROF, self.plan.limit + 20 * measured[item.nodeid].seconds)
                if not next(passing):
                    os.write(pipe, b"failed\n")
                    return

        began = time.monotonic()
        written, status = forked(work)
        lines = written.decode().splitlines()
        seconds = time.monotonic() - began
        if os.WIFSIGNALED(status):
            ended_by = signal.Signals(os.WTERMSIG(status))
            how = "time" if ended_by == signal.SIGPROF else ended_by.name
            return Verdict(number, lines[-1], how, len(lines), seconds)
        if status:
            raise pytest.UsageError(f"mutant {number} ended with status {status} in {lines[-1:]}")
        if lines[-1:] == ["failed"]:
            return Verdict(number, lines[-2], "failure", len(lines) - 1, seconds)
        return Verdict(number, "", "", len(lines), seconds)

    def verdicts(self, items: list[pytest.Item]) -> Iterator[Verdict]:
        measured = self.measure(items)
        fast = [item for item in items if measured[item.nodeid].seconds < SLOW]
        total, of_fast = (sum(measured[item.nodeid].seconds for item in some) for some in (items, fast))
        told = (
            f"{len(items)} tests pass without mutants in {total:.0f} s of processor time, of which {len(fast)} are run"
        )
        print(f"{told} for mutants: {of_fast:.0f} s", flush=True)
        for numbers in self.plan.files.values():
            kills: Counter[str] = Counter()
            for number in numbers:
                reaching = [item for item in fast if number in measured[item.nodeid].reached]
                reaching.sort(key=lambda item: (measured[item.nodeid].seconds + 0.01) / (1 + kills[item.nodeid]))
                verdict = self.judge(number, reaching, measured)
                kills[verdict.killed_by] += 1
                yield verdict

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        count = sum(map(len, self.plan.files.values()))
        with open(self.plan.verdicts, "w") as out:
            for done, verdict in enumerate(self.verdicts(session.items), 1):
                out.write(json.dumps(asdict(verdict)) + "\n")
                out.flush()
                told = f"killed by {verdict.killed_by} ({verdict.how})" if verdict.killed_by else "SURVIVED"
                print(
                    f"[{done}/{count}] mutant {verdict.number}: {told}, {verdict.tests} tests, {verdict.seconds:.1f} s",
                    flush=True,
                )
        return True


def pytest_configure(config: pytest.Config) -> None:
    plan = Plan.load(Path(os.environ["EXODUS_MUTATE_PLAN"]))
    config.pluginmanager.register(Mutations(plan), "exodus-mutations")
