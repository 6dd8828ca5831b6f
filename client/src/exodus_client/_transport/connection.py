"""The connection of a client to one server, which its models and layers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future as Running
from types import MappingProxyType
from typing import TypeVar

import httpx

from exodus_client import _constants as defaults
from exodus_client._config import Limits, Retries, Timeout
from exodus_client._threads import DaemonThreadPool
from exodus_client._transport.session import Answer, Session
from exodus_client._transport.shared_memory import SharedMemory
from exodus_client.wire import MSGPACK_TYPE, Encoded, compress
from exodus_client.wire import Limits as WireLimits

Result = TypeVar("Result")


class Connection:
    """Requests to one server over sockets or shared memory, and threads to make them on. Any thread may use it.

    Arguments as of `Client`.

    Attributes:
        session: HTTP with retries.
        retries: waits between attempts.
        max_in_flight: requests at a time.
        wire_limits: largest answers that are decoded.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        timeout: Timeout,
        retries: Retries,
        limits: Limits,
        compress: bool,
        shared_memory: bool,
        transport: httpx.BaseTransport | None,
        user_agent: str,
    ) -> None:
        self.retries = retries
        self.max_in_flight = limits.max_in_flight
        self.wire_limits = WireLimits(max_bytes=limits.max_response_bytes, max_json_bytes=limits.max_response_bytes)
        self.session = Session(
            base_url,
            api_key=api_key,
            timeout=timeout,
            retries=retries,
            limits=limits,
            transport=transport,
            user_agent=user_agent,
        )
        self._compress = compress
        self.shared_memory = (
            SharedMemory(self.session, max_idle=limits.max_in_flight, max_response_bytes=limits.max_response_bytes)
            if shared_memory
            else None
        )
        self._pool = DaemonThreadPool(limits.max_in_flight, "exodus-client")

    def call(
        self,
        method: str,
        path: str,
        encoded: Encoded | None = None,
        *,
        retry: bool = True,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer:
        """Send a request, compressed if that is asked for and pays. Raises as `Session.call`."""
        body = None if encoded is None else self._compressed(encoded)
        return self.session.call(method, path, body, retry=retry, headers=headers)

    def post(self, path: str, encoded: Encoded) -> Answer:
        """POST a message and take its answer, through shared memory if there is some. Raises as `Session.call`."""
        self.session.check_open()
        stream = encoded.content_type == MSGPACK_TYPE
        if self.shared_memory is not None and stream and encoded.nbytes >= defaults.SHARE_FROM_BYTES:
            return self.shared_memory.call(path, encoded, lambda: self._compressed(encoded))
        return self.call("POST", path, encoded)

    def submit(self, run: Callable[[], Result]) -> Running[Result]:
        """Run on one of at most `max_in_flight` threads.

        Raises:
            ClientClosedError: the client is closed.
            RuntimeError: the client was made in the process that this one was forked from.
        """
        self.session.check_process()
        self.session.check_open()
        return self._pool.submit(run)

    def close(self, *, wait: bool) -> None:
        """Cancel what was not begun, wait for the rest if asked to, and close all connections."""
        self._pool.close(wait=wait)
        if self.shared_memory is not None:
            self.shared_memory.close()
        self.session.close()

    def _compressed(self, encoded: Encoded) -> Encoded:
        worth_it = self._compress and encoded.nbytes >= defaults.COMPRESS_FROM_BYTES
        return compress(encoded) if worth_it else encoded
