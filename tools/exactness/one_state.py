"""LIF, IF and SRM neurons: the kernel against the loop on the membrane that the neuron really had."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

import exodus_core
from exodus_core import AlphaKernel, ExponentialKernel, reference
from exodus_core.ops import compute_dtype
from exodus_core.surrogate import KINDS

from .differences import gradients, leaves, relative_errors
from .results import DRAWS, DTYPES, SIGNALS, Case

RESETS = {
    "subtract": ("subtract", False),
    "subtract, decayed": ("subtract", True),
    "zero": ("zero", False),
    "none": ("none", False),
}
# The same with min_membrane after the reset.
AFTER_RESET = ", bounded after it"
SRM_KERNELS: dict[str, Any] = {
    "FIR": torch.tensor([-0.9, 0.3, -0.2, 0.0, -0.1], dtype=torch.float64),
    "exponential": ExponentialKernel(0.9, -1.0),
    "alpha kernel": AlphaKernel(4.0, -1.2),
}
PARAMETERS = ("alpha", "threshold", "reset_by", "min_membrane")


def cases(quick: bool) -> Iterable[Case]:
    surrogates = ["exponential", "arctan"] if quick else list(KINDS)
    dtypes = DTYPES[:2] if quick else DTYPES
    for dtype in dtypes:
        for method in ("exodus", "slayer"):
            for surrogate in surrogates:
                for neuron in ("LIF", "IF"):
                    for reset in RESETS:
                        yield Case(neuron, method, reset, surrogate, dtype)
                for reset in RESETS:
                    yield Case("LIF", method, reset + AFTER_RESET, surrogate, dtype)
                for kernel in SRM_KERNELS:
                    yield Case("SRM", method, kernel, surrogate, dtype)


def _uniform(*size: int) -> Tensor:
    return torch.rand(size, dtype=torch.float64)


def arguments(case: Case, shape: tuple[int, ...]) -> dict[str, Any]:
    """Random inputs and parameters for DRAWS calls, the draw in front: signals (draw, outer, time, inner), states
    (draw, outer, inner), parameters (draw, 1, inner). Parameters stay in the dtype that is computed in."""
    outer, _, inner = shape
    given: dict[str, Any] = {
        "x": torch.randn(DRAWS, *shape, dtype=torch.float64),
        "threshold": 0.5 + _uniform(DRAWS, 1, inner),
    }
    if case.neuron == "SRM":
        given["z"] = given.pop("x")
        given["reset_kernel"] = SRM_KERNELS[case.reset]
    else:
        decay = 0.5 + 0.5 * _uniform(DRAWS, 1, inner)
        given["alpha"] = torch.ones_like(decay) if case.neuron == "IF" else decay
        given["reset_by"] = 0.5 + _uniform(DRAWS, 1, inner)
        # The neuron rounds this bound to the dtype that the membrane is stored in.
        given["min_membrane"] = (-1.5 + _uniform(DRAWS, 1, inner)).to(case.dtype).double()
        given["initial_membrane"] = torch.randn(DRAWS, outer, inner, dtype=torch.float64)
        given["initial_spikes"] = torch.randint(0, 2, (DRAWS, outer, inner)).double()
    return {
        name: value.to(case.dtype if name in ("x", "z", *SIGNALS) else compute_dtype(case.dtype))
        if isinstance(value, Tensor)
        else value
        for name, value in given.items()
    }


def one_draw(name: str, value: Any, draw: int) -> Any:
    """The argument of one call. The calls share a reset kernel."""
    if name == "reset_kernel":
        return value
    return value[draw, 0] if name in PARAMETERS else value[draw]


def measure(case: Case, shape: tuple[int, ...]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The errors of the kernel, and of the plain loop in float32, at one shape.

    The kernel is called once a draw, at exactly this shape; the loops, whose lanes do not see each other, take all
    draws at once. Errors are relative to the largest value among the draws: relative to that of one draw, whose few
    values may cancel to nearly nothing, the comparison of two programs would be one of luck.
    """
    given = arguments(case, shape)
    weights = tuple(torch.randn(DRAWS, *shape, dtype=torch.float64).to(case.dtype) for _ in range(2))
    options: dict[str, Any] = {"surrogate": KINDS[case.surrogate](), "method": case.method}
    kernel: Callable[..., tuple[Tensor, Tensor]]
    loop: Callable[..., tuple[Tensor, Tensor, Tensor]]
    if case.neuron == "SRM":
        kernel, loop, signal = exodus_core.srm, reference.srm_on_trace, "z"
    else:
        kernel, loop, signal = exodus_core.lif, reference.lif_on_trace, "x"
        options["reset"], options["decay_reset"] = RESETS[case.reset.removesuffix(AFTER_RESET)]
        options["bound_after_reset"] = case.reset.endswith(AFTER_RESET)

    membranes, found = [], []
    for draw in range(DRAWS):
        ours = leaves({name: one_draw(name, value, draw) for name, value in given.items()})
        outputs = kernel(**ours, **options)
        membranes.append(outputs[1].detach())
        found.append(gradients(outputs, tuple(w[draw] for w in weights), ours))
    trace = torch.stack(membranes)

    def by_loop(dtype: torch.dtype) -> dict[str, Tensor]:
        theirs = leaves({name: value for name, value in given.items() if name != signal}, dtype)
        leaf, *pinned = loop(trace.to(dtype), **theirs, **options, time_dim=2)
        return gradients((pinned[0], pinned[1]), weights, {signal: leaf, **theirs})

    def errors(results: dict[str, Tensor]) -> dict[str, list[float]]:
        # The draws share the taps: of those there is one gradient, the sum.
        one = {"reset_kernel": (1, -1)}
        return {
            name: relative_errors(*(t.reshape(one.get(name, exact.shape)) for t in (results[name], exact)))
            for name, exact in expected.items()
        }

    expected = by_loop(torch.float64)
    stacked = {name: torch.stack([f[name] for f in found]) for name in expected}
    if "reset_kernel" in stacked:
        stacked["reset_kernel"] = stacked["reset_kernel"].sum(0)
    return errors(stacked), {} if case.dtype == torch.float64 else errors(by_loop(torch.float32))
