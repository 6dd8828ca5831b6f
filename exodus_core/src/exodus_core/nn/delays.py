"""Delays of neurons and of synapses as modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from exodus_core import ranges
from exodus_core.delays import check_delays, check_max_delay, check_width, continued, delay, delayed_linear
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.nn.stateful import StatefulNeuron
from exodus_core.pieces.carried import State
from exodus_core.pieces.continuation import kept


class _Delayed(StatefulNeuron):
    """A layer with delays, whose state is its last max_delay inputs."""

    state_names = ("inputs",)
    shown: ClassVar[Mapping[str, Any]] = {"max_delay": None, **StatefulNeuron.shown}
    delays: float | Tensor
    max_delay: int

    def __init__(
        self,
        delays: float | Tensor,
        max_delay: int,
        time_dim: int,
        trainable: Collection[str],
        stateful: bool,
    ) -> None:
        check_delays(delays, max_delay)
        self.max_delay = max_delay  # before there are parameters, whose range it is
        super().__init__(trainable, time_dim, stateful, delays=delays)

    @property
    def limits(self) -> dict[str, tuple[float, float | None]]:
        """The ranges, by the names of parameters."""
        return ranges.RANGES | {"delays": (0.0, float(self.max_delay))}

    def _delayed(self, x: Tensor, compute: Callable[[Tensor, int], Tensor]) -> Tensor:
        """The result of `compute` for x and the axis of time, if stateful or in a piece from the inputs before x on."""
        self._check_steps(x)
        if not self._carries():
            return compute(x, self.time_dim)

        def go_on(state: State | None, time_dim: int) -> tuple[Tensor, State]:
            return continued(x, state, self.max_delay, time_dim, lambda whole: compute(whole, time_dim))

        return self._carried(x, go_on)

    def _fitting(self, state: State | None, x: Tensor, time_dim: int) -> State | None:
        if state is None:
            return None
        (inputs,) = state
        super()._fitting((inputs[0],), x, time_dim)
        return (kept(inputs),) if torch.compiler.is_compiling() or inputs.is_inference() else state


class Delay(_Delayed):
    """Delays of neurons, such as those of axons, by `exodus_core.delay`: y[t] = x[t - d], shaped as x.

    Args:
        delays: in steps, fractions too: a float, or a tensor that broadcasts over the inner dimensions.
        max_delay: upper bound of the delays; None, if they are not trained: the largest, rounded up.
        time_dim: axis of time of the input.
        trainable: "delays" makes them a torch.nn.Parameter. After each step of an optimiser of torch.optim they are
            brought back to [0, max_delay]; after other changes call `constrain`.
        stateful: continue the last call, whose last max_delay inputs are kept as `LIF` keeps its membrane.

    Raises:
        ArgumentTypeError, ArgumentError, RuntimeError: as `LIF`; delays are negative, not finite or above max_delay.
    """

    def __init__(
        self,
        delays: float | Tensor,
        *,
        max_delay: int | None = None,
        time_dim: int = 1,
        trainable: Collection[str] = (),
        stateful: bool = False,
    ) -> None:
        most = check_max_delay(max_delay)
        check_delays(delays, most)
        if most is None and trainable:
            raise ArgumentTypeError("max_delay", "an int if delays are trained", "NoneType")
        if most is None:
            largest = float(delays.max()) if isinstance(delays, Tensor) and delays.numel() else delays
            most = max(1, math.ceil(largest))
        super().__init__(delays, most, time_dim, trainable, stateful)

    def forward(self, x: Tensor) -> Tensor:
        """The delayed signal, with the shape and dtype of x."""
        return self._delayed(
            x, lambda whole, time_dim: delay(whole, self.delays, max_delay=self.max_delay, time_dim=time_dim)
        )


class DelayedLinear(_Delayed):
    """torch.nn.Linear with a delay for each synapse, by `exodus_core.delayed_linear`.

    Args:
        in_features, out_features, bias, device, dtype: as of torch.nn.Linear, whose initial weights it has.
        max_delay: upper bound of the delays, in steps.
        delays: in [0, max_delay], a float or a tensor that broadcasts to (out_features, in_features); None: drawn
            from the uniform distribution over that range.
        width: of the interpolation, an attribute that a training may change; None: linear.
        time_dim, trainable, stateful: as of `Delay`; the weight and the bias are parameters whatever trainable is.
        exact: as of `exodus_core.nn.Linear`.

    Raises:
        ArgumentTypeError, ArgumentError, RuntimeError: as `Delay`.
    """

    weights: ClassVar[tuple[str, ...]] = ("weight", "bias")
    shown: ClassVar[Mapping[str, Any]] = {**_Delayed.shown, "width": None, "exact": False}
    width: float | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        max_delay: int,
        delays: float | Tensor | None = None,
        width: float | None = None,
        time_dim: int = 1,
        trainable: Collection[str] = ("delays",),
        stateful: bool = False,
        exact: bool = False,
    ) -> None:
        most = check_max_delay(max_delay)
        if most is None:
            raise ArgumentTypeError("max_delay", "an int", "NoneType")
        check_width(width)
        start = torch.nn.Linear(in_features, out_features, bias, device, dtype)
        if delays is None:
            delays = torch.rand_like(start.weight, requires_grad=False).mul_(most)
        elif isinstance(delays, Tensor):
            try:
                delays.expand(start.weight.shape)
            except RuntimeError:
                expected = f"values that broadcast to (out_features, in_features), {tuple(start.weight.shape)}"
                raise ArgumentError("delays", expected, f"shape {tuple(delays.shape)}") from None
        super().__init__(delays, most, time_dim, trainable, stateful)
        self.weight = start.weight
        self.bias = start.bias
        self.width = width
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        """The product, shape (outer..., time, out_features), of x with shape (outer..., time, in_features)."""
        return self._delayed(
            x,
            lambda whole, time_dim: delayed_linear(
                whole,
                self.weight.to(whole.dtype),
                self.delays,
                None if self.bias is None else self.bias.to(whole.dtype),
                max_delay=self.max_delay,
                width=self.width,
                time_dim=time_dim,
                exact=self.exact,
            ),
        )
