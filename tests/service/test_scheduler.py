"""What runs together, in which order, and what becomes of work that is withdrawn, late or wrong."""

import gc
import threading
import time
import weakref
from concurrent.futures import Future
from dataclasses import dataclass

import pytest

from exodus_service.compute.queue import Entry, Likeness, Waiting
from exodus_service.compute.scheduler import Batching, DeadlineError, QueueFullError, Scheduler


@dataclass(eq=False)
class Request:
    """A member of one letter: equal letters run together."""

    name: str
    nbytes: int = 1
    looked_at: int = 0

    @property
    def likeness(self):
        self.looked_at += 1
        return None if self.name.startswith("-") else Likeness(self.name[0], self.nbytes)


class Desk:
    """A scheduler whose thread is held until `open`, and a record of what it did."""

    def __init__(self, **batching):
        self.done, self.together, self.tickets = [], [], []
        options = {"run": self.compute, "max_requests": 4, "max_bytes": 1000} | batching
        self.scheduler = Scheduler("test", max_requests=100, max_bytes=10_000, batching=Batching(**options))
        self.release = threading.Event()
        self.scheduler.execute(self.release.wait)

    def compute(self, members):
        self.together.append([member.name for member in members])

    def submit(self, name, *, nbytes=1, deadline=None, work=None):
        ticket = self.scheduler.admit(0)
        self.tickets.append(ticket)
        member = Request(name, nbytes)
        return ticket.submit(work or (lambda: self.done.append(name) or name), deadline, member)

    def open(self):
        self.release.set()
        self.scheduler.execute(lambda: None).result(timeout=5)

    def close(self):
        self.release.set()
        for ticket in self.tickets:
            ticket.__exit__(None, None, None)
        self.scheduler.execute(lambda: None).result(timeout=5)
        assert (self.scheduler.requests, self.scheduler.bytes, self.scheduler.waiting) == (0, 0, 0)
        self.scheduler.close()


@pytest.fixture
def desk():
    desks = []

    def make(**batching):
        desks.append(Desk(**batching))
        return desks[-1]

    yield make
    for one in desks:
        one.close()


def submitted(desk, names):
    return [desk.submit(name) for name in names.split()]


def test_what_is_alike_and_waits_runs_together(desk):
    desk = desk()
    futures = submitted(desk, "a1 a2 b1 a3 b2 c1")
    desk.open()
    assert desk.together == [["a1", "a2", "a3"], ["b1", "b2"]]
    assert desk.done == ["a1", "a2", "a3", "b1", "b2", "c1"]
    assert [future.result() for future in futures] == ["a1", "a2", "b1", "a3", "b2", "c1"]


def test_work_without_likeness_or_member_runs_alone_in_its_order(desk):
    desk = desk()
    submitted(desk, "-1 -2 a1 -3")
    desk.tickets.append(desk.scheduler.admit(0))
    desk.tickets[-1].submit(lambda: desk.done.append("plain"))
    submitted(desk, "a2")
    desk.open()
    assert desk.together == [["a1", "a2"]]
    assert desk.done == ["-1", "-2", "a1", "a2", "-3", "plain"]


def test_a_batch_keeps_to_its_bounds(desk):
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


def test_a_batch_of_one_is_no_batch(desk):
    desk = desk(max_requests=1)
    submitted(desk, "a1 a2")
    desk.open()
    assert desk.together == []
    assert desk.done == ["a1", "a2"]


def test_nothing_is_overtaken_by_more_than_a_batch(desk):
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


def test_a_stream_of_requests_that_combine_does_not_starve_another(desk):
    desk = desk(max_requests=4)
    more = iter(range(1000))

    def feed():
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


def test_work_past_its_deadline_and_withdrawn_work_are_left_out_of_a_batch(desk):
    desk = desk()
    first = desk.submit("a1")
    late = desk.submit("a2", deadline=time.monotonic() - 1)
    gone = desk.submit("a3")
    last = desk.submit("a4")
    desk.tickets.pop(2).__exit__(None, None, None)
    desk.open()
    assert desk.together == [["a1", "a4"]]
    assert (first.result(), last.result()) == ("a1", "a4")
    assert isinstance(late.exception(), DeadlineError)
    assert gone.cancelled()


def test_work_whose_future_is_cancelled_is_not_done_though_its_ticket_is_held(desk):
    desk = desk()
    futures = submitted(desk, "a1 a2 a3 -1")
    assert futures[1].cancel()
    assert futures[3].cancel()
    desk.open()
    assert desk.together == [["a1", "a3"]]
    assert desk.done == ["a1", "a3"]


def test_work_that_is_cancelled_while_the_batch_is_put_together_is_not_done(desk):
    desk = desk()

    class Leaving(Request):
        @property
        def likeness(self):
            self.ticket.__exit__(None, None, None)
            return super().likeness

    futures = submitted(desk, "a1 a2")
    member = Leaving("a3")
    member.ticket = desk.scheduler.admit(0)
    futures.append(member.ticket.submit(lambda: desk.done.append("a3"), None, member))
    futures += submitted(desk, "a4")
    desk.open()
    assert desk.together == [["a1", "a2", "a4"]]
    assert futures[2].cancelled()


def test_one_that_fails_does_not_take_the_others_with_it(desk):
    desk = desk()

    def fail():
        raise ValueError("this one")

    futures = [desk.submit("a1"), desk.submit("a2", work=fail), desk.submit("a3")]
    desk.open()
    assert [futures[0].result(), futures[2].result()] == ["a1", "a3"]
    with pytest.raises(ValueError, match="this one"):
        futures[1].result()


def test_a_fault_in_what_they_have_in_common_is_told_to_each(desk):
    def broken(_members):
        raise RuntimeError("a bug")

    desk = desk(run=broken)
    futures = submitted(desk, "a1 a2 b1")
    desk.open()
    for future in futures[:2]:
        with pytest.raises(RuntimeError, match="a bug"):
            future.result()
    assert futures[2].result() == "b1"


def test_results_that_fill_the_queue_stop_a_batch_where_they_do(desk):
    desk = desk()

    def large():
        desk.tickets[0].resize(20_000)

    futures = [desk.submit("a1", work=large), desk.submit("a2")]
    desk.open()
    assert futures[0].result() is None
    assert isinstance(futures[1].exception(), QueueFullError)


def test_what_work_holds_is_free_when_it_has_run(desk):
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


def test_without_a_delay_nothing_waits_for_company():
    waiting = Waiting(Batching(lambda _members: None, max_requests=4, max_bytes=100))
    waiting.put(Entry(lambda: None, None, Request("a")))
    began = time.monotonic()
    assert len(waiting.take()) == 1
    assert waiting.take() == []
    assert time.monotonic() - began < 0.05


def test_what_is_too_large_for_a_batch_is_not_even_looked_at():
    waiting = Waiting(Batching(lambda _members: None, max_requests=4, max_bytes=100))
    requests = [Request("a1", 101), Request("a2"), Request("a3", 101)]
    for request in requests:
        waiting.put(Entry(lambda: None, None, request))
    assert [len(waiting.take()) for _ in requests] == [1, 1, 1]
    assert [request.looked_at for request in requests] == [0, 1, 0]


def test_with_a_delay_work_waits_for_company_until_it_is_over():
    waiting = Waiting(Batching(lambda _members: None, max_requests=4, max_bytes=100, delay=0.2))
    waiting.put(Entry(lambda: None, None, Request("a1")))
    threading.Timer(0.05, waiting.put, [Entry(lambda: None, None, Request("a2"))]).start()
    began = time.monotonic()
    assert [entry.member.name for entry in waiting.take()] == ["a1", "a2"]
    assert 0.15 < time.monotonic() - began < 1


@pytest.mark.parametrize("ends", ["full", "stranger"])
def test_a_delay_ends_when_the_batch_is_full_or_something_else_waits(ends):
    waiting = Waiting(Batching(lambda _members: None, max_requests=2, max_bytes=100, delay=30))
    waiting.put(Entry(lambda: None, None, Request("a1")))
    other = Entry(lambda: None, None, Request("a2" if ends == "full" else "b1"))
    threading.Timer(0.05, waiting.put, [other]).start()
    assert len(waiting.take()) == (2 if ends == "full" else 1)


def test_closing_cancels_what_waits(desk):
    desk = desk()
    futures = submitted(desk, "a1 a2")
    waiting = desk.scheduler
    waiting.close()
    assert all(isinstance(future, Future) and future.cancelled() for future in futures)
    desk.release.set()
    for ticket in desk.tickets:
        ticket.__exit__(None, None, None)
    assert (waiting.requests, waiting.bytes) == (0, 0)
    desk.tickets.clear()
    desk.scheduler = Scheduler("next", max_requests=1, max_bytes=1)


def test_a_ticket_counts_what_it_takes_until_it_is_given_back_and_not_any_more():
    scheduler = Scheduler("test", max_requests=1, max_bytes=100)
    with scheduler.admit(5) as ticket:
        ticket.resize(40)
        assert (scheduler.requests, scheduler.bytes) == (1, 40)
        ticket.step_aside()  # as a result that is kept
        with scheduler.admit(10):
            assert (scheduler.requests, scheduler.bytes) == (1, 50)
    ticket.resize(70)  # by a thread that goes on after its request was left
    ticket.step_aside()
    assert (scheduler.requests, scheduler.bytes) == (0, 0)
    scheduler.close()


def test_a_ticket_says_whether_its_work_could_be_stopped():
    scheduler = Scheduler("test", max_requests=3, max_bytes=100)
    started, finish = threading.Event(), threading.Event()
    with scheduler.admit(0) as idle, scheduler.admit(0) as running, scheduler.admit(0) as waiting:
        assert idle.stop()
        running.submit(lambda: (started.set(), finish.wait(10)))
        assert started.wait(10)
        future = waiting.submit(lambda: None)
        assert not running.stop()
        assert waiting.stop()
        assert future.cancelled()
        finish.set()
    scheduler.close()


def test_a_place_is_kept_until_everything_that_is_attached_to_it_has_ended():
    scheduler = Scheduler("test", max_requests=1, max_bytes=100)
    helpers = [Future(), Future()]
    with scheduler.admit(5) as ticket:
        for helper in helpers:
            ticket.attach(helper)
        ticket.submit(lambda: None).result(10)
    helpers[0].set_result(None)
    assert (scheduler.requests, scheduler.bytes) == (1, 5)
    ticket.reserve(40)  # by the one that goes on
    assert (scheduler.requests, scheduler.bytes) == (1, 40)
    helpers[1].cancel()
    assert (scheduler.requests, scheduler.bytes) == (0, 0)
    scheduler.close()
