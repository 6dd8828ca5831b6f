"""Memory of a contender, in arrays of the membrane's size.

Kept for the backward pass: the bytes of all storages that autograd holds between forward and backward, seen by
torch.autograd.graph.saved_tensors_hooks, each storage counted once.

Peak: what the resident memory of a fresh process rises by, at its highest, during forward + backward, outputs and
gradients included. The kernel keeps that mark (VmHWM); writing 5 to /proc/self/clear_refs sets it back to what is
resident just before, when imports, inputs and a call of three steps are done. Linux only.

    python -m benchmarks.speed.memory CONTENDER BATCH TIME NEURONS     prints the peak in bytes
"""

from __future__ import annotations

import re
import subprocess
import sys
import weakref
from pathlib import Path

import torch
from torch import Tensor

from .contenders import CONTENDERS, Contender, Spikes
from .workloads import Workload

ROOT = Path(__file__).parents[2]


class _Kept:
    """Stand-in for a saved tensor in autograd; it dies with the node of the graph that holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_arrays(contender: Contender, spikes_of: Spikes, workload: Workload) -> float:
    """Memory kept for the backward pass, relative to the membrane's size."""
    x, _ = workload.inputs()
    leaf = (contender.arrange(x) * contender.gain).requires_grad_()
    alive: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        spikes = spikes_of(leaf)
    # Branches of the graph that no gradient comes through are gone by now, and what they kept with them.
    storages = [kept.tensor.untyped_storage() for kept in alive]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    del spikes
    return sum(held.values()) / workload.nbytes


def _resident(mark: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS is what is resident, VmHWM the highest that it was."""
    found = re.search(rf"^{mark}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(f"/proc/self/status has no {mark}")
    return int(found[1]) * 1024


def _peak(contender: Contender, workload: Workload) -> int:
    spikes_of = contender.build()
    x, g = workload.inputs()
    x, g = contender.arrange(x) * contender.gain, contender.arrange(g)
    leaf = x.narrow(contender.time_dim, 0, 3).contiguous().requires_grad_()
    spikes_of(leaf).backward(g.narrow(contender.time_dim, 0, 3))
    leaf = x.requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    spikes_of(leaf).backward(g)
    return _resident("VmHWM") - before


def peak_arrays(contender: Contender, workload: Workload) -> float:
    """Peak of forward + backward in a process of its own, relative to the membrane's size."""
    command = [sys.executable, "-m", "benchmarks.speed.memory", contender.name, *map(str, workload.shape)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-1]) / workload.nbytes


if __name__ == "__main__":
    print(_peak(next(c for c in CONTENDERS if c.name == sys.argv[1]), Workload(*map(int, sys.argv[2:]))))
