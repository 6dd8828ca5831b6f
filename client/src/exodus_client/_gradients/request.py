"""Message of a gradient request from the keywords of `Client.gradients`, checked before it is sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, cast, get_args

from exodus_client._checks import DECAY, integer, is_real, one_of, real, shown, unfit
from exodus_client._gradients.result import (
    GradientArguments,
    GradientRequest,
    Kind,
    Method,
    SpikeEncoding,
    Trace,
)
from exodus_client.neuron import ALIF, IF, LIF, SRM, STATES, CubaLIF, Neuron, Operands
from exodus_client.surrogate import Exponential, Surrogate
from exodus_client.wire import FLOATS, Form, Message, Tensor

_SOURCES = ("membrane", "input", "spikes", "weight", "psp")
_ALLOWED: dict[type[Neuron], tuple[set[str], ...]] = {
    **dict.fromkeys((LIF, IF, CubaLIF, ALIF), ({"membrane"}, {"input"}, {"spikes", "weight"})),
    SRM: ({"membrane"}, {"psp"}),
}
_GRADIENTS = ("grad_output", "grad_membrane")
_INITIAL = tuple(f"initial_{name}" for name in STATES)
#: Parameters that a neuron has if another is not None.
_PRESENT_WITH = {name: name for name in ("reset_by", "reset_to", "synapse_alpha")} | {"synapse_gain": "synapse_alpha"}
#: Parameters whose gradients depend on the trace of the synaptic current.
_OF_THE_CURRENT = ("synapse_alpha", "synapse_gain")


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
    if _takes_current(given, neuron, wrt):
        _expect_shape(_float_tensor("current", given, operands), shape, reference)
    kind = Kind.of([given[name] for name in _SOURCES if name in given])
    params: dict[str, Any] = {
        "neuron": neuron.params(operands) | _initial(given, operands),
        "surrogate": _surrogate(given.get("surrogate", Exponential())).params(),
        "time_dim": time_dim,
        "wrt": wrt,
        "return": traces,
    }
    if "output_filter" in given:
        params["output_filter"] = {"alpha": real("output_filter", given["output_filter"], DECAY)}
    if "result_dtype" in given:
        params["result_dtype"] = _result_dtype(given["result_dtype"], kind)
    method = cast(Method, one_of("method", given.get("method", "exodus"), get_args(Method)))
    form = cast(Form, one_of("form", given.get("form", "stream"), get_args(Form)))
    return GradientRequest(method, Message(params, operands.tensors), form, kind)


def _neuron(given: dict[str, Any]) -> Neuron:
    neuron = given.get("neuron")
    if not isinstance(neuron, Neuron):
        expected = "LIF(...), IF(...), CubaLIF(...), ALIF(...) or SRM(...)"
        raise unfit(TypeError, "neuron", expected, type(neuron).__name__)
    kind = type(neuron).__name__
    for name in _INITIAL:
        if name in given and name.removeprefix("initial_") not in neuron.states:
            having = [f"{cls.__name__}(...)" for cls in _ALLOWED if name.removeprefix("initial_") in cls.states]
            expected = " or ".join(filter(None, (", ".join(having[:-1]), having[-1])))
            raise unfit(TypeError, "neuron", f"{expected} with {name}", f"{kind}(...)")
    if not isinstance(neuron, SRM):
        if "reset_kernel" in given:
            raise unfit(TypeError, "neuron", "SRM(...) with reset_kernel", f"{kind}(...)")
        return neuron
    if (neuron.reset_kernel is None) != ("reset_kernel" in given):
        count = "none" if neuron.reset_kernel is None else "both"
        raise unfit(TypeError, "reset_kernel", "given once, in neuron=SRM(...) or as a keyword", count)
    return dataclasses.replace(neuron, reset_kernel=given.get("reset_kernel", neuron.reset_kernel))


def _source(given: dict[str, Any], neuron: Neuron, operands: Operands) -> tuple[str, tuple[int, ...]]:
    """The tensors that the membrane is or comes from: the name of the one to compare with, and the membrane's shape."""
    names = [name for name in _SOURCES if name in given]
    if set(names) not in _ALLOWED[type(neuron)]:
        allowed = "; or ".join(" and ".join(sorted(names)) for names in _ALLOWED[type(neuron)])
        got = " and ".join(names) or "none of them"
        raise unfit(TypeError, f"arrays for {type(neuron).__name__}", allowed, got)
    encoding = cast(SpikeEncoding, one_of("encoding", given.get("encoding", "auto"), get_args(SpikeEncoding)))
    if "spikes" not in given:
        return names[0], _float_tensor(names[0], given, operands).shape
    spikes = operands.add(_spikes(given["spikes"], encoding))
    weight = _float_tensor("weight", given, operands)
    if len(weight.shape) != 2 or len(spikes.shape) < 2 or spikes.shape[-1] != weight.shape[1]:
        expected = "of shape (N_out, N_in) for spikes of shape (..., N_in)"
        raise unfit(ValueError, "weight", expected, f"{list(weight.shape)} for {list(spikes.shape)}")
    return "spikes and weight", (*spikes.shape[:-1], weight.shape[0])


def _spikes(array: Any, encoding: SpikeEncoding) -> Tensor:
    if encoding != "auto":
        return Tensor.of("spikes", array, encoding)
    try:
        return Tensor.of("spikes", array, "bits")
    except ValueError:  # counts: several spikes a step
        return Tensor.of("spikes", array)


def _float_tensor(name: str, given: dict[str, Any], operands: Operands) -> Tensor:
    tensor = Tensor.of(name, given[name])
    if tensor.dtype not in FLOATS:
        raise unfit(TypeError, f"dtype of {name}", f"one of {', '.join(FLOATS)}", tensor.dtype)
    return operands.add(tensor)


def _expect_shape(tensor: Tensor, shape: tuple[int, ...], reference: str) -> None:
    if tensor.shape != shape:
        raise unfit(ValueError, tensor.name, f"of shape {list(shape)} to go with {reference}", list(tensor.shape))


def _time_dim(time_dim: Any, shape: tuple[int, ...], *, fixed_last: bool) -> int:
    axes = len(shape)
    if not axes:
        raise ValueError("membrane must have an axis of time, got shape []")
    found = integer("time_dim", time_dim, -axes, axes - 1)
    if fixed_last and found % axes == axes - 1:
        raise ValueError(f"time_dim must be another axis than the last of spikes, that of the neurons, got {found}")
    return found


def _wanted(given: dict[str, Any], neuron: Neuron) -> tuple[list[str], list[str]]:
    """Names of parameter gradients and traces to return; a request has to ask for something."""
    traces = _names("return_", given.get("return_", ()), get_args(Trace))
    if "state" in traces and (isinstance(neuron, SRM) or "membrane" in given):
        got = "SRM" if isinstance(neuron, SRM) else "membrane"
        raise unfit(TypeError, "return_", "without 'state' for SRM or a membrane", got)
    wrt = _names("wrt", given.get("wrt", ()), _parameters(neuron))
    if wrt and isinstance(neuron, SRM):
        raise unfit(TypeError, "wrt", "empty for SRM", ", ".join(wrt))
    for name in wrt:
        if name in _PRESENT_WITH and getattr(neuron, _PRESENT_WITH[name]) is None:
            raise unfit(ValueError, "wrt", "names of parameters that the neuron has", name)
    if "reset_by" in wrt and isinstance(neuron, LIF | IF) and neuron.reset == "value":
        raise unfit(ValueError, "wrt", "names of parameters that the neuron has", "reset_by with reset 'value'")
    if not any(name in given for name in _GRADIENTS):
        if "membrane" in given or not traces:
            advice = "without it a request runs forward, and needs return_ and no membrane"
            raise unfit(TypeError, "grad_output", "given", "nothing", advice)
        if wrt:
            raise unfit(TypeError, "wrt", "empty without grad_output and grad_membrane", ", ".join(wrt))
    return wrt, traces


def _parameters(neuron: Neuron) -> tuple[str, ...]:
    """Names of what a neuron has gradients of; those of LIF stand for SRM, which has none."""
    kind = LIF if isinstance(neuron, SRM) else type(neuron)
    states = (f"initial_{name}" for name in kind.states if name not in ("spikes", "refractory"))
    return (*kind.trainable, *states)


def _takes_current(given: dict[str, Any], neuron: Neuron, wrt: Collection[str]) -> bool:
    """True if the trace of the current goes with the request, as it must for some gradients on a membrane."""
    needed = [name for name in wrt if name in _OF_THE_CURRENT] if "membrane" in given else []
    if needed and "current" not in given:
        raise unfit(TypeError, "current", f"given with a membrane and wrt {', '.join(needed)}", "nothing")
    if "current" in given and not needed:
        expected = f"absent without a membrane and wrt {' or '.join(_OF_THE_CURRENT)}"
        raise unfit(TypeError, "current", expected, "an array")
    return bool(needed)


def _initial(given: dict[str, Any], operands: Operands) -> dict[str, Any]:
    steps = given.get("initial_refractory")
    if is_real(steps):
        number = real("initial_refractory", steps)
        if number < 0 or not number.is_integer():
            raise unfit(ValueError, "initial_refractory", "a whole number of steps, or an array of such", shown(steps))
    return {name: operands.value(name, given[name]) for name in _INITIAL if name in given}


def _surrogate(surrogate: Any) -> Surrogate:
    if not isinstance(surrogate, Surrogate) or type(surrogate) is Surrogate:
        expected = "Exponential() or another of exodus_client.surrogate"
        raise unfit(TypeError, "surrogate", expected, f"{surrogate!r:.80}")
    return surrogate


def _result_dtype(dtype: Any, kind: Kind) -> str:
    name = one_of("result_dtype", dtype, FLOATS)
    if name == "bfloat16" and kind.device is None:
        raise unfit(ValueError, "result_dtype", "a dtype of numpy", name, "send torch tensors, or ask for float32")
    return name


def _names(keyword: str, names: Collection[str], known: tuple[str, ...]) -> list[str]:
    if isinstance(names, str):
        raise unfit(TypeError, keyword, f"a collection of names, such as ({names!r},)", f"the string {names!r}")
    return [one_of(keyword, name, known) for name in dict.fromkeys(names)]
