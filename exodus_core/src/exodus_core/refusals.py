"""Refusals: parts of models, networks and graphs that have no counterpart, each with the reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """A layer or a node that is refused.

    Args:
        name: of a layer in a model, as in `named_modules`, of one in a network, or of a node in a graph; "" for the
            whole.
        kind: the name of its class, with that of its library; its kind in the network, or its type in NIR.
        reason: what keeps it from being computed or converted the same, and what to change where something can be.
    """

    name: str
    kind: str
    reason: str

    def __str__(self) -> str:
        shown = f"{self.name} ({self.kind})" if self.name else self.kind
        return f"{shown}: {self.reason}"
