"""Bodies that are received straight into the buffer where they are decoded, around the parser."""

import asyncio
import contextlib
import socket
import time
import weakref
from collections.abc import Callable, Sized
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from service.conftest import Caller, Served

import exodus_core
from exodus_client.wire import MSGPACK_TYPE, Message, decode, encode
from exodus_service.http.body import SMALLEST, Filling, Upload, place

LIF = {"model": "lif", "alpha": 0.9}
SHAPE = (8, 100, 500)


@pytest.fixture(scope="module")
def traces() -> Any:
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).unbind()


@pytest.fixture(scope="module")
def expected(traces: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return exodus_core.lif_gradient(*traces, 0.9).input


@pytest.fixture
def body(ask: Callable[..., Message], traces: tuple[torch.Tensor, torch.Tensor]) -> bytes:
    membrane, grad_output = traces
    return b"".join(encode(ask(LIF, membrane=membrane, grad_output=grad_output)).chunks)


def head(body: Sized, **headers: object) -> bytes:
    lines = [
        "POST /v1/gradients/exodus HTTP/1.1",
        f"Content-Type: {MSGPACK_TYPE}",
        f"Content-Length: {len(body)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def answer(stream: BinaryIO) -> tuple[int, bytes]:
    """Status and body of the next answer on a connection."""
    status = int(stream.readline().split()[1])
    length = 0
    while (line := stream.readline()) != b"\r\n":
        name, _, value = line.decode().partition(": ")
        if name.lower() == "content-length":
            length = int(value)
    return status, stream.read(length)


def grad_input(body: bytes) -> torch.Tensor:
    return decode(bytearray(body), MSGPACK_TYPE).tensors["grad_input"].torch()


@pytest.mark.parametrize("sizes", [(1 << 24,), (100_000, 1, 300_000), (SMALLEST, 1 << 24), (10, 70_000)])
def test_a_body_in_any_pieces_is_the_body(
    running: Served, body: bytes, expected: torch.Tensor, sizes: tuple[int, ...]
) -> None:
    with running.raw() as connection, connection.makefile("rb") as stream:
        for _ in range(3):
            connection.sendall(head(body))
            position = 0
            while position < len(body):
                for size in sizes:
                    connection.sendall(body[position : position + size])
                    position += size
            status, found = answer(stream)
            assert status == 200
            assert torch.equal(grad_input(found), expected)


def test_requests_sent_ahead_are_answered_in_order(
    running: Served, body: bytes, expected: torch.Tensor, good: Message
) -> None:
    small = b"".join(encode(good).chunks)
    with running.raw() as connection, connection.makefile("rb") as stream:
        connection.settimeout(30)
        for part in (head(body) + body, head(small) + small, head(body) + body):
            connection.sendall(part)
        answers = [answer(stream) for _ in range(3)]
    assert [status for status, _ in answers] == [200] * 3
    assert torch.equal(grad_input(answers[0][1]), expected)
    assert torch.equal(grad_input(answers[2][1]), expected)


def test_a_body_is_asked_for_once_it_has_its_place(running: Served, body: bytes, expected: torch.Tensor) -> None:
    with running.raw() as connection, connection.makefile("rb") as stream:
        connection.sendall(head(body, Expect="100-continue"))
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert stream.readline() == b"\r\n"
        connection.sendall(body)
        assert torch.equal(grad_input(answer(stream)[1]), expected)


def test_408_for_a_large_body_that_stalls(serve: Callable[..., Served], body: bytes, caller: Caller) -> None:
    service = serve(stall_timeout_s=0.2)
    with service.raw() as connection:
        connection.sendall(head(body) + body[:1_000_000])
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 408 ")
    assert service.engine.scheduler.requests == 0


def test_a_large_body_that_keeps_coming_is_not_late(
    serve: Callable[..., Served], body: bytes, expected: torch.Tensor
) -> None:
    service = serve(stall_timeout_s=0.3)
    with service.raw() as connection, connection.makefile("rb") as stream:
        connection.sendall(head(body))
        pieces = 10
        for number in range(pieces):
            connection.sendall(body[number * len(body) // pieces : (number + 1) * len(body) // pieces])
            time.sleep(0.06)
        assert torch.equal(grad_input(answer(stream)[1]), expected)


def test_408_for_a_large_body_that_drips(serve: Callable[..., Served], body: bytes) -> None:
    service = serve(stall_timeout_s=0.2, min_upload_rate=len(body) * 5)
    with service.raw() as connection:
        connection.sendall(head(body) + body[:200_000])
        connection.settimeout(0.05)
        began = time.monotonic()
        came = b""
        while not came and time.monotonic() - began < 10:
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                came = connection.recv(100)
        assert came.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 3


def test_a_client_that_leaves_in_the_middle_gives_its_place_back(
    running: Served, body: bytes, until: Callable[..., None]
) -> None:
    with running.raw() as connection:
        connection.sendall(head(body) + body[:1_000_000])
        until(lambda: running.engine.scheduler.bytes == len(body))
    until(lambda: running.engine.scheduler.requests == 0)


def test_after_a_deadline_the_rest_is_read_and_forgotten_and_the_connection_goes_on(
    running: Served, body: bytes, expected: torch.Tensor
) -> None:
    with running.raw() as connection, connection.makefile("rb") as stream:
        connection.sendall(head(body, X_Deadline_Ms=50) + body[:1_000_000])
        assert answer(stream)[0] == 504
        connection.sendall(body[1_000_000:])
        connection.sendall(head(body) + body)
        status, found = answer(stream)
        assert status == 200
        assert torch.equal(grad_input(found), expected)


def test_what_is_abandoned_is_let_go_of(until: Callable[..., None]) -> None:
    whole = np.empty(1 << 20, np.uint8)
    alive = weakref.ref(whole)
    filling = Filling(whole.data)
    del whole
    filling.put(b"1234")
    filling.abandon()
    assert alive() is None
    assert 0 < len(filling.vacancy()) <= filling.remaining == (1 << 20) - 4


def test_a_server_without_the_extension_is_asked_for_messages() -> None:
    buffer = memoryview(bytearray(SMALLEST + 1))
    assert place({}, buffer) is None
    offered = {"extensions": {"exodus.place": {"place": Filling}}}
    assert isinstance(place(offered, buffer), Filling)
    assert place(offered, buffer[:-1]) is None


def test_the_protocol_works_on_the_event_loop_of_the_standard_library() -> None:
    """Where uvloop is missing."""

    async def serve() -> int:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        filling, done = Filling(memoryview(bytearray(100_000))), loop.create_future()
        upload = Upload(asyncio.Protocol(), filling, lambda: done.set_result(None))
        transport, _ = await loop.connect_accepted_socket(lambda: upload, ours)
        await loop.sock_sendall(theirs, bytes(range(100)) * 1000)
        await asyncio.wait_for(done, 10)
        transport.close()
        theirs.close()
        return filling.filled

    assert asyncio.run(serve()) == 100_000


@pytest.mark.parametrize("nbytes", [60_000, 200_000_000], ids=["small", "large"])
def test_408_for_a_body_that_drips_from_the_beginning_however_long_it_is(
    serve: Callable[..., Served], nbytes: int
) -> None:
    service = serve(stall_timeout_s=0.3)
    with service.raw() as connection:
        connection.sendall(head(range(nbytes)) + b"x")
        connection.settimeout(0.05)
        began = time.monotonic()
        came = b""
        while not came and time.monotonic() - began < 3:
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                came = connection.recv(100)
        assert came.startswith(b"HTTP/1.1 408 ")
