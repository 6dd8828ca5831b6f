"""Bodies through shared memory: the same answers, and nothing that a client can do to the service with it."""

import fcntl
import gc
import http.client
import json
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service.conftest import Answer, Caller, Served

from exodus_client import LIF, Client, PayloadTooLargeError, Retries, UnprocessableError
from exodus_client.wire import SEGMENT_GREETING, SEGMENT_TYPE, Message, Reference, Span, Tensor, encode, read_reference
from exodus_service.shared_memory import Segments

RNG = np.random.default_rng(0)
U, G = RNG.standard_normal((2, 4, 50, 200), np.float32)

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
REQUEST = encode(
    Message.of({"neuron": {"model": "lif", "alpha": 0.9}}, [Tensor.of("membrane", U), Tensor.of("grad_output", G)])
)


def ask(client: Any, **more: Any) -> Any:
    return client.gradients(neuron=LIF(0.9), membrane=U, grad_output=G, **more)


def memfd(nbytes: int = 1 << 20, seals: int = SEALS, flags: int = os.MFD_ALLOW_SEALING) -> int:
    descriptor = os.memfd_create("test", flags | os.MFD_CLOEXEC)
    os.ftruncate(descriptor, nbytes)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def segments_of(service: Served) -> Segments:
    assert service.segments is not None
    return service.segments


@pytest.fixture
def service(serve: Callable[..., Served]) -> Any:
    return serve(shared_memory=True)


@pytest.fixture
def hand_over(service: Served) -> Iterator[Any]:
    """Gives a descriptor to the service; the word and the rest of its answer, and the connection."""
    opened = []

    def give(*descriptors: Any, greeting: bytes = SEGMENT_GREETING) -> Any:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        opened.append(connection)
        connection.settimeout(10)
        connection.connect(f"\0{segments_of(service).socket_name}")
        socket.send_fds(connection, [greeting], descriptors)
        word, _, rest = connection.recv(256).decode().partition(" ")
        return word, rest, connection

    yield give
    for connection in opened:
        connection.close()


@pytest.fixture
def shared(service: Served, hand_over: Callable[..., Any]) -> Any:
    """A segment with a good request in it: its token, and the memory."""
    descriptor = memfd()
    memory = mmap.mmap(descriptor, 1 << 20)
    memory[: REQUEST.nbytes] = b"".join(REQUEST.chunks)
    word, token, connection = hand_over(descriptor)
    os.close(descriptor)
    assert word == "ok"
    return token, memory, connection


def post(service: Served, reference: Reference | bytes, **headers: str) -> Answer:
    body = reference if isinstance(reference, bytes) else reference.encode()
    return service.caller.post(body, SEGMENT_TYPE, headers=headers)


@pytest.mark.parametrize("uds", [False, True])
def test_the_answer_is_that_of_plain_http_bit_for_bit(serve: Callable[..., Served], tmp_path: Path, uds: bool) -> None:
    path = tmp_path / "socket"
    service = serve(shared_memory=True, **({"uds": path} if uds else {}))
    url = f"unix:{path}" if uds else f"http://127.0.0.1:{service.port}"
    with Client(url, shared_memory=True) as sharing, Client(url) as plain:
        for method in ("exodus", "slayer", "bptt"):
            expected = ask(plain, method=method, wrt=("alpha",), return_=("spikes",))
            for _ in range(3):
                found = ask(sharing, method=method, wrt=("alpha",), return_=("spikes",))
                assert found.grad_norms == expected.grad_norms
                for name, array in expected.arrays.items():
                    np.testing.assert_array_equal(found.arrays[name], array)
        assert len(segments_of(service)._memory) == 2  # one is asked for while the result before is still held
    assert service.engine.scheduler.bytes == 0


def test_results_that_are_kept_are_not_overwritten(service: Served, until: Callable[..., None]) -> None:
    with Client(f"http://127.0.0.1:{service.port}", shared_memory=True) as client:
        results = [client.gradients(neuron=LIF(0.9), membrane=U, grad_output=G * scale) for scale in range(5)]
        for scale, result in enumerate(results):
            np.testing.assert_allclose(result.grad_input, results[1].grad_input * scale, rtol=1e-5, atol=1e-6)
        assert len(segments_of(service)._memory) == 5
        kept = results[2].grad_input[0]
        copy = kept.copy()
        del results, result
        for _ in range(6):
            ask(client)
        np.testing.assert_array_equal(kept, copy)
        assert len(segments_of(service)._memory) == 5
    until(lambda: len(segments_of(service)._memory) == 1)  # the one whose array is alive
    del kept
    until(lambda: not segments_of(service)._memory)


def test_two_clients_and_many_threads_at_once(service: Served) -> None:
    url = f"http://127.0.0.1:{service.port}"
    with Client(url, shared_memory=True) as one, Client(url, shared_memory=True) as other:
        scales = range(1, 13)
        futures = [
            (one, other)[scale % 2].gradients(neuron=LIF(0.9), membrane=U * scale, grad_output=G, wait=False)
            for scale in scales
        ]
        found = [future.result() for future in futures]
    with Client(url) as plain:
        for scale, result in zip(scales, found, strict=True):
            expected = plain.gradients(neuron=LIF(0.9), membrane=U * scale, grad_output=G)
            np.testing.assert_array_equal(result.grad_input, expected.grad_input)


def test_an_answer_that_does_not_fit_comes_as_bytes(service: Served, shared: Any) -> None:
    token, _, _ = shared
    room = Span(1 << 19, 100)
    assert room.offset > REQUEST.nbytes
    answer = post(service, Reference(token, Span(0, REQUEST.nbytes), room))
    assert answer.headers["content-type"] == "application/vnd.msgpack"
    assert answer.tensor("grad_input").shape == U.shape


def test_an_answer_is_written_where_it_may_and_nowhere_else(service: Served, shared: Any) -> None:
    token, memory, _ = shared
    before = memory[:]
    room = Span(1 << 19, 1 << 18)
    reference = read_reference(post(service, Reference(token, Span(0, REQUEST.nbytes), room)).body)
    assert (reference.segment, reference.body.offset, reference.answer) == (token, room.offset, None)
    assert memory[: room.offset] == before[: room.offset]
    assert memory[reference.body.end :] == before[reference.body.end :]


def test_a_large_answer_to_a_small_request_finds_room_the_second_time(
    service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    spikes, weight = np.ones((8, 100, 64), np.uint8), np.ones((512, 64), np.float32)
    with Client(f"http://127.0.0.1:{service.port}", shared_memory=True) as client:
        types: list[str] = []
        assert client.connection.shared_memory is not None
        received = client.connection.shared_memory._received

        def noted(answer: Any, segment: Any) -> Any:
            types.append(answer.headers["content-type"])
            return received(answer, segment)

        monkeypatch.setattr(client.connection.shared_memory, "_received", noted)
        for _ in range(2):
            result = client.gradients(neuron=LIF(0.9), spikes=spikes, weight=weight, return_=["membrane"])
            assert result.membrane.shape == (8, 100, 512)
    assert types == ["application/vnd.msgpack", SEGMENT_TYPE]


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda: memfd(seals=0), "F_SEAL_SHRINK"),
            (lambda: memfd(seals=SEALS | fcntl.F_SEAL_WRITE), "writable, got the seal F_SEAL_WRITE"),
            (lambda: memfd(0), "at least 1 byte, got 0"),
            (lambda: memfd(2 << 30), "all segments must be at most"),
            (lambda: memfd(flags=0, seals=0), "F_SEAL_SHRINK"),
            (lambda: os.open("/etc/passwd", os.O_RDONLY), "memfd that allows seals"),
            (lambda: os.open("/dev/zero", os.O_RDWR), "memfd that allows seals"),
        ],
    )
    def test_what_could_harm_the_service_is_not_mapped(
        self, service: Served, hand_over: Callable[..., Any], make: Callable[[], int], reason: str
    ) -> None:
        descriptor = make()
        word, rest, _ = hand_over(descriptor)
        os.close(descriptor)
        assert word == "no"
        assert reason in rest
        assert not segments_of(service)._memory

    def test_a_memfd_opened_for_reading_is_not_mapped(self, hand_over: Callable[..., Any]) -> None:
        descriptor = memfd()
        reading = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
        word, rest, _ = hand_over(reading)
        os.close(descriptor)
        os.close(reading)
        assert (word, rest) == ("no", "the segment must be a readable and writable memfd, got another file")

    def test_another_greeting_or_none_is_refused(self, hand_over: Callable[..., Any]) -> None:
        descriptor = memfd()
        assert hand_over(descriptor, greeting=b"hello")[0] == "no"
        assert hand_over()[0] == "no"
        os.close(descriptor)

    def test_the_segment_cannot_shrink_once_it_is_there(self, hand_over: Callable[..., Any]) -> None:
        descriptor = memfd()
        assert hand_over(descriptor)[0] == "ok"
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)

    def test_another_user_is_not_let_in(
        self,
        service: Served,
        hand_over: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("exodus_service.shared_memory.os.geteuid", lambda: 12345)
        descriptor = memfd()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(f"\0{segments_of(service).socket_name}")
        assert connection.recv(256).startswith(b"no the user of the client must be 12345, got ")
        connection.close()
        os.close(descriptor)

    def test_the_number_of_segments_is_bounded(self, serve: Callable[..., Served]) -> None:
        service = serve(shared_memory=True, max_queue=2)
        with Client(f"http://127.0.0.1:{service.port}", shared_memory=True) as client:
            results = [ask(client) for _ in range(4)]  # the last two as bytes
            assert len(segments_of(service)._memory) == 2
            for result in results:
                np.testing.assert_array_equal(result.grad_input, results[0].grad_input)

    def test_unknown_tokens_are_gone(self, service: Served) -> None:
        reference = Reference("0" * 32, Span(0, 64), Span(64, 64))
        answer = post(service, reference)
        assert (answer.status, answer.problem["code"]) == (410, "segment_gone")

    def test_a_token_ends_with_its_connection(self, service: Served, shared: Any, until: Callable[..., None]) -> None:
        token, _, connection = shared
        reference = Reference(token, Span(0, REQUEST.nbytes))
        assert post(service, reference).status == 200
        connection.close()
        until(lambda: not segments_of(service)._memory)
        assert post(service, reference).problem["code"] == "segment_gone"

    @pytest.mark.parametrize(
        ("body", "answer", "status", "pointer"),
        [
            (Span(0, (1 << 20) + 1), None, 422, "/body"),
            (Span(1 << 20, 1), None, 422, "/body"),
            (Span(1 << 60, 1), None, 422, "/body"),
            (Span(0, 1 << 28 | 1), None, 413, "/body/nbytes"),
            (Span(0, 64), Span(64, 1 << 20), 422, "/answer"),
            (Span(0, 65), Span(64, 64), 422, "/answer"),
            (Span(1, 64), None, 400, "/body/offset"),
        ],
    )
    def test_sizes_that_lie_are_refused(
        self, service: Served, shared: Any, body: Span, answer: Span | None, status: int, pointer: str
    ) -> None:
        refused = post(service, Reference(shared[0], body, answer))
        assert (refused.status, refused.problem["errors"][0]["pointer"]) == (status, pointer)

    @pytest.mark.parametrize(
        "reference",
        [b"", b"[]", b"{", b"\xff", b'{"v": 1, "segment": "/etc/passwd", "body": {"offset": 0, "nbytes": 1}}'],
    )
    def test_what_is_no_reference_is_malformed(self, service: Served, reference: Reference) -> None:
        assert post(service, reference).status == 400

    def test_a_reference_is_short(self, service: Served) -> None:
        assert post(service, b" " * 2000).status == 413

    def test_a_reference_is_not_compressed(self, service: Served, shared: Any) -> None:
        reference = Reference(shared[0], Span(0, REQUEST.nbytes))
        assert post(service, reference, **{"Content-Encoding": "zstd"}).status == 415

    def test_the_body_in_the_segment_is_checked_as_any_other(self, service: Served, shared: Any) -> None:
        token, memory, _ = shared
        memory[:100] = bytes(100)
        assert post(service, Reference(token, Span(0, REQUEST.nbytes))).status == 400

    def test_the_limit_on_bodies_holds(self, serve: Callable[..., Served]) -> None:
        service = serve(shared_memory=True, max_body_bytes=REQUEST.nbytes - 1000)
        with (
            Client(f"http://127.0.0.1:{service.port}", shared_memory=True) as client,
            pytest.raises(PayloadTooLargeError, match="the body must be at most"),
        ):
            ask(client)

    def test_the_queue_counts_what_is_in_the_segment(
        self, serve: Callable[..., Served], until: Callable[..., None]
    ) -> None:
        service = serve(shared_memory=True, max_queue_bytes=5_000_000)
        with Client(
            f"http://127.0.0.1:{service.port}", shared_memory=True, retries=Retries(first_delay=0.05, count=20)
        ) as client:
            with service.busy():
                first = ask(client, wait=False)
                until(lambda: service.engine.scheduler.bytes > 2 * U.nbytes)
            assert first.result().grad_input.shape == U.shape
        until(lambda: service.engine.scheduler.bytes == 0)


def test_a_client_error_leaves_the_segment_usable(service: Served) -> None:
    with Client(f"http://127.0.0.1:{service.port}", shared_memory=True) as client:
        with pytest.raises(UnprocessableError):
            client.gradients(neuron=LIF(np.full(7, 0.9)), membrane=U, grad_output=G)
        assert ask(client).grad_input.shape == U.shape


def test_off_unless_asked_for(running: Served, caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "exodus_client")
    with Client(f"http://127.0.0.1:{running.port}", shared_memory=True) as client:
        for _ in range(3):
            assert ask(client).grad_input.shape == U.shape
    assert caplog.text.count("shared memory is not used, bytes are sent: shared memory is off on this service") == 1
    reference = Reference("0" * 32, Span(0, 64))
    assert caller.post(reference.encode(), SEGMENT_TYPE).problem["code"] == "segment_gone"


def test_the_socket_is_named_to_those_with_a_key_only(serve: Callable[..., Served]) -> None:
    service = serve(shared_memory=True, api_keys="key")
    assert service.caller.call("GET", "/v1/shared-memory").status == 401
    named = service.caller.call("GET", "/v1/shared-memory", headers={"Authorization": "Bearer key"})
    assert json.loads(named.body) == {"socket": segments_of(service).socket_name}


def test_a_service_that_was_replaced_is_noticed(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = serve(shared_memory=True), serve(shared_memory=True)
    with Client(f"http://127.0.0.1:{first.port}", shared_memory=True) as client:
        before = ask(client).grad_input
        monkeypatch.setattr(first.segments, "_memory", {})  # what a new process knows of the old one's segments
        np.testing.assert_array_equal(ask(client).grad_input, before)
        assert len(segments_of(first)._memory) == 1
    assert not segments_of(second)._memory


CHILD = """
import sys, numpy as np
from exodus_client import Client, LIF
u = np.ones((64, 100, 500), np.float32)
client = Client(sys.argv[1], shared_memory=True)
while True:
    client.gradients(neuron=LIF(0.9), membrane=u, grad_output=u)
    print("done", flush=True)
"""


def mapped() -> Any:
    """Segments in the memory of this process, which is the service's, and that of some clients."""
    return Path("/proc/self/maps").read_text().count("/memfd:exodus")


def segments_on_disk() -> list[str]:
    """Everything in /dev/shm but the state folders of other tests."""
    return sorted(name for name in os.listdir("/dev/shm") if not name.startswith("exodus-tests-"))


def test_a_client_that_is_killed_leaves_nothing_behind(service: Served, until: Callable[..., None]) -> None:
    before = segments_on_disk()
    child = subprocess.Popen([sys.executable, "-c", CHILD, f"http://127.0.0.1:{service.port}"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    until(lambda: not segments_of(service)._memory)
    until(lambda: service.engine.scheduler.requests == 0)
    gc.collect()
    until(lambda: mapped() == 0)
    assert segments_on_disk() == before
    assert service.caller.call("GET", "/livez").status == 200


def test_a_service_that_is_killed_leaves_nothing_behind() -> None:
    before = segments_on_disk()
    command = [str(Path(sys.executable).with_name("exodus-service")), "serve", "--port", "0", "--shared-memory"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = next(line for line in process.stderr if "running on" in line).rpartition("127.0.0.1:")[2].split()[0]
        with Client(f"http://127.0.0.1:{port}", shared_memory=True, retries=0) as client:
            result = ask(client).grad_input
            copy = result.copy()
            process.kill()
            process.wait()
            np.testing.assert_array_equal(result, copy)
            with pytest.raises(Exception, match="no answer from"):
                ask(client)
    assert segments_on_disk() == before


def test_probes_are_quick_while_large_answers_are_placed(service: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port)
    large = np.ones((64, 100, 500), np.float32)
    with Client(f"http://127.0.0.1:{service.port}", shared_memory=True) as client:
        future = client.gradients(neuron=LIF(0.9), membrane=large, grad_output=large, wait=False)
        while not future.done():
            connection.request("GET", "/livez")
            assert connection.getresponse().read()
        assert future.result().grad_input.shape == large.shape
    connection.close()
