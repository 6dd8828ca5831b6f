"""NIR files: reading, writing, and what exodus writes into their metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.nir.topology import type_of

try:
    import nir
except ModuleNotFoundError as error:
    if error.name not in ("nir", "h5py"):
        raise
    raise ModuleNotFoundError(
        f"exodus_core.nir needs {error.name}: pip install 'exodus-core[nir]'", name=error.name
    ) from error

__all__ = ["METADATA", "VERSION", "digest", "metadata", "nir", "read_graph", "read_metadata"]

#: Key of the metadata of a graph and of its nodes; the value is JSON.
METADATA = "exodus"
VERSION = 1

# What nir and h5py raise for files that are cut, forged or of another kind.
_UNREADABLE = (AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def read_graph(source: Any) -> Any:
    """The NIRGraph of a file, or the graph itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no NIR file.
        TypeError: `source` is neither a path nor a graph.
    """
    if isinstance(source, nir.NIRGraph):
        return source
    if not isinstance(source, str | Path):
        raise ArgumentTypeError("graph", "a nir.NIRGraph, or the path of a file", type(source).__name__)
    if not Path(source).is_file():
        raise FileNotFoundError(f"there is no file {source}")
    try:
        # Types are inferred here, over the whole graph; nir would refuse files of older writers.
        found = nir.read(source, type_check=False)
    except _UNREADABLE as error:
        detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ArgumentError("graph", "a NIR file", f"{source}, which nir does not read ({detail})") from error
    if not isinstance(found, nir.NIRGraph):
        raise ArgumentError("graph", "a file with a NIRGraph", f"one with a {type_of(found)}")
    return found


def read_metadata(holder: Any, where: str) -> dict[str, Any]:
    """The entries that exodus wrote into the metadata of a graph or node, or {}."""
    text = holder.metadata.get(METADATA) if isinstance(getattr(holder, "metadata", None), Mapping) else None
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (RecursionError, TypeError, ValueError) as error:
        raise ArgumentError(f"metadata of {where}", "JSON", repr(text)[:80]) from error
    if not isinstance(found, dict) or found.pop("version", None) != VERSION:
        raise ArgumentError(f"metadata of {where}", f"an object of version {VERSION}", repr(text)[:80])
    return found


def metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """The metadata that `read_metadata` reads."""
    return {METADATA: json.dumps({"version": VERSION, **values})}


def digest(graph: Any) -> str:
    """Digest of the nodes and edges of a graph without graphs in it."""
    found = hashlib.sha256()
    for name, node in sorted(graph.nodes.items()):
        values = {key: value for key, value in node.to_dict().items() if value is not None}
        for key, value in sorted(values.items()):
            array = np.asarray(value)
            found.update(f"{name}/{key} {array.shape} ".encode())
            found.update(str(value).encode() if array.dtype.kind in "OSU" else array.astype("<f8").tobytes())
    found.update(repr(sorted((str(a), str(b)) for a, b in graph.edges)).encode())
    return found.hexdigest()
