"""Recordings and statistics of layers that a call on a model asks for, and what its answer brings of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from exodus_client._checks import flag, unfit
from exodus_client._errors import InvalidResponseError
from exodus_client._gradients.result import Kind, Wanted, read_numbers
from exodus_client._models.batch_axes import as_given
from exodus_client.neuron import Array
from exodus_client.wire import is_torch


@dataclass(frozen=True)
class LayerStatistics:
    """Numbers about one layer in one pass; None where the layer has no such number.

    Attributes:
        firing_rate: spikes for each neuron and step, of layers that fire.
        silent: share of the neurons that fire at no step of no sample, of layers that fire.
        synaptic_operations: elements of the input that are not 0, times the outputs that each reaches. Of linear and
            convolution layers, and of recurrent connections.
        dense_operations: the same if no element of the input were 0.
        grad_norm: L2 norm of the gradient of all parameters of the layer together, of training calls.
    """

    firing_rate: float | None = None
    silent: float | None = None
    synaptic_operations: int | None = None
    dense_operations: int | None = None
    grad_norm: float | None = None


_COUNTS = ("synaptic_operations", "dense_operations")
_NAMES = tuple(field.name for field in fields(LayerStatistics))

Statistics = Mapping[str, LayerStatistics]


@dataclass(frozen=True)
class Observed:
    """Recordings and statistics that a call asks for.

    Attributes:
        record: names LAYER.TRACE.
        statistics: numbers of all layers.
        time_dim: axis of time of the recordings where the caller sees them.
    """

    record: tuple[str, ...] = ()
    statistics: bool = False
    time_dim: int = 1

    @classmethod
    def of(cls, record: Sequence[str], statistics: bool, time_dim: int) -> Observed:
        """Raises TypeError: the record is no list of names, or `statistics` no bool."""
        if not isinstance(record, list | tuple) or not all(isinstance(name, str) for name in record):
            expected = "a list of names of layers and traces, such as ['hidden.spikes', 'hidden.membrane']"
            raise unfit(TypeError, "record", expected, f"{record!r:.80}")
        return cls(tuple(record), flag("statistics", statistics), time_dim)

    def params(self) -> dict[str, Any]:
        """The parameters of the call, without those that are not given: servers from before they were there take it."""
        record: dict[str, Any] = {"record": list(self.record)} if self.record else {}
        return record | ({"statistics": True} if self.statistics else {})

    def wanted(self, shape: Sequence[int], dtype: str) -> dict[str, Wanted]:
        """Dtype and shape of the recordings, for an input (batch, time, ...); spikes may be bool."""
        dtypes = {True: (dtype, "bool"), False: (dtype,)}
        return {name: Wanted(dtypes[name.endswith(".spikes")], (*shape[:2], ...)) for name in self.record}

    def recordings(self, arrays: Mapping[str, Array], dtype: str) -> dict[str, Array]:
        """The recordings among the arrays of an answer, of the dtype of the network."""
        return {name: as_given(_of_dtype(arrays[name], dtype), self.time_dim) for name in self.record}

    def read_statistics(self, params: Mapping[str, Any], request_id: str) -> dict[str, LayerStatistics] | None:
        """The statistics in the parameters of an answer; None if they were not asked for.

        Raises:
            InvalidResponseError: they are not there, or are something else.
        """
        if not self.statistics:
            return None
        given: Any = params.get("statistics")
        members = given.items() if isinstance(given, dict) else [("", None)]
        found = {name: _read(numbers) for name, numbers in members}
        read = {name: numbers for name, numbers in found.items() if numbers is not None}
        if len(read) < len(found):
            raise InvalidResponseError(f"the answer lacks statistics: got {given!r:.200}", request_id=request_id)
        return read


def _read(given: Any) -> LayerStatistics | None:
    """The numbers of one layer; those of unknown names are passed over. None if they are something else."""
    numbers = read_numbers(given)
    if numbers is None or any(type(given.get(count, 0)) is not int for count in _COUNTS):
        return None
    known: dict[str, Any] = {name: given[name] if name in _COUNTS else value for name, value in numbers.items()}
    return LayerStatistics(**{name: value for name, value in known.items() if name in _NAMES})


def _of_dtype(array: Any, dtype: str) -> Array:
    if not is_torch(array):
        return array.astype(dtype, copy=False)
    import torch

    return array.to(getattr(torch, dtype))


NOTHING = Observed()


def joined(forward: Statistics | None, backward: Statistics | None) -> dict[str, LayerStatistics] | None:
    """Statistics of a forward pass with the norms of gradients that another call brought; None if there are none."""
    if forward is None or backward is None:
        return None
    names = dict.fromkeys([*forward, *backward])
    none = LayerStatistics()
    return {name: replace(forward.get(name, none), grad_norm=backward.get(name, none).grad_norm) for name in names}


def of_kind(kind: Kind, array: Any) -> Array:
    """A torch tensor on the CPU as an array of a kind."""
    return array.numpy() if kind.device is None else array.to(kind.device)
