"""The commands of `exodus`: ping, capabilities, gradient; models, in `model_commands`; and those of plugins."""

# No `from __future__ import annotations`: typer reads the annotations.
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
from exodus_client.neuron import IF, LIF, SRM, Neuron
from exodus_client.surrogate import KINDS

app = typer.Typer(
    name="exodus",
    help="Gradients and training of spiking neural networks, computed by an Exodus service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models)

#: Neurons that the options of the command describe.
_MODELS = ("lif", "if", "srm")

NeuronModel = Annotated[str, typer.Option(metavar=f"[{'|'.join(_MODELS)}]")]
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
    method: Method = "exodus",
    neuron: NeuronModel = "lif",
    alpha: Annotated[float | None, typer.Option(help="Decay in one step; for lif.", show_default=False)] = None,
    threshold: float = 1.0,
    reset: Literal["subtract", "zero", "none"] = "subtract",
    reset_by: Annotated[float | None, typer.Option(help="What a spike subtracts.", show_default="threshold")] = None,
    decay_reset: Annotated[bool, typer.Option("--decay-reset", help="Reset before the decay.")] = False,
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
    """
    files = {
        "membrane": membrane,
        "input": input,
        "spikes": spikes,
        "weight": weight,
        "psp": psp,
        "reset_kernel": reset_kernel,
        "grad_output": grad_output,
        "grad_membrane": grad_membrane,
    }
    with reported():
        _check_out(out)
        arrays = {name: _load(name, file) for name, file in files.items() if file is not None}
        arguments: dict[str, Any] = {
            "method": method,
            "neuron": _neuron(
                neuron, alpha, threshold=threshold, reset=reset, reset_by=reset_by, decay_reset=decay_reset
            ),
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


def _neuron(model: str, alpha: float | None, **parameters: Any) -> Neuron:
    if one_of("--neuron", model, _MODELS) == "lif":
        if alpha is None:
            raise unfit(ValueError, "--alpha", "the decay in one step, such as 0.95, with --neuron lif", "nothing")
        return LIF(alpha, **parameters)
    if alpha is not None:
        raise unfit(ValueError, "--neuron", "lif with --alpha", model)
    if model == "if":
        return IF(**parameters)
    threshold = parameters.pop("threshold")
    if parameters != {"reset": "subtract", "reset_by": None, "decay_reset": False}:
        expected = "lif or if with --reset, --reset-by and --decay-reset"
        raise unfit(ValueError, "--neuron", expected, "srm", "which has --reset-kernel")
    return SRM(threshold=threshold)


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
            raise unfit(
                ValueError, f"--{name.replace('_', '-')}", "a .npy file of numbers", f"{file}: {error}"
            ) from error


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
