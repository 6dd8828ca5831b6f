"""Shared-memory segments of clients on this machine, which replace bodies sent through a socket.

A client connects to an abstract Unix socket, whose name only callers of the API learn, and passes a memfd over it.
Reasons against a file in /dev/shm that the client names:

- The memfd is sealed against shrinking before it is mapped. A file could be truncated while it is read: SIGBUS, and the
  process dies.
- A path could point to other files. A reference is a token of the service and two numbers.
- A segment lives as long as its connection: whichever side dies, by whatever signal, nothing is left behind.

SO_PEERCRED identifies the client; only the user that the service runs as is accepted.
"""

import asyncio
import contextlib
import fcntl
import logging
import mmap
import os
import secrets
import socket
import stat
import struct
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, Field

from exodus_client.wire import SEGMENT_GREETING, SEGMENT_TYPE, Encoded, Reference, Span
from exodus_service.errors import Fault, ServiceError, invalid

logger = logging.getLogger(__name__)

#: Bytes up to which copying is faster than asking another thread to.
_COPY_INLINE_BYTES = 1 << 20


class SharedMemory(BaseModel):
    """Address of the service for shared memory."""

    socket: str = Field(description="Name of an abstract Unix socket, without the leading zero byte.")


class SegmentError(Exception):
    """A segment that is refused; the message goes to the client."""


@dataclass(frozen=True)
class Shared:
    """A request whose body is in a segment, with room for the answer."""

    body: memoryview
    room: memoryview
    reference: Reference

    async def answer(self, encoded: Encoded) -> Encoded:
        """As `place`, without blocking the event loop for long."""
        if encoded.nbytes <= _COPY_INLINE_BYTES:
            return self.place(encoded)
        return await asyncio.to_thread(self.place, encoded)

    def place(self, encoded: Encoded) -> Encoded:
        """Copy the answer into its room and return a reference to it, or the answer itself if it does not fit."""
        answer = self.reference.answer
        if answer is None or encoded.nbytes > answer.nbytes:
            return encoded
        position = 0
        room = np.frombuffer(self.room, np.uint8)
        for chunk in encoded.chunks:  # by NumPy, which releases the GIL
            np.copyto(room[position : position + len(chunk)], np.frombuffer(chunk, np.uint8))
            position += len(chunk)
        written = Reference(self.reference.segment, Span(answer.offset, encoded.nbytes)).encode()
        return Encoded(SEGMENT_TYPE, len(written), [written])


class Segments:
    """The segments of all clients.

    Args:
        max_segments: most segments at a time.
        max_bytes: most bytes of all segments together.
    """

    def __init__(self, *, max_segments: int, max_bytes: int) -> None:
        self.socket_name = f"exodus-{secrets.token_hex(16)}"
        self._max_segments = max_segments
        self._max_bytes = max_bytes
        self._listener: socket.socket | None = None
        self._connections: dict[socket.socket, str] = {}
        self._memory: dict[str, mmap.mmap] = {}

    def open(self) -> None:
        """Listen, in the running event loop."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(f"\0{self.socket_name}")
        self._listener.listen()
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def close(self) -> None:
        """Close all connections. Memory in use by requests is freed when they end."""
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            loop.remove_reader(self._listener)
            self._listener.close()
        for connection in list(self._connections):
            self._drop(connection)

    @property
    def nbytes(self) -> int:
        """Bytes of all segments together."""
        return sum(map(len, self._memory.values()))

    def find(self, reference: Reference) -> Shared:
        """The memory that a reference points to.

        Raises:
            ServiceError: segment_gone: unknown token; invalid: the segment is smaller than the reference says.
        """
        memory = self._memory.get(reference.segment)
        if memory is None:
            detail = "there is no such segment any more; pass one again, or send the body itself"
            raise ServiceError("segment_gone", detail, (Fault("/segment", "a token of this service", "another one"),))
        spans = {"/body": reference.body, "/answer": reference.answer or Span(0, 0)}
        for pointer, span in spans.items():
            if span.end > len(memory):
                raise invalid(pointer, f"within the {len(memory)} bytes of the segment", f"one that ends at {span.end}")
        whole = memoryview(memory)
        body, room = (whole[span.offset : span.end] for span in spans.values())
        return Shared(body, room, reference)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # the client has disconnected
            return
        connection.setblocking(False)
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.geteuid():
            self._refuse(connection, f"the user of the client must be {os.geteuid()}, got {user}")
        elif len(self._connections) >= self._max_segments:
            self._refuse(connection, f"the number of segments must be at most {self._max_segments}, got one more")
        else:
            self._connections[connection] = ""
            asyncio.get_running_loop().add_reader(connection, self._readable, connection)

    def _readable(self, connection: socket.socket) -> None:
        """Receive the segment, or the end of the connection."""
        descriptors: list[int] = []
        try:
            greeting, descriptors, _, _ = socket.recv_fds(connection, 64, 1, socket.MSG_CMSG_CLOEXEC)
            if self._connections[connection] or not greeting:
                self._drop(connection)
            elif greeting != SEGMENT_GREETING or not descriptors:
                self._drop(connection, f"the greeting must be {SEGMENT_GREETING.decode()!r} and a memfd, got another")
            else:
                self._adopt(connection, descriptors[0])
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _adopt(self, connection: socket.socket, descriptor: int) -> None:
        try:
            nbytes = _checked_size(descriptor)
            if self.nbytes + nbytes > self._max_bytes:
                raise SegmentError(f"all segments must be at most {self._max_bytes} bytes, got {self.nbytes + nbytes}")
        except SegmentError as error:
            self._drop(connection, str(error))
            return
        token = secrets.token_hex(16)
        self._memory[token] = mmap.mmap(descriptor, nbytes)
        self._connections[connection] = token
        connection.send(f"ok {token}".encode())

    def _drop(self, connection: socket.socket, reason: str = "") -> None:
        asyncio.get_running_loop().remove_reader(connection)
        self._memory.pop(self._connections.pop(connection), None)
        self._refuse(connection, reason)

    def _refuse(self, connection: socket.socket, reason: str) -> None:
        if reason:
            logger.warning("segment refused: %s", reason)
            with contextlib.suppress(OSError):  # the client has disconnected
                connection.send(f"no {reason}".encode())
        connection.close()


def _checked_size(descriptor: int) -> int:
    """The size of a memfd that cannot shrink.

    Raises:
        SegmentError: the descriptor is something else.
    """
    status = os.fstat(descriptor)
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    except OSError as error:
        raise SegmentError("the segment must be a memfd that allows seals, got another file") from error
    if not stat.S_ISREG(status.st_mode) or flags & os.O_ACCMODE != os.O_RDWR:
        raise SegmentError("the segment must be a readable and writable memfd, got another file")
    if not seals & fcntl.F_SEAL_SHRINK:
        raise SegmentError("the segment must be sealed with F_SEAL_SHRINK, got no such seal")
    if seals & fcntl.F_SEAL_WRITE:
        raise SegmentError("the segment must be writable, got the seal F_SEAL_WRITE")
    if os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:
        raise SegmentError("the segment must be of normal pages, which are there when needed, got MFD_HUGETLB")
    if status.st_size == 0:
        raise SegmentError("the segment must be at least 1 byte, got 0")
    return status.st_size
