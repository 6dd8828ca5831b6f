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
LOOPS = (LOOP, SINABS)
TITLES = {"braille": "Braille letters", "nmnist": "N-MNIST, small", "manifolds": "random manifolds"}

Numbers = Mapping[str, Any]


@dataclass
class Section:
    """A figure or table of the paper, and its counterpart.

    Attributes:
        of: what it is in the paper.
        claim: of the paper.
        found: the same quantity here, in a sentence.
        holds: whether the claim holds here.
        name: of the results file.
        command: that wrote it.
        text: paragraphs and tables.
        differs: how the experiment differs from the paper's.
    """

    of: str
    claim: str
    found: str
    holds: bool
    name: str
    command: str
    text: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)


def theory(numbers: Numbers) -> Section:
    worst = max(identity["difference"] for identity in numbers["identities"])
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
        holds=held == count and kept and numbers["determinant"] == "1",
        name="theory",
        command=numbers["command"],
        text=[
            "What leaving out the reset does to the gradients of SLAYER's own kind of network, 250-25-1: norms of "
            "EXODUS's gradient as parts of SLAYER's, and cosines between both.",
            table(["network", "norm, output", "norm, hidden", "cosine, output", "cosine, hidden"], rows),
        ],
    )


def _shares(networks: list[Numbers]) -> list[str]:
    return [
        f"{statistics.median(network[layer][what] for network in networks):.3g}"
        for what in ("norm", "cosine")
        for layer in ("output", "hidden")
    ]


def accuracy(numbers: Numbers) -> Section:
    rows, above, tasks = [], 0, numbers["tasks"]
    for name, methods in tasks.items():
        tests = {method: [run["test"] for run in methods[method]] for method in METHODS}
        said = verdict(tests["exodus"], tests["slayer"])
        above += said == "EXODUS above SLAYER"
        rows.append([TITLES[name], spread(tests["exodus"]), spread(tests["slayer"]), said])
    return Section(
        of="Table 1, left; figure 2, left",
        claim="at surrogate scale 1, EXODUS reaches higher accuracies than SLAYER",
        found=f"beyond the spread of the runs on {above} of {len(tasks)} tasks",
        holds=above >= 2,
        name="accuracy",
        command=numbers["command"],
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
        rows.append([f"{low:g} to {high:g}", *(_times(spreads[method]) for method in METHODS), _times(ratio)])
    return Section(
        of="Figure 2, centre",
        claim="SLAYER's gradients grow with the surrogate scale and towards the input, EXODUS's do not",
        found="; ".join(
            f"over scales {low:g} to {high:g} the first layer's norm varies by {row[1]} with EXODUS and {row[2]} with "
            "SLAYER"
            for (low, high), row in zip(ranges, rows, strict=True)
        ),
        holds=max(ratios) >= 10,
        name="gradient_scale",
        command=numbers["command"],
        text=[
            f"{numbers['data']}; largest over smallest norm of the first layer's gradient among the scales:",
            table(["scales", "EXODUS", "SLAYER", "SLAYER / EXODUS"], rows),
        ],
    )


def _spread(numbers: Numbers, method: str, low: float, high: float) -> float:
    norms = [
        math.inf if training["mean_norms"] is None else training["mean_norms"][0]
        for training in numbers["trainings"]
        if training["method"] == method and low <= training["scale"] <= high
    ]
    return max(norms) / min(norms)


def _times(value: float) -> str:
    return f"{value:.3g}x" if math.isfinite(value) else "without bound"


def speed(numbers: Numbers) -> Section:
    best = {
        name: {
            what: {c: min(map(sum, repeats)) for c, repeats in measured[what].items()} for what in ("step", "neurons")
        }
        for name, measured in numbers["architectures"].items()
    }
    rows = []
    faster = True
    for name, times in best.items():
        step, alone = times["step"], times["neurons"]
        row = [ARCHITECTURES[name].title, f"{PAPER_SPEED_UP[name][0]:g}x"]
        for loop in LOOPS:
            row.append(f"{step[loop] / step[EXODUS]:.3g}x" if loop in step else "")
            row.append(f"{alone[loop] / alone[EXODUS]:.3g}x" if loop in alone else "")
        row.append(f"{step[EXODUS] / step[SLAYER]:.3g}x")
        rows.append(row)
    claims = numbers["claims"]
    held = sum(_holds(claim) for claim in claims)
    faster = held == len(claims)
    return Section(
        of="Table 1, right; table 3",
        claim="EXODUS trains several times as fast as BPTT, and as fast as SLAYER",
        found=f"{held} of {len(claims)} bounds are met on a {numbers['device'].upper()}",
        holds=faster,
        name="speed",
        command=numbers["command"],
        text=[
            "How many times as long as EXODUS a training step takes (forward, backward, Adam), and the neurons alone:",
            table(
                [
                    "data set",
                    "the paper's BPTT",
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
            "On a CPU; the paper's are of a GPU, where a loop over time launches kernels for every step. "
            "`python -m experiments.speed --device cuda` measures there.",
        ],
    )


def _holds(claim: Numbers) -> bool:
    found = claim["found"]
    if found is None:
        return False
    return bool(found <= claim["bound"] if "at most" in claim["claim"] else found >= claim["bound"])


def poisson(numbers: Numbers) -> Section:
    pairs = numbers["pairs"]
    lower = sum(pair["exodus"]["summed_loss"] < pair["slayer"]["summed_loss"] for pair in pairs)
    rows = [
        [
            f"{pair['tau']:.3g}",
            f"{pair['rate']:g}",
            *(f"{pair[method]['summed_loss']:.1f}" for method in METHODS),
            *(f"{sum(e is not None for e in pair[method]['fitted_at_epoch'])}" for method in METHODS),
        ]
        for pair in pairs
    ]
    return Section(
        of="Section 6.5, figure 4",
        claim="the loss, summed over epochs and averaged over runs, is lower with EXODUS for every pair of learning "
        "rate and time constant",
        found=f"for {lower} of {len(pairs)} pairs",
        holds=lower == len(pairs),
        name="poisson",
        command=numbers["command"],
        text=[
            "Summed loss, and runs of five whose output once had the four target spikes and no others:",
            table(["τ (ms)", "rate", "EXODUS", "SLAYER", "fitted, EXODUS", "fitted, SLAYER"], rows),
        ],
        differs=["Values of the grid and settings that the paper leaves out are those of its authors' script."],
    )


SECTIONS = {
    "theory": theory,
    "accuracy": accuracy,
    "gradient_scale": gradient_scale,
    "speed": speed,
    "poisson": poisson,
}


def page(folder: Path = RESULTS) -> str:
    """The page in Markdown.

    Raises:
        OSError: a results file is missing.
    """
    sections = [make(json.loads((folder / f"{name}.json").read_text())) for name, make in SECTIONS.items()]
    lines = [
        "# The paper's results",
        "Bauer, Lenz, Haghighatshoar and Sheik, *EXODUS: Stable and Efficient Training of Spiking Neural Networks* "
        "([arXiv 2205.10242](https://arxiv.org/abs/2205.10242)), and what its experiments find with this code. `make "
        "experiments` repeats them, `make experiments QUICK=1` a part; this page is written by `python -m "
        "experiments.paper` from the results.",
        table(
            ["in the paper", "claim", "found here", "holds"],
            [[section.of, section.claim, section.found, "yes" if section.holds else "**no**"] for section in sections],
        ),
    ]
    for section in sections:
        lines += [
            f"## {section.of}",
            *section.text,
            f"![{section.claim}]({FOLDER}/{section.name}.png)",
            *(f"What differs from the paper: {line}" for line in section.differs),
            f"[Everything that was found]({FOLDER}/{section.name}.md), by `{section.command}`.",
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
