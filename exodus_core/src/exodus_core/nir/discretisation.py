"""The equations of NIR in steps: decays and gains of time constants, and the inverse.

tau dv/dt = v_leak - v + R I     v[t] = a v[t-1] + (1 - a) v_leak + g R I[t]
    a = 1 - dt/tau (euler) or exp(-dt/tau) (exponential); g by the convention `input_gain`
dv/dt = R I                      v[t] = v[t-1] + g R I[t], g = dt or 1
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exodus_core.nir.conventions import Conventions
from exodus_core.nir.refusals import RefusedNodeError

Array = np.ndarray[Any, np.dtype[Any]]


def decay(name: str, tau: Array, conventions: Conventions) -> Array:
    """The decay of time constants in one step; raises RefusedNodeError where it is not in [0, 1]."""
    dt = conventions.dt
    assert dt is not None
    if not (np.isfinite(tau).all() and (tau > 0).all()):
        raise RefusedNodeError(f"{name} is not positive and finite everywhere")
    if conventions.discretisation == "exponential":
        return np.exp(-dt / tau)
    if (tau < dt).any():
        raise RefusedNodeError(f"{name} of {tau.min():g} is below dt of {dt:g}: no euler step")
    return 1 - dt / tau


def leak_gain(tau: Array, conventions: Conventions) -> Array:
    """1 - a, without its rounding."""
    assert conventions.dt is not None
    step = conventions.dt / tau
    return -np.expm1(-step) if conventions.discretisation == "exponential" else step


def input_gain(tau: Array, conventions: Conventions) -> Array:
    """The factor on the input of a leaky equation in one step."""
    if conventions.input_gain == "unit":
        return np.ones_like(tau)
    if conventions.input_gain == "step":
        assert conventions.dt is not None
        return np.asarray(conventions.dt / tau)
    return leak_gain(tau, conventions)


def integrator_gain(conventions: Conventions) -> float:
    """The factor on the input of an equation without a leak in one step."""
    if conventions.input_gain == "unit":
        return 1.0
    assert conventions.dt is not None
    return conventions.dt


def time_constant(name: str, alpha: Array, conventions: Conventions) -> Array:
    """The time constant whose decay in one step is alpha; raises RefusedNodeError where there is none."""
    assert conventions.dt is not None
    exponential = conventions.discretisation == "exponential"
    if (alpha >= 1).any():
        raise RefusedNodeError(f"{name} is 1 for some neurons, which has no time constant")
    if exponential and (alpha <= 0).any():
        raise RefusedNodeError(f"{name} is 0, which has no time constant with discretisation exponential")
    return np.asarray(-conventions.dt / np.log(alpha) if exponential else conventions.dt / (1 - alpha))
