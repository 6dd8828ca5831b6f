"""Settings of a client as values: timeouts, retries, limits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from exodus_client import _constants as defaults
from exodus_client._checks import integer, is_real, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout:
    """Waiting times in seconds; None waits without end.

    Attributes:
        connect: for a connection, the addresses of the host included.
        write: for the network to take the next chunk of a request.
        read: for the head of an answer, the time in the server's queue included; then for the next bytes of its body.
        total: for a whole call with its retries and waits, however slowly anything goes or comes. The server is told
            what is left of it, and drops what comes too late. In training it is for each request; the calls have
            patience.
    """

    connect: float | None = defaults.CONNECT_TIMEOUT
    write: float | None = defaults.WRITE_TIMEOUT
    read: float | None = defaults.READ_TIMEOUT
    total: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "write", "read", "total"):
            value = getattr(self, name)
            if value is None:
                continue
            seconds = _float(value)
            if not 0 < seconds <= defaults.LONGEST:
                wanted = f"a number of seconds above 0, up to {defaults.LONGEST:g}, or None"
                raise ValueError(f"Timeout.{name} must be {wanted}, got {shown(value)}")
            object.__setattr__(self, name, seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """Retries after failures, with exponential backoff and jitter.

    The n-th retry comes `first_delay * 2**n` seconds after its failure, at most `max_delay`, shortened at random by up
    to the fraction `jitter`; a longer `Retry-After` of the server is honoured.

    Attributes:
        count: retries after the first attempt; 0 for none.
        max_retry_after: longest `Retry-After` that is waited for; a longer one raises the error at once.
        sleep: what waits, for tests and for other kinds of threads.
    """

    count: int = defaults.RETRIES
    first_delay: float = defaults.FIRST_DELAY
    max_delay: float = defaults.MAX_DELAY
    jitter: float = defaults.JITTER
    max_retry_after: float = defaults.MAX_RETRY_AFTER
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", integer("Retries.count", self.count, 0, 2**63 - 1))
        for name, most in (
            ("first_delay", math.inf),
            ("max_delay", math.inf),
            ("max_retry_after", math.inf),
            ("jitter", 1),
        ):
            value = getattr(self, name)
            number = _float(value)
            if not 0 <= number <= most:
                raise ValueError(f"Retries.{name} must be a number from 0 to {most}, got {shown(value)}")
            object.__setattr__(self, name, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on requests at a time, and on the size of an answer.

    Attributes:
        max_in_flight: requests at a time, each with a connection and a thread.
        max_response_bytes: largest answer, checked before memory is taken for it.
    """

    max_in_flight: int = defaults.MAX_IN_FLIGHT
    max_response_bytes: int = defaults.MAX_RESPONSE_BYTES

    def __post_init__(self) -> None:
        for name in ("max_in_flight", "max_response_bytes"):
            object.__setattr__(self, name, integer(f"Limits.{name}", getattr(self, name), 1, 2**63 - 1))


def _float(value: Any) -> float:
    """A number as a float of Python, which sockets and clocks take; NaN for what is none."""
    try:
        return float(value) if is_real(value) else math.nan
    except OverflowError:  # an integer beyond all floats
        return math.nan
