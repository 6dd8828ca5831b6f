"""Pure forward passes: their changes are collected apart, and committed when the pass counts.

In training a forward pass updates the running statistics of batch norms and draws dropout masks. Here it does so on
copies, so that a call that fails later has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from exodus_core.network import Network
from exodus_core.network.modules import BatchNorm, Dropout


@dataclass
class Changes:
    """Changes of a forward pass: new values of the buffers, in order, and the generator's state."""

    buffers: list[Tensor] = field(default_factory=list)
    random: Tensor | None = None


@dataclass(eq=False)
class Forward:
    """A forward pass in training, from which the backward pass can run once.

    Attributes:
        outputs: shape (batch, time, *output_shape), a leaf of its own: a loss of it can be differentiated.
        nbytes: bytes that are kept for the backward pass, without the weights.
        weights_version: of the weights that it ran with; it grows with every change of them.
    """

    outputs: Tensor
    nbytes: int
    weights_version: int
    _graph: Tensor | None
    _changes: Changes


class PureForward:
    """Runs a network without changing it; `compiled` is the same network, to be called instead.

    Attributes:
        draws: true if a pass in training draws masks.
    """

    def __init__(self, net: Network, compiled: Callable[[Tensor], Tensor] | None = None) -> None:
        self.net = net
        self._call: Callable[[Tensor], Tensor] = net if compiled is None else compiled
        modules = list(net.modules())
        self._norms = [module for module in modules if isinstance(module, BatchNorm)]
        self.draws = any(isinstance(module, Dropout) and module.p > 0 for module in modules)

    @property
    def buffer_names(self) -> list[str]:
        """Names of the running statistics, in the order of `Changes.buffers`."""
        names = {id(module): name for name, module in self.net.named_modules()}
        return [f"{names[id(norm)]}.{own}" for norm in self._norms for own in norm._buffers]

    @contextmanager
    def _isolated(self, train: bool) -> Iterator[Changes]:
        changes = Changes()
        mode = self.net.training
        if mode != train:
            self.net.train(train)
        kept = [(norm, dict(norm._buffers)) for norm in self._norms] if train else []
        random = self.net.generator.get_state() if train and self.draws else None
        try:
            for norm, buffers in kept:
                # Replaced by other tensors, not restored in place: the graph must not see them change.
                norm._buffers.update({name: b.clone() for name, b in buffers.items() if b is not None})
            yield changes
            changes.buffers = [b for norm, _ in kept for b in norm._buffers.values() if b is not None]
            changes.random = None if random is None else self.net.generator.get_state()
        finally:
            for norm, buffers in kept:
                norm._buffers.update(buffers)
            if random is not None:
                self.net.generator.set_state(random)
            if mode != train:
                self.net.train(mode)

    def evaluate(self, x: Tensor, train: bool) -> Tensor:
        """The outputs, without a graph."""
        with torch.no_grad(), self._isolated(train):
            return self._call(x)

    def run(self, x: Tensor) -> tuple[Tensor, Changes]:
        """The outputs in training with their graph, and what the pass would change."""
        with torch.enable_grad(), self._isolated(True) as changes:
            outputs = self._call(x)
        return outputs, changes

    def run_counted(self, x: Tensor) -> tuple[Tensor, Changes, int]:
        """`run`, and the bytes that the graph keeps, each storage counted once, without those of the weights."""
        weights = {p.untyped_storage().data_ptr() for p in self.net.parameters()}
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # an output kept with its graph would hold itself in memory

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs, changes = self.run(x)
        storage = outputs.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return outputs, changes, sum(sizes.values())

    def commit(self, changes: Changes) -> None:
        """Applies the changes of a pass to the network."""
        if changes.buffers:
            with torch.no_grad():
                for buffer, new in zip(self.buffers(), changes.buffers, strict=True):
                    buffer.copy_(new)
        if changes.random is not None:
            self.net.generator.set_state(changes.random)

    def buffers(self) -> list[Tensor]:
        """The running statistics, in the order of `Changes.buffers`."""
        return [b for norm in self._norms for b in norm._buffers.values() if b is not None]
