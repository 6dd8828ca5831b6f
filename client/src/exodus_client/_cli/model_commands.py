"""`exodus models`: the models on a server, and the files that their states travel in."""

# No `from __future__ import annotations`: typer reads the annotations.
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from exodus_client import _constants as defaults
from exodus_client._checks import unfit
from exodus_client._cli.command_line import ApiKey, Seconds, Url, client_of, printed, reported
from exodus_client._client import Client
from exodus_client._errors import NotFoundError
from exodus_client._models.messages import ModelInfo
from exodus_client._models.model import Model
from exodus_client.wire.state_header import StateHeader

models = typer.Typer(name="models", help="Models that are trained on a server.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="Of the model.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A state in the safetensors format.")]
#: Elements that are shown of a list.
_SHOWN = 4

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@models.command("list")
def list_models(url: Url, api_key: ApiKey = None, timeout: Seconds = None, as_json: Json = False) -> None:
    """List the models of this key, the oldest first."""
    with reported(), client_of(url, api_key, timeout) as client:
        found = client.models()
    if as_json:
        with printed():
            _print_json([_plain(info) for info in found])
        return
    rows = [("ID", "NAME", "CALLS", "DURABLE", "PARAMETERS", "CREATED")]
    rows += [
        (info.id, info.name, str(info.sequence), _durable(info), _size(info.nbytes), info.created) for info in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    with printed():
        for row in rows:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@models.command()
def show(url: Url, id: Id, api_key: ApiKey = None, timeout: Seconds = None, as_json: Json = False) -> None:
    """Show one model: how far it is, its optimiser, the layers of its network, its weights."""
    with reported(), client_of(url, api_key, timeout) as client:
        info = client.model(id).info()
    if as_json:
        with printed():
            _print_json(_plain(info))
        return
    lines = {
        "id": info.id,
        "name": info.name,
        "created": info.created,
        "calls": f"{info.sequence} done, {_durable(info)}{' durable' if info.durable is not None else ''}, "
        f"saved every {info.durable_every}",
        "last save": f"failed: {info.durable_error}" if info.durable_error else "",
        "optimizer": json.dumps(dict(info.optimizer)),
        "seed": str(info.seed),
        "network": f"input {_shape(info.network.get('input_shape'))}, {info.dtype}",
    }
    lines |= _layers(info.network.get("layers", []))
    lines["weights"] = f"{_size(info.nbytes)} of {info.dtype}, {'' if info.in_memory else 'not '}in memory"
    lines |= {f"  {name}": _shape(shape) for name, shape in info.parameters}
    width = max(map(len, lines))
    with printed():
        for name, line in lines.items():
            if line:
                typer.echo(f"{name.ljust(width)}  {line}")


@models.command()
def save(url: Url, id: Id, file: File, api_key: ApiKey = None, timeout: Seconds = None, as_json: Json = False) -> None:
    """Write the whole state of a model to a file: weights, optimiser, random state, number of calls."""
    with reported(), client_of(url, api_key, timeout) as client:
        model = client.model(id, patience=_patience(timeout))
        model.save(file)
    _moved(model, file, as_json, f"{id} -> {file}")


@models.command()
def load(
    url: Url,
    id: Id,
    file: File,
    create: Annotated[bool, typer.Option("--create", help="Make the model if there is none of this ID.")] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Load weights alone, of any file of them; the optimiser starts anew.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="With --weights: load those that there are, and print what is missing.")
    ] = False,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="With --weights: a layer or weight to load; may be repeated.")
    ] = None,
    api_key: ApiKey = None,
    timeout: Seconds = None,
    as_json: Json = False,
) -> None:
    """Give a model the state in a file, which `save` wrote for one of the same network; or weights of a file."""
    if weights:
        _load_weights(url, id, file, partial, name, api_key, timeout, as_json, create)
        return
    with reported():
        if partial or name:
            raise unfit(ValueError, "--partial and --name", "given with --weights", "without")
        made_from = _made_from(file)
        with client_of(url, api_key, timeout) as client:
            model = _model(client, id, made_from if create else None, _patience(timeout))
            model.load(file)
    _moved(model, file, as_json, f"{file} -> {id}")


def _load_weights(
    url: str,
    id: str,
    file: Path,
    partial: bool,
    names: list[str] | None,
    api_key: str | None,
    timeout: float | None,
    as_json: bool,
    create: bool,
) -> None:
    with reported():
        if create:
            raise unfit(ValueError, "--create", "absent with --weights", "given", "weights say no network")
        with client_of(url, api_key, timeout) as client:
            model = client.model(id, patience=_patience(timeout))
            found = model.load_weights(file, names=names, partial=partial)
    with printed(f"{file} -> {id}, weights alone"):
        if as_json:
            listed = {"loaded": found.loaded, "missing": found.missing, "unexpected": found.unexpected}
            _print_json({"id": id, "file": str(file)} | listed)
            return
        typer.echo(f"{file} -> {id}, {len(found.loaded)} weights: {', '.join(found.loaded)}")
        for what, names_of_it in (("missing", found.missing), ("not in the network", found.unexpected)):
            if names_of_it:
                typer.echo(f"{what}: {', '.join(names_of_it)}")


@models.command()
def delete(
    url: Url,
    id: Id,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    api_key: ApiKey = None,
    timeout: Seconds = None,
    as_json: Json = False,
) -> None:
    """Delete a model, with all that was saved of it on the server. Asks first, and wants --yes where it cannot."""
    with reported():
        if not yes and not _is_terminal():
            raise unfit(ValueError, "--yes", "given if there is no terminal to ask at", "nothing")
        with client_of(url, api_key, timeout) as client:
            if not yes:
                info = client.model(id).info()
                name = f" ({info.name})" if info.name else ""
                typer.confirm(f"delete {id}{name} after {info.sequence} calls?", abort=True, err=True)
            client.delete_model(id)
    deed = f"{id} is deleted"
    with printed(deed):
        if as_json:
            _print_json({"id": id, "deleted": True})
        else:
            typer.echo(deed)


def _is_terminal() -> bool:
    """True if somebody can answer."""
    return sys.stdin.isatty()


def _patience(timeout: float | None) -> float:
    """Seconds that a model waits for its server: no longer than a request does."""
    return defaults.PATIENCE if timeout is None else timeout


def _model(client: Client, id: str, made_from: dict[str, Any] | None, patience: float) -> Model:
    """The model, made if there is none and it may be."""
    try:
        return client.model(id, patience=patience)
    except NotFoundError:
        if made_from is None:
            raise
    optimizer, seed = made_from["optimizer"], made_from["seed"]
    return client.create_model(made_from["network"], optimizer=optimizer, seed=seed, id=id, patience=patience)


def _made_from(file: Path) -> dict[str, Any]:
    """Network, optimiser and seed that a state belongs to. Raises OSError, ValueError."""
    with file.open("rb") as stream:
        try:
            made_from = StateHeader.read(stream, file.stat().st_size).description
            return {name: made_from[name] for name in ("network", "optimizer", "seed")}
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"FILE must be the state of a model, which `exodus models save` writes, got {file}: {error}"
            ) from error


def _moved(model: Model, file: Path, as_json: bool, line: str) -> None:
    deed = f"{line}, after {model.sequence} calls"
    with printed(deed):
        if as_json:
            sizes = {"sequence": model.sequence, "durable": model.durable, "bytes": file.stat().st_size}
            _print_json({"id": model.id, "file": str(file)} | sizes)
        else:
            typer.echo(deed)


def _plain(info: ModelInfo) -> dict[str, Any]:
    """As the server says it."""
    parameters = [{"name": name, "shape": list(shape)} for name, shape in info.parameters]
    return dataclasses.asdict(info) | {"parameters": parameters}


def _layers(layers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A line for each layer: its name or index, its kind, and what was chosen for it."""
    width = max((len(layer["kind"]) for layer in layers), default=0)
    lines, before = {}, "input"
    for index, layer in enumerate(layers):
        name = str(layer.get("name") or index)
        chosen = {key: value for key, value in layer.items() if key not in ("kind", "name")}
        if chosen.get("inputs") == [before]:
            del chosen["inputs"]
        lines[f"  {name}"] = f"{layer['kind'].ljust(width)}  {_fields(chosen)}".rstrip()
        before = name
    return lines


def _fields(chosen: Mapping[str, Any]) -> str:
    """Names and values, without those that are none."""
    return ", ".join(f"{name} {_brief(value)}" for name, value in chosen.items() if value not in (None, []))


def _brief(value: Any) -> str:
    """A value of a layer: an object by its kind and its fields in brackets, a long list by its first elements."""
    if isinstance(value, Mapping):
        return f"{value.get('kind', '')}({_fields({name: value[name] for name in value if name != 'kind'})})"
    if isinstance(value, list) and len(value) > _SHOWN:
        return f"[{', '.join(map(_brief, value[:_SHOWN]))}, ... {len(value)} in all]"
    return value if isinstance(value, str) else json.dumps(value)


def _shape(shape: Sequence[int] | None) -> str:
    """A shape; that of a scalar is 1."""
    return "of any shape" if shape is None else " x ".join(map(str, shape)) or "1"


def _durable(info: ModelInfo) -> str:
    return "in memory only" if info.durable is None else str(info.durable)


def _size(nbytes: int) -> str:
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
