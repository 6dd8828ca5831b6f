"""Whose turn it is on a model: in order, one at a time, exactly once, whoever leaves."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from training_store import ADAM, LOSS, NETWORK, apply, batch, equal, undisturbed

from exodus_core import network as networks
from exodus_core.training import Trainer
from exodus_service.errors import ServiceError
from exodus_service.models.fingerprint import fingerprint, same
from exodus_service.models.model import Bounds, Model, Snapshot, Turn
from exodus_service.models.progress import MAX_ANSWERS, Answer, Progress, joined
from exodus_service.models.storage.checkpoint import Header

LONG = 5.0


class Shelf:
    """Takes snapshots, and remembers them."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def submit(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)


def new_model(wait: float = LONG, answer_bytes: int = 1000, durable_every: int = 10, **options: Any) -> Model:
    description = networks.parse(NETWORK)
    trainer = Trainer(networks.build(description, 0), ADAM)
    header = Header("m", "", "", "2026", description.data, trainer.optimizer_data, 0, durable_every, "")
    return Model(header, description, trainer, Bounds(answer_bytes, wait), **options)


class Device:
    """One thread that computes, whose work may be held up."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.thread = ThreadPoolExecutor(1)
        self.done: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.began = threading.Event()

    def work(self, turn: Turn, fail: bool = False) -> None:
        self.began.set()
        assert self.free.wait(10)
        if fail:
            raise RuntimeError("the work failed")
        turn.record(f"answer {turn.sequence}".encode(), "t")
        self.done.append(turn.sequence)

    async def call(
        self,
        number: int,
        digest: str | None = None,
        deadline: float | None = None,
        writer: str | None = None,
        work: Callable[[Turn], Any] | None = None,
    ) -> bytes | None:
        async with self.model.turn(number, digest or str(number), deadline, writer) as turn:
            if isinstance(turn, Answer):
                return turn.body
            guarded = turn.guard(lambda: (work or self.work)(turn))
            await asyncio.wrap_future(self.thread.submit(guarded))
            return b"done"


def on_loop(test: Callable[[Device], Awaitable[None]], **options: Any) -> Model:
    """Run a test on an event loop, with a model and a thread; none of them may hang."""

    async def run() -> Model:
        device = Device(new_model(**options))
        try:
            await asyncio.wait_for(test(device), 20)
        finally:
            device.free.set()
            device.thread.shutdown()
        return device.model

    return asyncio.run(run())


async def problem(call: Awaitable[Any]) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await call
    return caught.value


async def soon(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        await asyncio.sleep(0.002)


def test_calls_that_arrive_in_any_order_are_done_in_the_order_of_their_numbers() -> None:
    async def test(device: Device) -> None:
        await asyncio.gather(*(device.call(number) for number in (8, 3, 5, 1, 7, 2, 6, 4)))
        assert device.done == [1, 2, 3, 4, 5, 6, 7, 8]

    assert on_loop(test).sequence == 8


def test_a_call_that_was_done_is_answered_again_and_not_done_again() -> None:
    async def test(device: Device) -> None:
        assert await device.call(1) == b"done"
        assert await device.call(2) == b"done"
        assert await device.call(1) == b"answer 1"
        assert await device.call(2) == b"answer 2"
        assert device.done == [1, 2]

    on_loop(test)


def test_another_call_of_a_number_that_is_done_conflicts_and_names_the_writer() -> None:
    async def test(device: Device) -> None:
        await device.call(1, writer="alice")
        await device.call(2)
        wrong = await problem(device.call(1, digest="other"))
        assert wrong.code == "sequence_conflict"
        assert "another client" in wrong.detail
        assert "call 1" in wrong.detail
        assert "2 calls are done" in wrong.detail
        assert "'alice'" in wrong.detail
        assert wrong.faults[0] == ("/params/sequence", "3", "1")
        assert "without a name" in (await problem(device.call(2, digest="other"))).detail

    on_loop(test)


def test_a_duplicate_of_the_running_call_waits_and_shares_its_answer() -> None:
    async def test(device: Device) -> None:
        device.free.clear()
        first = asyncio.create_task(device.call(1))
        await asyncio.to_thread(device.began.wait)
        copies = [asyncio.create_task(device.call(1)) for _ in range(3)]
        other = asyncio.create_task(device.call(1, digest="other"))
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in (*copies, other))
        device.free.set()
        assert await first == b"done"
        assert await asyncio.gather(*copies) == [b"answer 1"] * 3
        assert (await problem(other)).code == "sequence_conflict"
        assert device.done == [1]

    on_loop(test)


def test_a_duplicate_does_the_work_where_the_first_call_failed() -> None:
    async def test(device: Device) -> None:
        device.free.clear()
        first = asyncio.create_task(device.call(1, work=lambda turn: device.work(turn, fail=True)))
        await asyncio.to_thread(device.began.wait)
        copy = asyncio.create_task(device.call(1))
        await asyncio.sleep(0.02)
        device.free.set()
        with pytest.raises(RuntimeError):
            await first
        assert await copy == b"done"
        assert device.done == [1]

    on_loop(test)


def test_a_call_that_failed_consumes_nothing() -> None:
    async def test(device: Device) -> None:
        with pytest.raises(RuntimeError):
            await device.call(1, work=lambda turn: device.work(turn, fail=True))
        assert device.model.sequence == 0
        assert await device.call(1, digest="mended") == b"done"

    on_loop(test)


def test_a_gap_that_fills_is_waited_for() -> None:
    async def test(device: Device) -> None:
        late = asyncio.create_task(device.call(3))
        await asyncio.sleep(0.05)
        await device.call(1)
        await asyncio.sleep(0.05)
        assert not late.done()
        await device.call(2)
        assert await late == b"done"

    on_loop(test)


def test_a_gap_that_does_not_fill_is_named_after_the_wait() -> None:
    async def test(device: Device) -> None:
        await device.call(1)
        began = time.monotonic()
        wrong = await problem(device.call(4))
        assert 0.05 <= time.monotonic() - began < 2
        assert wrong.code == "sequence_gap"
        assert not wrong.kind.retryable
        assert wrong.errors == (("/params/sequence", "2", "4"),)
        assert "2" in wrong.detail
        assert "4" in wrong.detail
        assert await device.call(2) == b"done"

    on_loop(test, wait=0.05)


def test_the_wait_for_a_gap_does_not_run_while_a_call_runs() -> None:
    """Eight calls ahead wait longer than the bound where each takes a while."""

    async def test(device: Device) -> None:
        def slowly(turn: Turn) -> None:
            time.sleep(0.04)
            device.work(turn)

        await asyncio.gather(*(device.call(number, work=slowly) for number in range(8, 0, -1)))
        assert device.done == list(range(1, 9))

    on_loop(test, wait=0.1)


def test_calls_that_come_together_are_near_and_those_behind_a_gap_are_not() -> None:
    async def test(device: Device) -> None:
        device.free.clear()
        calls = [asyncio.ensure_future(device.call(number)) for number in (1, 2, 3, 6)]
        await soon(lambda: device.model.near(4))
        assert [number for number in range(1, 10) if device.model.near(number)] == [1, 2, 3, 4]
        calls += [asyncio.ensure_future(device.call(number)) for number in (4, 5)]
        await soon(lambda: device.model.near(5))
        assert [number for number in range(1, 10) if device.model.near(number)] == [1, 2, 3, 4, 5]  # four ahead
        device.free.set()
        await asyncio.gather(*calls)
        assert device.done == [1, 2, 3, 4, 5, 6]

    on_loop(test)


def test_a_call_is_near_when_the_one_before_it_has_its_turn() -> None:
    async def test(device: Device) -> None:
        model = device.model
        assert [model.near(number) for number in (1, 2, 3)] == [True, False, False]
        await model.approach(1)
        later = asyncio.ensure_future(model.approach(2))
        await asyncio.sleep(0.02)
        assert not later.done()
        device.free.clear()
        running = asyncio.ensure_future(device.call(1))
        await later
        assert model.sequence == 0
        assert [model.near(number) for number in (1, 2, 3)] == [True, True, False]
        device.free.set()
        await running
        await model.approach(1)

    on_loop(test)


def test_a_call_whose_turn_does_not_come_near_is_told_of_the_gap() -> None:
    async def test(device: Device) -> None:
        wrong = await problem(device.model.approach(3))
        assert wrong.code == "sequence_gap"
        assert wrong.faults[0] == ("/params/sequence", "1", "3")
        assert (await problem(device.model.approach(2, time.monotonic()))).code == "sequence_gap"

    on_loop(test, wait=0.1)


def test_a_call_that_is_out_of_reach_waits_no_longer_though_others_are_done() -> None:
    async def test(device: Device) -> None:
        far = [
            problem(device.call(2**62)),
            problem(device.model.approach(2**62)),
            problem(device.model.wait_for(2**62)),
        ]
        waiting = asyncio.gather(*far)
        number = 0
        while not waiting.done():
            number += 1
            await device.call(number)
        assert [wrong.code for wrong in await waiting] == ["sequence_gap"] * 3

    on_loop(test, wait=0.2)


def test_a_deadline_ends_the_wait() -> None:
    async def test(device: Device) -> None:
        assert (await problem(device.call(2, deadline=time.monotonic() + 0.02))).code == "sequence_gap"
        device.free.clear()
        running = asyncio.create_task(device.call(1))
        await asyncio.to_thread(device.began.wait)
        late = await problem(device.call(2, deadline=time.monotonic() + 0.02))
        assert late.code == "deadline"
        assert "call 1 is running" in late.detail
        device.free.set()
        await running
        assert await device.call(2) == b"done"

    on_loop(test)


def test_work_goes_on_and_is_recorded_where_the_client_leaves() -> None:
    async def test(device: Device) -> None:
        device.free.clear()
        leaving = asyncio.create_task(device.call(1))
        await asyncio.to_thread(device.began.wait)
        leaving.cancel()
        await asyncio.wait({leaving})
        again, next_one = (asyncio.create_task(device.call(number)) for number in (1, 2))
        await asyncio.sleep(0.02)
        device.free.set()
        assert await again == b"answer 1"
        assert await next_one == b"done"
        assert await device.call(1) == b"answer 1"
        assert device.done == [1, 2]

    on_loop(test)


def test_work_that_has_not_begun_is_not_done_where_the_client_leaves() -> None:
    async def test(device: Device) -> None:
        async with device.model.turn(1, "1") as turn:
            assert isinstance(turn, Turn)
            guarded = turn.guard(lambda: device.work(turn))
        refused = device.thread.submit(guarded)
        await soon(refused.done)
        assert isinstance(refused.exception(), CancelledError)
        assert device.done == []
        assert await device.call(1) == b"done"

    on_loop(test)


def test_a_call_that_leaves_while_it_waits_harms_nobody() -> None:
    async def test(device: Device) -> None:
        waiting = [asyncio.create_task(device.call(number)) for number in (3, 2)]
        await asyncio.sleep(0.02)
        waiting[1].cancel()
        await asyncio.wait({waiting[1]})
        await device.call(1)
        await device.call(2)
        assert await waiting[0] == b"done"

    on_loop(test)


def test_forward_waits_until_a_call_has_been_done() -> None:
    async def test(device: Device) -> None:
        await device.model.wait_for(0)
        waiting = asyncio.create_task(device.model.wait_for(2))
        await device.call(1)
        await asyncio.sleep(0.02)
        assert not waiting.done()
        await device.call(2)
        await waiting
        assert (await problem(device.model.wait_for(4, time.monotonic() + 0.02))).code == "sequence_gap"

    on_loop(test)


def test_exclusive_use_comes_between_calls_in_the_order_of_arrival() -> None:
    async def test(device: Device) -> None:
        found: list[list[int]] = []
        device.free.clear()

        async def exclusively() -> None:
            async with device.model.exclusive():
                await asyncio.sleep(0.02)
                found.append(list(device.done))

        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(device.call(number)) for number in (1, 2)]
        await asyncio.to_thread(device.began.wait)
        tasks += [asyncio.create_task(exclusively()), asyncio.create_task(device.call(3))]
        await asyncio.sleep(0.02)
        device.free.set()
        await asyncio.gather(*tasks)
        assert found == [[1, 2]]
        assert device.done == [1, 2, 3]

    on_loop(test)


def test_a_model_that_is_closed_refuses_those_that_wait_and_lets_the_running_call_end() -> None:
    async def test(device: Device) -> None:
        device.free.clear()
        running = asyncio.create_task(device.call(1))
        await asyncio.to_thread(device.began.wait)
        waiting = [asyncio.create_task(call) for call in (device.call(2), device.model.wait_for(1))]
        await asyncio.sleep(0.01)
        device.model.close(lambda: ServiceError("not_found", "deleted"))
        for task in waiting:
            assert (await problem(task)).code == "not_found"
        device.free.set()
        assert await running == b"done"
        assert (await problem(device.call(2))).code == "not_found"

    on_loop(test)


def test_a_call_that_changed_the_trainer_and_was_not_done_is_not_trusted() -> None:
    """The work fails in the middle: after the gradients are there, or after the weights have changed."""
    x, targets = batch(1)

    def step(turn: Turn) -> None:
        turn.model.trainer.step(x, targets, LOSS)
        raise MemoryError("while the answer was encoded")

    def accumulate(turn: Turn) -> None:
        turn.model.trainer.forward_backward(x, targets, LOSS)
        raise MemoryError("while the answer was encoded")

    def harmless(turn: Turn) -> None:
        turn.model.trainer.forward(x, train=True)
        raise MemoryError("in the forward pass")

    for work, broken in ((step, True), (accumulate, True), (harmless, False)):
        told: list[Model] = []

        async def test(device: Device, work: Callable[[Turn], Any] = work, broken: bool = broken) -> None:
            with pytest.raises(MemoryError):
                await device.call(1, work=work)
            await asyncio.sleep(0.01)
            assert device.model.turns.idle

        model = on_loop(test, on_broken=told.append)
        assert told == ([model] if broken else [])


def test_every_change_of_a_trainer_is_seen_and_nothing_else() -> None:
    layers = [{"kind": "linear", "out_features": 3}, {"kind": "lif", "alpha": 0.9}, {"kind": "dropout", "p": 0.5}]
    trainer = Trainer(networks.build({"input_shape": [5], "layers": layers}, 0), ADAM)
    x, targets = batch(1)
    changes = (
        (lambda: trainer.forward(x, train=True), False),
        (lambda: trainer.begin(x), False),
        (lambda: trainer.forward_backward(x, targets, LOSS), True),
        (lambda: trainer.forward_backward(x, targets, LOSS), True),
        (lambda: trainer.optim_step(), True),
        (lambda: trainer.step(x, targets, LOSS), True),
        (lambda: trainer.state(), False),
    )
    for change, changed in changes:
        before = fingerprint(trainer)
        change()
        assert same(before, fingerprint(trainer)) != changed


def test_a_state_is_cloned_at_every_nth_number_and_stays_as_it_was() -> None:
    shelf = Shelf()

    async def test(device: Device) -> None:
        def train(turn: Turn) -> None:
            apply(turn.model.trainer, turn.sequence)
            turn.record(b"", "t")

        for number in range(1, 8):
            await device.call(number, work=train)

    on_loop(test, keeper=shelf, durable_every=3, durable=0)
    assert [snapshot.progress.sequence for snapshot in shelf.snapshots] == [3, 6]
    for snapshot in shelf.snapshots:
        assert equal(snapshot.tensors, undisturbed(snapshot.progress.sequence).state())
        assert [answer.sequence for answer in snapshot.progress.answers] == list(
            range(1, snapshot.progress.sequence + 1)
        )


def test_a_state_that_cannot_be_cloned_does_not_undo_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(device: Device) -> None:
        def full() -> Any:
            raise MemoryError("no memory")

        monkeypatch.setattr(device.model.trainer, "state", full)
        assert await device.call(1) == b"done"
        assert device.model.sequence == 1
        assert "cloned" in (device.model.durable_error or "")

    on_loop(test, keeper=Shelf(), durable_every=1)


def progress_of(*sizes: int, max_bytes: int = 10_000) -> Progress:
    progress = Progress()
    for number, size in enumerate(sizes, 1):
        progress = progress.after(Answer(number, str(number), None, "t", bytes(size)), max_bytes)
    return progress


def test_answers_are_bounded_in_number() -> None:
    progress = progress_of(*[1] * (MAX_ANSWERS + 5))
    assert len(progress.answers) == MAX_ANSWERS
    assert progress.replay(6, "6").body == b"\0"
    with pytest.raises(ServiceError, match="not kept") as caught:
        progress.replay(5, "5")
    assert caught.value.code == "answer_expired"


def test_answers_are_bounded_in_bytes_and_the_oldest_make_room() -> None:
    progress = progress_of(40, 40, 40, max_bytes=100)
    assert progress.nbytes == 80
    with pytest.raises(ServiceError) as caught:
        progress.replay(1, "1")
    assert caught.value.code == "answer_expired"
    assert len(progress.replay(2, "2").body or b"") == 40
    with pytest.raises(ServiceError) as caught:
        progress.replay(1, "another")
    assert caught.value.code == "sequence_conflict", "the digest is remembered without the body"


def test_an_answer_larger_than_the_bound_is_not_copied() -> None:
    assert joined([bytes(60), memoryview(bytes(41))], 100) is None
    tensor = torch.zeros(10)
    copied = joined([b"a", tensor.numpy().data], 100)
    tensor += 1
    assert copied == b"a" + bytes(40)
    assert joined(memoryview(b"whole"), 100) == b"whole"
    assert joined(bytearray(b"whole"), 5) == b"whole"


def test_answers_come_back_from_their_packed_form() -> None:
    progress = progress_of(3, 90, 20, max_bytes=100).after(Answer(4, "4", "w", "x/y", None), 100)
    assert Progress.unpack(4, progress.pack()) == progress
    assert Progress.unpack(0, Progress().pack()) == Progress()
