"""Wire format, version 1: how a message of parameters and tensors becomes a request or response body.

Its one home: the service reads and writes with this code too. The bytes are described in docs/wire-format.md.
"""

from exodus_client.wire.bounds import MAX_PAYLOAD_BYTES, ErrorCode, Limits, WireError
from exodus_client.wire.compression import compress, decompress, peek_params
from exodus_client.wire.header import VERSION
from exodus_client.wire.json_form import NON_FINITE, check_plain
from exodus_client.wire.message import JSON_TYPE, MSGPACK_TYPE, Encoded, Form, Message, decode, encode
from exodus_client.wire.segment import (
    MAX_REFERENCE_BYTES,
    SEGMENT_GREETING,
    SEGMENT_SOCKET,
    SEGMENT_TYPE,
    Reference,
    Span,
    read_reference,
)
from exodus_client.wire.tensor import DTYPES, ENCODINGS, FLOATS, Encoding, FloatName, Tensor, is_torch

__all__ = [
    "DTYPES",
    "ENCODINGS",
    "FLOATS",
    "JSON_TYPE",
    "MAX_PAYLOAD_BYTES",
    "MAX_REFERENCE_BYTES",
    "MSGPACK_TYPE",
    "NON_FINITE",
    "SEGMENT_GREETING",
    "SEGMENT_SOCKET",
    "SEGMENT_TYPE",
    "VERSION",
    "Encoded",
    "Encoding",
    "ErrorCode",
    "FloatName",
    "Form",
    "Limits",
    "Message",
    "Reference",
    "Span",
    "Tensor",
    "WireError",
    "check_plain",
    "compress",
    "decode",
    "decompress",
    "encode",
    "is_torch",
    "peek_params",
    "read_reference",
]
