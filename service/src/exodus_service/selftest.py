"""What has to hold before the service says that it is ready: every method computes what the plain loop does."""

from collections.abc import Callable
from typing import get_args

import exodus_core
import torch
from exodus_core import reference

from exodus_service.params import Method

#: Relative to the largest value of a gradient. float32 kernels agree with float32 loops far better than this.
TOLERANCE = 1e-4

Neuron = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class SelfTestError(RuntimeError):
    """A kernel of this installation computes something else than its reference."""


def self_test(device: torch.device) -> None:
    """Compare one small gradient of each model and method with autograd through the time loop.

    Raises:
        SelfTestError: naming the model and the method.
    """
    taps = torch.tensor([-1.0, -0.5, -0.25])
    for method in get_args(Method):
        _compare(
            f"lif, {method}",
            device,
            lambda x, method=method: exodus_core.lif(x, 0.9, method=method),
            lambda x, method=method: reference.lif(x, 0.9, method=method),
        )
        _compare(
            f"srm, {method}",
            device,
            lambda z, method=method: exodus_core.srm(z, taps.to(z.device), method=method),
            lambda z, method=method: reference.srm(z, taps, method=method),
        )


def _compare(what: str, device: torch.device, neuron: Neuron, expected_of: Neuron) -> None:
    generator = torch.Generator().manual_seed(0)
    drive, weight = torch.rand((2, 2, 12, 3), generator=generator).unbind()
    expected = _gradient(expected_of, drive, weight)
    found = _gradient(neuron, drive.to(device), weight.to(device)).cpu()
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max()):
        raise SelfTestError(f"{what} on {device}: the gradient is off by {difference}")


def _gradient(neuron: Neuron, drive: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    drive = drive.clone().requires_grad_()
    spikes, _ = neuron(drive)
    (gradient,) = torch.autograd.grad((spikes * weight).sum(), drive)
    return gradient
