"""Self-test at start-up: every method agrees with the plain loop."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import exodus_core
from exodus_core import ExponentialKernel, reference
from exodus_core.arguments import METHODS

#: Relative to the largest value of a gradient. float32 kernels agree with float32 loops far better than this.
TOLERANCE = 1e-4


class SelfTestError(RuntimeError):
    """A kernel of this installation disagrees with its reference."""


def self_test(device: torch.device) -> None:
    """Compare one small gradient of each model and method with autograd through the time loop.

    Raises:
        SelfTestError: a gradient is wrong; names the model and the method.
    """
    generator = torch.Generator().manual_seed(0)
    drive, grad_spikes = torch.rand((2, 2, 12, 3), generator=generator).unbind()
    kernel = ExponentialKernel(alpha=0.8, amplitude=-1.0)
    for method in METHODS:
        _, membrane = exodus_core.lif(drive.to(device), 0.9)
        found = exodus_core.lif_gradient(membrane, grad_spikes.to(device), 0.9, method=method).input
        _compare(
            f"lif, {method}", found, _expected(partial(reference.lif, alpha=0.9, method=method), drive, grad_spikes)
        )

        neurons: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
            "cuba_lif": (exodus_core.cuba_lif, exodus_core.cuba_lif_gradient, {"synapse_alpha": 0.8, "refractory": 1}),
            "alif": (exodus_core.alif, exodus_core.alif_gradient, {"adapt_alpha": 0.8, "adapt_threshold": 0.3}),
        }
        for model, (forward, gradient, options) in neurons.items():
            _, membrane = forward(drive.to(device), 0.9, **options)
            found = gradient(membrane, grad_spikes.to(device), 0.9, **options, method=method).input
            loop = partial(reference.coupled_lif, alpha=0.9, method=method, **options)
            _compare(f"{model}, {method}", found, _expected(loop, drive, grad_spikes))

        _, membrane = exodus_core.srm(drive.to(device), kernel)
        found = exodus_core.srm_gradient(membrane, grad_spikes.to(device), kernel, method=method).psp
        expected = _expected(partial(reference.srm, reset_kernel=kernel, method=method), drive, grad_spikes)
        _compare(f"srm, {method}", found, expected)


def _expected(
    neuron: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], drive: torch.Tensor, grad_spikes: torch.Tensor
) -> torch.Tensor:
    leaf = drive.clone().requires_grad_()
    spikes = neuron(leaf)[0]
    return torch.autograd.grad(spikes, leaf, grad_spikes)[0]


def _compare(case: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    difference = float((found.cpu() - expected).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max()):
        raise SelfTestError(f"{case} on {found.device}: the gradient is off by {difference}")
