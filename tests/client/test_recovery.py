"""Training through a network and a server that fail: what comes of it is what comes of it without failures.

A history is a list of calls, and a list of fates: the n-th request meets the n-th fate, then all is well. Each history
is run twice, undisturbed and one call at a time, and with its fates and as far ahead as the client goes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.training_faults import FATES, Road, patient_client
from client.training_server import TrainingServer
from exodus_client import ExodusError, _constants

LAYERS = [{"kind": "linear", "in_features": 3, "out_features": 2}, {"kind": "lif", "alpha": 0.5}]
#: Seconds after which something is taken to wait for ever.
STUCK = 30.0

CALLS = ("step", "step_gradients", "forward_backward", "optim_step", "given_gradients", "custom", "custom_backward")
REFUSED = ("unknown_loss", "not_finite", "broken_loss")
ASIDE = ("forward", "make_durable", "state_dict", "wait")

histories = st.lists(st.sampled_from(CALLS * 2 + REFUSED + ASIDE), min_size=1, max_size=16)
fates = st.lists(st.sampled_from((*FATES, "ok", "ok")), max_size=16)


class BrokenLossError(Exception):
    """What a loss of the caller raises."""


def spikes(number: int) -> Any:
    """The input of a call, unlike that of any other: (2, 2, 3)."""
    return np.arange(12.0, dtype=np.float32).reshape(2, 2, 3) + 100 * number


def custom(outputs: Any) -> Any:
    return (outputs * torch.arange(1.0, 3.0)).sum()


def broken(outputs: Any) -> Any:
    raise BrokenLossError


def submit(model: Any, what: str, number: int) -> Any:
    """Make a call; its future, or what it returned."""
    x, y = spikes(number), np.array([0, 1])
    given = np.full(8, float(number), np.float32)
    calls: dict[str, Callable[[], Any]] = {
        "step": lambda: model.step(x, y, loss="max_over_time_ce", lr=0.1 * number),
        "step_gradients": lambda: model.step(x, y, loss={"kind": "sum_over_time_ce"}, gradients=True),
        "forward_backward": lambda: model.forward_backward(x, y, loss="max_over_time_ce"),
        "optim_step": lambda: model.optim_step(clip_norm=1.0),
        "given_gradients": lambda: model.optim_step(gradients=given),
        "custom": lambda: model.step(x, loss=custom),
        "custom_backward": lambda: model.forward_backward(x, loss=custom, gradients=True),
        "unknown_loss": lambda: model.step(x, y, loss="no_such_loss"),
        "not_finite": lambda: model.step(x * np.float32(np.nan), y, loss="max_over_time_ce"),
        "broken_loss": lambda: model.step(x, loss=broken),
        "forward": lambda: model.forward(x),
        "make_durable": lambda: model.make_durable(),
        "state_dict": lambda: model.state_dict(),
        "wait": lambda: None,
    }
    made = calls[what]()
    if "gradients" not in what and what in CALLS:  # they may be written to as soon as the call returns
        x[:] = np.nan
        y[:] = 7
    given[:] = np.nan
    return made


def outcome(what: str, made: Any) -> Any:
    """What a call came to, as something that can be compared."""
    try:
        result = made.result(STUCK) if hasattr(made, "result") else made
    except (ExodusError, BrokenLossError) as error:
        return type(error).__name__, getattr(error, "code", "")
    if what == "state_dict":
        return {name: array.tolist() for name, array in result.items()}
    if what == "forward":
        return result.sequence, result.outputs.tolist()
    if what in CALLS:
        gradients = result.gradients and {name: array.tolist() for name, array in result.gradients.items()}
        return result.sequence, dict(result.metrics), dict(result.grad_norms), gradients
    return None


@dataclass
class Run:
    """What a history came to: of each call, the final state, and the callbacks."""

    outcomes: list[Any]
    state: Any
    reported: list[int]


def run(history: list[str], road: Road, *, one_at_a_time: bool, every: int = 10, ahead: int = 8) -> Run:
    """Run a history on a new model."""
    reported: list[int] = []
    server = road.server
    fates, road.fates = road.fates, []
    with patient_client(road) as client:
        model = client.create_model(
            LAYERS, optimizer={"kind": "sgd", "lr": 0.1}, seed=3, durable_every=every, id="m", ahead=ahead
        )
        model.callbacks.append(lambda result: reported.append(result.sequence))
        road.fates = fates
        made = []
        for number, what in enumerate(history, 1):
            made.append((what, submit(model, what, number)))
            if one_at_a_time or what == "wait":
                outcome(*made[-1 if one_at_a_time else max(0, len(made) - 2)])
        outcomes = [outcome(*each) for each in made]
        road.fates = []
        road.down = 0
        model.forward(spikes(1), outputs=False).result(STUCK)  # all is done, also the empty calls
        road.settle()
        model.forward(spikes(1), outputs=False).result(STUCK)
        model.close()
    state = server.models["m"].state
    gradients = None if state.gradients is None else state.gradients.tolist()
    return Run(outcomes, (state.sequence, state.weights.tolist(), gradients, state.history), reported)


def in_time(work: Callable[[], Any]) -> Any:
    """The result of work, which must not wait for ever."""
    results: list[Any] = []

    def guarded() -> None:
        try:
            results.append((work(), None))
        except BaseException as error:  # noqa: BLE001 - raised again below
            results.append((None, error))

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(2 * STUCK)
    assert results, "deadlock"
    result, error = results[0]
    if error is not None:
        raise error
    return result


def compare(history: list[str], road: Road, **arguments: Any) -> Run:
    """Run a history undisturbed and on a road, compare, and return the latter."""
    wanted = run(history, Road(TrainingServer()), one_at_a_time=True)
    got: Run = in_time(lambda: run(history, road, one_at_a_time=False, **arguments))
    assert got.outcomes == wanted.outcomes
    assert got.state == wanted.state
    assert got.reported == wanted.reported
    return got


class TestAnyHistory:
    @settings(max_examples=300, deadline=None)
    @given(
        history=histories,
        fates=fates,
        every=st.integers(1, 6),
        ahead=st.integers(1, 8),
        pending=st.sampled_from([None, None, 0, 2]),
    )
    def test_ends_as_without_failures(
        self, history: list[str], fates: list[str], every: int, ahead: int, pending: int | None
    ) -> None:
        server = TrainingServer()
        server.sequence_wait, server.pending = 0.002, pending
        compare(history, Road(server, fates), every=every, ahead=ahead)
