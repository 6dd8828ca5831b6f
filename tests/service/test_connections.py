"""Connections: slow, silent, pipelining and malformed ones."""

import json
import logging
import re
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from service.conftest import Caller, Served

from exodus_client.wire import MSGPACK_TYPE, Message, encode
from exodus_service.http.protocol import MAX_AHEAD, MAX_HEAD_BYTES, Protocol

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
GRADIENT = "POST /v1/gradients/exodus HTTP/1.1\r\nContent-Type: application/msgpack\r\n"


def refused(connection: socket.socket) -> dict[str, Any]:
    """The one answer on a connection that is closed after it, as head and problem."""
    head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert lines["connection"] == "close"
    assert lines["content-type"] == "application/problem+json"
    problem: dict[str, Any] = json.loads(body)
    assert problem["request_id"] == lines["x-request-id"]
    assert "kernel;dur=0.000" in lines["server-timing"]
    assert head.startswith(b"HTTP/1.1 %d " % problem["status"])
    return problem


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /liv\xc3\xa9z HTTP/1.1\r\n\r\n",
        GET + b"Content-Length: -1\r\n\r\n",
        GET + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_what_is_not_http_is_answered_like_everything_else(running: Served, nonsense: bytes) -> None:
    with running.raw() as connection:
        connection.sendall(nonsense)
        assert refused(connection)["code"] == "malformed"


def request_head(body: bytes, *lines: str, path: str = "/v1/gradients/exodus") -> bytes:
    head = [f"POST {path} HTTP/1.1", f"Content-Type: {MSGPACK_TYPE}", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n"


def answers(connection: socket.socket) -> list[bytes]:
    """The statuses of all answers on a connection that is closed after them."""
    return re.findall(rb"HTTP/1\.1 (\d+) ", connection.makefile("rb").read())


@pytest.mark.parametrize("ahead", [1, 3])
def test_requests_before_nonsense_are_answered_and_then_the_nonsense(
    running: Served, good: Message, ahead: int
) -> None:
    body = b"".join(encode(good).chunks)
    with running.raw() as connection:
        with running.busy():
            connection.sendall((request_head(body) + body) * ahead + b"\0\0\0\0" + bytes(100_000))
        assert answers(connection) == [b"200"] * ahead + [b"400"]


@pytest.mark.parametrize("path", ["/v1/gradients/exodus", "/v1/models/m/save", "/nowhere"])
def test_a_body_that_breaks_off_in_nonsense_is_answered(running: Served, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nthis is no number of bytes\r\n"
    with running.raw() as connection:
        connection.sendall(head.encode())
        assert refused(connection)["code"] == "malformed"
    with running.raw() as connection:  # and behind another request
        connection.sendall(GET + b"\r\n" + head.encode())
        assert answers(connection) == [b"200", b"400"]


def test_clients_that_leave_with_requests_sent_ahead_leave_no_traceback(
    running: Served, good: Message, until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    body = b"".join(encode(good).chunks)
    with running.busy():
        with running.raw() as leaving:
            leaving.sendall((request_head(body) + body) * 4)
            until(lambda: running.engine.scheduler.requests == 1)
        until(lambda: running.engine.scheduler.requests == 0)
    with running.raw() as leaving:
        leaving.sendall((GET.replace(b"/livez", b"/openapi.json") + b"\r\n") * 20)
        leaving.recv(1)
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    running.engine.scheduler.execute(lambda: None).result()
    until(lambda: "/openapi.json" in caplog.text)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_a_request_behind_one_that_offers_an_upgrade_is_answered(running: Served, protocol: str) -> None:
    offer = GET + b"Upgrade: %s\r\nConnection: Upgrade, close\r\n\r\n" % protocol.encode()
    kept = offer.replace(b", close", b"")
    with running.raw() as connection:
        connection.sendall(kept * 2 + GET + b"\r\n" + offer.replace(b"/livez", b"/readyz"))
        assert answers(connection) == [b"200"] * 4
    with running.raw() as connection:  # and on the same connection later
        for request in (kept, kept, GET + b"Connection: close\r\n\r\n"):
            connection.sendall(request)
            assert connection.recv(12) == b"HTTP/1.1 200"
            while not connection.recv(4096).endswith(b"}"):
                pass


@pytest.mark.parametrize("path", ["/v1/gradients/exodus", "/v1/models/m/save", "/nowhere"])
def test_a_body_behind_an_upgrade_is_never_taken_for_a_request(running: Served, path: str) -> None:
    smuggled = GET + b"\r\n"
    with running.raw() as connection:
        connection.sendall(request_head(smuggled, "Upgrade: h2c", "Connection: Upgrade", path=path) + smuggled)
        (status,) = answers(connection)
    assert status in (b"400", b"404")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("POST /nowhere HTTP/1.1\r\nContent-Length: 1000000", b"404"),
        ("GET /livez HTTP/1.1\r\nContent-Length: 1000000", b"200"),
        (f"{GRADIENT}Transfer-Encoding: chunked", b"411"),
        (f"{GRADIENT}Content-Length: 9999999999", b"413"),
        (f"{GRADIENT}Content-Length: 1000000".replace("msgpack", "plain"), b"415"),
        (f"{GRADIENT}Content-Length: 1000000\r\nX-Deadline-Ms: 1", b"504"),
    ],
)
def test_the_rest_of_an_answered_body_may_not_drip(serve: Callable[..., Served], lines: str, status: Any) -> None:
    service = serve(stall_timeout_s=0.5)
    with service.raw() as dripping:
        dripping.sendall(lines.encode() + b"\r\n\r\n1")
        assert dripping.recv(12) == b"HTTP/1.1 " + status
        assert_closed_while_sending(dripping, b"0")


def assert_closed_while_sending(connection: socket.socket, piece: bytes, seconds: float = 20) -> None:
    """The other side hangs up on a client that goes on sending."""
    until = time.monotonic() + seconds
    connection.settimeout(0.05)
    try:
        while time.monotonic() < until:
            connection.sendall(piece)
            try:
                if not connection.recv(4096):
                    return
            except TimeoutError:
                pass
    except OSError:
        return
    pytest.fail(f"the connection is open after {seconds} s")


def test_the_rest_of_an_answered_body_is_read_as_far_as_bodies_go(serve: Callable[..., Served]) -> None:
    service = serve(max_body_bytes=1_000_000)
    with service.raw() as connection:
        connection.sendall(request_head(bytes(2_000_000), path="/nowhere") + bytes(2_000_000) + GET + b"\r\n")
        assert any(b"HTTP/1.1 200 " in line for line in connection.makefile("rb"))  # it came at once
    with service.raw() as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")
        assert_closed_while_sending(connection, bytes(1_000_000))


def test_empty_lines_keep_no_connection_open(serve: Callable[..., Served]) -> None:
    service = serve(keep_alive_s=1)
    with service.raw() as dripping:
        dripping.sendall(GET + b"\r\n")
        assert dripping.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert_closed_while_sending(dripping, b"\r\n")


def test_the_trailer_of_a_body_adds_no_headers(running: Served) -> None:
    with running.raw() as connection:
        connection.sendall(
            b"POST /nowhere HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Request-ID: from-the-trailer\r\n\r\n"
            + GET
            + b"Connection: close\r\n\r\n"
        )
        head = connection.makefile("rb").read()
    assert head.startswith(b"HTTP/1.1 404 ")
    assert b"from-the-trailer" not in head


def test_as_many_requests_are_read_ahead_as_can_be_held(running: Served) -> None:
    with running.raw() as eager:
        eager.sendall((GET + b"\r\n") * 5000)
        served = answers(eager)
    assert set(served) == {b"200"}
    assert MAX_AHEAD < len(served) < 5000


@pytest.mark.parametrize("endless", [b"x" * 4096, b"a: b\r\n" * 1000], ids=["one header", "many headers"])
def test_413_for_a_head_that_does_not_end(running: Served, caller: Caller, endless: bytes) -> None:
    with running.raw() as connection:
        connection.sendall(GET + b"X: ")
        time.sleep(0.05)  # what comes together with the first bytes is not counted
        try:
            for _ in range(2 * MAX_HEAD_BYTES // len(endless)):
                connection.sendall(endless)
                time.sleep(0.001)
        except OSError:
            pass  # closed while it was still sending
        else:
            assert refused(connection)["code"] == "too_large"
    assert caller.call("GET", "/livez").status == 200


def test_a_long_head_is_fine_where_it_ends(caller: Caller) -> None:
    assert caller.call("GET", "/livez", headers={"X-Long": "x" * 50_000}).status == 200


def test_a_connection_that_asks_for_nothing_is_closed(serve: Callable[..., Served], caller: Caller) -> None:
    service = serve(keep_alive_s=1)
    with service.raw() as silent, service.raw() as slow, service.raw() as asking:
        slow.sendall(GET)
        asking.sendall(GET + b"\r\n")
        began = time.monotonic()
        assert silent.recv(1) == slow.recv(1) == b""
        assert asking.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
        assert 0.5 < time.monotonic() - began < 5


def test_a_connection_that_waits_for_its_answer_is_kept(serve: Callable[..., Served], good: Message) -> None:
    service = serve(keep_alive_s=1)
    body = b"".join(encode(good).chunks)
    head = f"POST /v1/gradients/exodus HTTP/1.1\r\nContent-Type: {MSGPACK_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    with service.raw() as patient:
        with service.busy():
            patient.sendall(head.encode() + body + GET)
            time.sleep(1.5)
        assert patient.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"


def test_upgrades_without_end_are_read_as_far_as_others(running: Served, caplog: pytest.LogCaptureFixture) -> None:
    offer = GET + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    with running.raw() as eager:
        eager.sendall(offer * 3000)
        served = answers(eager)
    assert set(served) == {b"200"}
    assert MAX_AHEAD < len(served) < 3000
    assert "Traceback" not in caplog.text


def test_upgrades_that_come_at_once_are_not_read_within_each_other(
    running: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, depth, deepest = Protocol._parse, [0], [0]

    def counted(self: Protocol, data: bytes) -> None:
        depth[0] += 1
        deepest[0] = max(deepest[0], depth[0])
        parse(self, data)
        depth[0] -= 1

    monkeypatch.setattr(Protocol, "_parse", counted)
    offer = GET + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    with running.raw() as connection:
        connection.sendall(offer * 30 + GET + b"Connection: close\r\n\r\n")
        assert answers(connection) == [b"200"] * 31
    assert deepest == [1]


@pytest.mark.parametrize(("path", "status"), [("/livez", b"405"), ("/nowhere", b"404")])
def test_the_broken_rest_of_an_answered_body_is_not_answered_again(running: Served, path: str, status: Any) -> None:
    with running.raw() as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 " + status
        connection.sendall(b"this is no number of bytes\r\n")
        assert answers(connection) == []


def test_an_upgrade_is_refused_where_the_body_would_get_lost(running: Served, good: Message) -> None:
    body = b"".join(encode(good).chunks)
    head = (
        f"POST /v1/gradients/exodus HTTP/1.1\r\nContent-Type: {MSGPACK_TYPE}\r\nContent-Length: {len(body)}\r\n"
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n"
    )
    with running.raw() as connection:
        connection.sendall(head.encode() + body)
        problem = refused(connection)
    assert problem["code"] == "malformed"
    assert problem["errors"][0]["pointer"] == "/headers/upgrade"


def test_the_log_says_that_a_request_was_no_http(
    running: Served, caplog: pytest.LogCaptureFixture, until: Callable[..., None]
) -> None:
    caplog.set_level(logging.WARNING)
    with running.raw() as connection:
        connection.sendall(b"\0\r\n\r\n")
        refused(connection)
    until(lambda: "Invalid HTTP request" in caplog.text)
