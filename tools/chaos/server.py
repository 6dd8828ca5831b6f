"""Starts servers, one life after the other, each a process forked from this one, which has everything imported.

Reads orders as lines of JSON from its standard input, and writes to its standard output what happens: a process
started, what it reports, how it ended. Forking is sound because nothing here has computed or started a thread.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from .orders import KERNELS, LATE, Order
from .points import INSIDE, OUTSIDE, SOON, Points


def main() -> None:
    import exodus_core.training  # noqa: F401
    import exodus_service.cli  # noqa: F401

    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise SystemExit(f"cannot fork servers: importing the service has started {threads - 1} threads")
    poll = select.poll()
    poll.register(0, select.POLLIN)
    pending = b""
    lives: dict[int, Life] = {}
    while True:
        for handle, _ in poll.poll():
            if handle in lives:
                poll.unregister(handle)
                lives.pop(handle).ended()
                os.close(handle)
                continue
            came = os.read(0, 1 << 16)
            if not came:  # the harness is gone
                for life in lives.values():
                    os.kill(life.pid, signal.SIGKILL)
                return
            *lines, pending = (pending + came).split(b"\n")
            for line in lines:
                life = Life(json.loads(line))
                handle = os.pidfd_open(life.pid)
                lives[handle] = life
                poll.register(handle, select.POLLIN)
                life.watch()


def tell(**what: Any) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


class Life:
    """One process of the server."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._order = Order(**request["order"])
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self.pid = os.fork()
        if self.pid == 0:
            _live(request, self._order, self._page)
        tell(started=self.pid)

    def watch(self) -> None:
        """If it is to die inside of a kernel: waits until it is there, and kills it."""
        if self._order.point not in KERNELS:
            return
        ends = time.monotonic() + 30
        while self._page[0] != INSIDE and time.monotonic() < ends:
            if self._page[0] != SOON:
                time.sleep(1e-4)
                if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        tell(pid=self.pid, died=self._order.point if self._page[0] == INSIDE else LATE)
        self._page[0] = OUTSIDE

    def ended(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        tell(ended=self.pid, status=os.waitstatus_to_exitcode(status))


def _live(request: dict[str, Any], order: Order, page: mmap.mmap) -> NoReturn:
    """Be the server."""
    log = os.open(Path(request["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update({name: str(value) for name, value in request["environment"].items()})
    sys.argv = ["exodus-service", "serve", "--port", str(request["port"])]
    status = 1
    try:
        from exodus_service import cli

        Points(order, report, page, request["trace"], Path(request["full"])).install()
        cli.main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001  (this process must not go on as a copy of its parent)
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
