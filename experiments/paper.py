"""The paper's figures and tables beside what the experiments found: writes docs/paper.md from experiments/results.

    python -m experiments.paper

Every number of the page is of a results file, which the command named there has written, or of the paper.
"""

from __future__ import annotations

import json
import math
import statistics
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from experiments.accuracy import PAPER as PAPER_ACCURACY
from experiments.accuracy import spread, verdict
from experiments.architectures import ARCHITECTURES, UNKNOWN
from experiments.contenders import DENSE, EXODUS, LOOP, SINABS, SLAYER
from experiments.report import RESULTS, table
from experiments.speed import PAPER_EPOCH, PAPER_SPEED_UP
from experiments.theory.decay import ALPHA, RHO

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
    bounded = [row for row in numbers["decay"] if RHO * row["largest_derivative"] <= 2 * ALPHA]
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
    tasks = numbers["tasks"]
    last = {name: {m: [run["test"] for run in of[m]] for m in METHODS} for name, of in tasks.items()}
    best = {name: {m: [max(run["accuracies"]) for run in of[m]] for m in METHODS} for name, of in tasks.items()}

    def above(found: Mapping[str, Mapping[str, list[float]]]) -> str:
        means = [statistics.mean(of["exodus"]) > statistics.mean(of["slayer"]) for of in found.values()]
        apart = [verdict(of["exodus"], of["slayer"]) == "EXODUS above SLAYER" for of in found.values()]
        return f"on average on {sum(means)} of {len(tasks)} tasks, beyond the spread of the runs on {sum(apart)}"

    def rows(found: Mapping[str, Mapping[str, list[float]]]) -> list[list[str]]:
        return [
            [TITLES[name], spread(of["exodus"]), spread(of["slayer"]), verdict(of["exodus"], of["slayer"])]
            for name, of in found.items()
        ]

    verdicts = {TITLES[name]: verdict(of["exodus"], of["slayer"]) for name, of in last.items()}
    clearly = [title for title, said in verdicts.items() if said == "EXODUS above SLAYER"]
    return Section(
        of="Table 1, left; figure 2, left",
        claim="at surrogate scale 1, EXODUS reaches higher accuracies than SLAYER",
        found=f"test after the last epoch: {above(last)}; maximum over the epochs: {above(best)}",
        holds=f"beyond the spread: {', '.join(clearly) or 'none'}",
        names=("accuracy",),
        commands=(numbers["command"],),
        text=[
            "Test accuracy after the last epoch, mean ± standard deviation of three runs (least to largest). N-MNIST "
            "has 100 test samples here, so that one of them is a point.",
            table(["task", "EXODUS", "SLAYER", ""], rows(last)),
            "Largest validation accuracy over the epochs, the quantity of the paper's table:",
            table(["task", "EXODUS", "SLAYER", ""], rows(best)),
            "The paper's, in per cent:",
            table(["data set", "EXODUS", "SLAYER"], PAPER_ACCURACY),
        ],
        differs=[
            "Other data, since those of the paper are not here: batches of 32 instead of 128, fewer epochs, and "
            "initial weights two or three times as large, with which hidden layers fire. With the files of the "
            "paper's data sets, `python -m experiments.accuracy --task dvs|shd|ssc --data DIR` trains its networks.",
        ],
    )


def gradient_scale(numbers: Numbers) -> Section:
    ranges = ((0.01, 1.0), (0.1, 10.0))
    rows = []
    ratios = []
    for low, high in ranges:
        spreads = {method: _spread(numbers, method, low, high) for method in METHODS}
        ratio = spreads["slayer"] / spreads["exodus"]
        ratios.append(ratio)
        ratio_or_none = f"{ratio:.3g}" if math.isfinite(spreads["exodus"]) else ""
        rows.append([f"{low:g} to {high:g}", *(_factor(spreads[method]) for method in METHODS), ratio_or_none])
    return Section(
        of="Figure 2, centre",
        claim="SLAYER's gradients grow with the surrogate scale and towards the input, EXODUS's do not",
        found="; ".join(
            f"from scale {low:g} to {high:g} the first layer's norm varies by a factor of {row[1]} with EXODUS, of "
            f"{row[2]} with SLAYER"
            for (low, high), row in zip(ranges, rows, strict=True)
        ),
        holds={(True, True): "yes", (True, False): "in comparison, up to scale 1"}.get(
            (ratios[0] >= 10, ratios[1] >= 10), "no"
        ),
        names=("gradient_scale",),
        commands=(numbers["command"],),
        text=[
            f"{numbers['data']}; largest over smallest norm of the first layer's gradient among the scales:",
            table(["scales", "EXODUS", "SLAYER", "SLAYER / EXODUS"], rows),
            "The first range is that of the authors' script. In the second EXODUS has no finite gradient at scales 3 "
            "and 10: from step to step EXODUS, as BPTT, multiplies a gradient by 1 - f', and a surrogate whose largest "
            "derivative exceeds 2 lets it grow with either. With SLAYER, which leaves that factor out, gradients stay "
            "finite and are those of another function.",
        ],
        differs=[
            "Braille letters with the network of HSD, initial weights three times as large; one training of 40 updates "
            "for each scale, norms averaged over them.",
        ],
    )


def _spread(numbers: Numbers, method: str, low: float, high: float) -> float:
    norms = [
        math.inf if training["mean_norms"] is None else training["mean_norms"][0]
        for training in numbers["trainings"]
        if training["method"] == method and low <= training["scale"] <= high
    ]
    return max(norms) / min(norms)


def _factor(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "infinity"


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
        dense = f"{step[SINABS] / step[DENSE]:.3g}x" if SINABS in step else ""
        rows.append([*row, dense, f"{step[EXODUS] / step[SLAYER]:.3g}x"])
    kept = {loop: [_holds(claim) for claim in numbers["claims"] if loop in claim["claim"]] for loop in (*LOOPS, SLAYER)}
    said = [f"for {sum(held)} of {len(held)} against {_named(loop)}" for loop, held in kept.items()]
    return Section(
        of="Table 1, right; table 3",
        claim="EXODUS trains several times as fast as BPTT (sinabs'), and as fast as SLAYER",
        found=f"on a {numbers['device'].upper()} the paper's ratios, and SLAYER's time within 5 %, are reached "
        + ", ".join(said),
        holds="yes" if all(kept[SINABS] + kept[SLAYER]) else "no",
        names=("speed",),
        commands=(numbers["command"],),
        text=[
            "How many times as long as EXODUS a training step takes (forward, backward, Adam), and the neurons alone. "
            "The paper compared with sinabs, whose loop takes an index a step, x[:, t]: the backward pass of that is "
            "quadratic in the steps. The plain loop, this project's reference, avoids that. EXODUS computes products "
            "from the spikes where these are few; the last column but one compares without that.",
            table(
                [
                    *("data set", "the paper's BPTT"),
                    *(f"{_named(loop)}, {what}" for loop in LOOPS for what in ("step", "neurons")),
                    *("BPTT (sinabs) against dense products of EXODUS", "EXODUS / SLAYER"),
                ],
                rows,
            ),
            "Seconds of an epoch in the paper, with the loading of the data, on a GTX 1080 Ti:",
            table(
                ["data set", "EXODUS", "SLAYER", "BPTT"],
                [[ARCHITECTURES[name].title, *seconds] for name, seconds in PAPER_EPOCH.items()],
            ),
            f"For SSC these seconds give {PAPER_EPOCH['ssc'][2] / PAPER_EPOCH['ssc'][0]:.3g}x, and not the "
            f"{PAPER_SPEED_UP['ssc'][0]:g}x of the paper's table 1; the other ratios agree.",
        ],
        differs=[
            "A CPU, batch 4 for DVS Gesture; the paper's are of a GPU, where a loop over time launches kernels for "
            "every step. In DVS Gesture all but a twentieth of a step are convolutions, which every method has. "
            "`python -m experiments.speed --device cuda` measures on a GPU.",
        ],
    )


def _named(contender: str) -> str:
    """A contender without a comma in its name."""
    name, _, rest = contender.partition(", ")
    return f"{name} ({rest})" if rest else name


def _holds(claim: Numbers) -> bool:
    found = claim["found"]
    if found is None:
        return False
    return bool(found <= claim["bound"] if "at most" in claim["claim"] else found >= claim["bound"])


def poisson(plain: Numbers, normalised: Numbers) -> Section:
    def lower(numbers: Numbers, by: float = 1.0) -> int:
        return sum(p["slayer"]["summed_loss"] > by * p["exodus"]["summed_loss"] for p in numbers["pairs"])

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
        found=f"if neurons take (1 - α) x, as those of sinabs-exodus do, for {lower(normalised)} of {count} pairs, for "
        f"{lower(normalised, 1.05)} by more than 5 %; if they take x, as in (26), most outputs fall silent: for "
        f"{lower(plain)}, for {lower(plain, 1.05)} by more than 5 %",
        holds="yes, with normalised input" if lower(normalised) == count else "no",
        names=("poisson_normalised", "poisson"),
        commands=(normalised["command"], plain["command"]),
        text=[
            "Input of the neurons multiplied by 1 - α, for both methods. Summed loss, runs that met the target at "
            "least once, and the first epoch at which one did:",
            table(header, rows(normalised)),
            "Input as in (26): weights act 1 / (1 - α) times as strongly, and with the initial weights and rates of "
            "the script most outputs fall silent with either method, and no run meets the target:",
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
    return "\n\n".join(map(_wrapped, lines)) + "\n"


def _wrapped(paragraph: str) -> str:
    """A paragraph, or the entries of a list, at 120 columns; tables, headings and images as they are."""
    if paragraph.startswith(("|", "#", "!")):
        return paragraph
    return "\n".join(
        textwrap.fill(
            line,
            120,
            subsequent_indent="  " if line.startswith("- ") else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in paragraph.splitlines()
    )


def main() -> None:
    """Write docs/paper.md from the results."""
    PAGE.write_text(page())


if __name__ == "__main__":
    typer.run(main)
