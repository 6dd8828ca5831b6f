"""What a model is to be made from, or to go on from: checked as a whole before anything is built."""

import hashlib
import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from exodus_client.wire import Limits, check_plain
from exodus_core import network as networks
from exodus_core.errors import DescriptionError
from exodus_core.network import Description
from exodus_core.schema import shown
from exodus_core.training import OptimizerError, StateError, Trainer, parse_optimizer
from exodus_service.errors import Fault, ServiceError, invalid
from exodus_service.models.model import Model, Snapshot
from exodus_service.models.model_info import renewed
from exodus_service.models.storage.checkpoint import Header
from exodus_service.models.storage.state_file import Buffer, StateFile, StateFileError, decode_state, encode_state

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_NAME = 256
#: The key of the metadata of a state file, and the version of what it holds.
_METADATA, _VERSION = "exodus", 1
_ABOUT = Limits(max_header_bytes=2**20)

#: Largest number that an optimiser multiplies by. It computes with products and quotients of these; a number beyond
#: float32 would make it fail with half of the weights changed.
LARGEST_FACTOR = 1e20


def is_id(id: object) -> bool:
    """Whether it can be the id of a model; only then it may become part of a path."""
    return isinstance(id, str) and _ID.fullmatch(id) is not None


@dataclass(frozen=True)
class Plan:
    """A model to be made."""

    header: Header
    network: Description
    weights: torch.Tensor | None

    def build(self, device: torch.device) -> Trainer:
        """Allocate it. Raises ServiceError where the weights do not fit."""
        trainer = new_trainer(self.network, self.header.optimizer, self.header.seed, device)
        if self.weights is not None:
            try:
                trainer.set_weights(self.weights)
            except (TypeError, ValueError) as error:
                raise invalid("/tensors/weights", "all parameters in order, flat", str(error)) from error
        return trainer


def new_trainer(network: Description, optimizer: Mapping[str, Any], seed: int, device: torch.device) -> Trainer:
    """A trainer at its start, on any thread."""
    trainer = Trainer(networks.build(network, seed, device), optimizer)
    settle(device)
    return trainer


def settle(device: torch.device) -> None:
    """Wait for what this thread has begun on a GPU, before another thread goes on with it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plan(
    owner: str,
    id: str,
    *,
    network: object,
    optimizer: object,
    seed: object,
    durable_every: object,
    name: object,
    weights: torch.Tensor | None,
    max_model_bytes: int,
) -> Plan:
    """Check what a caller wants. Raises ServiceError: invalid, too_large."""
    description = (
        network if isinstance(network, Description) else _described("/params/network", networks.parse, network)
    )
    options = _described("/params/optimizer", _parse_optimizer, optimizer)
    if not description.parameters:
        raise invalid("/params/network", "a network with parameters to train", "one without")
    require_size(description, max_model_bytes)
    if not _is_int(seed, 0, 2**63):
        raise invalid("/params/seed", "an integer from 0 to 2**63 - 1", shown(seed))
    if not _is_int(durable_every, 1, 2**31):
        raise invalid("/params/durable_every", "an integer of at least 1", shown(durable_every))
    if not isinstance(name, str) or len(name) > _MAX_NAME:
        raise invalid("/params/name", f"a text of at most {_MAX_NAME} characters", shown(name))
    made_from = {
        "network": description.data,
        "optimizer": options,
        "seed": seed,
        "durable_every": durable_every,
        "name": name,
    }
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    header = Header(id=id, owner=owner, created=created, origin=_origin(made_from, weights), **made_from)
    return Plan(header, description, weights)


def require_size(network: Description, max_model_bytes: int) -> None:
    """Refuse a network that is too large to be built. Raises ServiceError: too_large."""
    nbytes = network.nbytes + network.statistics_nbytes
    if nbytes > max_model_bytes:
        limit = f"at most {max_model_bytes} bytes of parameters and running statistics (EXODUS_MAX_MODEL_BYTES)"
        got = f"{nbytes} bytes"
        raise ServiceError("too_large", f"/params/network must be {limit}, got {got}", _fault("network", limit, got))


def new_id() -> str:
    """An id that no other model has."""
    return secrets.token_hex(16)


def state_file(snapshot: Snapshot) -> StateFile:
    """A state as callers download it."""
    header = snapshot.header
    about = {
        "network": dict(header.network),
        "optimizer": dict(header.optimizer),
        "seed": header.seed,
        "sequence": snapshot.progress.sequence,
        "version": _VERSION,
    }
    return encode_state(snapshot.tensors, {_METADATA: json.dumps(about)})


@dataclass(frozen=True)
class Upload:
    """A state to go on from: what becomes of the header, and a trainer with the state."""

    header: Header
    trainer: Trainer
    sequence: int


def upload(model: Model, body: Buffer, device: torch.device) -> Upload:
    """Read a state that a caller sent for a model. Raises ServiceError: malformed, state_mismatch."""
    try:
        tensors, metadata = decode_state(body)
        about = json.loads(metadata[_METADATA])
        check_plain(about, _ABOUT)
        version, sequence, seed = about["version"], about["sequence"], about["seed"]
        network, optimizer = about["network"], about["optimizer"]
    except StateFileError as error:
        raise ServiceError("malformed", str(error)) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ServiceError(
            "malformed", f"the file must be a state of this service, with {_METADATA!r} in its metadata"
        ) from error
    if version != _VERSION or not all(_is_int(n, 0, 2**63) for n in (sequence, seed)):
        raise ServiceError("malformed", f"the metadata must have version {_VERSION}, a sequence number and a seed")
    difference = _difference("/network", dict(model.header.network), network)
    if difference is not None:
        raise _mismatch(*difference)
    try:
        options = _parse_optimizer(optimizer)
    except DescriptionError as error:
        raise _mismatch(f"/optimizer{error.pointer}", str(error.expected), str(error.got)) from error
    if options["kind"] != model.optimizer["kind"]:
        raise _mismatch("/optimizer/kind", shown(model.optimizer["kind"]), shown(options["kind"]))
    trainer = new_trainer(model.network, options, seed, device)
    try:
        trainer.load_state(tensors)
    except StateError as error:
        raise ServiceError("state_mismatch", f"the state is not of this model: {error}") from error
    for name, tensor in tensors.items():
        if name.startswith("optimizer.") and name.endswith(".step") and not 0 <= float(tensor) < math.inf:
            raise _mismatch(f"/{name}", "a number of steps", str(float(tensor)))
    settle(device)
    return Upload(renewed(model.header, options, seed), trainer, sequence)


def _described(pointer: str, parse: Any, value: object) -> Any:
    try:
        return parse(value)
    except DescriptionError as error:
        raise invalid(f"{pointer}{error.pointer}", str(error.expected), str(error.got)) from error


def _parse_optimizer(value: Any) -> dict[str, Any]:
    """The options of an optimiser. Raises OptimizerError, also where a step could fail of a number half-way."""
    options = parse_optimizer(value).data
    for name, number in options.items():
        if isinstance(number, float) and abs(number) > LARGEST_FACTOR:
            raise OptimizerError(f"/{name}", f"a number of a magnitude of at most {LARGEST_FACTOR:g}", shown(number))
    return options


def _origin(made_from: Mapping[str, Any], weights: torch.Tensor | None) -> str:
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode())
    if weights is not None:
        for chunk in encode_state({"weights": weights}).chunks:
            digest.update(chunk)
    return digest.hexdigest()


def _difference(pointer: str, wanted: object, got: object) -> tuple[str, str, str] | None:
    """The first place at which two plain values differ."""
    if isinstance(wanted, Mapping) and isinstance(got, Mapping):
        pairs: list[tuple[str, object, object]] = [
            (str(key), wanted.get(key), got.get(key)) for key in [*wanted, *(set(got) - set(wanted))]
        ]
    elif isinstance(wanted, list | tuple) and isinstance(got, list | tuple) and len(wanted) == len(got):
        pairs = [(str(i), mine, theirs) for i, (mine, theirs) in enumerate(zip(wanted, got, strict=True))]
    else:
        return None if wanted == got else (pointer, shown(wanted), shown(got))
    found = (_difference(f"{pointer}/{key}", mine, theirs) for key, mine, theirs in pairs)
    return next((difference for difference in found if difference is not None), None)


def _mismatch(pointer: str, expected: str, got: str) -> ServiceError:
    detail = f"the state is not of this model: {pointer} must be {expected}, got {got}"
    return ServiceError("state_mismatch", detail, (Fault(pointer, expected, got),))


def _fault(name: str, expected: str, got: str) -> tuple[Fault]:
    return (Fault(f"/params/{name}", expected, got),)


def _is_int(value: object, least: int, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < end
