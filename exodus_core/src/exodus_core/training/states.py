"""The state of a training as named tensors: taken as clones, loaded only if every tensor fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from exodus_core.errors import ArgumentTypeError, must_be
from exodus_core.network import Network
from exodus_core.training.accumulation import Count
from exodus_core.training.errors import StateError

WEIGHTS, OPTIMIZER, GRADIENTS, RANDOM = "weights", "optimizer", "gradients", "random"
#: Tensor with the count of the accumulated gradients; no parameter has a name without a dot.
COUNT = f"{GRADIENTS}.count"
_COUNT_BYTES = 16
# Far below the largest int64, so that no training counts beyond that.
_LARGEST_COUNT = 2**53
_STEP = "step"


def _optimizer_tensors(net: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {}
    for name, parameter in net.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):  # plain SGD keeps a None
                found[f"{OPTIMIZER}.{name}.{slot}"] = value
    return found


def _gradients(net: Network) -> dict[str, Tensor]:
    named = net.named_parameters()
    return {f"{GRADIENTS}.{name}": p.grad for name, p in named if p.grad is not None}


def _tensors(net: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    weights = {f"{WEIGHTS}.{name}": value for name, value in net.state_dict().items()}
    return weights | _optimizer_tensors(net, optimizer) | _gradients(net)


def check_mapping(name: str, given: object) -> None:
    """Checks that tensors are given by names. Raises ArgumentTypeError."""
    if not isinstance(given, Mapping):
        raise ArgumentTypeError(name, "a mapping of names to tensors", type(given).__name__)
    for key in given:
        if not isinstance(key, str):
            raise ArgumentTypeError(name, "a mapping of names to tensors", f"one with a key of {type(key).__name__}")


def collect(net: Network, optimizer: torch.optim.Optimizer, count: Count) -> dict[str, Tensor]:
    """Clones of all tensors of the state."""
    cloned = {name: value.detach().clone() for name, value in _tensors(net, optimizer).items()}
    counted = count.tensor()
    own = {COUNT: counted} if counted is not None and _gradients(net) else {}
    return cloned | own | {RANDOM: net.generator.get_state()}


def nbytes(net: Network, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the state without the generator's."""
    count = _COUNT_BYTES if _gradients(net) else 0
    return count + sum(value.nbytes for value in _tensors(net, optimizer).values())


def _check(name: str, value: object, like: Tensor, dtypes: tuple[torch.dtype, ...] | None = None) -> None:
    if not isinstance(value, Tensor):
        raise StateError(must_be(name, "a tensor", type(value).__name__))
    wanted = dtypes or (like.dtype,)
    if value.dtype not in wanted:
        raise StateError(must_be(name, str(wanted[0]), value.dtype))
    if value.shape != like.shape:
        raise StateError(must_be(name, f"of shape {tuple(like.shape)}", tuple(value.shape)))


def load(state: Mapping[str, Tensor], net: Network, optimizer: torch.optim.Optimizer, slots: Sequence[str]) -> Count:
    """Replaces weights, running statistics, optimiser state, accumulated gradients and generator.

    Gradients exist for all parameters, or for none if none are accumulated. The optimiser's state of a parameter exists
    as a whole, or not at all before its first step.

    Returns:
        The count of the accumulated gradients; states of before there was one have none.

    Raises:
        StateError: the first tensor that is missing, too many or of another shape or dtype. Nothing has changed.
        ArgumentTypeError: the state is no mapping by names.
    """
    check_mapping("state", state)
    parameters = dict(net.named_parameters())
    own = {f"{WEIGHTS}.{name}": value for name, value in net.state_dict().items()}
    expected = dict(own)
    step = torch.zeros((), dtype=torch.float32, device="cpu")
    stepped = {name for name in parameters if any(f"{OPTIMIZER}.{name}.{slot}" in state for slot in slots)}
    for name in [name for name in parameters if name in stepped]:
        expected |= {f"{OPTIMIZER}.{name}.{slot}": step if slot == _STEP else parameters[name] for slot in slots}
    accumulated = any(name.startswith(f"{GRADIENTS}.") for name in state)
    if accumulated:
        expected |= {f"{GRADIENTS}.{name}": parameter for name, parameter in parameters.items()}
        if COUNT in state:
            expected[COUNT] = torch.zeros(2, dtype=torch.int64, device="cpu")
    expected[RANDOM] = net.generator.get_state()
    for name, like in expected.items():
        if name not in state:
            raise StateError(must_be(name, "in the state", "none"))
        # torch counts steps in the default dtype.
        dtypes = (torch.float32, torch.float64) if like is step else None
        _check(name, state[name], like, dtypes)
    for name in state:
        if name not in expected:
            raise StateError(must_be(name, "absent from a state of this network and optimiser", "a tensor"))
    count = _count(state.get(COUNT)) if accumulated else Count()
    random = state[RANDOM].detach().to("cpu", copy=True)
    try:
        torch.Generator(net.generator.device).set_state(random)
    except RuntimeError as error:
        raise StateError(must_be(RANDOM, "the state of a generator", f"another: {error}")) from None
    # All that can fail for want of memory is done before the first change.
    device = net.device
    moved = {
        name: state[name].detach().to(device if like is not step else "cpu", copy=True)
        for name, like in expected.items()
        if not name.startswith(f"{WEIGHTS}.") and name not in (RANDOM, COUNT)
    }
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
    for name, parameter in parameters.items():
        parameter.grad = moved[f"{GRADIENTS}.{name}"] if accumulated else None
        if name in stepped:
            optimizer.state[parameter] = {slot: moved[f"{OPTIMIZER}.{name}.{slot}"] for slot in slots}
        else:
            optimizer.state.pop(parameter, None)
    net.generator.set_state(random)
    return count


def _count(tensor: Tensor | None) -> Count:
    if tensor is not None and not (1 <= int(tensor[0]) <= _LARGEST_COUNT and int(tensor[1]) in (0, 1)):
        raise StateError(must_be(COUNT, "a number from 1 to 2**53, and 0 or 1", tensor.tolist()))
    return Count.of(tensor)
