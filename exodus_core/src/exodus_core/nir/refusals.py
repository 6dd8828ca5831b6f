"""Errors of graphs and networks that cannot be converted: all the nodes or layers at once, each with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exodus_core.errors import ArgumentError


@dataclass(frozen=True)
class Refusal:
    """A node of a graph, or a layer of a network, that cannot be converted.

    Args:
        name: of the node or layer.
        kind: its type in NIR, or its kind in the network.
        reason: why not, in words.
    """

    name: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}): {self.reason}"


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
