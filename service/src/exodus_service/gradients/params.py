"""The `params` of a gradient request: every field, its meaning, and what is refused (all of it with a JSON pointer)."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails

from exodus_service.errors import MAX_FAULTS, Fault, ServiceError

Method = Literal["exodus", "slayer", "bptt"]
FloatName = Literal["float32", "float64", "float16", "bfloat16"]
SurrogateKind = Literal["exponential", "boxcar", "triangle", "fast_sigmoid", "sigmoid", "arctan", "tanh", "gaussian"]
Parameter = Literal["alpha", "threshold", "reset_by", "initial_membrane"]
Trace = Literal["spikes", "membrane"]

_SHOWN = 80
#: How pydantic words what is wanted of a text, list or number.
_WANTED = re.compile(r"(Input should be|(String|List|Data) should (have|match pattern)) (.+)", re.DOTALL)

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """Takes no other fields and no other types than those that are declared."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TensorName(Strict):
    """A value that travels as a tensor of the request."""

    tensor: str = Field(min_length=1, description="Name of the tensor.")


# Members of a union are tagged <so>, which tells them from the fields of a request in the location of an error.
def _number_or_tensor(value: object) -> str:
    return "<tensor>" if isinstance(value, dict) else "<number>"


Number = Annotated[
    Annotated[float, Tag("<number>")] | Annotated[TensorName, Tag("<tensor>")], Discriminator(_number_or_tensor)
]


class _Leaky(Strict):
    """What LIF and IF share."""

    threshold: Number = Field(default=1.0, description="Membrane potential from which the neuron fires.")
    reset: Literal["subtract", "zero", "none"] = Field(
        default="subtract", description="What a spike does to the membrane."
    )
    reset_by: Number | None = Field(default=None, description="What a spike subtracts; null: the threshold.")
    decay_reset: bool = Field(default=False, description="Whether the reset is applied before the decay.")
    initial_membrane: Number | None = Field(default=None, description="Membrane before the first step; null: 0.")
    initial_spikes: Number | None = Field(default=None, description="Spikes before the first step; null: 0.")
    min_membrane: Number | None = Field(default=None, description="Lower bound of the membrane; null: none.")
    max_spikes: int = Field(default=1, ge=1, description="Most spikes that a neuron emits in one step.")


class LifNeuron(_Leaky):
    """Leaky integrate-and-fire."""

    model: Literal["lif"]
    alpha: Number = Field(description="Decay of the membrane in one step, exp(-dt / tau).")


class IfNeuron(_Leaky):
    """Integrate-and-fire: LIF without decay."""

    model: Literal["if"]
    alpha: float = Field(default=1.0, ge=1.0, le=1.0, description="1, or absent.")


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


_KERNEL_KINDS = ("exponential", "alpha", "slayer_refractory")


def _reset_kernel(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = value.get("kind")
    if kind is None:
        return "<tensor>"
    return f"<{kind}>" if kind in _KERNEL_KINDS else None


ResetKernel = Annotated[
    Annotated[ExponentialTaps, Tag("<exponential>")]
    | Annotated[AlphaTaps, Tag("<alpha>")]
    | Annotated[SlayerRefractoryTaps, Tag("<slayer_refractory>")]
    | Annotated[TensorName, Tag("<tensor>")],
    Discriminator(
        _reset_kernel,
        custom_error_type="reset_kernel",
        custom_error_message="Input should be a tensor, or an object whose kind is "
        "exponential, alpha or slayer_refractory",
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


def _neuron(value: object) -> str | None:
    model = value.get("model") if isinstance(value, dict) else None
    return f"<{model}>" if model in ("lif", "if", "srm") else None


Neuron = Annotated[
    Annotated[LifNeuron, Tag("<lif>")] | Annotated[IfNeuron, Tag("<if>")] | Annotated[SrmNeuron, Tag("<srm>")],
    Discriminator(
        _neuron,
        custom_error_type="neuron",
        custom_error_message="Input should be an object whose model is lif, if or srm",
    ),
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
        default=None, description="dtype of the response tensors; null: that of membrane, input, psp or weight."
    )
    wrt: list[Parameter] = Field(default=[], description="Neuron parameters whose gradient is wanted too.")
    return_: list[Trace] = Field(default=[], alias="return", description="Traces that are wanted too.")


def parse_params(params: Mapping[str, Any]) -> Params:
    """The parameters of a gradient request, checked; see `parse`."""
    return parse(Params, params)


def parse(model: type[Model], params: Mapping[str, Any]) -> Model:
    """The parameters, checked; raises a ServiceError (422) that points at each value that does not fit."""
    try:
        return model.model_validate(params)
    except ValidationError as error:
        found = error.errors(include_url=False)
        faults = tuple(_fault(entry) for entry in found[:MAX_FAULTS])
        more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
        raise ServiceError("invalid", f"{faults[0].sentence}{more}", faults) from None


def wanted(message: str) -> str:
    """What pydantic wants, without its words around it."""
    found = _WANTED.fullmatch(message)
    if found is None:
        return message
    _, kind, verb, rest = found.groups()
    if kind is None:
        return rest.partition(", unable to")[0]
    what = {"String": "a text", "List": "a list"}.get(kind, "a value")
    return f"{what} of {rest}" if verb == "have" else f"{what} that matches {rest.strip(chr(39))}"


def _fault(error: ErrorDetails) -> Fault:
    """One complaint of pydantic, in our words and with a JSON pointer in place of its location."""
    pointer = "/params"
    for part in error["loc"]:
        if not str(part).startswith("<"):
            pointer += "/" + str(part).replace("~", "~0").replace("/", "~1")
    if error["type"] == "missing":
        return Fault(pointer, "a value", "nothing")
    expected = "no such field" if error["type"] == "extra_forbidden" else wanted(error["msg"])
    shown = repr(error["input"])
    return Fault(pointer, expected, shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "...")
