"""The command `nir` of `exodus`: runs graphs, reads them as networks, and writes networks as graphs.

Exit codes: 0 done, 2 the arguments or the files do not fit.
"""

# No `from __future__ import annotations`: typer reads the annotations.
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.network import build, parse
from exodus_core.nir.conventions import (
    DISCRETISATIONS,
    FIRINGS,
    INPUT_GAINS,
    LIBRARIES,
    MIN_MEMBRANES,
    RESETS,
    STARTS,
    SYNAPSES,
)
from exodus_core.nir.files import nir
from exodus_core.nir.reading import DTYPES, Imported, import_graph
from exodus_core.nir.writing import export_graph
from exodus_core.verify.arrays import read_arrays

BAD_ARGUMENTS = 2
_STATE_PREFIX = "weights."

app = typer.Typer(
    name="nir",
    help="NIR graphs: run them, read them as networks, write networks as graphs.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _one_of(names: tuple[str, ...], help: str, default: str = "of the file") -> Any:
    return typer.Option(metavar=f"[{'|'.join(names)}]", help=help, show_default=default)


GraphFile = Annotated[Path, typer.Argument(metavar="FILE", help="A NIR file.", show_default=False)]
#: The options of commands that read a graph; each is an argument of `import_graph`.
_CONVENTIONS: dict[str, Any] = {
    "dt": Annotated[
        float | None, typer.Option(help="Time step, in the unit of the time constants.", show_default="of the file")
    ],
    "discretisation": Annotated[str | None, _one_of(DISCRETISATIONS, "Decay: 1 - dt/tau, or exp(-dt/tau).")],
    "input_gain": Annotated[str | None, _one_of(INPUT_GAINS, "Factor on the input.", "equation")],
    "reset": Annotated[str | None, _one_of(RESETS, "What a spike does to the membrane.")],
    "reset_delayed": Annotated[
        bool | None, typer.Option("--reset-delayed/--reset-at-once", help="When.", show_default="at once")
    ],
    "synapse": Annotated[str | None, _one_of(SYNAPSES, "Which synaptic current drives the membrane.")],
    "firing": Annotated[str | None, _one_of(FIRINGS, "Fire above the threshold, or at it too.", "above")],
    "start": Annotated[str | None, _one_of(STARTS, "Membrane before the first step.")],
    "max_spikes": Annotated[int | None, typer.Option(help="Most spikes in one step.", show_default="1")],
    "min_membrane": Annotated[str | None, _one_of(MIN_MEMBRANES, "Lower bound of the membrane of IF.", "none")],
    "written_by": Annotated[str | None, _one_of(tuple(LIBRARIES), "Read as this library does.", "none")],
    "dtype": Annotated[str | None, _one_of(tuple(DTYPES), "Of the network.", "float32")],
}


def _with_conventions(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose keywords `conventions` are these options, as typer reads them."""
    signature = inspect.signature(command)
    own = [given for given in signature.parameters.values() if given.kind is not given.VAR_KEYWORD]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _CONVENTIONS.items()
    ]
    command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    command.__annotations__ |= _CONVENTIONS
    return command


@contextmanager
def _refusals() -> Iterator[None]:
    """Ends the command with one line where arguments or files do not fit."""
    try:
        yield
    except (ArgumentError, ArgumentTypeError, OSError, ModuleNotFoundError) as error:
        typer.echo(f"exodus: {error}", err=True)
        raise typer.Exit(BAD_ARGUMENTS) from error


def _imported(file: Path, **conventions: Any) -> Imported:
    found = import_graph(file, **conventions)
    known = ", ".join(f"{name} {value}" for name, value in found.conventions.known.items())
    typer.echo(f"{file}: {len(found.layers)} nodes as {len(found.description.layers)} layers ({known})")
    return found


@app.command()
@_with_conventions
def run(
    file: GraphFile,
    input: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="x in .npy, .npz, .pt or .safetensors: (time, ...) or (samples, time, ...).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.npz", help="Gets the output.", show_default=False)],
    **conventions: Any,
) -> None:
    """Run a graph on an input, and write what it gives, as `output`."""
    with _refusals():
        found = _imported(file, **conventions)
        x = _input(input)
        single = x.dim() == 1 + len(found.description.input_shape)
        network = build(found.description).eval()
        network.load_state_dict(found.weights)
        with torch.no_grad():
            y = network(x[None] if single else x)
        y = y[0] if single else y
        np.savez(_named(out, ".npz"), output=y.cpu().numpy())
        typer.echo(f"{out}: output {tuple(y.shape)}, {int((y != 0).sum())} values are not 0")


def _named(file: Path, suffix: str) -> Path:
    if file.suffix != suffix:
        raise ArgumentError("--out", f"a name that ends in {suffix}", file)
    return file


def _input(file: Path) -> torch.Tensor:
    try:
        arrays = read_arrays(file)
    except ArgumentError as error:
        raise ArgumentError("INPUT", error.expected, error.got) from error
    if set(arrays) != {"x"}:
        raise ArgumentError(
            "INPUT", "a file with the tensor x alone", f"one with {', '.join(sorted(arrays)) or 'none'}"
        )
    return arrays["x"]


@app.command("import")
@_with_conventions
def import_command(
    file: GraphFile,
    network: Annotated[Path, typer.Option(metavar="FILE.json", help="Gets the network.", show_default=False)],
    weights: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="Gets the weights.", show_default=False)],
    **conventions: Any,
) -> None:
    """Read a graph as a network, which a service takes, and its weights."""
    with _refusals():
        found = _imported(file, **conventions)
        network.write_text(json.dumps(found.description.data, indent=1) + "\n")
        save_file(found.weights, weights)
        typer.echo(f"{network}, {weights}: {found.description.nbytes} bytes of weights")


@app.command()
def export(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS.safetensors",
            help="Weights by name, or a state that `exodus models save` wrote, which has the network too.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.nir", help="Gets the graph.", show_default=False)],
    dt: Annotated[float, typer.Option(help="Time step, in seconds.", show_default=False)],
    network: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="The network.", show_default="of the state")
    ] = None,
    discretisation: Annotated[str, _one_of(DISCRETISATIONS, "Of the time constants.", "euler")] = "euler",
) -> None:
    """Write a network and its weights as a graph."""
    with _refusals():
        tensors, told = _state(weights)
        if network is not None:
            told = _json("--network", network.read_text())
        if told is None:
            raise ArgumentError("--network", "given, as WEIGHTS has no network", "nothing")
        graph = export_graph(parse(told), tensors, dt=dt, discretisation=discretisation)
        nir.write(_named(out, ".nir"), graph)
        typer.echo(f"{out}: {len(graph.nodes)} nodes, {len(graph.edges)} edges")


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArgumentError(name, "JSON", text[:40]) from error


def _state(file: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """The weights of a file, and the network in its metadata, or None."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        got = f"{file}, which is damaged or holds something else"
        raise ArgumentError("WEIGHTS", "a .safetensors file", got) from error
    state = _json("WEIGHTS", metadata["exodus"]) if "exodus" in metadata else {}
    if any(name.startswith(_STATE_PREFIX) for name in tensors):
        named = ((name.removeprefix(_STATE_PREFIX), name) for name in tensors if name.startswith(_STATE_PREFIX))
        tensors = {short: tensors[name] for short, name in named}
    return tensors, state.get("network") if isinstance(state, dict) else None
