"""cuba_lif_gradient, alif_gradient and the options of lif_gradient: gradients from a trace equal those of autograd."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import exodus_core
from assertions import DTYPES, ODD_SHAPES, assert_agrees, leaves, name_of
from exodus_core import coupled, ops, reference
from exodus_core.surrogate import Arctan
from exodus_core.verify import run_coupled

SHAPE = (2, 33, 19)
RESETS = [("subtract", False), ("subtract", True), ("zero", False), ("value", False), ("none", False)]
#: A neuron, whether the membrane sees the current late, and the function of its gradients.
NEURONS = ("lif", "cuba_lif", "cuba_lif, late", "alif", "alif with a late synapse")
FUNCTIONS: dict[str, tuple[Any, Any]] = {
    "lif": (exodus_core.lif, exodus_core.lif_gradient),
    "cuba_lif": (exodus_core.cuba_lif, exodus_core.cuba_lif_gradient),
    "alif": (exodus_core.alif, exodus_core.alif_gradient),
}


def uniform(low: float, high: float, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (low + (high - low) * torch.rand(shape, dtype=torch.float64)).to(dtype)


def neuron_arguments(
    neuron: str, shape: tuple[int, ...], reset: str, *, dtype: torch.dtype = torch.float64, time_dim: int = 1
) -> dict[str, Any]:
    """Every parameter as a tensor that differs between neurons, and a state for every lane."""
    inner, lanes = shape[time_dim + 1 :], (*shape[:time_dim], *shape[time_dim + 1 :])
    found: dict[str, Any] = {
        "alpha": uniform(0.5, 1, inner, dtype),
        "threshold": uniform(0.5, 1.5, inner, dtype),
        "min_membrane": uniform(-1.5, -0.5, inner, dtype),
        "initial_membrane": uniform(-1, 1, lanes, dtype),
        "initial_spikes": torch.randint(0, 2, lanes).to(dtype),
    }
    if reset == "value":
        found["reset_to"] = uniform(-0.3, 0.3, inner, dtype)
    if neuron != "lif":
        found["initial_refractory"] = torch.randint(0, 3, lanes).to(dtype)
    if "cuba" in neuron or "synapse" in neuron:
        found |= {"synapse_alpha": uniform(0.3, 0.95, inner, dtype), "synapse_gain": uniform(0.3, 1, inner, dtype)}
        found |= {"initial_current": uniform(-1, 1, lanes, dtype), "synapse_delayed": "late" in neuron}
    if "alif" in neuron:
        found |= {"adapt_alpha": uniform(0.3, 0.95, inner, dtype), "adapt_by": uniform(0, 1, inner, dtype)}
        found |= {
            "adapt_threshold": uniform(-0.1, 0.5, inner, dtype),
            "adapt_current": uniform(-0.1, 0.2, inner, dtype),
        }
        found["initial_adaptation"] = uniform(-1, 1, lanes, dtype)
        if dtype in (torch.float32, torch.float64):
            found["adapt_membrane"] = uniform(-0.1, 0.1, inner, dtype)
    return found


def functions(neuron: str) -> tuple[Any, Any]:
    return FUNCTIONS[neuron.split(",")[0].split()[0]]


def random_like(*tensors: Tensor) -> list[Tensor]:
    return [torch.randn(tensor.shape, dtype=torch.float64).to(tensor.dtype) for tensor in tensors]


def current_of(x: Tensor, given: dict[str, Any], time_dim: int = 1) -> dict[str, Tensor]:
    """The trace of the current as an argument, of neurons that have one."""
    if "synapse_alpha" not in given:
        return {}
    decay, start = given["synapse_alpha"], given.get("initial_current")
    return {"current": exodus_core.current_trace(x, decay, initial_current=start, time_dim=time_dim)}


def assert_equals_backward(
    neuron: str, shape: tuple[int, ...], reset: tuple[str, bool], dtype: torch.dtype, time_dim: int = 1, **more: Any
) -> None:
    """Compares with autograd of the neuron's function: the same bits."""
    function, gradient = functions(neuron)
    options = {"reset": reset[0], "decay_reset": reset[1], "surrogate": Arctan(), "time_dim": time_dim, **more}
    arguments = neuron_arguments(neuron, shape, reset[0], dtype=dtype, time_dim=time_dim)
    given = leaves(arguments)
    x = torch.randn(shape).to(dtype).requires_grad_()
    spikes, membrane = function(x, **given, **options)
    g, h = random_like(spikes, membrane)
    torch.autograd.backward([spikes, membrane], [g, h])
    current = current_of(x.detach(), arguments, time_dim)
    found = gradient(membrane.detach(), g, **arguments, **options, **current, grad_membrane=h)
    assert torch.equal(found.input, x.grad)
    for name in found._fields[1:]:
        value = getattr(found, name)
        if name not in arguments:
            assert value is None, name
        elif given[name].grad is None:  # nothing depends on it: a value that a spike subtracts, without such a reset
            assert not value.any(), name
        else:
            assert torch.equal(value, given[name].grad), name


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("reset", RESETS, ids=name_of)
@pytest.mark.parametrize("method", ["exodus", "slayer"])
def test_gradient_from_a_trace_equals_backward_for_every_neuron_and_reset(
    neuron: str, reset: tuple[str, bool], method: str
) -> None:
    torch.manual_seed(0)
    for refractory, detach_reset in itertools.product((0, 2), (False, True)):
        if neuron == "lif" and not refractory and reset[0] != "value":
            continue  # plain LIF, whose kernels sum the gradient of the threshold in another order
        more = {"refractory": refractory, "detach_reset": detach_reset, "method": method}
        assert_equals_backward(neuron, SHAPE, reset, torch.float64, **more)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=name_of)
@pytest.mark.parametrize("neuron", NEURONS)
def test_gradient_from_a_trace_equals_backward_for_every_shape_and_dtype(
    dtype: torch.dtype, shape: tuple[int, ...], neuron: str
) -> None:
    torch.manual_seed(0)
    assert_equals_backward(neuron, shape, ("subtract", True), dtype, refractory=1)


@pytest.mark.parametrize(("shape", "time_dim"), [((7, 3, 5), 0), ((3, 5, 70), 2), ((2, 3, 66, 4, 5), 2), ((65,), 0)])
@pytest.mark.parametrize("neuron", NEURONS)
def test_time_may_be_any_axis(shape: tuple[int, ...], time_dim: int, neuron: str) -> None:
    torch.manual_seed(0)
    assert_equals_backward(neuron, shape, ("subtract", False), torch.float32, time_dim, refractory=2)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("reset", RESETS, ids=name_of)
@pytest.mark.parametrize("refractory", [0, 2])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_exodus_equals_bptt_on_any_trace(
    neuron: str, reset: tuple[str, bool], refractory: int, detach_reset: bool
) -> None:
    torch.manual_seed(0)
    arguments = neuron_arguments(neuron, SHAPE, reset[0])
    options = {"reset": reset[0], "decay_reset": reset[1], "refractory": refractory, "detach_reset": detach_reset}
    membrane, current, g, h = torch.randn(4, *SHAPE, dtype=torch.float64)  # not only traces that a neuron can have
    more: dict[str, Any] = {"current": current} if "synapse_alpha" in arguments else {}
    if reset[0] == "subtract":
        arguments["reset_by"] = uniform(0.5, 1.5, SHAPE[2:], torch.float64)
    found, expected = (
        functions(neuron)[1](membrane, g, **arguments, **options, **more, grad_membrane=h, method=method)
        for method in ("exodus", "bptt")
    )
    for name in found._fields:
        value, looped = getattr(found, name), getattr(expected, name)
        assert (value is None) == (looped is None) == (name != "input" and name not in arguments), name
        if value is not None:
            assert_agrees(name, value, looped)


@pytest.mark.parametrize("max_spikes", [2, 3])
@pytest.mark.parametrize("decay_reset", [False, True])
def test_exodus_equals_bptt_with_several_spikes_a_step(max_spikes: int, decay_reset: bool) -> None:
    torch.manual_seed(0)
    arguments = neuron_arguments("cuba_lif", SHAPE, "subtract")
    options = {"max_spikes": max_spikes, "decay_reset": decay_reset, "refractory": 1}
    membrane, current, g = 2 * torch.randn(3, *SHAPE, dtype=torch.float64)
    found, expected = (
        exodus_core.cuba_lif_gradient(membrane, g, **arguments, **options, current=current, method=method)
        for method in ("exodus", "bptt")
    )
    for name in found._fields:
        if getattr(found, name) is not None:
            assert_agrees(name, getattr(found, name), getattr(expected, name))


def test_bptt_of_a_trace_is_autograd_through_the_loop_that_made_it() -> None:
    torch.manual_seed(0)
    arguments = neuron_arguments("alif with a late synapse", SHAPE, "subtract")
    given = leaves(arguments)
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    spikes, membrane, _ = reference.coupled_lif(x, **given, refractory=2)
    g, h = random_like(spikes, membrane)
    torch.autograd.backward([spikes, membrane], [g, h])
    current = current_of(x.detach(), arguments)
    options = {"refractory": 2, "method": "bptt", "grad_membrane": h}
    found = exodus_core.alif_gradient(membrane.detach(), g, **arguments, **current, **options)
    assert_agrees("input", found.input, x.grad)
    for name in found._fields[1:]:
        if name in arguments:
            assert_agrees(name, getattr(found, name), given[name].grad)


@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
@pytest.mark.parametrize("neuron", ["cuba_lif", "alif with a late synapse"])
def test_gradients_of_float_parameters_are_scalars_on_request(neuron: str, method: str) -> None:
    torch.manual_seed(0)
    arguments = neuron_arguments(neuron, SHAPE, "subtract")
    numbers = {name: 0.25 if isinstance(value, Tensor) else value for name, value in arguments.items()}
    del numbers["min_membrane"]
    numbers |= {"initial_refractory": 1.0, "refractory": 1, "method": method, "reset_by": 0.7}
    membrane, current, g = torch.randn(3, *SHAPE, dtype=torch.float64)
    gradient = functions(neuron)[1]
    quiet = gradient(membrane, g, **numbers)
    assert all(value is None for value in quiet[1:])
    names = [name for name in quiet._fields[1:] if name in numbers]
    asked = gradient(membrane, g, **numbers, current=current, wrt=names)
    assert torch.equal(asked.input, quiet.input)
    full = {
        name: torch.full_like(arguments.get(name, arguments["threshold"]), value) if name in names else value
        for name, value in numbers.items()
    }
    per_neuron = gradient(membrane, g, **full, current=current)
    for name in names:
        assert getattr(asked, name).shape == ()
        torch.testing.assert_close(getattr(asked, name), getattr(per_neuron, name).sum(), rtol=1e-11, atol=1e-11)


def test_the_gradient_by_a_factor_of_zero_is_that_of_a_tensor_of_zero() -> None:
    # Terms whose factor is the number 0 are left out, but not where their gradient is wanted.
    membrane, g = torch.randn(2, *SHAPE, dtype=torch.float64)
    for name, more in (("adapt_membrane", {"adapt_current": 0.3}), ("adapt_threshold", {}), ("adapt_current", {})):
        asked = exodus_core.alif_gradient(membrane, g, 0.9, 0.8, **more, wrt=[name])
        zero = {name: torch.zeros((), dtype=torch.float64)}
        expected = exodus_core.alif_gradient(membrane, g, 0.9, 0.8, **more, **zero)
        assert getattr(asked, name) != 0
        assert torch.equal(getattr(asked, name), getattr(expected, name))


@pytest.mark.parametrize("method", ["exodus", "bptt"])
def test_gradients_by_the_synapse_need_the_current_and_others_do_not(method: str) -> None:
    torch.manual_seed(0)
    arguments = neuron_arguments("alif with a late synapse", SHAPE, "subtract")
    membrane, g = torch.randn(2, *SHAPE, dtype=torch.float64)
    for names in (["synapse_alpha"], ["synapse_gain"], None):
        with pytest.raises(
            ValueError, match=r"^current must be the trace of the synaptic current, for the gradient of"
        ):
            exodus_core.alif_gradient(membrane, g, **arguments, method=method, wrt=names)
    names = [name for name in exodus_core.AlifGradient._fields if name in arguments and not name.startswith("synapse")]
    without = exodus_core.alif_gradient(membrane, g, **arguments, method=method, wrt=names)
    current = torch.randn_like(membrane)
    given = exodus_core.alif_gradient(membrane, g, **arguments, method=method, wrt=names, current=current)
    for name in ("input", *names):
        assert torch.equal(getattr(without, name), getattr(given, name)), name


def test_the_threshold_has_the_gradient_of_a_reset_that_defaults_to_it() -> None:
    membrane, g = torch.randn(2, *SHAPE, dtype=torch.float64)
    threshold = torch.rand(19, dtype=torch.float64)
    options = {"refractory": 2, "threshold": threshold}
    tied = exodus_core.lif_gradient(membrane, g, 0.9, **options)
    apart = exodus_core.lif_gradient(membrane, g, 0.9, **options, reset_by=threshold)
    assert tied.reset_by is None
    torch.testing.assert_close(tied.threshold, apart.threshold + apart.reset_by)
    unused = exodus_core.lif_gradient(membrane, g, 0.9, reset="none", refractory=2, reset_by=threshold)
    assert torch.equal(unused.reset_by, torch.zeros_like(threshold))


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("method", ["exodus", "bptt"])
def test_gradients_work_in_inference_mode_and_where_gradients_are_switched_off(neuron: str, method: str) -> None:
    with torch.inference_mode():
        torch.manual_seed(0)
        arguments = neuron_arguments(neuron, SHAPE, "value")
        membrane, current, g = torch.randn(3, *SHAPE, dtype=torch.float64)
        options: dict[str, Any] = {"reset": "value", "refractory": 1, "method": method, "grad_membrane": g}
        if "synapse_alpha" in arguments:
            options["current"] = current
        inferred = functions(neuron)[1](membrane, g, **arguments, **options)
    with torch.no_grad():
        again = functions(neuron)[1](membrane.clone(), g.clone(), **leaves(arguments), **options)
    for name in inferred._fields:
        if getattr(inferred, name) is not None:
            assert torch.equal(getattr(inferred, name), getattr(again, name)), name
            assert not getattr(inferred, name).requires_grad


def test_strided_tensors_have_the_gradients_of_dense_ones() -> None:
    arguments = neuron_arguments("cuba_lif", SHAPE, "subtract", dtype=torch.float32)
    dense = torch.randn(4, *SHAPE)
    wide = torch.full((4, 2, 33, 40), 42.0)
    wide[..., :19] = dense
    found = [
        exodus_core.cuba_lif_gradient(membrane, g, **arguments, current=current, grad_membrane=h)
        for membrane, g, h, current in (dense, wide[..., :19])
    ]
    for ours, expected in zip(*found, strict=True):
        assert ours is expected is None or torch.equal(ours, expected)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=str)
@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
def test_empty_traces_have_empty_gradients(shape: tuple[int, ...], method: str) -> None:
    membrane = torch.zeros(shape)
    more: dict[str, Any] = {"method": method, "grad_membrane": membrane, "refractory": 1, "wrt": ["alpha"]}
    for found in (
        exodus_core.lif_gradient(membrane, membrane, 0.9, **more),
        exodus_core.cuba_lif_gradient(membrane, membrane, 0.9, 0.8, **more),
        exodus_core.alif_gradient(membrane, membrane, 0.9, 0.8, adapt_threshold=0.2, **more),
    ):
        assert found.input.shape == shape
        assert found.alpha == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=name_of)
def test_traces_of_a_membrane_are_those_of_the_forward_pass(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    for time_dim, refractory in itertools.product(range(3), (0, 2)):
        given = neuron_arguments("alif with a late synapse", shape, "subtract", dtype=dtype, time_dim=time_dim)
        x = torch.randn(shape).to(dtype)
        alpha, options = given.pop("alpha"), {"refractory": refractory, "time_dim": time_dim}
        chosen: Any = {**coupled.DEFAULTS, **given, **options}
        settings, parameters, initial = coupled.coupled_arguments(x, alpha, chosen)
        call = (settings.numbers, parameters, initial, 1.0, refractory, settings.reset, settings.couplings)
        spikes, membrane, _, adaptation, held, _ = ops.coupled_forward(x, *call, 7, time_dim)
        for kept in range(8):
            found = ops.coupled_traces(membrane, *call, kept, time_dim)
            for bit, own, expected in zip((1, 2, 4), found, (spikes, adaptation, held), strict=True):
                assert torch.equal(own, expected) if kept & bit else own.numel() == 0


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_spikes_of_a_trace_are_those_of_the_neuron(neuron: str, dtype: torch.dtype) -> None:
    given = neuron_arguments(neuron, SHAPE, "subtract", dtype=dtype)
    spikes, membrane = functions(neuron)[0](torch.randn(SHAPE).to(dtype), **given, refractory=2)
    assert spikes.any()
    assert torch.equal(exodus_core.spikes_of_trace(membrane, **given, refractory=2), spikes)


def test_a_trace_decides_on_the_adaptation_as_it_is_stored() -> None:
    # 1 + 2^-12 is 1 in float16: the threshold is 2, which the membrane reaches.
    options: Any = {"adapt_alpha": 1.0, "adapt_by": 0.0, "adapt_threshold": 1.0, "initial_adaptation": 1 + 2**-12}
    x = torch.full((1, 3, 2), 2.0, dtype=torch.float16)
    spikes, membrane = exodus_core.alif(x, 0.0, reset="none", **options)
    assert torch.equal(spikes, torch.ones_like(x))
    assert torch.equal(exodus_core.spikes_of_trace(membrane, 0.0, reset="none", **options), spikes)


def test_the_adaptation_of_a_trace_does_not_sense_a_membrane_that_has_faded() -> None:
    x = torch.zeros(1, 4, 2)
    x[0, 0] = 1e-40
    numbers = (0.5, 1.0, 1.0, -9.0, 0.0, 0.0, 0.5, 1e30, 0.0, 0.0, 0.1)
    couplings = ops.COUPLING_ADAPTATION | ops.COUPLING_SENSES | ops.COUPLING_RAISES
    call = (numbers, None, None, 1.0, 0, 1, couplings, ops.KEPT_ADAPTATION, 1)
    _, membrane, _, adaptation, *_ = ops.coupled_forward(x, *call)
    assert membrane[0, 0].all()
    assert not adaptation.any()
    assert torch.equal(ops.coupled_traces(membrane, *call)[1], adaptation)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_the_current_is_that_of_the_forward_pass(dtype: torch.dtype) -> None:
    given = neuron_arguments("cuba_lif", SHAPE, "subtract", dtype=dtype)
    x = torch.randn(SHAPE).to(dtype)
    alpha = given.pop("alpha")
    settings, parameters, initial = coupled.coupled_arguments(x, alpha, coupled.with_defaults(given))
    call = (settings.numbers, parameters, initial, 1.0, 0, settings.reset, settings.couplings)
    assert torch.equal(current_of(x, given)["current"], ops.coupled_forward(x, *call, 1, 1)[2])


def test_opcheck_of_the_traces() -> None:
    membrane, numbers = torch.randn(2, 9, 17), (0.9, 1.0, 1.0, -1.0, 0.5, 1.0, 0.5, 0.0, 1.0, 0.0, 0.2)
    parameters, initial = torch.tensor(numbers)[:, None], torch.rand(len(ops.COUPLED_STATES), 34)
    for kept in (0, 1, 6, 7):
        call = (membrane, numbers, parameters, initial, 1.0, 2, 1, 67, kept, 1)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.exodus.coupled_traces.default, call, test_utils=tests)


def test_traces_are_mapped_by_vmap() -> None:
    membrane = torch.randn(3, 2, 9, 17)
    numbers = (0.9, 1.0, 1.0, -1.0, 0.0, 1.0, 0.5, 0.0, 1.0, 0.0, 0.2)

    def traces(one: Tensor) -> tuple[Tensor, ...]:
        return ops.coupled_traces(one, numbers, None, None, 1.0, 2, 1, 66, 7, 1)

    for mapped, single in zip(torch.vmap(traces)(membrane), zip(*map(traces, membrane), strict=True), strict=True):
        assert torch.equal(mapped, torch.stack(single))


@pytest.mark.parametrize("with_membrane", [False, True])
@pytest.mark.parametrize("wrt", [(), ("alpha",), ("synapse_gain", "synapse_alpha", "initial_membrane")], ids=str)
def test_bptt_of_a_single_step_that_does_not_see_the_input_yet_is_exodus(wrt: Any, with_membrane: bool) -> None:
    membrane, current, g = torch.randn(3, 2, 1, 19, dtype=torch.float64)
    options = {"synapse_delayed": True, "current": current, "wrt": wrt, "grad_membrane": g if with_membrane else None}
    found, expected = (
        exodus_core.cuba_lif_gradient(membrane, g, 0.9, 0.8, **options, method=method) for method in ("bptt", "exodus")
    )
    assert not found.input.any()
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
@pytest.mark.parametrize("trained", [(), ("synapse_alpha",), ("alpha", "threshold")], ids=str)
def test_backward_of_a_single_step_that_does_not_see_the_input_yet_is_zero(method: str, trained: Any) -> None:
    given = {"alpha": 0.9, "synapse_alpha": 0.8, "threshold": 1.0}
    given |= {name: torch.tensor(given[name], requires_grad=True) for name in trained}
    x = torch.randn(2, 1, 19, requires_grad=True)
    spikes, membrane = exodus_core.cuba_lif(x, **given, synapse_delayed=True, method=method)
    g, h = random_like(spikes, membrane)
    found = torch.autograd.grad([spikes, membrane], [x, *(given[name] for name in trained)], [g, h])
    assert not found[0].any()
    assert len(found) == 1 + len(trained)


@pytest.mark.parametrize("per_sample", [False, True], ids=["shared parameters", "parameters of each sample"])
@pytest.mark.parametrize("reset", RESETS, ids=name_of)
@pytest.mark.parametrize("neuron", NEURONS)
def test_gradients_of_traces_are_mapped_by_vmap(neuron: str, reset: tuple[str, bool], per_sample: bool) -> None:
    torch.manual_seed(0)
    samples = 3
    traces = torch.randn(samples, 3, *SHAPE, dtype=torch.float64)
    arguments = neuron_arguments(neuron, SHAPE, reset[0])
    options = {"reset": reset[0], "decay_reset": reset[1], "refractory": 1}
    options |= {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
    given = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    if per_sample:
        given = {name: torch.stack([value] * samples) for name, value in given.items()}

    def gradients(traces: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        membrane, g, current = traces
        more = {"current": current} if "synapse_alpha" in given else {}
        found = functions(neuron)[1](membrane, g, **given, **options, **more)
        return tuple(value for value in found if value is not None)

    mapped = torch.vmap(gradients, (0, 0 if per_sample else None))(traces, given)
    for i, each in enumerate(traces):
        own = {name: value[i] for name, value in given.items()} if per_sample else given
        for found, expected in zip(mapped, gradients(each, own), strict=True):
            assert expected.any() or reset[0] == "none"
            torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_numbers_are_mapped_by_vmap() -> None:
    torch.manual_seed(0)
    membranes, gs = torch.randn(2, 4, *SHAPE, dtype=torch.float64)
    names = ["alpha", "threshold", "adapt_alpha", "adapt_threshold", "initial_membrane", "initial_adaptation"]

    def gradients(membrane: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        found = exodus_core.alif_gradient(membrane, g, 0.9, 0.8, adapt_threshold=0.2, refractory=2, wrt=names)
        return tuple(getattr(found, name) for name in names)

    one_by_one = zip(*(gradients(*each) for each in zip(membranes, gs, strict=True)), strict=True)
    for name, mapped, single in zip(names, torch.vmap(gradients)(membranes, gs), one_by_one, strict=True):
        assert mapped.all(), name
        torch.testing.assert_close(mapped, torch.stack(single), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shapes", [((), (5,)), ((4, 1), (1,)), ((1, 5), (4, 5)), ((1, 1, 1), (5,))], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name_of)
def test_gradients_have_the_bits_of_backward_for_every_shape_of_a_parameter(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    arguments = {
        "alpha": uniform(0.5, 1, shapes[0], torch.float32),
        "threshold": uniform(0.5, 1, shapes[1], torch.float16),
        "synapse_alpha": uniform(0.5, 1, shapes[1], torch.float64),
        "initial_membrane": uniform(-1, 1, (3, 1, 5), torch.float16),
    }
    given = leaves(arguments)
    x = torch.randn(3, 33, 4, 5).to(dtype)
    spikes, membrane = exodus_core.cuba_lif(x, **given, refractory=1)
    g, h = random_like(spikes, membrane)
    torch.autograd.backward([spikes, membrane], [g, h])
    current = current_of(x, arguments)
    found = exodus_core.cuba_lif_gradient(membrane.detach(), g, **arguments, refractory=1, **current, grad_membrane=h)
    for name, argument in given.items():
        assert getattr(found, name).dtype == arguments[name].dtype
        assert torch.equal(getattr(found, name), argument.grad), name


X = torch.zeros(2, 5, 3)


def spikes_of_zeros(**options: Any) -> Tensor:
    return exodus_core.spikes_of_trace(X, 0.9, **options)


def certified(**options: Any) -> Any:
    return run_coupled(X, 0.9, X, **options)


@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
def test_gradients_by_what_the_neuron_must_not_have_are_refused(method: str) -> None:
    def refusal(wrt: Any, **options: Any) -> str:
        with pytest.raises(exodus_core.ArgumentError) as raised:
            exodus_core.alif_gradient(X, X, 0.9, 0.8, wrt=wrt, method=method, **options)
        return str(raised.value)

    expected = "wrt must be without synapse_gain where synapse_alpha is None, got synapse_gain"
    assert refusal("synapse_gain") == refusal(["alpha", "synapse_gain"]) == expected
    expected = "wrt must be without adapt_threshold where max_spikes is more than 1, got adapt_threshold"
    assert refusal(["adapt_threshold"], max_spikes=3) == expected


@pytest.mark.parametrize(
    "gradient",
    [
        lambda wrt: exodus_core.lif_gradient(X, X, 0.9, wrt=wrt),
        lambda wrt: exodus_core.lif_gradient(X, X, 0.9, refractory=2, wrt=wrt),
        lambda wrt: exodus_core.cuba_lif_gradient(X, X, 0.9, 0.8, wrt=wrt),
        lambda wrt: exodus_core.alif_gradient(X, X, 0.9, 0.8, wrt=wrt),
    ],
    ids=["lif", "lif with a refractory period", "cuba_lif", "alif"],
)
def test_wrt_is_names(gradient: Any) -> None:
    for wrt, got in ((3, "3"), ([3], "3"), (["beta", 3], "3, beta"), ([["alpha"]], "['alpha']"), ({"a": 1}, "a")):
        with pytest.raises(
            (TypeError, ValueError), match=rf"^wrt must be names of input, alpha, .*, got {re.escape(got)}$"
        ):
            gradient(wrt)
    assert gradient("alpha").alpha.shape == gradient({"alpha": 1}).alpha.shape == gradient(iter(["alpha"])).alpha.shape


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (
            "wrt must be names of input, alpha, synapse_alpha, synapse_gain, threshold, reset_by, reset_to, "
            "initial_membrane, initial_current, got beta",
            lambda: exodus_core.cuba_lif_gradient(X, X, 0.9, 0.8, wrt="beta"),
        ),
        (
            "wrt must be names of input, alpha, threshold, reset_by, initial_membrane, got reset_to",
            lambda: exodus_core.lif_gradient(X, X, 0.9, wrt="reset_to"),
        ),
        (
            "wrt must be names of input, alpha, threshold, reset_to, initial_membrane, got reset_by",
            lambda: exodus_core.lif_gradient(X, X, 0.9, reset="value", reset_to=0.1, wrt="reset_by"),
        ),
        (
            "wrt must be names of parameters that are not None, got reset_by; its gradient is part of the threshold's",
            lambda: exodus_core.alif_gradient(X, X, 0.9, 0.8, wrt=["reset_by"]),
        ),
        (
            "wrt must be names of parameters that are not None, got synapse_alpha",
            lambda: exodus_core.alif_gradient(X, X, 0.9, 0.8, wrt=["synapse_alpha"]),
        ),
        (
            "current must be None without a synapse_alpha, got a tensor",
            lambda: exodus_core.alif_gradient(X, X, 0.9, 0.8, current=X),
        ),
        (
            "current must be of the shape of membrane, (2, 5, 3), got (2, 5, 4)",
            lambda: exodus_core.cuba_lif_gradient(X, X, 0.9, 0.8, current=torch.zeros(2, 5, 4)),
        ),
        (
            "current must be the trace of the synaptic current, for the gradient of synapse_gain, got None; "
            "`current_trace` computes it from the input",
            lambda: exodus_core.cuba_lif_gradient(X, X, 0.9, 0.8, wrt=["synapse_gain"]),
        ),
        (
            "grad_spikes must be of the dtype of membrane, torch.float32, got torch.float64",
            lambda: exodus_core.cuba_lif_gradient(X, X.double(), 0.9, 0.8),
        ),
        ("alpha must be in [0, 1], got 1.5", lambda: exodus_core.alif_gradient(X, X, torch.tensor(1.5), 0.8)),
        ("adapt_alpha must be a float or a float tensor", lambda: exodus_core.alif_gradient(X, X, 0.9, None)),
        ("synapse_alpha must be a float or a float tensor", lambda: exodus_core.cuba_lif_gradient(X, X, 0.9, None)),
        ("synapse_alpha must be in [0, 1], got 2.0", lambda: exodus_core.current_trace(X, 2.0)),
        ("initial_adaptation, initial_refractory, got refactory", lambda: spikes_of_zeros(refactory=2)),
        ("options must be names of threshold, reset, reset_by, decay_reset, ", lambda: spikes_of_zeros(wrt="alpha")),
        ("got current, input", lambda: spikes_of_zeros(input=X, refractory=1, current=X)),
        ("got foo", lambda: certified(foo=1)),
        (
            "initial_current must be values that broadcast",
            lambda: exodus_core.current_trace(X, 0.5, initial_current=torch.zeros(4)),
        ),
        (
            "reset_to must be a value with reset 'value', got None",
            lambda: exodus_core.lif_gradient(X, X, 0.9, reset="value"),
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(message: str, call: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    assert message in str(raised.value)
