"""Recordings of a network's passes: outputs, spikes and membranes of its layers, and numbers about them.

An observer is told of values while a pass computes them, on the thread that runs it. A pass that nobody observes does
nothing for it, and one that is observed has the same bits.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exodus_core.errors import ArgumentError, DescriptionError
from exodus_core.network.description import Description
from exodus_core.network.layers import Layer, Shape
from exodus_core.network.statistics import Counter, LayerStatistics, counter_bytes, with_gradient_norms
from exodus_core.schema import Place
from exodus_core.sparse.spikes import PackedSpikes

#: What can be recorded of a layer: "output" of any, "spikes" of layers that fire, "membrane" of layers of neurons.
OUTPUT, SPIKES, MEMBRANE = TRACES = ("output", "spikes", "membrane")
#: Most entries of a record; so many tensors fit in one message of the service, beside the others.
MAX_RECORDED = 32
# Names of layers in an error.
_SHOWN = 12

_local = threading.local()


class RecordError(DescriptionError):
    """An entry of a record that does not fit the network; see `pointer`, `expected` and `got`."""


@dataclass(frozen=True)
class Recorded:
    """One trace to record: of a layer, and which; its name is "LAYER.TRACE"."""

    layer: str
    trace: str
    shape: Shape

    @property
    def name(self) -> str:
        """As it is asked for, and found in the recordings."""
        return f"{self.layer}.{self.trace}"


def _traces(layer: Layer) -> tuple[str, ...]:
    return (OUTPUT, *([SPIKES] if layer.fires else []), *([MEMBRANE] if layer.has_membrane else []))


def parse_record(record: Sequence[str], description: Description) -> tuple[Recorded, ...]:
    """Checks what is to be recorded of a network.

    Args:
        record: names such as "hidden.spikes": of a layer, and output, spikes or membrane.

    Raises:
        RecordError: an entry is no such name, there is no such layer, it has no such trace, or a name comes twice.
    """
    place = Place("/record", RecordError)
    if not isinstance(record, list | tuple):
        raise place.refuse("a list of names LAYER.TRACE", record)
    if len(record) > MAX_RECORDED:
        raise place.refuse_as(f"a list of at most {MAX_RECORDED} names", f"one of {len(record)}")
    layers = {layer.name: (layer, shape) for layer, shape in zip(description.layers, description.shapes, strict=True)}
    found: list[Recorded] = []
    for i, name in enumerate(record):
        here = place.at(i)
        if not isinstance(name, str) or name.count(".") != 1:
            raise here.refuse(f"LAYER.TRACE, a trace being one of {', '.join(TRACES)}", name)
        of, trace = name.split(".")
        if of not in layers:
            known = ", ".join(list(layers)[:_SHOWN]) + (", ..." if len(layers) > _SHOWN else "")
            raise here.refuse(f"of a layer of the network ({known})", name)
        layer, shape = layers[of]
        if trace not in _traces(layer):
            raise here.refuse(f"one of {', '.join(_traces(layer))} of layer {of}, of kind {layer.kind}", name)
        if name in record[:i]:
            raise here.refuse("a name that comes once", name)
        found.append(Recorded(of, trace, shape))
    return tuple(found)


def recorded_bytes(record: Sequence[Recorded], description: Description, batch: int, time: int) -> int:
    """Bytes of the recordings of a pass."""
    return batch * time * sum(math.prod(recorded.shape) for recorded in record) * description.itemsize


# Traces, and bytes of the objects of a step, that are made for the membrane of recurrent neurons, which is computed
# from their spikes.
_RECURRENT_COPIES, _RECURRENT_STEP_BYTES = 6, 3 * 1024


def observed_bytes(
    record: Sequence[Recorded], statistics: bool, description: Description, batch: int, time: int
) -> int:
    """An upper bound of the bytes that an observed pass takes beside those of `Description.memory`."""
    counted = counter_bytes(description, batch) if statistics else 0
    recurrent = {layer.name for layer in description.layers if getattr(layer, "recurrent", None) is not None}
    again = [r for r in record if r.trace == MEMBRANE and r.layer in recurrent]
    traces = recorded_bytes(record, description, batch, time)
    copies = _RECURRENT_COPIES * recorded_bytes(again, description, batch, time)
    return traces + copies + len(again) * time * _RECURRENT_STEP_BYTES + counted


class Observer:
    """Traces and numbers of an observed network; `observe` makes it.

    Args:
        net: the network.
        record: what to record, checked.
        statistics: count too.
        detach: recordings are without gradients.

    Attributes:
        detach: as given.
    """

    def __init__(self, net: Any, record: tuple[Recorded, ...], statistics: bool, detach: bool) -> None:
        self._net = net
        self._description: Description = net.description
        self._record = record
        self.detach = detach
        self._counter = Counter(self._description) if statistics else None
        self._outputs: dict[str, list[Recorded]] = {}
        #: The membranes to be recorded, by the module whose they are.
        self._membranes: dict[torch.nn.Module, Recorded] = {}
        for recorded in record:
            if recorded.trace == MEMBRANE:
                self._membranes[net._modules[recorded.layer]] = recorded
            else:
                self._outputs.setdefault(recorded.layer, []).append(recorded)
        self._recordings: dict[str, Tensor] | None = None
        self._done: dict[str, int] = {}
        self._active = False
        self._size = (0, 0)
        self._input_memory = 0

    @property
    def recordings(self) -> dict[str, Tensor]:
        """The traces of the last pass by name, shape (batch, time, *layer), in the order of the record.

        Raises:
            RuntimeError: no pass was seen.
        """
        found = self._seen()
        return {recorded.name: found[recorded.name] for recorded in self._record}

    @property
    def statistics(self) -> dict[str, LayerStatistics]:
        """The numbers of the last pass, of the layers that have some; waits for the device.

        Raises:
            RuntimeError: no pass was seen, or statistics were not asked for.
        """
        self._seen()
        if self._counter is None:
            raise RuntimeError("statistics must be True in observe(...) where they are read, got False")
        return self._counter.statistics()

    def statistics_of_step(self, grad_norms: Mapping[str, float]) -> dict[str, LayerStatistics]:
        """`statistics` of a training call, with the norms of gradients that the call returned."""
        return with_gradient_norms(self.statistics, grad_norms, self._description)

    def _seen(self) -> dict[str, Tensor]:
        if self._recordings is None:
            raise RuntimeError(
                "a pass of the network must run within observe(...) on the same thread, got none that could be seen; "
                "one of a compiled network cannot"
            )
        return self._recordings

    @property
    def net(self) -> Any:
        """The network."""
        return self._net

    @property
    def is_passing(self) -> bool:
        """True while a pass of the network runs forward."""
        return self._active

    @contextmanager
    def passing(self, x: Tensor) -> Iterator[None]:
        """A context for a pass over x; what it computes again backward is not seen."""
        self._recordings, self._done = {}, {}
        self._size = (x.shape[0], x.shape[1])
        self._input_memory = x.untyped_storage().data_ptr()
        if self._counter is not None:
            self._counter.begin(*self._size)
        self._active = True
        try:
            yield
        except BaseException:
            self._recordings = None
            raise
        finally:
            self._active = False

    def wants_membrane(self, module: torch.nn.Module) -> bool:
        """True if the membrane of this module of the network is to be recorded."""
        return module in self._membranes

    def see(self, layer: Layer, inputs: Sequence[Tensor | PackedSpikes], output: Tensor | PackedSpikes) -> None:
        """Takes what a layer has computed for some steps: all, or those of a piece of the sequence."""
        if self._counter is not None:
            self._counter.count(layer, inputs, output)
        for recorded in self._outputs.get(layer.name, ()):
            self._keep(recorded, output.unpack(self._net.dtype) if isinstance(output, PackedSpikes) else output)

    def see_membrane(self, module: torch.nn.Module, membrane: Tensor) -> None:
        """Takes the membrane of a module that `wants_membrane` is true of, likewise."""
        self._keep(self._membranes[module], membrane)

    def _keep(self, recorded: Recorded, trace: Tensor) -> None:
        assert self._recordings is not None  # a pass runs
        trace = trace.detach() if self.detach else trace
        batch, time = self._size
        steps = trace.shape[1]
        if steps < time:
            at = self._done.get(recorded.name, 0)
            if at == 0:
                self._recordings[recorded.name] = trace.new_empty((batch, time, *recorded.shape))
            self._recordings[recorded.name].narrow(1, at, steps).copy_(trace)
            self._done[recorded.name] = at + steps
        elif trace.untyped_storage().data_ptr() == self._input_memory:  # a view of what the caller may write to
            self._recordings[recorded.name] = trace.clone()
        else:
            self._recordings[recorded.name] = trace


@contextmanager
def observe(
    net: Any, record: Sequence[str] = (), *, statistics: bool = False, detach: bool = True
) -> Iterator[Observer]:
    """A context in which forward passes of a network are recorded: `net(x)`, and those of its trainer.

    The observer has the recordings of the last pass, also after the context. Gradients, outputs and weights have the
    bits that they have without it. Passes are seen on this thread alone, and not those of `torch.compile`; on a GPU,
    steps within it are not replayed from CUDA graphs. Contexts may be nested.

    Args:
        net: a network of `exodus_core.network.build`.
        record: names such as "hidden.spikes": of a layer, and what of it. "output" is what the layer gives, any layer;
            "spikes" the same of neurons that fire; "membrane" is u, before the reset that its spikes cause, of those
            and of exp_leak.
        statistics: count spikes and synaptic operations too (`LayerStatistics`).
        detach: recordings are without gradients. False: a loss of them reaches back, which a network in pieces of time
            (`checkpoint_steps`) refuses, since it keeps no graph.

    Raises:
        RecordError: an entry does not fit the network.
        ArgumentError: detach is False and the network has `checkpoint_steps`.
    """
    description: Description = net.description
    if not detach and description.checkpoint_steps is not None:
        expected = "True of a network with checkpoint_steps, which keeps no graph of its layers"
        raise ArgumentError("detach", expected, False)
    observer = Observer(net, parse_record(record, description), statistics, detach)
    outer = _observers()
    _local.observers = (*outer, observer)
    try:
        yield observer
    finally:
        _local.observers = outer


def _observers() -> tuple[Observer, ...]:
    # A graph that is being compiled has none.
    found: tuple[Observer, ...] = () if torch.compiler.is_compiling() else getattr(_local, "observers", ())
    return found


def observers_of(net: Any) -> tuple[Observer, ...]:
    """The observers that this thread has of a network."""
    return tuple(observer for observer in _observers() if observer.net is net)


def passing_observers(net: Any) -> tuple[Observer, ...]:
    """Those of `observers_of` that see the pass which runs now; none while it is computed again backward."""
    return tuple(observer for observer in observers_of(net) if observer.is_passing)


def observers_of_membrane(module: torch.nn.Module) -> tuple[Observer, ...]:
    """The observers that want the membrane of a layer of neurons, which runs now."""
    return tuple(observer for observer in _observers() if observer.is_passing and observer.wants_membrane(module))
