"""Memory that clients on this machine share with the service, in place of bodies that travel through a socket.

A client connects to an abstract Unix socket, whose name only those learn who may use the service, and passes a memfd
with it. Why so, and not a file in /dev/shm that the client names:

- The memfd is sealed against shrinking before it is mapped. A file could be truncated under the running service, which
  the kernel answers with SIGBUS, the death of the process.
- What cannot be named cannot be used to reach other files. A reference holds a token of the service, and two numbers.
- The segment lives as long as the connection: whichever side dies, by whatever signal, nothing is left behind.

The kernel vouches for who connects; only the user that the service runs as is let in.
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

#: Copied in less time than it takes to ask another thread for it.
_AT_ONCE = 1 << 20


class SharedMemory(BaseModel):
    """Where segments are handed over."""

    socket: str = Field(description="Name of an abstract Unix socket, without the leading zero byte.")


class Refusal(Exception):  # noqa: N818 (a sentence for the client)
    """Why a segment is not taken."""


@dataclass(frozen=True)
class Shared:
    """A request whose body is in a segment: the body, and where the answer may go."""

    body: memoryview
    room: memoryview
    reference: Reference

    async def answer(self, encoded: Encoded) -> Encoded:
        """As `place`, without keeping the event loop for longer than a probe may wait."""
        if encoded.nbytes <= _AT_ONCE:
            return self.place(encoded)
        return await asyncio.to_thread(self.place, encoded)

    def place(self, encoded: Encoded) -> Encoded:
        """Copy the answer into its room, and return a reference to it; the answer itself where it does not fit."""
        answer = self.reference.answer
        if answer is None or encoded.nbytes > answer.nbytes:
            return encoded
        position = 0
        room = np.frombuffer(self.room, np.uint8)
        for chunk in encoded.chunks:  # by numpy, which leaves the interpreter to other threads meanwhile
            np.copyto(room[position : position + len(chunk)], np.frombuffer(chunk, np.uint8))
            position += len(chunk)
        written = Reference(self.reference.segment, Span(answer.offset, encoded.nbytes)).encode()
        return Encoded(SEGMENT_TYPE, len(written), [written])


class Segments:
    """The segments of all clients.

    Args:
        max_segments: connections at a time.
        max_bytes: sum of the sizes of the segments.
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
        """Hang up on everyone. What requests still use goes with them."""
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            loop.remove_reader(self._listener)
            self._listener.close()
        for connection in list(self._connections):
            self._drop(connection)

    @property
    def nbytes(self) -> int:
        """Sum of the sizes of the segments."""
        return sum(map(len, self._memory.values()))

    def find(self, reference: Reference) -> Shared:
        """What a reference refers to.

        Raises:
            ServiceError: segment_gone, or invalid where the segment is smaller than the reference says.
        """
        memory = self._memory.get(reference.segment)
        if memory is None:
            detail = "there is no such segment any more; hand one over, or send the body itself"
            raise ServiceError("segment_gone", detail, (Fault("/segment", "a token of this service", "another one"),))
        spans = {"/body": reference.body, "/answer": reference.answer or Span(0, 0)}
        for pointer, span in spans.items():
            if span.end > len(memory):
                raise invalid(pointer, f"within the {len(memory)} bytes of the segment", f"an end at {span.end}")
        whole = memoryview(memory)
        body, room = (whole[span.offset : span.end] for span in spans.values())
        return Shared(body, room, reference)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # it left before its turn
            return
        connection.setblocking(False)
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.geteuid():
            self._refuse(connection, f"segments are for user {os.geteuid()}, the client is user {user}")
        elif len(self._connections) >= self._max_segments:
            self._refuse(connection, f"there are {self._max_segments} segments, which is the limit")
        else:
            self._connections[connection] = ""
            asyncio.get_running_loop().add_reader(connection, self._readable, connection)

    def _readable(self, connection: socket.socket) -> None:
        """The segment, or the end of the connection."""
        descriptors: list[int] = []
        try:
            greeting, descriptors, _, _ = socket.recv_fds(connection, 64, 1, socket.MSG_CMSG_CLOEXEC)
            if self._connections[connection] or not greeting:
                self._drop(connection)
            elif greeting != SEGMENT_GREETING or not descriptors:
                self._drop(connection, f"want one memfd with the message {SEGMENT_GREETING.decode()!r}")
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
                raise Refusal(f"segments of {self.nbytes} bytes are there, {nbytes} more exceed {self._max_bytes}")
        except Refusal as refusal:
            self._drop(connection, str(refusal))
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
            logger.warning("a segment was refused: %s", reason)
            with contextlib.suppress(OSError):  # nobody listens any more
                connection.send(f"no {reason}".encode())
        connection.close()


def _checked_size(descriptor: int) -> int:
    """The size of a memfd that stays as large as it is.

    Raises:
        Refusal: it is something else.
    """
    status = os.fstat(descriptor)
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    except OSError as error:
        raise Refusal("want a memfd that allows seals") from error
    if not stat.S_ISREG(status.st_mode) or flags & os.O_ACCMODE != os.O_RDWR:
        raise Refusal("want a memfd that may be read and written")
    if not seals & fcntl.F_SEAL_SHRINK:
        raise Refusal("want a memfd with the seal F_SEAL_SHRINK: it must not shrink while it is read")
    if seals & fcntl.F_SEAL_WRITE:
        raise Refusal("want a memfd without the seal F_SEAL_WRITE: the answer is written to it")
    if os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:
        raise Refusal("want a memfd without MFD_HUGETLB, whose pages may be missing when they are needed")
    if status.st_size == 0:
        raise Refusal("want a memfd of at least a byte")
    return status.st_size
