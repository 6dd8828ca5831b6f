"""Checks the theory of the EXODUS paper on small cases in float64, and writes what each check found on one page.

    python -m experiments.theory [--quick] [--seed N] [--slayer DIR]

The identities must hold to rounding, or the command ends with status 1; the rest is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import sympy as sp  # type: ignore[import-untyped]
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import exodus_core
from exodus_core import AlphaKernel, ExponentialKernel, reference
from experiments.options import QuickOption, SeedOption
from experiments.report import COLORS, Report, repeated_by, table
from experiments.theory import decay, dense, paths, reset, slayer_network
from experiments.theory.neuron import SURROGATE, THRESHOLD, ResetKernel, along_time, traced

#: Largest difference that rounding may make, relative to the largest value.
TOLERANCE = 1e-12
ALPHA, RHO = 0.9, 1.0
KERNELS: dict[str, ResetKernel] = {
    "LIF, -α^k": ExponentialKernel(ALPHA, -RHO),
    "two exponentials": ExponentialKernel((0.9, 0.5), (-1.0, 0.4)),
    "alpha function": AlphaKernel(4.0, -1.2),
}
DENSE_STEPS = 60
PATH_STEPS = 10
SCALES = (0.3, 1.0, 1.9, 3.0)
NETWORK_COLUMNS = (
    *("network", "norm, output weights", "norm, hidden weights", "cosine, output", "cosine, hidden"),
    *("inflated by the output layer", "by the hidden layer"),
)

SlayerOption = Annotated[
    Path | None,
    typer.Option("--slayer", help="Folder test/test_files/torch_validate of slayerPytorch, whose network to take too."),
]


class Identity(NamedTuple):
    """Two ways to compute one thing.

    Attributes:
        what: is computed.
        by, against: the ways.
        equations: of the paper, or its section.
        error: largest difference, relative to the largest value.
    """

    what: str
    by: str
    against: str
    equations: str
    error: float

    @property
    def holds(self) -> bool:
        return self.error <= TOLERANCE


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def identities(seed: int) -> list[Identity]:
    """All of them, for every reset kernel of KERNELS where there is a choice."""
    found: list[Identity] = []
    for name, kernel in KERNELS.items():
        found += _of_kernel(name, kernel, seed)
    return found + _of_lif(seed)


def _of_kernel(name: str, kernel: ResetKernel, seed: int) -> list[Identity]:
    trace = traced(kernel, DENSE_STEPS, seed)
    taps = dense.taps_of(kernel, DENSE_STEPS)
    chi = dense.chi_by_theorem(taps, trace.derivative)
    sigma = dense.sigma(chi, trace.derivative)
    solved = trace.z + dense.reset_matrix(taps) @ trace.spikes
    by_recurrence = exodus_core.srm_gradient(
        along_time(trace.membrane), along_time(trace.grad_spikes), kernel, threshold=THRESHOLD, surrogate=SURROGATE
    ).psp[0, :, 0]
    z = trace.z.clone().requires_grad_()
    looped, _ = reference.srm(along_time(z), kernel, threshold=THRESHOLD, surrogate=SURROGATE)
    (by_bptt,) = torch.autograd.grad(looped[0, :, 0], z, trace.grad_spikes)
    determinant = torch.linalg.det(dense.residual_jacobian(taps, trace.derivative))
    return [
        Identity(f"u; {name}", "loop over time", "z + N f(u)", "7, 8", relative_error(trace.membrane, solved)),
        Identity(f"det dF/du; {name}", "LU decomposition", "1", "6.2", abs(determinant.item() - 1)),
        Identity(
            f"χ; {name}",
            "implicit function theorem",
            "chain rule, row by row",
            "9, 15, 16",
            relative_error(chi, dense.chi_by_recursion(taps, trace.derivative)),
        ),
        Identity(
            f"δ; {name}",
            "recurrence of the code",
            "σᵀ g",
            "13, 15, 16",
            relative_error(by_recurrence, sigma.T @ trace.grad_spikes),
        ),
        Identity(f"δ; {name}", "recurrence of the code", "BPTT", "13", relative_error(by_recurrence, by_bptt)),
    ]


def _of_lif(seed: int) -> list[Identity]:
    """With the response kernel: dL/dx, and dL/dW, of a LIF neuron."""
    generator = torch.Generator().manual_seed(seed)
    trace = traced(KERNELS["LIF, -α^k"], DENSE_STEPS, seed)
    lag = torch.arange(DENSE_STEPS)[:, None] - torch.arange(DENSE_STEPS)
    response = torch.where(lag >= 0, ALPHA ** lag.clamp(min=0).double(), 0.0)
    chi = dense.chi_by_theorem(dense.taps_of(KERNELS["LIF, -α^k"], DENSE_STEPS), trace.derivative)
    product = dense.chi_of_lif(trace.derivative, ALPHA, RHO)
    lam = exodus_core.lif_gradient(
        along_time(trace.membrane), along_time(trace.grad_spikes), ALPHA, surrogate=SURROGATE
    ).input[0, :, 0]
    delta = dense.sigma(chi, trace.derivative).T @ trace.grad_spikes
    s_in = (torch.rand(DENSE_STEPS, 7, generator=generator) < 0.3).double()
    derivative = trace.derivative[:PATH_STEPS].tolist()
    over_paths = paths.over_paths(derivative, ALPHA, RHO)
    return [
        Identity("du/dx of LIF", "product of α - ρ f'", "χ ε", "26", relative_error(product, chi @ response)),
        Identity("λ of LIF", "recurrence of the code", "εᵀ σᵀ g", "13, 26", relative_error(lam, response.T @ delta)),
        Identity(
            "dL/dW of LIF",
            "Σ λ[t] s_in[t]",
            "Σ δ[t] (ε * s_in)[t]",
            "12, 14",
            relative_error(lam @ s_in, delta @ (response @ s_in)),
        ),
        Identity(
            f"du[{PATH_STEPS}]/du[0] of LIF",
            f"sum over its {2**PATH_STEPS:,} paths",
            "product of α - ρ f'",
            "6.1",
            # Paths of both signs cancel: rounding is relative to the sum of their magnitudes.
            abs(over_paths - product[PATH_STEPS, 0].item()) / math.prod(ALPHA + RHO * f for f in derivative),
        ),
    ]


class Page:
    """The page in the making; every method adds a section."""

    def __init__(self, made: Report, seed: int, quick: bool) -> None:
        self.made = made
        self.seed = seed
        self.quick = quick

    def identities(self) -> bool:
        """The first section; False if one of them does not hold."""
        found = identities(self.seed)
        failed = [identity for identity in found if not identity.holds]
        self.made.add(
            "## The gradient as a matrix, and as a recurrence",
            "The forward pass of a neuron solves u = z + N f(u), where N holds the reset kernel. By the implicit "
            "function theorem χ = du/dz = (I - N diag f')⁻¹, σ = ds/dz = diag(f') χ, and δ = dL/dz = σᵀ g. The code "
            "computes δ, and λ = dL/dx of LIF neurons, by one pass backward in time. Both are exact, so they differ by "
            f"rounding only; float64, {DENSE_STEPS} steps, tolerance {TOLERANCE:g} of the largest value.",
            table(
                ["computed", "by", "against", "equations, sections", "difference", "holds"],
                [
                    [i.what, i.by, i.against, i.equations, f"{i.error:.1e}", "yes" if i.holds else "**no**"]
                    for i in found
                ],
            ),
        )
        self.made.numbers["identities"] = [{**i._asdict(), "holds": i.holds} for i in found]
        return not failed

    def determinant(self) -> None:
        steps = 3 if self.quick else 5
        delayed, _ = dense.symbolic_determinants(steps)
        _, immediate = dense.symbolic_determinants(3)
        text = sp.sstr(immediate).replace("nu", "ν")
        self.made.add(
            "## The theorem applies to every neuron (section 6.2)",
            f"With taps of the reset kernel and surrogate derivatives of {steps} steps as symbols, sympy finds "
            f"det dF/du = {delayed}: a spike acts from the next step on, so the matrix is triangular with ones on its "
            "diagonal, and the theorem applies whatever f' and the kernel are. With a reset that acted on its own "
            f"step, its tap ν0, three steps would have the determinant\n\n    {text}\n\n"
            "which can be 0.",
        )
        self.made.numbers["determinant"] = str(delayed)

    def chain_rule(self) -> None:
        total, product = paths.symbolic(3)
        same = sp.expand(total - product) == 0
        trace = traced(KERNELS["LIF, -α^k"], DENSE_STEPS, self.seed)
        rows = []
        for steps in (1, 2, 3, 5, PATH_STEPS):
            values = trace.derivative[:steps].tolist()
            all_paths = paths.over_paths(values, ALPHA, RHO)
            one = paths.over_paths(values, ALPHA, RHO, through_spikes=False)
            rows.append([steps, 2**steps, f"{all_paths:.3e}", f"{one:.3e}", f"{one / all_paths:.3g}"])
        text = sp.sstr(product).replace("alpha", "α").replace("rho", "ρ")
        self.made.add(
            "## The chain rule follows every path (section 6.1)",
            "u[n] reaches u[n+1] directly, by α, and through its spike, by -ρ f'[n]. A derivative is the sum over all "
            "paths of the products along each. For three steps, as symbols, the sum over the eight paths "
            f"{'is' if same else '**is not**'}\n\n    du[3]/du[0] = {text}\n\nwith f0, f1, f2 for f' at each step, "
            "which one pass backward in time computes. SLAYER keeps the one path that leads through no spike, α^n. Of "
            f"a random LIF neuron with α = {ALPHA}:",
            table(["steps", "paths", "all paths: EXODUS, BPTT", "one path: SLAYER", "SLAYER / EXODUS"], rows),
        )

    def decay(self) -> list[decay.Decay]:
        found = [decay.measured(scale, self.seed) for scale in SCALES]
        rows = [
            [
                f"{d.scale:g}",
                f"{decay.RHO * d.largest_derivative:.2f}",
                "yes" if decay.RHO * d.largest_derivative <= 2 * decay.ALPHA else "no",
                f"{d.over_bound:.3g}",
                *(f"{d.mean[lag]:.2e}" for lag in (5, 20, 50)),
                "never" if d.half_life is None else d.half_life,
            ]
            for d in found
        ]
        bound = decay.bound()
        half = math.ceil(math.log(0.5) / math.log(decay.ALPHA))
        rows.append(["SLAYER", "any", "", "1", *(f"{bound[lag]:.2e}" for lag in (5, 20, 50)), half])
        self.made.add(
            "## How far back a gradient reaches (section 3.2.2, i)",
            "As long as ρ f' is at most 2 α, every factor α - ρ f' is at most α in magnitude, and EXODUS's du[n]/dx[m] "
            "at most α^(n-m), SLAYER's. The first column scales the surrogate derivative, s exp(-|u - 1|); "
            f"{decay.NEURONS} LIF neurons, α = {decay.ALPHA}, that fire at {found[0].firing:.0%} of the steps. In the "
            "fourth column, 1 says that the bound was kept everywhere; then averages of the magnitude at lags of 5, 20 "
            "and 50 steps, and the first lag at which it is at most a half.",
            table(
                ["scale", "largest ρ f'", "at most 2 α", "most, of the bound", "lag 5", "lag 20", "lag 50", "half at"],
                rows,
            ),
        )
        self.made.numbers["decay"] = [
            {
                "scale": d.scale,
                "largest_derivative": d.largest_derivative,
                "most_of_the_bound": d.over_bound,
                "half_life": d.half_life,
            }
            for d in found
        ]
        return found

    def reset(self) -> None:
        found = {name: reset.contribution(name, self.seed) for name in reset.RESETS}
        self.made.add(
            "## What the reset contributes",
            "The same membranes, three gradients: EXODUS follows the reset; a reset detached from the graph, a setting "
            "of several libraries, takes the spikes that reset a membrane for constants; SLAYER leaves the reset out. "
            "Norms of dL/dx as multiples of EXODUS's, and cosines with it, for LIF neurons with α = "
            f"{reset.ALPHA} and random g. Where a spike subtracts, a detached reset is SLAYER.",
            table(
                ["reset", "norm, detached", "norm, SLAYER", "cosine, detached", "cosine, SLAYER", "detached - SLAYER"],
                [
                    [
                        name,
                        f"{c.detached.norm:.2f}",
                        f"{c.slayer.norm:.2f}",
                        f"{c.detached.cosine:.3f}",
                        f"{c.slayer.cosine:.3f}",
                        f"{c.difference:.1e}",
                    ]
                    for name, c in found.items()
                ],
            ),
            "A reset to zero is another matter: from step to step its gradient is multiplied by α (1 - s - u f'), "
            "which exceeds 1 where the membrane is negative and not far below the threshold; there the exact gradient, "
            "which EXODUS and BPTT compute, can grow, and a detached reset cannot. The paper is about resets that "
            "subtract.",
        )
        self.made.numbers["reset"] = {
            name: {"detached": vars(c.detached), "slayer": vars(c.slayer), "difference": c.difference}
            for name, c in found.items()
        }

    def network(self, folder: Path | None) -> list[slayer_network.Ratios]:
        count = 4 if self.quick else 40
        found = [slayer_network.ratios(slayer_network.drawn(self.seed + n)) for n in range(count)]
        rows = [["drawn, median", *_summary(found)]]
        numbers: dict[str, Any] = {"drawn": [_plain(ratios) for ratios in found]}
        if folder is not None:
            theirs = slayer_network.ratios(slayer_network.recorded(folder))
            rows.append(["recorded by SLAYER's authors", *_summary([theirs])])
            numbers["recorded"] = _plain(theirs)
        self.made.add(
            "## SLAYER's own network, 250-25-1",
            "The kind of network on which the authors of SLAYER test their code "
            f"(`experiments/theory/slayer_network.py`), {count} times with weights and spikes of our own. Norms of "
            "EXODUS's gradient as parts of SLAYER's, and cosines between both; in brackets the quartiles.",
            table(
                NETWORK_COLUMNS,
                rows,
            ),
            "The last columns are the factors by which leaving out the reset of each layer inflates the gradient: "
            "SLAYER's norm over EXODUS's at the output weights, and what the hidden layer adds to it.",
        )
        self.made.numbers["network"] = numbers
        return found


def _plain(ratios: slayer_network.Ratios) -> dict[str, dict[str, float]]:
    return {layer: dict(vars(compared)) for layer, compared in ratios._asdict().items()}


def _summary(found: Sequence[slayer_network.Ratios]) -> list[str]:
    """Median and quartiles of norms, EXODUS over SLAYER, cosines and factors by layer."""
    columns = (
        [1 / r.output.norm for r in found],
        [1 / r.hidden.norm for r in found],
        [r.output.cosine for r in found],
        [r.hidden.cosine for r in found],
        [r.output.norm for r in found],
        [r.hidden.norm / r.output.norm for r in found],
    )
    return [_quartiles(column) for column in columns]


def _quartiles(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3g}"
    low, middle, high = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def draw(decays: Sequence[decay.Decay], networks: Sequence[slayer_network.Ratios], seed: int) -> Figure:
    """χ with the reset and without, its decay, and the gradients of SLAYER's network."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    ((exodus, slayer), (fading, compared)) = figure.subplots(2, 2)
    trace = traced(KERNELS["LIF, -α^k"], DENSE_STEPS, seed)
    chi = dense.chi_of_lif(trace.derivative, ALPHA, RHO)
    without = dense.chi_of_lif(torch.zeros_like(trace.derivative), ALPHA, RHO)
    for axes, matrix, name in ((exodus, chi, "EXODUS"), (slayer, without, "SLAYER")):
        image = axes.imshow(matrix.tolist(), cmap="RdBu", vmin=-1, vmax=1)
        axes.set_title(f"du[n]/dx[m] of a LIF neuron, {name}")
        axes.set_xlabel("m")
        axes.set_ylabel("n")
        figure.colorbar(image, ax=axes)
    _draw_decay(fading, decays)
    _draw_networks(compared, networks)
    return figure


def _draw_decay(axes: Axes, decays: Sequence[decay.Decay]) -> None:
    axes.semilogy(decay.bound().tolist(), "--", color=COLORS["slayer"], label="SLAYER, and the bound: α^lag")
    for n, found in enumerate(decays):
        axes.semilogy(
            found.mean.tolist(),
            color=COLORS["exodus"],
            alpha=0.4 + 0.6 * n / (len(decays) - 1),
            linestyle="-" if decay.RHO * found.largest_derivative <= 2 * decay.ALPHA else ":",
            label=f"EXODUS, scale {found.scale:g}",
        )
    axes.set_ylim(1e-8, 1e3)
    axes.set_xlabel("lag (steps)")
    axes.set_title("mean |du[m + lag]/dx[m]|")
    axes.legend(fontsize="small")


def _draw_networks(axes: Axes, networks: Sequence[slayer_network.Ratios]) -> None:
    for name, marker in (("output", "s"), ("hidden", "o")):
        layers: list[reset.Compared] = [getattr(ratios, name) for ratios in networks]
        axes.plot([c.norm for c in layers], [c.cosine for c in layers], marker, alpha=0.6, label=f"{name} weights")
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.set_xlabel("norm of SLAYER's gradient / EXODUS's")
    axes.set_ylabel("cosine of both")
    axes.set_title("networks 250-25-1 of SLAYER's kind")
    axes.legend()


def main(quick: QuickOption = False, seed: SeedOption = 0, folder: SlayerOption = None) -> None:
    """Check the theory of the paper on small cases, in float64."""
    options = {"quick": quick, "seed": seed, "slayer": "DIR" if folder else None}
    made = Report("theory", "The theory, checked", repeated_by("theory", options))
    page = Page(made, seed, quick)
    hold = page.identities()
    page.determinant()
    page.chain_rule()
    decays = page.decay()
    page.reset()
    try:
        networks = page.network(folder)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--slayer") from error
    made.figure(draw(decays, networks, seed), "χ with the reset and without, its decay, SLAYER's network")
    made.publish(quick=quick)
    if not hold:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
