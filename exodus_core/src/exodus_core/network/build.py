"""Builds the module that a description describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from exodus_core.network import modules, spiking
from exodus_core.network.description import INPUT, Description, parse

_MODULES: dict[str, Any] = {
    "linear": modules.Linear,
    "conv1d": modules.Conv,
    "conv2d": modules.Conv,
    "sum_pool": modules.Pool,
    "avg_pool": modules.Pool,
    "flatten": modules.Flatten,
    "dropout": modules.Dropout,
    "batch_norm": modules.BatchNorm,
    "add": modules.Add,
    "lif": spiking.Lif,
    "if": spiking.Lif,
    "srm": spiking.Srm,
    "exp_leak": spiking.ExpLeak,
}


class Network(torch.nn.Module):
    """A network built from a description; `build` makes it.

    Each call starts from rest: no state is kept between calls. Parameters are named LAYER.weight, LAYER.bias,
    LAYER.alpha, LAYER.recurrent.weight and so on.

    Attributes:
        description: the checked description.
        generator: where dropout masks are drawn from.
    """

    def __init__(self, description: Description, seed: int, device: torch.device | str) -> None:
        super().__init__()
        self.description = description
        self.dtype: torch.dtype = getattr(torch, description.dtype)
        initial = torch.Generator("cpu").manual_seed(seed)
        # The masks' generator has a seed of its own, so that masks and weights do not come from the same numbers.
        mask_seed = int(torch.randint(2**62, (), generator=initial, device="cpu"))
        self.generator = torch.Generator(device).manual_seed(mask_seed)
        draw = modules.Drawing(initial, self.dtype)
        shapes = {INPUT: description.input_shape}
        last_use: dict[str, int] = {}
        for index, (layer, shape) in enumerate(zip(description.layers, description.shapes, strict=True)):
            module = _MODULES[layer.kind](layer, shapes[layer.inputs[0]], draw)
            if isinstance(module, modules.Dropout):
                module.generator = self.generator
            # Not add_module, which refuses names of attributes, such as "half": a layer's name is the user's.
            self._modules[layer.name] = module
            shapes[layer.name] = shape
            last_use.update(dict.fromkeys(layer.inputs, index))
        # The names whose values no layer after this one reads.
        self._done: list[list[str]] = [[] for _ in description.layers]
        for name, last in last_use.items():
            self._done[last].append(name)
        self.to(device)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last layer, shape (batch, time, *output_shape).

        Args:
            x: shape (batch, time, *input_shape), float, bool or integer; converted to the network's dtype.

        Raises:
            TypeError: x is not a real tensor.
            ValueError: x has another shape, or no sample or no step.
        """
        values = {INPUT: self._input(x)}
        for layer, done in zip(self.description.layers, self._done, strict=True):
            result = self._modules[layer.name](*[values[name] for name in layer.inputs])  # type: ignore[misc]
            for name in done:
                del values[name]
            values[layer.name] = result
        return result  # type: ignore[no-any-return]

    def _input(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.is_complex():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a tensor of floats, integers or bool, got {got}")
        wanted = self.description.input_shape
        if x.dim() != 2 + len(wanted) or x.shape[2:] != wanted or 0 in x.shape[:2]:
            sizes = ", ".join(str(size) for size in wanted)
            raise ValueError(
                f"x must have the shape (batch, time, {sizes}), with at least one sample and one step, got "
                f"{tuple(x.shape)}"
            )
        return x.to(self.generator.device).to(self.dtype)

    def constrain(self) -> None:
        """Brings trained parameters back to where the neurons are defined: alpha in [0, 1], threshold positive.

        To be called after each step of an optimiser.
        """
        for module in self._modules.values():
            if isinstance(module, spiking.Lif | spiking.ExpLeak):
                module.constrain()


def build(
    data: Mapping[str, Any] | Sequence[Mapping[str, Any]] | Description,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Network:
    """Builds a network. Equal seeds give equal bits, and torch's global random numbers are left alone.

    Args:
        data: a description (docs/networks.md), as plain data or as `parse` returns it; or its layers alone, the first
            one linear with in_features.
        seed: of the initial weights and the dropout masks, from 0 to 2^63 - 1.
        device: where it lives.

    Raises:
        NetworkError: the description does not fit.
        ValueError: the seed is not such a number.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}")
    description = data if isinstance(data, Description) else parse(data)
    return Network(description, seed, device)
