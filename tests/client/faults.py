"""A network and a server that fail: the way to an `InProcessService`, on which requests meet their fates."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

import httpx
from client.in_process_service import InProcessService

from exodus_client import Client, Retries

#: Fates of a request, by what becomes of it.
BEFORE = ("refused", "unsent", "busy", "full_queue", "crash", "drain", "down")
AFTER = ("lost", "gateway", "cut", "abandoned", "crash_after", "crash_during", "crash_answered", "damaged")
HARMLESS = ("ok", "slow", "twice", "echo")
FATES = BEFORE + AFTER + HARMLESS


class Road(httpx.BaseTransport):
    """Takes requests to a server. The n-th request meets the n-th fate; then all is well.

    Attributes:
        server: where requests go.
        fates: those to come.
        down: requests that are still refused because the server is starting.
    """

    def __init__(self, server: InProcessService, fates: Iterable[str] = ()) -> None:
        self.server = server
        self.fates = list(fates)
        self.down = 0
        self._lock = threading.Lock()
        self._behind: list[threading.Thread] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        with self._lock:
            if self.down:
                self.down -= 1
                raise httpx.ConnectError("the server is not there")
            fate = self.fates.pop(0) if self.fates else "ok"
        answer: httpx.Response = getattr(self, f"_{fate}")(request)
        return answer

    def settle(self) -> None:
        """Wait until the server has answered all requests, also the abandoned ones."""
        while self._behind:
            self._behind.pop().join(10)

    def _ok(self, request: httpx.Request) -> httpx.Response:
        return self.server(request)

    def _slow(self, request: httpx.Request) -> httpx.Response:
        time.sleep(0.002)  # others overtake it
        return self.server(request)

    def _twice(self, request: httpx.Request) -> httpx.Response:
        self.server(request)
        return self.server(request)

    def _echo(self, request: httpx.Request) -> httpx.Response:
        answer = self.server(request)
        self._leave_behind(request)
        return answer

    def _refused(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    def _unsent(self, request: httpx.Request) -> httpx.Response:
        raise httpx.WriteError("broken pipe")

    def _busy(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, json={"code": "draining", "retryable": True}, headers={"Retry-After": "0"})

    def _full_queue(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(429, json={"code": "queue_full", "retryable": True}, headers={"Retry-After": "0"})

    def _lost(self, request: httpx.Request) -> httpx.Response:
        self.server(request)
        raise httpx.ReadError("reset")

    def _gateway(self, request: httpx.Request) -> httpx.Response:
        self.server(request)
        return httpx.Response(502, content=b"<html>bad gateway</html>")

    def _cut(self, request: httpx.Request) -> httpx.Response:
        answer = self.server(request)
        half = answer.content[: len(answer.content) // 2]
        headers = {**answer.headers, "content-length": str(len(answer.content))}
        return httpx.Response(answer.status_code, stream=httpx.ByteStream(half), headers=headers)

    def _abandoned(self, request: httpx.Request) -> httpx.Response:
        self._leave_behind(request)
        raise httpx.ReadTimeout("slow")

    def _crash(self, request: httpx.Request) -> httpx.Response:
        self.server.crash()
        raise httpx.RemoteProtocolError("the server went down")

    def _down(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self.down = 12
        return self._crash(request)

    def _drain(self, request: httpx.Request) -> httpx.Response:
        self.server.stop()
        raise httpx.RemoteProtocolError("the server went down")

    def _crash_during(self, request: httpx.Request) -> httpx.Response:
        self.server.crash_at_work()
        return self.server(request)

    def _crash_after(self, request: httpx.Request) -> httpx.Response:
        self.server(request)
        return self._crash(request)

    def _crash_answered(self, request: httpx.Request) -> httpx.Response:
        answer = self.server(request)
        self.server.crash()
        return answer

    def _damaged(self, request: httpx.Request) -> httpx.Response:
        self.server(request)
        self.server.crash(damaged=True)
        raise httpx.RemoteProtocolError("the server went down")

    def _leave_behind(self, request: httpx.Request) -> None:
        thread = threading.Thread(target=self._behind_all, args=(request,))
        self._behind.append(thread)
        thread.start()

    def _behind_all(self, request: httpx.Request) -> None:
        try:
            self.server(request)
        except httpx.RemoteProtocolError:
            return


def patient_client(road: httpx.BaseTransport, **arguments: Any) -> Client:
    """A client that tries again at once, and nearly for ever."""
    arguments = {"retries": Retries(count=10_000, first_delay=0.0, jitter=0.0)} | arguments
    return Client("http://node:8000", transport=road, **arguments)
