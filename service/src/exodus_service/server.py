"""Runs the application under uvicorn, and ends it the way a load balancer expects."""

import logging
import signal
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from exodus_service.engine import Phase
from exodus_service.protocol import Protocol
from exodus_service.settings import Settings
from exodus_service.uds import unix_socket

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """On SIGTERM first drains: /readyz answers 503 and everything else goes on, so that no new requests are sent here.

    After `drain_delay_s` it stops listening, lets running requests finish, and exits with status 0. uvicorn alone
    would stop listening at once, while load balancers still send requests.
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
                server_header=False,
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=settings.shutdown_timeout_s,
            )
        )
        self._state = app.state
        self._engine = app.state.engine
        self._uds = settings.uds
        self._uds_mode = int(settings.uds_mode, 8)
        self._drain_delay = settings.drain_delay_s
        self._exit_at: float | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop. Raises SocketPathError where the Unix socket of the settings cannot be had.

        Why the application did not start stands in its `start_error` alone, for one line: no traceback is logged.
        """
        log = logging.getLogger("uvicorn.error")
        log.addFilter(self._unexplained)
        try:
            if self._uds is None:
                super().run(sockets)
                return
            with unix_socket(self._uds, self._uds_mode) as listener:
                logger.info("running on unix socket %s", self._uds)
                super().run([listener])
        finally:
            log.removeFilter(self._unexplained)

    def _unexplained(self, record: logging.LogRecord) -> bool:
        return self._state.start_error is None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler: the first SIGTERM drains, everything else does what uvicorn does."""
        if sig == signal.SIGTERM and self._exit_at is None:
            self._engine.phase = Phase.DRAINING
            self._exit_at = time.monotonic() + self._drain_delay
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; true stops the server."""
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            self._engine.phase = Phase.STOPPING
            return True
        return await super().on_tick(counter)
