"""Failing requests: errors, retries, timeouts. No test sleeps for a retry."""

import logging
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, cast

import httpx
import numpy as np
import pytest

import exodus_client
from exodus_client import (
    LIF,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Client,
    InternalServerError,
    Retries,
    ServerOutOfMemoryError,
    ServerStorageFullError,
    Timeout,
    UnprocessableError,
)
from exodus_client._errors import STATUS_ERRORS
from exodus_client._transport.retry import parse_retry_after

U = np.ones((1, 2, 3), np.float32)


def ask(client: Client) -> Any:
    return client.gradients(neuron=LIF(0.9), membrane=U, grad_output=U)


def problem(status: int, **members: Any) -> httpx.Response:
    members = {
        "type": "about:blank",
        "title": "No",
        "status": status,
        "detail": "it does not fit",
        "code": "odd",
    } | members
    return httpx.Response(status, json=members, headers={"Content-Type": "application/problem+json"})


class TestStatus:
    def test_a_full_disk_is_no_lack_of_memory(self, service: Any) -> None:
        service.handler = lambda request: httpx.Response(
            507, json={"code": "storage_full", "detail": "no space", "retryable": False}
        )
        with pytest.raises(ServerStorageFullError, match=r"^507 storage_full: no space \[request"):
            ask(service.client())
        service.handler = lambda request: httpx.Response(507, json={"code": "out_of_memory", "retryable": False})
        with pytest.raises(ServerOutOfMemoryError):
            ask(service.client())
        assert len(service.requests) == 2

    @pytest.mark.parametrize(
        ("detail", "faults", "lines"),
        [
            ("/a must be 1, got 2", [("/a", "1", "2")], []),
            (
                "shape of tensor 'u' must be [3], got [4]",
                [("/tensors/0/shape", "[3]", "[4]")],
                ["  at /tensors/0/shape"],
            ),
            ("alpha must be in (0, 1], got 1.5", [("/alpha", "a value in (0, 1]", "1.5")], ["  at /alpha"]),
            ("/a must be 1, got 2", [("/a", "1", "2"), ("/b", "3", "4")], ["  /b must be 3, got 4"]),
            ("it does not fit", [("/a", "1", "2")], ["  /a must be 1, got 2"]),
        ],
    )
    def test_a_place_is_said_once(
        self, service: Any, detail: str, faults: list[tuple[str, str, str]], lines: list[str]
    ) -> None:
        errors = [dict(zip(("pointer", "expected", "got"), fault, strict=True)) for fault in faults]
        service.handler = lambda request: httpx.Response(
            422, json={"code": "invalid", "detail": detail, "errors": errors}
        )
        with pytest.raises(UnprocessableError) as caught:
            ask(service.client())
        error = caught.value
        assert str(error) == "\n".join([f"422 invalid: {detail}", *lines]) + f" [request {error.request_id}]"
        assert [(fault.pointer, fault.expected, fault.got) for fault in error.errors] == faults

    @pytest.mark.parametrize("text", ["\\ud800", "caf\\u00e9"])
    def test_an_error_can_be_printed(self, service: Any, text: str) -> None:
        service.handler = lambda request: httpx.Response(400, content=f'{{"detail": "{text}", "code": "{text}"}}')
        with pytest.raises(APIStatusError) as caught:
            ask(service.client())
        assert str(caught.value).encode()

    @pytest.mark.parametrize("status", [*STATUS_ERRORS, 302, 418, 500, 501, 502])
    def test_every_status_has_its_class(self, service: Any, status: int) -> None:
        faults = [{"pointer": "/tensors/0/shape", "expected": "[1, 2]", "got": "[2, 1]"}, "odd", {"pointer": 3}]
        service.handler = lambda request: problem(status, errors=faults, category="user", retryable=False)
        with pytest.raises(APIStatusError) as caught:
            ask(service.client(retries=0))
        error = caught.value
        wanted = STATUS_ERRORS.get(status, InternalServerError if status >= 500 else APIStatusError)
        assert type(error) is wanted
        assert (error.status_code, error.code, error.detail) == (status, "odd", "it does not fit")
        assert (error.category, error.retryable, error.retry_after) == ("user", False, None)
        assert error.errors[0].pointer == "/tensors/0/shape"
        assert len(error.errors) == 2
        assert error.request_id == service.requests[0].headers["X-Request-ID"]
        assert str(error) == (
            f"{status} odd: it does not fit\n  /tensors/0/shape must be [1, 2], got [2, 1]\n"
            f"  the request must be , got  [request {error.request_id}]"
        )

    def test_the_tree_in_the_documentation_is_the_tree(self) -> None:
        drawn = re.findall(r"^([ │├└─]*)(\w+Error)\b", exodus_client._errors.__doc__ or "", re.MULTILINE)
        parents: list[str] = ["Exception"]
        for indent, name in drawn:
            depth = len(indent) // 4
            assert getattr(exodus_client, name).__bases__[0].__name__ == parents[depth - 1]
            parents[depth:] = [name]
        errors = {name for name in exodus_client.__all__ if name.endswith("Error")} - {"WireError"}
        assert errors == {name for _, name in drawn}

    @pytest.mark.parametrize(
        ("body", "detail"),
        [
            (b"<html>bad gateway</html>", "<html>bad gateway</html>"),
            (b"", "no reason given"),
            (b"[1]", "[1]"),
            (b"\xff" * 2000, "\ufffd" * 500),
            (b"[" * 100_000, "[" * 500),
            (b'{"detail": 3, "title": "Too bad", "retryable": "yes", "errors": 3}', "Too bad"),
        ],
    )
    def test_an_error_of_something_in_between_is_shown_as_it_came(self, service: Any, body: bytes, detail: str) -> None:
        service.handler = lambda request: httpx.Response(400, content=body)
        with pytest.raises(exodus_client.BadRequestError) as caught:
            ask(service.client())
        assert (caught.value.code, caught.value.detail, caught.value.errors) == ("", detail, ())
        assert caught.value.retryable is None

    def test_the_id_is_the_one_that_the_server_logged(self, service: Any) -> None:
        service.handler = lambda request: httpx.Response(404, headers={"X-Request-ID": "theirs"})
        with pytest.raises(exodus_client.NotFoundError) as caught:
            ask(service.client())
        assert caught.value.request_id == "theirs"


class TestRetries:
    @pytest.mark.parametrize(
        "failure",
        [
            problem(408),
            problem(409, retryable=True),
            problem(429),
            problem(500),
            problem(502),
            problem(503),
            problem(504, retryable=True),
            problem(507, retryable=True),
            httpx.Response(503, content=b"busy"),
            httpx.ConnectError("refused"),
            httpx.ConnectTimeout("slow"),
            httpx.ReadError("reset"),
            httpx.RemoteProtocolError("closed"),
        ],
    )
    def test_what_may_go_better_is_tried_again_under_the_same_id(self, service: Any, failure: Any) -> None:
        service.answers = [failure]
        ask(service.client())
        first, second = service.requests
        assert first.headers["X-Request-ID"] == second.headers["X-Request-ID"]
        assert first.content == second.content
        assert len(service.waits) == 1

    @pytest.mark.parametrize(
        "failure",
        [
            problem(400),
            problem(401),
            problem(409),
            problem(409, retryable=False),
            problem(410),
            problem(413),
            problem(422, retryable=True),
            problem(500, retryable=False),
            problem(501),
            problem(507),
        ],
    )
    def test_what_cannot_go_better_is_raised_at_once(self, service: Any, failure: Any) -> None:
        service.handler = lambda request: failure
        with pytest.raises(APIStatusError):
            ask(service.client())
        assert len(service.requests) == 1
        assert not service.waits

    def test_the_waits_grow_and_are_bounded_and_the_last_error_is_raised(self, service: Any) -> None:
        service.handler = lambda request: problem(500)
        retries = Retries(count=6, first_delay=1.0, max_delay=8.0, jitter=0.0, sleep=service.waits.append)
        with pytest.raises(InternalServerError):
            ask(service.client(retries=retries))
        assert service.waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
        assert len(service.requests) == 7

    def test_the_waits_of_two_clients_differ(self, service: Any) -> None:
        service.handler = lambda request: problem(500)
        retries = Retries(count=50, first_delay=1.0, max_delay=1.0, jitter=0.25, sleep=service.waits.append)
        with pytest.raises(InternalServerError):
            ask(service.client(retries=retries))
        assert all(0.75 <= wait <= 1.0 for wait in service.waits)
        assert len(set(service.waits)) > 1

    def test_a_wish_of_the_server_is_honoured(self, service: Any) -> None:
        busy = problem(429)
        busy.headers["Retry-After"] = "7"
        service.answers = [busy]
        ask(service.client())
        assert service.waits == [7.0]

    def test_a_wish_that_asks_too_much_is_raised(self, service: Any) -> None:
        busy = problem(503)
        busy.headers["Retry-After"] = "3600"
        service.answers = [busy]
        with pytest.raises(exodus_client.ServiceUnavailableError) as caught:
            ask(service.client())
        assert caught.value.retry_after == 3600.0

    def test_a_wish_may_be_a_number_or_a_date(self) -> None:
        assert parse_retry_after(None) is None
        assert parse_retry_after(" 12 ") == 12.0
        assert parse_retry_after("soon") is None
        assert parse_retry_after("-3") is None
        assert parse_retry_after("²") is None
        assert parse_retry_after("Mon, 01 Jan 99999999999 00:00:00 GMT") is None
        assert parse_retry_after("Mon, 01 Jan 2000 00:00:00 +99999999999999") is None
        assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
        later = datetime.now(UTC) + timedelta(seconds=100)
        assert parse_retry_after(format_datetime(later, usegmt=True)) == pytest.approx(100, abs=5)
        assert parse_retry_after(f"{later:%a, %d %b %Y %H:%M:%S} -0000") == pytest.approx(100, abs=5)

    def test_a_number_stands_for_so_many_retries(self, service: Any) -> None:
        service.handler = lambda request: problem(500)
        with pytest.raises(InternalServerError):
            ask(service.client(retries=0))
        assert len(service.requests) == 1


class TestTimeouts:
    def test_an_answer_that_does_not_come_in_time_is_an_error_of_its_own(self, service: Any) -> None:
        service.answers = [httpx.ReadTimeout("slow")] * 4
        with pytest.raises(
            APITimeoutError, match=r"http://node:8000 did not answer in time \(ReadTimeout: slow\)"
        ) as caught:
            ask(service.client())
        assert isinstance(caught.value.__cause__, httpx.ReadTimeout)
        assert isinstance(caught.value, APIConnectionError)
        assert len(service.requests) == 4

    def test_every_wait_is_bounded_by_default(self, service: Any) -> None:
        ask(service.client())
        assert service.requests[0].extensions["timeout"] == {
            "connect": 5.0,
            "read": 300.0,
            "write": 60.0,
            "pool": 300.0,
        }
        assert "X-Deadline-Ms" not in service.requests[0].headers

    def test_a_total_bounds_every_wait_and_is_told_to_the_server(self, service: Any) -> None:
        ask(service.client(timeout=2))
        ask(service.client(timeout=Timeout(read=1, connect=None, total=2)))
        first, second = (request.extensions["timeout"] for request in service.requests)
        assert all(1.5 < seconds <= 2 for seconds in first.values())
        assert second["read"] == 1
        assert 1.5 < second["connect"] <= 2
        assert all(1500 < int(request.headers["X-Deadline-Ms"]) <= 2000 for request in service.requests)

    def test_no_attempt_is_begun_that_would_come_too_late(self, service: Any) -> None:
        service.handler = lambda request: problem(500)
        with pytest.raises(InternalServerError):
            ask(service.client(timeout=0.1))  # less than the first wait
        assert len(service.requests) == 1

    def test_a_wait_that_took_longer_than_planned_ends_the_call(self, service: Any) -> None:
        service.handler = lambda request: problem(500)
        retries = Retries(first_delay=0.001, sleep=lambda seconds: time.sleep(0.1))
        with pytest.raises(APITimeoutError, match=r"no answer within Timeout.total of 0.05 s"):
            ask(service.client(timeout=0.05, retries=retries))
        assert len(service.requests) == 1

    def test_an_answer_that_drips_is_cut_off(self, service: Any) -> None:
        class Drip(httpx.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                while True:
                    time.sleep(0.02)
                    yield b"."

        service.handler = lambda request: httpx.Response(200, stream=Drip())
        with pytest.raises(APITimeoutError, match=r"Timeout.total"):
            ask(service.client(timeout=0.1))

    def test_a_total_ends_an_upload_that_the_server_takes_slowly(self, service: Any) -> None:
        sent = []

        class Slow(httpx.BaseTransport):
            def handle_request(self, request: httpx.Request) -> httpx.Response:
                for chunk in cast("httpx.SyncByteStream", request.stream):
                    sent.append(len(chunk))
                    time.sleep(0.02)
                raise AssertionError("the upload went on")

        large = np.ones((1, 1000, 1000), np.float32)
        client = service.client(timeout=0.1, transport=Slow())
        with pytest.raises(APITimeoutError, match=r"no answer within Timeout.total of 0.1 s"):
            client.gradients(neuron=LIF(0.9), membrane=large, grad_output=large)
        assert 0 < sum(sent) < large.nbytes


def test_a_call_that_has_been_lost_for_seconds_is_a_warning(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "exodus_client"):
        service.answers = [*[httpx.ConnectError("refused")] * 6, httpx.Response(200, json={})]
        clock = Clock()
        retries = Retries(count=6, first_delay=2.0, max_delay=2.0, jitter=0.0, sleep=clock.sleep)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("exodus_client._transport.session.time.monotonic", clock.now)
            service.client(retries=retries).capabilities()
    levels = [record.levelno for record in caplog.records if "next attempt" in record.getMessage()]
    assert levels == [logging.INFO] * 2 + [logging.WARNING] * 4  # SAY_AFTER is 5 s


class Clock:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
