"""Memory that a client shares with a service on its machine: the reference that travels instead of a body.

A segment is a sealed memfd of the client, handed over through a Unix socket of the service; docs/wire-format.md has the
exchange. The service reads the body where the client wrote it, and writes the answer beside it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from exodus_client.wire.bounds import WireError, refused
from exodus_client.wire.msgpack_form import ALIGNMENT

SEGMENT_TYPE = "application/vnd.exodus.segment+json"

#: Bytes of a reference are few; a reader takes no more than these.
MAX_REFERENCE_BYTES = 1024

#: Sent by a client along with the memfd; the service answers with "ok TOKEN" or "no REASON".
SEGMENT_GREETING = b"exodus segment 1"

#: Name, after the leading zero byte, of the abstract Unix socket: 128 random bits make it unguessable.
SEGMENT_SOCKET = re.compile(r"exodus-[0-9a-f]{32}")

_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a segment, in bytes; it begins at a multiple of 64."""

    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


@dataclass(frozen=True, slots=True)
class Reference:
    """Place of a body in a segment.

    Attributes:
        segment: the token that the service gave the segment.
        body: the body, a message in a msgpack form.
        answer: room that the answer may take; None in an answer.
    """

    segment: str
    body: Span
    answer: Span | None = None

    def encode(self) -> bytes:
        """The reference as JSON."""
        document: dict[str, Any] = {"v": 1, "segment": self.segment, "body": _written(self.body)}
        if self.answer is not None:
            document["answer"] = _written(self.answer)
        return json.dumps(document).encode()


def read_reference(body: bytes | memoryview) -> Reference:
    """Read a reference. The caller checks that the segment exists and is large enough.

    Raises:
        WireError: it is not JSON, lacks a member or has an unknown one; a number or the token is none; the answer
            would go if the body is.
    """
    if len(body) > MAX_REFERENCE_BYTES:
        raise WireError(f"a reference has at most {MAX_REFERENCE_BYTES} bytes, got {len(body)}", code="too_large")
    try:
        document = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise WireError(f"the reference to shared memory is not JSON: {error}") from error
    members = document.keys() if isinstance(document, dict) else set()
    if not {"v", "segment", "body"} <= members <= {"v", "segment", "body", "answer"}:
        raise refused("members of the reference", "v, segment, body, answer", f"{document!r:.100}")
    if document["v"] != 1:
        raise WireError("a reference of another version", code="unsupported", pointer="/v", expected="1")
    token = document["segment"]
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise WireError("segment: want the token that the service gave", pointer="/segment", expected="32 hex digits")
    where = _span(document["body"], "/body")
    answer = _span(document["answer"], "/answer") if "answer" in document else None
    if answer is not None and where.offset < answer.end and answer.offset < where.end:
        raise WireError("answer: overlaps the body", code="mismatch", pointer="/answer", expected="room of its own")
    return Reference(token, where, answer)


def _written(span: Span) -> dict[str, int]:
    return {"offset": span.offset, "nbytes": span.nbytes}


def _span(given: Any, pointer: str) -> Span:
    if not isinstance(given, dict) or given.keys() != {"offset", "nbytes"}:
        raise WireError(f"{pointer[1:]}: want offset and nbytes", pointer=pointer, expected="offset, nbytes")
    for name, number in given.items():
        if type(number) is not int or number < 0 or (name == "offset" and number % ALIGNMENT):
            expected = f"a multiple of {ALIGNMENT}" if name == "offset" else "an integer >= 0"
            raise refused(f"{pointer[1:]}.{name}", expected, f"{number!r:.40}", pointer=f"{pointer}/{name}")
    return Span(given["offset"], given["nbytes"])
