"""Errors of graphs and networks that cannot be converted: all the nodes or layers at once, each with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from exodus_core.errors import ArgumentError
from exodus_core.refusals import Refusal


class RefusedNodeError(Exception):
    """The reason why one node or layer cannot be converted; becomes a Refusal."""


class GraphError(ArgumentError):
    """A graph that networks do not compute, or a network that NIR does not express.

    Attributes:
        refusals: every node or layer that is in the way.
    """

    def __init__(self, argument: str, expected: str, refusals: Sequence[Refusal]) -> None:
        super().__init__(argument, expected, "; ".join(map(str, refusals)))
        self.refusals = tuple(refusals)
