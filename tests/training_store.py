"""A small network, its training step, and a store to train it in; for the tests of models on the server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch

from exodus_core import losses
from exodus_core.network import build
from exodus_core.training import Trainer
from exodus_service.models.model import Model
from exodus_service.models.sequencer import CachedResponse, Step
from exodus_service.models.store import Store
from exodus_service.settings import Settings

NETWORK: dict[str, Any] = {
    "input_shape": [5],
    "layers": [
        {"kind": "linear", "out_features": 7},
        {"kind": "batch_norm"},
        {"kind": "lif", "alpha": 0.9, "trainable": ["alpha"]},
        {"kind": "dropout", "p": 0.3},
        {"kind": "linear", "out_features": 3},
        {"kind": "exp_leak", "alpha": 0.9},
    ],
}
ADAM: dict[str, Any] = {"kind": "adam", "lr": 1e-2}
LOSS = losses.parse("max_over_time_ce")


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input (4, 6, 5) and targets (4,) of a call."""
    generator = torch.Generator().manual_seed(number)
    return torch.rand(4, 6, 5, generator=generator), torch.randint(0, 3, (4,), generator=generator)


def apply(trainer: Trainer, number: int) -> None:
    """Training call `number`: odd calls accumulate gradients, even ones also make a step."""
    trainer.forward_backward(*batch(number), LOSS)
    if number % 2 == 0:
        trainer.optim_step()


def undisturbed(calls: int, network: dict[str, Any] = NETWORK, optimizer: dict[str, Any] = ADAM) -> Trainer:
    """The trainer after calls 1 to `calls`."""
    trainer = Trainer(build(network, 0), optimizer)
    for number in range(1, calls + 1):
        apply(trainer, number)
    return trainer


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """True if two states are equal bit by bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@asynccontextmanager
async def opened(path: Path | None = None, **settings: Any) -> AsyncIterator[Store]:
    """An open store."""
    store = Store(Settings(state_dir=path, **settings), torch.device("cpu"))
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def create(store: Store, id: str = "m", owner: str = "", **options: Any) -> dict[str, Any]:
    """Create the small model."""
    return (await store.create(owner, id=id, **{"network": NETWORK, "optimizer": ADAM, **options})).info


async def call(
    store: Store,
    number: int,
    id: str = "m",
    owner: str = "",
    *,
    digest: str | None = None,
    deadline: float | None = None,
    body: bytes | None = None,
    work: Callable[[Model, Step], Any] | None = None,
) -> bytes | None:
    """Make a training call; returns its response, `body` or "answer NUMBER"."""
    answer = f"answer {number}".encode() if body is None else body

    def train(model: Model, step: Step) -> None:
        apply(model.trainer, number)
        step.record(answer, "text/plain")

    async with (
        store.use(owner, id) as model,
        model.sequencer.step(number, digest or f"digest {number}", deadline, writer="w") as step,
    ):
        if isinstance(step, CachedResponse):
            return step.body
        await asyncio.wrap_future(store._execute(step.guard(lambda: (work or train)(model, step))))
        return answer


async def state(store: Store, id: str = "m", owner: str = "") -> dict[str, torch.Tensor]:
    """The state of a model in memory."""
    async with store.use(owner, id) as model:
        return dict((await asyncio.wrap_future(store._execute(model.snapshot))).tensors)
