"""The work of the CUDA kernels, counted without a GPU, and how fast it could be done.

    PYTHONPATH=build/emulate/lib python -m tools.cuda.work [--quick] [--markdown docs/cuda-roofline.md]

Bytes are counted by the emulation (tests/cuda), instructions in what nvcc makes of the plain LIF. Exits with 1 if a
kernel moves more than its budget, or if its work does not grow linearly with time. The times are computed: the longest
of what memory and instructions need at least, on published figures of a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import exodus_core
from exodus_core import AlphaKernel, ExponentialKernel
from exodus_core.surrogate import KINDS
from tools.cuda.counts import StepInstructions, Traffic, is_emulated, step_instructions, traffic
from tools.cuda.machine_code import MissingToolError

WORKLOADS = [(32, 100, 1024), (128, 250, 128), (8, 1000, 1024), (16, 500, 4096), (1, 4000, 512), (16, 500, 16384)]
TIMES = [250, 500, 1000, 2000, 4000]
FORWARD, BACKWARD, IN_CHUNKS = 12.0, 12.0, 20.0  # bytes a neuron-step of the plain float32 LIF
CHOICES = 30.0  # instructions, estimated: along the exponential's path in the code of lif_backward_in_place for sm_80
GB_MS, TERA_MS = 1e6, 1e9  # of one GB/s and of one tera-instruction a second, in a millisecond

Kernel = Tensor | ExponentialKernel | AlphaKernel


@dataclass(frozen=True)
class Gpu:
    """Published figures: memory in GB/s; tera-instructions a second, of any kind and of float32 arithmetic.

    A published peak counts a fused multiply-add as two operations, so half of it are instructions. Four warps of 32
    start an instruction in every cycle of a multiprocessor; an A100 has float32 units for two of them, others for all.
    """

    name: str
    architecture: str
    bandwidth: float
    instructions: float
    floating: float


GPUS = [
    Gpu("A100 80GB SXM", "sm_80", 2039, 19.5, 19.5 / 2),
    Gpu("H100 SXM", "sm_90", 3350, 66.9 / 2, 66.9 / 2),
    Gpu("RTX 4090", "sm_89", 1008, 82.6 / 2, 82.6 / 2),
]


@dataclass(frozen=True)
class Case:
    """A neuron at one shape: (outer, time, inner) for time_dim 1, (outer, inner, time) for time_dim 2."""

    name: str
    layout: str
    neuron: Callable[[Tensor, int], Tensor]
    shape: tuple[int, int, int] = (2, 64, 256)
    time_dim: int = 1
    dtype: torch.dtype = torch.float32
    backward: str = "serial"
    budget: tuple[float, float] | None = None  # bytes of the forward and backward kernel

    def measure(self) -> list[Traffic]:
        x = torch.randn(self.shape).to(self.dtype).requires_grad_()

        def run() -> None:
            output = self.neuron(x, self.time_dim)
            output.backward(torch.ones_like(output))

        return traffic(run, self.backward)


def _plain(x: Tensor, time_dim: int) -> Tensor:
    return exodus_core.lif(x, 0.9, time_dim=time_dim)[0]


def _per_neuron(x: Tensor, time_dim: int) -> Tensor:
    """Everything that a layer can learn, one value for each inner index."""
    inner = x.shape[3 - time_dim]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    alpha, threshold, reset_by = (
        torch.full((inner,), value, dtype=dtype, requires_grad=True) for value in (0.9, 1.0, 0.8)
    )
    return exodus_core.lif(x, alpha, threshold=threshold, reset_by=reset_by, time_dim=time_dim)[0]


def _srm(kernel: Kernel) -> Callable[[Tensor, int], Tensor]:
    return lambda x, time_dim: exodus_core.srm(x, kernel, time_dim=time_dim)[0]


def _filter(kernel: Kernel) -> Callable[[Tensor, int], Tensor]:
    return lambda x, time_dim: exodus_core.filter(x, kernel, time_dim=time_dim)


def cases() -> Iterator[Case]:
    both = (FORWARD, BACKWARD)
    yield Case("plain LIF", "four lanes a thread", _plain, budget=both)
    yield Case("plain LIF", "one lane a thread", _plain, (2, 64, 33), budget=both)
    yield Case("plain LIF", "rows of 8", _plain, (16, 64, 8), budget=both)
    yield Case("plain LIF", "time last", _plain, (2, 128, 64), 2, budget=both)
    yield Case("plain LIF", "chunks of time", _plain, (1, 1100, 32), backward="chunks", budget=(FORWARD, IN_CHUNKS))
    yield Case("LIF, parameters learnt", "T = 64", _per_neuron)
    yield Case("LIF, parameters learnt", "T = 1024", _per_neuron, (1, 1024, 64))
    yield Case("plain LIF, float16", "four lanes a thread", _plain, dtype=torch.float16, budget=(6.0, 6.0))
    yield Case("plain LIF, float64", "two lanes a thread", _plain, dtype=torch.float64, budget=(24.0, 24.0))
    yield Case("SRM, exponential", "one lane a thread", _srm(ExponentialKernel(0.9, -1.0)))
    yield Case("SRM, alpha kernel", "time last", _srm(AlphaKernel(4.0, -1.0)), (2, 128, 64), 2)
    yield Case("SRM, 16 taps", "one lane a thread", _srm(torch.full((16,), -0.1)))
    yield Case("filter, exponential", "one lane a thread", _filter(ExponentialKernel(0.9)))
    yield Case("filter, 16 taps learnt", "one lane a thread", _filter(torch.full((16,), 0.1, requires_grad=True)))


def traffic_table(cases: Iterable[Case], violations: list[str]) -> str:
    lines = [
        "| neuron | layout | kernel | loaded, B | stored, B | shared memory of a block, B |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases:
        neuron_steps = case.shape[0] * case.shape[1] * case.shape[2]
        for kernel in case.measure():
            lines.append(
                f"| {case.name} | {case.layout} | `{kernel.kernel}` | {kernel.loaded / neuron_steps:.4g} "
                f"| {kernel.stored / neuron_steps:.4g} | {kernel.shared} |"
            )
            if case.budget is None:
                continue
            budget = case.budget["backward" in kernel.kernel]
            if kernel.total != budget * neuron_steps:
                violations.append(
                    f"{case.name}, {case.layout}: {kernel.kernel} moves {kernel.total / neuron_steps} B a neuron-step, "
                    f"not {budget}"
                )
    return "\n".join(lines)


def growth_table(times: Sequence[int], violations: list[str]) -> str:
    """Bytes of the plain LIF at 64 lanes, forward and backward, for each T."""
    lines = [f"| backward | {' | '.join(f'T = {time}' for time in times)} |", "|---" * (len(times) + 1) + "|"]
    for layout, time_dim, backward in [("serial", 1, "serial"), ("time last", 2, "serial"), ("chunks", 1, "chunks")]:
        moved = []
        for time in times:
            shape = (1, time, 64) if time_dim == 1 else (1, 64, time)
            moved.append(sum(k.total for k in Case("", layout, _plain, shape, time_dim, backward=backward).measure()))
        if len({total / time for total, time in zip(moved, times, strict=True)}) > 1:
            violations.append(f"{layout}: the bytes {moved} do not grow linearly with time")
        lines.append(f"| {layout} | {' | '.join(f'{total:,}' for total in moved)} |")
    return "\n".join(lines)


def instruction_table(steps: dict[str, dict[str, StepInstructions]]) -> str:
    columns = list(steps)
    lines = [f"| pass | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    names = {"plain_forward": "forward"}
    names |= {f"plain_backward<{kind.code}>": f"backward, {name}" for name, kind in KINDS.items()}
    for kernel, name in names.items():
        cells = [f"{steps[column][kernel].all:.0f} ({steps[column][kernel].floating:.0f})" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def least_time(gpu: Gpu, neuron_steps: int, moved: float, step: StepInstructions) -> tuple[float, str]:
    """Milliseconds, and what takes them."""
    needs = {
        "memory": neuron_steps * moved / gpu.bandwidth / GB_MS,
        "instructions": neuron_steps * step.all / gpu.instructions / TERA_MS,
        "arithmetic": neuron_steps * step.floating / gpu.floating / TERA_MS,
    }
    limit = max(needs, key=lambda what: needs[what])
    return needs[limit], limit


def roofline_table(steps: dict[str, dict[str, StepInstructions]]) -> str:
    lines = [
        "| GPU | (outer, time, inner) | forward, ms | backward, ms | both, ms | limit | instructions | in chunks, ms |",
        "|---" * 8 + "|",
    ]
    for gpu in GPUS:
        if gpu.architecture not in steps:
            continue
        step = steps[gpu.architecture]
        exponential = step[f"plain_backward<{KINDS['exponential'].code}>"]
        exponential = replace(exponential, all=exponential.all + CHOICES)
        for shape in WORKLOADS:
            neuron_steps = shape[0] * shape[1] * shape[2]
            forward, of_forward = least_time(gpu, neuron_steps, FORWARD, step["plain_forward"])
            backward, of_backward = least_time(gpu, neuron_steps, BACKWARD, exponential)
            limits = " and ".join(dict.fromkeys([of_forward, of_backward]))
            busy = neuron_steps * exponential.all / gpu.instructions / TERA_MS / backward
            chunks = neuron_steps * IN_CHUNKS / gpu.bandwidth / GB_MS
            lines.append(
                f"| {gpu.name} | {shape} | {forward:.3f} | {backward:.3f} | {forward + backward:.3f} | {limits} "
                f"| {busy:.0%} | {chunks:.3f} |"
            )
    return "\n".join(lines)


def report(violations: list[str], *, quick: bool) -> str:
    steps = {gpu.architecture: step_instructions(gpu.architecture) for gpu in (GPUS[:1] if quick else GPUS)}
    counted = [case for case in cases() if case.budget is not None or not quick]
    figures = "\n".join(
        ["| published | memory, GB/s | 10^12 instructions a second | of them float32 arithmetic |", "|---|---|---|---|"]
        + [f"| {gpu.name} | {gpu.bandwidth:,.0f} | {gpu.instructions:.1f} | {gpu.floating:.1f} |" for gpu in GPUS]
    )
    return f"""# The work of the CUDA kernels, and how fast it could be done

Made by `make cuda-work` on {datetime.date.today()}. Bytes and instructions are counted; **the times are computed, not
measured**.

## Bytes of global memory, a neuron-step

Counted by the emulation, which runs the kernels as they are. Loads and stores once a neuron (parameters, their
gradients) are spread over its steps. Taps are read again in every step, and so counted, but come from a cache.

{traffic_table(counted, violations)}

The plain float32 LIF moves 12 B forward (reads x, writes s and u) and 12 B backward (reads u and g, writes lam), the
least there is. By chunks of time the backward pass reads twice: 20 B.

## Growth with time

Bytes of the plain LIF, forward and backward together, at 64 neurons: exactly linear.

{growth_table(TIMES[:2] if quick else TIMES, violations)}

## Instructions, a neuron-step

Of the plain float32 LIF with four lanes a thread, in the loop through time as nvcc compiles it, addresses and memory
included; in brackets those that add or multiply floats. Reset, method and surrogate are fixed here, so that the loop
has one path; the kernels choose at run time, which costs the backward pass about {CHOICES:.0f} more, an estimate.
Where a surrogate divides, the rare slow path of a division is counted too.

{instruction_table(steps)}

## Roofline

The least time that a launch can take: what memory and instructions need, whichever is longer, for the exponential
surrogate, its choices at run time included. "Instructions" is the share of the GPU's instruction rate that the backward
pass takes at that time. "In chunks" is the memory time of the backward pass by chunks. Launches, and too few neurons to
fill the GPU, come on top; arrays that stay in a cache may be faster.

{figures}

{roofline_table(steps)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the plain LIF, short times, one architecture")
    parser.add_argument("--markdown", type=Path, default=None, help="write the page to this file")
    options = parser.parse_args()
    if not is_emulated():
        print("exodus_core is not the emulation: PYTHONPATH must name its build (make cuda-work)", file=sys.stderr)
        return 1
    violations: list[str] = []
    os.environ.pop("LD_PRELOAD", None)  # the sanitizers of the emulation must not enter nvcc
    try:
        page = report(violations, quick=options.quick)
    except MissingToolError as error:
        print(error, file=sys.stderr)
        return 1
    print(page)
    for line in violations:
        print(line, file=sys.stderr)
    if options.markdown is not None and not violations:
        options.markdown.write_text(page)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
