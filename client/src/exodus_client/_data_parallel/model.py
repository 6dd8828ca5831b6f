"""A model with a replica on each of several servers, and the thread that makes its steps."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future as Running
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np

from exodus_client._checks import flag, unfit
from exodus_client._data_parallel.replicas import Replicas
from exodus_client._data_parallel.shards import Part, parts_of
from exodus_client._errors import ModelClosedError
from exodus_client._models.batch_axes import (
    as_given,
    batch_first,
    check_shapes,
    check_steps,
    dense,
    steps_given,
    targets_first,
)
from exodus_client._models.messages import Loss, ModelInfo, NamedLoss, Outputs, StepResult
from exodus_client._models.model import Callback, Model
from exodus_client._models.state import IncompatibleKeys, LoadedWeights
from exodus_client._plain_data import check_loss, names_of, number, rates_of
from exodus_client._threads import DaemonThreadPool, Future
from exodus_client.neuron import Array

Result = TypeVar("Result")

_log = logging.getLogger("exodus_client")


class ShardedModel:
    """One model with a replica on each of several servers; `ShardedClient.create_model` and `.model` make it.

    A step splits the batch along its first axis into contiguous parts, has each replica compute the gradients of its
    part, and has all of them make the step of the optimiser with the mean over all samples. Weights and optimiser
    therefore stay equal to the bit, where the servers compute alike.

    A step is done on all replicas or on none. Where a part of the batch is refused, none has changed. Where a replica
    fails after others have made the step, the step counts, and the replica gets the state of another before the next.

    Batch norms normalise over the part of the batch that their replica has; the first replica's running statistics are
    used, and saved.

    Attributes:
        id: of the model, for `ShardedClient.model`.
        replicas: the `Model` on each server; train them through this object alone.
        callbacks: called with each `StepResult`, in order, on the thread of the steps. Their exceptions are logged.
            They may call everything; a step of theirs is made after they have returned.

    Spikes, outputs and target spike trains are (batch, time, ...), unless the handle was made with another `time_dim`.
    """

    def __init__(self, id: str, replicas: Sequence[Model], *, steps_ahead: int, time_dim: int = 1) -> None:
        self.id = id
        self._time_dim = time_dim
        self.replicas = tuple(replicas)
        self.callbacks: list[Callback] = []
        self._replicas = Replicas(self.replicas)
        self._room = threading.BoundedSemaphore(steps_ahead)
        self._pool = DaemonThreadPool(1, "exodus-sharded")

    def step(
        self,
        spikes: Array,
        targets: Array | None = None,
        *,
        loss: Loss,
        lengths: Array | None = None,
        mask: Array | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        frozen: Sequence[str] | None = None,
        lr_scale: Mapping[str, float] | None = None,
        lr_of: Mapping[str, float] | None = None,
        gradients: bool = False,
        allow_non_finite: bool = False,
    ) -> Future[StepResult]:
        """Forward, backward and a step of the optimiser on all servers. Waits while too many steps are not done.

        Args:
            spikes, targets: the whole batch; with fewer samples than servers some only make the step of the optimiser.
            loss: as of `Model.step`; it has to be a mean over the samples, and a function has to take outputs and
                targets, which belong to a part of the batch. Targets of a function are split along their first axis.

        The other arguments are those of `Model.step`.

        Returns:
            A future of `StepResult`: metrics of the whole batch, norms and gradients of the mean over it, `sequence` of
            the first replica, `durable` as far as all replicas are, and of the timing the `round_trip`.

        Raises:
            TypeError, ValueError: an argument does not fit; nothing was sent.
            ModelClosedError: the model is closed.
        """
        if callable(loss) and targets is None:
            raise unfit(TypeError, "targets", "given to a loss that is a function, which sees part of a batch", "None")
        check_loss(loss)
        parts = self._parts(spikes, targets, loss, (lengths, mask), len(self.replicas))
        if callable(loss) and self._time_dim != 1:
            loss = partial(_in_order, loss, self._time_dim)
        given = {"lr": lr, "weight_decay": weight_decay, "clip_norm": clip_norm, "clip_value": clip_value}
        options: dict[str, Any] = {name: number(name, value) for name, value in given.items()}
        options |= {"frozen": names_of("frozen", frozen)}
        options |= {"lr_scale": rates_of("lr_scale", lr_scale), "lr_of": rates_of("lr_of", lr_of)}
        flags = flag("gradients", gradients), flag("allow_non_finite", allow_non_finite)
        run = partial(self._step, parts, loss, options, *flags)
        self._check_process()
        if self._pool.here:  # a callback would wait for the room that comes when it returns
            return Future(self._on_pool(run), self._about)
        self._room.acquire()
        try:
            running = self._on_pool(run)
        except BaseException:
            self._room.release()
            raise
        running.add_done_callback(lambda _: self._room.release())
        return Future(running, self._about)

    def forward(
        self,
        spikes: Array,
        targets: Array | None = None,
        *,
        loss: NamedLoss | None = None,
        lengths: Array | None = None,
        mask: Array | None = None,
        train: bool = False,
        outputs: bool = True,
    ) -> Future[Outputs]:
        """Outputs and metrics after all steps submitted so far, each server with a part of the batch. Changes nothing.

        A network with batch norms is run by the first server alone. Arguments as of `Model.forward`.
        """
        shards = 1 if self._replicas.has_batch_norm else len(self.replicas)
        parts = self._parts(spikes, targets, loss, (lengths, mask), shards)
        arguments = {"loss": loss, "train": flag("train", train), "outputs": flag("outputs", outputs)}

        def run() -> Outputs:
            found = self._replicas.forward(parts, arguments)
            return replace(found, outputs=as_given(found.outputs, self._time_dim))

        return self._submit(run)

    def info(self) -> ModelInfo:
        """State of the replica on the first server, after all steps submitted so far. Raises ExodusError."""
        return self._run(self.replicas[0].info)

    def make_durable(self) -> Future[None]:
        """Have every server save its state after all steps submitted so far."""
        return self._submit(self._replicas.make_durable)

    def state_dict(self, kind: Literal["numpy", "torch"] = "numpy") -> dict[str, Array]:
        """The weights after all steps submitted so far; as `Model.state_dict`."""
        return self._run_on_first(lambda first: first.state_dict(kind))

    def load_state_dict(self, weights: Mapping[str, Array], strict: bool = True) -> IncompatibleKeys:
        """Replace weights on all servers; as `Model.load_state_dict`."""
        return self._run(
            lambda: self._replicas.first_changed(partial(self.replicas[0].load_state_dict, weights, strict))
        )

    def load_weights(
        self,
        weights: Mapping[str, Array] | str | os.PathLike[str],
        *,
        names: Sequence[str] | None = None,
        partial: bool = False,
    ) -> LoadedWeights:
        """Replace weights on all servers, whose optimisers start anew; as `Model.load_weights`."""
        options: dict[str, Any] = {"names": names, "partial": partial}
        return self._run(
            lambda: self._replicas.first_changed(lambda: self.replicas[0].load_weights(weights, **options))
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole state to a file, which is that of a model on one server; as `Model.save`."""
        self._run_on_first(lambda first: first.save(path))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save` wrote, of this or of a `Model`; as `Model.load`."""
        self._run(lambda: self._replicas.first_changed(partial(self.replicas[0].load, path)))

    def resync(self) -> None:
        """Go on from what is on the servers, after an error that ended the training.

        All replicas get the state of the one that is furthest. Raises ExodusError.
        """
        self._run(self._replicas.resync)

    def close(self, *, wait: bool = True) -> None:
        """Cancel the steps that were not begun, and wait for the one that was, or leave it.

        The model stays on the servers.
        """
        self._pool.close(wait=wait)
        for replica in self.replicas:
            replica.close(wait=wait)

    def __repr__(self) -> str:
        return f"ShardedModel({self.id!r}, {len(self.replicas)} replicas, sequence={self.replicas[0].sequence})"

    def _check_process(self) -> None:
        for replica in self.replicas:
            replica.connection.session.check_process()

    def _parts(
        self,
        spikes: Array,
        targets: Array | None,
        loss: Loss | None,
        counted: tuple[Array | None, Array | None],
        shards: int,
    ) -> list[Part]:
        """The parts of a batch, batch first; `counted`: lengths and mask. Raises TypeError, ValueError."""
        time_dim = self._time_dim
        spikes, targets = dense("spikes", spikes), None if targets is None else dense("targets", targets)
        if callable(loss) and time_dim == 0 and _shape(spikes)[:2] == _shape(targets)[:2]:
            raise ValueError(
                "targets of a function must be (batch, ...), since they are split along their first axis, "
                f"got shape {list(_shape(targets))}, which begins as the spikes, (time, batch, ...)"
            )
        spikes, targets = batch_first(spikes, time_dim), targets_first(targets, loss, time_dim)
        wanted = None if targets is None else _shape(targets)
        check_shapes(_shape(spikes), wanted, loss, self._replicas.input_shape, time_dim)
        steps = steps_given(*counted, time_dim)
        check_steps(_shape(spikes), steps, loss, time_dim)
        return parts_of(spikes, targets, shards, steps)

    def _step(self, *arguments: Any) -> StepResult:
        result = self._replicas.step(*arguments)
        for callback in tuple(self.callbacks):
            try:
                callback(result)
            except BaseException:  # noqa: BLE001  (a callback must not harm the training)
                _log.exception("model %s: a callback failed at call %d", self.id, result.sequence)
        return result

    def _run_on_first(self, run: Callable[[Model], Result]) -> Result:
        def settled() -> Result:
            self._replicas.settle()
            return run(self.replicas[0])

        return self._run(settled)

    def _run(self, run: Callable[[], Result]) -> Result:
        return self._submit(run).result()

    def _on_pool(self, run: Callable[[], Result]) -> Running[Result]:
        if self._pool.closed:
            raise ModelClosedError("the model is closed")
        return self._pool.submit(run)

    def _submit(self, run: Callable[[], Result]) -> Future[Result]:
        """Run on the thread of the steps, after those submitted so far; within a callback, at once."""
        self._check_process()
        if not self._pool.here:
            return Future(self._on_pool(run), self._about)
        done: Running[Result] = Running()
        try:
            done.set_result(run())
        except Exception as error:  # noqa: BLE001  (raised by the future)
            done.set_exception(error)
        return Future(done, self._about)

    def _about(self) -> str:
        servers = "; ".join(f"shard {shard}: {model.status}" for shard, model in enumerate(self.replicas))
        return f"the sharded model {self.id}; {servers}"


def _in_order(loss: Callable[..., Any], time_dim: int, outputs: Any, targets: Any) -> Any:
    """A loss of the caller's, of outputs batch first."""
    return loss(as_given(outputs, time_dim), targets)


def _shape(array: Array) -> tuple[int, ...]:
    return tuple(np.shape(array))
