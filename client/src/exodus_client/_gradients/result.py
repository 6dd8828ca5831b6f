"""A gradient request as a message, and its answer as a result: everything of `/v1/gradients` that is not HTTP."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Literal, Required, TypeAlias, TypedDict

from exodus_client._errors import InvalidResponseError
from exodus_client._transport.session import Answer
from exodus_client.neuron import STATES, Array, Kernel, Neuron
from exodus_client.surrogate import Surrogate
from exodus_client.wire import (
    NON_FINITE,
    FloatName,
    Form,
    Limits,
    Message,
    Tensor,
    WireError,
    decode,
    decompress,
    is_torch,
)
from exodus_client.wire.bounds import sentence

Method: TypeAlias = Literal["exodus", "slayer", "bptt"]
SpikeEncoding: TypeAlias = Literal["auto", "raw", "bits", "events"]
Parameter: TypeAlias = Literal[
    "alpha",
    "threshold",
    "reset_by",
    "reset_to",
    "synapse_alpha",
    "synapse_gain",
    "adapt_alpha",
    "adapt_by",
    "adapt_membrane",
    "adapt_threshold",
    "adapt_current",
    "initial_membrane",
    "initial_current",
    "initial_adaptation",
]
Trace: TypeAlias = Literal["spikes", "membrane", "state"]


class GradientArguments(TypedDict, total=False):
    """The keywords of `Client.gradients`, which documents them."""

    method: Method
    neuron: Required[Neuron]
    surrogate: Surrogate
    membrane: Array | None
    current: Array | None
    input: Array | None
    spikes: Array | None
    weight: Array | None
    psp: Array | None
    reset_kernel: Kernel | Array | None
    grad_output: Array | None
    grad_membrane: Array | None
    initial_membrane: float | Array | None
    initial_spikes: float | Array | None
    initial_current: float | Array | None
    initial_adaptation: float | Array | None
    initial_refractory: float | Array | None
    time_dim: int
    output_filter: float | None
    result_dtype: FloatName | None
    wrt: Collection[Parameter]
    return_: Collection[Trace]
    encoding: SpikeEncoding
    form: Form


@dataclass(frozen=True)
class Kind:
    """Kind of the arrays that went in, and are to come out: numpy, or torch on a device."""

    device: Any | None = None

    @classmethod
    def of(cls, arrays: Collection[Any]) -> Kind:
        """torch, on the device of the first tensor, if any of the arrays is a torch tensor; otherwise numpy."""
        return next((cls(array.device) for array in arrays if is_torch(array)), cls())

    def array(self, tensor: Tensor) -> Array:
        """A tensor of an answer as such an array."""
        return tensor.numpy() if self.device is None else tensor.torch().to(self.device)


@dataclass(frozen=True, repr=False)
class Gradients:
    """Gradients and traces from the server. Arrays are attributes too: `result.grad_input`, `result.spikes`, ...

    Attributes:
        arrays: the returned arrays by name, of the kind that went in.
        grad_norms: L2 norm of each returned gradient.
        device: where the server computed.
        method: "exodus", "slayer" or "bptt".
        timing: milliseconds: the server's `queue`, `decode`, `kernel` and `encode`, and the client's `round_trip`.
        request_id: under which the server logged the request.
    """

    arrays: Mapping[str, Array]
    grad_norms: Mapping[str, float]
    device: str
    method: str
    timing: Mapping[str, float]
    request_id: str

    def __getattr__(self, name: str) -> Array:
        arrays = self.__dict__.get("arrays", {})
        if name in arrays:
            return arrays[name]
        raise AttributeError(f"{name!r} was not returned; the answer has {', '.join(arrays)}. See wrt= and return_=")

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in self.arrays.items())
        return f"Gradients({shapes}; {self.method} on {self.device})"

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.arrays})


@dataclass(frozen=True)
class Wanted:
    """Dtype and shape that a tensor of an answer has to have.

    Attributes:
        dtypes: one of these.
        shape: its sizes; an ellipsis at the end stands for any that follow.
    """

    dtypes: Collection[str]
    shape: tuple[int | EllipsisType, ...]

    def fits(self, tensor: Tensor) -> bool:
        """True if a tensor has them."""
        sizes: tuple[int | EllipsisType, ...] = tensor.shape
        if ... in self.shape:
            return tensor.dtype in self.dtypes and sizes[: len(self.shape) - 1] == self.shape[:-1]
        return tensor.dtype in self.dtypes and sizes == self.shape

    def __str__(self) -> str:
        sizes = ", ".join("..." if size is ... else str(size) for size in self.shape)
        return f"{' or '.join(self.dtypes)} of shape [{sizes}]"


@dataclass(frozen=True)
class Neurons:
    """A request without its arrays, from which follows what its answer has to bring.

    Attributes:
        model: wire name of the neuron.
        trace: shape of the membrane.
        time_dim: its axis of time.
        dtype: of the membrane, input, psp or weight.
        parameters: shape and dtype of those of the neuron that are tensors.
        synapses: shapes of spikes and weight, where they make the input.
        result_dtype: what was asked for, None for the default.
    """

    model: str
    trace: tuple[int, ...]
    time_dim: int
    dtype: str
    parameters: Mapping[str, tuple[tuple[int, ...], str]]
    synapses: tuple[tuple[int, ...], tuple[int, ...]] | None
    result_dtype: str | None

    @classmethod
    def of(cls, message: Message) -> Neurons:
        """Those of a gradient request, or of the forward pass of a layer."""
        neuron, tensors = message.params["neuron"], message.tensors
        parameters = {
            name: (tensors[value["tensor"]].shape, tensors[value["tensor"]].dtype)
            for name, value in neuron.items()
            if isinstance(value, dict) and "tensor" in value
        }
        model, time_dim, result_dtype = neuron["model"], message.params["time_dim"], message.params.get("result_dtype")
        if "weight" in tensors:
            spikes, weight = tensors["spikes"].shape, tensors["weight"]
            trace, synapses = (*spikes[:-1], weight.shape[0]), (spikes, weight.shape)
            return cls(model, trace, time_dim, weight.dtype, parameters, synapses, result_dtype)
        source = next(tensors[name] for name in ("membrane", "input", "psp") if name in tensors)
        return cls(model, source.shape, time_dim, source.dtype, parameters, None, result_dtype)

    def traces(self, names: Collection[str]) -> dict[str, Wanted]:
        """Dtype and shape of the traces of these names, and of the state after the last step."""
        found = {name: Wanted(self._dtypes, self.trace) for name in names}
        if "state" in found:
            time = self.time_dim % len(self.trace)
            computed = "float64" if self.dtype == "float64" else "float32"
            shape = (len(STATES), *self.trace[:time], *self.trace[time + 1 :])
            found["state"] = Wanted((computed,), shape)
        return found

    def gradients(self, wrt: Collection[str]) -> dict[str, Wanted]:
        """Dtype and shape of the gradients, with those of these parameters of the neuron."""
        wanted = {"grad_psp" if self.model == "srm" else "grad_input": Wanted(self._dtypes, self.trace)}
        for name in wrt:
            shape, dtype = self.parameters.get(name, ((), self.dtype))
            # In the dtype of the parameter, or of the computation: half precision is computed in float32.
            dtypes = self._dtypes if self.result_dtype else tuple(dict.fromkeys((dtype, self.dtype, "float32")))
            wanted[f"grad_{name}"] = Wanted(dtypes, shape)
        if self.synapses is not None:
            spikes, weight = self.synapses
            wanted |= {"grad_spikes": Wanted(self._dtypes, spikes), "grad_weight": Wanted(self._dtypes, weight)}
        return wanted

    @property
    def _dtypes(self) -> tuple[str, ...]:
        return (self.result_dtype or self.dtype,)


@dataclass(frozen=True)
class GradientRequest:
    """A checked request, ready to be encoded."""

    method: Method
    message: Message
    form: Form
    kind: Kind

    def result(self, answer: Answer, limits: Limits) -> Gradients:
        """The result in an answer of the server.

        Raises:
            InvalidResponseError: the answer is not what the API promises, or not what was asked for.
        """
        neurons, params = Neurons.of(self.message), self.message.params
        wanted = neurons.traces(params["return"])
        if self.message.tensors.keys() & {"grad_output", "grad_membrane"}:
            wanted |= neurons.gradients(params["wrt"])
        return read_gradients(answer, self.kind, limits, self.method, wanted)


def read_gradients(answer: Answer, kind: Kind, limits: Limits, asked: str, wanted: Mapping[str, Wanted]) -> Gradients:
    """The result in an answer to a request for a method and tensors. Raises InvalidResponseError."""
    message, arrays = read_answer(answer, kind, limits, wanted)
    device, method = message.params.get("device"), message.params.get("method")
    norms = read_numbers(message.params.get("grad_norms"))
    if not isinstance(device, str) or method != asked or norms is None:
        raise InvalidResponseError(
            f"the answer lacks device, method {asked!r} or grad_norms: got {message.params!r:.200}",
            request_id=answer.request_id,
        )
    return Gradients(arrays, norms, device, asked, timing_of(answer), answer.request_id)


def read_answer(
    answer: Answer, kind: Kind, limits: Limits, wanted: Mapping[str, Wanted]
) -> tuple[Message, dict[str, Array]]:
    """The message in an answer, and its tensors as arrays of a kind.

    Raises:
        InvalidResponseError: it cannot be read, or has other tensors than are wanted.
    """
    headers = answer.headers
    try:
        body = decompress(answer.body, headers.get("content-encoding"), limits=limits)
        message = decode(body, headers.get("content-type", ""), limits=limits)
        _require(message.tensors, wanted, answer.request_id)
        return message, {name: kind.array(tensor) for name, tensor in message.tensors.items()}
    except WireError as error:
        raise InvalidResponseError(f"the answer cannot be read: {error}", request_id=answer.request_id) from error


def _require(tensors: Mapping[str, Tensor], wanted: Mapping[str, Wanted], request_id: str) -> None:
    if tensors.keys() != wanted.keys():
        expected, got = (", ".join(sorted(names)) or "none" for names in (wanted, tensors))
        raise InvalidResponseError(sentence("tensors of the answer", expected, got), request_id=request_id)
    for name, tensor in tensors.items():
        if not wanted[name].fits(tensor):
            got = f"{tensor.dtype} of shape {list(tensor.shape)}"
            raise InvalidResponseError(sentence(f"{name} in the answer", str(wanted[name]), got), request_id=request_id)


def timing_of(answer: Answer) -> dict[str, float]:
    """Milliseconds by name: what the server says of itself, and the client's `round_trip`."""
    return read_timing(answer.headers.get("server-timing", "")) | {"round_trip": answer.round_trip}


def read_timing(header: str) -> dict[str, float]:
    """Milliseconds by name of a Server-Timing header; what is no such thing in it is passed over."""
    # A description in quotes may hold any of the separators. Of the parts between quotes, every other one is such.
    bare = "".join(header.split('"')[::2])
    found: dict[str, float] = {}
    for metric in bare.split(","):
        name, *members = (part.strip() for part in metric.split(";"))
        durations = [value.strip() for key, _, value in (part.partition("=") for part in members) if key == "dur"]
        if name and durations and durations[0].replace(".", "", 1).isdecimal():
            found[name] = float(durations[0])
    return found


def read_numbers(given: Any) -> dict[str, float] | None:
    """Numbers by name: JSON writes those that are not finite as strings. None if it is something else."""
    if not isinstance(given, dict):
        return None
    if not all(type(number) in (int, float) or number in NON_FINITE for number in given.values()):
        return None
    return {name: float(number) for name, number in given.items()}
