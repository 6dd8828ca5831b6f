"""A model in memory: failed calls that have changed it are detected, and its state is cloned every so many calls."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from training_store import ADAM, LOSS, NETWORK, apply, batch, equal, undisturbed

from exodus_core import network as networks
from exodus_core.training import Trainer
from exodus_service.models.model import BRIEF_S, Model, _watch
from exodus_service.models.model_spec import ModelSpec
from exodus_service.models.sequencer import Progress, SequencerLimits, Step
from exodus_service.models.storage.checkpoint import Header, Snapshot
from exodus_service.models.storage.checkpoint_writer import Checkpointer, CheckpointWriter


def new_model(durable_every: int = 10, **options: Any) -> Model:
    description = networks.parse(NETWORK)
    trainer = Trainer(networks.build(description, 0), ADAM)
    header = Header("m", "", "", "2026", description.data, trainer.optimizer_data, 0, durable_every, "")
    return Model(ModelSpec(header, description), trainer, SequencerLimits(1000, 5.0), **options)


async def call(model: Model, number: int, work: Callable[[Step], Any]) -> None:
    async with model.sequencer.step(number, str(number)) as step:
        assert isinstance(step, Step)
        await asyncio.to_thread(step.guard(lambda: work(step)))


def step_half_way(model: Model) -> None:
    model.trainer.step(*batch(1), LOSS)


def accumulate_half_way(model: Model) -> None:
    model.trainer.forward_backward(*batch(1), LOSS)


def only_forward(model: Model) -> None:
    model.trainer.forward(batch(1)[0], train=True)


@pytest.mark.parametrize(
    ("work", "changed"), [(step_half_way, True), (accumulate_half_way, True), (only_forward, False)]
)
def test_a_model_is_broken_by_a_failed_call_that_has_changed_the_trainer(
    work: Callable[[Model], None], changed: bool
) -> None:
    reported: list[Model] = []

    async def test() -> Model:
        model = new_model(on_broken=reported.append)

        def fail(step: Step) -> None:
            work(model)
            raise MemoryError("while the response was encoded")

        with pytest.raises(MemoryError):
            await call(model, 1, fail)
        await asyncio.sleep(0.01)
        assert model.idle
        return model

    model = asyncio.run(test())
    assert model.sequencer.broken == changed
    assert reported == ([model] if changed else [])


def test_every_change_of_a_trainer_is_detected_and_nothing_else() -> None:
    layers = [{"kind": "linear", "out_features": 3}, {"kind": "lif", "alpha": 0.9}, {"kind": "dropout", "p": 0.5}]
    trainer = Trainer(networks.build({"input_shape": [5], "layers": layers}, 0), ADAM)
    x, targets = batch(1)
    changes: list[tuple[Callable[[], Any], bool]] = [
        (lambda: trainer.forward(x, train=True), False),
        (lambda: trainer.begin(x), False),
        (lambda: trainer.forward_backward(x, targets, LOSS), True),
        (lambda: trainer.forward_backward(x, targets, LOSS), True),
        (lambda: trainer.optim_step(), True),
        (lambda: trainer.step(x, targets, LOSS), True),
        (lambda: trainer.state(), False),
    ]
    for change, expected in changes:
        changed = _watch(trainer)
        change()
        assert changed() == expected


@contextlib.contextmanager
def written() -> Any:
    """Snapshots in the order in which they are written, and what makes the checkpointer that writes them."""
    snapshots: list[Snapshot] = []
    writer = CheckpointWriter()
    yield snapshots, lambda on_saved: Checkpointer(writer, snapshots.append, on_saved)
    assert writer.close(10)


def test_a_snapshot_is_taken_every_so_many_calls_and_does_not_change_with_the_model() -> None:
    async def test(checkpointer: Any) -> None:
        model = new_model(durable_every=3, checkpointer=checkpointer)

        def train(step: Step) -> None:
            apply(model.trainer, step.sequence)
            step.record(b"", "t")

        for number in range(1, 8):
            await call(model, number, train)
            assert model.checkpointer is not None
            if (pending := model.checkpointer.pending(number)) is not None:
                await asyncio.wrap_future(pending)
        assert model.durable == 6

    with written() as (snapshots, checkpointer):
        asyncio.run(test(checkpointer))
    assert [snapshot.sequence for snapshot in snapshots] == [3, 6]
    for snapshot in snapshots:
        assert equal(dict(snapshot.tensors), undisturbed(snapshot.sequence).state())
        progress = Progress.unpack(snapshot.sequence, snapshot.responses())
        assert [response.sequence for response in progress.responses] == list(range(1, snapshot.sequence + 1))


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, ValueError, KeyError], ids=lambda error: error.__name__)
def test_a_call_is_done_even_if_its_state_cannot_be_cloned(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Any:
        raise error("no memory")

    async def test(checkpointer: Any) -> None:
        model = new_model(durable_every=1, checkpointer=checkpointer)
        monkeypatch.setattr(model.trainer, "state", fail)
        await call(model, 1, lambda step: step.record(b"", "t"))
        assert (model.sequence, model.durable) == (1, 0)
        assert model.durable_error == f"state 1 could not be saved: {error('no memory')}"
        assert f"model {model.id}: state 1 could not be cloned" in caplog.text

    with written() as (snapshots, checkpointer):
        asyncio.run(test(checkpointer))
    assert snapshots == []


def test_work_is_brief_if_equal_work_was_the_last_time() -> None:
    model = new_model()
    assert not model.is_brief("step")
    model.took("step", BRIEF_S / 2)
    assert model.is_brief("step")
    assert not model.is_brief("forward")
    model.took("step", BRIEF_S * 2)
    assert not model.is_brief("step")
    for kind in range(1000):  # batches of ever other shapes
        model.took(kind, BRIEF_S / 2)
    assert len(model._seconds) <= 64
    model.replace(model.spec, model.trainer, 0)
    assert not model.is_brief(999)


def test_the_memory_of_cuda_graphs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model()
    before = model.nbytes
    monkeypatch.setattr(Trainer, "graph_nbytes", 12345)
    assert model.nbytes == before + 12345
