"""Rows of the report, one JSON object a line, so that a part that is stopped has reported its rows so far."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
Emit = Callable[[Row], None]


def failed(what: str, error: BaseException) -> Row:
    """The row of a contender or a case that could not be run."""
    lines = str(error).strip().splitlines()
    return {"case": what, "ok": False, "detail": f"{type(error).__name__}: {lines[0][:200] if lines else ''}"}


def markdown(rows: Sequence[Row]) -> list[str]:
    """Tables of rows: those that follow each other with the same columns are one table."""
    lines: list[str] = []
    columns: list[str] = []
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines.append("| " + " | ".join(_shown(row[name]) for name in columns) + " |")
    return lines


def as_json(row: Row) -> str:
    """One line; numbers that are not finite as null, which JSON has not."""
    return json.dumps({name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()})


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "/").replace("\n", " ")
