"""Time of a training step at the paper's architectures, by EXODUS, SLAYER and BPTT: table 1, right, and table 3.

    python -m experiments.speed [--quick] [--device cuda]

A step is forward pass, backward pass and Adam, on spikes that lie in the memory, in float32. All take turns in one run
(benchmarks/speed/measure.py), after their loss and gradients have been found to be those of the same network of plain
loops in float64. The neurons are timed once more by themselves, on the currents of that step: products and
convolutions are the same whatever the method, so whole steps differ by less.

BPTT is autograd through a loop over time: this project's own, and that of sinabs, which the paper compared with. On a
CPU the batch of DVS Gesture is smaller, so that a step of the slowest takes seconds.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.speed.measure import Phases, Timing, interleaved
from exodus_core import losses, network
from exodus_core.network.spiking import Lif
from experiments.architectures import ARCHITECTURES, Architecture
from experiments.contenders import CONTENDERS, DENSE, EXODUS, LOOP, SINABS, SLAYER, Contender, Fresh, Translated
from experiments.options import QuickOption
from experiments.report import COLORS, Report, progress, repeated_by, table

#: Share of ones in the input.
DENSITY = 0.05
#: Batches on a CPU, where they are not the paper's.
CPU_BATCHES = {"dvs": 4}
#: Batch, steps and repeats of --quick; seconds of repeats of each contender, there and else.
QUICK_BATCH, QUICK_STEPS, QUICK_REPEATS, QUICK_SHARE = 2, 50, 3, 0.3
REPEATS, SHARE = 20, 8.0
#: Samples and steps on which a contender is checked, and the largest error, as a share of the largest value.
CHECKED, CHECKED_STEPS, AGREEMENT = 2, 60, 1e-5
#: What EXODUS is asked for: times as fast as BPTT in a whole step, the paper's speed-ups on a GTX 1080 Ti; and at most
#: so many times as long as SLAYER.
PAPER_SPEED_UP = {"dvs": (4.55, 3.58), "shd": (2.57, 2.51), "ssc": (10.67, 5.99)}
SLAYER_AT_MOST = 1.05
#: Seconds of an epoch in table 3, with loading: EXODUS, SLAYER, BPTT.
PAPER_EPOCH = {"dvs": (33.4, 42.5, 152.1), "shd": (15.7, 16.1, 40.4), "ssc": (26.0, 68.2, 408.3)}


class Device(StrEnum):
    """The machine part that computes."""

    CPU = "cpu"
    CUDA = "cuda"


def synchronized(device: Device) -> float:
    """The clock, when all that was launched is done."""
    if device is Device.CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def batch_of(architecture: Architecture, samples: int, steps: int) -> tuple[Tensor, Tensor]:
    """Spikes by chance, shape (samples, steps, *inputs), float32, and labels."""
    chance = torch.Generator().manual_seed(0)
    shape = samples, steps, *architecture.description["input_shape"]
    spikes = (torch.rand(shape, generator=chance) < DENSITY).float()
    classes = network.parse(architecture.description).output_shape[0]
    return spikes, torch.randint(classes, (samples,), generator=chance)


def loss_of(net: nn.Module, spikes: Tensor, labels: Tensor, architecture: Architecture, time_dim: int) -> Tensor:
    """The architecture's loss of a batch in a contender's layout."""
    outputs = net(spikes).movedim(time_dim, 1)
    loss: Tensor = losses.parse(architecture.loss)(outputs, labels)[0]
    return loss


def fault(contender: Contender, architecture: Architecture, device: Device) -> str | None:
    """The first fault of the contender's loss and gradients; None if there is none.

    It is compared in float64, where no rounding decides a spike, with the same network of this project's plain loops,
    or, if its gradient is not BPTT's, with the kernels of its method.

    Raises:
        ImportError: the library is not installed.
    """
    spikes, labels = (part.to(device.value) for part in batch_of(architecture, CHECKED, CHECKED_STEPS))
    reference = Contender("reference", "bptt" if contender.method == "exodus" else contender.method, exact=True)
    wanted = contender.described(architecture.description)
    found: list[list[Tensor]] = []
    for candidate, description in ((contender, architecture.description), (reference, wanted)):
        net = candidate.build({**description, "dtype": "float64"}, device.value).double()
        loss = loss_of(net, candidate.arrange(spikes.double()), labels, architecture, candidate.time_dim)
        found.append([loss.detach(), *torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad])])
    for index, (got, right) in enumerate(zip(*found, strict=True)):
        largest = float(right.abs().max())
        error = float((got - right).abs().max())
        if not error <= AGREEMENT * largest:
            what = "the loss" if index == 0 else f"the gradient of weights {index}"
            return f"{what} differs by {error:.1e}, of at most {largest:.1e}"
    return None


def step_of(
    net: nn.Module, contender: Contender, architecture: Architecture, batch: tuple[Tensor, Tensor], device: Device
) -> Phases:
    """A training step in phases: forward pass with the loss, backward pass, optimiser."""
    spikes, labels = contender.arrange(batch[0]), batch[1]
    options = {key: value for key, value in architecture.optimizer.items() if key != "kind"}
    optimizer = torch.optim.Adam(net.parameters(), **options)

    def turn() -> tuple[float, ...]:
        optimizer.zero_grad()
        clock = [synchronized(device)]
        loss = loss_of(net, spikes, labels, architecture, contender.time_dim)
        clock.append(synchronized(device))
        loss.backward()
        clock.append(synchronized(device))
        optimizer.step()
        clock.append(synchronized(device))
        del loss
        return tuple(after - before for before, after in itertools.pairwise(clock))

    return turn


def neurons_of(net: nn.Module) -> list[nn.Module]:
    """The neuron layers of a contender's network, in order."""
    if isinstance(net, Translated):
        return [layer for layer in net.layers if isinstance(layer, Fresh)]
    return [module for module in net.modules() if isinstance(module, Lif)]


def currents_of(net: nn.Module, spikes: Tensor) -> list[Tensor]:
    """The currents of each neuron layer of a network of this project, shape (batch, time, ...)."""
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach())) for layer in neurons_of(net)
    ]
    with torch.no_grad():
        net(spikes)
    for hook in hooks:
        hook.remove()
    return seen


def neurons_turn(net: nn.Module, contender: Contender, currents: list[Tensor], device: Device) -> Phases:
    """All neuron layers of a step, one after the other, in phases: forward passes, backward passes."""
    layers = neurons_of(net)
    arranged = [contender.arrange(current) for current in currents]
    chance = torch.Generator().manual_seed(1)
    grads = [contender.arrange(torch.randn(current.shape, generator=chance).to(current.device)) for current in currents]

    def turn() -> tuple[float, ...]:
        forward = backward = 0.0
        for layer, current, grad in zip(layers, arranged, grads, strict=True):
            leaf = current.detach().requires_grad_()
            start = synchronized(device)
            spikes = layer(leaf)
            middle = synchronized(device)
            spikes.backward(grad)
            backward += synchronized(device) - middle
            forward += middle - start
            del spikes, leaf
        return forward, backward

    return turn


@dataclass
class Measured:
    """Times at one architecture.

    Attributes:
        batch, steps: that were computed.
        step, neurons: timings by contender.
        rates: share of the steps at which the neurons of each layer fire.
        wrong: contenders that were not timed, with the reason.
    """

    batch: int
    steps: int
    step: dict[str, Timing] = field(default_factory=dict)
    neurons: dict[str, Timing] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)


def measure(name: str, device: Device, quick: bool) -> Measured:
    """Checks and times all contenders at an architecture."""
    architecture = ARCHITECTURES[name]
    batch = CPU_BATCHES.get(name, architecture.batch) if device is Device.CPU else architecture.batch
    measured = Measured(*((QUICK_BATCH, QUICK_STEPS) if quick else (batch, architecture.steps)))
    spikes, labels = (part.to(device.value) for part in batch_of(architecture, measured.batch, measured.steps))
    nets: dict[str, nn.Module] = {}
    right = []
    for contender in CONTENDERS:
        try:
            found = fault(contender, architecture, device)
        except ImportError as error:
            found = f"not installed (`make peers` installs it): {error}"
        if found is None:
            nets[contender.name] = contender.build(architecture.description, device.value)
            right.append(contender)
        else:
            measured.wrong[contender.name] = found
    currents = currents_of(nets[DENSE], spikes)
    for layer, current in zip(neurons_of(nets[DENSE]), currents, strict=True):
        with torch.no_grad():
            measured.rates.append(float(layer(current).mean()))
    most, share = (QUICK_REPEATS, QUICK_SHARE) if quick else (REPEATS, SHARE)
    alone = {c.name: neurons_turn(nets[c.name], c, currents, device) for c in right if c.name != DENSE}
    measured.neurons = interleaved(alone, most, share / 2)
    del alone, currents
    steps = {c.name: step_of(nets[c.name], c, architecture, (spikes, labels), device) for c in right}
    measured.step = interleaved(steps, most, share)
    return measured


def times(timings: Mapping[str, Timing], name: str, against: str = EXODUS) -> float:
    """How many times as long as another a contender takes, best against best; NaN if one was not timed."""
    if name not in timings or against not in timings:
        return math.nan
    return timings[name].best / timings[against].best


def milliseconds(seconds: float) -> str:
    """Three digits."""
    return f"{seconds * 1e3:.3g}"


def page_of(name: str, measured: Measured) -> str:
    """The table of an architecture, and what it was measured on."""
    architecture = ARCHITECTURES[name]
    rows = []
    for contender in (c.name for c in CONTENDERS if c.name in measured.step):
        step = measured.step[contender]
        epoch = step.best * architecture.updates * architecture.batch / measured.batch
        row = [contender, *(milliseconds(step.best_of(phase)) for phase in range(3))]
        row += [f"{milliseconds(step.best)} ({times(measured.step, contender):.3g}x)", f"{epoch:,.1f} s"]
        if contender in measured.neurons:
            alone = measured.neurons[contender]
            row += [milliseconds(alone.best_of(0)), milliseconds(alone.best_of(1))]
            row.append(f"{milliseconds(alone.best)} ({times(measured.neurons, contender):.3g}x)")
        else:
            row += [""] * 3
        rows.append(row)
    header = ["", "forward", "backward", "Adam", "step", "epoch", "neurons, forward", "backward", "both"]
    smaller = "" if measured.batch == architecture.batch else f" (the paper's is {architecture.batch})"
    shape = " x ".join(map(str, architecture.description["input_shape"]))
    share = measured.neurons[EXODUS].best / measured.step[EXODUS].best
    lines = [
        f"## {architecture.title}",
        f"Batch {measured.batch}{smaller}, {measured.steps} steps, inputs {shape}, of which {DENSITY:.0%} are spikes; "
        f"neurons fire at {', '.join(f'{rate:.1%}' for rate in measured.rates)} of the steps, layer by layer. "
        f"Milliseconds, in brackets how many times as long as EXODUS. Neurons take {share:.0%} of a step of EXODUS. "
        f"Epoch: {architecture.updates} updates with {architecture.batch} samples, computed from the step.",
        table(header, rows),
        *(f"{contender}: not timed, {why}." for contender, why in measured.wrong.items()),
    ]
    return "\n\n".join(lines)


def claims(found: Mapping[str, Measured]) -> list[tuple[str, str, float, float, bool]]:
    """Bounds of a whole step: architecture, claim, value found, bound, and True if it holds."""
    rows = []
    for name, measured in found.items():
        title, wanted = ARCHITECTURES[name].title, PAPER_SPEED_UP[name][0]
        for loop in (SINABS, LOOP):
            speed_up = times(measured.step, loop)
            rows.append((title, f"times as fast as {loop}, at least", speed_up, wanted, speed_up >= wanted))
        slower = times(measured.step, EXODUS, SLAYER)
        rows.append((title, "times as long as SLAYER, at most", slower, SLAYER_AT_MOST, slower <= SLAYER_AT_MOST))
    return rows


def draw(found: Mapping[str, Measured]) -> Figure:
    """How many times as long as EXODUS each takes, in a whole step and neurons alone."""
    figure = Figure(figsize=(4 * len(found), 3.4), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    names = [contender.name for contender in CONTENDERS]
    places = torch.arange(len(names)).flip(0).tolist()
    for axes, (name, measured) in zip(panels, found.items(), strict=True):
        shown: list[float] = []
        for timings, shift, color, label in (
            (measured.step, 0.2, COLORS["exodus"], "whole step"),
            (measured.neurons, -0.2, COLORS["slayer"], "neurons alone"),
        ):
            ratios = [times(timings, contender) for contender in names]
            shown += ratios
            axes.barh([place + shift for place in places], ratios, height=0.38, color=color, label=label)
            for place, ratio in zip(places, ratios, strict=True):
                if math.isfinite(ratio):
                    axes.text(ratio, place + shift, f" {ratio:.3g}", va="center", fontsize="x-small")
        axes.axvline(PAPER_SPEED_UP[name][0], color="#000000", linestyle=":", label="the paper's BPTT")
        axes.set_xscale("log")
        axes.set_xlim(0.5, 4 * max(filter(math.isfinite, shown)))
        axes.set_yticks(places, names)
        axes.set_title(ARCHITECTURES[name].title)
        axes.set_xlabel("times as long as EXODUS")
    panels[0].legend(fontsize="x-small", loc="lower right")
    return figure


def write(report: Report, found: Mapping[str, Measured], device: Device) -> None:
    """Adds claims, tables, figure and numbers to the report."""
    asked = [
        [title, claim, f"{bound:g}", f"{value:.3g}", "yes" if holds else "NO"]
        for title, claim, value, bound, holds in claims(found)
    ]
    report.add(
        f"Computed on {torch.cuda.get_device_name() if device is Device.CUDA else 'the CPU'}. A whole step of EXODUS "
        "against those of others, best against best. The paper's BPTT is that of sinabs, and the bounds are its "
        "speed-ups on a GTX 1080 Ti.",
        table(["architecture", "EXODUS is or takes", "bound", "found", "holds"], asked),
    )
    report.figure(draw(found), "How many times as long as EXODUS each method takes")
    report.add(*(page_of(name, measured) for name, measured in found.items()))
    report.add(
        "## The paper's times",
        "Table 3, seconds of an epoch with the loading of the data, and table 1, how many times as fast as BPTT:",
        table(
            ["", "EXODUS", "SLAYER", "BPTT", "speed-up EXODUS", "speed-up SLAYER"],
            [[ARCHITECTURES[name].title, *PAPER_EPOCH[name], *PAPER_SPEED_UP[name]] for name in PAPER_EPOCH],
        ),
        "EXODUS and SLAYER read spikes as spikes where that is faster (docs/sparse.md), and so does the plain loop; "
        f"{DENSE!r} does not, nor do the libraries. The loop of sinabs takes an index a step, x[:, t], whose backward "
        "pass is quadratic in the number of steps; the plain loop here does not. The gradient of SpikingJelly has its "
        "sigmoid as surrogate.",
    )
    report.numbers |= {
        "device": device.value,
        "threads": torch.get_num_threads(),
        "architectures": {name: _plain_numbers(measured) for name, measured in found.items()},
        "claims": [
            {"architecture": title, "claim": claim, "found": value if math.isfinite(value) else None, "bound": bound}
            for title, claim, value, bound, _ in claims(found)
        ],
    }


def _plain_numbers(measured: Measured) -> dict[str, Any]:
    timings = {"step": measured.step, "neurons": measured.neurons}
    return {
        "batch": measured.batch,
        "steps": measured.steps,
        "rates": measured.rates,
        "wrong": measured.wrong,
        **{what: {name: list(timing.repeats) for name, timing in of.items()} for what, of in timings.items()},
    }


DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]


def main(device: DeviceOption = Device.CPU, quick: QuickOption = False) -> None:
    """Time training steps of the paper's architectures."""
    if device is Device.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("there is no GPU that torch can use", param_hint="--device")
    command = repeated_by("speed", {"device": None if device is Device.CPU else device.value, "quick": quick})
    stem = "speed" if device is Device.CPU else f"speed-{device}"
    report = Report(stem, "Training speed of EXODUS, SLAYER and BPTT", command)
    found = {}
    with progress() as bar:
        for name in bar.track(ARCHITECTURES, description="architectures"):
            found[name] = measure(name, device, quick)
    write(report, found, device)
    report.publish(quick=quick, where=f"this program, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    typer.run(main)
