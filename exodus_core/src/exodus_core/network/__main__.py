"""Prints the tables of docs/networks.md: `python -m exodus_core.network`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from exodus_core import losses
from exodus_core.network.description import KINDS
from exodus_core.network.neurons import AlphaTaps, ExponentialTaps, Recurrent, SlayerRefractoryTaps, SurrogateData
from exodus_core.schema import described, plain
from exodus_core.training.optimizer import OPTIMIZERS


def _table(cls: type) -> str:
    rows = ["| field | value | default | meaning |", "|---|---|---|---|"]
    # Required fields come first.
    for field in sorted(described(cls), key=lambda field: field.default is not dataclasses.MISSING):
        given = field.default is dataclasses.MISSING
        default = "" if given else f"`{json.dumps(plain(field.default))}`"
        rows.append(f"| `{field.name}` | {field.check.wanted} | {default} | {field.meaning} |")
    return "\n".join(rows)


def _section(level: str, title: str, cls: type) -> str:
    table = _table(cls) if described(cls) else "No fields of its own."
    return f"{level} {title}\n\n{(cls.__doc__ or '').strip().splitlines()[0]}\n\n{table}\n"


def _sections(level: str, classes: Iterable[tuple[str, type]]) -> str:
    return "\n".join(_section(level, f"`{name}`", cls) for name, cls in classes)


def layer_tables() -> str:
    """A section for each kind of layer."""
    return _sections("###", KINDS.items())


def part_tables() -> str:
    """A section for each object that a layer's field may hold."""
    parts = {
        "surrogate": SurrogateData,
        "recurrent": Recurrent,
        'kernel, `"kind": "exponential"`': ExponentialTaps,
        'kernel, `"kind": "alpha"`': AlphaTaps,
        'kernel, `"kind": "slayer_refractory"`': SlayerRefractoryTaps,
    }
    return "\n".join(_section("###", name, cls) for name, cls in parts.items())


def loss_tables() -> str:
    """A section for each loss."""
    return _sections("###", losses.KINDS.items())


def optimizer_tables() -> str:
    """A section for each optimiser."""
    return _sections("###", OPTIMIZERS.items())


if __name__ == "__main__":
    print("\n".join([layer_tables(), part_tables(), loss_tables(), optimizer_tables()]))
