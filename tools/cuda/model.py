"""Times of the CUDA kernels, predicted from their machine code.

    python -m tools.cuda.model

prints what an H100 took for the kernels of commit 6a9c772, and what this model makes of them.

A warp goes around a loop: it loads some steps, waits for them, computes them. Three things make it wait longer: the
other warps of its scheduler, which starts one instruction a cycle; the memory, whose bandwidth all warps share; and its
own instructions, which depend on each other. The model is the mean value analysis of such a closed network of queues,
in Schweitzer's approximation: a warp that comes to a queue finds the mean of what the others have there.

What is known of a kernel comes from its binary (loops.py) and stands in a Launch; what is known of a GPU stands in a
Gpu. Four numbers are fitted to the measured table: H100.dram_latency, TAKEN_BRANCH, HOST_FORWARD, HOST_AUTOGRAD.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tools.cuda.loops import USUAL_LATENCY, Pass

THREADS_OF_A_WARP = 32
REGISTERS_OF_A_STEP = 8  # registers of a thread are given out in eights
SYSTEM_SHARED = 1024  # bytes of shared memory of each block that CUDA keeps, from sm_80 on

# Fitted: cycles that a taken branch costs beyond its stall, most of it fetching instructions: a loop of the measured
# kernels is 13 to 70 KB of code.
TAKEN_BRANCH = 20.0

# Fitted: milliseconds of the host before the first kernel runs, if not replayed from a CUDA graph. The forward pass
# alone records nothing for autograd.
HOST_FORWARD = 0.03
HOST_AUTOGRAD = 0.14

Shape = tuple[int, int, int]  # outer, time, inner


@dataclass(frozen=True)
class Gpu:
    """A GPU: what its multiprocessors hold, its clock in GHz, latencies in cycles, bandwidths in GB/s.

    `published` is the data sheet's bandwidth of the memory, `bandwidth` what a kernel gets of it. Below half of the L2
    cache, what a launch loads is taken to be there already, from the kernel before it or the last call: the caches have
    two halves, and a line from the far half takes room in both.
    """

    name: str
    architecture: str
    multiprocessors: int
    clock: float
    registers: int
    shared: int
    threads: int
    blocks: int
    published: float
    bandwidth: float
    dram_latency: float
    l2_bytes: int
    l2_bandwidth: float
    l2_latency: float
    schedulers: int = 4
    launch: float = 0.005  # milliseconds that a kernel takes beyond its instructions; an estimate


# Data sheets and CUDA's table of compute capabilities, except:
# clock: that of the H100 follows from what Nsight Compute said of the forward kernel in the measured run: 384
#     instructions a round, 21 cycles apart, at 82 % of the published bandwidth.
# bandwidth: those 82 %, for all.
# dram_latency: fitted for the H100. It is 1.46 times the latency that Luo et al. (arXiv 2402.13499) found for one load
#     alone; for the other GPUs theirs, times 1.46.
# l2_latency: Luo et al. l2_bandwidth: estimates.
H100 = Gpu(
    name="H100 SXM",
    architecture="sm_90",
    multiprocessors=132,
    clock=1.755,
    registers=65536,
    shared=233472,
    threads=2048,
    blocks=32,
    published=3350,
    bandwidth=2750,
    dram_latency=700,
    l2_bytes=50_000_000,
    l2_bandwidth=5500,
    l2_latency=263,
)
A100 = replace(
    H100,
    name="A100 80GB SXM",
    architecture="sm_80",
    multiprocessors=108,
    clock=1.41,
    shared=167936,
    published=2039,
    bandwidth=1670,
    dram_latency=680,
    l2_bytes=40_000_000,
    l2_bandwidth=4000,
    l2_latency=262,
)
RTX_4090 = replace(
    H100,
    name="RTX 4090",
    architecture="sm_89",
    multiprocessors=128,
    clock=2.52,
    shared=102400,
    threads=1536,
    blocks=24,
    published=1008,
    bandwidth=830,
    dram_latency=790,
    l2_bytes=72_000_000,
    l2_bandwidth=5000,
    l2_latency=273,
)
GPUS = [A100, H100, RTX_4090]


@dataclass(frozen=True)
class Loop:
    """A loop of a kernel through time; one step of a thread is all its lanes.

    Attributes:
        loaded: bytes loaded a neuron-step.
        stored: bytes stored a neuron-step.
        ahead: steps whose loads are under way together.
        group: steps that are computed before the next loads start: as many as `ahead` in a loop that loads, waits and
            computes in turn; fewer in a ring, whose loads go on meanwhile.
        instructions: instructions of a warp a neuron-step.
        cycles: cycles of a step of one warp alone beyond what it waits for loads, without TAKEN_BRANCH.
        branches: branches taken in a step.
    """

    loaded: float
    stored: float
    ahead: float
    group: float
    instructions: float
    cycles: float
    branches: float = 0.0


@dataclass(frozen=True)
class Launch:
    """A kernel as it is launched: its blocks, and the loops that every thread goes through one after the other.

    With chunks, a lane has as many threads, each with `chunk_steps` steps at a time.
    """

    name: str
    threads: int
    registers: int
    lanes: int
    loops: tuple[Loop, ...]
    shared: int = 0
    chunks: int = 1
    chunk_steps: int = 0


@dataclass(frozen=True)
class Prediction:
    """The time of a launch, and what it comes from.

    Attributes:
        milliseconds: the device's time.
        limit: what takes most of it: "bandwidth", "latency", "instructions" or "chain".
        bytes_under_way: bytes of loads under way in a busy multiprocessor, on average.
        warps: warps of its schedulers, each.
        blocks: blocks that a multiprocessor can hold.
        waves: times that the GPU is filled with blocks.
        balance: blocks of a multiprocessor on average, as a share of those of the busiest; 1 if all have the same.
    """

    milliseconds: float
    limit: str
    bytes_under_way: float
    warps: int
    blocks: int
    waves: int
    balance: float


def loop_of(measured: Pass, steps: int, lanes: int, loaded: float, stored: float, group: float | None = None) -> Loop:
    """A loop from one pass through it, of `steps` steps. Without `group`, nothing is loaded while it computes."""
    if group is None:
        ahead, group, cycles = float(steps), float(steps), measured.cycles + measured.waited - USUAL_LATENCY
    else:
        ahead, cycles = steps / measured.latencies, measured.cycles
    instructions = measured.instructions / steps / lanes
    return Loop(loaded, stored, ahead, group, instructions, cycles / steps, measured.branches / steps)


def blocks_of_a_multiprocessor(gpu: Gpu, launch: Launch) -> int:
    """Blocks that it holds at once."""
    of_a_thread = math.ceil(launch.registers / REGISTERS_OF_A_STEP) * REGISTERS_OF_A_STEP
    return min(
        gpu.registers // (of_a_thread * launch.threads),
        gpu.threads // launch.threads,
        gpu.shared // (launch.shared + SYSTEM_SHARED),
        gpu.blocks,
    )


@dataclass(frozen=True)
class _Round:
    """`ahead` steps of every warp: how long they take, in cycles, and the bounds that this is made of."""

    cycles: float
    in_flight: float  # share of the time that the loads are under way
    bounds: dict[str, float]


def _round(loop: Loop, lanes: int, warps: int, all_warps: float, latency: float, bytes_of_a_cycle: float) -> _Round:
    """Of a scheduler that has `warps`, on a GPU that has `all_warps`."""
    issue = loop.instructions * lanes * loop.ahead
    alone = max(issue, (loop.cycles + TAKEN_BRANCH * loop.branches) * loop.ahead)
    transfer = (loop.loaded + loop.stored) * lanes * THREADS_OF_A_WARP * loop.ahead / bytes_of_a_cycle

    def through(queue: float, customers: float, total: float) -> float:
        """Cycles that a customer spends in a queue with this service time, if it comes back every `total` cycles."""
        return queue / (1 - max(0.0, customers - 1) * queue / total)

    def needed(total: float) -> float:
        computing = alone - issue + through(issue, warps, total)
        return max(computing, latency + through(transfer, all_warps, total) + computing * loop.group / loop.ahead)

    low = max(warps * issue, all_warps * transfer)  # of a queue that is never empty
    high = low + alone + latency + issue + transfer
    while needed(high) > high:
        high *= 2
    for _ in range(60):  # bisection: what is needed falls as the total grows
        total = (low + high) / 2
        low, high = (total, high) if needed(total) > total else (low, total)
    total = high
    transferring = through(transfer, all_warps, total)
    waiting = latency + alone * loop.group / loop.ahead
    bounds = {
        "bandwidth": all_warps * transfer,
        "instructions": warps * issue,
        "chain" if alone > latency else "latency": max(alone, waiting),
    }
    return _Round(total, min(1.0, (latency + transferring) / total), bounds)


def predict(gpu: Gpu, launch: Launch, outer: int, time: int, inner: int) -> Prediction:
    """The time of a launch for (outer, time, inner).

    Raises:
        ValueError: a multiprocessor cannot hold one block.
    """
    steps, active = time, launch.chunks
    if launch.chunks > 1:
        active = min(launch.chunks, math.ceil(time / launch.chunk_steps))
        steps = math.ceil(time / (launch.chunks * launch.chunk_steps)) * min(time, launch.chunk_steps)
    busy = active / launch.chunks  # share of the threads that have steps
    all_blocks = math.ceil(outer * inner / launch.lanes * launch.chunks / launch.threads)
    held = blocks_of_a_multiprocessor(gpu, launch)
    if held == 0:
        raise ValueError(f"a block of {launch.name} must fit a multiprocessor of {gpu.name}")
    warps_of_a_block = launch.threads / THREADS_OF_A_WARP * busy
    touched = outer * time * inner * max(loop.loaded + loop.stored for loop in launch.loops)
    in_l2 = touched <= gpu.l2_bytes / 2
    latency = gpu.l2_latency if in_l2 else gpu.dram_latency
    bytes_of_a_cycle = (gpu.l2_bandwidth if in_l2 else gpu.bandwidth) / gpu.clock

    cycles = under_way = 0.0
    most_warps = waves = busiest = 0
    bounds: dict[str, float] = {}
    left = all_blocks
    while left > 0:
        blocks = min(left, held * gpu.multiprocessors)
        of_the_busiest = math.ceil(blocks / gpu.multiprocessors)
        warps = math.ceil(of_the_busiest * warps_of_a_block / gpu.schedulers)
        for loop in launch.loops:
            of_a_round = _round(loop, launch.lanes, warps, blocks * warps_of_a_block, latency, bytes_of_a_cycle)
            rounds = steps / loop.ahead
            cycles += rounds * of_a_round.cycles
            for limit, bound in of_a_round.bounds.items():
                bounds[limit] = bounds.get(limit, 0.0) + rounds * bound
            loads = of_the_busiest * warps_of_a_block * THREADS_OF_A_WARP * launch.lanes * loop.loaded * loop.ahead
            under_way = max(under_way, loads * of_a_round.in_flight)
        most_warps = max(most_warps, warps)
        waves += 1
        busiest += of_the_busiest
        left -= blocks
    return Prediction(
        milliseconds=cycles / gpu.clock / 1e6 + gpu.launch,
        limit=max(bounds, key=lambda limit: bounds[limit]),
        bytes_under_way=under_way,
        warps=most_warps,
        blocks=held,
        waves=waves,
        balance=all_blocks / (busiest * gpu.multiprocessors),
    )


# The kernels of commit 6a9c772 as loops.py read them, each file compiled by nvcc 13.0 with the flags of setup.py and
# -arch=sm_90 -cubin: threads, registers, lanes of a thread, and the passes. Those with one lane did not run in the
# measured cases.
#     loops lif.cubin "lif_forward_in_place<float, 4>" --set 0x2a8=0x3f800000 --set 0x2b0=2 --set 0x2b4=0
#     loops lif.cubin "lif_backward_in_place<float, 4>" SETTINGS
#     loops lif_scan.cubin "lif_backward_in_chunks<float>" SETTINGS --within 0xe00 (reduce) and 0x3ac0 (replay)
# where SETTINGS are those of max_spikes = 1, reset subtract_decayed, sigmoid, exodus, no gradient of the membrane:
#     --set 0x2b0=0x3f800000 --set 0x2b8=2 --set 0x2bc=0 --set 0x2c0=4 --set 0x2c4=0 --set 0x2d0=0 --set 0x2d4=0
#     --set 0x240=0 --set 0x244=0
FORWARD = Launch("forward, four lanes a thread", 128, 55, 4, (loop_of(Pass(384, 33, 1248, 603, 1), 4, 4, 4, 8),))
FORWARD_ONE = Launch("forward, one lane a thread", 128, 30, 1, (loop_of(Pass(226, 9, 607, 677, 1), 4, 1, 4, 8),))
SERIAL = Launch("backward, four lanes a thread", 128, 103, 4, (loop_of(Pass(1330, 97, 6511, 674, 1), 4, 4, 8, 4),))
SERIAL_ONE = Launch("backward, one lane a thread", 128, 48, 1, (loop_of(Pass(473, 25, 1930, 651, 1), 4, 1, 8, 4),))
CHUNKS = Launch(
    "backward, chunks of time",
    512,
    47,
    1,
    (loop_of(Pass(118, 7, 538, 680, 1), 1, 1, 8, 0), loop_of(Pass(119, 7, 509, 676, 1), 1, 1, 8, 4)),
    shared=8192,
    chunks=16,
    chunk_steps=64,
)


def measured_backward(outer: int, time: int, inner: int) -> Launch:
    """The backward kernel that commit 6a9c772 chooses (choice.cuh)."""
    return CHUNKS if outer * inner <= 8192 and time >= 512 else SERIAL


@dataclass(frozen=True)
class Measured:
    """Milliseconds of one shape on an H100 80GB HBM3, commit 6a9c772: medians, by events around eager calls.

    `graph` is forward and backward, replayed from a CUDA graph; `serial` and `chunks` are the backward pass, forced to
    that kernel.
    """

    shape: Shape
    forward: float
    backward: float
    pair: float
    graph: float
    serial: float | None = None
    chunks: float | None = None


MEASURED = [
    Measured((32, 100, 1024), 0.069, 0.210, 0.322, 0.177, 0.227, 0.372),
    Measured((128, 250, 128), 0.124, 0.475, 0.616, 0.420, 0.480, 0.272),
    Measured((8, 1000, 1024), 0.374, 0.296, 0.535, 0.441, 1.429, 0.219),
    Measured((16, 500, 4096), 0.229, 0.767, 0.937, 0.871, 0.832, 0.903),
    Measured((1, 4000, 512), 1.127, 0.486, 1.615, 1.473, 4.832, 0.382),
    Measured((16, 500, 16384), 0.603, 1.068, 1.490, 1.350, 0.994, 3.253),
    Measured((64, 1000, 16384), 4.67, 6.29, 10.66, 10.51),
]
FITTED = ("forward", "backward", "pair")  # columns that constants were fitted to; the others are a check


def reproduced(shape: Shape) -> dict[str, float]:
    """The columns of Measured as the model has them, in milliseconds."""
    forward, serial, chunks = (predict(H100, launch, *shape).milliseconds for launch in (FORWARD, SERIAL, CHUNKS))
    backward = chunks if measured_backward(*shape) is CHUNKS else serial
    return {
        "forward": forward + HOST_FORWARD,
        "backward": backward + HOST_AUTOGRAD,
        "pair": forward + backward + HOST_AUTOGRAD,
        "graph": forward + backward,
        "serial": serial + HOST_AUTOGRAD,
        "chunks": chunks + HOST_AUTOGRAD,
    }


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles, *cells = (f"| {' | '.join(line)} |" for line in (header, *rows))
    return "\n".join([titles, "|---" * len(header) + "|", *cells])


def validation_table() -> str:
    """Measured, reproduced and their ratio, for every shape and column."""
    columns = (*FITTED, "graph", "serial", "chunks")
    rows = []
    for measured in MEASURED:
        model = reproduced(measured.shape)
        cells = [str(measured.shape)]
        for column in columns:
            value = getattr(measured, column)
            cells.append("" if value is None else f"{value:.3f}, {model[column]:.3f}, {model[column] / value:.2f}")
        rows.append(cells)
    return _table(("(outer, time, inner)", *columns), rows)


def ratios() -> list[float]:
    """Reproduced by measured, for the fitted columns."""
    return [
        reproduced(measured.shape)[column] / getattr(measured, column) for measured in MEASURED for column in FITTED
    ]


def prediction_table(gpu: Gpu, launches: Iterable[Launch], shapes: Iterable[Shape]) -> str:
    """Predictions of launches at shapes."""
    listed = list(shapes)
    rows = []
    for launch in launches:
        for shape in listed:
            found = predict(gpu, launch, *shape)
            rows.append(
                [
                    launch.name,
                    str(shape),
                    f"{found.milliseconds:.3f}",
                    found.limit,
                    f"{found.bytes_under_way / 1024:.1f}",
                    str(found.warps),
                    str(found.waves),
                    f"{found.balance:.0%}",
                ]
            )
    header = ("kernel", "(outer, time, inner)", "ms", "limit", "KB under way", "warps", "waves", "balance")
    return _table(header, rows)


def main() -> int:
    print(validation_table())
    good = sum(0.75 <= ratio <= 1.25 for ratio in ratios())
    print(f"\n{good} of {len(ratios())} of {', '.join(FITTED)} within 25 %\n")
    print(prediction_table(H100, [FORWARD, SERIAL, CHUNKS], [measured.shape for measured in MEASURED]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
