"""Profile of a 32 MiB request: the server by its own timings, the client by cProfile."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from exodus_client import LIF, Client

from .lines import Line
from .messages import ALPHA, MIB, Request
from .servers import KEY, Running

#: The phases of Server-Timing, and the rest of the round trip.
PHASES = {
    "receive": "server: head, admission and body, from the socket into the buffer",
    "queue": "server: from the event loop to the thread of the device",
    "decode": "server: slices, checks of parameters",
    "kernel": "server: gradient and its norm",
    "encode": "server: description of the result, copy to shared memory",
    "answer": "the rest: result from the server's memory into the client's",
}


def phases(service: Running, repeats: int, *, shared_memory: bool) -> Iterator[Line]:
    """Medians of the phases of one request, which add up to its round trip."""
    request = Request.of(32 * MIB)
    with Client(service.url, api_key=KEY, retries=0, shared_memory=shared_memory) as client:

        def timing() -> dict[str, float]:
            result = client.gradients(neuron=LIF(ALPHA), membrane=request.membrane, grad_output=request.grad_output)
            request.check(result.grad_input, "profile")
            spent = dict(result.timing)
            spent["answer"] = spent["round_trip"] - sum(spent[name] for name in PHASES if name != "answer")
            return spent

        timing()
        found = [timing() for _ in range(repeats)]
    way = "shared memory" if shared_memory else "loopback"
    for name, what in PHASES.items():
        yield Line(f"profile, {way}: {what}", "", f"{np.median([spent[name] for spent in found]):.2f} ms")
    yield Line(f"profile, {way}: round trip", "", f"{np.median([spent['round_trip'] for spent in found]):.2f} ms")


def client_functions(service: Running, repeats: int, top: int = 8) -> Iterator[Line]:
    """The functions of the client in which its time goes, by cProfile; waiting for the server is `recv_into`."""
    request = Request.of(32 * MIB)
    with Client(service.url, api_key=KEY, retries=0) as client:

        def ask() -> None:
            client.gradients(neuron=LIF(ALPHA), membrane=request.membrane, grad_output=request.grad_output)

        ask()
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(repeats):
            ask()
        profile.disable()
    rows = sorted(pstats.Stats(profile).stats.items(), key=lambda row: -row[1][2])[:top]  # type: ignore[attr-defined]
    for (file, line, name), (_, calls, own, _, _) in rows:
        where = name if file == "~" else f"{'/'.join(Path(file).parts[-2:])}:{line} {name}"
        yield Line(f"client, own time of `{where}`", "", f"{own / repeats * 1e3:.2f} ms in {calls / repeats:.0f} calls")
