"""From the keywords of `Client.gradients` to a message: everything that can be found wrong without asking the server."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from numbers import Real
from typing import Any, cast, get_args

from ._gradients import (
    FloatName,
    GradientArguments,
    GradientRequest,
    Kind,
    Method,
    Parameter,
    SpikeEncoding,
    Trace,
)
from .neuron import IF, LIF, SRM, Neuron, Operands
from .surrogate import Exponential, Surrogate
from .wire import Form, Message, Tensor

_SOURCES = ("membrane", "input", "spikes", "weight", "psp")
_ALLOWED: dict[type, tuple[set[str], ...]] = {
    LIF: ({"membrane"}, {"input"}, {"spikes", "weight"}),
    IF: ({"membrane"}, {"input"}, {"spikes", "weight"}),
    SRM: ({"membrane"}, {"psp"}),
}
_GRADIENTS = ("grad_output", "grad_membrane")
_INITIAL = ("initial_membrane", "initial_spikes")


def gradient_request(arguments: GradientArguments) -> GradientRequest:
    """Check the keywords, and make the message that they stand for.

    Raises:
        TypeError: a keyword is unknown, missing, of the wrong type, or does not go with the others.
        ValueError: a value or shape does not fit.
    """
    unknown = arguments.keys() - GradientArguments.__annotations__.keys()
    if unknown:
        raise TypeError(f"gradients() got an unexpected keyword argument {min(unknown)!r}")
    given: dict[str, Any] = {name: value for name, value in arguments.items() if value is not None}
    neuron = _neuron(given)
    operands = Operands()
    reference, shape = _source(given, neuron, operands)
    time_dim = _time_dim(given.get("time_dim", 1), shape, fixed_last="weight" in given)
    for name in _GRADIENTS:
        if name in given:
            _expect_shape(_float_tensor(name, given, operands), shape, reference)
    wrt, traces = _wanted(given, neuron)
    kind = Kind.of([value for value in (*given.values(), *vars_of(neuron)) if value is not None])
    params: dict[str, Any] = {
        "neuron": neuron.params(operands) | _initial(given, neuron, operands),
        "surrogate": _surrogate(given.get("surrogate", Exponential())).params(),
        "time_dim": time_dim,
        "wrt": wrt,
        "return": traces,
    }
    if "output_filter" in given:
        params["output_filter"] = {"alpha": _finite("output_filter", given["output_filter"])}
    if "result_dtype" in given:
        params["result_dtype"] = _result_dtype(given["result_dtype"], kind)
    method = cast(Method, _choice("method", given.get("method", "exodus"), get_args(Method)))
    form = cast(Form, _choice("form", given.get("form", "stream"), get_args(Form)))
    return GradientRequest(method, Message(params, operands.tensors), form, kind)
