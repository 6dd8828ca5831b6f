"""What is known of a model without its tensors: what callers are told, and what it grows to."""

from dataclasses import replace
from typing import Any

from exodus_core.network import Description
from exodus_core.training import parse_optimizer
from exodus_service.models.storage.checkpoint import Header

#: Bytes of objects, which outweigh the weights of a small model, as measured: of any model, the generator's state among
#: them; of a layer (4 to 6 KiB: a module, its description, and that as plain data); of a tensor (1.1 KiB); and of a
#: number in a list, which stands in the description, as plain data and in a tensor.
_AROUND, _AROUND_LAYER, _AROUND_TENSOR, _AROUND_NUMBER = 64 * 1024, 6 * 1024, 1280, 64


def footprint(network: Description, optimizer: dict[str, Any]) -> int:
    """Bytes that a model grows to: weights, gradients, what the optimiser keeps for each weight, and what is around."""
    slots = parse_optimizer(optimizer).slots
    weights = network.nbytes * (2 + sum(slot != "step" for slot in slots)) + network.statistics_nbytes
    parameters = network.parameters
    tensors = (2 + len(slots)) * len(parameters) + len(network.statistics)
    numbers = sum(_numbers(value) for layer in network.layers for value in vars(layer).values())
    objects = _AROUND_LAYER * len(network.layers) + _AROUND_TENSOR * tensors + _AROUND_NUMBER * numbers
    return weights + objects + _AROUND


def _numbers(value: Any) -> int:
    return sum(map(_numbers, value)) if isinstance(value, tuple) else 1


def description(
    header: Header,
    network: Description,
    *,
    sequence: int,
    durable: int | None,
    in_memory: bool,
    writer: str | None,
    durable_error: str | None = None,
) -> dict[str, Any]:
    """What callers are told of a model, in memory or on disk alone."""
    return {
        "id": header.id,
        "name": header.name,
        "sequence": sequence,
        "durable": durable,
        "durable_every": header.durable_every,
        "network": network.data,
        "optimizer": dict(header.optimizer),
        "seed": header.seed,
        "parameters": [{"name": name, "shape": list(shape)} for name, shape in network.parameters],
        "dtype": network.dtype,
        "nbytes": network.nbytes,
        "in_memory": in_memory,
        "created": header.created,
        "writer": writer,
        "durable_error": durable_error,
    }


def renewed(header: Header, optimizer: dict[str, Any], seed: int) -> Header:
    """The header of a model that goes on from an uploaded state."""
    return replace(header, optimizer=optimizer, seed=seed)
