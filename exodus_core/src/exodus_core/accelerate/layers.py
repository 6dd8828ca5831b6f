"""Layers without state of torch, SpikingJelly and sinabs, which `accelerate` lets run on the kernels.

A library's product or pool is derived from torch's and calls it by super(). A class derived from the library's and from
the one of `exodus_core.nn`, in this order, is the library's in all but that call. SpikingJelly's layers, which get all
steps, are computed once where every step is the same.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.utils import _pair

from exodus_core import nn
from exodus_core.accelerate.fused import is_constant, once_if_constant
from exodus_core.accelerate.over_time import is_hooked
from exodus_core.pooling import avg_pool2d


class SumPool2d(torch.nn.LPPool2d):
    """torch.nn.LPPool2d of norm 1, as sinabs has it: the sums of windows, and no gradient where a sum is 0.

    It has torch's bits, and leaves out its powers of 1. Of another norm, or with ceil_mode, it is torch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The sums of the windows of x, shape (..., channels, height, width)."""
        if self.norm_type != 1 or self.ceil_mode:
            return super().forward(x)
        mean = avg_pool2d(x, self.kernel_size, self.stride)
        return (mean.sign() * mean.abs().relu()).mul(math.prod(_pair(self.kernel_size)))


class OnceIfConstant:
    """SpikingJelly's layer in step mode "m": of a single step where its input is expanded over the steps, as `expand`
    makes it of an image.

    Attributes:
        hands_on: what reads the output reads expanded ones too; others get a copy with all steps.
    """

    hands_on = False

    def forward(self: Any, x: Tensor) -> Tensor:
        """The layer's outputs for x, shape (time, batch, ...)."""
        run: Callable[[Tensor], Tensor] = super().forward  # type: ignore[misc]
        if not self.computes_one_step(x):
            return run(x)
        found = once_if_constant(x, 0, run)
        return found if self.hands_on and not is_hooked(self) else found.contiguous()

    def computes_one_step(self: Any, x: Tensor) -> bool:
        """True if the outputs for x are those of one of its steps."""
        return self.step_mode == "m" and is_constant(x)


class BatchNormOnceIfConstant(OnceIfConstant):
    """The same of a batch norm, whose statistics are those of all steps."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """The layer's outputs for x, shape (time, batch, ...)."""
        before = self.running_var.clone() if self.training and self.running_var is not None else None
        found: Tensor = super().forward(x)
        if before is not None and self.computes_one_step(x):
            # A running variance is that of samples: with all steps, the divisor is n T - 1 instead of T (n - 1).
            n, steps = self._values(x), x.shape[0]
            factor = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            of_step = self.running_var - (1 - factor) * before
            # By its data, since autograd has saved it, which does not read it after training.
            self.running_var.data.copy_((1 - factor) * before + of_step * (steps * (n - 1) / (steps * n - 1)))
        return found

    def computes_one_step(self: Any, x: Tensor) -> bool:
        """As of other layers, if a step has more than one value of a feature: of one, there is no variance."""
        return super().computes_one_step(x) and self._values(x) > 1

    def _values(self: Any, x: Tensor) -> int:
        return int(x[0].numel()) // int(self.num_features)


_TORCH: dict[type, type] = {
    torch.nn.Linear: nn.Linear,
    torch.nn.Conv1d: nn.Conv1d,
    torch.nn.Conv2d: nn.Conv2d,
    torch.nn.MaxPool2d: nn.MaxPool2d,
    torch.nn.AvgPool2d: nn.AvgPool2d,
}
_SPIKINGJELLY = "spikingjelly.activation_based.layer"
#: By module and name of a library's class: classes before and behind it, in the order in which they compute for it.
_LIBRARIES: dict[tuple[str, str], tuple[tuple[type, ...], tuple[type, ...]]] = {
    (_SPIKINGJELLY, "Linear"): ((OnceIfConstant,), (nn.Linear,)),
    (_SPIKINGJELLY, "Conv1d"): ((OnceIfConstant,), (nn.Conv1d,)),
    (_SPIKINGJELLY, "Conv2d"): ((OnceIfConstant,), (nn.Conv2d,)),
    (_SPIKINGJELLY, "MaxPool2d"): ((OnceIfConstant,), (nn.MaxPool2d,)),
    (_SPIKINGJELLY, "AvgPool2d"): ((OnceIfConstant,), (nn.AvgPool2d,)),
    (_SPIKINGJELLY, "Flatten"): ((OnceIfConstant,), ()),
    (_SPIKINGJELLY, "BatchNorm1d"): ((BatchNormOnceIfConstant,), ()),
    (_SPIKINGJELLY, "BatchNorm2d"): ((BatchNormOnceIfConstant,), ()),
    ("sinabs.layers", "SumPool2d"): ((), (SumPool2d,)),
}


def counterpart(cls: type) -> type | None:
    """The class on the kernels in place of a layer's class, which is derived from it; None if there is none."""
    if cls in _TORCH:
        return _TORCH[cls]
    for (module, name), (before, behind) in _LIBRARIES.items():
        if getattr(sys.modules.get(module), name, None) is cls:
            return _joined(cls, before, behind)
    return None


def hand_on(model: torch.nn.Module) -> None:
    """Lets layers hand on outputs that are expanded over the steps, where what follows in a Sequential reads them."""
    places: dict[int, int] = {}
    followers: dict[int, torch.nn.Module] = {}
    for module in model.modules():
        children = list(module.children())
        for child in children:
            places[id(child)] = places.get(id(child), 0) + 1
        if type(module) is torch.nn.Sequential:
            followers |= {id(child): follower for child, follower in itertools.pairwise(children)}
    for module in model.modules():
        if isinstance(module, OnceIfConstant):
            follower = followers.get(id(module))
            reads = isinstance(follower, OnceIfConstant) or hasattr(type(follower), "fused_as")
            module.hands_on = reads and places[id(module)] == 1


@functools.cache
def _joined(cls: type, before: tuple[type, ...], behind: tuple[type, ...]) -> type:
    def reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
        return _restored, (cls, before, behind), self.__dict__

    own = {"__doc__": cls.__doc__, "fused_from": cls, "exact": False, "__reduce_ex__": reduced}
    return type(f"Fused{cls.__name__}", (*before, cls, *behind), own)


def _restored(cls: type, before: tuple[type, ...], behind: tuple[type, ...]) -> Any:
    """An instance for pickle and copy, whose attributes come next."""
    joined: Any = _joined(cls, before, behind)
    return joined.__new__(joined)
