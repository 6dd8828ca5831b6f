"""The experiments run as commands, and small forms of them find what they have to."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import exodus_core
from experiments import gradient_scale, poisson
from experiments.theory import __main__ as theory
from experiments.training import Batch, Local, with_method


@pytest.mark.parametrize(
    ("main", "options", "says"),
    [
        (poisson.main, ["--quick", "--local"], "EXODUS has the lower summed loss"),
        (theory.main, ["--quick"], "det dF/du = 1"),
    ],
    ids=["poisson", "theory"],
)
def test_the_quick_form_prints_its_page(
    main: Callable[..., None], options: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poisson, "QUICK", poisson.QUICK._replace(epochs=12))
    app = typer.Typer()
    app.command()(main)
    ended = CliRunner().invoke(app, options)
    assert ended.exit_code == 0, ended.output
    assert says in " ".join(ended.output.split())


def test_a_run_beside_others_is_the_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and losses of two runs side by side are those of each in a network of its own."""
    monkeypatch.setattr(poisson, "ADAM_EPSILON", 1e-6)  # so that a wrong one matters
    batch = poisson.tasks(2, seed=0)
    pair = poisson.Pair(10.0, 1e-3)

    def learner(runs: int) -> Any:
        description = with_method({**poisson.side_by_side(runs, poisson.lif(pair.tau)), "dtype": "float64"}, "exodus")
        optimizer = {"kind": "adam", "lr": pair.rate, "eps": poisson.ADAM_EPSILON / runs}
        return Local().learner(description, loss=poisson.LOSS, optimizer=optimizer, seed=0)

    both = learner(2)
    start = both.weights()
    losses = torch.tensor([update.loss for update in both.learn([batch] * 20)], dtype=torch.float64)
    alone = []
    for run in range(2):
        one = learner(1)
        _set(one, {name: weight.tensor_split(2)[run] for name, weight in start.items()})
        inputs = batch.spikes[:, :, run * poisson.INPUTS : (run + 1) * poisson.INPUTS]
        own = Batch(inputs, batch.targets[:, :, run : run + 1])
        alone.append(torch.tensor([update.loss for update in one.learn([own] * 20)], dtype=torch.float64))
        for name, weight in one.weights().items():
            torch.testing.assert_close(both.weights()[name].tensor_split(2)[run], weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses, (alone[0] + alone[1]) / 2, rtol=1e-12, atol=0)


def _set(learner: Any, weights: dict[str, torch.Tensor]) -> None:
    learner._trainer.set_weights(torch.cat([weight.flatten() for weight in weights.values()]))


def test_normalised_input_is_the_input_times_one_minus_alpha() -> None:
    alpha = math.exp(-1 / 20)
    x = 3 * torch.randn(2, 100, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g = torch.randn(2, 100, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for neuron, gain in ((poisson.lif(20.0, normalised=True), 1.0), (poisson.lif(20.0), 1 - alpha)):
        given = x.clone().requires_grad_()
        surrogate = exodus_core.surrogate.Exponential(neuron["surrogate"]["slope"], neuron["surrogate"]["scale"])
        spikes, _ = exodus_core.lif(gain * given, neuron["alpha"], threshold=neuron["threshold"], surrogate=surrogate)
        spikes.backward(g)
        found.append((spikes.detach(), given.grad))
    assert found[0][0].any()
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-12)


def test_a_course_knows_when_a_run_met_its_target() -> None:
    course = poisson.Course([0.02] * 30, torch.zeros(3, 200, 2), torch.tensor([[0.02, 0.02], [0.0, 0.02], [0.0, 0.01]]))
    assert course.fitted == [poisson.READ_EVERY, None]
    assert course.summed == pytest.approx(0.6)


def test_targets_are_four_spikes_from_step_40_on() -> None:
    batch = poisson.tasks(5, seed=1)
    assert batch.targets.sum(1).ravel().tolist() == [4.0] * 5
    assert not batch.targets[:, : poisson.TARGET_FROM].any()
    assert batch.spikes.float().mean().item() == pytest.approx(0.1, rel=0.02)


def test_norms_grow_with_the_scale_under_slayer_and_not_under_exodus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_scale, "BATCH", 8)
    samples = gradient_scale.synthetic(seed=0)
    plan = gradient_scale.Plan((0.1, 1.0), 1)
    courses = gradient_scale.train_all(Local(), samples, plan, seed=0)
    exodus, slayer = (gradient_scale.spread(courses, method, 0, 0.1, 1.0) for method in gradient_scale.METHODS)
    assert slayer > 10 * exodus


def test_a_gradient_that_is_not_finite_ends_its_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_scale, "BATCH", 8)
    samples = gradient_scale.synthetic(seed=0)
    course = gradient_scale.train(Local(), samples, 30.0, "exodus", 2, 0, lambda: None)
    assert course.means is None
    assert course.ended is not None
    assert course.ended.startswith("update 1: the norm of")


def test_without_data_the_synthetic_spikes_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXODUS_DATA", raising=False)
    app = typer.Typer()
    app.command()(gradient_scale.main)
    ended = CliRunner().invoke(app, ["--quick", "--local"])
    assert ended.exit_code == 2
    assert "--synthetic" in ended.output


def test_a_folder_without_letters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"braille_letters\.npz"):
        gradient_scale.letters(tmp_path)
