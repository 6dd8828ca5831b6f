"""Training calls are done in order, one at a time, exactly once, even if clients disconnect."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from exodus_service.errors import ServiceError
from exodus_service.models.sequencer import (
    MAX_CACHED_RESPONSES,
    CachedResponse,
    Progress,
    Sequencer,
    SequencerLimits,
    Step,
    joined,
)

LONG = 5.0


class Device:
    """A sequencer and a computing thread, whose work may be held up."""

    def __init__(self, wait: float = LONG) -> None:
        self.sequencer = Sequencer(SequencerLimits(1000, wait))
        self.thread = ThreadPoolExecutor(1)
        self.done: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.began = threading.Event()

    def work(self, step: Step, fail: bool = False) -> None:
        self.began.set()
        assert self.free.wait(10)
        if fail:
            raise RuntimeError("the work failed")
        step.record(f"answer {step.sequence}".encode(), "t")
        self.done.append(step.sequence)

    async def call(
        self,
        number: int,
        digest: str | None = None,
        deadline: float | None = None,
        writer: str | None = None,
        work: Callable[[Step], Any] | None = None,
    ) -> bytes | None:
        async with self.sequencer.step(number, digest or str(number), deadline, writer) as step:
            if isinstance(step, CachedResponse):
                return step.body
            guarded = step.guard(lambda: (work or self.work)(step))
            await asyncio.wrap_future(self.thread.submit(guarded))
            return b"done"


def on_loop(test: Callable[[Device], Awaitable[None]], wait: float = LONG) -> Sequencer:
    """Run a test on an event loop, with a sequencer and a thread; none of them may hang."""

    async def run() -> Sequencer:
        device = Device(wait)
        try:
            await asyncio.wait_for(test(device), 20)
        finally:
            device.free.set()
            device.thread.shutdown()
        return device.sequencer

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


def test_calls_arriving_in_any_order_are_done_in_the_order_of_their_numbers() -> None:
    async def test(device: Device) -> None:
        await asyncio.gather(*(device.call(number) for number in (8, 3, 5, 1, 7, 2, 6, 4)))
        assert device.done == [1, 2, 3, 4, 5, 6, 7, 8]

    assert on_loop(test).sequence == 8


def test_a_repeated_call_gets_the_cached_response_and_is_not_done_again() -> None:
    async def test(device: Device) -> None:
        assert await device.call(1) == b"done"
        assert await device.call(2) == b"done"
        assert await device.call(1) == b"answer 1"
        assert await device.call(2) == b"answer 2"
        assert device.done == [1, 2]

    on_loop(test)


def test_a_different_call_with_a_number_already_done_conflicts_and_names_the_writer() -> None:
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


def test_duplicates_of_the_running_call_wait_and_get_its_response() -> None:
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


def test_a_duplicate_does_the_work_if_the_first_call_failed() -> None:
    async def test(device: Device) -> None:
        device.free.clear()
        first = asyncio.create_task(device.call(1, work=lambda step: device.work(step, fail=True)))
        await asyncio.to_thread(device.began.wait)
        copy = asyncio.create_task(device.call(1))
        await asyncio.sleep(0.02)
        device.free.set()
        with pytest.raises(RuntimeError):
            await first
        assert await copy == b"done"
        assert device.done == [1]

    on_loop(test)


def test_a_failed_call_does_not_use_up_its_number() -> None:
    async def test(device: Device) -> None:
        with pytest.raises(RuntimeError):
            await device.call(1, work=lambda step: device.work(step, fail=True))
        assert device.sequencer.sequence == 0
        assert await device.call(1, digest="mended") == b"done"

    on_loop(test)


def test_a_call_waits_for_a_gap_to_be_filled() -> None:
    async def test(device: Device) -> None:
        late = asyncio.create_task(device.call(3))
        await asyncio.sleep(0.05)
        await device.call(1)
        await asyncio.sleep(0.05)
        assert not late.done()
        await device.call(2)
        assert await late == b"done"

    on_loop(test)


def test_a_gap_that_is_not_filled_in_time_is_an_error_naming_the_next_number() -> None:
    async def test(device: Device) -> None:
        await device.call(1)
        began = time.monotonic()
        wrong = await problem(device.call(4))
        assert 0.05 <= time.monotonic() - began < 2
        assert wrong.code == "sequence_gap"
        assert wrong.faults == (("/params/sequence", "2", "4"),)
        assert "2" in wrong.detail
        assert "4" in wrong.detail
        assert await device.call(2) == b"done"

    on_loop(test, wait=0.05)


def test_the_time_limit_of_a_gap_is_suspended_while_a_call_runs() -> None:
    """Eight calls ahead wait longer than the bound where each takes a while."""

    async def test(device: Device) -> None:
        def slowly(step: Step) -> None:
            time.sleep(0.04)
            device.work(step)

        await asyncio.gather(*(device.call(number, work=slowly) for number in range(8, 0, -1)))
        assert device.done == list(range(1, 9))

    on_loop(test, wait=0.1)


def test_calls_arriving_together_are_near_and_those_behind_a_gap_are_not() -> None:
    async def test(device: Device) -> None:
        device.free.clear()
        calls = [asyncio.ensure_future(device.call(number)) for number in (1, 2, 3, 6)]
        await soon(lambda: device.sequencer.is_near(4))
        assert [number for number in range(1, 10) if device.sequencer.is_near(number)] == [1, 2, 3, 4]
        calls += [asyncio.ensure_future(device.call(number)) for number in (4, 5)]
        await soon(lambda: device.sequencer.is_near(5))
        assert [number for number in range(1, 10) if device.sequencer.is_near(number)] == [1, 2, 3, 4, 5]  # four ahead
        device.free.set()
        await asyncio.gather(*calls)
        assert device.done == [1, 2, 3, 4, 5, 6]

    on_loop(test)


def test_a_call_is_near_while_the_one_before_it_runs() -> None:
    async def test(device: Device) -> None:
        sequencer = device.sequencer
        assert [sequencer.is_near(number) for number in (1, 2, 3)] == [True, False, False]
        await sequencer.wait_until_near(1)
        later = asyncio.ensure_future(sequencer.wait_until_near(2))
        await asyncio.sleep(0.02)
        assert not later.done()
        device.free.clear()
        running = asyncio.ensure_future(device.call(1))
        await later
        assert sequencer.sequence == 0
        assert [sequencer.is_near(number) for number in (1, 2, 3)] == [True, True, False]
        device.free.set()
        await running
        await sequencer.wait_until_near(1)

    on_loop(test)


def test_waiting_to_be_near_ends_in_a_gap_error() -> None:
    async def test(device: Device) -> None:
        wrong = await problem(device.sequencer.wait_until_near(3))
        assert wrong.code == "sequence_gap"
        assert wrong.faults[0] == ("/params/sequence", "1", "3")
        assert (await problem(device.sequencer.wait_until_near(2, time.monotonic()))).code == "sequence_gap"

    on_loop(test, wait=0.1)


def test_a_call_too_far_ahead_waits_a_bounded_time_even_if_others_are_done_meanwhile() -> None:
    async def test(device: Device) -> None:
        far = [
            problem(device.call(2**62)),
            problem(device.sequencer.wait_until_near(2**62)),
            problem(device.sequencer.wait_until_done(2**62)),
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


def test_running_work_finishes_and_is_recorded_if_the_client_disconnects() -> None:
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


def test_work_that_has_not_begun_is_cancelled_if_the_client_disconnects() -> None:
    async def test(device: Device) -> None:
        async with device.sequencer.step(1, "1") as step:
            assert isinstance(step, Step)
            guarded = step.guard(lambda: device.work(step))
        refused = device.thread.submit(guarded)
        await soon(refused.done)
        assert isinstance(refused.exception(), CancelledError)
        assert device.done == []
        assert await device.call(1) == b"done"

    on_loop(test)


def test_cancelling_a_waiting_call_does_not_affect_the_others() -> None:
    async def test(device: Device) -> None:
        waiting = [asyncio.create_task(device.call(number)) for number in (3, 2)]
        await asyncio.sleep(0.02)
        waiting[1].cancel()
        await asyncio.wait({waiting[1]})
        await device.call(1)
        await device.call(2)
        assert await waiting[0] == b"done"

    on_loop(test)


def test_wait_until_done_returns_after_that_call() -> None:
    async def test(device: Device) -> None:
        await device.sequencer.wait_until_done(0)
        waiting = asyncio.create_task(device.sequencer.wait_until_done(2))
        await device.call(1)
        await asyncio.sleep(0.02)
        assert not waiting.done()
        await device.call(2)
        await waiting
        assert (await problem(device.sequencer.wait_until_done(4, time.monotonic() + 0.02))).code == "sequence_gap"

    on_loop(test)


def test_an_exclusive_lease_is_granted_between_calls_in_the_order_of_arrival() -> None:
    async def test(device: Device) -> None:
        found: list[list[int]] = []
        device.free.clear()

        async def exclusively() -> None:
            async with device.sequencer.exclusive():
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


def test_closing_refuses_waiting_calls_and_lets_the_running_call_finish() -> None:
    async def test(device: Device) -> None:
        device.free.clear()
        running = asyncio.create_task(device.call(1))
        await asyncio.to_thread(device.began.wait)
        waiting = [asyncio.create_task(call) for call in (device.call(2), device.sequencer.wait_until_done(1))]
        await asyncio.sleep(0.01)
        device.sequencer.close(lambda: ServiceError("not_found", "deleted"))
        for task in waiting:
            assert (await problem(task)).code == "not_found"
        device.free.set()
        assert await running == b"done"
        assert (await problem(device.call(2))).code == "not_found"

    on_loop(test)


def progress_of(*sizes: int, max_bytes: int = 10_000) -> Progress:
    progress = Progress()
    for number, size in enumerate(sizes, 1):
        progress = progress.after(CachedResponse(number, str(number), None, "t", bytes(size)), max_bytes)
    return progress


def test_cached_responses_are_bounded_in_number() -> None:
    progress = progress_of(*[1] * (MAX_CACHED_RESPONSES + 5))
    assert len(progress.responses) == MAX_CACHED_RESPONSES
    assert progress.replay(6, "6").body == b"\0"
    with pytest.raises(ServiceError, match="no longer cached") as caught:
        progress.replay(5, "5")
    assert caught.value.code == "answer_expired"


def test_cached_responses_are_bounded_in_bytes_and_the_oldest_are_evicted() -> None:
    progress = progress_of(40, 40, 40, max_bytes=100)
    assert progress.nbytes == 80
    with pytest.raises(ServiceError) as caught:
        progress.replay(1, "1")
    assert caught.value.code == "answer_expired"
    assert len(progress.replay(2, "2").body or b"") == 40
    with pytest.raises(ServiceError) as caught:
        progress.replay(1, "another")
    assert caught.value.code == "sequence_conflict", "the digest is remembered without the body"


def test_a_response_larger_than_the_bound_is_not_copied() -> None:
    assert joined([bytes(60), memoryview(bytes(41))], 100) is None
    tensor = torch.zeros(10)
    copied = joined([b"a", tensor.numpy().data], 100)
    tensor += 1
    assert copied == b"a" + bytes(40)
    assert joined(memoryview(b"whole"), 100) == b"whole"
    assert joined(bytearray(b"whole"), 5) == b"whole"


def test_cached_responses_survive_packing() -> None:
    progress = progress_of(3, 90, 20, max_bytes=100).after(CachedResponse(4, "4", "w", "x/y", None), 100)
    assert Progress.unpack(4, progress.pack()) == progress
    assert Progress.unpack(0, Progress().pack()) == Progress()


def test_the_durable_watermark_follows_successful_saves_only() -> None:
    sequencer = Sequencer(SequencerLimits(1000, LONG), Progress(2), durable=2)

    def watermark() -> tuple[int | None, bool, str | None]:
        return sequencer.durable, sequencer.dirty, sequencer.durable_error

    assert watermark() == (2, False, None)
    sequencer.record(CachedResponse(3, "3", None, "t", b""))
    assert watermark() == (2, True, None)
    sequencer.saved(3, OSError("disk full"))
    assert watermark() == (2, True, "state 3 could not be saved: disk full")
    sequencer.saved(3, None)
    assert watermark() == (3, False, None)
    sequencer.restart(1)
    assert (sequencer.sequence, sequencer.durable, sequencer.dirty) == (1, 1, False)


def test_a_model_in_memory_only_is_never_dirty_or_durable() -> None:
    sequencer = Sequencer(SequencerLimits(1000, LONG))
    sequencer.record(CachedResponse(1, "1", None, "t", b""))
    sequencer.restart(5)
    assert (sequencer.sequence, sequencer.durable, sequencer.dirty) == (5, None, False)
