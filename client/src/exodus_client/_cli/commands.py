"""The commands of `exodus`: ping, capabilities, gradient; models, in `model_commands`; and those of plugins."""

# No `from __future__ import annotations`: typer reads the annotations.
import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import typer

from exodus_client._checks import one_of, unfit
from exodus_client._cli.command_line import NO_SERVER, ApiKey, Seconds, Url, client_of, printed, reported
from exodus_client._cli.model_commands import models
from exodus_client._cli.plugins import add_plugins
from exodus_client._gradients.result import GradientArguments, Gradients, Method
from exodus_client.neuron import MODELS, Neuron
from exodus_client.surrogate import KINDS

app = typer.Typer(
    name="exodus",
    help="Gradients and training of spiking neural networks, computed by an Exodus service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models)

NeuronModel = Annotated[str, typer.Option(metavar=f"[{'|'.join(MODELS)}]")]
SurrogateKind = Annotated[str, typer.Option(metavar=f"[{'|'.join(KINDS)}]")]

NpyFile = Annotated[Path | None, typer.Option(metavar="FILE.npy", show_default=False)]


@app.command()
def ping(url: Url, api_key: ApiKey = None, timeout: Seconds = None) -> None:
    """Say whether a server takes requests with this key, and how far away it is."""
    with reported(), client_of(url, api_key, timeout) as client:
        found = client.ping()
    if not found.ready:
        typer.echo(f"not ready: {found.reason} ({found.round_trip:.1f} ms)", err=True)
        raise typer.Exit(NO_SERVER)
    with printed():
        typer.echo(f"ready ({found.round_trip:.1f} ms)")


@app.command()
def capabilities(url: Url, api_key: ApiKey = None, timeout: Seconds = None) -> None:
    """Print what a server can do, as JSON."""
    with reported(), client_of(url, api_key, timeout) as client:
        found = client.capabilities()
    with printed():
        typer.echo(json.dumps(found, indent=2))


@app.command()
def gradient(
    url: Annotated[str, typer.Option(help="http://HOST:PORT, https://HOST or unix:/PATH.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="FILE.npy for the first array, FILE.npz for all.")],
    membrane: NpyFile = None,
    input: NpyFile = None,
    spikes: NpyFile = None,
    weight: NpyFile = None,
    psp: NpyFile = None,
    reset_kernel: NpyFile = None,
    grad_output: NpyFile = None,
    grad_membrane: NpyFile = None,
    current: NpyFile = None,
    method: Method = "exodus",
    neuron: NeuronModel = "lif",
    alpha: Annotated[float | None, typer.Option(help="Decay in one step; not for if.", show_default=False)] = None,
    threshold: Annotated[float | None, typer.Option(show_default="1")] = None,
    reset: Annotated[Literal["subtract", "zero", "value", "none"] | None, typer.Option(show_default="subtract")] = None,
    reset_by: Annotated[float | None, typer.Option(help="What a spike subtracts.", show_default="threshold")] = None,
    reset_to: Annotated[float | None, typer.Option(help="With --reset value.", show_default=False)] = None,
    decay_reset: Annotated[bool, typer.Option("--decay-reset", help="Reset before the decay.")] = False,
    detach_reset: Annotated[bool, typer.Option("--detach-reset", help="No gradient through the reset.")] = False,
    min_membrane: Annotated[float | None, typer.Option(show_default="none")] = None,
    bound_after_reset: Annotated[
        bool, typer.Option("--bound-after-reset", help="It bounds what the reset leaves; for lif and if.")
    ] = False,
    max_spikes: Annotated[int | None, typer.Option(help="Most spikes in a step.", show_default="1")] = None,
    refractory: Annotated[int | None, typer.Option(help="Steps without a spike behind one.", show_default="0")] = None,
    synapse_alpha: Annotated[
        float | None, typer.Option(help="Decay of the current in one step; for cuba_lif and alif.", show_default=False)
    ] = None,
    synapse_gain: Annotated[float | None, typer.Option(show_default="1")] = None,
    synapse_delayed: Annotated[bool, typer.Option("--synapse-delayed", help="The membrane sees it late.")] = False,
    adapt_alpha: Annotated[
        float | None, typer.Option(help="Decay of the adaptation in one step; for alif.", show_default=False)
    ] = None,
    adapt_by: Annotated[float | None, typer.Option(show_default="1")] = None,
    adapt_membrane: Annotated[float | None, typer.Option(show_default="0")] = None,
    adapt_threshold: Annotated[float | None, typer.Option(show_default="0")] = None,
    adapt_current: Annotated[float | None, typer.Option(show_default="0")] = None,
    surrogate: SurrogateKind = "exponential",
    slope: Annotated[float | None, typer.Option(show_default="of the kind")] = None,
    scale: float = 1.0,
    time_dim: int = 1,
    output_filter: Annotated[float | None, typer.Option(metavar="ALPHA", show_default=False)] = None,
    wrt: Annotated[
        list[str] | None, typer.Option(help="Gradient of a parameter: alpha, threshold, ...; may be repeated.")
    ] = None,
    return_: Annotated[
        list[str] | None, typer.Option("--return", help="Trace: spikes or membrane; may be repeated.")
    ] = None,
    api_key: ApiKey = None,
    timeout: Seconds = None,
    shared_memory: Annotated[
        bool, typer.Option("--shared-memory", help="Exchange arrays with a service on this machine through memory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print norms and timing as JSON.")] = False,
) -> None:
    """Compute gradients on a server, from arrays in .npy files.

    Give --membrane, or --input, or --spikes with --weight; for --neuron srm --reset-kernel, with --membrane or --psp.
    With --membrane, --wrt synapse_alpha and synapse_gain need --current.
    """
    parameters = {
        "alpha": alpha,
        "threshold": threshold,
        "reset": reset,
        "reset_by": reset_by,
        "reset_to": reset_to,
        "decay_reset": decay_reset or None,
        "detach_reset": detach_reset or None,
        "min_membrane": min_membrane,
        "bound_after_reset": bound_after_reset or None,
        "max_spikes": max_spikes,
        "refractory": refractory,
        "synapse_alpha": synapse_alpha,
        "synapse_gain": synapse_gain,
        "synapse_delayed": synapse_delayed or None,
        "adapt_alpha": adapt_alpha,
        "adapt_by": adapt_by,
        "adapt_membrane": adapt_membrane,
        "adapt_threshold": adapt_threshold,
        "adapt_current": adapt_current,
    }
    files = {
        "membrane": membrane,
        "input": input,
        "spikes": spikes,
        "weight": weight,
        "psp": psp,
        "reset_kernel": reset_kernel,
        "grad_output": grad_output,
        "grad_membrane": grad_membrane,
        "current": current,
    }
    with reported():
        _check_out(out)
        arrays = {name: _load(name, file) for name, file in files.items() if file is not None}
        arguments: dict[str, Any] = {
            "method": method,
            "neuron": _neuron(neuron, {name: value for name, value in parameters.items() if value is not None}),
            "surrogate": KINDS[one_of("--surrogate", surrogate, KINDS)](slope, scale),
            "time_dim": time_dim,
            "output_filter": output_filter,
            "wrt": wrt or (),
            "return_": return_ or (),
        }
        with client_of(url, api_key, timeout, shared_memory=shared_memory) as client:
            result = client.gradients(**cast(GradientArguments, arrays | arguments))
        _save(out, result)
    with printed(f"the result is in {out}"):
        _print(result, out, as_json)


def _neuron(model: str, given: dict[str, Any]) -> Neuron:
    """The neuron of a model, of the options that are given. Raises ValueError: it lacks one, or does not have it."""
    fields = {name: {field.name: field for field in dataclasses.fields(kind)} for name, kind in MODELS.items()}
    own = fields[one_of("--neuron", model, MODELS)]
    for name in given:
        if name not in own:
            having = [other for other in fields if name in fields[other]]
            advice = "the taps of srm are --reset-kernel" if model == "srm" else ""
            raise unfit(ValueError, "--neuron", f"{' or '.join(having)} with {_option(name)}", model, advice)
    for name, field in own.items():
        if field.default is dataclasses.MISSING and name not in given:
            raise unfit(ValueError, _option(name), f"given with --neuron {model}, such as 0.95", "nothing")
    return MODELS[model](**given)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_out(out: Path) -> None:
    """Found out before the work is done rather than after it."""
    if out.suffix not in (".npy", ".npz"):
        raise unfit(ValueError, "--out", "a name that ends in .npy or .npz", out)
    if not out.parent.is_dir():
        raise unfit(ValueError, "--out", "in a folder that exists", out)


def _load(name: str, file: Path) -> Any:
    with file.open("rb") as stream:
        try:
            return np.lib.format.read_array(stream, allow_pickle=False)
        except (ValueError, MemoryError) as error:  # a broken header may ask for any amount of memory
            raise unfit(ValueError, _option(name), "a .npy file of numbers", f"{file}: {error}") from error


def _save(out: Path, result: Gradients) -> None:
    if out.suffix == ".npz":
        np.savez(out, **dict(result.arrays))
    else:
        np.save(out, next(iter(result.arrays.values())))


def _print(result: Gradients, out: Path, as_json: bool) -> None:
    if as_json:
        summary = {
            "out": str(out),
            "method": result.method,
            "device": result.device,
            "request_id": result.request_id,
            "shapes": {name: list(array.shape) for name, array in result.arrays.items()},
            "grad_norms": dict(result.grad_norms),
            "timing_ms": dict(result.timing),
        }
        typer.echo(json.dumps(summary, indent=2))
        return
    saved = ", ".join(result.arrays) if out.suffix == ".npz" else next(iter(result.arrays))
    typer.echo(f"{saved} -> {out}, computed by {result.method} on {result.device}")
    typer.echo("norms   " + "  ".join(f"{name} {norm:.6g}" for name, norm in result.grad_norms.items()))
    typer.echo("ms      " + "  ".join(f"{name} {duration:.2f}" for name, duration in result.timing.items()))


add_plugins(app)
