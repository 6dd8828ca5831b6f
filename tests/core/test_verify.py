"""Certificates of gradients: the exact gradient is exact, the kernels keep their bounds, a wrong gradient does not."""

import json
import math
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from exodus_core import AlphaKernel, ExponentialKernel, reference
from exodus_core.kernels import Kernel
from exodus_core.surrogate import KINDS, Arctan, Boxcar, Exponential, FastSigmoid, Gaussian, Surrogate, Triangle
from exodus_core.verify import Certificate, LifRun, SrmRun, arithmetic, certify, commands, peers, run_lif, run_srm
from exodus_core.verify.arithmetic import RATIONAL_KINDS, arithmetic_for, exact_derivative
from exodus_core.verify.bounds import Rounding, surrogate_bounds
from exodus_core.verify.exact import LifLane, lif_gradients, lif_membranes, srm_gradients, srm_membranes
from exodus_core.verify.random_cases import NEURONS, random_runs
from exodus_core.verify.runs import RESETS

METHODS = ("exodus", "slayer", "bptt")
STEPS = 9


@pytest.fixture(autouse=True)
def _on_device() -> None:
    """In the place of the core's fixture: certificates are of the CPU."""


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def some_lif(reset: str = "subtract", dtype: torch.dtype = torch.float32, **options: object) -> LifRun:
    """A run of 2 x 3 neurons with every argument given."""
    given: dict[str, object] = {
        "grad_membrane": draw(3, 2, STEPS, 3, dtype=dtype),
        "threshold": torch.tensor([0.5, 0.9, 1.1]),
        "reset_by": torch.tensor([0.6, 0.9, 1.2]),
        "min_membrane": -0.7,
        "initial_membrane": draw(4, 2, 3, dtype=dtype),
        "initial_spikes": torch.tensor([0.0, 1.0, 0.0]),
        "surrogate": Triangle(slope=0.6),
    }
    x, g = 0.7 * draw(1, 2, STEPS, 3, dtype=dtype), draw(2, 2, STEPS, 3, dtype=dtype)
    return run_lif(
        x,
        torch.tensor([0.0, 0.55, 0.95]),
        g,
        reset=reset.removesuffix("_decayed"),
        decay_reset=RESETS[reset],
        **(given | options),
    )


def directional(
    lane: LifLane,
    direction: dict[str, Fraction],
    moved_step: int | None,
    u: list[Fraction],
    spikes: list[int],
    clipped: list[bool],
    f: list[Fraction],
    g: list[Fraction],
    h: list[Fraction],
    slayer: bool,
) -> Fraction:
    """The derivative of sum(g s + h u) along a direction, carried forward in time by the product rule."""
    du, ds = direction.get("initial_membrane", Fraction(0)), direction.get("initial_spikes", Fraction(0))
    names = ("alpha", "reset_by", "threshold", "min_membrane")
    d_alpha, d_rho, d_theta, d_floor = (direction.get(name, Fraction(0)) for name in names)
    before, fired = lane.initial_membrane, lane.initial_spikes
    alpha, rho = lane.alpha, lane.reset_by
    total = Fraction(0)
    for t, value in enumerate(u):
        seen_ds = 0 if slayer else ds
        if lane.reset == "zero":
            kept = before * (1 - fired)
            d_kept = du if slayer else du * (1 - fired) - before * seen_ds
        elif lane.reset == "subtract_decayed":
            kept, d_kept = before - rho * fired, du - rho * seen_ds - d_rho * fired
        else:
            kept, d_kept = before, du
        moved = alpha * d_kept + d_alpha * kept + (1 if t == moved_step else 0)
        if lane.reset == "subtract":
            moved -= rho * seen_ds + d_rho * fired
        du = d_floor if clipped[t] else moved
        ds = f[t] * (du - d_theta)
        total += g[t] * ds + h[t] * du
        before, fired = value, spikes[t]
    return total


@pytest.mark.parametrize("slayer", [False, True], ids=["exodus", "slayer"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("surrogate", [Boxcar(0.4), Triangle(0.6), FastSigmoid(3.0)], ids=lambda s: s.kind)
def test_the_exact_gradient_is_the_derivative_carried_forward_in_fractions(
    surrogate: Surrogate, reset: str, slayer: bool
) -> None:
    x, g, h = ([Fraction(v) for v in draw(seed, 7).tolist()] for seed in (1, 2, 3))
    spikes, clipped = [0, 1, 0, 0, 1, 1, 0], [False, False, True, False, False, False, False]
    alpha, threshold, reset_by, floor, u, s = (Fraction(v) for v in (0.75, 0.875, 0.625, -0.5, 0.3, 1.0))
    lane = LifLane(alpha, threshold, reset_by, floor, u, s, reset)
    membranes = lif_membranes(lane, x, spikes, clipped).clipped
    f = [Fraction(0.5 - abs(membrane) / 4) for membrane in membranes]  # any f'
    found = lif_gradients(lane, membranes, spikes, clipped, f, g, h, slayer)
    given = (membranes, spikes, clipped, f, g, h, slayer)
    assert found.input == [directional(lane, {}, t, *given) for t in range(7)]
    for name in ("alpha", "threshold", "reset_by", "min_membrane", "initial_membrane", "initial_spikes"):
        assert getattr(found, name) == directional(lane, {name: Fraction(1)}, None, *given), name


def test_the_exact_srm_gradient_is_the_derivative_carried_forward_in_fractions() -> None:
    taps = [Fraction(-3, 4), Fraction(1, 3), Fraction(-1, 5)]
    z, g, h = ([Fraction(v) for v in draw(seed, 8).tolist()] for seed in (1, 2, 3))
    spikes = [1, 0, 1, 1, 0, 0, 1, 0]
    u = srm_membranes(taps, z, spikes)
    f = [1 / (1 + abs(value - 1)) for value in u]
    found = srm_gradients(taps, spikes, f, g, h, slayer=False)

    def derivative(moved_step: int | None, moved_tap: int | None, d_theta: int) -> Fraction:
        total = Fraction(0)
        changes: list[Fraction] = []
        for n in range(8):
            du = Fraction(n == moved_step)
            for j in range(min(3, n)):
                du += taps[j] * changes[n - 1 - j] + (j == moved_tap) * spikes[n - 1 - j]
            changes.append(f[n] * (du - d_theta))
            total += g[n] * changes[n] + h[n] * du
        return total

    assert found.psp == [derivative(n, None, 0) for n in range(8)]
    assert found.threshold == derivative(None, None, 1)
    assert found.reset_kernel == [derivative(None, j, 0) for j in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_surrogate_is_the_definition(kind: str) -> None:
    surrogate = KINDS[kind](slope=1.75, scale=-0.5)
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)
    with arithmetic_for(surrogate, steps=1) as numbers:
        f = exact_derivative(surrogate, numbers)
        found = [numbers.nearest(f(numbers.rational(value))) for value in x.tolist()]
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), surrogate.derivative(x), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_true_gradient_is_that_of_autograd_in_float64(kind: str, reset: str) -> None:
    surrogate = KINDS[kind](slope=1.5)
    run = some_lif(reset, torch.float64, surrogate=surrogate)
    x, u0 = (
        values.requires_grad_()
        for values in (0.7 * draw(1, 2, STEPS, 3, dtype=torch.float64), draw(4, 2, 3, dtype=torch.float64))
    )
    alpha = torch.tensor([0.0, 0.55, 0.95]).double().requires_grad_()
    outputs = reference.lif(
        x,
        alpha,
        threshold=torch.tensor([0.5, 0.9, 1.1]).double(),
        reset=reset.removesuffix("_decayed"),
        reset_by=torch.tensor([0.6, 0.9, 1.2]).double(),
        decay_reset=RESETS[reset],
        surrogate=surrogate,
        initial_membrane=u0,
        initial_spikes=torch.tensor([0.0, 1.0, 0.0]),
        min_membrane=-0.7,
    )
    grads = [draw(seed, 2, STEPS, 3, dtype=torch.float64) for seed in (2, 3)]
    by_x, by_alpha, by_u0 = torch.autograd.grad(outputs, (x, alpha, u0), grads)
    true = {name: each.true for name, each in certify(run).gradients.items()}
    expected = {
        "input": by_x.movedim(1, 0).reshape(STEPS, -1),
        "alpha": by_alpha,
        "initial_membrane": by_u0.reshape(-1),
    }
    for name, values in expected.items():
        torch.testing.assert_close(true[name], values, rtol=1e-10, atol=1e-12)


def test_every_bound_is_kept_in_random_runs_of_every_surrogate_reset_and_method() -> None:
    seen = set()
    for neuron, run in random_runs(2000, seed=7):
        if run.spikes.numel() > 200:
            continue  # the small ones say as much, sooner
        certificate = certify(run)
        assert certificate.kept, (neuron, run)
        seen |= {neuron, run.method, run.surrogate.kind, run.spikes.dtype}
    assert seen >= {*NEURONS, *METHODS, *KINDS, torch.float32, torch.float64}


@pytest.mark.parametrize(
    "kernel",
    [ExponentialKernel(0.8, -0.9), AlphaKernel(3.0, -1.0), torch.tensor([-0.9, 0.2])],
    ids=["exponential", "alpha", "taps"],
)
def test_an_srm_neuron_keeps_its_bounds(kernel: Kernel) -> None:
    z, g = 0.8 * draw(1, 2, STEPS, 3), draw(2, 2, STEPS, 3)
    certificate = certify(run_srm(z, kernel, g, threshold=torch.tensor([0.5, 0.8, 1.0]), surrogate=FastSigmoid()))
    assert certificate.kept
    assert set(certificate.gradients) >= {"psp", "threshold"}


@pytest.mark.parametrize(("method", "more"), [("exodus", 3), ("slayer", 3), ("bptt", 9)])
@pytest.mark.parametrize(("surrogate", "p"), [(Boxcar(0.3), 1), (FastSigmoid(2.0), 10), (Arctan(2.0), 12)])
def test_the_bound_is_within_the_closed_form_of_the_document(
    surrogate: Surrogate, p: int, method: str, more: int
) -> None:
    steps = 20
    x, g = 0.5 * draw(1, 1, steps, 4), draw(2, 1, steps, 4)
    found = certify(run_lif(x, torch.tensor([0.5, 0.7, 0.9, 0.99]), g, surrogate=surrogate, method=method))
    each = found.gradients["input"]
    n = (p + more) * (steps - torch.arange(steps, dtype=torch.float64))[:, None] * each.unit
    assert (each.own_bound <= (1 + 1e-5) * n / (1 - n) * each.terms + 1e-30).all()


def test_long_runs_are_computed_in_balls() -> None:
    g = draw(2, 1, 80, 2)
    certificate = certify(run_lif(0.5 * draw(1, 1, 80, 2), 0.9, g, surrogate=FastSigmoid()))
    assert certificate.arithmetic.startswith("balls")
    assert certificate.kept


def moved(run: LifRun, name: str, index: tuple[int, ...], ulps: int) -> LifRun:
    """The run with one gradient moved by so many units in the last place, away from zero."""
    values = run.gradients[name].clone()
    for _ in range(ulps):
        values[index] = torch.nextafter(values[index], values[index] * 4)
    return replace(run, gradients=run.gradients | {name: values})


def test_a_gradient_that_is_off_by_four_units_in_the_last_place_is_reported() -> None:
    """At the last step nothing is summed: lam = f' g, of a boxcar of height 1."""
    run = run_lif(0.1 + 0.2 * draw(1, 1, 5, 1), 0.9, draw(2, 1, 5, 1), surrogate=Boxcar(slope=0.25, scale=4.0))
    right = certify(run)
    assert right.kept
    assert right.gradients["input"].own_share[-1] == 0
    wrong = certify(moved(run, "input", (4, 0), 4))
    assert not wrong.kept
    assert wrong.gradients["input"].broken.nonzero().tolist() == [[4, 0]]
    assert wrong.gradients["input"].ulps[4, 0] == pytest.approx(4)


@pytest.mark.parametrize(
    "name", ["input", "alpha", "threshold", "reset_by", "min_membrane", "initial_membrane", "initial_spikes"]
)
def test_an_error_beyond_the_bound_of_any_gradient_is_reported(name: str) -> None:
    run = some_lif()
    right = certify(run).gradients[name]
    element = int(right.own_bound.flatten().argmax())
    values = run.gradients[name].clone()
    values.view(-1)[element] += 3 * right.own_bound.flatten()[element]
    wrong = certify(replace(run, gradients=run.gradients | {name: values}))
    assert not wrong.kept
    assert [other for other, each in wrong.gradients.items() if each.broken.any()] == [name]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_reported(value: float) -> None:
    run = some_lif()
    values = run.gradients["input"].clone()
    values[0, 0] = value
    assert not certify(replace(run, gradients=run.gradients | {"input": values})).kept


@pytest.mark.parametrize("reset", ["subtract", "subtract_decayed", "zero"])
def test_the_gradient_without_the_reset_is_not_the_gradient(reset: str) -> None:
    run = some_lif(reset, method="slayer")
    assert certify(run).kept
    assert not certify(replace(run, method="exodus")).kept


def test_a_spike_that_rounding_does_not_explain_is_reported() -> None:
    run = some_lif()
    fired = run.spikes.clone()
    quietest = int(run.membrane[-1].argmin())
    assert fired[-1, quietest] == 0
    fired[-1, quietest] = 1
    certificate = certify(replace(run, spikes=fired))
    assert certificate.decisions.spikes == 1
    assert certificate.decisions.farthest > 1
    assert not certificate.kept


def test_a_spike_that_rounding_decides_is_counted_and_is_within_the_bound() -> None:
    """The threshold is the membrane as float32 rounds it, so that the exact one is below it as often as above."""
    x = torch.rand((1, 2, 400), generator=torch.Generator().manual_seed(0))
    threshold = (0.7 * x[:, 0] + x[:, 1]).reshape(-1)
    certificate = certify(
        run_lif(x, 0.7, torch.ones_like(x), threshold=threshold, reset="none", surrogate=Boxcar(0.01))
    )
    assert 50 < certificate.decisions.spikes < 350
    assert 0 < certificate.decisions.farthest <= 1
    assert certificate.kept


def test_a_membrane_that_rounding_takes_to_its_lower_bound_is_counted_and_is_within_the_bound() -> None:
    x = torch.rand((1, 2, 400), generator=torch.Generator().manual_seed(0))
    floor = (0.7 * x[:, 0] + x[:, 1]).reshape(-1)
    certificate = certify(
        run_lif(x, 0.7, torch.ones_like(x), threshold=9.0, min_membrane=floor, surrogate=Boxcar(0.01))
    )
    assert certificate.decisions.clipped > 10
    assert 0 < certificate.decisions.farthest <= 1
    assert certificate.kept


def test_a_membrane_at_the_edge_of_a_boxcar_is_counted_and_bounded_by_the_jump() -> None:
    x = torch.tensor([[[0.1], [0.2]]])
    edge = float((0.7 * x[0, 0, 0] + x[0, 1, 0]).double())  # the membrane, rounded
    run = run_lif(x, 0.7, torch.ones_like(x), threshold=edge + 0.5, surrogate=Boxcar(slope=1.0))
    certificate = certify(run)
    assert certificate.decisions.edges == 1
    assert certificate.gradients["input"].at_edge.all()
    assert certificate.kept
    assert certificate.gradients["input"].bound[-1] >= 1


def same(a: Certificate, b: Certificate) -> bool:
    return all(torch.equal(a.gradients[name].true, b.gradients[name].true) for name in a.gradients)


@pytest.mark.parametrize("kind", sorted(RATIONAL_KINDS))
def test_without_flint_rational_gradients_are_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = some_lif(surrogate=KINDS[kind]())
    with_flint = certify(run)
    monkeypatch.setitem(sys.modules, "flint", None)
    without = certify(run)
    assert "fmpq" in with_flint.arithmetic
    assert "fractions" in without.arithmetic
    assert without.kept
    assert same(with_flint, without)


def test_without_flint_a_ball_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flint", None)
    with pytest.raises(ModuleNotFoundError, match=r"balls need python-flint: pip install 'exodus-core\[verify\]'"):
        certify(some_lif(surrogate=Exponential()))
    assert not arithmetic.has_flint()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(1, 2, 1, dtype=torch.float16), TypeError, "x must be float32 or float64, got torch.float16"),
        (torch.zeros(1, 0, 1), ValueError, "x must be at least one step of one neuron, got shape"),
        (torch.full((1, 2, 1), torch.inf), ValueError, "x must be finite, got a value that is not"),
    ],
)
def test_inputs_that_cannot_be_certified_are_refused(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_lif(x, 0.9, torch.zeros_like(x))


@pytest.fixture
def verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command in a folder with x.npz, of x and grad_spikes."""
    monkeypatch.chdir(tmp_path)
    arrays = {"x": 0.7 * draw(1, 2, 6, 3), "grad_spikes": draw(2, 2, 6, 3)}
    np.savez("x.npz", **{name: values.numpy() for name, values in arrays.items()})
    np.save("x.npy", arrays["x"].numpy())
    torch.save(arrays, "x.pt")
    safetensors.torch.save_file(arrays, "x.safetensors")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(commands.app, list(arguments))

    return run


@pytest.mark.parametrize("suffix", ["npz", "npy", "pt", "safetensors"])
def test_the_command_reads_the_files_of_arrays(verify: Callable[..., Result], suffix: str) -> None:
    result = verify(f"x.{suffix}", "--alpha", "0.9", "--surrogate", "boxcar", "--method", "exodus")
    assert result.exit_code == 0, result.output
    assert "every bound is kept" in result.stdout
    assert ("was drawn" in result.stdout) == (suffix == "npy")


def test_the_command_prints_json(verify: Callable[..., Result]) -> None:
    found = json.loads(verify("x.npz", "--alpha", "0.9", "--surrogate", "triangle", "--json").stdout)
    lines = found["lines"]
    assert [line["group"] for line in lines][:2] == [["exodus", "membrane"], ["exodus", "input"]]
    assert {line["group"][0] for line in lines} == set(METHODS)
    assert all(line["broken"] == 0 and line["share"] <= 1 and len(line["ulps"]) in (0, 3) for line in lines)
    assert "membrane_units" not in lines[0]  # of random cases
    assert found["outcome"] == "kept"
    assert not found["grad_spikes_drawn"]
    assert [run["method"] for run in found["runs"]] == list(METHODS)
    assert found["runs"][0]["decisions"]["steps"] == 36
    assert found["runs"][0]["arithmetic"].startswith("rationals")


def test_json_of_random_cases_has_their_membranes(verify: Callable[..., Result]) -> None:
    found = json.loads(verify("--random", "5", "--seed", "5", "--json").stdout)
    assert found["outcome"] == "kept"
    assert found["seed"] == 5
    assert found["lines"][0]["membrane_share"] <= 1


def test_what_is_not_finite_is_null_in_json(verify: Callable[..., Result]) -> None:
    options = ("--alpha", "0.9", "--surrogate", "boxcar", "--slope", "0.2", "--scale", "1e38", "--json")
    result = verify("x.npz", *options)
    assert result.exit_code == 4
    assert "Infinity" not in result.stdout
    assert "NaN" not in result.stdout
    found = json.loads(result.stdout)
    assert found["outcome"] == "uncertain"
    assert any(None in (line["share"], line["units"], *line["ulps"]) for line in found["lines"])


def test_the_command_certifies_an_srm(verify: Callable[..., Result]) -> None:
    np.savez("srm.npz", x=draw(1, 2, 6, 3).numpy(), reset_kernel=np.array([-1.0, -0.5], np.float32))
    result = verify("srm.npz", "--neuron", "srm", "--surrogate", "fast_sigmoid")
    assert result.exit_code == 0, result.output
    assert "reset_kernel" in result.stdout


def test_random_cases_exit_with_1_where_a_bound_is_broken(
    verify: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = verify("--random", "30", "--seed", "5")
    assert result.exit_code == 0, result.output
    assert "random cases, seed 5" in result.stdout
    assert "every bound is kept" in result.stdout

    def wrong(run: LifRun | SrmRun) -> Certificate:
        certificate = certify(run)
        for each in certificate.gradients.values():
            each.own_bound.mul_(1e-9)
        return certificate

    monkeypatch.setattr(commands, "certify", wrong)
    result = verify("--random", "30", "--seed", "5")
    assert result.exit_code == 1
    assert "bounds are not kept" in result.stdout


def patched(monkeypatch: pytest.MonkeyPatch, change: Callable[[Certificate], Certificate]) -> None:
    """The command certifies by `certify`, changed."""
    monkeypatch.setattr(commands, "certify", lambda run: change(certify(run)))


def test_a_decision_that_rounding_does_not_explain_exits_with_1(
    verify: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    patched(monkeypatch, lambda found: replace(found, decisions=replace(found.decisions, farthest=7.0)))
    result = verify("x.npz", "--alpha", "0.9", "--surrogate", "boxcar", "--method", "exodus")
    assert result.exit_code == 1
    assert "a bound is not kept" in result.stdout


@pytest.mark.parametrize("neuron", ["IF", "If"])
def test_the_name_of_a_neuron_may_be_in_capitals(verify: Callable[..., Result], neuron: str) -> None:
    result = verify("x.npz", "--neuron", neuron, "--surrogate", "boxcar", "--method", "exodus")
    assert result.exit_code == 0, result.output
    assert "x.npz, if" in result.stdout
    assert "alpha" not in result.stdout


def test_balls_get_as_many_bits_as_a_long_run_needs() -> None:
    """The terms of 400 steps are larger than their sum by more than 256 bits."""
    x, g = 0.5 + 0.3 * draw(1, 1, 400, 1), draw(2, 1, 400, 1)
    certificate = certify(run_lif(x, 0.99, g))
    assert int(certificate.arithmetic.split()[2]) > 256
    assert certificate.kept
    assert certificate.gradients["input"].ulps.max() < 1e5


def test_a_run_that_needs_too_many_bits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "MOST_BITS", 256)
    x = 0.5 + 0.3 * draw(1, 1, 400, 1)
    with pytest.raises(ValueError, match="the run must be a run whose exact gradients balls of 256 bits hold"):
        certify(run_lif(x, 0.99, torch.ones_like(x)))


@pytest.mark.parametrize(
    ("surrogate", "a", "rounded"),
    [
        (Exponential(slope=1.0), 60.0, lambda a, u: math.exp(a * (1 - (1 - u) ** 2)) * (1 + 4 * u) * (1 + u)),
        (Gaussian(slope=1.0), 11.0, lambda a, u: math.exp(a * a / 2 * (1 - (1 - u) ** 5)) * (1 + 4 * u) * (1 + u) ** 4),
    ],
    ids=["exponential", "gaussian"],
)
def test_the_bound_of_a_surrogate_has_the_second_order_in_it(
    surrogate: Surrogate, a: float, rounded: Callable[[float, float], float]
) -> None:
    """An exponential two units in the last place off, at an argument whose roundings all go one way."""
    numbers = Rounding(torch.float32, loop=False)
    zero = torch.zeros(1, dtype=torch.float64)
    f = surrogate_bounds(surrogate, zero + a, zero, numbers, zero)
    least = 10 * numbers.least  # the part of the bound that is for underflow
    assert f.error - least >= (rounded(a, numbers.unit) - 1) * f.value


def test_the_bound_of_a_membrane_is_within_the_closed_form_also_after_a_reset_to_zero() -> None:
    x = 1.1 + 0.3 * draw(1, 1, 20, 8)
    run = run_lif(x, 0.9, torch.ones_like(x), reset="zero", surrogate=Boxcar())
    assert run.spikes.sum() > 20
    membrane = certify(run).membrane
    n = 4 * torch.arange(1, 21, dtype=torch.float64)[:, None] * membrane.unit
    assert (membrane.bound <= (1 + 2e-4) * n / (1 - n) * membrane.terms + 1e-30).all()


def test_a_bound_that_is_not_finite_is_no_certificate() -> None:
    """The terms of 250 steps are larger than any float64."""
    x = (0.5 + 0.3 * draw(1, 1, 250, 1)).double()
    certificate = certify(run_lif(x, 0.99, torch.ones_like(x), surrogate=Boxcar(slope=0.5, scale=80.0)))
    assert not certificate.gradients["input"].bound.isfinite().all()
    assert certificate.gradients["input"].uncertain.any()
    assert not certificate.gradients["input"].broken.any()
    assert not certificate.kept


def test_a_result_that_cannot_be_certified_exits_with_4(verify: Callable[..., Result]) -> None:
    result = verify("x.npz", "--alpha", "0.9", "--surrogate", "boxcar", "--slope", "0.2", "--scale", "1e38")
    assert result.exit_code == 4, result.output
    assert "cannot be certified: a bound or a result is not finite" in result.stdout
    assert "nan" in result.stdout or "inf" in result.stdout


def test_the_command_counts_bounds_that_exceed_the_value(verify: Callable[..., Result]) -> None:
    np.savez("long.npz", x=(0.5 + 0.3 * draw(1, 1, 100, 1)).numpy())
    options = ("--alpha", "0.95", "--surrogate", "boxcar", "--method", "exodus")
    found = re.search(
        r"the bound exceeds the value itself for (\d+) of (\d+) results", verify("long.npz", *options).stdout
    )
    assert found is not None
    exceeded, results = map(int, found.groups())
    assert 0 < exceeded < results


def test_a_true_value_of_zero_counts_in_no_ulps(verify: Callable[..., Result]) -> None:
    """Nothing passes a boxcar that no membrane is in."""
    result = verify("x.npz", "--alpha", "0.9", "--surrogate", "boxcar", "--slope", "1e4", "--method", "exodus")
    assert "true values are 0 and count in no ulps; 0 of these results are not 0" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "FILE must be given, or --random, or --against, got none of them"),
        (("x.npz", "--random", "3"), "--random must be without FILE and --against, got FILE"),
        (("x.npz", "--random", "3", "--against", "norse"), "FILE and --against, got FILE and --against"),
        (("--random", "3", "--alpha", "0.9"), "--alpha must be left out with --random, got 0.9"),
        (("--random", "3", "--method", "bptt"), "--method must be left out with --random, got bptt"),
        (("--against", "norse", "--neuron", "if"), "--neuron must be left out with --against alone, got if"),
        (("x.npz", "--against", "norse", "--alpha", "0.9"), "--alpha must be left out with --against, got 0.9"),
        (("x.npz", "--neuron", "srm", "--alpha", "0.9"), "--alpha must be left out with --neuron srm, got 0.9"),
        (("x.npz", "--neuron", "srm", "--max-spikes", "2"), "--max-spikes must be left out with --neuron srm, got 2"),
        (("x.npz", "--alpha", "2"), "alpha must be in [0, 1], got 2"),
        (("x.npz", "--alpha", "nan"), "alpha must be a number, got nan"),
        (("x.npz", "--alpha", "0.9", "--time-dim", "3"), "time_dim must be an axis of x with shape (2, 6, 3), got 3"),
        (("int.npz", "--alpha", "0.9"), "x must be float32 or float64, got torch.int64"),
        (("large.npz", "--alpha", "0.9"), "the membrane must be finite, got a value that is not"),
        (("two_alphas.npz",), "alpha must be values that broadcast to the inner dimensions, (3,), got shape (2,)"),
        (("row_alpha.npz",), "alpha must be values that broadcast to the inner dimensions, (3,), got shape (1, 3)"),
        (("state.npz", "--alpha", "0.9"), "initial_membrane must be values that broadcast to the input without its"),
        (("zero_threshold.npz", "--alpha", "0.9", "--max-spikes", "3"), "threshold must be positive, got 0.0"),
        (("x.npz", "--alpha", "0.9", "--threshold", "0", "--max-spikes", "3"), "threshold must be positive, got 0.0"),
        (("junk.pt", "--alpha", "0.9"), "FILE must be a .pt file of a tensor or a dict of tensors, got junk.pt"),
        (("object.pt", "--alpha", "0.9"), "FILE must be a .pt file of a tensor or a dict of tensors, got object.pt"),
        (("cut.pt", "--alpha", "0.9"), "FILE must be a .pt file of a tensor or a dict of tensors, got cut.pt"),
        (("junk.safetensors", "--alpha", "0.9"), "FILE must be a .safetensors file, got junk.safetensors"),
        (("junk.npz", "--alpha", "0.9"), "FILE must be a file of arrays of numbers, got junk.npz, which is damaged or"),
        (("objects.npz", "--alpha", "0.9"), "FILE must be a file of arrays of numbers, got objects.npz"),
        (("x.npz",), "--alpha must be the decay in one step, such as 0.95, with --neuron lif, got nothing"),
        (("x.npz", "--neuron", "qif"), "--neuron must be one of lif, if, srm, cuba_lif, alif, got qif"),
        (("x.npz", "--neuron", "if", "--alpha", "0.9"), "--neuron must be lif with alpha, got if"),
        (("x.npz", "--neuron", "srm"), "FILE must be a file with the taps reset_kernel for --neuron srm"),
        (("x.npz", "--alpha", "0.9", "--surrogate", "relu"), "--surrogate must be one of"),
        (("x.npz", "--alpha", "0.9", "--method", "rtrl"), "method must be one of exodus, slayer, bptt, got 'rtrl'"),
        (("gone.npz", "--alpha", "0.9"), "No such file or directory"),
        (("x.txt", "--alpha", "0.9"), "FILE must be a name that ends in one of .npz"),
        (("no_x.npz", "--alpha", "0.9"), "FILE must be a file with the tensor x, got one with y"),
        (("more.npz", "--alpha", "0.9"), "got tau"),
        (("--against", "brian"), "--against must be one of sinabs, snntorch, spikingjelly, norse, got brian"),
    ],
)
def test_the_command_refuses_what_does_not_fit(
    verify: Callable[..., Result], arguments: tuple[str, ...], message: str
) -> None:
    x = np.zeros((2, 6, 3), np.float32)
    np.savez("no_x.npz", y=np.zeros((1, 2, 1), np.float32))
    np.savez("more.npz", x=np.zeros((1, 2, 1), np.float32), tau=np.zeros(1))
    np.savez("int.npz", x=np.zeros((1, 2, 1), np.int64))
    np.savez("large.npz", x=x + np.float32(3e38))
    np.savez("two_alphas.npz", x=x, alpha=np.full(2, 0.5, np.float32))
    np.savez("row_alpha.npz", x=x, alpha=np.full((1, 3), 0.5, np.float32))
    np.savez("state.npz", x=x, initial_membrane=np.zeros((2, 2), np.float32))
    np.savez("zero_threshold.npz", x=x, threshold=np.zeros(3, np.float32))
    np.savez("objects.npz", x=np.array([{}], object))
    for name in ("junk.pt", "junk.npz", "junk.safetensors"):
        Path(name).write_bytes(b"junk, and no tensors")
    torch.save({"x": object()}, "object.pt")
    Path("cut.pt").write_bytes(Path("x.pt").read_bytes()[:300])
    Path("x.txt").touch()
    result = verify(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def some_peer(monkeypatch: pytest.MonkeyPatch, scale: float = 1.0) -> None:
    """A neuron without reset and surrogate 1 under the name norse, whose gradient is scaled."""

    def run(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        return (x >= 1).float(), scale * grad

    peer = peers.PeerNeuron("some", Fraction(0), Fraction(1), "none", Boxcar(slope=1 / 32, scale=32.0), "exodus", run)
    monkeypatch.setitem(peers.PEERS, "norse", lambda: peer)


def test_another_library_is_compared_as_json(verify: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    some_peer(monkeypatch)
    found = json.loads(verify("x.npz", "--against", "norse", "--json").stdout)
    assert found["arithmetic"].startswith("rationals")
    assert not found["grad_spikes_drawn"]
    exact = {"elements": 36, "units": 0.0, "zeros": 0, "zeros_missed": 0, "ulps": [0.0, 0.0, 0.0]}
    assert found["lines"] == [{"group": ["exodus"], **exact}]
    assert verify("x.npy", "--against", "norse").exit_code == 0


def test_a_gradient_of_zero_of_another_library_counts_in_no_ulps(
    verify: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    some_peer(monkeypatch)
    np.savez("zero.npz", x=np.ones((1, 2, 1), np.float32), grad_spikes=np.array([[[0], [1]]], np.float32))
    result = verify("zero.npz", "--against", "norse")
    assert "1 true values are 0 and count in no ulps; 0 of these results are not 0" in result.stdout


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"x": np.full((2, 6, 3), np.nan, np.float32)}, (), "x must be finite, got a value that is not"),
        ({"x": np.float32(1)}, (), "time_dim must be an axis of x with shape (), got 1"),
        ({"x": np.zeros((2, 0, 3), np.float32)}, (), "x must be at least one step of one neuron, got shape (2, 0, 3)"),
        ({}, ("--time-dim", "3"), "time_dim must be an axis of x with shape (2, 6, 3), got 3"),
        ({"x": np.zeros((2, 6, 3))}, (), "x must be float32 with --against, got torch.float64"),
        (
            {"grad_spikes": np.zeros((6, 3), np.float32)},
            (),
            "grad_spikes must be of the shape of x, (2, 6, 3), got (6, 3)",
        ),
        ({"alpha": np.zeros(3, np.float32)}, (), "FILE must be tensors named x, grad_spikes with --against, got alpha"),
    ],
)
def test_a_file_that_does_not_fit_another_library_is_refused(
    changed: dict[str, np.ndarray],
    options: tuple[str, ...],
    message: str,
    verify: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some_peer(monkeypatch)
    np.savez("some.npz", **({"x": np.zeros((2, 6, 3), np.float32)} | changed))
    result = verify("some.npz", "--against", "norse", *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_gradient_of_another_library_that_is_not_finite_is_refused(
    verify: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    some_peer(monkeypatch, scale=math.inf)
    result = verify("x.npz", "--against", "norse")
    assert result.exit_code == 2, result.output
    assert "the gradient of the library must be finite, got a value that is not" in result.stderr


@pytest.mark.peers
@pytest.mark.parametrize("name", peers.PEERS)
def test_the_gradient_of_a_peer_is_compared_with_the_exact_one(name: str, verify: Callable[..., Result]) -> None:
    pytest.importorskip(name, reason=f"{name} cannot be imported: run `make peers`")
    peer = peers.peer_neuron(name)
    x = (0.3 + 0.6 * draw(1, 20, 8)) / float(peer.gain)
    comparison = peers.compare(peer, x, draw(2, 20, 8))
    assert comparison.errors[0].method == peer.method
    assert comparison.errors[0].relative < 1e-5
    assert comparison.errors[0].units.max() < 100
    assert [errors.method for errors in comparison.errors] == list(dict.fromkeys([peer.method, "exodus"]))
    if peer.method == "slayer":
        assert comparison.errors[1].relative > 0.1
    assert verify("--against", name).exit_code == 0


def test_a_peer_that_is_not_installed_is_named(verify: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sinabs", None)
    result = verify("--against", "sinabs")
    assert result.exit_code == 2
    assert "--against must be a library that is installed, got sinabs" in result.stderr


def test_without_typer_the_module_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "exodus_core.verify.commands")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"needs typer and rich: pip install 'exodus-core\[verify\]'"):
        runpy.run_module("exodus_core.verify", run_name="__main__")
