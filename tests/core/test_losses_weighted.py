"""Sums of losses, cross-entropies of each step, class weights and spike rates, against loops and against torch."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from exodus_core import losses, network
from exodus_core.training import Trainer

B, T, N = 3, 7, 5
CLASSES = torch.tensor([4, 0, 2])
WEIGHTS = [1.0, 2.0, 0.0, 0.5, 3.0]


def outputs(*shape: int) -> Tensor:
    return torch.randn(*(shape or (B, T, N)), dtype=torch.float64).requires_grad_()


def test_a_list_is_the_sum_of_its_losses_times_their_weights() -> None:
    y = outputs()
    entropy, rates = losses.parse("sum_over_time_ce"), losses.parse({"kind": "spike_rate_mse", "rate": 0.1})
    both = losses.parse(["sum_over_time_ce", {"kind": "spike_rate_mse", "rate": 0.1, "weight": 0.3}])
    value, first, second = both(y, CLASSES), entropy(y, CLASSES), rates(y)
    assert torch.equal(value.loss, first.loss + 0.3 * second.loss)
    assert {name: v.item() for name, v in value.metrics.items()} == {
        "loss:mean": value.loss.item(),
        "samples:sum": B,
        "sum_over_time_ce.loss:mean": first.loss.item(),
        "accuracy:mean": first.metrics["accuracy:mean"].item(),
        "spike_rate_mse.loss:mean": second.loss.item(),
        "rate:mean": pytest.approx(y.mean().item()),
    }
    (grad,) = torch.autograd.grad(value.loss, y)
    parts = [torch.autograd.grad(one.loss, y)[0] for one in (first, second)]
    assert torch.allclose(grad, parts[0] + 0.3 * parts[1], rtol=1e-13)


def test_losses_of_one_kind_have_names_of_their_own() -> None:
    y = outputs()
    entries = [{"kind": "per_step_ce"}, {"kind": "sum_over_time_ce", "name": "sum", "weight": 2}]
    metrics = losses.parse(entries)(y, CLASSES).metrics
    assert {"per_step_ce.loss:mean", "sum.loss:mean", "accuracy:mean", "sum.accuracy:mean"} < metrics.keys()
    lower, upper = ({"kind": "spike_rate_bounds", "name": name, name: 0.2} for name in ("lower", "upper"))
    assert set(losses.parse([lower, upper])(y).metrics) >= {"lower.loss:mean", "upper.loss:mean"}


def test_a_sum_is_its_data() -> None:
    loss = losses.parse(["max_over_time_ce", {"kind": "spike_rate_bounds", "upper": 0.5, "weight": 2, "name": "few"}])
    assert losses.parse(loss.data) == loss
    assert [entry["weight"] for entry in loss.data] == [1.0, 2.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("per_step", [False, True])
def test_the_cross_entropy_of_each_step_is_the_mean_over_steps(
    per_step: bool, weights: list[float] | None, smoothing: float
) -> None:
    y = outputs()
    targets = torch.randint(0, N, (B, T)) if per_step else CLASSES
    loss = losses.parse({"kind": "per_step_ce", "label_smoothing": smoothing, "class_weights": weights})
    value = loss(y, targets)
    total, right = 0.0, 0
    for b in range(B):
        for t in range(T):
            c = int(targets[b, t] if per_step else targets[b])
            logs = torch.log_softmax(y[b, t].detach(), 0)
            wanted = torch.full((N,), smoothing / N, dtype=torch.float64)
            wanted[c] += 1 - smoothing
            total -= float((wanted * torch.tensor(weights or [1.0] * N, dtype=torch.float64) * logs).sum())
            right += int(y[b, t].argmax()) == c
    assert value.loss.item() == pytest.approx(total / (B * T), rel=1e-12)
    assert value.metrics["accuracy:mean"].item() == pytest.approx(right / (B * T))
    assert torch.autograd.gradcheck(lambda leaf: loss(leaf, targets).loss, (y,))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["sum_over_time_ce", "max_over_time_ce"])
def test_class_weights_are_torchs_but_for_the_divisor(kind: str, smoothing: float) -> None:
    y, weights = outputs(), torch.tensor(WEIGHTS, dtype=torch.float64)
    loss = losses.parse({"kind": kind, "label_smoothing": smoothing, "class_weights": WEIGHTS})
    logits = y.sum(1) if kind == "sum_over_time_ce" else y.max(1).values
    torchs = F.cross_entropy(logits, CLASSES, weights, label_smoothing=smoothing)
    assert torch.allclose(loss(y, CLASSES).loss * B, torchs * weights[CLASSES].sum(), rtol=1e-13)


@pytest.mark.parametrize("of", ["neuron", "sample"])
@pytest.mark.parametrize(
    ("data", "penalty"),
    [
        ({"kind": "spike_rate_mse", "rate": 0.2}, lambda r: (r - 0.2) ** 2),
        ({"kind": "spike_rate_bounds", "lower": 0.3}, lambda r: max(0.3 - r, 0) ** 2),
        ({"kind": "spike_rate_bounds", "upper": 0.1}, lambda r: max(r - 0.1, 0) ** 2),
        (
            {"kind": "spike_rate_bounds", "lower": -0.1, "upper": 0.1},
            lambda r: max(-0.1 - r, 0) ** 2 + max(r - 0.1, 0) ** 2,
        ),
    ],
)
def test_spike_rates_are_drawn_to_a_target_or_into_bounds(data: dict[str, Any], penalty: Any, of: str) -> None:
    y = outputs(B, T, 2, 3)
    loss = losses.parse({**data, "of": of})
    rates = y.detach().mean(1).flatten(1)
    values = rates.mean(1) if of == "sample" else rates.flatten()
    expected = sum(penalty(r) for r in values.tolist()) / len(values)
    assert loss(y).loss.item() == pytest.approx(expected, rel=1e-12)
    assert loss(y).metrics["rate:mean"].item() == pytest.approx(y.mean().item())
    assert torch.autograd.gradcheck(lambda leaf: loss(leaf).loss, (y,))


@pytest.mark.parametrize(
    ("data", "pointer", "expected", "got"),
    [
        ([], "", "a list of 1 to 16 losses", "one of 0"),
        (["per_step_ce"] * 17, "", "a list of 1 to 16 losses", "one of 17"),
        (["per_step_ce", "per_step_ce"], "/1/name", "a name of its own", "'per_step_ce'"),
        (["mse"], "/0/kind", "one of sum_over_time_ce", "'mse'"),
        ([3], "/0", "a name or an object", "3"),
        ([[]], "/0", "a name or an object", "[]"),
        ([{"kind": "per_step_ce", "weight": -1}], "/0/weight", "a number of at least 0", "-1"),
        ([{"kind": "per_step_ce", "name": "a.b"}], "/0/name", "1 to 32 letters", "'a.b'"),
        ([{"kind": "van_rossum", "alpha": 2}], "/0/alpha", "a number in [0, 1]", "2"),
        ({"kind": "per_step_ce", "weight": 1}, "/weight", "absent (the fields are", "1"),
        ({"kind": "per_step_ce", "class_weights": [1, -1]}, "/class_weights/1", "a number of at least 0", "-1"),
        ({"kind": "spike_rate_bounds"}, "/lower", "a number unless upper is one", "neither"),
        ({"kind": "spike_rate_bounds", "lower": 2, "upper": 1}, "/lower", "at most upper, 1", "2"),
        ({"kind": "spike_rate_mse"}, "/rate", "a number", "nothing"),
        ({"kind": "spike_rate_mse", "rate": 1, "of": "x"}, "/of", "one of neuron, sample", "'x'"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(data: Any, pointer: str, expected: str, got: str) -> None:
    with pytest.raises(losses.LossError) as caught:
        losses.parse(data)
    assert caught.value.pointer == pointer
    assert expected in caught.value.expected
    assert got in caught.value.got


@pytest.mark.parametrize(
    ("data", "targets", "pointer", "expected"),
    [
        ("per_step_ce", torch.zeros(B, T, N).long(), "/targets", "of shape (3,) or (3, 7), one class for each"),
        ("per_step_ce", torch.full((B, T), N), "/targets", "class numbers from 0 to 4"),
        ("per_step_ce", None, "/targets", "a real tensor"),
        (
            {"kind": "per_step_ce", "class_weights": [1, 2]},
            CLASSES,
            "/class_weights",
            "a list of 5, one for each class",
        ),
        ({"kind": "spike_rate_mse", "rate": 0}, CLASSES, "/targets", "absent for a loss of the outputs alone"),
        ([{"kind": "spike_rate_mse", "rate": 0}], CLASSES, "/targets", "absent for a loss of the outputs alone"),
        (["per_step_ce", "spike_train_mse"], CLASSES, "/targets", "of shape (3, 7, 5), that of the outputs"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(data: Any, targets: Any, pointer: str, expected: str) -> None:
    with pytest.raises(losses.LossError) as caught:
        losses.parse(data)(outputs(), targets)
    assert caught.value.pointer == pointer
    assert expected in caught.value.expected


def test_a_network_is_trained_by_a_sum_as_by_the_plain_loop() -> None:
    data = [
        {"kind": "linear", "in_features": 6, "out_features": 5},
        {"kind": "lif", "alpha": 0.9, "surrogate": {"slope": 0.5}},
    ]
    loss = ["per_step_ce", {"kind": "spike_rate_bounds", "upper": 0.05, "weight": 10.0}]
    ours, plain = Trainer(network.build(data, seed=1), {"kind": "sgd", "lr": 0.1}), network.build(data, seed=1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        x = torch.rand(B, T, 6) < 0.4
        ours.step(x, CLASSES, loss)
        y = plain(x)
        entropy = F.cross_entropy(y.reshape(-1, N), CLASSES.repeat_interleave(T), reduction="none").mean()
        excess = (y.mean(1) - y.mean(1).detach().clamp(None, 0.05)).square().mean()
        optimizer.zero_grad()
        (entropy + excess * 10.0).backward()
        optimizer.step()
        for p, q in zip(ours.net.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)


def test_a_loss_without_targets_trains_alone() -> None:
    data = [{"kind": "linear", "in_features": 6, "out_features": 5}, {"kind": "lif", "alpha": 0.9}]
    trainer, x = Trainer(network.build(data, seed=1), {"kind": "adam", "lr": 0.05}), torch.rand(B, T, 6) < 0.6
    rates = [trainer.step(x, None, {"kind": "spike_rate_mse", "rate": 0.4}).metrics for _ in range(30)]
    assert abs(rates[-1]["rate:mean"] - 0.4) < abs(rates[0]["rate:mean"] - 0.4)


def test_an_error_of_a_term_points_at_the_term() -> None:
    y = outputs()
    for index in (0, 1):
        terms: list[Any] = ["sum_over_time_ce", "max_over_time_ce"]
        terms[index] = {"kind": terms[index], "class_weights": [1, 2]}
        with pytest.raises(losses.LossError) as caught:
            losses.parse(terms)(y, CLASSES)
        assert caught.value.pointer == f"/{index}/class_weights"
        with pytest.raises(losses.LossError) as caught:
            losses.parse([*terms[:index], "per_step_ce"])(y, CLASSES + 9)
        assert caught.value.pointer == "/targets"
