"""Messages of training calls, and results read from their answers: all of `/v1/models` but HTTP."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from exodus_client._checks import flag, one_of, unfit, values_of
from exodus_client._errors import InvalidResponseError
from exodus_client._gradients.result import Kind, Wanted, read_answer, read_numbers, timing_of
from exodus_client._models.recording import NOTHING, LayerStatistics, Observed, Statistics, joined
from exodus_client._plain_data import loss_of, names_of, number, rates_of
from exodus_client._transport.session import Answer, is_count
from exodus_client.neuron import Array
from exodus_client.wire import Encoded, Limits, Message, Tensor, encode, is_torch

#: A loss by name, such as "max_over_time_ce"; with options, such as {"kind": "van_rossum", "alpha": 0.9}; a list of
#: such, whose dicts may have a "weight": their sum; or any function of the outputs, and of the targets if they are
#: given, to a scalar, which is differentiated here by torch.
NamedLoss: TypeAlias = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
Loss: TypeAlias = NamedLoss | Callable[..., Any]

#: What a call counts as in the accumulated gradients, unless it is as many as its samples: one call.
CALLS = "calls"


@dataclass(frozen=True)
class ModelInfo:
    """Description and progress of a model.

    Attributes:
        id, name: of the model.
        sequence: number of training calls that were done.
        durable: number of those that would survive a crash; None if the server keeps models in memory alone.
        durable_every: training calls from one save to the next.
        network, optimizer, seed: what it was made from, with all defaults.
        parameters: name and shape of each, in the order in which flat gradients and weights have them.
        dtype, nbytes: of the parameters.
        in_memory: whether it is loaded.
        created: date and time.
        writer: the handle whose call was the last.
        durable_error: why the last save failed; None if it did not.
    """

    id: str
    name: str
    sequence: int
    durable: int | None
    durable_every: int
    network: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    seed: int
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: str
    nbytes: int
    in_memory: bool
    created: str
    writer: str | None
    durable_error: str | None

    @classmethod
    def of(cls, given: Any, request_id: str, id: str | None = None) -> ModelInfo:
        """Read what the server says; about the model of this id, if one is given. Raises InvalidResponseError."""
        try:
            names = cls.__dataclass_fields__.keys() - {"parameters"}
            parameters = tuple((entry["name"], tuple(entry["shape"])) for entry in given["parameters"])
            info = cls(parameters=parameters, **{name: given[name] for name in names})
            wrong = next((name for name, fits in _FITS.items() if not fits(getattr(info, name))), None)
        except (KeyError, TypeError) as error:
            raise InvalidResponseError(f"no model information: got {given!r:.200}", request_id=request_id) from error
        if wrong is not None:
            got = getattr(info, wrong)
            raise InvalidResponseError(
                f"no model information: its {wrong} cannot be {got!r:.200}", request_id=request_id
            )
        if id not in (None, info.id):
            raise InvalidResponseError(f"asked about model {id!r}, got one about {info.id!r}", request_id=request_id)
        return info


_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _is_network(value: object) -> bool:
    layers = value.get("layers") if isinstance(value, dict) else None
    shape = value.get("input_shape") if isinstance(value, dict) else None
    shaped = shape is None or (isinstance(shape, list) and all(is_count(size) for size in shape))
    named = isinstance(layers, list) and all(isinstance(e, dict) and isinstance(e.get("kind"), str) for e in layers)
    return shaped and named


def _are_parameters(value: tuple[tuple[Any, tuple[Any, ...]], ...]) -> bool:
    names = {name for name, _ in value if isinstance(name, str)}
    sound = len(names) == len(value) and all(is_count(size) for _, shape in value for size in shape)
    return sound and sum(math.prod(shape) for _, shape in value) < 2**63


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


#: Checks of the fields of `ModelInfo`.
_FITS: dict[str, Callable[[Any], bool]] = {
    "id": lambda value: isinstance(value, str) and _ID.fullmatch(value) is not None,
    "name": lambda value: isinstance(value, str),
    "sequence": is_count,
    "durable": lambda value: value is None or is_count(value),
    "durable_every": is_count,
    "network": _is_network,
    "optimizer": lambda value: isinstance(value, dict),
    "seed": lambda value: type(value) is int and -(2**63) <= value < 2**64,
    "parameters": _are_parameters,
    "dtype": lambda value: value in ("float32", "float64"),
    "nbytes": is_count,
    "in_memory": lambda value: isinstance(value, bool),
    "created": lambda value: isinstance(value, str),
    "writer": _is_text,
    "durable_error": _is_text,
}


@dataclass(frozen=True)
class StepResult:
    """Result of one training call.

    Attributes:
        sequence: number of the call, the first is 1.
        durable: calls up to this number would survive a crash of the server; None if models live in memory alone.
        metrics: by name, which ends in how they combine: "loss:mean", "accuracy:mean", "samples:sum".
        grad_norms: L2 norm of the gradient of each parameter, and of all together, "total".
        gradients: by parameter, where they were asked for; arrays of the kind that went in.
        device: where the server computed.
        durable_error: why the last save failed; None if it did not.
        timing: milliseconds: the server's `queue`, `decode`, `kernel` and `encode`, and the client's `round_trip`.
        request_id: under which the server logged the request.
        recordings: what was to be recorded, by name, (B, T, ...); arrays of the kind that went in.
        statistics: numbers of layers by name, where they were asked for.
    """

    sequence: int
    durable: int | None
    metrics: Mapping[str, float]
    grad_norms: Mapping[str, float]
    gradients: Mapping[str, Array] | None
    device: str
    durable_error: str | None
    timing: Mapping[str, float]
    request_id: str
    recordings: Mapping[str, Array] = field(default_factory=dict)
    statistics: Mapping[str, LayerStatistics] | None = None

    @property
    def loss(self) -> float:
        """The loss, averaged over the batch; NaN if the call had none."""
        return self.metrics.get("loss:mean", math.nan)


@dataclass(frozen=True)
class Outputs:
    """Result of a forward pass.

    Attributes:
        outputs: of the last layer, (B, T, *out); None if only metrics were wanted.
        metrics: of the loss, if there was one.
        sequence: number of training calls that had been done.
        context: names what the server kept for a backward pass; None if it was not asked to.
        timing, request_id, recordings, statistics: as in `StepResult`.
    """

    outputs: Array | None
    metrics: Mapping[str, float]
    sequence: int
    context: str | None
    timing: Mapping[str, float]
    request_id: str
    recordings: Mapping[str, Array] = field(default_factory=dict)
    statistics: Mapping[str, LayerStatistics] | None = None


@dataclass(frozen=True)
class Batch:
    """The tensors of a training call, views of the caller's arrays where they travel as they are."""

    tensors: tuple[Tensor, ...]
    kind: Kind = field(default_factory=Kind)

    @classmethod
    def of(
        cls, spikes: Array, targets: Array | None = None, steps: Mapping[str, Array] = MappingProxyType({})
    ) -> Batch:
        """Spikes, targets, and lengths or a mask by name. Raises TypeError if an element type cannot travel."""
        given = [spikes] if targets is None else [spikes, targets]
        sent = packed("spikes", spikes, of_any_dtype=True)  # an error has the caller's name for it
        tensors = [Tensor("input", sent.dtype, sent.shape, sent.encoding, sent.payload)]
        if targets is not None:
            # One number a sample is no spike train, though all may happen to be 0 and 1.
            one_each = (targets.ndim if is_torch(targets) else np.ndim(targets)) < 2
            tensors.append(Tensor.of("targets", targets) if one_each else packed("targets", targets))
        # Lengths may all happen to be 0 and 1; a mask is bool.
        tensors += [Tensor.of(name, array, "bits" if name == "mask" else "raw") for name, array in steps.items()]
        return cls(tuple(tensors), Kind.of(given))

    def copied(self) -> Batch:
        """The same, independent of the caller's arrays."""
        return Batch(
            tuple(replace(tensor, payload=memoryview(bytes(tensor.payload))) for tensor in self.tensors), self.kind
        )


def packed(name: str, array: Array, *, of_any_dtype: bool = False) -> Tensor:
    """A tensor as small as it can be: zeros and ones as bits.

    Integers are not, unless they are `of_any_dtype`: class numbers and counts may happen to be 0 and 1.
    """
    if of_any_dtype or not _is_integral(array):
        try:
            return Tensor.of(name, array, "bits")
        except ValueError:
            pass
    return Tensor.of(name, array)


def training_body(
    params: Mapping[str, Any], tensors: Sequence[Tensor], *, sequence: int | None = None, writer: str | None = None
) -> Encoded:
    """A body in one piece, which nothing else refers to. Raises WireError, TypeError."""
    numbered = dict(params) if sequence is None else {"sequence": sequence, "writer": writer, **params}
    encoded = encode(Message.of(numbered, tensors))
    return Encoded(encoded.content_type, encoded.nbytes, [b"".join(encoded.chunks)])


def step_params(
    *,
    loss: NamedLoss | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    frozen: Sequence[str] | None = None,
    lr_scale: Mapping[str, float] | None = None,
    lr_of: Mapping[str, float] | None = None,
    accumulate: str = CALLS,
    average: bool = False,
    gradients: bool = False,
    allow_non_finite: bool = False,
) -> dict[str, Any]:
    """The parameters of a training call, without those that are not given. Raises TypeError: one cannot travel."""
    numbers = {"lr": lr, "weight_decay": weight_decay, "clip_norm": clip_norm, "clip_value": clip_value}
    given: dict[str, Any] = {"loss": loss_of(loss), "frozen": names_of("frozen", frozen)}
    given |= {name: number(name, value) for name, value in numbers.items()}
    given |= {"lr_scale": rates_of("lr_scale", lr_scale), "lr_of": rates_of("lr_of", lr_of)}
    params = {name: value for name, value in given.items() if value is not None}
    # Absent where they are as ever: servers of before they were there take all other calls.
    if one_of("accumulate", accumulate, (CALLS, "samples")) != CALLS:
        params["accumulate"] = accumulate
    if flag("average", average):
        params["average"] = True
    if flag("gradients", gradients):
        params["gradients"] = True
    if flag("allow_non_finite", allow_non_finite):
        params["non_finite"] = "apply"
    return params


def read_info(answer: Answer, limits: Limits, id: str) -> ModelInfo:
    """The information that a new model of this id is answered with. Raises InvalidResponseError."""
    message, _ = read_answer(answer, Kind(), limits, {})
    return ModelInfo.of(message.params, answer.request_id, id)


def read_step(
    answer: Answer,
    kind: Kind,
    limits: Limits,
    info: ModelInfo,
    *,
    sequence: int,
    gradients: bool,
    observed: Observed = NOTHING,
    shape: Sequence[int] = (),
    metrics: Mapping[str, float] = MappingProxyType({}),
    forward: Outputs | None = None,
) -> StepResult:
    """The result in an answer to the call of this number.

    Args:
        gradients: whether they were asked for.
        observed: what else was.
        shape: of the input.
        metrics: added to those of the server.
        forward: the forward pass, if that was a call of its own, with what it has recorded.

    Raises:
        InvalidResponseError: the answer is not what the API promises, or is to another call.
    """
    count = sum(math.prod(shape) for _, shape in info.parameters)
    wanted = {"gradients": Wanted((info.dtype,), (count,))} if gradients else {}
    wanted |= observed.wanted(shape, info.dtype)
    message, arrays = read_answer(answer, kind, limits, wanted)
    params = message.params
    theirs, norms = read_numbers(params.get("metrics")), read_numbers(params.get("grad_norms"))
    device: Any = params.get("device")
    durable, durable_error = params.get("durable"), params.get("durable_error")
    if params.get("sequence") != sequence or isinstance(params["sequence"], bool):
        raise InvalidResponseError(
            f"asked for call {sequence}, the answer is to {params.get('sequence')!r:.80}", request_id=answer.request_id
        )
    sound = (durable is None or is_count(durable)) and _is_text(durable_error) and isinstance(device, str)
    if theirs is None or norms is None or not sound:
        raise InvalidResponseError(
            f"the answer lacks metrics, grad_norms, device, durable or durable_error: got {params!r:.200}",
            request_id=answer.request_id,
        )
    statistics: Statistics | None = observed.read_statistics(params, answer.request_id)
    recordings: Mapping[str, Array] = observed.recordings(arrays, info.dtype)
    if forward is not None:
        statistics, recordings = joined(forward.statistics, statistics), forward.recordings
    return StepResult(
        sequence,
        durable,
        theirs | dict(metrics),
        norms,
        split(arrays["gradients"], info) if gradients else None,
        device,
        durable_error,
        timing_of(answer),
        answer.request_id,
        recordings,
        statistics,
    )


def read_outputs(
    answer: Answer, kind: Kind, limits: Limits, info: ModelInfo, wanted: Mapping[str, Wanted], observed: Observed
) -> Outputs:
    """The result of a forward pass in an answer.

    Args:
        wanted: of its outputs and recordings.
        observed: what was to be recorded.

    Raises:
        InvalidResponseError: the answer is not what the API promises.
    """
    message, arrays = read_answer(answer, kind, limits, wanted)
    params = message.params
    metrics, context = read_numbers(params.get("metrics", {})), params.get("context")
    sequence: Any = params.get("sequence")
    if metrics is None or not is_count(sequence) or not _is_text(context):
        raise InvalidResponseError(
            f"the answer lacks sequence, or metrics or context cannot be read: got {params!r:.200}",
            request_id=answer.request_id,
        )
    return Outputs(
        arrays.get("outputs"),
        metrics,
        sequence,
        context,
        timing_of(answer),
        answer.request_id,
        observed.recordings(arrays, info.dtype),
        observed.read_statistics(params, answer.request_id),
    )


def outputs_wanted(batch: Batch, info: ModelInfo) -> dict[str, Wanted]:
    """Dtype and shape of the outputs for a batch."""
    return {"outputs": Wanted((info.dtype,), (*batch.tensors[0].shape[:2], ...))}


def split(flat: Array, info: ModelInfo) -> dict[str, Array]:
    """Views of a flat array of all parameters in order, by parameter."""
    bounds = [0, *np.cumsum([math.prod(shape) for _, shape in info.parameters], dtype=np.int64).tolist()]
    return {
        name: flat[start:end].reshape(shape)
        for (name, shape), start, end in zip(info.parameters, bounds[:-1], bounds[1:], strict=True)
    }


def join(arrays: Array | Mapping[str, Array], info: ModelInfo, name: str) -> Array:
    """A flat array of arrays by parameter; a flat array as it is.

    Raises:
        ValueError: a parameter is missing, too many, or of another shape.
    """
    if not isinstance(arrays, Mapping):
        return arrays
    wanted = dict(info.parameters)
    if arrays.keys() != wanted.keys():
        raise unfit(ValueError, name, f"arrays for {', '.join(wanted)}", ", ".join(arrays))
    for key, shape in wanted.items():
        if tuple(np.shape(arrays[key])) != shape:
            raise unfit(ValueError, f"{name} for {key}", f"of shape {list(shape)}", list(np.shape(arrays[key])))
    ordered = [arrays[key] for key in wanted]
    return np.concatenate([values_of(Tensor.of(name, array)).reshape(-1) for array in ordered])


def copied(targets: Array) -> Any:
    """Targets as a torch tensor of their own on the CPU, for a loss that is computed here."""
    import torch

    return targets.detach().cpu().clone() if is_torch(targets) else torch.from_numpy(np.array(targets))


def differentiate(loss: Callable[..., Any], outputs: Any, targets: Any | None) -> tuple[float, Any]:
    """The value of a loss and its gradient with respect to the outputs, by torch.

    Raises:
        TypeError: the loss is no function of the outputs to a scalar tensor.
    """
    import torch

    leaf = outputs.detach().requires_grad_()
    value = loss(leaf) if targets is None else loss(leaf, targets)
    expected = "a function that returns a scalar tensor"
    if not isinstance(value, torch.Tensor):
        raise unfit(TypeError, "loss", expected, f"{value!r:.80}")
    if value.numel() != 1:
        raise unfit(TypeError, "loss", expected, f"a tensor of shape {list(value.shape)}", "take its mean, for example")
    gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        expected += " that depends on the outputs"
        raise unfit(TypeError, "loss", expected, "one that does not, or was detached from them")
    return float(value.detach()), gradient


def _is_integral(array: Array) -> bool:
    dtype = getattr(array, "dtype", None)
    text = str(np.asarray(array).dtype if dtype is None else dtype).removeprefix("torch.")
    return text.startswith(("int", "uint"))
