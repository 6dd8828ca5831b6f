"""Scenarios: disturbances of the server and of the network while a model is trained."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from exodus_client import Client, ConflictError, Retries

from . import kills, workload
from .orders import Order
from .proxy import FAULTS, Proxy
from .supervisor import Supervisor
from .verdicts import Scenario
from .workload import Call, Outcome

#: Patient, but not slow: the harness is nobody's guest.
RETRIES = Retries(count=1000, first_delay=0.02, max_delay=0.2)
SETTINGS = {"THREADS": 1, "SEQUENCE_WAIT_S": 1.0}


def client_of(url: str) -> Client:
    return Client(url, retries=RETRIES)


def undisturbed(folder: Path, steps: int, seed: int, wanted: Outcome, found: Scenario) -> tuple[list[str], list[str]]:
    """Training over HTTP, with nothing in the way; returns what happens in a save, and in the first of a model."""
    with Supervisor(folder, settings=SETTINGS, trace=True) as server, client_of(server.url) as client:
        model = workload.create(client, seed, durable_every=3)
        answers = workload.train(model, steps, seed)
        compare(found, server, model.id, answers, wanted)
        found.counts |= {"calls": len(answers), "calls computed": sum(server.recorded.values())}
        found.check("each call was computed once", set(server.recorded.values()) == {1}, server.recorded)
        server.halt()  # which waits for saves
        found.check("no server failed", not server.failures, server.failures)
        return server.events, server.first_events


def disturbed(
    folder: Path, steps: int, seed: int, orders: Iterable[Order], wanted: Outcome, found: Scenario, *, every: int = 4
) -> Supervisor:
    """Training while the server ends again and again, and the network fails."""
    orders = list(orders)
    proxies: list[Proxy] = []

    def begun(order: Order) -> None:
        if order.kind == kills.REQUEST:
            proxies[0].on_half_body = server.kill

    server = Supervisor(folder, orders, settings=SETTINGS, on_start=begun)
    with server, Proxy(server.port, seed, every=every) as proxy, client_of(proxy.url) as client:
        proxies.append(proxy)
        server.begin()
        model = workload.create(client, seed, durable_every=3, id="chaos")
        answers = paced(model, list(workload.calls(steps, seed)), server, len(orders))
        found.check(
            "the server has ended each time",
            server.left == 0,
            f"{server.left} of {len(orders)} times not, at {server.order}",
        )
        compare(found, server, model.id, answers, wanted)
        note(found, server, proxy)
        found.check("what was durable came back", not server.lost, server.lost[:2])
        # A state on disk is whole at every moment: none may have to be set aside.
        damaged = [line for line in server.events_of(0).splitlines() if "does not verify" in line or "corrupt" in line]
        found.check("no end of the server has damaged a state", not damaged, damaged[:2])
        found.check("every fault has taken place", len(proxy.happened) == len(FAULTS), proxy.happened)
    return server


def paced(model: Any, calls: list[Call], server: Supervisor, count: int) -> list[Any]:
    """Have calls done so that the ends of the server are spread over them; returns the answers."""
    futures: list[Any] = []
    for place, call in enumerate(calls):
        due = place * count // max(1, len(calls) - 10)
        # If nothing happens any more, another call is needed to reach the place where it is to die.
        ends = time.monotonic() + 3.0
        while not server.wait_for_deaths(due, 0.01) and time.monotonic() < ends:
            if all(future.done() for future in futures):
                server.wait_for_deaths(due, 0.5)
                break
        futures.append(workload.submit(model, call))
    return [future.result(timeout=300) for future in futures]


def terminated(folder: Path, steps: int, seed: int, orders: Iterable[Order], wanted: Outcome, found: Scenario) -> None:
    """The same with SIGTERM: what was computed is saved before the server ends, so that nothing is computed twice."""
    server = disturbed(folder, steps, seed, orders, wanted, found)
    again = {call: count for call, count in server.recorded.items() if count > 1}
    found.check("nothing was computed twice", not again, again)
    found.check("the log says that nothing is lost", "is lost" not in server.log)


def note(found: Scenario, server: Supervisor, *proxies: Proxy) -> None:
    """Count what was done."""
    found.kills.update((death.order.kind, death.where) for death in server.deaths)
    for proxy in proxies:
        found.faults.update(proxy.happened)
        found.answers.update(proxy.answers)
    found.counts |= {
        "ends of the server": len(server.deaths),
        "faults": sum(sum(proxy.happened.values()) for proxy in proxies),
        "calls": len(server.recorded),
        "calls that reached the server again": sum(proxy.resent for proxy in proxies),
        "answers replayed": sum(proxy.replays for proxy in proxies),
        "calls computed again after a kill": sum(server.recorded.values()) - len(server.recorded),
    }
    found.check("no server failed", not server.failures, server.failures)
    found.check("no server has logged a traceback", not server.tracebacks, server.tracebacks[-300:])


def compare(found: Scenario, server: Supervisor, id: str, answers: list[Any], wanted: Outcome) -> None:
    """Every answer is its call's, none is lost or doubled, and the state is that of the training undisturbed."""
    wrong = workload.answer_differences(answers, wanted)
    found.check("every future has its own answer, with the loss of the training undisturbed", not wrong, wrong[:3])
    state, header = workload.saved_state(server.url, id)
    wanted_calls = len(wanted.answers)
    found.check("as many answers as calls", len(answers) == wanted_calls, f"{len(answers)} of {wanted_calls}")
    found.check(
        "no call is lost or doubled", header["sequence"] == wanted_calls, f"the server is at {header['sequence']}"
    )
    unequal = workload.differences(state, wanted.state)
    found.check("the state is the same to the bit", not unequal, unequal[:5])


def two_models(folder: Path, steps: int, seed: int, found: Scenario) -> None:
    """Two clients train two models at once, while the server is killed now and then."""
    orders = [Order(kills.ANY, after=0.2 + 0.1 * n, signal=signal.SIGKILL) for n in range(3)]
    wanted = [workload.in_process(steps, seed + n) for n in range(2)]
    with Supervisor(folder, orders, settings=SETTINGS) as server, Proxy(server.port, seed) as proxy:
        server.begin()
        answers: dict[int, list[Any]] = {}

        def run(n: int) -> None:
            with client_of(proxy.url) as client:
                model = workload.create(client, seed + n, durable_every=3, id=f"model-{n}")
                answers[n] = workload.train(model, steps, seed + n)

        together(lambda: run(0), lambda: run(1))
        for n in range(2):
            compare(found, server, f"model-{n}", answers.get(n, []), wanted[n])
        note(found, server, proxy)


def one_model(folder: Path, steps: int, seed: int, wanted: Outcome, found: Scenario) -> None:
    """A second client trains the model of another: it is refused, and the first goes on."""
    with (
        Supervisor(folder, settings=SETTINGS) as server,
        client_of(server.url) as client,
        client_of(server.url) as stranger,
    ):
        model = workload.create(client, seed, durable_every=3)
        half = len(wanted.answers) // 2
        answers = workload.train(model, steps, seed, last=half)
        other = stranger.model(model.id)
        answers += workload.train(model, steps, seed, first=half, last=half + 1)
        refused: Exception | None = None
        try:
            workload.submit(other, next(workload.calls(1, seed + 1))).result(timeout=60)
        except ConflictError as error:
            refused = error
            found.check("the code is sequence_conflict", error.code == "sequence_conflict", error.code)
            clear = "another client trains this model" in str(error) and str(half + 1) in str(error)
            found.check("the error says what is the matter", clear, error)
        found.check("the second client is refused", refused is not None, "its call was done")
        answers += workload.train(model, steps, seed, first=half + 1)
        compare(found, server, model.id, answers, wanted)
        found.counts |= {"calls": len(answers), "refused": int(refused is not None)}


def together(*works: Callable[[], None]) -> None:
    """Run several things at once; the first exception of any is raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  (raised below)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
