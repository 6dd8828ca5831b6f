"""Second-order and adaptive LIF, refractory periods, resets to a value and detached ones: kernels equal the loop."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import exodus_core
from assertions import DTYPES, ODD_SHAPES, SURROGATES, assert_agrees, leaves, name_of
from exodus_core import coupled, nn, ops, reference
from exodus_core.surrogate import Exponential, Surrogate

RESETS = [("subtract", False), ("subtract", True), ("zero", False), ("value", False), ("none", False)]
#: Which variables a neuron has, by name.
VARIABLES = {
    "no variable": (),
    "synapse": ("synapse",),
    "late synapse": ("synapse", "delayed"),
    "adaptation": ("adaptation",),
    "late synapse, adaptation": ("synapse", "delayed", "adaptation"),
}
_STATES = len(ops.COUPLED_STATES)


def uniform(low: float, high: float, shape: tuple[int, ...]) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=torch.float64)


def neuron_arguments(
    shape: tuple[int, ...], time_dim: int, variables: tuple[str, ...], reset: str, *, tied: bool = True
) -> dict[str, Any]:
    """Every parameter of a neuron as a float64 tensor that differs between neurons, and a state for every lane."""
    inner, lanes = shape[time_dim + 1 :], (*shape[:time_dim], *shape[time_dim + 1 :])
    found: dict[str, Any] = {
        "x": torch.randn(shape, dtype=torch.float64),
        "alpha": uniform(0.5, 1, inner),
        "threshold": uniform(0.5, 1.5, inner),
        "min_membrane": uniform(-1.5, -0.5, inner),
        "initial_membrane": uniform(-1, 1, lanes),
        "initial_spikes": torch.randint(0, 2, lanes).double(),
    }
    if reset == "value":
        found["reset_to"] = uniform(-0.3, 0.3, inner)
    elif not tied and reset == "subtract":
        found["reset_by"] = uniform(0.5, 1.5, inner)
    if "synapse" in variables:
        found |= {"synapse_alpha": uniform(0.3, 0.95, inner), "synapse_gain": uniform(0.3, 1, inner)}
        found["initial_current"] = uniform(-1, 1, lanes)
    if "adaptation" in variables:
        found |= {"adapt_alpha": uniform(0.3, 0.95, inner), "adapt_by": uniform(0, 1, inner)}
        found |= {"adapt_membrane": uniform(-0.1, 0.1, inner), "adapt_threshold": uniform(-0.1, 0.5, inner)}
        found |= {"adapt_current": uniform(-0.1, 0.2, inner), "initial_adaptation": uniform(-1, 1, lanes)}
    return found


def outputs_and_gradients(
    function: Any, given: dict[str, Any], options: dict[str, Any]
) -> tuple[Any, dict[str, Tensor]]:
    """Spikes, membrane and last state, and the gradients of a random function of all of them."""
    outputs = function(**given, **options)
    torch.manual_seed(7)
    parts = [outputs[0], outputs[1], outputs[2][: _STATES - 1]]
    weights = [torch.randn(part.shape, dtype=torch.float64).to(part.dtype) for part in parts]
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor) and value.requires_grad}
    found = torch.autograd.grad(parts, list(tensors.values()), weights, allow_unused=True, materialize_grads=True)
    return outputs, dict(zip(tensors, found, strict=True))


def compare(
    shape: tuple[int, ...],
    time_dim: int,
    variables: tuple[str, ...],
    reset: tuple[str, bool],
    *,
    dtype: torch.dtype = torch.float64,
    tied: bool = True,
    surrogate: Surrogate = Exponential(),  # noqa: B008
    **more: Any,
) -> None:
    """Runs the kernel and the loop on equal arguments and compares outputs, the last state and every gradient."""
    torch.manual_seed(0)
    given = neuron_arguments(shape, time_dim, variables, reset[0], tied=tied)
    given = {name: value.to(dtype) for name, value in given.items()}
    options = {"reset": reset[0], "decay_reset": reset[1], "time_dim": time_dim, "surrogate": surrogate, **more}
    if "delayed" in variables:
        options["synapse_delayed"] = True
    ours, found = outputs_and_gradients(coupled.neurons, leaves(given), options)
    looped, expected = outputs_and_gradients(reference.coupled_lif, leaves(given), options)
    for name, actual, exact in zip(("spikes", "membrane", "last state"), ours, looped, strict=True):
        assert torch.equal(actual, exact), name
    for name, gradient in found.items() if dtype == torch.float64 else ():
        assert_agrees(name, gradient, expected[name])


@pytest.mark.parametrize("variables", VARIABLES.values(), ids=VARIABLES)
@pytest.mark.parametrize("reset", RESETS, ids=name_of)
@pytest.mark.parametrize("method", ["exodus", "slayer"])
@pytest.mark.parametrize("refractory", [0, 2])
def test_kernel_equals_loop_for_every_neuron_and_reset(
    variables: tuple[str, ...], reset: tuple[str, bool], method: str, refractory: int
) -> None:
    for detach_reset, tied in itertools.product((False, True), (False, True)):
        more = {"method": method, "refractory": refractory, "detach_reset": detach_reset, "tied": tied}
        compare((2, 33, 19), 1, variables, reset, **more)


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("variables", VARIABLES.values(), ids=VARIABLES)
def test_kernel_equals_loop_for_every_shape_and_dtype(
    shape: tuple[int, ...], dtype: torch.dtype, variables: tuple[str, ...]
) -> None:
    compare(shape, 1, variables, ("subtract", True), dtype=dtype, refractory=1)
    compare(shape, 1, variables, ("zero", False), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=name_of)
@pytest.mark.parametrize("variables", VARIABLES.values(), ids=VARIABLES)
@pytest.mark.parametrize("method", [0, 1, 2])
def test_gradients_of_stored_traces_are_those_of_float64_to_rounding(
    dtype: torch.dtype, variables: tuple[str, ...], method: int
) -> None:
    torch.manual_seed(0)
    compute, shape = ops.compute_dtype(dtype), (2, 65, 17)
    given = neuron_arguments(shape, 1, variables, "subtract")
    options: Any = {**coupled.DEFAULTS, **given, "refractory": 1, "synapse_delayed": "delayed" in variables}
    x, alpha = options.pop("x").to(dtype), options.pop("alpha")
    settings, parameters, initial = coupled.coupled_arguments(x, alpha, options)
    bound = ops.COUPLED_PARAMETERS.index("min_membrane")
    parameters[bound] = parameters[bound].to(dtype)  # as the kernels round it, and what is stored
    tensors = [None if tensor is None else tensor.to(compute) for tensor in (parameters, initial)]
    call = (*tensors, 1.0)
    _, membrane, *traces, last = ops.coupled_forward(x, settings.numbers, *call, 1, 1, settings.couplings, 7, 1)
    grads = [torch.randn_like(membrane), torch.randn_like(membrane), torch.randn_like(last)]

    def gradients(to: Any) -> tuple[Tensor, Tensor]:
        given = [to(part) for part in (membrane, *traces, *grads)]
        kind = (settings.numbers, *(None if tensor is None else to(tensor) for tensor in tensors), 1.0, 1, 1)
        return ops.coupled_backward(*given, *kind, settings.couplings, 0, 0, 1.0, 1.0, method, True, 1)

    for actual, exact in zip(gradients(lambda part: part), gradients(lambda part: part.double()), strict=True):
        rows = zip(actual.flatten(2), exact.flatten(2), strict=True) if actual.dim() == 3 else [(actual, exact)]
        for ours, expected in rows:
            largest = expected.abs().max().clamp(min=1e-12)
            assert (ours.double() - expected).abs().max() <= (torch.finfo(ours.dtype).eps + 2e-6) * largest


@pytest.mark.parametrize("surrogate", SURROGATES, ids=name_of)
def test_kernel_equals_loop_for_every_surrogate(surrogate: Surrogate) -> None:
    compare((2, 33, 19), 1, VARIABLES["late synapse, adaptation"], ("subtract", False), surrogate=surrogate)


@pytest.mark.parametrize(("shape", "time_dim"), [((7, 3, 5), 0), ((3, 5, 70), 2), ((2, 3, 66, 4, 5), 2), ((65,), 0)])
@pytest.mark.parametrize("variables", VARIABLES.values(), ids=VARIABLES)
def test_time_may_be_any_axis(shape: tuple[int, ...], time_dim: int, variables: tuple[str, ...]) -> None:
    compare(shape, time_dim, variables, ("subtract", False), refractory=2)


@pytest.mark.parametrize("shape", [(2, 3, 2100), (300, 3, 7)], ids=name_of)
def test_kernel_equals_loop_where_neurons_fill_several_tiles(shape: tuple[int, ...]) -> None:
    compare(shape, 1, VARIABLES["late synapse, adaptation"], ("subtract", True))


@pytest.mark.parametrize("reset", [r for r in RESETS if r[0] not in ("zero", "value")], ids=name_of)
@pytest.mark.parametrize("max_spikes", [2, 3])
def test_kernel_equals_loop_with_several_spikes_a_step(reset: tuple[str, bool], max_spikes: int) -> None:
    compare((2, 33, 19), 1, VARIABLES["synapse"], reset, max_spikes=max_spikes, refractory=1)


SYNAPSES: dict[str, dict[str, Any]] = {
    "no synapse": {},
    "synapse": {"synapse_alpha": 0.8, "synapse_gain": 0.7},
    "late synapse": {"synapse_alpha": 0.8, "synapse_gain": 0.7, "synapse_delayed": True},
}
COUPLED_BY: dict[str, dict[str, Any]] = {
    "no adaptation": {},
    **{
        " ".join(names) or "adaptation": {"adapt_alpha": 0.9, "adapt_by": 0.6, **dict.fromkeys(names, 0.3)}
        for count in range(4)
        for names in itertools.combinations(("adapt_membrane", "adapt_current", "adapt_threshold"), count)
    },
}


@pytest.mark.parametrize("synapse", SYNAPSES.values(), ids=SYNAPSES)
@pytest.mark.parametrize("coupled_by", COUPLED_BY.values(), ids=COUPLED_BY)
def test_every_coupling_alone_is_that_of_the_loop_and_of_the_kernel_for_all(
    synapse: dict[str, Any], coupled_by: dict[str, Any]
) -> None:
    # Of float32 the usual neurons have kernels of their own. With an initial state they take the one for all.
    torch.manual_seed(0)
    x = torch.randn(2, 12, 19)
    for reset, decay_reset, reset_by in [(*r, None) for r in RESETS] + [("subtract", False, 0.8)]:
        options = {"reset": reset, "decay_reset": decay_reset, "reset_by": reset_by, **synapse, **coupled_by}
        options["reset_to"] = 0.2 if reset == "value" else None
        of_all = {**options, "initial_membrane": 0.0, "initial_refractory": torch.zeros(2, 19)}
        looped = reference.coupled_lif(x, 0.9, **options)
        for alpha in (0.9, torch.tensor(0.9)):  # without and with sums over time
            ours, found = outputs_and_gradients(coupled.neurons, leaves({"x": x, "alpha": alpha}), options)
            others, expected = outputs_and_gradients(coupled.neurons, leaves({"x": x, "alpha": alpha}), of_all)
            for name, own, other, exact in zip(("spikes", "membrane", "last"), ours, others, looped, strict=True):
                assert torch.equal(own, other), name
                assert torch.equal(own, exact), name
            for name, gradient in found.items():
                assert torch.equal(gradient, expected[name]), name


def test_a_threshold_of_zero_or_less_is_compared_with_the_membrane() -> None:
    x = torch.tensor([[[-0.5], [0.5], [-2.0]]], dtype=torch.float64)
    spikes, _ = exodus_core.alif(x, 0.0, 1.0, adapt_by=0.0, adapt_threshold=1.0, initial_adaptation=-2.0, reset="none")
    assert spikes.flatten().tolist() == [1, 1, 0]
    spikes, _ = exodus_core.cuba_lif(x, 0.0, 0.0, threshold=0.0, reset="none")
    assert spikes.flatten().tolist() == [0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_a_spike_is_decided_on_the_membrane_and_the_threshold_that_are_stored(dtype: torch.dtype) -> None:
    little = torch.finfo(dtype).eps / 8  # 1 - little and 1 + little are 1 when they are rounded
    x = torch.tensor([[[0.5]]], dtype=dtype)
    spikes, membrane, last = coupled.neurons(x, 1.0, initial_membrane=0.5 - little)
    assert (spikes.item(), membrane.item(), last[0].item()) == (1, 1, 1 - little)
    raised = {"adapt_alpha": 1.0, "adapt_by": 0.0, "adapt_threshold": 1.0, "initial_adaptation": 1 + little}
    spikes, _, last = coupled.neurons(x, 1.0, threshold=0.0, initial_membrane=0.5, **raised)
    assert (spikes.item(), last[3].item()) == (1, 1 + little)


@pytest.mark.parametrize("name", ["membrane", "current", "adaptation"])
def test_a_state_that_fades_ends_at_zero_and_not_at_a_subnormal_number(name: str) -> None:
    x = torch.zeros(1, 60, 1, dtype=torch.float64)
    options = {"synapse_alpha": 0.75, "adapt_alpha": 0.75, f"initial_{name}": 1e-305}
    last = coupled.neurons(x, 0.75, **options)[2]
    assert not last.any()
    short = coupled.neurons(x[:, :9], 0.75, **options)[2]
    assert short[ops.COUPLED_STATES.index(name)] == pytest.approx(1e-305 * 0.75**9, rel=1e-9)


@pytest.mark.skipif(not ops.HAS_BITS, reason="CUDA kernels are given the traces")
@pytest.mark.parametrize("shape", [*ODD_SHAPES, (2, 300, 70), (1, 2500, 20)], ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_traces_computed_from_the_membrane_give_the_gradients_of_those_that_were_kept(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    compute = ops.compute_dtype(dtype)
    for time_dim, refractory in itertools.product({1, len(shape) - 1}, (0, 3)):
        given = neuron_arguments(shape, time_dim, ("adaptation",), "subtract")
        if compute != dtype:
            given["adapt_membrane"] = 0.0  # rounded membranes are not what the adaptation has seen
        options: Any = {**coupled.DEFAULTS, **given, "refractory": refractory, "time_dim": time_dim}
        options["initial_refractory"] = torch.randint(0, 3, given["initial_spikes"].shape).double()
        x, alpha = options.pop("x").to(dtype), options.pop("alpha")
        settings, parameters, initial = coupled.coupled_arguments(x.requires_grad_(), alpha, options)
        assert settings.followed == ops.KEPT_ADAPTATION | ops.KEPT_REFRACTORY
        assert settings.kept == 0
        tensors = [tensor.to(compute) for tensor in (parameters, initial)]
        call = (settings.numbers, *tensors, 1.0, refractory, settings.reset, settings.couplings)
        _, membrane, _, *traces, last = ops.coupled_forward(x.detach(), *call, settings.followed, time_dim)
        grads = [torch.randn_like(membrane), torch.randn_like(membrane), torch.randn_like(last)]
        rest = (settings.surrogate, settings.slope, settings.scale, settings.method, True, time_dim)
        kept = ops.coupled_backward(membrane, None, *traces, *grads, *call, 0, *rest)
        computed = ops.coupled_backward(membrane, None, None, None, *grads, *call, settings.followed, *rest)
        for actual, expected in zip(computed, kept, strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_an_adaptation_that_senses_a_rounded_membrane_is_kept(dtype: torch.dtype) -> None:
    x = torch.randn(2, 9, 5, dtype=dtype, requires_grad=True)
    options: Any = {**coupled.DEFAULTS, "adapt_alpha": 0.9, "adapt_membrane": 0.1, "adapt_threshold": 0.2}
    settings, *_ = coupled.coupled_arguments(x, 0.9, options)
    assert (settings.kept, settings.followed) == (ops.KEPT_ADAPTATION, 0)
    refusal = "traces of a rounded membrane must be given" if ops.HAS_BITS else "traces must be given to"
    call = (settings.numbers, None, None, 1.0, 0, settings.reset, settings.couplings, ops.KEPT_ADAPTATION)
    with pytest.raises(RuntimeError, match=refusal):
        ops.coupled_backward(x.detach(), None, None, None, None, None, None, *call, 0, 1.0, 1.0, 0, False, 1)


def test_a_step_is_held_or_not_and_no_gradient_flows_into_how_long() -> None:
    x, left = torch.ones(1, 9, 3), torch.tensor([[0.0, 1.0, 4.0]], requires_grad=True)
    spikes, membrane, last = coupled.neurons(x, 0.5, refractory=2, initial_refractory=left)
    (gradient,) = torch.autograd.grad(spikes.sum() + membrane.sum() + last[:4].sum(), left)
    assert torch.equal(gradient, torch.zeros(1, 3))
    numbers = (0.5, 1.0, 1.0, -1.0, *[0.0] * 7)
    held = ops.coupled_forward(x, numbers, None, None, 1.0, 2, 1, 0, 7, 1)[4]
    assert held[0, :, 0].tolist() == [0, 1, 1, 0, 1, 1, 0, 1, 1]


def test_a_neuron_without_a_reset_has_no_gradient_by_what_it_subtracts() -> None:
    membrane = torch.full((1, 5, 2), 2.0)
    numbers = (0.5, 1.0, 1.0, -9.0, *[0.0] * 7)
    lanes = ops.coupled_backward(
        membrane,
        None,
        None,
        None,
        membrane,
        membrane,
        None,
        numbers,
        None,
        None,
        1.0,
        0,
        0,
        0,
        0,
        0,
        1.0,
        1.0,
        0,
        True,
        1,
    )[1]
    assert not lanes[_STATES + ops.COUPLED_PARAMETERS.index("reset_by")].any()
    assert lanes[_STATES].all()  # by alpha


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=name_of)
def test_empty_tensors_give_empty_results_and_hand_the_state_on(shape: tuple[int, ...]) -> None:
    given = neuron_arguments(shape, 1, VARIABLES["late synapse, adaptation"], "subtract")
    spikes, membrane, last = coupled.neurons(**leaves(given))
    assert spikes.shape == membrane.shape == shape
    if shape[1] == 0:
        assert torch.equal(last[0], given["initial_membrane"].flatten())
        assert torch.equal(last[2], given["initial_current"].flatten())


def test_the_equations_hold_for_a_neuron_computed_by_hand() -> None:
    x = torch.tensor([[[1.0], [0.0], [2.0], [0.0]]], dtype=torch.float64)
    spikes, membrane = exodus_core.cuba_lif(x, 0.5, 0.5, synapse_gain=0.8, threshold=1.5)
    assert membrane.flatten().tolist() == pytest.approx([0.8, 0.8, 2.2, 0.5 * 2.2 - 1.5 + 0.8 * 1.125])
    assert spikes.flatten().tolist() == [0, 0, 1, 0]
    late = exodus_core.cuba_lif(x, 0.5, 0.5, synapse_gain=0.8, synapse_delayed=True, threshold=1.5)[1]
    assert late.flatten().tolist() == pytest.approx([0.0, 0.8, 0.8, 0.4 + 0.8 * 2.25])

    x = torch.full((1, 4, 1), 1.0, dtype=torch.float64)
    spikes, membrane = exodus_core.alif(x, 0.5, 0.5, adapt_threshold=0.5)
    # w = 0, 1, 0.5, 1.25: the threshold rises to 1.5 with the first spike, which subtracts 1.
    assert spikes.flatten().tolist() == [1, 0, 1, 0]
    assert membrane.flatten().tolist() == [1.0, 0.5, 1.25, 0.5 * 1.25 + 1 - 1.25]
    inhibited = exodus_core.alif(x, 0.5, 0.5, adapt_membrane=0.25, adapt_current=1.0, threshold=9.0)[1]
    expected = [1.0, 1.25, 1.1875, 0.5 * 1.1875 + 1 - (0.5 * 0.4375 + 0.25 * 1.1875)]
    assert inhibited.flatten().tolist() == pytest.approx(expected)


def test_a_refractory_neuron_keeps_the_membrane_after_its_reset_and_does_not_fire() -> None:
    x = torch.full((1, 7, 1), 1.25, dtype=torch.float64)
    spikes, membrane = exodus_core.lif(x, 0.5, refractory=2)
    assert spikes.flatten().tolist() == [1, 0, 0, 1, 0, 0, 1]
    assert membrane.flatten().tolist() == [1.25, 0.25, 0.25, 1.375, 0.375, 0.375, 0.5 * 0.375 + 1.25]
    waiting = exodus_core.cuba_lif(x, 0.5, 0.0, refractory=2, initial_refractory=1.0)[0]
    assert waiting.flatten().tolist() == [0, 1, 0, 0, 1, 0, 0]


def test_reset_to_a_value_of_zero_is_reset_to_zero() -> None:
    x = torch.randn(2, 50, 7, dtype=torch.float64)
    found = [
        torch.autograd.grad(sum(part.sum() for part in exodus_core.lif(leaf, 0.9, **options)), leaf)[0]
        for options in ({"reset": "value", "reset_to": 0.0}, {"reset": "zero"})
        for leaf in [x.clone().requires_grad_()]
    ]
    torch.testing.assert_close(*found, rtol=1e-13, atol=1e-13)


def test_a_detached_reset_that_subtracts_is_what_slayer_computes() -> None:
    x = torch.randn(2, 50, 7, dtype=torch.float64, requires_grad=True)
    detached, slayer = (
        torch.autograd.grad(exodus_core.lif(x, 0.9, **options)[0].sum(), x)[0]
        for options in ({"detach_reset": True}, {"method": "slayer"})
    )
    assert torch.equal(detached, slayer)


def test_a_second_order_neuron_is_a_leaky_integrator_and_a_lif_neuron() -> None:
    x = torch.randn(3, 60, 20, dtype=torch.float64, requires_grad=True)
    two = exodus_core.lif(nn.ExpLeak(0.7)(x), 0.9)[0]
    one = exodus_core.cuba_lif(x, 0.9, 0.7)[0]
    assert torch.equal(one, two)
    weights = torch.randn_like(one)
    torch.testing.assert_close(
        *(torch.autograd.grad(spikes, x, weights)[0] for spikes in (one, two)), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("synapse_alpha must be in [0, 1], got 1.5", lambda x: exodus_core.cuba_lif(x, 0.9, 1.5)),
        ("adapt_alpha must be in [0, 1], got -0.5", lambda x: exodus_core.alif(x, 0.9, -0.5)),
        ("reset_to must be a value with reset 'value', got None", lambda x: exodus_core.lif(x, 0.9, reset="value")),
        ("reset_to must be None unless reset is 'value'", lambda x: exodus_core.lif(x, 0.9, reset_to=0.1)),
        ("refractory must be an integer from 0 to 16777216, got -1", lambda x: exodus_core.lif(x, 0.9, refractory=-1)),
        ("refractory must be an int, got float", lambda x: exodus_core.lif(x, 0.9, refractory=1.5)),
        ("max_spikes must be 1 with reset 'value'", lambda x: nn.LIF(0.9, reset="value", reset_to=0.0, max_spikes=2)),
        ("adapt_by must be a number, got nan", lambda x: exodus_core.alif(x, 0.9, 0.5, adapt_by=float("nan"))),
        ("values that broadcast to the inner dimensions", lambda x: exodus_core.alif(x, 0.9, torch.ones(4))),
    ],
)
def test_errors_name_the_argument(message: str, call: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        call(torch.zeros(2, 5, 3))
    assert message in str(raised.value)


LAYERS = {
    "cuba_lif": lambda **o: nn.CubaLIF(0.9, 0.7, trainable=("alpha", "synapse_alpha"), refractory=2, **o),
    "alif": lambda **o: nn.ALIF(0.9, 0.8, adapt_threshold=0.3, adapt_current=0.1, synapse_alpha=0.5, **o),
    "reset to a value": lambda **o: nn.LIF(0.9, reset="value", reset_to=-0.2, trainable="reset_to", **o),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_sequence_in_pieces_is_the_whole(make: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 40, 20, dtype=torch.float64)
    weights = torch.randn_like(x)
    whole, stateful = make().double(), make(stateful=True).double()
    runs = {
        "whole": (whole, whole),
        "stateful": (stateful, lambda leaf: torch.cat([stateful(piece) for piece in leaf.split(7, 1)], 1)),
        "time checkpoint": (whole, nn.TimeCheckpoint(whole, steps=9)),
    }
    found = {}
    for name, (layer, run) in runs.items():
        leaf = x.clone().requires_grad_()
        spikes = run(leaf)
        found[name] = spikes, *torch.autograd.grad(spikes, [leaf, *layer.parameters()], weights)
    for name in ("stateful", "time checkpoint"):
        assert torch.equal(found[name][0], found["whole"][0]), name
        for ours, expected in zip(found[name][1:], found["whole"][1:], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_trained_decays_stay_between_0_and_1() -> None:
    layer = nn.ALIF(0.9, 0.99, synapse_alpha=0.01, trainable=("alpha", "adapt_alpha", "synapse_alpha"))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, -1.0 if parameter > 0.5 else 1.0)
    optimizer.step()
    assert [parameter.item() for parameter in layer.parameters()] == [1.0, 1.0, 0.0]


def test_opcheck_of_the_operators() -> None:
    for dtype, time_dim in itertools.product((torch.float64, torch.float16), (1, 2)):
        x = torch.randn(2, 9, 17, dtype=dtype)
        lanes = 2 * (17 if time_dim == 1 else 9)
        compute = ops.compute_dtype(dtype)
        numbers = (0.9, 1.0, 1.0, -1.0, 0.5, 1.0, 0.5, 0.0, 1.0, 0.0, 0.2)
        parameters = torch.tensor(numbers, dtype=compute)[:, None]
        initial = torch.rand(_STATES, lanes, dtype=compute)
        couplings = ops.COUPLING_SYNAPSE | ops.COUPLING_ADAPTATION | ops.COUPLING_RAISES
        settings = (numbers, parameters, initial, 1.0)
        forward = (x, *settings, 2, 1, couplings, 7, time_dim)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.exodus.coupled_forward.default, forward, test_utils=tests)
        spikes, membrane, current, adaptation, held, last = ops.coupled_forward(*forward)
        backward = (membrane, current, adaptation, held, spikes, None, last, *settings)
        torch.library.opcheck(
            torch.ops.exodus.coupled_backward.default,
            (*backward, 2, 1, couplings, 0, 0, 1.0, 1.0, 0, True, time_dim),
            test_utils=tests,
        )


def test_gradients_are_those_of_finite_differences_where_the_membrane_is_the_output() -> None:
    given = leaves(neuron_arguments((2, 6, 3), 1, VARIABLES["late synapse, adaptation"], "none"))
    options = {"threshold": 1e9, "reset": "none", "synapse_delayed": True}
    names = [name for name in given if name not in ("threshold", "adapt_threshold", "adapt_by", "min_membrane")]

    def membrane(*tensors: Tensor) -> Tensor:
        return coupled.neurons(**dict(zip(names, tensors, strict=True)), **options)[1]

    assert torch.autograd.gradcheck(membrane, tuple(given[name] for name in names))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_network_of_all_kinds_compiles_with_dynamic_shapes() -> None:
    torch._dynamo.reset()
    network = torch.nn.Sequential(nn.CubaLIF(0.9, 0.7), torch.nn.Linear(4, 4), nn.ALIF(0.9, 0.8, adapt_threshold=0.2))
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in [(2, 9, 4), (3, 11, 4)]:
        tensors = [torch.linspace(-1, 2, 4 * shape[0] * shape[1]).view(shape).requires_grad_() for _ in range(2)]
        for function, leaf in zip((network, compiled), tensors, strict=True):
            function(leaf).sum().backward()
        torch.testing.assert_close(*[leaf.grad for leaf in tensors])
