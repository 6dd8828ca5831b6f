"""Runs of neurons with several variables that are certified: what goes in and what the program returned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

import exodus_core
from exodus_core import arguments
from exodus_core.coupled import DEFAULTS, CoupledOptions, is_zero, neurons, with_defaults
from exodus_core.errors import ArgumentError
from exodus_core.surrogate import Surrogate
from exodus_core.verify.runs import Leaves, Parameter, check_grads, check_input, rounded_surrogate

#: Parameters of an adaptation whose term is left out where they are the number 0.
_COUPLINGS = ("adapt_membrane", "adapt_threshold", "adapt_current")


@dataclass(frozen=True)
class CoupledRun:
    """A run of neurons with a synaptic current, an adaptation, or other options of section 9 of docs/equations.md.

    Signals are (time, lanes), of float32 or float64, as of LifRun, and so are gradients.

    Args:
        parameters: by name, those that have a term.
        initial: the state before the first step, (lanes,): membrane, spikes, and the other variables that there are.
        refractory: steps of the refractory period.
        waiting: those that are left before the first step, (lanes,).
        reset: as of LifRun, or "value".
        delayed: the membrane sees the synaptic current of the step before.
        detached: no gradient passes through the spikes to the reset.
    """

    x: Tensor
    grad_spikes: Tensor
    grad_membrane: Tensor
    spikes: Tensor
    membrane: Tensor
    parameters: dict[str, Parameter]
    initial: dict[str, Tensor]
    refractory: int
    waiting: Tensor
    reset: str
    delayed: bool
    detached: bool
    max_spikes: int
    surrogate: Surrogate
    method: str
    gradients: dict[str, Tensor]

    @property
    def clipped(self) -> Tensor:
        """The steps at which the membrane was raised to its lower bound, (time, lanes)."""
        if "min_membrane" not in self.parameters:
            return torch.zeros_like(self.membrane, dtype=torch.bool)
        return self.membrane <= self.parameters["min_membrane"].lanes

    @property
    def held(self) -> Tensor:
        """The steps in the refractory period, (time, lanes)."""
        waiting, found = self.waiting, []
        for spikes in self.spikes:
            held = waiting > 0
            found.append(held)
            waiting = torch.where(spikes > 0, self.refractory, torch.where(held, waiting - 1, 0))
        return torch.stack(found)


def run_coupled(
    x: Tensor,
    alpha: float | Tensor,
    grad_spikes: Tensor,
    *,
    grad_membrane: Tensor | None = None,
    **options: Unpack[CoupledOptions],
) -> CoupledRun:
    """Runs `exodus_core.lif`, `cuba_lif` or `alif` forward and backward, with the gradient of every argument.

    Which one follows from the options: those of `alif`, of which `cuba_lif` and `lif` have some. An alpha of 1.0 of
    `lif` has no gradient.

    Args:
        x, alpha, options: float32 or float64, finite, at least one step. Numbers become tensors of the dtype of x, but
            for the couplings that are 0, and so do slope and scale of the surrogate.
        grad_spikes, grad_membrane: dL/ds and dL/du, with the shape and dtype of x; None is 0.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    given: dict[str, Any] = {**with_defaults(options)}
    _check_variables(given)
    time_dim = given["time_dim"] = check_input("x", x, given["time_dim"])
    arguments.check_surrogate(given["surrogate"])
    arguments.reset_code(given["reset"], given["decay_reset"], given["max_spikes"])
    arguments.check_reset_to(given["reset"], given["reset_to"])
    arguments.refractory_steps(given["refractory"])
    grads = check_grads(x, grad_spikes, grad_membrane, "x")
    surrogate = given["surrogate"] = rounded_surrogate(given["surrogate"], x.dtype)
    has_synapse, has_adaptation = (given[name] is not None for name in ("synapse_alpha", "adapt_alpha"))
    leaves = Leaves(x, time_dim)
    current = leaves.signal("input", x)
    names = ["threshold", "reset_by", "reset_to", "min_membrane"]
    names += ["synapse_alpha", "synapse_gain"] if has_synapse else []
    names += ["adapt_alpha", "adapt_by", *_COUPLINGS] if has_adaptation else []
    parameters: dict[str, Parameter] = {}
    for name in names:
        if given[name] is None or (name in _COUPLINGS and is_zero(given[name])):
            continue
        positive = name == "threshold" and given["max_spikes"] > 1
        given[name], parameters[name] = leaves.parameter(name, given[name], positive=positive)
    decay, parameters["alpha"] = leaves.parameter("alpha", alpha)
    states = ["membrane", "spikes"] + ["current"] * has_synapse + ["adaptation"] * has_adaptation
    for name in states:
        given[f"initial_{name}"] = leaves.state(f"initial_{name}", given[f"initial_{name}"])
    initial = {name: given[f"initial_{name}"].detach().reshape(-1) for name in states}
    waiting = _waiting(given["initial_refractory"], leaves)
    if has_synapse or has_adaptation or given["initial_refractory"] is not None:
        outputs = neurons(current, decay, **given)[:2]
    else:
        if not isinstance(alpha, Tensor) and alpha == 1:  # IF neurons, which have no decay
            del leaves.tensors["alpha"]
        lif_options = {name: value for name, value in given.items() if name in arguments.LIF_DEFAULTS}
        outputs = exodus_core.lif(current, decay if "alpha" in leaves.tensors else 1.0, **lif_options)
    reset = given["reset"]
    return CoupledRun(
        x=leaves.flat("input", x),
        grad_spikes=leaves.flat("input", grads[0]),
        grad_membrane=leaves.flat("input", grads[1]),
        spikes=leaves.flat("input", outputs[0].detach()),
        membrane=leaves.flat("input", outputs[1].detach()),
        parameters=parameters,
        initial=initial,
        refractory=given["refractory"],
        waiting=waiting,
        reset="subtract_decayed" if reset == "subtract" and given["decay_reset"] else reset,
        delayed=has_synapse and given["synapse_delayed"],
        detached=given["detach_reset"],
        max_spikes=given["max_spikes"],
        surrogate=surrogate,
        method=given["method"],
        gradients=leaves.gradients(outputs, grads),
    )


def _check_variables(given: dict[str, Any]) -> None:
    """Refuses arguments of a variable that there is none of."""
    for variable, decay in (("current", "synapse_alpha"), ("adaptation", "adapt_alpha")):
        if given[decay] is not None:
            continue
        for name in (f"initial_{variable}", *(name for name in DEFAULTS if name.startswith(decay[: -len("alpha")]))):
            value, default = given[name], DEFAULTS[name]  # type: ignore[literal-required]
            if isinstance(value, Tensor) or value != default:
                got = "a tensor" if isinstance(value, Tensor) else value
                raise ArgumentError(name, f"{default} without {decay}", got)


def _waiting(steps: float | Tensor | None, leaves: Leaves) -> Tensor:
    """The steps that are left of a refractory period, (lanes,), int64."""
    arguments.initial_state("initial_refractory", steps, leaves.like, leaves.time_dim)
    given = torch.as_tensor(0 if steps is None else steps, dtype=torch.float64)
    if not bool((given >= 0).all()) or not bool((given == given.floor()).all()):
        raise ArgumentError("initial_refractory", "whole numbers of steps", "others")
    if not bool((given <= arguments.LARGEST_REFRACTORY).all()):
        raise ArgumentError("initial_refractory", f"at most {arguments.LARGEST_REFRACTORY}", float(given.max()))
    return given.long().expand(leaves.shape).reshape(-1)
