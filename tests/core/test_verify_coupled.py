"""Certificates of neurons with a current, an adaptation, a refractory period and other resets (equations.md, 9)."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from exodus_core import reference
from exodus_core.surrogate import Arctan, Boxcar, Exponential, FastSigmoid, Triangle
from exodus_core.verify import CoupledRun, certify, commands, run_coupled
from exodus_core.verify.bounds import Bounded, Rounding
from exodus_core.verify.coupled.differentiation import Variable, differentiate
from exodus_core.verify.coupled.exact import CoupledLane, CoupledNeuron, CoupledTrace, Steps
from exodus_core.verify.coupled.lines import Lines, exactly
from exodus_core.verify.exact import LifLane, lif_gradients, lif_membranes
from exodus_core.verify.random_cases import NEURONS, random_runs

METHODS = ("exodus", "slayer", "bptt")
STEPS = 11
SHAPE = (2, STEPS, 3)


@pytest.fixture(autouse=True)
def _on_device() -> None:
    """In the place of the core's fixture: certificates are of the CPU."""


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def each(*values: float) -> Tensor:
    """A parameter of three neurons."""
    return torch.tensor(values)


SYNAPSE = {"synapse_alpha": each(0.0, 0.6, 0.9), "synapse_gain": 0.7, "initial_current": 0.3}
RAISED = {
    "adapt_alpha": each(0.5, 0.9, 0.97),
    "adapt_by": 0.4,
    "adapt_threshold": each(0.3, 0.5, 0.2),
    "initial_adaptation": each(0.1, -0.2, 0.6),
}
COUPLED = {"adapt_alpha": 0.8, "adapt_by": each(0.3, 0.5, 0.7), "adapt_membrane": 0.2, "adapt_current": 0.4}
STATE = {"initial_membrane": each(0.4, -0.3, 1.2), "initial_spikes": each(0.0, 1.0, 1.0)}

#: Every option of section 9 at least once, alone and with others.
NEURONS_OF_SECTION_9: dict[str, dict[str, Any]] = {
    "cuba_lif": {**SYNAPSE, **STATE},
    "cuba_lif that subtracts before the decay": {**SYNAPSE, "decay_reset": True, "reset_by": each(0.6, 0.9, 1.2)},
    "cuba_lif with the current of the step before": {**SYNAPSE, "synapse_delayed": True, "min_membrane": -0.4},
    "cuba_lif that counts spikes": {**SYNAPSE, "max_spikes": 3, "threshold": 0.4},
    "alif with a raised threshold": {**RAISED, **STATE},
    "alif that subtracts its raised threshold before the decay": {**RAISED, "decay_reset": True},
    "alif that subtracts a number": {**RAISED, **STATE, "reset_by": 0.8},
    "alif, adLIF": {**COUPLED, **STATE, "min_membrane": each(-0.3, -0.6, -2.0)},
    "alif with everything": {**SYNAPSE, **RAISED, **COUPLED, **STATE, "refractory": 1, "min_membrane": -0.7},
    "alif that resets to zero": {**RAISED, "reset": "zero"},
    "alif without a reset": {**COUPLED, **SYNAPSE, "reset": "none"},
    "lif that resets to a value": {"reset": "value", "reset_to": each(0.1, 0.2, -0.4), **STATE},
    "lif with a refractory period": {"refractory": 2, "initial_refractory": each(0.0, 2.0, 1.0), **STATE},
    "lif with a detached reset to zero": {"reset": "zero", "detach_reset": True, **STATE},
    "lif with a detached reset": {"detach_reset": True, "reset_by": 0.6, **STATE},
    "cuba_lif with a detached reset to a value": {
        **SYNAPSE,
        "reset": "value",
        "reset_to": 0.2,
        "detach_reset": True,
        "refractory": 1,
    },
    "alif with a detached reset": {**RAISED, **STATE, "detach_reset": True},
}


def some_run(dtype: torch.dtype = torch.float32, **options: Any) -> CoupledRun:
    """A run of 2 x 3 neurons."""
    x, g, h = 0.3 + 0.7 * draw(1, *SHAPE, dtype=dtype), draw(2, *SHAPE, dtype=dtype), draw(3, *SHAPE, dtype=dtype)
    given = {"threshold": each(0.5, 0.8, 1.0), "surrogate": Triangle(slope=0.6)} | options
    return run_coupled(x, each(0.3, 0.7, 0.95), g, grad_membrane=h, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", NEURONS_OF_SECTION_9.values(), ids=NEURONS_OF_SECTION_9)
def test_every_bound_is_kept_by_every_neuron_of_section_9(
    options: dict[str, Any], method: str, dtype: torch.dtype
) -> None:
    run = some_run(dtype, method=method, **options)
    assert run.spikes.sum() > 0
    assert certify(run).kept


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", NEURONS_OF_SECTION_9.values(), ids=NEURONS_OF_SECTION_9)
def test_the_true_gradient_is_that_of_autograd_through_the_loop_in_float64(
    options: dict[str, Any], method: str
) -> None:
    run = some_run(torch.float64, method=method, **options)
    x = (0.3 + 0.7 * draw(1, *SHAPE, dtype=torch.float64)).requires_grad_()
    given = {"threshold": each(0.5, 0.8, 1.0), "surrogate": Triangle(slope=0.6)} | options
    leaves = {}
    for name, value in {"alpha": each(0.3, 0.7, 0.95), **given}.items():
        if isinstance(value, (float, Tensor)):
            shape = (2, 3) if name.startswith("initial_") else () if isinstance(value, float) else (3,)
            leaves[name] = torch.as_tensor(value, dtype=torch.float64).expand(shape).clone().requires_grad_()
    outputs = reference.coupled_lif(x, **{**given, **leaves, "method": method})[:2]
    grads = [draw(seed, *SHAPE, dtype=torch.float64) for seed in (2, 3)]
    found = torch.autograd.grad(outputs, [x, *leaves.values()], grads, allow_unused=True, materialize_grads=True)
    expected = {"input": found[0].movedim(1, 0).reshape(STEPS, -1)}
    expected |= {name: grad.reshape(-1) for name, grad in zip(leaves, found[1:], strict=True)}
    true = {name: deviation.true for name, deviation in certify(run).gradients.items()}
    assert true.keys() >= expected.keys() - {"initial_refractory"}
    for name in true.keys() & expected.keys():
        torch.testing.assert_close(true[name], expected[name], rtol=1e-10, atol=1e-11, msg=name)


@pytest.mark.parametrize("slayer", [False, True], ids=["exodus", "slayer"])
@pytest.mark.parametrize("reset", ["subtract", "subtract_decayed", "zero", "none"])
def test_without_other_variables_the_exact_gradient_is_that_of_lif(reset: str, slayer: bool) -> None:
    x, g, h = ([Fraction(v) for v in draw(seed, 7).tolist()] for seed in (1, 2, 3))
    spikes, clipped = [0, 1, 0, 0, 1, 1, 0], [False, False, True, False, False, False, False]
    values = {"alpha": 0.75, "threshold": 0.875, "reset_by": 0.625, "min_membrane": -0.5}
    parameters = {name: Fraction(value) for name, value in values.items()}
    initial = {"membrane": Fraction(0.3), "spikes": Fraction(1)}
    alpha, threshold, reset_by, floor = parameters.values()
    lane = LifLane(alpha, threshold, reset_by, floor, initial["membrane"], initial["spikes"], reset)
    membranes = lif_membranes(lane, x, spikes, clipped)

    def slope(distance: Fraction) -> Fraction:
        return 1 / (1 + abs(distance))

    f = [slope(u - threshold) for u in membranes.clipped]
    expected = lif_gradients(lane, membranes.clipped, spikes, clipped, f, g, h, slayer)
    neuron = CoupledNeuron(reset, delayed=False, slayer=slayer, detached=False)
    steps = Steps(x, spikes, clipped, held=[False] * 7)
    trace = CoupledTrace(CoupledLane(neuron, parameters, initial), steps, None, slope)
    assert trace.values.membrane == membranes.clipped
    assert trace.values.integrated == membranes.integrated
    assert trace.gradients(g, h) == vars(expected)


def test_the_chain_rule_is_that_of_sums_differences_and_products() -> None:
    a, b, unused = Variable(Fraction(3)), Variable(Fraction(5)), Variable(Fraction(1))
    c = a * b - a.detached() * a + b
    c.gradient = Fraction(2)
    differentiate([c, unused])
    assert c.value == 11
    assert (a.gradient, b.gradient, unused.gradient) == (2 * (5 - 3), 2 * (3 + 1), 0)


@pytest.mark.parametrize(
    ("options", "claim"),
    [
        ({**SYNAPSE, "detach_reset": True}, {"detached": False}),
        ({"reset": "zero", "detach_reset": True}, {"detached": False}),
        ({**RAISED, "reset": "value", "reset_to": 0.2}, {"detached": True}),
        ({**RAISED, "method": "slayer"}, {"method": "exodus"}),
        ({**COUPLED, "reset": "none", "method": "slayer"}, {"method": "exodus"}),
    ],
    ids=["detached", "detached, zero", "not detached", "slayer", "slayer, which feeds no spikes back"],
)
def test_the_gradient_of_other_equations_is_not_the_gradient(options: dict[str, Any], claim: dict[str, Any]) -> None:
    run = some_run(**options)
    right, wrong = certify(run), certify(replace(run, **claim))
    assert right.kept
    assert not wrong.membrane.broken.any()
    assert any(deviation.broken.any() for deviation in wrong.gradients.values())
    assert not wrong.kept


@pytest.mark.parametrize(
    ("options", "claim"),
    [
        ({**SYNAPSE}, {"delayed": True}),
        ({"refractory": 2}, {"refractory": 1}),
        ({"reset": "value", "reset_to": 0.2}, {"reset": "zero"}),
    ],
    ids=["delayed", "refractory", "reset"],
)
def test_the_membrane_of_other_equations_is_not_the_membrane(options: dict[str, Any], claim: dict[str, Any]) -> None:
    run = some_run(**options)
    assert certify(run).kept
    wrong = certify(replace(run, **claim))
    assert wrong.membrane.broken.any()
    assert not wrong.kept


@pytest.mark.parametrize(
    ("equation", "argument"),
    [
        ("_raised", 0),
        ("_driven", 0),
        ("_driven", 1),
        ("_adapted", 0),
        ("_adapted", 1),
        ("_adapted", 2),
        ("_retained", 2),
    ],
    ids=["c w", "x", "i", "w", "a u", "b s", "subtracted"],
)
def test_a_kernel_whose_gradient_has_a_path_too_many_is_refused(
    equation: str, argument: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against equations through whose one argument no gradient passes, which leaves the membranes as they are."""
    run = some_run(**SYNAPSE, **(RAISED | COUPLED), **STATE, decay_reset=True)
    assert certify(run).kept
    right = getattr(CoupledTrace, equation)

    def cut(trace: CoupledTrace, *arguments: Variable) -> Any:
        given = list(arguments)
        given[argument] = given[argument].detached()
        return right(trace, *given)

    monkeypatch.setattr(CoupledTrace, equation, cut)
    wrong = certify(run)
    assert not wrong.membrane.broken.any()
    assert any(deviation.broken.any() for deviation in wrong.gradients.values())


def perturbed(run: CoupledRun, name: str, element: int, by: float) -> CoupledRun:
    values = run.gradients[name].clone()
    values.view(-1)[element] += by
    return replace(run, gradients=run.gradients | {name: values})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, NEURONS_OF_SECTION_9["alif with everything"]) for name in ("input", "alpha", "threshold")),
        *((name, SYNAPSE) for name in ("synapse_alpha", "synapse_gain", "initial_current")),
        *((name, {**RAISED, **COUPLED}) for name in (*COUPLED, "adapt_threshold")),
        *((name, {**RAISED, **STATE}) for name in ("initial_adaptation", "initial_membrane", "initial_spikes")),
        ("reset_to", NEURONS_OF_SECTION_9["lif that resets to a value"]),
        ("reset_by", NEURONS_OF_SECTION_9["alif that subtracts a number"]),
        ("min_membrane", NEURONS_OF_SECTION_9["alif, adLIF"]),
    ],
)
def test_an_error_beyond_the_bound_of_any_gradient_is_reported(name: str, options: dict[str, Any]) -> None:
    run = some_run(**options)
    right = certify(run)
    assert right.kept
    bound = right.gradients[name].own_bound.flatten()
    element = int(bound.argmax())
    wrong = certify(perturbed(run, name, element, 3 * float(bound[element])))
    assert not wrong.kept
    assert [other for other, deviation in wrong.gradients.items() if deviation.broken.any()] == [name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("options", [SYNAPSE, RAISED, {"refractory": 2}], ids=["cuba_lif", "alif", "refractory"])
def test_a_gradient_that_is_off_by_a_few_units_in_the_last_place_is_reported(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    """At the last step nothing is summed: dL/dx is f' g, of a boxcar of height 1, and times the gain of a synapse."""
    given = options | {"surrogate": Boxcar(slope=0.125, scale=8.0), "grad_membrane": None}
    x, g = 0.1 + 0.1 * draw(1, 1, 5, 3, dtype=dtype), draw(2, 1, 5, 3, dtype=dtype)
    run = run_coupled(x, 0.9, g, **given)
    right = certify(run)
    assert right.kept
    values = run.gradients["input"].clone()
    for _ in range(8):
        values[4, 1] = torch.nextafter(values[4, 1], values[4, 1] * 4)
    wrong = certify(replace(run, gradients=run.gradients | {"input": values}))
    assert not wrong.kept
    assert wrong.gradients["input"].broken.nonzero().tolist() == [[4, 1]]


@pytest.mark.parametrize(("method", "operations"), [("exodus", 1), ("slayer", 1), ("bptt", 4)])
@pytest.mark.parametrize(("surrogate", "p"), [(Boxcar(0.3), 1), (FastSigmoid(2.0), 10), (Arctan(2.0), 12)])
def test_the_bound_of_cuba_lif_is_within_the_closed_form_of_the_document(
    surrogate: Any, p: int, method: str, operations: int
) -> None:
    """A step has three lines, of 1, 2 and 2 operations."""
    steps = 20
    x, g = 0.3 * draw(1, 1, steps, 4), draw(2, 1, steps, 4)
    alpha = torch.tensor([0.5, 0.7, 0.9, 0.99])
    run = run_coupled(x, alpha, g, synapse_alpha=0.8, surrogate=surrogate, method=method)
    found = certify(run).gradients["input"]
    n = (p + 5 * operations) * (steps - torch.arange(steps, dtype=torch.float64))[:, None] * found.unit
    assert (found.own_bound <= (1 + 2e-4) * n / (1 - n) * found.terms + 1e-30).all()


@pytest.mark.parametrize("fused", [False, True], ids=["product and sum", "fused"])
def test_a_line_in_float32_is_within_its_bound_and_comes_close_to_it(fused: bool) -> None:
    lines = (Lines.backward if fused else Lines.forward)(Rounding(torch.float32, loop=False))
    a, b, c = (draw(seed, 20_000) for seed in (1, 2, 3))
    off = 1e-6 * a.double().abs()
    bound = lines((Bounded(a.double().abs(), off), exactly(b.double())), (exactly(c.double()),))
    exact = (a.double() + off) * b.double() + c.double()
    computed = (a.double() * b.double() + c.double()).float() if fused else a * b + c
    shares = (computed.double() - exact).abs() / bound.error
    assert shares.max() <= 1
    assert shares.max() > 0.9


def test_a_spike_in_a_refractory_period_is_reported() -> None:
    run = some_run(refractory=2)
    held = run.held.nonzero()
    step, lane = held[0].tolist()
    spikes = run.spikes.clone()
    assert spikes[step, lane] == 0
    spikes[step, lane] = 1
    certificate = certify(replace(run, spikes=spikes))
    assert certificate.decisions.farthest == torch.inf
    assert not certificate.kept


def test_steps_are_held_after_spikes_and_after_what_is_left_of_a_period() -> None:
    x = torch.tensor([0.0, 3.0, 3.0, 3.0, 0.0, 0.0, 3.0]).reshape(1, 7, 1)
    run = run_coupled(x, 0.0, torch.ones_like(x), refractory=2, initial_refractory=1.0)
    assert run.spikes.flatten().tolist() == [0, 1, 0, 0, 0, 0, 1]
    assert run.held.flatten().tolist() == [True, False, True, True, False, False, False]


def test_a_spike_that_rounding_decides_against_a_raised_threshold_is_counted() -> None:
    """The membrane is at the raised threshold as float32 rounds both, so that the exact ones differ either way."""
    x = torch.rand((1, 1, 400), generator=torch.Generator().manual_seed(0))
    adaptation = torch.rand(400, generator=torch.Generator().manual_seed(1))
    w = 0.7 * adaptation
    options = {"adapt_alpha": 0.7, "adapt_threshold": 0.3, "initial_adaptation": adaptation}
    threshold = x.flatten() - 0.3 * w
    run = run_coupled(x, 0.9, torch.ones_like(x), threshold=threshold, surrogate=Boxcar(0.01), **options)
    certificate = certify(run)
    assert certificate.decisions.spikes > 50
    assert 0 < certificate.decisions.farthest <= 1
    assert certificate.kept


def test_long_runs_are_computed_in_balls() -> None:
    x, g = 0.3 + 0.5 * draw(1, 1, 60, 2), draw(2, 1, 60, 2)
    run = run_coupled(x, 0.9, g, surrogate=Exponential(), adapt_alpha=0.9, adapt_threshold=0.3, synapse_alpha=0.6)
    certificate = certify(run)
    assert certificate.arithmetic.startswith("balls")
    assert certificate.kept


def test_neurons_take_turns_in_random_cases() -> None:
    runs = list(islice(random_runs(10**6, seed=5), 2 * len(NEURONS) * len(METHODS)))
    turns = [(neuron, run.method) for neuron, run in runs]
    assert turns[: len(turns) // 2] == turns[len(turns) // 2 :]
    assert len(set(turns)) == len(turns) // 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapt_threshold": 0.2}, "adapt_threshold must be 0.0 without adapt_alpha, got 0.2"),
        ({"initial_current": 0.2}, "initial_current must be None without synapse_alpha, got 0.2"),
        ({"synapse_gain": each(1.0, 1.0, 1.0)}, "synapse_gain must be 1.0 without synapse_alpha, got a tensor"),
        ({"initial_refractory": 0.5}, "initial_refractory must be whole numbers of steps, got others"),
        ({"initial_refractory": each(0.0, 1.0, math.nan)}, "initial_refractory must be whole numbers of steps"),
        ({"initial_refractory": 2.0**24 + 2}, "initial_refractory must be at most 16777216, got 16777218.0"),
        ({"initial_refractory": each(0.0, 1e30, 1.0)}, "initial_refractory must be at most 16777216, got 1.0"),
        ({"initial_refractory": math.inf}, "initial_refractory must be at most 16777216, got inf"),
        ({"initial_refractory": torch.ones(5)}, "initial_refractory must be values that broadcast to the input"),
        ({"reset": "value"}, "reset_to must be a value with reset 'value', got None"),
        ({"refractory": -1}, "refractory must be an integer from 0 to 16777216, got -1"),
        ({**RAISED, "max_spikes": 2}, "max_spikes must be 1 with adapt_threshold"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        some_run(**options)


@pytest.fixture
def verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command in a folder with x.npz, of x and grad_spikes."""
    monkeypatch.chdir(tmp_path)
    arrays = {"x": 0.3 + 0.7 * draw(1, 2, 6, 3), "grad_spikes": draw(2, 2, 6, 3)}
    np.savez("x.npz", **{name: values.numpy() for name, values in arrays.items()})
    np.savez("state.npz", x=arrays["x"].numpy(), initial_refractory=np.ones((2, 3)), adapt_by=np.full(3, 0.2))
    return lambda *arguments: CliRunner().invoke(commands.app, [*arguments, "--surrogate", "fast_sigmoid"])


CUBA_LIF = ("--neuron", "cuba_lif", "--alpha", "0.9", "--synapse-alpha", "0.8")
ALIF = ("--neuron", "alif", "--alpha", "0.9", "--adapt-alpha", "0.95", "--adapt-threshold", "0.4")


@pytest.mark.parametrize(
    ("arguments", "results"),
    [
        ((*CUBA_LIF, "--synapse-gain", "0.3"), {"alpha", "synapse_alpha", "synapse_gain", "initial_current"}),
        ((*CUBA_LIF, "--synapse-delayed", "--reset", "value", "--reset-to", "0.1"), {"reset_to", "synapse_alpha"}),
        (ALIF, {"alpha", "adapt_alpha", "adapt_by", "adapt_threshold", "initial_adaptation"}),
        ((*ALIF, "--adapt-membrane", "0.1", "--adapt-current", "0.2"), {"adapt_membrane", "adapt_current"}),
        ((*ALIF, "--synapse-alpha", "0.8"), {"synapse_alpha", "adapt_alpha"}),
        (("--alpha", "0.9", "--refractory", "2", "--detach-reset"), {"alpha", "threshold"}),
        (("--alpha", "0.9", "--detach-reset"), {"alpha", "threshold"}),
        (("--neuron", "if", "--reset", "value", "--reset-to", "0.1"), {"reset_to", "threshold"}),
    ],
)
def test_the_command_certifies_the_neurons_of_section_9(
    verify: Callable[..., Result], arguments: tuple[str, ...], results: set[str]
) -> None:
    result = verify("x.npz", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["outcome"] == "kept"
    groups = {tuple(line["group"]) for line in found["lines"]}
    assert groups >= {(method, name) for method in METHODS for name in ("membrane", "input", *results)}
    assert ("exodus", "alpha") in groups or "if" in arguments


def test_the_command_reads_parameters_and_states_of_a_file(verify: Callable[..., Result]) -> None:
    result = verify("state.npz", *ALIF, "--refractory", "1")
    assert result.exit_code == 0, result.output
    assert "state.npz, alif" in result.stdout
    assert "adapt_by                  3" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            CUBA_LIF[:4],
            "--synapse-alpha must be the decay of the current in one step, such as 0.95, with",
        ),
        (ALIF[:4], "--adapt-alpha must be the decay of the adaptation in one step, such as 0.95, with --neuron alif"),
        ((*CUBA_LIF, "--adapt-by", "0.3"), "--adapt-by must be left out with --neuron cuba_lif, got 0.3"),
        (("--alpha", "0.9", "--synapse-delayed"), "--synapse-delayed must be left out with --neuron lif, got True"),
        (("--neuron", "srm", "--refractory", "2"), "--refractory must be left out with --neuron srm, got 2"),
        (("--alpha", "0.9", "--reset-to", "0.1"), "reset_to must be None unless reset is 'value', got a value"),
        ((*ALIF, "--synapse-gain", "2"), "synapse_gain must be 1.0 without synapse_alpha, got 2.0"),
        ((*CUBA_LIF, "--synapse-alpha", "2"), "synapse_alpha must be in [0, 1], got 2.0"),
    ],
)
def test_the_command_refuses_what_does_not_fit(
    verify: Callable[..., Result], arguments: tuple[str, ...], message: str
) -> None:
    result = verify("x.npz", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            np.ones(5),
            "initial_refractory must be values that broadcast to the input without its time dimension, (2, 3)",
        ),
        (np.array(1e300), "initial_refractory must be at most 16777216, got 1e+300"),
        (np.array(-1.0), "initial_refractory must be whole numbers of steps, got others"),
        (np.array(np.nan), "initial_refractory must be whole numbers of steps, got others"),
    ],
)
@pytest.mark.parametrize("neuron", [CUBA_LIF, ("--alpha", "0.9", "--refractory", "2")])
def test_the_command_refuses_a_refractory_state_that_does_not_fit(
    verify: Callable[..., Result], neuron: tuple[str, ...], steps: np.ndarray, message: str
) -> None:
    np.savez("waiting.npz", x=np.ones((2, 6, 3), dtype=np.float32), initial_refractory=steps)
    result = verify("waiting.npz", *neuron)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_the_command_refuses_arrays_of_another_neuron(verify: Callable[..., Result]) -> None:
    result = verify("state.npz", *CUBA_LIF)
    assert result.exit_code == 2
    assert "got adapt_by" in result.stderr
