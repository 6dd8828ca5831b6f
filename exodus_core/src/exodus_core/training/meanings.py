"""Names of layers or parts of them, and of their tensors, as the names of the tensors that they mean."""

from __future__ import annotations

from collections.abc import Iterable


def meanings(tensors: Iterable[str]) -> dict[str, list[str]]:
    """The tensors that each name means, in order: of a tensor itself, of a layer or a part all that are in it.

    Args:
        tensors: names of tensors, such as "in.weight" and "hidden.recurrent.weight".
    """
    found: dict[str, list[str]] = {}
    for name in tensors:
        end = 0
        while end >= 0:
            end = name.find(".", end + 1)
            found.setdefault(name if end < 0 else name[:end], []).append(name)
    return found
