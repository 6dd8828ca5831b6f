"""Model on the server, trained from here."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar
from urllib.parse import urlencode

from exodus_client import _constants as defaults
from exodus_client._checks import flag, unfit
from exodus_client._errors import ExodusError, InvalidResponseError, ModelClosedError, NotFoundError, reworded
from exodus_client._gradients.result import Kind, Wanted
from exodus_client._models.batch_axes import (
    as_given,
    batch_first,
    check_shapes,
    check_steps,
    dense,
    steps_given,
    takes_targets,
    targets_first,
)
from exodus_client._models.messages import (
    Batch,
    Loss,
    ModelInfo,
    NamedLoss,
    Outputs,
    StepResult,
    copied,
    differentiate,
    join,
    outputs_wanted,
    read_outputs,
    read_step,
    step_params,
    training_body,
)
from exodus_client._models.reads import Reads, require
from exodus_client._models.recording import Observed, of_kind
from exodus_client._models.replay_log import Call, ReplayLog
from exodus_client._models.sender import Sender
from exodus_client._models.state import IncompatibleKeys, LoadedWeights, State, check_weights, weights_file
from exodus_client._plain_data import by_name, check_loss, names_of
from exodus_client._threads import Future
from exodus_client._transport.connection import Connection
from exodus_client._transport.retry import is_retryable
from exodus_client._transport.session import Answer, read_json, read_number
from exodus_client.neuron import Array
from exodus_client.wire import Encoded, Tensor
from exodus_client.wire.state_header import MEDIA_TYPE

Result = TypeVar("Result")

#: Advice for a server without a folder for its models.
MEMORY_ONLY = "start it with EXODUS_STATE_DIR=FOLDER to have them saved"

#: Called with each result, in the order of the calls.
Callback = Callable[[StepResult], None]


class Model:
    """A model on the server; `Client.create_model` and `Client.model` make it. Threads may share it.

    Training calls return a `Future` at once: `model.step(...).result()`, or `await model.step(...)`. They are done in
    the order in which they are made, each exactly once, whatever happens to connections and to the server: what is not
    yet durable there is kept here, and sent again. Arrays may be written to as soon as a call returns.

    A call that fails raises at its future, and nothing else is harmed: the next ones go on from the state before it.
    Where another handle trains the same model, the calls of this one fail with `ConflictError`; then, and after any
    other error that ends the training, `resync()` goes on from if the model is.

    Attributes:
        id: of the model, for `Client.model`.
        description: what the server said of it when this handle was made.
        connection: to the server.
        callbacks: called with each `StepResult`, in order, on a thread of the model. Their exceptions are logged.

    Spikes, outputs and target spike trains are (batch, time, ...), (B, T, ...) below, unless the handle was made with
    another `time_dim`.
    """

    def __init__(
        self, connection: Connection, info: ModelInfo, *, ahead: int, patience: float, time_dim: int = 1
    ) -> None:
        self.connection = connection
        self.description = info
        self._ahead = ahead
        self._patience = patience
        self._time_dim = time_dim
        self.id = info.id
        self.callbacks: list[Callback] = []
        self._path = f"/v1/models/{info.id}"
        self._begin(info)

    @property
    def sequence(self) -> int:
        """Number of training calls so far, those that are under way included."""
        return self._calls.last

    @property
    def durable(self) -> int | None:
        """Number of training calls that a crash of the server cannot lose; None if it keeps models in memory only."""
        return self._calls.durable

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
        accumulate: Literal["calls", "samples"] = "calls",
        average: bool = False,
        gradients: bool = False,
        allow_non_finite: bool = False,
        record: Sequence[str] = (),
        statistics: bool = False,
    ) -> Future[StepResult]:
        """Forward, backward and a step of the optimiser in one round trip. Waits while too many calls are unanswered.

        Args:
            spikes: input, batch first: (B, T, *input_shape), or in the order of `time_dim`; zeros and ones travel as
                bits.
            targets: as the loss wants them: class numbers (B,) or of each step (B, T), spike trains (B, T, *out), in
                the order of `time_dim`, counts (B, *out).
            loss: by name, with options as a dict; a list of such, whose dicts may have a "weight"; or any function of
                the outputs (B, T, *out) or in the order of `time_dim`, a torch tensor, and of the targets if they are
                given, to a scalar tensor. A function costs a second round trip.
            lengths: how many steps of each sample count, (B,), from the first on; or
            mask: true where a step counts, (B, T) or in the order of `time_dim`. Not with a loss that is a function.
            lr, weight_decay: instead of the optimiser's, for this call.
            clip_norm, clip_value: bounds on the norm of all gradients together, and on each element.
            frozen: layers or parameters that this call does not train, in place of the optimiser's.
            lr_scale, lr_of: factors on the learning rate, and rates in its place, by layer or parameter; together in
                place of the optimiser's.
            accumulate: what the call counts as, and its gradients are multiplied by: 1, or the number of its samples.
            average: divide the accumulated gradients, this call's among them, by what the calls count as in all.
            gradients: whether to return them.
            allow_non_finite: apply gradients that are infinite or not a number, where they are refused otherwise.
            record: names of traces that are wanted of layers, (B, T, ...), such as "hidden.spikes": "output" of any
                layer, "spikes" of one that fires, "membrane" of one of neurons.
            statistics: whether to return firing rates, synaptic operations and gradient norms of layers.

        Returns:
            A future of `StepResult`.

        Raises:
            TypeError, ValueError: an argument cannot travel, or shapes do not go together.
            ExodusError: the model takes no calls any more; the error that ended it.
        """
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "clip_norm": clip_norm,
            "clip_value": clip_value,
            "frozen": frozen,
            "lr_scale": lr_scale,
            "lr_of": lr_of,
            "accumulate": accumulate,
            "average": average,
        }
        observed = Observed.of(record, statistics, self._time_dim)
        counted = lengths, mask
        return self._train("step", spikes, targets, loss, counted, gradients, allow_non_finite, observed, options)

    def forward_backward(
        self,
        spikes: Array,
        targets: Array | None = None,
        *,
        loss: Loss,
        lengths: Array | None = None,
        mask: Array | None = None,
        frozen: Sequence[str] | None = None,
        accumulate: Literal["calls", "samples"] = "calls",
        gradients: bool = False,
        allow_non_finite: bool = False,
        record: Sequence[str] = (),
        statistics: bool = False,
    ) -> Future[StepResult]:
        """Forward and backward; gradients accumulate on the server until `optim_step`. Arguments as of `step`."""
        counted, options = (lengths, mask), {"frozen": frozen, "accumulate": accumulate}
        observed = Observed.of(record, statistics, self._time_dim)
        return self._train(
            "forward_backward", spikes, targets, loss, counted, gradients, allow_non_finite, observed, options
        )

    def optim_step(
        self,
        *,
        lr: float | None = None,
        weight_decay: float | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        frozen: Sequence[str] | None = None,
        lr_scale: Mapping[str, float] | None = None,
        lr_of: Mapping[str, float] | None = None,
        average: bool = False,
        gradients: Array | Mapping[str, Array] | None = None,
        allow_non_finite: bool = False,
    ) -> Future[StepResult]:
        """A step of the optimiser with the accumulated gradients, or with others.

        Args:
            average: divide the accumulated gradients by what their calls count as in all.
            gradients: instead of those on the server, by parameter or flat, all parameters in order.

        The other arguments are those of `step`.
        """
        params = step_params(
            lr=lr,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            frozen=frozen,
            lr_scale=lr_scale,
            lr_of=lr_of,
            average=average,
            allow_non_finite=allow_non_finite,
        )
        info, limits = self.description, self.connection.wire_limits
        tensors = () if gradients is None else (Tensor.of("gradients", join(gradients, info, "gradients")),)
        read = partial(read_step, kind=Kind(), limits=limits, info=info, gradients=False)

        def make(sequence: int) -> Call:
            body = training_body(params, tensors, sequence=sequence, writer=self._writer)
            return Call(sequence, f"{self._path}/optim_step", body, read=partial(read, sequence=sequence))

        return self._submit(make)

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
        record: Sequence[str] = (),
        statistics: bool = False,
    ) -> Future[Outputs]:
        """The outputs, and the metrics of a loss if one is given, after all calls made so far. Changes nothing.

        Args:
            spikes, targets, lengths, mask: as of `step`.
            loss: by name, as a dict or as a list; needs targets, unless it is of the outputs alone.
            train: with dropout, and the statistics of the batch.
            outputs: whether to return the outputs, (B, T, *out), or in the order of `time_dim`.
            record, statistics: as of `step`; there are no norms of gradients.
        """
        if callable(loss):
            raise unfit(TypeError, "loss", "a name or a dict", "a function", "compute your own from the outputs")
        if (loss is None) != (targets is None) and (loss is None or takes_targets(loss)):
            raise unfit(TypeError, "loss and targets", "both given, or neither", "one of them")
        if loss is None and not (lengths is None and mask is None):
            raise unfit(TypeError, "lengths or mask", "given with a loss", "without one")
        batch = self._batch(spikes, targets, loss, (lengths, mask))
        observed = Observed.of(record, statistics, self._time_dim)
        params = step_params(loss=loss) | {
            "mode": "train" if flag("train", train) else "eval",
            "return": ["outputs"] if flag("outputs", outputs) else [],
            **observed.params(),
        }

        wanted = outputs_wanted(batch, self.description) if outputs else {}

        def run(after: int, body: Encoded) -> Outputs:
            found = self._forward(body, batch, batch.kind, wanted, observed)
            require(after, found.sequence)
            return replace(found, outputs=as_given(found.outputs, self._time_dim))

        def make(after: int) -> Callable[[], Outputs]:
            return partial(run, after, training_body(params | {"after": after}, batch.tensors))

        return self._ask(make)

    def info(self) -> ModelInfo:
        """State of the model on the server now. Raises ExodusError."""
        answer = self._request("GET", self._path, retry=True)
        return ModelInfo.of(read_json(answer), answer.request_id, self.id)

    def make_durable(self) -> Future[int]:
        """Have the server save the state after all calls made so far; the future has the number of calls saved.

        Raises:
            ExodusError: the server keeps models in memory only; see also its tree.
        """
        if self.durable is None:
            raise ExodusError(f"make_durable: the server keeps models in memory only: {MEMORY_ONLY}")

        def run(after: int) -> int:
            answer = self._request("POST", f"{self._path}/save")
            require(after, read_number(answer, "sequence"))
            durable = read_number(answer, "durable")
            self._calls.kept(durable)
            return durable

        return self._ask(lambda after: partial(run, after))

    def state_dict(self, kind: Literal["numpy", "torch"] = "numpy") -> dict[str, Array]:
        """The weights after all calls made so far, by the names that the network has in `exodus_core`.

        Raises:
            ValueError: `kind` is another.
            ModuleNotFoundError: safetensors is not installed.
            ExodusError: see its tree.
        """
        arrays = self.state().weights(kind)
        order = [name for name, _ in self.description.parameters]
        shapes = {name: tuple(arrays[name].shape) for name in order if name in arrays}
        if shapes != dict(self.description.parameters):
            raise InvalidResponseError(
                f"the state has weights {shapes!r:.200}, want {self.description.parameters!r:.200}"
            )
        return {name: arrays[name] for name in [*order, *sorted(arrays.keys() - set(order))]}

    def load_state_dict(self, weights: Mapping[str, Array], strict: bool = True) -> IncompatibleKeys:
        """Replace weights on the server; the optimiser and everything else stay as they are.

        Args:
            weights: by the names that `state_dict` gives them.
            strict: whether there have to be all of them, and no others; otherwise those that there are are replaced.

        Returns:
            `missing_keys` and `unexpected_keys`, as torch's modules; with `strict` both are empty.

        Raises:
            TypeError: weights are not by name, or one is no dense array of numbers.
            ValueError: names are missing or unknown if `strict`, a shape is another, or a value is NaN or out of
                range: alpha in [0, 1], the threshold above 0. Nothing has changed.
        """
        by_name("weights", weights)
        flag("strict", strict)
        names = {name for name, _ in self.description.parameters}
        check_weights({name: array for name, array in weights.items() if strict or name in names})
        found = IncompatibleKeys([], [])

        def replaced() -> bytes:
            nonlocal found
            state = self.state()
            found = state.compare(weights, strict=strict)
            known = {name: array for name, array in weights.items() if name not in found.unexpected_keys}
            return state.with_weights(known).body

        self.replace_state(replaced)
        return found

    def load_weights(
        self,
        weights: Mapping[str, Array] | str | os.PathLike[str],
        *,
        names: Sequence[str] | None = None,
        partial: bool = False,
    ) -> LoadedWeights:
        """Replace weights on the server, after all calls made so far; its optimiser starts anew.

        Accumulated gradients are dropped; random state and number of calls stay. Floats are rounded to those of the
        network; alpha and threshold are then brought into their range, as after a step.

        Args:
            weights: by the names that `state_dict` gives them, or as a state has them, with "weights." before; or a
                file of these (safetensors). What else is in a state is left aside.
            names: layers or weights to take; None: all.
            partial: take those that there are. Otherwise all that are wanted have to be there and, without names, no
                others.

        Returns:
            The names of what was loaded, what was missing, and what the network does not have.

        Raises:
            TypeError, ValueError: an argument does not fit.
            OSError: the file cannot be read.
            ConflictError, UnprocessableError: weights or names do not fit. Nothing has changed.
        """
        chosen, kind = names_of("names", names) or [], "partial" if flag("partial", partial) else "all"
        if isinstance(weights, str | os.PathLike):
            body = Path(weights).read_bytes()
        else:
            body = weights_file(weights, chosen or None)
        query = urlencode([("weights", kind), *(("names", name) for name in chosen)])
        answer = self.replace_state(lambda: body, f"?{query}")
        return LoadedWeights.of(answer)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole state to a file: weights, optimiser, random state, number of calls (safetensors)."""
        target = Path(path)
        part = target.with_name(f"{target.name}.part")
        part.write_bytes(self.state().body)
        part.replace(target)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save` wrote for a model of the same network. Waits for all calls made so far.

        Raises:
            OSError: the file cannot be read.
            ConflictError: it is of another network or optimiser.
        """
        body = Path(path).read_bytes()
        self.replace_state(lambda: body)

    def state(self) -> State:
        """The whole state after all calls made so far: weights, optimiser, random state. Raises ExodusError."""
        return self._with_sender(self._state_now)

    def replace_state(self, body: Callable[[], bytes], query: str = "") -> Answer:
        """Replace the state after all calls made so far by a file; what other threads do meanwhile comes after.

        Returns:
            The answer of the server, which has information of the model.
        """
        self.connection.session.check_process()

        def replace(sender: Sender) -> Answer:
            with sender.calls.paused():
                info, answer = self._put(body(), query)
                sender.calls.wait_done(sender.calls.last)  # raises if the model was closed meanwhile
                self._begin(info)
                sender.close()
                return answer

        return self._with_sender(replace)

    def resync(self) -> None:
        """Go on from the state in which the model is on the server; calls that are not answered fail."""
        self._sender.close()
        self._begin(self.info())

    def close(self, *, wait: bool = True) -> None:
        """Fail the calls that were not sent yet, and wait for those under way, or fail them too.

        The model stays on the server.
        """
        self._sender.close(wait=wait)

    @property
    def status(self) -> str:
        """State of the server as far as it is known, for people."""
        return str(self._sender.watch)

    def __repr__(self) -> str:
        return f"Model({self.id!r}, sequence={self.sequence}, durable={self.durable})"

    def _request(
        self,
        method: str,
        path: str,
        encoded: Encoded | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        *,
        retry: bool = False,
    ) -> Answer:
        """A request about this model. Raises ExodusError."""
        try:
            return self.connection.call(method, path, encoded, retry=retry, headers=headers)
        except NotFoundError as error:
            if self.description.durable is not None or not path.startswith(self._path):
                raise
            reason = f"the server kept models in memory only, which a restart of it loses: {MEMORY_ONLY}"
            raise reworded(error, f"{error}\n  {reason}") from error

    def _begin(self, info: ModelInfo) -> None:
        # A handle of its own each time, so that the server can tell its calls from those of others.
        self._writer = uuid.uuid4().hex
        # A call that has a connection and waits for one before it that has none would wait in vain.
        width = min(defaults.CALLS_UNDER_WAY, self.connection.max_in_flight)
        calls = ReplayLog(info.sequence, info.durable, ahead=self._ahead, width=width)
        sender = Sender(
            self._request,
            self._path,
            calls,
            writer=self._writer,
            retries=self.connection.retries,
            patience=self._patience,
            report=self._report,
        )
        self._reads = Reads(self.connection, calls, sender)
        self._calls = calls
        self._sender = sender  # the last: who finds that it has changed finds all of the new

    def _report(self, result: StepResult) -> None:
        for callback in tuple(self.callbacks):
            callback(result)

    def _submit(self, make: Callable[[int], Call]) -> Future[StepResult]:

        def submit(sender: Sender) -> Future[StepResult]:
            call = sender.submit(make)
            return Future(call.future, lambda: f"training call {call.sequence}; {sender.watch}")

        self.connection.session.check_process()
        return self._with_sender(submit)

    def _with_sender(self, run: Callable[[Sender], Result]) -> Result:
        """Run with the sender of now, or with the next one where another thread replaces the state meanwhile."""
        while True:
            sender = self._sender
            try:
                return run(sender)
            except ModelClosedError:
                if sender is self._sender:
                    raise

    def _train(
        self,
        what: Literal["step", "forward_backward"],
        spikes: Array,
        targets: Array | None,
        loss: Loss,
        counted: tuple[Array | None, Array | None],
        gradients: bool,
        allow_non_finite: bool,
        observed: Observed,
        options: dict[str, Any],
    ) -> Future[StepResult]:
        check_loss(loss)
        kind_of_loss = None if callable(loss) else loss
        params = step_params(
            loss=kind_of_loss,
            gradients=gradients,
            allow_non_finite=allow_non_finite,
            **options,
        )
        path = f"{self._path}/{what}"
        if callable(loss):
            # It is encoded when its turn comes, and the caller may write to the arrays before.
            batch = self._batch(spikes, None, loss, counted).copied()
            kept = None if targets is None else copied(dense("targets", targets))
            differentiated = partial(self._differentiated, params, batch, loss, kept, observed)
            observed = replace(observed, record=())  # which the forward pass brings
        else:
            batch, differentiated = self._batch(spikes, targets, loss, counted), None
        params |= observed.params()
        limits, info = self.connection.wire_limits, self.description
        read = partial(
            read_step,
            kind=batch.kind,
            limits=limits,
            info=info,
            gradients=gradients,
            observed=observed,
            shape=batch.tensors[0].shape,
        )

        def make(sequence: int) -> Call:
            numbered = partial(read, sequence=sequence)
            if differentiated is not None:
                return Call(sequence, path, make=differentiated, read=numbered, in_turn=True)
            return Call(sequence, path, self._body(params, batch.tensors, sequence), read=numbered)

        return self._submit(make)

    def _body(self, params: dict[str, Any], tensors: Any, sequence: int) -> Encoded:
        return training_body(params, tensors, sequence=sequence, writer=self._writer)

    def _differentiated(
        self,
        params: dict[str, Any],
        batch: Batch,
        loss: Callable[..., Any],
        targets: Array | None,
        observed: Observed,
        call: Call,
    ) -> None:
        """Run forward, differentiate the loss here, and give the call what is to be sent."""
        import torch

        forward = {"mode": "train", "context": True, "return": ["outputs"], "after": call.sequence - 1}
        wanted = outputs_wanted(batch, self.description)
        body = training_body(forward | observed.params(), batch.tensors)
        outputs = self._forward(body, batch, Kind(torch.device("cpu")), wanted, observed)
        if outputs.context is None or outputs.sequence != call.sequence - 1:
            raise InvalidResponseError(
                f"asked for outputs after call {call.sequence - 1} and a context, got those after {outputs.sequence} "
                f"and {'no' if outputs.context is None else 'a'} context",
                request_id=outputs.request_id,
            )
        value, gradient = differentiate(loss, as_given(outputs.outputs, self._time_dim), targets)
        grad_output = Tensor.of("grad_output", batch_first(gradient, self._time_dim))
        # Without the context the same comes of the inputs, which are sent if the server has forgotten it.
        call.fallback = self._body(params, (*batch.tensors, grad_output), call.sequence)
        call.body = self._body(params | {"context": outputs.context}, (grad_output,), call.sequence)
        assert call.read is not None
        shown = {name: of_kind(batch.kind, trace) for name, trace in outputs.recordings.items()}
        forward_pass = replace(outputs, outputs=None, recordings=shown)
        call.read = partial(call.read, metrics={"loss:mean": value}, forward=forward_pass)
        call.make = None

    def _batch(
        self,
        spikes: Array,
        targets: Array | None,
        loss: Loss | None,
        counted: tuple[Array | None, Array | None],
    ) -> Batch:
        """The tensors of a call, batch first; `counted`: lengths and mask. Raises TypeError, ValueError."""
        time_dim = self._time_dim
        spikes, targets = dense("spikes", spikes), None if targets is None else dense("targets", targets)
        steps = steps_given(*counted, time_dim)
        batch = Batch.of(batch_first(spikes, time_dim), targets_first(targets, loss, time_dim), steps)
        shapes = [tensor.shape for tensor in batch.tensors]
        input_shape = self.description.network.get("input_shape")
        check_shapes(shapes[0], shapes[1] if targets is not None else None, loss, input_shape, time_dim)
        check_steps(shapes[0], steps, loss, time_dim)
        return batch

    def _forward(
        self, body: Encoded, batch: Batch, kind: Kind, wanted: Mapping[str, Wanted], observed: Observed
    ) -> Outputs:
        answer = self._request("POST", f"{self._path}/forward", body)
        info = self.description
        recorded = observed.wanted(batch.tensors[0].shape, info.dtype)
        return read_outputs(answer, kind, self.connection.wire_limits, info, {**wanted, **recorded}, observed)

    def _ask(self, make: Callable[[int], Callable[[], Result]]) -> Future[Result]:
        """Read on another thread after all calls made so far; `make` gets their number."""

        def submit(sender: Sender) -> Future[Result]:
            with sender.calls.paused():  # a state that another thread loads comes before it, or after its answer
                reads = self._reads
                return reads.submit(reads.after, make(reads.after))

        self.connection.session.check_process()
        return self._with_sender(submit)

    def _state_now(self, _: Sender) -> State:
        reads = self._reads
        after = reads.after

        def run() -> State:
            state = State.of(self._request("GET", f"{self._path}/state"))
            require(after, state.sequence)
            return state

        return reads.ask(after, run)

    def _put(self, body: bytes, query: str) -> tuple[ModelInfo, Answer]:
        reads = self._reads
        encoded = Encoded(MEDIA_TYPE, len(body), [body])

        def run() -> tuple[ModelInfo, Answer]:
            answer = self._request("PUT", f"{self._path}/state{query}", encoded)
            return ModelInfo.of(read_json(answer), answer.request_id, self.id), answer

        reads.wait()
        try:
            return reads.ask(reads.after, run)
        except ExodusError as error:
            if is_retryable(error) or isinstance(error, InvalidResponseError):
                self._calls.end(error)  # it may have been replaced: calls that are kept here may not belong to it
            raise
