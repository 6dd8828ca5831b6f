"""HTTP/1.1 as uvicorn reads it, with the bounds that it lacks, and an answer for everything that comes.

Without them anyone could fill the memory with header lines, or hold connections open without ever asking for anything.
Large bodies go around the parser, straight to where they are wanted (`upload`).
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from exodus_service.context import Context
from exodus_service.errors import Fault, ServiceError
from exodus_service.http.middleware import new_request_id, response_headers
from exodus_service.http.outgoing import Outgoing, Pace
from exodus_service.http.problem_json import KINDS, MEDIA_TYPE, problem_body
from exodus_service.http.upload import EXTENSION, Filling, Upload

#: Bytes of a request line with its headers. What the connection brought together with their beginning is not counted.
MAX_HEAD_BYTES = 64 * 1024

#: Requests on one connection that wait for the answer of the one before; what follows them is not read.
MAX_AHEAD = 64

#: How long a client that was refused may go on sending, so that its answer is not lost with the connection.
_LINGER_S = 1.0


class Protocol(HttpToolsProtocol):
    """One connection. The keep-alive time of the server also bounds how long the head of a request may take.

    Args:
        pace: how slowly a client may take an answer, or send the rest of a body that was answered already.
    """

    def __init__(self, *args: Any, pace: Pace, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pace = pace
        self._received = 0
        self._in_head = False
        self._just_begun = False
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None  # of the head, of the rest of a body, or of the end
        self._running: RequestResponseCycle | None = None
        self._filling: Filling | None = None
        self._deaf = False  # what still comes is not looked at
        self._refusal: ServiceError | None = None  # to be sent once everything before it is answered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Outgoing(transport, self._pace))
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        assert isinstance(self.transport, Outgoing)
        self.transport.ended()
        for cycle in (self._running, *(ahead for ahead, _ in self.pipeline)):
            if cycle is not None:
                _leave(cycle)
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._deaf:
            return
        self._just_begun = False
        self._parse(data)
        if self._in_head and not self._just_begun and not self._deaf and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                expected, got = f"at most {MAX_HEAD_BYTES} bytes", "more"
                detail = f"the head of the request: expected {expected}, got {got}"
                self._refuse(ServiceError("too_large", detail, (Fault("/headers", expected, got),)))

    def _parse(self, data: bytes) -> None:
        while data and not self._deaf:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self._refuse(ServiceError("malformed", "this is not a request of HTTP/1.1"))
            except httptools.HttpParserUpgrade as upgrade:
                # The parser takes what follows for another protocol; none is spoken here, so that it is HTTP/1.1 still.
                if _announces_body(self.headers):
                    self.cycle.keep_alive = False  # the parser has skipped the body, and where it ends is not known
                    self._deaf = True
                else:
                    self._new_parser()
                    data = data[upgrade.args[0] :]

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_AHEAD:
            self.cycle.keep_alive = False
            self._deaf = True
        if self._deaf:
            return
        super().on_message_begin()
        self._in_head = self._just_begun = True
        self._head_bytes = 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        if not self._deaf:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head and not self._deaf:  # and not in the trailer of a chunked body
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        self._in_head = False
        self._cancel_timer()
        super().on_headers_complete()
        self.scope["extensions"] = {EXTENSION: {"place": partial(self._place, self.cycle)}}

    def on_body(self, body: bytes) -> None:
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._deaf:
            return
        super().on_message_complete()
        self.cycle.more_body = False
        if not self._is_answering():  # the rest of a body that was answered already
            self._await_head()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # it would begin anew with every byte
        if self.transport.is_closing() or self._is_answering():
            return
        if self._refusal is not None:
            self._answer_refused(self._refusal)
        elif self.cycle.more_body:
            self._drain()
        else:
            self._await_head()

    def _place(self, cycle: RequestResponseCycle, buffer: memoryview) -> Filling | None:
        """Read the rest of the body of `cycle` into the buffer, around the parser, whose place a new one takes."""
        if cycle is not self.cycle or not cycle.more_body or self.transport.is_closing() or self._deaf:
            return None  # it is here already, or never will be
        filling = Filling(buffer)
        if len(cycle.body) >= len(buffer):
            return None
        filling.put(cycle.body)
        cycle.body = bytearray()
        self._filling = filling
        self.transport.set_protocol(Upload(self, filling, partial(self._placed, cycle)))
        return filling

    def _placed(self, cycle: RequestResponseCycle) -> None:
        self._received = self._read
        self._filling = None
        self._new_parser()
        self.transport.set_protocol(self)
        cycle.more_body = False
        cycle.message_event.set()
        if not self._is_answering():
            self._await_head()

    def _new_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn

    def send_400_response(self, msg: str) -> None:
        """Answer what uvicorn would answer by itself like everything else."""
        self._refuse(ServiceError("malformed", "this is not a request of HTTP/1.1"))

    def _refuse(self, problem: ServiceError) -> None:
        """Answer what is no request, after those before it, and close: where the next one would begin is not known."""
        self._deaf = True
        cycle = self.cycle
        if cycle is not None and cycle.response_complete and cycle.more_body:  # another answer would be no one's
            self._close_gently()
            return
        if self._is_answering() and cycle.more_body:  # it is this request that cannot be read on
            _leave(cycle)
            cycle.response_complete = True
            if self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline.popleft()
                assert self._running is not None
                self.cycle = self.pipeline[0][0] if self.pipeline else self._running
            elif cycle.response_started:
                self.transport.close()
                return
        self._refusal = problem
        if not self._is_answering():
            self._answer_refused(problem)

    def _answer_refused(self, problem: ServiceError) -> None:
        self._refusal = None
        context = Context(new_request_id(), "")
        body = problem_body(problem, context.path, context.request_id)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *response_headers(context),
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[KINDS[problem.code].status] + lines + b"\r\n" + body)
        self._close_gently()

    def _close_gently(self) -> None:
        """Send no more, and close a moment later: a close with bytes still to read would reset the answer away."""
        self.transport.write_eof()
        self._set_timer(_LINGER_S, self.transport.close)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _drain(self) -> None:
        """Read the rest of a body that was answered already, so that the next request is found behind it."""
        pace, began, start = self._pace, self.loop.time(), self._read

        def look() -> None:
            unwanted = self._read - start
            late = self.loop.time() - began >= pace.stall_timeout + unwanted / pace.min_upload_rate
            if late or unwanted > pace.max_unwanted:
                self.transport.close()
            else:
                self._set_timer(pace.interval, look)

        self._set_timer(pace.interval, look)

    @property
    def _read(self) -> int:
        """Bytes that have come on this connection, those of a body that is read around the parser included."""
        return self._received + (0 if self._filling is None else self._filling.filled)

    def _await_head(self) -> None:
        self._set_timer(self.timeout_keep_alive, self._head_is_late)

    def _head_is_late(self) -> None:
        self._timer = None
        if self._is_answering():  # a request sent ahead, which need not hurry
            self._await_head()
        else:
            self.transport.close()

    def _set_timer(self, seconds: float, call: Callable[[], object]) -> None:
        self._cancel_timer()
        self._timer = self.loop.call_later(seconds, call)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _leave(cycle: RequestResponseCycle) -> None:
    """Tell the application that its client is gone."""
    cycle.disconnected = True
    cycle.message_event.set()


def _announces_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)
