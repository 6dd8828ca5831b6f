"""Transport that joins small writes, and disconnects clients which read a response too slowly.

Every response goes through it. The head of a small one and its body leave as one packet, for which both sides need one
system call and the client one wake-up. Progress is measured in bytes that the client's kernel has acknowledged, not in
bytes that our kernel has buffered: buffers hold megabytes, and a client that reads slowly and steadily would seem to be
stalled for minutes.
"""

import asyncio
import fcntl
import logging
import struct
import termios
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

#: Bytes that a client may have to read before its kernel acknowledges more: a sixteenth of its buffer (6 MiB on Linux),
#: with room to spare.
_ACK_DELAY_BYTES = 512 * 1024

#: Writes up to this size are held for those that follow in the same turn of the event loop.
_JOINED_BYTES = 1 << 14


@dataclass(frozen=True)
class Pace:
    """Slowest pace at which a client may send and receive.

    Attributes:
        stall_timeout: seconds without progress. For a response, the time to read `_ACK_DELAY_BYTES` at the slowest rate
            is added.
        min_upload_rate, min_download_rate: average rate in bytes per second, after one stall timeout.
        max_unwanted: bytes read of the rest of a body already answered.
    """

    stall_timeout: float
    min_upload_rate: int
    min_download_rate: int
    max_unwanted: int

    @property
    def interval(self) -> float:
        """Seconds between checks of a connection."""
        return min(1.0, self.stall_timeout / 8)


class Outgoing(asyncio.Transport):
    """Transport that aborts if its peer receives nothing for a stall timeout, or less than the slowest rate.

    It checks only while there are bytes to send, also during the close. Small writes are sent with the next one, by
    `flush`, or when the event loop turns.
    """

    def __init__(self, transport: asyncio.Transport, pace: Pace) -> None:
        super().__init__()
        self._transport = transport
        self._pace = pace
        self._clock = asyncio.get_running_loop().time
        self._written = 0
        self._held = b""
        self._timer: asyncio.TimerHandle | None = None
        self._began = self._progressed = 0.0
        self._acked_at_start = self._acked = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send in the background; does nothing after a disconnect."""
        if self._transport.is_closing():
            return
        if len(data) > _JOINED_BYTES:
            self.flush()
            self._send(data)
        elif self._held:
            self._held += data
            if len(self._held) > _JOINED_BYTES:
                self.flush()
        else:
            self._held = bytes(data)
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what is held."""
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._send(held)

    def _send(self, data: bytes | bytearray | memoryview) -> None:
        self._written += len(data)
        self._transport.write(data)
        if self._timer is None and self._transport.get_write_buffer_size():
            self._began = self._progressed = self._clock()
            self._acked_at_start = self._acked = self._count_acked()
            self._check_later()

    def connection_lost(self) -> None:
        """Stop checking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._pace.interval, self._check)

    def _check(self) -> None:
        self._timer = None
        waiting = self._transport.get_write_buffer_size()
        if not waiting:
            return
        now, acked = self._clock(), self._count_acked()
        if acked > self._acked:
            self._acked, self._progressed = acked, now
        pace, received = self._pace, self._acked - self._acked_at_start
        patience = pace.stall_timeout + min(received, _ACK_DELAY_BYTES) / pace.min_download_rate
        if now - self._progressed >= patience:
            self._cut_off(f"received nothing of the response for {patience:.1f} s", waiting)
        elif now - self._began >= pace.stall_timeout + received / pace.min_download_rate:
            self._cut_off(f"received less than {pace.min_download_rate} bytes a second of the response", waiting)
        else:
            self._check_later()

    def _count_acked(self) -> int:
        """Bytes that the peer's kernel has."""
        return self._written - self._transport.get_write_buffer_size() - self._in_kernel()

    def _in_kernel(self) -> int:
        """Bytes in our kernel's send buffer; for a Unix socket the memory they occupy, which is somewhat more."""
        queued = bytearray(4)
        fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
        return int(struct.unpack("i", queued)[0])

    def _cut_off(self, reason: str, waiting: int) -> None:
        logger.warning("connection aborted with %d bytes unsent: the client %s", waiting, reason)
        self._transport.abort()

    def close(self) -> None:
        """Send what was written, and close."""
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        """Send what was written, and no more."""
        self.flush()
        self._transport.write_eof()

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken."""
        return len(self._held) + self._transport.get_write_buffer_size()

    # Delegated unchanged.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def abort(self) -> None:
        self._transport.abort()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)
