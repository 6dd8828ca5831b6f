"""SRM neurons as a module."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from exodus_core import arguments, functional
from exodus_core.kernels import Kernel
from exodus_core.nn.neuron import Neuron
from exodus_core.pieces import carried
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate


class SRM(Neuron):
    """Spike-response neurons: the weighted input is filtered by response_kernel, spikes reset through reset_kernel.

    Args:
        reset_kernel: nu, taps (K,), `ExponentialKernel` or `AlphaKernel`; usually negative.
        response_kernel: eps, likewise; None if the input is filtered already.
        threshold, surrogate, method, time_dim: as in `exodus_core.srm`.
        return_membrane: return (spikes, membrane) instead of the spikes.
        trainable: names of "threshold", and of "reset_kernel" and "response_kernel" if they are taps. The threshold is
            kept positive as that of `LIF`.

    Tensors are copied, and numbers are in the state_dict, as those of `LIF`; those of a kernel as reset_kernel.tau and
    so on.

    Raises:
        ArgumentTypeError, ArgumentError: as `LIF`.
    """

    shown: ClassVar[Mapping[str, Any]] = {
        "reset_kernel": None,
        "response_kernel": None,
        "surrogate": None,
        "method": None,
        "return_membrane": False,
        **Neuron.shown,
    }
    return_membrane = False  # of pickles from before it was an argument
    not_in_pieces = carried.SRM_IN_PIECES
    threshold: float | Tensor
    reset_kernel: Kernel
    response_kernel: Kernel | None

    def __init__(
        self,
        reset_kernel: Kernel,
        *,
        response_kernel: Kernel | None = None,
        threshold: float | Tensor = 1.0,
        surrogate: Surrogate = DEFAULT_SURROGATE,
        method: str = "exodus",
        time_dim: int = 1,
        trainable: Collection[str] = (),
        return_membrane: bool = False,
    ) -> None:
        arguments.check_method(method)
        arguments.check_surrogate(surrogate)
        arguments.check_kernel("reset_kernel", reset_kernel)
        if response_kernel is not None:
            arguments.check_kernel("response_kernel", response_kernel)
        arguments.check_value("threshold", threshold)
        parameters: dict[str, float | Tensor | None] = {"threshold": threshold}
        kernels = {"reset_kernel": reset_kernel, "response_kernel": response_kernel}
        parameters.update({name: kernel for name, kernel in kernels.items() if isinstance(kernel, Tensor)})
        super().__init__(trainable, time_dim, **parameters)
        for name, kernel in kernels.items():
            if name not in parameters:
                setattr(self, name, kernel)
        self.surrogate = surrogate
        self.method = method
        self.return_membrane = return_membrane

    def _numbers(self) -> dict[str, float | tuple[float, ...]]:
        found = super()._numbers()
        for name in ("reset_kernel", "response_kernel"):
            kernel = getattr(self, name)
            if not isinstance(kernel, Tensor | None):
                fields = [field.name for field in dataclasses.fields(kernel) if field.init]
                found |= {f"{name}.{field}": getattr(kernel, field) for field in fields}
        return found

    def _set_number(self, name: str, value: Any) -> None:
        kernel, _, field = name.partition(".")
        if field:
            setattr(self, kernel, dataclasses.replace(getattr(self, kernel), **{field: value}))
        else:
            super()._set_number(name, value)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Spikes, or (spikes, membrane) with return_membrane, with the shape and dtype of the weighted input x."""
        self._check_steps(x)
        psp = x if self.response_kernel is None else functional.filter(x, self.response_kernel, time_dim=self.time_dim)
        spikes, membrane = functional.srm(
            psp,
            self.reset_kernel,
            threshold=self.threshold,
            surrogate=self.surrogate,
            method=self.method,
            time_dim=self.time_dim,
        )
        return (spikes, membrane) if self.return_membrane else spikes
