"""The kinds of layers with neurons, lif, if, srm and exp_leak, and the objects in their fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from exodus_core import surrogate
from exodus_core.arguments import LARGEST_REFRACTORY, METHODS, NEURON_RESETS, is_coupled
from exodus_core.kernels import AlphaKernel, ExponentialKernel, SlayerRefractory
from exodus_core.network.layers import Layer, Parameters, Shape, text
from exodus_core.pieces.carried import SRM_IN_PIECES
from exodus_core.schema import (
    Check,
    Place,
    array,
    boolean,
    choice,
    extent,
    integer,
    nested,
    number,
    optional,
    plain,
    read_record,
    record,
    some_of,
)

_ALPHA = nested(number(0, 1))
_POSITIVE = nested(number(0, above=True))
_ANY = nested(number())


@dataclass(frozen=True)
class SurrogateData:
    """Stands in for the derivative of the spikes with respect to the membrane; see `exodus_core.surrogate`."""

    kind: Annotated[str, choice(*surrogate.KINDS), "which function"] = "exponential"
    slope: Annotated[float | None, optional(number(0, above=True)), "steepness; null: the default of the kind"] = None
    scale: Annotated[float, number(), "factor on the derivative"] = 1.0

    def __post_init__(self) -> None:
        if self.slope is None:
            object.__setattr__(self, "slope", surrogate.KINDS[self.kind]().slope)

    def made(self) -> surrogate.Surrogate:
        """The surrogate that it describes."""
        assert self.slope is not None
        return surrogate.KINDS[self.kind](self.slope, self.scale)


@dataclass(frozen=True)
class Recurrent:
    """Recurrent connections around a neuron layer: x[t] + W s[t-1] + b instead of x[t]."""

    bias: Annotated[bool, boolean, "add b"] = False
    gain: Annotated[float, number(), "factor on the initial weights"] = 1.0


@dataclass(frozen=True)
class ExponentialTaps:
    """amplitude alpha^k, k = 0, 1, ..."""

    kind: ClassVar[str] = "exponential"

    alpha: Annotated[float, number(0, 1), "decay in one step"]
    amplitude: Annotated[float, number(), "value at k = 0; negative for a reset that inhibits"] = 1.0

    def made(self) -> ExponentialKernel:
        """The kernel that it describes."""
        return ExponentialKernel(self.alpha, self.amplitude)


@dataclass(frozen=True)
class AlphaTaps:
    """amplitude (k/tau) exp(1 - k/tau), k = 0, 1, ...: SLAYER's response kernel."""

    kind: ClassVar[str] = "alpha"

    tau: Annotated[float, number(0, above=True), "time of the largest value, in steps"]
    amplitude: Annotated[float, number(), "the largest value; negative for a reset that inhibits"] = 1.0

    def made(self) -> AlphaKernel:
        """The kernel that it describes."""
        return AlphaKernel(self.tau, self.amplitude)


@dataclass(frozen=True)
class SlayerRefractoryTaps:
    """amplitude ((k+1)/tau) exp(1 - (k+1)/tau), k = 0, 1, ...: SLAYER's refractory kernel, as a reset_kernel."""

    kind: ClassVar[str] = "slayer_refractory"

    tau: Annotated[float, number(0, above=True), "time of the largest value behind the spike, in steps"]
    amplitude: Annotated[float, number(), "the largest value, negative: SLAYER's -scaleRef theta"]

    def made(self) -> SlayerRefractory:
        """The kernel that it describes."""
        return SlayerRefractory(self.tau, self.amplitude)


_KERNELS: dict[str, type[Any]] = {cls.kind: cls for cls in (ExponentialTaps, AlphaTaps, SlayerRefractoryTaps)}
_TAPS = array(number())
_KERNEL_WANTED = "a list of taps, or an object whose kind is exponential, alpha or slayer_refractory"


def _read_kernel(value: Any, place: Place) -> Any:
    if isinstance(value, list | tuple):
        return _TAPS.read(value, place)
    if not isinstance(value, Mapping):
        raise place.refuse(_KERNEL_WANTED, value)
    kind = choice(*_KERNELS).read(value.get("kind"), place.at("kind"))
    return read_record(_KERNELS[kind], value, place, ("kind",))


_KERNEL = Check(_KERNEL_WANTED, _read_kernel)


class _Neurons(Layer):
    fires: ClassVar[bool] = True
    has_membrane: ClassVar[bool] = True

    def _check_broadcast(self, shape: Shape, place: Place, *names: str) -> None:
        for name in names:
            values = extent(getattr(self, name))
            tail = shape[len(shape) - len(values) :]
            fits = len(values) <= len(shape) and all(v in (1, s) for v, s in zip(values, tail, strict=True))
            if not fits:
                raise place.at(name).refuse_as(
                    f"values that broadcast to the neurons, {text(shape)}", f"values of shape {text(values)}"
                )


def _read_recurrent(value: Any, place: Place) -> Recurrent | None:
    return None if value is None else read_record(Recurrent, value, place)


_RECURRENT = Check("an object, or null", _read_recurrent)
_RESET = choice(*NEURON_RESETS)
_METHOD = choice(*METHODS)
_SURROGATE = record(SurrogateData)
_DEFAULT_SURROGATE = SurrogateData()
_NOT_COUPLED = "false with reset value, a detached reset to zero, refractory steps, a synaptic current or an adaptation"


@dataclass(frozen=True, kw_only=True)
class If(_Neurons):
    """Integrate-and-fire neurons: lif with alpha = 1."""

    kind: ClassVar[str] = "if"
    #: Fields that are parameters of the neurons, which may differ between them.
    values: ClassVar[tuple[str, ...]] = ("threshold", "reset_by", "min_membrane", "reset_to")
    #: They have a synaptic current or an adaptation.
    has_variables: ClassVar[bool] = False
    left_out_by_default: ClassVar[tuple[str, ...]] = ("bound_after_reset", "reset_to", "detach_reset", "refractory")

    threshold: Annotated[Any, _POSITIVE, "membrane from which a neuron fires"] = 1.0
    reset: Annotated[str, _RESET, "what a spike does to the membrane"] = "subtract"
    reset_by: Annotated[Any, optional(_ANY), "what a spike subtracts; null: the threshold"] = None
    decay_reset: Annotated[bool, boolean, "apply the reset before the decay"] = False
    min_membrane: Annotated[Any, optional(_ANY), "lower bound of the membrane; null: none"] = None
    bound_after_reset: Annotated[bool, boolean, "it bounds what the reset leaves to the next step"] = False
    max_spikes: Annotated[int, integer(1), "most spikes of a neuron in one step"] = 1
    surrogate: Annotated[SurrogateData, _SURROGATE, "f', the surrogate derivative"] = _DEFAULT_SURROGATE
    method: Annotated[str, _METHOD, "how gradients are computed"] = "exodus"
    reset_to: Annotated[Any, optional(_ANY), "value that reset value sets the membrane to"] = None
    detach_reset: Annotated[bool, boolean, "no gradient passes through the spikes to the reset"] = False
    refractory: Annotated[int, integer(0, LARGEST_REFRACTORY), "steps after a spike in which the membrane waits"] = 0
    trainable: Annotated[
        tuple[str, ...], some_of("threshold", "reset_by"), "which of threshold, reset_by are learned"
    ] = ()
    recurrent: Annotated[Recurrent | None, _RECURRENT, "recurrent connections; null: none"] = None

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        (shape,) = shapes
        self._check_broadcast(shape, place, *self.values)
        if self.reset in ("zero", "value") and self.max_spikes > 1:
            raise place.at("max_spikes").refuse(f"1 with reset {self.reset}", self.max_spikes)
        if (self.reset == "value") != (self.reset_to is not None):
            expected = "a value with reset value, and null with others"
            raise place.at("reset_to").refuse(expected, plain(self.reset_to))
        if self.bound_after_reset and self.is_coupled:
            raise place.at("bound_after_reset").refuse(_NOT_COUPLED, True)
        if "reset_by" in self.trainable and (self.reset_by is None or self.reset != "subtract"):
            raise place.at("trainable").refuse_as(
                "a list with reset_by only if that has a value and reset is subtract", "reset_by"
            )
        return shape

    @property
    def is_coupled(self) -> bool:
        """True for neurons whose state has more parts than a membrane and spikes."""
        return self.has_variables or is_coupled(self.reset, self.detach_reset, self.refractory, self.method)

    def parameters(self, shape: Shape) -> Parameters:
        own = tuple((name, extent(getattr(self, name))) for name in self.trainable)
        if self.recurrent is None:
            return own
        n = math.prod(shape)
        weight = ("recurrent.weight", (n, n))
        return (*own, weight, ("recurrent.bias", (n,))) if self.recurrent.bias else (*own, weight)


@dataclass(frozen=True, kw_only=True)
class Lif(If):
    """Leaky integrate-and-fire neurons, as `exodus_core.lif`."""

    kind: ClassVar[str] = "lif"
    values: ClassVar[tuple[str, ...]] = ("alpha", *If.values)

    alpha: Annotated[Any, _ALPHA, "decay of the membrane in one step, exp(-dt/tau)"]
    trainable: Annotated[
        tuple[str, ...], some_of("alpha", "threshold", "reset_by"), "which of alpha, threshold, reset_by are learned"
    ] = ()


_LEARNT = ("alpha", "threshold", "reset_by")
_OF_SYNAPSE = ("synapse_alpha", "synapse_gain")
_OF_ADAPTATION = ("adapt_alpha", "adapt_by", "adapt_membrane", "adapt_threshold", "adapt_current")


@dataclass(frozen=True, kw_only=True)
class CubaLif(Lif):
    """Second-order LIF neurons, current-based, as `exodus_core.cuba_lif`."""

    kind: ClassVar[str] = "cuba_lif"
    values: ClassVar[tuple[str, ...]] = (*Lif.values, *_OF_SYNAPSE)

    has_variables: ClassVar[bool] = True

    synapse_alpha: Annotated[Any, _ALPHA, "decay of the synaptic current in one step, exp(-dt/tau_syn)"]
    synapse_gain: Annotated[Any, _ANY, "factor of the current in the membrane"] = 1.0
    synapse_delayed: Annotated[bool, boolean, "the membrane sees the current of the step before"] = False
    trainable: Annotated[tuple[str, ...], some_of(*_LEARNT, *_OF_SYNAPSE), "which parameters are learned"] = ()


@dataclass(frozen=True, kw_only=True)
class Alif(Lif):
    """Adaptive LIF neurons, as `exodus_core.alif`."""

    kind: ClassVar[str] = "alif"
    values: ClassVar[tuple[str, ...]] = (*Lif.values, *_OF_SYNAPSE, *_OF_ADAPTATION)

    has_variables: ClassVar[bool] = True

    adapt_alpha: Annotated[Any, _ALPHA, "decay of the adaptation in one step, exp(-dt/tau_adapt)"]
    adapt_by: Annotated[Any, _ANY, "what a spike adds to the adaptation"] = 1.0
    adapt_membrane: Annotated[Any, _ANY, "what the membrane adds to the adaptation"] = 0.0
    adapt_threshold: Annotated[Any, _ANY, "how far the adaptation raises the threshold"] = 0.0
    adapt_current: Annotated[Any, _ANY, "how far the adaptation is subtracted from the input"] = 0.0
    synapse_alpha: Annotated[Any, optional(_ALPHA), "decay of the synaptic current in one step; null: no synapse"] = (
        None
    )
    synapse_gain: Annotated[Any, _ANY, "factor of the current in the membrane"] = 1.0
    synapse_delayed: Annotated[bool, boolean, "the membrane sees the current of the step before"] = False
    trainable: Annotated[
        tuple[str, ...], some_of(*_LEARNT, *_OF_SYNAPSE, *_OF_ADAPTATION), "which parameters are learned"
    ] = ()

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        if self.max_spikes > 1 and self.adapt_threshold != 0:
            raise place.at("max_spikes").refuse("1 with adapt_threshold", self.max_spikes)
        if self.synapse_alpha is None:
            for name in _OF_SYNAPSE:
                if name in self.trainable:
                    expected = f"a list with {name} only if synapse_alpha has a value"
                    raise place.at("trainable").refuse_as(expected, name)
            for name, default in (("synapse_gain", 1.0), ("synapse_delayed", False)):
                if getattr(self, name) != default:
                    expected = f"{'1' if name == 'synapse_gain' else 'false'} without a synapse_alpha"
                    raise place.at(name).refuse(expected, plain(getattr(self, name)))
        return super().output_shape(shapes, place)


@dataclass(frozen=True, kw_only=True)
class Srm(_Neurons):
    """Spike-response neurons, as `exodus_core.srm`: the input is filtered by response_kernel, spikes reset."""

    kind: ClassVar[str] = "srm"
    needs_all_steps: ClassVar[str | None] = SRM_IN_PIECES

    reset_kernel: Annotated[Any, _KERNEL, "effect of a spike on the membrane, from the next step on"]
    response_kernel: Annotated[Any, optional(_KERNEL), "filter of the input; null: none"] = None
    threshold: Annotated[Any, _POSITIVE, "membrane from which a neuron fires"] = 1.0
    surrogate: Annotated[SurrogateData, _SURROGATE, "f', the surrogate derivative"] = _DEFAULT_SURROGATE
    method: Annotated[str, _METHOD, "how gradients are computed"] = "exodus"

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        self._check_broadcast(shapes[0], place, "threshold")
        return shapes[0]


@dataclass(frozen=True, kw_only=True)
class ExpLeak(_Neurons):
    """A leaky integrator without spikes, u[t] = alpha u[t-1] + x[t]: the usual readout."""

    kind: ClassVar[str] = "exp_leak"
    fires: ClassVar[bool] = False

    alpha: Annotated[Any, _ALPHA, "decay in one step, exp(-dt/tau)"]
    trainable: Annotated[tuple[str, ...], some_of("alpha"), '["alpha"] if alpha is learned'] = ()

    def output_shape(self, shapes: tuple[Shape, ...], place: Place) -> Shape:
        self._check_broadcast(shapes[0], place, "alpha")
        return shapes[0]

    def parameters(self, shape: Shape) -> Parameters:
        return tuple((name, extent(getattr(self, name))) for name in self.trainable)
