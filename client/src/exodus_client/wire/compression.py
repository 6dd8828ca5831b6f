"""`Content-Encoding: zstd`, for bits and events: a membrane is noise to a compressor. Needs the package zstandard."""

from __future__ import annotations

from .bounds import DEFAULT_LIMITS, Limits, WireError
from .message import Encoded

#: Fast enough to pay on a local network; higher levels hardly shrink spikes further.
LEVEL = 1

#: A window that a frame asks for is memory of the reader: 8 MiB is what the zstd format asks every reader to support.
_MAX_WINDOW_BYTES = 8 * 1024 * 1024


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
    body: bytes | bytearray | memoryview, content_encoding: str | None, *, limits: Limits = DEFAULT_LIMITS
) -> bytes | bytearray | memoryview:
    """The body as `decode` wants it; itself where it is not compressed.

    Raises:
        WireError: another encoding than zstd, zstandard not installed, a frame that is broken or followed by anything,
            or one that would unpack to more than the limits allow, which is found out before the memory is taken.
    """
    coding = (content_encoding or "identity").strip().lower()
    if coding == "identity":
        return body
    if coding != "zstd":
        raise WireError(
            f"content encoding {content_encoding!r} is not spoken here; want zstd or none",
            code="unsupported",
            expected="zstd, identity",
            got=coding,
        )
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise WireError(
            "content encoding zstd is not spoken here: the package zstandard is not installed", code="unsupported"
        ) from error
    try:
        declared = zstandard.frame_content_size(body)  # -1: the frame does not say
        if declared > limits.max_body_bytes:
            raise _too_large(declared, limits)
        reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        return reader.decompress(body, max_output_size=limits.max_body_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"body is not one whole zstd frame within the limits: {error}") from error


def _too_large(nbytes: int, limits: Limits) -> WireError:
    return WireError(
        f"body unpacks to {nbytes} bytes, the limit is {limits.max_body_bytes}",
        code="too_large",
        expected=f"at most {limits.max_body_bytes} bytes",
        got=f"{nbytes} bytes",
    )
