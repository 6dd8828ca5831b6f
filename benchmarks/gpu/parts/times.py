"""The neuron alone, forward and backward, against a copy of the memory and against other libraries."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import exodus_core
from benchmarks.gpu.device import Device
from benchmarks.gpu.parts.peers import ALPHA, Peer, peers
from benchmarks.gpu.rows import Emit, failed

WORKLOADS = [
    (32, 100, 1024), (128, 250, 128), (8, 1000, 1024), (16, 500, 4096), (1, 4000, 512), (16, 500, 16384),
    (64, 1000, 16384),
]  # fmt: skip
SMALL = [(2, 20, 64), (4, 30, 33)]
#: Arrays of a workload that are there at once, of float32: input, gradient, copy, spikes and membrane, and ten for a
#: pair in float64.
ARRAYS = 16
SURROGATE = exodus_core.surrogate.Sigmoid()


def run(device: Device, emit: Emit) -> None:
    """One row a workload, then rows of our other forms and of the peers."""
    contenders = peers(device, emit)
    for shape in WORKLOADS if device.is_gpu else SMALL:
        wanted = ARRAYS * 4 * shape[0] * shape[1] * shape[2]
        if wanted > device.free_bytes:
            emit({"case": str(shape), "ok": True, "detail": f"left out: takes {wanted} bytes"})
            continue
        try:
            _workload(device, shape, contenders, emit)
        except Exception as error:  # noqa: BLE001 (the other workloads go on)
            emit(failed(str(shape), error))


def pair(x: Tensor, g: Tensor, **options: Any) -> Callable[[], object]:
    """Forward and backward of our neuron."""
    leaf = x.detach().requires_grad_()

    def run() -> object:
        spikes, _ = exodus_core.lif(leaf, ALPHA, decay_reset=True, surrogate=SURROGATE, **options)
        return torch.autograd.grad(spikes, leaf, g)

    return run


def _workload(device: Device, shape: tuple[int, int, int], contenders: list[Peer], emit: Emit) -> None:
    x, g = torch.rand(shape, device=device.type) * 0.2, torch.randn(shape, device=device.type)
    other = torch.empty_like(x)
    copied = device.milliseconds(lambda: other.copy_(x))
    leaf = x.detach().requires_grad_()
    spikes, _ = exodus_core.lif(leaf, ALPHA, decay_reset=True, surrogate=SURROGATE)
    forward = device.milliseconds(lambda: exodus_core.lif(x, ALPHA, decay_reset=True, surrogate=SURROGATE))

    def back() -> object:
        return torch.autograd.grad(spikes, leaf, g, retain_graph=True)

    backward, both = device.milliseconds(back), device.milliseconds(pair(x, g))
    try:
        replayed = device.milliseconds(device.graph(pair(x, g)))
    except Exception as error:  # noqa: BLE001 (the times without a graph go on)
        emit(failed(f"{shape}, graph", error))
        replayed = math.nan
    # A copy moves 8 bytes an element; each pass reads or writes 12, both 24.
    emit({
        "(B, T, N)": str(shape), "copy ms": copied, "forward ms": forward, "backward ms": backward, "pair ms": both,
        "graph ms": replayed, "forward share": 1.5 * copied / forward, "backward share": 1.5 * copied / backward,
        "pair share": 3 * copied / (both if math.isnan(replayed) else min(both, replayed)),
    })  # fmt: skip
    for name, make in _forms(x, g, back).items():
        try:
            spent = device.milliseconds(make())
            emit({"(B, T, N)": str(shape), "form": name, "ms": spent, "of the pair": spent / both})
        except torch.OutOfMemoryError:
            emit({"case": f"{shape}, {name}", "ok": True, "detail": "left out: too little memory"})
        except Exception as error:  # noqa: BLE001 (the other forms go on)
            emit(failed(f"{shape}, {name}", error))
    for peer in contenders:
        given, wanted = (t.transpose(0, 1).contiguous() if peer.time_first else t for t in (x, g))
        try:
            spent = device.milliseconds(_theirs(peer, given.detach().requires_grad_(), wanted))
            emit({"(B, T, N)": str(shape), "peer": peer.name, "ms": spent, "times ours": spent / both})
        except Exception as error:  # noqa: BLE001 (the other peers go on)
            emit(failed(f"{shape}, {peer.name}", error))


def _theirs(peer: Peer, leaf: Tensor, g: Tensor) -> Callable[[], object]:
    """Forward and backward of another library's neuron."""
    return lambda: torch.autograd.grad(peer.run(leaf), leaf, g)


def _forms(x: Tensor, g: Tensor, back: Callable[[], object]) -> dict[str, Callable[[], Callable[[], object]]]:
    """Our other forms of the same work, by name; each is made when its turn comes, so that one at a time has memory."""

    def with_parameters() -> Callable[[], object]:
        alpha = torch.full((x.shape[2],), ALPHA, device=x.device, requires_grad=True)
        leaf = x.detach().requires_grad_()

        def run() -> object:
            spikes, _ = exodus_core.lif(leaf, alpha, decay_reset=True, surrogate=SURROGATE)
            return torch.autograd.grad(spikes, (leaf, alpha), g)

        return run

    def by(form: str) -> Callable[[], object]:
        def run() -> object:
            os.environ["EXODUS_CUDA_BACKWARD"] = form
            try:
                return back()
            finally:
                del os.environ["EXODUS_CUDA_BACKWARD"]

        return run

    def transposed(axis: int, time_dim: int) -> Callable[[], object]:
        return pair(*(t.transpose(1, axis).contiguous() for t in (x, g)), time_dim=time_dim)

    return {
        "parameter gradients": with_parameters,
        "backward, serial": lambda: by("serial"),
        "backward, chunks": lambda: by("chunks"),
        "time last": lambda: transposed(2, 2),
        "time first": lambda: transposed(0, 0),
        "slayer": lambda: pair(x, g, method="slayer"),
        "bfloat16": lambda: pair(x.bfloat16(), g.bfloat16()),
        "float16": lambda: pair(x.half(), g.half()),
        "float64": lambda: pair(x.double(), g.double()),
    }
