"""What is known about one request while it is served: its name, when it came, where its time went."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

#: Name of the request that the current task serves, for log lines; empty outside of requests.
current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")


@dataclass
class Timings:
    """Seconds spent in the phases of a request; a phase that was not reached took none.

    `batch` is the number of requests that were computed together.
    """

    receive: float = 0.0
    queue: float = 0.0
    decode: float = 0.0
    kernel: float = 0.0
    encode: float = 0.0
    batch: int = 1


@dataclass
class Context:
    """One request, from its first to its last byte.

    `arrived` is a time.monotonic() value; `owner` tells callers with different API keys apart; `closing` ends the
    connection with the response.
    """

    request_id: str
    path: str
    owner: str = ""
    arrived: float = field(default_factory=time.monotonic)
    timings: Timings = field(default_factory=Timings)
    bytes_in: int = 0
    bytes_out: int = 0
    status: int = 0
    closing: bool = False

    @property
    def elapsed(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self.arrived

    def server_timing(self) -> str:
        """The value of the Server-Timing header, in milliseconds."""
        spent = dict(vars(self.timings))
        batch = spent.pop("batch")
        metrics = [f"{name};dur={seconds * 1e3:.3f}" for name, seconds in spent.items()]
        metrics.append(f"total;dur={self.elapsed * 1e3:.3f}")
        if batch > 1:
            metrics.append(f'batch;desc="{batch}"')
        return ", ".join(metrics)
