"""Who is right: an accelerated model is timed only if its outputs and gradients are those of the unmodified one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import exodus_core

from .models import PeerModel, Size

AGREEMENT = 1e-5  # of the largest value of each gradient
SMALL = Size(20, 3, divided_by=8)


def both(model: PeerModel, size: Size, seed: int) -> tuple[Any, Any]:
    """The unmodified model and the accelerated one, with the same weights."""
    made = []
    for _ in range(2):
        torch.manual_seed(seed)
        made.append(model.build(size))
    return made[0], exodus_core.accelerate(made[1], **model.options)


def differences(model: PeerModel, size: Size, seed: int) -> dict[str, float]:
    """Largest difference of the outputs and of each gradient, relative to the largest value; and how many spikes."""
    unmodified, accelerated = both(model, size, seed)
    torch.manual_seed(seed + 1000)
    x = model.input(size)
    results = []
    for module, call in ((unmodified, model.call), (accelerated, model.accelerated)):
        leaf = x.clone().requires_grad_()
        output = call(module, leaf, size)
        torch.manual_seed(seed + 2000)
        (output * torch.randn(output.shape)).sum().backward()
        results.append([output, leaf.grad, *(p.grad for p in module.parameters() if p.requires_grad)])
    names = ["outputs", "input", *(name for name, p in unmodified.named_parameters() if p.requires_grad)]
    found = {}
    for name, expected, got in zip(names, *results, strict=True):
        found[name] = _relative(expected, got)
    found["active"] = float((results[0][0] != 0).float().mean())
    return found


def _relative(expected: Tensor | None, got: Tensor | None) -> float:
    if expected is None or got is None:
        return 0.0 if expected is got else float("inf")
    return float((expected - got).abs().max() / expected.abs().max().clamp(min=1e-30))


def fault(model: PeerModel, size: Size = SMALL, seeds: int = 5) -> str | None:
    """What is wrong with an accelerated model; None if nothing is.

    Where a membrane lies within rounding of its threshold, two correct programs differ; so one of a few inputs must
    agree.
    """
    worst = ""
    for seed in range(seeds):
        found = differences(model, size, seed)
        active = found.pop("active")
        wrong = {name: value for name, value in found.items() if not value <= AGREEMENT}
        if not wrong and active:
            return None
        worst = f"seed {seed}: {wrong}" if wrong else f"seed {seed}: nothing fires"
    return worst
