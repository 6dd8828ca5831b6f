"""The `params` of a gradient request, checked by pydantic; errors point at each wrong value.

pydantic checks what comes from a caller: `params` and settings. Networks, losses and optimisers are data that
`exodus_core` checks by itself, without pydantic, since it is used without the service too.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from exodus_core import surrogate
from exodus_core.arguments import FLOATS, LARGEST_REFRACTORY, METHODS, NEURON_RESETS, NEURONS
from exodus_core.coupled_gradients import AlifGradient
from exodus_service.errors import MAX_FAULTS, Fault, ServiceError

Model = TypeVar("Model", bound=BaseModel)


class OneOf:
    """Annotation of a text that must be one of the values, which are declared elsewhere, as pydantic's `Literal`."""

    def __init__(self, values: Iterable[str]) -> None:
        self._values = tuple(values)

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        return core_schema.literal_schema(list(self._values))


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype on the wire."""
    return str(dtype).removeprefix("torch.")


Method = Annotated[str, OneOf(METHODS)]
Reset = Annotated[str, OneOf(NEURON_RESETS)]
SurrogateKind = Annotated[str, OneOf(surrogate.KINDS)]
FloatName = Annotated[str, OneOf(map(dtype_name, FLOATS))]
Parameter = Annotated[str, OneOf(AlifGradient._fields[1:])]
Trace = Literal["spikes", "membrane", "state"]

#: Characters shown of a value that is refused.
_SHOWN = 80


class Strict(BaseModel):
    """Parameters of exactly the declared fields and types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TensorName(Strict):
    """Reference to a tensor of the request."""

    tensor: str = Field(min_length=1, description="Name of the tensor.")


def _number_or_tensor(value: object) -> str:
    return "<tensor>" if isinstance(value, dict) else "<number>"


# Members of a union are tagged <so>, to tell them from fields in the location of an error.
Number = Annotated[
    Annotated[float, Tag("<number>")] | Annotated[TensorName, Tag("<tensor>")], Discriminator(_number_or_tensor)
]


class _Leaky(Strict):
    """Fields of all neurons but SRM."""

    threshold: Number = Field(default=1.0, description="Membrane potential from which the neuron fires.")
    reset: Reset = Field(default="subtract", description="What a spike does to the membrane.")
    reset_by: Number | None = Field(default=None, description="What a spike subtracts; null: the threshold.")
    decay_reset: bool = Field(default=False, description="Whether the reset is applied before the decay.")
    initial_membrane: Number | None = Field(default=None, description="Membrane before the first step; null: 0.")
    initial_spikes: Number | None = Field(default=None, description="Spikes before the first step; null: 0.")
    min_membrane: Number | None = Field(default=None, description="Lower bound of the membrane; null: none.")
    max_spikes: int = Field(default=1, ge=1, description="Most spikes that a neuron emits in one step.")
    reset_to: Number | None = Field(
        default=None, description="What a spike sets the membrane to with reset `value`; else null."
    )
    detach_reset: bool = Field(default=False, description="Whether no gradient passes through the spikes to the reset.")
    refractory: int = Field(
        default=0,
        ge=0,
        le=LARGEST_REFRACTORY,
        description="Steps after a spike in which the membrane keeps its value, and no spike is fired.",
    )
    initial_refractory: Number | None = Field(
        default=None, description="Steps of a refractory period that are left before the first step; null: 0."
    )


BoundAfterReset = Annotated[
    bool, Field(description="Whether `min_membrane` bounds what the reset leaves to the next step.")
]


class _Decaying(_Leaky):
    alpha: Number = Field(description="Decay of the membrane in one step, exp(-dt / tau).")


class LifNeuron(_Decaying):
    """Leaky integrate-and-fire."""

    model: Literal["lif"]
    bound_after_reset: BoundAfterReset = False


class IfNeuron(_Leaky):
    """Integrate-and-fire: LIF without decay."""

    model: Literal["if"]
    bound_after_reset: BoundAfterReset = False
    alpha: float = Field(default=1.0, ge=1.0, le=1.0, description="1, or absent.")


class _Synaptic(_Decaying):
    synapse_gain: Number = Field(default=1.0, description="Factor of the synaptic current in the membrane.")
    synapse_delayed: bool = Field(default=False, description="Whether the membrane sees the current a step late.")
    initial_current: Number | None = Field(default=None, description="Current before the first step; null: 0.")


class CubaLifNeuron(_Synaptic):
    """Second-order LIF: the input drives a synaptic current, the current the membrane."""

    model: Literal["cuba_lif"]
    synapse_alpha: Number = Field(description="Decay of the current in one step, exp(-dt / tau_syn).")


class AlifNeuron(_Synaptic):
    """Adaptive LIF: spikes, and the membrane, drive a variable that raises the threshold or inhibits."""

    model: Literal["alif"]
    adapt_alpha: Number = Field(description="Decay of the adaptation in one step, exp(-dt / tau_adapt).")
    adapt_by: Number = Field(default=1.0, description="What a spike adds to the adaptation.")
    adapt_membrane: Number = Field(default=0.0, description="What the membrane adds to it.")
    adapt_threshold: Number = Field(
        default=0.0, description="How far it raises the threshold; other than 0, max_spikes is 1."
    )
    adapt_current: Number = Field(default=0.0, description="How far it is subtracted from the input.")
    synapse_alpha: Number | None = Field(
        default=None, description="Decay of a synaptic current in one step; null: there is none."
    )
    initial_adaptation: Number | None = Field(default=None, description="Adaptation before the first step; null: 0.")


class ExponentialTaps(Strict):
    """amplitude * alpha**k for k = 0, 1, ..."""

    kind: Literal["exponential"]
    alpha: float = Field(ge=0, le=1, description="Decay in one step.")
    amplitude: float = Field(default=1.0, description="Value at k = 0; negative for a reset that inhibits.")


class AlphaTaps(Strict):
    """amplitude * (k / tau) * exp(1 - k / tau) for k = 0, 1, ..."""

    kind: Literal["alpha"]
    tau: float = Field(gt=0, description="Time of the largest value, in steps.")
    amplitude: float = Field(default=1.0, description="Largest value; negative for a reset that inhibits.")


class SlayerRefractoryTaps(Strict):
    """SLAYER's refractory kernel: amplitude * ((k + 1) / tau) * exp(1 - (k + 1) / tau) for k = 0, 1, ..."""

    kind: Literal["slayer_refractory"]
    tau: float = Field(gt=0, description="Time of the largest value behind the spike, in steps.")
    amplitude: float = Field(description="Largest value, negative: SLAYER's -scaleRef theta.")


def _by(field: str, kinds: tuple[str, ...], expected: str, default: str | None = None) -> Discriminator:
    """Tells the members of a union apart by a field; an object without it is of the default."""

    def tag(value: object) -> str | None:
        kind = value.get(field, default) if isinstance(value, dict) else None
        return f"<{kind}>" if kind in kinds else None

    return Discriminator(tag, custom_error_type="expected", custom_error_message=expected)


ResetKernel = Annotated[
    Annotated[ExponentialTaps, Tag("<exponential>")]
    | Annotated[AlphaTaps, Tag("<alpha>")]
    | Annotated[SlayerRefractoryTaps, Tag("<slayer_refractory>")]
    | Annotated[TensorName, Tag("<tensor>")],
    _by(
        "kind",
        ("exponential", "alpha", "slayer_refractory", "tensor"),
        "a tensor, or an object whose kind is exponential, alpha or slayer_refractory",
        default="tensor",
    ),
]


class SrmNeuron(Strict):
    """Spike response model with any causal reset kernel."""

    model: Literal["srm"]
    threshold: Number = Field(default=1.0, description="Membrane potential from which the neuron fires.")
    reset_kernel: ResetKernel | None = Field(
        default=None,
        description="Effect of a spike on the membrane, from the next step on; null: the tensor `reset_kernel`.",
    )


Neuron = Annotated[
    Annotated[LifNeuron, Tag("<lif>")]
    | Annotated[IfNeuron, Tag("<if>")]
    | Annotated[CubaLifNeuron, Tag("<cuba_lif>")]
    | Annotated[AlifNeuron, Tag("<alif>")]
    | Annotated[SrmNeuron, Tag("<srm>")],
    _by("model", NEURONS, "an object whose model is lif, if, cuba_lif, alif or srm"),
]


class SurrogateParams(Strict):
    """Stands in for the derivative of the spike with respect to the membrane."""

    kind: SurrogateKind = "exponential"
    slope: float | None = Field(default=None, gt=0, description="Steepness; null: the default of the kind.")
    scale: float = Field(default=1.0, description="Factor on the derivative.")


class OutputFilter(Strict):
    """The loss reads eps * s with eps_k = alpha**k, and `grad_output` is dL/d(eps * s)."""

    alpha: float = Field(ge=0, le=1, description="Decay of the filter in one step.")


class Params(Strict):
    """Parameters of one gradient request."""

    neuron: Neuron
    surrogate: SurrogateParams = SurrogateParams()
    time_dim: int = Field(default=1, ge=-8, le=7, description="The axis of time.")
    output_filter: OutputFilter | None = Field(
        default=None, description="A filter between the spikes and the loss, or null."
    )
    result_dtype: FloatName | None = Field(
        default=None,
        description="dtype of the response tensors but `state`; null: that of membrane, input, psp or weight.",
    )
    wrt: list[Parameter] = Field(default=[], description="Neuron parameters whose gradient is wanted too.")
    return_: list[Trace] = Field(
        default=[],
        alias="return",
        description="Traces that are wanted too, and the `state` after the last step of an input: membrane, spikes, "
        "current, adaptation and refractory steps left, each of the shape of the membrane without time.",
    )


def parse_params(params: Mapping[str, Any]) -> Params:
    """The parameters of a gradient request. Raises as `parse` does."""
    return parse(Params, params)


def parse(model: type[Model], params: Mapping[str, Any]) -> Model:
    """Parameters, checked.

    Raises:
        ServiceError: invalid: with a fault for each wrong value, up to MAX_FAULTS.
    """
    try:
        return model.model_validate(params)
    except ValidationError as error:
        found = error.errors(include_url=False)
        faults = tuple(_fault(entry) for entry in found[:MAX_FAULTS])
        more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
        raise ServiceError("invalid", f"{faults[0].sentence}{more}", faults) from None


#: The accepted values by pydantic's type of error, in words that go on from "must be"; filled in from its context.
_EXPECTED = {
    "missing": "present",
    "extra_forbidden": "absent (unknown field)",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer of a usual size",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "list_type": "a list",
    "too_long": "of at most {max_length} elements",
    "too_short": "of at least {min_length} elements",
    "dict_type": "an object",
    "model_type": "an object",
    "path_type": "a path",
}


def expected(error: ErrorDetails) -> str:
    """The accepted values. Validators of our own say it in the message."""
    known = _EXPECTED.get(error["type"])
    return error["msg"] if known is None else known.format(**error.get("ctx", {}))


def _fault(error: ErrorDetails) -> Fault:
    pointer = "/params"
    for part in error["loc"]:
        if not str(part).startswith("<"):
            pointer += "/" + str(part).replace("~", "~0").replace("/", "~1")
    if error["type"] == "missing":
        return Fault(pointer, expected(error), "nothing")
    shown = repr(error["input"])
    return Fault(pointer, expected(error), shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "...")
