"""HTTP/1.1 as uvicorn reads it, with the bounds that it lacks: on the size of a head, and on the time it takes to come.

Without them anyone could fill the memory with header lines, or hold connections open without ever asking for anything.
Large bodies go around the parser, straight to where they are wanted (`upload`).
"""

import asyncio
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from exodus_service.context import Context
from exodus_service.middleware import new_request_id, response_headers
from exodus_service.problems import MEDIA_TYPE, Fault, Problem
from exodus_service.upload import EXTENSION, Filling, Upload

#: Bytes of a request line with its headers. What the connection brought together with their beginning is not counted.
MAX_HEAD_BYTES = 64 * 1024


class Protocol(HttpToolsProtocol):
    """One connection. The keep-alive time of the server also bounds how long the head of a request may take."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._just_begun = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._just_begun = False
        super().data_received(data)
        if self._in_head and not self._just_begun and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                expected, got = f"at most {MAX_HEAD_BYTES} bytes", "more"
                detail = f"the head of the request: expected {expected}, got {got}"
                self._refuse(Problem("too_large", detail, (Fault("/headers", expected, got),)))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._just_begun = True
        self._head_bytes = 0
        self._await_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._cancel_timer()
        super().on_headers_complete()
        self.scope["extensions"] = {EXTENSION: {"place": partial(self._place, self.cycle)}}

    def _place(self, cycle: RequestResponseCycle, buffer: memoryview) -> Filling | None:
        """Read the rest of the body of `cycle` into the buffer, around the parser, whose place a new one takes."""
        if cycle is not self.cycle or not cycle.more_body or self.transport.is_closing():
            return None  # it is here already, or never will be
        filling = Filling(buffer)
        if len(cycle.body) >= len(buffer):
            return None
        filling.put(cycle.body)
        cycle.body = bytearray()
        self.transport.set_protocol(Upload(self, filling, partial(self._placed, cycle)))
        return filling

    def _placed(self, cycle: RequestResponseCycle) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn
        self.transport.set_protocol(self)
        cycle.more_body = False
        cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:
        """What the parser cannot read is answered like everything else."""
        self._refuse(Problem("malformed", "this is not a request of HTTP/1.1"))

    def _refuse(self, problem: Problem) -> None:
        """Answer what is no request, and close: where the next one would begin is not known."""
        if not self._is_answering():  # or the one answer would land inside of the other
            context = Context(new_request_id(), "")
            body = problem.body(context.path, context.request_id)
            headers = [
                *self.server_state.default_headers,
                (b"content-type", MEDIA_TYPE.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                *response_headers(context),
            ]
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
            self.transport.write(STATUS_LINE[problem.kind.status] + lines + b"\r\n" + body)
        self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.timeout_keep_alive, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._is_answering():  # a request sent ahead, which need not hurry
            self._await_head()
        else:
            self.transport.close()

    def _cancel_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
