"""zstd bodies are made and read, and cannot be used to fill the memory of the reader."""

import sys

import numpy as np
import pytest
import zstandard

from exodus_client.wire import (
    Form,
    Limits,
    Message,
    Tensor,
    WireError,
    compress,
    decode,
    decompress,
    encode,
    peek_params,
)


def test_a_compressed_body_reads_as_the_body() -> None:
    spikes = np.random.default_rng(0).random((4, 100, 64)) < 0.02
    message = Message.of({"a": 1}, [Tensor.of("s", spikes, "bits"), Tensor.of("x", np.ones(3))])
    encoded = encode(message)
    packed = compress(encoded)
    assert packed.content_encoding == "zstd"
    assert packed.nbytes == sum(map(len, packed.chunks)) < encoded.nbytes
    body = decompress(bytearray(b"".join(packed.chunks)), " ZSTD ")
    assert body == b"".join(encoded.chunks)
    np.testing.assert_array_equal(decode(body, packed.content_type).tensors["s"].numpy(), spikes)


@pytest.mark.parametrize("coding", [None, "identity", "Identity"])
def test_a_body_that_is_not_compressed_is_passed_on_as_it_is(coding: str | None) -> None:
    body = bytearray(b"abc")
    assert decompress(body, coding) is body


def refusal(body: bytes, coding: str, limits: Limits = Limits()) -> str:  # noqa: B008 - frozen
    with pytest.raises(WireError) as caught:
        decompress(body, coding, limits=limits)
    return caught.value.code


def test_another_coding_is_refused() -> None:
    assert refusal(b"", "gzip") == "unsupported"
    assert refusal(b"", "zstd, zstd") == "unsupported"


def test_a_bomb_is_refused() -> None:
    limits = Limits(max_bytes=1000, max_header_bytes=1000)
    bomb = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(10_000_000))
    assert refusal(bomb, "zstd", limits) == "too_large"
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10_000_000))
    assert refusal(unsized, "zstd", limits) == "too_large"


def test_a_frame_without_its_size_is_taken_within_the_limits() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc" * 100)
    assert decompress(frame, "zstd", limits=Limits(max_bytes=1000)) == b"abc" * 100


@pytest.mark.parametrize("says_its_size", [True, False])
def test_the_memory_is_asked_for_before_it_is_taken(says_its_size: bool) -> None:
    frame = zstandard.ZstdCompressor(write_content_size=says_its_size).compress(bytes(5_000_000))
    asked: list[int] = []
    assert len(decompress(frame, "zstd", reserve=asked.append)) == 5_000_000
    assert asked == [5_000_000]

    def refuse(nbytes: int) -> None:
        raise MemoryError(nbytes)

    with pytest.raises(MemoryError, match="5000000"):
        decompress(frame, "zstd", reserve=refuse)


def test_an_unpacked_body_may_be_written_to_and_is_not_copied_again() -> None:
    body = decompress(zstandard.ZstdCompressor().compress(joined({}, "stream")), "zstd")
    array = decode(body, "application/vnd.msgpack").tensors["x"].numpy()
    assert array.flags.writeable
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))


def frame_that_says(nbytes: int, content: bytes) -> bytes:
    """A frame whose header says another size than it has."""
    frame = bytearray(zstandard.ZstdCompressor(write_checksum=False).compress(content))
    assert frame[4] == 0x20, "a size of one byte"
    frame[5] = nbytes
    return bytes(frame)


@pytest.mark.parametrize("says", [3, 200])
def test_a_frame_that_says_another_size_than_it_has_is_refused(says: int) -> None:
    assert refusal(frame_that_says(says, b"abc" * 33), "zstd") == "malformed"


def joined(params: dict[str, object], form: Form) -> bytes:
    return b"".join(encode(Message.of(params, [Tensor.of("x", np.zeros(1000))]), form).chunks)


@pytest.mark.parametrize("coding", [None, "zstd"])
def test_the_parameters_of_a_message_are_read_without_unpacking_it(coding: str | None) -> None:
    body = joined({"sequence": 5}, "stream")
    packed = body if coding is None else zstandard.ZstdCompressor().compress(body)
    assert peek_params(packed, "application/msgpack; x=1", coding) == {"sequence": 5}
    limits = Limits(max_header_bytes=300)  # the payload is longer
    assert peek_params(packed, "application/msgpack", coding, limits=limits) == {"sequence": 5}


@pytest.mark.parametrize(
    ("body", "content_type", "coding"),
    [
        (b"{}", "application/json", None),
        (zstandard.ZstdCompressor().compress(joined({"a": 1}, "inline")), "application/msgpack", "zstd"),
        (b"no frame", "application/msgpack", "zstd"),
        (b"\x01", "application/msgpack", None),
        (b"\x81\xa6params\x01", "application/msgpack", None),
        (b"\x80", "application/msgpack", None),
    ],
)
def test_where_only_the_whole_body_tells_its_parameters_there_is_nothing_to_peek_at(
    body: bytes, content_type: str, coding: str | None
) -> None:
    assert peek_params(body, content_type, coding, limits=Limits(max_header_bytes=300)) is None


def test_a_frame_that_wants_a_huge_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = compressor.compress(b"abc") + compressor.flush()
    assert refusal(frame, "zstd") == "malformed"


@pytest.mark.parametrize("damage", [b"", b"abc", b"\x28\xb5\x2f\xfd"])
def test_what_is_no_frame_is_refused(damage: bytes) -> None:
    assert refusal(damage, "zstd") == "malformed"


@pytest.mark.parametrize(
    ("body", "found"), [(b"\x83\xa1v\x01", "msgpack"), (b'{"v": 1}', "JSON"), (b"\x1f\x8b", "gzip")]
)
def test_a_body_that_was_never_compressed_is_told_apart(body: bytes, found: str) -> None:
    with pytest.raises(WireError, match=f"got what looks like {found}; leave out Content-Encoding"):
        decompress(body, "zstd")


def test_a_frame_has_to_be_whole_and_alone() -> None:
    frame = zstandard.ZstdCompressor().compress(b"abc" * 100)
    assert refusal(frame[:-1], "zstd") == "malformed"
    assert refusal(frame + b"x", "zstd") == "malformed"
    assert refusal(frame + b"x" * 1000, "zstd") == "malformed"
    assert refusal(frame + frame, "zstd") == "malformed"


def test_without_zstandard_a_compressed_body_is_refused_and_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert refusal(b"", "zstd") == "unsupported"
    with pytest.raises(ModuleNotFoundError):
        compress(encode(Message()))
