"""The kernels of SLAYER by name: a network of two layers equals SLAYER's own recurrences, written out in numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import exodus_core
from exodus_core import AlphaKernel, SlayerRefractory, SlayerResponse, reference
from exodus_core.surrogate import Exponential

# A neuron as SLAYER describes it: time constants in ms, and the time of a step.
NEURON = {"theta": 10.0, "tauSr": 10.0, "tauRef": 1.0, "scaleRef": 2.0, "tauRho": 0.1, "scaleRho": 1.0, "Ts": 0.5}
STEPS = 120


def sampled(tau: float, mult: float, steps: int = STEPS) -> Any:
    """SLAYER's alpha kernel at t = 0, Ts, 2 Ts, ..."""
    t = NEURON["Ts"] * np.arange(steps)
    return mult * t / tau * np.exp(1 - t / tau)


def neurons(current: Any) -> Any:
    """Spikes and membranes of (neurons, time): a spike adds nu to the membrane from its own step on."""
    eps = sampled(NEURON["tauSr"], 1.0)
    nu = sampled(NEURON["tauRef"], -NEURON["scaleRef"] * NEURON["theta"])
    u = np.stack([np.convolve(row, eps)[:STEPS] for row in current])
    s = np.zeros_like(u)
    for n, row in enumerate(u):
        for t in range(STEPS):
            if row[t] >= NEURON["theta"]:
                s[n, t] = 1
                row[t:] += nu[: STEPS - t]
    return s, u


def error_before(error: Any, u: Any) -> Any:
    """delta = rho(u) (eps correlated with the error): what SLAYER hands to the weights of a layer, and through them."""
    eps = sampled(NEURON["tauSr"], 1.0)
    width = NEURON["tauRho"] * NEURON["theta"]
    rho = NEURON["scaleRho"] / width * np.exp(-np.abs(u - NEURON["theta"]) / width)
    delta = rho * error
    return delta, np.stack([np.convolve(row[::-1], eps)[:STEPS][::-1] for row in delta])


def slayer_neuron(current: Any) -> Any:
    """The same layer here; current is (1, time, neurons)."""
    theta, ts = NEURON["theta"], NEURON["Ts"]
    width = NEURON["tauRho"] * theta
    psp = exodus_core.filter(current, SlayerResponse(NEURON["tauSr"] / ts))
    return exodus_core.srm(
        psp,
        SlayerRefractory(NEURON["tauRef"] / ts, -NEURON["scaleRef"] * theta),
        threshold=theta,
        surrogate=Exponential(slope=1 / width, scale=NEURON["scaleRho"] / width),
        method="slayer",
    )


def test_two_layers_have_the_spikes_and_the_weight_gradients_of_slayer() -> None:
    random = np.random.default_rng(3)
    spikes_in = (random.random((20, STEPS)) < 0.1).astype(np.float64)
    weights = [random.normal(0.3, 1.0, (15, 20)), random.normal(0.3, 2.0, (4, 15))]
    error = random.normal(size=(4, STEPS))

    hidden, hidden_membrane = neurons(weights[0] @ spikes_in)
    output, output_membrane = neurons(weights[1] @ hidden)
    assert 10 < hidden.sum() < 0.5 * hidden.size
    assert output.sum() > 10
    _, filtered = error_before(error, output_membrane)
    _, filtered_hidden = error_before(weights[1].T @ filtered, hidden_membrane)
    expected = [filtered_hidden @ spikes_in.T, filtered @ hidden.T]

    ours = [torch.from_numpy(w).requires_grad_() for w in weights]
    first, first_membrane = slayer_neuron(torch.from_numpy(spikes_in.T)[None] @ ours[0].T)
    second, _ = slayer_neuron(first @ ours[1].T)
    second.backward(torch.from_numpy(error.T.copy())[None])
    assert np.array_equal(first[0].detach().numpy().T, hidden)
    assert np.array_equal(second[0].detach().numpy().T, output)
    # SLAYER adds nu[0] = 0 at the step of a spike, so its membrane is the one that fires.
    np.testing.assert_allclose(first_membrane[0].detach().numpy().T, hidden_membrane, rtol=1e-12, atol=1e-12)
    for gradient, wanted in zip(ours, expected, strict=True):
        np.testing.assert_allclose(gradient.grad.numpy(), wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_the_refractory_kernel_acts_one_step_before_an_alpha_kernel() -> None:
    z = torch.zeros(1, 12, 1, dtype=torch.float64)
    z[0, 1] = 1.0
    nu = SlayerRefractory(2.0, -3.0)
    _, membrane = exodus_core.srm(z, nu)
    _, late = exodus_core.srm(z, AlphaKernel(2.0, -3.0))
    torch.testing.assert_close(membrane[0, 2:11, 0], late[0, 3:, 0])
    assert membrane[0, :, 0].argmin() == 3  # tau steps after the spike
    torch.testing.assert_close(nu.taps(9), AlphaKernel(2.0, -3.0).taps(10)[1:])
    assert torch.equal(membrane, reference.srm(z, nu)[1])


@pytest.mark.parametrize(("tau", "mult", "below"), [(10.0, 1.0, 0.01), (1.0, -20.0, 0.01), (0.4, -4.0, 0.01)])
def test_kernels_are_cut_as_slayer_pytorch_cuts_them(tau: float, mult: float, below: float) -> None:
    expected = []
    for t in range(500):
        value = mult * t / tau * math.exp(1 - t / tau)
        if abs(value) < below and t > tau:
            break
        expected.append(value)
    torch.testing.assert_close(SlayerResponse(tau, mult).cut(below), torch.tensor(expected, dtype=torch.float64))
    reset = SlayerRefractory(tau, mult).cut(below, torch.float32)
    torch.testing.assert_close(reset, torch.tensor(expected[1:], dtype=torch.float32))


def test_a_cut_kernel_is_the_kernel_up_to_there() -> None:
    assert (
        SlayerResponse(3.0).cut(0.5).tolist()
        == SlayerResponse(3.0).taps(9)[: len(SlayerResponse(3.0).cut(0.5))].tolist()
    )
    assert AlphaKernel(3.0, 0.1).cut(1.0).tolist() == [0.0]
    with pytest.raises(ValueError, match="below must be positive, got 0"):
        AlphaKernel(3.0).cut(0)
    with pytest.raises(ValueError, match=r"below must be a value that leaves at most 1048576 taps, got 0\.1"):
        exodus_core.ExponentialKernel(1.0).cut(0.1)


def test_a_kernel_that_rises_slowly_is_cut_where_it_falls() -> None:
    assert len(SlayerResponse(4e4).cut(0.01)) == 305535
    assert len(exodus_core.ExponentialKernel((0.99999, 0.9999), (1.0, -1.0)).cut(0.02)) == 391201
    # exp(-t/1000) (1 - exp(-t/10000))^3 rises for 2,600 steps.
    decays = tuple(math.exp(-1e-3 - 1e-4 * i) for i in range(4))
    late = exodus_core.ExponentialKernel(decays, (1.0, -3.0, 3.0, -1.0))
    felt = (late.taps(20000) >= 8.4e-4).nonzero()
    assert len(late.cut(8.4e-4)) == int(felt.max()) + 1 > 2600


@pytest.mark.parametrize("kernel", [AlphaKernel, SlayerRefractory])
def test_a_kernel_that_no_float_holds_is_refused(kernel: Any) -> None:
    with pytest.raises(ValueError, match=r"amplitude / tau must be finite, got -?inf"):
        kernel(0.5, 1e308)


@pytest.mark.parametrize("kernel", [SlayerResponse, SlayerRefractory])
def test_arguments_are_checked(kernel: Any) -> None:
    with pytest.raises(ValueError, match="tau must be positive, got 0"):
        kernel(0, -1.0)
    with pytest.raises(TypeError, match="amplitude must be a number, got str"):
        kernel(1.0, "1")
