"""State files that callers download, and upload to continue from."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from exodus_client.wire import Limits, check_plain
from exodus_core.errors import ArgumentError, DescriptionError
from exodus_core.schema import shown
from exodus_core.training import LoadedWeights, StateError, Trainer
from exodus_service.errors import Fault, ServiceError, invalid
from exodus_service.models.model_spec import ModelSpec, is_int, parse_bounded_optimizer, synchronize
from exodus_service.models.storage.checkpoint import Snapshot
from exodus_service.models.storage.state_file import Buffer, StateFile, StateFileError, decode_state, encode_state

#: Key of the metadata of a state file, and the version of its content.
_METADATA, _VERSION = "exodus", 1
_METADATA_LIMITS = Limits(max_header_bytes=2**20)


@dataclass(frozen=True)
class UploadedState:
    """A state to continue from: the model's new specification, and a trainer in that state."""

    spec: ModelSpec
    trainer: Trainer
    sequence: int


def export_state(snapshot: Snapshot) -> StateFile:
    """A state as callers download it."""
    header = snapshot.header
    metadata = {
        "network": dict(header.network),
        "optimizer": dict(header.optimizer),
        "seed": header.seed,
        "sequence": snapshot.sequence,
        "version": _VERSION,
    }
    return encode_state(snapshot.tensors, {_METADATA: json.dumps(metadata)})


def import_state(spec: ModelSpec, body: Buffer, device: torch.device) -> UploadedState:
    """Read a state that a caller has uploaded for a model. Raises ServiceError: malformed, state_mismatch."""
    try:
        tensors, metadata = decode_state(body)
        plain = json.loads(metadata[_METADATA])
        check_plain(plain, _METADATA_LIMITS)
        version, sequence, seed = plain["version"], plain["sequence"], plain["seed"]
        network, optimizer = plain["network"], plain["optimizer"]
    except StateFileError as error:
        raise ServiceError("malformed", str(error)) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ServiceError(
            "malformed", f"the body must be a state of this service, with {_METADATA!r} in its metadata"
        ) from error
    if version != _VERSION or not all(is_int(number, 0, 2**63) for number in (sequence, seed)):
        raise ServiceError(
            "malformed", f"the metadata must have version {_VERSION}, a sequence number and a seed, got {plain!r:.200}"
        )
    difference = _difference("/network", dict(spec.header.network), network)
    if difference is not None:
        raise _mismatch(difference)
    try:
        options = parse_bounded_optimizer(optimizer, spec.network)
    except DescriptionError as error:
        raise _mismatch(Fault(f"/optimizer{error.pointer}", str(error.expected), str(error.got))) from error
    kind = spec.header.optimizer["kind"]
    if options["kind"] != kind:
        raise _mismatch(Fault("/optimizer/kind", shown(kind), shown(options["kind"])))
    uploaded = ModelSpec(replace(spec.header, optimizer=options, seed=seed), spec.network)
    trainer = uploaded.build(device)
    try:
        trainer.load_state(tensors)
    except StateError as error:
        raise ServiceError("state_mismatch", f"the state is not of this model: {error}") from error
    for name, tensor in tensors.items():
        if name.startswith("optimizer.") and name.endswith(".step") and not 0 <= float(tensor) < math.inf:
            raise _mismatch(Fault(f"/{name}", "a number of steps", str(float(tensor))))
    synchronize(device)
    return UploadedState(uploaded, trainer, sequence)


@dataclass(frozen=True)
class Selection:
    """Weights of a file to load: of some layers or weights, None for all; and if some may be missing."""

    names: tuple[str, ...] | None
    partial: bool


def read_weights(body: Buffer) -> dict[str, torch.Tensor]:
    """The tensors of a file that a caller has uploaded. Raises ServiceError: malformed."""
    try:
        return decode_state(body)[0]
    except StateFileError as error:
        raise ServiceError("malformed", str(error)) from error


def with_weights(
    spec: ModelSpec, trainer: Trainer, tensors: Mapping[str, torch.Tensor], selection: Selection
) -> tuple[Trainer, LoadedWeights]:
    """A trainer like another, with weights of a file, whose optimiser starts anew; on the computing thread.

    Raises:
        ServiceError: invalid, state_mismatch.
    """
    made = spec.build(trainer.net.device)
    made.load_state(trainer.state())
    try:
        loaded = made.load_weights(tensors, names=selection.names, partial=selection.partial)
    except StateError as error:
        raise ServiceError("state_mismatch", f"the weights are not of this model: {error}") from error
    except ArgumentError as error:
        raise invalid("/query/names", error.expected, error.got) from error
    synchronize(trainer.net.device)
    return made, loaded


def _difference(pointer: str, expected: object, got: object) -> Fault | None:
    """The first place at which two plain values differ."""
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        pairs: list[tuple[str, object, object]] = [
            (str(key), expected.get(key), got.get(key)) for key in [*expected, *(set(got) - set(expected))]
        ]
    elif isinstance(expected, list | tuple) and isinstance(got, list | tuple) and len(expected) == len(got):
        pairs = [(str(i), mine, theirs) for i, (mine, theirs) in enumerate(zip(expected, got, strict=True))]
    else:
        return None if expected == got else Fault(pointer, shown(expected), shown(got))
    found = (_difference(f"{pointer}/{key}", mine, theirs) for key, mine, theirs in pairs)
    return next((difference for difference in found if difference is not None), None)


def _mismatch(fault: Fault) -> ServiceError:
    return ServiceError("state_mismatch", f"the state is not of this model: {fault.sentence}", (fault,))
