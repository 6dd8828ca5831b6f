"""Spikes as bits: what a spiking layer hands to the next, in 1/32 of the memory of float32."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from exodus_core import ops
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.sparse import packing


@dataclass(frozen=True, eq=False)
class PackedSpikes:
    """A tensor of zeros and ones, packed; `linear`, `conv1d` and `conv2d` take it as it is.

    Attributes:
        bits: uint8, shape (rows, ceil(n / 8)): element i of a row of n is bit i mod 8 of byte i div 8, where bit 0 is
            the least significant; the bits behind the last element are 0.
        shape: of the spikes.
        features: how many dimensions at the end of the shape make up a row.
        graph: a tensor of this shape without memory of its own, through which the gradient of the spikes flows to what
            made them; None if they have none.

    Raises:
        ArgumentTypeError: bits is not a tensor of uint8.
        ArgumentError: bits is not contiguous or of another shape; features exceeds the dimensions.
    """

    bits: Tensor
    shape: torch.Size
    features: int = 1
    graph: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.bits, Tensor) or self.bits.dtype != torch.uint8:
            got = self.bits.dtype if isinstance(self.bits, Tensor) else type(self.bits).__name__
            raise ArgumentTypeError("bits", "a tensor of uint8", got)
        if not 1 <= self.features <= len(self.shape):
            raise ArgumentError("features", f"from 1 to the {len(self.shape)} dimensions of shape", self.features)
        rows = math.prod(self.shape[: len(self.shape) - self.features])
        wanted = (rows, -(-self.columns // 8))
        if self.bits.shape != wanted or not self.bits.is_contiguous():
            shaped = tuple(self.bits.shape) if self.bits.shape != wanted else "one that is not contiguous"
            raise ArgumentError("bits", f"contiguous, of shape {wanted}", shaped)

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape[len(self.shape) - self.features :])

    @property
    def device(self) -> torch.device:
        """Device of the bits."""
        return self.bits.device

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The spikes as a tensor of zeros and ones, through which the gradient flows too."""
        spikes = packing.unpack(self.bits, self.columns, dtype).view(self.shape)
        return spikes if self.graph is None else _Unpacked.apply(self.graph, spikes)  # type: ignore[no-untyped-call]

    def flatten(self) -> PackedSpikes:
        """The same with one dimension for the elements of a row."""
        lead = self.shape[: len(self.shape) - self.features]
        graph = None if self.graph is None else self.graph.flatten(len(lead))
        return replace(self, shape=torch.Size((*lead, self.columns)), features=1, graph=graph)

    @property
    def density(self) -> float:
        """The share of ones."""
        elements = math.prod(self.shape)
        return ops.count_spikes(self.bits.cpu()) / elements if elements else 0.0


def watched() -> bool:
    """True if something sees each operator: it traces them, maps them over tensors, or differentiates them forward.

    What they compute then may depend on the shapes of the spikes, but not on their values.
    """
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return True
    return not torch.compiler.is_compiling() and (torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_tracing())


class _Unpacked(torch.autograd.Function):
    """Values whose gradient is that of a tensor without memory."""

    @staticmethod
    def forward(ctx: object, graph: Tensor, spikes: Tensor) -> Tensor:
        return spikes.view_as(spikes)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def pack(spikes: Tensor, features: int = 1) -> PackedSpikes:
    """Packs spikes; their gradient is lost.

    Args:
        spikes: zeros and ones, shape (..., *row), float, integer or bool.
        features: how many dimensions at the end are a row.

    Raises:
        ArgumentTypeError: spikes is not a real tensor.
        ArgumentError: an element is neither 0 nor 1; features exceeds the dimensions.
    """
    if not isinstance(spikes, Tensor) or spikes.is_complex():
        got = spikes.dtype if isinstance(spikes, Tensor) else type(spikes).__name__
        raise ArgumentTypeError("spikes", "a tensor of floats, integers or bool", got)
    if not 1 <= features <= spikes.dim():
        raise ArgumentError("features", f"from 1 to the {spikes.dim()} dimensions of spikes", features)
    if spikes.dtype != torch.bool and not bool(((spikes == 0) | (spikes == 1)).all()):
        raise ArgumentError("spikes", "zeros and ones", "other values")
    lead = spikes.shape[: spikes.dim() - features]
    ones = (spikes.detach() != 0).reshape(math.prod(lead), math.prod(spikes.shape[len(lead) :]))
    return PackedSpikes(packing.pack(ones), spikes.shape, features)
