"""Builds the module that a description describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from exodus_core import ranges
from exodus_core.arguments import check_dense, is_integer
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.network import delays, modules, neurons, spiking
from exodus_core.network.description import INPUT, Description, parse
from exodus_core.network.recording import observers_of, observers_of_membrane, passing_observers
from exodus_core.pieces.time_checkpoint import in_pieces
from exodus_core.sparse.product import ENABLED

_MODULES: dict[str, Any] = {
    "linear": modules.Linear,
    "conv1d": modules.Conv,
    "conv2d": modules.Conv,
    "sum_pool": modules.Pool,
    "avg_pool": modules.Pool,
    "max_pool": modules.Pool,
    "adaptive_avg_pool": modules.Pool,
    "adaptive_max_pool": modules.Pool,
    "flatten": modules.Flatten,
    "reshape": modules.Reshape,
    "dropout": modules.Dropout,
    "batch_norm": modules.BatchNorm,
    "add": modules.Add,
    "concat": modules.Concat,
    "lif": spiking.Lif,
    "if": spiking.Lif,
    "cuba_lif": spiking.Lif,
    "alif": spiking.Lif,
    "srm": spiking.Srm,
    "exp_leak": spiking.ExpLeak,
    "delay": delays.DelayModule,
    "delayed_linear": delays.DelayedLinearModule,
}


class Network(torch.nn.Module):
    """A network built from a description; `build` makes it.

    Each call starts from rest: no state is kept between calls. With `checkpoint_steps` it runs in pieces of so many
    steps, as `exodus_core.nn.TimeCheckpoint` does, and the input is converted piece by piece. Parameters are named
    LAYER.weight, LAYER.bias, LAYER.alpha, LAYER.recurrent.weight and so on. It may be moved and converted as any
    module, by `to`, `cuda`, `double` or `half`; neurons of float16 and bfloat16 are computed in float32.

    Attributes:
        description: the checked description, which says the dtype that it was built with.
        generator: draws the dropout masks, on the network's device.
        exact: products are dense, whatever their input (`exodus_core.linear`).
    """

    generator: torch.Generator
    _like: Tensor

    def __init__(self, description: Description, seed: int, device: torch.device | str, exact: bool = False) -> None:
        super().__init__()
        self.description = description
        # Attributes are set before there are layers, which would refuse those of their names.
        self.exact = exact
        # The names whose values no layer after this one reads.
        self._done: list[list[str]] = [[] for _ in description.layers]
        self._readers = _readers(description) if ENABLED and not exact else {}
        dtype: torch.dtype = getattr(torch, description.dtype)
        # Moved and converted with the rest: a network may have no parameter that has its device.
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device="cpu"), persistent=False)
        initial = torch.Generator("cpu").manual_seed(seed)
        # The masks' generator has a seed of its own, so that masks and weights do not come from the same numbers.
        mask_seed = int(torch.randint(2**62, (), generator=initial, device="cpu"))
        draw = modules.Drawing(initial, dtype)
        shapes = {INPUT: description.input_shape}
        last_use: dict[str, int] = {}
        for index, (layer, shape) in enumerate(zip(description.layers, description.shapes, strict=True)):
            module = _MODULES[layer.kind](layer, shapes[layer.inputs[0]], draw)
            # Not add_module, which refuses names of attributes, such as "half": a layer's name is the user's.
            self._modules[layer.name] = module
            shapes[layer.name] = shape
            last_use.update(dict.fromkeys(layer.inputs, index))
        for name, last in last_use.items():
            self._done[last].append(name)
        for module in self._modules.values():
            if isinstance(module, modules.Linear | modules.Conv | delays.DelayedLinearModule):
                module.exact = exact
        self._share(torch.Generator("cpu").manual_seed(mask_seed))
        self.to(device)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its parameters now, to which inputs are converted."""
        return next(self.parameters(), self._like).dtype

    @property
    def device(self) -> torch.device:
        """Device of its parameters now, to which inputs are moved."""
        return next(self.parameters(), self._like).device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Conversion by to(), cuda(), double() and their like; the generator of masks moves along."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # The device "meta" has no random numbers.
        if self.device != self.generator.device and self.device.type != "meta":
            self._share(_moved(self.generator, self.device))
        return self

    def _share(self, generator: torch.Generator) -> None:
        # Not self.generator = ..., which a layer of this name would refuse.
        self.__dict__["generator"] = generator
        for module in self._modules.values():
            if isinstance(module, modules.Dropout):
                module.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last layer, shape (batch, time, *output_shape).

        Args:
            x: shape (batch, time, *input_shape), float, bool or integer; converted to the network's dtype.

        Raises:
            TypeError: x is not a real tensor.
            ValueError: x has another shape, or no sample or no step.
        """
        self._check_input(x)
        observers = observers_of(self)
        if not observers:
            return self._in_steps(x)
        with ExitStack() as stack:
            for observer in observers:
                stack.enter_context(observer.passing(x))
            return self._in_steps(x)

    def _in_steps(self, x: Tensor) -> Tensor:
        steps = self.description.checkpoint_steps
        return self._outputs(x) if steps is None else in_pieces(self, self._outputs, x, steps=steps, time_dim=1)

    def _outputs(self, x: Tensor) -> Tensor:
        observers = passing_observers(self)
        values: dict[str, Any] = {INPUT: self._converted(x)}
        for layer, done in zip(self.description.layers, self._done, strict=True):
            module: Any = self._modules[layer.name]
            packs = self._packs(layer.name) and not (observers and observers_of_membrane(module))
            call = module.packed if packs else module
            inputs = [values[name] for name in layer.inputs]
            result = call(*inputs)
            for observer in observers:
                observer.see(layer, inputs, result)
            del inputs
            for name in done:
                del values[name]
            values[layer.name] = result
        return result  # type: ignore[no-any-return]

    def _packs(self, name: str) -> bool:
        """True if products alone see a value, so that spikes may be handed on as bits.

        Hooks would see it too, and a module that has taken the place of a layer.
        """
        readers = self._readers.get(name, ())
        if not readers or _has_any_global_hook():
            return False
        if name != INPUT and not _unhooked(self._modules[name], spiking.Lif):
            return False
        kinds = modules.Linear, modules.Conv, modules.Flatten
        return all(_unhooked(self._modules[reader], *kinds) for reader in readers)

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.is_complex():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentTypeError("x", "a tensor of floats, integers or bool", got)
        check_dense("x", x)
        wanted = self.description.input_shape
        if x.dim() != 2 + len(wanted) or x.shape[2:] != wanted or 0 in x.shape[:2]:
            sizes = ", ".join(str(size) for size in wanted)
            expected = f"of shape (batch, time, {sizes}), with at least one sample and one step"
            raise ArgumentError("x", expected, tuple(x.shape))

    def _converted(self, x: Tensor) -> Tensor:
        x = x.to(self.device)
        return x if x.dtype == torch.bool and self._packs(INPUT) else x.to(self.dtype)

    def neuron_parameters(self) -> Iterator[torch.nn.Parameter]:
        """The trained parameters of neurons: alpha, threshold, reset_by, and delays.

        They are constants of a model, which a decay of weights would pull to 0: give them to an optimiser in a group
        with `weight_decay=0`, as `exodus_core.training` does.
        """
        for module in self._modules.values():
            if isinstance(module, ranges.Bounded):
                yield from module.constants()

    def constrain(self) -> None:
        """Projects trained parameters to their range: alpha in [0, 1], threshold positive, delays.

        To be called after each step of an optimiser.
        """
        for module in self._modules.values():
            if isinstance(module, ranges.Bounded):
                module.constrain()


#: Layers that take bits, or bool; of these, those that hand them on.
_TAKES_BITS, _HANDS_ON = ("linear", "conv1d", "conv2d", "flatten"), ("flatten",)


def _unhooked(module: Any, *kinds: type) -> bool:
    """True if a module is of one of these kinds and has no hook that sees its values or their gradients."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return isinstance(module, kinds) and not any(hooks)


def _readers(description: Description) -> dict[str, tuple[str, ...]]:
    """For the input and each layer of spikes that one product alone reads: the names of all layers that see its value.

    Several products would each make a tensor of its own of spikes that are not few.
    """
    direct: dict[str, list[Any]] = {INPUT: [], **{layer.name: [] for layer in description.layers}}
    for layer in description.layers:
        for name in layer.inputs:
            direct[name].append(layer)

    def seeing(name: str) -> list[str] | None:
        """The layers that see a value, or None if one of them takes no bits."""
        found = []
        for reader in direct[name]:
            further = seeing(reader.name) if reader.kind in _HANDS_ON else []
            if reader.kind not in _TAKES_BITS or further is None:
                return None
            found += [reader.name, *further]
        return found

    spiking = [layer.name for layer in description.layers if isinstance(layer, neurons.If)]
    readers = {name: seeing(name) or [] for name in (INPUT, *spiking)}
    kinds = {layer.name: layer.kind for layer in description.layers}
    products = {name: [reader for reader in found if kinds[reader] not in _HANDS_ON] for name, found in readers.items()}
    return {name: tuple(found) for name, found in readers.items() if len(products[name]) == 1}


def _moved(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on another device with the same seed, or with a seed drawn from it if it is no longer fresh."""
    seed = generator.initial_seed()
    fresh = torch.Generator(generator.device).manual_seed(seed)
    if not torch.equal(fresh.get_state(), generator.get_state()):
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.Generator(device).manual_seed(seed)


def build(
    data: Mapping[str, Any] | Sequence[Mapping[str, Any]] | Description,
    seed: int = 0,
    device: torch.device | str | None = None,
    *,
    exact: bool = False,
) -> Network:
    """Builds a network. Equal seeds give equal bits, and torch's global random numbers are left alone.

    Args:
        data: a description (docs/networks.md), as plain data or as `parse` returns it; or its layers alone, the first
            one linear with in_features.
        seed: of the initial weights and the dropout masks, from 0 to 2^63 - 1.
        device: of the network; None: torch's default device, as for every module.
        exact: compute dense products, whose bits are torch's, also where the input is spikes.

    Raises:
        NetworkError: the description does not fit.
        ValueError: the seed is not such a number.
    """
    if not is_integer(seed) or not 0 <= seed < 2**63:
        raise ArgumentError("seed", "an integer from 0 to 2**63 - 1", repr(seed))
    description = data if isinstance(data, Description) else parse(data)
    return Network(description, int(seed), torch.get_default_device() if device is None else device, exact)
