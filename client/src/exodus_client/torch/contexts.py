"""One layer in two requests: the forward pass leaves a context on the server, which the backward pass uses up.

Between the two the server keeps the membrane, the synaptic current if there is one, and the parameters, by a handle
that cannot be guessed: until the backward pass is done, at most for the time and within the bytes that the server
allows an owner. Where it keeps nothing, or no longer has what it kept, gradient requests do the same from the inputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from exodus_client._client import Client
from exodus_client._errors import GoneError, InvalidResponseError, NotFoundError, PayloadTooLargeError
from exodus_client._gradients.request import gradient_request
from exodus_client._gradients.result import (
    GradientArguments,
    Gradients,
    Kind,
    Method,
    Neurons,
    Parameter,
    read_answer,
    read_gradients,
)
from exodus_client._transport.connection import Connection
from exodus_client.neuron import Array
from exodus_client.wire import Message, Tensor, encode

_log = logging.getLogger("exodus_client")


@dataclass(frozen=True)
class Context:
    """Saved activations of a forward pass on the server: their handle, and the answer that they lead to."""

    handle: str
    method: Method
    kind: Kind
    neurons: Neurons


@dataclass
class _Known:
    """Facts found out about a server.

    Attributes:
        refused_from: bytes of a request from which on the server keeps no context; 0 if it never does.
        said: reasons for the slower way that the log has.
    """

    refused_from: float = math.inf
    said: set[str] = field(default_factory=set)

    def say(self, reason: str) -> None:
        """Announce the slower way, once for every reason."""
        if reason not in self.said:
            self.said.add(reason)
            _log.warning("remote layers send their inputs again for the backward pass: %s", reason)


_known: WeakKeyDictionary[Connection, _Known] = WeakKeyDictionary()


def layer_forward(
    client: Client, arguments: GradientArguments, *, keep: bool
) -> tuple[Mapping[str, Array], Context | None]:
    """The traces in `return_` of a forward pass, and the context for its backward pass.

    The context is None if the server keeps none: it does not know such requests, or this one is too large for it.

    Args:
        arguments: those of `Client.gradients` without a gradient.
        keep: whether there is to be a context.

    Raises:
        TypeError, ValueError: an argument does not fit; nothing was sent.
        ExodusError: see its tree.
    """
    with client.connection.session.one_call():
        return _forward(client, arguments, keep)


def _forward(client: Client, arguments: GradientArguments, keep: bool) -> tuple[Mapping[str, Array], Context | None]:
    known = _known.setdefault(client.connection, _Known())
    request = gradient_request(arguments)
    params = {name: request.message.params[name] for name in ("neuron", "surrogate", "time_dim", "return")}
    encoded = encode(Message(params | {"method": request.method}, request.message.tensors), request.form)
    if keep and encoded.nbytes < known.refused_from:
        try:
            answer = client.connection.post("/v1/layers/forward", encoded)
        except NotFoundError as error:
            known.refused_from = 0
            known.say(f"this server has no layers in two requests ({error.detail})")
        except PayloadTooLargeError as error:
            known.refused_from = encoded.nbytes
            known.say(error.detail)
        else:
            neurons = Neurons.of(request.message)
            wanted = neurons.traces(params["return"])
            message, arrays = read_answer(answer, request.kind, client.connection.wire_limits, wanted)
            handle = message.params.get("context")
            if not isinstance(handle, str):
                raise InvalidResponseError(
                    f"the answer lacks a context: got {message.params!r:.200}", request_id=answer.request_id
                )
            return arrays, Context(handle, request.method, request.kind, neurons)
    result: Gradients = client.gradients(**arguments)
    return result.arrays, None


def layer_backward(
    client: Client,
    context: Context,
    *,
    grad_output: Array | None,
    grad_membrane: Array | None,
    wrt: Collection[Parameter],
) -> Gradients | None:
    """The gradients of a forward pass, from what the server kept of it; None if it no longer has that.

    At least one of `grad_output` (dL/dspikes) and `grad_membrane` (dL/dmembrane) is given, in the shape of the spikes.

    Raises:
        ExodusError: see its tree.
    """
    given = {"grad_output": grad_output, "grad_membrane": grad_membrane}
    tensors = [Tensor.of(name, array) for name, array in given.items() if array is not None]
    message = Message.of({"context": context.handle, "wrt": list(wrt)}, tensors)
    try:
        answer = client.connection.post("/v1/layers/backward", encode(message))
    except (GoneError, NotFoundError) as error:
        reason = f"the server no longer has the context of a forward pass ({error.code or error.status_code})"
        _known.setdefault(client.connection, _Known()).say(reason)
        return None
    return read_gradients(
        answer, context.kind, client.connection.wire_limits, context.method, context.neurons.gradients(wrt)
    )
