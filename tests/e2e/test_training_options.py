"""Options of training over HTTP, against the same training in this process: equal to the bit."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from exodus_client import Client
from exodus_core import network, training

DESCRIPTION: dict[str, Any] = {
    "input_shape": [12],
    "layers": [
        {"kind": "linear", "out_features": 16, "gain": 2.0, "name": "in"},
        {"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"], "recurrent": {}, "name": "hidden"},
        {"kind": "dropout", "p": 0.2},
        {"kind": "linear", "out_features": 4, "name": "out"},
        {"kind": "exp_leak", "alpha": 0.9},
    ],
}
OPTIMIZER: dict[str, Any] = {"kind": "adam", "lr": 3e-3, "lr_scale": {"out": 2.0}, "lr_of": {"hidden.alpha": 1e-4}}
LOSS: Any = [
    {"kind": "per_step_ce", "class_weights": [1.0, 2.0, 1.0, 0.5], "label_smoothing": 0.1},
    {"kind": "spike_rate_bounds", "lower": 0.0, "upper": 0.2, "weight": 0.3},
]
ROUNDS = 6


def batch(number: int, samples: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Spikes, a class for each step, and lengths."""
    chance = torch.Generator().manual_seed(number)
    spikes = torch.rand(samples, 20, 12, generator=chance) < 0.2
    targets = torch.randint(0, 4, (samples, 20), generator=chance)
    return spikes, targets, torch.randint(1, 21, (samples,), generator=chance)


def rounds(trainer: Any) -> list[Any]:
    """Calls with every option, made on a model or on a trainer alike: their results, or futures of these."""
    made = []
    for number in range(ROUNDS):
        frozen = ["in", "hidden"] if number % 2 else None
        for part, samples in enumerate((5, 2)):
            spikes, targets, lengths = batch(10 * number + part, samples)
            options = {"lengths": lengths, "frozen": frozen, "accumulate": "samples"}
            made.append(trainer.forward_backward(spikes, targets, loss=LOSS, **options))
        made.append(trainer.optim_step(average=True, clip_norm=1.0, frozen=frozen))
        spikes, targets, lengths = batch(10 * number + 3, 4)
        mask = torch.arange(20) < lengths[:, None]
        made.append(trainer.step(spikes, targets, loss=LOSS, mask=mask, lr_of={"in": 0.01}, lr=2e-3))
    return made


def test_every_option_over_http_gives_the_bits_of_the_same_in_process(client: Client, tmp_path: Path) -> None:
    model = client.create_model(DESCRIPTION, optimizer=OPTIMIZER, seed=3)
    trainer = training.Trainer(network.build(DESCRIPTION, seed=3), OPTIMIZER)
    remote = [future.result(timeout=60) for future in rounds(model)]
    local = [entry if isinstance(entry, tuple) else ({}, entry) for entry in rounds(trainer)]
    assert [(dict(result.metrics), dict(result.grad_norms)) for result in remote] == local
    path = tmp_path / "state.safetensors"
    model.save(path)
    state, wanted = safetensors.torch.load_file(path), trainer.state()
    assert state.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []

    again = client.create_model(DESCRIPTION, optimizer=OPTIMIZER, seed=4)
    fresh = training.Trainer(network.build(DESCRIPTION, seed=4), OPTIMIZER)
    names = ["in", "out.bias"]
    assert again.load_weights(path, names=names)._asdict() == fresh.load_weights(wanted, names=names)._asdict()
    spikes, targets, lengths = batch(99, 4)
    result = again.step(spikes, targets, loss=LOSS, lengths=lengths).result(timeout=60)
    assert result.metrics == fresh.step(spikes, targets, LOSS, lengths=lengths).metrics
    for made in (model, again):
        client.delete_model(made.id)


@pytest.mark.parametrize("loss", ["max_over_time_ce", {"kind": "per_step_ce"}])
def test_a_padded_batch_is_its_samples_alone_over_http(client: Client, loss: Any) -> None:
    description = {**DESCRIPTION, "dtype": "float64", "layers": [e for e in DESCRIPTION["layers"] if "p" not in e]}
    models = [client.create_model(description, optimizer="sgd", seed=3) for _ in range(2)]
    spikes, _, lengths = batch(1, 5)
    targets = torch.tensor([0, 1, 2, 3, 0])
    models[0].step(spikes, targets, loss=loss, lengths=lengths).result(timeout=60)
    for sample, length in enumerate(lengths.tolist()):
        one = slice(sample, sample + 1)
        models[1].forward_backward(spikes[one, :length], targets[one], loss=loss)
    models[1].optim_step(average=True).result(timeout=60)
    padded, alone = (model.state_dict("torch") for model in models)
    assert all(torch.allclose(padded[name], alone[name], rtol=1e-12, atol=1e-14) for name in padded)
    for model in models:
        client.delete_model(model.id)
