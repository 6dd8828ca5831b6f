"""`Content-Encoding: zstd`, for bits and events: a membrane is noise to a compressor. Needs the package zstandard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from exodus_client.wire.bounds import DEFAULT_LIMITS, Limits, WireError, refused
from exodus_client.wire.message import MSGPACK_TYPES, Encoded, require_form
from exodus_client.wire.msgpack_form import Walk

#: Fast enough to pay on a local network; higher levels hardly shrink spikes further.
LEVEL = 1

#: A window that a frame asks for is memory of the reader: 8 MiB is what the zstd format asks every reader to support.
_MAX_WINDOW_BYTES = 8 * 1024 * 1024

#: Compressed bytes that are unpacked at a time. The densest of them, runs of one byte, unpack to 16 MiB.
_SLICE = 512


def compress(encoded: Encoded, level: int = LEVEL) -> Encoded:
    """The same body as one zstd frame, which states its size.

    Raises:
        ModuleNotFoundError: zstandard is not installed.
    """
    import zstandard

    compressor = zstandard.ZstdCompressor(level=level).compressobj(size=encoded.nbytes)
    chunks: list[bytes | memoryview] = [compressor.compress(chunk) for chunk in encoded.chunks]
    chunks = [chunk for chunk in [*chunks, compressor.flush()] if chunk]
    return Encoded(encoded.content_type, sum(map(len, chunks)), chunks, "zstd")


def decompress(
    body: bytes | bytearray | memoryview,
    content_encoding: str | None,
    *,
    limits: Limits = DEFAULT_LIMITS,
    reserve: Callable[[int], object] = lambda nbytes: None,
) -> bytes | bytearray | memoryview:
    """The body as `decode` wants it, in memory that may be written to; itself where it is not compressed.

    `reserve` is told how many bytes it unpacks to before the memory is taken; what it raises ends the matter.

    Raises:
        WireError: another encoding than zstd, zstandard not installed, a frame that is broken or followed by anything,
            or one that would unpack to more than the limits allow, which is found out before the memory is taken.
    """
    coding = (content_encoding or "identity").strip().lower()
    if coding == "identity":
        return body
    if coding != "zstd":
        raise refused("content encoding", "zstd, identity", coding, code="unsupported")
    require_form(memoryview(body).cast("B"), "zstd", "Content-Encoding: zstd")
    nbytes = _unpacked_bytes(body, limits)
    reserve(nbytes)
    unpacked = np.empty(nbytes, np.uint8).data
    position = 0
    for piece in _pieces(body):  # together as many bytes as the frame says: zstd sees to it
        unpacked[position : position + len(piece)] = piece
        position += len(piece)
    return unpacked


def peek_params(
    body: bytes | bytearray | memoryview,
    content_type: str,
    content_encoding: str | None,
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> dict[str, Any] | None:
    """The parameters of a message, for which no payload is unpacked; nothing of it is checked.

    None where only the whole body tells them: one in JSON, one with payloads within its first object, a broken one.
    """
    if content_type.partition(";")[0].strip().lower() not in MSGPACK_TYPES:
        return None
    coding = (content_encoding or "identity").strip().lower()
    try:
        front = memoryview(body) if coding == "identity" else _front(body, limits.max_header_bytes)
        top = Walk(front, limits).next_object()
    except WireError:
        return None
    params = top.get("params") if isinstance(top, dict) else None
    return params if isinstance(params, dict) else None


def _unpacked_bytes(body: bytes | bytearray | memoryview, limits: Limits) -> int:
    """Unpacked size of a frame: as it says, or counted where it does not say."""
    zstandard = _library()
    try:
        nbytes: int = zstandard.frame_content_size(body)  # -1: the frame does not say
    except zstandard.ZstdError as error:
        raise _broken(error) from error
    if nbytes < 0:
        nbytes = 0
        for piece in _pieces(body):
            nbytes += len(piece)
            if nbytes > limits.max_body_bytes:
                break
    if nbytes > limits.max_body_bytes:
        raise _too_large(nbytes, limits)
    return nbytes


def _pieces(body: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """The unpacked bytes of one whole frame, in order."""
    zstandard = _library()
    view = memoryview(body)
    frame = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()
    for start in range(0, len(view), _SLICE):
        if frame.eof:
            raise _broken("more bytes follow it")
        try:
            yield frame.decompress(view[start : start + _SLICE])
        except zstandard.ZstdError as error:
            raise _broken(error) from error
    if not frame.eof:
        raise _broken("it ends too early")
    if frame.unused_data:
        raise _broken("more bytes follow it")


def _front(body: bytes | bytearray | memoryview, nbytes: int) -> memoryview:
    """The first bytes of what a frame unpacks to, `nbytes` at most."""
    zstandard = _library()
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_reader(body)
        return memoryview(reader.read(nbytes))
    except zstandard.ZstdError as error:
        raise _broken(error) from error


def _library() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise WireError(
            "content encoding zstd is not spoken here: the package zstandard is not installed", code="unsupported"
        ) from error
    return zstandard


def _broken(reason: object) -> WireError:
    return WireError(f"body is not one whole zstd frame: {reason}")


def _too_large(nbytes: int, limits: Limits) -> WireError:
    return refused("unpacked body", f"at most {limits.max_body_bytes} bytes", f"{nbytes} bytes", code="too_large")
