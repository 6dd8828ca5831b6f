"""Neurons with a synaptic current, an adaptation, a refractory period, or a reset to a value or without a gradient.

In float64 the kernel is compared with autograd through the loop, whose spikes and membranes must be the same to the
bit. In the other dtypes the exact gradient is that of the kernel's backward pass in float64, which is the loop's by the
first comparison, on the traces that the kernel stored: a loop in float64 would have other membranes, and soon other
spikes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exodus_core import coupled, ops, reference
from exodus_core.ops import compute_dtype
from exodus_core.surrogate import KINDS

from .differences import gradients, leaves, relative_errors
from .results import DRAWS, DTYPES, SIGNALS, Case

_STATES = len(ops.COUPLED_STATES)
_CARRIED = slice(2, 4)  # the rows of the last state that no trace has: the current and the adaptation
_TRIES = 8  # inputs for a draw, until float64 decides every spike as the kernel did; the first nearly always
_ADAPTATION = ("adapt_alpha", "adapt_by", "adapt_membrane", "adapt_threshold", "adapt_current")


@dataclass(frozen=True)
class Kind:
    """A neuron: which parameters it has beside alpha, threshold and min_membrane, and its plain options."""

    parameters: tuple[str, ...]
    options: dict[str, Any]


def _without_others(*names: str) -> dict[str, Any]:
    """Those factors of an adaptation that a neuron leaves out, as the number 0, whose term the kernel leaves out."""
    return {name: 0.0 for name in _ADAPTATION[2:] if name not in names}


#: By neuron and reset, as the table has them.
NEURONS: dict[tuple[str, str], Kind] = {
    ("second-order", "subtract"): Kind(("reset_by", "synapse_alpha", "synapse_gain"), {}),
    ("second-order, late synapse", "subtract, decayed"): Kind(
        ("reset_by", "synapse_alpha", "synapse_gain"), {"synapse_delayed": True, "decay_reset": True}
    ),
    ("adaptive threshold", "raised threshold"): Kind(
        ("adapt_alpha", "adapt_by", "adapt_threshold"), _without_others("adapt_threshold")
    ),
    ("adaptive threshold", "subtract"): Kind(
        ("reset_by", "adapt_alpha", "adapt_by", "adapt_threshold"), _without_others("adapt_threshold")
    ),
    ("adLIF", "subtract"): Kind(
        ("reset_by", "adapt_alpha", "adapt_by", "adapt_membrane", "adapt_current"),
        _without_others("adapt_membrane", "adapt_current"),
    ),
    ("synapse and adaptation", "raised threshold"): Kind(("synapse_alpha", "synapse_gain", *_ADAPTATION), {}),
    ("LIF, refractory", "subtract"): Kind(("reset_by",), {"refractory": 2}),
    ("synapse and adaptation, refractory", "subtract"): Kind(
        ("reset_by", "synapse_alpha", "synapse_gain", *_ADAPTATION), {"refractory": 2}
    ),
    ("LIF", "value"): Kind(("reset_to",), {"reset": "value"}),
    ("LIF", "zero, detached"): Kind((), {"reset": "zero", "detach_reset": True}),
}
#: From where to where parameters are drawn. With a negative factor of the adaptation a membrane may outgrow float16.
RANGES = {
    "alpha": (0.5, 1.0),
    "threshold": (0.5, 1.5),
    "reset_by": (0.5, 1.5),
    "reset_to": (-0.3, 0.3),
    "min_membrane": (-1.5, -0.5),
    "synapse_alpha": (0.3, 0.95),
    "synapse_gain": (0.3, 1.0),
    "adapt_alpha": (0.3, 0.95),
    "adapt_by": (0.0, 1.0),
    "adapt_membrane": (0.0, 0.1),
    "adapt_threshold": (0.0, 0.5),
    "adapt_current": (0.0, 0.2),
}


def cases(quick: bool) -> Iterable[Case]:
    """Of one surrogate: its derivative is the code that the neurons with one state are measured with."""
    for dtype in DTYPES[:2] if quick else DTYPES:
        for method in ("exodus", "slayer"):
            for neuron, reset in NEURONS:
                yield Case(neuron, method, reset, "exponential", dtype)


def arguments(case: Case, shape: tuple[int, ...]) -> dict[str, Any]:
    """Random inputs and parameters for DRAWS calls, shaped and kept as those of neurons with one state."""
    outer, _, inner = shape
    kind = NEURONS[case.neuron, case.reset]
    given: dict[str, Tensor] = {"x": torch.randn(DRAWS, *shape, dtype=torch.float64)}
    for name in ("alpha", "threshold", "min_membrane", *kind.parameters):
        low, high = RANGES[name]
        given[name] = low + (high - low) * torch.rand(DRAWS, 1, inner, dtype=torch.float64)
    # The neuron rounds this bound to the dtype that the membrane is stored in.
    given["min_membrane"] = given["min_membrane"].to(case.dtype).double()
    lanes = (DRAWS, outer, inner)
    given["initial_membrane"] = torch.randn(lanes, dtype=torch.float64)
    given["initial_spikes"] = torch.randint(0, 2, lanes).double()
    if "synapse_alpha" in given:
        given["initial_current"] = torch.randn(lanes, dtype=torch.float64)
    if "adapt_alpha" in given:
        given["initial_adaptation"] = torch.randn(lanes, dtype=torch.float64)
    if "refractory" in kind.options:
        given["initial_refractory"] = torch.randint(0, 3, lanes).double()
    return {
        name: value.to(case.dtype if name in ("x", *SIGNALS) else compute_dtype(case.dtype))
        for name, value in given.items()
    }


class Call(NamedTuple):
    """One call of the kernel: what it returned, its gradients, and those of its backward pass in float64."""

    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]
    exact: dict[str, Tensor]


def call(given: dict[str, Tensor], weights: list[Tensor], options: dict[str, Any]) -> Call | None:
    """None if float64 decides one of the spikes differently: a membrane lies where the raised threshold is rounded."""
    ours = leaves(given)
    x, alpha = ours["x"], ours["alpha"]
    settings, parameters, initial = coupled.coupled_arguments(x, alpha, _all_options(ours, options))
    spikes, membrane, last, *_ = coupled.Coupled.apply(x, parameters, initial, settings)  # type: ignore[no-untyped-call]
    kept = settings.kept | settings.followed
    with torch.no_grad():
        traces = coupled.Coupled.forward(x, parameters, initial, settings._replace(kept=kept))[3:]
    outputs = spikes, membrane, last.view(_STATES, -1)[_CARRIED]
    found = gradients(outputs, weights, ours)

    theirs = leaves(given, torch.float64)
    _, parameters, initial = coupled.coupled_arguments(theirs["x"], theirs["alpha"], _all_options(theirs, options))
    assert parameters is not None
    assert initial is not None
    current, adaptation, held = (
        trace.double() if kept & bit else None
        for trace, bit in zip(traces, (ops.KEPT_CURRENT, ops.KEPT_ADAPTATION, ops.KEPT_REFRACTORY), strict=True)
    )
    raised = theirs["threshold"].detach()
    if adaptation is not None and "adapt_threshold" in theirs:
        raised = raised + theirs["adapt_threshold"].detach() * adaptation
    fires = membrane.detach().double() >= raised
    if not torch.equal(fires if held is None else fires & (held == 0), spikes.detach() > 0):
        return None
    grad_last = torch.zeros(_STATES, last[0].numel(), dtype=torch.float64)
    grad_last[_CARRIED] = weights[2].double()
    grad_input, lanes = ops.coupled_backward(
        membrane.detach().double(),
        current,
        adaptation,
        held,
        weights[0].double(),
        weights[1].double(),
        grad_last,
        settings.numbers,
        parameters.detach(),
        initial.detach(),
        settings.max_spikes,
        settings.refractory,
        settings.reset,
        settings.couplings,
        0,
        settings.surrogate,
        settings.slope,
        settings.scale,
        settings.method,
        True,
        settings.time_dim,
    )
    rows = coupled.parameter_rows_gradient(lanes[_STATES:], parameters), lanes[:_STATES].reshape(initial.shape)
    exact = gradients((parameters, initial), rows, {name: theirs[name] for name in theirs if name != "x"})
    return Call(tuple(output.detach() for output in outputs), found, {"input": grad_input, **exact})


def _all_options(given: dict[str, Any], options: dict[str, Any]) -> coupled.CoupledOptions:
    own = {name: value for name, value in given.items() if name not in ("x", "alpha")}
    return coupled.with_defaults({**own, **options})  # type: ignore[typeddict-item]


def measure(case: Case, shape: tuple[int, ...]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The errors of the kernel, and of the plain loop in float32, at one shape.

    The loop is differentiated as it is, since its outputs must be the kernel's to the bit; where they are not, every
    error is infinite. Its membrane is not rounded from step to step, though what the kernel stores is: with half types
    its error is that of float32 on the inputs as they are in the half type.
    """
    given = arguments(case, shape)
    lanes = shape[0] * shape[2]
    weights = [torch.randn(DRAWS, *size, dtype=torch.float64).to(case.dtype) for size in (shape, shape, (2, lanes))]
    options = {
        **NEURONS[case.neuron, case.reset].options,
        "surrogate": KINDS[case.surrogate](),
        "method": case.method,
        "time_dim": 1,
    }
    if case.dtype in (torch.float16, torch.bfloat16):
        errors, _ = compare(given, weights, options)
        wider = {name: value.float() for name, value in given.items()}
        return errors, compare(wider, [w.float() for w in weights], options)[1]
    return compare(given, weights, options)


def compare(
    given: dict[str, Tensor], weights: list[Tensor], options: dict[str, Any]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The errors of the kernel, and, if the tensors are float32, of the plain loop."""
    dtype = given["x"].dtype
    calls = []
    for draw in range(DRAWS):
        found = None
        for _ in range(_TRIES):
            one = {name: value[draw] if name in ("x", *SIGNALS) else value[draw, 0] for name, value in given.items()}
            found = call(one, [w[draw] for w in weights], options)
            if found is not None:
                break
            given["x"][draw] = torch.randn(one["x"].shape, dtype=torch.float64).to(dtype)
        if found is None:
            return _infinite(given)
        calls.append(found)
    ours = {name: torch.stack([c.gradients[name] for c in calls]) for name in calls[0].gradients}
    exact = {name: torch.stack([c.exact[name] for c in calls]) for name in ours}
    theirs = leaves(given)
    spikes, membrane, last = reference.coupled_lif(**theirs, **{**options, "time_dim": 2})
    outputs = spikes, membrane, last[_CARRIED].view(2, DRAWS, -1).transpose(0, 1)
    for output, of_calls in zip(outputs, zip(*(c.outputs for c in calls), strict=True), strict=True):
        if not torch.equal(output, torch.stack(of_calls)):
            return _infinite(given)
    if dtype not in (torch.float64, torch.float32):
        return errors_of(ours, exact), {}
    looped = {name: found.reshape(ours[name].shape) for name, found in gradients(outputs, weights, theirs).items()}
    if dtype == torch.float64:
        return errors_of(ours, looped), {}
    return errors_of(ours, exact), errors_of(looped, exact)


def _infinite(given: dict[str, Tensor]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The errors of a kernel that computes other spikes or membranes than it must."""
    names = ["input" if name == "x" else name for name in given]
    return {name: [float("inf")] for name in names}, {name: [0.0] for name in names}


def errors_of(results: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: relative_errors(results[name], exact[name]) for name in results}
