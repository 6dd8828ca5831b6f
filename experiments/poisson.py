"""Fits Poisson spike trains: one output neuron shall fire at four given times (section 6.5, figure 4 of the paper).

    python -m experiments.poisson [--normalised] [--quick] [--local | --url URL] [--seed N]

250 inputs fire at random over 200 steps of 1 ms; 25 hidden and one output LIF neuron; mean squared error between output
spikes and target; Adam, 3,000 epochs, of one update each; EXODUS and SLAYER from the same weights, for each pair of a
time constant and a learning rate. The claim: the loss, averaged over runs and summed over epochs, is smaller with
EXODUS than with SLAYER for every pair.

The paper leaves out the values of the grid and of some settings. Those here are of the script that its authors
published with it (github.com/synsense/slayer-comparison, archive/poisson_task): time constants 4, 22.6 and 128 ms,
rates 1e-4, 1e-3 and 1e-2, input spikes at a tenth of the steps, target spikes not before step 40, initial weights of
ten times the usual size (the default of the layers of slayerPytorch), threshold 1, surrogate derivative exp(-|u - 1|).
The reset is the paper's, not decayed in its first step (26). Other than there, all pairs have the same five runs:
inputs, targets and initial weights.

The EXODUS network of that script has the layer LIF of sinabs-exodus, whose default multiplies the input by 1 - alpha
(`norm_input`), and its SLAYER network does not: they are different neurons, and what differs is not the gradient alone.
Here both methods have the same neuron: that of the paper (26), which takes the input as it is, or, with --normalised,
that of sinabs-exodus. The second is the first with threshold and reset divided by 1 - alpha, so that no layer of its
own is needed: membranes in units of the input instead of the threshold.

The runs of a pair are trained side by side, as one network: a convolution of kernel size 1 with as many groups as runs
is a linear layer for each run. The loss of the network is the mean over the runs, so each run sees its own gradient
divided by their number; with Adam's epsilon divided likewise its updates are those of a run alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.options import LocalOption, QuickOption, SeedOption, UrlOption
from experiments.report import COLORS, Report, progress, repeated_by, table
from experiments.training import Batch, Description, Method, Place, place, with_method

STEPS, INPUTS, HIDDEN = 200, 250, 25
INPUT_RATE = 0.1
TARGET_SPIKES, TARGET_FROM = 4, STEPS // 5
#: Factor on initial weights, which are uniform within 1/sqrt(inputs) of 0.
GAIN = 10.0
LOSS = "spike_train_mse"
ADAM_EPSILON = 1e-8
METHODS: tuple[Method, ...] = ("exodus", "slayer")
#: The output is read once in so many epochs.
READ_EVERY = 10
COLUMNS = (
    *("τ (ms)", "rate", "summed, EXODUS", "SLAYER", "SLAYER / EXODUS", "runs with EXODUS lower"),
    *("last tenth, EXODUS", "SLAYER", "target met, EXODUS", "SLAYER"),
)
#: Loss of an output that never fires.
SILENT = TARGET_SPIKES / STEPS


class Pair(NamedTuple):
    """A time constant in steps, and a learning rate."""

    tau: float
    rate: float

    def __str__(self) -> str:
        return f"τ = {self.tau:.3g} ms, rate {self.rate:g}"


class Plan(NamedTuple):
    """Extent of the training.

    Attributes:
        pairs: in the order of the table; figures show spikes and curves of the last one.
        runs: for each pair and method.
        epochs: updates of each run.
        normalised: whether the input of the neurons is multiplied by 1 - alpha.
    """

    pairs: tuple[Pair, ...]
    runs: int
    epochs: int
    normalised: bool = False


FULL = Plan(tuple(Pair(tau, rate) for tau in (4.0, 2**4.5, 128.0) for rate in (1e-4, 1e-3, 1e-2)), 5, 3000)
QUICK = Plan((Pair(4.0, 1e-2), Pair(128.0, 1e-2)), 1, 100)


def tasks(runs: int, seed: int) -> Batch:
    """Input and target spikes of runs side by side, of shapes (1, STEPS, runs INPUTS, 1) and (1, STEPS, runs, 1)."""
    generator = torch.Generator().manual_seed(seed)
    spikes = torch.rand(1, STEPS, runs * INPUTS, 1, generator=generator) < INPUT_RATE
    targets = torch.zeros(1, STEPS, runs, 1)
    for run in range(runs):
        # Four different steps: an output neuron cannot fire twice in one.
        times = TARGET_FROM + torch.randperm(STEPS - TARGET_FROM, generator=generator)[:TARGET_SPIKES]
        targets[0, times, run] = 1
    return Batch(spikes, targets)


def lif(tau: float, *, normalised: bool = False) -> dict[str, Any]:
    """A layer of neurons with threshold 1 and surrogate derivative exp(-|u - 1|).

    With normalised input, u[t] = alpha u[t-1] + (1 - alpha) x[t] - s[t-1], it is described by v = u / (1 - alpha).
    """
    alpha = math.exp(-1 / tau)
    unit = 1 - alpha if normalised else 1.0
    surrogate = {"kind": "exponential", "slope": unit, "scale": unit}
    return {"kind": "lif", "alpha": alpha, "threshold": 1 / unit, "surrogate": surrogate}


def side_by_side(runs: int, neuron: Mapping[str, Any]) -> Description:
    """Networks INPUTS-HIDDEN-1, as many as runs, which do not see each other."""
    layers: list[dict[str, Any]] = []
    for outputs in (HIDDEN, 1):
        linear = {"kind": "conv1d", "out_channels": runs * outputs, "kernel_size": 1, "groups": runs}
        layers += [{**linear, "bias": False, "gain": GAIN}, dict(neuron)]
    return {"input_shape": [runs * INPUTS, 1], "layers": layers}


@dataclass(frozen=True)
class Course:
    """Training of the runs of a pair by one method.

    Attributes:
        losses: average over the runs, one an epoch, before its update.
        spikes: outputs at every READ_EVERY-th epoch, shape (readings, STEPS, runs), bool.
        run_losses: losses of each run at these epochs, shape (readings, runs).
    """

    losses: list[float]
    spikes: Tensor
    run_losses: Tensor

    @property
    def summed(self) -> float:
        """The loss averaged over runs and summed over epochs."""
        return math.fsum(self.losses)

    @property
    def last(self) -> float:
        """Average over the last tenth of the epochs."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return math.fsum(tail) / len(tail)

    @property
    def fitted(self) -> list[int | None]:
        """For each run the first epoch, of those that were read, with the target spikes and no others; None: none."""
        exact = (self.run_losses == 0).T
        return [int(run.nonzero()[0]) * READ_EVERY if run.any() else None for run in exact]


def train(where: Place, pair: Pair, method: Method, plan: Plan, seed: int, advance: Callable[[int], object]) -> Course:
    """Trains the runs of a pair from the weights of a seed; calls `advance` with numbers of epochs done."""
    batch = tasks(plan.runs, seed)
    learner = where.learner(
        with_method(side_by_side(plan.runs, lif(pair.tau, normalised=plan.normalised)), method),
        loss=LOSS,
        optimizer={"kind": "adam", "lr": pair.rate, "eps": ADAM_EPSILON / plan.runs},
        seed=seed,
    )
    losses: list[float] = []
    readings = []
    for start in range(0, plan.epochs, READ_EVERY):
        readings.append(learner.outputs(batch.spikes)[0, :, :, 0])
        count = min(READ_EVERY, plan.epochs - start)
        losses += [update.loss for update in learner.learn([batch] * count)]
        advance(count)
    learner.close()
    outputs = torch.stack(readings)
    return Course(losses, outputs > 0, (outputs - batch.targets[0, :, :, 0]).square().mean(1))


#: Courses by pair and method.
Courses = dict[tuple[Pair, Method], Course]


def train_all(where: Place, plan: Plan, seed: int) -> Courses:
    """Trains every pair by both methods, under a progress bar; prints the summed losses of each pair."""
    courses: Courses = {}
    with progress() as bar:
        shown = bar.add_task("", total=len(plan.pairs) * len(METHODS) * plan.epochs)
        for pair in plan.pairs:
            for method in METHODS:
                bar.update(shown, description=f"{method.upper()}, {pair}")
                courses[pair, method] = train(where, pair, method, plan, seed, lambda done: bar.advance(shown, done))
            sums = ", ".join(f"{method.upper()} {courses[pair, method].summed:.1f}" for method in METHODS)
            bar.console.print(f"{pair}: summed loss of {sums}")
    return courses


def report(courses: Courses, plan: Plan, seed: int, made: Report) -> None:
    """Writes the text, the table, the figure and the numbers."""
    lower = [pair for pair in plan.pairs if courses[pair, "exodus"].summed < courses[pair, "slayer"].summed]
    made.add(
        f"250 Poisson inputs, 25 hidden LIF neurons, one output neuron that shall fire at {TARGET_SPIKES} of {STEPS} "
        f"steps; {plan.runs} runs for each pair and method, {plan.epochs:,} epochs. The loss is the mean squared error "
        "of the output spikes; the summed loss of a pair is this loss averaged over the runs and summed over the "
        f"epochs. An output that never fires has loss {SILENT:g}, summed {SILENT * plan.epochs:g}.",
        "The input of the neurons is "
        + ("multiplied by 1 - α, as in sinabs-exodus." if plan.normalised else "taken as it is, as in (26)."),
        "**Claim of section 6.5**: EXODUS has the lower summed loss for every pair. "
        f"**Found**: for {len(lower)} of {len(plan.pairs)}.",
        table(
            COLUMNS,
            [_row(courses, pair, plan) for pair in plan.pairs],
        ),
        "Last tenth: average loss over the last tenth of the epochs. Target met: runs whose output once had the four "
        f"spikes and no others, of the outputs at every {READ_EVERY}th epoch; runs are compared by the sums of their "
        "losses at these epochs.",
    )
    made.figure(draw(courses, plan, seed), "Output spikes over the epochs, loss curves, summed losses")
    made.add(
        f"Top: output spikes of the first run, {plan.pairs[-1]}, against the target (black). Middle: losses of this "
        "pair, averaged over the runs and over 50 epochs, and those of each run (thin). Bottom: summed losses of all "
        "pairs. Dotted: an output that never fires."
    )
    made.numbers["pairs"] = [
        {
            "tau": pair.tau,
            "rate": pair.rate,
            **{
                method: {
                    "summed_loss": courses[pair, method].summed,
                    "last_tenth": courses[pair, method].last,
                    "fitted_at_epoch": courses[pair, method].fitted,
                    "summed_loss_of_runs": (courses[pair, method].run_losses.sum(0) * READ_EVERY).tolist(),
                    "loss_every_50_epochs": averaged(courses[pair, method].losses, 50),
                }
                for method in METHODS
            },
        }
        for pair in plan.pairs
    ]


def _row(courses: Courses, pair: Pair, plan: Plan) -> list[str]:
    exodus, slayer = courses[pair, "exodus"], courses[pair, "slayer"]
    better = int((exodus.run_losses.sum(0) < slayer.run_losses.sum(0)).sum())
    return [
        f"{pair.tau:.3g}",
        f"{pair.rate:g}",
        f"{exodus.summed:.1f}",
        f"{slayer.summed:.1f}",
        f"{slayer.summed / exodus.summed:.2f}",
        f"{better} of {plan.runs}",
        f"{exodus.last:.4f}",
        f"{slayer.last:.4f}",
        *(f"{sum(epoch is not None for epoch in course.fitted)} of {plan.runs}" for course in (exodus, slayer)),
    ]


def averaged(values: Sequence[float], width: int) -> list[float]:
    """Averages of consecutive stretches of a width; the last may be shorter."""
    stretches = [values[start : start + width] for start in range(0, len(values), width)]
    return [math.fsum(stretch) / len(stretch) for stretch in stretches]


def draw(courses: Courses, plan: Plan, seed: int) -> Figure:
    """The counterpart of figure 4, in four panels."""
    figure = Figure(figsize=(11, 12), layout="constrained")
    panels = figure.subplot_mosaic(
        [["exodus", "slayer"], ["loss", "loss"], ["sums", "sums"]], height_ratios=(1.2, 1, 1)
    )
    last = plan.pairs[-1]
    target = tasks(plan.runs, seed).targets[0, :, 0, 0]
    for method in METHODS:
        _draw_spikes(panels[method], courses[last, method].spikes[:, :, 0], target, method, last)
    _draw_losses(panels["loss"], {method: courses[last, method] for method in METHODS}, last)
    _draw_sums(panels["sums"], courses, plan)
    return figure


def _draw_spikes(axes: Axes, spikes: Tensor, target: Tensor, method: Method, pair: Pair) -> None:
    readings, times = spikes.nonzero().T.tolist()
    for time in target.nonzero().ravel().tolist():
        axes.axhline(time, color=COLORS["target"], linewidth=0.8)
    axes.scatter([reading * READ_EVERY for reading in readings], times, s=1.5, color=COLORS[method], linewidths=0)
    axes.set_xlim(0, len(spikes) * READ_EVERY)
    axes.set_ylim(0, STEPS)
    axes.set_xlabel("epoch")
    axes.set_ylabel("output spikes (ms)")
    axes.set_title(f"{method.upper()}, {pair}")


def _draw_losses(axes: Axes, courses: dict[Method, Course], pair: Pair) -> None:
    for method, course in courses.items():
        for run in course.run_losses.T.tolist():
            means = averaged(run, 5)
            axes.plot(
                [50 * (n + 0.5) for n in range(len(means))], means, color=COLORS[method], linewidth=0.4, alpha=0.6
            )
        means = averaged(course.losses, 50)
        axes.plot([50 * (n + 0.5) for n in range(len(means))], means, color=COLORS[method], label=method.upper())
    axes.axhline(SILENT, color="gray", linestyle=":", label="no output spikes")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.set_title(f"loss, {pair}")
    axes.legend()


def _draw_sums(axes: Axes, courses: Courses, plan: Plan) -> None:
    for shift, method in zip((-0.2, 0.2), METHODS, strict=True):
        sums = [courses[pair, method].summed for pair in plan.pairs]
        axes.bar([n + shift for n in range(len(sums))], sums, 0.38, color=COLORS[method], label=method.upper())
    axes.axhline(SILENT * plan.epochs, color="gray", linestyle=":", label="no output spikes")
    axes.set_yscale("log")
    axes.set_xticks(range(len(plan.pairs)), [f"τ {pair.tau:.3g}\nrate {pair.rate:g}" for pair in plan.pairs])
    axes.set_title("loss averaged over runs, summed over epochs")
    axes.legend()


NormalisedOption = Annotated[
    bool, typer.Option("--normalised", help="Multiply the input of the neurons by 1 - alpha, as sinabs-exodus does.")
]


def main(
    normalised: NormalisedOption = False,
    quick: QuickOption = False,
    local: LocalOption = False,
    url: UrlOption = None,
    seed: SeedOption = 0,
) -> None:
    """Fit Poisson spike trains with EXODUS and with SLAYER (figure 4)."""
    plan = (QUICK if quick else FULL)._replace(normalised=normalised)
    options = {"normalised": normalised, "quick": quick, "local": local, "url": url, "seed": seed}
    name = "poisson_normalised" if normalised else "poisson"
    title = "Poisson spike trains fitted (section 6.5, figure 4)" + (", normalised input" if normalised else "")
    made = Report(name, title, repeated_by("poisson", options))
    with place(url, local) as where:
        courses = train_all(where, plan, seed)
    report(courses, plan, seed, made)
    made.publish(quick=quick, where=where.name)


if __name__ == "__main__":
    typer.run(main)
