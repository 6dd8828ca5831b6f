"""An input that is the same in every step: a tensor without time that is expanded over it is read without a copy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import exodus_core
from assertions import DTYPES, RESETS, name_of
from exodus_core import functional, ops
from exodus_core.accelerate import fused
from exodus_core.accelerate.fused import Neuron, run

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


summing = pytest.mark.skipif(not ops.HAS_BITS, reason="kernels of the CPU alone sum over time")


@summing
@pytest.mark.parametrize("lanes", [False, True], ids=["input only", "with lanes"])
@pytest.mark.parametrize(("shape", "time_dim"), [*SHAPES, ((2, 300, 37), 1), ((700, 3, 1), 1)], ids=str)
def test_a_gradient_summed_over_time_is_the_sum_of_that_of_each_step(
    shape: tuple[int, ...], time_dim: int, lanes: bool
) -> None:
    torch.manual_seed(0)
    membrane, grad_spikes, grad_membrane = torch.randn(3, *shape)
    neuron = (0.9, 1.0, 1.0, -1.0, 1.0, *[None] * 6)
    number_of = {"none": 0, "subtract": 1, "zero": 3}
    for method, (reset, decayed) in [(0, reset) for reset in RESETS] + [(1, RESETS[0])]:
        rule = (number_of[reset] + decayed, False, 0, 1.0, 1.0, method, lanes, time_dim)
        for grads in ((grad_spikes, None), (grad_spikes, grad_membrane)):
            each, of_lanes = ops.lif_backward(membrane, *grads, *neuron, *rule)
            sums, of_lanes_too = ops.lif_backward_summed(membrane, *grads, *neuron, *rule)
            assert torch.equal(of_lanes, of_lanes_too)
            wanted = each.double().sum(time_dim).view(sums.shape)
            # A block of up to 128 steps is summed one by one.
            roundings = min(shape[time_dim], 128) / 2 + 1
            scale = each.double().abs().sum(time_dim).view(sums.shape)
            assert bool(((sums.double() - wanted).abs() <= roundings * torch.finfo(torch.float32).eps * scale).all())
            assert sums.any()


@summing
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=name_of)
def test_a_summed_gradient_of_another_dtype_is_refused(dtype: torch.dtype) -> None:
    signal = torch.randn(2, 7, 20, dtype=dtype)
    with pytest.raises(RuntimeError, match="a gradient summed over time must be float32"):
        ops.lif_backward_summed(
            signal, signal, None, 0.9, 1.0, 1.0, -1.0, 1.0, *[None] * 6, 1, False, 0, 1.0, 1.0, 0, False, 1
        )


@summing
def test_a_sum_over_many_steps_is_as_exact_as_one_in_blocks() -> None:
    shape = (1, 20_000, 33)
    torch.manual_seed(0)
    membrane, grad = torch.randn(shape), torch.rand(shape)
    arguments = (0.5, 1.0, 1.0, -1.0, 1.0, *[None] * 6, 0, False, 1, 1.0, 1.0, 0, False, 1)
    each, _ = ops.lif_backward(membrane, grad, None, *arguments)
    sums, _ = ops.lif_backward_summed(membrane, grad, None, *arguments)
    wanted = each.double().sum(1)
    assert float(((sums - wanted) / wanted).abs().max()) < 2e-6


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("shape", "time_dim"), SHAPES, ids=str)
def test_the_one_step_takes_the_gradient(
    shape: tuple[int, ...], time_dim: int, dtype: torch.dtype, learnt: bool
) -> None:
    x = constant(shape, time_dim, dtype).unsqueeze(time_dim)
    found = []
    for one_step in (True, False):
        leaf = x.clone().requires_grad_()
        alpha = torch.tensor(0.9, dtype=ops.compute_dtype(dtype)).requires_grad_(learnt)
        view = leaf.expand(shape)
        outputs = functional.lif_with_last(view, alpha, one_step=leaf if one_step else None, time_dim=time_dim)
        weights = [torch.linspace(-1, 2, output.numel(), dtype=dtype).view(output.shape) for output in outputs]
        torch.stack([(output * w).sum() for output, w in zip(outputs, weights, strict=True)]).sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        found.append([*(output.detach() for output in outputs), alpha.grad, leaf.grad])
    for got, wanted in zip(found[0][:-1], found[1][:-1], strict=True):
        assert got is wanted is None or torch.equal(got, wanted)
    tolerance = shape[time_dim] * torch.finfo(dtype).eps
    torch.testing.assert_close(found[0][-1], found[1][-1], rtol=tolerance, atol=4 * tolerance)


CONSTANT = {
    "spiking": Neuron(alpha=0.9, threshold=1.0, reset="subtract"),
    "with a gain": Neuron(
        alpha=0.9, threshold=1.0, reset="zero", gain=torch.tensor(0.5, dtype=torch.float64), offset=0.3
    ),
    "integrator": Neuron(alpha=0.9, gain=0.5),
}


@pytest.mark.parametrize("neuron", CONSTANT.values(), ids=CONSTANT)
def test_accelerated_neurons_give_their_gradient_to_the_one_step(neuron: Neuron) -> None:
    found = []
    for one_step in (True, False):
        torch.manual_seed(0)
        leaf = torch.rand(1, 4, 20, dtype=torch.float64, requires_grad=True)
        x = fused.expanded(leaf * 1, 0, 30) if one_step else (leaf * 1).expand(30, 4, 20)
        ran = run(neuron, x, 0)
        outputs = [part for part in (ran.spikes, ran.membrane, ran.last_membrane) if part is not None]
        torch.stack([output.square().sum() for output in outputs]).sum().backward()
        found.append([*outputs, leaf.grad])
    for got, wanted in zip(*found, strict=True):
        assert got is not None
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


def nodes(tensor: Tensor) -> set[str]:
    """Names of the functions in the graph of a tensor."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return {node.name() for node in seen}


@pytest.mark.parametrize("waiting", ["nobody", "retain_grad", "hook"])
def test_a_gradient_that_somebody_waits_for_is_not_summed(waiting: str) -> None:
    leaf = torch.rand(1, 4, 20, requires_grad=True)
    x = fused.expanded(leaf * 1, 0, 30)
    seen: list[Tensor] = []
    if waiting == "retain_grad":
        x.retain_grad()
    elif waiting == "hook":
        x.register_hook(seen.append)
    spikes = run(CONSTANT["spiking"], x, 0).spikes
    assert spikes is not None
    assert ("ExpandBackward0" in nodes(spikes)) == (waiting != "nobody" or not ops.HAS_BITS)
    spikes.square().sum().backward()
    if waiting == "retain_grad":
        assert x.grad is not None
        assert x.grad.shape == (30, 4, 20)
    elif waiting == "hook":
        assert seen[0].shape == (30, 4, 20)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
def test_batches_of_gradients_and_second_derivatives_of_the_one_step(dtype: torch.dtype, rtol: float) -> None:
    leaf = torch.rand(1, 4, 20, dtype=dtype, requires_grad=True)
    batch = torch.rand(3, 30, 4, 20, dtype=dtype)
    found = []
    for one_step in (leaf, None):
        membrane = functional.lif_with_last(leaf.expand(30, 4, 20), 0.9, one_step=one_step, time_dim=0)[1]
        mapped = torch.autograd.grad(membrane, leaf, batch, is_grads_batched=True, retain_graph=True)[0]
        by_transform = torch.func.vmap(lambda g, m=membrane: torch.autograd.grad(m, leaf, g, retain_graph=True)[0])(
            batch
        )
        assert torch.allclose(mapped, by_transform, rtol=rtol)
        found.append(mapped)
        (grad,) = torch.autograd.grad(membrane.square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            grad.sum().backward()
    assert torch.allclose(found[0], found[1], rtol=rtol)
