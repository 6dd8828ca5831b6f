"""Second-order and adaptive LIF neurons as modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from exodus_core import arguments, coupled
from exodus_core.coupled import CoupledOptions, required_decay
from exodus_core.nn.stateful import StatefulNeuron
from exodus_core.ops import COUPLED_STATES
from exodus_core.pieces.carried import State
from exodus_core.pieces.continuation import continued_lif
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate


class CoupledNeuron(StatefulNeuron):
    """Neurons of `exodus_core.coupled`: parameters that may be trained, and settings."""

    shown: ClassVar[Mapping[str, Any]] = {
        "synapse_delayed": False,
        "reset": None,
        "decay_reset": False,
        "max_spikes": 1,
        "detach_reset": False,
        "refractory": 0,
        "surrogate": None,
        "method": None,
        "return_membrane": False,
        **StatefulNeuron.shown,
    }
    #: Parameters that must not be None.
    needed: ClassVar[tuple[str, ...]] = ("alpha",)
    alpha: float | Tensor
    state_names = COUPLED_STATES

    def __init__(
        self,
        *,
        time_dim: int,
        trainable: Collection[str],
        stateful: bool,
        return_membrane: bool,
        settings: dict[str, Any],
        **parameters: float | Tensor | None,
    ) -> None:
        arguments.check_method(settings["method"])
        arguments.check_surrogate(settings["surrogate"])
        arguments.reset_code(settings["reset"], settings["decay_reset"], settings["max_spikes"])
        arguments.check_reset_to(settings["reset"], parameters["reset_to"])
        settings["max_spikes"] = int(settings["max_spikes"])
        settings["refractory"] = arguments.refractory_steps(settings["refractory"])
        for name, value in parameters.items():
            if value is None:
                if name in self.needed:
                    required_decay(name, value)
                continue
            arguments.check_decay(name, value) if name in arguments.DECAYS else arguments.check_value(name, value)
            if isinstance(value, Tensor):
                arguments.check_values(name, value, positive=name == "threshold" and settings["max_spikes"] > 1)
        arguments.check_threshold(parameters["threshold"], settings["max_spikes"])  # type: ignore[arg-type]
        super().__init__(trainable, time_dim, stateful, **parameters)
        self.return_membrane = return_membrane
        self._settings = settings
        for name, value in settings.items():
            setattr(self, name, value)
        coupled.check_variables(coupled.with_defaults(self._options()))

    def _options(self) -> CoupledOptions:
        """The keyword arguments of `coupled.neurons` but for alpha, the initial state and time_dim."""
        given = {name: getattr(self, name) for name in (*self._parameter_names, *self._settings)}
        del given["alpha"]
        return given  # type: ignore[return-value]

    def _from_rest(self, x: Tensor) -> tuple[Tensor, ...]:
        options = self._options()
        options["time_dim"] = self.time_dim
        return coupled.neurons(x, self.alpha, **options)[:2]

    def _continued(self, x: Tensor, state: State | None, time_dim: int) -> tuple[tuple[Tensor, ...], State | None]:
        return continued_lif(x, self.alpha, state, time_dim, self._options())

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Spikes, or (spikes, membrane) with return_membrane, with the shape and dtype of the weighted input x."""
        spikes, membrane = self._computed(x)
        return (spikes, membrane) if self.return_membrane else spikes


class CubaLIF(CoupledNeuron):
    """Second-order LIF neurons, current-based; the arguments are those of `exodus_core.cuba_lif`.

    Args:
        trainable: names of "alpha", "synapse_alpha", "synapse_gain", "threshold", "reset_by", "min_membrane",
            "reset_to" that become torch.nn.Parameter; decays are kept in [0, 1] and the threshold above 0.001, as those
            of `LIF`.
        stateful: start each call from the state that the last one ended with, as `LIF` does: membrane, spikes, current,
            adaptation (zeros) and steps of the refractory period left.
        return_membrane: return (spikes, membrane) instead of the spikes.

    Raises:
        ArgumentTypeError, ArgumentError, RuntimeError: as `LIF`.
    """

    needed = ("alpha", "synapse_alpha")

    def __init__(
        self,
        alpha: float | Tensor,
        synapse_alpha: float | Tensor,
        *,
        synapse_gain: float | Tensor = 1.0,
        synapse_delayed: bool = False,
        threshold: float | Tensor = 1.0,
        reset: str = "subtract",
        reset_by: float | Tensor | None = None,
        decay_reset: bool = False,
        surrogate: Surrogate = DEFAULT_SURROGATE,
        method: str = "exodus",
        min_membrane: float | Tensor | None = None,
        max_spikes: int = 1,
        reset_to: float | Tensor | None = None,
        detach_reset: bool = False,
        refractory: int = 0,
        time_dim: int = 1,
        trainable: Collection[str] = (),
        stateful: bool = False,
        return_membrane: bool = False,
    ) -> None:
        super().__init__(
            alpha=alpha,
            synapse_alpha=synapse_alpha,
            synapse_gain=synapse_gain,
            threshold=threshold,
            reset_by=reset_by,
            min_membrane=min_membrane,
            reset_to=reset_to,
            time_dim=time_dim,
            trainable=trainable,
            stateful=stateful,
            return_membrane=return_membrane,
            settings={
                "synapse_delayed": bool(synapse_delayed),
                "reset": reset,
                "decay_reset": decay_reset,
                "surrogate": surrogate,
                "method": method,
                "max_spikes": max_spikes,
                "detach_reset": bool(detach_reset),
                "refractory": refractory,
            },
        )


class ALIF(CoupledNeuron):
    """Adaptive LIF neurons; the arguments are those of `exodus_core.alif`.

    Args:
        trainable: names of "alpha", "adapt_alpha", "adapt_by", "adapt_membrane", "adapt_threshold", "adapt_current",
            "synapse_alpha", "synapse_gain", "threshold", "reset_by", "min_membrane", "reset_to" that become
            torch.nn.Parameter; decays are kept in [0, 1] and the threshold above 0.001, as those of `LIF`.
        stateful: start each call from the state that the last one ended with, as `LIF` does: membrane, spikes, current,
            adaptation and steps of the refractory period left.
        return_membrane: return (spikes, membrane) instead of the spikes.

    Raises:
        ArgumentTypeError, ArgumentError, RuntimeError: as `LIF`.
    """

    needed = ("alpha", "adapt_alpha")

    def __init__(
        self,
        alpha: float | Tensor,
        adapt_alpha: float | Tensor,
        *,
        adapt_by: float | Tensor = 1.0,
        adapt_membrane: float | Tensor = 0.0,
        adapt_threshold: float | Tensor = 0.0,
        adapt_current: float | Tensor = 0.0,
        synapse_alpha: float | Tensor | None = None,
        synapse_gain: float | Tensor = 1.0,
        synapse_delayed: bool = False,
        threshold: float | Tensor = 1.0,
        reset: str = "subtract",
        reset_by: float | Tensor | None = None,
        decay_reset: bool = False,
        surrogate: Surrogate = DEFAULT_SURROGATE,
        method: str = "exodus",
        min_membrane: float | Tensor | None = None,
        max_spikes: int = 1,
        reset_to: float | Tensor | None = None,
        detach_reset: bool = False,
        refractory: int = 0,
        time_dim: int = 1,
        trainable: Collection[str] = (),
        stateful: bool = False,
        return_membrane: bool = False,
    ) -> None:
        super().__init__(
            alpha=alpha,
            adapt_alpha=adapt_alpha,
            adapt_by=adapt_by,
            adapt_membrane=adapt_membrane,
            adapt_threshold=adapt_threshold,
            adapt_current=adapt_current,
            synapse_alpha=synapse_alpha,
            synapse_gain=synapse_gain,
            threshold=threshold,
            reset_by=reset_by,
            min_membrane=min_membrane,
            reset_to=reset_to,
            time_dim=time_dim,
            trainable=trainable,
            stateful=stateful,
            return_membrane=return_membrane,
            settings={
                "synapse_delayed": bool(synapse_delayed),
                "reset": reset,
                "decay_reset": decay_reset,
                "surrogate": surrogate,
                "method": method,
                "max_spikes": max_spikes,
                "detach_reset": bool(detach_reset),
                "refractory": refractory,
            },
        )
