"""The work of the CUDA kernels, counted without a GPU, and the times that follow from it.

    PYTHONPATH=build/emulate-90/lib python -m tools.cuda.work [--quick] [--markdown docs/cuda-roofline.md]

Bytes are counted by the emulation (tests/cuda), instructions and their dependences in the library that `cuda-check` has
built; model.py makes times of them. Exits with 1 if a kernel moves more than its budget, if its work does not grow
linearly with time, if the model does not reproduce what was measured on an H100, or if a multiprocessor has too few
bytes under way.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import exodus_core
from exodus_core import AlphaKernel, ExponentialKernel
from exodus_core.surrogate import KINDS
from tools.cuda.check import LIBRARY, built_architectures
from tools.cuda.counts import Traffic, is_emulated, traffic
from tools.cuda.kernels import SIDE_BY_SIDE, Kernels
from tools.cuda.machine_code import MissingToolError
from tools.cuda.model import GPUS, H100, MEASURED, Gpu, ratios, validation_table

WORKLOADS = [measured.shape for measured in MEASURED]
FORM_SHAPES = [(16, 500, 4096), (16, 500, 16384)]
TIMES = [250, 500, 1000, 2000, 4000]
FORWARD, BACKWARD, IN_CHUNKS = 12.0, 12.0, 20.0  # bytes a neuron-step of the plain float32 LIF
REPRODUCED = 18  # of the 21 measured times, within 25 %
MANY_LANES, LEAST_UNDER_WAY = 65536, 18_000  # bytes of a multiprocessor: 3.35 TB/s, 132 of them, 700 ns

Kernel = Tensor | ExponentialKernel | AlphaKernel


@dataclass(frozen=True)
class Case:
    """A neuron at one shape: (outer, time, inner) for time_dim 1, (outer, inner, time) for time_dim 2."""

    name: str
    layout: str
    neuron: Callable[[Tensor, int], Tensor]
    shape: tuple[int, int, int] = (2, 64, 256)
    time_dim: int = 1
    dtype: torch.dtype = torch.float32
    choice: dict[str, str] = field(default_factory=lambda: {"EXODUS_CUDA_BACKWARD": "serial"})
    budget: tuple[float, float] | None = None  # bytes of the forward and backward kernel

    def measure(self) -> list[Traffic]:
        x = torch.randn(self.shape).to(self.dtype).requires_grad_()

        def run() -> None:
            output = self.neuron(x, self.time_dim)
            output.backward(torch.ones_like(output))

        return traffic(run, self.choice)


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


CHUNKS = {"EXODUS_CUDA_BACKWARD": "chunks"}


def _rows(row_bytes: int) -> dict[str, str]:
    return {"EXODUS_CUDA_BACKWARD": "serial", "EXODUS_CUDA_ROW_BYTES": str(row_bytes)}


def cases() -> Iterator[Case]:
    both = (FORWARD, BACKWARD)
    yield Case("plain LIF", "one lane a thread", _plain, budget=both, choice=_rows(4))
    yield Case("plain LIF", "four lanes a thread", _plain, budget=both, choice=_rows(16))
    yield Case("plain LIF", "odd rows", _plain, (2, 63, 33), budget=both)
    yield Case("plain LIF", "rows of 8", _plain, (16, 64, 8), budget=both)
    yield Case("plain LIF", "time last", _plain, (2, 128, 64), 2, budget=both)
    yield Case("plain LIF", "chunks of time", _plain, (1, 1100, 32), choice=CHUNKS, budget=(FORWARD, IN_CHUNKS))
    yield Case("LIF, parameters learnt", "T = 64", _per_neuron)
    yield Case("LIF, parameters learnt", "T = 1024", _per_neuron, (1, 1024, 64))
    half = (6.0, 6.0)
    yield Case("plain LIF, float16", "two lanes a thread", _plain, dtype=torch.float16, budget=half, choice=_rows(4))
    yield Case("plain LIF, float16", "eight lanes a thread", _plain, dtype=torch.float16, budget=half, choice=_rows(16))
    yield Case("plain LIF, float64", "one lane a thread", _plain, dtype=torch.float64, budget=(24.0, 24.0))
    yield Case("SRM, exponential", "in place", _srm(ExponentialKernel(0.9, -1.0)))
    yield Case("SRM, alpha kernel", "time last", _srm(AlphaKernel(4.0, -1.0)), (2, 128, 64), 2)
    yield Case("SRM, 16 taps", "in place", _srm(torch.full((16,), -0.1)))
    yield Case("filter, exponential", "in place", _filter(ExponentialKernel(0.9)))
    yield Case("filter, 16 taps learnt", "in place", _filter(torch.full((16,), 0.1, requires_grad=True)))


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
    for layout, time_dim, choice in [("serial", 1, _rows(4)), ("time last", 2, _rows(4)), ("chunks", 1, CHUNKS)]:
        moved = []
        for time in times:
            shape = (1, time, 64) if time_dim == 1 else (1, 64, time)
            moved.append(sum(k.total for k in Case("", layout, _plain, shape, time_dim, choice=choice).measure()))
        if len({total / time for total, time in zip(moved, times, strict=True)}) > 1:
            violations.append(f"{layout}: the bytes {moved} do not grow linearly with time")
        lines.append(f"| {layout} | {' | '.join(f'{total:,}' for total in moved)} |")
    return "\n".join(lines)


def instruction_table(kernels: Sequence[Kernels]) -> str:
    """Of the float32 LIF with one lane a thread, per neuron-step."""
    lines = [
        f"| pass | {' | '.join(of_one.architecture for of_one in kernels)} |",
        "|---" * (len(kernels) + 1) + "|",
    ]
    passes = {"forward": [of_one.forward_pass(1) for of_one in kernels]}
    passes |= {f"backward, {kind}": [of_one.backward_pass(1, kind) for of_one in kernels] for kind in KINDS}
    for name, found in passes.items():
        cells = [f"{one.instructions / SIDE_BY_SIDE:.0f} ({one.cycles / SIDE_BY_SIDE:.0f})" for one in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def prediction_table(pairs: Sequence[tuple[Gpu, Kernels]], violations: list[str]) -> str:
    """Times of the present kernels, chosen as choice.cuh does; those measured for the earlier ones beside them."""
    lines = [
        "| GPU | (outer, time, inner) | forward, ms | backward, ms | both, ms | earlier kernels, measured | limits "
        "| KB under way |",
        "|---" * 8 + "|",
    ]
    for gpu, kernels in pairs:
        for measured in MEASURED:
            outer, _, inner = measured.shape
            found = kernels.predict(gpu, measured.shape)
            forward, backward = (one.milliseconds for one in found)
            limits = " and ".join(dict.fromkeys(one.limit for one in found))
            under_way = " and ".join(f"{one.bytes_under_way / 1e3:.0f}" for one in found)
            earlier = f"{measured.graph:.3f}" if gpu is H100 else ""
            lines.append(
                f"| {gpu.name} | {measured.shape} | {forward:.3f} | {backward:.3f} | {forward + backward:.3f} "
                f"| {earlier} | {limits} | {under_way} |"
            )
            if outer * inner >= MANY_LANES and min(one.bytes_under_way for one in found) < LEAST_UNDER_WAY:
                violations.append(f"{gpu.name} at {measured.shape}: {under_way} KB under way, not {LEAST_UNDER_WAY}")
    return "\n".join(lines)


def forms_table(kernels: Kernels) -> str:
    """Element types and parameter gradients on an H100."""
    lines = ["| form | (outer, time, inner) | forward, ms | backward, ms | both over plain |", "|---" * 5 + "|"]
    forms = {"float32": ("float", False), "float16": ("Half", False), "bfloat16": ("BFloat16", False)}
    forms["parameter gradients"] = ("float", True)
    for shape in FORM_SHAPES:
        plain = sum(one.milliseconds for one in kernels.predict(H100, shape))
        for name, (element, sums) in forms.items():
            forward, backward = (one.milliseconds for one in kernels.predict(H100, shape, element, sums=sums))
            lines.append(f"| {name} | {shape} | {forward:.3f} | {backward:.3f} | {(forward + backward) / plain:.2f} |")
    return "\n".join(lines)


def report(violations: list[str], *, quick: bool) -> str:
    built = {f"sm_{entry.replace('.', '').removesuffix('+PTX')}" for entry in built_architectures().split(";")}
    pairs = [
        (gpu, Kernels(LIBRARY, gpu.architecture))
        for gpu in GPUS
        if gpu.architecture in built and (gpu is H100 or not quick)
    ]
    counted = [case for case in cases() if case.budget is not None or not quick]
    good = sum(0.75 <= ratio <= 1.25 for ratio in ratios())
    if good < REPRODUCED:
        violations.append(f"the model reproduces {good} of {len(ratios())} measured times within 25 %")
    return f"""# The work of the CUDA kernels, and the times that follow from it

Made by `make cuda-work` on {datetime.date.today()}. Bytes and instructions are counted; **the times are computed, not
measured**, except where a table says so.

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

Of the float32 LIF with one lane a thread, on the path of a plain neuron (reset decayed, one spike a step) through the
loop over time, addresses and memory included; in brackets the cycles of one warp alone, for whose dependences nothing
else makes up (tools/cuda/loops.py). Four steps stand side by side.

{instruction_table([kernels for _, kernels in pairs])}

## The model, and what was measured

tools/cuda/model.py has a queue for the instructions of a scheduler and one for the memory, and takes the facts of a
kernel from its machine code. It was fitted, with four constants, to the forward, backward and pair times that an H100
took for earlier kernels (docs/cuda.md); the other columns are a check. Each cell has milliseconds measured and
reproduced, and their ratio; {good} of {len(ratios())} fitted ones are within 25 %.

{validation_table()}

## Times of the present kernels, predicted

Sigmoid surrogate, device only, the choices of `csrc/cuda/choice.cuh`. The ring of steps in flight, which the earlier
kernels did not have, is a part of the model that no measurement has confirmed yet. "Under way" are the bytes of loads
in one multiprocessor, forward and backward.

{prediction_table(pairs, violations)}

## Other forms on an H100, predicted

{forms_table(next(kernels for gpu, kernels in pairs if gpu is H100))}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the plain LIF, short times, one GPU")
    parser.add_argument("--markdown", type=Path, default=None, help="write the page to this file")
    options = parser.parse_args()
    if not is_emulated():
        print("exodus_core is not the emulation: PYTHONPATH must name its build (make cuda-work)", file=sys.stderr)
        return 1
    if not LIBRARY.exists():
        print(f"{LIBRARY} does not exist: `make cuda-check` builds it", file=sys.stderr)
        return 1
    violations: list[str] = []
    os.environ.pop("LD_PRELOAD", None)  # the sanitizers of the emulation must not enter the tools
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
