"""Requests through memory that the client shares with a service on its machine, instead of bytes through a socket.

A segment is a memfd of the client that can no longer shrink. It is handed over through a Unix socket of the service,
and is the service's for as long as that connection lives: whoever of the two dies, nothing is left behind.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import mmap
import os
import socket
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np

from exodus_client import _constants as defaults
from exodus_client._errors import ExodusError, GoneError, InvalidResponseError, NotFoundError
from exodus_client._transport.session import Answer, Session
from exodus_client.wire import (
    MSGPACK_TYPE,
    SEGMENT_GREETING,
    SEGMENT_SOCKET,
    SEGMENT_TYPE,
    Encoded,
    Reference,
    Span,
    WireError,
    read_reference,
)

_log = logging.getLogger("exodus_client")

_PAGE = mmap.PAGESIZE


class NotShared(Exception):  # noqa: N818 - a reason to send bytes, no error
    """The reason why a request cannot go through shared memory."""


class Segment:
    """Memory of a size that is fixed, known to the service as `token` until it is dropped.

    `timeout`: seconds for each answer of the service.

    Raises:
        NotShared: the system has no memfd, the socket cannot be reached, or the service does not take the segment.
    """

    def __init__(self, socket_name: str, nbytes: int, timeout: float = defaults.CONNECT_TIMEOUT) -> None:
        self.nbytes = nbytes
        self.socket_name = socket_name
        try:
            # Sealed, so that the service may read it without fear: a file that shrinks under a reader kills it.
            memory = os.memfd_create("exodus", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(memory, nbytes)
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
                self.bytes = np.frombuffer(mmap.mmap(memory, nbytes), np.uint8)
                self._connection, self.token = _hand_over(socket_name, memory, timeout)
            finally:
                os.close(memory)
        except (OSError, AttributeError) as error:  # AttributeError: another system than Linux
            raise NotShared(f"{type(error).__name__}: {error}") from error

    def write(self, encoded: Encoded) -> None:
        """Copy a body to the front."""
        position = 0
        for chunk in encoded.chunks:
            np.copyto(self.bytes[position : position + len(chunk)], np.frombuffer(chunk, np.uint8))
            position += len(chunk)

    def drop(self) -> None:
        """Take it back from the service. The memory goes with its last array."""
        self._connection.close()


class SharedMemory:
    """Segments for the requests of a client, a few of which are kept: their pages need not be made again."""

    def __init__(self, session: Session, *, max_idle: int, max_response_bytes: int) -> None:
        self._session = session
        self._max_idle = max_idle
        self._max_response_bytes = max_response_bytes
        self._lock = threading.Lock()
        self._socket_name: str | None = None
        self._idle: list[Segment] = []
        # Appended to by finalizers, which run anywhere, also where the lock is held.
        self._returned: deque[Segment] = deque()
        self._largest_answer = 0
        self._off = False
        self._ask_again, self._why_not = 0.0, ""
        self._closed = False
        self._reasons: set[str] = set()

    def call(self, path: str, encoded: Encoded, as_bytes: Callable[[], Encoded]) -> Answer:
        """POST a body and take the answer, whose arrays are views of the segment.

        `as_bytes` is what is sent where that cannot be, which the log says.

        Raises:
            ExodusError: as `Session.call`.
        """
        with self._session.one_call():
            try:
                return self._call(path, encoded, as_bytes)
            except GoneError as error:
                if error.code != "segment_gone":
                    raise
            self._forget()  # another process of the service, which knows none of our segments
            return self._call(path, encoded, as_bytes)

    def close(self) -> None:
        """Drop what is idle. Segments with arrays in use are dropped with the last of these."""
        self._closed = True
        self._forget()

    def _forget(self) -> None:
        with self._lock:
            self._socket_name = None
            self._collect()

    def _call(self, path: str, encoded: Encoded, as_bytes: Callable[[], Encoded]) -> Answer:
        used: list[Segment] = []

        def body() -> Encoded:
            # A former attempt may still be read, or answered, by the service: another one takes another segment.
            while used:
                used.pop().drop()
            segment = self._take(encoded.nbytes)
            if segment is None:
                return as_bytes()
            used.append(segment)
            segment.write(encoded)
            room = -(-encoded.nbytes // _PAGE) * _PAGE
            reference = Reference(segment.token, Span(0, encoded.nbytes), Span(room, segment.nbytes - room)).encode()
            return Encoded(SEGMENT_TYPE, len(reference), [reference])

        try:
            answer = self._session.call("POST", path, body)
            received = self._received(answer, used[0]) if used else answer
        except BaseException:
            for segment in used:
                segment.drop()
            raise
        self._largest_answer = max(self._largest_answer, len(received.body))
        return received

    def _received(self, answer: Answer, segment: Segment) -> Answer:
        """The answer with its body in the segment, which comes back once no array refers to it any more."""
        if answer.headers.get("content-type") != SEGMENT_TYPE:  # it did not fit
            self._give_back(segment)
            return answer
        try:
            where = read_reference(answer.body).body
        except WireError as error:
            raise InvalidResponseError(str(error), request_id=answer.request_id) from error
        if where.end > segment.nbytes or where.nbytes > self._max_response_bytes:
            raise InvalidResponseError(
                f"the answer has {where.nbytes} bytes at {where.offset} of a segment of {segment.nbytes}, "
                f"Limits.max_response_bytes is {self._max_response_bytes}",
                request_id=answer.request_id,
            )
        # An array of its own, whose life ends with that of the last view of it.
        array = np.frombuffer(segment.bytes.data, np.uint8, where.nbytes, where.offset)
        weakref.finalize(array, self._give_back, segment).atexit = False
        headers = {**answer.headers, "content-type": MSGPACK_TYPE}
        return replace(answer, headers=headers, body=memoryview(cast(Any, array)))

    def _take(self, nbytes: int) -> Segment | None:
        """A segment with room for a request and its answer, or None, and the reason in the log."""
        room = -(-nbytes // _PAGE) * _PAGE
        wanted = room + max(room, self._largest_answer)
        with self._lock:
            self._collect()
            for index, segment in enumerate(self._idle):  # the smallest that fits
                if segment.nbytes >= wanted:
                    return self._idle.pop(index)
            too_small = self._idle.pop() if self._idle else None
            off = self._off
        if too_small is not None:
            too_small.drop()
        if off:
            return None
        try:
            # Pages that nobody writes to are never made: room to spare costs nothing.
            ends = self._session.ends()
            timeout = defaults.CONNECT_TIMEOUT
            if ends is not None:
                timeout = min(timeout, max(0.001, ends - time.monotonic()))
            return Segment(self._socket(), 1 << max(20, math.ceil(math.log2(wanted))), timeout)
        except NotShared as reason:
            self._say(str(reason))
            return None

    def _give_back(self, segment: Segment) -> None:
        """Called by finalizers too: takes no lock."""
        if self._closed:
            segment.drop()
        else:
            self._returned.append(segment)

    def _collect(self) -> None:
        """Sort what came back to what is idle, by size; drop what is too much, or of a service that is no more."""
        while self._returned:
            self._idle.append(self._returned.popleft())
        known = sorted(
            (segment for segment in self._idle if segment.socket_name == self._socket_name),
            key=lambda segment: segment.nbytes,
        )
        kept = known[-self._max_idle :]
        for segment in self._idle:
            if segment not in kept:
                segment.drop()
        self._idle = kept

    def _socket(self) -> str:
        """The name of the service's socket, asked for once, and not again for a while where that fails."""
        if self._socket_name is None:
            if time.monotonic() < self._ask_again:
                raise NotShared(self._why_not)
            try:
                answer = self._session.call("GET", "/v1/shared-memory", retry=False)
                name = json.loads(bytes(answer.body))["socket"]
            except NotFoundError as error:
                self._off = True
                raise NotShared(error.detail) from error
            except (ExodusError, ValueError, KeyError, TypeError, RecursionError) as error:
                self._ask_again = time.monotonic() + defaults.SHARE_AGAIN
                self._why_not = f"{type(error).__name__}: {error}"
                raise NotShared(self._why_not) from error
            # The name comes from whoever answers under the URL, and must not lead to just any socket of this user.
            if not isinstance(name, str) or not SEGMENT_SOCKET.fullmatch(name):
                self._off = True
                raise NotShared(f"the service names the socket {name!r:.80}, which is none of its own")
            self._socket_name = name
        return self._socket_name

    def _say(self, reason: str) -> None:
        """Announce the slower way, once for every reason."""
        if reason not in self._reasons:
            self._reasons.add(reason)
            _log.warning("shared memory is not used, bytes are sent: %s", reason)


def _hand_over(socket_name: str, memory: int, timeout: float) -> tuple[socket.socket, str]:
    """Give the service a memfd; the connection that keeps it there, and its token."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(timeout)
        connection.connect(f"\0{socket_name}")
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.geteuid():
            raise NotShared(f"the socket belongs to user {user}, the client to {os.geteuid()}")
        socket.send_fds(connection, [SEGMENT_GREETING], [memory])
        word, _, rest = connection.recv(256).decode("utf-8", "replace").partition(" ")
        if word != "ok":
            raise NotShared(rest or "the service hung up")
    except BaseException:
        connection.close()
        raise
    return connection, rest
