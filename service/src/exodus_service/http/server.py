"""uvicorn server that binds its address first, and drains before it stops, for load balancers."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from exodus_service.engine import Phase
from exodus_service.http.outgoing import Pace
from exodus_service.http.protocol import Protocol
from exodus_service.http.unix_socket import unix_socket
from exodus_service.settings import Settings

logger = logging.getLogger(__name__)

#: Signals that stop the service. SIGQUIT, like SIGKILL, ends it at once, and unsaved state is lost.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class AddressError(Exception):
    """The service cannot listen at this host and port."""


class Server(uvicorn.Server):
    """Server that drains on SIGTERM: /readyz answers 503 and everything else is still served.

    After `drain_delay_s` it stops listening, lets running requests finish, and the application saves its models.
    uvicorn alone would stop listening at once, while load balancers still send requests. SIGHUP does the same, unless
    ignored from the start as under nohup; SIGINT skips the delay. A further SIGTERM or SIGINT ends the delay, and a
    further SIGINT after that the wait for running requests. No signal interrupts the saving.

    Attributes:
        ended_by: the first signal received.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # neither the client's address nor the scheme is used
                server_header=False,
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=settings.shutdown_timeout_s,
            )
        )
        self.ended_by: int | None = None
        self._pace = Pace(
            stall_timeout=settings.stall_timeout_s,
            min_upload_rate=settings.min_upload_rate,
            min_download_rate=settings.min_download_rate,
            max_unwanted=settings.max_body_bytes,
        )
        self._state = app.state
        self._engine = app.state.engine
        self._uds = settings.uds
        self._uds_mode = int(settings.uds_mode, 8)
        self._drain_delay = settings.drain_delay_s
        self._exit_at: float | None = None
        self._cut_off = False

    def run(self) -> None:  # type: ignore[override]
        """Serve until stopped.

        If the application cannot start, `app.state.start_error` has the reason, and no traceback is logged.

        Raises:
            AddressError, SocketPathError: host and port, or the Unix socket, are not available. Nothing was started.
            SystemExit: the application could not start.
        """
        log = logging.getLogger("uvicorn.error")
        log.addFilter(self._is_unexpected)
        try:
            if self._uds is not None:
                with unix_socket(self._uds, self._uds_mode) as listener:
                    super().run([listener])
            else:
                with tcp_sockets(self.config.host, self.config.port) as listeners:
                    super().run(listeners)
        finally:
            log.removeFilter(self._is_unexpected)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn: start the application, then listen, with the error that uvloop would not report."""
        assert sockets is not None
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise SystemExit(1)
        config = self.config
        try:
            for listener in sockets:
                listener.listen(config.backlog)
        except OSError as error:  # another process was bound to the same port, and has begun to listen
            await self.lifespan.shutdown()
            raise _refused(config.host, config.port, error) from error
        connection = partial(Protocol, config, self.server_state, self.lifespan.state, pace=self._pace)
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(connection, sock=listener, backlog=config.backlog) for listener in sockets
        ]
        self.started = True
        if self._uds is not None:
            logger.info("running on unix socket %s", self._uds)
        else:
            host = f"[{config.host}]" if ":" in config.host else config.host
            logger.info("running on http://%s:%d", host, sockets[0].getsockname()[1])

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Called by uvicorn, around its whole run."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.getsignal(sig) or signal.SIG_DFL for sig in _STOP_SIGNALS}
        if before[signal.SIGHUP] is signal.SIG_IGN:
            del before[signal.SIGHUP]
        for sig in before:
            signal.signal(sig, self.handle_exit)
        try:
            yield
        finally:
            for sig, handler in before.items():
                # A signal during the exit must not change its status.
                signal.signal(sig, handler if self.ended_by is None else signal.SIG_IGN)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler."""
        now = time.monotonic()
        if self._exit_at is None:
            self.ended_by = sig
            self._engine.phase = Phase.DRAINING
            self._exit_at = now if sig == signal.SIGINT else now + self._drain_delay
        elif self._engine.phase is Phase.STOPPING:
            self._cut_off = self._cut_off or sig == signal.SIGINT
        elif sig != signal.SIGHUP:  # sent twice by a terminal that closes
            self._exit_at = now

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; True stops the server."""
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            self._engine.phase = Phase.STOPPING
            return True
        return await super().on_tick(counter)

    async def _wait_tasks_to_complete(self) -> None:
        """Called by uvicorn when it has stopped listening. On TimeoutError it cancels the requests, which get a 503."""
        waiting = asyncio.ensure_future(super()._wait_tasks_to_complete())
        try:
            while not waiting.done():
                if self._cut_off:
                    raise TimeoutError
                await asyncio.wait((waiting,), timeout=0.1)
            await waiting
        finally:
            waiting.cancel()

    def _is_unexpected(self, record: logging.LogRecord) -> bool:
        return self._state.start_error is None


@contextmanager
def tcp_sockets(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets bound to every address of the host, not listening yet.

    Raises:
        AddressError: the host is unknown, or the port is in use or not permitted.
    """
    made: list[socket.socket] = []
    try:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, kind, protocol, _, address in dict.fromkeys(found):
                listener = socket.socket(family, kind, protocol)
                made.append(listener)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                chosen = address[1] or made[0].getsockname()[1]  # one port for all of them
                listener.bind((address[0], chosen, *address[2:]))
        except OSError as error:
            raise _refused(host, port, error) from error
        yield made
    finally:
        for listener in made:
            listener.close()


def _refused(host: str, port: int, error: OSError) -> AddressError:
    if isinstance(error, socket.gaierror):
        return AddressError(f"host {host} must be an address of this machine, got {error.strerror}")
    if error.errno == errno.EADDRINUSE:
        return AddressError(
            f"port {port} must be free on {host}, got one that another process listens on; "
            "--port takes another one, --port 0 any that is free"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return AddressError(f"host {host} must be an address of this machine, got another one")
    return AddressError(f"{host}, port {port} must be an address to listen on, got {error.strerror}")
