"""Decodes a request body: decompression and wire format, with the memory for both reserved beforehand."""

from collections.abc import Callable
from dataclasses import replace

from exodus_client.wire import JSON_TYPE, Limits, Message, Tensor, decode, decompress

#: Bytes of memory that one byte of JSON may become while it is parsed: `[[]],` is two lists and their slots.
JSON_GROWTH = 32


def open_body(
    body: memoryview,
    content_type: str,
    content_encoding: str | None,
    *,
    limits: Limits,
    reserve: Callable[[int], object],
) -> tuple[bytes | bytearray | memoryview, Message]:
    """The body after decompression, and the message that it is, whose tensors are views of it where they can be.

    `reserve` is told how many bytes the request takes in all, before more of them are taken; what it raises ends the
    matter. In the end this counts the tensors as they are once they are unpacked.

    Raises:
        WireError: whatever is wrong with the body.
    """
    packed = limits
    if content_type == JSON_TYPE:
        packed = replace(limits, max_bytes=min(limits.max_bytes, limits.max_json_bytes))
    plain = decompress(body, content_encoding, limits=packed, reserve=lambda nbytes: reserve(len(body) + nbytes))
    taken = len(body) if plain is body else len(body) + len(plain)
    if content_type == JSON_TYPE:
        reserve(taken + JSON_GROWTH * len(plain))
    message = decode(plain, content_type, limits=limits)
    reserve(taken + sum(_unpacked_bytes(tensor, message) for tensor in message.tensors.values()))
    return plain, message


def _unpacked_bytes(tensor: Tensor, message: Message) -> int:
    """Bytes of a tensor that is no view of the body: JSON is text, and inline payloads may start anywhere."""
    if tensor.encoding != "raw":
        return tensor.size
    return 0 if message.form == "stream" else tensor.nbytes
