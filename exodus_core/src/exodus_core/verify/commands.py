"""The command `verify`, of `exodus` and of `python -m exodus_core.verify`.

Exit codes: 0 every bound is kept, 1 one is not, 2 the arguments do not fit, 4 a result cannot be certified.
"""

# No `from __future__ import annotations`: typer reads the annotations.
import sys
from collections.abc import Iterator
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from torch import Tensor

from exodus_core.arguments import METHODS, is_coupled
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.surrogate import KINDS
from exodus_core.verify.arrays import read_arrays
from exodus_core.verify.certificate import AnyRun, certify
from exodus_core.verify.coupled import run_coupled
from exodus_core.verify.deviation import Certificate
from exodus_core.verify.peers import PEERS, Comparison, compare, peer_neuron
from exodus_core.verify.random_cases import NEURONS, random_runs
from exodus_core.verify.report import (
    JSON_CASES,
    JSON_COMPARISON,
    JSON_RESULT,
    Line,
    Outcome,
    as_json,
    empty_table,
    figure,
    grouped,
    lines_of,
    notes_of,
    outcome_line,
    outcome_of,
    spikes_line,
    table,
    ulps_cells,
    zeros_of,
)
from exodus_core.verify.runs import check_grads, check_input, run_lif, run_srm

BAD_ARGUMENTS = 2

_FAILURES = {
    Outcome.BROKEN: "a bound is not kept",
    Outcome.UNCERTAIN: "cannot be certified: a bound or a result is not finite",
}

#: Columns of a table where the output is no terminal.
_WIDTH = 118

_SIGNALS = ("grad_spikes", "grad_membrane")
_LIF_PARAMETERS = ("alpha", "threshold", "reset_by", "reset_to", "min_membrane")
_SYNAPSE_PARAMETERS = ("synapse_alpha", "synapse_gain")
_ADAPTATION_PARAMETERS = ("adapt_alpha", "adapt_by", "adapt_membrane", "adapt_threshold", "adapt_current")
_LIF_STATES = ("initial_membrane", "initial_spikes", "initial_refractory")
_LIF_ARRAYS = (*_LIF_PARAMETERS, *_LIF_STATES)
_CUBA_LIF_ARRAYS = (*_LIF_ARRAYS, *_SYNAPSE_PARAMETERS, "initial_current")
_ALIF_ARRAYS = (*_CUBA_LIF_ARRAYS, *_ADAPTATION_PARAMETERS, "initial_adaptation")

#: Tensors of FILE by the name of a neuron.
_ARRAYS = {
    "lif": _LIF_ARRAYS,
    "if": _LIF_ARRAYS,
    "srm": ("reset_kernel", "threshold"),
    "cuba_lif": _CUBA_LIF_ARRAYS,
    "alif": _ALIF_ARRAYS,
}

#: Decays that neurons must be given.
_DECAYS = (
    ("alpha", "the decay", ("lif", "cuba_lif", "alif")),
    ("synapse_alpha", "the decay of the current", ("cuba_lif",)),
    ("adapt_alpha", "the decay of the adaptation", ("alif",)),
)

_SYNAPSE_OPTIONS = (*_SYNAPSE_PARAMETERS, "synapse_delayed")
_SRM_LACKS = (
    *("alpha", "reset", "reset_by", "reset_to", "decay_reset", "detach_reset", "refractory", "min_membrane"),
    *("max_spikes", *_SYNAPSE_OPTIONS, *_ADAPTATION_PARAMETERS),
)

#: Options that mean nothing to neurons of FILE, to random cases, and to another library.
_NOT_OF = {
    "lif": (*_SYNAPSE_OPTIONS, *_ADAPTATION_PARAMETERS),
    "if": (*_SYNAPSE_OPTIONS, *_ADAPTATION_PARAMETERS),
    "srm": _SRM_LACKS,
    "cuba_lif": _ADAPTATION_PARAMETERS,
    "alif": (),
}
_NOT_OF_RANDOM = ("neuron", "method", "threshold", *_SRM_LACKS, "surrogate", "slope", "scale", "time_dim")
_NOT_OF_AGAINST = tuple(name for name in _NOT_OF_RANDOM if name != "time_dim")

#: Time steps and sequences of a comparison with a peer that is given no file.
_PEER_SHAPE = (50, 64)

app = typer.Typer(
    name="verify",
    help="Compare gradients with the exact ones, and certify how far they are off.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Number = Annotated[float | None, typer.Option(show_default=False)]


@app.command()
def verify(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="Tensors by name in .npz, .pt or .safetensors: x, grad_spikes and others; or x in a .npy file.",
            show_default=False,
        ),
    ] = None,
    random: Annotated[
        int | None, typer.Option(metavar="CASES", min=1, help="Random cases instead of FILE.", show_default=False)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar=f"[{'|'.join(PEERS)}]", help="The gradient of another library.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    neuron: Annotated[str, typer.Option(metavar=f"[{'|'.join(_ARRAYS)}]")] = "lif",
    method: Annotated[
        list[str] | None,
        typer.Option(metavar=f"[{'|'.join(METHODS)}]", help="May be repeated.", show_default="all"),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Decay in one step; not for if.", show_default=False)] = None,
    threshold: Annotated[float | None, typer.Option(show_default="1.0")] = None,
    reset: str = "subtract",
    reset_by: Annotated[float | None, typer.Option(show_default="threshold")] = None,
    reset_to: Annotated[float | None, typer.Option(help="For --reset value.", show_default=False)] = None,
    decay_reset: Annotated[bool, typer.Option("--decay-reset", help="Reset before the decay.")] = False,
    detach_reset: Annotated[bool, typer.Option("--detach-reset", help="No gradient through the reset.")] = False,
    refractory: Annotated[int, typer.Option(help="Steps after a spike without another.")] = 0,
    min_membrane: Number = None,
    max_spikes: int = 1,
    synapse_alpha: Annotated[
        float | None, typer.Option(help="Decay of the current; for cuba_lif, alif.", show_default=False)
    ] = None,
    synapse_gain: Annotated[float | None, typer.Option(show_default="1.0")] = None,
    synapse_delayed: Annotated[bool, typer.Option("--synapse-delayed", help="The current acts a step late.")] = False,
    adapt_alpha: Annotated[
        float | None, typer.Option(help="Decay of the adaptation; for alif.", show_default=False)
    ] = None,
    adapt_by: Annotated[float | None, typer.Option(show_default="1.0")] = None,
    adapt_membrane: Number = None,
    adapt_threshold: Number = None,
    adapt_current: Number = None,
    surrogate: Annotated[str, typer.Option(metavar=f"[{'|'.join(KINDS)}]")] = "exponential",
    slope: Annotated[float | None, typer.Option(show_default="of the kind")] = None,
    scale: float = 1.0,
    time_dim: int = 1,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare gradients with the exact ones, and certify how far they are off.

    Runs the neurons on the tensors of FILE, or on random cases, and computes membranes and gradients once more without
    rounding. Without grad_spikes in FILE they are drawn.
    """
    try:
        if random is not None:
            others = [name for name, given in (("FILE", file), ("--against", against)) if given is not None]
            if others:
                raise ArgumentError("--random", "without FILE and --against", " and ".join(others))
            _refuse(context, _NOT_OF_RANDOM, "--random")
            outcome = _random(random, seed, json)
        elif against is not None:
            _refuse(context, _NOT_OF_AGAINST if file else _NOT_OF_RANDOM, "--against" if file else "--against alone")
            _against(against, file, time_dim, seed, json)
            outcome = Outcome.KEPT
        elif file is not None:
            neuron = neuron.lower()
            if neuron not in _ARRAYS:
                raise ArgumentError("--neuron", f"one of {', '.join(_ARRAYS)}", neuron)
            _refuse(context, _NOT_OF[neuron], f"--neuron {neuron}")
            names = (*_LIF_PARAMETERS, *_SYNAPSE_PARAMETERS, *_ADAPTATION_PARAMETERS)
            parameters = {name: context.params[name] for name in names}
            options = {
                "reset": reset,
                "decay_reset": decay_reset,
                "detach_reset": detach_reset,
                "refractory": refractory,
                "synapse_delayed": synapse_delayed,
                "max_spikes": max_spikes,
                "surrogate": _surrogate(surrogate, slope, scale),
                "time_dim": time_dim,
            }
            outcome = _file(file, neuron, method or list(METHODS), parameters, options, seed, json)
        else:
            raise ArgumentError("FILE", "given, or --random, or --against", "none of them")
    except (ArgumentError, ArgumentTypeError, OSError, ModuleNotFoundError) as error:
        typer.echo(f"exodus: {error}", err=True)
        raise typer.Exit(BAD_ARGUMENTS) from error
    if outcome is not Outcome.KEPT:
        typer.echo(f"exodus: {_FAILURES[outcome]}", err=True)
        raise typer.Exit(outcome)


def _refuse(context: typer.Context, names: tuple[str, ...], beside: str) -> None:
    """Checks that no option of these names was given: it would do nothing."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            value = context.params[name]
            got = ", ".join(value) if isinstance(value, list) else value
            raise ArgumentError(f"--{name.replace('_', '-')}", f"left out with {beside}", got)


def _surrogate(kind: str, slope: float | None, scale: float) -> Any:
    if kind not in KINDS:
        raise ArgumentError("--surrogate", f"one of {', '.join(KINDS)}", kind)
    cls = KINDS[kind]
    return cls(scale=scale) if slope is None else cls(slope, scale)


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH, color_system=None)


def _random(cases: int, seed: int, json: bool) -> Outcome:
    def certified() -> Iterator[tuple[tuple[str, ...], AnyRun, Certificate]]:
        columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("cases", total=cases)
            for neuron, run in random_runs(cases, seed):
                yield (neuron, run.method), run, certify(run)
                progress.advance(task, run.spikes.shape[1])

    lines = grouped(certified())
    lines.sort(key=lambda line: NEURONS.index(line.group[0]))
    done = sum(line.cases for line in lines)
    if json:
        typer.echo(as_json(lines, JSON_CASES, outcome=outcome_of(lines).name.lower(), seed=seed))
    else:
        _console().print(table(f"{done} random cases, seed {seed}", ("neuron", "method"), lines, True))
        moved, edges = sum(line.decisions for line in lines), sum(line.edges for line in lines)
        farthest = max(line.farthest for line in lines)
        typer.echo(
            f"{moved} spikes and clippings are not those of the exact membrane, which is off the edge by at most\n"
            f"{farthest:.2f} of the bound of its rounding error; {edges} membranes are within rounding of an edge of "
            "the boxcar"
        )
        for note in [*notes_of(lines), outcome_line(lines)]:
            typer.echo(note)
    return outcome_of(lines)


def _drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _input(arrays: dict[str, Tensor]) -> Tensor:
    if "x" not in arrays:
        raise ArgumentError("FILE", "a file with the tensor x", f"one with {', '.join(sorted(arrays)) or 'none'}")
    return arrays.pop("x")


def _file(
    file: Path,
    neuron: str,
    methods: list[str],
    parameters: dict[str, float | None],
    options: dict[str, Any],
    seed: int,
    json: bool,
) -> Outcome:
    arrays = read_arrays(file)
    x = _input(arrays)
    drawn = "grad_spikes" not in arrays
    if drawn:
        arrays["grad_spikes"] = _drawn(tuple(x.shape), seed, x.dtype)
    known = {*_SIGNALS, *_ARRAYS[neuron]}
    if unknown := set(arrays) - known:
        raise ArgumentError("FILE", f"tensors named x, {', '.join(sorted(known))}", ", ".join(sorted(unknown)))
    given: dict[str, Any] = {name: value for name, value in parameters.items() if value is not None} | arrays
    lines: list[Line] = []
    runs: list[dict[str, Any]] = []
    notes = ["grad_spikes is not in the file and was drawn"] if drawn else []
    for method in methods:
        run = _run(neuron, x, {**given, "method": method}, options)
        certificate = certify(run)
        lines += lines_of(run, certificate)
        runs.append(
            {"method": method, "arithmetic": certificate.arithmetic, "decisions": asdict(certificate.decisions)}
        )
        notes.append(f"{method}: {certificate.arithmetic}; {spikes_line(certificate)}")
    if json:
        outcome = outcome_of(lines).name.lower()
        typer.echo(as_json(lines, JSON_RESULT, outcome=outcome, runs=runs, grad_spikes_drawn=drawn))
    else:
        _console().print(table(f"{file}, {neuron}", ("method", "result"), lines, False))
        for note in [*notes_of(lines), *notes, outcome_line(lines)]:
            typer.echo(note)
    return outcome_of(lines)


def _run(neuron: str, x: Tensor, given: dict[str, Any], options: dict[str, Any]) -> AnyRun:
    if neuron == "srm":
        if "reset_kernel" not in given:
            raise ArgumentError("FILE", "a file with the taps reset_kernel for --neuron srm", "one without")
        return run_srm(x, **given, surrogate=options["surrogate"], time_dim=options["time_dim"])
    if neuron == "if":
        if "alpha" in given:
            raise ArgumentError("--neuron", "lif with alpha", neuron)
        given["alpha"] = 1.0
    for name, what, needed_by in _DECAYS:
        if neuron in needed_by and name not in given:
            option = f"--{name.replace('_', '-')}"
            raise ArgumentError(option, f"{what} in one step, such as 0.95, with --neuron {neuron}", "nothing")
    known = signature(run_lif).parameters
    if is_coupled(**given, **options) or options["detach_reset"] or not given.keys() <= known.keys():
        return run_coupled(x, **given, **options)
    return run_lif(x, **given, **{name: value for name, value in options.items() if name in known})


def _against(name: str, file: Path | None, time_dim: int, seed: int, json: bool) -> None:
    peer = peer_neuron(name)
    if file is None:
        x = 1.0 / float(peer.gain) * (0.3 + 0.6 * _drawn(_PEER_SHAPE, seed, torch.float32))
        arrays: dict[str, Tensor] = {}
        title = f"normally distributed input, seed {seed}"
    else:
        arrays = read_arrays(file)
        x, title = _input(arrays), str(file)
        if unknown := set(arrays) - {"grad_spikes"}:
            raise ArgumentError("FILE", "tensors named x, grad_spikes with --against", ", ".join(sorted(unknown)))
    if x.dtype != torch.float32:
        raise ArgumentTypeError("x", "float32 with --against", x.dtype)
    axis = check_input("x", x, 0 if file is None else time_dim)
    drawn = "grad_spikes" not in arrays
    grad = _drawn(tuple(x.shape), seed + 1, torch.float32) if drawn else arrays["grad_spikes"]
    grad, _ = check_grads(x, grad, None, "x")
    x, grad = (values.movedim(axis, 0).reshape(values.shape[axis], -1) for values in (x, grad))
    comparison = compare(peer, x, grad)
    lines = [_peer_line(comparison, index) for index in range(len(comparison.errors))]
    if json:
        more = {name: getattr(comparison, name) for name in ("setting", "arithmetic", "spikes", "steps")}
        relative = {errors.method: errors.relative for errors in comparison.errors}
        typer.echo(as_json(lines, JSON_COMPARISON, **more, of_the_largest=relative, grad_spikes_drawn=drawn))
        return
    _console().print(_peer_table(title, comparison))
    typer.echo(
        f"{comparison.setting}\n{comparison.arithmetic}; {comparison.spikes} of {comparison.steps} spikes are not "
        "those of the exact membrane"
    )
    for note in zeros_of(lines):
        typer.echo(note)


def _peer_line(comparison: Comparison, index: int) -> Line:
    errors = comparison.errors[index]
    return Line(
        (errors.method,),
        elements=errors.ulps.numel(),
        ulps=[errors.ulps[~errors.zero]],
        units=float(errors.units.max()),
        zeros=int(errors.zero.sum()),
        zeros_missed=int((errors.units[errors.zero] != 0).sum()),
    )


def _peer_table(title: str, comparison: Comparison) -> Any:
    drawn = empty_table(f"dL/dx, {title}")
    for column in ("exact gradient of", "elements", "ulps 50%", "99%", "100%", "error/uS", "of the largest value"):
        drawn.add_column(column, justify="left" if column.startswith("exact") else "right")
    for index, errors in enumerate(comparison.errors):
        line = _peer_line(comparison, index)
        of = {"exodus": "the neuron (exodus, bptt)", "slayer": "slayer: without the reset"}[errors.method]
        drawn.add_row(
            of,
            str(line.elements),
            *ulps_cells(line),
            figure(line.units),
            f"{errors.relative:.1e}",
        )
    return drawn
