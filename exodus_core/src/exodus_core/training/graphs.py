"""CUDA graphs of training steps: what a call computes is captured once, and replayed for further calls like it.

A GPU takes less time for the step of a small network than the host takes to launch its kernels; a replay is one launch.
A graph repeats kernels on the memory that it was captured with, whatever Python would do, so that a call is replayed
only if nothing but numbers can have changed since. Every other call is computed as ever.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from exodus_core import losses
from exodus_core.losses import Loss, WeightedSum
from exodus_core.network import Network
from exodus_core.network.modules import BatchNorm
from exodus_core.network.recording import observers_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: Computes a loss from outputs, targets and the steps that count.
Value = Callable[[Tensor, Tensor | None, Tensor | None], Any]
T_co = TypeVar("T_co", covariant=True)

#: Calls of a kind that are computed as ever before one is captured.
WARM_CALLS = 2
#: Graphs of a network at a time: each keeps the memory of a step. Full batches are one, the rest of an epoch another.
MOST_GRAPHS = 2
#: Calls after which a graph that was not replayed gives its place to another: a capture takes as long as many steps.
IDLE_CALLS = 64
#: Upper bound of the memory of a step that is captured. A step that takes more is not bound by launches.
MOST_BYTES = 2**30
#: Kinds of calls that are remembered.
_MOST_KINDS = 64


class Recording(Protocol[T_co]):
    """A computation that was captured, and can be repeated on the memory that it was captured with.

    Attributes:
        result: what it returned; each replay overwrites its tensors.
        nbytes: of the memory that it keeps.
    """

    @property
    def result(self) -> T_co: ...

    @property
    def nbytes(self) -> int: ...

    def replay(self) -> None:
        """Compute again, on the current stream."""


class _Side:
    """The stream of a device on which everything is captured.

    Libraries keep workspaces of tens of MiB for each stream, which are part of what is captured on it. One stream
    bounds them; graphs that share them take turns, whatever streams they are replayed on.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self._lock = threading.Lock()
        self._last: torch.cuda.Event | None = None

    @contextmanager
    def turn(self, stream: torch.cuda.Stream) -> Iterator[None]:
        """Let a stream use the workspaces, after those that used them before."""
        with self._lock:
            if self._last is not None:
                stream.wait_event(self._last)
            try:
                yield
            finally:
                self._last = stream.record_event()


_side = functools.cache(_Side)


class CudaRecording(Generic[T]):
    """A computation captured in a CUDA graph.

    Raises:
        RuntimeError: it cannot be captured, as it waits for the device, or as memory is short.
    """

    def __init__(self, compute: Callable[[], T], device: torch.device) -> None:
        self._device, self._side = device, _side(device)
        current, side = torch.cuda.current_stream(device), self._side.stream
        # torch.cuda.graph leaves its stream the current one if the capture fails; the blocks around it do not.
        with self._side.turn(side), torch.cuda.device(device), torch.cuda.stream(current):
            side.wait_stream(current)
            with torch.cuda.stream(side):
                compute()  # so that libraries have their workspaces on this stream
            current.wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # By default what other threads do meanwhile would fail, or would spoil the capture.
            with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                self.result = compute()
        pool = tuple(self._graph.pool())
        segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()
        self.nbytes = sum(int(s["total_size"]) for s in segments if tuple(s["segment_pool_id"]) == pool)

    def replay(self) -> None:
        with self._side.turn(torch.cuda.current_stream(self._device)):
            self._graph.replay()


#: How a computation is captured, by the type of device; on others nothing is.
RECORDERS: dict[str, Callable[[Callable[[], Any], torch.device], Recording[Any]]] = {"cuda": CudaRecording}


class Inputs(NamedTuple):
    """The tensors of a call: spikes, targets if the loss takes any, and the steps that count if not all do."""

    x: Tensor
    targets: Tensor | None = None
    steps: Tensor | None = None


@dataclass
class _Graph:
    """A recording, its inputs, the memory of the network, and the number of the call that last replayed it.

    The memory is kept so that no other has its addresses.
    """

    inputs: Inputs
    recording: Recording[Any]
    memory: list[Tensor]
    last: int = 0

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.inputs if t is not None) + self.recording.nbytes


class Graphs:
    """The graphs of one network, at most MOST_GRAPHS.

    Replayed are calls of a loss of `exodus_core.losses`, with dense contiguous tensors on the CPU or the network's
    device, from the third of a kind on: of the same shapes, dtypes and loss, and of the same settings of torch that
    choose kernels. Not replayed are networks with dropout, whose masks come from a generator; calls under autocast,
    anomaly detection or a dispatch mode, and with hooks, which run Python; and steps of more than MOST_BYTES. Graphs
    are dropped when a parameter or buffer has other memory than before; changes in place leave them valid.

    Args:
        net: the network.
        draws: true if its passes draw masks.
    """

    def __init__(self, net: Network, draws: bool) -> None:
        self._net = net
        self._draws = draws
        self._modules = list(net.modules())
        self._first = next(net.parameters())  # tells the device in a tenth of the time
        self._forget()

    def _forget(self) -> None:
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._warm: dict[Hashable, int] = {}
        self._eager: set[Hashable] = set()
        self._calls = 0
        self._addresses: list[tuple[int, bool]] = []
        self.nbytes = 0

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles capture anew."""
        return {name: self.__dict__[name] for name in ("_net", "_draws", "_modules", "_first")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def run(
        self,
        compute: Callable[[Inputs, Value], T],
        inputs: Inputs,
        loss: object,
        value: Value,
        *,
        variant: Hashable,
        large: bool,
    ) -> tuple[T, bool]:
        """The result of `compute`, and true if the next call may overwrite its tensors, since they are a graph's.

        Args:
            compute: takes inputs and how the loss is computed; must change nothing, and wait for no device.
            inputs: of this call.
            loss: of this call.
            value: computes it outside of graphs, and checks the elements of targets.
            variant: all else that decides what `compute` computes.
            large: capture steps of more than MOST_BYTES too.

        Raises:
            What `compute` raises.
        """
        key = self._kind(inputs, loss, variant, large)
        if key is None:
            return compute(inputs, value), False
        assert isinstance(loss, Loss)
        self._calls += 1
        graph = self._graphs.get(key)
        if graph is None and self._is_due(key, inputs.x, large):
            graph = self._capture(key, compute, inputs, loss)
        elif graph is not None:
            loss.check_values(inputs.targets, self._outputs_shape(inputs.x), inputs.steps)
            for mine, given in zip(graph.inputs, inputs, strict=True):
                if mine is not None and given is not None:
                    mine.copy_(given.detach(), non_blocking=True)
        if graph is None:
            result = compute(inputs, value)
            self._warm[key] = self._warm.get(key, 0) + 1
            return result, False
        graph.recording.replay()
        graph.last = self._calls
        self._graphs.move_to_end(key)
        return graph.recording.result, True

    def _kind(self, inputs: Inputs, loss: object, variant: Hashable, large: bool) -> Hashable | None:
        """All that decides what a call computes, but for numbers; None for one that cannot be replayed."""
        device = self._first.device
        # A pass in pieces reads its input, which waits for the device, and is not bound by launches.
        if device.type not in RECORDERS or self._draws or self._net.description.checkpoint_steps is not None:
            if self._graphs:  # of the device that the network was on
                self._forget()
            return None
        addresses = [(t.data_ptr(), t.requires_grad) for t in self._tensors()]
        if addresses != self._addresses:
            self._forget()
            self._addresses = addresses
        if not _is_ours(loss) or self._runs_python():
            return None
        if not all(given is None or _is_plain(given, device) for given in inputs):
            return None
        modes = tuple(module.training for module in self._modules if isinstance(module, BatchNorm))
        kinds = tuple(None if given is None else (given.shape, given.dtype) for given in inputs)
        return kinds, loss, variant, large, modes, _switches()

    def _runs_python(self) -> bool:
        """True if a pass runs more than the network's own code."""
        return bool(
            torch.is_autocast_enabled(self._first.device.type)
            or torch.is_anomaly_enabled()
            or observers_of(self._net)
            or torch._C._len_torch_dispatch_stack()
            or _has_any_global_hook()
            or any(
                m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
                for m in self._modules
            )
            or any(p._backward_hooks for m in self._modules for p in m._parameters.values() if p is not None)
        )

    def _tensors(self) -> list[Tensor]:
        """Parameters and buffers, wherever they are now."""
        return [t for m in self._modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]

    def _is_due(self, key: Hashable, x: Tensor, large: bool) -> bool:
        """True if the call is to be captured; then there is room for its graph."""
        if len(self._warm) > _MOST_KINDS:
            self._warm.clear()
            self._eager.clear()
        if self._warm.get(key, 0) < WARM_CALLS or key in self._eager:
            return False
        if not large and self._net.description.memory(*x.shape[:2], training=True) > MOST_BYTES:
            self._eager.add(key)
            return False
        if len(self._graphs) == MOST_GRAPHS:
            oldest, graph = next(iter(self._graphs.items()))
            if self._calls - graph.last < IDLE_CALLS:
                return False
            del self._graphs[oldest]
            self._count()
        return True

    def _capture(
        self, key: Hashable, compute: Callable[[Inputs, Value], T], inputs: Inputs, loss: Loss
    ) -> _Graph | None:
        """A new graph with the inputs of this call; None if it cannot be made. Raises LossError."""
        loss.check_values(inputs.targets, self._outputs_shape(inputs.x), inputs.steps)
        device = self._first.device
        try:
            mine = Inputs(*(None if t is None else t.detach().to(device, copy=True) for t in inputs))  # type: ignore[arg-type]
            recording = RECORDERS[device.type](lambda: compute(mine, loss.of_checked), device)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            logger.warning("steps of shape %s are not replayed from a CUDA graph: %s", tuple(inputs.x.shape), reason)
            self._eager.add(key)
            return None
        graph = self._graphs[key] = _Graph(mine, recording, [t.detach() for t in self._tensors()])
        self._count()
        return graph

    def _outputs_shape(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[:2], *self._net.description.output_shape)

    def _count(self) -> None:
        # A number, as other threads may ask for it.
        self.nbytes = sum(graph.nbytes for graph in self._graphs.values())


def _is_ours(loss: object) -> bool:
    """True for a loss of `exodus_core.losses` that a graph can compute."""
    if not isinstance(loss, Loss):
        return False
    terms = [term.loss for term in loss.terms] if type(loss) is WeightedSum else [loss]
    return all(type(term) in losses.KINDS.values() and term.waits_for_no_device for term in terms)


def _is_plain(tensor: Tensor, device: torch.device) -> bool:
    """True for a tensor that a graph's input can be filled from, and that has its layout."""
    return (
        type(tensor) is Tensor
        and tensor.device in (device, torch.device("cpu"))
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and tensor.is_contiguous()
    )


def _switches() -> tuple[object, ...]:
    """Settings of torch that choose among kernels."""
    backends: Any = torch.backends
    return (
        torch.are_deterministic_algorithms_enabled(),
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.enabled,
        backends.cudnn.benchmark,
        backends.cudnn.deterministic,
    )
