"""Client of one server; its methods are the endpoints."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import uuid
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Self, TypeVar, Unpack, overload

import httpx

from exodus_client import _constants as defaults
from exodus_client._checks import Range, check_parameter, integer, is_real, real
from exodus_client._config import Limits, Retries, Timeout
from exodus_client._errors import InvalidResponseError, ServiceUnavailableError
from exodus_client._gradients.request import gradient_request
from exodus_client._gradients.result import GradientArguments, Gradients
from exodus_client._models.batch_axes import check_time_dim
from exodus_client._models.messages import ModelInfo, read_info, training_body
from exodus_client._models.model import MEMORY_ONLY, Model
from exodus_client._models.state import check_weights
from exodus_client._plain_data import kind_of, model_id, network_of, plain, refused
from exodus_client._threads import Future
from exodus_client._transport.connection import Connection
from exodus_client._transport.session import read_json
from exodus_client.neuron import Array
from exodus_client.wire import Tensor, encode

Result = TypeVar("Result")

_log = logging.getLogger("exodus_client")


@dataclass(frozen=True, slots=True)
class Ping:
    """State of a server.

    Attributes:
        ready: whether it takes requests.
        reason: why it does not; "" if it does.
        round_trip: milliseconds for a question and its answer on an open connection.
    """

    ready: bool
    reason: str
    round_trip: float


class Client:
    """A client of one Exodus service. Threads may share it, forked processes may not; use it in a `with`, or close it.

        with Client("http://gpu-node:8000", api_key=...) as client:
            result = client.gradients(neuron=LIF(alpha=0.95), membrane=u, grad_output=e)

    Args:
        base_url: "http://HOST:PORT", "https://HOST", or "unix:/PATH" for a Unix socket.
        api_key: sent as `Authorization: Bearer`; None for the environment variable EXODUS_API_KEY, if it has one.
        timeout: a `Timeout`, or a number of seconds for `Timeout(total=...)`.
        retries: a `Retries`, or a number of retries.
        limits: a `Limits`.
        compress: send requests of 16 KiB and more zstd-compressed. Pays for spikes on slow networks, never for
            membranes, which do not shrink. Needs the package zstandard.
        shared_memory: exchange bodies of 64 KiB and more with a service on this machine through shared memory, where
            the service has it on; otherwise bytes are sent, and the log says why. Linux only.
        transport: an httpx transport instead of real sockets, or one with its own TLS or proxy settings.

    Attributes:
        connection: to the server, shared with models and layers.

    Raises:
        TypeError, ValueError: an argument, or a variable of the environment for proxies or TLS, does not fit; the
            message names it, and never shows the key.
        ModuleNotFoundError: `compress` without zstandard, or a SOCKS proxy of the environment without socksio.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout: Timeout | float = Timeout(),  # noqa: B008 - frozen
        retries: Retries | int = Retries(),  # noqa: B008 - frozen
        limits: Limits = Limits(),  # noqa: B008 - frozen
        compress: bool = False,
        shared_memory: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if compress:
            _require_zstandard()
        self.connection = Connection(
            base_url,
            api_key=api_key,
            timeout=timeout if isinstance(timeout, Timeout) else Timeout(total=timeout),
            retries=retries if isinstance(retries, Retries) else Retries(count=retries),
            limits=limits,
            compress=compress,
            shared_memory=shared_memory,
            transport=transport,
            user_agent=f"exodus-client/{importlib.metadata.version('exodus-client')}",
        )
        self._models: weakref.WeakSet[Model] = weakref.WeakSet()
        self._warned = False  # that models are in memory only

    @overload
    def gradients(self, *, wait: Literal[True] = True, **arguments: Unpack[GradientArguments]) -> Gradients: ...
    @overload
    def gradients(self, *, wait: Literal[False], **arguments: Unpack[GradientArguments]) -> Future[Gradients]: ...
    def gradients(self, *, wait: bool = True, **arguments: Unpack[GradientArguments]) -> Gradients | Future[Gradients]:
        """Gradients of spiking neurons, computed on the server in one round trip.

        Arrays are numpy arrays or torch tensors, and come back as what they were. The membrane has any shape with a
        dimension of time; below it is called (B, T, N). Floats are float32, float64, float16, or bfloat16 of torch.

        Args:
            method: "exodus" (default; equal to BPTT), "slayer" or "bptt".
            neuron: `LIF`, `IF`, `CubaLIF`, `ALIF` or `SRM`.
            surrogate: one of `exodus_client.surrogate`; default `Exponential()`.
            membrane: potential before reset, (B, T, N). Or
            input: input current, (B, T, N), from which the server runs the neurons forward. Or
            spikes, weight: incoming spikes (B, T, N_in) and weights (N_out, N_in); N is then N_out. Or
            psp: for `SRM`, weighted and filtered input, (B, T, N).
            reset_kernel: for `SRM`, if the neuron has none: taps (K,), or a kernel.
            grad_output: dL/dspikes, (B, T, N). Without it and `grad_membrane` only the forward pass runs.
            grad_membrane: dL/dmembrane by direct paths from the membrane to the loss, (B, T, N).
            current: with a membrane, the trace of the synaptic current, (B, T, N), from which the gradients of
                synapse_alpha and synapse_gain are computed.
            initial_membrane, initial_spikes, initial_current, initial_adaptation, initial_refractory: state before the
                first step, as far as the neuron has it; numbers or arrays. Default 0.
            time_dim: axis of time; default 1, batch first.
            output_filter: alpha, in [0, 1], of an exponential filter between spikes and loss; `grad_output` is then
                about its output.
            result_dtype: dtype of all answers but the state; default that of membrane, input, psp or weight.
            wrt: neuron parameters whose gradients are wanted too: those of the neuron but min_membrane, and
                "initial_membrane", "initial_current", "initial_adaptation".
            return_: what is wanted too: "spikes", "membrane", and "state", (5, B, N): the membrane, spikes, current,
                adaptation and refractory steps left after the last step of an input.
            encoding: of `spikes`: "auto" (bits if they are zeros and ones), "raw", "bits" or "events" (few spikes).
            form: "stream" (default), "inline" or "json"; for looking at what is sent.
            wait: False returns a `Future` at once, so that several requests are under way. Do not change the arrays
                before it is done: they are sent from where they are.

        Returns:
            `Gradients`, with `grad_input` (for `SRM` `grad_psp`), with `weight` also `grad_weight` and `grad_spikes`,
            and what `wrt` and `return_` ask for.

        Raises:
            TypeError, ValueError: an argument does not fit; nothing was sent.
            ExodusError: see its tree; with `wait=False` raised by the future.
        """
        request = gradient_request(arguments)
        encoded = encode(request.message, request.form)

        def run() -> Gradients:
            answer = self.connection.post(f"/v1/gradients/{request.method}", encoded)
            return request.result(answer, self.connection.wire_limits)

        if wait:
            return run()
        session = self.connection.session
        return Future(self.connection.submit(run), lambda: f"/v1/gradients/{request.method}; {session.state}")

    def create_model(
        self,
        layers: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        *,
        input_shape: Sequence[int] | None = None,
        dtype: Literal["float32", "float64"] = "float32",
        checkpoint_steps: int | None = None,
        optimizer: str | Mapping[str, Any] = "adam",
        seed: int = 0,
        weights: Array | Mapping[str, Array] | None = None,
        durable_every: int = 10,
        name: str = "",
        id: str | None = None,
        ahead: int = defaults.AHEAD,
        patience: float = defaults.PATIENCE,
        time_dim: int = 1,
    ) -> Model:
        """Make a model on the server, which is trained there.

        Args:
            layers: the network as data: a dict for each layer, or the whole description; see docs/networks.md. Scalars
                and 1-D arrays of numpy and torch are numbers and lists.
            input_shape: of the input without batch and time; not needed if the first layer is linear and says it.
            dtype: of the weights.
            checkpoint_steps: compute so many steps of a sequence at a time, so that long ones take less memory in
                training and a third more time; see docs/networks.md.
            optimizer: "sgd", "adam" or "adamw", or a dict of its `kind` and torch's options.
            seed: of weights and dropout. Equal seeds give equal weights, here and in `exodus_core`.
            weights: to start from: flat, all parameters in order, or by name, all that `Model.state_dict` gives.
            durable_every: training calls from one save on the server to the next.
            name: a label for people.
            id: of the model, at most 64 letters, digits, "-" and "_"; made here where it is None.
            ahead: training calls submitted and not yet answered, beyond which the next call waits.
            patience: seconds that training waits for a server that does not answer, or asks for the same again.
            time_dim: axis of time in spikes, outputs and target spike trains: 1 for (batch, time, ...), 0 for
                (time, batch, ...), -1 for (batch, ..., time). It is of this handle; the network knows nothing of it.

        Raises:
            TypeError, ValueError: an argument cannot travel, or does not fit; there is no model then.
            UnprocessableError: the description does not fit; `errors` has the places.
            ConflictError: there is another model of this id.
            ExodusError: see its tree.
        """
        options = _of_handle(ahead, patience, time_dim)
        if optimizer is None:
            raise refused("optimizer", optimizer)
        params = {
            "id": uuid.uuid4().hex if id is None else model_id(id),
            "network": network_of(layers, input_shape, dtype, checkpoint_steps),
            "optimizer": {"kind": optimizer} if isinstance(optimizer, str) else kind_of("optimizer", optimizer),
            "seed": integer("seed", plain("seed", seed), 0, 2**63 - 1),
            "durable_every": integer("durable_every", plain("durable_every", durable_every), 1),
            "name": plain("name", name),
        }
        by_name = weights if isinstance(weights, Mapping) else None
        if by_name is not None:
            check_weights(by_name)
        elif weights is not None:
            check_parameter("weights", weights)
        tensors = () if weights is None or by_name is not None else (Tensor.of("weights", weights),)
        answer = self.connection.session.call("POST", "/v1/models", training_body(params, tensors))
        model = self._model(read_info(answer, self.connection.wire_limits, params["id"]), options)
        if model.durable is None and not self._warned:
            self._warned = True
            _log.warning("%r keeps models in memory only, and a restart of it loses them: %s", self, MEMORY_ONLY)
        if by_name is not None and model.sequence == 0:  # not if the model was there already, and was trained
            try:
                model.load_state_dict(by_name)
            except (TypeError, ValueError, ModuleNotFoundError):
                if answer.status == 201:  # made by this call
                    self.delete_model(model.id)
                raise
        return model

    def model(
        self, id: str, *, ahead: int = defaults.AHEAD, patience: float = defaults.PATIENCE, time_dim: int = 1
    ) -> Model:
        """A model that is on the server, to go on training it. Arguments as of `create_model`.

        Raises:
            NotFoundError: there is none of this id.
            ExodusError: see its tree.
        """
        options = _of_handle(ahead, patience, time_dim)
        answer = self.connection.session.call("GET", f"/v1/models/{model_id(id)}")
        return self._model(ModelInfo.of(read_json(answer), answer.request_id, id), options)

    def models(self) -> list[ModelInfo]:
        """All models of this key, the oldest first. Raises ExodusError."""
        answer = self.connection.session.call("GET", "/v1/models")
        listed = read_json(answer)
        models = listed.get("models") if isinstance(listed, dict) else None
        if not isinstance(models, list):
            raise InvalidResponseError(
                "the answer must be a JSON object with a list of models", request_id=answer.request_id
            )
        return [ModelInfo.of(model, answer.request_id) for model in models]

    def delete_model(self, id: str) -> None:
        """Delete a model, with all that was saved of it. Raises NotFoundError, ExodusError."""
        self.connection.session.call("DELETE", f"/v1/models/{model_id(id)}")

    def capabilities(self) -> dict[str, Any]:
        """Capabilities of the server: methods, neurons, surrogates, dtypes, devices, limits, versions.

        Raises:
            ExodusError: see its tree.
        """
        answer = self.connection.session.call("GET", "/v1/capabilities")
        capabilities = read_json(answer)
        if not isinstance(capabilities, dict):
            raise InvalidResponseError("the answer must be a JSON object", request_id=answer.request_id)
        return capabilities

    def ping(self) -> Ping:
        """Ask once, without retries, if the server takes requests with this key, and time the round trip.

        Raises:
            AuthenticationError, PermissionDeniedError: it is ready, and wants a key, or another one.
            ExodusError: see its tree; there is no such server.
        """
        reason = ""
        with self.connection.session.one_call():
            try:
                self.connection.session.call("GET", "/readyz", retry=False)
            except ServiceUnavailableError as error:
                reason = error.detail
            alive = self.connection.session.call("GET", "/livez", retry=False)
            if not reason:
                self.connection.session.call("GET", "/v1/capabilities", retry=False)  # the others answer without a key
        return Ping(ready=not reason, reason=reason, round_trip=alive.round_trip)

    def close(self, *, wait: bool = True) -> None:
        """Wait for the requests under way, or leave them, cancel those not begun, and close all connections."""
        if self.connection.session.is_forked:
            return  # the connections, and what is under way on them, are those of the process that made them
        for model in tuple(self._models):
            model.close(wait=wait)
        self.connection.close(wait=wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        # After an exception, Ctrl-C among them, nobody asks for what is under way.
        self.close(wait=kind is None)

    def __repr__(self) -> str:
        return f"Client({self.connection.session.base_url!r})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        # So that a model with remote layers can be copied: both copies talk through the same connections.
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client holds connections and a key, and cannot be pickled; make one in each process")

    def _model(self, info: ModelInfo, options: Mapping[str, Any]) -> Model:
        model = Model(self.connection, info, **options)
        self._models.add(model)
        return model


def _of_handle(ahead: Any, patience: Any, time_dim: Any) -> dict[str, Any]:
    """The options of a model's handle, checked. Raises TypeError, ValueError."""
    return {
        "ahead": integer("ahead", ahead, 1),
        "patience": math.inf if is_real(patience) and patience == math.inf else real("patience", patience, Range(0)),
        "time_dim": check_time_dim(time_dim),
    }


def _require_zstandard() -> None:
    try:
        import zstandard  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("compress=True needs zstandard: pip install 'exodus-client[zstd]'") from error
