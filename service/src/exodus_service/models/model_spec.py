"""Specification of a model: its constant properties, checked as a whole before anything is built."""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import msgpack  # type: ignore[import-untyped]
import torch

from exodus_client.wire import Limits
from exodus_core import network as networks
from exodus_core.errors import DescriptionError
from exodus_core.network import Description
from exodus_core.schema import shown
from exodus_core.training import OptimizerError, Trainer, parse_optimizer
from exodus_service.errors import Fault, ServiceError, invalid
from exodus_service.models.storage.checkpoint import Header
from exodus_service.models.storage.state_file import encode_state

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_NAME = 256

#: Largest number that an optimiser multiplies by. It computes with products and quotients of these; a number beyond
#: float32 would make it fail with half of the weights changed.
LARGEST_FACTOR = 1e20

#: Bytes that a description of a model may take with all its defaults, in the head of a message: that less what else
#: there is about a model.
MAX_DESCRIBED_BYTES = Limits().max_header_bytes - 8 * 1024

#: Measured bytes of Python objects, which outweigh the weights of a small model: of any model, including the random
#: generator's state; of a layer (4 to 6 KiB: a module, its description, and that as plain data), and the same again
#: of its recurrent connections (4 KiB); of a tensor (1.1 KiB); of a number in a list, which is held in the
#: description, as plain data and in a tensor; and of a layer that is computed in pieces, whose graphs, made and freed
#: piece by piece, leave gaps between what stays (3 to 9 KiB).
_MODEL_BYTES, _LAYER_BYTES, _TENSOR_BYTES, _NUMBER_BYTES, _PIECES_BYTES = 72 * 1024, 6 * 1024, 1280, 64, 10 * 1024


@dataclass(frozen=True)
class ModelSpec:
    """A model without its tensors, whether it is in memory or on disk.

    Attributes:
        header: its constant properties, as they are saved.
        network: the description in the header, parsed.
    """

    header: Header
    network: Description

    @cached_property
    def footprint(self) -> int:
        """Bytes in memory that the model grows to when it is trained."""
        return footprint(self.network, self.header.optimizer)

    def build(self, device: torch.device, weights: torch.Tensor | None = None) -> Trainer:
        """Allocate a new model, on any thread; its weights are drawn by the seed if none are given.

        Raises:
            ServiceError: invalid: the weights do not fit.
        """
        trainer = Trainer(networks.build(self.network, self.header.seed, device), self.header.optimizer)
        synchronize(device)
        if weights is not None:
            try:
                trainer.set_weights(weights)
            except (TypeError, ValueError) as error:
                raise invalid("/tensors/weights", "all parameters in order, flat", str(error)) from error
        return trainer

    def info(
        self,
        *,
        sequence: int,
        durable: int | None,
        in_memory: bool,
        writer: str | None,
        durable_error: str | None = None,
    ) -> dict[str, Any]:
        """The model as callers see it (GET /v1/models/{id})."""
        header, network = self.header, self.network
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


def parse_spec(
    owner: str,
    id: str | None,
    *,
    network: object,
    optimizer: object,
    seed: object = 0,
    durable_every: object = 10,
    name: object = "",
    weights: torch.Tensor | None = None,
    max_model_bytes: int,
) -> ModelSpec:
    """Check the request for a new model. Raises ServiceError: invalid, too_large."""
    id = secrets.token_hex(16) if id is None else id
    if not is_id(id):
        raise invalid("/params/id", "1 to 64 letters, digits, - and _", str(id)[:100])
    description = network if isinstance(network, Description) else _parsed("/params/network", networks.parse, network)
    names = [parameter for parameter, _ in description.parameters]
    if not names:
        raise invalid("/params/network", "a network with parameters to train", "one without")
    options = _parsed("/params/optimizer", partial(parse_bounded_optimizer, network=description), optimizer)
    require_size(description, max_model_bytes)
    if not is_int(seed, 0, 2**63):
        raise invalid("/params/seed", "an integer from 0 to 2**63 - 1", shown(seed))
    if not is_int(durable_every, 1, 2**31):
        raise invalid("/params/durable_every", "an integer of at least 1", shown(durable_every))
    if not isinstance(name, str) or len(name) > _MAX_NAME:
        raise invalid("/params/name", f"a text of at most {_MAX_NAME} characters", shown(name))
    origin = {
        "network": description.data,
        "optimizer": options,
        "seed": seed,
        "durable_every": durable_every,
        "name": name,
    }
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    header = Header(id=id, owner=owner, created=created, origin=_digest(origin, weights), **origin)
    return ModelSpec(header, description)


def footprint(network: Description, optimizer: Mapping[str, Any]) -> int:
    """Bytes that a model grows to: weights, gradients, the optimiser's state for each weight, and Python objects."""
    slots = parse_optimizer(optimizer).slots
    weights = network.nbytes * (2 + sum(slot != "step" for slot in slots)) + network.statistics_nbytes
    parameters = network.parameters
    tensors = (2 + len(slots)) * len(parameters) + len(network.statistics)
    numbers = sum(_count(value) for layer in network.layers for value in vars(layer).values())
    modules = sum(1 if getattr(layer, "recurrent", None) is None else 2 for layer in network.layers)
    pieces = 0 if network.checkpoint_steps is None else modules
    objects = _LAYER_BYTES * modules + _PIECES_BYTES * pieces + _TENSOR_BYTES * tensors + _NUMBER_BYTES * numbers
    return weights + objects + _MODEL_BYTES


def require_size(network: Description, max_model_bytes: int) -> None:
    """Refuse a network that is too large, before it is built. Raises ServiceError: too_large."""
    nbytes = network.nbytes + network.statistics_nbytes
    if nbytes > max_model_bytes:
        limit = f"at most {max_model_bytes} bytes of parameters and running statistics (EXODUS_MAX_MODEL_BYTES)"
        fault = Fault("/params/network", limit, f"{nbytes} bytes")
        raise ServiceError("too_large", fault.sentence, (fault,))


def is_id(id: object) -> bool:
    """True if a model can have this id; only then it may become part of a path."""
    return isinstance(id, str) and _ID.fullmatch(id) is not None


def is_int(value: object, least: int, end: int) -> bool:
    """True for an integer from `least` to `end - 1`; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < end


def described_bytes(network: Description, optimizer: Mapping[str, Any]) -> int:
    """Bytes that the description of a model takes in a message: network, parameters and optimiser."""
    parameters: list[Any] = [{"name": name, "shape": list(shape)} for name, shape in network.parameters]
    return len(msgpack.packb([network.data, parameters, dict(optimizer)]))


def parse_bounded_optimizer(value: Any, network: Description) -> dict[str, Any]:
    """Options of an optimiser for a network.

    Raises:
        OptimizerError: they do not fit, are too many to describe the model in an answer, or have numbers that could
            make a step fail half-way.
    """
    optimizer = parse_optimizer(value)
    optimizer.of_parameters([name for name, _ in network.parameters])
    options = optimizer.data
    room = MAX_DESCRIBED_BYTES - described_bytes(network, {})
    nbytes = described_bytes(network, options) - described_bytes(network, {})
    if nbytes > room:
        raise OptimizerError("", f"options of at most {room} bytes, what the network's leave", f"{nbytes} bytes")
    for name, number in options.items():
        if isinstance(number, float) and abs(number) > LARGEST_FACTOR:
            raise OptimizerError(f"/{name}", f"a number of a magnitude of at most {LARGEST_FACTOR:g}", shown(number))
    rates = {"lr_scale": options["lr"], "lr_of": 1.0}
    for name, times in rates.items():
        for key, number in options.get(name, {}).items():
            if number * max(times, 1.0) > LARGEST_FACTOR:
                expected = f"a number that gives a learning rate of at most {LARGEST_FACTOR:g}"
                raise OptimizerError(f"/{name}/{key}", expected, shown(number))
    return options


def synchronize(device: torch.device) -> None:
    """Wait for the work that this thread has begun on a GPU, before another thread uses its results."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parsed(pointer: str, parse: Any, value: object) -> Any:
    try:
        return parse(value)
    except DescriptionError as error:
        raise invalid(f"{pointer}{error.pointer}", str(error.expected), str(error.got)) from error


def _digest(origin: Mapping[str, Any], weights: torch.Tensor | None) -> str:
    digest = hashlib.sha256(json.dumps(origin, sort_keys=True).encode())
    if weights is not None:
        for chunk in encode_state({"weights": weights}).chunks:
            digest.update(chunk)
    return digest.hexdigest()


def _count(value: Any) -> int:
    """Numbers in nested tuples."""
    return sum(map(_count, value)) if isinstance(value, tuple) else 1
