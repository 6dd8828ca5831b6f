"""The queue of the computing thread: order, batches, and work that is withdrawn, late or fails."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from exodus_service.compute.scheduler import DeadlineError, Queue, QueueFullError, Scheduler, Slot
from exodus_service.gradients.batching import Batcher, BatchKey


@dataclass(eq=False)
class Request:
    """A member of one letter: equal letters run together."""

    name: str
    nbytes: int = 1
    looked_at: int = 0

    @property
    def batch_key(self) -> BatchKey | None:
        self.looked_at += 1
        return None if self.name.startswith("-") else BatchKey(self.name[0], self.nbytes)


@dataclass(frozen=True)
class Recording(Batcher):
    """Tells `compute` instead of computing."""

    compute: Callable[[list[Request]], None] = lambda _members: None

    def run(self, batch: Sequence[Slot]) -> None:
        self.compute([slot.member for slot in batch])


class Desk:
    """A scheduler whose thread is held until `open`, and a record of what it did."""

    def __init__(self, **batching: Any) -> None:
        self.done: list[str] = []
        self.together: list[list[str]] = []
        self.slots: list[Slot] = []
        options: dict[str, Any] = {"compute": self.compute, "max_requests": 4, "max_bytes": 1000} | batching
        self.scheduler = Scheduler("test", max_requests=100, max_bytes=10_000, batching=Recording(**options))
        self.release = threading.Event()
        self.scheduler.execute(self.release.wait)

    def compute(self, members: list[Request]) -> None:
        self.together.append([member.name for member in members])

    def submit(
        self, name: str, *, nbytes: int = 1, deadline: float | None = None, work: Callable[[], Any] | None = None
    ) -> Future[Any]:
        def record() -> str:
            self.done.append(name)
            return name

        slot = self.scheduler.admit(0)
        self.slots.append(slot)
        member = Request(name, nbytes)
        return slot.submit(work or record, deadline, member)

    def open(self) -> None:
        self.release.set()
        self.scheduler.execute(lambda: None).result(timeout=5)

    def close(self) -> None:
        self.release.set()
        for slot in self.slots:
            slot.__exit__(None, None, None)
        self.scheduler.execute(lambda: None).result(timeout=5)
        assert (self.scheduler.requests, self.scheduler.bytes, self.scheduler.waiting) == (0, 0, 0)
        self.scheduler.close()


@pytest.fixture
def desk() -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(**batching: Any) -> Desk:
        desks.append(Desk(**batching))
        return desks[-1]

    yield make
    for one in desks:
        one.close()


def submitted(desk: Desk, names: str) -> list[Future[Any]]:
    return [desk.submit(name) for name in names.split()]


def test_what_is_alike_and_waits_runs_together(desk: Any) -> None:
    desk = desk()
    futures = submitted(desk, "a1 a2 b1 a3 b2 c1")
    desk.open()
    assert desk.together == [["a1", "a2", "a3"], ["b1", "b2"]]
    assert desk.done == ["a1", "a2", "a3", "b1", "b2", "c1"]
    assert [future.result() for future in futures] == ["a1", "a2", "b1", "a3", "b2", "c1"]


def test_work_without_batch_key_or_member_runs_alone_in_its_order(desk: Any) -> None:
    desk = desk()
    submitted(desk, "-1 -2 a1 -3")
    desk.slots.append(desk.scheduler.admit(0))
    desk.slots[-1].submit(lambda: desk.done.append("plain"))
    submitted(desk, "a2")
    desk.open()
    assert desk.together == [["a1", "a2"]]
    assert desk.done == ["-1", "-2", "a1", "a2", "-3", "plain"]


def test_a_batch_keeps_to_its_bounds(desk: Callable[..., Desk]) -> None:
    one = desk(max_requests=3)
    submitted(one, "a1 a2 a3 a4 a5 a6 a7")
    one.open()
    assert one.together == [["a1", "a2", "a3"], ["a4", "a5", "a6"]]
    other = desk(max_bytes=10)
    for name, nbytes in (("a1", 6), ("a2", 6), ("a3", 3), ("a4", 1), ("a5", 100), ("a6", 1)):
        other.submit(name, nbytes=nbytes)
    other.open()
    assert other.together == [["a1", "a3", "a4"], ["a2", "a6"]]
    assert other.done == ["a1", "a3", "a4", "a2", "a6", "a5"]


def test_a_batch_of_one_is_no_batch(desk: Any) -> None:
    desk = desk(max_requests=1)
    submitted(desk, "a1 a2")
    desk.open()
    assert desk.together == []
    assert desk.done == ["a1", "a2"]


def test_nothing_is_overtaken_by_more_than_a_batch(desk: Any) -> None:
    desk = desk(max_requests=4)
    submitted(desk, "a1 b1 c1 d1 a2 a3 b2 b3 b4 c2 a4 d2")
    desk.open()
    order = desk.done
    arrived = ["a1", "b1", "c1", "d1", "a2", "a3", "b2", "b3", "b4", "c2", "a4", "d2"]
    for place, name in enumerate(arrived):
        behind = arrived[place + 1 :]
        overtaken_by = [other for other in behind if order.index(other) < order.index(name)]
        assert len(overtaken_by) <= 4, (name, overtaken_by)
    # The first batch takes three past d1, the second may take one more past it.
    assert desk.together[:2] == [["a1", "a2", "a3", "a4"], ["b1", "b2"]]


def test_a_stream_of_requests_that_combine_does_not_starve_another(desk: Any) -> None:
    desk = desk(max_requests=4)
    more = iter(range(1000))

    def feed() -> str:
        desk.done.append("a")
        if next(more) < 500:
            desk.submit("a", work=feed)  # one more for each that is done: they always wait
        return "a"

    for _ in range(20):
        desk.submit("a", work=feed)
    lonely = desk.submit("b")
    desk.release.set()
    lonely.result(timeout=5)
    assert desk.done.index("b") <= 20 + 4


def test_work_past_its_deadline_and_withdrawn_work_are_left_out_of_a_batch(desk: Any) -> None:
    desk = desk()
    first = desk.submit("a1")
    late = desk.submit("a2", deadline=time.monotonic() - 1)
    gone = desk.submit("a3")
    last = desk.submit("a4")
    desk.slots.pop(2).__exit__(None, None, None)
    desk.open()
    assert desk.together == [["a1", "a4"]]
    assert (first.result(), last.result()) == ("a1", "a4")
    assert isinstance(late.exception(), DeadlineError)
    assert gone.cancelled()


def test_work_whose_future_is_cancelled_is_not_done_though_its_slot_is_held(desk: Any) -> None:
    desk = desk()
    futures = submitted(desk, "a1 a2 a3 -1")
    assert futures[1].cancel()
    assert futures[3].cancel()
    desk.open()
    assert desk.together == [["a1", "a3"]]
    assert desk.done == ["a1", "a3"]


def test_work_that_is_cancelled_while_the_batch_is_put_together_is_not_done(desk: Any) -> None:
    desk = desk()

    class Leaving(Request):
        slot: Slot

        @property
        def batch_key(self) -> BatchKey | None:
            self.slot.__exit__(None, None, None)
            return super().batch_key

    futures = submitted(desk, "a1 a2")
    member = Leaving("a3")
    member.slot = desk.scheduler.admit(0)
    futures.append(member.slot.submit(lambda: desk.done.append("a3"), None, member))
    futures += submitted(desk, "a4")
    desk.open()
    assert desk.together == [["a1", "a2", "a4"]]
    assert futures[2].cancelled()


def test_one_that_fails_does_not_take_the_others_with_it(desk: Any) -> None:
    desk = desk()

    def fail() -> None:
        raise ValueError("this one")

    futures = [desk.submit("a1"), desk.submit("a2", work=fail), desk.submit("a3")]
    desk.open()
    assert [futures[0].result(), futures[2].result()] == ["a1", "a3"]
    with pytest.raises(ValueError, match="this one"):
        futures[1].result()


def test_a_fault_in_what_they_have_in_common_is_told_to_each(desk: Any) -> None:
    def broken(_members: list[Request]) -> None:
        raise RuntimeError("a bug")

    desk = desk(compute=broken)
    futures = submitted(desk, "a1 a2 b1")
    desk.open()
    for future in futures[:2]:
        with pytest.raises(RuntimeError, match="a bug"):
            future.result()
    assert futures[2].result() == "b1"


def test_results_that_fill_the_queue_stop_a_batch_where_they_do(desk: Any) -> None:
    desk = desk()

    def large() -> None:
        desk.slots[0].resize(20_000)

    futures = [desk.submit("a1", work=large), desk.submit("a2")]
    desk.open()
    assert futures[0].result() is None
    assert isinstance(futures[1].exception(), QueueFullError)


def test_what_work_holds_is_free_when_it_has_run(desk: Any) -> None:
    desk = desk()

    class Body:
        pass

    bodies = [Body(), Body()]
    freed = [weakref.ref(body) for body in bodies]
    for body in bodies:
        desk.submit("a", work=lambda body=body: type(body).__name__)
    del bodies, body
    desk.open()
    gc.collect()
    assert [body() for body in freed] == [None, None]


@pytest.fixture
def slot() -> Iterator[Callable[..., Slot]]:
    """Makes slots whose work is never done."""
    idle = Scheduler("idle", max_requests=10, max_bytes=100)

    def make(name: str, nbytes: int = 1) -> Slot:
        made = idle.admit(0)
        made.submitted, made.member = time.monotonic(), Request(name, nbytes)
        return made

    yield make
    idle.close()


def test_without_a_delay_nothing_waits_for_company(slot: Callable[..., Slot]) -> None:
    queue = Queue(Batcher(max_requests=4, max_bytes=100))
    queue.put(slot("a"))
    began = time.monotonic()
    assert len(queue.take()) == 1
    assert queue.take() == []
    assert time.monotonic() - began < 0.05


def test_what_is_too_large_for_a_batch_is_not_even_looked_at(slot: Callable[..., Slot]) -> None:
    queue = Queue(Batcher(max_requests=4, max_bytes=100))
    slots = [slot("a1", 101), slot("a2"), slot("a3", 101)]
    for one in slots:
        queue.put(one)
    assert [len(queue.take()) for _ in slots] == [1, 1, 1]
    assert [one.member.looked_at > 0 for one in slots] == [False, True, False]


def test_with_a_delay_work_waits_for_company_until_it_is_over(slot: Callable[..., Slot]) -> None:
    queue = Queue(Batcher(max_requests=4, max_bytes=100, delay=0.2))
    queue.put(slot("a1"))
    threading.Timer(0.05, queue.put, [slot("a2")]).start()
    began = time.monotonic()
    assert [one.member.name for one in queue.take()] == ["a1", "a2"]
    assert 0.15 < time.monotonic() - began < 1


@pytest.mark.parametrize("ends", ["full", "stranger"])
def test_a_delay_ends_when_the_batch_is_full_or_something_else_waits(ends: str, slot: Callable[..., Slot]) -> None:
    queue = Queue(Batcher(max_requests=2, max_bytes=100, delay=30))
    queue.put(slot("a1"))
    other = slot("a2" if ends == "full" else "b1")
    threading.Timer(0.05, queue.put, [other]).start()
    began = time.monotonic()
    assert len(queue.take()) == (2 if ends == "full" else 1)
    assert time.monotonic() - began < 20


def test_closing_cancels_what_waits(desk: Any) -> None:
    desk = desk()
    futures = submitted(desk, "a1 a2")
    waiting = desk.scheduler
    waiting.close()
    assert all(isinstance(future, Future) and future.cancelled() for future in futures)
    desk.release.set()
    for slot in desk.slots:
        slot.__exit__(None, None, None)
    assert (waiting.requests, waiting.bytes) == (0, 0)
    desk.slots.clear()
    desk.scheduler = Scheduler("next", max_requests=1, max_bytes=1)


def test_a_slot_counts_what_it_takes_until_it_is_given_back_and_not_any_more() -> None:
    scheduler = Scheduler("test", max_requests=1, max_bytes=100)
    with scheduler.admit(5) as slot:
        slot.resize(40)
        assert (scheduler.requests, scheduler.bytes) == (1, 40)
        slot.give_up_place()  # as a result that is kept
        with scheduler.admit(10):
            assert (scheduler.requests, scheduler.bytes) == (1, 50)
    slot.resize(70)  # by a thread that goes on after its request was left
    slot.give_up_place()
    assert (scheduler.requests, scheduler.bytes) == (0, 0)
    scheduler.close()


def test_a_slot_says_whether_its_work_could_be_stopped() -> None:
    scheduler = Scheduler("test", max_requests=3, max_bytes=100)
    started, finish = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        finish.wait(10)

    with scheduler.admit(0) as idle, scheduler.admit(0) as running, scheduler.admit(0) as waiting:
        assert idle.stop()
        running.submit(hold)
        assert started.wait(10)
        future = waiting.submit(lambda: None)
        assert not running.stop()
        assert waiting.stop()
        assert future.cancelled()
        finish.set()
    scheduler.close()


def test_a_place_is_kept_until_everything_that_is_attached_to_it_has_ended() -> None:
    scheduler = Scheduler("test", max_requests=1, max_bytes=100)
    helpers: list[Future[None]] = [Future(), Future()]
    with scheduler.admit(5) as slot:
        for helper in helpers:
            slot.attach(helper)
        slot.submit(lambda: None).result(10)
    helpers[0].set_result(None)
    assert (scheduler.requests, scheduler.bytes) == (1, 5)
    slot.reserve(40)  # by the one that goes on
    assert (scheduler.requests, scheduler.bytes) == (1, 40)
    helpers[1].cancel()
    assert (scheduler.requests, scheduler.bytes) == (0, 0)
    scheduler.close()


@dataclass(frozen=True)
class Delayed(Batcher):
    """Waits for compatible work."""

    delay: float = 0.01


def is_alone(scheduler: Scheduler) -> bool:
    with scheduler.admit(1) as slot:
        return slot.is_alone


def test_work_of_the_only_request_may_be_done_at_once() -> None:
    scheduler = Scheduler("test", max_requests=3, max_bytes=100)
    with scheduler.admit(1) as slot:
        assert slot.is_alone
        assert slot.at_once(threading.current_thread) is threading.current_thread()
    with scheduler.admit(1):  # which may be large
        assert not is_alone(scheduler)
    with scheduler.admit(1) as slot:
        with pytest.raises(ZeroDivisionError):
            slot.at_once(lambda: 1 / 0)
        with pytest.raises(DeadlineError):
            slot.at_once(lambda: None, time.monotonic() - 1)
        slot.resize(101)
        assert slot.at_once(lambda: 1) == 1  # one that is alone may be of any size
    assert (scheduler.requests, scheduler.bytes, scheduler.waiting) == (0, 0, 0)
    scheduler.close()


def test_a_request_is_not_alone_while_the_thread_has_work() -> None:
    scheduler = Scheduler("test", max_requests=3, max_bytes=100)
    held = threading.Event()
    busy = scheduler.execute(lambda: held.wait(10))
    assert not is_alone(scheduler)
    held.set()
    busy.result(10)
    withdrawn = scheduler.execute(lambda: None)
    withdrawn.cancel()
    scheduler.execute(lambda: None).result(10)
    until = time.monotonic() + 10
    while not is_alone(scheduler):  # what was cancelled is not waited for
        assert time.monotonic() < until
    scheduler.close()


def test_work_at_once_and_the_thread_never_compute_at_the_same_time() -> None:
    scheduler = Scheduler("test", max_requests=3, max_bytes=100)
    running: list[None] = []
    most: list[int] = []

    def work() -> None:
        running.append(None)
        most.append(len(running))
        time.sleep(0.001)
        running.pop()

    def meanwhile() -> None:
        for _ in range(50):
            scheduler.execute(work).result(10)

    other = threading.Thread(target=meanwhile)
    other.start()
    while other.is_alive():
        with scheduler.admit(1) as slot:
            slot.at_once(work)
    other.join()
    assert max(most) == 1
    scheduler.close()


def test_work_that_waits_for_compatible_work_does_so_on_the_thread() -> None:
    scheduler = Scheduler("test", max_requests=3, max_bytes=100, batching=Delayed(max_requests=2, max_bytes=100))
    assert not is_alone(scheduler)
    scheduler.close()
