"""A proxy between client and server that loses, cuts, delays and doubles what passes, in both directions."""

from __future__ import annotations

import json
import queue
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Self

from .traffic import BrokenError, Message, read_message, reset

#: Faults of a request and its answer, by name.
FAULTS = {
    "request lost": "the connection is cut before the server has seen anything",
    "request cut": "the server gets half of the body",
    "request delayed": "by up to 0.2 s",
    "request trickles": "in pieces, with pauses",
    "request doubled": "sent on two connections at once, one answer is dropped",
    "request repeated late": "sent once more after up to 1.5 s, by when others have been done; its answer is dropped",
    "connection cut": "after the request, while the server is at work",
    "answer lost": "the connection is cut before the client has seen anything of the answer",
    "answer cut": "the client gets half of it",
    "answer delayed": "by up to 0.2 s",
}


class _CutError(Exception):
    """The connection to the client is to be reset."""


class Proxy:
    """Listens on a port of its own and passes on to 127.0.0.1:`upstream`.

    Args:
        upstream: port of the server, which may be down.
        seed: of which request meets which fault.
        faults: names of FAULTS, dealt like cards: all come before one comes again.
        every: one request of so many meets a fault, on average.

    Attributes:
        port: where it listens.
        happened: how often each fault was done to a request.
        sent: how often each training call, (path, sequence number), reached the server whole.
        answers: how often each status, or code of a problem, was answered.
        replays: answers that the server had kept.
        on_half_body: called once, when half of the body of a training call is with the server.
    """

    def __init__(self, upstream: int, seed: int, faults: Sequence[str] = tuple(FAULTS), every: int = 4) -> None:
        self._upstream = upstream
        self._random = random.Random(seed)
        self._faults = tuple(faults)
        self._every = every
        self._deck: list[str] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False
        self.happened: Counter[str] = Counter()
        self.sent: Counter[tuple[str, int]] = Counter()
        self.answers: Counter[str] = Counter()
        self.replays = 0
        self.on_half_body: Callable[[], None] | None = None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def resent(self) -> int:
        """Training calls that reached the server again."""
        return sum(count - 1 for count in self.sent.values())

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed = True
        # Closing alone does not wake the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            reset(connection)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One connection of the client, with one to the server behind it."""
        with self._lock:
            self._open.add(client)
        server: socket.socket | None = None
        try:
            while True:
                request = read_message(client)
                fault = self._deal()
                server = server or self._connect()
                self._pass_on(client, server, request, fault)
        except _CutError:
            reset(client)
        except (BrokenError, OSError):
            reset(client)
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()
            reset(server)

    def _deal(self) -> str:
        """The fault of the next request, "" for none."""
        with self._lock:
            if not self._faults or self._random.randrange(self._every):
                return ""
            if not self._deck:
                self._deck = list(self._faults)
                self._random.shuffle(self._deck)
            fault = self._deck.pop()
            self.happened[fault] += 1
            return fault

    def _wait(self, most: float) -> None:
        with self._lock:
            seconds = self._random.uniform(0, most)
        time.sleep(seconds)

    def _pass_on(self, client: socket.socket, server: socket.socket, request: Message, fault: str) -> None:
        twin: queue.Queue[Message | None] | None = None
        if fault == "request lost":
            raise _CutError
        if fault == "request cut":
            server.sendall(request.whole[: len(request.head) + len(request.body) // 2])
            self._wait(0.05)
            raise _CutError
        if fault == "request delayed":
            self._wait(0.2)
        if fault == "request doubled":
            twin = queue.Queue()
            threading.Thread(target=self._send_apart, args=(request, 0.0, twin), daemon=True).start()
        if fault == "request repeated late":
            threading.Thread(target=self._send_apart, args=(request, 1.5, None), daemon=True).start()
        self._send(server, request, trickles=fault == "request trickles")
        if fault == "connection cut":
            self._wait(0.01)
            raise _CutError
        answer = self._receive(client, server, request)
        if twin is not None and self._flip():
            other = twin.get()
            if other is None:  # the server died under the other connection
                raise _CutError
            answer = other
        if fault == "answer lost":
            raise _CutError
        if fault == "answer cut":
            client.sendall(answer.whole[: len(answer.head) + len(answer.body) // 2])
            self._wait(0.05)
            raise _CutError
        if fault == "answer delayed":
            self._wait(0.2)
        client.sendall(answer.whole)

    def _flip(self) -> bool:
        with self._lock:
            return self._random.random() < 0.5

    def _connect(self) -> socket.socket:
        server = socket.create_connection(("127.0.0.1", self._upstream), timeout=5)
        server.settimeout(None)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server

    def _send(self, server: socket.socket, request: Message, *, trickles: bool = False) -> None:
        hook = self.on_half_body if request.sequence is not None else None
        if hook is not None:
            self.on_half_body = None
            server.sendall(request.whole[: len(request.head) + len(request.body) // 2])
            time.sleep(0.01)  # the server has read it
            hook()
            raise _CutError
        if trickles:
            size = max(1, len(request.whole) // 8)
            for start in range(0, len(request.whole), size):
                server.sendall(request.whole[start : start + size])
                time.sleep(0.005)
        else:
            server.sendall(request.whole)
        if request.sequence is not None:
            with self._lock:
                self.sent[request.path, request.sequence] += 1

    def _receive(self, client: socket.socket, server: socket.socket, request: Message) -> Message:
        try:
            answer = read_message(server, of_answer_to=request.method)
        except BrokenError as error:
            # What a plain proxy would have passed on by now.
            client.sendall(error.partial)
            raise
        self._note(answer)
        return answer

    def _note(self, answer: Message) -> None:
        code = str(answer.status)
        if answer.headers.get("content-type") == "application/problem+json":
            code = f"{code} {json.loads(answer.body)['code']}"
        with self._lock:
            self.answers[code] += 1
            self.replays += answer.replayed

    def _send_apart(self, request: Message, delay: float, to: queue.Queue[Message | None] | None) -> None:
        """Send a request on a connection of its own."""
        answer: Message | None = None
        server: socket.socket | None = None
        try:
            self._wait(delay)
            server = self._connect()
            self._send(server, request)
            answer = read_message(server, of_answer_to=request.method)
            self._note(answer)
        except (_CutError, BrokenError, OSError):
            pass
        finally:
            reset(server)
            if to is not None:
                to.put(answer)
