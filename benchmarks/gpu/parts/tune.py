"""The choices of the LIF kernels, measured: the table that `csrc/cuda/choice.cuh` has for GPUs like this one."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

import exodus_core
from benchmarks.gpu.device import Device
from benchmarks.gpu.parts.peers import ALPHA
from benchmarks.gpu.rows import Emit, failed

LANES = (512, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)
TIMES = (128, 256, 320, 512, 768, 1024, 4096)
ROW_BYTES = (4, 8, 16)
ROW_TIME = 512  # steps at which widths are compared
PAYS = 0.95  # of the serial time that chunks must take at most


def run(device: Device, emit: Emit) -> None:
    """One row for each number of lanes: milliseconds by bytes of a thread's rows, and time by chunks over serial."""
    table = []
    for lanes in LANES if device.is_gpu else (64,):
        row: dict[str, object] = {"lanes": lanes}
        by_width: dict[int, float] = {}
        ratios: dict[int, float] = {}
        try:
            for row_bytes in ROW_BYTES:
                choice = {"EXODUS_CUDA_ROW_BYTES": str(row_bytes), "EXODUS_CUDA_BACKWARD": "serial"}
                by_width[row_bytes] = _milliseconds(device, lanes, ROW_TIME, choice, with_forward=True)
                row[f"rows of {row_bytes} B, ms"] = by_width[row_bytes]
            for time in TIMES if lanes <= 32768 else ():
                serial, chunks = (
                    _milliseconds(device, lanes, time, {"EXODUS_CUDA_BACKWARD": form}, with_forward=False)
                    for form in ("serial", "chunks")
                )
                ratios[time] = chunks / serial
                row[f"chunks, T {time}"] = ratios[time]
        except Exception as error:  # noqa: BLE001 (the other sizes go on)
            emit(failed(f"{lanes} lanes", error))
            continue
        emit(row)
        table.append(f"{{{lanes}, {min(by_width, key=lambda width: by_width[width])}, {_chunk_steps(ratios)}}}")
    emit({"case": "table for choice.cuh", "ok": True, "detail": ", ".join(table)})


def _chunk_steps(ratios: dict[int, float]) -> int:
    """The fewest steps from which on chunks pay at every time that was measured; 0 if there are none."""
    paying = 0
    for time in sorted(ratios, reverse=True):
        if ratios[time] > PAYS:
            break
        paying = time
    return paying


def _milliseconds(device: Device, lanes: int, time: int, choice: dict[str, str], *, with_forward: bool) -> float:
    """Of the backward pass, or of both, with these overrides of choice.cuh."""
    x, g = torch.rand(1, time, lanes, device=device.type) * 0.2, torch.randn(1, time, lanes, device=device.type)
    leaf = x.requires_grad_()

    def forward() -> torch.Tensor:
        return exodus_core.lif(leaf, ALPHA, decay_reset=True)[0]

    spikes = forward()
    backward: Callable[[], object] = lambda: torch.autograd.grad(spikes, leaf, g, retain_graph=True)  # noqa: E731
    both: Callable[[], object] = lambda: torch.autograd.grad(forward(), leaf, g)  # noqa: E731
    os.environ.update(choice)
    try:
        return device.milliseconds(both if with_forward else backward, repeats=7, budget_s=0.2)
    finally:
        for name in choice:
            del os.environ[name]
