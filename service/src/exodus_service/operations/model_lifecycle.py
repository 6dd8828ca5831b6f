"""Calls on models as a whole: create, save, download and upload of the state."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgpack  # type: ignore[import-untyped]
import torch

from exodus_client.wire import Encoded, Limits, Message, decompress, encode
from exodus_core import network as networks
from exodus_core.errors import DescriptionError
from exodus_core.network import Description
from exodus_service.call import JSON_GROWTH, Call, Result
from exodus_service.engine import Engine
from exodus_service.errors import Fault, ServiceError, invalid
from exodus_service.models.model_spec import MAX_DESCRIBED_BYTES, described_bytes, require_size
from exodus_service.models.state_transfer import Selection
from exodus_service.models.storage.state_file import MEDIA_TYPE, StateFileError, header_bytes
from exodus_service.operations.inputs import DecodedCall
from exodus_service.operations.params import CreateParams
from exodus_service.settings import Settings

#: A state that is uploaded: the body, its tensors, and the trainer that they are loaded into.
_COPIES = 3
_SLOTS, _BESIDE_STATE = 6, 1024 * 1024


async def create(engine: Engine, call: Call) -> Result:
    """Make a model, or find the one that the same call has made. Raises ServiceError."""
    prepare = partial(_prepare, engine, call)
    decoded, params, network, weights = await call.aside(prepare, engine.store.maker)
    try:
        created = await engine.store.create(
            call.owner,
            id=params.id,
            network=network,
            optimizer=params.optimizer,
            seed=params.seed,
            durable_every=params.durable_every,
            name=params.name,
            weights=weights,
            deadline=call.due,
        )
    except ServiceError as problem:
        if problem.code != "model_exists":
            raise
        expected = "the id of no model, or what that model was made from"
        raise problem.pointing_at("/params/id", expected, repr(params.id)) from None
    encoded = encode(Message.of(created.info, []), decoded.message.form, limits=call.limits)
    return Result(encoded, 201 if created.fresh else 200)


async def save(engine: Engine, id: str, call: Call) -> Result:
    """Make the present state durable. Raises ServiceError."""
    async with engine.store.use(call.owner, id) as model:
        durable = await engine.store.save(model)
        return Result.json({"sequence": model.sequence, "durable": durable})


async def download(engine: Engine, id: str, call: Call) -> Result:
    """The present state as a file. Raises ServiceError."""
    async with engine.store.use(call.owner, id) as model:
        call.slot.reserve(model.nbytes)
        file = await engine.store.export(model)
    call.slot.resize(file.nbytes)
    chunks = [chunk if isinstance(chunk, bytes) else memoryview(chunk) for chunk in file.chunks]
    return Result(Encoded(MEDIA_TYPE, file.nbytes, chunks))


async def upload(engine: Engine, id: str, call: Call) -> Result:
    """Go on from a state that was downloaded. Raises ServiceError."""
    async with engine.store.use(call.owner, id) as model:
        # As many bytes as its weights are its gradients, and each of what optimiser and batch norms keep for a weight.
        most = _SLOTS * model.network.nbytes + _BESIDE_STATE
        await call.aside(partial(_unpack_state, call, most, "as many as a state of this model has"))
        body, call.body = call.body, memoryview(b"")
        replaced = engine.store.replace_state(model, body, call.aside)
        del body  # the store releases it once it is read
        return Result.json(await replaced)


async def upload_weights(engine: Engine, id: str, selection: Selection, call: Call) -> Result:
    """Go on with weights of a file, and an optimiser that starts anew. Raises ServiceError."""
    async with engine.store.use(call.owner, id) as model:
        most = largest_state(engine)  # the file may be of a larger network, of which some layers are taken
        await call.aside(partial(_unpack_state, call, most, "as many as the largest state that is taken has"))
        body, call.body = call.body, memoryview(b"")
        loaded = engine.store.load_weights(model, body, selection, call.aside)
        del body
        return Result.json(await loaded)


def selection(query: Sequence[tuple[str, str]]) -> Selection | None:
    """The weights of a file that are to be loaded, by a query; None: the file is a whole state.

    Raises:
        ServiceError: invalid: a key is unknown or comes twice, or a value does not fit.
    """
    keys = [key for key, _ in query]
    for key in keys:
        if key not in ("weights", "names"):
            raise invalid(_of_query(key), "absent (unknown parameter)", repr(key)[:80])
    if keys.count("weights") > 1:
        raise invalid("/query/weights", "a parameter that comes once", f"{keys.count('weights')}")
    weights = dict(query).get("weights")
    names = [value for key, value in query if key == "names"]
    if weights is None:
        if names:
            raise invalid("/query/names", "absent without weights", repr(names[0])[:80])
        return None
    if weights not in ("all", "partial"):
        raise invalid("/query/weights", "one of all, partial", repr(weights)[:80])
    return Selection(tuple(names) or None, weights == "partial")


def _of_query(key: str) -> str:
    return "/query/" + key[:80].replace("~", "~0").replace("/", "~1")


def largest_state(engine: Engine) -> int:
    """Bytes of the largest state that is taken: weights, gradients, and what an optimiser keeps for each."""
    return 5 * engine.settings.max_model_bytes + engine.limits.max_json_bytes


def _unpack_state(call: Call, most: int, why: str) -> None:
    """Replace the body by the state in it, of so many bytes at most. Raises ServiceError, WireError, QueueFullError."""
    limits = Limits(max_bytes=most)

    def reserve(nbytes: int) -> None:
        call.slot.reserve(max(len(call.body) + nbytes, _COPIES * nbytes))

    body = decompress(call.body, call.content_encoding, limits=limits, reserve=reserve)
    if len(body) > most:
        expected, got = f"at most {most} bytes, {why}", f"{len(body)} bytes"
        raise ServiceError("too_large", f"the body must be {expected}, got {got}", (Fault("", expected, got),))
    try:
        header = header_bytes(body)
    except StateFileError as error:
        raise ServiceError("malformed", str(error)) from error
    call.slot.reserve(_COPIES * len(body) + JSON_GROWTH * header)
    call.content_encoding, call.body = None, memoryview(body)


def _prepare(engine: Engine, call: Call) -> tuple[DecodedCall, CreateParams, Description, torch.Tensor | None]:
    """Decode and check a call, as far as the store does not. Raises ServiceError, WireError."""
    decoded = DecodedCall(call)
    params = decoded.params(CreateParams)
    _require_short(params.network, engine.settings)
    try:
        network = networks.parse(params.network)
    except DescriptionError as error:
        raise invalid(f"/params/network{error.pointer}", error.expected, error.got) from error
    require_size(network, engine.settings.max_model_bytes)
    _require_room_for_answers(network)
    weights = decoded.flat("weights", network) if "weights" in decoded.operands else None
    decoded.operands.finish()
    return decoded, params, network, weights


def _require_short(network: dict[str, Any], settings: Settings) -> None:
    """Bound the work that a description makes, before it is read. Raises ServiceError: too_large."""
    layers = network.get("layers")
    count = len(layers) if isinstance(layers, list) else 0
    nbytes = len(msgpack.packb(network))
    if count > settings.max_layers:
        pointer, most, got = "/layers", f"{settings.max_layers} layers (EXODUS_MAX_LAYERS)", f"{count} layers"
    elif nbytes > settings.max_description_bytes:
        most = f"{settings.max_description_bytes} bytes as msgpack (EXODUS_MAX_DESCRIPTION_BYTES)"
        pointer, got = "", f"{nbytes} bytes"
    else:
        return
    pointer = f"/params/network{pointer}"
    fault = Fault(pointer, f"at most {most}", got)
    raise ServiceError("too_large", f"{pointer} must be at most {most}, got {got}", (fault,))


def _require_room_for_answers(network: Description) -> None:
    """Descriptions of the model, and the norm of each parameter, have to fit into the head of a message."""
    nbytes = described_bytes(network, {})
    if nbytes > MAX_DESCRIBED_BYTES:
        expected = f"a description of at most {MAX_DESCRIBED_BYTES} bytes with all its defaults"
        got = f"one of {nbytes} bytes"
        fault = Fault("/params/network/layers", expected, got)
        raise ServiceError("too_large", f"/params/network/layers must be {expected}, got {got}", (fault,))
