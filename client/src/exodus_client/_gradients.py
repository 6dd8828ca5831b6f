"""A gradient request as a message, and its answer as a result: everything of `/v1/gradients` that is not HTTP."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Required, TypeAlias, TypedDict

from ._errors import InvalidResponseError
from ._session import Answer
from .neuron import AlphaKernel, Array, ExponentialKernel, Neuron
from .surrogate import Surrogate
from .wire import NON_FINITE, Form, Limits, Message, Tensor, WireError, decode, decompress, is_torch

Method: TypeAlias = Literal["exodus", "slayer", "bptt"]
SpikeEncoding: TypeAlias = Literal["auto", "raw", "bits", "events"]
FloatName: TypeAlias = Literal["float32", "float64", "float16", "bfloat16"]
Parameter: TypeAlias = Literal["alpha", "threshold", "reset_by", "initial_membrane"]
Trace: TypeAlias = Literal["spikes", "membrane"]

_QUOTED = re.compile(r'"[^"]*"')
_TIMING = re.compile(r"([\w.-]+)\s*;[^,]*?\bdur=(\d+(?:\.\d*)?)")


class GradientArguments(TypedDict, total=False):
    """The keywords of `Client.gradients`, which documents them."""

    method: Method
    neuron: Required[Neuron]
    surrogate: Surrogate
    membrane: Array | None
    input: Array | None
    spikes: Array | None
    weight: Array | None
    psp: Array | None
    reset_kernel: ExponentialKernel | AlphaKernel | Array | None
    grad_output: Array | None
    grad_membrane: Array | None
    initial_membrane: float | Array | None
    initial_spikes: float | Array | None
    time_dim: int
    output_filter: float | None
    result_dtype: FloatName | None
    wrt: Collection[Parameter]
    return_: Collection[Trace]
    encoding: SpikeEncoding
    form: Form


@dataclass(frozen=True)
class Kind:
    """What kind of arrays went in, so that the same kind comes out: numpy, or torch on a device."""

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
    """What the server computed. Every returned array is an attribute: `result.grad_input`, `result.spikes`, ...

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
class GradientRequest:
    """A checked request, ready to be encoded."""

    method: Method
    message: Message
    form: Form
    kind: Kind

    def result(self, answer: Answer, limits: Limits) -> Gradients:
        """The result in an answer of the server.

        Raises:
            InvalidResponseError: the answer is not what the API promises.
        """
        message, arrays = read_answer(answer, self.kind, limits)
        device, method = message.params.get("device"), message.params.get("method")
        norms = read_numbers(message.params.get("grad_norms"))
        if not isinstance(device, str) or not isinstance(method, str) or norms is None:
            raise InvalidResponseError(
                f"the answer lacks device, method or grad_norms: got {message.params!r:.200}",
                request_id=answer.request_id,
            )
        return Gradients(arrays, norms, device, method, timing_of(answer), answer.request_id)


def read_answer(answer: Answer, kind: Kind, limits: Limits) -> tuple[Message, dict[str, Array]]:
    """The message in an answer, and its tensors as arrays of a kind.

    Raises:
        InvalidResponseError: it cannot be read.
    """
    headers = answer.headers
    try:
        body = decompress(answer.body, headers.get("Content-Encoding"), limits=limits)
        message = decode(body, headers.get("Content-Type", ""), limits=limits)
        return message, {name: kind.array(tensor) for name, tensor in message.tensors.items()}
    except WireError as error:
        raise InvalidResponseError(f"the answer cannot be read: {error}", request_id=answer.request_id) from error


def timing_of(answer: Answer) -> dict[str, float]:
    """Milliseconds by name: what the server says of itself, and the client's `round_trip`."""
    return read_timing(answer.headers.get("Server-Timing", "")) | {"round_trip": answer.round_trip}


def read_timing(header: str) -> dict[str, float]:
    """Milliseconds by name of a Server-Timing header."""
    unquoted = _QUOTED.sub("", header)  # a description may hold a comma
    return {name: float(duration) for name, duration in _TIMING.findall(unquoted)}


def read_numbers(given: Any) -> dict[str, float] | None:
    """Numbers by name: JSON writes those that are not finite as strings."""
    if not isinstance(given, dict):
        return None
    if not all(isinstance(number, int | float) or number in NON_FINITE for number in given.values()):
        return None
    return {name: float(number) for name, number in given.items()}
