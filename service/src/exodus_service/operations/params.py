"""The `params` of calls on models and layers. Networks, optimisers and losses in them are checked by exodus_core."""

from typing import Annotated, Any, Literal

from pydantic import Field

from exodus_service.gradients.params import Method, Neuron, Parameter, Strict, SurrogateParams, Trace
from exodus_service.models.model_spec import LARGEST_FACTOR
from exodus_service.operations.recording import ObservedParams

_LARGEST = 2**63 - 1

_LARGEST_FLOAT32 = 3.4e38

Sequence = Annotated[int, Field(ge=1, le=_LARGEST)]
LossDescription = Annotated[
    Any,
    Field(
        description="Name of a loss, or an object with its `kind` and options; or a list of such, whose objects may "
        "have a `weight` and a `name`: their sum. See docs/networks.md.",
        json_schema_extra={
            "anyOf": [
                {"type": "string"},
                {"type": "object"},
                {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}},
                {"type": "null"},
            ]
        },
    ),
]


class CreateParams(Strict):
    """Parameters of a new model."""

    id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="Id of the caller's choice, so that the call can be sent again; null: made by the service.",
    )
    network: dict[str, Any] = Field(description="Description of the network; see docs/networks.md.")
    optimizer: dict[str, Any] = Field(description="`kind` and options of the optimiser; see docs/networks.md.")
    seed: int = Field(default=0, ge=0, le=_LARGEST, description="Of the initial weights and of dropout.")
    durable_every: int = Field(
        default=10, ge=1, le=2**31 - 1, description="Training calls from one save of the state to the next."
    )
    name: str = Field(default="", max_length=256, description="A label for people.")


class ForwardParams(ObservedParams):
    """Parameters of a forward pass, which changes nothing."""

    mode: Literal["eval", "train"] | None = Field(
        default=None, description="Whether batch norm and dropout act as in training; null: `train` with a context."
    )
    context: bool = Field(default=False, description="Whether to keep what a backward pass needs; then mode is train.")
    return_: list[Literal["outputs"]] = Field(
        default=["outputs"], alias="return", description="Tensors that are wanted."
    )
    loss: LossDescription = None
    after: int | None = Field(
        default=None, ge=0, le=_LARGEST, description="Run after the training call of this number, and wait for it."
    )


class _Numbered(Strict):
    sequence: Sequence = Field(description="Number of this call: 1 for the first on a new model, then one more each.")
    writer: str | None = Field(default=None, max_length=64, description="Who calls, for messages to other clients.")
    gradients: bool = Field(
        default=False, description="Whether to return the accumulated gradients, flat, as the optimiser takes them."
    )
    non_finite: Literal["refuse", "apply"] = Field(
        default="refuse", description="What to do where the loss or a gradient is infinite or not a number."
    )


Names = Annotated[list[str], Field(max_length=4096)]
Rates = dict[str, Annotated[float, Field(ge=0, le=LARGEST_FACTOR)]]


class _Frozen(Strict):
    frozen: Names | None = Field(
        default=None, description="Layers or parameters that are not trained in this call; null: the optimiser's."
    )


class _Backward(_Frozen, ObservedParams):
    accumulate: Literal["calls", "samples"] = Field(
        default="calls", description="What the call counts as, and its gradients are multiplied by: 1, or its samples."
    )
    loss: LossDescription = None
    context: str | None = Field(
        default=None, max_length=256, description="Of a forward pass; the backward pass goes on from there."
    )


class _Update(_Frozen):
    average: bool = Field(
        default=False, description="Whether to divide the accumulated gradients by what the calls count as in all."
    )
    lr_scale: Rates | None = Field(
        default=None,
        description="Factors on the learning rate, by layer or parameter; with `lr_of` in place of the optimiser's.",
    )
    lr_of: Rates | None = Field(
        default=None, description="Learning rates in place of `lr`, by layer or parameter; see `lr_scale`."
    )
    lr: float | None = Field(
        default=None, ge=0, le=LARGEST_FACTOR, description="Learning rate of this step; null: the optimiser's."
    )
    weight_decay: float | None = Field(
        default=None, ge=0, le=LARGEST_FACTOR, description="Of this step; null: the optimiser's."
    )
    clip_norm: float | None = Field(default=None, gt=0, description="Largest norm of all gradients; null: any.")
    clip_value: float | None = Field(
        default=None, gt=0, le=_LARGEST_FLOAT32, description="Largest magnitude of an element; null: any."
    )


class ForwardBackwardParams(_Backward, _Numbered):
    """Parameters of a call that adds to the accumulated gradients."""


class OptimStepParams(_Update, _Numbered):
    """Parameters of a step of the optimiser."""

    skip: bool = Field(
        default=False,
        description="Change nothing: the call takes the number of one that will not be made, for those behind it.",
    )


class StepParams(_Update, _Backward, _Numbered):
    """Parameters of a call that computes gradients and makes a step of the optimiser."""


TrainingParams = ForwardBackwardParams | OptimStepParams | StepParams


class LayerForwardParams(Strict):
    """Parameters of the forward pass of one layer."""

    neuron: Neuron
    surrogate: SurrogateParams = SurrogateParams()
    method: Method = "exodus"
    time_dim: int = Field(default=1, ge=-8, le=7, description="The axis of time.")
    return_: list[Trace] = Field(
        default=["spikes"], alias="return", description="Traces that are wanted, or the `state` after the last step."
    )


class LayerBackwardParams(Strict):
    """Parameters of the backward pass of one layer."""

    context: str = Field(max_length=256, description="Of the forward pass.")
    wrt: list[Parameter] = Field(default=[], description="Neuron parameters whose gradient is wanted too.")
    keep: bool = Field(default=False, description="Whether the context is kept for another backward pass.")
