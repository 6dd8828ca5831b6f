"""Disks that are full, and files that rot."""

from __future__ import annotations

import errno
import http.client
import io
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from . import workload
from .scenarios import SETTINGS, client_of, compare
from .supervisor import Supervisor
from .verdicts import Scenario
from .workload import Outcome


def full_disk(folder: Path, steps: int, seed: int, wanted: Outcome, found: Scenario) -> None:
    """The disk fills up, the server is killed, there is room again."""
    with small_disk(folder) as (state, fill, kind):
        found.counts["disk"] = kind
        with Supervisor(folder, settings=SETTINGS, state=state) as server, client_of(server.url) as client:
            model = workload.create(client, seed, durable_every=3)
            third = len(wanted.answers) // 3
            answers = workload.train(model, steps, seed, last=third)
            before = model.info().durable
            found.check("saved before the disk is full", before > 0, before)
            with fill():
                answers += workload.train(model, steps, seed, first=third, last=2 * third)
                info = model.info()
                found.check("what is durable stays", info.durable < third + 3, info.durable)
                found.check("the answers say why", "No space left" in str(answers[-1].durable_error), answers[-1])
                found.check("the log says why", "No space left" in server.log)
                refused = _save(server, model.id)
                found.check("a save is answered with 507 storage_full", refused == (507, "storage_full"), refused)
                server.restart(signal.SIGKILL)
                state_now = client.model(model.id).info()
                found.check(
                    "the durable state is back", state_now.sequence == info.durable, (state_now.sequence, info.durable)
                )
                answers += workload.train(model, steps, seed, first=2 * third, last=2 * third + 5)
            answers += workload.train(model, steps, seed, first=2 * third + 5)
            done = len(answers)
            found.check("with room again it is saved", model.info().durable >= done - 3, (model.info().durable, done))
            compare(found, server, model.id, answers, wanted)
            found.counts |= {"calls": done, "durable before": before}
            found.check("no server failed", not server.failures, server.failures)


@contextmanager
def small_disk(folder: Path) -> Iterator[tuple[Path, Callable[[], AbstractContextManager[None]], str]]:
    """A folder on a disk of its own, a context in which that disk is full, and what kind of disk it is."""
    point = folder / "disk"
    point.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "exodus-chaos", str(point)]
    mounted = shutil.which("mount") and not subprocess.run(command, capture_output=True).returncode
    ballast = (point if mounted else folder) / ("ballast" if mounted else "full")

    @contextmanager
    def fill() -> Iterator[None]:
        with ballast.open("wb", buffering=0) as stream:
            if mounted:
                _fill(stream)
        try:
            yield
        finally:
            ballast.unlink()

    try:
        yield point / "state", fill, "a tmpfs of 8 MiB" if mounted else "ENOSPC injected, a tmpfs cannot be mounted"
    finally:
        if mounted:
            subprocess.run(["umount", str(point)], check=True)


def _fill(stream: io.FileIO) -> None:
    """Write until the disk is full, to the last byte."""
    for block in (1 << 16, 1 << 12, 1):
        try:
            while True:
                stream.write(bytes(block))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def rotten_files(folder: Path, steps: int, seed: int, wanted: Outcome, found: Scenario) -> None:
    """The newest state is damaged while the server is down; the one before it is used."""
    with Supervisor(folder, settings=SETTINGS) as server, client_of(server.url) as client:
        model = workload.create(client, seed, durable_every=3)
        answers: list[Any] = []
        quarter = len(wanted.answers) // 4
        for turn, (name, damage, suffix) in enumerate(DAMAGES, 1):
            answers += workload.train(model, steps, seed, first=len(answers), last=turn * quarter)
            _save(server, model.id)
            server.halt(signal.SIGTERM)
            newest, previous = _generations(server.state / "models" / model.id)
            damage(newest.with_suffix(suffix))
            logged = len(server.log)
            server.resume()
            workload.saved_state(server.url, model.id)  # which loads it
            said = model.info().durable_error
            found.check(f"{name}: the server says so", newest.stem in str(said), f"durable_error is {said!r}")
            # The same handle goes on: it sends what the damaged state had.
            answers += workload.train(model, steps, seed, first=len(answers), last=len(answers) + 1)
            state, log = int(previous.stem[:12]), server.events_of(logged)
            found.check(f"{name}: the state before it is used", f"was loaded at {state}" in log, log)
            found.check(f"{name}: the log names the file", newest.with_suffix(suffix).name in log, log)
            aside = newest.with_suffix(f"{suffix}.corrupt").exists()
            found.check(f"{name}: the file is set aside", aside, sorted(path.name for path in newest.parent.iterdir()))
            again = sum(server.recorded.values()) - len(server.recorded)
            found.check(f"{name}: the calls since then are computed again", again > 0)
        answers += workload.train(model, steps, seed, first=len(answers))
        compare(found, server, model.id, answers, wanted)
        again = sum(server.recorded.values()) - len(server.recorded)
        found.counts |= {"files damaged": len(DAMAGES), "calls": len(answers), "calls computed again": again}
        found.check("no server failed", not server.failures, server.failures)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGES = (
    ("a truncated state file", _truncate, ".safetensors"),
    ("a flipped bit in the state file", _flip, ".safetensors"),
    ("a flipped bit in the manifest", _flip, ".json"),
)


def _generations(folder: Path) -> list[Path]:
    """The manifests, newest first."""
    return sorted(folder.glob("*.json"), reverse=True)


def _save(server: Supervisor, id: str) -> tuple[int, str]:
    """Ask for a save, by hand: the client may have saved already what it was asked to."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("POST", f"/v1/models/{id}/save")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()).get("code", "")
    finally:
        connection.close()
