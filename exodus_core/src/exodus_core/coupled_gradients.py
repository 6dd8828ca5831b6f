"""Gradients of neurons with coupled variables from a membrane trace that exists (section 9 of docs/equations.md).

The adaptation, the spikes and the refractory steps follow from the membrane, and `exodus::coupled_traces` computes
them. The synaptic current does not, where the membrane is clipped, held or does not see it: gradients of what it is
multiplied by take its trace.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from exodus_core import arguments, functional, ops, reference
from exodus_core.coupled import (
    CoupledOptions,
    CoupledSettings,
    check_initial_current,
    coupled_arguments,
    parameter_rows_gradient,
    required_decay,
    with_defaults,
)
from exodus_core.errors import ArgumentError
from exodus_core.ops import (
    COUPLED_PARAMETERS,
    COUPLED_STATES,
    COUPLING_ADAPTATION,
    COUPLING_RAISES,
    COUPLING_SYNAPSE,
    KEPT_ADAPTATION,
    KEPT_REFRACTORY,
    KEPT_SPIKES,
)
from exodus_core.pieces.carried import refuse_in_pieces
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate
from exodus_core.trace_gradients import bptt_gradients, check_trace, wanted_names

__all__ = [
    "AlifGradient",
    "CubaLifGradient",
    "alif_gradient",
    "cuba_lif_gradient",
    "current_trace",
    "neurons_gradients",
    "spikes_of_trace",
]

#: Parameters whose gradients are sums over the trace of the current.
OF_THE_CURRENT = ("synapse_alpha", "synapse_gain")


class CubaLifGradient(NamedTuple):
    """dL/d(argument) of `cuba_lif`; None if it was not asked for."""

    input: Tensor
    alpha: Tensor | None = None
    synapse_alpha: Tensor | None = None
    synapse_gain: Tensor | None = None
    threshold: Tensor | None = None
    reset_by: Tensor | None = None
    reset_to: Tensor | None = None
    initial_membrane: Tensor | None = None
    initial_current: Tensor | None = None


class AlifGradient(NamedTuple):
    """dL/d(argument) of `alif`; None if it was not asked for."""

    input: Tensor
    alpha: Tensor | None = None
    adapt_alpha: Tensor | None = None
    adapt_by: Tensor | None = None
    adapt_membrane: Tensor | None = None
    adapt_threshold: Tensor | None = None
    adapt_current: Tensor | None = None
    synapse_alpha: Tensor | None = None
    synapse_gain: Tensor | None = None
    threshold: Tensor | None = None
    reset_by: Tensor | None = None
    reset_to: Tensor | None = None
    initial_membrane: Tensor | None = None
    initial_current: Tensor | None = None
    initial_adaptation: Tensor | None = None


def current_trace(
    x: Tensor, synapse_alpha: float | Tensor, *, initial_current: float | Tensor | None = None, time_dim: int = 1
) -> Tensor:
    """The synaptic current of `cuba_lif` and `alif`, i[t] = synapse_alpha i[t-1] + x[t]. Differentiable.

    Args:
        x, synapse_alpha, initial_current, time_dim: as of `cuba_lif`.

    Returns:
        i, with the shape and dtype of x, as `cuba_lif_gradient` and `alif_gradient` take it.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape.
    """
    refuse_in_pieces("exodus_core.current_trace", "its state is the current of its last step: leave it out")
    time_dim = arguments.check_signal("x", x, time_dim)
    arguments.check_decay("synapse_alpha", synapse_alpha)
    arguments.parameter("synapse_alpha", synapse_alpha, x, time_dim)
    arguments.initial_state("initial_current", initial_current, x, time_dim)
    # It is the membrane of a neuron that is never reset.
    return functional.lif(x, synapse_alpha, reset="none", initial_membrane=initial_current, time_dim=time_dim)[1]


def spikes_of_trace(membrane: Tensor, alpha: float | Tensor, **options: Unpack[CoupledOptions]) -> Tensor:
    """The spikes of a known membrane: 1 where it reaches the threshold and no refractory period holds it.

    Of float16 and bfloat16 the membrane has been rounded: with an adapt_membrane, the spikes are then those of a neuron
    that senses the rounded one, and a few may differ from those that the neuron fired.

    Args:
        membrane: u, as `lif`, `cuba_lif` or `alif` return it.
        alpha, options: as of that function.

    Returns:
        s, with the shape and dtype of membrane, without a graph.

    Raises:
        TypeError, ValueError: as of that function, or an option is unknown.
    """
    given = with_defaults(options)
    given["time_dim"] = arguments.check_signal("membrane", membrane, given["time_dim"])
    with torch.no_grad():
        return _traces(membrane.contiguous(), *coupled_arguments(membrane, alpha, given), KEPT_SPIKES)[0]


def _traces(
    membrane: Tensor, settings: CoupledSettings, parameters: Tensor | None, initial: Tensor | None, kept: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, adaptation and refractory steps of a membrane trace, those that are kept."""
    return ops.coupled_traces(
        membrane,
        settings.numbers,
        parameters,
        initial,
        settings.max_spikes,
        settings.refractory,
        settings.reset,
        settings.couplings,
        kept,
        settings.time_dim,
    )


def _check_wanted(wanted: Collection[str], given: CoupledOptions) -> None:
    """Refuses gradients by arguments that, as tensors, the neuron would not take."""
    if "synapse_gain" in wanted and given["synapse_alpha"] is None:
        raise ArgumentError("wrt", "without synapse_gain where synapse_alpha is None", "synapse_gain")
    if "adapt_threshold" in wanted and given["max_spikes"] > 1:
        raise ArgumentError("wrt", "without adapt_threshold where max_spikes is more than 1", "adapt_threshold")


def _check_current(current: Tensor | None, given: CoupledOptions, wanted: Collection[str], membrane: Tensor) -> None:
    has_synapse = given["synapse_alpha"] is not None
    if current is None:
        missing = [name for name in OF_THE_CURRENT if has_synapse and name in wanted]
        if missing:
            expected = f"the trace of the synaptic current, for the gradient of {' and '.join(missing)}"
            raise ArgumentError("current", expected, None, "`current_trace` computes it from the input")
        return
    if not has_synapse:
        raise ArgumentError("current", "None without a synapse_alpha", "a tensor")
    arguments.check_like("current", current, "membrane", membrane)


def neurons_gradients(
    fields: Sequence[str],
    membrane: Tensor,
    grad_spikes: Tensor,
    grad_membrane: Tensor | None,
    alpha: float | Tensor,
    current: Tensor | None,
    wrt: Collection[str] | None,
    **options: Unpack[CoupledOptions],
) -> dict[str, Tensor]:
    """The gradients by name: that of the input, and those in `wrt`.

    Args:
        fields: names that there may be in `wrt`.
        membrane, grad_spikes, grad_membrane, alpha, current, wrt, options: as of `alif_gradient`.

    Raises:
        ArgumentTypeError, ArgumentError: an argument has the wrong type, value or shape.
    """
    given = with_defaults(options)
    given["time_dim"] = check_trace(membrane, grad_spikes, grad_membrane, given["time_dim"])
    with torch.no_grad():
        chosen = coupled_arguments(membrane, alpha, given)
    everything: dict[str, Any] = {"alpha": alpha, **given}
    values = {name: everything[name] for name in fields[1:]}
    wanted = wanted_names(wrt, fields, values)
    _check_wanted(wanted, given)
    _check_current(current, given, wanted, membrane)
    if given["method"] == "bptt":
        more = given if current is None else {**given, "current": current}
        return bptt_gradients(reference.coupled_on_trace, membrane, grad_spikes, grad_membrane, values, wanted, more)
    if not wanted:
        return {"input": _backward(membrane, grad_spikes, grad_membrane, None, given, chosen, False)[0]}
    with torch.no_grad():
        # Numbers become tensors: a term whose factor is the number 0 is left out.
        asked = {name: _as_tensor(values[name], membrane) for name in wanted}
        taken: Any = {**everything, **asked}
        chosen = coupled_arguments(membrane, taken.pop("alpha"), taken)
        grad_input, lanes = _backward(membrane, grad_spikes, grad_membrane, current, given, chosen, True)
        return {"input": grad_input, **_by_name(lanes, asked, given, membrane, chosen[1])}


def _as_tensor(value: float | Tensor | None, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor(0.0 if value is None else value, dtype=ops.compute_dtype(like.dtype), device=like.device)


def _by_name(
    lanes: Tensor, asked: Mapping[str, Tensor], given: CoupledOptions, membrane: Tensor, parameters: Tensor | None
) -> dict[str, Tensor]:
    """The gradients of lanes, summed to the shapes of the arguments in the order of autograd, whose bits they have.

    Autograd itself does not compute them, since torch.vmap does not let it.
    """
    time_dim, states = given["time_dim"], len(COUPLED_STATES)
    outer, inner = membrane.shape[:time_dim], membrane.shape[time_dim + 1 :]
    rows = {} if parameters is None else _parameter_rows(lanes[states:], parameters)
    found: dict[str, Tensor] = {}
    for name, value in asked.items():
        if name.startswith("initial_"):
            row = lanes[COUPLED_STATES.index(name.removeprefix("initial_"))].reshape((*outer, *inner))
            found[name] = row.to(value.dtype).sum_to_size(value.shape)
            continue
        uses = [_to_argument(rows[row], value, inner) for row in _rows_of(name, given)]
        found[name] = sum(uses[1:], uses[0]) if uses else torch.zeros_like(value)
    return found


def _parameter_rows(lanes: Tensor, parameters: Tensor) -> dict[str, Tensor]:
    return dict(zip(COUPLED_PARAMETERS, parameter_rows_gradient(lanes, parameters), strict=True))


def _rows_of(name: str, given: CoupledOptions) -> list[str]:
    """The rows of COUPLED_PARAMETERS that an argument is in, as `coupled_arguments` fills them."""
    subtracted = "threshold" if given["reset_by"] is None else "reset_by"
    in_the_reset = {"value": "reset_to", "subtract": subtracted}.get(given["reset"])
    own = [name] if name in COUPLED_PARAMETERS and name != "reset_by" else []
    return own + (["reset_by"] if name == in_the_reset else [])


def _to_argument(row: Tensor, value: Tensor, inner: torch.Size) -> Tensor:
    """A gradient with one element, or one for each inner index, as that of the argument."""
    if value.numel() == 1:
        return row.sum_to_size(1).reshape(value.shape).to(value.dtype)
    return row.to(value.dtype).reshape(inner).sum_to_size(value.shape)


def _backward(
    membrane: Tensor,
    grad_spikes: Tensor,
    grad_membrane: Tensor | None,
    current: Tensor | None,
    given: CoupledOptions,
    chosen: tuple[CoupledSettings, Tensor | None, Tensor | None],
    with_lanes: bool,
) -> tuple[Tensor, Tensor]:
    """dL/dx, and the gradients of the states and the parameters of each lane."""
    settings, parameters, initial = chosen
    kept = 0
    if settings.couplings & COUPLING_RAISES or (with_lanes and settings.couplings & COUPLING_ADAPTATION):
        kept |= KEPT_ADAPTATION
    if settings.refractory or given["initial_refractory"] is not None:
        kept |= KEPT_REFRACTORY
    adaptation = held = None
    with torch.no_grad():
        membrane = membrane.contiguous()
        if kept:
            _, adaptation, held = _traces(membrane, settings, parameters, initial, kept)
        if current is None and with_lanes and settings.couplings & COUPLING_SYNAPSE:
            current = membrane  # stands in: nobody reads the sums over the current
        return ops.coupled_backward(
            membrane,
            None if current is None else current.contiguous(),
            adaptation if kept & KEPT_ADAPTATION else None,
            held if kept & KEPT_REFRACTORY else None,
            grad_spikes.contiguous(),
            None if grad_membrane is None else grad_membrane.contiguous(),
            None,
            settings.numbers,
            parameters,
            initial,
            settings.max_spikes,
            settings.refractory,
            settings.reset,
            settings.couplings,
            0,
            settings.surrogate,
            settings.slope,
            settings.scale,
            settings.method,
            with_lanes,
            settings.time_dim,
        )


def cuba_lif_gradient(
    membrane: Tensor,
    grad_spikes: Tensor,
    alpha: float | Tensor,
    synapse_alpha: float | Tensor,
    *,
    synapse_gain: float | Tensor = 1.0,
    synapse_delayed: bool = False,
    threshold: float | Tensor = 1.0,
    reset: str = "subtract",
    reset_by: float | Tensor | None = None,
    decay_reset: bool = False,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    method: str = "exodus",
    initial_membrane: float | Tensor | None = None,
    initial_spikes: float | Tensor | None = None,
    initial_current: float | Tensor | None = None,
    initial_refractory: float | Tensor | None = None,
    min_membrane: float | Tensor | None = None,
    max_spikes: int = 1,
    reset_to: float | Tensor | None = None,
    detach_reset: bool = False,
    refractory: int = 0,
    time_dim: int = 1,
    grad_membrane: Tensor | None = None,
    current: Tensor | None = None,
    wrt: Collection[str] | None = None,
) -> CubaLifGradient:
    """Gradients of second-order LIF neurons whose membrane is known.

    Args:
        membrane: u, as `cuba_lif` returns it, shape (outer..., time, inner...), float32, float64, float16 or bfloat16.
        grad_spikes: g = dL/ds, with the shape and dtype of membrane.
        grad_membrane: h = dL/du by paths that do not pass through the spikes, likewise, or None.
        current: i, as `current_trace` computes it from the input, likewise. It is read for the gradients of
            synapse_alpha and synapse_gain, which need it, since the membrane does not say what it is.
        wrt: gradients to compute besides that of the input: names of the fields of the result. None means the
            arguments that are tensors.

    The other arguments are those of `cuba_lif`.

    Returns:
        CubaLifGradient: dL/dx with the shape and dtype of membrane; a parameter's gradient with its shape and dtype,
        0-d if the parameter is a float; None if not asked for. If reset_by is None, the gradient of the threshold
        includes it.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape, or `current` is needed.
    """
    options = dict(locals())
    required_decay("synapse_alpha", synapse_alpha)
    return CubaLifGradient(**neurons_gradients(CubaLifGradient._fields, **options))


def alif_gradient(
    membrane: Tensor,
    grad_spikes: Tensor,
    alpha: float | Tensor,
    adapt_alpha: float | Tensor,
    *,
    adapt_by: float | Tensor = 1.0,
    adapt_membrane: float | Tensor = 0.0,
    adapt_threshold: float | Tensor = 0.0,
    adapt_current: float | Tensor = 0.0,
    synapse_alpha: float | Tensor | None = None,
    synapse_gain: float | Tensor = 1.0,
    synapse_delayed: bool = False,
    threshold: float | Tensor = 1.0,
    reset: str = "subtract",
    reset_by: float | Tensor | None = None,
    decay_reset: bool = False,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    method: str = "exodus",
    initial_membrane: float | Tensor | None = None,
    initial_spikes: float | Tensor | None = None,
    initial_current: float | Tensor | None = None,
    initial_adaptation: float | Tensor | None = None,
    initial_refractory: float | Tensor | None = None,
    min_membrane: float | Tensor | None = None,
    max_spikes: int = 1,
    reset_to: float | Tensor | None = None,
    detach_reset: bool = False,
    refractory: int = 0,
    time_dim: int = 1,
    grad_membrane: Tensor | None = None,
    current: Tensor | None = None,
    wrt: Collection[str] | None = None,
) -> AlifGradient:
    """Gradients of adaptive LIF neurons whose membrane is known.

    The adaptation is computed from the membrane. Of float16 and bfloat16 the membrane has been rounded: with an
    adapt_membrane, the gradients are then those of a neuron that senses the rounded one.

    Args:
        membrane: u, as `alif` returns it, shape (outer..., time, inner...), float32, float64, float16 or bfloat16.
        grad_spikes, grad_membrane, current, wrt: as of `cuba_lif_gradient`.

    The other arguments are those of `alif`.

    Returns:
        AlifGradient, as CubaLifGradient of `cuba_lif_gradient`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape, or `current` is needed.
    """
    options = dict(locals())
    required_decay("adapt_alpha", adapt_alpha)
    check_initial_current(initial_current, synapse_alpha)
    return AlifGradient(**neurons_gradients(AlifGradient._fields, **options))
