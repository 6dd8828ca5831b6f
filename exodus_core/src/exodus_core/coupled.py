"""LIF neurons whose membrane is coupled with a synaptic current, an adaptation variable and a refractory period.

`cuba_lif` and `alif` are the public functions; `neurons` computes both, and those neurons of `lif` that need these
operators. Equations: section 9 of docs/equations.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from exodus_core import arguments, ops, reference
from exodus_core.arguments import LIF_DEFAULTS, LifOptions
from exodus_core.autograd import Operator, is_differentiated
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.once_differentiable import once_differentiable
from exodus_core.ops import (
    COUPLED_PARAMETERS,
    COUPLED_STATES,
    COUPLING_ADAPTATION,
    COUPLING_DELAYED,
    COUPLING_INHIBITS,
    COUPLING_RAISES,
    COUPLING_SENSES,
    COUPLING_SYNAPSE,
    COUPLING_TIED,
    KEPT_ADAPTATION,
    KEPT_CURRENT,
    KEPT_REFRACTORY,
)
from exodus_core.pieces.carried import refuse_in_pieces
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate

__all__ = ["CoupledOptions", "alif", "cuba_lif", "neurons"]


class Synapse(TypedDict, total=False):
    """The keyword arguments of a synaptic current."""

    synapse_alpha: float | Tensor | None
    synapse_gain: float | Tensor
    synapse_delayed: bool


class Adaptation(TypedDict, total=False):
    """The keyword arguments of an adaptation variable."""

    adapt_alpha: float | Tensor | None
    adapt_by: float | Tensor
    adapt_membrane: float | Tensor
    adapt_threshold: float | Tensor
    adapt_current: float | Tensor


class CoupledOptions(LifOptions, Synapse, Adaptation, total=False):
    """All keyword arguments of `neurons`."""

    initial_current: float | Tensor | None
    initial_adaptation: float | Tensor | None
    initial_refractory: float | Tensor | None


DEFAULTS: CoupledOptions = {
    **LIF_DEFAULTS,  # but for bound_after_reset
    "synapse_alpha": None,
    "synapse_gain": 1.0,
    "synapse_delayed": False,
    "adapt_alpha": None,
    "adapt_by": 1.0,
    "adapt_membrane": 0.0,
    "adapt_threshold": 0.0,
    "adapt_current": 0.0,
    "initial_current": None,
    "initial_adaptation": None,
    "initial_refractory": None,
}
del DEFAULTS["bound_after_reset"]


def with_defaults(options: CoupledOptions) -> CoupledOptions:
    """All keyword arguments of `neurons`, of those that are given and the defaults of the others.

    Raises:
        ArgumentTypeError: a name is unknown.
        ArgumentError: they have a bound after the reset.
    """
    others: dict[str, Any] = dict(options)
    after_reset = others.pop("bound_after_reset", False)
    arguments.check_flag("bound_after_reset", after_reset)
    if after_reset:
        arguments.refuse_bound_after_reset()
    unknown = others.keys() - DEFAULTS.keys()
    if unknown:
        raise ArgumentTypeError("options", f"names of {', '.join(DEFAULTS)}", ", ".join(sorted(unknown)))
    return {**DEFAULTS, **others}  # type: ignore[typeddict-item]


class CoupledSettings(NamedTuple):
    """The plain numbers of a call, as the operators take them."""

    numbers: tuple[float, ...]  # in the order of COUPLED_PARAMETERS
    max_spikes: float
    refractory: int
    reset: int
    couplings: int
    kept: int  # the traces that the forward pass keeps
    followed: int  # those that the backward pass computes from the membrane
    surrogate: int
    slope: float
    scale: float
    method: int
    time_dim: int


class Coupled(Operator):
    """spikes, membrane and the last state; behind them the traces that the backward pass needs, without gradients.

    `parameters` is (COUPLED_PARAMETERS, 1 or inner), or None: the numbers of the settings; `initial` a state
    (COUPLED_STATES, lanes), or None: zeros.
    """

    @staticmethod
    def forward(
        x: Tensor, parameters: Tensor | None, initial: Tensor | None, settings: CoupledSettings
    ) -> tuple[Tensor, ...]:
        spikes, membrane, current, adaptation, held, last = _forward(x, parameters, initial, settings)
        return spikes, membrane, last, current, adaptation, held

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, parameters, initial, settings = inputs
        _, membrane, _, *traces = output
        ctx.save_for_backward(membrane, *traces, parameters, initial)
        ctx.settings = settings
        ctx.mark_non_differentiable(*traces)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_spikes: Tensor | None, grad_membrane: Tensor | None, grad_last: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        settings: CoupledSettings = ctx.settings
        membrane, current, adaptation, held, parameters, initial = ctx.saved_tensors
        wants_parameters, wants_initial = ctx.needs_input_grad[1:3]
        if grad_last is not None:
            grad_last = grad_last.contiguous()
            rows = grad_last.view(len(COUPLED_STATES), -1)
            grad_membrane = _with_last(grad_membrane, rows[0], membrane, settings.time_dim)
            grad_spikes = _with_last(grad_spikes, rows[1], membrane, settings.time_dim)
        grad_input, lanes = ops.coupled_backward(
            membrane,
            *(trace if settings.kept & bit else None for trace, bit in ((current, 1), (adaptation, 2), (held, 4))),
            None if grad_spikes is None else ops.contiguous(grad_spikes),
            None if grad_membrane is None else ops.contiguous(grad_membrane),
            grad_last,
            settings.numbers,
            parameters,
            initial,
            settings.max_spikes,
            settings.refractory,
            settings.reset,
            settings.couplings,
            settings.followed,
            settings.surrogate,
            settings.slope,
            settings.scale,
            settings.method,
            wants_parameters or wants_initial,
            settings.time_dim,
        )
        grad_parameters = grad_initial = None
        states = len(COUPLED_STATES)
        if wants_parameters:
            grad_parameters = parameter_rows_gradient(lanes[states:], parameters)
        if wants_initial:
            grad_initial = lanes[:states].reshape(initial.shape)
        return grad_input, grad_parameters, grad_initial, None


def _forward(
    x: Tensor, parameters: Tensor | None, initial: Tensor | None, settings: CoupledSettings
) -> tuple[Tensor, ...]:
    return ops.coupled_forward(
        ops.contiguous_or_constant(x, settings.time_dim),
        settings.numbers,
        parameters,
        initial,
        settings.max_spikes,
        settings.refractory,
        settings.reset,
        settings.couplings,
        settings.kept,
        settings.time_dim,
    )


def _with_last(grad: Tensor | None, row: Tensor, like: Tensor, time_dim: int) -> Tensor:
    """The gradient of a trace with that of the last state, one element a lane, added at its last step."""
    total = torch.zeros_like(like) if grad is None else grad.clone(memory_format=torch.contiguous_format)
    if like.shape[time_dim]:
        last = total.select(time_dim, -1)
        last.add_(row.view(last.shape))
    return total


def parameter_rows_gradient(lanes: Tensor, parameters: Tensor) -> Tensor:
    """Sums the gradients of lanes, (parameters, outer, inner), to the shape of the parameters, in float64."""
    total = lanes.sum(1, dtype=torch.float64)
    if parameters.shape[1] == 1:
        total = total.sum(1, keepdim=True)
    return total.to(parameters.dtype)


def _stacked(values: Sequence[tuple[float, Tensor | None]], x: Tensor, inner: int) -> Tensor | None:
    """The parameters as one tensor, made by differentiable operations; None if all are numbers."""
    tensors = [tensor for _, tensor in values if tensor is not None]
    if not tensors:
        return None
    columns = inner if any(tensor.numel() != 1 for tensor in tensors) else 1
    dtype = ops.compute_dtype(x.dtype)
    rows = [
        x.new_full((columns,), number, dtype=dtype) if tensor is None else tensor.reshape(-1).expand(columns)
        for number, tensor in values
    ]
    return torch.stack(rows)


def _initial(given: Mapping[str, float | Tensor | None], x: Tensor, time_dim: int) -> Tensor | None:
    """The state before the first step, (COUPLED_STATES, lanes), made by differentiable operations; None: zeros."""
    rows = [arguments.initial_state(name, value, x, time_dim) for name, value in given.items()]
    if all(row is None for row in rows):
        return None
    lanes = x.shape[:time_dim].numel() * x.shape[time_dim + 1 :].numel()
    zeros = x.new_zeros((lanes,), dtype=ops.compute_dtype(x.dtype))
    return torch.stack([zeros if row is None else row.reshape(-1) for row in rows])


def required_decay(name: str, value: float | Tensor | None) -> float | Tensor:
    """A decay that must not be None. Raises ArgumentTypeError."""
    if value is None:
        raise ArgumentTypeError(name, "a float or a float tensor", "NoneType")
    return value


#: Arguments of a variable, the decay without which there is none, and their values then.
_VARIABLES = tuple(
    (decay, article, tuple((name, value) for name, value in DEFAULTS.items() if name in kind.__annotations__), state)
    for kind, decay, article, state in (
        (Synapse, "synapse_alpha", "a", "initial_current"),
        (Adaptation, "adapt_alpha", "an", "initial_adaptation"),
    )
)


def check_variables(given: CoupledOptions) -> None:
    """Refuses arguments that do not go with the variables of neurons. A state may be a tensor, which layers hand on.

    Args:
        given: all arguments of `neurons`.

    Raises:
        ArgumentError: an argument of a variable that there is none of; several spikes with a raised threshold.
    """
    values: Mapping[str, Any] = given
    for decay, article, expected, state in _VARIABLES:
        if values[decay] is not None:
            continue
        for name, value in expected:
            if isinstance(values[name], Tensor) or values[name] != value:
                shown = int(value) if isinstance(value, float) else value
                raise ArgumentError(name, f"{shown} without {article} {decay}", _named(values[name]))
        if not isinstance(values[state], Tensor) and values[state]:
            raise ArgumentError(state, f"None without {article} {decay}", values[state])
    if given["adapt_alpha"] is not None and not is_zero(given["adapt_threshold"]) and given["max_spikes"] > 1:
        raise ArgumentError(
            "max_spikes", "1 with adapt_threshold, which may lower the threshold to 0", given["max_spikes"]
        )


def check_initial_current(initial_current: float | Tensor | None, synapse_alpha: float | Tensor | None) -> None:
    """Refuses the state of a synaptic current that there is none of."""
    if initial_current is not None and synapse_alpha is None:
        raise ArgumentError("initial_current", "None without a synapse_alpha", _named(initial_current))


def _named(value: Any) -> Any:
    return "a tensor" if isinstance(value, Tensor) else value


def _check_waiting(steps: float | Tensor | None) -> None:
    """Checks the steps that are left of a refractory period. A tensor is not read."""
    if steps is None or isinstance(steps, Tensor):
        return
    arguments.check_value("initial_refractory", steps)
    if steps > arguments.LARGEST_REFRACTORY:
        raise ArgumentError("initial_refractory", f"at most {arguments.LARGEST_REFRACTORY}", steps)
    if not (steps >= 0 and steps == int(steps)):
        raise ArgumentError("initial_refractory", "a whole number of steps, or a tensor of such", steps)


def is_zero(factor: float | Tensor) -> bool:
    """True for the number 0, whose term is left out."""
    return not isinstance(factor, Tensor) and factor == 0


def coupled_arguments(
    x: Tensor, alpha: float | Tensor, given: CoupledOptions
) -> tuple[CoupledSettings, Tensor | None, Tensor | None]:
    """The arguments of `neurons` as the operators take them: settings, parameters and the initial state."""
    time_dim, method, surrogate = given["time_dim"], given["method"], given["surrogate"]
    max_spikes, reset, reset_by = given["max_spikes"], given["reset"], given["reset_by"]
    arguments.check_method(method)
    arguments.check_surrogate(surrogate)
    reset_number = arguments.reset_code(reset, given["decay_reset"], max_spikes)
    arguments.check_reset_to(reset, given["reset_to"])
    arguments.check_flag("detach_reset", given["detach_reset"])
    arguments.check_flag("synapse_delayed", given["synapse_delayed"])
    arguments.check_threshold(given["threshold"], max_spikes)
    refractory = arguments.refractory_steps(given["refractory"])
    if reset_by is not None:
        arguments.check_value("reset_by", reset_by)
    check_variables(given)
    _check_waiting(given["initial_refractory"])
    couplings = 0
    subtract = given["threshold"] if reset_by is None else reset_by
    values: dict[str, float | Tensor | None] = {
        "alpha": alpha,
        "threshold": given["threshold"],
        "reset_by": {"value": given["reset_to"], "subtract": subtract}.get(reset, 0.0),
        "min_membrane": -math.inf if given["min_membrane"] is None else given["min_membrane"],
    }
    if given["synapse_alpha"] is not None:
        arguments.check_decay("synapse_alpha", given["synapse_alpha"])
        couplings |= COUPLING_SYNAPSE | (COUPLING_DELAYED if given["synapse_delayed"] else 0)
        values |= {name: given[name] for name in ("synapse_alpha", "synapse_gain")}
    if given["adapt_alpha"] is not None:
        arguments.check_decay("adapt_alpha", given["adapt_alpha"])
        couplings |= COUPLING_ADAPTATION
        names = ("adapt_alpha", "adapt_membrane", "adapt_by", "adapt_current", "adapt_threshold")
        values |= {name: given[name] for name in names}  # type: ignore[literal-required]
        couplings |= 0 if is_zero(given["adapt_membrane"]) else COUPLING_SENSES
        couplings |= 0 if is_zero(given["adapt_current"]) else COUPLING_INHIBITS
        if not is_zero(given["adapt_threshold"]):
            couplings |= COUPLING_RAISES | (COUPLING_TIED if reset_by is None and reset == "subtract" else 0)
    arguments.check_alpha(alpha)
    found = []
    for name in COUPLED_PARAMETERS:
        value = values.get(name, 0.0)
        assert value is not None
        positive = name == "threshold" and max_spikes > 1
        shown = "reset_to" if name == "reset_by" and reset == "value" else name
        found.append(arguments.parameter(shown, value, x, time_dim, positive=positive))
    inner = x.shape[time_dim + 1 :].numel()
    parameters = _stacked(found, x, inner)
    initial = _initial(
        {f"initial_{name}": given[f"initial_{name}"] for name in COUPLED_STATES},  # type: ignore[literal-required]
        x,
        time_dim,
    )
    kept = 0
    if is_differentiated(x, parameters, initial):
        if couplings & COUPLING_SYNAPSE and is_differentiated(parameters, initial):
            kept |= KEPT_CURRENT
        if couplings & COUPLING_ADAPTATION and (couplings & COUPLING_RAISES or is_differentiated(parameters, initial)):
            kept |= KEPT_ADAPTATION
        if refractory or given["initial_refractory"] is not None:
            kept |= KEPT_REFRACTORY
    followed = kept & (KEPT_ADAPTATION | KEPT_REFRACTORY) if ops.follows_membrane(x, couplings) else 0
    settings = CoupledSettings(
        tuple(number for number, _ in found),
        float(max_spikes),
        refractory,
        reset_number,
        couplings,
        kept & ~followed,
        followed,
        surrogate.code,
        float(surrogate.slope),
        float(surrogate.scale),
        arguments.method_number(method, given["detach_reset"]),
        time_dim,
    )
    return settings, parameters, initial


def _in_graph(output: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """The output of a loop, with a gradient by every source: 0 where the loop did not read it, as that of exodus."""
    chosen = torch.ones((), dtype=torch.bool, device=output.device)
    for source in sources:
        output = torch.where(chosen, output, source.sum().to(output.dtype))
    return output


def neurons(x: Tensor, alpha: float | Tensor, **options: Unpack[CoupledOptions]) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, membrane, and the state after the last step.

    Args:
        x, alpha, options: as of `lif`, `cuba_lif` and `alif`.

    Returns:
        (spikes, membrane, last); last has one row for each of COUPLED_STATES, (5, lanes), float32 or float64, or the
        initial state where there is no step.

    Raises:
        ArgumentTypeError, ArgumentError: an argument has the wrong type, value or shape.
    """
    given = with_defaults(options)
    time_dim = arguments.check_signal("x", x, given["time_dim"])
    given["time_dim"] = time_dim
    settings, parameters, initial = coupled_arguments(x, alpha, given)
    if given["method"] == "bptt":
        spikes, membrane, last = reference.coupled_lif(x, alpha, **given)  # type: ignore[misc]
        sources = [source for source in (x, parameters, initial) if source is not None and is_differentiated(source)]
        return _in_graph(spikes, sources), _in_graph(membrane, sources), last
    if is_differentiated(x, parameters, initial):
        spikes, membrane, last, *_ = Coupled.apply(x, parameters, initial, settings)  # type: ignore[no-untyped-call]
    else:
        spikes, membrane, _, _, _, last = _forward(x, parameters, initial, settings)
    last = last.view(len(COUPLED_STATES), -1)
    if x.shape[time_dim] == 0 and initial is not None:
        last = initial
    return spikes, membrane, last


def cuba_lif(
    x: Tensor,
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
) -> tuple[Tensor, Tensor]:
    """Second-order LIF neurons, current-based: the input drives a synaptic current, the current the membrane.

    One pass forward, one backward, differentiable in every float tensor argument::

        i[t] = synapse_alpha i[t-1] + x[t]
        u[t] = alpha u[t-1] + synapse_gain i[t], and the reset      synapse_delayed=False: sinabs, snnTorch's Synaptic
        u[t] = alpha u[t-1] + synapse_gain i[t-1], and the reset    synapse_delayed=True: norse's LSNN

    Args:
        x: weighted input, shape (outer..., time, inner...), as of `lif`.
        alpha: decay of the membrane per step, exp(-dt/tau_mem), in [0, 1].
        synapse_alpha: decay of the current per step, exp(-dt/tau_syn), in [0, 1].
        synapse_gain: factor of the current in the membrane; 1 - alpha, say.
        synapse_delayed: the membrane sees the current of the step before.
        initial_current: i[-1]; None means 0. As initial_membrane of `lif`.
        initial_refractory: steps of the refractory period that are left before the first step, at most 2**24; None
            means 0.

    The other arguments are those of `lif`, and so are the errors. synapse_alpha and synapse_gain may be tensors that
    broadcast over the inner dimensions.

    Returns:
        (spikes, membrane), both with the shape and dtype of x.
    """
    refuse_in_pieces("exodus_core.cuba_lif", "use a layer of exodus_core.nn")
    options = dict(locals())
    del options["x"], options["alpha"]
    required_decay("synapse_alpha", synapse_alpha)
    return neurons(x, alpha, **options)[:2]


def alif(
    x: Tensor,
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
) -> tuple[Tensor, Tensor]:
    """Adaptive LIF neurons: spikes, and the membrane, drive a variable that raises the threshold or inhibits.

    One pass forward, one backward, differentiable in every float tensor argument::

        w[t] = adapt_alpha w[t-1] + adapt_membrane u[t-1] + adapt_by s[t-1]
        u[t] = alpha u[t-1] + x[t] - adapt_current w[t], and the reset
        s[t] = 1 where u[t] >= threshold + adapt_threshold w[t]

    With adapt_threshold alone these are the neurons of LSNN and sinabs' ALIF; with adapt_current and adapt_membrane
    adLIF. With a synapse_alpha, x[t] is replaced by the current of `cuba_lif`.

    Args:
        x: weighted input, shape (outer..., time, inner...), as of `lif`.
        alpha: decay of the membrane per step, exp(-dt/tau_mem), in [0, 1].
        adapt_alpha: decay of the adaptation per step, exp(-dt/tau_adapt), in [0, 1].
        adapt_by: what a spike adds to w.
        adapt_membrane: what the membrane adds to w, before the reset that its spike causes.
        adapt_threshold: how far w raises the threshold; goes with max_spikes 1.
        adapt_current: how far w is subtracted from the input.
        reset_by: what a spike subtracts; None means the threshold, as far as it is raised.
        initial_adaptation: w[-1]; None means 0. As initial_membrane of `lif`.
        initial_current: as of `cuba_lif`; None without a synapse_alpha.

    The other arguments are those of `lif` and `cuba_lif`, and so are the errors. The parameters may be tensors that
    broadcast over the inner dimensions.

    Returns:
        (spikes, membrane), both with the shape and dtype of x.
    """
    refuse_in_pieces("exodus_core.alif", "use a layer of exodus_core.nn")
    options = dict(locals())
    del options["x"], options["alpha"]
    required_decay("adapt_alpha", adapt_alpha)
    check_initial_current(initial_current, synapse_alpha)
    return neurons(x, alpha, **options)[:2]
