"""States that layers carry from one piece of a sequence to the next, while a module runs in pieces of time.

`time_checkpoint` makes a `Piece` current and calls the module; each layer whose result depends on earlier steps takes
the state that the last piece left it, and leaves its own. What cannot do so is refused: it would start every piece from
rest.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from exodus_core.errors import ArgumentError

#: Tensors of the last step, those of LIF neurons its membrane and its spikes.
State = tuple[Tensor, ...]
#: A layer, and the number of its call within a piece.
Call = tuple[torch.nn.Module, int]
States = dict[Call, State]
T = TypeVar("T")

#: Why layers that have it as `not_in_pieces` cannot run in pieces.
SRM_IN_PIECES = "its state is the whole history of its spikes, and it starts from rest"
STATISTICS_IN_PIECES = "in training its statistics are those of all steps together"

_local = threading.local()


class Piece:
    """Some steps of a sequence while a module computes them.

    Args:
        steps: how many.
        before: the states that calls of layers start from; from rest where there is none.
        shared: tensors that are the same in all pieces, of layers that made them in the first one.

    Attributes:
        after: the states that calls of layers have left, in their order.
    """

    def __init__(self, steps: int, before: States, shared: dict[torch.nn.Module, Tensor]) -> None:
        self.steps = steps
        self.after: States = {}
        self._before = before
        self._shared = shared
        self._calls: Counter[torch.nn.Module] = Counter()
        self._carrying = False
        self._is_over = False

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Makes the piece the current one of this thread."""
        outer = getattr(_local, "piece", None)
        _local.piece = self
        try:
            yield
        finally:
            _local.piece = outer

    def end(self) -> None:
        """Refuses calls of layers from here on: a backward pass must not compute them again by itself."""
        self._is_over = True

    def carry(self, layer: torch.nn.Module, steps: int, call: Callable[[State | None], tuple[T, State | None]]) -> T:
        """The result of a layer's call, which takes its state before the piece and returns that after it too."""
        if self._is_over:
            raise RuntimeError(
                "a layer with a state must not be recomputed within a piece of a sequence, as torch.utils.checkpoint "
                "does; a time checkpoint computes it again already"
            )
        if steps != self.steps:
            expected = f"the axis of time of a time checkpoint, which has {self.steps} steps in this piece"
            raise ArgumentError("time_dim", expected, f"one of {steps} in {type(layer).__name__}")
        key = layer, self._calls[layer]
        self._calls[layer] += 1
        if key[1] and getattr(layer, "stateful", False):
            raise RuntimeError(
                f"a stateful layer must be called once by a module with a time checkpoint, got a second call of "
                f"{type(layer).__name__}: it would go on from the end of the first one's sequence"
            )
        self._carrying = True
        try:
            result, state = call(self._before.get(key))
        finally:
            self._carrying = False
        assert state is not None  # there is a step
        self.after[key] = state
        return result

    def share(self, layer: torch.nn.Module, make: Callable[[], Tensor]) -> Tensor:
        """A layer's tensor for all pieces, made in the first one."""
        if layer not in self._shared:
            self._shared[layer] = make()
        return self._shared[layer]

    def refuse(self, what: str, instead: str) -> None:
        """Raises RuntimeError unless a layer that carries its state calls."""
        if not self._carrying:
            raise RuntimeError(
                f"{what} must not be called by a module with a time checkpoint, where it would start every piece from "
                f"rest; {instead}"
            )


def current() -> Piece | None:
    """The piece that this thread computes. A graph that is being compiled belongs to none."""
    return None if torch.compiler.is_compiling() else getattr(_local, "piece", None)


def refuse_in_pieces(what: str, instead: str) -> None:
    """Raises RuntimeError in a piece, unless a layer that carries its state calls."""
    piece = current()
    if piece is not None:
        piece.refuse(what, instead)


@contextmanager
def without_piece() -> Iterator[None]:
    """A context for what depends on no other step."""
    outer = current()
    if outer is None:
        yield
        return
    _local.piece = None
    try:
        yield
    finally:
        _local.piece = outer
