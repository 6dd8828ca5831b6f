"""The sending side of a connection, which ends where its client does not take what is sent.

Everything that is answered goes through here: results, lists, documents and problems. What a client takes is measured
by what its side of the connection has acknowledged, not by what the application or the kernel here has taken over:
with the kernel's buffers of megabytes, a client that reads slowly and steadily would seem to take nothing for minutes.
"""

import asyncio
import fcntl
import logging
import struct
import termios
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

#: What a client may have to read before its kernel acknowledges more: a sixteenth of its buffer, of 6 MiB on Linux,
#: with room to spare.
_UNREAD = 512 * 1024


@dataclass(frozen=True)
class Pace:
    """Slowest pace at which a client may send or take.

    Attributes:
        stall_timeout: seconds without a single byte; of a response, after what its client has to read at the slowest
            rate before its kernel tells of it.
        min_upload_rate, min_download_rate: bytes a second, on average and after one stall timeout.
        max_unwanted: bytes that are read of the rest of a body that was answered already.
    """

    stall_timeout: float
    min_upload_rate: int
    min_download_rate: int
    max_unwanted: int

    @property
    def interval(self) -> float:
        """Seconds from one look at a connection to the next."""
        return min(1.0, self.stall_timeout / 8)


class Outgoing(asyncio.Transport):
    """A transport that is cut off where its peer takes nothing for a stall timeout, or less than the slowest rate.

    It watches only while bytes wait to be taken, also of a connection that is being closed.
    """

    def __init__(self, transport: asyncio.Transport, pace: Pace) -> None:
        super().__init__()
        self._transport = transport
        self._pace = pace
        self._clock = asyncio.get_running_loop().time
        self._written = 0
        self._timer: asyncio.TimerHandle | None = None
        self._began = self._moved = 0.0
        self._before = self._taken = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send in the background. Nothing happens where the peer has left."""
        if self._transport.is_closing():
            return
        self._written += len(data)
        self._transport.write(data)
        if self._timer is None and self._transport.get_write_buffer_size():
            self._began = self._moved = self._clock()
            self._before = self._taken = self._taken_now()
            self._look_later()

    def ended(self) -> None:
        """The connection is lost: there is nothing to watch any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._pace.interval, self._look)

    def _look(self) -> None:
        self._timer = None
        waiting = self._transport.get_write_buffer_size()
        if not waiting:
            return
        now, taken = self._clock(), self._taken_now()
        if taken > self._taken:
            self._taken, self._moved = taken, now
        pace = self._pace
        patience = pace.stall_timeout + min(self._taken - self._before, _UNREAD) / pace.min_download_rate
        if now - self._moved >= patience:
            self._cut_off(f"took nothing of the response for {patience:.1f} s", waiting)
        elif now - self._began >= pace.stall_timeout + (self._taken - self._before) / pace.min_download_rate:
            self._cut_off(f"took less than {pace.min_download_rate} bytes a second of the response", waiting)
        else:
            self._look_later()

    def _taken_now(self) -> int:
        """Bytes that the peer has."""
        return self._written - self._transport.get_write_buffer_size() - self._in_kernel()

    def _in_kernel(self) -> int:
        """Bytes that the kernel holds here; of a Unix socket what they occupy, which is somewhat more."""
        queued = bytearray(4)
        fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
        return int(struct.unpack("i", queued)[0])

    def _cut_off(self, reason: str, waiting: int) -> None:
        logger.warning("the client %s; %d bytes are dropped, and its connection", reason, waiting)
        self._transport.abort()

    # As the transport itself does.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def write_eof(self) -> None:
        self._transport.write_eof()

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()
