"""The neuron layers as modules, on the differentiable functions of exodus_core."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from exodus_core import coupled, functional, ops, ranges
from exodus_core.arguments import NeuronOptions, is_coupled
from exodus_core.coupled import CoupledOptions
from exodus_core.kernels import Kernel
from exodus_core.network import neurons
from exodus_core.network.layers import Shape
from exodus_core.network.modules import Drawing, Weights
from exodus_core.network.recording import observers_of_membrane
from exodus_core.network.recurrent import continued_recurrent_lif
from exodus_core.network.recurrent_membrane import recurrent_membrane
from exodus_core.pieces import carried
from exodus_core.pieces.continuation import continued_lif
from exodus_core.sparse.spikes import PackedSpikes


class _Neurons(ranges.Bounded):
    """Keeps parameters of neurons: trainable ones as Parameter, lists as tensors, else numbers."""

    def _keep(self, layer: Any, trainable: tuple[str, ...], draw: Drawing, *names: str) -> None:
        for name in names:
            value = getattr(layer, name)
            if name in trainable:
                self.register_parameter(name, torch.nn.Parameter(draw.constant(value)))
            elif isinstance(value, tuple):
                # Not persistent: they are part of the description and never change.
                self.register_buffer(name, draw.constant(value), persistent=False)
            else:
                setattr(self, name, value)

    def _show(self, membrane: Tensor) -> None:
        """Shows the membrane of a call to those who record it."""
        for observer in observers_of_membrane(self):
            observer.see_membrane(self, membrane)


class Lif(_Neurons):
    """LIF, IF, second-order and adaptive LIF, with or without recurrent connections."""

    alpha: float | Tensor
    _values: tuple[str, ...] = ("threshold", "reset_by", "min_membrane")  # of pickles from before there were others

    def __init__(self, layer: neurons.If, shape: Shape, draw: Drawing) -> None:
        super().__init__()
        self._keep(layer, layer.trainable, draw, *layer.values)
        if "alpha" not in layer.values:
            self.alpha = 1.0
        self._values = tuple(name for name in layer.values if name != "alpha")
        self.options: CoupledOptions = {
            "reset": layer.reset,
            "decay_reset": layer.decay_reset,
            "bound_after_reset": layer.bound_after_reset,
            "max_spikes": layer.max_spikes,
            "surrogate": layer.surrogate.made(),
            "method": layer.method,
            "detach_reset": layer.detach_reset,
            "refractory": layer.refractory,
        }
        if isinstance(layer, neurons.CubaLif | neurons.Alif):
            self.options["synapse_delayed"] = layer.synapse_delayed
        self.recurrent: Weights | None = None
        if layer.recurrent is not None:
            n = math.prod(shape)
            self.recurrent = Weights((n, n), layer.recurrent.bias, layer.recurrent.gain, draw)

    def _options(self) -> CoupledOptions:
        return cast("CoupledOptions", {name: getattr(self, name) for name in self._values} | self.options)

    def packed(self, x: Tensor) -> Tensor | PackedSpikes:
        """The spikes for products, as bits if the kernels can write them."""
        options = self._options()
        if self.recurrent is not None or carried.current() is not None or is_coupled(**options):
            spikes: Tensor = self(x)
            return spikes
        return functional.lif_packed(x, self.alpha, **cast("NeuronOptions", options))

    def forward(self, x: Tensor) -> Tensor:
        options = self._options()
        piece = carried.current()
        if self.recurrent is not None:
            return self._recurrent(x, self.recurrent, options, piece)
        if piece is not None:
            spikes, membrane = piece.carry(
                self, x.shape[1], lambda state: continued_lif(x, self.alpha, state, 1, options)
            )
        elif is_coupled(**options):
            spikes, membrane, _ = coupled.neurons(x, self.alpha, **options)
        else:
            spikes, membrane = functional.lif(x, self.alpha, **cast("NeuronOptions", options))
        self._show(membrane)
        return spikes

    def _recurrent(self, x: Tensor, recurrent: Weights, options: CoupledOptions, piece: carried.Piece | None) -> Tensor:
        current = x
        if recurrent.bias is not None:
            dtype = ops.compute_dtype(x.dtype)
            current = x.to(dtype) + recurrent.bias.view(x.shape[2:]).to(dtype)

        def call(state: carried.State | None) -> tuple[Tensor, carried.State]:
            spikes, after = continued_recurrent_lif(current, recurrent.weight, self.alpha, state, **options)
            observers = observers_of_membrane(self)
            if observers:
                differentiates = torch.is_grad_enabled() and not all(observer.detach for observer in observers)
                with torch.set_grad_enabled(differentiates):
                    membrane = recurrent_membrane(current, spikes, recurrent.weight, self.alpha, state, **options)
                self._show(membrane.to(x.dtype))
            return spikes, after

        spikes = call(None)[0] if piece is None else piece.carry(self, x.shape[1], call)
        return spikes.to(x.dtype)


class ExpLeak(_Neurons):
    """A leaky integrator without spikes."""

    alpha: float | Tensor

    def __init__(self, layer: neurons.ExpLeak, shape: Shape, draw: Drawing) -> None:
        super().__init__()
        self._keep(layer, layer.trainable, draw, "alpha")

    def forward(self, x: Tensor) -> Tensor:
        options: NeuronOptions = {"threshold": math.inf, "reset": "none"}
        piece = carried.current()
        if piece is None:
            _, membrane = functional.lif(x, self.alpha, **options)
        else:
            _, membrane = piece.carry(self, x.shape[1], lambda state: continued_lif(x, self.alpha, state, 1, options))
        self._show(membrane)
        return membrane


class Srm(_Neurons):
    """Spike-response neurons."""

    not_in_pieces = carried.SRM_IN_PIECES
    threshold: float | Tensor

    def __init__(self, layer: neurons.Srm, shape: Shape, draw: Drawing) -> None:
        super().__init__()
        self._keep(layer, (), draw, "threshold")
        self.surrogate, self.method = layer.surrogate.made(), layer.method
        self._keep_kernel("reset_kernel", layer.reset_kernel, draw)
        self._keep_kernel("response_kernel", layer.response_kernel, draw)

    def _keep_kernel(self, name: str, data: Any, draw: Drawing) -> None:
        if isinstance(data, tuple):
            self.register_buffer(name, draw.constant(data), persistent=False)
        else:
            setattr(self, name, None if data is None else data.made())

    reset_kernel: Kernel
    response_kernel: Kernel | None

    def forward(self, x: Tensor) -> Tensor:
        psp = x if self.response_kernel is None else functional.filter(x, self.response_kernel)
        spikes, membrane = functional.srm(
            psp, self.reset_kernel, threshold=self.threshold, surrogate=self.surrogate, method=self.method
        )
        self._show(membrane)
        return spikes
