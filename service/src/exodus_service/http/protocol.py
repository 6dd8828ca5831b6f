"""HTTP/1.1 protocol: uvicorn's, with bounds on heads, pipelining and idle time, and an answer to every input.

Without the bounds anyone could fill the memory with header lines, or hold connections open without ever sending a
request. Large bodies bypass the parser and are read straight into their buffer (`body`).

This builds on private parts of uvicorn, hence the narrow pin in pyproject.toml: of `HttpToolsProtocol` its callbacks,
`_start_asgi_task`, `cycle`, `pipeline`, `flow`, `server_state`, `transport` and `parser`; of
`RequestResponseCycle` `body`, `more_body`, `message_event`, `disconnected`, `response_started` and `response_complete`;
`STATUS_LINE`; and in `server`, of `uvicorn.Server`, `startup`, `capture_signals`, `on_tick`, `_wait_tasks_to_complete`.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from exodus_service.context import Context
from exodus_service.errors import ServiceError, invalid
from exodus_service.http.body import EXTENSION, Filling, Upload
from exodus_service.http.middleware import new_request_id, response_headers
from exodus_service.http.outgoing import Outgoing, Pace
from exodus_service.http.problem_json import KINDS, MEDIA_TYPE, problem_body

#: Bytes of a request line with its headers, those that came in the same read as its first byte not counted.
MAX_HEAD_BYTES = 64 * 1024

#: Pipelined requests waiting on one connection; those behind them are not read.
MAX_AHEAD = 64

#: Seconds that a refused client may go on sending, so that the answer is not lost with the connection.
_LINGER_S = 1.0


class Protocol(HttpToolsProtocol):
    """One connection. The server's keep-alive time also bounds the time to receive the head of a request.

    Args:
        pace: slowest pace of a client that receives a response, or sends the rest of a body already answered.
    """

    def __init__(self, *args: Any, pace: Pace, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pace = pace
        self._parsed_bytes = 0
        self._in_head = False
        self._head_just_begun = False
        self._head_bytes = 0
        self._timeout: Callable[[], object] | None = None  # of a head, the rest of a body, or the close
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._filling: Filling | None = None
        self._discarding = False  # further input is ignored
        self._refusal: ServiceError | None = None  # to be sent after the answers to earlier requests

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Outgoing(transport, self._pace))
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timeout = None
        if self._timer is not None:
            self._timer.cancel()
        assert isinstance(self.transport, Outgoing)
        self.transport.connection_lost()
        for cycle in (self._running, *(ahead for ahead, _ in self.pipeline)):
            if cycle is not None:
                _disconnect(cycle)
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._parsed_bytes += len(data)
        if self._discarding:
            return
        self._head_just_begun = False
        self._parse(data)
        if self._in_head and not self._head_just_begun and not self._discarding and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                name, expected = "the head of the request", f"at most {MAX_HEAD_BYTES} bytes"
                self._refuse(invalid("/headers", expected, "more", name=name, code="too_large"))

    def _parse(self, data: bytes) -> None:
        while data and not self._discarding:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self._refuse(_not_http())
            except httptools.HttpParserUpgrade as upgrade:
                # The parser expects another protocol from here on. None is supported, so the rest is HTTP/1.1 too.
                if _announces_body(self.headers):
                    self.cycle.keep_alive = False  # the parser has skipped the body: its end is unknown
                    self._discarding = True
                else:
                    self._new_parser()
                    data = data[upgrade.args[0] :]

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_AHEAD:
            self.cycle.keep_alive = False
            self._discarding = True
        if self._discarding:
            return
        super().on_message_begin()
        self._in_head = self._head_just_begun = True
        self._head_bytes = 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        if not self._discarding:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head and not self._discarding:  # not in the trailer of a chunked body
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._discarding:
            return
        self._in_head = False
        self._timeout = None
        super().on_headers_complete()
        cycle = self.cycle
        self.scope["extensions"] = {EXTENSION: {"take": partial(_take, cycle), "place": partial(self._place, cycle)}}

    def on_body(self, body: bytes) -> None:
        if not self._discarding:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._discarding:
            return
        super().on_message_complete()
        self.cycle.more_body = False
        if not self._is_answering():  # this was the rest of a body already answered
            self._await_head()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Instead of uvicorn's, whose keep-alive timer every byte would restart."""
        self.server_state.total_requests += 1
        assert isinstance(self.transport, Outgoing)
        self.transport.flush()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if self._is_answering():
            return
        if self._refusal is not None:
            self._answer_refused(self._refusal)
        elif self.cycle.more_body:
            self._drain()
        else:
            self._await_head()

    def _place(self, cycle: RequestResponseCycle, buffer: memoryview) -> Filling | None:
        """Read the rest of the body of `cycle` into the buffer, bypassing the parser; a new parser follows it."""
        if cycle is not self.cycle or not cycle.more_body or self.transport.is_closing() or self._discarding:
            return None  # it has arrived, or never will
        filling = Filling(buffer)
        if len(cycle.body) >= len(buffer):
            return None
        filling.put(cycle.body)
        cycle.body = bytearray()
        self._filling = filling
        self.transport.set_protocol(Upload(self, filling, partial(self._placed, cycle)))
        return filling

    def _placed(self, cycle: RequestResponseCycle) -> None:
        self._parsed_bytes = self._read
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
        """Called by uvicorn; answers in our form instead of its own."""
        self._refuse(_not_http())

    def _refuse(self, error: ServiceError) -> None:
        """Answer input that is no request, after the requests before it, and close: what follows is unknown."""
        self._discarding = True
        cycle = self.cycle
        if cycle is not None and cycle.response_complete and cycle.more_body:  # already answered
            self._close_gently()
            return
        if self._is_answering() and cycle.more_body:  # the error is in the body of this request
            _disconnect(cycle)
            cycle.response_complete = True
            if self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline.popleft()
                assert self._running is not None
                self.cycle = self.pipeline[0][0] if self.pipeline else self._running
            elif cycle.response_started:
                self.transport.close()
                return
        self._refusal = error
        if not self._is_answering():
            self._answer_refused(error)

    def _answer_refused(self, error: ServiceError) -> None:
        self._refusal = None
        context = Context(new_request_id(), "")
        body = problem_body(error, context.path, context.request_id)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *response_headers(context),
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[KINDS[error.code].status] + lines + b"\r\n" + body)
        self._close_gently()

    def _close_gently(self) -> None:
        """Send EOF and close a moment later: closing with unread input would reset the connection, answer included."""
        self.transport.write_eof()
        self._set_timer(_LINGER_S, self.transport.close)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _drain(self) -> None:
        """Read the rest of a body already answered, to find the request behind it."""
        pace, began, start = self._pace, self.loop.time(), self._read

        def check() -> None:
            unwanted = self._read - start
            late = self.loop.time() - began >= pace.stall_timeout + unwanted / pace.min_upload_rate
            if late or unwanted > pace.max_unwanted:
                self.transport.close()
            else:
                self._set_timer(pace.interval, check)

        self._set_timer(pace.interval, check)

    @property
    def _read(self) -> int:
        """Bytes received, including those of a body that bypasses the parser."""
        return self._parsed_bytes + (0 if self._filling is None else self._filling.filled)

    def _await_head(self) -> None:
        self._set_timer(self.timeout_keep_alive, self._head_timed_out)

    def _head_timed_out(self) -> None:
        if self._is_answering():  # a pipelined request, which has time
            self._await_head()
        else:
            self.transport.close()

    def _set_timer(self, seconds: float, call: Callable[[], object]) -> None:
        """Call later, instead of the call set before.

        A request moves the time twice, mostly away: the event loop's timer stays, unless it would fire too late.
        """
        self._due, self._timeout = self.loop.time() + seconds, call
        if self._timer is None:
            self._start_timer()
        elif self._timer.when() > self._due:
            self._timer.cancel()
            self._start_timer()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_at(self._due, self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self._timeout is None:
            return
        if self.loop.time() < self._due:
            self._start_timer()
            return
        call, self._timeout = self._timeout, None
        call()


def _not_http() -> ServiceError:
    return ServiceError("malformed", "this is not a request of HTTP/1.1")


def _take(cycle: RequestResponseCycle, buffer: memoryview) -> bool:
    """Copy a body that is complete into a buffer of its length. False if it is not, or not of this length."""
    if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue or len(cycle.body) != len(buffer):
        return False
    buffer[:] = cycle.body
    cycle.body = bytearray()
    return True


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Tell the application that its client has disconnected."""
    cycle.disconnected = True
    cycle.message_event.set()


def _announces_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)
