"""Batches in any order of axes train a model of a real service as they train one batch first."""

from typing import Any

import numpy as np
import pytest

from exodus_client import Client
from exodus_client._models.batch_axes import _EITHER, _NO_TARGETS, _PER_SAMPLE, _PER_STEP
from exodus_core import losses

# As many samples as steps: nothing but the option tells one from the other.
X = (np.random.default_rng(0).random((6, 6, 4)) < 0.4).astype(np.uint16)
TRAINS = (np.random.default_rng(1).random((6, 6, 2)) < 0.4).astype(np.uint32)
COUNTS = np.arange(12, dtype=np.uint32).reshape(6, 2)
LABELS = np.array([0, 1, 1, 0, 1, 0], np.uint64)
LAYERS = [{"kind": "linear", "in_features": 4, "out_features": 2, "gain": 3.0}, {"kind": "lif", "alpha": 0.9}]
#: Where the axis of batches is, of time, and of neurons, by the axis of time.
ORDERS = {0: (1, 0, 2), 1: (0, 1, 2), -1: (0, 2, 1)}
LOSSES: dict[str, np.ndarray | None] = {
    "max_over_time_ce": LABELS,
    "sum_over_time_ce": LABELS,
    "spike_count_mse": COUNTS,
    "spike_train_mse": TRAINS,
    "van_rossum": TRAINS,
    "per_step_ce": np.arange(36, dtype=np.uint64).reshape(6, 6) % 2,
    "spike_rate_mse": None,
    "spike_rate_bounds": None,
}
OPTIONS: dict[str, dict[str, float]] = {
    "van_rossum": {"alpha": 0.9},
    "spike_rate_mse": {"rate": 0.3},
    "spike_rate_bounds": {"lower": 0.6, "upper": 0.7},
}


@pytest.mark.parametrize("kind", LOSSES)
def test_the_order_of_axes_changes_nothing(client: Client, kind: str) -> None:
    found: dict[int, Any] = {}
    loss = {"kind": kind, **OPTIONS.get(kind, {})}
    for time_dim, order in ORDERS.items():
        model = client.create_model(LAYERS, optimizer="sgd", time_dim=time_dim)
        targets = LOSSES[kind]
        if targets is not None and kind in _PER_STEP | _EITHER:
            targets = targets.transpose(order if targets.ndim == 3 else (1, 0) if time_dim == 0 else (0, 1))
        result = model.step(X.transpose(order), targets, loss=loss).result(60)
        outputs = model.forward(X.transpose(order)).result(60).outputs
        assert outputs is not None
        found[time_dim] = result.metrics, result.grad_norms, outputs.transpose(order).tolist()
        client.delete_model(model.id)
    assert found[0] == found[1] == found[-1]
    assert found[1][1]["total"] > 0


def test_it_is_known_of_every_loss_whether_its_targets_have_time() -> None:
    assert set(losses.KINDS) == _PER_STEP | _PER_SAMPLE | _EITHER | _NO_TARGETS
    assert set(LOSSES) == set(losses.KINDS)
