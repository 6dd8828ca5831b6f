"""LIF and IF: the kernels agree with the plain loop, outputs and all gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import exodus_core
from assertions import (
    DTYPES,
    ODD_SHAPES,
    RESETS,
    SURROGATES,
    assert_agrees,
    gradients,
    leaves,
    lif_parameters,
    name_of,
    relative_error,
)
from exodus_core import reference
from exodus_core.surrogate import Boxcar, Exponential, Sigmoid, Surrogate

EXPONENTIAL = Exponential()


def compare(
    shape: tuple[int, ...],
    time_dim: int,
    dtype: torch.dtype,
    reset: str,
    method: str = "exodus",
    surrogate: Surrogate = EXPONENTIAL,
    **more: Any,
) -> None:
    """Runs the kernel and the loop on equal arguments and compares outputs and every gradient."""
    torch.manual_seed(0)
    arguments = lif_parameters(shape, time_dim, dtype, **more)
    arguments["x"] = torch.randn(shape, dtype=torch.float64).to(dtype)
    weights = tuple(torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    options = {
        "reset": reset[0],
        "decay_reset": reset[1],
        "surrogate": surrogate,
        "time_dim": time_dim,
        "method": method,
    }

    ours, plain = leaves(arguments), leaves(arguments)
    outputs = exodus_core.lif(**ours, **options)
    looped = reference.lif(**plain, **options)
    assert torch.equal(outputs[0], looped[0]), "spikes"
    assert torch.equal(outputs[1], looped[1]), "membrane"

    found, by_loop = gradients(outputs, weights, ours), gradients(looped, weights, plain)
    # The standard is the float64 loop pinned to the membrane as it is stored, and for float32 the float32 loop's error.
    exact = leaves({name: v.double() if isinstance(v, torch.Tensor) else v for name, v in arguments.items()})
    del exact["x"]
    x, *pinned = reference.lif_on_trace(outputs[1].double(), **exact, **options)
    expected = gradients(tuple(pinned), tuple(w.double() for w in weights), {**exact, "x": x})
    for name, gradient in found.items():
        assert_agrees(name, gradient, expected[name], plain=by_loop[name] if dtype == torch.float32 else None)
        if dtype == torch.float64:
            assert_agrees(name, gradient, by_loop[name])


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("reset", RESETS, ids=name_of)
@pytest.mark.parametrize("method", ["exodus", "slayer"])
def test_kernel_equals_loop_for_every_reset_and_dtype(
    shape: tuple[int, ...], dtype: torch.dtype, reset: str, method: str
) -> None:
    compare(shape, 1, dtype, reset, method)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_kernel_equals_loop_for_every_surrogate(surrogate: Surrogate, dtype: torch.dtype) -> None:
    compare((2, 33, 19), 1, dtype, ("subtract", True), surrogate=surrogate)


@pytest.mark.parametrize("reset", [r for r in RESETS if r[0] != "zero"], ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_kernel_equals_loop_with_several_spikes_a_step(reset: str, dtype: torch.dtype) -> None:
    compare((2, 33, 19), 1, dtype, reset, max_spikes=3)


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("reset", RESETS, ids=name_of)
@pytest.mark.parametrize("method", ["exodus", "slayer"])
def test_kernel_equals_loop_with_a_bound_after_the_reset(
    shape: tuple[int, ...], dtype: torch.dtype, reset: str, method: str
) -> None:
    compare(shape, 1, dtype, reset, method, bound_after_reset=True)
    if reset[0] != "zero":
        compare(shape, 1, dtype, reset, method, bound_after_reset=True, max_spikes=3)


@pytest.mark.parametrize("shape", [(2, 3, 2100), (300, 3, 7)], ids=name_of)
def test_kernel_equals_loop_where_neurons_fill_several_tiles(shape: tuple[int, ...]) -> None:
    compare(shape, 1, torch.float64, ("subtract", True))
    compare(shape, 1, torch.float64, ("subtract", False), bound_after_reset=True)


@pytest.mark.parametrize(("shape", "time_dim"), [((7, 3, 5), 0), ((3, 5, 70), 2), ((2, 3, 66, 4, 5), -3), ((65,), 0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=name_of)
def test_time_may_be_any_axis(shape: tuple[int, ...], time_dim: int, dtype: torch.dtype) -> None:
    compare(shape, time_dim % len(shape), dtype, ("subtract", False))
    compare(shape, time_dim % len(shape), dtype, ("subtract", True), bound_after_reset=True)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=name_of)
def test_empty_tensors_give_empty_results_and_zero_gradients(shape: tuple[int, ...]) -> None:
    arguments = leaves(lif_parameters(shape, 1, torch.float32))
    x = torch.zeros(shape, requires_grad=True)
    spikes, membrane = exodus_core.lif(x, **arguments)
    assert spikes.shape == membrane.shape == shape
    for gradient in gradients((spikes, membrane), (spikes, membrane), arguments).values():
        assert not gradient.any()


def test_if_is_lif_with_alpha_one() -> None:
    x = torch.tensor([[[0.6], [0.6], [0.0], [0.9]]])
    spikes, membrane = exodus_core.lif(x, 1.0)
    assert spikes.flatten().tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(membrane.flatten(), torch.tensor([0.6, 1.2, 0.2, 1.1]))


def test_resets_differ_as_their_equations_say() -> None:
    x = torch.tensor([[[3.0], [0.0]]], dtype=torch.float64)
    after = {r: exodus_core.lif(x, 0.5, reset=r[0], decay_reset=r[1])[1][0, 1, 0].item() for r in RESETS}
    assert after == {("subtract", False): 0.5, ("subtract", True): 1.0, ("zero", False): 0.0, ("none", False): 1.5}


@pytest.mark.parametrize("reset", ["zero", "none"])
def test_decay_reset_makes_no_difference_where_nothing_is_subtracted(reset: str) -> None:
    x = torch.randn(2, 30, 7)
    decayed, plain = (exodus_core.lif(x, 0.9, reset=reset, decay_reset=decay) for decay in (True, False))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(decayed, plain, strict=True))


def test_a_spike_needs_the_membrane_to_reach_the_threshold() -> None:
    spikes, _ = exodus_core.lif(torch.tensor([[[1.0]]]), 0.9, threshold=1.0)
    assert spikes.item() == 1


def test_count_of_spikes_is_bounded_by_max_spikes_and_zero() -> None:
    x = torch.tensor([[[-5.0], [0.5], [2.7], [9.0]]])
    spikes, _ = exodus_core.lif(x, 0.0, reset="none", max_spikes=4)
    assert spikes.flatten().tolist() == [0, 0, 2, 4]


def test_float_parameters_equal_tensors_of_that_value() -> None:
    x = torch.randn(2, 30, 7, dtype=torch.float64)
    numbers = {"alpha": 0.9, "threshold": 0.8, "reset_by": 0.7, "min_membrane": -0.5, "initial_membrane": 0.3}
    tensors = {name: torch.full((7,), value, dtype=torch.float64) for name, value in numbers.items()}
    for ours, theirs in zip(exodus_core.lif(x, **numbers), exodus_core.lif(x, **tensors), strict=True):
        assert torch.equal(ours, theirs)


def test_gradient_of_a_shared_parameter_is_the_sum_over_neurons() -> None:
    x = torch.randn(2, 30, 7, dtype=torch.float64)
    alpha = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    per_neuron = torch.full((7,), 0.9, dtype=torch.float64, requires_grad=True)
    exodus_core.lif(x, alpha)[0].sum().backward()
    exodus_core.lif(x, per_neuron)[0].sum().backward()
    torch.testing.assert_close(alpha.grad, per_neuron.grad.sum())


def test_threshold_gradient_includes_the_reset_that_defaults_to_it() -> None:
    x = torch.randn(2, 30, 7, dtype=torch.float64)
    tied = torch.rand(7, dtype=torch.float64, requires_grad=True)
    threshold, reset_by = (tied.detach().clone().requires_grad_() for _ in range(2))
    exodus_core.lif(x, 0.9, threshold=tied)[0].sum().backward()
    exodus_core.lif(x, 0.9, threshold=threshold, reset_by=reset_by)[0].sum().backward()
    torch.testing.assert_close(tied.grad, threshold.grad + reset_by.grad)


def test_slayer_differs_from_exodus_where_a_reset_matters_and_only_there() -> None:
    x = torch.randn(1, 50, 4, dtype=torch.float64)
    gradient = {}
    for method in ("exodus", "slayer"):
        for reset in ("subtract", "none"):
            leaf = x.clone().requires_grad_()
            exodus_core.lif(leaf, 0.9, reset=reset, method=method)[0].sum().backward()
            gradient[method, reset] = leaf.grad
    assert torch.equal(gradient["exodus", "none"], gradient["slayer", "none"])
    assert relative_error(gradient["exodus", "subtract"], gradient["slayer", "subtract"]) > 0.01


def test_bptt_is_the_loop_and_forward_does_not_depend_on_the_method() -> None:
    x = torch.randn(2, 40, 6)
    outputs = {method: exodus_core.lif(x, 0.9, method=method) for method in ("exodus", "slayer", "bptt")}
    for method in ("slayer", "bptt"):
        for ours, theirs in zip(outputs["exodus"], outputs[method], strict=True):
            assert torch.equal(ours, theirs)
    leaf = x.clone().requires_grad_()
    assert "Lif" not in str(exodus_core.lif(leaf, 0.9, method="bptt")[0].grad_fn)


@pytest.mark.parametrize("bound_after_reset", [False, True])
@pytest.mark.parametrize("reset", RESETS, ids=name_of)
@pytest.mark.parametrize("max_spikes", [1, 3])
def test_bptt_equals_exodus_in_every_argument(reset: str, max_spikes: int, bound_after_reset: bool) -> None:
    options = {
        "reset": reset[0],
        "decay_reset": reset[1],
        "max_spikes": 1 if reset[0] == "zero" else max_spikes,
        "bound_after_reset": bound_after_reset,
        "surrogate": Sigmoid(3.0, 0.7),
        "time_dim": 2,
    }
    arguments = lif_parameters((2, 3, 20, 4), 2, torch.float64, x=torch.randn(2, 3, 20, 4, dtype=torch.float64))
    weights = tuple(torch.randn(2, 2, 3, 20, 4, dtype=torch.float64))
    results = []
    for method in ("exodus", "bptt"):
        given = leaves(arguments)
        outputs = exodus_core.lif(**given, **options, method=method)
        results.append({"spikes": outputs[0], "membrane": outputs[1], **gradients(outputs, weights, given)})
    for name, found in results[0].items():
        assert_agrees(name, found, results[1][name])


def test_a_bound_after_the_reset_bounds_what_the_next_step_sees_as_each_reset_leaves_it() -> None:
    x = torch.tensor([[[3.0], [0.0], [-3.0], [0.0]]], dtype=torch.float64)
    found = {}
    for reset in RESETS:
        options = {"reset": reset[0], "decay_reset": reset[1], "reset_by": 4.0, "min_membrane": -0.25}
        found[reset] = exodus_core.lif(x, 0.5, bound_after_reset=True, **options)[1].flatten().tolist()
    # After the first step 1.5 - 4 and 3 - 4 are raised to the bound, after the third all are.
    assert found["subtract", False] == [3.0, -0.25, -0.125 - 3.0, -0.25]
    assert found["subtract", True] == [3.0, -0.125, -0.0625 - 3.0, -0.125]
    assert found["zero", False] == [3.0, 0.0, -3.0, -0.125]
    assert found["none", False] == [3.0, 1.5, 0.75 - 3.0, -0.125]


@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
@pytest.mark.parametrize("reset", RESETS, ids=name_of)
def test_what_is_left_on_a_bound_after_the_reset_passes_no_gradient_to_the_step_before(reset: Any, method: str) -> None:
    x = torch.tensor([[[-0.5], [1.0], [0.25]]], dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"reset": reset[0], "decay_reset": reset[1], "threshold": 9.0, "method": method}
    # Where the reset follows the decay, what is left has decayed.
    left = -0.5 if reset != ("subtract", False) else -0.25
    bound = torch.tensor(left, dtype=torch.float64, requires_grad=True)
    membrane = exodus_core.lif(x, 0.5, min_membrane=bound, bound_after_reset=True, surrogate=Boxcar(), **options)[1]
    membrane[:, 1:].sum().backward()
    assert membrane.flatten().tolist() == [-0.5, 0.75, 0.625]
    assert x.grad.flatten().tolist() == [0, 1.5, 1]
    # Of the two steps after the one that is clipped: 1 + alpha, behind a decay of alpha unless the reset follows it.
    assert bound.grad.item() == (1.5 if reset == ("subtract", False) else 0.75)


def test_a_bound_after_the_reset_without_a_bound_is_none() -> None:
    x = torch.randn(2, 9, 5)
    for options in ({}, {"min_membrane": -math.inf}, {"min_membrane": torch.full((5,), -math.inf)}):
        alpha = torch.full((5,), 0.5, requires_grad=True)
        given: dict[str, Any] = {"bound_after_reset": True, **options}
        outputs, plain = exodus_core.lif(x, alpha, **given), exodus_core.lif(x, 0.5)
        assert torch.equal(outputs[0], plain[0])
        torch.testing.assert_close(outputs[1], plain[1])
        outputs[0].sum().backward()
        assert alpha.grad.isfinite().all()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("method", ["exodus", "bptt"])
def test_a_reset_that_subtracts_is_detached_with_a_bound_as_slayer_drops_it(method: str, after: bool) -> None:
    arguments = lif_parameters((2, 20, 5), 1, torch.float64, x=torch.randn(2, 20, 5, dtype=torch.float64))
    weights = tuple(torch.randn(2, 2, 20, 5, dtype=torch.float64))
    results = []
    for options in ({"method": method, "detach_reset": True}, {"method": "slayer"}):
        given = leaves(arguments)
        outputs = exodus_core.lif(**given, bound_after_reset=after, **options)
        results.append(gradients(outputs, weights, given))
    for name, found in results[0].items():
        assert_agrees(name, found, results[1][name])


@pytest.mark.parametrize(("alpha", "first", "passed"), [(0.5, 4e-38, 0.5), (0.5, 2e-38, 0.0), (1.0, 1e-39, 1.0)])
def test_both_passes_clip_the_same_tiny_membranes_with_a_bound_after_the_reset(
    alpha: float, first: float, passed: float
) -> None:
    """What has leaked away is zero, and lies on a bound of zero; without a leak, every number is what it is."""
    x = torch.zeros(1, 2, 3)
    x[:, 0] = first
    x.requires_grad_()
    membrane = exodus_core.lif(x, alpha, min_membrane=0.0, bound_after_reset=True, surrogate=Boxcar())[1]
    assert torch.equal(membrane[:, 1], passed * x[:, 0])
    membrane[:, 1].sum().backward()
    assert x.grad[0, 0].tolist() == [passed] * 3


@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
def test_a_membrane_on_its_bound_counts_as_clipped(method: str) -> None:
    x = torch.tensor([[[-0.5], [-0.25]]], requires_grad=True)
    exodus_core.lif(x, 0.5, min_membrane=-0.5, method=method)[1].sum().backward()
    assert x.grad.flatten().tolist() == [0, 0]


def test_a_sequence_in_pieces_gives_spikes_and_gradients_of_the_whole() -> None:
    x = torch.randn(2, 60, 5, dtype=torch.float64)
    weight = torch.randn(2, 60, 5, dtype=torch.float64)
    for reset, decay_reset in RESETS:
        options: dict[str, Any] = {"reset": reset, "decay_reset": decay_reset, "surrogate": Sigmoid()}
        options |= {"min_membrane": -0.3, "bound_after_reset": decay_reset}
        whole, pieces = x.clone().requires_grad_(), x.clone().requires_grad_()
        spikes, _ = exodus_core.lif(whole, 0.9, **options)
        first, membrane = exodus_core.lif(pieces[:, :23], 0.9, **options)
        second, _ = exodus_core.lif(
            pieces[:, 23:], 0.9, initial_membrane=membrane[:, -1], initial_spikes=first[:, -1], **options
        )
        joined = torch.cat([first, second], 1)
        assert torch.equal(joined, spikes)
        (spikes * weight).sum().backward()
        (joined * weight).sum().backward()
        assert relative_error(pieces.grad, whole.grad) < 1e-14


def test_views_give_the_results_of_contiguous_tensors_and_nothing_outside_is_touched() -> None:
    buffer = torch.full((5, 40, 16), 42.0)
    buffer[1:4, 5:35, 3:11] = torch.randn(3, 30, 8)
    view = buffer[1:4, 5:35, 3:11].requires_grad_()
    copy = view.detach().clone().requires_grad_()
    for ours, theirs in zip(exodus_core.lif(view, 0.9), exodus_core.lif(copy, 0.9), strict=True):
        assert torch.equal(ours, theirs)
    expanded = torch.ones(()).expand(3, 30, 8)  # what sum().backward() sends
    by_view = torch.autograd.grad(exodus_core.lif(view, 0.9)[0], view, expanded)[0]
    by_copy = torch.autograd.grad(exodus_core.lif(copy, 0.9)[0], copy, expanded.contiguous())[0]
    assert torch.equal(by_view, by_copy)
    outside = torch.ones(5, 40, 16, dtype=torch.bool)
    outside[1:4, 5:35, 3:11] = False
    assert (buffer.detach()[outside] == 42).all()


def test_strided_arguments_give_the_gradients_of_contiguous_ones() -> None:
    membrane, g, h = (torch.randn(8, 30, 3).transpose(0, 2) for _ in range(3))
    alpha, initial = torch.rand(16)[::2], torch.randn(8, 3).t()
    dense = [t.contiguous() for t in (membrane, g, h, alpha, initial)]
    for options in ({}, {"min_membrane": -torch.rand(16)[::2], "bound_after_reset": True}):
        results = []
        for u, g_, h_, a, u0 in ((membrane, g, h, alpha, initial), dense):
            results.append(exodus_core.lif_gradient(u, g_, a, initial_membrane=u0, grad_membrane=h_, **options))
        for name in ("input", "alpha", "initial_membrane"):
            assert torch.equal(*(getattr(found, name) for found in results)), name


def test_only_the_membrane_is_kept_for_the_backward_pass() -> None:
    x = torch.randn(4, 50, 32, requires_grad=True)
    kept = []

    def counted(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(counted, lambda tensor: tensor):
        exodus_core.lif(x, 0.9)
    assert sum(kept) == x.numel()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, -0.7), (torch.float16, -0.1)], ids=name_of)
@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
def test_a_bound_that_lies_between_two_values_of_a_half_type_stops_the_gradient(
    dtype: torch.dtype, bound: Any, method: str
) -> None:
    x = torch.full((1, 4, 1), -3.0, dtype=dtype, requires_grad=True)
    membrane = exodus_core.lif(x, 0.9, min_membrane=bound, method=method)[1]
    assert torch.equal(membrane, torch.full_like(membrane, bound))
    membrane.sum().backward()
    assert not x.grad.any()
    ones = torch.ones_like(membrane)
    trace = membrane.detach()
    given = exodus_core.lif_gradient(trace, ones, 0.9, min_membrane=bound, grad_membrane=ones, method=method)
    assert not given.input.any()


@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
def test_a_tensor_of_one_element_is_a_number_whatever_its_dimensions(method: str) -> None:
    x = torch.randn(3, 20, dtype=torch.float64)
    numbers = {"alpha": 0.9, "threshold": 0.8, "reset_by": 0.7, "min_membrane": -0.5}
    ones = {name: torch.full((1, 1, 1, 1), value, dtype=torch.float64) for name, value in numbers.items()}
    for ours, theirs in zip(
        exodus_core.lif(x, **ones, method=method), exodus_core.lif(x, **numbers, method=method), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_nan_input_stays_visible() -> None:
    x = torch.zeros(1, 5, 2)
    x[0, 2, 0] = torch.nan
    _, membrane = exodus_core.lif(x, 0.9, min_membrane=-1.0)
    assert membrane[0, 2:, 0].isnan().all()
    assert not membrane[0, :, 1].isnan().any()


@pytest.mark.parametrize("grad_requires_grad", [False, True])
@pytest.mark.parametrize(
    "neuron",
    [
        lambda x, alpha: exodus_core.lif(x, alpha)[0],
        lambda x, threshold: exodus_core.srm(x, torch.tensor([-0.5, -0.2]), threshold=threshold)[0],
        lambda x, taps: exodus_core.srm(x, taps)[1],
        lambda x, taps: exodus_core.filter(x, taps).square(),
    ],
    ids=["lif", "srm", "srm taps", "filter"],
)
def test_second_derivatives_are_refused(neuron: str, grad_requires_grad: bool) -> None:
    """Also of a sum, whose gradient is a constant: torch's own decorator lets that pass."""
    x = torch.randn(1, 5, 2, requires_grad=True)
    parameter = torch.tensor([0.9], requires_grad=True)
    spikes = neuron(x, parameter)
    weight = torch.randn_like(spikes).requires_grad_(grad_requires_grad)
    for wanted in (x, parameter):
        (gradient,) = torch.autograd.grad(spikes, wanted, weight, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives of a spiking neuron, filter or sparse product"):
            gradient.square().sum().backward()


def test_a_graph_that_was_created_changes_no_gradient() -> None:
    x = torch.randn(2, 7, 3, requires_grad=True)
    spikes, _ = exodus_core.lif(x, 0.9)
    (plain,) = torch.autograd.grad(spikes.sum(), x, retain_graph=True)
    (kept,) = torch.autograd.grad(spikes.sum(), x, create_graph=True)
    assert torch.equal(plain, kept)
    assert kept.requires_grad


@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
@pytest.mark.parametrize("max_spikes", [1, 3])
def test_a_membrane_that_is_nan_fires_nothing(method: str, max_spikes: int) -> None:
    x = torch.tensor([[[torch.nan], [5.0]]])
    spikes, membrane = exodus_core.lif(x, 0.5, max_spikes=max_spikes, method=method)
    assert not spikes.any()
    assert membrane.isnan().all()


@pytest.mark.parametrize(("dtype", "small"), [(torch.float32, 1e-39), (torch.float64, 1e-309)], ids=str)
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("method", ["exodus", "slayer", "bptt"])
def test_membranes_too_small_for_their_exponent_are_compared_as_they_are(
    dtype: torch.dtype, small: Any, reset: str, method: str
) -> None:
    x = torch.tensor([[[1.0], [1.0], [-1.0]]], dtype=dtype) * small
    spikes, membrane = exodus_core.lif(x, 1.0, threshold=1.5 * small, reset=reset, method=method)
    assert spikes.flatten().tolist() == [0, 1, 0]
    assert torch.equal(membrane[0, :2], x[0, :2].cumsum(0))
    # What is computed again of them backward in time must be the same.
    for bound in (None, 0.5 * small, 1.5 * small):
        options = {"threshold": 1.5 * small, "reset": reset, "min_membrane": bound, "method": method}
        found = exodus_core.lif_gradient(membrane, torch.ones_like(membrane), 0.5, **options).input
        options["method"] = "bptt" if method == "exodus" else method
        leaf, spikes, _ = reference.lif_on_trace(membrane, 0.5, **options)
        torch.testing.assert_close(found, torch.autograd.grad(spikes.sum(), leaf)[0])


def test_a_bound_at_zero_clips_no_membrane_above_it() -> None:
    membrane = torch.tensor([[[1e-39], [0.0], [1.0]]])
    gradient = exodus_core.lif_gradient(membrane, torch.ones_like(membrane), 0.5, min_membrane=0.0).input
    assert (gradient.flatten() > 0).tolist() == [True, False, True]


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_a_membrane_that_leaks_away_ends_at_zero_and_is_the_loops_until_then(reset: str) -> None:
    x = torch.zeros(1, 2000, 17)
    x[0, 0] = torch.linspace(-3, 3, 17)
    membrane = exodus_core.lif(x, 0.9, reset=reset)[1]
    looped = reference.lif(x, 0.9, reset=reset)[1]
    normal = looped.abs() >= torch.finfo(torch.float32).tiny
    assert torch.equal(membrane[normal], looped[normal])
    assert not membrane[0, -1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_a_membrane_of_the_smallest_normal_size_has_not_leaked_away(dtype: torch.dtype) -> None:
    least = torch.finfo(dtype).tiny
    x = torch.zeros(1, 3, 1, dtype=dtype)
    x[0, 0] = least
    assert exodus_core.lif(x, 0.5)[1].flatten().tolist() == [least, least / 2, 0.0]


def test_a_count_of_spikes_is_never_minus_zero() -> None:
    x = torch.full((1, 2, 3), -0.0)
    spikes, membrane = exodus_core.lif(x, 1.0, initial_membrane=torch.full((1, 3), -0.0), max_spikes=3)
    assert membrane.signbit().all()
    assert not spikes.signbit().any()


# Signals whose terms all have one sign and nearly one size are the worst for a sum: what each addition loses adds up.
# Steps that a thread of a GPU sums in float32 at a time: kBlock in csrc/cuda/lif.cuh.
GPU_SUMMED_STEPS = 64
STEADY = {"constant": lambda t: torch.full((t,), 0.7), "uniform": lambda t: torch.rand(t)}


@pytest.mark.parametrize("signal", STEADY)
@pytest.mark.parametrize("lanes", [(1, 1), (2, 33)], ids=name_of)
def test_parameter_gradients_keep_their_precision_over_a_million_steps(signal: Any, lanes: Any) -> None:
    outer, inner = lanes
    t = 2**20 + 77
    u, g = (STEADY[signal](t)[None, :, None].expand(outer, t, inner).contiguous() for _ in range(2))
    u = u - 0.5
    options: dict[str, Any] = {"reset_by": 0.01, "min_membrane": -0.3, "wrt": ("alpha", "threshold", "reset_by")}
    found = exodus_core.lif_gradient(u, g, 0.5, **options)
    exact = exodus_core.lif_gradient(u.double(), g.double(), 0.5, **options)
    for name in options["wrt"]:
        expected = getattr(exact, name)
        error = abs(getattr(found, name).item() - expected.item())
        # On a GPU one thread sums all of a block: each addition rounds the sum so far, half of the block on average, by
        # eps / 2 at most; one eps more is for the terms. On the CPU the lanes of a vector share the block.
        rounding = 4 if u.device.type == "cpu" else GPU_SUMMED_STEPS / 4 + 1
        assert error <= rounding * torch.finfo(torch.float32).eps * abs(expected.item()), name


@pytest.mark.parametrize(("tau", "documented"), [(20, 1.2e-6), (200, 6.6e-6), (2000, 1.2e-4)])
def test_the_decay_of_a_neuron_is_rounded_to_float32_as_documented(tau: int, documented: float) -> None:
    x = torch.zeros(1, 2 * tau + 1, 1)
    x[0, 0, 0] = 1
    _, membrane = exodus_core.lif(x, math.exp(-1 / tau), threshold=math.inf, reset="none")
    error = abs(membrane[0, -1, 0].item() / math.exp(-2) - 1)
    assert error == pytest.approx(documented, rel=0.05)
