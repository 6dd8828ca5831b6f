"""The comparisons, each checked first: the same number of steps has to leave the same weights, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.service.lines import Line, ms
from benchmarks.service.servers import KEY, Running
from benchmarks.service.timing import take_turns
from exodus_client import Client

from .relay import relay
from .tasks import LOSS, OPTIMIZER, Task, custom_loss

Step = Callable[[], object]
#: Steps of one turn: the time of a turn is shared among them, so that a pipeline fills and drains within it.
STEPS = 25


class Remote:
    """A model on the server, and ways of doing steps with it."""

    def __init__(self, client: Client, task: Task, loss: Any = LOSS, spikes: Any = None) -> None:
        self.model = client.create_model(task.description, optimizer=OPTIMIZER, seed=0, durable_every=10)
        self._spikes = task.spikes if spikes is None else spikes
        self._targets = task.targets
        self._loss = loss

    def submit(self) -> Any:
        return self.model.step(self._spikes, self._targets, loss=self._loss)

    def awaited(self) -> None:
        """Steps, each awaited before the next is submitted."""
        for _ in range(STEPS):
            self.submit().result()

    def ahead(self) -> None:
        """Steps, each submitted before the one before it is awaited."""
        before = self.submit()
        for _ in range(STEPS - 1):
            following = self.submit()
            before.result()
            before = following
        before.result()


def equal(trainer: Any, remotes: Sequence[Remote]) -> None:
    """Raise unless all have the weights of the trainer, bit by bit."""
    wanted = trainer.net.state_dict()
    for remote in remotes:
        found = remote.model.state_dict(kind="torch")
        unequal = [name for name in wanted if not torch.equal(wanted[name], found[name])]
        if unequal or found.keys() != wanted.keys():
            raise SystemExit(f"{remote.model.id}: {unequal or found.keys()} not as in this process; nothing is timed")


def steps(server: Running, task: Task, repeats: int, targets: bool = True) -> Iterator[Line]:
    """A step in this process, and over HTTP in two ways; with targets, each has one to reach."""
    trainer, step = task.local()

    def in_process() -> None:
        for _ in range(STEPS):
            step()

    with Client(server.url, api_key=KEY) as client:
        awaited, ahead = remotes = [Remote(client, task), Remote(client, task)]
        contenders: dict[str, Step] = {"in process": in_process, "awaited": awaited.awaited, "ahead": ahead.ahead}
        for run in contenders.values():
            run()
        equal(trainer, remotes)
        times = take_turns(contenders, repeats, warm_up=1)
        equal(trainer, remotes)
    here = times["in process"]
    for name, what, most in (("awaited", "each step awaited", 1.10), ("ahead", "the next submitted before", 1.03)):
        for kind in ("best", "p50"):
            took, local = getattr(times[name], kind) / STEPS, getattr(here, kind) / STEPS
            yield Line(
                f"{task.name}, over HTTP, {what}, {kind}",
                f"<= {most:.2f}x" if targets else "",
                f"{took / local:.3f}x ({ms(took)} against {ms(local)} in process)",
                took / local <= most if targets else None,
            )


def encodings(server: Running, task: Task, repeats: int) -> Iterator[Line]:
    """Spikes as bits, and as raw float32: what a step sends and receives, heads of HTTP included, and its time."""
    bits, raw = task, task.unpackable()
    trainers = [one.local() for one in (bits, raw)]
    with relay(server.port) as counted, Client(counted.url, api_key=KEY) as client:
        for name, one in (("bits", bits), ("raw float32", raw)):
            remote = Remote(client, one)
            remote.submit().result()
            up, down = counted.up, counted.down
            for _ in range(STEPS):
                remote.submit().result()
            up, down = (counted.up - up) // STEPS, (counted.down - down) // STEPS
            yield Line(f"{task.name}, bytes of a step, spikes as {name}", "", f"{up:,} up, {down:,} down")
    with Client(server.url, api_key=KEY) as client:
        remotes = [Remote(client, one) for one in (bits, raw)]
        times = take_turns({"bits": remotes[0].awaited, "raw": remotes[1].awaited}, repeats, warm_up=1)
        for (trainer, step), remote in zip(trainers, remotes, strict=True):
            for _ in range((repeats + 1) * STEPS):
                step()
            equal(trainer, [remote])
    for kind in ("best", "p50"):
        few, many = getattr(times["bits"], kind) / STEPS, getattr(times["raw"], kind) / STEPS
        yield Line(
            f"{task.name}, spikes as raw float32 instead of bits, {kind}",
            "",
            f"{many / few:.3f}x ({ms(many)} against {ms(few)})",
        )


def overhead(server: Running, task: Task, repeats: int) -> Iterator[Line]:
    """Overhead of a request with next to nothing to compute."""
    trainer, step = task.local()
    with Client(server.url, api_key=KEY) as client:
        remote = Remote(client, task)
        contenders: dict[str, Step] = {"in process": step, "awaited": lambda: remote.submit().result()}
        for run in contenders.values():
            run()
        equal(trainer, [remote])
        times = take_turns(contenders, repeats)
        equal(trainer, [remote])
    here, there = times["in process"], times["awaited"]
    for kind in ("best", "p50"):
        took, local = getattr(there, kind), getattr(here, kind)
        yield Line(
            f"{task.name}, added by the way, each step awaited, {kind}",
            "",
            f"{ms(took - local)} ({ms(took)} against {ms(local)})",
        )


def custom(server: Running, task: Task, repeats: int) -> Iterator[Line]:
    """A loss of one's own: forward there, loss here, backward and the step there."""
    trainer, step = task.local_custom()
    with Client(server.url, api_key=KEY) as client:
        remote = Remote(client, task, loss=custom_loss)
        contenders: dict[str, Step] = {"in process": step, "remote": lambda: remote.submit().result()}
        for run in contenders.values():
            run()
        equal(trainer, [remote])
        times = take_turns(contenders, repeats)
        equal(trainer, [remote])
    for kind in ("best", "p50"):
        took, local = getattr(times["remote"], kind), getattr(times["in process"], kind)
        yield Line(
            f"{task.name}, a loss of one's own, {kind}", "", f"{took / local:.3f}x ({ms(took)} against {ms(local)})"
        )
