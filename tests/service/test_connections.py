"""What a connection may do before, beside and instead of asking for something."""

import json
import logging
import time

import pytest

from exodus_client.wire import MSGPACK_TYPE, encode
from exodus_service.protocol import MAX_HEAD_BYTES

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"


def refused(connection):
    """The one answer on a connection that is closed after it, as head and problem."""
    head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert lines["connection"] == "close"
    assert lines["content-type"] == "application/problem+json"
    problem = json.loads(body)
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
def test_what_is_not_http_is_answered_like_everything_else(running, nonsense):
    with running.raw() as connection:
        connection.sendall(nonsense)
        assert refused(connection)["code"] == "malformed"


def test_nonsense_behind_a_request_does_not_answer_in_its_place(running, good):
    body = b"".join(encode(good).chunks)
    head = f"POST /v1/gradients/exodus HTTP/1.1\r\nContent-Type: {MSGPACK_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    with running.busy(), running.raw() as connection:
        connection.sendall(head.encode() + body + b"\0\0\0\0")
        assert connection.makefile("rb").read() == b""


@pytest.mark.parametrize("endless", [b"x" * 4096, b"a: b\r\n" * 1000], ids=["one header", "many headers"])
def test_413_for_a_head_that_does_not_end(running, caller, endless):
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


def test_a_long_head_is_fine_where_it_ends(caller):
    assert caller.call("GET", "/livez", headers={"X-Long": "x" * 50_000}).status == 200


def test_a_connection_that_asks_for_nothing_is_closed(serve, caller):
    service = serve(keep_alive_s=1)
    with service.raw() as silent, service.raw() as slow, service.raw() as asking:
        slow.sendall(GET)
        asking.sendall(GET + b"\r\n")
        began = time.monotonic()
        assert silent.recv(1) == slow.recv(1) == b""
        assert asking.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
        assert 0.5 < time.monotonic() - began < 5


def test_a_connection_that_waits_for_its_answer_is_kept(serve, good):
    service = serve(keep_alive_s=1)
    body = b"".join(encode(good).chunks)
    head = f"POST /v1/gradients/exodus HTTP/1.1\r\nContent-Type: {MSGPACK_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    with service.raw() as patient:
        with service.busy():
            patient.sendall(head.encode() + body + GET)
            time.sleep(1.5)
        assert patient.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"


def test_an_upgrade_is_refused_where_the_body_would_get_lost(running, good):
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


def test_the_log_says_that_a_request_was_no_http(running, caplog, until):
    caplog.set_level(logging.WARNING)
    with running.raw() as connection:
        connection.sendall(b"\0\r\n\r\n")
        refused(connection)
    until(lambda: "Invalid HTTP request" in caplog.text)
