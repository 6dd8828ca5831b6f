"""Proves the CUDA kernels on a machine with a GPU, in one command, and writes one report.

    python -m tools.gpu_check [--report gpu-report.md] [--quick]

The whole test suite of the core runs on the device; then under compute-sanitizer (memcheck, racecheck, initcheck,
synccheck) those tests that cross every edge of the kernels; then times: kernels against a device copy of as many bytes,
and forward + backward against SpikingJelly (CuPy, Triton) and sinabs-exodus where they are installed. A result is timed
only after its gradient has been checked. Libraries that are not installed are listed as not run. Exits with 1 if a test
or a sanitizer fails, with 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import exodus_core

ROOT = Path(__file__).parent.parent
WORKLOADS = [(32, 100, 1024), (128, 250, 128), (8, 1000, 1024), (16, 500, 4096), (1, 4000, 512), (16, 500, 16384)]
SANITIZERS = ["memcheck", "racecheck", "initcheck", "synccheck"]
ALPHA = 0.9
TAU = 10.0  # SpikingJelly's LIF without decay of the input: alpha = 1 - 1/tau

Contender = Callable[[Tensor], Tensor]


def run_tests(*arguments: str, prefix: tuple[str, ...] = ()) -> tuple[bool, str]:
    """Runs pytest on the device; whether it passed, and its last line."""
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "-m", "not peers", *arguments]
    environment = {**os.environ, "EXODUS_TEST_DEVICE": "cuda"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(result.stdout[-2000:], result.stderr[-2000:], sep="\n", flush=True)
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    return result.returncode == 0, lines[-1] if lines else f"no output, exit status {result.returncode}"


def milliseconds(step: Callable[[], object], repeats: int) -> float:
    """The shortest of the repeats, by events on the stream."""
    best = float("inf")
    for repeat in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        if repeat >= 2:
            best = min(best, start.elapsed_time(end))
    return best


def spikingjelly(backend: str) -> Contender:
    neuron = importlib.import_module("spikingjelly.activation_based.neuron")
    surrogate = importlib.import_module("spikingjelly.activation_based.surrogate")
    functional = importlib.import_module("spikingjelly.activation_based.functional")
    layer = neuron.LIFNode(
        tau=TAU,
        decay_input=False,
        v_reset=None,
        surrogate_function=surrogate.Sigmoid(4.0),
        step_mode="m",
        backend=backend,
    )

    def run(x: Tensor) -> Tensor:
        functional.reset_net(layer)
        spikes: Tensor = layer(x.transpose(0, 1)).transpose(0, 1)
        return spikes

    return run


def sinabs_exodus() -> Contender:
    layers = importlib.import_module("sinabs.exodus.layers")
    activation = importlib.import_module("sinabs.activation")
    layer = layers.LIF(
        tau_mem=-1 / torch.log(torch.tensor(ALPHA)).item(), norm_input=False, spike_fn=activation.SingleSpike
    ).cuda()

    def run(x: Tensor) -> Tensor:
        layer.reset_states()
        spikes: Tensor = layer(x)
        return spikes

    return run


def contenders() -> tuple[dict[str, Contender], list[str]]:
    """Contenders that can be timed here, and the reasons for those that cannot."""
    makers: dict[str, Callable[[], Contender]] = {
        "SpikingJelly CuPy": lambda: spikingjelly("cupy"),
        "SpikingJelly Triton": lambda: spikingjelly("triton"),
        "sinabs-exodus": sinabs_exodus,
    }
    found: dict[str, Contender] = {
        "exodus": lambda x: exodus_core.lif(x, ALPHA, decay_reset=True, surrogate=exodus_core.surrogate.Sigmoid())[0]
    }
    missing = []
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            missing.append(f"{name}: {error}")
    return found, missing


def gradient_error(shape: tuple[int, int, int]) -> float:
    """Of the kernel on the device, against the float64 loop on the CPU, on a piece of the workload."""
    x, g = torch.randn(2, 2, min(shape[1], 100), 64, device="cuda")
    leaf = x.requires_grad_()
    spikes, membrane = exodus_core.lif(leaf, ALPHA, decay_reset=True)
    (found,) = torch.autograd.grad(spikes, leaf, g)
    by_loop, looped, _ = exodus_core.reference.lif_on_trace(membrane.detach().cpu().double(), ALPHA, decay_reset=True)
    (expected,) = torch.autograd.grad(looped, by_loop, g.cpu().double())
    return float((found.cpu() - expected).abs().max() / expected.abs().max())


def time_workload(shape: tuple[int, int, int], found: dict[str, Contender], repeats: int) -> list[str]:
    """One line of the table for each contender: forward + backward, and the share of a copy's bandwidth."""
    error = gradient_error(shape)
    if error > 1e-5:
        return [f"| {shape} | wrong: relative error {error:.1e} against the reference, not timed | | | |"]
    x, g = torch.randn(2, *shape, device="cuda")
    copy = torch.empty_like(x)
    # A copy moves 8 bytes an element, forward + backward of a LIF 24.
    copied = milliseconds(lambda: copy.copy_(x), repeats)
    lines = []
    ours = float("nan")
    for name, contender in found.items():
        leaf = x.detach().requires_grad_()
        spent = milliseconds(lambda run=contender, leaf=leaf: torch.autograd.grad(run(leaf), leaf, g), repeats)  # type: ignore[misc]
        ours = spent if name == "exodus" else ours
        lines.append(f"| {shape} | {name} | {spent:.3f} | {spent / ours:.2f}x | {3 * copied / spent:.0%} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=Path("gpu-report.md"))
    parser.add_argument("--quick", action="store_true", help="the edges only, memcheck only, few repeats")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check needs a GPU and a torch with CUDA; this torch sees none", file=sys.stderr)
        return 2
    capabilities = exodus_core.capabilities()
    if not capabilities["cuda_library"]["loaded"]:
        print(f"gpu-check needs the CUDA library: {capabilities['cuda_library']['reason']}", file=sys.stderr)
        return 2
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    report = [
        "# Report of gpu-check",
        "",
        f"{datetime.date.today()}, commit {commit}, {torch.cuda.get_device_name()}, torch {capabilities['torch']}, "
        f"exodus_core {capabilities['version']} built for CUDA {capabilities['cuda_library']['built_for']} "
        f"({capabilities['cuda_library']['architectures']})",
        "",
        "## Tests",
        "",
    ]
    edges = "tests/core/test_edges.py"
    passed, line = run_tests(edges if options.quick else "tests/core")
    good = passed
    report.append(f"- on the device: {'passed' if passed else 'FAILED'}: {line}")
    tool = shutil.which("compute-sanitizer")
    for check in SANITIZERS[: 1 if options.quick else 4]:
        if tool is None:
            report.append(f"- compute-sanitizer {check}: not run, compute-sanitizer is not installed")
            continue
        passed, line = run_tests(edges, prefix=(tool, "--tool", check, "--error-exitcode", "9"))
        good = good and passed
        report.append(f"- compute-sanitizer {check}: {'passed' if passed else 'FAILED'}: {line}")
    found, missing = contenders()
    report += [
        "",
        "## Times",
        "",
        "Forward + backward of the neuron alone, float32, milliseconds, best of the repeats.",
        "",
    ]
    report += [
        "| (outer, time, inner) | contender | ms | against exodus | of a copy's bandwidth |",
        "|---|---|---|---|---|",
    ]
    for shape in WORKLOADS:
        report += time_workload(shape, found, repeats=3 if options.quick else 20)
    report += ["", *(f"Not run: {reason}" for reason in missing)]
    options.report.write_text("\n".join(report) + "\n")
    print("\n".join(report))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
