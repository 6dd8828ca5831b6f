"""Base of the neuron layers that can go on from the state in which their last call ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from exodus_core import arguments
from exodus_core.errors import ArgumentError
from exodus_core.nn.neuron import Neuron, copied
from exodus_core.ops import compute_dtype
from exodus_core.pieces import carried
from exodus_core.pieces.carried import State
from exodus_core.pieces.continuation import INSTEAD, kept
from exodus_core.recomputation import refuse_recomputation

T = TypeVar("T")


class StatefulNeuron(Neuron):
    """A neuron that can continue from the state of the last call.

    A subclass has `_from_rest` and `_continued`, calls `_computed` in its forward pass, and sets `state_names` if its
    state is not a membrane and spikes. `Recurrent` feeds the first result of `_continued` back, if "spikes" is one of
    the names.

    Attributes:
        state: the tensors named by state_names after the last step, copies, if stateful; None at rest. Each has the
            shape of the input without time; float32, or float64 if the input was.
        state_names: what the tensors of a state are.
    """

    shown: ClassVar[Mapping[str, Any]] = {"stateful": False, **Neuron.shown}
    one_step = "pass x.unsqueeze(1) for one step, to a layer with stateful=True if it is to go on from the last one"
    #: False for layers whose first result is no spikes.
    fires: ClassVar[bool] = True
    state: State | None
    state_names: tuple[str, ...] = ("membrane", "spikes")

    def __init__(
        self, trainable: Collection[str], time_dim: int, stateful: bool, **parameters: float | Tensor | None
    ) -> None:
        super().__init__(trainable, time_dim, **parameters)
        self.stateful = stateful
        self.state = None

    def named_state(self) -> dict[str, Tensor]:
        """The state by the names of its tensors; empty at rest."""
        return {} if self.state is None else dict(zip(self.state_names, self.state, strict=True))

    def reset_state(self) -> None:
        """Drops the state of the last call: the next one starts from rest."""
        self.state = None

    def detach_state(self) -> None:
        """Keeps the state and cuts its gradient: truncated backpropagation through time."""
        if self.state is not None:
            self.state = tuple(part.detach() for part in self.state)

    def __getstate__(self) -> dict[str, Any]:
        state = None if self.state is None else tuple(copied(part) for part in self.state)
        return super().__getstate__() | {"state": state}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Conversion by .to() and its like: the state follows to other devices, and is never rounded to a half type."""
        super()._apply(fn, recurse)
        if self.state is not None:
            self.state = tuple(_moved(part, fn) for part in self.state)
        return self

    def _from_rest(self, x: Tensor) -> tuple[Tensor, ...]:
        """The results for x from rest."""
        raise NotImplementedError

    def _continued(self, x: Tensor, state: State | None, time_dim: int) -> tuple[tuple[Tensor, ...], State | None]:
        """The results for x from a state on, and the state after it, as the go_on of `_carried`."""
        raise NotImplementedError

    def _computed(self, x: Tensor) -> tuple[Tensor, ...]:
        """The results for x: from the last state on if stateful or in a piece of a sequence, else from rest."""
        self._check_steps(x)
        if not self._carries():
            return self._from_rest(x)
        return self._carried(x, lambda state, time_dim: self._continued(x, state, time_dim))

    def _carries(self) -> bool:
        """True if a call must start from a state and leave one: stateful, or in a piece of a sequence."""
        return self.stateful or carried.current() is not None

    def _carried(self, x: Tensor, go_on: Callable[[State | None, int], tuple[T, State | None]]) -> T:
        """The result of go_on, from the state before x on.

        Args:
            x: the input, a signal.
            go_on: takes that state, None at rest, and the axis of time counted from the front; returns its result and
                the state after the last step, copies, in the order of state_names, or the same one if there is no step.
        """
        time_dim = arguments.check_signal("x", x, self.time_dim)
        piece = carried.current()
        if piece is not None:
            return piece.carry(
                self, x.shape[time_dim], lambda state: go_on(self._fitting(state, x, time_dim), time_dim)
            )
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "a stateful layer must not be called within a transform of torch.func, which its state would outlive; "
                f"use one that is not stateful, or {INSTEAD}"
            )
        refuse_recomputation("a stateful layer", INSTEAD)
        result, self.state = go_on(self._fitting(self.state, x, time_dim), time_dim)
        return result

    def _fitting(self, state: State | None, x: Tensor, time_dim: int) -> State | None:
        """A state that x can go on from, checked."""
        if state is None:
            return None
        if len(state) != len(self.state_names):
            raise RuntimeError(
                f"the kept state must be {', '.join(self.state_names)}, got {len(state)} tensors: the layer's settings "
                "were changed; call reset_state()"
            )
        membrane = state[0]
        if membrane.shape != x.shape[:time_dim] + x.shape[time_dim + 1 :]:
            raise ArgumentError(
                "x",
                f"of the shape of the kept state, {tuple(membrane.shape)}, and time",
                tuple(x.shape),
                "call reset_state() before a batch of another shape",
            )
        if membrane.device != x.device:
            raise ArgumentError(
                "x",
                f"on the device of the kept state, {membrane.device}",
                x.device,
                "move the layer, or call reset_state()",
            )
        # Autograd can keep a copy of what was made in inference mode; torch.compile cannot ask, and fuses the copy.
        if torch.compiler.is_compiling() or membrane.is_inference():
            return tuple(kept(part) for part in state)
        return state


def _moved(part: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """A part of the state after a conversion of the layer; float32 if the layer is converted to a half type."""
    moved = fn(part)
    return moved if moved.dtype == compute_dtype(moved.dtype) else part.to(moved.device)
