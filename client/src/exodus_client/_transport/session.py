"""HTTP with retries: one request in, one whole answer or one exception out. Knows nothing of gradients.

Requests and answers are httpx's, and so are transports. `httpx.Client` is left out: merging its defaults into every
request costs as much as sending a small one.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from types import MappingProxyType
from typing import Any, cast

import httpx
import numpy as np

from exodus_client import _constants as defaults
from exodus_client._checks import unfit
from exodus_client._config import Limits, Retries, Timeout
from exodus_client._errors import (
    APIConnectionError,
    APITimeoutError,
    ClientClosedError,
    ExodusError,
    InvalidResponseError,
    status_error,
)
from exodus_client._threads import within
from exodus_client._transport.address import advice, resolve
from exodus_client._transport.retry import delay, parse_retry_after
from exodus_client._transport.sockets import Headers, SocketTransport, Stream, sooner
from exodus_client.wire import Encoded

_log = logging.getLogger("exodus_client")

_NO_RETRIES = Retries(count=0)


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful response, its body whole and writable.

    Attributes:
        status: of the response, 200 to 299.
        headers: of the response, by their names in lower case.
        body: as it came, still compressed if `Content-Encoding` says so.
        request_id: under which the server logged the request.
        round_trip: milliseconds from sending to the last byte, of the attempt that was answered.
    """

    status: int
    headers: Mapping[str, str]
    body: memoryview
    request_id: str
    round_trip: float


class Body(httpx.SyncByteStream):
    """An encoded message in chunks, from the front whenever a request is tried again.

    `before_chunk` is called before each; what it raises ends the upload.
    """

    def __init__(self, encoded: Encoded, chunk_bytes: int, before_chunk: Callable[[], None]) -> None:
        self._encoded = encoded
        self._chunk_bytes = chunk_bytes
        self._before_chunk = before_chunk

    def __iter__(self) -> Iterator[Any]:  # of bytes and views of them
        if self._encoded.nbytes <= defaults.JOINED_BYTES:
            yield b"".join(self._encoded.chunks)  # one packet rather than one for the header and each pad
            return
        for chunk in self._encoded.chunks:
            view = memoryview(chunk)
            for start in range(0, len(view), self._chunk_bytes):
                self._before_chunk()
                yield view[start : start + self._chunk_bytes]


class _Cookies(DefaultCookiePolicy):
    """Cookies, by which proxies send a client to one server, where they can be sent back: in ASCII."""

    def set_ok(self, cookie: Cookie, request: urllib.request.Request) -> bool:
        return cookie.name.isascii() and (cookie.value or "").isascii() and super().set_ok(cookie, request)


class Session:
    """Connections to one server, shared by the threads of a client."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        timeout: Timeout,
        retries: Retries,
        limits: Limits,
        transport: httpx.BaseTransport | None,
        user_agent: str,
    ) -> None:
        url, self.transport, self._proxy = resolve(base_url, transport, limits.max_in_flight)
        self._ours = isinstance(self.transport, SocketTransport)
        self._chunk_bytes = defaults.CHUNK_BYTES if self._ours else defaults.HTTPX_CHUNK_BYTES
        self.base_url = base_url.rstrip("/")
        self._url = lru_cache(64)(lambda path: httpx.URL(url + path))
        self._headers = [
            (b"Host", httpx.URL(url).netloc),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", user_agent.encode()),
            *_authorization(api_key),
        ]
        self._cookies = httpx.Cookies(CookieJar(_Cookies()))
        self._process = os.getpid()
        self._timeout = timeout
        self._retries = retries
        self._limits = limits
        self._closed = False
        self.ever_answered = False
        self._failure: ExodusError | None = None
        self._one_call = threading.local()  # when the call of several requests ends that a thread is in

    @contextmanager
    def one_call(self) -> Iterator[None]:
        """Requests within are one call, which `Timeout.total` is for."""
        before, self._one_call.ends = getattr(self._one_call, "ends", None), self.ends()
        try:
            yield
        finally:
            self._one_call.ends = before

    def ends(self) -> float | None:
        """The time of `time.monotonic()` at which a call that begins now has to end; None for never."""
        ends: float | None = getattr(self._one_call, "ends", None)
        if ends is None and self._timeout.total is not None:
            return time.monotonic() + self._timeout.total
        return ends

    def call(
        self,
        method: str,
        path: str,
        encoded: Encoded | Callable[[], Encoded] | None = None,
        *,
        retry: bool = True,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer:
        """Send a request until it is answered or not worth another attempt. A body may be made anew for each.

        `headers` are sent beside those of every request.

        Raises:
            APIStatusError, APIConnectionError, APITimeoutError, InvalidResponseError: as the last attempt failed.
            ClientClosedError: the client is closed.
            RuntimeError: the client was made in the process that this one was forked from.
        """
        self.check_process()
        self.check_open()
        # One id for all attempts: the server's log shows them as what they are.
        request_id = uuid.uuid4().hex
        ends = self.ends()
        retries = self._retries if retry else _NO_RETRIES
        attempt = 0
        began = time.monotonic()
        while True:
            try:
                body = encoded() if callable(encoded) else encoded
                return self._attempt(method, path, body, request_id, ends, headers)
            except ExodusError as error:
                self._failure = error
                wait = delay(attempt, error, retries)
                if wait is None or (ends is not None and time.monotonic() + wait >= ends):
                    raise
                lost = time.monotonic() - began + wait
                level = logging.INFO if lost < defaults.SAY_AFTER else logging.WARNING
                _log.log(level, "%s %s failed, next attempt in %.2f s: %s", method, path, wait, error)
            attempt += 1
            retries.sleep(wait)

    @property
    def state(self) -> str:
        """The outcome of the last attempt, for people."""
        return "nothing has failed" if self._failure is None else f"the last failure: {self._failure}"

    @property
    def is_forked(self) -> bool:
        """True in a process that was forked from the one that made the session."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raises RuntimeError in a forked process: two that share a connection get each other's answers."""
        if self.is_forked:
            raise RuntimeError("this client was made before the fork; make one in each process")

    def check_open(self) -> None:
        """Raises ClientClosedError if the session is closed."""
        if self._closed:
            raise ClientClosedError("the client is closed")

    def close(self) -> None:
        """Close all connections."""
        self._closed = True
        self.transport.close()

    def _attempt(
        self,
        method: str,
        path: str,
        encoded: Encoded | None,
        request_id: str,
        ends: float | None,
        more_headers: Mapping[str, str],
    ) -> Answer:
        self.check_open()
        self._check_time(request_id, ends)
        sent, stream = self._outgoing(method, path, encoded, request_id, ends, more_headers)
        began = time.perf_counter()
        try:
            status, received, headers, body = self._exchange(method, path, sent, stream, request_id, ends)
        except (httpx.TimeoutException, TimeoutError) as error:
            self._check_time(request_id, ends, error)
            raise APITimeoutError(
                f"{method} {path}: {self.base_url} did not answer in time ({type(error).__name__}: {error})",
                request_id=request_id,
            ) from error
        except httpx.TransportError as error:
            what_to_do = advice(error, ever_answered=self.ever_answered, proxy=self._proxy)
            raise APIConnectionError(
                f"{method} {path}: no answer from {self.base_url} ({type(error).__name__}: {error})"
                + (what_to_do and f"; {what_to_do}"),
                request_id=request_id,
            ) from error
        except httpx.HTTPError as error:  # of what came: it is no transport that failed
            raise InvalidResponseError(
                f"{method} {path}: the answer cannot be read ({type(error).__name__}: {error})", request_id=request_id
            ) from error
        round_trip = (time.perf_counter() - began) * 1e3
        self.ever_answered = True
        if "set-cookie" in headers:
            request = httpx.Request(method, self._url(path), headers=sent)
            self._cookies.extract_cookies(httpx.Response(status, headers=received, request=request))
        request_id = headers.get("x-request-id", request_id)
        _log.debug("%s %s: %d", method, path, status)
        if not 200 <= status < 300:
            raise status_error(
                status,
                bytes(body),
                request_id=request_id,
                retry_after=parse_retry_after(headers.get("retry-after")),
                location=headers.get("location", ""),
            )
        self._failure = None
        return Answer(status, headers, body, request_id, round_trip)

    def _exchange(
        self, method: str, path: str, sent: Headers, stream: httpx.SyncByteStream, request_id: str, ends: float | None
    ) -> tuple[int, Headers, dict[str, str], memoryview]:
        """Status, headers as they came and by their names in lower case, and body of the answer to a request."""
        left = None if ends is None else ends - time.monotonic()
        connect, write, read = (
            sooner(wait, left) for wait in (self._timeout.connect, self._timeout.write, self._timeout.read)
        )
        waits = {"connect": connect, "write": write, "read": read, "pool": read}
        transport, url = self.transport, self._url(path)

        def run() -> tuple[int, Headers, dict[str, str], memoryview]:
            source: Stream | httpx.Response
            if isinstance(transport, SocketTransport):
                status, received, source = transport.exchange(method, url.raw_path, sent, stream, waits, ends)
            else:
                request = httpx.Request(method, url, headers=sent, stream=stream, extensions={"timeout": waits})
                source = transport.handle_request(request)
                status, received = source.status_code, source.headers.raw
            try:
                headers = _by_name(received)
                return status, received, headers, self._download(headers, source, request_id, ends)
            finally:
                source.close()

        # Ours keeps to the time itself. Others bound each wait for some bytes, but neither their sum nor a host's name.
        return run() if left is None or self._ours else within(max(0.0, left), run)

    def _outgoing(
        self,
        method: str,
        path: str,
        encoded: Encoded | None,
        request_id: str,
        ends: float | None,
        more_headers: Mapping[str, str],
    ) -> tuple[Headers, httpx.SyncByteStream]:
        """Headers and body of a request."""
        headers = [*self._headers, (b"X-Request-ID", request_id.encode())]
        headers += [(name.encode(), value.encode()) for name, value in more_headers.items()]
        stream: httpx.SyncByteStream = httpx.ByteStream(b"")
        if encoded is not None:
            headers += [
                (b"Content-Type", encoded.content_type.encode()),
                (b"Content-Length", b"%d" % encoded.nbytes),
            ]
            if encoded.content_encoding is not None:
                headers.append((b"Content-Encoding", encoded.content_encoding.encode()))
            stream = Body(encoded, self._chunk_bytes, lambda: self._check_time(request_id, ends))
        elif method in ("POST", "PUT"):
            headers.append((b"Content-Length", b"0"))
        if ends is not None:
            headers.append((b"X-Deadline-Ms", b"%d" % max(1, int((ends - time.monotonic()) * 1e3))))
        if self._cookies:
            request = httpx.Request(method, self._url(path), headers=headers, stream=stream)
            self._cookies.set_cookie_header(request)
            headers = request.headers.raw
        return headers, stream

    def _download(
        self, headers: Mapping[str, str], source: Stream | httpx.Response, request_id: str, ends: float | None
    ) -> memoryview:
        """The body, received into one buffer that was allocated when the headers came."""
        declared = headers.get("content-length")
        if declared is None or not _is_size(declared) or "transfer-encoding" in headers:
            return self._download_unsized(source, request_id, ends)
        size = int(declared)
        self._check_size(size, request_id)
        # numpy leaves the pages untouched, where bytearray would write zeros to all of them first.
        body = memoryview(cast(Any, np.empty(size, np.uint8)))
        position = 0
        if isinstance(source, Stream):  # without a copy
            while position < size and (came := source.read_into(body[position : position + defaults.CHUNK_BYTES])):
                self._check_time(request_id, ends)
                position += came
        else:
            for chunk in self._chunks(source, request_id, ends):
                if position + len(chunk) > size:
                    raise InvalidResponseError(
                        f"the answer is longer than its Content-Length of {size}", request_id=request_id
                    )
                body[position : position + len(chunk)] = chunk
                position += len(chunk)
        if position != size:
            raise APIConnectionError(f"the answer ended after {position} of {size} bytes", request_id=request_id)
        return body

    def _download_unsized(self, source: Stream | httpx.Response, request_id: str, ends: float | None) -> memoryview:
        grown = bytearray()
        for chunk in self._chunks(source, request_id, ends):
            self._check_size(len(grown) + len(chunk), request_id)
            grown += chunk
        return memoryview(grown)

    def _chunks(self, source: Stream | httpx.Response, request_id: str, ends: float | None) -> Iterator[bytes]:
        chunks: Iterable[bytes]
        if isinstance(source, Stream):
            chunks = source
        else:  # one that a test injects with its content has been read already
            chunks = (source.content,) if source.is_stream_consumed else source.iter_raw()
        for chunk in chunks:
            self._check_time(request_id, ends)
            yield chunk

    def _check_time(self, request_id: str, ends: float | None, cause: Exception | None = None) -> None:
        if ends is not None and time.monotonic() >= ends:
            raise APITimeoutError(
                f"no answer within Timeout.total of {self._timeout.total} s", request_id=request_id
            ) from cause

    def _check_size(self, size: int, request_id: str) -> None:
        if size > self._limits.max_response_bytes:
            raise InvalidResponseError(
                f"the answer has {size} bytes or more, Limits.max_response_bytes is {self._limits.max_response_bytes}",
                request_id=request_id,
            )


def read_json(answer: Answer) -> Any:
    """The value in an answer. Raises InvalidResponseError."""
    text = bytes(answer.body)
    try:
        value = json.loads(text)
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # which halves of surrogate pairs cannot be
        return value
    except (ValueError, RecursionError) as error:
        raise InvalidResponseError(f"the answer is not JSON: {error}", request_id=answer.request_id) from error


def read_number(answer: Answer, name: str) -> int:
    """A whole number of the object in an answer, 0 or more, of 63 bits. Raises InvalidResponseError."""
    value = read_json(answer)
    number = value.get(name) if isinstance(value, dict) else None
    if not is_count(number):
        raise InvalidResponseError(
            f"the answer must have a number {name!r}, got {value!r:.200}", request_id=answer.request_id
        )
    return cast(int, number)


def is_count(value: object) -> bool:
    """True for a whole number, 0 or more, of 63 bits."""
    return type(value) is int and 0 <= value < 2**63


def _by_name(received: Headers) -> dict[str, str]:
    """Headers by their names in lower case; the values of one that came several times, with commas between them."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in received:
        name = raw_name.decode("latin-1").lower()
        try:
            value = raw_value.decode()
        except UnicodeDecodeError:
            value = raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _is_size(declared: str) -> bool:
    """True for a Content-Length that is a number of bytes of at most 63 bits."""
    return declared.isascii() and declared.isdecimal() and len(declared) < 20


def _authorization(given: str | None) -> list[tuple[bytes, bytes]]:
    # An empty variable is how a shell, or a compose file, says that there is none.
    api_key = (os.environ.get(defaults.API_KEY_VARIABLE) or None) if given is None else given
    if api_key is None:
        return []
    name = "api_key" if given is not None else f"the environment variable {defaults.API_KEY_VARIABLE}"
    if not isinstance(api_key, str):
        raise unfit(TypeError, "api_key", "a string", type(api_key).__name__)
    # Checked here because the HTTP library would quote a bad header, and with it the key, in its exception.
    if not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key and api_key):
        raise ValueError(f"{name} must be printable ASCII characters without spaces around them")
    return [(b"Authorization", b"Bearer " + api_key.encode())]
