"""Dynamic batching: from which size of request on it pays, and what it does to small requests over HTTP.

    python -m benchmarks.batching compute     decode to encode, in process, one by one and together
    python -m benchmarks.batching http        the service with batching and without, in turns

Answers are compared, to the bit, before anything is timed.
"""

import http.client
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch

from exodus_client.wire import MSGPACK_TYPE, Limits, Message, Tensor, encode
from exodus_service.call import Call
from exodus_service.compute.scheduler import Scheduler
from exodus_service.context import Timings
from exodus_service.gradients.batching import compute_ahead
from exodus_service.gradients.request import GradientRequest

CPU = torch.device("cpu")
SHAPES = [
    (1, 16, 8),
    (1, 32, 32),
    (1, 64, 64),
    (1, 100, 128),
    (2, 100, 256),
    (8, 100, 128),
    (8, 100, 256),
    (32, 100, 128),
]
TOGETHER = (2, 8, 32)


def body_of(shape: tuple[int, ...], form: str) -> bytes:
    """A request with a membrane, or with a current, which asks for a forward pass too."""
    params = {"neuron": {"model": "lif", "alpha": 0.95}}
    tensors = (Tensor.of(name, torch.randn(shape)) for name in (form, "grad_output"))
    return b"".join(encode(Message.of(params, tensors)).chunks)


def one_by_one(bodies: list[memoryview]) -> list[bytes]:
    return [b"".join(request.run().chunks) for request in _requests(bodies)]


def together(bodies: list[memoryview]) -> list[bytes]:
    requests = _requests(bodies)
    assert len({request.batch_key for request in requests}) == 1
    compute_ahead(requests)
    return [b"".join(request.run().chunks) for request in requests]


def _requests(bodies: list[memoryview]) -> list[GradientRequest]:
    scheduler = Scheduler("unused", max_requests=len(bodies), max_bytes=1 << 40)
    slots = [scheduler.admit(len(body)) for body in bodies]
    return [
        GradientRequest("exodus", Call("", MSGPACK_TYPE, None, math.inf, slot, Timings(), CPU, Limits(), body))
        for slot, body in zip(slots, bodies, strict=True)
    ]


def best(run: Callable[[], object], other: Callable[[], object], seconds: float = 0.3) -> tuple[float, float]:
    """The least time of each in seconds, run in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for spent, function in zip(times, (run, other), strict=True):
            began = time.perf_counter()
            function()
            spent.append(time.perf_counter() - began)
    return min(times[0]), min(times[1])


def compute() -> None:
    print("| tensors | shape | KiB a request | alone, us | 2 | 8 | 32 |\n|---|---|---|---|---|---|---|")
    for form in ("membrane", "input"):
        for shape in SHAPES:
            cells = []
            for count in TOGETHER:
                bodies = [memoryview(bytearray(body_of(shape, form))) for _ in range(count)]
                assert one_by_one(bodies) == together(bodies)
                alone, joined = best(partial(one_by_one, bodies), partial(together, bodies))
                cells.append((alone / count * 1e6, alone / joined))
            kib = 2 * 4 * torch.Size(shape).numel() / 1024
            ratios = " | ".join(f"{ratio:.2f}x" for _, ratio in cells)
            print(f"| {form} | {shape} | {kib:.0f} | {cells[1][0]:.0f} | {ratios} |", flush=True)


@contextmanager
def service(max_batch: int) -> Iterator[int]:
    """The port of a service of its own."""
    command = [str(Path(sys.executable).with_name("exodus-service")), "serve", "--port", "0", "--log-level", "info"]
    with tempfile.NamedTemporaryFile("r+") as log:
        process = subprocess.Popen([*command], stderr=log, env=os.environ | {"EXODUS_MAX_BATCH": str(max_batch)})
        try:
            while not (found := re.search(r"running on http://127\.0\.0\.1:(\d+)", Path(log.name).read_text())):
                time.sleep(0.05)
            yield int(found[1])
        finally:
            process.terminate()
            process.wait()


def post(connection: http.client.HTTPConnection, body: bytes) -> http.client.HTTPResponse:
    connection.request("POST", "/v1/gradients/exodus", body, {"Content-Type": MSGPACK_TYPE})
    response = connection.getresponse()
    response.read()
    assert response.status == 200
    return response


def latency(port: int, body: bytes, count: int) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    times = []
    for _ in range(count):
        began = time.perf_counter()
        post(connection, body)
        times.append(time.perf_counter() - began)
    connection.close()
    return times


def throughput(port: int, body: bytes, clients: int, seconds: float) -> tuple[float, float]:
    """Requests a second of so many clients, and the mean number that ran together."""
    batches: list[int] = []
    until = time.perf_counter() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.perf_counter() < until:
            timing = post(connection, body).headers["server-timing"]
            batches.append(int(timing.partition('batch;desc="')[2].partition('"')[0] or 1))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(batches) / seconds, statistics.mean(batches)


def over_http() -> None:
    with ExitStack() as stack:
        ports = {size: stack.enter_context(service(size)) for size in (1, 32)}
        small = body_of((1, 16, 8), "membrane")
        times: dict[int, list[float]] = {size: [] for size in ports}
        for _ in range(6):
            for size, port in ports.items():
                times[size] += latency(port, small, 400)
        for size, spent in times.items():
            print(f"max_batch {size:2}: {len(small)} bytes, one client, p50 {statistics.median(spent) * 1e3:.3f} ms")
        for shape in ((1, 16, 8), (1, 100, 128), (8, 100, 128)):
            body = body_of(shape, "membrane")
            rates: dict[int, list[tuple[float, float]]] = {size: [] for size in ports}
            for _ in range(6):
                for size, port in ports.items():
                    rates[size].append(throughput(port, body, 8, 1.0))
            for size, found in rates.items():
                rate, mean = statistics.median(rate for rate, _ in found), statistics.mean(mean for _, mean in found)
                print(
                    f"max_batch {size:2}: {shape}, 8 clients, median {rate:.0f} requests/s, {mean:.2f} a batch",
                    flush=True,
                )


if __name__ == "__main__":
    {"compute": compute, "http": over_http}[sys.argv[1]]()
