"""Responses that carry results, sent in pieces."""

from collections.abc import Callable, Iterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from exodus_client.wire import Encoded

#: The transport takes a piece without copying it, and waits for the reader between pieces.
PIECE = 1 << 20

#: Up to this size one write is cheaper than several.
JOINED = 1 << 16


class TensorResponse(Response):
    """Sends the chunks of an encoded message as they are, and calls `release` when they have left.

    How long a client may take is the business of the connection (`outgoing`).
    """

    def __init__(self, encoded: Encoded, release: Callable[[], object]) -> None:
        super().__init__(headers={"content-length": str(encoded.nbytes)}, media_type=encoded.content_type)
        self._encoded = encoded
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            *earlier, last = pieces(self._encoded)
            large = bool(earlier) or len(last) > JOINED
            for piece in (*earlier, last) if large else ():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            # Before each message the server waits until the last one has all but left, also before the empty end.
            await send({"type": "http.response.body", "body": b"" if large else last, "more_body": False})
        finally:
            self._release()


def pieces(encoded: Encoded) -> Iterator[bytes | memoryview]:
    """The body in pieces of at most PIECE bytes, which are views where they are large."""
    if encoded.nbytes <= JOINED:
        yield b"".join(encoded.chunks)
        return
    for chunk in encoded.chunks:
        for start in range(0, len(chunk), PIECE):
            yield chunk[start : start + PIECE]
