"""Losses against loops over samples, steps and neurons; what they refuse; and how metrics combine."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from exodus_core import losses

B, T, N = 3, 7, 5
CLASSES = torch.tensor([4, 0, 2])
#: Options without a default.
REQUIRED: dict[str, dict[str, Any]] = {
    "van_rossum": {"alpha": 0.9},
    "spike_rate_mse": {"rate": 0.1},
    "spike_rate_bounds": {"upper": 0.1},
}


def outputs(*shape: int) -> Tensor:
    return torch.randn(*(shape or (B, T, N)), dtype=torch.float64).requires_grad_()


def cross_entropy(logits: Any, target: Tensor, smoothing: float) -> Any:
    logs = [v - math.log(sum(math.exp(w) for w in logits)) for v in logits]
    return -(1 - smoothing) * logs[target] - smoothing * sum(logs) / len(logs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("kind", "over_time"), [("sum_over_time_ce", sum), ("max_over_time_ce", max)])
def test_cross_entropy_is_that_of_the_sum_or_the_maximum_over_time(
    kind: str, over_time: Callable[..., Any], smoothing: float
) -> None:
    y = outputs()
    value = losses.parse({"kind": kind, "label_smoothing": smoothing})(y, CLASSES)
    logits = [[over_time(y[b, t, n].item() for t in range(T)) for n in range(N)] for b in range(B)]
    expected = sum(cross_entropy(logits[b], CLASSES[b], smoothing) for b in range(B)) / B
    right = sum(row.index(max(row)) == target for row, target in zip(logits, CLASSES, strict=True))
    assert value.loss.item() == pytest.approx(expected, rel=1e-12)
    assert value.metrics["loss:mean"] == value.loss
    assert value.metrics["accuracy:mean"].item() == pytest.approx(right / B)
    assert value.metrics["samples:sum"] == B
    assert torch.autograd.gradcheck(lambda leaf: losses.parse(kind)(leaf, CLASSES).loss, (y,))


def test_of_equal_maxima_the_first_step_learns() -> None:
    y = torch.ones(1, 4, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(losses.parse("max_over_time_ce")(y, torch.tensor([1])).loss, y)
    assert grad[0].tolist() == [[0.5, -0.5], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("shape", [(B, T, N), (2, 5, 2, 3), (1, 1, 1), (4, 3)])
def test_spike_train_mse_is_the_mean_squared_difference(shape: tuple[int, ...]) -> None:
    y, target = outputs(*shape), torch.rand(shape) < 0.3
    value = losses.parse("spike_train_mse")(y, target)
    pairs = zip(y.flatten().tolist(), target.flatten().tolist(), strict=True)
    assert value.loss.item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / y.numel(), rel=1e-12)
    assert set(value.metrics) == {"loss:mean", "samples:sum"}


@pytest.mark.parametrize("alpha", [0.0, 0.8, 1.0])
def test_van_rossum_is_the_mean_squared_difference_of_filtered_trains(alpha: Any) -> None:
    y, target = outputs(B, T, 2, 2), torch.randint(0, 2, (B, T, 2, 2))
    value = losses.parse({"kind": "van_rossum", "alpha": alpha})(y, target)
    total = 0.0
    for b in range(B):
        ours = theirs = torch.zeros(2, 2, dtype=torch.float64)
        for t in range(T):
            ours, theirs = alpha * ours + y[b, t].detach(), alpha * theirs + target[b, t]
            total += (ours - theirs).square().sum().item()
    assert value.loss.item() == pytest.approx(total / y.numel(), rel=1e-12)
    assert torch.autograd.gradcheck(
        lambda leaf: losses.parse({"kind": "van_rossum", "alpha": alpha})(leaf, target).loss, (y,)
    )


def test_spike_count_mse_is_that_of_the_sums_over_time() -> None:
    y, target = outputs(B, T, 2, 2), torch.randint(0, 9, (B, 2, 2))
    value = losses.parse("spike_count_mse")(y, target)
    total = sum(((sum(y[b, t].detach() for t in range(T)) - target[b]) ** 2).sum().item() for b in range(B))
    assert value.loss.item() == pytest.approx(total / (B * 4), rel=1e-12)


@pytest.mark.parametrize("kind", sorted(losses.KINDS))
def test_a_loss_is_its_data(kind: str) -> None:
    data = {"kind": kind} | REQUIRED.get(kind, {})
    loss = losses.parse(data)
    assert losses.parse(loss.data) == loss
    assert loss.data["kind"] == kind


@pytest.mark.parametrize(
    ("data", "pointer", "expected", "got"),
    [
        (3, "", "a name or an object", "3"),
        ("mse", "/kind", "one of sum_over_time_ce, max_over_time_ce", "'mse'"),
        ({}, "/kind", "one of sum_over_time_ce", "None"),
        ({"kind": ["a"]}, "/kind", "one of sum_over_time_ce", "['a']"),
        ("van_rossum", "/alpha", "a number in [0, 1]", "nothing"),
        ({"kind": "van_rossum", "alpha": 2}, "/alpha", "a number in [0, 1]", "2"),
        ({"kind": "spike_count_mse", "alpha": 0.5}, "/alpha", "absent (the fields are", "0.5"),
        ({"kind": "sum_over_time_ce", "label_smoothing": -0.1}, "/label_smoothing", "a number in [0, 1]", "-0.1"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(data: Any, pointer: str, expected: str, got: str) -> None:
    with pytest.raises(losses.LossError) as caught:
        losses.parse(data)
    assert caught.value.pointer == pointer
    assert expected in caught.value.expected
    assert got in caught.value.got


Y = torch.zeros(B, T, N)


@pytest.mark.parametrize(
    ("kind", "y", "target", "pointer", "expected", "got"),
    [
        ("spike_train_mse", Y.to_sparse(), Y, "/outputs", "a dense tensor", "torch.sparse_coo"),
        ("spike_train_mse", Y, Y.to_sparse(), "/targets", "a dense tensor", "torch.sparse_coo"),
        ("sum_over_time_ce", Y, torch.tensor([0, 1, 5]), "/targets", "class numbers from 0 to 4", "5"),
        ("sum_over_time_ce", Y, torch.tensor([0, 1, -100]), "/targets", "class numbers from 0 to 4", "-100"),
        ("max_over_time_ce", Y, torch.tensor([0, 1]), "/targets", "shape (3,), one class for each", "(2,)"),
        ("max_over_time_ce", Y, torch.zeros(B), "/targets", "class numbers, integers", "torch.float32"),
        ("max_over_time_ce", Y, torch.zeros(B, dtype=torch.bool), "/targets", "integers", "torch.bool"),
        ("max_over_time_ce", Y, [0, 1, 2], "/targets", "a real tensor", "list"),
        ("max_over_time_ce", Y[..., None], CLASSES, "/outputs", "shape (batch, time, classes)", "(3, 7, 5, 1)"),
        ("max_over_time_ce", Y[:0], CLASSES[:0], "/outputs", "not empty", "(0, 7, 5)"),
        ("max_over_time_ce", Y[:, :0], CLASSES, "/outputs", "not empty", "(3, 0, 5)"),
        ("max_over_time_ce", Y.long(), CLASSES, "/outputs", "a float tensor", "torch.int64"),
        ("spike_train_mse", Y, Y[:, :1], "/targets", "shape (3, 7, 5), that of the outputs", "(3, 1, 5)"),
        ("spike_train_mse", Y, Y.to(torch.complex64), "/targets", "a real tensor", "torch.complex64"),
        ("spike_count_mse", Y, Y, "/targets", "shape (3, 5), that of the outputs without time", "(3, 7, 5)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    kind: str, y: Tensor, target: Tensor, pointer: str, expected: str, got: str
) -> None:
    with pytest.raises(losses.LossError) as caught:
        losses.parse(kind)(y, target)
    assert caught.value.pointer == pointer
    assert expected in caught.value.expected
    assert got in caught.value.got


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_class_numbers_may_be_of_any_integer_dtype(dtype: torch.dtype) -> None:
    y = outputs()
    loss = losses.parse("sum_over_time_ce")
    assert torch.equal(loss(y, CLASSES.to(dtype)).loss, loss(y, CLASSES).loss)


def test_metrics_of_parts_combine_to_those_of_the_whole() -> None:
    loss = losses.parse("sum_over_time_ce")
    y, target = outputs(7, T, N).detach(), torch.randint(0, N, (7,))
    whole = {name: v.item() for name, v in loss(y, target).metrics.items()}
    parts = [{name: v.item() for name, v in loss(y[p], target[p]).metrics.items()} for p in (slice(0, 2), slice(2, 7))]
    assert losses.combine(parts) == pytest.approx(whole)
    assert losses.combine([whole]) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([], "at least one entry"),
        ([{"a:sum": 1.0}, {"b:sum": 1.0}], r"the same names, got \['a:sum'\] and \['b:sum'\]"),
        ([{"loss": 1.0, "samples:sum": 1.0}], "NAME:sum, or NAME:mean along with samples:sum, got loss"),
        ([{"loss:mean": 1.0}], "NAME:sum, or NAME:mean along with samples:sum, got loss:mean"),
    ],
)
def test_metrics_that_do_not_combine_are_refused(metrics: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.combine(metrics)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", losses.KINDS)
def test_losses_of_half_types_are_computed_in_float32(kind: str, dtype: torch.dtype) -> None:
    y = (torch.rand(2, 5000, 3) < 0.9).to(dtype).requires_grad_()
    targets = {"spike_count_mse": torch.full((2, 3), 4500), "spike_train_mse": torch.ones(2, 5000, 3)}
    targets["van_rossum"] = targets["spike_train_mse"]
    loss = losses.parse({"kind": kind, **REQUIRED.get(kind, {})})
    target = targets.get(kind, torch.tensor([0, 2])) if loss.takes_targets else None
    value, exact = loss(y, target), loss(y.float(), target)
    assert value.loss.dtype == torch.float32
    assert torch.equal(value.loss, exact.loss)
    (grad,) = torch.autograd.grad(value.loss, y)
    assert grad.dtype == dtype
