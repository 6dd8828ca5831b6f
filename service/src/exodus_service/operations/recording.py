"""Recordings and statistics of calls on models: asked for by parameters, checked before the call runs, then answered.

Sizes are known from the description of the network: nothing is allocated for a recording that is refused, and a
training call whose response could not be sent changes nothing.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from exodus_client.wire import JSON_TYPE, Tensor
from exodus_client.wire.bounds import MAX_PAYLOAD_BYTES
from exodus_core.network import Description, RecordError, observe
from exodus_core.network.recording import (
    MAX_RECORDED,
    SPIKES,
    Observer,
    Recorded,
    observed_bytes,
    parse_record,
)
from exodus_core.network.statistics import LayerStatistics, dense_operations, with_gradient_norms
from exodus_core.training import Trainer
from exodus_service.call import Call
from exodus_service.errors import Fault, ServiceError, invalid
from exodus_service.gradients.params import Strict

#: Largest integer of a message in every form.
LARGEST_COUNT = 2**63 - 1


class ObservedParams(Strict):
    """Parameters of a call that runs a forward pass."""

    record: list[str] = Field(
        default=[],
        max_length=MAX_RECORDED,
        description="Names LAYER.TRACE of what is wanted of layers: output, spikes or membrane. A tensor of that name "
        "comes with the answer for each, spikes as bool where a neuron has one in a step at most.",
    )
    statistics: bool = Field(
        default=False, description="Whether to return firing rates, synaptic operations and gradient norms of layers."
    )


@dataclass(frozen=True)
class Seen:
    """Findings of a call: tensors of the response by name, and the numbers of layers, None if not asked for."""

    tensors: Mapping[str, torch.Tensor]
    statistics: Mapping[str, LayerStatistics] | None

    def params(self) -> dict[str, Any]:
        """The part of the response's `params`."""
        if self.statistics is None:
            return {}
        return {"statistics": {name: _plain(numbers) for name, numbers in self.statistics.items()}}


@dataclass(frozen=True)
class Observation:
    """Recordings and statistics that a call wants of a network, checked.

    Attributes:
        network: its description.
        record: what is recorded.
        statistics: numbers of layers are wanted.
    """

    network: Description
    record: tuple[Recorded, ...] = ()
    statistics: bool = False

    @classmethod
    def of(cls, params: ObservedParams, network: Description) -> "Observation":
        """Raises ServiceError: invalid: the network has no such layer, or the layer no such trace."""
        try:
            record = parse_record(params.record, network)
        except RecordError as error:
            raise invalid(f"/params{error.pointer}", str(error.expected), str(error.got)) from error
        return cls(network, record, params.statistics)

    @property
    def is_empty(self) -> bool:
        """True if nothing is asked for."""
        return not self.record and not self.statistics

    @property
    def kind(self) -> Any:
        """Calls of one kind take about the same time."""
        return tuple(recorded.name for recorded in self.record), self.statistics

    def nbytes(self, batch: int, time: int) -> int:
        """Bytes that it takes beside the pass."""
        return observed_bytes(self.record, self.statistics, self.network, batch, time)

    def require_room(self, call: Call, shape: Sequence[int], others: int = 0) -> None:
        """Refuse what the response has no room for, given the input's shape and numbers that it has beside.

        Raises:
            ServiceError: too_large.
        """
        self._require_room_for_tensors(call, shape[0], shape[1], others)
        if self.statistics:
            self._require_numbers(shape[0], shape[1])

    def tensor(self, name: str, value: torch.Tensor) -> Tensor:
        """A tensor of the response: spikes of which a neuron has one in a step at most travel as bits."""
        return Tensor.of(name, value, "bits" if name in self._single_spikes else "raw")

    @property
    def _single_spikes(self) -> set[str]:
        graded = {layer.name for layer in self.network.layers if getattr(layer, "max_spikes", 1) > 1}
        return {recorded.name for recorded in self.record if recorded.trace == SPIKES and recorded.layer not in graded}

    @contextmanager
    def observing(self, trainer: Trainer) -> Iterator[Observer | None]:
        """A context for what the call computes, with its observer; None if nothing is asked for."""
        if self.is_empty:
            yield None
            return
        record = [recorded.name for recorded in self.record]
        with observe(trainer.net, record, statistics=self.statistics) as observer:
            yield observer

    def seen(self, observer: Observer | None, grad_norms: Mapping[str, float] | None = None) -> Seen:
        """Findings of a forward pass; or of a training call, with the norms of its gradients."""
        if observer is None:
            return Seen({}, None)
        if not self.statistics:
            return Seen(observer.recordings, None)
        found = observer.statistics if grad_norms is None else observer.statistics_of_step(grad_norms)
        return Seen(observer.recordings, found)

    def seen_backward(self, grad_norms: Mapping[str, float]) -> Seen:
        """The norms of gradients alone, of a call whose forward pass was another."""
        return Seen({}, with_gradient_norms({}, grad_norms, self.network) if self.statistics else None)

    def _require_room_for_tensors(self, call: Call, batch: int, time: int, others: int) -> None:
        if not self.record:
            return
        counts = [batch * time * math.prod(recorded.shape) for recorded in self.record]
        if call.content_type == JSON_TYPE:
            most, numbers = call.limits.max_json_bytes // 2, sum(counts) + others
            if numbers > most:
                raise _too_large("/params/record", f"at most {most} numbers in JSON (use msgpack)", f"{numbers}")
        single, itemsize = self._single_spikes, self.network.itemsize
        sizes = [
            -(-count // 8) if recorded.name in single else count * itemsize
            for recorded, count in zip(self.record, counts, strict=True)
        ]
        if sum(sizes) > call.limits.max_bytes or max(sizes) > MAX_PAYLOAD_BYTES:
            limit = min(call.limits.max_bytes, MAX_PAYLOAD_BYTES)
            raise _too_large("/params/record", f"recordings of at most {limit} bytes", f"{sum(sizes)} bytes")

    def _require_numbers(self, batch: int, time: int) -> None:
        """Refuse counts that no integer of a message holds. Their room in its head is less than a description's."""
        most = max(dense_operations(self.network, batch, time).values(), default=0)
        if most > LARGEST_COUNT:
            raise _too_large("/params/statistics", f"false with more than {LARGEST_COUNT} operations", str(most))


def _plain(numbers: LayerStatistics) -> dict[str, float | int]:
    return {name: value for name, value in dataclasses.asdict(numbers).items() if value is not None}


def _too_large(pointer: str, expected: str, got: str) -> ServiceError:
    fault = Fault(pointer, expected, got)
    return ServiceError("too_large", fault.sentence, (fault,))
