"""An input that is the same in every step: a tensor without time that is expanded over it is read without a copy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import exodus_core
from assertions import DTYPES, name_of
from exodus_core import functional, ops

Neurons = Callable[..., tuple[Tensor, Tensor]]


def cuba_lif(x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return exodus_core.cuba_lif(x, 0.9, 0.8, **options)


def lif(x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return exodus_core.lif(x, 0.9, **options)


def constant(shape: tuple[int, ...], time_dim: int, dtype: torch.dtype) -> Tensor:
    """The input without time, and a view of it with all steps."""
    torch.manual_seed(0)
    return torch.rand(shape[:time_dim] + shape[time_dim + 1 :], dtype=dtype)


def expanded(x: Tensor, shape: tuple[int, ...], time_dim: int) -> Tensor:
    return x.unsqueeze(time_dim).expand(shape)


SHAPES = [
    ((40, 3, 70), 0),
    ((3, 33, 17), 1),
    ((2, 65, 5), 1),  # rows too short to be read in place
    ((3, 20, 2, 40), 1),
    ((5, 7, 50), 2),  # time last
    ((1, 2, 1), 1),
    ((4, 1, 30), 1),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("shape", "time_dim"), SHAPES, ids=str)
@pytest.mark.parametrize("neurons", [lif, cuba_lif], ids=["lif", "cuba_lif"])
def test_a_view_gives_the_bits_and_gradients_of_its_copy(
    neurons: Neurons, shape: tuple[int, ...], time_dim: int, dtype: torch.dtype
) -> None:
    x = constant(shape, time_dim, dtype)
    found = []
    for copied in (False, True):
        leaf = x.clone().requires_grad_()
        view = expanded(leaf, shape, time_dim)
        spikes, membrane = neurons(view.contiguous() if copied else view, time_dim=time_dim)
        weights = torch.linspace(-1, 1, spikes.numel(), dtype=dtype).view(shape)
        (spikes * weights + membrane * weights.flip(0)).sum().backward()
        found.append((spikes.detach(), membrane.detach(), leaf.grad))
        assert spikes.is_contiguous()
        assert membrane.is_contiguous()
    for of_view, of_copy in zip(*found, strict=True):
        assert of_view is not None
        assert of_copy is not None
        assert torch.equal(of_view, of_copy)
    assert found[0][0].any() or dtype in (torch.float16, torch.bfloat16) or shape[time_dim] < 3


@pytest.mark.parametrize("grad", [False, True])
def test_spikes_as_bits(grad: bool) -> None:
    x = constant((3, 33, 17), 1, torch.float32).requires_grad_(grad)
    view = expanded(x, (3, 33, 17), 1)
    packed = functional.lif_packed(view, 0.9)
    assert isinstance(packed, exodus_core.PackedSpikes) == ops.HAS_BITS
    spikes = packed.unpack() if isinstance(packed, exodus_core.PackedSpikes) else packed
    assert torch.equal(spikes, exodus_core.lif(view.contiguous(), 0.9)[0])


def test_values_beside_the_input_are_not_read() -> None:
    buffer = torch.full((2, 5, 50), torch.nan)
    buffer[1] = constant((5, 9, 50), 1, torch.float32)
    view = buffer[1].unsqueeze(1).expand(5, 9, 50)
    spikes, membrane = exodus_core.lif(view, 0.9)
    again = exodus_core.lif(view.contiguous(), 0.9)
    assert torch.equal(spikes, again[0])
    assert torch.equal(membrane, again[1])


@pytest.mark.parametrize(
    "view",
    [
        torch.rand(4, 50).T.unsqueeze(1).expand(50, 9, 4),
        torch.rand(1, 1, 50).expand(4, 9, 50),
        torch.rand(4, 9, 1).expand(4, 9, 50),
        torch.rand(4, 18, 50)[:, ::2],
        torch.rand(4, 9, 100)[..., ::2],
    ],
    ids=["turned", "all expanded", "neurons expanded", "every other step", "every other neuron"],
)
def test_other_views_are_copied(view: Tensor) -> None:
    spikes, membrane = exodus_core.lif(view, 0.9)
    again = exodus_core.lif(view.clone(memory_format=torch.contiguous_format), 0.9)
    assert torch.equal(spikes, again[0])
    assert torch.equal(membrane, again[1])


def test_a_transform_of_a_view() -> None:
    x = constant((3, 9, 20), 1, torch.float64)

    def loss(x: Tensor) -> Tensor:
        return exodus_core.lif(expanded(x, (3, 9, 20), 1), 0.9)[1].square().sum()

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    assert torch.equal(torch.func.grad(loss)(x), leaf.grad)
    mapped = torch.func.vmap(lambda x: exodus_core.lif(x.unsqueeze(0).expand(9, 20), 0.9, time_dim=0)[1])(x)
    assert torch.equal(mapped, exodus_core.lif(expanded(x, (3, 9, 20), 1), 0.9)[1])


def test_a_compiled_function_of_a_view() -> None:
    def membrane(x: Tensor) -> Tensor:
        return exodus_core.lif(x.unsqueeze(1).expand(3, 9, 20), 0.9)[1]

    x = constant((3, 9, 20), 1, torch.float32)
    compiled = torch.compile(membrane, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), membrane(x))
