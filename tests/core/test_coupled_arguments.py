"""Arguments of neurons with coupled variables: what cannot be meant is refused, and settings of layers may change."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch

import exodus_core
from exodus_core import network, nn

X = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("synapse_alpha must be a float or a float tensor, got NoneType", lambda: exodus_core.cuba_lif(X, 0.9, None)),
        ("synapse_alpha must be a float or a float tensor, got NoneType", lambda: nn.CubaLIF(0.9, None)),
        ("adapt_alpha must be a float or a float tensor, got NoneType", lambda: exodus_core.alif(X, 0.9, None)),
        ("adapt_alpha must be a float or a float tensor, got NoneType", lambda: nn.ALIF(0.9, None)),
        (
            "synapse_gain must be 1 without a synapse_alpha, got 2",
            lambda: exodus_core.alif(X, 0.9, 0.9, synapse_gain=2),
        ),
        (
            "synapse_delayed must be False without a synapse_alpha, got True",
            lambda: exodus_core.alif(X, 0.9, 0.9, synapse_delayed=True),
        ),
        (
            "max_spikes must be 1 with adapt_threshold, which may lower the threshold to 0, got 3",
            lambda: exodus_core.alif(X, 0.9, 0.9, adapt_threshold=0.1, max_spikes=3),
        ),
        ("max_spikes must be an int, got float", lambda: nn.ALIF(0.9, 0.9, max_spikes=2.9)),
        ("detach_reset must be a bool, got str", lambda: exodus_core.lif(X, 0.9, detach_reset="no")),
        ("synapse_delayed must be a bool, got str", lambda: exodus_core.cuba_lif(X, 0.9, 0.9, synapse_delayed="no")),
        ("refractory must be an int, got float", lambda: exodus_core.lif(X, 0.9, refractory=0.0)),
        (
            "initial_refractory must be a whole number of steps, or a tensor of such, got 0.5",
            lambda: exodus_core.cuba_lif(X, 0.9, 0.9, initial_refractory=0.5),
        ),
        (
            "initial_refractory must be at most 16777216, got 16777217",
            lambda: exodus_core.cuba_lif(X, 0.9, 0.9, initial_refractory=2**24 + 1),
        ),
        (
            "initial_refractory must be at most 16777216, got inf",
            lambda: exodus_core.alif_gradient(X, X, 0.9, 0.9, initial_refractory=math.inf),
        ),
        (
            "initial_refractory must be a whole number of steps, or a tensor of such, got -1",
            lambda: exodus_core.alif(X, 0.9, 0.9, initial_refractory=-1),
        ),
        (
            "initial_refractory must be a number, got nan",
            lambda: exodus_core.alif(X, 0.9, 0.9, initial_refractory=math.nan),
        ),
        (
            "initial_refractory must be a float or a float tensor, got str",
            lambda: exodus_core.alif(X, 0.9, 0.9, initial_refractory="1"),
        ),
        (
            "initial_current must be None without a synapse_alpha, got 0.3",
            lambda: exodus_core.alif(X, 0.9, 0.9, initial_current=0.3),
        ),
        (
            "initial_current must be None without a synapse_alpha, got a tensor",
            lambda: exodus_core.alif(X, 0.9, 0.9, initial_current=torch.ones(3)),
        ),
        (
            "initial_current must be None without a synapse_alpha, got a tensor",
            lambda: exodus_core.alif_gradient(X, X, 0.9, 0.9, initial_current=torch.ones(3)),
        ),
        (
            "initial_current must be None without a synapse_alpha, got 0.3",
            lambda: exodus_core.spikes_of_trace(X, 0.9, refractory=2, initial_current=0.3),
        ),
        (
            "initial_adaptation must be None without an adapt_alpha, got 0.3",
            lambda: exodus_core.spikes_of_trace(X, 0.9, synapse_alpha=0.5, initial_adaptation=0.3),
        ),
        (
            "adapt_threshold must be 0 without an adapt_alpha, got 0.2",
            lambda: exodus_core.spikes_of_trace(X, 0.9, refractory=2, adapt_threshold=0.2),
        ),
        (
            "adapt_by must be 1 without an adapt_alpha, got a tensor",
            lambda: exodus_core.spikes_of_trace(X, 0.9, refractory=2, adapt_by=torch.ones(3)),
        ),
        (
            "reset_by must be a float or a float tensor, got str",
            lambda: exodus_core.lif(X, 0.9, reset="zero", reset_by="much", refractory=2),
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(message: str, call: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    assert message in str(raised.value)


def test_the_longest_refractory_period_may_be_left() -> None:
    spikes = exodus_core.cuba_lif(X + 2, 0.9, 0.9, initial_refractory=2**24)[0]
    assert not spikes.any()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"synapse_gain": 3.0}, "/layers/0/synapse_gain must be 1 without a synapse_alpha, got 3.0"),
        ({"synapse_delayed": True}, "/layers/0/synapse_delayed must be false without a synapse_alpha, got True"),
        ({"adapt_threshold": 0.1, "max_spikes": 2}, "/layers/0/max_spikes must be 1 with adapt_threshold, got 2"),
        ({"reset": "value"}, "/layers/0/reset_to must be a value with reset value, and null with others, got None"),
    ],
)
def test_descriptions_refuse_it_with_a_pointer(field: dict[str, Any], message: str) -> None:
    neuron = {"kind": "alif", "alpha": 0.9, "adapt_alpha": 0.9, **field}
    with pytest.raises(network.NetworkError) as raised:
        network.parse({"input_shape": [3], "layers": [neuron]})
    assert str(raised.value) == message


@pytest.mark.parametrize("name", ["alpha", "adapt_alpha", "synapse_alpha"])
def test_a_state_dict_with_a_decay_out_of_range_is_refused(name: str) -> None:
    layer = nn.ALIF(0.9, 0.9, synapse_alpha=0.5)
    state = layer.state_dict() | {name: torch.tensor(1.5, dtype=torch.float64)}
    with pytest.raises(RuntimeError, match=rf"{name} must be in \[0, 1\], got 1.5"):
        layer.load_state_dict(state)


def test_the_state_of_a_layer_whose_settings_change_is_refused_until_it_is_reset() -> None:
    layer = nn.LIF(0.9, stateful=True)
    layer(X)
    layer.refractory = 2
    with pytest.raises(RuntimeError, match=r"call reset_state\(\)"):
        layer(X)
    layer.reset_state()
    layer(X)
    assert list(layer.named_state()) == ["membrane", "spikes", "current", "adaptation", "refractory"]


@pytest.mark.parametrize(
    "make",
    [
        lambda scale: nn.ALIF(0.9 * scale, 0.8, adapt_threshold=0.3, synapse_alpha=0.5 * scale),
        lambda scale: nn.CubaLIF(0.9 * scale, 0.7, trainable=("alpha", "synapse_alpha"), refractory=2),
        lambda scale: nn.LIF(0.9, reset="value", reset_to=-0.2 * scale, trainable="reset_to"),
    ],
)
def test_copies_pickles_and_loaded_layers_compute_the_same(make: Any) -> None:
    torch.manual_seed(0)
    x = 2 * torch.randn(2, 30, 50)
    layer, other = make(1.0), make(0.5)
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    for same in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(layer(x), same(x))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # the spikes before the first are zeros
def test_hooks_on_the_synapse_of_a_recurrent_layer_are_called() -> None:
    layer = nn.Recurrent(nn.LIF(0.9), torch.nn.Linear(3, 3))
    seen = []
    layer.synapse.register_full_backward_pre_hook(lambda module, grad: seen.append(module))
    layer(torch.ones(2, 5, 3, requires_grad=True)).sum().backward()
    assert seen


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"trainable": ("synapse_gain",)}, "synapse_gain"),
        ({"synapse_gain": 2.0}, "synapse_gain"),
        ({"max_spikes": 2, "trainable": ("adapt_threshold",)}, "max_spikes"),
        ({"max_spikes": 2, "adapt_threshold": 0.5}, "max_spikes"),
    ],
    ids=str,
)
def test_a_layer_refuses_what_its_first_pass_would(options: dict[str, Any], name: str) -> None:
    with pytest.raises(exodus_core.ArgumentError, match=name):
        nn.ALIF(0.9, 0.8, **options)
