"""The raw operators, one typed line each, and what they return for fake tensors (torch.compile, export).

Private: they check little and have no autograd. `exodus_core.lif` and its siblings are the public functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from exodus_core import _library  # noqa: F401  (registers the operators)

_Pair = Callable[..., tuple[Tensor, Tensor]]
_Result = TypeVar("_Result")


def with_room(
    operator: Callable[..., _Result], *, outputs: int, more: Callable[..., int] = lambda *_: 0
) -> Callable[..., _Result]:
    """An operator with so many outputs like its first tensor. Raises torch.OutOfMemoryError: the GPU has no room.

    On a GPU they are allocated beforehand and given back, for the operator to find in torch's cache: an allocation
    within the stable ABI that fails writes to stderr, and raises a RuntimeError that does not say what was wanted. So
    are the bytes that `more` says, of the operator's arguments.
    """

    def call(first: Tensor, *arguments: Any) -> _Result:
        if first.is_cuda and not torch.compiler.is_compiling():
            held = [torch.empty_like(first) for _ in range(outputs)]
            held.append(torch.empty(more(first, *arguments), dtype=torch.uint8, device=first.device))
            del held
        return operator(first, *arguments)

    return call


def _lane_gradient_bytes(rows: int) -> Callable[..., int]:
    """Of the second output of a backward pass, if it is wanted: so many rows of a value a lane."""

    def count(first: Tensor, *arguments: Any) -> int:
        with_lanes, time_dim = arguments[-2:]
        outer, inner = _lane_shape(first, time_dim)
        return rows * outer * inner * compute_dtype(first.dtype).itemsize if with_lanes else 0

    return count


def _kept_bytes(first: Tensor, *arguments: Any) -> int:
    """Of the traces that neurons with coupled variables keep."""
    kept, _ = arguments[-2:]
    return int(kept).bit_count() * first.nbytes


def _traced_bytes(first: Tensor, *arguments: Any) -> int:
    """Of the traces that neurons with coupled variables keep, and of their last state."""
    outer, inner = _lane_shape(first, arguments[-1])
    states = len(COUPLED_STATES) * outer * inner * compute_dtype(first.dtype).itemsize
    return states + _kept_bytes(first, *arguments)


# Bytes of taps for each lane beyond which the kernels keep the past of a block in global memory, at the earliest.
_PAST_IN_SHARED_MEMORY = 24 * 1024 // 64


def _past_bytes(first: Tensor, taps: Tensor | None, *arguments: Any) -> int:
    """Of the past that the taps of a long kernel see: a value for each tap and lane."""
    time_dim = arguments[-1]
    outer, inner = _lane_shape(first, time_dim)
    past = 0 if taps is None else min(taps.numel(), first.shape[time_dim]) * compute_dtype(first.dtype).itemsize
    return past * outer * inner if past > _PAST_IN_SHARED_MEMORY else 0


def _srm_backward_bytes(first: Tensor, *arguments: Any) -> int:
    return _lane_gradient_bytes(1)(first, *arguments) + _past_bytes(first, *arguments[2:])


def _lane_shape(x: Tensor, time_dim: int) -> tuple[int, int]:
    outer = inner = 1
    for d, size in enumerate(x.shape):
        if d < time_dim:
            outer *= size
        elif d > time_dim:
            inner *= size
    return outer, inner


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a tensor of `dtype` is computed in: float16 and bfloat16 are computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


#: False where the CUDA kernels are emulated in place of the CPU's, which alone work on bits and on pools.
HAS_BITS: bool = torch._C._dispatch_has_kernel_for_dispatch_key("exodus::pack_spikes", "CPU")

# The rows of `lane_gradients`, one value a lane (outer, inner), in the order of enum LaneGradient in core/adjoint.h.
LANE_GRADIENTS = ("initial_membrane", "initial_spikes", "alpha", "threshold", "reset_by", "min_membrane")
INITIAL_MEMBRANE, INITIAL_SPIKES, ALPHA, THRESHOLD, RESET_BY, MIN_MEMBRANE = range(len(LANE_GRADIENTS))

# The parameters, and the rows of a state, of neurons with coupled variables, in the order of enum CoupledParameter and
# of enum CoupledStateRow in core/coupled_neuron.h. Their gradients are rows of one tensor, states first.
COUPLED_PARAMETERS = (
    "alpha",
    "threshold",
    "reset_by",
    "min_membrane",
    "synapse_alpha",
    "synapse_gain",
    "adapt_alpha",
    "adapt_membrane",
    "adapt_by",
    "adapt_current",
    "adapt_threshold",
)
COUPLED_STATES = ("membrane", "spikes", "current", "adaptation", "refractory")

# Bits of the argument `couplings`, those of Coupling::of, and of `kept`; KEPT_SPIKES stands for KEPT_CURRENT where the
# membrane is given.
COUPLING_SYNAPSE, COUPLING_ADAPTATION, COUPLING_DELAYED, COUPLING_TIED = 1, 2, 4, 8
COUPLING_SENSES, COUPLING_INHIBITS, COUPLING_RAISES = 16, 32, 64
KEPT_CURRENT, KEPT_ADAPTATION, KEPT_REFRACTORY = 1, 2, 4
KEPT_SPIKES = 1


def follows_membrane(x: Tensor, couplings: int) -> bool:
    """True if `coupled_backward` can compute adaptation and refractory steps from the membrane of neurons with input x.

    CPU kernels do that in less time than writing and reading the traces takes; not where the adaptation senses a
    membrane that is rounded where it is stored.
    """
    rounded = compute_dtype(x.dtype) != x.dtype
    return x.device.type == "cpu" and HAS_BITS and not (rounded and couplings & COUPLING_SENSES)


lif_forward: _Pair = with_room(torch.ops.exodus.lif_forward.default, outputs=2)
lif_backward: _Pair = with_room(
    torch.ops.exodus.lif_backward.default, outputs=1, more=_lane_gradient_bytes(len(LANE_GRADIENTS))
)
lif_backward_summed: _Pair = torch.ops.exodus.lif_backward_summed.default
coupled_forward: Callable[..., tuple[Tensor, ...]] = with_room(
    torch.ops.exodus.coupled_forward.default, outputs=2, more=_traced_bytes
)
coupled_backward: _Pair = with_room(
    torch.ops.exodus.coupled_backward.default,
    outputs=1,
    more=_lane_gradient_bytes(len(COUPLED_STATES) + len(COUPLED_PARAMETERS)),
)
coupled_traces: Callable[..., tuple[Tensor, Tensor, Tensor]] = with_room(
    torch.ops.exodus.coupled_traces.default, outputs=0, more=_kept_bytes
)
srm_forward: _Pair = with_room(torch.ops.exodus.srm_forward.default, outputs=2, more=_past_bytes)
srm_backward: _Pair = with_room(torch.ops.exodus.srm_backward.default, outputs=1, more=_srm_backward_bytes)
filter: Callable[..., Tensor] = with_room(torch.ops.exodus.filter.default, outputs=1, more=_past_bytes)
taps_gradient: Callable[..., Tensor] = torch.ops.exodus.taps_gradient.default
lif_forward_packed: _Pair = torch.ops.exodus.lif_forward_packed.default
pack_spikes: Callable[[Tensor, float], tuple[Tensor, int]] = torch.ops.exodus.pack_spikes.default
count_spikes: Callable[[Tensor], int] = torch.ops.exodus.count_spikes.default
unpack_spikes: Callable[[Tensor, int, Tensor], Tensor] = torch.ops.exodus.unpack_spikes.default
spike_linear: Callable[[Tensor, Tensor | None, Tensor, Tensor | None], Tensor] = torch.ops.exodus.spike_linear.default
spike_linear_weight: Callable[[Tensor, Tensor | None, Tensor, int], Tensor] = (
    torch.ops.exodus.spike_linear_weight.default
)
spike_convolution: Callable[..., Tensor] = torch.ops.exodus.spike_convolution.default
spike_convolution_weight: Callable[..., tuple[Tensor, Tensor]] = torch.ops.exodus.spike_convolution_weight.default
sparse_gradient_convolution: Callable[..., Tensor] = torch.ops.exodus.sparse_gradient_convolution.default
output: Callable[[Tensor, Sequence[int]], Tensor] = torch.ops.exodus.output.default
max_pool2d: Callable[..., tuple[Tensor, Tensor]] = torch.ops.exodus.max_pool2d.default
max_pool2d_backward: Callable[..., Tensor] = torch.ops.exodus.max_pool2d_backward.default
avg_pool2d: Callable[..., Tensor] = torch.ops.exodus.avg_pool2d.default
avg_pool2d_backward: Callable[..., Tensor] = torch.ops.exodus.avg_pool2d_backward.default
instruction_set: Callable[[], str] = torch.ops.exodus.instruction_set.default
keep_memory: Callable[[int], int] = torch.ops.exodus.keep_memory.default
kept_memory: Callable[[], tuple[int, int]] = torch.ops.exodus.kept_memory.default


@torch.library.register_fake("exodus::output")
def _(like: Tensor, size: Sequence[int]) -> Tensor:
    return like.new_empty(size)


def may_be_cached(x: Tensor) -> bool:
    """True if tensors like x may be made in memory of the cache of outputs, which no transform may see."""
    return (
        x.device.type == "cpu"
        and HAS_BITS
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(x)  # of is_grads_batched
    )


def contiguous(x: Tensor) -> Tensor:
    """x, or a contiguous copy of it: on the CPU in memory of the cache of outputs. Not differentiable."""
    if x.is_contiguous() or not may_be_cached(x):
        return x.contiguous()
    return output(x, x.shape).copy_(x.detach())


def contiguous_or_constant(x: Tensor, time_dim: int) -> Tensor:
    """x as the forward passes of neurons read it. Not differentiable.

    A contiguous copy of it; or x as it is where it is a contiguous tensor without time that is expanded over the steps,
    of which the kernels of the CPU read one step again and again.
    """
    if x.is_contiguous():
        return x
    constant = x.shape[time_dim] > 1 and x.stride(time_dim) == 0 and may_be_cached(x)
    return x if constant and x.select(time_dim, 0).is_contiguous() else contiguous(x)


@torch.library.register_fake("exodus::lif_forward")
def _(
    input: Tensor,
    alpha: float,
    threshold: float,
    reset_by: float,
    min_membrane: float,
    max_spikes: float,
    alphas: Tensor | None,
    thresholds: Tensor | None,
    resets_by: Tensor | None,
    min_membranes: Tensor | None,
    initial_membrane: Tensor | None,
    initial_spikes: Tensor | None,
    reset: int,
    bound_after_reset: bool,
    time_dim: int,
) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape), input.new_empty(input.shape)


@torch.library.register_fake("exodus::lif_forward_packed")
def _(
    input: Tensor,
    alpha: float,
    threshold: float,
    reset_by: float,
    min_membrane: float,
    alphas: Tensor | None,
    thresholds: Tensor | None,
    resets_by: Tensor | None,
    min_membranes: Tensor | None,
    initial_membrane: Tensor | None,
    initial_spikes: Tensor | None,
    reset: int,
    bound_after_reset: bool,
    time_dim: int,
) -> tuple[Tensor, Tensor]:
    outer, inner = _lane_shape(input, time_dim)
    bits = input.new_empty((outer, input.shape[time_dim], -(-inner // 8)), dtype=torch.uint8)
    return bits, input.new_empty(input.shape)


@torch.library.register_fake("exodus::lif_backward")
def _(
    membrane: Tensor,
    grad_spikes: Tensor | None,
    grad_membrane: Tensor | None,
    alpha: float,
    threshold: float,
    reset_by: float,
    min_membrane: float,
    max_spikes: float,
    alphas: Tensor | None,
    thresholds: Tensor | None,
    resets_by: Tensor | None,
    min_membranes: Tensor | None,
    initial_membrane: Tensor | None,
    initial_spikes: Tensor | None,
    reset: int,
    bound_after_reset: bool,
    surrogate: int,
    slope: float,
    scale: float,
    method: int,
    with_lanes: bool,
    time_dim: int,
) -> tuple[Tensor, Tensor]:
    lanes = (len(LANE_GRADIENTS) if with_lanes else 0, *_lane_shape(membrane, time_dim))
    return torch.empty_like(membrane), membrane.new_empty(lanes, dtype=compute_dtype(membrane.dtype))


@torch.library.register_fake("exodus::lif_backward_summed")
def _(membrane: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    with_lanes, time_dim = arguments[-2:]
    shape = _lane_shape(membrane, time_dim)
    return membrane.new_empty(shape), membrane.new_empty((len(LANE_GRADIENTS) if with_lanes else 0, *shape))


@torch.library.register_fake("exodus::coupled_forward")
def _(
    input: Tensor,
    numbers: Sequence[float],
    parameters: Tensor | None,
    initial: Tensor | None,
    max_spikes: float,
    refractory: int,
    reset: int,
    couplings: int,
    kept: int,
    time_dim: int,
) -> tuple[Tensor, ...]:
    traces = [
        input.new_empty(input.shape if kept & bit else (0,)) for bit in (KEPT_CURRENT, KEPT_ADAPTATION, KEPT_REFRACTORY)
    ]
    shape = (len(COUPLED_STATES), *_lane_shape(input, time_dim))
    last = input.new_empty(shape, dtype=compute_dtype(input.dtype))
    return input.new_empty(input.shape), input.new_empty(input.shape), *traces, last


@torch.library.register_fake("exodus::coupled_traces")
def _(
    membrane: Tensor,
    numbers: Sequence[float],
    parameters: Tensor | None,
    initial: Tensor | None,
    max_spikes: float,
    refractory: int,
    reset: int,
    couplings: int,
    kept: int,
    time_dim: int,
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_like(membrane) if kept & bit else membrane.new_empty((0,))
        for bit in (KEPT_SPIKES, KEPT_ADAPTATION, KEPT_REFRACTORY)
    )


@torch.library.register_fake("exodus::coupled_backward")
def _(
    membrane: Tensor,
    current: Tensor | None,
    adaptation: Tensor | None,
    held: Tensor | None,
    grad_spikes: Tensor | None,
    grad_membrane: Tensor | None,
    grad_last: Tensor | None,
    numbers: Sequence[float],
    parameters: Tensor | None,
    initial: Tensor | None,
    max_spikes: float,
    refractory: int,
    reset: int,
    couplings: int,
    followed: int,
    surrogate: int,
    slope: float,
    scale: float,
    method: int,
    with_lanes: bool,
    time_dim: int,
) -> tuple[Tensor, Tensor]:
    rows = len(COUPLED_STATES) + len(COUPLED_PARAMETERS)
    lanes = (rows if with_lanes else 0, *_lane_shape(membrane, time_dim))
    return torch.empty_like(membrane), membrane.new_empty(lanes, dtype=compute_dtype(membrane.dtype))


@torch.library.register_fake("exodus::srm_forward")
def _(
    psp: Tensor,
    taps: Tensor | None,
    decay: Sequence[float],
    constant: Sequence[float],
    linear: Sequence[float],
    threshold: float,
    thresholds: Tensor | None,
    time_dim: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(psp), torch.empty_like(psp)


@torch.library.register_fake("exodus::srm_backward")
def _(
    membrane: Tensor,
    grad_spikes: Tensor | None,
    grad_membrane: Tensor | None,
    taps: Tensor | None,
    decay: Sequence[float],
    constant: Sequence[float],
    linear: Sequence[float],
    threshold: float,
    thresholds: Tensor | None,
    surrogate: int,
    slope: float,
    scale: float,
    method: int,
    with_threshold: bool,
    time_dim: int,
) -> tuple[Tensor, Tensor]:
    outer, inner = _lane_shape(membrane, time_dim)
    lanes = (outer if with_threshold else 0, inner)
    return torch.empty_like(membrane), membrane.new_empty(lanes, dtype=compute_dtype(membrane.dtype))


@torch.library.register_fake("exodus::filter")
def _(
    input: Tensor,
    taps: Tensor | None,
    decay: Sequence[float],
    constant: Sequence[float],
    linear: Sequence[float],
    reverse: bool,
    time_dim: int,
) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("exodus::taps_gradient")
def _(grad: Tensor, source: Tensor, length: int, delay: int, time_dim: int) -> Tensor:
    return grad.new_empty((length,), dtype=compute_dtype(grad.dtype))


@torch.library.register_fake("exodus::pack_spikes")
def _(input: Tensor, max_density: float) -> tuple[Tensor, int]:
    return input.new_empty((input.shape[0], -(-input.shape[1] // 8)), dtype=torch.uint8), 1


@torch.library.register_fake("exodus::unpack_spikes")
def _(bits: Tensor, columns: int, like: Tensor) -> Tensor:
    return like.new_empty((bits.shape[0], columns))


@torch.library.register_fake("exodus::spike_linear")
def _(bits: Tensor, values: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight.new_empty((bits.shape[0], weight.shape[0]))


@torch.library.register_fake("exodus::spike_linear_weight")
def _(bits: Tensor, values: Tensor | None, grad: Tensor, columns: int) -> Tensor:
    return grad.new_empty((grad.shape[1], columns))


@torch.library.register_fake("exodus::spike_convolution")
def _(
    bits: Tensor,
    values: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    room = [size[i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1 for i in range(2)]
    return weight.new_empty((bits.shape[0], weight.shape[0], *(room[i] // stride[i] + 1 for i in range(2))))


@torch.library.register_fake("exodus::spike_convolution_weight")
def _(
    bits: Tensor,
    values: Tensor | None,
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), weight.new_empty(weight.shape[:1])


@torch.library.register_fake("exodus::sparse_gradient_convolution")
def _(
    bits: Tensor,
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    return weight.new_empty((bits.shape[0], weight.shape[1], *size))


def _pooled(
    size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Windows of a plane, along both axes."""
    return [(size[i] + 2 * padding[i] - kernel_size[i]) // stride[i] + 1 for i in range(2)]


@torch.library.register_fake("exodus::max_pool2d")
def _(
    input: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], with_places: bool
) -> tuple[Tensor, Tensor]:
    shape = (*input.shape[:-2], *_pooled(input.shape[-2:], kernel_size, stride, padding))
    return input.new_empty(shape), input.new_empty(shape if with_places else (0,), dtype=torch.uint8)


@torch.library.register_fake("exodus::max_pool2d_backward")
def _(
    grad: Tensor,
    places: Tensor,
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    return grad.new_empty((*grad.shape[:-2], *size))


@torch.library.register_fake("exodus::avg_pool2d")
def _(input: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], divisor: int) -> Tensor:
    return input.new_empty((*input.shape[:-2], *_pooled(input.shape[-2:], kernel_size, stride, padding)))


@torch.library.register_fake("exodus::avg_pool2d_backward")
def _(
    grad: Tensor,
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    divisor: int,
) -> Tensor:
    return grad.new_empty((*grad.shape[:-2], *size))
