"""The real service in the process of the tests, without sockets: it answers requests, crashes and restarts."""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import safetensors.numpy
from fastapi import FastAPI

from exodus_client.wire import decode, decompress
from exodus_service.http.app import create_app
from exodus_service.settings import Settings

T = TypeVar("T")
Array = np.ndarray[Any, Any]

WENT_DOWN = "the server went down"
_TRAINING = ("step", "forward_backward", "optim_step")
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


@dataclass(frozen=True)
class State:
    """State of a model.

    Attributes:
        sequence: number of the last call that was done.
        tensors: all tensors of the state, by name.
        weights: all parameters in order, flat.
        gradients: those accumulated, None if there are none.
    """

    sequence: int
    tensors: Mapping[str, Array]
    weights: Array
    gradients: Array | None

    def __eq__(self, other: object) -> bool:
        """Equal to the bit, random numbers and optimizer included."""
        return (
            isinstance(other, State)
            and (self.sequence, self.tensors.keys()) == (other.sequence, other.tensors.keys())
            and all(array.tobytes() == other.tensors[name].tobytes() for name, array in self.tensors.items())
        )


class Incarnation:
    """The service from one start to the next crash or shutdown.

    Attributes:
        over: no answer leaves it any more.
    """

    def __init__(self, app: FastAPI, folder: Path) -> None:
        self.app = app
        self.folder = folder
        self.over = False
        self._lifespan = app.router.lifespan_context(app)
        self._tasks: set[asyncio.Task[httpx.Response]] = set()

    async def start(self) -> None:
        await self._lifespan.__aenter__()

    async def end(self) -> None:
        """Cancel the requests under way, then shut down."""
        self.over = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._lifespan.__aexit__(None, None, None)

    async def answer(self, request: httpx.Request, received: Callable[[], None]) -> httpx.Response:
        """The answer of the application. `received` is called when it has the body."""
        if self.over:
            raise httpx.RemoteProtocolError(WENT_DOWN)
        task = asyncio.create_task(_asgi(self.app, request, received))
        self._tasks.add(task)
        try:
            return await task
        finally:
            self._tasks.discard(task)


class InProcessService:
    """Answers requests as `exodus-service` does; any thread may send them. It starts with the first request.

    Args:
        settings: of the service, in addition to those for tests.

    Attributes:
        settings: those of the next start.
        memory_only: models are kept in memory only, from the next start on.
        full: the disk is full.
        pending: answer requests with `Prefer: wait` by 202, and this many polls of each, unless the result is there
            already; None: wait as long as the client asks for.
        on_work: called with model and sequence number before the application gets a training call; a response that it
            returns is the answer instead.
        done: (model, sequence number, "skip" or the kind of call) of all training calls done, in order, without
            replays.
        requests, bodies: method and path of each request, and its body.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings: dict[str, Any] = {"threads": 1, "retry_after_s": 0, "sequence_wait_s": 0.02} | settings
        self.memory_only = False
        self.pending: int | None = None
        self.on_work: Callable[[str, int], Any] = lambda id, sequence: None
        self.done: list[tuple[str, int, str]] = []
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self._root = Path(tempfile.mkdtemp(prefix="exodus-tests-", dir=_MEMORY))
        self._lives = 0
        self._life: Incarnation | None = None
        self._ending: list[Future[None]] = []
        self._doomed = False
        self._early: dict[str, int] = {}
        self._lock = threading.RLock()
        self._came = threading.Condition(self._lock)
        _OPEN.append(self)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request. Raises httpx.RemoteProtocolError if the service goes down meanwhile."""
        request.read()
        with self._came:
            self.requests.append((request.method, request.url.path))
            self.bodies.append(request.content)
            self._came.notify_all()
        what = request.url.path.rpartition("/")[2]
        if request.method != "POST" or what not in _TRAINING:
            return self._answer(request)
        params = decode(
            decompress(request.content, request.headers.get("Content-Encoding")), request.headers["Content-Type"]
        ).params
        id, sequence = request.url.path.split("/")[-2], params["sequence"]
        instead = self.on_work(id, sequence)
        if isinstance(instead, httpx.Response):
            return instead
        return self._answer(request, (id, sequence, "skip" if params.get("skip") else what))

    def crash(self, *, damaged: bool = False, back_to: Path | None = None) -> None:
        """End at once and restart from the durable states.

        Args:
            damaged: the last durable state of each model is corrupt, if there is one before it.
            back_to: a folder made by `backup` to restart from instead.
        """
        with self._lock:
            life = self._living()
            life.over = True  # before the copy: nothing is said to be durable that is not in it
            self._start(life.folder if back_to is None else back_to, damaged=damaged)
            self._ending.append(_submit(life.end()))

    def stop(self) -> None:
        """Shut down, which saves everything, and restart."""
        with self._lock:
            life = self._living()
            _submit(life.end()).result()
            self._start(life.folder)

    def crash_at_work(self) -> None:
        """Crash during the next request."""
        self._doomed = True

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Occupy the computing thread during the block."""
        started, finish = threading.Event(), threading.Event()

        def occupy() -> None:
            started.set()
            finish.wait()

        with self._lock:
            self._living().app.state.engine.scheduler.execute(occupy)
        started.wait()
        try:
            yield
        finally:
            finish.set()

    def wait_for_requests(self, enough: Callable[[], bool]) -> None:
        """Wait until enough requests have arrived. Raises AssertionError after 30 seconds."""
        with self._came:
            assert self._came.wait_for(enough, 30.0), self.requests

    def wait_for_saves(self) -> None:
        """Wait until all saves begun so far have ended, on disk or by an error."""
        self._living().app.state.engine.store._saved.flush().result()

    def backup(self) -> Path:
        """Copy the durable states; returns the folder."""
        with self._lock:
            self._lives += 1
            return copied(self._living().folder, self._root / f"{self._lives}")

    def close(self) -> None:
        """End for good."""
        with self._lock:
            self.full = False
            if self._life is not None:
                self._ending.append(_submit(self._life.end()))
            for ending in self._ending:
                ending.result()
            shutil.rmtree(self._root)
            _OPEN.remove(self)

    @property
    def full(self) -> bool:
        return self in _FULL

    @full.setter
    def full(self, full: bool) -> None:
        (_FULL.add if full else _FULL.discard)(self)
        os.rename = _rename_unless_full if _FULL else _RENAME  # type: ignore[assignment]

    @property
    def models(self) -> dict[str, Any]:
        """Descriptions of the models, by id."""
        return {info["id"]: info for info in self._ask("/v1/models").json()["models"]}

    def state(self, id: str = "m") -> State:
        """The present state of a model."""
        names = [parameter["name"] for parameter in self._ask(f"/v1/models/{id}").json()["parameters"]]
        body = self._ask(f"/v1/models/{id}/state").content
        tensors = safetensors.numpy.load(body)
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        sequence = json.loads(header["__metadata__"]["exodus"])["sequence"]
        return State(sequence, tensors, *(_flat(tensors, prefix, names) for prefix in ("weights", "gradients")))  # type: ignore[arg-type]

    def _ask(self, path: str) -> httpx.Response:
        answer = self._answer(httpx.Request("GET", f"http://node{path}"))
        assert answer.status_code == 200, answer.text
        return answer

    def _answer(self, request: httpx.Request, call: tuple[str, int, str] | None = None) -> httpx.Response:
        with self._lock:
            life = self._living()
            doomed, self._doomed = self._doomed, False
        received = threading.Event()
        sent = _submit(self._answered(life, self._hastened(request), received.set, call))
        sent.add_done_callback(lambda sent: received.set())  # also if it ends before it gets there
        if doomed:
            received.wait()
            self.crash()
        try:
            answer = sent.result()
        except CancelledError:
            raise httpx.RemoteProtocolError(WENT_DOWN) from None
        if life.over:
            raise httpx.RemoteProtocolError(WENT_DOWN)
        return answer

    async def _answered(
        self, life: Incarnation, request: httpx.Request, received: Callable[[], None], call: tuple[str, int, str] | None
    ) -> httpx.Response:
        answer = await life.answer(request, received)
        if call is not None and answer.status_code == 200 and "X-Exodus-Replayed" not in answer.headers:
            self.done.append(call)
        return answer

    def _hastened(self, request: httpx.Request) -> httpx.Request:
        """The request; without time to wait for the answer if answers are to be pending."""
        path = request.url.path
        if self.pending is None or "Prefer" not in request.headers:
            return request
        if request.method == "GET":
            self._early[path] = self._early.get(path, 0) + 1
            if self._early[path] > self.pending:
                return request
        headers = httpx.Headers(request.headers)
        headers["Prefer"] = "wait=0"
        return httpx.Request(request.method, request.url, headers=headers, content=request.content)

    def _living(self) -> Incarnation:
        if self._life is None:
            self._start(None)
        assert self._life is not None
        return self._life

    def _start(self, durable: Path | None, *, damaged: bool = False) -> None:
        """Start with a copy of a folder of durable states."""
        self._lives += 1
        folder = self._root / f"{self._lives}"
        if durable is not None and durable.exists():
            copied(durable, folder)
        if damaged:
            for model in (folder / "models").iterdir():
                _, *states = sorted(path.with_suffix(".safetensors") for path in model.glob("*.json"))
                for last in states[-1:]:
                    last.unlink()  # the same file may be in another folder
                    last.write_bytes(b"damaged")
        settings = _settings(**self.settings).model_copy(update={"state_dir": None if self.memory_only else folder})
        self._life = Incarnation(create_app(settings), folder)
        _submit(self._life.start()).result()


@functools.cache
def _settings(**settings: Any) -> Settings:
    """Settings, read and checked once: that takes longer than the rest of a start."""
    return Settings(**settings)


#: Those that were not closed.
_OPEN: list[InProcessService] = []


@contextmanager
def closing_services() -> Iterator[None]:
    """Close, at the end of the block, the services that were made in it and are still open."""
    before = list(_OPEN)
    try:
        yield
    finally:
        for service in [service for service in _OPEN if service not in before]:
            service.close()


async def _asgi(app: FastAPI, request: httpx.Request, received: Callable[[], None]) -> httpx.Response:
    """Call an ASGI application. The body of the response is copied: its memory is the application's."""
    url = request.url
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": url.scheme,
        "path": url.path,
        "raw_path": url.raw_path.partition(b"?")[0],
        "query_string": url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 50000),
        "server": (url.host, url.port or 80),
    }
    status, headers, body, asked = 0, [], bytearray(), False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()  # the client stays
        asked = True
        asyncio.get_running_loop().call_soon(received)
        return {"type": "http.request", "body": request.content, "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message["headers"])
        else:
            body.extend(message.get("body", b""))

    await app(scope, receive, send)
    return httpx.Response(status, headers=headers, content=bytes(body))


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all services, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="services", daemon=True).start()
    return loop


def _submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    return asyncio.run_coroutine_threadsafe(work, _loop())


def copied(folder: Path, to: Path) -> Path:
    """Copy durable states, which may be written meanwhile: a file under its final name does not change."""
    while True:
        before = _files(folder)
        for path in before:
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(folder / path, to / path)
            except FileNotFoundError:
                break
        if before == _files(folder):
            return to
        shutil.rmtree(to)


def _files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.glob("models/*/*") if path.suffix != ".tmp")


def _flat(tensors: Mapping[str, Array], prefix: str, names: Iterable[str]) -> Array | None:
    parts = [tensors[f"{prefix}.{name}"].ravel() for name in names if f"{prefix}.{name}" in tensors]
    return np.concatenate(parts) if parts else None


#: Services whose disk is full.
_FULL: set[InProcessService] = set()
_RENAME = os.rename


def _rename_unless_full(source: Any, target: Any, **options: Any) -> None:
    """`os.rename`, which gives a complete checkpoint its name; it fails if the disk is full."""
    if str(source).endswith(".tmp") and any(service._root in Path(source).parents for service in _FULL):
        raise OSError(errno.ENOSPC, "No space left on device")
    _RENAME(source, target, **options)
