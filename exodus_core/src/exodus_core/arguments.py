"""Checks the arguments of the public functions and brings them into the form that the operators take."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from exodus_core._library import CUDA
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.kernels import MODAL_KERNELS, Kernel
from exodus_core.ops import compute_dtype
from exodus_core.surrogate import DEFAULT_SURROGATE, KINDS, Surrogate

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
METHODS = ("exodus", "slayer", "bptt")
RESETS = ("subtract", "zero", "none")
#: The resets of neurons whose parameters include the value that they are reset to.
NEURON_RESETS = (*RESETS, "value")
NEURONS = ("lif", "if", "cuba_lif", "alif", "srm")
LARGEST = 2**31 - 1
#: Steps are counted in float32, which has every integer up to here.
LARGEST_REFRACTORY = 2**24
_SURROGATES = tuple(KINDS.values())

# The numbers are those of enum Method in csrc/core/adjoint.h. BPTT does not reach the operators. EXODUS with a detached
# reset has a number of its own.
DETACHED_RESET = 2
METHOD_NUMBERS = {"exodus": 0, "slayer": 1, "bptt": 0}

# The numbers are those of enum Reset in csrc/core/neuron.h.
RESET_NUMBERS = {("none", False): 0, ("subtract", False): 1, ("subtract", True): 2, ("zero", False): 3}


def is_number(value: Any) -> bool:
    """True for a real number, NumPy's scalars too, and for no bool."""
    return isinstance(value, (float, int, Real)) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """True for an integer, NumPy's too, and for no bool."""
    return isinstance(value, (int, Integral)) and not isinstance(value, bool)


def integer(name: str, value: Any) -> int:
    """A value as an int, checked to be an integer."""
    if not is_integer(value):
        raise ArgumentTypeError(name, "an int", type(value).__name__)
    return int(value)


def check_dense(name: str, tensor: Tensor) -> None:
    """Checks that a tensor has strides: is neither sparse nor nested nor of another library's layout."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        got = "a nested tensor" if tensor.is_nested else f"one of layout {tensor.layout}"
        raise ArgumentTypeError(name, "a dense tensor", got)


def check_signal(name: str, x: Tensor, time_dim: int) -> int:
    """Checks a (outer..., time, inner...) float tensor; returns time_dim counted from the front."""
    if not isinstance(x, Tensor):
        raise ArgumentTypeError(name, "a torch.Tensor", type(x).__name__)
    if x.dtype not in FLOATS:
        raise ArgumentTypeError(name, "float32, float64, float16 or bfloat16", x.dtype)
    check_dense(name, x)
    if x.is_cuda and not CUDA.loaded:
        raise RuntimeError(f"{name} is on {x.device}, and there are no CUDA kernels: {CUDA.reason}")
    ndim = x.dim()
    time_dim = integer("time_dim", time_dim)
    if not -ndim <= time_dim < ndim:
        raise ArgumentError("time_dim", f"an axis of {name} with shape {tuple(x.shape)}", time_dim)
    return time_dim % ndim


def check_like(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Checks that a gradient or companion has the shape, dtype and device of `like`."""
    if not isinstance(tensor, Tensor):
        raise ArgumentTypeError(name, "a torch.Tensor", type(tensor).__name__)
    if tensor.dtype != like.dtype:
        raise ArgumentTypeError(name, f"of the dtype of {like_name}, {like.dtype}", tensor.dtype)
    check_dense(name, tensor)
    if tensor.shape != like.shape:
        raise ArgumentError(name, f"of the shape of {like_name}, {tuple(like.shape)}", tuple(tensor.shape))
    if tensor.device != like.device:
        raise ArgumentError(name, f"on the device of {like_name}, {like.device}", tensor.device)


def check_method(method: str) -> None:
    """Checks that a method is one of METHODS."""
    if method not in METHODS:
        raise ArgumentError("method", f"one of {', '.join(METHODS)}", repr(method))


def check_surrogate(surrogate: Surrogate) -> None:
    """Checks that a surrogate is one of exodus_core.surrogate."""
    if not isinstance(surrogate, _SURROGATES):
        cls = surrogate if isinstance(surrogate, type) else type(surrogate)
        name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
        got = f"the class {name}" if cls is surrogate else name
        raise ArgumentTypeError("surrogate", "one of exodus_core.surrogate", got)


def reset_code(reset: str, decay_reset: bool, max_spikes: int) -> int:
    """The operator's number of a reset; checks what goes together."""
    max_spikes = integer("max_spikes", max_spikes)
    if max_spikes < 1:
        raise ArgumentError("max_spikes", "at least 1", max_spikes)
    if max_spikes > LARGEST:
        raise ArgumentError("max_spikes", f"at most {LARGEST}", f"an integer of {max_spikes.bit_length()} bits")
    if reset not in NEURON_RESETS:
        raise ArgumentError("reset", f"one of {', '.join(NEURON_RESETS)}", repr(reset))
    if reset in ("zero", "value") and max_spikes > 1:
        raise ArgumentError("max_spikes", f"1 with reset {reset!r}", max_spikes)
    return RESET_NUMBERS["zero" if reset == "value" else reset, bool(decay_reset) and reset == "subtract"]


def check_reset_to(reset: str, reset_to: float | Tensor | None) -> None:
    """Checks that reset "value" has a value, and other resets have none. A tensor is not read."""
    if reset == "value":
        if reset_to is None:
            raise ArgumentError("reset_to", "a value with reset 'value'", None)
        check_value("reset_to", reset_to)
    elif reset_to is not None:
        raise ArgumentError("reset_to", "None unless reset is 'value'", f"a value with reset {reset!r}")


def check_flag(name: str, value: Any) -> None:
    """Checks that a value is True or False."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(name, "a bool", type(value).__name__)


def refractory_steps(refractory: Any) -> int:
    """A refractory period in steps, checked."""
    steps = integer("refractory", refractory)
    if not 0 <= steps <= LARGEST_REFRACTORY:
        raise ArgumentError("refractory", f"an integer from 0 to {LARGEST_REFRACTORY}", steps)
    return steps


def _broadcast(name: str, tensor: Tensor, shape: Sequence[int], what: str) -> Tensor:
    try:
        return tensor.expand(shape)
    except RuntimeError:
        expected = f"values that broadcast to the {what}, {tuple(shape)}"
        raise ArgumentError(name, expected, f"shape {tuple(tensor.shape)}") from None


def check_value(name: str, value: float | Tensor) -> None:
    """Checks that a parameter is a number, or a dense tensor of floats. A tensor is not read."""
    if isinstance(value, Tensor):
        if value.dtype not in FLOATS:
            raise ArgumentTypeError(name, "a float or a float tensor", f"a tensor of {value.dtype}")
        check_dense(name, value)
        return
    if not is_number(value):
        raise ArgumentTypeError(name, "a float or a float tensor", type(value).__name__)
    if value != value:  # not math.isnan, which torch.compile cannot trace where numbers are dynamic
        raise ArgumentError(name, "a number", "nan")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ArgumentError(name, "a number of a float's size", f"an integer of {value.bit_length()} bits")


#: Parameters that are decays per step.
DECAYS = ("alpha", "synapse_alpha", "adapt_alpha")


def check_decay(name: str, value: float | Tensor) -> None:
    """Checks that a decay is in [0, 1]. A tensor is not read."""
    check_value(name, value)
    if not isinstance(value, Tensor) and not 0 <= value <= 1:
        raise ArgumentError(name, "in [0, 1]", value)


def check_alpha(alpha: float | Tensor) -> None:
    """Checks that the decay of the membrane is in [0, 1]. A tensor is not read."""
    check_decay("alpha", alpha)


# Up to so many elements, reading them in Python is faster than starting an operator.
_MAX_READ_ELEMENTS = 32


def _is_traced(tensor: Tensor) -> bool:
    """True for a tensor that stands for others and has no values: in torch.compile, export, make_fx, vmap, on meta."""
    return (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
        or tensor.is_meta
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _bounds(tensor: Tensor) -> tuple[float, float]:
    """Least and largest element; both NaN if any element is."""
    if tensor.numel() > _MAX_READ_ELEMENTS:
        low, high = torch.aminmax(tensor.detach())
        return low.item(), high.item()
    values = tensor.flatten().tolist()
    for value in values:
        if value != value:
            return value, value
    return min(values), max(values)


def check_values(name: str, tensor: Tensor, *, positive: bool = False) -> None:
    """Checks the elements of a parameter: no NaN, decays in [0, 1], positive if asked. A traced tensor is not read."""
    if _is_traced(tensor) or tensor.numel() == 0:
        return
    low, high = _bounds(tensor)
    if low != low:
        raise ArgumentError(name, "a number", "nan")
    if name in DECAYS and not 0 <= low <= high <= 1:
        raise ArgumentError(name, "in [0, 1]", low if low < 0 else high)
    if positive and low <= 0:
        raise ArgumentError(name, "positive", low)


def _check_constant(name: str, value: Tensor, *, positive: bool = False) -> None:
    """Reads a parameter if that is cheap: on the CPU, and not being trained."""
    if value.is_cpu and not value.requires_grad:
        check_values(name, value, positive=positive)


def _check_parameter_tensor(name: str, value: Tensor, x: Tensor) -> None:
    check_value(name, value)
    if value.device != x.device:
        raise ArgumentError(name, f"on the device of the input, {x.device}", value.device)


def parameter(
    name: str, value: float | Tensor, x: Tensor, time_dim: int, *, positive: bool = False
) -> tuple[float, Tensor | None]:
    """A neuron parameter as (number, tensor or None).

    The tensor is contiguous, in the compute dtype, with one element, or one for each inner index; it is made by
    differentiable operations, so a gradient with respect to it reaches `value`.
    """
    if isinstance(value, Tensor):
        _check_parameter_tensor(name, value, x)
        _check_constant(name, value, positive=positive)
        if value.numel() != 1:
            value = _broadcast(name, value, x.shape[time_dim + 1 :], "inner dimensions").reshape(-1)
        return 0.0, value.to(compute_dtype(x.dtype)).contiguous()
    check_value(name, value)
    return float(value), None


def decay(alpha: float | Tensor, x: Tensor, time_dim: int) -> tuple[float, Tensor | None]:
    """The parameter alpha."""
    check_alpha(alpha)
    return parameter("alpha", alpha, x, time_dim)


def check_threshold(threshold: float | Tensor, max_spikes: int) -> None:
    """Checks that a threshold which spikes are counted by is positive. A tensor is not read."""
    if max_spikes > 1 and not isinstance(threshold, Tensor) and not threshold > 0:
        raise ArgumentError("threshold", "positive if max_spikes > 1", threshold)


def initial_state(name: str, value: float | Tensor | None, x: Tensor, time_dim: int) -> Tensor | None:
    """A state at step -1: one value a lane (outer, inner), contiguous, in the compute dtype; None is zero."""
    if value is None:
        return None
    dtype = compute_dtype(x.dtype)
    if isinstance(value, Tensor):
        _check_parameter_tensor(name, value, x)
    else:
        number, _ = parameter(name, value, x, time_dim)
        if number == 0:
            return None
        value = x.new_tensor(number, dtype=dtype)
    shape = (*x.shape[:time_dim], *x.shape[time_dim + 1 :])
    return _broadcast(name, value, shape, "input without its time dimension").to(dtype).contiguous()


def check_kernel(name: str, kernel: Kernel) -> None:
    """Checks that a kernel is taps or one of exodus_core's."""
    if isinstance(kernel, Tensor):
        check_value(name, kernel)
        if kernel.dim() != 1 or kernel.numel() == 0:
            raise ArgumentError(name, "a 1-d tensor with at least one tap", f"shape {tuple(kernel.shape)}")
    elif not isinstance(kernel, MODAL_KERNELS):
        raise ArgumentTypeError(name, "a tensor of taps or one of exodus_core.kernels", type(kernel).__name__)


def _read(numbers: Sequence[float]) -> tuple[float, ...]:
    """Numbers, read here and not within an autograd function.

    torch.compile makes dynamic numbers inputs of the graph that reads them first. If that is the graph of one autograd
    function, the graph of the next does not find them.
    """
    return tuple(float(number) for number in numbers)


KernelArguments = tuple[Tensor | None, tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def kernel_arguments(name: str, kernel: Kernel, x: Tensor) -> KernelArguments:
    """A causal kernel as (taps or None, decay, constant, linear)."""
    check_kernel(name, kernel)
    if isinstance(kernel, Tensor):
        _check_parameter_tensor(name, kernel, x)
        return kernel.to(compute_dtype(x.dtype)).contiguous(), (), (), ()
    modes = kernel.modes
    return None, _read(modes.decay), _read(modes.constant), _read(modes.linear)


class LifSettings(NamedTuple):
    """The plain numbers of a LIF call, in the order that the operators take them."""

    alpha: float
    threshold: float
    reset_by: float
    min_membrane: float
    max_spikes: float
    reset: int
    bound_after_reset: bool
    surrogate: int
    slope: float
    scale: float
    method: int
    time_dim: int
    tied: bool  # reset_by is the threshold
    steps: int = 0  # that all read the one step of the input; 0: the input has its own for each

    @property
    def neuron(self) -> tuple[float, float, float, float, float]:
        return self[:5]

    @property
    def rule(self) -> tuple[int, bool]:
        """How a step follows from the one before."""
        return self.reset, self.bound_after_reset


class NeuronOptions(TypedDict, total=False):
    """The keyword arguments of `exodus_core.lif` that define the neurons, as functions pass them on."""

    threshold: float | Tensor
    reset: str
    reset_by: float | Tensor | None
    decay_reset: bool
    surrogate: Surrogate
    method: str
    min_membrane: float | Tensor | None
    bound_after_reset: bool
    max_spikes: int
    reset_to: float | Tensor | None
    detach_reset: bool
    refractory: int


class LifOptions(NeuronOptions, total=False):
    """All keyword arguments of `exodus_core.lif`."""

    initial_membrane: float | Tensor | None
    initial_spikes: float | Tensor | None
    time_dim: int


LIF_DEFAULTS: LifOptions = {
    "threshold": 1.0,
    "reset": "subtract",
    "reset_by": None,
    "decay_reset": False,
    "surrogate": DEFAULT_SURROGATE,
    "method": "exodus",
    "initial_membrane": None,
    "initial_spikes": None,
    "min_membrane": None,
    "bound_after_reset": False,
    "max_spikes": 1,
    "reset_to": None,
    "detach_reset": False,
    "refractory": 0,
    "time_dim": 1,
}
LifTensors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def is_coupled(
    reset: str = "subtract",
    detach_reset: bool = False,
    refractory: int = 0,
    method: str = "exodus",
    synapse_alpha: float | Tensor | None = None,
    adapt_alpha: float | Tensor | None = None,
    **_: Any,
) -> bool:
    """True if the operators of `coupled` compute these neurons: the state of LIF is a membrane and spikes alone."""
    others = reset == "value" or refractory != 0 or (bool(detach_reset) and reset == "zero" and method != "slayer")
    return others or synapse_alpha is not None or adapt_alpha is not None


def check_bound(
    bound_after_reset: Any,
    reset: str = "subtract",
    detach_reset: bool = False,
    refractory: int = 0,
    method: str = "exodus",
) -> None:
    """Checks that a bound is after the reset of neurons of the operators of LIF alone."""
    check_flag("bound_after_reset", bound_after_reset)
    if bound_after_reset and is_coupled(reset, detach_reset, refractory, method):
        refuse_bound_after_reset()


def refuse_bound_after_reset() -> None:
    """Raises the error for neurons that have no bound after the reset."""
    raise ArgumentError(
        "bound_after_reset",
        "False with reset 'value', a detached reset to zero, refractory steps, a synaptic current or an adaptation",
        True,
    )


def method_number(method: str, detach_reset: bool) -> int:
    """The operators' number of a method. SLAYER drops what is detached already."""
    return DETACHED_RESET if detach_reset and method == "exodus" else METHOD_NUMBERS[method]


def lif_arguments(x: Tensor, alpha: float | Tensor, **options: Unpack[LifOptions]) -> tuple[LifSettings, LifTensors]:
    """The arguments of `exodus_core.lif` as the operators of LIF take them, of neurons that are not `is_coupled`.

    The tensors are alphas, thresholds, resets_by, min_membranes, initial_membrane and initial_spikes, each None if it
    is a number.
    """
    given: LifOptions = {**LIF_DEFAULTS, **options}
    threshold, reset_by, min_membrane = given["threshold"], given["reset_by"], given["min_membrane"]
    surrogate, method = given["surrogate"], given["method"]
    max_spikes, time_dim = given["max_spikes"], given["time_dim"]
    check_method(method)
    check_surrogate(surrogate)
    reset_number = reset_code(given["reset"], given["decay_reset"], max_spikes)
    check_reset_to(given["reset"], given["reset_to"])
    check_flag("detach_reset", given["detach_reset"])
    check_flag("bound_after_reset", given["bound_after_reset"])
    refractory_steps(given["refractory"])
    # A reset that subtracts, detached, is what SLAYER computes.
    drops_reset = method == "slayer" or (method == "exodus" and bool(given["detach_reset"]))
    check_threshold(threshold, max_spikes)
    alpha_value, alphas = decay(alpha, x, time_dim)
    threshold_value, thresholds = parameter("threshold", threshold, x, time_dim, positive=max_spikes > 1)
    reset_by_value, resets_by = threshold_value, thresholds
    if reset_by is not None:
        reset_by_value, resets_by = parameter("reset_by", reset_by, x, time_dim)
    min_value, min_membranes = -math.inf, None
    if min_membrane is not None:
        min_value, min_membranes = parameter("min_membrane", min_membrane, x, time_dim)
    slope, scale = _read((surrogate.slope, surrogate.scale))
    settings = LifSettings(
        alpha_value,
        threshold_value,
        reset_by_value,
        min_value,
        float(max_spikes),
        reset_number,
        min_membrane is not None and given["bound_after_reset"],
        surrogate.code,
        slope,
        scale,
        METHOD_NUMBERS["slayer" if drops_reset else method],
        time_dim,
        reset_by is None,
    )
    state = (
        initial_state("initial_membrane", given["initial_membrane"], x, time_dim),
        initial_state("initial_spikes", given["initial_spikes"], x, time_dim),
    )
    return settings, (alphas, thresholds, resets_by, min_membranes, *state)


class SrmSettings(NamedTuple):
    """The plain numbers of an SRM call."""

    decay: tuple[float, ...]
    constant: tuple[float, ...]
    linear: tuple[float, ...]
    threshold: float
    surrogate: int
    slope: float
    scale: float
    method: int
    time_dim: int

    @property
    def modes(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        return self[:3]


def srm_arguments(
    z: Tensor, reset_kernel: Kernel, threshold: float | Tensor, surrogate: Surrogate, method: str, time_dim: int
) -> tuple[SrmSettings, Tensor | None, Tensor | None]:
    """The arguments of `exodus_core.srm` as the operators take them: settings, taps, thresholds."""
    check_method(method)
    check_surrogate(surrogate)
    taps, decay, constant, linear = kernel_arguments("reset_kernel", reset_kernel, z)
    if isinstance(reset_kernel, Tensor):
        _check_constant("reset_kernel", reset_kernel)  # unlike a filter's output, spikes would not show a NaN
    threshold_value, thresholds = parameter("threshold", threshold, z, time_dim)
    slope, scale = _read((surrogate.slope, surrogate.scale))
    settings = SrmSettings(
        decay,
        constant,
        linear,
        threshold_value,
        surrogate.code,
        slope,
        scale,
        METHOD_NUMBERS[method],
        time_dim,
    )
    return settings, taps, thresholds
