"""LIF and IF neurons, and the leaky integrator that is a LIF neuron without spikes, as modules."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from exodus_core import arguments, functional
from exodus_core.arguments import NeuronOptions
from exodus_core.nn.stateful import StatefulNeuron
from exodus_core.ops import COUPLED_STATES
from exodus_core.pieces.carried import State
from exodus_core.pieces.continuation import continued_lif
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate


class LIF(StatefulNeuron):
    """Leaky integrate-and-fire neurons; the arguments are those of `exodus_core.lif`.

    Args:
        trainable: names of "alpha", "threshold", "reset_by", "min_membrane", "reset_to" that become torch.nn.Parameter.
            After each step of an optimiser of torch.optim alpha is brought back to [0, 1] and the threshold above
            0.001; after other changes call `constrain`.
        stateful: start each call from the membrane and spikes that the last one ended with. Gradients reach back into
            that call unless `detach_state` is called between them. float16 and bfloat16 are computed in float32 as a
            whole, membrane and spike decisions too, so that a sequence in pieces is that in one call.
        return_membrane: return (spikes, membrane) instead of the spikes.

    Parameters that are tensors are copied. Numbers are in the state_dict beside them, float64, and are set by
    load_state_dict; a state_dict from before they were is loaded without. `torch.func.functional_call` takes parameters
    and buffers, `dict(net.named_parameters()) | dict(net.named_buffers())`, and no state_dict with numbers in it.

    Raises:
        ArgumentTypeError, ArgumentError: an argument is invalid (values that depend on the input are checked when
            called); trainable names an unknown parameter or one that is None; a threshold to be trained is below 0.001;
            a tensor that is not trained requires a gradient. In the call: x has two dimensions if time_dim is 1.
        RuntimeError: a stateful layer is called by a backward pass, to be recomputed (torch.utils.checkpoint).
    """

    shown: ClassVar[Mapping[str, Any]] = {
        "reset": None,
        "decay_reset": False,
        "bound_after_reset": False,
        "max_spikes": 1,
        "detach_reset": False,
        "refractory": 0,
        "surrogate": None,
        "method": None,
        "return_membrane": False,
        **StatefulNeuron.shown,
    }
    alpha: float | Tensor
    threshold: float | Tensor
    reset_by: float | Tensor | None
    min_membrane: float | Tensor | None
    reset_to: float | Tensor | None

    def __init__(
        self,
        alpha: float | Tensor,
        *,
        threshold: float | Tensor = 1.0,
        reset: str = "subtract",
        reset_by: float | Tensor | None = None,
        decay_reset: bool = False,
        surrogate: Surrogate = DEFAULT_SURROGATE,
        method: str = "exodus",
        min_membrane: float | Tensor | None = None,
        bound_after_reset: bool = False,
        max_spikes: int = 1,
        reset_to: float | Tensor | None = None,
        detach_reset: bool = False,
        refractory: int = 0,
        time_dim: int = 1,
        trainable: Collection[str] = (),
        stateful: bool = False,
        return_membrane: bool = False,
    ) -> None:
        arguments.check_reset_to(reset, reset_to)
        arguments.check_method(method)
        arguments.check_surrogate(surrogate)
        arguments.reset_code(reset, decay_reset, max_spikes)
        arguments.check_bound(bound_after_reset, reset, bool(detach_reset), refractory, method)
        arguments.check_alpha(alpha)
        arguments.check_value("threshold", threshold)
        for name, value in {"reset_by": reset_by, "min_membrane": min_membrane}.items():
            if value is not None:
                arguments.check_value(name, value)
        arguments.check_threshold(threshold, max_spikes)
        if isinstance(threshold, Tensor):
            arguments.check_values("threshold", threshold, positive=max_spikes > 1)
        super().__init__(
            trainable,
            time_dim,
            stateful,
            alpha=alpha,
            threshold=threshold,
            reset_by=reset_by,
            min_membrane=min_membrane,
            reset_to=reset_to,
        )
        self.reset = reset
        self.decay_reset = decay_reset
        self.surrogate = surrogate
        self.method = method
        self.bound_after_reset = bound_after_reset
        self.max_spikes = int(max_spikes)
        self.detach_reset = bool(detach_reset)
        self.refractory = arguments.refractory_steps(refractory)
        self.return_membrane = return_membrane

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickles may be from before some arguments were."""
        super().__setstate__(state)
        later = {"reset_to": None, "detach_reset": False, "refractory": 0, "return_membrane": False}
        later["bound_after_reset"] = False
        for name, value in later.items():
            if not hasattr(self, name):
                setattr(self, name, value)

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the tensors of a state."""
        coupled = arguments.is_coupled(self.reset, self.detach_reset, self.refractory, self.method)
        return COUPLED_STATES if coupled else StatefulNeuron.state_names

    def _options(self) -> NeuronOptions:
        """The keyword arguments of `exodus_core.lif` that define the neurons."""
        return {
            "threshold": self.threshold,
            "reset": self.reset,
            "reset_by": self.reset_by,
            "decay_reset": self.decay_reset,
            "surrogate": self.surrogate,
            "method": self.method,
            "min_membrane": self.min_membrane,
            "bound_after_reset": self.bound_after_reset,
            "max_spikes": self.max_spikes,
            "reset_to": self.reset_to,
            "detach_reset": self.detach_reset,
            "refractory": self.refractory,
        }

    def _from_rest(self, x: Tensor) -> tuple[Tensor, ...]:
        return functional.lif(x, self.alpha, time_dim=self.time_dim, **self._options())

    def _continued(self, x: Tensor, state: State | None, time_dim: int) -> tuple[tuple[Tensor, ...], State | None]:
        return continued_lif(x, self.alpha, state, time_dim, self._options())

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Spikes, or (spikes, membrane) with return_membrane, with the shape and dtype of the input current x."""
        spikes, membrane = self._computed(x)
        return (spikes, membrane) if self.return_membrane else spikes


class IF(LIF):
    """Integrate-and-fire neurons: LIF with alpha = 1; the other arguments are those of `LIF`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(1.0, **options)

    def extra_repr(self) -> str:
        """The parameters and settings, for repr()."""
        return super().extra_repr().removeprefix("alpha=1.0, ")

    def _numbers(self) -> dict[str, float | tuple[float, ...]]:
        return {name: value for name, value in super()._numbers().items() if name != "alpha"}


class ExpLeak(StatefulNeuron):
    """A leaky integrator without spikes, u[t] = alpha u[t-1] + x[t]: the usual readout.

    Args:
        alpha: decay per step, exp(-dt/tau); a float or a tensor that broadcasts over the inner dimensions.
        trainable: "alpha" makes it a torch.nn.Parameter, which is kept in [0, 1] as that of `LIF`.
        stateful: start each call from the value that the last one ended with, as `LIF` does.

    Raises:
        TypeError, ValueError, RuntimeError: as `LIF`.
    """

    fires = False
    _WITHOUT_SPIKES: ClassVar[NeuronOptions] = {"threshold": math.inf, "reset": "none"}
    alpha: float | Tensor

    def __init__(
        self,
        alpha: float | Tensor,
        *,
        time_dim: int = 1,
        trainable: Collection[str] = (),
        stateful: bool = False,
    ) -> None:
        arguments.check_alpha(alpha)
        super().__init__(trainable, time_dim, stateful, alpha=alpha)

    def forward(self, x: Tensor) -> Tensor:
        """The membrane, with the shape and dtype of x."""
        return self._computed(x)[1]

    def _from_rest(self, x: Tensor) -> tuple[Tensor, ...]:
        return functional.lif(x, self.alpha, time_dim=self.time_dim, **self._WITHOUT_SPIKES)

    def _continued(self, x: Tensor, state: State | None, time_dim: int) -> tuple[tuple[Tensor, ...], State | None]:
        return continued_lif(x, self.alpha, state, time_dim, self._WITHOUT_SPIKES)
