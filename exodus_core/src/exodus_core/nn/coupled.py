"""Second-order and adaptive LIF neurons as modules."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from exodus_core import arguments, coupled
from exodus_core.coupled import CoupledOptions
from exodus_core.nn.stateful import StatefulNeuron
from exodus_core.ops import COUPLED_STATES
from exodus_core.pieces.continuation import continued_lif
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate


class _CoupledNeuron(StatefulNeuron):
    """Neurons of `exodus_core.coupled`: parameters that may be trained, and settings."""

    alpha: float | Tensor
    state_names = COUPLED_STATES

    def __init__(
        self,
        *,
        time_dim: int,
        trainable: Collection[str],
        stateful: bool,
        settings: dict[str, Any],
        **parameters: float | Tensor | None,
    ) -> None:
        arguments.check_method(settings["method"])
        arguments.check_surrogate(settings["surrogate"])
        arguments.reset_code(settings["reset"], settings["decay_reset"], settings["max_spikes"])
        arguments.check_reset_to(settings["reset"], parameters["reset_to"])
        settings["refractory"] = arguments.refractory_steps(settings["refractory"])
        for name, value in parameters.items():
            if value is None:
                continue
            arguments.check_decay(name, value) if name in arguments.DECAYS else arguments.check_value(name, value)
            if isinstance(value, Tensor):
                arguments.check_values(name, value, positive=name == "threshold" and settings["max_spikes"] > 1)
        arguments.check_threshold(parameters["threshold"], settings["max_spikes"])  # type: ignore[arg-type]
        super().__init__(trainable, time_dim, stateful, **parameters)
        self._settings = settings
        for name, value in settings.items():
            setattr(self, name, value)

    def _options(self) -> CoupledOptions:
        """The keyword arguments of `coupled.neurons` but for alpha, the initial state and time_dim."""
        given = {name: getattr(self, name) for name in (*self._parameter_names, *self._settings)}
        del given["alpha"]
        return given  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Spikes, with the shape and dtype of the weighted input x."""
        self._check_steps(x)
        options = self._options()
        if not self._carries():
            options["time_dim"] = self.time_dim
            return coupled.neurons(x, self.alpha, **options)[0]
        spikes, _ = self._carried(x, lambda state, time_dim: continued_lif(x, self.alpha, state, time_dim, options))
        return spikes


class CubaLIF(_CoupledNeuron):
    """Second-order LIF neurons, current-based; the arguments are those of `exodus_core.cuba_lif`.

    Args:
        trainable: names of "alpha", "synapse_alpha", "synapse_gain", "threshold", "reset_by", "min_membrane",
            "reset_to" that become torch.nn.Parameter; decays are kept in [0, 1] and the threshold above 0.001, as those
            of `LIF`.
        stateful: start each call from the state that the last one ended with, as `LIF` does: membrane, spikes, current,
            adaptation (zeros) and steps of the refractory period left.

    Raises:
        ArgumentTypeError, ArgumentError, RuntimeError: as `LIF`.
    """

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
            settings={
                "synapse_delayed": bool(synapse_delayed),
                "reset": reset,
                "decay_reset": decay_reset,
                "surrogate": surrogate,
                "method": method,
                "max_spikes": int(max_spikes),
                "detach_reset": bool(detach_reset),
                "refractory": refractory,
            },
        )


class ALIF(_CoupledNeuron):
    """Adaptive LIF neurons; the arguments are those of `exodus_core.alif`.

    Args:
        trainable: names of "alpha", "adapt_alpha", "adapt_by", "adapt_membrane", "adapt_threshold", "adapt_current",
            "synapse_alpha", "synapse_gain", "threshold", "reset_by", "min_membrane", "reset_to" that become
            torch.nn.Parameter; decays are kept in [0, 1] and the threshold above 0.001, as those of `LIF`.
        stateful: start each call from the state that the last one ended with, as `LIF` does: membrane, spikes, current,
            adaptation and steps of the refractory period left.

    Raises:
        ArgumentTypeError, ArgumentError, RuntimeError: as `LIF`.
    """

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
            settings={
                "synapse_delayed": bool(synapse_delayed),
                "reset": reset,
                "decay_reset": decay_reset,
                "surrogate": surrogate,
                "method": method,
                "max_spikes": int(max_spikes),
                "detach_reset": bool(detach_reset),
                "refractory": refractory,
            },
        )
