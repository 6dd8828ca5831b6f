"""The deaths that the training has to survive."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence

from .orders import ANSWERING, COMPUTING, HELD, KERNELS, STARTING, Order

COMPUTATION, ANSWER, START = "in the computation", "in the answer", "in the start"
SAVE, POWER, NEW = "in a save", "in a save, with the power", "in the first save of a model"
LATER = "after a save, with the power"
REQUEST, ANY, EARLY, GRACEFUL = "in the request", "at random, training", "at random, from the start on", "SIGTERM"


#: The event that makes a state the newest.
COMMIT = "rename of manifest"


def all_kinds(events: Sequence[str], new: Sequence[str], seed: int, quick: bool) -> list[Order]:
    """Each place at least once, and moments that nobody chose, shuffled.

    Args:
        events: what happens in a save, in order.
        new: what happens in the first save of a model, in order.
        seed: of the order and the moments.
        quick: a part, with every kind and every place in a computation.
    """
    chance = random.Random(seed)
    times = 1 if quick else 2

    def nth() -> int:
        return chance.randint(1, 3)

    saves = _spread(events, 3) if quick else list(events)
    lost = _spread(events[1:-1], 2) if quick else list(events)
    answering = (HELD, ANSWERING[2]) if quick else ANSWERING
    orders = [Order(COMPUTATION, point, nth()) for point in COMPUTING for _ in range(times)]
    orders += [Order(COMPUTATION, point, 2 * nth() - 1) for point in KERNELS for _ in range(times)]
    orders += [Order(ANSWER, point, 1 if point == HELD else nth()) for point in answering for _ in range(times)]
    orders += [Order(START, point) for point in (STARTING[1:2] if quick else STARTING)]
    orders += [Order(SAVE, f"save: {event}") for event in saves]
    orders += [Order(POWER, f"save: {event}", power_loss=True) for event in lost]
    # So many calls after a life began that it has saved.
    later = (Order(LATER, COMPUTING[0], 3 + nth() + nth(), power_loss=True) for _ in range(times))
    orders += later
    orders += [Order(REQUEST, signal=signal.SIGKILL) for _ in range(times)]
    orders += [Order(ANY, after=chance.uniform(0, 0.3), signal=signal.SIGKILL) for _ in range(2 if quick else 10)]
    early = [Order(EARLY, after=chance.uniform(0, 0.6), from_fork=True, signal=signal.SIGKILL) for _ in range(4)]
    orders += early[: 1 if quick else 4]
    chance.shuffle(orders)
    # A model has to be there before it can be loaded, and no call may have been answered that is to come from disk.
    first = next(order for order in orders if order.point == HELD)
    return [*_of_new_models(new, quick), first, *(order for order in orders if order is not first)]


def _of_new_models(events: Sequence[str], quick: bool) -> list[Order]:
    """Each event up to the one that makes the state valid: until then there is no model, and its save is the first."""
    events = events[: events.index(COMMIT) + 1]
    if quick:
        return [Order(NEW, f"save: {events[len(events) // 2]}", power_loss=True)]
    kinds = ((NEW, False), (f"{NEW}, with the power", True))
    return [Order(kind, f"save: {event}", power_loss=lost) for event in events for kind, lost in kinds]


def graceful(seed: int, count: int) -> list[Order]:
    """SIGTERM at moments that nobody chose."""
    chance = random.Random(seed)
    return [Order(GRACEFUL, after=chance.uniform(0.05, 0.4), signal=signal.SIGTERM) for _ in range(count)]


def _spread(events: Sequence[str], count: int) -> list[str]:
    """So many of them, from the first to the last."""
    if len(events) <= count:
        return list(events)
    return [events[place * (len(events) - 1) // (count - 1)] for place in range(count)]
