"""Gradients accumulated over calls, averaged by calls or by samples, are those of one big batch."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from exodus_core import network
from exodus_core.training import NonFiniteError, StateError, Trainer

DATA: list[dict[str, Any]] = [
    {"kind": "linear", "in_features": 6, "out_features": 8},
    {"kind": "lif", "alpha": 0.9, "trainable": ["alpha"], "recurrent": {}},
    {"kind": "linear", "out_features": 4},
    {"kind": "exp_leak", "alpha": 0.9},
]
LOSS: Any = ["max_over_time_ce", {"kind": "spike_rate_bounds", "upper": 0.0, "weight": 0.1}]
#: Of each optimiser, in float64.
OPTIMIZERS = [{"kind": "sgd", "lr": 0.1, "momentum": 0.9}, {"kind": "adam", "lr": 0.01}]


def trainer(optimizer: Any = "sgd", dtype: str = "float64") -> Trainer:
    return Trainer(network.build({"dtype": dtype, "layers": DATA}, seed=1), optimizer)


def batch(samples: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, classes and lengths."""
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.rand(samples, 9, 6, generator=generator, device="cpu") < 0.4
    y = torch.randint(0, 4, (samples,), generator=generator, device="cpu")
    return x, y, torch.randint(1, 10, (samples,), generator=generator, device="cpu")


def add(trainer: Trainer, sizes: Sequence[int], **options: Any) -> None:
    """Accumulate a batch in parts of these sizes."""
    for x, y, lengths in zip(*(t.split(list(sizes)) for t in batch(sum(sizes))), strict=True):
        trainer.forward_backward(x, y, LOSS, lengths=lengths, **options)


def whole(trainer: Trainer, samples: int, **options: Any) -> None:
    x, y, lengths = batch(samples)
    trainer.step(x, y, LOSS, lengths=lengths, **options)


def close(one: Trainer, other: Trainer) -> bool:
    first, second = one.state(), other.state()
    return first.keys() == second.keys() and all(
        torch.allclose(first[n], second[n], rtol=1e-10, atol=1e-13) for n in first if n != "random"
    )


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize(
    ("sizes", "accumulate"), [([4, 4, 4], "calls"), ([4, 4, 4], "samples"), ([5, 1, 3], "samples")]
)
def test_the_average_is_the_step_of_one_big_batch(optimizer: Any, sizes: list[int], accumulate: str) -> None:
    parts, together = trainer(optimizer), trainer(optimizer)
    for _ in range(3):
        add(parts, sizes, accumulate=accumulate)
        parts.optim_step(average=True, clip_norm=0.3)
        whole(together, sum(sizes), clip_norm=0.3)
        assert close(parts, together)


def test_parts_of_other_sizes_are_no_big_batch_if_calls_are_counted() -> None:
    parts, together = trainer(), trainer()
    add(parts, [5, 1, 3])
    parts.optim_step(average=True)
    whole(together, 9)
    assert not close(parts, together)


def test_a_step_may_be_the_last_of_the_calls() -> None:
    parts, together = trainer(OPTIMIZERS[1]), trainer(OPTIMIZERS[1])
    x, y, lengths = batch(9)
    parts.forward_backward(x[:5], y[:5], LOSS, lengths=lengths[:5], accumulate="samples")
    parts.step(x[5:], y[5:], LOSS, lengths=lengths[5:], accumulate="samples", average=True)
    whole(together, 9)
    assert close(parts, together)


def test_one_call_that_is_averaged_has_the_bits_of_one_that_is_not() -> None:
    ours, plain, samples = (trainer(dtype="float32") for _ in range(3))
    whole(ours, 8, average=True)
    whole(plain, 8)
    whole(samples, 8, accumulate="samples", average=True)  # 8 is a power of two
    assert torch.equal(ours.weights(), plain.weights())
    assert torch.equal(samples.weights(), plain.weights())


def test_without_an_average_gradients_are_summed() -> None:
    parts, other = trainer(), trainer()
    add(parts, [2, 4], accumulate="samples")
    gradients = []
    for x, y, lengths in zip(*(t.split([2, 4]) for t in batch(6)), strict=True):
        other.forward_backward(x, y, LOSS, lengths=lengths)
        gradients.append(other.gradients())
        other.optim_step(gradients=torch.zeros_like(gradients[0]))
    assert torch.allclose(parts.gradients(), 2 * gradients[0] + 4 * gradients[1], rtol=1e-12)
    assert torch.allclose(parts.gradients(average=True), parts.gradients() / 6, rtol=1e-14)
    assert not other.gradients(average=True).any()


def test_the_count_is_part_of_the_state_and_ends_with_the_step() -> None:
    first, second = trainer(), trainer()
    add(first, [2, 4], accumulate="samples")
    second.load_state(first.state())
    assert first.state()["gradients.count"].tolist() == [6, 1]
    for each in (first, second):
        each.optim_step(average=True)
        add(each, [3, 3])
        assert each.state()["gradients.count"].tolist() == [2, 0]
        each.optim_step(average=True)
        assert "gradients.count" not in each.state()
    assert torch.equal(first.weights(), second.weights())


def test_a_state_of_before_gradients_were_counted_loads_and_cannot_be_averaged() -> None:
    ours, other = trainer(), trainer()
    add(ours, [2, 4])
    old = {name: value for name, value in ours.state().items() if name != "gradients.count"}
    other.load_state(old)
    assert other.state().keys() == old.keys()
    with pytest.raises(ValueError, match="average must be false for gradients that were not counted"):
        other.optim_step(average=True)
    add(other, [3])
    assert "gradients.count" not in other.state()
    add(ours, [3])
    assert ours.optim_step() == other.optim_step()
    add(other, [3])
    assert other.state()["gradients.count"].tolist() == [1, 0]


def test_a_backward_pass_counts_too() -> None:
    ours, other = trainer(), trainer()
    for size in (2, 4):
        forward = ours.begin(batch(size)[0])
        ours.backward(forward, torch.ones_like(forward.outputs) / size, accumulate="samples")
    forward = other.begin(torch.cat([batch(2)[0], batch(4)[0]]))
    other.backward(forward, torch.ones_like(forward.outputs) / 6)
    assert torch.allclose(ours.gradients(average=True), other.gradients(), rtol=1e-10, atol=1e-14)


def test_gradients_that_others_have_cleared_are_not_counted() -> None:
    ours = trainer()
    add(ours, [2, 4], accumulate="samples")
    ours.net.zero_grad()
    add(ours, [3])
    assert ours.state()["gradients.count"].tolist() == [1, 0]


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    ours = trainer()
    add(ours, [3])
    before = ours.state()
    x, y, _ = batch(2)
    for call, message in (
        (lambda: ours.step(x, y, LOSS, accumulate="samples"), "accumulate must be 'calls', as in the calls before"),
        (lambda: ours.step(x, y, LOSS, accumulate="all"), "accumulate must be 'calls' or 'samples', got 'all'"),
        (lambda: ours.step(x, y, LOSS, average=1), "average must be true or false, got 1"),
        (lambda: ours.optim_step(gradients=ours.gradients(), average=True), "average must be false with gradients"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    after = ours.state()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(StateError, match=r"gradients\.count must be torch\.int64"):
        ours.load_state({**before, "gradients.count": torch.ones(2)})
    for total in (0, 2**53 + 1, 2**63 - 1):
        with pytest.raises(
            StateError, match=rf"gradients\.count must be a number from 1 to 2\*\*53.*, got \[{total}, 0"
        ):
            ours.load_state({**before, "gradients.count": torch.tensor([total, 0])})
    ours.load_state({**before, "gradients.count": torch.tensor([2**53, 0])})
    add(ours, [3])
    assert ours.state()["gradients.count"].tolist() == [2**53 + 1, 0]


def test_a_sum_of_finite_gradients_that_is_not_finite_changes_nothing() -> None:
    made = trainer(dtype="float32")
    x, _, _ = batch(4)

    def add_scaled(accumulate: str) -> dict[str, float]:
        forward, other = made.begin(x), trainer(dtype="float32")
        norm = other.backward(other.begin(x), torch.ones_like(forward.outputs))["total"]
        return made.backward(forward, torch.full_like(forward.outputs, 1e19 / norm), accumulate=accumulate)

    refused_at_once = made.state()
    with pytest.raises(NonFiniteError, match="must be finite, got inf"):
        add_scaled("samples")
    assert same(made.state(), refused_at_once)
    assert math.isfinite(add_scaled("calls")["total"])
    before = made.state()
    with pytest.raises(NonFiniteError, match="must be finite, got inf"):
        add_scaled("calls")
    assert same(made.state(), before)
    huge: Any = [{"kind": "max_over_time_ce", "weight": 2e19}]
    with pytest.raises(NonFiniteError, match="must be finite"):
        trainer(dtype="float32").forward_backward(x, batch(4)[1], huge, accumulate="samples")
    made.forward_backward(x, batch(4)[1], huge, allow_non_finite=True)


def test_an_accumulated_gradient_of_what_is_frozen_may_be_of_any_size() -> None:
    made = trainer("sgd", "float32")
    x, y, _ = batch(4)
    made.forward_backward(x, y, LOSS)
    first = next(iter(made.net.parameters()))
    assert first.grad is not None
    first.grad.fill_(torch.inf)
    made.forward_backward(x, y, LOSS, frozen=["0"])
    made.optim_step(frozen=["0"])
