"""Where the LIF backward pass by chunks of time begins to pay: the border that `csrc/cuda/dispatch.cuh` estimates."""

from __future__ import annotations

import os

import torch

import exodus_core
from benchmarks.gpu.device import Device
from benchmarks.gpu.parts.peers import ALPHA
from benchmarks.gpu.rows import Emit, failed

LANES = (512, 2048, 8192, 16384, 32768, 65536)
TIMES = (128, 256, 512, 1024, 4096)


def run(device: Device, emit: Emit) -> None:
    """One row for each number of lanes: for every T how long chunks take against the serial pass."""
    for lanes in LANES if device.is_gpu else (64,):
        row: dict[str, object] = {"lanes": lanes}
        for time in TIMES:
            try:
                row[f"T {time}"] = _chunks_over_serial(device, lanes, time)
            except Exception as error:  # noqa: BLE001 (the other sizes go on)
                emit(failed(f"{lanes} lanes, T {time}", error))
        emit(row)


def _chunks_over_serial(device: Device, lanes: int, time: int) -> float:
    x, g = torch.rand(1, time, lanes, device=device.type) * 0.2, torch.randn(1, time, lanes, device=device.type)
    leaf = x.requires_grad_()
    spikes, _ = exodus_core.lif(leaf, ALPHA, decay_reset=True)
    spent = {}
    for form in ("serial", "chunks"):
        os.environ["EXODUS_CUDA_BACKWARD"] = form
        try:
            spent[form] = device.milliseconds(
                lambda: torch.autograd.grad(spikes, leaf, g, retain_graph=True), repeats=7, budget_s=0.3
            )
        finally:
            del os.environ["EXODUS_CUDA_BACKWARD"]
    return spent["chunks"] / spent["serial"]
