"""With lengths or a mask, steps that do not count contribute to no loss and no gradient: as each sample alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from exodus_core import losses, network
from exodus_core.losses import LossError
from exodus_core.training import Trainer

B, T, N = 4, 9, 3
LENGTHS = torch.tensor([9, 1, 5, 7])
#: Every loss, and a sum of them.
LOSSES: list[Any] = [
    "sum_over_time_ce",
    "max_over_time_ce",
    {"kind": "max_over_time_ce", "class_weights": [1.0, 2.0, 0.5], "label_smoothing": 0.1},
    "per_step_ce",
    {"kind": "per_step_ce", "class_weights": [1.0, 2.0, 0.5], "label_smoothing": 0.1},
    "spike_train_mse",
    {"kind": "van_rossum", "alpha": 0.8},
    "spike_count_mse",
    {"kind": "spike_rate_mse", "rate": 0.2},
    {"kind": "spike_rate_mse", "rate": 0.2, "of": "sample"},
    {"kind": "spike_rate_bounds", "lower": 0.1, "upper": 0.3},
    ["sum_over_time_ce", {"kind": "spike_rate_bounds", "upper": 0.01, "weight": 3.0}],
]
PER_STEP = ("spike_train_mse", "van_rossum")


def kind_of(loss: Any) -> str:
    return loss if isinstance(loss, str) else loss[0] if isinstance(loss, list) else loss["kind"]


def targets_of(loss: Any, per_step: bool) -> Tensor | None:
    kind = kind_of(loss)
    if kind.startswith("spike_rate"):
        return None
    if kind in PER_STEP:
        return torch.rand(B, T, N) < 0.3
    if kind == "spike_count_mse":
        return torch.randint(0, 4, (B, N))
    return torch.randint(0, N, (B, T) if per_step and kind == "per_step_ce" else (B,))


def own(tensor: Tensor | None, sample: int, length: int) -> Tensor | None:
    """The part of one sample, as many steps as count where it has steps."""
    if tensor is None:
        return None
    part = tensor[sample : sample + 1]
    return part[:, :length] if tensor.dim() > 1 and tensor.shape[1] == T else part


def test_every_loss_is_here() -> None:
    assert {kind_of(loss) for loss in LOSSES} == set(losses.KINDS)


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("given", ["lengths", "mask"])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_the_loss_of_a_batch_is_the_mean_of_each_sample_alone_at_its_length(
    loss: Any, given: str, per_step: bool
) -> None:
    y = torch.randn(B, T, N, dtype=torch.float64).requires_grad_()
    targets, function = targets_of(loss, per_step), losses.parse(loss)
    steps = torch.arange(T) < LENGTHS[:, None]
    value = function(y, targets, **{given: LENGTHS if given == "lengths" else steps})
    (grad,) = torch.autograd.grad(value.loss, y)
    alone, wanted = [], torch.zeros_like(y)
    for b, length in enumerate(LENGTHS.tolist()):
        part = y[b : b + 1, :length].detach().requires_grad_()
        alone.append(function(part, own(targets, b, length)))
        wanted[b : b + 1, :length] = torch.autograd.grad(alone[-1].loss, part)[0] / B
    assert value.metrics.keys() == alone[0].metrics.keys()
    combined = losses.combine([{name: v.item() for name, v in one.metrics.items()} for one in alone])
    assert {name: v.item() for name, v in value.metrics.items()} == pytest.approx(combined, rel=1e-12)
    assert torch.allclose(grad, wanted, rtol=1e-12, atol=1e-15)
    assert not grad[~steps].any(), "exactly 0 beyond the length"


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_what_is_at_steps_that_do_not_count_has_no_influence_even_if_it_is_not_finite(loss: Any) -> None:
    y = torch.randn(B, T, N)
    targets, function = targets_of(loss, True), losses.parse(loss)
    other, steps = y.clone(), torch.arange(T) < LENGTHS[:, None]
    other[~steps] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    noise = targets
    if targets is not None and targets.dim() > 1 and targets.shape[1] == T:
        noise = targets.clone() if kind_of(loss) == "per_step_ce" else targets.float()
        noise[~steps] = -100
    pairs = []
    for outputs, wanted in ((y, targets), (other, noise)):
        leaf = outputs.requires_grad_()
        value = function(leaf, wanted, lengths=LENGTHS)
        pairs.append((value.loss, torch.autograd.grad(value.loss, leaf)[0]))
    assert torch.equal(pairs[0][0], pairs[1][0])
    assert torch.equal(pairs[0][1], pairs[1][1])


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_full_lengths_are_no_lengths(loss: Any) -> None:
    y, targets, function = torch.randn(B, T, N, dtype=torch.float64), targets_of(loss, True), losses.parse(loss)
    assert function(y, targets, lengths=torch.full((B,), T)).loss.item() == pytest.approx(
        function(y, targets).loss.item(), rel=1e-12
    )


@pytest.mark.parametrize("loss", ["sum_over_time_ce", "per_step_ce", "spike_train_mse", "spike_count_mse"])
def test_a_mask_may_leave_out_steps_in_the_middle(loss: str) -> None:
    y, targets = torch.randn(B, T, N, dtype=torch.float64), targets_of(loss, True)
    kept = torch.tensor([0, 2, 3, 6])
    mask = torch.zeros(B, T, dtype=torch.bool)
    mask[:, kept] = True
    shorter = targets
    if targets is not None and targets.dim() > 1 and targets.shape[1] == T:
        shorter = targets[:, kept]
    function = losses.parse(loss)
    expected = function(y[:, kept], shorter).loss.item()
    assert function(y, targets, mask=mask).loss.item() == pytest.approx(expected, rel=1e-12)


def test_filtered_differences_outlive_steps_that_do_not_count() -> None:
    y, mask = torch.zeros(1, 4, 1), torch.tensor([[True, False, False, True]])
    trains = torch.tensor([1.0, 9.0, 9.0, 0.0]).reshape(1, 4, 1)
    value = losses.parse({"kind": "van_rossum", "alpha": 0.5})(y, trains, mask=mask)
    assert value.loss.item() == (1.0 + 0.125**2) / 2


LAYERS: list[dict[str, Any]] = [
    {"kind": "linear", "in_features": 6, "out_features": 8},
    {"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"], "recurrent": {"bias": True}},
    {"kind": "linear", "out_features": N},
    {"kind": "lif", "alpha": 0.8},
]


@pytest.mark.parametrize("checkpoint_steps", [None, 4])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_gradients_of_a_network_are_the_mean_of_those_of_each_sample_alone(
    loss: Any, checkpoint_steps: int | None
) -> None:
    data = {"dtype": "float64", "layers": LAYERS, "checkpoint_steps": checkpoint_steps}
    together, alone = (Trainer(network.build(data, seed=1), "sgd") for _ in range(2))
    x, targets = torch.rand(B, T, 6) < 0.5, targets_of(loss, True)
    result = together.forward_backward(x, targets, loss, lengths=LENGTHS)
    parts = []
    for b, length in enumerate(LENGTHS.tolist()):
        parts.append(alone.forward_backward(x[b : b + 1, :length], own(targets, b, length), loss).metrics)
    assert torch.allclose(together.gradients(), alone.gradients() / B, rtol=1e-10, atol=1e-14)
    assert result.metrics == pytest.approx(losses.combine(parts), rel=1e-12)


@pytest.mark.parametrize(
    ("given", "pointer", "expected", "got"),
    [
        ({"lengths": torch.tensor([1, 2, 3])}, "/lengths", "of shape (4,)", "(3,)"),
        ({"lengths": torch.tensor([1, 2, 3, 10])}, "/lengths", "lengths from 1 to 9", "10"),
        ({"lengths": torch.tensor([1, 2, 0, 9])}, "/lengths", "lengths from 1 to 9", "0"),
        ({"lengths": torch.ones(4)}, "/lengths", "an integer tensor", "torch.float32"),
        ({"lengths": torch.ones(4, dtype=torch.bool)}, "/lengths", "an integer tensor", "torch.bool"),
        ({"lengths": [1, 2, 3, 4]}, "/lengths", "an integer tensor", "list"),
        ({"mask": torch.ones(4, 9)}, "/mask", "a bool tensor", "torch.float32"),
        ({"mask": torch.ones(9, 4).bool()}, "/mask", "of shape (4, 9), (batch, time)", "(9, 4)"),
        (
            {"mask": torch.eye(4, 9).bool().roll(1, 0) & (torch.arange(4) != 2)[:, None]},
            "/mask",
            "one step",
            "sample 2",
        ),
        ({"mask": torch.ones(4, 9).bool(), "lengths": LENGTHS}, "/lengths", "absent with a mask", "both"),
    ],
)
def test_lengths_and_masks_that_do_not_fit_are_refused(given: Any, pointer: str, expected: str, got: str) -> None:
    trainer = Trainer(network.build(LAYERS, seed=1), "sgd")
    x, targets = torch.zeros(B, T, 6), torch.zeros(B, dtype=torch.int64)
    for call in (
        lambda: losses.parse("sum_over_time_ce")(torch.zeros(B, T, N), targets, **given),
        lambda: trainer.step(x, targets, "sum_over_time_ce", **given),
    ):
        with pytest.raises(LossError) as caught:
            call()
        assert caught.value.pointer == pointer
        assert expected in caught.value.expected
        assert got in caught.value.got


def test_lengths_are_refused_where_other_steps_would_count_all_the_same() -> None:
    x, targets = torch.zeros(B, T, 6), torch.zeros(B, dtype=torch.int64)
    normed = Trainer(network.build([*LAYERS[:1], {"kind": "batch_norm"}, *LAYERS[1:]], seed=1), "sgd")
    with pytest.raises(ValueError, match="lengths must be None for a network with batch norm"):
        normed.step(x, targets, "sum_over_time_ce", lengths=LENGTHS)
    trainer, function = Trainer(network.build(LAYERS, seed=1), "sgd"), losses.parse("sum_over_time_ce")
    with pytest.raises(ValueError, match="mask must be None with a loss that is a function"):
        trainer.step(x, targets, lambda y, t: function(y, t), mask=torch.ones(B, T).bool())


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.int8], ids=str)
@pytest.mark.parametrize("loss", ["sum_over_time_ce", "per_step_ce"])
def test_lengths_and_classes_are_integers_of_any_kind(loss: str, dtype: torch.dtype) -> None:
    function, y = losses.parse(loss), torch.rand(B, T, N)
    for targets in (torch.randint(0, N, (B,)), torch.randint(0, N, (B, T)))[: 1 + (loss == "per_step_ce")]:
        expected = function(y, targets, lengths=LENGTHS)
        assert function(y, targets.to(dtype), lengths=LENGTHS.to(dtype)).loss == expected.loss
    with pytest.raises(LossError, match="lengths from 1 to 9"):
        function(y, targets, lengths=torch.zeros(B, dtype=dtype))


def test_an_empty_batch_is_refused_with_lengths_as_without() -> None:
    trainer = Trainer(network.build(LAYERS, seed=1), "sgd")
    x, targets = torch.zeros(0, T, 6), torch.zeros(0, dtype=torch.int64)
    for given in ({}, {"lengths": LENGTHS[:0]}, {"mask": torch.ones(0, T).bool()}):
        with pytest.raises(ValueError, match="must be"):
            trainer.step(x, targets, "sum_over_time_ce", **given)
        with pytest.raises(LossError, match="not empty"):
            losses.parse("sum_over_time_ce")(torch.zeros(0, T, N), targets, **given)
