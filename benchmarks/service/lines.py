"""Requirements on requests over HTTP, each measured by one function that checks the result first."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np

from exodus_client import LIF, Client
from exodus_client._transport.session import Session
from exodus_client.wire import MSGPACK_TYPE, Encoded, Message, Tensor, decode, encode

from . import servers
from .caller import Caller
from .messages import ALPHA, KIB, MIB, Request
from .servers import KEY, Running
from .timing import Times, take_turns

PATH = "/v1/gradients/exodus"


@dataclass(frozen=True)
class Line:
    """One line of the table. `passed` is None if there is nothing to reach."""

    what: str
    must: str
    reached: str
    passed: bool | None = None


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def against_echo(service: Running, echo: Running, repeats: dict[int, int]) -> Iterator[Line]:
    """Overhead of the service over a bare FastAPI application that takes and gives the same bytes."""
    for nbytes, ratio in ((KIB, None), (32 * MIB, 1.15)):
        request = Request.of(nbytes)
        encoded = request.encoded
        ours, bare = Caller(service, encoded.nbytes), Caller(echo, encoded.nbytes)
        answer = ours.post(PATH, MSGPACK_TYPE, encoded.chunks)
        request.check(decode(answer, MSGPACK_TYPE).tensors["grad_input"].numpy(), "loopback")
        size = len(answer) if ratio else encoded.nbytes
        times = take_turns(
            {
                "service": partial(ours.post, PATH, MSGPACK_TYPE, encoded.chunks),
                "echo": partial(bare.post, f"/echo/{size}", MSGPACK_TYPE, encoded.chunks),
            },
            repeats[nbytes],
        )
        took, floor = times["service"], times["echo"]
        if ratio is None:
            added = took.p50 - floor.p50
            yield Line(
                "1 KiB request, added to a bare FastAPI echo, p50",
                "<= 0.50 ms",
                f"{ms(added)} ({ms(took.p50)} against {ms(floor.p50)})",
                added <= 0.5e-3,
            )
        else:
            for name, found in (("best", took.best / floor.best), ("p50", took.p50 / floor.p50)):
                yield Line(
                    f"32 MiB in, 16 MiB out, against an echo of the same, {name}",
                    f"<= {ratio:.2f}x",
                    f"{found:.2f}x ({ms(getattr(took, name))} against {ms(getattr(floor, name))})",
                    found <= ratio,
                )
        ours.close()
        bare.close()


def client_against_httpx(sink: Running, repeats: int) -> Iterator[Line]:
    """The client's way of sending and receiving, without what it computes, against the best of httpx's."""
    content = np.random.default_rng(0).integers(0, 256, 32 * MIB, np.uint8).tobytes()
    view = memoryview(content)
    headers = {"Content-Length": str(len(content)), "Content-Type": MSGPACK_TYPE}

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(content), 256 * KIB):
            yield cast(bytes, view[start : start + 256 * KIB])

    def stream_into(http: httpx.Client, path: str) -> memoryview:
        with http.stream("GET", path) as response:
            body, position = np.empty(int(response.headers["Content-Length"]), np.uint8), 0
            for chunk in response.iter_raw():
                body[position : position + len(chunk)] = np.frombuffer(chunk, np.uint8)
                position += len(chunk)
        return memoryview(cast(Any, body))

    with Client(sink.url, api_key=KEY, retries=0) as client, httpx.Client(base_url=sink.url) as http:
        session: Session = client.connection.session
        encoded = Encoded(MSGPACK_TYPE, len(content), [view])
        path = f"/bytes/{len(content)}"
        assert len(session.call("GET", path).body) == len(http.get(path).content) == len(content)
        upload = take_turns(
            {
                "ours": lambda: session.call("POST", "/", encoded),
                "httpx, bytes": lambda: http.post("/", content=content, headers=headers),
                "httpx, 256 KiB chunks": lambda: http.post("/", content=chunks(), headers=headers),
            },
            repeats,
        )
        download = take_turns(
            {
                "ours": lambda: session.call("GET", path),
                "httpx, content": lambda: http.get(path).content,
                "httpx, iter_raw": lambda: stream_into(http, path),
            },
            repeats,
        )
    for what, times in (("upload", upload), ("download", download)):
        for name in ("best", "p50"):
            ours = getattr(times.pop("ours") if name == "p50" else times["ours"], name)
            theirs, pattern = min((getattr(taken, name), key) for key, taken in times.items() if key != "ours")
            yield Line(
                f"client {what} of 32 MiB against the best pattern of httpx, {name}",
                ">= 0.90x",
                f"{theirs / ours:.2f}x ({32 / ours:.0f} against {32 / theirs:.0f} MiB/s, {pattern})",
                theirs / ours >= 0.9,
            )


def spikes_as_bits(sink: Running, repeats: int) -> Iterator[Line]:
    """The same spikes as bits and as float32: encode, send, decode, each apart."""
    spikes = (np.random.default_rng(0).random((32, 256, 1024)) < 0.05).astype(np.float32)
    with Client(sink.url, retries=0) as client:
        session: Session = client.connection.session
        for source, array in (("float32", spikes), ("bool", spikes.astype(bool))):
            sums: dict[str, float] = {}
            for encoding in ("raw", "bits"):
                given = spikes if encoding == "raw" else array

                def written(given: Any = given, encoding: Any = encoding) -> Encoded:
                    return encode(Message.of({}, [Tensor.of("spikes", given, encoding)]))

                body = bytearray().join(written().chunks)

                def read(body: bytearray = body) -> Any:
                    return decode(body, MSGPACK_TYPE).tensors["spikes"].stored()

                if not np.array_equal(read(), spikes):
                    raise SystemExit(f"spikes as {encoding}: decoded to something else; nothing is timed")
                encoded = written()
                times = take_turns(
                    {"encode": written, "send": partial(session.call, "POST", "/", encoded), "decode": read},
                    repeats,
                )
                sums[encoding] = sum(taken.p50 for taken in times.values())
                parts = ", ".join(f"{name} {ms(taken.p50)}" for name, taken in times.items())
                yield Line(f"8 Mi spikes, {source} sent as {encoding}, p50", "", f"{ms(sums[encoding])}: {parts}")
            gain = sums["raw"] / sums["bits"]
            must = ">= 20x" if source == "bool" else ""
            yield Line(
                f"spikes of {source} as bits against float32, encode to decoded",
                must,
                f"{gain:.1f}x",
                gain >= 20 if must else None,
            )


def decoding() -> Iterator[Line]:
    """Decoding does not depend on the size."""
    worst = {}
    for nbytes in (KIB, MIB, 64 * MIB):
        body = bytearray().join(Request.of(nbytes).encoded.chunks)
        taken = take_turns({"decode": lambda body=body: decode(body, MSGPACK_TYPE).tensors["membrane"].numpy()}, 300)  # type: ignore[misc]
        worst[nbytes] = taken["decode"].p50
    found = ", ".join(f"{ms(taken)} for {_size(nbytes)}" for nbytes, taken in worst.items())
    yield Line("decode of a stream of two tensors, p50", "<= 0.10 ms", found, max(worst.values()) <= 1e-4)


def probes_under_load(service: Running, seconds: float) -> Iterator[Line]:
    """/livez while bodies of 64 MiB come and go, and kernels of about a second run."""
    request = Request.of(64 * MIB)
    trace, taps = np.random.default_rng(0).random((16, 4000, 64), np.float32), np.full(4000, -1e-3, np.float32)
    tensors = [Tensor.of("membrane", trace), Tensor.of("grad_output", trace), Tensor.of("reset_kernel", taps)]
    slow = encode(Message.of({"neuron": {"model": "srm"}}, tensors))
    stop = threading.Event()

    def load(encoded: Encoded) -> None:
        caller = Caller(service, 64 * MIB)
        while not stop.is_set():
            caller.post(PATH, MSGPACK_TYPE, encoded.chunks)
        caller.close()

    threads = [threading.Thread(target=load, args=(encoded,)) for encoded in (request.encoded, request.encoded, slow)]
    for thread in threads:
        thread.start()
    prober, waits = Caller(service, KIB), []
    time.sleep(0.5)
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        began = time.perf_counter()
        prober.get("/livez")
        waits.append(time.perf_counter() - began)
        time.sleep(0.002)
    stop.set()
    for thread in threads:
        thread.join()
    prober.close()
    taken = Times(tuple(waits))
    yield Line(
        "/livez, p99, while 64 MiB bodies and long kernels are in flight",
        "<= 50 ms",
        f"{ms(taken.percentile(99))} (p50 {ms(taken.p50)}, largest {ms(max(waits))}, {len(waits)} probes)",
        taken.percentile(99) <= 50e-3,
    )


def memory_of_a_request() -> Iterator[Line]:
    """Growth of a fresh service's resident memory with its first large requests."""
    request = Request.of(32 * MIB)
    carried = request.encoded.nbytes + request.membrane.nbytes
    for count in (1, 4):
        with servers.service() as service:
            callers = [Caller(service, 16 * MIB) for _ in range(count)]
            for caller in callers:
                caller.post(PATH, MSGPACK_TYPE, Request.of(KIB).encoded.chunks)
            before = _resident(service, "VmRSS")
            Path(f"/proc/{service.pid}/clear_refs").write_text("5")  # VmHWM starts anew
            threads = [
                threading.Thread(target=caller.post, args=(PATH, MSGPACK_TYPE, request.encoded.chunks))
                for caller in callers
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            rise = (_resident(service, "VmHWM") - before) / count / carried
            for caller in callers:
                caller.close()
        yield Line(
            f"peak memory of a request of 32 MiB with a result of 16 MiB, {count} in flight",
            "<= 1.25x",
            f"{rise:.2f}x of what it carries",
            rise <= 1.25,
        )


def _resident(server: Running, name: str) -> int:
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * KIB


def ways(repeats: dict[int, int]) -> Iterator[Line]:
    """The client over loopback, through a Unix socket, and through shared memory."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        tcp = stack.enter_context(servers.service(shared_memory=1))
        unix = stack.enter_context(servers.service(shared_memory=1, uds=f"{folder}/socket"))
        clients = {
            "loopback": Client(tcp.url, api_key=KEY, retries=0),
            "Unix socket": Client(unix.url, api_key=KEY, retries=0),
            "shared memory, loopback": Client(tcp.url, api_key=KEY, retries=0, shared_memory=True),
            "shared memory, Unix socket": Client(unix.url, api_key=KEY, retries=0, shared_memory=True),
        }
        for nbytes, count in repeats.items():
            request = Request.of(nbytes)

            def ask(client: Client, request: Request = request) -> Any:
                neuron = LIF(ALPHA)
                return client.gradients(
                    neuron=neuron, membrane=request.membrane, grad_output=request.grad_output
                ).grad_input

            for name, client in clients.items():
                request.check(ask(client), name)
            times = take_turns({name: partial(ask, client) for name, client in clients.items()}, count)
            for name, taken in times.items():
                gain = times["loopback"].p50 / taken.p50
                yield Line(
                    f"{_size(nbytes)} request, {name}, p50", "", f"{ms(taken.p50)}, best {ms(taken.best)}; {gain:.2f}x"
                )
        for client in clients.values():
            client.close()


def _size(nbytes: int) -> str:
    return f"{nbytes // MIB} MiB" if nbytes >= MIB else f"{nbytes // KIB} KiB"
