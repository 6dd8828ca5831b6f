"""Which failures are worth another attempt, and how long to wait before it."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from exodus_client import _constants as defaults
from exodus_client._config import Retries
from exodus_client._errors import APIConnectionError, APIStatusError, ExodusError

_ALWAYS = frozenset({408, 429})
_NEVER_UNASKED = frozenset({501, 507})


def is_retryable(error: ExodusError) -> bool:
    """Whether the same request may succeed later: by what the server says, otherwise by the status."""
    if isinstance(error, APIStatusError):
        status = error.status_code
        if status in _ALWAYS:
            return True
        if status == 409 or status in _NEVER_UNASKED:
            return error.retryable is True
        return status >= 500 and error.retryable is not False
    return isinstance(error, APIConnectionError)


def delay(attempt: int, error: ExodusError, retries: Retries) -> float | None:
    """Seconds to wait after the failure of an attempt (0, 1, ...), or None where the error is to be raised."""
    if attempt >= retries.count or not is_retryable(error):
        return None
    wait = backoff(attempt, retries)
    wanted = error.retry_after if isinstance(error, APIStatusError) else None
    if wanted is None:
        return wait
    return None if wanted > retries.max_retry_after else min(max(wanted, wait), defaults.LONGEST_WAIT)


def backoff(attempt: int, retries: Retries) -> float:
    """Seconds to wait after attempt 0, 1, ... before the next, where nobody asks for more."""
    # The exponent is bounded because 2.0**1024 is an OverflowError, and max_delay is reached long before.
    longest = min(retries.max_delay, retries.first_delay * 2.0 ** min(attempt, 60))
    return longest * (1 - retries.jitter * random.random())


def parse_retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, a number or an HTTP date; None if it is absent or neither."""
    if value is None:
        return None
    if value.strip().isdecimal() and value.isascii():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        # A date without a zone is in UTC, as all HTTP dates are.
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)
    except (ValueError, OverflowError):  # OverflowError: a year, or a zone, of many digits
        return None
    return max(0.0, seconds.total_seconds())
