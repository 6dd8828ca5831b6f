"""Keeps a server running on one port and one folder, as a machine's supervisor does, and has it killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .orders import LATE, Order

ROOT = Path(__file__).parents[2]
#: Seconds that a server may take to come to the place where it is to die.
PATIENCE = 30.0


@dataclass(frozen=True)
class Death:
    """The end of one life. `where` is the place that was reached."""

    order: Order
    where: str
    status: int
    seconds: float


class Supervisor:
    """Starts servers, one after the other.

    Args:
        folder: for logs; in it `state` is where models are saved, unless `state` says otherwise.
        orders: how the lives end, in turn; when they are used up the server lives on.
        settings: of the service, by the names of environment variables without EXODUS_.
        state: the folder that models are saved in.
        trace: have each event of each save reported, in `events`.
        on_start: called with the order of each life as it starts.

    Attributes:
        port: of the server.
        full: while there is a file of this name, writing a state fails as on a disk that is full.
        deaths: the lives that have ended as they were ordered to.
        failures: what has ended otherwise.
        events, first_events: labels of what happens in a save, in order; in the first save of a model.
        lost: states that a save had made durable, and that did not come back.
        recorded: how often each training call, (model, sequence number), was computed and recorded.
    """

    def __init__(
        self,
        folder: Path,
        orders: Iterable[Order] = (),
        *,
        settings: Mapping[str, object] | None = None,
        state: Path | None = None,
        trace: bool = False,
        on_start: Callable[[Order], None] = lambda order: None,
    ) -> None:
        self.folder = folder
        self.state = state or folder / "state"
        self.full = folder / "full"
        self.port = _free_port()
        self.deaths: list[Death] = []
        self.failures: list[str] = []
        self.events: list[str] = []
        self.first_events: list[str] = []
        self.recorded: Counter[tuple[str, int]] = Counter()
        self.lost: list[str] = []
        self._saved: dict[str, int] = {}
        self.lives = 0
        self._on_start = on_start
        self._tries = 5
        self._orders = deque(orders)
        self._order = Order()
        self._trace = trace
        environment = {"STATE_DIR": self.state, "LOG_LEVEL": "info", **(settings or {})}
        self._environment = {f"EXODUS_{name}": str(value) for name, value in environment.items()}
        self._lock = threading.Condition()
        self._pid: int | None = None
        self._died = ""
        self._began = 0.0
        self._halted = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def order(self) -> Order:
        """Order for the present life."""
        return self._order

    @property
    def left(self) -> int:
        """Lives that are still to end by an order."""
        with self._lock:
            return len(self._orders) + (self._order.kind != "none" and self._pid is not None)

    @property
    def log(self) -> str:
        """The log of all lives."""
        path = self.folder / "server.log"
        return path.read_text() if path.exists() else ""

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._forker = subprocess.Popen(
            [sys.executable, "-m", "tools.chaos.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            # Forking needs a process with one thread, and numpy's library starts some.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )
        threading.Thread(target=self._listen, name="supervisor", daemon=True).start()
        if not self._orders:
            self.begin()
            self.wait_ready()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        assert self._forker.stdin is not None
        self._forker.stdin.close()
        self._forker.wait(timeout=30)
        if self.tracebacks:
            print(self.tracebacks, file=sys.stderr)

    @property
    def tracebacks(self) -> str:
        """Tracebacks in the log; "" if there are none."""
        lines = self.log.splitlines()
        starts = [place for place, line in enumerate(lines) if line.startswith("Traceback")]
        return "\n".join(line for start in starts[:3] for line in lines[max(0, start - 1) : start + 60])

    def events_of(self, since: int) -> str:
        """The log from an offset on, without the lines for each request."""
        return "\n".join(line for line in self.log[since:].splitlines() if " status=" not in line)

    def wait_for_deaths(self, count: int, seconds: float) -> bool:
        """Wait until so many lives have ended as ordered, or the time is over; whether they have."""
        with self._lock:
            return self._lock.wait_for(lambda: len(self.deaths) >= count, timeout=seconds)

    def begin(self) -> None:
        """Start the first life; without orders that is done on entering."""
        with self._lock:
            self._start()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the server that lives."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._pid is not None:
                os.kill(self._pid, number)

    def restart(self, number: int = signal.SIGKILL) -> None:
        """End this life by a signal, and wait until the next one is ready."""
        with self._lock:
            self._order = Order(kind=self._order.kind, signal=number)
            lives = self.lives
        self.kill(number)
        with self._lock:
            self._lock.wait_for(lambda: self.lives > lives, timeout=60)
        self.wait_ready()

    def halt(self, number: int = signal.SIGTERM) -> None:
        """End this life by a signal, and start no other until `resume`."""
        with self._lock:
            self._halted = True
            self._order = Order(kind=self._order.kind, signal=number)
        self.kill(number)
        with self._lock:
            if not self._lock.wait_for(lambda: self._pid is None, timeout=60):
                raise RuntimeError("the server does not end")

    def resume(self) -> None:
        """Start a server again."""
        with self._lock:
            self._halted = False
            self._start()
        self.wait_ready()

    def stop(self) -> None:
        """End it for good."""
        with self._lock:
            self._halted = True
            self._order = Order(signal=signal.SIGKILL)
        self.kill()
        with self._lock:
            self._lock.wait_for(lambda: self._pid is None, timeout=60)

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Return when a server answers that it is ready."""
        ends = time.monotonic() + seconds
        while not self._ready():
            if time.monotonic() > ends:
                raise RuntimeError(f"no server is ready:\n{self.log[-3000:]}")
            time.sleep(0.01)

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _listen(self) -> None:
        assert self._forker.stdout is not None
        for line in self._forker.stdout:
            message = json.loads(line)
            with self._lock:
                self._heard(message)
                self._lock.notify_all()

    def _heard(self, message: dict[str, Any]) -> None:
        if "started" in message:
            self._pid = message["started"]
            self.lives += 1
            if self._order.after is not None:
                threading.Thread(target=self._end_later, args=(self._pid, self._order), daemon=True).start()
            elif self._order.kind != "none":
                overdue = threading.Timer(PATIENCE, self._overdue, (self._pid,))
                overdue.daemon = True
                overdue.start()
            self._on_start(self._order)
        elif "event" in message:
            events = self.first_events if message["first"] else self.events
            if message["event"] not in events:
                events.append(message["event"])
        elif "recorded" in message:
            id, sequence = message["recorded"]
            self.recorded[id, sequence] += 1
        elif "saved" in message:
            id, sequence = message["saved"]
            self._saved[id] = sequence
        elif "loaded" in message:
            id, sequence = message["loaded"]
            if sequence < self._saved.get(id, 0):
                self.lost.append(f"{id} was saved at {self._saved[id]} and came back at {sequence}")
        elif "died" in message:
            self._died = message["died"]
        elif "ended" in message:
            self._ended(message["status"])

    def _start(self) -> None:
        self._order = self._orders.popleft() if self._orders else Order()
        self._died = ""
        self._began = time.monotonic()
        message = {
            "order": self._order.plain(),
            "log": str(self.folder / "server.log"),
            "environment": self._environment,
            "port": self.port,
            "trace": self._trace,
            "full": str(self.full),
        }
        assert self._forker.stdin is not None
        self._forker.stdin.write(json.dumps(message).encode() + b"\n")
        self._forker.stdin.flush()

    def _ended(self, status: int) -> None:
        order, self._pid = self._order, None
        expected = {0: 0, signal.SIGTERM: 0}.get(order.signal, -order.signal) if order.signal else -signal.SIGKILL
        died_as_told = status == expected and (bool(self._died) or order.signal or not order.point)
        if order.kind == "none" and not order.signal:
            died_as_told = False
        if died_as_told and order.kind == "none":
            pass
        elif died_as_told:
            where = self._died.removeprefix("save: ")
            self.deaths.append(Death(order, where, status, time.monotonic() - self._began))
            if self._died == LATE and self._tries:
                self._tries -= 1
                self._orders.append(order)
        else:
            self.failures.append(f"a life that was to end by {order} ended with status {status}, at {self._died!r}")
        if not self._halted:
            self._start()

    def _end_later(self, pid: int, order: Order) -> None:
        if not order.from_fork:
            try:
                self.wait_ready()
            except RuntimeError as error:
                self.failures.append(str(error))
                return
        time.sleep(order.after or 0.0)
        with self._lock:
            if self._pid == pid:
                os.kill(pid, order.signal)

    def _overdue(self, pid: int) -> None:
        """A server that does not come to where it is to die must not keep the harness waiting."""
        with self._lock:
            if self._pid == pid:
                self.failures.append(f"a server did not come to {self._order.point!r} in {PATIENCE} s")
                os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
