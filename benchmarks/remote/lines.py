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
STEPS = 10


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

    def weights(self) -> dict[str, torch.Tensor]:
        state = self.model.state_dict(kind="torch")
        return {name: value for name, value in state.items() if name.startswith("weights.")}


def equal(trainer: Any, remotes: Sequence[Remote]) -> None:
    """Raise unless all have the weights of the trainer, bit by bit."""
    wanted = {name: value for name, value in trainer.state().items() if name.startswith("weights.")}
    for remote in remotes:
        found = remote.weights()
        unequal = [name for name in wanted if not torch.equal(wanted[name], found[name])]
        if unequal or found.keys() != wanted.keys():
            raise SystemExit(f"{remote.model.id}: {unequal or found.keys()} not as in this process; nothing is timed")


def steps(server: Running, task: Task, repeats: int) -> Iterator[Line]:
    """A step in this process, and over HTTP in two ways."""
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
                f"<= {most:.2f}x",
                f"{took / local:.3f}x ({ms(took)} against {ms(local)} in process)",
                took / local <= most,
            )


def bytes_on_the_wire(server: Running, task: Task) -> Iterator[Line]:
    """What one step sends and receives, heads of HTTP included."""
    for name, spikes, encoding in (("bits", task.spikes, None), ("raw float32", task.spikes.float(), "raw")):
        with relay(server.port) as counted, Client(counted.url, api_key=KEY) as client:
            remote = Remote(client, task, spikes=spikes)
            options = {} if encoding is None else {"encoding": encoding}
            remote.model.step(spikes, task.targets, loss=LOSS, **options).result()
            up, down = counted.up, counted.down
            count = 5
            for _ in range(count):
                remote.model.step(spikes, task.targets, loss=LOSS, **options).result()
            up, down = (counted.up - up) / count, (counted.down - down) / count
        yield Line(f"{task.name}, bytes of a step, spikes as {name}", "", f"{up:,.0f} up, {down:,.0f} down")


def overhead(server: Running, task: Task, repeats: int) -> Iterator[Line]:
    """What the way costs, where there is nearly nothing to compute."""
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
        remote = Remote(client, task, loss=lambda outputs: custom_loss(outputs, task.targets))
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
