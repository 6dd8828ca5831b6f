"""What is known of a model without its tensors: what callers are told, and what it grows to."""

from dataclasses import replace
from typing import Any

from exodus_core.network import Description
from exodus_core.training import parse_optimizer
from exodus_service.checkpoint import Header

#: Bytes of objects and of the generator's state, which outweigh the weights of a small model.
_AROUND = 32 * 1024


def footprint(network: Description, optimizer: dict[str, Any]) -> int:
    """Bytes that a model grows to: weights, gradients, what the optimiser keeps for each weight, and what is around."""
    slots = [slot for slot in parse_optimizer(optimizer).slots if slot != "step"]
    return network.nbytes * (2 + len(slots)) + _AROUND


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
