"""A request while it is served: its id, when it arrived, and where its time went."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

#: Id of the request that the current task serves, for log lines; empty outside of requests.
current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")


@dataclass
class Timings:
    """Seconds spent in the phases of a call; zero for a phase that was not reached.

    `arrived` is a time.monotonic() value. `queue` is the wait from the last byte of the body to the computation, less
    the decoding meanwhile. `batch` is the number of requests that were computed together.
    """

    arrived: float = field(default_factory=time.monotonic)
    receive: float = 0.0
    queue: float = 0.0
    decode: float = 0.0
    kernel: float = 0.0
    encode: float = 0.0
    batch: int = 1

    def received(self) -> None:
        """The body is there, as far as it is going to be."""
        self.receive = time.monotonic() - self.arrived

    def begin(self) -> None:
        """The computing thread turns to the call; only the first time counts."""
        if not self.queue:
            self.queue = time.monotonic() - self.arrived - self.receive - self.decode

    @contextmanager
    def phase(self, name: Literal["decode", "kernel", "encode"]) -> Iterator[None]:
        """Add the time that the block takes to a phase."""
        began = time.monotonic()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.monotonic() - began)

    def computed_together(self, others: int, seconds: float) -> None:
        """The neurons of this call and of `others` took these seconds together, which each of them waited for."""
        self.batch, self.kernel = 1 + others, seconds


@dataclass
class Context:
    """One request, from its first to its last byte.

    `headers` has the first value of each, by its name in lower case; `arrived` is a time.monotonic() value; `owner`
    tells callers with different API keys apart; `closing` ends the connection with the response.
    """

    request_id: str
    path: str
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    owner: str = ""
    arrived: float = field(default_factory=time.monotonic)
    timings: Timings = field(init=False)
    bytes_in: int = 0
    bytes_out: int = 0
    status: int = 0
    closing: bool = False

    def __post_init__(self) -> None:
        self.timings = Timings(self.arrived)

    @property
    def elapsed(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self.arrived

    def server_timing(self) -> str:
        """Value of the Server-Timing header, in milliseconds."""
        spent = self.timings
        value = (
            f"receive;dur={spent.receive * 1e3:.3f}, queue;dur={spent.queue * 1e3:.3f}, "
            f"decode;dur={spent.decode * 1e3:.3f}, kernel;dur={spent.kernel * 1e3:.3f}, "
            f"encode;dur={spent.encode * 1e3:.3f}, total;dur={self.elapsed * 1e3:.3f}"
        )
        return value if spent.batch == 1 else f'{value}, batch;desc="{spent.batch}"'
