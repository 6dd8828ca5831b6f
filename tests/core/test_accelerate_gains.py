"""Gains of accelerated layers: factors of an input or a current over all steps, wherever they are multiplied."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from exodus_core.accelerate import fused
from exodus_core.accelerate.fused import Neuron, run
from exodus_core.accelerate.gains import times
from exodus_core.accelerate.refusal import NotMappedError

GAINS: dict[str, Any] = {
    "number": 0.3,
    "negative": -0.4,
    "tensor": torch.tensor(0.3, dtype=torch.float64),
    "one element": torch.tensor([0.3], dtype=torch.float64),
    "per neuron": torch.linspace(0.2, 0.9, 5, dtype=torch.float64),
    "per channel": torch.linspace(0.2, 0.9, 2, dtype=torch.float64).view(2, 1),
}
NEURONS = {
    "plain": Neuron(alpha=0.9, threshold=0.4, reset="subtract", synapse_alpha=0.8),
    "gain per neuron": Neuron(
        alpha=0.9, threshold=0.3, reset="subtract", synapse_alpha=0.8, gain=torch.linspace(0.5, 1, 5).double()
    ),
    "delayed": Neuron(alpha=0.9, threshold=0.4, reset="zero", synapse_alpha=0.8, synapse_delayed=True),
    "adaptive": Neuron(
        alpha=0.9, threshold=0.4, reset="zero", synapse_alpha=0.8, adapt_alpha=0.7, adapt_threshold=0.2, adapt_by=0.1
    ),
    "recurrent": Neuron(
        alpha=0.9,
        threshold=0.4,
        reset="subtract",
        synapse_alpha=0.8,
        recurrent_weight=torch.linspace(-0.3, 0.5, 100, dtype=torch.float64).view(10, 10),
        recurrent_bias=torch.linspace(-0.1, 0.1, 10, dtype=torch.float64),
        bias_at_rest=False,
    ),
}


def over_calls(neuron: Neuron, steps: list[Tensor], start: str, *, by_hand: Any = None) -> tuple[list[Tensor], Tensor]:
    """Outputs and states of successive calls, and a weighted sum of all; by_hand multiplies inputs beforehand."""
    generator = torch.Generator().manual_seed(5)
    shape = steps[0].select(1, 0).shape
    state: dict[str, Any] = {}
    if start == "with a state":
        names = ("membrane", "current")
        state = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name in names}
        if neuron.recurrent_weight is None:
            state["spikes"] = torch.zeros(shape, dtype=torch.float64)
    found: list[Tensor] = []
    for x in steps:
        ran = run(neuron, x if by_hand is None else x * by_hand, 1, **state)
        assert ran.spikes is not None
        assert ran.last_current is not None
        state = {"membrane": ran.last_membrane, "spikes": ran.last_spikes, "current": ran.last_current}
        if neuron.adapt_alpha is not None:
            state["adaptation"] = ran.last_adaptation
        found += [ran.spikes, *(part for part in state.values() if part is not None)]
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in found]
    return found, torch.stack([(part * w).sum() for part, w in zip(found, weights, strict=True)]).sum()


@pytest.mark.parametrize("start", ["at rest", "with a state"])
@pytest.mark.parametrize("gain", GAINS.values(), ids=GAINS)
@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_a_gain_of_the_synapse_in_the_kernel_is_one_of_its_input(neuron: Neuron, gain: Any, start: str) -> None:
    torch.manual_seed(0)
    steps = [torch.randn(3, 21, 2, 5, dtype=torch.float64) + 0.5 for _ in range(2)]
    results = []
    for by_hand in (False, True):
        leaves = [x.clone().requires_grad_() for x in steps]
        learnt = gain.clone().requires_grad_() if isinstance(gain, Tensor) else gain
        if by_hand:
            reference = neuron
            if neuron.recurrent_weight is not None:  # W s + b is multiplied by the gain too
                rows = torch.as_tensor(learnt, dtype=torch.float64).expand(2, 5).reshape(10)
                weight, bias = neuron.recurrent_weight, neuron.recurrent_bias
                assert bias is not None
                reference = replace(neuron, recurrent_weight=rows.view(-1, 1) * weight, recurrent_bias=rows * bias)
            outputs, total = over_calls(reference, leaves, start, by_hand=learnt)
        else:
            with_gain = replace(neuron, synapse_gain=learnt)
            assert fused._current_scale(with_gain, steps[0], 1, trace=False) is learnt
            outputs, total = over_calls(with_gain, leaves, start)
        total.backward()
        found = [*outputs, *(leaf.grad for leaf in leaves)]
        if isinstance(learnt, Tensor):
            found.append(learnt.grad)
        results.append(found)
    assert 0.01 < results[0][0].mean() < 0.99
    for got, wanted in zip(*results, strict=True):
        assert got is not None
        assert wanted is not None
        if bool((wanted == wanted.round()).all()):
            assert torch.equal(got, wanted)
        assert torch.allclose(got, wanted, rtol=0, atol=1e-11 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize(
    "gain", [0.0, torch.tensor(0.0), torch.tensor([0.5, 0.0]), torch.tensor([0.5, 1e-42])], ids=str
)
def test_a_gain_that_no_state_can_be_divided_by(gain: Any) -> None:
    neuron = Neuron(alpha=0.9, threshold=0.4, reset="subtract", synapse_alpha=0.8, synapse_gain=gain)
    torch.manual_seed(0)
    x = torch.rand(3, 20, 2)
    start = torch.full((3, 2), 2.0)
    assert fused._current_scale(neuron, x, 1, trace=False) is None
    ran = run(neuron, x, 1, current=start)
    reference = run(replace(neuron, synapse_gain=None), x * gain, 1, current=start)
    assert ran.spikes is not None
    assert ran.spikes[..., -1].any()
    for got, wanted in zip(ran, reference, strict=True):
        assert (got is None) == (wanted is None)
        assert got is None or torch.equal(got, wanted)


def test_a_gain_that_differs_between_samples_is_refused() -> None:
    neuron = Neuron(alpha=0.9, threshold=0.4, reset="subtract", synapse_alpha=0.8, synapse_gain=torch.ones(3, 2) / 2)
    with pytest.raises(NotMappedError, match=r"constants of shape \(3, 2\)"):
        run(neuron, torch.rand(3, 20, 2), 1)


def test_currents_over_time_are_those_of_the_neuron() -> None:
    neuron = Neuron(alpha=0.9, threshold=0.4, reset="subtract", synapse_alpha=0.8, synapse_gain=0.5)
    x = torch.rand(3, 20, 2)
    ran = run(neuron, x, 1, trace=True)
    assert ran.current is not None
    assert ran.last_current is not None
    assert torch.equal(ran.current[:, -1], ran.last_current)
    untraced = run(neuron, x, 1)
    assert untraced.last_current is not None
    assert torch.allclose(untraced.last_current, ran.last_current)


def test_a_gain_that_widens_the_dtype() -> None:
    gain = torch.tensor([0.5, 0.7], dtype=torch.float64)
    neuron = Neuron(alpha=0.9, threshold=0.4, reset="subtract", synapse_alpha=0.8, synapse_gain=gain)
    ran = run(neuron, torch.rand(3, 20, 2), 1)
    assert ran.spikes is not None
    assert ran.spikes.dtype == torch.float64


@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_transforms_of_the_gain_of_a_synapse(transform: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 20, 2, dtype=torch.float64)

    def loss(gain: Tensor) -> Tensor:
        found = run(Neuron(alpha=0.9, threshold=0.4, reset="subtract", synapse_alpha=0.8, synapse_gain=gain), x, 1)
        assert found.last_current is not None
        return found.last_membrane.square().sum() + found.last_current.sum()

    gains = torch.tensor([0.3, 0.6], dtype=torch.float64)
    if transform == "vmap":
        mapped = torch.func.vmap(loss)(gains)
        assert torch.allclose(mapped, torch.stack([loss(gain) for gain in gains]))
    else:
        leaf = gains[0].clone().requires_grad_()
        loss(leaf).backward()
        assert leaf.grad is not None
        assert torch.allclose(torch.func.grad(loss)(gains[0]), leaf.grad)


LARGE = (20, 64, 70)  # 358 kB of float32: in cached memory


def gradients(x: Tensor, gain: Any, *, plain: bool, layout: str) -> list[Tensor | None]:
    leaf = x.clone().requires_grad_()
    learnt = gain.clone().requires_grad_() if isinstance(gain, Tensor) else gain
    seen = {"contiguous": leaf, "turned": leaf.transpose(0, 1), "every other": leaf[:, ::2], "expanded": leaf[:1]}[
        layout
    ]
    if layout == "expanded":
        seen = seen.expand(x.shape)
    found = seen * learnt if plain else times(seen, learnt)
    torch.manual_seed(3)
    (found * torch.randn(found.shape, dtype=x.dtype)).sum().backward()
    return [found.detach(), leaf.grad, learnt.grad if isinstance(gain, Tensor) else None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "turned", "every other", "expanded"])
@pytest.mark.parametrize(
    "gain",
    [0.3, torch.tensor(0.3), torch.tensor([0.3]), torch.linspace(0.2, 0.9, 70)],
    ids=["number", "scalar", "one element", "per neuron"],
)
def test_products_in_cached_memory_have_the_bits_of_plain_ones(gain: Any, layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(LARGE, dtype=dtype)
    found = gradients(x, gain, plain=False, layout=layout)
    for got, wanted in zip(found, gradients(x, gain, plain=True, layout=layout), strict=True):
        if got is None or wanted is None:
            assert got is wanted
        else:
            assert got.dtype == wanted.dtype
            assert torch.equal(got, wanted)


def test_what_is_not_differentiated_and_small_or_wider_products() -> None:
    x = torch.randn(LARGE)
    assert torch.equal(times(x, 0.3), x * 0.3)
    assert not times(x, torch.tensor(0.3)).requires_grad
    assert times(x, torch.ones(70, dtype=torch.float64)).dtype == torch.float64
    assert torch.equal(times(x[0, 0], 0.3), x[0, 0] * 0.3)
    gain = torch.tensor(0.3, requires_grad=True)
    with torch.no_grad():
        assert times(x, gain).grad_fn is None


@pytest.mark.parametrize("wanted", ["both", "x", "gain"])
def test_a_gradient_of_one_factor_alone(wanted: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(LARGE, requires_grad=wanted != "gain")
    gain = torch.tensor(0.3, requires_grad=wanted != "x")
    times(x, gain).square().sum().backward()
    found = (x.grad, gain.grad)
    x.grad = gain.grad = None
    (x * gain).square().sum().backward()
    for got, expected in zip(found, (x.grad, gain.grad), strict=True):
        assert got is expected is None or torch.equal(got, expected)


@pytest.mark.parametrize("gain", [0.3, torch.tensor(0.3), torch.linspace(0.2, 0.9, 70)], ids=["number", "one", "many"])
def test_second_derivatives_of_products(gain: Any) -> None:
    found = []
    for product in (times, lambda x, gain: x * gain):
        torch.manual_seed(0)
        x = torch.randn(LARGE, dtype=torch.float64).requires_grad_()
        learnt = gain.double().requires_grad_() if isinstance(gain, Tensor) else gain
        leaves = [x, learnt] if isinstance(learnt, Tensor) else [x]
        first = torch.autograd.grad(product(x, learnt).pow(3).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves)
        found.append((*first, *second))
    for got, wanted in zip(*found, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, on entering the level
def test_transforms_and_batches_of_gradients_of_products() -> None:
    torch.manual_seed(0)
    x, gain = torch.randn(2, *LARGE), torch.tensor(0.3)
    assert torch.equal(torch.func.vmap(times, (0, None))(x, gain), x * gain)
    by_gain = torch.func.grad(lambda gain: times(x[0], gain).square().sum())(gain)
    tangents = torch.func.jvp(lambda gain: times(x[0], gain), (gain,), (torch.ones(()),))
    assert torch.equal(tangents[1], x[0])
    leaf = gain.clone().requires_grad_()
    (x[0] * leaf).square().sum().backward()
    assert leaf.grad is not None
    assert torch.allclose(by_gain, leaf.grad)
    product = times(x[0].requires_grad_(), leaf)
    batch = torch.randn(3, *LARGE)
    found = torch.autograd.grad(product, leaf, batch, is_grads_batched=True)[0]
    assert torch.allclose(found, (batch * x[0]).sum((1, 2, 3)), rtol=1e-4, atol=1e-3)


def test_a_product_is_in_memory_of_its_own() -> None:
    x = torch.randn(LARGE)
    first, second = times(x, 0.5), times(x, 2.0)
    assert torch.equal(first, x * 0.5)
    assert torch.equal(second, x * 2.0)
    assert first.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@pytest.mark.parametrize("steps", [20, 1000])
def test_gains_of_more_neurons_than_the_input_has(steps: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(100, steps, 1)
    gain = torch.linspace(0.1, 1.0, 7).requires_grad_()
    assert torch.equal(times(x, gain), x * gain)
    neuron = Neuron(alpha=0.9, threshold=0.4, reset="subtract", synapse_alpha=torch.linspace(0.5, 0.9, 7))
    ran = run(replace(neuron, synapse_gain=gain), x, 1)
    expected = run(neuron, x * gain, 1)
    for found, wanted in zip(ran, expected, strict=True):
        if wanted is not None:
            assert found is not None
            assert torch.equal(found, wanted)
