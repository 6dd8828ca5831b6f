"""Forward bits against the CPU's, gradients against the CPU's and against float64 loops."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

import exodus_core
from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import Emit

SHAPES = [(1, 1, 1), (2, 37, 5), (3, 130, 33), (1, 700, 64), (65, 33, 1), (4, 64, 128)]
RESETS = [("none", False), ("subtract", False), ("subtract", True), ("zero", False)]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
#: Largest difference of a gradient of the GPU from the CPU's, over its largest element: sums and products that are
#: rounded in another order, a few units in the last place of the dtype.
BOUNDS = {torch.float32: 1e-6, torch.float64: 2e-15, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def run(device: Device, emit: Emit) -> None:
    """One row a dtype, and one for the loops."""
    for dtype in DTYPES:
        equal = same_gradients = count = 0
        worst = 0.0
        for (shape, (reset, decayed)), method, time_dim in itertools.product(
            itertools.product(SHAPES if device.is_gpu else SHAPES[:2], RESETS), ("exodus", "slayer"), (0, 1, 2)
        ):
            torch.manual_seed(count)
            x, g = torch.randn(2, *shape, dtype=torch.float64, device="cpu").to(dtype)
            options = {"reset": reset, "decay_reset": decayed, "method": method, "time_dim": time_dim}
            ours = _spikes_membrane_gradient(x.to(device.type), g.to(device.type), **options)
            theirs = _spikes_membrane_gradient(x, g, **options)
            count += 1
            equal += all(torch.equal(a.cpu(), b) for a, b in zip(ours[:2], theirs[:2], strict=True))
            same_gradients += torch.equal(ours[2].cpu(), theirs[2])
            error = (ours[2].cpu().double() - theirs[2].double()).abs().max()
            worst = max(worst, float(error / theirs[2].double().abs().max().clamp_min(1e-30)))
        good = equal == count and worst <= BOUNDS[dtype]
        detail = (
            f"bits of the CPU: forward {equal} of {count}, gradient {same_gradients}; largest difference {worst:.2g}"
        )
        emit({"case": str(dtype).removeprefix("torch."), "ok": good, "detail": detail})
    worst = max(_against_loops(device, reset, decayed) for reset, decayed in RESETS)
    emit({"case": "float64 loops", "ok": worst < 1e-12, "detail": f"largest difference of a gradient {worst:.2g}"})


def _spikes_membrane_gradient(x: Tensor, g: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    spikes, membrane = exodus_core.lif(leaf, 0.9, **options)
    return spikes.detach(), membrane.detach(), torch.autograd.grad(spikes, leaf, g)[0]


def _against_loops(device: Device, reset: str, decayed: bool) -> float:
    """Of the gradients of the device from those of the reference, relative to the largest."""
    torch.manual_seed(1)
    x, g = torch.randn(2, 2, 100, 40, dtype=torch.float64, device="cpu")
    options: dict[str, Any] = {"reset": reset, "decay_reset": decayed}
    leaf = x.to(device.type).requires_grad_()
    spikes, membrane = exodus_core.lif(leaf, 0.9, **options)
    (found,) = torch.autograd.grad(spikes, leaf, g.to(device.type))
    by_loop, looped, _ = exodus_core.reference.lif_on_trace(membrane.detach().cpu(), 0.9, **options)
    (expected,) = torch.autograd.grad(looped, by_loop, g)
    return float((found.cpu() - expected).abs().max() / expected.abs().max())
