"""HTTP/1.1 over plain sockets, as a transport of httpx that sends and receives arrays without copies.

httpx's own transport copies every byte of a request once and every byte of an answer four times. This one hands the
chunks of a body to the kernel as they are, and lets the reader of an answer name the memory. `exchange` also leaves out
httpx's requests and responses, which take as long to make as a small message. For http:// without a proxy, and for Unix
sockets; TLS and proxies are httpx's business.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import itertools
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

import httpx

from exodus_client import _constants as defaults
from exodus_client._threads import within

#: The usual head of an answer that is no interim one: no line is folded, and each has a colon.
_PLAIN_HEAD = re.compile(rb"HTTP/1\.1 ([2-9]\d\d)(?: [^\r\n]*)?\r\n((?:[!-9;-~]+:[^\r\n]*\r\n)*)\r\n")

#: Names and values as they travel.
Headers = list[tuple[bytes, bytes]]

#: Opens a connection; takes the timeout in seconds, None for none.
Connect = Callable[[float | None], socket.socket]


def tcp(host: str, port: int) -> Connect:
    """Connections to a port. The timeout is for finding the addresses of the host, and trying all of them."""

    def connect(timeout: float | None) -> socket.socket:
        ends = None if timeout is None else time.monotonic() + timeout
        addresses = _addresses(host, port, timeout)
        failure = OSError(f"{host} has no address")
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            opened = socket.socket(family, kind, protocol)
            try:
                left = _left(None, ends)
                # One that does not answer leaves their share of the time to the others.
                opened.settimeout(None if left is None else left / (len(addresses) - number))
                opened.connect(address)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                opened.close()
                failure = error
            else:
                return opened
        raise failure

    return connect


def _addresses(host: str, port: int, timeout: float | None) -> list[tuple[Any, ...]]:
    def find() -> list[tuple[Any, ...]]:
        return cast("list[tuple[Any, ...]]", socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

    try:
        ipaddress.ip_address(host)
    except ValueError:
        return within(timeout, find)  # asks servers, for as long as the system likes
    return find()


def unix(path: str) -> Connect:
    """Connections to a socket of the file system."""

    def connect(timeout: float | None) -> socket.socket:
        opened = socket.socket(socket.AF_UNIX)
        try:
            opened.settimeout(timeout)
            opened.connect(path)
        except OSError:
            opened.close()
            raise
        return opened

    return connect


class SocketTransport(httpx.BaseTransport):
    """Connections to one server. At most `max_connections` are open; idle ones are kept for a while."""

    def __init__(self, connect: Connect, max_connections: int) -> None:
        self._connect = connect
        self._slots = threading.Semaphore(max_connections)
        self._lock = threading.Lock()
        self._idle: list[tuple[float, socket.socket]] = []
        self._busy: set[socket.socket] = set()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """`exchange` for users of httpx."""
        assert isinstance(request.stream, httpx.SyncByteStream)
        waits = request.extensions.get("timeout", {})
        status, headers, stream = self.exchange(
            request.method, request.url.raw_path, request.headers.raw, request.stream, waits, None
        )
        return httpx.Response(status, headers=headers, stream=stream)

    def exchange(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        body: Iterable[bytes],
        waits: Mapping[str, float | None],
        ends: float | None,
    ) -> tuple[int, Headers, Stream]:
        """Send a request; the status and headers of its answer, and its body, which has to be closed.

        Args:
            waits: seconds to `connect`, `write`, `read` and for a free connection (`pool`); None for no end.
            ends: the time of `time.monotonic()` at which all of its waiting ends; None for never.

        Raises:
            httpx.TransportError: as httpx's transports.
        """
        if not self._slots.acquire(timeout=waits.get("pool")):
            raise httpx.PoolTimeout("all connections are in use")
        try:
            connection = self._take() or self._open(waits, ends)
        except BaseException:
            self._slots.release()
            raise
        with self._lock:
            self._busy.add(connection)
        try:
            sent_all = _send(connection, _request_head(method, target, headers), body, waits, ends)
            status, received, answer = _head(connection, method, waits, ends)
        except BaseException:
            self._give_back(connection, reusable=False)
            raise
        return status, received, Stream(answer, lambda whole: self._give_back(connection, reusable=whole and sent_all))

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
            # Who waits for an answer gets an error now, rather than wait for one that nobody takes.
            for connection in self._busy:
                with suppress(OSError):  # the other end was faster
                    connection.shutdown(socket.SHUT_RDWR)
        for _, connection in idle:
            connection.close()

    def _take(self) -> socket.socket | None:
        """An idle connection that the server has not closed in the meantime."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                since, connection = self._idle.pop()
            if time.monotonic() - since < defaults.KEEP_IDLE and not _is_readable(connection):
                return connection
            connection.close()

    def _open(self, waits: Mapping[str, float | None], ends: float | None) -> socket.socket:
        with _translated(httpx.ConnectTimeout, httpx.ConnectError):
            return self._connect(_left(waits.get("connect"), ends))

    def _give_back(self, connection: socket.socket, *, reusable: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
        if reusable:
            with self._lock:
                self._idle.append((time.monotonic(), connection))
        else:
            connection.close()
        self._slots.release()


class _Source(io.RawIOBase):
    """Reading side of a connection, as http.client wants it.

    Attributes:
        wait: seconds for the next bytes; None for no end.
        ends: when there is no more time for any, however little comes with each.
    """

    def __init__(self, connection: socket.socket, wait: float | None, ends: float | None) -> None:
        self._connection = connection
        self.wait = wait
        self.ends = ends
        self._file = _File(self)

    def makefile(self, mode: str) -> io.BufferedReader:
        """The same for one answer after the other, so that none takes what belongs to the next."""
        return self._file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left(self.wait, self.ends))
        return self._connection.recv_into(buffer)


class _File(io.BufferedReader):
    def close(self) -> None:
        """An interim answer is over, and the next one comes from here."""


class _Sized:
    """Body of an answer with a Content-Length. As much of http.client.HTTPResponse as `Stream` uses."""

    def __init__(self, file: io.BufferedReader, length: int, will_close: bool) -> None:
        self._file = file
        self.length = length
        self.will_close = will_close

    def isclosed(self) -> bool:
        return self.length == 0

    def close(self) -> None:
        """Leave the connection to its owner."""

    def readinto(self, buffer: memoryview) -> int:
        count = self._file.readinto(buffer[: self.length])
        self.length -= count
        return count

    def read(self, most: int) -> bytes:
        piece = self._file.read(min(most, self.length))
        self.length -= len(piece)
        return piece


class Stream(httpx.SyncByteStream):
    """The body of an answer. `done` is told whether all of it was read, and the connection may be used again."""

    def __init__(self, answer: http.client.HTTPResponse | _Sized, done: Callable[[bool], None]) -> None:
        self._answer = answer
        self._done = done

    def read_into(self, buffer: memoryview) -> int:
        """Receive the next bytes into the buffer; how many, 0 at the end."""
        with _translated(httpx.ReadTimeout, httpx.ReadError):
            return self._answer.readinto(buffer)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with _translated(httpx.ReadTimeout, httpx.ReadError):
                piece = self._answer.read(defaults.CHUNK_BYTES)
            if not piece:
                return
            yield piece

    def close(self) -> None:
        whole = (self._answer.isclosed() or self._answer.length == 0) and not self._answer.will_close
        self._answer.close()
        self._done(whole)


def _request_head(method: str, target: bytes, headers: Headers) -> bytes:
    lines = [method.encode(), b" ", target, b" HTTP/1.1\r\n"]
    for name, value in headers:
        lines += [name, b": ", value, b"\r\n"]
    return b"".join([*lines, b"\r\n"])


def _send(
    connection: socket.socket,
    head: bytes,
    body: Iterable[bytes],
    waits: Mapping[str, float | None],
    ends: float | None,
) -> bool:
    """Send a request; True if all of it was taken. A server that refuses may answer and close before."""
    chunks = iter(body)
    first = next(chunks, b"")
    opening = [head + first] if len(first) <= defaults.JOINED_BYTES else [head, first]  # one packet rather than two
    with _translated(httpx.WriteTimeout, httpx.WriteError):
        try:
            for chunk in itertools.chain(opening, chunks):
                connection.settimeout(_left(waits.get("write"), ends))
                connection.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            return False
    return True


def _head(
    connection: socket.socket, method: str, waits: Mapping[str, float | None], ends: float | None
) -> tuple[int, Headers, http.client.HTTPResponse | _Sized]:
    """Status, headers and body of an answer. The head has to be whole within the time for reading: it is small."""
    wait = waits.get("read")
    ends_head = sooner(None if wait is None else time.monotonic() + wait, ends)
    source = _Source(connection, None, ends_head)
    with _translated(httpx.ReadTimeout, httpx.ReadError):
        found = _plain_head(source.makefile("rb"))
        if found is not None:
            source.wait, source.ends = wait, ends
            return found
        while True:
            answer = http.client.HTTPResponse(cast(socket.socket, source), method=method)
            try:
                answer.begin()
            except BaseException:
                answer.close()
                raise
            if not _is_interim(answer.status):
                source.wait, source.ends = wait, ends
                # As bytes, which http.client takes for ISO-8859-1: httpx would insist on ASCII.
                headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.getheaders()]
                return answer.status, headers, answer


def _plain_head(file: io.BufferedReader) -> tuple[int, Headers, _Sized] | None:
    """The head of an answer that came in one piece and has one Content-Length; None if http.client is to read it.

    http.client has a parser made for mail, which takes longer than all else that is done for a small request.
    """
    head = _PLAIN_HEAD.match(file.peek())
    if head is None:
        return None
    lines = (line.split(b":", 1) for line in head[2].split(b"\r\n")[:-1])
    headers = [(name, value.strip(b" \t")) for name, value in lines]
    named = {name.lower(): value for name, value in headers}
    length = named.get(b"content-length", b"")
    once = sum(name.lower() == b"content-length" for name, _ in headers) == 1
    sized = once and length.isdigit() and len(length) < 19 and b"transfer-encoding" not in named
    if not sized or head[1] in (b"204", b"304"):  # which have no body, whatever they say of its length
        return None
    file.read(head.end())
    return int(head[1]), headers, _Sized(file, int(length), b"close" in named.get(b"connection", b"").lower())


def _is_interim(status: int) -> bool:
    """True if another answer follows. http.client knows this of 100 alone."""
    return 100 <= status < 200 and status != http.client.SWITCHING_PROTOCOLS


def sooner(*times: float | None) -> float | None:
    """The least of those that are given, None where none is."""
    return min((time for time in times if time is not None), default=None)


def _left(wait: float | None, ends: float | None) -> float | None:
    """Seconds to wait, which end in time; None for no end. Raises TimeoutError if there is no time left."""
    if ends is None:
        return wait
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left if wait is None else min(wait, left)


def _is_readable(connection: socket.socket) -> bool:
    """True if there is something to read on a connection on which nothing is expected: that it is closed."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def _translated(late: type[httpx.TimeoutException], broken: type[httpx.NetworkError]) -> Iterator[None]:
    """Errors of sockets and of http.client as those of httpx."""
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except OSError as error:
        raise broken(str(error)) from error
    except http.client.HTTPException as error:
        raise httpx.RemoteProtocolError(f"{type(error).__name__}: {error}") from error
