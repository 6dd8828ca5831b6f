"""Schemas of messages and answers in the JSON form, for the document: bodies are decoded by `exodus_client.wire`."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from exodus_client.wire import DTYPES
from exodus_service.gradients.params import Params
from exodus_service.http.problem_json import KINDS, Category


class FaultDocument(BaseModel):
    """A wrong value of the request: `pointer` must be `expected`, got `got`."""

    pointer: str = Field(description="JSON pointer into the body; /headers/NAME for a header.")
    expected: str
    got: str


class ProblemDocument(BaseModel):
    """An error, RFC 9457."""

    type: str = Field(description="URN of the kind of problem.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="Path of the request.")
    code: str = Field(description="Stable name of the kind of problem.", json_schema_extra={"enum": list(KINDS)})
    category: Category = Field(description="Who can do something about it.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    request_id: str
    errors: list[FaultDocument]


class JsonTensor(BaseModel):
    """A tensor in the JSON form."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")
    dtype: str = Field(json_schema_extra={"enum": list(DTYPES)})
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=8)
    encoding: str = Field(default="raw", json_schema_extra={"enum": ["raw", "events"]})
    data: Any = Field(description='Nested lists. NaN and infinities are the strings "NaN", "Infinity", "-Infinity".')


class JsonRequest(BaseModel):
    """A gradient request in the JSON form; the msgpack forms have the same members."""

    model_config = ConfigDict(extra="forbid")

    v: int = Field(json_schema_extra={"const": 1})
    params: Params
    tensors: list[JsonTensor] = Field(max_length=64)


class GradientInfo(BaseModel):
    """Params of the answer to a gradient request."""

    method: str
    device: str
    grad_norms: dict[str, float] = Field(description="L2 norm of each gradient, by the name of its tensor.")


class JsonAnswer(BaseModel):
    """The answer to a gradient request in the JSON form."""

    v: int = Field(json_schema_extra={"const": 1})
    params: GradientInfo
    tensors: list[JsonTensor]


class ParameterInfo(BaseModel):
    """A parameter of a model."""

    name: str
    shape: list[int]


class ModelInfo(BaseModel):
    """Description and state of a model."""

    id: str
    name: str
    sequence: int = Field(description="Number of the last completed training call; 0: none.")
    durable: int | None = Field(description="Sequence of the newest checkpoint; null without a state_dir.")
    durable_every: int
    network: dict[str, Any]
    optimizer: dict[str, Any]
    seed: int
    parameters: list[ParameterInfo] = Field(description="In the order of flat weights and gradients.")
    dtype: str
    nbytes: int = Field(description="Bytes of the parameters.")
    in_memory: bool = Field(description="False if evicted; the next call loads it from disk.")
    created: str = Field(description="Time, ISO 8601.")
    writer: str | None = Field(description="Name that the client of the last training call gave itself.")
    durable_error: str | None = Field(
        description="Error of the last save, or of a checkpoint found damaged; null after a successful save."
    )


class LoadInfo(ModelInfo):
    """A model after a state, or weights, were loaded; the lists are there for weights."""

    loaded: list[str] | None = Field(default=None, description="Names of the weights that were replaced.")
    missing: list[str] | None = Field(default=None, description="Names of weights wanted that the file has not.")
    unexpected: list[str] | None = Field(default=None, description="Names that the network does not have.")


class ModelList(BaseModel):
    """All models of the caller."""

    models: list[ModelInfo]


class StatisticsInfo(BaseModel):
    """Numbers about one layer in one pass; those that it has."""

    firing_rate: float | None = Field(default=None, description="Spikes for each neuron and step.")
    silent: float | None = Field(default=None, description="Share of the neurons that never fire.")
    synaptic_operations: int | None = Field(default=None, description="Inputs that are not 0, times their fan-out.")
    dense_operations: int | None = Field(default=None, description="The same if no input were 0.")
    grad_norm: float | None = Field(default=None, description="L2 norm of the gradient of all its parameters.")


_STATISTICS = Field(default=None, description="By the name of the layer; only where they were asked for.")


class TrainingInfo(BaseModel):
    """Params of the answer to a training call; with `gradients`, a flat tensor of that name comes with it.

    With `record`, a tensor (batch, time, ...) comes for each name in it.
    """

    sequence: int
    durable: int | None = Field(description="Sequence of the newest checkpoint; earlier calls need not be sent again.")
    durable_error: str | None
    metrics: dict[str, float] = Field(description="Names end in :mean or :sum, which is how to combine several calls.")
    grad_norms: dict[str, float] = Field(description="L2 norm of each gradient before clipping, and `total`.")
    device: str
    statistics: dict[str, StatisticsInfo] | None = _STATISTICS


class ForwardInfo(BaseModel):
    """Params of the answer to a forward pass of a model. With `record`, a tensor comes for each name in it."""

    sequence: int
    durable: int | None
    metrics: dict[str, float] | None = None
    context: str | None = None
    expires_in_s: float | None = Field(default=None, description="Lifetime of the context while unused, in seconds.")
    statistics: dict[str, StatisticsInfo] | None = _STATISTICS


class LayerForwardInfo(BaseModel):
    """Params of the answer to a forward pass of a layer."""

    context: str
    expires_in_s: float = Field(description="Lifetime of the context while unused, in seconds.")
    nbytes: int = Field(description="Bytes of the context.")
    device: str


class SaveInfo(BaseModel):
    """Sequence of a model and of its newest checkpoint."""

    sequence: int
    durable: int | None


class RunningInfo(BaseModel):
    """A call that has not finished."""

    id: str
    status: str


def message(name: str, params: type[BaseModel]) -> type[BaseModel]:
    """Schema of a message with the given params, in the JSON form."""
    return create_model(
        name,
        __config__=ConfigDict(extra="forbid"),
        __doc__=f"{params.__doc__} In the JSON form.",
        v=(int, Field(json_schema_extra={"const": 1})),
        params=(params, ...),
        tensors=(list[JsonTensor], Field(max_length=64)),
    )
