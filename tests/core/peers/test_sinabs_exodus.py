"""sinabs-exodus: the stand-in of its compiled module against plain loops, and its own test suite on the stand-in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from core.peers.sinabs_exodus import exodus_cuda

STAND_IN = Path(exodus_cuda.__file__).parent
NEURONS, STEPS = 5, 37


@pytest.fixture
def rows():
    """Values of float32, (neurons, time) or (neurons,), between the bounds."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(shape or (NEURONS, STEPS), generator=generator)

    return draw


@pytest.fixture
def neuron(rows):
    """alpha, what a spike subtracts, and the threshold of each neuron."""
    return rows(NEURONS, low=0.6, high=1.0), rows(NEURONS, low=0.3, high=0.6), rows(NEURONS, low=0.4, high=0.8)


def assert_rows_equal(got, wanted):
    wanted = wanted if isinstance(wanted, torch.Tensor) else torch.stack(wanted)
    assert got.dtype == torch.float32
    assert got.shape == wanted.shape
    assert got.is_contiguous()
    assert wanted.abs().max() > 0
    torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def fired(u, theta, most):
    count = (u / theta).floor() * (u >= theta)
    return count if most < 0 else count.clamp(max=most)


@pytest.mark.parametrize("most", [1, 2, -1])
@pytest.mark.parametrize("bounded", [False, True])
def test_lif_forward_writes_spikes_and_membrane_of_the_loop(rows, neuron, bounded, most):
    alpha, subtract, theta = neuron
    x, initial, low = rows(low=-1.0, high=1.8), rows(NEURONS), rows(NEURONS, low=-0.4, high=-0.1)
    spikes, membrane = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    arguments = (x, initial, alpha, subtract, theta, low if bounded else torch.empty_like(low), bounded, most)
    assert exodus_cuda.lifForward(spikes, membrane, *arguments) is None

    u, s, looped = initial, torch.zeros(NEURONS), []
    for x_t in x.t():
        u = alpha * (u - subtract * s) + x_t
        u = torch.maximum(u, low) if bounded else u
        s = fired(u, theta, most)
        looped.append((s, u))
    assert torch.equal(spikes, torch.stack([s for s, _ in looped], 1))
    assert_rows_equal(membrane, torch.stack([u for _, u in looped], 1))
    assert spikes.max() == {1: 1, 2: 2, -1: spikes.max()}[most]
    assert spikes.max() > 2 or most > 0
    assert not bounded or (membrane == low[:, None]).any()


def adjoint(h, f, kept, alpha, subtract):
    """lam[t] = kept[t] (h[t] + (alpha - subtract f[t]) lam[t+1]), in float64."""
    h, f, kept, alpha, subtract = (value.double() for value in (h, f, kept, alpha, subtract))
    lam = [torch.zeros(NEURONS, dtype=torch.float64)]
    for t in reversed(range(STEPS)):
        lam.append(kept[:, t] * (h[:, t] + (alpha - subtract * f[:, t]) * lam[-1]))
    return torch.stack(lam[:0:-1], 1)


def test_lif_backward_is_the_adjoint_loop(rows, neuron):
    alpha, subtract, _ = neuron
    f, h, kept = rows(high=2.5), rows(low=-1.0), (rows() > 0.1).float()
    assert_rows_equal(exodus_cuda.lifBackward(f, h, kept, alpha, subtract), adjoint(h, f, kept, alpha, subtract))


def test_lif_backward_of_a_surrogate_that_is_zero_everywhere_is_that_of_a_leak(rows, neuron):
    alpha, subtract, _ = neuron
    h, kept = rows(low=-1.0), torch.ones(NEURONS, STEPS)
    found = exodus_cuda.lifBackward(torch.zeros_like(h), h, kept, alpha, subtract)
    assert_rows_equal(found, exodus_cuda.leakyBackward(h, alpha))


def test_lif_backward_alpha_is_the_derivative_by_autograd(rows, neuron):
    alpha, subtract, _ = neuron
    f, h, kept = rows(high=2.5), rows(low=-1.0), (rows() > 0.1).float()
    kept[0, 0], kept[1, 0] = 0, 1  # clipped at the first step, and not
    after_reset, initial = rows(low=-1.0), rows(NEURONS, low=-1.0)
    found = exodus_cuda.lifBackwardAlpha(f, h, after_reset, initial, kept, alpha, subtract)

    # The derivative of u with respect to alpha, where the membrane after the reset at t-1 is the one that is given.
    derivative, total = torch.zeros(NEURONS, dtype=torch.float64), torch.zeros(NEURONS, dtype=torch.float64)
    before = torch.cat([initial[:, None], after_reset[:, :-1]], 1).double()
    for t in range(STEPS):
        slope = alpha.double() * (1 - subtract.double() * f[:, t - 1]) if t else 0.0
        derivative = kept[:, t] * (slope * derivative + before[:, t])
        total = total + h[:, t] * derivative
    assert_rows_equal(found, total)


def leak(x, initial, alpha):
    v, steps = initial, []
    for x_t in x.unbind(1):
        v = alpha * v + x_t
        steps.append(v)
    return torch.stack(steps, 1)


def test_the_three_functions_of_the_leak_are_the_loop_and_its_gradients(rows, neuron):
    alpha, h = neuron[0], rows(low=-1.0)
    leaves = [leaf.double().requires_grad_() for leaf in (rows(low=-1.0), rows(NEURONS), alpha)]
    x, initial, _ = (leaf.detach().float() for leaf in leaves)
    looped = leak(*leaves)
    grad_x, _, grad_alpha = torch.autograd.grad((looped * h).sum(), leaves)
    output = exodus_cuda.leakyForward(x, initial, alpha)
    assert_rows_equal(output, looped.detach())
    assert_rows_equal(exodus_cuda.leakyBackward(h, alpha), grad_x)
    assert_rows_equal(exodus_cuda.leakyBackwardAlpha(h, output, initial, alpha), grad_alpha)


@pytest.mark.parametrize("most", [1, 2, -1])
@pytest.mark.parametrize("bounded", [False, True])
def test_spike_forward_subtracts_the_reset_and_adds_what_lies_below_the_bound(rows, bounded, most):
    alpha, subtract, theta, low = 0.8, 0.5, 0.6, -0.2
    u = rows(low=-1.0, high=1.9)
    looped, wanted = u.double(), torch.zeros(NEURONS, STEPS)
    for t in range(STEPS):
        now = looped[:, t].clone()
        wanted[:, t] = fired(now, theta, most)
        below = (low - now).clamp(min=0) if bounded else torch.zeros_like(now)
        for later in range(t + 1, STEPS):
            looped[:, later] += alpha ** (later - t) * (below - subtract * wanted[:, t])
    spikes = exodus_cuda.spikeForward(u, alpha, subtract, theta, low, bounded, most)
    assert torch.equal(spikes, wanted)
    assert_rows_equal(u, looped)
    assert (u < low).any()


def srm_adjoint(f, g, taps):
    """delta[t] = f[t] (g[t] + sum over j of taps[j] delta[t+1+j]), in float64."""
    delta = torch.zeros(NEURONS, STEPS, dtype=torch.float64)
    for t in reversed(range(STEPS)):
        later = delta[:, t + 1 :][:, : len(taps)]
        delta[:, t] = f[:, t] * (g[:, t] + later @ taps[: later.shape[1]].double())
    return delta


def test_spike_backward_has_an_exponential_reset_kernel(rows):
    f, g, kept = rows(high=2.5), rows(low=-1.0), (rows() > 0.1).float()
    found = exodus_cuda.spikeBackward(f, g, kept, 0.8, 0.5)
    assert_rows_equal(found, srm_adjoint(f * kept, g, -0.5 * 0.8 ** torch.arange(STEPS)))


@pytest.mark.parametrize("taps", [1, 2, 9, STEPS + 3])
def test_spike_backward_refr_has_the_taps_after_the_first(rows, taps):
    f, g, refractory = rows(high=2.5), rows(low=-1.0), -0.3 * rows(taps)
    assert_rows_equal(exodus_cuda.spikeBackwardRefr(f, g, refractory), srm_adjoint(f, g, refractory[1:]))


def test_the_stand_in_refuses_what_the_module_refuses(rows, neuron):
    alpha = neuron[0]
    with pytest.raises(RuntimeError, match=r"input must be float32, got torch\.float64"):
        exodus_cuda.leakyForward(rows().double(), alpha, alpha)
    with pytest.raises(RuntimeError, match="outputGrad must be contiguous"):
        exodus_cuda.leakyBackward(rows(STEPS, NEURONS).t(), alpha)
    with pytest.raises(ValueError, match="notClipped must be 0 or 1"):
        exodus_cuda.lifBackward(rows(), rows(), rows(), alpha, alpha)
    with pytest.raises(ValueError, match="surr must be non-negative"):
        exodus_cuda.spikeBackwardRefr(-rows(), rows(), rows(3))


@pytest.mark.peers
@pytest.mark.slow
def test_the_suite_of_sinabs_exodus_passes_on_the_stand_in(sinabs, tmp_path):
    folder = os.environ.get("EXODUS_SINABS_EXODUS")
    if not folder:
        pytest.skip("EXODUS_SINABS_EXODUS names no folder with a checkout of sinabs-exodus")
    paths = [str(STAND_IN), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["EXODUS_SINABS_EXODUS"] = str(Path(folder).resolve())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "on_cpu", "-p", "no:cacheprovider", "--rootdir", folder]
    command += ["-c", os.devnull, str(Path(folder, "tests").resolve())]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    summary = run.stdout.splitlines()[-1] if run.stdout else ""
    assert re.fullmatch(r"\d+ passed(, \d+ warnings?)? in .*", summary), run.stdout[-4000:] + run.stderr[-4000:]
    assert int(summary.split()[0]) >= 269
