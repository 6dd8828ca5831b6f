"""The identities of the theory hold in float64, and a wrong formula is seen."""

import math

import pytest
import torch

from experiments.theory import decay, dense, paths, reset, slayer_network
from experiments.theory.__main__ import ALPHA, KERNELS, RHO, TOLERANCE, identities, relative_error
from experiments.theory.neuron import traced


def test_all_identities_hold_to_rounding() -> None:
    found = identities(seed=3)
    assert len(found) == 5 * len(KERNELS) + 4
    assert [identity for identity in found if not identity.holds] == []


def test_a_reset_that_acts_a_step_late_is_seen() -> None:
    kernel = KERNELS["LIF, -α^k"]
    trace = traced(kernel, 40, seed=0)
    taps = dense.taps_of(kernel, 40)
    late = torch.cat([torch.zeros(1, dtype=torch.float64), taps[:-1]])
    right, wrong = (dense.chi_by_theorem(t, trace.derivative) for t in (taps, late))
    assert relative_error(wrong, right) > 1e-2 > TOLERANCE


def test_the_determinant_is_1_for_any_kernel_and_surrogate_and_not_without_the_delay() -> None:
    delayed, immediate = dense.symbolic_determinants(4)
    assert delayed == 1
    assert immediate.subs(dict.fromkeys(immediate.free_symbols, 1)) == 0


def test_paths_add_up_to_the_product_of_the_steps() -> None:
    total, product = paths.symbolic(3)
    assert (total - product).expand() == 0
    derivative = [0.3, 1.0, 0.1, 0.7]
    found = paths.over_paths(derivative, ALPHA, RHO)
    assert found == pytest.approx(math.prod(ALPHA - RHO * f for f in derivative), rel=1e-13)
    assert paths.over_paths(derivative, ALPHA, RHO, through_spikes=False) == pytest.approx(ALPHA**4, rel=1e-15)


@pytest.mark.parametrize("scale", [0.5, 1.9])
def test_the_gradient_fades_at_least_as_slayers_below_the_bound(scale: float) -> None:
    found = decay.measured(scale, seed=1)
    assert found.largest_derivative <= 2 * decay.ALPHA
    assert found.over_bound <= 1 + 1e-12
    assert (found.mean <= decay.bound() * (1 + 1e-12)).all()


def test_the_gradient_may_grow_beyond_the_bound() -> None:
    assert decay.measured(3.0, seed=1).over_bound > 10


@pytest.mark.parametrize("name", ["subtract", "subtract, decayed"])
def test_a_detached_reset_is_slayer_where_a_spike_subtracts(name: str) -> None:
    found = reset.contribution(name, seed=2)
    assert found.difference < 1e-13
    assert found.slayer.norm > 1.5


def test_a_detached_reset_is_not_slayer_where_a_spike_sets_the_membrane_to_zero() -> None:
    assert reset.contribution("to zero", seed=2).difference > 0.1


def test_each_layer_inflates_slayers_gradient() -> None:
    found = slayer_network.ratios(slayer_network.drawn(0))
    assert found.output.norm > 1.5
    assert found.hidden.norm > 1.5 * found.output.norm
