"""The paper's figures and tables beside what the experiments found: writes docs/paper.md from experiments/results.

    python -m experiments.paper

Every number of the page is of a results file, which the command named there has written, or of the paper.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from experiments.accuracy import PAPER as PAPER_ACCURACY
from experiments.accuracy import spread, verdict
from experiments.architectures import ARCHITECTURES, UNKNOWN
from experiments.contenders import EXODUS, LOOP, SINABS, SLAYER
from experiments.report import RESULTS, table
from experiments.speed import PAPER_EPOCH, PAPER_SPEED_UP

PAGE = Path(__file__).parents[1] / "docs" / "paper.md"
#: From the page to the results.
FOLDER = "../experiments/results"
METHODS = ("exodus", "slayer")
#: BPTT by loops over time.
LOOPS = (SINABS, LOOP)
TITLES = {"braille": "Braille letters", "nmnist": "N-MNIST, small", "manifolds": "random manifolds"}

Numbers = Mapping[str, Any]


@dataclass
class Section:
    """A figure or table of the paper, and its counterpart.

    Attributes:
        of: what it is in the paper.
        claim: of the paper.
        found: the same quantity here, in a sentence.
        holds: yes, no, or how far.
        names: of the results files.
        commands: that wrote them.
        text: paragraphs and tables.
        differs: how the experiment differs from the paper's.
    """

    of: str
    claim: str
    found: str
    holds: str
    names: tuple[str, ...]
    commands: tuple[str, ...]
    text: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)


def theory(numbers: Numbers) -> Section:
    worst = max(identity["error"] for identity in numbers["identities"])
    count, held = len(numbers["identities"]), sum(identity["holds"] for identity in numbers["identities"])
    bounded = [row for row in numbers["decay"] if row["largest_derivative"] <= 2]
    kept = all(row["most_of_the_bound"] <= 1 + 1e-12 for row in bounded)
    recorded = numbers["network"].get("recorded")
    drawn = numbers["network"]["drawn"]
    rows = [["drawn here, median of " + str(len(drawn)), *_shares(drawn)]]
    if recorded:
        rows.append(["recorded by SLAYER's authors", *_shares([recorded])])
    return Section(
        of="Equations (9), (13), (15), (16); sections 3.2.2, 6.1, 6.2",
        claim="the implicit function theorem gives BPTT's gradient, for every neuron, and bounds how far it reaches",
        found=f"{held} of {count} identities hold in float64, the largest difference is {worst:.1e}; the determinant "
        f"is {numbers['determinant']}; the bound is {'kept' if kept else 'broken'} by the {len(bounded)} surrogates "
        "that it is about",
        holds="yes" if held == count and kept and numbers["determinant"] == "1" else "no",
        names=("theory",),
        commands=(numbers["command"],),
        text=[
            "What leaving out the reset does to the gradients of SLAYER's own kind of network, 250-25-1: norms of "
            "EXODUS's gradient as parts of SLAYER's, and cosines between both.",
            table(["network", "norm, output", "norm, hidden", "cosine, output", "cosine, hidden"], rows),
        ],
    )


def _shares(networks: list[Numbers]) -> list[str]:
    norms = [statistics.median(1 / network[layer]["norm"] for network in networks) for layer in ("output", "hidden")]
    cosines = [statistics.median(network[layer]["cosine"] for network in networks) for layer in ("output", "hidden")]
    return [f"{value:.3g}" for value in (*norms, *cosines)]


def accuracy(numbers: Numbers) -> Section:
    rows, above, higher, tasks = [], 0, 0, numbers["tasks"]
    for name, methods in tasks.items():
        tests = {method: [run["test"] for run in methods[method]] for method in METHODS}
        said = verdict(tests["exodus"], tests["slayer"])
        above += said == "EXODUS above SLAYER"
        higher += statistics.mean(tests["exodus"]) > statistics.mean(tests["slayer"])
        rows.append([TITLES[name], spread(tests["exodus"]), spread(tests["slayer"]), said])
    return Section(
        of="Table 1, left; figure 2, left",
        claim="at surrogate scale 1, EXODUS reaches higher accuracies than SLAYER",
        found=f"on average on {higher} of {len(tasks)} tasks, beyond the spread of the runs on {above}",
        holds="yes" if above == len(tasks) else f"on {above} of {len(tasks)} tasks",
        names=("accuracy",),
        commands=(numbers["command"],),
        text=[
            "Test accuracy after the last epoch, mean ± standard deviation (least to largest):",
            table(["task", "EXODUS", "SLAYER", ""], rows),
            "The paper's, maximum over epochs, in per cent:",
            table(["data set", "EXODUS", "SLAYER"], PAPER_ACCURACY),
        ],
        differs=[
            "Other data: those of the paper are not here. With their files, `python -m experiments.accuracy --task "
            "dvs|shd|ssc --data DIR` trains the paper's networks on them.",
        ],
    )


def gradient_scale(numbers: Numbers) -> Section:
    ranges = ((0.01, 1.0), (0.1, 10.0))
    rows = []
    ratios = []
    for low, high in ranges:
        spreads = {method: _spread(numbers, method, low, high) for method in METHODS}
        ratio = spreads["slayer"] / spreads["exodus"] if math.isfinite(spreads["exodus"]) else 0.0
        ratios.append(ratio)
        rows.append([f"{low:g} to {high:g}", *(_times(spreads[method]) for method in METHODS), f"{ratio:.3g}"])
    return Section(
        of="Figure 2, centre",
        claim="SLAYER's gradients grow with the surrogate scale and towards the input, EXODUS's do not",
        found="; ".join(
            f"from scale {low:g} to {high:g} the first layer's norm varies {row[1]} with EXODUS, {row[2]} with SLAYER"
            for (low, high), row in zip(ranges, rows, strict=True)
        ),
        holds={(True, True): "yes", (True, False): "up to scale 1"}.get((ratios[0] >= 10, ratios[1] >= 10), "no"),
        names=("gradient_scale",),
        commands=(numbers["command"],),
        text=[
            f"{numbers['data']}; largest over smallest norm of the first layer's gradient among the scales:",
            table(["scales", "EXODUS", "SLAYER", "SLAYER / EXODUS"], rows),
            "The first range is that of the authors' script. In the second EXODUS has no finite gradient above scale "
            "2: from step to step EXODUS, as BPTT, multiplies a gradient by 1 - f', and a surrogate whose largest "
            "derivative exceeds 2 lets it grow with either. With SLAYER, which leaves that factor out, gradients stay "
            "finite and are those of another function.",
        ],
        differs=["Braille letters with the network of HSD; 40 updates of a training, norms averaged over them."],
    )


def _spread(numbers: Numbers, method: str, low: float, high: float) -> float:
    norms = [
        math.inf if training["mean_norms"] is None else training["mean_norms"][0]
        for training in numbers["trainings"]
        if training["method"] == method and low <= training["scale"] <= high
    ]
    return max(norms) / min(norms)


def _times(value: float) -> str:
    return f"{value:.3g} times" if math.isfinite(value) else "without bound"


def speed(numbers: Numbers) -> Section:
    best = {
        name: {what: {c: min(map(sum, turns)) for c, turns in measured[what].items()} for what in ("step", "neurons")}
        for name, measured in numbers["architectures"].items()
    }
    rows = []
    for name, times in best.items():
        step, alone = times["step"], times["neurons"]
        row = [ARCHITECTURES[name].title, f"{PAPER_SPEED_UP[name][0]:g}x"]
        for loop in LOOPS:
            row += [f"{of[loop] / of[EXODUS]:.3g}x" if loop in of else "" for of in (step, alone)]
        rows.append([*row, f"{step[EXODUS] / step[SLAYER]:.3g}x"])
    kept = {loop: [_holds(claim) for claim in numbers["claims"] if loop in claim["claim"]] for loop in (*LOOPS, SLAYER)}
    said = [f"{sum(held)} of {len(held)} against {loop}" for loop, held in kept.items()]
    return Section(
        of="Table 1, right; table 3",
        claim="EXODUS trains several times as fast as BPTT (sinabs'), and as fast as SLAYER",
        found=f"on this {numbers['device'].upper()} the paper's ratios are reached, and SLAYER's time within 5 %: "
        + ", ".join(said),
        holds="yes" if all(kept[SINABS] + kept[SLAYER]) else "no",
        names=("speed",),
        commands=(numbers["command"],),
        text=[
            "How many times as long as EXODUS a training step takes (forward, backward, Adam), and the neurons alone. "
            "The paper compared with sinabs, whose loop takes an index a step, x[:, t]: the backward pass of that is "
            "quadratic in the steps. The plain loop is this project's own reference, which does not.",
            table(
                [
                    *("data set", "the paper's BPTT"),
                    *(f"{loop}, {what}" for loop in LOOPS for what in ("step", "neurons")),
                    "EXODUS / SLAYER, step",
                ],
                rows,
            ),
            "Seconds of an epoch in the paper, with the loading of the data, on a GTX 1080 Ti:",
            table(
                ["data set", "EXODUS", "SLAYER", "BPTT"],
                [[ARCHITECTURES[name].title, *seconds] for name, seconds in PAPER_EPOCH.items()],
            ),
        ],
        differs=[
            "A CPU, batch 4 for DVS Gesture; the paper's are of a GPU, where a loop over time launches kernels for "
            "every step. In DVS Gesture all but a twentieth of a step are convolutions, which every method has. "
            "`python -m experiments.speed --device cuda` measures on a GPU.",
        ],
    )


def _holds(claim: Numbers) -> bool:
    found = claim["found"]
    if found is None:
        return False
    return bool(found <= claim["bound"] if "at most" in claim["claim"] else found >= claim["bound"])


def poisson(plain: Numbers, normalised: Numbers) -> Section:
    def lower(numbers: Numbers) -> str:
        pairs = numbers["pairs"]
        return f"{sum(p['exodus']['summed_loss'] < p['slayer']['summed_loss'] for p in pairs)} of {len(pairs)}"

    def rows(numbers: Numbers) -> list[list[str]]:
        return [
            [
                f"{pair['tau']:.3g}",
                f"{pair['rate']:g}",
                *(f"{pair[method]['summed_loss']:.1f}" for method in METHODS),
                f"{pair['slayer']['summed_loss'] / pair['exodus']['summed_loss']:.3g}",
                *(_fitted(pair[method]["fitted_at_epoch"]) for method in METHODS),
            ]
            for pair in numbers["pairs"]
        ]

    header = ["τ (ms)", "rate", "EXODUS", "SLAYER", "SLAYER / EXODUS", "fitted, EXODUS", "fitted, SLAYER"]
    count = len(normalised["pairs"])
    return Section(
        of="Section 6.5, figure 4",
        claim="the loss, averaged over runs and summed over epochs, is lower with EXODUS for every pair of learning "
        "rate and time constant",
        found=f"for {lower(normalised)} pairs if neurons take (1 - α) x, as those of sinabs-exodus do; for "
        f"{lower(plain)} if they take x, as in (26)",
        holds="yes, with normalised input" if lower(normalised) == f"{count} of {count}" else "no",
        names=("poisson_normalised", "poisson"),
        commands=(normalised["command"], plain["command"]),
        text=[
            "Input of the neurons multiplied by 1 - α, for both methods. Summed loss, and runs whose output once had "
            "the four target spikes and no others, with the first epoch of that:",
            table(header, rows(normalised)),
            "Input as in (26): weights act 1 / (1 - α) times as strongly, and with the initial weights and rates of "
            "the script most outputs fall silent with either method:",
            table(header, rows(plain)),
        ],
        differs=[
            "The values of the grid and of what the paper leaves out are those of its authors' script. In that script "
            "the EXODUS layer multiplies its input by 1 - α and the SLAYER network does not, so that the two "
            "differ in more than the gradient. Here both methods have one neuron, in turn either of the two.",
        ],
    )


def _fitted(epochs: list[int | None]) -> str:
    met = [epoch for epoch in epochs if epoch is not None]
    return f"{len(met)} of {len(epochs)}" + (f", from epoch {min(met)} on" if met else "")


def page(folder: Path = RESULTS) -> str:
    """The page in Markdown.

    Raises:
        OSError: a results file is missing.
    """

    def found(name: str) -> Numbers:
        numbers: Numbers = json.loads((folder / f"{name}.json").read_text())
        return numbers

    sections = [
        theory(found("theory")),
        accuracy(found("accuracy")),
        gradient_scale(found("gradient_scale")),
        speed(found("speed")),
        poisson(found("poisson"), found("poisson_normalised")),
    ]
    lines = [
        "# The paper's results",
        "Bauer, Lenz, Haghighatshoar and Sheik, *EXODUS: Stable and Efficient Training of Spiking Neural Networks* "
        "([arXiv 2205.10242](https://arxiv.org/abs/2205.10242)), and what its experiments find with this code. `make "
        "experiments` repeats them, `make experiments QUICK=1` a part; this page is written by `python -m "
        "experiments.paper` from the results.",
        table(
            ["in the paper", "claim", "found here", "holds"],
            [[section.of, section.claim, section.found, section.holds] for section in sections],
        ),
    ]
    for section in sections:
        lines += [
            f"## {section.of}",
            *section.text,
            *(f"![{section.of}]({FOLDER}/{name}.png)" for name in section.names),
            *(f"What differs from the paper: {line}" for line in section.differs),
            *(
                f"[Everything that was found]({FOLDER}/{name}.md), by `{command}`."
                for name, command in zip(section.names, section.commands, strict=True)
            ),
        ]
    lines += [
        "## Table 2, and what the paper leaves open",
        "`python -m experiments.architectures` prints the networks and settings of the paper's three data sets, with "
        "the source of each number. Neither the paper nor its authors' code say for certain:",
        "\n".join(f"- {line}" for line in UNKNOWN),
    ]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    """Write docs/paper.md from the results."""
    PAGE.write_text(page())


if __name__ == "__main__":
    typer.run(main)
