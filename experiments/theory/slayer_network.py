"""The weight gradients of SLAYER's own kind of network, 250-25-1, with the reset (EXODUS) and without (SLAYER).

Neurons, kernels, error and sizes are those of the network on which the authors of SLAYER test their code: 501 steps of
0.1 ms, threshold 10, response and refractory kernels (t/tau) exp(1 - t/tau) with tau = 1 ms and heights 1 and -20, cut
where they fall below 0.01; spike probability exp(-|u - 10| / 4.34) / 4.34 per ms, so a tenth of that per step; squared
error of the filtered output. Input, target and weights are drawn here in their numbers: 3 spikes an input, 3 target
spikes, normal weights of standard deviation 4. `recorded` reads theirs: the folder test/test_files/torch_validate of
github.com/bamsumit/slayerPytorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

import exodus_core
from exodus_core import SlayerRefractory, SlayerResponse
from exodus_core.surrogate import Exponential
from experiments.theory.reset import Compared

STEPS, INPUTS, HIDDEN = 501, 250, 25
MS_PER_STEP = 0.1
THRESHOLD = 10.0
WIDTH = THRESHOLD / np.log(10)
RESPONSE = SlayerResponse(1.0 / MS_PER_STEP).cut(0.01)
REFRACTORY = SlayerRefractory(1.0 / MS_PER_STEP, -2 * THRESHOLD).cut(0.01)
SURROGATE = Exponential(slope=1 / WIDTH, scale=MS_PER_STEP / WIDTH)
INPUT_SPIKES, TARGET_SPIKES, WEIGHT_STD = 3, 3, 4.0


class Network(NamedTuple):
    """Weights (HIDDEN, INPUTS) and (1, HIDDEN), input (1, STEPS, INPUTS) and target spikes (1, STEPS, 1), float64."""

    hidden: Tensor
    output: Tensor
    spikes: Tensor
    target: Tensor


class Ratios(NamedTuple):
    """SLAYER's gradient of each weight against EXODUS's."""

    hidden: Compared
    output: Compared


def drawn(seed: int) -> Network:
    """A network of a seed."""
    generator = torch.Generator().manual_seed(seed)
    spikes = torch.rand(1, STEPS, INPUTS, generator=generator) < INPUT_SPIKES / STEPS
    target = torch.zeros(1, STEPS, 1, dtype=torch.float64)
    target[0, torch.randperm(STEPS, generator=generator)[:TARGET_SPIKES]] = 1
    hidden = WEIGHT_STD * torch.randn(HIDDEN, INPUTS, dtype=torch.float64, generator=generator)
    output = WEIGHT_STD * torch.randn(1, HIDDEN, dtype=torch.float64, generator=generator)
    return Network(hidden, output, spikes.double(), target)


def recorded(folder: Path) -> Network:
    """The network of a folder torch_validate.

    Raises:
        OSError: a file cannot be read.
        ValueError: it has other numbers in it.
    """
    hidden, output, spikes, target = (
        torch.from_numpy(np.loadtxt(folder / name, delimiter=",", ndmin=2))
        for name in ("forward_prop/W12.csv", "forward_prop/W23.csv", "forward_prop/s1.csv", "back_prop/des_s.csv")
    )
    shapes = tuple(tuple(array.shape) for array in (hidden, output, spikes, target))
    expected = ((HIDDEN, INPUTS), (1, HIDDEN), (INPUTS, STEPS), (1, STEPS))
    if shapes != expected:
        raise ValueError(f"arrays of {folder} must be of shapes {expected}, got {shapes}")
    # Their spikes have area 1: 10 per ms in a step of 0.1 ms.
    return Network(hidden, output, (spikes.T[None] > 0).double(), (target.T[None] > 0).double())


def gradients(network: Network, method: Literal["exodus", "slayer"]) -> tuple[Tensor, Tensor]:
    """dL/dW of both layers."""
    weights = [weight.clone().requires_grad_() for weight in (network.hidden, network.output)]
    spikes = network.spikes
    for weight in weights:
        psp = exodus_core.filter(spikes, RESPONSE) @ weight.T
        spikes, _ = exodus_core.srm(psp, REFRACTORY, threshold=THRESHOLD, surrogate=SURROGATE, method=method)
    error = exodus_core.filter(spikes - network.target, RESPONSE)
    (error.square().sum() * MS_PER_STEP / 2).backward()
    hidden, output = (weight.grad for weight in weights)
    assert hidden is not None
    assert output is not None
    return hidden, output


def ratios(network: Network) -> Ratios:
    """Both gradients compared; NaN where the network's gradient is 0, as of a silent hidden layer."""
    exodus, slayer = gradients(network, "exodus"), gradients(network, "slayer")
    return Ratios(*(Compared.of(s, e) for s, e in zip(slayer, exodus, strict=True)))
