"""Assertions that two results agree, and the cases that tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exodus_core import AlphaKernel, ExponentialKernel, SlayerRefractory, surrogate

SURROGATES = [cls() for cls in surrogate.KINDS.values()]
RESETS = [("subtract", False), ("subtract", True), ("zero", False), ("none", False)]
ODD_SHAPES = [(1, 1, 1), (3, 7, 5), (2, 63, 100), (1, 200, 3), (2, 65, 17)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
KERNELS: dict[str, Callable[[torch.dtype], Any]] = {
    "taps": lambda dtype: torch.tensor([-0.9, 0.3, -0.2, 0.0, -0.1], dtype=dtype),
    "exponential": lambda dtype: ExponentialKernel(0.8, -1.0),
    "two exponentials": lambda dtype: ExponentialKernel((0.9, 0.5), (-1.0, 0.4)),
    "alpha": lambda dtype: AlphaKernel(4.0, -1.2),
    "slayer": lambda dtype: SlayerRefractory(1.5, -1.2),
}


def name_of(value: object) -> str:
    """A readable test id."""
    if isinstance(value, surrogate.Surrogate):
        return value.kind
    if isinstance(value, tuple):
        return "x".join(str(v) for v in value)
    return str(value).removeprefix("torch.")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value; 0 for two empty or all-zero tensors."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    difference = (actual.double() - expected.double()).abs().max().item()
    largest = expected.double().abs().max().item()
    return difference if largest == 0 else difference / largest


def assert_agrees(name: str, actual: Tensor, expected: Tensor, *, plain: Tensor | None = None) -> None:
    """float64 to 1e-12; float32 to twice the error of the plain float32 loop; half types to one rounding.

    `expected` is the float64 reference. The floor of four roundings is for results of so few operations that the
    plain loop's error may be zero.
    """
    epsilon = torch.finfo(actual.dtype).eps
    tolerance = {torch.float64: 1e-12, torch.float32: 4 * epsilon}.get(actual.dtype, epsilon)
    if plain is not None:
        tolerance = max(tolerance, 2 * relative_error(plain, expected))
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{name}: relative error {error:.3g}, allowed {tolerance:.3g}"


def lif_parameters(shape: tuple[int, ...], time_dim: int, dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    """Every parameter of a LIF neuron as a tensor that differs between neurons, and a state for every lane."""
    inner = shape[time_dim + 1 :]
    lanes = (*shape[:time_dim], *inner)
    return {
        "alpha": (0.5 + 0.5 * torch.rand(inner, dtype=torch.float64)).to(dtype),
        "threshold": (0.5 + torch.rand(inner, dtype=torch.float64)).to(dtype),
        "reset_by": (0.5 + torch.rand(inner, dtype=torch.float64)).to(dtype),
        "min_membrane": (-1.5 + torch.rand(inner, dtype=torch.float64)).to(dtype),
        "initial_membrane": torch.randn(lanes, dtype=torch.float64).to(dtype),
        "initial_spikes": torch.randint(0, 2, lanes).to(dtype),
        **more,
    }


def leaves(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with a fresh leaf in place of each tensor."""
    return {
        name: value.detach().clone().requires_grad_() if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def gradients(outputs: tuple[Tensor, ...], weights: tuple[Tensor, ...], arguments: dict[str, Any]) -> dict[str, Tensor]:
    """dL/d(argument) for every tensor, where L is the sum of the outputs times the weights."""
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    found = torch.autograd.grad(
        outputs, [arguments[name] for name in names], weights, allow_unused=True, materialize_grads=True
    )
    return dict(zip(names, found, strict=True))
