"""Checkpoints in time: a module runs over a long sequence in pieces, and computes each again in the backward pass.

Kept from the forward to the backward pass are the input, as bits if it is zeros and ones, and the states of the neurons
at the borders of the pieces; all between them exists for one piece at a time. Backward, pieces are computed again from
the last to the first, and each hands the gradient of its initial states to the one before: backpropagation through the
whole sequence, not truncated. Gradients of parameters are summed in this order, in float32 or wider.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.utils import _pytree as pytree

from exodus_core import arguments
from exodus_core.autograd import is_differentiated
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.once_differentiable import once_differentiable
from exodus_core.pieces import carried
from exodus_core.pieces.carried import Call, Piece, State, States
from exodus_core.pieces.continuation import INSTEAD
from exodus_core.pieces.surroundings import Surroundings
from exodus_core.recomputation import refuse_recomputation
from exodus_core.sparse import packing

Shared = dict[torch.nn.Module, Tensor]
#: Of how many tensors the states of calls are.
Sizes = dict[Call, int]


class TimeCheckpoint(torch.nn.Module):
    """A module that runs over a long sequence in pieces of `steps` steps, to take less memory in training.

    Between the forward and the backward pass it keeps the input, as bits if that is all zeros and ones, and the states
    of the neurons at the borders of the pieces. The backward pass computes each piece again, from the last to the
    first. Outputs and states after the call are those of the module without it, and gradients are those of the whole
    sequence, up to the rounding of sums: that of a parameter is summed over the pieces in this order, in float32 or
    wider. Float16 and bfloat16 neurons are computed in float32, as with stateful=True.

    Args:
        module: takes a sequence and returns one with as many steps. Its LIF, IF, ExpLeak and delay layers, of
            `exodus_core.nn` or of a network as data, stateful or not, carry their states from piece to piece; all else
            in it must compute each step from that step alone. A layer may be in it, or be called, several times.
        steps: of a piece. Memory is that of one piece, and of the states at the borders: about the square root of the
            number of all steps needs least.
        time_dim: axis of time of the input and of the output.

    `torch.nn.Dropout` draws a mask for every piece, the same when the piece is computed again. Hooks of modules in it
    are called for every piece, and again in the backward pass; those of parameters once. Without gradients it runs in
    pieces and keeps nothing. `torch.compile` leaves it out of graphs, and refuses it with fullgraph=True.

    Raises:
        ArgumentTypeError, ArgumentError: an argument is invalid; in the call: the module has a layer that cannot run in
            pieces (SRM, torch.nn.RNN and its like, batch norm in training, a compiled module), or one whose axis of
            time is another.
        RuntimeError: in the call: `exodus_core.lif`, `srm` or `filter` are called by the module itself; a stateful
            layer is called twice, or by a backward pass; the module changes its buffers, as a batch norm does; it is in
            another time checkpoint. In the backward pass: a tensor that it needs was changed in place; the module uses
            one that requires a gradient and is neither parameter nor buffer; a second derivative is asked for.
    """

    def __init__(self, module: torch.nn.Module, steps: int, *, time_dim: int = 1) -> None:
        super().__init__()
        if not isinstance(module, torch.nn.Module):
            raise ArgumentTypeError("module", "a torch.nn.Module", type(module).__name__)
        self.steps = arguments.integer("steps", steps)
        if self.steps < 1:
            raise ArgumentError("steps", "at least 1", steps)
        self.time_dim = arguments.integer("time_dim", time_dim)
        self.module = module

    def extra_repr(self) -> str:
        """The arguments, for repr()."""
        return f"steps={self.steps}, time_dim={self.time_dim}"

    def forward(self, x: Tensor) -> Tensor:
        """The module's output for x, a tensor of any dtype whose axis time_dim is time."""
        return in_pieces(self.module, self.module, x, steps=self.steps, time_dim=self.time_dim)


@_disable_dynamo
def in_pieces(
    module: torch.nn.Module, call: Callable[[Tensor], Tensor], x: Tensor, *, steps: int, time_dim: int
) -> Tensor:
    """The result of `call`, a method of a module, for a sequence in pieces; see `TimeCheckpoint`."""
    if not isinstance(x, Tensor):
        raise ArgumentTypeError("x", "a torch.Tensor", type(x).__name__)
    arguments.check_dense("x", x)
    if not -x.dim() <= time_dim < x.dim():
        raise ArgumentError("time_dim", f"an axis of x with shape {tuple(x.shape)}", time_dim)
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "a time checkpoint must not be within a transform of torch.func, which keeps what it would compute again; "
            "call its module instead"
        )
    if carried.current() is not None:
        raise RuntimeError("a time checkpoint must not be within another one; the outer one does the work of both")
    _check_parts(module)
    run = _Run(module, call, x, steps, time_dim)
    if run.stateful:
        refuse_recomputation("a stateful layer", INSTEAD)
    if not run.parts:
        return call(x)
    before: States = {(layer, 0): _savable(layer.state) for layer in run.stateful if layer.state is not None}
    tensors = [*run.surroundings.tensors, *_flat(before)]
    if len(run.parts) == 1:
        y, piece = run.piece(x, before, {})
        after = piece.after
    elif is_differentiated(x, *tensors):
        y, *left = _Pieces.apply(run, _sizes(before), x, *tensors)  # type: ignore[no-untyped-call]
        after = _states(run.left, left)
    else:
        y, after, _ = run.forward(x, before)
    for layer in run.stateful:
        if (layer, 0) in after:
            layer.state = after[layer, 0]
    return y


def _whole(part: torch.nn.Module) -> str | None:
    """Why a part of a module cannot run in pieces, or None."""
    own: str | None = getattr(part, "not_in_pieces", None)
    if own is not None:
        return own
    if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and (part.training or part.running_mean is None):
        return carried.STATISTICS_IN_PIECES
    if isinstance(part, torch.nn.RNNBase):
        return "it starts from a state that nothing carries to the next piece"
    if hasattr(part, "_orig_mod") or part._compiled_call_impl is not None:
        return "a compiled graph takes no state from the piece before"
    return None


def _check_parts(module: torch.nn.Module) -> None:
    for name, part in module.named_modules():
        reason = _whole(part)
        if reason is not None:
            got = f"{type(part).__name__} {name!r}" if name else type(part).__name__
            raise ArgumentError("module", "made of layers that can run in pieces of a sequence", got, reason)


def _savable(state: State) -> State:
    """A state that autograd can save: a copy of one that was made in inference mode."""
    return tuple(part.clone() if part.is_inference() else part for part in state)


def _flat(states: States) -> list[Tensor]:
    return [tensor for state in states.values() for tensor in state]


def _sizes(states: States) -> Sizes:
    return {call: len(state) for call, state in states.items()}


def _states(sizes: Sizes, flat: Iterable[Any]) -> dict[Call, tuple[Any, ...]]:
    """The opposite of `_flat`, given the `_sizes`."""
    left = iter(flat)
    return {call: tuple(itertools.islice(left, size)) for call, size in sizes.items()}


class _Kept(NamedTuple):
    """Results of the forward pass for the backward pass; states are flat, since objects around them would take more.

    Attributes:
        bits: the input of each piece; None if it is not zeros and ones.
        first: the states before the first piece.
        borders: those before the others, one after the other.
        shared: as of `Piece`.
        random: the states of random numbers before the pieces that draw some, by number.
    """

    bits: list[Tensor] | None
    first: list[Tensor]
    borders: list[Tensor]
    shared: Shared
    random: dict[int, list[Tensor]]


class _Run:
    """A module's pass over a sequence in pieces.

    Args:
        module: what `call` depends on.
        call: computes a piece.
        x: the sequence; its values are not kept here.
        steps: of a piece.
        time_dim: axis of time of x and of the outputs, which may have other dimensions.

    Attributes:
        parts: first step and number of steps of each piece.
        stateful: layers that keep their state after the call.
        first, calls: of which calls of layers there is a state before the first piece, and before the others, and of
            how many tensors.
        left: those of which `_Pieces` returns the last states beside the outputs.
    """

    def __init__(
        self, module: torch.nn.Module, call: Callable[[Tensor], Tensor], x: Tensor, steps: int, time_dim: int
    ) -> None:
        self._call, self._time_dim = call, time_dim
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        time = x.shape[time_dim]
        self.parts = [(start, min(steps, time - start)) for start in range(0, time, steps)]
        self.stateful: list[Any] = [part for part in module.modules() if getattr(part, "stateful", False)]
        self.surroundings = Surroundings(module, x)
        self.first: Sizes = {}
        self.calls: Sizes = {}
        self.left: Sizes = {}

    def view(self, x: Tensor, i: int) -> Tensor:
        """Piece i of a sequence."""
        return x.narrow(self._time_dim, *self.parts[i])

    def cut(self, x: Tensor, i: int) -> Tensor:
        """A copy of piece i: modules may change their input in place."""
        return self.view(x, i).clone(memory_format=torch.contiguous_format)

    def unpacked(self, bits: Tensor, i: int) -> Tensor:
        """Piece i from its bits."""
        shape = list(self.shape)
        shape[self._time_dim] = self.parts[i][1]
        return packing.unpack(bits, shape[-1], self.dtype)

    def piece(self, x: Tensor, before: States, shared: Shared) -> tuple[Tensor, Piece]:
        """The output of a piece, and the piece with the states after it."""
        steps = x.shape[self._time_dim]
        piece = Piece(steps, before, shared)
        with piece.computing():
            y = self._call(x)
        if not isinstance(y, Tensor):
            raise ArgumentTypeError("module", "one that returns a tensor", f"one that returns {type(y).__name__}")
        if not -y.dim() <= self._time_dim < y.dim() or y.shape[self._time_dim] != steps:
            expected = f"one whose output has the {steps} steps of its input on axis {self._time_dim}"
            raise ArgumentError("module", expected, f"one with an output of shape {tuple(y.shape)}")
        return y, piece

    def forward(self, x: Tensor, before: States, keep: bool = False) -> tuple[Tensor, States, _Kept]:
        """The outputs, the last states, and what a backward pass needs, if that is to be kept."""
        kept = _Kept([] if keep else None, _flat(before), [], {}, {})
        bits = kept.bits
        self.first = _sizes(before)
        y: Tensor | None = None
        for i in range(len(self.parts)):
            part = self.cut(x, i)
            if bits is not None:
                packed = packing.pack_if_binary(part)
                if packed is None:
                    bits = None
                else:
                    bits.append(packed)
            random = self.surroundings.random_states() if keep else []
            found, piece = self.piece(part, before, kept.shared)
            if keep:
                kept.borders.extend(_flat(before) if i > 0 else ())
                if self.surroundings.have_drawn(random):
                    kept.random[i] = random
            before = piece.after
            if i == 0:
                self.calls = _sizes(before)
            elif list(before) != list(self.calls):
                raise RuntimeError("a module with a time checkpoint must call the same layers in every piece")
            if y is None:
                shape = list(found.shape)
                shape[self._time_dim] = self.shape[self._time_dim]
                y = found.new_empty(shape)
            self.view(y, i).copy_(found)
        changed = self.surroundings.changed()
        if changed is not None:
            raise RuntimeError(
                f"a module with a time checkpoint must leave its parameters and buffers as they are, got one that "
                f"changes {changed}: every piece would"
            )
        assert y is not None  # there is a piece
        return y, before, kept._replace(bits=bits)

    def backward(
        self,
        i: int,
        x: Tensor,
        kept: _Kept,
        leaves: Sequence[Tensor],
        grad_y: Tensor | None,
        grads_after: Mapping[Call, Sequence[Tensor | None]],
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
        """The gradients of piece i: of its input x, of the states before it, flat, and of `leaves`.

        Args:
            x, leaves: the input, and what the module's parameters and buffers are to be, without a graph.
            kept: of the forward pass.
            grad_y, grads_after: the gradients of the piece's output and of the states after it.
        """
        count = sum(self.calls.values())
        border = kept.borders[(i - 1) * count : i * count] if i > 0 else kept.first
        # The first states have the gradients that were asked for, the others whatever they may hand on.
        before = [_leaf(tensor, i > 0 or tensor.requires_grad) for tensor in border]
        if i in kept.random:
            self.surroundings.set_random_states(kept.random[i])
        with torch.enable_grad(), self.surroundings.with_tensors(leaves), self.surroundings.again():
            y, piece = self.piece(x, _states(self.calls if i > 0 else self.first, before), kept.shared)
        outputs = [(y, grad_y)]
        for call, state in piece.after.items():
            outputs += zip(state, grads_after.get(call, ()), strict=False)
        inputs = [x, *before, *leaves]
        if i == len(self.parts) - 1:
            _check_sources([tensor for tensor, _ in outputs], inputs)
        with piece.computing():
            piece.end()
            grad_x, *others = _gradients(outputs, inputs)
        return grad_x, others[: len(before)], others[len(before) :]


class _Pieces(torch.autograd.Function):
    """The outputs of a run, and the last states of its stateful layers.

    Of the sequence, of the parameters and buffers (`Surroundings.tensors`), and of the initial states, of `sizes`.
    """

    @staticmethod
    def forward(ctx: Any, run: _Run, sizes: Sizes, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        owned = len(run.surroundings.tensors)
        y, after, kept = run.forward(x, _states(sizes, tensors[owned:]), keep=True)
        left = {call: state for call, state in after.items() if call[0] in run.stateful}
        run.left = _sizes(left)
        saved = (tensors[:owned], x if kept.bits is None else None, kept)
        flat, ctx.structure = pytree.tree_flatten(saved)
        ctx.save_for_backward(*flat)
        ctx.run = run
        ctx.set_materialize_grads(False)
        return y, *_flat(left)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, *grads_left: Tensor | None) -> tuple[Tensor | None, ...]:
        run: _Run = ctx.run
        owned, x, kept = pytree.tree_unflatten(ctx.saved_tensors, ctx.structure)
        _, _, wants_x, *wanted = ctx.needs_input_grad
        leaves = [_leaf(tensor, wants) for tensor, wants in zip(owned, wanted, strict=False)]
        sums = _Sums(leaves)
        grad_x = torch.empty(run.shape, dtype=run.dtype, device=run.device) if wants_x else None
        after = _states(run.left, grads_left)
        with torch.random.fork_rng(run.surroundings.generators, enabled=bool(kept.random)):
            for i in reversed(range(len(run.parts))):
                part = _leaf(run.cut(x, i) if kept.bits is None else run.unpacked(kept.bits[i], i), wants_x)
                grad_part = None if grad_y is None else run.view(grad_y, i)
                grad_part, before, of_leaves = run.backward(i, part, kept, leaves, grad_part, after)
                if grad_x is not None:
                    view = run.view(grad_x, i)
                    view.zero_() if grad_part is None else view.copy_(grad_part)
                sums.add(of_leaves)
                after = _states(run.calls, before) if i > 0 else {}
        return None, None, grad_x, *sums.totals(), *before


def _leaf(tensor: Tensor, requires_grad: bool) -> Tensor:
    return tensor.detach().requires_grad_(requires_grad)


def _gradients(outputs: Iterable[tuple[Tensor, Tensor | None]], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of inputs, None of those that have none, given those of outputs."""
    given = [(tensor, grad) for tensor, grad in outputs if grad is not None and tensor.requires_grad]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not given or not wanted:
        return [None] * len(inputs)
    tensors, grads = zip(*given, strict=True)
    found = iter(torch.autograd.grad(tensors, wanted, grads, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


class _Sums:
    """Sums of the gradients of tensors, in the order that they come, in float32 or wider."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._totals: list[Tensor | None] = [None] * len(tensors)

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        for i, gradient in enumerate(gradients):
            total = self._totals[i]
            if gradient is not None and total is None:
                self._totals[i] = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
            elif gradient is not None and total is not None:
                total += gradient

    def totals(self) -> list[Tensor | None]:
        """The sums, in the dtypes of the tensors."""
        pairs = zip(self._totals, self._tensors, strict=True)
        return [None if total is None else total.to(tensor.dtype) for total, tensor in pairs]


def _check_sources(outputs: Sequence[Tensor], known: Sequence[Tensor]) -> None:
    """Raises RuntimeError if outputs depend on a leaf that is not known: its gradient would be lost."""
    leaves = {id(tensor) for tensor in known}
    nodes = {tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None}
    left = list(nodes)
    while left:
        for node, _ in left.pop().next_functions:
            if node is None or node in nodes:
                continue
            nodes.add(node)
            left.append(node)
            leaf = getattr(node, "variable", None) if node.name().endswith("AccumulateGrad") else None
            if leaf is not None and id(leaf) not in leaves:
                raise RuntimeError(
                    "a module with a time checkpoint must have the tensors that require a gradient as parameters or "
                    f"buffers, got one that uses another, of shape {tuple(leaf.shape)}"
                )
