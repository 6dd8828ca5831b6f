"""Norms of the weight gradients against the scale of the surrogate derivative (figure 2 of the paper, centre column).

    python -m experiments.gradient_scale [--data DIR | --synthetic] [--quick] [--local | --url URL] [--seed N]

The network of the paper's audio tasks, 100-128-128-128-20: three layers of IF neurons and a readout, largest output
over time, batches of 128, Adam at 1e-3; surrogate derivative s exp(-|u - 1|) with scales s from 0.01 to 10. Each scale
and method trains from the same weights on the same batches, and the norm of the gradient of each layer is recorded at
each update. SLAYER's norms grow with the scale, the more the further a layer is from the loss, so that the scale has
to be tuned. With EXODUS the reset takes back what a spike adds: from step to step the gradient is multiplied by 1 - f',
which cannot let it grow as long as f' is at most 2. Beyond, it may grow at every step, as BPTT's, which it equals.

Data: touched Braille letters, the first 20 of braille_letters.npz in DIR or EXODUS_DATA, as spikes of 96 channels and
four that never fire; or, with --synthetic, 20 classes of spike trains made here: channels whose rates rise and fall at
times that the class decides. The paper has SHD and SSC, whose input also has 100 channels and 20 or 35 classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.train_classifier import braille
from experiments.options import LocalOption, QuickOption, SeedOption, UrlOption
from experiments.report import COLORS, Report, progress, repeated_by, table
from experiments.training import Batch, DivergedError, Method, Place, feed_forward, place, with_method

SIZES = (100, 128, 128, 128, 20)
CLASSES = SIZES[-1]
#: Factor on initial weights, that of examples/train_classifier.py: with 1 the deeper layers never fire at the start.
GAIN = 3.0
BATCH = 128
LOSS = "max_over_time_ce"
OPTIMIZER = {"kind": "adam", "lr": 1e-3}
METHODS: tuple[Method, ...] = ("exodus", "slayer")
#: Names of the weights, from the input to the output.
LAYERS = tuple(f"{2 * layer}.weight" for layer in range(len(SIZES) - 1))
#: Two decades each: those of the paper's figure, and those up to 10.
RANGES = ((0.01, 1.0), (0.1, 10.0))
#: Of the synthetic spike trains.
STEPS, RATE, SAMPLES = 250, 0.02, 40

DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="EXODUS_DATA", help="Folder with braille_letters.npz.")
]
SyntheticOption = Annotated[
    bool, typer.Option("--synthetic", help="Spike trains made here instead of Braille letters.")
]


class Plan(NamedTuple):
    """Scales of the surrogate derivative, and updates of each training."""

    scales: tuple[float, ...]
    updates: int


FULL = Plan((0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 10.0), 40)
QUICK = Plan((0.01, 0.1, 1.0, 10.0), 2)


def letters(folder: Path) -> Batch:
    """All training samples of the first 20 Braille letters: (samples, 229, 100), bool, and their class numbers.

    Raises:
        typer.BadParameter: the folder does not hold them.
    """
    try:
        samples = braille(folder).train
    except (OSError, KeyError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error
    chosen = samples.labels < CLASSES
    spikes = samples.spikes[chosen]
    return Batch(F.pad(spikes, (0, SIZES[0] - spikes.shape[2])), samples.labels[chosen])


def synthetic(seed: int) -> Batch:
    """Spike trains of 20 classes: (samples, STEPS, 100), bool, and their class numbers.

    In each class the rate of a channel rises and falls one, two or three times; when, is drawn once. The spikes of each
    sample are drawn anew.
    """
    generator = torch.Generator().manual_seed(seed)
    turns = torch.randint(1, 4, (CLASSES, 1, SIZES[0]), generator=generator)
    phase = torch.rand(CLASSES, 1, SIZES[0], generator=generator)
    time = torch.arange(STEPS)[:, None] / STEPS
    rate = RATE * (1 + torch.cos(2 * math.pi * (turns * time + phase)))
    labels = torch.arange(CLASSES).repeat(SAMPLES)
    return Batch(torch.rand(len(labels), STEPS, SIZES[0], generator=generator) < rate[labels], labels)


def batches(samples: Batch, count: int, seed: int) -> Iterator[Batch]:
    """Batches of BATCH samples; all samples in an order of their own, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(samples.targets), generator=generator)
        for chosen in order.split(BATCH):
            if len(chosen) == BATCH:
                if count == 0:
                    return
                count -= 1
                yield Batch(samples.spikes[chosen], samples.targets[chosen])


class Course(NamedTuple):
    """Norms of the gradients of one training.

    Attributes:
        norms: for each layer, from the input on, one norm an update.
        losses: one an update, before it.
        ended: why training ended before its last update; None if it did not.
    """

    norms: list[list[float]]
    losses: list[float]
    ended: str | None

    @property
    def means(self) -> list[float] | None:
        """Average norm of each layer; None if training ended early: then there was no finite one."""
        return None if self.ended else [math.fsum(layer) / len(layer) for layer in self.norms]


#: Courses by scale and method.
Courses = dict[tuple[float, Method], Course]


def train(
    where: Place, samples: Batch, scale: float, method: Method, updates: int, seed: int, advance: Callable[[], object]
) -> Course:
    """Trains from the weights of a seed; calls `advance` after each update."""
    neuron = {"kind": "if", "surrogate": {"kind": "exponential", "slope": 1.0, "scale": scale}}
    description = with_method(feed_forward(SIZES, neuron, gain=GAIN, readout=True), method)
    learner = where.learner(description, loss=LOSS, optimizer=OPTIMIZER, seed=seed)
    norms: list[list[float]] = [[] for _ in LAYERS]
    losses = []
    ended = None
    try:
        for update in learner.learn(batches(samples, updates, seed)):
            for layer, name in zip(norms, LAYERS, strict=True):
                layer.append(update.grad_norms[name])
            losses.append(update.loss)
            advance()
    except DivergedError as error:
        ended = f"update {len(losses) + 1}: {str(error).splitlines()[0]}"
    learner.close()
    return Course(norms, losses, ended)


def train_all(where: Place, samples: Batch, plan: Plan, seed: int) -> Courses:
    """Trains with every scale and method, under a progress bar."""
    courses: Courses = {}
    with progress() as bar:
        shown = bar.add_task("", total=len(plan.scales) * len(METHODS) * plan.updates)
        for done, (scale, method) in enumerate(((s, m) for s in plan.scales for m in METHODS), start=1):
            bar.update(shown, description=f"{method.upper()}, scale {scale:g}")
            courses[scale, method] = train(
                where, samples, scale, method, plan.updates, seed, lambda: bar.advance(shown)
            )
            bar.update(shown, completed=done * plan.updates)
    return courses


def spread(courses: Courses, method: Method, layer: int, low: float, high: float) -> float:
    """Largest over smallest average norm of a layer among the scales from low to high; inf if one was not finite."""
    means = [course.means for (scale, made_by), course in courses.items() if made_by == method and low <= scale <= high]
    found = [math.inf if mean is None else mean[layer] for mean in means]
    return max(found) / min(found)


def _number(value: float) -> str:
    return "not finite" if math.isinf(value) else f"{value:.3g}"


def report(courses: Courses, plan: Plan, data: str, samples: Batch, made: Report) -> None:
    """Writes the text, the tables, the figure and the numbers."""
    count, steps, _ = samples.spikes.shape
    made.add(
        f"{'-'.join(map(str, SIZES))}, IF neurons, {plan.updates} updates with batches of {BATCH} of {count} samples "
        f"of {data}: {steps} steps, {samples.spikes.float().mean():.2%} of the inputs fire in a step. Norms are "
        "averages over the updates; layer 1 is next to the input, layer 4 the readout.",
        table(
            ["scale", "method", *(f"layer {n}" for n in range(1, len(LAYERS) + 1)), "loss, first", "last"],
            [_row(scale, method, courses[scale, method]) for method in METHODS for scale in plan.scales],
        ),
    )
    for low, high in RANGES:
        exodus, slayer = (spread(courses, method, 0, low, high) for method in METHODS)
        found = _verdict(exodus, slayer)
        made.add(
            f"**Claim**: from scale {low:g} to {high:g} the norm of the first layer's gradient varies at least ten "
            f"times less with EXODUS than with SLAYER. **Found**: {found}."
        )
        made.add(
            table(
                ["largest / smallest norm", *(f"layer {n}" for n in range(1, len(LAYERS) + 1))],
                [
                    [m.upper(), *(_number(spread(courses, m, n, low, high)) for n in range(len(LAYERS)))]
                    for m in METHODS
                ],
            )
        )
    ended = [
        f"{method.upper()}, scale {scale:g}: {course.ended}"
        for (scale, method), course in courses.items()
        if course.ended
    ]
    if ended:
        made.add(
            "Trainings that ended because a gradient was not finite. From step to step EXODUS, as BPTT, multiplies the "
            "gradient by 1 - f' with f' = s exp(-|u - 1|): above s = 2 its magnitude may exceed 1.",
            "\n".join(f"- {line}" for line in ended),
        )
    made.figure(draw(courses, plan), "Norms of the gradients by layer, by scale, and over the updates")
    made.numbers["data"] = data
    made.numbers["trainings"] = [
        {
            "scale": scale,
            "method": method,
            "mean_norms": course.means,
            "first_norms": [layer[0] if layer else None for layer in course.norms],
            "loss": [course.losses[0], course.losses[-1]] if course.losses else None,
            "ended": course.ended,
        }
        for (scale, method), course in courses.items()
    ]


def _verdict(exodus: float, slayer: float) -> str:
    if math.isinf(exodus):
        return f"no, EXODUS has gradients that are not finite; SLAYER's vary by {_number(slayer)}"
    times = "" if math.isinf(slayer) else f", {slayer / exodus:.3g} times as much"
    yes = "yes" if slayer / exodus >= 10 else "no"
    return f"{yes}, EXODUS by {_number(exodus)}, SLAYER by {_number(slayer)}{times}"


def _row(scale: float, method: Method, course: Course) -> list[str]:
    means = ["not finite"] * len(LAYERS) if course.means is None else [f"{mean:.3g}" for mean in course.means]
    losses = [f"{course.losses[0]:.3f}", f"{course.losses[-1]:.3f}"] if course.losses else ["", ""]
    return [f"{scale:g}", method.upper(), *means, *losses]


def draw(courses: Courses, plan: Plan) -> Figure:
    """The counterpart of figure 2's centre column, in four panels."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    ((exodus, slayer), (first, course)) = figure.subplots(2, 2)
    slayer.sharey(exodus)
    for axes, method in zip((exodus, slayer), METHODS, strict=True):
        _draw_layers(axes, courses, plan.scales, method)
    for method in METHODS:
        points = [(scale, means[0]) for scale in plan.scales if (means := courses[scale, method].means) is not None]
        first.loglog(*zip(*points, strict=True), "o-", color=COLORS[method], label=method.upper())
        course.semilogy(courses[1.0, method].norms[0], color=COLORS[method], label=method.upper())
    first.axvline(2, color="gray", linestyle=":")
    first.set_xlim(min(plan.scales) / 1.3, max(plan.scales) * 1.3)
    first.set_title("layer 1 against the scale; dotted: f' = 2")
    first.set_xlabel("scale of the surrogate derivative")
    first.set_ylabel("mean norm")
    first.legend()
    course.set_title("layer 1 over the updates, scale 1")
    course.set_xlabel("update")
    course.legend()
    return figure


def _draw_layers(axes: Axes, courses: Courses, scales: Sequence[float], method: Method) -> None:
    for n, scale in enumerate(scales):
        means = courses[scale, method].means
        if means is not None:
            shade = 0.25 + 0.75 * n / max(1, len(scales) - 1)
            axes.semilogy(range(1, len(means) + 1), means, "o-", color=COLORS[method], alpha=shade, label=f"{scale:g}")
    axes.set_xticks(range(1, len(LAYERS) + 1))
    axes.set_xlabel("layer")
    axes.set_ylabel("mean norm of the gradient")
    axes.set_title(method.upper())
    axes.legend(title="scale", fontsize="small")


def main(
    data: DataOption = None,
    made_here: SyntheticOption = False,
    quick: QuickOption = False,
    local: LocalOption = False,
    url: UrlOption = None,
    seed: SeedOption = 0,
) -> None:
    """Norms of the gradients against the scale of the surrogate derivative (figure 2)."""
    if not made_here and data is None:
        raise typer.BadParameter("give --data DIR, EXODUS_DATA or --synthetic")
    plan = QUICK if quick else FULL
    options = {"synthetic": made_here, "quick": quick, "local": local, "url": url, "seed": seed}
    name = "gradient_scale_synthetic" if made_here else "gradient_scale"
    title = "Norms of the gradients against the scale of the surrogate derivative (figure 2)"
    made = Report(name, title, repeated_by("gradient_scale", options))
    samples = synthetic(seed) if data is None or made_here else letters(data)
    with place(url, local) as where:
        courses = train_all(where, samples, plan, seed)
    report(courses, plan, "synthetic spike trains" if made_here else "Braille letters", samples, made)
    made.publish(quick=quick, where=where.name)


if __name__ == "__main__":
    typer.run(main)
