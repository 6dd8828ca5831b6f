"""The two kinds of response with a body of our own: tensors, sent in pieces, and problems."""

import asyncio
import logging
from collections.abc import Callable, Iterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from exodus_client.wire import Encoded
from exodus_service.problems import MEDIA_TYPE, Problem

logger = logging.getLogger(__name__)

#: The transport takes a piece without copying it, and waits for the reader between pieces.
PIECE = 1 << 20

#: Up to this size one write is cheaper than several.
JOINED = 1 << 16


class TensorResponse(Response):
    """Sends the chunks of an encoded message as they are, and calls `release` when they have left.

    A client that takes nothing for `stall_timeout` seconds loses its connection.
    """

    def __init__(self, encoded: Encoded, stall_timeout: float, release: Callable[[], object]) -> None:
        super().__init__(headers={"content-length": str(encoded.nbytes)}, media_type=encoded.content_type)
        self._encoded = encoded
        self._stall_timeout = stall_timeout
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            *earlier, last = pieces(self._encoded)
            for piece in earlier:
                async with asyncio.timeout(self._stall_timeout):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            async with asyncio.timeout(self._stall_timeout):
                await send({"type": "http.response.body", "body": last, "more_body": False})
        except TimeoutError:
            # Returning before the end of the response makes the server close the connection.
            logger.warning("the client took nothing of the response for %s s", self._stall_timeout)
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


def problem_response(problem: Problem, path: str, request_id: str) -> Response:
    """The answer to a request that failed."""
    body = problem.body(path, request_id)
    return Response(body, problem.kind.status, headers=dict(problem.headers), media_type=MEDIA_TYPE)
