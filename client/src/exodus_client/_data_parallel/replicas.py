"""Replicas of one model, kept equal: a step is done on all of them or on none. One thread at a time.

A step has two phases. In the first, replicas compute the gradients of their parts of the batch, and no weights change:
if one fails, the step has failed, and the gradients that the others have accumulated are removed before anything else.
In the second all make the step of the optimiser with the combined gradients. As soon as one has made it, the step
counts, and those that failed get the whole state of one that did not before anything else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from exodus_client._data_parallel.shards import Part, combined_gradients, combined_metrics, joined
from exodus_client._models.messages import Loss, Outputs, StepResult, split
from exodus_client._models.model import Model
from exodus_client._models.state import State
from exodus_client._threads import Future
from exodus_client.neuron import Array
from exodus_client.wire import is_torch

Result = TypeVar("Result")

_log = logging.getLogger("exodus_client")


@dataclass(frozen=True)
class Failure:
    """Error of a replica."""

    shard: int
    error: Exception


@dataclass(frozen=True)
class Outcomes(Generic[Result]):
    """Results and failures of a call on several replicas, in their order."""

    results: list[Result]
    failures: list[Failure]

    def sound(self) -> list[Result]:
        """The results, if there is no failure; otherwise raises the first, and says whose it is."""
        for failure in self.failures:
            with _named(failure.shard):
                raise failure.error
        return self.results


class Replicas:
    """The replicas of a model, in the order of the parts of a batch."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = tuple(models)
        #: Replicas with other weights than the rest, and those with gradients of a step that failed.
        self._stale: set[int] = set()
        self._littered: set[int] = set()
        # How many calls each has done when it has done all steps that count. Equal if nothing is known of them yet:
        # the one that has done most calls then is the furthest.
        self._counts = [max(model.sequence for model in models)] * len(models)

    @property
    def first(self) -> Model:
        """The replica that speaks for all."""
        return self.models[0]

    @property
    def has_batch_norm(self) -> bool:
        """True if replicas have running statistics of their own."""
        return any(layer["kind"] == "batch_norm" for layer in self.first.description.network["layers"])

    @property
    def input_shape(self) -> Any:
        """Of a sample in one step; None if that is not known."""
        return self.first.description.network.get("input_shape")

    def step(
        self,
        parts: Sequence[Part],
        loss: Loss,
        options: Mapping[str, Any],
        gradients: bool,
        allow_non_finite: bool,
    ) -> StepResult:
        """Make a step. Raises what a replica raised; then the step was made on none."""
        began = time.perf_counter()
        self.settle()
        found = self._computed(parts, loss, options.get("frozen"), allow_non_finite)
        weights = [part.weight for part in parts]
        info = self.first.description
        names = [name for name, _ in info.parameters]
        flat = combined_gradients([_gradients(result) for result in found], weights, names, info.dtype)
        made = self._made(flat, dict(options), allow_non_finite)
        return replace(
            made[0],
            durable=_durable(made),
            metrics=combined_metrics([result.metrics for result in found], weights),
            gradients=split(like(_gradients(found[0])[names[0]], flat), info) if gradients else None,
            device=", ".join(dict.fromkeys(result.device for result in made)),
            durable_error=next((result.durable_error for result in made if result.durable_error), None),
            timing={"round_trip": (time.perf_counter() - began) * 1e3},
        )

    def forward(self, parts: Sequence[Part], arguments: Mapping[str, Any]) -> Outputs:
        """Outputs and metrics of all parts. Raises what a replica raised."""
        began = time.perf_counter()
        self.settle()
        found = self._all(
            range(len(parts)),
            lambda k: self.models[k].forward(parts[k].inputs, parts[k].targets, **parts[k].steps, **arguments),
        ).sound()
        outputs = [result.outputs for result in found]
        return replace(
            found[0],
            outputs=None if outputs[0] is None else joined(outputs),
            metrics=combined_metrics([result.metrics for result in found], [part.weight for part in parts]),
            timing={"round_trip": (time.perf_counter() - began) * 1e3},
        )

    def make_durable(self) -> None:
        """Have all save their state. Raises what a replica raised."""
        self.settle()
        self._all(range(len(self.models)), lambda k: self.models[k].make_durable()).sound()

    def first_changed(self, change: Callable[[], Result]) -> Result:
        """Change the state of the first replica, and give it to the others; what the change returned."""
        self.settle()
        changed = change()
        self._counts[0] = self.first.sequence
        self._stale = set(range(1, len(self.models)))
        self.settle()
        return changed

    def settle(self) -> None:
        """Make all replicas equal again after a failure. Raises ExodusError: one cannot be reached."""
        for shard in sorted(self._stale):
            with _named(shard):
                self._replace(shard, self._sound_state(), own_random=True)
            self._stale.discard(shard)
            self._littered.discard(shard)
        for shard in sorted(self._littered):
            with _named(shard):
                state = self.models[shard].state()
                if state.has_gradients:
                    self._replace(shard, state)
            self._littered.discard(shard)

    def resync(self) -> None:
        """Go on from what is on the servers: all get the state of the replica that has lost the least of its calls."""
        behind: dict[int, int] = {}
        for shard, model in enumerate(self.models):
            with _named(shard):
                model.resync()
            behind[shard] = max(0, self._counts[shard] - model.sequence)
        sound = [shard for shard in behind if shard not in self._stale]
        furthest = min(sound, key=lambda shard: behind[shard])
        self._stale = set(behind) - {furthest}
        self._littered = {furthest}
        self.settle()

    def _computed(
        self, parts: Sequence[Part], loss: Loss, frozen: Sequence[str] | None, allow_non_finite: bool
    ) -> list[StepResult]:
        """The first phase: results with the gradients of the parts."""

        def compute(shard: int) -> Future[StepResult]:
            part, options = parts[shard], {"frozen": frozen, "allow_non_finite": allow_non_finite}
            given: dict[str, Any] = {**part.steps, **options}
            return self.models[shard].forward_backward(part.inputs, part.targets, loss=loss, gradients=True, **given)

        shards = range(len(parts))
        self._littered.update(shards)  # an error says nothing about whether the gradients were accumulated
        return self._all(shards, compute).sound()

    def _made(self, flat: Array, options: dict[str, Any], allow_non_finite: bool) -> list[StepResult]:
        """The second phase: results of those that made the step of the optimiser, one at least."""
        outcomes = self._all(
            range(len(self.models)),
            lambda k: self.models[k].optim_step(gradients=flat, allow_non_finite=allow_non_finite, **options),
        )
        # Whatever came back: after an error resync() finds out by these who has made the step.
        self._counts = [model.sequence for model in self.models]
        if not outcomes.results:
            return outcomes.sound()
        for failure in outcomes.failures:
            self._stale.add(failure.shard)
            _log.warning(
                "shard %d did not make a step that others made, and gets their state before the next: %s",
                failure.shard,
                failure.error,
            )
        self._littered &= self._stale
        return outcomes.results

    def _all(self, shards: Iterable[int], submit: Callable[[int], Future[Result]]) -> Outcomes[Result]:
        """Make a call on several replicas at once, and wait for all of them."""
        outcomes: Outcomes[Result] = Outcomes([], [])
        submitted: list[tuple[int, Future[Result]]] = []
        for shard in shards:
            try:
                submitted.append((shard, submit(shard)))
            except Exception as error:  # noqa: BLE001  (the others have to be waited for)
                outcomes.failures.append(Failure(shard, error))
        for shard, future in submitted:
            try:
                outcomes.results.append(future.result())
            except Exception as error:  # noqa: BLE001
                outcomes.failures.append(Failure(shard, error))
        return outcomes

    def _sound_state(self) -> State:
        return next(model for shard, model in enumerate(self.models) if shard not in self._stale).state()

    def _replace(self, shard: int, state: State, *, own_random: bool = False) -> None:
        """Give a replica a state without gradients, and with its own random state if that is wanted."""
        model = self.models[shard]
        # Replicas with equal dropout masks would learn less of a batch than one server does.
        random = model.state() if own_random else None
        model.replace_state(lambda: state.without_gradients(random).body)
        self._counts[shard] = model.sequence


def like(array: Array, flat: Any) -> Array:
    """A numpy array as what another array is: numpy, or torch on its device."""
    if not is_torch(array):
        return flat
    import torch

    return torch.from_numpy(flat).to(array.device)


@contextmanager
def _named(shard: int) -> Iterator[None]:
    """Add to what is raised whose it is."""
    try:
        yield
    except Exception as error:
        note = f"shard {shard}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def _gradients(result: StepResult) -> Mapping[str, Array]:
    assert result.gradients is not None, "they were asked for"
    return result.gradients


def _durable(results: Sequence[StepResult]) -> int | None:
    """Calls of the first that survive a crash of all: each counts for itself, and has its own that are not durable."""
    missing = [None if result.durable is None else result.sequence - result.durable for result in results]
    return None if None in missing else results[0].sequence - max(n for n in missing if n is not None)
